"""What makes an interrupted prepare resumable: a folder lock, a journal of finished records, and the writer that turns both into shards."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from physio_data.manifest import write_atomic
from physio_data.shards import usual_windows, write_shard

JOURNAL, SPOOL, LOCK = ".journal.jsonl", ".spool.f32", ".lock"


class StoreBusy(RuntimeError):
    """Another process is preparing the same folder."""


_HELD: set[Path] = set()  # POSIX locks do not exclude threads of one process from one another


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one prepare; StoreBusy names the process that holds it already. A process that dies lets go by itself."""
    path = (folder / LOCK).resolve()
    if path in _HELD:
        raise StoreBusy(f"{folder} is being prepared by this process (pid {os.getpid()}) already; wait for it or choose another folder")
    file = _locked_file(path)
    _HELD.add(path)
    try:
        yield
    finally:
        _HELD.discard(path)
        path.unlink(missing_ok=True)
        file.close()


def _locked_file(path: Path):
    import fcntl

    while True:
        file = open(path, "a+", encoding="ascii")
        try:  # lockf, not flock: worker processes forked later do not inherit it, so it cannot outlive its owner
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise StoreBusy(f"{path.parent} is being prepared by another process (pid {owner}); wait for it or choose another folder") from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file
        file.close()  # its holder removed it between our opening and locking it


def is_disk_full(error: Exception) -> bool:
    """Whether an error means "no space left"; h5py and safetensors report the errno in their text only."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)


@contextmanager
def saying_disk_full(folder: Path) -> Iterator[None]:
    """Turn "no space left", however it is reported, into one OSError(ENOSPC) that names the folder and the way on."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise OSError(
            errno.ENOSPC, f"no space left on the disk of {folder}; what is finished is kept: free some space and run the same prepare again, it resumes"
        ) from error


class StoreWriter:
    """Collects the windows of record after record and closes a shard at the first record boundary at or past `shard_windows`.

    Windows wait in a spool file (float32) and their columns in the journal (one JSON line per call of `add`, with a checksum of its
    windows), so a killed prepare loses at most the records in flight and its shards come out byte for byte as without the kill.
    `header` is everything that decides the content; a folder begun with another header is refused with the differing keys.
    """

    def __init__(
        self, folder: Path, header: Mapping[str, object], *, shape_CT: tuple[int, int], dtype: str, shard_windows: int | None, compression: str = "none"
    ) -> None:
        self.folder, self.header, self.shape_CT, self.dtype = folder, dict(header), shape_CT, dtype
        self.compression = compression
        self.shard_windows = shard_windows or usual_windows(*shape_CT)
        self.shards: list[dict] = []  # {"entry", "n_tasks", "rejected", "folds", ...} of each finished shard
        self._pending: list[dict] = []
        self._load()
        self._spool = open(folder / SPOOL, "r+b" if (folder / SPOOL).exists() else "w+b", buffering=0)
        self._keep_intact()
        self._journal = open(folder / JOURNAL, "ab", buffering=0)
        with saying_disk_full(folder):
            self._close_full_shard()

    @property
    def n_tasks(self) -> int:
        """How many calls of `add` are safe on disk: a resumed prepare goes on with the next."""
        return sum(shard["n_tasks"] for shard in self.shards) + len(self._pending)

    @property
    def n_windows(self) -> int:
        return sum(shard["entry"]["n_windows"] for shard in self.shards) + self._n_pending

    @property
    def _n_pending(self) -> int:
        return sum(line["n_windows"] for line in self._pending)

    def close(self) -> None:
        self._spool.close()
        self._journal.close()

    def _load(self) -> None:
        path = self.folder / JOURNAL
        if not path.exists():
            with saying_disk_full(self.folder):
                self._write_journal()
            return
        lines = _json_lines(path)
        if not lines or "header" not in lines[0]:
            raise ValueError(f"{path} is damaged: its first line is no header; delete the folder and prepare again")
        self.shards, self._pending = lines[0]["shards"], lines[1:]
        if self.shards or self._pending:  # with nothing done yet there is nothing to protect
            refuse_different(lines[0]["header"], self.header, self.folder, "was begun")

    def _write_journal(self) -> None:
        lines = [{"header": self.header, "shards": self.shards}, *self._pending]
        write_atomic(self.folder / JOURNAL, b"".join(_json_line(line) for line in lines))

    def _keep_intact(self) -> None:
        """Drop what a crash left half written: journal lines whose windows do not check, and spool bytes past the last good line."""
        end, good = 0, 0
        for line in self._pending:
            n_bytes = line["n_windows"] * self._window_bytes
            self._spool.seek(end)
            if _crc32(self._spool, n_bytes) != line["crc32"]:
                break
            end, good = end + n_bytes, good + 1
        self._spool.truncate(end)
        self._pending = self._pending[:good]
        with saying_disk_full(self.folder):
            self._write_journal()

    @property
    def _window_bytes(self) -> int:
        return 4 * self.shape_CT[0] * self.shape_CT[1]

    def add(self, signal_NCT: np.ndarray, columns: Mapping[str, np.ndarray], rejected: Mapping[str, int], facts: Mapping[str, int]) -> None:
        """Keep the windows of one worker call (N may be 0). `next` counts from the call's first window; `facts` are counts to be summed."""
        data = np.ascontiguousarray(signal_NCT, "<f4")
        content = data.reshape(-1).view(np.uint8)
        line = {
            "n_windows": len(data),
            "crc32": zlib.crc32(content),
            "columns": {name: _to_json(values) for name, values in columns.items()},
            "rejected": dict(rejected),
            "facts": dict(facts),
        }
        with saying_disk_full(self.folder):
            _append(self._spool, content, self._n_pending * self._window_bytes)
            _append(self._journal, _json_line(line), os.fstat(self._journal.fileno()).st_size)
            self._pending.append(line)
            self._close_full_shard()

    def _close_full_shard(self) -> None:
        if self._n_pending >= self.shard_windows:
            self._close_shard()

    def _close_shard(self) -> None:
        n, first = self._n_pending, sum(shard["entry"]["n_windows"] for shard in self.shards)
        path = self.folder / f"shard-{len(self.shards):05d}.h5"
        signal_NCT = np.memmap(self.folder / SPOOL, dtype="<f4", mode="r", shape=(n, *self.shape_CT))
        entry = write_shard(path, signal_NCT, self._joined_columns(first), dtype=self.dtype, compression=self.compression)
        del signal_NCT
        totals = {key: _summed(line[key] for line in self._pending) for key in ("rejected", "facts")}
        self.shards.append({"entry": entry, "n_tasks": len(self._pending), **totals})
        self._pending = []
        self._write_journal()  # first the journal forgets the windows, then the spool
        self._journal.close()
        self._journal = open(self.folder / JOURNAL, "ab", buffering=0)
        self._spool.truncate(0)

    def _joined_columns(self, first: int) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {}
        for line in self._pending:
            if not line["n_windows"]:
                continue
            for name, stored in line["columns"].items():
                values = _from_json(stored)
                if name == "next":
                    values = np.where(values < 0, -1, values + first)
                parts.setdefault(name, []).append(values)
            first += line["n_windows"]
        return {name: np.concatenate(values) for name, values in parts.items()}

    def finish(self) -> tuple[dict[str, int], dict[str, int]]:
        """Close the last shard; (rejected windows by reason, summed facts). The journal stays until `discard`."""
        with saying_disk_full(self.folder):
            if self._n_pending:
                self._close_shard()
        rejected, facts = (_summed([*(shard[key] for shard in self.shards), *(line[key] for line in self._pending)]) for key in ("rejected", "facts"))
        return rejected, facts


