"""Ti-MAE: a masked autoencoder whose tokens are the samples of a window, a convolution over three of them each.

Source: Li et al., "Ti-MAE", arXiv 2301.08871; the decoder that asks for hidden tokens alone is CrossMAE's, arXiv 2401.14391.
`layout="original"` is the network of the Lightning port, parameter for parameter and number for number: it exists so that its files
load. The default differs where the port is wrong (attention has an output projection and 1 / sqrt(d) for scale, norms stand before
the branches and not on the stream) and in one thing of the paper: hidden samples are taken away before the convolution, which would
otherwise carry them into their visible neighbours. Shape letters: B items, C channels, T samples, N tokens, K visible tokens,
M predicted tokens, P values of a token, D features.

    x (B, C, T) -> conv + positions (B, N, D) -> visible (B, K, D) -> [cls] -> blocks -> norm -> decoder with mask tokens -> (B, C, T)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.attention import Block, CrossBlock, attend, check_heads, init_linear, key_mask
from physio_models.interface import Embedded, Encoded, Masked
from physio_models.masking import n_patches, to_samples
from physio_models.patches import Visible, check_window, from_patches, patch_valid, real_only, send_home, take, visible
from physio_models.pooling import pool

Layout = Literal["pre_norm", "original"]


@dataclass(frozen=True, kw_only=True)
class TiMaeConfig:
    """Shape of a Ti-MAE. The defaults are the published sizes for ECG5000 in the corrected layout."""

    n_channels: int = 1  # signal channels C
    n_samples: int = 140  # window length T, samples
    patch: int = 1  # samples of a token; 1 (published) is embedded with its two neighbours, more without
    width: int = 64  # D
    depth: int = 2
    n_heads: int = 4
    hidden: int = 256  # width of each block's MLP
    decoder: Literal["self", "cross", "none"] = "self"  # mask tokens among all, or hidden tokens that look at visible ones; none: an encoder alone
    decoder_width: int = 32
    decoder_depth: int = 2
    decoder_heads: int = 2  # as wide as the encoder's; the port has 4
    decoder_hidden: int = 128
    cls: bool = True  # one learned token beside the others
    pooling: Literal["mean", "max", "cls"] = "mean"  # of `encode` and of an encoder alone
    dropout: float = 0.0  # inside the MLPs while training; attention itself has none
    layout: Layout = "pre_norm"

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in ("n_channels", "n_samples", "patch", "depth", "hidden", "decoder_depth", "decoder_hidden"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        n_patches(self.n_samples, self.patch)
        tables = {"decoder": ("self", "cross", "none"), "pooling": ("mean", "max", "cls"), "layout": ("pre_norm", "original")}
        for field, allowed in tables.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")
        check_heads(self.width, self.n_heads)
        check_heads(self.decoder_width, self.decoder_heads)
        for field in ("width", "decoder_width"):
            if getattr(self, field) % 2:
                raise ValueError(f"{field} must be even to hold sines and cosines, got {getattr(self, field)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.pooling == "cls" and not self.cls:
            raise ValueError("pooling='cls' needs cls=True; use pooling='mean' or 'max' without a class token")
        if self.layout == "original" and (self.decoder == "cross" or self.patch != 1):
            raise ValueError(f"layout='original' has patch=1 and decoder 'self' or 'none', got patch={self.patch} and {self.decoder!r}; use layout='pre_norm'")
        if self.layout == "original" and not self.cls and self.decoder != "none":
            raise ValueError("layout='original' cannot be pretrained without a class token: its decoder drops the first one; use cls=True or layout='pre_norm'")

    @property
    def n_tokens(self) -> int:
        """Tokens of a window, N, without the class token."""
        return self.n_samples // self.patch

    def build(self) -> TiMae:
        """The network, drawn from torch's global generator."""
        return TiMae(self)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], *, n_channels: int = 1, n_samples: int | None = None) -> TiMaeConfig:
        """tiny: seconds, for tests; fast and reference: the published size, which takes minutes on two cores."""
        if size == "tiny":
            return cls(n_channels=n_channels, n_samples=n_samples or 40, width=16, n_heads=2, hidden=32, decoder_width=8, decoder_heads=2, decoder_hidden=16)
        if size not in ("fast", "reference"):
            raise ValueError(f"size must be one of tiny, fast, reference, got {size!r}")
        return cls(n_channels=n_channels, n_samples=n_samples or 140)

    @classmethod
    def original(cls, *, decoder: Literal["self", "none"] = "self", pooling: Literal["mean", "max", "cls"] = "cls", n_samples: int = 140) -> TiMaeConfig:
        """The port's network: an encoder of 91,712 parameters, 117,025 with its decoder.

        As there, an encoder alone that pools the mean or the maximum does without the class token, whose parameter stays unused.
        """
        cls_token = decoder != "none" or pooling == "cls"
        return cls(n_samples=n_samples, decoder=decoder, decoder_heads=4, pooling=pooling, cls=cls_token, dropout=0.1, layout="original")


