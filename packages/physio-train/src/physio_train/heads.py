"""Heads of fine-tuning: tokens of one or several levels become one vector, a linear or cosine layer makes it logits.

B windows, N tokens of a level, D its width, K outputs. HEADS names what pools a level's tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HeadName = Literal["linear", "attention", "query_pool", "cot", "pooled"]
HEADS: tuple[str, ...] = get_args(HeadName)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How tokens become logits. `cot` is the name that CWT-MAE's original gives to `query_pool`; `pooled` takes the network's own vector: its class token, its
    mean."""

    name: HeadName = "linear"
    n_queries: int = 16  # of query_pool
    dropout: float = 0.2  # of query_pool and before the last layer
    cosine: bool = False  # the last layer gives `scale` times the cosine to each class, as ArcFace's margin needs
    scale: float = 20.0  # of the cosine

    def __post_init__(self) -> None:
        if self.name not in HEADS:
            raise ValueError(f"name must be one of {', '.join(HEADS)}, got {self.name!r}")
        if self.n_queries < 1 or not 0 <= self.dropout < 1 or not self.scale > 0:
            raise ValueError(f"n_queries must be at least 1, dropout in [0, 1), scale positive, got {self.n_queries}, {self.dropout} and {self.scale}")

    def build(self, widths: Sequence[int], n_outputs: int) -> Head:
        """The head for levels of these widths."""
        return Head(self, tuple(widths), n_outputs)


class Head(nn.Module):
    """One pool a level, their vectors side by side, normalised, to logits."""

    def __init__(self, cfg: HeadConfig, widths: tuple[int, ...], n_outputs: int) -> None:
        super().__init__()
        pools = {"linear": MomentPool, "attention": AttentionPool, "pooled": OwnPool}
        make = pools.get(cfg.name, lambda width: QueryPool(width, cfg.n_queries, cfg.dropout))
        self.pools = nn.ModuleDict({str(i): make(width) for i, width in enumerate(widths)})  # side by side: no stack of layers
        n_features = sum(pool.n_features for pool in self.pools.values())
        self.norm, self.dropout = nn.LayerNorm(n_features), nn.Dropout(cfg.dropout)
        self.classify = Cosine(n_features, n_outputs, cfg.scale) if cfg.cosine else nn.Linear(n_features, n_outputs)

    def forward(self, levels: Sequence[Tensor], valid: Sequence[Tensor | None] | None = None) -> Tensor:
        """Levels (B, N_l, D_l) and which of their tokens are real (B, N_l) -> logits (B, K)."""
        valid = valid or [None] * len(levels)
        z_BF = torch.cat([pool(x_BND, v_BN) for pool, x_BND, v_BN in zip(self.pools.values(), levels, valid, strict=True)], dim=1)
        return self.classify(self.dropout(self.norm(z_BF)))


