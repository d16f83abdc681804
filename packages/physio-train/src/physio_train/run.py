"""The run folder: what was trained, on what, how it went, and where it can go on.

RUN/config.json     resolved config, replayable       RUN/metrics.jsonl   numbers by step
    contract.json   what the model's input must be    RUN/best.json       {step, metric, value}
    non_finite_step_N_rank_R.json   the windows of a batch whose loss was NaN or infinite
    seen.json       data and subjects trained on      RUN/checkpoints/, RUN/figures/
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physio_train import checkpoint


@dataclass(frozen=True)
class Run:
    """An existing run folder; make one with `create`, open one with `open`, go on with one with `resume`."""

    path: Path

    @classmethod
    def create(cls, path: Path | str, config: Mapping[str, Any], *, contract: Mapping[str, Any] | None = None, seen: Mapping[str, Any] | None = None) -> Run:
        """Make the folder. FileExistsError where it already holds something: nothing is ever trained over."""
        run = cls(Path(path))
        if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise FileExistsError(f"{run.path} is not empty: choose another folder, or resume the run in it")
        run.figures.mkdir(parents=True)
        for name, document in (("contract", contract), ("seen", seen), ("config", config)):
            if document is not None:
                write_json(run.path / f"{name}.json", document)
        return run

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """An existing run. ValueError where the folder has no config.json."""
        run = cls(Path(path))
        if not (run.path / "config.json").exists():
            raise ValueError(f"{run.path} is no run folder: it has no config.json")
        return run

    @classmethod
    def resume(cls, path: Path | str, config: Mapping[str, Any] | None = None, *, changeable: Collection[str] = ()) -> Run:
        """Open a run to go on with it: metrics after the newest checkpoint are dropped, since they will come again.

        ValueError names the keys in which `config` differs from the run's, `changeable` dotted keys aside; what was changed is kept,
        so that config.json says how the run really went.
        """
        run = cls.open(path)
        if config is not None:
            asked = json.loads(_dump(config))
            checkpoint.check_config(run.config, asked, changeable=changeable)
            if asked != run.config:
                write_json(run.path / "config.json", asked)
        step = checkpoint.steps(run.checkpoints)[-1:] or [0]
        run.truncate_metrics(step[0])
        return run

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.path / "config.json").read_text())

    @property
    def best(self) -> dict[str, Any] | None:
        """`{step, metric, value}` of the best validation so far, or None."""
        file = self.path / "best.json"
        return json.loads(file.read_text()) if file.exists() else None

    def latest_checkpoint(self) -> Path | None:
        """The newest step folder, to resume from; None before the first."""
        return checkpoint.latest(self.checkpoints)

    def best_checkpoint(self) -> Path | None:
        """The best step where one is named and saved, else the newest."""
        best = self.best
        path = self.checkpoints / f"step_{best['step']}" if best else None
        return path if path is not None and path.is_dir() else self.latest_checkpoint()

    def update_best(self, step: int, metric: str, value: float, *, higher_is_better: bool = False) -> bool:
        """Name a step the best if it is; True where it now is. A value that is not finite never is. Save the step first."""
        best = self.best
        if not math.isfinite(value) or (best and (value <= best["value"] if higher_is_better else value >= best["value"])):
            return False
        write_json(self.path / "best.json", {"step": step, "metric": metric, "value": value})
        return True

    def keep(self) -> set[int]:
        """Steps that deleting old checkpoints must spare: the best one."""
        return {self.best["step"]} if self.best else set()

    def should_stop(self, step: int, *, validate_every: int | None, patience: int | None) -> bool:
        """Whether `patience` validations have passed without a better one. Ask one rank, and tell the others."""
        best = self.best
        return patience is not None and validate_every is not None and best is not None and step - best["step"] >= patience * validate_every

    def record_non_finite(self, found: Mapping[str, Any]) -> Path:
        """Write what `NonFiniteLossError.found` holds, this rank's item indices among it, to a new file; nothing is written over."""
        stem, n = f"non_finite_step_{found['step']}_rank_{found['rank']}", 0
        while (path := self.path / f"{stem}{f'_{n}' if n else ''}.json").exists():
            n += 1
        write_json(path, found)
        return path

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut off by a kill is left out."""
        if not self.metrics_path.exists():
            return []
        complete = self.metrics_path.read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in complete.split("\n") if line]

    def truncate_metrics(self, step: int) -> None:
        """Drop what was logged after a step."""
        if self.metrics_path.exists():
            kept = [line for line in self.metrics() if line["step"] <= step]
            _replace(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file that appears whole or not at all."""
    _replace(path, _dump(document) + "\n")


def _dump(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, default=_plain)


def _plain(value: Any) -> Any:
    """Paths as text, NumPy scalars and arrays as numbers and lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in a JSON file: give plain values")


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
