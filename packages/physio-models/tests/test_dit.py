import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from physio_models.diffusion import guided
from physio_models.dit import DitConfig, noise_embedding
from physio_models.objectives.ddpm import Ddpm, real_mse
from physio_models.objectives.rectified_flow import RectifiedFlow


def built(**changes) -> nn.Module:
    """A tiny network whose zeros, gates and head among them, have been drawn at random, so that everything has an effect."""
    torch.manual_seed(0)
    model = DitConfig.preset("tiny", **changes).build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return model


def window(n: int = 3, n_channels: int = 3) -> torch.Tensor:
    return torch.randn(n, n_channels, 160, generator=torch.Generator().manual_seed(1))


def test_the_originals_size_has_its_number_of_parameters():
    with torch.device("meta"):
        model = DitConfig.preset("reference").build()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 60.63 and model.cfg.n_tokens == 2500


def test_the_network_starts_by_saying_zero():
    model = DitConfig.preset("tiny").build()
    assert not model(window(), torch.rand(3)).any()


@pytest.mark.parametrize(("scale", "n_moving", "alike"), [(1.0, 36, 0.973), (1000.0, 420, 0.18)])
def test_the_noise_level_is_told_in_a_way_that_can_be_read(scale: float, n_moving: int, alike: float):
    """Without the factor 1000 only 36 of 512 sines move at all between clean and noise, and the two ends look the same."""
    table = noise_embedding(torch.linspace(0, 1, 1001) * scale, 512)
    assert int((table.std(0) > 0.1).sum()) == pytest.approx(n_moving, abs=8)
    assert torch.cosine_similarity(table[0], table[-1], dim=0).item() == pytest.approx(alike, abs=0.01)


def test_the_defaults_scale_the_noise_level():
    assert DitConfig().time_scale == 1000


def test_the_noise_embedding_is_cosines_then_sines():
    for t, row in zip((0.0, 3.5), noise_embedding(torch.tensor([0.0, 3.5]), 6), strict=True):
        angle = [t * 10_000 ** (-k / 3) for k in range(3)]
        np.testing.assert_allclose(row.numpy(), [*np.cos(angle), *np.sin(angle)], atol=1e-5)


# Conditions


def test_a_given_lead_keeps_its_timing():
    """The original averages the lead over time, so any shuffle of it says the same."""
    model, noised = built(condition="lead"), window(3, 2)
    given, level_B = torch.sin(torch.arange(160) / 9).expand(3, 1, -1), torch.full((3,), 0.5)
    shifted = given.roll(40, dims=-1)
    change = (model(noised, level_B, given) - model(noised, level_B, shifted)).abs().mean()
    assert change > 0.1 * model(noised, level_B, given).abs().mean()
    where = torch.zeros_like(given).requires_grad_()
    for block in model.blocks:  # without attention, a sample of the lead arrives only where it stands
        nn.init.zeros_(block.attention.out.weight)
    model(noised, level_B, given + where)[0, :, 80:88].sum().backward()
    assert where.grad[0, 0].nonzero().flatten().tolist() == list(range(80, 88))


@pytest.mark.parametrize("n_channels", [2, 5, 12])
@pytest.mark.parametrize("lead", [0, 1])
def test_any_lead_may_be_given_and_the_others_are_generated(n_channels: int, lead: int):
    model = built(condition="lead", lead=lead, n_channels=n_channels)
    problem = model.problem({"signal": window(3, n_channels)})
    others = [c for c in range(n_channels) if c != lead]
    assert torch.equal(problem.x_BGT, window(3, n_channels)[:, others]) and torch.equal(problem.given, window(3, n_channels)[:, [lead]])
    assert model(problem.x_BGT, torch.rand(3), problem.given).shape == (3, n_channels - 1, 160)


@pytest.mark.parametrize("condition", ["text", "class", "lead"])
def test_what_is_withheld_has_no_effect_and_what_is_given_has(condition: str):
    model = built(condition=condition)
    x, level_B = window(3, len(model.cfg.generated)), torch.full((3,), 0.5)
    a, b = {
        "text": (torch.ones(3, 12), -torch.ones(3, 12)),
        "class": (torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])),
        "lead": (window(3, 1), -window(3, 1)),
    }[condition]
    keep_B = torch.tensor([True, False, True])
    first, second = model(x, level_B, a, keep_B=keep_B), model(x, level_B, b, keep_B=keep_B)
    assert torch.equal(first[1], second[1]) and not torch.allclose(first[0], second[0])
    torch.testing.assert_close(first[1], model(x, level_B)[1])


# Lost leads


