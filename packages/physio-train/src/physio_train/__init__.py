"""Train, checkpoint, embed and honestly probe encoders of physiological signals."""

from __future__ import annotations

from physio_train.batches import AddNoise, Batches, RandomCrop
from physio_train.config import FitConfig
from physio_train.distributed import RankLostError, World, session, unwrap, world
from physio_train.loop import Loss, OutOfDeviceMemoryError, Progress, Step, fit, validate
from physio_train.run import Run
from physio_train.sinks import Fan, JsonLines, Sink
from physio_train.state import NonFiniteLossError, TrainState
from physio_train.streams import VALIDATION_EPOCH, Streams

__all__ = [
    "VALIDATION_EPOCH",
    "AddNoise",
    "Batches",
    "Fan",
    "FitConfig",
    "JsonLines",
    "Loss",
    "NonFiniteLossError",
    "OutOfDeviceMemoryError",
    "Progress",
    "RandomCrop",
    "RankLostError",
    "Run",
    "Sink",
    "Step",
    "Streams",
    "TrainState",
    "World",
    "fit",
    "session",
    "unwrap",
    "validate",
    "world",
]
