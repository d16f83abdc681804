"""Rectified flow: guess the straight way from noise to data. Shape letters: B items, C channels, T samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from physio_models.interface import Batch, Loss, Step, unwrap
from physio_models.objectives.ddpm import check_denoiser, check_dropout, kept, real_mse


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """Mean squared error of the velocity data - noise at (1 - t) noise + t data (Liu et al., arXiv 2209.03003); t = 0 is noise, t = 1 data."""

    times: Literal["uniform", "logit_normal"] = "uniform"  # how t is drawn; logit-normal (arXiv 2403.03206) looks more often at the middle
    condition_dropout: float = 0.1  # of the items whose condition is withheld, so that guidance has something to compare with

    def __post_init__(self) -> None:
        if self.times not in ("uniform", "logit_normal"):
            raise ValueError(f"times must be uniform or logit_normal, got {self.times!r}")
        check_dropout(self.condition_dropout)

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """Nothing that learns. ``ValueError`` for a network that takes no noise level."""
        check_denoiser(model, "rectified_flow")
        return nn.ModuleDict()

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        problem, index_B, valid_BT = unwrap(model).problem(batch), batch["index"], batch.get("valid")
        noise_BGT, t_B = self.draw(problem.x_BGT, index_B, step)
        t_B11 = t_B[:, None, None]
        noised_BGT = (1 - t_B11) * noise_BGT + t_B11 * problem.x_BGT
        keep_B = kept(self.condition_dropout, problem, index_B, step)
        answer_BGT = model(noised_BGT, 1 - t_B, problem.given, keep_B=keep_B, valid_BT=valid_BT, present_BG=problem.present_BG)
        mse = real_mse(answer_BGT, problem.x_BGT - noise_BGT, valid_BT, problem.present_BG)
        return Loss(mse, {"mse": mse.detach()})

    def draw(self, x_BCT: Tensor, index_B: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Noise like the signal, and a time in [0, 1) for every item."""
        noise_BCT = step.streams.normal("noise", index_B, tuple(x_BCT.shape[1:])).to(x_BCT.device)
        if self.times == "uniform":
            return noise_BCT, step.streams.uniform("time", index_B, (1,))[:, 0].to(x_BCT.device)
        return noise_BCT, torch.sigmoid(step.streams.normal("time", index_B, (1,))[:, 0]).to(x_BCT.device)
