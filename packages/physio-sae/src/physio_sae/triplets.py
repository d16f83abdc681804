"""The features folder as rows of embeddings with their index, and the triplets (z_t, z_{t+1}, z_aug) that training reads.

N rows, d width, A augmented views, B rows of a batch. Neighbours come from the index's `next` column and are checked again by
record and by time: never across a gap, a record or a rejected window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

NEEDED = ("subject", "record", "start_s", "next", "fold")
CHECK_ROWS = 65536


@dataclass(frozen=True)
class Features:
    """Embeddings on disk and what is known of each row.

    `z_ND` (N, d) and `z_aug_AND` (A, N, d) are memory maps, float32 or float16; `index` holds one array (N,) per column (`subject record start_s
    next dt_next_s fold age sex label/<task>` ...), strings decoded; `meta` is meta.json. `tokens_NTD` instead of `z_ND` where tokens were embedded.
    """

    z_ND: np.ndarray
    z_aug_AND: np.ndarray | None
    index: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]
    path: Path | None = None
    windows: np.ndarray | None = None

    @classmethod
    def open(cls, folder: Path | str) -> Features:
        """Open a features folder; nothing but the index is read. ValueError names what is missing or does not fit.

        Tokens (`tokens.npy`, (N, n, d)) are opened as N n rows: the index is repeated, `token` (N n,) counts them, and a row's `next` is the same token
        of the following window.
        """
        folder = Path(folder)
        name = next((name for name in ("z.npy", "tokens.npy") if (folder / name).exists()), None)
        if name is None or not (folder / "index.h5").exists():
            raise ValueError(f"{folder} is no features folder: it needs z.npy or tokens.npy, and index.h5; make one with `embed.py`")
        z = np.load(folder / name, mmap_mode="r")
        aug = np.load(folder / "z_aug.npy", mmap_mode="r") if (folder / "z_aug.npy").exists() else None
        index = read_index(folder / "index.h5")
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8")) if (folder / "meta.json").exists() else {}
        windows = np.load(folder / "windows.npy", mmap_mode="r") if (folder / "windows.npy").exists() else None
        if name == "tokens.npy":
            z, index, aug = z.reshape(-1, z.shape[-1]), _per_token(index, z.shape[1]), None
        if aug is not None and aug.ndim == 2:
            aug = aug[None]
        found = cls(z, aug, index, meta, folder, windows)
        found._check()
        return found

    def _check(self) -> None:
        where = self.path or "features"
        if self.z_ND.ndim != 2 or not len(self.z_ND):
            raise ValueError(f"{where}: z must be (N, d) with at least one row, got {self.z_ND.shape}")
        missing = [name for name in NEEDED if name not in self.index]
        if missing:
            raise ValueError(f"{where}: the index lacks {', '.join(missing)}; embed the store again")
        for name, column in self.index.items():
            if len(column) != len(self.z_ND):
                raise ValueError(f"{where}: index column {name} has {len(column)} rows for {len(self.z_ND)} embeddings; embed the store again")
        if self.z_aug_AND is not None and self.z_aug_AND.shape[1:] != self.z_ND.shape:
            raise ValueError(f"{where}: z_aug must be (A, {len(self.z_ND)}, {self.z_ND.shape[1]}), got {self.z_aug_AND.shape}; embed the store again")

    def __len__(self) -> int:
        return len(self.z_ND)

    @property
    def width(self) -> int:
        return self.z_ND.shape[1]

    @property
    def n_views(self) -> int:
        return 0 if self.z_aug_AND is None else len(self.z_aug_AND)

    @property
    def subject(self) -> np.ndarray:
        """(N,) str, the patient of each row."""
        return self.index["subject"]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(name.removeprefix("label/") for name in self.index if name.startswith("label/"))

    def label(self, task: str) -> np.ndarray:
        """(N,) values of a task; ValueError lists the tasks there are."""
        if f"label/{task}" not in self.index:
            raise ValueError(f"no task {task!r}: the features have {', '.join(self.tasks) or 'no labels'}")
        return self.index[f"label/{task}"]

    def rows(self, *folds: str) -> np.ndarray:
        """Row numbers (int64) of the folds named, all rows without a name. ValueError where none is left."""
        found = np.arange(len(self)) if not folds else np.flatnonzero(np.isin(self.index["fold"], folds))
        if not len(found):
            there = ", ".join(np.unique(self.index["fold"]).tolist())
            raise ValueError(f"no row in fold {' or '.join(folds)}: the features have {there}")
        return found

    def z(self, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """Embeddings (n, d) float32 of some rows, read from disk; all of them without an argument."""
        return np.asarray(self.z_ND[slice(None) if rows is None else rows], dtype=np.float32)

    def z_aug(self, view: int, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """Augmented embeddings (n, d) float32 of one view. ValueError where there is none."""
        if self.z_aug_AND is None:
            raise ValueError(f"{self.path or 'features'} has no augmented views: embed again with `--views 1`, or set `--loss.stab 0`")
        return np.asarray(self.z_aug_AND[view][slice(None) if rows is None else rows], dtype=np.float32)

    def check_finite(self, rows: np.ndarray | None = None) -> None:
        """ValueError naming the first row with a value that is not finite; reads the cache once, in order."""
        rows = np.arange(len(self)) if rows is None else np.asarray(rows)
        for start in range(0, len(rows), CHECK_ROWS):
            part = rows[start : start + CHECK_ROWS]
            for what, z_nD in [("z", self.z(part)), *((f"z_aug[{a}]", self.z_aug(a, part)) for a in range(self.n_views))]:
                bad = ~np.isfinite(z_nD).all(1)
                if bad.any():
                    row = int(part[bad.argmax()])
                    raise ValueError(
                        f"{what} is not finite in row {row} (record {self.index['record'][row]}), {bad.sum()} such rows nearby: embed those windows again"
                    )


def read_index(path: Path | str) -> dict[str, np.ndarray]:
    """Columns of an index.h5, under `/index` or at the root, nested names joined by "/"; strings as str."""
    columns: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        root = file["index"] if "index" in file else file

        def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
            if isinstance(item, h5py.Dataset):
                values = item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()]
                columns[name] = values.astype(np.str_) if values.dtype == object else values

        root.visititems(visit)
    return columns


def _per_token(index: Mapping[str, np.ndarray], n_tokens: int) -> dict[str, np.ndarray]:
    out = {name: np.repeat(column, n_tokens, axis=0) for name, column in index.items()}
    token = np.tile(np.arange(n_tokens), len(index["next"]))
    out["next"] = np.where(out["next"] >= 0, out["next"] * n_tokens + token, -1)
    return out | {"token": token}


def subjects_of(index: Mapping[str, np.ndarray], rows: Sequence[int] | np.ndarray) -> set[str]:
    """Patients of some rows."""
    return set(np.asarray(index["subject"])[rows].tolist())