class TiMae(nn.Module):
    """(B, C, T) and what is hidden -> the window reconstructed; with ``decoder="none"`` (B, C, T) -> one vector per item."""

    def __init__(self, cfg: TiMaeConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = TiMaeEncoder(cfg)
        self.decoder = None if cfg.decoder == "none" else CrossDecoder(cfg) if cfg.decoder == "cross" else TiMaeDecoder(cfg)
        if cfg.layout == "pre_norm":
            init_linear(self)

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"block{i}" for i in range(1, self.cfg.depth + 1))

    @property
    def mask_axes(self) -> dict[str, int]:
        """A mask counts the tokens of the window."""
        return {"time": self.cfg.n_tokens}

    @property
    def predicts_part(self) -> bool:
        """Whether the decoder reconstructs hidden tokens alone, and takes which of them."""
        return self.cfg.decoder == "cross"

    @property
    def n_features(self) -> int:
        """D of the pooled vector."""
        return self.cfg.width

    def forward(
        self,
        x_BCT: Tensor,
        mask_BN: Tensor | None = None,
        *,
        n_visible: int | None = None,
        valid_BT: Tensor | None = None,
        channel_present_BC: Tensor | None = None,
        predict: Tensor | None = None,
        n_predicted: int | None = None,
    ) -> Masked | Embedded:
        """Reconstruct the tokens that ``mask_BN`` (B, N), True = hidden, takes away.

        ``n_visible`` is the number of visible tokens where it is the same for every item (see `patches.visible`). ``predict``, for
        the cross decoder, is the part of the mask to reconstruct (None: all), ``n_predicted`` its number; the rest of the
        reconstruction is 0 and no part of the returned mask. Without a decoder there is no mask, and the pooled vector comes out.
        """
        if self.decoder is None:
            if mask_BN is not None:
                raise ValueError("mask_BN must be None for decoder='none': an encoder alone reconstructs nothing; use decoder='self' or 'cross'")
            return Embedded(self.embed(x_BCT, valid_BT=valid_BT, channel_present_BC=channel_present_BC))
        if mask_BN is None or mask_BN.shape != (len(x_BCT), self.cfg.n_tokens):
            got = None if mask_BN is None else tuple(mask_BN.shape)
            raise ValueError(f"mask_BN must be {(len(x_BCT), self.cfg.n_tokens)}, one per token of {self.cfg.patch} samples, got {got}")
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        mask_BN = mask_BN.bool()
        x_BCT = real_only(x_BCT, valid_BT, channel_present_BC)
        given_BCT = x_BCT if self.cfg.layout == "original" else x_BCT.masked_fill(to_samples(mask_BN, self.cfg.patch)[:, None], 0.0)
        places = visible(mask_BN, n_visible)
        valid_BN = None if valid_BT is None else patch_valid(valid_BT, self.cfg.patch)
        seen = self.encoder(self.encoder.tokens(given_BCT), places, valid_BN)
        if isinstance(self.decoder, CrossDecoder):
            mask_BN = mask_BN if predict is None else mask_BN & predict.bool()
            values_BNP = self.decoder(seen, mask_BN, n_predicted)
        elif predict is not None:
            raise ValueError("predict must be None for decoder='self', which reconstructs all tokens at once; use decoder='cross'")
        else:
            values_BNP = self.decoder(seen, places, mask_BN, valid_BN)
        return Masked(from_patches(values_BNP, self.cfg.n_channels), x_BCT, to_samples(mask_BN, self.cfg.patch)[:, None])

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features of unmasked input after every block, `block1` ... without the class token; pooled as `pooling` says, after the norm.

        Past a short tail (``valid_BT`` False) tokens are 0, seen by no other and in no pool. An absent channel reads as zeros. No
        decoder runs.
        """
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        valid_BN = None if valid_BT is None else patch_valid(valid_BT, self.cfg.patch)
        levels = self.encoder.levels(self.encoder.tokens(real_only(x_BCT, valid_BT, channel_present_BC)), valid_BN)
        cls_BD, n_extra = levels[-1][:, 0], int(self.cfg.cls)
        levels = [level[:, n_extra:] for level in levels]
        if valid_BN is not None:
            levels = [level.masked_fill(~valid_BN[..., None], 0.0) for level in levels]
        pooled_BD = cls_BD if self.cfg.pooling == "cls" else pool(levels[-1], self.cfg.pooling, valid_BN)
        return Encoded(levels[-1], pooled_BD, dict(zip(self.level_names, levels, strict=True)))

    def embed(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Tensor:
        """The pooled vector of `encode`, (B, D). Where that is the class token, the last block computes nothing else."""
        if self.cfg.pooling != "cls" or self.cfg.layout == "original":
            return self.encode(x_BCT, valid_BT=valid_BT, channel_present_BC=channel_present_BC).pooled_BD
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        valid_BN = None if valid_BT is None else patch_valid(valid_BT, self.cfg.patch)
        return self.encoder.class_token(self.encoder.tokens(real_only(x_BCT, valid_BT, channel_present_BC)), valid_BN)

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, N) bool."""
        return dict.fromkeys(self.level_names, patch_valid(valid_BT, self.cfg.patch))


