import math

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_models.cwt import cwt, fast_length, linear_scales, log_scales, peak_frequency

PYWT_NAMES = {"ricker": "mexh", "morlet": "cmor1.5-1.0", "morlet_real": "morl"}
SCALES = {"counted": np.arange(1, 65), "linear": np.array(linear_scales(64)), "log": np.geomspace(0.6, 90, 40)[::-1]}


def signals(n_samples: int, n: int = 3, seed: int = 0) -> np.ndarray:
    """Noise on a slow wave on an offset."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, n_samples)) + 3 * np.sin(np.arange(n_samples) / 40) + 0.7


def by_pywt(x_BL: np.ndarray, scales, wavelet: str) -> np.ndarray:
    return np.moveaxis(pywt.cwt(x_BL.astype(np.float64), scales, PYWT_NAMES[wavelet], method="conv")[0], 0, 1)


def mirrored_bank(x_BL: np.ndarray, scales) -> np.ndarray:
    """CWT-MAE's bank by sums: reflect-padded, cross-correlated with the sampled Ricker wavelet of one width."""
    n_samples = x_BL.shape[1]
    width = min(int(10 * max(scales)), n_samples)
    width += width % 2 == 0
    t = np.arange(width) - (width - 1) / 2
    padded = np.pad(x_BL, ((0, 0), (width // 2, width // 2)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=1)
    bank = np.stack([2 / (math.sqrt(3 * a) * math.pi**0.25 + 1e-6) * (1 - t**2 / a**2) * np.exp(-(t**2) / (2 * a**2)) for a in scales])
    return np.einsum("blk,sk->bsl", windows, bank)


def rms(a: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(a) ** 2)))


@pytest.mark.parametrize("wavelet", PYWT_NAMES)
@pytest.mark.parametrize(("scales", "n_samples"), [("counted", 1000), ("linear", 333), ("log", 2000), ("log", 50)])
def test_float64_is_pywt_and_float32_within_5e_7(wavelet: str, scales: str, n_samples: int):
    x_BL = signals(n_samples)
    expected = by_pywt(x_BL, SCALES[scales], wavelet)
    exact = cwt(torch.from_numpy(x_BL), SCALES[scales], wavelet=wavelet)
    assert exact.dtype == (torch.complex128 if wavelet == "morlet" else torch.float64)
    np.testing.assert_allclose(exact.numpy(), expected, atol=1e-11, rtol=0)
    single = cwt(torch.from_numpy(x_BL).float(), SCALES[scales], wavelet=wavelet)
    assert rms(single.numpy() - by_pywt(x_BL.astype(np.float32), SCALES[scales], wavelet)) <= 5e-7 * rms(expected)


@pytest.mark.parametrize("n_samples", [1000, 631, 400, 37, 2, 1])
def test_the_reference_definition_is_the_mirrored_bank_at_any_length(n_samples: int):
    x_BL, scales = signals(n_samples), linear_scales(64)
    expected = mirrored_bank(x_BL, scales)
    np.testing.assert_allclose(cwt(torch.from_numpy(x_BL), scales, definition="reference").numpy(), expected, atol=1e-10, rtol=0)
    single = cwt(torch.from_numpy(x_BL).float(), scales, definition="reference")
    assert rms(single.numpy() - expected) <= 5e-7 * rms(expected)


def test_a_reference_wavelet_has_unit_energy_and_the_first_scale_is_a_delta():
    impulse = torch.zeros(1, 2001, dtype=torch.float64)
    impulse[0, 1000] = 1
    y = cwt(impulse, linear_scales(64), definition="reference")[0]
    torch.testing.assert_close(y[5:60].square().sum(-1), torch.ones(55, dtype=torch.float64), atol=1e-3, rtol=0)
    assert float(y[0, 1000]) == pytest.approx(2.74, abs=0.01) and int((y[0].abs() > 1e-9).sum()) == 1


@pytest.mark.parametrize("wavelet", PYWT_NAMES)
def test_a_tone_answers_most_at_the_scale_of_its_frequency(wavelet: str):
    fs, tone_hz = 100.0, 7.0
    scales = log_scales(200, (0.5, 40.0), fs, wavelet)
    x_L = torch.sin(2 * torch.pi * tone_hz * torch.arange(3000) / fs)
    power_S = cwt(x_L, scales, wavelet=wavelet, output="magnitude")[:, 1000:2000].square().mean(-1) / torch.tensor(scales)  # unit gain at every peak
    loudest_hz = fs * peak_frequency(scales[int(power_S.argmax())], wavelet)
    assert loudest_hz == pytest.approx(tone_hz, rel=0.03)


def test_log_scales_fall_through_the_band_by_equal_ratios():
    hz = np.array([100 * peak_frequency(scale) for scale in log_scales(5, (0.5, 40.0), 100.0)])
    np.testing.assert_allclose(hz, 40 * (0.5 / 40) ** (np.arange(5) / 4))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.lists(st.floats(0.2, 80), min_size=1, max_size=7), st.integers(0, 3))
def test_any_length_and_any_order_of_scales(n_samples: int, scales: list[float], seed: int):
    x_BL = signals(n_samples, 2, seed)
    expected = by_pywt(x_BL, scales, "ricker")
    np.testing.assert_allclose(cwt(torch.from_numpy(x_BL), scales).numpy(), expected, atol=1e-10, rtol=0)
    np.testing.assert_allclose(cwt(torch.from_numpy(x_BL), scales, definition="reference").numpy(), mirrored_bank(x_BL, scales), atol=1e-10, rtol=0)


