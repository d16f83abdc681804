"""Ti-MAE on Mamba-2: a masked autoencoder over samples whose cost is linear in the length of the window.

What is hidden is taken away before the scan, what stays keeps its order in time and carries its position (a scan knows neither), and
blocks are residual with the norm in front. The encoder can run both ways. `layout="original"` is the Lightning port's network
instead, number for number, so that its files load: one bare layer whose *output* is masked, after the scan has seen everything.
Shape letters: B items, C channels, T samples, N tokens, K visible tokens, P values of a token, D features.

    x (B, C, T) -> conv + positions (B, N, D) -> visible, in order (B, K, D) -> [cls] -> Mamba-2 blocks -> decoder with mask tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from physio_models.interface import Embedded, Encoded, Masked
from physio_models.mamba2 import Mamba2, Mamba2Config, MambaBlock
from physio_models.masking import n_patches, to_samples
from physio_models.patches import Visible, check_window, from_patches, pack, patch_valid, real_only, send_home, take, visible
from physio_models.pooling import pool
from physio_models.ti_mae import Embedding, Layout, Positions

ORIGINAL_WIDTHS = {"small": 64, "large": 512}  # the port's 35.7 K and 1.7 M


@dataclass(frozen=True, kw_only=True)
class TiMaeMambaConfig:
    """Shape of a Ti-MAE on Mamba-2."""

    n_channels: int = 1  # signal channels C
    n_samples: int = 140  # window length T, samples
    patch: int = 1  # samples of a token; 1 is embedded with its neighbours, more without
    width: int = 64  # D
    depth: int = 2
    d_state: int = 64
    headdim: int = 16
    bidirectional: bool = True  # False: every token depends on earlier samples alone
    decoder: Literal["self", "none"] = "self"  # none: an encoder alone
    decoder_width: int = 32
    decoder_depth: int = 1
    decoder_d_state: int = 64
    decoder_headdim: int = 16
    cls: bool = False  # one learned token after all others
    pooling: Literal["mean", "max", "cls"] = "mean"
    chunk: int = 32  # positions that the scan takes at once; rounding and speed alone
    layout: Layout = "pre_norm"

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in ("n_channels", "n_samples", "patch", "depth", "decoder_depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        n_patches(self.n_samples, self.patch)
        tables = {"decoder": ("self", "none"), "pooling": ("mean", "max", "cls"), "layout": ("pre_norm", "original")}
        for field, allowed in tables.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")
        for field in ("width", "decoder_width"):
            if getattr(self, field) < 2 or getattr(self, field) % 2:
                raise ValueError(f"{field} must be even to hold sines and cosines, got {getattr(self, field)}")
        if self.pooling == "cls" and not self.cls:
            raise ValueError("pooling='cls' needs cls=True; use pooling='mean' or 'max' without a class token")
        if self.layout == "original" and (self.patch, self.depth, self.decoder_depth, self.bidirectional) != (1, 1, 1, False):
            raise ValueError("layout='original' has patch, depth and decoder_depth 1 and bidirectional=False; use TiMaeMambaConfig.original")
        _ = self.mixer, self.decoder_mixer

    @property
    def mixer(self) -> Mamba2Config:
        """The encoder's layer."""
        return Mamba2Config(d_model=self.width, d_state=self.d_state, headdim=self.headdim, chunk_size=self.chunk)

    @property
    def decoder_mixer(self) -> Mamba2Config:
        """The decoder's layer."""
        return Mamba2Config(d_model=self.decoder_width, d_state=self.decoder_d_state, headdim=self.decoder_headdim, chunk_size=self.chunk)

    @property
    def n_tokens(self) -> int:
        """Tokens of a window, N, without the class token."""
        return self.n_samples // self.patch

    def build(self) -> TiMaeMamba:
        """The network, drawn from torch's global generator."""
        return TiMaeMamba(self)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], *, n_channels: int = 1, n_samples: int | None = None) -> TiMaeMambaConfig:
        """tiny: seconds, for tests; fast and reference: the sizes of the port's small network in two blocks that run both ways."""
        if size == "tiny":
            small = {"width": 16, "d_state": 8, "headdim": 8, "decoder_width": 8, "decoder_d_state": 8, "decoder_headdim": 8}
            return cls(n_channels=n_channels, n_samples=n_samples or 40, **small)
        if size not in ("fast", "reference"):
            raise ValueError(f"size must be one of tiny, fast, reference, got {size!r}")
        return cls(n_channels=n_channels, n_samples=n_samples or 140)

    @classmethod
    def original(
        cls, size: Literal["small", "large"] = "small", *, decoder: Literal["self", "none"] = "self", pooling: Literal["mean", "max", "cls"] = "cls"
    ) -> TiMaeMambaConfig:
        """The port's networks: an encoder of 35,696 or 1,714,688 parameters (of the large one the recorded size alone is known, not its settings)."""
        if size not in ORIGINAL_WIDTHS:
            raise ValueError(f"size must be one of {', '.join(ORIGINAL_WIDTHS)}, got {size!r}")
        return cls(
            width=ORIGINAL_WIDTHS[size], depth=1, headdim=8, decoder_headdim=8, bidirectional=False, decoder=decoder,
            cls=decoder != "none" or pooling == "cls", pooling=pooling, layout="original",
        )  # fmt: skip


