"""Fill gaps in real windows: random, contiguous and trailing ones, beside straight lines, splines and autoregression, by distance to what is visible.

uv run apps/evaluate.py imputation --ckpt runs/himae --data stores/mitbih --out runs/gaps

Masked networks reconstruct through their own objective, denoisers paint in; nothing hidden is looked at. N windows, C channels, T samples.
"""

from __future__ import annotations

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
from physio_train import imputation, scorecard
from physio_train.imputation import GapKind

BATCH = 64
EDGES_S = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)  # distance to the nearest visible sample, from which the bins begin


@dataclass(frozen=True, kw_only=True)
class Imputation:
    """A table for every kind of gap, and the error by distance to the nearest visible sample."""

    ckpt: Path
    """A run, step or saved folder of a masked network or a denoiser."""
    data: tuple[Path, ...]
    """Stores to score."""
    ratio: float = 0.3
    """Share of each window that is hidden, rounded to what the network can hide."""
    kinds: tuple[GapKind, ...] = imputation.GAPS
    """Scattered stretches, one run of samples, the end of the window."""
    use: str = "test"
    """Folds to score, joined by +."""
    objective: str | None = None
    """What the network was trained by, a row of OBJECTIVES, where its folder does not say."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    """Of the gaps."""
    max_windows: int | None = None
    """Score at most this many windows, spread evenly; the table says how many are left out. Default: all."""
    out: Path | None = None
    """Folder for a subfolder a kind of gap, distances.csv and figures."""
    dry_run: bool = False
    """One window, write nothing."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Imputation, args=list(arguments), description=console.paragraphs(__doc__))
    store, network = compose.open_stores(app.data), continuation.opened(app.ckpt, app.objective)
    if network.kind == "tokens":
        raise ValueError("a token decoder knows what came before a gap alone: forecast.py asks it; imputation takes masked networks and denoisers")
    network.encoder.contract.check(compose.spec_of(store))
    unit = continuation.unit_of_mask(network)
    x_NCT, rows_N, who_N, clusters, heading, notes = continuation.scored_windows(network, store, app.use, 1 if app.dry_run else app.max_windows)
    if x_NCT.shape[2] % unit:
        raise ValueError(f"the network hides stretches of {unit} samples, which do not divide its windows of {x_NCT.shape[2]}: use another patch")
    name, found, distances = network.encoder.name, {}, []
    for kind in app.kinds:
        hidden_NT = imputation.gaps(kind, len(x_NCT), x_NCT.shape[2], app.ratio, patch=unit, seed=app.seed)
        filled = {name: by_network(network, x_NCT, hidden_NT, rows_N, app.sampling, kind)}
        filled |= {label: method(x_NCT, hidden_NT) for label, method in imputation.BASELINES.items()}
        values = {label: imputation.hidden_errors(x_NCT, x, hidden_NT) for label, x in filled.items()}
        best = scorecard.strongest(values, list(imputation.BASELINES), "MAE")
        by_distance = {label: imputation.error_by_distance(x_NCT, x, hidden_NT, edges(store.fs)) for label, x in filled.items()}
        said = [f"MAE in {network.encoder.contract.units[0]} over hidden samples, in stretches of {unit / store.fs:g} s; reference: the best baseline"]
        said += [verdict(by_distance, name, tuple(imputation.BASELINES), store.fs), *notes]
        title = f"{kind} gaps, {hidden_NT[0].mean():.0%} hidden, {heading}"
        card = scorecard.score(values, who_N, clusters=clusters, title=title, reference=best, notes=said)
        print(card.plain(), flush=True)
        distances += [(kind, label, *entry.values()) for label, bins in by_distance.items() for entry in bins]
        found[kind] = {label: row["MAE"].value for label, row in card.rows.items()}
        if app.out is not None and not app.dry_run:
            write(app.out / kind, card, values, waveforms.place_of(store, rows_N), x_NCT, {k: filled[k] for k in (name, best)}, hidden_NT, by_distance, network)
    if app.out is not None and not app.dry_run:
        head = ["gaps", "row", "from_samples", "to_samples", "n", "mae"]
        waveforms.write_csv(app.out / "distances.csv", head, ([*map(str, line[:5]), f"{line[5]:.6g}" if np.isfinite(line[5]) else ""] for line in distances))
    return {"windows": len(rows_N), "heading": heading, "MAE": found, "out": app.out}


def edges(fs: float) -> tuple[int, ...]:
    """`EDGES_S` in samples, the first of them one, each once."""
    return tuple(dict.fromkeys(max(1, round(s * fs)) for s in EDGES_S))


def verdict(by_distance: Mapping[str, Sequence[Mapping[str, float]]], name: str, baselines: Sequence[str], fs: float) -> str:
    """At which distances to the nearest visible sample the network's error is below that of every plain method."""
    better, bins = [], [entry for entry in by_distance[name] if entry["n"]]
    for entry in bins:
        plain = [other["mae"] for label in baselines for other in by_distance[label] if other["from"] == entry["from"]]
        if entry["mae"] < min(plain):
            better.append(f"{entry['from'] / fs:g} s")
    if not better:
        return f"{name} is nowhere below the best plain method: at every distance to the nearest visible sample one of {', '.join(baselines)} errs less"
    if len(better) == len(bins):
        return f"{name} is below every plain method at every distance to the nearest visible sample"
    return f"{name} is below every plain method at distances from {', '.join(better)}, and not at the other {len(bins) - len(better)}"


def by_network(network: Network, x_NCT: np.ndarray, hidden_NT: np.ndarray, rows_N: np.ndarray, sampling: Sampling, what: str) -> np.ndarray:
    """Windows with what is hidden put in by the network."""
    parts = []
    with console.progress(what, len(x_NCT)) as show:
        for start in range(0, len(x_NCT), BATCH):
            part = slice(start, start + BATCH)
            parts.append(continuation.filled(network, x_NCT[part], hidden_NT[part], rows_N[part], sampling))
            show(min(start + BATCH, len(x_NCT)), "")
    return np.concatenate(parts)


def write(
    out: Path,
    card: scorecard.Scorecard,
    values: Mapping[str, Mapping[str, np.ndarray]],
    place: Mapping[str, np.ndarray],
    x_NCT: np.ndarray,
    filled: Mapping[str, np.ndarray],
    hidden_NT: np.ndarray,
    by_distance: Mapping[str, list[dict[str, float]]],
    network: Network,
) -> None:
    contract = network.encoder.contract
    waveforms.write_table(out, card, values, place, {})
    show_N = waveforms.spread(len(x_NCT))
    titles = [f"{place['record'][n]} at {place['start_s'][n]:g} s" for n in show_N]
    lines = {label: x[show_N, 0] for label, x in filled.items()}
    waveforms.windows(out / "figures" / "gaps.png", x_NCT[show_N, 0], lines, hidden_NT[show_N], contract.fs, contract.units[0], titles)
    curves = {label: (np.array([b["from"] for b in bins]) / contract.fs, np.array([b["mae"] for b in bins])) for label, bins in by_distance.items()}
    waveforms.curves(out / "figures" / "distance.png", curves, "distance to the nearest visible sample from, s", f"MAE, {contract.units[0]}")
