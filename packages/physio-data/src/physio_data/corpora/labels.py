"""Labels that several corpora share: who the subject is, blood pressure, rates per reference window, and states that last. N windows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from physio_data.corpora.contract import TaskSpec
from physio_data.corpora.himae_pvc import hypertension
from physio_data.recording import Recording

AGE_SEX: Mapping[str, TaskSpec] = {"age": TaskSpec(kind="regression", unit="years"), "sex": TaskSpec(kind="binary", classes=("F", "M"))}
PRESSURE: Mapping[str, TaskSpec] = {
    "sbp": TaskSpec(kind="regression", unit="mmHg"),
    "dbp": TaskSpec(kind="regression", unit="mmHg"),
    "htn_bp": TaskSpec(kind="binary", classes=("normotensive", "hypertensive")),
}
RATE: Mapping[str, TaskSpec] = {"rate": TaskSpec(kind="regression", unit="bpm")}
SEXES = {"F": 0, "M": 1}


def age_sex(recording: Recording, n: int) -> dict[str, np.ndarray]:
    """`age` in years (NaN unknown) and `sex` (0 F, 1 M, -1 unknown) of the subject, for each of `n` windows."""
    return {"age": np.full(n, recording.age, np.float64), "sex": np.full(n, SEXES.get(recording.sex, -1), np.int64)}


def pressure(sbp_N: np.ndarray, dbp_N: np.ndarray) -> dict[str, np.ndarray]:
    """`sbp` and `dbp` in mmHg (NaN unknown), and `htn_bp` by HiMAE's rule (`himae_pvc.hypertension`)."""
    sbp_N, dbp_N = np.asarray(sbp_N, np.float64), np.asarray(dbp_N, np.float64)
    htn = [hypertension(sbp, dbp) for sbp, dbp in zip(sbp_N.tolist(), dbp_N.tolist(), strict=True)]
    return {"sbp": sbp_N, "dbp": dbp_N, "htn_bp": np.array(htn, np.int64)}


def at_reference_windows(value_R: np.ndarray, start_s_N: np.ndarray, window_s: float, *, reference_s: float = 8.0, hop_s: float = 2.0) -> np.ndarray:
    """A quantity stated per reference window (R,), for other windows (N,): linear between the centres of the reference windows, NaN outside them.

    A window that is a reference window gets that window's own value.
    """
    value_R = np.asarray(value_R, np.float64)
    if not value_R.size:
        return np.full(len(start_s_N), np.nan)
    place_N = np.round((np.asarray(start_s_N, np.float64) + window_s / 2 - reference_s / 2) / hop_s, 9)
    inside_N = (place_N >= 0) & (place_N <= len(value_R) - 1)
    return np.where(inside_N, np.interp(place_N, np.arange(len(value_R)), value_R), np.nan)


def longest_state(state_T: np.ndarray, fs: float, start_s_N: np.ndarray, window_s: float, n_states: int) -> tuple[np.ndarray, np.ndarray]:
    """The state that fills most of each window (N,) int64, and the share of the window that it fills (N,); the state is -1 where none is stated.

    `state_T` holds 0 to `n_states - 1`, or a value outside for "not stated", at `fs` Hz from the recording's first sample on.
    """
    state_T = np.asarray(state_T).ravel()
    first_N = np.clip(np.rint(np.asarray(start_s_N) * fs).astype(np.int64), 0, len(state_T))
    last_N = np.clip(np.rint((np.asarray(start_s_N) + window_s) * fs).astype(np.int64), 0, len(state_T))
    share_SN = np.empty((n_states, len(first_N)))
    for state in range(n_states):
        before = np.concatenate([[0], np.cumsum(state_T == state)])
        share_SN[state] = (before[last_N] - before[first_N]) / max(1.0, window_s * fs)
    return np.where(share_SN.max(0, initial=0) > 0, share_SN.argmax(0), -1), share_SN.max(0, initial=0)
