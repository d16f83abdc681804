"""What a fold's encoder learns from beside the fold's own windows: other corpora and the synthetic cohort, cut and filtered like the fold's store.

A person is in one corpus alone: subjects are named by their database (`mitbih:100`), and no window of a database that the fold's store holds is taken from
another corpus. N windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from physio_data.prepare import PrepareConfig
from physio_data.recording import ECG_LEADS
from physio_data.store import Store, Stores

OWN_SHARE = 0.5  # of the windows of an epoch
TWELVE = {lead: lead for lead in ECG_LEADS} | {"MLII": "II", "ECG": "I"}  # ECG: a hand-held one, from arm to arm


@dataclass(frozen=True, kw_only=True)
class Other:
    """A corpus to learn from."""

    name: str
    corpus: str
    folder: str = ""  # beneath --root; "" for generated corpora
    leads: Mapping[str, str] = field(default_factory=dict)  # which of its channels stands for which of a store's
    longest_s: float = np.inf  # its records hold no longer window


OTHERS = (
    Other(name="mitbih", corpus="mitbih", folder="mitdb", leads={"MLII": "MLII", "ECG": "MLII"}),
    Other(name="cinc2017", corpus="cinc2017", folder="cinc2017", leads={"MLII": "ECG", "ECG": "ECG"}),
    Other(name="ptbxl", corpus="ptbxl", folder="ptbxl", leads=TWELVE, longest_s=10.0),
    Other(name="cinc2021", corpus="cinc2021", folder="cinc2021", leads=TWELVE, longest_s=10.0),
    Other(name="cpsc2018", corpus="cpsc2018", folder="cpsc2018", leads=TWELVE),
    Other(name="cpsc2021", corpus="cpsc2021", folder="cpsc2021", leads={lead: TWELVE[lead] for lead in ("I", "II", "MLII", "ECG")}),
    Other(name="ludb", corpus="ludb", folder="ludb", leads=TWELVE, longest_s=10.0),
    Other(name="ppgbp", corpus="ppgbp", folder="ppgbp", leads={"PPG": "PPG"}, longest_s=2.1),
    Other(name="troika", corpus="troika", folder="troika", leads={"PPG": "PPG1"}),
    Other(name="bidmc", corpus="bidmc", folder="ppg_bidmc01", leads={"PPG": "PLETH"}),
    Other(name="synthetic", corpus="synthetic", leads={"MLII": "ECG", "ECG": "ECG", "PPG": "PPG"}),
)


def others_for(store: Store, corpus: str) -> tuple[Other, ...]:
    """The corpora that have all the store's leads in windows as long, the store's own corpus left out."""
    return tuple(
        other
        for other in OTHERS
        if other.corpus != corpus and store.window_s <= other.longest_s and all(lead in other.leads for lead in store.channels) and physical(store)
    )


def physical(store: Store) -> bool:
    """Whether the store's samples are in a unit: series that were published normalised compare with no recording."""
    return "normalised" not in store.units


def config_of(other: Other, store: Store, root: Path, options: Mapping[str, object]) -> PrepareConfig:
    """How the other corpus is prepared: the store's rate, length, band and leads."""
    leads = tuple(other.leads[lead] for lead in store.channels)
    if other.corpus == "synthetic":
        signal = "ecg" if store.kind == "ecg" else "ppg"
        options = {**options, "signal": signal, "native_fs": max(store.fs, 250.0 if signal == "ecg" else 25.0)}
    band = store.manifest.get("band")
    return PrepareConfig(
        corpus=other.corpus,
        root=str(root / other.folder) if other.folder else None,
        leads=leads,
        window_s=store.window_s,
        fs=store.fs,
        band=(None, None) if band is None else tuple(band),
        split="hash",
        corpus_options=dict(options) if other.corpus == "synthetic" else {},
    )


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Windows to pretrain on: a fold's own store first, then the others; their positions, and each store's share of an epoch."""

    stores: Stores
    rows_N: np.ndarray
    shares: tuple[float, ...]

    def counts(self) -> dict[str, int]:
        """Windows by corpus, the own store's first."""
        edges = np.cumsum([0, *self.stores.sizes])
        number_N = np.searchsorted(edges[1:], self.rows_N, side="right")
        return {store.manifest["corpus"]: int((number_N == number).sum()) for number, store in enumerate(self.stores.stores)}


def pooled(store: Store, rows_N: np.ndarray, others: Sequence[Path | str]) -> Pool:
    """The rows of a store, and all windows of the others whose subjects are of no database of the store's.

    Half of an epoch are the own windows; the others share the rest by the square root of how many windows they have, so that a large corpus does not drown a
    small one.
    """
    databases = np.unique(database(store.index["subject"]))
    members, parts, first, weights = [store], [rows_N], len(store), []
    for path in others:
        other = Store(path, channels=store.channels)
        taken = np.flatnonzero(~np.isin(database(other.index["subject"]), databases))
        if len(taken):
            members.append(other)
            parts.append(first + taken)
            weights.append(np.sqrt(len(taken)))
            first += len(other)
    shares = (OWN_SHARE, *((1 - OWN_SHARE) * weight / sum(weights) for weight in weights)) if weights else (1.0,)
    return Pool(stores=Stores(members), rows_N=np.concatenate(parts), shares=tuple(float(share) for share in shares))


def database(subject_N: np.ndarray) -> np.ndarray:
    """The database that each subject is of: `ptbxl:15709` -> `ptbxl`."""
    return np.array([name.partition(":")[0] for name in subject_N.tolist()])
