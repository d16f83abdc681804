"""AdamW over named parameters, the learning-rate schedule, and the optimiser's state as named tensors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Schedule = Literal["constant", "linear", "cosine"]


def lr_factor(step: int, n_steps: int, *, warmup: float, schedule: Schedule) -> float:
    """The learning rate of a step (0-based) as a fraction of its peak.

    Rises linearly from 0 over `int(warmup * n_steps)` steps, then stays, or falls to 0 at `n_steps` in a line or a half cosine;
    0 beyond the end. `linear` with `warmup=0.1` is HiMAE's LambdaLR.
    """
    n_warmup = int(warmup * n_steps)
    if step < n_warmup:
        return step / n_warmup
    if schedule == "constant":
        return 1.0
    left = max(0.0, (n_steps - step) / max(1, n_steps - n_warmup))
    return left if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))


def adamw(parameters: dict[str, nn.Parameter], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, decay_all: bool) -> torch.optim.AdamW:
    """AdamW over trainable parameters; without `decay_all`, vectors and scalars (norms, biases) are not decayed."""
    groups = [[p for p in parameters.values() if (decay_all or p.ndim > 1) == decayed] for decayed in (True, False)]
    settings = [{"params": group, "weight_decay": decay} for group, decay in zip(groups, (weight_decay, 0.0), strict=True) if group]
    on_cuda = any(p.device.type == "cuda" for p in parameters.values())
    return torch.optim.AdamW(settings, lr=lr, betas=betas, eps=eps, fused=on_cuda)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state as `<parameter>/<key>` tensors; parameters that never had a gradient have none."""
    return {f"{name}/{key}": value for name, parameter in parameters.items() for key, value in optimizer.state.get(parameter, {}).items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors`. ValueError where a tensor belongs to no parameter."""
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        by_parameter.setdefault(name, {})[key] = value
    unknown = sorted(set(by_parameter) - set(parameters))
    if unknown:
        raise ValueError(f"the checkpoint's optimiser knows parameters that the model lacks: {', '.join(unknown[:5])}; build the model it was saved with")
    name_of = {parameter: name for name, parameter in parameters.items()}
    ordered = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {position: by_parameter[name] for position, name in enumerate(ordered) if name in by_parameter}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
