"""CWT-MAE's contrastive pretraining: two channels of a window (PPG and ECG) in one tower, alike to one another and unlike other windows.

Each channel is masked, encoded and reconstructed by itself; the means of its visible tokens, projected, meet in a symmetric InfoNCE whose
negatives are those of all ranks. Reconstruction comes first, contrast grows, and then leads. Shape letters: B items of this rank, N of all
ranks, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.gather import gather, share
from physio_models.interface import Batch, Loss, Masked, Step, unwrap
from physio_models.objectives.contrastive import widened
from physio_models.objectives.dual_domain import DualDomain


@dataclass(frozen=True, kw_only=True)
class PairedContrastive:
    """w * reconstruction + alpha * InfoNCE in three stages; the defaults are CWT-MAE's (stages of 4 and 10 of 200 epochs)."""

    reconstruction: DualDomain = field(default_factory=partial(DualDomain, mask="asynchronous"))
    temperature: float = 0.07
    projection: int = 256  # features that are compared
    stages: tuple[float, float] = (0.02, 0.05)  # of progress: alpha is 0 before the first, then grows along a line, and is whole from the second
    alpha: float = 1.0
    late_weight: float = 0.1  # of the reconstruction from the second mark on; 1 before

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.projection < 1:
            raise ValueError(f"projection must be at least 1 feature, got {self.projection}")
        if len(self.stages) != 2 or not 0 <= self.stages[0] <= self.stages[1] <= 1:
            raise ValueError(f"stages must be two ascending shares of progress in [0, 1], got {self.stages}")
        if self.alpha < 0 or self.late_weight < 0:
            raise ValueError(f"alpha and late_weight must be at least 0, got {self.alpha} and {self.late_weight}")

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """The projector, shared by both channels. ``ValueError`` unless the model keeps two channels apart."""
        cfg = unwrap(model).cfg
        if cfg.n_channels != 2 or cfg.attention != "separate":
            raise ValueError(f"the model must have two channels and attention='separate', got {cfg.n_channels} and {cfg.attention!r}; use cwt_mae_pair")
        return nn.ModuleDict({"projector": nn.Sequential(nn.Linear(cfg.width, cfg.width), nn.GELU(), nn.Linear(cfg.width, self.projection))})

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        out = self.reconstruction.run(model, batch, step)
        mae = self.reconstruction.score(out, unwrap(model).cfg, batch.get("valid"))
        z_BCD = step.modules["projector"](out.pooled_BCD)
        seen_BC = (~out.mask_BCN & out.real_BCN).any(-1)
        nce = paired_info_nce(z_BCD[:, 0], z_BCD[:, 1], self.temperature, seen_BC.all(1))
        weight, alpha = self.weights(step.progress)
        return Loss(weight * mae.total + alpha * nce, mae.parts | {"nce": nce.detach()})

    def reconstruct(self, model: nn.Module, batch: Batch, step: Step) -> Masked:
        """The z-scored waveforms under this step's masks, as samples."""
        return self.reconstruction.reconstruct(model, batch, step)

    def weights(self, progress: float) -> tuple[float, float]:
        """Of the reconstruction and of the contrast at a point of the run."""
        first, second = self.stages
        if progress >= second:
            return self.late_weight, self.alpha
        return 1.0, self.alpha * max(0.0, (progress - first) / (second - first))


def paired_info_nce(a_BD: Tensor, b_BD: Tensor, temperature: float, counts_B: Tensor) -> Tensor:
    """The mean of finding b_i by a_i among all b and the reverse: cross-entropy of cosine similarities over temperature, a scalar.

    Rows where ``counts_B`` is False are neither anchors nor candidates. Candidates are those of all ranks, with gradients.
    """
    with torch.autocast(a_BD.device.type, enabled=False):
        a_BD, b_BD = F.normalize(widened(a_BD), dim=1), F.normalize(widened(b_BD), dim=1)
        a_ND, (b_ND, start), counts_N = gather(a_BD).rows, gather(b_BD), gather(counts_B).rows
        own_B = torch.arange(start, start + len(a_BD), device=a_BD.device)
        left_out = counts_B[:, None] & ~counts_N
        both = [F.cross_entropy((x @ y.T / temperature).masked_fill(left_out, float("-inf")), own_B, reduction="none") for x, y in ((a_BD, b_ND), (b_BD, a_ND))]
        return share(torch.where(counts_B, (both[0] + both[1]) / 2, 0.0).sum(), counts_N.sum(), len(a_BD), len(a_ND))
