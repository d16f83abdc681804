from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from physio_train.optimizer import adamw, load_optimizer_tensors, lr_factor, optimizer_tensors

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "decay_all": False}


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


def test_norms_and_biases_are_not_decayed_unless_asked():
    net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2))
    parameters = dict(net.named_parameters())
    decayed = {id(p) for group in adamw(parameters, **SETTINGS).param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(net[0].weight)}
    assert [len(g["params"]) for g in adamw(parameters, **SETTINGS | {"decay_all": True}).param_groups] == [4]


def test_state_goes_to_tensors_by_name_and_back():
    def stepped(n_steps, load=None):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        parameters = dict(net.named_parameters())
        optimizer = adamw(parameters, **SETTINGS)
        if load:
            net.load_state_dict(load[0])
            load_optimizer_tensors(optimizer, parameters, load[1])
        for _ in range(n_steps):
            net(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return {k: v.clone() for k, v in net.state_dict().items()}, {k: v.clone() for k, v in optimizer_tensors(optimizer, parameters).items()}

    whole, halves = stepped(6), stepped(3, load=stepped(3))
    for a, b in zip(whole, halves, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_state_of_unknown_parameters_is_refused():
    parameters = dict(nn.Linear(2, 1).named_parameters())
    with pytest.raises(ValueError, match="other"):
        load_optimizer_tensors(adamw(parameters, **SETTINGS), parameters, {"other/exp_avg": torch.zeros(2)})
