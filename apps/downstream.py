"""Fine-tuned encoders and saved read-outs: trained, written, read back, applied to windows. N windows, K score columns.

A folder that `--ckpt` reads holds the encoder as `save_pretrained` writes it, and `head.json` with `head.safetensors`: a probe's (`physio_train.probe`), or a
fine-tuned head's. One with `minirocket.json` holds fixed convolutions and a ridge (`physio_train.minirocket`) instead of an encoder.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file

import compose
import tokens
from physio_data.store import Store, Stores
from physio_models.contract import Encoder, InputContract, SignalSpec
from physio_models.pooling import pool_levels
from physio_models.pretrained import from_pretrained, save_pretrained
from physio_models.reference import load_reference, reference_encoder
from physio_train import Batches, FitConfig, fit, minirocket
from physio_train import finetune as tuning
from physio_train import probe as probes
from physio_train.floors import headline
from physio_train.heads import Classifier, HeadConfig, HeadName, freeze_unused, level_widths
from physio_train.losses import LossName
from physio_train.metrics import best_threshold
from physio_train.protocol import Task
from physio_train.run import write_json
from questions import Question

HEAD_FILE, META_FILE = "head.safetensors", "head.json"
BATCH = 256


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How an encoder and a head are trained on labels."""

    head: HeadName = "linear"
    """What makes tokens a vector: linear (mean, maximum, deviation), attention, query_pool (also: cot), or the network's own pooling (pooled)."""
    level: tyro.conf.Suppress[str] = "all"  # a level of the encoder, or all of them: the app's own --level
    loss: LossName = "cross_entropy"
    """cross_entropy, focal, or arcface."""
    balanced: bool = True
    """Weigh classes by inverse frequency."""
    smoothing: float = 0.0
    """Share of a target that is spread over all classes."""
    mixup: float = 0.0
    """Alpha of mixup; 0 mixes nothing."""
    layer_decay: float = 0.75
    """Learning rate of each layer as a fraction of the one above it; the head has the full rate."""
    lr: float = 1e-3
    """Peak learning rate, of the head."""
    weight_decay: float = 0.05
    n_epochs: int = 20
    """Passes over the training windows."""
    keep: Literal["best", "last"] = "best"
    """The best pass by the validation windows; or the last one, trained on the validation windows too: nothing is chosen, thresholds are 0.5."""
    ema_decay: float | None = None
    """Averages weights over steps, and keeps the average."""
    max_steps: int = 2000
    """Optimiser steps at most."""
    batch_size: int = 32
    n_queries: int = 16
    """Queries of query_pool."""


class Tuned:
    """A trained classifier with what its scores need."""

    def __init__(self, encoder: Encoder, classifier: Classifier, objective: tuning.Finetune, task: Task, cfg: TuneConfig) -> None:
        self.encoder, self.classifier, self.objective, self.task, self.cfg = encoder, classifier.eval(), objective, task, cfg
        self.threshold_K = np.full(len(task.columns), np.nan)

    @torch.no_grad()
    def scores(self, x_BCT: Any, spec: SignalSpec, valid_BT: Any = None, channel_present_BC: Any = None) -> np.ndarray:
        """Scores (B, K) float64 of windows in physical units; a network that reads tokens tokenises them."""
        x_BCT, valid_BT, present_BC = self.encoder.prepare(x_BCT, spec, valid_BT=valid_BT, channel_present_BC=channel_present_BC)
        return self.objective.scores(self.classifier(x_BCT, valid_BT, present_BC)).double().cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class Normalised:
    """A question's windows as an encoder takes them, with their labels: what `Batches` reads, by number in the question."""

    encoder: Encoder
    store: Store | Stores
    question: Question

    def batch(self, numbers: np.ndarray) -> dict[str, Any]:
        batch = self.store.batch(self.question.rows_N[numbers])
        given = {"valid_BT": batch.get("valid"), "channel_present_BC": batch.get("channel_present")}
        x_BCT, valid_BT, present_BC = self.encoder.prepare(batch["signal"], compose.spec_of(self.store), **given)
        more = {name: value for name, value in (("valid", valid_BT), ("channel_present", present_BC)) if value is not None}
        return {"signal": x_BCT, "label": np.asarray(self.question.windows.y)[numbers], "index": np.asarray(numbers), **more}


