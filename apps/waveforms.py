"""What apps about waveforms write: a table with its windows, predicted samples as CSV, figures of a few windows. N windows, C channels, T samples."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from physio_train.run import write_json
from physio_train.scorecard import Scorecard
from questions import subjects_of


def write_table(out: Path, card: Scorecard, values: Mapping[str, Mapping[str, np.ndarray]], place: Mapping[str, np.ndarray], more: Mapping[str, Any]) -> None:
    """table.json, table.md and windows.csv (row, subject, record, start_s, figures): what the means are of."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "table.json", card.to_json() | dict(more))
    (out / "table.md").write_text(card.markdown() + "\n", encoding="utf-8")
    columns = card.columns

    def lines() -> Iterable[list[str]]:
        for row, figures in values.items():
            for n in range(card.n_windows):
                cells = [_cell(figures[c][n]) if c in figures else "" for c in columns]
                yield [row, *(str(column[n]) for column in place.values()), *cells]

    write_csv(out / "windows.csv", ["row", *place, *columns], lines())


def write_samples(path: Path, rows: Mapping[str, np.ndarray], place: Mapping[str, np.ndarray], channels: Sequence[str], first: int) -> None:
    """row,subject,record,start_s,channel,x_<sample>...: samples from `first` on of every window and channel, one line each."""
    n_samples = next(iter(rows.values())).shape[2]

    def lines() -> Iterable[list[str]]:
        for row, x_NCH in rows.items():
            for n, x_CH in enumerate(x_NCH):
                for channel, x_H in zip(channels, x_CH, strict=True):
                    yield [row, *(str(column[n]) for column in place.values()), channel, *(f"{v:.5g}" for v in x_H)]

    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, ["row", *place, "channel", *(f"x_{first + h}" for h in range(n_samples))], lines())


def write_csv(path: Path, head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(lines)


def _cell(value: float) -> str:
    return f"{value:.6g}" if np.isfinite(value) else ""


def place_of(store: Any, rows_N: np.ndarray) -> dict[str, np.ndarray]:
    """Whose window it is (empty where a corpus names nobody), and where it lies."""
    return {"subject": subjects_of(store)[rows_N]} | {name: np.asarray(store.at(name, rows_N)) for name in ("record", "start_s")}


def spread(n: int, shown: int = 6) -> np.ndarray:
    """Window numbers over the whole range."""
    return np.unique(np.linspace(0, n - 1, min(n, shown)).round().astype(int))


def windows(
    path: Path,
    truth_NT: np.ndarray,
    lines: Mapping[str, np.ndarray],
    hidden_NT: np.ndarray | None,
    fs: float,
    unit: str,
    titles: Sequence[str],
) -> Path:
    """A panel a window: the signal in grey, what was hidden shaded, what each method put there."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(11, 1.7 * len(truth_NT) + 0.4), layout="constrained")
    panels = np.atleast_1d(fig.subplots(len(truth_NT), 1, sharex=True))
    time_s = np.arange(truth_NT.shape[1]) / fs
    for n, ax in enumerate(panels):
        if hidden_NT is not None:
            ax.fill_between(time_s, 0, 1, where=hidden_NT[n], step="mid", color="0.93", lw=0, transform=ax.get_xaxis_transform())
        ax.plot(time_s, truth_NT[n], color="0.35", lw=1, label="signal")
        for i, (name, x_NT) in enumerate(lines.items()):
            shown = x_NT[n] if hidden_NT is None else np.where(hidden_NT[n], x_NT[n], np.nan)
            ax.plot(time_s, shown, color=f"C{(3, 0, 2, 1)[i % 4]}", lw=1, label=name)
        ax.set(xlim=(0, time_s[-1]), ylabel=unit)
        ax.set_title(titles[n], fontsize=8, loc="left")
    panels[0].legend(frameon=False, fontsize=7, loc="upper right", ncols=1 + len(lines))
    panels[-1].set_xlabel("s")
    return _save(fig, path)


def columns(path: Path, sets: Mapping[str, np.ndarray], fs: float, unit: str, shown: int = 6) -> Path:
    """A column a set of windows (N, T), real beside generated, on one scale."""
    from matplotlib.figure import Figure

    shown = min(shown, *(len(x_NT) for x_NT in sets.values()))
    fig = Figure(figsize=(5 * len(sets), 1.3 * shown + 0.6), layout="constrained")
    panels = fig.subplots(shown, len(sets), sharex=True, squeeze=False)
    for c, (name, x_NT) in enumerate(sets.items()):
        for r, n in enumerate(spread(len(x_NT), shown)):
            panels[r, c].plot(np.arange(x_NT.shape[1]) / fs, x_NT[n], color="C3" if name == "generated" else "0.35", lw=0.9)
            panels[r, c].set(ylabel=unit, xlim=(0, x_NT.shape[1] / fs))
        panels[0, c].set_title(name, fontsize=9)
        panels[-1, c].set_xlabel("s")
    return _save(fig, path)


def curves(path: Path, lines: Mapping[str, tuple[np.ndarray, np.ndarray]], x_label: str, y_label: str) -> Path:
    """A line a method: y against x."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6, 3.6), layout="constrained")
    ax = fig.subplots()
    for name, (x, y) in lines.items():
        ax.plot(x, y, marker="o", ms=4, lw=1.2, label=name)
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.legend(frameon=False, fontsize=8)
    return _save(fig, path)


def _save(fig: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)
    return path
