"""What a dictionary keeps of the embeddings and how steady its codes are: explained variance, consistency over views, autocorrelation in time.

N windows, D embedding width, K concepts, S patients, P pairs of windows, B resamples. Definitions where the literature leaves choices open:

    EV            1 - sum |x - x_hat|^2 / sum |x - mean_train|^2, over the windows that are scored; also the mean of the patients' own EV
    consistency   mean over windows of cos(f, f_aug); Jaccard index of the supports; ICC(1) per concept (Shrout and Fleiss 1979, Psychol Bull 86:420)
    lag-1         per concept sum_{r,t} (f_t - mean_r)(f_{t+1} - mean_r) / sum (f_t - mean_r)^2 over records r, mean over concepts that vary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from physio_sae.codes import Codes, as_codes, grouping
from physio_train.statistics import Interval, interval, replicates

FLAT = 1e-9  # a sum of squares below this share of the values' own is rounding, not variation


class Residuals(NamedTuple):
    """Per window, (N,) float64 each: squared error, squared distance to the training mean, cosine of x - mean with its reconstruction."""

    error_N: np.ndarray
    total_N: np.ndarray
    cosine_N: np.ndarray  # NaN where either side is the mean itself


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Explained variance on some patients. None where it is not defined, with the reason in `note`."""

    overall: float | None
    interval: tuple[float, float] | None
    per_patient: float | None  # mean over patients of their own EV
    per_patient_interval: tuple[float, float] | None
    cosine: float | None
    n_patients: int
    n_windows: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """Agreement of codes of a window and of its augmented view, and the same for two windows of one patient drawn at random."""

    cosine: float | None
    jaccard: float | None
    icc: float | None  # mean over concepts that vary
    same_patient_cosine: float | None  # the floor
    same_patient_jaccard: float | None
    cosine_above_floor: float | None
    n_windows: int
    n_pairs: int  # windows whose patient has another one
    icc_K: np.ndarray  # NaN where a concept does not vary; kept out of tables


@dataclass(frozen=True, kw_only=True)
class Lag1:
    """Lag-1 autocorrelation of codes over true neighbours. `null_within`: its expectation when windows are shuffled within their records."""

    within: float | None
    null_within: float | None
    above_null: float | None
    globally_centred: float | None
    n_pairs: int
    n_concepts: int  # that vary within records
    note: str = ""


