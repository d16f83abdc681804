"""Weights shared out over ranks (FSDP2), and the few helpers that read tensors which may be shards.

Each layer of a stack is a unit of its own, the rest of the model another: a rank holds 1/n of every weight, gradient and
moment, and sees a unit whole only while it computes. What an objective owns stays whole on every rank.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from physio_train import distributed


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """Share a model's parameters out over all ranks of the group, in place. RuntimeError outside `distributed.session()`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (distributed.world().world_size,))
    for unit in [*_layers(model), model]:
        unit.register_forward_hook(_own_memory)
        fully_shard(unit, mesh=mesh)
    if hasattr(model, "encode"):
        register_fsdp_forward_method(model, "encode")
    return model


def _own_memory(unit: nn.Module, inputs: Any, output: Any) -> Any:
    """A unit's output without views: changed in place, a view would lose the hook that puts the unit's weights together for the backward pass."""
    if isinstance(output, Tensor):
        return output.clone() if output.requires_grad and output._is_view() else output
    if isinstance(output, tuple):
        parts = [_own_memory(unit, inputs, part) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else tuple(parts)
    if isinstance(output, dict):
        return {key: _own_memory(unit, inputs, part) for key, part in output.items()}
    return output


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the outermost stacks that have parameters of their own."""
    stacks: list[nn.ModuleList] = []

    def descend(module: nn.Module) -> None:
        for child in module.children():
            stacks.append(child) if isinstance(child, nn.ModuleList) else descend(child)

    descend(model)
    return [layer for stack in stacks for layer in stack if any(True for _ in layer.parameters()) and not isinstance(layer, nn.ModuleList)]


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor lies in parts on several ranks. None can before its module is imported, which takes as long as half of torch: only `shard` does."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Whether any parameter lies in parts on several ranks."""
    return any(is_shard(p) for p in model.parameters())


@contextlib.contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """All parameters put together on every rank for the length of a block, to be read and not written."""
    from torch.distributed.fsdp import FSDPModule

    units = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for unit in units:
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; a plain tensor is its own part."""
    return tensor.to_local() if is_shard(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank. Every rank must call it."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def like(tensor: Tensor, model: Tensor, *, whole: bool = False) -> Tensor:
    """A tensor laid out as another: this rank's part given, or with `whole` the whole of it, of which this rank keeps its part."""
    if not is_shard(model):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    if whole:
        given = DTensor.from_local(tensor.to(model.device), model.device_mesh, [Replicate()], run_check=False)
        return given.redistribute(placements=model.placements)
    return DTensor.from_local(tensor, model.device_mesh, model.placements, run_check=False, shape=model.shape, stride=model.stride())


def first_row(tensor: Tensor) -> int:
    """Where along its first axis this rank's part of a tensor begins."""
    if not is_shard(tensor):
        return 0
    (placement,) = tensor.placements
    if not placement.is_shard(dim=0):
        raise ValueError(f"a tensor lies on the ranks as {placement}: only parts along the first axis are saved")
    n_parts, rank = tensor.device_mesh.size(), tensor.device_mesh.get_local_rank()
    return min(tensor.shape[0], rank * -(-tensor.shape[0] // n_parts))


@torch.no_grad()
def clip_(parameters: list[Tensor], largest: float) -> Tensor:
    """`clip_grad_norm_` where some gradients are shards: the norm is that of the whole gradient. Returns it as it was before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [local(g) for g in gradients if is_shard(g)]
    rest = [g for g in gradients if not is_shard(g)]
    device = gradients[0].device
    square = torch.stack([n.square() for n in torch._foreach_norm(parts)]).sum() if parts else torch.zeros((), device=device)
    dist.all_reduce(square)
    if rest:
        square = square + torch.stack([n.square() for n in torch._foreach_norm(rest)]).sum()
    norm = square.sqrt()
    torch._foreach_mul_([*parts, *rest], (largest / (norm + 1e-6)).clamp(max=1.0))
    return norm