class TiMaeClassifier(nn.Module):
    """An encoder and a linear head, under the original's names: (B, C, T) -> (B, classes). ``TiMaeConfig.original`` gives 92,037 for five classes."""

    def __init__(self, cfg: TiMaeConfig, n_classes: int) -> None:
        super().__init__()
        if cfg.decoder != "none":
            raise ValueError(f"decoder must be 'none' for a classifier, got {cfg.decoder!r}")
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}")
        self.cfg, self._body = cfg, (TiMae(cfg),)  # in a tuple, so that the state dict has the encoder once, as `encoder.*`
        self.encoder = self._body[0].encoder
        self.classifier = nn.Linear(cfg.width, n_classes)

    def forward(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Tensor:
        """Logits (B, classes) of the pooled vector."""
        return self.classifier(self._body[0].embed(x_BCT, valid_BT=valid_BT, channel_present_BC=channel_present_BC))


class Seen(NamedTuple):
    """What the encoder made of the visible tokens: (B, 1 + K, D) with the class token in front where there is one, and which count (None: all)."""

    tokens_BKD: Tensor
    valid_BK: Tensor | None


class TiMaeEncoder(nn.Module):
    """Embedding, positions, blocks and a closing norm."""

    def __init__(self, cfg: TiMaeConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embedding = Embedding(cfg.n_channels, cfg.width, cfg.patch)
        self.positional_encoding = Positions(cfg.n_tokens + cfg.cls, cfg.width, keep=cfg.layout == "original")
        if cfg.cls or cfg.layout == "original":  # the original's files have one even where it is unused
            self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.width), requires_grad=cfg.cls)
        self.layers = nn.ModuleList(_block(cfg.width, cfg.n_heads, cfg.hidden, cfg) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-5)

    def tokens(self, x_BCT: Tensor) -> Tensor:
        """Embedded samples with their positions, (B, N, D). The class token has position 0 where there is one, sample t then t + 1."""
        return self.embedding(x_BCT) + self.positional_encoding.pe[:, int(self.cfg.cls) :]

    def forward(self, tokens_BND: Tensor, places: Visible, valid_BN: Tensor | None) -> Seen:
        """The visible tokens alone through the blocks."""
        valid_BK = places.visible_BK
        if valid_BN is not None:
            real_BK = valid_BN.gather(1, places.index_BK)
            valid_BK = real_BK if valid_BK is None else real_BK & valid_BK
        return Seen(self.levels(take(tokens_BND, places.index_BK), valid_BK)[-1], self._with_cls(valid_BK))

    def levels(self, tokens_BKD: Tensor, valid_BK: Tensor | None) -> list[Tensor]:
        """The output of every block, the last one normed, each (B, 1 + K, D)."""
        tokens_BKD, valid_BK, levels = self._behind_cls(tokens_BKD), self._with_cls(valid_BK), []
        for layer in self.layers:
            tokens_BKD = layer(tokens_BKD, valid_BN=valid_BK)
            levels.append(tokens_BKD)
        return [*levels[:-1], self.norm(levels[-1])]

    def class_token(self, tokens_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
        """The class token of the last level alone, (B, D)."""
        tokens_BND, valid_BN = self._behind_cls(tokens_BND), self._with_cls(valid_BN)
        for layer in self.layers[:-1]:
            tokens_BND = layer(tokens_BND, valid_BN=valid_BN)
        return self.norm(_first_of(self.layers[-1], tokens_BND, valid_BN))

    def _behind_cls(self, tokens_BKD: Tensor) -> Tensor:
        if not self.cfg.cls:
            return tokens_BKD
        cls_B1D = (self.cls_token + self.positional_encoding.pe[:, :1]).to(tokens_BKD.dtype).expand(tokens_BKD.shape[0], -1, -1)
        return torch.cat([cls_B1D, tokens_BKD], dim=1)

    def _with_cls(self, valid_BK: Tensor | None) -> Tensor | None:
        return _with_extra(valid_BK, int(self.cfg.cls))


class TiMaeDecoder(nn.Module):
    """Visible tokens, sent home among mask tokens, through narrow blocks to values: (B, 1 + K, D) -> (B, N, P)."""

    def __init__(self, cfg: TiMaeConfig) -> None:
        super().__init__()
        self.n_extra = int(cfg.cls)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, cfg.decoder_width))
        self.embedding = nn.Linear(cfg.width, cfg.decoder_width)
        self.positional_encoding = Positions(cfg.n_tokens + cfg.cls, cfg.decoder_width, keep=cfg.layout == "original")
        self.layers = nn.ModuleList(_block(cfg.decoder_width, cfg.decoder_heads, cfg.decoder_hidden, cfg) for _ in range(cfg.decoder_depth))
        self.norm = nn.LayerNorm(cfg.decoder_width, eps=1e-5)
        self.projection = nn.Linear(cfg.decoder_width, cfg.n_channels * cfg.patch)

    def forward(self, seen: Seen, places: Visible, mask_BN: Tensor, valid_BN: Tensor | None) -> Tensor:
        seen_BKD = self.embedding(seen.tokens_BKD)
        tokens_BND = send_home(seen_BKD[:, self.n_extra :], places.index_BK, mask_BN, self.mask_token[0, 0])
        tokens_BND = torch.cat([seen_BKD[:, : self.n_extra].to(tokens_BND.dtype), tokens_BND], dim=1) + self.positional_encoding.pe
        valid_BN = _with_extra(valid_BN, self.n_extra)
        for layer in self.layers:
            tokens_BND = layer(tokens_BND, valid_BN=valid_BN)
        return self.projection(self.norm(tokens_BND)[:, self.n_extra :])


