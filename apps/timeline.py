"""A recording through a saved model: windows as the contract wants them, scores over time, episodes and burden. N windows, K classes.

A long recording is read, filtered and cut an hour at a time, so memory does not grow with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from downstream import Saved
from physio_data.conditioning import WindowPlan, conditioned
from physio_data.recording import Recording, canonical_lead
from physio_data.units import unit_gain
from physio_data.windows import cut, n_samples, starts
from physio_models.contract import ANY, InputContract, SignalSpec

BLOCK_S = 3600.0  # of signal read at once
BATCH = 256


class Fitted(NamedTuple):
    """A recording arranged for a contract: its channels in the contract's order, how it is conditioned, and the steps taken, for the report."""

    recording: Recording
    plan: WindowPlan
    spec: SignalSpec
    steps: list[str]


@dataclass(frozen=True, kw_only=True)
class Episode:
    """A stretch of time in which a class holds."""

    name: str
    start_s: float
    stop_s: float
    peak: float


def arrange(recording: Recording, contract: InputContract, *, hop_s: float, leads: Mapping[str, str], kind: str = "") -> Fitted:
    """Which channels, unit, rate and filter make the recording what the contract wants. ValueError names what cannot be mended.

    `leads` maps a contract's channel to the file's name for it; otherwise names meet without regard to case, separators and known aliases.
    """
    unknown = set(leads) - set(contract.channels)
    if unknown:
        raise ValueError(f"--lead names {', '.join(sorted(unknown))}, which is no channel of the model; it takes {', '.join(contract.channels)}")
    there = {canonical_lead(name).lower(): name for name in recording.channels}
    aliases = {"ppg": ("pleth", "bvp"), "pleth": ("ppg",), "mlii": ("ii",), "ii": ("mlii",)}
    chosen, steps = [], []
    for channel in contract.channels:
        key = canonical_lead(channel).lower()
        wanted = [leads[channel]] if channel in leads else [channel, *contract.aliases.get(channel, ()), *aliases.get(key, ())]
        found = next((there[canonical_lead(name).lower()] for name in wanted if canonical_lead(name).lower() in there), None)
        if found is None:
            raise ValueError(
                f"the model needs channel {channel!r}, the file has {', '.join(recording.channels)}: name the one to take with --lead {channel}=NAME"
            )
        chosen.append(found)
        steps.append(f"channel {channel}: {found}" + ("" if canonical_lead(found).lower() == key else ", taken for it"))
    recording = replace(recording.select(chosen), channels=contract.channels)
    units = tuple(have if want == ANY else want for have, want in zip(recording.units, contract.units, strict=True))
    for channel, have, want in zip(contract.channels, recording.units, units, strict=True):
        try:
            unit_gain(have, want)
        except ValueError as error:
            raise ValueError(f"channel {channel} is in {have!r}, the model needs {want!r}: {error}") from None
        steps.append(f"unit of {channel}: {have}" + ("" if have == want else f" to {want}"))
    band = contract.spec.band
    if recording.duration_s < contract.window_s:
        raise ValueError(f"the recording lasts {recording.duration_s:g} s, the model needs windows of {contract.window_s:g} s")
    nyquist_hz = recording.fs / 2
    if band is not None and band[1] is not None and band[1] > nyquist_hz:
        raise ValueError(f"the model's band ends at {band[1]:g} Hz, the file's rate of {recording.fs:g} Hz carries up to {nyquist_hz:g} Hz only")
    hop = n_samples(hop_s, contract.fs)
    plan = WindowPlan(
        channels=contract.channels,
        units=units,
        fs=contract.fs,
        n_samples=contract.n_samples,
        hop=hop,
        band=band,
        filter=contract.spec.filter,
        notch_hz=contract.notch_hz,
        kind=contract.kind or kind,
    )
    steps.append(f"rate: {recording.fs:g} Hz" + ("" if math.isclose(recording.fs, contract.fs) else f" resampled to {contract.fs:g} Hz"))
    steps.append("filter: none" if band is None else f"filter: {band[0] or 0:g}-{'' if band[1] is None else f'{band[1]:g}'} Hz, {plan.filter}")
    if contract.notch_hz:
        steps.append(f"notch: {contract.notch_hz:g} Hz")
    steps.append(f"windows: {contract.window_s:g} s every {hop / contract.fs:g} s; normalised by {contract.normalization}")
    spec = replace(contract.spec, units=units, polarity=1)
    contract.check(spec)
    fitted = Fitted(recording, plan, spec, steps)
    later = np.diff(first_samples(fitted))
    if len(later) and later[-1] != hop:
        steps.append(f"last window: ends with the recording, {later[-1] / contract.fs:g} s after the one before")
    return fitted


def first_samples(fitted: Fitted) -> np.ndarray:
    """Where the windows begin, (N,) in samples at the contract's rate: a hop apart, and the last one so that it ends with the recording."""
    plan = fitted.plan
    n_total = n_samples(fitted.recording.duration_s, plan.fs)
    start_N = starts(n_total, plan.n_samples, plan.hop)
    if not len(start_N) or start_N[-1] + plan.n_samples == n_total:
        return start_N
    return np.append(start_N, n_total - plan.n_samples)


