from dataclasses import replace

import numpy as np
import pytest
import pywt
import torch

from physio_models.cwt_frontend import differences, scalogram, to_spec_patches, views, zscore
from physio_models.cwt_mae import CwtMaeConfig

TINY = CwtMaeConfig.preset("tiny", n_channels=2, n_samples=200)


def noise(n_items: int = 2, n_samples: int = 200) -> torch.Tensor:
    return torch.randn(n_items, 2, n_samples, generator=torch.Generator().manual_seed(0)) * 5 + 3


def test_planes_are_the_signal_and_its_two_differences():
    x = noise(1).double()
    expected = np.zeros((2, 3, 200))
    for channel, row in enumerate(x[0].numpy()):
        wide = np.concatenate([row[:1], row, row[-1:]])
        expected[channel] = [row, np.concatenate([[0], np.diff(row)]), wide[2:] - 2 * row + wide[:-2]]
    np.testing.assert_allclose(differences(x, 2)[0].numpy(), expected, atol=1e-12)
    assert differences(x, 0).shape == (1, 2, 1, 200) and differences(x, 1).shape == (1, 2, 2, 200)


@pytest.mark.parametrize(("wavelet", "name"), [("ricker", "mexh"), ("morlet", "cmor1.5-1.0")])
def test_a_scalogram_is_the_zscored_transform(wavelet: str, name: str):
    cfg = replace(TINY, wavelet=wavelet, definition="pywt", differences=0)
    z = zscore(noise()).double()
    y = np.abs(pywt.cwt(z[0, 1].numpy(), cfg.scales, name)[0]) if wavelet == "morlet" else pywt.cwt(z[0, 1].numpy(), cfg.scales, name)[0]
    np.testing.assert_allclose(scalogram(z, cfg)[0, 1, 0].numpy(), (y - y.mean()) / y.std(), atol=1e-5)


def test_patches_hold_plane_then_scale_then_sample_in_columns_of_time():
    cfg = replace(TINY, n_samples=60)
    y = torch.arange(3 * 16 * 60.0).view(1, 1, 3, 16, 60)
    patches = to_spec_patches(y, cfg)
    assert patches.shape == (1, 1, 2 * 2, 3 * 8 * 25)
    for place, values in enumerate(patches[0, 0]):
        column, row = divmod(place, 2)
        torch.testing.assert_close(values.view(3, 8, 25), y[0, 0, :, 8 * row : 8 * row + 8, 25 * column : 25 * column + 25])


def test_what_lies_past_a_short_tail_changes_nothing():
    x, valid_BT = noise(), (torch.arange(200) < 130).expand(2, 200)
    spec, time = views(x.masked_fill(~valid_BT[:, None], 0.0), TINY, valid_BT)
    again = views(torch.where(valid_BT[:, None], x, 1e4), TINY, valid_BT)
    torch.testing.assert_close(again.time_BCWV, time)
    torch.testing.assert_close(again.spec_BCNV, spec)
    real = time.flatten(2)[..., :130]
    torch.testing.assert_close(real.mean(-1), torch.zeros(2, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(real.var(-1, correction=0), torch.ones(2, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("wavelet", ["ricker", "morlet"])
def test_the_gradient_of_a_flat_record_is_finite(wavelet: str):
    cfg = replace(TINY, wavelet=wavelet, definition="pywt")
    x = torch.full((1, 2, 200), 0.3, requires_grad=True)
    spec, time = views(x, cfg)
    (spec.sum() + time.sum()).backward()
    assert x.grad.isfinite().all() and spec.isfinite().all()


@pytest.mark.parametrize("n_samples", [25, 26, 49, 100])
@pytest.mark.parametrize("spacing", ["linear", "log"])
def test_windows_shorter_than_the_widest_wavelet_go_through(n_samples: int, spacing: str):
    """The original fails to mirror a signal that is shorter than half of its kernel."""
    cfg = replace(TINY, n_scales=64, spacing=spacing, n_samples=n_samples)
    assert views(noise(n_samples=n_samples), cfg).spec_BCNV.isfinite().all()


def test_autocast_does_not_reach_the_front_end():
    x = noise()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = views(x.bfloat16(), TINY)
    torch.testing.assert_close(within.spec_BCNV, views(x.bfloat16().float(), TINY).spec_BCNV)
