"""What the two MIMIC waveform corpora share: records found by name, the channel that must be there, age and sex from the clinical tables."""

from __future__ import annotations

import csv
import gzip
import math
import re
from collections.abc import Iterator
from pathlib import Path

from physio_data.recording import canonical_lead


def has_channel(header: Path, channel: str) -> bool:
    """Whether a WFDB record has a channel of that name: read from the text of its header, or of the layout or first segment that it names.

    `ValueError` names a header that is missing or no header.
    """
    lines = _lines(header)
    first = lines[0].split() if lines else []
    if len(first) < 2:
        raise ValueError(f"{header}: not a WFDB header, its first line must be: name channels rate length; fetch it again")
    if "/" not in first[0]:
        return any(canonical_lead(name).lower() == canonical_lead(channel).lower() for name in _names(lines[1:]))
    segments = [line.split()[0] for line in lines[1:] if line.split() and line.split()[0] != "~"]
    return bool(segments) and has_channel(header.with_name(f"{segments[0]}.hea"), channel)


def _names(lines: list[str]) -> Iterator[str]:
    for line in lines:
        fields = line.split(None, 8)
        if len(fields) == 9:
            yield fields[8].strip()


def _lines(header: Path) -> list[str]:
    if not header.is_file():
        raise ValueError(f"{header}: no such header; fetch it from the record's source")
    return [line.strip() for line in header.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip() and not line.startswith("#")]


def headers(folder: Path, pattern: str) -> list[Path]:
    """Headers under a folder whose stem matches, sorted by path."""
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that was downloaded from PhysioNet")
    name = re.compile(pattern)
    return sorted(path for path in folder.rglob("*.hea") if name.fullmatch(path.stem))


def read_patients(path: str | Path, columns: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Rows of a clinical table (.csv or .csv.gz) by subject id; `columns` are the lower-case names that it must have, the id first."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such patients table; it is part of the clinical database, leave the option out to go without age and sex")
    with gzip.open(path, "rt", encoding="utf-8", newline="") if path.suffix == ".gz" else path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        names = {name.lower(): name for name in reader.fieldnames or ()}
        if missing := [name for name in columns if name not in names]:
            raise ValueError(f"{path}: no column {', '.join(missing)}, the header has {', '.join(reader.fieldnames or ()) or 'nothing'}")
        return {row[names[columns[0]]].strip(): {name: (row[names[name]] or "").strip() for name in columns[1:]} for row in reader}


def sex_of(text: str) -> str:
    return text.upper() if text.upper() in ("F", "M") else ""


def whole(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdigit() else math.nan
