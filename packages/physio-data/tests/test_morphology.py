"""Hand-crafted features: values that can be known beforehand, invariances, and what they tell about annotated windows."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import signal, stats

from physio_data import morphology
from physio_data.filters import bandpass, resample
from physio_data.formats import open_recording
from physio_data.morphology import handcrafted
from physio_data.synthesis import SynthesisConfig, synthesize

QUIET = SynthesisConfig(motion_per_min=0, pop_per_min=0, clip_per_min=0, dropout_per_min=0, baseline_per_min=0, sensor_noise=(0, 0.01))


def spikes(beat_s, heights, fs=100.0, seconds=10.0, width_s=0.012):
    t = np.arange(int(seconds * fs)) / fs
    return sum(h * np.exp(-0.5 * ((t - b) / width_s) ** 2) for b, h in zip(beat_s, heights, strict=True))[None, None]


def named(x_NCT, fs, kind):
    values_NF, names = handcrafted(x_NCT, fs, kind)
    assert len(names) == len(set(names)) == values_NF.shape[1]
    return {name: values_NF[:, f] for f, name in enumerate(names)}


def windows(fs, channel, kind):
    people = list(synthesize(20, 2.0, fs, (channel,), 1, QUIET))
    length = int(10 * fs)
    x_NCT = np.concatenate([p.signal_CT.reshape(1, 12, length).transpose(1, 0, 2) for p in people])
    return people, x_NCT, named(x_NCT, fs, kind)


def test_rhythm_of_a_premature_beat_with_its_pause():
    beat_s = np.array([0.5, 1.5, 2.5, 3.5, 4.1, 5.5, 6.5, 7.5, 8.5, 9.5])
    found = named(spikes(beat_s, np.ones(10)), 100.0, "ecg")
    assert found["n_beats"] == 10
    assert found["rate_bpm"] == pytest.approx(60)
    assert found["rr_min_ratio"] == pytest.approx(0.6, abs=0.02) and found["rr_max_ratio"] == pytest.approx(1.4, abs=0.02)
    assert found["rr_early_then_late"] == pytest.approx(0.4 * 0.4, abs=0.02)
    assert found["rr_drop"] == pytest.approx(0.4, abs=0.02)
    assert found["rr_sd_s"] == pytest.approx(np.diff(beat_s).std(), abs=0.01)
    assert found["rr_rmssd_s"] == pytest.approx(np.sqrt(np.mean(np.diff(beat_s, 2) ** 2)), abs=0.01)
    assert found["rr_pnn50"] == pytest.approx(3 / 8)


def test_amplitudes_of_known_beats():
    found = named(spikes(np.arange(0.5, 10, 1.0), [1, 1, 1, 1, 2, 1, 1, 1, 0.5, 1]), 100.0, "ecg")
    assert found["amplitude"] == pytest.approx(1, abs=0.05)
    assert found["amplitude_max_ratio"] == pytest.approx(2, abs=0.1) and found["amplitude_min_ratio"] == pytest.approx(0.5, abs=0.05)
    assert found["template_min"] > 0.99  # scale does not matter to a correlation


def test_moments_and_bands_agree_with_scipy():
    x_NCT = np.random.default_rng(0).gamma(2.0, size=(3, 1, 1000))
    found = named(x_NCT, 100.0, "ecg")
    np.testing.assert_allclose(found["skewness"], stats.skew(x_NCT[:, 0], axis=1))
    np.testing.assert_allclose(found["kurtosis"], stats.kurtosis(x_NCT[:, 0], axis=1))
    sine = np.sin(2 * np.pi * 1.5 * np.arange(250) / 25)[None, None]
    assert named(sine, 25.0, "ppg")["band_mid"] > 0.99


def test_quantiles_leave_out_what_is_not_there():
    x_NK = np.array([[3.0, np.nan, 1.0, 2.0, 10.0], [np.nan] * 5, [4.0, np.nan, np.nan, np.nan, np.nan]])
    for q in (0.0, 0.1, 0.5, 1.0):
        np.testing.assert_allclose(morphology._quantile(x_NK, q), [np.quantile([3, 1, 2, 10], q), np.nan, 4])
    np.testing.assert_allclose(morphology._sd(x_NK), [np.std([3, 1, 2, 10]), np.nan, np.nan])


@pytest.mark.parametrize(("fs", "channel", "kind"), [(25.0, "PPG", "ppg"), (100.0, "ECG", "ecg")])
def test_features_tell_the_generators_truth(fs, channel, kind):
    people, _, found = windows(fs, channel, kind)
    beat = "pulse_s" if kind == "ppg" else "beat_s"
    holds = np.array([((getattr(p, beat)[p.beat_type == "V"] // 10) == k).any() for p in people for k in range(12)])
    calm = np.array([not p.af_T[int(10 * k * fs) : int((10 * k + 10) * fs)].any() for p in people for k in range(12)])
    rate = np.array([60 / np.median(np.diff(b[(b >= 10 * k) & (b < 10 * k + 10)])) for p in people for b in [getattr(p, beat)] for k in range(12)])
    plain = calm & ~holds
    np.testing.assert_allclose(np.median(np.abs(found["rate_bpm"] - rate)[plain]), 0, atol=1.5)
    # a premature beat's pulse may be too weak to count, which leaves the pause alone
    signs = {"rr_max_ratio": 1} if kind == "ppg" else {"rr_min_ratio": -1, "rr_early_then_late": 1, "template_min": -1}
    for name, sign in signs.items():
        rank = stats.rankdata(sign * found[name][calm])
        positive = holds[calm]
        auroc = (rank[positive].mean() - (positive.sum() + 1) / 2) / (~positive).sum()
        assert auroc > 0.75, name


@pytest.mark.parametrize(("fs", "channel", "kind"), [(25.0, "PPG", "ppg"), (100.0, "ECG", "ecg")])
def test_features_do_not_depend_on_offset_gain_or_company(fs, channel, kind):
    _, x_NCT, found = windows(fs, channel, kind)
    some = named(3 * x_NCT[5:9] + 2, fs, kind)
    for name, value in some.items():
        np.testing.assert_allclose(value, found[name][5:9] * (3 if name in ("amplitude", "sd") else 1), rtol=1e-6, atol=1e-5, err_msg=name)


def test_two_channels_stand_side_by_side():
    x_NCT = np.random.default_rng(0).standard_normal((4, 2, 1000))
    both_NF, names = handcrafted(x_NCT, 100.0, "ecg")
    second_NF, single = handcrafted(x_NCT[:, 1:], 100.0, "ecg")
    assert names[len(single) :] == tuple(f"ch1/{name}" for name in single)
    np.testing.assert_array_equal(both_NF[:, len(single) :], second_NF)


@pytest.mark.parametrize(("fs", "kind"), [(25.0, "ppg"), (100.0, "ecg")])
def test_a_flat_window_has_no_rhythm_and_no_warning(fs, kind):
    found = named(np.zeros((2, 1, int(10 * fs))), fs, kind)
    assert (found["n_beats"] == 0).all() and np.isnan(found["rate_bpm"]).all() and np.isnan(found["skewness"]).all()


def test_features_are_quick():
    """Against one filter, one search for peaks and one spectrum of each window, timed beside them: a time alone would tell of the machine."""
    rng = np.random.default_rng(0)

    def seconds(job):
        best = np.inf
        for _ in range(3):
            start = time.process_time()
            job()
            best = min(best, time.process_time() - start)
        return best

    for kind, fs, allowed in (("ppg", 25.0, 1.0), ("ecg", 100.0, 3.5)):
        x_NCT = np.cumsum(rng.standard_normal((400, 1, int(10 * fs))), axis=2)
        sos = signal.butter(4, (0.5, 8.0), "bandpass", fs=fs, output="sos")

        def plain(x_NCT=x_NCT, fs=fs, sos=sos):
            for x_T in x_NCT[:, 0]:
                signal.find_peaks(signal.sosfiltfilt(sos, x_T))
                signal.welch(x_T, fs, nperseg=200)

        assert seconds(lambda x_NCT=x_NCT, fs=fs, kind=kind: handcrafted(x_NCT, fs, kind)) < allowed * seconds(plain), kind


@pytest.mark.slow
def test_premature_beats_of_mit_bih_across_records(shared):
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, holds, groups = [], [], []
    for path in sorted((shared / "data" / "mitdb").glob("*.hea")):
        recording = open_recording(path).select(["MLII"])
        x_CT = bandpass(resample(recording.signal_CT, recording.fs, 100.0), 100.0, 0.5, 40.0)
        n = x_CT.shape[1] // 1000
        values.append(handcrafted(x_CT[:, : n * 1000].reshape(1, n, 1000).transpose(1, 0, 2), 100.0, "ecg")[0])
        pvc_s = recording.annotations.time_s[recording.annotations.symbol == "V"]
        holds.append(np.isin(np.arange(n), pvc_s // 10))
        groups += [path.stem.replace("202", "201")] * n
    x_NF, y_N, score_N = np.concatenate(values), np.concatenate(holds), np.zeros(len(groups))
    for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(x_NF, y_N, groups):
        model = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000))
        score_N[test] = model.fit(x_NF[train], y_N[train]).decision_function(x_NF[test])
    assert roc_auc_score(y_N, score_N) > 0.94


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: handcrafted(np.zeros((2, 250)), 25.0), "x_NCT"),
        (lambda: handcrafted(np.zeros((2, 1, 250)), 25.0, "eeg"), "kind"),
        (lambda: handcrafted(np.zeros((2, 1, 250)), 25.0, "ecg"), "fs"),
        (lambda: handcrafted(np.zeros((2, 1, 20)), 25.0), "second"),
        (lambda: handcrafted(np.stack([np.zeros((1, 250)), np.full((1, 250), np.nan)]), 25.0), "window 1"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
