"""From noise to signals: noise schedules and samplers, as functions of any network's prediction.

The network is a function of (noised x, noise level in [0, 1], 0 = clean). Sources: Ho et al., "DDPM", arXiv 2006.11239; Song et al.,
"DDIM", arXiv 2010.02502; Nichol and Dhariwal, arXiv 2102.09672 (cosine schedule); Liu et al., "Rectified flow", arXiv 2209.03003.
Nothing is clipped unless asked: signals have whatever range their normalisation gives them. Shape letters: B items, S steps of the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), noise level (B,)) -> noise or velocity (B, ...)."""
Schedule = Literal["linear", "cosine"]
Solver = Literal["euler", "midpoint", "heun"]
SCHEDULES: tuple[str, ...] = ("linear", "cosine")
SOLVERS: tuple[str, ...] = ("euler", "midpoint", "heun")


def kept_signal(schedule: Schedule, n_steps: int) -> Tensor:
    """abar, (S,) float64: the share of the signal's variance left after each step of noising.

    ``linear``: betas from 1e-4 to 0.02 at 1000 steps, scaled by 1000 / S for others. ``cosine``: cos^2 with offset 0.008, betas at most 0.999.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    if schedule == "linear":
        scale = 1000 / n_steps
        beta_S = torch.linspace(1e-4 * scale, 0.02 * scale, n_steps, dtype=torch.float64).clamp(max=0.999)
    elif schedule == "cosine":
        angle = (torch.arange(n_steps + 1, dtype=torch.float64) / n_steps + 0.008) / 1.008 * math.pi / 2
        level = angle.cos().square()
        beta_S = (1 - level[1:] / level[:-1]).clamp(max=0.999)
    else:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    return (1 - beta_S).cumprod(0)


@torch.no_grad()
def sample_ddpm(
    predict_noise: Predict, noise: Tensor, abar_S: Tensor, *, clip: tuple[float, float] | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Ancestral sampling over the whole schedule, from pure ``noise``; step s is shown to the network as noise level s / S.

    ``clip`` bounds the estimate of the clean signal at every step, in the signal's own normalised unit; None leaves it.
    """
    abar_S = abar_S.to(noise.device)
    x, n_steps = noise, len(abar_S)
    for s in range(n_steps - 1, -1, -1):
        abar, before = abar_S[s], abar_S[s - 1] if s else abar_S.new_ones(())
        beta = 1 - abar / before
        clean = _clean(x, predict_noise(x, _level(x, s / n_steps)), abar, clip)
        mean = (before.sqrt() * beta / (1 - abar)).float() * clean + ((1 - beta).sqrt() * (1 - before) / (1 - abar)).float() * x
        deviation = (beta * (1 - before) / (1 - abar)).sqrt().float()
        x = mean + deviation * _normal_like(x, generator) if s else mean
    return x


@torch.no_grad()
def sample_ddim(
    predict_noise: Predict,
    noise: Tensor,
    abar_S: Tensor,
    *,
    n_steps: int,
    eta: float = 0.0,
    clip: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``n_steps`` of the schedule, evenly spaced down from its last; ``eta`` 0 adds no noise, 1 as much as ancestral sampling."""
    if not 1 <= n_steps <= len(abar_S):
        raise ValueError(f"n_steps must lie in 1..{len(abar_S)}, the schedule's length, got {n_steps}")
    abar_S = abar_S.to(noise.device)
    x, chosen = noise, [round(s) for s in torch.linspace(len(abar_S) - 1, 0, n_steps, dtype=torch.float64).tolist()]
    for s, following in zip(chosen, [*chosen[1:], None], strict=True):
        abar, before = abar_S[s], abar_S.new_ones(()) if following is None else abar_S[following]
        eps = predict_noise(x, _level(x, s / len(abar_S)))
        clean = _clean(x, eps, abar, clip)
        eps = eps if clip is None else (x - abar.sqrt().float() * clean) / (1 - abar).sqrt().float()  # the noise that fits the bounded estimate
        deviation = eta * ((1 - before) / (1 - abar) * (1 - abar / before)).sqrt()
        x = before.sqrt().float() * clean + (1 - before - deviation**2).clamp(min=0).sqrt().float() * eps
        if eta and following is not None:
            x = x + deviation.float() * _normal_like(x, generator)
    return x


@torch.no_grad()
def sample_flow(predict_velocity: Predict, noise: Tensor, *, n_steps: int, solver: Solver = "midpoint") -> Tensor:
    """Follow the velocity dx/dt from noise (t = 0) to data (t = 1); the network is shown the noise level 1 - t.

    ``euler`` asks it once a step, at the step's start; ``midpoint`` (at half a step) and ``heun`` (start and end) twice, with an error that
    falls with the square of the step.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    x, step = noise, 1 / n_steps
    for i in range(n_steps):
        start = 1 - i * step
        velocity = predict_velocity(x, _level(x, start))
        if solver == "midpoint":
            velocity = predict_velocity(x + step / 2 * velocity, _level(x, start - step / 2))
        elif solver == "heun":
            velocity = (velocity + predict_velocity(x + step * velocity, _level(x, start - step))) / 2
        x = x + step * velocity
    return x


def guided(network: Callable[..., Tensor], given: Tensor, scale: float, *, valid_BT: Tensor | None = None) -> Predict:
    """Prediction without the condition, pushed ``scale`` times along what the condition changes (Ho and Salimans, arXiv 2207.12598).

    0 ignores the condition, 1 is the conditional prediction. ``network(x, level, given, keep_B=..., valid_BT=...)`` as `dit.Dit`, called once with both halves.
    """

    def predict(x_BCT: Tensor, level_B: Tensor) -> Tensor:
        n_items = len(x_BCT)
        keep_B = torch.arange(2 * n_items, device=x_BCT.device) < n_items
        valid = None if valid_BT is None else torch.cat([valid_BT, valid_BT])
        with_it, without = network(torch.cat([x_BCT, x_BCT]), torch.cat([level_B, level_B]), torch.cat([given, given]), keep_B=keep_B, valid_BT=valid).split(
            n_items
        )
        return without + scale * (with_it - without)

    return predict


def _clean(x: Tensor, eps: Tensor, abar: Tensor, clip: tuple[float, float] | None) -> Tensor:
    """The clean signal that the predicted noise implies."""
    clean = (x - (1 - abar).sqrt().float() * eps) / abar.sqrt().float()
    return clean if clip is None else clean.clamp(*clip)


def _level(x: Tensor, level: float) -> Tensor:
    return x.new_full((len(x),), level)


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