def test_leading_axes_stay_and_blocks_do_not_show():
    x = torch.from_numpy(signals(700, 60)).float().reshape(5, 12, 700)
    together = cwt(x, SCALES["counted"], wavelet="morlet", output="magnitude")
    assert together.shape == (5, 12, 64, 700)
    torch.testing.assert_close(together[3, 7], cwt(x[3, 7], SCALES["counted"], wavelet="morlet", output="magnitude"))


@pytest.mark.parametrize(
    ("wavelet", "definition", "output"), [("ricker", "pywt", "coefficients"), ("ricker", "reference", "coefficients"), ("morlet", "pywt", "magnitude")]
)
def test_gradients_are_right(wavelet: str, definition: str, output: str):
    x_BL = torch.from_numpy(signals(23, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cwt(x, [0.7, 1.5, 4.0, 9.0], wavelet=wavelet, definition=definition, output=output), x_BL)


@pytest.mark.parametrize("wavelet", PYWT_NAMES)
def test_the_gradient_of_a_flat_record_is_finite(wavelet: str):
    x_BL = torch.zeros(2, 100, requires_grad=True)
    cwt(x_BL, SCALES["counted"], wavelet=wavelet, output="magnitude").sum().backward()
    assert x_BL.grad.isfinite().all()


def test_a_magnitude_is_the_same_with_and_without_gradients():
    x_BL = torch.from_numpy(signals(200)).float()
    by_abs = cwt(x_BL.requires_grad_(), SCALES["log"], wavelet="morlet", output="magnitude").detach()
    torch.testing.assert_close(cwt(x_BL.detach(), SCALES["log"], wavelet="morlet", output="magnitude"), by_abs)


@pytest.mark.parametrize("output", ["coefficients", "magnitude"])
@pytest.mark.parametrize("wavelet", PYWT_NAMES)
def test_a_result_can_be_written_into_memory_one_has(wavelet: str, output: str):
    x = torch.from_numpy(signals(200)).float().reshape(1, 3, 200)
    expected = cwt(x, SCALES["log"], wavelet=wavelet, output=output)
    out = torch.full_like(expected, 7)
    assert cwt(x, SCALES["log"], wavelet=wavelet, output=output, out=out).data_ptr() == out.data_ptr()
    assert torch.equal(out, expected)
    with pytest.raises(ValueError, match="out must be contiguous"):
        cwt(x, SCALES["log"], wavelet=wavelet, output=output, out=out[..., 1:])
    with pytest.raises(ValueError, match="out must be None"):
        cwt(x.requires_grad_(), SCALES["log"], wavelet=wavelet, output=output, out=out)


def test_half_precision_and_autocast_are_computed_in_float32():
    x_BL = torch.from_numpy(signals(300)).float().bfloat16()
    expected = cwt(x_BL.float(), SCALES["log"])
    assert torch.equal(cwt(x_BL, SCALES["log"]), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = cwt(x_BL, SCALES["log"])
    assert y.dtype == torch.float32 and torch.equal(y, expected)


@pytest.mark.slow
def test_the_registered_operators_keep_their_promises():
    x_BL = torch.from_numpy(signals(40, 2)).float().requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for wavelet in ("ricker", "morlet"):
        torch.library.opcheck(torch.ops.physio_models.cwt.default, (x_BL, [1.0, 3.0], wavelet, "pywt"), test_utils=checks)
    torch.library.opcheck(torch.ops.physio_models.cwt_magnitude.default, (x_BL.detach(), [1.0, 3.0], "morlet", "pywt"), test_utils=checks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same():
    x_BL = torch.from_numpy(signals(1000)).float()
    for wavelet in PYWT_NAMES:
        here, there = (cwt(x_BL.to(device), SCALES["counted"], wavelet=wavelet).cpu() for device in ("cpu", "cuda"))
        assert rms((here - there).numpy()) <= 5e-7 * rms(here.numpy())


@pytest.mark.parametrize("n", [1, 2, 9, 1000, 1025, 1400, 3405])
def test_fast_lengths_are_at_most_a_quarter_longer(n: int):
    length = fast_length(n)
    assert n <= length <= max(8, 1.25 * n)
    while length % 2 == 0:
        length //= 2
    assert length in (1, 3, 5, 7, 9)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scales": []}, "scales"),
        ({"scales": [1.0, -2.0]}, "scales"),
        ({"scales": [0.05]}, "0.0625"),
        ({"wavelet": "haar"}, "wavelet"),
        ({"wavelet": "morlet", "definition": "reference"}, "wavelet"),
        ({"definition": "scipy"}, "definition"),
        ({"output": "power"}, "output"),
        ({"x": torch.zeros(2, 0)}, "x must"),
        ({"x": torch.zeros(2, 5, dtype=torch.long)}, "x must"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict, match: str):
    with pytest.raises(ValueError, match=match):
        cwt(**{"x": torch.zeros(2, 50), "scales": [1.0, 2.0], **changes})


@pytest.mark.parametrize("band", [(0.0, 10.0), (5.0, 2.0), (1.0, 50.0)])
def test_a_band_outside_the_rate_is_refused(band: tuple[float, float]):
    with pytest.raises(ValueError, match="band_hz"):
        log_scales(8, band, 100.0)
