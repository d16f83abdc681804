"""Prepare: the records of a corpus become a store of windows. Resumable, atomic, and byte for byte the same for any number of workers."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from physio_data.conditioning import Block, WindowPlan, chosen_leads, joined, windows_of
from physio_data.corpora import corpus as corpus_of
from physio_data.corpora.contract import Corpus, TaskSpec
from physio_data.join import Labels, file_sha256, folds_of_records, read_labels
from physio_data.journal import StoreWriter, discard_journal, locked, refuse_different, saying_disk_full
from physio_data.manifest import FORMAT, MANIFEST, SCHEMA, read_manifest, write_manifest
from physio_data.montage import canonical_eeg
from physio_data.papagei import EDGES_HZ as PAPAGEI_BAND
from physio_data.papagei import FS as PAPAGEI_HZ
from physio_data.recording import ECG_LEADS, canonical_lead
from physio_data.shards import Shard
from physio_data.splits import check_disjoint, hash_split, stratified_split, stratum
from physio_data.windows import n_samples

if TYPE_CHECKING:
    from physio_data.quality import Limits

BEAT_WINDOW_S = 1.0  # of windows around beats where none is given: half a second on both sides
Split = Literal["hash", "stratified", "official", "file"]  # "file": as `folds` says
_IN_FLIGHT = 16  # worker calls waiting or running at once: bounds memory, feeds any usual pool
_PPG_NAMES = {"ppg", "pleth"}
_ECG_NAMES = {"mli", "mlii", "mliii", "ecg", "ekg"} | {lead.lower() for lead in ECG_LEADS}


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What to prepare and how. None, and () for `leads`, take the corpus's default; lengths in seconds, rates and bands in Hz."""

    corpus: str
    root: str | None = None
    leads: tuple[str, ...] = ()
    derive: bool = False  # compute III, aVR, aVL and aVF from I and II in records that lack them
    window_s: float | None = None
    around: Literal["beats"] | None = None  # windows centred on annotated beats; then `hop_s` has no meaning
    hop_s: float | None = None  # None where `window_s` is given too: the window
    fs: float | None = None  # rate of the store
    source_fs: float | None = None  # rate of files that state none
    band: tuple[float | None, float | None] | None = None  # (low, high), None leaves a side open; (None, None) filters nothing
    filter: Literal["butterworth", "papagei"] = "butterworth"  # "papagei": Chebyshev-II 0.5-12 Hz and 50 ms of smoothing, at 125 Hz
    notch_hz: float | None = None
    raw: bool = False  # resampled, but not filtered: the band stays to be applied per batch
    split: Split | None = None
    split_seed: int = 0
    labels: str | None = None  # CSV of labels to join
    labels_on: Literal["subject", "record", "segment"] = "subject"
    kinds: dict[str, str] = field(default_factory=dict)  # column of `labels` -> binary, multiclass or regression
    folds: str | None = None  # CSV with subject or record, and fold: instead of a split
    quality: Limits | None = None  # None rejects only windows with a gap
    pad_tail: bool = False  # keep a last window of at least half the length, its end repeated; `n_valid` tells
    dtype: Literal["float32", "int16"] = "float32"
    shard_windows: int | None = None  # None: as many as make half a gigabyte
    corpus_options: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("window_s", "hop_s", "fs", "source_fs", "notch_hz"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, got {value}")
        if self.band is not None:
            if len(self.band) != 2:
                raise ValueError(f"band must be (low, high) in Hz, got {self.band}")
            low_hz, high_hz = self.band
            if (low_hz is not None and low_hz <= 0) or (high_hz is not None and high_hz <= (low_hz or 0)):
                raise ValueError(f"band must satisfy 0 < low < high (Hz), got {self.band}; None leaves a side open")
        if self.filter not in ("butterworth", "papagei"):
            raise ValueError(f"filter must be butterworth or papagei, got {self.filter!r}")
        if self.filter == "papagei" and (self.band not in (None, PAPAGEI_BAND) or self.fs not in (None, PAPAGEI_HZ)):
            raise ValueError(f"filter=papagei fixes the band {PAPAGEI_BAND} and {PAPAGEI_HZ:g} Hz, got band={self.band}, fs={self.fs}; leave them out")
        if self.around not in (None, "beats"):
            raise ValueError(f"around must be beats, or left out, got {self.around!r}")
        if self.around == "beats" and (self.hop_s is not None or self.pad_tail):
            raise ValueError("around=beats puts a window on every beat; leave hop_s and pad_tail out")
        if self.dtype not in ("float32", "int16"):
            raise ValueError(f"dtype must be float32 or int16, got {self.dtype!r}")
        if self.folds is not None and self.split not in (None, "file"):
            raise ValueError(f"folds come from {self.folds}, split={self.split} would deal them otherwise; leave one of the two out")
        if self.split not in (None, "hash", "stratified", "official") and self.folds is None:
            raise ValueError(f"split must be hash, stratified or official, got {self.split!r}")
        if self.labels is None and self.kinds:
            raise ValueError(f"kinds name columns of a labels file ({', '.join(self.kinds)}), and there is none; give labels too")
        if self.shard_windows is not None and self.shard_windows < 1:
            raise ValueError(f"shard_windows must be at least 1, got {self.shard_windows}")

    def settled(self, corpus: Corpus) -> PrepareConfig:
        """The same config with the corpus's defaults filled in; a settled config stays as it is."""
        defaults = corpus.defaults
        own_window = self.window_s is not None
        window_s = self.window_s if own_window else defaults.window_s
        if self.around == "beats" and not own_window:
            window_s = BEAT_WINDOW_S
        hop_s = self.hop_s if self.hop_s is not None else window_s if own_window else defaults.hop_s or window_s
        if self.around == "beats":
            hop_s = None
        return replace(
            self,
            leads=tuple(self.leads) or defaults.leads,
            window_s=window_s,
            hop_s=hop_s,
            fs=PAPAGEI_HZ if self.filter == "papagei" else self.fs if self.fs is not None else defaults.fs,
            band=PAPAGEI_BAND if self.filter == "papagei" else tuple(self.band or defaults.band or (None, None)),
            split="file" if self.folds is not None else self.split or defaults.split,
        )

    def identity(self) -> dict[str, object]:
        """The parameters that decide a store's content, as JSON values; the root is known by its last folder's name, so that data may move."""
        values = asdict(self)
        values["root"] = Path(self.root).resolve().name if self.root is not None else None
        if self.filter == "butterworth":
            del values["filter"]
        if self.labels is None:
            del values["labels"], values["labels_on"], values["kinds"]
        for name in ("labels", "folds"):
            if getattr(self, name) is not None:
                values[name] = file_sha256(getattr(self, name))
        if self.folds is None:
            del values["folds"]
        return json.loads(json.dumps(values))


@dataclass(frozen=True)
class _Task:
    """What one worker call needs; it opens its records by id, so nothing large travels to it."""

    corpus: str
    root: str | None
    options: tuple[tuple[str, object], ...]
    record_ids: tuple[str, ...]
    plan: WindowPlan


def prepare(
    cfg: PrepareConfig,
    out: str | Path,
    *,
    executor: Executor | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> dict:
    """Prepare a store in the folder `out` and return its manifest.

    `executor` is any concurrent.futures.Executor (None works in this process); the bytes do not depend on it. `progress(n_done, n_records,
    n_windows)` is called after each group of records. A finished store with the same parameters and records returns at once, also where its
    source is gone; an unfinished one goes on where it stopped. Raises ValueError (bad parameters, data or another config in the folder),
    StoreBusy (another process prepares the folder) and OSError (a full disk: what is finished stays).
    """
    corpus = corpus_of(cfg.corpus)
    cfg = cfg.settled(corpus)
    options = _options(cfg, corpus)
    out = Path(out)
    if (out / MANIFEST).exists():
        return _finished(cfg, out, corpus, options)
    record_ids = _record_ids(cfg, corpus, options)
    with saying_disk_full(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if (out / MANIFEST).exists():  # another process finished it in the meantime
            return _finished(cfg, out, corpus, options)
        plan = _plan(cfg, corpus, record_ids, options)
        fold_of, waived = _folds(cfg, corpus, record_ids, options)
        labels = _labels(cfg, corpus, record_ids, options)
        manifest = _written(cfg, out, corpus, plan, record_ids, options, fold_of, waived, labels, executor, progress)
        with saying_disk_full(out):
            write_manifest(out, manifest)
        discard_journal(out)
        return read_manifest(out)[0]


def _finished(cfg: PrepareConfig, out: Path, corpus: Corpus, options: Mapping[str, object]) -> dict:
    manifest, _ = read_manifest(out)
    refuse_different(manifest["config"], cfg.identity(), out, "holds a store prepared")
    there = cfg.root is None or Path(cfg.root).exists()
    if there and manifest["records_sha256"] != _records_sha256(record_ids := _record_ids(cfg, corpus, options)):
        raise ValueError(
            f"{out} holds a store of other records than the {len(record_ids)} that are under root {cfg.root} now; choose another folder or delete this one"
        )
    return manifest


def _records_sha256(record_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(record_ids).encode()).hexdigest()


def _options(cfg: PrepareConfig, corpus: Corpus) -> dict[str, object]:
    options = dict(cfg.corpus_options)
    if cfg.source_fs is not None:
        if "source_fs" not in corpus.options:
            raise ValueError(
                f"source_fs={cfg.source_fs} has no use: the files of corpus {corpus.name!r} state their rate; leave it out (fs is the rate to resample to)"
            )
        options["source_fs"] = cfg.source_fs
    corpus.check_options(options)
    return options


def _record_ids(cfg: PrepareConfig, corpus: Corpus, options: Mapping[str, object]) -> tuple[str, ...]:
    if corpus.access != "generated" and cfg.root is None:
        raise ValueError(f"root must name the folder of corpus {corpus.name!r} ({corpus.url})")
    record_ids = tuple(corpus.list_records(cfg.root, **options))
    if not record_ids:
        raise ValueError(f"root {cfg.root} holds no record of corpus {corpus.name!r}; name its folder ({corpus.url})")
    return record_ids


def _plan(cfg: PrepareConfig, corpus: Corpus, record_ids: Sequence[str], options: Mapping[str, object]) -> WindowPlan:
    """Fix channels, units, rate and length by the first record where the config leaves them open."""
    first = corpus.open_record(cfg.root, record_ids[0], **options)
    if cfg.around == "beats" and corpus.beat_times is None:
        raise ValueError(f"corpus {corpus.name!r} has no annotated beats to put windows around; leave around out")
    chosen = chosen_leads(first, cfg.leads or first.channels, derive=cfg.derive)
    fs = cfg.fs or chosen.fs
    length = n_samples(cfg.window_s if cfg.window_s is not None else chosen.duration_s, fs)
    kind = signal_kind(chosen.channels, corpus.signal_kind)
    if cfg.quality is not None and kind not in ("ecg", "ppg"):
        raise ValueError(f"quality knows ecg and ppg, the channels {', '.join(chosen.channels)} are {kind}; leave quality out")
    return WindowPlan(
        channels=chosen.channels,
        units=chosen.units,
        fs=fs,
        n_samples=length,
        hop=length if cfg.hop_s is None else n_samples(cfg.hop_s, fs),
        band=None if cfg.raw or cfg.band == (None, None) else cfg.band,
        notch_hz=None if cfg.raw else cfg.notch_hz,
        kind=kind,
        limits=cfg.quality,
        pad_tail=cfg.pad_tail,
        filter=cfg.filter,
        derive=cfg.derive,
        around=cfg.around,
    )


def signal_kind(channels: Sequence[str], otherwise: str) -> str:
    """ "ecg", "ppg" or "eeg" where the names of all channels say so, "mixed" where there are ECG and PPG, else what the corpus says."""
    names = {canonical_lead(name).lower() for name in channels}
    if names <= _ECG_NAMES:
        return "ecg"
    if names & _ECG_NAMES and names & _PPG_NAMES:
        return "mixed"
    if all(canonical_eeg(name) or name.lower().startswith("eeg") for name in channels):
        return "eeg"
    return "ppg" if names <= _PPG_NAMES else otherwise


def _folds(cfg: PrepareConfig, corpus: Corpus, record_ids: Sequence[str], options: Mapping[str, object]) -> tuple[Callable[[str, str], str], tuple[str, ...]]:
    """A function (record id, subject) -> fold, and the waivers that were needed. ValueError where a subject has two folds without one."""
    if cfg.split == "hash":  # each subject by itself: no pass over the records
        return lambda record_id, subject: hash_split([subject], seed=cfg.split_seed)[subject], ()
    if cfg.split == "stratified":
        recordings = [corpus.open_record(cfg.root, record_id, **options) for record_id in record_ids]
        person = {}
        for recording in recordings:
            person.setdefault(recording.subject, stratum(recording.age, recording.sex))
        by_subject = stratified_split(list(person), list(person.values()), seed=cfg.split_seed)
        return lambda record_id, subject: by_subject[subject], ()
    if cfg.folds is not None:

        def facts(record_id: str) -> tuple[str, str]:
            recording = corpus.open_record(cfg.root, record_id, **options)
            return recording.subject, recording.record

        fold, subject_of = folds_of_records(cfg.folds, record_ids, facts)
        waived = check_disjoint([subject_of[record_id] for record_id in record_ids], [fold[record_id] for record_id in record_ids], corpus.waivers)
        return lambda record_id, subject: fold[record_id], waived
    official = corpus.folds(record_ids, cfg.root, **options)
    if official is None:
        raise ValueError(f"corpus {corpus.name!r} publishes no official split; choose split hash or stratified")
    if missing := [record_id for record_id in record_ids if record_id not in official]:
        raise ValueError(f"record {missing[0]!r} stands in no official fold of corpus {corpus.name!r}; choose split hash or stratified")
    waived: tuple[str, ...] = ()
    if corpus.subjects == "known":
        subjects = [corpus.open_record(cfg.root, record_id, **options).subject for record_id in record_ids]
        waived = check_disjoint(subjects, [official[record_id] for record_id in record_ids], corpus.waivers)
    return lambda record_id, subject: official[record_id], waived


def _labels(cfg: PrepareConfig, corpus: Corpus, record_ids: Sequence[str], options: Mapping[str, object]) -> Labels | None:
    """The table of labels with the corpus's own ids as keys; every record is opened once to learn who it is of."""
    if cfg.labels is None:
        return None
    labels = read_labels(cfg.labels, cfg.labels_on, cfg.kinds or None)
    if taken := sorted(set(labels.specs) & set(corpus.task_specs(cfg.root, **options))):
        raise ValueError(f"{cfg.labels}: corpus {corpus.name!r} has a task {taken[0]!r} of its own; give the column another name")
    ids: dict[str, tuple[str, ...]] = {}
    for record_id in record_ids:
        recording = corpus.open_record(cfg.root, record_id, **options)
        ids[recording.subject if cfg.labels_on == "subject" else record_id] = () if cfg.labels_on == "subject" else (recording.record,)
    return labels.matched(ids)


def _written(cfg, out, corpus, plan, record_ids, options, fold_of, waived, labels, executor, progress) -> dict:
    groups = [tuple(record_ids[i : i + corpus.records_per_task]) for i in range(0, len(record_ids), corpus.records_per_task)]
    header = {**cfg.identity(), "records_sha256": _records_sha256(record_ids)}
    writer = StoreWriter(out, header, shape_CT=(len(plan.channels), plan.n_samples), dtype=cfg.dtype, shard_windows=cfg.shard_windows)
    try:
        todo = groups[writer.n_tasks :]
        done = len(record_ids) - sum(map(len, todo))
        tasks = (_Task(cfg.corpus, cfg.root, tuple(options.items()), group, plan) for group in todo)
        for group, blocks in zip(todo, _in_order(executor, _blocks, tasks), strict=True):
            if labels is not None:
                for record_id, block in zip(group, blocks, strict=True):
                    _join(labels, record_id, block, plan)
            _add(writer, group, blocks, plan, fold_of)
            done += len(group)
            if progress is not None:
                progress(done, len(record_ids), writer.n_windows)
        rejected, facts = writer.finish()
        return _manifest(cfg, corpus, plan, header, options, writer, rejected, facts, waived, labels)
    finally:
        writer.close()


def _join(labels: Labels, record_id: str, block: Block, plan: WindowPlan) -> None:
    """Add the table's label columns to the windows of one record."""
    if len(block.signal_NCT):
        key = str(block.columns["subject"][0]) if labels.on == "subject" else record_id
        found = labels.columns(key, block.columns["start_s"], 0.5 / plan.fs)
        block.columns.update({f"label/{task}": values for task, values in found.items()})


def _blocks(task: _Task) -> list[Block]:
    corpus, options = corpus_of(task.corpus), dict(task.options)
    return [windows_of(corpus.open_record(task.root, record_id, **options), task.plan, corpus) for record_id in task.record_ids]


def _in_order(executor: Executor | None, function: Callable, tasks: Iterator) -> Iterator:
    """Results in the order of the tasks, with a bounded number of them in flight."""
    if executor is None:
        yield from map(function, tasks)
        return
    waiting: deque = deque()
    try:
        for task in tasks:
            waiting.append(executor.submit(function, task))
            if len(waiting) >= _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _add(writer: StoreWriter, group: Sequence[str], blocks: list[Block], plan: WindowPlan, fold_of: Callable[[str, str], str]) -> None:
    folds = [
        np.full(len(block.signal_NCT), fold_of(record_id, str(block.columns["subject"][0])))
        for record_id, block in zip(group, blocks, strict=True)
        if len(block.signal_NCT)
    ]
    block = joined(blocks, len(plan.channels), plan.n_samples)
    columns = {**block.columns, "fold": np.concatenate(folds)} if folds else {}
    counts = Counter(columns["fold"].tolist()) if folds else {}
    n_padded = int((columns["n_valid"] < plan.n_samples).sum()) if folds else 0
    facts = {"n_rejected": block.n_rejected, "n_padded": n_padded, "n_records": len(folds), **{f"fold/{name}": n for name, n in counts.items()}}
    writer.add(block.signal_NCT, columns, block.rejected, facts)


def _manifest(cfg, corpus, plan, header, options, writer: StoreWriter, rejected, facts, waived, labels: Labels | None) -> dict:
    if not writer.shards:
        discard_journal(writer.folder)  # no further try with these parameters can end better
        why = rejected or "every record is shorter than a window"
        raise ValueError(f"no window is left, {facts.get('n_rejected', 0)} were rejected ({why}); choose a shorter window_s, other leads or wider limits")
    entries = [shard["entry"] for shard in writer.shards]
    first = Shard(writer.folder, entries[0], shape_CT=writer.shape_CT, dtype=cfg.dtype)
    tasks: dict[str, TaskSpec] = {**corpus.task_specs(cfg.root, **options), **(labels.specs if labels is not None else {})}
    names = first.names()
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "corpus": corpus.name,
        "card": corpus.card(),
        "config": cfg.identity(),
        "records_sha256": header["records_sha256"],
        "kind": plan.kind,
        "channels": list(plan.channels),
        "units": list(plan.units),
        "fs": plan.fs,
        "n_samples": plan.n_samples,
        "window_s": plan.window_s,
        "hop_s": None if plan.around else plan.hop / plan.fs,
        "around": plan.around,
        "band": None if cfg.band == (None, None) else list(cfg.band),
        "filter": cfg.filter,
        "notch_hz": cfg.notch_hz,
        "raw": cfg.raw,
        "dtype": cfg.dtype,
        "split": cfg.split,
        "split_seed": cfg.split_seed,
        "subjects": corpus.subjects,
        "waivers": list(waived),
        "tasks": {name: {"kind": spec.kind, "classes": list(spec.classes), "unit": spec.unit} for name, spec in tasks.items() if f"label/{name}" in names},
        "columns": names,
        "tails": facts.get("n_padded", 0) > 0,
        "channels_absent": False,
        "n_windows": writer.n_windows,
        "n_records": facts["n_records"],
        "folds": {key.removeprefix("fold/"): count for key, count in facts.items() if key.startswith("fold/")},
        "n_rejected": facts["n_rejected"],
        "rejected": rejected,
        "shards": entries,
    }
