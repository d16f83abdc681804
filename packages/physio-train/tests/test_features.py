"""A folder of features is whole or not there, holds what was encoded, and says when it was changed."""

from __future__ import annotations

import errno
import json
import os
import runpy
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from physio_train import features
from physio_train.features import open_features, partial_folder

pytest.importorskip("h5py")
JOB = Path(__file__).with_name("filling_job.py")


@pytest.fixture(scope="module")
def job():
    return SimpleNamespace(**runpy.run_path(str(JOB)))


@pytest.fixture
def whole(job, tmp_path):
    return job.make(tmp_path / "whole")


@pytest.fixture
def begin_process(job):
    """`begin_process(folder=...)` fills in a process of its own."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "physio_train"])
    running = []

    def begin(**arguments):
        process = context.Process(target=runpy.run_path, args=(str(JOB), {"ARGUMENTS": arguments}, "__main__"))
        process.start()
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.is_alive():
            process.kill()
        process.join()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_encoded_comes_back(job, whole):
    z_ND, z_aug_AND = job.expected()
    found = open_features(whole)
    np.testing.assert_array_equal(found.z, z_ND)
    np.testing.assert_array_equal(found.z_aug, z_aug_AND)
    assert found.n_views == 2 and len(found) == job.N and found.tokens is None and found.windows is None
    assert found.index["subject"].tolist()[:8] == ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s0"]
    np.testing.assert_array_equal(np.load(whole / "z.npy"), z_ND)  # plain NumPy reads it too


def test_an_interrupted_folder_is_unreadable_and_goes_on_with_what_is_missing(job, whole, tmp_path):
    out, counted = tmp_path / "cut", []
    with pytest.raises(ZeroDivisionError):
        job.make(out, counted=FailsAfter(40))
    assert not out.exists()
    with pytest.raises(ValueError, match="unfinished"):
        open_features(out)
    job.make(out, counted=counted)
    assert counted[0] == 96, "two blocks of 48 rows were on the disk"
    assert content(out) == content(whole)
    assert not partial_folder(out).exists()


class FailsAfter(list):
    """A list that fails at its n-th entry."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def append(self, value):
        if len(self) == self.n:
            raise ZeroDivisionError
        super().append(value)


def test_killed_with_sigkill_and_gone_on_with_the_bytes_are_the_same(job, whole, tmp_path, begin_process):
    out = tmp_path / "killed"
    process = begin_process(folder=str(out), kill_after=int(np.random.default_rng().integers(0, job.N)))
    process.join(300)
    assert process.exitcode == -signal.SIGKILL and not out.exists()
    job.make(out)
    assert content(out) == content(whole)


def test_two_ranks_share_the_work_and_the_bytes_are_the_same(job, whole, tmp_path, begin_process):
    out = tmp_path / "two"
    ranks = [begin_process(folder=str(out), rank=rank, world_size=2, meet=str(tmp_path / "meet")) for rank in range(2)]
    for process in ranks:
        process.join(300)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert content(out) == content(whole)


def test_a_journal_line_that_a_kill_cut_off_does_not_count(job, tmp_path):
    out, counted = tmp_path / "cut", []
    with pytest.raises(ZeroDivisionError):
        job.make(out, counted=FailsAfter(40))
    with (partial_folder(out) / "done.0").open("a") as journal:
        journal.write("5")  # of block 5 or 51 or 512
    job.make(out, counted=counted)
    assert counted[0] == 96 and 240 in counted
    np.testing.assert_array_equal(open_features(out).z, job.expected()[0])


def test_the_same_command_again_leaves_a_whole_folder_as_it_is(job, whole):
    before = (whole / "meta.json").stat().st_mtime_ns
    assert job.make(whole) is None
    assert (whole / "meta.json").stat().st_mtime_ns == before


def test_a_kill_just_before_the_folder_is_named_loses_nothing(job, whole, tmp_path):
    whole.rename(partial_folder(tmp_path / "again"))
    assert job.make(tmp_path / "again", counted=FailsAfter(0)) is None
    np.testing.assert_array_equal(open_features(tmp_path / "again").z, job.expected()[0])


def test_other_features_are_not_written_over(job, whole, tmp_path):
    with pytest.raises(ValueError, match="holds other features"):
        job.make(whole, plan={"what": "another", "level": "L1"})
    with pytest.raises(ZeroDivisionError):
        job.make(tmp_path / "cut", counted=FailsAfter(40))
    with pytest.raises(ValueError, match=r"made otherwise \(level differ\)"):
        job.make(tmp_path / "cut", plan=job.PLAN | {"level": "L2"})


