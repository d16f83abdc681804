"""The PPG and EEG corpora: what their twins were written with comes out; bad files are named with what to do."""

import pickle
import shutil

import h5py
import numpy as np
import pytest

from physio_data.corpora import bidmc, corpus, dalia, ecg_preprocess, mimic3_wf, mimic4_wf, ppgbp, pulsedb, sleep_edf, troika, wesad
from physio_data.corpora.labels import at_reference_windows, longest_state, pressure
from physio_data.corpora.twins import write_twin
from physio_data.corpora.twins.pulsedb import write_subject
from physio_data.prepare import PrepareConfig, prepare
from physio_data.pulses import pulse_polarity
from physio_data.store import Store


@pytest.fixture
def twin(tmp_path):
    def written(name):
        return tmp_path / "files", write_twin(name, tmp_path / "files")

    return written


def test_reference_windows_states_and_pressure_by_hand():
    value_N = at_reference_windows(np.array([60.0, 64.0, 70.0]), [0.0, 1.0, 2.0, 4.0, 5.0], 8.0)
    np.testing.assert_allclose(value_N, [60, 62, 64, 70, np.nan])
    np.testing.assert_allclose(at_reference_windows([60.0, 64.0], [1.0], 10.0), [64.0])  # centred 2 s after the first
    state_N, share_N = longest_state(np.array([0, 0, 1, 1, 1, 7, 7, 7]), 1.0, [0.0, 2.0, 4.0], 4.0, 2)
    assert state_N.tolist() == [0, 1, 1] and share_N.tolist() == [0.5, 0.75, 0.25]
    assert pressure([150, 110, 130, np.nan], [80, 70, 75, np.nan])["htn_bp"].tolist() == [1, 0, -1, -1]


def test_pulsedb_neighbours_follow_time_and_not_the_file(twin):
    root, _ = twin("pulsedb")
    records = pulsedb.list_records(root)
    assert records == ["PulseDB_MIMIC/p000020-0", "PulseDB_MIMIC/p000020-3", "PulseDB_MIMIC/p000020-5", "PulseDB_MIMIC/p000160-0", "PulseDB_Vital/p000001-0"]
    second = pulsedb.open_record(root, records[1])
    assert second.start_s == 50.0 and second.n_samples == 2500 and second.subject == "mimic3:p000020"
    labels = pulsedb.label_windows(second, np.array([0.0, 10.0]), 10.0)
    assert labels["sbp"].tolist() == [121.0, 122.0] and labels["dbp"].tolist() == [73.0, 74.0]
    with h5py.File(root / "PulseDB_MIMIC" / "p000020.mat") as file:
        np.testing.assert_allclose(second.read()[0, 1250:], file["#refs#"]["PPG_Record4"][()].ravel(), rtol=1e-6)
    single = pulsedb.open_record(root, records[3])  # a struct of one element holds its values themselves
    with h5py.File(root / "PulseDB_MIMIC" / "p000160.mat") as file:
        np.testing.assert_allclose(single.read()[1], file["Subj_Wins"]["ECG_Record"][()].ravel(), rtol=1e-6)
    np.testing.assert_array_equal(second.read(1000, 1500), second.read()[:, 1000:1500])


def test_pulsedb_of_version_1_needs_its_scaled_signals(tmp_path):
    (tmp_path / "PulseDB_Vital").mkdir()
    write_subject(tmp_path / "PulseDB_Vital" / "p000007.mat", 0, np.array([0, 1]), version=1)
    with pytest.raises(ValueError, match=r"p000007\.mat: no field PPG_Record, ECG_Record .* give the option signals=raw"):
        pulsedb.list_records(tmp_path)
    assert len(pulsedb.list_records(tmp_path, signals="raw")) == 2  # no times: nobody's neighbour is known
    (tmp_path / "PulseDB_Vital" / "p000008.mat").write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match=r"p000008\.mat: not a readable HDF5 file"):
        pulsedb.list_records(tmp_path, signals="raw")
    with h5py.File(tmp_path / "PulseDB_Vital" / "p000008.mat", "w") as file:
        file["Subset"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"no struct Subj_Wins, the file has Subset"):
        pulsedb.list_records(tmp_path, signals="raw")
    with pytest.raises(ValueError, match="signals must be one of record, raw"):
        pulsedb.list_records(tmp_path, signals="filtered")


