"""Read-outs of fixed features beside the linear probe: nearest neighbours, and forests and boosted trees for hand-made features.

N windows, D features, K score columns (as `protocol.Task.columns`). Each `fit_*` gives a function from features (M, D) to scores (M, K).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import logit

from physio_train.floors import headline
from physio_train.folds import grouped_folds
from physio_train.metrics import best_threshold
from physio_train.probe import FLAT, Kind, ProbeConfig, fit_with_scores
from physio_train.probe import fit as fit_probe
from physio_train.statistics import replicates

ReadOutName = Literal["linear", "knn", "forest", "boosted", "blend"]
N_TREES = 300  # of a forest
N_ROUNDS = 120  # of boosting
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of an encoder's read-out beside that of hand-made features, least first
N_DRAWS = 200  # resamples of the subjects that say how sure a share's gain is
FOREST_WINDOWS = 100_000  # training windows up to which a forest is worth its time beside boosted trees
Scores = Callable[[np.ndarray], np.ndarray]


def fit_readout(name: ReadOutName, x_ND: np.ndarray, y: np.ndarray, groups_N: np.ndarray, kind: Kind, classes: tuple[str, ...] = (), seed: int = 0) -> Scores:
    """Fit one read-out by name. Labels as `probe.fit`: -1 (NaN for regression) is unknown and passed over.

    linear: the probe. knn: `fit_knn`. forest: extremely randomised trees (Geurts et al. 2006). boosted: gradient-boosted trees (Friedman 2001), by histograms.
    blend: the mean of forest (up to `FOREST_WINDOWS`) and boosted, of probabilities on the log-odds scale. Nothing chooses between read-outs: with few
    subjects the choice costs more than it wins, and folds that chose otherwise do not pool. Trees weigh classes equally, as the probe does.
    ValueError for one class only.
    """
    if name == "linear":
        return fit_probe(x_ND, y, groups_N, ProbeConfig(kind=kind, missing="median", seed=seed), classes=classes).predict
    if name == "knn":
        return fit_knn(x_ND, y, groups_N, kind, classes, seed=seed)
    if name == "blend":
        return _fit_blend(_blended(len(x_ND)), x_ND, y, groups_N, kind, classes, seed)
    if name not in ("forest", "boosted"):
        raise ValueError(f"name must be linear, knn, forest, boosted or blend, got {name!r}")
    return _fit_trees(name, x_ND, y, kind, len(classes), seed)


class Fused(NamedTuple):
    """Two read-outs of one window as one: scores from the features of both side by side, thresholds (K,), the first one's share, and every share's figure."""

    predict: Scores
    threshold_K: np.ndarray
    share: float
    figures: dict[float, float]


def fit_fused(x_ND: np.ndarray, n_first: int, y: np.ndarray, groups_N: np.ndarray, kind: Kind, classes: tuple[str, ...] = (), seed: int = 0) -> Fused:
    """An encoder's features (the first `n_first` columns) by the probe and hand-made ones (the others) by `blend`, the two blended.

    The encoder's share has to be earned: it is the smallest of `SHARES` whose figure (`floors.headline` of the out-of-fold scores that both have from inner
    folds of the training subjects) is within a standard error of the best one's (Breiman et al. 1984, section 3.4.3), subjects resampled. 0, the hand-made
    features alone, where the inner folds allow no figure. Labels and errors as `fit_readout`.
    """
    probe, first_NK = fit_with_scores(x_ND[:, :n_first], y, groups_N, ProbeConfig(kind=kind, seed=seed), classes=classes)
    made = fit_readout("blend", x_ND[:, n_first:], y, groups_N, kind, classes, seed)
    second_NK = _out_of_fold("blend", x_ND[:, n_first:], y, groups_N, kind, classes, seed)
    scores = {share: blend([first_NK, second_NK], kind, (share, 1 - share)) for share in SHARES}
    share, figures = _earned(scores, _targets(y, kind, len(classes)), np.asarray(groups_N), kind)
    return Fused(partial(_fused, probe.predict, made, n_first, share, kind), _thresholds(scores[share], y, kind, classes), share, figures)


def _fused(first: Scores, second: Scores, n_first: int, share: float, kind: Kind, x_MD: np.ndarray) -> np.ndarray:
    return blend([first(x_MD[:, :n_first]), second(x_MD[:, n_first:])], kind, (share, 1 - share))


def _earned(scores: Mapping[float, np.ndarray], label_NK: np.ndarray, groups_N: np.ndarray, kind: Kind) -> tuple[float, dict[float, float]]:
    """The first of some out-of-fold scores (N, K) that is within a standard error of the best, and every one's figure."""
    known_N = np.logical_and.reduce([np.isfinite(score_NK).all(axis=1) for score_NK in scores.values()]) & np.isfinite(label_NK).any(axis=1)
    figures = {share: float(headline(label_NK[known_N], score_NK[known_N], kind)) if known_N.any() else np.nan for share, score_NK in scores.items()}
    first = next(iter(scores))
    if not np.isfinite(list(figures.values())).all():
        return first, figures
    sign = -1.0 if kind == "regression" else 1.0
    best = max(figures, key=lambda share: sign * figures[share])
    metric = partial(headline, kind=kind)
    drawn = {share: replicates(metric, label_NK[known_N], score_NK[known_N], groups_N[known_N], n=N_DRAWS) for share, score_NK in scores.items()}
    behind = {share: sign * (figures[best] - figures[share]) for share in scores}
    return next(share for share in scores if share == best or behind[share] <= np.nanstd(drawn[best] - drawn[share])), figures


