"""Gaps in windows: how they are cut, the plain ways to fill them, errors by distance to the nearest visible sample, and figures of whole reconstructions.

True means hidden. Letters: N windows, C channels, T samples, P order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from physio_train.forecasting import AR_ORDER, RIDGE, SNR_LIMIT_DB, ar_coefficients

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
GapKind = Literal["random", "contiguous", "trailing"]
GAPS: tuple[GapKind, ...] = ("random", "contiguous", "trailing")
JANSSEN_ROUNDS = 3


def gaps(kind: GapKind, n_windows: int, n_samples: int, ratio: float, *, patch: int = 1, seed: int = 0) -> Bool:
    """What is hidden, (N, T): the same number of stretches of `patch` samples in every window, `ratio` of it rounded, at least one and not all.

    ``random`` scatters them, ``contiguous`` takes one run with visible samples on both sides where they fit, ``trailing`` the last ones.
    """
    if kind not in GAPS:
        raise ValueError(f"kind must be one of {', '.join(GAPS)}, got {kind!r}")
    if patch < 1 or n_samples % patch or n_samples // patch < 2:
        raise ValueError(f"patch={patch} must divide the window of {n_samples} samples into at least two: give a divisor of {n_samples}")
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must lie in (0, 1), got {ratio}")
    n = n_samples // patch
    gone = min(max(1, round(ratio * n)), n - 1)
    rng = np.random.default_rng([seed, GAPS.index(kind)])
    hidden_Nn = np.zeros((n_windows, n), bool)
    if kind == "trailing":
        hidden_Nn[:, n - gone :] = True
    elif kind == "random":
        np.put_along_axis(hidden_Nn, rng.random((n_windows, n)).argsort(axis=1)[:, :gone], True, axis=1)
    else:
        inner = max(n - gone - 1, 1)
        start_N1 = rng.integers(1 if n - gone > 1 else 0, inner + 1 if n - gone > 1 else 1, size=(n_windows, 1))
        hidden_Nn = (np.arange(n) >= start_N1) & (np.arange(n) < start_N1 + gone)
    return hidden_Nn.repeat(patch, axis=1)


# Baselines: (windows (N, C, T), hidden (N, T)) -> windows with what is hidden put in; they look at visible samples alone


def linear(x_NCT: ArrayLike, hidden_NT: ArrayLike) -> Float:
    """Straight lines between visible samples; beyond the first and last, these."""
    return _each(x_NCT, hidden_NT, lambda at, value, missing: np.interp(missing, at, value))


def spline(x_NCT: ArrayLike, hidden_NT: ArrayLike) -> Float:
    """The natural cubic spline through the visible samples, within their range; beyond the first and last, these. Fewer than four: straight lines."""
    from scipy.interpolate import CubicSpline

    def fill(at: Float, value: Float, missing: Float) -> Float:
        if len(at) < 4:
            return np.interp(missing, at, value)
        return np.clip(CubicSpline(at, value, bc_type="natural")(np.clip(missing, at[0], at[-1])), value.min(), value.max())

    return _each(x_NCT, hidden_NT, fill)


def autoregressive(x_NCT: ArrayLike, hidden_NT: ArrayLike, order: int = AR_ORDER, rounds: int = JANSSEN_ROUNDS) -> Float:
    """Janssen, Veldhuis and Vries 1986 (IEEE Trans ASSP 34:317): from straight lines on, in turns the AR coefficients by least squares on the filled window
    and the hidden samples that make their residual smallest. The order is a third of the visible samples at most; held within twice the visible range."""
    x, hidden = _checked(x_NCT, hidden_NT)
    start, out = linear(x, hidden), x.copy()
    for n in range(len(x)):
        order_n = max(1, min(order, int((~hidden[n]).sum()) // 3))
        for c in range(x.shape[1]):
            out[n, c] = _janssen(start[n, c], hidden[n], order_n, rounds)
    return out


def _janssen(x_T: Float, hidden_T: Bool, order: int, rounds: int) -> Float:
    from scipy.linalg import LinAlgError, solveh_banded

    visible_T, unknown = ~hidden_T, np.flatnonzero(hidden_T)
    level = x_T[visible_T].mean()
    low, high = x_T[visible_T].min() - level, x_T[visible_T].max() - level
    middle, half = (low + high) / 2, (high - low) / 2
    line_T = x_T - level
    for _ in range(rounds):
        filter_P = np.concatenate([[1.0], -ar_coefficients(line_T[None], order)[0]])
        b_P = np.correlate(filter_P, filter_P, mode="full")[order:]
        known_T = np.where(visible_T, line_T, 0.0)
        kernel = np.concatenate([b_P[:0:-1], b_P])
        right = -np.convolve(known_T, kernel)[order : order + len(line_T)][unknown]
        bands = np.zeros((min(order, len(unknown) - 1) + 1, len(unknown)))
        for k in range(len(bands)):
            apart = unknown[k:] - unknown[: len(unknown) - k]
            bands[k, : len(unknown) - k] = np.where(apart <= order, b_P[np.minimum(apart, order)], 0.0)
        bands[0] += RIDGE * b_P[0]
        try:
            found = solveh_banded(bands, right, lower=True)
        except LinAlgError:  # coefficients without a definite residual: the last filling stands
            break
        line_T = line_T.copy()
        line_T[unknown] = np.clip(found, middle - 2 * half, middle + 2 * half)
    return np.where(visible_T, x_T, line_T + level)


BASELINES: Mapping[str, Callable[[ArrayLike, ArrayLike], Float]] = {"linear": linear, "spline": spline, "AR": autoregressive}


# Figures


def hidden_errors(x_NCT: ArrayLike, filled_NCT: ArrayLike, hidden_NT: ArrayLike) -> dict[str, Float]:
    """Over the hidden samples of each window, (N,): MAE and MSE in the signal's unit (squared), and SNR in dB within +-100."""
    x, hidden = _checked(x_NCT, hidden_NT)
    error = np.where(hidden[:, None], np.asarray(filled_NCT, dtype=np.float64) - x, 0.0)
    if not np.isfinite(error).all():
        raise ValueError("the filled windows are not finite where hidden: mend the model")
    n = hidden.sum(axis=1) * x.shape[1]
    mse, power = (error**2).sum(axis=(1, 2)) / n, (np.where(hidden[:, None], x, 0.0) ** 2).sum(axis=(1, 2)) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.where(mse == 0, SNR_LIMIT_DB, 10 * np.log10(power / mse))
    return {"MAE": np.abs(error).sum(axis=(1, 2)) / n, "MSE": mse, "SNR dB": np.clip(snr, -SNR_LIMIT_DB, SNR_LIMIT_DB)}


