"""The benchmark: real corpora, their questions, the methods that answer them, and how each is kept so that an interrupted page goes on.

OUT/stores/NAME         the prepared corpora
OUT/stores/NAME+OTHER   another corpus, prepared like NAME, for pretraining alone
OUT/encoders/...        encoders pretrained inside a fold, shared by the questions of a store
OUT/cells/QUESTION/...  the predictions of one row at one setting, seed and fold
OUT/costs.csv           question, cell and CPU seconds of each cell, as it was done
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

import compose
import prepare
import rows
from compose import PretrainConfig, ReadOut
from console import say
from downstream import TuneConfig
from encoders import INITIAL, UNMASKED, Origin, twin_settings
from finetune import scratch_origin
from handmade import has_handcrafted
from physio_data.manifest import MANIFEST
from physio_data.prepare import PrepareConfig
from physio_data.store import Store
from physio_models import MODELS, resolve
from physio_models.himae import HiMaeConfig
from physio_models.objectives.cpc import Cpc
from physio_models.objectives.dual_domain import DualDomain
from physio_models.objectives.masked import MaskedReconstruction
from physio_models.s4d import S4dConfig
from physio_train import FitConfig, floors
from physio_train import predictions as prediction_files
from physio_train.folds import FoldSpec, outer_folds
from physio_train.predictions import Predictions
from pool import config_of, others_for, physical, pooled
from questions import Question, question_of, split_question
from rows import Job

Size = Literal["tiny", "fast", "reference"]
METHODS = ("himae", "ti_mae", "cwt_mae", "cpc_s4d")
FUSED = "himae"  # the method whose encoder is also read beside hand-made features


@dataclass(frozen=True, kw_only=True)
class Source:
    """One prepared corpus of the benchmark."""

    name: str
    corpus: str
    folder: str = ""  # beneath --root; "" for generated corpora
    config: tuple[tuple[str, object], ...] = ()  # of PrepareConfig
    options: tuple[tuple[str, object], ...] = ()
    tasks: tuple[str, ...] = ()
    use: tuple[tuple[str, str], ...] = ()  # train, val, test: folds; () cross-validates over subjects
    around: bool = False


SOURCES = (
    Source(name="mitbih", corpus="mitbih", folder="mitdb", tasks=("pvc",)),
    Source(name="mitbih_beats", corpus="mitbih", folder="mitdb", config=(("around", "beats"),), tasks=("aami",)),
    Source(name="cinc2017", corpus="cinc2017", folder="cinc2017", tasks=("af", "noise")),
    Source(name="ptbxl", corpus="ptbxl", folder="ptbxl", tasks=("superclass",), use=(("train", "1-5"), ("val", "6"), ("test", "7-8"))),
    Source(name="ppgbp", corpus="ppgbp", folder="ppgbp", tasks=("hypertension", "age", "sex")),
    Source(name="cpsc2021", corpus="cpsc2021", folder="cpsc2021", tasks=("af",)),
    Source(name="ecg200", corpus="ucr", folder="ucr_small/ECG200", tasks=("class",), use=(("train", "train"), ("test", "test"))),
    Source(name="twoleadecg", corpus="ucr", folder="ucr_small/TwoLeadECG", tasks=("class",), use=(("train", "train"), ("test", "test"))),
    Source(name="synthetic", corpus="synthetic", tasks=("pvc", "af", "age"), options=(("n_subjects", 400), ("minutes", 4.0))),
)
TINY_OPTIONS = {"n_subjects": 24, "minutes": 0.5}
COHORT = {"n_subjects": 200, "minutes": 1.0}  # of the synthetic cohort that encoders of other sources learn from
COSTS = "costs.csv"
FEW_SUBJECTS = 10
N_FOLDS = {"tiny": 2, "fast": 3, "reference": 5}
N_TWINS = {"tiny": 1, "fast": 2, "reference": 5}
N_STEPS = {"tiny": 4, "fast": 300, "reference": 20_000}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One piece of the page: some rows' predictions of one question, written at once."""

    path: Path
    job: Job


