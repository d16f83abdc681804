"""Encoders as folders that run without PyTorch: one ONNX graph from physical units to embedding and scores, its contract, its proof.

    FOLDER/model.onnx      normalisation, encoder and, where there is one, the head; the batch is free
           contract.json   what the input must be, the graph's inputs and outputs, and its SHA-256
           labels.json     task, classes and thresholds, where there is a head
           golden.npz      an input and the outputs that it must give
           MODEL_CARD.md   what the model is, saw and is worth
           README.md       ten lines of NumPy and ONNX Runtime that check the contract and give the golden output

Norms are folded into the convolutions before them, wavelet transforms and state-space layers become real convolutions. Needs the
extra ``physio-models[onnx]``. Shape letters: B items, C channels, T samples, D features, K scores, L samples of a transform, S scales.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models import cwt_frontend
from physio_models.contract import ContractError, Encoder, InputContract, SignalSpec
from physio_models.cwt import real_filters
from physio_models.interface import Encoded
from physio_models.normalize import normalize_whole
from physio_models.pooling import pool_levels
from physio_models.pretrained import golden_input, golden_tokens
from physio_models.s4d import S4dLayer

MODEL, CONTRACT, LABELS, GOLDEN, CARD, README = "model.onnx", "contract.json", "labels.json", "golden.npz", "MODEL_CARD.md", "README.md"
OPSET = 20
CLOSE = 1e-4  # largest difference of embeddings of unit length, and of scores
Kind = Literal["binary", "multiclass", "multilabel", "regression"]


class ExportError(ValueError):
    """A model that cannot be exported, or an exported folder that cannot be trusted; the message says what mends it."""


class UnsupportedOperatorError(ExportError):
    """The network computes something that ONNX has no operator for."""


class DamagedFolderError(ExportError):
    """An exported folder lacks a file, or its files do not belong together."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What turns features into scores. ``module`` is called with an `Encoded` and gives (B, K)."""

    module: nn.Module
    task: str
    kind: Kind
    classes: tuple[str, ...]  # a name for each score
    thresholds: tuple[float | None, ...] = ()  # score from which a class holds, None where there is none

    def __post_init__(self) -> None:
        if self.thresholds and len(self.thresholds) != len(self.classes):
            raise ValueError(f"thresholds must be one a class, got {len(self.thresholds)} for {self.classes}")


class LinearScores(nn.Module):
    """A linear read-out: pooled levels, standardised, one weighted sum a score, and the link of its kind; all in float32."""

    def __init__(self, *, level: str, pool: str, mean_D: Any, scale_D: Any, coef_DK: Any, intercept_K: Any, kind: Kind) -> None:
        super().__init__()
        self.level, self.pool, self.kind = level, pool, kind
        scale_D = np.asarray(scale_D, np.float64)
        for name, value in (("mean", mean_D), ("gain", np.where(np.isinf(scale_D), 0.0, 1 / scale_D)), ("coef", coef_DK), ("intercept", intercept_K)):
            self.register_buffer(name, torch.from_numpy(np.array(value, np.float32)))

    def forward(self, encoded: Encoded) -> Tensor:
        z_BD = (pool_levels(encoded, self.level, self.pool) - self.mean) * self.gain
        out_BK = z_BD @ self.coef + self.intercept
        return out_BK if self.kind == "regression" else out_BK.softmax(1) if self.kind == "multiclass" else out_BK.sigmoid()


