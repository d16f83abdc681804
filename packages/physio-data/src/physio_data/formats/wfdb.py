"""WFDB records (PhysioNet), read by sample range in bounded memory; FLAC-compressed files need the extra `physio-data[wfdb]`.

Values are in the header's physical units, NaN where the file marks a sample as missing and where a multi-segment record has a gap.
"""

from __future__ import annotations

import bisect
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from physio_data.formats.wfdb_annotations import read_annotation_file
from physio_data.formats.wfdb_codecs import FLAC_SHIFT, MISSING, PIECE, n_bytes_of, n_frames_in, read_frames
from physio_data.formats.wfdb_header import Header, Signal, read_header
from physio_data.recording import Annotations, Recording
from physio_data.units import same_unit, unit_gain

_AGE = re.compile(r"<?\bage\b>?\s*:\s*(\d{1,3}(?:\.\d+)?)\b", re.IGNORECASE)
_SEX = re.compile(r"<?\bsex\b>?\s*:\s*([FM])(?:emale|ale)?\b", re.IGNORECASE)
_MITBIH = re.compile(r"^\s*(-?\d{1,3})\s+([FM?])\b")
_OLDEST = 120.0
_NO_FILE = "~"
_BLOCK_FRAMES = 1 << 18


def open_wfdb(
    path: str | os.PathLike[str],
    *,
    subject: str | None = None,
    annotation: str | None = "atr",
    source_fs: float | None = None,
    absent_segments: Literal["error", "gap"] = "error",
) -> Recording:
    """Open a record whose channels share one rate; ``path`` names the header, a signal file, or the record without a suffix.

    ``annotation`` is the extension of the annotation file; ``atr`` may be absent, another one must exist, ``None`` reads none. Age
    and sex come from header comments (``69 M ...``, ``Age: 56``, ``<sex>: F``) where they are stated. ``source_fs`` (frames a second) is
    for headers without a rate. A multi-segment record has NaN where it says so (segments called ``~``, channels that a segment lacks);
    a segment whose files are not there is an error, or with ``absent_segments="gap"`` NaN as well.

    ``ValueError`` for a missing header or signal file, a signal file shorter than the header says, no rate, and a record with several
    rates (use ``open_wfdb_groups``); ``ImportError`` names the extra where a FLAC file cannot be read without it.
    """
    groups = open_wfdb_groups(path, subject=subject, annotation=annotation, source_fs=source_fs, absent_segments=absent_segments)
    if len(groups) > 1:
        described = "; ".join(f"{group.fs:g} Hz: {', '.join(group.channels)}" for group in groups)
        raise ValueError(f"{path}: the record has several rates ({described}); use open_wfdb_groups, which gives one Recording per rate")
    return groups[0]


def open_wfdb_groups(
    path: str | os.PathLike[str],
    *,
    subject: str | None = None,
    annotation: str | None = "atr",
    source_fs: float | None = None,
    absent_segments: Literal["error", "gap"] = "error",
) -> tuple[Recording, ...]:
    """One Recording per sampling rate of a record, slowest first, on one clock; arguments and errors as ``open_wfdb``."""
    if absent_segments not in ("error", "gap"):
        raise ValueError(f"absent_segments must be 'error' or 'gap', got {absent_segments!r}")
    base = _base(path)
    header = read_header(_hea(base))
    fs = _rate(base, header, source_fs)
    parts, signals = _parts(base, header, absent_segments == "gap")
    if not signals:
        raise ValueError(f"{base}.hea describes no signal; it may be an annotation-only record, choose another file")
    names = tuple(signal.name or f"ch{i}" for i, signal in enumerate(signals, 1))
    age, sex = age_and_sex(header.comments)
    marks = read_annotations(base, annotation, fs=fs) if annotation else None
    recordings = []
    for factor in sorted({signal.per_frame for signal in signals}):
        rows = tuple(i for i, signal in enumerate(signals) if signal.per_frame == factor)
        units = tuple(signals[i].units for i in rows)
        recordings.append(
            Recording(
                fs=fs * factor,
                channels=tuple(names[i] for i in rows),
                units=tuple(same_unit(unit) for unit in units),
                n_samples=(parts[-1].stop if parts else 0) * factor,
                subject=subject or base.name,
                record=base.name,
                annotations=marks,
                age=age,
                sex=sex,
                reader=WfdbReader(parts, rows, units, factor),
            )
        )
    return tuple(recordings)


