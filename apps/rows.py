"""The rows of a probe table: the encoder under test and the floors it must beat, all fitted and scored on the same windows.

A job is one row at one setting and seed over its outer folds. Jobs are independent and run on one thread each, so any number of
processes may share them and the figures stay the same. N windows, D features.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from threadpoolctl import threadpool_limits

import console
from compose import PretrainConfig, open_stores
from downstream import TuneConfig, Tuned, tune
from downstream import predict as tuned_scores
from encoders import INITIAL, Origin, encoder_features, pretrained_here, twin, twin_settings
from handmade import handcrafted_features, has_handcrafted
from physio_data.store import Store, Stores
from physio_models.contract import InputContract
from physio_train import floors, table
from physio_train import probe as probes
from physio_train.few_shot import labelled_subjects, validation_part
from physio_train.folds import FoldSpec
from physio_train.predictions import Predictions, concatenate
from physio_train.probe import Probe, ProbeConfig
from physio_train.protocol import predict
from physio_train.readouts import fit_fused, fit_readout, fit_thresholds
from questions import Question

Source = Literal["encoder", "inductive", "fused", "twin", "handcrafted"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the table at one setting and seed."""

    row: str
    source: Source
    specs: tuple[FoldSpec, ...]
    question: Question
    setting: str = ""
    seed: int = 0
    encoder: Origin | None = None  # of "encoder", and of "fused" where there is no folder
    folder: str = ""  # of "inductive" and "fused": where this fold's encoder is kept
    others: tuple[str, ...] = ()  # of the same: stores of other subjects that its encoder may learn from too
    cfg: PretrainConfig | None = None  # of twins and encoders pretrained inside a fold
    contract: InputContract | None = None  # of twins: what the encoder under test takes
    tuned: TuneConfig | None = None  # trained with its encoder instead of read out frozen
    neighbours: bool = False  # read by nearest neighbours instead of the probe
    fraction: float = 1.0  # of the training subjects, whose labels are kept

    @property
    def name(self) -> str:
        return " ".join(str(part) for part in (self.row, self.setting, f"seed {self.seed}") if part)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A job's predictions, and the probe (or whatever was fitted) of its last fold."""

    job: Job
    predictions: Predictions
    probe: Probe | ReadOutFit | TunedFit
    cpu_s: float = 0.0  # what the job took of one thread


@dataclass(frozen=True, kw_only=True)
class ReadOutFit:
    """A fitted read-out of features in the place of a probe."""

    predict: Callable[[np.ndarray], np.ndarray]
    threshold_K: np.ndarray


@dataclass(frozen=True, kw_only=True)
class TunedFit:
    """A fine-tuned encoder in the place of a probe: its features are the windows' numbers in the question."""

    tuned: Tuned
    question: Question

    @property
    def threshold_K(self) -> np.ndarray:
        return self.tuned.threshold_K

    def predict(self, numbers_N: np.ndarray) -> np.ndarray:
        return tuned_scores(self.tuned, _stores(self.question.stores, self.question.lead), self.question.rows_N[numbers_N])


def run_jobs(jobs: Sequence[Job], n_processes: int) -> tuple[list[Done], list[str]]:
    """Do all jobs, in this process or in several; results in the order of the jobs whatever finishes first, and why rows are missing.

    The first job's row is what was asked for: its error is raised.
    """
    done: dict[int, Done] = {}
    refused: dict[str, str] = {}

    def keep(i: int, result: Done | ValueError) -> None:
        if isinstance(result, Done):
            done[i] = result
        elif jobs[i].row == jobs[0].row:
            raise result
        else:
            refused[jobs[i].row] = f"{jobs[i].row}: no row, {result}"

    each_job(jobs, n_processes, keep)
    return [done[i] for i in range(len(jobs)) if i in done and jobs[i].row not in refused], list(refused.values())


def each_job(jobs: Sequence[Job], n_processes: int, keep: Callable[[int, Done | ValueError], None]) -> None:
    """Do all jobs; `keep(number, result)` is called as each is done, with a ValueError where the job cannot be. The fused come last: they read the encoders
    that others leave in their folders."""
    for fused in (False, True):
        numbers = [i for i, job in enumerate(jobs) if (job.source == "fused") == fused]
        _together([jobs[i] for i in numbers], n_processes, lambda j, result, numbers=numbers: keep(numbers[j], result))


