"""Step folders that appear whole or not at all: safetensors and JSON, each file's SHA-256 checked when read.

    checkpoints/step_120/model.safetensors   the weights that validation used (the moving average where it is on)
                         state.safetensors   optimiser, live weights beside an average, objective's modules, random states
                                             (shared out over ranks: state-R-of-N.safetensors and state.index.json, see `shards`)
                         meta.json           step, config, sampler position, SHA-256 of the other files

A step is written into a hidden sibling folder, flushed to the disk and renamed, so whatever interrupts it (a kill, a full
disk) leaves the steps before it untouched and readable.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from physio_train import shards

FORMAT = 1
_MODEL, _STATE, _META = "model.safetensors", "state.safetensors", "meta.json"


@dataclass(frozen=True)
class Checkpoint:
    """A step read back: tensors on the host and `meta.json`."""

    path: Path
    step: int
    model: dict[str, Tensor]
    state: dict[str, Tensor]
    meta: dict[str, Any]


def save(
    folder: Path | str,
    step: int,
    *,
    model: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    keep_last: int | None = None,
    keep: Collection[int] = (),
) -> Path:
    """Write `folder/step_<step>` and return it. `keep_last` newest steps stay, and those in `keep`; None keeps all.

    OSError (a full disk, say) leaves every earlier step as it was and no temporary folder behind.
    """
    temporary = begin(folder, step)
    try:
        files = {_STATE: write(temporary / _STATE, _encoded(state))}
        return finish(folder, step, model=model, meta=meta, files=files, keep_last=keep_last, keep=keep)
    except BaseException:
        abandon(folder, step)
        raise


def begin(folder: Path | str, step: int) -> Path:
    """The hidden folder in which a step is put together; `finish` makes it appear, `abandon` removes it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    temporary = _hidden(folder, step)
    temporary.mkdir()
    return temporary


def finish(
    folder: Path | str,
    step: int,
    *,
    model: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    files: Mapping[str, str],
    keep_last: int | None = None,
    keep: Collection[int] = (),
) -> Path:
    """Add weights and meta to a step that was begun, and make it appear. `files` are the state's, by name, with their SHA-256."""
    folder = Path(folder)
    target, temporary = folder / f"step_{step}", _hidden(folder, step)
    files = {_MODEL: write(temporary / _MODEL, _encoded(model)), **files}
    document = {**meta, "format": FORMAT, "step": step, "files": files}
    write(temporary / _META, json.dumps(document, indent=1, sort_keys=True).encode())
    _flush(temporary)
    if target.exists():
        target.rename(folder / f".step_{step}.old")
    temporary.rename(target)
    _flush(folder)
    _prune(folder, keep_last, {step, *keep})
    return target


def abandon(folder: Path | str, step: int) -> None:
    """Remove what was written of a step that cannot be finished."""
    shutil.rmtree(_hidden(Path(folder), step), ignore_errors=True)


def _hidden(folder: Path, step: int) -> Path:
    return folder / f".step_{step}.tmp"


def _encoded(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({key: _host(value) for key, value in tensors.items()})


def load(path: Path | str) -> Checkpoint:
    """Read a step folder. ValueError names the file that is missing or whose SHA-256 is not the one written, and the step before."""
    path = Path(path)
    meta = read_meta(path)
    content: dict[str, Any] = {}
    for name, digest in meta["files"].items():
        data = (path / name).read_bytes() if (path / name).exists() else None
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{path / name} is {'missing' if data is None else 'not the file that was written (SHA-256 differs)'}; {_earlier(path)}")
        content[name] = safetensors.torch.load(data) if name.endswith(".safetensors") else json.loads(data)
    state = shards.assemble(content[shards.INDEX], content) if shards.INDEX in content else content[_STATE]
    return Checkpoint(path, meta["step"], content[_MODEL], state, meta)


def read_meta(path: Path | str) -> dict[str, Any]:
    """`meta.json` of a step folder. ValueError where there is none, or one of a newer format."""
    file = Path(path) / _META
    if not file.exists():
        raise ValueError(f"{path} is no checkpoint: it has no {_META}; name a step folder such as checkpoints/step_100")
    meta = json.loads(file.read_text())
    if meta.get("format", 0) > FORMAT:
        raise ValueError(f"{path} has checkpoint format {meta['format']}, newer than {FORMAT} which this version reads: upgrade physio-train")
    return meta


def steps(folder: Path | str) -> list[int]:
    """The steps in a checkpoints folder, oldest first."""
    found = Path(folder).glob("step_*") if Path(folder).is_dir() else []
    return sorted(int(path.name[5:]) for path in found if path.name[5:].isdigit())


def latest(folder: Path | str) -> Path | None:
    """The newest step folder, or None where there is none."""
    found = steps(folder)
    return Path(folder) / f"step_{found[-1]}" if found else None


def check_config(saved: Mapping[str, Any], current: Mapping[str, Any], *, changeable: Collection[str] = ()) -> None:
    """ValueError naming every key, dotted through nested tables, in which two configs differ, `changeable` ones aside.

    A changeable key covers what lies under it: `data` covers `data.path`.
    """
    old, new = _flat(saved), _flat(current)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and not _covered(key, changeable))
    if differing:
        listed = ", ".join(f"{key} ({old.get(key)!r} saved, {new.get(key)!r} given)" for key in differing)
        raise ValueError(f"the checkpoint was made with another config: {listed}; give the saved values or start a new run")


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": list(value) if isinstance(value, tuple) else value}
    return out


def _covered(key: str, changeable: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in changeable)


def _host(tensor: Tensor) -> Tensor:
    """A contiguous copy of its own on the host: safetensors refuses tensors that share memory."""
    return tensor.detach().cpu().clone().contiguous()


def write(path: Path, data: bytes) -> str:
    """Write, flush to the disk, and return the SHA-256."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what an interrupted save or deletion left, and put back a step whose replacement never came; a run has one writer."""
    for left in folder.glob(".step_*"):
        step = folder / left.name[1:].removesuffix(".old")
        if left.suffix == ".old" and not step.exists():
            left.rename(step)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _prune(folder: Path, keep_last: int | None, keep: Collection[int]) -> None:
    """Delete old steps, each renamed out of sight first so that none is ever seen half deleted."""
    if keep_last is not None:
        for step in [s for s in steps(folder)[:-keep_last] if s not in keep]:
            (folder / f"step_{step}").rename(folder / f".step_{step}.gone")
    _sweep(folder)


def _earlier(path: Path) -> str:
    step = int(path.name[5:]) if path.name[5:].isdigit() else 0
    before = [s for s in steps(path.parent) if s < step]
    return f"resume from {path.parent / f'step_{before[-1]}'} instead" if before else "no earlier step is there to resume from"
