"""Torch files of other systems, as tensors alone: no code in them is run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What data parallelism, compilation and Lightning put before every key."""
HOLDERS = ("state_dict", "model_state_dict", "model")
"""Keys under which a file of training state keeps the state dict."""


class Reference(NamedTuple):
    """What a file held: a model in eval mode, a linear head on its pooled vector, or both; the other is None.

    ``mapped`` says of every tensor, as the model (or ``head.*``) names it, which key of the file it was; ``left_out`` names the keys
    that are no weights of either: what training kept beside them.
    """

    model: nn.Module | None
    head: nn.Linear | None
    mapped: dict[str, str] = {}  # noqa: RUF012 - empty and never written to
    left_out: tuple[str, ...] = ()


class Content(NamedTuple):
    """Names and tensors of a file, a prefix common to all names taken off, the plain settings that Lightning keeps with them, and the prefix."""

    state: dict[str, Tensor]
    settings: Mapping[str, Any]
    prefix: str = ""


def read(path: Path) -> Content:
    """A torch file's state dict, bare or out of a file of training state. Files saved on a GPU read anywhere. ``ValueError`` if it holds none."""
    if not path.is_file():
        raise ValueError(f"{path} is no file: give the original's checkpoint")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values ({(str(error) or type(error).__name__).splitlines()[0]}); export its state dict"
        ) from error
    settings: Mapping[str, Any] = {}
    if isinstance(content, Mapping) and (holder := next((key for key in HOLDERS if isinstance(content.get(key), Mapping)), None)) is not None:
        settings = content["hyper_parameters"] if isinstance(content.get("hyper_parameters"), Mapping) else {}
        content = content[holder]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict: expected names and tensors, or a file of training state with {' or '.join(HOLDERS)}")
    state, taken = dict(content), ""
    while prefix := next((w for w in WRAPPERS if all(key.startswith(w) for key in state)), None):
        state, taken = {key.removeprefix(prefix): value for key, value in state.items()}, taken + prefix
    return Content(state, settings, taken)


def take_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Move the keys under a prefix out of ``state``."""
    return {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}


def linear(state: Mapping[str, Tensor], prefix: str, path: Path) -> nn.Linear:
    """A frozen linear head from its weight and bias."""
    if state.keys() != {"weight", "bias"} or state["weight"].ndim != 2 or state["bias"].shape != state["weight"].shape[:1]:
        raise ValueError(
            f"{path}: {prefix}* must be a weight (classes, features) and a bias (classes,), got { ({k: tuple(v.shape) for k, v in state.items()}) }"
        )
    n_out, n_in = state["weight"].shape
    head = nn.utils.skip_init(nn.Linear, n_in, n_out)
    head.load_state_dict({key: value.float() for key, value in state.items()})
    return head.eval().requires_grad_(False)
