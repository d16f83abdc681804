from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_models.attention import SelfAttention
from physio_models.contract import InputContract
from physio_models.cwt_blocks import FactorisedBlock, layout, mlp
from physio_models.cwt_mae import CwtMae, CwtMaeConfig, CwtMaePairConfig, CwtMaeShape
from physio_models.interface import unwrap
from physio_models.objectives.dual_domain import DualDomain
from physio_models.patches import visible
from physio_models.pretrained import build_untrained, from_pretrained, load_strictly, save_pretrained

VARIANTS: dict[str, CwtMaeShape] = {
    "v1": CwtMaeConfig.preset("tiny", version="v1", n_channels=2, n_samples=200),
    "v2": CwtMaeConfig.preset("tiny", version="v2", n_samples=200),
    "v3": CwtMaeConfig.preset("tiny", n_channels=2, n_samples=200),
    "v3 residuals": replace(CwtMaeConfig.preset("tiny", n_channels=2, n_samples=200), attention_residuals=True),
    "v3 one channel": CwtMaeConfig.preset("tiny", n_samples=200),
    "v3 joint": replace(CwtMaeConfig.preset("tiny", n_channels=2, n_samples=200), attention="joint", rank_ratio=0.5),
    "v3 contrastive": CwtMaePairConfig.preset("tiny", n_samples=200),
    "separate cls": replace(CwtMaePairConfig.preset("tiny", n_samples=200), cls_token=True),
    "mamba": replace(CwtMaeConfig.preset("tiny", n_channels=2, n_samples=200), mamba_every=2),
    "mamba cls": replace(CwtMaeConfig.preset("tiny", version="v1", n_channels=2, n_samples=200), mamba_every=2, rope=True),
    "spectral": replace(CwtMaeConfig.preset("tiny", n_samples=200), time_head=False, differences=0, raw_patches=False),
    "eeg": CwtMaeConfig.eeg_tiny(n_channels=3, n_samples=200),
}


def built(cfg: CwtMaeShape, seed: int = 0) -> CwtMae:
    torch.manual_seed(seed)
    return cfg.build()


def signal(cfg: CwtMaeShape, n_items: int = 3) -> torch.Tensor:
    t = torch.arange(cfg.n_samples) / cfg.fs
    phase = torch.rand(n_items, cfg.n_channels, 1, generator=torch.Generator().manual_seed(1))
    return torch.sin(2 * torch.pi * (1.3 * t + phase)) + 0.3 * torch.sin(2 * torch.pi * (7 * t + 3 * phase)) + 0.5


def random_places(cfg: CwtMaeShape, n_items: int = 3, seed: int = 2) -> torch.Tensor:
    return torch.rand(n_items, cfg.n_channels, cfg.n_places, generator=torch.Generator().manual_seed(seed)) < 0.7


def n_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# The published sizes


def test_version_3_has_the_published_parameter_counts():
    with torch.device("meta"):
        model = replace(CwtMaeConfig.preset("reference", n_channels=2), attention_residuals=True).build()
    across = sum(n_parameters(part) for block in model.blocks for part in (block.smooth, block.norm_channel, block.channel))
    assert round(n_parameters(model) / 1e6, 1) == 142.3
    assert round((n_parameters(model) - n_parameters(model.decoder)) / 1e6, 1) == 114.2
    assert round(across / 1e6, 1) == 28.4
    assert round(n_parameters(model.decoder.blocks) / 1e6, 1) == 25.2
    assert round(n_parameters(model.blocks[0]) / 1e6, 2) == 9.45


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_versions_1_and_2_have_the_published_parameter_counts(version: str):
    with torch.device("meta"):
        model = CwtMaeConfig.preset("reference", version=version).build()
    assert round(n_parameters(model) / 1e6, 1) == 95.6
    assert round((n_parameters(model) - n_parameters(model.decoder)) / 1e6, 1) == 65.0
    mlp_M = n_parameters(model.blocks[0].block.mlp) / 1e6
    assert round(mlp_M, 2) == 2.95 and round(n_parameters(mlp(768, 3072, None)) / 1e6, 2) == 4.72


