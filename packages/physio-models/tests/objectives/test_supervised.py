import numpy as np
import pytest
import torch

from physio_models.objectives.supervised import Supervised, class_weights
from physio_models.papagei import PapageiConfig
from physio_models.resnet1d import ResNet1dConfig


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return ResNet1dConfig(n_channels=2, n_samples=64, base_width=4).build()


def batch(n: int = 9, **changes) -> dict:
    x = torch.randn(n, 2, 64, generator=torch.Generator().manual_seed(1))
    return {"signal": x, "index": torch.arange(n), "label": torch.arange(n) % 3, **changes}


def scored(objective: Supervised, items: dict, step) -> tuple[float, np.ndarray]:
    """The loss, and the log-probabilities that it was computed from."""
    net = model().eval()
    step.modules = objective.modules(net)
    with torch.no_grad():
        logits = step.modules["head"](net(items["signal"]).embedding_BD).double().numpy()
    return objective(net, items, step).total.item(), logits - np.log(np.exp(logits).sum(1, keepdims=True))


@pytest.mark.parametrize("counts", [(), (100, 10, 1)])
def test_cross_entropy_weighs_the_classes_and_leaves_out_what_is_unknown(counts: tuple[int, ...], step):
    label = torch.tensor([0, 1, 2, -1, 0, 1, -1, 2, 2])
    loss, log_p = scored(Supervised(n_classes=3, class_counts=counts), batch(label=label), step)
    weights = np.array([0.1, 0.1 / 0.37, 1 / 0.37]) if counts else np.ones(3)  # the mean of 0.01, 0.1 and 1 is 0.37; 0.01 / 0.37 is held at 0.1
    known = label.numpy() >= 0
    w = weights[label.numpy()[known]]
    assert loss == pytest.approx((-w * log_p[known, label.numpy()[known]]).sum() / w.sum(), rel=1e-5)


def test_several_labels_at_once(step):
    label = torch.tensor([[1, 0], [0, -1], [-1, -1], [1, 1]])
    objective, items = Supervised(n_classes=2, kind="multilabel"), batch(4, label=label)
    net = model().eval()
    step.modules = objective.modules(net)
    with torch.no_grad():
        p = 1 / (1 + np.exp(-step.modules["head"](net(items["signal"]).embedding_BD).double().numpy()))
    terms = [-np.log(p[i, k] if y else 1 - p[i, k]) for (i, k), y in np.ndenumerate(label.numpy()) if y >= 0]
    assert objective(net, items, step).total.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_a_batch_without_labels_known_has_a_finite_loss_and_gradient(step):
    for objective, label in ((Supervised(n_classes=3), torch.full((9,), -1)), (Supervised(n_classes=3, kind="multilabel"), torch.full((9, 3), -1))):
        net = model()
        step.modules = objective.modules(net)
        loss = objective(net, batch(label=label), step).total
        loss.backward()
        assert loss.item() == 0 and all(p.grad.isfinite().all() for p in net.parameters())


def test_weights_are_inverse_frequencies_held_within_a_tenth_and_ten():
    np.testing.assert_allclose(class_weights((292, 177, 10, 19, 2)), (0.1, 0.1, 0.756, 0.398, 3.778), atol=5e-4)  # as published for ECG5000
    np.testing.assert_allclose(class_weights((*[1000] * 19, 1)), (*[0.1] * 19, 10.0))  # 1 is 19.6 times the mean, 1 / 1000 a fiftieth of it
    assert class_weights((5, 0)) == (1.0, 10.0)
    with pytest.raises(ValueError, match="counts"):
        class_weights((0, 0))


@pytest.mark.parametrize("network", ["resnet1d", "papagei"])
def test_training_lowers_the_loss_and_reaches_every_parameter(network: str, step):
    objective = Supervised(n_classes=3, class_counts=(3, 3, 3), label_smoothing=0.05)
    torch.manual_seed(0)
    net = model() if network == "resnet1d" else PapageiConfig(n_channels=2, base_width=4, n_blocks=6, n_outputs=8, dropout=0.0).build()
    step.modules = objective.modules(net)
    optimizer = torch.optim.AdamW([*net.parameters(), *step.modules.parameters()], lr=3e-3)
    losses = []
    for _ in range(30):
        loss = objective(net, batch(), step)
        optimizer.zero_grad()
        loss.total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in [*net.parameters(), *step.modules.parameters()] if p.requires_grad)
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[-1] < 0.6 * losses[0] and loss.parts["accuracy"] == 1


@pytest.mark.parametrize(
    ("objective", "items", "message"),
    [
        (Supervised(n_classes=3), {"label": torch.zeros(9, 3, dtype=torch.int64)}, r"\(windows,\) = \(9,\)"),
        (Supervised(n_classes=3, kind="multilabel"), {"label": torch.zeros(9, dtype=torch.int64)}, r"\(windows, classes\) = \(9, 3\)"),
    ],
)
def test_labels_of_another_shape_are_refused(objective: Supervised, items: dict, message: str, step):
    step.modules = objective.modules(model())
    with pytest.raises(ValueError, match=message):
        objective(model(), batch(**items), step)
    without = batch()
    del without["label"]
    with pytest.raises(ValueError, match=r"needs batch\['label'\]"):
        objective(model(), without, step)


@pytest.mark.parametrize("bad", [{"n_classes": 1}, {"kind": "binary"}, {"class_counts": (1, 2, 3)}, {"label_smoothing": 1.0}])
def test_an_objective_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Supervised(**bad)
