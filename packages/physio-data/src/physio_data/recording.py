"""A recording: channels on one clock, read lazily, with what is known about the subject.

Shape letters: C channels, T samples, N annotations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from physio_data.montage import canonical_eeg

Reader = Callable[[int, int], np.ndarray]

ECG_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
_CANONICAL = {name.lower(): name for name in (*ECG_LEADS, "MLI", "MLII", "MLIII", "PLETH", "RESP", "ABP", "PPG")}
_LEAD_WORDS = ("ecg", "ekg", "lead")


def canonical_lead(name: str) -> str:
    """The one spelling of a channel's name: ``AVR`` -> ``aVR``, ``ML II`` and ``mlii`` -> ``MLII``, ``ECG Lead V5`` -> ``V5``, ``EEG FPZ-CZ`` -> ``Fpz-Cz``.

    Case, blanks, hyphens, underscores and a leading "ECG"/"lead" do not matter; EEG positions as in ``montage.canonical_eeg``. An unknown name
    stays as written.
    """
    stripped = name.strip()
    key = stripped.lower()
    for separator in (" ", "-", "_", "."):
        key = key.replace(separator, "")
    if key in _CANONICAL:
        return _CANONICAL[key]
    for word in _LEAD_WORDS:
        key = key.removeprefix(word)
    return _CANONICAL.get(key) or canonical_eeg(stripped) or stripped


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Point annotations of a recording, sorted by time.

    ``time_s`` (N,) float64 counts seconds from the record's first sample, ``symbol`` (N,) and ``aux`` (N,) are strings
    in the file's own code (WFDB: ``N``, ``V``, ``+`` with aux ``(AFIB``).
    """

    time_s: np.ndarray
    symbol: np.ndarray
    aux: np.ndarray

    def __post_init__(self) -> None:
        time_s = np.asarray(self.time_s, np.float64)
        symbol, aux = np.asarray(self.symbol, np.str_), np.asarray(self.aux, np.str_)
        if not (time_s.shape == symbol.shape == aux.shape == (time_s.size,)):
            raise ValueError(f"time_s, symbol and aux must be one-dimensional and equally long, got shapes {time_s.shape}, {symbol.shape}, {aux.shape}")
        if not np.isfinite(time_s).all():
            raise ValueError(f"time_s must be finite, got {time_s[~np.isfinite(time_s)][0]}; drop such marks")
        order = np.argsort(time_s, kind="stable")
        object.__setattr__(self, "time_s", time_s[order])
        object.__setattr__(self, "symbol", symbol[order])
        object.__setattr__(self, "aux", aux[order])

    def __len__(self) -> int:
        return self.time_s.size

    def between(self, start_s: float, stop_s: float) -> Annotations:
        """The annotations in [start_s, stop_s), times still counted from the record's first sample."""
        lo, hi = np.searchsorted(self.time_s, [start_s, stop_s])
        return Annotations(time_s=self.time_s[lo:hi], symbol=self.symbol[lo:hi], aux=self.aux[lo:hi])


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Channels that share one sampling rate, read on demand.

    ``fs`` is in Hz, ``units`` has one entry per channel (``mV`` for ECG, ``uV`` for EEG, ``a.u.`` for PPG), ``start_s`` is the
    first sample's time on the clock shared by recordings of one subject, ``age`` is in years (NaN unknown), ``sex`` is "F", "M"
    or "" (unknown). ``reader(start, stop)`` returns (C, stop - start) float32 in physical units, NaN where the file has a gap;
    it is called only by ``read``, so a day-long record costs no memory until a range is asked for. ``reader`` must be picklable
    for ``prepare`` to hand recordings to other processes.
    """

    fs: float
    channels: tuple[str, ...]
    units: tuple[str, ...]
    n_samples: int
    subject: str
    record: str
    start_s: float = 0.0
    annotations: Annotations | None = None
    labels: Mapping[str, float | int | str] = field(default_factory=dict)
    age: float = math.nan
    sex: str = ""
    reader: Reader = field(repr=False)

    def __post_init__(self) -> None:
        for name in ("channels", "units"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be a sequence of names, got the string {getattr(self, name)!r}; write ({getattr(self, name)!r},)")
            object.__setattr__(self, name, tuple(str(value) for value in getattr(self, name)))
        object.__setattr__(self, "fs", float(self.fs))
        if not (math.isfinite(self.fs) and self.fs > 0):
            raise ValueError(f"fs must be a positive number of Hz, got {self.fs} for record {self.record!r}")
        if not self.channels or len(self.channels) != len(self.units):
            raise ValueError(f"record {self.record!r} needs at least one channel and one unit per channel, got {self.channels} with units {self.units}")
        if self.n_samples < 0:
            raise ValueError(f"n_samples must not be negative, got {self.n_samples} for record {self.record!r}")
        if self.sex not in ("F", "M", ""):
            raise ValueError(f"sex must be 'F', 'M' or '' (unknown), got {self.sex!r} for record {self.record!r}")
        if not isinstance(self.labels, dict):
            object.__setattr__(self, "labels", dict(self.labels))

    @classmethod
    def from_array(cls, signal_CT: np.ndarray, *, fs: float, channels: Sequence[str], units: Sequence[str], subject: str, record: str, **more) -> Recording:
        """A recording of samples already in memory: (C, T), any real dtype. ``more`` are other fields of ``Recording``."""
        signal_CT = np.asarray(signal_CT, np.float32)
        if signal_CT.ndim != 2 or signal_CT.shape[0] != len(channels):
            raise ValueError(f"signal_CT must be (channels, samples) = ({len(channels)}, T), got shape {signal_CT.shape}; transpose or add an axis explicitly")
        return cls(
            fs=fs,
            channels=tuple(channels),
            units=tuple(units),
            n_samples=signal_CT.shape[1],
            subject=subject,
            record=record,
            reader=ArrayReader(signal_CT),
            **more,
        )

    @property
    def duration_s(self) -> float:
        return self.n_samples / self.fs

    @property
    def signal_CT(self) -> np.ndarray:
        """The whole signal (C, T) float32; use ``read`` for a range of a long record."""
        return self.read()

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Samples [start, stop) of every channel: (C, stop - start) float32, NaN where the file has a gap."""
        stop = self.n_samples if stop is None else stop
        if not 0 <= start <= stop <= self.n_samples:
            raise ValueError(f"start, stop must satisfy 0 <= start <= stop <= {self.n_samples} (samples of record {self.record!r}), got {start}, {stop}")
        if start == stop:
            return np.empty((len(self.channels), 0), np.float32)
        x_CT = np.asarray(self.reader(int(start), int(stop)), np.float32)
        if x_CT.shape != (len(self.channels), stop - start):
            raise ValueError(
                f"record {self.record!r}: its file gave samples of shape {x_CT.shape} for [{start}, {stop}), expected {(len(self.channels), stop - start)}"
            )
        return x_CT

    def select(self, names: Sequence[str]) -> Recording:
        """The same recording with only these channels, in this order; names match regardless of case and alias (``canonical_lead``).

        An exact spelling wins over an alias. The selected channels carry their canonical names, so that records of different
        spelling agree. ``ValueError`` names what is there when a channel is absent, or when a name fits two channels.
        """
        if isinstance(names, str):
            raise ValueError(f"names must be a sequence of channel names, got the string {names!r}; write ({names!r},)")
        if not names:
            raise ValueError(f"names must hold at least one channel; record {self.record!r} has {', '.join(self.channels)}")
        rows = tuple(self._row(name) for name in names)
        if len(set(rows)) != len(rows):
            raise ValueError(f"names must not repeat a channel, got {tuple(names)} for record {self.record!r}")
        return replace(
            self,
            channels=tuple(canonical_lead(self.channels[row]) for row in rows),
            units=tuple(self.units[row] for row in rows),
            reader=RowReader(self.reader, rows),
        )

    def _row(self, name: str) -> int:
        if self.channels.count(name) == 1:
            return self.channels.index(name)
        wanted = canonical_lead(name).lower()
        rows = [row for row, channel in enumerate(self.channels) if canonical_lead(channel).lower() == wanted]
        if len(rows) == 1:
            return rows[0]
        if rows:
            raise ValueError(f"record {self.record!r} has {len(rows)} channels that {name!r} fits ({', '.join(self.channels)}); give the exact spelling of one")
        raise ValueError(f"record {self.record!r} has no channel {name!r}; it has {', '.join(self.channels)}; choose leads among these or leave the record out")


@dataclass(frozen=True)
class ArrayReader:
    """Reads from an array in memory."""

    signal_CT: np.ndarray

    def __call__(self, start: int, stop: int) -> np.ndarray:
        return self.signal_CT[:, start:stop]


@dataclass(frozen=True)
class RowReader:
    """Reads some rows of another reader."""

    reader: Reader
    rows: tuple[int, ...]

    def __call__(self, start: int, stop: int) -> np.ndarray:
        return self.reader(start, stop)[list(self.rows)]
