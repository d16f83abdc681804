import math

import numpy as np
import pytest
import torch

from physio_models.objectives.masked import MaskedReconstruction
from physio_models.ti_mae import TiMae, TiMaeClassifier, TiMaeConfig

SMALL = {"n_samples": 24, "width": 16, "n_heads": 2, "hidden": 32, "decoder_width": 8, "decoder_heads": 2, "decoder_hidden": 16}
KINDS = [{}, {"decoder": "cross"}, {"cls": False}, {"cls": False, "decoder": "cross"}, {"patch": 4, "n_channels": 2}, {"layout": "original"}]


def built(**changes) -> TiMae:
    torch.manual_seed(0)
    net = TiMaeConfig(**{**SMALL, **changes}).build()
    with torch.no_grad():  # zeros and ones as initial values would hide a wrong place
        for name, parameter in net.named_parameters():
            if "token" in name or "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def signal(net: TiMae, n: int = 3) -> torch.Tensor:
    return torch.randn(n, net.cfg.n_channels, net.cfg.n_samples, generator=torch.Generator().manual_seed(1))


def mask(net: TiMae, n: int = 3, n_hidden: int | None = None) -> torch.Tensor:
    noise = torch.rand(n, net.cfg.n_tokens, generator=torch.Generator().manual_seed(2))
    return noise.argsort(1).argsort(1) < (net.cfg.n_tokens * 3 // 4 if n_hidden is None else n_hidden)


# Sizes


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_original_has_the_published_number_of_parameters():
    with torch.device("meta"):
        net = TiMaeConfig.original().build()
        assert (count(net.encoder), count(net.decoder), count(net)) == (91_712, 25_313, 117_025)
        assert count(TiMaeClassifier(TiMaeConfig.original(decoder="none"), 5)) == 92_037


def test_the_default_adds_output_projections_and_biases_alone():
    """Per block of width D: a projection D^2 + D and the biases 3 D of query, key and value."""
    with torch.device("meta"):
        net, original = TiMaeConfig.preset("reference").build(), TiMaeConfig.original().build()
    assert count(net.encoder) - count(original.encoder) == 2 * (64**2 + 4 * 64)
    assert count(net.decoder) - count(original.decoder) == 2 * (32**2 + 4 * 32)


# The original's numbers


def layer_norm(x: np.ndarray, w: dict, name: str) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def original_layer(x: np.ndarray, w: dict, name: str, n_heads: int) -> np.ndarray:
    """What the port computes, its three departures from a pre-norm transformer included."""
    x = layer_norm(x, w, f"{name}.norm1")  # the stream itself
    q, k, v = ((x @ w[f"{name}.attention.{part}.weight"].T).reshape(*x.shape[:2], n_heads, -1).transpose(0, 2, 1, 3) for part in ("query", "key", "value"))
    logits = q @ k.transpose(0, 1, 3, 2) * q.shape[-1]  # times the head width, not over its root
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    x = x + ((weight / weight.sum(-1, keepdims=True)) @ v).transpose(0, 2, 1, 3).reshape(x.shape)  # no projection
    x = layer_norm(x, w, f"{name}.norm2")
    return x + gelu(x @ w[f"{name}.ffn.0.weight"].T + w[f"{name}.ffn.0.bias"]) @ w[f"{name}.ffn.3.weight"].T + w[f"{name}.ffn.3.bias"]


def original_forward(net: TiMae, x_BCT: torch.Tensor, mask_BN: torch.Tensor) -> np.ndarray:
    """Encoder on shuffled visible tokens, decoder on tokens sent home, from the state dict's names alone."""
    w = {key: value.double().numpy() for key, value in net.state_dict().items()}
    x = np.pad(x_BCT.double().numpy(), ((0, 0), (0, 0), (1, 1)))
    conv = w["encoder.embedding.conv.weight"]
    tokens = np.stack([np.einsum("bck,dck->bd", x[:, :, t : t + 3], conv) for t in range(x_BCT.shape[-1])], 1) + w["encoder.embedding.conv.bias"]
    pe, pe_out = w["encoder.positional_encoding.pe"], w["decoder.positional_encoding.pe"]
    tokens = tokens + pe[:, 1:]
    rows = []
    for item, hidden in zip(tokens, mask_BN.numpy(), strict=True):
        kept = np.random.default_rng(0).permutation(np.flatnonzero(~hidden))
        z = np.concatenate([w["encoder.cls_token"][0] + pe[0, :1], item[kept]])[None]
        for i in range(net.cfg.depth):
            z = original_layer(z, w, f"encoder.layers.{i}", net.cfg.n_heads)
        z = layer_norm(z, w, "encoder.norm") @ w["decoder.embedding.weight"].T + w["decoder.embedding.bias"]
        y = np.repeat(w["decoder.mask_token"], len(hidden) + 1, 1)
        y[:, 0], y[:, 1 + kept] = z[:, 0], z[:, 1:]
        y = y + pe_out
        for i in range(net.cfg.decoder_depth):
            y = original_layer(y, w, f"decoder.layers.{i}", net.cfg.decoder_heads)
        y = layer_norm(y, w, "decoder.norm") @ w["decoder.projection.weight"].T + w["decoder.projection.bias"]
        rows.append(y[0, 1:].T)
    return np.stack(rows)


@torch.no_grad()
def test_the_original_layout_gives_the_original_reconstruction():
    net = built(layout="original", n_channels=2)
    out = net(signal(net), mask(net), n_visible=6)
    np.testing.assert_allclose(out.pred_BCT.numpy(), original_forward(net, signal(net), mask(net)), rtol=1e-3, atol=2e-5)


def test_the_positions_are_sines_and_cosines_in_turn():
    pe = TiMaeConfig.original().build().encoder.positional_encoding.pe[0].double().numpy()
    assert pe.shape == (141, 64)
    for t, i in ((0, 0), (7, 3), (140, 31)):
        angle = t / 10_000 ** (2 * i / 64)
        assert pe[t, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6) and pe[t, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


# Defects of the port that the default must not have


@torch.no_grad()
def test_attention_is_divided_by_the_root_of_the_head_width():
    """The block's attention against softmax(q k / sqrt(d)) v, projected: a factor of d instead would show."""
    net = built()
    attention, x = net.encoder.layers[0].attention, torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(3))
    q, k, v = (part.reshape(1, 5, 2, 8).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    expected = attention.out(((q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1) @ v).transpose(1, 2).reshape(1, 5, 16))
    torch.testing.assert_close(attention(x), expected)


@torch.no_grad()
def test_the_stream_passes_every_block_untouched_when_its_branches_are_silent():
    net = built()
    for layer in net.encoder.layers:
        for linear in (layer.attention.out, layer.mlp.down):
            linear.weight.zero_(), linear.bias.zero_()
    tokens = net.encoder.tokens(signal(net))
    assert torch.equal(net.encode(signal(net)).levels["block1"], tokens)


@torch.no_grad()
def test_pretraining_works_without_a_class_token_and_with_one_at_the_published_length():
    for cls in (True, False):
        net = TiMaeConfig(cls=cls).build()
        assert net(torch.randn(2, 1, 140), torch.rand(2, 140) < 0.75).pred_BCT.shape == (2, 1, 140)


@torch.no_grad()
def test_positions_do_not_move_between_pretraining_and_reading_out():
    """A visible sample has the position it has without a mask, with a class token and without."""
    for cls in (True, False):
        net = built(cls=cls, depth=1)
        seen = []
        net.encoder.layers[0].register_forward_hook(lambda _m, args, _o, seen=seen: seen.append(args[0]))
        x = signal(net) * 0
        net(x, mask(net), n_visible=6)
        net.encode(x)
        kept = (~mask(net)[0]).nonzero()[:, 0]
        extra = int(cls)
        assert torch.equal(seen[0][0, extra:], seen[1][0, extra:][kept])


@pytest.mark.parametrize("changes", [k for k in KINDS if k.get("layout") != "original"])
@torch.no_grad()
def test_hidden_samples_reach_no_reconstruction(changes: dict):
    net, x = built(**changes), signal(built(**changes))
    hidden = mask(net).repeat_interleave(net.cfg.patch, 1)[:, None]
    changed = torch.where(hidden, x + 100, x)
    assert torch.equal(net(changed, mask(net)).pred_BCT, net(x, mask(net)).pred_BCT)


@pytest.mark.parametrize("changes", KINDS)
@torch.no_grad()
def test_padding_changes_no_real_position(changes: dict):
    net, x = built(**changes), signal(built(**changes))
    valid_BT = (torch.arange(24) < 16).expand(3, 24)
    changed = torch.where(valid_BT[:, None], x, torch.tensor(50.0))
    first, second = net.encode(x, valid_BT=valid_BT), net.encode(changed, valid_BT=valid_BT)
    torch.testing.assert_close(first.pooled_BD, second.pooled_BD)
    torch.testing.assert_close(first.tokens_BND, second.tokens_BND)
    assert not torch.allclose(first.pooled_BD, net.encode(changed).pooled_BD)
    real = net.token_valid(valid_BT)["block1"]
    assert not first.tokens_BND[~real].any() and bool(first.tokens_BND[real].any(-1).all())
    outs = [net(given, mask(net), valid_BT=valid_BT).pred_BCT[..., :16] for given in (x, changed)]
    torch.testing.assert_close(*outs)


@torch.no_grad()
def test_the_features_of_a_short_window_are_those_of_a_shorter_network():
    """Positions are absolute, so a network of 16 samples and a tail of 8 after 16 samples see the same."""
    long, short = built(layout="pre_norm"), TiMaeConfig(**{**SMALL, "n_samples": 16}).build().eval()
    short.load_state_dict(long.state_dict())
    valid_BT = (torch.arange(24) < 16).expand(3, 24)
    torch.testing.assert_close(long.encode(signal(long), valid_BT=valid_BT).pooled_BD, short.encode(signal(long)[..., :16]).pooled_BD, rtol=1e-4, atol=1e-5)


# The cross decoder


@torch.no_grad()
def test_the_cross_decoder_reconstructs_what_it_is_asked_and_each_token_alone():
    net, x = built(decoder="cross"), signal(built(decoder="cross"))
    whole = net(x, mask(net))
    assert torch.equal(whole.mask_B1T[:, 0], mask(net)) and not whole.pred_BCT[~whole.mask_B1T].any()
    ask = mask(net) & (mask(net, n_hidden=9))
    part = net(x, mask(net), predict=ask)
    assert torch.equal(part.mask_B1T[:, 0], ask)
    torch.testing.assert_close(part.pred_BCT[part.mask_B1T], whole.pred_BCT[part.mask_B1T])
    assert not part.pred_BCT[~part.mask_B1T].any()


def test_the_cross_decoder_is_trained_on_a_part(step):
    net = built(decoder="cross").train()
    loss = MaskedReconstruction(mask_ratio=0.75, predict_fraction=0.5)(net, {"signal": signal(net), "index": torch.arange(3)}, step)
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_decoder_is_not_asked_what_it_cannot():
    net = built()
    with pytest.raises(ValueError, match="predict must be None"):
        net(signal(net), mask(net), predict=mask(net))
    with pytest.raises(ValueError, match="mask_BN must be None"):
        built(decoder="none")(signal(net), mask(net))


# Training and reading out


@pytest.mark.parametrize("changes", KINDS)
def test_every_parameter_learns_and_the_loss_falls(changes: dict, step):
    net = built(**changes).train()
    t = torch.linspace(0, 6 * math.pi, 24)
    items = {"signal": torch.stack([torch.sin(t + phase) for phase in range(8)])[:, None].repeat(1, net.cfg.n_channels, 1), "index": torch.arange(8)}
    objective, losses = MaskedReconstruction(mask_ratio=0.5), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for i in range(30):
        loss = objective(net, items, step).total
        optimizer.zero_grad()
        loss.backward()
        if i == 0:
            assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
@pytest.mark.parametrize("n_channels", [1, 2, 12])
@torch.no_grad()
def test_encoding_keeps_its_contract(pooling: str, n_channels: int):
    net = built(pooling=pooling, n_channels=n_channels)
    encoded = net.encode(signal(net))
    assert list(encoded.levels) == ["block1", "block2"] and encoded.tokens_BND.shape == (3, 24, 16)
    expected = {"mean": encoded.tokens_BND.mean(1), "max": encoded.tokens_BND.amax(1)}.get(pooling)
    assert encoded.pooled_BD.shape == (3, 16) and (expected is None or torch.equal(encoded.pooled_BD, expected))
    with pytest.raises(ValueError, match=f"{n_channels} channels"):
        net.encode(torch.zeros(3, n_channels + 1, 24))
    with pytest.raises(ValueError, match="24 samples"):
        net.encode(torch.zeros(3, n_channels, 25))


@torch.no_grad()
def test_the_class_token_reads_what_the_mean_does_not():
    net = built(pooling="cls")
    whole = net.encoder.levels(net.encoder.tokens(signal(net)), None)[-1]
    assert torch.equal(net.encode(signal(net)).pooled_BD, whole[:, 0]) and torch.equal(net.encode(signal(net)).tokens_BND, whole[:, 1:])


@pytest.mark.parametrize("tail", [24, 13])
@torch.no_grad()
def test_the_class_token_alone_is_the_one_among_all(tail: int):
    net = built(pooling="cls", decoder="none")
    valid_BT = (torch.arange(24) < tail).expand(3, 24)
    torch.testing.assert_close(net(signal(net), valid_BT=valid_BT).embedding_BD, net.encode(signal(net), valid_BT=valid_BT).pooled_BD)


@torch.no_grad()
def test_an_absent_channel_reads_as_zeros():
    net = built(n_channels=2)
    x, present = signal(net), torch.tensor([[True, True], [False, True], [True, True]])
    zeroed = x * present[..., None]
    assert torch.equal(net.encode(x, channel_present_BC=present).pooled_BD, net.encode(zeroed).pooled_BD)


def test_a_classifier_trains_its_encoder_and_head():
    torch.manual_seed(0)
    net = TiMaeClassifier(TiMaeConfig(**SMALL, decoder="none"), 5)
    torch.nn.functional.cross_entropy(net(torch.randn(4, 1, 24)), torch.arange(4)).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    assert {key.split(".")[0] for key in net.state_dict()} == {"encoder", "classifier"}


def test_it_is_the_same_for_the_same_seed_and_number_of_visible_tokens():
    net = built()
    same = built()
    known, found = net(signal(net), mask(net), n_visible=6), same(signal(net), mask(net))
    torch.testing.assert_close(known.pred_BCT, found.pred_BCT)


def test_bf16_autocast_is_finite():
    for changes in KINDS:
        net = built(**changes)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(signal(net), mask(net))
        assert bool(out.pred_BCT.isfinite().all())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n_heads": 3}, "n_heads"),
        ({"patch": 9}, "patch=9"),
        ({"decoder": "both"}, "decoder"),
        ({"cls": False, "pooling": "cls"}, "pooling='cls' needs cls=True"),
        ({"layout": "original", "decoder": "cross"}, "layout='original'"),
        ({"layout": "original", "cls": False}, "cannot be pretrained without a class token"),
        ({"dropout": 1.0}, "dropout"),
        ({"depth": 0}, "depth"),
    ],
)
def test_a_config_checks_itself(bad: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TiMaeConfig(**bad)


def test_a_mask_of_another_length_is_refused():
    net = built(patch=4)
    with pytest.raises(ValueError, match=r"mask_BN must be \(3, 6\)"):
        net(signal(net), torch.zeros(3, 24, dtype=torch.bool))


@pytest.mark.slow
@pytest.mark.parametrize("changes", KINDS)
def test_it_compiles_without_graph_breaks(changes: dict):
    net = built(**changes)
    x, hidden, n_visible = signal(net), mask(net), net.cfg.n_tokens - net.cfg.n_tokens * 3 // 4
    more = {"n_predicted": net.cfg.n_tokens - n_visible} if changes.get("decoder") == "cross" else {}
    compiled = torch.compile(net, fullgraph=True)
    torch.testing.assert_close(compiled(x, hidden, n_visible=n_visible, **more).pred_BCT, net(x, hidden).pred_BCT, rtol=1e-3, atol=1e-4)
