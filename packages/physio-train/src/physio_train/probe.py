"""A linear probe on frozen features: standardise, weight the classes, choose the regularisation and the threshold inside the training rows, fit.

N windows, D features, K outputs (1 for binary and regression, else one per class or label).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.special import expit, softmax

from physio_train import logistic
from physio_train.fitted import write_fitted
from physio_train.folds import grouped_folds
from physio_train.metrics import auroc, best_threshold, log_loss, macro_auroc

Kind = Literal["binary", "multiclass", "multilabel", "regression"]
WEIGHTS_FILE, META_FILE = "head.safetensors", "head.json"
FLAT = 1e-9  # a column whose deviation is below this share of its size is constant: it carries nothing and gets no weight


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How a probe is fitted. `kind` binary, multiclass (softmax), multilabel (one logistic per label) or regression (ridge)."""

    kind: Kind = "binary"
    strengths: tuple[float, ...] = ()  # logistic: scikit-learn's C; ridge: 1 / alpha. Empty: (1e-4 .. 1) for logistic, (1e-5 .. 0.1) for ridge
    n_inner: int = 4  # inner grouped folds that choose the strength and the threshold
    weights: Literal["balanced", "none"] = "balanced"  # balanced: each class weighs the same, so prevalence of a fold cannot leak into pooled scores
    select: Literal["log_loss", "auroc"] = "log_loss"  # chooses the strength on inner out-of-fold scores: a proper score keeps folds comparable when pooled
    missing: Literal["error", "median"] = "error"  # NaN features: refuse (encoders), or fill with the training rows' median (hand-crafted)
    seed: int = 0  # of the inner folds

    def __post_init__(self) -> None:
        if self.kind not in ("binary", "multiclass", "multilabel", "regression"):
            raise ValueError(f"kind must be binary, multiclass, multilabel or regression, got {self.kind!r}")
        if any(not s > 0 for s in self.strengths):
            raise ValueError(f"strengths must be positive, got {self.strengths}")
        if self.n_inner < 2:
            raise ValueError(f"n_inner must be at least 2, got {self.n_inner}")
        for name, allowed in (("weights", ("balanced", "none")), ("select", ("auroc", "log_loss")), ("missing", ("error", "median"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    @property
    def grid(self) -> tuple[float, ...]:
        """The strengths tried, weakest first: a tie is won by the stronger regularisation."""
        default = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1) if self.kind == "regression" else (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        return tuple(sorted(self.strengths or default))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fitted probe: everything that turns features into scores."""

    config: ProbeConfig
    classes: tuple[str, ...]
    fill_D: np.ndarray  # float64; NaN features become this
    mean_D: np.ndarray
    scale_D: np.ndarray  # inf for constant columns, so that they standardise to zero
    coef_DK: np.ndarray  # on standardised features
    intercept_K: np.ndarray
    strength_K: np.ndarray  # chosen for each output (one for all under softmax)
    threshold_K: np.ndarray  # F1-best on inner out-of-fold predictions; NaN for multiclass and regression
    inner_K: np.ndarray  # the figure that chose the strength, inner out-of-fold
    converged: bool
    more: Mapping[str, Any] = field(default_factory=dict)  # what the app keeps with it: task, level, pool, ...

    def predict(self, x_ND: np.ndarray) -> np.ndarray:
        """Scores (N, K) float64: probabilities (of class-balanced fits, under `balanced`), or the target in its unit for regression."""
        z_ND = _standardise(x_ND, self.fill_D, self.mean_D, self.scale_D, self.config.missing)
        return _link(z_ND @ self.coef_DK + self.intercept_K, self.config.kind)


def fit(
    x_ND: np.ndarray,
    y: np.ndarray,
    groups_N: np.ndarray,
    config: ProbeConfig,
    *,
    classes: tuple[str, ...] = (),
    validation: tuple[np.ndarray, np.ndarray] | None = None,
) -> Probe:
    """Fit on training rows only; groups (subjects) keep whole in the inner folds.

    `y` is (N,) class numbers (-1 unknown) or a real target (NaN unknown), or (N, K) 0/1 for multilabel. Rows of unknown label are passed over.
    `validation` (x, y) replaces the inner folds where a corpus has a validation fold: strength and threshold are chosen there, the fit stays on these rows.
    Raises ValueError for non-finite features (unless `missing="median"`, which fills NaN), for one class only, and for fewer groups than inner folds.
    """
    return _fit(x_ND, y, groups_N, config, classes, validation)[0]


def fit_with_scores(x_ND: np.ndarray, y: np.ndarray, groups_N: np.ndarray, config: ProbeConfig, *, classes: tuple[str, ...] = ()) -> tuple[Probe, np.ndarray]:
    """As `fit`, with the out-of-fold scores (N, K) of the inner folds at the chosen strength; NaN where a row has no label or the other folds allow no fit."""
    return _fit(x_ND, y, groups_N, config, classes, None)


def _fit(x_ND, y, groups_N, config, classes, validation) -> tuple[Probe, np.ndarray]:
    """The probe, and inner scores (N, K) of the rows given."""
    x_ND, y_NK = np.asarray(x_ND, dtype=np.float64), _target(y, config.kind)
    if x_ND.ndim != 2 or len(x_ND) != len(y_NK) or len(groups_N) != len(y_NK):
        raise ValueError(f"x_ND must be (N, D) with one label and one group per row, got {x_ND.shape}, {y_NK.shape} and {np.shape(groups_N)}")
    known = np.isfinite(y_NK).any(axis=1)
    known_N = known
    x_ND, y_NK, groups_N = x_ND[known], y_NK[known], np.asarray(groups_N)[known]
    if not len(x_ND):
        raise ValueError("y has no known label among the training rows: choose another task or fold")
    fill_D, mean_D, scale_D = _standardiser(x_ND, config.missing)
    n_outputs, names = _outputs(y_NK, config.kind, classes)
    if validation is None:
        held_N = grouped_folds(groups_N, y_NK if config.kind == "multilabel" else y_NK[:, 0], min(config.n_inner, len(np.unique(groups_N))), config.seed)
    else:
        x_more, y_more = np.asarray(validation[0], dtype=np.float64), _target(validation[1], config.kind)
        known = np.isfinite(y_more).any(axis=1)
        held_N = np.concatenate([np.full(len(x_ND), -1), np.zeros(known.sum(), dtype=np.int64)])
        x_ND, y_NK = np.concatenate([x_ND, x_more[known]]), np.concatenate([y_NK, y_more[known]])
    z_ND = _standardise(x_ND, fill_D, mean_D, scale_D, config.missing)
    fitted = _ridge(z_ND, y_NK[:, 0], held_N, config) if config.kind == "regression" else _logistic(z_ND, y_NK, held_N, n_outputs, config)
    scores = fitted.pop("scores")
    inner_NK = np.full((len(known_N), scores.shape[1]), np.nan)
    inner_NK[known_N] = scores[: known_N.sum()]
    return Probe(config=config, classes=names, fill_D=fill_D, mean_D=mean_D, scale_D=scale_D, **fitted), inner_NK


def save(folder: str | Path, probe: Probe) -> Path:
    """Write head.safetensors and head.json into the folder, each atomically."""
    meta = {"config": asdict(probe.config), "classes": probe.classes, "converged": probe.converged, "more": dict(probe.more)}
    return write_fitted(folder, WEIGHTS_FILE, META_FILE, vars(probe), meta)


def load(folder: str | Path) -> Probe:
    """Read back what `save` wrote; raises ValueError where a file is missing or damaged."""
    folder = Path(folder)
    absent = [name for name in (WEIGHTS_FILE, META_FILE) if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{folder} holds no {' and no '.join(absent)}: it is not a saved probe")
    try:
        arrays = load_file(folder / WEIGHTS_FILE)
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"the probe in {folder} is damaged ({error}); fit it again") from error
    config = ProbeConfig(**{**meta["config"], "strengths": tuple(meta["config"]["strengths"])})
    return Probe(config=config, classes=tuple(meta["classes"]), converged=meta["converged"], more=meta["more"], **arrays)


def _logistic(z_ND: np.ndarray, y_NK: np.ndarray, held_N: np.ndarray, n_outputs: int, config: ProbeConfig) -> dict[str, Any]:
    """All inner folds and the whole training set at every strength, in one solve per label."""
    fit_rows = np.flatnonzero(held_N == -1) if np.any(held_N == -1) else np.arange(len(held_N))  # a validation fold has no part in the fit
    design = logistic.design(z_ND[fit_rows])
    solved = [_one_label(design, fit_rows, z_ND, column, held_N, max(n_outputs if config.kind == "multiclass" else 2, 2), config) for column in y_NK.T]
    coef, intercept, strength, threshold, figure, converged, scores = zip(*solved, strict=True)
    return {
        "scores": np.concatenate(scores, axis=1),
        "coef_DK": np.concatenate(coef, axis=1),
        "intercept_K": np.concatenate(intercept),
        "strength_K": np.array(strength),
        "threshold_K": np.array(threshold),
        "inner_K": np.array(figure),
        "converged": all(converged),
    }


def _one_label(design, fit_rows, z_ND, y_N, held_N, n_classes, config):
    known = np.isfinite(y_N)
    target = np.where(known, y_N, 0).astype(np.int64)
    folds = [int(f) for f in np.unique(held_N[held_N >= 0])]
    training = [known & (held_N != f) for f in folds] + [known & (held_N == -1) if np.any(held_N == -1) else known]
    usable = [len(np.unique(target[rows])) > 1 for rows in training]
    if not usable[-1]:
        raise ValueError("y holds one class only among the training rows: a classifier needs two; choose another task or more subjects")
    folds = [f for f, good in zip(folds, usable, strict=False) if good]
    training = [rows for rows, good in zip(training, usable, strict=True) if good]
    weight_NF = np.stack([_weights(target, rows, n_classes, config.weights) for rows in training], axis=1)
    n_fits, grid = len(training), np.array(config.grid)
    solution = logistic.solve(design, target[fit_rows], np.tile(weight_NF[fit_rows], (1, len(grid))), np.repeat(grid, n_fits), n_classes=n_classes)
    score = np.full((len(grid), len(z_ND), solution.coef_DPK.shape[2]), np.nan)
    for i, f in enumerate(folds):
        rows = held_N == f
        held_ND = z_ND[rows]
        for c in range(len(grid)):
            p = c * n_fits + i
            score[c, rows] = _link(held_ND @ solution.coef_DPK[:, p] + solution.intercept_PK[p], "multiclass" if n_classes > 2 else "binary")
    scored = known & np.isfinite(score[0, :, 0])
    figures = np.array([_figure(target[scored], score[c, scored], n_classes, config) for c in range(len(grid))])
    best = int(np.argmax(np.where(np.isfinite(figures), figures, -np.inf)))
    chosen = best * n_fits + n_fits - 1
    threshold = best_threshold(target[scored], score[best, scored, 0]) if n_classes == 2 else np.nan
    converged = bool(solution.converged_P.all())
    return solution.coef_DPK[:, chosen], solution.intercept_PK[chosen], grid[best], threshold, figures[best], converged, score[best]


def _figure(target_N: np.ndarray, score_NK: np.ndarray, n_classes: int, config: ProbeConfig) -> float:
    """Higher is better; NaN where nothing could be scored."""
    if not len(target_N):
        return float("nan")
    onehot_NK = np.eye(n_classes)[target_N]
    probability_NK = score_NK if n_classes > 2 else np.concatenate([1 - score_NK, score_NK], axis=1)
    if config.select == "auroc":
        return auroc(target_N, score_NK[:, 0]) if n_classes == 2 else macro_auroc(onehot_NK, score_NK)
    weight_N = _weights(target_N, np.ones(len(target_N), dtype=bool), n_classes, config.weights)
    return -log_loss(np.ones(len(target_N)), np.clip(probability_NK[np.arange(len(target_N)), target_N], 0, 1), weight=weight_N)


def _ridge(z_ND: np.ndarray, y_N: np.ndarray, held_N: np.ndarray, config: ProbeConfig) -> dict[str, Any]:
    """Minimise sum((y - z coef - intercept)^2) + ||coef||^2 / strength; the strength by inner out-of-fold squared error."""
    folds = [int(f) for f in np.unique(held_N[held_N >= 0])]
    grid = np.array(config.grid)
    score_CN = np.full((len(grid), len(y_N)), np.nan)
    for f in folds:
        rows = held_N == f
        for c, (coef_D, intercept) in enumerate(_ridge_path(z_ND[~rows], y_N[~rows], grid)):
            score_CN[c, rows] = z_ND[rows] @ coef_D + intercept
    error = np.nansum((score_CN - y_N) ** 2, axis=1)
    best = int(np.argmin(error))
    rows = held_N == -1 if np.any(held_N == -1) else np.ones(len(y_N), dtype=bool)
    coef_D, intercept = _ridge_path(z_ND[rows], y_N[rows], grid[best : best + 1])[0]
    return {
        "coef_DK": coef_D[:, None],
        "intercept_K": np.array([intercept]),
        "strength_K": grid[best : best + 1],
        "threshold_K": np.array([np.nan]),
        "inner_K": np.array([-error[best] / np.isfinite(score_CN[best]).sum()]),
        "scores": score_CN[best][:, None],
        "converged": True,
    }


def _ridge_path(z_ND: np.ndarray, y_N: np.ndarray, strengths: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Ridge at every strength from one eigendecomposition of the smaller Gram matrix."""
    z_mean, y_mean = z_ND.mean(axis=0), y_N.mean()
    centred, y = z_ND - z_mean, y_N - y_mean
    wide = centred.shape[1] > centred.shape[0]
    value, axes = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    part = axes.T @ (y if wide else centred.T @ y)
    back = centred.T @ axes if wide else axes
    coefs = [back @ (part / (np.maximum(value, 0.0) + 1.0 / s)) for s in strengths]
    return [(coef_D, float(y_mean - z_mean @ coef_D)) for coef_D in coefs]


def _weights(target_N: np.ndarray, rows_N: np.ndarray, n_classes: int, how: str) -> np.ndarray:
    """Zero outside the rows; inside, 1 or n / (classes present * n of the class)."""
    weight_N = rows_N.astype(np.float64)
    if how == "balanced":
        count = np.bincount(target_N[rows_N], minlength=n_classes)
        weight_N *= (rows_N.sum() / ((count > 0).sum() * np.maximum(count, 1)))[target_N]
    return weight_N


def _standardiser(x_ND: np.ndarray, missing: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median (of known values), mean and deviation of each column of the training rows; labels have no part in it."""
    hole = np.isnan(x_ND)
    fill_D = np.zeros(x_ND.shape[1])
    if missing == "median" and hole.any():
        some = ~hole.all(axis=0)
        fill_D[some] = np.nanmedian(x_ND[:, some], axis=0)
    x_ND = _filled(x_ND, fill_D, missing)
    mean_D, scale_D = x_ND.mean(axis=0), x_ND.std(axis=0)
    return fill_D, mean_D, np.where(scale_D > FLAT * np.maximum(np.abs(mean_D), 1e-30), scale_D, np.inf)


def _standardise(x_ND, fill_D, mean_D, scale_D, missing) -> np.ndarray:
    x_ND = np.asarray(x_ND, dtype=np.float64)
    if x_ND.ndim != 2 or x_ND.shape[1] != len(mean_D):
        raise ValueError(f"x_ND must be (N, {len(mean_D)}) like the features the probe was fitted on, got {x_ND.shape}: use the same level and pool")
    return (_filled(x_ND, fill_D, missing) - mean_D) / scale_D


def _filled(x_ND: np.ndarray, fill_D: np.ndarray, missing: str) -> np.ndarray:
    bad = ~np.isfinite(x_ND)
    if not bad.any():
        return x_ND
    refused = bad if missing == "error" else np.isinf(x_ND)
    if refused.any():
        n, d = np.argwhere(refused)[0]
        raise ValueError(f'features must be finite: row {n}, column {d} is {x_ND[n, d]}; mend the encoder or its input (missing="median" fills NaN only)')
    return np.where(bad, fill_D, x_ND)


def _target(y: np.ndarray, kind: str) -> np.ndarray:
    """(N, K) float64 with NaN for unknown."""
    y = np.asarray(y, dtype=np.float64)
    if y.ndim != (2 if kind == "multilabel" else 1):
        raise ValueError(f"y must be {'(N, K)' if kind == 'multilabel' else '(N,)'} for a {kind} task, got {y.shape}")
    y = y[:, None] if y.ndim == 1 else y
    return y if kind == "regression" else np.where(y >= 0, y, np.nan)


def _outputs(y_NK: np.ndarray, kind: str, classes: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    if kind == "multiclass":
        n = max(int(np.nanmax(y_NK)) + 1, len(classes))
        if n < 3:
            raise ValueError(f"a multiclass task needs at least three classes, got {n}: use kind='binary'")
    else:
        n = y_NK.shape[1]
        if kind != "regression" and np.nanmax(y_NK) > 1:
            raise ValueError(f"labels of a {kind} task must be 0 or 1 (-1 unknown), got {np.nanmax(y_NK):g}: use kind='multiclass'")
    return n, classes if classes else tuple(str(i) for i in range(n))


def _link(score_NK: np.ndarray, kind: str) -> np.ndarray:
    if kind == "multiclass":
        return softmax(score_NK, axis=1)
    return score_NK if kind == "regression" else expit(score_NK)
