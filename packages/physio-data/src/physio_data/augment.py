"""Augmentations of windows, in NumPy on the host: what a view becomes depends on (seed, epoch, index, view) and on nothing else.

Each is a frozen dataclass with its probability `p`, called as `(x_CT, fs, rng) -> x_CT` on float64 windows; sizes are relative to a channel's
standard deviation, so unit and offset do not matter. PRESETS holds the lists of the systems that this house unifies. Letters: B windows, C
channels, T samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from physio_data.filters import bandpass, lowpass
from physio_data.papagei import chebyshev


class Augmentation(Protocol):
    """One way to change a window; `p` is how often it happens."""

    p: float

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray: ...


def augment(x_BCT: np.ndarray, fs: float, steps: Sequence[Augmentation], *, seed: int, epoch: int, index_B: Sequence[int], view: int = 0) -> np.ndarray:
    """Each window with the steps applied in order, each with its probability: (B, C, T), dtype kept, the input untouched.

    `index_B` are the windows' store rows: a window's draws are keyed by (seed, epoch, index, view), so they are the same in any batch, worker or rank
    and after a resume. Raises ValueError for another shape, samples that are not finite, and a negative seed, epoch or view.
    """
    x_BCT = np.asarray(x_BCT)
    if x_BCT.ndim != 3 or len(x_BCT) != len(index_B):
        raise ValueError(f"x_BCT must be (windows, channels, samples) with an index each, got shape {x_BCT.shape} and {len(index_B)} indices")
    if min(seed, epoch, view) < 0:
        raise ValueError(f"seed, epoch and view must not be negative, got {seed}, {epoch}, {view}")
    bad = np.flatnonzero(~np.isfinite(x_BCT).all((1, 2)))
    if len(bad):
        raise ValueError(f"x_BCT has samples that are not finite, first in window {bad[0]}; leave windows with gaps out")
    out_BCT = x_BCT.astype(np.float64)
    for b, index in enumerate(index_B):
        rng = generator(seed, epoch, int(index), view)
        for step in steps:
            if rng.random() < step.p:
                out_BCT[b] = step(out_BCT[b], fs, rng)
    return out_BCT.astype(x_BCT.dtype if x_BCT.dtype.kind == "f" else np.float32)


def generator(seed: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """The counter-based stream (Philox, Salmon et al. 2011) of one view of one window in one epoch."""
    key = int.from_bytes(hashlib.sha256(f"augment|{seed}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, view, epoch, index % 2**64]))


def then_filter(x_BCT: np.ndarray, fs: float, band: tuple[float | None, float | None] | None, kind: str = "butterworth") -> np.ndarray:
    """The filter that a `--raw` store still waits for, after its waveforms were augmented: `band` and `filter` stand in its manifest."""
    if band is None:
        return np.asarray(x_BCT)
    if kind == "papagei":
        return chebyshev(x_BCT, fs)
    return bandpass(x_BCT, fs, *band)


def _check(name: str, p: float, **ranges: tuple[float, float]) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: p must lie in [0, 1], got {p}")
    for argument, (low, high) in ranges.items():
        if not low <= high:
            raise ValueError(f"{name}: {argument} must be (low, high), got {(low, high)}")


def _sd(x_CT: np.ndarray) -> np.ndarray:
    return x_CT.std(axis=1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class WhiteNoise:
    """Gaussian noise of a share of each channel's standard deviation."""

    p: float = 0.5
    sd: tuple[float, float] = (0.05, 0.05)

    def __post_init__(self) -> None:
        _check("WhiteNoise", self.p, sd=self.sd)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        return x_CT + rng.uniform(*self.sd) * _sd(x_CT) * rng.standard_normal(x_CT.shape)


@dataclass(frozen=True, kw_only=True)
class BandNoise:
    """Pink noise inside a band at a drawn signal-to-noise ratio: noise that a band-pass does not take away."""

    p: float = 0.5
    snr_db: tuple[float, float] = (10.0, 25.0)
    band_hz: tuple[float, float] = (0.7, 9.0)

    def __post_init__(self) -> None:
        _check("BandNoise", self.p, snr_db=self.snr_db, band_hz=self.band_hz)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        n = x_CT.shape[1]
        hz_F = np.fft.rfftfreq(n, 1 / fs)
        shape_F = np.where((hz_F >= self.band_hz[0]) & (hz_F <= self.band_hz[1]), 1 / np.sqrt(np.maximum(hz_F, 1e-9)), 0.0)
        noise_CT = np.fft.irfft(np.fft.rfft(rng.standard_normal(x_CT.shape), axis=1) * shape_F, n, axis=1)
        size_C1 = _sd(noise_CT)
        gain = 10 ** (-rng.uniform(*self.snr_db) / 20)
        return x_CT + gain * _sd(x_CT) * noise_CT / np.where(size_C1 > 0, size_C1, 1.0)


