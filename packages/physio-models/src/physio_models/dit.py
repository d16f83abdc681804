"""DiT: a transformer that tells noise from signal, told how much noise there is and, where wanted, what the signal shall be.

Decisions taken here: a token is a patch of time across all leads, not one sample; the network's time is the noise level in [0, 1],
0 for clean and 1 for pure noise whatever the objective, so features are always read at 0; it is scaled by 1000 before the sines; a
given lead enters patch by patch beside the noised ones, so its waveform keeps its timing. Source: Peebles and Xie, "DiT",
arXiv 2212.09748 (adaLN-Zero); guidance after Ho and Salimans, arXiv 2207.12598.
Shape letters: B items, C channels, G generated channels, T samples, N tokens, D features, E features of a condition.

    noised (B, G, T) [+ given lead] -> patches (B, N, D) + position -> blocks, each scaled and shifted by (noise level + condition) -> (B, G, T)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.attention import Mlp, SelfAttention, check_heads, init_linear
from physio_models.interface import Batch, Encoded
from physio_models.masking import n_patches
from physio_models.patches import check_window, from_patches, patch_for, patch_valid, real_only, to_patches
from physio_models.vit import encoded, same_for_all

Condition = Literal["none", "text", "class", "lead"]


@dataclass(frozen=True, kw_only=True)
class DitConfig:
    """Shape of a DiT; the defaults are the original's 12 leads of 2500 samples with tokens of 25 samples instead of one."""

    n_channels: int = 12  # signal channels C
    n_samples: int = 2500  # window length T, samples
    patch: int | None = None  # samples; None: the divisor of the window that gives about 32 patches; 1: the original
    width: int = 512
    depth: int = 12
    n_heads: int = 8
    dropout: float = 0.0  # after the MLP's second matrix, as the original's 0.1
    time_scale: float = 1000.0  # factor on the noise level before the sines; the original has 1, under which they hardly differ
    condition: Condition = "none"
    text_width: int = 768  # E of ``text_emb``
    n_classes: int = 2  # of ``label``
    lead: int = 1  # position of the given channel; lead II in the usual order

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = False
    role: ClassVar[str] = "denoiser"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"n_channels": 3, "n_samples": 160, "patch": 8, "width": 32, "depth": 2, "n_heads": 4, "text_width": 12},
        "fast": {"width": 128, "depth": 4, "n_heads": 4},
        "reference": {"patch": 1, "dropout": 0.1},
    }

    def __post_init__(self) -> None:
        for field in ("n_channels", "n_samples", "depth", "text_width", "n_classes"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        check_heads(self.width, self.n_heads)
        if self.width % 2:
            raise ValueError(f"width must be even to hold sines and cosines, got {self.width}")
        if self.condition not in ("none", "text", "class", "lead"):
            raise ValueError(f"condition must be one of none, text, class, lead, got {self.condition!r}")
        if self.condition == "lead" and not (self.n_channels > 1 and 0 <= self.lead < self.n_channels):
            raise ValueError(f"lead must be one of the {self.n_channels} channels and leave another to generate, got {self.lead}")
        if not self.time_scale > 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"time_scale must be positive and dropout in [0, 1), got {self.time_scale} and {self.dropout}")
        n_patches(self.n_samples, self.patch_samples)

    @property
    def patch_samples(self) -> int:
        """Samples of a token."""
        return self.patch or patch_for(self.n_samples)

    @property
    def n_tokens(self) -> int:
        return self.n_samples // self.patch_samples

    @property
    def generated(self) -> tuple[int, ...]:
        """Channels that are noised and generated: all but a given lead."""
        return tuple(c for c in range(self.n_channels) if self.condition != "lead" or c != self.lead)

    @property
    def needs(self) -> tuple[str, ...]:
        """What a batch must carry beside the signal."""
        return {"text": ("text_emb",), "class": ("label",)}.get(self.condition, ())

    def build(self) -> Dit:
        """The network, whose output is exactly 0 before training (adaLN-Zero)."""
        return Dit(self)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], **changes: Any) -> Self:
        """tiny: seconds, for tests; fast: minutes on two cores; reference: the original's size. ``changes`` are fields, as n_channels=1."""
        if size not in cls.sizes:
            raise ValueError(f"size must be one of {', '.join(cls.sizes)}, got {size!r}")
        return cls(**{**cls.sizes[size], **changes})


