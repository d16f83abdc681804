"""Heads read what they should, losses equal PyTorch's and the papers' formulas, and lower layers move less."""

import math
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from physio_train import Batches, FitConfig, Step, Streams, fit
from physio_train.finetune import Finetune, counts_of, n_outputs
from physio_train.heads import HEADS, Classifier, HeadConfig, freeze_unused, level_widths
from physio_train.losses import balanced_weights, sigmoid_loss, softmax_loss, targets, with_margin


class Encoded(NamedTuple):
    tokens_BND: torch.Tensor
    pooled_BD: torch.Tensor
    levels: dict


class Tiny(nn.Module):
    """Two levels of tokens of a (B, 1, 32) signal, and a decoder that `encode` does not use."""

    level_names = ("block1", "block2")

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.norm, self.decoder = nn.LayerNorm(8), nn.Linear(8, 4)

    def encode(self, x_BCT, *, valid_BT=None, channel_present_BC=None):
        a = self.embed(x_BCT.reshape(len(x_BCT), 8, 4))
        b = torch.tanh(self.blocks[0](a))
        c = self.norm(torch.tanh(self.blocks[1](b)))
        real = torch.ones(c.shape[:2]) if valid_BT is None else self.token_valid(valid_BT)["block2"].float()
        return Encoded(c, (c * real[..., None]).sum(1) / real.sum(1, keepdim=True), OrderedDict(block1=b, block2=c))

    def token_valid(self, valid_BT):
        tokens = valid_BT.reshape(len(valid_BT), 8, 4).all(-1)
        return {"block1": tokens, "block2": tokens}


def classifier(name="linear", level="all", **head):
    torch.manual_seed(0)
    encoder = Tiny()
    return Classifier(encoder, HeadConfig(name=name, **head), level, level_widths(encoder, torch.zeros(2, 1, 32)), 2)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_reads_no_token_past_the_end_and_depends_on_every_other(name):
    model = classifier(name).eval()
    x, valid = torch.randn(2, 1, 32), torch.ones(2, 32, dtype=torch.bool)
    valid[:, 24:] = False
    changed = x.clone()
    changed[..., 24:] = 9.0
    assert torch.allclose(model(x, valid), model(changed, valid), atol=1e-6) and not torch.allclose(model(x), model(changed))
    x.requires_grad_(True)
    model(x)[:, 0].sum().backward()
    assert (x.grad.abs().reshape(2, 8, 4).amax(-1) > 0).all()


def test_cot_is_a_query_pool_and_a_level_can_be_named():
    assert [tuple(p.shape) for p in classifier("cot").parameters()] == [tuple(p.shape) for p in classifier("query_pool").parameters()]
    assert classifier(level="block1").head.classify.in_features == 24 and classifier().head.classify.in_features == 48
    with pytest.raises(ValueError, match="level must be all or one of block1, block2"):
        classifier(level="block9")
    with pytest.raises(ValueError, match="linear, attention"):
        HeadConfig(name="mlp")


def test_what_the_forward_pass_does_not_reach_is_frozen():
    model = classifier()
    assert freeze_unused(model, torch.randn(2, 1, 32)) == sum(p.numel() for p in model.encoder.decoder.parameters())
    assert model.encoder.blocks[0].weight.requires_grad and not model.encoder.decoder.weight.requires_grad and model.training


def test_cross_entropy_balanced_and_smoothed_is_pytorchs():
    logits, label, weight = torch.randn(9, 4), torch.tensor([0, 1, 2, 3, -1, 1, 1, 0, -1]), torch.tensor([1.0, 2.0, 0.5, 3.0])
    assert softmax_loss(logits, targets(label, 4), weight_K=weight).item() == pytest.approx(
        F.cross_entropy(logits, label, weight, ignore_index=-1).item(), rel=1e-6
    )
    known = label >= 0
    expected = F.cross_entropy(logits[known], label[known], label_smoothing=0.1)
    assert softmax_loss(logits, targets(label, 4, 0.1)).item() == pytest.approx(expected.item(), rel=1e-6)
    assert softmax_loss(logits, targets(torch.full((9,), -1), 4)).item() == 0


