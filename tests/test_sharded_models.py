"""Every network under every objective that fits it gives the same gradients with its weights laid out as shards.

One process that holds all shards stands for many: the hooks that put weights together and take gradients apart are the same.
"""

import copy

import numpy as np
import pytest
import torch

from physio_models import FITS, MODELS, OBJECTIVES, resolve
from physio_train import Step, Streams, session
from physio_train.sharding import full, is_sharded, shard, whole

PAIRS = [(objective, model) for objective, models in FITS.items() for model in models]


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    with session(rank=0, world_size=1, init_method=f"file://{tmp_path_factory.mktemp('group') / 'meet'}"):
        yield


def batch_for(config, n=4):
    draw = torch.Generator().manual_seed(2)
    tokens = config.input == "tokens"
    x = (
        torch.randint(0, config.n_ids, (n, config.n_positions), generator=draw)
        if tokens
        else torch.randn(n, config.n_channels, config.n_samples, generator=draw)
    )
    return {
        "tokens" if tokens else "signal": x,
        "index": torch.arange(n),
        "subject": np.array(["a", "b"] * n)[:n],
        "label": torch.arange(n) % 2,
        "aux": torch.rand(n, 3, generator=draw),
        "text_emb": torch.randn(n, getattr(config, "text_width", 8), generator=draw),
    }


@pytest.mark.parametrize(("name", "model_name"), PAIRS)
def test_gradients_on_shards_are_those_of_the_whole(name, model_name):
    config = resolve(MODELS, model_name).preset("tiny")
    torch.manual_seed(0)
    plain = config.build()
    objective = resolve(OBJECTIVES, name)()
    torch.manual_seed(1)
    modules = objective.modules(plain)
    sharded, others = shard(copy.deepcopy(plain), torch.device("cpu")), copy.deepcopy(modules)
    assert is_sharded(sharded)
    for model, own in ((plain, modules), (sharded, others)):
        torch.manual_seed(2)
        step = Step(own, 0.0, Streams(0, 0))
        objective(model, batch_for(config), step).total.backward()
        if hasattr(objective, "after_step"):
            with whole(model):
                objective.after_step(model, step)
    for (key, a), b in zip(plain.named_parameters(), sharded.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), key
        if a.grad is not None:
            torch.testing.assert_close(full(b.grad), a.grad, rtol=1e-4, atol=1e-6, msg=key)
    for a, b in zip(modules.state_dict().values(), others.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    x = batch_for(config)
    reads = x["tokens"] if "tokens" in x else x["signal"]
    with torch.no_grad():
        torch.testing.assert_close(sharded.eval().encode(reads).pooled_BD, plain.eval().encode(reads).pooled_BD, rtol=1e-4, atol=1e-5)
