"""Figures of a run folder: the loss over steps, and fixed validation windows with their reconstruction. T samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def loss(path: Path, metrics: Sequence[Mapping[str, Any]]) -> Path:
    """Training and validation loss by step, from the lines of metrics.jsonl."""
    fig, ax = _figure(7, 4)
    lowest = float("inf")
    for key, style in (("loss", {"lw": 1}), ("val_loss", {"marker": "o", "ms": 4})):
        points = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
        if points:
            lowest = min(lowest, *(value for _, value in points))
            ax.plot(*zip(*points, strict=True), label={"loss": "training", "val_loss": "validation, fixed masks"}[key], **style)
    ax.set(xlabel="step", ylabel="loss", yscale="log" if lowest > 0 else "linear")  # a cosine's loss is negative
    ax.legend(frameon=False)
    return _save(fig, path)


def reconstruction(path: Path, target_NT: np.ndarray, pred_NT: np.ndarray, hidden_NT: np.ndarray, fs: float) -> Path:
    """A row per window: the signal, what was hidden (shaded) and what the network put there."""
    fig, axes = _figure(10, 1.6 * len(target_NT), rows=len(target_NT))
    time_s = np.arange(target_NT.shape[1]) / fs
    for ax, target_T, pred_T, hidden_T in zip(axes, target_NT, pred_NT, hidden_NT, strict=True):
        ax.fill_between(time_s, -1.1, 1.1, where=hidden_T, step="mid", color="0.92", lw=0)
        ax.plot(time_s, target_T, color="0.35", lw=1, label="signal, hidden where shaded")
        ax.plot(time_s, np.where(hidden_T, pred_T, np.nan), color="C3", lw=1, label="reconstruction of what is hidden")
        ax.set(xlim=(0, time_s[-1]), yticks=[])
    axes[0].legend(frameon=False, loc="upper right", fontsize=7)
    axes[-1].set_xlabel("s")
    return _save(fig, path)


def _figure(width: float, height: float, rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(rows, 1, sharex=True)
    return fig, axes if rows == 1 else list(np.atleast_1d(axes))


def _save(fig: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)
    return path


def timeline(
    path: Path, fitted: Any, edge_s: np.ndarray, line_MK: np.ndarray, names: Sequence[str], limits: Mapping[str, float], found: Sequence[Any], shown: int = 6
) -> Path:
    """A recording's scores over time with threshold and episodes (shaded), above the stretch of signal where the first class scores highest."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(11, 5.2), layout="constrained")
    above, below = fig.subplots(2, 1, height_ratios=(2, 1.4))
    unit, per = ("h", 3600.0) if edge_s[-1] > 2 * 3600 else ("min", 60.0) if edge_s[-1] > 600 else ("s", 1.0)
    by_peak = np.argsort(-np.nan_to_num(line_MK, nan=-np.inf).max(axis=0), kind="stable")[:shown]
    for k in sorted(by_peak.tolist()):
        _scores(above, line_MK[:, k], edge_s / per, names[k], f"C{k % 10}")
        if names[k] in limits:
            above.axhline(limits[names[k]], color=f"C{k % 10}", lw=0.9, ls=":", label=f"threshold {limits[names[k]]:.3g}")
    main = int(by_peak[0])
    for episode in found:
        if episode.name == names[main]:
            above.axvspan(episode.start_s / per, episode.stop_s / per, color=f"C{main % 10}", alpha=0.15, lw=0)
    above.set(xlim=(edge_s[0] / per, edge_s[-1] / per), xlabel=unit, ylabel="score" if limits else names[main])
    above.set_title(fitted.recording.record, loc="left")
    _legend_above(above)
    _excerpt(below, fitted, edge_s, line_MK[:, main], names[main])
    return _save(fig, path)