class OwnPool(nn.Module):
    """The one vector that the network itself made of its tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_features = width

    def forward(self, x_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
        return x_BND[:, 0]


class MomentPool(nn.Module):
    """Mean, largest value and standard deviation over tokens: a linear head over what the frozen probe reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_features = 3 * width

    def forward(self, x_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
        keep_BN1 = torch.ones_like(x_BND[..., :1]) if valid_BN is None else valid_BN[..., None].to(x_BND.dtype)
        n_B1 = keep_BN1.sum(1).clamp(min=1)
        mean_BD = (x_BND * keep_BN1).sum(1) / n_B1
        spread_BD = ((x_BND - mean_BD[:, None]) ** 2 * keep_BN1).sum(1) / n_B1
        largest_BD = x_BND.masked_fill(keep_BN1 == 0, float("-inf")).amax(1)
        return torch.cat([mean_BD, largest_BD, (spread_BD + 1e-8).sqrt()], dim=1)


class AttentionPool(nn.Module):
    """One learned query: a softmax over tokens weighs their mean (Ilse et al. 2018, arXiv 1802.04712, equation 8)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_features = width
        self.norm, self.score = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
        score_BN = self.score(self.norm(x_BND)).squeeze(-1)
        if valid_BN is not None:
            score_BN = score_BN.masked_fill(~valid_BN, float("-inf"))
        return (score_BN.softmax(dim=1)[..., None] * x_BND).sum(1)


class QueryPool(nn.Module):
    """K learned queries look at all tokens, then at one another, pass a feed-forward layer, each with a residual and a norm, and are averaged.

    One layer of a Perceiver (Jaegle et al. 2021, arXiv 2103.03206); CWT-MAE calls it latent reasoning.
    """

    def __init__(self, width: int, n_queries: int, dropout: float) -> None:
        super().__init__()
        self.n_features = width
        n_heads = math.gcd(width, 8)
        self.query_KD = nn.Parameter(0.02 * torch.randn(n_queries, width))
        self.cross = nn.MultiheadAttention(width, n_heads, dropout=dropout, batch_first=True)
        self.among = nn.MultiheadAttention(width, n_heads, dropout=dropout, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))
        self.norm_cross, self.norm_among, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
        q_BKD = self.query_KD.expand(len(x_BND), -1, -1)
        hidden_BN = None if valid_BN is None else ~valid_BN
        q_BKD = self.norm_cross(q_BKD + self.cross(q_BKD, x_BND, x_BND, key_padding_mask=hidden_BN, need_weights=False)[0])
        q_BKD = self.norm_among(q_BKD + self.among(q_BKD, q_BKD, q_BKD, need_weights=False)[0])
        return self.norm_feed(q_BKD + self.feed(q_BKD)).mean(1)


class Cosine(nn.Module):
    """`scale` times the cosine between the vector and each class's direction."""

    def __init__(self, n_features: int, n_outputs: int, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(n_outputs, n_features) / math.sqrt(n_features)), scale

    def forward(self, z_BF: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(z_BF), F.normalize(self.weight))


class Classifier(nn.Module):
    """An encoder and a head, trained together. `level` is one of the encoder's, or `all`."""

    def __init__(self, encoder: nn.Module, head: HeadConfig, level: str, widths: Mapping[str, int], n_outputs: int) -> None:
        super().__init__()
        if level != "all" and level not in widths:
            raise ValueError(f"level must be all or one of {', '.join(widths)}, got {level!r}")
        self.pooled = head.name == "pooled"
        self.names = tuple(widths) if level == "all" else (level,)
        own = [widths[name] for name in (list(widths)[-1:] if self.pooled else self.names)]
        self.encoder, self.head = encoder, head.build(own, n_outputs)

    def forward(self, x_BCT: Tensor, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Tensor:
        """Logits (B, K) of the encoder's own input; ``valid_BT`` and ``channel_present_BC`` tell it of short tails and missing leads, as in `encode`."""
        encoded = self.encoder.encode(x_BCT, valid_BT=valid_BT, channel_present_BC=channel_present_BC)
        if self.pooled:
            return self.head([encoded.pooled_BD[:, None]])
        levels = encoded.levels
        valid = None if valid_BT is None else self.encoder.token_valid(valid_BT)
        return self.head([levels[name] for name in self.names], None if valid is None else [valid[name] for name in self.names])


@torch.no_grad()
def level_widths(encoder: nn.Module, x_BCT: Tensor) -> dict[str, int]:
    """Width of each level, from a window or two; the encoder's modes stay as they are."""
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    widths = {name: tokens_BND.shape[-1] for name, tokens_BND in encoder.encode(x_BCT).levels.items()}
    for module, mode in modes.items():
        module.training = mode
    return widths


def freeze_unused(model: nn.Module, x_BCT: Tensor) -> int:
    """Freeze the parameters that a forward pass does not reach (a decoder), so that nothing waits for their gradient; how many there are."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.enable_grad():
        model(x_BCT).sum().backward()
    unused = [p for p in model.parameters() if p.grad is None]
    for parameter in unused:
        parameter.requires_grad_(False)
    model.zero_grad(set_to_none=True)
    for module, mode in modes.items():
        module.training = mode
    return sum(p.numel() for p in unused)