@dataclass(frozen=True, kw_only=True)
class BaselineWander:
    """A slow sine on every channel: breathing and contact, what a band-pass from 0.5 Hz leaves of it."""

    p: float = 0.5
    hz: tuple[float, float] = (0.5, 0.8)
    size: tuple[float, float] = (0.05, 0.3)  # of the standard deviation

    def __post_init__(self) -> None:
        _check("BaselineWander", self.p, hz=self.hz, size=self.size)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        hz, phase, size = rng.uniform(*self.hz), rng.uniform(0, 2 * np.pi), rng.uniform(*self.size)
        return x_CT + size * _sd(x_CT) * np.sin(2 * np.pi * hz * np.arange(x_CT.shape[1]) / fs + phase)


@dataclass(frozen=True, kw_only=True)
class HalfSines:
    """One sine of whole half-periods over the window, the same on all channels, of a share of the window's largest absolute value."""

    p: float = 0.25
    half_periods: tuple[int, int] = (1, 4)
    size: float = 0.07

    def __post_init__(self) -> None:
        _check("HalfSines", self.p, half_periods=self.half_periods)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        n_half = rng.integers(self.half_periods[0], self.half_periods[1] + 1)
        return x_CT + self.size * np.abs(x_CT).max() * np.sin(np.pi * n_half * np.arange(x_CT.shape[1]) / x_CT.shape[1])


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Each channel times a drawn factor; nothing where windows are z-scored afterwards."""

    p: float = 0.5
    factor: tuple[float, float] = (0.8, 1.2)

    def __post_init__(self) -> None:
        _check("Scale", self.p, factor=self.factor)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        return x_CT * rng.uniform(*self.factor, size=(len(x_CT), 1))


@dataclass(frozen=True, kw_only=True)
class Negate:
    """The window upside down; it destroys a pulse's morphology, and is there because PaPaGei-P is trained with it."""

    p: float = 0.2

    def __post_init__(self) -> None:
        _check("Negate", self.p)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        return -x_CT


@dataclass(frozen=True, kw_only=True)
class Reverse:
    """The window backwards in time; as `Negate`."""

    p: float = 0.2

    def __post_init__(self) -> None:
        _check("Reverse", self.p)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        return x_CT[:, ::-1].copy()


@dataclass(frozen=True, kw_only=True)
class CropStretch:
    """A part of the window, stretched over its whole length by linear interpolation."""

    p: float = 0.5
    keep: tuple[float, float] = (0.5, 1.0)  # share of the window

    def __post_init__(self) -> None:
        _check("CropStretch", self.p, keep=self.keep)
        if not 0 < self.keep[0] <= self.keep[1] <= 1:
            raise ValueError(f"CropStretch: keep must lie in (0, 1], got {self.keep}")

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        n = x_CT.shape[1]
        span = (n - 1) * rng.uniform(*self.keep)
        start = rng.uniform(0, n - 1 - span)
        return _at(x_CT, np.linspace(start, start + span, n))


@dataclass(frozen=True, kw_only=True)
class Resample:
    """The time axis stretched by a few percent about its middle, ends repeated: a small change of the heart rate."""

    p: float = 0.0  # off unless asked for: it changes the rate that may be the label
    factor: tuple[float, float] = (0.98, 1.02)

    def __post_init__(self) -> None:
        _check("Resample", self.p, factor=self.factor)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        middle = (x_CT.shape[1] - 1) / 2
        return _at(x_CT, np.clip(middle + (np.arange(x_CT.shape[1]) - middle) * rng.uniform(*self.factor), 0, x_CT.shape[1] - 1))


@dataclass(frozen=True, kw_only=True)
class Shift:
    """The window turned in time by up to `seconds` either way; what leaves at one end comes in at the other."""

    p: float = 0.5
    seconds: float = 0.8

    def __post_init__(self) -> None:
        _check("Shift", self.p, seconds=(0.0, self.seconds))

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        reach = round(self.seconds * fs)
        return np.roll(x_CT, rng.integers(-reach, reach + 1), axis=1)


