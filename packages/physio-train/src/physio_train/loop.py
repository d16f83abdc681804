"""The training loop: a generator. The app logs, validates, saves and stops; `fit` only trains.

Decisions taken here: one step is one optimiser step over `batch_size` windows, however many ranks and micro-batches share
them; every loss is weighted by its windows, so splitting changes nothing but rounding; no step waits for the device;
numbers are looked at for NaN every `check_every` steps and before any checkpoint.

An objective has `modules(model) -> nn.ModuleDict` (what it owns and trains), is called as `(model, batch, step)` and returns
a `Loss`; where it has `after_step(model, step)`, that runs after each optimiser step. Shapes: B windows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from physio_train import checkpoint, distributed
from physio_train.batches import Batch, Batches
from physio_train.config import CHANGEABLE, FitConfig, Precision
from physio_train.ema import Ema, twin
from physio_train.optimizer import build, lr_factor, peak_lr
from physio_train.parameters import rules, trained
from physio_train.schedule_free import Average, ScheduleFreeAdamW
from physio_train.sharding import clip_, is_sharded, shard, whole
from physio_train.state import TrainState, training_mode
from physio_train.streams import VALIDATION_EPOCH, Streams


class Loss(NamedTuple):
    """What an objective returns: the scalar to minimise and detached scalars to report."""

    total: Tensor
    parts: dict[str, Tensor]


class Objective(Protocol):
    """What `fit` asks of an objective; `after_step(model, step)` is optional."""

    def modules(self, model: nn.Module) -> nn.ModuleDict: ...

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss: ...


@dataclass(frozen=True)
class Step:
    """What an objective may know of the step: its own modules, how far the run is (0 to 1), and its random streams."""

    modules: nn.ModuleDict
    progress: float
    streams: Streams


@dataclass(frozen=True)
class Progress:
    """One finished step. `loss` and `grad_norm` are tensors of this rank: reading a number waits for the device."""

    step: int  # finished steps, from 1
    n_steps: int
    epoch: int
    loss: Loss
    lr: float
    grad_norm: Tensor
    state: TrainState
    validate_due: bool
    checkpoint_due: bool
    n_local: int  # windows of this rank
    wait_s: float  # seconds this rank waited for its windows

    def numbers(self) -> dict[str, float]:
        """Loss and parts as the mean over all windows, lr and gradient norm. Waits for the device; every rank must call it."""
        named = {"loss": self.loss.total, **self.loss.parts}
        weight = self.n_local * distributed.world().world_size / self.state.config["batch_size"]
        values = torch.stack([value.detach().float() * weight for value in named.values()])
        distributed.average([values])
        return {**dict(zip(named, values.tolist(), strict=True)), "lr": self.lr, "grad_norm": self.grad_norm.item(), "epoch": self.epoch}


def fit(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    cfg: FitConfig,
    *,
    resume: Path | str | None = None,
    device: torch.device | str | None = None,
    levers: Sequence[str] = (),
) -> Iterator[Progress]:
    """Train a model; yields after every optimiser step. `resume` is a step folder to go on from, exactly.

    Inside `distributed.session()` every rank calls this with the same arguments and batches of its own rank. The model is
    moved to `device` (default: this rank's GPU, else the CPU) and trained in place. The global torch seed is set from
    `cfg.seed` and the rank. ValueError: a config that the device, the batches or the checkpoint contradict.
    NonFiniteLossError: NaN or infinite loss or gradient. RankLostError: another rank died. OutOfDeviceMemoryError: the
    accelerator is full; the message names batch size, precision and `levers`, the model's own settings that save memory.
    """
    device = torch.device(device) if device is not None else default_device()
    if cfg.precision == "fp16" and device.type == "cpu":
        raise ValueError("precision='fp16' needs a GPU: use 'bf16' or 'fp32' on the CPU")
    if batches.batch_size != cfg.batch_size:
        raise ValueError(f"batches.batch_size={batches.batch_size} and cfg.batch_size={cfg.batch_size} must agree: both count the windows of one step")
    n_steps = cfg.n_steps if cfg.n_steps is not None else max(1, round(cfg.n_epochs * batches.steps_per_epoch))
    saved = checkpoint.load(resume) if resume is not None else None
    config = dataclasses.asdict(cfg)
    if saved is not None:
        checkpoint.check_config(saved.meta["config"], config, changeable=CHANGEABLE)
    state = _prepare(model, objective, batches, cfg, config, device)
    if saved is not None:
        state.restore(saved)
    return _steps(state, objective, cfg, n_steps, levers)


def default_device() -> torch.device:
    """This rank's GPU where there is one, else the CPU."""
    return torch.device("cuda", distributed.world().local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _prepare(model: nn.Module, objective: Objective, batches: Batches, cfg: FitConfig, config: Mapping[str, Any], device: torch.device) -> TrainState:
    model = distributed.unwrap(model).to(device)
    distributed.broadcast([p.data for p in model.parameters()] + list(model.buffers()))
    torch.manual_seed(_seed(cfg.seed, "modules"))
    modules = objective.modules(model).to(device)
    distributed.broadcast([p.data for p in modules.parameters()] + list(modules.buffers()))
    torch.manual_seed(_seed(cfg.seed, f"rank {distributed.world().rank}"))
    rule_of = rules(model, modules, decay_all=cfg.decay_all)
    if not rule_of:
        raise ValueError("nothing to train: every parameter of the model and of the objective is frozen; set requires_grad on some")
    averaged = None if cfg.ema_decay is None and cfg.optimizer != "schedule_free" else twin(model)
    if cfg.parallel == "fsdp" and distributed.world().world_size > 1:
        shard(model, device)
        averaged = averaged and shard(averaged, device)
    optimizer = build(cfg, trained(model, modules), rule_of)
    return TrainState(
        model=model,
        modules=modules,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16"),
        ema=None if averaged is None else Average(averaged, optimizer) if isinstance(optimizer, ScheduleFreeAdamW) else Ema(averaged, cfg.ema_decay),
        batches=batches,
        config=config,
        keep_last=cfg.keep_last,
        device=device,
    )


def _steps(state: TrainState, objective: Objective, cfg: FitConfig, n_steps: int, levers: Sequence[str]) -> Iterator[Progress]:
    forward = _wrapped(state.model, cfg, state.device)
    training_mode(state.model)
    while state.step < n_steps:
        done = f"after step {state.step} of {n_steps}; resume from {state.last_saved or 'the run folder, if an earlier job saved one'}"
        with distributed.plain_loss_of_rank(lambda done=done: done), _plain_lack_of_memory(cfg, levers), _kernels(cfg):
            progress = _step(forward, state, objective, cfg, n_steps)
        yield progress
    state.check()


def _step(forward: nn.Module, state: TrainState, objective: Objective, cfg: FitConfig, n_steps: int) -> Progress:
    began = time.perf_counter()
    batch = next(state.batches)
    wait_s = time.perf_counter() - began
    epoch, n_local = int(batch["epoch"]), len(batch["index"])
    step = Step(state.modules, state.step / n_steps, Streams(cfg.seed, epoch, state.device))
    lr = peak_lr(cfg) * lr_factor(state.step, n_steps, warmup=cfg.warmup, schedule=cfg.schedule, floor=cfg.lr_floor)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    loss = _backward(forward, state, objective, cfg, step, batch, n_local)
    grad_norm = _update(state, cfg, batch["index"])
    state.step += 1
    if state.ema:
        state.ema.update(state.model, state.step)
    if hasattr(objective, "after_step"):
        with whole(state.model) if is_sharded(state.model) else contextlib.nullcontext():
            objective.after_step(state.model, step)
    distributed.broadcast(state.modules.buffers())
    if state.step % cfg.check_every == 0:
        state.check()
    due = [state.step == n_steps or (every is not None and state.step % every == 0) for every in (cfg.validate_every, cfg.checkpoint_every)]
    return Progress(state.step, n_steps, epoch, loss, lr, grad_norm, state, *due, n_local, wait_s)


def _backward(forward: nn.Module, state: TrainState, objective: Objective, cfg: FitConfig, step: Step, batch: Batch, n_local: int) -> Loss:
    """Add up the gradients of a rank's share; ranks meet in the last micro-batch. Returns the share's mean loss."""
    weight_to_global = distributed.world().world_size / cfg.batch_size
    losses, weights = [], []
    pieces = _pieces(batch, n_local, cfg.accumulate)
    sharded = is_sharded(state.model)
    if sharded:
        distributed.broadcast(state.model.buffers())
    for i, piece in enumerate(pieces):
        n, last = len(piece["index"]), i + 1 == len(pieces)
        if sharded:
            state.model.set_requires_gradient_sync(last)
        with forward.no_sync() if not last and hasattr(forward, "no_sync") else contextlib.nullcontext():
            with autocast(cfg.precision, state.device):
                loss = objective(forward, to_device(piece, state.device), step)
            state.scaler.scale(loss.total * (n * weight_to_global)).backward()
        state.watch(state.step + 1, "loss", loss.total, piece["index"])
        losses.append(loss)
        weights.append(n / n_local)
    return _mean(losses, weights)


def _update(state: TrainState, cfg: FitConfig, index_B: Tensor) -> Tensor:
    """Clip and take the optimiser's step; returns the gradient's norm before clipping."""
    distributed.average(p.grad for p in state.modules.parameters() if p.grad is not None)
    state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    clip = clip_ if is_sharded(state.model) else nn.utils.clip_grad_norm_
    grad_norm = clip(parameters, cfg.clip_norm if cfg.clip_norm is not None else float("inf"))
    if not state.scaler.is_enabled():  # in fp16 the scaler meets infinite gradients by design, and skips the step
        state.watch(state.step + 1, "gradient", grad_norm, index_B)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    return grad_norm


def _wrapped(model: nn.Module, cfg: FitConfig, device: torch.device) -> nn.Module:
    if distributed.world().world_size > 1 and not is_sharded(model) and any(p.requires_grad for p in model.parameters()):
        ids = [device.index] if device.type == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=cfg.find_unused)
        if distributed.world().world_size > 2:
            model.register_comm_hook(None, distributed.average_by_parameter)
    return torch.compile(model) if cfg.compile else model


def _pieces(batch: Batch, n: int, n_pieces: int) -> list[Batch]:
    """A batch cut along its windows into at most `n_pieces` parts; what is not one per window goes to each."""
    cuts = [piece for piece in np.array_split(np.arange(n), n_pieces) if len(piece)]

    def part(value: Any, rows: np.ndarray) -> Any:
        per_window = isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0 and len(value) == n
        return value[rows[0] : rows[-1] + 1] if per_window else value

    return [{key: part(value, rows) for key, value in batch.items()} for rows in cuts]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Tensors moved to the device, but for `index` and `epoch`: the streams read those on the host, without waiting."""
    return {key: value.to(device, non_blocking=True) if isinstance(value, Tensor) and key not in ("index", "epoch") else value for key, value in batch.items()}


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision by name; nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


@torch.no_grad()
def validate(
    model: nn.Module,
    objective: Objective,
    batches: Iterable[Batch],
    *,
    modules: nn.ModuleDict | None = None,
    seed: int = 0,
    progress: float = 1.0,
    precision: Precision = "fp32",
) -> dict[str, float]:
    """Mean loss and parts over batches, weighted by their windows, with masks that never change: `{"loss": ..., part: ...}`.

    Give `state.eval_model`, `state.modules` and `batches.one_epoch()`. Under several ranks each validates its slice, rank 0's
    running statistics hold, and all get the same numbers; every rank must call it. Training modes are put back.
    """
    model = distributed.unwrap(model)
    modules = nn.ModuleDict() if modules is None else modules
    device = next((t.device for t in [*model.parameters(), *model.buffers()]), torch.device("cpu"))
    parts = [m for owner in (model, modules) for m in owner.modules()]
    modes = [m.training for m in parts]
    distributed.broadcast(model.buffers())
    model.eval()
    modules.eval()
    sums: dict[str, Tensor] = {}
    step = Step(modules, progress, Streams(seed, VALIDATION_EPOCH, device))
    for batch in batches:
        n = len(batch["index"])
        with autocast(precision, device):
            loss = objective(model, to_device(batch, device), step)
        for key, value in {"loss": loss.total, **loss.parts, "": torch.ones((), device=device)}.items():
            sums[key] = sums.get(key, 0.0) + value.double() * n
    for module, mode in zip(parts, modes, strict=True):
        module.training = mode
    return _over_ranks(sums)


def _over_ranks(sums: dict[str, Tensor]) -> dict[str, float]:
    if not sums:
        raise ValueError("validate was given no batch: name rows of a fold that has windows")
    keys = list(sums)
    values = torch.stack(list(sums.values()))
    distributed.average([values])
    n = values[keys.index("")]
    return {key: value for key, value in zip(keys, (values / n).tolist(), strict=True) if key}


def _mean(losses: list[Loss], weights: list[float]) -> Loss:
    total = sum(loss.total.detach() * weight for loss, weight in zip(losses, weights, strict=True))
    parts = {key: sum(loss.parts[key].detach() * weight for loss, weight in zip(losses, weights, strict=True)) for key in losses[0].parts}
    return Loss(total, parts)


def _seed(seed: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{what}".encode()).digest()[:8], "little") >> 1


class OutOfDeviceMemoryError(MemoryError):
    """The accelerator's memory does not hold a step; names what would make it smaller."""


@contextlib.contextmanager
def _plain_lack_of_memory(cfg: FitConfig, levers: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        n_ranks = distributed.world().world_size
        a_piece = -(-cfg.batch_size // (n_ranks * cfg.accumulate))
        low = "" if cfg.precision != "fp32" else ", set precision='bf16'"
        shared = "" if n_ranks == 1 or cfg.parallel == "fsdp" else ", set parallel='fsdp'"
        own = f"; the model's own levers: {', '.join(levers)}" if levers else ""
        raise OutOfDeviceMemoryError(
            f"out of device memory with batch_size={cfg.batch_size} ({a_piece} windows a rank at once, accumulate={cfg.accumulate}) "
            f"in precision={cfg.precision!r}: raise accumulate (the same training in smaller pieces){low}{shared}, or lower batch_size{own}"
        ) from error


@contextlib.contextmanager
def _kernels(cfg: FitConfig) -> Iterator[None]:
    """Torch's deterministic algorithms and the attention kernel that a config asks for, for the length of a step."""
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if cfg.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        with contextlib.nullcontext() if cfg.sdpa == "auto" else nn.attention.sdpa_kernel(_SDPA[cfg.sdpa]):
            yield
    finally:
        if cfg.deterministic:
            torch.use_deterministic_algorithms(before)
            torch.backends.cudnn.benchmark = benchmark


_SDPA = {
    "flash": nn.attention.SDPBackend.FLASH_ATTENTION,
    "efficient": nn.attention.SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": nn.attention.SDPBackend.CUDNN_ATTENTION,
    "math": nn.attention.SDPBackend.MATH,
}
