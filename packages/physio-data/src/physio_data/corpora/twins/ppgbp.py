"""PPG-BP's layout: `Data File/0_subject/2_1.txt`, and the table of the workbook saved as CSV, title line and long headers included."""

from __future__ import annotations

from pathlib import Path

from physio_data.corpora.twins.people import person

HEADER = (
    "Num.,subject_ID,Sex(M/F),Age(year),Height(cm),Weight(kg),Systolic Blood Pressure(mmHg),Diastolic Blood Pressure(mmHg),Heart Rate(b/m),"
    "BMI(kg/m^2),Hypertension,Diabetes,cerebral infarction,cerebrovascular disease"
)
ROWS = (
    "1,2,Female,45,152,63,161,89,97,27.27,Stage 2 hypertension,,,",
    "2,3,Female,50,157,50,160,93,76,20.28,Stage 2 hypertension,Diabetes,,",
    "3,6,Male,47,150,47,101,71,79,20.89,Normal,,,",
    "4,8,Male,60,158,58,126,78,71,23.23,Prehypertension,Type 2 Diabetes,,",
)


def write(root: Path, seed: int = 0) -> dict[str, object]:
    folder = root / "Data File" / "0_subject"
    folder.mkdir(parents=True)
    (root / "Data File" / "subjects.csv").write_text(f"PPG-BP dataset{',' * 13}\n{HEADER}\n" + "\n".join(ROWS) + "\n", encoding="utf-8-sig")
    for index, row in enumerate(ROWS):
        x_T = 2000 + 300 * person(index, 12.6, 1000.0, seed=seed).signal_CT[0]
        for clip in range(3):
            length = 4200 if (index, clip) == (3, 0) else 2100  # one clip of the corpus is twice as long
            part = x_T[4200 * clip : 4200 * clip + length]
            (folder / f"{row.split(',')[1]}_{clip + 1}.txt").write_text("\t".join(f"{value:.1f}" for value in part) + "\t\n")
    return {}
