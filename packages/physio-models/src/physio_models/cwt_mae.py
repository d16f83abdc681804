"""CWT-MAE: masked autoencoding of wavelet scalograms and of the waveform under them.

Source: CWT-MAE-RoPE (Wearable-Foundation-Model), versions 1 to 3 as presets. Tokens are patches of a channel's scalogram plus, where wanted,
the embedding of the waveform under the same column; rotary positions are columns. Unlike the original, visible tokens of every channel go
back to their own places, channels are told apart in the decoder, and smoothing runs along time. Shape letters: B items, C channels, T samples,
W patch columns, H patch rows, N = W H places of a channel (all rows of a column together, columns in time), K kept of them, V values of a
patch, D features.

    x (B, C, T) -> z-score -> CWT of signal and differences -> patches -> kept tokens (B, C, K, D) -> encoder -> un-shuffle
    -> decoder over all places of all channels -> scalogram patches (B, C, N, V) and waveform (B, C, W patch)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.attention import Block, check_heads
from physio_models.cwt import PEAK, Definition, linear_scales, log_scales
from physio_models.cwt_blocks import Attention, DepthMix, FactorisedBlock, JointBlock, Layout, LowRankLinear, ScanBlock, layout, mlp
from physio_models.cwt_frontend import views
from physio_models.interface import Encoded
from physio_models.patches import check_window, patch_valid, real_only, send_home, take, visible
from physio_models.pooling import pool
from physio_models.rope import rotary_table, rotate

Version = Literal["v1", "v2", "v3", "v3_contrastive"]
Size = Literal["tiny", "fast", "reference"]
LARGEST_SAMPLE = 10.0  # the waveform's targets are clamped here, in standard deviations


@dataclass(frozen=True, kw_only=True)
class CwtMaeShape:
    """Everything that shapes the network. Build one of the two final configs below, or a preset of theirs."""

    n_channels: int = 1
    n_samples: int = 1000  # T
    fs: float = 100.0  # Hz; gives the scales their frequencies
    # front end
    wavelet: Literal["ricker", "morlet"] = "ricker"  # Morlet by its magnitude
    definition: Definition = "reference"  # mirrored ends and unit-energy Ricker, or PyWavelets'
    n_scales: int = 64
    spacing: Literal["log", "linear"] = "log"  # linear is the original's 0.1, 1.1, ... samples, most of them below 2 Hz at 100 Hz
    band_hz: tuple[float, float] = (0.5, 40.0)  # of log spacing
    differences: int = 2  # planes beside the signal's own: its first and second difference
    # patches
    patch_scales: int = 8
    patch_samples: int = 25
    raw_patches: bool = True  # add the embedding of the waveform under a column to all its tokens
    # encoder
    width: int = 768  # D
    depth: int = 12
    n_heads: int = 12
    attention: Attention = "factorised"  # joint: all channels' tokens; factorised: in time, then over channels; separate: channels never meet
    rank_ratio: float | None = None  # of low-rank MLPs; None: dense
    cls_token: bool = False
    rope: bool = True
    attention_residuals: bool = False
    mamba_every: int = 0  # every n-th block is Mamba-2; 0: none
    mamba_state: int = 64
    # decoder
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    time_head: bool = True  # reconstruct the waveform too; False: the scalogram alone

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "band_hz", tuple(self.band_hz))
        for field in ("n_channels", "n_samples", "n_scales", "patch_scales", "patch_samples", "width", "depth", "decoder_width", "decoder_depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field, allowed in (
            ("wavelet", ("ricker", "morlet")),
            ("definition", ("pywt", "reference")),
            ("spacing", ("log", "linear")),
            ("attention", ("joint", "factorised", "separate")),
            ("differences", (0, 1, 2)),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(map(str, allowed))}, got {getattr(self, field)!r}")
        if self.wavelet == "morlet" and self.definition == "reference":
            raise ValueError("wavelet='morlet' needs definition='pywt': the reference definition has Ricker wavelets alone")
        if self.n_samples < self.patch_samples:
            raise ValueError(f"n_samples={self.n_samples} holds no patch of patch_samples={self.patch_samples}; use shorter patches or longer windows")
        if self.n_scales % self.patch_scales:
            raise ValueError(f"patch_scales must divide n_scales={self.n_scales}, got {self.patch_scales}")
        check_heads(self.width, self.n_heads)
        check_heads(self.decoder_width, self.decoder_heads)
        for field, width, heads in (("n_heads", self.width, self.n_heads), ("decoder_heads", self.decoder_width, self.decoder_heads)):
            if self.rope and width // heads % 2:
                raise ValueError(f"{field}={heads} gives heads of odd width {width // heads}, which rotary positions cannot turn; use fewer or more")
        if self.cls_token and self.attention == "factorised":
            raise ValueError("cls_token belongs to attention='joint' or 'separate': with factorised attention it has no channel")
        if self.mamba_every < 0 or self.mamba_state < 1:
            raise ValueError(f"mamba_every must be at least 0 and mamba_state at least 1, got {self.mamba_every} and {self.mamba_state}")
        if self.cls_token and self.mamba_every == 1:
            raise ValueError("cls_token needs a block with attention: with mamba_every=1 nothing would ever read it")
        if self.rank_ratio is not None and not 0 < self.rank_ratio <= 1:
            raise ValueError(f"rank_ratio must lie in (0, 1] or be None, got {self.rank_ratio}")
        _ = self.scales

    @property
    def scales(self) -> tuple[float, ...]:
        """Of the wavelets, in samples."""
        return linear_scales(self.n_scales) if self.spacing == "linear" else log_scales(self.n_scales, self.band_hz, self.fs, self.wavelet)

    @property
    def scale_hz(self) -> tuple[float, ...]:
        """The frequency each scale answers to most."""
        return tuple(PEAK[self.wavelet] * self.fs / scale for scale in self.scales)

    @property
    def n_columns(self) -> int:
        return self.n_samples // self.patch_samples

    @property
    def n_rows(self) -> int:
        return self.n_scales // self.patch_scales

    @property
    def n_places(self) -> int:
        return self.n_columns * self.n_rows

    @property
    def patch_values(self) -> int:
        return (1 + self.differences) * self.patch_scales * self.patch_samples

    def build(self) -> CwtMae:
        """The network as initialised from torch's global generator."""
        return CwtMae(self)


