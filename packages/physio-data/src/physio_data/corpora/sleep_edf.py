"""Sleep-EDF Expanded: whole nights of EEG, EOG and EMG with scored sleep stages, EDF+ files. N windows."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.corpora.labels import AGE_SEX, age_sex
from physio_data.formats.edf import open_edf_groups, read_edf_annotations
from physio_data.recording import Recording

STAGES = ("W", "N1", "N2", "N3", "R")
# Rechtschaffen and Kales' stages 3 and 4 are the N3 of today (Iber et al. 2007); movement and "?" are not scored
_STAGE_OF = {"W": 0, "1": 1, "2": 2, "3": 3, "4": 3, "R": 4}
_NIGHT = re.compile(r"^(S[CT]\d)(\d\d)(\d)")  # study, person, night


def list_records(root: str | Path) -> list[str]:
    """`sleep-cassette/SC4001E0`, ...: recordings (`...-PSG.edf`) below `root`."""
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds sleep-cassette and sleep-telemetry")
    return sorted(path.relative_to(folder).as_posix().removesuffix("-PSG.edf") for path in folder.rglob("*-PSG.edf"))


def open_record(root: str | Path, record_id: str) -> Recording:
    """The channels of one night that share the EEG's rate (100 Hz): EEG in uV under their 10-20 names, EOG, and EMG where it has that rate.

    The person is `sleep_edf:SC4-00`, of both nights; age and sex are those of the EDF+ header. The stages are the recording's annotations.
    """
    path = Path(root) / f"{record_id}-PSG.edf"
    group = next((group for group in open_edf_groups(path) if any("eeg" in name.lower() for name in group.channels)), None)
    if group is None:
        raise ValueError(f"{path}: no channel is named EEG; this is not a recording of Sleep-EDF")
    night = _NIGHT.match(path.name)
    person = f"{night[1]}-{night[2]}" if night else path.name.removesuffix("-PSG.edf")
    scored, (age, sex) = _hypnogram(path), _age_sex(path)
    return replace(
        group,
        subject=f"sleep_edf:{person}",
        record=Path(record_id).name,
        annotations=None if scored is None else read_edf_annotations(scored),
        age=age,
        sex=sex,
    )


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`stage`: the stage that holds throughout the window, -1 where it changes within it, is not scored, or there is no hypnogram."""
    stage_N = np.full(len(start_s_N), -1, np.int64)
    marks = recording.annotations
    if marks is not None and len(marks):
        stage_M = np.array([_STAGE_OF.get(str(text).rpartition("stage ")[2].strip(), -1) for text in marks.symbol], np.int64)
        start_N = np.asarray(start_s_N, np.float64)
        first_N = np.searchsorted(marks.time_s, start_N + 1e-6, side="right") - 1
        last_N = np.searchsorted(marks.time_s, start_N + window_s - 1e-6, side="right") - 1
        same_N = (first_N >= 0) & np.array([len(set(stage_M[lo : hi + 1].tolist())) == 1 for lo, hi in zip(first_N, last_N, strict=True)], bool)
        stage_N[same_N] = stage_M[first_N[same_N]]
    return {"stage": stage_N, **age_sex(recording, len(start_s_N))}


def _age_sex(path: Path) -> tuple[float, str]:
    """From the patient field, which writes no birth date but `X F X Female_33yr`."""
    with path.open("rb") as file:
        patient = file.read(88)[8:].decode("latin-1")
    age, sex = re.search(r"_(\d{1,3})yr", patient), re.match(r"\S+ ([FM]) ", patient)
    return float(age[1]) if age else math.nan, sex[1] if sex else ""


def _hypnogram(path: Path) -> Path | None:
    """The hypnogram beside a recording: the same name up to the scorer's letter, `SC4001E0-PSG` and `SC4001EC-Hypnogram`."""
    night = path.name.removesuffix("-PSG.edf")[:-1]
    found = sorted(path.parent.glob(f"{night}?-Hypnogram.edf"))
    if len(found) > 1:
        raise ValueError(f"{path}: several hypnograms fit, {', '.join(file.name for file in found)}; keep the one to use")
    return found[0] if found else None


CORPUS = Corpus(
    name="sleep_edf",
    title="Sleep-EDF Database Expanded 1.0.0",
    licence="ODC-By 1.0",
    access="open",
    size="197 nights: 153 of 78 healthy people (SC), 44 of 22 people with mild trouble falling asleep (ST); EEG at 100 Hz",
    citation="Kemp B, Zwinderman AH, Tuk B, Kamphuisen HAC, Oberye JJL. IEEE Trans Biomed Eng 2000;47(9):1185-1194",
    url="https://physionet.org/content/sleep-edfx/1.0.0/",
    signal_kind="eeg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=("Fpz-Cz", "Pz-Oz"), window_s=30.0, hop_s=30.0, fs=100.0, band=(0.3, 35.0), split="hash"),
    tasks={"stage": TaskSpec(kind="multiclass", classes=STAGES), **AGE_SEX},
    label_windows=label_windows,
    layout="unverified",
)
