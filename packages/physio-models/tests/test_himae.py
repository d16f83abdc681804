import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from physio_models.himae import HiMae, HiMaeConfig, receptive_field
from physio_models.objectives.masked import masked_mse


def tiny(**changes) -> HiMae:
    torch.manual_seed(0)
    return HiMaeConfig(**{"widths": (4, 8, 16), **changes}).build()


def warmed(**changes) -> HiMae:
    """A tiny net whose running statistics are not the initial ones, in eval mode."""
    model = tiny(**changes)
    x_BCT = torch.randn(8, model.cfg.n_channels, 64)
    for _ in range(3):
        model(x_BCT, torch.rand(8, 64) < 0.5)
    return model.eval()


# The original's numbers


@pytest.mark.parametrize("n_samples", [250, 333])
@pytest.mark.parametrize("given", ["masked_in", "full_in"])
def test_forward_gives_the_original_reconstruction(himae_fixtures: Path, reference_model: HiMae, n_samples: int, given: str):
    arrays = np.load(himae_fixtures / f"forward_L{n_samples}.npz")
    mask = torch.from_numpy(arrays["mask"]) * (given == "masked_in")
    with torch.no_grad():
        out = reference_model(torch.from_numpy(arrays["x"]), mask)
    np.testing.assert_allclose(out.pred_BCT.numpy(), arrays[f"{given}/recon"], atol=1e-5)
    if given == "masked_in":
        assert float(masked_mse(out)) == pytest.approx(float(arrays["masked_mse"]), abs=1e-6)


@pytest.mark.parametrize("given", ["masked_in", "full_in"])
def test_every_activation_is_the_original_one(himae_fixtures: Path, reference_model: HiMae, given: str):
    arrays = np.load(himae_fixtures / "forward_L250.npz")
    seen: dict[str, np.ndarray] = {}
    for name, layers in (("enc", reference_model.encoder_layers), ("dec", reference_model.decoder_layers), ("final_deconv", [reference_model.final_deconv])):
        for i, layer in enumerate(layers):
            key = name if name == "final_deconv" else f"{name}{i}"
            layer.register_forward_hook(lambda _m, _i, out, key=key: seen.update({key: (out[0] if isinstance(out, tuple) else out).numpy()}))
    with torch.no_grad():
        reference_model(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["mask"]) * (given == "masked_in"))
    expected = {key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith(given) and not key.endswith("recon")}
    assert seen.keys() == expected.keys() and len(seen) == 10
    for key, value in expected.items():
        np.testing.assert_allclose(seen[key], value, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("n_samples", [250, 333])
def test_encode_gives_the_original_pooled_levels(himae_fixtures: Path, reference_model: HiMae, n_samples: int):
    arrays = np.load(himae_fixtures / f"forward_L{n_samples}.npz")
    with torch.no_grad():
        encoded = reference_model.encode(torch.from_numpy(arrays["x"]))
    assert list(encoded.levels) == ["L1", "L2", "L3", "L4", "L5"]
    for name, tokens_BND in encoded.levels.items():
        np.testing.assert_allclose(tokens_BND.mean(1).numpy(), arrays[f"pooled_full/{name}"], atol=1e-5)
    np.testing.assert_allclose(encoded.pooled_BD.numpy(), arrays["pooled_full/L5"], atol=1e-5)


def test_four_optimiser_steps_follow_the_original(himae_fixtures: Path, reference_model: HiMae):
    arrays = np.load(himae_fixtures / "train4.npz")
    reference_model.train()
    optimizer = torch.optim.AdamW(reference_model.parameters(), lr=1e-3, weight_decay=1e-3)
    for x, mask, expected_loss, expected_norm in zip(arrays["x"], arrays["mask"], arrays["loss"], arrays["grad_norm"], strict=True):
        loss = masked_mse(reference_model(torch.from_numpy(x), torch.from_numpy(mask)))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference_model.parameters(), float("inf"))
        optimizer.step()
        assert loss.item() == pytest.approx(expected_loss, rel=1e-4)
        assert norm.item() == pytest.approx(expected_norm, rel=1e-4)
    state = reference_model.state_dict()
    assert len(state) == 148
    for key, value in state.items():
        expected = arrays[f"after/{key}"].astype(np.float64)
        assert np.linalg.norm(value.numpy() - expected) <= 1e-4 * max(np.linalg.norm(expected), 1e-12), key


