"""Stores and corpora in object storage (`s3://bucket/folder`): written whole or not at all, read through a cache on this machine.

A store is prepared in the cache, its shards are uploaded, and its manifest last: without a manifest nothing is a store, so a cut upload is
never read. Reading copies shard after shard into the cache, checks each against the manifest's SHA-256, and then maps local files. A
corpus's folder is mirrored into the cache. Credentials and endpoint come from where the AWS tools take them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from physio_data.journal import StoreBusy, locked
from physio_data.manifest import MANIFEST, file_sha256, parse_manifest, read_manifest, write_atomic

UPLOADED = ".uploaded.json"  # which shards of an unfinished upload are there: {file: SHA-256}
MIRRORED = "mirrored.json"  # what the mirror of a corpus holds: {path: [bytes, version]}
_ADDRESS = re.compile(r"^([a-z][a-z0-9+.-]+):/+(.+)$")  # also as a Path writes it, with one slash
_PARALLEL = 8  # files of a corpus fetched at once
_WAIT_S = 0.2  # between looks at a copy that another process makes


def is_remote(path: str | Path | None) -> bool:
    """Whether a path names object storage, as `s3://bucket/folder` does."""
    return path is not None and _ADDRESS.match(str(path)) is not None


def address(path: str | Path) -> str:
    """The address in its usual spelling, without a slash at the end; a Path drops one of the two slashes."""
    found = _ADDRESS.match(str(path))
    if found is None:
        raise ValueError(f"{path} is no address such as s3://bucket/folder")
    return f"{found[1]}://{found[2].rstrip('/')}"


def default_cache() -> Path:
    """Where copies lie unless told otherwise: `.cache/physio-data` of the user's folder."""
    return Path.home() / ".cache" / "physio-data"


def cache_folder(url: str, cache: str | Path | None, suffix: str) -> Path:
    """The folder of the cache that belongs to an address."""
    return Path(cache or default_cache()) / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{suffix}"


@contextmanager
def reached(url: str) -> Iterator[tuple[object, str]]:
    """(file system, path in it) of an address. ImportError names the extra that is missing; OSError says why it could not be reached."""
    scheme = url.partition("://")[0]
    try:
        import fsspec
        from botocore.exceptions import BotoCoreError
        from s3fs import S3FileSystem
    except ImportError as error:
        raise ImportError(f'{url} needs the package s3fs: pip install "physio-data[s3]"') from error
    # Listings change under us: a store that another process finishes must be seen.
    files = S3FileSystem(use_listings_cache=False) if scheme == "s3" else fsspec.filesystem(scheme)
    try:
        yield files, url.partition("://")[2]
    except BotoCoreError as error:
        raise OSError(f"{url} cannot be reached: {error}") from error


def manifest_of(url: str) -> dict | None:
    """The manifest of the store at an address, None where there is no finished store. ValueError for a damaged or newer one."""
    with reached(url) as (files, base):
        content = _content(files, f"{base}/{MANIFEST}")
    return None if content is None else parse_manifest(content, f"{url}/{MANIFEST}")


def staging(url: str, cache: str | Path | None = None) -> Path:
    """Where a store is prepared before it is uploaded; an interrupted prepare goes on there."""
    return cache_folder(url, cache, "staging")


def publish(folder: Path, url: str) -> None:
    """Upload the finished store in `folder`: its shards, then its manifest. What an interrupted upload finished is not sent again.

    Raises ValueError where another store is at the address, OSError where a shard did not arrive whole.
    """
    manifest, _ = read_manifest(folder)
    content = (folder / MANIFEST).read_bytes()
    with reached(url) as (files, base):
        there = _content(files, f"{base}/{MANIFEST}")
        if there == content:
            return
        if there is not None:
            raise ValueError(f"{url} holds another store; choose another address or delete that one")
        sent = json.loads(_content(files, f"{base}/{UPLOADED}") or b"{}")
        for entry in manifest["shards"]:
            if sent.get(entry["file"]) == entry["sha256"] and files.info(f"{base}/{entry['file']}")["size"] == entry["bytes"]:
                continue
            files.put_file(str(folder / entry["file"]), f"{base}/{entry['file']}")
            if (arrived := files.info(f"{base}/{entry['file']}")["size"]) != entry["bytes"]:
                raise OSError(f"{url}/{entry['file']} arrived with {arrived} of {entry['bytes']} bytes; run the same command again")
            sent[entry["file"]] = entry["sha256"]
            files.pipe_file(f"{base}/{UPLOADED}", json.dumps(sent).encode())
        files.pipe_file(f"{base}/{MANIFEST}", content)
        files.rm_file(f"{base}/{UPLOADED}")


