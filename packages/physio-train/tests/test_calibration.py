"""Cox's line against statsmodels, reliability against scikit-learn."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve

from physio_train.calibration import calibration, reliability


def cohort(n=400):
    rng = np.random.default_rng(3)
    z = rng.normal(-1, 1.5, n)
    return (rng.random(n) < expit(0.4 + 0.6 * z)).astype(float), expit(z)


def test_the_line_is_that_of_a_logistic_regression_on_log_odds():
    y, p = cohort()
    expected = sm.Logit(y, sm.add_constant(logit(p))).fit(disp=0).params
    found = calibration(np.append(y, np.nan), np.append(p, 0.5))
    assert (found.intercept, found.slope) == pytest.approx(tuple(expected), rel=1e-6)
    assert found.brier == pytest.approx(np.mean((y - p) ** 2))


def test_reliability_is_scikit_learns_curve():
    y, p = cohort()
    rate, mean = calibration_curve(y, p, n_bins=10)
    found = reliability(y, p)
    assert np.allclose(found.rate_K, rate) and np.allclose(found.probability_K, mean) and found.n_K.sum() == len(y)


def test_what_has_no_line_has_none():
    assert np.isnan(calibration([0, 1, 0, 1], [0.5] * 4).slope)
    assert np.isnan(calibration([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]).slope)
    with pytest.raises(ValueError, match="known label"):
        calibration([np.nan], [0.5])
    with pytest.raises(ValueError, match="sigmoid"):
        reliability([0, 1], [0.5, 1.5])
