"""Rotary positions: queries and keys turned by angles that grow with position, so their product depends on distance alone.

Source: Su et al., "RoFormer", arXiv 2104.09864, eq. 34, with the two halves of a head as the pairs (GPT-NeoX's order).
Positions are integers or real numbers (seconds, say); several tokens may share one. Shape letters: B items, H heads, N tokens, D head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BASE = 10_000.0


class Rotary(NamedTuple):
    """Cosines and sines, float32, (1 or B, 1, N, D / 2): made once per forward pass and shared by its blocks."""

    cos: Tensor
    sin: Tensor


def rotary_table(position: Tensor, dim: int, base: float = BASE) -> Rotary:
    """The angles of positions (N,) or (B, N), one set per item, for heads of an even width ``dim``.

    Pair i of a token at position p turns by ``p / base ** (2 i / dim)``. ``ValueError`` for an odd width or another rank.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be an even head width, got {dim}; choose n_heads so that width / n_heads is even")
    if position.ndim not in (1, 2):
        raise ValueError(f"position must be (tokens,) or (batch, tokens), got {tuple(position.shape)}")
    frequency = base ** (-torch.arange(0, dim, 2, device=position.device, dtype=torch.float32) / dim)
    angle = position.float()[..., None] * frequency
    angle = (angle if position.ndim == 2 else angle[None])[:, None]
    return Rotary(angle.cos(), angle.sin())


def rotate(x_BHND: Tensor, table: Rotary) -> Tensor:
    """Queries or keys, turned; in their own dtype, computed in float32. Norms stay."""
    a, b = x_BHND.float().chunk(2, dim=-1)
    return torch.cat([a * table.cos - b * table.sin, b * table.cos + a * table.sin], dim=-1).to(x_BHND.dtype)


def rotary(q_BHND: Tensor, k_BHND: Tensor, position: Tensor, base: float = BASE) -> tuple[Tensor, Tensor]:
    """Queries and keys at the same positions (N,) or (B, N), turned. Blocks that share positions share a `rotary_table` instead."""
    table = rotary_table(position, q_BHND.shape[-1], base)
    return rotate(q_BHND, table), rotate(k_BHND, table)
