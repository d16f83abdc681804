"""A causal transformer over discrete tokens (ECG-Byte and the like), and a head that turns its states back into a waveform.

Decisions taken here: padding may stand anywhere, since real tokens are packed to the front before the blocks and sent home after, so
attention stays plainly causal and an item never depends on its padding; generation keeps keys and values and ends at the end token.
Sources: Radford et al., "GPT-2" (the shape); Su et al., arXiv 2104.09864 (rotary positions); Liu et al., arXiv 2209.03003 (the head's loss).
Shape letters: B items, N tokens, V vocabulary, D features, C channels, T samples, M patches of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.attention import Block, Cache, CrossAttention, Mlp, Rotate, SelfAttention, check_heads, init_linear
from physio_models.dit import modulated, noise_embedding
from physio_models.interface import Encoded
from physio_models.patches import Packed, check_window, from_patches, pack, patch_for, patch_valid, real_only, take, to_patches
from physio_models.rope import rotary_table, rotate
from physio_models.vit import encoded


@dataclass(frozen=True, kw_only=True)
class TokenDecoderConfig:
    """Shape of a token decoder; the defaults are the original's (49.4 million parameters) with rotary positions."""

    n_ids: int = 10_259  # vocabulary V, special ids included
    n_positions: int = 2048  # longest sequence, tokens, bos and eos among them
    pad_id: int | None = None  # the id of padding, where a batch does not say which tokens are real
    width: int = 512
    depth: int = 12
    n_heads: int = 8
    dropout: float = 0.0  # on the branches of each block while training; attention itself has none
    positions: Literal["rotary", "learned"] = "rotary"
    tied: bool = False  # logits from the embedding's own vectors
    head_depth: int = 0  # blocks of the flow-matching signal head; 0: no head; the original's has 4
    n_channels: int = 12  # channels C of the signal that tokens stand for and the head gives back
    n_samples: int = 2500  # its window length T, samples
    head_patch: int | None = None  # samples of its tokens; None: about 32 a window; 1: the original
    freeze_decoder: bool = False  # train the head alone

    input: ClassVar[str] = "tokens"
    length_free: ClassVar[bool] = True
    role: ClassVar[str] = "next_token"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"n_ids": 40, "n_positions": 48, "width": 32, "depth": 2, "n_heads": 4, "n_channels": 3, "n_samples": 160, "head_patch": 8},
        "fast": {"n_ids": 1024, "width": 128, "depth": 4, "n_heads": 4},
        "reference": {"positions": "learned", "dropout": 0.1, "head_patch": 1},
    }

    def __post_init__(self) -> None:
        for field in ("n_ids", "n_positions", "depth", "n_channels", "n_samples"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        check_heads(self.width, self.n_heads)
        if self.positions not in ("rotary", "learned"):
            raise ValueError(f"positions must be rotary or learned, got {self.positions!r}")
        if self.width // self.n_heads % 2:
            raise ValueError(f"width / n_heads must be even to be rotated in pairs, got {self.width} / {self.n_heads}")
        if self.pad_id is not None and not 0 <= self.pad_id < self.n_ids:
            raise ValueError(f"pad_id must lie in 0..{self.n_ids - 1}, got {self.pad_id}")
        if self.head_depth < 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"head_depth must be at least 0 and dropout in [0, 1), got {self.head_depth} and {self.dropout}")
        if self.freeze_decoder and not self.head_depth:
            raise ValueError("freeze_decoder leaves nothing to train without a signal head: give head_depth")
        if self.head_depth and self.n_samples % self.head_patch_samples:
            raise ValueError(f"head_patch={self.head_patch} must divide n_samples={self.n_samples}")

    @property
    def head_patch_samples(self) -> int:
        """Samples of a token of the signal head."""
        return self.head_patch or patch_for(self.n_samples)

    def build(self) -> TokenDecoder:
        """The network; with ``freeze_decoder`` everything but the head asks for no gradient."""
        return TokenDecoder(self)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], **changes: Any) -> Self:
        """tiny: seconds, for tests; fast: minutes on two cores; reference: the original's size. ``changes`` are fields, as n_ids=5000."""
        if size not in cls.sizes:
            raise ValueError(f"size must be one of {', '.join(cls.sizes)}, got {size!r}")
        return cls(**{**cls.sizes[size], **changes})


