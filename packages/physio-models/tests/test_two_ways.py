import math

import numpy as np
import pytest
import torch

from physio_models.conv_transformer import ConvTransformerConfig
from physio_models.s4d import S4dConfig, S4dLayer
from physio_models.two_ways import TwoWays, last_to_first

CONFIGS = {
    "s4d": lambda **changes: S4dConfig(**{"n_channels": 2, "n_samples": 40, "patch": 2, "width": 16, "depth": 2, **changes}),
    "conv_transformer": lambda **changes: ConvTransformerConfig(
        **{"n_channels": 2, "n_samples": 40, "patch": 2, "width": 16, "depth": 2, "n_heads": 2, **changes}
    ),
}
each = pytest.mark.parametrize("kind", CONFIGS)


def built(kind: str, **changes) -> TwoWays:
    torch.manual_seed(0)
    return CONFIGS[kind](**changes).build().eval()


def signal(n_channels: int = 2, n_samples: int = 40) -> torch.Tensor:
    return torch.randn(3, n_channels, n_samples, generator=torch.Generator().manual_seed(1))


# The state-space layer


def by_recurrence(layer: S4dLayer, u_BND: np.ndarray) -> np.ndarray:
    """The discretised system one step after another, states as complex numbers."""
    w = {key: value.detach().double().numpy() for key, value in layer.named_parameters()}
    dt = np.exp(w["log_dt"])[:, None]
    A = -np.exp(w["log_decay"]) + 1j * w["frequency"]
    C = w["out"][..., 0] + 1j * w["out"][..., 1]
    A_bar, B_bar = np.exp(dt * A), (np.exp(dt * A) - 1) / A
    h = np.zeros((len(u_BND), *A.shape), complex)
    rows = []
    for t in range(u_BND.shape[1]):
        h = A_bar * h + B_bar * u_BND[:, t, :, None]
        rows.append(2 * (C * h).sum(-1).real + w["skip"] * u_BND[:, t])
    return np.stack(rows, 1)


@pytest.mark.parametrize("length", [1, 7, 64])
@torch.no_grad()
def test_the_long_convolution_is_the_recurrence(length: int):
    torch.manual_seed(0)
    layer = S4dLayer(5, 8, 1e-3, 1e-1).double()
    u_BND = torch.randn(2, length, 5, dtype=torch.float64)
    np.testing.assert_allclose(layer(u_BND).numpy(), by_recurrence(layer, u_BND.numpy()), rtol=1e-9, atol=1e-10)


def test_states_start_on_the_line_of_s4d_lin():
    layer = S4dLayer(3, 8, 1e-3, 1e-1)
    np.testing.assert_allclose(-layer.log_decay.detach().exp().numpy(), -0.5 * np.ones((3, 4)), rtol=1e-6)
    np.testing.assert_allclose(layer.frequency.detach().numpy(), np.tile(math.pi * np.arange(4), (3, 1)), rtol=1e-6)
    assert layer.log_dt.exp().min() >= 1e-3 * 0.999 and layer.log_dt.exp().max() <= 1e-1 * 1.001


# Both encoders


@each
@torch.no_grad()
def test_neither_way_knows_what_it_has_not_read(kind: str):
    net, x = built(kind), signal()
    changed = x.clone()
    changed[..., 24:26] += 10  # token 12
    before, after = net(x), net(changed)
    moved_ahead = (before.ahead_BND - after.ahead_BND).abs().amax((0, 2)) > 1e-5
    moved_back = (before.back_BND - after.back_BND).abs().amax((0, 2)) > 1e-5
    moved_alone = (before.local_BNL - after.local_BNL).abs().amax((0, 2)) > 1e-5
    assert not moved_ahead[:12].any() and moved_ahead[12] and not moved_back[13:].any() and moved_back[12]
    assert moved_alone.nonzero()[:, 0].tolist() == [12]


