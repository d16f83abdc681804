"""TROIKA, the IEEE Signal Processing Cup 2015: wrist PPG during exercise, with acceleration, and the heart rate of an ECG. N windows, T samples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults
from physio_data.corpora.labels import RATE, at_reference_windows
from physio_data.recording import Recording

FS = 125.0
ROWS = ("ECG", "PPG1", "PPG2", "ACCX", "ACCY", "ACCZ")  # of `sig`; the cup's test files leave the ECG out
_UNITS = ("a.u.", "a.u.", "a.u.", "g", "g", "g")
_NAME = re.compile(r"^(?:DATA|TEST)_S?(\d+)_T(?:YPE)?(\d+)$", re.IGNORECASE)


def list_records(root: str | Path) -> list[str]:
    """`DATA_01_TYPE01`, ...: the signal files of the training set, and `TEST_S01_T01`, ... of the test set."""
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds DATA_01_TYPE01.mat and REF_01_TYPE01.mat, or TEST_S01_T01.mat, ...")
    return sorted(path.stem for path in folder.glob("*.mat") if _NAME.match(path.stem))


def open_record(root: str | Path, record_id: str) -> Recording:
    """One recording; subjects of the training files are `troika:<number>`, of the test files `troika:test-<number>`. `labels` stay empty:
    the reference belongs to windows."""
    path = Path(root) / f"{record_id}.mat"
    shape = _matrix_shape(path, "sig")
    channels, units = (ROWS, _UNITS) if shape[0] == len(ROWS) else (ROWS[1:], _UNITS[1:])
    person = _NAME.match(record_id)[1]
    return Recording(
        fs=FS,
        channels=channels,
        units=units,
        n_samples=shape[1],
        subject=f"troika:{'test-' if record_id.upper().startswith('TEST') else ''}{person}",
        record=record_id,
        labels={"reference": str(_reference_file(Path(root), record_id) or "")},
        reader=TroikaReader(str(path)),
    )


@dataclass(frozen=True)
class TroikaReader:
    """Reads `sig` of one file."""

    path: str

    def __call__(self, start: int, stop: int) -> np.ndarray:
        return _matrix(Path(self.path), "sig")[:, start:stop]


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`rate`: beats per minute of the simultaneous ECG, stated for windows of 8 s every 2 s; between them linear, NaN without a reference file."""
    path = str(recording.labels["reference"])
    value_R = _matrix(Path(path), "BPM0").ravel() if path else np.zeros(0)
    return {"rate": at_reference_windows(value_R, start_s_N, window_s)}


def reference_rates(root: str | Path, record_id: str) -> np.ndarray:
    """The reference heart rate (R,) in bpm of the windows [2 i, 2 i + 8) s; `ValueError` where the recording has none."""
    path = _reference_file(Path(root), record_id)
    if path is None:
        raise ValueError(f"{record_id} in {root} has no reference file REF_... or True_...; fetch it from the corpus")
    return _matrix(path, "BPM0").ravel()


def _reference_file(root: Path, record_id: str) -> Path | None:
    for prefix in ("REF", "True", "TRUE"):
        path = root / f"{prefix}_{record_id.partition('_')[2]}.mat"
        if path.is_file():
            return path
    return None


def _matrix_shape(path: Path, name: str) -> tuple[int, int]:
    from scipy.io import whosmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        found = {key: shape for key, shape, _ in whosmat(path)}
    except (MatReadError, NotImplementedError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a MATLAB file of version 5 ({error}); fetch it again from the corpus") from error
    shape = found.get(name)
    if shape is None:
        raise ValueError(f"{path}: no variable {name!r}, the file has {', '.join(found) or 'none'}; this is not a file of TROIKA")
    if name == "sig" and shape[0] not in (len(ROWS), len(ROWS) - 1):
        raise ValueError(f"{path}: sig has {shape[0]} rows, expected {len(ROWS)} ({', '.join(ROWS)}) or {len(ROWS) - 1} without the ECG")
    return shape


def _matrix(path: Path, name: str) -> np.ndarray:
    _matrix_shape(path, name)
    return _loaded(path, name, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _loaded(path: Path, name: str, changed_ns: int) -> np.ndarray:
    from scipy.io import loadmat

    return np.asarray(loadmat(path, variable_names=(name,))[name], np.float64)


CORPUS = Corpus(
    name="troika",
    title="TROIKA / IEEE Signal Processing Cup 2015: wrist PPG during exercise",
    licence="none stated: ask the authors before redistributing",
    access="open",
    size="12 training recordings of 5 min (two PPG, three axes of acceleration, one ECG at 125 Hz) and 10 for testing",
    citation="Zhang Z, Pi Z, Liu B. TROIKA. IEEE Trans Biomed Eng 2015;62(2):522-531",
    url="https://sites.google.com/site/researchbyzhang/ieeespcup2015",
    signal_kind="ppg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=("PPG1", "PPG2"), window_s=8.0, hop_s=2.0, fs=125.0, band=(0.5, 8.0), split="hash"),
    tasks=RATE,
    label_windows=label_windows,
    obtain="request or download the training and test sets of the cup from the page; --root is the folder of the .mat files",
)
