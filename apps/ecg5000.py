"""A series archive's data set, ECG5000 by default: Ti-MAE and its Mamba pretrained and fine-tuned on the train file alone, beside MiniRocket.

uv run apps/prepare.py ucr --root UCR/ECG5000 --split official --out stores/ecg5000
uv run apps/ecg5000.py --data stores/ecg5000 --out runs/ecg5000             cross-validated over the train file, and a saved model a row and seed
uv run apps/evaluate.py --ckpt runs/ecg5000/models/ROW-* --data STORE --use test --against 1 --predictions F.csv

Every fold pretrains and fine-tunes anew on its own training series. The archive does not say whose the beats are, so series are held out, not people.
OUT/cells/ROW/seedS_foldF.csv are the predictions, OUT/encoders the fold's pretrained networks, OUT/models/ROW-seedS what evaluate.py scores.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tyro

import compose
import console
from compose import Cohort, PretrainConfig, ReadOut, Size
from console import say
from downstream import TuneConfig, Tuned, save_rocket, save_tuned, tune
from downstream import predict as tuned_scores
from encoders import Origin, pretrained_here
from evaluate import called, mean_of, text_of
from physio_data.store import Store
from physio_models.contract import Encoder
from physio_models.objectives.masked import MaskedReconstruction
from physio_models.ti_mae import TiMaeConfig
from physio_models.ti_mae_mamba import TiMaeMambaConfig
from physio_train import FitConfig, minirocket
from physio_train import predictions as prediction_files
from physio_train.folds import FoldSpec, outer_folds
from physio_train.predictions import Predictions, concatenate, make
from physio_train.probe import ProbeConfig
from physio_train.probe import fit as fit_linear
from physio_train.run import write_json
from questions import Question, question_of

PLAIN = ("minirocket", "linear")
"""Rows that no network makes: fixed convolutions with a ridge, and a logistic regression on the samples, classes as frequent as they are."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A row: what is pretrained, for how long, and how it is fine-tuned. Rows that share model, objective and steps share their pretrained networks."""

    model: object
    objective: MaskedReconstruction = field(default_factory=lambda: MaskedReconstruction(mask_ratio=0.75))
    n_steps: int = 200  # 0: fine-tuned as initialised
    batch_size: int = 64
    tune: TuneConfig = field(default_factory=TuneConfig)


@dataclass(frozen=True, kw_only=True)
class Ecg5000:
    """The rows' accuracy, macro F1 and accuracy of normal against the rest, over folds of the train file."""

    data: Path
    """A store of one data set of the UCR archive."""
    out: Path
    """Folder for cells, table and models. The same command goes on where it stopped."""
    rows: tuple[str, ...] = ()
    """Rows to compute. Default: all."""
    seeds: int = 5
    """Initialisations, each with its own folds."""
    folds: int = 5
    against: str = "1"
    """The class that the others are told from in the last column."""
    models: bool = True
    """Also train every row on the whole train file, one model a seed."""
    patch: int = 1
    """Samples a token of the published rows, whose networks have one; more is cheaper and stands in the row's name."""
    size: Size = "fast"
    """tiny: a few steps, for tests."""
    dry_run: bool = False
    """Name the rows and their sizes, write nothing."""


