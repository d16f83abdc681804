"""What every row of every table promises: a new corpus, model or objective is covered by standing in its table."""

import math

import numpy as np
import pytest
import torch

import physio_data.normalize
from physio_data.corpora import CORPORA, corpus
from physio_models import FITS, MODELS, OBJECTIVES, resolve
from physio_models.interface import Encoded
from physio_models.normalize import NORMALIZERS, normalize
from physio_train.streams import Streams


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_states_what_it_is(name):
    row = corpus(name)
    assert row.name == name
    assert all(row.card().values()), f"the card of {name} has an empty field"
    assert row.access in ("open", "credentialed", "generated", "own")
    assert row.defaults.window_s is None or row.defaults.window_s > 0


@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_refuses_an_option_it_does_not_have(name):
    with pytest.raises(ValueError, match="no_such_option"):
        next(iter(corpus(name).records(None, no_such_option=1)))


def built(name):
    config = resolve(MODELS, name).preset("tiny")
    torch.manual_seed(0)
    return config, config.build()


def signal(config, n=3):
    """What the model reads: a signal, or ids where its input is tokens."""
    draw = torch.Generator().manual_seed(1)
    if config.input == "tokens":
        return torch.randint(0, config.n_ids, (n, config.n_positions), generator=draw)
    return torch.randn(n, config.n_channels, config.n_samples, generator=draw)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_encodes_to_tokens_pooled_and_levels(name):
    config, model = built(name)
    encoded = model.eval().encode(signal(config))
    assert isinstance(encoded, Encoded)
    assert encoded.pooled_BD.shape == (3, encoded.tokens_BND.shape[-1])
    assert list(encoded.levels), "a model names its levels, shallow to deep"
    assert all(level.ndim == 3 and level.shape[0] == 3 for level in encoded.levels.values())
    assert torch.equal(list(encoded.levels.values())[-1], encoded.tokens_BND)


@pytest.mark.parametrize("name", MODELS)
def test_encoding_is_pure(name):
    config, model = built(name)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = signal(config)
    kept = x.clone()
    first, again = model.encode(x), model.encode(x)
    assert torch.equal(first.pooled_BD, again.pooled_BD) and torch.equal(x, kept)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_encoding_does_not_depend_on_the_rest_of_the_batch(name):
    config, model = built(name)
    x = signal(config, 4)
    torch.testing.assert_close(model.eval().encode(x).pooled_BD[:2], model.encode(x[:2]).pooled_BD, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_channel_count_is_refused(name):
    config, model = built(name)
    with pytest.raises(ValueError, match="channel"):
        model.encode(torch.zeros(2, config.n_channels + 1, config.n_samples))


class Draws:
    """A step at the start of training."""

    def __init__(self, modules):
        self.modules, self.progress, self.streams = modules, 0.0, Streams(0, 0)


def batch_for(config, n=4):
    """A batch with everything that some objective reads beside the signal."""
    draw = torch.Generator().manual_seed(2)
    return {
        "tokens" if config.input == "tokens" else "signal": signal(config, n),
        "index": torch.arange(n),
        "subject": np.array(["a", "b", "c", "d"] * n)[:n],
        "label": torch.arange(n) % 2,
        "aux": torch.rand(n, 3, generator=draw),
        "text_emb": torch.randn(n, getattr(config, "text_width", 8), generator=draw),
    }


def turned(batch):
    """The same items in the opposite order."""
    return {key: value.flip(0) if isinstance(value, torch.Tensor) else value[::-1].copy() for key, value in batch.items()}


PAIRS = [(objective, model) for objective, models in FITS.items() for model in models]


def test_the_table_of_what_fits_names_every_objective_and_known_models():
    assert FITS.keys() == OBJECTIVES.keys()
    assert all(models and set(models) <= MODELS.keys() for models in FITS.values())


@pytest.mark.parametrize(("name", "model_name"), PAIRS)
def test_every_objective_gives_a_finite_loss_that_reaches_every_parameter(name, model_name):
    config, model = built(model_name)
    objective = resolve(OBJECTIVES, name)()
    step = Draws(objective.modules(model))
    loss = objective(model, batch_for(config), step)
    loss.total.backward()
    assert math.isfinite(loss.total.item())
    missed = [key for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert missed == [], "ranks would wait for parameters that no loss reaches"
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(("name", "model_name"), PAIRS)
def test_an_objectives_draws_belong_to_the_items_not_to_the_batch(name, model_name):
    config, model = built(model_name)
    model.eval()
    objective = resolve(OBJECTIVES, name)()
    modules = objective.modules(model).eval()
    batch = batch_for(config)
    straight, flipped = objective(model, batch, Draws(modules)), objective(model, turned(batch), Draws(modules))
    torch.testing.assert_close(flipped.total, straight.total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(physio_data.normalize.NORMALIZERS) - {"fixed"}))
def test_the_two_normalisers_agree(name):
    """The store's side is NumPy and the encoder's is torch: the same name must mean the same numbers."""
    x_BCT = np.random.default_rng(0).normal(2.0, 3.0, (5, 2, 301)).astype(np.float32)
    x_BCT[1, 0] = 7.0
    ours, _ = physio_data.normalize.normalize(x_BCT, name)
    np.testing.assert_allclose(normalize(torch.from_numpy(x_BCT), name)[0].numpy(), ours, rtol=1e-5, atol=1e-5)


def test_both_sides_know_the_same_normalisations():
    assert set(NORMALIZERS) == set(physio_data.normalize.NORMALIZERS)