class CrossDecoder(nn.Module):
    """Queries of hidden tokens look at the visible ones and never at one another: (B, 1 + K, D) and places -> (B, N, P), 0 where not asked."""

    def __init__(self, cfg: TiMaeConfig) -> None:
        super().__init__()
        self.n_extra = int(cfg.cls)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, cfg.decoder_width))
        self.positional_encoding = Positions(cfg.n_tokens + cfg.cls, cfg.decoder_width, keep=False)
        self.layers = nn.ModuleList(
            CrossBlock(cfg.decoder_width, cfg.decoder_heads, hidden=cfg.decoder_hidden, context_width=cfg.width) for _ in range(cfg.decoder_depth)
        )
        self.norm = nn.LayerNorm(cfg.decoder_width, eps=1e-5)
        self.projection = nn.Linear(cfg.decoder_width, cfg.n_channels * cfg.patch)

    def forward(self, seen: Seen, ask_BN: Tensor, n_asked: int | None) -> Tensor:
        """``n_asked`` is the number of tokens asked for where it is the same for every item."""
        index_BM, _ = visible(~ask_BN, n_asked)
        position_BND = self.positional_encoding.pe[:, self.n_extra :].expand(len(ask_BN), -1, -1)
        query_BMD = self.mask_token + take(position_BND, index_BM)
        for layer in self.layers:
            query_BMD = layer(query_BMD, seen.tokens_BKD, valid_BM=seen.valid_BK)
        values_BMP = self.projection(self.norm(query_BMD))
        home_BNP = values_BMP.new_zeros(*ask_BN.shape, values_BMP.shape[-1]).scatter(1, index_BM[..., None].expand_as(values_BMP), values_BMP)
        return home_BNP.masked_fill(~ask_BN[..., None], 0.0)


