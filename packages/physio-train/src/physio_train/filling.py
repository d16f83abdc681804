"""Filling a folder of features: read ahead, encode, write behind, and after a kill go on with the blocks that are missing.

Decisions taken here: rows are cut into batches once and for all, and batches into blocks; a block counts as done when its numbers are
on the disk and its number is in a journal, one a rank. So what is encoded together never changes, and a folder that was interrupted,
or shared by other ranks, ends with the same bytes. Shape letters: N windows, B windows of a batch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from physio_train import distributed, features
from physio_train.features import FORMAT, INDEX, META, PLAN, VERSION, ArrayFile, partial_folder
from physio_train.run import write_json

BATCHES_A_BLOCK = 16
AHEAD, BEHIND = 2, 4  # batches read before they are asked for, and encoded before they are written

Piece = tuple[str, int, np.ndarray]
"""Name of an array, its first row, and rows (B, ...) to put there."""


@dataclass
class Filling:
    """A folder being filled: its arrays, open, and the blocks that are done."""

    folder: Path
    partial: Path
    plan: dict[str, Any]
    arrays: dict[str, ArrayFile]
    done: frozenset[int]
    lock: IO[str] | None  # held by the rank that makes the folder

    def close(self) -> None:
        """Let go of the files; what is on the disk stays to go on with."""
        for file in (*self.arrays.values(), *([] if self.lock is None else [self.lock])):
            file.close()


def begin(folder: Path | str, plan: Mapping[str, Any], shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> Filling | None:
    """Make the hidden folder that becomes `folder`, or go on with it; None where `folder` is there already, made by the same plan.

    `plan` is everything that the numbers depend on, as plain values; `shapes` gives each array's shape and dtype. Every rank calls this.
    ValueError: another plan's features are there, another process fills the folder, or the disk is too small (said before it is filled).
    """
    folder, plan = Path(folder), json.loads(json.dumps(plan))
    partial = partial_folder(folder)
    lock, whole = None, False
    with _first_rank("the first rank could not begin: its message says why"):
        if distributed.world().is_main:
            whole = _is_made(folder, partial, plan)
            lock = None if whole else _prepared(folder, partial, plan, shapes)
    if _of_first_rank(whole):
        return None
    done = _journalled(partial)
    arrays = {name: ArrayFile(partial / f"{name}.npy", shape, dtype) for name, (shape, dtype) in shapes.items()}
    distributed.average([torch.zeros(1)])  # all have read the journals before any writes on
    return Filling(folder, partial, plan, arrays, done, lock)


def fill(
    filling: Filling,
    n_rows: int,
    batch_size: int,
    read: Callable[[slice], Any],
    encode: Callable[[Any, slice], Iterable[Piece]],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encode the blocks that are missing, this rank's share of them. `read` runs in one thread, writing in another, `encode` in this one.

    `progress(done, total)` counts this rank's rows. OSError (a full disk, say) and what `read` and `encode` raise leave a folder to go on with.
    """
    block_rows = batch_size * BATCHES_A_BLOCK
    world = distributed.world()
    todo = [block for block in range(-(-n_rows // block_rows)) if block not in filling.done][world.rank :: world.world_size]
    starts = [(block, at) for block in todo for at in range(block * block_rows, min((block + 1) * block_rows, n_rows), batch_size)]
    batches = [(block, slice(at, min(at + batch_size, n_rows))) for block, at in starts]
    n_all, n_done = sum(at.stop - at.start for _, at in batches), 0
    with (
        ThreadPoolExecutor(1, "read") as reader,
        ThreadPoolExecutor(1, "write") as writer,
        (filling.partial / f"done.{world.rank}").open("a", encoding="ascii") as journal,
    ):
        pending: deque[Future[None]] = deque()
        failed = threading.Event()
        try:
            for number, ((block, at), given) in enumerate(_ahead(reader, read, batches)):
                pieces = list(encode(given, at))
                last = number + 1 == len(batches) or batches[number + 1][0] != block
                pending.append(writer.submit(_write, filling.arrays, pieces, journal if last else None, block, failed))
                while len(pending) > BEHIND:
                    pending.popleft().result()
                n_done += at.stop - at.start
                if progress is not None:
                    progress(n_done, n_all)
            while pending:
                pending.popleft().result()
        except BaseException:
            reader.shutdown(wait=True, cancel_futures=True)
            writer.shutdown(wait=True, cancel_futures=True)
            filling.close()
            raise


def _ahead(reader: ThreadPoolExecutor, read: Callable[[slice], Any], batches: Sequence[tuple[int, slice]]) -> Iterator[tuple[tuple[int, slice], Any]]:
    coming: deque[Future[Any]] = deque(reader.submit(read, at) for _, at in batches[: AHEAD + 1])
    for number, batch in enumerate(batches):
        given = coming.popleft().result()
        if number + AHEAD + 1 < len(batches):
            coming.append(reader.submit(read, batches[number + AHEAD + 1][1]))
        yield batch, given


def _write(arrays: Mapping[str, ArrayFile], pieces: Sequence[Piece], journal: IO[str] | None, block: int, failed: threading.Event) -> None:
    """Put one batch where it belongs; after one that could not be written nothing more is, so that no block counts that lacks it."""
    if failed.is_set():
        return
    try:
        for name, row, values in pieces:
            arrays[name].write(row, values)
        if journal is not None:  # the last batch of a block
            for array in arrays.values():
                array.flush()
            journal.write(f"{block}\n")
            journal.flush()
    except BaseException:
        failed.set()
        raise


def finish(filling: Filling, meta: Mapping[str, Any], index: Mapping[str, np.ndarray]) -> Path:
    """Write index and meta.json and give the folder its name; every rank calls this and gets the path when it is there.

    `meta` is what made the features, as plain values; format, shapes, hashes and the plan are added.
    """
    for array in filling.arrays.values():
        array.flush()
    distributed.average([torch.zeros(1)])
    with _first_rank("the first rank could not finish the folder: its message says why"):
        if distributed.world().is_main:
            features.write_index(filling.partial / INDEX, index)
            shapes = {f"{name}.npy": array for name, array in filling.arrays.items()}
            files = {name: _file_entry(filling.partial / name, shapes.get(name)) for name in (*shapes, INDEX)}
            rows = next(array.shape[0] for name, array in filling.arrays.items() if name in ("z", "tokens"))
            document = {"format": FORMAT, "version": VERSION, "n_windows": rows, **meta, "files": files, "plan": plan_hash(filling.plan)}
            write_json(filling.partial / META, document)
            _name(filling.partial, filling.folder)
    filling.close()
    return filling.folder


def plan_hash(plan: Mapping[str, Any]) -> str:
    """SHA-256 of a plan: folders with the same one hold the same features."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _file_entry(path: Path, array: ArrayFile | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": features.sha256(path)}
    return entry if array is None else {"shape": list(array.shape), "dtype": array.dtype.name, **entry}


def _name(partial: Path, folder: Path) -> None:
    """Take away what filling needed, and rename. meta.json is there by then, so that a kill in between loses nothing."""
    features.flush(partial)
    for left in (partial / PLAN, partial / ".lock", *partial.glob("done.*")):
        left.unlink(missing_ok=True)
    partial.rename(folder)
    features.flush(folder.parent)


def _is_made(folder: Path, partial: Path, plan: Mapping[str, Any]) -> bool:
    """Whether the folder is whole and of this plan, given its name now if a kill came just before. ValueError where it holds anything else."""
    if _plan_of(partial) == plan_hash(plan) and not folder.exists():
        _name(partial, folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if _plan_of(folder) != plan_hash(plan):
        raise ValueError(f"{folder} is not empty and holds other features than these: choose another folder")
    return True


def _plan_of(folder: Path) -> str | None:
    path = folder / META
    return json.loads(path.read_text(encoding="utf-8")).get("plan") if path.is_file() else None


def _prepared(folder: Path, partial: Path, plan: Mapping[str, Any], shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> IO[str]:
    """The hidden folder with its arrays, locked; what an earlier run left is kept where it is of the same plan."""
    if not partial.exists():
        features.check_space(folder, features.n_bytes(shapes))
        partial.mkdir(parents=True)
    lock = (partial / ".lock").open("w", encoding="ascii")
    try:
        _locked(lock, folder)
        _laid_out(partial, plan, shapes)
    except BaseException:
        lock.close()
        raise
    return lock


def _locked(lock: IO[str], folder: Path) -> None:
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"{folder} is being filled by another process: wait for it or choose another folder") from None


def _laid_out(partial: Path, plan: Mapping[str, Any], shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Plan and arrays in the hidden folder, their space taken."""
    said = json.loads((partial / PLAN).read_text(encoding="utf-8")) if (partial / PLAN).is_file() else None
    if said is not None and said != plan:
        differing = ", ".join(sorted(key for key in said.keys() | plan.keys() if said.get(key) != plan.get(key)))
        raise ValueError(f"{partial} holds unfinished features made otherwise ({differing} differ): choose another folder, or delete it")
    if said is None:  # begun, but nothing is in it yet
        for left in [path for path in partial.iterdir() if path.name != ".lock"]:
            left.unlink()
        write_json(partial / PLAN, plan)
    try:
        for name, (shape, dtype) in shapes.items():
            ArrayFile(partial / f"{name}.npy", shape, dtype).close()
    except OSError:
        if said is None:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    _join_journals(partial)


def _journalled(partial: Path) -> frozenset[int]:
    """Blocks that are done; a last line cut off by a kill does not count."""
    done: set[int] = set()
    for journal in partial.glob("done.*"):
        done |= {int(line) for line in journal.read_text(encoding="ascii").rpartition("\n")[0].split("\n") if line}
    return frozenset(done)


def _join_journals(partial: Path) -> None:
    """One journal instead of those of earlier ranks, so that no new line is appended to one cut off."""
    done = _journalled(partial)
    joined = partial / "done.joined"
    temporary = partial / "joined.tmp"
    temporary.write_text("".join(f"{block}\n" for block in sorted(done)), encoding="ascii")
    features.flush(temporary)
    temporary.replace(joined)
    for journal in partial.glob("done.*"):
        if journal != joined:
            journal.unlink()


@contextmanager
def _first_rank(text: str) -> Iterator[None]:
    """A block that only the first rank does: where it fails there, the other ranks fail too instead of waiting."""
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # the other ranks may be gone
            distributed.broadcast([torch.ones(1)])
        raise
    failed = torch.zeros(1)
    distributed.broadcast([failed])
    if failed.item():
        raise ValueError(text)


def _of_first_rank(value: bool) -> bool:
    told = torch.tensor([float(value)])
    distributed.broadcast([told])
    return bool(told.item())
