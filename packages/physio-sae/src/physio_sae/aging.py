"""Age from concepts, and the gap between predicted and true age. S patients, F features, Q repeated measures.

Order: features of patients -> elastic net with alpha and l1_ratio from folds of training patients -> out-of-fold predictions of the training patients
-> bias correction fitted on those alone -> gap of the test patients. Accuracy is a figure of uncorrected predictions: a corrected prediction contains the
true age, so its R2 is high whatever the model (Butler et al. 2021, Hum Brain Mapp 42:4092).

With P predicted and A true age, and P = alpha A + beta fitted on out-of-fold training predictions:

    cole       delta = (P - beta) / alpha - A       Cole et al. 2018, Mol Psychiatry 23:1385
    de_lange   delta = P - alpha A - beta           de Lange and Cole 2020, NeuroImage Clin 26:102229
    beheshti   (P - A) fitted on A, its residual    Beheshti et al. 2019, NeuroImage Clin 24:102063; the same numbers as de_lange
    spline     residual of (P - A) on a natural cubic spline of age and on sex, after Smith et al. 2019, NeuroImage 200:528
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import f as f_distribution
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, ElasticNetCV

from physio_sae.codes import PatientCodes
from physio_train.folds import grouped_folds
from physio_train.metrics import mae, pearson, r2
from physio_train.statistics import Interval, cluster_bootstrap

Correction = Literal["de_lange", "cole", "beheshti", "spline"]
CORRECTIONS: tuple[Correction, ...] = ("de_lange", "cole", "beheshti", "spline")


@dataclass(frozen=True, kw_only=True)
class AgeConfig:
    """How age is predicted. The published pipeline says ElasticNetCV; the grid is this project's choice."""

    l1_ratios: tuple[float, ...] = (0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0)
    n_alphas: int = 100
    n_folds: int = 5  # of patients: inner ones choose alpha and l1_ratio, outer ones give out-of-fold predictions
    max_features: int = 512  # features that correlate most with age enter, chosen inside each fold's training patients; 0 takes all
    n_halves: int = 100  # half-samples of stability selection; 0 leaves it out
    stable: float = 0.6  # a feature selected in at least this share of half-samples is stable
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.l1_ratios or not all(0 < r <= 1 for r in self.l1_ratios):
            raise ValueError(f"l1_ratios must lie in (0, 1], got {self.l1_ratios}")
        if self.n_folds < 2 or self.n_alphas < 2:
            raise ValueError(f"n_folds and n_alphas must be at least 2, got {self.n_folds} and {self.n_alphas}")
        if self.max_features < 0 or self.n_halves < 0 or not 0 < self.stable <= 1:
            raise ValueError(
                f"max_features and n_halves must not be negative and stable lie in (0, 1], got {self.max_features}, {self.n_halves}, {self.stable}"
            )


@dataclass(frozen=True, kw_only=True)
class AgeModel:
    """A fitted predictor of age in years: standardiser and linear weights of all F features (zero where not selected)."""

    mean_F: np.ndarray
    scale_F: np.ndarray  # inf for constant features
    low_F: np.ndarray  # the range that the patients of the fit showed
    high_F: np.ndarray
    coef_F: np.ndarray  # years per standard deviation
    intercept: float
    alpha: float
    l1_ratio: float
    converged: bool

    def predict(self, x_SF: np.ndarray) -> np.ndarray:
        """Age (S,) in years. Features are held within the range of the fit: one that hardly varied there would weigh without bound outside it."""
        return (np.clip(np.asarray(x_SF, np.float64), self.low_F, self.high_F) - self.mean_F) / self.scale_F @ self.coef_F + self.intercept


@dataclass(frozen=True, kw_only=True)
class Bias:
    """A correction fitted on out-of-fold training predictions; see the module's table."""

    method: Correction
    coef: np.ndarray
    knots: np.ndarray
    with_sex: bool

    def delta(self, predicted_S: np.ndarray, age_S: np.ndarray, male_S: np.ndarray | None = None) -> np.ndarray:
        """The gap (S,) in years, free of the trend over age that the training patients had. ValueError for a missing sex that the fit used."""
        predicted_S, age_S = np.asarray(predicted_S, np.float64), np.asarray(age_S, np.float64)
        if self.method == "cole":
            return (predicted_S - self.coef[1]) / self.coef[0] - age_S
        if self.method == "de_lange":
            return predicted_S - self.coef[0] * age_S - self.coef[1]
        return predicted_S - age_S - self._design(age_S, male_S) @ self.coef

    def corrected(self, predicted_S: np.ndarray, age_S: np.ndarray, male_S: np.ndarray | None = None) -> np.ndarray:
        """Age plus gap. It contains the true age: never a figure of accuracy."""
        return np.asarray(age_S, np.float64) + self.delta(predicted_S, age_S, male_S)

    def _design(self, age_S: np.ndarray, male_S: np.ndarray | None) -> np.ndarray:
        return (
            np.stack([age_S, np.ones_like(age_S)], axis=1) if self.method == "beheshti" else spline_design(age_S, self.knots, male_S if self.with_sex else None)
        )


