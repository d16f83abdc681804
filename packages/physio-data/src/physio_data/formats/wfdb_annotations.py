"""WFDB annotation files in the MIT format, by https://wfdb.io/spec/annotation-files.html. N annotations."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from physio_data.recording import Annotations

# the symbol of each annotation code; https://wfdb.io/annotations.html and ecgcodes.h of the WFDB library
SYMBOLS = dict(enumerate(" NLRaVFJASEj/Q~")) | {16: "|", 18: "s", 19: "T", 20: "*", 21: "D", 22: '"', 23: "=", 24: "p", 25: "B", 26: "^", 27: "t", 28: "+"}
SYMBOLS |= dict(zip(range(29, 42), "u?![]en@xf()r", strict=True))
_SKIP, _NUM, _SUB, _CHN, _AUX, _NOTE = 59, 60, 61, 62, 63, 22
_RESOLUTION = re.compile(r"time resolution:\s*([0-9.]+)")
_DEFINITION = re.compile(r"^(\d+)\s+(\S+)")
_DEFINITIONS_BEGIN, _DEFINITIONS_END = "## annotation type definitions", "## end of definitions"


def read_annotation_file(path: Path, fs: float | None) -> Annotations:
    """All annotations of a file; ``fs`` (ticks a second) counts where the file states no time resolution of its own.

    Codes above 41 get the symbol that the file defines for them, else their number. ``ValueError`` names the file that is cut off or of
    another format, or without any rate.
    """
    marks = [mark for mark in zip(*_decode(path, path.read_bytes()), strict=True) if mark[1]]  # code 0 only moves the clock
    resolution, symbols, n_preamble = None, dict(SYMBOLS), 0
    defining = False
    for at, kind, note in marks:  # notes at the very beginning speak of the file
        if at != 0 or kind != _NOTE or not (note.startswith("##") or defining):
            break
        n_preamble += 1
        if match := _RESOLUTION.search(note):
            resolution = float(match[1])
        elif defining and (match := _DEFINITION.match(note)):
            symbols[int(match[1])] = match[2]
        defining = note != _DEFINITIONS_END and (defining or note.startswith(_DEFINITIONS_BEGIN))
    rate = resolution or fs
    if not rate:
        raise ValueError(f"{path}: neither this file nor a header states its rate; give it with --source-fs HZ (source_fs=...)")
    marks = marks[n_preamble:]
    return Annotations(
        time_s=np.array([at for at, _, _ in marks], np.float64) / rate,
        symbol=np.array([symbols.get(kind, str(kind)) for _, kind, _ in marks], np.str_),
        aux=np.array([note for _, _, note in marks], np.str_),
    )


def _decode(path: Path, raw: bytes) -> tuple[list[int], list[int], list[str]]:
    """Ticks from the record's first sample, codes and auxiliary texts. A word is 6 bits of code above 10 bits of interval."""
    words = np.frombuffer(raw[: len(raw) // 2 * 2], "<u2").tolist()
    sample: list[int] = []
    code: list[int] = []
    aux: list[str] = []
    now, i = 0, 0
    while i < len(words):
        kind, low = words[i] >> 10, words[i] & 1023
        i += 1
        if kind == 0 and low == 0:
            return sample, code, aux
        if kind == _SKIP:
            if i + 2 > len(words):
                break
            jump = words[i] << 16 | words[i + 1]  # the high word first
            now += jump - (1 << 32) if jump >> 31 else jump
            i += 2
        elif kind == _AUX:
            if not aux or 2 * i + low > len(raw):
                break
            aux[-1] = raw[2 * i : 2 * i + low].rstrip(b"\x00").decode("utf-8", "replace").strip()
            i += (low + 1) // 2
        elif kind not in (_NUM, _SUB, _CHN):
            if kind > 49:
                raise ValueError(f"{path}: not a readable annotation file (code {kind} in word {i - 1}); fetch it again")
            now += low
            sample.append(now)
            code.append(kind)
            aux.append("")
    raise ValueError(f"{path}: not a readable annotation file (it ends before its end mark, after {len(sample)} annotations); fetch it again")