def test_the_published_scales_are_linear_and_the_default_ones_span_the_band():
    published = CwtMaeConfig.preset("reference")
    assert published.scales[:2] == (0.1, 1.1) and published.scales[-1] == pytest.approx(63.1)
    assert published.scale_hz[1] == pytest.approx(20.5, abs=0.05) and published.scale_hz[-1] == pytest.approx(0.36, abs=0.005)
    ours = CwtMaeConfig()
    assert ours.scale_hz[0] == pytest.approx(40.0) and ours.scale_hz[-1] == pytest.approx(0.5)


# Everything trains


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_finite_gradient(name: str, step):
    model = built(VARIANTS[name])
    DualDomain(mask="random")(model, {"signal": signal(VARIANTS[name]), "index": torch.arange(3)}, step).total.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", ["v1", "v3", "v3 residuals", "v3 contrastive", "mamba", "eeg"])
def test_the_loss_falls_in_30_steps(name: str, step):
    cfg = VARIANTS[name]
    model, objective, batch = built(cfg), DualDomain(mask="random"), {"signal": signal(cfg, 2), "index": torch.arange(2)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = objective(model, batch, step).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", ["v1", "v3", "mamba", "eeg"])
def test_the_same_seed_trains_the_same_network(name: str, step):
    def trained() -> torch.Tensor:
        model = built(VARIANTS[name])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            DualDomain()(model, {"signal": signal(VARIANTS[name]), "index": torch.arange(3)}, step).total.backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(trained(), trained())


@pytest.mark.parametrize("name", ["v1", "v3", "v3 residuals", "mamba"])
def test_bf16_autocast_stays_near_float32(name: str):
    model, mask = built(VARIANTS[name]), random_places(VARIANTS[name])
    with torch.no_grad():
        exact = model(signal(VARIANTS[name]), mask)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(signal(VARIANTS[name]), mask)
    assert half.spec_target_BCNV.dtype == torch.float32
    torch.testing.assert_close(half.spec_BCNV.float(), exact.spec_BCNV, atol=0.05, rtol=0.1)


# The original's defects


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 2, 5, 12]), st.integers(0, 10_000), st.booleans())
def test_un_shuffling_puts_every_visible_token_home(n_channels: int, seed: int, shared: bool):
    """The original sends 80 of channel 0's masked places channel 1's tokens, and none of channel 1's home."""
    cfg = CwtMaeConfig.preset("tiny", n_channels=n_channels, n_samples=200)
    decoder = built(cfg).decoder
    mask = random_places(cfg, 2, seed)
    shown_BCN = ~(mask[:, :1].expand_as(mask) if shared else mask)
    places_BK = visible(~shown_BCN.any(1)).index_BK
    name_BCN = torch.arange(2 * n_channels * cfg.n_places).view(2, n_channels, -1, 1).expand(-1, -1, -1, cfg.decoder_width).float()
    kept = name_BCN.gather(2, places_BK[:, None, :, None].expand(-1, n_channels, -1, cfg.decoder_width))
    home = decoder.home(kept, places_BK, shown_BCN)
    expected = torch.where(shown_BCN[..., None], name_BCN, decoder.token)
    assert torch.equal(home, expected)


def test_smoothing_runs_along_time_within_a_row():
    """The original smooths along its list of kept tokens, whose neighbours are other rows of shuffled columns."""
    torch.manual_seed(0)
    rows, columns, width = 4, 9, 8
    block = FactorisedBlock(width, 2, torch.nn.Identity(), n_channels=2)
    x = torch.randn(1, 2, rows * columns, width)

    def smoothed(kept_N: torch.Tensor) -> torch.Tensor:
        index_BK = kept_N.nonzero()[None, :, 0]
        at = layout(index_BK, n_rows=rows, n_places=rows * columns, n_channels=2, cls=False, shown_BCK=None, head_width=None, neighbours=True)
        return block.smoothed(x[:, :, index_BK[0]], at)

    def by_convolution(kept_N: torch.Tensor) -> torch.Tensor:
        grid = (x * kept_N[:, None]).view(2, columns, rows, width).permute(0, 2, 3, 1).reshape(2 * rows, width, columns)
        y = block.smooth(grid).view(2, rows, width, columns).permute(0, 3, 1, 2).reshape(1, 2, rows * columns, width)
        return y[:, :, kept_N]

    everything = torch.ones(rows * columns, dtype=torch.bool)
    tubelet = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1]).bool().repeat_interleave(rows)
    scattered = torch.rand(rows * columns) < 0.5
    for kept_N in (everything, tubelet, scattered):
        torch.testing.assert_close(smoothed(kept_N), by_convolution(kept_N))


