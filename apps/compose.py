"""Where the packages meet: a recipe's config, its JSON form, the data it reads, and the parts that `fit` is given.

Shape letters: B windows, C channels, T samples.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn

import extras
from physio_data.corpora import corpus as corpus_of
from physio_data.prepare import PrepareConfig
from physio_data.store import Store, Stores
from physio_models import FITS, MODELS, OBJECTIVES, resolve
from physio_models.contract import InputContract, SignalSpec, normalize
from physio_models.pretrained import build_untrained
from physio_train import Batches, FitConfig, Streams, World

Size = Literal["tiny", "fast", "reference"]
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The data a recipe prepares for itself where no --data is given. What is left open takes the corpus's own default."""

    corpus: str = "synthetic"  # a row of CORPORA
    root: str | None = None  # folder of the corpus's files; generated corpora need none
    leads: tuple[str, ...] = ()  # channels by name
    window_s: float | None = None  # length of a window, seconds
    hop_s: float | None = None  # from one window's start to the next one's, seconds
    fs: float | None = None  # rate to resample to, Hz
    band: tuple[float | None, float | None] | None = None  # pass band, Hz
    split: Literal["hash", "stratified", "official"] | None = None
    split_seed: int = 0
    options: dict[str, int | float | bool | str] = field(default_factory=dict)  # the corpus's own options

    def prepare_config(self) -> PrepareConfig:
        """The library's config, defaults filled in."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "options"}
        return PrepareConfig(corpus_options=dict(self.options), **values).settled(corpus_of(self.corpus))


@dataclass(frozen=True, kw_only=True)
class ReadOut:
    """What of an encoder a probe reads, and what it is asked."""

    task: str | None = None  # a task of the store; None where it has one only
    level: str = "all"  # a level of the model, or all of them pooled and concatenated
    pool: Literal["mean", "max", "std", "peak", "mean+max", "mean+std", "mean+max+std", "tokens"] = "mean+max+std"
    train: tuple[str, ...] = ("train", "val")  # folds the probe after pretraining is fitted on
    test: tuple[str, ...] = ("test",)  # folds it is scored on; they choose nothing
    twins: int = 5  # seeds of the random twin


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A whole experiment: data, network, objective, training, read-out."""

    cohort: Cohort
    model: object  # a config of MODELS
    objective: object  # a config of OBJECTIVES
    fit: FitConfig
    normalization: str = "instance_minmax"  # applied once per batch, and part of the input contract
    shift: bool = True  # start each training window at a random offset, drawn anew each epoch, where a gap-free window follows
    use: tuple[str, ...] = ("train",)  # folds to pretrain on, by name or as a range of numbers: 1-5
    validate_on: tuple[str, ...] = ("val",)  # folds whose masked loss names the best step; () takes the last
    log_every: int = 10  # steps between lines of metrics.jsonl
    language_model: str = ""  # folder or Hub id, frozen; for objectives that read reports
    probe: ReadOut = ReadOut()


