"""The manifest of a store: one JSON file, written last, that states what the shards hold and everything that made them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

FORMAT = "physio-store"
SCHEMA = 2  # the newest that is read
SCHEMA_PLAIN = 1  # of stores without compression: earlier versions read them too
MANIFEST = "manifest.json"
_REQUIRED = ("format", "schema", "channels", "units", "fs", "n_samples", "window_s", "dtype", "tasks", "columns", "shards", "n_windows")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    """Write `manifest.json` so that it appears whole or not at all; its bytes depend on its content only."""
    text = json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomic(folder / MANIFEST, text.encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to disk and rename it; the temporary file never outlives an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(folder: Path) -> tuple[dict, str]:
    """The manifest of the store at `folder` and the SHA-256 of its bytes, the name by which a run knows the store.

    Raises ValueError where there is none, where it is damaged, or where it comes from a newer version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = (folder / ".journal.jsonl").exists()
        state = "its prepare did not finish: run the same prepare again, it resumes" if unfinished else "make one with prepare"
        raise ValueError(f"{folder} is not a store: no {MANIFEST}; {state}")
    content = path.read_bytes()
    return parse_manifest(content, path), hashlib.sha256(content).hexdigest()


def parse_manifest(content: bytes, path: str | Path) -> dict:
    """The manifest that the bytes of `path` hold. ValueError where they are damaged or come from a newer version."""
    try:
        manifest = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}; prepare the store again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} does not say format {FORMAT!r}; this is not a store's manifest")
    schema = manifest.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}, this physio-data reads up to {SCHEMA}: update physio-data or prepare the store again")
    missing = [key for key in _REQUIRED if key not in manifest]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}; prepare the store again")
    return manifest
