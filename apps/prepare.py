"""Prepare a corpus: its records become a store of windows that training reads.

uv run apps/prepare.py mitbih --root mitdb --out stores/mitbih
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
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
from physio_data.remote import address, is_remote, local_root

Scalar = int | float | bool | str


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Turn the records of a corpus into a store: channels chosen by name, filtered, resampled, cut into windows, checked, split by subject.

    Whatever is not named takes the corpus's own default (see --info). An interrupted run goes on where it stopped when the same command is given again.
    """

    corpus: tyro.conf.Positional[str]
    """A row of the corpora table."""
    root: Path | None = None
    """Folder of the corpus's files, or s3://bucket/folder. Generated corpora need none."""
    out: Path | None = None
    """Folder of the store, or s3://bucket/folder. Default: stores/CORPUS."""
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
    compression: Literal["none", "lzf", "gzip", "lz4"] = "none"
    """Write an archive: the signal in compressed chunks, for storage and for reading in blocks. lz4 is the fastest and needs physio-data[archive]."""
    workers: int = 0
    """Processes that prepare records; 0 works in this one. The store is the same, byte for byte."""
    scheduler: str = ""
    """Address of a running Dask scheduler (tcp://host:8786) whose workers prepare instead; they must see the files under the same paths."""
    option: dict[str, Scalar] = field(default_factory=dict)
    """Options of the corpus, as KEY VALUE pairs; --info lists them."""
    info: bool = False
    """Print what the corpus is and has, and stop."""
    report: bool = False
    """Write report.html beside the shards (for s3:// in this folder): counts, examples kept and rejected, spectra before and after."""
    dry_run: bool = False
    """Cut the first record only, print shapes, write nothing."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Prepare, args=arguments, description=f"{Prepare.__doc__}\n\nCorpora: {', '.join(CORPORA)}.")
    corpus = corpus_of(app.corpus)
    if app.info:
        print(card(corpus, local_root(app.root)))
        return {"corpus": corpus.name, "layout": corpus.layout, "options": dict(corpus.options), "tasks": {n: task.kind for n, task in corpus.tasks.items()}}
    cfg = config(app)
    if app.dry_run:
        return dry_run(cfg, corpus)
    out = app.out or Path("stores") / app.corpus
    out = address(out) if is_remote(out) else out
    began = time.monotonic()
    manifest = prepared(cfg, out, workers=app.workers, scheduler=app.scheduler)
    say(f"{out}: {manifest['n_windows']} windows of {manifest['n_samples']} samples at {manifest['fs']:g} Hz, {'+'.join(manifest['channels'])}")
    for line in unlabelled(out):
        say(line)
    if app.report:
        print(report(out))
        say(f"report: {write_report(cfg, out)}")
    counts = {key: manifest[key] for key in ("n_windows", "n_records", "folds", "n_rejected", "rejected", "fs", "n_samples", "channels")}
    return {"store": str(out), **counts, "seconds": round(time.monotonic() - began, 1)}


def config(app: Prepare) -> PrepareConfig:
    """The library's config of these flags."""
    from physio_data.quality import Limits

    return PrepareConfig(
        corpus=app.corpus,
        root=local_root(app.root),
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
            for name in (
                *("derive", "window_s", "around", "hop_s", "fs", "source_fs", "filter", "notch_hz", "raw"),
                *("split", "split_seed", "pad_tail", "dtype", "compression"),
            )
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


def prepared(cfg: PrepareConfig, out: Path | str, *, workers: int = 0, scheduler: str = "", quiet: bool = False) -> dict:
    """Prepare a store with a progress line; returns its manifest. A finished store with the same parameters returns at once."""
    try:
        total = n_records(cfg)
        with pool(workers, scheduler) as (executor, in_flight), console.progress(f"prepare {cfg.corpus}", total, quiet=quiet) as show:
            show(0, "records")
            manifest = prepare(
                cfg, out, executor=executor, in_flight=in_flight, progress=lambda done, total, n_windows: show(done, f"records, {n_windows} windows")
            )
            show(total, f"records, {manifest['n_windows']} windows")
            return manifest
    except StoreBusy as error:
        raise console.Failed(str(error)) from None
    except BrokenExecutor as error:
        raise console.Failed(f"{error}; what is finished stays in {out}, the same command goes on from there") from None
    except ImportError as error:
        raise ValueError(str(error)) from None
    except KeyboardInterrupt:
        raise console.Stopped(f"what is finished stays in {out}; the same command goes on from there") from None


def pool(workers: int, scheduler: str) -> AbstractContextManager[tuple[Executor | None, int]]:
    """Where records are prepared, and how many calls may be under way: this process, some processes, or a Dask cluster."""
    from physio_data.executors import dask_cluster, processes

    if workers < 0:
        raise ValueError(f"workers must be 0 (this process) or more, got {workers}")
    if workers and scheduler:
        raise ValueError(f"give --workers {workers} for processes of this machine or --scheduler {scheduler} for a cluster, not both")
    return dask_cluster(scheduler) if scheduler else processes(workers) if workers else nullcontext((None, 1))


def n_records(cfg: PrepareConfig) -> int:
    corpus = corpus_of(cfg.corpus)
    if corpus.access != "generated" and cfg.root is None:
        raise ValueError(f"--root must name the folder of corpus {corpus.name!r} ({corpus.url})")
    options = dict(cfg.corpus_options) | ({} if cfg.source_fs is None else {"source_fs": cfg.source_fs})
    corpus.check_options(options)
    return len(corpus.list_records(cfg.root, **options))


def card(corpus: Corpus, root: str | None = None) -> str:
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


def unlabelled(out: Path | str) -> list[str]:
    """A line for every task with records of which it knows nothing: a label file that was not downloaded is noticed here."""
    import numpy as np

    from physio_data.store import Store

    store = Store(out)
    record_N, lines = np.asarray(store.index["record"]), []
    for name, spec in store.tasks.items():
        known_N = known(store.label(name), spec["kind"])
        without = sorted(set(record_N.tolist()) - set(record_N[known_N].tolist()))
        if without:
            which = f"{', '.join(without[:3])}{', ...' if len(without) > 3 else ''}"
            why = "their annotation files are absent, or say nothing of it"
            lines.append(f"task {name}: no known label in {len(without)} of {len(set(record_N.tolist()))} records ({which}): {why}")
    return lines


def known(label: object, kind: str) -> object:
    """(N,) bool: windows whose label of a task is known (any class of a multi-label one)."""
    import numpy as np

    label = np.asarray(label, np.float64)
    there = np.isfinite(label) & ((label >= 0) | (kind == "regression"))
    return there.reshape(len(there), -1).any(axis=1)


def report(out: Path | str) -> str:
    """Windows by fold, known labels by task and rejections by reason."""
    import numpy as np

    from physio_data.store import Store

    store = Store(out)
    lines = [f"fold {name}: {count} windows" for name, count in store.manifest["folds"].items()]
    for name, spec in store.tasks.items():
        label = np.asarray(store.label(name), np.float64)
        there = label[known(label, spec["kind"])]
        if spec["kind"] == "regression":
            what = f"mean {there.mean():.3g} {spec['unit']}" if there.size else ""
        elif spec["kind"] == "multilabel":
            what = ", ".join(f"{name}: {n:g}" for name, n in zip(spec["classes"], np.maximum(there, 0).sum(axis=0), strict=True))
        else:
            values, counts = np.unique(there, return_counts=True)
            named = [spec["classes"][int(value)] if spec["classes"] else f"{value:g}" for value in values]
            what = ", ".join(f"{name}: {n}" for name, n in zip(named, counts, strict=True))
        lines.append(f"task {name}: {len(there)} known, {what}")
    return "\n".join([*lines, *(f"rejected {reason}: {count}" for reason, count in store.manifest["rejected"].items())])


def write_report(cfg: PrepareConfig, out: Path | str) -> Path:
    """The HTML page of a store. The examples need the corpus's files; where they are gone it has the counts."""
    import store_page
    from physio_data.evidence import gather
    from physio_data.store import Store

    there = cfg.root is None or Path(cfg.root).exists()
    path = Path(f"{out.rpartition('/')[2]}-report.html") if isinstance(out, str) else out / "report.html"
    store = Store(out)
    reasons = [name for name in store.manifest["rejected"] if name != "edge"]  # beats too near an end have no window to show
    return store_page.write(path, store, gather(cfg, reasons=reasons) if there else None)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
