"""A cohort of synthetic subjects, one at a time, each with the truth about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from physio_data.synthesis import artefacts
from physio_data.synthesis.config import SynthesisConfig
from physio_data.synthesis.rhythm import breath_at, draw_rhythm, draw_traits, fibrillating
from physio_data.synthesis.waves import arrival, ecg, ppg

UNITS = {"ECG": "mV", "PPG": "a.u."}


@dataclass(frozen=True, kw_only=True)
class SyntheticSubject:
    """One subject's recording and the truth about it."""

    subject: str
    age: float  # years
    sex: str  # "F" or "M"
    rate_bpm: float  # resting rate; that of a window follows from `beat_s`
    stiffness: float  # pulse-wave velocity, m/s
    fs: float
    channels: tuple[str, ...]
    units: tuple[str, ...]
    signal_CT: np.ndarray  # float32; NaN only in gaps
    noise_CT: np.ndarray  # uint8, bits of `Noise`
    beat_s: np.ndarray  # (K,) float64, the R times
    pulse_s: np.ndarray  # (K,) float64, when the beat's pulse begins to rise
    beat_type: np.ndarray  # (K,) "N", "V" (premature ventricular) or "A" (premature atrial)
    af_T: np.ndarray  # bool, fibrillation
    respiration_T: np.ndarray  # float32, -1 (out) to 1 (in)


def synthesize(
    n_subjects: int, minutes: float, fs: float, channels: Sequence[str] = ("PPG",), seed: int = 0, cfg: SynthesisConfig | None = None
) -> Iterator[SyntheticSubject]:
    """Yield subjects 0 to `n_subjects - 1` of the cohort `seed`, each `minutes` long at `fs` Hz; see `synthesize_subject`."""
    if n_subjects < 1:
        raise ValueError(f"n_subjects must be at least 1, got {n_subjects}")
    for index in range(n_subjects):
        yield synthesize_subject(index, minutes, fs, channels, seed, cfg)


def synthesize_subject(
    index: int, minutes: float, fs: float, channels: Sequence[str] = ("PPG",), seed: int = 0, cfg: SynthesisConfig | None = None
) -> SyntheticSubject:
    """Subject `index` of the cohort `seed`: signals of `channels` ("ECG" in mV, "PPG" in a.u.) as (C, T) float32, with their truth.

    Raises ValueError for an unknown channel, a rate below 20 Hz (PPG) or 100 Hz (ECG), and a recording shorter than two seconds.
    """
    cfg = cfg or SynthesisConfig()
    _check(index, minutes, fs, channels, seed)
    n_samples = round(minutes * 60 * fs)
    traits = draw_traits(_stream(seed, index, 0), cfg)
    rhythm = draw_rhythm(_stream(seed, index, 1), traits, n_samples / fs, cfg)
    arrival_K = arrival(_stream(seed, index, 2), rhythm, traits)
    breath_T = breath_at(_stream(seed, index, 1), traits, np.arange(n_samples) / fs, n_samples / fs)
    af_T = fibrillating(rhythm, n_samples, fs)

    signal_CT = np.empty((len(channels), n_samples), np.float32)
    noise_CT = np.empty((len(channels), n_samples), np.uint8)
    for c, name in enumerate(channels):
        rng = _stream(seed, index, 3 + list(UNITS).index(name))
        clean_T = ecg(rng, rhythm, breath_T, af_T, fs, cfg) if name == "ECG" else ppg(rng, rhythm, rhythm.time_K + arrival_K, breath_T, traits, fs, cfg)
        kind = "ecg" if name == "ECG" else "ppg"
        signal_CT[c], noise_CT[c] = artefacts.add(clean_T, fs, kind, _stream(seed, index, 3 + len(UNITS) + list(UNITS).index(name)), cfg)

    inside_K = (rhythm.time_K >= 0) & (rhythm.time_K < n_samples / fs)
    return SyntheticSubject(
        subject=f"synthetic:{seed}-{index:05d}",
        age=traits.age,
        sex=traits.sex,
        rate_bpm=traits.rate_bpm,
        stiffness=traits.stiffness,
        fs=float(fs),
        channels=tuple(channels),
        units=tuple(UNITS[name] for name in channels),
        signal_CT=signal_CT,
        noise_CT=noise_CT,
        beat_s=rhythm.time_K[inside_K],
        pulse_s=(rhythm.time_K + arrival_K)[inside_K],
        beat_type=rhythm.type_K[inside_K],
        af_T=af_T,
        respiration_T=breath_T.astype(np.float32),
    )


def _check(index: int, minutes: float, fs: float, channels: Sequence[str], seed: int) -> None:
    if isinstance(channels, str) or not channels or len(set(channels)) != len(channels) or not set(channels) <= set(UNITS):
        raise ValueError(f"channels must be distinct names of {tuple(UNITS)}, got {channels!r}")
    lowest = 100.0 if "ECG" in channels else 20.0
    if not lowest <= fs < np.inf:
        raise ValueError(f"fs must be at least {lowest:g} Hz for {tuple(channels)}, got {fs}")
    if not 2 <= minutes * 60 < np.inf:
        raise ValueError(f"minutes must give at least two seconds, got {minutes}")
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must not be negative, got index={index}, seed={seed}")


def _stream(seed: int, index: int, part: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, part)))
