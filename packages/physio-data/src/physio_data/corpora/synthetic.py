"""The built-in corpus: a generated cohort with ectopic beats, fibrillation and noise of known place (`physio_data.synthesis`). N windows."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.recording import Annotations, Recording
from physio_data.synthesis import SynthesisConfig, SyntheticSubject, synthesize_subject

N_SUBJECTS, MINUTES = 400, 4.0
SIGNALS = {"ppg": (("PPG",), 25.0), "ecg": (("ECG",), 250.0), "both": (("ECG", "PPG"), 250.0)}
_STRENGTHS = {field.name: str(field.type) for field in fields(SynthesisConfig)}
OPTIONS = {
    "n_subjects": f"how many subjects, one record each (default {N_SUBJECTS})",
    "minutes": f"length of each record (default {MINUTES:g})",
    "seed": "which cohort (default 0)",
    "signal": "ppg (default; 25 Hz), ecg or both (250 Hz)",
    "native_fs": "rate of the generated signal in Hz, where the default of `signal` will not do",
    **{name: f"SynthesisConfig.{name}: {kind}" for name, kind in _STRENGTHS.items()},
}


def list_records(root: str | Path | None = None, *, n_subjects: int = N_SUBJECTS, seed: int = 0, **options: object) -> list[str]:
    """Record ids `<seed>-<index>`; the subject of an index is the same whatever `n_subjects`."""
    if not 1 <= int(n_subjects) <= 99_999:
        raise ValueError(f"n_subjects must be 1 to 99999, got {n_subjects}")
    return [f"{int(seed)}-{index:05d}" for index in range(int(n_subjects))]


def open_record(
    root: str | Path | None,
    record_id: str,
    *,
    minutes: float = MINUTES,
    signal: str = "ppg",
    native_fs: float | None = None,
    n_subjects: int = N_SUBJECTS,
    seed: int = 0,
    **strengths: object,
) -> Recording:
    """Generate one record. `strengths` are fields of `SynthesisConfig` by name; the record's id names its seed and subject."""
    if signal not in SIGNALS:
        raise ValueError(f"signal must be one of {', '.join(SIGNALS)}, got {signal!r}")
    unknown = sorted(set(strengths) - set(_STRENGTHS))
    if unknown:
        raise ValueError(f"corpus 'synthetic' has no option {unknown[0]!r}; it has {', '.join(OPTIONS)}")
    channels, usual_fs = SIGNALS[signal]
    cohort, _, index = record_id.partition("-")
    cfg = SynthesisConfig(**strengths)
    subject = synthesize_subject(int(index), float(minutes), float(native_fs or usual_fs), channels, int(cohort), cfg)
    return Recording.from_array(
        subject.signal_CT,
        fs=subject.fs,
        channels=channels,
        units=subject.units,
        subject=subject.subject,
        record=record_id,
        annotations=annotations(subject),
        labels={"stiffness": subject.stiffness},
        age=subject.age,
        sex=subject.sex,
    )


def annotations(subject: SyntheticSubject) -> Annotations:
    """Beats as N, V and A, and rhythm changes as `+` with `(N` or `(AFIB`, in the WFDB code.

    A beat stands at its R time, or where there is no ECG at the foot of its pulse, so that a window's label speaks of what the window shows.
    """
    time_s = subject.beat_s if "ECG" in subject.channels else subject.pulse_s
    duration_s = len(subject.af_T) / subject.fs
    inside = time_s < duration_s
    change = np.flatnonzero(np.diff(subject.af_T.astype(np.int8), prepend=-1))
    return Annotations(
        time_s=np.concatenate([time_s[inside], change / subject.fs]),
        symbol=np.concatenate([subject.beat_type[inside], np.full(len(change), "+")]),
        aux=np.concatenate([np.full(int(inside.sum()), ""), np.where(subject.af_T[change], "(AFIB", "(N")]),
    )


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`pvc`: holds at least one V. `af`: fibrillating for more than half of it. `rate`: beats per minute from the mean interval within it
    (NaN below two beats). `age` and `stiffness` are the subject's."""
    marks = recording.annotations
    start_N = np.asarray(start_s_N, np.float64)
    stop_N = start_N + window_s
    rhythm = marks.symbol == "+"
    beat_s = marks.time_s[~rhythm]
    pvc_s = beat_s[marks.symbol[~rhythm] == "V"]
    n_pvc_N = np.searchsorted(pvc_s, stop_N) - np.searchsorted(pvc_s, start_N)

    first_N, last_N = np.searchsorted(beat_s, start_N), np.searchsorted(beat_s, stop_N) - 1
    n_rr_N = last_N - first_N
    span_N = beat_s[np.clip(last_N, 0, len(beat_s) - 1)] - beat_s[np.clip(first_N, 0, len(beat_s) - 1)]
    rate_N = np.where(n_rr_N >= 1, 60 * n_rr_N / np.where(n_rr_N >= 1, span_N, 1.0), np.nan)

    since_s = marks.time_s[rhythm]
    until_s = np.append(since_s[1:], np.inf)
    af_R = marks.aux[rhythm] == "(AFIB"
    shared_NR = np.clip(np.minimum(stop_N[:, None], until_s[af_R]) - np.maximum(start_N[:, None], since_s[af_R]), 0, None)
    return {
        "pvc": (n_pvc_N > 0).astype(np.int64),
        "af": (shared_NR.sum(1) > window_s / 2).astype(np.int64),
        "age": np.full(len(start_N), recording.age),
        "stiffness": np.full(len(start_N), float(recording.labels["stiffness"])),
        "rate": rate_N,
    }


CORPUS = Corpus(
    name="synthetic",
    title="Synthetic cohort: coupled ECG and PPG with ectopic beats, atrial fibrillation and marked noise",
    licence="Apache-2.0",
    access="generated",
    size=f"{N_SUBJECTS} subjects x {MINUTES:g} min by default",
    citation="ECG after McSharry PE, Clifford GD, Tarassenko L, Smith LA. IEEE Trans Biomed Eng 2003;50:289-294",
    url="https://doi.org/10.1109/TBME.2003.808805",
    signal_kind="ppg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=("PPG",), window_s=10.0, hop_s=10.0, fs=25.0, band=(0.5, 8.0), split="hash"),
    tasks={
        "pvc": TaskSpec(kind="binary", classes=("no PVC", "PVC")),
        "af": TaskSpec(kind="binary", classes=("no AF", "AF")),
        "age": TaskSpec(kind="regression", unit="years"),
        "stiffness": TaskSpec(kind="regression", unit="m/s"),
        "rate": TaskSpec(kind="regression", unit="bpm"),
    },
    label_windows=label_windows,
    records_per_task=16,
    options=OPTIONS,
)
