"""Forecast figures, baselines and the table of means, against computations of their own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from physio_train import forecasting, scorecard


def windows(n=3, c=2, t=400, seed=0):
    return np.random.default_rng(seed).normal(size=(n, c, t)).cumsum(axis=2)


def test_the_figures_are_those_of_numpy_and_scipy_window_by_window():
    x = windows()
    context, truth = x[:, :, :300], x[:, :, 300:]
    forecast = truth + np.random.default_rng(1).normal(size=truth.shape)
    got = forecasting.figures(truth, forecast, context)
    for n in range(len(x)):
        error = forecast[n] - truth[n]
        assert got["MSE"][n] == pytest.approx(np.mean(error**2))
        assert got["MAE"][n] == pytest.approx(np.mean(np.abs(error)))
        naive = [np.mean(np.abs(context[n, c, 1:] - context[n, c, :-1])) for c in range(2)]
        assert got["MASE"][n] == pytest.approx(np.mean([np.mean(np.abs(error[c])) / naive[c] for c in range(2)]))
        assert got["r"][n] == pytest.approx(np.mean([stats.pearsonr(truth[n, c], forecast[n, c])[0] for c in range(2)]))
        assert got["SNR dB"][n] == pytest.approx(np.mean([10 * np.log10(np.mean(truth[n, c] ** 2) / np.mean(error[c] ** 2)) for c in range(2)]))


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, (2, 1, 24), elements=st.sampled_from([0.0, 1.0, -2.5, 1e-9, 1e4])), arrays(np.float64, (2, 1, 8), elements=st.floats(-1e4, 1e4)))
def test_no_figure_is_nan_but_the_correlation_of_a_flat_truth(x, forecast):
    context, truth = x[:, :, :16], x[:, :, 16:]
    got = forecasting.figures(truth, forecast, context)
    for name in ("MSE", "MAE", "MASE", "SNR dB"):
        assert np.isfinite(got[name]).all()
    assert (np.isnan(got["r"]) <= (np.ptp(truth[:, 0], axis=1) < 1e-8)).all()


def test_a_flat_context_a_perfect_forecast_and_silence_have_their_figures():
    flat, wave = np.zeros((1, 1, 50)), np.sin(np.arange(20.0))[None, None]
    assert forecasting.figures(wave, wave, flat)["MASE"][0] == 0
    assert forecasting.figures(wave, wave + 0.5, flat)["MASE"][0] == pytest.approx(0.5 / 1e-3)
    assert forecasting.figures(wave, wave, flat)["SNR dB"][0] == 100
    assert forecasting.figures(0 * wave, wave, flat)["SNR dB"][0] == -100
    assert forecasting.figures(wave, 0 * wave, flat)["r"][0] == 0
    assert np.isnan(forecasting.figures(0 * wave, wave, flat)["r"][0])


def test_token_accuracy_counts_places_and_missing_ones_are_wrong():
    got = forecasting.token_accuracy([np.array([1, 2, 3, 4]), np.array([5]), np.array([])], [np.array([1, 9, 3]), np.array([5, 6]), np.array([1])])
    assert got[:2].tolist() == [0.5, 1.0] and np.isnan(got[2])


def test_the_period_is_that_of_the_signal():
    fs, t = 100.0, np.arange(800) / 100.0
    beat = lambda period_s: np.exp(-0.5 * (((t + 0.1) % period_s - 0.3) / 0.03) ** 2)  # noqa: E731
    x = np.stack([beat(0.8), beat(1.1), np.zeros(800)])[:, None]
    assert forecasting.period(x, fs).tolist() == [80, 110, 0]


def test_seasonal_naive_repeats_a_periodic_signal_exactly_and_holds_one_without_a_period():
    t = np.arange(1000)
    x = np.stack([np.sin(2 * np.pi * t / 80) + (t % 80 == 3), np.zeros(1000)])[:, None]
    said = forecasting.seasonal_naive(x[:, :, :720], 280, 100.0)
    np.testing.assert_allclose(said[0], x[0, :, 720:], atol=1e-9)
    assert (said[1] == 0).all()


def test_the_linear_baselines_are_those_of_numpy():
    x = windows(1, 1, 300, seed=4)
    t = np.arange(280, 300)
    slope, level = np.polyfit(t, x[0, 0, 280:], 1)
    want = np.clip(slope * np.arange(300, 310) + level, x.min(), x.max())
    np.testing.assert_allclose(forecasting.linear_trend(x, 10, 100.0)[0, 0], want)
    assert (forecasting.persistence(x, 5, 100.0) == x[0, 0, -1]).all()
    np.testing.assert_allclose(forecasting.mean_level(x, 5, 100.0), x.mean())


def test_autoregression_finds_the_coefficients_of_a_process_and_continues_a_sine():
    rng = np.random.default_rng(0)
    x = np.zeros(6000)
    for i in range(2, len(x)):
        x[i] = 1.6 * x[i - 1] - 0.8 * x[i - 2] + rng.normal()
    got = forecasting.ar_coefficients(x[None], 2)[0]
    design = np.stack([x[1:-1], x[:-2]], axis=1)
    np.testing.assert_allclose(got, np.linalg.lstsq(design, x[2:], rcond=None)[0], atol=1e-4)
    sine = np.sin(np.arange(500) * 0.13)[None, None]
    np.testing.assert_allclose(forecasting.autoregressive(sine[:, :, :400], 100, 100.0, order=8), sine[:, :, 400:], atol=0.05)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(forecasting.BASELINES)), st.integers(1, 40))
def test_every_baseline_is_finite_and_of_the_horizon(seed, name, horizon):
    x = windows(2, 1, 90, seed) * np.array([1.0, 0.0])[:, None, None]
    said = forecasting.BASELINES[name](x, horizon, 50.0)
    assert said.shape == (2, 1, horizon) and np.isfinite(said).all()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: forecasting.figures(x, x[:, :, :4], x), "one shape"),
        (lambda x: forecasting.figures(x * np.nan, x, x), "truth is not finite in 3 of 3"),
        (lambda x: forecasting.figures(x, x, x[:, :, :1]), "at least 2 samples"),
        (lambda x: forecasting.persistence(x, 0, 100.0), "horizon must be at least 1"),
        (lambda x: forecasting.persistence(x[0], 4, 100.0), "windows, channels, samples"),
        (lambda x: forecasting.token_accuracy([x], []), "as many windows"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call(windows())


# The table


def test_the_interval_is_that_of_means_over_resampled_subjects_and_the_difference_is_paired():
    rng = np.random.default_rng(0)
    subject = np.repeat([f"s{i}" for i in range(12)], 5)
    a = rng.normal(size=60) + np.repeat(rng.normal(size=12), 5)
    values = {"model": {"MAE": a}, "floor": {"MAE": a + 0.5}}
    card = scorecard.score(values, subject, title="t", reference="floor", n_resamples=400, seed=3)
    names = np.unique(subject)
    draws = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=400)
    means = [np.concatenate([np.tile(a[subject == s], k) for s, k in zip(names, draw, strict=True)]).mean() for draw in draws]
    cell = card.rows["model"]["MAE"]
    assert (cell.low, cell.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert card.difference["model"].value == pytest.approx(-0.5) and card.difference["model"].low == pytest.approx(-0.5)


def test_records_are_counted_as_records_where_nobody_is_named():
    values, record = {"m": {"MAE": np.arange(24.0)}, "f": {"MAE": np.ones(24)}}, np.arange(24).astype(str)
    card = scorecard.score(values, record, title="t", reference="f", clusters="records")
    assert card.heading() == "t: 24 windows, 24 records" and any("resamples of records" in note for note in card.notes)
    assert card.to_json()["n_subjects"] is None and card.to_json()["n_clusters"] == 24
    few = scorecard.score({"m": {"MAE": np.ones(2)}}, record[:2], title="t", reference="m", clusters="records")
    assert "n = 2 records, no interval" in few.notes
    assert scorecard.score(values, record, title="t", reference="f").to_json()["n_subjects"] == 24


def test_few_subjects_have_no_interval_and_undefined_windows_are_counted():
    values = {"m": {"r": np.array([0.5, np.nan, 0.7])}, "f": {"r": np.array([np.nan] * 3)}}
    card = scorecard.score(values, np.array(["a", "b", "c"]), title="t", reference="m")
    assert card.rows["m"]["r"].value == pytest.approx(0.6) and card.rows["m"]["r"].low is None
    assert card.rows["f"]["r"].value is None and "f" not in card.difference
    assert "n = 3 subjects, no interval" in card.notes and any("1 windows of m, 3 windows of f" in note for note in card.notes)
    assert "| f | - |" in card.markdown() and "NaN" not in str(card.to_json())
    with pytest.raises(ValueError, match="reference 'x' is no row"):
        scorecard.score(values, np.array(["a", "b", "c"]), title="t", reference="x")
    with pytest.raises(ValueError, match="for 2 windows"):
        scorecard.score(values, np.array(["a", "b"]), title="t", reference="m")