@dataclass(frozen=True, kw_only=True)
class Repeatability:
    """Within-person error of a measure, from a one-way analysis of variance. None where fewer than two people were measured twice (`note`)."""

    sem: float | None  # within-person standard deviation
    minimal_detectable_change: float | None  # 1.96 sqrt(2) SEM: a smaller change between two measures may be error
    icc: float | None  # ICC(1)
    n_people: int
    n_measures: int
    note: str = ""


def patient_features(codes: PatientCodes, live_K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x_SF, concept_F, is_rate_F): log1p of mean activation, then of firing rate, of each live concept. Negative means (PCA, ICA) keep their sign."""
    live = np.flatnonzero(live_K)
    if not len(live):
        raise ValueError("live_K names no live concept: train the dictionary longer, or lower its sparsity")
    mean_SL, rate_SL = codes.mean_SK[:, live], codes.rate_SK[:, live]
    features = np.concatenate([np.sign(mean_SL) * np.log1p(np.abs(mean_SL)), np.log1p(rate_SL)], axis=1)
    return features, np.tile(live, 2), np.repeat([False, True], len(live))


def fit_age(x_SF: np.ndarray, age_S: np.ndarray, cfg: AgeConfig | None = None) -> AgeModel:
    """Elastic net of age (Zou and Hastie 2005, JRSS B 67:301), alpha and l1_ratio by folds of patients (one row is one patient).

    Raises ValueError for features or ages that are not finite, a constant age, and fewer patients than twice the folds.
    """
    cfg = cfg or AgeConfig()
    x_SF, age_S = checked(x_SF, age_S, cfg)
    mean_F, scale_F = standardiser(x_SF)
    z_SF = (x_SF - mean_F) / scale_F
    at = screened(z_SF, age_S, cfg.max_features)
    coef_F = np.zeros(x_SF.shape[1])
    known = {"mean_F": mean_F, "scale_F": scale_F, "low_F": x_SF.min(0), "high_F": x_SF.max(0)}
    if not len(at):
        return AgeModel(**known, coef_F=coef_F, intercept=float(age_S.mean()), alpha=0.0, l1_ratio=1.0, converged=True)
    fold_S = grouped_folds(np.arange(len(age_S)), age_S, cfg.n_folds, cfg.seed)
    splits = [(np.flatnonzero(fold_S != f), np.flatnonzero(fold_S == f)) for f in range(cfg.n_folds)]
    net = ElasticNetCV(l1_ratio=list(cfg.l1_ratios), alphas=cfg.n_alphas, cv=splits, max_iter=2000, tol=1e-3)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", ConvergenceWarning)
        net.fit(z_SF[:, at], age_S)
    coef_F[at] = net.coef_
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in heard)
    return AgeModel(
        **known,
        coef_F=coef_F,
        intercept=float(net.intercept_),
        alpha=float(net.alpha_),
        l1_ratio=float(net.l1_ratio_),
        converged=converged,
    )


def out_of_fold(x_SF: np.ndarray, age_S: np.ndarray, cfg: AgeConfig | None = None) -> np.ndarray:
    """Predictions (S,) of patients by models that did not see them; alpha, l1_ratio, screening and standardiser are those of each fold's own training."""
    cfg = cfg or AgeConfig()
    x_SF, age_S = checked(x_SF, age_S, cfg)
    fold_S = grouped_folds(np.arange(len(age_S)), age_S, cfg.n_folds, cfg.seed + 1)
    predicted_S = np.empty(len(age_S))
    for fold in range(cfg.n_folds):
        predicted_S[fold_S == fold] = fit_age(x_SF[fold_S != fold], age_S[fold_S != fold], cfg).predict(x_SF[fold_S == fold])
    return predicted_S


