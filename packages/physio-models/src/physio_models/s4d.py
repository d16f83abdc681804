"""S4D: state-space layers with a diagonal state matrix, computed as one long convolution by FFT; an encoder that reads both ways.

Source: Gu et al., "On the parameterization and initialization of diagonal state space models", arXiv 2206.11893 (S4D-Lin, zero-order
hold); as an ECG encoder after Mehari and Strodthoff, arXiv 2211.07579. Shape letters: B items, N tokens, D features, S complex states.

    h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A u_t        y_t = 2 Re(C h_t) + D u_t
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.two_ways import TwoWays


@dataclass(frozen=True, kw_only=True)
class S4dConfig:
    """Shape of an S4D encoder. The defaults are of the published size: four layers of 512 features and 8 states at 100 Hz."""

    n_channels: int = 12  # signal channels C
    n_samples: int = 1000  # window length trained on, samples; the network itself takes any length
    patch: int = 1  # samples of a token
    width: int = 512  # D of one way
    depth: int = 4
    d_state: int = 8  # real states of each feature; half as many complex ones
    bidirectional: bool = True
    dropout: float = 0.0  # after each layer while training
    dt_min: float = 1e-3  # the steps that layers start with, in tokens, spread between these two
    dt_max: float = 1e-1

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in ("n_channels", "n_samples", "patch", "width", "depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.d_state < 2 or self.d_state % 2:
            raise ValueError(f"d_state must be even, for states come in conjugate pairs, got {self.d_state}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"dt_min and dt_max must be positive and ascending, got {self.dt_min} and {self.dt_max}")

    def build(self) -> TwoWays:
        """The network, drawn from torch's global generator."""
        return TwoWays(self, S4dStack(self), S4dStack(self) if self.bidirectional else None)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], *, n_channels: int = 12, n_samples: int = 1000) -> S4dConfig:
        """tiny: seconds, for tests; fast: two layers of 64 features over patches of 4 samples; reference: the published size."""
        if size == "tiny":
            return cls(n_channels=min(n_channels, 2), n_samples=min(n_samples, 80), patch=4, width=16, depth=2)
        if size == "fast":
            return cls(n_channels=n_channels, n_samples=n_samples, patch=4, width=64, depth=2)
        if size == "reference":
            return cls(n_channels=n_channels, n_samples=n_samples)
        raise ValueError(f"size must be one of tiny, fast, reference, got {size!r}")


class S4dLayer(nn.Module):
    """One diagonal state-space layer for each feature, (B, N, D) -> (B, N, D), causal."""

    def __init__(self, width: int, d_state: int, dt_min: float, dt_max: float) -> None:
        super().__init__()
        n = d_state // 2
        self.log_dt = nn.Parameter(torch.rand(width) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min))
        self.log_decay = nn.Parameter(torch.full((width, n), math.log(0.5)))  # log of minus the real part of A
        self.frequency = nn.Parameter(math.pi * torch.arange(n, dtype=torch.float32).repeat(width, 1))  # imaginary part of A
        self.out = nn.Parameter(torch.randn(width, n, 2) / math.sqrt(2))  # real and imaginary part of C
        self.skip = nn.Parameter(torch.randn(width))

    def forward(self, u_BND: Tensor) -> Tensor:
        """The convolution with `kernel`, in float32 (float64 where the layer is) whatever autocast says."""
        with torch.autocast(u_BND.device.type, enabled=False):
            u_BDN = u_BND.to(self.skip.dtype).transpose(1, 2)
            length = u_BDN.shape[-1]
            n_fft = 2 * length  # room for the whole tail, so that nothing wraps around into the past
            spectrum = torch.fft.rfft(u_BDN, n_fft) * torch.fft.rfft(self.kernel(length), n_fft)
            y_BDN = torch.fft.irfft(spectrum, n_fft)[..., :length] + self.skip[:, None] * u_BDN
        return y_BDN.transpose(1, 2).to(u_BND.dtype)

    def kernel(self, length: int) -> Tensor:
        """(D, N): the answer to a unit impulse, without the skip: 2 Re(C (exp(dt A) - 1) / A exp(dt A)^t)."""
        dt_D1 = self.log_dt.exp()[:, None]
        A_DS = torch.complex(-self.log_decay.exp(), self.frequency)
        weight_DS = torch.view_as_complex(self.out) * ((dt_D1 * A_DS).exp() - 1) / A_DS
        t_N = torch.arange(length, device=dt_D1.device, dtype=dt_D1.dtype)
        decay_DSN = (-(dt_D1 * self.log_decay.exp())[..., None] * t_N).exp()
        angle_DSN = (dt_D1 * self.frequency)[..., None] * t_N
        return 2 * (decay_DSN * (weight_DS.real[..., None] * angle_DSN.cos() - weight_DS.imag[..., None] * angle_DSN.sin())).sum(1)


class S4dBlock(nn.Module):
    """x + gated linear(GELU(S4D(norm(x))))."""

    def __init__(self, cfg: S4dConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(cfg.width)
        self.layer = S4dLayer(cfg.width, cfg.d_state, cfg.dt_min, cfg.dt_max)
        self.mix = nn.Linear(cfg.width, 2 * cfg.width)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        return x_BND + self.dropout(F.glu(self.mix(F.gelu(self.layer(self.norm(x_BND)))), -1))


class S4dStack(nn.Module):
    """Blocks one after another; the outputs of all."""

    def __init__(self, cfg: S4dConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(S4dBlock(cfg) for _ in range(cfg.depth))

    def forward(self, x_BND: Tensor) -> list[Tensor]:
        outputs = []
        for block in self.blocks:
            x_BND = block(x_BND)
            outputs.append(x_BND)
        return outputs