def test_mimic3_gaps_stay_gaps_and_ages_are_capped(twin):
    root, options = twin("mimic3_wf")
    records = mimic3_wf.list_records(root)
    assert records == ["p00/p000020/p000020-2183-04-28-17-47", "p00/p000109/p000109-2141-10-21-09-05"]
    assert mimic3_wf.list_records(root, channel="ABP") == []
    first = mimic3_wf.open_record(root, records[0], **options)
    pleth_T = first.select(["PLETH"]).read()[0]
    known_T = np.isfinite(pleth_T)
    assert known_T[: 40 * 125].all() and not known_T[40 * 125 : 45 * 125].any() and known_T[45 * 125 : 75 * 125].all() and not known_T[75 * 125 :].any()
    assert first.subject == "mimic3:p000020" and first.sex == "F" and first.age == pytest.approx(76.0, abs=0.01)
    assert mimic3_wf.open_record(root, records[1], **options).age == 91.4  # born 300 years before
    with pytest.raises(ValueError, match=r"none\.csv: no such patients table"):
        mimic3_wf.open_record(root, records[0], patients=str(root / "none.csv"))
    (root / "bad.csv").write_text("id,sex\n20,F\n")
    with pytest.raises(ValueError, match=r"bad\.csv: no column subject_id, gender, dob, the header has id, sex"):
        mimic3_wf.open_record(root, records[0], patients=str(root / "bad.csv"))


def test_mimic4_keeps_both_samples_of_a_frame(twin):
    root, options = twin("mimic4_wf")
    record = mimic4_wf.open_record(root, mimic4_wf.list_records(root)[0], **options)
    assert record.fs == pytest.approx(124.945) and record.channels == ("Pleth",) and record.n_samples == 10000
    assert record.subject == "mimic4:p10014354" and record.age == 62 and record.sex == "F"
    assert np.abs(np.diff(record.read()[0])).max() > 0  # no pair is averaged
    ecg = mimic4_wf.open_record(root, mimic4_wf.list_records(root)[0], channel="II")
    assert ecg.fs == pytest.approx(249.89) and ecg.units == ("mV",)


def test_bidmc_knows_one_person_of_two_records(twin):
    root, _ = twin("bidmc")
    subjects = [bidmc.open_record(root, record).subject for record in bidmc.list_records(root)]
    assert subjects == ["bidmc:01", "bidmc:02", "bidmc:01"]
    first = bidmc.open_record(root, "bidmc01")
    assert (first.age, first.sex, first.channels, first.units[2]) == (88.0, "F", ("RESP", "PLETH", "V", "AVR", "II"), "mV")
    for fix in root.rglob("*_Fix.txt"):  # without a source, neighbours alike in age, sex and ward count as one
        fix.write_text(fix.read_text().replace("Source", "#").replace("s00", "x"))
    bidmc._facts.cache_clear(), bidmc._same_people.cache_clear()
    assert [bidmc.open_record(root, record).subject for record in bidmc.list_records(root)] == ["bidmc:01", "bidmc:02", "bidmc:03"]
    (root / "bidmc_csv" / "bidmc_01_Numerics.csv").write_text("Time [s], PULSE\n0,60\n")
    bidmc._monitor_rate.cache_clear()
    with pytest.raises(ValueError, match=r"bidmc_01_Numerics\.csv: no column HR"):
        bidmc.label_windows(first, np.array([0.0]), 10.0)


def test_ppgbp_labels_of_its_table(twin):
    root, _ = twin("ppgbp")
    assert ppgbp.list_records(root)[:4] == ["2_1", "2_2", "2_3", "3_1"]
    clip = ppgbp.open_record(root, "8_1")
    assert clip.n_samples == 4200 and clip.age == 60 and clip.sex == "M" and clip.subject == "ppgbp:8"
    labels = ppgbp.label_windows(clip, np.array([0.0]), 2.096)
    assert (labels["hypertension"][0], labels["diabetes"][0], labels["sbp"][0], labels["htn_bp"][0]) == (0, 1, 126.0, -1)
    clip_file, table = root / "Data File" / "0_subject" / "2_1.txt", root / "Data File" / "subjects.csv"
    clip_file.write_text("1 2 three")
    with pytest.raises(ValueError, match=r"2_1\.txt: not a line of numbers"):
        ppgbp.open_record(root, "2_1")
    table.write_text("subject_id,age\n2,45\n")
    with pytest.raises(ValueError, match=r"subjects\.csv: no column sex"):
        ppgbp.open_record(root, "2_2")


