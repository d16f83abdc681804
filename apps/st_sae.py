"""The whole ST-SAE study: store, encoder, features, dictionaries, evaluation, age, grounding, page. Each stage goes on where it was stopped.

uv run apps/st_sae.py --out runs/st_sae                                            the built-in cohort and our own encoder; ten minutes on two quiet cores
uv run apps/st_sae.py --store stores/ppgbp --model papagei --init-seed 0 --encoder-size reference --views 0 --loss.stab 0 --loss.smooth 0 --out runs/ppgbp
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import tyro

import age
import compose
import console
import evaluate_sae
import ground
import pretrain
import report
import train_sae
from compose import Size
from console import say
from encoders import chosen
from features import read_as, write_features
from physio_data.store import Store
from physio_sae import leaderboard
from physio_sae.members import Member
from physio_sae.train import fit
from physio_sae.triplets import Features
from physio_train import Run
from physio_train.loop import default_device
from prepare import prepared
from recipes.st_sae import StudyConfig

STAGES = ("store", "encoder", "features", "saes", "evaluation", "age", "ground", "report")
PUBLISHED = {"windows_per_min": 30_000, "extraction_min": 40.0, "epoch_min": 2.0, "pipeline_h": 3.0}  # ST-SAE README, one A100
WINDOWS, TRIPLETS = 1_250_000, 1_000_000  # of those figures


@dataclass(frozen=True, kw_only=True)
class StSae:
    """Run the stages that are missing and print what they cost beside the published costs."""

    size: Size = "fast"
    """tiny: seconds; fast: ten minutes on two quiet cores; reference: the README's sweep."""
    out: Path | None = None
    """The study's folder. Default: runs/st_sae-SIZE."""
    store: Path | None = None
    """A prepared store to embed; augmented views need one prepared with --raw. Default: the recipe's own cohort."""
    pretrain_store: Path | None = None
    """A filtered store to pretrain our own encoder on, where --store is given and no encoder named."""
    ckpt: Path | None = None
    """A trained encoder: a run folder, a saved folder, or an original's file with --reference."""
    reference: str | None = None
    """The row of MODELS whose original wrote the file given by --ckpt."""
    model: str | None = None
    """An untrained encoder: a row of MODELS. Its tables say so."""
    init_seed: int = 0
    """The untrained encoder's initialisation."""
    encoder_size: Size = "fast"
    """The untrained encoder's preset."""
    until: str = "report"
    """The last stage to run."""
    workers: int = 0
    """Processes that prepare."""
    dry_run: bool = False
    """Print the stages and what is there already; write nothing."""
    cfg: Annotated[StudyConfig, tyro.conf.arg(name="")]


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--size")
    asked, _ = first.parse_known_args(arguments)
    size = asked.size if asked.size in get_args(Size) else "fast"
    app = tyro.cli(StSae, args=list(arguments), default=StSae(cfg=compose.recipe("st_sae", size), size=size), description=console.paragraphs(__doc__))
    if app.until not in STAGES:
        raise ValueError(f"--until must be one of {', '.join(STAGES)}, got {app.until!r}")
    if app.store is not None and app.ckpt is None and app.model is None and app.pretrain_store is None:
        raise ValueError("name an encoder for --store: --ckpt P, --model NAME, or --pretrain-store STORE to train our own on")
    out = app.out or Path("runs") / f"st_sae-{app.size}"
    if app.dry_run:
        there = [stage for stage in STAGES if done(out, stage)]
        say(f"{out}: {', '.join(there) or 'nothing'} done; to do: {', '.join(s for s in STAGES if s not in there)}")
        return {"dry_run": True, "done": there, "dictionaries": [m.name for m in app.cfg.members(app.cfg.sae.width)]}
    same_study(out, app)
    for stage in STAGES[: STAGES.index(app.until) + 1]:
        timed(out, stage, lambda stage=stage: RUN[stage](app, out))
    costs = projected(out, app)
    print(costs_table(costs, projected(out, app, "cpu_")))
    cpu_s = {stage: round(s["cpu_seconds"], 1) for stage, s in timings(out).items()}
    summary: dict[str, object] = {
        "study": str(out),
        "cpu_seconds": cpu_s,
        "stages": {stage: round(s["seconds"], 1) for stage, s in timings(out).items()},
        **costs,
    }
    return summary | ({"page": str(out / "report.html")} if done(out, "report") else {})


