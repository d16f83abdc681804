"""From a recording to its windows: leads by name, filters at the native rate, resampling, cutting, rejection with a reason, labels.

Shape letters: N windows, C channels, T samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np

from physio_data.filters import bandpass, notch, resample
from physio_data.leads import select_or_derive
from physio_data.papagei import chebyshev
from physio_data.quality import Reason, check, reason_names
from physio_data.recording import Recording
from physio_data.units import unit_gain
from physio_data.windows import cut, n_samples, starts

if TYPE_CHECKING:
    from physio_data.corpora.contract import Corpus
    from physio_data.quality import Limits

BLOCK_S = 3600.0  # a longer record is filtered and cut in pieces of this length, so memory does not grow with it
Filter = Literal["butterworth", "papagei"]
SETTLING_PERIODS = 20.0  # margin on both sides of a piece, in periods of the lowest cut-off: the filters have settled by then


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """Everything that decides the windows of a record; fixed before the first record is cut, the same in every worker."""

    channels: tuple[str, ...]
    units: tuple[str, ...]
    fs: float
    n_samples: int
    hop: int  # samples
    band: tuple[float | None, float | None] | None
    notch_hz: float | None
    kind: str
    limits: Limits | None = None
    pad_tail: bool = False
    filter: Filter = "butterworth"  # "papagei": its Chebyshev-II band-pass and moving average, at the store's rate of 125 Hz
    derive: bool = False  # III, aVR, aVL and aVF from I and II where a record lacks them
    around: str | None = None  # "beats": windows centred on annotated beats instead of one every `hop`

    @property
    def window_s(self) -> float:
        return self.n_samples / self.fs


@dataclass(frozen=True, kw_only=True)
class Block:
    """The windows of one record that were kept, with their index columns, and what was rejected."""

    signal_NCT: np.ndarray
    columns: dict[str, np.ndarray]
    n_rejected: int
    rejected: dict[str, int]  # reason -> windows; a window may have several


def windows_of(recording: Recording, plan: WindowPlan, corpus: Corpus) -> Block:
    """Cut one record into windows (N, C, T) float32 in the units of the plan, with every column but the fold.

    A window with a gap in it is rejected as missing, never filled; filters never run across a gap. ValueError names record and reason for
    an absent lead or a unit that cannot be converted.
    """
    chosen = chosen_leads(recording, plan.channels, derive=plan.derive)
    gain_C1 = np.array([_gain(recording.record, *pair) for pair in zip(chosen.units, plan.units, strict=True)], np.float32)[:, None]
    n_total = n_samples(chosen.duration_s, plan.fs)
    beat_s_N, n_at_edges = None, 0
    if plan.around is None:
        start_N, n_valid_N = window_starts(n_total, plan)
    else:
        beat_s_N, start_N, n_at_edges = beat_starts(recording, corpus, n_total, plan)
        n_valid_N = np.full(len(start_N), plan.n_samples, np.int64)
    kept_NCT, bits_N = _kept(chosen, gain_C1, start_N, n_valid_N, n_total, plan)
    keep_N = bits_N == 0
    rejected_bits = bits_N[~keep_N]
    rejected = {name: int(((rejected_bits & bit) != 0).sum()) for bit, name in _named_reasons(rejected_bits)}
    if n_at_edges:
        rejected["edge"] = n_at_edges
    columns = _columns(recording, start_N[keep_N], n_valid_N[keep_N], plan)
    if beat_s_N is None:
        labels = corpus.window_labels(recording, start_N[keep_N] / plan.fs, plan.window_s)
    else:
        columns["beat_s"] = recording.start_s + beat_s_N[keep_N]
        labels = corpus.beat_labels(recording, beat_s_N[keep_N])
    columns |= {f"label/{task}": values for task, values in labels.items()}
    return Block(signal_NCT=kept_NCT, columns=columns, n_rejected=int((~keep_N).sum()) + n_at_edges, rejected=rejected)


def chosen_leads(recording: Recording, names: Sequence[str], *, derive: bool) -> Recording:
    """The named channels of a recording; with `derive`, III, aVR, aVL and aVF are computed from I and II where it lacks them."""
    return select_or_derive(recording, names) if derive else recording.select(names)


def beat_starts(recording: Recording, corpus: Corpus, n_total: int, plan: WindowPlan) -> tuple[np.ndarray, np.ndarray, int]:
    """Beats (N,) in seconds whose centred window lies inside the record, the first sample (N,) of each window, and how many beats lie too near an end."""
    beat_s_K = np.sort(np.asarray(corpus.beat_times(recording), np.float64))
    start_K = np.rint(beat_s_K * plan.fs).astype(np.int64) - plan.n_samples // 2
    inside_K = (start_K >= 0) & (start_K + plan.n_samples <= n_total)
    return beat_s_K[inside_K], start_K[inside_K], int((~inside_K).sum())


def window_starts(n_total: int, plan: WindowPlan) -> tuple[np.ndarray, np.ndarray]:
    """First sample and number of valid samples of every window of a record of `n_total` samples: two (N,) int64 arrays.

    With `pad_tail` a last, shorter window is added where at least half a window is left over.
    """
    start_N = starts(n_total, plan.n_samples, plan.hop)
    n_valid_N = np.full(len(start_N), plan.n_samples, np.int64)
    tail = int(start_N[-1]) + plan.hop if len(start_N) else 0
    if plan.pad_tail and n_total - tail >= plan.n_samples / 2 and n_total - tail < plan.n_samples:
        start_N, n_valid_N = np.append(start_N, tail), np.append(n_valid_N, n_total - tail)
    return start_N, n_valid_N


def _kept(recording: Recording, gain_C1: np.ndarray, start_N: np.ndarray, n_valid_N: np.ndarray, n_total: int, plan: WindowPlan):
    """The kept windows (K, C, T) and the reason bits (N,) of all."""
    kept, bits = [np.empty((0, len(plan.channels), plan.n_samples), np.float32)], [np.empty(0, np.uint32)]
    for part in _pieces(start_N, plan):
        lo, hi = int(start_N[part][0]), int((start_N[part] + n_valid_N[part]).max())
        x_CT = conditioned(recording, gain_C1, lo, hi, plan)
        x_CT = np.pad(x_CT, ((0, 0), (0, max(0, int(start_N[part][-1]) + plan.n_samples - hi))), mode="edge")
        x_NCT = cut(x_CT, start_N[part] - lo, plan.n_samples)
        bits_n = _reasons(x_NCT, recording, start_N[part], n_valid_N[part], plan)
        kept.append(x_NCT[bits_n == 0])
        bits.append(bits_n)
    return np.concatenate(kept), np.concatenate(bits)


def _pieces(start_N: np.ndarray, plan: WindowPlan) -> Iterator[slice]:
    step = max(1, math.ceil(BLOCK_S * plan.fs / plan.hop))
    for first in range(0, len(start_N), step):
        yield slice(first, first + step)


def conditioned(recording: Recording, gain_C1: np.ndarray, lo: int, hi: int, plan: WindowPlan) -> np.ndarray:
    """Samples [lo, hi) at the rate of the plan: (C, hi - lo) float32, filtered and resampled, NaN in gaps and where nothing was recorded."""
    ratio = Fraction(plan.fs / recording.fs).limit_denominator(10_000)  # as `resample` takes it
    lowest_hz = min([f for f in (plan.band or ()) if f] or [1.0])
    margin = 0 if plan.band is None and plan.notch_hz is None and ratio == 1 else math.ceil(SETTLING_PERIODS / lowest_hz * recording.fs)
    first = max(0, math.floor(lo / ratio) - margin)
    last = min(recording.n_samples, math.ceil(hi / ratio) + margin)
    x_CT = recording.read(first, last) * gain_C1
    out_CT = np.full((len(x_CT), hi - lo), np.nan, np.float32)
    for begin, end in finite_runs(np.isfinite(x_CT).all(axis=0)):
        at_record_edge = first + begin == 0 or first + end == recording.n_samples
        if n_samples((end - begin) / recording.fs, plan.fs) < plan.n_samples and not (plan.pad_tail and at_record_edge):
            continue  # too short for a window, and for a filter to settle
        k, y_CT = _filtered_run(x_CT[:, begin:end], first + begin, recording.fs, ratio, plan)
        a, b = max(k, lo), min(k + y_CT.shape[1], hi)
        if a < b:
            out_CT[:, a - lo : b - lo] = y_CT[:, a - k : b - k]
    return out_CT


def finite_runs(finite_T: np.ndarray) -> list[tuple[int, int]]:
    """The stretches [begin, end) of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], finite_T, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _filtered_run(x_CT: np.ndarray, begin: int, fs: float, ratio: Fraction, plan: WindowPlan) -> tuple[int, np.ndarray]:
    """Filter and resample one gap-free run that starts at native sample `begin`; (first output sample on the record's grid, (C, T'))."""
    y_CT = _filtered(x_CT, fs, plan)
    if ratio == 1:
        return begin, _smoothed(y_CT, plan)
    # The output grid meets the input grid every `denominator` samples: start there, on repeated edge samples, and drop what they gave.
    lead_in = begin % ratio.denominator
    grid_start = int((begin - lead_in) * ratio)
    first = math.ceil(begin * ratio)
    y_CT = resample(np.pad(y_CT, ((0, 0), (lead_in, 0)), mode="edge"), fs, plan.fs)
    return first, _smoothed(y_CT[:, first - grid_start :], plan)


