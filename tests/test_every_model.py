"""Every network under every objective that fits it, on the built-in corpus: what a row of MODELS promises when it is trained.

A new row is covered by standing in its tables. The published sizes are built on the meta device and counted.
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import runpy
import tempfile
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from physio_models import FITS, MODELS, OBJECTIVES, resolve
from physio_models.cwt_mae import CwtMaeConfig
from physio_models.pretrained import build_untrained
from physio_models.ti_mae import TiMaeConfig
from physio_models.ti_mae_mamba import TiMaeMambaConfig
from physio_train import Step, Streams

PAIRS = [(objective, model) for objective, models in FITS.items() for model in models]
each_pair = pytest.mark.parametrize(("name", "model_name"), PAIRS)
BF16 = {"jepa": 0.2, "patient_contrastive": 0.2, "simclr": 0.2, "cmsc": 0.2, "merl": 0.2, "papagei_morphology": 0.2, "paired_contrastive": 0.2}
"""How far, of the loss, bf16 may lie from fp32 where it is not a twentieth: logits over a temperature of .07 or so magnify rounding."""


def published(name: str, **changes: Any) -> Any:
    """A row's reference preset, with changes."""
    return replace(resolve(MODELS, name).preset("reference"), **changes)


BLOCK = {width: 12 * width**2 + 13 * width for width in (128, 768)}
"""Parameters of a pre-norm block with an MLP of four widths: matrices 3 + 1 + 4 + 4, biases 3 + 1 + 4 + 1, norms 2 + 2."""
COUNTED: tuple[tuple[str, Any, str, float], ...] = (
    ("himae", published("himae"), "", 1_245_953),
    ("himae", published("himae", n_channels=2), "", 1_246_130),
    ("himae", published("himae", widths=(16, 32, 64, 128)), "", 309_889),
    ("himae", published("himae"), "encoder_layers", 700_672),
    ("himae", published("himae"), "decoder_layers", 545_200),
    ("ti_mae", TiMaeConfig.original(), "encoder", 91_712),
    ("ti_mae", published("ti_mae"), "encoder", 91_712 + 2 * (64**2 + 4 * 64)),  # the sound layout's output projections and biases
    ("ti_mae_mamba", TiMaeMambaConfig.original("small"), "encoder", 35_696),
    ("ti_mae_mamba", TiMaeMambaConfig.original("large"), "encoder", 1_714_688),
    ("ti_mae_mamba", replace(TiMaeMambaConfig.original("large"), d_state=128, headdim=16), "encoder", 1_747_904),
    ("papagei", published("papagei"), "", 5_785_612),
    ("papagei", published("papagei", n_experts=0), "", 4_993_024),
    ("cwt_mae", published("cwt_mae", n_channels=2, attention_residuals=True), "", 142.3),
    ("cwt_mae", published("cwt_mae", n_channels=2), "blocks.0", 9.45),
    ("cwt_mae", published("cwt_mae"), "decoder.blocks", 25.2),
    ("cwt_mae", CwtMaeConfig.preset("reference", version="v1"), "", 95.6),
    ("cwt_mae", CwtMaeConfig.preset("reference", version="v2"), "", 95.6),
    ("cwt_mae_pair", published("cwt_mae_pair"), "", 113.9),  # 142.3 less the 28.4 of attention among channels, which a tower of one has none of
    ("dit", published("dit"), "", 60.63),
    ("nepa", published("nepa"), "", 20.46),
    ("token_decoder", published("token_decoder", n_ids=10259), "", 49.38),
    ("mae_vit", published("mae_vit"), "", 34.10),
    ("mlae", published("mlae"), "", 91.0),
    ("mtae", published("mtae"), "", 89.7),
    ("st_mem", published("st_mem"), "", 88.6),
    ("merl", published("merl"), "", 29.55),
    # By hand: blocks, norms of the patch and of its embedding, the embedding, the class token, the last norm.
    ("vit", published("vit"), "", 12 * BLOCK[768] + 2 * 1200 + 2 * 768 + 1201 * 768 + 768 + 2 * 768),
    # Stem, four stages of two blocks (each 6 n^2 but for the first convolution of a wider stage and its shortcut), two numbers a normalised channel.
    ("resnet1d", published("resnet1d"), "", 12 * 64 * 7 + 128 + 12 * 64**2 + 8 * 64 + sum(11 * n**2 + 10 * n for n in (128, 256, 512))),
    # Stem (a convolution, a norm, a linear layer), then in either direction blocks and a norm.
    ("s4d", published("s4d"), "", 13 * 512 + 2 * 512 + 513 * 512 + 2 * (4 * (2 * 512 + 512 + 16 * 512 + 512 + 513 * 1024) + 2 * 512)),
    ("conv_transformer", published("conv_transformer"), "", (12 * 4 + 1) * 128 + 2 * 128 + 129 * 128 + 2 * (4 * BLOCK[128] + 2 * 128)),
)
"""Row, config, part ("": all) and how many numbers it holds, fixed positions too: as published, in millions where that is rounded; the last ones by hand."""


