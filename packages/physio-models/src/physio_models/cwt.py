"""Continuous wavelet transforms of whole batches by FFT, exact against two definitions, differentiable, on any device.

Definition "pywt" is the one of PyWavelets: the wavelet is integrated on a grid of 4096 points over [-8, 8], read at the scale's step
and differentiated again, and beyond its ends the signal is zero. Definition "reference" is CWT-MAE's bank of Ricker wavelets: sampled
at whole samples, of unit energy, all as long as ten times the largest scale (or the signal), and beyond its ends the signal is mirrored.

Made fast by spectra computed once per bank and length; transforms no longer than the signal and one side of a wavelet's support
(what wraps around falls into the padding); scales that share such a length sharing the signal's spectrum; and blocks that stay in the
second cache. In float32 a support ends where what lies beyond has 3e-8 of the wavelet's norm; in float64 nothing is cut.
Shape letters: B signals, S scales, L samples, N samples of a transform, F its frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Wavelet = Literal["ricker", "morlet", "morlet_real"]
Definition = Literal["pywt", "reference"]

GRID = 4096  # points of the integrated wavelet
HALF_SUPPORT = 8.0  # of every wavelet, in scales
BANDWIDTH = 1.5  # of the complex Morlet wavelet, in squared scales; its centre is at one cycle per scale
NEGLECTED = 3e-8  # share of a wavelet's norm that its tails may have where float32 leaves them out
CPU_BLOCK = 2**20  # bytes of a block of rows, which with its spectrum stays in or near the second cache
CUDA_BLOCK = 2**28

WAVELETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # at u = time in scales, norm 1 (ricker, morlet_real: of the real line)
    "ricker": lambda u: 2 / (math.sqrt(3) * math.pi**0.25) * np.exp(-(u**2) / 2) * (1 - u**2),
    "morlet": lambda u: np.exp(-(u**2) / BANDWIDTH) * np.exp(2j * math.pi * u) / math.sqrt(math.pi * BANDWIDTH),
    "morlet_real": lambda u: np.exp(-(u**2) / 2) * np.cos(5 * u),
}
PEAK: dict[str, float] = {"ricker": math.sqrt(2) / (2 * math.pi), "morlet": 1.0, "morlet_real": 5 / (2 * math.pi)}  # cycles per scale


def cwt(
    x: Tensor,
    scales: Sequence[float],
    *,
    wavelet: Wavelet = "ricker",
    definition: Definition = "pywt",
    output: Literal["coefficients", "magnitude"] = "coefficients",
    out: Tensor | None = None,
) -> Tensor:
    """Transform signals (..., L) at ``scales`` (in samples): (..., S, L), in float64 for float64 signals, else in float32.

    Coefficients are real for ``ricker`` and ``morlet_real`` (pywt's ``mexh`` and ``morl``) and complex for ``morlet`` (``cmor1.5-1.0``);
    ``magnitude`` is their absolute value, whose gradient at zero is zero. Half precision is computed in float32, autocast or not.
    Gradients flow to the signal, once differentiable. ``out`` is written and returned where no gradient is wanted: a large result in new
    memory costs as much again in page faults. ``ValueError`` for a scale that is not positive or too small for pywt's definition, an
    unknown name, an empty signal, an ``out`` that does not fit, or a wavelet that the reference definition does not have.
    """
    scales = [float(scale) for scale in scales]
    _check(x, scales, wavelet, definition, output)
    x_BL = x.reshape(-1, x.shape[-1])
    x_BL = x_BL if x_BL.dtype == torch.float64 else x_BL.float()
    shape = (*x.shape[:-1], len(scales), x.shape[-1])
    wants_gradient = torch.is_grad_enabled() and x.requires_grad
    if out is not None:
        _check_out(out, shape, x_BL.dtype.to_complex() if (wavelet, output) == ("morlet", "coefficients") else x_BL.dtype, x_BL.device, wants_gradient)
        with torch.no_grad():
            fill = _fill_magnitude if (wavelet, output) == ("morlet", "magnitude") else _fill
            y_BSL = fill(out.view(-1, *shape[-2:]), x_BL, scales, wavelet, definition)
            return (y_BSL.abs_() if output == "magnitude" and wavelet != "morlet" else y_BSL).view(shape)
    if output == "magnitude" and wavelet == "morlet" and not wants_gradient:
        return _magnitude(x_BL, scales, wavelet, definition).reshape(shape)
    y_BSL = _transform(x_BL, scales, wavelet, definition).reshape(shape)
    return y_BSL.abs() if output == "magnitude" else y_BSL


def peak_frequency(scale: float, wavelet: Wavelet = "ricker") -> float:
    """Where a wavelet at a scale (in samples) answers most, in cycles per sample; times the rate in Hz."""
    return PEAK[wavelet] / scale


def linear_scales(n: int, *, first: float = 0.1, step: float = 1.0) -> tuple[float, ...]:
    """``first + step * i``: CWT-MAE's scales. At 100 Hz its first row is no wavelet (a scale below one sample is a delta) and 52 of 64 lie below 2 Hz."""
    return tuple(first + step * i for i in range(n))


def log_scales(n: int, band_hz: tuple[float, float], fs: float, wavelet: Wavelet = "ricker") -> tuple[float, ...]:
    """``n`` scales whose peak frequencies fall from ``band_hz[1]`` to ``band_hz[0]`` by equal ratios, for signals at ``fs`` Hz.

    ``ValueError`` unless 0 < low < high < fs / 2 and n is at least 2.
    """
    low, high = band_hz
    if n < 2 or not 0 < low < high < fs / 2:
        raise ValueError(f"band_hz must ascend inside (0, fs / 2 = {fs / 2:g}) and n be at least 2, got {band_hz} and n={n}")
    return tuple(PEAK[wavelet] * fs / (high * (low / high) ** (i / (n - 1))) for i in range(n))


class _Group(NamedTuple):
    """Consecutive scales that share a transform length."""

    rows: slice
    n_fft: int
    pad: int  # samples mirrored at either end
    spectrum_SF: Tensor  # of the wavelets, over n_fft


class _Kernel(NamedTuple):
    """A wavelet at a scale as a filter: y[t] = sum over o of taps[o - first] x[t - o]."""

    taps: np.ndarray
    first: int


def _check(x: Tensor, scales: list[float], wavelet: str, definition: str, output: str) -> None:
    for field, value, allowed in (
        ("wavelet", wavelet, tuple(WAVELETS)),
        ("definition", definition, ("pywt", "reference")),
        ("output", output, ("coefficients", "magnitude")),
    ):
        if value not in allowed:
            raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {value!r}")
    if definition == "reference" and wavelet != "ricker":
        raise ValueError(f"wavelet must be 'ricker' in the reference definition, got {wavelet!r}; use definition='pywt'")
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(f"scales must be positive and at least one, got {scales}")
    if x.ndim < 1 or x.shape[-1] < 1 or not x.is_floating_point():
        raise ValueError(f"x must be floating-point signals (..., samples) of at least one sample, got {tuple(x.shape)} of {x.dtype}")
    if definition == "pywt" and min(scales) * 2 * HALF_SUPPORT <= 1:
        raise ValueError(f"scales must exceed {0.5 / HALF_SUPPORT:g} samples in pywt's definition, got {min(scales):g}; there a wavelet has no two samples")


def _check_out(out: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, wants_gradient: bool) -> None:
    if wants_gradient:
        raise ValueError("out must be None where x wants a gradient: detach x, or leave out away")
    if out.shape != shape or out.dtype != dtype or out.device != device or not out.is_contiguous():
        raise ValueError(f"out must be contiguous {shape} {dtype} on {device}, got {tuple(out.shape)} {out.dtype} on {out.device}")


@lru_cache(maxsize=4)
def _integrated(wavelet: str) -> tuple[np.ndarray, np.ndarray]:
    """The running integral of the wavelet's conjugate and the grid it stands on."""
    u = np.linspace(-HALF_SUPPORT, HALF_SUPPORT, GRID)
    return np.cumsum(np.conj(WAVELETS[wavelet](u))) * (u[1] - u[0]), u


def _pywt_kernel(scale: float, wavelet: str) -> _Kernel:
    """PyWavelets' filter at a scale: its integral read at floored grid points, reversed, differentiated, times -sqrt(scale)."""
    integral, u = _integrated(wavelet)
    at = (np.arange(scale * (u[-1] - u[0]) + 1) / (scale * (u[1] - u[0]))).astype(int)
    ends = np.zeros(1, integral.dtype)
    stairs = np.concatenate([ends, integral[at[at < GRID]][::-1], ends])
    taps = -math.sqrt(scale) * np.diff(stairs)
    return _Kernel(taps, -1 - (len(taps) - 3) // 2)


def _reference_kernel(scale: float, width: int) -> _Kernel:
    """CWT-MAE's filter at a scale: the Ricker wavelet at whole samples around the middle of an odd width."""
    u = np.arange(-(width // 2), width // 2 + 1) / scale
    gain = 2 / (math.sqrt(3 * scale) * math.pi**0.25 + 1e-6)
    return _Kernel(gain * (1 - u**2) * np.exp(-(u**2) / 2), -(width // 2))


def _trimmed(kernel: _Kernel, n_samples: int, exact: bool) -> _Kernel:
    """Without taps that reach past the whole signal and, unless ``exact``, without negligible tails."""
    lag = np.arange(len(kernel.taps)) + kernel.first
    keep = np.abs(lag) < n_samples
    if not exact:
        energy = np.cumsum(np.abs(kernel.taps) ** 2)
        limit = 0.5 * NEGLECTED**2 * energy[-1]
        keep &= (energy > limit) & (np.cumsum(np.abs(kernel.taps[::-1]) ** 2)[::-1] > limit)
    at = np.flatnonzero(keep)
    return _Kernel(kernel.taps[at[0] : at[-1] + 1], kernel.first + int(at[0])) if len(at) else _Kernel(np.zeros(1, kernel.taps.dtype), 0)


def fast_length(n: int) -> int:
    """The shortest of 8, 9, 10, 12 and 14 times a power of two that is at least ``n``: lengths that FFT libraries are fast at."""
    power = max(1, 2 ** max(0, math.ceil(math.log2(n)) - 4))
    return next(m * power for m in (8, 9, 10, 12, 14, 16) if m * power >= n)


@lru_cache(maxsize=16)
def _bank(scales: tuple[float, ...], wavelet: str, definition: str, n_samples: int, dtype: torch.dtype, device: torch.device) -> tuple[_Group, ...]:
    """Spectra of all scales for signals of one length, divided by the transform's length, so that no inverse transform scales."""
    mirrored = definition == "reference"
    width = int(min(10 * max(scales), n_samples)) // 2 * 2 + 1
    kernels = [_reference_kernel(scale, width) if mirrored else _pywt_kernel(scale, wavelet) for scale in scales]
    kernels = [_trimmed(kernel, n_samples, exact=dtype == torch.float64) for kernel in kernels]
    reach = [max(-kernel.first, kernel.first + len(kernel.taps) - 1, 0) for kernel in kernels]
    lengths = [fast_length(n_samples + (2 if mirrored else 1) * r) for r in reach]
    groups, start = [], 0
    for n_fft, run in groupby(lengths):
        rows = slice(start, start + len(list(run)))
        spectrum = np.stack([_spectrum(kernel, n_fft) for kernel in kernels[rows]])
        complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
        groups.append(_Group(rows, n_fft, max(reach[rows]) if mirrored else 0, torch.from_numpy(spectrum).to(device, complex_dtype)))
        start = rows.stop
    return tuple(groups)


def _spectrum(kernel: _Kernel, n_fft: int) -> np.ndarray:
    """Half the spectrum of a real filter, the whole of a complex one, with lag zero at the first sample."""
    placed = np.zeros(n_fft, kernel.taps.dtype)
    np.add.at(placed, (np.arange(len(kernel.taps)) + kernel.first) % n_fft, kernel.taps)
    return (np.fft.fft(placed) if np.iscomplexobj(placed) else np.fft.rfft(placed)) / n_fft


def _groups(x_BL: Tensor, scales: Sequence[float], wavelet: str, definition: str) -> tuple[_Group, ...]:
    return _bank(tuple(scales), wavelet, definition, x_BL.shape[-1], torch.float64 if x_BL.dtype == torch.float64 else torch.float32, x_BL.device)


@lru_cache(maxsize=8)
def real_filters(scales: tuple[float, ...], wavelet: str, definition: str, n_samples: int) -> tuple[tuple[np.ndarray, bool], ...]:
    """The transform of signals of one length as correlations: (taps (S, 2 R + 1), whether ends are mirrored) of consecutive scales, in order.

    ``y[s, t] = sum over j of taps[s, j] x[t + j - R]``, complex for the complex Morlet. Scales of a group reach equally far to within a half.
    For graphs that know neither transforms nor complex numbers; float32's supports.
    """
    mirrored = definition == "reference"
    width = int(min(10 * max(scales), n_samples)) // 2 * 2 + 1
    kernels = [_trimmed(_reference_kernel(scale, width) if mirrored else _pywt_kernel(scale, wavelet), n_samples, exact=False) for scale in scales]
    reaches = [max(-kernel.first, kernel.first + len(kernel.taps) - 1, 0) for kernel in kernels]
    groups = []
    for _, run in groupby(range(len(kernels)), key=lambda i: math.ceil(2 * math.log2(reaches[i] + 1))):
        rows = list(run)
        reach = max(reaches[i] for i in rows)
        taps_SK = np.zeros((len(rows), 2 * reach + 1), np.result_type(*(kernels[i].taps for i in rows)))
        for row, i in enumerate(rows):
            lags = kernels[i].first + np.arange(len(kernels[i].taps))
            taps_SK[row, reach - lags] = kernels[i].taps
        groups.append((taps_SK, mirrored))
    return tuple(groups)


def _blocks(n_signals: int, group: _Group, item_bytes: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Signals and rows (of the group) in blocks of about the size of the cache."""
    n_rows = max(1, (CPU_BLOCK if device.type == "cpu" else CUDA_BLOCK) // (group.n_fft * item_bytes))
    rows = min(n_rows, len(group.spectrum_SF))
    signals = max(1, n_rows // rows)
    for first in range(0, n_signals, signals):
        for row in range(0, len(group.spectrum_SF), rows):
            yield slice(first, first + signals), slice(row, row + rows)


def _signal_spectrum(x_BL: Tensor, group: _Group, whole: bool) -> Tensor:
    if group.pad:
        x_BL = F.pad(x_BL[:, None], (group.pad, group.pad), mode="reflect")[:, 0]
    return torch.fft.fft(x_BL, n=group.n_fft) if whole else torch.fft.rfft(x_BL, n=group.n_fft)


def _filtered(x_BL: Tensor, scales: Sequence[float], wavelet: str, definition: str) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of the transform: signals, scales, and their coefficients (b, s, L), which the next block may overwrite."""
    whole = wavelet == "morlet"
    inverse = torch.fft.ifft if whole else torch.fft.irfft
    item_bytes = x_BL.element_size() * (2 if whole else 1)
    for group in _groups(x_BL, scales, wavelet, definition):
        x_BF = _signal_spectrum(x_BL, group, whole)
        product = x_BF.new_empty(0)
        for signals, rows in _blocks(len(x_BL), group, item_bytes, x_BL.device):
            a, b = x_BF[signals, None], group.spectrum_SF[rows]
            shape = (a.shape[0], *b.shape)
            product = product if product.shape == shape else x_BF.new_empty(shape)
            y = inverse(torch.mul(a, b, out=product), n=group.n_fft, norm="forward")
            yield signals, slice(group.rows.start + rows.start, group.rows.start + rows.start + shape[1]), y[..., group.pad : group.pad + x_BL.shape[-1]]


# Operators that a compiler takes as they are. `torch.library.custom_op` would import the whole compiler at the first call, seconds of it.
_LIBRARY = torch.library.Library("physio_models", "DEF")
_LIBRARY.define("cwt(Tensor x_BL, float[] scales, str wavelet, str definition) -> Tensor")
_LIBRARY.define("cwt_magnitude(Tensor x_BL, float[] scales, str wavelet, str definition) -> Tensor")
_LIBRARY.define("cwt_backward(Tensor grad_BSL, float[] scales, str wavelet, str definition) -> Tensor")
_transform = torch.ops.physio_models.cwt
_magnitude = torch.ops.physio_models.cwt_magnitude
_adjoint = torch.ops.physio_models.cwt_backward


def _fill(y_BSL: Tensor, x_BL: Tensor, scales: Sequence[float], wavelet: str, definition: str) -> Tensor:
    with torch.autocast(x_BL.device.type, enabled=False):
        for signals, rows, block in _filtered(x_BL, scales, wavelet, definition):
            y_BSL[signals, rows] = block
    return y_BSL


def _fill_magnitude(y_BSL: Tensor, x_BL: Tensor, scales: Sequence[float], wavelet: str, definition: str) -> Tensor:
    """|y| of a complex transform without writing y: sqrt(re^2 + im^2), three times as fast as abs, with no useful gradient at zero."""
    with torch.autocast(x_BL.device.type, enabled=False):
        for signals, rows, block in _filtered(x_BL, scales, wavelet, definition):
            parts = torch.view_as_real(block)
            parts.mul_(parts)
            torch.add(parts[..., 0], parts[..., 1], out=y_BSL[signals, rows]).sqrt_()
    return y_BSL


@torch.library.impl(_LIBRARY, "cwt", "CompositeExplicitAutograd")
def _cwt(x_BL: Tensor, scales: Sequence[float], wavelet: str, definition: str) -> Tensor:
    return _fill(_empty(x_BL, scales, wavelet, definition), x_BL, scales, wavelet, definition)


@torch.library.impl(_LIBRARY, "cwt_magnitude", "CompositeExplicitAutograd")
def _cwt_magnitude(x_BL: Tensor, scales: Sequence[float], wavelet: str, definition: str) -> Tensor:
    return _fill_magnitude(x_BL.new_empty(len(x_BL), len(scales), x_BL.shape[-1]), x_BL, scales, wavelet, definition)


@torch.library.impl(_LIBRARY, "cwt_backward", "CompositeExplicitAutograd")
def _cwt_backward(grad_BSL: Tensor, scales: Sequence[float], wavelet: str, definition: str) -> Tensor:
    """The transform's adjoint: every row's gradient correlated with its wavelet, summed over rows, mirrored ends folded back."""
    whole = grad_BSL.is_complex()
    n_samples = grad_BSL.shape[-1]
    x_BL = torch.zeros(len(grad_BSL), n_samples, dtype=grad_BSL.real.dtype, device=grad_BSL.device)
    forward, inverse = (torch.fft.fft, torch.fft.ifft) if whole else (torch.fft.rfft, torch.fft.irfft)
    with torch.autocast(x_BL.device.type, enabled=False):
        for group in _groups(x_BL, scales, wavelet, definition):
            total_BF = group.spectrum_SF.new_zeros(len(x_BL), group.spectrum_SF.shape[1])
            for signals, rows in _blocks(len(x_BL), group, grad_BSL.element_size(), x_BL.device):
                at = slice(group.rows.start + rows.start, group.rows.start + min(rows.stop, len(group.spectrum_SF)))
                g = F.pad(grad_BSL[signals, at], (group.pad, 0)) if group.pad else grad_BSL[signals, at]
                total_BF[signals] += (forward(g, n=group.n_fft) * group.spectrum_SF[rows].conj()).sum(1)
            back = inverse(total_BF, n=group.n_fft, norm="forward")
            x_BL += _folded((back.real if whole else back)[:, : n_samples + 2 * group.pad], group.pad)
    return x_BL


def _folded(x_BL: Tensor, pad: int) -> Tensor:
    """The adjoint of mirroring ``pad`` samples at either end."""
    if not pad:
        return x_BL
    middle = x_BL[:, pad:-pad].clone()
    middle[:, 1 : pad + 1] += x_BL[:, :pad].flip(1)
    middle[:, -pad - 1 : -1] += x_BL[:, -pad:].flip(1)
    return middle


def _empty(x_BL: Tensor, scales: Sequence[float], wavelet: str, definition: str) -> Tensor:
    dtype = x_BL.dtype.to_complex() if wavelet == "morlet" else x_BL.dtype
    return x_BL.new_empty(len(x_BL), len(scales), x_BL.shape[-1], dtype=dtype)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.scales, ctx.wavelet, ctx.definition = inputs


def _backward(ctx: Any, grad_BSL: Tensor) -> tuple[Tensor, None, None, None]:
    return _adjoint(grad_BSL, ctx.scales, ctx.wavelet, ctx.definition), None, None, None


torch.library.register_fake("physio_models::cwt", _empty, lib=_LIBRARY)
torch.library.register_autograd("physio_models::cwt", _backward, setup_context=_remember, lib=_LIBRARY)
torch.library.register_fake("physio_models::cwt_magnitude", lambda x_BL, scales, *_: x_BL.new_empty(len(x_BL), len(scales), x_BL.shape[-1]), lib=_LIBRARY)
torch.library.register_fake(
    "physio_models::cwt_backward", lambda grad_BSL, *_: grad_BSL.new_empty(grad_BSL.shape[0], grad_BSL.shape[2], dtype=grad_BSL.dtype.to_real()), lib=_LIBRARY
)
