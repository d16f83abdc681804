"""What every transformer here promises, whatever it is trained to do; the files beside this one have what is particular to each."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from physio_models.decoder import TokenDecoderConfig
from physio_models.dit import DitConfig
from physio_models.nepa import NepaConfig
from physio_models.objectives.autoregressive import Autoregressive
from physio_models.objectives.ddpm import Ddpm
from physio_models.objectives.jepa import Jepa
from physio_models.objectives.masked import MaskedReconstruction
from physio_models.objectives.nepa import NextEmbeddingPrediction
from physio_models.objectives.rectified_flow import RectifiedFlow
from physio_models.st_mem import StMemConfig
from physio_models.vit import VitConfig
from physio_models.vit_mae import MaeVitConfig, MlaeConfig, MtaeConfig

MASKED = MaskedReconstruction(mask_ratio=0.7)
CASES: dict[str, tuple[Any, Any]] = {
    "mae_vit": (MaeVitConfig.preset("tiny"), MASKED),
    "mtae": (MtaeConfig.preset("tiny"), MASKED),
    "mlae": (MlaeConfig.preset("tiny"), MASKED),
    "st_mem": (StMemConfig.preset("tiny"), MASKED),
    "vit": (VitConfig.preset("tiny"), Jepa(predictor_width=16, predictor_heads=2)),
    "dit_ddpm": (DitConfig.preset("tiny"), Ddpm()),
    "dit_flow": (DitConfig.preset("tiny"), RectifiedFlow()),
    "dit_text": (DitConfig.preset("tiny", condition="text"), RectifiedFlow(condition_dropout=0.3)),
    "dit_class": (DitConfig.preset("tiny", condition="class"), RectifiedFlow(condition_dropout=0.3)),
    "dit_lead": (DitConfig.preset("tiny", condition="lead"), RectifiedFlow(condition_dropout=0.3)),
    "nepa": (NepaConfig.preset("tiny"), NextEmbeddingPrediction()),
    "nepa_learned": (NepaConfig.preset("tiny", positions="learned", qk_norm=True, layer_scale=0.1), NextEmbeddingPrediction()),
    "decoder": (TokenDecoderConfig.preset("tiny"), Autoregressive()),
    "decoder_learned": (TokenDecoderConfig.preset("tiny", positions="learned", tied=True), Autoregressive()),
    "decoder_head": (TokenDecoderConfig.preset("tiny", head_depth=1), Autoregressive()),
}
ENCODERS = ("mae_vit", "mtae", "mlae", "st_mem", "vit", "dit_flow", "dit_lead", "nepa")
each = pytest.mark.parametrize("name", CASES)


def built(name: str) -> tuple[Any, nn.Module, Any]:
    cfg, objective = CASES[name]
    torch.manual_seed(0)
    return cfg, cfg.build(), objective


def stirred(name: str) -> tuple[Any, nn.Module, Any]:
    """As `built`, every weight moved off its start: heads and gates that start at 0 would hide what they are told of."""
    cfg, model, objective = built(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return cfg, model, objective


def batch(cfg: Any, n: int = 6) -> dict[str, Tensor]:
    """Sines of several rates with a little noise, and periodic tokens."""
    draw = torch.Generator().manual_seed(1)
    n_channels, n_samples = cfg.n_channels, cfg.n_samples
    rate_B11 = 2 + 6 * torch.rand(n, 1, 1, generator=draw)
    phase = torch.arange(n_channels)[:, None] + 2 * math.pi * torch.arange(n_samples) / n_samples * rate_B11
    out = {"signal": phase.sin() + 0.05 * torch.randn(n, n_channels, n_samples, generator=draw), "index": torch.arange(n)}
    out |= {"text_emb": torch.randn(n, 12, generator=draw), "label": torch.arange(n) % 2}
    return out | {"tokens": (torch.arange(30) + 5 * torch.arange(n)[:, None]) % 11} if cfg.input == "tokens" else out


def train(model: nn.Module, objective: Any, items: dict[str, Tensor], step: Any, n_steps: int, lr: float = 3e-3) -> list[float]:
    step.modules = objective.modules(model)
    optimizer = torch.optim.AdamW([p for p in [*model.parameters(), *step.modules.parameters()] if p.requires_grad], lr=lr)
    losses = []
    for _ in range(n_steps):
        loss = objective(model, items, step).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def encoder_input(cfg: Any, n: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    if cfg.input == "tokens":
        return torch.randint(0, cfg.n_ids, (n, 20), generator=draw)
    return torch.randn(n, cfg.n_channels, cfg.n_samples, generator=draw)


def run(name: str, model: nn.Module, x: Tensor) -> Tensor:
    """Something that `forward` gives, every weight of the path to it in use."""
    out = {
        "mae_vit": lambda: model(x, torch.arange(3).expand(len(x), -1) > 0, n_visible=1).pred_BCT,
        "mtae": lambda: model(x, torch.arange(25).expand(len(x), -1) % 2 == 0, n_visible=12).pred_BCT,
        "st_mem": lambda: model(x, torch.arange(75).expand(len(x), -1).reshape(-1, 3, 25) % 25 < 20, n_visible=5).pred_BCT,
        "vit": lambda: model(x).tokens_BKD,
        "nepa": lambda: model(x).pred_BND,
        "decoder": lambda: model(x).logits_BNV,
        "dit": lambda: model(x[:, list(model.cfg.generated)], torch.full((len(x),), 0.5)),
    }
    out["mlae"] = out["mae_vit"]
    return out[next(key for key in (name, name.split("_")[0]) if key in out)]()


@each
def test_every_parameter_gets_a_finite_gradient(name: str, step):
    cfg, model, objective = built(name)
    train(model, objective, batch(cfg), step, 4)  # what starts at zero (head, then gates) lets gradients past from the third step on
    owned = [*model.named_parameters(), *step.modules.named_parameters()]
    bad = [key for key, p in owned if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
    untouched = [key for key, p in owned if p.requires_grad and not bad and not p.grad.abs().sum() > 0]
    assert bad == [] and untouched == []


@each
def test_training_lowers_the_loss(name: str, step):
    cfg, model, objective = built(name)
    losses = train(model, objective, batch(cfg), step, 30)
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0])


@each
def test_weights_come_back_from_a_state_dict(name: str, step):
    cfg, model, objective = built(name)
    train(model, objective, batch(cfg), step, 2)
    other = cfg.build()
    other.load_state_dict(model.state_dict())
    x = encoder_input(cfg)
    assert torch.equal(model.eval().encode(x).pooled_BD, other.eval().encode(x).pooled_BD)


@each
def test_one_seed_gives_one_run(name: str, step):
    cfg, first, objective = built(name)
    losses = train(first, objective, batch(cfg), step, 3)
    _, second, _ = built(name)
    assert train(second, objective, batch(cfg), step, 3) == losses
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@each
def test_half_precision_gives_nearly_the_same_loss(name: str, step):
    cfg, model, objective = built(name)
    train(model, objective, batch(cfg), step, 2)
    exact = objective(model, batch(cfg), step).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective(model, batch(cfg), step).total
    half.backward()
    assert half.dtype == torch.float32 and half.item() == pytest.approx(exact.item(), rel=0.05, abs=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("n_channels", [1, 2, 5])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoding_keeps_its_contract_for_other_shapes(name: str, n_channels: int):
    cfg, _ = CASES[name]
    if name == "dit_lead" and n_channels == 1:
        pytest.skip("a given lead leaves another to generate")
    n_samples = {1: 160, 2: 96, 5: 320}[n_channels]
    cfg = replace(cfg, n_channels=n_channels, n_samples=n_samples)
    model = cfg.build().eval()
    encoded = model.encode(encoder_input(cfg))
    assert list(encoded.levels) == list(model.level_names) and len(encoded.levels) == cfg.depth
    assert all(level.shape == encoded.tokens_BND.shape for level in encoded.levels.values())
    assert torch.equal(encoded.levels[model.level_names[-1]], encoded.tokens_BND)
    torch.testing.assert_close(encoded.pooled_BD, encoded.tokens_BND.mean(1))
    with pytest.raises(ValueError, match=f"{n_channels} channels"):
        model.encode(torch.zeros(2, n_channels + 1, n_samples))
    with pytest.raises(ValueError, match=f"{n_samples} samples"):
        model.encode(torch.zeros(2, n_channels, n_samples + 8))


@pytest.mark.parametrize("name", ENCODERS)
def test_what_stands_past_a_short_tail_changes_no_real_token(name: str):
    cfg, model, _ = stirred(name)
    x_BCT, valid_BT = encoder_input(cfg), torch.arange(cfg.n_samples) < torch.tensor([[cfg.n_samples], [cfg.n_samples // 2], [30]])
    other = x_BCT.masked_fill(~valid_BT[:, None], 50.0)
    first, second = model.eval().encode(x_BCT, valid_BT=valid_BT), model.encode(other, valid_BT=valid_BT)
    assert torch.equal(first.tokens_BND, second.tokens_BND) and torch.equal(first.pooled_BD, second.pooled_BD)
    torch.testing.assert_close(first.pooled_BD[0], model.encode(x_BCT).pooled_BD[0])
    valid_BN = model.token_valid(valid_BT)[model.level_names[-1]]
    assert valid_BN.shape == first.tokens_BND.shape[:2] and not first.tokens_BND[~valid_BN].any()


@pytest.mark.parametrize("name", ENCODERS)
def test_what_an_absent_channel_holds_changes_nothing(name: str):
    cfg, model, _ = stirred(name)
    x_BCT, present_BC = encoder_input(cfg), torch.tensor([[True, True, True], [True, False, True], [False, False, True]])
    other = x_BCT.masked_fill(~present_BC[..., None], 50.0)
    first, second = model.eval().encode(x_BCT, channel_present_BC=present_BC), model.encode(other, channel_present_BC=present_BC)
    assert torch.equal(first.pooled_BD, second.pooled_BD)
    torch.testing.assert_close(first.pooled_BD[0], model.encode(x_BCT).pooled_BD[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first.pooled_BD[1], model.encode(x_BCT).pooled_BD[1])


@pytest.mark.parametrize("name", ENCODERS)
def test_samples_and_channels_that_are_not_there_are_never_scored(name: str, step):
    cfg, model, objective = stirred(name)
    items = batch(cfg)
    n, tail = len(items["index"]), cfg.n_samples // 2
    items |= {"valid": (torch.arange(cfg.n_samples) < tail).expand(n, -1), "channel_present": torch.tensor([True, True, False]).expand(n, -1)}
    changed = items["signal"].clone()
    changed[..., tail:] = 30.0
    changed[:, 2] = -30.0
    step.modules = objective.modules(model)
    for m in (model, step.modules):
        m.eval()
    assert torch.equal(objective(model, items, step).total, objective(model, items | {"signal": changed}, step).total)


@pytest.mark.parametrize("name", ENCODERS)
def test_masks_of_another_shape_are_refused(name: str):
    cfg, model, _ = built(name)
    with pytest.raises(ValueError, match="valid_BT must be"):
        model.encode(encoder_input(cfg), valid_BT=torch.ones(3, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="channel_present_BC must be"):
        model.encode(encoder_input(cfg), channel_present_BC=torch.ones(3, 7, dtype=torch.bool))


@each
def test_a_wrong_size_is_refused_by_name(name: str):
    with pytest.raises(ValueError, match="size must be one of tiny, fast, reference"):
        type(CASES[name][0]).preset("huge")
    with pytest.raises(ValueError, match="n_heads must divide"):
        type(CASES[name][0]).preset("tiny", n_heads=5)


def test_an_objective_refuses_a_network_it_cannot_train():
    net = CASES["mtae"][0].build()
    pairs = (("dit", Ddpm()), ("dit", RectifiedFlow()), ("nepa", NextEmbeddingPrediction()), ("token_decoder", Autoregressive()), ("vit", Jepa()))
    for fitting, objective in pairs:
        with pytest.raises(ValueError, match=f"choose the model {fitting}"):
            objective.modules(net)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mae_vit", "mtae", "mlae", "st_mem", "vit", "dit_flow", "dit_lead", "nepa", "decoder"])
def test_forward_compiles_whole(name: str):
    cfg, model, _ = built(name)
    x = encoder_input(cfg)
    model.eval()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(run(name, compiled, x), run(name, model, x), rtol=1e-4, atol=1e-5)