def export_onnx(
    encoder: Encoder, folder: Path | str, *, head: Head | None = None, level: str | None = None, pool: str = "mean", card: str = "", tolerance: float = CLOSE
) -> Path:
    """Write an encoder, with a head where one is given, as a folder that appears whole or not at all; returns it.

    The graph takes ``signal`` (B, C, T) float32 in the contract's unit and polarity (``ids`` (B, N) where the model reads tokens) and
    gives ``embedding`` (B, D), a level's tokens pooled (None: the model's own pooled vector), and ``scores`` (B, K). It is run on
    several batch sizes and must give PyTorch's numbers. `UnsupportedOperatorError` names the operator that stands in the way,
    `ExportError` a graph that differs; ``FileExistsError`` where the folder holds something.
    """
    library()
    contract = encoder.contract
    network = _Network(_exportable(encoder.model), contract, head, level, pool).eval()
    x = _examples(encoder, 2)
    with new_folder(folder) as made:
        _to_onnx(network, x, made / MODEL)
        session = open_session(made / MODEL)
        for n in (1, 3):
            _check_same(network, session, _examples(encoder, n), network.names, tolerance)
        golden = _golden(contract, encoder, session.get_inputs()[0].name)
        with torch.no_grad():
            outputs = dict(zip(network.names, (value.numpy() for value in network(torch.from_numpy(by_name(golden, contract)))), strict=True))
        write_folder(made, contract, "float32", session, golden, outputs, head, card or _plain_card(encoder), tolerance)
    return Path(folder)