def recipe(name: str, size: Size) -> PretrainConfig:
    """The config of `apps/recipes/<name>.py`. ValueError for an unknown name, with the nearest."""
    known = sorted(path.stem for path in RECIPES.glob("*.py") if path.stem != "__init__")
    if name not in known:
        raise ValueError(f"no recipe {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return importlib.import_module(f"recipes.{name}").recipe(size)


def fast_precision() -> Literal["fp32", "bf16"]:
    """bf16 where this machine multiplies it in hardware, else fp32. A recipe asks once; the run's config.json then names the answer, so a replay repeats it."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = torch.cpu.get_capabilities()
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"


def swap(cfg: PretrainConfig, *, model: str | None, objective: str | None, size: Size) -> PretrainConfig:
    """The recipe with another network or objective by its table name, at its preset. ValueError where the two do not fit."""
    if model is not None:
        cfg = replace(cfg, model=resolve(MODELS, model).preset(size))
    if objective is not None:
        cfg = replace(cfg, objective=resolve(OBJECTIVES, objective)())
    trained, trains = row_of(cfg.model, MODELS), row_of(cfg.objective, OBJECTIVES)
    if trained not in FITS[trains]:
        fitting = [name for name, models in FITS.items() if trained in models]
        raise ValueError(f"objective {trains!r} trains {', '.join(FITS[trains])} and not {trained!r}, which fits {', '.join(fitting) or 'none'}")
    return cfg


def to_json(cfg: PretrainConfig) -> dict[str, Any]:
    """Plain values; the network and the objective carry their table name."""
    values = dataclasses.asdict(cfg)
    for part, table in (("model", MODELS), ("objective", OBJECTIVES)):
        values[part] = {"name": row_of(getattr(cfg, part), table), "config": values[part]}
    return json.loads(json.dumps(values))


def from_json(values: Mapping[str, Any]) -> PretrainConfig:
    """The config that `to_json` wrote. ValueError for an unknown key, naming the nearest one."""
    values = dict(values)
    for part, table in (("model", MODELS), ("objective", OBJECTIVES)):
        if part in values:
            values[part] = build(resolve(table, values[part]["name"]), values[part]["config"], part)
    return build(PretrainConfig, values, "")


def build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from plain values, nested ones too; lists become tuples."""
    hints = get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    made = {}
    for key, value in values.items():
        path = f"{where}.{key}".lstrip(".")
        if key not in names:
            raise ValueError(f"unknown key {path!r} in the config{nearest(key, names)}")
        inner = _dataclass_of(hints[key])
        if inner is not None and isinstance(value, Mapping):
            value = build(inner, value, path)
        made[key] = tuple(value) if isinstance(value, list) else value
    required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in made]:
        raise ValueError(f"the config lacks {f'{where}.{missing[0]}'.lstrip('.')!r}")
    return kind(**made)


def _dataclass_of(hint: Any) -> type | None:
    choices = get_args(hint) if get_origin(hint) is not None else (hint,)
    return next((choice for choice in choices if isinstance(choice, type) and dataclasses.is_dataclass(choice)), None)


def row_of(config: object, table: Mapping[str, str]) -> str:
    """The table row that a config belongs to."""
    own = f"{type(config).__module__}:{type(config).__qualname__}"
    found = next((name for name, target in table.items() if target == own), None)
    if found is None:
        raise ValueError(f"{own} is no row of the table ({', '.join(table)}); add a row, so that a saved run can name it")
    return found


def nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}?" if close else ""


def open_stores(paths: Sequence[Path | str], task: str | None = None) -> Store | Stores:
    """One store, or several read as one."""
    return Store(paths[0], task=task) if len(paths) == 1 else Stores(list(paths), task=task)


def own_store(cohort: Cohort) -> Path:
    """Where a recipe keeps the store that it prepares: one folder per set of parameters, shared by all runs."""
    digest = hashlib.sha256(json.dumps(cohort.prepare_config().identity(), sort_keys=True).encode()).hexdigest()
    return Path("stores") / f"{cohort.corpus}-{digest[:10]}"


def fit_model_to(cfg: PretrainConfig, store: Store | Stores) -> PretrainConfig:
    """The network with the store's channels and window length."""
    return replace(cfg, model=replace(cfg.model, n_channels=len(store.channels), n_samples=store.n_samples))


def rows_of(store: Store | Stores, folds: Sequence[str]) -> np.ndarray:
    """Rows of some folds; a fold may also be a range of numbers, 1-5. No fold named means the whole store."""
    return store.rows(fold_names(folds)) if folds else store.rows()


def fold_names(folds: Sequence[str]) -> tuple[str, ...]:
    """`("1-3", "val")` -> `("1", "2", "3", "val")`; `train=1-5` reads as `1-5`."""
    names: list[str] = []
    for fold in (fold.removeprefix("train=") for fold in folds):
        first, dash, last = fold.partition("-")
        names += [str(n) for n in range(int(first), int(last) + 1)] if dash and first.isdigit() and last.isdigit() else [fold]
    return tuple(names)


def spec_of(store: Store | Stores) -> SignalSpec:
    """What the windows of a store are, in the words of an input contract."""
    band = None if store.manifest.get("raw") else store.manifest.get("band")  # of a raw store it is still to be applied
    return SignalSpec(
        channels=store.channels,
        units=tuple(store.units),
        fs=store.fs,
        n_samples=store.n_samples,
        band=None if band is None else tuple(band),
        kind=store.kind,
    )


def contract_of(cfg: PretrainConfig, store: Store | Stores) -> InputContract:
    """What the input of a network trained on this store must be."""
    spec = spec_of(store)
    return InputContract(
        channels=spec.channels,
        units=spec.units,
        fs=spec.fs,
        window_s=store.window_s,
        band=spec.band,
        normalization=cfg.normalization,
        polarity=spec.polarity,
        length_free=bool(getattr(type(cfg.model), "length_free", False)),
        kind=spec.kind,
    )


