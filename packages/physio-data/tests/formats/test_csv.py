import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_data import open_recording
from physio_data.formats.csv import uniform_rate


def write(tmp_path, text, name="r.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_text(text, encoding=encoding)
    return path


def test_a_bare_column_needs_a_rate_and_the_error_names_the_flag(tmp_path):
    path = write(tmp_path, "530\n518\n506\n")
    with pytest.raises(ValueError, match=r"r\.csv: no sampling rate .*--source-fs"):
        open_recording(path)
    recording = open_recording(path, source_fs=100, subject="anna", channels=["PLETH"])
    assert (recording.fs, recording.channels, recording.subject, recording.record) == (100.0, ("PLETH",), "anna", "r")
    assert recording.read().tolist() == [[530.0, 518.0, 506.0]]
    assert recording.read(1, 2).tolist() == [[518.0]]


@pytest.mark.parametrize(("separator", "joiner"), [(",", ","), (";", ";"), ("\t", "\t"), ("blanks", "  "), ("spaced comma", " , ")])
def test_separators_are_found(tmp_path, separator, joiner):
    rows = [joiner.join(row) for row in (("II", "PLETH"), ("1.5", "-2"), ("3e2", "4"))]
    recording = open_recording(write(tmp_path, "\n".join(rows)), source_fs=1)
    assert recording.channels == ("II", "PLETH")
    assert recording.read().tolist() == [[1.5, 300.0], [-2.0, 4.0]]


def test_a_byte_order_mark_comments_quotes_units_and_line_ends_are_understood(tmp_path):
    text = '# recorded at home\r\n"Time [s]","PLETH [a.u.]","II (mV)"\r\n0.00,"1",2\r\n0.04,3,4\r\n0.08,5,6\r\n\r\n'
    recording = open_recording(write(tmp_path, text, encoding="utf-8-sig"))
    assert (recording.fs, recording.channels, recording.units) == (25.0, ("PLETH", "II"), ("a.u.", "mV"))
    assert recording.n_samples == 3


def test_a_decimal_comma_beside_semicolons(tmp_path):
    recording = open_recording(write(tmp_path, "t;ppg\n0,00;1,5\n0,01;2,5\n0,02;3,5\n"))
    assert recording.fs == 100.0
    assert recording.read().tolist() == [[1.5, 2.5, 3.5]]


@pytest.mark.parametrize("empty", ["", "nan", "NaN", "NA", "null", "-"])
def test_empty_cells_are_gaps(tmp_path, empty):
    x_CT = open_recording(write(tmp_path, f"a,b\n1,2\n{empty},3\n4,5\n"), source_fs=1).read()
    assert np.array_equal(x_CT, [[1, math.nan, 4], [2, 3, 5]], equal_nan=True)


def test_a_blank_line_is_a_gap_only_in_a_single_column(tmp_path):
    assert np.isnan(open_recording(write(tmp_path, "1\n\n3\n\n"), source_fs=1).read()).tolist() == [[False, True, False]]
    assert open_recording(write(tmp_path, "1,2\n\n3,4\n"), source_fs=1).n_samples == 2


def test_a_cell_that_is_no_number_is_named_by_line_and_column(tmp_path):
    path = write(tmp_path, "# note\nII,PLETH\n1,2\n3,4\n5,oops\n")
    with pytest.raises(ValueError, match=r"line 5, column 'PLETH': 'oops' is not a number"):
        open_recording(path, source_fs=1)


def test_a_ragged_row_is_named(tmp_path):
    with pytest.raises(ValueError, match="line 3: 1 columns where 2 are expected"):
        open_recording(write(tmp_path, "1,2\n3,4\n5\n"), source_fs=1)


@pytest.mark.parametrize(
    ("name", "step", "fs"),
    [
        ("time", "0.008", 125),
        ("time_ms", "1", 1000),
        ("Time [ms]", "4", 250),
        ("timestamp", "40", 25),
        ("t", "0.04", 25),
        ("timer_s", "1", 1),
        ("seconds", "0.5", 2),
    ],
)
def test_a_uniform_time_column_gives_the_rate(tmp_path, name, step, fs):
    decimals = len(step.partition(".")[2])
    rows = "\n".join(f"{i * float(step):.{decimals}f},{i}" for i in range(50))
    recording = open_recording(write(tmp_path, f"{name},x\n{rows}\n"))
    assert recording.fs == pytest.approx(fs, rel=1e-9)
    assert recording.channels == ("x",)


def test_dates_and_times_give_the_rate(tmp_path):
    rows = "\n".join(f"2021-04-26 18:19:{i * 0.02:09.6f},{i}" for i in range(50))
    assert open_recording(write(tmp_path, f"datetime,x\n{rows}\n")).fs == 50.0


def test_a_count_of_samples_is_not_taken_for_time(tmp_path):
    with pytest.raises(ValueError, match="names no unit"):
        open_recording(write(tmp_path, "time,x\n0,1\n1,2\n2,3\n"))


def test_an_uneven_time_column_gives_no_rate_but_source_fs_may(tmp_path):
    path = write(tmp_path, "time,x\n0.00,1\n0.01,2\n0.09,3\n0.10,4\n")
    with pytest.raises(ValueError, match=r"time column is not uniform.*--source-fs"):
        open_recording(path)
    assert open_recording(path, source_fs=100).channels == ("x",)


def test_a_contradicting_rate_is_refused(tmp_path):
    with pytest.raises(ValueError, match="states 25 Hz, which --source-fs 100 contradicts"):
        open_recording(write(tmp_path, "t,x\n0.00,1\n0.04,2\n0.08,3\n"), source_fs=100)


@given(fs=st.sampled_from([25, 62.4725, 116.988, 256, 360, 1000]), start_s=st.floats(0, 1000), n=st.integers(50, 500))
def test_rounded_times_give_back_their_rate(fs, start_s, n):
    time_s = np.round(start_s + np.arange(n) / fs, 6)
    assert uniform_rate(time_s, 6) == pytest.approx(fs, abs=0 if fs == int(fs) else 2e-6 * fs * fs / n + 1e-9)


def test_a_dropped_row_is_not_uniform():
    time_s = np.delete(np.arange(100) / 25, [40, 41])
    assert uniform_rate(time_s) is None
    assert uniform_rate(time_s[:40]) == 25.0
    assert uniform_rate(np.zeros(5)) is None


@pytest.mark.parametrize(
    ("text", "message"), [("", "no data"), ("# only\n", "no data"), ("a,b\n", "header but no data"), ("1 2 3 4\n", "one line of 4 values")]
)
def test_files_without_data_say_so(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        open_recording(write(tmp_path, text), source_fs=1)


def test_a_missing_file_and_an_unknown_suffix_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.csv: no such file"):
        open_recording(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match=r"suffix '\.xyz'.*\.hea"):
        open_recording(write(tmp_path, "1\n", "a.xyz"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        open_recording(tmp_path / "b.csv", source_fs=1)


def test_wrong_counts_of_names_are_refused(tmp_path):
    path = write(tmp_path, "1,2\n3,4\n")
    with pytest.raises(ValueError, match="channels must name 2"):
        open_recording(path, source_fs=1, channels=["a"])
    with pytest.raises(ValueError, match="units must name 2"):
        open_recording(path, source_fs=1, units=["mV"])


@pytest.mark.parametrize(
    ("file", "source_fs", "fs", "channels"),
    [
        ("ppg_bidmc01/bidmc_01_Signals.csv", None, 125.0, ("RESP", "PLETH", "V", "AVR", "II")),
        ("biosppy_examples/ppg.txt", None, 1000.0, ("PPG",)),
        ("opensignals_hdf5/ecg_sample.txt", None, 200.0, ("ECG",)),
        ("vital_sqi/ecg_test1.csv", None, 256.0, ("1", "2")),
        ("ppg_heartpy/data2.csv", None, 116.98775446533, ("hr",)),
        ("ppg_heartpy/ring_data.csv", 32, 32.0, ("ch1",)),
    ],
)
def test_files_found_in_the_wild_open(shared, file, source_fs, fs, channels):
    path = shared / "data" / file
    if not path.is_file():
        pytest.skip(f"shared data absent: {path}")
    recording = open_recording(path, source_fs=source_fs)
    assert recording.fs == pytest.approx(fs, rel=1e-9)
    assert recording.channels == channels