class Exported:
    """An exported folder, checked and opened: called with (x, spec) as an `Encoder` is, it gives its outputs by name.

    `DamagedFolderError` where a file is missing, truncated or not the contract's own, `ContractError` for input that does not fit.
    """

    def __init__(self, folder: Path | str, *, n_threads: int = 1) -> None:
        self.folder = Path(folder)
        document = _document(self.folder)
        self.contract = InputContract.from_json(document["input"])
        self.precision: str = document["model"]["precision"]
        self.labels: dict[str, Any] | None = json.loads((self.folder / LABELS).read_text(encoding="utf-8")) if (self.folder / LABELS).is_file() else None
        digest = hashlib.sha256((self.folder / MODEL).read_bytes()).hexdigest()
        if digest != document["model"]["sha256"]:
            raise DamagedFolderError(
                f"{self.folder / MODEL} is not the model that {CONTRACT} names ({digest[:12]} instead of {document['model']['sha256'][:12]}): "
                "it was truncated, changed or copied from another folder; export it again"
            )
        self.session = open_session(self.folder / MODEL, n_threads)
        self.names = tuple(output.name for output in self.session.get_outputs())

    def __call__(self, x_BCT: np.ndarray, spec: SignalSpec) -> dict[str, np.ndarray]:
        """``embedding`` (B, D) and, with a head, ``scores`` (B, K) of windows as ``spec`` describes them."""
        arrangement = self.contract.check(spec)
        x_BCT = np.asarray(x_BCT)
        if x_BCT.ndim != 3 or x_BCT.shape[1:] != (len(spec.channels), spec.n_samples):
            raise ContractError(f"x_BCT must be (batch, {len(spec.channels)}, {spec.n_samples}) as its spec says, got {x_BCT.shape}")
        if spec.n_samples != self.contract.n_samples:
            raise ContractError(
                f"the graph takes windows of {self.contract.n_samples} samples, got {spec.n_samples}: prepare.py ... --window-s {self.contract.window_s:g}"
            )
        factor_C1 = np.array(arrangement.factors)[:, None] * (self.contract.polarity * spec.polarity)
        return self.run((x_BCT[:, list(arrangement.order)] * factor_C1).astype(np.float32))

    def run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The graph as it is, on its own input. ``ValueError`` for a sample that is not finite."""
        if not np.isfinite(x).all():
            raise ValueError(f"the input is not finite in item {int(np.argwhere(~np.isfinite(x))[0][0])}; leave that window out")
        return dict(zip(self.names, self.session.run(None, {self.session.get_inputs()[0].name: x}), strict=True))

    def golden_difference(self) -> float:
        """The largest difference from the outputs that golden.npz keeps."""
        with np.load(self.folder / GOLDEN) as golden:
            outputs = self.run(by_name(golden, self.contract))
            return max(float(np.abs(outputs[name] - golden[name]).max()) for name in self.names)


# Graphs


class _Network(nn.Module):
    """Normalisation, encoder and head as one function of tensors."""

    def __init__(self, model: nn.Module, contract: InputContract, head: Head | None, level: str | None, pool: str) -> None:
        super().__init__()
        self.model, self.scores = model, None if head is None else head.module
        self.contract, self.level, self.pool = contract, level, pool
        self.reads_tokens = getattr(model.cfg, "input", "signal") == "tokens"
        self.names = ("embedding",) if head is None else ("embedding", "scores")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self.reads_tokens:
            x = normalize_whole(x, self.contract.normalization, self.contract.fixed)
        encoded = self.model.encode(x)
        embedding_BD = encoded.pooled_BD if self.level is None else pool_levels(encoded, self.level, self.pool)
        return (embedding_BD,) if self.scores is None else (embedding_BD, self.scores(encoded))


class _RealS4d(nn.Module):
    """An S4D layer as one causal convolution with its kernel, worked out for a length: no transform, no complex number."""

    def __init__(self, layer: S4dLayer, length: int) -> None:
        super().__init__()
        with torch.no_grad():
            kernel_DN = layer.kernel(length)
            kernel_DN[:, 0] += layer.skip
        self.register_buffer("weight_D1N", kernel_DN.flip(1)[:, None].contiguous())

    def forward(self, u_BND: Tensor) -> Tensor:
        u_BDN = F.pad(u_BND.transpose(1, 2), (self.weight_D1N.shape[-1] - 1, 0))
        return F.conv1d(u_BDN, self.weight_D1N, groups=self.weight_D1N.shape[0]).transpose(1, 2)


def _exportable(model: nn.Module) -> nn.Module:
    """A copy whose state-space layers are convolutions; the model itself stays as it is."""
    model = copy.deepcopy(model).cpu().float().eval()
    lengths: dict[nn.Module, int] = {}
    hooks = [
        part.register_forward_pre_hook(lambda part, given: lengths.__setitem__(part, given[0].shape[1]))
        for part in model.modules()
        if isinstance(part, S4dLayer)
    ]
    if hooks:
        with torch.no_grad():
            model.encode(torch.zeros(1, model.cfg.n_channels, model.cfg.n_samples))
        for hook in hooks:
            hook.remove()
    for part in list(model.modules()):
        for name, child in part.named_children():
            if child in lengths:
                setattr(part, name, _RealS4d(child, lengths[child]))
    return model


def _real_cwt(x: Tensor, scales: Sequence[float], *, wavelet: str = "ricker", definition: str = "pywt", output: str = "coefficients") -> Tensor:
    """`cwt.cwt` as real convolutions with the wavelets themselves: (..., L) -> (..., S, L)."""
    length = x.shape[-1]
    x_B1L = x.reshape(-1, 1, length).float()
    parts = []
    for taps_SK, mirrored in real_filters(tuple(scales), wavelet, definition, length):
        reach = taps_SK.shape[1] // 2
        padded = F.pad(x_B1L, (reach, reach), mode="reflect") if mirrored and reach else F.pad(x_B1L, (reach, reach))
        if np.iscomplexobj(taps_SK):
            if output != "magnitude":
                raise ExportError("complex coefficients have no place in a graph of real numbers; take output='magnitude'")
            real, imaginary = (F.conv1d(padded, torch.from_numpy(np.ascontiguousarray(part, np.float32))[:, None]) for part in (taps_SK.real, taps_SK.imag))
            parts.append((real.square() + imaginary.square()).sqrt())
        else:
            y = F.conv1d(padded, torch.from_numpy(taps_SK.astype(np.float32))[:, None])
            parts.append(y.abs() if output == "magnitude" else y)
    return torch.cat(parts, dim=1).reshape(*x.shape[:-1], len(scales), length)


@contextmanager
def _real_arithmetic() -> Iterator[None]:
    """Scalograms by real convolutions for the length of a block."""
    fast = cwt_frontend.cwt
    cwt_frontend.cwt = _real_cwt
    try:
        yield
    finally:
        cwt_frontend.cwt = fast


def _to_onnx(network: _Network, x: Tensor, file: Path) -> None:
    """Trace, translate and save; what cannot be translated is named."""
    free = torch.export.Dim.DYNAMIC
    shape = {0: free, 1: free} if network.reads_tokens else {0: free}
    loud = logging.getLogger("torch.onnx")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), _real_arithmetic():
            program = torch.export.export(network, (x,), dynamic_shapes=(shape,), strict=False)
            graph_input = ["ids" if network.reads_tokens else "signal"]
            made = torch.onnx.export(program, (), input_names=graph_input, opset_version=OPSET, dynamo=True, verbose=False)
        _name_outputs(made.model.graph, network.names)
        made.save(str(file))
        _keep_zero_padding(file)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise _refusal(error) from error
    finally:
        loud.setLevel(level)


def _keep_zero_padding(file: Path) -> None:
    """Zeros before a maximum become part of the signal: ONNX Runtime merges a `Pad` into `MaxPool`, whose own padding is minus infinity."""
    import onnx

    model = onnx.load(str(file))
    graph = model.graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    values |= {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t) for node in graph.node if node.op_type == "Constant" and node.attribute[0].HasField("t")
    }
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    at = [i for i, node in enumerate(graph.node) if node.op_type == "Pad" and node.output[0] in pooled]
    for i in reversed(at):
        pad = graph.node[i]
        pads = values.get(pad.input[1])
        if pads is None or pads[:-1].any():
            raise UnsupportedOperatorError(
                f"padding {pad.name} before a maximum is not at the end of time alone, and ONNX Runtime would pad with minus infinity"
            )
        name, (source, padded) = f"{pad.name}_zeros", (pad.input[0], pad.output[0])
        bounds = {"starts": [-int(pads[-1])], "ends": [2**63 - 1], "axes": [len(pads) // 2 - 1]}
        graph.initializer.extend(onnx.numpy_helper.from_array(np.array(value, np.int64), f"{name}_{key}") for key, value in bounds.items())
        graph.node.remove(pad)
        made = [
            onnx.helper.make_node("Slice", [source, *(f"{name}_{key}" for key in bounds)], [f"{name}_tail"], name=f"{name}_slice"),
            onnx.helper.make_node("Sub", [f"{name}_tail", f"{name}_tail"], [name], name=f"{name}_sub"),
            onnx.helper.make_node("Concat", [source, name], [padded], name=f"{name}_concat", axis=len(pads) // 2 - 1),
        ]
        for node in reversed(made):
            graph.node.insert(i, node)
    if at:
        onnx.save(model, str(file))


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Outputs get their names, and what is called so inside another one."""
    inner = [value for node in graph for value in node.outputs] + list(graph.initializers.values())
    for value in inner:
        if value.name in names:
            value.name = f"{value.name}.inner"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _refusal(error: Exception) -> ExportError:
    """The typed error behind a failed export: the operator where one stands in the way."""
    text, cause = "", error
    while cause is not None:
        text, cause = f"{text}\n{cause}", cause.__cause__ or cause.__context__
    operator = re.search(r"OpOverload\(op='([\w.:]+)'", text)
    if operator:
        return UnsupportedOperatorError(
            f"the network cannot be exported: ONNX has no counterpart of its operator {operator[1]}; compute it from real operators, or run it with PyTorch"
        )
    return ExportError(f"the network cannot be exported: {str(error).strip().splitlines()[0]}; its shape must not depend on values, nor its graph on the batch")


