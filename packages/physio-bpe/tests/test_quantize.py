import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from physio_bpe import QUANTIZERS, FixedRange, LeadMinMax, MuLaw, Percentile, RecordMinMax, Scale, SignalError, dequantize, quantize
from physio_bpe.quantize import first_byte, from_plain, to_plain

SIGNALS = arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 30)), elements=st.floats(-1000, 1000, width=32))
KINDS = st.sampled_from(
    [RecordMinMax, LeadMinMax, Percentile, lambda n_levels: Percentile(n_levels=n_levels, per="lead", lower=0, upper=100), FixedRange, MuLaw]
)


def naive(x_CT, n_levels=26):
    """ECG-Byte's rule, sample by sample, in float32."""
    low, high = np.float32(x_CT.min()), np.float32(x_CT.max())
    span = np.float32(np.float32(high - low) + np.float32(1e-6))
    levels = [min(int(np.floor(np.float32(n_levels) * np.clip(np.float32(v - low) / span, 0, 1))), n_levels - 1) for v in x_CT.reshape(-1)]
    return np.array(levels).reshape(x_CT.shape)


def test_the_letters_of_ecg_byte(ecg_byte):
    fixture = ecg_byte["symbolise"]
    made = quantize(np.array(fixture["ecg"], np.float32), RecordMinMax())
    assert made.symbols.tobytes().decode() == fixture["symbols"]
    assert np.all(made.scale.low == np.float32(fixture["min"]))
    assert np.allclose(made.scale.low + made.scale.span, fixture["max"], atol=1e-5)
    assert not made.n_clipped.any() and not made.n_filled.any()


@given(x_NCT=SIGNALS, n_levels=st.integers(2, 256))
def test_minmax_is_the_published_rule_at_any_size(x_NCT, n_levels):
    made = quantize(x_NCT, RecordMinMax(n_levels=n_levels))
    assert np.array_equal(made.symbols - first_byte(n_levels), np.stack([naive(x_CT, n_levels) for x_CT in x_NCT]))
    by_lead = quantize(x_NCT, LeadMinMax(n_levels=n_levels)).symbols - first_byte(n_levels)
    assert np.array_equal(by_lead, np.stack([[naive(x_T[None], n_levels)[0] for x_T in x_CT] for x_CT in x_NCT]))


@given(x_NCT=SIGNALS, kind=KINDS, n_levels=st.integers(2, 256))
def test_what_is_not_clipped_comes_back_within_half_a_bin(x_NCT, kind, n_levels):
    quantizer = kind(n_levels=n_levels)
    made = quantize(x_NCT, quantizer)
    back_NCT = dequantize(made.symbols, quantizer, made.scale)
    low, span = (part[..., None].astype(np.float64) for part in made.scale)
    u_NCT, v_NCT = (x_NCT - low) / span, (back_NCT - low) / span
    inside = (u_NCT >= 0) & (u_NCT <= 1)
    if quantizer.mu:  # half a bin on the curve
        u_NCT, v_NCT = (np.sign(2 * w - 1) * np.log1p(quantizer.mu * np.abs(2 * w - 1)) / np.log1p(quantizer.mu) / 2 for w in (u_NCT, v_NCT))
    rounding = 4e-7 * (1 + np.abs(low) / span) * (1 + quantizer.mu)  # float32, of a value that may be far from 0 in a small range
    assert (np.abs(u_NCT - v_NCT) <= 0.5 / n_levels + rounding)[inside].all()
    near = 4e-7 * (1 + np.abs(low) / span)
    surely_outside = ((x_NCT - low) / span < -near) | ((x_NCT - low) / span > 1 + near)
    maybe_outside = ((x_NCT - low) / span < near) | ((x_NCT - low) / span > 1 - near)
    assert (surely_outside.sum(-1) <= made.n_clipped).all() and (made.n_clipped <= maybe_outside.sum(-1)).all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_survives_plain_values_and_every_level_is_used(name, waves):
    quantizer = QUANTIZERS[name](n_levels=7)
    assert from_plain(to_plain(quantizer)) == quantizer
    ramp_1T = np.linspace(-2.5, 2.5, 7000)[None]
    assert set(quantize(ramp_1T, quantizer).symbols.reshape(-1).tolist()) == set(range(7))
    one = quantize(waves[3], quantizer)
    batch = quantize(waves, quantizer)
    assert np.array_equal(batch.symbols[3], one.symbols) and np.array_equal(batch.scale.low[3], one.scale.low)