def stability_selection(x_SF: np.ndarray, age_S: np.ndarray, cfg: AgeConfig | None = None, *, model: AgeModel | None = None) -> np.ndarray:
    """Share (F,) of half-samples of patients in which each feature gets weight (Meinshausen and Buehlmann 2010, JRSS B 72:417).

    The penalty is the fitted model's, so that all halves ask the same question.
    """
    cfg = cfg or AgeConfig()
    x_SF, age_S = checked(x_SF, age_S, cfg)
    model = model or fit_age(x_SF, age_S, cfg)
    if model.alpha == 0 or not cfg.n_halves:
        return np.zeros(x_SF.shape[1])
    z_SF = (x_SF - model.mean_F) / model.scale_F
    at = screened(z_SF, age_S, cfg.max_features)
    generator = np.random.default_rng(cfg.seed)
    count_F = np.zeros(x_SF.shape[1])
    for _ in range(cfg.n_halves):
        half = generator.choice(len(age_S), len(age_S) // 2, replace=False)
        net = ElasticNet(alpha=model.alpha, l1_ratio=model.l1_ratio, max_iter=2000, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # which features enter is settled long before the weights are
            net.fit(z_SF[half][:, at], age_S[half])
        count_F[at] += net.coef_ != 0
    return count_F / cfg.n_halves


def fit_bias(predicted_S: np.ndarray, age_S: np.ndarray, method: Correction = "de_lange", *, male_S: np.ndarray | None = None, n_knots: int = 4) -> Bias:
    """A bias correction from out-of-fold predictions of training patients. `male_S` (0/1) enters the spline where it is given.

    Raises ValueError for an unknown method, a constant age, and (cole) predictions that do not follow age at all.
    """
    if method not in CORRECTIONS:
        raise ValueError(f"method must be one of {', '.join(CORRECTIONS)}, got {method!r}")
    predicted_S, age_S = np.asarray(predicted_S, np.float64), np.asarray(age_S, np.float64)
    if len(age_S) < 3 or np.ptp(age_S) == 0:
        raise ValueError(f"age_S must hold three or more patients of different ages, got {len(age_S)}; a correction of a constant age is not defined")
    slope, level = np.polyfit(age_S, predicted_S, 1)
    if method == "cole" and abs(slope) < 1e-6:
        raise ValueError("predictions do not follow age (slope 0), so Cole's correction divides by nothing; use method='de_lange'")
    if method in ("cole", "de_lange"):
        return Bias(method=method, coef=np.array([slope, level]), knots=np.zeros(0), with_sex=False)
    if method == "beheshti":
        return Bias(method=method, coef=np.polyfit(age_S, predicted_S - age_S, 1), knots=np.zeros(0), with_sex=False)
    knots = np.unique(np.quantile(age_S, np.linspace(0.05, 0.95, n_knots)))
    design = spline_design(age_S, knots, male_S)
    return Bias(method=method, coef=np.linalg.lstsq(design, predicted_S - age_S, rcond=None)[0], knots=knots, with_sex=male_S is not None)


def spline_design(age_S: np.ndarray, knots: np.ndarray, male_S: np.ndarray | None) -> np.ndarray:
    """Constant, age, natural cubic spline terms (linear beyond the outer knots; Hastie et al. 2009, Elements, eq. 5.4-5.5), and sex about its middle."""
    scale = max(float(np.ptp(knots)), 1e-9)
    columns = [np.ones_like(age_S), age_S / scale]
    if len(knots) > 2:
        last, before = knots[-1], knots[-2]

        def term(knot: float) -> np.ndarray:
            return (np.clip(age_S - knot, 0, None) ** 3 - np.clip(age_S - last, 0, None) ** 3) / (last - knot) / scale**2

        columns += [term(knot) - term(before) for knot in knots[:-2]]
    if male_S is not None:
        if np.shape(male_S) != age_S.shape:
            raise ValueError(f"male_S must have one value per patient ({len(age_S)}), got shape {np.shape(male_S)}: the correction was fitted with sex")
        columns.append(np.asarray(male_S, np.float64) - 0.5)
    return np.stack(columns, axis=1)


def accuracy(predicted_S: np.ndarray, age_S: np.ndarray, *, n_resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """MAE (years), R2 and r of uncorrected predictions, with intervals over resampled patients."""
    who = np.arange(len(age_S))
    return {name: cluster_bootstrap(metric, age_S, predicted_S, who, n=n_resamples, seed=seed) for name, metric in (("mae", mae), ("r2", r2), ("r", pearson))}


def minimal_detectable_change(value_Q: np.ndarray, subject_Q: Sequence[str] | np.ndarray) -> Repeatability:
    """Repeated measures of people (two or more each; others are left out) -> what a change must exceed to be seen within a person."""
    value_Q, subject_Q = np.asarray(value_Q, np.float64), np.asarray(subject_Q)
    names, at_Q, count_S = np.unique(subject_Q, return_inverse=True, return_counts=True)
    keep_Q = count_S[at_Q.reshape(-1)] > 1
    names, at_Q, count_S = np.unique(subject_Q[keep_Q], return_inverse=True, return_counts=True)
    value_Q, at_Q = value_Q[keep_Q], at_Q.reshape(-1)
    counts = {"n_people": len(names), "n_measures": len(value_Q)}
    if len(names) < 2:
        return Repeatability(sem=None, minimal_detectable_change=None, icc=None, note="fewer than two people were measured twice", **counts)
    mean_S = np.bincount(at_Q, weights=value_Q) / count_S
    within = float(((value_Q - mean_S[at_Q]) ** 2).sum() / (len(value_Q) - len(names)))
    between = float((count_S * (mean_S - value_Q.mean()) ** 2).sum() / (len(names) - 1))
    size = (len(value_Q) - (count_S**2).sum() / len(value_Q)) / (len(names) - 1)  # mean number of measures, weighted for unequal ones
    total = between + (size - 1) * within
    sem = float(np.sqrt(within))
    return Repeatability(
        sem=sem, minimal_detectable_change=1.96 * np.sqrt(2) * sem, icc=float((between - within) / total) if total > 0 else None, note="", **counts
    )


def beyond_age(delta_S: np.ndarray, truth_S: np.ndarray, age_S: np.ndarray) -> tuple[float | None, float | None]:
    """(partial correlation of gap and truth given age and age squared, its two-sided p); (None, None) where one is constant given age."""
    age_S = np.asarray(age_S, np.float64)
    centred = (age_S - age_S.mean()) / max(float(age_S.std()), 1e-12)
    design = np.stack([np.ones_like(centred), centred, centred**2], axis=1)
    left, right = (np.asarray(v, np.float64) - design @ np.linalg.lstsq(design, np.asarray(v, np.float64), rcond=None)[0] for v in (delta_S, truth_S))
    scale, freedom = float(np.sqrt((left @ left) * (right @ right))), len(age_S) - 4
    if scale < 1e-9 or freedom < 1:
        return None, None
    r = float(np.clip(left @ right / scale, -1, 1))
    return r, float(f_distribution.sf(r**2 * freedom / max(1 - r**2, 1e-300), 1, freedom))


def checked(x_SF: np.ndarray, age_S: np.ndarray, cfg: AgeConfig) -> tuple[np.ndarray, np.ndarray]:
    x_SF, age_S = np.asarray(x_SF, np.float64), np.asarray(age_S, np.float64)
    if x_SF.ndim != 2 or age_S.shape != (len(x_SF),):
        raise ValueError(f"x_SF must be (patients, features) with one age each, got {x_SF.shape} and {age_S.shape}")
    if not np.isfinite(x_SF).all() or not np.isfinite(age_S).all():
        raise ValueError("x_SF and age_S must be finite; leave out patients of unknown age and features that are not known")
    if len(age_S) < 2 * cfg.n_folds:
        raise ValueError(f"age_S holds {len(age_S)} patients; {cfg.n_folds} folds need at least {2 * cfg.n_folds}")
    if np.ptp(age_S) == 0:
        raise ValueError(f"age_S is constant ({age_S[0]:g} years); there is nothing to predict")
    return x_SF, age_S


def standardiser(x_SF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean_F, sd_F = x_SF.mean(0), x_SF.std(0)
    return mean_F, np.where(sd_F > 1e-9 * np.maximum(np.abs(mean_F), 1e-9), sd_F, np.inf)


def screened(z_SF: np.ndarray, age_S: np.ndarray, most: int) -> np.ndarray:
    """The features that vary, at most `most` of them: those that correlate most with age (Fan and Lv 2008, JRSS B 70:849)."""
    strength_F = np.abs((age_S - age_S.mean()) @ z_SF)
    usable = np.flatnonzero(z_SF.std(0) > 0)
    if not most or len(usable) <= most:
        return usable
    return np.sort(usable[np.argsort(-strength_F[usable], kind="stable")[:most]])
