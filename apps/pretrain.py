"""Pretrain an encoder and say honestly what it knows.

uv run apps/pretrain.py                                    the built-in cohort: prepare, pretrain, probe; minutes on two cores
uv run apps/pretrain.py himae_mitbih --data stores/mitbih  another recipe on a prepared store
uv run torchrun --nproc-per-node 2 apps/pretrain.py        the same on two ranks
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import torch
import tyro

import compose
import console
import figures
import rows
from compose import Parts, PretrainConfig, Size
from console import say
from encoders import Origin
from physio_data.store import Store, Stores
from physio_models.pretrained import from_pretrained
from physio_train import VALIDATION_EPOCH, JsonLines, NonFiniteLossError, Progress, RankLostError, Run, Step, Streams, World, fit, floors, session, validate
from physio_train import predictions as prediction_files
from physio_train.distributed import average, broadcast
from prepare import prepared
from questions import check_sides, split_question

JOIN_S = 3600.0  # how long ranks wait for the one that prepares
CHANGEABLE = ("fit.n_steps", "fit.n_epochs", "fit.checkpoint_every", "fit.validate_every", "fit.keep_last", "fit.check_every", "log_every", "data", "probe")


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Prepare, pretrain, and probe the frozen encoder beside its floors. Rates in Hz, lengths in seconds, counts in windows and optimiser steps."""

    recipe: tyro.conf.Positional[str] = "himae_ppg"
    """A file of apps/recipes: himae_ppg or himae_mitbih."""
    size: Size = "fast"
    """tiny: seconds; fast: minutes on two cores; reference: the published size."""
    data: tuple[Path, ...] = ()
    """Prepared stores. Default: the recipe prepares its own under stores/."""
    out: Path | None = None
    """The run folder. Default: runs/RECIPE-TIME."""
    model: str | None = None
    """Another network, by its row of MODELS; its own flags follow as --model.FIELD."""
    objective: str | None = None
    """Another objective, by its row of OBJECTIVES."""
    config: Path | None = None
    """A run's config.json, to repeat it exactly."""
    resume: Path | None = None
    """A run folder, to go on from its last checkpoint."""
    workers: int = 0
    """Processes that prepare; 0 prepares in this one."""
    jobs: int = 2
    """Processes that fit the probes, of one thread each. The figures do not depend on it."""
    table: bool = True
    """Print the probe table at the end."""
    dry_run: bool = False
    """One batch, shapes, no folder."""
    cfg: Annotated[PretrainConfig, tyro.conf.arg(name="")]


def main(arguments: Sequence[str]) -> Mapping[str, object] | None:
    app = parse(arguments)
    began = time.monotonic()
    try:
        with session(timeout_s=JOIN_S) as world:
            summary = run(app, world)
    except (RankLostError, NonFiniteLossError) as error:
        raise console.Failed(f"{error}; go on with: {again(app)}") from None
    return None if summary is None else {**summary, "seconds": round(time.monotonic() - began, 1)}


def again(app: Pretrain) -> str:
    """The command that goes on with a run that was cut off."""
    folder = app.resume or app.out or max(Path("runs").glob(f"{app.recipe}-*"), default=Path("runs/RUN"))
    return f"uv run torchrun --nproc-per-node {os.environ.get('WORLD_SIZE', 'N')} apps/pretrain.py --resume {folder}"


