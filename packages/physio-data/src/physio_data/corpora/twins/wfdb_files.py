"""WFDB files of the twins: headers as text, samples in format 16 or, in FLAC, format 516 (https://wfdb.io/spec/header-files.html)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

MISSING = -(2**15)


def digital(x_CT: np.ndarray, gain: float) -> np.ndarray:
    """(C, T) int16 of physical values; NaN becomes the mark of a missing sample."""
    return np.where(np.isfinite(x_CT), np.rint(np.nan_to_num(x_CT) * gain), MISSING).astype(np.int16)


def header(path: Path, first: str, lines: Sequence[str], comments: Sequence[str] = ()) -> None:
    """A header file from its record line, the lines of signals or segments, and comments."""
    path.write_text("\n".join([first, *lines, *(f"# {comment}" for comment in comments)]) + "\n")


def signal_line(file: str, fmt: str, gain: float, unit: str, d_T: np.ndarray, name: str) -> str:
    """A signal's line; first value and checksum are those of the digital samples `d_T` in file order."""
    checksum = int(np.sum(d_T, dtype=np.int64)) & 0xFFFF
    checksum -= 0x10000 if checksum >= 0x8000 else 0
    return f"{file} {fmt} {gain:g}(0)/{unit} 16 0 {int(d_T[0])} {checksum} 0 {name}"


def write_plain(path: Path, d_CT: np.ndarray) -> None:
    """Format 16: samples of all channels interleaved, little-endian."""
    np.ascontiguousarray(d_CT.T).astype("<i2").tofile(path)


def write_flac(path: Path, d_CT: np.ndarray, fs: int = 1000) -> None:
    """Format 516: one FLAC stream, a WFDB channel each; needs soundfile (extra `wfdb`). The rate in the stream is nominal."""
    import soundfile

    soundfile.write(path, np.ascontiguousarray(d_CT.T), fs, subtype="PCM_16", format="FLAC")
