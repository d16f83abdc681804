from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch

from physio_train import checkpoint


def save(folder, step, value=None, **more):
    model = {"w": torch.full((3,), float(step if value is None else value)), "n": torch.tensor(step)}
    return checkpoint.save(folder, step, model=model, state={"rng": torch.arange(5, dtype=torch.uint8)}, meta={"config": {"lr": 0.1}}, **more)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_tensors_and_meta_come_back_as_they_were(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    given = {"a": shared.T, "tied": shared, "scalar": torch.tensor(7), "half": torch.ones(2, dtype=torch.bfloat16)}
    read = checkpoint.load(checkpoint.save(tmp_path, 4, model=given, state={}, meta={"config": {"x": [1, None]}}))
    assert read.step == 4 and read.meta["config"] == {"x": [1, None]} and read.state == {}
    assert read.model.keys() == given.keys()
    assert all(torch.equal(read.model[key], value) and read.model[key].dtype == value.dtype for key, value in given.items())


def test_nothing_but_safetensors_and_json_is_written(tmp_path):
    assert names(save(tmp_path, 1)) == ["meta.json", "model.safetensors", "state.safetensors"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_refused_and_the_step_before_is_named(tmp_path, damage):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink() if damage == "remove" else file.write_bytes(data if damage == "flip" else data[:-4])
    with pytest.raises(ValueError, match=r"model\.safetensors is (missing|not the file).*resume from .*step_1 instead"):
        checkpoint.load(tmp_path / "step_2")


def test_a_folder_that_is_no_step_and_a_newer_format_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint.load(tmp_path)
    path = save(tmp_path, 1)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    with pytest.raises(ValueError, match="upgrade physio-train"):
        checkpoint.load(path)


def test_a_full_disk_leaves_the_step_before_and_no_temporary(tmp_path):
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))  # a file may not grow beyond 150 bytes: writing fails half-way
    try:
        with pytest.raises(OSError):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step_1"]
    assert checkpoint.load(checkpoint.latest(tmp_path)).model["w"].tolist() == [1.0] * 3


@pytest.mark.parametrize("operation", ["fsync", "rename"])
@pytest.mark.parametrize("at", range(5))
def test_stopped_anywhere_a_save_leaves_a_readable_folder(tmp_path, monkeypatch, operation, at):
    save(tmp_path, 1)
    save(tmp_path, 2, value=-1)
    calls, real, undo = iter(range(100)), {"fsync": os.fsync, "rename": Path.rename}[operation], shutil.rmtree

    def stop(*arguments):
        if next(calls) == at:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(os if operation == "fsync" else Path, operation, stop)
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)  # as after SIGKILL: nobody tidies up
    try:
        save(tmp_path, 2, keep_last=1)
    except KeyboardInterrupt:
        pass
    monkeypatch.setattr(os if operation == "fsync" else Path, operation, real)
    monkeypatch.setattr(shutil, "rmtree", undo)
    assert checkpoint.load(checkpoint.latest(tmp_path)).step in (1, 2)
    save(tmp_path, 3)
    assert all(checkpoint.load(tmp_path / name).step for name in names(tmp_path))
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    assert {2, 3} <= set(checkpoint.steps(tmp_path))


def test_old_steps_go_but_the_kept_ones_stay(tmp_path):
    for step in (1, 2, 3, 10):
        save(tmp_path, step, keep_last=2, keep={1})
    assert checkpoint.steps(tmp_path) == [1, 3, 10]
    assert checkpoint.latest(tmp_path).name == "step_10"


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    assert checkpoint.load(save(tmp_path, 1, value=5)).model["w"].tolist() == [5.0] * 3
    assert names(tmp_path) == ["step_1"]


def test_an_empty_or_absent_folder_has_no_latest(tmp_path):
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / "none") is None


def test_differing_keys_are_named_and_changeable_ones_pass():
    saved = {"fit": {"lr": 0.1, "n_steps": 5, "betas": [0.9, 0.99]}, "data": {"path": "a", "hash": "x"}}
    checkpoint.check_config(
        saved, {"fit": {"lr": 0.1, "n_steps": 9, "betas": (0.9, 0.99)}, "data": {"path": "b", "hash": "x"}}, changeable=["fit.n_steps", "data.path"]
    )
    with pytest.raises(ValueError, match=r"fit\.lr \(0\.1 saved, 0\.2 given\), fit\.new"):
        checkpoint.check_config(saved, {"fit": {"lr": 0.2, "n_steps": 5, "betas": [0.9, 0.99], "new": 1}, "data": saved["data"]})
