"""ECG corpora: labels, folds and subjects against their own files read by other means; leads where they belong; damage named."""

from __future__ import annotations

import ast
import csv
import struct
import warnings
from collections import Counter

import numpy as np
import pytest

from physio_data.corpora import corpus, ludb
from physio_data.corpora.code15 import trimmed
from physio_data.corpora.twins import write_twin
from physio_data.prepare import PrepareConfig, prepare
from physio_data.recording import ECG_LEADS, Annotations, Recording
from physio_data.store import Store

TWELVE_LEADS = ("ptbxl", "mimic_iv_ecg", "code15", "cpsc2018", "cinc2021", "georgia", "csn", "ludb")


def real(shared, name):
    folder = shared / "data" / name
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    return folder


def stored(name, root, out, **more):
    prepare(PrepareConfig(corpus=name, root=str(root), **more), out)
    return Store(out)


def signals_of(store):
    return store.batch(np.arange(len(store)))["signal"].astype(np.float64)


@pytest.mark.parametrize("name", TWELVE_LEADS)
def test_twelve_leads_land_in_one_order_whatever_the_file_has(name, tmp_path):
    """The twins obey Goldberger exactly, so a swapped aVL and aVF would show at once."""
    options = write_twin(name, tmp_path / "files")
    store = stored(name, tmp_path / "files", tmp_path / "s", band=(None, None), corpus_options=options)
    assert store.channels == ECG_LEADS
    x_NCT = signals_of(store)
    lead = {channel: x_NCT[:, i] for i, channel in enumerate(store.channels)}
    for name_, expected in (("III", lead["II"] - lead["I"]), ("aVL", lead["I"] - lead["II"] / 2), ("aVF", lead["II"] - lead["I"] / 2)):
        assert np.abs(lead[name_] - expected).max() < 0.02, name_
    assert np.abs(lead["aVL"] - lead["aVF"]).max() > 0.1


@pytest.mark.parametrize(("name", "options"), [("cinc2021", {}), ("ptbxl", {}), ("ptbxl", {"rate": 500, "partial": True}), ("cpsc2018", {})])
def test_real_limb_leads_obey_einthoven(shared, name, options):
    r = []
    for recording in corpus(name).records(real(shared, name), **options):
        one_T, two_T, three_T = recording.select(("I", "II", "III")).read().astype(np.float64)
        r.append(np.corrcoef(two_T, one_T + three_T)[0, 1])
    assert min(r) >= 0.99


