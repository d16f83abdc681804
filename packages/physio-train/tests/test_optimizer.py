from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from physio_train.config import FitConfig
from physio_train.muon import orthogonal
from physio_train.optimizer import build, load_optimizer_tensors, lr_factor, optimizer_tensors, peak_lr
from physio_train.parameters import layers_below_top, rules, trained
from physio_train.schedule_free import Average


def made(net, **changes):
    cfg = FitConfig(**({"n_steps": 10, "lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1} | changes))
    nothing = nn.ModuleDict()
    return build(cfg, trained(net, nothing), rules(net, nothing, decay_all=cfg.decay_all))


def decayed(optimizer, net):
    name_of = {p: name for name, p in net.named_parameters()}
    return {name_of[p] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}


class Stacked(nn.Module):
    """A small transformer's shape: embedding, token, layers with an own state-space parameter, norm, head."""

    def __init__(self, n_layers=3):
        super().__init__()
        self.token, self.ids = nn.Parameter(torch.randn(1, 1, 4)), nn.Embedding(5, 4)
        self.embed = nn.Linear(2, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 4)) for _ in range(n_layers))
        for block in self.blocks:
            block.A_log = nn.Parameter(torch.rand(4, 2))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x_BT):
        x = self.embed(x_BT) + self.token[0, 0] + self.ids.weight.sum(0)
        for block in self.blocks:
            x = x + block(x) * block.A_log.sum(1)
        return self.head(self.norm(x))


def stepped(net, optimizer, n_steps, seed=0):
    draw = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        net(torch.randn(6, 2, generator=draw)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_linear_schedule_is_the_original_lambda_lr(shared):
    expected = json.loads(shared("fixtures/himae/meta.json").read_text())["lr_factor_total100_warm10"]
    got = [lr_factor(step, 100, warmup=0.1, schedule="linear") for step in range(len(expected))]
    assert got == pytest.approx(expected, abs=1e-12)


def test_linear_schedule_at_hand_computed_steps():
    at = {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 99: 1 / 90, 100: 0.0, 101: 0.0}
    assert {step: lr_factor(step, 100, warmup=0.1, schedule="linear") for step in at} == pytest.approx(at)


def test_cosine_falls_by_half_in_the_middle_and_constant_stays():
    assert lr_factor(60, 110, warmup=0.1, schedule="cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi * 49 / 99)))
    assert lr_factor(110, 110, warmup=0.1, schedule="cosine") == pytest.approx(0.0)
    assert [lr_factor(step, 10, warmup=0.0, schedule="constant") for step in (0, 9)] == [1.0, 1.0]


def test_one_cycle_is_torchs():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=40, pct_start=0.3, cycle_momentum=False)
    for step in range(40):
        assert lr_factor(step, 40, warmup=0.3, schedule="one_cycle") == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        scheduler.step() if step < 39 else None


def test_inverse_sqrt_leaves_its_peak_without_a_jump():
    factors = [lr_factor(step, 100, warmup=0.16, schedule="inverse_sqrt") for step in (8, 16, 17, 64)]
    assert factors == pytest.approx([0.5, 1.0, (16 / 17) ** 0.5, 0.5])


def test_a_floor_is_where_the_fall_ends():
    assert lr_factor(100, 100, warmup=0.1, schedule="cosine", floor=0.2) == pytest.approx(0.2)
    assert lr_factor(55, 100, warmup=0.1, schedule="linear", floor=0.2) == pytest.approx(0.6)


def test_the_learning_rate_is_scaled_only_when_asked():
    assert peak_lr(FitConfig(n_steps=1, lr=0.1, batch_size=512)) == 0.1
    assert peak_lr(FitConfig(n_steps=1, lr=0.1, batch_size=512, lr_batch=256)) == pytest.approx(0.2)


def test_matrices_alone_are_decayed_unless_all_is_asked():
    net = Stacked()
    matrices = {f"blocks.{i}.{j}.weight" for i in range(3) for j in (1, 3)} | {"embed.weight", "head.weight"}
    assert decayed(made(net), net) == matrices
    assert decayed(made(net, decay_all=True), net) == {name for name, _ in net.named_parameters()}
    convolutions = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2))
    assert decayed(made(convolutions), convolutions) == {"0.weight"}


def test_layer_wise_decay_falls_from_the_head_to_the_embedding_and_forgets_nothing():
    net = Stacked()
    below = layers_below_top(net)
    assert below.keys() == dict(net.named_parameters()).keys()
    assert {name.split(".")[0]: depth for name, depth in below.items() if "blocks" not in name} == {"token": 4, "ids": 4, "embed": 4, "norm": 0, "head": 0}
    assert [below[f"blocks.{i}.1.weight"] for i in range(3)] == [3, 2, 1] and below["blocks.0.A_log"] == 3
    optimizer = made(net, layer_decay=0.5)
    scale_of = {p: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: scale_of[p] for name, p in net.named_parameters()} == {name: 0.5**depth for name, depth in below.items()}


