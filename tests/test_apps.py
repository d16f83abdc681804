"""The apps from files to tables, at sizes of a few seconds, and what they say when something is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import compose
import prepare
import pretrain
import probe
from physio_models.pretrained import from_pretrained
from physio_train import predictions as prediction_files
from physio_train.metrics import auroc

APPS = Path(compose.__file__).parent
SMALL = [
    "--size",
    "tiny",
    "--jobs",
    "1",
    "--probe.twins",
    "1",
    "--fit.n-steps",
    "6",
    "--fit.batch-size",
    "16",
    "--fit.checkpoint-every",
    "3",
    "--fit.validate-every",
    "3",
]
SMALL += ["--cohort.options.n-subjects", "24", "--cohort.options.minutes", "0.5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("apps")


@pytest.fixture(scope="module")
def store(folder):
    out = folder / "store"
    prepare.main(["synthetic", "--out", str(out), "--option", "n_subjects", "24", "minutes", "0.5"])
    return out


@pytest.fixture(scope="module")
def run(folder, store):
    """A finished run and its summary."""
    out = folder / "run"
    return out, pretrain.main([*SMALL, "--data", str(store), "--out", str(out)])


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def weights(path):
    return {key: value.tobytes() for key, value in load_file(path / "model.safetensors").items()}


def app(name, *arguments, cwd):
    return subprocess.run([sys.executable, str(APPS / f"{name}.py"), *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=120)


def test_a_run_leaves_everything_that_a_reader_needs(run):
    out, summary = run
    for name in (
        "config.json",
        "contract.json",
        "seen.json",
        "metrics.jsonl",
        "best.json",
        "predictions.csv",
        "figures/loss.png",
        "figures/reconstruction.png",
    ):
        assert (out / name).stat().st_size > 0
    assert (out / "figures/reconstruction.png").stat().st_size > 0
    assert summary["steps"] == 6 and summary["heading"] == "inductive"
    assert set(summary["AUROC"]) == {"pretrained", "twin", "handcrafted"}


def test_the_table_can_be_computed_again_from_the_predictions(run):
    out, summary = run
    lines = prediction_files.read(out / "predictions.csv")
    own = lines.take(lines.row == "pretrained")
    assert auroc(own.labels["pvc"], own.scores["pvc"]) == pytest.approx(summary["AUROC"]["pretrained"])


def test_a_config_repeats_a_run_exactly(run, here):
    out, _ = run
    pretrain.main(["--config", str(out / "config.json"), "--no-table", "--out", "again"])
    assert weights(here / "again/checkpoints/step_6") == weights(out / "checkpoints/step_6")


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(run, here, store):
    out, _ = run
    whole = [*SMALL, "--data", str(store), "--no-table"]
    pretrain.main([*whole, "--out", "cut"])
    for left in (here / "cut/checkpoints/step_6").iterdir():
        left.unlink()
    (here / "cut/checkpoints/step_6").rmdir()
    (here / "cut/best.json").unlink()
    summary = pretrain.main(["--resume", "cut", "--no-table"])
    assert summary["steps"] == 6
    assert weights(here / "cut/checkpoints/step_6") == weights(out / "checkpoints/step_6")


def test_an_unknown_key_of_a_config_is_named_with_the_nearest_one(run, here):
    values = json.loads((run[0] / "config.json").read_text())
    values["fit"]["wamrup"] = 1.0
    (here / "typo.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"fit\.wamrup.*did you mean 'warmup'"):
        pretrain.main(["--config", "typo.json"])


def test_a_flag_that_could_not_act_is_refused(run, here):
    out, _ = run
    with pytest.raises(ValueError, match=r"--out elsewhere is another folder than --resume"):
        pretrain.main(["--resume", str(out), "--out", "elsewhere"])
    with pytest.raises(ValueError, match=r"--size reference .* leave --size out"):
        pretrain.main(["--config", str(out / "config.json"), "--size", "reference"])


def test_json_gives_every_recipe_back():
    for path in compose.RECIPES.glob("[!_]*.py"):
        for size in ("tiny", "fast", "reference"):
            cfg = compose.recipe(path.stem, size)
            if not isinstance(cfg, compose.PretrainConfig):
                continue  # a study's recipe, which has an app of its own
            assert compose.from_json(json.loads(json.dumps(compose.to_json(cfg)))) == cfg


def test_a_part_is_swapped_by_name_and_its_flags_follow(here, store):
    app_ = pretrain.parse(
        ["himae_ppg", "--model", "himae", "--size", "tiny", "--model.widths", "4", "8", "--objective", "masked_reconstruction", "--objective.patch", "10"]
    )
    assert app_.cfg.model.widths == (4, 8) and app_.cfg.objective.patch == 10
    with pytest.raises(ValueError, match="did you mean 'himae'"):
        pretrain.parse(["--model", "himea"])


def test_a_dry_run_writes_nothing(tmp_path, store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrain.main([*SMALL, "--data", str(store), "--dry-run"])["batch"][1:] == [1, 250]
    assert pretrain.main([*SMALL, "--dry-run"])["batch"] == [16, 1, 250]
    assert not list(tmp_path.iterdir())


def test_shifted_windows_are_pieces_of_the_recording(store):
    """Each training window is the z-scored piece of its recording at some offset below a window, and the last of a recording stays where it is."""
    cfg = compose.recipe("himae_ppg", "tiny")
    data = compose.open_stores([store])
    made = compose.parts(cfg, data, np.arange(len(data)), np.zeros(0, np.int64))
    follower_N, length = data.index["next"], data.n_samples
    offsets = {True: set(), False: set()}
    for batch in made.batches.one_epoch():
        for row, x_T in zip(batch["index"].numpy(), batch["signal"][:, 0].numpy(), strict=True):
            follows = follower_N[row] >= 0
            there = [row, follower_N[row]] if follows else [row]
            both_T = np.concatenate([data.batch([i])["signal"][0, 0] for i in there])
            pieces_ST = np.lib.stride_tricks.sliding_window_view(both_T, length)
            scaled_ST = (pieces_ST - pieces_ST.mean(1, keepdims=True)) / pieces_ST.std(1, keepdims=True)
            gap_S = np.abs(scaled_ST - x_T).max(1)
            assert gap_S.min() < 1e-3
            offsets[bool(follows)].add(int(gap_S.argmin()))
    assert offsets[False] == {0}
    assert len(offsets[True]) > 20 and max(offsets[True]) < length


def test_cross_validation_with_pretraining_inside_is_inductive_and_goes_on(run, here, store):
    command = ["--ckpt", str(run[0]), "--data", str(store), "--cv-pretrain", "--folds", "2", "--twins", "1", "--task", "pvc", "--jobs", "1", "--out", "cv"]
    summary = probe.main(command)
    assert summary["heading"] == "inductive"
    encoders = sorted((here / "cv/encoders").iterdir())
    assert [path.name for path in encoders] == ["seed0_repeat0_fold0", "seed0_repeat0_fold1"]
    first = (here / "cv/predictions.csv").read_bytes()
    kept = (encoders[0] / "model.safetensors").stat().st_mtime_ns
    for file in encoders[1].iterdir():
        file.unlink()
    encoders[1].rmdir()
    assert probe.main([*command, "--jobs", "2"])["AUROC"] == summary["AUROC"], "more processes change nothing"
    assert (here / "cv/predictions.csv").read_bytes() == first
    assert (encoders[0] / "model.safetensors").stat().st_mtime_ns == kept, "a finished encoder is not trained again"
    with pytest.raises(ValueError, match="another --out"):
        probe.main([*command, "--folds", "3"])


def test_an_encoder_of_a_fold_never_saw_its_test_subjects(here):
    lines = prediction_files.read(here / "cv/predictions.csv")
    own = lines.take(lines.row == "pretrained")
    for fold in ("0", "1"):
        seen = set(json.loads((here / f"cv/encoders/seed0_repeat0_fold{fold}/seen.json").read_text())["subjects"])
        tested = set(own.subject[own.fold == fold].tolist())
        assert seen and tested and not seen & tested


def test_a_probe_folder_is_an_encoder_again(run, here, store):
    question = ["--data", str(store), "--task", "pvc", "--jobs", "1", "--twins", "0"]
    first = probe.main(["--ckpt", str(run[0]), *question, "--out", "probed"])
    assert (here / "probed/head.safetensors").is_file()
    assert probe.main(["--ckpt", "probed", *question])["AUROC"] == first["AUROC"]


def test_the_fused_row_is_one_blend_of_two_others(run, here, store):
    """On the log-odds scale its scores are one of the offered weights times the encoder's, and the rest times the hand-made features'."""
    command = ["--ckpt", str(run[0]), "--data", str(store), "--task", "pvc", "--twins", "0", "--cv", "group", "--folds", "2"]
    probe.main([*command, "--fused", "--predictions", "fused.csv"])
    lines = prediction_files.read(here / "fused.csv")
    place = lines.record + "@" + lines.start_s.astype(str)
    column = {}
    for row in ("pretrained", "handcrafted", "pretrained+handcrafted"):
        mine = (lines.row == row) & (lines.fold == lines.fold[0])
        own, order = lines.take(mine), np.argsort(place[mine])
        column[row] = np.log(own.scores["pvc"][order] / (1 - own.scores["pvc"][order]))
    own, made, fused = column.values()
    inner = (np.abs(own) < 9) & (np.abs(made) < 9)  # the blend cuts probabilities at 1e-4
    weights = ((fused - made) / (own - made))[inner & (np.abs(own - made) > 0.1)]
    assert len(weights) > 10 and np.ptp(weights) < 1e-3
    assert np.abs(np.array([0.0, 0.25, 0.5, 0.75, 1.0]) - weights.mean()).min() < 1e-4


def test_an_untrained_encoder_is_called_so(store):
    summary = probe.main(["--model", "himae", "--size", "tiny", "--data", str(store), "--task", "pvc", "--jobs", "1", "--twins", "0"])
    assert "untrained" in summary["AUROC"] and "pretrained" not in summary["AUROC"]


def test_subjects_in_both_stores_leave_the_training_side(run, here, store, capsys):
    prepare.main(["synthetic", "--out", "other", "--option", "n_subjects", "12", "minutes", "0.5"])
    question = ["--task", "pvc", "--jobs", "1", "--twins", "0"]
    probe.main(["--ckpt", str(run[0]), "--train", str(store), "--test", "other", *question])
    assert "12 subjects are in both stores: their 36 windows left the training side" in capsys.readouterr().out


def test_a_channel_of_another_name_is_read_under_the_first(run, here, store):
    """The same windows under two names are scored alike, by every row and in other processes."""
    prepare.main(["synthetic", "--out", "strangers", "--option", "n_subjects", "12", "minutes", "0.5", "seed", "1"])
    shutil.copytree("strangers", "renamed")
    manifest = json.loads(Path("renamed/manifest.json").read_text())
    (name,) = manifest["channels"]
    Path("renamed/manifest.json").write_text(json.dumps(manifest | {"channels": ["PLETH"]}))
    command = ["--ckpt", str(run[0]), "--train", str(store), "--task", "pvc", "--twins", "0", "--jobs", "2"]
    with pytest.raises(ValueError, match="differ in channels"):
        probe.main([*command, "--test", "renamed"])
    with pytest.raises(ValueError, match=f"--lead names V9, which is no channel of the stores; they have {name}, PLETH"):
        probe.main([*command, "--test", "renamed", "--lead", name, "V9"])
    probe.main([*command, "--test", "strangers", "--predictions", "own.csv"])
    probe.main([*command, "--test", "renamed", "--predictions", "renamed.csv", "--lead", name, "PLETH"])
    own, other = (prediction_files.read(path) for path in (Path("own.csv"), Path("renamed.csv")))
    assert {"pretrained", "handcrafted"} <= set(own.row.tolist())
    np.testing.assert_array_equal(own.row, other.row)
    np.testing.assert_array_equal(own.scores["pvc"], other.scores["pvc"])


def test_a_store_that_does_not_fit_is_refused_with_the_flags_that_mend_it(run, here):
    prepare.main(["synthetic", "--out", "faster", "--fs", "50", "--option", "n_subjects", "4", "minutes", "0.5"])
    with pytest.raises(ValueError, match=r"50 Hz.*25 Hz.*--fs 25"):
        probe.main(["--ckpt", str(run[0]), "--data", "faster", "--task", "pvc", "--cv", "group"])


def test_several_tasks_and_no_flag_list_what_there_is(store):
    with pytest.raises(ValueError, match=r"--task: the store has af, age, pvc, rate, stiffness"):
        probe.main(["--model", "himae", "--size", "tiny", "--data", str(store)])


def test_folds_are_named_by_number_and_side():
    assert probe.sides("train=1-5,val=6,test=7+8") == {"train": ("1-5",), "val": ("6",), "test": ("7", "8")}
    assert compose.fold_names(("1-3", "val")) == ("1", "2", "3", "val")
    with pytest.raises(ValueError, match="--use must"):
        probe.sides("test=1")


def test_a_users_mistake_is_one_line_and_exit_2(here):
    done = app("prepare", "mitbih", cwd=here)
    assert done.returncode == 2 and done.stderr.startswith("error: --root") and "Traceback" not in done.stderr


def test_the_last_line_of_stdout_is_json(here, store):
    done = app("prepare", "synthetic", "--option", "n_subjects", "3", "minutes", "0.5", "--out", "three", "--report", cwd=here)
    assert json.loads(done.stdout.splitlines()[-1])["n_windows"] == 9
    assert done.returncode == 0


def started(command, cwd, metrics):
    """A process that trains for long, once its first numbers are on disk."""
    process = subprocess.Popen(list(map(str, command)), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return process


def test_ctrl_c_saves_and_says_how_to_go_on(here, store):
    command = [sys.executable, APPS / "pretrain.py", *SMALL, "--fit.n-steps", "100000", "--data", store, "--no-table", "--out", "stopped"]
    process = started(command, here, here / "stopped/metrics.jsonl")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume stopped" in err and "Traceback" not in err
    step = last_step(here / "stopped")
    summary = pretrain.main(["--resume", "stopped", "--no-table", "--fit.n-steps", str(step + 2)])
    assert summary["steps"] == step + 2


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_the_run_resumes(here, store):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", APPS / "pretrain.py"]
    process = started([*launch, *SMALL, "--fit.n-steps", "100000", "--data", store, "--no-table", "--out", "dead"], here, here / "dead/metrics.jsonl")
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True).stdout
    ranks = [int(line.split()[0]) for line in listed.splitlines() if "pretrain.py" in line]
    os.kill(ranks[1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "lost contact with another rank" in err and "--resume dead" in err
    until = last_step(here / "dead") + 3
    assert pretrain.main(["--resume", "dead", "--no-table", "--fit.n-steps", str(until)])["steps"] == until


def last_step(run):
    return max(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))


def test_two_ranks_train_on_disjoint_data_to_one_run(here, store):
    flags = [*SMALL, "--data", str(store), "--no-table", "--out", "ranks"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(APPS / "pretrain.py"), *flags]
    done = subprocess.run(launch, capture_output=True, text=True, cwd=here, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 6
    assert (here / "ranks/checkpoints/step_6/model.safetensors").is_file()


def test_one_command_leaves_weights_to_hand_on_with_scores_and_floors(folder, store):
    out = folder / "weights"
    summary = pretrain.main([*SMALL, "--data", str(store), "--out", str(folder / "run_saved"), "--save", str(out), "--licence", "CC0-1.0"])
    assert summary["saved"] == str(out)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert 'license: "CC0-1.0"' in card and "inductive" in card
    for row in ("pretrained", "twin", "handcrafted"):
        assert f"| pvc | AUROC | {row} | {summary['AUROC'][row]:.3f} |" in card
    encoder = from_pretrained(out)
    best = from_pretrained(folder / "run_saved")
    assert encoder.name == "himae" and encoder.seen == best.seen
    assert all(np.array_equal(a, b) for a, b in zip(encoder.model.state_dict().values(), best.model.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="is not empty"):
        pretrain.main([*SMALL, "--data", str(store), "--out", str(folder / "run_again"), "--save", str(out)])
    assert not (folder / "run_again").exists()
