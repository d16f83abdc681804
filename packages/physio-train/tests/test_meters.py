from __future__ import annotations

import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from physio_train.batches import Batches
from physio_train.loop import Loss
from physio_train.meters import Meter, collapse, feature_health, flops_per_window, measured_peak


class Square:
    def modules(self, model):
        return nn.ModuleDict({"head": nn.Linear(4, 2)})

    def __call__(self, model, batch, step):
        return Loss(step.modules["head"](model(batch["signal"])).square().mean(), {})


class Windows:
    def batch(self, rows):
        return {"signal": np.ones((len(rows), 8), np.float32), "index": rows}


def batch():
    return next(Batches(Windows(), np.arange(12), batch_size=6, seed=0))


def test_flops_are_those_of_the_matrix_products_forward_and_backward():
    """Forward 2 n k m for each product; backward the same for the weight's gradient, and for the input's where it is asked for."""
    model = nn.Linear(8, 4)
    first, head = 2 * 8 * 4, 2 * 4 * 2
    assert flops_per_window(model, Square(), batch()) == 2 * first + 3 * head


def test_counting_changes_neither_weights_nor_statistics_nor_random_states():
    model = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    before, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    flops_per_window(model, Square(), batch())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and all(p.grad is None for p in model.parameters())


def test_a_meter_says_what_the_steps_since_the_last_call_cost(monkeypatch):
    now = iter([0.0, 2.0, 6.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    meter = Meter(flops=10.0, peak_flops=1000.0)
    for _ in range(2):
        meter.add(SimpleNamespace(n_local=8, wait_s=0.25))
    first = meter.numbers()
    assert (first["samples_per_s"], first["data_wait"], first["mfu"]) == pytest.approx((8.0, 0.25, 0.08)) and first["memory_gib"] > 0
    meter.add(SimpleNamespace(n_local=8, wait_s=0.0))
    second = meter.numbers()
    assert (second["samples_per_s"], second["data_wait"]) == (2.0, 0.0)


def test_without_a_peak_there_is_no_utilisation():
    meter = Meter(flops=10.0)
    meter.add(SimpleNamespace(n_local=8, wait_s=0.0))
    assert meter.numbers().keys() == {"samples_per_s", "data_wait", "memory_gib"}


def test_the_peak_is_a_rate_of_this_device():
    assert 1e8 < measured_peak(torch.device("cpu"), side=128, seconds=0.01) < 1e14


def test_effective_rank_counts_equal_directions_and_reads_the_entropy_of_unequal_ones():
    z_BD = torch.zeros(8, 6)
    for i in range(3):
        z_BD[2 * i, i], z_BD[2 * i + 1, i] = 1.0, -1.0
    assert feature_health(z_BD)["effective_rank"] == pytest.approx(3.0)
    z_BD[:, 1:] = 0
    z_BD[2, 1], z_BD[3, 1] = 3.0, -3.0
    assert feature_health(z_BD)["effective_rank"] == pytest.approx(math.exp(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75))))
    assert feature_health(z_BD)["feature_std"] == pytest.approx(z_BD.double().numpy().std(0).mean())


@pytest.mark.parametrize(
    ("z_BD", "says"),
    [
        (torch.full((5, 4), 3.0), "hardly differ"),
        (torch.full((5, 4), 3.0) + 1e-7 * torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), "hardly differ"),
        (torch.arange(5.0)[:, None] * torch.ones(4), "one direction"),
        (torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), None),
    ],
)
def test_collapse_is_said_where_it_is(z_BD, says):
    why = collapse(feature_health(z_BD))
    assert why is None if says is None else says in why


def test_one_window_has_no_health():
    with pytest.raises(ValueError, match="two windows"):
        feature_health(torch.zeros(1, 4))
