"""Few-shot curves: which training subjects keep their labels. N windows."""

from __future__ import annotations

import numpy as np

from physio_train.folds import grouped_folds

FRACTIONS = (0.01, 0.05, 0.1, 1.0)


def labelled_subjects(groups_N: np.ndarray, y: np.ndarray, fraction: float, *, kind: str = "binary", seed: int = 0) -> np.ndarray:
    """Training windows (N,) bool of the subjects whose labels are kept: whole subjects, `fraction` of them, rounded up.

    Subjects come in a random order keyed by seed, so that a larger fraction holds a smaller one; where the first of them hold one class only (or fewer than two
    are drawn, which inner folds need), the next in order that adds a class is taken too. ValueError for a fraction outside (0, 1] and labels of one class.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    groups_N, y = np.asarray(groups_N).astype(str), np.asarray(y, dtype=np.float64)
    names = np.unique(groups_N)
    order = np.random.default_rng([seed, len(names)]).permutation(names).tolist()
    n_wanted = max(2, int(np.ceil(fraction * len(names) - 1e-9)))
    chosen, rest = order[:n_wanted], order[n_wanted:]
    if kind in ("binary", "multiclass"):
        wanted = set(np.unique(y[y >= 0]).tolist())
        if len(wanted) < 2:
            raise ValueError("the training labels hold one class only: no few-shot curve can be drawn")
        has = lambda people: set(np.unique(y[np.isin(groups_N, people) & (y >= 0)]).tolist())  # noqa: E731
        while len(has(chosen)) < 2:
            chosen.append(rest.pop(next(i for i, name in enumerate(rest) if has([name]) - has(chosen))))
    return np.isin(groups_N, chosen)


def validation_part(groups_N: np.ndarray, y: np.ndarray, *, parts: int = 5, seed: int = 0) -> np.ndarray:
    """Training windows (N,) bool that choose a step and a threshold where a corpus has no validation fold: whole subjects, about one in `parts` of them.

    Every class stays on the training side, and every class that two subjects have is on both sides where whole subjects allow it: the first of `parts` even
    grouped folds that does so, else the best of them with the subjects added that it misses. All False where no such part holds two classes (of one label of
    a multi-label `y`), so that nothing can be chosen by it. A real target takes the first fold. ValueError for one subject alone.
    """
    names, group_N = np.unique(np.asarray(groups_N).astype(str), return_inverse=True)
    group_N = group_N.reshape(-1)
    if len(names) < 2:
        raise ValueError("one subject cannot be split into training and validation: give more subjects, or name a val fold")
    n_parts = min(parts, len(names))
    fold_N = grouped_folds(groups_N, y, n_parts, seed)
    label_K, has_GK = _classes(group_N, np.asarray(y, dtype=np.float64), len(names))
    if label_K is None:
        return fold_N == 0
    fold_G = np.zeros(len(names), dtype=np.int64)
    fold_G[group_N] = fold_N
    candidates = [held_G for fold in range(n_parts) if has_GK[~(held_G := fold_G == fold)].any(axis=0).all()]
    held_G = max(candidates, key=lambda held_G: has_GK[held_G].any(axis=0).sum(), default=np.zeros(len(names), dtype=bool)).copy()
    size_G, n_with_K = np.bincount(group_N), has_GK.sum(axis=0)
    for k in np.argsort(n_with_K, kind="stable"):
        if n_with_K[k] > 1 and not has_GK[held_G, k].any():
            may = [g for g in np.flatnonzero(~held_G & has_GK[:, k]) if has_GK[~held_G & (np.arange(len(names)) != g)].any(axis=0).all()]
            if may:
                held_G[min(may, key=lambda g: size_G[g])] = True
    held_of_label = [has_GK[held_G][:, label_K == label].any(axis=0).sum() for label in np.unique(label_K)]
    return held_G[group_N] if max(held_of_label, default=0) > 1 else np.zeros(len(group_N), dtype=bool)


def _classes(group_N: np.ndarray, y: np.ndarray, n_groups: int) -> tuple[np.ndarray | None, np.ndarray]:
    """For every class found in the labels: the label that it is a class of, (K,), and which subjects have it, (G, K) bool; None for a real target."""
    y_NL = y[:, None] if y.ndim == 1 else y
    values = np.unique(y_NL[y_NL >= 0])
    if np.any(y_NL != np.round(y_NL)) or len(values) > 20:
        return None, np.zeros((n_groups, 0), dtype=bool)
    found = [(label, y_N == value) for label, y_N in enumerate(y_NL.T) for value in values if np.any(y_N == value)]
    has_GK = np.array([np.bincount(group_N, weights=is_N, minlength=n_groups) > 0 for _, is_N in found], dtype=bool).reshape(-1, n_groups).T
    return np.array([label for label, _ in found]), has_GK
