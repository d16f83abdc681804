import multiprocessing
import runpy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from physio_models.gather import gather, gather_rows

SIZES = (3, 5)  # rows of the two ranks


def rows(rank: int) -> torch.Tensor:
    return torch.randn(SIZES[rank], 4, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def weights() -> torch.Tensor:
    """What each rank's loss multiplies every row with: (rank, row, D)."""
    return torch.randn(2, sum(SIZES), 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    x_BD = rows(rank).requires_grad_()
    out = gather(x_BD)
    (out.rows.square() * weights()[rank]).sum().backward()
    with torch.no_grad():
        alone = gather_rows(x_BD)
    torch.save(
        {"rows": out.rows.detach(), "start": out.start, "grad": x_BD.grad, "alone": alone, "codes": gather_rows(torch.arange(SIZES[rank]) + 10 * rank)},
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_see_all_rows_and_every_loss_reaches_every_row(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=runpy.run_path, args=(__file__, {"ARGUMENTS": (rank, str(tmp_path))}, "__main__")) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole = torch.cat([rows(0), rows(1)])
    expected_grad = (2 * whole * weights().sum(0)).split(SIZES)
    for rank in range(2):
        assert torch.equal(found[rank]["rows"], whole) and found[rank]["start"] == (0, 3)[rank]
        torch.testing.assert_close(found[rank]["grad"], expected_grad[rank])
        assert torch.equal(found[rank]["alone"], rows(rank)), "without gradients no rank waits for another"
        assert found[rank]["codes"].tolist() == [0, 1, 2, 10, 11, 12, 13, 14]


def test_alone_the_rows_are_ones_own():
    x_BD = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(x_BD) is x_BD and gather(x_BD).start == 0
    with pytest.raises(ValueError, match="x_BD must have rows"):
        gather(torch.tensor(1.0))


if __name__ == "__main__":
    on_rank(*globals()["ARGUMENTS"])