def parse(arguments: Sequence[str]) -> Pretrain:
    """The flags. Parts are chosen by name first, since the remaining flags are derived from them."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("size", "model", "objective", "config", "resume"):
        first.add_argument(f"--{name}")
    chosen, _ = first.parse_known_args(arguments)
    name = arguments[0] if arguments and not arguments[0].startswith("-") else "himae_ppg"
    size = chosen.size if chosen.size in get_args(Size) else "fast"  # a wrong one is refused below
    if chosen.config and chosen.resume:
        raise ValueError("give --config to repeat a run in a new folder or --resume to go on with it, not both")
    if chosen.config or chosen.resume:
        cfg, name, size, data = saved_config(Path(chosen.config) if chosen.config else Path(chosen.resume) / "config.json")
        if chosen.size not in (None, size):
            raise ValueError(
                f"--size {chosen.size} names the recipe's config, but the saved one ({size}) is what is repeated: leave --size out, or name the recipe instead"
            )
    else:
        cfg, data = compose.recipe(name, size), ()
    cfg = compose.swap(cfg, model=chosen.model, objective=chosen.objective, size=size)
    app = tyro.cli(Pretrain, args=list(arguments), default=Pretrain(cfg=cfg, data=data, recipe=name, size=size), description=__doc__)
    if app.recipe != name:
        raise ValueError(f"name the recipe before the flags: pretrain.py {app.recipe} ...")
    if app.resume is not None and app.out is not None and app.out.resolve() != app.resume.resolve():
        raise ValueError(f"--out {app.out} is another folder than --resume {app.resume}: a run goes on where it is; leave --out out")
    return app


def saved_config(path: Path) -> tuple[PretrainConfig, str, Size, tuple[Path, ...]]:
    """Config, recipe, size and stores of a config.json; of a run's own store the cohort says how to prepare it again."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from None
    name, size, data = values.pop("recipe", "himae_ppg"), values.pop("size", "fast"), tuple(map(Path, values.pop("data", ())))
    values.pop("stores", None)
    return compose.from_json(values), name, size, data


def run(app: Pretrain, world: World) -> dict[str, object] | None:
    """Data, training, table. Every rank trains; the first prepares, writes and talks."""
    if app.dry_run and not app.data:
        with tempfile.TemporaryDirectory() as folder:
            return on_stores(replace(app, cfg=few(app.cfg)), world, own_stores(few(app.cfg), app.workers, world, Path(folder)))
    return on_stores(app, world, app.data or own_stores(app.cfg, app.workers, world, compose.own_store(app.cfg.cohort)))


def on_stores(app: Pretrain, world: World, paths: tuple[Path, ...]) -> dict[str, object] | None:
    """Training and table on prepared stores."""
    store = compose.open_stores(paths)
    cfg = compose.fit_model_to(app.cfg, store)
    train_N, val_N = compose.rows_of(store, cfg.use), compose.validation_rows(cfg, store)
    made = compose.parts(cfg, store, train_N, val_N, world)
    if world.is_main:
        say(f"{len(train_N)} windows of {len(store.channels)} x {store.n_samples} at {store.fs:g} Hz to train on, {len(val_N)} to validate on")
        say(f"{compose.row_of(cfg.model, compose.MODELS)}: {compose.n_parameters(made.model):,} parameters")
    if app.dry_run:
        return dry_run(cfg, made, store) if world.is_main else None
    folder = open_run(app, cfg, store, np.concatenate([train_N, val_N]), world)
    best = train(cfg, made, folder, app, world)
    if not world.is_main:
        return None
    draw(cfg, made, folder, store)
    say(f"run folder: {folder.path}")
    summary: dict[str, object] = {"run": str(folder.path), **best}
    if not app.table:
        return summary
    try:
        return summary | table(app, cfg, store, paths, folder)
    except KeyboardInterrupt:
        raise console.Stopped(f"the network is trained; for the table: {console.command('pretrain', '--resume', folder.path)}") from None


def own_stores(cfg: PretrainConfig, workers: int, world: World, folder: Path) -> tuple[Path, ...]:
    """The recipe's own store, prepared by the first rank while the others wait."""
    if world.is_main:
        prepared(cfg.cohort.prepare_config(), folder, workers=workers)
    meet()
    return (folder,)


def few(cfg: PretrainConfig) -> PretrainConfig:
    """The config with a generated cohort of a few subjects, enough for one batch."""
    if "n_subjects" not in cfg.cohort.options:
        return cfg
    return replace(cfg, cohort=replace(cfg.cohort, options={**cfg.cohort.options, "n_subjects": min(32, cfg.cohort.options["n_subjects"])}))


