"""Where the packages meet: a recipe's config, its JSON form, the data it reads, and the parts that `fit` is given.

Shape letters: B windows, C channels, T samples.
"""

from __future__ import annotations

import dataclasses
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
import tokens
from physio_bpe import Tokenizer
from physio_data.corpora import corpus as corpus_of
from physio_data.order import BlockShuffle, Mixture
from physio_data.prepare import PrepareConfig
from physio_data.shards import chunk_windows
from physio_data.store import Store, Stores
from physio_models import FITS, MODELS, OBJECTIVES, nearest, resolve
from physio_models.contract import BUTTERWORTH, InputContract, SignalSpec, normalize
from physio_models.pretrained import build_untrained, from_pretrained, load_strictly
from physio_train import Batches, FitConfig, RandomCrop, Streams, World
from tokens import Tokens

Size = Literal["tiny", "fast", "reference"]
RECIPES = Path(__file__).parent / "recipes"
HIGHEST = 0.45  # of a store's rate: where a network's wavelets end at the latest
BESIDE = ("recipe", "size", "data", "stores")
"""Keys of a run's config.json beside those of its `PretrainConfig`."""


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
    crop_s: float | None = None  # train on stretches of this length cut from each window at a place drawn anew each epoch, seconds; None: whole windows
    shift: bool = True  # start each training window at a random offset, drawn anew each epoch, where a gap-free window follows; not with labels of windows
    use: tuple[str, ...] = ("train",)  # folds to pretrain on, by name or as a range of numbers: 1-5
    mix: tuple[float, ...] = ()  # of several stores: the share of windows that each gives (--data A B --mix 2 1); () takes every window once an epoch
    shuffle: Literal["exact", "blocks"] = "exact"  # blocks: neighbouring windows together, for stores that memory does not hold
    class_weights: bool = False  # supervised: weigh classes by inverse frequency in the training windows, clipped to 0.1-10
    validate_on: tuple[str, ...] = ("val",)  # folds whose masked loss names the best step; () takes the last
    log_every: int = 10  # steps between lines of metrics.jsonl
    figure_every: int | None = None  # steps between reconstructions of fixed windows; None: at the end only
    health_windows: int = 64  # validation windows whose features are watched for collapse at each of these lines; 0 watches none
    language_model: str = ""  # folder or Hub id, frozen; for objectives that read reports
    tokens: Tokens = field(default_factory=Tokens)  # for networks that read tokens
    weights: str = ""  # a run or saved folder whose weights the network starts from; a signal head that it lacks starts anew
    probe: ReadOut = ReadOut()


def recipe_names() -> list[str]:
    """The files of apps/recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.py") if path.stem != "__init__")


def recipe(name: str, size: Size) -> PretrainConfig:
    """The config of `apps/recipes/<name>.py`. ValueError for an unknown name, with the nearest."""
    known = recipe_names()
    if name not in known:
        raise ValueError(f"no recipe {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return importlib.import_module(f"recipes.{name}").recipe(size)


def fast_precision() -> Literal["fp32", "bf16"]:
    """bf16 where this machine multiplies it in hardware, else fp32. A recipe asks once; the run's config.json then names the answer, so a replay repeats it."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = torch.cpu.get_capabilities()
    return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "fp32"


def swap(cfg: PretrainConfig, *, model: str | None, objective: str | None, size: Size, representation: str | None = None) -> PretrainConfig:
    """The recipe with another network or objective by its table name, at its preset. ValueError where they do not fit one another or what is read."""
    if not isinstance(cfg, PretrainConfig):
        raise ValueError(f"this recipe is a {type(cfg).__name__} and pretrains no single network; its app has its name: uv run apps/st_sae.py")
    if model is not None:
        cfg = replace(cfg, model=resolve(MODELS, model).preset(size))
    if objective is not None:
        cfg = replace(cfg, objective=resolve(OBJECTIVES, objective)())
    trained, trains = row_of(cfg.model, MODELS), row_of(cfg.objective, OBJECTIVES)
    if trained not in FITS[trains]:
        fitting = [name for name, models in FITS.items() if trained in models]
        raise ValueError(f"objective {trains!r} trains {', '.join(FITS[trains])} and not {trained!r}, which fits {', '.join(fitting) or 'none'}")
    reads = getattr(cfg.model, "input", "signal")
    if representation is not None and reads != representation:
        others = [name for name in MODELS if getattr(resolve(MODELS, name), "input", "signal") == representation]
        raise ValueError(
            f"--representation {representation}: the network {trained!r} reads {reads.rstrip('s')}s; choose one of {', '.join(others)} with --model"
        )
    return replace(cfg, shift=False) if "label" in needs_of(cfg) else cfg


