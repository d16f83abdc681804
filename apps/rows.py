"""The rows of a probe table: the encoder under test and the floors it must beat, all fitted and scored on the same windows.

A job is one row at one setting and seed over its outer folds. Jobs are independent and run on one thread each, so any number of
processes may share them and the figures stay the same. N windows, D features.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Literal

import console
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from compose import PretrainConfig, ReadOut, build_model, contract_of, fit_model_to, open_stores, parts, seen_of, spec_of
from physio_data.morphology import handcrafted
from physio_data.store import Store, Stores
from physio_models.contract import Encoder, InputContract
from physio_models.pretrained import from_pretrained, save_pretrained
from physio_models.reference import reference_encoder
from physio_models.statistics import batch_norms, reestimate_statistics
from physio_train import Step, Streams, fit, floors, table
from physio_train import probe as probes
from physio_train.embed import embed, signals
from physio_train.folds import FoldSpec
from physio_train.predictions import Predictions, concatenate
from physio_train.probe import Probe, ProbeConfig
from physio_train.protocol import Task, Windows, predict

INITIAL, UNMASKED, MASKED = "as initialised", "statistics of unmasked input", "statistics of masked input"
N_STATISTICS = 2048  # training windows that a twin's running statistics are estimated on
BATCH = 256
TWIN_SEED = 1000  # the twins' initialisations are those of seeds 1000, 1001, ...

NOTHING_SEEN = {"stores": [], "subjects": []}
Source = Literal["encoder", "inductive", "twin", "handcrafted"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of every row: which windows of which stores, their labels, and how an encoder is read."""

    stores: tuple[str, ...]
    task: Task
    rows_N: np.ndarray  # row in the stores of each window
    windows: Windows
    read_out: ReadOut
    validation: np.ndarray | None = None  # windows (numbers into rows_N) that choose regularisation and threshold; None: inner folds of the training windows


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an encoder comes from: a folder or an original's file, or a network as initialised."""

    path: str | None = None
    reference: str | None = None  # row of MODELS whose original wrote the file
    cfg: PretrainConfig | None = None  # of an untrained one
    seed: int = 0

    def open(self, store: Store | Stores) -> Encoder:
        if self.path is None:
            return Encoder(build_model(self.cfg, self.seed), contract_of(self.cfg, store), config=self.cfg.model, seen=NOTHING_SEEN, untrained=True)
        return reference_encoder(self.reference, self.path) if self.reference else from_pretrained(self.path)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the table at one setting and seed."""

    row: str
    source: Source
    specs: tuple[FoldSpec, ...]
    question: Question
    setting: str = ""
    seed: int = 0
    encoder: Origin | None = None  # of "encoder"
    folder: str = ""  # of "inductive": where this fold's encoder is kept
    cfg: PretrainConfig | None = None  # of twins and encoders pretrained inside a fold
    contract: InputContract | None = None  # of twins: what the encoder under test takes

    @property
    def name(self) -> str:
        return " ".join(str(part) for part in (self.row, self.setting, f"seed {self.seed}") if part)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A job's predictions, and the probe of its last fold."""

    job: Job
    predictions: Predictions
    probe: Probe


def run_jobs(jobs: Sequence[Job], n_processes: int) -> list[Done]:
    """Do all jobs, in this process or in several; results in the order of the jobs whatever finishes first."""
    done: dict[int, Done] = {}
    with console.progress("probe", len(jobs)) as show:
        if n_processes <= 1:
            for i, job in enumerate(jobs):
                done[i] = work(job)
                show(i + 1, job.name)
        else:
            with ProcessPoolExecutor(min(n_processes, len(jobs)), mp_context=get_context("spawn"), initializer=_quiet) as pool:
                futures = {pool.submit(work, job): i for i, job in enumerate(jobs)}
                try:
                    for n, future in enumerate(as_completed(futures), start=1):
                        done[futures[future]] = future.result()
                        show(n, jobs[futures[future]].name)
                except BrokenProcessPool:
                    raise console.Failed("a worker process died, perhaps for want of memory; try --jobs 1; what is finished on disk is used again") from None
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    for child in active_children():
                        child.terminate()
                    raise
    return [done[i] for i in range(len(jobs))]


def _quiet() -> None:
    """A worker leaves Ctrl-C to the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def work(job: Job) -> Done:
    """Features, fit and scores of one job, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return _work(job)
    finally:
        torch.set_num_threads(threads)


def _work(job: Job) -> Done:
    question, parts_, fitted = job.question, [], None
    config = ProbeConfig(kind=question.task.kind, missing="median" if job.source == "handcrafted" else "error")
    of_fold = _features(job)
    for spec in job.specs:
        x_ND = of_fold(spec)
        windows, held = question.windows, question.validation
        train = spec.train if held is None else np.setdiff1d(spec.train, held)
        validation = None if held is None else (x_ND[held], windows.y[held])
        fitted = probes.fit(x_ND[train], windows.y[train], windows.groups[train], config, classes=question.task.classes, validation=validation)
        parts_.append(predict(job.row, fitted, x_ND[spec.test], windows.take(spec.test), question.task, seed=job.seed, repeat=spec.repeat, fold=str(spec.fold)))
    return Done(job=job, predictions=concatenate(parts_), probe=fitted)


