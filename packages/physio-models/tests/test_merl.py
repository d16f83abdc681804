import numpy as np
import pytest
import torch

from physio_models.merl import Merl, MerlConfig
from physio_models.objectives.merl import MerlAlignment
from physio_models.resnet1d import ResNet1dConfig

RESNET = {"resnet_depth": 18, "resnet_width": 4}
VIT = {"tower": "vit", "vit_width": 16, "vit_depth": 2, "vit_heads": 2, "vit_patch": 16}
TOWERS = pytest.mark.parametrize("tower", [RESNET, VIT], ids=["resnet", "vit"])


def tiny(**changes) -> Merl:
    torch.manual_seed(0)
    return MerlConfig(**{"n_channels": 2, "n_samples": 160, "width": 16, "text_width": 8, **RESNET, **changes}).build()


def batch(n: int = 8, **changes) -> dict:
    draw = torch.Generator().manual_seed(1)
    return {"signal": torch.randn(n, 2, 160, generator=draw), "text_emb": torch.randn(n, 8, generator=draw), "index": torch.arange(n), **changes}


def test_the_published_network_has_the_published_size():
    """29.55 M: the original without its frozen language model."""
    with torch.device("meta"):
        model = MerlConfig().build()
        encoded = model.eval().encode(torch.zeros(2, 12, 2500))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(29.55e6, abs=0.01e6)
    assert {name: tuple(level.shape[1:]) for name, level in encoded.levels.items()} == {
        "block1": (1250, 256),
        "block2": (625, 512),
        "block3": (313, 1024),
        "block4": (157, 2048),
        "projected": (157, 256),
    }


@pytest.mark.parametrize("n_samples", [2500, 1250, 1000, 999, 640])
def test_positions_are_as_many_as_the_window_has_tokens(n_samples: int):
    """The original knew two lengths and took 32 positions for any other."""
    with torch.device("meta"):
        model = MerlConfig(n_samples=n_samples, **RESNET).build()
        assert model.pooling.positions_ND.shape[0] == 1 + model.cfg.n_tokens == 1 + model.eval().encode(torch.zeros(1, 12, n_samples)).tokens_BND.shape[1]


@TOWERS
def test_pooling_is_attention_of_the_learned_token(tower: dict):
    model, items = tiny(**tower).eval(), batch()
    with torch.no_grad():
        tokens = model.encode(items["signal"]).tokens_BND.double().numpy()
        found = model.project_signal(items["signal"]).double().numpy()
    own = {key: value.double().numpy() for key, value in model.pooling.state_dict().items()}
    context = np.concatenate([np.broadcast_to(own["cls_D"], (8, 1, 16)), tokens], axis=1) + own["positions_ND"]
    query = context[:, 0] @ own["attention.query.weight"].T + own["attention.query.bias"]
    both = context @ own["attention.key_value.weight"].T + own["attention.key_value.bias"]
    heads = []
    for h in range(4):
        part = slice(4 * h, 4 * h + 4)
        score = np.einsum("bk,bnk->bn", query[:, part], both[..., :16][..., part]) / 2.0
        weight = np.exp(score - score.max(1, keepdims=True))
        heads.append(np.einsum("bn,bnk->bk", weight / weight.sum(1, keepdims=True), both[..., 16:][..., part]))
    attended = np.concatenate(heads, axis=1) @ own["attention.out.weight"].T + own["attention.out.bias"]
    np.testing.assert_allclose(found, attended @ own["out.weight"].T + own["out.bias"], rtol=1e-4, atol=1e-5)


@TOWERS
def test_the_loss_is_both_alignments_in_both_directions(tower: dict, step):
    model, items = tiny(**tower).eval(), batch()

    def alignment(a: np.ndarray, b: np.ndarray) -> float:
        a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
        p = np.exp(a @ b.T / 0.07)
        return float(-np.log(np.diag(p) / p.sum(1)).mean() - np.log(np.diag(p) / p.sum(0)).mean())

    with torch.no_grad():
        ecg, text, view1, view2 = (value.double().numpy() for value in model(items["signal"], items["text_emb"]))
    loss = MerlAlignment(uma_weight=0.5)(model, items, step)
    assert loss.parts["cma"].item() == pytest.approx(alignment(ecg, text), rel=1e-4)
    assert loss.parts["uma"].item() == pytest.approx(alignment(view1, view2), rel=1e-4)
    assert loss.total.item() == pytest.approx(alignment(ecg, text) + 0.5 * alignment(view1, view2), rel=1e-4)


