"""The resolution probe: which level of an encoder, that is which time scale, knows what. A matrix of tasks and levels.

uv run apps/evaluate.py resolution --ckpt runs/a --data stores/mitbih --tasks pvc age --out runs/levels

Levels differ in width as well as in scale, so each is also read through as many random projections as the narrowest level has features (the width control).
N windows, D features.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import compose
import console
import figures
from compose import ReadOut
from physio_data.store import Store, Stores
from physio_models.contract import Encoder
from physio_models.pooling import pool_levels
from physio_models.pretrained import from_pretrained
from physio_models.reference import reference_encoder
from physio_train import predictions as prediction_files
from physio_train import table
from physio_train.embed import embed
from physio_train.folds import outer_folds
from physio_train.predictions import concatenate
from physio_train.protocol import cross_validate
from physio_train.run import write_json
from questions import question_of

PROBE_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """A linear probe on every level for every task, cross-validated over subjects, with intervals over subjects and the receptive field in seconds."""

    ckpt: Path
    """An encoder: a run, step or saved folder, or an original's file with --reference."""
    data: tuple[Path, ...]
    """Stores to fit and score on."""
    reference: str | None = None
    """The row of MODELS whose original wrote --ckpt."""
    tasks: tuple[str, ...] = ()
    """Tasks of the store. Default: all."""
    pool: str = "mean"
    """How a level's tokens become a vector."""
    folds: int = 5
    """Outer folds."""
    out: Path | None = None
    """Folder for the matrix, the predictions and the heat map."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Resolution, args=list(arguments), description=console.paragraphs(__doc__))
    store = compose.open_stores(app.data)
    encoder = reference_encoder(app.reference, app.ckpt) if app.reference else from_pretrained(app.ckpt)
    encoder.contract.check(compose.spec_of(store))
    if unknown := [task for task in app.tasks if task not in store.tasks]:
        raise ValueError(f"task {unknown[0]!r} is not in the store; it has {', '.join(store.tasks) or 'none'}")
    levels, fields_s = features_by_level(encoder, store, app.pool), receptive_fields_s(encoder)
    narrowest = min(x_ND.shape[1] for x_ND in levels.values())
    tables, parts = {}, []
    for task in app.tasks or tuple(store.tasks):
        question = question_of(store, app.data, np.arange(len(store)), ReadOut(task=task, pool=app.pool))
        groups = question.windows.groups
        specs = outer_folds(groups, question.windows.y, n_folds=min(app.folds, len(np.unique(groups))))
        with console.progress(task, 2 * len(levels)) as show:
            found = []
            for name, x_ND in levels.items():
                for row, read_ND in ((name, x_ND), (f"{name} ({narrowest} wide)", projected(x_ND, narrowest))):
                    found.append(cross_validate(row, read_ND, question.windows, question.task, specs).predictions)
                    show(len(found), row)
        joined = concatenate(found)
        deepest = list(levels)[-1]
        tables[task] = table.score(joined, kind=question.task.kind, reference=deepest, task=task, notes=[width_note(narrowest), f"difference: to {deepest}"])
        parts.append((task, joined))
        print(tables[task].plain(), flush=True)
    if app.out is not None:
        write(app.out, tables, parts, levels, fields_s)
    best = {task: max(levels, key=lambda level: _figure(shown, level)) for task, shown in tables.items()}
    return {"best": best, "receptive_field_s": fields_s, "out": app.out}


def _figure(shown: table.Table, row: str) -> float:
    """A row's first figure, the higher the better."""
    value = shown.row(row).cells[table.COLUMNS[shown.kind][0]].value
    return -np.inf if value is None else -value if shown.kind == "regression" else value


def width_note(narrowest: int) -> str:
    return f"({narrowest} wide): the level through a fixed random projection to {narrowest} features, the narrowest level's width"


def features_by_level(encoder: Encoder, store: Store | Stores, pool: str) -> dict[str, np.ndarray]:
    """Every level's pooled features (N, D_l), from one pass."""
    spec = compose.spec_of(store)

    def encode(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        encoded = encoder(batch["signal"], spec, valid_BT=batch.get("valid"), channel_present_BC=batch.get("channel_present"))
        valid = None if batch.get("valid") is None else encoder.model.token_valid(torch.as_tensor(batch["valid"]).bool())
        return {name: pool_levels(encoded, name, pool, valid) for name in encoded.levels}

    with console.progress("features", len(store)) as show:
        return embed(encode, store, store.rows(), progress=lambda done, total: show(done, ""))


def projected(x_ND: np.ndarray, width: int) -> np.ndarray:
    """Standardised features through a Gaussian random projection to `width` (Johnson & Lindenstrauss 1984); those of that width stay."""
    if x_ND.shape[1] == width:
        return x_ND
    rng = np.random.default_rng([PROBE_SEED, x_ND.shape[1], width])
    sd_D = x_ND.std(axis=0)
    return ((x_ND - x_ND.mean(axis=0)) / np.where(sd_D > 0, sd_D, 1.0)) @ rng.normal(size=(x_ND.shape[1], width)) / np.sqrt(x_ND.shape[1])


def receptive_fields_s(encoder: Encoder) -> dict[str, float]:
    """How much of the window, in seconds, the middle token of each level depends on, by its gradient: the first to the last sample that moves it."""
    contract, model = encoder.contract, encoder.model
    x_BCT = torch.randn(2, len(contract.channels), contract.n_samples, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    levels = model.eval().encode(x_BCT).levels
    fields = {}
    for name, tokens_BND in levels.items():
        (gradient,) = torch.autograd.grad(tokens_BND[:, tokens_BND.shape[1] // 2].pow(2).sum(), x_BCT, retain_graph=True)
        felt = torch.nonzero(gradient.abs().amax(dim=(0, 1)) > 0).ravel()
        fields[name] = float(felt[-1] - felt[0] + 1) / contract.fs if len(felt) else 0.0
    return fields


def write(out: Path, tables: Mapping[str, table.Table], parts: Sequence, levels: Mapping[str, np.ndarray], fields_s: Mapping[str, float]) -> None:
    """matrix.csv, a table a task, their predictions, and the heat map."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "matrix.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "level", "receptive_field_s", "width", "figure", "value", "low", "high", "word"])
        for task, shown in tables.items():
            lead = table.COLUMNS[shown.kind][0]
            for row in shown.rows:
                level = row.name.split(" (")[0]
                width = levels[level].shape[1] if row.name == level else min(x.shape[1] for x in levels.values())
                cell = row.cells[lead]
                numbers = ["" if v is None else v for v in (cell.value, cell.low, cell.high)]
                writer.writerow([task, row.name, f"{fields_s[level]:g}", width, lead, *numbers, cell.word])
    for task, predicted in parts:
        prediction_files.write(out / f"predictions-{task}.csv", predicted)
    write_json(out / "tables.json", {task: shown.to_json() for task, shown in tables.items()})
    figures.resolution(out / "figures" / "resolution.png", tables, list(levels), fields_s, table.COLUMNS)