def fit_thresholds(
    name: ReadOutName, x_ND: np.ndarray, y: np.ndarray, groups_N: np.ndarray, kind: Kind, classes: tuple[str, ...] = (), seed: int = 0
) -> np.ndarray:
    """F1-best thresholds (K,) on out-of-fold scores of three inner folds of the training subjects; NaN for regression and multi-class tasks."""
    if kind not in ("binary", "multilabel"):
        return np.full(max(1, len(classes)), np.nan)
    return _thresholds(_out_of_fold(name, x_ND, y, groups_N, kind, classes, seed), y, kind, classes)


def _out_of_fold(name: ReadOutName, x_ND: np.ndarray, y: np.ndarray, groups_N: np.ndarray, kind: Kind, classes: tuple[str, ...], seed: int) -> np.ndarray:
    """Scores (N, K) from three inner folds of the training subjects; NaN where the other folds do not allow a fit."""
    y, groups_N = np.asarray(y), np.asarray(groups_N)
    target_NK = _targets(y, kind, len(classes))
    known_N = np.isfinite(target_NK).any(axis=1)
    n_folds = min(3, len(np.unique(groups_N)))
    fold_N = grouped_folds(groups_N, target_NK if kind == "multilabel" else y, n_folds, seed)
    out_NK = np.full(target_NK.shape, np.nan)
    fitted = partial(_fit_blend, _blended(len(x_ND))) if name == "blend" else partial(fit_readout, name)  # inner folds blend what the whole blends
    for fold in np.unique(fold_N):
        rows = fold_N == fold
        there = [column[~rows & np.isfinite(column)] for column in (target_NK.T if kind != "multiclass" else [np.where(y >= 0, y, np.nan)])]
        if len(np.unique(groups_N[~rows & known_N])) > 1 and all(len(np.unique(column)) > 1 for column in there):
            out_NK[rows] = fitted(x_ND[~rows], y[~rows], groups_N[~rows], kind, classes, seed)(x_ND[rows])
    return out_NK


def _thresholds(score_NK: np.ndarray, y: np.ndarray, kind: Kind, classes: tuple[str, ...]) -> np.ndarray:
    if kind not in ("binary", "multilabel"):
        return np.full(max(1, len(classes)), np.nan)
    y_NK = _targets(y, kind, len(classes))
    known_NK = np.isfinite(score_NK) & np.isfinite(y_NK)
    return np.array([best_threshold(y_NK[known, k], score_NK[known, k]) if known.any() else np.nan for k, known in enumerate(known_NK.T)])


