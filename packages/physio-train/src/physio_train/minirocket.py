"""MiniRocket: ten thousand fixed convolutions of a short series, each read as one share, and a ridge classifier: the floor of a series archive.

Dempster, Schmidt and Webb, "MiniRocket", KDD 2021, arXiv 2012.08791. A kernel has nine taps, three of them 2 and six -1 (84 kernels), and is spread by
dilations; a feature is the share of samples at which its convolution exceeds a bias. Biases are quantiles of the convolutions of training series.
N series, T samples, D dilations, F features, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from physio_train.fitted import write_fitted

N_TAPS = 9
KERNELS = tuple(combinations(range(N_TAPS), 3))  # taps of weight 2
MAX_DILATIONS = 32  # of a kernel
GOLDEN = (np.sqrt(5) + 1) / 2
ALPHAS = np.logspace(-3, 3, 10)  # ridge penalties that leave-one-out error chooses from
WEIGHTS_FILE, META_FILE = "minirocket.safetensors", "minirocket.json"


@dataclass(frozen=True, kw_only=True)
class MiniRocket:
    """Fixed convolutions with their biases, and the ridge classifier of what they give."""

    n_samples: int
    classes: tuple[str, ...]
    dilation_D: np.ndarray  # int64
    n_biases_D: np.ndarray  # int64, features of each kernel at each dilation
    bias_F: np.ndarray  # float64; dilation by dilation, kernel by kernel
    mean_F: np.ndarray
    scale_F: np.ndarray  # inf for features that were constant in training
    coef_FK: np.ndarray
    intercept_K: np.ndarray  # of a class that training lacks -1, the target of "surely not"
    alpha: float

    def features(self, x_NT: np.ndarray) -> np.ndarray:
        """Shares (N, F) float64 in [0, 1]. ValueError for another length and for samples that are not finite."""
        return _shares(_checked(x_NT, self.n_samples), self.dilation_D, self.n_biases_D, self.bias_F)

    def scores(self, x_NT: np.ndarray) -> np.ndarray:
        """What the ridge says of each class (N, K): about 1 for yes and -1 for no, no probability; the largest is the call."""
        return ((self.features(x_NT) - self.mean_F) / self.scale_F) @ self.coef_FK + self.intercept_K


def fit(x_NT: np.ndarray, y_N: np.ndarray, classes: tuple[str, ...], *, n_features: int = 10_000, seed: int = 0) -> MiniRocket:
    """Biases and ridge from training series (N, T) and class numbers (N,), -1 unknown (it lends biases alone).

    ``seed`` draws the series that each bias is taken of. ValueError for series shorter than a kernel, for one class and for no room for a feature a kernel.
    """
    from sklearn.linear_model import RidgeClassifierCV

    x_NT, y_N = _checked(x_NT, None), np.asarray(y_N)
    if x_NT.shape[1] < N_TAPS:
        raise ValueError(f"series must have at least the {N_TAPS} samples of a kernel, got {x_NT.shape[1]}")
    if n_features < len(KERNELS):
        raise ValueError(f"n_features must be at least {len(KERNELS)}, one a kernel, got {n_features}")
    if len(np.unique(y_N[y_N >= 0])) < 2:
        raise ValueError("y_N holds one class only: a classifier needs two")
    dilation_D, n_biases_D = dilations(x_NT.shape[1], n_features)
    bias_F = _biases(x_NT, dilation_D, n_biases_D, np.random.default_rng(seed))
    known_N = y_N >= 0
    share_NF = _shares(x_NT[known_N], dilation_D, n_biases_D, bias_F)
    mean_F, sd_F = share_NF.mean(0), share_NF.std(0)
    scale_F = np.where(sd_F > 0, sd_F, np.inf)
    ridge = RidgeClassifierCV(alphas=ALPHAS).fit((share_NF - mean_F) / scale_F, y_N[known_N])
    coef_FK, intercept_K = np.zeros((len(bias_F), len(classes))), np.full(len(classes), -1.0)
    found = ridge.classes_.astype(np.int64)
    sign = np.array([-1.0, 1.0]) if len(found) == 2 else np.ones(len(found))  # of two classes scikit-learn fits the second alone
    coef_FK[:, found], intercept_K[found] = np.atleast_2d(ridge.coef_).T * sign, ridge.intercept_ * sign
    fitted = {"mean_F": mean_F, "scale_F": scale_F, "coef_FK": coef_FK, "intercept_K": intercept_K, "alpha": float(ridge.alpha_)}
    return MiniRocket(n_samples=x_NT.shape[1], classes=tuple(classes), dilation_D=dilation_D, n_biases_D=n_biases_D, bias_F=bias_F, **fitted)


def dilations(n_samples: int, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """Dilations (D,) up to the one whose kernel is as long as the series, evenly spread on a log scale and rounded down, and how many features of each
    kernel go to each (D,): as many as fall on it, what is left over dealt from the smallest on (section 3.2)."""
    each = n_features // len(KERNELS)
    n = min(each, MAX_DILATIONS)
    power_n = np.linspace(0, np.log2((n_samples - 1) / (N_TAPS - 1)), n)
    dilation_D, count_D = np.unique(np.floor(2**power_n + 1e-9).astype(np.int64), return_counts=True)
    count_D = (count_D * (each / n)).astype(np.int64)
    left = each - count_D.sum()
    return dilation_D, count_D + (left // len(count_D)) + (np.arange(len(count_D)) < left % len(count_D))


def _checked(x_NT: np.ndarray, n_samples: int | None) -> np.ndarray:
    x_NT = np.asarray(x_NT, dtype=np.float64)
    if x_NT.ndim != 2 or (n_samples is not None and x_NT.shape[1] != n_samples):
        raise ValueError(f"x_NT must be (N, {n_samples or 'T'}), series of one length, got {x_NT.shape}")
    if not np.isfinite(x_NT).all():
        raise ValueError("x_NT must be finite: fill gaps and short tails first")
    return x_NT


def _convolved(x_NT: np.ndarray, dilation: int) -> Iterator[np.ndarray]:
    """Every kernel's convolution at a dilation (N, T), the series continued by zeros: minus the sum of nine taps, plus three times the chosen three."""
    reach, n = (N_TAPS // 2) * dilation, x_NT.shape[1]
    padded = np.pad(x_NT, ((0, 0), (reach, reach)))
    taps = [padded[:, i * dilation : i * dilation + n] for i in range(N_TAPS)]
    total_NT = np.sum(taps, axis=0)
    for a, b, c in KERNELS:
        yield 3 * (taps[a] + taps[b] + taps[c]) - total_NT


def _kept(y_NT: np.ndarray, kernel: int, place: int, dilation: int) -> np.ndarray:
    """All samples for every other pair of kernel and dilation; for the rest those at which no tap lies outside the series."""
    reach = (N_TAPS // 2) * dilation
    return y_NT if (kernel + place) % 2 == 0 else y_NT[:, reach : y_NT.shape[1] - reach]


def _biases(x_NT: np.ndarray, dilation_D: np.ndarray, n_biases_D: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Quantiles of one random series' convolution each, their levels the multiples of the golden ratio (section 3.1).

    They are of the whole convolution, the zeros about the series included, for every kernel: only shares leave the ends out.
    """
    level_F = (np.arange(1, len(KERNELS) * n_biases_D.sum() + 1) * GOLDEN) % 1
    out, done = [], 0
    for dilation, n in zip(dilation_D.tolist(), n_biases_D.tolist(), strict=True):
        lender_P = generator.integers(len(x_NT), size=len(KERNELS))
        rows, at = np.unique(lender_P, return_inverse=True)
        for kernel, y_NT in enumerate(_convolved(x_NT[rows], dilation)):
            out.append(np.quantile(y_NT[at[kernel]], level_F[done : done + n]))
            done += n
    return np.concatenate(out)


def _shares(x_NT: np.ndarray, dilation_D: np.ndarray, n_biases_D: np.ndarray, bias_F: np.ndarray) -> np.ndarray:
    out_NF, done = np.empty((len(x_NT), len(bias_F))), 0
    for place, (dilation, n) in enumerate(zip(dilation_D.tolist(), n_biases_D.tolist(), strict=True)):
        for kernel, y_NT in enumerate(_convolved(x_NT, dilation)):
            kept_NT = _kept(y_NT, kernel, place, dilation)
            for f in range(done, done + n):
                out_NF[:, f] = np.count_nonzero(kept_NT > bias_F[f], axis=1)
            out_NF[:, done : done + n] /= kept_NT.shape[1]
            done += n
    return out_NF


def save(folder: str | Path, model: MiniRocket) -> Path:
    """Write minirocket.safetensors and minirocket.json into the folder, each atomically."""
    values = vars(model)
    meta = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
    return write_fitted(folder, WEIGHTS_FILE, META_FILE, values, meta)


def load(folder: str | Path) -> MiniRocket:
    """Read back what `save` wrote; ValueError where a file is missing or damaged."""
    folder = Path(folder)
    try:
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        return MiniRocket(**{**meta, "classes": tuple(meta["classes"])}, **load_file(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} holds no whole MiniRocket ({error}); fit it again") from None
