"""Gaps, the plain ways to fill them, and figures, against SciPy and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d

from physio_train import imputation


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(imputation.GAPS), st.integers(2, 30), st.sampled_from([1, 2, 5]), st.floats(0.01, 0.99), st.integers(0, 99))
def test_every_window_hides_the_same_number_of_whole_stretches(kind, n, patch, ratio, seed):
    hidden = imputation.gaps(kind, 4, n * patch, ratio, patch=patch, seed=seed)
    whole = hidden.reshape(4, n, patch)
    assert (whole.all(axis=2) == whole.any(axis=2)).all()
    gone = min(max(1, round(ratio * n)), n - 1)
    assert (whole[:, :, 0].sum(axis=1) == gone).all()
    edges = np.diff(np.pad(hidden.astype(int), ((0, 0), (1, 1))), axis=1)
    if kind == "contiguous":
        assert ((edges == 1).sum(axis=1) == 1).all()
        assert n - gone < 2 or not (hidden[:, 0] | hidden[:, -1]).any()
    if kind == "trailing":
        assert hidden[:, -1].all() and not hidden[:, : (n - gone) * patch].any()


def test_the_interpolations_are_scipys_and_visible_samples_stay():
    x = np.random.default_rng(0).normal(size=(2, 1, 60)).cumsum(axis=2)
    hidden = imputation.gaps("random", 2, 60, 0.4, seed=1)
    hidden[:, [0, -1]] = False
    at = np.arange(60)
    for n in range(2):
        keep = ~hidden[n]
        np.testing.assert_allclose(imputation.linear(x, hidden)[n, 0], np.interp(at, at[keep], x[n, 0, keep]))
        natural = CubicSpline(at[keep], x[n, 0, keep], bc_type="natural")(at)
        np.testing.assert_allclose(imputation.spline(x, hidden)[n, 0], np.clip(natural, x[n, 0, keep].min(), x[n, 0, keep].max()))
    for fill in imputation.BASELINES.values():
        np.testing.assert_array_equal(np.where(hidden[:, None], 0, fill(x, hidden)), np.where(hidden[:, None], 0, x))


def test_autoregression_minimises_the_residual_that_brute_force_does():
    rng = np.random.default_rng(2)
    x = np.sin(np.arange(120) * 0.35) + 0.1 * rng.normal(size=120)
    hidden = np.zeros(120, bool)
    hidden[50:58] = hidden[80:83] = True
    got = imputation.autoregressive(x[None, None], hidden[None], order=6, rounds=1)[0, 0]
    start = np.interp(np.arange(120), np.flatnonzero(~hidden), x[~hidden]) - x[~hidden].mean()
    design = np.stack([start[5 - k : 119 - k] for k in range(6)], axis=1)
    a = np.linalg.lstsq(design, start[6:], rcond=None)[0]
    residual = np.zeros((126, 120))  # of the samples padded with zeros on both sides, as the convolution has it
    for row in range(126):
        for k, weight in enumerate([1.0, *-a]):
            if 0 <= row - k < 120:
                residual[row, row - k] = weight
    known = np.where(hidden, 0, x - x[~hidden].mean())
    want = np.linalg.lstsq(residual[:, hidden], -residual @ known, rcond=None)[0] + x[~hidden].mean()
    np.testing.assert_allclose(got[hidden], want, atol=2e-3)


def test_autoregression_bridges_a_wave_that_lines_cannot():
    x = np.sin(np.arange(400) * 0.2)[None, None]
    hidden = np.zeros((1, 400), bool)
    hidden[0, 180:220] = True
    error = {name: imputation.hidden_errors(x, fill(x, hidden), hidden)["MAE"][0] for name, fill in imputation.BASELINES.items()}
    assert error["AR"] < 0.05 < error["linear"]


def test_hidden_errors_look_at_hidden_samples_alone():
    x, hidden = np.arange(20.0).reshape(1, 1, 20), np.zeros((1, 20), bool)
    hidden[0, [3, 7]] = True
    filled = x.copy() + 100 * ~hidden[:, None]
    filled[0, 0, 3] += 1
    filled[0, 0, 7] -= 3
    got = imputation.hidden_errors(x, filled, hidden)
    assert (got["MAE"][0], got["MSE"][0]) == (2, 5)
    assert got["SNR dB"][0] == pytest.approx(10 * np.log10((9 + 49) / 2 / 5))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=4, max_size=40))
def test_the_distance_is_that_of_brute_force_and_bins_hold_every_hidden_sample(row):
    hidden = np.array([[False, *row, False]])
    visible = np.flatnonzero(~hidden[0])
    want = [min(abs(visible - t)) for t in range(hidden.shape[1])]
    assert imputation.distance_to_visible(hidden)[0].tolist() == want
    if hidden.any():
        x = np.random.default_rng(0).normal(size=(1, 2, hidden.shape[1]))
        bins = imputation.error_by_distance(x, 0 * x, hidden, (1, 2, 5))
        assert sum(b["n"] for b in bins) == 2 * hidden.sum()
        far = [t for t in range(hidden.shape[1]) if want[t] >= 5]
        assert (bins[2]["n"] == 0 and np.isnan(bins[2]["mae"])) if not far else bins[2]["mae"] == pytest.approx(np.abs(x[0][:, far]).mean())


def test_ssim_and_psnr_are_scikit_images_definition():
    """structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=ptp) and peak_signal_noise_ratio, restated along time."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 2, 90)).cumsum(axis=2)
    y = x + 0.5 * rng.normal(size=x.shape)
    for n in range(2):
        ssims, psnrs = [], []
        for c in range(2):
            a, b, span = x[n, c], y[n, c], np.ptp(x[n, c])
            blur = lambda v: gaussian_filter1d(v, 1.5, truncate=3.5)  # noqa: E731
            ua, ub = blur(a), blur(b)
            va, vb, vab = blur(a * a) - ua * ua, blur(b * b) - ub * ub, blur(a * b) - ua * ub
            c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
            index = (2 * ua * ub + c1) * (2 * vab + c2) / ((ua**2 + ub**2 + c1) * (va + vb + c2))
            ssims.append(index[5:-5].mean())
            psnrs.append(10 * np.log10(span**2 / np.mean((a - b) ** 2)))
        assert imputation.ssim(x, y)[n] == pytest.approx(np.mean(ssims))
        assert imputation.psnr_db(x, y)[n] == pytest.approx(np.mean(psnrs))
    assert imputation.ssim(x, x) == pytest.approx([1, 1]) and imputation.psnr_db(x, x).tolist() == [100, 100]
    assert np.isnan(imputation.ssim(0 * x, y)).all() and np.isnan(imputation.psnr_db(0 * x, y)).all()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x, h: imputation.gaps("other", 1, 20, 0.5), "kind must be one of random"),
        (lambda x, h: imputation.gaps("random", 1, 20, 1.0), "ratio must lie"),
        (lambda x, h: imputation.gaps("random", 1, 20, 0.5, patch=3), "patch=3 must divide"),
        (lambda x, h: imputation.linear(x[0], h), "windows must be"),
        (lambda x, h: imputation.linear(x, ~(h & False)), "two visible"),
        (lambda x, h: imputation.hidden_errors(x, x * np.nan, h), "not finite where hidden"),
        (lambda x, h: imputation.error_by_distance(x, x, h, (2, 5)), "ascend from 1"),
        (lambda x, h: imputation.ssim(x[:, :, :8], x[:, :, :8]), "at least 11 samples"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call(np.random.default_rng(0).normal(size=(2, 1, 20)), imputation.gaps("random", 2, 20, 0.5))
