"""Masked reconstruction: hide part of the waveform, score what is put there. Shape letters: B items, C channels, T samples, N patches.

A network that masks samples (HiMAE) is called as `model(x_BCT, mask_BT)`, with `valid_BT=` and `channel_present_BC=` where the batch has them.
A network with tokens says with `mask_axes` what a mask counts, {"time": N}, {"lead": C} or both, lead first, and is called as
`model(x_BCT, mask, n_visible=, valid_BT=, channel_present_BC=)`; where it can reconstruct a part of what is hidden, its `predicts_part` is
True and it also takes `predict=` (a mask like the first) and `n_predicted=`. All return `Masked`, whose mask is on samples and True where the
reconstruction is to be scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.interface import Batch, Loss, Masked, Step, unwrap
from physio_models.masking import MASKS, MaskKind, n_hidden, n_patches, part_of, to_samples

SAMPLE_PATCH = 5  # samples, for networks that mask samples
Error = Literal["mse", "l1", "huber"]


@dataclass(frozen=True, kw_only=True)
class MaskedReconstruction:
    """Error on what is hidden; the defaults are HiMAE's (arXiv 2510.25785): mean square, 80 % of 5-sample patches at random."""

    patch: int | None = None  # samples hidden together; None: the network's token, or 5 where it masks samples
    mask_ratio: float | tuple[float, float] = 0.8  # fraction hidden; (lo, hi) draws one per item
    mask: MaskKind = "random"  # scattered patches, one run of them, or the last ones
    leads: Literal["together", "apart", "whole"] | None = (
        None  # one stretch of time in all leads (tubelet), each lead on its own, whole leads; None: as the tokens are
    )
    loss_on: Literal["masked", "all"] = "masked"
    error: Error = "mse"
    huber_delta: float = 1.0  # error at which "huber" turns from square to straight
    norm_pix: bool = False  # score against patches of mean 0 and variance 1 (He et al., arXiv 2111.06377), each lead's on its own
    predict_fraction: float = 1.0  # of what is hidden that is reconstructed, by networks that can (CrossMAE, arXiv 2401.14391)
    clean_fraction: float = 0.0  # of the items that stay unmasked, so that running statistics know unmasked input
    reference: bool = False  # True sums over channels as HiMAE's original does, instead of averaging; for networks that hide all leads together

    def __post_init__(self) -> None:
        if isinstance(self.mask_ratio, list):
            object.__setattr__(self, "mask_ratio", tuple(self.mask_ratio))
        lo, hi = self._range
        if self.patch is not None and self.patch < 1:
            raise ValueError(f"patch must be at least 1 sample, got {self.patch}")
        if not 0 < lo <= hi <= 1:
            raise ValueError(f"mask_ratio must lie in (0, 1], a range ascending, got {self.mask_ratio}")
        if not 0 <= self.clean_fraction < 1:
            raise ValueError(f"clean_fraction must lie in [0, 1), got {self.clean_fraction}; with all items unmasked there is nothing to learn")
        if not 0 < self.predict_fraction <= 1:
            raise ValueError(f"predict_fraction must lie in (0, 1], got {self.predict_fraction}")
        if not self.huber_delta > 0:
            raise ValueError(f"huber_delta must be positive, got {self.huber_delta}")
        if self.norm_pix and self.patch == 1:
            raise ValueError("norm_pix must be False for patch=1: a single sample has no variance; use patch=2 or more")
        tables = {"mask": tuple(MASKS), "loss_on": ("masked", "all"), "error": tuple(ERRORS), "leads": (None, "together", "apart", "whole")}
        for name, allowed in tables.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}")
        if self.predict_fraction < 1 and self.loss_on == "all":
            raise ValueError(f"loss_on must be 'masked' with predict_fraction={self.predict_fraction}: the rest is never reconstructed")

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """This objective owns nothing that learns. ``ValueError`` for ``reference=True`` and a network that hides each lead on its own."""
        self._only_together(unwrap(model))
        return nn.ModuleDict()

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """The error as a scalar over the whole batch, and as the part of its name (``mse`` ...)."""
        out = self.reconstruct(model, batch, step)
        if self.norm_pix:
            patch = self._norm_patch(unwrap(model), batch["signal"])
            out = out._replace(target_BCT=standardised_patches(out.target_BCT, patch, _real(batch)))
        total = masked_error(
            out, self.error, valid_BT=batch.get("valid"), present_BC=batch.get("channel_present"), loss_on=self.loss_on,
            reference=self.reference, huber_delta=self.huber_delta,
        )  # fmt: skip
        return Loss(total, {self.error: total.detach()})

    def reconstruct(self, model: nn.Module, batch: Batch, step: Step) -> Masked:
        """What the network makes of a batch under this step's masks; it is called once. ``ValueError`` for a network that the fields do not fit."""
        x_BCT, index_B, net = batch["signal"], batch["index"], unwrap(model)
        self._only_together(net)
        if self.loss_on == "all" and getattr(net, "predicts_part", False):
            raise ValueError("loss_on must be 'masked' for a network whose decoder reconstructs hidden tokens alone")
        axes = getattr(net, "mask_axes", None)
        if axes is None:
            self._only_leads("together", "it masks samples of all channels")
            self._only_whole(net)
            mask_BT = self.draw(index_B, x_BCT.shape[-1], step).to(x_BCT.device)
            given = {"valid_BT": batch.get("valid"), "channel_present_BC": batch.get("channel_present")}
            return model(x_BCT, mask_BT, **{name: real for name, real in given.items() if real is not None})
        mask, n_visible = self.draw_tokens(index_B, axes, x_BCT.shape[-1], step)
        mask = mask.to(x_BCT.device)
        options = {"n_visible": n_visible, "valid_BT": batch.get("valid"), "channel_present_BC": batch.get("channel_present")}
        if self.predict_fraction < 1:
            self._only_whole(net)
            noise = step.streams.uniform("predict", index_B, tuple(mask.shape[1:])).to(x_BCT.device)
            options["predict"] = part_of(mask, noise, self.predict_fraction)
            options["n_predicted"] = None if n_visible is None else max(1, int(self.predict_fraction * (mask.shape[-1] - n_visible)))
        return model(x_BCT, mask, **options)

    def draw(self, index_B: Tensor, n_samples: int, step: Step) -> Tensor:
        """Which samples of each item are hidden: (B, T) bool. ``ValueError`` if the patch does not divide the window."""
        patch = self.patch or SAMPLE_PATCH
        return to_samples(self._drawn(index_B, n_patches(n_samples, patch), step, f"a shorter patch than {patch}"), patch)

    def draw_tokens(self, index_B: Tensor, axes: Mapping[str, int], n_samples: int, step: Step) -> tuple[Tensor, int | None]:
        """Which tokens of each item are hidden, (B, N) or (B, C, N) bool, and how many of an item (of a lead) are visible, where that is always the same."""
        lo, hi = self._range
        fixed = lo == hi and not self.clean_fraction
        remedy = "a window of more tokens"
        if "time" not in axes:
            self._only_leads("whole", "its tokens are leads")
            if self.patch not in (None, n_samples):
                raise ValueError(f"patch must be None for a network whose tokens are whole leads, got {self.patch}")
            n = axes["lead"]
            return self._drawn(index_B, n, step, remedy), n - n_hidden(lo, n) if fixed else None
        n, n_leads = axes["time"], axes.get("lead")
        group = self._group(n, n_samples)
        if n_leads is None:
            self._only_leads("together", "its tokens span all leads")
        if self.leads == "whole":
            return self._drawn(index_B, n_leads, step, "fewer whole leads")[:, :, None].expand(-1, -1, n), None
        n_visible = n - n_hidden(lo, n // group) * group if fixed else None
        if n_leads is None:
            return to_samples(self._drawn(index_B, n // group, step, remedy), group), n_visible
        if self.leads == "together":
            mask_BN = to_samples(self._drawn(index_B, n // group, step, remedy), group)
            return mask_BN[:, None, :].expand(-1, n_leads, -1), n_visible
        mask_BCN = self._drawn(index_B, n // group, step, remedy, n_leads)
        return mask_BCN.repeat_interleave(group, dim=2), n_visible

    def _drawn(self, index_B: Tensor, n: int, step: Step, remedy: str, n_leads: int | None = None) -> Tensor:
        """The mask of this step over n places, (B, n), or in each lead on its own, (B, C, n)."""
        lo, hi = self._range
        if int(hi * n) < 1:
            raise ValueError(f"mask_ratio={self.mask_ratio} of {n} patches hides none; use a ratio of at least {1 / n:.3g} or {remedy}")
        noise = step.streams.uniform("mask", index_B, (n,) if n_leads is None else (n_leads, n))
        ratio: float | Tensor = lo if lo == hi else lo + (hi - lo) * step.streams.uniform("mask_ratio", index_B, (1,))[:, 0].double()
        if n_leads is None:
            mask = MASKS[self.mask](noise, ratio)
        else:
            by_lead = ratio.repeat_interleave(n_leads) if isinstance(ratio, Tensor) else ratio
            mask = MASKS[self.mask](noise.flatten(0, 1), by_lead).unflatten(0, (-1, n_leads))
        if self.clean_fraction:
            keep = step.streams.uniform("clean", index_B, (1,)) >= self.clean_fraction
            mask = mask & (keep if n_leads is None else keep[..., None])
        return mask

    def _group(self, n_tokens: int, n_samples: int) -> int:
        """How many tokens are hidden together."""
        token = n_samples // n_tokens
        if self.patch is None:
            return 1
        if self.patch % token or n_tokens % (self.patch // token):
            raise ValueError(f"patch={self.patch} samples must be whole tokens of {token} samples and divide the window of {n_samples}; use patch={token}")
        return self.patch // token

    def _norm_patch(self, net: nn.Module, x_BCT: Tensor) -> int:
        axes = getattr(net, "mask_axes", None)
        patch = (self.patch or SAMPLE_PATCH) if axes is None else self.patch or x_BCT.shape[-1] // axes.get("time", 1)
        if patch == 1:
            raise ValueError("norm_pix needs a patch of 2 samples or more: this network's token is one sample; set patch")
        return patch

    def _only_leads(self, possible: str, reason: str) -> None:
        if self.leads not in (None, possible):
            raise ValueError(f"leads must be None or {possible!r} for this network, since {reason}; got {self.leads!r}")

    def _only_together(self, net: nn.Module) -> None:
        if self.reference and "lead" in (getattr(net, "mask_axes", None) or {}):
            raise ValueError(
                f"reference must be False for {type(net).__name__}, which hides each lead on its own: no sample is hidden in all leads at once, "
                "over which the original would sum; leave it out, or use a network that hides all leads together (himae, ti_mae, mtae)"
            )

    def _only_whole(self, net: nn.Module) -> None:
        if self.predict_fraction < 1 and not getattr(net, "predicts_part", False):
            raise ValueError(f"predict_fraction must be 1 for this network, which reconstructs all tokens at once; got {self.predict_fraction}")

    @property
    def _range(self) -> tuple[float, float]:
        if isinstance(self.mask_ratio, tuple):
            if len(self.mask_ratio) != 2:
                raise ValueError(f"mask_ratio must be a number or (lo, hi), got {self.mask_ratio}")
            return self.mask_ratio
        return self.mask_ratio, self.mask_ratio


def masked_mse(out: Masked, *, valid_BT: Tensor | None = None, loss_on: Literal["masked", "all"] = "masked", reference: bool = False) -> Tensor:
    """sum(mask (pred - x)^2) / (sum(mask) C + 1e-9), a scalar over the whole batch; samples that are not valid never count.

    ``reference=True`` leaves out C, as the original does: with two channels it is the sum of their errors, over those present.
    """
    return masked_error(out, "mse", valid_BT=valid_BT, loss_on=loss_on, reference=reference)


def masked_error(
    out: Masked,
    error: Error = "mse",
    *,
    valid_BT: Tensor | None = None,
    present_BC: Tensor | None = None,
    loss_on: Literal["masked", "all"] = "masked",
    reference: bool = False,
    huber_delta: float = 1.0,
) -> Tensor:
    """`masked_mse` with another error, a mask per lead, (B, C, T), and channels that are absent, which never count either."""
    scored = out.mask_B1T if loss_on == "masked" else torch.ones_like(out.mask_B1T)
    if valid_BT is not None:
        scored = scored & valid_BT[:, None, :].bool()
    if present_BC is not None:
        scored = scored & present_BC[:, :, None].bool()
    error_BCT = ERRORS[error](out.pred_BCT.float() - out.target_BCT.float(), huber_delta).masked_fill(~scored, 0.0)
    if reference:
        return error_BCT.sum() / (scored.any(1).sum() + 1e-9)
    n_channels = 1 if scored.shape[1] != 1 else error_BCT.shape[1]
    return error_BCT.sum() / (scored.sum() * n_channels + 1e-9)


def standardised_patches(x_BCT: Tensor, patch: int, real_BCT: Tensor | None = None) -> Tensor:
    """Each patch of each channel to mean 0 and variance 1, (x - mean) / sqrt(var + 1e-6), var by n - 1; statistics over real samples alone."""
    x_BCNP = x_BCT.float().unflatten(-1, (n_patches(x_BCT.shape[-1], patch), patch))
    real_BCNP = torch.ones_like(x_BCNP) if real_BCT is None else real_BCT.to(x_BCNP.dtype).expand(x_BCT.shape).reshape(x_BCNP.shape)
    n = real_BCNP.sum(-1, keepdim=True)
    mean = (x_BCNP * real_BCNP).sum(-1, keepdim=True) / n.clamp(min=1)
    variance = ((x_BCNP - mean).square() * real_BCNP).sum(-1, keepdim=True) / (n - 1).clamp(min=1)
    return ((x_BCNP - mean) * real_BCNP / (variance + 1e-6).sqrt()).flatten(-2)


ERRORS = {
    "mse": lambda difference, delta: difference.square(),
    "l1": lambda difference, delta: difference.abs(),
    "huber": lambda difference, delta: F.huber_loss(difference, torch.zeros_like(difference), reduction="none", delta=delta),
}


def _real(batch: Batch) -> Tensor | None:
    """Samples that exist, as broadcastable (B, 1, T), or None: all."""
    valid_BT = batch.get("valid")
    return None if valid_BT is None else valid_BT[:, None, :].bool()
