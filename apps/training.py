"""The fit part of pretraining: train, validate, save, stop together, and what every line of the log says.

Shape letters: B windows, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

import compose
import console
from compose import Parts, PretrainConfig
from console import say
from physio_models import MODELS, OBJECTIVES
from physio_train import (
    Meter,
    NonFiniteLossError,
    Progress,
    Run,
    Sink,
    World,
    collapse,
    feature_health,
    fit,
    flops_per_window,
    measured_peak,
    validate,
)
from physio_train.distributed import broadcast, gather, plain_loss_of_rank
from physio_train.loop import autocast, default_device

IN_BATCH = ("paired_contrastive", "simclr", "cmsc", "papagei_morphology", "patient_contrastive", "merl", "cpc")
"""Objectives whose windows are one another's negatives."""
LEVERS = ("patch", "patch_samples", "width", "widths", "depth", "decoder_width", "decoder_depth", "rank_ratio", "mamba_every", "n_positions")
"""Fields of a network's config that its memory depends on."""


def train(
    cfg: PretrainConfig,
    made: Parts,
    folder: Run,
    log: Sink | None,
    *,
    resume: bool,
    world: World,
    again: str,
    draw: Callable[[Progress], None] | None = None,
) -> dict[str, object]:
    """Train to the end, validating and saving on the way; what is returned goes into the summary. `log` is rank 0's.

    `again` is the command that goes on. Stopped by Ctrl-C or SIGTERM: after the step under way every rank saves and raises
    `console.Stopped`. Early: where `fit.patience` validations passed without a better one. `draw` is called every `cfg.figure_every` steps on all ranks.
    """
    start = folder.latest_checkpoint() if resume else None
    meter = metered(cfg, made)
    if world.is_main:
        for note in caveats(cfg, made):
            say(note)
    steps = fit(made.model, made.objective, made.batches, cfg.fit, resume=start, levers=levers(cfg.model))
    n_steps = cfg.fit.n_steps or max(1, round(cfg.fit.n_epochs * made.batches.steps_per_epoch))
    loss, early, warned, reached = float("nan"), False, False, 0
    shown = console.progress("pretrain", n_steps, quiet=not world.is_main)
    lost = plain_loss_of_rank(lambda: f"after step {reached} of {n_steps}")
    with recorded(folder), lost, closing(log) if log else nullcontext(), console.Interrupts() as interrupts, shown as show:
        for step in steps:
            reached = step.step
            meter.add(step)
            if step.step % cfg.log_every == 0 or step.step == n_steps:
                numbers = step.numbers()
                loss, cost, health = numbers["loss"], meter.numbers(), health_of(cfg, made, step)
                if log:
                    log.numbers(step.step, numbers | cost | health)
                if world.is_main and not warned and health and (why := collapse(health)):
                    say(f"step {step.step}: {why}")
                    warned = True
            show(step.step, "" if np.isnan(loss) else f"loss {loss:.4f}")
            if draw is not None and cfg.figure_every and step.step % cfg.figure_every == 0:
                draw(step)
            if step.validate_due and made.validation is not None:
                early = validated(cfg, made, step, folder, log)
            elif step.checkpoint_due:
                step.state.save(folder.checkpoints, keep=folder.keep())
            if number := agreed(interrupts.number):
                step.state.save(folder.checkpoints, keep=folder.keep())
                raise console.Stopped(f"saved step {step.step} of {n_steps}; go on with: {again}" if world.is_main else "", code=128 + number)
            if early:
                break
    best = folder.best or {}
    found = {"steps": step.step, "loss": loss, "best_step": best.get("step", step.step), "best_value": best.get("value")}
    return {**found, "stopped_early": True} if early else found


@contextmanager
def recorded(folder: Run) -> Iterator[None]:
    """Where numbers were not finite, the batch's windows are written to the run folder."""
    try:
        yield
    except NonFiniteLossError as error:
        say(f"the batch's item indices are in {folder.record_non_finite(error.found)}")
        raise


def metered(cfg: PretrainConfig, made: Parts) -> Meter:
    """A meter that knows the network's operations a window, and what the device can do."""
    position = made.batches.state_dict()
    batch = next(made.batches)
    made.batches.load_state_dict(position)
    device = default_device()
    flops = flops_per_window(made.model, made.objective, batch, seed=cfg.fit.seed)
    return Meter(flops=flops, peak_flops=cfg.fit.peak_flops or measured_peak(device, cfg.fit.precision), device=device)


def validated(cfg: PretrainConfig, made: Parts, step: Progress, folder: Run, log: Sink | None) -> bool:
    """Loss on fixed masks of the validation windows; save the step, and name it the best if it is. True where all ranks should stop."""
    found = validate(step.state.eval_model, made.objective, made.validation.one_epoch(), modules=step.state.modules, seed=cfg.fit.seed)
    step.state.save(folder.checkpoints, keep=folder.keep())
    stop = torch.zeros(1)
    if log:
        log.numbers(step.step, {f"val_{key}": value for key, value in found.items()})
        folder.update_best(step.step, "val_loss", found["loss"])
        stop += folder.should_stop(step.step, validate_every=cfg.fit.validate_every, patience=cfg.fit.patience)
    broadcast([stop])
    return bool(stop.item())


@torch.no_grad()
def health_of(cfg: PretrainConfig, made: Parts, step: Progress) -> dict[str, float]:
    """How the features of fixed validation windows vary; nothing without a validation fold."""
    if made.validation is None or not cfg.health_windows:
        return {}
    batch = next(iter(made.validation.one_epoch()))
    x = batch["tokens" if "tokens" in batch else "signal"][: cfg.health_windows].to(step.state.device)
    valid = {} if batch.get("valid") is None else {"valid_BT": batch["valid"][: cfg.health_windows].to(step.state.device)}
    if len(x) < 2:
        return {}
    model: nn.Module = step.state.eval_model
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with autocast(cfg.fit.precision, step.state.device):
        z_BD: Tensor = model.encode(x, **valid).pooled_BD
    for module, mode in modes:
        module.training = mode
    return feature_health(z_BD.float()) if torch.isfinite(z_BD).all() else {}


def agreed(number: int) -> int:
    """The signal that any rank was stopped by, 0 for none: all must stop after the same step."""
    return max(int(asked.item()) for asked in gather(torch.tensor([number])))


def caveats(cfg: PretrainConfig, made: Parts) -> list[str]:
    """What of a config does not do what a reader may expect of it."""
    if cfg.fit.accumulate == 1:
        return []
    differs = []
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in made.model.modules()):
        differs.append("batch normalisation takes the statistics of each piece")
    if compose.row_of(cfg.objective, OBJECTIVES) in IN_BATCH:
        differs.append("each window's negatives are those of its own piece")
    return [f"fit.accumulate={cfg.fit.accumulate} does not equal the whole batch at once: {why}" for why in differs]


def levers(model: object) -> Sequence[str]:
    """The settings of a network that save memory, as flags with what they are now."""
    flags = [f"--model.{name.replace('_', '-')} (now {getattr(model, name)})" for name in LEVERS if getattr(model, name, None)]
    return flags or [f"another network of {', '.join(MODELS)}"]