def meet() -> None:
    """Wait for all ranks."""
    broadcast([torch.zeros(1)])


def open_run(app: Pretrain, cfg: PretrainConfig, store: Store | Stores, seen_N: np.ndarray, world: World) -> Run:
    """A new run folder, or the one to go on in. What names the best step was seen as well as what was trained on."""
    document = {"recipe": app.recipe, "size": app.size, "data": [str(path) for path in app.data], "stores": store.hash.split(","), **compose.to_json(cfg)}
    if app.resume is not None:
        saved = Run.open(app.resume)
        if saved.config.get("stores") != document["stores"]:
            raise ValueError(
                f"{app.resume} was trained on other data (manifest {saved.config.get('stores')}, now {document['stores']}); give the same store with --data"
            )
        meet()
        return Run.resume(app.resume, document, changeable=CHANGEABLE) if world.is_main else saved
    stamp = torch.tensor([int(time.time())])
    broadcast([stamp])
    path = app.out or Path("runs") / f"{app.recipe}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(stamp.item()))}"
    if not world.is_main:
        meet()
        return Run(path)
    if app.config is not None and json.loads(app.config.read_text(encoding="utf-8")).get("stores") != document["stores"]:
        say(f"these are other data than those of {app.config}: the manifests differ, so the run will not be the same")
    made = Run.create(path, document, contract=compose.contract_of(cfg, store).to_json(), seen=compose.seen_of(store, seen_N))
    meet()
    return made


def train(cfg: PretrainConfig, made: Parts, folder: Run, app: Pretrain, world: World) -> dict[str, object]:
    """Train to the end, validating and saving on the way; what is returned goes into the summary."""
    resume = folder.latest_checkpoint() if app.resume is not None else None
    log = JsonLines(folder.metrics_path) if world.is_main else None
    steps = fit(made.model, made.objective, made.batches, cfg.fit, resume=resume)
    n_steps = cfg.fit.n_steps or max(1, round(cfg.fit.n_epochs * made.batches.steps_per_epoch))
    loss = float("nan")
    with closing(log) if log else nullcontext(), console.Interrupts() as interrupts, console.progress("pretrain", n_steps, quiet=not world.is_main) as show:
        for step in steps:
            if step.step % cfg.log_every == 0 or step.step == n_steps:
                numbers = step.numbers()
                loss = numbers["loss"]
                if log:
                    log.numbers(step.step, numbers)
            show(step.step, "" if np.isnan(loss) else f"loss {loss:.4f}")
            if step.validate_due and made.validation is not None:
                validated(cfg, made, step, folder, log)
            elif step.checkpoint_due:
                step.state.save(folder.checkpoints, keep=folder.keep())
            if agreed(interrupts.asked, world):
                step.state.save(folder.checkpoints, keep=folder.keep())
                raise console.Stopped(f"saved step {step.step} of {n_steps}; go on with: {console.command('pretrain', '--resume', folder.path)}")
    best = folder.best or {}
    return {"steps": n_steps, "loss": loss, "best_step": best.get("step", n_steps), "best_value": best.get("value")}


def validated(cfg: PretrainConfig, made: Parts, step: Progress, folder: Run, log: JsonLines | None) -> None:
    """Loss on fixed masks of the validation windows; save the step, and name it the best if it is."""
    found = validate(step.state.eval_model, made.objective, made.validation.one_epoch(), modules=step.state.modules, seed=cfg.fit.seed)
    step.state.save(folder.checkpoints, keep=folder.keep())
    if log:
        log.numbers(step.step, {f"val_{key}": value for key, value in found.items()})
        folder.update_best(step.step, "val_loss", found["loss"])


def agreed(asked: bool, world: World) -> bool:
    """Whether any rank was asked to stop: all must stop after the same step."""
    if world.world_size == 1:
        return asked
    flag = torch.tensor([float(asked)])
    average([flag])
    return bool(flag.item() > 0)


