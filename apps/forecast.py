"""Forecast the end of every window from its beginning, beside the plain methods that a network must beat.

uv run apps/forecast.py --ckpt runs/himae --data stores/mitbih --ratio 0.25 --out runs/forecast

Token decoders go on token after token, masked networks reconstruct a trailing mask through their own objective, denoisers (ddpm, rectified_flow) paint it
in. Ranges and means come from the context alone. C channels, T samples, H of the horizon.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro

import compose
import console
import continuation
import waveforms
from continuation import Network, Sampling
from physio_train import forecasting, scorecard

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """How well a trained network continues every window of a fold."""

    ckpt: Path
    """A run, step or saved folder."""
    data: tuple[Path, ...]
    """Stores to score."""
    ratio: float
    """Share of the window, at its end, to say; rounded to what the network can hide."""
    use: str = "test"
    """Folds to score, joined by +."""
    objective: str | None = None
    """What the network was trained by, a row of OBJECTIVES, where its folder does not say."""
    sampling: Sampling = field(default_factory=Sampling)
    max_windows: int | None = None
    """Score at most this many windows, spread evenly; the table says how many are left out. Default: all."""
    row: str = ""
    """The network's name in the table. Default: its row of MODELS."""
    predictions: Path | None = None
    """Write true and forecast samples of every window here, as CSV."""
    out: Path | None = None
    """Folder for table, figures by window, predictions and a figure."""
    dry_run: bool = False
    """Forecast one window, write nothing."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Forecast, args=list(arguments), description=console.paragraphs(__doc__))
    if not 0 < app.ratio < 1:
        raise ValueError(f"--ratio must lie between 0 and 1, got {app.ratio}")
    store, network = compose.open_stores(app.data), continuation.opened(app.ckpt, app.objective)
    network.encoder.contract.check(compose.spec_of(store))
    unit = continuation.unit_of_mask(network)
    horizon = horizon_of(app.ratio, store.n_samples, unit)
    x_NCT, rows_N, who_N, clusters, heading, notes = continuation.scored_windows(network, store, app.use, 1 if app.dry_run else app.max_windows)
    name = app.row or network.encoder.name
    said, accuracy, more = forecasts(network, x_NCT, horizon, rows_N, app.sampling)
    context, truth = x_NCT[:, :, :-horizon], x_NCT[:, :, -horizon:]
    values = {name: forecasting.figures(truth, said, context)}
    if accuracy is not None:
        values[name]["token accuracy"] = accuracy
    baselines = {label: method(context, horizon, store.fs) for label, method in forecasting.BASELINES.items()}
    values |= {label: forecasting.figures(truth, x, context) for label, x in baselines.items()}
    values = {row: {"MAE": v["MAE"]} | v for row, v in values.items()}
    best = scorecard.strongest(values, list(baselines), "MAE")
    units = ", ".join(dict.fromkeys(network.encoder.contract.units))
    title = f"the last {horizon / store.fs:g} s of {store.window_s:g} s windows, {heading}"
    notes = [f"MAE in {units}, MSE in its square; MASE below 1 is better than a naive step; reference: the baseline of lowest MAE", *more, *notes]
    own, theirs = values[name]["MAE"].mean(), values[best]["MAE"].mean()
    if not own < theirs:
        notes.append(f"{name} does not beat {best}: MAE {own:.4g} against {theirs:.4g}")
    card = scorecard.score(values, who_N, clusters=clusters, title=title, reference=best, notes=notes)
    print(card.plain(), flush=True)
    summary = {"windows": len(rows_N), "horizon_s": horizon / store.fs, "MAE": card.rows[name]["MAE"].value, "best_baseline": best}
    summary |= {"best_baseline_MAE": card.rows[best]["MAE"].value, "heading": heading}
    if app.dry_run:
        return summary | {"dry_run": True, "shape": list(x_NCT.shape)}
    place = waveforms.place_of(store, rows_N)
    for path in (app.predictions, None if app.out is None else app.out / "predictions.csv"):
        if path is not None:
            waveforms.write_samples(path, {"truth": truth, name: said}, place, network.encoder.contract.channels, store.n_samples - horizon)
    if app.out is not None:
        waveforms.write_table(app.out, card, values, place, {"horizon_s": horizon / store.fs, "use": app.use, "ckpt": str(app.ckpt)})
        show_N = waveforms.spread(len(rows_N))
        hidden_NT = np.repeat((np.arange(store.n_samples) >= store.n_samples - horizon)[None], len(show_N), axis=0)
        lines = {label: np.concatenate([context[show_N, 0], x[show_N, 0]], axis=1) for label, x in {name: said, best: baselines[best]}.items()}
        titles = [f"{place['record'][n]} at {place['start_s'][n]:g} s: MAE {values[name]['MAE'][n]:.3g}, {best} {values[best]['MAE'][n]:.3g}" for n in show_N]
        waveforms.windows(app.out / "figures" / "forecast.png", x_NCT[show_N, 0], lines, hidden_NT, store.fs, network.encoder.contract.units[0], titles)
    return summary | {"out": app.out, "predictions": app.predictions}


def horizon_of(ratio: float, n_samples: int, unit: int) -> int:
    """Samples to say: the ratio of the window in whole units, at least one and leaving some."""
    n = n_samples // unit
    return unit * min(max(1, round(ratio * n)), n - 1)


def forecasts(network: Network, x_NCT: np.ndarray, horizon: int, index_N: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """What the network says (N, C, H), its token accuracy where it has tokens, and notes."""
    parts, true, said, n_held, n_context = [], [], [], 0, x_NCT.shape[2] - horizon
    with console.progress("forecast", len(x_NCT)) as show:
        for start in range(0, len(x_NCT), BATCH):
            x = x_NCT[start : start + BATCH]
            if network.kind == "tokens":
                out = continuation.forecast_by_tokens(network, x, n_context, sampling, seed=start)
                parts.append(out.forecast_BCH)
                true, said, n_held = true + out.true_ids, said + out.ids, n_held + int((out.n_held_B > 0).sum())
            else:
                hidden = np.repeat((np.arange(x.shape[2]) >= n_context)[None], len(x), axis=0)
                parts.append(continuation.filled(network, x, hidden, index_N[start : start + BATCH], sampling)[:, :, n_context:])
            show(start + len(x), "")
    notes = []
    if network.kind == "tokens":
        notes.append("token accuracy: place by place against the true horizon encoded on its own with the context's range")
        if n_held:
            notes.append(f"{n_held} windows outran the decoder's {network.encoder.config.n_positions} positions; their last sample is held to the end")
    accuracy = forecasting.token_accuracy(true, said) if network.kind == "tokens" else None
    return np.concatenate(parts), accuracy, notes


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
