"""Do probabilities mean what they say? Reliability by bins, and the line that would mend them. N windows, K bins."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit

from physio_train.metrics import brier, ece

CLIP = 1e-6  # probabilities are kept this far from 0 and 1 before their log-odds are taken


class Reliability(NamedTuple):
    """Bins that hold a window: mean probability, rate of positives, windows."""

    probability_K: np.ndarray
    rate_K: np.ndarray
    n_K: np.ndarray


class Calibration(NamedTuple):
    """Cox's line (Cox 1958): log-odds of the label = intercept + slope * log-odds of the probability; 0 and 1 when calibrated. With Brier score and ECE."""

    intercept: float
    slope: float
    brier: float
    ece: float


def reliability(labels_N: np.ndarray, probabilities_N: np.ndarray, *, n_bins: int = 10) -> Reliability:
    """Windows of known label in equal bins of [0, 1], empty bins left out."""
    y_N, p_N = _known(labels_N, probabilities_N)
    bin_N = np.minimum((p_N * n_bins).astype(np.int64), n_bins - 1)
    n_K = np.bincount(bin_N, minlength=n_bins)
    there = n_K > 0
    mean = lambda v: np.bincount(bin_N, weights=v, minlength=n_bins)[there] / n_K[there]  # noqa: E731
    return Reliability(mean(p_N), mean(y_N), n_K[there])


def calibration(labels_N: np.ndarray, probabilities_N: np.ndarray) -> Calibration:
    """Intercept and slope by maximum likelihood (Newton's method); NaN with one class, a constant probability, or perfectly separated classes."""
    y_N, p_N = _known(labels_N, probabilities_N)
    z_N = logit(np.clip(p_N, CLIP, 1 - CLIP))
    intercept, slope = np.nan, np.nan
    separated = len(np.unique(y_N)) < 2 or np.ptp(z_N) < 1e-9 or z_N[y_N == 1].min() > z_N[y_N == 0].max() or z_N[y_N == 1].max() < z_N[y_N == 0].min()
    if not separated:
        intercept, slope = _newton(z_N, y_N)
    return Calibration(intercept, slope, brier(y_N, p_N), ece(y_N, p_N))


def _newton(z_N: np.ndarray, y_N: np.ndarray) -> tuple[float, float]:
    design_N2, w_2 = np.stack([np.ones_like(z_N), z_N], axis=1), np.zeros(2)
    loss = lambda w: np.sum(np.logaddexp(0, design_N2 @ w) - y_N * (design_N2 @ w))  # noqa: E731
    for _ in range(100):
        p_N = expit(design_N2 @ w_2)
        hessian = design_N2.T @ (design_N2 * (p_N * (1 - p_N) + 1e-12)[:, None])
        step_2, size, before = np.linalg.solve(hessian, design_N2.T @ (y_N - p_N)), 1.0, loss(w_2)
        while loss(w_2 + size * step_2) > before + 1e-12 and size > 1e-6:
            size /= 2
        w_2 = w_2 + size * step_2
        if np.abs(step_2).max() < 1e-10:
            break
    return float(w_2[0]), float(w_2[1])


def _known(labels_N: np.ndarray, probabilities_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y_N, p_N = np.asarray(labels_N, dtype=np.float64), np.asarray(probabilities_N, dtype=np.float64)
    keep = np.isfinite(y_N) & (y_N >= 0)
    y_N, p_N = y_N[keep], p_N[keep]
    if not len(y_N):
        raise ValueError("no window has a known label: calibration needs some")
    if not (np.isfinite(p_N) & (p_N >= 0) & (p_N <= 1)).all():
        raise ValueError("probabilities must be finite and lie in [0, 1]: pass the scores through a sigmoid first")
    return y_N, p_N
