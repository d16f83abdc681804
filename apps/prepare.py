"""Prepare a corpus: its records become a store of windows that training reads.

uv run apps/prepare.py mitbih --root mitdb --out stores/mitbih
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import tyro

import console
from console import say
from physio_data.conditioning import chosen_leads
from physio_data.corpora import CORPORA, Corpus
from physio_data.corpora import corpus as corpus_of
from physio_data.journal import StoreBusy
from physio_data.prepare import PrepareConfig, prepare

Scalar = int | float | bool | str


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Turn the records of a corpus into a store: channels chosen by name, filtered, resampled, cut into windows, checked, split by subject.

    Whatever is not named takes the corpus's own default (see --info). An interrupted run goes on where it stopped when the same command is given again.
    """

    corpus: tyro.conf.Positional[str]
    """A row of the corpora table."""
    root: Path | None = None
    """Folder of the corpus's files. Generated corpora need none."""
    out: Path | None = None
    """Folder of the store. Default: stores/CORPUS."""
    leads: str = ""
    """Channels by name, in order, separated by commas: II,V5."""
    derive: bool = False
    """Compute III, aVR, aVL and aVF from leads I and II in records that lack them."""
    window_s: float | None = None
    """Length of a window, in seconds."""
    around: Literal["beats"] | None = None
    """Centre one window on every annotated beat instead of one every hop. Default length: 1 s."""
    hop_s: float | None = None
    """From one window's start to the next one's, in seconds. Default: the window."""
    fs: float | None = None
    """Rate to resample to, in Hz."""
    source_fs: float | None = None
    """Rate of files that state none, in Hz."""
    band: str = ""
    """Pass band LO,HI in Hz; an empty side stays open (0.5, or ,40), none filters nothing."""
    filter: Literal["butterworth", "papagei"] = "butterworth"
    """Shape of the band-pass; papagei is its Chebyshev-II 0.5-12 Hz with 50 ms of smoothing, at 125 Hz (--band and --fs are then fixed)."""
    notch_hz: float | None = None
    """Frequency of a notch against mains hum, in Hz."""
    raw: bool = False
    """Resample but do not filter: the band stays to be applied per batch."""
    split: Literal["hash", "stratified", "official"] | None = None
    """How subjects are dealt to train, val and test."""
    split_seed: int = 0
    """Which hash or stratified split."""
    labels: Path | None = None
    """CSV of your own labels: a column subject, record, or record and start_s, and one a task; an empty cell is unknown."""
    on: Literal["subject", "record", "segment"] = "subject"
    """What the lines of --labels speak of; segment joins on record and start_s (s)."""
    kind: tuple[str, ...] = ()
    """TASK=binary, TASK=multiclass or TASK=regression for the columns of --labels to take. Default: all of them, as their values suggest."""
    folds: Path | None = None
    """CSV with a column subject or record, and fold: your own division, instead of --split."""
    quality: bool = False
    """Leave out windows that are flat, clipped or of implausible rate or shape, with a count per reason. Windows with a gap always go."""
    pad_tail: bool = False
    """Keep a record's last window if at least half of it is there, its end repeated."""
    dtype: Literal["float32", "int16"] = "float32"
    """How samples are stored; int16 with a scale per window and channel."""
    workers: int = 0
    """Processes that prepare records; 0 works in this one. The store is the same, byte for byte."""
    option: dict[str, Scalar] = field(default_factory=dict)
    """Options of the corpus, as KEY VALUE pairs; --info lists them."""
    info: bool = False
    """Print what the corpus is and has, and stop."""
    report: bool = False
    """Print windows by fold, labels by task and rejections by reason at the end."""
    dry_run: bool = False
    """Cut the first record only, print shapes, write nothing."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Prepare, args=arguments, description=f"{Prepare.__doc__}\n\nCorpora: {', '.join(CORPORA)}.")
    corpus = corpus_of(app.corpus)
    if app.info:
        print(card(corpus, app.root))
        return {"corpus": corpus.name, "layout": corpus.layout, "options": dict(corpus.options), "tasks": {n: task.kind for n, task in corpus.tasks.items()}}
    cfg = config(app)
    if app.dry_run:
        return dry_run(cfg, corpus)
    out = app.out or Path("stores") / app.corpus
    began = time.monotonic()
    manifest = prepared(cfg, out, workers=app.workers)
    say(f"{out}: {manifest['n_windows']} windows of {manifest['n_samples']} samples at {manifest['fs']:g} Hz, {'+'.join(manifest['channels'])}")
    if app.report:
        print(report(out))
    counts = {key: manifest[key] for key in ("n_windows", "n_records", "folds", "n_rejected", "rejected", "fs", "n_samples", "channels")}
    return {"store": str(out), **counts, "seconds": round(time.monotonic() - began, 1)}


def config(app: Prepare) -> PrepareConfig:
    """The library's config of these flags."""
    from physio_data.quality import Limits

    return PrepareConfig(
        corpus=app.corpus,
        root=None if app.root is None else str(app.root),
        leads=tuple(part.strip() for part in app.leads.split(",") if part.strip()),
        band=band(app.band),
        quality=Limits() if app.quality else None,
        corpus_options=dict(app.option),
        labels=None if app.labels is None else str(app.labels),
        labels_on=app.on,
        kinds=kinds(app.kind),
        folds=None if app.folds is None else str(app.folds),
        **{
            name: getattr(app, name)
            for name in ("derive", "window_s", "around", "hop_s", "fs", "source_fs", "filter", "notch_hz", "raw", "split", "split_seed", "pad_tail", "dtype")
        },
    )