def networks(size: Size, patch: int = 1) -> dict[str, Network]:
    """The row chosen here, the same without pretraining, and the five published ones at their widths and depths in the corrected layout, with `patch`
    samples a token."""
    brief = {"n_epochs": 1, "max_steps": 2} if size == "tiny" else {}
    chosen = TuneConfig(balanced=False, mixup=0.4, layer_decay=1.0, lr=2e-3, batch_size=64, keep="last", ema_decay=0.98, **({"n_epochs": 60} | brief))
    published = TuneConfig(head="pooled", balanced=False, layer_decay=1.0, batch_size=64, keep="last", **({"n_epochs": 20} | brief))
    scan = TiMaeMambaConfig(patch=patch, depth=1, bidirectional=False, headdim=8, decoder_headdim=8, cls=True)
    models = {
        "ti_mae cls": TiMaeConfig(patch=patch, pooling="cls"),
        "ti_mae avg": TiMaeConfig(patch=patch, pooling="mean"),
        "mamba small avg": scan,
        "mamba large cls": replace(scan, width=512, pooling="cls"),
        "mamba large avg": replace(scan, width=512),
    }
    own = Network(model=TiMaeConfig(patch=20), objective=MaskedReconstruction(mask_ratio=0.5), n_steps=100, tune=chosen)
    rows = {"ti_mae chosen": own, "ti_mae chosen, not pretrained": replace(own, n_steps=0)}
    rows |= {name if patch == 1 else f"{name}, patch {patch}": Network(model=model, tune=published) for name, model in models.items()}
    return {name: replace(row, n_steps=min(2, row.n_steps), batch_size=16) if size == "tiny" else row for name, row in rows.items()}


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Ecg5000, args=list(arguments), description=console.paragraphs(__doc__))
    store, known = Store(app.data), networks(app.size, app.patch)
    names = app.rows or (*known, *PLAIN)
    if unknown := [name for name in names if name not in (*known, *PLAIN)]:
        raise ValueError(f"no row {unknown[0]!r}{compose.nearest(unknown[0], (*known, *PLAIN))}; there are {', '.join((*known, *PLAIN))}")
    question = question_of(store, (app.data,), store.rows("train"), ReadOut(task="class"))
    if question.task.kind != "multiclass" or app.against not in question.task.classes:
        raise ValueError(f"the data set must have several classes and --against be one of them, got {app.against!r} of {', '.join(question.task.columns)}")
    if app.dry_run:
        for name in names:
            say(name if name in PLAIN else f"{name}: {compose.n_parameters(fitted_to(known[name], store).model.build()):,} parameters")
        return {"dry_run": True, "rows": list(names), "series": len(question.windows)}
    claim(app, store)
    with console.progress("cells", len(names) * app.seeds * (app.folds + app.models)) as show:
        done = 0
        for name in names:
            row = None if name in PLAIN else fitted_to(known[name], store)
            for seed in range(app.seeds):
                for spec in outer_folds(question.windows.groups, question.windows.y, n_folds=app.folds, split_seed=seed):
                    path = app.out / "cells" / slug(name) / f"seed{seed}_fold{spec.fold}.csv"
                    if not path.is_file():
                        prediction_files.write(path, cell(name, row, app.out, store, question, replace(spec, seed=seed)))
                    done += 1
                    show(done, f"{name}, seed {seed}")
                if app.models:
                    everything = FoldSpec(seed=seed, repeat=0, fold="all", train=np.arange(len(question.windows)), test=np.zeros(0, np.int64))
                    model(name, row, app.out, store, question, everything)
                    done += 1
                    show(done, f"{name}, seed {seed}, model")
    return write_table(app, store, question)


def claim(app: Ecg5000, store: Store) -> None:
    """An unfinished folder is gone on with for the same series, folds and size alone."""
    path, asked = app.out / "asked.json", {"store": store.hash, "folds": app.folds, "size": app.size}
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != asked:
        raise ValueError(f"{app.out} holds another data set, size or number of folds: choose another --out")
    app.out.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


# One fold of one row


def cell(name: str, row: Network | None, out: Path, store: Store, question: Question, spec: FoldSpec) -> Predictions:
    """Predictions of the fold's test series by what its training series alone made."""
    windows, task = question.windows.take(spec.test), question.task
    if row is None:
        score_NK = plain(name, store, question, spec)(samples(store, question.rows_N[spec.test]))
    else:
        score_NK = tuned_scores(tuned(row, out, store, question, spec), store, question.rows_N[spec.test])
    label_NK = task.columns_of(windows.y)
    columns = [{c: x_NK[:, k] for k, c in enumerate(task.columns)} for x_NK in (score_NK, label_NK)]
    place = {"subject": windows.subject, "record": windows.record, "start_s": windows.start_s}
    return make(name, columns[0], labels=columns[1], seed=spec.seed, fold=str(spec.fold), **place)


def model(name: str, row: Network | None, out: Path, store: Store, question: Question, spec: FoldSpec) -> None:
    """A folder that evaluate.py scores, trained on the whole train file; kept where it is there."""
    folder = out / "models" / f"{slug(name)}-seed{spec.seed}"
    if folder.is_dir() or name == "linear":
        return
    half_made = folder.with_name(f".{folder.name}")
    shutil.rmtree(half_made, ignore_errors=True)
    if row is None:
        contract = compose.contract_of(config(networks("tiny")["ti_mae avg"], 0), store)
        save_rocket(half_made, rocket(store, question, spec), question.task, contract, compose.seen_of(store, question.rows_N[spec.train]))
    else:
        save_tuned(half_made, tuned(row, out, store, question, spec))
    half_made.replace(folder)