def test_focal_loss_is_its_formula_and_binary_loss_pytorchs():
    logits, label = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    p = logits.double().softmax(1)[torch.arange(7), label].numpy()
    assert softmax_loss(logits, targets(label, 3), gamma=2.0).item() == pytest.approx(float(np.mean(-((1 - p) ** 2) * np.log(p))), rel=1e-5)
    y, known = torch.randint(0, 2, (7, 3)).float(), torch.rand(7, 3) > 0.3
    expected = F.binary_cross_entropy_with_logits(logits[known], y[known])
    assert sigmoid_loss(logits, y, known.float()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_margin_turns_the_true_class_away_by_an_angle():
    cosine = torch.tensor([[0.6, -0.2], [0.1, -0.999]])
    got = with_margin(20 * cosine, torch.tensor([0, 1]), scale=20.0, margin=0.3)
    assert got[0, 0].item() == pytest.approx(20 * math.cos(math.acos(0.6) + 0.3), rel=1e-5) and got[0, 1] == 20 * cosine[0, 1]
    assert got[1, 1].item() == pytest.approx(20 * (-0.999 - 0.3 * math.sin(math.pi - 0.3)), rel=1e-4)


def test_weights_are_inverse_frequencies():
    assert balanced_weights(torch.tensor([90, 10])).tolist() == pytest.approx([100 / 180, 5.0])
    assert balanced_weights(torch.tensor([[90, 10], [0, 5]]))[1].tolist() == pytest.approx([0.0, 1.0])
    assert counts_of(np.array([0, 1, 1, -1]), "binary", 2) == (1, 2) and counts_of(np.array([[0, 1], [-1, 1]]), "multilabel", 2) == ((1, 0), (0, 2))


def step(seed=0):
    return Step(nn.ModuleDict(), 0.5, Streams(seed))


def test_mixup_mixes_windows_and_targets_alike():
    seen = []
    model = lambda x, valid=None, present=None: seen.append(x) or x[:, 0, :2]  # noqa: E731
    batch = {"signal": torch.arange(24.0).reshape(4, 1, 6), "index": torch.arange(4), "label": torch.tensor([0, 1, 1, 0])}
    objective = Finetune(balanced=False, mixup=0.4)
    loss = objective(model, batch, step()).total
    share, partner = objective._mixing(batch["index"], step())
    x, y = batch["signal"], F.one_hot(batch["label"], 2).float()
    mixed = share[:, None, None] * x + (1 - share)[:, None, None] * x[partner]
    target = share[:, None] * y + (1 - share)[:, None] * y[partner]
    assert torch.allclose(seen[0], mixed) and not torch.allclose(mixed, x) and (share >= 0.5).all()
    assert loss.item() == pytest.approx(-(target * mixed[:, 0, :2].log_softmax(1)).sum(1).mean().item(), rel=1e-5)
    many = Finetune(balanced=False, mixup=0.4)._mixing(torch.arange(4000), step())[0].numpy()
    beta = np.random.default_rng(0).beta(0.4, 0.4, 40000)
    assert np.quantile(many, [0.2, 0.5, 0.8]) == pytest.approx(np.quantile(np.maximum(beta, 1 - beta), [0.2, 0.5, 0.8]), abs=0.02)


class Data:
    """Windows whose class is the sign of their mean."""

    def __init__(self, kind):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(64, 1, 32)).astype(np.float32) + rng.choice([-0.6, 0.6], 64)[:, None, None].astype(np.float32)
        mean = self.x.mean((1, 2))
        self.y = {"regression": mean * 10 + 50, "multilabel": np.stack([mean > 0, mean > 0.3], 1).astype(np.int64)}.get(kind, (mean > 0).astype(np.int64))

    def batch(self, rows):
        return {"signal": self.x[rows], "label": self.y[rows], "index": np.asarray(rows)}


@pytest.mark.parametrize(
    ("kind", "more"),
    [("binary", {}), ("binary", {"loss": "focal", "mixup": 0.2}), ("binary", {"loss": "arcface"}), ("multilabel", {"smoothing": 0.1}), ("regression", {})],
)
def test_fit_learns_every_kind(kind, more):
    data = Data(kind)
    counts = counts_of(data.y, kind, 2)
    objective = Finetune(kind=kind, counts=counts, target_mean=50, target_sd=6, **more)
    torch.manual_seed(1)
    encoder = Tiny()
    head = HeadConfig(cosine=more.get("loss") == "arcface", dropout=0.0)
    model = Classifier(encoder, head, "all", level_widths(encoder, torch.zeros(1, 1, 32)), n_outputs(kind, 2))
    freeze_unused(model, torch.zeros(2, 1, 32))
    for _ in fit(
        model, objective, Batches(data, np.arange(64), batch_size=32, seed=0), FitConfig(n_steps=60, batch_size=32, lr=1e-2, layer_decay=0.7), device="cpu"
    ):
        pass
    score = objective.scores(model.eval()(torch.from_numpy(data.x))).detach().numpy()
    if kind == "regression":
        assert np.abs(score[:, 0] - data.y).mean() < 0.5 * np.abs(data.y - data.y.mean()).mean()
    else:
        assert ((score > 0.5).reshape(64, -1) == data.y.reshape(64, -1)).mean() > 0.9


