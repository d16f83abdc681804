"""Splits by subject: stable by hash, balanced by stratum, or as published; and the check that no subject is on two sides."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.7, "val": 0.15, "test": 0.15})


def hash_split(subjects: Iterable[str], fractions: Mapping[str, float] = FRACTIONS, seed: int = 0) -> dict[str, str]:
    """Subject -> fold from SHA-256 of ``"subject|seed"``: a subject keeps its fold when others join, on any machine.

    ``fractions`` are probabilities in the order given and sum to 1; realised shares differ from them by chance.
    """
    names, upper_F = _folds(fractions)
    return {subject: names[int(np.searchsorted(upper_F, _uniform(subject, seed), side="right"))] for subject in dict.fromkeys(map(str, subjects))}


def stratified_split(subjects: Sequence[str], strata: Sequence[object], fractions: Mapping[str, float] = FRACTIONS, seed: int = 0) -> dict[str, str]:
    """Subject -> fold with every stratum shared out in proportion; ``strata`` has one value per entry of ``subjects``.

    Subjects are walked stratum by stratum, in hash order within one, and each goes to the fold furthest behind its share; hence
    the totals are exact to one subject and small strata do not all land in one fold. Unlike ``hash_split`` a fold may change when
    subjects are added. A subject may repeat with the same stratum; with two different ones it is a ``ValueError``.
    """
    if len(subjects) != len(strata):
        raise ValueError(f"strata must have one value per subject, got {len(strata)} for {len(subjects)} subjects")
    stratum_of: dict[str, str] = {}
    for subject, stratum in zip(map(str, subjects), map(str, strata), strict=True):
        if stratum_of.setdefault(subject, stratum) != stratum:
            raise ValueError(f"subject {subject!r} has two strata, {stratum_of[subject]!r} and {stratum!r}; give each subject one")
    names, upper_F = _folds(fractions)
    share_F = np.diff(upper_F, prepend=0.0)
    count_F = np.zeros(len(names))
    folds: dict[str, str] = {}
    for n, subject in enumerate(sorted(stratum_of, key=lambda s: (stratum_of[s], _uniform(s, seed), s)), 1):
        fold = int(np.argmax(share_F * n - count_F))
        count_F[fold] += 1
        folds[subject] = names[fold]
    return folds


def stratum(age: float, sex: str, label: object = "") -> str:
    """One stratum for ``stratified_split`` from age (ten-year bands, NaN unknown), sex and a label."""
    band = "?" if math.isnan(age) else str(int(age // 10) * 10)
    return f"{band}|{sex or '?'}|{label}"


def official_folds(ids: Iterable[str], folds: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Id -> fold for a corpus's published lists ``{"train": [...], "test": [...]}``; ``ids`` are those present.

    ``ValueError`` names an id that no list holds (say which fold it belongs to, or leave it out) and one that two lists hold.
    """
    fold_of: dict[str, str] = {}
    for fold, members in folds.items():
        for member in map(str, members):
            if fold_of.setdefault(member, fold) != fold:
                raise ValueError(f"folds lists {member!r} under both {fold_of[member]!r} and {fold!r}")
    ids = [str(i) for i in ids]
    missing = [i for i in ids if i not in fold_of]
    if missing:
        raise ValueError(f"ids {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''} stand in no official fold; leave them out or choose --split hash")
    return {i: fold_of[i] for i in ids}


def check_disjoint(subject_N: Sequence[str], fold_N: Sequence[str], waivers: Iterable[str] = ()) -> tuple[str, ...]:
    """Raise when a subject has rows in two folds; returns the waivers that were needed, for the manifest and the tables.

    A waiver is a subject's id, or that id with its namespace joined by a hyphen: ``mitbih-201-202`` waives subject
    ``mitbih:201-202``. Rows with an empty fold belong to none.
    """
    subject_N, fold_N = np.asarray(subject_N, np.str_), np.asarray(fold_N, np.str_)
    if subject_N.shape != fold_N.shape or subject_N.ndim != 1:
        raise ValueError(f"subject_N and fold_N must be (N,) and equally long, got shapes {subject_N.shape} and {fold_N.shape}")
    waivers = set(waivers)
    folds_of: dict[str, set[str]] = {}
    for subject, fold in {*zip(subject_N.tolist(), fold_N.tolist(), strict=True)}:
        if fold:
            folds_of.setdefault(subject, set()).add(fold)
    used: list[str] = []
    for subject in sorted(s for s, folds in folds_of.items() if len(folds) > 1):
        names = {subject, subject.replace(":", "-")} & waivers
        if not names:
            raise ValueError(f"subject {subject!r} is in two folds, {' and '.join(sorted(folds_of[subject]))}; split by subject, or name a waiver")
        used.append(min(names))
    return tuple(used)


def _folds(fractions: Mapping[str, float]) -> tuple[list[str], np.ndarray]:
    share_F = np.array(list(fractions.values()), np.float64)
    if share_F.size == 0 or not (np.isfinite(share_F).all() and (share_F >= 0).all() and abs(share_F.sum() - 1) < 1e-6):
        raise ValueError(f"fractions must be non-negative and sum to 1, got {dict(fractions)}")
    upper_F = np.cumsum(share_F)
    upper_F[np.flatnonzero(share_F)[-1] :] = 1.0
    return list(fractions), upper_F


def _uniform(subject: str, seed: int) -> float:
    """In [0, 1): the first 53 bits of the hash, so that the quotient is exact."""
    return (int.from_bytes(hashlib.sha256(f"{subject}|{seed}".encode()).digest()[:8], "big") >> 11) / 2**53