def windows(fitted: Fitted) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of (first samples (n,) at the contract's rate, windows (n, C, T) float32), NaN where the file has a gap."""
    recording, plan = fitted.recording, fitted.plan
    gain_C1 = np.array([unit_gain(*pair) for pair in zip(recording.units, plan.units, strict=True)], np.float32)[:, None]
    start_N = first_samples(fitted)
    step = max(1, math.ceil(BLOCK_S * plan.fs / plan.hop))
    for first in range(0, len(start_N), step):
        part_n = start_N[first : first + step]
        low, high = int(part_n[0]), int(part_n[-1]) + plan.n_samples
        x_CT = conditioned(recording, gain_C1, low, high, plan)
        for at in range(0, len(part_n), BATCH):
            some_n = part_n[at : at + BATCH]
            yield some_n, cut(x_CT, some_n - low, plan.n_samples)


def scores(saved: Saved, fitted: Fitted) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of (start_s (n,), scores (n, K)); NaN for a window with a gap in it."""
    for start_n, x_nCT in windows(fitted):
        whole_n = np.isfinite(x_nCT).all(axis=(1, 2))
        score_nK = np.full((len(start_n), len(saved.task.columns)), np.nan)
        if whole_n.any():
            score_nK[whole_n] = saved.scores(x_nCT[whole_n], fitted.spec)
        yield start_n / fitted.plan.fs, score_nK


def stitched(start_s_N: np.ndarray, score_NK: np.ndarray, window_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping windows as one line: edges (M + 1,) in seconds, wherever a window begins or ends, and scores (M, K), the mean of the windows over each step.

    NaN where no scored window is; the line ends with the last window.
    """
    if not len(start_s_N):
        return np.zeros(1), np.zeros((0, score_NK.shape[1]))
    begin_s_N, end_s_N = (np.round(s_N, 9) for s_N in (start_s_N, start_s_N + window_s))
    edge_s = np.unique([begin_s_N, end_s_N])
    first_N, after_N = np.searchsorted(edge_s, begin_s_N), np.searchsorted(edge_s, end_s_N)
    total_MK, n_MK = (np.zeros((len(edge_s) - 1, score_NK.shape[1])) for _ in range(2))
    known_NK = np.isfinite(score_NK)
    for shift in range(int((after_N - first_N).max())):
        over_N = first_N + shift < after_N
        np.add.at(total_MK, first_N[over_N] + shift, np.where(known_NK, score_NK, 0.0)[over_N])
        np.add.at(n_MK, first_N[over_N] + shift, known_NK[over_N])
    return edge_s, np.divide(total_MK, n_MK, out=np.full(total_MK.shape, np.nan), where=n_MK > 0)


def episodes(edge_s: np.ndarray, score_M: np.ndarray, name: str, *, threshold: float, shortest_s: float) -> list[Episode]:
    """Stretches at or above the threshold that last at least `shortest_s`; a gap in the recording ends one."""
    on_M = np.nan_to_num(score_M, nan=-np.inf) >= threshold
    edges = np.flatnonzero(np.diff(np.concatenate([[False], on_M, [False]]).astype(np.int8))).reshape(-1, 2)
    found = [Episode(name=name, start_s=float(edge_s[a]), stop_s=float(edge_s[b]), peak=float(np.max(score_M[a:b]))) for a, b in edges]
    return [e for e in found if e.stop_s - e.start_s >= shortest_s - 1e-9]


def burden(edge_s: np.ndarray, score_M: np.ndarray, threshold: float) -> float | None:
    """Share of the scored time at or above the threshold; None where no time was scored."""
    known = np.isfinite(score_M)
    lasts_s = np.diff(edge_s)[known]
    return float(lasts_s[score_M[known] >= threshold].sum() / lasts_s.sum()) if known.any() else None


def report(fitted: Fitted, saved: Saved, n_windows: int, n_gaps: int) -> dict[str, Any]:
    """What the file was, what the model needs, and what was done in between."""
    r, c = fitted.recording, saved.contract
    return {
        "recording": {"record": r.record, "subject": r.subject, "channels": list(r.channels), "units": list(r.units), "fs": r.fs, "duration_s": r.duration_s},
        "contract": {
            "channels": list(c.channels),
            "units": list(c.units),
            "fs": c.fs,
            "window_s": c.window_s,
            "band": c.band,
            "filter": c.filter,
            "notch_hz": c.notch_hz,
            "normalization": c.normalization,
        },
        "steps": fitted.steps,
        "windows": n_windows,
        "windows_with_gaps": n_gaps,
        "model": {
            "kind": saved.kind,
            "task": saved.task.name,
            "classes": list(saved.task.columns),
            "labels": None if saved.labels is None else list(saved.labels),  # what 0 and 1 of a binary task are called
            "saw_subject": saw(saved, r.subject),
        },
    }


def saw(saved: Saved, subject: str) -> bool | None:
    """Whether the model was pretrained or fitted on somebody of this name, with a corpus before it or without; None where that, or who it is, is unknown."""
    if saved.seen is None or not subject:
        return None
    return any(subject in (name, name.partition(":")[2]) for name in saved.seen["subjects"])
