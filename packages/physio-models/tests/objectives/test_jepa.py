import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from physio_models.objectives.jepa import Jepa, span_mask
from physio_models.vit import VitConfig

SMALL = {"predictor_width": 16, "predictor_heads": 2}


def built(**changes) -> nn.Module:
    torch.manual_seed(0)
    return VitConfig.preset("tiny", **changes).build()


def batch(n: int = 4) -> dict[str, torch.Tensor]:
    return {"signal": torch.randn(n, 3, 200, generator=torch.Generator().manual_seed(1)), "index": torch.arange(n)}


def runs(row: list[bool]) -> list[int]:
    """Lengths of the runs of hidden patches."""
    return [len(run) for run in "".join("x" if hidden else " " for hidden in row).split()]


@pytest.mark.parametrize(
    ("n", "ratio", "n_spans", "n_out", "lowest", "highest"),
    [
        (25, 0.6, 4, 15, 0.55, 0.65),
        (25, 0.75, 4, 18, 0.66, 0.78),
        (32, 0.6, 4, 19, 0.54, 0.65),
        (20, 0.6, 4, 12, 0.54, 0.66),
        (16, 0.6, 4, 9, 0.5, 0.62),
        (25, 0.3, 4, 7, 0.24, 0.32),
        (25, 0.6, 2, 15, 0.5, 0.66),
    ],
)
def test_spans_hide_the_asked_share_and_every_patch_nearly_as_often(n: int, ratio: float, n_spans: int, n_out: int, lowest: float, highest: float):
    """Over 4000 draws, whose rates stand within 0.025 of the chances; the first and last patch as often as the share itself."""
    mask_BN = span_mask(torch.rand(4000, n, generator=torch.Generator().manual_seed(0)), ratio, n_spans)
    assert mask_BN.dtype == torch.bool and mask_BN.sum(1).unique().tolist() == [n_out]
    assert {len(runs(row)) for row in mask_BN.tolist()} == {n_spans}
    rate_N = mask_BN.double().mean(0)
    assert lowest < rate_N.min() and rate_N.max() < highest
    assert rate_N[[0, -1]].tolist() == pytest.approx([n_out / n] * 2, abs=0.025)
    assert len({tuple(row) for row in mask_BN.tolist()}) > 500


def test_one_span_starts_anywhere_with_the_same_chance():
    mask_BN = span_mask(torch.rand(3000, 10, generator=torch.Generator().manual_seed(1)), 0.8, 1)
    starts = mask_BN.int().argmax(1)
    assert torch.bincount(starts, minlength=3).tolist() == pytest.approx([1000] * 3, abs=100)
    assert all(runs(row) == [8] for row in mask_BN.tolist())


@given(st.integers(1, 6), st.integers(2, 40), st.data())
def test_spans_fit_as_long_as_they_can_be_told_apart(n_spans: int, n: int, data):
    n_out = data.draw(st.integers(1, n - 1))
    noise_BN, ratio = torch.rand(5, n, generator=torch.Generator().manual_seed(n)), (n_out + 0.5) / n
    if n_out < n_spans or n - n_out < n_spans - 1:
        with pytest.raises(ValueError, match=f"{n_spans} spans need .* use fewer spans"):
            span_mask(noise_BN, ratio, n_spans)
        return
    for row in span_mask(noise_BN, ratio, n_spans).tolist():
        assert len(runs(row)) == n_spans and sum(runs(row)) == n_out


@pytest.mark.parametrize("mask", ["spans", "random"])
def test_masks_belong_to_the_item_and_leave_the_same_number_visible(mask: str, step):
    objective = Jepa(mask=mask, **SMALL)
    hidden_BN, n_visible = objective.hide(torch.arange(20), 25, step)
    assert ((~hidden_BN).sum(1) == n_visible).all() and torch.equal(objective.hide(torch.tensor([11, 3]), 25, step)[0], hidden_BN[[11, 3]])
    assert len({tuple(row) for row in hidden_BN.tolist()}) > 1


def test_the_student_sees_only_what_is_visible_and_the_teacher_everything(step):
    model, objective = built(), Jepa(**SMALL)
    step.modules = objective.modules(model)
    seen = {"student": [], "teacher": []}
    model.encoder.blocks[0].register_forward_hook(lambda _, args, __: seen["student"].append(args[0].shape[1]))
    step.modules["teacher"].encoder.blocks[0].register_forward_hook(lambda _, args, __: seen["teacher"].append(args[0].shape[1]))
    objective(model, batch(), step)
    _, n_visible = objective.hide(torch.arange(4), 25, step)
    assert seen == {"student": [1 + n_visible], "teacher": [26]}


