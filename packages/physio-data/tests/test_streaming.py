"""Streams: what they give must not depend on chunks, must equal SciPy on the whole signal, and never reach across a gap."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, firwin, lfilter, sosfilt, sosfilt_zi

from physio_data.streaming import ClockError, NotFiniteError, RateError, Stream, StreamError, StreamPlan, causal_prepare

PLAN = {"channels": ("MLII", "V1"), "fs_in": 360.0, "fs": 100.0, "n_samples": 300, "hop": 200, "band": (0.5, 40.0)}


def signal(n=9000, channels=2, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(n) / 360
    return np.stack([np.sin(2 * np.pi * (1.1 + c) * t) + 0.1 * rng.standard_normal(n) + 5 * c for c in range(channels)])


def streamed(x_CT, plan, sizes, **push):
    """Windows of a signal pushed in chunks of the sizes, over and over."""
    stream, done, at = Stream(plan), [], 0
    for size in itertools.cycle(sizes):
        if at >= x_CT.shape[1]:
            return [*done, *stream.close()]
        done += stream.push(x_CT[:, at : at + size], **push)
        at += size


def same(windows, start_N, x_NCT):
    assert [w.start for w in windows] == start_N.tolist()
    assert np.array_equal(np.stack([w.x_CT for w in windows]), x_NCT)


@pytest.mark.parametrize("rates", [(360, 100), (250, 250), (125, 500), (128, 100), (1000, 25)])
@pytest.mark.parametrize("sizes", [(1,), (7,), (250,), (100_000,), (3, 999, 1, 64)])
def test_chunks_of_any_size_give_the_windows_of_the_whole_signal(rates, sizes):
    plan = StreamPlan(**PLAN | {"fs_in": rates[0], "fs": rates[1], "band": (0.5, min(rates) * 0.4)})
    x_CT = signal(4000)
    start_N, x_NCT = causal_prepare(x_CT, plan)
    assert len(start_N) == (-(-4000 * rates[1] // rates[0]) - 300) // 200 + 1 if 4000 * rates[1] // rates[0] >= 300 else not len(start_N)
    if len(start_N):
        same(streamed(x_CT, plan, sizes), start_N, x_NCT)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=6), st.lists(st.tuples(st.integers(0, 2500), st.integers(1, 40)), max_size=3), st.integers(0, 3))
def test_with_gaps_anywhere_too(sizes, gaps, settle):
    plan = StreamPlan(**PLAN | {"n_samples": 100, "hop": 60}, on_nan="gap", settle_s=settle / 2)
    x_CT = signal(2600)
    for begin, length in gaps:
        x_CT[0, begin : begin + length] = np.nan
    start_N, x_NCT = causal_prepare(x_CT, plan)
    windows = streamed(x_CT, plan, sizes)
    assert [w.start for w in windows] == start_N.tolist()
    assert all(np.array_equal(w.x_CT, x) for w, x in zip(windows, x_NCT, strict=True))
    for begin, length in gaps:  # in seconds: no window holds a sample that was lost
        assert all(w.start / 100 + 0.99 < begin / 360 or w.start / 100 > (min(begin + length, 2600) - 1) / 360 for w in windows)


def test_the_filter_is_scipy_s_from_a_settled_state():
    plan = StreamPlan(**PLAN | {"fs": 360.0})
    x_CT = signal()
    sos = np.concatenate([butter(1, 0.5, "highpass", fs=360, output="sos"), butter(4, 40.0, fs=360, output="sos")])
    expected_CT = np.stack([sosfilt(sos, x_T, zi=sosfilt_zi(sos) * x_T[0])[0] for x_T in x_CT])
    for window in streamed(x_CT, plan, (501,)):
        assert np.array_equal(window.x_CT, expected_CT[:, window.start : window.start + 300].astype(np.float32))


def test_the_resampler_is_a_sum_over_the_input_around_each_output():
    up, down = 5, 18
    h = firwin(2 * 32 * down + 1, 0.92 / down, window=("kaiser", 8.0))
    x_T = signal(2000, 1)[0]
    padded_T = np.concatenate([np.full(200, x_T[0]), x_T, np.full(200, x_T[-1])])
    plan = StreamPlan(**PLAN | {"channels": ("I",), "band": None, "n_samples": 500, "hop": 500})
    (window,) = streamed(x_T[None], plan, (77,))
    i = np.arange(len(padded_T))
    for m in (0, 3, 101, 498):
        offset = m * down + len(h) // 2 - (i - 200) * up
        inside = (offset >= 0) & (offset < len(h))
        weight = h[offset[inside]]
        assert window.x_CT[0, m] == pytest.approx(weight @ padded_T[inside] / weight.sum(), abs=1e-6)


def test_an_offset_makes_neither_step_nor_ripple():
    plan = StreamPlan(**PLAN | {"band": (None, 40.0)})
    windows = streamed(np.full((2, 5000), 1000.0), plan, (100,))
    assert all(np.abs(w.x_CT - 1000).max() < 1e-3 for w in windows)


def test_a_window_comes_as_soon_as_it_is_decided():
    plan = StreamPlan(**PLAN | {"fs": 360.0})
    stream, x_CT = Stream(plan), signal()
    assert not stream.push(x_CT[:, :299])
    assert [w.start for w in stream.push(x_CT[:, 299:300])] == [0]
    delayed = Stream(StreamPlan(**PLAN))
    last = 299 / 100 + delayed.plan.delay_s
    n = int(np.floor(last * 360 + 1e-9)) + 1
    assert not delayed.push(x_CT[:, : n - 1])
    assert [w.start for w in delayed.push(x_CT[:, n - 1 : n])] == [0]


def test_times_make_gaps_and_a_slow_drift_makes_none():
    plan = StreamPlan(**PLAN | {"fs": 360.0, "band": None})
    x_CT = signal(3000)
    time_T = 7.0 + np.arange(3000) / 360 * 1.0001
    assert [w.start for w in Stream(plan).push(x_CT, time_T)] == list(range(0, 2701, 200))
    time_T[1000:] += 100 / 360
    stream, done = Stream(plan), []
    for at in range(0, 3000, 13):
        done += stream.push(x_CT[:, at : at + 13], time_T[at : at + 13])
    assert [w.start for w in done] == [*range(0, 701, 200), *range(1200, 2801, 200)]
    assert np.array_equal(done[4].x_CT, x_CT[:, 1100:1400].astype(np.float32))
    assert stream.n_seen == 3100


def test_a_known_gap_ends_the_windows_before_it():
    stream, x_CT = Stream(StreamPlan(**PLAN)), signal()
    first = stream.push(x_CT[:, :1080])  # 3 s: the window waits for what the resampler looks ahead
    assert not first and [w.start for w in stream.gap(36)] == [0]
    with pytest.raises(ValueError, match="n_lost must be at least one"):
        stream.gap(0)


@pytest.mark.parametrize(
    ("x_Cn", "time_s", "error", "says"),
    [
        (np.array([[1.0, np.nan], [0, 0]]), None, NotFiniteError, "MLII is nan at sample 41 of the stream.*on_nan='gap'"),
        (np.zeros((2, 2)), 0.05, ClockError, "jumps back from .* begin a new Stream"),
        (np.zeros((2, 2)), np.array([1.0, np.nan]), ClockError, "not finite at sample 1"),
        (np.zeros((2, 90)), 0.12 + np.arange(90) / 250, RateError, "about 250 Hz.*opened at 360 Hz.*fs_in=250"),
        (np.zeros((2, 90)), 0.12 + np.arange(90) / 720, RateError, "about 720 Hz"),
        (np.zeros((1, 4)), None, ValueError, "2 channels.*MLII"),
    ],
)
def test_what_is_wrong_is_refused_with_its_remedy_and_changes_nothing(x_Cn, time_s, error, says):
    plan = StreamPlan(**PLAN)
    stream, good = Stream(plan), signal(40)
    stream.push(good, 0.0)
    with pytest.raises(error, match=says):
        stream.push(x_Cn, time_s)
    assert stream.n_seen == 40


def test_a_closed_stream_takes_nothing_more():
    stream = Stream(StreamPlan(**PLAN))
    stream.close()
    with pytest.raises(StreamError, match="make a new Stream"):
        stream.push(np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"band": (0.5, 200.0)}, "band must satisfy 0 < low < high < fs_in/2 = 180 Hz"),
        ({"band": (40.0, 0.5)}, "band must satisfy"),
        ({"fs": 0.0}, "fs must be a positive rate"),
        ({"hop": 0}, "n_samples and hop"),
        ({"notch_hz": 180.0}, "notch_hz"),
        ({"order_low": 0}, "order_low and order_high"),
        ({"on_nan": "fill"}, "on_nan must be error or gap"),
        ({"channels": "MLII"}, "channels must be a tuple"),
        ({"settle_s": -1.0}, "settle_s"),
    ],
)
def test_a_plan_checks_itself(change, says):
    with pytest.raises(ValueError, match=says):
        StreamPlan(**PLAN | change)


def test_memory_does_not_grow_with_the_stream():
    import tracemalloc

    stream, x_CT = Stream(StreamPlan(**PLAN)), signal(36_000)
    stream.push(x_CT)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(20):
        stream.push(x_CT)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 200_000


def test_the_filter_with_state_is_the_one_of_lfilter():
    x_T = signal(720, 1)[0]
    b, a = butter(2, 30.0, fs=360)
    plan = StreamPlan(**PLAN | {"channels": ("I",), "fs": 360.0, "band": (None, 30.0), "order_high": 2, "n_samples": 720, "hop": 720})
    x_T[0] = 0.0  # so that a settled state is an empty one
    assert streamed(x_T[None], plan, (11,))[0].x_CT[0] == pytest.approx(lfilter(b, a, x_T), abs=1e-6)