def wanted(names: Sequence[str], root: Path, size: Size) -> tuple[list[Source], list[str]]:
    """The sources named (all without a name) whose files are there, and why others are not."""
    known = [source.name for source in SOURCES]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no source {unknown[0]!r}{compose.nearest(unknown[0], known)}; there are {', '.join(known)}")
    chosen, absent = [], []
    for source in SOURCES:
        if names and source.name not in names:
            continue
        if source.folder and not (root / source.folder).exists():
            absent.append(f"{source.name}: {root / source.folder} is absent")
        else:
            chosen.append(source)
    return chosen, absent


def prepared(source: Source, root: Path, out: Path, size: Size, jobs: int) -> Store:
    """The source's store and those of the other corpora that its encoders learn from, prepared where they are not there yet."""
    folder = out / "stores" / source.name
    values = dict(source.config)
    options = dict(source.options) if size != "tiny" else {key: TINY_OPTIONS[key] for key, _ in source.options}
    if source.corpus == "ptbxl":
        values["folds"] = str(strat_folds(root / source.folder, out / "stores" / "ptbxl_folds.csv"))
    where = str(root / source.folder) if source.folder else None
    workers = 0 if jobs < 2 else jobs
    prepare.prepared(PrepareConfig(corpus=source.corpus, root=where, corpus_options=options, **values), folder, workers=workers)
    store = Store(folder)
    for other in others_for(store, source.corpus):
        if not other.folder or (root / other.folder).exists():
            cohort = TINY_OPTIONS if size == "tiny" else COHORT
            prepare.prepared(config_of(other, store, root, cohort), out / "stores" / f"{source.name}+{other.name}", workers=workers)
    return store


def others(source: Source, store: Store, out: Path) -> tuple[str, ...]:
    """Folders of the other corpora that `prepared` found and prepared like this store."""
    folders = [out / "stores" / f"{source.name}+{other.name}" for other in others_for(store, source.corpus)]
    return tuple(str(folder) for folder in folders if (folder / MANIFEST).is_file())


def pretraining_note(source: Source, store: Store, out: Path) -> str:
    """What the pretrained rows learnt from."""
    beside = others(source, store, out)
    if not beside:
        why = "its windows are normalised series without a unit or a rate" if not physical(store) else f"no other corpus has {'+'.join(store.channels)}"
        return f"pretrained on the fold's training windows alone: {why}"
    _, *counts = pooled(store, np.arange(len(store)), beside).counts().items()
    listed = ", ".join(f"{name} ({n})" for name, n in counts)
    return f"pretrained on the fold's training windows (half of what is drawn) and on windows of other corpora: {listed}"


def strat_folds(root: Path, path: Path) -> Path:
    """PTB-XL's ten official folds by their number, as `prepare` reads them: a CSV of record and fold."""
    from physio_data.corpora.ptbxl import list_records

    with (root / "ptbxl_database.csv").open(newline="", encoding="utf-8") as file:
        fold_of = {int(float(line["ecg_id"])): int(float(line["strat_fold"])) for line in csv.DictReader(file)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["record", "fold"])
        writer.writerows([record, fold_of[int(record.partition("_")[0])]] for record in list_records(root))
    return path


