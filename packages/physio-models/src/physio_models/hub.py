"""Saved models on the Hugging Face Hub, through its own library (extra ``physio-models[hub]``). Only the files of a saved folder travel."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

PREFIX = "hf:"
"""Before the id of a model on the Hub: ``hf:owner/name`` or ``hf:owner/name@revision``. A path never starts so."""
FILES = ("config.json", "contract.json", "model.safetensors", "seen.json", "README.md")


def is_hub_id(path: Path | str) -> bool:
    """Whether this names a model on the Hub rather than a folder."""
    return str(path).startswith(PREFIX)


def download(hub_id: str) -> Path:
    """The folder of a saved model, fetched or found in the library's cache. ``ValueError`` for an id that is none, ``ImportError`` without the extra."""
    owner_name, revision = parse(hub_id)
    return Path(library().snapshot_download(owner_name, revision=revision, allow_patterns=list(FILES)))


def upload(folder: Path | str, hub_id: str, *, private: bool = True, message: str = "Upload model") -> str:
    """Put a saved folder on the Hub, private unless told otherwise; returns the address of the commit. Credentials are the library's matter.

    The folder is loaded first, so that what does not give its fingerprint never leaves. ``ValueError`` for a folder without a
    model card: weights do not travel without their licence, data and floors.
    """
    from physio_models.pretrained import from_pretrained  # which imports this module

    folder = Path(folder)
    owner_name, revision = parse(hub_id)
    from_pretrained(folder)
    if not (folder / "README.md").exists():
        raise ValueError(f"{folder} has no model card: save it with card=ModelCard(...)")
    api = library().HfApi()
    api.create_repo(owner_name, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=owner_name, folder_path=str(folder), allow_patterns=list(FILES), revision=revision, commit_message=message))


def parse(hub_id: str) -> tuple[str, str | None]:
    """Owner/name and revision of an id."""
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", str(hub_id))
    if not match:
        raise ValueError(f"{hub_id!r} is no model on the Hub: write hf:owner/name or hf:owner/name@revision")
    return match[1], match[2]


def library() -> Any:
    """The Hub's library."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError("models on the Hub need the huggingface_hub library: pip install 'physio-models[hub]'") from error
