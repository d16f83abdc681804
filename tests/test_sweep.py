"""A grid of runs: every point once, gone on with after a stop, failures named and tried again; and what a run sends to its sinks."""

import csv
import json
from pathlib import Path

import pytest
import tyro

import console
import prepare
import pretrain
import sweep
from physio_data.store import Store


def app(*flags):
    return tyro.cli(sweep.Sweep, args=["himae_ppg", "--size", "tiny", *map(str, flags)])


GRID = ["--grid", "fit.lr=1e-3,3e-4", "--grid", "model.kernel=3,5", "--seeds", "2", "--data", "store"]


class Runs:
    """Stands in for the training command: scores by learning rate, and fails or stops where told."""

    def __init__(self, fails=(), stops=()):
        self.fails, self.stops, self.commands = list(fails), list(stops), []

    def __call__(self, command):
        self.commands.append(list(command))
        out = Path(command[command.index("--out" if "--out" in command else "--resume") + 1])
        if out.name in self.stops:
            (out / "checkpoints/step_3").mkdir(parents=True)
            (out / "config.json").write_text("{}")
            return 130, "", "stopped; saved step 3"
        if out.name in self.fails:
            return 2, "", "some warning\nerror: kernel must be odd\n"
        lr = float(out.name.split("_")[0].removeprefix("fit.lr="))
        seed = int(out.name[-1])
        summary = {"run": str(out), "best_value": 100 * lr + seed, "AUROC": {"pretrained": 0.9 - lr + 0.01 * seed, "twin": 0.8}}
        return 0, f"a table\n{json.dumps(summary)}\n", ""


def test_every_point_and_seed_is_run_once_with_its_own_flags(tmp_path, capsys):
    runs = Runs()
    summary = sweep.run(app(*GRID, "--out", tmp_path / "s"), runs)
    assert summary["runs"] == 8 and summary["points"] == 4 and len(runs.commands) == 8
    first = runs.commands[0]
    assert first[first.index("--fit.lr") + 1] == "1e-3" and first[first.index("--model.kernel") + 1] == "3" and first[first.index("--fit.seed") + 1] == "0"
    assert summary["lowest_val_loss"] == {"fit.lr": "3e-4", "model.kernel": "3"}
    lines = list(csv.DictReader((tmp_path / "s/table.csv").read_text().splitlines()))
    assert [(line["fit.lr"], line["model.kernel"], line["seed"]) for line in lines] == [(a, b, s) for a in ("1e-3", "3e-4") for b in "35" for s in "01"]
    assert float(lines[5]["pretrained"]) == pytest.approx(0.9 - 3e-4 + 0.01)
    said = (tmp_path / "s/table.md").read_text()
    assert "| 1e-3 | 3 | 2 | 0.6 | 0.904 [0.899, 0.909] | 0.8 | 0 |" in said
    assert said in capsys.readouterr().out


def test_failures_are_named_and_only_they_are_tried_again(tmp_path):
    flags = [*GRID, "--out", tmp_path / "s"]
    bad = "fit.lr=3e-4_model.kernel=5_seed1"
    with pytest.raises(console.Failed, match=rf"1 of 8 runs failed \({bad}: kernel must be odd\).*tries them again"):
        sweep.run(app(*flags), Runs(fails=[bad]))
    assert "| 3e-4 | 5 | 1 |" in (tmp_path / "s/table.md").read_text()
    assert "kernel must be odd" in (tmp_path / f"s/{bad}.log").read_text()
    again = Runs()
    assert sweep.run(app(*flags), again)["runs"] == 8
    assert len(again.commands) == 1 and bad in again.commands[0][-3]
    more = Runs()
    sweep.run(app(*GRID[:5], "3", *GRID[6:], "--out", tmp_path / "s"), more)
    assert len(more.commands) == 4, "a third seed at each of four points"


def test_a_run_that_was_stopped_is_resumed(tmp_path):
    flags = [*GRID, "--out", tmp_path / "s"]
    cut = "fit.lr=1e-3_model.kernel=5_seed0"
    with pytest.raises(console.Stopped, match="give the same command again"):
        sweep.run(app(*flags), Runs(stops=[cut]))
    again = Runs()
    sweep.run(app(*flags), again)
    resumed = [command for command in again.commands if "--resume" in command]
    assert [Path(command[command.index("--resume") + 1]).name for command in resumed] == [cut]


def test_what_cannot_be_swept_is_refused_before_anything_runs(tmp_path):
    for flags, message in (
        (["--grid", "fit.lr"], "must read FIELD=VALUE"),
        (["--grid", "fit.lr=1e-3,1e-3"], "different values"),
        (["--grid", "fit.lr=1e-3", "--set", "fit.lr=2"], "can be named once"),
        (["--grid", "fit.seed=1,2"], "fit.seed is what --seeds counts"),
        (["--seeds", "0"], "at least 1"),
        (["--set", "fit.lr"], "--set must read FIELD=VALUE"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep.run(app(*flags, "--out", tmp_path / "s"), Runs())
    with pytest.raises(SystemExit):
        sweep.run(app("--grid", "fit.learning=1,2", "--out", tmp_path / "s"), Runs())
    assert not (tmp_path / "s").exists()
    sweep.run(app("--data", "store", "--out", tmp_path / "t"), lambda command: (0, '{"best_value": 1.0}', ""))
    with pytest.raises(ValueError, match=r"holds another sweep \(data differ\)"):
        sweep.run(app("--data", "other", "--out", tmp_path / "t"), Runs())


def test_fields_become_flags():
    assert sweep.flag("fit.n_steps", "10") == ["--fit.n-steps", "10"]
    assert sweep.flag("fit.betas", "0.9 0.95") == ["--fit.betas", "0.9", "0.95"]
    assert sweep.flag("model.skips", "False") == ["--model.no-skips"] and sweep.flag("shift", "True") == ["--shift"]


def test_progress_tells_rate_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    clock = iter([100.0, *[100.0] * 2, *[110.0] * 2, 120.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("pretrain", 100) as show:
        show(40, "loss 2")  # a resumed run begins here
        show(60, "loss 1")
    assert "pretrain: 60/100 loss 1, 2/s, 0:00:20 left" in capsys.readouterr().err
    assert console.pace(0, 10, 1.0) == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_reconstructions_of_fixed_windows_go_to_the_sinks(tmp_path):
    prepare.main(["synthetic", "--out", str(tmp_path / "store"), "--option", "n_subjects", "24", "minutes", "0.5"])
    flags = ["himae_ppg", "--size", "tiny", "--data", str(tmp_path / "store"), "--no-table", "--fit.n-steps", "6", "--fit.batch-size", "16"]
    pretrain.main([*flags, "--figure-every", "3", "--sinks", "tensorboard", "--out", str(tmp_path / "run")])
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["figure"]) for line in lines if "figure" in line] == [(3, "reconstruction"), (6, "reconstruction")]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "run/tensorboard"))
    found.Reload()
    pictures = found.Images("reconstruction")
    assert [image.step for image in pictures] == [3, 6]
    assert pictures[0].encoded_image_string == (tmp_path / "run/figures/reconstruction_3.png").read_bytes()
    assert len(Store(tmp_path / "store")) > 0 and found.Scalars("loss")
