"""train_sae: a sweep on one read, refused where the data cannot serve a loss, stopped and gone on with the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import console
import train_sae
from physio_sae.sae import load, read_config
from physio_train.features import write_index


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def features(tmp_path):
    """Eight patients of 40 windows, followed or not, with one augmented view."""

    def make(name: str, *, followed: bool = True, views: int = 1) -> Path:
        folder, n, rng = tmp_path / name, 320, np.random.default_rng(0)
        folder.mkdir()
        z_ND = (rng.random((n, 12)) * (rng.random((n, 12)) < 0.3) @ rng.standard_normal((12, 16))).astype(np.float32)
        np.save(folder / "z.npy", z_ND)
        if views:
            np.save(folder / "z_aug.npy", z_ND[None] + 0.01)
        last, patient = np.arange(n) % 40 == 39, np.char.add("t:", (np.arange(n) // 40).astype(str))
        following = np.where(last | (not followed), -1, np.arange(n) + 1)
        index = {
            "subject": patient,
            "record": patient,
            "start_s": np.arange(n) % 40 * 10.0,
            "next": following,
            "fold": np.where(np.arange(n) < 240, "train", "test"),
        }
        write_index(folder / "index.h5", index)
        return folder

    return make


SMALL = ("--concepts", "32", "--control.target", "4", "--fit.n-steps", "12", "--fit.batch-size", "64")


def run(*arguments: object) -> dict:
    return dict(train_sae.main([str(a) for a in arguments]))


def test_a_sweep_writes_one_folder_a_member(features, tmp_path):
    out = tmp_path / "run"
    summary = run("--data", features("f"), "--out", out, *SMALL, "--concepts", 32, 64, "--ablations", "full", "vanilla", "topk", "--seeds", 0, 1)
    names = {f"{n}_{ablation}_{seed}" for n in (32, 64) for ablation in ("full", "vanilla", "topk") for seed in (0, 1)}
    assert {path.name for path in (out / "saes").iterdir()} == names and summary["saes"] == 12
    assert summary["rows_read"] == 320  # once for twelve
    extra = read_config(out / "saes" / "64_topk_1")["extra"]
    assert (extra["ablation"], extra["seed"], extra["n_patients"], extra["n_windows"]) == ("topk", 1, 6, 240)
    assert load(out / "saes" / "64_topk_1").config.k == 4
    assert run("--resume", out)["already_finished"]
    json.dumps(summary, allow_nan=False)


def test_without_followers_smooth_must_be_0(features, tmp_path):
    clips = features("clips", followed=False)
    with pytest.raises(ValueError, match=r"set --loss\.smooth 0"):
        run("--data", clips, "--out", tmp_path / "run", *SMALL)
    assert not (tmp_path / "run").exists()
    assert run("--data", clips, "--out", tmp_path / "run", *SMALL, "--loss.smooth", 0)["saes"] == 1
    with pytest.raises(ValueError, match=r"set --loss\.stab 0"):
        run("--data", features("bare", views=0), *SMALL, "--dry-run")


def test_a_dry_run_writes_nothing(features, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--data", features("f"), *SMALL, "--dry-run")["pairs"] == 6 * 39
    assert not (tmp_path / "runs").exists()


def test_an_interrupt_saves_and_resume_ends_with_the_same_bytes(features, tmp_path, monkeypatch):
    data, whole, stopped = features("f"), tmp_path / "whole", tmp_path / "stopped"
    flags = (*SMALL, "--ablations", "full", "topk")
    run("--data", data, "--out", whole, *flags)

    class Asked(console.Interrupts):
        """Ctrl-C while the fifth step runs."""

        steps = 0

        @property
        def asked(self) -> bool:
            self.steps += 1
            return self.steps > 9

        @asked.setter
        def asked(self, value: bool) -> None:
            pass

    with monkeypatch.context() as patched:
        patched.setattr(console, "Interrupts", Asked)
        with pytest.raises(console.Stopped, match=r"saved step \d+ of 12; go on with: .*--resume"):
            run("--data", data, "--out", stopped, *flags)
    assert not (stopped / "saes").exists()
    run("--resume", stopped)
    for name in ("32_full_0", "32_topk_0"):
        a, b = (load(folder / "saes" / name).state_dict() for folder in (whole, stopped))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_mistakes_are_named(features, tmp_path):
    data = features("f")
    with pytest.raises(ValueError, match="--data is missing"):
        run(*SMALL)
    with pytest.raises(ValueError, match="is no row of the table"):
        run("--data", data, *SMALL, "--ablations", "no_sparsity")
    with pytest.raises(ValueError, match=r"n_concepts \(512\) exceeds the 240 training windows"):
        run("--data", data, *SMALL, "--concepts", 512, "--dry-run")
    with pytest.raises(ValueError, match="no row in fold nowhere"):
        run("--data", data, *SMALL, "--use", "nowhere")
