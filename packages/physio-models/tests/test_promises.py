"""What every network with one vector an item promises under every objective that trains it."""

import multiprocessing
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from physio_models import FITS, MODELS, OBJECTIVES, resolve
from physio_models.contract import ContractError, Encoder, InputContract
from physio_models.papagei import PapageiConfig
from physio_models.pretrained import build_untrained, from_pretrained, save_pretrained
from physio_models.reference_papagei import papagei_contract

NETWORKS = ("papagei", "resnet1d", "merl")
PAIRS = [(objective, model) for objective, models in FITS.items() for model in models if model in NETWORKS]
LIMBS = InputContract(channels=("I", "II", "V1"), units=("mV",) * 3, fs=250.0, window_s=0.8, band=None, normalization="lead_zscore", kind="ecg")


class Streams:
    """Draws that depend on (name, index) alone, as a training loop's do."""

    def uniform(self, name, index_B, shape):
        return torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(sum(map(ord, name)) * 1009 + int(i))) for i in index_B])

    normal = uniform


class Step:
    def __init__(self, modules):
        self.modules, self.progress, self.streams = modules, 0.0, Streams()


def batch(config, rows=range(8)):
    draw, rows = torch.Generator().manual_seed(2), list(rows)
    whole = {
        "signal": torch.randn(8, config.n_channels, config.n_samples, generator=draw),
        "aux": torch.rand(8, 3, generator=draw),
        "text_emb": torch.randn(8, getattr(config, "text_width", 4), generator=draw),
        "index": torch.arange(8),
        "label": torch.arange(8) % 2,
    }
    return {key: value[rows] for key, value in whole.items()} | {"subject": np.array(list("aabbccdd"))[rows]}


def two_steps(name: str, model_name: str, *, precision=None) -> tuple[list[float], torch.nn.Module]:
    """The losses of two steps of training from one seed, and the network."""
    config = resolve(MODELS, model_name).preset("tiny")
    net, objective = build_untrained(model_name, config, 3).train(), resolve(OBJECTIVES, name)()
    torch.manual_seed(5)
    step = Step(objective.modules(net))
    optimizer = torch.optim.SGD([*net.parameters(), *step.modules.parameters()], lr=1e-2)
    losses = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
            loss = objective(net, batch(config), step).total
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    return losses, net


@pytest.mark.parametrize(("name", "model_name"), PAIRS)
def test_one_seed_gives_one_training(name: str, model_name: str):
    (first, a), (second, b) = two_steps(name, model_name), two_steps(name, model_name)
    assert first == second and first[0] != first[1]
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(("name", "model_name"), PAIRS)
def test_half_precision_trains_with_finite_gradients_near_the_whole(name: str, model_name: str):
    assert two_steps(name, model_name, precision=torch.bfloat16)[0][0] == pytest.approx(two_steps(name, model_name)[0][0], rel=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_comes_back_with_its_numbers(name: str, tmp_path: Path):
    config = replace(resolve(MODELS, name).preset("tiny", n_samples=200), n_channels=3)
    net = build_untrained(name, config, 1)
    encoder = from_pretrained(save_pretrained(tmp_path / "saved", net, config, LIMBS))
    assert encoder.config == config and len(encoder.contract.fingerprint) == 16
    assert all(torch.equal(x, y) for x, y in zip(encoder.model.state_dict().values(), net.state_dict().values(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_compiles_in_one_piece(name: str):
    config = resolve(MODELS, name).preset("tiny")
    net, given = build_untrained(name, config, 1), batch(config)
    inputs = (given["signal"], given["text_emb"]) if name == "merl" else (given["signal"],)
    for plain, compiled in zip(net(*inputs), torch.compile(net, fullgraph=True, backend="aot_eager")(*inputs), strict=True):
        torch.testing.assert_close(compiled, plain)


# What the contract mends or refuses, on networks that would notice


def limbs(name: str = "merl") -> tuple[Encoder, torch.Tensor]:
    """An encoder of three leads that keeps their amplitudes, and a recording in its own order and unit."""
    config = replace(resolve(MODELS, name).preset("tiny", n_samples=200), n_channels=3)
    contract = replace(LIMBS, normalization="fixed", fixed=(0.0, 1.0))
    return Encoder(build_untrained(name, config, 1), contract), torch.randn(4, 3, 200, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_shuffled_leads_are_put_in_order(name: str):
    encoder, x = limbs(name)
    given = replace(encoder.contract.spec, channels=("V1", "I", "II"))
    expected = encoder(x, encoder.contract.spec).pooled_BD
    torch.testing.assert_close(encoder(x[:, [2, 0, 1]], given).pooled_BD, expected)
    assert not torch.allclose(encoder(x[:, [2, 0, 1]], encoder.contract.spec).pooled_BD, expected), "unnamed, the network would notice"


@pytest.mark.parametrize("name", NETWORKS)
def test_microvolts_become_millivolts(name: str):
    encoder, x = limbs(name)
    expected = encoder(x, encoder.contract.spec).pooled_BD
    torch.testing.assert_close(encoder(1000 * x, replace(encoder.contract.spec, units=("uV",) * 3)).pooled_BD, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoder(1000 * x, encoder.contract.spec).pooled_BD, expected)
    with pytest.raises(ContractError, match="unit of I is"):
        encoder(x, replace(encoder.contract.spec, units=("a.u.",) * 3))


@pytest.mark.parametrize("name", NETWORKS)
def test_twice_the_rate_is_refused_with_what_mends_it(name: str):
    encoder, x = limbs(name)
    with pytest.raises(ContractError, match=r"rate is 500 Hz, the model needs 250 Hz.*--fs 250"):
        encoder(x.repeat_interleave(2, dim=-1), replace(encoder.contract.spec, fs=500.0, n_samples=400))


def test_an_inverted_pulse_is_turned_over():
    encoder = Encoder(build_untrained("papagei", PapageiConfig.preset("tiny"), 1), papagei_contract())
    x = torch.randn(3, 1, 1250, generator=torch.Generator().manual_seed(0))
    expected = encoder(x, encoder.contract.spec).pooled_BD
    torch.testing.assert_close(encoder(-x, replace(encoder.contract.spec, polarity=-1)).pooled_BD, expected)
    assert not torch.allclose(encoder(-x, encoder.contract.spec).pooled_BD, expected), "unsaid, the network would notice"


# Ranks


def on_rank(rank: int, folder: str) -> None:
    """Two steps of every pair on half a batch; a parameter that no loss reaches would stop the second."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    norms = {}
    for name, model_name in PAIRS:
        config = resolve(MODELS, model_name).preset("tiny")
        net, objective = build_untrained(model_name, config, 3).train(), resolve(OBJECTIVES, name)()
        torch.manual_seed(5)
        step = Step(objective.modules(net))
        parallel = torch.nn.parallel.DistributedDataParallel(net)
        for _ in range(2):
            net.zero_grad()
            objective(parallel, batch(config, range(4 * rank, 4 * rank + 4)), step).total.backward()
        norms[f"{name}/{model_name}"] = torch.stack([p.grad.double().norm() for p in net.parameters() if p.requires_grad])
    torch.save(norms, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_every_pair_with_one_gradient(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=runpy.run_path, args=(__file__, {"ARGUMENTS": (rank, str(tmp_path))}, "__main__")) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first) == len(PAIRS)
    for key, norms in first.items():
        torch.testing.assert_close(norms, second[key], rtol=1e-6, atol=1e-12, msg=key)
        assert norms.isfinite().all()


if __name__ == "__main__":
    on_rank(*globals()["ARGUMENTS"])
