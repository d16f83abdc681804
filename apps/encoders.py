"""Where a table's features come from: a saved encoder, one pretrained inside a fold, the untrained twin, or a person's own list. N windows, D features."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import tokens
from compose import Cohort, PretrainConfig, Size, build_model, contract_of, fit_model_to, parts, row_of, seen_of, spec_of
from physio_data.store import Store, Stores
from physio_models import MODELS, OBJECTIVES, resolve
from physio_models.contract import Encoder, InputContract
from physio_models.pretrained import from_pretrained, save_pretrained
from physio_models.reference import reference_encoder
from physio_models.statistics import batch_norms, reestimate_statistics
from physio_train import FitConfig, Step, Streams, fit
from physio_train.embed import embed, signals
from questions import Question

INITIAL, UNMASKED, MASKED = "as initialised", "statistics of unmasked input", "statistics of masked input"
N_STATISTICS = 2048  # training windows that a twin's running statistics are estimated on
BATCH = 256
TWIN_SEED = 1000  # the twins' initialisations are those of seeds 1000, 1001, ...
NOTHING_SEEN = {"stores": [], "subjects": []}


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


def pretrained_here(cfg: PretrainConfig, folder: Path, seed: int, store: Store | Stores, rows_N: np.ndarray) -> Encoder:
    """The encoder pretrained on these rows alone, kept in `folder`; read back where an earlier run finished it."""
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
        raise ValueError(f"{folder} holds an encoder pretrained on other subjects than this fold trains on: choose another --out")
    return encoder
