"""WFDB records (PhysioNet), read by sample range through the `wfdb` library (extra `physio-data[wfdb]`).

Values are in the header's physical units, NaN where the file marks a sample as missing.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from physio_data.recording import Annotations, Recording

# Bytes per sample of the uncompressed storage formats; https://wfdb.io/spec/header-files.html. FLAC formats have no fixed size.
_BYTES = {"8": 1.0, "16": 2.0, "24": 3.0, "32": 4.0, "61": 2.0, "80": 1.0, "160": 2.0, "212": 1.5, "310": 4 / 3, "311": 4 / 3}
_UNITS = {"mv": "mV", "uv": "uV", "µv": "uV", "v": "V", "nv": "nV", "mmhg": "mmHg"}
_AGE = re.compile(r"<?\bage\b>?\s*:\s*(\d{1,3}(?:\.\d+)?)\b", re.IGNORECASE)
_SEX = re.compile(r"<?\bsex\b>?\s*:\s*([FM])(?:emale|ale)?\b", re.IGNORECASE)
_MITBIH = re.compile(r"^\s*(-?\d{1,3})\s+([FM?])\b")
_OLDEST = 120.0


def open_wfdb(path: str | os.PathLike[str], *, subject: str | None = None, annotation: str | None = "atr") -> Recording:
    """Open a record whose channels share one rate; ``path`` names the header, a signal file, or the record without a suffix.

    ``annotation`` is the extension of the annotation file; ``atr`` may be absent, another one must exist, ``None`` reads none. Age
    and sex come from header comments (``69 M ...``, ``Age: 56``, ``<sex>: F``) where they are stated.

    ``ValueError`` for a missing header or signal file, a signal file shorter than the header says, and a record with several
    rates (use ``open_wfdb_groups``); ``ImportError`` names the extra when `wfdb` is not installed.
    """
    groups = open_wfdb_groups(path, subject=subject, annotation=annotation)
    if len(groups) > 1:
        described = "; ".join(f"{group.fs:g} Hz: {', '.join(group.channels)}" for group in groups)
        raise ValueError(f"{path}: the record has several rates ({described}); use open_wfdb_groups, which gives one Recording per rate")
    return groups[0]


def open_wfdb_groups(path: str | os.PathLike[str], *, subject: str | None = None, annotation: str | None = "atr") -> tuple[Recording, ...]:
    """One Recording per sampling rate of a record, slowest first, on one clock; arguments and errors as ``open_wfdb``."""
    base = _base(path)
    header = _header(base)
    names = tuple(name or f"ch{i}" for i, name in enumerate(header.sig_name or (), 1))
    if not names:
        raise ValueError(f"{base}.hea describes no signal; it may be an annotation-only record, choose another file")
    n_frames = _check_signal_files(base, header)
    per_frame = tuple(header.samps_per_frame or (1,) * len(names))
    age, sex = age_and_sex(header.comments or ())
    recordings = []
    for factor in sorted(set(per_frame)):
        rows = tuple(i for i, n in enumerate(per_frame) if n == factor)
        recordings.append(
            Recording(
                fs=header.fs * factor,
                channels=tuple(names[i] for i in rows),
                units=tuple(_unit(header.units[i]) for i in rows),
                n_samples=n_frames * factor,
                subject=subject or base.name,
                record=base.name,
                annotations=read_annotations(base, annotation, fs=header.fs) if annotation else None,
                age=age,
                sex=sex,
                reader=WfdbReader(str(base), rows, factor, _needs_whole(header)),
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
    wfdb = _wfdb()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of pandas inside wfdb
            ann = wfdb.rdann(str(base), extension)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{file}: not a readable annotation file ({error}); fetch it again") from error
    rate = ann.fs or fs or _header(base).fs
    aux = [(note or "").rstrip("\x00").strip() for note in ann.aux_note]
    return Annotations(time_s=np.asarray(ann.sample, np.float64) / rate, symbol=np.asarray(ann.symbol, np.str_), aux=np.asarray(aux, np.str_))


def header_comments(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Comment lines of a record's header without their ``#``; corpora read diagnoses and rhythms there."""
    return tuple(_header(_base(path)).comments or ())


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
class WfdbReader:
    """Reads some channels of a record by range; ``factor`` samples per frame, every call opens the files anew.

    With ``whole`` the record is read whole and the range cut from it: format 8 stores differences, which `wfdb` would sum from the
    first sample it reads, and without a length in the header it takes no end.
    """

    base: str
    rows: tuple[int, ...]
    factor: int
    whole: bool

    def __call__(self, start: int, stop: int) -> np.ndarray:
        first, last = (0, None) if self.whole else (start // self.factor, -(-stop // self.factor))
        try:
            record = _wfdb().rdrecord(self.base, sampfrom=first, sampto=last, channels=list(self.rows), physical=True, smooth_frames=False, m2s=True)
        except (ValueError, IndexError, OSError) as error:
            raise ValueError(f"{self.base}: samples [{start}, {stop}) cannot be read ({error}); check the signal files against the header") from error
        x_CT = np.stack([np.asarray(x, np.float32) for x in record.e_p_signal])
        return x_CT[:, start - first * self.factor : stop - first * self.factor]


def _needs_whole(header) -> bool:
    segments = getattr(header, "segments", None) or [header]
    return header.sig_len is None or any(str(fmt) == "8" for segment in segments if segment is not None for fmt in (segment.fmt or ()))


def _wfdb() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its use of pandas warns while the module is imported, not later
            import wfdb
    except ImportError as error:
        raise ImportError("reading WFDB files needs the wfdb library: pip install 'physio-data[wfdb]'") from error
    return wfdb


def _base(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix.lower() in (".hea", ".dat", ".mat") else path


def _header(base: Path):
    file = base.with_name(f"{base.name}.hea")
    if not file.is_file():
        raise ValueError(f"{file}: no such header; a WFDB record needs its .hea file beside the signal file")
    wfdb = _wfdb()
    try:
        header = wfdb.rdheader(str(base), rd_segments=True)
        if isinstance(header, wfdb.MultiRecord):
            header = _joined(header)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename}: no such header, though {file.name} names it as a segment; fetch it from the record's source") from error
    except (ValueError, IndexError, OSError, wfdb.io.header.HeaderSyntaxError) as error:
        raise ValueError(f"{file}: not a readable WFDB header ({error}); its first line is: name channels rate length time date") from error
    if not header.fs or header.fs <= 0:
        raise ValueError(f"{file}: the header states no positive sampling rate; add it to its first line")
    return header


def _joined(multi):
    """A multi-segment header as if it were one segment: names and units from the layout, or from the first real segment."""
    segments = [segment for segment in multi.segments if segment is not None and segment.sig_name]
    if not segments:
        raise ValueError("none of its segments describes a signal")
    multi.sig_name, multi.units = segments[0].sig_name, segments[0].units
    multi.samps_per_frame = segments[0].samps_per_frame
    multi.file_name = None
    return multi


def _check_signal_files(base: Path, header) -> int:
    """Every signal file is there and long enough; returns the record's length in frames, from file sizes where the header has none."""
    if header.file_name is None:
        return _check_segments(base, header)
    n_frames = header.sig_len
    for file_name in dict.fromkeys(header.file_name):
        if file_name == "~":
            continue
        file = base.with_name(file_name)
        if not file.is_file():
            raise ValueError(f"{file}: no such signal file, though {base.name}.hea names it; fetch it from the record's source")
        signals = [i for i, name in enumerate(header.file_name) if name == file_name]
        bytes_per_sample = _BYTES.get(str(header.fmt[signals[0]]))
        if bytes_per_sample is None:
            continue
        per_frame = sum(header.samps_per_frame[i] or 1 for i in signals) * bytes_per_sample
        offset = header.byte_offset[signals[0]] or 0
        found = file.stat().st_size
        if n_frames is None:
            n_frames = max(0, math.floor((found - offset) / per_frame + 1e-9))
        expected = offset + math.ceil(n_frames * per_frame - 1e-9)
        if found < expected:
            raise ValueError(
                f"{file}: truncated, {base.name}.hea asks for {expected} bytes ({n_frames} frames in format "
                f"{header.fmt[signals[0]]}) and the file has {found}; fetch it again"
            )
    if n_frames is None:
        raise ValueError(f"{base}.hea states no length and its files have none that can be computed; add the number of samples to its first line")
    return n_frames


def _check_segments(base: Path, multi) -> int:
    for segment, name in zip(multi.segments, multi.seg_name, strict=True):
        if segment is not None and segment.sig_len and segment.file_name and name != "~":
            _check_signal_files(base.with_name(name), segment)
    return int(multi.sig_len if multi.sig_len is not None else sum(multi.seg_len))


def _unit(unit: str | None) -> str:
    unit = (unit or "a.u.").strip()
    return _UNITS.get(unit.lower(), unit)
