"""Prepared windows from a running signal: causal filters and a resampler that carry their state, and a cutter on one clock.

A `Stream` takes chunks of any size and gives a window as soon as its last sample is decided; what it gives does not depend on how the
signal was chunked, bit for bit, and `causal_prepare` gives the same offline. Its memory does not grow. Work is done when a window is
due, not when a sample comes, so a chunk of one sample costs next to nothing. Shape letters: C channels, N windows, T samples of a
window, n samples of a chunk.

    chunk (C, n) -> gaps by clock or by value -> Butterworth, notch (state) -> polyphase resampler (history) -> windows (C, T) on the grid
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from physio_data.conditioning import finite_runs
from physio_data.windows import cut

BLOCK = 65_536  # input samples filtered at once at most, which bounds memory where windows or hops are long
N_STEPS = 32  # steps of the clock that tell a changed rate from jitter
RATE_TOLERANCE = 0.05  # of the mean step


class StreamError(ValueError):
    """The stream is not what its plan says; the message names what mends it."""


class NotFiniteError(StreamError):
    """A sample is NaN or infinite."""


class ClockError(StreamError):
    """A sample is not later than the one before."""


class RateError(StreamError):
    """Samples come at another rate than the plan's."""


class Window(NamedTuple):
    """A prepared window: its first sample at the plan's output rate, counted from the stream's first, its time, and (C, T) float32."""

    start: int
    start_s: float
    x_CT: np.ndarray


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """How a running signal becomes windows. The grid of windows is that of the offline preparation: one every ``hop`` samples from the first sample on."""

    channels: tuple[str, ...]
    fs_in: float  # Hz, of the stream
    fs: float  # Hz, of the windows
    n_samples: int  # T
    hop: int  # samples at `fs` from one window's start to the next one's
    band: tuple[float | None, float | None] | None = None  # pass band in Hz, a side None where open; None: unfiltered
    notch_hz: float | None = None
    order_low: int = 1  # of the high-pass: low, since steep causal ones bend the slow waves of every beat (README: how far)
    order_high: int = 4  # of the low-pass
    settle_s: float = 0.0  # after the start and after each gap no window begins within this time
    on_nan: Literal["error", "gap"] = "error"  # a sample that is not finite: refused, or missing

    def __post_init__(self) -> None:
        if isinstance(self.channels, str) or not self.channels:
            raise ValueError(f"channels must be a tuple of at least one name, got {self.channels!r}")
        for field in ("fs_in", "fs"):
            if not (math.isfinite(getattr(self, field)) and getattr(self, field) > 0):
                raise ValueError(f"{field} must be a positive rate in Hz, got {getattr(self, field)}")
        if self.n_samples < 1 or self.hop < 1:
            raise ValueError(f"n_samples and hop must be at least 1, got {self.n_samples} and {self.hop}")
        edges = [hz for hz in (self.band or ()) if hz is not None]
        if not all(0 < hz < self.fs_in / 2 for hz in edges) or edges != sorted(set(edges)):
            raise ValueError(f"band must satisfy 0 < low < high < fs_in/2 = {self.fs_in / 2:g} Hz, got {self.band}; lower the edge or sample faster")
        if self.notch_hz is not None and not 0 < self.notch_hz < self.fs_in / 2:
            raise ValueError(f"notch_hz must lie between 0 and fs_in/2 = {self.fs_in / 2:g} Hz, got {self.notch_hz}; leave it out")
        if self.order_low < 1 or self.order_high < 1:
            raise ValueError(f"order_low and order_high must be at least 1, got {self.order_low} and {self.order_high}")
        if not (math.isfinite(self.settle_s) and self.settle_s >= 0):
            raise ValueError(f"settle_s must be 0 or more seconds, got {self.settle_s}")
        if self.on_nan not in ("error", "gap"):
            raise ValueError(f"on_nan must be error or gap, got {self.on_nan!r}")
        if self.ratio == 0:
            raise ValueError(f"fs={self.fs} is more than 10,000 times below fs_in={self.fs_in}; average the signal first")

    @property
    def ratio(self) -> Fraction:
        """fs / fs_in as the resampler takes it, with terms up to 10,000."""
        return Fraction(self.fs / self.fs_in).limit_denominator(10_000)

    @property
    def delay_s(self) -> float:
        """How long after a window's last sample it comes out: what the resampler looks ahead. The filters shift no clock; their phase is in the signal."""
        return _polyphase(self.ratio).half / self.ratio.numerator / self.fs_in


