"""What a synthetic cohort is like: prevalences and strengths."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np


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
