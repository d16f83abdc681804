"""A padded window is the shorter window: whatever stands in places that hold nothing real is looked at by none, in encoders and decoders.

Every weight is moved off its start first, so that no head or gate that starts at 0 hides what it reads. The shorter network has the same weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from physio_models.cwt_mae import CwtMaeConfig, CwtMaePairConfig, CwtMaeShape
from physio_models.decoder import TokenDecoderConfig
from physio_models.dit import DitConfig
from physio_models.nepa import NepaConfig
from physio_models.objectives.jepa import Predictor
from physio_models.patches import visible
from physio_models.st_mem import StMem, StMemConfig
from physio_models.ti_mae import TiMaeConfig
from physio_models.ti_mae_mamba import TiMaeMambaConfig
from physio_models.vit import VitConfig
from physio_models.vit_mae import MaeVitConfig, MlaeConfig, MtaeConfig

MASKED: dict[str, Any] = {
    "mtae": MtaeConfig.preset("tiny", n_samples=200, patch=8),
    "st_mem": StMemConfig.preset("tiny", n_samples=200, patch=8),
    "ti_mae": replace(TiMaeConfig.preset("tiny"), n_channels=3, n_samples=40),
    "ti_mae patches": replace(TiMaeConfig.preset("tiny"), n_channels=3, n_samples=40, patch=2, cls=False),
    "ti_mae cross": replace(TiMaeConfig.preset("tiny"), n_channels=3, n_samples=40, decoder="cross"),
    "ti_mae_mamba": replace(TiMaeMambaConfig.preset("tiny"), n_channels=3, n_samples=40),
}
ENCODERS: dict[str, Any] = MASKED | {
    "vit": VitConfig.preset("tiny", n_samples=200, patch=8),
    "dit": DitConfig.preset("tiny"),
    "dit lead": DitConfig.preset("tiny", condition="lead"),
    "nepa": NepaConfig.preset("tiny"),
    "nepa learned": NepaConfig.preset("tiny", positions="learned"),
}
SCALOGRAMS: dict[str, CwtMaeShape] = {
    "v3": CwtMaeConfig.preset("tiny", n_channels=2, n_samples=200),
    "v1": CwtMaeConfig.preset("tiny", version="v1", n_channels=2, n_samples=200),
    "pair": CwtMaePairConfig.preset("tiny", n_samples=200),
}


def stirred(module: nn.Module, size: float = 0.1) -> nn.Module:
    """Every weight moved a little, in eval mode."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=draw))
    return module.eval()


def same_weights(small: nn.Module, whole: nn.Module) -> nn.Module:
    """The first of two networks with the weights of the second, tables of positions and leads cut to its own length."""
    given = {**whole.state_dict(), **dict(whole.named_buffers())}
    for own in (small.named_parameters(), small.named_buffers()):
        for key, tensor in own:
            tensor.data.copy_(given[key][tuple(slice(size) for size in tensor.shape)])
            if isinstance(small, StMem) and key.endswith("positions_ND"):
                tensor.data[-1] = given[key][-1]  # that of the separator after a lead, however long
    return small.eval()


def pair(cfg: Any) -> tuple[nn.Module, nn.Module, int, int]:
    """A network, the one for three fifths of its window, that many samples and that many tokens (of a lead)."""
    torch.manual_seed(0)
    n = 3 * cfg.n_samples // 5
    patch = getattr(cfg, "patch_samples", None) or cfg.patch
    whole, small = stirred(cfg.build()), replace(cfg, n_samples=n, patch=patch).build()
    return whole, same_weights(small, whole), n, n // patch