def kinds(texts: Sequence[str]) -> dict[str, str]:
    """`("mi=binary",)` -> {"mi": "binary"}."""
    split = [text.partition("=") for text in texts]
    if bad := [name for name, equals, _ in split if not (name and equals)]:
        raise ValueError(f"kind must be TASK=binary, TASK=multiclass or TASK=regression, got {bad[0]!r}")
    return {name: kind for name, _, kind in split}


def band(text: str) -> tuple[float | None, float | None] | None:
    """`0.5,40` -> (0.5, 40.0); `0.5,` leaves the upper side open; `none` -> (None, None), no filter; an empty text -> None, the corpus's own."""
    if not text:
        return None
    if text.lower() == "none":
        return (None, None)
    sides = text.split(",")
    try:
        low_hz, high_hz = (float(side) if side.strip() else None for side in sides)
    except ValueError:
        raise ValueError(f"band must be LO,HI in Hz such as 0.5,40, got {text!r}") from None
    return low_hz, high_hz


def prepared(cfg: PrepareConfig, out: Path, *, workers: int = 0, quiet: bool = False) -> dict:
    """Prepare a store with a progress line; returns its manifest. A finished store with the same parameters returns at once."""
    if workers < 0:
        raise ValueError(f"workers must be 0 (this process) or more, got {workers}")
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers else nullcontext()
    try:
        with pool as executor, console.progress(f"prepare {cfg.corpus}", n_records(cfg), quiet=quiet) as show:
            return prepare(cfg, out, executor=executor, progress=lambda done, total, n_windows: show(done, f"records, {n_windows} windows"))
    except StoreBusy as error:
        raise console.Failed(str(error)) from None
    except KeyboardInterrupt:
        raise console.Stopped(f"what is finished stays in {out}; the same command goes on from there") from None


def n_records(cfg: PrepareConfig) -> int:
    corpus = corpus_of(cfg.corpus)
    if corpus.access != "generated" and cfg.root is None:
        raise ValueError(f"--root must name the folder of corpus {corpus.name!r} ({corpus.url})")
    options = dict(cfg.corpus_options) | ({} if cfg.source_fs is None else {"source_fs": cfg.source_fs})
    corpus.check_options(options)
    return len(corpus.list_records(cfg.root, **options))


def card(corpus: Corpus, root: Path | None = None) -> str:
    """What a corpus is, in lines for a reader; with its folder also the tasks whose classes lie in the files."""
    lines = [f"{key}: {value}" for key, value in corpus.card().items()]
    defaults = ", ".join(f"{key}={value}" for key, value in vars(corpus.defaults).items())
    lines += [f"defaults: {defaults}"]
    tasks = corpus.tasks if root is None else corpus.task_specs(root)
    lines += [f"task {name}: {spec.kind} {'/'.join(spec.classes) or spec.unit}" for name, spec in tasks.items()]
    if root is None and corpus.tasks_at is not None:
        lines += ["more tasks take their classes from the files: --root DIR --info lists them"]
    return "\n".join(lines + [f"option {name}: {text}" for name, text in corpus.options.items()])


def dry_run(cfg: PrepareConfig, corpus: Corpus) -> dict[str, object]:
    """Open the first record and say what a store of it would look like."""
    cfg = cfg.settled(corpus)
    n_records(cfg)
    recording = next(iter(corpus.records(cfg.root, **cfg.corpus_options)))
    recording = chosen_leads(recording, cfg.leads or recording.channels, derive=cfg.derive)
    fs, window_s = cfg.fs or recording.fs, cfg.window_s or recording.duration_s
    n = max(0, int((recording.duration_s - window_s) // (cfg.hop_s or window_s)) + 1)
    say(f"{recording.record}: {'+'.join(recording.channels)} at {recording.fs:g} Hz, {recording.duration_s:g} s")
    say(f"about {n} windows a record, each ({len(recording.channels)}, {round(window_s * fs)}) at {fs:g} Hz")
    return {"record": recording.record, "channels": recording.channels, "shape": [n, len(recording.channels), round(window_s * fs)], "dry_run": True}


def report(out: Path) -> str:
    """Windows by fold, known labels by task and rejections by reason."""
    import numpy as np

    from physio_data.store import Store

    store = Store(out)
    lines = [f"fold {name}: {count} windows" for name, count in store.manifest["folds"].items()]
    for name, spec in store.tasks.items():
        label = np.asarray(store.label(name), np.float64)
        known = label[np.isfinite(label) & ((label >= 0) | (spec["kind"] == "regression"))]
        what = (
            f"mean {known.mean():.3g} {spec['unit']}"
            if spec["kind"] == "regression" and known.size
            else dict(zip(*np.unique(known, return_counts=True), strict=True))
        )
        lines.append(f"task {name}: {known.size} known, {what if isinstance(what, str) else ', '.join(f'{c:g}: {n}' for c, n in what.items())}")
    return "\n".join([*lines, *(f"rejected {reason}: {count}" for reason, count in store.manifest["rejected"].items())])


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
