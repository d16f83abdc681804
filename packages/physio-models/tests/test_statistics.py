from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from physio_models.himae import HiMae, HiMaeConfig
from physio_models.statistics import batch_norms, by_level, reestimate_statistics, statistics_mismatch


def model(**changes) -> HiMae:
    torch.manual_seed(0)
    return HiMaeConfig(**{"widths": (4, 8), **changes}).build()


def level_by_hand(net: HiMae, x: torch.Tensor, level: int) -> tuple[dict[str, float], torch.Tensor]:
    """One level from the weights alone, in float64: the three variance ratios and the output."""
    state = {
        key.removeprefix(f"encoder_layers.{level}."): value.double() for key, value in net.state_dict().items() if key.startswith(f"encoder_layers.{level}.")
    }
    ratios = {}

    def norm(h: torch.Tensor, name: str) -> torch.Tensor:
        ratios[f"encoder_layers.{level}.{name}"] = float(np.sort(h.numpy().var(axis=(0, 2)) / state[f"{name}.running_var"].numpy())[(h.shape[1] - 1) // 2])
        return F.batch_norm(h, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    h = F.gelu(norm(F.conv1d(x, state["main_path.0.weight"], stride=2, padding=2), "main_path.1"))
    main = norm(F.conv1d(h, state["main_path.3.weight"], padding=2), "main_path.4")
    return ratios, F.gelu(main + norm(F.conv1d(x, state["shortcut.0.weight"], stride=2), "shortcut.1"))


def check_mismatch(net: HiMae, x_BCT: torch.Tensor) -> dict[str, float]:
    expected, h = {}, x_BCT.double()
    for level in range(net.cfg.depth):
        ratios, h = level_by_hand(net, h, level)
        expected |= ratios
    measured = statistics_mismatch(net, x_BCT)
    assert measured == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}
    return by_level(measured)


def test_mismatch_is_the_variance_met_over_the_variance_kept():
    net = model()
    net.train()
    net(torch.randn(8, 1, 64), torch.rand(8, 64) < 0.8)
    modes = [module.training for module in net.modules()]
    check_mismatch(net, torch.randn(4, 1, 64))
    assert [module.training for module in net.modules()] == modes


def test_the_original_weights_meet_far_more_variance_unmasked_than_they_were_trained_on(himae_fixtures: Path, reference_model: HiMae):
    """The figures reported of the original, 3.7, 2.5, 3.7, 6.9 and 16, on windows of the kind its weights were trained on."""
    x_BCT = torch.from_numpy(np.load(himae_fixtures / "train4.npz")["x"]).reshape(-1, 1, 250)
    levels = check_mismatch(reference_model, x_BCT)
    assert levels == {name: pytest.approx(ratio, rel=0.1) for name, ratio in zip(("L1", "L2", "L3", "L4", "L5"), (3.7, 2.5, 3.7, 6.9, 16), strict=True)}


def test_without_running_statistics_there_is_no_mismatch():
    assert statistics_mismatch(model(norm="group"), torch.randn(2, 1, 40)) == {}
    assert reestimate_statistics(model(norm="group"), []) == []


def test_reestimated_statistics_fit_their_input_and_nothing_else_changes():
    net = model().eval()
    x_NCT = 3 * torch.randn(12, 1, 64)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    touched = reestimate_statistics(net, x_NCT.split(4))
    first = torch.stack(
        [F.conv1d(x, before["encoder_layers.0.main_path.0.weight"], stride=2, padding=2).var((0, 2), correction=1) for x in x_NCT.split(4)]
    ).mean(0)
    torch.testing.assert_close(net.encoder_layers[0].main_path[1].running_var, first)
    assert by_level(statistics_mismatch(net, x_NCT)) == {"L1": pytest.approx(1, abs=0.1), "L2": pytest.approx(1, abs=0.1)}
    assert not net.training and all(layer.momentum == 0.1 and not layer.training for layer in batch_norms(net).values())
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert touched and {key.rsplit(".", 1)[0] for key in changed} == set(touched)
    assert all(name.startswith("encoder_layers.") for name in touched)


def test_statistics_of_masked_input_reach_the_decoder_too():
    net = model().eval()
    touched = reestimate_statistics(net, [torch.randn(4, 1, 64)], lambda x: net(x, torch.rand(4, 64) < 0.8))
    assert set(touched) == set(batch_norms(net))


def test_an_empty_estimate_is_refused_and_leaves_the_statistics():
    net = model()
    net(torch.randn(4, 1, 64), torch.zeros(4, 64))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="empty"):
        reestimate_statistics(net, [])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