def _filtered(x_CT: np.ndarray, fs: float, plan: WindowPlan) -> np.ndarray:
    if plan.notch_hz is not None:
        x_CT = notch(x_CT, fs, plan.notch_hz)
    return x_CT if plan.band is None or plan.filter == "papagei" else bandpass(x_CT, fs, *plan.band)


def _smoothed(x_CT: np.ndarray, plan: WindowPlan) -> np.ndarray:
    """PaPaGei's filter runs after resampling: its form is only sound at 125 Hz."""
    return chebyshev(x_CT, plan.fs) if plan.filter == "papagei" and plan.band is not None else x_CT


def _reasons(x_NCT: np.ndarray, recording: Recording, start_N: np.ndarray, n_valid_N: np.ndarray, plan: WindowPlan) -> np.ndarray:
    """Reason bits (N,) uint32; without limits only a gap rejects. Traces of the converter are sought in the signal as recorded."""
    bits_N = np.where(np.isfinite(x_NCT).all(axis=(1, 2)), 0, int(Reason.MISSING)).astype(np.uint32)
    if plan.limits is None:
        return bits_N
    for n_valid in np.unique(n_valid_N):
        rows = np.flatnonzero((bits_N == 0) & (n_valid_N == n_valid))
        if rows.size:
            bits_N[rows] = check(x_NCT[rows, :, :n_valid], plan.fs, plan.kind, plan.limits, reasons=Reason.RATE | Reason.TEMPLATE)
            native_nCT = _as_recorded(recording, start_N[rows], int(n_valid), plan.fs)
            bits_N[rows] |= check(native_nCT, recording.fs, plan.kind, plan.limits, reasons=Reason.FLAT | Reason.CLIPPED)
    return bits_N


