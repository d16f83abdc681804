from __future__ import annotations

import pytest
import torch
from torch import nn

from physio_train.ema import Ema, twin


def test_average_follows_the_recursion_with_its_warm_up():
    live = nn.Linear(1, 1, bias=False)
    nn.init.constant_(live.weight, 1.0)
    ema, expected = Ema(twin(live), 0.5), 1.0
    for n in range(1, 30):
        live.weight.data.fill_(float(n * n))
        ema.update(live, n)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n * n
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-6)


def test_running_statistics_are_copied_and_the_twin_is_in_eval_without_gradients():
    live = nn.BatchNorm1d(2)
    ema = Ema(twin(live), 0.9)
    live(torch.randn(8, 2))
    ema.update(live, 1)
    assert torch.equal(ema.model.running_mean, live.running_mean) and ema.model.num_batches_tracked == 1
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())


def test_a_decay_outside_the_interval_is_refused():
    with pytest.raises(ValueError, match="decay"):
        Ema(nn.Linear(1, 1), 1.0)
