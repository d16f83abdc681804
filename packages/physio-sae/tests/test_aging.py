"""Age, its corrections, outcomes and probes, on planted truth and against published formulas."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.linear_model import LinearRegression

from physio_sae.aging import (
    AgeConfig,
    accuracy,
    beyond_age,
    fit_age,
    fit_bias,
    minimal_detectable_change,
    out_of_fold,
    patient_features,
    spline_design,
    stability_selection,
)
from physio_sae.codes import patient_codes
from physio_sae.factors import Factor, matched
from physio_sae.outcomes import hazard_ratio, odds_ratio
from physio_sae.recovery import Target, over_50, recover, sparse_probes

QUICK = AgeConfig(l1_ratios=(0.5, 1.0), n_alphas=20, n_halves=20)


def cohort(n=200, seed=0):
    """Features whose first three carry age; a stiffness beyond age is in the fourth."""
    generator = np.random.default_rng(seed)
    age = generator.uniform(20, 85, n)
    x = generator.normal(size=(n, 30))
    x[:, :3] += 0.04 * (age - 50)[:, None]
    return x, age


def test_the_elastic_net_finds_the_features_that_carry_age():
    x, age = cohort()
    model = fit_age(x[:140], age[:140], QUICK)
    figures = accuracy(model.predict(x[140:]), age[140:])
    assert figures["r2"].point > 0.6 and figures["mae"].low < figures["mae"].point < figures["mae"].high and model.converged
    share = stability_selection(x[:140], age[:140], QUICK, model=model)
    assert (share[:3] >= 0.95).all() and share[3:].mean() < share[:3].mean() - 0.3


def test_out_of_fold_predictions_come_from_models_that_did_not_see_the_patient():
    generator = np.random.default_rng(0)
    noise, age = generator.normal(size=(60, 200)), generator.uniform(20, 80, 60)
    assert abs(np.corrcoef(out_of_fold(noise, age, QUICK), age)[0, 1]) < 0.45
    x, age = cohort()
    assert np.corrcoef(out_of_fold(x, age, QUICK), age)[0, 1] > 0.7


def test_screening_and_constant_features_do_not_enter():
    x, age = cohort()
    x = np.concatenate([x, np.full((200, 1), 3.0)], axis=1)
    model = fit_age(x, age, AgeConfig(l1_ratios=(0.5,), n_alphas=10, max_features=3))
    assert set(np.flatnonzero(model.coef_F)) <= {0, 1, 2} and model.coef_F[-1] == 0


def test_corrections_follow_their_formulas_and_agree_with_one_another():
    generator = np.random.default_rng(0)
    age = generator.uniform(20, 85, 300)
    predicted = 30 + 0.4 * age + generator.normal(0, 5, 300)
    line = LinearRegression().fit(age[:, None], predicted)
    lange, cole, beheshti = (fit_bias(predicted, age, m).delta(predicted, age) for m in ("de_lange", "cole", "beheshti"))
    assert lange == pytest.approx(predicted - line.predict(age[:, None])) and beheshti == pytest.approx(lange)
    assert cole == pytest.approx(lange / line.coef_[0])
    for method in ("de_lange", "cole", "spline"):
        assert abs(np.corrcoef(fit_bias(predicted, age, method).delta(predicted, age), age)[0, 1]) < 1e-8
    assert fit_bias(predicted, age, "de_lange").corrected(predicted, age) == pytest.approx(age + lange)


def test_the_spline_removes_curvature_and_sex_and_is_linear_beyond_its_knots():
    generator = np.random.default_rng(1)
    age, male = generator.uniform(20, 85, 400), generator.integers(0, 2, 400)
    predicted = age - 0.01 * (age - 50) ** 2 + 4 * male + generator.normal(0, 1, 400)
    delta = fit_bias(predicted, age, "spline", male_S=male).delta(predicted, age, male)
    assert abs(delta[male == 1].mean() - delta[male == 0].mean()) < 1e-8 and abs(np.corrcoef(delta, (age - 50) ** 2)[0, 1]) < 0.1
    assert abs(np.corrcoef(fit_bias(predicted, age, "de_lange").delta(predicted, age), (age - 50) ** 2)[0, 1]) > 0.6
    knots = np.array([30.0, 40, 50, 60])
    beyond = spline_design(np.array([70.0, 80, 90]), knots, None)
    assert beyond[2] - beyond[1] == pytest.approx(beyond[1] - beyond[0])
    with pytest.raises(ValueError, match="male_S"):
        spline_design(age, knots, male[:3])


def test_the_minimal_detectable_change_comes_from_the_within_person_variance():
    generator = np.random.default_rng(2)
    who = np.repeat(np.arange(500), 3)
    value = np.repeat(generator.normal(0, 4, 500), 3) + generator.normal(0, 2, 1500)
    found = minimal_detectable_change(value, who)
    assert found.sem == pytest.approx(2, rel=0.05) and found.icc == pytest.approx(16 / 20, abs=0.04)
    assert found.minimal_detectable_change == pytest.approx(1.96 * np.sqrt(2) * found.sem)
    assert minimal_detectable_change(np.arange(5.0), np.arange(5)).sem is None


def test_the_gap_is_compared_with_the_truth_beyond_age():
    generator = np.random.default_rng(3)
    age, extra = generator.uniform(20, 85, 500), generator.normal(size=500)
    truth = 0.1 * age + extra
    design = np.stack([np.ones(500), age, age**2], axis=1)
    gap = extra + generator.normal(size=500)
    r, p = beyond_age(gap, truth, age)
    left, right = (v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (gap, truth))
    assert r == pytest.approx(np.corrcoef(left, right)[0, 1]) and r == pytest.approx(np.sqrt(0.5), abs=0.08) and p < 1e-10
    assert beyond_age(gap, 2 * age, age) == (None, None)


def test_the_odds_ratio_is_that_of_the_logistic_regression_and_empty_where_it_cannot_be_had():
    generator = np.random.default_rng(4)
    age, male, gap = generator.uniform(30, 80, 600), generator.integers(0, 2, 600), generator.normal(0, 6, 600)
    outcome = (generator.random(600) < 1 / (1 + np.exp(-(0.1 * gap + 0.05 * (age - 60) + 0.3 * male)))).astype(int)
    found = odds_ratio("hypertension", gap, outcome, age, male)
    reference = sm.Logit(outcome, sm.add_constant(np.stack([gap / gap.std(ddof=1), age, male], axis=1))).fit(disp=0)
    assert found.ratio == pytest.approx(np.exp(reference.params[1]), rel=1e-4) and found.interval == pytest.approx(np.exp(reference.conf_int()[1]), rel=1e-4)
    assert odds_ratio("none", gap, np.zeros(600), age, male).note.startswith("0 cases")
    assert "separate" in odds_ratio("same", gap, (gap > 0).astype(int), age).note
    assert odds_ratio("women", gap[male == 0], outcome[male == 0], age[male == 0], male[male == 0]).ratio is not None
    assert odds_ratio("flat", np.ones(600), outcome, age).note == "the age gap is constant"


def test_the_hazard_ratio_finds_the_planted_effect():
    generator = np.random.default_rng(5)
    age, gap = generator.uniform(30, 80, 1500), generator.normal(0, 5, 1500)
    time = generator.exponential(1 / (0.02 * np.exp(0.5 * gap / 5 + 0.03 * (age - 55))))
    event, follow_up = (time < 10).astype(int), np.minimum(time, 10)
    found = hazard_ratio("death", gap, follow_up, event, age)
    assert found.interval[0] < np.exp(0.5) < found.interval[1] and found.p < 1e-6 and found.measure == "hazard ratio"
    assert hazard_ratio("death", gap, follow_up, np.zeros(1500), age).ratio is None
    with pytest.raises(ValueError, match="positive"):
        hazard_ratio("death", gap, follow_up - 20, event, age)


def test_probes_are_fitted_on_training_patients_and_say_why_where_they_cannot_be():
    x, age = cohort(120)
    rows = recover({"codes": x, "noise": x[:, 10:]}, [Target(name="age", kind="regression", value_S=age), over_50(age)], np.arange(80), np.arange(80, 120))
    value = {(row.target, row.features): row.value for row in rows}
    assert value["age", "codes"] > 0.5 > value["age", "noise"] and value["age > 50", "codes"] > 0.85 and all(row.interval for row in rows)
    still = Target(name="diabetes", kind="binary", value_S=np.zeros(120))
    row = recover({"codes": x}, [still], np.arange(80), np.arange(80, 120))[0]
    assert row.value is None and "constant among training" in row.note
    unknown = Target(name="sbp", kind="regression", value_S=np.full(120, np.nan))
    assert "0 training and 0 test" in recover({"codes": x}, [unknown], np.arange(80), np.arange(80, 120))[0].note
    with pytest.raises(ValueError, match="split by patient"):
        recover({"codes": x}, [still], np.arange(80), np.arange(79, 120))
    with pytest.raises(ValueError, match="is binary"):
        Target(name="sex", kind="binary", value_S=np.array([1, 2]))


def test_sparse_probes_choose_on_training_patients_alone():
    x, age = cohort(160)
    x[100:, 20] = age[100:]  # carries age in test patients only
    target = Target(name="age", kind="regression", value_S=age)
    rows = sparse_probes(x, [target], np.arange(100), np.arange(100, 160), sizes=(1, 2, 64))
    assert rows[0].chosen[0] in (0, 1, 2) and set(rows[1].chosen) <= {0, 1, 2} and rows[1].value > rows[0].value - 0.1
    assert rows[2].value is None and "only 30 concepts" in rows[2].note


def test_a_factor_is_matched_on_training_patients_and_reported_on_test_patients():
    generator = np.random.default_rng(0)
    who = np.repeat([f"p{i}" for i in range(40)], 10)
    rate, stiffness = generator.normal(size=400), np.repeat(generator.normal(size=40), 10)
    codes = np.maximum(generator.normal(size=(400, 20)), 0)
    codes[:, 3], codes[:, 7] = np.maximum(rate, 0), np.maximum(1 - stiffness, 0)
    codes[200:, 11] = np.maximum(stiffness[200:], 0)  # only in test patients
    factors = [Factor(name="rate", value_N=rate), Factor(name="stiffness", value_N=stiffness, per_patient=True), Factor(name="flat", value_N=np.ones(400))]
    rows = matched({"sae": codes, "dead": np.zeros((400, 2))}, factors, who, np.arange(200), np.arange(200, 400))
    found = {(row.factor, row.method): row for row in rows}
    assert found["rate", "sae"].concept == 3 and found["rate", "sae"].test == pytest.approx(np.corrcoef(rate[200:], codes[200:, 3])[0, 1])
    assert found["stiffness", "sae"].concept == 7 and found["stiffness", "sae"].test > 0.8 and found["stiffness", "sae"].n_test == 20
    assert found["flat", "sae"].test is None and "constant" in found["flat", "sae"].note
    assert found["rate", "dead"].concept is None
    alone = matched({"sae": codes}, factors[:1], who, np.arange(390), np.arange(390, 400))[0]
    assert alone.n_test == 1 and alone.interval is None and np.isfinite(alone.test)
    with pytest.raises(ValueError, match="split by patient"):
        matched({"sae": codes}, factors, who, np.arange(195), np.arange(195, 400))


def test_a_concept_that_hardly_fires_in_training_cannot_carry_a_test_patient_away():
    x, age = cohort(160)
    x[:, 25], x[100:, 25] = 0.0, 1.0
    x[:100:25, 25] = 1e-6 * age[:100:25]  # four training patients, one part in a million
    rows = recover({"codes": x}, [Target(name="age", kind="regression", value_S=age)], np.arange(100), np.arange(100, 160))
    assert rows[0].value > 0.3
    without = fit_age(np.delete(x[:100], 25, axis=1), age[:100], QUICK).predict(np.delete(x[100:], 25, axis=1))
    model = fit_age(x[:100], age[:100], QUICK)
    assert np.abs(model.predict(x[100:]) - without).max() < 30 and np.abs(model.coef_F).max() > 0


def test_a_few_concepts_together_follow_both_sides_of_a_factor():
    """Codes are never negative: one concept follows a rise, another a fall; their sum, weighted on training patients, follows both."""
    generator = np.random.default_rng(1)
    who, rate = np.repeat([f"p{i}" for i in range(40)], 10), generator.normal(size=400)
    codes = np.maximum(generator.normal(size=(400, 20)), 0)
    codes[:, 3], codes[:, 7] = np.maximum(rate, 0), np.maximum(-rate, 0)
    codes[:, 5] = 0.9 * codes[:, 3] + 0.1 * codes[:, 5]  # a near copy, which the four that correlate most would spend a place on
    row = matched({"sae": codes}, [Factor(name="rate", value_N=rate)], who, np.arange(200), np.arange(200, 400), n_several=2)[0]
    assert set(row.several) == {3, 7} and row.several_test == pytest.approx(1.0) and row.several_train == pytest.approx(1.0) and row.test < 0.9
    shifted = np.where(np.arange(400) < 200, rate, generator.normal(size=400))  # follows the rate in training alone
    row = matched({"sae": codes}, [Factor(name="rate", value_N=shifted)], who, np.arange(200), np.arange(200, 400))[0]
    weight = np.linalg.lstsq(np.c_[codes[:200][:, row.several], np.ones(200)], shifted[:200], rcond=None)[0]
    expected = np.corrcoef(codes[200:][:, row.several] @ weight[:-1], shifted[200:])[0, 1]
    assert row.several_test == pytest.approx(expected, abs=1e-5) and row.several_interval[0] < 0.15 and len(row.several) <= 4


def test_patient_features_are_log_means_and_rates_of_live_concepts():
    means = patient_codes(np.array([[1.0, 0, 2], [3, 0, 0]]), np.array(["a", "a"]))
    x, concept, is_rate = patient_features(means, np.array([True, False, True]))
    assert x == pytest.approx(np.log1p([[2.0, 1.0, 1.0, 0.5]])) and concept.tolist() == [0, 2, 0, 2] and is_rate.tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="no live concept"):
        patient_features(means, np.zeros(3, bool))


def test_bad_input_is_named():
    x, age = cohort(30)
    with pytest.raises(ValueError, match="constant"):
        fit_age(x, np.full(30, 50.0), QUICK)
    with pytest.raises(ValueError, match="finite"):
        fit_age(x, np.append(age[:-1], np.nan), QUICK)
    with pytest.raises(ValueError, match="need at least"):
        fit_age(x[:5], age[:5], QUICK)
    with pytest.raises(ValueError, match="method must be"):
        fit_bias(age, age, "median")
    with pytest.raises(ValueError, match="constant age"):
        fit_bias(age, np.full(30, 40.0))
    with pytest.raises(ValueError, match="divides by nothing"):
        fit_bias(np.full(30, 50.0), age, "cole")
    with pytest.raises(ValueError, match="l1_ratios"):
        AgeConfig(l1_ratios=(0.0,))