def _together(jobs: Sequence[Job], n_processes: int, keep: Callable[[int, Done | ValueError], None]) -> None:
    if not jobs:
        return
    with console.progress("probe", len(jobs)) as show:
        if n_processes <= 1:
            for i, job in enumerate(jobs):
                keep(i, attempt(job))
                show(i + 1, job.name)
        else:
            with ProcessPoolExecutor(min(n_processes, len(jobs)), mp_context=get_context("spawn"), initializer=_quiet) as pool:
                futures = {pool.submit(attempt, job): i for i, job in enumerate(jobs)}
                try:
                    for n, future in enumerate(as_completed(futures), start=1):
                        keep(futures[future], future.result())
                        show(n, jobs[futures[future]].name)
                except BrokenProcessPool:
                    raise console.Failed("a worker process died, perhaps for want of memory; try --jobs 1; what is finished on disk is used again") from None
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    for child in active_children():
                        child.terminate()
                    raise


def attempt(job: Job) -> Done | ValueError:
    """`work`, its ValueError handed back: what a question's labels or windows do not allow is an answer too."""
    try:
        return work(job)
    except ValueError as error:
        return error


def _quiet() -> None:
    """A worker leaves Ctrl-C to the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def work(job: Job) -> Done:
    """Features, fit and scores of one job, on one thread."""
    if job.source in ("handcrafted", "fused"):
        import sklearn.ensemble  # noqa: F401  (a thread pool that is loaded later is not limited, and trees then depend on the number of threads)
    threads, began = torch.get_num_threads(), time.process_time()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            done = _work(job)
            return replace(done, cpu_s=time.process_time() - began)
    finally:
        torch.set_num_threads(threads)


def _work(job: Job) -> Done:
    question, windows, parts_, fitted = job.question, job.question.windows, [], None
    of_fold, n_made = _features(job) if job.tuned is None else (lambda spec: np.arange(len(windows)), 0)
    for spec in job.specs:
        x_N = of_fold(spec)
        fitted = _fitted(job, x_N, n_made, *sides(job, spec))
        parts_.append(predict(job.row, fitted, x_N[spec.test], windows.take(spec.test), question.task, seed=job.seed, repeat=spec.repeat, fold=str(spec.fold)))
    return Done(job=job, predictions=concatenate(parts_), probe=fitted)


def sides(job: Job, spec: FoldSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """The windows of a fold that a job is fitted on, and those that choose for it; None where inner folds do."""
    windows, held = job.question.windows, job.question.validation
    train = spec.train if held is None else np.setdiff1d(spec.train, held)
    if job.fraction < 1:
        train = train[labelled_subjects(windows.groups[train], windows.y[train], job.fraction, kind=job.question.task.kind, seed=job.seed + spec.repeat)]
    if job.tuned is None or held is not None:
        return train, held
    part = validation_part(windows.groups[train], windows.y[train], seed=job.seed)
    return train[~part], train[part]


def _fitted(job: Job, x_N: np.ndarray, n_made: int, train: np.ndarray, held: np.ndarray | None) -> Probe | ReadOutFit | TunedFit:
    """The job's read-out, fitted on the training windows alone; the last `n_made` features are hand-made."""
    windows, task = job.question.windows, job.question.task
    if job.tuned is not None:
        store = _stores(job.question.stores, job.question.lead)
        return TunedFit(tuned=tune(job.encoder.open(store), store, job.question, train, held, job.tuned, job.seed), question=job.question)
    x_ND, y, groups = x_N[train], windows.y[train], windows.groups[train]
    if job.neighbours or job.source == "handcrafted":
        given = ("knn" if job.neighbours else "blend", x_ND, y, groups, task.kind, task.classes, job.seed)
        return ReadOutFit(predict=fit_readout(*given), threshold_K=fit_thresholds(*given))
    if job.source == "fused":
        fused = fit_fused(x_ND, x_ND.shape[1] - n_made, y, groups, task.kind, task.classes, seed=job.seed)
        return ReadOutFit(predict=fused.predict, threshold_K=fused.threshold_K)
    validation = None if held is None else (x_N[held], windows.y[held])
    return probes.fit(x_ND, y, groups, ProbeConfig(kind=task.kind), classes=task.classes, validation=validation)


