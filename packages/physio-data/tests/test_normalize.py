import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from physio_data.normalize import NORMALIZERS, himae_probe_input, himae_sample, normalize

STATISTICAL = sorted(NORMALIZERS - {"none", "fixed"})
SIGNALS = arrays(np.float32, (2, 3, 17), elements=st.floats(-1000, 1000, width=32))


def batch(seed=0):
    return np.random.default_rng(seed).normal(5, [[[1], [10], [0.1]]], (4, 3, 200)).astype(np.float32)


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
@given(x_BCT=SIGNALS)
def test_what_was_taken_away_can_be_put_back(name, x_BCT):
    y_BCT, scale = normalize(x_BCT, name, fixed=(3.0, 2.0) if name == "fixed" else None)
    assert y_BCT.dtype == np.float32 and np.isfinite(y_BCT).all()
    # A constant lead beside a large spike of robust scale ~ 0 gives huge y; float32 then rounds relative to that y.
    rounding = 1e-6 * np.abs(y_BCT * scale.scale).max() + 1e-6 * np.abs(x_BCT).max()
    assert np.abs(scale.restore(y_BCT) - x_BCT).max() <= rounding + 1e-6


def test_minmax_spans_minus_one_to_one_per_lead_or_per_instance():
    y_BCT, _ = normalize(batch(), "lead_minmax")
    assert np.allclose(y_BCT.min(-1), -1) and np.allclose(y_BCT.max(-1), 1)
    y_BCT, _ = normalize(batch(), "instance_minmax")
    assert np.allclose(y_BCT.min((1, 2)), -1) and np.allclose(y_BCT.max((1, 2)), 1)
    assert np.ptp(y_BCT[:, 2], axis=-1).max() < 0.03  # the small lead stays small


def test_zscores_have_mean_zero_and_population_deviation_one():
    y_BCT, scale = normalize(batch(), "lead_zscore")
    assert np.allclose(y_BCT.mean(-1), 0, atol=1e-4) and np.allclose(y_BCT.std(-1), 1, atol=1e-4)
    assert np.allclose(scale.scale[..., 0], batch().astype(np.float64).std(-1), rtol=1e-4)
    y_BCT, _ = normalize(batch(), "instance_zscore")
    assert np.allclose(y_BCT.std((1, 2)), 1, atol=1e-4)


def test_the_robust_scale_ignores_an_artefact():
    x_BCT = np.random.default_rng(0).normal(0, 2, (1, 1, 20000)).astype(np.float32)
    spiked = x_BCT.copy()
    spiked[..., :200] = 1e6
    assert normalize(spiked, "lead_robust")[1].scale.item() == pytest.approx(2, rel=0.03)


@pytest.mark.parametrize("name", ["lead_minmax", "instance_minmax", "lead_zscore", "instance_zscore", "lead_robust"])
def test_a_flat_item_becomes_exact_zeros(name):
    y_BCT, scale = normalize(np.full((1, 2, 50), 7.25), name)
    assert not y_BCT.any()
    assert np.allclose(scale.restore(y_BCT), 7.25)


@pytest.mark.parametrize("name", STATISTICAL)
def test_a_short_tail_enters_no_statistic(name):
    x_BCT = batch()
    valid_BT = np.ones((4, 200), bool)
    valid_BT[1, 150:] = False
    padded = x_BCT.copy()
    padded[1, :, 150:] = np.nan
    y_BCT, scale = normalize(padded, name, valid_BT)
    alone, alone_scale = normalize(x_BCT[1:2, :, :150], name)
    assert np.allclose(y_BCT[1, :, :150], alone[0], atol=1e-6) and not y_BCT[1, :, 150:].any()
    assert np.allclose(scale.scale[1], alone_scale.scale[0])