@pytest.mark.parametrize("name", ["v1", "v3", "v3 joint"])
def test_hidden_tokens_of_two_channels_at_one_place_differ(name: str):
    """Without an embedding of channels they could only be equal."""
    cfg = VARIANTS[name]
    model, x = built(cfg).eval(), signal(cfg)
    x[:, 1] = x[:, 0]  # nothing but the channel itself tells them apart
    mask = torch.zeros(3, 1, cfg.n_places, dtype=torch.bool)
    mask[..., 4:12] = True
    out = model(x, mask)
    assert (out.spec_BCNV[:, 0, 4:12] - out.spec_BCNV[:, 1, 4:12]).abs().amax() > 1e-3


def test_the_encoder_itself_knows_no_order_of_channels():
    cfg = CwtMaeConfig.preset("tiny", n_channels=3, n_samples=200)
    model, x = built(cfg).eval(), signal(cfg)
    tokens, turned = (model.encode(part).tokens_BND.unflatten(1, (3, -1)) for part in (x, x[:, [2, 0, 1]]))
    torch.testing.assert_close(turned, tokens[:, [2, 0, 1]])


# Positions


ROTATED = [name for name, cfg in VARIANTS.items() if cfg.rope]


def turns(part: torch.nn.Module, run) -> list:
    """What turns queries and keys in the attention of a part, as it is handed over."""
    found, handles = [], []
    for module in part.modules():
        if isinstance(module, SelfAttention):
            handles.append(module.register_forward_pre_hook(lambda _, args, kwargs: found.append((kwargs.get("rotate"), args[0].shape[:2])), with_kwargs=True))
    run()
    for handle in handles:
        handle.remove()
    return [(turn, shape) for turn, shape in found if turn is not None]


