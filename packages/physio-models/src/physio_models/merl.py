"""MERL: an ECG tower and a text projection that meet in one space.

Source: Liu et al., "Zero-shot ECG classification with multimodal learning and test-time clinical knowledge enhancement", ICML 2024,
arXiv 2403.06659. The report comes in as one vector of a frozen language model (`text.ReportEmbedder`), which is no part of the
network. Shape letters: B items, C channels, T samples, N tokens, D features of the shared space, E features of the language model.

    x (B, C, T) -> tower (N, 2048) -> projected (N, D) -> attention pooling -> ecg (D)       cross-modal alignment with
    report (B, E) -> Linear, GELU, Linear                                    -> text (D)      one another
                       mean of projected -> two linear views, each with its own dropout      uni-modal alignment
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from physio_models.attention import CrossAttention, check_heads
from physio_models.interface import Encoded
from physio_models.pooling import pool
from physio_models.resnet1d import Depth, ResNet1dConfig, without_absent
from physio_models.vit import EncoderShape, VitEncoder

STRIDE = 16  # samples between tokens of the residual tower


@dataclass(frozen=True, kw_only=True)
class MerlConfig:
    """Shape of a MERL; the defaults are the published one on ResNet-1d-101."""

    n_channels: int = 12  # signal channels C
    n_samples: int = 2500  # window length T, samples
    tower: Literal["resnet", "vit"] = "resnet"
    resnet_depth: Depth = 101
    resnet_width: int = 64  # inner width of the first stage
    vit_width: int = 384
    vit_depth: int = 12  # blocks
    vit_heads: int = 6
    vit_patch: int | None = None  # samples; None: about 32 patches a window
    width: int = 256  # D of the shared space
    n_heads: int = 4  # of the attention that pools
    text_width: int = 768  # E of the language model
    dropout: float = 0.1  # of the two views

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.tower not in ("resnet", "vit"):
            raise ValueError(f"tower must be 'resnet' or 'vit', got {self.tower!r}")
        if self.text_width < 1:
            raise ValueError(f"text_width must be at least 1, got {self.text_width}")
        check_heads(self.width, self.n_heads)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        _ = self.shape  # checks what is the tower's

    @property
    def shape(self) -> ResNet1dConfig | EncoderShape:
        """The tower's own config."""
        if self.tower == "resnet":
            return ResNet1dConfig(n_channels=self.n_channels, n_samples=self.n_samples, depth=self.resnet_depth, base_width=self.resnet_width)
        return EncoderShape(
            n_channels=self.n_channels, n_samples=self.n_samples, width=self.vit_width, depth=self.vit_depth, n_heads=self.vit_heads, patch=self.vit_patch
        )

    @property
    def n_tokens(self) -> int:
        """Tokens of a window: one per 16 samples of the residual tower, halves rounded up, or one per patch."""
        return -(-self.n_samples // STRIDE) if self.tower == "resnet" else self.shape.n_tokens

    def build(self) -> Merl:
        """The network with PyTorch's default initialisation (the ViT's matrices Xavier-uniform), drawn from torch's global generator."""
        return Merl(self)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], *, n_channels: int = 12, n_samples: int = 2500) -> MerlConfig:
        """tiny: seconds, for tests; fast: 18 layers of a quarter of the width, minutes on two cores; reference: the published network."""
        if size == "reference":
            return cls(n_channels=n_channels, n_samples=n_samples)
        if size == "fast":
            return cls(n_channels=n_channels, n_samples=n_samples, resnet_depth=18, resnet_width=16, width=128)
        if size == "tiny":
            n_samples = 200 if n_samples == 2500 else n_samples
            return cls(n_channels=n_channels, n_samples=n_samples, resnet_depth=18, resnet_width=4, width=16, text_width=24)
        raise ValueError(f"size must be one of tiny, fast, reference, got {size!r}")


class MerlOut(NamedTuple):
    """What the two alignments compare, each (B, D)."""

    ecg_BD: Tensor  # with text_BD
    text_BD: Tensor
    view1_BD: Tensor  # with view2_BD
    view2_BD: Tensor


