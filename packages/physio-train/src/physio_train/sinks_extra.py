"""Sinks of other tools, each an extra imported when one is opened: TensorBoard, Weights & Biases (offline) and MLflow (files).

All write below one folder and need no server and no network. Formats: TensorBoard's event records and MLflow's file store, through their own
packages.
"""

from __future__ import annotations

import importlib
import math
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from physio_train.sinks import Sink

EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Sink -> the extra of physio-train that brings its package."""


def open_sink(name: str, folder: Path | str, *, run: str, config: Mapping[str, Any] | None = None, step: int = 0) -> Sink:
    """A sink by name that writes below `folder`. `run` names the run, `config` is what made it, `step` where a resumed run goes on.

    ValueError for an unknown name, and where the package is not installed (it names the extra).
    """
    if name not in EXTRAS:
        raise ValueError(f"sink must be one of {', '.join(EXTRAS)}, got {name!r}")
    kind = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MlFlow}[name]
    return kind(Path(folder), run=run, config=config or {}, step=step)


class TensorBoard:
    """Event records in FOLDER/tensorboard. A resumed run hides what an interrupted one wrote after the step it goes on from."""

    def __init__(self, folder: Path, *, run: str, config: Mapping[str, Any], step: int) -> None:
        writer = _imported("tensorboard", "tensorboard.summary.writer.event_file_writer")
        self._events = _imported("tensorboard", "tensorboard.compat.proto.event_pb2")
        self._summaries = _imported("tensorboard", "tensorboard.compat.proto.summary_pb2")
        self._writer = writer.EventFileWriter(str(folder / "tensorboard"))
        if step:
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            self._writer.add_event(self._events.Event(wall_time=time.time(), step=step + 1, session_log=start))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, [self._summaries.Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def figure(self, step: int, name: str, path: Path) -> None:
        width, height = png_size(path)
        image = self._summaries.Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=path.read_bytes())
        self._add(step, [self._summaries.Summary.Value(tag=name, image=image)])

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, values: list[Any]) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, summary=self._summaries.Summary(value=values)))


class WeightsAndBiases:
    """An offline run in FOLDER/wandb; `wandb sync FOLDER/wandb/offline-run-*` uploads it where that is wanted."""

    def __init__(self, folder: Path, *, run: str, config: Mapping[str, Any], step: int) -> None:
        self._wandb = _imported("wandb", "wandb")
        folder.mkdir(parents=True, exist_ok=True)
        quiet = self._wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
        self._run = self._wandb.init(project="physio", name=run, dir=str(folder), mode="offline", config=dict(config), settings=quiet)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def figure(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


class MlFlow:
    """A run in the file store FOLDER/mlruns; figures are its artifacts."""

    def __init__(self, folder: Path, *, run: str, config: Mapping[str, Any], step: int) -> None:
        tracking = _imported("mlflow", "mlflow.tracking")
        allow_files = getattr(_imported("mlflow", "mlflow.environment_variables"), "MLFLOW_ALLOW_FILE_STORE", None)
        if allow_files is not None:  # newer versions want files, which need no database, to be asked for
            allow_files.set(True)
        self._entities = _imported("mlflow", "mlflow.entities")
        store = (folder / "mlruns").absolute()
        store.mkdir(parents=True, exist_ok=True)
        self._client = tracking.MlflowClient(tracking_uri=store.as_uri())
        experiment = self._client.get_experiment_by_name("physio")
        identity = experiment.experiment_id if experiment else self._client.create_experiment("physio")
        self._id = self._client.create_run(identity, run_name=run).info.run_id
        for key, value in flat(config).items():
            self._client.log_param(self._id, key, str(value)[:500])

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[self._entities.Metric(name, value, now, step) for name, value in values.items() if math.isfinite(value)])

    def figure(self, step: int, name: str, path: Path) -> None:
        self._client.log_artifact(self._id, str(path), artifact_path=f"{name}/step_{step}")

    def close(self) -> None:
        self._client.set_terminated(self._id)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def png_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header. ValueError for what is no PNG."""
    head = path.read_bytes()[:24]
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"{path} is no PNG: figures are given as PNG files")
    return struct.unpack(">II", head[16:24])


def _imported(sink: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"the sink {sink!r} needs an extra that is not installed ({error}): pip install 'physio-train[{EXTRAS[sink]}]'") from None
