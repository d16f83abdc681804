"""PaPaGei's objectives: windows of like morphology attract each other (S), or windows of one person (P).

Source: Pillai et al., "PaPaGei", ICLR 2025, arXiv 2410.20542. Shape letters: B items of this rank, N items of all ranks, K bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from physio_models.gather import gather, share
from physio_models.interface import Batch, Loss, Step, unwrap
from physio_models.objectives.contrastive import (
    UNGROUPED,
    Augment,
    check_embeds,
    check_projector,
    check_temperature,
    codes,
    embed,
    nt_xent,
    projector,
    subjects,
    twice,
    untouched,
    view,
    widened,
)

AS_P = Augment()  # whose defaults are PaPaGei-P's probabilities
CROP_ALONE = Augment(noise=0.0, negate=0.0, flip=0.0, scale=0.0, crop=0.25)


@dataclass(frozen=True, kw_only=True)
class PapageiMorphology:
    """PaPaGei-S: NT-Xent over bins of the stress-induced vascular response index, and two heads that tell the pulse's shape and quality.

    ``batch["aux"]`` (B, 3) float holds sVRI, SQI (skewness) and IPA of each window, NaN where unknown. A window whose values lie outside the
    limits takes no part. loss = alpha NT-Xent + (1 - alpha) / 2 (L1 of the IPA head + L1 of the SQI head), or with ``sqi=False``
    alpha NT-Xent + (1 - alpha) L1 of the IPA head.
    """

    alpha: float = 0.6
    temperature: float = 0.07
    n_bins: int = 8  # of equal width over svri_range
    svri_range: tuple[float, float] = (0.0, 2.0)  # open interval
    most_ipa: float = 10.0  # |IPA| below it
    most_sqi: float = 3.0  # |SQI|, a skewness, below it
    sqi: bool = True  # train the second head too
    augment: Augment = CROP_ALONE

    needs: ClassVar[tuple[str, ...]] = ("aux",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "svri_range", tuple(self.svri_range))
        check_temperature(self.temperature)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha}")
        if self.n_bins < 2:
            raise ValueError(f"n_bins must be at least 2, got {self.n_bins}; in one bin no window has a negative")
        if not self.svri_range[0] < self.svri_range[1]:
            raise ValueError(f"svri_range must be (lo, hi) with lo < hi, got {self.svri_range}")
        for name in ("most_ipa", "most_sqi"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """Nothing: the heads are the network's. ``ValueError`` for a network without them."""
        check_embeds(model, "papagei_morphology")
        if not getattr(unwrap(model).cfg, "n_experts", 0):
            raise ValueError("papagei_morphology trains the heads for IPA and SQI, and this network has none: use papagei with n_experts=3")
        return nn.ModuleDict()

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        if "aux" not in batch:
            raise ValueError("papagei_morphology needs batch['aux'], the sVRI, SQI and IPA of each window (B, 3); add them where the batch is read")
        x_BCT, aux_B3, valid_BT = batch["signal"], batch["aux"], batch.get("valid")
        if aux_B3.shape != (len(x_BCT), 3):
            raise ValueError(f"batch['aux'] must be (windows, 3) = {(len(x_BCT), 3)}, the sVRI, SQI and IPA, got {tuple(aux_B3.shape)}")
        z_BD, out = embed(model, view(x_BCT, batch["index"], "view0", step, self.augment, valid_BT), valid_BT, batch.get("channel_present"))
        aux_B3 = aux_B3.to(z_BD.device).float()
        usable_B = self.usable(aux_B3)
        contrast = nt_xent(z_BD, self.bins(aux_B3[:, 0]).masked_fill(~usable_B, UNGROUPED), self.temperature)
        sqi = l1(out.sqi_B1, aux_B3[:, 1], usable_B)
        ipa = l1(out.ipa_B1, aux_B3[:, 2], usable_B)
        heads = (ipa + sqi) / 2 if self.sqi else ipa + 0.0 * sqi  # a gradient of 0, so that ranks do not wait for the head
        total = self.alpha * contrast + (1 - self.alpha) * heads
        return Loss(total, {"nt_xent": contrast.detach(), "ipa_l1": ipa.detach(), "sqi_l1": sqi.detach(), "usable": usable_B.float().mean()})

    def usable(self, aux_B3: Tensor) -> Tensor:
        """Which windows have all three values within the limits (B,); NaN has none."""
        svri_B, sqi_B, ipa_B = aux_B3.unbind(1)
        lo, hi = self.svri_range
        return (svri_B > lo) & (svri_B < hi) & (ipa_B.abs() < self.most_ipa) & (sqi_B.abs() < self.most_sqi)

    def bins(self, svri_B: Tensor) -> Tensor:
        """The bin of each sVRI, 0 to ``n_bins`` - 1."""
        lo, hi = self.svri_range
        return ((svri_B.nan_to_num() - lo) / (hi - lo) * self.n_bins).floor().long().clamp(0, self.n_bins - 1)


@dataclass(frozen=True, kw_only=True)
class PatientContrastive:
    """PaPaGei-P: two random views of a window attract each other, and so do all windows of the same subject; other subjects repel.

    The original draws one window a subject, so that no window meets another of its own; here such windows are positives and never
    negatives. Its projector is the network's own (``projection=True``); ``projector`` adds one for networks without.
    Subjects stand in ``batch["subject"]``.
    """

    temperature: float = 0.07
    projector: tuple[int, ...] = ()
    augment: Augment = AS_P

    needs: ClassVar[tuple[str, ...]] = ("subject",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "projector", tuple(self.projector))
        check_projector(self.projector)
        check_temperature(self.temperature)

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """The projector. ``ValueError`` for a network without one vector an item."""
        return projector(check_embeds(model, "patient_contrastive"), self.projector)

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        x_BCT, valid_BT = batch["signal"], batch.get("valid")
        group_B = codes(subjects(batch, "patient_contrastive"), x_BCT.device)
        views = [view(x_BCT, batch["index"], f"view{v}", step, self.augment, valid_BT) for v in range(2)]
        z_VD, out = embed(model, torch.cat(views), twice(valid_BT), twice(batch.get("channel_present")))
        p_VD = step.modules["projector"](z_VD) if self.projector else z_VD
        loss = nt_xent(p_VD, group_B.repeat(2), self.temperature) + untouched(out, z_VD)
        return Loss(loss, {"nt_xent": loss.detach()})


def l1(said_B1: Tensor, true_B: Tensor, usable_B: Tensor) -> Tensor:
    """This rank's `share` of the mean absolute error over the usable windows of all ranks."""
    usable_N = gather(usable_B.long()).rows
    error_B = (widened(said_B1)[:, 0] - true_B.nan_to_num()).abs()
    return share(torch.where(usable_B, error_B, 0.0).sum(), usable_N.sum(), len(usable_B), len(usable_N))
