"""Export a trained encoder, with its head where the folder has one, as a folder that runs without PyTorch.

uv run apps/export.py --ckpt runs/himae --to onnx --out exported/himae
uv run apps/export.py --ckpt runs/probe --to int8 --data stores/mitdb --out exported/himae-int8
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn

import compose
import console
from console import say
from physio_data.store import Store, Stores
from physio_models.contract import Encoder
from physio_models.export import CARD, Exported, Head, LinearScores, export_onnx
from physio_models.export_int8 import CalibrationError, export_int8
from physio_models.interface import Encoded
from physio_models.pretrained import from_pretrained
from physio_models.reference import reference_encoder
from physio_train import probe as probes


@dataclass(frozen=True, kw_only=True)
class Export:
    """A trained model as a folder of its own."""

    ckpt: Path
    """A run, step or saved folder, or one of probe.py or finetune.py, whose head goes into the graph."""
    to: Literal["onnx", "int8"]
    """onnx: float32; int8: eight-bit integers where they lose little."""
    out: Path
    """Folder to make."""
    data: tuple[Path, ...] = ()
    """Stores; int8 is calibrated on their training windows."""
    use: tuple[str, ...] = ("train",)
    """Folds of the stores to calibrate on."""
    windows: int = 512
    """Windows to calibrate on."""
    tolerance: float = 0.05
    """int8: the error allowed, as a share of the output's spread over windows; layers go back to float until it is met."""
    level: str | None = None
    """Without a head: the level whose tokens are pooled. Default: the model's own pooled vector."""
    pool: Literal["mean", "max", "std", "peak", "mean+max", "mean+std", "mean+max+std"] = "mean"
    """With --level: how."""
    reference: str | None = None
    """Row of MODELS whose original wrote the file that --ckpt names."""
    dry_run: bool = False
    """Read everything, say what would be exported, write nothing."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Export, args=list(arguments), description=console.paragraphs(__doc__))
    encoder = reference_encoder(app.reference, app.ckpt) if app.reference else from_pretrained(app.ckpt)
    head = None if app.reference else head_of(app.ckpt)
    windows_NCT = calibration(app, encoder) if app.to == "int8" else None
    if app.dry_run:
        contract = encoder.contract
        return {
            "dry_run": True,
            "model": encoder.name,
            "input": [len(contract.channels), contract.n_samples],
            "head": None if head is None else head.task,
            "calibration_windows": None if windows_NCT is None else len(windows_NCT),
        }
    given = {"head": head, "level": app.level, "pool": app.pool, "card": card_of(app.ckpt)}
    said: dict[str, object] = {}
    if app.to == "onnx":
        export_onnx(encoder, app.out, **given)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            source = export_onnx(encoder, Path(scratch) / "float", **given)
            report = export_int8(source, app.out, windows_NCT, tolerance=app.tolerance)
        say(f"int8: {report.n_quantized} layers; in float: {', '.join(report.kept_float) or 'none'}; error {report.error:.4f} of the output's spread")
        said = {"int8_layers": report.n_quantized, "float_layers": len(report.kept_float), "error": report.error}
    exported = Exported(app.out)
    size = sum(file.stat().st_size for file in app.out.iterdir())
    return {"out": app.out, "to": app.to, "outputs": list(exported.names), "bytes": size, "golden_difference": exported.golden_difference()} | said


def head_of(ckpt: Path) -> Head | None:
    """The head that a folder of probe.py or finetune.py holds, as a part of a graph."""
    meta = ckpt / probes.META_FILE
    if not meta.is_file():
        return None
    if "finetuned" in json.loads(meta.read_text(encoding="utf-8")):
        return tuned_head(ckpt)
    probe = probes.load(ckpt)
    kind, task = probe.config.kind, probe.more["task"]
    linear = LinearScores(
        level=probe.more["level"],
        pool=probe.more["pool"],
        mean_D=probe.mean_D,
        scale_D=probe.scale_D,
        coef_DK=probe.coef_DK,
        intercept_K=probe.intercept_K,
        kind=kind,
    )
    classes = probe.classes if kind in ("multiclass", "multilabel") else (task,)
    thresholds = tuple(None if np.isnan(t) else float(t) for t in np.broadcast_to(probe.threshold_K, len(classes)))
    return Head(module=linear, task=task, kind=kind, classes=tuple(classes), thresholds=thresholds)


class TunedScores(nn.Module):
    """A fine-tuned head and the link of its objective."""

    def __init__(self, classifier: nn.Module, objective: nn.Module) -> None:
        super().__init__()
        self.head, self.names, self.objective = classifier.head.eval(), classifier.names, objective

    def forward(self, encoded: Encoded) -> Tensor:
        return self.objective.scores(self.head([encoded.levels[name] for name in self.names], None))


def tuned_head(ckpt: Path) -> Head:
    saved = importlib.import_module("downstream").load(ckpt)
    tuned = saved.scores.__self__
    thresholds = tuple(None if np.isnan(t) else float(t) for t in np.broadcast_to(saved.threshold_K, len(saved.task.columns)))
    module = TunedScores(tuned.classifier, tuned.objective)
    return Head(module=module, task=saved.task.name, kind=saved.task.kind, classes=tuple(saved.task.columns), thresholds=thresholds)


def calibration(app: Export, encoder: Encoder) -> np.ndarray:
    """Windows (N, C, T) of the named folds as the graph takes them, evenly over the rows."""
    if not app.data:
        raise CalibrationError("--to int8 is calibrated on training windows: name the store that the model was trained on with --data STORE")
    store = compose.open_stores(app.data)
    rows_N = compose.rows_of(store, app.use)
    if not len(rows_N):
        raise CalibrationError(f"folds {', '.join(app.use)} of {', '.join(map(str, app.data))} hold no window: name folds with --use")
    return in_contract(store, rows_N[np.unique(np.linspace(0, len(rows_N) - 1, app.windows).astype(np.int64))], encoder)


def in_contract(store: Store | Stores, rows_N: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Windows in the order, unit and polarity of the contract, not normalised."""
    spec = compose.spec_of(store)
    arrangement = encoder.contract.check(spec)
    factor_C1 = np.array(arrangement.factors)[:, None] * (encoder.contract.polarity * spec.polarity)
    x_NCT = store.batch(rows_N)["signal"][:, list(arrangement.order)]
    return (np.asarray(x_NCT, np.float64) * factor_C1).astype(np.float32)


def card_of(ckpt: Path) -> str:
    """The card that came with the model, or nothing."""
    return next((path.read_text(encoding="utf-8") for path in (ckpt / CARD, ckpt / "README.md") if path.is_file()), "")


if __name__ == "__main__":
    torch.set_num_threads(1)
    console.run(main)