def test_the_two_views_differ_by_their_dropout_too():
    model = tiny(dropout=0.5).train()
    model.view2[0].weight.data.copy_(model.view1[0].weight.data)
    out = model(batch()["signal"], batch()["text_emb"])
    assert not torch.equal(out.view1_BD, out.view2_BD)
    out = model.eval()(batch()["signal"], batch()["text_emb"])
    assert torch.equal(out.view1_BD, out.view2_BD)


@TOWERS
def test_training_lowers_the_loss_and_reaches_every_parameter(tower: dict, step):
    model, items, objective = tiny(**tower), batch(12), MerlAlignment()
    assert len(objective.modules(model)) == 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = objective(model, items, step).total
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@TOWERS
def test_a_short_tail_takes_no_part(tower: dict, step):
    model = tiny(**tower).eval()
    items = batch(valid=(torch.arange(160) < 96).expand(8, 160))
    changed = items | {"signal": torch.where(items["valid"][:, None], items["signal"], torch.tensor(1e4))}
    first, second = (MerlAlignment()(model, one, step).total for one in (items, changed))
    torch.testing.assert_close(first, second)
    encoded = model.encode(items["signal"], valid_BT=items["valid"])
    valid = model.token_valid(items["valid"])
    assert all(not level[~valid[name]].any() for name, level in encoded.levels.items())
    expected = (encoded.tokens_BND.sum(1) / valid["projected"].sum(1, keepdim=True)).detach()
    torch.testing.assert_close(encoded.pooled_BD.detach(), expected)


@TOWERS
def test_an_absent_channel_reads_as_zeros(tower: dict):
    model, x_BCT = tiny(**tower).eval(), batch()["signal"]
    present_BC = torch.tensor([[True, False]] * 8)
    zeroed = x_BCT * present_BC[..., None]
    torch.testing.assert_close(model.encode(x_BCT, channel_present_BC=present_BC).pooled_BD, model.encode(zeroed).pooled_BD)


@TOWERS
@pytest.mark.parametrize(("n_channels", "n_samples"), [(1, 160), (2, 320), (12, 160)])
def test_another_shape_than_the_configs_is_refused(tower: dict, n_channels: int, n_samples: int):
    model = tiny(n_channels=n_channels, n_samples=n_samples, **tower).eval()
    assert model.encode(torch.randn(3, n_channels, n_samples)).pooled_BD.shape == (3, 16)
    for wrong in ((3, n_channels + 1, n_samples), (3, n_channels, n_samples + 16)):
        with pytest.raises(ValueError, match="x_BCT must be"):
            model.encode(torch.zeros(wrong))


def test_what_does_not_fit_is_refused(step):
    with pytest.raises(ValueError, match="needs a network with a text side"):
        MerlAlignment().modules(ResNet1dConfig(base_width=4).build())
    with pytest.raises(ValueError, match=r"needs batch\['text_emb'\]"):
        MerlAlignment()(tiny(), {"signal": batch()["signal"]}, step)
    with pytest.raises(ValueError, match="set text_width to the language model's"):
        MerlAlignment()(tiny(), batch(text_emb=torch.zeros(8, 9)), step)


@pytest.mark.parametrize("bad", [{"tower": "lstm"}, {"text_width": 0}, {"n_heads": 3}, {"dropout": 1.0}, {"resnet_depth": 20, "match": "depth"}])
def test_a_config_checks_itself(bad: dict):
    match = bad.pop("match", next(iter(bad)))
    with pytest.raises(ValueError, match=match):
        MerlConfig(**bad)
    with pytest.raises(ValueError, match="size"):
        MerlConfig.preset("huge")


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"uma_weight": -1.0}])
def test_an_objective_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        MerlAlignment(**bad)
