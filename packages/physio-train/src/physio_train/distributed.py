"""Training on several ranks: joining them, sharing numbers between them, and saying plainly when one is gone.

One process is the default and needs none of this. Under `torchrun` every rank enters `session()`, which torch itself fills
from its environment; elsewhere pass rank, world size and address.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

_STORE: ContextVar[dist.Store | None] = ContextVar("store", default=None)
_ROLL_CALL_S = 3.0  # how long those who lost contact wait for one another's answer
_LOST_WORDS = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "connection refused")


@dataclass(frozen=True)
class World:
    """Where this process stands among the ranks: one of one when no group was joined."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True on the rank that writes files and talks."""
        return self.rank == 0


class RankLostError(RuntimeError):
    """Another rank of the job died or stopped answering."""


def world() -> World:
    """The group joined, or the single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank(fallback_rank=dist.get_rank()))


def launched() -> bool:
    """True in a process that `torchrun` started."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextlib.contextmanager
def session(
    *, rank: int | None = None, world_size: int | None = None, init_method: str = "env://", backend: str | None = None, timeout_s: float = 600.0
) -> Iterator[World]:
    """Join the other ranks for the length of a block, and leave them at its end.

    Under `torchrun` no argument is needed; otherwise give `rank`, `world_size` and `init_method` ("tcp://host:port" or
    "file:///path"). A process that is neither stays alone. `backend` defaults to gloo for host tensors and nccl for CUDA ones.
    `timeout_s` is how long a rank waits for a silent one before it gives up.
    """
    if rank is None and not launched():
        yield World()
        return
    backend = backend or ("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    given = {} if rank is None else {"rank": rank, "world_size": world_size}
    store, rank, world_size = next(dist.rendezvous(init_method, **given))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s))
    token = _STORE.set(store)
    try:
        yield world()
    finally:
        _STORE.reset(token)
        dist.destroy_process_group()


@contextlib.contextmanager
def plain_loss_of_rank(describe: Callable[[], str]) -> Iterator[None]:
    """Turn a failure to reach another rank into a `RankLostError` that says what `describe()` says; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _LOST_WORDS)
        if world().world_size == 1 or not lost or isinstance(error, RankLostError):
            raise
        where = world()
        gone = _silent(where)
        named = f" ({'rank' if len(gone) == 1 else 'ranks'} {', '.join(map(str, gone))} gone)" if gone else ""
        raise RankLostError(f"rank {where.rank} of {where.world_size} lost contact with another rank{named}: {describe()}") from error


def _silent(where: World) -> list[int]:
    """The ranks that do not answer a roll call after contact was lost; empty where that cannot be told."""
    if (store := _STORE.get()) is None:
        return []
    silent, deadline = [rank for rank in range(where.world_size) if rank != where.rank], time.monotonic() + _ROLL_CALL_S
    try:
        store.set(f"here/{where.rank}", "1")
        while len(silent) > 1 and time.monotonic() < deadline:
            silent = [rank for rank in silent if not store.check([f"here/{rank}"])]
            time.sleep(0.05)
    except (dist.DistError, RuntimeError):  # rank 0 keeps the list where no launcher does
        return [0]
    return silent


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, out of the wrappers of data parallelism and compilation."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Give every rank the values of rank 0, in place; nothing to do alone."""
    _coalesced(tensors, lambda flat: dist.broadcast(flat, src=0))


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their mean over ranks, in place; nothing to do alone."""
    n = world().world_size

    def mean(flat: Tensor) -> None:
        dist.all_reduce(flat)
        flat.div_(n)

    _coalesced(tensors, mean)


def average_by_parameter(_state, bucket):  # torch refuses annotations that are strings here
    """Data-parallel hook: average gradients one parameter at a time.

    The order in which a collective of three or more ranks adds depends on where a number lies in the buffer, and torch lays
    gradients out anew after the first step of a process. Summed by themselves, they round alike before and after a resume.
    """
    pending = [dist.all_reduce(gradient, async_op=True).get_future() for gradient in bucket.gradients()]
    n = world().world_size
    return torch.futures.collect_all(pending).then(lambda done: [done.wait(), bucket.buffer().div_(n)][1])


def gather(tensor: Tensor) -> list[Tensor]:
    """The tensor of every rank, rank 0's first; shapes must agree."""
    n = world().world_size
    if n == 1:
        return [tensor]
    out = [torch.empty_like(tensor) for _ in range(n)]
    dist.all_gather(out, tensor.contiguous())
    return out


def _coalesced(tensors: Iterable[Tensor], collective: Callable[[Tensor], None]) -> None:
    """Run a collective once per (dtype, device) on tensors laid end to end."""
    if world().world_size == 1:
        return
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in groups.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        collective(flat)
        for tensor, piece in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(piece.view_as(tensor))
