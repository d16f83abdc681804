"""PulseDB's layout: MATLAB 7.3 files with one struct array of object references; one person of a single segment, one with dropped segments."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from physio_data.corpora.twins.people import person

HEADER = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, Created on: Mon Jan 03 12:00:00 2022 HDF5 schema 1.00 ."


def write(root: Path, seed: int = 0) -> dict[str, object]:
    for folder in ("PulseDB_MIMIC", "PulseDB_Vital"):
        (root / folder).mkdir()
    kept = np.array([0, 1, 2, 5, 6, 9])  # which 10-s pieces of the clip passed the corpus's checks
    write_subject(root / "PulseDB_MIMIC" / "p000020.mat", 0, kept, seed)
    write_subject(root / "PulseDB_MIMIC" / "p000160.mat", 1, np.array([3]), seed)
    write_subject(root / "PulseDB_Vital" / "p000001.mat", 2, np.array([0, 1, 2, 3]), seed, vital=True)
    return {}


def write_subject(path: Path, index: int, kept: np.ndarray, seed: int = 0, *, vital: bool = False, version: int = 2) -> None:
    """One file with the 10-s pieces `kept` of a made-up recording; version 1 lacks T and the amplitudes as measured."""
    subject = person(index, 10.0 * (kept.max() + 1), 125.0, ("ECG", "PPG"), seed)
    segments = []
    for k, piece in enumerate(kept):
        ecg_T, ppg_T = subject.signal_CT[:, 1250 * piece : 1250 * (piece + 1)].astype(np.float64)
        fields: dict[str, object] = {
            "SubjectID": path.stem,
            "CaseID": 1.0,
            "SegmentID": float(k + 1),
            "ECG_Raw": _scaled(ecg_T),
            "PPG_Raw": _scaled(ppg_T),
            "ABP_Raw": 80 + 40 * _scaled(ppg_T),
            "SegSBP": 118.0 + k,
            "SegDBP": 70.0 + k,
            "Age": subject.age,
            "Gender": subject.sex,
            "Height": 171.0 if vital else None,
            "IncludeFlag": 1.0,
            "PPG_SPeaks": np.array([10.0, 90.0]),
        }
        if version == 2:
            fields |= {"T": 10.0 * piece + np.arange(1250) / 125.0, "ECG_Record": ecg_T, "PPG_Record": 500 + 100 * ppg_T}
        segments.append(fields)
    _write_struct(path, segments)


def _scaled(x_T: np.ndarray) -> np.ndarray:
    return (x_T - x_T.min()) / np.ptp(x_T)


def _write_struct(path: Path, segments: list[dict[str, object]]) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        group = file.create_group("Subj_Wins")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for name in segments[0]:
            if len(segments) == 1:  # a struct of one element holds its values themselves
                _put(group, name, segments[0][name])
                continue
            references = group.create_dataset(name, (1, len(segments)), h5py.ref_dtype)
            for k, fields in enumerate(segments):
                references[0, k] = _put(file.require_group("#refs#"), f"{name}{k}", fields[name]).ref
    with path.open("r+b") as raw:
        raw.write(HEADER.ljust(124) + b"\x00\x02IM")


def _put(group: h5py.Group, name: str, value: object) -> h5py.Dataset:
    """MATLAB's own way: text as character codes, vectors as (1, T), an empty matrix as its size."""
    if value is None:
        item = group.create_dataset(name, data=np.array([0, 0], np.uint64))
        item.attrs["MATLAB_empty"] = np.uint8(1)
    elif isinstance(value, str):
        item = group.create_dataset(name, data=np.array([[ord(c)] for c in value], np.uint16))
    else:
        item = group.create_dataset(name, data=np.atleast_2d(np.asarray(value, np.float64)))
    item.attrs["MATLAB_class"] = np.bytes_("char" if isinstance(value, str) else "double")
    return item