class Stream:
    """Chunks in, windows out. One object a signal; `push` what comes, `gap` what is known to be lost, `close` at the end."""

    def __init__(self, plan: StreamPlan) -> None:
        self.plan = plan
        self._conditioner: _Segment | None = None
        self._n_in = 0  # input samples so far, lost ones counted
        self._clock = _Clock(plan.fs_in)
        self._pending: list[np.ndarray] = []  # (C, n) float64 pieces of the running segment, not filtered yet
        self._n_pending = 0
        self._cutter = _Cutter(plan)
        self._closed = False

    @property
    def n_seen(self) -> int:
        """Input samples so far, lost ones counted."""
        return self._n_in

    def push(self, x_Cn: np.ndarray, time_s: float | np.ndarray | None = None) -> list[Window]:
        """The windows that this chunk completes.

        ``time_s`` is the time of the chunk's first sample, or (n,) of each; a step of more than one and a half samples is a gap as long as
        it says. Without times every sample follows the one before. `NotFiniteError`, `ClockError` or `RateError` leave the stream as it
        was before the chunk; `ValueError` for a chunk of another shape.
        """
        x_Cn = self._checked(x_Cn)
        pieces = [(0, x_Cn)] if time_s is None else self._by_clock(x_Cn, time_s)
        done: list[Window] = []
        for n_lost, piece_Cn in pieces:
            if n_lost:
                done += self._lose(n_lost)
            done += self._finite_parts(piece_Cn) if self.plan.on_nan == "gap" else self._feed(piece_Cn)
        return done

    def gap(self, n_lost: int) -> list[Window]:
        """Samples that were lost: the windows that end before them; none will lie across. ``ValueError`` unless it is at least one sample."""
        if n_lost < 1:
            raise ValueError(f"n_lost must be at least one sample, got {n_lost}")
        self._open()
        self._clock.skip(n_lost)
        return self._lose(n_lost)

    def close(self) -> list[Window]:
        """The end of the stream: the windows that the resampler still looked ahead for. A closed stream takes nothing more."""
        self._open()
        self._closed = True
        return self._end_segment()

    def _open(self) -> None:
        if self._closed:
            raise StreamError("the stream is closed; make a new Stream for another signal")

    def _checked(self, x_Cn: np.ndarray) -> np.ndarray:
        self._open()
        x_Cn = np.asarray(x_Cn)
        if x_Cn.ndim != 2 or len(x_Cn) != len(self.plan.channels):
            raise ValueError(
                f"a chunk must be ({len(self.plan.channels)} channels, samples), got shape {x_Cn.shape}; name and order them as {self.plan.channels}"
            )
        if self.plan.on_nan == "error" and not (finite := np.isfinite(x_Cn)).all():
            c, n = (int(i) for i in np.argwhere(~finite)[0])
            raise NotFiniteError(
                f"channel {self.plan.channels[c]} is {x_Cn[c, n]} at sample {self._n_in + n} of the stream: leave lost samples out and call gap(n), "
                "or take them for a gap with on_nan='gap'"
            )
        return x_Cn

    def _by_clock(self, x_Cn: np.ndarray, time_s: float | np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Pieces without a step in their times, each with the samples lost before it."""
        time_n = np.asarray(time_s, np.float64)
        n = x_Cn.shape[1]
        if time_n.ndim == 0:
            time_n = time_n + np.arange(n) / self.plan.fs_in
        if time_n.shape != (n,):
            raise ValueError(f"time_s must be a number or ({n},), one a sample, got shape {time_n.shape}")
        lost_n = self._clock.lost(time_n)
        at = [0, *(np.flatnonzero(lost_n[1:]) + 1).tolist(), n]
        return [(int(lost_n[a]) if n else 0, x_Cn[:, a:b]) for a, b in pairwise(at)]

    def _finite_parts(self, x_Cn: np.ndarray) -> list[Window]:
        done: list[Window] = []
        at = 0
        for begin, end in finite_runs(np.isfinite(x_Cn).all(axis=0)):
            done += self._lose(begin - at) if begin > at else []
            done += self._feed(x_Cn[:, begin:end])
            at = end
        return done + (self._lose(x_Cn.shape[1] - at) if x_Cn.shape[1] > at else [])

    def _lose(self, n_lost: int) -> list[Window]:
        done = self._end_segment()
        self._n_in += n_lost
        return done

    def _feed(self, x_Cn: np.ndarray) -> list[Window]:
        """Hold samples back until a window is due, then filter what is held."""
        done: list[Window] = []
        while x_Cn.shape[1]:
            if self._conditioner is None:
                self._conditioner = _Segment(self.plan, self._n_in, x_Cn[:, 0])
                self._cutter.begin(self._conditioner.first_out)
            need = self._conditioner.n_needed(self._cutter.last_out)  # absolute input samples that decide the next window
            take = min(x_Cn.shape[1], max(1, min(need - self._n_in, BLOCK - self._n_pending)))
            self._pending.append(np.array(x_Cn[:, :take], np.float64))
            self._n_pending += take
            self._n_in += take
            x_Cn = x_Cn[:, take:]
            if self._n_in >= need or self._n_pending >= BLOCK:
                done += self._cutter.add(self._conditioner(self._held()))
            elif len(self._pending) >= 1024:
                self._pending = [np.concatenate(self._pending, axis=1)]
        return done

    def _held(self) -> np.ndarray:
        held_Cn = np.concatenate(self._pending, axis=1) if self._pending else np.empty((len(self.plan.channels), 0))
        self._pending, self._n_pending = [], 0
        return held_Cn

    def _end_segment(self) -> list[Window]:
        if self._conditioner is None:
            return []
        done = self._cutter.add(self._conditioner(self._held()))
        done += self._cutter.add(self._conditioner.end())
        self._conditioner = None
        return done


def causal_prepare(x_CT: np.ndarray, plan: StreamPlan) -> tuple[np.ndarray, np.ndarray]:
    """The windows of a whole signal (C, n) as a `Stream` gives them, samples that are not finite being gaps: first samples (N,) and (N, C, T) float32.

    ``NotFiniteError`` where the plan refuses such samples.
    """
    x_CT = np.asarray(x_CT, np.float64)
    finite_T = np.isfinite(x_CT).all(axis=0)
    if plan.on_nan == "error" and not finite_T.all():
        raise NotFiniteError(f"the signal is not finite at sample {int(np.argmin(finite_T))}: take such samples for a gap with on_nan='gap'")
    start_parts, window_parts = [np.empty(0, np.int64)], [np.empty((0, len(plan.channels), plan.n_samples), np.float32)]
    settle = math.ceil(plan.settle_s * plan.fs)
    for begin, end in finite_runs(finite_T):
        first, y_CM = _whole_run(x_CT[:, begin:end], begin, plan)
        grid = np.arange(-(-(first + settle) // plan.hop) * plan.hop, first + y_CM.shape[1] - plan.n_samples + 1, plan.hop, dtype=np.int64)
        start_parts.append(grid)
        window_parts.append(cut(y_CM.astype(np.float32), grid - first, plan.n_samples))
    return np.concatenate(start_parts), np.concatenate(window_parts)


def _whole_run(x_CT: np.ndarray, begin: int, plan: StreamPlan) -> tuple[int, np.ndarray]:
    """One gap-free run filtered and resampled at once: its first sample on the output grid and (C, M) float64."""
    from scipy.signal import sosfilt, upfirdn

    sos = _sections(plan)
    y_CT = x_CT if sos is None else sosfilt(sos, x_CT, axis=-1, zi=_settled(sos, x_CT[:, 0]))[0]
    poly, n = _polyphase(plan.ratio), y_CT.shape[1]
    first, stop = poly.first_out(begin), poly.stop_at_end(begin + n)
    if poly.taps is None:
        return begin, y_CT
    a = poly.aligned(first)
    need = poly.n_needed(stop - 1) if stop > first else begin + n
    padded_CT = np.pad(y_CT, ((0, 0), (begin - a, max(0, need - begin - n))), mode="edge")
    z_CM = upfirdn(poly.taps, padded_CT, poly.up, poly.down, axis=-1)
    k = first - a * poly.up // poly.down + poly.shift
    return first, z_CM[:, k : k + stop - first]


class _Polyphase(NamedTuple):
    """A symmetric low-pass over the upsampled signal, and the arithmetic of its two grids. Output m stands at input m * down / up."""

    up: int
    down: int
    half: int  # taps on either side of the middle, at the upsampled rate
    shift: int  # outputs by which `upfirdn` is ahead of the grid
    taps: np.ndarray | None  # None: nothing to resample

    def first_out(self, begin: int) -> int:
        """The first output at or after input `begin`."""
        return -(-begin * self.up // self.down)

    def stop_at_end(self, end: int) -> int:
        """The first output at or after the input's end."""
        return -(-end * self.up // self.down)

    def n_needed(self, m: int) -> int:
        """Input samples, counted from the stream's first, that output m needs."""
        return (m * self.down + self.half) // self.up + 1

    def n_decided(self, n_in: int) -> int:
        """Outputs that the first `n_in` input samples decide."""
        return max(0, (n_in * self.up - self.half - 1) // self.down + 1)

    def aligned(self, m: int) -> int:
        """The first input sample of a slice that decides outputs from m on, on the grid where both meet."""
        return (m * self.down - self.half) // self.up // self.down * self.down


@lru_cache(maxsize=16)
def _polyphase(ratio: Fraction) -> _Polyphase:
    """The anti-alias filter of the offline resampler; each phase passes a constant exactly, so an offset makes no ripple."""
    from physio_data.filters import anti_alias

    up, down = ratio.numerator, ratio.denominator
    if ratio == 1:
        return _Polyphase(1, 1, 0, 0, None)
    taps = np.array(anti_alias(max(up, down)))
    half = len(taps) // 2
    for phase in range(up):
        taps[phase::up] /= taps[phase::up].sum()
    pad = -half % down
    return _Polyphase(up, down, half, (half + pad) // down, np.concatenate([np.zeros(pad), taps]))


def _sections(plan: StreamPlan) -> np.ndarray | None:
    """All filters as one cascade of second-order sections, or None where there is none."""
    from scipy.signal import butter, iirnotch, tf2sos

    parts = []
    if plan.notch_hz is not None:
        parts.append(tf2sos(*iirnotch(plan.notch_hz, 30.0, plan.fs_in)))
    low_hz, high_hz = plan.band or (None, None)
    if low_hz is not None:
        parts.append(butter(plan.order_low, low_hz, "highpass", fs=plan.fs_in, output="sos"))
    if high_hz is not None:
        parts.append(butter(plan.order_high, high_hz, "lowpass", fs=plan.fs_in, output="sos"))
    return np.concatenate(parts) if parts else None


def _settled(sos: np.ndarray, first_C: np.ndarray) -> np.ndarray:
    """State (sections, C, 2) of the cascade after it has read each channel's first value forever, so that an offset makes no step."""
    from scipy.signal import sosfilt_zi

    return sosfilt_zi(sos)[:, None, :] * np.asarray(first_C, np.float64)[None, :, None]


class _Segment:
    """Filters and resampler of one gap-free stretch that starts at an input sample: held chunks in, outputs at the plan's rate out."""

    def __init__(self, plan: StreamPlan, begin: int, first_C: np.ndarray) -> None:
        self._sos = _sections(plan)
        self._zi = None if self._sos is None else _settled(self._sos, first_C)
        self._poly = _polyphase(plan.ratio)
        self._n_in = begin
        self._n_out = self.first_out = self._poly.first_out(begin)
        self._at = self._poly.aligned(self.first_out)  # input sample of the history's first
        self._history_Cn: np.ndarray | None = None

    def n_needed(self, m: int) -> int:
        return self._poly.n_needed(m)

    def __call__(self, x_Cn: np.ndarray) -> np.ndarray:
        """Outputs (C, M) float64 that these input samples decide."""
        from scipy.signal import sosfilt

        if self._sos is not None and x_Cn.shape[1]:
            x_Cn, self._zi = sosfilt(self._sos, x_Cn, axis=-1, zi=self._zi)
        self._n_in += x_Cn.shape[1]
        return x_Cn if self._poly.taps is None else self._resampled(x_Cn, self._poly.n_decided(self._n_in))

    def end(self) -> np.ndarray:
        """The outputs up to the last input sample, which repeats where the resampler looks ahead."""
        stop = self._poly.stop_at_end(self._n_in)
        if self._poly.taps is None or stop <= self._n_out:
            return np.empty((0 if self._history_Cn is None else len(self._history_Cn), 0))
        n_more = max(0, self._poly.n_needed(stop - 1) - self._n_in)
        return self._resampled(np.repeat(self._history_Cn[:, -1:], n_more, axis=1), stop)

    def _resampled(self, x_Cn: np.ndarray, stop: int) -> np.ndarray:
        from scipy.signal import upfirdn

        poly = self._poly
        if self._history_Cn is None:
            self._history_Cn = np.repeat(x_Cn[:, :1], self._n_in - x_Cn.shape[1] - self._at, axis=1)
        history_Cn = np.concatenate([self._history_Cn, x_Cn], axis=1)
        if stop <= self._n_out:
            self._history_Cn = history_Cn
            return history_Cn[:, :0]
        k = self._n_out - self._at * poly.up // poly.down + poly.shift
        y_CM = upfirdn(poly.taps, history_Cn, poly.up, poly.down, axis=-1)[:, k : k + stop - self._n_out]
        at = min(poly.aligned(stop), self._at + (history_Cn.shape[1] - 1) // poly.down * poly.down)
        self._history_Cn, self._at, self._n_out = history_Cn[:, at - self._at :].copy(), at, stop
        return y_CM


class _Cutter:
    """Outputs of a segment in, windows on the grid out."""

    def __init__(self, plan: StreamPlan) -> None:
        self._plan = plan
        self._settle = math.ceil(plan.settle_s * plan.fs)
        self._next = 0  # first output of the next window
        self._at = 0  # first output kept
        self._kept_CM: np.ndarray | None = None

    @property
    def last_out(self) -> int:
        """The output that completes the next window."""
        return self._next + self._plan.n_samples - 1

    def begin(self, first_out: int) -> None:
        self._at, self._kept_CM = first_out, None
        self._next = -(-(first_out + self._settle) // self._plan.hop) * self._plan.hop

    def add(self, y_CM: np.ndarray) -> list[Window]:
        if not y_CM.shape[1]:
            return []
        y_CM = y_CM.astype(np.float32)
        self._kept_CM = y_CM if self._kept_CM is None else np.concatenate([self._kept_CM, y_CM], axis=1)
        done = list(self._complete())
        drop = min(max(0, self._next - self._at), self._kept_CM.shape[1])
        self._kept_CM, self._at = self._kept_CM[:, drop:].copy(), self._at + drop
        return done

    def _complete(self) -> Iterator[Window]:
        while self.last_out < self._at + self._kept_CM.shape[1]:
            a = self._next - self._at
            yield Window(self._next, self._next / self._plan.fs, self._kept_CM[:, a : a + self._plan.n_samples].copy())
            self._next += self._plan.hop


class _Clock:
    """Sample times in, lost samples out. Each time is compared with the one before, so a slow drift of the clock makes no gap."""

    def __init__(self, fs: float) -> None:
        self._fs = fs
        self._last_s: float | None = None
        self._steps: deque[float] = deque(maxlen=N_STEPS)  # the last steps, in samples

    def skip(self, n_lost: int) -> None:
        if self._last_s is not None:
            self._last_s += n_lost / self._fs

    def lost(self, time_n: np.ndarray) -> np.ndarray:
        """Samples (n,) int64 lost before each. `ClockError` where a time does not grow, `RateError` where the steps are another rate's."""
        if not np.isfinite(time_n).all():
            raise ClockError(f"time_s is not finite at sample {int(np.argmin(np.isfinite(time_n)))} of the chunk; leave the times out or mend them")
        before_s = time_n[:1] - 1 / self._fs if self._last_s is None else [self._last_s]
        step_n = np.diff(np.concatenate([before_s, time_n])) * self._fs
        if (step_n <= 0).any():
            i = int(np.argmax(step_n <= 0))
            was_s = time_n[i] - step_n[i] / self._fs
            raise ClockError(f"the clock jumps back from {was_s:.6g} s to {time_n[i]:.6g} s: sort the samples, drop what came twice, or begin a new Stream")
        self._check_rate(np.concatenate([np.fromiter(self._steps, np.float64), step_n]))
        self._steps.extend(step_n[-N_STEPS:].tolist())
        if len(time_n):
            self._last_s = float(time_n[-1])
        return np.where(step_n > 1.5, np.rint(step_n).astype(np.int64) - 1, 0)

    def _check_rate(self, step_n: np.ndarray) -> None:
        """Among the last steps most must be of one sample, and their mean a sample long."""
        if len(step_n) < N_STEPS:
            return
        near_n = (step_n > 0.5) & (step_n <= 1.5)
        ones = np.ones(N_STEPS)
        n_near = np.convolve(near_n, ones, "valid")
        mean_n = np.convolve(np.where(near_n, step_n, 0.0), ones, "valid") / np.maximum(n_near, 1)
        bad_n = (n_near < N_STEPS / 2) | (np.abs(mean_n - 1) > RATE_TOLERANCE)
        if bad_n.any():
            recent_n = step_n[int(np.argmax(bad_n)) :]
            rate_hz = self._fs / float(np.median(recent_n[np.abs(recent_n - 1) > RATE_TOLERANCE]))
            raise RateError(f"samples come at about {rate_hz:.4g} Hz, the stream was opened at {self._fs:g} Hz: begin a new Stream with fs_in={rate_hz:.4g}")
