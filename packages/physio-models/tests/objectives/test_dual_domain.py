from dataclasses import replace

import numpy as np
import pytest
import torch

from physio_models.cwt_frontend import scalogram, to_spec_patches
from physio_models.cwt_mae import CwtMaeConfig, CwtMaePairConfig, Reconstruction
from physio_models.objectives.dual_domain import DualDomain, scale_weights

CFG = CwtMaeConfig.preset("tiny", n_channels=2, n_samples=210)  # 8 columns of 2 rows, 10 samples left over
PAIR = CwtMaePairConfig.preset("tiny", n_samples=210)
INDEX = torch.arange(40)


def outcome(n_items: int = 3, seed: int = 0) -> Reconstruction:
    draw = torch.Generator().manual_seed(seed)
    spec, target = torch.randn(2, n_items, 2, 16, 600, generator=draw)
    time, time_target = torch.randn(2, n_items, 2, 200, generator=draw)
    mask, real = torch.rand(n_items, 2, 16, generator=draw) < 0.6, torch.rand(n_items, 2, 8, generator=draw).repeat_interleave(2, 2) < 0.9
    return Reconstruction(spec, target, time, time_target, mask, real, torch.zeros(n_items, 2, 32))


# The loss


@pytest.mark.parametrize("time_on", ["masked", "all"])
@pytest.mark.parametrize("tail", [False, True])
def test_the_loss_is_the_published_formula(time_on: str, tail: bool):
    out = outcome()
    valid_BT = (torch.arange(210) < torch.tensor([[210], [87], [140]])) if tail else None
    loss = DualDomain(time_weight=2.0, time_on=time_on).score(out, CFG, valid_BT)
    spec, time, n_spec, n_time = 0.0, 0.0, 0, 0
    numbers = [None if part is None else part.double().numpy() for part in out]
    for item, channel in np.ndindex(3, 2):
        for place in range(16):
            if numbers[4][item, channel, place] and numbers[5][item, channel, place]:
                error = (numbers[0][item, channel, place] - numbers[1][item, channel, place]) ** 2
                length = 210 if valid_BT is None else (210, 87, 140)[item]
                n_real = min(25, max(0, length - 25 * (place // 2)))  # samples of the patch before the tail
                spec += sum(weight * plane[:, :n_real].sum() / 8 for weight, plane in zip((1.0, 0.5, 0.1), error.reshape(3, 8, 25), strict=True))
                n_spec += n_real
        for sample in range(200):
            column = slice(2 * (sample // 25), 2 * (sample // 25) + 2)
            real = numbers[5][item, channel, column.start] and (valid_BT is None or bool(valid_BT[item, sample]))
            if real and (time_on == "all" or numbers[4][item, channel, column].mean() > 0.5):
                time += (numbers[2][item, channel, sample] - numbers[3][item, channel, sample]) ** 2
                n_time += 1
    assert loss.parts["spec"].item() == pytest.approx(spec / n_spec, rel=1e-5)
    assert loss.parts["time"].item() == pytest.approx(time / n_time, rel=1e-5)
    assert loss.total.item() == pytest.approx(spec / n_spec + 2 * time / n_time, rel=1e-5)


def test_autocast_leaves_the_loss_in_float32():
    exact = DualDomain(consistency_weight=0.5).score(outcome(), CFG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = DualDomain(consistency_weight=0.5).score(outcome(), CFG)
    assert within.total.dtype == torch.float32 and torch.equal(within.total, exact.total)


def test_visible_patches_and_absent_ones_get_no_gradient():
    out = outcome()
    out = out._replace(spec_BCNV=out.spec_BCNV.requires_grad_(), time_BCT=out.time_BCT.requires_grad_())
    DualDomain().score(out, CFG).total.backward()
    assert (out.spec_BCNV.grad.abs().sum(-1) > 0).equal(out.mask_BCN & out.real_BCN)
    whole_columns = (out.mask_BCN & out.real_BCN).unflatten(2, (8, 2)).all(-1)
    assert (out.time_BCT.grad != 0).equal(whole_columns.repeat_interleave(25, 2))


def test_the_padding_of_a_half_real_patch_gets_no_gradient():
    """87 samples are three columns and 12 samples of the fourth."""
    out = outcome()
    out = out._replace(spec_BCNV=out.spec_BCNV.requires_grad_(), mask_BCN=torch.ones_like(out.mask_BCN), real_BCN=torch.ones_like(out.real_BCN))
    DualDomain(consistency_weight=0.5).score(out, CFG, (torch.arange(210) < 87).expand(3, -1)).total.backward()
    scored = out.spec_BCNV.grad.unflatten(-1, (3, 8, 25)).ne(0).any(3).any(3)
    assert scored.equal((torch.arange(8)[:, None] * 25 + torch.arange(25) < 87).repeat_interleave(2, 0).expand(3, 2, -1, -1))


def test_scales_outside_the_band_weigh_less_and_all_weigh_one_on_average():
    weight = scale_weights((80.0, 40.0, 10.0, 1.0, 0.5), (1.0, 40.0)).double().numpy()
    raw = np.array([0.25, 1, 1, 1, 0.25])
    np.testing.assert_allclose(weight, raw / raw.mean(), rtol=1e-6)
    hidden = outcome()
    spec = hidden.spec_target_BCNV.clone()
    spec.unflatten(-1, (3, 8, 25))[:, :, 1::2, 0, -1] += 1.0  # the signal's own plane at the lowest scale
    out = hidden._replace(spec_BCNV=spec)
    plain, weighted = (DualDomain(scale_band_hz=band).score(out, CFG).parts["spec"] for band in (None, (2.0, 40.0)))
    expected = scale_weights(CFG.scale_hz, (2.0, 40.0))[-1]
    assert float(weighted / plain) == pytest.approx(float(expected), rel=1e-4) and expected < 0.2


def test_consistency_compares_the_scalogram_of_what_was_reconstructed():
    out = outcome()
    own = to_spec_patches(scalogram(out.time_target_BCT, CFG), CFG)
    perfect = out._replace(spec_BCNV=own, time_BCT=out.time_target_BCT.clone().requires_grad_())
    assert DualDomain(consistency_weight=0.5).score(perfect, CFG).parts["consistency"].item() == pytest.approx(0, abs=1e-8)
    off = perfect._replace(time_BCT=(out.time_target_BCT + torch.randn(3, 2, 200)).requires_grad_())
    loss = DualDomain(consistency_weight=0.5, time_weight=0.0).score(off, CFG)
    assert loss.parts["consistency"] > 0.1
    assert loss.total.item() == pytest.approx(loss.parts["spec"].item() + 0.5 * loss.parts["consistency"].item(), rel=1e-5)
    loss.total.backward()
    assert off.time_BCT.grad.isfinite().all() and off.time_BCT.grad.any()
    with pytest.raises(ValueError, match="time_head"):
        DualDomain(consistency_weight=0.5).score(out._replace(time_BCT=None), CFG)


# Masks


def test_a_tubelet_hides_the_same_whole_columns_in_all_channels(step):
    mask, n_visible = DualDomain().draw(INDEX, CFG, step)
    assert mask.shape == (40, 1, 16) and n_visible == 4
    columns = mask.unflatten(2, (8, 2))
    assert columns.all(-1).equal(columns.any(-1)) and columns.all(-1).sum(-1).unique().tolist() == [6]
    assert len(columns.all(-1)[:, 0].unique(dim=0)) > 10


@pytest.mark.parametrize("cfg", [CFG, PAIR])
def test_asynchronous_masks_differ_from_channel_to_channel(cfg, step):
    mask, n_visible = DualDomain(mask="asynchronous").draw(INDEX, cfg, step)
    columns = mask.unflatten(2, (8, 2))
    assert columns.all(-1).equal(columns.any(-1)) and columns.all(-1).sum(-1).unique().tolist() == [6]
    assert not mask[:, 0].equal(mask[:, 1])
    assert n_visible == (4 if cfg is PAIR else 8) and int((~mask).any(1).sum(1).max()) <= 8


def test_random_masks_hide_single_patches_and_the_same_share_of_every_channel(step):
    mask, n_visible = DualDomain(mask="random").draw(INDEX, CFG, step)
    assert mask.sum(-1).unique().tolist() == [12] and n_visible == 8 >= int((~mask).any(1).sum(1).max())
    assert not mask.unflatten(2, (8, 2)).all(-1).equal(mask.unflatten(2, (8, 2)).any(-1))


def test_a_reconstruction_is_the_waveform_with_its_hidden_columns_filled(step):
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 2, 210) + 1
    batch = {"signal": x, "index": torch.arange(2), "valid": torch.arange(210) < torch.tensor([[210], [120]])}
    out, seen = DualDomain().run(CFG.build(), batch, step), DualDomain().reconstruct(CFG.build(), batch, step)
    hidden = (out.mask_BCN[..., ::2]).repeat_interleave(25, 2) & batch["valid"][:, None, :200]
    assert torch.nn.functional.pad(hidden, (0, 10)).equal(seen.mask_B1T)
    z = ((x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True))[0]
    torch.testing.assert_close(seen.target_BCT[0], z)
    assert seen.pred_BCT[~seen.mask_B1T].equal(seen.target_BCT[~seen.mask_B1T])
    assert not seen.pred_BCT[seen.mask_B1T].isclose(seen.target_BCT[seen.mask_B1T]).any()
    spectral = DualDomain().reconstruct(replace(CFG, time_head=False).build(), batch, step)
    assert spectral.pred_BCT.isnan().equal(spectral.mask_B1T)


def test_room_for_more_places_than_are_visible_changes_nothing(step):
    torch.manual_seed(0)
    model, x = CFG.build().eval(), torch.randn(40, 2, 210)
    mask, n_visible = DualDomain(mask="mixed").draw(INDEX, CFG, step)
    roomy, asked = model(x, mask, n_visible=n_visible + 3), model(x, mask)
    torch.testing.assert_close(roomy.spec_BCNV, asked.spec_BCNV, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(roomy.pooled_BCD, asked.pooled_BCD, atol=1e-5, rtol=1e-4)


def test_mixed_masks_come_in_the_shares_given(step):
    index = torch.arange(4000)
    mask, n_visible = DualDomain(mask="mixed").draw(index, CFG, step)
    whole_BC = mask.all(-1)
    dropped = whole_BC.any(1)
    alike = mask[:, 0].eq(mask[:, 1]).all(-1)
    assert float(dropped.float().mean()) == pytest.approx(0.4, abs=0.03)
    assert float((~dropped & ~alike).float().mean()) == pytest.approx(0.2 * (1 - 1 / 28), abs=0.03)  # 28 ways to keep two columns of eight
    assert float(whole_BC[:, 0].float().mean()) == pytest.approx(0.2, abs=0.03) and not whole_BC.all(1).any()
    assert (~mask).any(1).sum(1).max() <= n_visible
    for alone in (CwtMaeConfig.preset("tiny", n_samples=210), PAIR):
        with pytest.raises(ValueError, match="at least two that meet"):
            DualDomain(mask="mixed").draw(index, alone, step)


@pytest.mark.parametrize(("progress", "ratio"), [(0.0, 0.5), (0.025, 0.5), (0.075, 0.625), (0.125, 0.75), (1.0, 0.75)])
def test_the_curriculum_hides_more_as_the_run_goes_on(progress: float, ratio: float, step):
    objective = DualDomain(start_ratio=0.5)
    assert objective.ratio(progress) == pytest.approx(ratio)
    step.progress = progress
    mask, n_visible = objective.draw(INDEX, CFG, step)
    assert n_visible == 2 * (8 - int(8 * ratio)) and (~mask).sum(-1).unique().tolist() == [n_visible]
    assert DualDomain().ratio(progress) == 0.75


def test_an_items_mask_is_its_own_in_whatever_batch(step):
    for kind in ("tubelet", "asynchronous", "random", "mixed"):
        objective = DualDomain(mask=kind)
        assert objective.draw(INDEX, CFG, step).mask_BCN[[7, 3]].equal(objective.draw(INDEX[[7, 3]], CFG, step).mask_BCN)


@pytest.mark.parametrize("mask", ["tubelet", "asynchronous", "random", "mixed"])
def test_short_tails_and_absent_channels_change_nothing_by_what_they_hold(mask: str, step):
    torch.manual_seed(0)
    model, objective = CFG.build(), DualDomain(mask=mask, consistency_weight=0.5)
    x = torch.randn(4, 2, 210)
    valid_BT, present_BC = torch.arange(210) < torch.tensor([[210], [100], [30], [210]]), torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1]]).bool()
    real = valid_BT[:, None] & present_BC[..., None]
    rest = {"index": torch.arange(4), "valid": valid_BT, "channel_present": present_BC}
    first = objective(model, {"signal": x, **rest}, step)
    second = objective(model, {"signal": torch.where(real, x, 30.0), **rest}, step)
    torch.testing.assert_close(second.total, first.total)
    assert first.total.isfinite()
    first.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_versions_differ_in_masks_and_in_where_the_waveform_counts():
    assert DualDomain.version("v1") == DualDomain(mask="random", time_on="all") and DualDomain.version("v3") == DualDomain()
    with pytest.raises(ValueError, match="version"):
        DualDomain.version("v4")


@pytest.mark.parametrize(
    "bad",
    [
        {"mask": "block"},
        {"mask_ratio": 1.0},
        {"start_ratio": 0.0},
        {"ramp": (0.5, 0.2)},
        {"mixture": (0.5, 0.5, 0.5)},
        {"plane_weights": (-1.0,)},
        {"time_weight": -1.0},
        {"time_on": "visible"},
        {"scale_band_hz": (5.0, 1.0)},
        {"consistency_weight": -0.1},
    ],
)
def test_an_objective_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DualDomain(**bad)


def test_what_does_not_fit_the_model_is_refused(step):
    with pytest.raises(ValueError, match="mask_ratio"):
        DualDomain(mask_ratio=0.05).draw(INDEX, CFG, step)
    with pytest.raises(ValueError, match="plane_weights"):
        DualDomain(plane_weights=(1.0,)).score(outcome(), CFG)
    fewer = replace(CFG, differences=0)
    assert DualDomain(plane_weights=(1.0,)).draw(INDEX, fewer, step).n_visible == 4
