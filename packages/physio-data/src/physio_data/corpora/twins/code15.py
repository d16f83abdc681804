"""CODE-15's layout: `exams.csv` and `exams_part0.hdf5`, `exams_part17.hdf5` with zeros around each tracing and an empty last row of id 0."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from physio_data.corpora.twins.ecg12 import twelve_leads

HEADER = "exam_id,age,is_male,nn_predicted_age,1dAVb,RBBB,LBBB,SB,ST,AF,patient_id,death,timey,normal_ecg,trace_file"
# part, exam, seconds, patient, age, male, AF
EXAMS = ((0, 1169160, 10.0, 523632, 38, True, False), (0, 2873686, 7.0, 1724173, 73, False, True), (17, 168405, 10.0, 51421, 67, False, False))
N_SAMPLES = 4096


def write(root: Path, seed: int = 0) -> dict[str, object]:
    rows = [HEADER]
    for part in sorted({exam[0] for exam in EXAMS}):
        ids, tracings = [], []
        for index, (of_part, exam, seconds, patient, age, male, af) in enumerate(EXAMS):
            if of_part != part:
                continue
            leads_CT, _ = twelve_leads(index, seconds, 400.0, seed)
            tracing_TC = np.zeros((N_SAMPLES, 12), np.float32)
            before = (N_SAMPLES - leads_CT.shape[1]) // 2
            tracing_TC[before : before + leads_CT.shape[1]] = 10 * leads_CT.T  # units of 0.1 mV
            ids.append(exam)
            tracings.append(tracing_TC)
            rows.append(f"{exam},{age},{male},{age + 2.16},False,False,False,False,False,{af},{patient},,,{not af},exams_part{part}.hdf5")
        with h5py.File(root / f"exams_part{part}.hdf5", "w") as file:
            file["exam_id"] = np.array([*ids, 0], np.int64)
            file["tracings"] = np.stack([*tracings, np.zeros((N_SAMPLES, 12), np.float32)])
    (root / "exams.csv").write_text("\n".join(rows) + "\n")
    return {}
