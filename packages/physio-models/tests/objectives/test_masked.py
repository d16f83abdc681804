import numpy as np
import pytest
import torch

from physio_models.himae import HiMaeConfig
from physio_models.interface import Masked
from physio_models.masking import part_of
from physio_models.objectives.masked import MaskedReconstruction, masked_error, masked_mse, standardised_patches
from physio_models.st_mem import StMemConfig
from physio_models.vit_mae import MaeVitConfig, MlaeConfig, MtaeConfig


def model(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return HiMaeConfig(**{"widths": (4, 8), **changes}).build()


def batch(n: int = 4, n_channels: int = 1, n_samples: int = 40) -> dict[str, torch.Tensor]:
    return {"signal": torch.randn(n, n_channels, n_samples, generator=torch.Generator().manual_seed(1)), "index": torch.arange(n) + 7}


def some_masked(n_channels: int) -> Masked:
    generator = torch.Generator().manual_seed(2)
    pred, target = torch.randn(2, 3, n_channels, 20, generator=generator)
    return Masked(pred, target, torch.rand(3, 1, 20, generator=generator) < 0.6)


@pytest.mark.parametrize("n_channels", [1, 2])
@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_the_loss_is_the_mean_square_over_what_is_scored(n_channels: int, reference: bool, loss_on: str):
    out = some_masked(n_channels)
    mask = np.broadcast_to(out.mask_B1T.numpy() if loss_on == "masked" else np.ones((3, 1, 20), bool), (3, n_channels, 20))
    square = (out.pred_BCT.double().numpy() - out.target_BCT.double().numpy()) ** 2
    expected = square[mask].mean() * (n_channels if reference else 1)
    assert float(masked_mse(out, loss_on=loss_on, reference=reference)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_on", ["masked", "all"])
def test_the_originals_sum_runs_over_the_channels_that_are_present(loss_on: str):
    """Squares of present channels over hidden samples, each counted once: of an item that has all, of one that lacks one, of one that has none."""
    out, present_BC = some_masked(2), torch.tensor([[True, True], [False, True], [False, False]])
    valid_BT = torch.arange(20) < torch.tensor([[20], [11], [20]])
    total, n = 0.0, 0
    for item, channels, length in ((0, (0, 1), 20), (1, (1,), 11)):
        for t in range(length):
            if loss_on == "all" or out.mask_B1T[item, 0, t]:
                total += sum(float(out.pred_BCT[item, c, t] - out.target_BCT[item, c, t]) ** 2 for c in channels)
                n += 1
    found = masked_error(out, valid_BT=valid_BT, present_BC=present_BC, loss_on=loss_on, reference=True)
    assert float(found) == pytest.approx(total / n, rel=1e-5)


def test_the_originals_sum_counts_lost_channels_out_of_himaes_loss(step):
    items = batch(n_channels=2) | {"channel_present": torch.tensor([[True, True], [True, True], [True, False], [False, True]])}
    losses = {flag: MaskedReconstruction(reference=flag)(model(n_channels=2), items, step).total.item() for flag in (True, False)}
    assert losses[True] == pytest.approx(losses[False] * 6 / 4, rel=1e-5)  # six channels of four items, which hide as many samples each


@pytest.mark.parametrize("config", [MaeVitConfig.preset("tiny"), MlaeConfig.preset("tiny"), StMemConfig.preset("tiny")])
def test_the_originals_sum_is_refused_where_each_lead_is_hidden_on_its_own(config, step):
    objective, net = MaskedReconstruction(reference=True, mask_ratio=0.5), config.build()
    with pytest.raises(ValueError, match=r"reference must be False .* hides each lead on its own"):
        objective.modules(net)
    with pytest.raises(ValueError, match=r"reference must be False .* use a network that hides all leads together \(himae, ti_mae, mtae\)"):
        objective(net, batch(n_channels=config.n_channels, n_samples=config.n_samples), step)


def test_the_originals_sum_is_that_of_every_network_that_hides_all_leads_together(step):
    """Three channels: three times the mean."""
    config = MtaeConfig.preset("tiny")
    items, net = batch(n_channels=3, n_samples=200), config.build().eval()
    losses = {flag: MaskedReconstruction(reference=flag)(net, items, step).total.item() for flag in (True, False)}
    assert MaskedReconstruction(reference=True).modules(net) is not None and losses[True] == pytest.approx(3 * losses[False], rel=1e-5)


def test_an_invalid_tail_is_never_scored(step):
    items = batch()
    items["valid"] = (torch.arange(40) < 23).expand(4, 40)
    changed = items | {"signal": torch.where(items["valid"][:, None], items["signal"], torch.tensor(1e6))}
    for loss_on in ("masked", "all"):
        objective = MaskedReconstruction(loss_on=loss_on, mask_ratio=0.5)
        assert torch.equal(objective(model(), changed, step).total, objective(model(), items, step).total)


def test_the_model_is_called_exactly_once(step):
    net, calls = model(), []
    net.register_forward_hook(lambda *_: calls.append(1))
    loss = MaskedReconstruction()(net, batch(), step)
    loss.total.backward()
    assert calls == [1] and not loss.parts["mse"].requires_grad


def test_masks_belong_to_the_item_not_to_its_batch(step):
    objective = MaskedReconstruction(mask_ratio=(0.3, 0.9), clean_fraction=0.3)
    whole = objective.draw(torch.arange(20), 40, step)
    assert torch.equal(objective.draw(torch.tensor([11, 3]), 40, step), whole[[11, 3]])


def test_a_range_of_ratios_varies_between_its_bounds(step):
    hidden = MaskedReconstruction(patch=1, mask_ratio=(0.2, 0.7)).draw(torch.arange(300), 100, step).float().mean(1)
    assert hidden.min() >= 0.19 and hidden.max() <= 0.7 and hidden.std() > 0.1


def test_clean_items_stay_whole(step):
    hidden = MaskedReconstruction(clean_fraction=0.25).draw(torch.arange(400), 40, step).float().mean(1)
    assert sorted(set(hidden.tolist())) == [0.0, 0.75]  # int(0.8 * 8) = 6 of 8 patches
    assert 0.15 < float((hidden == 0).float().mean()) < 0.35


def test_a_batch_of_clean_items_has_a_finite_loss(step):
    loss = masked_mse(Masked(torch.ones(1, 1, 5), torch.zeros(1, 1, 5), torch.zeros(1, 1, 5, dtype=torch.bool)))
    assert float(loss) == 0


def test_a_patch_that_does_not_divide_the_window_is_refused(step):
    with pytest.raises(ValueError, match="patch=7 samples does not divide the window of 40 samples: use patch=5 or 8"):
        MaskedReconstruction(patch=7)(model(), batch(), step)


def test_a_ratio_that_hides_nothing_is_refused(step):
    with pytest.raises(ValueError, match="hides none"):
        MaskedReconstruction(patch=20, mask_ratio=0.3)(model(), batch(), step)


@pytest.mark.parametrize(
    "bad",
    [
        {"patch": 0},
        {"mask_ratio": 0.0},
        {"mask_ratio": (0.8, 0.2)},
        {"mask_ratio": (0.1,)},
        {"clean_fraction": 1.0},
        {"mask": "stripe"},
        {"loss_on": "none"},
        {"error": "l3"},
        {"leads": "some"},
        {"predict_fraction": 0.0},
        {"huber_delta": 0.0},
        {"norm_pix": True, "patch": 1},
        {"loss_on": "all", "predict_fraction": 0.5},
    ],
)
def test_an_objective_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        MaskedReconstruction(**bad)


@pytest.mark.parametrize("changes", [{"mask": "block"}, {"mask": "trailing"}, {"mask_ratio": (0.2, 0.8)}, {"clean_fraction": 0.5}, {"loss_on": "all"}])
def test_training_lowers_the_loss(changes: dict, step):
    objective, net, items = MaskedReconstruction(**{"mask_ratio": 0.5, **changes}), model(output="linear"), batch(8)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = objective(net, items, step).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# Networks with tokens


class Recorder(torch.nn.Module):
    """A network with tokens that keeps what it was called with and puts a learned number everywhere."""

    def __init__(self, axes: dict[str, int], *, predicts_part: bool = False) -> None:
        super().__init__()
        self.mask_axes, self.predicts_part, self.calls = axes, predicts_part, []
        self.value = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x_BCT, mask, **options) -> Masked:
        self.calls.append((mask, options))
        scored = options.get("predict", mask)
        if "time" not in self.mask_axes:
            samples = scored[:, :, None].expand(x_BCT.shape)
        else:
            samples = scored.repeat_interleave(x_BCT.shape[-1] // self.mask_axes["time"], dim=-1)
            samples = samples[:, None] if samples.ndim == 2 else samples
        return Masked(self.value.expand(x_BCT.shape), x_BCT, samples)


def asked(axes: dict[str, int], step, n_channels: int = 3, more: dict | None = None, **changes) -> tuple[torch.Tensor, dict]:
    """The mask and the options a network with these axes is called with."""
    net = Recorder(axes, predicts_part=changes.get("predict_fraction", 1.0) < 1)
    MaskedReconstruction(**{"mask_ratio": 0.5, **changes})(net, batch(6, n_channels) | (more or {}), step)
    return net.calls[0]


def test_patches_over_time_are_hidden_in_whole_groups_of_tokens(step):
    mask_BN, options = asked({"time": 20}, step, patch=8)  # tokens of 2 samples, four hidden together
    assert mask_BN.shape == (6, 20) and options["n_visible"] == 12 == int((~mask_BN[0]).sum())
    groups = mask_BN.reshape(6, 5, 4).float().mean(-1)
    assert set(groups.unique().tolist()) == {0.0, 1.0}


def test_tubelets_hide_the_same_times_in_all_leads_and_patches_do_not(step):
    together, options = asked({"lead": 3, "time": 10}, step, leads="together")
    assert together.shape == (6, 3, 10) and torch.equal(together[:, :1].expand_as(together), together) and options["n_visible"] == 5
    apart, options = asked({"lead": 3, "time": 10}, step)
    assert not torch.equal(apart[:, 0], apart[:, 1]) and apart.sum(-1).unique().tolist() == [5] and options["n_visible"] == 5


def test_whole_leads_are_hidden_from_end_to_end(step):
    mask_BCN, options = asked({"lead": 3, "time": 10}, step, leads="whole")
    assert set(mask_BCN.sum(-1).unique().tolist()) == {0, 10} and mask_BCN[..., 0].sum(1).tolist() == [1] * 6 and options["n_visible"] is None
    mask_BC, options = asked({"lead": 3}, step)
    assert mask_BC.shape == (6, 3) and options["n_visible"] == 2


def test_ranges_and_clean_items_leave_the_count_open_and_reach_every_lead(step):
    mask, options = asked({"lead": 3, "time": 10}, step, mask_ratio=(0.2, 0.9))
    assert options["n_visible"] is None and len(mask.sum(-1).unique()) > 1 and torch.equal(mask.sum(-1).amin(1), mask.sum(-1).amax(1))
    mask, options = asked({"lead": 3, "time": 10}, step, clean_fraction=0.5)
    assert options["n_visible"] is None and set(mask.sum((1, 2)).unique().tolist()) == {0, 15}


@pytest.mark.parametrize(("kind", "runs"), [("block", 1), ("trailing", 1)])
def test_spans_are_one_run_in_each_lead(kind: str, runs: int, step):
    mask, _ = asked({"lead": 3, "time": 10}, step, mask=kind)
    assert ((mask.int().diff(dim=-1, prepend=torch.zeros(6, 3, 1)) == 1).sum(-1) == runs).all() and (mask.sum(-1) == 5).all()
    if kind == "trailing":
        assert mask[..., 5:].all()


def test_a_part_of_what_is_hidden_is_predicted_and_nothing_else_scored(step):
    net = Recorder({"time": 20}, predicts_part=True)
    loss = MaskedReconstruction(mask_ratio=0.75, predict_fraction=1 / 3)(net, batch(6, 1), step)
    mask, options = net.calls[0]
    assert options["n_predicted"] == 5 and options["predict"].sum(1).tolist() == [5] * 6 and not (options["predict"] & ~mask).any()
    at = options["predict"].repeat_interleave(2, dim=1)
    assert loss.total.item() == pytest.approx(float(batch(6, 1)["signal"][:, 0][at].square().mean()), rel=1e-5)


def test_the_part_is_a_uniform_subset():
    mask = torch.zeros(2000, 6, dtype=torch.bool)
    mask[:, [1, 2, 4, 5]] = True
    share = part_of(mask, torch.rand(2000, 6, generator=torch.Generator().manual_seed(0)), 0.5).float().mean(0)
    assert share[[0, 3]].tolist() == [0, 0] and (share[[1, 2, 4, 5]] - 0.5).abs().max() < 0.05
    assert part_of(mask[:1], torch.rand(1, 6), 0.01).sum() == 1 and part_of(~mask[:1] & mask[:1], torch.rand(1, 6), 1.0).sum() == 0


def test_tails_and_absent_channels_reach_network_and_loss(step):
    present_BC = torch.tensor([[True, False, True]] * 6)
    valid_BT = (torch.arange(40) < 30).expand(6, 40)
    net, items = Recorder({"lead": 3, "time": 10}), batch(6, 3) | {"valid": valid_BT, "channel_present": present_BC}
    loss = MaskedReconstruction(mask_ratio=0.5)(net, items, step)
    mask, options = net.calls[0]
    assert options["valid_BT"] is valid_BT and options["channel_present_BC"] is present_BC
    scored = mask.repeat_interleave(4, dim=-1) & valid_BT[:, None] & present_BC[..., None]
    assert loss.total.item() == pytest.approx(float(items["signal"][scored].square().mean()), rel=1e-5)


@pytest.mark.parametrize("error", ["l1", "huber"])
def test_other_errors_are_their_definitions(error: str):
    out = some_masked(2)
    difference = (out.pred_BCT - out.target_BCT).double().numpy()[np.broadcast_to(out.mask_B1T.numpy(), (3, 2, 20))]
    size = np.abs(difference)
    expected = size if error == "l1" else np.where(size < 0.7, 0.5 * size**2, 0.7 * (size - 0.35))
    assert float(masked_error(out, error, huber_delta=0.7)) == pytest.approx(expected.mean(), rel=1e-5)


def test_patches_are_standardised_over_their_real_samples():
    x = torch.randn(2, 2, 12, generator=torch.Generator().manual_seed(0))
    real = (torch.arange(12) < 10).expand(2, 1, 12)
    got = standardised_patches(x, 4, real).double().numpy()
    for start, stop in ((0, 4), (4, 8), (8, 10)):
        part = x[..., start:stop].double().numpy()
        expected = (part - part.mean(-1, keepdims=True)) / np.sqrt(part.var(-1, ddof=1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(got[..., start:stop], expected, rtol=1e-4, atol=1e-5)
    assert not got[..., 10:].any()


def test_a_perfect_standardised_reconstruction_has_no_error(step):
    class Perfect(Recorder):
        def forward(self, x_BCT, mask, **options) -> Masked:
            out = super().forward(x_BCT, mask, **options)
            return out._replace(pred_BCT=standardised_patches(x_BCT, 4) + self.value)

    assert float(MaskedReconstruction(norm_pix=True)(Perfect({"time": 10}), batch(6, 3), step).total.detach()) < 1e-10
    with pytest.raises(ValueError, match="norm_pix needs a patch of 2 samples"):
        MaskedReconstruction(norm_pix=True)(Perfect({"time": 40}), batch(6, 3), step)


@pytest.mark.parametrize(
    ("axes", "changes", "message"),
    [
        (None, {"leads": "apart"}, "leads must be None or 'together'"),
        (None, {"predict_fraction": 0.5}, "predict_fraction must be 1"),
        ({"time": 20}, {"leads": "whole"}, "leads must be None or 'together'"),
        ({"lead": 3}, {"leads": "apart"}, "leads must be None or 'whole'"),
        ({"lead": 3}, {"patch": 5}, "patch must be None"),
        ({"time": 20}, {"patch": 5}, "patch=5 samples must be whole tokens of 2 samples"),
        ({"time": 20}, {"predict_fraction": 0.5}, "predict_fraction must be 1"),
    ],
)
def test_a_network_that_the_fields_do_not_fit_is_refused(axes: dict | None, changes: dict, message: str, step):
    net = model(n_channels=3) if axes is None else Recorder(axes)
    with pytest.raises(ValueError, match=message):
        MaskedReconstruction(**changes)(net, batch(2, 3), step)


def test_scoring_everything_is_refused_where_only_hidden_tokens_are_reconstructed(step):
    with pytest.raises(ValueError, match="loss_on must be 'masked'"):
        MaskedReconstruction(loss_on="all")(Recorder({"time": 20}, predicts_part=True), batch(), step)
