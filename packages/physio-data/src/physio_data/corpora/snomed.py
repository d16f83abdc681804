"""12-lead records with SNOMED codes in their headers: the layout of the PhysioNet/CinC Challenges 2020 and 2021 and of the Chapman database. N windows.

A header carries `# Age: 56`, `# Sex: Female` and `# Dx: 426783006,164934002`; 26 diagnoses are scored, four pairs of codes counting as one
(Reyna et al. 2021, Comput Cardiol 48).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import TaskSpec
from physio_data.corpora.labels import AGE_SEX, age_sex
from physio_data.corpora.tables import flags, multilabel
from physio_data.formats.wfdb import header_comments, open_wfdb
from physio_data.recording import Recording

# class -> SNOMED CT codes; abbreviations as in the challenge's own table of diagnoses
SCORED: Mapping[str, tuple[str, ...]] = {
    "AF": ("164889003",),
    "AFL": ("164890007",),
    "BBB": ("6374002",),
    "Brady": ("426627000",),
    "CLBBB|LBBB": ("733534002", "164909002"),
    "CRBBB|RBBB": ("713427006", "59118001"),
    "IAVB": ("270492004",),
    "IRBBB": ("713426002",),
    "LAD": ("39732003",),
    "LAnFB": ("445118002",),
    "LPR": ("164947007",),
    "LQRSV": ("251146004",),
    "LQT": ("111975006",),
    "NSIVCB": ("698252002",),
    "NSR": ("426783006",),
    "PAC|SVPB": ("284470004", "63593006"),
    "PR": ("10370003",),
    "PRWP": ("365413008",),
    "PVC|VPB": ("427172004", "17338001"),
    "QAb": ("164917005",),
    "RAD": ("47665007",),
    "SA": ("427393009",),
    "SB": ("426177001",),
    "STach": ("427084000",),
    "TAb": ("164934002",),
    "TInv": ("59931005",),
}
DX_TASKS: Mapping[str, TaskSpec] = {"dx": TaskSpec(kind="multilabel", classes=tuple(SCORED)), **AGE_SEX}

# first letters of a record's name -> source; https://physionet.org/content/challenge-2021/1.0.3/
SOURCES = {"JS": "csn", "HR": "ptbxl", "A": "cpsc2018", "Q": "cpsc2018x", "E": "georgia", "S": "ptb", "I": "incart"}


def source_of(stem: str) -> str:
    """The database that a challenge record comes from, by its name: `E07500` -> georgia; `cinc2021` where the name follows none of them."""
    letters = stem.rstrip("0123456789")
    return SOURCES.get(letters, "cinc2021")


def list_headers(root: str | Path, names: Iterable[str] = ("",)) -> list[str]:
    """Paths below `root`, without suffix, of every header whose name begins with one of `names`; sorted."""
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds the .hea and .mat files, or folders of them")
    starts = tuple(names)
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.hea") if path.stem.startswith(starts))


def open_header(root: str | Path, record_id: str, *, source: str | None = None) -> Recording:
    """One record with its codes. No list of patients was published: the subject is `<source>:<record>`, and stays unknown to any split."""
    path = Path(root) / f"{record_id}.hea"
    recording = open_wfdb(path, annotation=None)
    codes = dx_codes(path)
    stem = path.stem
    return replace(recording, subject=f"{source or source_of(stem)}:{stem}", record=stem, labels={"codes": ",".join(codes), "dx": scored_flags(codes)})


def dx_codes(path: str | Path) -> tuple[str, ...]:
    """The SNOMED codes of a header's `Dx` line; none where it has no such line or says `Unknown`."""
    for comment in header_comments(path):
        name, _, value = comment.partition(":")
        if name.strip().lower() == "dx":
            return tuple(code for code in (part.strip() for part in value.split(",")) if code.isdigit())
    return ()


def scored_flags(codes: Iterable[str]) -> str:
    """The 26 scored diagnoses as `tables.flags`; "" (unknown) without any code."""
    codes = set(codes)
    present = [name for name, of_class in SCORED.items() if codes & set(of_class)]
    return flags(tuple(SCORED), present) if codes else ""


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`dx`: 0/1 for each scored diagnosis, -1 throughout where the header states no code; `age`, `sex`."""
    n = len(start_s_N)
    return {"dx": multilabel(str(recording.labels["dx"]), len(SCORED), n), **age_sex(recording, n)}