def test_muon_turns_the_matrices_of_layers_and_leaves_the_rest_to_adamw():
    net = Stacked()
    optimizer = made(net, optimizer="muon")
    name_of = {p: name for name, p in net.named_parameters()}
    turned = {name_of[p] for group in optimizer.param_groups if group["kind"] == "muon" for p in group["params"]}
    assert turned == {f"blocks.{i}.{j}.weight" for i in range(3) for j in (1, 3)}
    with pytest.raises(ValueError, match="no matrix"):
        made(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), optimizer="muon")


def polar(matrix_RC, n_iterations):
    """What the iteration does to each singular value, in float64."""
    u, values, v = np.linalg.svd(matrix_RC / np.linalg.norm(matrix_RC), full_matrices=False)
    for _ in range(n_iterations):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (u * values) @ v * max(1.0, matrix_RC.shape[0] / matrix_RC.shape[1]) ** 0.5


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_its_published_recursion_on_matrices_and_adamw_on_the_rest(nesterov):
    torch.manual_seed(0)
    ours, theirs = Stacked(1), Stacked(1)
    theirs.load_state_dict(ours.state_dict())
    named = dict(theirs.named_parameters())
    turned = {name: named[name].detach().double().numpy().copy() for name in ("blocks.0.1.weight", "blocks.0.3.weight")}
    kept = {name: 0.0 for name in turned}
    bare = [p for name, p in named.items() if name not in (*turned, "embed.weight", "head.weight")]
    groups = [{"params": [theirs.embed.weight, theirs.head.weight]}, {"params": bare, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    mine = made(ours, optimizer="muon", adamw_lr_ratio=0.1, momentum=0.8, nesterov=nesterov)
    for _ in range(4):
        for name, parameter in ours.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            named[name].grad = parameter.grad.clone()
            if name in turned:
                gradient = parameter.grad.double().numpy()
                kept[name] = 0.8 * kept[name] + 0.2 * gradient
                update = 0.2 * gradient + 0.8 * kept[name] if nesterov else kept[name]
                parts = np.split(update, 3) if update.shape[0] == 3 * update.shape[1] else [update]
                turned[name] = turned[name] * (1 - 1e-2 * 0.1) - 1e-2 * np.concatenate([polar(part, 5) for part in parts])
        mine.step()
        adamw.step()
    for name, parameter in ours.named_parameters():
        expected = torch.from_numpy(turned[name]).float() if name in turned else named[name]
        assert torch.allclose(parameter, expected, atol=2e-5), name


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (15, 5)])
def test_newton_schulz_brings_every_singular_value_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    turned = orthogonal(matrix, 5)
    parts = turned.chunk(3) if shape[0] == 3 * shape[1] else [turned / max(1.0, shape[0] / shape[1]) ** 0.5]
    for part in parts:
        values = torch.linalg.svdvals(part)
        assert 0.6 < values.min() and values.max() < 1.3


def test_schedule_free_is_the_authors_own():
    schedulefree = pytest.importorskip("schedulefree")
    torch.manual_seed(0)
    ours, theirs = Stacked(), Stacked()
    theirs.load_state_dict(ours.state_dict())
    mine = made(ours, optimizer="schedule_free", schedule="constant", decay_all=True)
    other = schedulefree.AdamWScheduleFree(theirs.parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    other.train()
    twin = Stacked()
    average = Average(twin, mine)
    stepped(ours, mine, 12)
    stepped(theirs, other, 12)
    average.update(ours, 12)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    other.eval()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(twin.parameters(), theirs.parameters(), strict=True))


def test_state_goes_to_tensors_by_name_and_back():
    def after(n_steps, load=None):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        parameters = trained(net, nn.ModuleDict())
        optimizer = made(net)
        if load:
            net.load_state_dict(load[0])
            load_optimizer_tensors(optimizer, parameters, load[1])
        for _ in range(n_steps):
            net(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return {k: v.clone() for k, v in net.state_dict().items()}, {k: v.clone() for k, v in optimizer_tensors(optimizer, parameters).items()}

    whole, halves = after(6), after(3, load=after(3))
    for a, b in zip(whole, halves, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_state_of_unknown_parameters_is_refused():
    net = nn.Linear(2, 1)
    parameters = trained(net, nn.ModuleDict())
    with pytest.raises(ValueError, match="other"):
        load_optimizer_tensors(made(net), parameters, {"other/exp_avg": torch.zeros(2)})
