"""Made-up people for the twins: coupled ECG and PPG of the synthetic cohort, without artefacts."""

from __future__ import annotations

from physio_data.synthesis import SynthesisConfig, SyntheticSubject, synthesize_subject

CLEAN = SynthesisConfig(motion_per_min=0, pop_per_min=0, clip_per_min=0, dropout_per_min=0, baseline_per_min=0)


def person(index: int, seconds: float, fs: float, channels: tuple[str, ...] = ("PPG",), seed: int = 0) -> SyntheticSubject:
    """Subject `index` of the cohort `seed`, `seconds` long at `fs` Hz."""
    return synthesize_subject(index, seconds / 60, fs, channels, seed, CLEAN)