def distance_to_visible(hidden_NT: ArrayLike) -> NDArray[np.int64]:
    """Samples from each sample to the nearest visible one of its window, (N, T); 0 where it is visible itself."""
    hidden = np.asarray(hidden_NT, dtype=bool)
    far = 2 * hidden.shape[1]
    at_T = np.arange(hidden.shape[1])
    before = np.maximum.accumulate(np.where(hidden, -far, at_T), axis=1)
    after = np.minimum.accumulate(np.where(hidden, far, at_T)[:, ::-1], axis=1)[:, ::-1]
    return np.where(hidden, np.minimum(at_T - before, after - at_T), 0)


def error_by_distance(x_NCT: ArrayLike, filled_NCT: ArrayLike, hidden_NT: ArrayLike, edges: tuple[int, ...]) -> list[dict[str, float]]:
    """Mean absolute error of hidden samples from `edges[i]` to below `edges[i + 1]` samples away from a visible one; the last bin is open. Pooled over windows.

    Each entry: from, to (samples, `to` exclusive, inf in the last), n (samples of channels), mae (NaN where n is 0).
    """
    x, hidden = _checked(x_NCT, hidden_NT)
    if edges[0] != 1 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(f"edges must ascend from 1, got {edges}")
    error_NT, distance = np.abs(np.asarray(filled_NCT, dtype=np.float64) - x).mean(axis=1), distance_to_visible(hidden)
    out = []
    for low, high in zip(edges, (*edges[1:], np.inf), strict=True):
        inside = (distance >= low) & (distance < high)
        mae = float(error_NT[inside].mean()) if inside.any() else float("nan")
        out.append({"from": low, "to": float(high), "n": int(inside.sum()) * x.shape[1], "mae": mae})
    return out


