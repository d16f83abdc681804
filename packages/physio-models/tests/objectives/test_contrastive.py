import multiprocessing
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from physio_models.objectives.contrastive import Augment, Cmsc, SimClr, codes, info_nce, nt_xent, view
from physio_models.papagei import PapageiConfig
from physio_models.resnet1d import ResNet1dConfig

STILL = Augment(noise=0, negate=0, flip=0, scale=0, crop=0)


def features(n: int, d: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return ResNet1dConfig(**{"n_channels": 2, "n_samples": 64, "base_width": 4, **changes}).build()


def batch(n: int = 8, n_channels: int = 2, n_samples: int = 64) -> dict:
    draw = torch.Generator().manual_seed(1)
    return {
        "signal": torch.randn(n, n_channels, n_samples, generator=draw),
        "index": torch.arange(n) + 7,
        "subject": np.array([f"s{i // 2}" for i in range(n)]),
    }


# Values


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_info_nce_is_the_two_cross_entropies():
    a, b = features(6).numpy(), features(6, seed=1).numpy()
    s = unit(a) @ unit(b).T / 0.07
    expected = np.mean([-np.log(np.exp(s[i, i]) / np.exp(s[i]).sum()) - np.log(np.exp(s[i, i]) / np.exp(s[:, i]).sum()) for i in range(6)])
    assert float(info_nce(torch.from_numpy(a), torch.from_numpy(b), 0.07)) == pytest.approx(expected, rel=1e-12)


def by_hand(z: np.ndarray, group: list[int], temperature: float) -> float:
    """NT-Xent over groups, pair by pair."""
    s = unit(z) @ unit(z).T / temperature
    terms = [
        -np.log(np.exp(s[i, p]) / (np.exp(s[i, p]) + sum(np.exp(s[i, n]) for n in range(len(z)) if group[n] not in (group[i], -1))))
        for i in range(len(z))
        for p in range(len(z))
        if i != p and group[i] == group[p] != -1
    ]
    return float(np.mean(terms)) if terms else 0.0


@pytest.mark.parametrize("group", [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 2], [5, 5, -1, 5, 3, -1], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5], [-1] * 6])
def test_nt_xent_is_the_mean_over_pairs(group: list[int]):
    z = features(6)
    assert float(nt_xent(z, torch.tensor(group), 0.2)) == pytest.approx(by_hand(z.numpy(), group, 0.2), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("group", [[0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 2, 3], [-1, -1, 3, 3]])
def test_nt_xent_has_finite_gradients_with_and_without_pairs_and_negatives(group: list[int]):
    z = features(4).requires_grad_()
    nt_xent(z, torch.tensor(group), 0.1).backward()
    assert z.grad.isfinite().all()


def test_simclr_is_nt_xent_of_two_views(step):
    net, items = model().eval(), batch()
    objective = SimClr(projector=())
    with torch.no_grad():
        z = [net(view(items["signal"], items["index"], f"view{v}", step, Augment())).embedding_BD.double().numpy() for v in range(2)]
    assert objective(net, items, step).total.item() == pytest.approx(by_hand(np.concatenate(z), list(range(8)) * 2, 0.1), rel=1e-4)


def test_cmsc_pairs_the_halves_and_the_subjects(step):
    net, items = model().eval(), batch()
    with torch.no_grad():
        z = np.concatenate([net(half).embedding_BD.double().numpy() for half in items["signal"].split(32, dim=-1)])
    for positives, group in (("item", list(range(8)) * 2), ("subject", [0, 0, 1, 1, 2, 2, 3, 3] * 2)):
        assert Cmsc(positives=positives)(net, items, step).total.item() == pytest.approx(by_hand(z, group, 0.1), rel=1e-4)


def test_a_second_view_of_the_host_is_taken_as_it_stands(step):
    net, items = model().eval(), batch()
    items["view"] = items["signal"].flip(-1)
    with torch.no_grad():
        z = np.concatenate([net(items[key]).embedding_BD.double().numpy() for key in ("signal", "view")])
    for objective in (SimClr(projector=()), Cmsc()):
        assert objective(net, items, step).total.item() == pytest.approx(by_hand(z, list(range(8)) * 2, 0.1), rel=1e-4)


def test_a_half_past_the_tail_is_no_segment(step):
    net, items = model().eval(), batch(4)
    items["valid"] = torch.arange(64) < torch.tensor([[64], [64], [64], [20]])
    with torch.no_grad():
        z = [net(items["signal"][:, :, :32], valid_BT=items["valid"][:, :32]), net(items["signal"][:, :, 32:])]
    z = np.concatenate([out.embedding_BD.double().numpy() for out in z])
    assert Cmsc()(net, items, step).total.item() == pytest.approx(by_hand(z, [0, 1, 2, 3, 0, 1, 2, -1], 0.1), rel=1e-4)


# Views


def changed(how: Augment, step, n: int = 400, **items) -> tuple[torch.Tensor, torch.Tensor]:
    x_BCT = torch.randn(n, 2, 50, generator=torch.Generator().manual_seed(3))
    return x_BCT, view(x_BCT, torch.arange(n), "view0", step, how, **items)


@pytest.mark.parametrize(
    ("one", "undo"),
    [
        ("negate", lambda x, y: torch.equal(y, -x)),
        ("flip", lambda x, y: torch.equal(y, x.flip(-1))),
        ("scale", lambda x, y: bool(((r := y / x).amax() - r.amin()).abs() < 1e-4) and 0.5 <= float(r.median()) <= 2),
        ("noise", lambda x, y: 0.05 < float((y - x).std() / x.std()) < 0.2),
        ("crop", lambda x, y: bool(((y == x) | (y == 0)).all()) and 25 <= int((y[0] != 0).sum()) <= 50),
    ],
)
def test_each_change_happens_as_often_as_asked_and_is_what_it_says(one: str, undo, step):
    if one == "noise":  # a normal draw in place of the test streams' uniform one
        step.streams.normal = lambda name, index_B, shape: torch.randn((len(index_B), *shape), generator=torch.Generator().manual_seed(5))
    x_BCT, y_BCT = changed(replace(STILL, **{one: 0.3}), step)
    moved = [i for i in range(len(x_BCT)) if not torch.equal(x_BCT[i], y_BCT[i])]
    assert 0.22 < len(moved) / len(x_BCT) < 0.38
    assert all(undo(x_BCT[i], y_BCT[i]) for i in moved)


def test_views_leave_a_short_tail_at_zero_and_turn_only_what_is_real(step):
    valid_BT = (torch.arange(50) < 31).expand(400, 50)
    x_BCT, y_BCT = changed(replace(STILL, flip=1.0), step, valid_BT=valid_BT)
    assert torch.equal(y_BCT[..., :31], x_BCT[..., :31].flip(-1)) and not y_BCT[..., 31:].any()
    _, noisy = changed(Augment(), step, valid_BT=valid_BT)
    assert not noisy[..., 31:].any()


def test_views_belong_to_the_item_and_differ_between_views(step):
    x_BCT, y_BCT = changed(Augment(), step)
    again = view(x_BCT[[11, 3]], torch.tensor([11, 3]), "view0", step, Augment())
    assert torch.equal(again, y_BCT[[11, 3]])
    assert not torch.equal(view(x_BCT, torch.arange(400), "view1", step, Augment()), y_BCT)


def test_codes_name_subjects_alike_everywhere():
    here = codes(np.array(["a", "b", "a"]), torch.device("cpu"))
    assert here[0] == here[2] != here[1] and bool((here >= 0).all())
    assert here.tolist() == codes(["a", "b", "a"], torch.device("cpu")).tolist()
    assert codes(torch.tensor([4, 4]), torch.device("cpu")).tolist() == [4, 4]


# Training


@pytest.mark.parametrize("objective", [SimClr(), SimClr(projector=()), Cmsc(), Cmsc(positives="subject", projector=(8,))])
@pytest.mark.parametrize("network", ["resnet1d", "papagei"])
def test_training_lowers_the_loss_and_reaches_every_parameter(objective, network: str, step):
    torch.manual_seed(0)
    net = model() if network == "resnet1d" else PapageiConfig(n_channels=2, base_width=4, n_blocks=6, n_outputs=8, dropout=0.0).build()
    items = batch(16)
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


def test_the_model_is_called_exactly_once(step):
    for objective in (SimClr(projector=()), Cmsc()):
        net, calls = model(), []
        net.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        loss = objective(net, batch(), step)
        assert calls == [1] and not loss.parts["nt_xent"].requires_grad


def test_half_precision_losses_are_taken_in_single(step):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert SimClr(projector=())(model(), batch(), step).total.dtype == torch.float32


def test_what_does_not_fit_is_refused(step):
    with pytest.raises(ValueError, match="simclr needs a network whose forward gives one vector"):
        SimClr().modules(torch.nn.Linear(2, 2))
    fixed = torch.nn.Linear(2, 2)
    fixed.n_features, fixed.cfg = 2, SimpleNamespace(n_samples=64)
    with pytest.raises(ValueError, match="cmsc needs a network that takes any length"):
        Cmsc().modules(fixed)
    with pytest.raises(ValueError, match=r"needs batch\['subject'\]"):
        Cmsc(positives="subject")(model(), {key: value for key, value in batch().items() if key != "subject"}, step)


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"projector": (0,)}, {"positives": "window"}])
def test_an_objective_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Cmsc(**bad)