def keep_as_copy(folder: Path, url: str, cache: str | Path | None = None) -> Path:
    """Let the folder a store was uploaded from become the cache's copy of it, so that reading needs no download."""
    copy = cache_folder(url, cache, read_manifest(folder)[1][:16])
    if copy.exists():
        shutil.rmtree(folder)
    else:
        os.replace(folder, copy)
    return copy


def local_store(path: str | Path, cache: str | Path | None = None) -> Path:
    """The folder of a whole, checked copy of the store at an address, made where there is none. ValueError for no, half or damaged store.

    Of several processes that ask at once one copies, the others wait. A store that was replaced at its address is copied anew.
    """
    url = address(path)
    with reached(url) as (files, base):
        content = _content(files, f"{base}/{MANIFEST}")
        if content is None:
            state = "its upload did not finish: run the same prepare again" if files.exists(f"{base}/{UPLOADED}") else "make one with prepare"
            raise ValueError(f"{url} is not a store: no {MANIFEST}; {state}")
        manifest = parse_manifest(content, f"{url}/{MANIFEST}")
        folder = cache_folder(url, cache, hashlib.sha256(content).hexdigest()[:16])
        folder.mkdir(parents=True, exist_ok=True)
        while not (folder / MANIFEST).exists():
            try:
                with locked(folder):
                    for entry in manifest["shards"]:
                        _fetch_shard(files, base, url, entry, folder)
                    write_atomic(folder / MANIFEST, content)
            except StoreBusy:
                time.sleep(_WAIT_S)
    return folder


def _fetch_shard(files, base: str, url: str, entry: Mapping, folder: Path) -> None:
    name = entry["file"]
    if Path(name).name != name:
        raise ValueError(f"{url}/{MANIFEST} is damaged: {name!r} is no file name; prepare the store again")
    if (folder / name).exists():  # it was checked before it got its name
        return
    temporary = folder / f".{name}.tmp"
    try:
        files.get_file(f"{base}/{name}", str(temporary))
        if (found := file_sha256(temporary)) != entry["sha256"]:
            raise ValueError(f"{url}/{name} is damaged: SHA-256 {found}, the manifest says {entry['sha256']}; upload the store again")
        os.replace(temporary, folder / name)
    except FileNotFoundError as error:
        raise ValueError(f"{url} lacks its shard {name}; upload the store again") from error
    finally:
        temporary.unlink(missing_ok=True)


def local_root(root: str | Path | None, cache: str | Path | None = None) -> str | None:
    """A corpus's folder on this machine: as it is, or for an address a mirror of everything below it, brought up to date.

    The mirror's last folder has the name that the address ends in. Files gone at the address go from the mirror too. ValueError where nothing
    is at the address.
    """
    if root is None or not is_remote(root):
        return None if root is None else str(root)
    url = address(root)
    home = cache_folder(url, cache, "corpus")
    mirror = home / url.rpartition("/")[2]
    mirror.mkdir(parents=True, exist_ok=True)
    with locked(home), reached(url) as (files, base):
        there = {name[len(base) + 1 :]: facts for name, facts in files.find(base, detail=True).items()}
        if not there:
            raise ValueError(f"{url} holds no file; check the address")
        if bad := [name for name in there if ".." in Path(name).parts]:
            raise ValueError(f"{url} has a file named {bad[0]!r}, which leads out of the folder; rename it")
        wanted = {name: [facts["size"], str(facts.get("ETag", ""))] for name, facts in there.items()}
        record = home / MIRRORED
        have = json.loads(record.read_bytes()) if record.exists() else {}
        stale = [name for name, version in wanted.items() if have.get(name) != version or not (mirror / name).is_file()]
        for name in set(have) - set(wanted):
            (mirror / name).unlink(missing_ok=True)
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(lambda name: _fetch(files, f"{base}/{name}", mirror / name), stale))
        write_atomic(record, json.dumps(wanted).encode())
    return str(mirror)


def _fetch(files, source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        files.get_file(source, str(temporary))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _content(files, path: str) -> bytes | None:
    try:
        return files.cat_file(path)
    except FileNotFoundError:
        return None
