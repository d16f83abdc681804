"""Pretrain an encoder and say honestly what it knows.

uv run apps/pretrain.py                                    the built-in cohort: prepare, pretrain, probe; minutes on two cores
uv run apps/pretrain.py himae_mitbih --data stores/mitbih  another recipe on a prepared store
uv run torchrun --nproc-per-node 2 apps/pretrain.py        the same on two ranks
uv run apps/pretrain.py himae_ppg --save weights/himae     the small weights and their card: scores, floors, data, licence
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
import tyro
from safetensors import SafetensorError
from torch import nn

import compose
import console
import figures
import rows
import tokens
import training
from compose import Parts, PretrainConfig, Size
from console import say
from encoders import Origin, check_free, hand_on
from physio_bpe import Tokenizer
from physio_data.journal import is_disk_full
from physio_data.store import Store, Stores
from physio_models.interface import evaluating
from physio_models.normalize import normalize
from physio_models.pretrained import from_pretrained
from physio_train import (
    VALIDATION_EPOCH,
    Fan,
    JsonLines,
    NonFiniteLossError,
    OutOfDeviceMemoryError,
    Progress,
    RankLostError,
    Run,
    Sink,
    Step,
    Streams,
    World,
    session,
)
from physio_train import predictions as prediction_files
from physio_train.config import CHANGEABLE as FIT_CHANGEABLE
from physio_train.distributed import broadcast
from physio_train.loop import to_device
from physio_train.sinks_extra import open_sink
from prepare import prepared
from questions import check_sides, heading_of, split_question

CHANGEABLE = (*(f"fit.{name}" for name in FIT_CHANGEABLE), "log_every", "figure_every", "health_windows", "data", "probe")


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Prepare, pretrain, and probe the frozen encoder beside its floors. Rates in Hz, lengths in seconds, counts in windows and optimiser steps."""

    recipe: tyro.conf.Positional[str] = "himae_ppg"
    """A file of apps/recipes, listed above."""
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
    representation: Literal["signal", "tokens"] | None = None
    """What the network must read: refused where it reads the other. Default: what the recipe's network reads."""
    config: Path | None = None
    """A run's config.json, to repeat it exactly."""
    resume: Path | None = None
    """A run folder, to go on from its last checkpoint."""
    workers: int = 0
    """Processes that prepare; 0 prepares in this one."""
    sinks: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where numbers and figures go beside metrics.jsonl, below the run folder and without a network; each needs its extra of physio-train."""
    jobs: int = 2
    """Processes that fit the probes, of one thread each. The figures do not depend on it."""
    table: bool = True
    """Print the probe table at the end."""
    save: Path | None = None
    """A new folder for the finished network alone: its best weights, contract, and a model card with the table's scores and floors."""
    licence: str = "other"
    """Of the saved weights, an SPDX identifier for the card."""
    dry_run: bool = False
    """One batch, shapes, no folder."""
    cfg: Annotated[PretrainConfig, tyro.conf.arg(name="")]


def main(arguments: Sequence[str]) -> Mapping[str, object] | None:
    app = parse(arguments)
    began = time.monotonic()
    try:
        with session(timeout_s=app.cfg.fit.timeout_s) as world:
            summary = run(app, world)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise console.Failed(f"no space left for the run folder ({error}): free some, or name another disk with --out") from None
    return None if summary is None else {**summary, "seconds": round(time.monotonic() - began, 1)}


def again(folder: Path) -> str:
    """The command that goes on with a run: on as many ranks as now."""
    n_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if n_ranks == 1:
        return console.command("pretrain", "--resume", folder)
    return f"uv run torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', n_ranks)} apps/pretrain.py --resume {folder}"


@contextmanager
def recoverable(folder: Path) -> Iterator[None]:
    """Whatever ends a training early is told with the command that goes on."""
    try:
        yield
    except (RankLostError, NonFiniteLossError, OutOfDeviceMemoryError) as error:
        raise console.Failed(f"{error}; go on with: {again(folder)}") from None
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise console.Failed(f"no space left on the disk of {folder}; what was saved before is whole. Free some, and go on with: {again(folder)}") from None
    except KeyboardInterrupt:
        raise console.Stopped(f"nothing was lost but the steps since the last checkpoint; go on with: {again(folder)}") from None