class Merl(nn.Module):
    """(B, C, T) and a vector per report -> `MerlOut`; `encode` gives the tower's features without text."""

    def __init__(self, cfg: MerlConfig) -> None:
        super().__init__()
        self.cfg = cfg
        if cfg.tower == "resnet":
            self.tower: nn.Module = cfg.shape.build()
            tower_width = self.tower.n_features
        else:
            self.tower = VitEncoder(cfg.shape)
            tower_width = cfg.vit_width
        self.project = nn.Linear(tower_width, cfg.width)  # a convolution of kernel 1
        self.pooling = AttentionPooling(cfg.n_tokens, cfg.width, cfg.n_heads)
        self.view1, self.view2 = (nn.Sequential(nn.Linear(cfg.width, cfg.width, bias=False), nn.Dropout(cfg.dropout)) for _ in range(2))
        self.text = nn.Sequential(nn.Linear(cfg.text_width, cfg.width), nn.GELU(), nn.Linear(cfg.width, cfg.width))

    @property
    def level_names(self) -> tuple[str, ...]:
        blocks = 4 if self.cfg.tower == "resnet" else self.cfg.vit_depth
        return (*(f"block{i}" for i in range(1, blocks + 1)), "projected")

    def forward(self, x_BCT: Tensor, text_BE: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> MerlOut:
        """Both sides of both alignments. Samples where ``valid_BT`` is False (a short tail) take no part; an absent channel reads as zeros."""
        if text_BE.shape != (len(x_BCT), self.cfg.text_width):
            raise ValueError(
                f"text_BE must be (items, text_width) = {(len(x_BCT), self.cfg.text_width)}, got {tuple(text_BE.shape)}; set text_width to the language model's"
            )
        levels, valid_BN = self._levels(x_BCT, valid_BT, channel_present_BC)
        mean_BD = pool(levels[-1], "mean", valid_BN)
        return MerlOut(self.pooling(levels[-1], valid_BN), self.project_text(text_BE), self.view1(mean_BD), self.view2(mean_BD))

    def project_text(self, text_BE: Tensor) -> Tensor:
        """Reports in the shared space, (B, D); with `project_signal`, zero-shot classification compares the two by cosine."""
        return self.text(text_BE)

    def project_signal(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Tensor:
        """Signals in the shared space, (B, D)."""
        levels, valid_BN = self._levels(x_BCT, valid_BT, channel_present_BC)
        return self.pooling(levels[-1], valid_BN)

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features of the tower's blocks, then ``projected``, whose mean is pooled. No text is needed.

        Past a short tail tokens are 0 and stay out of the mean. An absent channel reads as zeros.
        """
        levels, valid_BN = self._levels(x_BCT, valid_BT, channel_present_BC)
        return Encoded(levels[-1], pool(levels[-1], "mean", valid_BN), dict(zip(self.level_names, levels, strict=True)))

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, N_l) bool."""
        if self.cfg.tower == "resnet":
            valid = self.tower.token_valid(valid_BT)
            return valid | {"projected": valid["block4"]}
        return dict.fromkeys(self.level_names, self.tower.token_valid(valid_BT, None))

    def _levels(self, x_BCT: Tensor, valid_BT: Tensor | None, channel_present_BC: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Every level (B, N_l, D_l), 0 past a short tail, and the validity of the last."""
        if x_BCT.ndim != 3 or x_BCT.shape[1:] != (self.cfg.n_channels, self.cfg.n_samples):
            raise ValueError(f"x_BCT must be (batch, {self.cfg.n_channels} channels, {self.cfg.n_samples} samples), got {tuple(x_BCT.shape)}")
        if self.cfg.tower == "resnet":
            stages = self.tower.features(without_absent(x_BCT, channel_present_BC), valid_BT)
            levels = [stage.features_BDN.transpose(1, 2) for stage in stages]
            valid_BN = None if valid_BT is None else stages[-1].real_B1N[:, 0]
        else:
            valid_BN = self.tower.token_valid(valid_BT, channel_present_BC)
            levels = self.tower.through(self.tower.tokens(x_BCT, valid_BT, channel_present_BC), valid_BN)
            levels = levels if valid_BN is None else [level.masked_fill(~valid_BN[..., None], 0.0) for level in levels]
        projected_BND = self.project(levels[-1])
        return [*levels, projected_BND if valid_BN is None else projected_BND.masked_fill(~valid_BN[..., None], 0.0)], valid_BN


class AttentionPooling(nn.Module):
    """A learned token asks, it and all tokens answer, each at its position: (B, N, D) -> (B, D)."""

    def __init__(self, n_tokens: int, width: int, n_heads: int) -> None:
        super().__init__()
        self.cls_D = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions_ND = nn.Parameter(torch.randn(1 + n_tokens, width) * width**-0.5)
        self.attention = CrossAttention(width, n_heads)
        self.out = nn.Linear(width, width)

    def forward(self, tokens_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
        """Tokens where ``valid_BN`` is False are not looked at."""
        cls_B1D = self.cls_D.to(tokens_BND.dtype).expand(len(tokens_BND), 1, -1)
        context_BND = torch.cat([cls_B1D, tokens_BND], dim=1) + self.positions_ND
        valid_BN = None if valid_BN is None else torch.cat([valid_BN.new_ones(len(valid_BN), 1), valid_BN], dim=1)
        return self.out(self.attention(context_BND[:, :1], context_BND, valid_BM=valid_BN)[:, 0])