@pytest.mark.parametrize("bad", [{"noise": 1.5}, {"noise_sd": -1.0}, {"scale_range": (2.0, 1.0)}, {"crop_range": (0.5, 1.5)}])
def test_an_augmentation_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Augment(**bad)


# Ranks

SIZES = (3, 5)
GROUPS = [0, 1, 1, 2, 0, 1, -1, 2]


def losses_of(z: torch.Tensor, other: torch.Tensor, group: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"nt_xent": nt_xent(z, group, 0.2), "info_nce": info_nce(z, other, 0.2)}


def on_rank(rank: int, folder: str) -> None:
    """A rank's rows through a shared linear layer, its loss weighted as the training loop weighs it, gradients averaged over ranks."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(0, 3) if rank == 0 else slice(3, 8)
    found = {}
    for name in ("nt_xent", "info_nce"):
        layer = features(5, seed=9).requires_grad_()
        loss = losses_of(features(8)[rows] @ layer, features(8, seed=1)[rows] @ layer, torch.tensor(GROUPS)[rows])[name]
        (loss * (SIZES[rank] * 2 / 8)).backward()
        total = (loss * (SIZES[rank] / 8)).detach()
        for value in (total, layer.grad):
            dist.all_reduce(value)
        found |= {name: total, f"{name}/grad": layer.grad / 2}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_give_the_loss_and_gradient_of_one_big_batch(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=runpy.run_path, args=(__file__, {"ARGUMENTS": (rank, str(tmp_path))}, "__main__")) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in ("nt_xent", "info_nce"):
        layer = features(5, seed=9).requires_grad_()
        loss = losses_of(features(8) @ layer, features(8, seed=1) @ layer, torch.tensor(GROUPS))[name]
        loss.backward()
        for rank in range(2):
            torch.testing.assert_close(found[rank][name], loss.detach(), rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(found[rank][f"{name}/grad"], layer.grad, rtol=1e-10, atol=1e-12)


if __name__ == "__main__":
    on_rank(*globals()["ARGUMENTS"])
