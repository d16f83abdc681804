"""The sparse training step: dense encode, everything after it on the few concepts that fire.

N rows, d width, K concepts, E entries (concepts that fire, over all rows), k entries a row. Codes are kept row by row with rising
concept numbers (CSR). A decode sums the atoms of each row (`embedding_bag`); both weight gradients are the same sum over the same
entries sorted by concept, one index for encoder and decoder; gradients of the values are dot products at the entries alone.
Plain PyTorch, so CPU and CUDA run the same lines; the dense autograd step in `losses` is the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PRE_AT_ONCE = 1 << 25  # pre-activations held at a time: 128 MiB in float32
GROUPS_PER_K = 8  # top-k is searched among groups first: eight groups for each entry wanted

Select = Callable[[Tensor], tuple[Tensor, Tensor]]
"""pre-activations (n, K) -> (values (n, m), concepts (n, m)), the m largest of each row."""


class Layout:
    """Which concepts fire in which row. `cols_E` int32 rising within a row, `crow_N1` int32 where each row starts (N + 1 numbers).

    `width` is the entries of a row where all have as many, else none.
    """

    def __init__(self, cols_E: Tensor, crow_N1: Tensor, n_concepts: int, width: int | None = None) -> None:
        self.cols_E, self.crow_N1, self.n_concepts, self.width = cols_E, crow_N1, n_concepts, width

    @property
    def n_rows(self) -> int:
        return len(self.crow_N1) - 1

    @cached_property
    def rows_E(self) -> Tensor:
        """Row of each entry, int32."""
        counts_N = self.crow_N1.diff()
        return torch.repeat_interleave(torch.arange(self.n_rows, dtype=torch.int32, device=counts_N.device), counts_N, output_size=len(self.cols_E))

    @cached_property
    def by_concept(self) -> tuple[Tensor, Tensor, Tensor]:
        """The entries sorted by concept: (which entry, its row, where each concept starts); made at the first backward pass and shared."""
        order = torch.sort(self.cols_E, stable=True)
        starts_K1 = torch.searchsorted(order.values, torch.arange(self.n_concepts + 1, dtype=torch.int32, device=self.cols_E.device), out_int32=True)
        return order.indices, self.rows_E[order.indices], starts_K1

    @cached_property
    def keys_E(self) -> Tensor:
        """row * K + concept, int64 and rising: what two layouts are matched by."""
        return self.rows_E.long() * self.n_concepts + self.cols_E

    def first(self, n_rows: int) -> Layout:
        """The first rows alone; the sorted index is taken over from this one, not made again."""
        return self if n_rows == self.n_rows else _FirstRows(self, n_rows, self.entries_before(n_rows))

    def entries_before(self, row: int) -> int:
        """How many entries come before a row; reads no number from the device where every row has as many."""
        if row in (0, self.n_rows):
            return len(self.cols_E) if row else 0
        return row * self.width if self.width is not None else int(self.crow_N1[row])

    def bags(self, borders: tuple[int, ...]) -> Tensor:
        """Where each block of concepts starts in each row, (N P + 1,) int32, for P blocks that end at `borders`."""
        starts_P = torch.tensor((0, *borders[:-1]), device=self.cols_E.device)
        keys_NP = torch.arange(self.n_rows, device=self.cols_E.device)[:, None] * self.n_concepts + starts_P
        starts = torch.searchsorted(self.keys_E, keys_NP.reshape(-1), out_int32=True)
        return torch.cat([starts, self.crow_N1[-1:]])


class _FirstRows(Layout):
    def __init__(self, parent: Layout, n_rows: int, n_entries: int) -> None:
        super().__init__(parent.cols_E[:n_entries], parent.crow_N1[: n_rows + 1], parent.n_concepts, parent.width)
        self.parent = parent

    @cached_property
    def by_concept(self) -> tuple[Tensor, Tensor, Tensor]:
        entries, rows, _ = self.parent.by_concept
        kept = entries < len(self.cols_E)
        starts_K1 = F.pad(torch.bincount(self.cols_E, minlength=self.n_concepts).cumsum(0), (1, 0)).int()
        return entries[kept], rows[kept], starts_K1


class Codes(NamedTuple):
    """Sparse codes of N rows: values (E,), which may carry a gradient, and where they stand."""

    values_E: Tensor
    layout: Layout

    def first(self, n_rows: int) -> Codes:
        layout = self.layout.first(n_rows)
        return Codes(self.values_E[: len(layout.cols_E)], layout)

    def dense(self) -> Tensor:
        """(N, K); keeps the gradient."""
        out = self.values_E.new_zeros(self.layout.n_rows, self.layout.n_concepts)
        return out.index_put((self.layout.rows_E.long(), self.layout.cols_E.long()), self.values_E)


def topk_rows(pre_NK: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, in no order: (values, concepts). Equal to `torch.topk` up to ties, and faster on wide rows.

    Concepts fall into groups; an entry of the top k lies in one of the k groups with the largest maxima, so only those are searched.
    """
    n, width = pre_NK.shape
    n_groups = GROUPS_PER_K * k
    if width % n_groups or width // n_groups < 4 or pre_NK.device.type != "cpu":
        return pre_NK.topk(k, dim=1, sorted=False)
    grouped = pre_NK.view(n, width // n_groups, n_groups)
    group_Nk = grouped.amax(1).topk(k, dim=1, sorted=False).indices
    candidates = grouped.gather(2, group_Nk[:, None].expand(-1, width // n_groups, -1)).reshape(n, -1)
    value_Nk, place_Nk = candidates.topk(k, dim=1, sorted=False)
    return value_Nk, (place_Nk // k) * n_groups + group_Nk.gather(1, place_Nk % k)


@torch.no_grad()
def _pre_parts(x_ND: Tensor, weight_KD: Tensor, bias_K: Tensor, select: Select, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Encode a part of the rows at a time into one buffer, and select in it: the (N, K) pre-activations never stand whole."""
    at_once = max(64, PRE_AT_ONCE // len(weight_KD))
    weight_DK, found = weight_KD.to(dtype).T, []
    buffer = torch.empty(min(at_once, len(x_ND)), len(weight_KD), dtype=dtype, device=x_ND.device)
    bias_K = bias_K.to(dtype)
    for start in range(0, len(x_ND), at_once):
        part = x_ND[start : start + at_once].to(dtype)
        found.append(select(torch.addmm(bias_K, part, weight_DK, out=buffer[: len(part)])))
    return torch.cat([values for values, _ in found]), torch.cat([concepts for _, concepts in found])


def _in_order(value_Nm: Tensor, concept_Nm: Tensor) -> tuple[Tensor, Tensor]:
    concept_Nm, order_Nm = concept_Nm.sort(1)
    return torch.relu(value_Nm.gather(1, order_Nm).float()), concept_Nm.int()


def encode_topk(x_ND: Tensor, weight_KD: Tensor, bias_K: Tensor, b_dec_D: Tensor, k: int, *, dtype: torch.dtype = torch.float32) -> Codes:
    """TopK codes of x: the k largest of ReLU(W (x - b_dec) + b) in each row; gradients reach W, b and b_dec through the entries kept.

    `dtype=torch.bfloat16` multiplies in bfloat16, which may pick other concepts near the k-th place (`topk_overlap`); values are then of that precision.
    """
    with torch.no_grad():
        centred_ND = x_ND - b_dec_D
        value_Nk, concept_Nk = _in_order(*_pre_parts(centred_ND, weight_KD, bias_K, lambda pre: topk_rows(pre, k), dtype))
        crow_N1 = torch.arange(0, len(x_ND) * k + 1, k, dtype=torch.int32, device=x_ND.device)
        layout = Layout(concept_Nk.reshape(-1), crow_N1, len(weight_KD), k)
    return Codes(_Encode.apply(value_Nk.reshape(-1), centred_ND, weight_KD, bias_K, b_dec_D, layout), layout)


def encode_batch_topk(x_ND: Tensor, weight_KD: Tensor, bias_K: Tensor, b_dec_D: Tensor, k: int, *, dtype: torch.dtype = torch.float32) -> Codes:
    """BatchTopK codes: the N k largest positive pre-activations of the whole batch.

    Each row's m largest are kept first; where the N k-th value shows that a row may have had more than m above it, m is doubled.
    """
    with torch.no_grad():
        centred_ND, m, n_wanted = x_ND - b_dec_D, min(2 * k, len(weight_KD)), len(x_ND) * k
        while True:
            width = m
            value_Nm, concept_Nm = _pre_parts(centred_ND, weight_KD, bias_K, lambda pre, width=width: topk_rows(pre, width), dtype)
            value_Nm = value_Nm.float()
            kth = value_Nm.reshape(-1).topk(min(n_wanted, value_Nm.numel()), sorted=False).values.min().clamp_min(0)
            if m == len(weight_KD) or not bool((value_Nm.amin(1) >= kth).logical_and(value_Nm.amin(1) > 0).any()):
                break
            m = min(2 * m, len(weight_KD))
        value_Nm, concept_Nm = _in_order(value_Nm, concept_Nm)
        kept_Nm = (value_Nm >= kth) & (value_Nm > 0)
        crow_N1 = F.pad(kept_Nm.sum(1).cumsum(0), (1, 0)).int()
        layout = Layout(concept_Nm[kept_Nm], crow_N1, len(weight_KD))
        value_E = value_Nm[kept_Nm]
    return Codes(_Encode.apply(value_E, centred_ND, weight_KD, bias_K, b_dec_D, layout), layout)


def decode(codes: Codes, atoms_KD: Tensor, borders: tuple[int, ...] = ()) -> Tensor:
    """Sum (N, d) of each row's atoms, without bias; with `borders` one sum for each block of concepts, (N, P, d)."""
    crow = codes.layout.bags(borders) if len(borders) > 1 else codes.layout.crow_N1
    out = _Decode.apply(codes.values_E, atoms_KD, codes.layout, crow)
    return out.view(codes.layout.n_rows, len(borders), -1) if len(borders) > 1 else out


def _sum_bags(indices: Tensor, table: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(indices, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


class _Encode(torch.autograd.Function):
    """Gives the entries their gradient: dW = sum over entries of g x, db = sum of g, db_dec = -db W."""

    @staticmethod
    def forward(ctx: Any, values_E: Tensor, centred_ND: Tensor, weight_KD: Tensor, bias_K: Tensor, b_dec_D: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(values_E, centred_ND, weight_KD)
        ctx.layout = layout
        return values_E.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_E: Tensor):
        values_E, centred_ND, weight_KD = ctx.saved_tensors
        entries, rows, starts_K1 = ctx.layout.by_concept
        grad_E = grad_E * (values_E > 0)
        grad_weight_KD = _sum_bags(rows, centred_ND, starts_K1, grad_E[entries])
        grad_bias_K = grad_E.new_zeros(len(weight_KD)).index_add_(0, ctx.layout.cols_E, grad_E)
        return None, None, grad_weight_KD, grad_bias_K, -(grad_bias_K @ weight_KD), None


class _Decode(torch.autograd.Function):
    """Sums of atoms; dv = dot products at the entries, dW = the transposed sum."""

    @staticmethod
    def forward(ctx: Any, values_E: Tensor, atoms_KD: Tensor, layout: Layout, crow: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf_E = values_E.detach().requires_grad_()
            out = _sum_bags(layout.cols_E, atoms_KD.detach(), crow, leaf_E)
        ctx.layout, ctx.crow, ctx.graph = layout, crow, (out, leaf_E)
        return out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor):
        out, leaf_E = ctx.graph
        grad_out = grad_out.contiguous()
        (grad_E,) = torch.autograd.grad(out, leaf_E, grad_out, retain_graph=True)
        entries, rows, starts_K1 = ctx.layout.by_concept
        if len(ctx.crow) != ctx.layout.n_rows + 1:  # blocks: the bag of each entry stands in for its row
            bag_E = torch.searchsorted(ctx.crow, torch.arange(len(leaf_E), dtype=torch.int32, device=leaf_E.device), right=True, out_int32=True) - 1
            rows = bag_E[entries]
        return grad_E, _sum_bags(rows, grad_out, starts_K1, leaf_E.detach()[entries]), None, None


@torch.no_grad()
def topk_overlap(x_ND: Tensor, weight_KD: Tensor, bias_K: Tensor, b_dec_D: Tensor, k: int, *, dtype: torch.dtype = torch.bfloat16) -> float:
    """Share of the float32 top k that an encode in `dtype` finds too, mean over rows."""
    picked = [encode_topk(x_ND, weight_KD, bias_K, b_dec_D, k, dtype=kind).dense() > 0 for kind in (torch.float32, dtype)]
    return float(((picked[0] & picked[1]).sum(1) / picked[0].sum(1).clamp_min(1)).mean())


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively (AVX-512 BF16 or AMX on a CPU, compute capability 8 on CUDA)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() if torch.backends.mkldnn.is_available() else False