def seen_of(store: Store | Stores, rows: np.ndarray) -> dict[str, Any]:
    """What pretraining saw: the stores' manifest hashes and the subjects' ids."""
    return {"stores": store.hash.split(","), "subjects": sorted(set(store.index["subject"][rows].tolist()))}


class WithNext:
    """A store whose items carry the gap-free window that follows, (B, C, 2T), and whether there is one."""

    def __init__(self, store: Store | Stores) -> None:
        self.store = store
        follows = np.isclose(store.index["dt_next_s"], store.window_s, atol=1e-6)
        next_N = store.index["next"]
        self._next_N = np.where(follows & (next_N >= 0), next_N, -1)

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        batch = self.store.batch(rows)
        next_B = self._next_N[rows]
        there_B = next_B >= 0
        after = self.store.batch(np.where(there_B, next_B, rows))
        if "valid" in batch:
            there_B &= batch["valid"].all(1) & after["valid"].all(1)
        return batch | {"signal": np.concatenate([batch["signal"], after["signal"]], axis=-1), "has_next": there_B}


@dataclass(frozen=True)
class ShiftAndNormalize:
    """The batch transform of training: a window at a random offset into itself and its successor, then the contract's normalisation."""

    normalization: str
    morphology_fs: float | None = None  # Hz; None: no labels of the pulse's morphology

    def __call__(self, batch: dict[str, Any], streams: Streams) -> dict[str, Any]:
        if "has_next" in batch:
            batch = _shifted(dict(batch), streams)
        if self.morphology_fs is not None:
            batch = batch | {"aux": torch.from_numpy(extras.morphology(batch["signal"].numpy(), self.morphology_fs))}
        return batch | {"signal": normalize(batch["signal"], self.normalization, batch.get("valid"))[0]}


def _shifted(batch: dict[str, Any], streams: Streams) -> dict[str, Any]:
    signal_BCT = batch["signal"]
    n_samples = signal_BCT.shape[-1] // 2
    start_B = (streams.uniform("shift", batch["index"]) * n_samples).long() * batch.pop("has_next")
    at_BT = start_B[:, None] + torch.arange(n_samples)
    batch["signal"] = signal_BCT.gather(-1, at_BT[:, None, :].expand(-1, signal_BCT.shape[1], -1))
    return batch


@dataclass(frozen=True)
class Parts:
    """What `fit` is given, and the fixed batches that validation reads (None without a validation fold)."""

    model: nn.Module
    objective: Any
    batches: Batches
    validation: Batches | None


def build_model(cfg: PretrainConfig, seed: int) -> nn.Module:
    """The network as initialised from a seed."""
    return build_untrained(row_of(cfg.model, MODELS), cfg.model, seed)


def parts(cfg: PretrainConfig, store: Store | Stores, rows: np.ndarray, validation_rows: np.ndarray, world: World | None = None) -> Parts:
    """Network, objective and batches of a config, this rank's share of them."""
    world = world or World()
    share = {"batch_size": cfg.fit.batch_size, "seed": cfg.fit.seed, "rank": world.rank, "world_size": world.world_size}
    needs = (*getattr(cfg.objective, "needs", ()), *getattr(cfg.model, "needs", ()))
    columns = extras.columns(needs, store, task=cfg.probe.task, language_model=cfg.language_model)
    transform = ShiftAndNormalize(cfg.normalization, store.fs if "aux" in needs else None)
    batches = Batches(extras.Carrying(WithNext(store) if cfg.shift else store, columns), rows, transform=transform, **share)
    validation = None
    if len(validation_rows) >= world.world_size:
        validation = Batches(extras.Carrying(store, columns), validation_rows, transform=transform, shuffle=False, **share)
    return Parts(build_model(cfg, cfg.fit.seed), cfg.objective, batches, validation)


def validation_rows(cfg: PretrainConfig, store: Store | Stores) -> np.ndarray:
    """Rows of the validation folds that exist; empty where there are none."""
    there = set(np.unique(store.index["fold"]).tolist())
    folds = [fold for fold in fold_names(cfg.validate_on) if fold in there]
    return store.rows(tuple(folds)) if folds else np.zeros(0, np.int64)


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
