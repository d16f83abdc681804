"""Forecasts of a waveform: figures that are always defined where they can be, and the plain methods that a network must beat.

A forecast knows the first samples of a window, the context, and says the last, the horizon. Figures are per window, means over channels, so that whole
subjects can be resampled (`physio_train.scorecard`). Letters: N windows, C channels, T samples of the context, H of the horizon, P order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]

LEAST_STEP = 1e-3  # MASE divides by no less: 1 uV where the unit is mV
SNR_LIMIT_DB = 100.0  # a perfect forecast, and a forecast of silence, stay finite
AR_ORDER = 32
RIDGE = 1e-6  # of the mean power, so that a flat context has coefficients too
FIGURES = ("MSE", "MAE", "MASE", "r", "SNR dB")


def figures(truth_NCH: ArrayLike, forecast_NCH: ArrayLike, context_NCT: ArrayLike) -> dict[str, Float]:
    """Each of `FIGURES` by window, (N,): MSE and MAE in the signal's unit (squared), MASE, Pearson r, SNR in dB.

    MASE is the MAE over the mean absolute step of the context (Hyndman and Koehler 2006, Int J Forecasting 22:679), which counts as 0.001 units at least, so
    that a flat context has one. r is 0 for a flat forecast, and NaN (left out of means) for a truth that is flat in all channels. SNR is the truth's mean
    square over the error's, within +-100 dB. ValueError for shapes that differ and values that are not finite.
    """
    truth, forecast, context = _checked(truth_NCH, "truth"), _checked(forecast_NCH, "forecast"), _checked(context_NCT, "context")
    if truth.shape != forecast.shape or context.shape[:2] != truth.shape[:2]:
        raise ValueError(
            f"truth and forecast must have one shape and the context their windows and channels, got {truth.shape}, {forecast.shape}, {context.shape}"
        )
    if context.shape[2] < 2:
        raise ValueError(f"the context must hold at least 2 samples, got {context.shape[2]}: forecast a smaller part of the window")
    error = forecast - truth
    mae_NC = np.abs(error).mean(axis=2)
    step_NC = np.maximum(np.abs(np.diff(context, axis=2)).mean(axis=2), LEAST_STEP)
    return {
        "MSE": (error**2).mean(axis=(1, 2)),
        "MAE": mae_NC.mean(axis=1),
        "MASE": (mae_NC / step_NC).mean(axis=1),
        "r": _mean_known(_pearson(truth, forecast)),
        "SNR dB": snr_db(truth, error).mean(axis=1),
    }


def snr_db(truth_NCH: Float, error_NCH: Float) -> Float:
    """10 log10 of the truth's mean square over the error's, (N, C), within +-100 dB."""
    signal, noise = (truth_NCH**2).mean(axis=-1), (error_NCH**2).mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 10 * np.log10(signal / noise)
    return np.clip(np.where(noise == 0, SNR_LIMIT_DB, ratio), -SNR_LIMIT_DB, SNR_LIMIT_DB)


def token_accuracy(truth: list[np.ndarray], forecast: list[np.ndarray]) -> Float:
    """Share of each window's true tokens that the forecast has at the same place, (N,); a place that the forecast lacks is wrong, no true token is NaN."""
    if len(truth) != len(forecast):
        raise ValueError(f"truth and forecast must hold as many windows, got {len(truth)} and {len(forecast)}")
    out = np.full(len(truth), np.nan)
    for n, (true, said) in enumerate(zip(truth, forecast, strict=True)):
        both = min(len(true), len(said))
        if len(true):
            out[n] = np.count_nonzero(np.asarray(true[:both]) == np.asarray(said[:both])) / len(true)
    return out


def _pearson(a_NCH: Float, b_NCH: Float) -> Float:
    a, b = a_NCH - a_NCH.mean(axis=-1, keepdims=True), b_NCH - b_NCH.mean(axis=-1, keepdims=True)
    aa, bb = (a**2).sum(axis=-1), (b**2).sum(axis=-1)
    tiny = 1e-24 * a_NCH.shape[-1]
    flat_truth, flat_forecast = aa <= tiny * np.maximum(1, (a_NCH**2).max(axis=-1)), bb <= tiny * np.maximum(1, (b_NCH**2).max(axis=-1))
    r = (a * b).sum(axis=-1) / np.sqrt(np.where(flat_truth | flat_forecast, 1.0, aa * bb))
    return np.where(flat_truth, np.nan, np.where(flat_forecast, 0.0, np.clip(r, -1, 1)))


def _mean_known(value_NC: Float) -> Float:
    known = np.isfinite(value_NC)
    n = known.sum(axis=1)
    return np.where(n > 0, np.where(known, value_NC, 0.0).sum(axis=1) / np.maximum(n, 1), np.nan)


# Baselines: (context (N, C, T), samples to say, rate in Hz) -> (N, C, H)


def persistence(context_NCT: ArrayLike, horizon: int, fs: float) -> Float:
    """The last sample for ever."""
    context = _checked_context(context_NCT, horizon)
    return np.repeat(context[:, :, -1:], horizon, axis=2)


def mean_level(context_NCT: ArrayLike, horizon: int, fs: float) -> Float:
    """The context's mean for ever: what a forecast without any knowledge of phase should say."""
    context = _checked_context(context_NCT, horizon)
    return np.repeat(context.mean(axis=2, keepdims=True), horizon, axis=2)


