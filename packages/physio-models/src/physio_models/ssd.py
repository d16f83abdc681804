"""The state-space recurrence of Mamba-2, computed in chunks: matrix products inside a chunk, a state handed from chunk to chunk.

Source: Dao and Gu, "Transformers are SSMs", ICML 2024, arXiv 2405.21060, section 6 (state-space duality). Per head, with its group's B and C,

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T        y_t = S_t C_t

Time and memory are linear in L. Shape letters: B items, L positions, H heads, P features of a head, G groups of heads that share
B and C (contiguous blocks of R = H / G heads), N state size; K chunks of Q positions.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

KERNEL_MODULE = "mamba_ssm.ops.triton.ssd_combined"


def ssd(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    *,
    chunk: int = 32,
    initial_BHPN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y_BLHP, final_BHPN): what the recurrence gives and its state after the last position; a skip D x is the caller's.

    ``dt_BLH`` is the step after softplus, >= 0; a position with dt = 0 leaves the state as it is. ``A_H`` is negative. ``chunk``
    changes rounding and speed alone. Computed in float32 (float64 where x is) whatever autocast says, since decays are exponentials
    of sums; y has the type of x. On a GPU the Triton kernel of ``mamba_ssm`` does it where that is installed.
    ``ValueError`` for shapes that do not meet.
    """
    _check(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, chunk, initial_BHPN)
    kernel = mamba_ssm_kernel() if x_BLHP.is_cuda and x_BLHP.dtype != torch.float64 else None
    if kernel is not None:
        B_BLGN, C_BLGN = B_BLGN.to(x_BLHP.dtype), C_BLGN.to(x_BLHP.dtype)
        return kernel(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, chunk_size=256, initial_states=initial_BHPN, return_final_states=True)
    dtype = torch.float64 if x_BLHP.dtype == torch.float64 else torch.float32
    with torch.autocast(x_BLHP.device.type, enabled=False):
        initial_BHPN = None if initial_BHPN is None else initial_BHPN.to(dtype)
        y_BLHP, final_BHPN = _chunked(x_BLHP.to(dtype), dt_BLH.to(dtype), A_H.to(dtype), B_BLGN.to(dtype), C_BLGN.to(dtype), chunk, initial_BHPN)
    return y_BLHP.to(x_BLHP.dtype), final_BHPN


def ssd_step(x_BHP: Tensor, dt_BH: Tensor, A_H: Tensor, B_BGN: Tensor, C_BGN: Tensor, state_BHPN: Tensor) -> tuple[Tensor, Tensor]:
    """One position of the recurrence: (y_BHP, the new state). A product and a sum per state entry; nothing is changed in place."""
    repeat = x_BHP.shape[1] // B_BGN.shape[1]
    B_BHN, C_BHN = B_BGN.repeat_interleave(repeat, 1), C_BGN.repeat_interleave(repeat, 1)
    decay_BH11 = (dt_BH * A_H).exp()[..., None, None]
    state_BHPN = decay_BH11 * state_BHPN + (dt_BH[..., None] * x_BHP)[..., None] * B_BHN[:, :, None, :]
    return (state_BHPN * C_BHN[:, :, None, :]).sum(-1).to(x_BHP.dtype), state_BHPN


@functools.cache
def mamba_ssm_kernel() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The fused kernel of ``mamba_ssm`` where that package is installed, else None."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    return importlib.import_module(KERNEL_MODULE).mamba_chunk_scan_combined


