"""The objective of fine-tuning: labels through an encoder and a head, with mixup.

B windows, K outputs. `fit` trains a `heads.Classifier` with it like any other model; `FitConfig.layer_decay` lets the learning rate fall towards the input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from physio_train.loop import Loss, Step
from physio_train.losses import LossName, balanced_weights, sigmoid_loss, softmax_loss, targets, with_margin

Kind = Literal["binary", "multiclass", "multilabel", "regression"]


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """What is minimised. `counts` are windows of each class in training, or (without, with) for each label of a multilabel task."""

    kind: Kind = "binary"
    n_classes: int = 2
    loss: LossName = "cross_entropy"
    balanced: bool = True  # weigh classes by inverse frequency
    counts: tuple[int, ...] | tuple[tuple[int, int], ...] = ()
    gamma: float = 2.0  # of focal
    margin: float = 0.3  # of arcface, radians
    scale: float = 20.0  # of arcface: the head's
    smoothing: float = 0.0  # of labels
    mixup: float = 0.0  # alpha of the Beta that the share of a window's partner is drawn from; 0 mixes nothing
    target_mean: float = 0.0  # of regression, in the target's unit
    target_sd: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed in (("kind", ("binary", "multiclass", "multilabel", "regression")), ("loss", ("cross_entropy", "focal", "arcface"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.smoothing < 1 or self.mixup < 0 or not self.target_sd > 0:
            raise ValueError(
                f"smoothing must lie in [0, 1), mixup be at least 0 and target_sd positive, got {self.smoothing}, {self.mixup} and {self.target_sd}"
            )
        if self.loss == "arcface" and (self.kind in ("multilabel", "regression") or self.mixup):
            raise ValueError("arcface needs one class a window: a binary or multiclass task, and mixup 0")
        if self.balanced and self.kind != "regression" and not self.counts:
            raise ValueError("balanced needs counts, the training windows of each class; or give balanced=False")

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """Nothing: the head belongs to the model."""
        return nn.ModuleDict()

    def __call__(self, model: nn.Module, batch: dict[str, Any], step: Step) -> Loss:
        x_BCT, label, present_BC = batch["signal"], batch["label"], batch.get("channel_present")
        if self.mixup and not x_BCT.is_floating_point():
            raise ValueError(f"mixup must be 0 for a network that reads tokens, which have no mean, got {self.mixup}")
        share_B, partner_B = self._mixing(batch["index"], step) if self.mixup else (None, None)
        if share_B is not None:
            share_B = share_B.to(x_BCT.device)
            x_BCT = torch.lerp(x_BCT[partner_B], x_BCT, share_B[:, None, None])
            present_BC = None if present_BC is None else present_BC | present_BC[partner_B]  # either window's lead is in the mixture
        out_BK = model(x_BCT, batch.get("valid"), present_BC)
        total = self._loss(out_BK, label, share_B, partner_B)
        return Loss(total, {self.loss if self.kind != "regression" else "huber": total.detach()})

    def _mixing(self, index_B: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """A window's own share, at least a half, and its partner in the batch (Zhang et al. 2018, arXiv 1710.09412)."""
        uniform_B = step.streams.uniform("mixup", index_B, ()).cpu().numpy().astype(np.float64)
        share_B = betaincinv(self.mixup, self.mixup, np.clip(uniform_B, 1e-7, 1 - 1e-7))
        return torch.from_numpy(np.maximum(share_B, 1 - share_B).astype(np.float32)), torch.arange(len(index_B)).roll(1)

    def _loss(self, out_BK: Tensor, label: Tensor, share_B: Tensor | None, partner_B: Tensor | None) -> Tensor:
        label = label.to(out_BK.device)
        if self.kind == "regression":
            return self._huber(out_BK, label, share_B, partner_B)
        gamma = self.gamma if self.loss == "focal" else 0.0
        weight = balanced_weights(torch.tensor(self.counts)).to(out_BK.device) if self.balanced else None
        if self.kind == "multilabel":
            known_BK = label >= 0
            target_BK = label.clamp(min=0).float() * (1 - self.smoothing) + self.smoothing / 2
            if share_B is not None:
                known_BK = known_BK & known_BK[partner_B]
                target_BK = torch.lerp(target_BK[partner_B], target_BK, share_B[:, None])
            return sigmoid_loss(out_BK, target_BK, known_BK.float(), weight_K2=weight, gamma=gamma)
        label = label.long()
        if self.loss == "arcface":
            out_BK = with_margin(out_BK, label, scale=self.scale, margin=self.margin)
        target_BK = targets(label, self.n_classes, self.smoothing)
        if share_B is not None:
            both_B1 = ((label >= 0) & (label[partner_B] >= 0))[:, None]
            target_BK = torch.lerp(target_BK[partner_B], target_BK, share_B[:, None]) * both_B1
        return softmax_loss(out_BK, target_BK, weight_K=weight, gamma=gamma)

    def _huber(self, out_BK: Tensor, label_B: Tensor, share_B: Tensor | None, partner_B: Tensor | None) -> Tensor:
        z_B = (label_B.float() - self.target_mean) / self.target_sd
        if share_B is not None:
            z_B = torch.lerp(z_B[partner_B], z_B, share_B)
        known_B = torch.isfinite(z_B)
        error_B = nn.functional.smooth_l1_loss(out_BK[:, 0].float(), torch.where(known_B, z_B, 0.0), reduction="none")
        return torch.where(known_B, error_B, 0.0).sum() / known_B.sum().clamp(min=1)

    def scores(self, out_BK: Tensor) -> Tensor:
        """Logits as scores: one probability of the positive class, one a class, one a label, or the target in its unit; (B, K) float32."""
        if self.kind == "regression":
            return out_BK.float() * self.target_sd + self.target_mean
        if self.kind == "multilabel":
            return out_BK.float().sigmoid()
        p_BK = out_BK.float().softmax(dim=1)
        return p_BK[:, 1:] if self.kind == "binary" else p_BK


def n_outputs(kind: Kind, n_classes: int) -> int:
    """Outputs of the last layer: two for a binary task, one for regression."""
    return {"binary": 2, "regression": 1}.get(kind, n_classes)


def counts_of(y: np.ndarray, kind: Kind, n_classes: int) -> tuple:
    """`Finetune.counts` of training labels, unknown ones left out."""
    if kind == "regression":
        return ()
    if kind == "multilabel":
        return tuple((int((column == 0).sum()), int((column == 1).sum())) for column in np.asarray(y).T)
    y = np.asarray(y)
    return tuple(int((y == k).sum()) for k in range(2 if kind == "binary" else n_classes))
