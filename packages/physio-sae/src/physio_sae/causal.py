"""Does the concept need this part of the beat? Phases are flattened in the waveform, the window is encoded again, the activation is compared.

N windows, C channels, T samples, B phase bins, K concepts. A flattened stretch is itself new to an encoder, so each effect stands beside a control: as
many stretches of the same lengths at random places of the beats. Steering the other way round, from an edited code to a waveform, needs an encoder that
can decode what is edited; pooled embeddings cannot be decoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from physio_sae.codes import patient_means


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """Relative change of activation, (B, K) with bands (2, B, K) over resampled patients; -1 where the concept vanishes. None with a `note` where undefined."""

    effect_BK: np.ndarray | None
    band_2BK: np.ndarray | None
    control_BK: np.ndarray | None
    n_patients_K: np.ndarray | None
    note: str = ""


def flattened(x_NCT: np.ndarray, spans: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """Windows with each span [start, stop) replaced by the straight line between the samples at its ends."""
    out = np.array(x_NCT, np.float32)
    n_samples = out.shape[-1]
    for row, own in enumerate(spans):
        for start, stop in own:
            first, last = max(int(start) - 1, 0), min(int(stop), n_samples - 1)
            if last - first > 1:
                weight_T = np.linspace(0, 1, last - first + 1)
                out[row, :, first : last + 1] = out[row, :, [first]].T * (1 - weight_T) + out[row, :, [last]].T * weight_T
    return out


def occlude(
    encode: Callable[[np.ndarray], np.ndarray],
    x_NCT: np.ndarray,
    onset: Sequence[np.ndarray],
    subject_N: np.ndarray,
    *,
    n_bins: int = 10,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Occlusion:
    """`encode` (N, C, T) -> (N, K) activations of the concepts asked for. Beats run from onset to onset (samples); each is cut into `n_bins` phases.

    The change of a concept is taken over windows in which it fires, patients weigh equally. ValueError for fewer than two bins.
    """
    if n_bins < 2:
        raise ValueError(f"n_bins must be at least 2, got {n_bins}")
    x_NCT, subject_N = np.asarray(x_NCT, np.float32), np.asarray(subject_N)
    beats = [list(itertools.pairwise(on)) for on in onset]
    kept = np.flatnonzero([len(own) > 0 for own in beats])
    if not len(kept):
        return Occlusion(effect_BK=None, band_2BK=None, control_BK=None, n_patients_K=None, note="no window holds a whole beat")
    x_NCT, subject_N, beats = x_NCT[kept], subject_N[kept], [beats[row] for row in kept]
    whole_NK = np.asarray(encode(x_NCT), np.float64)
    generator = np.random.default_rng(seed)
    effect, bands, control = [], [], []
    for b in range(n_bins):
        phase = [[(a + (z - a) * b / n_bins, a + (z - a) * (b + 1) / n_bins) for a, z in own] for own in beats]
        moved = [[shifted(a, z, n_bins, generator) for a, z in own] for own in beats]
        change, other = (relative(np.asarray(encode(flattened(x_NCT, spans)), np.float64), whole_NK) for spans in (phase, moved))
        own_SK, other_SK = (patient_means(values, subject_N) for values in (change, other))
        effect.append(column_means(own_SK))
        control.append(column_means(other_SK))
        bands.append(bootstrap_band(own_SK, n_resamples, seed))
    n_K = np.isfinite(patient_means(np.where(whole_NK > 0, 1.0, np.nan), subject_N)).sum(0)
    silent = n_K == 0
    note = f"{int(silent.sum())} concepts fire in none of the windows" if silent.any() else ""
    return Occlusion(effect_BK=np.stack(effect), band_2BK=np.stack(bands, axis=1), control_BK=np.stack(control), n_patients_K=n_K, note=note)


def relative(after_NK: np.ndarray, before_NK: np.ndarray) -> np.ndarray:
    """(after - before) / before where the concept fired, NaN elsewhere."""
    return np.where(before_NK > 0, (after_NK - before_NK) / np.where(before_NK > 0, before_NK, 1.0), np.nan)


def shifted(start: float, stop: float, n_bins: int, generator: np.random.Generator) -> tuple[float, float]:
    """A stretch of a bin's length at a random place of the beat."""
    length = (stop - start) / n_bins
    at = start + generator.random() * (stop - start - length)
    return at, at + length


def column_means(values_SK: np.ndarray) -> np.ndarray:
    """Mean over patients; 0 where no patient counts (the concept fires in no window)."""
    known = np.isfinite(values_SK)
    return np.where(known, values_SK, 0).sum(0) / np.maximum(known.sum(0), 1)


def bootstrap_band(values_SK: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """95 % band (2, K) of the mean over resampled patients."""
    known = np.isfinite(values_SK).astype(np.float64)
    draws = np.random.default_rng(seed).multinomial(len(values_SK), np.full(len(values_SK), 1 / len(values_SK)), size=n_resamples)
    count = draws @ known
    mean = draws @ np.where(known > 0, values_SK, 0) / np.maximum(count, 1)
    return np.quantile(np.where(count > 0, mean, column_means(values_SK)), [0.025, 0.975], axis=0)


def steer(
    edit: np.ndarray, tokens_BND: np.ndarray, decode: Callable[[np.ndarray], np.ndarray] | None, *, level: str = "pooled"
) -> tuple[np.ndarray, np.ndarray]:
    """(waveform before, waveform after) of adding `edit` (D,) to every token, decoded both times, so that the decoder's own error cancels.

    Raises ValueError where the encoder cannot decode what is edited (`decode` None): a mean over time holds no waveform.
    """
    if decode is None:
        raise ValueError(f"steering is not available: this encoder cannot decode {level!r}; train the dictionary on tokens of an encoder with a decoder")
    tokens_BND = np.asarray(tokens_BND, np.float32)
    if tokens_BND.ndim != 3 or np.shape(edit) != tokens_BND.shape[-1:]:
        raise ValueError(f"tokens_BND must be (B, N, D) and edit (D,), got {tokens_BND.shape} and {np.shape(edit)}")
    return np.asarray(decode(tokens_BND)), np.asarray(decode(tokens_BND + np.asarray(edit, np.float32)))