def _check_same(network: _Network, session: Any, x: Tensor, names: Sequence[str], tolerance: float) -> None:
    with torch.no_grad():
        expected = network(x)  # as PyTorch computes it, transforms by FFT and all
    given = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for name, a, b in zip(names, expected, given, strict=True):
        difference = largest_difference(a.numpy(), b) if name == "embedding" else float(np.abs(a.numpy() - b).max())
        if not difference <= tolerance:
            raise ExportError(
                f"the exported graph's {name} differ by {difference:.2g} on {len(x)} windows, more than {tolerance:g}: the export is not sound; report it"
            )


def largest_difference(a_BD: np.ndarray, b_BD: np.ndarray) -> float:
    """Largest absolute difference of embeddings, each divided by the length of its counterpart in ``a``."""
    length_B1 = np.maximum(np.linalg.norm(a_BD, axis=1, keepdims=True), 1e-12)
    return float(np.abs((a_BD - b_BD) / length_B1).max())


# Folders


def _golden(contract: InputContract, encoder: Encoder, name: str) -> dict[str, np.ndarray]:
    """A golden input as its owner may have it: channels the other way round, so that they must be found by name."""
    if name == "ids":
        return {"input": golden_tokens(encoder.model.cfg.n_ids, encoder.model.cfg.n_positions)[0].numpy()}
    x_1CT = golden_input(contract).numpy()[:, ::-1]
    return {
        "input": np.ascontiguousarray(x_1CT),
        "channels": np.array(contract.channels[::-1]),
        "units": np.array(contract.units[::-1]),
        "fs": np.array(contract.fs),
    }


