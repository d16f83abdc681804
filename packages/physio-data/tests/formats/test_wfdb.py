import math
import shutil
import sys
import warnings

import numpy as np
import pytest

from physio_data import open_recording
from physio_data.formats import wfdb as reader

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its use of pandas
    wfdb = pytest.importorskip("wfdb", reason="the wfdb library, the reference of these tests, is not installed")


def write_16(tmp_path, digital_TC, name="r", gain=200, comments=(), offset=0):
    """A format-16 record written by hand: (T, C) int16, -32768 marks a missing sample."""
    n, c = digital_TC.shape
    (tmp_path / f"{name}.dat").write_bytes(bytes(offset) + digital_TC.astype("<i2").tobytes())
    fmt = f"16+{offset}" if offset else "16"
    lines = [f"{name} {c} 100 {n}", *(f"{name}.dat {fmt} {gain}/mV 16 0 0 0 0 L{i}" for i in range(c)), *(f"# {text}" for text in comments)]
    (tmp_path / f"{name}.hea").write_text("\n".join(lines) + "\n")
    return tmp_path / f"{name}.hea"


def data(shared, name):
    folder = shared / "data" / name
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    return folder


def test_values_are_physical_and_ranges_agree_with_the_whole(tmp_path):
    digital_TC = np.random.default_rng(0).integers(-2000, 2000, (500, 2))
    recording = open_recording(write_16(tmp_path, digital_TC))
    assert (recording.fs, recording.n_samples, recording.units) == (100.0, 500, ("mV", "mV"))
    assert np.allclose(recording.read(), digital_TC.T / 200, atol=1e-6)
    assert np.array_equal(recording.read(123, 321), recording.read()[:, 123:321])


@pytest.mark.parametrize("suffix", ["", ".hea", ".dat"])
def test_a_record_is_named_by_any_of_its_files(tmp_path, suffix):
    write_16(tmp_path, np.zeros((10, 1), int))
    assert open_recording(tmp_path / f"r{suffix}").record == "r"


def test_gaps_of_the_file_stay_gaps(tmp_path):
    digital_TC = np.zeros((100, 2), int)
    digital_TC[40:50, 1] = -32768
    missing = np.isnan(open_recording(write_16(tmp_path, digital_TC)).read())
    assert missing.sum() == 10 and missing[1, 40:50].all()


@pytest.mark.parametrize("offset", [0, 24])
def test_a_truncated_signal_file_is_named_with_both_sizes(tmp_path, offset):
    path = write_16(tmp_path, np.zeros((500, 2), int), offset=offset)
    dat = path.with_suffix(".dat")
    dat.write_bytes(dat.read_bytes()[:1500])
    with pytest.raises(ValueError, match=rf"r\.dat: truncated, r\.hea asks for {2000 + offset} bytes .* the file has 1500"):
        open_recording(path)


def test_a_truncated_212_file_is_found(tmp_path):
    (tmp_path / "r.hea").write_text("r 2 360 1000\nr.dat 212 200 11 1024 0 0 0 MLII\nr.dat 212 200 11 1024 0 0 0 V5\n")
    (tmp_path / "r.dat").write_bytes(bytes(2999))
    with pytest.raises(ValueError, match=r"asks for 3000 bytes .* the file has 2999"):
        open_recording(tmp_path / "r.hea")
    (tmp_path / "r.dat").write_bytes(bytes(3000))
    assert open_recording(tmp_path / "r.hea").read(999, 1000).shape == (2, 1)


def test_a_missing_signal_file_or_header_is_named(tmp_path):
    path = write_16(tmp_path, np.zeros((5, 1), int))
    path.with_suffix(".dat").unlink()
    with pytest.raises(ValueError, match=r"r\.dat: no such signal file, though r\.hea names it"):
        open_recording(path)
    with pytest.raises(ValueError, match=r"gone\.hea: no such header"):
        open_recording(tmp_path / "gone.dat")


def test_a_header_without_signals_or_sense_is_named(tmp_path):
    (tmp_path / "a.hea").write_text("a 0 360 0\n")
    with pytest.raises(ValueError, match=r"a\.hea describes no signal"):
        open_recording(tmp_path / "a.hea")
    (tmp_path / "b.hea").write_text("")
    with pytest.raises(ValueError, match=r"b\.hea: not a readable WFDB header"):
        open_recording(tmp_path / "b.hea")


def test_an_absent_lead_lists_those_of_the_file(tmp_path):
    with pytest.raises(ValueError, match="it has L0, L1"):
        open_recording(write_16(tmp_path, np.zeros((5, 2), int))).select(["MLII"])


