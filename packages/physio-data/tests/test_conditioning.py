import numpy as np
import pytest

from physio_data import conditioning
from physio_data.conditioning import WindowPlan, windows_of
from physio_data.corpora import corpus
from physio_data.quality import Limits
from physio_data.recording import Recording

CORPUS = corpus("himae_shards")  # one without labels


def plan(**more):
    base = {"channels": ("PPG",), "units": ("a.u.",), "fs": 25.0, "n_samples": 250, "hop": 250, "band": (0.5, 8.0), "notch_hz": None, "kind": "ppg"}
    return WindowPlan(**(base | more))


def pulse_wave(fs, seconds, rate_hz=1.2):
    t_T = np.arange(int(fs * seconds)) / fs
    phase_T = 2 * np.pi * rate_hz * t_T
    return np.exp(np.cos(phase_T)) + 0.4 * np.exp(np.cos(2 * phase_T - 1.0))


def recording(x_CT, fs, units=("a.u.",), channels=("PPG",)):
    return Recording.from_array(np.atleast_2d(x_CT), fs=fs, channels=channels, units=units, subject="p", record="r")


@pytest.mark.parametrize("fs_in", [125.0, 64.0, 124.945, 25.0])
def test_a_long_record_in_pieces_equals_the_whole(monkeypatch, fs_in):
    x_T = pulse_wave(fs_in, 300) + np.random.default_rng(0).normal(0, 0.05, int(fs_in * 300))
    whole = windows_of(recording(x_T, fs_in), plan(), CORPUS)
    monkeypatch.setattr(conditioning, "BLOCK_S", 70.0)
    pieces = windows_of(recording(x_T, fs_in), plan(), CORPUS)
    assert len(whole.signal_NCT) in (29, 30)
    np.testing.assert_allclose(pieces.signal_NCT, whole.signal_NCT, atol=2e-5)


@pytest.mark.parametrize("fs_in", [125.0, 360.0])
def test_after_a_gap_the_samples_stand_at_their_own_times(fs_in):
    x_T = pulse_wave(fs_in, 120)
    whole = windows_of(recording(x_T, fs_in), plan(), CORPUS)
    x_T[int(31.003 * fs_in) : int(32.017 * fs_in)] = np.nan
    gapped = windows_of(recording(x_T, fs_in), plan(), CORPUS)
    np.testing.assert_array_equal(gapped.columns["start_s"], [0, 10, 20, *range(40, 120, 10)])
    assert gapped.rejected == {"missing": 1}
    np.testing.assert_allclose(gapped.signal_NCT[4:], whole.signal_NCT[5:], atol=2e-3)  # from 50 s on; filters have settled


@pytest.mark.parametrize("first_good", range(3600, 3618))
def test_no_sample_is_made_up_at_the_end_of_a_gap(first_good):
    """360 Hz meets 100 Hz every 18 samples: wherever between them a gap ends, what lies in it stays missing."""
    x_T = pulse_wave(360.0, 30)
    x_T[3000:first_good] = np.nan
    y_T = conditioning.conditioned(recording(x_T, 360.0), np.ones((1, 1)), 0, 3000, plan(fs=100.0, n_samples=500, hop=500, band=None))[0]
    time_T = np.arange(3000) / 100.0
    in_gap_T = (time_T > 2999.5 / 360.0) & (time_T < (first_good - 1e-6) / 360.0)
    assert np.isnan(y_T[in_gap_T]).all()
    assert np.isfinite(y_T[time_T >= first_good / 360.0]).all() and np.isfinite(y_T[time_T < 2995 / 360.0]).all()


def test_one_window_in_a_gap_free_stretch_between_gaps(tmp_path):
    x_T = pulse_wave(100.0, 60)
    x_T[1000:1990] = np.nan
    x_T[3010:] = np.nan
    kept = windows_of(recording(x_T, 100.0), plan(fs=50.0, n_samples=500, hop=500, band=None), CORPUS)
    np.testing.assert_array_equal(kept.columns["start_s"], [0, 20])
    assert np.isfinite(kept.signal_NCT).all() and kept.n_rejected == 4


def test_windows_are_rejected_with_a_reason():
    x_T = pulse_wave(125.0, 60)
    rng = np.random.default_rng(1)
    x_T += rng.normal(0, 1e-3, x_T.size)
    x_T[1250 * 1 : 1250 * 2] = 3.0  # flat before the filter; its edges ring after it
    x_T[1250 * 3 : 1250 * 4] = np.clip(x_T[1250 * 3 : 1250 * 4], None, 1.0)
    x_T[1250 * 5 + 600] = np.nan
    block = windows_of(recording(x_T, 125.0), plan(limits=Limits()), CORPUS)
    np.testing.assert_array_equal(block.columns["start_s"], [0, 20, 40])
    assert block.n_rejected == 3 and block.rejected["missing"] == 1 and block.rejected["flat"] >= 1 and block.rejected["clipped"] >= 1


def test_units_are_converted_or_refused():
    x_T = pulse_wave(25.0, 20)
    ecg = plan(channels=("II",), units=("mV",), kind="ecg", band=None)
    from_uv = windows_of(recording(1000 * x_T, 25.0, ("uV",), ("II",)), ecg, CORPUS)
    np.testing.assert_allclose(from_uv.signal_NCT[0, 0], x_T[:250], rtol=1e-5)
    with pytest.raises(ValueError, match=r"record 'r' is in 'a.u.', the store in 'mV'"):
        windows_of(recording(x_T, 25.0, ("a.u.",), ("II",)), ecg, CORPUS)


def test_a_long_record_is_never_read_whole(monkeypatch):
    monkeypatch.setattr(conditioning, "BLOCK_S", 100.0)
    spans = []

    def reader(start, stop):
        spans.append(stop - start)
        return np.sin(np.arange(start, stop) / 20.0)[None].astype(np.float32)

    day = Recording(fs=25.0, channels=("PPG",), units=("a.u.",), n_samples=25 * 3600, subject="p", record="r", reader=reader)
    block = windows_of(day, plan(), CORPUS)
    assert len(block.signal_NCT) == 360 and max(spans) < 25 * 200