def needs_of(cfg: PretrainConfig) -> tuple[str, ...]:
    """What objective and network read of a batch beside the signal."""
    return (*getattr(cfg.objective, "needs", ()), *getattr(cfg.model, "needs", ()))


def to_json(cfg: PretrainConfig) -> dict[str, Any]:
    """Plain values; the network and the objective carry their table name."""
    values = dataclasses.asdict(cfg)
    for part, table in (("model", MODELS), ("objective", OBJECTIVES)):
        values[part] = {"name": row_of(getattr(cfg, part), table), "config": values[part]}
    values["tokens"]["file"] = ""  # a run keeps its tokenizer beside it
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
            raise ValueError(f"unknown key {path!r} in the config{nearest(key, names if where else [*names, *BESIDE])}")
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


def open_stores(paths: Sequence[Path | str], task: str | None = None, lead: Mapping[str, str] | None = None) -> Store | Stores:
    """One store, or several read as one. `lead` has a channel's name and what some of the stores call it: they are read under the first.

    ValueError where no store has a channel of such a name.
    """
    members = [Store(path, task=task) for path in paths]
    if lead:
        ours = {theirs: name for name, theirs in lead.items()}
        there = dict.fromkeys(name for member in members for name in member.channels)
        if unknown := [theirs for theirs in ours if theirs not in there]:
            where = "the store; it has" if len(members) == 1 else "the stores; they have"
            raise ValueError(f"--lead names {', '.join(unknown)}, which is no channel of {where} {', '.join(there)}")
        members = [Store(member.path, task=task, channels=[ours.get(name, name) for name in member.channels]) for member in members]
    return members[0] if len(members) == 1 else Stores(members, task=task)


def own_store(cohort: Cohort) -> Path:
    """Where a recipe keeps the store that it prepares: one folder per set of parameters, shared by all runs."""
    digest = hashlib.sha256(json.dumps(cohort.prepare_config().identity(), sort_keys=True).encode()).hexdigest()
    return Path("stores") / f"{cohort.corpus}-{digest[:10]}"


def fit_model_to(cfg: PretrainConfig, store: Store | Stores) -> PretrainConfig:
    """The network with the store's channels, and its window length or that of the stretches it is trained on.

    A network whose wavelets have frequencies in Hz takes the store's rate too; its band ends below half of it.
    """
    values: dict[str, Any] = {"n_channels": len(store.channels), "n_samples": crop_samples(cfg, store) or store.n_samples}
    if hasattr(cfg.model, "band_hz"):
        low, high = cfg.model.band_hz
        values |= {"fs": store.fs, "band_hz": (low, min(high, HIGHEST * store.fs))}
    return replace(cfg, model=replace(cfg.model, **values))


def crop_samples(cfg: PretrainConfig, store: Store | Stores) -> int | None:
    """Samples of a training stretch, None for whole windows. ValueError where a window does not hold it."""
    if cfg.crop_s is None:
        return None
    n = round(cfg.crop_s * store.fs)
    if not 1 <= n <= store.n_samples:
        raise ValueError(f"crop_s={cfg.crop_s:g} is not within the store's windows of {store.window_s:g} s: give less, or None for whole windows")
    return n


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
    raw, band = store.manifest.get("raw"), store.manifest.get("band")  # of a raw store the filters are still to be applied
    return SignalSpec(
        channels=store.channels,
        units=tuple(store.units),
        fs=store.fs,
        n_samples=store.n_samples,
        band=None if raw or band is None else tuple(band),
        filter=store.manifest.get("filter") or BUTTERWORTH,
        notch_hz=None if raw else store.manifest.get("notch_hz"),
        kind=store.kind,
    )


