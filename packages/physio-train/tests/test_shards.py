"""Weights shared out over two ranks: the same training, checkpoints that any number of ranks reads, nothing pickled."""

from __future__ import annotations

import json

import pytest
import torch

from physio_train import checkpoint, shards

SETTINGS = {"norm": False, "dropout": 0.0, "parallel": "fsdp", "n_steps": 6, "n_rows": 48}


def tensors(folder):
    """Weights and optimiser of the newest step, by name."""
    saved = checkpoint.load(checkpoint.latest(folder))
    return saved.model | {key: value for key, value in saved.state.items() if not key.startswith("rng/")}


def close(a, b, atol=1e-6):
    return a.keys() == b.keys() and all(torch.allclose(a[key].double(), b[key].double(), atol=atol) for key in a)


def same_bytes(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def two(start, ranks, tmp_path_factory):
    """Two sharded ranks to step 6: at once, and cut at step 4 and resumed."""
    path = tmp_path_factory.mktemp("sharded")
    assert ranks(start, path, "whole", path / "whole", **SETTINGS) == [0, 0]
    assert ranks(start, path, "half", path / "cut", **SETTINGS | {"n_steps": 4, "schedule": "constant"}) == [0, 0]
    return path


def test_two_sharded_ranks_train_what_one_rank_trains(job, two, tmp_path):
    job.train(str(tmp_path), **SETTINGS)
    assert close(tensors(two / "whole"), tensors(tmp_path))


def test_a_sharded_step_is_safetensors_and_json_with_each_rank_holding_its_part(two):
    step = checkpoint.latest(two / "whole")
    files = [shards.name_of(rank, 2) for rank in range(2)]
    assert sorted(path.name for path in step.iterdir()) == sorted([*files, shards.INDEX, "model.safetensors", "meta.json"])
    index = json.loads((step / shards.INDEX).read_text())["tensors"]
    moment = index["optimizer/model/first.weight/exp_avg"]
    assert moment["shape"] == [4, 1, 5] and moment["pieces"] == [[files[0], 0], [files[1], 2]]
    assert [piece[0] for piece in index["rng/rank1/cpu"]["pieces"]] == [files[0]]
    assert checkpoint.read_meta(step)["files"].keys() == {*files, shards.INDEX, "model.safetensors"}


def test_sharded_ranks_resume_to_the_same_bytes_and_reshard_to_one_and_back(job, start, ranks, two, tmp_path):
    settings = SETTINGS | {"schedule": "constant"}
    assert ranks(start, tmp_path, "whole", tmp_path / "whole", **settings) == [0, 0]
    resume = str(checkpoint.latest(two / "cut"))
    assert ranks(start, tmp_path, "rest", tmp_path / "rest", resume=resume, **settings) == [0, 0]
    assert same_bytes(tensors(tmp_path / "rest"), tensors(tmp_path / "whole"))
    job.train(str(tmp_path / "one"), resume=resume, **settings)
    assert close(tensors(tmp_path / "one"), tensors(tmp_path / "whole"))
    back = settings | {"n_steps": 8}
    assert ranks(start, tmp_path, "back", tmp_path / "back", resume=str(checkpoint.latest(tmp_path / "one")), **back) == [0, 0]
    job.train(str(tmp_path / "straight"), **back)
    assert close(tensors(tmp_path / "back"), tensors(tmp_path / "straight"), atol=2e-6)


@pytest.mark.parametrize("optimizer", ["muon", "schedule_free"])
def test_the_other_optimisers_train_alike_on_shards(job, start, ranks, tmp_path, optimizer):
    settings = SETTINGS | {"optimizer": optimizer, "schedule": "constant", "ema_decay": None, "stacked": True, "n_steps": 4, "accumulate": 2}
    assert ranks(start, tmp_path, "two", tmp_path / "two", **settings) == [0, 0]
    job.train(str(tmp_path / "one"), **settings)
    assert close(tensors(tmp_path / "two"), tensors(tmp_path / "one"), atol=1e-5)


def test_a_flipped_byte_in_a_shard_is_refused(two, tmp_path):
    step = tmp_path / "step_6"
    step.mkdir()
    for file in checkpoint.latest(two / "whole").iterdir():
        (step / file.name).write_bytes(file.read_bytes())
    shard = step / shards.name_of(1, 2)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        checkpoint.load(step)


def test_shards_that_do_not_belong_together_are_refused():
    piece = {"w": torch.zeros(2, 3)}
    index = {"tensors": {"w": {"shape": [4, 3], "pieces": [["a", 0], ["b", 2]]}}}
    assert shards.assemble(index, {"a": piece, "b": piece})["w"].shape == (4, 3)
    with pytest.raises(ValueError, match="rows up to 2 and then from 3"):
        shards.assemble({"tensors": {"w": {"shape": [4, 3], "pieces": [["a", 0], ["b", 3]]}}}, {"a": piece, "b": piece})
    with pytest.raises(ValueError, match="4 of 6 rows"):
        shards.assemble({"tensors": {"w": {"shape": [6, 3], "pieces": [["a", 0], ["b", 2]]}}}, {"a": piece, "b": piece})


def test_a_disk_that_fills_on_one_rank_leaves_the_step_before(start, ranks, two, tmp_path):
    resume = str(checkpoint.latest(two / "cut"))
    codes = ranks(start, tmp_path, "full", tmp_path / "full", resume=resume, full_disk_rank=1, schedule="constant", **SETTINGS)
    assert all(code not in (0, None) for code in codes)
    assert checkpoint.latest(tmp_path / "full") is None and list((tmp_path / "full").glob(".step_*")) == []
    assert "rank 1 could not write" in (tmp_path / "full" / "error_rank0.txt").read_text()
    assert checkpoint.load(resume).step == 4


def test_encoding_keeps_scalars_and_leaves_out_parts_without_rows(tmp_path):
    data = shards.encode({"n": (torch.tensor(3.0), 0, ()), "none": (torch.zeros(0, 2), 4, (4, 2)), "w": (torch.ones(2, 2), 2, (4, 2))})
    (tmp_path / "a").write_bytes(data)
    index = shards.index(tmp_path, ["a"])["tensors"]
    assert index == {"n": {"shape": [], "pieces": [["a", 0]]}, "w": {"shape": [4, 2], "pieces": [["a", 2]]}}
