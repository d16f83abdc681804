import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from physio_models.papagei import Papagei, PapageiConfig
from physio_models.pooling import pool

OUTPUTS = {"tiny_moe": 4, "tiny_plain": 2, "tiny_plain_proj": 2}


def recorded(shared: Path, name: str) -> tuple[Papagei, dict[str, np.ndarray]]:
    """A network with the recorded weights in eval mode, and everything recorded about it."""
    path = shared / "fixtures" / "papagei" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"shared data absent: {path}")
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    cfg = json.loads(str(arrays["cfg"]))
    model = PapageiConfig(
        base_width=cfg["base_filters"],
        kernel=cfg["kernel_size"],
        n_blocks=cfg["n_block"],
        n_outputs=cfg["n_classes"],
        n_experts=cfg.get("n_experts", 0),
        projection=cfg.get("use_projection", False),
    ).build()
    model.load_state_dict({key[3:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("sd/")})
    return model.eval(), arrays


def tiny(**changes) -> Papagei:
    """A net whose running statistics are not the initial ones, in eval mode."""
    torch.manual_seed(0)
    model = PapageiConfig(**{"base_width": 4, "n_blocks": 6, "n_outputs": 8, **changes}).build()
    for _ in range(3):
        model(torch.randn(16, model.cfg.n_channels, 64))
    return model.eval()


# The original's numbers


@pytest.mark.parametrize("length", [1250, 1001, 37])
@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_the_original_ones(shared: Path, name: str, length: int):
    model, arrays = recorded(shared, name)
    with torch.no_grad():
        out = [value for value in model(torch.from_numpy(arrays[f"x{length}"])) if value is not None]
    assert len(out) == OUTPUTS[name]
    for i, value in enumerate(out):
        np.testing.assert_allclose(value.numpy(), arrays[f"x{length}_out{i}"], rtol=1e-5, atol=1e-6 * np.abs(arrays[f"x{length}_out{i}"]).max())


@pytest.mark.parametrize("name", OUTPUTS)
def test_gradients_are_the_original_ones(shared: Path, name: str):
    model, arrays = recorded(shared, name)
    model(torch.from_numpy(arrays["x1250"])).embedding_BD.square().sum().backward()
    own = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    expected = {key[5:]: arrays[key] for key in arrays if key.startswith("grad/")}
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(own[key].numpy(), value, atol=1e-4 * np.abs(value).max(), err_msg=key)


@pytest.mark.parametrize("name", ["papagei_s", "papagei_p"])
def test_the_published_shapes(shared: Path, name: str):
    path = shared / "fixtures" / "papagei" / "meta.json"
    if not path.exists():
        pytest.skip(f"shared data absent: {path}")
    meta = json.loads(path.read_text())[name]
    with torch.device("meta"):
        model = PapageiConfig(n_experts=3 if name == "papagei_s" else 0).build().eval()
        assert sum(p.numel() for p in model.parameters()) == meta["n_params"] and len(model.state_dict()) == meta["n_tensors"]
        levels = model.encode(torch.zeros(2, 1, 1250)).levels
        out = model(torch.zeros(2, 1, 1250))
    assert {f"block{i + 1}": [tokens.shape[2], tokens.shape[1]] for i, tokens in enumerate(list(levels.values())[:18])} == {
        f"block{i + 1}": meta["act_shapes"][f"block{i:02d}"] for i in range(18)
    }
    assert [list(value.shape) for value in out if value is not None] == meta["out_shapes"]


# Meaning


def test_the_outputs_come_in_the_order_that_the_heads_have():
    """The original's README names another tuple; a wrong order would train one head on the other's labels."""
    model = tiny()
    with torch.no_grad():
        for one in model.expert_layers_1:
            one[2].weight.zero_(), one[2].bias.fill_(1.0)
        for one in model.expert_layers_2:
            one[3].weight.zero_(), one[3].bias.fill_(2.0)
        embedding, ipa, sqi, pooled = model(torch.randn(3, 1, 64))
    assert embedding.shape == (3, 8) and pooled.shape == (3, 8) and bool((pooled >= 0).all())
    assert torch.allclose(ipa, torch.ones(3, 1)) and torch.allclose(sqi, torch.full((3, 1), 2.0))


def test_encode_means_what_the_original_returns():
    model, x_BCT = tiny(), torch.randn(5, 1, 101)
    out, encoded = model(x_BCT), model.encode(x_BCT)
    torch.testing.assert_close(encoded.pooled_BD, out.embedding_BD)
    torch.testing.assert_close(pool(encoded.levels["block6"]), out.pooled_BD)
    assert list(encoded.levels) == ["block1", "block2", "block3", "block4", "block5", "block6", "embedding"]
    projected = tiny(n_experts=0, projection=True)
    torch.testing.assert_close(projected.encode(x_BCT).pooled_BD, projected(x_BCT).pooled_BD)
    assert projected.n_features == projected(x_BCT).embedding_BD.shape[1] == 128


@pytest.mark.parametrize("n_samples", [1, 2, 37, 250, 313])
@pytest.mark.parametrize(
    "changes", [{}, {"kernel": 5, "n_channels": 2}, {"kernel": 4}, {"n_blocks": 10, "base_width": 3}, {"n_experts": 0, "projection": True}]
)
def test_the_fast_path_gives_the_plain_numbers(changes: dict, n_samples: int):
    model, x_BCT = tiny(**changes), torch.randn(19, changes.get("n_channels", 1), n_samples)
    with torch.no_grad():
        fast = model.encode(x_BCT)
    plain = model.encode(x_BCT)  # where gradients are on
    assert plain.pooled_BD.requires_grad and not fast.pooled_BD.requires_grad
    for name, tokens_BND in plain.levels.items():
        torch.testing.assert_close(fast.levels[name], tokens_BND.detach(), rtol=1e-4, atol=1e-5, msg=name)


def test_the_fast_path_sees_new_weights_at_once():
    model, x_BCT = tiny(), torch.randn(9, 1, 64)
    with torch.no_grad():
        before = model.encode(x_BCT).pooled_BD
        model.basicblock_list[2].bn2.weight.data.mul_(2)
        after = model.encode(x_BCT).pooled_BD
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model.encode(x_BCT).pooled_BD.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_windows", [2, 16])
def test_half_precision_stays_near(n_windows: int):
    model, x_BCT = tiny(), torch.randn(n_windows, 1, 250)
    with torch.no_grad():
        exact = model.encode(x_BCT).pooled_BD
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model.encode(x_BCT).pooled_BD
    assert F.cosine_similarity(exact, half.float()).min() > 0.999


@pytest.mark.parametrize("kernel", [3, 4, 5, 11])
@pytest.mark.parametrize("n_valid", [5, 24, 33, 64])
def test_a_short_tail_gives_the_features_of_the_window_cut_short(kernel: int, n_valid: int):
    model, x_BCT = tiny(kernel=kernel), torch.randn(2, 1, 64)
    valid_BT = torch.arange(64) < torch.tensor([[n_valid], [64]])
    tailed, cut, whole = model.encode(x_BCT, valid_BT=valid_BT), model.encode(x_BCT[:1, :, :n_valid]), model.encode(x_BCT[1:])
    torch.testing.assert_close(tailed.pooled_BD, torch.cat([cut.pooled_BD, whole.pooled_BD]))
    torch.testing.assert_close(model(x_BCT, valid_BT=valid_BT).embedding_BD, tailed.pooled_BD)
    for name, tokens_BND in cut.levels.items():
        n = tokens_BND.shape[1]
        torch.testing.assert_close(tailed.levels[name][0, :n], tokens_BND[0])
        assert not tailed.levels[name][0, n:].any()
        assert model.token_valid(valid_BT)[name].sum(1).tolist() == [n, tailed.levels[name].shape[1]]


def test_an_absent_channel_reads_as_zeros():
    model, x_BCT = tiny(n_channels=3), torch.randn(2, 3, 64)
    present_BC = torch.tensor([[True, False, True], [True, True, True]])
    zeroed = x_BCT.clone()
    zeroed[0, 1] = 0
    torch.testing.assert_close(model.encode(x_BCT, channel_present_BC=present_BC).pooled_BD, model.encode(zeroed).pooled_BD)
    for trained, expected in zip(model(x_BCT, channel_present_BC=present_BC), model(zeroed), strict=True):
        assert torch.equal(trained, expected)
    with pytest.raises(ValueError, match="channel_present_BC"):
        model.encode(x_BCT, channel_present_BC=present_BC[:1])


@pytest.mark.parametrize(("n_channels", "n_samples"), [(1, 250), (2, 125), (3, 333)])
def test_any_channels_and_length_but_no_other_channels(n_channels: int, n_samples: int):
    model = PapageiConfig.preset("tiny", n_channels=n_channels, n_samples=n_samples).build().eval()
    for length in (n_samples, n_samples + 7):
        encoded = model.encode(torch.randn(2, n_channels, length))
        assert encoded.pooled_BD.shape == (2, 16) and encoded.tokens_BND.shape == (2, -(-length // 8), 16)
    for wrong in (torch.zeros(2, n_channels + 1, n_samples), torch.zeros(2, n_samples)):
        with pytest.raises(ValueError, match="x_BCT must be"):
            model.encode(wrong)


@pytest.mark.parametrize("changes", [{}, {"n_experts": 0}, {"n_experts": 0, "projection": True}])
def test_every_parameter_that_trains_gets_a_gradient(changes: dict):
    """Tensors that no output depends on are in the state dict, but ask for none: ranks would wait for them."""
    model = tiny(**changes).train()
    sum(value.sum() for value in model(torch.randn(8, 1, 64))[:3] if value is not None).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not torch.isfinite(p.grad).all())]
    frozen = {name.split(".weight")[0].split(".bias")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert missing == [] and frozen == {"basicblock_list.0.bn1"} | ({"dense"} if changes.get("projection") else set())


def test_a_flat_window_has_finite_features():
    assert tiny().encode(torch.zeros(8, 1, 250)).pooled_BD.isfinite().all()


@pytest.mark.parametrize("bad", [{"n_channels": 0}, {"n_blocks": 0}, {"kernel": 0}, {"n_experts": -1}, {"projection": True}, {"dropout": 1.0}])
def test_a_config_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PapageiConfig(**bad)
    with pytest.raises(ValueError, match="size"):
        PapageiConfig.preset("huge")