def psnr_db(x_NCT: ArrayLike, other_NCT: ArrayLike) -> Float:
    """Peak signal to noise ratio by window, (N,), the mean over channels: 10 log10(range^2 / MSE), the range the true channel's own; within +-100 dB.

    NaN where every channel of the truth is flat.
    """
    x, other = np.asarray(x_NCT, dtype=np.float64), np.asarray(other_NCT, dtype=np.float64)
    span, mse = np.ptp(x, axis=2), ((x - other) ** 2).mean(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.clip(np.where(mse == 0, 100.0, 10 * np.log10(span**2 / mse)), -100, 100)
    return _mean_where(ratio, span > 0)


def ssim(x_NCT: ArrayLike, other_NCT: ArrayLike, *, sigma: float = 1.5) -> Float:
    """Structural similarity along time by window, (N,), the mean over channels: Wang et al. 2004 (IEEE Trans IP 13:600, eq. 13) with a Gaussian of `sigma`
    samples cut at 3.5 sigma, K1 = 0.01, K2 = 0.03, the range the true channel's own, population covariances, edges of half a window left out.

    NaN where every channel of the truth is flat; ValueError where the window is shorter than the Gaussian.
    """
    x, other = np.asarray(x_NCT, dtype=np.float64), np.asarray(other_NCT, dtype=np.float64)
    reach = int(3.5 * sigma + 0.5)
    if x.shape != other.shape or x.shape[2] < 2 * reach + 1:
        raise ValueError(f"both must be of one shape and at least {2 * reach + 1} samples long, got {x.shape} and {other.shape}")
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weight /= weight.sum()
    span = np.ptp(x, axis=2, keepdims=True)

    def mean(values: Float) -> Float:
        return np.lib.stride_tricks.sliding_window_view(values, len(weight), axis=2) @ weight

    a, b = mean(x), mean(other)
    aa, bb, ab = mean(x * x) - a * a, mean(other * other) - b * b, mean(x * other) - a * b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    with np.errstate(invalid="ignore"):
        index = ((2 * a * b + c1) * (2 * ab + c2)) / ((a * a + b * b + c1) * (aa + bb + c2))
    return _mean_where(index.mean(axis=2), span[:, :, 0] > 0)


def _mean_where(value_NC: Float, known_NC: Bool) -> Float:
    n = known_NC.sum(axis=1)
    return np.where(n > 0, np.where(known_NC, value_NC, 0.0).sum(axis=1) / np.maximum(n, 1), np.nan)


def _each(x_NCT: ArrayLike, hidden_NT: ArrayLike, fill: Callable[[Float, Float, Float], Float]) -> Float:
    x, hidden = _checked(x_NCT, hidden_NT)
    out = x.copy()
    for n in range(len(x)):
        at, missing = np.flatnonzero(~hidden[n]).astype(np.float64), np.flatnonzero(hidden[n])
        for c in range(x.shape[1]):
            out[n, c, missing] = fill(at, x[n, c, ~hidden[n]], missing.astype(np.float64))
    return out


def _checked(x_NCT: ArrayLike, hidden_NT: ArrayLike) -> tuple[Float, Bool]:
    x, hidden = np.asarray(x_NCT, dtype=np.float64), np.asarray(hidden_NT, dtype=bool)
    if x.ndim != 3 or hidden.shape != (x.shape[0], x.shape[2]):
        raise ValueError(f"windows must be (N, C, T) and hidden (N, T), got {x.shape} and {hidden.shape}")
    if (~hidden).sum(axis=1).min(initial=2) < 2 or hidden.sum(axis=1).min(initial=1) < 1:
        raise ValueError("every window needs at least two visible samples and a hidden one: choose another ratio")
    return x, hidden