def read_annotations(path: str | os.PathLike[str], extension: str = "atr", *, fs: float | None = None) -> Annotations | None:
    """Annotations of a record; ``None`` when there is no ``.atr`` file, ``ValueError`` when another extension is absent.

    ``fs`` is the record's frame rate in Hz, used where the annotation file states no rate of its own; without it the header is read.
    """
    base = _base(path)
    file = base.with_name(f"{base.name}.{extension}")
    if not file.is_file():
        if extension == "atr":
            return None
        there = sorted(p.suffix[1:] for p in base.parent.glob(f"{base.name}.*") if p.suffix not in (".hea", ".dat", ".mat"))
        raise ValueError(f"{file}: no such annotation file; the record has {', '.join(there) or 'none'}")
    if fs is None and _hea(base).is_file():
        fs = read_header(_hea(base)).fs
    return read_annotation_file(file, fs)


def header_comments(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Comment lines of a record's header without their ``#``; corpora read diagnoses and rhythms there."""
    return read_header(_hea(_base(path))).comments


def verify_wfdb(path: str | os.PathLike[str]) -> None:
    """Check every signal of a record, and of its segments, against the checksum and the initial value that its header states.

    The files are read once, in blocks. ``ValueError`` names file, channel and both values; a header without checksums passes.
    """
    base = _base(path)
    header = read_header(_hea(base))
    for part in _parts(base, header, False)[0]:
        n = part.stop - part.start
        for members in part.by_file().values():
            signals = [part.signals[i] for i in members]
            total_S = np.zeros(len(signals), np.int64)
            for block in range(0, n, _BLOCK_FRAMES):
                digital_FS = _file_frames(part, members, block, min(block + _BLOCK_FRAMES, n))
                per_signal = np.split(digital_FS, np.cumsum([signal.per_frame for signal in signals])[:-1], axis=1)
                total_S += [int(x.sum()) for x in per_signal]
                if block == 0 and n:
                    _check_first(part, signals, [int(x[0, 0]) for x in per_signal])
            for signal, total in zip(signals, total_S.tolist(), strict=True):
                if signal.checksum is not None and (total - signal.checksum) % 65536:
                    raise ValueError(
                        f"{Path(part.folder) / signal.file}, channel {signal.name!r}: the checksum is {total % 65536}, the header states {signal.checksum}; "
                        f"fetch the record again"
                    )


def age_and_sex(comments: Iterable[str]) -> tuple[float, str]:
    """Age in years (NaN unknown) and sex ("F", "M", "" unknown) as header comments state them.

    Three spellings are known: MIT-BIH's first line ``69 M 1085 1629 x1``, ``Age: 56`` / ``Sex: Female`` of CinC 2020-21, and
    ``<age>: 28  <sex>: M``. Ages above 120 (PTB-XL writes 300 for "over 89") count as unknown.
    """
    age, sex = math.nan, ""
    for comment in comments:
        if mitbih := _MITBIH.match(comment):
            age = float(mitbih[1]) if math.isnan(age) else age
            sex = sex or mitbih[2].replace("?", "")
        if stated := _AGE.search(comment):
            age = float(stated[1])
        if stated := _SEX.search(comment):
            sex = stated[1].upper()
    return (age if 0 <= age <= _OLDEST else math.nan), sex


@dataclass(frozen=True)
class Part:
    """The frames [start, stop) of a record that lie in one set of signal files; ``rows`` gives each channel of the record its signal, None for a gap."""

    folder: str
    start: int
    stop: int
    signals: tuple[Signal, ...] = ()
    rows: tuple[int | None, ...] = ()

    def by_file(self) -> dict[str, list[int]]:
        """Signals of each file, in the order in which their samples stand in a frame."""
        files: dict[str, list[int]] = {}
        for i, signal in enumerate(self.signals):
            if signal.file != _NO_FILE:
                files.setdefault(signal.file, []).append(i)
        return files


@dataclass(frozen=True)
class WfdbReader:
    """Reads some channels of a record by range; ``factor`` samples a frame. Files are opened at every call, and only where the range lies."""

    parts: tuple[Part, ...]
    rows: tuple[int, ...]
    units: tuple[str, ...]
    factor: int

    def __call__(self, start: int, stop: int) -> np.ndarray:
        first, last = start // self.factor, -(-stop // self.factor)
        out_CT = np.full((len(self.rows), (last - first) * self.factor), np.nan, np.float32)
        at = bisect.bisect_right(self.parts, first, key=lambda part: part.start) - 1
        for part in self.parts[max(at, 0) :]:
            if part.start >= last:
                break
            lo, hi = max(first, part.start), min(last, part.stop)
            if lo < hi and part.signals:
                columns = slice((lo - first) * self.factor, (hi - first) * self.factor)
                for row, x_T in self._physical(part, lo - part.start, hi - part.start):
                    out_CT[row, columns] = x_T
        return out_CT[:, start - first * self.factor : stop - first * self.factor]

    def _physical(self, part: Part, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        wanted = {part.rows[channel]: row for row, channel in enumerate(self.rows) if part.rows[channel] is not None}
        for file, members in part.by_file().items():
            if not wanted.keys() & set(members):
                continue
            skew = max(part.signals[i].skew for i in members)
            end = min(stop + skew, _frames_there(part, file, members)) if skew else stop
            digital_FS = _file_frames(part, members, start, max(end, stop))
            column = 0
            for i in members:
                signal = part.signals[i]
                if i in wanted:
                    x_FS = digital_FS[signal.skew : signal.skew + stop - start, column : column + signal.per_frame].astype(np.float64)
                    x_FS[x_FS == MISSING.get(signal.fmt, math.nan)] = np.nan
                    x_T = ((x_FS - signal.baseline) * (unit_gain(signal.units, self.units[wanted[i]]) / signal.gain)).ravel()
                    yield wanted[i], np.pad(x_T, (0, (stop - start) * signal.per_frame - x_T.size), constant_values=np.nan)
                column += signal.per_frame


def _file_frames(part: Part, members: list[int], start: int, stop: int) -> np.ndarray:
    signals = [part.signals[i] for i in members]
    head = signals[0]
    per_frame = sum(signal.per_frame for signal in signals)
    initial = tuple(signal.initial if signal.initial is not None else signal.adc_zero for signal in signals)
    return read_frames(Path(part.folder) / head.file, head.fmt, per_frame, head.offset, start, stop, initial)


def _frames_there(part: Part, file: str, members: list[int]) -> int:
    signals = [part.signals[i] for i in members]
    return n_frames_in(Path(part.folder) / file, signals[0].fmt, sum(signal.per_frame for signal in signals), signals[0].offset)


def _check_first(part: Part, signals: list[Signal], first: list[int]) -> None:
    for signal, value in zip(signals, first, strict=True):
        if signal.initial is not None and signal.initial != value:
            raise ValueError(
                f"{Path(part.folder) / signal.file}, channel {signal.name!r}: the first sample is {value}, the header states {signal.initial}; "
                f"fetch the record again"
            )


def _parts(base: Path, header: Header, tolerant: bool) -> tuple[tuple[Part, ...], tuple[Signal, ...]]:
    """The record's stretches in order and its channels; of a multi-segment record these are the layout's, or the first segment's."""
    if not header.segments:
        n_frames = _checked_length(base, header)
        return (Part(str(base.parent), 0, n_frames, header.signals, tuple(range(len(header.signals)))),), header.signals
    segments = [_segment(base, name, tolerant) for name, _ in header.segments]
    layout = segments[0] if header.segments[0][1] == 0 else None
    real = [segment for segment in segments[layout is not None :] if segment is not None and segment.signals]
    if layout is None and not real:
        raise ValueError(f"{base}.hea: none of its segments describes a signal; fetch the record again")
    channels = _with_units(base, (layout or real[0]).signals, real)
    keys = _keys(channels)
    parts, at = [], 0
    for (name, length), segment in zip(header.segments, segments, strict=True):
        if segment is layout and layout is not None:
            continue
        if segment is None or not segment.signals:
            parts.append(Part(str(base.parent), at, at + length))
        else:
            parts.append(_located(base.with_name(name), segment, at, length, keys, by_position=layout is None, tolerant=tolerant))
        at += length
    if header.n_frames is not None and header.n_frames != at:
        raise ValueError(f"{base}.hea: states {header.n_frames} frames and its segments have {at}; fetch it again")
    return tuple(parts), channels


def _segment(base: Path, name: str, tolerant: bool) -> Header | None:
    """A segment's header; None for a gap. ``ValueError`` names a missing one, unless ``tolerant``."""
    if name == _NO_FILE:
        return None
    file = _hea(base.with_name(name))
    if not file.is_file():
        if tolerant:
            return None
        raise ValueError(f"{file}: no such header, though {base.name}.hea names it as a segment; fetch it, or read with absent_segments='gap'")
    segment = read_header(file)
    if segment.segments:
        raise ValueError(f"{file}: a segment that has segments itself; a WFDB record has one level of them, fetch it again")
    return segment


def _located(base: Path, segment: Header, at: int, length: int, keys: dict[tuple[str, int], int], *, by_position: bool, tolerant: bool) -> Part:
    try:
        there = _checked_length(base, segment)
    except FileNotFoundError as error:
        if tolerant:
            return Part(str(base.parent), at, at + length)
        raise ValueError(str(error)) from None
    if there < length:
        raise ValueError(f"{base}.hea: has {there} frames and its record asks for {length}; fetch it again")
    rows: list[int | None] = [None] * len(keys)
    for key, i in ({(str(k), 0): k for k in range(len(segment.signals))} if by_position else _keys(segment.signals)).items():
        channel = i if by_position else keys.get(key)
        if channel is None or channel >= len(rows):
            raise ValueError(f"{base}.hea: its channel {segment.signals[i].name!r} is not in the record's layout; fetch the record again")
        rows[channel] = i
    return Part(str(base.parent), at, at + length, segment.signals, tuple(rows))


def _keys(signals: Iterable[Signal]) -> dict[tuple[str, int], int]:
    """Signals by name, a repeated one by its turn."""
    turn: dict[str, int] = {}
    keys = {}
    for i, signal in enumerate(signals):
        keys[(signal.name, turn.setdefault(signal.name, 0))] = i
        turn[signal.name] += 1
    return keys


def _with_units(base: Path, channels: tuple[Signal, ...], real: list[Header]) -> tuple[Signal, ...]:
    """Channels whose unit the first segment that has them states; a later segment's unit must be convertible."""
    unit: dict[str, str] = {}
    for segment in real:
        for signal in segment.signals:
            try:
                unit_gain(signal.units, unit.setdefault(signal.name, signal.units))
            except ValueError as error:
                raise ValueError(f"{base}.hea: channel {signal.name!r} changes its unit between segments ({error}); read the segments one by one") from None
    return tuple(Signal(**{**vars(signal), "units": unit.get(signal.name, signal.units)}) for signal in channels)


def _checked_length(base: Path, header: Header) -> int:
    """Frames of a single segment; every signal file is there and long enough. From the files where the header states no length."""
    n_frames = header.n_frames
    files: dict[str, list[Signal]] = {}
    for signal in header.signals:
        if signal.file != _NO_FILE:
            files.setdefault(signal.file, []).append(signal)
    for name, signals in files.items():
        file, head = base.with_name(name), signals[0]
        if head.fmt not in PIECE and head.fmt not in FLAC_SHIFT:
            known = ", ".join(map(str, sorted({*PIECE, *FLAC_SHIFT})))
            raise ValueError(f"{base}.hea: signal format {head.fmt} of {name} is unknown; known are {known}")
        if any((signal.fmt, signal.offset) != (head.fmt, head.offset) for signal in signals):
            raise ValueError(f"{base}.hea: the signals of {name} state different formats or offsets; fetch it again")
        if head.fmt == 8 and any(signal.per_frame > 1 for signal in signals):
            raise ValueError(f"{base}.hea: format 8 with several samples a frame is not read; convert the record with the WFDB tool xform")
        if not file.is_file():
            raise _MissingSignalFile(f"{file}: no such signal file, though {base.name}.hea names it; fetch it from the record's source")
        per_frame = sum(signal.per_frame for signal in signals)
        found = n_frames_in(file, head.fmt, per_frame, head.offset)
        n_frames = found if n_frames is None else n_frames
        if found < n_frames and head.fmt in FLAC_SHIFT:
            raise ValueError(f"{file}: truncated, {base.name}.hea asks for {n_frames} frames and it has {found}; fetch it again")
        if found < n_frames:
            expected = head.offset + n_bytes_of(head.fmt, n_frames * per_frame)
            raise ValueError(
                f"{file}: truncated, {base.name}.hea asks for {expected} bytes ({n_frames} frames in format {head.fmt}) "
                f"and the file has {file.stat().st_size}; fetch it again"
            )
    if n_frames is None and header.signals:
        raise ValueError(f"{base}.hea states no length and names no file; where it is the layout of a multi-segment record, open that record instead")
    return n_frames or 0


class _MissingSignalFile(ValueError, FileNotFoundError):
    """So that a segment without its file can be taken for a gap where the caller allows it."""


def _rate(base: Path, header: Header, source_fs: float | None) -> float:
    if source_fs is not None and not (math.isfinite(source_fs) and source_fs > 0):
        raise ValueError(f"source_fs must be a positive number of Hz, got {source_fs}")
    if header.fs is None and source_fs is None:
        raise ValueError(f"{base}.hea: no sampling rate on its first line; add it there or give --source-fs HZ (source_fs=...)")
    if header.fs is not None and header.fs <= 0:
        raise ValueError(f"{base}.hea: the header states no positive sampling rate; mend its first line")
    if header.fs is not None and source_fs is not None and abs(source_fs - header.fs) > 1e-6 * header.fs:
        raise ValueError(f"{base}.hea: the header states {header.fs:g} Hz, which --source-fs {source_fs:g} contradicts; leave it out")
    return source_fs if header.fs is None else header.fs


def _hea(base: Path) -> Path:
    return base.with_name(f"{base.name}.hea")


def _base(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix.lower() in (".hea", ".dat", ".mat") else path
