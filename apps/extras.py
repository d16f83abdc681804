"""What batches carry beside the signal for objectives that need it: subjects, labels, vectors of reports, morphology of the pulse.

Objectives name what they need (`needs`); most comes from the store's index, by row. Letters: N windows of a store, B windows of a
batch, C channels, T samples, E features of a language model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physio_data.store import Store, Stores

Column = Callable[[np.ndarray], np.ndarray]
"""Rows of a store -> what their windows carry under a name."""


@dataclass(frozen=True)
class Carrying:
    """A store whose batches have further columns, by name."""

    store: Any  # a store, or one whose items carry the next window
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self.store.batch(rows) | {name: column(rows) for name, column in self.columns.items()}


def columns(needs: Sequence[str], store: Store | Stores, *, task: str | None, language_model: str) -> dict[str, Column]:
    """The columns of what is needed that belong to a window's row. ValueError for what the store does not have."""
    makers: dict[str, Callable[[], Column]] = {
        "subject": lambda: by_row(store.index["subject"]),
        "label": lambda: by_row(labels(store, task)),
        "text_emb": lambda: report_vectors(store, language_model),
    }
    return {name: makers[name]() for name in needs if name in makers}


def by_row(values_N: np.ndarray) -> Column:
    return lambda rows_B: values_N[rows_B]


def labels(store: Store | Stores, task: str | None) -> np.ndarray:
    """Labels of a task; of a store with one task none need be named."""
    if task is None and len(store.tasks) != 1:
        raise ValueError(f"name the task (--task, in training --probe.task): the store has {', '.join(store.tasks) or 'none'}")
    return store.label(task or next(iter(store.tasks)))


def report_vectors(store: Store | Stores, language_model: str) -> Column:
    """A vector of each window's report; the vectors of distinct texts are kept beside the stores, for other runs."""
    from physio_models.text import ReportEmbedder

    if not language_model:
        raise ValueError("--language-model is not set: name a folder or a Hub id that transformers reads, as ncbi/MedCPT-Query-Encoder")
    if "text" not in store.index:
        raise ValueError("the store has no reports; prepare a corpus that has them, as ptbxl")
    text_N = np.asarray(store.index["text"])
    distinct, code_N = np.unique(text_N, return_inverse=True)
    name = "".join(c if c.isalnum() else "-" for c in language_model)
    embedder = ReportEmbedder(language_model, cache=Path("stores") / f"reports-{name}.safetensors")
    known = len(embedder)
    vectors_KE = embedder([str(text) for text in distinct]).numpy()
    if len(embedder) > known:
        embedder.save()
    return lambda rows_B: vectors_KE[code_N[rows_B]]


def morphology(signal_BCT: np.ndarray, fs: float, whole_B: np.ndarray | None = None) -> np.ndarray:
    """sVRI, skewness and IPA of the first channel, (B, 3) float32, as PaPaGei takes them from filtered windows; NaN where there are none.

    None either for a window that `whole_B` says ends in a short tail: the zeros after it would be taken for pulse.
    """
    from physio_data.papagei import window_labels

    labels_B3 = window_labels(signal_BCT[:, 0], fs).astype(np.float32)
    return labels_B3 if whole_B is None else np.where(whole_B[:, None], labels_B3, np.float32(np.nan))