class TiMaeMamba(nn.Module):
    """(B, C, T) and what is hidden -> the window reconstructed; with ``decoder="none"`` (B, C, T) -> one vector per item."""

    def __init__(self, cfg: TiMaeMambaConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = MambaEncoder(cfg)
        self.decoder = MambaDecoder(cfg) if cfg.decoder == "self" else None

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"block{i}" for i in range(1, self.cfg.depth + 1))

    @property
    def mask_axes(self) -> dict[str, int]:
        """A mask counts the tokens of the window."""
        return {"time": self.cfg.n_tokens}

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
    ) -> Masked | Embedded:
        """Reconstruct the tokens that ``mask_BN`` (B, N), True = hidden, takes away. ``n_visible``: see `patches.visible`.

        Without a decoder there is no mask, and the pooled vector comes out.
        """
        if self.decoder is None:
            if mask_BN is not None:
                raise ValueError("mask_BN must be None for decoder='none': an encoder alone reconstructs nothing; use decoder='self'")
            return Embedded(self.encode(x_BCT, valid_BT=valid_BT, channel_present_BC=channel_present_BC).pooled_BD)
        if mask_BN is None or mask_BN.shape != (len(x_BCT), self.cfg.n_tokens):
            got = None if mask_BN is None else tuple(mask_BN.shape)
            raise ValueError(f"mask_BN must be {(len(x_BCT), self.cfg.n_tokens)}, one per token of {self.cfg.patch} samples, got {got}")
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        mask_BN = mask_BN.bool()
        x_BCT = real_only(x_BCT, valid_BT, channel_present_BC)
        hidden_B1T = to_samples(mask_BN, self.cfg.patch)[:, None]
        valid_BN = None if valid_BT is None else patch_valid(valid_BT, self.cfg.patch)
        places = visible(mask_BN, n_visible)
        if self.cfg.layout == "original":
            whole_BND = self.encoder.levels(self.encoder.tokens(x_BCT), valid_BN)[-1]
            seen_BKD = torch.cat([take(whole_BND[:, : self.cfg.n_tokens], places.index_BK), whole_BND[:, self.cfg.n_tokens :]], dim=1)
        else:
            tokens_BND = self.encoder.tokens(x_BCT.masked_fill(hidden_B1T, 0.0))
            seen_BKD = self.encoder.levels(take(tokens_BND, places.index_BK), _visible_valid(places, valid_BN))[-1]
        return Masked(from_patches(self.decoder(seen_BKD, places, mask_BN, valid_BN), self.cfg.n_channels), x_BCT, hidden_B1T)

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features of unmasked input after every block, `block1` ... without the class token; pooled as `pooling` says, after the norm.

        Past a short tail (``valid_BT`` False) tokens are 0, reach no other and are in no pool. An absent channel reads as zeros.
        """
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        valid_BN = None if valid_BT is None else patch_valid(valid_BT, self.cfg.patch)
        levels = self.encoder.levels(self.encoder.tokens(real_only(x_BCT, valid_BT, channel_present_BC)), valid_BN)
        last_BD, n = levels[-1][:, -1], self.cfg.n_tokens
        levels = [level[:, :n] for level in levels]
        if valid_BN is not None:
            levels = [level.masked_fill(~valid_BN[..., None], 0.0) for level in levels]
        pooled_BD = last_BD if self.cfg.pooling == "cls" else pool(levels[-1], self.cfg.pooling, valid_BN)
        return Encoded(levels[-1], pooled_BD, dict(zip(self.level_names, levels, strict=True)))

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, N) bool."""
        return dict.fromkeys(self.level_names, patch_valid(valid_BT, self.cfg.patch))


