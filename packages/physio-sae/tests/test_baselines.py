"""Baselines at matched sparsity, and the estimator."""

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import nnls
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from physio_sae.baselines import fit_baseline
from physio_sae.estimator import SparseAutoencoder
from physio_sae.train import FitConfig

ALL = ("pca", "ica", "nmf", "kmeans", "random")


@pytest.fixture(scope="module")
def z_ND():
    rng = np.random.default_rng(0)
    return (rng.exponential(size=(300, 10)) @ rng.standard_normal((10, 16)) + 0.5).astype(np.float32)


@pytest.mark.parametrize("name", ALL)
def test_codes_have_at_most_l0_entries_and_more_explain_more(name, z_ND):
    explained = []
    for l0 in (1, 4):
        fitted = fit_baseline(name, z_ND, n_components=8, l0=l0)
        codes = fitted.encode(z_ND)
        assert codes.shape == (300, len(fitted.dictionary_KD)) and (codes != 0).sum(1).max() <= l0
        np.testing.assert_allclose(fitted.decode(sparse.csr_array(codes)), fitted.decode(codes), atol=1e-4)
        explained.append(1 - np.square(z_ND - fitted.decode(codes)).sum() / np.square(z_ND - z_ND.mean(0)).sum())
    assert explained[1] > explained[0]


def test_pca_with_every_component_is_exact_and_keeps_the_largest_scores(z_ND):
    whole = fit_baseline("pca", z_ND, n_components=16, l0=16)
    np.testing.assert_allclose(whole.decode(whole.encode(z_ND)), z_ND, atol=1e-4)
    centred = z_ND.astype(float) - z_ND.mean(0, dtype=float)
    *_, axes = np.linalg.svd(centred, full_matrices=False)
    scores = np.abs(centred @ axes.T)
    kept = fit_baseline("pca", z_ND, n_components=16, l0=3).encode(z_ND) != 0
    np.testing.assert_array_equal(np.sort(scores * kept, 1)[:, -3:] > 0, True)
    np.testing.assert_allclose((scores * kept).sum(1), np.sort(scores, 1)[:, -3:].sum(1), rtol=1e-6)


def test_ica_is_another_basis_of_the_same_space(z_ND):
    whole = fit_baseline("ica", z_ND, n_components=16, l0=16)
    np.testing.assert_allclose(whole.decode(whole.encode(z_ND)), z_ND, atol=5e-2)


def test_cut_ica_codes_are_least_squares_on_what_is_kept(z_ND):
    fitted = fit_baseline("ica", z_ND, n_components=10, l0=4)
    for z, code in zip(z_ND[:20], fitted.encode(z_ND[:20]), strict=True):
        kept = np.flatnonzero(code)
        best, *_ = np.linalg.lstsq(fitted.dictionary_KD[kept].T, z - fitted.offset_D, rcond=None)
        np.testing.assert_allclose(code[kept], best, rtol=1e-3, atol=1e-3)
        assert len(kept) == 4


def test_nmf_stacks_the_signs_only_where_it_must(z_ND):
    for z in (z_ND, np.abs(z_ND)):
        fitted = fit_baseline("nmf", z, n_components=8, l0=8)
        assert (fitted.encode(z) >= 0).all()
        assert ((fitted.dictionary_KD < 0).any()) == bool((z < 0).any())
    cut = fit_baseline("nmf", np.abs(z_ND), n_components=8, l0=3)
    for z, code in zip(np.abs(z_ND[:20]), cut.encode(np.abs(z_ND[:20])), strict=True):  # fitted again on the three that are kept
        kept = np.flatnonzero(code)
        assert np.linalg.norm(z - code @ cut.dictionary_KD) < 1.02 * nnls(cut.dictionary_KD[kept].T.astype(float), z.astype(float))[1] + 1e-3


def test_nmf_codes_are_the_non_negative_least_squares_of_each_window_alone(z_ND):
    z_ND = np.abs(z_ND)
    fitted = fit_baseline("nmf", z_ND, n_components=8, l0=8)
    codes = fitted.encode(z_ND[:40])
    np.testing.assert_allclose(fitted.encode(z_ND[7:9]), codes[7:9], rtol=1e-4, atol=1e-5)
    for z, code in zip(z_ND, codes, strict=False):
        least = nnls(fitted.dictionary_KD.T.astype(float), z.astype(float))[1]
        assert np.linalg.norm(z - code @ fitted.dictionary_KD) < 1.02 * least + 0.02 * np.linalg.norm(z)


def test_the_pursuit_equals_orthogonal_matching_pursuit_of_one_and_least_squares(z_ND):
    fitted = fit_baseline("random", z_ND, n_components=40, l0=4)
    codes, centred = fitted.encode(z_ND), z_ND - z_ND.mean(0)
    for code, x in zip(codes[:20], centred, strict=False):
        chosen = np.flatnonzero(code)
        best, *_ = np.linalg.lstsq(fitted.dictionary_KD[chosen].T, x, rcond=None)
        np.testing.assert_allclose(code[chosen], best, atol=1e-3)
        assert np.abs(fitted.dictionary_KD @ x).argmax() in chosen


def test_bad_baselines_are_named(z_ND):
    broken = z_ND.copy()
    broken[0, 0] = np.nan
    for args, message in (
        (("x", z_ND, 4, 2), "name must be one of"),
        (("pca", broken, 4, 2), "not finite"),
        (("kmeans", z_ND, 400, 2), "n_components must lie between 1 and the 300"),
        (("pca", z_ND, 4, 0), "l0 must be"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_baseline(args[0], args[1], n_components=args[2], l0=args[3])


def test_the_estimator_works_as_scikit_learn_expects(z_ND):
    estimator = SparseAutoencoder(n_concepts=24, k=6, fit_config=FitConfig(n_steps=150, batch_size=64, lr=1e-2))
    assert clone(estimator).get_params()["n_concepts"] == 24
    codes = make_pipeline(StandardScaler(), clone(estimator)).fit_transform(z_ND)
    assert codes.shape == (300, 24) and (codes > 0).sum(1).max() <= 6
    estimator.fit(z_ND)
    again = estimator.inverse_transform(estimator.transform(z_ND))
    assert np.square(again - z_ND).sum() < 0.5 * np.square(z_ND - z_ND.mean(0)).sum()
    np.testing.assert_allclose(np.linalg.norm(estimator.components_, axis=1), 1, atol=1e-5)
    assert len(estimator.get_feature_names_out()) == 24


def test_the_estimator_takes_neighbours_and_views(z_ND):
    following = np.where(np.arange(300) % 10 < 9, np.arange(300) + 1, -1)
    groups = np.arange(300) // 10
    estimator = SparseAutoencoder(n_concepts=24, k=6, fit_config=FitConfig(n_steps=5, batch_size=64))
    estimator.fit(z_ND, groups=groups, next_row=following, X_aug=z_ND + 0.01)
    assert {"smooth", "stab"} <= estimator.loss_.keys()
    broken = z_ND.copy()
    broken[3] = np.inf
    with pytest.raises(ValueError, match="not finite in row 3"):
        estimator.fit(broken)
    with pytest.raises(ValueError, match="exceeds the 20 training windows"):
        estimator.fit(z_ND[:20])
