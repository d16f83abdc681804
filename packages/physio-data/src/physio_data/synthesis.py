"""A documented generator of coupled ECG and PPG with known truth. Letters: K beats, L samples around a beat, C channels, T samples.

Subject `i` is keyed by (seed, i): the same person comes out whatever the number of subjects, and the same PPG whether or not the ECG is asked for.
Traits, rhythm, each channel and its noise have random streams of their own, so a change of noise leaves the beats alone.

Heartbeats: a tachogram of slow (0.1 Hz) and respiratory variability (McSharry et al. 2003, IEEE TBME 50:289, eq. 3) is
integrated to beat times; premature beats and fibrillation then change single intervals. ECG: the dynamical model of the same
paper (eq. 1-2) on its limit cycle, in closed form. PPG: every beat sends a pulse that arrives sooner, and whose reflected wave
returns sooner and higher, in a stiffer arterial tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from physio_data import _artefacts as artefacts
from physio_data._artefacts import Noise, smooth_noise

__all__ = ["Noise", "SynthesisConfig", "SyntheticSubject", "synthesize", "synthesize_subject"]

UNITS = {"ECG": "mV", "PPG": "a.u."}
_LEAD_IN_S = 4.0  # beats before and after the recording, so that its edges look like its middle


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """Prevalences and strengths of `synthesize`. Pairs are (low, high) bounds of a uniform draw, per subject unless said otherwise."""

    age_years: tuple[float, float] = (20.0, 85.0)
    female: float = 0.5  # fraction of subjects
    rate_bpm: tuple[float, float] = (52.0, 96.0)  # resting rate
    respiration_hz: tuple[float, float] = (0.15, 0.36)
    rsa_depth: tuple[float, float] = (0.02, 0.10)  # respiratory sinus arrhythmia, peak change of RR as a fraction; falls with age
    slow_sd: tuple[float, float] = (0.010, 0.030)  # standard deviation of the 0.1-Hz rhythm and of the drift, as a fraction of RR

    pvc_per_min: float = 1.6  # mean over subjects
    pvc_shape: float = 0.7  # shape of the gamma distribution of a subject's rate; small values crowd the beats into few subjects
    pvc_cluster: float = 1.0  # log standard deviation of that rate over time within a subject
    pvc_coupling: tuple[float, float] = (0.50, 0.78)  # per beat: interval before it as a fraction of the sinus interval
    pvc_pulse: tuple[float, float] = (0.15, 0.75)  # per beat: what is left of the pulse beyond the shorter filling
    pvc_interpolated: float = 0.08  # fraction of them that fall between two sinus beats without a pause
    pac_per_min: float = 1.0  # premature atrial beats: the distractor, mean over subjects
    pac_shape: float = 0.7
    pac_coupling: tuple[float, float] = (0.62, 0.92)
    pac_pause: tuple[float, float] = (1.0, 1.25)  # per beat: interval after it as a fraction of the sinus interval
    af_subjects: float = 0.10  # fraction of subjects with fibrillation
    af_burden: tuple[float, float] = (0.3, 1.0)  # fraction of their time spent in it
    af_rate_bpm: tuple[float, float] = (70.0, 125.0)
    af_cv: tuple[float, float] = (0.14, 0.28)  # coefficient of variation of its intervals

    filling: float = 0.8  # how far the pulse amplitude follows the filling time: 0 not at all, 1 in proportion
    amplitude_jitter: float = 0.06  # log standard deviation of the pulse amplitude from beat to beat
    shape_spread: float = 1.0  # scales how much pulse and QRS shapes differ between subjects
    stiffness_spread_m_s: float = 0.9  # standard deviation of pulse-wave velocity about its mean at an age
    respiratory_modulation: tuple[float, float] = (0.03, 0.2)  # of the pulse amplitude
    respiratory_baseline: tuple[float, float] = (0.02, 0.2)  # in pulse amplitudes
    sensor_noise: tuple[float, float] = (0.01, 0.05)  # white, everywhere, in pulse amplitudes; not part of the noise mask

    baseline_per_min: float = 0.4  # episodes of strong wander
    powerline_per_min: float = 0.2  # only where the rate can hold it
    powerline_hz: float = 50.0
    motion_per_min: float = 1.0
    motion_strength: tuple[float, float] = (0.2, 1.2)  # per burst, standard deviation in pulse (PPG) or QRS (ECG) amplitudes
    motion_seconds: tuple[float, float] = (0.6, 4.0)
    pop_per_min: float = 0.3
    clip_per_min: float = 0.1
    dropout_per_min: float = 0.05  # the sensor holds one value
    gap_per_min: float = 0.0  # samples are NaN

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # plain values from a file
                object.__setattr__(self, field.name, value := tuple(value))
            if isinstance(value, tuple):
                if len(value) != 2 or not 0 <= value[0] <= value[1] < np.inf:
                    raise ValueError(f"{field.name} must be (low, high) with 0 <= low <= high, got {value}")
            elif not 0 <= value < np.inf:
                raise ValueError(f"{field.name} must be a finite number of at least 0, got {value}")
        for name in ("female", "af_subjects", "pvc_interpolated", "filling"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is a fraction and must be at most 1, got {getattr(self, name)}")
        for name in ("pvc_coupling", "pac_coupling", "af_burden"):
            if getattr(self, name)[1] > 1:
                raise ValueError(f"{name} is a fraction and must be at most 1, got {getattr(self, name)}")
        for name in ("rate_bpm", "af_rate_bpm"):
            if not (20 <= getattr(self, name)[0] and getattr(self, name)[1] <= 220):
                raise ValueError(f"{name} must lie within 20 to 220 bpm, got {getattr(self, name)}")
        if self.pvc_coupling[0] < 0.3 or self.pac_coupling[0] < 0.3:
            raise ValueError(f"pvc_coupling and pac_coupling must be at least 0.3, got {self.pvc_coupling} and {self.pac_coupling}")
        if self.pvc_shape <= 0 or self.pac_shape <= 0:
            raise ValueError(f"pvc_shape and pac_shape must be positive, got {self.pvc_shape} and {self.pac_shape}")


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


class _Traits(NamedTuple):
    age: float
    sex: str
    rate_bpm: float
    stiffness: float
    respiration_hz: float
    path_m: float  # heart to finger


class _Rhythm(NamedTuple):
    time_K: np.ndarray  # R times, seconds from the recording's start (lead-in negative)
    rr_K: np.ndarray  # interval before each beat
    type_K: np.ndarray
    af_K: np.ndarray
    breath_K: np.ndarray


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
    traits = _traits(_stream(seed, index, 0), cfg)
    rhythm = _rhythm(_stream(seed, index, 1), traits, n_samples / fs, cfg)
    arrival_K = _arrival(_stream(seed, index, 2), rhythm, traits)
    breath_T = _breath_at(_stream(seed, index, 1), traits, np.arange(n_samples) / fs, n_samples / fs)
    af_T = _in_af(rhythm, n_samples, fs)

    signal_CT = np.empty((len(channels), n_samples), np.float32)
    noise_CT = np.empty((len(channels), n_samples), np.uint8)
    for c, name in enumerate(channels):
        rng = _stream(seed, index, 3 + list(UNITS).index(name))
        clean_T = _ecg(rng, rhythm, breath_T, af_T, fs, cfg) if name == "ECG" else _ppg(rng, rhythm, rhythm.time_K + arrival_K, breath_T, traits, fs, cfg)
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


def _traits(rng: np.random.Generator, cfg: SynthesisConfig) -> _Traits:
    age = rng.uniform(*cfg.age_years)
    sex = "F" if rng.random() < cfg.female else "M"
    # carotid-femoral velocity rises from about 6 to 12 m/s between 20 and 85 years (Reference Values for Arterial Stiffness' Collaboration 2010, EHJ 31:2338)
    velocity = 5.9 + 0.0014 * max(age - 18, 0.0) ** 2 + cfg.stiffness_spread_m_s * rng.standard_normal()
    path_m = (0.86 if sex == "M" else 0.80) + 0.04 * rng.standard_normal()
    return _Traits(age, sex, rng.uniform(*cfg.rate_bpm), max(velocity, 4.0), rng.uniform(*cfg.respiration_hz), path_m)


def _breath_at(rng: np.random.Generator, traits: _Traits, time_s: np.ndarray, duration_s: float) -> np.ndarray:
    """Respiration at `time_s`: a sine of slowly wandering frequency. It is the first thing drawn from the rhythm's stream, so two calls agree."""
    grid_s = np.arange(-_LEAD_IN_S, duration_s + _LEAD_IN_S + 1, 1.0)
    hz = traits.respiration_hz * np.clip(1 + 0.12 * smooth_noise(rng, len(grid_s), 1.0, 0.0, 0.04), 0.5, 1.6)
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.cumsum(hz)
    return np.sin(np.interp(time_s, grid_s, phase))