@each
@pytest.mark.parametrize("n_valid", [9, 24, 40])
@torch.no_grad()
def test_a_short_tail_gives_the_features_of_the_window_cut_short(kind: str, n_valid: int):
    net, x = built(kind), signal()
    valid_BT = (torch.arange(40) < n_valid).expand(3, 40)
    cut, tailed = net.encode(x[..., :n_valid]), net.encode(torch.where(valid_BT[:, None], x, torch.tensor(30.0)), valid_BT=valid_BT)
    torch.testing.assert_close(tailed.pooled_BD, cut.pooled_BD, rtol=1e-4, atol=1e-5)
    n = -(-n_valid // 2)
    assert net.token_valid(valid_BT)["block1"].sum(1).tolist() == [n] * 3
    for name, level in cut.levels.items():
        torch.testing.assert_close(tailed.levels[name][:, :n], level, rtol=1e-4, atol=1e-5)
        assert not tailed.levels[name][:, n:].any()


@torch.no_grad()
def test_tails_of_different_length_are_turned_each_on_its_own():
    valid_BN = torch.tensor([[True, True, True, False], [True, True, True, True], [True, False, False, False]])
    order_BN = last_to_first(torch.zeros(3, 4, 1), valid_BN)
    assert order_BN.tolist() == [[2, 1, 0, 3], [3, 2, 1, 0], [0, 1, 2, 3]]
    assert torch.equal(order_BN.gather(1, order_BN), torch.arange(4).expand(3, 4))


@each
@pytest.mark.parametrize(("n_channels", "n_samples"), [(1, 40), (2, 33), (12, 64)])
@torch.no_grad()
def test_encoding_keeps_its_contract(kind: str, n_channels: int, n_samples: int):
    net = built(kind, n_channels=n_channels)
    encoded = net.encode(signal(n_channels, n_samples))  # length-free
    assert list(encoded.levels) == ["block1", "block2"] == list(net.level_names)
    assert encoded.tokens_BND.shape == (3, -(-n_samples // 2), 32) and encoded.pooled_BD.shape == (3, net.n_features)
    torch.testing.assert_close(encoded.pooled_BD, net(signal(n_channels, n_samples)).embedding_BD)
    with pytest.raises(ValueError, match=f"{n_channels} channels"):
        net.encode(torch.zeros(3, n_channels + 1, 40))


@each
@torch.no_grad()
def test_an_absent_channel_reads_as_zeros(kind: str):
    net, x = built(kind), signal()
    present = torch.tensor([[True, True], [False, True], [True, False]])
    torch.testing.assert_close(net.encode(x, channel_present_BC=present).pooled_BD, net.encode(x * present[..., None]).pooled_BD)


@each
@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_parameter_learns(kind: str, bidirectional: bool):
    net = built(kind, bidirectional=bidirectional).train()
    out = net(signal())
    assert (out.back_BND is None) is not bidirectional and net.n_features == (32 if bidirectional else 16)
    sum((value**2).sum() for value in (out.embedding_BD, out.local_BNL)).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@each
def test_bf16_autocast_is_finite_and_near(kind: str):
    net = built(kind)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cast = net.encode(signal()).pooled_BD.float()
    with torch.no_grad():
        plain = net.encode(signal()).pooled_BD
    assert float((cast - plain).abs().max()) < 0.1 * float(plain.abs().max())


@pytest.mark.parametrize("bad", [{"d_state": 3}, {"patch": 0}, {"dropout": 1.0}, {"dt_min": 0.0}])
def test_an_s4d_config_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        S4dConfig(**bad)


@pytest.mark.parametrize("bad", [{"n_heads": 3}, {"width": 12, "n_heads": 4}, {"depth": 0}])
def test_a_conv_transformer_config_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ConvTransformerConfig(**bad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*complex operators")
@each
def test_it_compiles_without_graph_breaks(kind: str):
    net = built(kind)
    torch.testing.assert_close(torch.compile(net, fullgraph=True)(signal()).embedding_BD, net(signal()).embedding_BD, rtol=1e-3, atol=1e-4)
