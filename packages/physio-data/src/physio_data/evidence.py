"""What a report of a prepare shows: examples of windows kept and rejected, and the spectra of the same seconds before and after.

Records are opened again, a few spread over the corpus; nothing of it is stored. Shape letters: N windows, C channels, T samples, F frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from physio_data.conditioning import WindowPlan, chosen_leads, examined
from physio_data.corpora import corpus as corpus_of
from physio_data.prepare import PrepareConfig, plan_of
from physio_data.quality import reason_names
from physio_data.recording import Recording

N_FREQUENCIES = 240


@dataclass(frozen=True, kw_only=True)
class Example:
    """One window as stored and as recorded, and why it was rejected (() if it was kept). Values in the store's units; NaN in gaps."""

    record: str
    start_s: float
    reasons: tuple[str, ...]
    stored_CT: np.ndarray  # at the store's rate
    recorded_CT: np.ndarray  # at the recording's rate


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Median power density of the sampled windows, each channel its own row: unit^2 / Hz at `frequency_F` (Hz)."""

    frequency_F: np.ndarray
    power_CF: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was found in the sampled records."""

    records: tuple[str, ...]
    channels: tuple[str, ...]
    units: tuple[str, ...]
    fs: float
    examples: tuple[Example, ...]
    before: Spectrum | None  # None where no window was kept
    after: Spectrum | None
    counts: Mapping[str, int] = field(default_factory=dict)  # of the sampled windows: "kept", and each reason


def gather(cfg: PrepareConfig, *, n_records: int = 12, n_kept: int = 6, n_per_reason: int = 3, reasons: Sequence[str] = (), n_search: int = 100) -> Evidence:
    """Open `n_records` spread evenly over the corpus and look at their windows as `prepare` cuts them.

    Where none of these was rejected for one of `reasons`, up to `n_search` records are opened until there is an example of each.
    Raises as `prepare` does where the root is not there. Windows around beats are shown by their beats.
    """
    if min(n_records, n_kept, n_per_reason) < 1:
        raise ValueError(f"n_records, n_kept and n_per_reason must be at least 1, got {n_records}, {n_kept}, {n_per_reason}")
    corpus = corpus_of(cfg.corpus)
    plan, record_ids, options = plan_of(cfg)
    chosen = _spread(np.array(record_ids), n_records)
    others = _spread(np.array([name for name in record_ids if name not in set(chosen)]), n_search - len(chosen))
    examples: list[Example] = []
    counts: dict[str, int] = {}
    spectra: list[tuple[tuple[float, np.ndarray], tuple[float, np.ndarray]]] = []  # (rate, window) before and after
    top_hz = np.inf
    opened: list[str] = []
    for record_id in (*chosen, *others):
        if len(opened) >= len(chosen) and all(name in counts for name in reasons):
            break
        opened.append(record_id)
        recording = chosen_leads(corpus.open_record(cfg.root, record_id, **options), plan.channels, derive=plan.derive)
        x_NCT, bits_N, start_N, native_NCT = examined(recording, plan, corpus)
        if not len(x_NCT):
            continue
        top_hz = min(top_hz, recording.fs / 2)
        for row in _spread(np.flatnonzero(bits_N == 0), -(-n_kept // len(chosen)) if len(opened) <= len(chosen) else 0):
            examples.append(_example(recording, x_NCT[row], native_NCT[row], start_N[row], (), plan))
            spectra.append(((recording.fs, native_NCT[row]), (plan.fs, x_NCT[row])))
        counts["kept"] = counts.get("kept", 0) + int((bits_N == 0).sum())
        for bits in np.unique(bits_N[bits_N != 0]).tolist():
            names = tuple(reason_names(bits))
            rows = np.flatnonzero(bits_N == bits)
            for name in names:
                counts[name] = counts.get(name, 0) + len(rows)
            shown = sum(example.reasons == names for example in examples)
            for row in _spread(rows, max(0, n_per_reason - shown)):
                examples.append(_example(recording, x_NCT[row], native_NCT[row], start_N[row], names, plan))
    frequency_F = np.linspace(0, top_hz, N_FREQUENCIES) if spectra else np.zeros(0)
    return Evidence(
        records=tuple(opened),
        channels=plan.channels,
        units=plan.units,
        fs=plan.fs,
        examples=tuple(examples),
        before=_spectrum([before for before, _ in spectra], frequency_F) if spectra else None,
        after=_spectrum([after for _, after in spectra], frequency_F[frequency_F <= plan.fs / 2]) if spectra else None,
        counts=counts,
    )


def _example(recording: Recording, x_CT: np.ndarray, native_CT: np.ndarray, start: int, reasons: tuple[str, ...], plan: WindowPlan) -> Example:
    return Example(record=recording.record, start_s=recording.start_s + start / plan.fs, reasons=reasons, stored_CT=x_CT, recorded_CT=native_CT)


def _spread(rows: np.ndarray, n: int) -> list:
    """`n` of the rows, evenly over them."""
    n = min(n, len(rows))
    return rows[((np.arange(n) + 0.5) * len(rows) / n).astype(int)].tolist() if n else []


def _spectrum(windows: Sequence[tuple[float, np.ndarray]], frequency_F: np.ndarray) -> Spectrum:
    """The median over windows of the power density with a Hann taper, one-sided, the mean removed (Welch 1967, one segment a window)."""
    rows = []
    for fs, x_CT in windows:
        n = x_CT.shape[1]
        taper_T = np.hanning(n)
        density_CF = 2 * np.abs(np.fft.rfft((x_CT - x_CT.mean(1, keepdims=True)) * taper_T)) ** 2 / (fs * (taper_T**2).sum())
        grid_F = np.fft.rfftfreq(n, 1 / fs)
        rows.append(np.stack([np.interp(frequency_F, grid_F, density_F) for density_F in density_CF]))
    return Spectrum(frequency_F=frequency_F, power_CF=np.median(rows, axis=0))
