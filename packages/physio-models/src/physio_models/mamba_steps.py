"""The causal Mamba encoder token by token: the state of every layer is carried, a token costs the same wherever it stands.

What comes out is what `TiMaeMamba.encode` gives for the whole window. Shape letters: B items, C channels, P samples of a token, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from physio_models.ti_mae_mamba import TiMaeMamba

NEIGHBOURS = 2  # samples before its own that a token of one sample looks at


class MambaSteps:
    """A window that is still coming in. ``ValueError`` for an encoder that reads both ways or looks ahead."""

    def __init__(self, model: TiMaeMamba, n_items: int = 1) -> None:
        cfg = model.cfg
        if cfg.layout == "original" or cfg.bidirectional:
            raise ValueError("stepping needs tokens that depend on earlier samples alone: build the model with bidirectional=False and layout='pre_norm'")
        self.cfg, self.model, self._names = cfg, model, model.level_names
        like = next(model.parameters()).new_zeros(n_items, 1)
        self._states = [layer.mixer.empty_state(like) for layer in model.encoder.layers]
        self._past_BCt = like.new_zeros(n_items, cfg.n_channels, NEIGHBOURS if cfg.patch == 1 else 0)
        self.n_tokens = 0

    @torch.no_grad()
    def step(self, x_BCP: Tensor) -> dict[str, Tensor]:
        """The next token's features (B, D) at every level, from its P samples. ``ValueError`` after the window's last token: begin anew."""
        encoder, expected = self.model.encoder, (self._past_BCt.shape[0], self.cfg.n_channels, self.cfg.patch)
        if tuple(x_BCP.shape) != expected:
            raise ValueError(f"x_BCP must be {expected}, the samples of one token, got {tuple(x_BCP.shape)}")
        if self.n_tokens == self.cfg.n_tokens:
            raise ValueError(f"the window of {self.cfg.n_tokens} tokens is over: begin another MambaSteps")
        seen_BCt = torch.cat([self._past_BCt, x_BCP], dim=-1)
        token_BD = encoder.embedding.conv(seen_BCt)[..., 0] + encoder.positional_encoding.pe[0, self.n_tokens]
        levels = []
        for i, layer in enumerate(encoder.layers):
            mixed_BD, self._states[i] = layer.mixer.step(layer.norm(token_BD), self._states[i])
            token_BD = token_BD + mixed_BD
            levels.append(token_BD)
        levels[-1] = encoder.norm(levels[-1])
        self._past_BCt = seen_BCt[..., x_BCP.shape[-1] :]
        self.n_tokens += 1
        return dict(zip(self._names, levels, strict=True))