@dataclass(frozen=True, kw_only=True)
class CwtMaeConfig(CwtMaeShape):
    """CWT-MAE; the defaults are version 3 with scales spaced by ratio."""

    @classmethod
    def preset(cls, size: Size, *, version: Version = "v3", n_channels: int = 1, n_samples: int | None = None) -> CwtMaeConfig:
        """tiny: seconds, for tests; fast: minutes on two cores; reference: the original's sizes, scales and, for v1 and v2, its 30 s windows.

        v1 (several channels) and v2 (one): joint attention, low-rank MLPs, CLS, learned positions, scalogram tokens alone. v3: factorised
        attention, dense MLPs, rotary columns, waveform tokens added. v3_contrastive: as v3, each channel by itself.
        """
        return cls(**_preset(size, version, n_channels, n_samples))

    @classmethod
    def eeg_tiny(cls, *, n_channels: int = 8, n_samples: int = 1000, fs: float = 200.0) -> CwtMaeConfig:
        """A small network for EEG: Morlet magnitudes from 0.5 to 45 Hz, joint-free attention over channels at every place."""
        tiny = cls.preset("tiny", n_channels=n_channels, n_samples=n_samples)
        return replace(tiny, fs=fs, wavelet="morlet", definition="pywt", band_hz=(0.5, 45.0), differences=0)


@dataclass(frozen=True, kw_only=True)
class CwtMaePairConfig(CwtMaeShape):
    """Version 3 for pairs of channels (PPG and ECG) in one tower: every channel passes the same network by itself."""

    n_channels: int = 2
    attention: Attention = "separate"

    @classmethod
    def preset(cls, size: Size, *, n_channels: int = 2, n_samples: int | None = None) -> CwtMaePairConfig:
        """The sizes of `CwtMaeConfig.preset`."""
        return cls(**_preset(size, "v3_contrastive", n_channels, n_samples))