def residuals(guess_ND: np.ndarray, z_ND: np.ndarray, mean_D: np.ndarray, *, batch: int = 8192) -> Residuals:
    """Errors of reconstructions of the windows, `batch` at a time. ValueError for embeddings that are not finite, or another number of rows."""
    if guess_ND.shape != z_ND.shape or not len(z_ND):
        raise ValueError(f"guess_ND must have one row for each window of z_ND, and at least one, got {guess_ND.shape} for {z_ND.shape}")
    parts, mean_D = [], np.asarray(mean_D, np.float64)
    for at in range(0, len(z_ND), batch):
        z_BD = np.asarray(z_ND[at : at + batch], np.float32)
        if not np.isfinite(z_BD).all():
            row = at + int(np.flatnonzero(~np.isfinite(z_BD).all(1))[0])
            raise ValueError(f"z_ND has values that are not finite, first in window {row}; leave that window out")
        x_BD, recon_BD = z_BD - mean_D, np.asarray(guess_ND[at : at + batch], np.float64) - mean_D
        norms_B = np.linalg.norm(x_BD, axis=1) * np.linalg.norm(recon_BD, axis=1)
        cosine_B = np.where(norms_B > 0, (x_BD * recon_BD).sum(1) / np.where(norms_B > 0, norms_B, 1.0), np.nan)
        parts.append((((x_BD - recon_BD) ** 2).sum(1), (x_BD**2).sum(1), cosine_B))
    return Residuals(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def explained(found: Residuals, subject_N: np.ndarray, *, n_resamples: int = 1000, seed: int = 0) -> Explained:
    """EV over all windows and as the mean of the patients' own, each with a 95 % interval over resampled patients."""
    names, error_S, total_S = patient_sums(found, subject_N)
    defined = total_S > 0
    counts = {"n_patients": len(names), "n_windows": len(found.error_N)}
    cosine = float(np.nanmean(found.cosine_N)) if np.isfinite(found.cosine_N).any() else None
    if not defined.any():
        nothing = {"overall": None, "interval": None, "per_patient": None, "per_patient_interval": None}
        return Explained(**nothing, cosine=cosine, note="every window equals the training mean", **counts)
    names, error_S, total_S = names[defined], error_S[defined], total_S[defined]
    own_S = 1 - error_S / total_S
    overall = interval(float(ratio(total_S, error_S)), replicates(ratio, total_S, error_S, names, n=n_resamples, seed=seed), n_clusters=len(names))
    mean = interval(float(own_S.mean()), replicates(average, own_S, own_S, names, n=n_resamples, seed=seed), n_clusters=len(names))
    return Explained(
        overall=overall.point,
        interval=ends(overall),
        per_patient=mean.point,
        per_patient_interval=ends(mean),
        cosine=cosine,
        note="" if len(names) > 1 else "one patient: no interval",
        **counts,
    )


def patient_sums(found: Residuals, subject_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names (S,), squared error (S,) and squared distance to the mean (S,), summed over each patient's windows."""
    names, group = grouping(subject_N, len(found.error_N))
    return names, group @ found.error_N, group @ found.total_N


def ratio(total_S: np.ndarray, error_S: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """1 - sum error / sum total, with one value per row of `weight` (B, S)."""
    weight = np.ones((1, len(total_S))) if weight is None else np.atleast_2d(weight)
    value_B = 1 - (weight @ error_S) / (weight @ total_S)
    return value_B if len(value_B) > 1 else value_B[0]


def average(own_S: np.ndarray, _: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Weighted mean, one per row of `weight` (B, S)."""
    weight = np.ones((1, len(own_S))) if weight is None else np.atleast_2d(weight)
    value_B = weight @ own_S / weight.sum(1)
    return value_B if len(value_B) > 1 else value_B[0]


def ends(found: Interval) -> tuple[float, float] | None:
    """Low and high end; None where the resamples define none (one patient, say) or are all one value of one cluster."""
    low, high = found.low, found.high
    return (low, high) if np.isfinite([low, high]).all() and high > low else None


def explained_by_patients(found: Residuals, subject_N: np.ndarray, sizes: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100), *, n_draws: int = 200, seed: int = 0):
    """EV of random sets of n patients: a list of {n_patients, mean, low, high} with 2.5 and 97.5 % quantiles over the draws; sizes beyond the cohort go."""
    _, error_S, total_S = patient_sums(found, subject_N)
    kept = total_S > 0
    error_S, total_S = error_S[kept], total_S[kept]
    generator = np.random.default_rng(seed)
    rows = []
    for n in sorted({size for size in sizes if 1 <= size <= len(total_S)}):
        draws = [generator.choice(len(total_S), n, replace=False) for _ in range(n_draws)]
        value = np.array([1 - error_S[at].sum() / total_S[at].sum() for at in draws])
        rows.append({"n_patients": n, "mean": float(value.mean()), "low": float(np.quantile(value, 0.025)), "high": float(np.quantile(value, 0.975))})
    return rows


def consistency(codes_NK: Codes, augmented_NK: Codes, subject_N: np.ndarray, *, seed: int = 0) -> Consistency:
    """How far the codes of a window survive its augmentation. A window without any code on either side has no cosine and is left out."""
    one, two = as_codes(codes_NK), as_codes(augmented_NK)
    if one.shape != two.shape:
        raise ValueError(f"augmented_NK must have the shape of codes_NK {one.shape}, got {two.shape}: give one view per window")
    partner_N = same_patient_partners(np.asarray(subject_N), one.shape[0], seed)
    paired = np.flatnonzero(partner_N >= 0)
    cosine, jaccard = mean_of(cosines(one, two)), mean_of(jaccards(one, two))
    floor = floor_jaccard = None
    if len(paired):
        floor, floor_jaccard = (mean_of(of(one[paired], two[partner_N[paired]])) for of in (cosines, jaccards))
    icc_K = intraclass(one, two)
    return Consistency(
        cosine=cosine,
        jaccard=jaccard,
        icc=mean_of(icc_K),
        same_patient_cosine=floor,
        same_patient_jaccard=floor_jaccard,
        cosine_above_floor=None if cosine is None or floor is None else cosine - floor,
        n_windows=one.shape[0],
        n_pairs=len(paired),
        icc_K=icc_K,
    )


def cosines(one: Codes, two: Codes) -> np.ndarray:
    """Cosine (N,) of rows; 0 where one row is empty, NaN where both are."""
    dot_N = np.asarray(one.multiply(two).sum(1)).reshape(-1).astype(np.float64)
    norm_N, other_N = (np.sqrt(np.asarray(part.astype(np.float64).power(2).sum(1)).reshape(-1)) for part in (one, two))
    scale_N = norm_N * other_N
    return np.where(scale_N > 0, dot_N / np.where(scale_N > 0, scale_N, 1.0), np.where(norm_N + other_N > 0, 0.0, np.nan))


def jaccards(one: Codes, two: Codes) -> np.ndarray:
    """Shared over united support (N,) of rows; NaN where both are empty."""
    a, b = fires(one), fires(two)
    both_N = np.asarray(a.multiply(b).sum(1)).reshape(-1)
    any_N = np.diff(a.indptr) + np.diff(b.indptr) - both_N
    return np.where(any_N > 0, both_N / np.maximum(any_N, 1), np.nan)


def intraclass(one: Codes, two: Codes) -> np.ndarray:
    """ICC(1) (K,) of two views as two measurements of each window; NaN where a concept does not vary."""
    n = one.shape[0]
    if n < 2:
        return np.full(one.shape[1], np.nan)
    one, two = one.astype(np.float64), two.astype(np.float64)
    mid, gap = (one + two) / 2, one - two
    mean_K = np.asarray(mid.sum(0)).reshape(-1) / n
    squares_K = np.asarray(mid.power(2).sum(0)).reshape(-1)
    between_K = 2 * (squares_K - n * mean_K**2) / (n - 1)
    within_K = np.asarray(gap.power(2).sum(0)).reshape(-1) / (2 * n)
    varies_K = between_K + within_K > FLAT * np.maximum(squares_K, 1e-300)
    return np.where(varies_K, (between_K - within_K) / np.where(varies_K, between_K + within_K, 1.0), np.nan)


def same_patient_partners(subject_N: np.ndarray, n_windows: int, seed: int) -> np.ndarray:
    """Row (N,) of another window of each window's patient, drawn at random; -1 where the patient has one window only."""
    if subject_N.shape != (n_windows,):
        raise ValueError(f"subject_N must name one patient per window, ({n_windows},), got shape {subject_N.shape}")
    generator = np.random.default_rng(seed)
    order_N = np.lexsort((generator.random(n_windows), np.unique(subject_N, return_inverse=True)[1].reshape(-1)))
    _, first, count = np.unique(subject_N[order_N], return_index=True, return_counts=True)
    partner_N = np.full(n_windows, -1)
    for start, size in zip(first, count, strict=True):
        if size > 1:
            mine = order_N[start : start + size]
            partner_N[mine] = np.roll(mine, 1)
    return partner_N


def lag1(codes_NK: Codes, next_N: np.ndarray, record_N: np.ndarray) -> Lag1:
    """Autocorrelation over pairs (row, next row); `next_N` is -1 where no gap-free window follows. Also for dense scores, as principal components.

    The null is exact: shuffling n windows of a record with sum of squares q and p pairs gives the expected numerator -p q / (n (n - 1)).
    """
    codes = as_codes(codes_NK).astype(np.float64)
    next_N = np.asarray(next_N)
    if next_N.shape != (codes.shape[0],) or (next_N >= codes.shape[0]).any():
        raise ValueError(f"next_N must give one row number below {codes.shape[0]} per window (-1: none), got shape {next_N.shape}, largest {next_N.max()}")
    first = np.flatnonzero(next_N >= 0)
    if not len(first):
        return Lag1(within=None, null_within=None, above_null=None, globally_centred=None, n_pairs=0, n_concepts=0, note="no window has a gap-free successor")
    after = next_N[first]
    record_N = np.asarray(record_N)
    if (record_N[first] != record_N[after]).any():
        raise ValueError("next_N joins windows of two records; rebuild it within records")
    _, group = grouping(record_N, codes.shape[0])
    n_R = np.asarray(group.sum(1)).reshape(-1)
    pairs_R = np.asarray(group[:, first].sum(1)).reshape(-1)
    mean_RK = sparse.diags_array(1 / n_R) @ (group @ codes)
    product_K = column_sums(codes[first].multiply(codes[after]))
    cross_K = column_sums(mean_RK.multiply(group[:, first] @ codes[first] + group[:, after] @ codes[after]))
    numerator_K = product_K - cross_K + pairs_R @ mean_RK.power(2)
    raw_K = column_sums(codes.power(2))
    own_RK = group @ codes.power(2) - sparse.diags_array(n_R) @ mean_RK.power(2)
    squares_K = column_sums(own_RK)
    live_K = squares_K > FLAT * np.maximum(raw_K, 1e-300)
    null_R = np.where(n_R > 1, -pairs_R / np.maximum(n_R * (n_R - 1), 1), 0.0)
    mean_K = column_sums(codes) / codes.shape[0]
    ends_K = column_sums(codes[first]) + column_sums(codes[after])
    total_K = raw_K - codes.shape[0] * mean_K**2
    varies_K = total_K > FLAT * np.maximum(raw_K, 1e-300)
    whole = mean_of(((product_K - mean_K * ends_K + len(first) * mean_K**2)[varies_K]) / total_K[varies_K])
    if not live_K.any():
        return Lag1(
            within=None, null_within=None, above_null=None, globally_centred=whole, n_pairs=len(first), n_concepts=0, note="no concept varies in a record"
        )
    within = float((numerator_K[live_K] / squares_K[live_K]).mean())
    null = float(((null_R @ own_RK)[live_K] / squares_K[live_K]).mean())
    return Lag1(within=within, null_within=null, above_null=within - null, globally_centred=whole, n_pairs=len(first), n_concepts=int(live_K.sum()))


def fires(codes: Codes) -> Codes:
    """1 where a concept fires."""
    out = codes.copy()
    out.data = np.ones_like(out.data)
    return out


def column_sums(matrix: sparse.sparray) -> np.ndarray:
    return np.asarray(matrix.sum(0)).reshape(-1)


def mean_of(values: np.ndarray) -> float | None:
    """Mean of the defined values; None where there is none."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None
