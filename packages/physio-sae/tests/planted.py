"""A features folder whose concepts are known: what tests recover, they can check.

Every patient has traits (constant), slow states and fast events; z is their sum over random unit atoms plus noise. Views are z with
other noise. Some windows have no follower: ends of records and gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from physio_train.features import write_index


@dataclass(frozen=True)
class Planted:
    folder: Path
    atoms_KD: np.ndarray  # true atoms, unit rows
    codes_NK: np.ndarray  # true non-negative codes
    kind_K: np.ndarray  # "trait", "slow" or "fast"


def write_features(
    folder: Path,
    *,
    n_subjects: int = 24,
    n_windows: int = 40,
    width: int = 32,
    n_atoms: int = 24,
    n_views: int = 2,
    noise: float = 0.05,
    gap_every: int = 13,
    dtype: str = "float32",
    with_next: bool = True,
    seed: int = 0,
) -> Planted:
    """Write z.npy, z_aug.npy, index.h5; `n_windows` per patient in two records of 10-s windows, a gap after every `gap_every` windows.

    age rises with trait 0, sex is drawn, label/hypertension is 1 where trait 1 is on, label/rate (bpm) follows slow state 0.
    """
    rng = np.random.default_rng(seed)
    atoms_KD = rng.standard_normal((n_atoms, width))
    atoms_KD /= np.linalg.norm(atoms_KD, axis=1, keepdims=True)
    kind_K = np.array(["trait", "slow", "fast"])[np.arange(n_atoms) % 3]
    n = n_subjects * n_windows
    subject_N, within_N = np.divmod(np.arange(n), n_windows)
    half_N = (within_N >= n_windows // 2).astype(int)
    codes_NK = np.zeros((n, n_atoms))
    for k, kind in enumerate(kind_K):
        if kind == "trait":
            level_S = rng.uniform(0.5, 1.5, n_subjects) * (rng.random(n_subjects) < 0.5)
            codes_NK[:, k] = level_S[subject_N]
        elif kind == "slow":
            on_N = (np.sin(2 * np.pi * (within_N / 20 + rng.random(n_subjects)[subject_N])) > 0.6).astype(float)
            codes_NK[:, k] = on_N * rng.uniform(0.5, 1.5, n_subjects)[subject_N]
        else:
            codes_NK[:, k] = rng.uniform(0.5, 1.5, n) * (rng.random(n) < 0.1)
    traits, slow = np.flatnonzero(kind_K == "trait"), np.flatnonzero(kind_K == "slow")
    age_S = 40 + 20 * codes_NK[::n_windows, traits[0]] + rng.normal(0, 3, n_subjects)
    sex_S = np.array(["F", "M"])[rng.integers(0, 2, n_subjects)]
    position_N = within_N % (n_windows // 2)
    start_s = position_N * 10.0 + (position_N // gap_every) * 55.0  # 55 s are missing at each gap
    last_N = (position_N == n_windows // 2 - 1) | ((position_N + 1) % gap_every == 0)
    next_N = np.where(last_N | (not with_next), -1, np.arange(n) + 1)
    fold_S = np.array(["train", "train", "train", "val", "test"])[np.arange(n_subjects) % 5]
    clean_ND = codes_NK @ atoms_KD + 0.3  # an offset that the normalisation must take away
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "z.npy", (clean_ND + noise * rng.standard_normal((n, width))).astype(dtype))
    if n_views:
        np.save(folder / "z_aug.npy", (clean_ND + 2 * noise * rng.standard_normal((n_views, n, width))).astype(dtype))
    columns = {
        "subject": np.char.add("planted:s", subject_N.astype(str)),
        "record": np.char.add(np.char.add("planted:s", subject_N.astype(str)), np.char.add("_r", half_N.astype(str))),
        "start_s": start_s,
        "next": next_N.astype(np.int64),
        "dt_next_s": np.where(next_N >= 0, 10.0, np.nan),
        "fold": fold_S[subject_N],
        "age": age_S[subject_N],
        "sex": sex_S[subject_N],
        "label/hypertension": (codes_NK[:, traits[1]] > 0).astype(np.int64),
        "label/rate": 60 + 20 * codes_NK[:, slow[0]],
    }
    write_index(folder / "index.h5", columns)
    return Planted(folder, atoms_KD, codes_NK, kind_K)
