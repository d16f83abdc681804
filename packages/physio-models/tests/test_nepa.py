import numpy as np
import pytest
import torch
from torch import nn

from physio_models.nepa import NepaConfig, NextEmbedding
from physio_models.objectives.nepa import NextEmbeddingPrediction, agreement


def built(**changes) -> nn.Module:
    torch.manual_seed(0)
    return NepaConfig.preset("tiny", **changes).build().eval()


def window(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 160, generator=torch.Generator().manual_seed(1))


def test_the_originals_size_has_its_number_of_parameters():
    with torch.device("meta"):
        model = NepaConfig.preset("reference").build()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 20.46 and model.cfg.n_tokens == 2500


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("at", [0, 7, 19])
def test_no_prediction_knows_the_future(positions: str, at: int):
    model, x_BCT = built(positions=positions), window()
    changed = x_BCT.clone()
    changed[..., 8 * at :] = -changed[..., 8 * at :]
    before, after = model(x_BCT).pred_BND, model(changed).pred_BND
    assert torch.equal(before[:, :at], after[:, :at]) and not torch.allclose(before[:, at], after[:, at])


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_order_matters(positions: str):
    """The last token, which sees all, tells two windows apart that hold the same patches in another order."""
    model, x_BCT = built(positions=positions), window()
    swapped = torch.cat([x_BCT[..., 8:16], x_BCT[..., :8], x_BCT[..., 16:]], dim=-1)
    assert not torch.allclose(model.encode(x_BCT).tokens_BND[:, -1], model.encode(swapped).tokens_BND[:, -1], atol=1e-4)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_the_target_is_the_patch_alone(positions: str):
    """Neither position nor dropout: the same patch at two places, in training mode, gives the same target twice."""
    model = built(positions=positions, dropout=0.5).train()
    x_BCT = window()[..., :8].repeat(1, 1, 20)
    embedded = model(x_BCT).embedded_BND
    assert torch.equal(embedded, model(x_BCT).embedded_BND)
    torch.testing.assert_close(embedded, embedded[:, :1].expand_as(embedded))


def test_the_loss_is_the_mean_cosine_with_the_next_embedding():
    draw = torch.Generator().manual_seed(2)
    pred, embedded = torch.randn(2, 3, 6, 4, generator=draw)
    valid_BN = torch.arange(6) < torch.tensor([[6], [4], [2]])
    p, z = pred.double().numpy(), embedded.double().numpy()
    pairs = [(b, n) for b in range(3) for n in range(5) if valid_BN[b, n + 1]]
    mean = np.mean([z[b, n + 1] for b, n in pairs], axis=0)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    for center in (False, True):
        off = mean if center else 0.0
        found, floor = agreement(NextEmbedding(pred, embedded, valid_BN), center=center)
        assert found.item() == pytest.approx(np.mean([cosine(p[b, n] - off, z[b, n + 1] - off) for b, n in pairs]), abs=1e-5)
        assert floor.item() == pytest.approx(np.mean([cosine(mean, z[b, n + 1]) for b, n in pairs]), abs=1e-5)


def test_no_gradient_goes_through_the_target():
    pred, embedded = torch.randn(1, 4, 3, requires_grad=True), torch.randn(1, 4, 3, requires_grad=True)
    agreement(NextEmbedding(pred, embedded, None), center=True)[0].backward()
    assert pred.grad.any() and embedded.grad is None


@pytest.mark.parametrize("center", [True, False])
def test_white_noise_cannot_be_learnt_and_the_loss_says_so(center: bool, step):
    """On noise with an offset the published cosine soon passes 0.75; off the mean, nothing is found where there is nothing to find."""
    model = built().train()
    objective, optimizer, draw = NextEmbeddingPrediction(center=center), torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(3)
    for _ in range(50):
        items = {"signal": torch.rand(32, 3, 160, generator=draw), "index": torch.arange(32)}
        loss = objective(model, items, step)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    reached, constant = loss.parts["cosine"].item(), loss.parts["cosine_of_constant"].item()
    if center:
        assert reached < 0.1
    else:
        assert reached > 0.75 and reached < constant + 0.02, "no better than always answering the mean"


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"positions": "sincos"}, "positions must be"),
        ({"patch": 7}, "patch=7"),
        ({"width": 12, "n_heads": 4}, "even"),
        ({"dropout": 1.0}, "dropout"),
        ({"depth": 0}, "depth"),
    ],
)
def test_a_config_checks_itself(bad: dict, match: str):
    with pytest.raises(ValueError, match=match):
        NepaConfig.preset("tiny", **bad)