def test_a_lost_lead_is_no_problem():
    """It is 0 whether it is to be generated or given, and a given one that is lost is withheld."""
    x, present_BC = window(), torch.tensor([[True, True, True], [False, True, True], [True, False, True]])
    plain = built().problem({"signal": x, "channel_present": present_BC})
    assert torch.equal(plain.x_BGT, x * present_BC[..., None]) and torch.equal(plain.present_BG, present_BC) and plain.keep_B is None
    given = built(condition="lead").problem({"signal": x, "channel_present": present_BC})
    assert torch.equal(given.x_BGT, (x * present_BC[..., None])[:, [0, 2]]) and torch.equal(given.present_BG, present_BC[:, [0, 2]])
    assert given.keep_B.tolist() == [True, True, False] and not given.given[2].any()
    assert built(condition="lead").problem({"signal": x}).keep_B is None


@pytest.mark.parametrize("objective", [Ddpm(condition_dropout=0.0), RectifiedFlow(condition_dropout=0.0)])
def test_an_objective_withholds_a_lost_given_lead_and_names_the_lost_ones(objective, step):
    recorder, present_BC = Recorder(built(condition="lead")), torch.tensor([[True, True, True], [True, False, True], [False, True, True]])
    objective(recorder, {"signal": window(), "index": torch.arange(3), "channel_present": present_BC}, step)
    assert recorder.asked[0].keep_B.tolist() == [True, False, True] and torch.equal(recorder.asked[0].present_BG, present_BC[:, [0, 2]])


def test_the_noise_of_a_lost_lead_is_not_read():
    model, x, level_B = built(), window(), torch.full((3,), 0.5)
    present_BG = torch.tensor([[True, True, True], [True, False, True], [False, False, True]])
    first, second = (model(z, level_B, present_BG=present_BG) for z in (x, x.masked_fill(~present_BG[..., None], 9.0)))
    assert torch.equal(first, second) and torch.equal(first, model(x * present_BG[..., None], level_B))
    assert not torch.allclose(first[1], model(x, level_B)[1])


@pytest.mark.parametrize("condition", ["none", "lead"])
def test_training_and_reading_out_meet_lost_leads_alike(condition: str):
    """The states after the first block, of a clean window at noise level 0."""
    model, states = built(condition=condition), []
    present_BC = torch.tensor([[True, True, True], [True, False, True], [False, True, True]])
    model.blocks[0].register_forward_hook(lambda _, args, out: states.append(out))
    encoded = model.encode(window(), channel_present_BC=present_BC)
    problem = model.problem({"signal": window(), "channel_present": present_BC})
    model(problem.x_BGT, torch.zeros(3), problem.given, keep_B=problem.keep_B, present_BG=problem.present_BG)
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], encoded.levels["block1"])
    if condition == "lead":
        withheld = window()
        withheld[1, 1] = model.null.detach().repeat(20)
        torch.testing.assert_close(encoded.pooled_BD[1], model.encode(withheld).pooled_BD[1])


def test_an_unknown_class_is_withheld():
    model, x, level_B = built(condition="class"), window(), torch.full((3,), 0.5)
    torch.testing.assert_close(model(x, level_B, torch.tensor([-1, -1, -1])), model(x, level_B))


def test_guidance_without_a_classifier_uses_both_answers():
    model, x, level_B, given = built(condition="class"), window(), torch.full((3,), 0.5), torch.tensor([0, 1, 0])
    with_it, without = model(x, level_B, given), model(x, level_B)
    torch.testing.assert_close(guided(model, given, 3.0)(x, level_B), without + 3 * (with_it - without), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("condition", "key"), [("text", "text_emb"), ("class", "label")])
def test_a_batch_without_its_condition_is_refused(condition: str, key: str):
    with pytest.raises(ValueError, match=f"needs '{key}' in the batch"):
        built(condition=condition).problem({"signal": window()})


def test_a_condition_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"given must be \(3, 12\)"):
        built(condition="text")(window(), torch.rand(3), torch.ones(3, 7))
    with pytest.raises(ValueError, match="class numbers"):
        built(condition="class")(window(), torch.rand(3), torch.ones(3, 7))


# Objectives: what the network is asked