class Decoded(NamedTuple):
    """Logits of the next token at each, (B, N, V); the last states (B, N, D); the signal head's velocity (B, C, T), where it was asked."""

    logits_BNV: Tensor
    hidden_BND: Tensor
    velocity_BCT: Tensor | None


@dataclass
class Memory:
    """What generation remembers: a cache for each block and how many tokens of each item it holds."""

    caches: list[Cache]
    length_B: Tensor


class TokenDecoder(nn.Module):
    """(B, N) ids -> logits of the next id at every place."""

    def __init__(self, cfg: TokenDecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.n_ids, cfg.width)
        self.positions_ND = nn.Parameter(0.02 * torch.randn(cfg.n_positions, cfg.width)) if cfg.positions == "learned" else None
        self.dropout = nn.Dropout(cfg.dropout)
        self.blocks = nn.ModuleList(Block(cfg.width, cfg.n_heads, causal=True, dropout=cfg.dropout) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)
        self.logits = None if cfg.tied else nn.Linear(cfg.width, cfg.n_ids, bias=False)
        init_linear(self)
        nn.init.normal_(self.embed.weight, std=0.02)
        if cfg.freeze_decoder:
            self.requires_grad_(False)
        self.head = SignalHead(cfg) if cfg.head_depth else None

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"block{i}" for i in range(1, self.cfg.depth + 1))

    def forward(
        self,
        ids_BN: Tensor,
        *,
        valid_BN: Tensor | None = None,
        noised_BCT: Tensor | None = None,
        level_B: Tensor | None = None,
        signal_valid_BT: Tensor | None = None,
        channel_present_BC: Tensor | None = None,
    ) -> Decoded:
        """Logits at every place; ``valid_BN`` False is padding, wherever it stands (its logits mean nothing).

        ``noised_BCT`` and its noise level (B,) ask the signal head for the velocity towards the data, given these tokens. Of the noised
        signal, samples where ``signal_valid_BT`` is False (a short tail) are not looked at, and an absent channel reads as zeros.
        """
        self._check(ids_BN, valid_BN)
        packed = None if valid_BN is None else pack(valid_BN)
        hidden_BND = self._levels(ids_BN, packed)[-1]
        velocity = None
        if noised_BCT is not None:
            if self.head is None or level_B is None:
                raise ValueError("noised_BCT needs a signal head (head_depth at least 1) and level_B, its noise level")
            check_window(noised_BCT, self.cfg.n_channels, self.cfg.n_samples)
            velocity = self.head(real_only(noised_BCT, signal_valid_BT, channel_present_BC), level_B, hidden_BND, valid_BN, signal_valid_BT)
        return Decoded(self._logits(hidden_BND), hidden_BND, velocity)

    def encode(self, ids_BN: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features after every block, `block1` ...; pooled is the mean of the last over real tokens, ``valid_BT`` (B, N).

        Tokens have no channels: ``channel_present_BC`` must be None, an absent lead is left out before tokenising.
        """
        if channel_present_BC is not None:
            raise ValueError("channel_present_BC must be None: tokens have no channels; leave an absent lead out before tokenising")
        self._check(ids_BN, valid_BT)
        levels = self._levels(ids_BN, None if valid_BT is None else pack(valid_BT))
        return encoded(levels, None if valid_BT is None else valid_BT.bool())

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level are real: name -> (B, N) bool."""
        return dict.fromkeys(self.level_names, valid_BT.bool())

    def prefill(self, ids_BN: Tensor, n_positions: int, *, valid_BN: Tensor | None = None) -> tuple[Tensor, Memory]:
        """Read a prompt: logits of the token after each item's last, (B, V), and a memory with room for ``n_positions`` tokens."""
        self._check(ids_BN, valid_BN)
        packed = pack(torch.ones_like(ids_BN, dtype=torch.bool) if valid_BN is None else valid_BN)
        x_BND, turn = self._start(take(ids_BN, packed.order_BN), torch.arange(ids_BN.shape[1], device=ids_BN.device)[None])
        caches = []
        for block in self.blocks:
            x_BND, cache = block.fill(x_BND, n_positions, rotate=turn)
            caches.append(cache)
        last_B1D = take(x_BND, (packed.length_B - 1).clamp(min=0)[:, None])
        return self._logits(self.norm(last_B1D))[:, 0], Memory(caches, packed.length_B.clone())

    def extend(self, ids_B: Tensor, memory: Memory) -> Tensor:
        """Read one more token of each item: logits of the one after, (B, V). The memory grows in place."""
        x_B1D, turn = self._start(ids_B[:, None], memory.length_B[:, None])
        for block, cache in zip(self.blocks, memory.caches, strict=True):
            x_B1D = block.extend(x_B1D, cache, memory.length_B, rotate=turn)
        memory.length_B += 1
        return self._logits(self.norm(x_B1D))[:, 0]

    def _start(self, ids_BN: Tensor, position_BN: Tensor) -> tuple[Tensor, Rotate | None]:
        """Embedded ids at their positions ((1 or B, N)), and what turns queries and keys."""
        x_BND = self.embed(ids_BN)
        if self.positions_ND is not None:
            return self.dropout(x_BND + self.positions_ND[position_BN]), None
        return self.dropout(x_BND), partial(rotate, table=rotary_table(position_BN, self.cfg.width // self.cfg.n_heads))

    def _levels(self, ids_BN: Tensor, packed: Packed | None) -> list[Tensor]:
        """The output of every block, the last one normed, each token in its own place."""
        position_1N = torch.arange(ids_BN.shape[1], device=ids_BN.device)[None]
        x_BND, turn = self._start(ids_BN if packed is None else take(ids_BN, packed.order_BN), position_1N)
        levels = []
        for block in self.blocks:
            x_BND = block(x_BND, rotate=turn)
            levels.append(x_BND)
        levels[-1] = self.norm(levels[-1])
        return levels if packed is None else [take(level, packed.home_BN) for level in levels]

    def _logits(self, hidden_BND: Tensor) -> Tensor:
        return F.linear(hidden_BND, self.embed.weight) if self.logits is None else self.logits(hidden_BND)

    def _check(self, ids_BN: Tensor, valid_BN: Tensor | None) -> None:
        if ids_BN.ndim != 2 or ids_BN.is_floating_point():
            raise ValueError(f"ids_BN must be (batch, tokens) integers without a channel axis, got {ids_BN.dtype} {tuple(ids_BN.shape)}; tokenise first")
        if ids_BN.shape[1] > self.cfg.n_positions:
            raise ValueError(f"ids_BN has {ids_BN.shape[1]} tokens, the model takes up to {self.cfg.n_positions}: shorten the windows or raise n_positions")
        if valid_BN is not None and valid_BN.shape != ids_BN.shape:
            raise ValueError(f"valid_BN must be {tuple(ids_BN.shape)}, one per token, got {tuple(valid_BN.shape)}")


class SignalHead(nn.Module):
    """A small flow network over patches of the signal that reads the decoder's states: (B, C, T), noise level, (B, N, D) -> velocity (B, C, T)."""

    def __init__(self, cfg: TokenDecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        patch = cfg.head_patch_samples
        self.embed = nn.Linear(cfg.n_channels * patch, cfg.width)
        self.positions_MD = nn.Parameter(0.02 * torch.randn(cfg.n_samples // patch, cfg.width))
        self.time = nn.Sequential(nn.Linear(cfg.width, 4 * cfg.width), nn.SiLU(), nn.Linear(4 * cfg.width, cfg.width))
        self.blocks = nn.ModuleList(HeadBlock(cfg.width, cfg.n_heads) for _ in range(cfg.head_depth))
        self.modulation = nn.Linear(cfg.width, 2 * cfg.width)
        self.out = nn.Linear(cfg.width, cfg.n_channels * patch)
        init_linear(self)
        for zero in (*(block.modulation for block in self.blocks), self.modulation, self.out):
            nn.init.zeros_(zero.weight)

    def forward(self, noised_BCT: Tensor, level_B: Tensor, hidden_BND: Tensor, valid_BN: Tensor | None, signal_valid_BT: Tensor | None = None) -> Tensor:
        """``valid_BN`` says which tokens are real, ``signal_valid_BT`` which samples: patches without any are looked at by none."""
        real_BM = None if signal_valid_BT is None else patch_valid(signal_valid_BT, self.cfg.head_patch_samples)
        time_BD = F.silu(self.time(noise_embedding(level_B * 1000.0, self.cfg.width)))
        x_BMD = self.embed(to_patches(noised_BCT, self.cfg.head_patch_samples)) + self.positions_MD
        for block in self.blocks:
            x_BMD = block(x_BMD, time_BD, hidden_BND, valid_BN, real_BM)
        shift, scale = self.modulation(time_BD)[:, None].chunk(2, dim=-1)
        return from_patches(self.out(modulated(x_BMD, shift, scale)), self.cfg.n_channels)


class HeadBlock(nn.Module):
    """Self-attention, attention to the decoder's states and MLP, each shifted, scaled and gated by the time; it starts as the identity."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, n_heads)
        self.cross = CrossAttention(width, n_heads)
        self.mlp = Mlp(width, 4 * width)
        self.modulation = nn.Linear(width, 9 * width)

    def forward(self, x_BMD: Tensor, time_BD: Tensor, hidden_BND: Tensor, valid_BN: Tensor | None, real_BM: Tensor | None) -> Tensor:
        shifts, scales, gates = self.modulation(time_BD)[:, None].unflatten(-1, (3, 3, -1)).unbind(-3)
        x_BMD = x_BMD + gates[..., 0, :] * self.attention(modulated(x_BMD, shifts[..., 0, :], scales[..., 0, :]), valid_BN=real_BM)
        x_BMD = x_BMD + gates[..., 1, :] * self.cross(modulated(x_BMD, shifts[..., 1, :], scales[..., 1, :]), hidden_BND, valid_BM=valid_BN)
        return x_BMD + gates[..., 2, :] * self.mlp(modulated(x_BMD, shifts[..., 2, :], scales[..., 2, :]))


class Generated(NamedTuple):
    """New ids (B, n) and which of them count: all up to and with the end token."""

    ids_BN: Tensor
    valid_BN: Tensor


@torch.no_grad()
def generate(
    model: TokenDecoder,
    prompt_BN: Tensor,
    n_new: int,
    *,
    valid_BN: Tensor | None = None,
    end_id: int | None = None,
    forbidden: Sequence[int] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Generated:
    """Continue each prompt by up to ``n_new`` ids: the likeliest at temperature 0, else drawn from the ``top_k`` likeliest (None: all).

    An item ends with ``end_id``; when all have, so does the generation. ``forbidden`` ids (padding, bos) never come. ``ValueError`` if prompt and
    continuation do not fit into the model's context.
    """
    if n_new < 1 or temperature < 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"n_new and top_k must be at least 1 and temperature at least 0, got {n_new}, {top_k} and {temperature}")
    n_positions = prompt_BN.shape[1] + n_new
    if n_positions > model.cfg.n_positions:
        raise ValueError(f"{prompt_BN.shape[1]} prompt tokens and n_new={n_new} exceed the model's context of {model.cfg.n_positions}; ask for fewer")
    logits_BV, memory = model.prefill(prompt_BN, n_positions, valid_BN=valid_BN)
    running_B = torch.ones(len(prompt_BN), dtype=torch.bool, device=prompt_BN.device)
    ids, valid = [], []
    for _ in range(n_new):
        next_B = _choose(_without(logits_BV.float(), forbidden), temperature, top_k, generator)
        ids.append(next_B)
        valid.append(running_B)
        if end_id is not None:
            running_B = running_B & (next_B != end_id)
            if not bool(running_B.any()):
                break
        if len(ids) < n_new:
            logits_BV = model.extend(next_B, memory)
    return Generated(torch.stack(ids, dim=1), torch.stack(valid, dim=1))


def with_vocabulary(model: TokenDecoder, n_ids: int) -> TokenDecoder:
    """The same network for a larger vocabulary: old rows are kept, new ones start at the mean of the old. ``ValueError`` for a smaller one."""
    if n_ids < model.cfg.n_ids:
        raise ValueError(f"n_ids must be at least the {model.cfg.n_ids} that the model has, got {n_ids}")
    grown, state = replace(model.cfg, n_ids=n_ids).build().to(model.embed.weight.device), model.state_dict()
    for key in ("embed.weight", *([] if model.cfg.tied else ["logits.weight"])):
        rows = state[key]
        state[key] = torch.cat([rows, rows.mean(0, keepdim=True).expand(n_ids - len(rows), -1)])
    grown.load_state_dict(state)
    return grown.train(model.training)


def _without(logits_BV: Tensor, forbidden: Sequence[int]) -> Tensor:
    return logits_BV.index_fill(1, torch.tensor(list(forbidden), device=logits_BV.device), float("-inf")) if forbidden else logits_BV


def _choose(logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(1)
    if top_k is not None and top_k < logits_BV.shape[1]:
        least_B1 = logits_BV.topk(top_k, dim=1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    return torch.multinomial((logits_BV / temperature).softmax(1), 1, generator=generator)[:, 0]
