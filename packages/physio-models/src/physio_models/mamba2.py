"""Mamba-2 in PyTorch alone: a causal sequence layer whose cost is linear in length and whose state can be carried from piece to piece.

Source: Dao and Gu, "Transformers are SSMs", ICML 2024, arXiv 2405.21060, figure 6. Names and shapes of the parameters are those of
``mamba_ssm.Mamba2``, so its weights load. Shape letters: B items, L positions, D features of the model, H heads, P features of a
head, G groups, N state size, K width of the convolution, E channels of the convolution.

    u (B, L, D) -> in_proj -> z | x B C | dt;  x B C -> causal depthwise convolution -> SiLU
    y = ssd(x, softplus(dt + dt_bias), -exp(A_log), B, C) + D x -> RMSNorm(y SiLU(z)) -> out_proj -> (B, L, D)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.ssd import ssd, ssd_step


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """Shape of one Mamba-2 layer, under mamba_ssm's names. ``expand * d_model`` (or ``d_ssm``) must be a whole number of heads."""

    d_model: int
    d_state: int = 128  # N
    d_conv: int = 4  # K, positions
    expand: int = 2  # d_inner = expand * d_model
    headdim: int = 64  # P
    ngroups: int = 1  # G: heads of a group share B and C
    d_ssm: int | None = None  # features that pass the recurrence; None: all d_inner. The rest is a gated linear unit beside it
    D_has_hdim: bool = False  # one D per feature instead of one per head
    rmsnorm: bool = True
    norm_before_gate: bool = False
    A_init_range: tuple[float, float] = (1.0, 16.0)
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    dt_init_floor: float = 1e-4
    dt_limit: tuple[float, float] = (0.0, math.inf)  # clamp of the step after softplus
    bias: bool = False
    conv_bias: bool = True
    chunk_size: int = 32  # positions; rounding and speed alone

    def __post_init__(self) -> None:
        for name in ("A_init_range", "dt_limit"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("d_model", "d_state", "d_conv", "expand", "headdim", "ngroups", "chunk_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.d_inner_ssm <= self.d_inner:
            raise ValueError(f"d_ssm must lie in 1..{self.d_inner} (expand * d_model), got {self.d_ssm}")
        if self.d_inner_ssm % self.headdim:
            raise ValueError(f"headdim must divide the {self.d_inner_ssm} features of the recurrence, got {self.headdim}")
        if self.n_heads % self.ngroups:
            raise ValueError(f"ngroups must divide the {self.n_heads} heads, got {self.ngroups}")
        if not 0 < self.A_init_range[0] <= self.A_init_range[1]:
            raise ValueError(f"A_init_range must be positive and ascending, got {self.A_init_range}")
        if not 0 < self.dt_init_floor or not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"dt_min, dt_max and dt_init_floor must be positive, dt_min <= dt_max, got {self.dt_min}, {self.dt_max}, {self.dt_init_floor}")
        if not 0 <= self.dt_limit[0] < self.dt_limit[1]:
            raise ValueError(f"dt_limit must be (low, high) with 0 <= low < high, got {self.dt_limit}")

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def d_inner_ssm(self) -> int:
        return self.d_inner if self.d_ssm is None else self.d_ssm

    @property
    def n_heads(self) -> int:
        return self.d_inner_ssm // self.headdim

    @property
    def n_conv_channels(self) -> int:
        return self.d_inner_ssm + 2 * self.ngroups * self.d_state

    def build(self) -> Mamba2:
        """The layer as initialised from torch's global generator."""
        return Mamba2(self)


class MambaState(NamedTuple):
    """What a layer remembers of everything before: the last K inputs of its convolution (B, E, K) and the recurrence (B, H, P, N)."""

    conv_BEK: Tensor
    ssm_BHPN: Tensor


class Mamba2(nn.Module):
    """(B, L, D) -> (B, L, D), causal: position t depends on positions up to t alone."""

    def __init__(self, cfg: Mamba2Config) -> None:
        super().__init__()
        self.cfg = cfg
        n_ssm, n_heads = cfg.d_inner_ssm, cfg.n_heads
        self.in_proj = nn.Linear(cfg.d_model, 2 * cfg.d_inner + 2 * cfg.ngroups * cfg.d_state + n_heads, bias=cfg.bias)
        self.conv1d = nn.Conv1d(cfg.n_conv_channels, cfg.n_conv_channels, cfg.d_conv, groups=cfg.n_conv_channels, bias=cfg.conv_bias)
        self.dt_bias = nn.Parameter(_inverse_softplus(_log_uniform(n_heads, cfg.dt_min, cfg.dt_max).clamp(min=cfg.dt_init_floor)))
        self.A_log = nn.Parameter(torch.empty(n_heads).uniform_(*cfg.A_init_range).log())
        self.D = nn.Parameter(torch.ones(n_ssm if cfg.D_has_hdim else n_heads))
        if cfg.rmsnorm:
            self.norm = RmsNormGated(n_ssm, n_groups=cfg.ngroups, norm_before_gate=cfg.norm_before_gate)
        self.out_proj = nn.Linear(cfg.d_inner, cfg.d_model, bias=cfg.bias)

    def forward(self, u_BLD: Tensor, *, valid_BL: Tensor | None = None) -> Tensor:
        """The layer from an empty state. Padding, on either side, where ``valid_BL`` is False is as if it were not there for all real positions."""
        return self._run(u_BLD, self.empty_state(u_BLD), valid_BL)[0]

    def scan(self, u_BLD: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """The layer going on from ``state`` (None: from the start), and the state after the last position."""
        return self._run(u_BLD, state or self.empty_state(u_BLD), None)

    def step(self, u_BD: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """One position: the same as `scan` with L = 1, in constant time. ``state`` is not changed."""
        if u_BD.ndim != 2 or u_BD.shape[1] != self.cfg.d_model:
            raise ValueError(f"u_BD must be (batch, {self.cfg.d_model}), got {tuple(u_BD.shape)}; scan takes (batch, positions, features)")
        gate, z_BS, xBC_BE, dt_BH = self._project(u_BD)
        conv_BEK = torch.cat([state.conv_BEK[..., 1:], xBC_BE.to(state.conv_BEK.dtype)[..., None]], -1)
        mixed_BE = (conv_BEK * self.conv1d.weight[:, 0]).sum(-1)
        xBC_BE = F.silu(mixed_BE if self.conv1d.bias is None else mixed_BE + self.conv1d.bias)
        x_BHP, B_BGN, C_BGN = self._split(xBC_BE)
        y_BHP, ssm_BHPN = ssd_step(x_BHP, self._dt(dt_BH), self._A(), B_BGN, C_BGN, state.ssm_BHPN)
        return self._out(y_BHP, x_BHP, z_BS, gate), MambaState(conv_BEK, ssm_BHPN)

    def empty_state(self, like: Tensor) -> MambaState:
        """The state before the first position, for as many items as ``like`` (B, ...) has, on its device."""
        cfg, n_items = self.cfg, like.shape[0]
        dtype = torch.float64 if self.A_log.dtype == torch.float64 else torch.float32
        return MambaState(
            torch.zeros(n_items, cfg.n_conv_channels, cfg.d_conv, dtype=dtype, device=like.device),
            torch.zeros(n_items, cfg.n_heads, cfg.headdim, cfg.d_state, dtype=dtype, device=like.device),
        )

    def _run(self, u_BLD: Tensor, state: MambaState, valid_BL: Tensor | None) -> tuple[Tensor, MambaState]:
        if u_BLD.ndim != 3 or u_BLD.shape[2] != self.cfg.d_model:
            raise ValueError(f"u_BLD must be (batch, positions, {self.cfg.d_model}), got {tuple(u_BLD.shape)}")
        gate, z_BLS, xBC_BLE, dt_BLH = self._project(u_BLD)
        dt_BLH = self._dt(dt_BLH)
        if valid_BL is not None:
            if valid_BL.shape != u_BLD.shape[:2]:
                raise ValueError(f"valid_BL must be {tuple(u_BLD.shape[:2])}, got {tuple(valid_BL.shape)}")
            xBC_BLE, dt_BLH = xBC_BLE.masked_fill(~valid_BL[..., None], 0.0), dt_BLH.masked_fill(~valid_BL[..., None], 0.0)
        xBC_BEL = torch.cat([state.conv_BEK.to(xBC_BLE.dtype), xBC_BLE.transpose(1, 2)], -1)
        conv_BEK = xBC_BEL[..., -self.cfg.d_conv :].to(state.conv_BEK.dtype)
        x_BLHP, B_BLGN, C_BLGN = self._split(F.silu(self.conv1d(xBC_BEL[..., 1:])).transpose(1, 2))
        y_BLHP, ssm_BHPN = ssd(x_BLHP, dt_BLH, self._A(), B_BLGN, C_BLGN, chunk=self.cfg.chunk_size, initial_BHPN=state.ssm_BHPN)
        return self._out(y_BLHP, x_BLHP, z_BLS, gate), MambaState(conv_BEK, ssm_BHPN)

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """in_proj's blocks in mamba_ssm's order: z0 and x0 (the gated unit, here already joined; empty where d_ssm is d_inner), z, x B C, dt."""
        cfg = self.cfg
        n_beside = cfg.d_inner - cfg.d_inner_ssm
        z0, x0, z, xBC, dt = self.in_proj(u).split([n_beside, n_beside, cfg.d_inner_ssm, cfg.n_conv_channels, cfg.n_heads], -1)
        return F.silu(z0) * x0, z, xBC, dt

    def _split(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cfg, n_bc = self.cfg, self.cfg.ngroups * self.cfg.d_state
        x, B, C = xBC.split([cfg.d_inner_ssm, n_bc, n_bc], -1)
        return x.unflatten(-1, (cfg.n_heads, cfg.headdim)), B.unflatten(-1, (cfg.ngroups, cfg.d_state)), C.unflatten(-1, (cfg.ngroups, cfg.d_state))

    def _dt(self, dt: Tensor) -> Tensor:
        dtype = torch.promote_types(dt.dtype, torch.float32)
        dt = F.softplus(dt.to(dtype) + self.dt_bias.to(dtype))
        return dt if self.cfg.dt_limit == (0.0, math.inf) else dt.clamp(*self.cfg.dt_limit)

    def _A(self) -> Tensor:
        return -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp()

    def _out(self, y: Tensor, x: Tensor, z: Tensor, gate: Tensor) -> Tensor:
        """Skip, gate, norm and projection; y and x are (..., H, P), z (..., S)."""
        D = self.D.unflatten(0, (self.cfg.n_heads, self.cfg.headdim)) if self.cfg.D_has_hdim else self.D[:, None]
        y = (y + D.to(y.dtype) * x).flatten(-2)
        y = self.norm(y, z) if self.cfg.rmsnorm else y * F.silu(z)
        return self.out_proj(torch.cat([gate, y], -1) if gate.shape[-1] else y)


class RmsNormGated(nn.Module):
    """y SiLU(z) divided by its root mean square (eps 1e-5) in each group of features, times a weight; or the norm first, then the gate."""

    def __init__(self, n_features: int, *, n_groups: int = 1, norm_before_gate: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_features))
        self.n_groups, self.norm_before_gate = n_groups, norm_before_gate

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        dtype = torch.promote_types(y.dtype, torch.float32)
        wide, gate = y.to(dtype), F.silu(z.to(dtype))
        if not self.norm_before_gate:
            wide = wide * gate
        wide = F.rms_norm(wide.unflatten(-1, (self.n_groups, -1)), (wide.shape[-1] // self.n_groups,), eps=1e-5).flatten(-2) * self.weight
        return (wide * gate if self.norm_before_gate else wide).to(y.dtype)


class MambaBlock(nn.Module):
    """Pre-norm residual block, x + Mamba2(RMSNorm(x)), with mamba_ssm's names; ``bidirectional`` adds a second layer run from the end."""

    def __init__(self, cfg: Mamba2Config, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(cfg.d_model, eps=1e-5)
        self.mixer = Mamba2(cfg)
        self.mixer_back = Mamba2(cfg) if bidirectional else None

    def forward(self, x_BLD: Tensor, *, valid_BL: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); padding (``valid_BL`` False, on either side) changes no real position."""
        u_BLD = self.norm(x_BLD)
        y_BLD = self.mixer(u_BLD, valid_BL=valid_BL)
        if self.mixer_back is not None:
            y_BLD = y_BLD + self.mixer_back(u_BLD.flip(1), valid_BL=None if valid_BL is None else valid_BL.flip(1)).flip(1)
        return x_BLD + y_BLD


class MambaStack(nn.Module):
    """Blocks and a closing RMSNorm, named as mamba_ssm's backbone: ``layers.N.{norm,mixer}``, ``norm_f``."""

    def __init__(self, cfg: Mamba2Config, n_layers: int, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MambaBlock(cfg, bidirectional=bidirectional) for _ in range(n_layers))
        self.norm_f = nn.RMSNorm(cfg.d_model, eps=1e-5)

    def forward(self, x_BLD: Tensor, *, valid_BL: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x_BLD = layer(x_BLD, valid_BL=valid_BL)
        return self.norm_f(x_BLD)


def _log_uniform(n: int, low: float, high: float) -> Tensor:
    return (torch.rand(n) * (math.log(high) - math.log(low)) + math.log(low)).exp()


def _inverse_softplus(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))
