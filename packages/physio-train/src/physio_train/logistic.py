"""Many L2-penalised logistic regressions over the same rows, solved at once: one matrix product serves every inner fold and every C.

N rows, D features (the last column of a design is the constant one), P problems (a fold and a C each), K outputs (1 for binary, the classes for softmax).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logsumexp, softmax

MEMORY = 10
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
    loss = _Softmax(target_N, n_classes) if n_classes > 2 else _Binary(target_N)
    n_outputs = n_classes if n_classes > 2 else 1
    z_ND, dims = design.z_ND, design.z_ND.shape[1]
    n_problems = weight_NP.shape[1]
    total_P = weight_NP.sum(axis=0)
    if np.any(total_P <= 0):
        raise ValueError("weight_NP has a problem without any positive weight: give every fold training rows of known label")
    weight = weight_NP / total_P
    penalty_DP = np.repeat(1.0 / (strength_P * total_P)[None, :], dims, axis=0)
    penalty_DP[-1] = 0.0
    precondition = 1.0 / (0.25 * design.curvature_D[:, None] + penalty_DP)[:, :, None]
    penalty = penalty_DP[:, :, None]

    out = np.zeros((dims, n_problems, n_outputs))
    converged_P = np.zeros(n_problems, dtype=bool)
    live = np.arange(n_problems)
    coef = np.zeros_like(out)
    score = np.zeros((len(z_ND), n_problems, n_outputs))
    gradient = _gradient(loss, z_ND, score, weight, penalty, coef)
    history: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    scale_P = np.ones(n_problems)
    n_iterations = 0
    while n_iterations < max_iter:
        done = _dot(gradient, precondition * gradient) * scale_P < tolerance
        if done.any():
            out[:, live[done]] = coef[:, done]
            converged_P[live[done]] = True
            go = ~done
            live, coef, score, gradient, scale_P = live[go], coef[:, go], score[:, go], gradient[:, go], scale_P[go]
            weight, penalty, precondition = weight[:, go], penalty[:, go], precondition[:, go]
            history = [(s[:, go], y[:, go], r[go]) for s, y, r in history]
        if not len(live):
            break
        n_iterations += 1
        direction = -_two_loop(gradient, precondition, scale_P, history)
        score_step = _product(z_ND, direction)
        step_P = _line_search(loss, score, score_step, weight, penalty, coef, direction)[:, None]
        move = step_P * direction
        coef = coef + move
        score = score + step_P * score_step
        new = _gradient(loss, z_ND, score, weight, penalty, coef)
        change = new - gradient
        curvature_P = np.maximum(_dot(move, change), 1e-300)
        scale_P = curvature_P / np.maximum(_dot(change, precondition * change), 1e-300)
        history = [*history[-(MEMORY - 1) :], (move, change, 1.0 / curvature_P)]
        gradient = new
    out[:, live] = coef
    return Solution(np.einsum("dr,rpk->dpk", design.axes_DR, out[:-1]), out[-1], converged_P, n_iterations)


class _Binary:
    """Log-loss of one logit; scores are (N, P, 1)."""

    def __init__(self, target_N: np.ndarray) -> None:
        self.y = np.asarray(target_N, dtype=np.float64)[:, None, None]

    def residual(self, score: np.ndarray, weight_NP: np.ndarray) -> np.ndarray:
        return weight_NP[:, :, None] * (expit(score) - self.y)

    def along(self, score: np.ndarray, step: np.ndarray, weight_NP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second derivative of the loss along `step`, per problem."""
        p = expit(score)
        weighted = weight_NP[:, :, None] * step
        return np.sum(weighted * (p - self.y), axis=(0, 2)), np.sum(weighted * step * p * (1 - p), axis=(0, 2))


class _Softmax:
    """Cross-entropy of K logits; scores are (N, P, K)."""

    def __init__(self, target_N: np.ndarray, n_classes: int) -> None:
        self.y = np.eye(n_classes)[np.asarray(target_N, dtype=np.int64)][:, None, :]

    def residual(self, score: np.ndarray, weight_NP: np.ndarray) -> np.ndarray:
        return weight_NP[:, :, None] * (softmax(score, axis=2) - self.y)

    def along(self, score: np.ndarray, step: np.ndarray, weight_NP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second derivative of the loss along `step`, per problem."""
        p = np.exp(score - logsumexp(score, axis=2, keepdims=True))
        mean = np.sum(p * step, axis=2)
        first = np.sum(weight_NP * np.sum((p - self.y) * step, axis=2), axis=0)
        return first, np.sum(weight_NP * (np.sum(p * step * step, axis=2) - mean * mean), axis=0)


def _product(z_ND: np.ndarray, coef_DPK: np.ndarray) -> np.ndarray:
    flat = coef_DPK.reshape(coef_DPK.shape[0], -1).astype(np.float32)
    return (z_ND @ flat).astype(np.float64).reshape(len(z_ND), *coef_DPK.shape[1:])


def _gradient(loss, z_ND, score, weight_NP, penalty, coef) -> np.ndarray:
    residual = loss.residual(score, weight_NP)
    flat = np.ascontiguousarray(residual.reshape(len(z_ND), -1), dtype=np.float32)
    return (z_ND.T @ flat).astype(np.float64).reshape(coef.shape) + penalty * coef


def _dot(a_DPK: np.ndarray, b_DPK: np.ndarray) -> np.ndarray:
    return np.einsum("dpk,dpk->p", a_DPK, b_DPK)


def _two_loop(gradient, precondition, scale_P, history) -> np.ndarray:
    """Nocedal and Wright, Algorithm 7.4, for all problems side by side."""
    q, shares = gradient.copy(), []
    for s, y, r in reversed(history):
        a = r * _dot(s, q)
        q -= a[:, None] * y
        shares.append(a)
    q *= precondition * scale_P[:, None]
    for (s, y, r), a in zip(history, reversed(shares), strict=True):
        q += (a - r * _dot(y, q))[:, None] * s
    return q


def _line_search(loss, score, score_step, weight_NP, penalty, coef, direction) -> np.ndarray:
    """Newton steps on the convex loss along each direction, kept inside the bracket that the sign of the slope gives."""
    linear, square = _dot(penalty * coef, direction), _dot(penalty * direction, direction)
    n = score.shape[1]
    low, high, step = np.zeros(n), np.full(n, np.inf), np.ones(n)
    start = np.abs(loss.along(score, score_step, weight_NP)[0] + linear)
    for _ in range(20):
        first, second = loss.along(score + step[:, None] * score_step, score_step, weight_NP)
        slope = first + linear + step * square
        open_P = np.abs(slope) > SLOPE_SHARE * start
        if not open_P.any():
            break
        low, high = np.where(slope < 0, step, low), np.where(slope < 0, high, step)
        newton = step - slope / np.maximum(second + square, 1e-300)
        middle = np.where(np.isinf(high), 2.0 * np.maximum(low, 1e-3), 0.5 * (low + high))
        inside = (newton > low) & (newton < np.minimum(high, 10.0 * np.maximum(step, 0.1)))
        step = np.where(open_P, np.where(inside, newton, middle), step)
    return step
