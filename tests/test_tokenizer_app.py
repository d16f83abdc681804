"""A store becomes a tokenizer, and what the app says when something is wrong."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import prepare
import train_tokenizer
from physio_bpe import FixedRange, LeadMinMax, load, train
from physio_data.arrays import write_store
from physio_data.store import Store

APP = Path(train_tokenizer.__file__)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "store"
    prepare.main(["synthetic", "--out", str(out), "--option", "n_subjects", "12", "minutes", "0.5"])
    return out


def test_the_tokenizer_is_that_of_the_training_windows(store, tmp_path):
    summary = train_tokenizer.main(["--data", str(store), "--out", str(tmp_path / "deep/t.json"), "--merges", "120"])
    windows = Store(store)
    expected = train(windows.batch(windows.rows("train"))["signal"], 120)
    assert load(tmp_path / "deep/t.json") == expected
    assert summary["n_windows"] == len(windows.rows("train")) and summary["vocabulary_hash"] == expected.vocabulary_hash
    assert summary["symbols_per_token"] > 1 and summary["clipped"] == 0 and summary["data"] == windows.hash


def test_flags_reach_the_quantizer_and_folds_and_a_part_can_be_named(store, tmp_path):
    flags = ["--quantizer", "fixed_range", "--levels", "64", "--option", "low_mv", "-3", "high_mv", "3", "--layout", "per_lead", "--mode", "longest"]
    out = tmp_path / "t.json"
    few = train_tokenizer.main(["--data", str(store), "--out", str(out), "--merges", "20", "--use", "train,val", "--windows", "9", "--threads", "2", *flags])
    made = load(out)
    assert made.quantizer == FixedRange(low_mv=-3, high_mv=3, n_levels=64) and (made.layout, made.mode) == ("per_lead", "longest")
    assert few["n_windows"] == 9
    first = out.read_bytes()
    train_tokenizer.main(["--data", str(store), "--out", str(out), "--merges", "20", "--use", "train,val", "--windows", "9", *flags])
    assert out.read_bytes() == first
    whole = train_tokenizer.main(["--data", str(store), str(store), "--out", str(out), "--merges", "5", "--use", "all"])
    assert whole["n_windows"] == 2 * len(Store(store))


def test_short_tails_end_where_the_recording_does(tmp_path):
    x_NCT = np.cumsum(np.random.default_rng(0).normal(0, 1, (6, 2, 100)), -1).astype(np.float32)
    n_valid = np.array([100, 100, 60, 100, 30, 100])
    write_store(tmp_path / "tails", x_NCT, fs=50.0, channels=["I", "II"], units=["mV", "mV"], subject=list("abcdef"), n_valid=n_valid)
    train_tokenizer.main(["--data", str(tmp_path / "tails"), "--out", str(tmp_path / "t.json"), "--merges", "30", "--use", "all", "--quantizer", "lead_minmax"])
    cut = [x_CT[:, :n] for x_CT, n in zip(x_NCT, n_valid, strict=True)]
    assert load(tmp_path / "t.json") == train(cut, 30, quantizer=LeadMinMax())


def test_windows_that_lack_a_channel_are_left_out(tmp_path):
    x_NCT = np.random.default_rng(0).normal(0, 1, (6, 2, 100)).astype(np.float32)
    present_NC = np.ones((6, 2), bool)
    present_NC[4, 1] = False
    write_store(tmp_path / "s", x_NCT, fs=50.0, channels=["I", "II"], units=["mV", "mV"], subject=list("abcdef"), channel_present_NC=present_NC)
    summary = train_tokenizer.main(["--data", str(tmp_path / "s"), "--out", str(tmp_path / "t.json"), "--merges", "30", "--use", "all"])
    assert summary["n_windows"] == 5 and load(tmp_path / "t.json") == train(np.delete(x_NCT, 4, axis=0), 30)


def test_a_dry_run_writes_nothing(store, tmp_path):
    summary = train_tokenizer.main(["--data", str(store), "--out", str(tmp_path / "t.json"), "--dry-run"])
    assert summary["dry_run"] and summary["symbols"] == Store(store).n_samples * len(Store(store).channels)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_named(store, tmp_path):
    command = ["--data", str(store), "--out", str(tmp_path / "t.json")]
    for more, message in (
        (["--option", "low", "1"], "has no field 'low'"),
        (["--levels", "300"], "n_levels"),
        (["--use", "spring"], "spring"),
        (["--windows", "0"], "--windows must be at least 1"),
        (["--merges", "-1"], "n_merges"),
    ):
        with pytest.raises(ValueError, match=message):
            train_tokenizer.main([*command, *more])
    assert not list(tmp_path.iterdir())


def test_the_app_ends_with_json_and_ctrl_c_leaves_nothing(store, tmp_path):
    done = subprocess.run([sys.executable, APP, "--data", store, "--out", "t.json", "--merges", "50"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["n_merges"] == 50
    x_NCT = np.random.default_rng(0).normal(0, 1, (40000, 1, 1000)).astype(np.float32)
    write_store(tmp_path / "large", x_NCT, fs=100.0, channels=["I"], units=["mV"], subject=[str(i) for i in range(40000)])
    command = [sys.executable, APP, "--data", tmp_path / "large", "--out", "never.json", "--use", "all", "--merges", "50000", "--levels", "256"]
    process = subprocess.Popen(list(map(str, command)), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and "windows of" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "nothing was written" in err and "Traceback" not in err
    assert not (tmp_path / "never.json").exists()
