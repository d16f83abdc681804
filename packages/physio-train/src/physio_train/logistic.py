"""Many L2-penalised logistic regressions over the same rows, solved at once: one matrix product serves every inner fold and every C.

N rows, D features (the last column of a design is the constant one), P problems (a fold and a C each), K outputs (1 for binary, the classes for softmax).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.special import expit, softmax

MEMORY = 10
CURVATURE_ROWS = 8192
RENEWED = 25
ROUNDING = 1e-5  # of a product of float32, beside a diagonal of ones
LEAST_CURVED = 1e-20  # of a step that is remembered; a straighter one says nothing
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
    design: Design, target_N: np.ndarray, weight_NP: np.ndarray, strength_P: np.ndarray, *, n_classes: int = 2, tolerance: float = 1e-10, max_iter: int = 300
) -> Solution:
    """Minimise, for each problem, strength * sum(weight * log-loss) + ||coef||^2 / 2 with a free intercept: scikit-learn's objective and meaning of C.

    `target_N` holds 0..n_classes-1; two classes give one logit, more give a softmax. The strengths are gone through from the weakest on, problems of one
    strength together, each from where its rows' problem of the strength before ended. Batched L-BFGS, preconditioned with the curvature of each class (of at
    most `CURVATURE_ROWS` rows, renewed every `RENEWED` iterations), with a line search on the scores alone, so that an iteration costs two matrix products for
    all problems of a strength. `tolerance` bounds the (approximate) Newton decrement of the mean loss, `max_iter` the iterations of a strength.
    """
    n_outputs = n_classes if n_classes > 2 else 1
    target = np.asarray(target_N, dtype=np.int64)
    total_P = weight_NP.sum(axis=0)
    if np.any(total_P <= 0):
        raise ValueError("weight_NP has a problem without any positive weight: give every fold training rows of known label")
    rows = _Rows(design.z_ND, np.eye(n_classes)[:, target] if n_classes > 2 else target[None].astype(np.float64), *_sample(target, n_classes))
    coef = np.zeros((weight_NP.shape[1], n_outputs, design.z_ND.shape[1]))
    converged_P = np.zeros(len(coef), dtype=bool)
    before, n_iterations = np.zeros(0, dtype=np.int64), 0
    for strength in np.unique(strength_P):
        here = np.flatnonzero(strength_P == strength)
        if len(before) == len(here) and np.array_equal(weight_NP[:, before], weight_NP[:, here]):
            coef[here] = coef[before]
        weight_PN = np.ascontiguousarray((weight_NP[:, here] / total_P[here]).T)
        coef[here], converged_P[here], n = _minimum(rows, weight_PN, 1.0 / (strength * total_P[here]), coef[here], tolerance, max_iter)
        before, n_iterations = here, n_iterations + n
    coef_PKD = coef[..., :-1] @ design.axes_DR.T
    return Solution(np.ascontiguousarray(coef_PKD.transpose(2, 0, 1)), coef[..., -1], converged_P, n_iterations)


class _Rows(NamedTuple):
    """The rows of all problems, and the few of them that stand for their curvature."""

    z_ND: np.ndarray
    y_KN: np.ndarray
    some_S: np.ndarray
    times_S: np.ndarray  # how many rows each stands for


def _sample(target_N: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows spread over each class, all of a rare one, and how many each stands for."""
    parts, times = [], []
    for c in range(n_classes):
        of_class = np.flatnonzero(target_N == c)
        taken = of_class[np.linspace(0, len(of_class) - 1, min(len(of_class), CURVATURE_ROWS // n_classes)).astype(np.int64)]
        parts.append(taken)
        times.append(np.full(len(taken), len(of_class) / max(len(taken), 1)))
    return np.concatenate(parts), np.concatenate(times)


def _minimum(
    rows: _Rows, weight_PN: np.ndarray, penalty_P: np.ndarray, coef: np.ndarray, tolerance: float, max_iter: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Coefficients (P, K, D) of problems of one strength, from those given; which converged; and how many iterations that took."""
    z_ND, y_KN = rows.z_ND, rows.y_KN
    loss = _softmax_along if len(y_KN) > 1 else _binary_along
    penalty = np.repeat(penalty_P[:, None, None], z_ND.shape[1], axis=2)
    penalty[:, :, -1] = 0.0
    out, converged_P = coef.copy(), np.zeros(len(coef), dtype=bool)
    live = np.arange(len(coef))
    score = _product(coef, z_ND)
    residual = np.empty(score.shape, dtype=np.float32)
    _along(loss, score, score, y_KN, weight_PN, np.zeros(len(coef)), live, residual)
    gradient = _back(residual, z_ND) + penalty * coef
    curvature = _Curvature(rows, score, weight_PN, penalty)
    history: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    n_iterations = 0
    while n_iterations < max_iter:
        done = _dot(gradient, curvature.solve(gradient)) < tolerance
        if done.any():
            out[live[done]] = coef[done]
            converged_P[live[done]] = True
            go = ~done
            live, coef, score, gradient, residual = live[go], coef[go], score[go], gradient[go], residual[go]
            weight_PN, penalty = weight_PN[go], penalty[go]
            history = [(s[go], y[go], r[go]) for s, y, r in history]
        if not len(live):
            break
        n_iterations += 1
        if n_iterations % RENEWED == 0:
            curvature = _Curvature(rows, score, weight_PN, penalty)
        direction = -_two_loop(gradient, curvature, history)
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
        curved_P = _dot(move, change)
        pair = (move, change, np.where(curved_P > LEAST_CURVED, 1.0 / np.maximum(curved_P, LEAST_CURVED), 0.0))
        history = [*history[-(MEMORY - 1) :], pair]
        gradient = new
    out[live] = coef
    return out, converged_P, n_iterations


class _Curvature:
    """The Hessian's blocks of each class (D, D), the mean over problems, factorised; what couples the classes is left to L-BFGS."""

    def __init__(self, rows: _Rows, score: np.ndarray, weight_PN: np.ndarray, penalty: np.ndarray) -> None:
        s = score[:, :, rows.some_S]
        p = expit(s) if s.shape[1] == 1 else softmax(s, axis=1)
        share_KS = np.mean(weight_PN[:, None, rows.some_S] * p * (1 - p), axis=0) * rows.times_S
        z_SD = rows.z_ND[rows.some_S]
        self.parts = [self._factor(z_SD * np.sqrt(share_S, dtype=np.float32)[:, None], penalty.mean(axis=(0, 1))) for share_S in share_KS.astype(np.float32)]

    @staticmethod
    def _factor(z_SD: np.ndarray, penalty_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cholesky factor of the block with ones on its diagonal, and what its axes were divided by."""
        block_DD = (z_SD.T @ z_SD).astype(np.float64)
        size_D = np.sqrt(np.maximum(np.diag(block_DD) + penalty_D, 1e-30))
        block_DD /= size_D[:, None] * size_D
        np.fill_diagonal(block_DD, 1.0 + ROUNDING)
        return cholesky(block_DD, lower=True, overwrite_a=True, check_finite=False), size_D

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """The inverse times gradients (P, K, D), within what moves the classes against one another: a shift of all logits alike changes no probability."""
        out = np.empty_like(gradient)
        for k, (lower_DD, size_D) in enumerate(self.parts):
            out[:, k] = cho_solve((lower_DD, True), (gradient[:, k] / size_D).T, check_finite=False).T / size_D
        return out if len(self.parts) == 1 else out - out.mean(axis=1, keepdims=True)


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


def _two_loop(gradient: np.ndarray, curvature: _Curvature, history: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Nocedal and Wright, Algorithm 7.4, for all problems side by side."""
    q, shares = gradient.copy(), []
    for s, y, r in reversed(history):
        a = r * _dot(s, q)
        q -= a[:, None, None] * y
        shares.append(a)
    q = curvature.solve(q)
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
        with np.errstate(over="ignore"):  # a step without end is outside the bracket
            newton = at - slope / np.maximum(second + square_P[open_P], 1e-300)
        middle = np.where(np.isinf(above), 2.0 * np.maximum(below, 1e-3), 0.5 * (below + above))
        inside = (newton > below) & (newton < np.minimum(above, 10.0 * np.maximum(at, 0.1)))
        step[open_P] = np.where(inside, newton, middle)
    return step
