"""Where a table's features come from: a saved encoder, one pretrained inside a fold, the untrained twin, or a person's own list.

A run's encoder can be handed on, with a card that says what it knows and what the floors know. N windows, D features.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tokens
from compose import Cohort, PretrainConfig, Size, build_model, contract_of, fit_model_to, parts, row_of, seen_of, spec_of
from physio_data.corpora import corpus
from physio_data.store import Store, Stores
from physio_models import MODELS, OBJECTIVES, resolve
from physio_models.card import FLOORS, Data, ModelCard, Score
from physio_models.contract import Encoder, InputContract
from physio_models.pretrained import from_pretrained, save_pretrained
from physio_models.reference import reference_encoder
from physio_models.statistics import batch_norms, reestimate_statistics
from physio_train import FitConfig, Run, Step, Streams, fit
from physio_train.embed import embed, signals
from pool import pooled
from questions import Question

INITIAL, UNMASKED, MASKED = "as initialised", "statistics of unmasked input", "statistics of masked input"
N_STATISTICS = 2048  # training windows that a twin's running statistics are estimated on
BATCH = 256
TWIN_SEED = 1000  # the twins' initialisations are those of seeds 1000, 1001, ...
NOTHING_SEEN = {"stores": [], "subjects": []}
UNSCORED = ("difference", "AUROC per record", "AUROC per fold", "MAE per fold")
"""Columns of a table that a card leaves out."""
LIMITS = "For research. Nothing here was validated for diagnosis or any other clinical use."


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an encoder comes from: a folder or an original's file, or a network as initialised."""

    path: str | None = None
    reference: str | None = None  # row of MODELS whose original wrote the file
    cfg: PretrainConfig | None = None  # of an untrained one
    seed: int = 0

    def open(self, store: Store | Stores) -> Encoder:
        if self.path is None:
            known = {"name": row_of(self.cfg.model, MODELS), "config": self.cfg.model, "seen": NOTHING_SEEN, "untrained": True}
            return tokens.attached(Encoder(build_model(self.cfg, self.seed), contract_of(self.cfg, store), **known), self.cfg.tokens.file)
        return reference_encoder(self.reference, self.path) if self.reference else tokens.attached(from_pretrained(self.path))


def chosen(
    store: Store | Stores,
    *,
    ckpt: Path | None,
    reference: str | None = None,
    model: str | None = None,
    init_seed: int = 0,
    size: Size = "fast",
    tokenizer: Path | None = None,
) -> Origin:
    """The encoder that an app's flags name: trained (`ckpt`) or as initialised (`model`, fitted to the store). ValueError unless it is one of them."""
    if (ckpt is None) == (model is None):
        raise ValueError("name one encoder: --ckpt P (trained), or --model NAME --init-seed N (untrained)")
    if model is None:
        if tokenizer is not None:
            raise ValueError("--tokenizer belongs to an untrained encoder: a trained one has its own beside it")
        return Origin(path=str(ckpt), reference=reference)
    if reference is not None:
        raise ValueError("--reference says whose file --ckpt is: leave it out with --model")
    cfg = fit_model_to(untrained_config(resolve(MODELS, model).preset(size), "instance_minmax"), store)
    if tokens.reads_tokens(cfg.model):
        if tokenizer is None:
            raise ValueError(f"{model} reads tokens: name a tokenizer's file with --tokenizer")
        cfg = tokens.settled(replace(cfg, tokens=replace(cfg.tokens, file=str(tokenizer))), tokens.read(tokenizer))
    return Origin(cfg=cfg, seed=init_seed)


def untrained_config(model: object, normalization: str) -> PretrainConfig:
    """The config of a network that no run made: its twins are masked by the first objective's defaults."""
    objective = resolve(OBJECTIVES, next(iter(OBJECTIVES)))()
    return PretrainConfig(cohort=Cohort(), model=model, objective=objective, fit=FitConfig(n_steps=1), normalization=normalization)


def encoder_features(encoder: Encoder, store: Store | Stores, question: Question) -> np.ndarray:
    """Features of a frozen encoder; its contract refuses a store that does not fit."""
    spec, read_out = spec_of(store), question.read_out

    def encode(batch: dict[str, Tensor]) -> Tensor:
        given = {"valid_BT": batch.get("valid"), "channel_present_BC": batch.get("channel_present")}
        return encoder.features(batch["signal"], spec, level=read_out.level, pool=read_out.pool, **given)

    return embed(encode, store, question.rows_N, batch_size=BATCH)


def twin_settings(cfg: PretrainConfig) -> tuple[str, ...]:
    """The normalisations at which a twin is tried: one for a network without running statistics, two where the objective hides nothing."""
    if not batch_norms(cfg.model.build()):
        return (INITIAL,)
    return (INITIAL, UNMASKED, MASKED) if hasattr(cfg.objective, "reconstruct") else (INITIAL, UNMASKED)