def same_study(out: Path, app: StSae) -> None:
    """Write config.json, or check that the folder's is this one. ValueError names the first key that differs."""
    named = {name: str(v) if (v := getattr(app, name)) is not None else None for name in ("size", "store", "pretrain_store", "ckpt", "reference", "model")}
    cfg = json.loads(json.dumps({**named, "init_seed": app.init_seed, "encoder_size": app.encoder_size, **asdict(app.cfg)}, default=str))
    path = out / "config.json"
    if not path.exists():
        leaderboard.write_json(path, cfg)
        return
    before = flat(json.loads(path.read_text(encoding="utf-8")))
    changed = [key for key, value in flat(leaderboard.plain(cfg)).items() if before.get(key) != value]
    if changed:
        raise ValueError(f"{out} holds a study with another {changed[0]} ({before.get(changed[0])!r}); give a new --out, or the same flags")


def flat(values: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {name: values}
    return {key: value for k, v in values.items() for key, value in flat(v, f"{name}.{k}".lstrip(".")).items()}


def done(out: Path, stage: str) -> bool:
    return stage in timings(out)


def timings(out: Path) -> dict[str, dict[str, Any]]:
    path = out / "stages.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def timed(out: Path, stage: str, run: Callable[[], Mapping[str, Any] | None]) -> None:
    """Run a stage that is not done, and note that it is, with its seconds and what it says of itself."""
    if done(out, stage):
        return
    say(f"--- {stage}")
    began, cpu = time.monotonic(), time.process_time()
    more = run() or {}
    spent = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}  # on a machine that is shared the second is the steadier one
    leaderboard.write_json(out / "stages.json", {**timings(out), stage: {**spent, **more}})


def store_stage(app: StSae, out: Path) -> None:
    """The unfiltered store that is embedded, and where our own encoder is trained its filtered twin."""
    if app.store is not None:
        return
    cohort = app.cfg.cohort.prepare_config()
    prepared(replace(cohort, raw=True), out / "store", workers=app.workers)
    if own_encoder(app):
        prepared(cohort, out / "store-filtered", workers=app.workers)


def encoder_stage(app: StSae, out: Path) -> None:
    """Our own encoder, where none is named; a run that was cut off goes on."""
    if not own_encoder(app):
        return
    run, store = out / "encoder", app.pretrain_store or out / "store-filtered"
    if (run / "config.json").exists() and any((run / "checkpoints").glob("step_*")):
        pretrain.main(["--resume", str(run), "--data", str(store), "--no-table"])
        return
    config = out / "pretrain.json"
    leaderboard.write_json(config, {"recipe": "himae_ppg", "size": app.size, "stores": [Store(store).hash], **compose.to_json(app.cfg.pretrain)})
    pretrain.main(["--config", str(config), "--data", str(store), "--out", str(run), "--no-table"])


def own_encoder(app: StSae) -> bool:
    return app.ckpt is None and app.model is None


def store_of(app: StSae, out: Path) -> Path:
    return app.store or out / "store"


def encoder_flags(app: StSae, out: Path) -> dict[str, Any]:
    """What names the encoder, for `chosen` and for ground.py."""
    if app.model is not None:
        return {"ckpt": None, "model": app.model, "init_seed": app.init_seed, "size": app.encoder_size}
    return {"ckpt": app.ckpt or out / "encoder", "reference": app.reference}


