"""Running statistics of batch normalisation: measure how they fit an input, and estimate them anew.

Masked training leaves statistics of mostly hidden input; features are taken from unmasked input. `statistics_mismatch` says how
far the two lie apart, `reestimate_statistics` replaces them. Whether that helps has to be measured: it lifts an untrained net
and mostly hurts a trained one. Shape letters: B items, C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from physio_models.interface import evaluating


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Every batch normalisation with running statistics, by its name in the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.running_var is not None}


@torch.no_grad()
def statistics_mismatch(model: nn.Module, x_BCT: Tensor, run: Callable[[Tensor], object] | None = None) -> dict[str, float]:
    """Variance entering each batch normalisation over its running variance, the median over channels; 1 is a fit.

    In eval mode on ``run(x)``, by default the encoder on unmasked input. Keys are the layers' names
    (``encoder_layers.0.main_path.1``) in the order they ran; layers that did not run are left out, so a net without running
    statistics gives ``{}``. `by_level` sums it up for HiMAE. Model and statistics stay as they were.
    """
    ratios: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
            ratios[name] = float((inputs[0].float().var(axes, correction=0) / layer.running_var.float()).median())

        return hook

    with ExitStack() as stack:
        for name, layer in batch_norms(model).items():
            stack.callback(layer.register_forward_pre_hook(watch(name)).remove)
        stack.enter_context(evaluating(model))
        (run or model.encode)(x_BCT)
    return ratios


def by_level(ratios: dict[str, float]) -> dict[str, float]:
    """HiMAE's encoder in short: L1 ... -> the ratio at the level's first normalisation, where its input arrives."""
    first = [name for name in ratios if name.startswith("encoder_layers.") and name.endswith(".main_path.1")]
    return {f"L{int(name.split('.')[1]) + 1}": ratios[name] for name in first}


@torch.no_grad()
def reestimate_statistics(model: nn.Module, batches: Iterable[Tensor], run: Callable[[Tensor], object] | None = None) -> list[str]:
    """Replace running statistics in place by plain averages over ``batches`` of x_BCT (cumulative: momentum None).

    ``run`` is what happens to a batch: by default ``model.encode``; give ``lambda x: model(x, mask)`` for masked input. Only
    layers that run are touched (the decoder keeps its own under ``encode``); their names are returned. Weights, modes and
    momentum stay. ``ValueError`` if there was no batch.
    """
    layers = batch_norms(model)
    before = {layer: (layer.momentum, {key: value.clone() for key, value in layer.named_buffers()}) for layer in layers.values()}
    n_batches = 0
    with ExitStack() as stack:
        stack.callback(_restore_untouched, before)
        stack.enter_context(evaluating(model))
        for layer in layers.values():
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        for x_BCT in batches:
            (run or model.encode)(x_BCT)
            n_batches += 1
        touched = [name for name, layer in layers.items() if int(layer.num_batches_tracked) > 0]
    if layers and not n_batches:
        raise ValueError("batches was empty: statistics need at least one batch; they are left as they were")
    return touched


def _restore_untouched(before: dict[_BatchNorm, tuple[float | None, dict[str, Tensor]]]) -> None:
    for layer, (momentum, buffers) in before.items():
        layer.momentum = momentum
        if int(layer.num_batches_tracked) == 0:
            for key, value in buffers.items():
                getattr(layer, key).copy_(value)
