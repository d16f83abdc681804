"""Killed with SIGKILL at any moment and resumed, a run ends with the bytes of one never interrupted; also under two ranks."""

from __future__ import annotations

import json
import shutil
import signal
import time

import numpy as np
import pytest
import torch

from physio_train import checkpoint
from physio_train.batches import Batches

FILES = ("model.safetensors", "state.safetensors")


def last_bytes(folder):
    return [(checkpoint.latest(folder) / name).read_bytes() for name in FILES]


def test_killed_within_a_random_step(job, start, tmp_path):
    kill_at = int(np.random.default_rng().integers(2, 11))
    process = start(folder=str(tmp_path / "cut"), kill_at=kill_at)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    newest = checkpoint.latest(tmp_path / "cut")
    assert newest.name == f"step_{kill_at // 2 * 2}", f"killed at {kill_at}"
    job.train(str(tmp_path / "cut"), resume=str(newest))
    job.train(str(tmp_path / "whole"))
    assert last_bytes(tmp_path / "cut") == last_bytes(tmp_path / "whole"), f"killed at {kill_at}"


def test_killed_from_outside_at_a_random_moment_while_saving_every_step(job, start, tmp_path):
    settings = {"n_steps": 60, "checkpoint_every": 1, "keep_last": 2}
    process = start(folder=str(tmp_path / "cut"), slow_s=0.005, **settings)
    while checkpoint.latest(tmp_path / "cut") is None and process.is_alive():
        time.sleep(0.005)
    time.sleep(float(np.random.default_rng().uniform(0.0, 0.2)))
    process.kill()
    process.join()
    newest = checkpoint.latest(tmp_path / "cut")
    job.train(str(tmp_path / "cut"), resume=str(newest), **settings)
    job.train(str(tmp_path / "whole"), **settings | {"checkpoint_every": 60})
    assert last_bytes(tmp_path / "cut") == last_bytes(tmp_path / "whole"), f"killed after {newest.name}"
    assert not [path for path in (tmp_path / "cut").iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def two_ranks(start, ranks, tmp_path_factory):
    """An uninterrupted run of two ranks, and one whose rank 1 is killed within step 8 and which then resumes."""
    path = tmp_path_factory.mktemp("two")
    whole = ranks(start, path, "whole", path / "whole")
    cut = ranks(start, path, "cut", path / "cut", kill_rank=1, kill_at=7)
    newest = checkpoint.latest(path / "cut")
    message = (path / "cut" / "error_rank0.txt").read_text()
    rest = ranks(start, path, "rest", path / "cut", resume=str(newest))
    return path, whole, cut, newest, message, rest


def test_two_ranks_resume_to_the_same_bytes(two_ranks):
    path, whole, cut, newest, _, rest = two_ranks
    assert whole == rest == [0, 0] and cut[1] == -signal.SIGKILL and newest.name == "step_6"
    assert last_bytes(path / "cut") == last_bytes(path / "whole")


def test_a_rank_that_dies_ends_the_others_with_where_to_resume(two_ranks):
    _, _, cut, newest, message, _ = two_ranks
    assert cut[0] not in (0, None)
    assert f"rank 0 of 2 lost contact with another rank (rank 1 gone): after step 7 of 12; resume from {newest}" in message


def test_of_three_ranks_the_one_that_died_is_named_at_once(start, ranks, tmp_path):
    began = time.monotonic()
    codes = ranks(start, tmp_path, "three", tmp_path / "run", n=3, batch_size=9, kill_rank=1, kill_at=4)
    assert codes[1] == -signal.SIGKILL and all(code not in (0, None) for code in codes)
    for rank in (0, 2):
        assert f"rank {rank} of 3 lost contact with another rank (rank 1 gone): after step 4 of 12" in (tmp_path / f"run/error_rank{rank}.txt").read_text()
    assert time.monotonic() - began < 30


def test_two_ranks_see_disjoint_windows_in_the_global_order(two_ranks):
    path = two_ranks[0]
    seen = [json.loads((path / "whole" / f"seen_rank{rank}.json").read_text())["seen"] for rank in range(2)]
    alone = Batches([{"x": 0}] * 50, np.arange(50), batch_size=8, seed=3)
    for first, second in zip(*seen, strict=True):
        assert not set(first) & set(second)
        assert first + second == next(alone)["index"].tolist()


@pytest.mark.parametrize("batch_size", [8, 7])
def test_two_ranks_train_what_one_rank_trains(job, start, ranks, tmp_path, batch_size):
    """Without batch norm and dropout, also where the batch does not split evenly; the objective's modules included."""
    settings = {"norm": False, "dropout": 0.0, "batch_size": batch_size, "accumulate": 2, "numbers": True}
    assert ranks(start, tmp_path, "two", tmp_path / "two", **settings) == [0, 0]
    job.train(str(tmp_path / "one"), **settings)
    two, one = (checkpoint.load(checkpoint.latest(tmp_path / name)) for name in ("two", "one"))
    tensors = {key: value for key, value in one.state.items() if key.startswith(("live/", "modules/", "optimizer/"))}
    assert len(tensors) > 10
    for key, value in tensors.items():
        assert torch.allclose(value.double(), two.state[key].double(), atol=1e-6), key
    reported = [json.loads((tmp_path / name).read_text())["losses"] for name in ("one/losses_rank0.json", "two/losses_rank0.json", "two/losses_rank1.json")]
    assert reported[1] == reported[2] == pytest.approx(reported[0], rel=1e-5), "every rank reports the loss over all windows"


def test_three_ranks_resume_to_the_same_bytes(start, ranks, tmp_path):
    """Sums of three depend on their order, which torch's buckets would change after the first step of a process."""
    settings = {"n": 3, "batch_size": 9, "n_steps": 6, "schedule": "constant", "warmup": 0.0}
    assert ranks(start, tmp_path, "whole", tmp_path / "whole", **settings) == [0] * 3
    assert ranks(start, tmp_path, "half", tmp_path / "cut", **settings | {"n_steps": 4}) == [0] * 3
    resume = str(checkpoint.latest(tmp_path / "cut"))
    assert ranks(start, tmp_path, "rest", tmp_path / "cut", resume=resume, **settings) == [0] * 3
    assert last_bytes(tmp_path / "cut") == last_bytes(tmp_path / "whole")


def test_a_run_of_one_rank_goes_on_with_two_over_the_same_windows(job, start, ranks, tmp_path):
    settings = {"norm": False, "dropout": 0.0, "schedule": "constant"}
    seen = job.train(str(tmp_path / "one"), **settings)
    job.train(str(tmp_path / "two"), n_steps=6, **settings)
    assert ranks(start, tmp_path, "two", tmp_path / "two", resume=str(checkpoint.latest(tmp_path / "two")), **settings) == [0, 0]
    parts = [json.loads((tmp_path / "two" / f"seen_rank{rank}.json").read_text())["seen"] for rank in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == seen[6:]
    one, two = (checkpoint.load(checkpoint.latest(tmp_path / name)).model for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_killed_on_two_ranks_resumed_on_one_and_again_on_two_every_window_comes_once_an_epoch(job, start, ranks, tmp_path, parallel):
    """48 windows in batches of 8: six steps an epoch. Killed within step 5, on one rank to step 9, on two to the end of the third epoch."""
    settings = {"n_rows": 48, "norm": False, "dropout": 0.0, "schedule": "constant", "checkpoint_every": 1, "parallel": parallel}
    codes = ranks(start, tmp_path, "first", tmp_path / "first", kill_rank=1, kill_at=4, n_steps=18, **settings)
    assert codes[1] == -signal.SIGKILL and checkpoint.latest(tmp_path / "first").name == "step_4"
    seen = [json.loads(line) for line in (tmp_path / "first" / "seen_live_rank0.jsonl").read_text().splitlines()][:4]
    other = [json.loads(line) for line in (tmp_path / "first" / "seen_live_rank1.jsonl").read_text().splitlines()][:4]
    order = [a + b for a, b in zip(seen, other, strict=True)]
    order += job.train(str(tmp_path / "one"), resume=str(tmp_path / "first/step_4"), n_steps=9, **settings)
    assert ranks(start, tmp_path, "two", tmp_path / "two", resume=str(tmp_path / "one/step_9"), n_steps=18, **settings) == [0, 0]
    parts = [json.loads((tmp_path / "two" / f"seen_rank{rank}.json").read_text())["seen"] for rank in range(2)]
    order += [a + b for a, b in zip(*parts, strict=True)]
    alone = Batches([{"x": 0}] * 48, np.arange(48), batch_size=8, seed=3)
    assert order == [next(alone)["index"].tolist() for _ in range(18)], "one global order"
    for epoch in range(3):
        assert sorted(i for batch in order[6 * epoch : 6 * epoch + 6] for i in batch) == list(range(48))


@pytest.mark.slow
def test_a_hundred_runs_killed_at_random_moments_end_with_the_same_bytes(job, start, tmp_path):
    """SIGKILL from outside at any moment, often within the writing of a checkpoint; the log is printed with -s."""
    settings = {"n_steps": 20, "checkpoint_every": 1, "keep_last": 2}
    job.train(str(tmp_path / "whole"), **settings | {"checkpoint_every": 20})
    expected, draw, kills = last_bytes(tmp_path / "whole"), np.random.default_rng(), []
    for i in range(100):
        folder = tmp_path / f"cut{i}"
        process = start(folder=str(folder), **settings)
        target = int(draw.integers(1, settings["n_steps"]))
        while process.is_alive() and max(checkpoint.steps(folder), default=0) < target:
            time.sleep(0.001)
        time.sleep(float(draw.exponential(0.01)))
        process.kill()
        process.join()
        left = sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
        newest = checkpoint.latest(folder)
        kills.append((int(newest.name[5:]), left))
        job.train(str(folder), resume=str(newest), **settings | {"checkpoint_every": 20})
        assert last_bytes(folder) == expected, f"kill {i}, after {newest.name}, left behind {left}"
        shutil.rmtree(folder)
    at = [step for step, _ in kills]
    writing = sum(bool(left) for _, left in kills)
    unfinished = sum(step < settings["n_steps"] for step in at)
    where = f"after steps {min(at)} to {max(at)} (median {np.median(at):g}), {writing} while a checkpoint was written"
    print(f"100 kills, {unfinished} before the last step, {where}: all equal")
    assert unfinished > 50
