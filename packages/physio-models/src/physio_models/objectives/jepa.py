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
    mask: Literal["spans", "random"] = "spans"  # n_spans runs of patches of any lengths (see `span_mask`), or scattered patches; as many either way
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
        teacher = step.modules["teacher"]
        with torch.no_grad(), evaluating(teacher):
            taught = teacher(x_BCT, **masks)  # of all patches in order, so its validity is that of every place
        guess_BND = step.modules["predictor"](seen.tokens_BKD, seen.index_BK, hidden_BN, taught.valid_BK)
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
        n_out, noise_BN = n_hidden(self.mask_ratio, n), step.streams.uniform("jepa", index_B, (n,))
        if not 0 < n_out < n:
            raise ValueError(f"mask_ratio={self.mask_ratio} of {n} patches hides {n_out}; leave some visible and hide some, or use shorter patches")
        mask_BN = random_mask(noise_BN, self.mask_ratio) if self.mask == "random" else span_mask(noise_BN, self.mask_ratio, self.n_spans)
        return mask_BN, n - n_out


def span_mask(noise_BN: Tensor, ratio: float, n_spans: int) -> Tensor:
    """Hide ``int(ratio * N)`` patches of each item in S separate runs, none of them empty: (B, N) bool.

    The hidden patches are cut into S runs at S - 1 places drawn evenly, and the runs stand in S drawn gaps between the visible ones, of which
    there is at least one between two runs. The window starts with a run, and ends with one, with the chance that any patch is hidden, so its first
    and last patch are hidden as often as the others; in between the chance varies little. A single run stands anywhere with the same chance, and
    therefore covers the middle more often than the ends. ``ValueError`` where there are too few patches to hide, or to keep the runs apart.
    """
    n = noise_BN.shape[1]
    n_out = int(n_hidden(ratio, n))
    if n_out < n_spans or n - n_out < n_spans - 1:
        need = f"{n_spans} spans need at least {n_spans} hidden and {n_spans - 1} visible patches"
        raise ValueError(f"{need}, of {n} a ratio of {ratio:g} hides {n_out}; use fewer spans")
    gap_BG, cut_BC = noise_BN[:, : n - n_out + 1], noise_BN[:, n - n_out + 1 :]
    if n_spans > 1:  # the two outer gaps are taken before all others, or after them
        gap_G = torch.arange(gap_BG.shape[1], device=noise_BN.device)
        outer_G = (gap_G == 0) | (gap_G == n - n_out)
        gap_BG = torch.where(outer_G, gap_BG + 2.0 * (gap_BG >= n_out / n), gap_BG + 1.0)
    before_BS = _lowest(gap_BG, n_spans)  # visible patches before each run
    cut_BS = F.pad(_lowest(cut_BC, n_spans - 1) + 1, (1, 1))
    cut_BS[:, -1] = n_out
    start_BS, end_BS = before_BS + cut_BS[:, :-1], before_BS + cut_BS[:, 1:]
    place_N = torch.arange(n, device=noise_BN.device)
    return ((place_N >= start_BS[..., None]) & (place_N < end_BS[..., None])).any(1)


def _lowest(noise_BN: Tensor, k: int) -> Tensor:
    """Places of the k lowest numbers of each row, ascending: (B, k)."""
    return noise_BN.argsort(dim=1, stable=True)[:, :k].sort(dim=1).values


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

    def forward(self, seen_BKD: Tensor, index_BK: Tensor, hidden_BN: Tensor, valid_BN: Tensor | None) -> Tensor:
        """``valid_BN`` says which patches, hidden or not, are real; the others are looked at by none."""
        x_BND = send_home(self.narrow(seen_BKD), index_BK, hidden_BN, self.mask_D) + self.positions_ND
        for block in self.blocks:
            x_BND = block(x_BND, valid_BN=valid_BN)
        return self.widen(self.norm(x_BND))
