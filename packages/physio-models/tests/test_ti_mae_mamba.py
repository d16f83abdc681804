import math

import numpy as np
import pytest
import torch

from physio_models.objectives.masked import MaskedReconstruction
from physio_models.ti_mae_mamba import TiMaeMamba, TiMaeMambaConfig

SMALL = {"n_samples": 24, "width": 16, "d_state": 8, "headdim": 8, "decoder_width": 8, "decoder_d_state": 8, "decoder_headdim": 8}
ORIGINAL = {"layout": "original", "depth": 1, "bidirectional": False, "cls": True}
KINDS = [{}, {"cls": True}, {"bidirectional": False}, {"patch": 4, "n_channels": 2}, ORIGINAL]
SOUND = KINDS[:-1]


def built(**changes) -> TiMaeMamba:
    torch.manual_seed(0)
    net = TiMaeMambaConfig(**{**SMALL, **changes}).build()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "token" in name or "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def signal(net: TiMaeMamba, n: int = 3) -> torch.Tensor:
    return torch.randn(n, net.cfg.n_channels, net.cfg.n_samples, generator=torch.Generator().manual_seed(1))


def mask(net: TiMaeMamba, n: int = 3) -> torch.Tensor:
    noise = torch.rand(n, net.cfg.n_tokens, generator=torch.Generator().manual_seed(2))
    return noise.argsort(1).argsort(1) < net.cfg.n_tokens * 3 // 4


@pytest.mark.parametrize(("size", "n"), [("small", 35_696), ("large", 1_714_688)])
def test_the_originals_have_the_published_numbers_of_parameters(size: str, n: int):
    with torch.device("meta"):
        net = TiMaeMambaConfig.original(size).build()
    assert sum(p.numel() for p in net.encoder.parameters()) == n


@torch.no_grad()
def test_the_original_layout_masks_what_the_scan_has_seen():
    """Embedding, class token last, one layer, norm; then three quarters of the *outputs* are dropped."""
    net = built(**ORIGINAL)
    x, hidden = signal(net), mask(net)
    padded = torch.nn.functional.pad(x, (1, 1))
    conv = net.encoder.embedding.conv
    tokens = torch.nn.functional.conv1d(padded, conv.weight, conv.bias).transpose(1, 2)
    seen = net.encoder.norm(net.encoder.mamba(torch.cat([tokens, net.encoder.cls_token.expand(3, 1, -1)], 1)))
    y = net.decoder.embedding(seen)
    y[:, :-1] = torch.where(hidden[..., None], net.decoder.mask_token, y[:, :-1])
    expected = net.decoder.projection(net.decoder.norm(net.decoder.mamba(y)))[:, :-1].transpose(1, 2)
    torch.testing.assert_close(net(x, hidden, n_visible=6).pred_BCT, expected)
    changed = torch.where(hidden[:, None], x + 5, x)
    assert not torch.allclose(net(changed, hidden).pred_BCT, net(x, hidden).pred_BCT), "the port's leak, kept so that its files mean the same"


@pytest.mark.parametrize("changes", SOUND)
@torch.no_grad()
def test_hidden_samples_reach_no_reconstruction(changes: dict):
    net, x = built(**changes), signal(built(**changes))
    hidden = mask(net).repeat_interleave(net.cfg.patch, 1)[:, None]
    changed = torch.where(hidden, x + 100, x)
    assert torch.equal(net(changed, mask(net)).pred_BCT, net(x, mask(net)).pred_BCT)


@torch.no_grad()
def test_visible_tokens_meet_the_scan_in_the_order_of_time_with_their_own_positions():
    net, seen = built(), []
    net.encoder.layers[0].register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    net(0 * signal(net), mask(net), n_visible=6)
    kept = [(~row).nonzero()[:, 0] for row in mask(net)]
    bias, pe = net.encoder.embedding.conv.bias, net.encoder.positional_encoding.pe[0]
    for got, index in zip(seen[0], kept, strict=True):
        torch.testing.assert_close(got, bias + pe[index])


@torch.no_grad()
def test_blocks_are_residual():
    net = built()
    for layer in net.encoder.layers:
        layer.mixer.out_proj.weight.zero_(), layer.mixer_back.out_proj.weight.zero_()
    assert torch.equal(net.encode(signal(net)).levels["block1"], net.encoder.tokens(signal(net)))