def _chunked(x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, chunk: int, initial_BHPN: Tensor | None) -> tuple[Tensor, Tensor]:
    n_items, length, n_heads, n_features = x_BLHP.shape
    n_groups, n_state = B_BLGN.shape[2:]
    chunk = min(chunk, length)
    n_chunks = -(-length // chunk)
    n_repeat = n_heads // n_groups

    def chunks(value: Tensor) -> Tensor:
        """(B, L, ...) -> (B, K, Q, ...); positions added at the end have dt = 0, so they change no state."""
        padded = F.pad(value, (0, 0) * (value.ndim - 2) + (0, n_chunks * chunk - length))
        return padded.unflatten(1, (n_chunks, chunk))

    by_head = (n_items, n_chunks, n_groups, n_repeat)
    dt_BKQH = chunks(dt_BLH)
    xdt_BKGRQP = (chunks(x_BLHP) * dt_BKQH[..., None]).permute(0, 1, 3, 2, 4).reshape(*by_head, chunk, n_features)
    B_BKGQN, C_BKGQN = chunks(B_BLGN).transpose(2, 3), chunks(C_BLGN).transpose(2, 3)
    sum_BKHQ = (dt_BKQH * A_H).cumsum(2).transpose(2, 3)  # log of the decay from the chunk's start; falls from 0
    sum_BKGRQ = sum_BKHQ.reshape(*by_head, chunk)

    # inside a chunk: ((C B^T) o decay) (dt x); C B^T once a group, the mask before exp so that nothing overflows
    causal_QQ = torch.ones(chunk, chunk, dtype=torch.bool, device=x_BLHP.device).tril()
    decay_BKGRQQ = (sum_BKGRQ[..., :, None] - sum_BKGRQ[..., None, :]).masked_fill(~causal_QQ, float("-inf")).exp()
    scores_BKGQQ = C_BKGQN @ B_BKGQN.transpose(-1, -2)
    y_BKGRQP = (scores_BKGQQ[:, :, :, None] * decay_BKGRQQ) @ xdt_BKGRQP

    # what each chunk adds to the state by its end, then the states before each chunk, one after another
    to_end_BKGRQ = (sum_BKGRQ[..., -1:] - sum_BKGRQ).exp()
    weighted_BKGSQ = (xdt_BKGRQP * to_end_BKGRQ[..., None]).transpose(-1, -2).reshape(n_items, n_chunks, n_groups, n_repeat * n_features, chunk)
    added_BKHPN = (weighted_BKGSQ @ B_BKGQN).reshape(n_items, n_chunks, n_heads, n_features, n_state)
    total_BKH11 = sum_BKHQ[..., -1].exp()[..., None, None]
    state_BHPN = torch.zeros_like(added_BKHPN[:, 0]) if initial_BHPN is None else initial_BHPN
    before = []
    for added_BHPN, total_BH11 in zip(added_BKHPN.unbind(1), total_BKH11.unbind(1), strict=True):
        before.append(state_BHPN)
        state_BHPN = total_BH11 * state_BHPN + added_BHPN

    # what the state before a chunk gives inside it: exp(sum) C S
    before_BKGSN = torch.stack(before, 1).reshape(n_items, n_chunks, n_groups, n_repeat * n_features, n_state)
    from_state_BKGRQP = (C_BKGQN @ before_BKGSN.transpose(-1, -2)).unflatten(-1, (n_repeat, n_features)).transpose(-2, -3)
    y_BKGRQP = y_BKGRQP + sum_BKGRQ.exp()[..., None] * from_state_BKGRQP
    y_BLHP = y_BKGRQP.permute(0, 1, 4, 2, 3, 5).reshape(n_items, n_chunks * chunk, n_heads, n_features)
    return y_BLHP[:, :length], state_BHPN


def _check(x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, C_BLGN: Tensor, chunk: int, initial_BHPN: Tensor | None) -> None:
    if x_BLHP.ndim != 4 or x_BLHP.shape[1] < 1:
        raise ValueError(f"x_BLHP must be (batch, at least one position, heads, features), got {tuple(x_BLHP.shape)}")
    n_items, length, n_heads, n_features = x_BLHP.shape
    if dt_BLH.shape != (n_items, length, n_heads) or A_H.shape != (n_heads,):
        raise ValueError(f"dt_BLH and A_H must be {(n_items, length, n_heads)} and {(n_heads,)}, got {tuple(dt_BLH.shape)} and {tuple(A_H.shape)}")
    if B_BLGN.ndim != 4 or B_BLGN.shape != C_BLGN.shape or B_BLGN.shape[:2] != (n_items, length) or n_heads % B_BLGN.shape[2]:
        raise ValueError(
            f"B_BLGN and C_BLGN must be {(n_items, length)} + (groups, state) with groups dividing {n_heads} heads, "
            f"got {tuple(B_BLGN.shape)} and {tuple(C_BLGN.shape)}"
        )
    if initial_BHPN is not None and initial_BHPN.shape != (n_items, n_heads, n_features, B_BLGN.shape[3]):
        raise ValueError(f"initial_BHPN must be {(n_items, n_heads, n_features, B_BLGN.shape[3])}, got {tuple(initial_BHPN.shape)}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 position, got {chunk}")
