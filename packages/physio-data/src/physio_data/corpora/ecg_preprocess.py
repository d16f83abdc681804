"""ecg_preprocess's layout: `<base>/preprocessed_<length>/<name>_<i>.npy`, each a dictionary with 12 leads, rates and the report. N windows.

The rows of `ecg` stand in one of two orders. Segments from MIMIC-IV-ECG and CODE-15 were reordered to aVL, aVR; those of the other bases kept
the order of their files, aVR, aVL. The base's folder decides, and unknown folders must say.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults
from physio_data.corpora.plain import matrix
from physio_data.formats.pickles import read_npy
from physio_data.recording import ECG_LEADS, Recording

AS_FILED = ECG_LEADS
REORDERED = ("I", "II", "III", "aVL", "aVR", "aVF", *ECG_LEADS[6:])
ORDERS = {"aVR,aVL": AS_FILED, "aVL,aVR": REORDERED}
BASES = {"ptb_xl": AS_FILED, "cpsc": AS_FILED, "csn": AS_FILED, "mimic_iv": REORDERED, "code15": REORDERED}
_SEGMENT = re.compile(r"^(.+)_(\d+)$")
_MIMIC_PERSON = re.compile(r"/p\d{4}/(p\d{8})/")
_OPTIONS = {"order": "of the fourth and fifth lead where the base's folder does not tell: aVR,aVL or aVL,aVR"}


@dataclass(frozen=True)
class SegmentReader:
    """Reads `ecg` of one file."""

    path: str

    def __call__(self, start: int, stop: int) -> np.ndarray:
        return matrix(self.path, read_npy(self.path), "ecg")[:, start:stop]


def list_records(root: str | Path, *, order: str | None = None) -> list[str]:
    """Paths of the segments under `root`, by base, name and number; `root` is the data folder, one base's, or one of its `preprocessed_...`."""
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds <base>/preprocessed_<length>/*.npy")
    return list(_listed(folder, folder.stat().st_mtime_ns))


@lru_cache(maxsize=2)
def _listed(folder: Path, changed_ns: int) -> tuple[str, ...]:
    found = [path for path in folder.rglob("*.npy") if _SEGMENT.match(path.stem) and path.parent.name.startswith("preprocessed_")]
    return tuple(path.relative_to(folder).with_suffix("").as_posix() for path in sorted(found, key=_by_number))


def _by_number(path: Path) -> tuple[str, str, int]:
    name, number = _SEGMENT.match(path.stem).groups()
    return path.parent.as_posix(), name, int(number)


def open_record(root: str | Path, record_id: str, *, order: str | None = None) -> Recording:
    """One segment in mV with its leads named; segments of one record share subject and clock. MIMIC subjects are known from the path of the
    record, the others are one per record. `labels["report"]` is its text."""
    path = Path(root) / f"{record_id}.npy"
    content = read_npy(path)
    x_CT = matrix(path, content, "ecg")
    if len(x_CT) != len(ECG_LEADS):
        raise ValueError(f"{path}: ecg has {len(x_CT)} rows, expected the 12 leads")
    fs = content.get("target_sf")
    if not isinstance(fs, int | float | np.number) or not (math.isfinite(fs) and fs > 0):
        raise ValueError(f"{path}: target_sf is {fs!r}, expected the rate in Hz; write the segment again")
    name, number = _SEGMENT.match(path.stem).groups()
    base = path.resolve().parent.parent.name
    person = _MIMIC_PERSON.search(str(content.get("ecg_path", "")).replace("\\", "/"))
    recording = Recording.from_array(
        x_CT,
        fs=float(fs),
        channels=leads_of(path, base, order),
        units=("mV",) * len(x_CT),
        subject=f"mimic4:{person[1]}" if person else f"{base}:{name}",
        record=name,
        start_s=int(number) * x_CT.shape[1] / float(fs),
        labels={"report": str(content.get("report", ""))},
    )
    return replace(recording, reader=SegmentReader(str(path)))


def leads_of(path: Path, base: str, order: str | None) -> tuple[str, ...]:
    """The names of the rows; `ValueError` for a base that is not known and no order given."""
    if order is not None and order not in ORDERS:
        raise ValueError(f"order must be {' or '.join(ORDERS)}, got {order!r}")
    if order is None and base not in BASES:
        raise ValueError(f"{path}: the folder {base!r} is none of the bases {', '.join(BASES)}, so the order of its leads is unknown; give the option order")
    return ORDERS[order] if order else BASES[base]


CORPUS = Corpus(
    name="ecg_preprocess",
    title="12-lead segments in the layout of ecg_preprocess (one dictionary a file)",
    licence="that of the base corpus",
    access="own",
    size="any; the original writes 240 KB a segment",
    citation="ELM-Research/ecg_preprocess",
    url="a folder of one's own",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=ECG_LEADS),
    subjects="unknown",
    records_per_task=64,
    options=_OPTIONS,
)