@pytest.mark.parametrize("name", ["linear", "query_pool"])
def test_lower_layers_move_less_and_the_whole_head_moves_fully(name):
    moved = {}
    for decay in (None, 0.5):
        model, data = classifier(name), Data("binary")
        freeze_unused(model, torch.zeros(2, 1, 32))
        before = [p.detach().clone() for p in model.parameters()]
        cfg = FitConfig(n_steps=1, batch_size=32, lr=1e-2, warmup=0.0, schedule="constant", clip_norm=None, weight_decay=0.0, layer_decay=decay)
        for _ in fit(model, Finetune(counts=(32, 32)), Batches(data, np.arange(64), batch_size=32, seed=0), cfg, device="cpu"):
            pass
        moved[decay] = {name: (p.detach() - b) for (name, p), b in zip(model.named_parameters(), before, strict=True)}
    share = {"encoder.embed": 0.125, "encoder.blocks.0": 0.25, "encoder.blocks.1": 0.5}
    for key, step in moved[None].items():
        if not key.startswith("encoder.decoder"):  # nothing reaches it
            expected = next((rate for start, rate in share.items() if key.startswith(start)), 1.0)
            assert torch.allclose(moved[0.5][key], expected * step, atol=1e-7), key
    assert {"encoder.norm.weight", "head.classify.weight"} <= {key for key, step in moved[None].items() if step.abs().max() > 1e-4}


def test_tokens_are_not_mixed():
    batch = {"signal": torch.zeros(2, 5, dtype=torch.int64), "index": torch.arange(2), "label": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match="mixup must be 0 for a network that reads tokens"):
        Finetune(balanced=False, mixup=0.4)(None, batch, step())


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="mixup 0"):
        Finetune(counts=(1, 1), loss="arcface", mixup=0.1)
    with pytest.raises(ValueError, match="counts"):
        Finetune()
    with pytest.raises(ValueError, match="smoothing"):
        Finetune(counts=(1, 1), smoothing=1.0)
    with pytest.raises(ValueError, match="loss must be"):
        Finetune(counts=(1, 1), loss="hinge")


class Leads(nn.Module):
    """Tokens of a (B, 2, 32) signal that say which leads it was told of."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)

    def encode(self, x_BCT, *, valid_BT=None, channel_present_BC=None):
        told = torch.ones(len(x_BCT), 2) if channel_present_BC is None else channel_present_BC.float()
        a = self.embed(x_BCT.sum(1).reshape(len(x_BCT), 8, 4)) + told.sum(1)[:, None, None] * torch.arange(8.0)
        return Encoded(a, a.mean(1), OrderedDict(block1=a))


def test_a_missing_lead_is_told_to_the_network_in_training_and_of_a_mixture_what_either_has():
    torch.manual_seed(0)
    encoder = Leads()
    model = Classifier(encoder, HeadConfig(dropout=0.0), "all", level_widths(encoder, torch.zeros(1, 2, 32)), 2)
    x, present = torch.randn(4, 2, 32), torch.tensor([[1, 1], [1, 0], [0, 1], [1, 0]]).bool()
    batch = {"signal": x, "index": torch.arange(4), "label": torch.tensor([0, 1, 1, 0]), "channel_present": present}
    loss = Finetune(balanced=False)(model, batch, step()).total
    expected = F.cross_entropy(model.head([encoder.encode(x, channel_present_BC=present).tokens_BND]), batch["label"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() != pytest.approx(Finetune(balanced=False)(model, {k: v for k, v in batch.items() if k != "channel_present"}, step()).total.item())
    told = []
    Finetune(balanced=False, mixup=0.4)(lambda x, valid=None, present=None: told.append(present) or x[:, 0, :2], batch, step())
    assert told[0].tolist() == [[True, True], [True, True], [True, True], [True, True]]


def test_the_pooled_head_reads_the_networks_own_vector():
    model = classifier("pooled").eval()
    x = torch.randn(3, 1, 32)
    assert model.head.classify.in_features == 8
    assert torch.allclose(model(x), model.head.classify(model.head.norm(model.encoder.encode(x).pooled_BD)))
