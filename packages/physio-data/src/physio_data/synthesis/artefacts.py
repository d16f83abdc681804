"""Noise of known kind and place: each artefact changes a stretch of one channel and marks it."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag

import numpy as np

from physio_data.synthesis.config import SynthesisConfig
from physio_data.synthesis.rhythm import smooth_noise


class Noise(IntFlag):
    """Bits of a noise mask."""

    BASELINE = 1
    POWERLINE = 2
    MOTION = 4
    POP = 8
    CLIPPED = 16
    DROPOUT = 32
    GAP = 64


def add(clean_T: np.ndarray, fs: float, kind: str, rng: np.random.Generator, cfg: SynthesisConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return (signal_T float32, mask_T uint8). Strengths are in units of the pulse (PPG) or the QRS (ECG), both about 1."""
    x_T, mask_T = clean_T.astype(np.float64), np.zeros(len(clean_T), np.uint8)
    minutes = len(x_T) / fs / 60

    def stretches(bit: Noise, per_min: float, seconds: tuple[float, float]) -> Iterator[slice]:
        for _ in range(rng.poisson(per_min * minutes)):
            length = max(round(rng.uniform(*seconds) * fs), 2)
            start = int(rng.integers(0, max(len(x_T) - length, 1)))
            here = slice(start, min(start + length, len(x_T)))
            mask_T[here] |= np.uint8(bit)
            yield here

    for here in stretches(Noise.BASELINE, cfg.baseline_per_min, (5.0, 20.0)):
        n = here.stop - here.start
        x_T[here] += np.hanning(n) * rng.uniform(0.5, 2.0) * smooth_noise(rng, n, fs, 0.2, 0.06)
    if cfg.powerline_hz < fs / 2:  # a slower channel has lost it to its anti-alias filter
        for here in stretches(Noise.POWERLINE, cfg.powerline_per_min, (5.0, 30.0)):
            time_s = np.arange(here.stop - here.start) / fs
            x_T[here] += rng.uniform(0.05, 0.25) * np.sin(2 * np.pi * cfg.powerline_hz * time_s + rng.uniform(0, 2 * np.pi))
    for here in stretches(Noise.MOTION, cfg.motion_per_min, cfg.motion_seconds):
        n = here.stop - here.start
        centre_hz, width_hz = (rng.uniform(1.0, 2.5), 0.8) if kind == "ppg" else (rng.uniform(3.0, 8.0), 3.0)
        x_T[here] += np.sqrt(np.hanning(n)) * rng.uniform(*cfg.motion_strength) * smooth_noise(rng, n, fs, centre_hz, width_hz)
    for here in stretches(Noise.POP, cfg.pop_per_min, (0.5, 2.0)):
        time_s = np.arange(here.stop - here.start) / fs
        x_T[here] += rng.choice((-1.0, 1.0)) * rng.uniform(1.0, 4.0) * np.exp(-time_s / 0.25)
    _clip(x_T, mask_T, list(stretches(Noise(0), cfg.clip_per_min, (2.0, 10.0))), rng)
    for here in stretches(Noise.DROPOUT, cfg.dropout_per_min, (0.3, 3.0)):
        x_T[here] = x_T[here.start]
    for here in stretches(Noise.GAP, cfg.gap_per_min, (0.2, 3.0)):
        x_T[here] = np.nan
    return x_T.astype(np.float32), mask_T


def _clip(x_T: np.ndarray, mask_T: np.ndarray, where: list[slice], rng: np.random.Generator) -> None:
    """Rails that cut the top and bottom of a stretch's range; only the samples at a rail are marked."""
    for here in where:
        bottom, top = x_T[here].min(), x_T[here].max()
        share = rng.uniform(0.1, 0.4)
        low, high = bottom + share / 4 * (top - bottom), top - share * (top - bottom)
        mask_T[here] |= np.where((x_T[here] <= low) | (x_T[here] >= high), Noise.CLIPPED, 0).astype(np.uint8)
        x_T[here] = np.clip(x_T[here], low, high)