@torch.no_grad()
def test_one_way_encoding_leaks_nothing_from_the_future_and_two_ways_see_it():
    for bidirectional in (False, True):
        net = built(bidirectional=bidirectional)
        x = signal(net)
        changed = x.clone()
        changed[..., 15:] += 10
        before, after = (net.encode(given).tokens_BND[:, :15] for given in (x, changed))
        assert torch.allclose(before, after, atol=1e-6) is not bidirectional


@pytest.mark.parametrize("changes", KINDS)
@torch.no_grad()
def test_padding_changes_no_real_position(changes: dict):
    net, x = built(**changes), signal(built(**changes))
    valid_BT = (torch.arange(24) < 16).expand(3, 24)
    changed = torch.where(valid_BT[:, None], x, torch.tensor(50.0))
    first, second = net.encode(x, valid_BT=valid_BT), net.encode(changed, valid_BT=valid_BT)
    torch.testing.assert_close(first.pooled_BD, second.pooled_BD)
    torch.testing.assert_close(first.tokens_BND, second.tokens_BND)
    outs = [net(given, mask(net), valid_BT=valid_BT).pred_BCT[..., :16] for given in (x, changed)]
    torch.testing.assert_close(*outs)


@pytest.mark.parametrize("changes", [{}, {"cls": True}])
@torch.no_grad()
def test_an_item_is_the_same_beside_one_with_more_visible_tokens(changes: dict):
    """Filling up the shorter of two lists of visible tokens changes nothing in it."""
    net = built(**changes)
    x, few = signal(net, 2), torch.zeros(2, 24, dtype=torch.bool)
    few[0, :18], few[1, :6] = True, True
    alone = net(x[:1], few[:1]).pred_BCT
    torch.testing.assert_close(net(x, few).pred_BCT[:1], alone)


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
    net = built(pooling=pooling, n_channels=n_channels, cls=True)
    encoded = net.encode(signal(net))
    assert list(encoded.levels) == ["block1", "block2"] and encoded.tokens_BND.shape == (3, 24, 16) and encoded.pooled_BD.shape == (3, 16)
    with pytest.raises(ValueError, match=f"{n_channels} channels"):
        net.encode(torch.zeros(3, n_channels + 1, 24))
    with pytest.raises(ValueError, match="24 samples"):
        net.encode(torch.zeros(3, n_channels, 25))


@torch.no_grad()
def test_a_long_window_costs_memory_in_proportion():
    """Ten thousand tokens: scores of all pairs alone would be 400 MB an item and head."""
    net = TiMaeMambaConfig(**{**SMALL, "n_samples": 10_000}).build().eval()
    encoded = net.encode(torch.randn(1, 1, 10_000))
    assert bool(encoded.pooled_BD.isfinite().all()) and encoded.tokens_BND.shape == (1, 10_000, 16)


def test_bf16_autocast_is_finite():
    for changes in KINDS:
        net = built(**changes)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(signal(net), mask(net))
        assert bool(out.pred_BCT.isfinite().all())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"headdim": 5}, "headdim"),
        ({"patch": 9}, "patch=9"),
        ({"decoder": "cross"}, "decoder"),
        ({"pooling": "cls"}, "pooling='cls' needs cls=True"),
        ({"layout": "original"}, "layout='original'"),
        ({"width": 15}, "width"),
    ],
)
def test_a_config_checks_itself(bad: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TiMaeMambaConfig(**bad)


def test_the_decoder_fills_hidden_places_and_no_others():
    net, seen = built(), []
    net.decoder.layers[0].register_forward_hook(lambda _m, args, _o: seen.append(args[0].detach()))
    out = net(signal(net), mask(net))
    places = seen[0] - net.decoder.positional_encoding.pe
    is_token = np.isclose(places.numpy(), net.decoder.mask_token[0, 0].detach().numpy(), atol=1e-6).all(-1)
    assert (is_token == mask(net).numpy()).all() and torch.equal(out.mask_B1T[:, 0], mask(net))


@pytest.mark.slow
@pytest.mark.parametrize("changes", KINDS)
def test_it_compiles_without_graph_breaks(changes: dict):
    net = built(**changes)
    x, hidden, n_visible = signal(net), mask(net), net.cfg.n_tokens - net.cfg.n_tokens * 3 // 4
    compiled = torch.compile(net, fullgraph=True)
    torch.testing.assert_close(compiled(x, hidden, n_visible=n_visible).pred_BCT, net(x, hidden).pred_BCT, rtol=1e-3, atol=1e-4)
