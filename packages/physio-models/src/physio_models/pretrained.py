"""Models as folders: save one, load one, or start one untrained. Nothing here writes or runs a pickle.

    FOLDER/config.json          {"model": {"name": a row of MODELS, "config": {...}}}
           contract.json        what the input must be, with the fingerprint
           model.safetensors    weights and running statistics
           seen.json            data and subjects of pretraining, where known
           README.md            the model card, where one was given

A run folder of training has the same config and contract, and weights under ``checkpoints/step_N``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from physio_models import MODELS, hub, nearest, resolve
from physio_models.card import ModelCard, markdown
from physio_models.contract import Encoder, InputContract
from physio_models.interface import unwrap

WEIGHTS = "model.safetensors"
N_FINGERPRINT = 16
FINGERPRINT_TOLERANCE = 1e-3  # of the largest number; devices and library versions differ by less


def model_document(config: Any) -> dict[str, Any]:
    """``{"name": ..., "config": {...}}`` of a model's config, as config.json keeps it. ``ValueError`` if it is no row of MODELS."""
    target = f"{type(config).__module__}:{type(config).__qualname__}"
    name = next((name for name, row in MODELS.items() if row == target), None)
    if name is None:
        raise ValueError(f"{target} is no row of MODELS ({', '.join(MODELS)}), so a file cannot name it; add the row")
    return {"name": name, "config": asdict(config)}


def config_from_document(document: Mapping[str, Any]) -> Any:
    """The model's config from `model_document`'s values; the name is looked up in MODELS alone. ``ValueError`` for unknown keys."""
    if not isinstance(document, Mapping) or "name" not in document:
        raise ValueError(f"model must be {{'name': ..., 'config': {{...}}}}, got {document!r}")
    return config_from_json(resolve(MODELS, document["name"]), document.get("config", {}))


def config_from_json(cls: type, values: Mapping[str, Any]) -> Any:
    """A frozen config dataclass from plain values, lists becoming tuples. ``ValueError`` for an unknown key, naming the nearest."""
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            raise ValueError(f"{cls.__name__} has no key {key!r}{nearest(key, known)}; keys are {', '.join(known)}")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def build_untrained(name: str, config: Any = None, seed: int = 0) -> nn.Module:
    """A model as initialised from ``seed``; the same weights every time, and torch's global generators stay as they were.

    ``config`` is a config object, its plain values, or None for the defaults.
    """
    cls = resolve(MODELS, name)
    if config is None or isinstance(config, Mapping):
        config = config_from_json(cls, config or {})
    if not isinstance(config, cls):
        raise ValueError(f"config of {name!r} must be a {cls.__name__}, got {type(config).__name__}")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return config.build().eval()


def untrained_encoder(name: str, config: Any, contract: InputContract, seed: int = 0) -> Encoder:
    """An `Encoder` around `build_untrained`, marked untrained; it has seen no data."""
    model = build_untrained(name, config, seed)
    return Encoder(model, contract, name=name, config=model.cfg, seen={"stores": [], "subjects": []}, source=f"{name}, untrained, seed {seed}", untrained=True)


def save_pretrained(
    folder: Path | str, model: nn.Module, config: Any, contract: InputContract, seen: Mapping[str, Any] | None = None, *, card: ModelCard | None = None
) -> Path:
    """Write a model as a folder that appears whole or not at all; returns it. The contract gets the model's fingerprint.

    ``config`` is the model's config, ``seen`` plain values, ``card`` what README.md says (`hub.upload` needs one).
    ``FileExistsError`` where the folder holds something already.
    """
    folder, model = Path(folder), unwrap(model)
    document = {"model": model_document(config)}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: choose another folder")
    contract = replace(contract, fingerprint=fingerprint(model, contract))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}, temporary / WEIGHTS)
        for name, content in (("config", document), ("contract", contract.to_json()), ("seen", seen)):
            if content is not None:
                (temporary / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if card is not None:
            (temporary / "README.md").write_text(markdown(card, document["model"], contract, seen), encoding="utf-8")
        for file in temporary.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        temporary.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def from_pretrained(path: Path | str, *, device: torch.device | str = "cpu", verify: bool = True) -> Encoder:
    """The `Encoder` in a saved folder, a run folder (its best step, else its last), a step folder of a run, or on the Hub.

    ``hf:owner/name`` or ``hf:owner/name@revision`` fetches a saved folder from the Hugging Face Hub (extra ``physio-models[hub]``).
    With ``verify`` the golden input must give the contract's fingerprint where it has one. ``ValueError`` says which file is
    missing, damaged or does not fit.
    """
    source, path = str(path), hub.download(str(path)) if hub.is_hub_id(path) else Path(path)
    weights, home = _locate(path)
    document = _read_json(home / "config.json")
    if "model" not in document:
        raise ValueError(f"{home / 'config.json'} has no key 'model' with the model's name and config")
    config = config_from_document(document["model"])
    contract = InputContract.from_json(_read_json(home / "contract.json"))
    seen = _read_json(home / "seen.json") if (home / "seen.json").exists() else None
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced at once
        model = config.build()
    load_strictly(model, _read_weights(weights), weights)
    encoder = Encoder(model.to(device), contract, name=document["model"]["name"], config=config, seen=seen, source=source, home=home)
    if verify and contract.fingerprint and not same_fingerprint(fingerprint(model, contract), contract.fingerprint):
        raise ValueError(f"{weights} does not give the fingerprint of {home / 'contract.json'}: the weights or the contract were changed; save the model anew")
    return encoder


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Load a state dict whose keys and shapes must be the model's. ``ValueError`` names those that are not."""
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}" for k in own.keys() & state.keys() if state[k].shape != own[k].shape]
    found = [f"{what}: {_some(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", sorted(shapes))) if keys]
    if found:
        raise ValueError(f"{source} does not fit the model; " + "; ".join(found))
    model.load_state_dict(state)


