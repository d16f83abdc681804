"""WFDB header files, parsed by the rules of https://wfdb.io/spec/header-files.html. One record line, one line a signal or a segment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DEFAULT_GAIN = 200.0  # digital units per mV where a header gives none; the specification's DEFGAIN
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RATE = re.compile(rf"^({_NUMBER})(?:/({_NUMBER})(?:\(({_NUMBER})\))?)?$")
_FORMAT = re.compile(r"^(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?$")
_GAIN = re.compile(rf"^({_NUMBER})(?:\(([+-]?\d+)\))?(?:/(\S+))?$")


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One signal line: where the samples lie and how they become physical, ``(sample - baseline) / gain`` in ``units``."""

    file: str  # "~" where a layout names a signal without samples
    fmt: int
    per_frame: int = 1
    skew: int = 0  # frames by which the signal lies later in the file
    offset: int = 0  # bytes before the first sample
    gain: float = DEFAULT_GAIN
    baseline: int = 0
    units: str = "mV"
    adc_zero: int = 0
    initial: int | None = None
    checksum: int | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Header:
    """A header: ``segments`` (name, frames) and no signals, or signals and no segments. ``fs`` is frames a second, None where it is not stated."""

    name: str
    fs: float | None
    n_frames: int | None  # None where the header states no length
    signals: tuple[Signal, ...] = ()
    segments: tuple[tuple[str, int], ...] = ()
    counter_fs: float | None = None  # ticks a second, of which the times in annotations and numerics of some databases count
    start_time: str = ""  # "hh:mm:ss[.fff]" and "dd/mm/yyyy" as written
    start_date: str = ""
    comments: tuple[str, ...] = ()


def read_header(path: str | Path) -> Header:
    """Parse a ``.hea`` file. The date may stand before the time or after it, as ``dd/mm/yyyy`` or ``yyyy-mm-dd`` (CinC 2017 writes the latter).

    ``ValueError`` names the file and the line that breaks the rules; a missing rate is left to the caller.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such header; a WFDB record needs its .hea file beside the signal file") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    comments = tuple(line.lstrip("#").strip() for _, line in lines if line.startswith("#"))
    body = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not body:
        raise ValueError(f"{path}: not a readable WFDB header (it has no record line); its first line is: name channels rate length time date")
    number, line = body.pop(0)
    record, n_signals, n_segments = _record_line(f"{path}, line {number}", line)
    wanted = n_signals if n_segments is None else n_segments
    if len(body) < wanted:
        kind = "signal" if n_segments is None else "segment"
        raise ValueError(f"{path}: not a readable WFDB header (it announces {wanted} {kind} lines and has {len(body)}); it may be cut off, fetch it again")
    if n_segments is None:
        return Header(**record, signals=tuple(_signal_line(f"{path}, line {i}", text) for i, text in body[:wanted]), comments=comments)
    return Header(**record, segments=tuple(_segment_line(f"{path}, line {i}", text) for i, text in body[:wanted]), comments=comments)


def _record_line(where: str, line: str) -> tuple[dict, int, int | None]:
    name, *fields = line.split()
    name, slash, segments = name.partition("/")
    if not fields or not fields[0].isdigit() or (slash and not segments.isdigit()):
        raise ValueError(f"{where}: not a readable WFDB header (record line {line!r}); a record line is: name channels rate length time date")
    rate, counter = None, None
    if len(fields) > 1:
        match = _RATE.match(fields[1])
        if match is None:
            raise ValueError(f"{where}: {fields[1]!r} is no sampling rate; a record line is: name channels rate length time date")
        rate, counter = float(match[1]), float(match[2]) if match[2] else None
    length = None
    rest = fields[2:]
    if rest and re.fullmatch(r"\d+", rest[0]):
        length = int(rest.pop(0)) or None  # 0: not stated
    time = next((field for field in rest if ":" in field), "")
    date = next((field for field in rest if "/" in field or field.count("-") == 2), "")
    if unknown := [field for field in rest if field not in (time, date)]:
        raise ValueError(f"{where}: {unknown[0]!r} is no length, time or date; a record line is: name channels rate length time date")
    record = {"name": name, "fs": rate, "counter_fs": counter, "n_frames": length, "start_time": time, "start_date": date}
    return record, int(fields[0]), int(segments) if slash else None


def _signal_line(where: str, line: str) -> Signal:
    fields = line.split(None, 8)
    match = _FORMAT.match(fields[1]) if len(fields) > 1 else None
    if match is None:
        raise ValueError(f"{where}: not a signal line ({line!r}); it is: file format gain resolution zero initial checksum blocksize name")
    stated: dict[str, object] = {}
    if len(fields) > 2:
        gain = _GAIN.match(fields[2])
        if gain is None:
            raise ValueError(f"{where}: {fields[2]!r} is no gain; it is written gain(baseline)/units")
        stated = {"gain": float(gain[1]) or DEFAULT_GAIN, "units": gain[3] or "mV"}
    integers = {}
    for name, field in zip(("resolution", "adc_zero", "initial", "checksum", "blocksize"), fields[3:8], strict=False):
        try:
            integers[name] = int(field)
        except ValueError:
            raise ValueError(f"{where}: {name} is {field!r}, not an integer; a signal line is: file format gain resolution zero initial checksum ...") from None
    adc_zero = integers.get("adc_zero", 0)
    baseline = int(gain[2]) if len(fields) > 2 and gain[2] else adc_zero
    return Signal(
        file=fields[0],
        fmt=int(match[1]),
        per_frame=int(match[2] or 1),
        skew=int(match[3] or 0),
        offset=int(match[4] or 0),
        baseline=baseline,
        adc_zero=adc_zero,
        initial=integers.get("initial"),
        checksum=integers.get("checksum"),
        name=fields[8].strip() if len(fields) > 8 else "",
        **stated,
    )


def _segment_line(where: str, line: str) -> tuple[str, int]:
    fields = line.split()
    if len(fields) != 2 or not fields[1].isdigit():
        raise ValueError(f"{where}: not a segment line ({line!r}); it is: name frames")
    return fields[0], int(fields[1])
