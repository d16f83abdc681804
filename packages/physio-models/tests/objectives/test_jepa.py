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


@given(st.integers(1, 5), st.integers(4, 40), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_spans_hide_one_run_of_the_same_length_in_every_stretch(n_spans: int, n: int, ratio: float, seed: int):
    stretch = n // n_spans
    length = int(ratio * stretch)
    noise_BS = torch.rand(3, n_spans, generator=torch.Generator().manual_seed(seed))
    if length < 1:
        with pytest.raises(ValueError, match="use fewer spans"):
            span_mask(noise_BS, n, ratio)
        return
    mask_BN, n_out = span_mask(noise_BS, n, ratio)
    assert n_out == n_spans * length and mask_BN.sum(1).tolist() == [n_out] * 3
    for row in mask_BN.tolist():
        for s in range(n_spans):
            places = [i for i in range(s * stretch, (s + 1) * stretch) if row[i]]
            assert places == list(range(places[0], places[0] + length))


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