def fingerprint(model: nn.Module, contract: InputContract) -> tuple[float, ...]:
    """Sixteen numbers that a golden input (golden ids, where the model reads tokens) gives: every level's mean, projected; six significant digits."""
    spec = replace(contract.spec, polarity=1)
    encoder = Encoder(model, contract, tokenize=lambda *_: golden_tokens(model.cfg.n_ids, model.cfg.n_positions))
    pooled_D = encoder.features(golden_input(contract), spec, level="all", pool="mean")[0].double().cpu()
    phase_DK = torch.outer(torch.arange(1, len(pooled_D) + 1, dtype=torch.float64), torch.arange(1, N_FINGERPRINT + 1, dtype=torch.float64) ** 0.5)
    return tuple(float(f"{value:.6g}") for value in (pooled_D @ torch.cos(phase_DK)).tolist())


def same_fingerprint(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Equal but for rounding."""
    return len(a) == len(b) and max(abs(x - y) for x, y in zip(a, b, strict=True)) <= FINGERPRINT_TOLERANCE * max(map(abs, b))


def fingerprint_hash(values: tuple[float, ...]) -> str:
    """A short name for a fingerprint, to print; compare with `same_fingerprint`."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def golden_input(contract: InputContract) -> Tensor:
    """(1, C, T): a fixed pulse train on a slow wave, shifted from channel to channel."""
    t_T = torch.arange(contract.n_samples, dtype=torch.float64) / contract.fs
    shift_C1 = torch.arange(len(contract.channels), dtype=torch.float64)[:, None] / 7
    beat = torch.exp(6 * (torch.cos(2 * torch.pi * 1.25 * (t_T - shift_C1)) - 1))
    return (beat + 0.2 * torch.sin(2 * torch.pi * 0.23 * t_T + shift_C1)).float()[None]


def golden_tokens(n_ids: int, n_positions: int) -> tuple[Tensor, Tensor]:
    """(1, N) ids all over the vocabulary, all of them real."""
    ids_1N = (torch.arange(min(64, n_positions)) * 2_654_435_761 % 4_294_967_291 % n_ids)[None]
    return ids_1N, torch.ones_like(ids_1N, dtype=torch.bool)


def _locate(path: Path) -> tuple[Path, Path]:
    """The weights file and the folder that has config.json and contract.json."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder: give a run, step or saved folder; an original's file is read by reference.load_reference")
    if (path / "checkpoints").is_dir():
        return _run_step(path) / WEIGHTS, path
    if (path / WEIGHTS).exists() and (path / "config.json").exists():
        return path / WEIGHTS, path
    if (path / WEIGHTS).exists() and (path / "meta.json").exists():
        home = path.resolve().parent.parent
        if not (home / "config.json").exists():
            raise ValueError(f"{path} is a step folder outside its run: {home} has no config.json; give the run folder or a saved one")
        return path / WEIGHTS, home
    raise ValueError(f"{path} holds no model: it needs {WEIGHTS} with config.json and contract.json, or checkpoints/step_N")


def _run_step(run: Path) -> Path:
    """The best step of a run where one is named and there, else the last complete one."""
    steps = {int(p.name[5:]): p for p in (run / "checkpoints").glob("step_*") if p.name[5:].isdigit() and (p / "meta.json").exists() and (p / WEIGHTS).exists()}
    if not steps:
        raise ValueError(f"{run / 'checkpoints'} has no complete step_N folder: the run saved no checkpoint yet; resume it")
    best = _read_json(run / "best.json").get("step") if (run / "best.json").exists() else None
    return steps[best] if best in steps else steps[max(steps)]


def _read_weights(path: Path) -> dict[str, Tensor]:
    meta = path.with_name("meta.json")
    digest = _read_json(meta).get("files", {}).get(WEIGHTS) if meta.exists() else None
    if digest is not None and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {meta.name}; use another step")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); save the model anew or use another step") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"{path} is missing: the folder is no complete run or saved model")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON ({error}); restore it from the run") from error


def _some(keys: list[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
