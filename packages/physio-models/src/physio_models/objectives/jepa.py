"""JEPA: from what is visible, guess the features that a slowly following teacher makes of what is hidden.

The student sees a few patches, the teacher, a running mean of the student, sees all of them; a small predictor, told the place, guesses the
teacher's normed features there. No sample is ever reconstructed. Source: Assran et al., "I-JEPA", arXiv 2301.08243; for time series
Ennadir et al., arXiv 2509.25449. Shape letters: B items, N patches, K visible ones, H hidden ones, D features.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.attention import Block, check_heads, init_linear
from physio_models.interface import Batch, Loss, Step, evaluating, unwrap
from physio_models.masking import n_hidden, random_mask
from physio_models.patches import send_home, sincos_positions


@dataclass(frozen=True, kw_only=True)
class Jepa:
    """Smooth L1 distance between guessed and taught features of hidden patches; the student's encoder is what remains."""

    mask_ratio: float = 0.6  # fraction of the patches that is hidden
    mask: Literal["spans", "random"] = "spans"  # a few runs of patches spread over the window, or scattered patches
    n_spans: int = 4
    predictor_width: int = 128
    predictor_depth: int = 2
    predictor_heads: int = 4
    momentum: tuple[float, float] = (0.996, 1.0)  # the teacher's, from the first step to the last

    def __post_init__(self) -> None:
        if isinstance(self.momentum, list):
            object.__setattr__(self, "momentum", tuple(self.momentum))
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie in (0, 1), got {self.mask_ratio}")
        if self.mask not in ("spans", "random"):
            raise ValueError(f"mask must be spans or random, got {self.mask!r}")
        if self.n_spans < 1 or self.predictor_depth < 1:
            raise ValueError(f"n_spans and predictor_depth must be at least 1, got {self.n_spans} and {self.predictor_depth}")
        check_heads(self.predictor_width, self.predictor_heads)
        if len(self.momentum) != 2 or not 0 <= self.momentum[0] <= self.momentum[1] <= 1:
            raise ValueError(f"momentum must be (first, last), ascending in [0, 1], got {self.momentum}")

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        """The teacher, which no gradient trains, and the predictor. ``ValueError`` for a network that cannot read part of a window."""
        net = unwrap(model)
        if getattr(getattr(net, "cfg", None), "role", "") != "token_encoder":
            raise ValueError(f"jepa trains an encoder of visible tokens, {type(net).__name__} is none: choose the model vit")
        teacher = deepcopy(net).requires_grad_(False).eval()
        predictor = Predictor(net.cfg.width, net.cfg.n_tokens, self.predictor_width, self.predictor_depth, self.predictor_heads)
        return nn.ModuleDict({"teacher": teacher, "predictor": predictor})

    def __call__(self, model: nn.Module, batch: Batch, step: Step) -> Loss:
        x_BCT = batch["signal"]
        masks = {"valid_BT": batch.get("valid"), "channel_present_BC": batch.get("channel_present")}
        hidden_BN, n_visible = self.hide(batch["index"], unwrap(model).cfg.n_tokens, step)
        hidden_BN = hidden_BN.to(x_BCT.device)
        seen = model(x_BCT, hidden_BN, n_visible=n_visible, **masks)
        guess_BND = step.modules["predictor"](seen.tokens_BKD, seen.index_BK, hidden_BN, seen.valid_BK)
        teacher = step.modules["teacher"]
        with torch.no_grad(), evaluating(teacher):
            taught = teacher(x_BCT, **masks)
        target_BND = F.layer_norm(taught.tokens_BKD.float(), taught.tokens_BKD.shape[-1:])
        scored_BN = hidden_BN if taught.valid_BK is None else hidden_BN & taught.valid_BK
        distance_BN = F.smooth_l1_loss(guess_BND.float(), target_BND, reduction="none").mean(-1)
        loss = distance_BN.masked_fill(~scored_BN, 0.0).sum() / scored_BN.sum().clamp(min=1)
        spread = target_BND.flatten(0, 1).std(0, correction=0).mean()  # over patches of the batch; 0 where the teacher has collapsed
        return Loss(loss, {"distance": loss.detach(), "teacher_spread": spread})

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> None:
        """The teacher follows the student: w <- m w + (1 - m) student, m rising from the first momentum to the last in a line."""
        first, last = self.momentum
        m = first + (last - first) * step.progress
        teacher, student = step.modules["teacher"], unwrap(model)
        torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - m)
        for own, its in zip(teacher.buffers(), student.buffers(), strict=True):
            own.copy_(its)

    def hide(self, index_B: Tensor, n: int, step: Step) -> tuple[Tensor, int]:
        """What of each item is hidden, (B, N) bool, and how many patches stay visible, the same for all."""
        if self.mask == "random":
            n_out = n_hidden(self.mask_ratio, n)
            mask_BN = random_mask(step.streams.uniform("jepa", index_B, (n,)), self.mask_ratio)
        else:
            mask_BN, n_out = span_mask(step.streams.uniform("jepa", index_B, (self.n_spans,)), n, self.mask_ratio)
        if not 0 < n_out < n:
            raise ValueError(f"mask_ratio={self.mask_ratio} of {n} patches hides {n_out}; leave some visible and hide some, or use shorter patches")
        return mask_BN, n - n_out


def span_mask(noise_BS: Tensor, n: int, ratio: float) -> tuple[Tensor, int]:
    """One run of hidden patches in each of S equal stretches of the window, at a place that the noise draws: (B, N) bool and the number hidden.

    Runs have ``int(ratio * stretch)`` patches. ``ValueError`` where a stretch is too short for a run.
    """
    n_spans = noise_BS.shape[1]
    length = int(ratio * (n // n_spans))
    if length < 1:
        raise ValueError(f"{n_spans} spans in {n} patches leave {n // n_spans} each, of which a ratio of {ratio:g} hides none; use fewer spans")
    stretch = n // n_spans
    start_BS = (noise_BS.double() * (stretch - length + 1)).long() + torch.arange(n_spans, device=noise_BS.device) * stretch
    place_N = torch.arange(n, device=noise_BS.device)
    inside_BSN = (place_N >= start_BS[..., None]) & (place_N < start_BS[..., None] + length)
    return inside_BSN.any(1), n_spans * length


class Predictor(nn.Module):
    """Visible features in their places, one learned token in the hidden ones, through a narrow transformer to the teacher's width: (B, N, D)."""

    def __init__(self, width: int, n_tokens: int, own_width: int, depth: int, n_heads: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, own_width)
        self.mask_D = nn.Parameter(0.02 * torch.randn(own_width))
        self.register_buffer("positions_ND", sincos_positions(n_tokens, own_width), persistent=False)
        self.blocks = nn.ModuleList(Block(own_width, n_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(own_width, eps=1e-6)
        self.widen = nn.Linear(own_width, width)
        init_linear(self)

    def forward(self, seen_BKD: Tensor, index_BK: Tensor, hidden_BN: Tensor, valid_BK: Tensor | None) -> Tensor:
        x_BND = send_home(self.narrow(seen_BKD), index_BK, hidden_BN, self.mask_D) + self.positions_ND
        valid_BN = None if valid_BK is None else torch.ones_like(hidden_BN).scatter(1, index_BK, valid_BK)
        for block in self.blocks:
            x_BND = block(x_BND, valid_BN=valid_BN)
        return self.widen(self.norm(x_BND))