def discard_journal(folder: Path) -> None:
    """Remove what only an unfinished store needs."""
    for name in (JOURNAL, SPOOL):
        (folder / name).unlink(missing_ok=True)


def refuse_different(there: Mapping, asked: Mapping, folder: str | Path, how: str) -> None:
    """Raise ValueError naming every key in which a store's parameters differ from those asked for now."""
    asked = json.loads(json.dumps(asked))
    differing = sorted(key for key in {*there, *asked} if there.get(key) != asked.get(key))
    if differing:
        changes = "; ".join(f"{key}: {there.get(key)!r} there, {asked.get(key)!r} now" for key in differing)
        raise ValueError(f"{folder} {how} with other parameters ({changes}); choose another folder, delete this one, or use the same parameters")


def _append(file, content, good_end: int) -> None:
    """Write at `good_end` and cut the file back there if the write fails, so that a full disk leaves a whole journal."""
    file.seek(good_end)
    view, done = memoryview(content), 0
    try:
        while done < len(view):
            done += file.write(view[done:])
    except OSError:
        file.truncate(good_end)
        raise


def _crc32(file, n_bytes: int) -> int:
    crc = 0
    while n_bytes > 0:
        chunk = file.read(min(n_bytes, 1 << 22))
        if not chunk:
            return -1
        crc, n_bytes = zlib.crc32(chunk, crc), n_bytes - len(chunk)
    return crc


def _json_line(value: Mapping) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _json_lines(path: Path) -> list[dict]:
    """The lines of the journal; a torn last line, the mark of a kill, is left out."""
    raw = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(raw[:-1]):  # what follows the last newline was never finished
        try:
            found.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged in line {number + 1}: {error}; delete the folder and prepare again") from error
    return found


def _to_json(values: np.ndarray) -> dict:
    return {"dtype": "str" if values.dtype.kind == "U" else values.dtype.str, "values": values.tolist()}


def _from_json(stored: Mapping) -> np.ndarray:
    return np.array(stored["values"], dtype=np.str_ if stored["dtype"] == "str" else np.dtype(stored["dtype"]))


def _summed(counts) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for key, value in count.items():
            total[key] = total.get(key, 0) + value
    return dict(sorted(total.items()))
