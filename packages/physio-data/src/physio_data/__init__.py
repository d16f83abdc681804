"""Load, check, window and store physiological recordings. Importing this costs NumPy and h5py; SciPy and `wfdb` come when used.

The verbs live in their modules: `physio_data.windows`, `.filters`, `.normalize`, `.quality`, `.splits`, `.beats`, `.morphology`,
`.prepare`, `.corpora`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from physio_data.formats import open_recording
from physio_data.normalize import NORMALIZERS, Scale
from physio_data.quality import Limits, Reason
from physio_data.recording import Annotations, Recording, canonical_lead

if TYPE_CHECKING:
    from physio_data.corpora import CORPORA, corpus
    from physio_data.corpora.contract import Corpus, TaskSpec
    from physio_data.prepare import PrepareConfig
    from physio_data.store import Store, Stores

__all__ = [
    "CORPORA",
    "NORMALIZERS",
    "Annotations",
    "Corpus",
    "Limits",
    "PrepareConfig",
    "Reason",
    "Recording",
    "Scale",
    "Store",
    "Stores",
    "TaskSpec",
    "canonical_lead",
    "corpus",
    "open_recording",
]

_LATER = {
    "CORPORA": "physio_data.corpora",
    "Corpus": "physio_data.corpora.contract",
    "PrepareConfig": "physio_data.prepare",
    "Store": "physio_data.store",
    "Stores": "physio_data.store",
    "TaskSpec": "physio_data.corpora.contract",
    "corpus": "physio_data.corpora",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'physio_data' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
