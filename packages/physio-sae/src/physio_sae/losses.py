"""What a triplet costs: reconstruction, sparsity, diversity, stability, temporal smoothness, and the revival of dead concepts.

B windows, M of them with a follower, d width, K concepts. f, g, h are the codes of x_t, x_{t+1} and x_aug. The weights and the five
ablations of the method this follows were never published: every one is a field here, and the defaults are a start, not a citation.
Each loss has one definition; codes may be dense (the autograd reference) or sparse (`kernels`), and give the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from physio_sae import kernels
from physio_sae.kernels import Codes
from physio_sae.sae import Sae

Branch = Literal["t", "next", "aug"]
Engine = Literal["sparse", "dense"]
HINGE_ATOMS = 1024


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses, in units where E||x||^2 = 1; 0 leaves a loss out, and then what only it needs is not computed."""

    sp: float = 0.05
    """Sparsity (relu, gated, jumprelu); where a target L0 is set, the controller's start."""
    sp_warmup: float = 0.05
    """Share of the steps over which `sp` rises from 0."""
    div: float = 0.02
    """Diversity of the atoms, times d."""
    stab: float = 0.1
    """Stability under augmentation; needs augmented views."""
    smooth: float = 0.05
    """Temporal smoothness; needs windows that are followed by another."""
    smooth_kind: Literal["l1", "l2", "cosine", "nce"] = "l1"
    """How two neighbours are compared; nce contrasts the first `nce_share` of the concepts with other pairs of the batch."""
    stopgrad: Literal["none", "aug"] = "none"
    """aug: the augmented branch gets no gradient from `stab`."""
    dt_tau_s: float | None = None
    """Pairs count exp(-dt / dt_tau_s), dt the seconds between their starts; none: all alike."""
    nce_share: float = 0.2
    nce_tau: float = 0.2
    hinge: float = 0.0
    """Weight of the penalty on near-duplicates, mean relu(max |cos| - 0.5)^2 over 1024 atoms."""
    aux: float = 1 / 32
    """AuxK (topk, batch_topk, matryoshka, archetypal): dead concepts predict the residual."""
    k_aux: int | None = None
    """Dead concepts a window may use; none: d / 2."""
    rec_on: tuple[Branch, ...] = ("t",)
    """Windows that are reconstructed: t, and next or aug beside it."""

    def __post_init__(self) -> None:
        for name in ("sp", "div", "stab", "smooth", "hinge", "aux"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must be a finite weight of at least 0, got {getattr(self, name)}")
        if not 0 <= self.sp_warmup < 1 or not 0 < self.nce_share <= 1 or self.nce_tau <= 0:
            raise ValueError("sp_warmup must lie in [0, 1), nce_share in (0, 1] and nce_tau above 0")
        if self.dt_tau_s is not None and self.dt_tau_s <= 0:
            raise ValueError(f"dt_tau_s must be positive seconds, or none, got {self.dt_tau_s}")
        object.__setattr__(self, "rec_on", tuple(self.rec_on))
        if "t" not in self.rec_on or set(self.rec_on) - {"t", "next", "aug"}:
            raise ValueError(f"rec_on must hold t, and may hold next and aug, got {self.rec_on}")

    @property
    def needs_next(self) -> bool:
        return self.smooth > 0 or "next" in self.rec_on

    @property
    def needs_aug(self) -> bool:
        return self.stab > 0 or "aug" in self.rec_on


class Triplet(NamedTuple):
    """A batch in units of x: windows, the M followers and whom they follow, one augmented view."""

    x_BD: Tensor
    next_MD: Tensor | None = None
    pair_M: Tensor | None = None  # (M,) int64, the row of x_BD that each follower follows
    dt_M: Tensor | None = None  # seconds from start to start
    aug_BD: Tensor | None = None


class Terms(NamedTuple):
    """`total` to differentiate; `parts` by name, detached; what the step needs beside: concepts that fired, mean L0, residual of x_t."""

    total: Tensor
    parts: dict[str, Tensor]
    fired_K: Tensor
    l0: Tensor
    least: Tensor  # the smallest code that fired, inf where none did
    residual_BD: Tensor


def loss(
    sae: Sae, batch: Triplet, cfg: LossConfig, *, engine: Engine, l_sp: Tensor | float, dead_J: Tensor, dtype: torch.dtype, draw: torch.Generator
) -> Terms:
    """All losses of a batch. `dead_J` are the concepts AuxK may revive, `l_sp` the sparsity weight of this step, `draw` chooses the hinge's atoms."""
    x_ND, span = _branches(batch, cfg)
    n_rec = sum(stop - start for name, (start, stop) in span.items() if name in cfg.rec_on)
    atoms_KD = sae.dictionary_KD
    forward = _sparse if engine == "sparse" else _dense
    out = forward(sae, x_ND, n_rec, atoms_KD, span, dtype)
    target_ND = x_ND[:n_rec]
    errors_P = torch.stack([(target_ND - rec_ND).square().sum(1).mean() for rec_ND in out.recs])
    residual_ND = (target_ND - out.recs[-1]).detach()
    parts = {"rec": errors_P[-1].detach()}
    total = errors_P.mean()
    if not sae.config.selects:
        sparsity = out.penalty(atoms_KD)
        total, parts["sp"] = total + l_sp * sparsity, sparsity.detach()
    total = total + out.own_loss(target_ND)
    for name, weight, value in (
        ("div", cfg.div, lambda: atoms_KD.shape[1] * diversity(atoms_KD)),
        ("hinge", cfg.hinge, lambda: near_duplicates(atoms_KD, draw)),
        ("stab", cfg.stab, lambda: stability(out.pair("aug", None, detach=cfg.stopgrad == "aug"))),
        ("smooth", cfg.smooth, lambda: _smooth(out, batch, cfg)),
        ("aux", cfg.aux if sae.config.selects and len(dead_J) else 0.0, lambda: auxk(sae, target_ND, residual_ND, atoms_KD, dead_J, cfg.k_aux)),
    ):
        if weight > 0:
            term = value()
            total, parts[name] = total + weight * term, term.detach()
    fired_K, l0, least = out.firing()
    return Terms(total, parts, fired_K, l0, least, residual_ND[: span["t"][1]])


def diversity(atoms_KD: Tensor) -> Tensor:
    """Mean squared cosine of two different atoms, sum_{i != j} (d_i . d_j)^2 / (K (K - 1)), from a d x d product: ||D D^T||_F = ||D^T D||_F."""
    return _Diversity.apply(atoms_KD)


def near_duplicates(atoms_KD: Tensor, draw: torch.Generator) -> Tensor:
    """mean_k relu(max_j |d_k . d_j| - 0.5)^2 over a random 1024 atoms."""
    chosen = torch.randperm(len(atoms_KD), generator=draw)[:HINGE_ATOMS].to(atoms_KD.device)
    part = F.normalize(atoms_KD[chosen], dim=1)
    cosine = (part @ part.T).abs() - 2 * torch.eye(len(part), device=part.device)
    return torch.relu(cosine.amax(1) - 0.5).square().mean()


class PairSums(NamedTuple):
    """Sums over the concepts of each pair (M,): |g - f|, f, f^2, g^2, f g, by the sparse step."""

    absolute: Tensor
    f1: Tensor
    f2: Tensor
    g2: Tensor
    dot: Tensor

    @property
    def squared(self) -> Tensor:
        return (self.f2 + self.g2 - 2 * self.dot).clamp_min(0)


class DensePair:
    """The same sums of dense codes f and g (M, K); each is computed when a loss asks for it."""

    def __init__(self, f_MK: Tensor, g_MK: Tensor) -> None:
        self.f_MK, self.g_MK = f_MK, g_MK

    @property
    def absolute(self) -> Tensor:
        return _Distance.apply(self.f_MK, self.g_MK, 1)

    @property
    def squared(self) -> Tensor:
        return _Distance.apply(self.f_MK, self.g_MK, 2)

    @property
    def f1(self) -> Tensor:
        return self.f_MK.sum(1)

    @property
    def f2(self) -> Tensor:
        return torch.linalg.vecdot(self.f_MK, self.f_MK)

    @property
    def g2(self) -> Tensor:
        return torch.linalg.vecdot(self.g_MK, self.g_MK)

    @property
    def dot(self) -> Tensor:
        return torch.linalg.vecdot(self.f_MK, self.g_MK)


def stability(pair: PairSums | DensePair) -> Tensor:
    """mean ||h - f||^2 / sg(mean ||f||^2)."""
    with torch.no_grad():
        scale = pair.f2.mean()
    return pair.squared.mean() / scale.clamp_min(1e-12)


def smoothness(pair: PairSums | DensePair, weight_M: Tensor, kind: str) -> Tensor:
    """l1: sum |g - f| / sg(sum |f|); l2: sum ||g - f||^2 / sg(sum ||f||^2); cosine: mean 1 - cos; each pair with its weight."""
    if kind == "cosine":
        cosine = pair.dot / (pair.f2 * pair.g2).clamp_min(1e-24).sqrt()
        return (weight_M * (1 - cosine)).sum() / weight_M.sum().clamp_min(1e-12)
    above = pair.absolute if kind == "l1" else pair.squared
    with torch.no_grad():
        below = weight_M @ (pair.f1 if kind == "l1" else pair.f2)
    return weight_M @ above / below.clamp_min(1e-12)


def contrast(f_MS: Tensor, g_MS: Tensor, weight_M: Tensor, tau: float) -> Tensor:
    """InfoNCE of neighbours among all pairs of the batch, on the slow concepts (Bhalla et al. 2026)."""
    logits = F.normalize(g_MS, dim=1, eps=1e-6) @ F.normalize(f_MS, dim=1, eps=1e-6).T / tau
    each_M = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    return (weight_M * each_M).sum() / weight_M.sum().clamp_min(1e-12)


def auxk(sae: Sae, x_ND: Tensor, residual_ND: Tensor, atoms_KD: Tensor, dead_J: Tensor, k_aux: int | None) -> Tensor:
    """||e - e_hat||^2 / ||e||^2 with e = x - x_hat and e_hat the top dead concepts, min(1, n_dead / k_aux) times (Gao et al. 2024, appendix A.2).

    x_hat holds the decoder's bias, so neither e nor e_hat does. The gradient reaches the encoder rows of the dead concepts and their atoms.
    """
    k_aux = k_aux or max(1, sae.config.width // 2)
    pre_NJ = F.linear(x_ND - sae.b_dec, sae.W_enc[dead_J], sae.b_enc[dead_J])
    value, place = torch.relu(pre_NJ).topk(min(k_aux, len(dead_J)), dim=1)
    estimate_ND = torch.zeros_like(pre_NJ).scatter(1, place, value) @ atoms_KD[dead_J]
    error = (residual_ND - estimate_ND).square().sum(1).mean() / residual_ND.square().sum(1).mean().clamp_min(1e-12)
    return min(1.0, len(dead_J) / k_aux) * error


def _branches(batch: Triplet, cfg: LossConfig) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """The windows to encode as one (N, d), what is reconstructed first, and where each branch lies."""
    there: dict[str, Tensor] = {"t": batch.x_BD}
    if cfg.needs_next and batch.next_MD is not None:
        there["next"] = batch.next_MD
    if cfg.needs_aug:
        there["aug"] = batch.aug_BD
    order = sorted(there, key=lambda name: (name != "t", name not in cfg.rec_on))
    span, at = {}, 0
    for name in order:
        span[name] = (at, at + len(there[name]))
        at += len(there[name])
    return torch.cat([there[name] for name in order]) if len(order) > 1 else batch.x_BD, span


def _smooth(out: _SparseOut | _DenseOut, batch: Triplet, cfg: LossConfig) -> Tensor:
    if batch.pair_M is None or not len(batch.pair_M):
        return out.nothing()
    weight_M = torch.ones_like(batch.dt_M) if cfg.dt_tau_s is None else torch.exp(-batch.dt_M / cfg.dt_tau_s)
    if cfg.smooth_kind == "nce":
        return contrast(*out.slow(batch.pair_M, cfg.nce_share), weight_M, cfg.nce_tau)
    return smoothness(out.pair("next", batch.pair_M, detach=False), weight_M, cfg.smooth_kind)


class _Diversity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, atoms_KD: Tensor) -> Tensor:
        n, gram_DD, square_K = len(atoms_KD), atoms_KD.T @ atoms_KD, atoms_KD.square().sum(1)
        ctx.save_for_backward(atoms_KD, gram_DD, square_K)
        return (gram_DD.square().sum() - square_K.square().sum()) / max(1, n * (n - 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        atoms_KD, gram_DD, square_K = ctx.saved_tensors
        n = len(atoms_KD)
        return grad * 4 / max(1, n * (n - 1)) * torch.addcmul(atoms_KD @ gram_DD, atoms_KD, square_K[:, None], value=-1)


class _Distance(torch.autograd.Function):
    """sum |g - f| (power 1) or sum (g - f)^2 (power 2) of each row; one difference is kept for both gradients."""

    @staticmethod
    def forward(ctx: Any, f_MK: Tensor, g_MK: Tensor, power: int) -> Tensor:
        gap_MK = g_MK - f_MK
        ctx.save_for_backward(gap_MK)
        ctx.power = power
        return torch.linalg.vector_norm(gap_MK, 1, dim=1) if power == 1 else torch.linalg.vecdot(gap_MK, gap_MK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor):
        (gap_MK,) = ctx.saved_tensors
        grad_g_MK = gap_MK.sign().mul_(grad_M[:, None]) if ctx.power == 1 else gap_MK * (2 * grad_M)[:, None]
        return -grad_g_MK if ctx.needs_input_grad[0] else None, grad_g_MK if ctx.needs_input_grad[1] else None, None


class _Jump(torch.autograd.Function):
    """pre where pre > threshold; thresholds get the rectangle kernel's pseudo-gradient (Rajamanoharan et al. 2024b, eq. 11)."""

    @staticmethod
    def forward(ctx: Any, pre_NK: Tensor, threshold_K: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_NK, threshold_K)
        ctx.bandwidth = bandwidth
        return pre_NK * (pre_NK > threshold_K)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NK: Tensor):
        pre_NK, threshold_K = ctx.saved_tensors
        near_NK = (pre_NK - threshold_K).abs() < ctx.bandwidth / 2
        return grad_NK * (pre_NK > threshold_K), -(grad_NK * near_NK).sum(0) * threshold_K / ctx.bandwidth, None


class _Step(torch.autograd.Function):
    """1 where pre > threshold (eq. 12); only thresholds get a gradient."""

    @staticmethod
    def forward(ctx: Any, pre_NK: Tensor, threshold_K: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre_NK, threshold_K)
        ctx.bandwidth = bandwidth
        return (pre_NK > threshold_K).to(pre_NK.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NK: Tensor):
        pre_NK, threshold_K = ctx.saved_tensors
        near_NK = (pre_NK - threshold_K).abs() < ctx.bandwidth / 2
        return None, -(grad_NK * near_NK).sum(0) / ctx.bandwidth, None


class _DenseOut(NamedTuple):
    """Codes (N, K) by plain autograd: every kind, and the reference of the sparse step."""

    sae: Sae
    pre_NK: Tensor
    codes: dict[str, Tensor]  # of each branch
    recs: list[Tensor]

    def nothing(self) -> Tensor:
        return self.pre_NK.new_zeros(())

    def pair(self, name: str, rows_M: Tensor | None, *, detach: bool) -> DensePair:
        f, g = self.codes["t"], self.codes[name]
        return DensePair(f if rows_M is None else f.index_select(0, rows_M), g.detach() if detach else g)

    def slow(self, rows_M: Tensor, share: float) -> tuple[Tensor, Tensor]:
        width = max(1, int(share * self.pre_NK.shape[1]))
        return self.codes["t"][rows_M, :width], self.codes["next"][:, :width]

    def penalty(self, atoms_KD: Tensor) -> Tensor:
        """mean_i sum_k f_ik ||d_k||; jumprelu: the number that fire / sqrt(k), so that a code of the usual size 1 / sqrt(k) costs the same."""
        n = len(self.codes["t"])
        if self.sae.config.kind == "jumprelu":
            fires_NK = _Step.apply(self.pre_NK[:n], self.sae.threshold, self.sae.config.bandwidth)
            return fires_NK.sum(1).mean() / math.sqrt(self.sae.config.k)
        value_NK = torch.relu(self.pre_NK[:n]) if self.sae.config.kind == "gated" else self.codes["t"]
        return value_NK.mean(0) @ atoms_KD.norm(dim=1)

    def own_loss(self, target_ND: Tensor) -> Tensor | float:
        """gated: the gate alone must reconstruct through a decoder that it cannot move (Rajamanoharan et al. 2024a, eq. 8)."""
        if self.sae.config.kind != "gated":
            return 0.0
        gate_ND = torch.relu(self.pre_NK[: len(target_ND)]) @ self.sae.dictionary_KD.detach() + self.sae.b_dec.detach()
        return (target_ND - gate_ND).square().sum(1).mean()

    def firing(self) -> tuple[Tensor, Tensor, Tensor]:
        codes_BK = self.codes["t"].detach()
        count_K = (codes_BK > 0).sum(0)
        return count_K > 0, count_K.sum() / len(codes_BK), self._least()

    def _least(self) -> Tensor:
        """The smallest code of the batch, which the kinds that select over a batch ask for."""
        if self.sae.config.kind not in ("batch_topk", "matryoshka"):
            return self.pre_NK.new_full((), math.inf)
        return torch.stack([codes.detach().masked_fill(codes <= 0, math.inf).min() for codes in self.codes.values()]).min()


def _dense(sae: Sae, x_ND: Tensor, n_rec: int, atoms_KD: Tensor, span: dict[str, tuple[int, int]], dtype: torch.dtype) -> _DenseOut:
    cfg = sae.config
    if dtype == torch.float32:  # b_dec goes into the bias: as part of the input it would cost a product as large as the encode, backwards
        pre_NK = F.linear(x_ND, sae.W_enc, sae.b_enc - sae.W_enc @ sae.b_dec)
    else:
        pre_NK = F.linear((x_ND - sae.b_dec).to(dtype), sae.W_enc.to(dtype)).float() + sae.b_enc
    if cfg.kind == "relu":
        codes_NK = pre_NK.relu_()
    elif cfg.kind == "jumprelu":
        codes_NK = _Jump.apply(pre_NK, sae.threshold, cfg.bandwidth)
    elif cfg.kind in ("batch_topk", "matryoshka"):
        positive_NK = torch.relu(pre_NK)
        kth = positive_NK.detach().reshape(-1).topk(len(x_ND) * cfg.k, sorted=False).values.min()
        codes_NK = positive_NK * (positive_NK >= kth)
    else:
        codes_NK = sae.codes_of(pre_NK)
    codes = dict(zip(span, codes_NK.split([stop - start for start, stop in span.values()]), strict=True))  # once: each slice's gradient is a whole array
    rebuilt_NK = codes["t"] if n_rec == len(codes["t"]) else codes_NK[:n_rec]
    recs, rec_ND, begin = [], sae.b_dec, 0
    for stop in cfg.nested:
        rec_ND = rec_ND + rebuilt_NK[:, begin:stop] @ atoms_KD[begin:stop]
        recs.append(rec_ND)
        begin = stop
    return _DenseOut(sae, pre_NK, codes, recs)


class _SparseOut(NamedTuple):
    """Codes by `kernels`, for the kinds that select."""

    sae: Sae
    codes: Codes
    recs: list[Tensor]
    span: dict[str, tuple[int, int]]

    def _of(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Values, concepts and rows (from 0) of a branch's entries."""
        start, stop = self.span[name]
        layout = self.codes.layout
        inside = slice(layout.entries_before(start), layout.entries_before(stop))
        return self.codes.values_E[inside], layout.cols_E[inside], layout.rows_E[inside].long() - start

    def nothing(self) -> Tensor:
        return self.codes.values_E.new_zeros(())

    def pair(self, name: str, rows_M: Tensor | None, *, detach: bool) -> PairSums:
        """Matched by key: entries of f and g that stand at one concept of one pair; f and g are not negative, so the rest are plain sums."""
        (f_E, f_col, f_row), (g_E, g_col, g_row) = self._of("t"), self._of(name)
        n_f, n_g = (stop - start for start, stop in (self.span["t"], self.span[name]))
        rows_M = torch.arange(n_g, device=f_E.device) if rows_M is None else rows_M
        g_E = g_E.detach() if detach else g_E
        keys_f = f_row * self.codes.layout.n_concepts + f_col
        keys_g = rows_M[g_row] * self.codes.layout.n_concepts + g_col
        place = torch.searchsorted(keys_f, keys_g).clamp_max(max(0, len(keys_f) - 1))
        there_E = f_E[place] * (keys_f[place] == keys_g)  # f at the entries of g, 0 where f is
        by_f = lambda values: values.new_zeros(n_f).index_add(0, f_row, values)[rows_M]  # noqa: E731
        by_g = lambda values: values.new_zeros(n_g).index_add(0, g_row, values)  # noqa: E731
        f1 = by_f(f_E)
        return PairSums(by_g((g_E - there_E).abs() - there_E) + f1, f1, by_f(f_E.square()), by_g(g_E.square()), by_g(g_E * there_E))

    def slow(self, rows_M: Tensor, share: float) -> tuple[Tensor, Tensor]:
        width, out = max(1, int(share * self.codes.layout.n_concepts)), []
        for name in ("t", "next"):
            values, cols, rows = self._of(name)
            inside, (start, stop) = cols < width, self.span[name]
            out.append(values.new_zeros(stop - start, width).index_put((rows[inside], cols[inside].long()), values[inside]))
        return out[0][rows_M], out[1]

    def penalty(self, atoms_KD: Tensor) -> Tensor:
        raise AssertionError("kinds that select have no sparsity penalty")

    def own_loss(self, target_ND: Tensor) -> float:
        return 0.0

    def firing(self) -> tuple[Tensor, Tensor, Tensor]:
        n = self.span["t"][1]
        values, cols, _ = self._of("t")
        on = values.detach() > 0
        fired_K = torch.zeros(self.codes.layout.n_concepts, dtype=torch.int32, device=cols.device).index_add_(0, cols, on.int()) > 0
        every = self.codes.values_E.detach()
        return fired_K, on.sum().float() / n, every.masked_fill(every <= 0, math.inf).min() if len(every) else every.new_full((), math.inf)


def _sparse(sae: Sae, x_ND: Tensor, n_rec: int, atoms_KD: Tensor, span: dict[str, tuple[int, int]], dtype: torch.dtype) -> _SparseOut:
    cfg = sae.config
    encode = kernels.encode_topk if cfg.kind in ("topk", "archetypal") else kernels.encode_batch_topk
    codes = encode(x_ND, sae.W_enc, sae.b_enc, sae.b_dec, cfg.k, dtype=dtype)
    rec = kernels.decode(codes.first(n_rec), atoms_KD, cfg.nested)
    blocks = [rec] if len(cfg.nested) == 1 else rec.unbind(1)
    recs, rec_ND = [], sae.b_dec
    for block_ND in blocks:
        rec_ND = rec_ND + block_ND
        recs.append(rec_ND)
    return _SparseOut(sae, codes, recs, span)
