"""Download: the files of a source into a folder, in parallel, resumable, each checked against the sum that its host publishes.

What came is written to `received.jsonl` in the folder, a line a file: path, bytes, SHA-256, and which sum it was checked by ("" where none is
published). A second run trusts a file that this record knows by size and time, and hashes only what it does not know.
"""

from __future__ import annotations

import fnmatch
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from physio_data.fetch import DownloadError, Link, Manners, NotAllowed, digests, fetch
from physio_data.sources import Source

SUMS, RECEIVED = "SHA256SUMS.txt", "received.jsonl"
ZENODO = "https://zenodo.org/api/records/"
_SUM = re.compile(r"^([0-9a-fA-F]{64})[ \t]+\*?(.+)$")
_GIVE_UP_AFTER = 5  # files that could not be had: the host is down, or not the one meant


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One file to fetch: where it goes below the folder, where it is, what it must hash to."""

    path: str
    url: str
    algorithm: str = "sha256"
    digest: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a download is."""

    n_done: int
    n_files: int
    n_bytes: int  # received in this run


def download(
    source: Source,
    out: str | Path,
    *,
    only: Sequence[str] = (),
    urls: Mapping[str, str] | None = None,
    manners: Manners | None = None,
    netrc_path: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, object]:
    """Bring the files of a source into the folder `out`: `listing`, `chosen` and `fetch_all` in one call, errors as theirs."""
    link = Link(manners or Manners(), None if netrc_path is None else Path(netrc_path))
    return fetch_all(chosen(listing(source, Path(out), link, urls or {}), only or source.only), out, link=link, progress=progress)


def fetch_all(wanted: Sequence[Wanted], out: str | Path, *, link: Link, progress: Callable[[Progress], None] | None = None) -> dict[str, object]:
    """Bring files into the folder `out`; {"files", "fetched", "bytes", "unchecked": [paths without a published sum]}.

    Files that are there and whole are left alone. Raises DownloadError naming what could not be had after all others were tried (at most five
    failures; at once where the host wants credentials).
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(out, wanted, link, progress)
    try:
        with ThreadPoolExecutor(link.manners.connections) as pool:
            workers = [pool.submit(run.work) for _ in range(link.manners.connections)]
            try:
                for worker in workers:
                    worker.result()
            except BaseException:
                link.stop.set()  # the other connections stop at their next piece; what has come is kept
                raise
    finally:
        run.close()
    if run.failed:
        raise DownloadError(f"{len(run.failed)} of {len(wanted)} files are missing, the same command tries them again; the first: {run.failed[0]}")
    unchecked = [item.path for item in wanted if not item.digest]
    return {"files": len(wanted), "fetched": run.n_fetched, "bytes": run.n_bytes, "unchecked": unchecked}


def listing(source: Source, out: Path, link: Link, urls: Mapping[str, str]) -> list[Wanted]:
    """Every file of a source; `urls` gives the address of those that the source has none of.

    The list itself (SHA256SUMS.txt, a Zenodo record) is fetched anew each time. ValueError for a list that is none, and for files without an
    address.
    """
    out.mkdir(parents=True, exist_ok=True)
    if source.tree:
        fetch(source.tree + SUMS, out / SUMS, link=link)
        sums = parse_sums((out / SUMS).read_text(encoding="utf-8"), source.tree)
        return [
            Wanted(path=path.removeprefix(source.under), url=source.tree + quote(path), digest=digest)
            for path, digest in sums.items()
            if path.startswith(source.under)
        ]
    if source.zenodo:
        record = out / "zenodo.json"
        fetch(f"{ZENODO}{source.zenodo}", record, link=link)
        return parse_zenodo(json.loads(record.read_bytes()))
    unknown = sorted(set(urls) - {file.name for file in source.files})
    if unknown:
        raise ValueError(f"url names {unknown[0]!r}; the files of this source are {', '.join(file.name for file in source.files)}")
    if lacking := [file.name for file in source.files if not (file.url or urls.get(file.name))]:
        raise ValueError(f"no direct address of {lacking[0]} is published: {source.note} ({source.page})")
    return [Wanted(path=file.name, url=urls.get(file.name, file.url), algorithm=file.algorithm, digest=file.digest) for file in source.files]


def parse_sums(text: str, where: str) -> dict[str, str]:
    """{path: SHA-256} of a SHA256SUMS file. ValueError for a line of another form and for a path that leads out of the folder."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _SUM.match(line)
        if match is None:
            raise ValueError(f"{where}{SUMS}, line {number}: not `SHA-256 path` but {line[:60]!r}; the address may lead to a web page")
        found[_inside(match[2].removeprefix("./"), f"{where}{SUMS}")] = match[1].lower()
    if not found:
        raise ValueError(f"{where}{SUMS} is empty; check the address")
    return found


