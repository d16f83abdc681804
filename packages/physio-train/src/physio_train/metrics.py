"""Scores of predictions, weighted, so that one sorted array serves every bootstrap replicate.

N windows, K labels, B weightings. Every metric takes `weight`: None (each window counts once), (N,) for one figure, or (B, N) for B figures.
Unknown labels (NaN; for binary ones also -1) are ignored; where a figure is not defined (one class only, say) it is NaN, never a guess.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Confusion(NamedTuple):
    """Counts at a threshold and what follows from them; NaN where a denominator is zero."""

    tn: float
    fp: float
    fn: float
    tp: float
    f1: float
    precision: float
    recall: float
    specificity: float
    accuracy: float
    mcc: float


def auroc(labels_N, scores_N, *, weight=None):
    """Area under the ROC curve, ties counted half (Mann-Whitney); NaN when only one class carries weight."""
    y, s, w, one = _known(labels_N, scores_N, weight)
    positive, negative = _by_threshold(y, s, w)
    above = np.cumsum(negative, axis=1) - 0.5 * negative  # negatives scored higher, for descending scores
    total = positive.sum(axis=1) * negative.sum(axis=1)
    return _done(1.0 - _ratio((positive * above).sum(axis=1), total), one)


def average_precision(labels_N, scores_N, *, weight=None):
    """Sum over thresholds of precision times the step in recall, windows of one score entering together; NaN without positives."""
    y, s, w, one = _known(labels_N, scores_N, weight)
    positive, negative = _by_threshold(y, s, w)
    hits = np.cumsum(positive, axis=1)
    precision = _ratio(hits, hits + np.cumsum(negative, axis=1))
    total = positive.sum(axis=1)
    return _done(_ratio(np.where(positive > 0, positive * precision, 0.0).sum(axis=1), total), one)


def sensitivity_at_specificity(labels_N, scores_N, *, specificity: float = 0.9, weight=None):
    """The largest sensitivity of any threshold whose specificity is at least `specificity` (no interpolation)."""
    if not 0 <= specificity <= 1:
        raise ValueError(f"specificity must lie in [0, 1], got {specificity}")
    y, s, w, one = _known(labels_N, scores_N, weight)
    positive, negative = _by_threshold(y, s, w)
    n_pos, n_neg = positive.sum(axis=1), negative.sum(axis=1)
    allowed = np.cumsum(negative, axis=1) <= (1 - specificity) * n_neg[:, None] + 1e-9
    best = np.where(allowed, np.cumsum(positive, axis=1), 0.0).max(axis=1, initial=0.0)
    return _done(np.where(n_neg > 0, _ratio(best, n_pos), np.nan), one)


def f1_at(labels_N, scores_N, *, threshold=0.5, weight=None):
    """F1 of `score >= threshold`; the threshold is one number or one per window (a fold's own). NaN without positives."""
    labels_N = np.asarray(labels_N, dtype=np.float64)
    decided = np.asarray(scores_N, dtype=np.float64) >= np.asarray(threshold, dtype=np.float64)
    y, d, w, one = _known(labels_N, decided, weight)
    tp = w @ (y * d)
    n_pos = w @ y
    return _done(np.where(n_pos > 0, _ratio(2 * tp, n_pos + w @ d), np.nan), one)


def best_threshold(labels_N, scores_N, *, weight=None) -> float:
    """The score at and above which calling a window positive gives the highest F1; to be used on validation predictions only. NaN without positives."""
    y, s, w, _ = _known(labels_N, scores_N, weight)
    if not (w[0] @ y) > 0:
        return float("nan")
    positive, negative = _by_threshold(y, s, w[:1])
    hits = np.cumsum(positive[0])
    called = hits + np.cumsum(negative[0])
    f1 = 2 * hits / (hits[-1] + np.maximum(called, 1e-300))
    return float(np.unique(s)[::-1][int(np.argmax(f1))])


def confusion(labels_N, scores_N, *, threshold: float = 0.5) -> Confusion:
    """Counts of `score >= threshold` against the labels."""
    y, d, w, _ = _known(labels_N, np.asarray(scores_N, dtype=np.float64) >= threshold, None)
    tp, fp, fn = float(w[0] @ (y * d)), float(w[0] @ ((1 - y) * d)), float(w[0] @ (y * (1 - d)))
    tn = len(y) - tp - fp - fn
    f1 = _share(2 * tp, 2 * tp + fp + fn)
    mcc = _share(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    return Confusion(tn, fp, fn, tp, f1, _share(tp, tp + fp), _share(tp, tp + fn), _share(tn, tn + fp), _share(tp + tn, len(y)), float(mcc))


def brier(labels_N, probabilities_N, *, weight=None):
    """Mean squared distance of the probability from the 0/1 label."""
    y, p, w, one = _known(labels_N, _probability(probabilities_N), weight)
    return _done(_ratio(w @ (p - y) ** 2, w.sum(axis=1)), one)


def ece(labels_N, probabilities_N, *, n_bins: int = 10, weight=None):
    """Expected calibration error over equal bins of [0, 1]: the weighted mean of |mean probability - rate of positives| (Naeini et al. 2015)."""
    y, p, w, one = _known(labels_N, _probability(probabilities_N), weight)
    bin_N = np.minimum((p * n_bins).astype(np.int64), n_bins - 1)
    member = (bin_N[:, None] == np.arange(n_bins)) * (p - y)[:, None]
    return _done(_ratio(np.abs(w @ member).sum(axis=1), w.sum(axis=1)), one)


def log_loss(labels_N, probabilities_N, *, clip: float = 1e-15, weight=None):
    """Mean negative log-likelihood (nats) of 0/1 labels, probabilities clipped to [clip, 1 - clip]."""
    y, p, w, one = _known(labels_N, _probability(probabilities_N), weight)
    p = np.clip(p, clip, 1 - clip)
    return _done(_ratio(w @ -(y * np.log(p) + (1 - y) * np.log1p(-p)), w.sum(axis=1)), one)


def balanced_accuracy(labels_N, predicted_N, *, weight=None):
    """Mean over the classes present of the share of their windows called right; labels and predictions are class numbers."""
    y, p, w, one = _known(labels_N, predicted_N, weight, binary=False)
    classes = np.unique(y[y >= 0])
    member = y[:, None] == classes
    recall = _ratio(w @ (member & (p[:, None] == classes)), w @ member)
    return _done(_nanmean(recall), one)


def accuracy(labels_N, predicted_N, *, weight=None):
    """Share of windows called right; labels and predictions are class numbers."""
    y, p, w, one = _known(labels_N, predicted_N, weight, binary=False)
    return _done(_ratio(w @ (y == p).astype(np.float64), w.sum(axis=1)), one)


def ectopic_beats(labels_N, predicted_N, classes: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Sensitivity and positive predictivity of ventricular (VEB) and supraventricular (SVEB) ectopic beats by the rule of ANSI/AAMI EC57.

    Labels and predictions are numbers of `classes`, which must hold N, S, V, F and Q. A fusion (F) or unclassifiable (Q) beat called V is no false positive of
    VEB, nor is a Q called S one of SVEB (de Chazal et al. 2004, IEEE Trans Biomed Eng 51:1196; PhysioNet's bxb counts so). NaN where there is no such beat,
    or no call that counts.
    """
    absent = [name for name in "NSVFQ" if name not in classes]
    if absent:
        raise ValueError(f"classes must hold N, S, V, F and Q, {', '.join(absent)} is missing from {', '.join(classes)}")
    of = {name: np.asarray(labels_N) == classes.index(name) for name in "NSVFQ"}
    called = {name: np.asarray(predicted_N) == classes.index(name) for name in "SV"}
    found = {}
    for name, letter, against in (("VEB", "V", "NS"), ("SVEB", "S", "NVF")):
        right = np.sum(of[letter] & called[letter])
        wrong = sum(np.sum(of[other] & called[letter]) for other in against)
        n = np.sum(of[letter])
        found[name] = (float(right / n) if n else float("nan"), float(right / (right + wrong)) if right + wrong else float("nan"))
    return found


def macro_f1(labels_N, predicted_N, *, weight=None):
    """Mean over the classes present among the labels of their F1, as scikit-learn's over those labels; labels and predictions are class numbers."""
    y, p, w, one = _known(labels_N, predicted_N, weight, binary=False)
    classes = np.unique(y[y >= 0])
    is_class, called = (y[:, None] == classes).astype(np.float64), (p[:, None] == classes).astype(np.float64)
    return _done(_nanmean(np.where(w @ is_class > 0, _ratio(2 * (w @ (is_class * called)), w @ is_class + w @ called), np.nan)), one)


def macro_auroc(labels_NK, scores_NK, *, weight=None):
    """Mean of the labels' AUROCs, labels with only one class present left out (never set to 0.5, which pulls intervals off their point)."""
    return macro(auroc, labels_NK, scores_NK, weight=weight)


def macro(metric, labels_NK, scores_NK, *, weight=None, **options):
    """Mean over labels of a binary metric, labels where it is not defined left out; a single column is the metric itself."""
    labels_NK, scores_NK = _columns(labels_NK), _columns(scores_NK)
    if labels_NK.shape != scores_NK.shape:
        raise ValueError(f"labels_NK {labels_NK.shape} and scores_NK {scores_NK.shape} must have one shape: one column per label in both")
    figures = [np.atleast_1d(metric(labels_NK[:, k], scores_NK[:, k], weight=weight, **options)) for k in range(labels_NK.shape[1])]
    return _done(_nanmean(np.stack(figures, axis=1)), weight is None or np.ndim(weight) == 1)


def mae(labels_N, predicted_N, *, weight=None):
    """Mean absolute error, in the labels' unit."""
    y, p, w, one = _known(labels_N, predicted_N, weight, binary=False)
    return _done(_ratio(w @ np.abs(p - y), w.sum(axis=1)), one)


def r2(labels_N, predicted_N, *, weight=None):
    """Coefficient of determination; NaN for constant labels."""
    y, p, w, one = _known(labels_N, predicted_N, weight, binary=False)
    middle = y.mean() if len(y) else 0.0
    y, p = y - middle, p - middle
    return _done(1.0 - _ratio(w @ (p - y) ** 2, _centred(w, y, y)), one)


def pearson(labels_N, predicted_N, *, weight=None):
    """Linear correlation; NaN where either side is constant."""
    y, p, w, one = _known(labels_N, predicted_N, weight, binary=False)
    y, p = (y - y.mean(), p - p.mean()) if len(y) else (y, p)
    return _done(_ratio(_centred(w, y, p), np.sqrt(_centred(w, y, y) * _centred(w, p, p))), one)


def roc_curve(labels_N, scores_N) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(1 - specificity, sensitivity, thresholds), one point per distinct score, descending."""
    y, s, w, _ = _known(labels_N, scores_N, None)
    positive, negative = (np.cumsum(v[0]) for v in _by_threshold(y, s, w))
    return _ratio(negative, negative[-1]), _ratio(positive, positive[-1]), np.unique(s)[::-1]


def precision_recall_curve(labels_N, scores_N) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(precision, recall, thresholds), one point per distinct score, descending. Its trapezoid area overstates tied scores: report `average_precision`."""
    y, s, w, _ = _known(labels_N, scores_N, None)
    positive, negative = (np.cumsum(v[0]) for v in _by_threshold(y, s, w))
    return _ratio(positive, positive + negative), _ratio(positive, positive[-1]), np.unique(s)[::-1]


def _known(labels, values, weight, *, binary: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Drop unknown labels; labels, values, weights (B, N) and whether one figure is wanted."""
    y, v = np.asarray(labels, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if y.ndim != 1 or y.shape != v.shape:
        raise ValueError(f"labels and scores must both be (N,), got {y.shape} and {v.shape}: use macro_auroc for several labels")
    w = np.ones((1, len(y))) if weight is None else np.atleast_2d(np.asarray(weight, dtype=np.float64))
    if w.shape[1] != len(y):
        raise ValueError(f"weight must be (N,) or (B, N) with N = {len(y)}, got {np.shape(weight)}")
    keep = np.isfinite(y) & (y >= 0) if binary else np.isfinite(y)
    if not keep.all():
        y, v, w = y[keep], v[keep], w[:, keep]
    if binary and np.any((y != 0) & (y != 1)):
        raise ValueError("labels must be 0, 1, or unknown (-1 or NaN) for a binary metric: give one column per class")
    if not np.isfinite(v).all():
        raise ValueError(f"scores must be finite where the label is known, {int((~np.isfinite(v)).sum())} are not: mend the model or its input")
    return y, v, w, weight is None or np.ndim(weight) == 1


def _by_threshold(y: np.ndarray, s: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives at each distinct score, descending: (B, T) each."""
    if not len(y):
        return np.zeros((len(w), 1)), np.zeros((len(w), 1))
    order = np.argsort(-s, kind="stable")
    sorted_s = s[order]
    first = np.flatnonzero(np.append(True, sorted_s[1:] != sorted_s[:-1]))
    w, y = w[:, order], y[order]
    positive = w * y
    if len(first) == len(y):
        return positive, w - positive
    return np.add.reduceat(positive, first, axis=1), np.add.reduceat(w - positive, first, axis=1)


def _probability(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, dtype=np.float64)
    if np.any((p < 0) | (p > 1)):
        raise ValueError(f"probabilities must lie in [0, 1], got {np.nanmin(p):.4g} to {np.nanmax(p):.4g}: pass the scores through a sigmoid first")
    return p


def _ratio(a, b):
    return np.divide(a, b, out=np.full(np.broadcast_shapes(np.shape(a), np.shape(b)), np.nan), where=np.asarray(b) > 0)


def _share(a: float, b: float) -> float:
    return a / b if b else float("nan")


def _centred(w: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Weighted sum of products about the weighted means; zero where it is only rounding."""
    total = np.maximum(w.sum(axis=1), 1e-300)
    value = w @ (a * b) - (w @ a) * (w @ b) / total
    return np.where(np.abs(value) < 1e-12 * (w @ np.abs(a * b)), 0.0, value)


def _nanmean(a_BK: np.ndarray) -> np.ndarray:
    known = np.isfinite(a_BK)
    return _ratio(np.where(known, a_BK, 0.0).sum(axis=1), known.sum(axis=1))


def _columns(a) -> np.ndarray:
    a = np.asarray(a, dtype=np.float64)
    return a[:, None] if a.ndim == 1 else a


def _done(figures_B: np.ndarray, one: bool):
    return float(figures_B[0]) if one else figures_B