def _rhythm(rng: np.random.Generator, traits: _Traits, duration_s: float, cfg: SynthesisConfig) -> _Rhythm:
    """Beat times and types: a sinus tachogram integrated to beats, then premature beats and fibrillation by changing single intervals."""
    grid_hz = 4.0
    # intervals may shrink (fibrillation), so more sinus beats are drawn than needed and the rest is cut
    needed_s = duration_s + 2 * _LEAD_IN_S
    drawn_s = needed_s * max(1.0, cfg.af_rate_bpm[1] / traits.rate_bpm if cfg.af_subjects else 1.0) * 1.5 + 10
    grid_s = np.arange(int(drawn_s * grid_hz)) / grid_hz - _LEAD_IN_S
    breath = _breath_at(rng, traits, np.clip(grid_s, None, duration_s + _LEAD_IN_S), duration_s)
    rsa = rng.uniform(*cfg.rsa_depth) * np.clip(1.25 - (traits.age - 20) / 100, 0.4, 1.25)
    slow = rng.uniform(*cfg.slow_sd) * smooth_noise(rng, len(grid_s), grid_hz, 0.1, 0.02)  # the low-frequency band of eq. 3
    drift = rng.uniform(*cfg.slow_sd) * smooth_noise(rng, len(grid_s), grid_hz, 0.0, 0.01)
    rr_grid = 60 / traits.rate_bpm * np.clip(1 - rsa * breath + slow + drift, 0.6, 1.6)
    cycles = np.cumsum(1 / rr_grid) / grid_hz
    time_K = np.interp(np.arange(1, int(cycles[-1])), cycles, grid_s)
    rr_K = np.diff(time_K, prepend=2 * time_K[0] - time_K[1])

    af_K = _af_beats(rng, rr_K, needed_s, cfg)
    pvc_K, pac_K = _ectopics(rng, rr_K, ~af_K, cfg)
    rr_K = np.where(af_K, _af_intervals(rng, len(rr_K), cfg), rr_K)
    rr_K, type_K, af_K = _premature(rng, rr_K, pvc_K, pac_K, af_K, cfg)
    time_K = time_K[0] + np.cumsum(rr_K) - rr_K[0]
    keep_K = time_K < needed_s - _LEAD_IN_S
    return _Rhythm(time_K[keep_K], rr_K[keep_K], type_K[keep_K], af_K[keep_K], np.interp(time_K[keep_K], grid_s, breath))


