"""Explained variance, consistency and autocorrelation against their definitions, computed here window by window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from physio_sae.codes import as_codes, firing_rates, patient_codes, patient_means, sparse_codes
from physio_sae.evaluate import Residuals, consistency, explained, explained_by_patients, intraclass, lag1, residuals, same_patient_partners
from physio_sae.health import atoms, health


def draw_codes(n=60, k=12, seed=0, share=0.3):
    generator = np.random.default_rng(seed)
    return np.where(generator.random((n, k)) < share, generator.gamma(2.0, 1.0, (n, k)), 0.0).astype(np.float32)


def test_explained_variance_is_one_less_the_ratio_of_sums_of_squares():
    generator = np.random.default_rng(0)
    z, recon, mean = generator.normal(size=(50, 8)), generator.normal(size=(50, 8)), generator.normal(size=8)
    who = np.repeat(list("abcdefghij"), 5)
    found = explained(residuals(recon, z, mean, batch=7), who)
    z = z.astype(np.float32).astype(np.float64)
    assert found.overall == pytest.approx(1 - ((z - recon) ** 2).sum() / ((z - mean) ** 2).sum(), rel=1e-6)
    own = [1 - ((z - recon)[who == s] ** 2).sum() / ((z - mean)[who == s] ** 2).sum() for s in "abcdefghij"]
    assert found.per_patient == pytest.approx(np.mean(own), rel=1e-6)
    assert found.per_patient_interval[0] < found.per_patient < found.per_patient_interval[1]
    assert found.cosine == pytest.approx(np.mean([(a - mean) @ (b - mean) / np.linalg.norm(a - mean) / np.linalg.norm(b - mean) for a, b in zip(z, recon)]))  # noqa: B905


def test_one_patient_has_no_interval_and_constant_windows_no_variance():
    one = explained(Residuals(np.ones(4), np.full(4, 2.0), np.ones(4)), np.full(4, "a"))
    assert one.overall == 0.5 and one.interval is None and "one patient" in one.note
    nothing = explained(Residuals(np.zeros(4), np.zeros(4), np.full(4, np.nan)), np.full(4, "a"))
    assert nothing.overall is None and nothing.cosine is None and "training mean" in nothing.note


def test_explained_variance_by_number_of_patients_ends_at_the_whole_cohort():
    found = Residuals(np.array([1.0, 2.0, 3.0, 4.0]), np.full(4, 10.0), np.ones(4))
    rows = explained_by_patients(found, np.array(["a", "b", "c", "d"]), sizes=(1, 4, 50))
    assert [row["n_patients"] for row in rows] == [1, 4]
    assert rows[1]["mean"] == pytest.approx(1 - 10 / 40) and rows[1]["low"] == pytest.approx(rows[1]["high"])


def test_consistency_is_the_mean_cosine_with_the_same_patient_as_floor():
    codes, aug = draw_codes(seed=1), draw_codes(seed=2)
    who = np.repeat(list("abcdef"), 10)
    found = consistency(codes, aug, who, seed=3)

    def cosine(a, b):
        scale = np.linalg.norm(a) * np.linalg.norm(b)
        return a @ b / scale if scale else (0.0 if a.any() or b.any() else np.nan)

    assert found.cosine == pytest.approx(np.nanmean([cosine(a, b) for a, b in zip(codes, aug, strict=True)]), rel=1e-6)
    partner = same_patient_partners(who, 60, 3)
    assert (who[partner] == who).all() and (partner != np.arange(60)).all()
    assert found.same_patient_cosine == pytest.approx(np.nanmean([cosine(codes[i], aug[partner[i]]) for i in range(60)]), rel=1e-6)
    both = [((a > 0) & (b > 0)).sum() / max(((a > 0) | (b > 0)).sum(), 1) for a, b in zip(codes, aug, strict=True)]
    assert found.jaccard == pytest.approx(np.mean(both))
    assert consistency(codes, codes, who).cosine == pytest.approx(1.0) and consistency(codes, codes, np.arange(60)).same_patient_cosine is None


def test_icc_is_the_one_way_analysis_of_variance():
    one, two = draw_codes(seed=4), draw_codes(seed=5)
    two = one + 0.3 * two
    for k, value in enumerate(intraclass(as_codes(one), as_codes(two))):
        pairs = np.stack([one[:, k], two[:, k]], axis=1).astype(np.float64)
        between = 2 * ((pairs.mean(1) - pairs.mean()) ** 2).sum() / (len(pairs) - 1)
        within = ((pairs - pairs.mean(1, keepdims=True)) ** 2).sum() / len(pairs)
        assert value == pytest.approx((between - within) / (between + within), rel=1e-5)


def brute_lag1(codes, nxt, record):
    values = []
    for column in codes.T.astype(np.float64):
        centred = column - np.array([column[record == r].mean() for r in record])
        if (centred**2).sum() > 1e-9:
            values.append(sum(centred[i] * centred[j] for i, j in enumerate(nxt) if j >= 0) / (centred**2).sum())
    return np.mean(values)


def test_lag1_follows_its_definition_and_its_null_is_the_mean_over_shuffles():
    generator = np.random.default_rng(0)
    record = np.repeat([0, 1, 2], [15, 20, 25])
    nxt = np.where(np.append(record[1:] == record[:-1], False), np.arange(60) + 1, -1)
    nxt[[4, 30]] = -1  # gaps
    slow = np.repeat(draw_codes(n=30, seed=6), 2, axis=0)
    found = lag1(slow, nxt, record)
    assert found.within == pytest.approx(brute_lag1(slow, nxt, record), rel=1e-6)
    shuffled = [brute_lag1(np.concatenate([generator.permutation(slow[record == r]) for r in range(3)]), nxt, record) for _ in range(300)]
    assert found.null_within == pytest.approx(np.mean(shuffled), abs=3 * np.std(shuffled) / np.sqrt(300))
    centred = slow - slow.mean(0)
    there = np.flatnonzero(nxt >= 0)
    assert found.globally_centred == pytest.approx(((centred[there] * centred[nxt[there]]).sum(0) / (centred**2).sum(0)).mean(), rel=1e-5)
    assert found.within > 0.2 > found.null_within and found.n_pairs == 55


def test_lag1_without_neighbours_is_empty_and_never_crosses_a_record():
    codes = draw_codes()
    assert lag1(codes, np.full(60, -1), np.zeros(60)).within is None
    with pytest.raises(ValueError, match="two records"):
        lag1(codes, np.append(np.arange(1, 60), -1), np.arange(60))


def test_the_audit_counts_dead_dense_and_duplicate_concepts():
    codes = draw_codes(n=400, k=8, share=0.05)
    codes[:, 0], codes[:, 1] = 0, 1.0
    directions = np.eye(8)
    directions[3] = directions[2]
    found = health(codes, directions)
    assert found.dead == 1 / 8 and found.dense == 1 / 8 and found.duplicates == 2
    assert found.l0 == pytest.approx((codes > 0).sum(1).mean()) and sum(found.rate_counts) == 8
    assert health(codes, directions, train_rate_K=np.ones(8)).dead == 0
    gram = directions @ directions.T
    assert found.diversity == pytest.approx((gram**2 * (1 - np.eye(8))).sum() / 56 * 8)
    dense = codes.astype(np.float64)
    hoyer = (np.sqrt(8) - dense.sum(1) / np.linalg.norm(dense, axis=1)) / (np.sqrt(8) - 1)
    gini = [np.abs(row[:, None] - row).sum() / (2 * 64 * row.mean()) for row in dense]
    assert found.hoyer == pytest.approx(hoyer.mean(), rel=1e-6) and found.gini == pytest.approx(np.mean(gini), rel=1e-6)


def test_a_dictionary_that_never_fires_has_an_audit_without_undefined_figures():
    found = health(np.zeros((5, 3)), np.eye(3))
    assert found.dead == 1 and found.l0 == 0 and found.gini is None and found.empty_windows == 1
    assert atoms(np.ones((1, 3))) == (None, None, None)


def test_patient_means_leave_unknown_values_out():
    who = np.array(["b", "a", "b"])
    assert patient_means(np.array([1.0, np.nan, 3.0]), who).tolist()[1] == 2 and np.isnan(patient_means(np.array([1.0, np.nan, 3.0]), who)[0])
    means = patient_codes(np.array([[1.0, 0], [0, 2], [0, 4]]), who)
    assert means.subject_S.tolist() == ["a", "b"] and means.mean_SK.tolist() == [[0, 2], [0.5, 2]] and means.rate_SK.tolist() == [[0, 1], [0.5, 0.5]]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40))
def test_sparse_codes_do_not_depend_on_the_batch(batch, n):
    z = np.random.default_rng(n).normal(size=(n, 5)).astype(np.float32)
    codes = sparse_codes(lambda part: np.maximum(part, 0), z, batch=batch)
    assert (codes.toarray() == np.maximum(z, 0)).all() and firing_rates(codes) == pytest.approx((z > 0).mean(0))


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 3)), np.array([[np.nan, 1.0]])])
def test_codes_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="codes_NK"):
        as_codes(bad)


def test_bad_input_is_named():
    codes = draw_codes(n=4)
    with pytest.raises(ValueError, match="one patient per window"):
        consistency(codes, codes, np.zeros(3))
    with pytest.raises(ValueError, match="shape of codes_NK"):
        consistency(codes, codes[:3], np.zeros(4))
    with pytest.raises(ValueError, match="first in window 1"):
        residuals(np.zeros((2, 1)), np.array([[0.0], [np.inf]]), np.zeros(1))
    with pytest.raises(ValueError, match="one row for each window"):
        residuals(np.zeros((3, 1)), np.zeros((2, 1)), np.zeros(1))
    with pytest.raises(ValueError, match="one atom per concept"):
        health(sparse.csr_array(codes), np.eye(3))
