import pytest
import torch

from physio_models.resnet1d import BLOCKS, ResNet1d, ResNet1dConfig


def tiny(**changes) -> ResNet1d:
    torch.manual_seed(0)
    model = ResNet1dConfig(**{"n_channels": 2, "n_samples": 100, "base_width": 4, **changes}).build()
    for _ in range(3):
        model(torch.randn(8, model.cfg.n_channels, 64))
    return model.eval()


def published(depth: int, n_channels: int) -> int:
    """Weights of the published network counted layer by layer: convolutions without bias, two numbers per normalised channel."""
    total, n_in = n_channels * 64 * 7 + 128, 64
    for stage, n_blocks in enumerate(BLOCKS[depth]):
        inner = 64 * 2**stage
        for i in range(n_blocks):
            if depth < 50:
                n_out = inner
                total += n_in * n_out * 3 + n_out * n_out * 3 + 4 * n_out
            else:
                n_out = 4 * inner
                total += n_in * inner + inner * inner * 3 + inner * n_out + 4 * inner + 2 * n_out
            if i == 0 and (stage or n_in != n_out):
                total += n_in * n_out + 2 * n_out
            n_in = n_out
    return total


@pytest.mark.parametrize("depth", BLOCKS)
def test_every_depth_has_the_weights_of_the_published_layers(depth: int):
    with torch.device("meta"):
        model = ResNet1dConfig(depth=depth).build()
        assert sum(p.numel() for p in model.parameters()) == published(depth, 12)
        encoded = model.eval().encode(torch.zeros(2, 12, 2500))
    wide = 4 if depth >= 50 else 1
    assert [tuple(level.shape) for level in encoded.levels.values()] == [(2, n, 64 * 2**i * wide) for i, n in enumerate((1250, 625, 313, 157))]


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("n_valid", [5, 24, 33])
def test_a_short_tail_gives_the_features_of_the_window_cut_short(depth: int, n_valid: int):
    model, x_BCT = tiny(depth=depth), torch.randn(2, 2, 40)
    valid_BT = torch.arange(40) < torch.tensor([[n_valid], [40]])
    tailed, cut = model.encode(x_BCT, valid_BT=valid_BT), model.encode(x_BCT[:1, :, :n_valid])
    torch.testing.assert_close(tailed.pooled_BD[:1], cut.pooled_BD)
    torch.testing.assert_close(tailed.pooled_BD, model(x_BCT, valid_BT=valid_BT).embedding_BD)
    for name, tokens_BND in cut.levels.items():
        n = tokens_BND.shape[1]
        torch.testing.assert_close(tailed.levels[name][0, :n], tokens_BND[0])
        assert not tailed.levels[name][0, n:].any() and int(model.token_valid(valid_BT)[name][0].sum()) == n


@pytest.mark.parametrize(("n_channels", "n_samples"), [(1, 100), (2, 77), (12, 200)])
def test_any_channels_and_length_but_no_other_channels(n_channels: int, n_samples: int):
    model = tiny(n_channels=n_channels, n_samples=n_samples)
    for length in (n_samples, n_samples + 9):
        assert model.encode(torch.randn(3, n_channels, length)).pooled_BD.shape == (3, 32)
    with pytest.raises(ValueError, match="x_BCT must be"):
        model.encode(torch.zeros(3, n_channels + 1, n_samples))
    with pytest.raises(ValueError, match="valid_BT"):
        model(torch.zeros(3, n_channels, 50), valid_BT=torch.ones(3, 49))


def test_an_absent_channel_reads_as_zeros():
    model, x_BCT = tiny(), torch.randn(2, 2, 64)
    zeroed = x_BCT * torch.tensor([1.0, 0.0])[None, :, None]
    present_BC = torch.tensor([[True, False]] * 2)
    torch.testing.assert_close(model.encode(x_BCT, channel_present_BC=present_BC).pooled_BD, model.encode(zeroed).pooled_BD)
    assert torch.equal(model(x_BCT, channel_present_BC=present_BC).embedding_BD, model(zeroed).embedding_BD)


@pytest.mark.parametrize("bad", [{"depth": 20}, {"kernel": 4}, {"n_channels": 0}])
def test_a_config_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ResNet1dConfig(**bad)
