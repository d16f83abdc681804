from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from physio_train.run import Run
from physio_train.sinks import Fan, JsonLines

CONFIG = {"fit": {"lr": 0.1, "betas": (0.9, 0.99)}, "data": Path("store"), "seed": np.int64(3)}


def test_a_new_run_holds_its_documents(tmp_path):
    run = Run.create(tmp_path / "a", CONFIG, contract={"fs": 25}, seen={"subjects": ["p1"]})
    assert run.config == {"fit": {"lr": 0.1, "betas": [0.9, 0.99]}, "data": "store", "seed": 3}
    assert json.loads((run.path / "contract.json").read_text()) == {"fs": 25}
    assert json.loads((run.path / "seen.json").read_text()) == {"subjects": ["p1"]}


def test_a_folder_with_something_in_it_is_never_trained_over(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="resume"):
        Run.create(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_opening_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        Run.open(tmp_path)


def test_resuming_drops_metrics_after_the_checkpoint_and_a_line_cut_by_a_kill(tmp_path):
    run = Run.create(tmp_path / "a", CONFIG)
    (run.checkpoints / "step_2").mkdir(parents=True)
    log = JsonLines(run.metrics_path)
    for step in (1, 2, 3):
        log.numbers(step, {"loss": float(step)})
    log.close()
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4, "lo')
    again = Run.resume(run.path, CONFIG)
    assert [line["step"] for line in again.metrics()] == [1, 2]
    assert again.latest_checkpoint().name == "step_2"


def test_resuming_with_another_config_names_the_keys(tmp_path):
    run = Run.create(tmp_path / "a", CONFIG)
    changed = CONFIG | {"fit": {"lr": 0.2, "betas": (0.9, 0.99)}, "data": Path("moved")}
    with pytest.raises(ValueError, match=r"data .*fit\.lr"):
        Run.resume(run.path, changed)
    assert run.config["fit"]["lr"] == 0.1
    Run.resume(run.path, changed, changeable=["data", "fit.lr"])
    assert run.config == {"fit": {"lr": 0.2, "betas": [0.9, 0.99]}, "data": "moved", "seed": 3}, "what was changed is kept"


def test_best_is_replaced_only_by_something_better(tmp_path):
    run = Run.create(tmp_path / "a", CONFIG)
    assert run.update_best(1, "loss", 0.5) and not run.update_best(2, "loss", 0.6) and not run.update_best(3, "loss", float("nan"))
    assert run.best == {"step": 1, "metric": "loss", "value": 0.5} and run.keep() == {1}
    assert run.update_best(4, "auroc", 0.7, higher_is_better=True)


def test_the_best_checkpoint_falls_back_to_the_newest(tmp_path):
    run = Run.create(tmp_path / "a", CONFIG)
    assert run.best_checkpoint() is None
    for step in (1, 2):
        (run.checkpoints / f"step_{step}").mkdir(parents=True)
    assert run.best_checkpoint().name == "step_2"
    run.update_best(1, "loss", 0.5)
    assert run.best_checkpoint().name == "step_1"


def test_json_lines_are_valid_json_even_for_nan(tmp_path):
    log = Fan(JsonLines(tmp_path / "a"), JsonLines(tmp_path / "b"))
    log.numbers(1, {"loss": float("nan"), "lr": 0.5})
    log.figure(2, "waves", Path("figures/waves.png"))
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "b").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": None, "lr": 0.5}, {"step": 2, "figure": "waves", "path": "figures/waves.png"}]


def test_a_run_stops_after_validations_without_a_better_one(tmp_path):
    run = Run.create(tmp_path / "a", CONFIG)
    assert not run.should_stop(50, validate_every=10, patience=2), "nothing validated yet"
    run.update_best(20, "val_loss", 0.5)
    assert [run.should_stop(step, validate_every=10, patience=2) for step in (20, 30, 40)] == [False, False, True]
    assert not run.should_stop(1000, validate_every=10, patience=None)


def test_windows_of_a_batch_that_was_not_finite_are_written_and_never_over(tmp_path):
    run = Run.create(tmp_path / "a", CONFIG)
    found = {"step": 7, "what": "loss", "rank": 1, "indices": [4, 2**48 + 1], "last_saved": tmp_path / "step_6"}
    first, second = run.record_non_finite(found), run.record_non_finite(found | {"indices": [9]})
    assert first.name == "non_finite_step_7_rank_1.json" and json.loads(first.read_text())["indices"] == [4, 2**48 + 1]
    assert second != first and json.loads(second.read_text())["indices"] == [9]