def test_ppgbp_samples_become_balanced_folds(shared):
    folder = shared / "data" / "ppgbp"
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    records = ppgbp.list_records(folder)
    people = {record.partition("_")[0] for record in records}
    stages = [int(ppgbp.open_record(folder, f"{person}_1").labels["stage"]) for person in sorted(people) if f"{person}_1" in records]
    assert len(people) > 100 and stages.count(0) in (47, 48, 46) and stages.count(3) >= 12


def test_troika_test_files_have_no_ecg(twin):
    root, _ = twin("troika")
    assert troika.open_record(root, "TEST_S01_T01").channels == ("PPG1", "PPG2", "ACCX", "ACCY", "ACCZ")
    assert troika.open_record(root, "DATA_02_TYPE02").channels[0] == "ECG"
    shutil.copy(root / "REF_01_TYPE01.mat", root / "DATA_09_TYPE01.mat")
    with pytest.raises(ValueError, match=r"DATA_09_TYPE01\.mat: no variable 'sig', the file has BPM0"):
        troika.open_record(root, "DATA_09_TYPE01")
    (root / "DATA_08_TYPE01.mat").write_bytes(b"MATLAB" * 50)
    with pytest.raises(ValueError, match=r"DATA_08_TYPE01\.mat: not a MATLAB file"):
        troika.open_record(root, "DATA_08_TYPE01")
    with pytest.raises(ValueError, match="has no reference file"):
        troika.reference_rates(root, "DATA_07_TYPE01")


def test_wesad_states_and_devices(twin):
    root, _ = twin("wesad")
    assert wesad.list_records(root) == ["S2", "S10"]
    wrist = wesad.open_record(root, "S2")
    assert (wrist.fs, wrist.channels, wrist.age, wrist.sex) == (64.0, ("PPG",), 27.0, "M")
    start_s = np.array([0.0, 10.0, 30.0, 45.0, 72.0, 85.0])
    assert wesad.label_windows(wrist, start_s, 10.0)["stress"].tolist() == [-1, 0, 0, 1, -1, 2]
    chest = wesad.open_record(root, "S10", device="chest")
    assert chest.fs == 700.0 and chest.channels[0] == "ECG" and chest.units[0] == "mV" and len(chest.channels) == 8
    with pytest.raises(ValueError, match="device must be one of wrist"):
        wesad.list_records(root, device="ankle")
    (root / "S2" / "S2.pkl").write_bytes(pickle.dumps({"signal": {"wrist": {"ACC": np.zeros((3, 3))}}}))
    with pytest.raises(ValueError, match=r"S2\.pkl: no 'BVP' under signal/wrist, it has ACC"):
        wesad.open_record(root, "S2")
    (root / "S2" / "S2.pkl").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"S2\.pkl: refused, .*posix\.system"):
        wesad.open_record(root, "S2")


def test_dalia_is_turned_upright_where_it_points_down(twin):
    root, _ = twin("dalia")
    signs = [dalia.open_record(root, record).labels["sign"] for record in dalia.list_records(root)]
    assert signs == [1, -1]
    turned, kept = dalia.open_record(root, "S2"), dalia.open_record(root, "S2", polarity="keep")
    np.testing.assert_array_equal(turned.read(), -kept.read())
    assert pulse_polarity(turned.read()[0], 64.0) == 1
    assert dalia.label_windows(turned, np.array([0.0, 30.0, 50.0]), 8.0)["activity"].tolist() == [0, 1, 2 + 5]
    with pytest.raises(ValueError, match="polarity must be one of"):
        dalia.open_record(root, "S2", polarity="up")


def test_sleep_stages_that_hold_throughout(twin):
    root, _ = twin("sleep_edf")
    night = sleep_edf.open_record(root, "sleep-cassette/SC4001E0")
    assert (night.age, night.sex, night.subject) == (33.0, "F", "sleep_edf:SC4-00")
    assert sleep_edf.label_windows(night, np.arange(0, 210.0, 30.0), 30.0)["stage"].tolist() == [0, 1, 2, 3, 3, 4, -1]
    assert sleep_edf.label_windows(night, np.array([15.0, 105.0]), 30.0)["stage"].tolist() == [-1, 3]  # 3 and 4 are one stage
    chosen = night.select(["fpz-cz", "EEG PZ-OZ"])
    assert chosen.channels == ("Fpz-Cz", "Pz-Oz") and chosen.units == ("uV", "uV") and chosen.fs == 100.0
    assert chosen.read(0, 3000)[1].std() == pytest.approx(np.hypot(30 / np.sqrt(2), 5), rel=0.05)