def _features(job: Job) -> tuple[Callable[[FoldSpec], np.ndarray], int]:
    """A function of the fold that gives features (N, D) of all windows, and how many of the last are hand-made; what does not depend on the fold is computed
    once."""
    question = job.question
    store = _stores(question.stores, question.lead)

    def of_twin(spec: FoldSpec) -> np.ndarray:
        return encoder_features(twin(job.cfg, job.contract, job.setting, job.seed, store, question.rows_N[spec.train]), store, question)

    def of_fold(spec: FoldSpec) -> np.ndarray:
        encoder = pretrained_here(job.cfg, Path(job.folder), spec.seed, store, question.rows_N[spec.train], job.others)
        if both := set(encoder.seen["subjects"]) & set(store.index["subject"][question.rows_N[spec.test]].tolist()):
            raise ValueError(f"the encoder in {job.folder} saw test subject {min(both)}: delete that folder")
        return encoder_features(encoder, store, question)

    made = handcrafted_features(store, question.rows_N) if job.source in ("handcrafted", "fused") else np.zeros((len(question.rows_N), 0))
    if job.source == "handcrafted":
        return (lambda spec: made), made.shape[1]
    if job.source == "inductive" or (job.source == "fused" and job.folder):
        own = of_fold
    elif job.source == "twin" and job.setting != INITIAL:
        own = of_twin
    else:
        fixed = of_twin(job.specs[0]) if job.source == "twin" else encoder_features(job.encoder.open(store), store, question)
        own = lambda spec: fixed  # noqa: E731
    if job.source != "fused":
        return own, 0
    return (lambda spec: np.concatenate([own(spec), made], axis=1)), made.shape[1]


@cache
def _stores(paths: tuple[str, ...], lead: tuple[tuple[str, str], ...]) -> Store | Stores:
    return open_stores(paths, lead=dict(lead))


def floor_jobs(question: Question, cfg: PretrainConfig, contract: InputContract, specs: Sequence[FoldSpec], store: Store | Stores) -> list[Job]:
    """The twins at every setting and seed, and the hand-crafted row where the signal's kind has one."""
    once = tuple(spec for spec in specs if spec.seed == specs[0].seed)
    jobs = [
        Job(row="twin", source="twin", setting=setting, seed=seed, specs=once, question=question, cfg=cfg, contract=contract)
        for setting in twin_settings(cfg)
        for seed in range(question.read_out.twins)
    ]
    if has_handcrafted(store):
        jobs.append(Job(row="handcrafted", source="handcrafted", specs=once, question=question))
    return jobs


@dataclass(frozen=True, kw_only=True)
class Result:
    """The table and the predictions it was computed from."""

    table: table.Table
    predictions: Predictions
    done: Sequence[Done]


def judged(
    question: Question, jobs: Sequence[Job], specs: Sequence[FoldSpec], *, heading: str, n_processes: int, notes: Sequence[str] = (), seed: int = 0
) -> Result:
    """Run the jobs and score every row; the twin's cells show the strongest of its settings. A row whose labels or windows do not allow it is told in the
    notes; the first job's row must be there."""
    done, refused = run_jobs(jobs, n_processes)
    notes = [*notes, *refused]
    settings: dict[str, list[Predictions]] = {}
    for each in done:
        if each.job.row == "twin":
            settings.setdefault(each.job.setting, []).append(each.predictions)
    twins = {setting: concatenate(found) for setting, found in settings.items()}
    own = [each.predictions for each in done if each.job.row not in ("twin", "handcrafted")]
    crafted = [each.predictions for each in done if each.job.row == "handcrafted"]
    if not crafted and not any(note.startswith("handcrafted") for note in notes):
        notes = [*notes, "no hand-crafted row: its features are defined for ECG from 100 Hz and PPG from 25 Hz"]
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
