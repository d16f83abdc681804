"""Denoising diffusion: guess the noise in a noised signal. Shape letters: B items, C channels, T samples, S steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from physio_models.diffusion import SCHEDULES, Schedule, kept_signal
from physio_models.dit import Problem
from physio_models.interface import Batch, Loss, Step, unwrap


@dataclass(frozen=True, kw_only=True)
class Ddpm:
    """Mean squared error of the noise (Ho et al., arXiv 2006.11239, eq. 14) at a step drawn evenly from the schedule."""

    n_steps: int = 1000
    schedule: Schedule = "linear"
    condition_dropout: float = 0.1  # of the items whose condition is withheld, so that guidance has something to compare with

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {self.n_steps}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        check_dropout(self.condition_dropout)

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """Nothing that learns. ``ValueError`` for a network that takes no noise level."""
        check_denoiser(model, "ddpm")
        return nn.ModuleDict()

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        problem, index_B, valid_BT = unwrap(model).problem(batch), batch["index"], batch.get("valid")
        x_BGT = problem.x_BGT
        s_B = (step.streams.uniform("time", index_B, (1,))[:, 0].double() * self.n_steps).long().clamp(max=self.n_steps - 1).to(x_BGT.device)
        noise_BGT = step.streams.normal("noise", index_B, tuple(x_BGT.shape[1:])).to(x_BGT.device)
        abar_B11 = kept_signal(self.schedule, self.n_steps).to(x_BGT.device)[s_B][:, None, None]
        noised_BGT = abar_B11.sqrt().float() * x_BGT + (1 - abar_B11).sqrt().float() * noise_BGT
        keep_B = kept(self.condition_dropout, problem, index_B, step)
        answer_BGT = model(noised_BGT, s_B / self.n_steps, problem.given, keep_B=keep_B, valid_BT=valid_BT, present_BG=problem.present_BG)
        mse = real_mse(answer_BGT, noise_BGT, valid_BT, problem.present_BG)
        return Loss(mse, {"mse": mse.detach()})


def check_dropout(value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"condition_dropout must lie in [0, 1), got {value}")


def check_denoiser(model: nn.Module, objective: str) -> None:
    """``ValueError`` unless the network is a denoiser."""
    net = unwrap(model)
    if getattr(getattr(net, "cfg", None), "role", "") != "denoiser":
        raise ValueError(f"{objective} trains a network that is told a noise level, {type(net).__name__} is not: choose the model dit")


def kept(dropout: float, problem: Problem, index_B: Tensor, step: Step) -> Tensor:
    """Which items keep their condition: (B,) bool. Those that the draw withholds do not, nor those that have none."""
    drawn_B = (step.streams.uniform("condition", index_B, (1,))[:, 0] >= dropout).to(problem.x_BGT.device)
    return drawn_B if problem.keep_B is None else drawn_B & problem.keep_B


def real_mse(answer_BCT: Tensor, target_BCT: Tensor, valid_BT: Tensor | None, present_BC: Tensor | None) -> Tensor:
    """Mean squared error over what is real: samples before a short tail of channels that are present."""
    error_BCT = (answer_BCT.float() - target_BCT.float()).square()
    if valid_BT is None and present_BC is None:
        return error_BCT.mean()
    real_BCT = torch.ones_like(error_BCT, dtype=torch.bool)
    real_BCT = real_BCT if valid_BT is None else real_BCT & valid_BT.bool()[:, None, :]
    real_BCT = real_BCT if present_BC is None else real_BCT & present_BC.bool()[:, :, None]
    return error_BCT.masked_fill(~real_BCT, 0.0).sum() / real_BCT.sum().clamp(min=1)
