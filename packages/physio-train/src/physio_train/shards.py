"""A training state in several files, one a rank, and the index that puts it together again on any number of ranks.

    state-00000-of-00002.safetensors   this rank's rows of each tensor that is shared out, and on rank 0 all that is not
    state.index.json                   {"tensors": {name: {"shape": [...], "pieces": [[file, first row], ...]}}}

Every file's header repeats which rows it holds, so the index can be made from the files alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

INDEX = "state.index.json"
_PIECES = "pieces"


def name_of(rank: int, n_ranks: int) -> str:
    """The file of a rank."""
    return f"state-{rank:05d}-of-{n_ranks:05d}.safetensors"


def encode(pieces: Mapping[str, tuple[Tensor, int, tuple[int, ...]]]) -> bytes:
    """The content of one rank's file, from name -> (rows held, first row, whole shape). Tensors without a row are left out."""
    held = {name: piece for name, piece in pieces.items() if piece[0].numel() or not piece[2]}
    where = {name: {"first": first, "shape": list(shape)} for name, (_, first, shape) in held.items()}
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, (tensor, _, _) in held.items()}
    return safetensors.torch.save(tensors, metadata={_PIECES: json.dumps(where, sort_keys=True)})


def index(folder: Path, names: list[str]) -> dict[str, Any]:
    """The index of some ranks' files in a folder."""
    tensors: dict[str, Any] = {}
    for name in names:
        with safetensors.safe_open(folder / name, framework="pt") as file:
            for key, where in json.loads(file.metadata()[_PIECES]).items():
                entry = tensors.setdefault(key, {"shape": where["shape"], "pieces": []})
                entry["pieces"].append([name, where["first"]])
    return {"tensors": dict(sorted(tensors.items()))}


def assemble(document: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The whole tensors of an index from its files' tensors. ValueError where rows are missing or come twice."""
    return {name: _whole(name, entry, files) for name, entry in document["tensors"].items()}


def _whole(name: str, entry: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    pieces = sorted(((first, files[file][name]) for file, first in entry["pieces"]), key=lambda piece: piece[0])
    if not entry["shape"] or len(pieces) == 1:
        return pieces[0][1]
    at = 0
    for first, tensor in pieces:
        if first != at:
            raise ValueError(f"{name} of a sharded state has rows up to {at} and then from {first}: the index and its files do not belong together")
        at += len(tensor)
    if at != entry["shape"][0]:
        raise ValueError(f"{name} of a sharded state has {at} of {entry['shape'][0]} rows: a shard is missing from the index")
    return torch.cat([tensor for _, tensor in pieces])
