"""The sparse autoencoder: one network behind one config, its codes, its input normalisation, its file.

N windows, d embedding width, K concepts, P archetypal points. z is the embedding as given, x = (z - mean) / scale the input as
the network sees it (E||x||^2 = 1 under "scalar"), so that every weight of a loss is free of the encoder's scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["relu", "topk", "batch_topk", "jumprelu", "gated", "matryoshka", "archetypal"]
Norm = Literal["scalar", "per_dim", "none"]
FORMAT = "physio-sae/1"
ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class SaeConfig:
    """What a sparse autoencoder is made of.

    kind                            code of a window                                                     source
    relu                            ReLU(pre), an L1 penalty makes it sparse                             Bricken et al. 2023
    topk                            the k largest of ReLU(pre) in each window                            Gao et al. 2024
    batch_topk                      the N k largest of a batch; at inference those above a threshold     Bussmann et al. 2024
    jumprelu                        pre where it exceeds a learnt threshold                              Rajamanoharan et al. 2024b
    gated                           a gate decides which, a rescaled twin decides how much               Rajamanoharan et al. 2024a
    matryoshka                      batch_topk whose first `prefixes` atoms reconstruct by themselves    Bussmann et al. 2025
    archetypal                      topk whose atoms are mixtures of data points, within `relaxation`    Fel et al. 2025
    """

    width: int
    """d, the width of the embeddings."""
    n_concepts: int = 4096
    """K, the atoms of the dictionary."""
    kind: Kind = "relu"
    k: int = 32
    """Concepts per window: exact for topk and archetypal, a mean for batch_topk and matryoshka, the scale of jumprelu's penalty; unused by relu and gated."""
    prefixes: tuple[int, ...] = ()
    """matryoshka: sizes of the nested dictionaries, the last one n_concepts; () takes K/8, K/4, K/2, K."""
    n_points: int = 512
    """archetypal: data points whose mixtures the atoms are."""
    relaxation: float = 0.1
    """archetypal: how far, in units of x, an atom may lie from the hull of the points."""
    bandwidth: float = 0.02
    """jumprelu: width, in units of x, of the kernel that passes gradients to the thresholds."""
    norm: Norm = "scalar"
    """x = (z - mean) / s with one s for all dimensions, or one per dimension, or no change."""
    unit_norm: bool = True
    """Atoms have length 1 after every step."""

    def __post_init__(self) -> None:
        for name in ("width", "n_concepts", "k", "n_points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {self.norm!r}")
        if self.selects and self.k > self.n_concepts:
            raise ValueError(f"k must not exceed n_concepts ({self.n_concepts}), got {self.k}: lower k or widen the dictionary")
        if self.bandwidth <= 0 or self.relaxation < 0:
            raise ValueError(f"bandwidth must be positive and relaxation not negative, got {self.bandwidth} and {self.relaxation}")
        object.__setattr__(self, "prefixes", tuple(int(p) for p in self.prefixes))
        if self.prefixes and (self.prefixes[-1] != self.n_concepts or list(self.prefixes) != sorted(set(self.prefixes)) or self.prefixes[0] < 1):
            raise ValueError(f"prefixes must rise and end at n_concepts ({self.n_concepts}), got {self.prefixes}")

    @property
    def selects(self) -> bool:
        """Whether k, not a penalty, sets the sparsity."""
        return self.kind in ("topk", "batch_topk", "matryoshka", "archetypal")

    @property
    def nested(self) -> tuple[int, ...]:
        """Dictionary sizes whose reconstructions are trained: all of them for matryoshka, else K alone."""
        if self.kind != "matryoshka":
            return (self.n_concepts,)
        return self.prefixes or tuple(sorted({max(1, self.n_concepts // part) for part in (8, 4, 2, 1)}))

    def build(self, seed: int = 0) -> Sae:
        """A freshly initialised network; the same seed gives the same weights."""
        return Sae(self, seed)


class Sae(nn.Module):
    """A sparse autoencoder: `encode` embeddings into codes, `decode` codes into embeddings, both in the embedding's own units.

    W_enc (K, d), b_enc (K,), W_dec (K, d) one atom a row, b_dec (d,): pre = W_enc (x - b_dec) + b_enc, x_hat = f W_dec + b_dec.
    The encoder starts as a copy of the random unit atoms and is then free.
    """

    def __init__(self, config: SaeConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        d, n = config.width, config.n_concepts
        draw = torch.Generator().manual_seed(seed)
        atoms_KD = F.normalize(torch.randn(n, d, generator=draw), dim=1)
        self.W_enc, self.b_enc = nn.Parameter(atoms_KD.clone()), nn.Parameter(torch.zeros(n))
        self.b_dec = nn.Parameter(torch.zeros(d))
        if config.kind == "archetypal":
            main_K = torch.randint(config.n_points, (n,), generator=draw)
            self.mixture = nn.Parameter(0.1 * torch.randn(n, config.n_points, generator=draw))
            with torch.no_grad():
                self.mixture[torch.arange(n), main_K] += math.log(20.0 * config.n_points)  # nineteen twentieths of an atom is one point
            self.offset = nn.Parameter(torch.zeros(n, d))
            self.register_buffer("points", F.normalize(torch.randn(config.n_points, d, generator=draw), dim=1))
            self.W_enc.data = self.dictionary_KD.detach().clone()
        else:
            self.W_dec = nn.Parameter(atoms_KD)
        if config.kind == "jumprelu":
            self.log_threshold = nn.Parameter(torch.full((n,), math.log(0.5 / math.sqrt(config.k))))
        if config.kind == "gated":
            self.r_mag, self.b_mag = nn.Parameter(torch.zeros(n)), nn.Parameter(torch.zeros(n))
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("scale", torch.ones(d))
        self.register_buffer("running_threshold", torch.zeros(()))

    @property
    def device(self) -> torch.device:
        return self.b_dec.device

    @property
    def dictionary_KD(self) -> Tensor:
        """The atoms (K, d) in units of x, as the decoder uses them; rows of length 1 where `unit_norm` holds."""
        if self.config.kind != "archetypal":
            return self.W_dec
        reach_K1 = self.offset.norm(dim=1, keepdim=True).clamp_min(1e-12)
        offset_KD = self.offset * (self.config.relaxation / reach_K1).clamp_max(1.0)
        return F.normalize(torch.softmax(self.mixture, dim=1) @ self.points + offset_KD, dim=1)

    @property
    def threshold(self) -> Tensor:
        """(K,) what a pre-activation must exceed to be a code at inference, in units of x (0 but for jumprelu, batch_topk and matryoshka)."""
        if self.config.kind == "jumprelu":
            return self.log_threshold.exp()
        return self.running_threshold.expand(self.config.n_concepts)

    def set_normalisation(self, mean_D: Tensor, scale_D: Tensor) -> None:
        """Store what `normalise` subtracts and divides by. ValueError where a scale is not positive and finite."""
        if not (torch.isfinite(mean_D).all() and torch.isfinite(scale_D).all() and bool((scale_D > 0).all())):
            raise ValueError("scale must be positive and finite, and mean finite: the embeddings are constant or not finite")
        self.mean.copy_(mean_D)
        self.scale.copy_(scale_D)

    def set_points(self, x_PD: Tensor) -> None:
        """The data points (P, d), in units of x, that archetypal atoms mix; the encoder starts at the atoms that result."""
        if self.config.kind != "archetypal" or x_PD.shape != self.points.shape:
            raise ValueError(f"an archetypal dictionary takes {self.config.n_points} points of width {self.config.width}, got {tuple(x_PD.shape)}")
        self.points.copy_(x_PD)
        self.W_enc.data.copy_(self.dictionary_KD.detach())

    def normalise(self, z_ND: Tensor) -> Tensor:
        """x (N, d) of embeddings z."""
        return (z_ND - self.mean) / self.scale

    def denormalise(self, x_ND: Tensor) -> Tensor:
        """z (N, d) of inputs x."""
        return x_ND * self.scale + self.mean

    def pre_activations(self, x_ND: Tensor) -> Tensor:
        """W_enc (x - b_dec) + b_enc, (N, K)."""
        return F.linear(x_ND - self.b_dec, self.W_enc, self.b_enc)

    def codes_of(self, pre_NK: Tensor) -> Tensor:
        """Codes (N, K) as at inference: windows do not depend on their batch."""
        kind = self.config.kind
        if kind == "relu":
            return torch.relu(pre_NK)
        if kind in ("topk", "archetypal"):
            value_Nk, index_Nk = torch.relu(pre_NK).topk(self.config.k, dim=1)
            return torch.zeros_like(pre_NK).scatter(1, index_Nk, value_Nk)
        if kind == "gated":
            magnitude_NK = torch.relu(self.r_mag.exp() * (pre_NK - self.b_enc) + self.b_mag)
            return magnitude_NK * (pre_NK > 0)
        return torch.relu(pre_NK) * (pre_NK > self.threshold)

    @torch.no_grad()
    def encode(self, z_ND: Tensor | np.ndarray) -> Tensor:
        """Codes (N, K) of embeddings (N, d), non-negative. ValueError where the width is another or a value is not finite."""
        return torch.cat([self.codes_of(self.pre_activations(self.normalise(part))) for part in self._parts(z_ND)])

    @torch.no_grad()
    def encode_sparse(self, z_ND: Tensor | np.ndarray) -> sp.csr_array:
        """The codes as a SciPy CSR array (N, K) float32, a few thousand windows at a time: a memory-mapped cache is never read whole."""
        codes = (self.codes_of(self.pre_activations(self.normalise(part))).cpu().numpy() for part in self._parts(z_ND))
        return sp.vstack([sp.csr_array(code_NK) for code_NK in codes], format="csr", dtype=np.float32)

    @torch.no_grad()
    def encode_topk(self, z_ND: Tensor | np.ndarray, k: int | None = None) -> tuple[Tensor, Tensor]:
        """(values (N, k), indices (N, k) int64) of the k largest codes, values falling; a window with fewer has zeros at the end."""
        found = [self.codes_of(self.pre_activations(self.normalise(part))).topk(k or self.config.k, dim=1) for part in self._parts(z_ND)]
        return torch.cat([values for values, _ in found]), torch.cat([indices for _, indices in found])

    @torch.no_grad()
    def decode(self, codes_NK: Tensor | np.ndarray | sp.sparray) -> Tensor:
        """Embeddings (N, d) of codes (N, K): a tensor, an array or a SciPy sparse array."""
        if sp.issparse(codes_NK):
            code = sp.csr_array(codes_NK)
            indices, offsets = (torch.as_tensor(part.astype(np.int64), device=self.device) for part in (code.indices, code.indptr))
            values = torch.as_tensor(code.data.astype(np.float32), device=self.device)
            x_ND = F.embedding_bag(indices, self.dictionary_KD, offsets, mode="sum", per_sample_weights=values, include_last_offset=True)
        else:
            x_ND = torch.as_tensor(codes_NK, dtype=torch.float32, device=self.device) @ self.dictionary_KD
        return self.denormalise(x_ND + self.b_dec)

    def forward(self, z_ND: Tensor) -> Tensor:
        """Reconstructed embeddings, through the codes of inference."""
        x_ND = self.codes_of(self.pre_activations(self.normalise(z_ND))) @ self.dictionary_KD + self.b_dec
        return self.denormalise(x_ND)

    def _parts(self, z_ND: Tensor | np.ndarray):
        if z_ND.ndim != 2 or z_ND.shape[1] != self.config.width:
            raise ValueError(f"z_ND must be (N, {self.config.width}), got {tuple(z_ND.shape)}: this autoencoder was made for another embedding")
        for start in range(0, max(1, len(z_ND)), ROWS_AT_ONCE):
            rows = z_ND[start : start + ROWS_AT_ONCE]
            part = torch.from_numpy(np.array(rows, np.float32)) if isinstance(rows, np.ndarray) else rows
            part = part.to(self.device, torch.float32)
            if not torch.isfinite(part).all():
                row = start + int((~torch.isfinite(part)).any(1).nonzero()[0])
                raise ValueError(f"z_ND has a value that is not finite in row {row}: leave such windows out before encoding")
            yield part


@torch.no_grad()
def folded(sae: Sae) -> Sae:
    """The same function with the normalisation inside the weights (mean 0, scale 1): what other libraries' layouts can hold.

    W_enc / s, b_enc as it was, W_dec s, b_dec s + mean; thresholds stay. Atoms then have the embedding's units, not length 1.
    An archetypal dictionary becomes a plain topk one.
    """
    cfg = sae.config
    plain = SaeConfig(**{**asdict(cfg), "kind": "topk" if cfg.kind == "archetypal" else cfg.kind, "norm": "none", "unit_norm": False})
    out = Sae(plain)
    state = {name: value.clone() for name, value in sae.state_dict().items() if name in out.state_dict()}
    state |= {"W_enc": sae.W_enc / sae.scale, "W_dec": sae.dictionary_KD * sae.scale, "b_dec": sae.b_dec * sae.scale + sae.mean}
    state |= {"mean": torch.zeros_like(sae.mean), "scale": torch.ones_like(sae.scale)}
    out.load_state_dict(state)
    return out.to(sae.device)


def save(sae: Sae, folder: Path | str, *, extra: Mapping[str, Any] | None = None) -> Path:
    """Write `sae.safetensors` (weights, normalisation, threshold) and `config.json` ({format, config, extra}) into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in sae.state_dict().items()}, folder / "sae.safetensors")
    document = {"format": FORMAT, "config": asdict(sae.config), "extra": dict(extra or {})}
    (folder / "config.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return folder


def load(folder: Path | str) -> Sae:
    """Read what `save` wrote. ValueError where the folder holds something else."""
    folder = Path(folder)
    if not (folder / "config.json").exists() or not (folder / "sae.safetensors").exists():
        raise ValueError(f"{folder} holds no autoencoder: config.json or sae.safetensors is missing; give a folder that `save` wrote")
    document = read_config(folder)
    sae = Sae(SaeConfig(**document["config"]))
    sae.load_state_dict(load_file(folder / "sae.safetensors"))
    return sae


def read_config(folder: Path | str) -> dict[str, Any]:
    """`{format, config, extra}` of a saved autoencoder, without its weights."""
    document = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    if document.get("format") != FORMAT:
        raise ValueError(f"{folder}/config.json has format {document.get('format')!r}, not {FORMAT!r}; foreign files are read by physio_sae.interop")
    return document