def test_keys_shapes_and_initial_values_are_the_original_ones(himae_fixtures: Path):
    meta = json.loads((himae_fixtures / "meta.json").read_text())
    torch.manual_seed(0)
    state = HiMaeConfig().build().state_dict()
    assert {key: [list(value.shape), str(value.dtype)] for key, value in state.items()} == meta["state_dict"]
    for key, total in meta["init_seed0_sum"].items():
        assert float(state[key].double().sum()) == pytest.approx(total, abs=1e-6), key


@pytest.mark.parametrize(
    ("changes", "n_params"),
    [({}, 1_245_953), ({"n_channels": 2}, 1_246_130), ({"widths": (16, 32, 64, 128)}, 309_889)],
)
def test_parameter_counts_are_the_published_ones(changes: dict, n_params: int):
    assert sum(p.numel() for p in HiMaeConfig(**changes).build().parameters()) == n_params


# Any shape


@pytest.mark.parametrize("n_samples", [1, 2, 7, 31, 32, 33, 100, 101])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_any_length_and_depth_comes_back_in_its_own_shape(n_samples: int, depth: int):
    model = HiMaeConfig(n_channels=2, widths=(4,) * depth).build().eval()
    x_BCT = torch.randn(3, 2, n_samples)
    with torch.no_grad():
        assert model(x_BCT, torch.ones(3, n_samples)).pred_BCT.shape == x_BCT.shape
        levels = model.encode(x_BCT).levels
    assert [tokens.shape for tokens in levels.values()] == [(3, -(-n_samples // 2**level), 4) for level in range(1, depth + 1)]


@pytest.mark.parametrize(
    "changes", [{"skips": False}, {"norm": "group"}, {"mask_input": "channel"}, {"mask_input": "partial"}, {"kernel": 3}, {"output": "linear"}]
)
def test_every_ablation_trains_all_its_parameters(changes: dict):
    model = tiny(**changes)
    masked_mse(model(torch.randn(4, 1, 40), torch.rand(4, 40) < 0.5)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("level", [1, 2, 3])
def test_receptive_field_is_where_the_gradient_reaches(level: int):
    model = tiny(norm="group").eval()
    for block in model.encoder_layers:  # group norm sees the whole window; without it only convolutions carry information
        block.main_path[1] = block.main_path[4] = block.shortcut[1] = torch.nn.Identity()
    x_BCT = torch.randn(1, 1, 256, requires_grad=True)
    model.encode(x_BCT).levels[f"L{level}"][0, 128 // 2**level].sum().backward()
    reached = x_BCT.grad[0, 0].abs().nonzero()
    assert int(reached[-1] - reached[0]) + 1 == receptive_field(level)


def test_receptive_fields_are_the_published_ones():
    assert [receptive_field(level) for level in range(1, 6)] == [13, 37, 85, 181, 373]


@pytest.mark.parametrize(("n_samples", "fs", "depth"), [(1000, 100, 5), (250, 25, 4), (2500, 250, 5), (300, 100, 4), (40, 100, 2), (15, 100, 1)])
def test_for_length_proposes_a_depth(n_samples: int, fs: float, depth: int):
    cfg = HiMaeConfig.for_length(n_samples, fs)
    assert cfg.depth == depth and cfg.widths == (16, 32, 64, 128, 256)[:depth]


def test_for_length_refuses_a_window_too_short_for_one_level():
    with pytest.raises(ValueError, match="n_samples=12"):
        HiMaeConfig.for_length(12, 100)


# Meaning


def test_hidden_samples_do_not_reach_the_reconstruction():
    model, mask_BT = warmed(), torch.zeros(2, 40, dtype=torch.bool)
    mask_BT[:, 10:20] = True
    x_BCT = torch.randn(2, 1, 40)
    changed = x_BCT + 100 * mask_BT[:, None]
    for mask_input in ("zero", "channel", "partial"):
        model = warmed(mask_input=mask_input)
        torch.testing.assert_close(model(changed, mask_BT).pred_BCT, model(x_BCT, mask_BT).pred_BCT)


def test_encode_runs_no_decoder_and_changes_nothing():
    model = warmed()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for layer in [*model.decoder_layers, model.final_deconv]:
        layer.register_forward_hook(lambda *_: pytest.fail("the decoder ran"))
    x_BCT = torch.randn(2, 1, 40)
    first, second = model.encode(x_BCT), model.encode(x_BCT)
    assert torch.equal(first.pooled_BD, second.pooled_BD)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_encode_needs_less_than_half_the_arithmetic_of_forward():
    model = HiMaeConfig().build().eval()
    x_BCT = torch.zeros(1, 1, 1000)

    def multiply_adds(run) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        return counter.get_total_flops() / 2

    encoder, full = multiply_adds(lambda: model.encode(x_BCT)), multiply_adds(lambda: model(x_BCT, torch.zeros(1, 1000)))
    assert encoder == pytest.approx(31.87e6, rel=0.01) and full == pytest.approx(70.57e6, rel=0.01)
    assert full > 2 * encoder


@pytest.mark.parametrize("mask_input", ["zero", "channel", "partial"])
@pytest.mark.parametrize("n_valid", [5, 24, 33])
def test_a_short_tail_gives_the_features_of_the_window_cut_short(mask_input: str, n_valid: int):
    model = warmed(mask_input=mask_input)
    x_BCT = torch.randn(2, 1, 40)
    valid_BT = (torch.arange(40) < n_valid).expand(2, 40)
    cut, tailed = model.encode(x_BCT[..., :n_valid]), model.encode(x_BCT, valid_BT=valid_BT)
    torch.testing.assert_close(tailed.pooled_BD, cut.pooled_BD)
    for name, tokens_BND in cut.levels.items():
        real = model.token_valid(valid_BT)[name]
        assert int(real[0].sum()) == tokens_BND.shape[1]
        torch.testing.assert_close(tailed.levels[name][:, : tokens_BND.shape[1]], tokens_BND)
        assert not tailed.levels[name][:, tokens_BND.shape[1] :].any()


def test_an_absent_channel_reads_as_zeros():
    model = warmed(n_channels=2)
    x_BCT = torch.randn(2, 2, 40)
    zeroed = x_BCT.clone()
    zeroed[1, 0] = 0
    present_BC = torch.tensor([[True, True], [False, True]])
    torch.testing.assert_close(model.encode(x_BCT, channel_present_BC=present_BC).pooled_BD, model.encode(zeroed).pooled_BD)
    mask_BT = torch.rand(2, 40) < 0.5
    trained, expected = model(x_BCT, mask_BT, channel_present_BC=present_BC), model(zeroed, mask_BT)
    assert torch.equal(trained.pred_BCT, expected.pred_BCT) and torch.equal(trained.target_BCT, zeroed)
    with pytest.raises(ValueError, match="channel_present_BC"):
        model(x_BCT, mask_BT, channel_present_BC=present_BC[:1])


def test_partial_convolution_with_nothing_hidden_is_the_plain_one():
    model = warmed(mask_input="partial")
    x_BCT = torch.randn(2, 1, 41)
    nothing = torch.zeros(2, 1, 41, dtype=torch.bool)
    for by_mask, plain in zip(model._levels(x_BCT, nothing, None), model._levels(x_BCT, None, None), strict=True):
        torch.testing.assert_close(by_mask, plain)


def test_partial_convolution_of_a_constant_sees_no_holes():
    """The mean over what is seen: holes in a constant leave it constant under an averaging kernel."""
    from physio_models.conv1d import partial_conv

    conv = torch.nn.Conv1d(1, 1, 5, padding=2, bias=False)
    torch.nn.init.constant_(conv.weight, 0.2)
    seen_B1T = torch.ones(1, 1, 20)
    seen_B1T[..., 6:9] = 0
    y, seen = partial_conv(conv, torch.full((1, 1, 20), 3.0), seen_B1T)
    torch.testing.assert_close(y[..., 2:-2], torch.full((1, 1, 16), 3.0))
    assert seen.all()


@pytest.mark.parametrize("shape", [(2, 40), (2, 2, 40), (40,)])
def test_a_wrong_rank_or_channel_count_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="1 channels"):
        tiny().encode(torch.zeros(shape))


def test_a_mask_over_patches_is_refused():
    with pytest.raises(ValueError, match="mask_BT"):
        tiny()(torch.zeros(2, 1, 40), torch.zeros(2, 8))


@pytest.mark.parametrize(
    "bad", [{"kernel": 4}, {"widths": ()}, {"n_channels": 0}, {"norm": "layer"}, {"mask_input": "token"}, {"output": "relu"}, {"n_samples": 1}]
)
def test_a_config_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        HiMaeConfig(**bad)
