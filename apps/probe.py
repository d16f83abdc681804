"""Ask a frozen encoder one thing, beside its floors: the untrained twin, hand-crafted features and the subjects' own label rate.

uv run apps/probe.py --ckpt runs/a --data stores/mitbih --cv group                 cross-validated over subjects
uv run apps/probe.py --ckpt runs/a --data stores/mitbih --cv-pretrain --seeds 3    one encoder per fold, pretrained without its test subjects
uv run apps/probe.py --ckpt runs/a --train stores/mitbih --test stores/other       fitted on one store, scored on another
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

import compose
import console
import rows
import tokens
from compose import Cohort, PretrainConfig, ReadOut, Size
from console import say
from downstream import fitted_on, labels_of
from encoders import Origin, encoder_features
from handmade import has_handcrafted
from physio_data.store import Store, Stores
from physio_models import MODELS, OBJECTIVES, resolve
from physio_models.contract import Encoder
from physio_models.pretrained import save_pretrained
from physio_train import FitConfig, floors
from physio_train import predictions as prediction_files
from physio_train import probe as probes
from physio_train.folds import FoldSpec, outer_folds
from physio_train.run import write_json
from questions import Question, check_sides, heading_of, question_of, split_question
from rows import Job, Result


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A linear probe on frozen features: standardised, class-balanced, its regularisation chosen inside the training windows of every row."""

    ckpt: Path | None = None
    """A trained encoder: a run folder (its best step), a step folder, a saved folder, or an original's file with --reference."""
    reference: str | None = None
    """The row of MODELS whose original wrote the file given by --ckpt."""
    model: str | None = None
    """An untrained encoder instead: a row of MODELS."""
    init_seed: int = 0
    """The untrained encoder's initialisation."""
    size: Size = "fast"
    """The untrained encoder's preset."""
    data: tuple[Path, ...] = ()
    """Stores to fit and score on: their folds (train and val against test), or cross-validated with --cv."""
    train: tuple[Path, ...] = ()
    """Stores to fit on ..."""
    test: tuple[Path, ...] = ()
    """... and stores to score; subjects in both leave the training side."""
    lead: dict[str, str] | None = None
    """A channel's name and what some of the stores call it, as pairs: --lead ECG I."""
    use: str = ""
    """Folds of the stores: train=1-5,val=6,test=7-8. A val fold chooses regularisation and threshold; without one inner folds of the training subjects do."""
    cv: Literal["group"] | None = None
    """Cross-validate over subjects, reading every window."""
    cv_pretrain: bool = False
    """Pretrain anew in every outer fold, on its training subjects alone, with the run's own config. Interrupted, the same command goes on."""
    folds: int = 5
    """Outer folds."""
    seeds: int = 1
    """Pretraining seeds, with --cv-pretrain."""
    repeats: int = 1
    """Groupings of the subjects into folds."""
    task: str | None = None
    """A task of the store; needed where it has several."""
    level: str | None = None
    """A level of the encoder (L1 ...), or all of them. Default: the run's own read-out."""
    pool: Literal["mean", "max", "std", "peak", "mean+max", "mean+std", "mean+max+std", "tokens"] | None = None
    """How a level's tokens become one vector. Default: the run's own read-out."""
    twins: int = 5
    """Seeds of the untrained twin; 0 leaves it out."""
    fused: bool = False
    """A further row: the encoder's probe and the hand-made features' read-out, blended by the weight that inner folds of the training subjects prefer."""
    allow_shared_subjects: tuple[str, ...] = ()
    """Subjects that may be on both sides of --train and --test."""
    predictions: Path | None = None
    """Write every scored window here, as CSV."""
    out: Path | None = None
    """Folder for the table, the predictions and an encoder with head that --ckpt reads again. With --cv-pretrain by default runs/CKPT-probe."""
    jobs: int = min(2, os.cpu_count() or 1)
    """Processes, of one thread each. The figures do not depend on it."""
    dry_run: bool = False
    """Features of a few windows, shapes, no folder."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What is fitted on what and scored on what."""

    question: Question
    specs: tuple[FoldSpec, ...]
    heading: str
    notes: tuple[str, ...] = ()


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Probe, args=list(arguments), description=console.paragraphs(__doc__))
    check(app)
    paths, store = opened(app)
    origin, cfg = encoder_of(app, store)
    encoder = origin.open(store)
    encoder.contract.check(compose.spec_of(store))
    cfg = replace(cfg, probe=read_out(app, cfg))
    if app.dry_run:
        return dry_run(cfg, encoder, store)
    out = app.out or (Path("runs") / f"{app.ckpt.resolve().name}-probe" if app.cv_pretrain else None)
    protocol = protocol_of(app, cfg, store, paths, encoder)
    if out is not None:
        claim(out, app, cfg, store)
    row = "untrained" if encoder.untrained else "pretrained"
    try:
        result = rows.judged(
            protocol.question,
            jobs_of(app, cfg, protocol, origin, encoder, store, out, row),
            protocol.specs,
            heading=protocol.heading,
            n_processes=app.jobs,
            notes=protocol.notes,
        )
    except KeyboardInterrupt:
        kept = f"finished encoders stay in {out / 'encoders'}; " if app.cv_pretrain else ""
        raise console.Stopped(f"{kept}the same command goes on from there") from None
    rows.show(result)
    for path in (app.predictions, None if out is None else out / "predictions.csv"):
        if path is not None:
            prediction_files.write(path, result.predictions)
    if out is not None:
        keep(out, cfg, protocol, encoder, origin, result, store)
    return rows.summary(result) | {"out": out, "predictions": app.predictions or (out / "predictions.csv" if out else None)}


