import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_data import windows


@pytest.mark.parametrize(("window_s", "fs", "n"), [(10, 25, 250), (0.1, 25, 3), (0.3, 25, 8), (1.005, 100, 101), (10, 62.4725, 625), (0.02, 25, 1)])
def test_seconds_become_samples_rounded_half_up(window_s, fs, n):
    assert windows.n_samples(window_s, fs) == n


@pytest.mark.parametrize(("window_s", "fs"), [(0.019, 25), (-1, 25), (math.nan, 25), (1, 0), (1, math.inf)])
def test_a_window_without_a_sample_is_refused(window_s, fs):
    with pytest.raises(ValueError, match="window_s"):
        windows.n_samples(window_s, fs)


@given(n_total=st.integers(0, 300), length=st.integers(1, 80), hop=st.integers(1, 80))
def test_windows_tile_the_signal_and_no_further_one_fits(n_total, length, hop):
    starts_N = windows.starts(n_total, length, hop)
    assert starts_N.tolist() == [s for s in range(0, n_total, hop) if s + length <= n_total]


@given(length=st.integers(1, 20), hop=st.integers(1, 20))
def test_a_cut_holds_the_samples_it_names(length, hop):
    x_CT = np.arange(2 * 50).reshape(2, 50)
    starts_N = windows.starts(50, length, hop)
    x_NCT = windows.cut(x_CT, starts_N, length)
    assert x_NCT.flags.c_contiguous
    assert np.array_equal(x_NCT, np.stack([x_CT[:, s : s + length] for s in starts_N]))


def test_nothing_is_padded():
    with pytest.raises(ValueError, match=r"\[8, 12\) reaches outside"):
        windows.cut(np.zeros((1, 10)), np.array([0, 8]), 4)
    assert windows.cut(np.zeros((3, 10)), np.empty(0, np.int64), 4).shape == (0, 3, 4)
    with pytest.raises(ValueError, match="hop"):
        windows.starts(10, 5, 0)