def by_name(golden: Mapping[str, np.ndarray], contract: InputContract) -> np.ndarray:
    if "channels" not in golden:
        return golden["input"]
    channels = golden["channels"].tolist()
    return np.ascontiguousarray(golden["input"][:, [channels.index(name) for name in contract.channels]])


def write_folder(
    made: Path,
    contract: InputContract,
    precision: str,
    session: Any,
    golden: dict,
    outputs: dict,
    head: Head | Mapping[str, Any] | None,
    card: str,
    tolerance: float,
) -> None:
    model = {
        "file": MODEL,
        "sha256": hashlib.sha256((made / MODEL).read_bytes()).hexdigest(),
        "precision": precision,
        "n_samples": contract.n_samples,
        "tolerance": tolerance,
        "inputs": {given.name: given.shape for given in session.get_inputs()},
        "outputs": {given.name: given.shape for given in session.get_outputs()},
    }
    _json(made / CONTRACT, {"input": contract.to_json(), "model": model})
    if isinstance(head, Head):
        head = {"task": head.task, "kind": head.kind, "classes": list(head.classes), "thresholds": list(head.thresholds)}
    if head is not None:
        _json(made / LABELS, head)
    np.savez(made / GOLDEN, **golden, **outputs)
    (made / CARD).write_text(card.rstrip() + "\n", encoding="utf-8")
    (made / README).write_text(_readme(contract, session, head, precision), encoding="utf-8")


LINES = """\
import hashlib, json, numpy, onnxruntime
need, golden = json.load(open("contract.json")), numpy.load("golden.npz")
assert hashlib.sha256(open("model.onnx", "rb").read()).hexdigest() == need["model"]["sha256"], "model.onnx is not this contract's: export again"
channels, units = golden["channels"].tolist(), golden["units"].tolist()
order = [channels.index(name) for name in need["input"]["channels"]]  # by name; ValueError where one is missing
assert float(golden["fs"]) == need["input"]["fs"] and golden["input"].shape[2] == need["model"]["n_samples"], "another rate or length"
assert [units[i] for i in order] == need["input"]["units"], "another unit"
session = onnxruntime.InferenceSession("model.onnx")
output = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"signal": golden["input"][:, order]})))
print({name: float(abs(output[name] - golden[name]).max()) for name in output})
"""
LINES_OF_TOKENS = """\
import hashlib, json, numpy, onnxruntime
need, golden = json.load(open("contract.json")), numpy.load("golden.npz")
assert hashlib.sha256(open("model.onnx", "rb").read()).hexdigest() == need["model"]["sha256"], "model.onnx is not this contract's: export again"
session = onnxruntime.InferenceSession("model.onnx")
output = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"ids": golden["input"]})))
print({name: float(abs(output[name] - golden[name]).max()) for name in output})
"""