def method_config(method: str, store: Store, size: Size) -> PretrainConfig:
    """A method's network, objective and training for the windows of a store. ValueError where it cannot take them."""
    n, c = store.n_samples, len(store.channels)
    patch = next((p for p in (25, 20, 10, 9, 8, 5, 4, 2, 1) if n % p == 0 and n // p >= 16), 1)
    short = size == "tiny"
    pool, level = "mean+max+std", "all"
    if method == "himae":
        widths = HiMaeConfig.preset("tiny" if short else "reference").widths
        while len(widths) > 1 and n / 2 ** len(widths) < 8:
            widths = widths[:-1]
        model = HiMaeConfig(n_channels=c, n_samples=n, widths=widths, skips=False, output="linear")
        objective, lr, batch = MaskedReconstruction(patch=patch, mask_ratio=0.5), 2e-3, 64
    elif method == "ti_mae":
        base = resolve(MODELS, "ti_mae").preset("tiny" if short else "fast", n_channels=c, n_samples=n)
        model = replace(base, patch=patch if n > 200 else 2 if n % 2 == 0 else 1)
        objective, lr, batch = MaskedReconstruction(patch=model.patch, mask_ratio=0.5), 1e-3, 64
    elif method == "cwt_mae":
        model = replace(resolve(MODELS, "cwt_mae").preset("tiny" if short else "fast", n_channels=c, n_samples=n), fs=store.fs, **cwt_band(store))
        objective, lr, batch, pool = DualDomain(), 1e-3, max(8, 32 // c), "mean+std"  # every lead is a row of tokens
    elif method == "cpc_s4d":
        step = next(p for p in (4, 3, 2, 1) if n % p == 0)
        model = S4dConfig(n_channels=c, n_samples=n, patch=step, width=16 if short else 64, depth=2)
        objective, lr, batch = Cpc(n_steps=min(12, n // step - 1), n_anchors=16), 1e-3, 32
    else:
        raise ValueError(f"no method {method!r}; there are {', '.join(METHODS)}")
    return PretrainConfig(
        cohort=compose.Cohort(),
        model=model,
        objective=objective,
        fit=FitConfig(n_steps=N_STEPS[size], batch_size=16 if short else batch, lr=lr, betas=(0.9, 0.99), precision=compose.fast_precision()),
        normalization="none" if set(store.units) == {"normalised"} else "lead_zscore",
        shift=False,
        probe=ReadOut(level=level, pool=pool, twins=N_TWINS[size]),
    )


def cwt_band(store: Store) -> dict[str, object]:
    """The scalogram's band for a store's rate: its own pass band, or a broad one for bare series."""
    low, high = (store.manifest.get("band") or (None, None))[:2]
    return {"band_hz": (low or 2 / store.window_s, min(high or 0.4 * store.fs, 0.45 * store.fs))}


def posed(source: Source, store: Store, folder: Path, task: str, size: Size, read_out: ReadOut) -> tuple[Question, tuple[FoldSpec, ...]]:
    """The question and its folds. Every question of a store has the folds of its first task, so that encoders pretrained inside a fold serve all."""
    read_out = replace(read_out, task=task)
    if source.use:
        sides = {side: compose.rows_of(store, (folds,)) for side, folds in source.use}
        question, spec = split_question(store, (folder,), read_out, train=sides["train"], test=sides["test"], validation=sides.get("val"))
        return question, (spec,)
    first = question_of(store, (folder,), np.arange(len(store)), replace(read_out, task=source.tasks[0]))
    groups = first.windows.groups
    n_groups = len(np.unique(groups))
    n_folds = n_groups if n_groups < FEW_SUBJECTS else N_FOLDS[size]  # of few, each is left out in turn, so that the others still hold both classes
    specs = outer_folds(groups, first.windows.y, n_folds=n_folds)
    return question_of(store, (folder,), np.arange(len(store)), read_out), tuple(specs)


def cells(
    source: Source, store: Store, folder: Path, task: str, out: Path, size: Size, methods: Sequence[str]
) -> tuple[list[Cell], Question, tuple[FoldSpec, ...], list[str]]:
    """Everything that a question's table needs, piece by piece, and what cannot be built, with its reason."""
    home, refused = out / "cells" / f"{source.name}-{task}", []
    question, specs = posed(source, store, folder, task, size, ReadOut())
    made: list[Cell] = []
    beside = others(source, store, out)

    def add(name: str, **job: object) -> None:
        made.append(Cell(path=home / f"{name}.csv", job=Job(**{"specs": specs, "question": question, **job})))

    for method in methods:
        try:
            cfg = method_config(method, store, size)
            cfg.model.build()
        except ValueError as error:
            refused.append(f"{method}: no cell, {error}")
            continue
        asked = replace(question, read_out=replace(cfg.probe, task=task))
        for spec in specs:
            where = out / "encoders" / source.name / method / f"fold{spec.fold}"
            few = replace(cfg, fit=replace(cfg.fit, batch_size=min(cfg.fit.batch_size, len(spec.train))))  # an archive may train on fewer than a batch
            own = {"specs": (spec,), "question": asked, "cfg": few, "folder": str(where), "others": beside}
            add(f"{method}-fold{spec.fold}", row=method, source="inductive", **own)
            if method == FUSED and has_handcrafted(store):
                add(f"{method}+handcrafted-fold{spec.fold}", row=f"{method}+handcrafted", source="fused", **own)
        settings = [s for s in twin_settings(cfg) if size == "reference" or s in (INITIAL, UNMASKED)]
        for setting in settings:
            for seed in range(N_TWINS[size]):
                name = f"twin-{method}-{settings.index(setting)}-{seed}"
                contract = compose.contract_of(cfg, store)
                add(name, row=f"twin of {method}", source="twin", setting=setting, seed=seed, question=asked, cfg=cfg, contract=contract)
    if has_handcrafted(store):
        add("handcrafted", row="handcrafted", source="handcrafted")
    else:
        refused.append("handcrafted: no cell, its features are defined for ECG from 100 Hz and PPG from 25 Hz, and for normalised series")
    tuned = TuneConfig(layer_decay=1.0, n_epochs=2 if size == "tiny" else 20, max_steps={"tiny": 4, "fast": 400, "reference": 5000}[size])
    origin = scratch_origin(store, "tiny" if size == "tiny" else "fast")
    if set(store.units) == {"normalised"}:
        origin = Origin(cfg=replace(origin.cfg, normalization="none"), seed=origin.seed)
    add("supervised", row="supervised", source="encoder", encoder=origin, tuned=tuned)
    return made, question, specs, refused


def run_cells(todo: Sequence[Cell], n_processes: int, keep: Callable[[Cell, Predictions], None]) -> list[str]:
    """Do what is not on disk yet; each cell is written as soon as it is there. A cell whose labels or windows do not allow it gives its reason."""
    missing = [cell for cell in todo if not cell.path.is_file() and not cell.path.with_suffix(".why").is_file()]
    if missing:
        say(f"{len(todo) - len(missing)} of {len(todo)} cells are there, {len(missing)} to do")
    rows.each_job([cell.job for cell in missing], n_processes, lambda i, done: keep(missing[i], done))
    return [f"{c.job.row}: no cell, {c.path.with_suffix('.why').read_text(encoding='utf-8').strip()}" for c in todo if c.path.with_suffix(".why").is_file()]


def keep_cell(cell: Cell, done: rows.Done | ValueError) -> None:
    """Write a cell's predictions, or why there are none."""
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(done, ValueError):
        cell.path.with_suffix(".why").write_text(f"{done}\n", encoding="utf-8")
    else:
        prediction_files.write(cell.path, done.predictions)
        with (cell.path.parents[2] / COSTS).open("a", encoding="utf-8") as file:
            file.write(f"{cell.path.parent.name},{cell.path.stem},{done.cpu_s:.1f}\n")


def stored(todo: Sequence[Cell], question: Question, specs: Sequence[FoldSpec]) -> tuple[list[Predictions], dict[str, dict[str, Predictions]], bool]:
    """Rows of a question from its cells, complete ones alone; the twins by method and setting; and whether subjects are disjoint over folds."""
    whole: dict[str, list[Predictions]] = {}
    twins: dict[str, dict[str, list[Predictions]]] = {}
    broken = {cell.job.row for cell in todo if not cell.path.is_file()}
    for cell in todo:
        if cell.job.row in broken:
            continue
        found = prediction_files.read(cell.path)
        if cell.job.source == "twin":
            twins.setdefault(cell.job.row, {}).setdefault(cell.job.setting, []).append(found)
        else:
            whole.setdefault(cell.job.row, []).append(found)
    joined = [prediction_files.concatenate(parts) for parts in whole.values()]
    leak = floors.leak(question.windows, question.task, specs)
    settings = {row: {setting: prediction_files.concatenate(parts) for setting, parts in by.items()} for row, by in twins.items()}
    return joined + ([] if leak is None else [leak]), settings, leak is None


def identity(root: Path, size: Size, methods: Sequence[str]) -> dict[str, object]:
    """What an unfinished page must have been asked for, so that no stale cell is read."""
    return json.loads(json.dumps({"size": size, "methods": list(methods), "n_steps": N_STEPS[size], "folds": N_FOLDS[size], "root": root.resolve().name}))
