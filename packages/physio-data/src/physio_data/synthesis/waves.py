"""What the sensors see of each beat: the ECG of a dynamical model and the pulses of a PPG. Letters: K beats, L samples about one, J kernels, T samples."""

from __future__ import annotations

import numpy as np

from physio_data.synthesis.config import SynthesisConfig
from physio_data.synthesis.rhythm import Rhythm, Traits, smooth_noise

# of each event: seconds from R, width in seconds, height in mV
_NORMAL = {"P": (-0.17, 0.022, 0.12), "Q": (-0.034, 0.009, -0.10), "R": (0.0, 0.011, 1.1), "S": (0.033, 0.010, -0.22), "T": (0.30, 0.055, 0.28)}
_WIDE = {"Q": (-0.055, 0.022, 0.35), "R": (0.0, 0.030, 1.0), "S": (0.065, 0.028, -0.45), "T": (0.33, 0.065, -0.38)}


def arrival(rng: np.random.Generator, rhythm: Rhythm, traits: Traits) -> np.ndarray:
    """Seconds from R to the foot of the pulse: pre-ejection period plus path over velocity; badly filled beats open the valve later."""
    pre_ejection = rng.uniform(0.07, 0.11) + 0.003 * rng.standard_normal(len(rhythm.time_K))
    early = np.clip(1 - rhythm.rr_K / np.median(rhythm.rr_K), 0, 0.6)
    return pre_ejection + 0.06 * early + 0.02 * (rhythm.type_K == "V") + traits.path_m / traits.stiffness


def ppg(rng: np.random.Generator, rhythm: Rhythm, foot_K: np.ndarray, breath_T: np.ndarray, traits: Traits, fs: float, cfg: SynthesisConfig) -> np.ndarray:
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


def ecg(rng: np.random.Generator, rhythm: Rhythm, breath_T: np.ndarray, af_T: np.ndarray, fs: float, cfg: SynthesisConfig) -> np.ndarray:
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