def _as_recorded(recording: Recording, start_n: np.ndarray, n_valid: int, fs: float) -> np.ndarray:
    """The same windows at the native rate, before any filter: (n, C, T') float32."""
    length = n_samples(n_valid / fs, recording.fs)
    begin_n = np.minimum(np.rint(start_n * (recording.fs / fs)).astype(np.int64), recording.n_samples - length)
    first, last = int(begin_n.min()), int(begin_n.max()) + length
    return cut(recording.read(first, last), begin_n - first, length)


def _named_reasons(bits_N: np.ndarray) -> list[tuple[int, str]]:
    present = int(np.bitwise_or.reduce(bits_N, initial=0))
    return [(int(reason), reason_names(int(reason))[0]) for reason in Reason if present & int(reason)]


def _columns(recording: Recording, start_K: np.ndarray, n_valid_K: np.ndarray, plan: WindowPlan) -> dict[str, np.ndarray]:
    n = len(start_K)
    follows = np.zeros(n, bool)
    follows[:-1] = (np.diff(start_K) == plan.hop) & (plan.around is None)  # whole samples on one grid: nearer than half a sample of the hop
    said = {"text": np.full(n, str(recording.labels["text"]))} if "text" in recording.labels else {}
    return {
        **said,
        "subject": np.full(n, recording.subject),
        "record": np.full(n, recording.record),
        "start_s": recording.start_s + start_K / plan.fs,
        "n_valid": n_valid_K.astype(np.int32),
        "channel_present": np.ones((n, len(plan.channels)), bool),
        "quality": np.zeros(n, np.uint32),
        "next": np.where(follows, np.arange(n) + 1, -1),
        "dt_next_s": np.where(follows, plan.hop / plan.fs, np.nan),
        "age": np.full(n, recording.age, np.float32),
        "sex": np.full(n, recording.sex),
    }


def _gain(record: str, have: str, want: str) -> float:
    try:
        return unit_gain(have, want)
    except ValueError:
        raise ValueError(
            f"record {record!r} is in {have!r}, the store in {want!r}: these cannot be converted; leave the record out or prepare it apart"
        ) from None


def joined(blocks: list[Block], n_channels: int, n_samples: int) -> Block:
    """The blocks of several records as one; `next` counts from the first window."""
    full = [block for block in blocks if len(block.signal_NCT)]
    columns: dict[str, np.ndarray] = {}
    if full:
        first_B = np.cumsum([0, *(len(block.signal_NCT) for block in full)])
        columns = {name: np.concatenate([block.columns[name] for block in full]) for name in full[0].columns}
        columns["next"] = np.concatenate(
            [np.where(block.columns["next"] < 0, -1, block.columns["next"] + first) for block, first in zip(full, first_B[:-1], strict=True)]
        )
    rejected: dict[str, int] = {}
    for block in blocks:
        for name, count in block.rejected.items():
            rejected[name] = rejected.get(name, 0) + count
    signal_NCT = np.concatenate([block.signal_NCT for block in full]) if full else np.empty((0, n_channels, n_samples), np.float32)
    return Block(signal_NCT=signal_NCT, columns=columns, n_rejected=sum(block.n_rejected for block in blocks), rejected=rejected)