def fit_knn(
    x_ND: np.ndarray, y: np.ndarray, groups_N: np.ndarray, kind: Kind, classes: tuple[str, ...] = (), *, grid: tuple[int, ...] = (5, 20, 50), seed: int = 0
) -> Scores:
    """Vote of the k nearest training windows by cosine of standardised features, weighed by exp(cosine / 0.07) (Wu et al. 2018, arXiv 1805.01978).

    k is chosen from `grid` by out-of-fold error on inner folds of the training subjects.
    """
    x_ND, target_NK = np.asarray(x_ND, dtype=np.float64), _targets(y, kind, len(classes))
    known_N = np.isfinite(target_NK).any(axis=1)
    x_ND, target_NK, groups_N = x_ND[known_N], target_NK[known_N], np.asarray(groups_N)[known_N]
    if not np.isfinite(x_ND).all():
        raise ValueError("features must be finite for nearest neighbours: mend the encoder or its input")
    mean_D, sd_D = x_ND.mean(axis=0), x_ND.std(axis=0)
    scale_D = np.where(sd_D > FLAT * np.maximum(np.abs(mean_D), 1e-30), sd_D, np.inf)
    z_ND = _unit(x_ND, mean_D, scale_D)
    fold_N = grouped_folds(groups_N, np.nan_to_num(target_NK, nan=-1) if kind != "regression" else target_NK[:, 0], min(4, len(np.unique(groups_N))), seed)
    error = np.zeros(len(grid))
    for fold in np.unique(fold_N):
        rows = fold_N == fold
        for i, k in enumerate(grid):
            error[i] += np.nansum((_vote(z_ND[~rows], target_NK[~rows], z_ND[rows], k) - target_NK[rows]) ** 2)
    best = grid[int(np.argmin(error))]
    return partial(_neighbours, z_ND, target_NK, mean_D, scale_D, best)


def _neighbours(z_ND: np.ndarray, target_NK: np.ndarray, mean_D: np.ndarray, scale_D: np.ndarray, k: int, x_MD: np.ndarray) -> np.ndarray:
    return _vote(z_ND, target_NK, _unit(x_MD, mean_D, scale_D), k)


def _vote(z_ND: np.ndarray, target_NK: np.ndarray, z_MD: np.ndarray, k: int, chunk: int = 512) -> np.ndarray:
    k, out = min(k, len(z_ND)), []
    for start in range(0, len(z_MD), chunk):
        cosine_MN = z_MD[start : start + chunk] @ z_ND.T
        near_Mk = np.argpartition(-cosine_MN, k - 1, axis=1)[:, :k]
        weight_Mk = np.exp((np.take_along_axis(cosine_MN, near_Mk, axis=1) - 1) / 0.07)
        value_MkK = target_NK[near_Mk]
        weight_MkK = weight_Mk[..., None] * np.isfinite(value_MkK)
        total_MK = weight_MkK.sum(axis=1)
        out.append(np.where(total_MK > 0, (weight_MkK * np.nan_to_num(value_MkK)).sum(axis=1) / np.maximum(total_MK, 1e-300), np.nanmean(target_NK, axis=0)))
    return np.concatenate(out)


def _unit(x_ND: np.ndarray, mean_D: np.ndarray, scale_D: np.ndarray) -> np.ndarray:
    z_ND = (np.asarray(x_ND, dtype=np.float64) - mean_D) / scale_D
    return z_ND / np.maximum(np.linalg.norm(z_ND, axis=1, keepdims=True), 1e-12)


