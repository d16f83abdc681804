"""PaPaGei's filter and labels, against what the original computed and against their definitions."""

import numpy as np
import pytest

from physio_data.corpora.twins import write_twin
from physio_data.filters import bandpass
from physio_data.formats import open_recording
from physio_data.papagei import FS, chebyshev, window_labels
from physio_data.prepare import PrepareConfig, prepare
from physio_data.store import Store

TAGS = {"62p5": (62.5, 1e-8), "125": (125.0, 1e-6), "256": (256.0, 1e-4), "500": (500.0, 2e-3)}


@pytest.fixture(scope="module")
def fixture(shared):
    path = shared / "fixtures" / "papagei" / "preproc_morph_fixture.npz"
    if not path.is_file():
        pytest.skip(f"fixture absent: {path}")
    return np.load(path, allow_pickle=False)


def relative_rms(x, y):
    return np.sqrt(((x - y) ** 2).mean() / (y**2).mean())


@pytest.mark.parametrize("tag", TAGS)
def test_the_compatible_filter_repeats_the_original(fixture, tag):
    fs, tolerance = TAGS[tag]
    assert relative_rms(chebyshev(fixture[f"raw_{tag}"], fs, compat=True), fixture[f"filt_{tag}"]) < tolerance


@pytest.mark.parametrize("tag", TAGS)
def test_the_three_labels_repeat_the_original(fixture, tag):
    x_NT = fixture[f"resamp125_{tag}"][None, :1250]
    np.testing.assert_allclose(window_labels(np.concatenate([x_NT, 3 * x_NT + 7])), fixture[f"feat_{tag}"][None].repeat(2, 0), rtol=1e-9)


def gain_db(hz, apply, fs):
    t_s = np.arange(int(60 * fs)) / fs
    y = apply(np.sin(2 * np.pi * hz * t_s))
    middle = slice(len(y) // 4, 3 * len(y) // 4)
    return 20 * np.log10(np.abs(y[middle]).max())


@pytest.mark.parametrize("fs", [64.0, 125.0, 500.0, 1000.0])
def test_the_pass_band_is_narrower_than_the_edges(fs):
    def apply(x):
        return chebyshev(x, fs)

    assert gain_db(0.5, apply, fs) < -35 and gain_db(12.0, apply, fs) < -35
    assert gain_db(2.0, apply, fs) == pytest.approx(0, abs=0.5) and gain_db(0.7, apply, fs) > -3
    assert gain_db(0.5, lambda x: bandpass(x, fs, 0.5, 12.0), fs) == pytest.approx(-6, abs=0.5)  # ST-SAE's is wider


def test_it_comes_out_at_125_hz_for_batches_of_any_rate():
    x_NCT = np.random.default_rng(0).standard_normal((2, 1, 2100)).astype(np.float32)
    y_NCT = chebyshev(x_NCT, 1000.0)
    assert y_NCT.shape == (2, 1, 263) and y_NCT.dtype == np.float32
    np.testing.assert_allclose(chebyshev(x_NCT[1, 0], 1000.0), y_NCT[1, 0], atol=1e-6)
    assert np.abs(chebyshev(x_NCT + 1e4, 1000.0) - y_NCT).max() < 0.01  # an offset goes without a trace


def test_svri_and_ipa_of_a_drawn_pulse():
    ramp = np.concatenate([np.linspace(0, 1, 20, endpoint=False), np.linspace(1, 0, 80, endpoint=False)])
    svri, _, ipa = window_labels(np.tile(ramp, 5)[None], 100.0)[0]
    scaled = np.tile(ramp, 5)
    assert svri == pytest.approx(scaled[20:].mean() / scaled[:20].mean())
    assert ipa == 0  # no minimum inside a beat


def test_a_constant_window_has_no_labels():
    assert np.isnan(window_labels(np.zeros((2, 250)))).all()


def test_a_store_is_prepared_with_it(tmp_path):
    write_twin("bidmc", tmp_path / "files")
    cfg = PrepareConfig(corpus="bidmc", root=str(tmp_path / "files"), filter="papagei")
    prepare(cfg, tmp_path / "store")
    store = Store(tmp_path / "store")
    whole = open_recording(tmp_path / "files" / "bidmc_csv" / "bidmc_01_Signals.csv").select(["PLETH"]).read()
    np.testing.assert_allclose(store.batch(np.arange(3))["signal"].ravel(), chebyshev(whole, FS)[0, :3750], atol=1e-5)
    assert store.manifest["filter"] == "papagei" and store.manifest["band"] == [0.5, 12.0] and store.fs == FS
    with pytest.raises(ValueError, match="filter=papagei fixes the band"):
        PrepareConfig(corpus="bidmc", filter="papagei", fs=100.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chebyshev(np.zeros(100), 20.0), "fs must be above 24 Hz"),
        (lambda: chebyshev(np.array([0.0, np.nan] * 50), FS), r"not finite at index \(1,\)"),
        (lambda: chebyshev(np.zeros(27), FS, compat=True), "more than 27 samples"),
        (lambda: window_labels(np.zeros(500)), r"x_NT must be \(windows, samples\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
