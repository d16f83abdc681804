"""One corpus's labels under another's names: SCP statements, the challenges' SNOMED classes, AAMI beats, or a CSV of one's own. N windows, K classes.

A built-in map names only what means the same on both sides; what it leaves out is an error or is dropped, and said.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

# SCP-ECG statement of PTB-XL -> class of the PhysioNet/CinC challenges of 2020 and 2021, which joins SNOMED CT codes
SCP_SNOMED: Mapping[str, str] = {
    "1AVB": "IAVB",
    "AFIB": "AF",
    "AFLT": "AFL",
    "CLBBB": "CLBBB|LBBB",
    "CRBBB": "CRBBB|RBBB",
    "INVT": "TInv",
    "IRBBB": "IRBBB",
    "IVCD": "NSIVCB",
    "LAFB": "LAnFB",
    "LNGQT": "LQT",
    "LPR": "LPR",
    "LVOLT": "LQRSV",
    "NT_": "TAb",
    "TAB_": "TAb",
    "PAC": "PAC|SVPB",
    "PACE": "PR",
    "PVC": "PVC|VPB",
    "QWAVE": "QAb",
    "SARRH": "SA",
    "SBRAD": "SB",
    "SR": "NSR",
    "STACH": "STach",
}
SCP_AAMI: Mapping[str, str] = {"SR": "N", "PAC": "S", "PVC": "V", "PACE": "Q"}  # a record's statement against the kind of beat it speaks of
BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "scp_snomed": SCP_SNOMED,
    "snomed_scp": {"TAb": "TAB_"} | {target: source for source, target in SCP_SNOMED.items() if target != "TAb"},
    "scp_aami": SCP_AAMI,
    "aami_scp": {target: source for source, target in SCP_AAMI.items()},
    "snomed_aami": {SCP_SNOMED[source]: target for source, target in SCP_AAMI.items()},
    "aami_snomed": {target: SCP_SNOMED[source] for source, target in SCP_AAMI.items()},
}


class Mapped(NamedTuple):
    """Scores under the names of the other side, their columns, and what was left out."""

    scores_NK: np.ndarray
    columns: tuple[str, ...]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """Class of the model -> class of the data; several may go to one."""

    name: str
    target_of: Mapping[str, str]

    @classmethod
    def read(cls, source: str | Path) -> LabelMap:
        """A built-in map by name, or a CSV with the columns source and target. ValueError for a missing column and a source named twice."""
        if str(source) in BUILT_IN:
            return cls(name=str(source), target_of=BUILT_IN[str(source)])
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"label map {str(source)!r} is no file and none of {', '.join(BUILT_IN)}")
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {"source", "target"} <= set(reader.fieldnames or ()):
                raise ValueError(f"{path} must have the columns source and target, it has {', '.join(reader.fieldnames or ()) or 'none'}")
            pairs = [(line["source"].strip(), line["target"].strip()) for line in reader]
        twice = {s for i, (s, _) in enumerate(pairs) if s in dict(pairs[:i])}
        if twice:
            raise ValueError(f"{path} maps {', '.join(sorted(twice))} twice; keep one line each")
        return cls(name=path.name, target_of=dict(pairs))

    def scores(self, scores_NK: np.ndarray, columns: Sequence[str], targets: Sequence[str], *, unmapped: str = "error") -> Mapped:
        """Scores of the model's classes as scores of the data's: where several meet in one, the chance that any holds, 1 - prod(1 - p).

        Only targets that some class reaches stay. ValueError for a class without a target (unless `unmapped` is drop), for a map that reaches none of the
        data's classes, and for scores that are no probabilities where several meet.
        """
        lost = [c for c in columns if c not in self.target_of]
        if lost and unmapped != "drop":
            raise ValueError(f"label map {self.name} has no target for {', '.join(lost[:8])} ({len(lost)} in all): add them, or --unmapped drop")
        astray = sorted({self.target_of[c] for c in columns if c in self.target_of} - set(targets))
        if astray and unmapped != "drop":
            raise ValueError(
                f"label map {self.name} leads to {', '.join(astray[:8])}, which the task does not have ({', '.join(targets)}): mend it, or --unmapped drop"
            )
        reached = tuple(t for t in targets if any(self.target_of.get(c) == t for c in columns))
        if not reached:
            raise ValueError(f"label map {self.name} leads none of {', '.join(list(columns)[:8])} to a class of the task ({', '.join(targets)})")
        out = [self._joined(scores_NK[:, [k for k, c in enumerate(columns) if self.target_of.get(c) == t]]) for t in reached]
        notes = [f"label map {self.name}: {', '.join(reached)}"]
        if lost:
            notes.append(f"classes of the model without a target, dropped: {', '.join(lost)}")
        if missing := [t for t in targets if t not in reached]:
            notes.append(f"classes of the data that no class of the model reaches, not scored: {', '.join(missing)}")
        return Mapped(np.stack(out, axis=1), reached, notes)

    def _joined(self, scores_NJ: np.ndarray) -> np.ndarray:
        if scores_NJ.shape[1] == 1:
            return scores_NJ[:, 0]
        if np.any((scores_NJ < 0) | (scores_NJ > 1)):
            raise ValueError(f"label map {self.name} joins scores that are no probabilities: map one class to each target")
        return 1 - np.prod(1 - scores_NJ, axis=1)