class Recorder(nn.Module):
    """Stands for the network: remembers what it was asked and answers zero, or the noised signal itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.cfg, self.asked = net, net.cfg, []

    def problem(self, batch):
        return self.net.problem(batch)

    def forward(self, noised, level_B, given, **options):
        self.asked.append(SimpleNamespace(noised=noised, level_B=level_B, given=given, **options))
        return torch.zeros_like(noised)


class Normal:
    """Streams that draw what a test gives them."""

    def __init__(self, **values) -> None:
        self.values = values

    def uniform(self, name, index_B, shape):
        return torch.full((len(index_B), *shape), self.values.get(name, 0.5))

    def normal(self, name, index_B, shape):
        return torch.randn(len(index_B), *shape, generator=torch.Generator().manual_seed(7))


def asked(objective, time: float, **items) -> tuple[SimpleNamespace, torch.Tensor, float]:
    recorder, step = Recorder(built()), SimpleNamespace(modules=nn.ModuleDict(), progress=0.0, streams=Normal(time=time))
    loss = objective(recorder, {"signal": window(), "index": torch.arange(3), **items}, step)
    noise = step.streams.normal("", torch.arange(3), (3, 160))
    return recorder.asked[0], noise, loss.total.item()


@pytest.mark.parametrize("time", [0.0, 0.25, 0.999])
def test_ddpm_noises_by_the_schedule_and_asks_for_the_noise(time: float):
    call, noise, loss = asked(Ddpm(), time)
    s = int(time * 1000)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[s]
    torch.testing.assert_close(call.noised, math.sqrt(abar) * window() + math.sqrt(1 - abar) * noise)
    assert call.level_B.tolist() == pytest.approx([s / 1000] * 3)
    assert loss == pytest.approx(noise.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("time", [0.0, 0.25, 0.999])
def test_rectified_flow_goes_from_noise_to_data_and_tells_the_network_how_much_noise_there_is(time: float):
    """At t = 1 there is data, and the network hears 0, as in DDPM: features are read at 0 whatever it was trained with."""
    call, noise, loss = asked(RectifiedFlow(), time)
    torch.testing.assert_close(call.noised, (1 - time) * noise + time * window())
    assert call.level_B.tolist() == pytest.approx([1 - time] * 3, abs=1e-6)
    assert loss == pytest.approx((window() - noise).square().mean().item(), rel=1e-5)


def test_features_are_read_from_a_clean_signal_at_noise_level_zero():
    model, levels = built(), []
    model.time.register_forward_pre_hook(lambda _, args: levels.append(args[0]))
    encoded = model.encode(window())
    torch.testing.assert_close(levels[0], noise_embedding(torch.zeros(3), 32))
    torch.testing.assert_close(encoded.tokens_BND.mean(-1), torch.zeros(3, 20), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded.tokens_BND.var(-1, correction=0), torch.ones(3, 20), atol=1e-3, rtol=0)


@pytest.mark.parametrize("objective", [Ddpm(), RectifiedFlow()])
def test_the_loss_is_the_mean_over_what_is_real(objective):
    valid_BT = torch.arange(160) < torch.tensor([[160], [100], [8]])
    present_BC = torch.tensor([[True, True, True], [True, False, True], [False, False, True]])
    _, noise, loss = asked(objective, 0.5, valid=valid_BT, channel_present=present_BC)
    target = (noise if isinstance(objective, Ddpm) else window() - noise).double().numpy()
    real = valid_BT.numpy()[:, None] & present_BC.numpy()[..., None]
    assert loss == pytest.approx((target[real] ** 2).mean(), rel=1e-5)


def test_a_mask_that_leaves_all_in_changes_no_loss():
    a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    assert real_mse(a, b, torch.ones(2, 5), torch.ones(2, 3)).item() == pytest.approx(real_mse(a, b, None, None).item())


def test_conditions_are_withheld_from_the_drawn_share_of_items(step):
    index_B = torch.arange(2000)
    model = Recorder(built(condition="class"))
    items = {"signal": torch.zeros(2000, 3, 160), "index": index_B, "label": torch.zeros(2000, dtype=torch.long)}
    for objective in (Ddpm(condition_dropout=0.2), RectifiedFlow(condition_dropout=0.2)):
        objective(model, items, step)
        assert 0.75 < model.asked[-1].keep_B.float().mean() < 0.85


def test_logit_normal_times_favour_the_middle(step):
    step.streams = SimpleNamespace(uniform=step.streams.uniform, normal=lambda name, i, shape: torch.randn(len(i), *shape))
    torch.manual_seed(0)
    _, t_B = RectifiedFlow(times="logit_normal").draw(torch.zeros(4000, 1, 1), torch.arange(4000), step)
    assert 0.65 < ((t_B > 0.25) & (t_B < 0.75)).float().mean() < 0.80  # P(|N| < ln 3) = 0.728


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"condition": "age"}, "condition must be one of"),
        ({"condition": "lead", "lead": 3}, "lead must be one of the 3 channels"),
        ({"condition": "lead", "lead": 0, "n_channels": 1}, "leave another to generate"),
        ({"patch": 7}, "patch=7"),
        ({"time_scale": 0.0}, "time_scale"),
        ({"width": 33, "n_heads": 3}, "width must be even"),
        ({"n_classes": 0}, "n_classes"),
    ],
)
def test_a_config_checks_itself(bad: dict, match: str):
    with pytest.raises(ValueError, match=match):
        DitConfig.preset("tiny", **bad)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Ddpm(n_steps=0), "n_steps"),
        (lambda: Ddpm(schedule="square"), "schedule"),
        (lambda: Ddpm(condition_dropout=1.0), "condition_dropout"),
        (lambda: RectifiedFlow(condition_dropout=-0.1), "condition_dropout"),
        (lambda: RectifiedFlow(times="late"), "times"),
    ],
)
def test_an_objective_checks_itself(make, match: str):
    with pytest.raises(ValueError, match=match):
        make()