class Problem(NamedTuple):
    """A batch as a denoiser meets it: what is to be generated (B, G, T) and what is given: (B, E), (B,) classes, (B, 1, T), or nothing.

    Channels that are absent are 0. ``keep_B`` False withholds a given lead that is itself absent; None: nothing is withheld.
    """

    x_BGT: Tensor
    given: Tensor | None
    present_BG: Tensor | None
    keep_B: Tensor | None = None


class DitBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition; the gates start at 0, so the block starts as the identity."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, n_heads)
        self.mlp = Mlp(width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(width, 6 * width)
        self.width = width

    def forward(self, x_BND: Tensor, condition_BD: Tensor, valid_BN: Tensor | None) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition_BD)[:, None].chunk(6, dim=-1)
        x_BND = x_BND + gate_1 * self.attention(modulated(x_BND, shift_1, scale_1), valid_BN=valid_BN)
        return x_BND + gate_2 * self.dropout(self.mlp(modulated(x_BND, shift_2, scale_2)))


class Dit(nn.Module):
    """What an objective asks about a noised signal (its noise, or the velocity towards the data), as (B, G, T)."""

    def __init__(self, cfg: DitConfig) -> None:
        super().__init__()
        self.cfg = cfg
        n_out = len(cfg.generated) * cfg.patch_samples
        self.embed = nn.Linear(cfg.n_channels * cfg.patch_samples, cfg.width)
        self.positions_ND = nn.Parameter(0.02 * torch.randn(cfg.n_tokens, cfg.width))
        self.time = nn.Sequential(nn.Linear(cfg.width, 4 * cfg.width), nn.SiLU(), nn.Linear(4 * cfg.width, cfg.width))
        self.blocks = nn.ModuleList(DitBlock(cfg.width, cfg.n_heads, cfg.dropout) for _ in range(cfg.depth))
        self.modulation = nn.Linear(cfg.width, 2 * cfg.width)
        self.head = nn.Linear(cfg.width, n_out)
        self.given = _given_module(cfg)
        n_null = {"none": 0, "lead": cfg.patch_samples}.get(cfg.condition, cfg.width)
        self.null = nn.Parameter(torch.zeros(n_null)) if n_null else None  # stands for a condition that is withheld
        init_linear(self)
        for zero in (*(block.modulation for block in self.blocks), self.modulation, self.head):
            nn.init.zeros_(zero.weight)

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"block{i}" for i in range(1, self.cfg.depth + 1))

    def problem(self, batch: Batch) -> Problem:
        """What of a batch is generated and what is given. ``ValueError`` names the key that a condition needs and the batch lacks."""
        x_BCT, present_BC = batch["signal"], batch.get("channel_present")
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        key = next(iter(self.cfg.needs), None)
        if key is not None and key not in batch:
            raise ValueError(f"condition={self.cfg.condition!r} needs {key!r} in the batch, which has {', '.join(batch)}; prepare a store that carries it")
        x_BCT = real_only(x_BCT, None, present_BC)
        if self.cfg.condition != "lead":
            return Problem(x_BCT, None if key is None else batch[key], present_BC)
        generated, given_B1T = list(self.cfg.generated), x_BCT[:, [self.cfg.lead]]
        if present_BC is None:
            return Problem(x_BCT[:, generated], given_B1T, None)
        return Problem(x_BCT[:, generated], given_B1T, present_BC[:, generated], present_BC[:, self.cfg.lead].bool())

    def forward(
        self,
        noised_BGT: Tensor,
        level_B: Tensor,
        given: Tensor | None = None,
        *,
        keep_B: Tensor | None = None,
        valid_BT: Tensor | None = None,
        present_BG: Tensor | None = None,
    ) -> Tensor:
        """The answer (B, G, T) for a noised signal at noise levels (B,) in [0, 1], 0 = clean.

        ``given`` is the condition as `problem` returns it, None: withheld; a class of -1 is withheld too. ``keep_B`` False withholds
        it from an item (guidance without a classifier). Past a short tail nothing is looked at, and a generated channel that is absent
        (``present_BG`` False) reads as zeros at every noise level, as in `encode`.
        """
        noised_BGT = real_only(noised_BGT, None, present_BG)
        condition_BD, levels = self._levels(noised_BGT, level_B, given, keep_B, valid_BT)
        shift, scale = self.modulation(F.silu(condition_BD))[:, None].chunk(2, dim=-1)
        return from_patches(self.head(modulated(levels[-1], shift, scale)), len(self.cfg.generated))

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features of a clean window after every block, `block1` ...: noise level 0, condition withheld (a given lead is read as such).

        Pooled is the mean of the last after its norm, which has no weights. Absent channels read as zeros, an absent given lead as withheld.
        """
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        x_BCT = real_only(x_BCT, valid_BT, channel_present_BC)
        given = keep_B = None
        if self.cfg.condition == "lead":
            given, keep_B = x_BCT[:, [self.cfg.lead]], None if channel_present_BC is None else channel_present_BC[:, self.cfg.lead]
        _, levels = self._levels(x_BCT[:, list(self.cfg.generated)], x_BCT.new_zeros(x_BCT.shape[0]), given, keep_B, valid_BT)
        levels[-1] = F.layer_norm(levels[-1], (self.cfg.width,), eps=1e-6)
        return encoded(levels, None if valid_BT is None else patch_valid(valid_BT, self.cfg.patch_samples))

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, N) bool."""
        valid_BN = patch_valid(valid_BT, self.cfg.patch_samples)
        return same_for_all(self.level_names, valid_BN, *valid_BN.shape, valid_BT.device)

    def _levels(self, noised_BGT: Tensor, level_B: Tensor, given: Tensor | None, keep_B: Tensor | None, valid_BT: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """What conditions the blocks, (B, D), and the output of each."""
        check_window(noised_BGT, len(self.cfg.generated), self.cfg.n_samples)
        x_BCT = real_only(noised_BGT, valid_BT, None)
        keep_B = torch.ones_like(level_B, dtype=torch.bool) if keep_B is None else keep_B.bool()
        if self.cfg.condition == "lead":
            x_BCT = torch.cat([x_BCT, self._given_lead(given, keep_B, valid_BT, x_BCT)], dim=1)
        condition_BD = self.time(noise_embedding(level_B * self.cfg.time_scale, self.cfg.width))
        if self.given is not None:
            condition_BD = condition_BD + self._given_vector(given, keep_B, condition_BD)
        x_BND = self.embed(to_patches(x_BCT, self.cfg.patch_samples)) + self.positions_ND
        valid_BN = None if valid_BT is None else patch_valid(valid_BT, self.cfg.patch_samples)
        levels, activated_BD = [], F.silu(condition_BD)
        for block in self.blocks:
            x_BND = block(x_BND, activated_BD, valid_BN)
            levels.append(x_BND)
        return condition_BD, levels

    def _given_lead(self, given: Tensor | None, keep_B: Tensor, valid_BT: Tensor | None, like_BGT: Tensor) -> Tensor:
        """The given lead, or where it is withheld one learned patch over and over: (B, 1, T)."""
        null_B1T = self.null.to(like_BGT.dtype).repeat(self.cfg.n_tokens).expand(like_BGT.shape[0], 1, -1)
        if given is None:
            return null_B1T
        check_window(given, 1, self.cfg.n_samples)
        return torch.where(keep_B[:, None, None], real_only(given, valid_BT, None), null_B1T)

    def _given_vector(self, given: Tensor | None, keep_B: Tensor, like_BD: Tensor) -> Tensor:
        """The embedded text or class, or where it is withheld the learned null: (B, D)."""
        null_BD = self.null.to(like_BD.dtype).expand_as(like_BD)
        if given is None:
            return null_BD
        if self.cfg.condition == "class":
            if given.shape != keep_B.shape:
                raise ValueError(f"given must be (batch,) class numbers, got {tuple(given.shape)}")
            keep_B, given = keep_B & (given >= 0), given.clamp_min(0).long()
        elif given.shape != (len(keep_B), self.cfg.text_width):
            raise ValueError(f"given must be {(len(keep_B), self.cfg.text_width)}, the width of text_emb, got {tuple(given.shape)}")
        return torch.where(keep_B[:, None], self.given(given).to(like_BD.dtype), null_BD)


def _given_module(cfg: DitConfig) -> nn.Module | None:
    """What embeds a text or a class."""
    if cfg.condition == "text":
        return nn.Linear(cfg.text_width, cfg.width)
    if cfg.condition == "class":
        table = nn.Embedding(cfg.n_classes, cfg.width)
        nn.init.normal_(table.weight, std=0.02)
        return table
    return None


def modulated(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """Layer norm without weights, then scale and shift."""
    return F.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6) * (1 + scale_B1D) + shift_B1D


def noise_embedding(time_B: Tensor, width: int) -> Tensor:
    """Cosines then sines of time at frequencies 10000^(-k / (width / 2)): (B,) -> (B, width) float32."""
    frequency_K = torch.exp(-math.log(10_000.0) * torch.arange(width // 2, device=time_B.device, dtype=torch.float32) / (width // 2))
    angle_BK = time_B.float()[:, None] * frequency_K
    return torch.cat([angle_BK.cos(), angle_BK.sin()], dim=1)