def _af_beats(rng: np.random.Generator, rr_K: np.ndarray, needed_s: float, cfg: SynthesisConfig) -> np.ndarray:
    """One episode that covers the drawn burden of the recording, cut by its ends where it starts late."""
    chosen, burden, place = rng.random() < cfg.af_subjects, rng.uniform(*cfg.af_burden), rng.random()
    time_K = np.cumsum(rr_K)
    start_s = -_LEAD_IN_S if burden >= 1 else place * (1 - burden) * needed_s
    return chosen & (time_K >= start_s) & (time_K < start_s + burden * needed_s + (np.inf if burden >= 1 else 0))


def _af_intervals(rng: np.random.Generator, n_beats: int, cfg: SynthesisConfig) -> np.ndarray:
    """Irregular intervals without memory: log-normal, at least 0.3 s."""
    cv = rng.uniform(*cfg.af_cv)
    sigma = np.sqrt(np.log1p(cv**2))
    return np.maximum(60 / rng.uniform(*cfg.af_rate_bpm) * np.exp(sigma * rng.standard_normal(n_beats) - sigma**2 / 2), 0.3)


def _ectopics(rng: np.random.Generator, rr_K: np.ndarray, allowed_K: np.ndarray, cfg: SynthesisConfig) -> tuple[np.ndarray, np.ndarray]:
    """Which sinus beats become ventricular and which atrial: rates by subject (gamma), waxing and waning over time (log-normal)."""

    def chosen(per_min: float, shape: float) -> np.ndarray:
        burden = per_min * rng.gamma(shape) / shape
        wave_K = np.exp(cfg.pvc_cluster * smooth_noise(rng, len(rr_K), 1.0, 0.0, 0.02) - cfg.pvc_cluster**2 / 2)
        return (rng.random(len(rr_K)) < np.minimum(burden / 60 * rr_K * wave_K, 0.5)) & allowed_K & np.roll(allowed_K, -1)

    pvc_K = chosen(cfg.pvc_per_min, cfg.pvc_shape)
    pvc_K[1:] &= ~pvc_K[:-1]
    pac_K = chosen(cfg.pac_per_min, cfg.pac_shape)
    pac_K[1:] &= ~pac_K[:-1] & ~pvc_K[:-1]
    pac_K[:-1] &= ~pvc_K[1:]
    pac_K &= ~pvc_K
    return pvc_K, pac_K


