"""What is sent to a sink can be read back from its files, without a server or a network."""

from __future__ import annotations

import json
import struct
import sys
import time
import zlib

import pytest

from physio_train import sinks_extra
from physio_train.sinks import Fan, JsonLines
from physio_train.sinks_extra import open_sink

VALUES = {1: {"loss": 2.5, "lr": 0.125}, 2: {"loss": 1.5, "lr": 0.0625}}


@pytest.fixture
def png(tmp_path):
    """A grey picture of 3 x 2 pixels, written by hand."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "figure.png"
    rows = b"".join(b"\x00" + bytes([10 * y, 20, 30]) for y in range(2))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def feed(sink, png):
    for step, values in VALUES.items():
        sink.numbers(step, values)
    sink.figure(2, "reconstruction", png)
    sink.close()


def test_several_sinks_get_the_same_and_figures_have_a_line(tmp_path, png):
    feed(Fan(JsonLines(tmp_path / "a"), JsonLines(tmp_path / "b")), png)
    lines = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert lines == [{"step": 1, **VALUES[1]}, {"step": 2, **VALUES[2]}, {"step": 2, "figure": "reconstruction", "path": str(png)}]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_unknown_sink_and_a_missing_extra_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="sink must be one of tensorboard, wandb, mlflow, got 'comet'"):
        open_sink("comet", tmp_path, run="a")
    for name, module in (("tensorboard", "tensorboard.summary.writer.event_file_writer"), ("wandb", "wandb"), ("mlflow", "mlflow.tracking")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ValueError, match=rf"pip install 'physio-train\[{name}\]'"):
            open_sink(name, tmp_path, run="a")


def test_a_figure_that_is_no_png_is_refused(tmp_path, png):
    assert sinks_extra.png_size(png) == (3, 2)
    (tmp_path / "a.txt").write_text("no picture")
    with pytest.raises(ValueError, match="is no PNG"):
        sinks_extra.png_size(tmp_path / "a.txt")


def test_nested_settings_become_dotted_keys():
    assert sinks_extra.flat({"a": 1, "b": {"c": 2, "d": {"e": 3}}}) == {"a": 1, "b.c": 2, "b.d.e": 3}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_tensorboard_reads_the_numbers_and_the_figure(tmp_path, png):
    pytest.importorskip("tensorboard")
    feed(open_sink("tensorboard", tmp_path, run="a"), png)
    resumed = open_sink("tensorboard", tmp_path, run="a", step=1)
    resumed.numbers(2, {"loss": 0.5})
    resumed.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 2.5), (2, 0.5)], "the interrupted run's later step is hidden"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_tensorboard_keeps_a_figure(tmp_path, png):
    pytest.importorskip("tensorboard")
    feed(open_sink("tensorboard", tmp_path, run="a"), png)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(image.step, image.width, image.height, image.encoded_image_string) for image in found.Images("reconstruction")] == [(2, 3, 2, png.read_bytes())]


def log_records(content):
    """Records of a file in LevelDB's log format: blocks of 32 KiB, behind W&B's header of seven bytes, pieces of a record marked first, middle, last."""
    at, pieces = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        pieces += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield pieces
            pieces = b""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_weights_and_biases_writes_an_offline_run(tmp_path, png):
    pytest.importorskip("wandb")
    pytest.importorskip("PIL")
    feed(open_sink("wandb", tmp_path, run="a", config={"fit": {"lr": 1e-3}}), png)
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 30  # wandb's own process may still be writing
    while True:
        history = []
        for data in log_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                history.append({(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item})
        if len(history) == len(VALUES) or time.monotonic() > until:
            break
        time.sleep(0.5)
    assert [line["loss"] for line in history] == [2.5, 1.5]
    assert "reconstruction/path" in history[1]
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/*.png"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_keeps_numbers_settings_and_figures_in_files(tmp_path, png):
    pytest.importorskip("mlflow")
    feed(open_sink("mlflow", tmp_path, run="a", config={"fit": {"lr": 1e-3}}), png)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("physio")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["fit.lr"] == "0.001" and run.info.run_name == "a" and run.info.status == "FINISHED"
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")] == [(1, 2.5), (2, 1.5)]
    assert client.list_artifacts(run.info.run_id, "reconstruction/step_2")[0].path == "reconstruction/step_2/figure.png"
