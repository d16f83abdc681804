"""What models, objectives and the training loop pass to one another. Shape letters: B items, N tokens, D features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from torch import Tensor, nn

Batch = dict[str, Tensor]
"""``signal`` (B, C, T) float32, ``index`` (B,) int64 and, where tails are short, ``valid`` (B, T) bool, True on real samples."""


class Loss(NamedTuple):
    """A scalar to minimise and detached scalars to report."""

    total: Tensor
    parts: dict[str, Tensor]


class Masked(NamedTuple):
    """What a masked autoencoder returns: reconstruction and target (B, C, T), and what is to be scored, (B, 1, T) or (B, C, T) bool, True = hidden."""

    pred_BCT: Tensor
    target_BCT: Tensor
    mask_B1T: Tensor


class Encoded(NamedTuple):
    """Features: tokens of the deepest level, their mean, and every level (B, N_l, D_l) by name from shallow to deep."""

    tokens_BND: Tensor
    pooled_BD: Tensor
    levels: dict[str, Tensor]


class Embedded(NamedTuple):
    """What an encoder trained as a whole returns: one vector per item. Networks that return more name it ``embedding_BD`` too."""

    embedding_BD: Tensor


class Contexts(NamedTuple):
    """What an encoder for predictive coding returns: one vector per item, what each token alone holds, and what is known at each token
    of it and all before it (``ahead``) or after it (``back``, None where the network reads one way). ``valid_BN`` None: all are real."""

    embedding_BD: Tensor
    local_BNL: Tensor
    ahead_BND: Tensor
    back_BND: Tensor | None
    valid_BN: Tensor | None


class Streams(Protocol):
    """Random draws keyed by (seed, epoch, index, name): the same for an item in whichever batch, rank or worker it comes."""

    def uniform(self, name: str, index_B: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) float32 in [0, 1)."""
        ...

    def normal(self, name: str, index_B: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) float32, standard normal."""
        ...


class Step(Protocol):
    """What an objective may know of a training step: its own modules, how far the run is (0 to 1), and its streams."""

    modules: nn.ModuleDict
    progress: float
    streams: Streams


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside wrappers of data parallelism and compilation."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every part of the model in eval mode for the length of a block; each part's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
