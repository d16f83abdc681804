"""Folds by patient, even in age and sex, and ids that say where a patient comes from; several features folders as one."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from physio_sae.triplets import Features

FRACTIONS = (("train", 0.7), ("val", 0.15), ("test", 0.15))


def patient_split(
    index: Mapping[str, np.ndarray], *, how: Literal["stratified", "hash"] = "stratified", fractions: Sequence[tuple[str, float]] = FRACTIONS, seed: int = 0
) -> np.ndarray:
    """Fold name (N,) of each row; a patient is in one fold.

    stratified: patients are walked by (source, sex, age decile, hash) and each goes to the fold furthest behind its share, so every fold has the same ages
    and sexes. hash: SHA-256 of "subject|seed" alone, so a patient keeps its fold when data grow. ValueError where there are fewer patients than folds,
    where a patient has two sexes, or where the fractions do not sum to 1.
    """
    names, shares = [name for name, _ in fractions], np.array([share for _, share in fractions], float)
    if not np.isclose(shares.sum(), 1) or (shares <= 0).any():
        raise ValueError(f"fractions must be positive and sum to 1, got {dict(fractions)}")
    subjects, first, row_N = np.unique(index["subject"], return_index=True, return_inverse=True)
    if len(subjects) < len(names):
        raise ValueError(f"{len(subjects)} patient(s) cannot fill {len(names)} folds: a split by patient needs at least as many patients as folds")
    unit = np.array([int.from_bytes(hashlib.sha256(f"{s}|{seed}".encode()).digest()[:8], "big") / 2**64 for s in subjects])
    if how == "hash":
        fold = np.searchsorted(np.cumsum(shares), unit, side="right").clip(max=len(names) - 1)
        return np.array(names)[fold[row_N.reshape(-1)]]
    sex, age = _per_patient(index, "sex", row_N, first), _per_patient(index, "age", row_N, first)
    age = age.astype(float)
    known = np.isfinite(age)
    decile = np.full(len(subjects), -1)
    if known.any():
        decile[known] = np.searchsorted(np.quantile(age[known], np.linspace(0.1, 0.9, 9)), age[known], side="right")
    source = np.array([s.partition(":")[0] if ":" in s else "" for s in subjects])
    count_F, fold = np.zeros(len(names)), np.zeros(len(subjects), int)
    for n, patient in enumerate(np.lexsort((unit, decile, sex.astype(str), source)), 1):
        fold[patient] = int(np.argmax(shares * n - count_F))
        count_F[fold[patient]] += 1
    return np.array(names)[fold[row_N.reshape(-1)]]


def check_disjoint(subject_N: np.ndarray, fold_N: np.ndarray, waived: Collection[str] = ()) -> None:
    """ValueError naming the first patient that is in two folds and not `waived`."""
    pairs = np.unique(np.stack([np.asarray(subject_N, str), np.asarray(fold_N, str)]), axis=1)
    names, counts = np.unique(pairs[0], return_counts=True)
    shared = [name for name in names[counts > 1].tolist() if name not in waived]
    if shared:
        subject = shared[0]
        raise ValueError(f"patient {subject!r} is in folds {' and '.join(pairs[1][pairs[0] == subject])}: split by patient (physio_sae.splits.patient_split)")


def namespaced(subject_N: np.ndarray, source: str) -> np.ndarray:
    """Ids with their source in front, "source:id"; ids that name one already stay, so that one person seen in two corpora stays one."""
    return np.array([s if ":" in s else f"{source}:{s}" for s in np.asarray(subject_N, str).tolist()])


def join(parts: Sequence[Features], sources: Sequence[str]) -> Features:
    """Several features folders as one: rows numbered on, ids namespaced, columns that all have. ValueError where widths differ or a patient changes fold."""
    if len(parts) != len(sources) or not parts:
        raise ValueError(f"one source name per features folder, got {len(sources)} for {len(parts)}")
    if len({part.width for part in parts}) > 1:
        raise ValueError(f"embeddings of widths {', '.join(str(part.width) for part in parts)} cannot be joined: use one encoder for all")
    starts = np.cumsum([0, *(len(part) for part in parts)])
    columns = [{**part.index, "next": np.where(part.index["next"] >= 0, part.index["next"] + at, -1)} for part, at in zip(parts, starts, strict=False)]
    for column, source in zip(columns, sources, strict=True):
        column["subject"], column["record"] = namespaced(column["subject"], source), namespaced(column["record"], source)
    common = [name for name in columns[0] if all(name in column for column in columns)]
    index = {name: np.concatenate([column[name] for column in columns]) for name in common}
    waived = {name.replace("-", ":", 1) for part in parts for name in part.meta.get("signal", {}).get("waivers", ())}
    check_disjoint(index["subject"], index["fold"], waived)
    n_views = min(part.n_views for part in parts)
    aug = Stacked([Stacked([part.z_aug_AND[view] for part in parts]) for view in range(n_views)], axis_new=True) if n_views else None
    return replace(parts[0], z_ND=Stacked([part.z_ND for part in parts]), z_aug_AND=aug, index=index, path=None, windows=None, meta={"parts": list(sources)})


class Stacked:
    """Arrays on disk, one behind the other (or as items of a new first axis), read by row numbers or slices without copying the rest."""

    def __init__(self, parts: Sequence[np.ndarray], *, axis_new: bool = False) -> None:
        self.parts, self.axis_new = list(parts), axis_new
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])
        self.dtype, self.nbytes = self.parts[0].dtype, sum(part.nbytes for part in self.parts)
        self.shape = (len(self.parts), *self.parts[0].shape) if axis_new else (int(self.starts[-1]), *self.parts[0].shape[1:])
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        if self.axis_new:
            return self.parts[rows]
        rows = np.arange(len(self))[rows]
        out = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        for number, part in enumerate(self.parts):
            mine = owner == number
            out[mine] = part[rows[mine] - self.starts[number]]
        return out

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.stack([np.asarray(part) for part in self.parts]).astype(dtype or self.dtype) if self.axis_new else self[:].astype(dtype or self.dtype)


def _per_patient(index: Mapping[str, np.ndarray], name: str, row_N: np.ndarray, first: np.ndarray) -> np.ndarray:
    """One value a patient, unknown where the column is missing; ValueError where a patient has two sexes."""
    if name not in index:
        return np.full(len(first), np.nan if name == "age" else "?")
    values = index[name]
    if name == "sex":
        same = values == values[first][row_N.reshape(-1)]
        if not same.all():
            raise ValueError(f"patient {index['subject'][np.argmin(same)]!r} has two values of sex; mend the index")
    return values[first]
