"""Any folder of recordings: WFDB, EDF, CSV, text, MATLAB, HDF5 or NumPy files, with a short description where they do not say everything. N windows.

The description is the file `folder.json` in it (all fields optional; the options of the same names come first):

    {"files": "*.csv", "fs": 125, "channels": "PLETH", "units": "a.u.", "subject": "^(p[0-9]+)_", "dataset": "raw/channel_1"}
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from physio_data.corpora.contract import Corpus, PrepareDefaults
from physio_data.formats import open_recording
from physio_data.recording import Recording

DESCRIPTION = "folder.json"
SUFFIXES = (".hea", ".edf", ".bdf", ".csv", ".tsv", ".txt", ".mat", ".h5", ".hdf5", ".npy")
_OPTIONS = {
    "files": "which files, a pattern such as *.csv or **/*.edf (default: every file of a known format)",
    "source_fs": "rate in Hz of files that state none (description: fs)",
    "channels": "names of the channels where files have none, split by commas",
    "units": "units of the channels where files have none, split by commas",
    "subject": "regular expression whose first group, in a file's path, is its subject (default: every file is its own)",
    "dataset": "path of the signal inside HDF5 or MATLAB files that hold several",
}


def list_records(root: str | Path, **options: object) -> list[str]:
    """Paths of the files below `root`, sorted; a WFDB record counts once, by its header."""
    folder = _folder(root)
    pattern = str(_settled(folder, options).get("files") or "")
    if pattern:
        return sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.is_file() and path.name != DESCRIPTION)
    headers = {path.with_suffix("") for path in folder.rglob("*.hea")}
    files = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in files if path.suffix == ".hea" or path.with_suffix("") not in headers)


def open_record(root: str | Path, record_id: str, **options: object) -> Recording:
    """One file; its record id is its path without the suffix, its subject `<folder>:<first group of subject>`, or `<folder>:<record>`."""
    folder = _folder(root)
    said = _settled(folder, options)
    path = folder / record_id
    given = {
        "source_fs": _rate(folder, said),
        "channels": _names(said.get("channels")),
        "units": _names(said.get("units")),
        "dataset": said.get("dataset"),
    }
    if path.suffix.lower() in (".hea", ".edf", ".bdf"):  # these state their channels, units and rate
        given = {}
    recording = open_recording(path, **{name: value for name, value in given.items() if value is not None})
    stem = path.relative_to(folder).with_suffix("").as_posix()
    person = stem
    if said.get("subject"):
        found = re.search(str(said["subject"]), record_id)
        if found is None or not found.groups():
            raise ValueError(f"{path}: the expression subject={said['subject']!r} finds no group in {record_id!r}; mend it or rename the file")
        person = found[1]
    return replace(recording, subject=f"{folder.resolve().name}:{person}", record=stem)


def _folder(root: str | Path) -> Path:
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds the recordings")
    return folder


def _settled(folder: Path, options: dict[str, object]) -> dict[str, object]:
    """The description with the options over it."""
    file = folder / DESCRIPTION
    said = dict(_described(file, file.stat().st_mtime_ns)) if file.is_file() else {}
    return {**said, **{name: value for name, value in options.items() if value is not None}}


@lru_cache(maxsize=4)
def _described(file: Path, changed_ns: int) -> tuple[tuple[str, object], ...]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a JSON file ({error}); see the corpus 'folder' for its fields") from error
    if not isinstance(said, dict):
        raise ValueError(f"{file}: holds a {type(said).__name__}, expected an object with fields such as fs and channels")
    known = {"files", "fs", "channels", "units", "subject", "dataset"}
    if unknown := sorted(set(said) - known):
        raise ValueError(f"{file}: field {unknown[0]!r} is not known; there are {', '.join(sorted(known))}")
    return tuple(said.items())


def _rate(folder: Path, said: dict[str, object]) -> float | None:
    value = said.get("source_fs", said.get("fs"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError(f"{folder / DESCRIPTION}: fs is {value!r}, expected a positive number of Hz")
    return float(value)


def _names(text: object) -> list[str] | None:
    if text is None:
        return None
    return [str(part).strip() for part in (text.split(",") if isinstance(text, str) else text)]


CORPUS = Corpus(
    name="folder",
    title="A folder of recordings (WFDB, EDF, CSV, text, MATLAB, HDF5, NumPy)",
    licence="that of the data",
    access="own",
    size="any",
    citation="of the data",
    url="a folder of one's own",
    signal_kind="series",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(window_s=10.0),
    options=_OPTIONS,
)