def flipped(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["z.npy", "z_aug.npy", "index.h5"])
def test_a_changed_shortened_or_missing_file_is_refused(whole, name):
    good = (whole / name).read_bytes()
    flipped(whole / name)
    with pytest.raises(ValueError, match=f"{name} is not the file that was written"):
        open_features(whole)
    (whole / name).write_bytes(good[:-8])
    with pytest.raises(ValueError, match=f"{name} is (damaged|not as long)"):
        open_features(whole, verify=False)
    (whole / name).unlink()
    with pytest.raises(ValueError, match=r"missing|must hold z.npy"):
        open_features(whole)


def test_a_strange_array_and_a_newer_version_are_refused(whole):
    np.save(whole / "windows.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(ValueError, match=r"windows.npy, which its meta.json does not name"):
        open_features(whole)
    (whole / "windows.npy").unlink()
    meta = json.loads((whole / "meta.json").read_text())
    (whole / "meta.json").write_text(json.dumps(meta | {"version": 2}))
    with pytest.raises(ValueError, match="version 2"):
        open_features(whole)


def test_bare_arrays_of_another_pipeline_are_read_and_checked(tmp_path):
    rng = np.random.default_rng(0)
    z_ND, aug_ND, windows_NT = (rng.normal(size=(12, width)).astype(np.float32) for width in (6, 6, 50))
    for name, array in (("z", z_ND), ("z_aug", aug_ND), ("windows", windows_NT)):
        np.save(tmp_path / f"{name}.npy", array)
    found = open_features(tmp_path)
    assert found.meta == {} and found.index == {}
    np.testing.assert_array_equal(found.z_aug, aug_ND[None])
    np.testing.assert_array_equal(found.windows, windows_NT[:, None])
    np.save(tmp_path / "z_aug.npy", aug_ND[:, :5])
    with pytest.raises(ValueError, match=r"z_aug.npy is \(1, 12, 5\)"):
        open_features(tmp_path)
    np.save(tmp_path / "z_aug.npy", aug_ND)
    np.save(tmp_path / "windows.npy", windows_NT[:11])
    with pytest.raises(ValueError, match=r"windows.npy has 11 rows, the features 12"):
        open_features(tmp_path)


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="make one with embed"):
        open_features(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"z.npy or tokens.npy"):
        open_features(tmp_path)


def test_too_small_a_disk_is_refused_before_anything_is_written(job, tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * job.N * job.D * 4 - 1))
    with pytest.raises(ValueError, match=r"need 0.00 GB and .* free"):
        job.make(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_a_folder_to_go_on_with(job, whole, tmp_path, monkeypatch):
    written, pwrite = [], os.pwrite

    def full(descriptor, data, at):
        written.append(at)
        if len(written) > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        job.make(tmp_path / "full")
    monkeypatch.undo()
    job.make(tmp_path / "full")
    assert content(tmp_path / "full") == content(whole)


def test_a_write_that_fails_once_leaves_its_block_to_do_again(job, whole, tmp_path, monkeypatch):
    written, pwrite = [], os.pwrite

    def fails_once(descriptor, data, at):
        written.append(at)
        if len(written) == 40:  # of the 48 writes of the first block
            raise OSError(errno.EIO, "Input/output error")
        return pwrite(descriptor, data, at)

    monkeypatch.setattr(os, "pwrite", fails_once)
    with pytest.raises(OSError, match="Input/output"):
        job.make(tmp_path / "torn")
    monkeypatch.undo()
    counted = []
    job.make(tmp_path / "torn", counted=counted)
    assert counted[0] == 0 and content(tmp_path / "torn") == content(whole)


def test_numbers_that_a_file_cannot_hold_are_named_by_row(tmp_path):
    file = features.ArrayFile(tmp_path / "z.npy", (4, 2), "float16")
    file.write(0, np.ones((2, 2), np.float32))
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="row 3 is not finite as float16"):
        file.write(2, np.array([[1.0, 2.0], [1e6, 0.0]], np.float32))
    with pytest.raises(ValueError, match=r"takes rows of \(2,\), got \(3,\)"):
        file.write(0, np.ones((1, 3), np.float32))
    file.close()
    assert np.load(tmp_path / "z.npy")[:2].tolist() == [[1, 1], [1, 1]]
