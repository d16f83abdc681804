"""Does the age gap go with illness? Odds ratios and hazard ratios per standard deviation of the gap, adjusted for age and sex. S patients.

Needs statsmodels: pip install "physio-sae[outcomes]". Rows that cannot be estimated are empty and say why.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A ratio per SD of the gap, its 95 % interval and p (Wald). None where it cannot be estimated, with the reason in `note`."""

    name: str
    measure: str  # "odds ratio" or "hazard ratio"
    ratio: float | None
    interval: tuple[float, float] | None
    p: float | None
    n: int
    n_events: int
    note: str = ""


def odds_ratio(name: str, delta_S: np.ndarray, outcome_S: np.ndarray, age_S: np.ndarray, male_S: np.ndarray | None = None) -> Outcome:
    """Logistic regression outcome (0/1, -1 or NaN unknown) ~ gap / SD + age + sex. A sex that does not vary is left out of the model."""
    kept, columns = complete(delta_S, outcome_S, age_S, male_S)
    y = np.asarray(outcome_S, np.float64)[kept]
    blank = {"name": name, "measure": "odds ratio", "ratio": None, "interval": None, "p": None, "n": len(y), "n_events": int((y == 1).sum())}
    if len(y) and not np.isin(y, (0, 1)).all():
        raise ValueError(f"outcome_S of {name!r} must be 0, 1, or -1 (unknown), got {np.unique(y)[:5]}")
    if reason := few(len(y), int((y == 1).sum()), int((y == 0).sum()), columns):
        return Outcome(**blank, note=reason)
    api = statsmodels("statsmodels.api")
    errors = statsmodels("statsmodels.tools.sm_exceptions")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", errors.ConvergenceWarning)
            warnings.simplefilter("error", errors.PerfectSeparationWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            fitted = api.Logit(y, api.add_constant(columns, has_constant="add")).fit(disp=0, maxiter=200)
    except (np.linalg.LinAlgError, errors.PerfectSeparationError, errors.PerfectSeparationWarning, errors.ConvergenceWarning):
        return Outcome(**blank, note="not estimable: the gap, age and sex separate the cases")
    return finished(blank, fitted.params[1], fitted.bse[1], fitted.pvalues[1])


def hazard_ratio(
    name: str, delta_S: np.ndarray, follow_up_years_S: np.ndarray, event_S: np.ndarray, age_S: np.ndarray, male_S: np.ndarray | None = None
) -> Outcome:
    """Cox regression (Cox 1972, JRSS B 34:187; Efron ties) of time to event (years; event 1, censored 0, -1 unknown) on gap / SD + age + sex."""
    time_S = np.asarray(follow_up_years_S, np.float64)
    kept, columns = complete(delta_S, event_S, age_S, male_S, time_S)
    event, time = np.asarray(event_S, np.float64)[kept], time_S[kept]
    blank = {"name": name, "measure": "hazard ratio", "ratio": None, "interval": None, "p": None, "n": len(event), "n_events": int((event == 1).sum())}
    if len(time) and (time <= 0).any():
        raise ValueError(f"follow_up_years_S of {name!r} must be positive, got {time.min():g}; a person without follow-up is NaN")
    if reason := few(len(event), int((event == 1).sum()), len(event), columns):
        return Outcome(**blank, note=reason)
    regression = statsmodels("statsmodels.duration.hazard_regression")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            fitted = regression.PHReg(time, columns, status=event, ties="efron").fit(disp=0)
            estimate, error, p = fitted.params[0], fitted.bse[0], fitted.pvalues[0]
    except np.linalg.LinAlgError:
        return Outcome(**blank, note="not estimable: the covariates depend on one another")
    return finished(blank, estimate, error, p)


def complete(delta_S, outcome_S, age_S, male_S, *others) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are known throughout, and their covariates: the gap in standard deviations, age in decades, and sex where it varies."""
    covariates = [np.asarray(v, np.float64) for v in (delta_S, age_S, *((male_S,) if male_S is not None else ()))]
    outcome_S = np.asarray(outcome_S, np.float64)
    lengths = {len(v) for v in (*covariates, outcome_S, *others)}
    if len(lengths) != 1:
        raise ValueError(f"gap, outcome, age and sex must have one value per patient, got lengths {sorted(lengths)}")
    known = np.isfinite(np.stack([*covariates, *others])).all(0) & np.isfinite(outcome_S) & (outcome_S >= 0)
    kept = np.flatnonzero(known)
    columns = [v[kept] for v in covariates]
    sd = float(columns[0].std(ddof=1)) if len(kept) > 1 else 0.0
    columns[0] = columns[0] / sd if sd > 0 else columns[0] * 0
    columns[1] = (columns[1] - columns[1].mean()) / 10 if len(kept) else columns[1]
    columns[2:] = [c for c in columns[2:] if len(kept) and np.ptp(c) > 0]
    return kept, np.stack(columns, axis=1)


def few(n: int, n_events: int, n_others: int, columns: np.ndarray) -> str:
    """Why nothing can be estimated; empty where it can be."""
    least = 2 * columns.shape[1]
    if n_events < least or n_others < least:
        return f"{n_events} cases of {n}: {columns.shape[1]} covariates need at least {least} of either kind"
    if np.ptp(columns[:, 0]) == 0:
        return "the age gap is constant"
    return ""


def finished(blank: dict[str, object], estimate: float, error: float, p: float) -> Outcome:
    ends = np.array([estimate - 1.959964 * error, estimate + 1.959964 * error])
    if not np.isfinite([estimate, error, p]).all() or np.abs(ends).max() > 30:
        return Outcome(**blank, note="not estimable: the gap, age and sex separate the cases")
    low, high = np.exp(ends)
    return Outcome(**{**blank, "ratio": float(np.exp(estimate)), "interval": (float(low), float(high)), "p": float(p)})


def statsmodels(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError('odds and hazard ratios need statsmodels: pip install "physio-sae[outcomes]"') from None
