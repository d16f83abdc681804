"""MERL's objective: signals find their reports (CMA), and a signal's two dropout views find each other (UMA).

Source: Liu et al., ICML 2024, arXiv 2403.06659, equations 1 to 4. Negatives are those of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from physio_models.interface import Batch, Loss, Step, unwrap
from physio_models.merl import Merl
from physio_models.objectives.contrastive import check_temperature, info_nce


@dataclass(frozen=True, kw_only=True)
class MerlAlignment:
    """CMA + weight x UMA, each the sum of both directions of InfoNCE. ``batch["text_emb"]`` (B, E) holds the reports' vectors."""

    temperature: float = 0.07
    uma_weight: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("text_emb",)

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.uma_weight < 0:
            raise ValueError(f"uma_weight must be at least 0, got {self.uma_weight}")

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """This objective owns nothing that learns. ``ValueError`` for a network without a text side."""
        if not isinstance(unwrap(model), Merl):
            raise ValueError(f"merl needs a network with a text side (merl), got {type(unwrap(model)).__name__}")
        return nn.ModuleDict()

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        if "text_emb" not in batch:
            raise ValueError("merl needs batch['text_emb'], a vector of each report (text.ReportEmbedder); use a store with reports")
        given = {f"{key}_{axes}": batch[key] for key, axes in (("valid", "BT"), ("channel_present", "BC")) if key in batch}
        out = model(batch["signal"], batch["text_emb"], **given)
        cma = info_nce(out.ecg_BD, out.text_BD, self.temperature)
        uma = info_nce(out.view1_BD, out.view2_BD, self.temperature)
        return Loss(cma + self.uma_weight * uma, {"cma": cma.detach(), "uma": uma.detach()})
