"""Twelve leads of a made-up person, and the WFDB files of ECG corpora: format 212, MATLAB v4 signal files, annotation files. C leads, T samples."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from physio_data.corpora.twins.people import person
from physio_data.corpora.twins.wfdb_files import digital, header, signal_line
from physio_data.formats.wfdb_annotations import SYMBOLS
from physio_data.leads import FROM_I_AND_II
from physio_data.recording import ECG_LEADS
from physio_data.synthesis import SyntheticSubject

_CHEST = {"V1": -0.6, "V2": -0.3, "V3": 0.4, "V4": 0.9, "V5": 1.1, "V6": 0.8}
_CODES = {symbol: code for code, symbol in SYMBOLS.items()}


def twelve_leads(index: int, seconds: float, fs: float, seed: int) -> tuple[np.ndarray, SyntheticSubject]:
    """(12, T) in mV in the order of ECG_LEADS, and the person: limb leads that obey Einthoven and Goldberger, chest leads of their own."""
    someone = person(index, seconds, fs, ("ECG",), seed)
    two_T = someone.signal_CT[0].astype(np.float64)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 12)))
    one_T = 0.55 * two_T + 0.05 * np.sin(2 * np.pi * 0.3 * np.arange(two_T.size) / fs)
    leads = {"I": one_T, "II": two_T} | {name: a * one_T + b * two_T for name, (a, b) in FROM_I_AND_II.items()}
    leads |= {name: gain * two_T + 0.02 * rng.standard_normal(two_T.size) for name, gain in _CHEST.items()}
    return np.stack([leads[name] for name in ECG_LEADS]), someone


def write_mat4(base: Path, d_CT: np.ndarray, *, fs: float, names: Sequence[str], fmt: str, gain: float, stamp: str = "", comments: Sequence[str] = ()) -> None:
    """`base.mat` with one matrix `val` of int16 in MATLAB's version 4, and the WFDB header that points 24 bytes into it."""
    prologue = struct.pack("<5i", 30, *d_CT.shape, 0, 4) + b"val\0"
    base.with_suffix(".mat").write_bytes(prologue + np.ascontiguousarray(d_CT.T).astype("<i2").tobytes())
    lines = [signal_line(f"{base.name}.mat", fmt, gain, "mV", d_T, name) for d_T, name in zip(d_CT, names, strict=True)]
    header(base.with_suffix(".hea"), f"{base.name} {len(d_CT)} {fs:g} {d_CT.shape[1]}{stamp}", lines, comments)


def write_snomed(base: Path, index: int, seconds: float, seed: int, *, age: str, sex: str, dx: str, fs: float = 500.0) -> None:
    """A record of the CinC challenges 2020 and 2021."""
    base.parent.mkdir(parents=True, exist_ok=True)
    leads_CT, _ = twelve_leads(index, seconds, fs, seed)
    comments = (f"Age: {age}", f"Sex: {sex}", f"Dx: {dx}", "Rx: Unknown", "Hx: Unknown", "Sx: Unknown")
    write_mat4(base, digital(leads_CT, 1000), fs=fs, names=ECG_LEADS, fmt="16x1+24", gain=1000, comments=comments)


def write_212(base: Path, d_CT: np.ndarray, *, fs: float, names: Sequence[str], gain: float, comments: Sequence[str]) -> None:
    """Format 212: two samples of 12 bits in three bytes, as MIT-BIH has it."""
    x = np.pad(d_CT.T.ravel().astype(np.int64), (0, d_CT.size % 2)).reshape(-1, 2) & 0xFFF
    raw = np.stack([x[:, 0] & 255, x[:, 0] >> 8 | (x[:, 1] >> 8) << 4, x[:, 1] & 255], 1).astype(np.uint8)
    base.with_suffix(".dat").write_bytes(raw.tobytes())
    lines = [signal_line(f"{base.name}.dat", "212", gain, "mV", d_T, name) for d_T, name in zip(d_CT, names, strict=True)]
    header(base.with_suffix(".hea"), f"{base.name} {len(d_CT)} {fs:g} {d_CT.shape[1]}", lines, comments)


def write_marks(file: Path, sample_K: Sequence[int], symbols: Sequence[str], aux: Mapping[int, str] | None = None) -> None:
    """An annotation file in the MIT format: ascending samples, their symbols, and texts by position."""
    out, before = bytearray(), 0
    for position, (at, symbol) in enumerate(zip(sample_K, symbols, strict=True)):
        step, before = int(at) - before, int(at)
        if step > 1023:
            out += struct.pack("<HHH", 59 << 10, step >> 16, step & 0xFFFF)  # the high word first
            step = 0
        out += struct.pack("<H", _CODES[symbol] << 10 | step)
        if text := (aux or {}).get(position):
            raw = text.encode() + b"\0"
            out += struct.pack("<H", 63 << 10 | len(raw)) + raw + bytes(len(raw) % 2)
    file.write_bytes(bytes(out) + b"\0\0")
