"""PaPaGei: a pre-activation residual network over one PPG window, and a vector of 512 numbers for it.

Source: Pillai et al., "PaPaGei: Open foundation models for optical physiological signals", ICLR 2025, arXiv 2410.20542; the network
is the ResNet1D of Hong et al. 2019. Parameter names and shapes are the original's, so its weights load. No attention and no
positions: any length works. Shape letters: B items, C channels, T samples, N tokens, D features, E experts.

    x (B, 1, T) -> stem (32, T) -> block1 (32, T), block2 (32, T/2) ... block18 (512, 3) -> ReLU(norm), mean: pooled (512) -> dense: embedding (512)
    PaPaGei-S beside it: two mixtures of experts on pooled, for the inflection-point area (ipa) and the skewness of the signal (sqi)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models import papagei_fast
from physio_models.interface import Encoded
from physio_models.patches import real_only
from physio_models.pooling import pool

PROJECTION = (256, 128)  # hidden and output width of the projector
SQI_DROPOUT = 0.3  # in the second head's experts alone


@dataclass(frozen=True, kw_only=True)
class PapageiConfig:
    """Shape of a PaPaGei. The defaults are PaPaGei-S (5,785,612 parameters); ``n_experts=0`` is PaPaGei-P and S-sVRI (4,993,024)."""

    n_channels: int = 1  # signal channels C
    n_samples: int = 1250  # window length trained on, samples: 10 s at 125 Hz; the network itself takes any length
    base_width: int = 32  # channels of the first four blocks; doubled every four blocks
    kernel: int = 3  # samples at the block's own rate
    n_blocks: int = 18  # every second one halves time
    n_outputs: int = 512  # D of the embedding
    n_experts: int = 3  # of each of the two heads; 0: no heads
    projection: bool = False  # a projector (256, then 128) takes the place of the dense layer, which then stays unused
    dropout: float = 0.5  # before both convolutions of a block

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("n_channels", "n_samples", "base_width", "kernel", "n_blocks", "n_outputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_experts < 0:
            raise ValueError(f"n_experts must be 0 (no heads) or more, got {self.n_experts}")
        if self.n_experts and self.projection:
            raise ValueError("projection=True has no place beside expert heads: the original projects PaPaGei-P alone; set n_experts=0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    @property
    def width(self) -> int:
        """Channels of the last block, D of ``pooled``."""
        return self.base_width * 2 ** ((self.n_blocks - 1) // 4)

    def build(self) -> Papagei:
        """The network with PyTorch's default initialisation, drawn from torch's global generator."""
        return Papagei(self)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], *, n_channels: int = 1, n_samples: int = 1250) -> PapageiConfig:
        """tiny: seconds, for tests; fast: twelve blocks of half the width, minutes on two cores; reference: PaPaGei-S."""
        shapes = {"tiny": (4, 6, 16), "fast": (16, 12, 128), "reference": (32, 18, 512)}
        if size not in shapes:
            raise ValueError(f"size must be one of {', '.join(shapes)}, got {size!r}")
        base_width, n_blocks, n_outputs = shapes[size]
        n_samples = 250 if size == "tiny" and n_samples == 1250 else n_samples
        return cls(n_channels=n_channels, n_samples=n_samples, base_width=base_width, n_blocks=n_blocks, n_outputs=n_outputs)


class PapageiOut(NamedTuple):
    """The original's outputs in its order; the two heads are None without experts."""

    embedding_BD: Tensor  # of the dense layer, or of the projector
    ipa_B1: Tensor | None
    sqi_B1: Tensor | None
    pooled_BD: Tensor  # mean over time after the last ReLU, so never negative