def test_a_scale_is_accepted_back_and_counts_what_lies_outside(waves):
    quantizer = RecordMinMax()
    scale = quantize(waves[0], quantizer).scale
    assert np.array_equal(quantize(waves[0], quantizer, scale).symbols, quantize(waves[0], quantizer).symbols)
    louder = quantize(waves[0] * 2, quantizer, scale)
    u_CT = (waves[0] * 2 - scale.low[:, None]) / scale.span[:, None]
    assert np.array_equal(louder.n_clipped, ((u_CT < 0) | (u_CT > 1)).sum(-1)) and louder.n_clipped.sum() > 0
    assert np.array_equal(quantize(waves, quantizer, Scale(np.float32(-1), np.float32(4))).scale.span, np.full((8, 3), 4, np.float32))


def test_fixed_range_keeps_amplitude_and_mu_law_spends_levels_near_zero():
    x_1T = np.array([[-3.0, -2.5, 0.0, 2.5, 3.0]], np.float32)
    made = quantize(x_1T, FixedRange(n_levels=10))
    assert made.symbols.tolist() == [[0, 0, 5, 9, 9]] and made.n_clipped.tolist() == [2]
    mu = MuLaw(mu=255, peak_mv=1.0, n_levels=256)
    small, large = quantize(np.array([[0.001, 0.002, 0.9, 0.901]], np.float32), mu).symbols[0].reshape(2, 2).astype(int)
    assert small[1] - small[0] >= 4 and large[1] - large[0] <= 1
    levels = dequantize(np.arange(256, dtype=np.uint8)[None], mu, Scale(np.float32([-1]), np.float32([2])))[0]
    v = 2 * (np.arange(256) + 0.5) / 256 - 1  # Recommendation G.711's expansion, float64
    assert np.allclose(levels, np.sign(v) * (256 ** np.abs(v) - 1) / 255, atol=1e-6)


def test_percentiles_clip_an_artefact():
    x_1T = np.random.default_rng(0).normal(0, 1, (1, 10_000)).astype(np.float32)
    x_1T[0, 5] = 1000.0
    made = quantize(x_1T, Percentile(lower=1, upper=99, n_levels=64))
    low, high = np.percentile(x_1T.astype(np.float64), [1, 99])
    assert made.scale.low[0] == pytest.approx(low, abs=1e-4) and made.scale.span[0] == pytest.approx(high - low, abs=1e-4)
    assert made.n_clipped[0] == ((x_1T < low) | (x_1T > high)).sum() == 200


def test_a_flat_record_is_the_first_level_and_comes_back():
    for quantizer in (RecordMinMax(), LeadMinMax(), Percentile()):
        made = quantize(np.full((2, 50), 7.25), quantizer)
        assert set(made.symbols.reshape(-1).tolist()) == {97}
        assert np.allclose(dequantize(made.symbols, quantizer, made.scale), 7.25, atol=1e-6)