def check(app: Probe) -> None:
    """Refuse flags that contradict one another."""
    if (app.ckpt is None) == (app.model is None):
        raise ValueError("name one encoder: --ckpt P (trained), or --model NAME --init-seed N (untrained)")
    if bool(app.data) == bool(app.train or app.test) or bool(app.train) != bool(app.test):
        raise ValueError("name the data: --data STORE, or --train A --test B")
    if (app.cv or app.cv_pretrain) and (app.train or app.use):
        raise ValueError("--cv and --cv-pretrain read every window of --data; leave out --train, --test and --use")
    if app.cv_pretrain and (app.ckpt is None or app.reference):
        raise ValueError("--cv-pretrain repeats a run's own config: give its folder with --ckpt")
    if (app.seeds > 1 and not app.cv_pretrain) or (app.repeats > 1 and not (app.cv or app.cv_pretrain)):
        raise ValueError("--seeds needs --cv-pretrain, --repeats needs --cv group or --cv-pretrain")
    for name in ("folds", "seeds", "repeats"):
        if getattr(app, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(app, name)}")


def opened(app: Probe) -> tuple[Sequence[Path], Store | Stores]:
    """The stores that are named, and what they hold under one name for each channel."""
    paths = app.data or (*app.train, *app.test)
    store = compose.open_stores(paths, lead=app.lead)
    if app.fused and not has_handcrafted(store):
        raise ValueError("--fused: the store has no hand-made features, which are defined for ECG from 100 Hz and PPG from 25 Hz; leave it out")
    return paths, store


# The encoder


def encoder_of(app: Probe, store: Store | Stores) -> tuple[Origin, PretrainConfig]:
    """Where the encoder comes from, and the config that its twins (and its fold's encoders) are built from."""
    if app.model is not None:
        cfg = compose.fit_model_to(plain_config(resolve(MODELS, app.model).preset(app.size), "instance_minmax"), store)
        return Origin(cfg=cfg, seed=app.init_seed), cfg
    origin = Origin(path=str(app.ckpt), reference=app.reference)
    for home in () if app.reference else (app.ckpt, app.ckpt.parent.parent):
        if (home / "config.json").is_file() and "fit" in (values := json.loads((home / "config.json").read_text(encoding="utf-8"))):
            cfg = compose.from_json({key: value for key, value in values.items() if key not in ("recipe", "size", "data", "stores")})
            return origin, tokens.located(cfg, home)
    encoder = origin.open(store)
    if app.cv_pretrain:
        raise ValueError(f"--cv-pretrain repeats a run's own config, and {app.ckpt} has none (a saved model only): give the run folder")
    return origin, plain_config(encoder.config, encoder.contract.normalization)


def plain_config(model: object, normalization: str) -> PretrainConfig:
    """The config of a network that no run made: its twins are masked by the first objective's defaults."""
    objective = resolve(OBJECTIVES, next(iter(OBJECTIVES)))()
    return PretrainConfig(cohort=Cohort(), model=model, objective=objective, fit=FitConfig(n_steps=1), normalization=normalization)


def read_out(app: Probe, cfg: PretrainConfig) -> ReadOut:
    """The run's own read-out, but for what is named."""
    named = {name: getattr(app, name) for name in ("task", "level", "pool") if getattr(app, name) is not None}
    return replace(cfg.probe, twins=app.twins, **named)