class Papagei(nn.Module):
    """(B, C, T) -> `PapageiOut` for any T; `encode` gives every block's features."""

    def __init__(self, cfg: PapageiConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.first_block_conv = SameConv(cfg.n_channels, cfg.base_width, cfg.kernel, 1)
        self.first_block_bn = nn.BatchNorm1d(cfg.base_width)
        widths = [cfg.base_width * 2 ** (max(i - 1, 0) // 4) for i in range(cfg.n_blocks)]
        self.basicblock_list = nn.ModuleList(
            Block(n_in, 2 * n_in if i % 4 == 0 and i > 0 else n_in, cfg.kernel, cfg.dropout, first=i == 0, halves=i % 2 == 1) for i, n_in in enumerate(widths)
        )
        self.final_bn = nn.BatchNorm1d(cfg.width)
        self.dense = nn.Linear(cfg.width, cfg.n_outputs)
        if cfg.n_experts:
            self.expert_layers_1 = nn.ModuleList(expert(cfg.width, 0.0) for _ in range(cfg.n_experts))
            self.gating_network_1 = nn.Sequential(nn.Linear(cfg.width, cfg.n_experts), nn.Softmax(dim=1))
            self.expert_layers_2 = nn.ModuleList(expert(cfg.width, SQI_DROPOUT) for _ in range(cfg.n_experts))
            self.gating_network_2 = nn.Sequential(nn.Linear(cfg.width, cfg.n_experts), nn.Softmax(dim=1))
        if cfg.projection:
            hidden, n_out = PROJECTION
            self.projector = nn.Sequential(nn.Linear(cfg.width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, n_out))
            self.dense.requires_grad_(False)  # in the state dict, but no output depends on it
        self.basicblock_list[0].bn1.requires_grad_(False)  # likewise

    @property
    def level_names(self) -> tuple[str, ...]:
        blocks = tuple(f"block{i}" for i in range(1, self.cfg.n_blocks + 1))
        return blocks if self.cfg.projection else (*blocks, "embedding")

    @property
    def n_features(self) -> int:
        """D of ``embedding_BD``."""
        return PROJECTION[1] if self.cfg.projection else self.cfg.n_outputs

    def forward(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> PapageiOut:
        """Embedding, heads and pooled features; samples where ``valid_BT`` is False (a short tail) take no part, an absent channel reads as zeros."""
        self._check(x_BCT)
        *_, last_BCN = self._blocks(real_only(x_BCT, None, channel_present_BC), valid_BT)
        valid_BN = None if valid_BT is None else self._real(valid_BT, self.cfg.n_blocks)
        pooled_BD = pool(last_BCN.transpose(1, 2), "mean", valid_BN)
        ipa_B1 = sqi_B1 = None
        if self.cfg.n_experts:
            ipa_B1 = mixture(self.expert_layers_1, self.gating_network_1, pooled_BD)
            sqi_B1 = mixture(self.expert_layers_2, self.gating_network_2, pooled_BD)
        return PapageiOut((self.projector if self.cfg.projection else self.dense)(pooled_BD), ipa_B1, sqi_B1, pooled_BD)

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features of every block; the last block's are those after the final norm and ReLU, whose mean is the original's ``pooled``.

        The deepest level, ``embedding``, is the dense layer on each of those tokens: linear, so that its mean (``pooled_BD``) is the
        original's embedding. With a projector there is none and ``pooled_BD`` is ``pooled``. Past a short tail tokens are 0 and stay
        out of the mean, and real ones are as if the window ended there. An absent channel reads as zeros.
        """
        self._check(x_BCT)
        x_BCT = real_only(x_BCT, None, channel_present_BC)
        if valid_BT is None and papagei_fast.applies(self, x_BCT):
            features = papagei_fast.blocks(self, x_BCT)
        else:
            features = [feature_BCN.transpose(1, 2) for feature_BCN in self._blocks(x_BCT, valid_BT)]
        valid = None if valid_BT is None else self.token_valid(valid_BT)
        if not self.cfg.projection:
            tokens_BND = self.dense(features[-1])
            features.append(tokens_BND if valid is None else tokens_BND.masked_fill(~valid["embedding"][..., None], 0.0))
        levels = dict(zip(self.level_names, features, strict=True))
        return Encoded(features[-1], pool(features[-1], "mean", None if valid is None else valid[self.level_names[-1]]), levels)

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, N_l) bool."""
        return {name: self._real(valid_BT, min(level, self.cfg.n_blocks)) for level, name in enumerate(self.level_names, start=1)}

    def _real(self, valid_BT: Tensor, n_blocks: int) -> Tensor:
        return valid_BT[:, :: 2 ** (n_blocks // 2)].bool()

    def _blocks(self, x_BCT: Tensor, valid_BT: Tensor | None) -> list[Tensor]:
        """Outputs of the blocks (B, D_l, N_l), the last after the final norm and ReLU; 0 past a short tail."""
        length_B = None if valid_BT is None else lengths(valid_BT, x_BCT)
        x_BCT = until(F.relu(self.first_block_bn(self.first_block_conv(until(x_BCT, length_B)))), length_B)
        features = []
        for block in self.basicblock_list:
            x_BCT, length_B = block(x_BCT, length_B)
            features.append(x_BCT)
        features[-1] = until(F.relu(self.final_bn(x_BCT)), length_B)
        return features

    def _check(self, x_BCT: Tensor) -> None:
        if x_BCT.ndim != 3 or x_BCT.shape[1] != self.cfg.n_channels:
            raise ValueError(f"x_BCT must be (batch, {self.cfg.n_channels} channels, samples), got {tuple(x_BCT.shape)}; select or add channels by name first")


class SameConv(nn.Module):
    """Convolution whose output has ceil(T / stride) samples; the padding's odd sample goes to the right."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, kernel, stride=stride)

    def forward(self, x_BCT: Tensor, length_B: Tensor | None = None) -> Tensor:
        """``length_B``: the samples of each item that exist. How much padding stands on the left depends on the length, so each item gets its own."""
        kernel, stride, n_samples = self.conv.kernel_size[0], self.conv.stride[0], x_BCT.shape[-1]
        n_out = -(-n_samples // stride)
        if length_B is None or stride == 1:
            total = max(0, (n_out - 1) * stride + kernel - n_samples)
            return self.conv(F.pad(x_BCT, (total // 2, total - total // 2)))
        left_B1 = (((length_B + stride - 1) // stride - 1) * stride + kernel - length_B).clamp(min=0)[:, None] // 2
        at_BT = torch.arange((n_out - 1) * stride + kernel, device=x_BCT.device) - left_B1
        inside_BT = (at_BT >= 0) & (at_BT < n_samples)
        at_BCT = at_BT.clamp(0, n_samples - 1)[:, None].expand(-1, x_BCT.shape[1], -1)
        return self.conv(x_BCT.gather(-1, at_BCT).masked_fill(~inside_BT[:, None], 0.0))


class Block(nn.Module):
    """Pre-activation residual block: (B, in, T) -> (B, out, T), or (B, out, ceil(T / 2)) where it halves time."""

    def __init__(self, n_in: int, n_out: int, kernel: int, dropout: float, *, first: bool, halves: bool) -> None:
        super().__init__()
        self.first, self.halves = first, halves
        self.before = (n_out - n_in) // 2  # zero channels put before the shortcut's; the rest follow
        self.after = n_out - n_in - self.before
        self.bn1 = nn.BatchNorm1d(n_in)  # the first block has it, and does not use it
        self.conv1 = SameConv(n_in, n_out, kernel, 2 if halves else 1)
        self.bn2 = nn.BatchNorm1d(n_out)
        self.conv2 = SameConv(n_out, n_out, kernel, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BCT: Tensor, length_B: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The block's output and the lengths at its rate."""
        y_BCT = x_BCT if self.first else until(self.dropout(F.relu(self.bn1(x_BCT))), length_B)
        y_BCT = self.conv1(y_BCT, length_B)
        if self.halves:
            length_B = None if length_B is None else (length_B + 1) // 2
            x_BCT = F.max_pool1d(F.pad(x_BCT, (0, 1)), 2)  # of an odd length the last sample meets a zero, as in the original
        y_BCT = self.conv2(until(self.dropout(F.relu(self.bn2(y_BCT))), length_B))
        if self.before + self.after:
            x_BCT = F.pad(x_BCT, (0, 0, self.before, self.after))
        return until(y_BCT + x_BCT, length_B), length_B


def expert(width: int, dropout: float) -> nn.Sequential:
    """One expert of a head: (B, D) -> (B, 1)."""
    middle = [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
    return nn.Sequential(nn.Linear(width, width // 2), *middle, nn.Linear(width // 2, 1))


def mixture(experts: nn.ModuleList, gate: nn.Module, pooled_BD: Tensor) -> Tensor:
    """The experts' answers weighed by the gate: (B, 1)."""
    answers_BE = torch.cat([one(pooled_BD) for one in experts], dim=1)
    return (answers_BE * gate(pooled_BD)).sum(dim=1, keepdim=True)


def lengths(valid_BT: Tensor, x_BCT: Tensor) -> Tensor:
    """Real samples of each item (B,), from a mask that is True up to a tail."""
    if valid_BT.shape != (x_BCT.shape[0], x_BCT.shape[2]):
        raise ValueError(f"valid_BT must be (batch, samples) = {(x_BCT.shape[0], x_BCT.shape[2])}, got {tuple(valid_BT.shape)}")
    return valid_BT.sum(dim=1)


def until(x_BCT: Tensor, length_B: Tensor | None) -> Tensor:
    """Zero past each item's length."""
    if length_B is None:
        return x_BCT
    return x_BCT.masked_fill(torch.arange(x_BCT.shape[-1], device=x_BCT.device) >= length_B[:, None, None], 0.0)
