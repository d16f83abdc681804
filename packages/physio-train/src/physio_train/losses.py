"""Losses of labels: cross-entropy and its focal, balanced, smoothed and margin forms, on hard or mixed targets. B windows, K outputs.

Targets are (B, K) shares of the classes, so that smoothing and mixup change targets and nothing else. A binary task has two outputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["cross_entropy", "focal", "arcface"]


def targets(label_B: Tensor, n_classes: int, smoothing: float = 0.0) -> Tensor:
    """One-hot rows, or for smoothing s: 1 - s + s / K at the class and s / K elsewhere (Szegedy et al. 2016). Unknown labels (-1) give rows of 0."""
    hot_BK = F.one_hot(label_B.clamp(min=0), n_classes).float()
    soft_BK = (1 - smoothing) * hot_BK + smoothing / n_classes
    return soft_BK * (label_B >= 0)[:, None]


def softmax_loss(logits_BK: Tensor, target_BK: Tensor, *, weight_K: Tensor | None = None, gamma: float = 0.0) -> Tensor:
    """Weighted mean over windows of -sum_k t_k w_k (1 - p_k)^gamma log p_k; gamma 0 is cross-entropy, else focal loss (Lin et al. 2017).

    The mean is over the targets' weights, as PyTorch's weighted cross-entropy. Rows of zeros count nowhere; without any other row the loss is 0.
    """
    log_p_BK = logits_BK.float().log_softmax(dim=1)
    weight_BK = target_BK if weight_K is None else target_BK * weight_K
    focus_BK = (1 - log_p_BK.exp()).clamp(min=0) ** gamma if gamma else torch.ones_like(log_p_BK)
    return -(weight_BK * focus_BK * log_p_BK).sum() / weight_BK.sum().clamp(min=1e-12)


def sigmoid_loss(logits_BK: Tensor, target_BK: Tensor, known_BK: Tensor, *, weight_K2: Tensor | None = None, gamma: float = 0.0) -> Tensor:
    """Mean over known cells of the binary form of `softmax_loss`; `weight_K2` weighs (negatives, positives) of each label."""
    logits_BK = logits_BK.float()
    positive_BK, negative_BK = -F.logsigmoid(logits_BK), -F.logsigmoid(-logits_BK)
    p_BK = logits_BK.sigmoid()
    if gamma:
        positive_BK, negative_BK = (1 - p_BK) ** gamma * positive_BK, p_BK**gamma * negative_BK
    w_neg_K, w_pos_K = (1.0, 1.0) if weight_K2 is None else (weight_K2[:, 0], weight_K2[:, 1])
    each_BK = target_BK * w_pos_K * positive_BK + (1 - target_BK) * w_neg_K * negative_BK
    weight_BK = (target_BK * w_pos_K + (1 - target_BK) * w_neg_K) * known_BK
    return (each_BK * known_BK).sum() / weight_BK.sum().clamp(min=1e-12)


def with_margin(logits_BK: Tensor, label_B: Tensor, *, scale: float, margin: float) -> Tensor:
    """ArcFace (Deng et al. 2019, equation 3): of logits scale * cos(theta), the true class's become scale * cos(theta + margin).

    Where theta + margin would pass pi, the cosine is lowered by margin * sin(pi - margin) instead, so that it never rises again.
    """
    label_B1 = label_B.clamp(min=0)[:, None]
    cosine_B1 = (logits_BK.gather(1, label_B1).float() / scale).clamp(-1 + 1e-6, 1 - 1e-6)
    angle_B1 = torch.arccos(cosine_B1)
    limit = torch.pi - margin
    moved_B1 = torch.where(angle_B1 <= limit, torch.cos(angle_B1 + margin), cosine_B1 - margin * torch.sin(torch.tensor(limit)))
    return logits_BK.float().scatter(1, label_B1, scale * moved_B1)


def balanced_weights(label_counts: Tensor, limit: float = 10.0) -> Tensor:
    """Inverse frequency N / (K n_k), at most `limit`; a class without windows gets 0, for it has nothing to weigh."""
    counts = label_counts.float()
    there = counts > 0
    weight = counts.sum(-1, keepdim=True) / (there.sum(-1, keepdim=True).clamp(min=1) * counts.clamp(min=1))
    return torch.where(there, weight.clamp(max=limit), 0.0)