def _scores(ax: Any, line_M: np.ndarray, edge_M1: np.ndarray, name: str, colour: str, most: int = 500) -> None:
    """Scores as steps; of a recording with many more than a figure shows, the mean of some in a row over their range."""
    each = -(-len(line_M) // most)
    if each > 1:
        padded_GE = np.pad(line_M, (0, -len(line_M) % each), constant_values=np.nan).reshape(-1, each)
        there_G = np.isfinite(padded_GE).any(axis=1)
        low_G, mean_G, high_G = (np.full(len(padded_GE), np.nan) for _ in range(3))
        for out_G, figure in ((low_G, np.nanmin), (mean_G, np.nanmean), (high_G, np.nanmax)):
            out_G[there_G] = figure(padded_GE[there_G], axis=1)
        edge_M1 = np.append(edge_M1[:-1:each], edge_M1[-1])
        ax.fill_between(edge_M1, np.append(low_G, low_G[-1]), np.append(high_G, high_G[-1]), step="post", color=colour, alpha=0.3, lw=0)
        name, line_M = f"{name} (mean and range of {each} steps)", mean_G
    ax.stairs(line_M, edge_M1, baseline=None, label=name, lw=1.2, color=colour)


def _excerpt(ax: Any, fitted: Any, edge_s: np.ndarray, score_M: np.ndarray, name: str) -> None:
    recording = fitted.recording
    top = int(np.argmax(np.nan_to_num(score_M, nan=-np.inf)))
    length = min(recording.n_samples, int(fitted.plan.window_s * recording.fs))
    start = min(int(edge_s[top] * recording.fs), recording.n_samples - length)
    stop = start + length
    x_CT = recording.read(start, stop)
    time_s, whole = np.arange(x_CT.shape[1]) / recording.fs, int(start / recording.fs)
    for x_T, channel in zip(x_CT, recording.channels, strict=True):
        ax.plot(time_s, x_T, lw=0.8, label=channel)
    ax.set(xlabel="s", ylabel=recording.units[0], xlim=(time_s[0], time_s[-1]))
    clock = f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    ax.set_title(f"where {name} scores highest ({score_M[top]:.3g}), from {clock}", loc="left", fontsize=10)
    _legend_above(ax)


def _legend_above(ax: Any) -> None:
    """Over the panel's right end, where it hides no line."""
    ax.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, ncols=6)


def leaderboard(path: Path, tables: Mapping[str, Any], columns: Mapping[str, Sequence[str]], across: int = 3) -> Path:
    """A panel a question: every row's first figure with its interval, floors in grey."""
    from matplotlib.figure import Figure

    from claims import is_floor

    n_down = -(-len(tables) // across)
    most = max(len(shown.rows) for shown in tables.values())
    fig = Figure(figsize=(4.6 * min(across, len(tables)), (0.8 + 0.24 * most) * n_down), layout="constrained")
    panels = np.atleast_1d(fig.subplots(n_down, min(across, len(tables)), squeeze=False)).ravel()
    for ax in panels[len(tables) :]:
        ax.set_visible(False)
    for ax, (name, shown) in zip(panels, tables.items(), strict=False):
        lead = columns[shown.kind][0]
        rows = [row for row in shown.rows if row.cells[lead].value is not None]
        for place, row in enumerate(reversed(rows)):
            cell = row.cells[lead]
            colour = "0.55" if is_floor(row.name) else "C0"
            if cell.low is not None and cell.high is not None:
                ax.plot([cell.low, cell.high], [place, place], color=colour, lw=1.5)
            ax.plot(cell.value, place, "o", color=colour, ms=5)
        ax.set_yticks(range(len(rows)), [row.name for row in reversed(rows)], fontsize=7)
        ax.set_title(f"{name} ({shown.heading})", fontsize=9)
        ax.set_xlabel(lead, fontsize=8)
    return _save(fig, path)


def resolution(path: Path, tables: Mapping[str, Any], levels: Sequence[str], fields_s: Mapping[str, float], columns: Mapping[str, Sequence[str]]) -> Path:
    """Tasks by levels, as they are and at one width: colour within each task from its weakest to its strongest level, figure and interval as text."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(2.2 + 1.5 * 2 * len(levels) / 2, 1.6 + 0.6 * len(tables) * 2), layout="constrained")
    for ax, controlled in zip(fig.subplots(2, 1), (False, True), strict=True):
        shade = np.full((len(tables), len(levels)), np.nan)
        for i, shown in enumerate(tables.values()):
            lead = columns[shown.kind][0]
            rows = {row.name.split(" (")[0]: row for row in shown.rows if row.name in levels or controlled}
            cells = [rows[level].cells[lead] for level in levels]
            values = np.array([np.nan if cell.value is None else cell.value for cell in cells]) * (-1 if shown.kind == "regression" else 1)
            span = np.nanmax(values) - np.nanmin(values) if np.isfinite(values).any() else 0
            shade[i] = (values - np.nanmin(values)) / span if span > 0 else 0.5
            for j, cell in enumerate(cells):
                ax.text(j, i, cell.text().replace(" [", "\n["), ha="center", va="center", fontsize=6, color="w" if shade[i, j] < 0.5 else "k")
        ax.imshow(shade, aspect="auto", cmap="viridis", vmin=0, vmax=1)
        ax.set_xticks(range(len(levels)), [f"{level}\n{fields_s[level]:.3g} s" for level in levels], fontsize=7)
        ax.set_yticks(range(len(tables)), [f"{task} ({columns[shown.kind][0]})" for task, shown in tables.items()], fontsize=7)
        ax.set_title("one width for all levels" if controlled else "levels as they are", fontsize=9)
    return _save(fig, path)