def features_stage(app: StSae, out: Path) -> dict[str, Any]:
    """Embeddings of every window and of its views, with the windows beside them."""
    store = Store(store_of(app, out))
    encoder = chosen(store, **encoder_flags(app, out)).open(store)
    if encoder.untrained:
        encoder.contract = replace(encoder.contract, band=read_as(store).band)
        say(f"the encoder {app.model!r} is untrained: its weights are those of seed {app.init_seed}")
    began, cpu = time.monotonic(), time.process_time()
    with console.progress("embed", len(store)) as show:
        write_features(
            encoder, store, out / "features", level=app.cfg.level, pool=app.cfg.pool, views=app.cfg.views, windows=True, progress=lambda n, _: show(n)
        )
    spent = {"encode_seconds": time.monotonic() - began, "encode_cpu_seconds": time.process_time() - cpu}
    return {"windows": len(store), "encodes": len(store) * (1 + app.cfg.views), **spent}


def saes_stage(app: StSae, out: Path) -> dict[str, Any]:
    """All dictionaries on one read of the features, then one on each half of the training patients; checkpoints on the way."""
    features = Features.open(out / "features")
    rows_N = features.rows(*compose.fold_names(app.cfg.train))
    found = app.cfg.members(features.width)
    spent = trained(app, features, rows_N, found, out)
    base = next(member for member in found if "_full_" in member.name)
    patients = np.random.default_rng(0).permutation(np.unique(features.subject[rows_N]))
    for half, own in zip(("a", "b"), np.array_split(patients, 2), strict=True):
        trained(app, features, rows_N[np.isin(features.subject[rows_N], own)], [base], out / "halves" / half)
    return spent


def trained(app: StSae, features: Features, rows_N: np.ndarray, found: Sequence[Member], out: Path) -> dict[str, Any]:
    """Train to the end, from the last checkpoint where there is one, and write the dictionaries to OUT/saes."""
    out.mkdir(parents=True, exist_ok=True)
    run = Run(out)
    if train_sae.complete(run, found):
        return {}
    newest = run.latest_checkpoint()
    run.truncate_metrics(int(newest.name.split("_")[1]) if newest else 0)
    steps = fit(features, rows_N, found, app.cfg.fit, device=default_device(), resume=newest)
    spent = train_sae.followed(run, steps, about={"features": str(features.path), "folds": list(app.cfg.train)}, again="the same command goes on")
    return {
        "dictionaries": len(found),
        "triplets": spent.triplets * len(found),
        "train_seconds": spent.seconds,
        "train_cpu_seconds": spent.cpu_seconds,
    }


def evaluation_stage(app: StSae, out: Path) -> None:
    evaluate_sae.main([str(out), *common(app, out), "--resamples", str(app.cfg.resamples)])


def age_stage(app: StSae, out: Path) -> dict[str, Any]:
    """Age, where ages are known; a corpus without says so and has no table."""
    study = evaluate_sae.opened(out / "features", app.cfg.train, app.cfg.test)
    if study.age_N is None:
        say("no ages: the stage is left out")
        return {"left_out": "no ages"}
    settings = age.Age(saes=out, data=out / "features", train=app.cfg.train, test=app.cfg.test, resamples=app.cfg.resamples, cfg=app.cfg.age)
    try:
        document = age.aged(settings, study, evaluate_sae.headline_of(evaluate_sae.members(out), None))
    except ValueError as error:
        say(f"no age table: {error}")
        return {"left_out": str(error)}
    leaderboard.write_json(out / "age" / "age.json", document)
    print(age.text_table(document))
    return {}


