import numpy as np
import pytest
import torch

from physio_models.objectives.contrastive import Augment
from physio_models.objectives.papagei import PapageiMorphology, PatientContrastive, l1
from physio_models.papagei import PapageiConfig
from physio_models.resnet1d import ResNet1dConfig

STILL = Augment(noise=0, negate=0, flip=0, scale=0, crop=0)
NAN = float("nan")


def model(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return PapageiConfig(**{"base_width": 4, "n_blocks": 6, "n_outputs": 8, "dropout": 0.0, **changes}).build()


def batch(n: int = 16, n_samples: int = 64) -> dict:
    draw = torch.Generator().manual_seed(1)
    aux = torch.rand(n, 3, generator=draw) * torch.tensor([2.0, 1.0, 3.0])
    subject = np.array([f"s{i // 2}" for i in range(n)])
    return {"signal": torch.randn(n, 1, n_samples, generator=draw), "index": torch.arange(n) + 7, "aux": aux, "subject": subject}


def nt_xent_by_hand(z: np.ndarray, group: list[int], temperature: float) -> float:
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    s = np.exp(z @ z.T / temperature)
    rows = range(len(z))
    terms = [
        -np.log(s[i, p] / (s[i, p] + sum(s[i, n] for n in rows if group[n] not in (group[i], -1))))
        for i in rows
        for p in rows
        if i != p and group[i] == group[p] != -1
    ]
    return float(np.mean(terms))


AUX = [
    [0.1, 0.5, 1.0],  # bin 0
    [0.2, -2.9, -9.9],  # bin 0
    [0.25, 0.0, 2.0],  # bin 1
    [1.99, 1.0, 0.0],  # bin 7
    [1.76, 1.0, 1.0],  # bin 7
    [2.0, 1.0, 1.0],  # sVRI not below 2
    [0.0, 1.0, 1.0],  # sVRI not above 0
    [0.1, 1.0, 10.0],  # |IPA| not below 10
    [0.1, -3.0, 1.0],  # |skewness| not below 3
    [NAN, 1.0, 1.0],
    [0.1, 1.0, NAN],
    [0.1, NAN, 1.0],
]
BINS = [0, 0, 1, 7, 7] + [-1] * 7


@pytest.mark.parametrize("sqi", [True, False])
def test_the_loss_is_the_papers(sqi: bool, step):
    net, items = model().eval(), batch(12) | {"aux": torch.tensor(AUX)}
    with torch.no_grad():
        z, ipa, skewness, _ = (value.double().numpy() for value in net(items["signal"]))
    contrast = nt_xent_by_hand(z, BINS, 0.07)
    heads = [np.mean(np.abs(said[:5, 0] - np.array(AUX)[:5, column])) for said, column in ((ipa, 2), (skewness, 1))]
    expected = 0.6 * contrast + (0.2 * heads[0] + 0.2 * heads[1] if sqi else 0.4 * heads[0])
    loss = PapageiMorphology(sqi=sqi, augment=STILL)(net, items, step)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.parts["usable"].item() == pytest.approx(5 / 12)


def test_the_second_head_learns_by_default(step):
    """The original's script never passed its flag on, so that its head for signal quality stayed as initialised."""
    net = model()
    PapageiMorphology()(net, batch(), step).total.backward()
    assert all(p.grad.abs().sum() > 0 for p in [*net.expert_layers_2.parameters(), *net.gating_network_2.parameters()])
    net = model()
    PapageiMorphology(sqi=False)(net, batch(), step).total.backward()
    assert not any(p.grad.any() for p in net.expert_layers_2.parameters())


def test_a_batch_without_a_usable_window_has_a_finite_loss_and_gradient(step):
    net, items = model(), batch() | {"aux": torch.full((16, 3), NAN)}
    loss = PapageiMorphology()(net, items, step)
    loss.total.backward()
    assert loss.total.item() == 0 and all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)


def test_l1_is_the_mean_over_usable_windows():
    said, true = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0.0, NAN, 7.0])
    assert l1(said, true, torch.tensor([True, False, True])).item() == pytest.approx(2.5)


def test_windows_of_one_subject_are_never_negatives(step):
    net, items = model(n_experts=0).eval(), batch(8)
    with torch.no_grad():
        z = net(items["signal"]).embedding_BD.double().numpy()
    group = [0, 0, 1, 1, 2, 2, 3, 3] * 2
    loss = PatientContrastive(augment=STILL, temperature=0.3)(net, items, step).total.item()
    assert loss == pytest.approx(nt_xent_by_hand(np.concatenate([z, z]), group, 0.3), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        (PapageiMorphology(), {}),
        (PapageiMorphology(sqi=False), {}),
        (PatientContrastive(), {"n_experts": 0, "projection": True}),
        (PatientContrastive(projector=(16, 8)), {}),
    ],
)
def test_training_lowers_the_loss_and_reaches_every_parameter(objective, changes: dict, step):
    net, items = model(**changes), batch()
    step.modules = objective.modules(net)
    optimizer = torch.optim.AdamW([*net.parameters(), *step.modules.parameters()], lr=3e-3)
    losses = []
    for _ in range(30):
        loss = objective(net, items, step).total
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in [*net.parameters(), *step.modules.parameters()] if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_short_tail_reaches_no_loss(step):
    items = batch() | {"valid": (torch.arange(64) < 41).expand(16, 64)}
    changed = items | {"signal": torch.where(items["valid"][:, None], items["signal"], torch.tensor(1e6))}
    for objective in (PapageiMorphology(), PatientContrastive()):
        first, second = (objective(model().eval(), one, step).total for one in (items, changed))
        torch.testing.assert_close(first, second)


def test_what_does_not_fit_is_refused(step):
    with pytest.raises(ValueError, match="this network has none"):
        PapageiMorphology().modules(model(n_experts=0))
    with pytest.raises(ValueError, match="this network has none"):
        PapageiMorphology().modules(ResNet1dConfig(base_width=4).build())
    for missing, objective in (("aux", PapageiMorphology()), ("subject", PatientContrastive())):
        with pytest.raises(ValueError, match=missing):
            objective(model(), {key: value for key, value in batch().items() if key != missing}, step)
    with pytest.raises(ValueError, match=r"\(windows, 3\) = \(16, 3\)"):
        PapageiMorphology()(model(), batch() | {"aux": torch.zeros(16, 2)}, step)


@pytest.mark.parametrize("bad", [{"alpha": 1.5}, {"n_bins": 1}, {"svri_range": (2.0, 0.0)}, {"most_ipa": 0.0}, {"temperature": 0.0}])
def test_an_objective_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PapageiMorphology(**bad)
