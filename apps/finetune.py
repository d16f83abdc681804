"""Train an encoder with a head on labels, beside what it must beat: the same encoder frozen, neighbours, training from scratch, and the floors.

uv run apps/finetune.py --ckpt runs/a --data stores/mitbih --cv group --head query_pool
uv run apps/finetune.py --ckpt runs/a --data stores/ptbxl --use train=1-5,val=6,test=7-8 --task superclass --fractions 0.01 0.05 0.1 1 --out runs/tuned
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tyro

import compose
import console
import probe
import rows
from console import say
from downstream import TuneConfig, save_tuned
from downstream import notes_of as tuning_notes
from encoders import Origin
from physio_models import MODELS, resolve
from physio_models.contract import Encoder
from physio_train import predictions as prediction_files
from physio_train.folds import FoldSpec
from physio_train.run import write_json
from questions import Question
from rows import Job

SCRATCH = "resnet1d"  # row of MODELS that is trained from labels alone


@dataclass(frozen=True, kw_only=True)
class Finetune(probe.Probe):
    """Fine-tuning of the whole encoder. Epoch and thresholds are chosen on a validation fold, or on a fifth of the training subjects with two classes in it."""

    tune: tyro.conf.OmitArgPrefixes[TuneConfig] = field(default_factory=TuneConfig)
    """How the head is made and trained."""
    fractions: tuple[float, ...] = (1.0,)
    """Shares of the training subjects whose labels are kept: a few-shot curve."""
    frozen: bool = True
    """Also the same encoder frozen: linear probe and nearest neighbours."""
    scratch: bool = True
    """Also a residual network trained from scratch."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Finetune, args=list(arguments), description=console.paragraphs(__doc__))
    probe.check(app)
    if app.cv_pretrain:
        raise ValueError("--cv-pretrain belongs to probe.py and leaderboard.py; fine-tuning starts from one encoder")
    paths, store = probe.opened(app)
    origin, cfg = probe.encoder_of(app, store)
    encoder = origin.open(store)
    encoder.contract.check(compose.spec_of(store))
    tune = app.tune if app.level is None else replace(app.tune, level=app.level)
    cfg = replace(cfg, probe=probe.read_out(app, cfg))
    if app.dry_run:
        return probe.dry_run(cfg, encoder, store)
    protocol = probe.protocol_of(app, cfg, store, paths, encoder)
    if app.out is not None:
        probe.claim(app.out, app, cfg, store)
    jobs = jobs_of(app, tune, protocol.question, protocol.specs, origin, store)
    notes = (*protocol.notes, *notes_of(jobs))
    jobs += rows.floor_jobs(protocol.question, cfg, replace(encoder.contract, fingerprint=()), protocol.specs, store)
    result = rows.judged(protocol.question, jobs, protocol.specs, heading=protocol.heading, n_processes=app.jobs, notes=notes)
    rows.show(result)
    for path in (app.predictions, None if app.out is None else app.out / "predictions.csv"):
        if path is not None:
            prediction_files.write(path, result.predictions)
    if app.out is not None:
        keep(app.out, tune, protocol, encoder, origin, result, cfg)
    return rows.summary(result) | {"out": app.out, "predictions": app.predictions or (app.out / "predictions.csv" if app.out else None)}


def jobs_of(app: Finetune, tune: TuneConfig, question: Question, specs: Sequence[FoldSpec], origin: Origin, store) -> list[Job]:
    """The fine-tuned rows, the frozen ones and the one from scratch, at every fraction of the labels; the whole first."""
    jobs = []
    for fraction in sorted(app.fractions, reverse=True):
        name = "" if fraction == 1 else f" {100 * fraction:g} %"
        common = {"specs": tuple(specs), "question": question, "fraction": fraction}
        jobs.append(Job(row=f"finetuned{name}", source="encoder", encoder=origin, tuned=tune, **common))
        if app.frozen:
            jobs.append(Job(row=f"linear{name}", source="encoder", encoder=origin, **common))
            jobs.append(Job(row=f"knn{name}", source="encoder", encoder=origin, neighbours=True, **common))
        if app.fused:
            jobs.append(Job(row=f"linear+handcrafted{name}", source="fused", encoder=origin, **common))
        if app.scratch:
            scratch = replace(tune, layer_decay=1.0, head="linear", level="all")
            jobs.append(Job(row=f"supervised{name}", source="encoder", encoder=scratch_origin(store, app.size), tuned=scratch, **common))
    return jobs


def notes_of(jobs: Sequence[Job]) -> list[str]:
    """Which rows have fewer labels than the floors beside them, and which fine-tuned ones had no validation side to choose a pass by."""
    notes = []
    if any(job.fraction < 1 for job in jobs):
        notes.append("twin, handcrafted and leak read the labels of all training subjects, also beside rows with a share of them (%)")
    for job in jobs:
        if job.tuned is None or job.tuned.keep == "last":
            continue
        found = Counter(note for spec in job.specs for note in tuning_notes(job.question.task, job.question.windows.y[rows.sides(job, spec)[1]]))
        for note, n in found.items():
            where = "" if len(job.specs) == 1 else f"in {n} of {len(job.specs)} folds "
            notes.append(f"{job.row}: {where}{note}")
    return notes


def scratch_origin(store, size: str, seed: int = 0) -> Origin:
    """The network trained from labels alone: `SCRATCH`, as initialised, on z-scored windows."""
    return Origin(cfg=compose.fit_model_to(probe.plain_config(resolve(MODELS, SCRATCH).preset(size), "lead_zscore"), store), seed=seed)


def keep(out: Path, tune: TuneConfig, protocol: probe.Protocol, encoder: Encoder, origin: Origin, result: rows.Result, cfg: compose.PretrainConfig) -> None:
    """The table, and an encoder with head trained on all training windows, as a folder that evaluate.py and predict.py read."""
    write_json(out / "table.json", result.table.to_json())
    (out / "table.md").write_text(result.table.markdown() + "\n", encoding="utf-8")
    every = np.unique(np.concatenate([spec.train for spec in protocol.specs]))
    spec = FoldSpec(seed=0, repeat=0, fold=0, train=every, test=every[:1])
    final = rows.work(Job(row="final", source="encoder", specs=(spec,), question=protocol.question, encoder=origin, tuned=tune))
    temporary = out / ".encoder"
    shutil.rmtree(temporary, ignore_errors=True)
    save_tuned(temporary, final.probe.tuned)
    for note in final.probe.tuned.notes:
        say(f"{out}: {note}")
    for file in temporary.iterdir():
        file.replace(out / file.name)
    temporary.rmdir()
    write_json(out / "config.json", compose.to_json(replace(cfg, model=encoder.config)))
    say(f"{out}: encoder and head, for evaluate.py --ckpt {out}")


if __name__ == "__main__":
    console.run(main)