def _premature(
    rng: np.random.Generator, rr_K: np.ndarray, pvc_K: np.ndarray, pac_K: np.ndarray, af_K: np.ndarray, cfg: SynthesisConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Intervals with the premature beats in. A ventricular one leaves the sinus clock alone (full pause, or none at all if it falls between
    two sinus beats); an atrial one resets it."""
    n_beats = len(rr_K)
    coupling_K = np.where(pvc_K, rng.uniform(*cfg.pvc_coupling, n_beats), np.where(pac_K, rng.uniform(*cfg.pac_coupling, n_beats), 1.0))
    pause_K = np.where(pac_K, rng.uniform(*cfg.pac_pause, n_beats), 1.0)
    between_K = pvc_K & (rng.random(n_beats) < cfg.pvc_interpolated) & (rr_K > 0.8)
    early_K = (pvc_K | pac_K) & ~between_K
    lost_K = np.where(pvc_K & early_K, (1 - coupling_K) * rr_K, 0.0)
    new_K = np.where(early_K, coupling_K * rr_K, rr_K)
    new_K[1:] = new_K[1:] * pause_K[:-1] + lost_K[:-1]
    type_K = np.where(pvc_K & early_K, "V", np.where(pac_K, "A", "N"))

    at = np.flatnonzero(between_K)
    half = rng.uniform(0.45, 0.58, n_beats)[at] * new_K[at]
    new_K[at] -= half
    return np.insert(new_K, at, half), np.insert(type_K, at, "V"), np.insert(af_K, at, False)


def _in_af(rhythm: _Rhythm, n_samples: int, fs: float) -> np.ndarray:
    """A sample belongs to the rhythm of the beat that ends its interval."""
    following_T = np.searchsorted(rhythm.time_K, np.arange(n_samples) / fs)
    return rhythm.af_K[np.minimum(following_T, len(rhythm.af_K) - 1)]


def _arrival(rng: np.random.Generator, rhythm: _Rhythm, traits: _Traits) -> np.ndarray:
    """Seconds from R to the foot of the pulse: pre-ejection period plus path over velocity; badly filled beats open the valve later."""
    pre_ejection = rng.uniform(0.07, 0.11) + 0.003 * rng.standard_normal(len(rhythm.time_K))
    early = np.clip(1 - rhythm.rr_K / np.median(rhythm.rr_K), 0, 0.6)
    return pre_ejection + 0.06 * early + 0.02 * (rhythm.type_K == "V") + traits.path_m / traits.stiffness


def _ppg(rng: np.random.Generator, rhythm: _Rhythm, foot_K: np.ndarray, breath_T: np.ndarray, traits: _Traits, fs: float, cfg: SynthesisConfig) -> np.ndarray:
    """Pulses of three kernels (systolic, reflected, diastolic run-off) at the feet, modulated by filling and breath, in pulse amplitudes."""
    spread = cfg.shape_spread * rng.standard_normal(7)
    stiff = (traits.stiffness - 8) / 3  # about -1 to 1.5 over adult life
    rise_s, fall_s = (0.068 + 0.005 * stiff) * np.exp(0.15 * spread[3]), 0.10 * np.exp(0.15 * spread[4])
    crest_s = 2 * rise_s  # a Gaussian's steepest tangent meets zero two widths before its centre: there is the foot
    delay_s = 0.5 * traits.path_m * 2 / (traits.stiffness * 0.55 + 1.2) * np.exp(0.08 * spread[0])  # reflected wave: later in a compliant tree
    height = np.clip(0.42 + 0.16 * stiff + 0.08 * spread[1], 0.08, 0.95)
    tail = np.clip(0.28 - 0.06 * stiff + 0.07 * spread[2], 0.05, 0.6)
    centre_J = np.array([crest_s, crest_s + delay_s, crest_s + delay_s + 0.16])
    rise_J = np.array([rise_s, 0.075 * np.exp(0.1 * spread[5]), 0.10])
    fall_J = np.array([fall_s, 0.10, 0.17 * np.exp(0.15 * spread[6])])
    height_J = np.array([1.0, height, tail])

    n_beats = len(foot_K)
    usual_s = np.median(rhythm.rr_K)
    filling_K = np.clip((rhythm.rr_K - 0.25) / (usual_s - 0.25), 0.05, 1.6) ** 0.7
    left_K = np.where(rhythm.type_K == "V", rng.uniform(*cfg.pvc_pulse, n_beats), 1.0)
    depth = rng.uniform(*cfg.respiratory_modulation)
    jitter_K = np.exp(cfg.amplitude_jitter * rng.standard_normal(n_beats))
    size_K = (1 + cfg.filling * (filling_K - 1)) * left_K * jitter_K * (1 - depth * rhythm.breath_K)
    stretch_K = np.clip(rhythm.rr_K / 0.85, 0.5, 1.6) ** 0.25 * np.exp(0.03 * rng.standard_normal(n_beats))  # ejection shortens with the interval

    first_K = np.ceil(foot_K * fs).astype(np.int64)
    index_KL = first_K[:, None] + np.arange(-int(0.1 * fs) - 1, int(1.5 * fs))
    since_KL = (index_KL / fs - foot_K[:, None]) / stretch_K[:, None]
    value_KL = np.zeros_like(since_KL)
    for centre, rise, fall, high in zip(centre_J, rise_J, fall_J, height_J, strict=True):
        off_KL = since_KL - centre
        value_KL += high * np.exp(-0.5 * (off_KL / np.where(off_KL < 0, rise, fall)) ** 2)
    clean_T = _place(index_KL, size_K[:, None] * value_KL, len(breath_T))
    clean_T += rng.uniform(*cfg.respiratory_baseline) * breath_T
    return clean_T + rng.uniform(*cfg.sensor_noise) * rng.standard_normal(len(clean_T))


_NORMAL = {"P": (-0.17, 0.022, 0.12), "Q": (-0.034, 0.009, -0.10), "R": (0.0, 0.011, 1.1), "S": (0.033, 0.010, -0.22), "T": (0.30, 0.055, 0.28)}
_WIDE = {"Q": (-0.055, 0.022, 0.35), "R": (0.0, 0.030, 1.0), "S": (0.065, 0.028, -0.45), "T": (0.33, 0.065, -0.38)}


def _ecg(rng: np.random.Generator, rhythm: _Rhythm, breath_T: np.ndarray, af_T: np.ndarray, fs: float, cfg: SynthesisConfig) -> np.ndarray:
    """Lead II in mV: McSharry et al. 2003, eq. 1, on its limit cycle.

    There theta' = omega, and z' = -sum a_i dtheta_i exp(-dtheta_i^2 / 2 b_i^2) - (z - z0) integrates in closed form: each event is the Gaussian
    (a_i b_i^2 / omega) exp(-dtheta_i^2 / 2 b_i^2), and the last term passes the sum through a one-second high-pass. Widths follow the clock inside the QRS
    and the root of the interval in P and T, as in the authors' program.
    """
    from scipy.signal import lfilter

    shape = cfg.shape_spread * rng.standard_normal((2, 5, 3))
    scale, usual_s = np.exp(0.25 * cfg.shape_spread * rng.standard_normal()), np.median(rhythm.rr_K)
    wide_sign = 1.0 if rng.random() < 0.65 else -1.0
    index_KL = np.round(rhythm.time_K * fs).astype(np.int64)[:, None] + np.arange(-int(0.35 * fs), int(0.7 * fs) + 1)
    since_KL = index_KL / fs - rhythm.time_K[:, None]
    root_K1 = np.sqrt(np.clip(rhythm.rr_K / usual_s, 0.6, 1.5) * usual_s / 0.85)[:, None]
    clean_T = np.zeros(len(breath_T))
    wide_K = rhythm.type_K == "V"
    for rows_K, table, vary, sign in ((~wide_K, _NORMAL, shape[0], 1.0), (wide_K, _WIDE, shape[1], wide_sign)):
        value_KL = np.zeros((int(rows_K.sum()), index_KL.shape[1]))
        for j, (event, (centre_s, width_s, high_mv)) in enumerate(table.items()):
            stretch_K1 = root_K1[rows_K] if event in "PT" else 1.0
            centre_s *= 1 + (0.06 * vary[j, 0] if event != "R" else 0.0)
            width_s *= np.exp(0.12 * vary[j, 1])
            high_mv *= np.exp(0.25 * vary[j, 2])
            high_K1 = high_mv * (~rhythm.af_K[rows_K, None] if event == "P" else 1.0)  # fibrillating atria make no P
            value_KL += high_K1 * np.exp(-0.5 * ((since_KL[rows_K] - centre_s * stretch_K1) / (width_s * stretch_K1)) ** 2)
        clean_T += _place(index_KL[rows_K], sign * value_KL, len(clean_T))
    clean_T *= scale * (1 + 0.5 * rng.uniform(*cfg.respiratory_modulation) * breath_T)
    f_wave_T = smooth_noise(rng, len(clean_T), fs, rng.uniform(5.0, 8.0), 0.6) * rng.uniform(0.03, 0.08)
    clean_T += af_T * f_wave_T
    decay = np.exp(-1 / fs)
    resting_T = 0.3 * rng.uniform(*cfg.respiratory_baseline) * breath_T  # z0, eq. 2
    slow_T, _ = lfilter([1 - decay], [1, -decay], resting_T - clean_T, zi=[-decay * clean_T.mean()])
    clean_T += slow_T
    return clean_T + 0.3 * rng.uniform(*cfg.sensor_noise) * rng.standard_normal(len(clean_T))


def _place(index_KL: np.ndarray, value_KL: np.ndarray, n_samples: int) -> np.ndarray:
    """Add up overlapping pieces; what lies outside the recording is dropped."""
    index = np.clip(index_KL, -1, n_samples) + 1
    return np.bincount(index.ravel(), value_KL.ravel(), minlength=n_samples + 2)[1 : n_samples + 1]