# What is fitted and scored


def protocol_of(app: Probe, cfg: PretrainConfig, store: Store | Stores, paths: Sequence[Path], encoder: Encoder) -> Protocol:
    """Windows, sides and heading; what every row reads has the channels' names with it."""
    found, lead = _protocol_of(app, cfg, store, paths, encoder), tuple((app.lead or {}).items())
    notes = tuple(f"channel {theirs} taken for {name}" for name, theirs in lead)
    return replace(found, question=replace(found.question, lead=lead), notes=(*found.notes, *notes))


def _protocol_of(app: Probe, cfg: PretrainConfig, store: Store | Stores, paths: Sequence[Path], encoder: Encoder) -> Protocol:
    seen = None if encoder.seen is None else encoder.seen["subjects"]
    if app.cv or app.cv_pretrain:
        question = question_of(store, paths, np.arange(len(store)), cfg.probe)
        seeds = tuple(range(app.seeds))
        specs = tuple(outer_folds(question.windows.groups, question.windows.y, n_folds=app.folds, repeats=app.repeats, seeds=seeds))
        heading = heading_of(store, question.rows_N, () if app.cv_pretrain else seen)  # inside a fold pretraining sees no test window
        return Protocol(question=question, specs=specs, heading=heading, notes=())
    if app.train:
        return between_stores(app, cfg, store, paths, seen)
    chosen = folds_of(app, cfg, store)
    question, spec = split_question(store, paths, cfg.probe, **chosen)
    notes = check_sides(question, spec, store)
    return Protocol(question=question, specs=(spec,), heading=heading_of(store, question.rows_N[spec.test], seen), notes=notes)


def folds_of(app: Probe, cfg: PretrainConfig, store: Store | Stores) -> dict[str, np.ndarray]:
    """Rows by side: what --use names, else the run's own read-out (train and val against test)."""
    if app.use:
        return {{"val": "validation"}.get(side, side): compose.rows_of(store, names) for side, names in sides(app.use).items()}
    there = set(np.unique(store.index["fold"]).tolist())
    train, test = ([name for name in compose.fold_names(names) if name in there] for names in (cfg.probe.train, cfg.probe.test))
    if not train or not test:
        raise ValueError(f"the store's folds are {', '.join(sorted(there))}: name them with --use train=...,test=..., or cross-validate with --cv group")
    return {"train": store.rows(tuple(train)), "test": store.rows(tuple(test))}


def sides(use: str) -> dict[str, tuple[str, ...]]:
    """`train=1-5,val=6,test=7+8` -> {"train": ("1-5",), "val": ("6",), "test": ("7", "8")}."""
    out = {}
    for part in use.split(","):
        side, equals, names = part.partition("=")
        if side not in ("train", "val", "test") or not equals or not names:
            raise ValueError(f"--use must read train=FOLDS[,val=FOLDS],test=FOLDS, got {use!r}; several folds as 1-5 or 1+2")
        out[side] = tuple(names.split("+"))
    if not {"train", "test"} <= out.keys():
        raise ValueError(f"--use must name a train and a test side, got {use!r}")
    return out


def between_stores(app: Probe, cfg: PretrainConfig, store: Store | Stores, paths: Sequence[Path], seen: Sequence[str] | None) -> Protocol:
    """Fitted on one store, scored on another: shared subjects leave the training side, subjects seen in pretraining the headline."""
    store = store if isinstance(store, Stores) else Stores([store])
    n_train = sum(len(member) for member in store.stores[: len(app.train)])
    train, test, held = np.arange(n_train), np.arange(n_train, len(store)), None
    if app.use:
        named, fold_N = sides(app.use), store.index["fold"]
        held = train[np.isin(fold_N[train], compose.fold_names(named["val"]))] if "val" in named else None
        train = train[np.isin(fold_N[train], compose.fold_names(named["train"]))]
        test = test[np.isin(fold_N[test], compose.fold_names(named["test"]))]
    everyone = store.index["subject"]  # of a corpus that does not say whose they are, the recordings: they too are on one side alone
    fitted = train if held is None else np.concatenate([train, held])
    stays, shared = floors.without_shared(everyone[fitted], everyone[test], allowed=app.allow_shared_subjects)
    train, held = train[stays[: len(train)]], None if held is None else held[stays[len(train) :]]
    notes = []
    if shared:
        what = "subjects" if store.manifest.get("subjects", "known") == "known" else "recordings"
        notes.append(f"{len(shared)} {what} are in both stores: their {int((~stays).sum())} windows left the training side ({', '.join(shared[:5])})")
    if app.allow_shared_subjects:
        notes.append(f"allowed on both sides: {', '.join(app.allow_shared_subjects)}")
    new = floors.unseen(everyone[test], seen)
    if new.any() and not new.all():
        notes.append(f"{int((~new).sum())} windows of {len(np.unique(everyone[test][~new]))} subjects that pretraining saw are left out of the headline")
        test = test[new]
    question, spec = split_question(store, paths, cfg.probe, train=train, test=test, validation=held)
    return Protocol(question=question, specs=(spec,), heading=heading_of(store, question.rows_N[spec.test], seen), notes=tuple(notes))


