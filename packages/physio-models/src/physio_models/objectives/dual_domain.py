"""CWT-MAE's loss: hidden patches of the scalogram, and of the waveform under them, are reconstructed together.

Tubelet masks hide whole columns (all scales of a span of time) in all channels alike, asynchronous ones in each channel by itself, random
ones single patches. Shape letters: B items, C channels, T samples, W columns, H rows, N = W H places, V values of a patch, P planes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.cwt_frontend import scalogram, to_spec_patches, zscore
from physio_models.cwt_mae import CwtMaeShape, Reconstruction, Version
from physio_models.interface import Batch, Loss, Masked, Step, unwrap
from physio_models.masking import n_hidden, random_mask

CwtMask = Literal["tubelet", "asynchronous", "random", "mixed"]


class Hidden(NamedTuple):
    """A mask (B, 1 or C, N), True = hidden, and how many places an item shows at most; exactly, where channels share them or are separate."""

    mask_BCN: Tensor
    n_visible: int


@dataclass(frozen=True, kw_only=True)
class DualDomain:
    """Squared errors of hidden scalogram patches, summed over weighted planes, plus those of the waveform; the defaults are version 3's."""

    mask: CwtMask = "tubelet"
    mask_ratio: float = 0.75  # of a channel's columns (of its patches for "random")
    start_ratio: float | None = None  # a curriculum: the ratio before the ramp; None: no curriculum
    ramp: tuple[float, float] = (0.025, 0.125)  # of progress, over which start_ratio becomes mask_ratio: epochs 5 to 25 of 200
    mixture: tuple[float, float, float] = (0.4, 0.2, 0.4)  # of items under "mixed": tubelet, asynchronous, tubelet with one channel wholly hidden
    plane_weights: tuple[float, ...] = (1.0, 0.5, 0.1)  # of signal, first and second difference
    time_weight: float = 1.0
    time_on: Literal["masked", "all"] = "masked"  # samples of hidden columns, or all
    scale_band_hz: tuple[float, float] | None = None  # weight scales outside this band less, by 12 dB an octave; None: all alike
    consistency_weight: float = 0.0  # of the scalogram of the reconstructed waveform against the reconstructed scalogram; the original tried 0.5

    def __post_init__(self) -> None:
        for field in ("ramp", "mixture", "plane_weights", "scale_band_hz"):
            value = getattr(self, field)
            object.__setattr__(self, field, None if value is None else tuple(value))
        for field, allowed in (("mask", ("tubelet", "asynchronous", "random", "mixed")), ("time_on", ("masked", "all"))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")
        for field in ("mask_ratio", "start_ratio"):
            if getattr(self, field) is not None and not 0 < getattr(self, field) < 1:
                raise ValueError(f"{field} must lie in (0, 1), got {getattr(self, field)}")
        if not 0 <= self.ramp[0] <= self.ramp[1] <= 1:
            raise ValueError(f"ramp must ascend in [0, 1], got {self.ramp}")
        if min(self.mixture) < 0 or abs(sum(self.mixture) - 1) > 1e-6:
            raise ValueError(f"mixture must be three shares that sum to 1, got {self.mixture}")
        for field in ("time_weight", "consistency_weight"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must be at least 0, got {getattr(self, field)}")
        if min(self.plane_weights) < 0:
            raise ValueError(f"plane_weights must be at least 0, got {self.plane_weights}")
        if self.scale_band_hz is not None and not 0 < self.scale_band_hz[0] < self.scale_band_hz[1]:
            raise ValueError(f"scale_band_hz must be (low, high) in Hz, 0 < low < high, got {self.scale_band_hz}")

    @classmethod
    def version(cls, version: Version) -> DualDomain:
        """What a version of CWT-MAE trains with: random patches and all samples in v1 and v2, tubelets and hidden samples in v3."""
        settings = {
            "v1": {"mask": "random", "time_on": "all"},
            "v2": {"mask": "random", "time_on": "all"},
            "v3": {},
            "v3_contrastive": {"mask": "asynchronous"},
        }
        if version not in settings:
            raise ValueError(f"version must be one of {', '.join(settings)}, got {version!r}")
        return cls(**settings[version])

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """This objective owns nothing that learns."""
        return nn.ModuleDict()

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        return self.score(self.run(model, batch, step), unwrap(model).cfg, batch.get("valid"))

    def reconstruct(self, model: nn.Module, batch: Batch, step: Step) -> Masked:
        """The z-scored waveform under this step's masks, as samples; those after the last whole patch stay, and without a waveform head hidden ones are NaN."""
        out, cfg, valid_BT = self.run(model, batch, step), unwrap(model).cfg, batch.get("valid")
        target_BCT = zscore(batch["signal"].float(), valid_BT)
        rest = (0, target_BCT.shape[-1] - cfg.n_columns * cfg.patch_samples)
        hidden_BCT = F.pad(_samples(_columns(out.mask_BCN & out.real_BCN, cfg), cfg.patch_samples, valid_BT), rest)
        pred_BCT = torch.full_like(target_BCT, float("nan")) if out.time_BCT is None else F.pad(out.time_BCT.float(), rest)
        return Masked(torch.where(hidden_BCT, pred_BCT, target_BCT), target_BCT, hidden_BCT)

    def run(self, model: nn.Module, batch: Batch, step: Step) -> Reconstruction:
        """The one forward pass, with this step's masks."""
        x_BCT = batch["signal"]
        hidden = self.draw(batch["index"], unwrap(model).cfg, step)
        return model(
            x_BCT, hidden.mask_BCN.to(x_BCT.device), n_visible=hidden.n_visible, valid_BT=batch.get("valid"), channel_present_BC=batch.get("channel_present")
        )

    def ratio(self, progress: float) -> float:
        """What share is hidden at a point of the run: ``start_ratio`` before the ramp, ``mask_ratio`` after it, a line between."""
        if self.start_ratio is None:
            return self.mask_ratio
        first, last = self.ramp
        along = 1.0 if progress >= last else max(0.0, (progress - first) / (last - first))
        return self.start_ratio + along * (self.mask_ratio - self.start_ratio)

    def draw(self, index_B: Tensor, cfg: CwtMaeShape, step: Step) -> Hidden:
        """What each item hides. ``ValueError`` where the ratio hides nothing or everything, or a whole channel with no other to tell of it."""
        ratio, channels, rows = self.ratio(step.progress), cfg.n_channels, cfg.n_rows
        unit = cfg.n_places if self.mask == "random" else cfg.n_columns
        gone = n_hidden(ratio, unit)
        if not 0 < gone < unit:
            raise ValueError(f"mask_ratio={ratio:g} hides {gone} of {unit}; use a ratio from {1 / unit:.3g} to below 1, or shorter patches")
        if self.mask == "mixed" and (channels == 1 or cfg.attention == "separate"):
            raise ValueError("mask='mixed' hides whole channels and needs at least two that meet in attention; use 'tubelet' or 'asynchronous'")
        if self.mask == "tubelet":
            mask_BW = random_mask(step.streams.uniform("mask", index_B, (unit,)), ratio)
            return Hidden(mask_BW.repeat_interleave(rows, 1)[:, None], (unit - gone) * rows)
        mask_BCU = random_mask(step.streams.uniform("mask", index_B, (channels * unit,)).reshape(-1, unit), ratio).unflatten(0, (-1, channels))
        if self.mask == "mixed":
            mask_BCU = self._mixed(mask_BCU, step.streams.uniform("mask_kind", index_B, (2,)))
        mask_BCN = mask_BCU if self.mask == "random" else mask_BCU.repeat_interleave(rows, 2)
        together = 1 if channels == 1 or cfg.attention == "separate" else channels
        return Hidden(mask_BCN, min(unit, together * (unit - gone)) * (1 if self.mask == "random" else rows))

    def _mixed(self, mask_BCW: Tensor, u_B2: Tensor) -> Tensor:
        """Kind by the first number of an item, the channel to hide by the second; the first channel's columns serve as the tubelet."""
        tubelet, asynchronous, _ = self.mixture
        channels = mask_BCW.shape[1]
        own_B = (u_B2[:, 0] >= tubelet) & (u_B2[:, 0] < tubelet + asynchronous)
        mask_BCW = torch.where(own_B[:, None, None], mask_BCW, mask_BCW[:, :1])
        dropped_BC = torch.arange(channels, device=u_B2.device) == (u_B2[:, 1:] * channels).long()
        return mask_BCW | (dropped_BC & (u_B2[:, :1] >= tubelet + asynchronous))[..., None]

    def score(self, out: Reconstruction, cfg: CwtMaeShape, valid_BT: Tensor | None = None) -> Loss:
        """The loss of a reconstruction, in float32. Short tails and absent channels never count; a patch that is half real counts half."""
        hidden_BCN = out.mask_BCN & out.real_BCN
        spec = self._patch_error(out.spec_BCNV, out.spec_target_BCNV, hidden_BCN, cfg, valid_BT)
        total, parts = spec, {"spec": spec.detach()}
        if out.time_BCT is None:
            if self.consistency_weight:
                raise ValueError("consistency_weight needs a reconstructed waveform: set time_head=True in the model")
            return Loss(total, parts)
        hidden_BCT = _samples(_columns(hidden_BCN, cfg), cfg.patch_samples, valid_BT)
        real_BCT = _samples(out.real_BCN[..., :: cfg.n_rows], cfg.patch_samples, valid_BT)
        scored_BCT = hidden_BCT if self.time_on == "masked" else real_BCT
        time = _mean_where((out.time_BCT.float() - out.time_target_BCT).square(), scored_BCT)
        total, parts = total + self.time_weight * time, parts | {"time": time.detach()}
        if self.consistency_weight:
            filled_BCT = torch.where(hidden_BCT, out.time_BCT.float(), out.time_target_BCT)
            with torch.autocast(filled_BCT.device.type, enabled=False):
                again_BCNV = to_spec_patches(scalogram(filled_BCT, cfg, None if valid_BT is None else valid_BT[:, : filled_BCT.shape[-1]]), cfg)
            consistency = self._patch_error(out.spec_BCNV, again_BCNV, hidden_BCN, cfg, valid_BT)
            total, parts = total + self.consistency_weight * consistency, parts | {"consistency": consistency.detach()}
        return Loss(total, parts)

    def _patch_error(self, a_BCNV: Tensor, b_BCNV: Tensor, scored_BCN: Tensor, cfg: CwtMaeShape, valid_BT: Tensor | None) -> Tensor:
        """Mean over the real samples of scored patches of the squared error, averaged over a plane's scales and summed over weighted planes."""
        n_planes = 1 + cfg.differences
        if len(self.plane_weights) < n_planes:
            raise ValueError(f"plane_weights must name {n_planes} planes, got {self.plane_weights}")
        error = (a_BCNV.float() - b_BCNV.float()).square().unflatten(-1, (n_planes, cfg.patch_scales, cfg.patch_samples))
        share_BN = None
        if valid_BT is not None:
            real_BNS = valid_BT[:, : cfg.n_columns * cfg.patch_samples].bool().unflatten(1, (cfg.n_columns, -1)).repeat_interleave(cfg.n_rows, 1)
            error, share_BN = error.masked_fill(~real_BNS[:, None, :, None, None], 0.0), real_BNS.float().mean(-1)
        error = error.mean(-1)
        if self.scale_band_hz is not None:
            weight_HS = scale_weights(cfg.scale_hz, self.scale_band_hz).view(cfg.n_rows, 1, cfg.patch_scales).to(error.device)
            error = error * weight_HS.repeat(cfg.n_columns, 1, 1)
        planes = torch.tensor(self.plane_weights[:n_planes], device=error.device)
        error_BCN = (error.mean(-1) * planes).sum(-1)  # a matrix product would fall to half precision under autocast
        if share_BN is None:
            return _mean_where(error_BCN, scored_BCN)
        return error_BCN.masked_fill(~scored_BCN, 0.0).sum() / (scored_BCN * share_BN[:, None]).sum().clamp(min=1 / cfg.patch_samples)


def scale_weights(scale_hz: tuple[float, ...], band_hz: tuple[float, float]) -> Tensor:
    """(S,) float32 of mean 1: alike inside the band, falling with the square of the frequency's ratio to its edge outside."""
    hz = torch.tensor(scale_hz, dtype=torch.float64)
    weight = torch.minimum((hz / band_hz[0]).square(), (band_hz[1] / hz).square()).clamp(max=1.0)
    return (weight / weight.mean()).float()


def _columns(hidden_BCN: Tensor, cfg: CwtMaeShape) -> Tensor:
    """Columns of which more than half the rows are hidden, (B, C, W)."""
    return hidden_BCN.unflatten(2, (cfg.n_columns, cfg.n_rows)).float().mean(-1) > 0.5


def _samples(columns_BCW: Tensor, patch: int, valid_BT: Tensor | None) -> Tensor:
    """Columns as samples (B, C, W * patch), without those past a short tail."""
    samples_BCT = columns_BCW.repeat_interleave(patch, dim=2)
    return samples_BCT if valid_BT is None else samples_BCT & valid_BT[:, None, : samples_BCT.shape[-1]].bool()


def _mean_where(error: Tensor, scored: Tensor) -> Tensor:
    return error.masked_fill(~scored, 0.0).sum() / scored.sum().clamp(min=1)