def ground_stage(app: StSae, out: Path) -> dict[str, Any]:
    """Grounding, where the signal's morphology is known."""
    study = evaluate_sae.opened(out / "features", app.cfg.train, app.cfg.test)
    flags = {name: value for name, value in encoder_flags(app, out).items() if value is not None}
    settings = ground.Ground(
        saes=out,
        data=out / "features",
        store=store_of(app, out),
        train=app.cfg.train,
        test=app.cfg.test,
        n_cards=app.cfg.n_cards,
        resamples=app.cfg.resamples,
        prefer=tuple(preferred(out)),
        **flags,
    )
    if ground.morphology(study, study.rows_N[:1]) is None:
        say("no morphology of this signal: the stage is left out")
        return {"left_out": "no morphology"}
    leaderboard.write_json(out / "ground" / "ground.json", ground.grounded(settings, study, evaluate_sae.headline_of(evaluate_sae.members(out), None)))
    return {}


def preferred(out: Path) -> list[int]:
    """Concepts that get a card first: those matched to a factor, then the age model's most stable ones."""
    evaluation = json.loads((out / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    found = [row["concept"] for row in evaluation["headline"]["factors"] if row["method"] == "sae" and row["concept"] is not None]
    path = out / "age" / "age.json"
    if path.exists():
        found += [row["concept"] for row in json.loads(path.read_text(encoding="utf-8"))["selected"][:4]]
    return list(dict.fromkeys(found))


def report_stage(app: StSae, out: Path) -> None:
    report.main([str(out)])


def common(app: StSae, out: Path) -> list[str]:
    return ["--data", str(out / "features"), "--train", *app.cfg.train, "--test", *app.cfg.test]


RUN: Mapping[str, Callable[[StSae, Path], Mapping[str, Any] | None]] = {
    "store": store_stage,
    "encoder": encoder_stage,
    "features": features_stage,
    "saes": saes_stage,
    "evaluation": evaluation_stage,
    "age": age_stage,
    "ground": ground_stage,
    "report": report_stage,
}


def projected(out: Path, app: StSae, clock: str = "") -> dict[str, float | None]:
    """Speeds of this run, and what the published amounts of work would take at them here. `clock` "cpu_": of CPU time, which other jobs cannot stretch."""
    found = timings(out)
    costs: dict[str, float | None] = dict.fromkeys(("windows_per_min", "extraction_min", "triplets_per_s", "epoch_min", "pipeline_h"))
    if seconds := found.get("features", {}).get(f"encode_{clock}seconds"):
        costs["windows_per_min"] = 60 * found["features"]["encodes"] / seconds
        costs["extraction_min"] = WINDOWS / costs["windows_per_min"]
    if seconds := found.get("saes", {}).get(f"train_{clock}seconds"):
        costs["triplets_per_s"] = found["saes"]["triplets"] / seconds
        costs["epoch_min"] = TRIPLETS / costs["triplets_per_s"] / 60
    if costs["extraction_min"] is not None and costs["epoch_min"] is not None:
        rest = sum(s[f"{clock}seconds"] for stage, s in found.items() if stage in ("evaluation", "age", "ground", "report"))
        costs["pipeline_h"] = (costs["extraction_min"] + costs["epoch_min"] * app.cfg.fit.n_epochs) / 60 + rest / 3600
    return costs


def costs_table(wall: Mapping[str, float | None], cpu: Mapping[str, float | None]) -> str:
    """Ours beside the published."""
    rows = {
        "windows_per_min": "windows encoded per minute",
        "extraction_min": "1.25 M windows, minutes",
        "triplets_per_s": "triplets per second, one dictionary",
        "epoch_min": "an epoch of 1 M triplets, one dictionary, minutes",
        "pipeline_h": "pipeline, hours (1.25 M windows, one dictionary, this run's evaluation)",
    }
    published = {**PUBLISHED, "triplets_per_s": TRIPLETS / 120}
    lines = ["| cost | this machine | of CPU time, one core | published, one A100 |", "|---|---|---|---|"]
    for key, name in rows.items():
        cells = ["" if costs[key] is None else f"{costs[key]:,.3g}" for costs in (wall, cpu)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {published[key]:,.3g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    console.run(main)
