"""Read the files of the original systems, as tensors alone: no code in them is run.

HiMAE (Simonlee711/HiMAE): Lightning checkpoints (``model.`` before every key), plain state dicts, the notebook's probe
(``fc.*``) and the script's probe (``classifier.*`` with the whole ``backbone.*``). PaPaGei: see `reference_papagei`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from physio_models import nearest
from physio_models.contract import ANY, Encoder, InputContract
from physio_models.himae import HiMaeConfig
from physio_models.pretrained import build_untrained, load_strictly
from physio_models.reference_papagei import load_papagei, papagei_contract

_WRAPPERS = ("module.", "_orig_mod.", "model.")


class Reference(NamedTuple):
    """What a file held: a model in eval mode, a linear head on the mean of its deepest level, or both; the other is None."""

    model: nn.Module | None
    head: nn.Linear | None


def load_reference(name: str, path: Path | str) -> Reference:
    """Read an original's file for a row of MODELS. Depth, width, kernel and channels follow from the shapes.

    ``ValueError`` if the file is damaged, needs code to be read, or its keys are not that model's (they are named).
    """
    if name not in READERS:
        raise ValueError(f"no original's files are known for {name!r}{nearest(name, READERS)}; known: {', '.join(READERS)}")
    return READERS[name](Path(path))


def reference_encoder(name: str, path: Path | str, contract: InputContract | None = None) -> Encoder:
    """An `Encoder` around an original's backbone; ``contract`` defaults to what the original trained on."""
    model = load_reference(name, path).model
    if model is None:
        raise ValueError(f"{path} holds a probe without its backbone: give the backbone's checkpoint")
    return Encoder(model, contract or CONTRACTS[name](model.cfg.n_channels), name=name, config=model.cfg, source=str(path))


def himae_contract(n_channels: int = 1) -> InputContract:
    """HiMAE's input: 10 s at 100 Hz, each window scaled to [-1, 1], PPG or PPG and ECG; unit, filter and length are not fixed."""
    channels = ("PPG", "ECG")[:n_channels]
    if n_channels not in (1, 2):
        raise ValueError(f"the original has one or two channels, got {n_channels}; give the contract")
    return InputContract(channels=channels, units=(ANY,) * n_channels, fs=100.0, window_s=10.0, band=ANY, normalization="lead_minmax", length_free=True)


def _read_himae(path: Path) -> Reference:
    state = _state_dict(path)
    heads = {"fc.": _take(state, "fc."), "classifier.": _take(state, "classifier.")}
    found = [(prefix, head) for prefix, head in heads.items() if head]
    if len(found) > 1:
        raise ValueError(f"{path} holds two heads, fc.* and classifier.*; keep one")
    head = _linear(found[0][1], found[0][0], path) if found else None
    backbone = _take(state, "backbone.") if any(key.startswith("backbone.") for key in state) else _take(state, "")
    if state:
        raise ValueError(f"{path} has keys beside the backbone and the head: {', '.join(sorted(state)[:6])}")
    if not backbone:
        if head is None:
            raise ValueError(f"{path} holds no tensors")
        return Reference(None, head)
    model = build_untrained("himae", _himae_config(backbone, path))
    load_strictly(model, backbone, path)
    if head is not None and head.in_features != model.cfg.widths[-1]:
        raise ValueError(f"{path}: the head takes {head.in_features} features, the backbone's deepest level has {model.cfg.widths[-1]}")
    return Reference(model.eval(), head)


def _read_papagei(path: Path) -> Reference:
    return Reference(load_papagei(path).model, None)


READERS: dict[str, Callable[[Path], Reference]] = {"himae": _read_himae, "papagei": _read_papagei}
CONTRACTS: dict[str, Callable[[int], InputContract]] = {"himae": himae_contract, "papagei": papagei_contract}
"""What the originals' inputs were, by channel count."""


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


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, wrappers' prefixes taken off. Files saved on a GPU read anywhere."""
    if not path.is_file():
        raise ValueError(f"{path} is no file: give the original's checkpoint")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values ({(str(error) or type(error).__name__).splitlines()[0]}); export its state dict"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict: expected names and tensors, or a Lightning checkpoint with 'state_dict'")
    state = dict(content)
    while prefix := next((w for w in _WRAPPERS if all(key.startswith(w) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _take(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Move the keys under a prefix out of ``state``."""
    return {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}


def _linear(state: dict[str, Tensor], prefix: str, path: Path) -> nn.Linear:
    if state.keys() != {"weight", "bias"} or state["weight"].ndim != 2 or state["bias"].shape != state["weight"].shape[:1]:
        raise ValueError(
            f"{path}: {prefix}* must be a weight (classes, features) and a bias (classes,), got { ({k: tuple(v.shape) for k, v in state.items()}) }"
        )
    n_out, n_in = state["weight"].shape
    head = nn.utils.skip_init(nn.Linear, n_in, n_out)
    head.load_state_dict({key: value.float() for key, value in state.items()})
    return head.eval().requires_grad_(False)