def test_ecg_preprocess_names_leads_by_the_base(twin):
    root, _ = twin("ecg_preprocess")
    for record in ecg_preprocess.list_records(root):
        lead = {name: x_T for name, x_T in zip(*(lambda r: (r.channels, r.read()))(ecg_preprocess.open_record(root, record)), strict=True)}
        np.testing.assert_allclose(lead["aVR"], -(lead["I"] + lead["II"]) / 2, atol=1e-5)
        np.testing.assert_allclose(lead["aVL"], lead["I"] - lead["II"] / 2, atol=1e-5)
    shutil.move(root / "ptb_xl", root / "other")
    record = next(r for r in ecg_preprocess.list_records(root) if r.startswith("other"))
    with pytest.raises(ValueError, match="the order of its leads is unknown; give the option order"):
        ecg_preprocess.open_record(root, record)
    assert ecg_preprocess.open_record(root, record, order="aVR,aVL").channels[3] == "aVR"


def test_cwt_index_and_its_split_file(twin, tmp_path):
    root, options = twin("cwt_index")
    source_fs = options.pop("source_fs")
    prepare(
        PrepareConfig(corpus="cwt_index", root=str(root), source_fs=source_fs, split="official", corpus_options={**options, "split_file": "splits/split.json"}),
        tmp_path / "store",
    )
    store = Store(tmp_path / "store")
    assert store.index["fold"].tolist() == ["train"] * 4 + ["val"] * 2 + ["test"] * 2 and store.label("class").tolist() == [0, 1] * 4
    row = corpus("cwt_index")
    (root / "segments" / "000.pkl").write_bytes(pickle.dumps({"data": np.zeros((2, 900)), "label": 0}))
    with pytest.raises(ValueError, match=r"index\.json, entry 0: len is 1000 and .*000\.pkl has 900 samples"):
        row.open_record(root, "000000", source_fs=100.0)
    with pytest.raises(ValueError, match=r"give it in Hz with --source-fs"):
        row.open_record(root, "000001")
    (root / "segments" / "001.pkl").write_bytes(pickle.dumps({"x": np.zeros((2, 1000))}))
    with pytest.raises(ValueError, match=r"001\.pkl: no 'data', the dictionary has x"):
        row.open_record(root, "000001", source_fs=100.0)
    (root / "index.json").write_text('[{"file": "a.pkl"}]')
    with pytest.raises(ValueError, match=r"index\.json, entry 0: no path"):
        row.list_records(root)


def test_a_folder_with_a_description(twin, tmp_path):
    root, _ = twin("folder")
    row = corpus("folder")
    assert [row.open_record(root, record).subject for record in row.list_records(root)] == ["files:anna", "files:anna", "files:ben"]
    (root / "folder.json").unlink()
    with pytest.raises(ValueError, match="--source-fs"):
        row.open_record(root, "anna_1.csv")
    assert row.open_record(root, "anna_1.csv", source_fs=64, channels="PPG").channels == ("PPG",)
    with pytest.raises(ValueError, match=r"finds no group in 'anna_1\.csv'"):
        row.open_record(root, "anna_1.csv", source_fs=64, subject="^p[0-9]+")
    (root / "folder.json").write_text('{"rate": 64}')
    with pytest.raises(ValueError, match="field 'rate' is not known"):
        row.list_records(root)


def test_eyes_closed_shows_alpha_after_preparation(shared, tmp_path):
    folder = shared / "data" / "biosppy_examples"
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    cfg = PrepareConfig(corpus="folder", root=str(folder), corpus_options={"files": "eeg_ec.txt"}, band=(1.0, 40.0), window_s=4.0)
    prepare(cfg, tmp_path / "store")
    store = Store(tmp_path / "store")
    x_NT = store.batch(np.arange(len(store)))["signal"][:, 0]
    power_F = np.median(np.abs(np.fft.rfft(x_NT * np.hanning(x_NT.shape[1]), axis=1)) ** 2, axis=0)
    hz_F = np.fft.rfftfreq(x_NT.shape[1], 1 / store.fs)
    alpha, beside = (hz_F >= 8) & (hz_F <= 13), ((hz_F >= 6.5) & (hz_F < 8)) | ((hz_F > 13) & (hz_F <= 14.5))  # mains-locked lines stand at 5, 15 and 25 Hz
    assert 9 <= hz_F[alpha][power_F[alpha].argmax()] <= 12
    assert 10 * np.log10(power_F[alpha].max() / power_F[beside].mean()) > 2
