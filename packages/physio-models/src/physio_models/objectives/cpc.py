"""Contrastive predictive coding: from what was read so far, tell which token comes k steps later among tokens of other times and items.

Source: van den Oord et al., arXiv 1807.03748 (one linear map per step, InfoNCE); similarity is the cosine over a temperature, as in
wav2vec 2.0 (arXiv 2006.11477). A network that reads both ways is trained both ways, each predicting what it has not read. Negatives
are gathered over ranks. Shape letters: B items, M items of all ranks, N tokens, A anchors of an item, K steps, D features, E compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.gather import gather, share
from physio_models.interface import Batch, Contexts, Loss, Step, unwrap
from physio_models.patches import take


@dataclass(frozen=True, kw_only=True)
class Cpc:
    """InfoNCE from drawn anchors to the tokens 1 to ``n_steps`` after them (and before them, where the network reads both ways)."""

    n_steps: int = 12  # tokens ahead, K
    n_anchors: int = 32  # drawn from each item and way, A; fewer where the window has fewer
    width: int = 128  # features in which prediction and token are compared, E
    temperature: float = 0.1
    negatives: Literal["all", "same"] = "all"  # tokens of all items, or other times of the same item alone

    def __post_init__(self) -> None:
        for name in ("n_steps", "n_anchors", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.negatives not in ("all", "same"):
            raise ValueError(f"negatives must be all or same, got {self.negatives!r}")

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """The maps from context to the tokens of each step, one set for each way, and the one from token to what they are compared with.

        ``ValueError`` for a network whose context of a token may hold tokens that are still to come.
        """
        net = unwrap(model)
        if not hasattr(net, "stem") or not hasattr(net, "ahead"):
            raise ValueError(f"cpc needs a network that reads one way at a time, {type(net).__name__} does not: choose s4d or conv_transformer")
        width = net.cfg.width
        heads = {way: nn.Linear(width, self.n_steps * self.width) for way in ("ahead", "back") if getattr(net, way) is not None}
        return nn.ModuleDict({**heads, "token": nn.Linear(width, self.width)})

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        x_BCT, index_B = batch["signal"], batch["index"]
        out: Contexts = model(x_BCT, valid_BT=batch.get("valid"), channel_present_BC=batch.get("channel_present"))
        n_tokens = out.local_BNL.shape[1]
        if n_tokens <= self.n_steps:
            raise ValueError(f"n_steps={self.n_steps} must be below the {n_tokens} tokens of the window; use n_steps={max(1, n_tokens - 1)} or longer windows")
        valid_BN = torch.ones(out.local_BNL.shape[:2], dtype=torch.bool, device=x_BCT.device) if out.valid_BN is None else out.valid_BN
        target_BNE = F.normalize(step.modules["token"](out.local_BNL).float(), dim=-1)
        sums, right, counts = [], [], []
        for way, context_BND, sign in (("ahead", out.ahead_BND, 1), ("back", out.back_BND, -1)):
            if context_BND is None:
                continue
            noise_BN = step.streams.uniform(f"anchors_{way}", index_B, (n_tokens,)).to(x_BCT.device)
            anchor_BA = _anchors(noise_BN, valid_BN, self.n_anchors, sign)
            guess_BAKE = step.modules[way](take(context_BND, anchor_BA)).float().unflatten(-1, (self.n_steps, self.width))
            for k in range(1, self.n_steps + 1):
                pair_BA, at_BA = _later(anchor_BA, sign * k, valid_BN)
                found = self._nce(F.normalize(guess_BAKE[:, :, k - 1], dim=-1), take(target_BNE, at_BA), pair_BA)
                sums.append(found[0])
                right.append(found[1])
                counts.append(pair_BA.sum(1))
        count_B = torch.stack(counts).sum(0)
        total = gather(count_B).rows
        loss = share(torch.stack(sums).sum(), total.sum(), len(x_BCT), len(total))
        parts = {"info_nce": loss.detach(), "accuracy": torch.stack(right).sum() / count_B.sum().clamp(min=1)}
        return Loss(loss + 0.0 * out.embedding_BD.float().sum(), parts)

    def _nce(self, guess_BAE: Tensor, target_BAE: Tensor, pair_BA: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over pairs of minus the log probability of the right token, and how many were the likeliest."""
        with torch.autocast(guess_BAE.device.type, enabled=False):
            n_items, n_anchors, _ = guess_BAE.shape
            if self.negatives == "same":
                logits_BAC = guess_BAE @ target_BAE.transpose(1, 2) / self.temperature
                logits_BAC = logits_BAC.masked_fill(~pair_BA[:, None, :], float("-inf"))
                own_BA = torch.arange(n_anchors, device=guess_BAE.device).expand(n_items, -1)
            else:
                (rows_ME, start), counted = gather(target_BAE.flatten(0, 1)), gather(pair_BA.flatten()).rows
                logits_BAC = (guess_BAE.flatten(0, 1) @ rows_ME.T / self.temperature).unflatten(0, (n_items, n_anchors))
                logits_BAC = logits_BAC.masked_fill(~counted, float("-inf"))
                own_BA = start + torch.arange(n_items * n_anchors, device=guess_BAE.device).view(n_items, n_anchors)
            logits_BAC = logits_BAC.masked_fill(~pair_BA[..., None], 0.0)  # rows without a partner: finite, and left out of both sums
            loss_BA = F.cross_entropy(logits_BAC.flatten(0, 1), own_BA.flatten(), reduction="none").view_as(pair_BA)
            right_BA = logits_BAC.detach().argmax(-1) == own_BA
            return (loss_BA * pair_BA).sum(), (right_BA & pair_BA).sum()


def _anchors(noise_BN: Tensor, valid_BN: Tensor, n_anchors: int, sign: int) -> Tensor:
    """Places (B, A) of lowest noise among the tokens that have a real one after them (before them for ``sign`` -1)."""
    can_BN = _shifted(valid_BN, sign) & valid_BN
    return noise_BN.masked_fill(~can_BN, 2.0).argsort(dim=1, stable=True)[:, :n_anchors]


def _later(anchor_BA: Tensor, shift: int, valid_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Which anchors have a real token ``shift`` places on, and its place (any place where they have none)."""
    at_BA = anchor_BA + shift
    inside_BA = (at_BA >= 0) & (at_BA < valid_BN.shape[1])
    at_BA = at_BA.clamp(0, valid_BN.shape[1] - 1)
    return inside_BA & valid_BN.gather(1, at_BA) & valid_BN.gather(1, anchor_BA), at_BA


def _shifted(valid_BN: Tensor, sign: int) -> Tensor:
    """Whether the next token (the one before for ``sign`` -1) is real."""
    return F.pad(valid_BN[:, 1:], (0, 1)) if sign > 0 else F.pad(valid_BN[:, :-1], (1, 0))
