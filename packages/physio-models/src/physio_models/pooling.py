"""From tokens to one vector per item. Shape letters: B items, N tokens, D features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from physio_models.interface import Encoded

Pool = Literal["mean", "max", "std", "peak", "mean+max", "mean+std", "mean+max+std", "tokens"]
POOLS: tuple[str, ...] = get_args(Pool)


def pool(tokens_BND: Tensor, how: Pool = "mean", valid_BN: Tensor | None = None) -> Tensor:
    """Pool tokens over N: (B, D) times the number of parts named, or (B, N * D) for ``tokens``.

    ``std`` is the population one; ``peak`` is how far the largest token stands above the mean, which an offset shared by a whole
    recording cannot move. Tokens where ``valid_BN`` is False stay out (``tokens`` has them as 0).
    ``ValueError`` for an unknown name or an item without a valid token.
    """
    if how not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {how!r}")
    if valid_BN is not None:
        if valid_BN.shape != tokens_BND.shape[:2]:
            raise ValueError(f"valid_BN must be {tuple(tokens_BND.shape[:2])}, got {tuple(valid_BN.shape)}")
        if not bool(valid_BN.any(1).all()):
            raise ValueError(f"valid_BN has no valid token in item {int((~valid_BN.any(1)).nonzero()[0])}; leave that item out")
    if how == "tokens":
        return (tokens_BND if valid_BN is None else tokens_BND.masked_fill(~valid_BN[..., None], 0.0)).flatten(1)
    return torch.cat([_PARTS[part](tokens_BND, valid_BN) for part in how.split("+")], dim=1)


def pool_levels(encoded: Encoded, level: str, how: Pool = "mean", valid: Mapping[str, Tensor] | None = None) -> Tensor:
    """One level pooled, or ``level="all"``: every level pooled, shallow to deep, concatenated.

    ``valid`` gives (B, N_l) per level, as a model's ``token_valid`` makes it. ``ValueError`` for a level that is not there.
    """
    if level != "all" and level not in encoded.levels:
        raise ValueError(f"level must be all or one of {', '.join(encoded.levels)}, got {level!r}")
    names = list(encoded.levels) if level == "all" else [level]
    return torch.cat([pool(encoded.levels[name], how, None if valid is None else valid[name]) for name in names], dim=1)


def _mean(tokens_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
    if valid_BN is None:
        return tokens_BND.mean(1)
    return tokens_BND.masked_fill(~valid_BN[..., None], 0.0).sum(1) / valid_BN.sum(1, keepdim=True)


def _max(tokens_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
    return (tokens_BND if valid_BN is None else tokens_BND.masked_fill(~valid_BN[..., None], float("-inf"))).amax(1)


def _std(tokens_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
    if valid_BN is None:
        return tokens_BND.std(1, correction=0)
    return _mean((tokens_BND - _mean(tokens_BND, valid_BN)[:, None]) ** 2, valid_BN).sqrt()


def _peak(tokens_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
    return _max(tokens_BND, valid_BN) - _mean(tokens_BND, valid_BN)


_PARTS = {"mean": _mean, "max": _max, "std": _std, "peak": _peak}
