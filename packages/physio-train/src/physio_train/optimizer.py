"""Optimisers by name over named parameters, the learning-rate schedule, and an optimiser's state as named tensors.

AdamW; Muon for the matrices inside stacks of layers with AdamW for the rest; schedule-free AdamW, as an option. Which
parameter falls under which rule is said in `parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from physio_train.muon import Muon
from physio_train.parameters import Rule
from physio_train.schedule_free import ScheduleFreeAdamW
from physio_train.sharding import full, is_shard, like

if TYPE_CHECKING:
    from physio_train.config import FitConfig

Schedule = Literal["constant", "linear", "cosine", "one_cycle", "inverse_sqrt"]
ONE_CYCLE_START, ONE_CYCLE_END = 1 / 25, 1 / 25 / 1e4  # of the peak: the defaults of torch's OneCycleLR


def lr_factor(step: int, n_steps: int, *, warmup: float, schedule: Schedule, floor: float = 0.0) -> float:
    """The learning rate of a step (0-based) as a fraction of its peak.

    Rises linearly from 0 over `int(warmup * n_steps)` steps. Then `constant` stays; `linear` and `cosine` fall to `floor` at
    `n_steps` in a line or a half cosine, and stay there; `inverse_sqrt` falls as 1 / sqrt(step) from the peak on (Vaswani et
    al. 2017). `linear` with `warmup=0.1` is HiMAE's LambdaLR. `one_cycle` (Smith and Topin 2018, as torch's OneCycleLR with
    `pct_start=warmup`) rises in a half cosine from 1/25, and falls in another to 1/250,000 at the last step; the momentum stays.
    """
    if schedule == "one_cycle":
        return _one_cycle(step, n_steps, warmup)
    n_warmup = int(warmup * n_steps)
    if step < n_warmup:
        return step / n_warmup
    if schedule == "constant":
        return 1.0
    if schedule == "inverse_sqrt":
        return math.sqrt(max(1, n_warmup) / max(1, step))
    left = max(0.0, (n_steps - step) / max(1, n_steps - n_warmup))
    fraction = left if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
    return floor + (1.0 - floor) * fraction


def _one_cycle(step: int, n_steps: int, rising: float) -> float:
    peak, end = rising * n_steps - 1, n_steps - 1
    if peak > 0 and step <= peak:
        first, last, done = ONE_CYCLE_START, 1.0, step / peak
    else:
        peak = max(peak, 0)
        first, last, done = 1.0, ONE_CYCLE_END, min(1.0, (step - peak) / max(1, end - peak))
    return last + (first - last) / 2 * (1 + math.cos(math.pi * done))


def peak_lr(cfg: FitConfig) -> float:
    """The largest learning rate: `lr` as it stands, or times batch_size / lr_batch where `lr_batch` asks for it."""
    return cfg.lr if cfg.lr_batch is None else cfg.lr * cfg.batch_size / cfg.lr_batch


def build(cfg: FitConfig, parameters: Mapping[str, nn.Parameter], rules: Mapping[str, Rule]) -> torch.optim.Optimizer:
    """The optimiser of a config. Each group has `lr_scale`, the fraction of the step's learning rate that layer-wise decay leaves it.

    ValueError where Muon would find no matrix to turn.
    """
    scale = {name: 1.0 if cfg.layer_decay is None else cfg.layer_decay ** rules[name].below_top for name in parameters}
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, p in parameters.items():
        kind = rules[name].kind if cfg.optimizer == "muon" else "adamw"
        groups.setdefault((kind, not rules[name].decayed, -scale[name], is_shard(p)), []).append(p)
    settings = [
        {"params": group, "weight_decay": 0.0 if bare else cfg.weight_decay, "lr_scale": -minus, "kind": kind}
        for (kind, bare, minus, _), group in sorted(groups.items(), key=lambda item: item[0])
    ]
    common = {"lr": peak_lr(cfg), "betas": cfg.betas, "eps": cfg.eps}
    if cfg.optimizer == "muon":
        if not any(group["kind"] == "muon" for group in settings):
            raise ValueError("optimizer='muon' finds no matrix inside a stack of layers to turn: use 'adamw' for this network")
        own = {"momentum": cfg.momentum, "nesterov": cfg.nesterov, "n_iterations": cfg.newton_schulz, "adamw_lr_ratio": cfg.adamw_lr_ratio}
        return Muon(settings, **own, **common)
    if cfg.optimizer == "schedule_free":
        return ScheduleFreeAdamW(settings, **common)
    one_pass = all(p.device.type in ("cpu", "cuda") for p in parameters.values())  # over a parameter and its moments: 4 to 6 times less time on a CPU
    return torch.optim.AdamW(settings, **common, fused=one_pass)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state as `<parameter>/<key>` tensors; parameters that never had a gradient have none."""
    return {f"{name}/{key}": value for name, parameter in parameters.items() for key, value in optimizer.state.get(parameter, {}).items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Undo `optimizer_tensors`; whole tensors are cut to this rank's parts. ValueError where a tensor belongs to no parameter."""
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        by_parameter.setdefault(name, {})[key] = value
    unknown = sorted(set(by_parameter) - set(parameters))
    if unknown:
        raise ValueError(f"the checkpoint's optimiser knows parameters that the model lacks: {', '.join(unknown[:5])}; build the model it was saved with")
    name_of = {parameter: name for name, parameter in parameters.items()}
    ordered = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        i: {key: _laid_out(value, parameters[name]) for key, value in by_parameter[name].items()} for i, name in enumerate(ordered) if name in by_parameter
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A moment of a shared-out parameter, shared out alike; counts stay as they are."""
    return like(full(value), parameter, whole=True) if value.ndim else value


def optimizer_numbers(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What of an optimiser's state is one number for all parameters."""
    return {"weight_sum": optimizer.weight_sum} if isinstance(optimizer, ScheduleFreeAdamW) else {}


def load_optimizer_numbers(optimizer: torch.optim.Optimizer, numbers: Mapping[str, float]) -> None:
    """Undo `optimizer_numbers`."""
    for name in optimizer_numbers(optimizer):
        setattr(optimizer, name, float(numbers[name]))
