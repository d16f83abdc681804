"""Contrastive objectives: two views of a window should look alike, and unlike any other. Negatives are gathered over ranks.

InfoNCE (van den Oord et al. 2018, arXiv 1807.03748), NT-Xent over groups, SimCLR (Chen et al. 2020, arXiv 2002.05709) and
CMSC (Kiyasseh et al. 2021, "CLOCS", arXiv 2005.13249). Losses are taken in float32 whatever the precision of the network.
Shape letters: B items of this rank, N items of all ranks, V views, C channels, T samples, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.gather import gather, share
from physio_models.interface import Batch, Loss, Step, unwrap

UNGROUPED = -1  # a row of this group is neither an anchor, nor a positive, nor a negative


def info_nce(a_BD: Tensor, b_BD: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each row's partner, a in b plus b in a: a scalar, the mean over rows of this rank.

    ``-log exp(cos(a_i, b_i) / t) / sum_j exp(cos(a_i, b_j) / t)`` and the same with a and b exchanged; the sum of both directions
    (MERL's form), which is twice the usual mean. ``j`` runs over the rows of all ranks.
    """
    with torch.autocast(a_BD.device.type, enabled=False):
        a_BD, b_BD = F.normalize(widened(a_BD), dim=1), F.normalize(widened(b_BD), dim=1)
        a_ND, (b_ND, start) = gather(a_BD).rows, gather(b_BD)
        own_B = torch.arange(start, start + len(a_BD), device=a_BD.device)
        return F.cross_entropy(a_BD @ b_ND.T / temperature, own_B) + F.cross_entropy(b_BD @ a_ND.T / temperature, own_B)


def nt_xent(z_BD: Tensor, group_B: Tensor, temperature: float) -> Tensor:
    """NT-Xent over groups: the mean, over all pairs (i, p) of one group, of ``-log exp(s_ip) / (exp(s_ip) + sum_n exp(s_in))``.

    ``s`` is cosine similarity over temperature, ``n`` runs over the rows of other groups; with two views of each item as groups it
    is SimCLR's loss. Rows of group -1 take no part. Pairs and negatives are those of all ranks, and this is the rank's `share` of
    their mean. 0, with a gradient of 0, where there is no pair.
    """
    with torch.autocast(z_BD.device.type, enabled=False):
        z_BD = F.normalize(widened(z_BD), dim=1)
        (z_ND, start), group_N = gather(z_BD), gather(group_B).rows
        s_BN = z_BD @ z_ND.T / temperature
        own_B = torch.arange(start, start + len(z_BD), device=z_BD.device)
        counts_BN = (group_B != UNGROUPED)[:, None] & (group_N != UNGROUPED)
        same_BN = group_B[:, None] == group_N
        pair_BN = (same_BN & counts_BN).scatter(1, own_B[:, None], False)
        negative_B1 = s_BN.masked_fill(~counts_BN | same_BN, float("-inf")).logsumexp(dim=1, keepdim=True)
        loss_BN = torch.where(pair_BN, torch.logaddexp(negative_B1, s_BN) - s_BN, 0.0)
        return share(loss_BN.sum(), n_pairs(group_N), len(z_BD), len(z_ND))


def n_pairs(group_N: Tensor) -> Tensor:
    """Ordered pairs of different rows of one group, those of group -1 left out."""
    _, size = group_N[group_N != UNGROUPED].unique(return_counts=True)
    return (size * (size - 1)).sum()


def widened(z_BD: Tensor) -> Tensor:
    """Half precision as float32."""
    return z_BD.float() if z_BD.dtype in (torch.float16, torch.bfloat16) else z_BD


def codes(names: Tensor | np.ndarray | Iterable[str], device: torch.device) -> Tensor:
    """Whole numbers (B,), the same for the same name on every rank; numbers stay as they are, and text is hashed to 62 bits."""
    if isinstance(names, Tensor):
        return names.to(device).long()
    numbers = [int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "big") >> 2 for name in names]
    return torch.tensor(numbers, dtype=torch.int64, device=device)