@pytest.mark.parametrize("quantizer", [kind() for kind in QUANTIZERS.values()], ids=QUANTIZERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_position(quantizer, value, waves):
    x_NCT = waves.copy()
    x_NCT[5, 2, 17] = value
    with pytest.raises(SignalError, match=r"record 5, lead 2, sample 17"):
        quantize(x_NCT, quantizer)
    with pytest.raises(SignalError, match=r"lead 2, sample 17"):
        quantize(x_NCT[5], quantizer, Scale(np.float32(-1), np.float32(4)))


def test_positions_count_over_blocks():
    x_NCT = np.zeros((40, 2, 5000), np.float32)
    x_NCT[33, 1, 4999] = np.nan
    with pytest.raises(SignalError, match=r"record 33, lead 1, sample 4999"):
        quantize(x_NCT, RecordMinMax())


def test_a_policy_for_missing_samples_is_followed_and_counted():
    x_CT = np.array([[np.nan, 1, np.inf, 3, np.nan], [0, 1, 2, 3, 4]])
    held = quantize(x_CT, RecordMinMax(missing="hold"))
    assert np.array_equal(held.symbols, quantize(np.array([[1, 1, 1, 3, 3], [0, 1, 2, 3, 4]]), RecordMinMax()).symbols)
    assert held.n_filled.tolist() == [3, 0]
    zeroed = quantize(x_CT, FixedRange(low_mv=-5, high_mv=5, missing="zero"))
    assert np.array_equal(zeroed.symbols, quantize(np.array([[0, 1, 0, 3, 0], [0, 1, 2, 3, 4]]), FixedRange(low_mv=-5, high_mv=5)).symbols)
    with pytest.raises(SignalError, match="lead 1 has no finite sample"):
        quantize(np.array([[1.0, 2.0], [np.nan, np.nan]]), RecordMinMax(missing="hold"))


def test_numbers_of_every_kind_are_taken_as_float32():
    x_CT = np.arange(12).reshape(2, 6)
    expected = quantize(x_CT.astype(np.float32), RecordMinMax()).symbols
    for dtype in (np.int16, np.uint8, np.float16, np.float64, np.int64):
        assert np.array_equal(quantize(x_CT.astype(dtype), RecordMinMax()).symbols, expected)
    assert np.array_equal(quantize(np.asfortranarray(x_CT), RecordMinMax()).symbols, expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(5), "add the missing axis"),
        (np.zeros((2, 0)), "at least one"),
        (np.zeros((1, 2), complex), "complex128"),
        (np.array([["a"]]), "dtype"),
        (np.array([[1e39, 0.0]]), "inf at record 0, lead 0, sample 0"),
        (np.array([[3e38, -3e38]]), "more than float32 can hold"),
    ],
)
def test_signals_that_are_none_are_refused(x, message):
    with pytest.raises(SignalError, match=message):
        quantize(x, RecordMinMax())


def test_wrong_scales_and_symbols_are_refused(waves):
    for scale in (Scale(np.zeros(2), np.ones(2)), Scale(np.zeros(3), np.array([1, 0, 1])), Scale(np.array([0, np.nan, 0]), np.ones(3))):
        with pytest.raises(SignalError, match="scale must"):
            quantize(waves[0], RecordMinMax(), scale)
    scale = Scale(np.zeros(1), np.ones(1))
    with pytest.raises(SignalError, match=r"symbol 64 of record 0, lead 0, sample 1 is not in the alphabet 97 ... 122"):
        dequantize(np.array([[97, 64]], np.uint8), RecordMinMax(), scale)
    with pytest.raises(SignalError, match="uint8"):
        dequantize(np.array([[97, 98]]), RecordMinMax(), scale)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecordMinMax(n_levels=1), "n_levels must be a whole number from 2 to 256, got 1"),
        (lambda: LeadMinMax(n_levels=257), "n_levels"),
        (lambda: RecordMinMax(missing="skip"), "missing must be"),
        (lambda: Percentile(lower=60, upper=40), "lower < upper"),
        (lambda: Percentile(per="channel"), "per must be"),
        (lambda: FixedRange(low_mv=1, high_mv=1), "low_mv < high_mv"),
        (lambda: MuLaw(mu=0), "mu must be"),
        (lambda: MuLaw(peak_mv=-1), "peak_mv"),
        (lambda: from_plain({"name": "kmeans"}), "quantizer name must be one of record_minmax"),
        (lambda: from_plain({"name": "mu_law", "peak": 1}), "has no field 'peak'"),
        (lambda: from_plain({"name": "record_minmax", "n_levels": "26"}), "n_levels"),
        (lambda: from_plain({"name": "percentile", "per": 3}), "'per' must be str"),
    ],
)
def test_a_config_checks_itself(make, message):
    with pytest.raises(ValueError, match=message):
        make()
