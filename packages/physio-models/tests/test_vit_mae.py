import pytest
import torch
from torch import nn

from physio_models.st_mem import StMemConfig
from physio_models.vit import VitConfig
from physio_models.vit_mae import MaeVitConfig, MlaeConfig, MtaeConfig

MASKED = {"mae_vit": MaeVitConfig, "mtae": MtaeConfig, "mlae": MlaeConfig, "st_mem": StMemConfig}
each = pytest.mark.parametrize("name", MASKED)


def built(name: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    return MASKED[name].preset("tiny", **changes).build().eval()


def mask_for(model: nn.Module, n: int = 2, n_hidden: int | None = None) -> torch.Tensor:
    """Hides two thirds of the tokens (of each lead), other ones in each item."""
    shape = tuple(model.mask_axes.values())
    noise = torch.rand(n, *shape, generator=torch.Generator().manual_seed(3))
    return noise.argsort(-1).argsort(-1) < (2 * shape[-1] // 3 if n_hidden is None else n_hidden)


def window(model: nn.Module, n: int = 2) -> torch.Tensor:
    return torch.randn(n, model.cfg.n_channels, model.cfg.n_samples, generator=torch.Generator().manual_seed(4))


# Sizes


@pytest.mark.parametrize(("name", "millions", "digits"), [("mae_vit", 34.10, 2), ("mlae", 91.0, 1), ("mtae", 89.7, 1), ("st_mem", 88.6, 1)])
def test_the_published_size_has_the_published_number_of_parameters(name: str, millions: float, digits: int):
    """The published counts of the last three include their fixed positions."""
    with torch.device("meta"):
        model = MASKED[name].preset("reference").build()
    count = sum(t.numel() for t in [*model.parameters(), *model.buffers()])
    assert round(count / 1e6, digits) == millions


@pytest.mark.parametrize(("n_samples", "patch"), [(2500, 100), (1250, 50), (1000, 40)])
def test_windows_are_cut_into_about_32_patches(n_samples: int, patch: int):
    for config in (MtaeConfig, StMemConfig, VitConfig):
        assert config(n_samples=n_samples).patch_samples == patch


def test_a_window_that_no_patch_fits_is_refused_with_one_that_it_does():
    with pytest.raises(ValueError, match=r"n_samples=997 .* windows of 992 samples"):
        MtaeConfig(n_samples=997)
    assert MtaeConfig(n_samples=992).n_tokens == 32


@pytest.mark.parametrize("name", ["mtae", "st_mem"])
def test_an_encoder_sees_a_quarter_of_the_published_tokens(name: str):
    """6 of 25 patches and the class token; 12 leads of 6 patches and two separators: 96."""
    changes = {"n_channels": 12, "n_samples": 2500}
    model, seen = built(name, **changes), []
    model.get_submodule("blocks.0" if name == "st_mem" else "encoder.blocks.0").register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    model(window(model), mask_for(model, n_hidden=19), n_visible=6)
    assert seen == [96 if name == "st_mem" else 7]


# What is hidden, and where it comes back


@each
@pytest.mark.parametrize("n_channels", [1, 2, 5, 12])
def test_what_is_hidden_does_not_reach_the_reconstruction_and_what_is_visible_does(name: str, n_channels: int):
    model = built(name, n_channels=n_channels)
    x_BCT, mask = window(model), mask_for(model)
    out = model(x_BCT, mask)
    changed = torch.where(out.mask_B1T, 9.0, x_BCT)
    assert torch.equal(model(changed, mask).pred_BCT, out.pred_BCT)
    if not out.mask_B1T.all():
        other = torch.where(out.mask_B1T, x_BCT, torch.flip(x_BCT, [-1]))
        assert not torch.allclose(model(other, mask).pred_BCT, out.pred_BCT)


@each
@pytest.mark.parametrize("n_channels", [1, 2, 5, 12])
def test_every_visible_token_goes_home(name: str, n_channels: int):
    """An encoder and decoder that pass tokens through must give every visible sample back in its own channel and place, and none elsewhere."""
    size = {"st_mem": 6, "mtae": 6 * n_channels}.get(name, 96)  # values of a token, and so the width that can pass them through
    changes = {"patch": 6} if name in ("st_mem", "mtae") else {}
    cfg = MASKED[name](n_channels=n_channels, n_samples=96, width=size, n_heads=1, decoder_width=size, decoder_heads=1, **changes)
    model = pass_through(cfg.build())
    x_BCT, mask = window(model), mask_for(model)
    out = model(x_BCT, mask)
    assert out.mask_B1T.expand_as(x_BCT).float().mean() == pytest.approx(float(mask.float().mean()))
    torch.testing.assert_close(out.pred_BCT, x_BCT.masked_fill(out.mask_B1T, -7.0))


def pass_through(model: nn.Module) -> nn.Module:
    """Blocks and norms that do nothing, identity matrices, no positions, and -7 for whatever is hidden."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ModuleList) and "blocks" in name:
            for i in range(len(module)):
                module[i] = Same()
        elif isinstance(module, nn.LayerNorm):
            parent, _, leaf = name.rpartition(".")
            owner = model.get_submodule(parent)
            if isinstance(owner, nn.Sequential):
                owner[int(leaf)] = nn.Identity()
            else:
                setattr(owner, leaf, nn.Identity())
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] and name.endswith("weight"):
                tensor.copy_(torch.eye(len(tensor)))
            else:
                tensor.fill_(-7.0 if name.endswith("mask_D") else 0.0)
    return model


class Same(nn.Module):
    def forward(self, x, **options):
        return x


@each
def test_items_with_other_numbers_of_visible_tokens_are_as_if_alone(name: str):
    model, x_BCT = built(name), window(built(name))
    mask = mask_for(model)
    mask[1] = False
    mask[1, ..., 0] = True
    together = model(x_BCT, mask).pred_BCT
    for b in range(2):
        torch.testing.assert_close(model(x_BCT[b : b + 1], mask[b : b + 1]).pred_BCT[0], together[b], rtol=1e-4, atol=1e-5)


@each
def test_a_known_number_of_visible_tokens_changes_nothing(name: str):
    model, x_BCT = built(name), window(built(name))
    mask = mask_for(model)
    n_visible = int((~mask).sum(-1).flatten()[0])
    torch.testing.assert_close(model(x_BCT, mask, n_visible=n_visible).pred_BCT, model(x_BCT, mask).pred_BCT)


@each
def test_a_mask_of_another_shape_is_refused(name: str):
    model = built(name)
    with pytest.raises(ValueError, match="mask_BN must be"):
        model(window(model), torch.zeros(2, 7, dtype=torch.bool))


@each
def test_encode_runs_no_decoder(name: str):
    model = built(name)
    for part in [model.decoder] if hasattr(model, "decoder") else [model.narrow, model.head, *model.decoder_blocks]:
        part.register_forward_hook(lambda *_: pytest.fail("the decoder ran"))
    assert model.encode(window(model)).pooled_BD.shape == (2, 32)


# Leads


def test_fewer_leads_need_no_zeros_in_their_place():
    """ST-MEM with absent leads is an ST-MEM that never had them."""
    whole, part = built("st_mem", n_channels=5), built("st_mem", n_channels=2)
    keep = torch.tensor([1, 4])
    state = whole.state_dict()
    part.load_state_dict(state | {"leads_CD": state["leads_CD"][keep]})
    x_BCT = window(whole)
    absent = whole.encode(x_BCT, channel_present_BC=torch.isin(torch.arange(5), keep).expand(2, -1))
    torch.testing.assert_close(absent.pooled_BD, part.encode(x_BCT[:, keep]).pooled_BD)


@pytest.mark.parametrize("name", ["mae_vit", "mlae"])
def test_an_absent_lead_is_a_token_that_is_not_there(name: str):
    model, x_BCT = built(name, n_channels=5), None
    x_BCT, present_BC = window(model), torch.tensor([True, False, True, True, False]).expand(2, -1)
    encoded = model.encode(x_BCT, channel_present_BC=present_BC)
    tokens = model.encoder.tokens(x_BCT, None, None)[:, present_BC[0]]
    torch.testing.assert_close(encoded.pooled_BD, model.encoder.through(tokens, None)[-1].mean(1))
    assert not encoded.tokens_BND[:, ~present_BC[0]].any()


def test_leads_are_told_apart():
    """The same signal on two leads in the opposite order is another recording."""
    for name in ("st_mem", "mlae", "mae_vit", "mtae"):
        model = built(name, n_channels=2)
        x_BCT = window(model)
        assert not torch.allclose(model.encode(x_BCT).pooled_BD, model.encode(x_BCT.flip(1)).pooled_BD, atol=1e-4)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"tokens": "samples"}, "tokens must be one of"),
        ({"positions": "rotary"}, "positions must be one of"),
        ({"dropout": 1.0}, "dropout must lie"),
        ({"tokens": "leads", "patch": 10}, "patch must be None"),
        ({"patch": 7}, "patch=7"),
        ({"depth": 0}, "depth"),
        ({"decoder_depth": 0}, "decoder_depth"),
        ({"decoder_heads": 3}, "n_heads must divide"),
    ],
)
def test_a_config_checks_itself(bad: dict, match: str):
    with pytest.raises(ValueError, match=match):
        MtaeConfig.preset("tiny", **bad)


@pytest.mark.parametrize("bad", [{"n_channels": 0}, {"depth": 0}, {"decoder_depth": 0}])
def test_an_st_mem_config_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        StMemConfig.preset("tiny", **bad)
