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
    """One of `parts` even grouped folds, (N,) bool: the training subjects that choose a step and a threshold where a corpus has no validation fold.

    The first fold that leaves every class to the others; where none does, the first.
    """
    n_groups = len(np.unique(groups_N))
    if n_groups < 2:
        raise ValueError("one subject cannot be split into training and validation: give more subjects, or name a val fold")
    fold_N = grouped_folds(groups_N, y, min(parts, n_groups), seed)
    y = np.asarray(y, dtype=np.float64)
    if y.ndim > 1 or np.any(y != np.round(y)):
        return fold_N == 0
    classes = [set(np.unique(y[(fold_N != fold) & (y >= 0)]).tolist()) for fold in range(min(parts, n_groups))]
    return fold_N == int(np.argmax([len(found) for found in classes]))
