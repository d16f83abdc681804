"""MIMIC-IV-ECG's layout: `files/p1000/p10000032/s40689238/40689238.hea` with aVF before aVL, and two tables; one record has a gap."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physio_data.corpora.mimic_iv_ecg import REPORT_COLUMNS
from physio_data.corpora.twins.ecg12 import twelve_leads
from physio_data.corpora.twins.wfdb_files import digital, header, signal_line, write_plain
from physio_data.recording import ECG_LEADS

FILE_ORDER = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
STUDIES = (
    ("10000032", "40689238", ("Sinus rhythm", "Possible right atrial abnormality")),
    ("10000032", "44458630", ("Sinus rhythm",)),
    ("10000117", "45090959", ("Atrial fibrillation", "Abnormal ECG")),
    ("10000560", "41020816", ()),
)
WITH_GAP = "44458630"


def write(root: Path, seed: int = 0) -> dict[str, object]:
    listed = ["subject_id,study_id,file_name,ecg_time,path"]
    measured = [
        f"subject_id,study_id,cart_id,ecg_time,{','.join(REPORT_COLUMNS)},bandwidth,filtering,rr_interval,p_onset,p_end,qrs_onset,qrs_end,t_end,p_axis,qrs_axis,t_axis"
    ]
    for index, (subject, study, statements) in enumerate(STUDIES):
        path = f"files/p{subject[:4]}/p{subject}/s{study}/{study}"
        base = root / path
        base.parent.mkdir(parents=True)
        leads_CT = twelve_leads(index, 10.0, 500.0, seed)[0][[ECG_LEADS.index(name) for name in FILE_ORDER]]
        if study == WITH_GAP:
            leads_CT[7, 1000:1400] = np.nan
        d_CT = digital(leads_CT, 200)
        write_plain(base.with_suffix(".dat"), d_CT)
        lines = [signal_line(f"{study}.dat", "16", 200, "mV", d_T, name) for d_T, name in zip(d_CT, FILE_ORDER, strict=True)]
        header(base.with_suffix(".hea"), f"{study} 12 500 5000 09:25:00 23/07/2180", lines, (f"<subject_id>: {subject}",))
        listed.append(f"{subject},{study},{study},2180-07-23 09:25:00,{path}")
        cells = [*statements, *[""] * (len(REPORT_COLUMNS) - len(statements))]
        measured.append(f"{subject},{study},6848296,2180-07-23 09:25:00,{','.join(cells)},0.005-150 Hz,60 Hz notch,659,40,128,170,258,518,81,77,75")
    (root / "record_list.csv").write_text("\n".join(listed) + "\n")
    (root / "machine_measurements.csv").write_text("\n".join(measured) + "\n")
    return {}