def _readme(contract: InputContract, session: Any, head: Mapping[str, Any] | None, precision: str) -> str:
    reads_tokens = session.get_inputs()[0].name == "ids"
    band = (
        "any band"
        if contract.band == "any"
        else "unfiltered"
        if contract.band is None
        else f"filtered to {contract.band[0] or 0:g}-{contract.band[1] or contract.fs / 2:g} Hz ({contract.filter})"
    ) + (f" without {contract.notch_hz:g} Hz" if contract.notch_hz else "")
    channels = ", ".join(f"{name} ({unit})" for name, unit in zip(contract.channels, contract.units, strict=True))
    given = (
        f"`ids` (batch, tokens) int64 of the vocabulary {contract.vocabulary or 'that the model was trained with'}"
        if reads_tokens
        else f"`signal` (batch, {len(contract.channels)}, {contract.n_samples}) float32: {channels} at {contract.fs:g} Hz, {contract.window_s:g} s, {band}; "
        f"`{contract.normalization}` is inside the graph"
    )
    outputs = "; ".join(f"`{one.name}` {tuple(one.shape)}" for one in session.get_outputs())
    said = f"\nScores are of task `{head['task']}`: {', '.join(head['classes'])}; thresholds in `{LABELS}`.\n" if head else ""
    lines = LINES_OF_TOKENS if reads_tokens else LINES
    return (
        f"# An exported model ({precision})\n\nInput: {given}.\n\nOutputs: {outputs}.\n{said}\n"
        "It needs NumPy and ONNX Runtime alone. Run this in the folder: it checks the contract and prints how far each output is from the golden one.\n\n"
        f"```python\n{lines}```\n"
    )


def _plain_card(encoder: Encoder) -> str:
    seen = "not recorded" if encoder.seen is None else f"{len(encoder.seen.get('subjects', []))} subjects of {len(encoder.seen.get('stores', []))} stores"
    state = "as initialised, trained on nothing" if encoder.untrained else f"pretraining saw {seen}"
    return f"# {encoder.name or type(encoder.model).__name__}\n\nWeights: {state}. Their licence and scores were not given; no floor stands beside them.\n"


@contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
    """A temporary folder that becomes the named one when the block ends well."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _document(folder: Path) -> dict[str, Any]:
    absent = [name for name in (MODEL, CONTRACT, GOLDEN) if not (folder / name).is_file()]
    if absent:
        raise DamagedFolderError(f"{folder} is no exported model: it lacks {', '.join(absent)}; make one with export.py --ckpt P --to onnx --out DIR")
    try:
        document = json.loads((folder / CONTRACT).read_text(encoding="utf-8"))
        return {"input": document["input"], "model": document["model"]}
    except (json.JSONDecodeError, KeyError) as error:
        raise DamagedFolderError(f"{folder / CONTRACT} is damaged ({error}); export the model again") from error


def open_session(file: Path, n_threads: int = 1) -> Any:
    runtime = library()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 3
    errors = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    try:
        return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except (errors.InvalidProtobuf, errors.InvalidGraph, errors.NoSuchFile, errors.Fail, errors.RuntimeException, errors.NotImplemented) as error:
        raise DamagedFolderError(f"{file} cannot be run ({str(error).splitlines()[0]}): it is truncated or no ONNX file; export the model again") from error


def _examples(encoder: Encoder, n: int) -> Tensor:
    """Windows unlike one another, by the contract (golden ids, turned, where the model reads tokens)."""
    cfg = encoder.model.cfg
    if getattr(cfg, "input", "signal") == "tokens":
        ids_1N = golden_tokens(cfg.n_ids, cfg.n_positions)[0]
        return torch.cat([ids_1N.roll(i, 1) for i in range(n)])
    draw = torch.Generator().manual_seed(n)
    x_1CT = golden_input(encoder.contract)
    return x_1CT * (1 + torch.arange(n)[:, None, None]) + 0.1 * torch.randn(n, *x_1CT.shape[1:], generator=draw)


def _json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def library() -> Any:
    """ONNX Runtime, where the extra is installed."""
    for name in ("onnx", "onnxscript"):
        _imported(name)
    return _imported("onnxruntime")


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"exported models need {name}: pip install 'physio-models[onnx]'") from error
