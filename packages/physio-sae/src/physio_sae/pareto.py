"""Which dictionaries no other one beats on every axis, and how much of the plane they cover. M models, A axes."""

from __future__ import annotations

import numpy as np


def pareto_front(value_MA: np.ndarray, larger_is_better: tuple[bool, ...]) -> np.ndarray:
    """Whether each model (M,) is not dominated: none is as good on all axes and better on one. Equal models are both kept.

    Raises ValueError for values that are not finite, and for another number of axes than flags.
    """
    cost_MA = costs(value_MA, larger_is_better)
    no_worse_MM = (cost_MA[:, None] <= cost_MA[None]).all(-1)
    better_MM = (cost_MA[:, None] < cost_MA[None]).any(-1)
    return ~(no_worse_MM & better_MM).any(0)


def hypervolume(value_MA: np.ndarray, reference_A: np.ndarray, larger_is_better: tuple[bool, ...]) -> float:
    """Volume between a fixed reference point and the models that beat it on all axes (Zitzler and Thiele 1999, IEEE TEC 3:257), by slicing the last axis."""
    both = costs(np.concatenate([np.atleast_2d(value_MA), np.atleast_2d(reference_A)]), larger_is_better)
    cost_MA, corner_A = both[:-1], both[-1]
    return volume(cost_MA[(cost_MA < corner_A).all(1)], corner_A)


def volume(cost_MA: np.ndarray, corner_A: np.ndarray) -> float:
    """The union of the boxes from each point up to the corner."""
    if not len(cost_MA):
        return 0.0
    if cost_MA.shape[1] == 1:
        return float(corner_A[0] - cost_MA[:, 0].min())
    order = np.argsort(cost_MA[:, -1], kind="stable")
    tops = np.append(cost_MA[order, -1][1:], corner_A[-1])
    total = 0.0
    for n, (row, top) in enumerate(zip(order, tops, strict=True), 1):
        height = top - cost_MA[row, -1]
        if height > 0:
            total += height * volume(cost_MA[order[:n], :-1], corner_A[:-1])
    return total


def costs(value_MA: np.ndarray, larger_is_better: tuple[bool, ...]) -> np.ndarray:
    """Values with the sign by which smaller is better."""
    value_MA = np.atleast_2d(np.asarray(value_MA, np.float64))
    if value_MA.shape[1] != len(larger_is_better):
        raise ValueError(f"larger_is_better must have one flag per axis ({value_MA.shape[1]}), got {len(larger_is_better)}")
    if not np.isfinite(value_MA).all():
        raise ValueError("values of a Pareto front must be finite; leave out models without a figure")
    return value_MA * np.where(larger_is_better, -1.0, 1.0)
