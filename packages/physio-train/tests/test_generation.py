"""Distances of generated signals to real ones against SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from physio_train import generation


def features(n, d=6, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + shift


def test_frechet_distance_is_the_formula_with_scipys_matrix_root():
    a, b = features(80), features(50, seed=1, shift=0.7)
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    want = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert generation.frechet_distance(a, b) == pytest.approx(want, rel=1e-8)
    assert generation.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_two_lines_with_fewer_windows_than_features():
    direction = np.array([3.0, 4.0, 0, 0, 0, 0, 0]) / 5
    a, b = np.array([-1.0, 0, 1])[:, None] * direction, 2 * np.array([-1.0, 0, 1])[:, None] * direction + 1
    assert generation.frechet_distance(a, b) == pytest.approx(7 + (2 - 1) ** 2)  # means by 1 in 7 places, deviations 1 and 2 along one line


def test_mmd_is_the_unbiased_sum_over_scipys_distances():
    a, b = features(30), features(20, seed=2, shift=0.3)
    kernel = lambda x, y: np.exp(-0.05 * cdist(x, y, "sqeuclidean"))  # noqa: E731
    aa, bb = kernel(a, a), kernel(b, b)
    want = aa[~np.eye(30, dtype=bool)].mean() + bb[~np.eye(20, dtype=bool)].mean() - 2 * kernel(a, b).mean()
    assert generation.mmd2(a, b, gamma=0.05) == pytest.approx(want)
    assert generation.median_gamma(a) == pytest.approx(1 / np.median(cdist(a, a, "sqeuclidean")[np.triu_indices(30, 1)]))


def test_mmd_of_one_distribution_is_zero_on_average():
    draws = [
        generation.mmd2(np.random.default_rng(i).normal(size=(25, 3)), np.random.default_rng(1000 + i).normal(size=(25, 3)), gamma=0.2) for i in range(400)
    ]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 20 and min(draws) < 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_the_ks_distance_is_the_largest_gap_of_the_two_shares_below(a, b):
    gaps = [abs(sum(v <= x for v in a) / len(a) - sum(v <= x for v in b) / len(b)) for x in {*a, *b}]
    assert generation.ks_distance([*a, np.nan], b) == pytest.approx(max(gaps))
    assert np.isnan(generation.ks_distance([np.nan], b))


def test_features_come_on_the_footing_of_the_real_windows():
    real = features(40)
    real[3, 1] = np.nan
    real[:, 5] = 7.0
    other = features(10, seed=3)
    a, b = generation.standardised(real, other)
    column = np.where(np.isnan(real[:, 1]), np.nanmedian(real[:, 1]), real[:, 1])
    assert a.shape == (40, 5) and b.shape == (10, 5)
    np.testing.assert_allclose(b[:, 1], (other[:, 1] - column.mean()) / column.std())
    with pytest.raises(ValueError, match="every feature"):
        generation.standardised(np.ones((5, 2)))


def test_a_floor_of_real_against_real_lies_below_noise():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 4))
    found = generation.compared(real[:100], {"real": real[100:], "noise": 2 + rng.normal(size=(100, 4))})
    assert found["real"]["FID"] < 0.5 < found["noise"]["FID"] and found["real"]["MMD2"] < 0.02 < found["noise"]["MMD2"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=4, max_size=60))
def test_halves_share_no_subject_and_lose_no_window(subject):
    a, b = generation.halves(subject)
    assert sorted([*a, *b]) == list(range(len(subject)))
    if len(set(subject)) > 1:
        assert not set(np.array(subject)[a]) & set(np.array(subject)[b])
        assert abs(len(a) - len(b)) <= max(np.bincount(subject))


def test_noise_keeps_what_it_says():
    x = np.random.default_rng(0).normal(size=(4, 2, 100)).cumsum(axis=2)
    same = generation.same_spectrum_noise(x)
    np.testing.assert_allclose(np.abs(np.fft.rfft(same, axis=2))[..., :-1], np.abs(np.fft.rfft(x, axis=2))[..., :-1], atol=1e-9)
    np.testing.assert_allclose(same.mean(axis=2), x.mean(axis=2))
    white = generation.white_noise(np.repeat(x, 50, axis=2))
    np.testing.assert_allclose(white.std(axis=2), x.std(axis=2), rtol=0.1)


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (np.ones((3, 2)), np.ones((3, 4)), "one width"),
        (np.ones((1, 2)), np.ones((3, 2)), "at least 2 windows"),
        (np.full((3, 2), np.nan), np.ones((3, 2)), "must be finite"),
    ],
)
def test_bad_features_are_named(a, b, text):
    for distance in (generation.frechet_distance, generation.mmd2):
        with pytest.raises(ValueError, match=text):
            distance(a, b)
