"""Where a run's numbers go: anything with three methods. The JSON-lines file is the one that every run has."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Sink(Protocol):
    """Receives numbers and figures by step; `close` is called once, at the end."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None: ...

    def figure(self, step: int, name: str, path: Path) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line: `{"step": 20, "loss": 0.13, ...}`; a number that is not finite is written as null."""

    def __init__(self, path: Path | str) -> None:
        self._file = Path(path).open("a", encoding="utf-8", buffering=1)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    def figure(self, step: int, name: str, path: Path) -> None:
        self._file.write(json.dumps({"step": step, "figure": name, "path": str(path)}) + "\n")

    def close(self) -> None:
        self._file.close()


class Fan:
    """Several sinks as one."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.numbers(step, values)

    def figure(self, step: int, name: str, path: Path) -> None:
        for sink in self._sinks:
            sink.figure(step, name, path)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
