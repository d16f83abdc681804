"""How a saved model's figure changes when its input gets worse: noise, another sampling rate, lost leads, a flipped lead, mains hum.

uv run apps/evaluate.py robustness --ckpt runs/tuned --data stores/test --out runs/robust

Each condition changes the same stored windows in physical units, before the contract normalises; nothing is trained. N windows, C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

import compose
import console
import downstream
import figures
from physio_data.filters import resample
from physio_data.store import Store, Stores
from physio_models.contract import ContractError
from physio_train import predictions as prediction_files
from physio_train import table
from physio_train.predictions import concatenate, make
from physio_train.run import write_json
from questions import task_of, windows_of

# lead sets of the PhysioNet/CinC Challenge 2021 (Reyna et al. 2021, Comput Cardiol 48)
REDUCED = (("I", "II", "III", "aVR", "aVL", "aVF"), ("I", "II", "III", "V2"), ("I", "II", "V2"), ("I", "II"))
Change = Callable[[np.ndarray, float, np.ndarray], np.ndarray]
"""(windows (B, C, T), rate in Hz, row numbers) -> windows changed, of the same shape."""


class Condition(NamedTuple):
    """A row of the table: what is done to the windows, and which leads the model is told are missing."""

    name: str
    change: Change
    lost: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """A table with a row for every condition, each beside the windows as they are."""

    ckpt: Path
    """A folder of probe.py or finetune.py --out."""
    data: tuple[Path, ...]
    """Stores to score."""
    task: str | None = None
    """The store's task. Default: the saved model's own."""
    use: str = ""
    """Folds to score, joined by +."""
    snr_db: tuple[float, ...] = (20.0, 10.0, 5.0, 0.0)
    """White noise at these ratios to the window's own power."""
    rates_hz: tuple[float, ...] = (50.0, 25.0)
    """Rates that the signal is brought to and back from, as a cheaper device would record it."""
    hum_hz: tuple[float, ...] = (50.0, 60.0)
    """Mains hum, as strong as a tenth of the window's deviation."""
    out: Path | None = None
    """Folder for the table, the predictions and the figure."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Robustness, args=list(arguments), description=console.paragraphs(__doc__))
    store = compose.open_stores(app.data)
    saved = downstream.load(app.ckpt)
    saved.contract.check(compose.spec_of(store))
    task = task_of(store, app.task or saved.task.name)
    if task.columns != saved.task.columns:
        raise ValueError(f"the model scores {', '.join(saved.task.columns)}, the task {task.name!r} has {', '.join(task.columns)}: name another --task")
    rows_N = compose.rows_of(store, tuple(app.use.split("+"))) if app.use else store.rows()
    heading, known = downstream.known_of(saved, store, rows_N)
    saved, turned = downstream.facing(saved, store, task)
    windows = windows_of(store, task, rows_N)
    label_NK = task.columns_of(windows.y)
    parts, notes = [], [*turned, *known]
    notes += [f"{hz:g} Hz hum: no row, a signal of {store.fs:g} Hz holds none" for hz in app.hum_hz if hz >= store.fs / 2]
    for name, change, lost in conditions(app, store):
        try:
            score_NK = scored(saved, store, rows_N, change, lost)
        except (ContractError, ValueError) as error:
            notes.append(f"{name}: no cell, {error}")
            continue
        place = {"subject": windows.subject, "record": windows.record, "start_s": windows.start_s}
        columns = {c: score_NK[:, k] for k, c in enumerate(task.columns)}
        parts.append(make(name, columns, labels={c: label_NK[:, k] for k, c in enumerate(task.columns)}, **place))
    predicted = concatenate(parts)
    shown = table.score(predicted, kind=task.kind, heading=heading, reference="as it is", task=task.name, notes=notes)
    print(shown.plain(), flush=True)
    lead = table.COLUMNS[task.kind][0]
    if app.out is not None:
        app.out.mkdir(parents=True, exist_ok=True)
        write_json(app.out / "table.json", shown.to_json())
        (app.out / "table.md").write_text(shown.markdown() + "\n", encoding="utf-8")
        prediction_files.write(app.out / "predictions.csv", predicted)
        figures.leaderboard(app.out / "figures" / "robustness.png", {task.name: shown}, table.COLUMNS, across=1)
    return {"task": task.name, lead: {row.name: row.cells[lead].value for row in shown.rows}, "out": app.out}


def scored(saved: downstream.Saved, store: Store | Stores, rows_N: np.ndarray, change: Change, lost: Sequence[int] = ()) -> np.ndarray:
    """Scores (N, K) of changed windows; a lead that is lost reads as zeros, and the model is told."""
    spec, out = compose.spec_of(store), []
    for start in range(0, len(rows_N), downstream.BATCH):
        some = rows_N[start : start + downstream.BATCH]
        batch = store.batch(some)
        x_BCT, present_BC = change(batch["signal"], store.fs, some).astype(np.float32), batch.get("channel_present")
        if lost:
            present_BC = np.ones(x_BCT.shape[:2], bool) if present_BC is None else np.array(present_BC)
            present_BC[:, list(lost)] = False
            x_BCT[:, list(lost)] = 0.0
        out.append(saved.scores(x_BCT, spec, batch.get("valid"), present_BC))
    return np.concatenate(out)


def conditions(app: Robustness, store: Store | Stores) -> list[Condition]:
    """Every condition; the windows as they are first."""
    found = [Condition("as it is", same)]
    found += [Condition(f"noise at {snr:g} dB", noisy(snr)) for snr in app.snr_db]
    found += [Condition(f"recorded at {hz:g} Hz", recorded_at(hz)) for hz in app.rates_hz if hz < store.fs]
    found += [Condition(f"{hz:g} Hz hum", humming(hz)) for hz in app.hum_hz if hz < store.fs / 2]
    found.append(Condition("flipped", lambda x, fs, rows: -x))
    if len(store.channels) > 1:
        found += [Condition(f"without {name}", same, (c,)) for c, name in enumerate(store.channels)]
    for leads in REDUCED:
        lost = tuple(c for c, name in enumerate(store.channels) if name not in leads)
        if len(store.channels) == 12 and set(leads) <= set(store.channels):
            found.append(Condition(f"{len(leads)} leads ({', '.join(leads)})", same, lost))
    return found


def same(x_BCT: np.ndarray, fs: float, rows_B: np.ndarray) -> np.ndarray:
    """The windows as they are."""
    return x_BCT


def noisy(snr_db: float, seed: int = 0) -> Change:
    """White noise of a power `snr_db` below the window's own, drawn from the row's number."""

    def change(x_BCT: np.ndarray, fs: float, rows_B: np.ndarray) -> np.ndarray:
        noise_BCT = np.stack([np.random.default_rng([seed, int(row)]).normal(size=x_BCT.shape[1:]) for row in rows_B])
        return x_BCT + noise_BCT * x_BCT.std(axis=2, keepdims=True) * 10 ** (-snr_db / 20)

    return change


def recorded_at(hz: float) -> Change:
    """Down to a rate and back up: what lies above its half is lost."""

    def change(x_BCT: np.ndarray, fs: float, rows_B: np.ndarray) -> np.ndarray:
        flat_NT = x_BCT.reshape(-1, x_BCT.shape[2]).astype(np.float64)
        back_NT = resample(resample(flat_NT, fs, hz), hz, fs)[:, : x_BCT.shape[2]]
        back_NT = np.pad(back_NT, ((0, 0), (0, x_BCT.shape[2] - back_NT.shape[1])), mode="edge")
        return back_NT.reshape(x_BCT.shape)

    return change


def humming(hz: float, share: float = 0.1) -> Change:
    """A sine of mains frequency, its phase by the row's number; below half the rate only, where it can be recorded."""

    def change(x_BCT: np.ndarray, fs: float, rows_B: np.ndarray) -> np.ndarray:
        phase_B11 = (np.asarray(rows_B) * 0.7548776662)[:, None, None] * 2 * np.pi
        wave_BCT = np.sin(2 * np.pi * hz * np.arange(x_BCT.shape[2]) / fs + phase_B11)
        return x_BCT + share * np.sqrt(2) * x_BCT.std(axis=2, keepdims=True) * wave_BCT

    return change