@pytest.mark.parametrize(
    ("comments", "age", "sex"),
    [
        (["69 M 1085 1629 x1", "Aldomet, Inderal"], 69, "M"),
        (["Age: 56", "Sex: Female", "Dx: 426783006"], 56, "F"),
        (["<age>: 28  <sex>: M  <Height>: 170  <Weight>: 64"], 28, "M"),
        (["Age: NaN", "Sex: Unknown"], math.nan, ""),
        (["Age: 300", "Sex: Male"], math.nan, "M"),
        (["-1 ? x1"], math.nan, ""),
        (["non atrial fibrillation", "40 Male volunteers"], math.nan, ""),
        ([], math.nan, ""),
    ],
)
def test_age_and_sex_come_from_comments_that_state_them(comments, age, sex):
    assert reader.age_and_sex(comments) == (pytest.approx(age, nan_ok=True), sex)


def test_a_missing_soundfile_names_the_extra(shared, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"d0 is FLAC-compressed.*physio-data\[wfdb\]"):
        open_recording(data(shared, "wfdb_formats") / "flacformats.hea")
    assert open_recording(data(shared, "wfdb_formats") / "binformats.hea").read().shape == (10, 499)


def test_a_rate_that_contradicts_the_header_is_refused(tmp_path):
    with pytest.raises(ValueError, match="states 100 Hz"):
        open_recording(write_16(tmp_path, np.zeros((5, 1), int)), source_fs=200)


def test_record_100_reads_as_the_wfdb_library_reads_it(shared):
    folder = data(shared, "mitdb")
    recording = open_recording(folder / "100.hea")
    expected = wfdb.rdrecord(str(folder / "100"), sampfrom=1001, sampto=4002).p_signal.T
    assert np.allclose(recording.read(1001, 4002), expected, atol=1e-6)
    assert (recording.age, recording.sex, recording.n_samples, recording.fs) == (69.0, "M", 650000, 360.0)
    assert (recording.annotations.symbol == "N").sum() == 2239 and (recording.annotations.symbol == "V").sum() == 1
    assert recording.annotations.aux[0] == "(N"


def test_record_114_has_its_leads_in_another_order(shared):
    recording = open_recording(data(shared, "mitdb") / "114")
    assert recording.channels == ("V5", "MLII")
    assert np.array_equal(recording.select(["mlii"]).read(0, 50)[0], recording.read(0, 50)[1])


@pytest.mark.parametrize("record", ["binformats", "flacformats", "310derive", "311derive_3", "100skew", "100-no-len"])
def test_every_storage_format_reads_alike_by_range_and_whole(shared, record):
    recording = open_recording(data(shared, "wfdb_formats") / f"{record}.hea")
    stop = min(recording.n_samples, 2000)
    assert np.array_equal(recording.read(17, stop - 5), recording.read(0, stop)[:, 17 : stop - 5], equal_nan=True)


def test_a_multi_segment_record_marks_its_gaps(tmp_path):
    for name, value in (("a", 200), ("b", 400)):
        write_16(tmp_path, np.full((10, 2), value), name=name)
    (tmp_path / "m_layout.hea").write_text("m_layout 2 100 0\n~ 0 200/mV 16 0 0 0 0 L0\n~ 0 200/mV 16 0 0 0 0 L1\n")
    (tmp_path / "m.hea").write_text("m/4 2 100 30\nm_layout 0\na 10\n~ 10\nb 10\n# Age: 60\n")
    recording = open_recording(tmp_path / "m.hea")
    assert (recording.channels, recording.n_samples, recording.age) == (("L0", "L1"), 30, 60.0)
    assert np.array_equal(recording.read(5, 25)[1], [1.0] * 5 + [np.nan] * 10 + [2.0] * 5, equal_nan=True)


def test_a_missing_segment_is_named(shared):
    path = data(shared, "wfdb_formats") / "multi-segment" / "p000878" / "p000878-2137-10-26-16-57.hea"
    with pytest.raises(ValueError, match=r"3269321_0003\.hea: no such header"):
        open_recording(path)


def test_several_rates_become_one_recording_each(shared):
    path = data(shared, "wfdb_formats") / "test01_00s_frame.hea"
    with pytest.raises(ValueError, match=r"several rates .*open_wfdb_groups"):
        open_recording(path)
    slow, fast = reader.open_wfdb_groups(path)
    assert (slow.fs, slow.channels, fast.fs, fast.channels) == (500.0, ("ECG_1", "ECG_3"), 1000.0, ("ECG_2",))
    assert slow.duration_s == fast.duration_s == 8.0
    assert np.array_equal(fast.read(333, 777), fast.read()[:, 333:777])


def test_other_annotation_files_are_chosen_by_extension(shared, tmp_path):
    folder = data(shared, "wfdb_formats")
    assert len(open_recording(folder / "100.hea", annotation="qrs").annotations) > 2000
    assert open_recording(folder / "100.hea", annotation=None).annotations is None
    with pytest.raises(ValueError, match=r"100\.abc: no such annotation file; the record has atr, qrs"):
        open_recording(folder / "100.hea", annotation="abc")
    for suffix in (".hea", ".dat"):
        shutil.copy(folder / f"100{suffix}", tmp_path)
    assert open_recording(tmp_path / "100.hea").annotations is None


def test_comments_are_given_to_those_who_ask(shared):
    assert reader.header_comments(data(shared, "cpsc2021") / "data_21_7") == ("non atrial fibrillation",)
