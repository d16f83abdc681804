"""Masked reconstruction: hide patches of the waveform, score the reconstruction. Shape letters: B items, C channels, T samples, N patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from physio_models.interface import Batch, Loss, Masked, Step
from physio_models.masking import MASKS, MaskKind, n_patches, to_samples


@dataclass(frozen=True, kw_only=True)
class MaskedReconstruction:
    """Mean squared error on hidden samples; the defaults are HiMAE's (arXiv 2510.25785): 80 % of 5-sample patches at random."""

    patch: int = 5  # samples
    mask_ratio: float | tuple[float, float] = 0.8  # fraction hidden; (lo, hi) draws one per item
    mask: MaskKind = "random"  # scattered patches, one run of them, or the last ones
    loss_on: Literal["masked", "all"] = "masked"
    clean_fraction: float = 0.0  # of the items that stay unmasked, so that running statistics know unmasked input
    reference: bool = False  # True sums over channels as the original does, instead of averaging

    def __post_init__(self) -> None:
        if isinstance(self.mask_ratio, list):
            object.__setattr__(self, "mask_ratio", tuple(self.mask_ratio))
        lo, hi = self._range
        if self.patch < 1:
            raise ValueError(f"patch must be at least 1 sample, got {self.patch}")
        if not 0 < lo <= hi <= 1:
            raise ValueError(f"mask_ratio must lie in (0, 1], a range ascending, got {self.mask_ratio}")
        if not 0 <= self.clean_fraction < 1:
            raise ValueError(f"clean_fraction must lie in [0, 1), got {self.clean_fraction}; with all items unmasked there is nothing to learn")
        if self.mask not in MASKS:
            raise ValueError(f"mask must be one of {', '.join(MASKS)}, got {self.mask!r}")
        if self.loss_on not in ("masked", "all"):
            raise ValueError(f"loss_on must be 'masked' or 'all', got {self.loss_on!r}")

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """This objective owns nothing that learns."""
        return nn.ModuleDict()

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        x_BCT, valid_BT = batch["signal"], batch.get("valid")
        mask_BT = self.draw(batch["index"], x_BCT.shape[-1], step).to(x_BCT.device)
        out = model(x_BCT, mask_BT) if valid_BT is None else model(x_BCT, mask_BT, valid_BT=valid_BT)
        mse = masked_mse(out, valid_BT=valid_BT, loss_on=self.loss_on, reference=self.reference)
        return Loss(mse, {"mse": mse.detach()})

    def draw(self, index_B: Tensor, n_samples: int, step: Step) -> Tensor:
        """Which samples of each item are hidden: (B, T) bool. ``ValueError`` if the patch does not divide the window."""
        n = n_patches(n_samples, self.patch)
        lo, hi = self._range
        if int(hi * n) < 1:
            raise ValueError(
                f"mask_ratio={self.mask_ratio} of {n} patches hides none; use a ratio of at least {1 / n:.3g} or a shorter patch than {self.patch}"
            )
        noise_BN = step.streams.uniform("mask", index_B, (n,))
        ratio = lo if lo == hi else lo + (hi - lo) * step.streams.uniform("mask_ratio", index_B, (1,))[:, 0].double()
        mask_BN = MASKS[self.mask](noise_BN, ratio)
        if self.clean_fraction:
            mask_BN = mask_BN & (step.streams.uniform("clean", index_B, (1,)) >= self.clean_fraction)
        return to_samples(mask_BN, self.patch)

    @property
    def _range(self) -> tuple[float, float]:
        if isinstance(self.mask_ratio, tuple):
            if len(self.mask_ratio) != 2:
                raise ValueError(f"mask_ratio must be a number or (lo, hi), got {self.mask_ratio}")
            return self.mask_ratio
        return self.mask_ratio, self.mask_ratio


def masked_mse(out: Masked, *, valid_BT: Tensor | None = None, loss_on: Literal["masked", "all"] = "masked", reference: bool = False) -> Tensor:
    """sum(mask (pred - x)^2) / (sum(mask) C + 1e-9), a scalar over the whole batch; samples that are not valid never count.

    ``reference=True`` leaves out C, as the original does: with two channels it is the sum of their errors.
    """
    scored_B1T = out.mask_B1T if loss_on == "masked" else torch.ones_like(out.mask_B1T)
    if valid_BT is not None:
        scored_B1T = scored_B1T & valid_BT[:, None, :].bool()
    error_BCT = (out.pred_BCT.float() - out.target_BCT.float()).square().masked_fill(~scored_B1T, 0.0)
    n_channels = 1 if reference else error_BCT.shape[1]
    return error_BCT.sum() / (scored_B1T.sum() * n_channels + 1e-9)