@cache
def recordings() -> Tensor:
    """ECG and PPG of four generated subjects, (4, 2, samples), each of mean 0 and variance 1."""
    from physio_data.corpora import corpus

    found = []
    for recording in corpus("synthetic").records(None, n_subjects=4, minutes=0.5, signal="both"):
        x_CT = torch.from_numpy(np.asarray(recording.signal_CT[:, :3000], dtype=np.float32))
        found.append((x_CT - x_CT.mean(1, keepdim=True)) / x_CT.std(1, keepdim=True))
    return torch.stack(found)


def batch_of(config: Any, items: range = range(8)) -> dict[str, Any]:
    """Windows of the corpus, two a subject, with everything that some objective reads; a third channel and more are later stretches."""
    generator = torch.Generator().manual_seed(2)
    n, whole = 8, recordings()
    batch: dict[str, Any] = {
        "aux": torch.rand(n, 3, generator=generator),
        "text_emb": torch.randn(n, getattr(config, "text_width", 8), generator=generator),
        "index": torch.arange(n),
        "label": torch.arange(n) // 2 % 2,
    }
    length = config.n_positions if config.input == "tokens" else config.n_samples
    n_channels = 1 if config.input == "tokens" else config.n_channels
    start_BC = [[100 * (i % 2) + 37 * (c // 2) for c in range(n_channels)] for i in range(n)]
    signal = torch.stack([torch.stack([whole[i // 2, c % 2, s : s + length] for c, s in enumerate(starts)]) for i, starts in enumerate(start_BC)])
    if config.input == "tokens":
        batch["tokens"] = ((signal[:, 0] + 3) * config.n_ids / 10).long().clamp(0, config.n_ids - 1)
    else:
        batch["signal"] = signal
    return {key: value[list(items)] for key, value in batch.items()} | {"subject": np.repeat(["a", "b", "c", "d"], 2)[list(items)]}


def built(model_name: str) -> tuple[Any, nn.Module]:
    config = resolve(MODELS, model_name).preset("tiny")
    return config, build_untrained(model_name, config, 3).train()


def trained(name: str, model_name: str, n_steps: int, *, precision: torch.dtype | None = None, lr: float = 3e-3) -> tuple[list[float], nn.Module]:
    """The losses of some steps on one batch from one seed, and the network; every parameter that learns has a finite gradient each time."""
    config, net = built(model_name)
    objective = resolve(OBJECTIVES, name)()
    torch.manual_seed(5)
    step = Step(objective.modules(net), 0.0, Streams(0, 0))
    own = [*net.named_parameters(), *((f"objective.{key}", p) for key, p in step.modules.named_parameters())]
    optimizer = torch.optim.AdamW([p for _, p in own if p.requires_grad], lr=lr)
    batch, losses = batch_of(config), []
    for _ in range(n_steps):
        with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
            loss = objective(net, batch, step).total
        optimizer.zero_grad()
        loss.backward()
        assert [key for key, p in own if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())] == []
        optimizer.step()
        if hasattr(objective, "after_step"):
            objective.after_step(net, step)
        losses.append(loss.item())
    return losses, net


@each_pair
def test_thirty_steps_on_the_corpus_lower_the_loss_with_finite_gradients(name, model_name):
    losses, _ = trained(name, model_name, 30)
    assert all(map(math.isfinite, losses))
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.02 * abs(np.mean(losses[:3])), losses


@each_pair
def test_one_seed_gives_one_training(name, model_name):
    (first, a), (second, b) = trained(name, model_name, 2), trained(name, model_name, 2)
    assert first == second and first[0] != first[1]
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@each_pair
def test_bf16_trains_with_finite_gradients_near_fp32(name, model_name):
    half, exact = trained(name, model_name, 1, precision=torch.bfloat16)[0][0], trained(name, model_name, 1)[0][0]
    assert half == pytest.approx(exact, rel=BF16.get(name, 0.05), abs=0.02)


CONDITIONED = [(name, "dit", {"condition": "lead", "lead": lead}) for name in FITS if "dit" in FITS[name] for lead in (0, 2)]


@pytest.mark.parametrize(("name", "model_name", "changes"), [*((*pair, {}) for pair in PAIRS), *CONDITIONED])
def test_what_a_lost_lead_holds_reaches_no_loss(name, model_name, changes):
    """With every weight moved off its start, so that nothing is hidden behind a gate that is still 0. Which leads are lost does count."""
    tiny = resolve(MODELS, model_name).preset("tiny")
    tiny = replace(tiny, n_channels=2 if name == "paired_contrastive" else 3, **({"head_depth": 1} if tiny.input == "tokens" else {}), **changes)
    net, objective, draw = build_untrained(model_name, tiny, 3), resolve(OBJECTIVES, name)(), torch.Generator().manual_seed(6)
    torch.manual_seed(5)
    step = Step(objective.modules(net), 0.6, Streams(0, 0))
    with torch.no_grad():
        for parameter in (*net.parameters(), *step.modules.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    net.eval()
    step.modules.eval()
    batch = {"signal": torch.randn(8, tiny.n_channels, tiny.n_samples, generator=draw)} | batch_of(tiny)
    present_BC = torch.ones(8, tiny.n_channels, dtype=torch.bool)
    present_BC[1, 0] = present_BC[4, -1] = False
    lost = batch | {"channel_present": present_BC}
    other = lost | {"signal": batch["signal"].masked_fill(~present_BC[..., None], 50.0)}
    with torch.no_grad():
        whole, first, second = (objective(net, items, step).total for items in (batch, lost, other))
    assert first.isfinite() and torch.equal(first, second) and not torch.equal(first, whole)


@pytest.mark.parametrize("model_name", MODELS)
def test_a_trained_network_comes_back_from_its_state_dict(model_name):
    name = next(objective for objective, model in PAIRS if model == model_name)
    net = trained(name, model_name, 2)[1].eval()
    other = net.cfg.build().eval()
    other.load_state_dict(copy.deepcopy(net.state_dict()), strict=True)
    batch = batch_of(net.cfg)
    x = batch["tokens"] if "tokens" in batch else batch["signal"]
    with torch.no_grad():
        assert torch.equal(net.encode(x).pooled_BD, other.encode(x).pooled_BD)


@pytest.mark.parametrize(("n_channels", "n_samples"), [(1, 160), (2, 320), (5, 480)])
@pytest.mark.parametrize("model_name", MODELS)
def test_encoding_keeps_its_contract_for_three_shapes(model_name, n_channels, n_samples):
    tiny = resolve(MODELS, model_name).preset("tiny")
    if tiny.input == "tokens":
        pytest.skip("reads tokens: neither channels nor samples")
    config = replace(tiny, n_channels=n_channels, n_samples=n_samples)
    model = build_untrained(model_name, config, 0).eval()
    with torch.no_grad():
        encoded = model.encode(batch_of(config)["signal"])
    assert tuple(encoded.levels) == tuple(model.level_names)
    assert all(level.ndim == 3 and len(level) == 8 and level.isfinite().all() for level in encoded.levels.values())
    assert torch.equal(encoded.tokens_BND, encoded.levels[model.level_names[-1]])
    assert encoded.pooled_BD.shape == (8, encoded.tokens_BND.shape[-1])
    with pytest.raises(ValueError, match="channel"):
        model.encode(torch.zeros(2, n_channels + 1, n_samples))
    other = torch.zeros(2, n_channels, n_samples + 80)
    if config.length_free:
        assert model.encode(other).pooled_BD.shape == (2, encoded.pooled_BD.shape[1])
    else:
        with pytest.raises(ValueError, match=str(n_samples)):
            model.encode(other)


@pytest.mark.parametrize(("name", "config", "part", "count"), COUNTED)
def test_the_published_size_has_the_published_number_of_parameters(name, config, part, count):
    with torch.device("meta"):
        module = config.build().get_submodule(part)
    positions = [buffer for key, buffer in module.named_buffers() if "position" in key] if name in ("mlae", "mtae", "st_mem") else []
    found = sum(t.numel() for t in (*module.parameters(), *positions))
    digits = len(str(count).partition(".")[2])
    assert (round(found / 1e6, digits) if isinstance(count, float) else found) == count


def test_every_row_is_counted():
    assert {name for name, *_ in COUNTED} == set(MODELS)


class Called(Exception):
    """Ends an objective where it calls the network."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*complex operators")
@each_pair
def test_forward_compiles_without_graph_breaks_as_the_objective_calls_it(name, model_name):
    config, net = built(model_name)
    objective = resolve(OBJECTIVES, name)()
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise Called

    handle = net.register_forward_pre_hook(keep, with_kwargs=True)
    with pytest.raises(Called):
        objective(net, batch_of(config), Step(objective.modules(net), 0.0, Streams(0, 0)))
    handle.remove()
    args, kwargs = found[0]
    net.eval()
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        plain, whole = net(*args, **kwargs), compiled(*args, **kwargs)
    for a, b in zip(plain, whole, strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def on_rank(rank: int, folder: str) -> None:
    """Two steps of every pair on half a batch; a parameter that no loss reaches would stop the second."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    norms = {}
    for name, model_name in PAIRS:
        config, net = built(model_name)
        objective = resolve(OBJECTIVES, name)()
        torch.manual_seed(5)
        step = Step(objective.modules(net), 0.0, Streams(0, 0))
        parallel = nn.parallel.DistributedDataParallel(net)
        for _ in range(2):
            net.zero_grad()
            objective(parallel, batch_of(config, range(4 * rank, 4 * rank + 4)), step).total.backward()
        norms[f"{name}/{model_name}"] = torch.stack([p.grad.double().norm() for p in net.parameters() if p.requires_grad])
    torch.save(norms, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_every_pair_with_one_gradient():
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=runpy.run_path, args=(__file__, {"ARGUMENTS": (rank, folder)}, "__main__")) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(600)
        assert [process.exitcode for process in ranks] == [0, 0]
        first, second = (torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first) == len(PAIRS)
    for key, norms in first.items():
        torch.testing.assert_close(norms, second[key], rtol=1e-5, atol=1e-9, msg=key)
        assert norms.isfinite().all()


if __name__ == "__main__":
    on_rank(*globals()["ARGUMENTS"])
