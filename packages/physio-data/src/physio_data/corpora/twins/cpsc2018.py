"""CPSC 2018's layout: struct files `TrainingSet1/A0001.mat`, `TrainingSet1/REFERENCE.csv`, and a record of the extra set as WFDB."""

from __future__ import annotations

from pathlib import Path

from physio_data.corpora.twins.ecg12 import twelve_leads, write_snomed

RECORDS = {"A0001": ("Male", 74, 15.0, "5,,"), "A0002": ("Female", 49, 10.0, "1,,"), "A0003": ("Female", 81, 22.0, "2,5,")}


def write(root: Path, seed: int = 0) -> dict[str, object]:
    from scipy.io import savemat

    folder = root / "TrainingSet1"
    folder.mkdir()
    for index, (name, (sex, age, seconds, _)) in enumerate(RECORDS.items()):
        savemat(folder / f"{name}.mat", {"ECG": {"sex": sex, "age": age, "data": twelve_leads(index, seconds, 500.0, seed)[0]}})
    rows = "".join(f"{name},{labels}\n" for name, (_, _, _, labels) in RECORDS.items())
    (folder / "REFERENCE.csv").write_text(f"Recording,First_label,Second_label,Third_label\n{rows}")
    write_snomed(root / "extra" / "Q0001", 3, 12.0, seed, age="34", sex="Female", dx="17338001")
    return {}
