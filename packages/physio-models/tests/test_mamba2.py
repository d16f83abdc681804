import numpy as np
import pytest
import torch

from physio_models.mamba2 import Mamba2, Mamba2Config, MambaBlock, MambaStack, RmsNormGated

CONFIGS = [
    Mamba2Config(d_model=8, d_state=4, headdim=4),
    Mamba2Config(d_model=8, d_state=4, headdim=4, ngroups=2, chunk_size=5),
    Mamba2Config(d_model=8, d_state=4, headdim=4, d_ssm=8, D_has_hdim=True, bias=True),
    Mamba2Config(d_model=8, d_state=4, headdim=8, rmsnorm=False, d_conv=3, conv_bias=False),
    Mamba2Config(d_model=8, d_state=4, headdim=8, norm_before_gate=True, dt_limit=(0.01, 0.05)),
]


def layer(cfg: Mamba2Config = CONFIGS[0], dtype: torch.dtype = torch.float64) -> Mamba2:
    torch.manual_seed(0)
    net = cfg.build().to(dtype)
    with torch.no_grad():
        for parameter in (net.D, *([net.norm.weight] if cfg.rmsnorm else [])):  # ones would hide a wrong place
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


def signal(length: int = 21, n_items: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n_items, length, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def by_definition(net: Mamba2, u_BLD: torch.Tensor) -> np.ndarray:
    """The layer's forward in NumPy, one position after another, from mamba_ssm's parameter names and block order alone."""
    cfg, w = net.cfg, {key: value.numpy() for key, value in net.state_dict().items()}
    u = u_BLD.numpy()
    n_items, length, _ = u.shape
    inner, ssm, heads, groups, state = cfg.expand * cfg.d_model, cfg.d_inner_ssm, cfg.n_heads, cfg.ngroups, cfg.d_state
    projected = u @ w["in_proj.weight"].T + w.get("in_proj.bias", 0.0)
    edges = np.cumsum([inner - ssm, inner - ssm, ssm, ssm, groups * state, groups * state])
    z0, x0, z, x, B, C, dt = np.split(projected, edges, axis=-1)
    xBC = np.concatenate([np.zeros((n_items, cfg.d_conv - 1, ssm + 2 * groups * state)), np.concatenate([x, B, C], -1)], 1)
    mixed = np.stack([(xBC[:, t : t + cfg.d_conv] * w["conv1d.weight"][:, 0].T).sum(1) for t in range(length)], 1) + w.get("conv1d.bias", 0.0)
    x, B, C = np.split(silu(mixed), [ssm, ssm + groups * state], axis=-1)
    x, B, C = x.reshape(n_items, length, heads, -1), B.reshape(n_items, length, groups, state), C.reshape(n_items, length, groups, state)
    B, C = np.repeat(B, heads // groups, 2), np.repeat(C, heads // groups, 2)
    dt = np.clip(np.log1p(np.exp(dt + w["dt_bias"])), *cfg.dt_limit)
    A = -np.exp(w["A_log"])
    D = w["D"].reshape(heads, -1)
    S = np.zeros((n_items, heads, cfg.headdim, state))
    rows = []
    for t in range(length):
        S = np.exp(dt[:, t] * A)[..., None, None] * S + dt[:, t][..., None, None] * x[:, t][..., None] * B[:, t][:, :, None, :]
        rows.append((S * C[:, t][:, :, None, :]).sum(-1) + D * x[:, t])
    y = np.stack(rows, 1).reshape(n_items, length, ssm)
    if not cfg.rmsnorm:
        y = y * silu(z)
    else:
        y = y if cfg.norm_before_gate else y * silu(z)
        grouped = y.reshape(n_items, length, groups, -1)
        y = (grouped / np.sqrt((grouped**2).mean(-1, keepdims=True) + 1e-5)).reshape(n_items, length, ssm) * w["norm.weight"]
        y = y * silu(z) if cfg.norm_before_gate else y
    return np.concatenate([silu(z0) * x0, y], -1) @ w["out_proj.weight"].T + w.get("out_proj.bias", 0.0)


@pytest.mark.parametrize("cfg", CONFIGS)
def test_the_layer_is_its_definition(cfg: Mamba2Config):
    net = layer(cfg)
    with torch.no_grad():
        np.testing.assert_allclose(net(signal()).numpy(), by_definition(net, signal()), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("cfg", CONFIGS)
@torch.no_grad()
def test_steps_and_pieces_are_one_pass(cfg: Mamba2Config):
    net, u_BLD = layer(cfg), signal()
    whole, end = net.scan(u_BLD)
    first, state = net.scan(u_BLD[:, :2])  # fewer positions than the convolution is wide
    second, last = net.scan(u_BLD[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    state, rows = net.empty_state(u_BLD), []
    for t in range(u_BLD.shape[1]):
        y_BD, state = net.step(u_BLD[:, t], state)
        rows.append(y_BD)
    torch.testing.assert_close(torch.stack(rows, 1), whole)
    for got in (last, state):
        torch.testing.assert_close(got.conv_BEK, end.conv_BEK)
        torch.testing.assert_close(got.ssm_BHPN, end.ssm_BHPN)


@torch.no_grad()
def test_a_step_leaves_the_given_state_alone():
    net = layer()
    state = net.scan(signal())[1]
    kept = [value.clone() for value in state]
    net.step(signal()[:, 0], state)
    assert all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))


@torch.no_grad()
def test_nothing_flows_from_the_future():
    net, u_BLD = layer(), signal(40)
    changed = u_BLD.clone()
    changed[:, 17:] += 10
    before, after = net(u_BLD), net(changed)
    assert torch.equal(before[:, :17], after[:, :17]) and not torch.allclose(before[:, 17:], after[:, 17:])


@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_padding_changes_no_real_position(bidirectional: bool):
    torch.manual_seed(0)
    block = MambaBlock(CONFIGS[1], bidirectional=bidirectional).double()
    x_BLD = signal(20)
    valid_BL = (torch.arange(20) < 13).expand(2, 20)
    padded = block(x_BLD.masked_fill(~valid_BL[..., None], 1e3), valid_BL=valid_BL)
    torch.testing.assert_close(padded[:, :13], block(x_BLD[:, :13]), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_bidirectional_block_sees_both_ways():
    torch.manual_seed(0)
    block = MambaBlock(CONFIGS[0], bidirectional=True).double()
    x_BLD, changed = signal(20), signal(20)
    changed[:, 15] += 1
    assert not torch.allclose(block(x_BLD)[:, :15], block(changed)[:, :15])


@pytest.mark.parametrize("cfg", CONFIGS)
def test_every_parameter_learns(cfg: Mamba2Config):
    torch.manual_seed(0)
    stack = MambaStack(cfg, 2, bidirectional=True)
    stack(signal(dtype=torch.float32)).square().sum().backward()
    assert [name for name, p in stack.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.abs().sum() > 0] == []


def test_names_and_shapes_are_those_of_mamba_ssm():
    """Keys and shapes from the published layer: d_model 64, d_state 64, headdim 8 is the Ti-MAE port's, 35,120 parameters."""
    with torch.device("meta"):
        net = Mamba2Config(d_model=64, d_state=64, headdim=8).build()
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert shapes == {
        "dt_bias": (16,),
        "A_log": (16,),
        "D": (16,),
        "in_proj.weight": (400, 64),
        "conv1d.weight": (256, 1, 4),
        "conv1d.bias": (256,),
        "norm.weight": (128,),
        "out_proj.weight": (64, 128),
    }
    assert sum(p.numel() for p in net.parameters()) == 25_600 + 1_280 + 48 + 128 + 8_192


@torch.no_grad()
def test_the_initial_values_are_in_their_published_ranges():
    torch.manual_seed(0)
    net = Mamba2Config(d_model=256, headdim=2).build()
    dt = torch.nn.functional.softplus(net.dt_bias)
    assert 1e-3 * 0.999 <= float(dt.min()) < 2e-3 and 5e-2 < float(dt.max()) <= 1e-1 * 1.001
    assert 1 <= float(net.A_log.exp().min()) and float(net.A_log.exp().max()) <= 16.001
    assert bool((net.D == 1).all())


def test_bf16_autocast_is_finite_and_near():
    net, u_BLD = layer(dtype=torch.float32), signal(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(u_BLD)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and bool(net.in_proj.weight.grad.isfinite().all())
    with torch.no_grad():
        exact = net(u_BLD)
        assert float((y.float() - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_the_norm_is_per_group():
    norm = RmsNormGated(4, n_groups=2)
    y = torch.tensor([[3.0, 4.0, 30.0, 40.0]])
    big = torch.full_like(y, 50.0)  # SiLU(50) = 50
    torch.testing.assert_close(norm(y, big), torch.tensor([[3.0, 4.0, 3.0, 4.0]]) / 12.5**0.5)


@pytest.mark.parametrize("shape", [(2, 8), (2, 5, 7)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="u_BLD must be"):
        layer()(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match="u_BD must be"):
        layer().step(torch.zeros(2, 7, dtype=torch.float64), layer().empty_state(torch.zeros(2)))


@pytest.mark.parametrize(
    "bad",
    [
        {"headdim": 5},
        {"ngroups": 3},
        {"d_ssm": 99},
        {"d_state": 0},
        {"dt_limit": (1.0, 0.5)},
        {"A_init_range": (0.0, 1.0)},
        {"dt_min": 0.0},
        {"chunk_size": 0},
    ],
)
def test_a_config_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Mamba2Config(**{"d_model": 8, "d_state": 4, "headdim": 4, **bad})


@pytest.mark.slow
def test_it_compiles_without_graph_breaks():
    net, u_BLD = layer(dtype=torch.float32), signal(dtype=torch.float32)
    compiled = torch.compile(net, fullgraph=True)
    torch.testing.assert_close(compiled(u_BLD), net(u_BLD), rtol=1e-4, atol=1e-5)