def test_the_loss_is_the_distance_to_the_teachers_normed_features_of_hidden_patches(step):
    """With a predictor that answers zero, by hand: the smooth L1 norm of the teacher's normed features where patches are hidden."""
    model, objective = built(), Jepa(**SMALL)
    step.modules = objective.modules(model)
    nn.init.zeros_(step.modules["predictor"].widen.weight)
    hidden_BN, _ = objective.hide(torch.arange(4), 25, step)
    items = batch() | {"valid": (torch.arange(200) < 150).expand(4, -1)}
    taught = step.modules["teacher"].encode(items["signal"], valid_BT=items["valid"]).tokens_BND.double()
    normed = (taught - taught.mean(-1, keepdim=True)) / (taught.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    size = normed.abs()
    error_BN = torch.where(size < 1, 0.5 * size**2, size - 0.5).mean(-1)
    scored = hidden_BN & (torch.arange(25) < 19)  # the patch of samples 144 to 151 is half real
    assert objective(model, items, step).total.item() == pytest.approx(error_BN[scored].mean().item(), rel=1e-4)


@pytest.mark.parametrize("mask", ["spans", "random"])
def test_the_predictor_looks_at_nothing_past_a_short_tail(mask: str, step):
    """All items end after 12 of 25 patches: whatever the predictor holds of the other places, its answers to the real ones stay."""
    model, objective = built(), Jepa(mask=mask, **SMALL)
    step.modules = objective.modules(model)
    items = batch() | {"valid": (torch.arange(200) < 96).expand(4, -1)}
    hidden_BN, _ = objective.hide(items["index"], 25, step)
    assert hidden_BN[:, :12].any(1).all() and hidden_BN[:, 12:].any(1).all()
    whole, before = objective(model, {**items, "valid": torch.ones(4, 200, dtype=torch.bool)}, step).total, objective(model, items, step).total
    step.modules["predictor"].positions_ND[12:] += 3 * torch.randn(13, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(objective(model, items, step).total, before)
    assert not torch.equal(objective(model, {**items, "valid": torch.ones(4, 200, dtype=torch.bool)}, step).total, whole)


def test_no_gradient_trains_the_teacher_and_it_follows_the_student(step):
    model, objective = built(), Jepa(momentum=(0.9, 1.0), **SMALL)
    step.modules = objective.modules(model)
    before = copy.deepcopy(step.modules["teacher"])
    objective(model, batch(), step).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in step.modules["teacher"].parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    for progress, momentum in ((0.0, 0.9), (0.5, 0.95)):
        step.progress = progress
        expected = [momentum * t + (1 - momentum) * s for t, s in zip(step.modules["teacher"].parameters(), model.parameters(), strict=True)]
        objective.after_step(model, step)
        for own, e in zip(step.modules["teacher"].parameters(), expected, strict=True):
            torch.testing.assert_close(own, e)
    assert not torch.equal(next(before.parameters()), next(step.modules["teacher"].parameters()))
    step.progress = 1.0
    last = [p.clone() for p in step.modules["teacher"].parameters()]
    objective.after_step(model, step)
    assert all(torch.equal(a, b) for a, b in zip(last, step.modules["teacher"].parameters(), strict=True))


def test_the_teacher_takes_over_no_dropout(step):
    model, objective = built(dropout=0.5).train(), Jepa(**SMALL)
    step.modules = objective.modules(model).train()
    objective(model, batch(), step)
    teacher = step.modules["teacher"].eval()
    x = batch()["signal"]
    assert torch.equal(teacher(x).tokens_BKD, teacher(x).tokens_BKD)


def test_a_teacher_that_has_collapsed_is_seen(step):
    model, objective = built(), Jepa(**SMALL)
    step.modules = objective.modules(model)
    assert objective(model, batch(), step).parts["teacher_spread"] > 0.1
    with torch.no_grad():
        for p in step.modules["teacher"].parameters():
            p.zero_()
    assert objective(model, batch(), step).parts["teacher_spread"] == 0


@pytest.mark.parametrize(
    "bad", [{"mask_ratio": 1.0}, {"mask": "block"}, {"n_spans": 0}, {"momentum": (1.0, 0.9)}, {"momentum": (0.9,)}, {"predictor_depth": 0}]
)
def test_an_objective_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Jepa(**bad)


def test_a_ratio_that_hides_nothing_is_refused(step):
    with pytest.raises(ValueError, match="hides 0"):
        Jepa(mask="random", mask_ratio=0.1, **SMALL).hide(torch.arange(2), 5, step)