def _features(job: Job) -> Callable[[FoldSpec], np.ndarray]:
    """A function of the fold that gives features (N, D) of all windows; what does not depend on the fold is computed once."""
    question = job.question
    store = _stores(question.stores)
    if job.source == "inductive":
        return lambda spec: encoder_features(pretrain_fold(job, store, spec), store, question)
    if job.source == "twin" and job.setting != INITIAL:
        return lambda spec: encoder_features(twin(job, store, spec), store, question)
    if job.source == "twin":
        fixed = encoder_features(twin(job, store, job.specs[0]), store, question)
    elif job.source == "handcrafted":
        fixed = handcrafted_features(store, question.rows_N)
    else:
        fixed = encoder_features(job.encoder.open(store), store, question)
    return lambda spec: fixed


@cache
def _stores(paths: tuple[str, ...]) -> Store | Stores:
    return open_stores(paths)


def encoder_features(encoder: Encoder, store: Store | Stores, question: Question) -> np.ndarray:
    """Features of a frozen encoder; its contract refuses a store that does not fit."""
    spec, read_out = spec_of(store), question.read_out

    def encode(batch: dict[str, Tensor]) -> Tensor:
        return encoder.features(batch["signal"], spec, level=read_out.level, pool=read_out.pool, valid_BT=batch.get("valid"))

    return embed(encode, store, question.rows_N, batch_size=BATCH)


def handcrafted_features(store: Store | Stores, rows_N: np.ndarray) -> np.ndarray:
    return np.concatenate([handcrafted(x_NCT, store.fs, store.kind)[0] for x_NCT in signals(store, rows_N)])


def twin(job: Job, store: Store | Stores, spec: FoldSpec) -> Encoder:
    """The untrained net of the job's seed, with running statistics of the training windows met unmasked or masked where the setting says so."""
    cfg = job.cfg
    model = build_model(cfg, TWIN_SEED + job.seed)
    encoder = Encoder(model, job.contract, untrained=True)
    if job.setting == INITIAL:
        return encoder
    rows = job.question.rows_N[spec.train]
    rows = rows[np.linspace(0, len(rows) - 1, min(N_STATISTICS, len(rows))).astype(np.int64)]
    batches = (encoder.prepare(x_NCT, spec_of(store))[0] for x_NCT in signals(store, rows, batch_size=BATCH))
    if job.setting == UNMASKED:
        reestimate_statistics(model, batches)
    else:
        step = Step(cfg.objective.modules(model), 1.0, Streams(TWIN_SEED + job.seed))
        reestimate_statistics(model, batches, lambda x: cfg.objective(model, {"signal": x, "index": torch.arange(len(x))}, step))
    return encoder


def pretrain_fold(job: Job, store: Store | Stores, spec: FoldSpec) -> Encoder:
    """The encoder pretrained on this fold's training windows alone; read back where an earlier run finished it."""
    folder = Path(job.folder)
    if not folder.is_dir():
        cfg = fit_model_to(replace(job.cfg, fit=replace(job.cfg.fit, seed=spec.seed)), store)
        rows = job.question.rows_N[spec.train]
        made = parts(cfg, store, rows, np.zeros(0, np.int64))
        last = None
        for last in fit(made.model, made.objective, made.batches, cfg.fit):  # noqa: B007
            pass
        save_pretrained(folder, last.state.eval_model.cpu().eval(), cfg.model, contract_of(cfg, store), seen_of(store, rows))
    return from_pretrained(folder)


def floor_jobs(question: Question, cfg: PretrainConfig, contract: InputContract, specs: Sequence[FoldSpec], store: Store | Stores) -> list[Job]:
    """The twins at every setting and seed, and the hand-crafted row where the signal's kind has one."""
    once = tuple(spec for spec in specs if spec.seed == specs[0].seed)
    settings = (INITIAL, UNMASKED, MASKED) if batch_norms(cfg.model.build()) else (INITIAL,)
    jobs = [
        Job(row="twin", source="twin", setting=setting, seed=seed, specs=once, question=question, cfg=cfg, contract=contract)
        for setting in settings
        for seed in range(question.read_out.twins)
    ]
    if has_handcrafted(store):
        jobs.append(Job(row="handcrafted", source="handcrafted", specs=once, question=question))
    return jobs