class Embedding(nn.Module):
    """A convolution from samples to tokens, (B, C, T) -> (B, N, D): over a sample and its neighbours, or over patches side by side.

    ``causal`` looks at two samples before instead of one on either side.
    """

    def __init__(self, n_channels: int, width: int, patch: int, *, causal: bool = False) -> None:
        super().__init__()
        self.before = (2, 0) if causal else (1, 1)
        self.conv = nn.Conv1d(n_channels, width, 3 if patch == 1 else patch, stride=patch)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCT, self.before) if self.conv.stride == (1,) else x_BCT).transpose(1, 2)


class Positions(nn.Module):
    """Fixed sines and cosines in turn, ``pe`` (1, N, D) (Vaswani et al., arXiv 1706.03762); ``keep`` carries them in the state dict, as the original does."""

    def __init__(self, n: int, width: int, *, keep: bool) -> None:
        super().__init__()
        frequency_I = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10_000.0) / width))
        angle_NI = torch.arange(n, dtype=torch.float64)[:, None] * frequency_I
        self.register_buffer("pe", torch.stack([angle_NI.sin(), angle_NI.cos()], -1).flatten(1).float()[None], persistent=keep)


class OriginalLayer(nn.Module):
    """The port's block: the norm replaces the stream, logits are multiplied by the head width, attention has no output projection."""

    def __init__(self, width: int, n_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.attention = nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in ("query", "key", "value")})
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))

    def forward(self, x_BND: Tensor, *, valid_BN: Tensor | None = None) -> Tensor:
        x_BND = self.norm1(x_BND)
        query, key, value = (part(x_BND).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in self.attention.values())
        y_BHNK = attend(query, key, value, seen=key_mask(valid_BN), scale=float(query.shape[-1]))
        x_BND = self.norm2(x_BND + y_BHNK.transpose(1, 2).flatten(2))
        return x_BND + self.ffn(x_BND)


def _block(width: int, n_heads: int, hidden: int, cfg: TiMaeConfig) -> nn.Module:
    if cfg.layout == "original":
        return OriginalLayer(width, n_heads, hidden, cfg.dropout)
    return Block(width, n_heads, hidden=hidden, dropout=cfg.dropout, eps=1e-5)


def _with_extra(valid_BN: Tensor | None, n_extra: int) -> Tensor | None:
    return valid_BN if valid_BN is None or not n_extra else torch.cat([valid_BN.new_ones(len(valid_BN), n_extra), valid_BN], dim=1)


def _first_of(block: Block, x_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
    """A block's output for the first token alone, (B, D): one query, keys and values of all."""
    attention, width = block.attention, x_BND.shape[-1]
    normed_BND = block.norm_1(x_BND)
    query_weight, key_value_weight = attention.qkv.weight.split([width, 2 * width])
    query_bias, key_value_bias = attention.qkv.bias.split([width, 2 * width])
    query = F.linear(normed_BND[:, :1], query_weight, query_bias).unflatten(-1, (1, attention.n_heads, -1))
    key_value = F.linear(normed_BND, key_value_weight, key_value_bias).unflatten(-1, (2, attention.n_heads, -1))
    (query,), (key, value) = (part.permute(2, 0, 3, 1, 4).unbind(0) for part in (query, key_value))
    y_BHNK = attend(query, key, value, seen=key_mask(valid_BN))
    x_BD = x_BND[:, 0] + block.dropout(attention.out(y_BHNK.transpose(1, 2).flatten(2))[:, 0])
    return x_BD + block.dropout(block.mlp(block.norm_2(x_BD)))