def parse(arguments: Sequence[str]) -> Pretrain:
    """The flags. Parts are chosen by name first, since the remaining flags are derived from them."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("size", "model", "objective", "representation", "config", "resume"):
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
    cfg = compose.swap(cfg, model=chosen.model, objective=chosen.objective, size=size, representation=chosen.representation)
    default = Pretrain(cfg=cfg, data=data, recipe=name, size=size)
    app = tyro.cli(Pretrain, args=list(arguments), default=default, description=f"{console.paragraphs(__doc__)}\nRecipes: {', '.join(compose.recipe_names())}.")
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
    try:
        cfg = compose.from_json(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return tokens.located(cfg, path.parent) if cfg.tokens.vocabulary else cfg, name, size, data


def run(app: Pretrain, world: World) -> dict[str, object] | None:
    """Data, training, table. Every rank trains; the first prepares, writes and talks."""
    if app.dry_run and not app.data:
        with tempfile.TemporaryDirectory() as folder:
            return on_stores(replace(app, cfg=few(app.cfg)), world, own_stores(few(app.cfg), app.workers, world, Path(folder)))
    return on_stores(app, world, app.data or own_stores(app.cfg, app.workers, world, compose.own_store(app.cfg.cohort)))


def on_stores(app: Pretrain, world: World, paths: tuple[Path, ...]) -> dict[str, object] | None:
    """Training and table on prepared stores."""
    if app.save is not None:
        check_free(app.save)
    store = compose.open_stores(paths)
    cfg = compose.fit_model_to(app.cfg, store)
    train_N, val_N = compose.rows_of(store, cfg.use), compose.validation_rows(cfg, store)
    tokenizer = None
    if tokens.reads_tokens(cfg.model):
        tokenizer = tokens.tokenizer_for(cfg.tokens, store, train_N, seed=cfg.fit.seed)
        cfg = tokens.settled(cfg, tokenizer)
    made = compose.parts(replace(cfg, weights="") if app.resume else cfg, store, train_N, val_N, world, tokenizer=tokenizer)
    if world.is_main:
        say(f"{len(train_N)} windows of {len(store.channels)} x {store.n_samples} at {store.fs:g} Hz to train on, {len(val_N)} to validate on")
        say(f"{compose.row_of(cfg.model, compose.MODELS)}: {compose.n_parameters(made.model):,} parameters")
        if tokenizer is not None:
            tokens.described(tokenizer, cfg.tokens, store, train_N, cfg.model.n_positions)
    if app.dry_run:
        return dry_run(cfg, made, store) if world.is_main else None
    folder = open_run(app, cfg, store, np.concatenate([train_N, val_N]), world, tokenizer)
    cfg = tokens.located(cfg, folder.path)
    log = opened_log(app, cfg, folder) if world.is_main else None
    drawn = drawer(cfg, made, folder, store, log)
    with recoverable(folder.path):
        best = training.train(cfg, made, folder, log, resume=app.resume is not None, world=world, again=again(folder.path), draw=drawn)
    if not world.is_main:
        return None
    draw(cfg, made, folder, store)
    say(f"run folder: {folder.path}")
    summary: dict[str, object] = {"run": str(folder.path), **best}
    try:
        summary |= table(app, cfg, store, paths, folder) if app.table else {}
    except KeyboardInterrupt:
        raise console.Stopped(f"the network is trained; for the table: {console.command('pretrain', '--resume', folder.path)}") from None
    if app.save is None:
        return summary
    tokens.keep(tokenizer, hand_on(app.save, folder, store, scored=app.table, licence=app.licence, steps=best["steps"]))
    say(f"saved with its card: {app.save}")
    return summary | {"saved": str(app.save)}


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


def open_run(app: Pretrain, cfg: PretrainConfig, store: Store | Stores, seen_N: np.ndarray, world: World, tokenizer: Tokenizer | None = None) -> Run:
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
    made = Run.create(path, document, contract=compose.contract_of(cfg, store).to_json(), seen=compose.seen_of(store, seen_N, weights=cfg.weights))
    tokens.keep(tokenizer, made.path)
    meet()
    return made


def opened_log(app: Pretrain, cfg: PretrainConfig, folder: Run) -> Sink:
    """metrics.jsonl, and the sinks asked for beside it."""
    last = folder.latest_checkpoint() if app.resume is not None else None
    step = 0 if last is None else int(last.name.removeprefix("step_"))
    others = [open_sink(name, folder.path, run=folder.path.name, config=compose.to_json(cfg), step=step) for name in app.sinks]
    return Fan(JsonLines(folder.metrics_path), *others)


def draw(cfg: PretrainConfig, made: Parts, folder: Run, store: Store | Stores) -> None:
    """The loss figure, and fixed windows reconstructed by the best step."""
    figures.loss(folder.figures / "loss.png", folder.metrics())
    if hasattr(made.objective, "reconstruct"):
        model = from_pretrained(folder.path).model
        figures.reconstruction(folder.figures / "reconstruction.png", *reconstructed(cfg, made, model, fixed_windows(cfg, store)), store.fs)


def drawer(cfg: PretrainConfig, made: Parts, folder: Run, store: Store | Stores, log: Sink | None) -> Callable[[Progress], None] | None:
    """What draws the same windows every `cfg.figure_every` steps; all ranks compute, the one with a log writes. None where nothing is reconstructed."""
    if cfg.figure_every is None or not hasattr(made.objective, "reconstruct"):
        return None
    given = fixed_windows(cfg, store)

    def drawn(step: Progress) -> None:
        shown = reconstructed(cfg, made, step.state.eval_model, to_device(given, step.state.device))
        if log is not None:
            path = figures.reconstruction(folder.figures / f"reconstruction_{step.step}.png", *shown, store.fs)
            log.figure(step.step, "reconstruction", path)

    return drawn


def fixed_windows(cfg: PretrainConfig, store: Store | Stores) -> dict[str, Any]:
    """Six windows of the validation fold (the training folds without one), normalised."""
    rows_N = compose.validation_rows(cfg, store)
    rows_N = (rows_N if len(rows_N) else compose.rows_of(store, cfg.use))[:: max(1, len(rows_N) // 6)][:6]
    batch = {name: torch.as_tensor(value) for name, value in store.batch(rows_N).items() if name in ("signal", "index", "valid", "channel_present")}
    return batch | {"signal": normalize(batch["signal"], cfg.normalization, batch.get("valid"), None, batch.get("channel_present"))[0]}


@torch.no_grad()
def reconstructed(cfg: PretrainConfig, made: Parts, model: nn.Module, given: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal, reconstruction and what was hidden of the first channel, (6, T) each; masks are validation's."""
    with evaluating(model):
        out = made.objective.reconstruct(model, given, Step(nn.ModuleDict(), 1.0, Streams(cfg.fit.seed, VALIDATION_EPOCH)))
    shown = (given["signal"][:, 0], out.pred_BCT[:, 0].float(), out.mask_B1T[:, 0])
    return tuple(value.cpu().numpy() for value in shown)


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
    seen = compose.seen_of(store, seen_N, weights=cfg.weights)["subjects"]
    heading = heading_of(store, question.rows_N[spec.test], seen)
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
        encoded = made.model.eval().encode(batch["tokens" if "tokens" in batch else "signal"][:2])
    levels = {name: list(level.shape[1:]) for name, level in encoded.levels.items()}
    say(f"batch {tuple(batch['signal'].shape)}, loss {loss.total.item():.4f}; tokens and features of each level: {levels}")
    return {"dry_run": True, "batch": list(batch["signal"].shape), "loss": loss.total.item(), "levels": levels, "parameters": compose.n_parameters(made.model)}


if __name__ == "__main__":
    console.run(main)
