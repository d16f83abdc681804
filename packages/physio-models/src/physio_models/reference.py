"""Read the files of the original systems, as tensors alone: no code in them is run.

HiMAE (Simonlee711/HiMAE): Lightning checkpoints (``model.`` before every key), plain state dicts, the notebook's probe
(``fc.*``) and the script's probe (``classifier.*`` with the whole ``backbone.*``). Ti-MAE and mamba_ssm: `reference_ti_mae`.
PaPaGei: `reference_papagei`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from physio_models import nearest
from physio_models.contract import ANY, Encoder, InputContract
from physio_models.himae import HiMaeConfig
from physio_models.pretrained import build_untrained, load_strictly
from physio_models.reference_files import Reference, linear, read, take_prefix
from physio_models.reference_papagei import load_papagei, papagei_contract
from physio_models.reference_ti_mae import read_mamba2, read_ti_mae, read_ti_mae_mamba, ti_mae_contract


def load_reference(name: str, path: Path | str) -> Reference:
    """Read an original's file for a row of MODELS, or ``mamba2``. What shapes a network has follows from its tensors; nothing is left over.

    ``ValueError`` if the file is damaged, needs code to be read, or its keys are not that model's (they are named).
    """
    if name not in READERS:
        raise ValueError(f"no original's files are known for {name!r}{nearest(name, READERS)}; known: {', '.join(READERS)}")
    return READERS[name](Path(path))


def reference_encoder(name: str, path: Path | str, contract: InputContract | None = None) -> Encoder:
    """An `Encoder` around an original's backbone; ``contract`` defaults to what the original trained on."""
    if name in READERS and name not in CONTRACTS:
        raise ValueError(f"{name!r} is no encoder of signals; load_reference gives the layers")
    model = load_reference(name, path).model
    if model is None:
        raise ValueError(f"{path} holds a probe without its backbone: give the backbone's checkpoint")
    return Encoder(model, contract or CONTRACTS[name](model.cfg), name=name, config=model.cfg, source=str(path))


def himae_contract(n_channels: int = 1) -> InputContract:
    """HiMAE's input: 10 s at 100 Hz, each window scaled to [-1, 1], PPG or PPG and ECG; unit, filter and length are not fixed."""
    channels = ("PPG", "ECG")[:n_channels]
    if n_channels not in (1, 2):
        raise ValueError(f"the original has one or two channels, got {n_channels}; give the contract")
    return InputContract(channels=channels, units=(ANY,) * n_channels, fs=100.0, window_s=10.0, band=ANY, normalization="lead_minmax", length_free=True)


def _read_himae(path: Path) -> Reference:
    state, *_ = read(path)
    keys = tuple(state)
    heads = {"fc.": take_prefix(state, "fc."), "classifier.": take_prefix(state, "classifier.")}
    found = [(prefix, head) for prefix, head in heads.items() if head]
    if len(found) > 1:
        raise ValueError(f"{path} holds two heads, fc.* and classifier.*; keep one")
    head = linear(found[0][1], found[0][0], path) if found else None
    backbone = take_prefix(state, "backbone.") if any(key.startswith("backbone.") for key in state) else take_prefix(state, "")
    if state:
        raise ValueError(f"{path} has keys beside the backbone and the head: {', '.join(sorted(state)[:6])}")
    if not backbone:
        if head is None:
            raise ValueError(f"{path} holds no tensors")
        return Reference(None, head, {f"head.{key.partition('.')[2]}": key for key in keys})
    model = build_untrained("himae", _himae_config(backbone, path))
    load_strictly(model, backbone, path)
    if head is not None and head.in_features != model.cfg.widths[-1]:
        raise ValueError(f"{path}: the head takes {head.in_features} features, the backbone's deepest level has {model.cfg.widths[-1]}")
    mapped = {f"head.{key.partition('.')[2]}" if key.startswith(("fc.", "classifier.")) else key.removeprefix("backbone."): key for key in keys}
    return Reference(model.eval(), head, mapped)


def _read_papagei(path: Path) -> Reference:
    model, mapped = load_papagei(path)
    return Reference(model, None, mapped)


READERS: dict[str, Callable[[Path], Reference]] = {
    "himae": _read_himae,
    "ti_mae": read_ti_mae,
    "ti_mae_mamba": read_ti_mae_mamba,
    "papagei": _read_papagei,
    "mamba2": read_mamba2,  # a layer or a stack of them, no encoder of signals
}
CONTRACTS: dict[str, Callable[[Any], InputContract]] = {
    "himae": lambda cfg: himae_contract(cfg.n_channels),
    "ti_mae": lambda cfg: ti_mae_contract(cfg.n_channels, cfg.n_samples),
    "ti_mae_mamba": lambda cfg: ti_mae_contract(cfg.n_channels, cfg.n_samples),
    "papagei": lambda cfg: papagei_contract(cfg.n_channels),
}
"""What the originals' inputs were, by the config of the network."""


def _himae_config(state: Mapping[str, Tensor], path: Path) -> HiMaeConfig:
    """The shape of the network that has this state dict."""
    pattern = re.compile(r"encoder_layers\.(\d+)\.main_path\.0\.weight")
    first = {int(match[1]): value for key, value in state.items() if (match := pattern.fullmatch(key))}
    if not first or sorted(first) != list(range(len(first))) or any(weight.ndim != 3 for weight in first.values()):
        raise ValueError(f"{path} is no HiMAE: no consecutive encoder_layers.N.main_path.0.weight among its keys {', '.join(sorted(state)[:6])} ...")
    if "final_deconv.weight" not in state or state["final_deconv.weight"].ndim != 3:
        raise ValueError(f"{path} is no HiMAE: final_deconv.weight is missing")
    widths = tuple(first[level].shape[0] for level in range(len(first)))
    n_channels = state["final_deconv.weight"].shape[1]
    join = state.get("decoder_layers.0.conv_block.0.weight")
    return HiMaeConfig(
        n_channels=n_channels,
        widths=widths,
        kernel=first[0].shape[2],
        skips=join is None or join.ndim < 2 or join.shape[1] != widths[-2],
        norm="batch" if "encoder_layers.0.main_path.1.running_mean" in state else "group",
        mask_input="channel" if first[0].shape[1] == n_channels + 1 else "zero",
    )
