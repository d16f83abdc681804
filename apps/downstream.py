"""Fine-tuned encoders and saved read-outs: trained, written, read back, applied to windows. N windows, K score columns.

A folder that `--ckpt` reads holds the encoder as `save_pretrained` writes it, and `head.json` with `head.safetensors`: a probe's (`physio_train.probe`), or a
fine-tuned head's. `seen.json` says what the encoder's weights saw, `head.json` also what the head was fitted on. A folder with `minirocket.json` holds fixed
convolutions and a ridge (`physio_train.minirocket`) instead of an encoder.
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
from questions import Question, heading_of, subjects_of

HEAD_FILE, META_FILE = "head.safetensors", "head.json"
BATCH = 256
UNCHOSEN = "no validation side has two classes: the last pass is kept, the threshold is 0.5"


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
    """The best pass by the validation windows (the last, with thresholds of 0.5, where these have one class only); or the last one, trained on the validation
    windows too: nothing is chosen, thresholds are 0.5."""
    ema_decay: float | None = None
    """Averages weights over steps, and keeps the average."""
    max_steps: int = 2000
    """Optimiser steps at most."""
    batch_size: int = 32
    n_queries: int = 16
    """Queries of query_pool."""


class Tuned:
    """A trained classifier with what its scores need, what it was trained on and what its scores are of."""

    def __init__(
        self,
        encoder: Encoder,
        classifier: Classifier,
        objective: tuning.Finetune,
        task: Task,
        cfg: TuneConfig,
        fitted: Mapping[str, Any] | None = None,
        labels: tuple[str, ...] | None = None,
        untrained: bool = False,
    ) -> None:
        self.encoder, self.classifier, self.objective, self.task, self.cfg = encoder, classifier.eval(), objective, task, cfg
        self.fitted, self.labels, self.untrained = fitted, labels, untrained  # untrained: the encoder came as initialised
        self.threshold_K = np.full(len(task.columns), np.nan)
        self.notes: tuple[str, ...] = ()

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
    unless `cfg.keep` is last. Where `held_N` cannot choose (`can_choose`), the last pass is kept with thresholds of 0.5, and the notes say so."""
    task, y = question.task, np.asarray(question.windows.y, dtype=np.float64)
    labelled = labelled_of(question)
    train_N, held_N = train_N[labelled[train_N]], held_N[labelled[held_N]]
    if cfg.keep == "last":
        train_N = np.concatenate([train_N, held_N])
    choosing = cfg.keep == "best" and can_choose(task, question.windows.y[held_N])
    if not len(train_N):
        raise ValueError(f"task {task.name!r}: no training window has a label; name other folds")
    if task.kind in ("binary", "multiclass") and len(np.unique(y[train_N])) < 2:
        raise ValueError(f"task {task.name!r}: the training windows hold one class only; a classifier needs two")
    fitted = fitted_on(store, question, np.concatenate([train_N, held_N]))
    known, untrained = {"name": encoder.name, "config": encoder.config, "tokenize": encoder.tokenize}, encoder.untrained
    known["seen"] = compose.joined(encoder.seen, fitted)  # its weights learn from these windows too
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
    tuned = Tuned(encoder, classifier, objective, task, cfg, fitted, labels_of(store, task.name), untrained)
    best, kept, kept_score = -np.inf, None, None
    for step in fit(classifier, objective, Batches(data, train_N, batch_size=size, seed=seed), settings):
        if step.validate_due and choosing:
            tuned.classifier = step.state.eval_model
            score_NK = predict(tuned, store, question.rows_N[held_N])
            figure = headline(task.columns_of(question.windows.y[held_N]), score_NK, task.kind) * (-1 if task.kind == "regression" else 1)
            if kept is None or figure > best:
                best = figure if np.isfinite(figure) else -np.inf
                kept_score, kept = score_NK, copy.deepcopy(tuned.classifier.state_dict())
            classifier.train()
    classifier.load_state_dict(step.state.eval_model.state_dict() if kept is None else kept)
    tuned.classifier = classifier.eval()
    tuned.notes = () if cfg.keep == "last" else notes_of(task, question.windows.y[held_N])
    if kept is None:
        tuned.threshold_K[:] = 0.5 if task.kind in ("binary", "multilabel") else np.nan
    elif task.kind in ("binary", "multilabel"):
        label_NK = task.columns_of(question.windows.y[held_N])
        known = [k for k, name in enumerate(task.columns) if name not in one_sided(task, question.windows.y[held_N])]
        tuned.threshold_K[:] = 0.5
        tuned.threshold_K[known] = [best_threshold(label_NK[:, k], kept_score[:, k]) for k in known]
    return tuned


