"""What the tests of physio-train share: the folder of shared data, a small training job, and processes to run it in."""

from __future__ import annotations

import multiprocessing
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

JOB = Path(__file__).parent / "job.py"


@pytest.fixture
def shared():
    """`shared("fixtures/himae/meta.json")`: a path under PHYSIO_SHARED (default: beside the repository), or a skip."""

    def path(relative: str) -> Path:
        root = Path(os.environ.get("PHYSIO_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
        if not (root / relative).exists():
            pytest.skip(f"shared data absent: {root / relative}")
        return root / relative

    return path


@pytest.fixture(scope="session")
def job() -> SimpleNamespace:
    """The names of job.py: a dataset, a net with batch norm and dropout, an objective, and `train`."""
    return SimpleNamespace(**runpy.run_path(str(JOB)))


@pytest.fixture(scope="session")
def start():
    """`start(train=..., ...)` runs job.py's `train` in a process of its own, forked from one that has torch loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "physio_train"])  # the optimiser imports the second: seconds, once
    running = []

    def start(**arguments):
        process = context.Process(target=runpy.run_path, args=(str(JOB), {"ARGUMENTS": arguments}, "__main__"))
        process.start()
        running.append(process)
        return process

    yield start
    for process in running:
        if process.is_alive():
            process.kill()
        process.join()


@pytest.fixture(scope="session")
def ranks():
    """`ranks(start, tmp_path, name, folder, n=2, ...)` runs a job on `n` ranks; waits for all and returns their exit codes.

    `kill_rank` is the one that gets `kill_at`.
    """

    def run(start, tmp_path, name, folder, n=2, **arguments):
        kill_rank, kill_at = arguments.pop("kill_rank", None), arguments.pop("kill_at", None)
        common = {"folder": str(folder), "world_size": n, "meet": str(tmp_path / f"meet_{name}"), **arguments}
        processes = [start(rank=rank, kill_at=kill_at if rank == kill_rank else None, **common) for rank in range(n)]
        for process in processes:
            process.join(300)
        return [process.exitcode for process in processes]

    return run


@pytest.fixture(autouse=True)
def one_thread():
    """One thread: small nets are fastest so, and sums of several threads are not the same from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