# Views


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Probabilities of each change of a view, and how far it may go. The defaults are PaPaGei-P's probabilities; the extents are ours."""

    noise: float = 0.35
    negate: float = 0.2
    flip: float = 0.2
    scale: float = 0.4
    crop: float = 0.5
    noise_sd: float = 0.1  # of the channel's own standard deviation
    scale_range: tuple[float, float] = (0.5, 2.0)  # factor, uniform in its logarithm
    crop_range: tuple[float, float] = (0.5, 1.0)  # fraction of the window that stays; the rest reads 0

    def __post_init__(self) -> None:
        for name in ("scale_range", "crop_range"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("noise", "negate", "flip", "scale", "crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a probability in [0, 1], got {getattr(self, name)}")
        if self.noise_sd < 0:
            raise ValueError(f"noise_sd must be at least 0, got {self.noise_sd}")
        for name, highest in (("scale_range", float("inf")), ("crop_range", 1.0)):
            lo, hi = getattr(self, name)
            if not 0 < lo <= hi <= highest:
                raise ValueError(f"{name} must be (lo, hi) with 0 < lo <= hi <= {highest:g}, got {(lo, hi)}")


def view(x_BCT: Tensor, index_B: Tensor, name: str, step: Step, how: Augment, valid_BT: Tensor | None = None) -> Tensor:
    """One randomly changed copy of each window: crop, time reversal, sign, scale, noise; what lies past a short tail stays 0.

    The draws belong to the item and to ``name``.
    """
    n_samples = x_BCT.shape[-1]
    x_BCT = x_BCT if valid_BT is None else x_BCT.masked_fill(~valid_BT.bool()[:, None], 0.0)
    u_BK = step.streams.uniform(name, index_B, (8,)).to(x_BCT.device)
    chance = (how.crop, how.flip, how.negate, how.scale, how.noise)
    crop, flip, negate, scale, noise = ((u_BK[:, i] < p)[:, None, None] for i, p in enumerate(chance))
    at_T = torch.arange(n_samples, device=x_BCT.device)
    length_B1 = torch.full((len(x_BCT), 1), n_samples, device=x_BCT.device) if valid_BT is None else valid_BT.sum(1, keepdim=True)
    kept_B1 = ((how.crop_range[0] + (how.crop_range[1] - how.crop_range[0]) * u_BK[:, 5:6]) * length_B1).ceil()
    start_B1 = (u_BK[:, 6:7] * (length_B1 - kept_B1 + 1)).floor()
    inside_B1T = ((at_T >= start_B1) & (at_T < start_B1 + kept_B1))[:, None]
    y_BCT = x_BCT.masked_fill(crop & ~inside_B1T, 0.0)
    back_BCT = (length_B1 - 1 - at_T).clamp(min=0)[:, None].expand_as(y_BCT)  # the real samples in reverse
    y_BCT = torch.where(flip, y_BCT.gather(-1, back_BCT), y_BCT)
    y_BCT = torch.where(negate, -y_BCT, y_BCT)
    lo, hi = how.scale_range
    y_BCT = torch.where(scale, y_BCT * (lo * (hi / lo) ** u_BK[:, 7])[:, None, None], y_BCT)
    if how.noise:
        normal_BCT = step.streams.normal(f"{name}/noise", index_B, tuple(x_BCT.shape[1:])).to(x_BCT.device)
        mean_BC1 = x_BCT.sum(-1, keepdim=True) / length_B1[:, None]
        sd_BC1 = ((x_BCT - mean_BC1).square().masked_fill((at_T >= length_B1)[:, None], 0.0).sum(-1, keepdim=True) / length_B1[:, None]).sqrt()
        y_BCT = torch.where(noise, y_BCT + how.noise_sd * sd_BC1 * normal_BCT, y_BCT)
    return y_BCT if valid_BT is None else y_BCT.masked_fill(~valid_BT.bool()[:, None], 0.0)


# Networks that give one vector an item


def check_embeds(model: nn.Module, objective: str) -> int:
    """D of a network whose forward gives ``embedding_BD``. ``ValueError`` for any other network."""
    n_features = getattr(unwrap(model), "n_features", None)
    if n_features is None:
        raise ValueError(f"{objective} needs a network whose forward gives one vector an item (it has n_features), got {type(unwrap(model)).__name__}")
    return n_features


def embed(model: nn.Module, x_BCT: Tensor, valid_BT: Tensor | None, present_BC: Tensor | None) -> tuple[Tensor, NamedTuple]:
    """The network's vectors and all it returned, from one call; a channel that is absent from an item reads as zeros there."""
    given = {"valid_BT": valid_BT, "channel_present_BC": present_BC}
    out = model(x_BCT, **{name: mask for name, mask in given.items() if mask is not None})
    return out.embedding_BD, out


def twice(mask: Tensor | None) -> Tensor | None:
    """A mask of the items for two views of them, one view after the other."""
    return None if mask is None else torch.cat([mask, mask])


def untouched(out: Any, used: Tensor) -> Tensor:
    """0, depending on every output but the one in use: so that gradients of 0 reach heads that this objective does not train, and
    ranks do not wait for them."""
    return sum((0.0 * widened(value).sum() for value in out if value is not None and value is not used), start=used.new_zeros(()))


def projector(n_in: int, widths: tuple[int, ...]) -> nn.ModuleDict:
    """Linear layers with ReLU between them, thrown away after training; none for no widths."""
    layers: list[nn.Module] = []
    for n_out in widths:
        layers += [nn.ReLU(), nn.Linear(n_in, n_out)] if layers else [nn.Linear(n_in, n_out)]
        n_in = n_out
    return nn.ModuleDict({"projector": nn.Sequential(*layers)} if layers else {})


def check_projector(widths: tuple[int, ...]) -> None:
    if any(width < 1 for width in widths):
        raise ValueError(f"projector must name widths of at least 1, or none, got {widths}")


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


# Objectives


@dataclass(frozen=True, kw_only=True)
class SimClr:
    """Two random views of a window attract each other, all other windows repel: NT-Xent on a projection of the embedding."""

    temperature: float = 0.1
    projector: tuple[int, ...] = (256, 128)  # widths of the projection; () takes the embedding itself
    augment: Augment = Augment()

    def __post_init__(self) -> None:
        object.__setattr__(self, "projector", tuple(self.projector))
        check_projector(self.projector)
        check_temperature(self.temperature)

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """The projector. ``ValueError`` for a network without one vector an item."""
        return projector(check_embeds(model, "simclr"), self.projector)

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        """``batch["view"]`` (B, C, T), where present, is the second view as it stands, and the signal the first; absent channels are so in both."""
        x_BCT, valid_BT, index_B = batch["signal"], batch.get("valid"), batch["index"]
        if "view" in batch:
            views = [x_BCT, batch["view"]]
        else:
            views = [view(x_BCT, index_B, f"view{v}", step, self.augment, valid_BT) for v in range(2)]
        z_VD, out = embed(model, torch.cat(views), twice(valid_BT), twice(batch.get("channel_present")))
        p_VD = step.modules["projector"](z_VD) if self.projector else z_VD
        loss = nt_xent(p_VD, codes(index_B, p_VD.device).repeat(2), self.temperature) + untouched(out, z_VD)
        return Loss(loss, {"nt_xent": loss.detach()})


@dataclass(frozen=True, kw_only=True)
class Cmsc:
    """Contrastive multi-segment coding: the two halves of a window attract each other, and with ``positives="subject"`` all of a subject.

    For networks that take any length. ``batch["view"]`` (B, C, T), where present, is another segment of the same recording; then the
    windows stay whole. Subjects stand in ``batch["subject"]``.
    """

    temperature: float = 0.1
    projector: tuple[int, ...] = ()
    positives: Literal["item", "subject"] = "item"

    def __post_init__(self) -> None:
        object.__setattr__(self, "projector", tuple(self.projector))
        check_projector(self.projector)
        check_temperature(self.temperature)
        if self.positives not in ("item", "subject"):
            raise ValueError(f"positives must be 'item' or 'subject', got {self.positives!r}")

    @property
    def needs(self) -> tuple[str, ...]:
        """What a batch must carry beside the signal."""
        return ("subject",) if self.positives == "subject" else ()

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """The projector. ``ValueError`` for a network without one vector an item, or of one length alone."""
        n_features = check_embeds(model, "cmsc")
        if not getattr(type(unwrap(model).cfg), "length_free", False):
            raise ValueError(f"cmsc needs a network that takes any length, {type(unwrap(model)).__name__} takes {unwrap(model).cfg.n_samples} samples alone")
        return projector(n_features, self.projector)

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        x_BCT, valid_BT = batch["signal"], batch.get("valid")
        names = subjects(batch, "cmsc") if self.positives == "subject" else batch["index"]
        group_B = codes(names, x_BCT.device)
        group_V, whole_V = group_B.repeat(2), None
        if "view" in batch:
            x_VCT = torch.cat([x_BCT, batch["view"]])
            whole_V = twice(valid_BT)
        else:
            half = x_BCT.shape[-1] // 2
            x_VCT = torch.cat([x_BCT[..., :half], x_BCT[..., half : 2 * half]])
            if valid_BT is not None:
                whole_V = torch.cat([valid_BT[:, :half], valid_BT[:, half : 2 * half]]).bool()
                group_V = group_V.masked_fill(~whole_V.any(1), UNGROUPED)  # a half past the tail is no segment
                whole_V = whole_V | ~whole_V.any(1, keepdim=True)
        z_VD, out = embed(model, x_VCT, whole_V, twice(batch.get("channel_present")))
        p_VD = step.modules["projector"](z_VD) if self.projector else z_VD
        loss = nt_xent(p_VD, group_V, self.temperature) + untouched(out, z_VD)
        return Loss(loss, {"nt_xent": loss.detach()})


def subjects(batch: Batch, objective: str) -> Any:
    """Who each window is of. ``ValueError`` where the batch does not say."""
    if "subject" not in batch:
        raise ValueError(f"{objective} needs batch['subject'], the subject of each window; use a store that names its subjects")
    return batch["subject"]
