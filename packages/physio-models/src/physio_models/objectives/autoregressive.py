"""Next-token prediction on discrete tokens, with the flow-matching signal head beside it where the network has one.

Shape letters: B items, N tokens, V vocabulary, C channels, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.interface import Batch, Loss, Step, unwrap
from physio_models.objectives.ddpm import real_mse
from physio_models.patches import real_only


@dataclass(frozen=True, kw_only=True)
class Autoregressive:
    """Cross-entropy of the next token where both it and the one before are real; plus ``flow_weight`` times the signal head's error.

    The batch carries ``tokens`` (B, N) int64 and, where some are padding, ``valid`` (B, N); without it the model's ``pad_id`` says which.
    A signal head also needs ``signal`` (B, C, T), whose short tail is ``signal_valid`` (B, T) and whose lost channels ``channel_present`` (B, C)
    names: neither is read or scored. With a frozen decoder the head alone is trained.
    """

    flow_weight: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("tokens",)

    def __post_init__(self) -> None:
        if not self.flow_weight > 0:
            raise ValueError(f"flow_weight must be positive, got {self.flow_weight}; for no signal head build the decoder with head_depth=0")

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """Nothing that learns. ``ValueError`` for a network that predicts no tokens."""
        net = unwrap(model)
        if getattr(getattr(net, "cfg", None), "role", "") != "next_token":
            raise ValueError(f"autoregressive trains a network on tokens, {type(net).__name__} reads none: choose the model token_decoder")
        return nn.ModuleDict()

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        if "tokens" not in batch:
            raise ValueError(f"the batch has no 'tokens', only {', '.join(batch)}: tokenise it (--representation tokens)")
        cfg, tokens_BN = unwrap(model).cfg, batch["tokens"]
        valid_BN = batch.get("valid")
        if valid_BN is None and cfg.pad_id is not None:
            valid_BN = tokens_BN != cfg.pad_id
        if not cfg.head_depth:
            ce = next_token_loss(model(tokens_BN, valid_BN=valid_BN).logits_BNV, tokens_BN, valid_BN)
            return Loss(ce, {"ce": ce.detach()})
        real = {"signal_valid_BT": batch.get("signal_valid"), "channel_present_BC": batch.get("channel_present")}
        x_BCT = real_only(batch["signal"], *real.values())
        noise_BCT = step.streams.normal("noise", batch["index"], tuple(x_BCT.shape[1:])).to(x_BCT.device)
        t_B = step.streams.uniform("time", batch["index"], (1,))[:, 0].to(x_BCT.device)
        noised_BCT = (1 - t_B[:, None, None]) * noise_BCT + t_B[:, None, None] * x_BCT
        out = model(tokens_BN, valid_BN=valid_BN, noised_BCT=noised_BCT, level_B=1 - t_B, **real)
        ce = next_token_loss(out.logits_BNV, tokens_BN, valid_BN)
        flow = real_mse(out.velocity_BCT, x_BCT - noise_BCT, *real.values())
        total = self.flow_weight * flow if cfg.freeze_decoder else ce + self.flow_weight * flow
        return Loss(total, {"ce": ce.detach(), "flow": flow.detach()})


def next_token_loss(logits_BNV: Tensor, tokens_BN: Tensor, valid_BN: Tensor | None) -> Tensor:
    """Mean cross-entropy of token n + 1 given the logits at n, over pairs of neighbours that are both real."""
    target_BN = tokens_BN[:, 1:]
    if valid_BN is not None:
        valid_BN = valid_BN.bool()
        target_BN = torch.where(valid_BN[:, 1:] & valid_BN[:, :-1], target_BN, -100)
    total = F.cross_entropy(logits_BNV[:, :-1].flatten(0, 1).float(), target_BN.flatten(), ignore_index=-100, reduction="sum")
    return total / (target_BN != -100).sum().clamp(min=1)