class MambaEncoder(nn.Module):
    """Embedding, positions, blocks and a closing norm; in the original's layout embedding, one layer, norm."""

    def __init__(self, cfg: TiMaeMambaConfig) -> None:
        super().__init__()
        self.cfg = cfg
        original = cfg.layout == "original"
        self.embedding = Embedding(cfg.n_channels, cfg.width, cfg.patch, causal=not cfg.bidirectional and not original)
        if cfg.cls or original:  # the original's files have one even where it is unused
            self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.width), requires_grad=cfg.cls)
        if original:
            self.mamba = Mamba2(cfg.mixer)
        else:
            self.positional_encoding = Positions(cfg.n_tokens + cfg.cls, cfg.width, keep=False)
            self.layers = nn.ModuleList(MambaBlock(cfg.mixer, bidirectional=cfg.bidirectional) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-5)

    def tokens(self, x_BCT: Tensor) -> Tensor:
        """Embedded samples, (B, N, D), with their positions where the layout has any."""
        tokens_BND = self.embedding(x_BCT)
        return tokens_BND if self.cfg.layout == "original" else tokens_BND + self.positional_encoding.pe[:, : self.cfg.n_tokens]

    def levels(self, tokens_BKD: Tensor, valid_BK: Tensor | None) -> list[Tensor]:
        """The output of every block over the tokens shown, the last one normed, each (B, K + 1, D) with the class token at the end."""
        if self.cfg.cls:
            cls_11D = self.cls_token if self.cfg.layout == "original" else self.cls_token + self.positional_encoding.pe[:, -1:]
            tokens_BKD = torch.cat([tokens_BKD, cls_11D.to(tokens_BKD.dtype).expand(tokens_BKD.shape[0], -1, -1)], dim=1)
        valid_BK = _with_last(valid_BK, int(self.cfg.cls))
        packed = pack(valid_BK) if valid_BK is not None and self.cfg.cls else None
        if packed is not None:  # no gap between the last real token and the class token, so that filling up changes neither
            tokens_BKD, valid_BK = take(tokens_BKD, packed.order_BN), valid_BK.gather(1, packed.order_BN)
        levels = []
        for layer in [self.mamba] if self.cfg.layout == "original" else self.layers:
            tokens_BKD = layer(tokens_BKD, valid_BL=valid_BK)
            levels.append(tokens_BKD)
        levels[-1] = self.norm(levels[-1])
        return levels if packed is None else [take(level, packed.home_BN) for level in levels]


class MambaDecoder(nn.Module):
    """Visible tokens, sent home among mask tokens, through narrow blocks that run both ways: (B, K + 1, D) -> (B, N, P)."""

    def __init__(self, cfg: TiMaeMambaConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.mask_token = nn.Parameter(torch.zeros(1, 1, cfg.decoder_width))
        self.embedding = nn.Linear(cfg.width, cfg.decoder_width)
        if cfg.layout == "original":
            self.mamba = Mamba2(cfg.decoder_mixer)
        else:
            self.positional_encoding = Positions(cfg.n_tokens + cfg.cls, cfg.decoder_width, keep=False)
            self.layers = nn.ModuleList(MambaBlock(cfg.decoder_mixer, bidirectional=True) for _ in range(cfg.decoder_depth))
        self.norm = nn.LayerNorm(cfg.decoder_width, eps=1e-5)
        self.projection = nn.Linear(cfg.decoder_width, cfg.n_channels * cfg.patch)

    def forward(self, seen_BKD: Tensor, places: Visible, mask_BN: Tensor, valid_BN: Tensor | None) -> Tensor:
        seen_BKD, n_extra = self.embedding(seen_BKD), int(self.cfg.cls)
        n_kept = seen_BKD.shape[1] - n_extra
        home_BND = send_home(seen_BKD[:, :n_kept], places.index_BK, mask_BN, self.mask_token[0, 0])
        tokens_BND = torch.cat([home_BND, seen_BKD[:, n_kept:].to(home_BND.dtype)], dim=1)
        valid_BN = _with_last(valid_BN, n_extra)
        if self.cfg.layout == "original":
            tokens_BND = self.mamba(tokens_BND, valid_BL=valid_BN)
        else:
            tokens_BND = tokens_BND + self.positional_encoding.pe
            for layer in self.layers:
                tokens_BND = layer(tokens_BND, valid_BL=valid_BN)
        return self.projection(self.norm(tokens_BND)[:, : self.cfg.n_tokens])


def _visible_valid(places: Visible, valid_BN: Tensor | None) -> Tensor | None:
    """Which of the K tokens taken are visible and real; None: all."""
    if valid_BN is None:
        return places.visible_BK
    real_BK = valid_BN.gather(1, places.index_BK)
    return real_BK if places.visible_BK is None else real_BK & places.visible_BK


def _with_last(valid_BN: Tensor | None, n_extra: int) -> Tensor | None:
    return valid_BN if valid_BN is None or not n_extra else torch.cat([valid_BN, valid_BN.new_ones(len(valid_BN), n_extra)], dim=1)