_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 32, "depth": 2, "n_heads": 4, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 4, "n_scales": 16, "mamba_state": 16},
    "fast": {"width": 128, "depth": 4, "n_heads": 4, "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4, "n_scales": 32},
    "reference": {"spacing": "linear"},
}
_EARLY = {"attention": "joint", "rank_ratio": 0.5, "cls_token": True, "rope": False, "raw_patches": False}
_VERSIONS: dict[str, dict[str, Any]] = {"v1": _EARLY, "v2": _EARLY, "v3": {"attention": "factorised"}, "v3_contrastive": {"attention": "separate"}}


def _preset(size: str, version: str, n_channels: int, n_samples: int | None) -> dict[str, Any]:
    for field, value, table in (("size", size, _SIZES), ("version", version, _VERSIONS)):
        if value not in table:
            raise ValueError(f"{field} must be one of {', '.join(table)}, got {value!r}")
    if version == "v2" and n_channels != 1:
        raise ValueError(f"version 'v2' has one channel, got n_channels={n_channels}; use 'v1'")
    long = {"patch_scales": 4, "patch_samples": 50} if size == "reference" and version in ("v1", "v2") else {}
    return _SIZES[size] | _VERSIONS[version] | long | {"n_channels": n_channels, "n_samples": n_samples or (3000 if long else 1000)}


class Reconstruction(NamedTuple):
    """What a forward pass gives. ``time_*`` are None without a waveform head; ``real_BCN`` are places on real samples of present channels."""

    spec_BCNV: Tensor
    spec_target_BCNV: Tensor
    time_BCT: Tensor | None  # W * patch samples
    time_target_BCT: Tensor | None
    mask_BCN: Tensor
    real_BCN: Tensor
    pooled_BCD: Tensor  # mean of each channel's visible tokens; 0 where it has none


