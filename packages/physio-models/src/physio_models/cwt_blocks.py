"""Blocks of CWT-MAE's encoder: joint or factorised attention, dense or low-rank MLP, Mamba-2 in their place, residuals over depth.

Every block takes and gives tokens (B, M, D), channel by channel, each channel's K tokens in time order, one CLS token before them where
there is one; what it must know of their places is a `Layout`. Shape letters: B items, C channels, K tokens kept of each channel,
M = C K (+ 1), D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.attention import Block, Mlp, SelfAttention
from physio_models.mamba2 import Mamba2Config, MambaBlock
from physio_models.patches import take
from physio_models.rope import Rotary, rotary_table, rotate

Attention = Literal["joint", "factorised", "separate"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the kept tokens stand. All channels keep the same places; a token that is hidden there in its own channel is not ``shown``."""

    n_channels: int
    cls: bool
    shown_BCK: Tensor | None  # None: all of them
    table: Rotary | None  # angles of the K places, by column; None without rotary positions
    before_BK: Tensor  # where among the K the same row of the column before is; K where it was not kept
    after_BK: Tensor

    def flat(self, x_BMD: Tensor) -> Tensor:
        """(B, M, D) without CLS -> (B C, K, D)."""
        return x_BMD.reshape(x_BMD.shape[0] * self.n_channels, -1, x_BMD.shape[-1])

    @property
    def shown_flat(self) -> Tensor | None:
        return None if self.shown_BCK is None else self.shown_BCK.flatten(0, 1)

    @property
    def shown_BM(self) -> Tensor | None:
        """Which of all tokens may be looked at; CLS always."""
        if self.shown_BCK is None:
            return None
        shown_BM = self.shown_BCK.flatten(1)
        return F.pad(shown_BM, (1, 0), value=True) if self.cls else shown_BM

    @property
    def turn_joint(self) -> Callable[[Tensor], Tensor] | None:
        """Rotation of all tokens; CLS is not turned."""
        if self.table is None:
            return None
        cos, sin = (part.repeat(1, 1, self.n_channels, 1) for part in self.table)
        table = Rotary(F.pad(cos, (0, 0, 1, 0), value=1.0), F.pad(sin, (0, 0, 1, 0))) if self.cls else Rotary(cos, sin)
        return lambda x: rotate(x, table)

    @property
    def turn_flat(self) -> Callable[[Tensor], Tensor] | None:
        """Rotation of each channel's own tokens."""
        if self.table is None:
            return None
        table = Rotary(*(part.repeat_interleave(self.n_channels, 0) if part.shape[0] > 1 else part for part in self.table))
        return lambda x: rotate(x, table)


