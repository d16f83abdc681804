"""A table of dictionaries side by side, as Markdown for people and JSON for programs. A figure that is not defined is an empty cell, never a NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

# key of a row -> heading, whether more is better (None: neither), digits
COLUMNS: dict[str, tuple[str, bool | None, int]] = {
    "name": ("dictionary", None, 0),
    "k": ("K", None, 0),
    "l0": ("L0", False, 1),
    "ev": ("EV", True, 3),
    "ev_patient": ("EV per patient", True, 3),
    "dead": ("dead", False, 3),
    "dense": ("dense", False, 3),
    "consistency": ("consistency", True, 3),
    "consistency_above": ("above same patient", True, 3),
    "lag1": ("lag-1", True, 3),
    "lag1_above": ("above shuffled", True, 3),
    "stability": ("seed match", True, 3),
    "stability_above": ("above random", True, 3),
    "front": ("Pareto", None, 0),
}


def plain(value: Any) -> Any:
    """Dataclasses, arrays and NumPy numbers as what JSON holds; a number that is not finite becomes None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain({key: item for key, item in asdict(value).items()})
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: str | Path, document: Any) -> Path:
    """`document` as plain JSON, written whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(plain(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def ordered(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with every column, best explained variance first; rows without one last, in their own order."""
    full = [{key: plain(row.get(key)) for key in {**dict.fromkeys(COLUMNS), **row}} for row in rows]
    return sorted(full, key=lambda row: -row["ev"] if row["ev"] is not None else math.inf)


def markdown(rows: Sequence[Mapping[str, Any]], *, notes: Sequence[str] = ()) -> str:
    """The table; `<key>_interval` [low, high] stands in brackets behind its figure, the best figure of a column is bold."""
    rows = ordered(rows)
    shown = {key: column for key, column in COLUMNS.items() if key == "name" or any(row[key] is not None for row in rows)}
    best = {key: best_of([row[key] for row in rows], more) for key, (_, more, _) in shown.items() if more is not None}
    lines = ["| " + " | ".join(heading for heading, _, _ in shown.values()) + " |", "|" + "---|" * len(shown)]
    for row in rows:
        lines.append("| " + " | ".join(cell(row, key, digits, best.get(key)) for key, (_, _, digits) in shown.items()) + " |")
    return "\n".join([*lines, *(["", *(f"- {note}" for note in notes)] if notes else [])]) + "\n"


def cell(row: Mapping[str, Any], key: str, digits: int, best: float | None) -> str:
    value = row[key]
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if not isinstance(value, (int, float)):
        return str(value).replace("|", "/")
    text = f"{value:.{digits}f}"
    text = f"**{text}**" if best is not None and value == best else text
    ends = row.get(f"{key}_interval")
    return f"{text} [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else text


def best_of(values: Sequence[float | None], more: bool) -> float | None:
    known = [v for v in values if v is not None]
    return None if len(known) < 2 else (max(known) if more else min(known))
