import math

import numpy as np
import pytest
import torch

from physio_models.conv_transformer import ConvTransformerConfig
from physio_models.himae import HiMaeConfig
from physio_models.objectives.cpc import Cpc, _anchors, _later
from physio_models.s4d import S4dConfig

NETS = {
    "s4d": lambda **changes: S4dConfig(**{"n_channels": 1, "n_samples": 64, "patch": 4, "width": 16, "depth": 1, **changes}),
    "conv_transformer": lambda **changes: ConvTransformerConfig(
        **{"n_channels": 1, "n_samples": 64, "patch": 4, "width": 16, "depth": 1, "n_heads": 2, **changes}
    ),
}


def built(kind: str = "s4d", **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return NETS[kind](**changes).build()


def batch(n: int = 6, n_samples: int = 64) -> dict[str, torch.Tensor]:
    t, g = torch.linspace(0, 8 * math.pi, n_samples), torch.Generator().manual_seed(1)
    waves = [torch.sin((1 + 0.3 * i) * t + i) * (1 + 0.5 * i) for i in range(n)]
    return {"signal": torch.stack(waves)[:, None] + 0.05 * torch.randn(n, 1, n_samples, generator=g), "index": torch.arange(n) + 3}


def with_modules(step, objective: Cpc, net: torch.nn.Module):
    torch.manual_seed(1)
    step.modules = objective.modules(net)
    return step


def by_definition(objective: Cpc, net: torch.nn.Module, items: dict, step) -> float:
    """-log softmax of cosine over temperature, pair by pair, in NumPy."""
    with torch.no_grad():
        out = net(items["signal"], valid_BT=items.get("valid"))
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    weight = {key: value.detach().double().numpy() for key, value in step.modules.named_parameters()}
    linear = lambda x, name: x.double().numpy() @ weight[f"{name}.weight"].T + weight[f"{name}.bias"]  # noqa: E731
    z = unit(linear(out.local_BNL, "token"))
    n_items, n_tokens, _ = z.shape
    valid = np.ones((n_items, n_tokens), bool) if out.valid_BN is None else out.valid_BN.numpy()
    terms = []
    for way, context, sign in (("ahead", out.ahead_BND, 1), ("back", out.back_BND, -1)):
        noise = step.streams.uniform(f"anchors_{way}", items["index"], (n_tokens,)).numpy()
        guess = linear(context, way).reshape(n_items, n_tokens, objective.n_steps, objective.width)
        anchors = []
        for b in range(n_items):
            can = [t for t in range(n_tokens) if valid[b, t] and 0 <= t + sign < n_tokens and valid[b, t + sign]]
            anchors.append(sorted(can, key=lambda t, b=b: noise[b, t])[: objective.n_anchors])
        for k in range(1, objective.n_steps + 1):
            pairs = [(b, t) for b in range(n_items) for t in anchors[b] if 0 <= t + sign * k < n_tokens and valid[b, t + sign * k]]
            for b, t in pairs:
                rivals = [(c, s) for c, s in pairs if objective.negatives == "all" or c == b]
                logits = np.array([unit(guess[b, t, k - 1]) @ z[c, s + sign * k] for c, s in rivals]) / objective.temperature
                terms.append(np.log(np.exp(logits).sum()) - logits[rivals.index((b, t))])
    return float(np.mean(terms))


@pytest.mark.parametrize("negatives", ["all", "same"])
@pytest.mark.parametrize("tail", [64, 41])
def test_the_loss_is_its_definition(negatives: str, tail: int, step):
    objective, net = Cpc(n_steps=4, n_anchors=6, width=8, negatives=negatives), built().eval()
    items = batch()
    if tail < 64:
        items["valid"] = torch.stack([torch.arange(64) < (tail if i % 2 else 64) for i in range(6)])
    with_modules(step, objective, net)
    assert float(objective(net, items, step).total.detach()) == pytest.approx(by_definition(objective, net, items, step), rel=1e-4)


def test_anchors_have_something_to_predict_and_partners_are_real():
    valid_BN = torch.tensor([[True] * 5, [True, True, True, False, False]])
    noise_BN = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    assert sorted(_anchors(noise_BN, valid_BN, 2, 1)[1].tolist()) == [0, 1] and sorted(_anchors(noise_BN, valid_BN, 2, -1)[1].tolist()) == [1, 2]
    pair_BA, at_BA = _later(torch.tensor([[0, 3], [0, 2]]), 2, valid_BN)
    assert pair_BA.tolist() == [[True, False], [True, False]] and at_BA[:, 0].tolist() == [2, 2]


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_training_lowers_the_loss_and_reaches_every_parameter(kind: str, bidirectional: bool, step):
    objective, net, items = Cpc(n_steps=4, n_anchors=8, width=16), built(kind, bidirectional=bidirectional), batch()
    with_modules(step, objective, net)
    trained = [*net.named_parameters(), *step.modules.named_parameters()]
    optimizer, losses = torch.optim.AdamW([p for _, p in trained], lr=3e-3), []
    for i in range(30):
        loss = objective(net, items, step)
        optimizer.zero_grad()
        loss.total.backward()
        if i == 0:
            assert [name for name, p in trained if p.grad is None or not p.grad.isfinite().all()] == []
        optimizer.step()
        losses.append(loss.parts["info_nce"].item())
    assert losses[-1] < 0.7 * losses[0] and not loss.parts["accuracy"].requires_grad


def test_the_network_is_called_exactly_once(step):
    objective, net, calls = Cpc(n_steps=2), built(), []
    net.register_forward_hook(lambda *_: calls.append(1))
    objective(net, batch(), with_modules(step, objective, net))
    assert calls == [1]


def test_what_stands_past_a_tail_is_never_learned_from(step):
    objective, net, items = Cpc(n_steps=2, n_anchors=4), built().eval(), batch()
    items["valid"] = (torch.arange(64) < 40).expand(6, 64)
    changed = items | {"signal": torch.where(items["valid"][:, None], items["signal"], torch.tensor(1e3))}
    with_modules(step, objective, net)
    torch.testing.assert_close(objective(net, changed, step).total, objective(net, items, step).total)


def test_networks_that_read_everything_at_once_and_windows_too_short_are_refused(step):
    with pytest.raises(ValueError, match="reads one way at a time, HiMae does not"):
        Cpc().modules(HiMaeConfig(widths=(4, 8)).build())
    objective, net = Cpc(n_steps=16), built()
    with pytest.raises(ValueError, match="n_steps=16 must be below the 16 tokens"):
        objective(net, batch(), with_modules(step, objective, net))


@pytest.mark.parametrize("bad", [{"n_steps": 0}, {"temperature": 0.0}, {"negatives": "none"}, {"n_anchors": 0}])
def test_an_objective_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Cpc(**bad)