def layout(
    index_BK: Tensor, *, n_rows: int, n_places: int, n_channels: int, cls: bool, shown_BCK: Tensor | None, head_width: int | None, neighbours: bool
) -> Layout:
    """The layout of tokens kept at ``index_BK`` of ``n_places``, ``n_rows`` to a column. ``head_width`` None leaves out rotary positions."""
    table = None if head_width is None else rotary_table(index_BK // n_rows, head_width)
    before_BK = after_BK = index_BK
    if neighbours:
        n_items, n_kept = index_BK.shape
        home_BN = torch.full((n_items, n_places + 2 * n_rows), n_kept, dtype=index_BK.dtype, device=index_BK.device)
        kept_K = torch.arange(n_kept, device=index_BK.device).expand(n_items, -1)
        home_BN = home_BN.scatter(1, index_BK + n_rows, kept_K)
        before_BK, after_BK = home_BN.gather(1, index_BK), home_BN.gather(1, index_BK + 2 * n_rows)
    return Layout(n_channels=n_channels, cls=cls, shown_BCK=shown_BCK, table=table, before_BK=before_BK, after_BK=after_BK)


class JointBlock(nn.Module):
    """A transformer block over all tokens of all channels."""

    def __init__(self, width: int, n_heads: int, mlp: nn.Module) -> None:
        super().__init__()
        self.block = Block(width, n_heads, bias=False, hidden=width)
        self.block.mlp = mlp

    def forward(self, x_BMD: Tensor, at: Layout) -> Tensor:
        return self.block(x_BMD, valid_BN=at.shown_BM, rotate=at.turn_joint)


class FactorisedBlock(nn.Module):
    """Attention among a channel's tokens, then, at each place, attention among channels of time-smoothed tokens; then the MLP.

    The smoothing (depthwise, three taps) runs along time: a token meets the same row of the columns before and after, as zero where
    they are hidden. In the original it runs along the list of kept tokens, whose neighbours are other rows of shuffled columns.
    """

    def __init__(self, width: int, n_heads: int, mlp: nn.Module, *, n_channels: int) -> None:
        super().__init__()
        self.norm_time = nn.LayerNorm(width)
        self.time = SelfAttention(width, n_heads, bias=False)
        if n_channels > 1:
            self.smooth = nn.Conv1d(width, width, 3, padding=1, groups=width)
            self.norm_channel = nn.LayerNorm(width)
            self.channel = SelfAttention(width, n_heads, bias=False)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = mlp

    def forward(self, x_BMD: Tensor, at: Layout) -> Tensor:
        flat = at.flat(x_BMD)
        x_BMD = (flat + self.time(self.norm_time(flat), valid_BN=at.shown_flat, rotate=at.turn_flat)).reshape(x_BMD.shape)
        if at.n_channels > 1:
            x_BMD = x_BMD + self._across(x_BMD.unflatten(1, (at.n_channels, -1)), at).flatten(1, 2)
        return x_BMD + self.mlp(self.norm_mlp(x_BMD))

    def _across(self, x_BCKD: Tensor, at: Layout) -> Tensor:
        n_items, n_channels, n_kept, width = x_BCKD.shape
        y = self.norm_channel(self.smoothed(x_BCKD, at)).transpose(1, 2).reshape(n_items * n_kept, n_channels, width)
        shown = None if at.shown_BCK is None else at.shown_BCK.transpose(1, 2).reshape(n_items * n_kept, n_channels)
        return self.channel(y, valid_BN=shown).view(n_items, n_kept, n_channels, width).transpose(1, 2)

    def smoothed(self, x_BCKD: Tensor, at: Layout) -> Tensor:
        """The depthwise convolution over neighbouring columns of the same row."""
        if at.shown_BCK is not None:
            x_BCKD = x_BCKD.masked_fill(~at.shown_BCK[..., None], 0.0)
        tokens_BKCD = F.pad(x_BCKD.transpose(1, 2), (0, 0, 0, 0, 0, 1))
        first, middle, last = self.smooth.weight[:, 0].unbind(1)
        y_BKCD = first * take(tokens_BKCD, at.before_BK) + middle * tokens_BKCD[:, :-1] + last * take(tokens_BKCD, at.after_BK) + self.smooth.bias
        return y_BKCD.transpose(1, 2)


class ScanBlock(nn.Module):
    """Mamba-2 over each channel's tokens in time order, in both directions: cost and memory linear in their number. CLS passes by."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        head = next(size for size in (64, 32, 16, 8, 4, 2, 1) if 2 * width % size == 0)
        self.block = MambaBlock(Mamba2Config(d_model=width, d_state=state, headdim=head), bidirectional=True)

    def forward(self, x_BMD: Tensor, at: Layout) -> Tensor:
        cls_BSD, tokens_BND = (x_BMD[:, :1], x_BMD[:, 1:]) if at.cls else (x_BMD[:, :0], x_BMD)
        y_BND = self.block(at.flat(tokens_BND), valid_BL=at.shown_flat).reshape(tokens_BND.shape)
        return torch.cat([cls_BSD, y_BND], dim=1) if at.cls else y_BND


class LowRankLinear(nn.Module):
    """A matrix of rank r, (in -> r) without bias then (r -> out): r = max(32, int(min(in, out) * rank_ratio)), at most min(in, out)."""

    def __init__(self, n_in: int, n_out: int, rank_ratio: float) -> None:
        super().__init__()
        rank = min(max(32, int(min(n_in, n_out) * rank_ratio)), n_in, n_out)
        self.down = nn.Linear(n_in, rank, bias=False)
        self.up = nn.Linear(rank, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class LowRankMlp(nn.Module):
    """An MLP of two low-rank matrices ("tensorized" in the original)."""

    def __init__(self, width: int, hidden: int, rank_ratio: float) -> None:
        super().__init__()
        self.up, self.down = LowRankLinear(width, hidden, rank_ratio), LowRankLinear(hidden, width, rank_ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


def mlp(width: int, hidden: int, rank_ratio: float | None) -> nn.Module:
    """Dense, or of low rank where a ratio is given."""
    return Mlp(width, hidden) if rank_ratio is None else LowRankMlp(width, hidden, rank_ratio)


class DepthMix(nn.Module):
    """What a block reads instead of the last block's output: all outputs so far, weighted for each token by softmax over depth of <q, RMSNorm(v)>.

    The query starts at zero, so the weights start equal. Source: attention residuals (Kimi team), as CWT-MAE v3 uses them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, history: list[Tensor]) -> Tensor:
        values = torch.stack(history)
        weights = (self.norm(values) @ self.query.to(values.dtype)).softmax(0)
        return (weights[..., None] * values).sum(0)