def window(cfg: Any, n: int, n_items: int = 2) -> tuple[Tensor, Tensor]:
    x_BCT = torch.randn(n_items, cfg.n_channels, cfg.n_samples, generator=torch.Generator().manual_seed(1))
    return x_BCT, (torch.arange(cfg.n_samples) < n).expand(n_items, -1)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_features_of_a_padded_window_are_those_of_the_shorter_one(name: str):
    whole, small, n, n_tokens = pair(ENCODERS[name])
    x_BCT, valid_BT = window(whole.cfg, n)
    padded, short = whole.encode(x_BCT, valid_BT=valid_BT), small.encode(x_BCT[..., :n])
    torch.testing.assert_close(padded.pooled_BD, short.pooled_BD, rtol=1e-4, atol=1e-5)
    leads = 3 if name == "st_mem" else 1
    for level, expected in zip(padded.levels.values(), short.levels.values(), strict=True):
        torch.testing.assert_close(level.unflatten(1, (leads, -1))[:, :, :n_tokens].flatten(1, 2), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(padded.pooled_BD, whole.encode(x_BCT).pooled_BD, atol=1e-3)


@pytest.mark.parametrize("name", MASKED)
def test_the_reconstruction_of_a_padded_window_is_that_of_the_shorter_one(name: str):
    """Hidden and visible places stand before the end and after it."""
    whole, small, n, n_tokens = pair(MASKED[name])
    x_BCT, valid_BT = window(whole.cfg, n)
    mask = torch.rand(2, *whole.mask_axes.values(), generator=torch.Generator().manual_seed(2)) < 0.5
    assert all(part.any() and not part.all() for part in (mask[..., :n_tokens], mask[..., n_tokens:]))
    padded, short = whole(x_BCT, mask, valid_BT=valid_BT), small(x_BCT[..., :n], mask[..., :n_tokens])
    torch.testing.assert_close(padded.pred_BCT[..., :n], short.pred_BCT, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole(x_BCT, mask).pred_BCT[..., :n], short.pred_BCT, atol=1e-3)


@pytest.mark.parametrize("cfg", [MaeVitConfig.preset("tiny", n_channels=6), MlaeConfig.preset("tiny", n_channels=6)])
def test_the_reconstruction_with_absent_leads_is_that_of_fewer_leads(cfg: Any):
    torch.manual_seed(0)
    whole, small = stirred(cfg.build()), replace(cfg, n_channels=4).build()
    same_weights(small, whole)
    x_BCT, _ = window(cfg, 200)
    mask = torch.tensor([[True, False, False, True, True, False], [False, True, True, False, True, False]])
    present_BC = (torch.arange(6) < 4).expand(2, -1)
    fewer, absent = small(x_BCT[:, :4], mask[:, :4]).pred_BCT, whole(x_BCT, mask, channel_present_BC=present_BC).pred_BCT
    torch.testing.assert_close(absent[:, :4], fewer, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole(x_BCT, mask).pred_BCT[:, :4], fewer, atol=1e-3)


@pytest.mark.parametrize("condition", ["none", "lead"])
def test_a_padded_window_is_denoised_as_the_shorter_one(condition: str):
    whole, small, n, _ = pair(DitConfig.preset("tiny", condition=condition))
    x_BCT, valid_BT = window(whole.cfg, n)
    noised, given = x_BCT[:, list(whole.cfg.generated)], x_BCT[:, [whole.cfg.lead]] if condition == "lead" else None
    level_B = torch.tensor([0.3, 0.8])
    short = small(noised[..., :n], level_B, None if given is None else given[..., :n])
    torch.testing.assert_close(whole(noised, level_B, given, valid_BT=valid_BT)[..., :n], short, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole(noised, level_B, given)[..., :n], short, atol=1e-3)


def test_the_signal_head_answers_a_padded_window_as_the_shorter_one():
    torch.manual_seed(0)
    cfg = TokenDecoderConfig.preset("tiny", head_depth=2)
    whole, small = stirred(cfg.build()), replace(cfg, n_samples=96).build()
    same_weights(small, whole)
    ids, level_B = torch.randint(0, 40, (2, 10), generator=torch.Generator().manual_seed(3)), torch.tensor([0.3, 0.8])
    noised, valid_BT = window(cfg, 96)
    short = small(ids, noised_BCT=noised[..., :96], level_B=level_B).velocity_BCT
    padded = whole(ids, noised_BCT=noised, level_B=level_B, signal_valid_BT=valid_BT).velocity_BCT
    torch.testing.assert_close(padded[..., :96], short, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole(ids, noised_BCT=noised, level_B=level_B).velocity_BCT[..., :96], short, atol=1e-3)


def test_jepas_predictor_answers_a_padded_window_as_the_shorter_one():
    """Places 0, 3 and 5 of six real ones are visible, and place 7 of four that are not."""
    torch.manual_seed(0)
    whole, small = stirred(Predictor(8, 10, 16, 2, 2)), Predictor(8, 6, 16, 2, 2)
    same_weights(small, whole)
    hidden = torch.tensor([[False, True, True, False, True, False, True, False, True, True]])
    seen = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(4))
    short = small(seen[:, :3], torch.tensor([[0, 3, 5]]), hidden[:, :6], None)
    index = torch.tensor([[0, 3, 5, 7]])
    torch.testing.assert_close(whole(seen, index, hidden, torch.arange(10)[None] < 6)[:, :6], short, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole(seen, index, hidden, None)[:, :6], short, atol=1e-3)


