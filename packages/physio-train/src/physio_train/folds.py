"""Grouped folds: every window of a subject on one side, label rates even across folds, another draw for every repeat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

N_DRAWS = 200  # random groupings tried; the most even one is taken


@dataclass(frozen=True, kw_only=True)
class FoldSpec:
    """One outer fold of one repeat (and of one training seed): the rows an encoder or probe may learn from, and those it is scored on."""

    seed: int
    repeat: int
    fold: int | str  # number of the outer fold, or the name of the store's fold that is tested
    train: np.ndarray  # (n,) int64 rows
    test: np.ndarray  # (m,) int64 rows


def grouped_folds(groups_N: np.ndarray, labels: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Fold number (N,) int64 of each window; whole groups, so no group is ever on two sides.

    Groups are dealt at random, equally many to each fold (give or take one), in many draws; the draw whose folds share windows and labels most evenly is
    taken. It depends on group names, labels and `seed` only. `labels` is (N,) class numbers or a real target, or (N, K) 0/1; -1 and NaN are unknown.
    """
    names, group_N = np.unique(np.asarray(groups_N).astype(str), return_inverse=True)
    group_N = group_N.reshape(-1)
    n_groups = len(names)
    if n_groups == 1:
        raise ValueError(f"all windows are of one subject ({', '.join(names)}), who cannot be on two sides: give more subjects, or name a val fold")
    if not 2 <= n_folds <= n_groups:
        raise ValueError(f"n_folds must lie between 2 and the number of groups ({n_groups}), got {n_folds}: use fewer folds or more subjects")
    count_GK = np.stack([np.bincount(group_N, weights=column, minlength=n_groups) for column in _columns(labels).T], axis=1)
    share_GK = count_GK / np.maximum(count_GK.sum(axis=0), 1e-300)
    generator = np.random.default_rng([seed, n_folds])
    seats_G = np.arange(n_groups) % n_folds
    best_cost, best_G = np.inf, seats_G
    for _ in range(N_DRAWS):
        fold_G = generator.permutation(n_folds)[seats_G[generator.permutation(n_groups)]]
        share_FK = np.stack([share_GK[fold_G == f].sum(axis=0) for f in range(n_folds)])
        cost = float(((share_FK - 1.0 / n_folds) ** 2).sum(axis=0).mean())
        if cost < best_cost - 1e-15:
            best_cost, best_G = cost, fold_G
    return best_G[group_N].astype(np.int64)


def outer_folds(
    groups_N: np.ndarray, labels: np.ndarray, *, n_folds: int = 5, repeats: int = 1, seeds: tuple[int, ...] = (0,), split_seed: int = 0
) -> list[FoldSpec]:
    """Every (seed, repeat, fold), the same row sets for every seed: what cross-validation, and pretraining inside it, iterate over.

    All windows of the groups are in `train` or `test`, labelled or not; fitting and scoring pass over unknown labels themselves.
    """
    specs = []
    for repeat in range(repeats):
        fold_N = grouped_folds(groups_N, labels, n_folds, split_seed * 1000 + repeat)
        for fold in range(n_folds):
            train, test = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
            specs += [FoldSpec(seed=seed, repeat=repeat, fold=fold, train=train, test=test) for seed in seeds]
    return sorted(specs, key=lambda spec: (spec.seed, spec.repeat, spec.fold))


def check_apart(groups_train: np.ndarray, groups_test: np.ndarray, allowed: frozenset[str] = frozenset()) -> None:
    """Raise ValueError naming the first groups found on both sides, but for those allowed by name."""
    both = np.intersect1d(np.asarray(groups_train).astype(str), np.asarray(groups_test).astype(str))
    both = [name for name in both if name not in allowed]
    if both:
        raise ValueError(
            f"groups on both the train and the test side: {', '.join(both[:5])} ({len(both)} in all); leave them out of one, or allow them by name"
        )


def _columns(labels: np.ndarray) -> np.ndarray:
    """Non-negative columns to even out: the windows themselves and each class, or the quarters of a real target."""
    y = np.asarray(labels, dtype=np.float64)
    ones = np.ones((len(y), 1))
    if y.ndim == 2:
        return np.concatenate([ones, np.where(y > 0, y, 0.0)], axis=1)
    known = y[np.isfinite(y)]
    values = np.unique(known)
    if len(values) > 20 or np.any(values != np.round(values)):
        edges = np.quantile(known, [0.25, 0.5, 0.75])
        y, values = np.where(np.isfinite(y), np.searchsorted(edges, y), -1), np.arange(4)
    return np.concatenate([ones, y[:, None] == values[values >= 0]], axis=1)