def _fit_trees(name: str, x_ND: np.ndarray, y: np.ndarray, kind: Kind, n_classes: int, seed: int) -> Scores:
    x_ND, y = np.asarray(x_ND, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if kind == "multilabel":
        parts = [_fit_trees(name, x_ND, column, "binary", 2, seed) for column in y.T]
        return partial(_side_by_side, parts)
    known_N = np.isfinite(y) if kind == "regression" else y >= 0
    x_ND, y = x_ND[known_N], y[known_N]
    if kind != "regression" and len(np.unique(y)) < 2:
        raise ValueError("y holds one class only among the training rows: a classifier needs two; choose another task or more subjects")
    fill_D = _medians(x_ND)
    model = _tree_model(name, kind, len(x_ND), seed)
    weight_N = None if kind == "regression" else len(y) / (len(np.unique(y)) * np.bincount(y.astype(np.int64))[y.astype(np.int64)])
    model.fit(_filled(x_ND, fill_D), y if kind == "regression" else y.astype(np.int64), sample_weight=weight_N)
    return partial(_of_trees, model, fill_D, kind, n_classes)


def _of_trees(model: Any, fill_D: np.ndarray, kind: Kind, n_classes: int, x_MD: np.ndarray) -> np.ndarray:
    x_MD = _filled(x_MD, fill_D)
    if kind == "regression":
        return model.predict(x_MD)[:, None]
    if kind == "binary":
        return model.predict_proba(x_MD)[:, 1:]
    p_MK = np.zeros((len(x_MD), n_classes))  # a class that training lacks has probability 0
    p_MK[:, model.classes_] = model.predict_proba(x_MD)
    return p_MK


def _side_by_side(parts: Sequence[Scores], x_MD: np.ndarray) -> np.ndarray:
    return np.concatenate([part(x_MD) for part in parts], axis=1)


def _blended(n_windows: int) -> tuple[str, ...]:
    return ("forest", "boosted") if n_windows <= FOREST_WINDOWS else ("boosted",)


def _fit_blend(names: Sequence[str], x_ND: np.ndarray, y: np.ndarray, groups_N: np.ndarray, kind: Kind, classes: tuple[str, ...], seed: int) -> Scores:
    parts = [fit_readout(name, x_ND, y, groups_N, kind, classes, seed) for name in names]
    return partial(_blend_of, parts, kind)


def _blend_of(parts: Sequence[Scores], kind: Kind, x_MD: np.ndarray) -> np.ndarray:
    return blend([part(x_MD) for part in parts], kind)


def _tree_model(name: str, kind: Kind, n_windows: int, seed: int):
    from sklearn.ensemble import (
        ExtraTreesClassifier,
        ExtraTreesRegressor,
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
    )

    if name == "forest":
        settings = {"n_estimators": N_TREES, "min_samples_leaf": 2 if n_windows < 2000 else 5, "random_state": seed, "n_jobs": 1}
        return ExtraTreesRegressor(**settings, max_features=0.4) if kind == "regression" else ExtraTreesClassifier(**settings)
    leaf = int(np.clip(n_windows // 100, 5, 40))
    settings = {"max_iter": N_ROUNDS, "learning_rate": 0.06, "max_leaf_nodes": 12, "min_samples_leaf": leaf, "l2_regularization": 1.0, "max_features": 0.5}
    boosted = HistGradientBoostingRegressor if kind == "regression" else HistGradientBoostingClassifier
    return boosted(**settings, random_state=seed, early_stopping=False)


def _medians(x_ND: np.ndarray) -> np.ndarray:
    fill_D = np.zeros(x_ND.shape[1])
    some = ~np.isnan(x_ND).all(axis=0)
    fill_D[some] = np.nanmedian(x_ND[:, some], axis=0)
    return fill_D


def _filled(x_ND: np.ndarray, fill_D: np.ndarray) -> np.ndarray:
    x_ND = np.asarray(x_ND, dtype=np.float64)
    return np.where(np.isfinite(x_ND), x_ND, fill_D)


def blend(scores: Sequence[np.ndarray], kind: Kind, weights: Sequence[float] | None = None) -> np.ndarray:
    """The mean of scores (N, K), of probabilities on the log-odds scale; weighed where weights are given."""
    if kind == "regression":
        return np.average(scores, axis=0, weights=weights)
    mean = np.average([logit(np.clip(score, 1e-4, 1 - 1e-4)) for score in scores], axis=0, weights=weights)
    p_NK = 1 / (1 + np.exp(-mean))
    return p_NK / p_NK.sum(axis=1, keepdims=True) if kind == "multiclass" else p_NK


def _targets(y: np.ndarray, kind: Kind, n_classes: int) -> np.ndarray:
    """(N, K) with NaN for unknown: 0/1 a class, or the target."""
    y = np.asarray(y, dtype=np.float64)
    if kind == "multiclass":
        return np.where(y[:, None] >= 0, (y[:, None] == np.arange(n_classes)).astype(np.float64), np.nan)
    y = y[:, None] if y.ndim == 1 else y
    return y if kind == "regression" else np.where(y >= 0, y, np.nan)
