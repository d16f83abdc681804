"""TROIKA's layout: DATA_/REF_ pairs of the training set, TEST_/True_ of the test set without the ECG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physio_data.corpora.twins.people import person


def write(root: Path, seed: int = 0) -> dict[str, object]:
    from scipy.io import savemat

    for index, name in enumerate(("01_TYPE01", "02_TYPE02")):
        sig, rate = _recording(index, seed)
        savemat(root / f"DATA_{name}.mat", {"sig": sig})
        savemat(root / f"REF_{name}.mat", {"BPM0": rate[:, None]})
    sig, rate = _recording(2, seed)
    savemat(root / "TEST_S01_T01.mat", {"sig": sig[1:]})
    savemat(root / "True_S01_T01.mat", {"BPM0": rate[:, None]})
    return {}


def _recording(index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(6, T) at 125 Hz, and the rate of each window [2 i, 2 i + 8) s from the true beats."""
    subject = person(index, 40.0, 125.0, ("ECG", "PPG"), seed)
    t_T = np.arange(subject.signal_CT.shape[1]) / 125.0
    swing_T = np.sin(2 * np.pi * 1.6 * t_T)
    ecg_T, ppg_T = subject.signal_CT.astype(np.float64)
    sig = np.stack([ecg_T, ppg_T + 0.1 * swing_T, ppg_T - 0.1 * swing_T, swing_T, 0.5 * np.roll(swing_T, 10), 0.2 * swing_T + 1])
    starts = np.arange(0, 40.0 - 8.0 + 1e-9, 2.0)
    return sig, np.array([60 / np.diff(subject.beat_s[(subject.beat_s >= s) & (subject.beat_s < s + 8)]).mean() for s in starts])
