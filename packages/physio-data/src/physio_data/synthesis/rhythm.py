"""Who a subject is and when the heart beats: traits, breath, the sinus tachogram, premature beats and fibrillation. Letters: K beats."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from physio_data.synthesis.config import SynthesisConfig

LEAD_IN_S = 4.0  # beats before and after the recording, so that its edges look like its middle


class Traits(NamedTuple):
    age: float
    sex: str
    rate_bpm: float
    stiffness: float
    respiration_hz: float
    path_m: float  # heart to finger


class Rhythm(NamedTuple):
    time_K: np.ndarray  # R times, seconds from the recording's start (lead-in negative)
    rr_K: np.ndarray  # interval before each beat
    type_K: np.ndarray
    af_K: np.ndarray
    breath_K: np.ndarray


def draw_traits(rng: np.random.Generator, cfg: SynthesisConfig) -> Traits:
    age = rng.uniform(*cfg.age_years)
    sex = "F" if rng.random() < cfg.female else "M"
    # carotid-femoral velocity rises from about 6 to 12 m/s between 20 and 85 years (Reference Values for Arterial Stiffness' Collaboration 2010, EHJ 31:2338)
    velocity = 5.9 + 0.0014 * max(age - 18, 0.0) ** 2 + cfg.stiffness_spread_m_s * rng.standard_normal()
    path_m = (0.86 if sex == "M" else 0.80) + 0.04 * rng.standard_normal()
    return Traits(age, sex, rng.uniform(*cfg.rate_bpm), max(velocity, 4.0), rng.uniform(*cfg.respiration_hz), path_m)


def smooth_noise(rng: np.random.Generator, n: int, fs: float, centre_hz: float, width_hz: float) -> np.ndarray:
    """Gaussian noise (n,) of unit variance with a Gaussian spectrum about `centre_hz` (McSharry et al. 2003, eq. 3, random phases).

    It is made on a coarse grid and interpolated where the band allows, so its cost does not grow with `fs`.
    """
    top_hz = centre_hz + 4 * width_hz
    coarse_fs = min(fs, 8 * top_hz)
    m = max(int(np.ceil(n * coarse_fs / fs)) + 2, 4)
    hz = np.fft.rfftfreq(m, 1 / coarse_fs)
    gain = np.exp(-0.25 * ((hz - centre_hz) / width_hz) ** 2)
    gain[0] = gain[0] if centre_hz == 0 else 0.0
    energy = np.sqrt((gain[1:] ** 2).sum() * 2 + gain[0] ** 2)
    spectrum = gain * (rng.standard_normal(len(hz)) + 1j * rng.standard_normal(len(hz))) / np.sqrt(2)
    x = np.fft.irfft(spectrum, m) * m / (energy if energy > 0 else 1.0)
    return x[:n] if coarse_fs == fs else np.interp(np.arange(n) / fs, np.arange(m) / coarse_fs, x)


def breath_at(rng: np.random.Generator, traits: Traits, time_s: np.ndarray, duration_s: float) -> np.ndarray:
    """Respiration at `time_s`: a sine of slowly wandering frequency. It is the first thing drawn from the rhythm's stream, so two calls agree."""
    grid_s = np.arange(-LEAD_IN_S, duration_s + LEAD_IN_S + 1, 1.0)
    hz = traits.respiration_hz * np.clip(1 + 0.12 * smooth_noise(rng, len(grid_s), 1.0, 0.0, 0.04), 0.5, 1.6)
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.cumsum(hz)
    return np.sin(np.interp(time_s, grid_s, phase))


def draw_rhythm(rng: np.random.Generator, traits: Traits, duration_s: float, cfg: SynthesisConfig) -> Rhythm:
    """Beat times and types: a sinus tachogram integrated to beats, then premature beats and fibrillation by changing single intervals."""
    grid_hz = 4.0
    # intervals may shrink (fibrillation), so more sinus beats are drawn than needed and the rest is cut
    needed_s = duration_s + 2 * LEAD_IN_S
    drawn_s = needed_s * max(1.0, cfg.af_rate_bpm[1] / traits.rate_bpm if cfg.af_subjects else 1.0) * 1.5 + 10
    grid_s = np.arange(int(drawn_s * grid_hz)) / grid_hz - LEAD_IN_S
    breath = breath_at(rng, traits, np.clip(grid_s, None, duration_s + LEAD_IN_S), duration_s)
    rsa = rng.uniform(*cfg.rsa_depth) * np.clip(1.25 - (traits.age - 20) / 100, 0.4, 1.25)
    slow = rng.uniform(*cfg.slow_sd) * smooth_noise(rng, len(grid_s), grid_hz, 0.1, 0.02)  # the low-frequency band of eq. 3
    drift = rng.uniform(*cfg.slow_sd) * smooth_noise(rng, len(grid_s), grid_hz, 0.0, 0.01)
    rr_grid = 60 / traits.rate_bpm * np.clip(1 - rsa * breath + slow + drift, 0.6, 1.6)
    cycles = np.cumsum(1 / rr_grid) / grid_hz
    time_K = np.interp(np.arange(1, int(cycles[-1])), cycles, grid_s)
    rr_K = np.diff(time_K, prepend=2 * time_K[0] - time_K[1])

    af_rr_K = _af_intervals(rng, len(rr_K), cfg)
    af_K = _af_beats(rng, rr_K, af_rr_K, needed_s, cfg)
    rr_K = np.where(af_K, af_rr_K, rr_K)
    pvc_K, pac_K = _ectopics(rng, rr_K, ~af_K, cfg)
    rr_K, type_K, af_K = _premature(rng, rr_K, pvc_K, pac_K, af_K, cfg)
    time_K = time_K[0] + np.cumsum(rr_K) - rr_K[0]
    keep_K = time_K < needed_s - LEAD_IN_S
    return Rhythm(time_K[keep_K], rr_K[keep_K], type_K[keep_K], af_K[keep_K], np.interp(time_K[keep_K], grid_s, breath))


def _af_beats(rng: np.random.Generator, rr_K: np.ndarray, af_rr_K: np.ndarray, needed_s: float, cfg: SynthesisConfig) -> np.ndarray:
    """Which beats fibrillate: one episode that takes the drawn share of the time, somewhere."""
    chosen, burden, place = rng.random() < cfg.af_subjects, rng.uniform(*cfg.af_burden), rng.random()
    begun_K = np.cumsum(rr_K) >= place * (1 - burden) * needed_s
    lasted_K = np.cumsum(np.where(begun_K, af_rr_K, 0.0))
    return chosen & begun_K & (lasted_K <= burden * needed_s)


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


def fibrillating(rhythm: Rhythm, n_samples: int, fs: float) -> np.ndarray:
    """A sample belongs to the rhythm of the beat that ends its interval."""
    following_T = np.searchsorted(rhythm.time_K, np.arange(n_samples) / fs)
    return rhythm.af_K[np.minimum(following_T, len(rhythm.af_K) - 1)]
