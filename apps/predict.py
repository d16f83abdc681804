"""Apply a saved model to one recording: scores over time, a figure, episodes, and a report of how the file was made to fit.

uv run apps/predict.py ../shared/data/mitdb/100 --ckpt runs/tuned --out runs/predicted
uv run apps/predict.py night.csv --source-fs 125 --lead PPG=Pleth --ckpt runs/tuned --out runs/predicted --hop-s 5
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro

import console
import downstream
import figures
import stream as streaming
import timeline
from console import say
from physio_data import open_recording
from physio_train import predictions as prediction_files
from physio_train.predictions import make
from physio_train.run import write_json


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Scores of a recording, window by window and stitched over time."""

    file: tyro.conf.Positional[Path]
    """WFDB record or header, EDF, CSV or text, HDF5, MATLAB or NumPy file; - with --stream reads CSV lines from standard input, as stream.py does."""
    ckpt: Path
    """A folder of probe.py or finetune.py --out."""
    out: Path | None = None
    """Folder for predictions, timeline, episodes, figure and report. Needed but for standard input."""
    hop_s: float | None = None
    """From one window's start to the next one's, in seconds; the last window ends with the recording. Default: half a window."""
    lead: dict[str, str] | None = None
    """The model's channel and the file's name for it, as pairs: --lead MLII "ECG 1"."""
    source_fs: float | None = None
    """Rate of a file that states none, in Hz."""
    channels: tuple[str, ...] | None = None
    """Names of channels that the file leaves unnamed."""
    units: tuple[str, ...] | None = None
    """Units of channels that the file leaves open."""
    subject: str | None = None
    """The subject's id. Default: the file's stem."""
    threshold: float | None = None
    """Score from which a class holds. Default: the one chosen on validation, else 0.5."""
    shortest_s: float = 0.0
    """Episodes that last less are left out."""
    stream: bool = False
    """Print each window's scores as one JSON line as soon as they are there."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Predict, args=list(arguments), description=console.paragraphs(__doc__))
    if str(app.file) == "-":
        return from_stdin(app)
    if app.out is None:
        raise ValueError("--out must name the folder that the predictions, the timeline and the figure go to")
    saved = downstream.load(app.ckpt)
    window_s = saved.contract.window_s
    hop_s = window_s / 2 if app.hop_s is None else app.hop_s
    if not 0 < hop_s <= window_s:
        raise ValueError(f"--hop-s must lie in (0, {window_s:g}], the model's window, got {hop_s}: a longer hop would leave time unscored")
    recording = open_recording(app.file, source_fs=app.source_fs, subject=app.subject, channels=app.channels, units=app.units)
    fitted = timeline.arrange(recording, saved.contract, hop_s=hop_s, leads=app.lead or {})
    app.out.mkdir(parents=True, exist_ok=True)
    names, total = saved.task.columns, len(timeline.first_samples(fitted))
    start_parts, score_parts, done = [], [], 0
    with console.progress("windows", total) as show:
        for start_s_n, score_nK in timeline.scores(saved, fitted):
            start_parts.append(start_s_n)
            score_parts.append(score_nK)
            done += len(start_s_n)
            show(done, "")
            if app.stream:
                for start_s, score_K in zip(start_s_n, score_nK, strict=True):
                    line = {name: round(float(s), 6) if np.isfinite(s) else None for name, s in zip(names, score_K, strict=True)}
                    print(json.dumps({"start_s": round(float(start_s), 3), **line}), flush=True)
    start_s_N, score_NK = np.concatenate(start_parts), np.concatenate(score_parts)
    gaps_N = ~np.isfinite(score_NK).all(axis=1)
    if gaps_N.all():
        raise ValueError(f"{app.file}: every window of {window_s:g} s has a gap in it; nothing can be scored")
    write_windows(app.out, recording, start_s_N[~gaps_N], score_NK[~gaps_N], names)
    edge_s, line_MK = timeline.stitched(start_s_N, score_NK, window_s)
    write_timeline(app.out, edge_s, line_MK, names)
    limits = thresholds(app, saved)
    found, burdens = [], {}
    for name, limit in limits.items():
        line_M = line_MK[:, names.index(name)]
        found += timeline.episodes(edge_s, line_M, name, threshold=limit, shortest_s=app.shortest_s)
        burdens[name] = timeline.burden(edge_s, line_M, limit)
    write_episodes(app.out, found)
    said = timeline.report(fitted, saved, len(start_s_N), int(gaps_N.sum())) | {"thresholds": limits, "burden": burdens, "episodes": len(found)}
    write_json(app.out / "report.json", said)
    figures.timeline(app.out / "figures" / "timeline.png", fitted, edge_s, line_MK, names, limits, found)
    for step in fitted.steps:
        say(step)
    if said["model"]["saw_subject"]:
        say(f"subject {recording.subject}: the model was pretrained or fitted on somebody of that name")
    counts = {"windows": len(start_s_N), "windows_with_gaps": int(gaps_N.sum()), "duration_s": recording.duration_s}
    return counts | {"burden": burdens, "episodes": len(found), "out": app.out}


def from_stdin(app: Predict) -> Mapping[str, object]:
    """Scores of a running signal, a JSON line a window."""
    if not app.stream or app.source_fs is None:
        raise ValueError("standard input (-) is read with --stream and --source-fs HZ, a CSV line a sample")
    if app.out is not None or app.lead or app.subject or app.threshold is not None or app.shortest_s:
        raise ValueError("--out, --lead, --subject, --threshold and --shortest-s speak of a whole recording: leave them out for standard input")
    given = {"channels": app.channels, "units": app.units, "hop_s": app.hop_s}
    return {"windows": streaming.printed(streaming.stream(app.ckpt, sys.stdin, source_fs=app.source_fs, **given))}


def thresholds(app: Predict, saved: downstream.Saved) -> dict[str, float]:
    """Score from which each class holds; none for a number."""
    if saved.task.kind == "regression":
        return {}
    own = [t if np.isfinite(t) else 0.5 for t in np.broadcast_to(saved.threshold_K, len(saved.task.columns))]
    return {name: float(t if app.threshold is None else app.threshold) for name, t in zip(saved.task.columns, own, strict=True)}


def write_windows(out: Path, recording, start_s_N: np.ndarray, score_NK: np.ndarray, names: Sequence[str]) -> None:
    place = {"subject": np.full(len(start_s_N), recording.subject), "record": np.full(len(start_s_N), recording.record), "start_s": start_s_N}
    prediction_files.write(out / "predictions.csv", make("predict", {name: score_NK[:, k] for k, name in enumerate(names)}, **place))


def write_timeline(out: Path, edge_s: np.ndarray, line_MK: np.ndarray, names: Sequence[str]) -> None:
    with (out / "timeline.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["start_s", "stop_s", *(f"score_{name}" for name in names)])
        for a, b, score_K in zip(edge_s[:-1], edge_s[1:], line_MK, strict=True):
            writer.writerow([f"{a:.10g}", f"{b:.10g}", *("" if np.isnan(s) else f"{s:.6g}" for s in score_K)])


def write_episodes(out: Path, found: Sequence[timeline.Episode]) -> None:
    with (out / "episodes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["name", "start_s", "stop_s", "peak"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(e) for e in found)


if __name__ == "__main__":
    console.run(main)