def draw(cfg: PretrainConfig, made: Parts, folder: Run, store: Store | Stores) -> None:
    """The loss figure, and fixed validation windows (training ones without a validation fold) reconstructed."""
    figures.loss(folder.figures / "loss.png", folder.metrics())
    if not hasattr(made.objective, "reconstruct"):
        return
    rows_N = compose.validation_rows(cfg, store)
    rows_N = (rows_N if len(rows_N) else compose.rows_of(store, cfg.use))[:: max(1, len(rows_N) // 6)][:6]
    encoder = from_pretrained(folder.path)
    batch = store.batch(rows_N)
    x_BCT, valid_BT, _ = encoder.prepare(batch["signal"], compose.spec_of(store), valid_BT=batch.get("valid"))
    given = {"signal": x_BCT, "index": torch.as_tensor(batch["index"])} | ({} if valid_BT is None else {"valid": valid_BT})
    with torch.no_grad():
        out = made.objective.reconstruct(encoder.model, given, Step(torch.nn.ModuleDict(), 1.0, Streams(cfg.fit.seed, VALIDATION_EPOCH)))
    first = (x_BCT[:, 0].numpy(), out.pred_BCT[:, 0].numpy(), out.mask_B1T[:, 0].numpy())
    figures.reconstruction(folder.figures / "reconstruction.png", *first, store.fs)


def table(app: Pretrain, cfg: PretrainConfig, store: Store | Stores, paths: Sequence[Path], folder: Run) -> dict[str, object]:
    """The probe table of the frozen encoder on the test fold, beside its floors."""
    there = set(np.unique(store.index["fold"]).tolist())
    train_folds, test_folds = ([f for f in compose.fold_names(names) if f in there] for names in (cfg.probe.train, cfg.probe.test))
    if not train_folds or not test_folds or (cfg.probe.task or next(iter(store.tasks), "")) not in store.tasks:
        say(f"no probe table: the store has folds {', '.join(sorted(there))} and tasks {', '.join(store.tasks) or 'none'}; see apps/probe.py")
        return {}
    question, spec = split_question(store, paths, cfg.probe, train=store.rows(tuple(train_folds)), test=store.rows(tuple(test_folds)))
    own = rows.Job(row="pretrained", source="encoder", specs=(spec,), question=question, encoder=Origin(path=str(folder.path)), seed=cfg.fit.seed)
    notes = check_sides(question, spec, store)
    seen_N = np.concatenate([compose.rows_of(store, cfg.use), compose.validation_rows(cfg, store)])
    heading = floors.heading(question.windows.subject[spec.test], compose.seen_of(store, seen_N)["subjects"])
    jobs = [own, *rows.floor_jobs(question, cfg, compose.contract_of(cfg, store), [spec], store)]
    result = rows.judged(question, jobs, [spec], heading=heading, n_processes=app.jobs, notes=notes)
    prediction_files.write(folder.path / "predictions.csv", result.predictions)
    (folder.path / "table.json").write_text(json.dumps(result.table.to_json(), indent=1) + "\n", encoding="utf-8")
    rows.show(result)
    return rows.summary(result) | {"predictions": str(folder.path / "predictions.csv")}


def dry_run(cfg: PretrainConfig, made: Parts, store: Store | Stores) -> dict[str, object]:
    """One batch through the objective; nothing is written."""
    batch = next(made.batches)
    step = Step(made.objective.modules(made.model), 0.0, Streams(cfg.fit.seed, 0))
    with torch.no_grad():
        loss = made.objective(made.model, batch, step)
        encoded = made.model.eval().encode(batch["signal"][:2])
    levels = {name: list(level.shape[1:]) for name, level in encoded.levels.items()}
    say(f"batch {tuple(batch['signal'].shape)}, loss {loss.total.item():.4f}; tokens and features of each level: {levels}")
    return {"dry_run": True, "batch": list(batch["signal"].shape), "loss": loss.total.item(), "levels": levels, "parameters": compose.n_parameters(made.model)}


if __name__ == "__main__":
    console.run(main)