def contract_of(cfg: PretrainConfig, store: Store | Stores) -> InputContract:
    """What the input of a network trained on this store must be."""
    spec = spec_of(store)
    return InputContract(
        channels=spec.channels,
        units=spec.units,
        fs=spec.fs,
        window_s=store.window_s if cfg.crop_s is None else cfg.crop_s,
        band=spec.band,
        filter=spec.filter,
        notch_hz=spec.notch_hz,
        normalization=cfg.normalization,
        polarity=spec.polarity,
        length_free=bool(getattr(type(cfg.model), "length_free", False)),
        kind=spec.kind,
        vocabulary=cfg.tokens.vocabulary if tokens.reads_tokens(cfg.model) else "",
    )


def seen_of(store: Store | Stores, rows: np.ndarray, *, weights: str = "") -> dict[str, Any]:
    """What pretraining saw: the stores' manifest hashes and the subjects' ids, with those that the weights it started from had seen."""
    before = {"stores": [], "subjects": []}
    if weights and (before := from_pretrained(weights).seen) is None:
        raise ValueError(f"{weights} does not say what it was trained on (seen.json), so nothing that starts from it could: train from a run folder")
    return joined(before, {"stores": store.hash.split(","), "subjects": store.index["subject"][rows].tolist()})


def joined(seen: Mapping[str, Any] | None, more: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What either saw; None where one of them is unknown."""
    if seen is None or more is None:
        return None
    return dict(seen) | {"stores": list(dict.fromkeys([*seen["stores"], *more["stores"]])), "subjects": sorted({*seen["subjects"], *more["subjects"]})}


class WithNext:
    """A store whose items carry the gap-free window that follows, (B, C, 2T), and whether there is one."""

    def __init__(self, store: Store | Stores) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        batch = self.store.batch(rows)
        next_B = self.store.at("next", rows)
        there_B = (next_B >= 0) & np.isclose(self.store.at("dt_next_s", rows), self.store.window_s, atol=1e-6)
        after = self.store.batch(np.where(there_B, next_B, rows))
        if "valid" in batch:
            there_B &= batch["valid"].all(1) & after["valid"].all(1)
        if "channel_present" in batch:
            there_B &= (batch["channel_present"] == after["channel_present"]).all(1)
        return batch | {"signal": np.concatenate([batch["signal"], after["signal"]], axis=-1), "has_next": there_B}


@dataclass(frozen=True)
class ShiftAndNormalize:
    """The batch transform of training: a window at a random offset into itself and its successor, then the contract's normalisation."""

    normalization: str
    morphology_fs: float | None = None  # Hz; None: no labels of the pulse's morphology
    crop: RandomCrop | None = None
    tokenize: tokens.Tokenize | None = None  # of the signal before it is normalised

    def __call__(self, batch: dict[str, Any], streams: Streams) -> dict[str, Any]:
        if "has_next" in batch:
            batch = _shifted(dict(batch), streams)
        if self.crop is not None:
            batch = self.crop(batch, streams)
        x_BCT, valid_BT, present_BC = batch["signal"], batch.get("valid"), batch.get("channel_present")
        if self.morphology_fs is not None:
            whole_B = None if valid_BT is None else valid_BT.bool().all(1).numpy()
            batch = batch | {"aux": torch.from_numpy(extras.morphology(x_BCT.numpy(), self.morphology_fs, whole_B))}
        batch = batch | {"signal": normalize(x_BCT, self.normalization, valid_BT, None, present_BC)[0]}
        if self.tokenize is None:
            return batch
        ids_BN, real_BN = self.tokenize(x_BCT, valid_BT, present_BC)
        return batch | {"tokens": ids_BN, "valid": real_BN} | ({} if valid_BT is None else {"signal_valid": valid_BT})


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


def started(model: nn.Module, path: str) -> nn.Module:
    """The network with the weights of another of its kind. ValueError where they do not fit it; a signal head may be new."""
    state = dict(from_pretrained(path).model.state_dict())
    new = {key: value for key, value in model.state_dict().items() if key.startswith("head.") and key not in state}
    load_strictly(model, state | new, path)
    return model


def parts(
    cfg: PretrainConfig,
    store: Store | Stores,
    rows: np.ndarray,
    validation_rows: np.ndarray,
    world: World | None = None,
    *,
    tokenizer: Tokenizer | None = None,
) -> Parts:
    """Network, objective and batches of a config, this rank's share of them; a network that reads tokens needs the tokenizer."""
    world = world or World()
    share = {"batch_size": cfg.fit.batch_size, "seed": cfg.fit.seed, "rank": world.rank, "world_size": world.world_size}
    needs = needs_of(cfg)
    if cfg.shift and "label" in needs:
        raise ValueError("shift starts windows between those that the store has labels for: --no-shift")
    columns = extras.columns(needs, store, task=cfg.probe.task, language_model=cfg.language_model)
    n_crop = crop_samples(cfg, store)
    crop = None if n_crop is None else RandomCrop(length=n_crop)
    tokenize = None if tokenizer is None else tokens.Tokenize(tokenizer, cfg.model.n_positions)
    transform = ShiftAndNormalize(cfg.normalization, store.fs if "aux" in needs else None, crop, tokenize)
    source = extras.Carrying(WithNext(store) if cfg.shift else store, columns)
    batches = Batches(source, rows, transform=transform, order=order_of(cfg, store), **share)
    validation, validation_rows = None, spread(validation_rows, cfg.fit.validate_items)
    if len(validation_rows) >= world.world_size:
        validation = Batches(extras.Carrying(store, columns), validation_rows, transform=transform, shuffle=False, **share)
    model = build_model(cfg, cfg.fit.seed)
    return Parts(started(model, cfg.weights) if cfg.weights else model, objective_of(cfg, store, rows), batches, validation)


def order_of(cfg: PretrainConfig, store: Store | Stores) -> Mixture | BlockShuffle | None:
    """How an epoch of training orders its windows; None for the exact shuffle. ValueError for a mix that does not fit the stores."""
    if cfg.mix:
        if cfg.shuffle == "blocks":
            raise ValueError("--mix mixes the stores window by window, --shuffle blocks reads neighbours together: give one of the two")
        sizes = store.sizes if isinstance(store, Stores) else (len(store),)
        if len(cfg.mix) != len(sizes):
            raise ValueError(f"mix has {len(cfg.mix)} shares for {len(sizes)} stores: give one a store")
        return Mixture(sizes=sizes, weights=cfg.mix)
    if cfg.shuffle == "exact":
        return None
    first = store.stores[0] if isinstance(store, Stores) else store
    return BlockShuffle(block=chunk_windows(len(store.channels), store.n_samples, first.manifest["dtype"]))


def validation_rows(cfg: PretrainConfig, store: Store | Stores) -> np.ndarray:
    """Rows of the validation folds that exist; empty where there are none."""
    folds = [fold for fold in fold_names(cfg.validate_on) if fold in store.folds]
    return store.rows(tuple(folds)) if folds else np.zeros(0, np.int64)


def spread(rows: np.ndarray, n: int | None) -> np.ndarray:
    """At most n of some rows, spread evenly over them; None gives all."""
    return rows if n is None or n >= len(rows) else rows[np.arange(n) * len(rows) // n]


def objective_of(cfg: PretrainConfig, store: Store | Stores, rows: np.ndarray) -> Any:
    """The objective, with the class counts of the training windows where its classes are to be weighed."""
    if not cfg.class_weights:
        return cfg.objective
    if not hasattr(cfg.objective, "class_counts"):
        raise ValueError(f"class_weights belongs to an objective that learns labels, not to {row_of(cfg.objective, OBJECTIVES)!r}")
    label_N = np.asarray(extras.labels(store, cfg.probe.task))[rows]
    counts = np.bincount(label_N[label_N >= 0].astype(np.int64), minlength=cfg.objective.n_classes)
    return replace(cfg.objective, class_counts=tuple(counts.tolist()))


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