def angles(turn, n_items: int, n_tokens: int, width: int) -> np.ndarray:
    """By how much pair i of a head is turned at each token, as cosine and sine: (B, M, 2, width / 2)."""
    x = torch.zeros(n_items, 1, n_tokens, width)
    x[..., : width // 2] = 1.0
    return turn(x)[:, 0].unflatten(-1, (2, -1)).double().numpy()


def by_column(place_M: np.ndarray, n_rows: int, width: int) -> np.ndarray:
    """The same, by hand: a column's number times 10000 to the power of minus 2 i / width."""
    angle = (place_M // n_rows)[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@pytest.mark.parametrize("name", ROTATED)
def test_rotary_positions_are_columns_in_encoder_and_decoder(name: str):
    """Of the kept tokens in the encoder, item by item, of all places in the decoder; a class token is not turned."""
    cfg = VARIANTS[name]
    model, mask = built(cfg).eval(), random_places(cfg)
    n_parts = cfg.n_channels if cfg.attention == "separate" else 1
    shown_BN = ~mask.reshape(3 * n_parts, -1, cfg.n_places).all(1)
    kept = visible(~shown_BN).index_BK.numpy()
    heads = {"encoder": cfg.width // cfg.n_heads, "decoder": cfg.decoder_width // cfg.decoder_heads}
    parts = {"encoder": model.blocks, "decoder": model.decoder}
    found = {part: turns(module, lambda: model(signal(cfg), mask)) for part, module in parts.items()}
    assert len(found["decoder"]) == cfg.decoder_depth
    assert len(found["encoder"]) == cfg.depth - (cfg.depth // cfg.mamba_every if cfg.mamba_every else 0)
    for part, calls in found.items():
        for turn, (n_items, n_tokens) in calls:
            seen = angles(turn, n_items, n_tokens, heads[part])
            for item in range(n_items):
                places = np.arange(cfg.n_places) if part == "decoder" else kept[item * len(kept) // n_items]
                expected = by_column(places, cfg.n_rows, heads[part])
                cls = part == "encoder" and cfg.cls_token
                expected = np.tile(expected, ((n_tokens - cls) // len(places), 1, 1))
                np.testing.assert_allclose(seen[item, cls:], expected, atol=1e-5)
                assert not cls or ((seen[item, 0, 0] == 1).all() and (seen[item, 0, 1] == 0).all())


@pytest.mark.parametrize("name", ["v3 one channel", "v3 joint", "mamba cls"])
def test_attention_to_rotated_tokens_knows_how_far_apart_in_time_they_are_and_no_more(name: str):
    """Of like tokens at all places: rows of one column are alike, and a shift by columns changes nothing; one by places does."""
    cfg = VARIANTS[name]
    model = built(cfg).eval()
    head = cfg.decoder_width // cfg.decoder_heads
    whole = torch.zeros(3, 1, cfg.n_places, dtype=torch.bool)
    for part, cls in ((model.blocks, int(cfg.cls_token)), (model.decoder, 0)):
        turn, (n_items, n_tokens) = turns(part, lambda: model(signal(cfg), whole))[0]
        same = torch.randn(head, generator=torch.Generator().manual_seed(1)).expand(n_items, 1, n_tokens, -1)
        turned = turn(same)[0, 0, cls : cls + cfg.n_places].double()
        columns = (turned @ turned.T).unflatten(0, (-1, cfg.n_rows)).unflatten(2, (-1, cfg.n_rows)).permute(0, 2, 1, 3)
        torch.testing.assert_close(columns, columns[:, :, :1, :1].expand_as(columns), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(columns[1:, 1:], columns[:-1, :-1], rtol=1e-4, atol=1e-4)
        assert (columns[0, 0, 0, 0] - columns[0, 1, 0, 0]).abs() > 0.1


def test_weights_keep_their_planes_and_load_nowhere_else(tmp_path):
    """The original pretrains with difference planes and fine-tunes without, so its weights do not load."""
    cfg = VARIANTS["v3"]
    contract = InputContract(channels=("PPG", "ECG"), units=("a.u.", "mV"), fs=100.0, window_s=2.0, band=(0.5, 40.0), normalization="lead_zscore")
    model = build_untrained("cwt_mae", cfg)
    encoder = from_pretrained(save_pretrained(tmp_path / "saved", model, cfg, contract))
    assert encoder.config == cfg
    torch.testing.assert_close(encoder.model.encode(signal(cfg)).pooled_BD, model.encode(signal(cfg)).pooled_BD)
    with pytest.raises(ValueError, match=r"patch_embed\.weight \(32, 600\) instead of \(32, 200\)"):
        load_strictly(replace(cfg, differences=0).build(), model.state_dict(), "here")


# Masks


@pytest.mark.parametrize("name", [name for name, cfg in VARIANTS.items() if cfg.attention != "separate"])  # those are one-channel items
def test_hidden_patches_do_not_reach_the_encoder(name: str):
    cfg = VARIANTS[name]
    model, mask = built(cfg).eval(), random_places(cfg)
    spec, time = torch.randn(3, cfg.n_channels, cfg.n_places, cfg.patch_values), torch.randn(3, cfg.n_channels, cfg.n_columns, cfg.patch_samples)
    shown_BCN = ~mask
    places_BK = visible(~shown_BCN.any(1)).index_BK
    shown_BCK = shown_BCN.gather(2, places_BK[:, None].expand(-1, cfg.n_channels, -1))
    states, _ = model._encoder(spec, time, places_BK, shown_BCK)
    other, _ = model._encoder(torch.where(mask[..., None], 9.0, spec), time, places_BK, shown_BCK)
    keep = torch.cat([torch.ones(3, 1, dtype=torch.bool), shown_BCK.flatten(1)], 1) if cfg.cls_token else shown_BCK.flatten(1)
    torch.testing.assert_close(other[-1][keep], states[-1][keep])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_shared_mask_is_the_same_mask_for_every_channel(name: str):
    cfg = VARIANTS[name]
    model, x = built(cfg).eval(), signal(cfg)
    columns = torch.rand(3, cfg.n_columns, generator=torch.Generator().manual_seed(4)).argsort(1) < 3
    shared = ~columns.repeat_interleave(cfg.n_rows, 1)[:, None]
    quick = model(x, shared, n_visible=3 * cfg.n_rows)
    slow = model(x, shared.expand(-1, cfg.n_channels, -1))
    torch.testing.assert_close(quick.spec_BCNV, slow.spec_BCNV, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(quick.pooled_BCD, slow.pooled_BCD, atol=1e-5, rtol=1e-4)


def test_separate_channels_are_items_of_their_own():
    cfg = VARIANTS["v3 contrastive"]
    pair, x, mask = built(cfg).eval(), signal(cfg), random_places(cfg)
    one = CwtMaeConfig(**{**cfg.__dict__, "n_channels": 1}).build().eval()
    one.load_state_dict(pair.state_dict())
    out, alone = pair(x, mask), one(x.reshape(6, 1, -1), mask.reshape(6, 1, -1))
    torch.testing.assert_close(out.spec_BCNV.flatten(0, 1), alone.spec_BCNV[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.time_BCT.flatten(0, 1), alone.time_BCT[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pair.encode(x).tokens_BND.reshape(6, -1, cfg.width), one.encode(x.reshape(6, 1, -1)).tokens_BND)


# encode


@pytest.mark.parametrize("name", VARIANTS)
def test_encode_gives_every_block(name: str):
    cfg = VARIANTS[name]
    model = built(cfg).eval()
    model.decoder.register_forward_hook(lambda *_: pytest.fail("the decoder ran"))
    encoded = model.encode(signal(cfg))
    assert list(encoded.levels) == ["block1", "block2"]
    assert all(level.shape == (3, cfg.n_channels * cfg.n_places, cfg.width) for level in encoded.levels.values())
    torch.testing.assert_close(encoded.pooled_BD, encoded.tokens_BND.mean(1))
    assert torch.equal(model.encode(signal(cfg)).pooled_BD, encoded.pooled_BD)


@pytest.mark.parametrize(("n_channels", "n_samples"), [(1, 200), (2, 333), (3, 96)])
def test_another_shape_is_refused(n_channels: int, n_samples: int):
    model = built(CwtMaeConfig.preset("tiny", n_channels=n_channels, n_samples=n_samples))
    with pytest.raises(ValueError, match=f"{n_channels} channels"):
        model.encode(torch.zeros(2, n_channels + 1, n_samples))
    with pytest.raises(ValueError, match=f"{n_samples} samples"):
        model.encode(torch.zeros(2, n_channels, n_samples + 25))
    with pytest.raises(ValueError, match="mask_BCN"):
        model(torch.zeros(2, n_channels, n_samples), torch.zeros(2, n_channels, 3))


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_and_absent_channels_change_no_real_token(name: str):
    cfg = VARIANTS[name]
    model, x = built(cfg).eval(), signal(cfg)
    valid_BT = torch.arange(200) < torch.tensor([[200], [120], [25]])
    present_BC = torch.ones(3, cfg.n_channels, dtype=torch.bool)
    if cfg.n_channels > 1:
        present_BC[1, 0] = False
    real_BCT = valid_BT[:, None] & present_BC[..., None]
    first = model.encode(x, valid_BT=valid_BT, channel_present_BC=present_BC)
    second = model.encode(torch.where(real_BCT, x, 50.0), valid_BT=valid_BT, channel_present_BC=present_BC)
    torch.testing.assert_close(second.pooled_BD, first.pooled_BD)
    tokens = first.tokens_BND.unflatten(1, (cfg.n_channels, -1))
    assert not tokens[~present_BC].any()
    stands = model.token_valid(valid_BT)["block2"].unflatten(1, (cfg.n_channels, -1))
    assert stands.sum(-1)[:, 0].tolist() == [8 * cfg.n_rows, 5 * cfg.n_rows, cfg.n_rows]
    assert (tokens.abs().sum(-1) > 0).equal(stands & present_BC[..., None])


def test_an_absent_channel_leaves_the_others_as_if_it_had_never_been():
    cfg = VARIANTS["v3"]
    model, x = built(cfg).eval(), signal(cfg)
    with_two = model.encode(x, channel_present_BC=torch.tensor([[True, False]] * 3)).tokens_BND[:, : cfg.n_places]
    changed = x.clone()
    changed[:, 1] += torch.randn(3, 200)
    torch.testing.assert_close(model.encode(changed, channel_present_BC=torch.tensor([[True, False]] * 3)).tokens_BND[:, : cfg.n_places], with_two)
    assert (model.encode(x).tokens_BND[:, : cfg.n_places] - with_two).abs().max() > 1e-3


# Mamba-2


@pytest.mark.slow
def test_memory_is_linear_in_tokens_with_mamba_blocks():
    """What a training step keeps for its backward pass, at 10,000 tokens and at half and a quarter of them."""
    kept = {}
    for n_columns in (1250, 2500, 5000):
        cfg = replace(CwtMaeConfig.preset("tiny", n_samples=4 * n_columns), patch_samples=4, mamba_every=1, spacing="linear")
        model = built(cfg)
        storages: dict[int, int] = {}

        def remember(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = signal(cfg, 1)
        places = torch.arange(cfg.n_places)[None]
        spec, time = torch.zeros(1, 1, cfg.n_places, cfg.patch_values), torch.zeros(1, 1, cfg.n_columns, cfg.patch_samples)
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            states, _ = model._encoder(spec, time, places, None)
            states[-1].square().mean().backward()
        assert model.encode(x).tokens_BND.isfinite().all()
        kept[cfg.n_places] = sum(storages.values())
    assert list(kept) == [2500, 5000, 10_000]
    assert kept[10_000] < 2.1 * kept[5000] < 2.1 * 2.1 * kept[2500]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v1", "v3", "v3 residuals", "v3 contrastive", "eeg"])
def test_forward_compiles_without_graph_breaks(name: str):
    cfg = VARIANTS[name]
    model, x = built(cfg).eval(), signal(cfg)
    columns = torch.rand(3, cfg.n_columns, generator=torch.Generator().manual_seed(4)).argsort(1) < 3
    mask = ~columns.repeat_interleave(cfg.n_rows, 1)[:, None]
    torch._dynamo.reset()  # the networks share their code, and a compiler keeps few versions of it
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask, n_visible=3 * cfg.n_rows).spec_BCNV, model(x, mask, n_visible=3 * cfg.n_rows).spec_BCNV, atol=1e-5, rtol=1e-4)
    assert unwrap(compiled) is model


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"n_samples": 20}, "n_samples=20"),
        ({"patch_scales": 7}, "patch_scales"),
        ({"n_heads": 5}, "n_heads"),
        ({"width": 36, "n_heads": 12}, "odd width 3"),
        ({"attention": "both"}, "attention"),
        ({"cls_token": True}, "cls_token"),
        ({"attention": "joint", "cls_token": True, "mamba_every": 1}, "cls_token"),
        ({"wavelet": "morlet"}, "wavelet"),
        ({"differences": 3}, "differences"),
        ({"rank_ratio": 1.5}, "rank_ratio"),
        ({"mamba_every": -1}, "mamba_every"),
        ({"band_hz": (0.5, 60.0)}, "band_hz"),
        ({"spacing": "mel"}, "spacing"),
        ({"decoder_depth": 0}, "decoder_depth"),
    ],
)
def test_a_config_checks_itself(bad: dict, match: str):
    with pytest.raises(ValueError, match=match):
        CwtMaeConfig(**bad)


@pytest.mark.parametrize(("size", "version", "n_channels", "match"), [("huge", "v3", 1, "size"), ("tiny", "v4", 1, "version"), ("tiny", "v2", 2, "v2")])
def test_an_unknown_preset_is_refused(size: str, version: str, n_channels: int, match: str):
    with pytest.raises(ValueError, match=match):
        CwtMaeConfig.preset(size, version=version, n_channels=n_channels)