def plain(name: str, store: Store, question: Question, spec: FoldSpec) -> Callable[[np.ndarray], np.ndarray]:
    """Scores (M, K) of series (M, T) by a row without a network."""
    if name == "minirocket":
        return rocket(store, question, spec).scores
    x_NT, y_N, groups_N = samples(store, question.rows_N[spec.train]), question.windows.y[spec.train], question.windows.groups[spec.train]
    return fit_linear(x_NT, y_N, groups_N, ProbeConfig(kind="multiclass", weights="none"), classes=question.task.classes).predict


def rocket(store: Store, question: Question, spec: FoldSpec) -> minirocket.MiniRocket:
    return minirocket.fit(samples(store, question.rows_N[spec.train]), question.windows.y[spec.train], question.task.classes, seed=spec.seed)


def samples(store: Store, rows_N: np.ndarray) -> np.ndarray:
    """Series (N, T) of a data set with one channel."""
    return store.batch(rows_N)["signal"][:, 0].astype(np.float64)


def tuned(row: Network, out: Path, store: Store, question: Question, spec: FoldSpec) -> Tuned:
    """The row's network, pretrained and fine-tuned on the fold's training series; rows that pretrain alike share the pretrained one."""
    cfg = config(row, spec.seed)
    if row.n_steps == 0:
        encoder = Origin(cfg=cfg, seed=spec.seed).open(store)
    else:
        encoder = pretrained_here(cfg, out / "encoders" / pretraining(cfg) / f"seed{spec.seed}_fold{spec.fold}", spec.seed, store, question.rows_N[spec.train])
    return tune(read_by(encoder, row.model), store, question, spec.train, np.zeros(0, np.int64), row.tune, spec.seed)


def config(row: Network, seed: int) -> PretrainConfig:
    """How a row is pretrained; how its vector is pooled has no part in it."""
    fit = FitConfig(n_steps=max(1, row.n_steps), batch_size=row.batch_size, lr=1e-3, weight_decay=1e-2, warmup=0.1, clip_norm=1.0, seed=seed)
    base = replace(row.model, pooling="mean")
    return PretrainConfig(cohort=Cohort(corpus="ucr", split="official"), model=base, objective=row.objective, fit=fit, normalization="none", shift=False)


def pretraining(cfg: PretrainConfig) -> str:
    """A name for all that makes a pretrained network, its seed aside."""
    said = compose.to_json(replace(cfg, fit=replace(cfg.fit, seed=0)))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:10]


def read_by(encoder: Encoder, cfg: object) -> Encoder:
    """The same weights under the row's own pooling."""
    network = cfg.build()
    network.load_state_dict(encoder.model.state_dict())
    return Encoder(network, encoder.contract, name=encoder.name, config=cfg, seen=encoder.seen, untrained=encoder.untrained)


def fitted_to(row: Network, store: Store) -> Network:
    return replace(row, model=replace(row.model, n_channels=len(store.channels), n_samples=store.n_samples))


# The table


def write_table(app: Ecg5000, store: Store, question: Question) -> dict[str, object]:
    """table.md and table.json of every row whose cells are all there: the mean over seeds, its spread, each seed's figure, and the mean score of all seeds."""
    lines, rows = [], {}
    for folder in sorted((app.out / "cells").iterdir()):
        files = [folder / f"seed{seed}_fold{fold}.csv" for seed in range(app.seeds) for fold in range(app.folds)]
        if not all(file.is_file() for file in files):
            continue
        found = concatenate([prediction_files.read(file) for file in files])
        name = found.rows[0]
        runs = [found.take(found.seed == seed) for seed in range(app.seeds)]
        ordered = [run.take(np.argsort(run.record.astype(np.int64))) for run in runs]
        figures = called(found, name, app.against)
        rows[name] = figures | {"together": {key: values[0] for key, values in called(mean_of(ordered, name), name, app.against).items()}}
        together = rows[name]["together"]["accuracy"]
        lines.append([name, *(text_of(values) for values in figures.values()), f"{together:.4f}"])
    head = ["row", "accuracy", "macro F1", f"accuracy of {app.against} against the rest", "accuracy, all seeds together"]
    lines.sort(key=lambda line: (line[0] in PLAIN, line[0]))
    said = f"{len(question.windows)} series of the train file, {app.folds} folds, {app.seeds} seeds with folds of their own; subjects: unknown, series held out"
    text = "\n".join([said, "", *(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])])
    print(text, flush=True)
    (app.out / "table.md").write_text(text + "\n", encoding="utf-8")
    write_json(app.out / "table.json", {"series": len(question.windows), "folds": app.folds, "seeds": app.seeds, "rows": rows})
    return {"out": app.out, "accuracy": {name: round(float(np.mean(figures["accuracy"])), 4) for name, figures in rows.items()}}


if __name__ == "__main__":
    console.run(main)
