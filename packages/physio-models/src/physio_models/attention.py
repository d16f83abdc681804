"""Pre-norm transformer blocks on fused attention, bidirectional or causal, with cross-attention and a cache for decoding.

Decisions taken here: attention itself has no dropout and a causal block passes `is_causal` instead of a mask, since either would
leave the fused kernels; query, key and value come from one matrix product. A causal block takes no padding mask: tokens that are
packed to the front (`patches.pack`) never see what stands behind them. Source: Vaswani et al., arXiv 1706.03762; pre-norm after
Xiong et al., arXiv 2002.04745. Shape letters: B items, N tokens, M context tokens, L cache length, H heads, K features of a head, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHORT = 512  # keys up to which the CPU's kernel is slower in half precision than in float32
NARROW = 16  # features of a head below which its products are slow on the CPU
Rotate = Callable[[Tensor], Tensor]
"""A rotary embedding at fixed positions: (B, H, N, K) queries or keys in, the same rotated out."""


def check_heads(width: int, n_heads: int) -> None:
    """``ValueError`` unless `n_heads` divides `width`."""
    if n_heads < 1 or width < 1 or width % n_heads:
        raise ValueError(f"n_heads must divide width={width}, got {n_heads}")


def key_mask(valid_BN: Tensor | None) -> Tensor | None:
    """(B, 1, 1, N) bool for attention, True = look here. An item without any valid token sees all of them, so that nothing becomes NaN."""
    if valid_BN is None:
        return None
    valid_BN = valid_BN.bool()
    return (valid_BN | ~valid_BN.any(1, keepdim=True))[:, None, None, :]


def attend(query: Tensor, key: Tensor, value: Tensor, *, seen: Tensor | None = None, causal: bool = False, scale: float | None = None) -> Tensor:
    """softmax(scale q k') v by the fused kernel: (B, H, N, K), (B, H, M, K) and (B, H, M, K) -> (B, H, N, K), in the dtype of ``value``.

    ``seen``, True = look here, broadcasts to (B, H, N, M); ``scale`` is K ** -0.5 by default. On the CPU the operands come as its kernel is fast at:
    up to `SHORT` keys in half precision through float32, which is also more exact (two to five times as fast); more than that with every head's rows
    side by side (up to a tenth); heads narrower than `NARROW` filled up with zeros, which add nothing (a quarter).
    """
    width, dtype, scale = query.shape[-1], value.dtype, query.shape[-1] ** -0.5 if scale is None else scale
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal, scale=scale)
    if key.shape[2] > SHORT:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    elif dtype != torch.float64:
        query, key, value = query.float(), key.float(), value.float()
    if width < NARROW:
        query, key, value = (F.pad(part, (0, NARROW - width)) for part in (query, key, value))
    with torch.autocast("cpu", enabled=False):  # which would take them back to half precision
        y_BHNK = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal, scale=scale)
    return y_BHNK[..., :width].to(dtype)


@dataclass
class Cache:
    """Keys and values of what a causal block has seen: (B, H, L, K) each, of which item b has filled the first ``length_B[b]``."""

    key_BHLK: Tensor
    value_BHLK: Tensor


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to one another, (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, n_heads: int, *, causal: bool = False, bias: bool = True, qk_norm: bool = False) -> None:
        super().__init__()
        check_heads(width, n_heads)
        self.n_heads, self.causal = n_heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(width // n_heads, eps=1e-6) if qk_norm else None
        self.norm_k = nn.RMSNorm(width // n_heads, eps=1e-6) if qk_norm else None

    def forward(self, x_BND: Tensor, *, valid_BN: Tensor | None = None, rotate: Rotate | None = None) -> Tensor:
        """Attend; ``valid_BN`` False is never looked at (bidirectional only), ``rotate`` turns queries and keys."""
        if self.causal and valid_BN is not None:
            raise ValueError("valid_BN must be None in causal attention: pack real tokens to the front (patches.pack), then nothing real sees padding")
        query, key, value = self._qkv(x_BND, rotate)
        y_BHNK = attend(query, key, value, seen=key_mask(valid_BN), causal=self.causal)
        return self._merge(y_BHNK)

    def fill(self, x_BND: Tensor, n_positions: int, *, rotate: Rotate | None = None) -> tuple[Tensor, Cache]:
        """The causal pass over a prompt, and its keys and values in a cache with room for ``n_positions``."""
        query, key, value = self._qkv(x_BND, rotate)
        y_BHNK = attend(query, key, value, causal=True)
        room = (0, 0, 0, n_positions - key.shape[2])
        return self._merge(y_BHNK), Cache(F.pad(key, room), F.pad(value, room))

    def extend(self, x_B1D: Tensor, cache: Cache, length_B: Tensor, *, rotate: Rotate | None = None) -> Tensor:
        """One more token an item, written to place ``length_B`` of the cache in place; it sees itself and the ``length_B`` before it."""
        query, key, value = self._qkv(x_B1D, rotate)
        item_B = torch.arange(len(length_B), device=length_B.device)
        cache.key_BHLK[item_B, :, length_B] = key[:, :, 0].to(cache.key_BHLK.dtype)
        cache.value_BHLK[item_B, :, length_B] = value[:, :, 0].to(cache.value_BHLK.dtype)
        seen_BL = torch.arange(cache.key_BHLK.shape[2], device=length_B.device) <= length_B[:, None]
        return self._merge(F.scaled_dot_product_attention(query, cache.key_BHLK.to(query.dtype), cache.value_BHLK.to(query.dtype), attn_mask=key_mask(seen_BL)))

    def _qkv(self, x_BND: Tensor, rotate: Rotate | None) -> tuple[Tensor, Tensor, Tensor]:
        n_items, n_tokens, width = x_BND.shape
        qkv = self.qkv(x_BND).view(n_items, n_tokens, 3, self.n_heads, width // self.n_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.norm_q is not None:
            query, key = self.norm_q(query.float()), self.norm_k(key.float())
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        return query.to(value.dtype), key.to(value.dtype), value

    def _merge(self, y_BHNK: Tensor) -> Tensor:
        return self.out(y_BHNK.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context, (B, N, D) and (B, M, E) -> (B, N, D)."""

    def __init__(self, width: int, n_heads: int, *, context_width: int | None = None, bias: bool = True) -> None:
        super().__init__()
        check_heads(width, n_heads)
        self.n_heads = n_heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(context_width or width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width)

    def forward(
        self, x_BND: Tensor, context_BME: Tensor, *, valid_BM: Tensor | None = None, rotate: Rotate | None = None, rotate_context: Rotate | None = None
    ) -> Tensor:
        """Attend to the context where ``valid_BM`` is True; the two rotations turn queries and keys, each at its own positions."""
        n_items, n_tokens, width = x_BND.shape
        query = self.query(x_BND).view(n_items, n_tokens, self.n_heads, -1).transpose(1, 2)
        kv = self.key_value(context_BME).view(n_items, context_BME.shape[1], 2, self.n_heads, width // self.n_heads)
        key, value = kv.permute(2, 0, 3, 1, 4).unbind(0)
        query = query if rotate is None else rotate(query)
        key = key if rotate_context is None else rotate_context(key)
        y_BHNK = attend(query.to(value.dtype), key.to(value.dtype), value, seen=key_mask(valid_BM))
        return self.out(y_BHNK.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, GELU, Linear, applied to each token."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.down(self.dropout(F.gelu(self.up(x_BND))))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). ``dropout`` falls on the two branches, never on attention weights."""

    def __init__(
        self,
        width: int,
        n_heads: int,
        *,
        hidden: int | None = None,  # width of the MLP; None: four times
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,  # of query, key and value
        qk_norm: bool = False,
        layer_scale: float | None = None,  # initial gain of both branches (Touvron et al., arXiv 2103.17239); None: no gain
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=eps)
        self.attention = SelfAttention(width, n_heads, causal=causal, bias=bias, qk_norm=qk_norm)
        self.norm_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden or 4 * width, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.gain_1 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.gain_2 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x_BND: Tensor, *, valid_BN: Tensor | None = None, rotate: Rotate | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); see `SelfAttention` for the two options."""
        return self._rest(x_BND, self.attention(self.norm_1(x_BND), valid_BN=valid_BN, rotate=rotate))

    def fill(self, x_BND: Tensor, n_positions: int, *, rotate: Rotate | None = None) -> tuple[Tensor, Cache]:
        """`SelfAttention.fill` through the whole block."""
        y_BND, cache = self.attention.fill(self.norm_1(x_BND), n_positions, rotate=rotate)
        return self._rest(x_BND, y_BND), cache

    def extend(self, x_B1D: Tensor, cache: Cache, length_B: Tensor, *, rotate: Rotate | None = None) -> Tensor:
        """`SelfAttention.extend` through the whole block."""
        return self._rest(x_B1D, self.attention.extend(self.norm_1(x_B1D), cache, length_B, rotate=rotate))

    def _rest(self, x_BND: Tensor, attended_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.dropout(_scaled(attended_BND, self.gain_1))
        return x_BND + self.dropout(_scaled(self.mlp(self.norm_2(x_BND)), self.gain_2))


class CrossBlock(nn.Module):
    """x + cross-attention(norm(x), context), then x + mlp(norm(x)): queries that never see one another (CrossMAE, arXiv 2401.14391)."""

    def __init__(self, width: int, n_heads: int, *, hidden: int | None = None, context_width: int | None = None, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=eps)
        self.attention = CrossAttention(width, n_heads, context_width=context_width)
        self.norm_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden or 4 * width)

    def forward(
        self, x_BND: Tensor, context_BME: Tensor, *, valid_BM: Tensor | None = None, rotate: Rotate | None = None, rotate_context: Rotate | None = None
    ) -> Tensor:
        """(B, N, D) and (B, M, E) -> (B, N, D); see `CrossAttention` for the options. The context is taken as it is, un-normed."""
        x_BND = x_BND + self.attention(self.norm_1(x_BND), context_BME, valid_BM=valid_BM, rotate=rotate, rotate_context=rotate_context)
        return x_BND + self.mlp(self.norm_2(x_BND))


def _scaled(x_BND: Tensor, gain_D: Tensor | None) -> Tensor:
    return x_BND if gain_D is None else x_BND * gain_D


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every matrix inside; as the originals of this family start."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
