"""Train sparse autoencoders on a folder of features: one, or every (K, ablation, seed) of a sweep on one read of the cache.

uv run apps/train_sae.py --data features/a --out runs/sae --concepts 256 512 1024 --ablations full no_smooth topk --seeds 0 1
uv run apps/train_sae.py --resume runs/sae                  goes on where it was stopped
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro

import compose
import console
from console import say
from physio_sae.controller import L0Control
from physio_sae.kernels import topk_overlap
from physio_sae.losses import LossConfig
from physio_sae.members import ABLATIONS, Member, grid
from physio_sae.sae import Kind, Norm, SaeConfig
from physio_sae.splits import join
from physio_sae.train import FitConfig, Progress, fit
from physio_sae.triplets import Features, Triplets
from physio_train import JsonLines, NonFiniteLossError, Run
from physio_train.loop import default_device

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Dictionary:
    """The autoencoder; its width is that of the features."""

    kind: Kind = "relu"
    """How a code is made; see physio_sae.sae.SaeConfig."""
    k: int = 32
    """Concepts per window of topk, batch_topk, matryoshka and archetypal."""
    prefixes: tuple[int, ...] = ()
    """matryoshka: sizes of the nested dictionaries at the first of --concepts."""
    n_points: int = 512
    """archetypal: data points that atoms mix."""
    relaxation: float = 0.1
    """archetypal: distance of an atom from their hull."""
    bandwidth: float = 0.02
    """jumprelu: width of the kernel for thresholds."""
    norm: Norm = "scalar"
    """Normalisation of the embeddings, stored with the weights."""
    unit_norm: bool = True
    """Atoms of length 1."""


@dataclass(frozen=True, kw_only=True)
class TrainSae:
    """Train sparse autoencoders. Sizes in windows, lengths in steps of the optimiser; weights of losses in units where E|x|^2 = 1, none of them published."""

    data: tuple[Path, ...] = ()
    """Folders of features, of one encoder (apps/embed.py)."""
    out: Path | None = None
    """The run folder; dictionaries go to OUT/saes/K_ABLATION_SEED. Default: runs/sae-TIME."""
    resume: Path | None = None
    """A run folder, to go on from its last checkpoint; other flags are as it was started."""
    concepts: tuple[int, ...] = (1024,)
    """Dictionary sizes K."""
    ablations: tuple[str, ...] = ("full",)
    """Rows of the table of ablations: full no_div no_stab no_smooth vanilla topk no_renorm no_sp no_aux."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the initial weights."""
    use: tuple[str, ...] = ("train",)
    """Folds to train on; a range of numbers too: 1-8."""
    sae: Dictionary = field(default_factory=Dictionary)
    loss: LossConfig = field(default_factory=LossConfig)
    control: L0Control = field(default_factory=lambda: L0Control(target=32.0))
    """Holds relu, jumprelu and gated at a mean L0, so that ablations compare."""
    fit: FitConfig = field(default_factory=FitConfig)
    device: Device = "auto"
    log_every: int = 20
    dry_run: bool = False
    """One step, losses and shapes, no folder."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(TrainSae, args=arguments, description=TrainSae.__doc__)
    if app.resume is not None:
        app = replace(saved(app.resume), resume=app.resume, out=app.resume)
    if not app.data:
        raise ValueError("--data is missing: name a folder of features, which apps/embed.py makes from a store")
    features = opened(app.data)
    rows_N = features.rows(*compose.fold_names(app.use))
    members = members_of(app, features.width)
    say(f"{len(rows_N)} windows of {len(np.unique(features.subject[rows_N]))} patients, width {features.width}, {features.n_views} augmented views")
    say(f"{len(members)} autoencoders: {', '.join(m.name for m in members[:8])}{' ...' if len(members) > 8 else ''}")
    device = default_device() if app.device == "auto" else torch.device(app.device)
    if app.dry_run:
        return dry_run(app, features, rows_N, members, device)
    return trained(app, features, rows_N, members, device)


def saved(folder: Path) -> TrainSae:
    """The flags that a run was started with."""
    values = dict(Run.open(folder).config)
    values["data"] = tuple(map(Path, values.pop("data")))
    return compose.build(TrainSae, values, str(folder / "config.json"))


def opened(paths: Sequence[Path]) -> Features:
    """One folder of features, or several as one with ids named by folder."""
    parts = [Features.open(path) for path in paths]
    return parts[0] if len(parts) == 1 else join(parts, [path.name for path in paths])


def members_of(app: TrainSae, width: int) -> list[Member]:
    unknown = [name for name in app.ablations if name not in ABLATIONS]
    if unknown:
        raise ValueError(f"--ablations {unknown[0]!r} is no row of the table: it has {', '.join(ABLATIONS)}")
    if not (app.concepts and app.ablations and app.seeds):
        raise ValueError("--concepts, --ablations and --seeds each need at least one value")
    base = Member(name="base", sae=SaeConfig(width=width, n_concepts=app.concepts[0], **asdict(app.sae)), loss=app.loss, control=app.control)
    return grid(base, n_concepts=app.concepts, ablations=app.ablations, seeds=app.seeds)


def trained(app: TrainSae, features: Features, rows_N: np.ndarray, members: Sequence[Member], device: torch.device) -> dict[str, object]:
    """The run: a new folder, or one that goes on."""
    if app.resume is None:
        config = {key: value for key, value in asdict(replace(app, resume=None)).items() if key not in ("resume", "dry_run", "out")}
        steps = fit(features, rows_N, members, app.fit, device=device)
        steps = chain([next(steps)], steps)  # data that cannot serve is refused before a folder is made
        run = Run.create(app.out or Path("runs") / time.strftime("sae-%Y%m%d-%H%M%S"), config)
    else:
        run = Run.resume(app.resume)
        if complete(run, members):
            say("the run had already ended")
            return {"run": str(run.path), "saes": len(members), "already_finished": True}
        steps = fit(features, rows_N, members, app.fit, device=device, resume=run.latest_checkpoint())
    about = {
        "features": [str(path) for path in app.data],
        "use": list(app.use),
        "n_windows": len(rows_N),
        "n_patients": len(np.unique(features.subject[rows_N])),
    }
    found = followed(run, steps, about=about, again=f"go on with: {console.command('train_sae', '--resume', run.path)}", log_every=app.log_every)
    progress, n_triplets = found.last, found.triplets
    summary = {"run": str(run.path), "saes": len(progress.trainers), "steps": progress.n_steps, "seconds": round(found.seconds, 1)}
    per_s = n_triplets / max(1e-9, found.seconds)
    summary |= {"triplets_per_s": round(per_s), "sae_triplets_per_s": round(len(progress.trainers) * per_s)}
    return summary | {"rows_read": progress.triplets.rows_read, "last": progress.numbers()} | overlap(app, progress, features, rows_N)


@dataclass(frozen=True)
class Followed:
    """A training that came to its end, and what it took from its first step on."""

    last: Progress
    triplets: int  # of each autoencoder
    seconds: float
    cpu_seconds: float


def followed(run: Run, steps: Iterable[Progress], *, about: Mapping[str, object], again: str, log_every: int = 20) -> Followed:
    """Take `fit` to its end: numbers to metrics.jsonl, checkpoints on the way, the dictionaries to RUN/saes with `about` beside their config.

    Ctrl-C saves and raises Stopped, whose text ends in `again`; Failed where a loss is not finite, or where nothing is left to train.
    """
    first, progress, log = 0, None, JsonLines(run.metrics_path)
    began, cpu = time.monotonic(), time.process_time()
    report: console.Report = lambda done, text="": None  # noqa: E731
    try:
        with console.Interrupts() as interrupts, ExitStack() as shown:
            for progress in steps:
                last = progress.step == progress.n_steps
                if not first:
                    first, began, cpu = progress.step, time.monotonic(), time.process_time()
                    report = shown.enter_context(console.progress("train", progress.n_steps))
                if progress.step % log_every == 0 or last:
                    numbers = progress.numbers()
                    log.numbers(progress.step, {f"{name}/{key}": value for name, found in numbers.items() for key, value in found.items()})
                    l0 = [found["l0"] for found in numbers.values()]
                    one = numbers[progress.trainers[0].name]
                    report(progress.step, f"{progress.trainers[0].name}: rec {one['rec']:.3f}, {one['dead']:.0f} dead; L0 {min(l0):.1f} to {max(l0):.1f}")
                if last:
                    progress.save_saes(run.path / "saes", extra=about)
                if progress.checkpoint_due or interrupts.asked:
                    progress.save(run.checkpoints)
                if interrupts.asked and not last:
                    raise console.Stopped(f"saved step {progress.step} of {progress.n_steps}; {again}")
    except NonFiniteLossError as error:
        raise console.Failed(str(error)) from None
    finally:
        log.close()
    if progress is None:
        raise console.Failed(f"{run.checkpoints} is at its last step, but dictionaries are missing beside it; remove {run.checkpoints} and run again")
    spent = (time.monotonic() - began, time.process_time() - cpu)
    return Followed(progress, (progress.step - first) * progress.triplets.batch_size, *spent)


def complete(run: Run, members: Sequence[Member]) -> bool:
    """Whether every dictionary was written, which happens at the last step."""
    return all((run.path / "saes" / member.name / "sae.safetensors").exists() for member in members)


def overlap(app: TrainSae, progress: Progress, features: Features, rows_N: np.ndarray) -> dict[str, object]:
    """With a bfloat16 encode: the share of float32's top k that it finds, mean over the first windows, for every member that selects."""
    if app.fit.encode_dtype == "float32":
        return {}
    found = {}
    for t in progress.trainers:
        if t.member.sae.selects:
            x_ND = t.sae.normalise(torch.from_numpy(features.z(rows_N[:2048])).to(t.device))
            found[t.name] = round(topk_overlap(x_ND, t.sae.W_enc, t.sae.b_enc, t.sae.b_dec, t.member.sae.k), 5)
    return {"bfloat16_topk_overlap": found}


def dry_run(app: TrainSae, features: Features, rows_N: np.ndarray, members: Sequence[Member], device: torch.device) -> dict[str, object]:
    """The first step of every member; nothing is written."""
    progress = next(fit(features, rows_N, members, app.fit, device=device))
    triplets: Triplets = progress.triplets
    say(f"{triplets.batch_size} windows a step, {progress.n_steps} steps, {triplets.n_pairs} windows with a follower, {len(triplets.rows)} in all")
    first = {name: {key: round(value, 5) for key, value in found.items()} for name, found in progress.numbers().items()}
    say(json.dumps(first))
    n_parameters = sum(p.numel() for t in progress.trainers for p in t.parameters.values())
    return {
        "dry_run": True,
        "members": len(members),
        "steps": progress.n_steps,
        "parameters": n_parameters,
        "bytes": 16 * n_parameters,
        "pairs": triplets.n_pairs,
    }


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
