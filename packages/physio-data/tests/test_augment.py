"""Augmentations: keyed by (seed, epoch, index, view) alone, each doing what its name says and no more."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_data import augment as lib
from physio_data.augment import PRESETS, augment, generator, then_filter
from physio_data.filters import bandpass

FS = 50.0
T_S = np.arange(500) / FS
X_BCT = np.stack([np.stack([np.sin(2 * np.pi * 1.2 * T_S + b), 2 * np.cos(2 * np.pi * 1.2 * T_S + b) + 5]) for b in range(6)])
ALL = [lib.WhiteNoise, lib.BandNoise, lib.BaselineWander, lib.HalfSines, lib.Scale, lib.Negate, lib.Reverse, lib.CropStretch, lib.Resample]
ALL += [lib.Shift, lib.SoftClip, lib.Dropout, lib.Smooth, lib.DropChannel, lib.ShuffleChannels]


def one(step, x_CT=X_BCT[0], index=0, fs=FS):
    return step(x_CT.copy(), fs, generator(0, 0, index, 0))


@pytest.mark.parametrize("name", PRESETS)
def test_a_view_depends_on_its_key_alone(name):
    def views(rows, **key):
        return augment(X_BCT[rows], FS, PRESETS[name], **({"seed": 1, "epoch": 2, "view": 0} | key), index_B=rows)

    whole = views([0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(views([4, 2]), whole[[4, 2]])
    for key in ({"seed": 2}, {"epoch": 3}, {"view": 1}):
        assert (views([0, 1, 2, 3, 4, 5], **key) != whole).any()
    assert whole.shape == X_BCT.shape and np.isfinite(whole).all()


@given(st.integers(0, 2**40), st.integers(0, 1000), st.integers(0, 2**62), st.integers(0, 5))
def test_streams_of_different_keys_differ(seed, epoch, index, view):
    draw = generator(seed, epoch, index, view).random(4)
    np.testing.assert_array_equal(draw, generator(seed, epoch, index, view).random(4))
    for other in ((seed + 1, epoch, index, view), (seed, epoch + 1, index, view), (seed, epoch, index + 1, view), (seed, epoch, index, view + 1)):
        assert (draw != generator(*other).random(4)).all()


@pytest.mark.parametrize("step", ALL, ids=lambda step: step.__name__)
def test_each_keeps_the_shape_and_the_input(step):
    before = X_BCT.copy()
    out = augment(X_BCT.astype(np.float32), FS, [replace(step(), p=1.0)], seed=0, epoch=0, index_B=range(6))
    assert out.shape == X_BCT.shape and out.dtype == np.float32 and np.isfinite(out).all()
    np.testing.assert_array_equal(X_BCT, before)
    np.testing.assert_array_equal(augment(X_BCT, FS, [replace(step(), p=0.0)], seed=0, epoch=0, index_B=range(6)), X_BCT)
    with pytest.raises(ValueError, match=rf"{step.__name__}: p must lie in \[0, 1\]"):
        step(p=1.5)


def test_how_often_is_the_probability():
    out = augment(np.repeat(X_BCT[:1], 2000, 0), FS, [lib.Negate(p=0.3)], seed=0, epoch=0, index_B=range(2000))
    assert (out[:, 0, 7] != X_BCT[0, 0, 7]).mean() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("snr_db", [10.0, 25.0])
def test_band_noise_has_the_ratio_and_the_band_it_says(snr_db):
    noise_CT = one(lib.BandNoise(snr_db=(snr_db, snr_db), band_hz=(1.0, 8.0))) - X_BCT[0]
    assert 10 * np.log10(X_BCT[0].var(1) / noise_CT.var(1)) == pytest.approx([snr_db, snr_db], abs=1e-6)
    power_F = np.abs(np.fft.rfft(noise_CT[0])) ** 2
    hz_F = np.fft.rfftfreq(500, 1 / FS)
    assert power_F[(hz_F < 0.99) | (hz_F > 8.01)].sum() < 1e-12 * power_F.sum()


def test_what_turns_and_reorders():
    np.testing.assert_array_equal(one(lib.Negate()), -X_BCT[0])
    np.testing.assert_array_equal(one(lib.Reverse()), X_BCT[0][:, ::-1])
    assert sorted(one(lib.Shift())[0].tolist()) == sorted(X_BCT[0, 0].tolist())
    assert sorted(one(lib.ShuffleChannels())[:, 0].tolist()) == sorted(X_BCT[0, :, 0].tolist())
    dropped = one(lib.DropChannel())
    assert (np.ptp(dropped, axis=1) == 0).sum() == 1 and np.array_equal(one(lib.DropChannel(), X_BCT[0, :1]), X_BCT[0, :1])


def test_soft_clipping_bends_peaks_and_leaves_order():
    out = one(lib.SoftClip(knee=(1.0, 1.0)))
    assert (np.ptp(out, axis=1) < np.ptp(X_BCT[0], axis=1)).all() and out.mean(1) == pytest.approx(X_BCT[0].mean(1), abs=0.05)
    order = np.argsort(X_BCT[0, 0])
    assert (np.diff(out[0, order]) >= -1e-12).all()


def test_a_dropout_is_a_straight_line():
    out = one(lib.Dropout(count=(1, 1), seconds=(0.3, 0.3)))
    changed = np.flatnonzero(out[0] != X_BCT[0, 0])
    assert 0 < np.ptp(changed) <= 0.3 * FS
    np.testing.assert_allclose(np.diff(out[0, changed[0] - 1 : changed[-1] + 2], 2), 0, atol=1e-9)


def test_crops_stretch_and_resampling_changes_the_rate():
    def crossings(x_T):
        return np.count_nonzero(np.diff(np.sign(x_T)))

    assert crossings(one(lib.CropStretch(keep=(0.5, 0.5)))[0]) == pytest.approx(crossings(X_BCT[0, 0]) / 2, abs=1)
    assert crossings(one(lib.Resample(factor=(0.5, 0.5)))[0]) == pytest.approx(crossings(X_BCT[0, 0]) / 2, abs=1)
    np.testing.assert_allclose(one(lib.Resample(factor=(1.0, 1.0))), X_BCT[0])


def test_a_raw_store_is_filtered_after_it():
    np.testing.assert_allclose(then_filter(X_BCT, FS, (0.5, 8.0)), bandpass(X_BCT, FS, 0.5, 8.0))
    np.testing.assert_array_equal(then_filter(X_BCT, FS, None), X_BCT)
    assert then_filter(np.zeros((2, 1, 1250)), 125.0, (0.5, 12.0), "papagei").shape == (2, 1, 1250)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: augment(X_BCT[0], FS, (), seed=0, epoch=0, index_B=[0]), "x_BCT must be"),
        (lambda: augment(X_BCT, FS, (), seed=0, epoch=0, index_B=[0]), "with an index each"),
        (lambda: augment(X_BCT * np.nan, FS, (), seed=0, epoch=0, index_B=range(6)), "first in window 0"),
        (lambda: augment(X_BCT, FS, (), seed=-1, epoch=0, index_B=range(6)), "must not be negative"),
        (lambda: lib.BandNoise(snr_db=(25, 10)), r"snr_db must be \(low, high\)"),
        (lambda: lib.CropStretch(keep=(0.0, 1.0)), r"keep must lie in \(0, 1\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