def seasonal_naive(context_NCT: ArrayLike, horizon: int, fs: float) -> Float:
    """The last period over and over; the period is each window's own (`period`). Without one it is the last sample, as `persistence`."""
    context = _checked_context(context_NCT, horizon)
    n_T = context.shape[2]
    period_N = period(context, fs)
    step_H = np.arange(horizon)
    at_NH = np.where(period_N[:, None] > 0, n_T - period_N[:, None] + step_H % np.maximum(period_N, 1)[:, None], n_T - 1)
    return np.take_along_axis(context, np.repeat(at_NH[:, None], context.shape[1], axis=1), axis=2)


def linear_trend(context_NCT: ArrayLike, horizon: int, fs: float, last_s: float = 0.2) -> Float:
    """The line through the last `last_s` seconds by least squares, held within the context's range."""
    context = _checked_context(context_NCT, horizon)
    n = min(context.shape[2], max(2, round(last_s * fs)))
    t_n, tail = np.arange(n) - (n - 1) / 2, context[:, :, -n:]
    slope_NC1 = (tail * t_n).sum(axis=2, keepdims=True) / (t_n**2).sum()
    line = tail.mean(axis=2, keepdims=True) + slope_NC1 * (np.arange(1, horizon + 1) + (n - 1) / 2)
    return np.clip(line, context.min(axis=2, keepdims=True), context.max(axis=2, keepdims=True))


def autoregressive(context_NCT: ArrayLike, horizon: int, fs: float, order: int = AR_ORDER) -> Float:
    """Linear prediction from the last `order` samples and a constant, coefficients by least squares on each channel's context, applied to its own output.

    The order is a third of the context at most; what grows beyond twice the context's range about its middle is held there.
    """
    context = _checked_context(context_NCT, horizon)
    n_N, n_C, n_T = context.shape
    order = max(1, min(order, n_T // 3))
    flat = context.reshape(-1, n_T)
    middle_M, half_M = (flat.max(axis=1) + flat.min(axis=1)) / 2, (flat.max(axis=1) - flat.min(axis=1)) / 2
    x_MT = flat - flat.mean(axis=1, keepdims=True)
    coefficient_MP = ar_coefficients(x_MT, order)
    low_M, high_M = middle_M - 2 * half_M - flat.mean(axis=1), middle_M + 2 * half_M - flat.mean(axis=1)
    line = np.concatenate([x_MT[:, -order:], np.zeros((len(flat), horizon))], axis=1)
    for h in range(horizon):
        line[:, order + h] = np.clip((line[:, h : h + order] * coefficient_MP[:, ::-1]).sum(axis=1), low_M, high_M)
    return (line[:, order:] + flat.mean(axis=1, keepdims=True)).reshape(n_N, n_C, horizon)


def ar_coefficients(x_MT: Float, order: int) -> Float:
    """Coefficients (M, P), the nearest sample's first, that predict each row's samples from the P before: least squares (the covariance method)."""
    before = np.lib.stride_tricks.sliding_window_view(x_MT[:, :-1], order, axis=1)[:, :, ::-1]
    out = np.empty((len(x_MT), order))
    for m in range(len(x_MT)):
        gram_PP = before[m].T @ before[m]
        ridge = RIDGE * max(np.trace(gram_PP) / order, 1e-12)
        out[m] = np.linalg.solve(gram_PP + ridge * np.eye(order), before[m].T @ x_MT[m, order:])
    return out


def period(context_NCT: ArrayLike, fs: float, low_s: float = 0.3, high_s: float = 2.0, least: float = 0.2) -> NDArray[np.int64]:
    """Each window's period in samples (N,), 0 where it has none: the lag of highest autocorrelation between `low_s` and `high_s` seconds.

    The autocorrelation is the mean over channels of the unbiased one (by FFT, level removed); it must have a local peak above `least` of its power. A lag
    needs half a context at least.
    """
    context = np.asarray(context_NCT, dtype=np.float64)
    n_T = context.shape[2]
    x = context - context.mean(axis=2, keepdims=True)
    power_F = np.abs(np.fft.rfft(x, 2 * n_T, axis=2)) ** 2
    sums = np.fft.irfft(power_F, axis=2)[:, :, :n_T]
    scale = np.where(sums[:, :, :1] > 1e-12, sums[:, :, :1], 1.0)
    r_NT = (sums / scale).mean(axis=1) * (n_T / (n_T - np.arange(n_T)))
    first, last = max(1, round(low_s * fs)), min(round(high_s * fs), n_T // 2)
    if last <= first:
        return np.zeros(len(x), np.int64)
    inner = r_NT[:, first : last + 1]
    peak = (inner >= r_NT[:, first - 1 : last]) & (inner >= r_NT[:, first + 1 : last + 2]) & (inner > least)
    best = np.where(peak, inner, -np.inf).argmax(axis=1)
    return np.where(peak.any(axis=1), best + first, 0)


BASELINES: Mapping[str, Callable[[ArrayLike, int, float], Float]] = {
    "persistence": persistence,
    "mean": mean_level,
    "seasonal naive": seasonal_naive,
    "linear trend": linear_trend,
    "AR": autoregressive,
}


def _checked(x: ArrayLike, name: str) -> Float:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 3:
        raise ValueError(f"{name} must be (windows, channels, samples), got shape {x.shape}")
    if bad := int((~np.isfinite(x)).any(axis=(1, 2)).sum()):
        raise ValueError(f"{name} is not finite in {bad} of {len(x)} windows: mend the model or leave these windows out")
    return x


def _checked_context(context_NCT: ArrayLike, horizon: int) -> Float:
    context = _checked(context_NCT, "context")
    if horizon < 1 or context.shape[2] < 2:
        raise ValueError(f"horizon must be at least 1 and the context 2 samples, got {horizon} and {context.shape[2]}")
    return context