def twin(cfg: PretrainConfig, contract: InputContract, setting: str, seed: int, store: Store | Stores, rows_N: np.ndarray) -> Encoder:
    """The untrained net of a seed, with running statistics of the training rows met unmasked or masked where the setting says so."""
    model = build_model(cfg, TWIN_SEED + seed)
    encoder = tokens.attached(Encoder(model, contract, config=cfg.model, untrained=True), cfg.tokens.file)
    if setting == INITIAL:
        return encoder
    rows_N = rows_N[np.linspace(0, len(rows_N) - 1, min(N_STATISTICS, len(rows_N))).astype(np.int64)]
    batches = (encoder.prepare(x_NCT, spec_of(store))[0] for x_NCT in signals(store, rows_N, batch_size=BATCH))
    if setting == UNMASKED:
        reestimate_statistics(model, batches)
    else:
        step = Step(cfg.objective.modules(model), 1.0, Streams(TWIN_SEED + seed))
        reestimate_statistics(model, batches, lambda x: cfg.objective(model, {"signal": x, "index": torch.arange(len(x))}, step))
    return encoder


def pretrained_here(cfg: PretrainConfig, folder: Path, seed: int, store: Store | Stores, rows_N: np.ndarray, others: Sequence[Path | str] = ()) -> Encoder:
    """The encoder pretrained on these rows, and on stores of other subjects (`pool.pooled`), kept in `folder`; read back where an earlier run finished it."""
    if others:
        drawn = pooled(store, rows_N, others)
        cfg, store, rows_N = replace(cfg, mix=drawn.shares), drawn.stores, drawn.rows_N
    if cfg.weights:
        raise ValueError("an encoder that started from other weights cannot be pretrained on a fold's subjects alone: leave --cv-pretrain out")
    if tokens.reads_tokens(cfg.model) and not (folder / tokens.FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)  # cut off before its tokenizer was there
    if not folder.is_dir():
        cfg, tokenizer = fit_model_to(replace(cfg, fit=replace(cfg.fit, seed=seed)), store), None
        if tokens.reads_tokens(cfg.model):  # one that saw the fold's own subjects only
            tokenizer = tokens.tokenizer_for(replace(cfg.tokens, file="", vocabulary=""), store, rows_N, seed=seed)
            cfg = tokens.settled(cfg, tokenizer)
        made = parts(cfg, store, rows_N, np.zeros(0, np.int64), tokenizer=tokenizer)
        for step in fit(made.model, made.objective, made.batches, cfg.fit):
            state = step.state
        save_pretrained(folder, state.eval_model.cpu().eval(), cfg.model, contract_of(cfg, store), seen_of(store, rows_N))
        tokens.keep(tokenizer, folder)
    encoder = tokens.attached(from_pretrained(folder))
    if encoder.seen != seen_of(store, rows_N):
        raise ValueError(f"{folder} holds an encoder pretrained on other windows than those of this fold and its other corpora: choose another --out")
    return encoder


def check_free(folder: Path) -> None:
    """ValueError where something is in the folder already: better before the training than after."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--save {folder} is not empty: name another folder")


def hand_on(folder: Path, run: Run, store: Store | Stores, *, scored: bool, licence: str, steps: int) -> Path:
    """Write the run's best step, or its last, as `from_pretrained` reads it. ``scored`` says whether the run's table.json is of these weights."""
    encoder = from_pretrained(run.path)
    path = run.path / "table.json"
    table = json.loads(path.read_text(encoding="utf-8")) if scored and path.exists() else None
    scores = () if table is None else scores_of(table)
    card = ModelCard(
        licence=licence,
        summary=f"{encoder.name}, pretrained for {steps} steps by the recipe {run.config['recipe']} ({run.config['size']}).",
        data=data_of(store, encoder.seen or {}),
        scores=scores,
        heading=table["heading"] if scores else "",
        limits=LIMITS,
    )
    return save_pretrained(folder, encoder.model, encoder.config, encoder.contract, encoder.seen, card=card)


def data_of(store: Store | Stores, seen: Mapping[str, Any]) -> tuple[Data, ...]:
    """The corpora of the stores under their own licences; how many subjects, where there is one corpus."""
    parts = store.stores if isinstance(store, Stores) else (store,)
    names = list(dict.fromkeys(part.manifest["corpus"] for part in parts))
    rows = [corpus(name) for name in names]
    n_subjects = len(seen.get("subjects", ())) if len(rows) == 1 and rows[0].subjects == "known" else None
    return tuple(Data(name=row.title, licence=row.licence, n_subjects=n_subjects, url=row.url if row.url.startswith("http") else "") for row in rows)


def scores_of(table: Mapping[str, Any]) -> tuple[Score, ...]:
    """What a table.json says of the encoder, and of the floors on the same metrics; metrics without a floor are left out."""
    rows = {row["row"]: row for row in table["rows"]}
    own = rows["pretrained"]
    scores = []
    for metric, cell in own.items():
        floors = [name for name in FLOORS if name in rows and number(rows[name].get(metric)) is not None]
        if metric in UNSCORED or number(cell) is None or not floors:
            continue
        scores += [score(name, table["task"], metric, rows[name][metric]) for name in ("pretrained", *floors)]
    return tuple(scores)


def number(cell: Any) -> float | None:
    """A cell's figure; None where it has none, or is no cell."""
    return cell.get("value") if isinstance(cell, Mapping) else None


def score(row: str, task: str, metric: str, cell: Mapping[str, Any]) -> Score:
    """A cell as the card's line, with its interval where the figure lies inside it."""
    value, low, high = cell["value"], cell["low"], cell["high"]
    inside = low is not None and high is not None and low <= value <= high
    return Score(row=row, task=task, metric=metric, value=value, low=low if inside else None, high=high if inside else None)