def test_ptbxl_label_sets_are_those_of_its_tables(shared, tmp_path):
    root = real(shared, "ptbxl")
    store = stored("ptbxl", root, tmp_path / "s")
    with (root / "ptbxl_database.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    with (root / "scp_statements.csv").open() as handle:
        statement = {row[""]: row for row in csv.DictReader(handle)}
    sizes = {name: len(spec["classes"]) for name, spec in store.tasks.items() if spec["kind"] == "multilabel"}
    assert sizes == {"superclass": 5, "all": 71, "diag": 44, "sub": 23, "form": 19, "rhythm": 12}
    assert store.tasks["superclass"]["classes"] == ["CD", "HYP", "MI", "NORM", "STTC"]
    kinds = {"diag": "diagnostic", "form": "form", "rhythm": "rhythm"}
    for i, row in enumerate(rows):
        assert store.index["record"][i] == f"{int(row['ecg_id']):05d}_lr"
        codes = ast.literal_eval(row["scp_codes"])
        expected = {"all": set(codes)} | {task: {code for code in codes if statement[code][column]} for task, column in kinds.items()}
        expected["superclass"] = {statement[code]["diagnostic_class"] for code in expected["diag"]}
        expected["sub"] = {statement[code]["diagnostic_subclass"] for code in expected["diag"]}
        for task, names in expected.items():
            label = store.label(task)[i]
            if names:
                assert {store.tasks[task]["classes"][c] for c in np.flatnonzero(label == 1)} == names and label.min() == 0
            else:
                assert (label == -1).all()
        assert store.index["subject"][i] == f"ptbxl:{int(float(row['patient_id']))}" and store.index["text"][i] == row["report"].strip()
    assert set(store.index["fold"]) == {"train"}  # folds 1-8 only are there
    assert (store.label("sex") == [1 - int(float(row["sex"])) for row in rows]).all()  # PTB-XL writes 0 for men, the store 1


def test_ptbxl_folds_ages_and_rates_of_the_twin(tmp_path):
    write_twin("ptbxl", tmp_path / "files")
    store = stored("ptbxl", tmp_path / "files", tmp_path / "s", corpus_options={"rate": 500}, fs=500.0)
    assert store.index["fold"].tolist() == ["train", "train", "train", "val", "test"] and store.n_samples == 5000
    assert store.index["age"][3] == pytest.approx(91.4) and np.isnan(store.index["age"][4])
    (tmp_path / "files" / "records500" / "00000" / "00003_hr.hea").unlink()
    with pytest.raises(ValueError, match=r"1 of 5 records of ptbxl_database.csv are not there, the first .*00003_hr\.hea; .*option partial true"):
        corpus("ptbxl").list_records(tmp_path / "files", rate=500)
    assert len(corpus("ptbxl").list_records(tmp_path / "files", rate=500, partial=True)) == 4
    with pytest.raises(ValueError, match="rate must be 100 or 500"):
        corpus("ptbxl").list_records(tmp_path / "files", rate=250)


def test_snomed_codes_become_the_scored_diagnoses(shared, tmp_path):
    root = real(shared, "cinc2021")
    store = stored("cinc2021", root, tmp_path / "s")
    with (root / "challenge2021_dx_mapping.csv").open() as handle:
        scored = {row["snomed_code"]: row["abbreviation"] for row in csv.DictReader(handle) if row["scored"] == "1"}
    assert sorted(part for name in store.tasks["dx"]["classes"] for part in name.split("|")) == sorted(scored.values())
    for i, record in enumerate(store.index["record"]):
        header = (root / f"{record}.hea").read_text()
        codes = next(line for line in header.splitlines() if line.startswith("# Dx:")).partition(":")[2].split(",")
        found = {part for c in np.flatnonzero(store.label("dx")[i] == 1) for part in store.tasks["dx"]["classes"][c].split("|")}
        assert {scored[code.strip()] for code in codes if code.strip() in scored} <= found
        assert len(found) <= 2 * len(codes)
    assert Counter(subject.partition(":")[0] for subject in store.index["subject"]) == {"georgia": 10, "ptbxl": 5, "csn": 10}
    assert store.manifest["subjects"] == "unknown"


def test_a_header_without_a_diagnosis_is_unlabelled(tmp_path):
    write_twin("georgia", tmp_path / "files")
    store = stored("georgia", tmp_path / "files", tmp_path / "s")
    assert (store.label("dx")[store.index["record"] == "E01000"] == -1).all() and store.label("dx")[0].sum() == 1


def test_cpsc2018_reads_both_of_its_forms(tmp_path):
    write_twin("cpsc2018", tmp_path / "files")
    store = stored("cpsc2018", tmp_path / "files", tmp_path / "s")
    by_record = {
        record: [store.tasks["dx"]["classes"][c] for c in np.flatnonzero(row)] for record, row in zip(store.index["record"], store.label("dx"), strict=True)
    }
    assert by_record == {"A0001": ["RBBB"], "A0002": ["Normal"], "A0003": ["AF", "RBBB"], "Q0001": ["PVC"]}
    (tmp_path / "files" / "TrainingSet1" / "REFERENCE.csv").write_text("Recording,First_label,Second_label,Third_label\nA0001,10,,\n")
    with pytest.raises(ValueError, match=r"REFERENCE\.csv: record A0001 has the label '10'; they are 1 to 9"):
        corpus("cpsc2018").open_record(tmp_path / "files", "TrainingSet1/A0001")


def test_cpsc2018_values_are_those_of_the_struct(shared):
    from scipy.io import loadmat

    root = real(shared, "cpsc2018")
    for recording in corpus("cpsc2018").records(root):
        ecg = loadmat(root / f"{recording.record}.mat")["ECG"][0, 0]
        np.testing.assert_allclose(recording.read(), ecg["data"], rtol=1e-6)
        assert recording.age == ecg["age"][0, 0] and recording.sex == ecg["sex"][0][0] and recording.fs == 500


def test_cinc2017_labels_are_those_of_version_3(shared, tmp_path):
    root = real(shared, "cinc2017")
    store = stored("cinc2017", root, tmp_path / "s")
    rhythm = dict(line.split(",") for line in (root / "REFERENCE-v3.csv").read_text().split())
    per_record = np.array([rhythm[record] for record in store.index["record"]])
    assert len(set(store.index["record"])) == 150
    np.testing.assert_array_equal(store.label("af"), np.select([per_record == "A", per_record == "~"], [1, -1], 0))
    np.testing.assert_array_equal(store.label("noise"), per_record == "~")
    raw = (root / "A00001.mat").read_bytes()
    expected = np.array(struct.unpack("<100h", raw[24:224])) / 1000
    np.testing.assert_allclose(corpus("cinc2017").open_record(root, "A00001").read(0, 100)[0], expected, rtol=1e-6)


def test_cpsc2021_windows_take_the_majority_rhythm(shared, tmp_path):
    root = real(shared, "cpsc2021")
    store = stored("cpsc2021", root, tmp_path / "s")
    af = store.label("af")
    assert not af[np.char.startswith(store.index["record"], "data_21_")].any()
    persistent = np.char.startswith(store.index["record"], "data_84_")
    assert af[persistent].mean() > 0.98 and set(store.index["subject"]) == {"cpsc2021:21", "cpsc2021:84", "cpsc2021:101"}
    wfdb = pytest.importorskip("wfdb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        marks = wfdb.rdann(str(root / "data_101_6"), "atr")
    fs, state = 200, np.zeros(22355, bool)
    changes = [(at, note.strip("\x00") == "(AFIB") for at, note in zip(marks.sample, marks.aux_note, strict=True) if note.startswith("(")]
    for (begin, is_af), (end, _) in zip(changes, [*changes[1:], (22355, False)], strict=True):
        state[begin:end] = is_af
    rows = store.index["record"] == "data_101_6"
    share = [state[int(s * fs) : int((s + 10) * fs)].mean() for s in store.index["start_s"][rows]]
    np.testing.assert_array_equal(af[rows], np.array(share) > 0.5)


@pytest.mark.parametrize(
    ("says", "marks", "expected"),
    [
        ("non atrial fibrillation", [], [0, 0, 0]),
        ("paroxysmal atrial fibrillation", [], [-1, -1, -1]),
        ("paroxysmal atrial fibrillation", [(12.0, "(AFIB"), (24.0, "(N")], [0, 1, 0]),
        ("paroxysmal atrial fibrillation", [(6.0, "(N")], [1, 0, 0]),
        ("paroxysmal atrial fibrillation", [(16.0, "(AFL"), (16.5, "None")], [0, 0, 1]),
    ],
)
def test_af_by_marks_and_header(says, marks, expected):
    notes = Annotations(time_s=[0.5, *(at for at, _ in marks)], symbol=["N", *("+" for _ in marks)], aux=["None", *(aux for _, aux in marks)])
    record = Recording.from_array(
        np.zeros((1, 3000)), fs=100.0, channels=("I",), units=("mV",), subject="p", record="r", annotations=notes, labels={"header": says}
    )
    assert corpus("cpsc2021").label_windows(record, np.array([0.0, 10.0, 20.0]), 10.0)["af"].tolist() == expected


def test_ludb_bounds_surround_their_peaks(shared):
    root = real(shared, "ludb")
    counts = Counter()
    for record in corpus("ludb").list_records(root)[:20]:
        for name, wave_K3 in ludb.bounds_of(root, record, "V2").items():
            counts[name] += len(wave_K3)
            marked = np.isfinite(wave_K3).all(1)
            assert (np.diff(wave_K3[marked]) > 0).all() and (wave_K3[marked, 2] - wave_K3[marked, 0] < 0.6).all()
    assert counts["QRS"] > 150 and counts["T"] > 150 and counts["P"] > 100
    recording = corpus("ludb").open_record(root, "1", lead="aVR")
    assert (recording.age, recording.sex, recording.labels["rhythm"]) == (51.0, "F", "Sinus bradycardia")
    with pytest.raises(ValueError, match="lead must be one of I, II"):
        corpus("ludb").open_record(root, "1", lead="V9")


def test_ludb_bounds_of_hand_written_marks():
    marks = Annotations(time_s=[1.0, 1.1, 1.2, 2.0, 2.1, 3.0], symbol=["(", "N", ")", "p", ")", "t"], aux=[""] * 6)
    bounds = ludb.wave_bounds(marks)
    np.testing.assert_array_equal(bounds["QRS"], [[1.0, 1.1, 1.2]])
    np.testing.assert_array_equal(bounds["P"], [[np.nan, 2.0, 2.1]])
    np.testing.assert_array_equal(bounds["T"], [[np.nan, 3.0, np.nan]])


def test_the_published_folder_of_ludb_has_its_records_in_data(tmp_path):
    write_twin("ludb", tmp_path)
    assert corpus("ludb").list_records(tmp_path) == corpus("ludb").list_records(tmp_path / "data") == ["1", "2", "10"]
    assert corpus("ludb").open_record(tmp_path / "data", "10").labels["rhythm"] == "Atrial fibrillation"


def test_windows_around_beats_carry_the_aami_class_and_the_annotated_time(shared, tmp_path):
    wfdb = pytest.importorskip("wfdb")
    root = real(shared, "mitdb")
    some = tmp_path / "files"
    some.mkdir()
    for record in ("100", "208"):
        for suffix in (".hea", ".dat", ".atr"):
            (some / f"{record}{suffix}").symlink_to(root / f"{record}{suffix}")
    store = stored("mitbih", some, tmp_path / "s", around="beats", window_s=0.8, fs=360.0, band=(None, None), split="hash")
    assert list(store.tasks) == ["aami", "age", "sex"] and (store.index["next"] == -1).all() and store.manifest["hop_s"] is None
    classes = {"N": "NLRej", "S": "aAJS", "V": "VE", "F": "F", "Q": "/fQ"}
    for record in ("100", "208"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            marks = wfdb.rdann(str(root / record), "atr")
        beats = [
            (at, next(k for k, name in enumerate(classes) if s in classes[name]))
            for at, s in zip(marks.sample, marks.symbol, strict=True)
            if s in "NLRejaAJSVEF/fQ"
        ]
        beats = [(at, k) for at, k in beats if at >= 144 and at + 144 <= 650000]
        rows = np.flatnonzero(store.index["record"] == record)
        np.testing.assert_allclose(store.index["beat_s"][rows], [at / 360 for at, _ in beats])
        assert store.label("aami")[rows].tolist() == [k for _, k in beats]
        whole_T = corpus("mitbih").open_record(root, record).select(("MLII",)).read()[0]
        np.testing.assert_allclose(store[int(rows[7])]["signal"][0], whole_T[beats[7][0] - 144 : beats[7][0] + 144], atol=1e-6)


def test_windows_around_beats_need_annotated_beats(tmp_path):
    write_twin("csn", tmp_path / "files")
    with pytest.raises(ValueError, match="corpus 'csn' has no annotated beats"):
        prepare(PrepareConfig(corpus="csn", root=str(tmp_path / "files"), around="beats"), tmp_path / "s")
    with pytest.raises(ValueError, match="leave hop_s and pad_tail out"):
        PrepareConfig(corpus="mitbih", around="beats", hop_s=1.0)


def test_leads_that_a_record_lacks_are_derived_on_request_only(tmp_path):
    write_twin("cpsc2021", tmp_path / "files")
    cfg = {"leads": ("II", "aVF"), "band": (None, None), "fs": 200.0}
    with pytest.raises(ValueError, match="has no channel 'aVF'"):
        stored("cpsc2021", tmp_path / "files", tmp_path / "refused", **cfg)
    store = stored("cpsc2021", tmp_path / "files", tmp_path / "s", derive=True, **cfg)
    recording = corpus("cpsc2021").open_record(tmp_path / "files", "data_0_1")
    one_T, two_T = recording.read(0, 2000).astype(np.float64)
    assert store.channels == ("II", "aVF") and store.manifest["config"]["derive"]
    np.testing.assert_allclose(store[0]["signal"], [two_T, two_T - one_T / 2], atol=1e-4)


def test_code15_is_trimmed_of_its_zeros_and_in_millivolt(tmp_path):
    write_twin("code15", tmp_path)
    row = corpus("code15")
    assert row.list_records(tmp_path) == ["1169160", "2873686", "168405"]  # the rows of id 0 are no exams
    assert [recording.n_samples for recording in row.records(tmp_path)] == [4000, 2800, 4000]
    recording = row.open_record(tmp_path, "2873686")
    assert 0.5 < np.abs(recording.read()).max() < 3 and recording.sex == "F" and recording.subject == "code15:1724173"
    x_TC = np.zeros((9, 2))
    x_TC[2], x_TC[6, 1] = 1, 1
    assert trimmed(x_TC).shape == (5, 2) and trimmed(np.zeros((9, 2))).shape == (0, 2)
    (tmp_path / "exams_part17.hdf5").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"exams_part17\.hdf5: not a readable HDF5 file"):
        row.list_records(tmp_path)


def test_mimic_iv_ecg_joins_reports_and_people_and_rejects_gaps_with_a_reason(tmp_path):
    write_twin("mimic_iv_ecg", tmp_path / "files")
    patients = tmp_path / "patients.csv"
    patients.write_text("subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod\n10000032,F,52,2178,2014 - 2016,\n10000117,M,91,2178,2008 - 2010,\n")
    store = stored("mimic_iv_ecg", tmp_path / "files", tmp_path / "s", corpus_options={"patients": str(patients)})
    assert store.manifest["rejected"] == {"missing": 1} and len(store) == 3
    assert store.index["text"].tolist() == ["Sinus rhythm Possible right atrial abnormality", "Atrial fibrillation Abnormal ECG", ""]
    assert store.index["subject"].tolist() == ["mimic4:10000032", "mimic4:10000117", "mimic4:10000560"]
    np.testing.assert_array_equal(store.index["age"], np.array([54, 91, np.nan], np.float32))
    (tmp_path / "files" / "files" / "p1000" / "p10000560" / "s41020816" / "41020816.hea").unlink()
    with pytest.raises(ValueError, match=r"1 of 4 records of record_list.csv are not there, the first files/p1000/p10000560/s41020816/41020816\.hea"):
        corpus("mimic_iv_ecg").list_records(tmp_path / "files")


@pytest.mark.parametrize("name", ["mitbih", "cinc2017", "cpsc2021", "cpsc2018", "cinc2021", "georgia", "csn", "ptbxl", "ludb", "mimic_iv_ecg"])
def test_a_truncated_signal_file_is_named(name, tmp_path):
    write_twin(name, tmp_path)
    row = corpus(name)
    record = row.list_records(tmp_path)[0]
    stem = {"ptbxl": "00001_lr", "mimic_iv_ecg": "40689238"}.get(name, record.rpartition("/")[2])
    file = next(path for path in tmp_path.rglob(f"{stem}.*") if path.suffix in (".dat", ".mat"))
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ValueError, match=rf"{file.name}: (truncated|not a readable MATLAB file)"):
        row.open_record(tmp_path, record)


@pytest.mark.parametrize("table", ["ptbxl_database.csv", "scp_statements.csv"])
def test_a_table_that_is_absent_or_resaved_is_named(table, tmp_path):
    write_twin("ptbxl", tmp_path)
    path = tmp_path / table
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(f"{line},,,,extra" for line in lines[1:])]) + "\n")
    with pytest.raises(ValueError, match=rf"{table}, line 2: more cells than the header has columns"):
        list(corpus("ptbxl").records(tmp_path))
    path.unlink()
    with pytest.raises(ValueError, match=rf"{table}: no such file; it is part of the corpus"):
        list(corpus("ptbxl").records(tmp_path))