@pytest.mark.parametrize("name", SCALOGRAMS)
def test_the_decoder_of_scalograms_answers_padded_columns_as_the_shorter_one(name: str):
    """Five of eight columns are real; the wavelets see the end of a window, so the decoders are compared on the same tokens."""
    torch.manual_seed(0)
    cfg = SCALOGRAMS[name]
    whole, small = stirred(cfg.build()).decoder, replace(cfg, n_samples=125).build().decoder
    same_weights(small, whole)
    n, n_channels = 5 * cfg.n_rows, 1 if cfg.attention == "separate" else 2
    shown = torch.rand(2, n_channels, cfg.n_places, generator=torch.Generator().manual_seed(6)) < 0.4
    shown[..., n:] = False
    places_BK = visible(~shown.any(1)).index_BK
    places_BK = places_BK[:, : int(shown.any(1).sum(1).min())]
    shown &= torch.zeros_like(shown).scatter(2, places_BK[:, None].expand(-1, n_channels, -1), True)
    tokens = torch.randn(2, n_channels, places_BK.shape[1], cfg.width, generator=torch.Generator().manual_seed(7))
    real = (torch.arange(cfg.n_places) < n).expand(2, n_channels, -1)
    spec, time = small(tokens, places_BK, shown[..., :n], None)
    padded_spec, padded_time = whole(tokens, places_BK, shown, real)
    torch.testing.assert_close(padded_spec[:, :, :n], spec, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded_time[..., :125], time, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole(tokens, places_BK, shown, None)[0][:, :, :n], spec, atol=1e-3)


@pytest.mark.parametrize("name", SCALOGRAMS)
def test_the_decoder_of_scalograms_is_told_which_columns_are_real(name: str):
    """Moving what it knows of padded places moves no real answer; the whole network is asked, on windows with a tail."""
    cfg = SCALOGRAMS[name]
    torch.manual_seed(0)
    model = stirred(cfg.build())
    x_BCT, valid_BT = window(cfg, 125)
    mask = torch.rand(2, 2, cfg.n_places, generator=torch.Generator().manual_seed(8)) < 0.6
    n = 5 * cfg.n_rows
    before, whole = model(x_BCT, mask, valid_BT=valid_BT), model(x_BCT, mask)
    with torch.no_grad():
        model.decoder.position[n:] += torch.randn(cfg.n_places - n, cfg.decoder_width, generator=torch.Generator().manual_seed(9))
    after = model(x_BCT, mask, valid_BT=valid_BT)
    assert torch.equal(after.spec_BCNV[:, :, :n], before.spec_BCNV[:, :, :n]) and torch.equal(after.time_BCT[..., :125], before.time_BCT[..., :125])
    assert not torch.allclose(model(x_BCT, mask).spec_BCNV[:, :, :n], whole.spec_BCNV[:, :, :n], atol=1e-3)
