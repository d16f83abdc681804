"""From an exported folder to one in eight-bit integers: static quantisation by ONNX Runtime's tools, layers that lose too much left in float.

Activations are unsigned, weights signed and per output channel; ranges are the least and greatest values on training windows. Each
product layer is first quantised alone and its error measured; then all are, and as long as the whole is too far from float the layer
that alone did the most harm goes back. Shape letters: N windows, C channels, T samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physio_models import export
from physio_models.export import Exported, ExportError

PRODUCTS = ("Conv", "MatMul", "Gemm")
BATCH = 32


class CalibrationError(ExportError):
    """There is nothing to calibrate on."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What quantisation did: the error of each layer alone, the layers left in float, and the error of the whole; each relative to the output's own spread."""

    alone: Mapping[str, float]
    kept_float: tuple[str, ...]
    error: float
    n_quantized: int
    n_windows: int


def export_int8(source: Path | str, folder: Path | str, windows_NCT: np.ndarray | None, *, tolerance: float = 0.05, n_check: int = 64) -> Quantized:
    """Quantise the exported folder ``source`` into ``folder``, which appears whole or not at all.

    ``windows_NCT`` are windows of training folds in the contract's unit, never test windows: their ranges calibrate, and ``n_check`` of them
    measure. ``tolerance`` is the largest root-mean-square error of the last output (scores where there is a head, else embeddings) over its
    standard deviation across windows. `CalibrationError` without windows; ``ValueError`` for windows of another shape.
    """
    exported = Exported(source)
    if exported.precision != "float32":
        raise ExportError(f"{source} is {exported.precision} already; quantise a float export (--to onnx)")
    windows_NCT = _checked(exported, windows_NCT)
    check_NCT = windows_NCT[:: max(1, len(windows_NCT) // n_check)][:n_check]
    made_from = Path(source) / export.MODEL
    expected = _last(exported, check_NCT)
    with tempfile.TemporaryDirectory() as scratch, export.new_folder(folder) as made:
        ranges = _ranges(made_from, windows_NCT, Path(scratch), exported.session.get_inputs()[0].name)
        layers = _layers_with_weights(made_from)
        if not layers:
            raise ExportError(f"{source} has no {', '.join(PRODUCTS)} layer with weights: there is nothing to quantise")

        def error_of(chosen: Iterable[str], file: Path) -> float:
            _quantize(made_from, file, ranges, list(chosen))
            given = export.open_session(file)
            return _relative(_last_of(given, check_NCT), expected)

        alone = {layer: error_of([layer], Path(scratch) / "one.onnx") for layer in layers}
        kept, error = _without_the_worst(alone, tolerance, lambda chosen: error_of(chosen, made / export.MODEL))
        if len(kept) == len(layers):
            raise ExportError(f"every layer of {source} loses more than tolerance={tolerance:g} in int8: use the float export, or raise the tolerance")
        report = Quantized(alone=alone, kept_float=kept, error=error, n_quantized=len(layers) - len(kept), n_windows=len(windows_NCT))
        _finish(exported, made, report)
    return report


def _without_the_worst(alone: Mapping[str, float], tolerance: float, error_of: Callable[[list[str]], float]) -> tuple[tuple[str, ...], float]:
    """The layers to leave in float, worst first, until the rest is within the tolerance, and the error then."""
    by_harm = sorted(alone, key=alone.__getitem__, reverse=True)
    n, error = 0, error_of(list(alone))
    while error > tolerance and n < len(by_harm):
        n += max(1, n // 4)
        chosen = by_harm[n:]
        error = error_of(chosen) if chosen else 0.0
    return tuple(by_harm[:n]), error


def _checked(exported: Exported, windows_NCT: np.ndarray | None) -> np.ndarray:
    if exported.session.get_inputs()[0].name != "signal":
        raise ExportError("a model that reads tokens is not quantised: export it with --to onnx")
    if windows_NCT is None or not len(windows_NCT):
        raise CalibrationError("int8 is calibrated on training windows and none were given: name a store with --data STORE, whose train fold is read")
    shape = (len(exported.contract.channels), exported.contract.n_samples)
    windows_NCT = np.asarray(windows_NCT, np.float32)
    if windows_NCT.ndim != 3 or windows_NCT.shape[1:] != shape:
        raise ValueError(f"windows_NCT must be (N, {shape[0]}, {shape[1]}) as the contract says, got {windows_NCT.shape}")
    return windows_NCT


def _ranges(file: Path, windows_NCT: np.ndarray, scratch: Path, name: str) -> Any:
    """Least and greatest value of every tensor that a product reads or writes."""
    from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

    class Windows(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{name: windows_NCT[i : i + BATCH]} for i in range(0, len(windows_NCT), BATCH)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    calibrator = create_calibrator(file, list(PRODUCTS), augmented_model_path=str(scratch / "augmented.onnx"))
    calibrator.collect_data(Windows())
    return calibrator.compute_data()


def _quantize(source: Path, file: Path, ranges: Any, layers: list[str]) -> None:
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    quantizer = QDQQuantizer(
        onnx.load(str(source)),
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=layers,
        nodes_to_exclude=[],
        op_types_to_quantize=list(PRODUCTS),
        extra_options={},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(file), False)


def _layers_with_weights(file: Path) -> list[str]:
    """Products with a constant matrix in float32, rather than of two activations."""
    import onnx

    graph = onnx.load(str(file)).graph
    weights = {one.name for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    return [node.name for node in graph.node if node.op_type in PRODUCTS and weights.intersection(node.input[1:2])]


def _last(exported: Exported, x_NCT: np.ndarray) -> np.ndarray:
    return _last_of(exported.session, x_NCT)


def _last_of(session: Any, x_NCT: np.ndarray) -> np.ndarray:
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x_NCT[i : i + BATCH]})[-1] for i in range(0, len(x_NCT), BATCH)])


def _relative(given: np.ndarray, expected: np.ndarray) -> float:
    spread = float(np.sqrt(np.mean((expected - expected.mean(0)) ** 2)))
    return float(np.sqrt(np.mean((given - expected) ** 2))) / max(spread, 1e-12)


def _finish(exported: Exported, made: Path, report: Quantized) -> None:
    """The rest of the folder: the float one's, with the golden output and the card of this graph."""
    session = export.open_session(made / export.MODEL)
    with np.load(exported.folder / export.GOLDEN) as stored:
        golden = {key: stored[key] for key in ("input", "channels", "units", "fs")}
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"signal": export.by_name(golden, exported.contract)}), strict=True))
    lines = [f"| {layer} | {error:.4f} | {'float' if layer in report.kept_float else 'int8'} |" for layer, error in report.alone.items()]
    table = ["| layer | its error alone | here |", "|---|---|---|", *lines]
    told = (
        f"Calibrated on {report.n_windows} training windows; {report.n_quantized} layers are int8, {len(report.kept_float)} stay in float. "
        f"The last output's error is {report.error:.4f} of its spread over windows."
    )
    card = "\n\n".join([(exported.folder / export.CARD).read_text(encoding="utf-8").rstrip(), "## Eight-bit integers", told, "\n".join(table)])
    export.write_folder(made, exported.contract, "int8", session, golden, outputs, exported.labels, card, export.CLOSE)
