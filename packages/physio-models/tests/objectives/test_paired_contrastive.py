import multiprocessing
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from physio_models.cwt_mae import CwtMaeConfig, CwtMaePairConfig
from physio_models.objectives.paired_contrastive import PairedContrastive, paired_info_nce

CFG = CwtMaePairConfig.preset("tiny", n_samples=200)


def by_sums(a: np.ndarray, b: np.ndarray, temperature: float, counts: np.ndarray) -> float:
    """Symmetric InfoNCE in float64, row by row."""
    a, b = a[counts], b[counts]
    a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    s = a @ b.T / temperature
    return float(np.mean([(np.log(np.exp(s[i]).sum()) + np.log(np.exp(s[:, i]).sum())) / 2 - s[i, i] for i in range(len(a))]))


def rows(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("missing", [(), (1, 4)])
def test_the_loss_is_the_symmetric_info_nce_of_complete_pairs(missing: tuple[int, ...]):
    a, b = rows()
    counts = torch.tensor([i not in missing for i in range(6)])
    loss = paired_info_nce(a, b, 0.07, counts)
    assert loss.item() == pytest.approx(by_sums(a.numpy(), b.numpy(), 0.07, counts.numpy()), rel=1e-9)


def test_incomplete_pairs_get_no_gradient_and_a_batch_of_them_costs_nothing():
    a, b = rows()
    a.requires_grad_()
    counts = torch.tensor([True, False, True, True, True, True])
    paired_info_nce(a, b, 0.1, counts).backward()
    assert (a.grad.abs().sum(1) > 0).equal(counts)
    a.grad = None
    loss = paired_info_nce(a, b, 0.1, torch.zeros(6, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and a.grad.isfinite().all()


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    weight = torch.eye(5, dtype=torch.float64, requires_grad=True)
    a, b = rows()[:, slice(0, 4) if rank == 0 else slice(4, 6)] @ weight
    loss = paired_info_nce(a, b, 0.1, torch.ones(len(a), dtype=torch.bool))
    (loss * len(a) * 2 / 6).backward()  # as training does: weighed by the rank's rows, then averaged over ranks
    torch.save(weight.grad, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_on_two_ranks_the_gradient_is_that_of_the_whole_batch(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=runpy.run_path, args=(__file__, {"ARGUMENTS": (rank, str(tmp_path))}, "__main__")) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    gradients = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    weight = torch.eye(5, dtype=torch.float64, requires_grad=True)
    a, b = rows() @ weight
    paired_info_nce(a, b, 0.1, torch.ones(6, dtype=torch.bool)).backward()
    torch.testing.assert_close((gradients[0] + gradients[1]) / 2, weight.grad)


@pytest.mark.parametrize(("progress", "weights"), [(0.0, (1, 0)), (0.02, (1, 0)), (0.035, (1, 0.5)), (0.0499, (1, 0.9967)), (0.05, (0.1, 1)), (1.0, (0.1, 1))])
def test_three_stages_follow_progress(progress: float, weights: tuple[float, float]):
    assert PairedContrastive().weights(progress) == pytest.approx(weights, abs=1e-3)


@pytest.mark.parametrize("progress", [0.0, 0.03, 0.5])
def test_the_total_weighs_reconstruction_and_contrast_and_trains_the_projector(progress: float, step):
    torch.manual_seed(0)
    model, objective = CFG.build(), PairedContrastive()
    step.modules, step.progress = objective.modules(model), progress
    loss = objective(model, {"signal": torch.randn(4, 2, 200), "index": torch.arange(4)}, step)
    weight, alpha = objective.weights(progress)
    parts = {key: value.item() for key, value in loss.parts.items()}
    assert loss.total.item() == pytest.approx(weight * (parts["spec"] + parts["time"]) + alpha * parts["nce"], rel=1e-5)
    loss.total.backward()
    for name, p in [*model.named_parameters(), *step.modules.named_parameters()]:
        assert p.grad is not None and p.grad.isfinite().all(), name
    assert (step.modules["projector"][0].weight.grad.abs().sum() > 0) == (progress > 0.02)


def test_pairs_learn_to_find_one_another(step):
    torch.manual_seed(0)
    model, objective = CFG.build(), PairedContrastive(late_weight=0.0)
    step.modules, step.progress = objective.modules(model), 1.0
    t = torch.arange(200) / 100
    x = torch.stack([torch.sin(2 * torch.pi * hz * t + torch.tensor([[0.0], [1.0]])) for hz in (1.0, 2.0, 4.0, 8.0, 12.0, 20.0)])
    optimizer = torch.optim.AdamW([*model.parameters(), *step.modules.parameters()], lr=3e-3)
    losses = []
    for _ in range(30):
        loss = objective(model, {"signal": x, "index": torch.arange(6)}, step)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.parts["nce"].item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_channel_that_is_absent_makes_no_pair(step):
    torch.manual_seed(0)
    model, objective = CFG.build(), PairedContrastive()
    step.modules, step.progress = objective.modules(model), 1.0
    x = torch.randn(3, 2, 200)
    batch = {"signal": x, "index": torch.arange(3), "channel_present": torch.tensor([[True, True], [True, False], [True, True]])}
    changed = x.clone()
    changed[1, 1] = 9.0
    torch.testing.assert_close(objective(model, {**batch, "signal": changed}, step).total, objective(model, batch, step).total)


@pytest.mark.parametrize("model", [CwtMaeConfig.preset("tiny", n_channels=2), CwtMaeConfig.preset("tiny", version="v3_contrastive", n_channels=3)])
def test_a_model_that_mixes_channels_or_has_other_than_two_is_refused(model):
    with pytest.raises(ValueError, match="two channels"):
        PairedContrastive().modules(model.build())


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"projection": 0}, {"stages": (0.5, 0.1)}, {"alpha": -1.0}])
def test_an_objective_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        PairedContrastive(**bad)


if __name__ == "__main__":
    on_rank(*globals()["ARGUMENTS"])