@dataclass(frozen=True, kw_only=True)
class SoftClip:
    """A saturating sensor under pressure: values beyond a drawn number of standard deviations are bent by tanh."""

    p: float = 0.3
    knee: tuple[float, float] = (1.0, 2.0)  # standard deviations

    def __post_init__(self) -> None:
        _check("SoftClip", self.p, knee=self.knee)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        mean_C1, limit_C1 = x_CT.mean(axis=1, keepdims=True), rng.uniform(*self.knee) * _sd(x_CT)
        return mean_C1 + limit_C1 * np.tanh((x_CT - mean_C1) / np.where(limit_C1 > 0, limit_C1, 1.0))


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Short losses of contact, bridged by a straight line."""

    p: float = 0.3
    count: tuple[int, int] = (1, 3)
    seconds: tuple[float, float] = (0.05, 0.3)

    def __post_init__(self) -> None:
        _check("Dropout", self.p, count=self.count, seconds=self.seconds)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        x_CT, n = x_CT.copy(), x_CT.shape[1]
        for _ in range(rng.integers(self.count[0], self.count[1] + 1)):
            length = min(max(2, round(rng.uniform(*self.seconds) * fs)), n - 1)
            start = rng.integers(0, n - length)
            share_L = np.linspace(0, 1, length + 1)
            x_CT[:, start : start + length + 1] = x_CT[:, [start]] * (1 - share_L) + x_CT[:, [start + length]] * share_L
        return x_CT


@dataclass(frozen=True, kw_only=True)
class Smooth:
    """A second-order low-pass, forward and backward, at a drawn frequency."""

    p: float = 0.3
    hz: tuple[float, float] = (5.0, 9.0)

    def __post_init__(self) -> None:
        _check("Smooth", self.p, hz=self.hz)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        return lowpass(x_CT, fs, min(rng.uniform(*self.hz), 0.45 * fs), order=2)


@dataclass(frozen=True, kw_only=True)
class DropChannel:
    """One channel set to its mean; nothing for a single channel."""

    p: float = 0.2

    def __post_init__(self) -> None:
        _check("DropChannel", self.p)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        if len(x_CT) > 1:
            x_CT = x_CT.copy()
            gone = rng.integers(len(x_CT))
            x_CT[gone] = x_CT[gone].mean()
        return x_CT


@dataclass(frozen=True, kw_only=True)
class ShuffleChannels:
    """Channels in a drawn order; only for models that do not tell channels apart by place."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _check("ShuffleChannels", self.p)

    def __call__(self, x_CT: np.ndarray, fs: float, rng: np.random.Generator) -> np.ndarray:
        return x_CT[rng.permutation(len(x_CT))]


def _at(x_CT: np.ndarray, place_T: np.ndarray) -> np.ndarray:
    """Values at places in samples, linear between samples."""
    left_T = np.minimum(place_T.astype(np.int64), x_CT.shape[1] - 2)
    part_T = place_T - left_T
    return x_CT[:, left_T] * (1 - part_T) + x_CT[:, left_T + 1] * part_T


PRESETS: dict[str, tuple[Augmentation, ...]] = {
    # PaPaGei-P's views (Pillai et al. 2025), probabilities of its training script
    "papagei": (WhiteNoise(p=0.35, sd=(0.0, 0.2)), Negate(p=0.2), Reverse(p=0.2), Scale(p=0.4), CropStretch(p=0.5)),
    # ST-SAE's pairs: what a band-pass and a z-score leave to change, and a pulse's morphology survives
    "st_sae": (BandNoise(p=0.5), BaselineWander(p=0.5), Shift(p=0.5), SoftClip(p=0.3), Dropout(p=0.3), Smooth(p=0.3)),
    # CWT-MAE's fine-tuning; its roll is 20 samples at 100 Hz
    "cwt_mae": (Scale(p=0.5), WhiteNoise(p=0.5, sd=(0.02, 0.02)), Shift(p=0.5, seconds=0.2), DropChannel(p=0.2), ShuffleChannels(p=0.5)),
    # ecg_encoder's loader; there the sine is drawn only where the noise is, a quarter of a quarter
    "ecg_encoder": (WhiteNoise(p=0.25, sd=(0.05, 0.05)), HalfSines(p=0.0625)),
}
