"""Many L2-penalised logistic regressions over the same rows, solved at once: one matrix product serves every inner fold and every C.

N rows, D features (the last column of a design is the constant one), P problems (a fold and a C each), K outputs (1 for binary, the classes for softmax).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import expit

MEMORY = 10
N_TRIES = 20  # points of a line search
SLAB = 1 << 17  # scores handled at a time: with what is made of them they fit in a processor's second cache
SLOPE_SHARE = 0.2  # the line search ends when the slope has fallen to this share: a strong Wolfe condition, enough for a convex loss


class Design(NamedTuple):
    """Rows rotated onto the principal axes of the features, where the Hessian is nearly diagonal; an L2 penalty does not see the rotation."""

    z_ND: np.ndarray  # (N, r + 1) float32, last column 1
    curvature_D: np.ndarray  # (r + 1,) mean square of each column
    axes_DR: np.ndarray  # (D, r) float64: coefficients on the features are axes @ coefficients on the axes


class Solution(NamedTuple):
    """Coefficients of every problem, and whether each met the tolerance."""

    coef_DPK: np.ndarray
    intercept_PK: np.ndarray
    converged_P: np.ndarray
    n_iterations: int


def design(x_ND: np.ndarray) -> Design:
    """Rotate standardised features exactly, through the smaller of the two Gram matrices; directions without variance are dropped."""
    x_ND = np.asarray(x_ND, dtype=np.float64)
    n, d = x_ND.shape
    if d <= n:
        value, axes_DR = np.linalg.eigh(x_ND.T @ x_ND)
    else:
        value, u_NR = np.linalg.eigh(x_ND @ x_ND.T)
        axes_DR = x_ND.T @ u_NR / np.sqrt(np.maximum(value, 1e-300))
    keep = value > value[-1] * 1e-10 if value[-1] > 0 else np.zeros(len(value), dtype=bool)
    value, axes_DR = value[keep], np.ascontiguousarray(axes_DR[:, keep])
    z_NR = x_ND.astype(np.float32) @ axes_DR.astype(np.float32)
    z_ND = np.concatenate([z_NR, np.ones((n, 1), dtype=np.float32)], axis=1)
    return Design(z_ND, np.append(value / n, 1.0), axes_DR)


def solve(
    design: Design, target_N: np.ndarray, weight_NP: np.ndarray, strength_P: np.ndarray, *, n_classes: int = 2, tolerance: float = 1e-9, max_iter: int = 300
) -> Solution:
    """Minimise, for each problem, strength * sum(weight * log-loss) + ||coef||^2 / 2 with a free intercept: scikit-learn's objective and meaning of C.

    `target_N` holds 0..n_classes-1; two classes give one logit, more give a softmax. Batched L-BFGS, preconditioned with the curvature of the axes,
    with a line search on the scores alone, so that an iteration costs two matrix products for all problems together.
    `tolerance` bounds the (approximate) Newton decrement of the mean loss.
    """
    n_outputs = n_classes if n_classes > 2 else 1
    loss = _softmax_along if n_classes > 2 else _binary_along
    target = np.asarray(target_N, dtype=np.int64)
    y_KN = np.eye(n_classes)[:, target] if n_classes > 2 else target[None].astype(np.float64)
    z_ND, dims = design.z_ND, design.z_ND.shape[1]
    n_problems = weight_NP.shape[1]
    total_P = weight_NP.sum(axis=0)
    if np.any(total_P <= 0):
        raise ValueError("weight_NP has a problem without any positive weight: give every fold training rows of known label")
    weight_PN = np.ascontiguousarray((weight_NP / total_P).T)
    penalty = np.repeat(1.0 / (strength_P * total_P)[:, None, None], dims, axis=2)
    penalty[:, :, -1] = 0.0
    precondition = 1.0 / (0.25 * design.curvature_D + penalty)

    out = np.zeros((n_problems, n_outputs, dims))
    converged_P = np.zeros(n_problems, dtype=bool)
    live = np.arange(n_problems)
    coef = np.zeros_like(out)
    score = np.zeros((n_problems, n_outputs, len(z_ND)))
    residual = np.empty(score.shape, dtype=np.float32)
    _along(loss, score, score, y_KN, weight_PN, np.zeros(n_problems), live, residual)
    gradient = _back(residual, z_ND)
    history: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    scale_P = np.ones(n_problems)
    n_iterations = 0
    while n_iterations < max_iter:
        done = _dot(gradient, precondition * gradient) * scale_P < tolerance
        if done.any():
            out[live[done]] = coef[done]
            converged_P[live[done]] = True
            go = ~done
            live, coef, score, gradient, scale_P = live[go], coef[go], score[go], gradient[go], scale_P[go]
            weight_PN, penalty, precondition, residual = weight_PN[go], penalty[go], precondition[go], residual[go]
            history = [(s[go], y[go], r[go]) for s, y, r in history]
        if not len(live):
            break
        n_iterations += 1
        direction = -_two_loop(gradient, precondition, scale_P, history)
        score_step = _product(direction, z_ND)
        linear, square = _dot(penalty * coef, direction), _dot(penalty * direction, direction)
        along = partial(_along, loss, score, score_step, y_KN, weight_PN, residual=residual)
        step = _line_search(along, np.abs(_dot(gradient, direction)), linear, square)[:, None, None]
        move = step * direction
        coef = coef + move
        score_step *= step
        score += score_step
        new = _back(residual, z_ND) + penalty * coef
        change = new - gradient
        curvature_P = np.maximum(_dot(move, change), 1e-300)
        scale_P = curvature_P / np.maximum(_dot(change, precondition * change), 1e-300)
        history = [*history[-(MEMORY - 1) :], (move, change, 1.0 / curvature_P)]
        gradient = new
    out[live] = coef
    coef_PKD = out[..., :-1] @ design.axes_DR.T
    return Solution(np.ascontiguousarray(coef_PKD.transpose(2, 0, 1)), out[..., -1], converged_P, n_iterations)


def _along(
    loss, score: np.ndarray, score_step: np.ndarray, y_KN: np.ndarray, weight_PN: np.ndarray, step_P: np.ndarray, open_P: np.ndarray, residual: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivative of the open problems' mean loss along `score_step` (P, K, N), at `step_P` of it; their residuals are written.

    A few problems at a time, as many as a processor's cache holds.
    """
    first, second = np.empty(len(open_P)), np.empty(len(open_P))
    n = max(1, SLAB // score[0].size)
    for start in range(0, len(open_P), n):
        part, here = open_P[start : start + n], slice(start, start + n)
        move = score_step[part]
        residual[part], first[here], second[here] = loss(score[part] + step_P[part][:, None, None] * move, move, y_KN, weight_PN[part][:, None])
    return first, second


def _binary_along(s: np.ndarray, move: np.ndarray, y_KN: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-loss of one logit: residuals (P, 1, N), and first and second derivative along `move`."""
    p = expit(s)
    weighted = weight * move
    return weight * (p - y_KN), np.einsum("pkn,pkn->p", weighted, p - y_KN), np.einsum("pkn,pkn->p", weighted * move, p * (1 - p))


def _softmax_along(s: np.ndarray, move: np.ndarray, y_KN: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cross-entropy of K logits: residuals (P, K, N), and first and second derivative along `move`."""
    s -= s.max(axis=1, keepdims=True)
    np.exp(s, out=s)
    s /= s.sum(axis=1, keepdims=True)
    weighted = s * move
    mean = weighted.sum(axis=1, keepdims=True)
    weighted *= move
    second = np.einsum("pkn,pkn->p", weighted.sum(axis=1, keepdims=True) - mean * mean, weight)
    s -= y_KN
    s *= weight
    return s, np.einsum("pkn,pkn->p", s, move), second


def _product(coef: np.ndarray, z_ND: np.ndarray) -> np.ndarray:
    """Scores (P, K, N) of coefficients (P, K, D)."""
    flat = coef.reshape(-1, coef.shape[-1]).astype(np.float32)
    return (flat @ z_ND.T).astype(np.float64).reshape(*coef.shape[:2], len(z_ND))


def _back(residual: np.ndarray, z_ND: np.ndarray) -> np.ndarray:
    """Gradient (P, K, D) of the loss from its residuals (P, K, N)."""
    flat = residual.reshape(-1, len(z_ND))
    return (flat @ z_ND).astype(np.float64).reshape(*residual.shape[:2], z_ND.shape[1])


def _dot(a_PKD: np.ndarray, b_PKD: np.ndarray) -> np.ndarray:
    return np.einsum("pkd,pkd->p", a_PKD, b_PKD)


def _two_loop(gradient, precondition, scale_P, history) -> np.ndarray:
    """Nocedal and Wright, Algorithm 7.4, for all problems side by side."""
    q, shares = gradient.copy(), []
    for s, y, r in reversed(history):
        a = r * _dot(s, q)
        q -= a[:, None, None] * y
        shares.append(a)
    q *= precondition * scale_P[:, None, None]
    for (s, y, r), a in zip(history, reversed(shares), strict=True):
        q += (a - r * _dot(y, q))[:, None, None] * s
    return q


def _line_search(along, start_P: np.ndarray, linear_P: np.ndarray, square_P: np.ndarray) -> np.ndarray:
    """Newton steps on the convex loss along each direction, kept inside the bracket that the sign of the slope gives. `start_P` is the slope at zero, `linear`
    and `square` are the penalty's parts of it; the residuals that `along` leaves are those at the steps returned."""
    n = len(start_P)
    low, high, step = np.zeros(n), np.full(n, np.inf), np.ones(n)
    open_P = np.arange(n)
    for tries_left in range(N_TRIES - 1, -1, -1):
        first, second = along(step_P=step, open_P=open_P)
        slope = first + linear_P[open_P] + step[open_P] * square_P[open_P]
        still = np.abs(slope) > SLOPE_SHARE * start_P[open_P]
        if not still.any() or not tries_left:
            break
        open_P, slope, second = open_P[still], slope[still], second[still]
        at = step[open_P]
        low[open_P], high[open_P] = np.where(slope < 0, at, low[open_P]), np.where(slope < 0, high[open_P], at)
        below, above = low[open_P], high[open_P]
        newton = at - slope / np.maximum(second + square_P[open_P], 1e-300)
        middle = np.where(np.isinf(above), 2.0 * np.maximum(below, 1e-3), 0.5 * (below + above))
        inside = (newton > below) & (newton < np.minimum(above, 10.0 * np.maximum(at, 0.1)))
        step[open_P] = np.where(inside, newton, middle)
    return step
