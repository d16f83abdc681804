"""Rows of every rank, differentiable: a contrastive loss on several ranks then has the negatives, and the gradient, of the whole batch.

Each rank scores its own rows against all rows and takes the mean; data parallelism averages the ranks' gradients. The backward
pass adds up what every rank's loss says about a row, so that average is the gradient of the one loss over the whole batch.
Shape letters: B rows of this rank, N rows of all ranks, D features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Gathered(NamedTuple):
    """Rows of all ranks (N, ...), rank 0's first, and where among them this rank's own begin."""

    rows: Tensor
    start: int


def gather_rows(x_BD: Tensor) -> Tensor:
    """The rows of every rank, (N, D), rank 0's first; see `gather`."""
    return gather(x_BD).rows


def gather(x_BD: Tensor) -> Gathered:
    """The rows of every rank and the place of one's own, with gradients for floating-point rows.

    Ranks may have different numbers of rows (any trailing shape, the same on all). Alone, and wherever gradients are off, it is
    ``x_BD`` itself: validation may reach ranks a different number of times, and waiting for one another would never end.
    """
    if x_BD.ndim < 1:
        raise ValueError(f"x_BD must have rows, got a scalar of shape {tuple(x_BD.shape)}")
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and torch.is_grad_enabled()):
        return Gathered(x_BD, 0)
    sizes = _sizes(x_BD)
    rows = _Gather.apply(x_BD, sizes) if x_BD.is_floating_point() else _all_rows(x_BD, sizes)
    return Gathered(rows, sum(sizes[: dist.get_rank()]))


def _sizes(x_BD: Tensor) -> list[int]:
    """Rows of each rank. Exchanged on the host where the group can, so that no device is waited for."""
    device = "cpu" if "gloo" in str(dist.get_backend_config()) else x_BD.device
    own = torch.tensor([len(x_BD)], device=device)
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    return [int(size) for size in sizes]


def _all_rows(x_BD: Tensor, sizes: list[int]) -> Tensor:
    """All ranks' rows end to end; short ranks are padded on the way."""
    padded = x_BD.new_zeros(max(sizes), *x_BD.shape[1:])
    padded[: len(x_BD)] = x_BD
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])


class _Gather(torch.autograd.Function):
    """Forward: all ranks' rows. Backward: the sum over ranks of the gradient, this rank's part of it."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _all_rows(x_BD, sizes)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        total_ND = grad_ND.contiguous().clone()
        dist.all_reduce(total_ND)
        return total_ND.split(ctx.sizes)[dist.get_rank()], None


def share(sum_here: Tensor, total: Tensor | float, n_here: int, n_all: int) -> Tensor:
    """This rank's part of a mean over all ranks: averaged with weights ``n_here`` (the rank's rows), the parts give sum / total.

    For means whose terms are not spread over ranks as the rows are (pairs, labelled items, weights). ``total`` counts the terms of
    all ranks; 0 of them give 0. ``n_all`` is the number of rows of all ranks.
    """
    return sum_here / torch.as_tensor(total, dtype=sum_here.dtype, device=sum_here.device).clamp(min=torch.finfo(sum_here.dtype).tiny) * (n_all / n_here)