def tune(encoder: Encoder, store: Store | Stores, question: Question, train_N: np.ndarray, held_N: np.ndarray, cfg: TuneConfig, seed: int) -> Tuned:
    """Train a copy of the encoder with a new head on `train_N` (numbers into the question); `held_N` chooses epoch and thresholds, and trains nothing,
    unless `cfg.keep` is last."""
    task, y = question.task, np.asarray(question.windows.y, dtype=np.float64)
    labelled = np.isfinite(y) if task.kind == "regression" else y >= 0
    labelled = labelled.any(axis=1) if labelled.ndim > 1 else labelled
    train_N, held_N = train_N[labelled[train_N]], held_N[labelled[held_N]]
    if cfg.keep == "last":
        train_N = np.concatenate([train_N, held_N])
    if not len(train_N) or (not len(held_N) and cfg.keep == "best"):
        raise ValueError(f"task {task.name!r}: {len(train_N)} training and {len(held_N)} validation windows have a label; both sides need some")
    if task.kind in ("binary", "multiclass") and len(np.unique(y[train_N])) < 2:
        raise ValueError(f"task {task.name!r}: the training windows hold one class only; a classifier needs two")
    known = {"name": encoder.name, "config": encoder.config, "seen": encoder.seen, "tokenize": encoder.tokenize}
    encoder = Encoder(copy.deepcopy(encoder.model), encoder.contract, **known)
    n_classes = 2 if task.kind == "binary" else max(1, len(task.classes))
    objective = tuning.Finetune(
        kind=task.kind,
        n_classes=n_classes,
        loss=cfg.loss,
        balanced=cfg.balanced,
        counts=tuning.counts_of(question.windows.y[train_N], task.kind, n_classes),
        smoothing=cfg.smoothing,
        mixup=cfg.mixup,
        target_mean=float(y[train_N].mean()) if task.kind == "regression" else 0.0,
        target_sd=max(float(y[train_N].std()), 1e-6) if task.kind == "regression" else 1.0,
    )
    data = Normalised(encoder=encoder, store=store, question=question)
    x_BCT = data.batch(train_N[:2])["signal"]
    torch.manual_seed(seed)
    head = HeadConfig(name=cfg.head, n_queries=cfg.n_queries, cosine=cfg.loss == "arcface")
    classifier = Classifier(encoder.model, head, cfg.level, level_widths(encoder.model, x_BCT), tuning.n_outputs(task.kind, n_classes))
    freeze_unused(classifier, x_BCT)
    size = min(cfg.batch_size, len(train_N))
    per_epoch = max(1, len(train_N) // size)
    n_steps = min(cfg.max_steps, cfg.n_epochs * per_epoch)
    rates = {"lr": cfg.lr, "weight_decay": cfg.weight_decay, "warmup": 0.1, "layer_decay": cfg.layer_decay, "ema_decay": cfg.ema_decay}
    settings = FitConfig(n_steps=n_steps, batch_size=size, seed=seed, validate_every=per_epoch, **rates)
    tuned = Tuned(encoder, classifier, objective, task, cfg)
    best, kept, kept_score = -np.inf, None, None
    for step in fit(classifier, objective, Batches(data, train_N, batch_size=size, seed=seed), settings):
        if step.validate_due and cfg.keep == "best":
            tuned.classifier = step.state.eval_model
            score_NK = predict(tuned, store, question.rows_N[held_N])
            figure = headline(task.columns_of(question.windows.y[held_N]), score_NK, task.kind) * (-1 if task.kind == "regression" else 1)
            if kept is None or figure > best:
                best, kept_score, kept = figure, score_NK, copy.deepcopy(tuned.classifier.state_dict())
            classifier.train()
    classifier.load_state_dict(step.state.eval_model.state_dict() if kept is None else kept)
    tuned.classifier = classifier.eval()
    if kept is None:
        tuned.threshold_K[:] = 0.5 if task.kind in ("binary", "multilabel") else np.nan
    elif task.kind in ("binary", "multilabel"):
        label_NK = task.columns_of(question.windows.y[held_N])
        tuned.threshold_K = np.array([best_threshold(label_NK[:, k], kept_score[:, k]) for k in range(label_NK.shape[1])])
    return tuned


def predict(model: Tuned | Saved, store: Store | Stores, rows_N: np.ndarray, spec: SignalSpec | None = None) -> np.ndarray:
    """Scores (N, K) of rows of a store; `spec` says what its windows are where the store's own names are not the model's."""
    spec, out = spec or compose.spec_of(store), []
    if isinstance(model, Tuned):
        model.classifier.eval()
    for start in range(0, len(rows_N), BATCH):
        batch = store.batch(rows_N[start : start + BATCH])
        out.append(model.scores(batch["signal"], spec, batch.get("valid"), batch.get("channel_present")))
    return np.concatenate(out)


# Saved read-outs


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A saved encoder with its read-out: `scores(x_BCT, spec, valid_BT, channel_present_BC)` gives (B, K)."""

    contract: InputContract
    seen: Mapping[str, Any] | None  # what pretraining and fitting saw; None: unknown
    task: Task
    scores: Callable[..., np.ndarray]
    threshold_K: np.ndarray
    kind: str  # probe, finetuned, minirocket, or the original's


def save_tuned(folder: Path, tuned: Tuned) -> Path:
    """Write encoder, head and what its scores need; the folder must be empty or absent."""
    encoder = tuned.encoder
    save_pretrained(folder, encoder.model.cpu().eval(), encoder.config, replace(encoder.contract, fingerprint=()), encoder.seen)
    tokens.keep(tokens.tokenizer_of(encoder), folder)
    save_file({key: value.detach().cpu().contiguous() for key, value in tuned.classifier.head.state_dict().items()}, folder / HEAD_FILE)
    thresholds = [None if np.isnan(t) else float(t) for t in tuned.threshold_K]
    meta = {"finetuned": asdict(tuned.cfg), "objective": asdict(tuned.objective), "task": asdict(tuned.task), "thresholds": thresholds}
    write_json(folder / META_FILE, meta)
    return folder


def load(path: Path, *, reference: str | None = None, probe: Path | None = None, spec: SignalSpec | None = None) -> Saved:
    """Read a saved probe or fine-tuned model back; with `reference` and `probe`, an original's backbone and linear probe, for input as `spec` says.

    ValueError where the folder holds no head, or the head does not belong to the encoder.
    """
    if (reference is None) != (probe is None):
        raise ValueError("an original's pair is --ckpt FILE --reference ROW --probe FILE, all three")
    if reference is not None:
        return original_pair(path, reference, probe, spec)
    if (Path(path) / minirocket.META_FILE).is_file():
        return _rocket(Path(path))
    if not (Path(path) / META_FILE).is_file():
        raise ValueError(f"{path} holds an encoder without a head: fit one with probe.py or finetune.py --out DIR, and give that folder")
    meta = json.loads((Path(path) / META_FILE).read_text(encoding="utf-8"))
    encoder = tokens.attached(from_pretrained(path))
    return _tuned(Path(path), encoder, meta) if "finetuned" in meta else _probe(Path(path), encoder)


def _tuned(path: Path, encoder: Encoder, meta: dict[str, Any]) -> Saved:
    cfg = TuneConfig(**meta["finetuned"])
    task = Task(**{**meta["task"], "classes": tuple(meta["task"]["classes"])})
    counts = tuple(tuple(c) if isinstance(c, list) else c for c in meta["objective"].pop("counts"))
    objective = tuning.Finetune(**meta["objective"], counts=counts)
    contract = encoder.contract
    blank = torch.zeros(1, 4, dtype=torch.int64) if tokens.reads_tokens(encoder.config) else torch.zeros(1, len(contract.channels), contract.n_samples)
    widths = level_widths(encoder.model, blank)
    head = HeadConfig(name=cfg.head, n_queries=cfg.n_queries, cosine=cfg.loss == "arcface")
    classifier = Classifier(encoder.model, head, cfg.level, widths, tuning.n_outputs(task.kind, objective.n_classes))
    try:
        classifier.head.load_state_dict(load_file(path / HEAD_FILE))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path / HEAD_FILE} does not fit its encoder ({str(error).splitlines()[0]}); save the model again") from None
    tuned = Tuned(encoder, classifier, objective, task, cfg)
    thresholds = np.array([np.nan if t is None else t for t in meta["thresholds"]])
    return Saved(contract=contract, seen=encoder.seen, task=task, scores=tuned.scores, threshold_K=thresholds, kind="finetuned")


def _probe(path: Path, encoder: Encoder) -> Saved:
    fitted = probes.load(path)
    kind = fitted.config.kind
    task = Task(name=fitted.more["task"], kind=kind, classes=fitted.classes if kind in ("multiclass", "multilabel") else ())
    level, pool = fitted.more["level"], fitted.more["pool"]

    def scores(x_BCT: Any, spec: SignalSpec, valid_BT: Any = None, channel_present_BC: Any = None) -> np.ndarray:
        given = {"valid_BT": valid_BT, "channel_present_BC": channel_present_BC}
        return fitted.predict(encoder.features(x_BCT, spec, level=level, pool=pool, **given).cpu().numpy())

    return Saved(contract=encoder.contract, seen=encoder.seen, task=task, scores=scores, threshold_K=fitted.threshold_K, kind="probe")


def save_rocket(folder: Path, model: minirocket.MiniRocket, task: Task, contract: InputContract, seen: Mapping[str, Any]) -> Path:
    """Write a fitted MiniRocket with what its input must be and whom it saw."""
    minirocket.save(folder, model)
    for name, document in (("contract.json", contract.to_json()), ("seen.json", dict(seen)), ("task.json", asdict(task))):
        write_json(folder / name, document)
    return folder


def _rocket(path: Path) -> Saved:
    model = minirocket.load(path)
    contract, seen, task = (json.loads((path / name).read_text(encoding="utf-8")) for name in ("contract.json", "seen.json", "task.json"))
    contract = InputContract.from_json(contract)

    def scores(x_BCT: Any, spec: SignalSpec, valid_BT: Any = None, channel_present_BC: Any = None) -> np.ndarray:
        place = contract.check(spec)
        return model.scores(np.asarray(x_BCT)[:, place.order[0]] * place.factors[0])

    task = Task(**{**task, "classes": tuple(task["classes"])})
    return Saved(contract=contract, seen=seen, task=task, scores=scores, threshold_K=np.full(len(task.columns), np.nan), kind="minirocket")


def original_pair(path: Path, reference: str, probe: Path, spec: SignalSpec | None) -> Saved:
    """HiMAE's notebook: its backbone on windows as they are, the deepest level's mean, one linear layer; a sigmoid of one output, a softmax of two."""
    encoder = reference_encoder(reference, path)
    head = load_reference(reference, probe).head
    if head is None:
        raise ValueError(f"{probe} holds no linear head (fc.* or classifier.*): give the original's probe")
    if spec is not None:  # the notebook fed windows of any rate and scale, unnormalised; its backbone takes any length
        encoder.contract = replace(
            encoder.contract, channels=spec.channels, units=spec.units, fs=spec.fs, window_s=spec.window_s, band="any", normalization="none", kind=""
        )
    width = encoder.model.cfg.widths[-1]
    if head.in_features != width:
        raise ValueError(f"{probe} takes {head.in_features} features, the backbone in {path} gives {width}: they are no pair")
    deepest = encoder.level_names[-1]

    @torch.no_grad()
    def scores(x_BCT: Any, spec: SignalSpec, valid_BT: Any = None, channel_present_BC: Any = None) -> np.ndarray:
        z_BK = head(pool_levels(encoder(x_BCT, spec, valid_BT=valid_BT, channel_present_BC=channel_present_BC), deepest, "mean")).double()
        return (z_BK.sigmoid() if z_BK.shape[1] == 1 else z_BK.softmax(dim=1)[:, 1:]).numpy()

    return Saved(contract=encoder.contract, seen=encoder.seen, task=Task(name="pvc"), scores=scores, threshold_K=np.array([0.5]), kind=reference)
