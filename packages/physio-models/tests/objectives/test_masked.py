import numpy as np
import pytest
import torch

from physio_models.himae import HiMaeConfig
from physio_models.interface import Masked
from physio_models.objectives.masked import MaskedReconstruction, masked_mse


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
    [{"patch": 0}, {"mask_ratio": 0.0}, {"mask_ratio": (0.8, 0.2)}, {"mask_ratio": (0.1,)}, {"clean_fraction": 1.0}, {"mask": "stripe"}, {"loss_on": "none"}],
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
