"""Where a table's features come from: a saved encoder, one pretrained inside a fold, the untrained twin, or a person's own list. N windows, D features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compose import PretrainConfig, build_model, contract_of, fit_model_to, parts, seen_of, spec_of
from physio_data.store import Store, Stores
from physio_models.contract import Encoder, InputContract
from physio_models.pretrained import from_pretrained, save_pretrained
from physio_models.reference import reference_encoder
from physio_models.statistics import batch_norms, reestimate_statistics
from physio_train import Step, Streams, fit
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
            return Encoder(build_model(self.cfg, self.seed), contract_of(self.cfg, store), config=self.cfg.model, seen=NOTHING_SEEN, untrained=True)
        return reference_encoder(self.reference, self.path) if self.reference else from_pretrained(self.path)


def encoder_features(encoder: Encoder, store: Store | Stores, question: Question) -> np.ndarray:
    """Features of a frozen encoder; its contract refuses a store that does not fit."""
    spec, read_out = spec_of(store), question.read_out

    def encode(batch: dict[str, Tensor]) -> Tensor:
        return encoder.features(batch["signal"], spec, level=read_out.level, pool=read_out.pool, valid_BT=batch.get("valid"))

    return embed(encode, store, question.rows_N, batch_size=BATCH)


def twin_settings(cfg: PretrainConfig) -> tuple[str, ...]:
    """The normalisations at which a twin is tried: one for a network without running statistics, two where the objective hides nothing."""
    if not batch_norms(cfg.model.build()):
        return (INITIAL,)
    return (INITIAL, UNMASKED, MASKED) if hasattr(cfg.objective, "reconstruct") else (INITIAL, UNMASKED)


def twin(cfg: PretrainConfig, contract: InputContract, setting: str, seed: int, store: Store | Stores, rows_N: np.ndarray) -> Encoder:
    """The untrained net of a seed, with running statistics of the training rows met unmasked or masked where the setting says so."""
    model = build_model(cfg, TWIN_SEED + seed)
    encoder = Encoder(model, contract, untrained=True)
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
    if not folder.is_dir():
        cfg = fit_model_to(replace(cfg, fit=replace(cfg.fit, seed=seed)), store)
        made = parts(cfg, store, rows_N, np.zeros(0, np.int64))
        for step in fit(made.model, made.objective, made.batches, cfg.fit):
            state = step.state
        save_pretrained(folder, state.eval_model.cpu().eval(), cfg.model, contract_of(cfg, store), seen_of(store, rows_N))
    encoder = from_pretrained(folder)
    if encoder.seen != seen_of(store, rows_N):
        raise ValueError(f"{folder} holds an encoder pretrained on other subjects than this fold trains on: choose another --out")
    return encoder
