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