class CwtMae(nn.Module):
    """Masked autoencoder of scalograms: (B, C, T) -> `Reconstruction`; `encode` gives every block's tokens (B, C N, D)."""

    def __init__(self, cfg: CwtMaeShape) -> None:
        super().__init__()
        self.cfg = cfg
        self.patch_embed = nn.Linear(cfg.patch_values, cfg.width)
        self.patch_norm = nn.LayerNorm(cfg.width)
        if cfg.raw_patches:
            self.raw_embed = nn.Linear(cfg.patch_samples, cfg.width)
            self.raw_norm = nn.LayerNorm(cfg.width)
            self.raw_gain = nn.Parameter(torch.full((cfg.width,), 0.1))
        self.position = nn.Parameter(_normal(cfg.n_places, cfg.width))
        self.cls = nn.Parameter(_normal(1, cfg.width)) if cfg.cls_token else None
        self.blocks = nn.ModuleList(_block(cfg, number) for number in range(1, cfg.depth + 1))
        self.mixes = nn.ModuleList(DepthMix(cfg.width) for _ in range(cfg.depth)) if cfg.attention_residuals else None
        self.norm = nn.LayerNorm(cfg.width)
        self.decoder = Decoder(cfg)
        for part in (*self.blocks, self.decoder):
            if not isinstance(part, ScanBlock):
                part.apply(_init)

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"block{number}" for number in range(1, self.cfg.depth + 1))

    def forward(
        self,
        x_BCT: Tensor,
        mask_BCN: Tensor,
        *,
        n_visible: int | None = None,
        valid_BT: Tensor | None = None,
        channel_present_BC: Tensor | None = None,
    ) -> Reconstruction:
        """Reconstruct what ``mask_BCN``, True = hidden, takes away: (B, C, N), or (B, 1, N) for the same places in all channels.

        ``n_visible`` is the number of places that an item shows in at least one of its channels, or more; without it the device is
        asked. It must be exact, and the same for every item, where the mask is (B, 1, N) or channels are separate.
        """
        x_BCT, valid_BT, channel_present_BC = self._window(x_BCT, valid_BT, channel_present_BC)
        n_items, n_channels = x_BCT.shape[:2]
        if mask_BCN.ndim != 3 or mask_BCN.shape[0] != n_items or mask_BCN.shape[1] not in (1, n_channels) or mask_BCN.shape[2] != self.cfg.n_places:
            raise ValueError(f"mask_BCN must be ({n_items}, 1 or {n_channels}, {self.cfg.n_places}), got {tuple(mask_BCN.shape)}")
        if self.cfg.attention == "separate" and n_channels > 1:
            out = self._reconstruct(*_apart(x_BCT, mask_BCN, valid_BT, channel_present_BC), n_visible)
            return Reconstruction(*(None if part is None else part.reshape(n_items, n_channels, *part.shape[2:]) for part in out))
        return self._reconstruct(x_BCT, mask_BCN, valid_BT, channel_present_BC, n_visible)

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Tokens of unmasked input after every block, `block1` ...; the last is normed, and pooled is its mean. The decoder does not run.

        Tokens stand channel by channel, in a channel column by column. Those past a short tail or of an absent channel are 0, are seen
        by no other and stay out of the mean; CLS is left out.
        """
        x_BCT, valid_BT, channel_present_BC = self._window(x_BCT, valid_BT, channel_present_BC)
        n_items, n_channels = x_BCT.shape[:2]
        if self.cfg.attention == "separate" and n_channels > 1:
            x_BCT, _, valid_BT, channel_present_BC = _apart(x_BCT, None, valid_BT, channel_present_BC)
        real_BCN = self._real(x_BCT, valid_BT, channel_present_BC)
        places_N = torch.arange(self.cfg.n_places, device=x_BCT.device).expand(x_BCT.shape[0], -1)
        whole = valid_BT is None and channel_present_BC is None
        spec_BCNV, time_BCWV = views(x_BCT, self.cfg, valid_BT)
        states, _ = self._encoder(spec_BCNV, time_BCWV, places_N, None if whole else real_BCN)
        real_BN = real_BCN.reshape(n_items, -1)
        levels = {}
        for name, state_BMD in zip(self.level_names, states, strict=True):
            tokens_BND = (state_BMD[:, 1:] if self.cfg.cls_token else state_BMD).reshape(n_items, -1, self.cfg.width)
            levels[name] = tokens_BND if whole else tokens_BND.masked_fill(~real_BN[..., None], 0.0)
        tokens_BND = levels[self.level_names[-1]]
        return Encoded(tokens_BND, pool(tokens_BND, "mean", None if whole else real_BN), levels)

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, C N) bool."""
        valid_BN = self._valid_places(valid_BT).repeat(1, self.cfg.n_channels)
        return {name: valid_BN for name in self.level_names}

    def _window(self, x_BCT: Tensor, valid_BT: Tensor | None, channel_present_BC: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        return real_only(x_BCT, valid_BT, channel_present_BC), valid_BT, channel_present_BC

    def _valid_places(self, valid_BT: Tensor) -> Tensor:
        whole = self.cfg.n_columns * self.cfg.patch_samples
        return patch_valid(valid_BT[:, :whole], self.cfg.patch_samples).repeat_interleave(self.cfg.n_rows, dim=1)

    def _real(self, x_BCT: Tensor, valid_BT: Tensor | None, channel_present_BC: Tensor | None) -> Tensor:
        """Places on real samples of present channels, (B, C, N)."""
        real_BCN = torch.ones(*x_BCT.shape[:2], self.cfg.n_places, dtype=torch.bool, device=x_BCT.device)
        if valid_BT is not None:
            real_BCN = real_BCN & self._valid_places(valid_BT)[:, None]
        return real_BCN if channel_present_BC is None else real_BCN & channel_present_BC.bool()[..., None]

    def _reconstruct(
        self, x_BCT: Tensor, mask_BCN: Tensor, valid_BT: Tensor | None, channel_present_BC: Tensor | None, n_visible: int | None
    ) -> Reconstruction:
        spec_BCNV, time_BCWV = views(x_BCT, self.cfg, valid_BT)
        real_BCN = self._real(x_BCT, valid_BT, channel_present_BC)
        shared = mask_BCN.shape[1] == 1 and n_visible is not None and valid_BT is None and channel_present_BC is None
        mask_BCN = mask_BCN.bool().expand(real_BCN.shape)
        shown_BCN = ~mask_BCN & real_BCN
        places_BK = visible(~shown_BCN.any(1), n_visible).index_BK
        shown_BCK = None if shared else take(shown_BCN.transpose(1, 2), places_BK).transpose(1, 2)
        states, at = self._encoder(spec_BCNV, time_BCWV, places_BK, shown_BCK)
        tokens_BMD = states[-1][:, 1:] if self.cfg.cls_token else states[-1]
        tokens_BCKD = tokens_BMD.unflatten(1, (at.n_channels, -1))
        whole = valid_BT is None and channel_present_BC is None
        spec_pred_BCNV, time_pred_BCT = self.decoder(tokens_BCKD, places_BK, shown_BCN, None if whole else real_BCN)
        time_target_BCT = time_BCWV.flatten(2).clamp(-LARGEST_SAMPLE, LARGEST_SAMPLE) if self.cfg.time_head else None
        return Reconstruction(spec_pred_BCNV, spec_BCNV, time_pred_BCT, time_target_BCT, mask_BCN, real_BCN, _mean_shown(tokens_BCKD, shown_BCK))

    def _encoder(self, spec_BCNV: Tensor, time_BCWV: Tensor, places_BK: Tensor, shown_BCK: Tensor | None) -> tuple[list[Tensor], Layout]:
        """States (B, M, D) after every block, the last one normed, and where their tokens stand."""
        cfg = self.cfg
        x_BCKD = self._embed(spec_BCNV, time_BCWV, places_BK)
        at = layout(
            places_BK,
            n_rows=cfg.n_rows,
            n_places=cfg.n_places,
            n_channels=x_BCKD.shape[1],
            cls=cfg.cls_token,
            shown_BCK=shown_BCK,
            head_width=cfg.width // cfg.n_heads if cfg.rope else None,
            neighbours=cfg.attention == "factorised" and cfg.n_channels > 1,
        )
        state_BMD = x_BCKD.flatten(1, 2)
        if self.cls is not None:
            state_BMD = torch.cat([self.cls.to(state_BMD.dtype).expand(state_BMD.shape[0], 1, -1), state_BMD], dim=1)
        states = [state_BMD]
        for number, block in enumerate(self.blocks):
            states.append(block(states[-1] if self.mixes is None else self.mixes[number](states), at))
        return [*states[1:-1], self.norm(states[-1])], at

    def _embed(self, spec_BCNV: Tensor, time_BCWV: Tensor, places_BK: Tensor) -> Tensor:
        """Tokens of the kept places, (B, C, K, D): only these are embedded."""
        kept = take(spec_BCNV.transpose(1, 2), places_BK).transpose(1, 2)
        x_BCKD = self.patch_norm(self.patch_embed(kept))
        if self.cfg.raw_patches:
            raw_BWCD = self.raw_norm(self.raw_embed(time_BCWV)).transpose(1, 2)
            x_BCKD = x_BCKD + self.raw_gain * take(raw_BWCD, places_BK // self.cfg.n_rows).transpose(1, 2)
        return x_BCKD + self.position[places_BK][:, None]


class Decoder(nn.Module):
    """From visible tokens to both views of all places: a mask token in hidden ones, attention over all channels together.

    The original leaves channels without an embedding, so that hidden tokens of two channels at one place could only come out equal.
    """

    def __init__(self, cfg: CwtMaeShape) -> None:
        super().__init__()
        self.cfg = cfg
        width = cfg.decoder_width
        self.embed = nn.Linear(cfg.width, width)
        self.token = nn.Parameter(_normal(width))
        self.position = nn.Parameter(_normal(cfg.n_places, width))
        apart = cfg.attention == "separate" or cfg.n_channels == 1
        self.channel = None if apart else nn.Parameter(_normal(cfg.n_channels, width))
        self.blocks = nn.ModuleList(Block(width, cfg.decoder_heads, bias=False) for _ in range(cfg.decoder_depth))
        self.norm = nn.LayerNorm(width)
        self.spec_head = nn.Linear(width, cfg.patch_values)
        if cfg.time_head:
            self.time_reduce = nn.Linear(cfg.n_rows * width, width)
            self.time_norm = nn.LayerNorm(width)
            self.time_head = nn.Linear(width, cfg.patch_samples)

    def forward(self, tokens_BCKD: Tensor, places_BK: Tensor, shown_BCN: Tensor, real_BCN: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scalogram patches (B, C, N, V) and waveform (B, C, W * patch) or None. Places that are not real are looked at by none."""
        cfg = self.cfg
        y_BCND = self.home(self.embed(tokens_BCKD), places_BK, shown_BCN) + self.position
        if self.channel is not None:
            y_BCND = y_BCND + self.channel[:, None]
        n_items, n_channels = y_BCND.shape[:2]
        turn = None
        if cfg.rope:
            columns = torch.arange(cfg.n_columns, device=y_BCND.device).repeat_interleave(cfg.n_rows).repeat(n_channels)
            table = rotary_table(columns, cfg.decoder_width // cfg.decoder_heads)

            def turn(x: Tensor) -> Tensor:
                return rotate(x, table)

        y_BMD = y_BCND.flatten(1, 2)
        for block in self.blocks:
            y_BMD = block(y_BMD, valid_BN=None if real_BCN is None else real_BCN.flatten(1), rotate=turn)
        y_BMD = self.norm(y_BMD)
        spec_BCNV = self.spec_head(y_BMD).unflatten(1, (n_channels, -1))
        if not cfg.time_head:
            return spec_BCNV, None
        column = self.time_norm(F.gelu(self.time_reduce(y_BMD.reshape(n_items, n_channels, cfg.n_columns, -1))))
        return spec_BCNV, self.time_head(column).flatten(2)

    def home(self, kept_BCKD: Tensor, places_BK: Tensor, shown_BCN: Tensor) -> Tensor:
        """Every shown token in its own place of its own channel, the mask token in all others: (B, C, N, D)."""
        n_channels = kept_BCKD.shape[1]
        index = places_BK.repeat_interleave(n_channels, dim=0)
        home = send_home(kept_BCKD.flatten(0, 1), index, ~shown_BCN.flatten(0, 1), self.token)
        return home.unflatten(0, (-1, n_channels))


def _block(cfg: CwtMaeShape, number: int) -> nn.Module:
    if cfg.mamba_every and number % cfg.mamba_every == 0:
        return ScanBlock(cfg.width, cfg.mamba_state)
    inner = mlp(cfg.width, 4 * cfg.width, cfg.rank_ratio)
    if cfg.attention == "factorised":
        return FactorisedBlock(cfg.width, cfg.n_heads, inner, n_channels=cfg.n_channels)
    return JointBlock(cfg.width, cfg.n_heads, inner)


def _apart(x_BCT: Tensor, mask_BCN: Tensor | None, valid_BT: Tensor | None, present_BC: Tensor | None) -> tuple[Tensor, Any, Tensor | None, Tensor | None]:
    """Every channel as an item of its own: (B, C, ...) -> (B C, 1, ...)."""
    n_channels = x_BCT.shape[1]
    mask = None if mask_BCN is None else mask_BCN.expand(-1, n_channels, -1).reshape(-1, 1, mask_BCN.shape[-1])
    valid = None if valid_BT is None else valid_BT.repeat_interleave(n_channels, dim=0)
    return x_BCT.reshape(-1, 1, x_BCT.shape[-1]), mask, valid, None if present_BC is None else present_BC.reshape(-1, 1)


def _mean_shown(tokens_BCKD: Tensor, shown_BCK: Tensor | None) -> Tensor:
    if shown_BCK is None:
        return tokens_BCKD.mean(2)
    return tokens_BCKD.masked_fill(~shown_BCK[..., None], 0.0).sum(2) / shown_BCK.sum(2, keepdim=True).clamp(min=1)


def _normal(*shape: int) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(*shape), std=0.02)


def _init(module: nn.Module) -> None:
    """Matrices from a truncated normal of 0.02, low-rank ones by Xavier's rule, biases 0; patch embeddings and convolutions as torch has them."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, LowRankLinear):
        nn.init.xavier_uniform_(module.down.weight)
        nn.init.xavier_uniform_(module.up.weight)
