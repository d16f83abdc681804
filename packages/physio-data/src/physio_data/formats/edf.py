"""EDF, EDF+ and BDF through `edfio` (extra `physio-data[edf]`): physical units, one Recording a rate, annotations apart.

Samples are read by range. Shape letters: C channels, T samples.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType

import numpy as np

from physio_data.recording import Annotations, Recording
from physio_data.units import same_unit

_FIXED_HEADER, _SIGNAL_HEADER, _SAMPLES_AT = 256, 256, 216  # bytes; https://www.edfplus.info/specs/edf.html


def open_edf(path: str | os.PathLike[str], *, subject: str | None = None) -> Recording:
    """Open a file whose signals share one rate; ``ValueError`` names the rates where they do not (use ``open_edf_groups``)."""
    groups = open_edf_groups(path, subject=subject)
    if len(groups) > 1:
        described = "; ".join(f"{group.fs:g} Hz: {', '.join(group.channels)}" for group in groups)
        raise ValueError(f"{path}: the file has several rates ({described}); use open_edf_groups, which gives one Recording per rate")
    return groups[0]


def open_edf_groups(path: str | os.PathLike[str], *, subject: str | None = None) -> tuple[Recording, ...]:
    """One Recording per sampling rate, slowest first, on one clock; names and units as the file writes them (``uV`` in one spelling).

    Annotations are those of ``read_edf_annotations``. Age and sex come from an EDF+ patient field. ``ValueError`` for a missing or
    truncated file, one that holds annotations only, one with a pause between its data records (EDF+D), and a channel without a
    calibration; ``ImportError`` names the extra.
    """
    path = Path(path)
    file = _opened(path)
    if not file.signals:
        raise ValueError(f"{path}: holds no signal, only {len(file.annotations)} annotations (read_edf_annotations reads them); open the file of the signals")
    if not file.is_continuous:
        raise ValueError(f"{path}: has pauses between its data records (EDF+D); convert it to continuous files, one a run")
    for signal in file.signals:
        if signal.physical_min == signal.physical_max or signal.digital_min == signal.digital_max:
            raise ValueError(f"{path}: channel {signal.label!r} has no calibration (its minimum equals its maximum); mend the header")
    marks = _annotations(file)
    age, sex = _age_and_sex(file)
    recordings = []
    for per_record in sorted({signal.samples_per_data_record for signal in file.signals}):
        rows = tuple(i for i, signal in enumerate(file.signals) if signal.samples_per_data_record == per_record)
        recordings.append(
            Recording(
                fs=file.signals[rows[0]].sampling_frequency,
                channels=tuple(file.signals[i].label for i in rows),
                units=tuple(same_unit(file.signals[i].physical_dimension) for i in rows),
                n_samples=per_record * file.num_data_records,
                subject=subject or path.stem,
                record=path.stem,
                annotations=marks,
                age=age,
                sex=sex,
                reader=EdfReader(str(path), rows),
            )
        )
    return tuple(recordings)


def read_edf_annotations(path: str | os.PathLike[str]) -> Annotations | None:
    """EDF+ annotations: ``symbol`` is the text (``Sleep stage W``), ``aux`` the duration in seconds or "" where there is none. None without any."""
    return _annotations(_opened(Path(path)))


@dataclass(frozen=True)
class EdfReader:
    """Reads a range of some signals of one rate; the file is opened at every call."""

    path: str
    rows: tuple[int, ...]

    def __call__(self, start: int, stop: int) -> np.ndarray:
        file = _opened(Path(self.path))
        out_CT = np.empty((len(self.rows), stop - start), np.float32)
        for row, i in enumerate(self.rows):
            signal = file.signals[i]
            digital = signal.get_digital_slice(start / signal.sampling_frequency, stop / signal.sampling_frequency).astype(np.float64)
            gain = (signal.physical_max - signal.physical_min) / (signal.digital_max - signal.digital_min)
            out_CT[row] = signal.physical_min + (digital - signal.digital_min) * gain
        return out_CT


def _annotations(file) -> Annotations | None:
    marks = file.annotations
    if not marks:
        return None
    return Annotations(
        time_s=np.array([mark.onset for mark in marks], np.float64),
        symbol=np.array([mark.text for mark in marks], np.str_),
        aux=np.array([f"{mark.duration:g}" if mark.duration else "" for mark in marks], np.str_),
    )


def _age_and_sex(file) -> tuple[float, str]:
    """EDF+ writes "code sex birthdate name", the date as 02-MAY-1951, and the start date as "Startdate 02-MAY-2001 ..."."""
    patient, recording = file.local_patient_identification.split(), file.local_recording_identification.split()
    sex = patient[1] if len(patient) > 3 and patient[1] in ("F", "M") else ""
    born = _date(patient[2]) if len(patient) > 3 else None
    begun = _date(recording[1]) if len(recording) > 1 and recording[0] == "Startdate" else None
    return ((begun - born).days / 365.25 if born and begun and begun > born else math.nan), sex


def _date(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%d-%b-%Y")
    except ValueError:
        return None


def _check_size(path: Path) -> None:
    """The file is as long as its header says; a recorder that was switched off leaves -1 records, which the size then tells."""
    with path.open("rb") as file:
        raw = file.read(_FIXED_HEADER + _SIGNAL_HEADER * 512)
    try:
        n_records, n_signals = int(raw[236:244]), int(raw[252:256])
        at = _FIXED_HEADER + _SAMPLES_AT * n_signals
        per_record = sum(int(raw[at + 8 * i : at + 8 * (i + 1)]) for i in range(n_signals))
    except ValueError as error:
        raise ValueError(f"{path}: not a readable EDF header ({error}); fetch it again") from error
    sample_bytes = 3 if raw[:1] == b"\xff" else 2
    expected = _FIXED_HEADER + _SIGNAL_HEADER * n_signals + n_records * per_record * sample_bytes
    if n_records >= 0 and path.stat().st_size < expected:
        raise ValueError(f"{path}: truncated, its header asks for {expected} bytes ({n_records} data records) and it has {path.stat().st_size}; fetch it again")


def _opened(path: Path):
    edfio = _edfio()
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    _check_size(path)
    try:
        return edfio.read_bdf(path) if path.suffix.lower() == ".bdf" else edfio.read_edf(path, header_encoding="latin-1")
    except (ValueError, IndexError, OSError, ArithmeticError) as error:
        raise ValueError(f"{path}: not a readable EDF file ({error}); it may be cut off, fetch it again") from error


def _edfio() -> ModuleType:
    try:
        import edfio
    except ImportError as error:
        raise ImportError("reading EDF and BDF files needs edfio: pip install 'physio-data[edf]'") from error
    return edfio