def can_choose(task: Task, y: np.ndarray) -> bool:
    """Whether validation labels allow the figure that a pass is chosen by: two classes of a label, or a known number."""
    if task.kind == "regression":
        return bool(np.isfinite(np.asarray(y, dtype=np.float64)).any())
    return len(one_sided(task, y)) < len(task.columns)


def one_sided(task: Task, y: np.ndarray) -> list[str]:
    """The columns of a task with classes of which these labels are all alike, or none is known."""
    return [name for name, y_N in zip(task.columns, task.columns_of(y).T, strict=True) if len(np.unique(y_N[np.isfinite(y_N)])) < 2]


def notes_of(task: Task, y: np.ndarray) -> tuple[str, ...]:
    """What a reader must know of a model that these validation labels chose."""
    if not can_choose(task, y):
        return (UNCHOSEN,)
    if task.kind != "multilabel" or not (alike := one_sided(task, y)):
        return ()
    return (f"the threshold is 0.5 for {', '.join(alike)}, of which the validation side has one class",)


def labelled_of(question: Question) -> np.ndarray:
    """Which of a question's windows have a known label, (N,) bool."""
    return np.isfinite(question.task.columns_of(question.windows.y)).any(axis=1)


def fitted_on(store: Store | Stores, question: Question, numbers_N: np.ndarray) -> dict[str, list[str]]:
    """Stores and subjects (recordings, where a corpus names nobody) of the labelled ones among these windows, in the words of `compose.seen_of`."""
    rows_N = question.rows_N[numbers_N[labelled_of(question)[numbers_N]]]
    members = store.stores if isinstance(store, Stores) else [store]
    member_N = np.repeat(np.arange(len(members)), [len(member) for member in members])[rows_N]
    return {"stores": [members[m].hash for m in np.unique(member_N)], "subjects": np.unique(store.index["subject"][rows_N]).tolist()}


def labels_of(store: Store | Stores, name: str) -> tuple[str, ...]:
    """What a store calls 0 and 1 of a binary task; empty for other tasks, and where it does not say."""
    spec = (store.stores[0] if isinstance(store, Stores) else store).tasks[name]
    return tuple(spec["classes"]) if spec["kind"] == "binary" else ()


def predict(model: Tuned | Saved, store: Store | Stores, rows_N: np.ndarray) -> np.ndarray:
    """Scores (N, K) of rows of a store."""
    spec, out = compose.spec_of(store), []
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
    fitted: Mapping[str, Any] | None = None  # what the head was fitted on; None: not written down
    labels: tuple[str, ...] | None = None  # what 0 and 1 of a binary task are called; None: not written down
    untrained: bool = False  # the encoder that the head reads, or was trained with, was as initialised

    @property
    def row(self) -> str:
        """The name of its row in a table."""
        return {"probe": "untrained", "finetuned": "from scratch"}[self.kind] if self.untrained else "pretrained"


def known_of(saved: Saved, store: Store | Stores, rows_N: np.ndarray) -> tuple[str, list[str]]:
    """What a table of these windows is headed, by what pretraining and fitting saw, and how many of them are of people that the head was fitted on."""
    heading = heading_of(store, rows_N, None if saved.seen is None else saved.seen["subjects"])
    if saved.fitted is None:
        return heading, ["whom the head was fitted on is not written down"]
    who_N = store.index["subject"][rows_N]
    own_N = np.isin(who_N, saved.fitted["subjects"])
    if not own_N.any():
        return heading, []
    what = "subjects" if (subjects_of(store)[rows_N][own_N] != "").all() else "recordings"
    return heading, [f"{int(own_N.sum())} windows of {len(np.unique(who_N[own_N]))} {what} that the head was fitted on"]