def jobs_of(
    app: Probe, cfg: PretrainConfig, protocol: Protocol, origin: Origin, encoder: Encoder, store: Store | Stores, out: Path | None, row: str
) -> list[Job]:
    """The encoder's jobs, the longest first, and the floors'."""
    question, specs = protocol.question, protocol.specs
    if app.cv_pretrain:
        own = [
            Job(row=row, source="inductive", specs=(spec,), question=question, seed=spec.seed, cfg=cfg, folder=str(fold_folder(out, spec))) for spec in specs
        ]
    else:
        own = [Job(row=row, source="encoder", specs=specs, question=question, encoder=origin, seed=origin.seed if encoder.untrained else cfg.fit.seed)]
    if app.fused:
        own += [replace(job, row=f"{row}+handcrafted", source="fused") for job in own]
    return own + rows.floor_jobs(question, cfg, replace(encoder.contract, fingerprint=()), specs, store)


def fold_folder(out: Path, spec: FoldSpec) -> Path:
    return out / "encoders" / f"seed{spec.seed}_repeat{spec.repeat}_fold{spec.fold}"


# The output folder


def claim(out: Path, app: Probe, cfg: PretrainConfig, store: Store | Stores) -> None:
    """Make the folder; an unfinished one is gone on with only for the same question, so that no stale encoder is read."""
    asked = {"stores": store.hash.split(","), "task": cfg.probe.task, "folds": app.folds, "pretrain": {**compose.to_json(cfg), "probe": None}}
    path = out / "asked.json"
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(asked)):
            raise ValueError(f"{out} holds a probe of another encoder, config or store: choose another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def keep(out: Path, cfg: PretrainConfig, protocol: Protocol, encoder: Encoder, origin: Origin, result: Result, store: Store | Stores) -> None:
    """Table, and the encoder with a head fitted on all training windows, as a folder that --ckpt reads."""
    write_json(out / "table.json", result.table.to_json())
    (out / "table.md").write_text(result.table.markdown() + "\n", encoding="utf-8")
    every = np.unique(np.concatenate([spec.train for spec in protocol.specs]))
    spec = FoldSpec(seed=0, repeat=0, fold=0, train=every, test=every[:1])
    final = rows.work(Job(row="final", source="encoder", specs=(spec,), question=protocol.question, encoder=origin))
    read, question = cfg.probe, protocol.question
    more = {"task": question.task.name, "level": read.level, "pool": read.pool, "untrained": encoder.untrained}
    more |= {"fitted": fitted_on(store, question, every), "labels": labels_of(store, question.task.name)}
    saved = replace(final.probe, more=more)
    temporary = out / ".encoder"
    shutil.rmtree(temporary, ignore_errors=True)
    save_pretrained(temporary, encoder.model, encoder.config, replace(encoder.contract, fingerprint=()), encoder.seen)
    tokens.keep(tokens.tokenizer_of(encoder), temporary)
    for file in temporary.iterdir():
        file.replace(out / file.name)
    temporary.rmdir()
    write_json(out / "config.json", compose.to_json(replace(cfg, model=encoder.config)))
    probes.save(out, saved)


def dry_run(cfg: PretrainConfig, encoder: Encoder, store: Store | Stores) -> dict[str, object]:
    """Features of a few windows; nothing is written."""
    question = question_of(store, (), np.arange(min(8, len(store))), cfg.probe)
    features = encoder_features(encoder, store, question)
    say(f"{len(store)} windows; features {features.shape} of level {cfg.probe.level}, pool {cfg.probe.pool}; task {question.task.name} ({question.task.kind})")
    return {"dry_run": True, "features": list(features.shape), "task": question.task.name, "windows": len(store)}


if __name__ == "__main__":
    console.run(main)
