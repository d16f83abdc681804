"""Supervised training from labels: the baseline that pretraining has to beat. Shape letters: B items of this rank, N of all ranks, K classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.gather import gather, share
from physio_models.interface import Batch, Loss, Step
from physio_models.objectives.contrastive import check_embeds, embed, untouched, widened

UNKNOWN = -1  # a label that counts nowhere
WEIGHT_LIMITS = (0.1, 10.0)


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Cross-entropy of a linear head on the embedding; of several labels at once with ``kind="multilabel"``.

    ``batch["label"]`` is (B,) int64, -1 where unknown, or (B, K) of 0, 1 and -1 for multilabel.
    """

    n_classes: int = 2
    kind: Literal["multiclass", "multilabel"] = "multiclass"
    class_counts: tuple[int, ...] = ()  # windows of each class in training, for weights by inverse frequency; () weighs all alike
    label_smoothing: float = 0.0  # of multiclass

    needs: ClassVar[tuple[str, ...]] = ("label",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_counts", tuple(self.class_counts))
        if self.n_classes < 2 - (self.kind == "multilabel"):
            raise ValueError(f"n_classes must be at least 2 (1 for multilabel), got {self.n_classes}")
        if self.kind not in ("multiclass", "multilabel"):
            raise ValueError(f"kind must be 'multiclass' or 'multilabel', got {self.kind!r}")
        if self.class_counts and len(self.class_counts) != self.n_classes:
            raise ValueError(f"class_counts must name {self.n_classes} counts, one a class, got {len(self.class_counts)}")
        if self.class_counts and self.kind == "multilabel":
            raise ValueError("class_counts weigh the classes of kind='multiclass'; leave them out for multilabel")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """The head. ``ValueError`` for a network without one vector an item."""
        return nn.ModuleDict({"head": nn.Linear(check_embeds(model, "supervised"), self.n_classes)})

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        if "label" not in batch:
            raise ValueError("supervised needs batch['label']; use a store with labels, and name the task where it has several")
        z_BD, out = embed(model, batch["signal"], batch.get("valid"), batch.get("channel_present"))
        logits_BK = widened(step.modules["head"](z_BD))
        label = batch["label"].to(logits_BK.device)
        if self.kind == "multilabel":
            loss, right = self._multilabel(logits_BK, label)
        else:
            loss, right = self._multiclass(logits_BK, label)
        return Loss(loss + untouched(out, z_BD), {"cross_entropy": loss.detach(), "accuracy": right})

    def _multiclass(self, logits_BK: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        if label_B.shape != logits_BK.shape[:1]:
            raise ValueError(f"batch['label'] must be (windows,) = {tuple(logits_BK.shape[:1])} for multiclass, got {tuple(label_B.shape)}")
        label_B = label_B.long()
        weight_K = logits_BK.new_tensor(class_weights(self.class_counts) if self.class_counts else [1.0] * self.n_classes)
        smoothing = self.label_smoothing
        sum_here = F.cross_entropy(logits_BK, label_B, weight_K, ignore_index=UNKNOWN, reduction="sum", label_smoothing=smoothing)
        label_N = gather(label_B).rows
        total = torch.where(label_N == UNKNOWN, 0.0, weight_K[label_N.clamp(min=0)]).sum()
        known_B = label_B != UNKNOWN
        right = (logits_BK.detach().argmax(1) == label_B)[known_B].float().mean() if known_B.any() else logits_BK.new_zeros(())
        return share(sum_here, total, len(label_B), len(label_N)), right

    def _multilabel(self, logits_BK: Tensor, label_BK: Tensor) -> tuple[Tensor, Tensor]:
        if label_BK.shape != logits_BK.shape:
            raise ValueError(f"batch['label'] must be (windows, classes) = {tuple(logits_BK.shape)} for multilabel, got {tuple(label_BK.shape)}")
        known_BK = label_BK >= 0
        error_BK = F.binary_cross_entropy_with_logits(logits_BK, label_BK.clamp(min=0).to(logits_BK.dtype), reduction="none")
        known_N = gather(known_BK.sum(1)).rows
        right = ((logits_BK.detach() > 0) == (label_BK == 1)).where(known_BK, False).sum() / known_BK.sum().clamp(min=1)
        return share(torch.where(known_BK, error_BK, 0.0).sum(), known_N.sum(), len(label_BK), len(known_N)), right


def class_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Inverse frequencies of mean 1, then held within 0.1 and 10; a class without windows gets 10. ``ValueError`` where no class has any."""
    if any(count < 0 for count in counts) or not sum(counts):
        raise ValueError(f"counts must be at least 0 and not all 0, got {tuple(counts)}")
    lo, hi = WEIGHT_LIMITS
    inverse = [1 / count if count else math.inf for count in counts]
    mean = sum(filter(math.isfinite, inverse)) / sum(count > 0 for count in counts)
    return tuple(min(max(value / mean, lo), hi) for value in inverse)