@pytest.mark.parametrize("name", STATISTICAL)
def test_a_lost_channel_enters_no_statistic(name):
    x_BCT, present_BC = batch(), np.ones((4, 3), bool)
    present_BC[1, 1] = False
    held = x_BCT.copy()
    held[1, 1] = np.nan
    valid_BT = np.ones((4, 200), bool)
    valid_BT[2, 150:] = False
    y_BCT, _ = normalize(held, name, valid_BT, channel_present_BC=present_BC)
    alone, _ = normalize(x_BCT[1:2, [0, 2]], name)
    assert np.allclose(y_BCT[1, [0, 2]], alone[0], atol=1e-6) and not y_BCT[1, 1].any()
    others = [0, 2, 3]
    assert np.array_equal(y_BCT[others], normalize(x_BCT[others], name, valid_BT[others])[0])
    without, _ = normalize(x_BCT, name, channel_present_BC=np.arange(4)[:, None] != np.full(3, 2))
    assert not without[2].any() and without[1].any()
    with pytest.raises(ValueError, match=r"channel_present_BC must be \(batch, channels\)"):
        normalize(x_BCT, name, channel_present_BC=np.ones((4, 2), bool))


def test_a_small_pulse_on_a_large_offset_keeps_its_shape():
    pulse = np.sin(np.arange(200) / 10)
    y_BCT, _ = normalize((pulse + 1000).astype(np.float32)[None, None], "lead_zscore")
    assert np.allclose(y_BCT[0, 0], (pulse - pulse.mean()) / pulse.std(), atol=2e-4)


def test_bad_input_is_named():
    x_BCT = batch()
    x_BCT[2, 1, 9] = np.inf
    with pytest.raises(ValueError, match="item 2, channel 1, sample 9"):
        normalize(x_BCT, "lead_zscore")
    with pytest.raises(ValueError, match="name must be one of"):
        normalize(batch(), "zscore")
    with pytest.raises(ValueError, match="fixed"):
        normalize(batch(), "fixed")
    with pytest.raises(ValueError, match="scale positive"):
        normalize(batch(), "fixed", fixed=(0.0, 0.0))
    with pytest.raises(ValueError, match="item 3"):
        normalize(batch(), "lead_zscore", np.arange(4)[:, None] < np.full((1, 200), 3))
    with pytest.raises(ValueError, match="got shape"):
        normalize(batch()[0], "lead_zscore")


def test_fixed_takes_one_value_per_channel():
    y_BCT, scale = normalize(batch(), "fixed", fixed=(np.array([1.0, 2, 3]), 2.0))
    assert np.allclose(y_BCT[:, 2], (batch()[:, 2] - 3) / 2, atol=1e-6)
    assert scale.offset.shape == (4, 3, 1)


def recorded(shared, name):
    path = shared / "fixtures" / "himae" / name
    if not path.is_file():
        pytest.skip(f"shared data absent: {path}")
    return np.load(path, allow_pickle=False)


@pytest.mark.parametrize(("case", "reference"), [("exact", False), ("short", False), ("flat", False), ("exact", True), ("nan", True), ("long", True)])
def test_himae_samples_equal_the_original_loader(shared, case, reference):
    fixture = recorded(shared, "dataset_norm.npz")
    assert np.allclose(himae_sample(fixture[f"{case}/raw"], 250, reference=reference), fixture[f"{case}/out"][:, 0], atol=1e-6)


def test_himae_samples_refuse_what_the_original_hid():
    with pytest.raises(ValueError, match="sample 2"):
        himae_sample(np.array([1.0, 2, np.nan]), 5)
    with pytest.raises(ValueError, match="more than length=2"):
        himae_sample(np.arange(3.0), 2)


def test_the_original_probe_input_is_had_only_on_request(shared):
    fixture = recorded(shared, "probe_preproc.npz")
    assert np.allclose(himae_probe_input(fixture["raw25"], reference=True), fixture["out100"], atol=1e-9)
    ours = himae_probe_input(fixture["raw25"])
    assert ours.shape == (4, 1000) and np.allclose(ours.min(-1), -1) and np.allclose(ours.max(-1), 1)
    with pytest.raises(ValueError, match="flat"):
        himae_probe_input(np.ones((1, 250)), reference=True)