def facing(saved: Saved, store: Store | Stores, task: Task, names: tuple[str, ...] | None = None) -> tuple[Saved, list[str]]:
    """A binary model whose score is of the store's class 1, turned where it was fitted on the two the other way round, and a note where there is one to make.

    `names` are the model's classes in the store's words, where a label map says. ValueError where the two sides call their classes otherwise.
    """
    if task.kind != "binary" or saved.task.kind != "binary":
        return saved, []
    theirs, names = labels_of(store, task.name), saved.labels if names is None else names
    if names == theirs:
        return saved, []
    if not names or not theirs:
        silent = "the store" if not theirs else "the model's folder" if names is None else "the store that the model was fitted on"
        return saved, [f"{silent} does not say what 0 and 1 of the task are called: the score is taken to be of {theirs[1] if theirs else task.name}"]
    if names != theirs[::-1]:
        raise ValueError(
            f"the model tells {names[0]!r} (0) from {names[1]!r} (1), the store's task {task.name!r} tells {theirs[0]!r} from {theirs[1]!r}: "
            "say which is which in a --label-map of evaluate.py, or name another --task"
        )

    def scores(*args: Any, **kwargs: Any) -> np.ndarray:
        return 1.0 - saved.scores(*args, **kwargs)

    note = f"the store's classes stand the other way round than the model's: scores are turned to be of {theirs[1]}"
    return replace(saved, scores=scores, threshold_K=np.nextafter(1.0 - saved.threshold_K, 2.0), labels=theirs), [note]


def save_tuned(folder: Path, tuned: Tuned) -> Path:
    """Write encoder, head and what its scores need; the folder must be empty or absent."""
    encoder = tuned.encoder
    save_pretrained(folder, encoder.model.cpu().eval(), encoder.config, replace(encoder.contract, fingerprint=()), encoder.seen)
    tokens.keep(tokens.tokenizer_of(encoder), folder)
    save_file({key: value.detach().cpu().contiguous() for key, value in tuned.classifier.head.state_dict().items()}, folder / HEAD_FILE)
    thresholds = [None if np.isnan(t) else float(t) for t in tuned.threshold_K]
    meta = {"finetuned": asdict(tuned.cfg), "objective": asdict(tuned.objective), "task": asdict(tuned.task), "thresholds": thresholds}
    more = {"fitted": tuned.fitted, "labels": tuned.labels, "untrained": tuned.untrained, "notes": list(tuned.notes)}
    write_json(folder / META_FILE, meta | more)
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
    return Saved(contract=contract, task=task, scores=tuned.scores, threshold_K=thresholds, kind="finetuned", **_origin(encoder, meta))


def _probe(path: Path, encoder: Encoder) -> Saved:
    fitted = probes.load(path)
    kind = fitted.config.kind
    task = Task(name=fitted.more["task"], kind=kind, classes=fitted.classes if kind in ("multiclass", "multilabel") else ())
    level, pool = fitted.more["level"], fitted.more["pool"]

    def scores(x_BCT: Any, spec: SignalSpec, valid_BT: Any = None, channel_present_BC: Any = None) -> np.ndarray:
        given = {"valid_BT": valid_BT, "channel_present_BC": channel_present_BC}
        return fitted.predict(encoder.features(x_BCT, spec, level=level, pool=pool, **given).cpu().numpy())

    return Saved(contract=encoder.contract, task=task, scores=scores, threshold_K=fitted.threshold_K, kind="probe", **_origin(encoder, fitted.more))


def _origin(encoder: Encoder, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What `head.json` says of where a head comes from; folders of before it said so leave it open."""
    labels = meta.get("labels")
    said = {"fitted": meta.get("fitted"), "labels": None if labels is None else tuple(labels), "untrained": bool(meta.get("untrained"))}
    return said | {"seen": compose.joined(encoder.seen, said["fitted"])}


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
    return Saved(contract=contract, seen=seen, task=task, scores=scores, threshold_K=np.full(len(task.columns), np.nan), kind="minirocket", fitted=seen)


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

    task, labels = Task(name="pvc"), ("no PVC", "PVC")
    return Saved(contract=encoder.contract, seen=encoder.seen, task=task, scores=scores, threshold_K=np.array([0.5]), kind=reference, labels=labels)
