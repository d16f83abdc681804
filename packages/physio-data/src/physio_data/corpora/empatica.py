"""What WESAD and PPG-DaLiA share: a pickle a subject, with the signals of a chest and a wrist device (Empatica E4). T samples.

Rates in Hz are those of the corpora's own descriptions (Schmidt et al. 2018; Reiss et al. 2019); the files do not state them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.formats.pickles import read_pickle

CHEST_HZ = 700.0
# device -> (signal as the files name it, channels, unit, Hz); a device is one Recording per rate
GROUPS = {
    "wrist": (("BVP", ("PPG",), "a.u.", 64.0),),
    "wrist_acc": (("ACC", ("ACCX", "ACCY", "ACCZ"), "g/64", 32.0),),
    "wrist_slow": (("EDA", ("EDA",), "uS", 4.0), ("TEMP", ("TEMP",), "degC", 4.0)),
    "chest": (
        ("ECG", ("ECG",), "mV", CHEST_HZ),
        ("Resp", ("RESP",), "%", CHEST_HZ),
        ("EDA", ("EDA",), "uS", CHEST_HZ),
        ("EMG", ("EMG",), "mV", CHEST_HZ),
        ("Temp", ("TEMP",), "degC", CHEST_HZ),
        ("ACC", ("ACCX", "ACCY", "ACCZ"), "g", CHEST_HZ),
    ),
}


@dataclass(frozen=True)
class Subject:
    """One subject's file: the content, and where it was read."""

    path: Path
    content: dict

    def array(self, *keys: str) -> np.ndarray:
        """The array under these keys; `ValueError` names the first that is missing and what is there."""
        value: object = self.content
        for depth, key in enumerate(keys):
            if not isinstance(value, dict) or key not in value:
                there = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
                raise ValueError(f"{self.path}: no {key!r} under {'/'.join(keys[:depth]) or 'the top'}, it has {there}; this is not the corpus's layout")
            value = value[key]
        if not isinstance(value, np.ndarray) and not np.isscalar(value) and not isinstance(value, list):
            raise ValueError(f"{self.path}: {'/'.join(keys)} is a {type(value).__name__}, expected an array")
        return np.asarray(value)


def subject_files(root: str | Path, corpus: str) -> dict[str, Path]:
    """`S2` -> its pickle, in the order of the numbers; `root` is the folder of the subjects' folders, or one above."""
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds S2/S2.pkl, ... of {corpus}")
    found = {path.stem: path for pattern in ("S*/S*.pkl", "*/S*/S*.pkl", "S*.pkl") for path in folder.glob(pattern) if re.fullmatch(r"S\d+", path.stem)}
    return dict(sorted(found.items(), key=lambda item: int(item[0][1:])))


def load_subject(path: str | Path) -> Subject:
    """The content of one subject's pickle; nothing that it names is run. The last one stays in memory."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return _loaded(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _loaded(path: Path, changed_ns: int) -> Subject:
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a dictionary with signal and label")
    return Subject(path, content)


@dataclass(frozen=True)
class EmpaticaReader:
    """Reads the signals of one device from a subject's pickle, times `sign`."""

    path: str
    device: str
    sign: int = 1

    def __call__(self, start: int, stop: int) -> np.ndarray:
        return np.stack([row[start:stop] for row in self.rows()]).astype(np.float32) * self.sign

    def rows(self) -> list[np.ndarray]:
        subject = load_subject(self.path)
        side = "wrist" if self.device.startswith("wrist") else "chest"
        rows: list[np.ndarray] = []
        for name, channels, _, _ in self.groups():
            x = subject.array("signal", side, name)
            x_TC = x.reshape(len(x), -1)
            if x_TC.shape[1] != len(channels):
                raise ValueError(f"{self.path}: signal/{side}/{name} has shape {x.shape}, expected {len(channels)} columns")
            rows += list(x_TC.T)
        return rows

    def groups(self) -> tuple:
        """The signals of the device that this corpus has (PPG-DaLiA lacks some of the chest)."""
        side = "wrist" if self.device.startswith("wrist") else "chest"
        there = load_subject(self.path).content.get("signal", {})
        there = there.get(side, {}) if isinstance(there, dict) else {}
        return tuple(group for group in GROUPS[self.device] if group[0] in there and np.size(there[group[0]]) > 1) or GROUPS[self.device]


def known_device(device: str) -> str:
    if device not in GROUPS:
        raise ValueError(f"device must be one of {', '.join(GROUPS)}, got {device!r}")
    return device


def stated_number(text: object) -> float:
    """A number in a questionnaire's field, NaN where there is none."""
    try:
        return float(str(text).strip())
    except ValueError:
        return math.nan