def has_handcrafted(store: Store | Stores) -> bool:
    return store.kind in ("ecg", "ppg") and store.fs >= {"ecg": 100.0, "ppg": 20.0}[store.kind]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The table and the predictions it was computed from."""

    table: table.Table
    predictions: Predictions
    done: Sequence[Done]


def judged(
    question: Question, jobs: Sequence[Job], specs: Sequence[FoldSpec], *, heading: str, n_processes: int, notes: Sequence[str] = (), seed: int = 0
) -> Result:
    """Run the jobs and score every row; the twin's cells show the strongest of its settings."""
    done = run_jobs(jobs, n_processes)
    settings: dict[str, list[Predictions]] = {}
    for each in done:
        if each.job.row == "twin":
            settings.setdefault(each.job.setting, []).append(each.predictions)
    twins = {setting: concatenate(found) for setting, found in settings.items()}
    own = [each.predictions for each in done if each.job.row not in ("twin", "handcrafted")]
    crafted = [each.predictions for each in done if each.job.row == "handcrafted"]
    if not crafted:
        notes = [*notes, "no hand-crafted row: its features are defined for ECG from 100 Hz and PPG from 20 Hz"]
    leak = floors.leak(question.windows, question.task, specs)
    leaks = [] if leak is None else [leak]
    kind = question.task.kind
    shown = table.score(
        concatenate([*own, *crafted, *leaks]),
        kind=kind,
        heading=heading,
        settings={"twin": twins} if twins else None,
        disjoint=leak is None,
        task=question.task.name,
        seed=seed,
        notes=notes,
    )
    strongest = [floors.strongest(twins, kind=kind).predictions] if twins else []
    return Result(table=shown, predictions=concatenate([*own, *strongest, *crafted, *leaks]), done=done)


def show(result: Result) -> None:
    """Print the table: drawn on a terminal, plain text otherwise."""
    if not sys.stdout.isatty():
        print(result.table.plain(), flush=True)
        return
    from rich.console import Console
    from rich.table import Table as Drawn

    head, *body = result.table.cells()
    drawn = Drawn(*head, title=result.table.title(), caption="\n".join(result.table.notes), caption_justify="left")
    for line in body:
        drawn.add_row(*line)
    Console().print(drawn)


def summary(result: Result) -> dict[str, object]:
    """The table's leading figure of each row, for the JSON line."""
    shown = result.table
    lead = shown.columns[0]
    values = {row.name: row.cells[lead].value for row in shown.rows if row.cells[lead].value is not None}
    own = shown.rows[0].cells["difference"]
    return {"task": shown.task, "heading": shown.heading, lead: values, "difference": own.value, "difference_interval": [own.low, own.high]}


def question_of(store: Store | Stores, paths: Sequence[Path | str], rows_N: np.ndarray, read_out: ReadOut) -> Question:
    """The windows of these rows and their labels under the read-out's task."""
    task = task_of(store, read_out.task)
    return Question(stores=tuple(map(str, paths)), task=task, rows_N=rows_N, windows=windows_of(store, task, rows_N), read_out=read_out)


def task_of(store: Store | Stores, name: str | None) -> Task:
    """A task of the store; the only one where none is named. ValueError lists what there is."""
    tasks = (store.stores[0] if isinstance(store, Stores) else store).tasks
    if name is None and len(tasks) != 1:
        raise ValueError(f"name one task with --task: the store has {', '.join(tasks) or 'none'}")
    name = name or next(iter(tasks))
    if name not in tasks:
        raise ValueError(f"task {name!r} is not in the store; it has {', '.join(tasks) or 'none'}")
    return Task(name=name, kind=tasks[name]["kind"], classes=tuple(tasks[name]["classes"]) if tasks[name]["kind"] in ("multiclass", "multilabel") else ())


def windows_of(store: Store | Stores, task: Task, rows_N: np.ndarray) -> Windows:
    """Who, where and which label; a store without the task gives unknown labels, a corpus without subjects empty ones."""
    members = store.stores if isinstance(store, Stores) else [store]
    label = np.concatenate([_labels(member, task) for member in members])
    subject = np.concatenate([_subjects(member) for member in members])
    return Windows(y=label[rows_N], subject=subject[rows_N], record=store.index["record"][rows_N], start_s=store.index["start_s"][rows_N])


def _labels(store: Store, task: Task) -> np.ndarray:
    if task.name in store.tasks:
        spec = store.tasks[task.name]
        if spec["kind"] != task.kind or (task.classes and tuple(spec["classes"]) != task.classes):
            raise ValueError(f"task {task.name!r} is another one in {store.path} ({spec}); the probe was asked for {task}")
        return store.label(task.name)
    if task.kind == "regression":
        return np.full(len(store), np.nan)
    return np.full((len(store), len(task.classes)) if task.kind == "multilabel" else len(store), -1)


def _subjects(store: Store) -> np.ndarray:
    return store.index["subject"] if store.manifest.get("subjects", "known") == "known" else np.full(len(store), "")


def split_question(
    store: Store | Stores,
    paths: Sequence[Path | str],
    read_out: ReadOut,
    *,
    train: np.ndarray,
    test: np.ndarray,
    validation: np.ndarray | None = None,
) -> tuple[Question, FoldSpec]:
    """One training and one test set of rows; validation rows choose regularisation and threshold, else inner folds of the training ones."""
    held = np.zeros(0, np.int64) if validation is None else validation
    rows_N = np.concatenate([train, held, test])
    n_fit = len(train) + len(held)
    spec = FoldSpec(seed=0, repeat=0, fold="test", train=np.arange(n_fit), test=np.arange(n_fit, len(rows_N)))
    question = question_of(store, paths, rows_N, read_out)
    return (question if validation is None else replace(question, validation=np.arange(len(train), n_fit))), spec
