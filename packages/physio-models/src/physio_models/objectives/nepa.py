"""Next-embedding prediction: the direction of the next patch's embedding. Shape letters: B items, N patches, D features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.interface import Batch, Loss, Step, unwrap
from physio_models.nepa import NextEmbedding


@dataclass(frozen=True, kw_only=True)
class NextEmbeddingPrediction:
    """-mean cos(prediction, stop-gradient of the next embedding) (Xu et al., arXiv 2512.16922).

    Embeddings of a signal with an offset share one direction, so their raw cosine is high before anything is learnt, on white noise too.
    With ``center`` the mean embedding of the rank's batch is taken off both sides: a constant answer then scores 0.
    """

    center: bool = True  # False is the published loss

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """Nothing that learns. ``ValueError`` for a network that predicts no embedding."""
        net = unwrap(model)
        if getattr(getattr(net, "cfg", None), "role", "") != "next_embedding":
            raise ValueError(f"next_embedding trains a network that predicts its own next embedding, {type(net).__name__} does not: choose the model nepa")
        return nn.ModuleDict()

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        out = model(batch["signal"], valid_BT=batch.get("valid"), channel_present_BC=batch.get("channel_present"))
        cosine, floor = agreement(out, center=self.center)
        return Loss(-cosine, {"cosine": cosine.detach(), "cosine_of_constant": floor.detach()})


def agreement(out: NextEmbedding, *, center: bool) -> tuple[Tensor, Tensor]:
    """Mean cosine between prediction and next embedding, and the cosine that always answering the mean embedding would have."""
    target_BND, pred_BND = out.embedded_BND[:, 1:].detach().float(), out.pred_BND[:, :-1].float()
    weight_BN = torch.ones(target_BND.shape[:2], device=target_BND.device)
    if out.valid_BN is not None:
        weight_BN = (out.valid_BN[:, 1:] & out.valid_BN[:, :-1]).float()
    n = weight_BN.sum().clamp(min=1)
    mean_D = (target_BND * weight_BN[..., None]).sum((0, 1)) / n
    floor = (F.cosine_similarity(mean_D.expand_as(target_BND), target_BND, dim=-1) * weight_BN).sum() / n
    if center:
        target_BND, pred_BND = target_BND - mean_D, pred_BND - mean_D
    cosine_BN = F.cosine_similarity(pred_BND, target_BND, dim=-1)
    return (cosine_BN * weight_BN).sum() / n, floor