def parse_zenodo(record: Mapping) -> list[Wanted]:
    """The files of a Zenodo record with the sums it states (https://developers.zenodo.org)."""
    try:
        items = [(file["key"], *str(file["checksum"]).split(":", 1), file["links"]["self"]) for file in record["files"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the Zenodo record has another form than expected ({error}); fetch the files from its page by hand") from error
    return [Wanted(path=_inside(key, "the Zenodo record"), url=url, algorithm=algorithm, digest=digest) for key, algorithm, digest, url in items]


def chosen(wanted: Iterable[Wanted], only: Sequence[str]) -> list[Wanted]:
    """The files whose path matches one of the patterns; all where there is none."""
    wanted = list(wanted)
    found = [item for item in wanted if not only or any(fnmatch.fnmatchcase(item.path, pattern) for pattern in only)]
    if not found:
        raise ValueError(f"only {', '.join(only) or 'everything'} matches none of the {len(wanted)} files; the first is {wanted[0].path if wanted else 'none'}")
    return found


def _inside(path: str, where: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in parts[0]:
        raise ValueError(f"{where} names {path!r}, which leads out of the folder; do not use this source")
    return path


class _Run:
    """What the connections of one download share: the files still to get, the record of what came, the counts."""

    def __init__(self, out: Path, wanted: Sequence[Wanted], link: Link, progress: Callable[[Progress], None] | None) -> None:
        self.out, self.link, self.progress, self.n_files = out, link, progress, len(wanted)
        self.failed: list[str] = []
        self.n_done = self.n_fetched = self.n_bytes = 0
        self._known = _read_received(out / RECEIVED)
        self._record = open(out / RECEIVED, "a", encoding="utf-8")
        self._todo: Iterator[Wanted] = iter(wanted)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._record.close()

    def work(self) -> None:
        """One connection: file after file until none is left."""
        while not self.link.stop.is_set():
            with self._lock:
                item = next(self._todo, None)
            if item is None:
                return
            try:
                if not self._whole(item):
                    got = fetch(item.url, self.out / item.path, algorithm=item.algorithm, digest=item.digest, link=self.link, on_bytes=self._count)
                    self._note(item, got)
                    self.n_fetched += 1
            except NotAllowed:
                raise
            except DownloadError as error:
                if self.link.stop.is_set():
                    return
                with self._lock:
                    self.failed.append(str(error))
                    if len(self.failed) >= _GIVE_UP_AFTER:
                        self.link.stop.set()
            self._count(0, done=1)

    def _whole(self, item: Wanted) -> bool:
        """Whether the file is there as published; one that no record knows is hashed once."""
        path = self.out / item.path
        if not path.is_file():
            return False
        facts, state = self._known.get(item.path), path.stat()
        if facts and (facts["bytes"], facts["mtime_ns"]) == (state.st_size, state.st_mtime_ns):
            return not item.digest or facts["digest"] == item.digest
        if not item.digest:
            return False
        found = digests(path, item.algorithm)
        if found[item.algorithm] != item.digest:
            return False
        self._note(item, {"bytes": state.st_size, "sha256": found["sha256"]})
        return True

    def _note(self, item: Wanted, got: Mapping[str, object]) -> None:
        facts = {"path": item.path, **got, "checked": item.algorithm if item.digest else "", "digest": item.digest}
        line = json.dumps(facts | {"mtime_ns": (self.out / item.path).stat().st_mtime_ns}, ensure_ascii=False)
        with self._lock:
            self._record.write(line + "\n")
            self._record.flush()

    def _count(self, n_bytes: int, done: int = 0) -> None:
        with self._lock:
            self.n_bytes += n_bytes
            self.n_done += done
            if self.progress is not None:
                self.progress(Progress(self.n_done, self.n_files, self.n_bytes))


def _read_received(path: Path) -> dict[str, dict]:
    """The record of earlier runs by path; a line cut off by a crash is left out."""
    found: dict[str, dict] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            facts = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[facts["path"]] = facts
    return found
