"""Every record of the format zoo: read as the wfdb library reads it and verified against its header, or refused for a stated reason."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest

from physio_data import open_recording
from physio_data.formats.wfdb import open_wfdb, open_wfdb_groups, read_annotations, verify_wfdb
from physio_data.formats.wfdb_codecs import decode
from physio_data.formats.wfdb_header import read_header

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its use of pandas
    wfdb = pytest.importorskip("wfdb", reason="the wfdb library, the reference of these tests, is not installed")


def quietly(function, *args, **more):
    """The library's own use of pandas warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **more)


NO_SIGNAL_FILE = ("1003", "12726", "drive02", "drive02-no-len", "n16", "n8_evoked_raw_95_F1_R9", "wave_4", "3975656_0009", "3975656_0010", "3975656_0011")
REFUSED = {name: r"\.dat: no such signal file, though .*\.hea names it" for name in NO_SIGNAL_FILE}
REFUSED |= {name: "layout of a multi-segment record" for name in ("3269321_layout", "3248903_layout", "3975656_layout")}
REFUSED |= {
    "p000878-2137-10-26-16-57": r"3269321_0003\.hea: no such header, .* absent_segments='gap'",
    "s00001-2896-10-10-00-31": r"3975656_0005\.hea: no such header",
}
OWN_CHECKSUM_IS_WRONG = ("test01_00s_frame",)  # it re-reads another record's file with other channels


@pytest.fixture(scope="module")
def zoo(shared):
    folder = shared / "data" / "wfdb_formats"
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    return folder


def test_every_record_of_the_zoo_is_read_or_refused_as_documented(zoo):
    seen = set()
    for path in sorted(zoo.rglob("*.hea")):
        seen.add(path.stem)
        if path.stem in REFUSED:
            with pytest.raises(ValueError, match=REFUSED[path.stem]):
                open_wfdb_groups(path)
            continue
        record = quietly(wfdb.rdrecord, str(path.with_suffix("")), smooth_frames=False, m2s=True)
        expected = record.e_p_signal if record.e_p_signal is not None else list(record.p_signal.T)
        for group in open_wfdb_groups(path):
            x_CT = group.read()
            for row, channel in enumerate(group.reader.rows):
                np.testing.assert_allclose(x_CT[row], expected[channel], rtol=1e-6, atol=1e-6, equal_nan=True, err_msg=f"{path.stem}, channel {channel}")
        if path.stem not in OWN_CHECKSUM_IS_WRONG:
            verify_wfdb(path)
    assert set(REFUSED) <= seen and len(seen) == 47


def test_absent_segments_may_be_gaps_on_request(zoo):
    path = zoo / "multi-segment" / "p000878" / "p000878-2137-10-26-16-57.hea"
    recording = open_wfdb(path, absent_segments="gap")
    assert recording.n_samples == read_header(path).n_frames
    part = open_wfdb(path.with_name("3269321_0001.hea"))
    start = next(part.start for part in recording.reader.parts if part.signals)
    row = recording.channels.index(part.channels[0])
    np.testing.assert_array_equal(recording.read(start, start + part.n_samples)[row], part.read()[0])
    last = recording.reader.parts[-1]
    assert np.isnan(recording.read(last.stop - 5, last.stop)).all() or last.signals


@pytest.mark.parametrize(
    ("fmt", "raw", "expected"),
    [
        (16, b"\x01\x00\xff\xff\x00\x80", [1, -1, -32768]),
        (61, b"\x00\x01\xff\xff\x80\x00", [1, -1, -32768]),
        (24, b"\x01\x00\x00\xff\xff\xff\x00\x00\x80", [1, -1, -(2**23)]),
        (32, b"\x01\x00\x00\x00\xff\xff\xff\xff", [1, -1]),
        (80, b"\x81\x7f\x00", [1, -1, -128]),
        (160, b"\x01\x80\xff\x7f\x00\x00", [1, -1, -32768]),
        (8, b"\x01\xff\x80", [1, -1, -128]),
        # 0x001 and 0xFFF; 0x7FF and 0x800: low byte, both high nibbles, low byte
        (212, b"\x01\xf0\xff" + b"\xff\x87\x00", [1, -1, 2047, -2048]),
        # words (third's low 5 bits, 10 bits, 0): 1 -> 0x0002, -1 -> 0x07FE, third -2 = 0b11111_11110
        (310, (0x0002 | 0b11110 << 11).to_bytes(2, "little") + (0x07FE | 0b11111 << 11).to_bytes(2, "little"), [1, -1, -2]),
        (311, (1 | 1023 << 10 | 1022 << 20).to_bytes(4, "little"), [1, -1, -2]),
    ],
)
def test_bytes_decode_as_the_specification_spells_them(fmt, raw, expected):
    assert decode(fmt, np.frombuffer(raw, np.uint8)).tolist() == expected


@pytest.mark.parametrize(
    ("fmt", "low"), [(16, -(2**15)), (24, -(2**23)), (32, -(2**31)), (212, -(2**11)), (310, -512), (311, -512), (80, -128), (160, -(2**15))]
)
def test_ranges_agree_with_the_library_at_any_phase_and_gaps_stay(tmp_path, fmt, low):
    """Three interleaved signals, so that pieces of two and three samples begin at every phase of a frame."""
    digital_TC = np.random.default_rng(fmt).integers(low + 1, -low, (101, 3))
    digital_TC[40:44, 1] = low
    stored = 16 if fmt in (160, 310, 311) else fmt
    names, mv = ["a", "b", "c"], ["mV"] * 3
    gain = {"adc_gain": [100.0] * 3, "baseline": [7] * 3, "write_dir": str(tmp_path)}
    quietly(wfdb.wrsamp, "r", fs=100, units=mv, sig_name=names, d_signal=digital_TC.copy(), fmt=[str(stored)] * 3, **gain)
    if fmt in (160, 310, 311):  # the library writes none of these
        header = (tmp_path / "r.hea").read_text().replace("r.dat 16 ", f"r.dat {fmt} ")
        (tmp_path / "r.hea").write_text(header)
        (tmp_path / "r.dat").write_bytes(packed(fmt, digital_TC.ravel()))
    recording = open_recording(tmp_path / "r.hea")
    expected_CT = np.where(digital_TC == low, np.nan, (digital_TC - 7) / 100).T
    np.testing.assert_allclose(recording.read(), expected_CT, rtol=1e-6, equal_nan=True)
    for start, stop in [(0, 1), (1, 2), (2, 5), (39, 46), (50, 101), (100, 101)]:
        np.testing.assert_array_equal(recording.read(start, stop), recording.read()[:, start:stop])


def packed(fmt: int, samples: np.ndarray) -> bytes:
    if fmt == 160:
        return (samples + 32768).astype("<u2").tobytes()
    x = np.pad(samples, (0, -samples.size % 3)).reshape(-1, 3) & 1023
    words = x[:, 0] | x[:, 1] << 10 | x[:, 2] << 20
    if fmt == 310:
        words = (x[:, 0] << 1 | (x[:, 2] & 31) << 11) | (x[:, 1] << 1 | (x[:, 2] >> 5) << 11) << 16
    return words.astype("<u4").tobytes()


def test_a_changed_byte_is_found_by_the_checksum_and_a_changed_first_sample_by_the_header(tmp_path):
    quietly(
        wfdb.wrsamp,
        "r",
        fs=100,
        units=["mV"],
        sig_name=["a"],
        d_signal=np.arange(50)[:, None],
        fmt=["16"],
        adc_gain=[1.0],
        baseline=[0],
        write_dir=str(tmp_path),
    )
    verify_wfdb(tmp_path / "r.hea")
    sound = (tmp_path / "r.dat").read_bytes()
    (tmp_path / "r.dat").write_bytes(sound[:40] + b"\x77" + sound[41:])
    with pytest.raises(ValueError, match=r"r\.dat, channel 'a': the checksum is \d+, the header states 1225"):
        verify_wfdb(tmp_path / "r")
    (tmp_path / "r.dat").write_bytes(b"\x09" + sound[1:])
    with pytest.raises(ValueError, match=r"the first sample is 9, the header states 0"):
        verify_wfdb(tmp_path / "r")


@pytest.mark.parametrize("stamp", ["2014-05-08 05:05:15", "05:05:15 08/05/2014"])
def test_date_and_time_come_in_either_order(tmp_path, stamp):
    (tmp_path / "r.hea").write_text(f"r 1 300 2 {stamp} \nr.dat 16 1000/mV 16 0 1 3 0 ECG \n")
    (tmp_path / "r.dat").write_bytes(np.array([1, 2], "<i2").tobytes())
    header = read_header(tmp_path / "r.hea")
    assert header.start_time == "05:05:15" and header.start_date in ("2014-05-08", "08/05/2014") and header.signals[0].name == "ECG"
    np.testing.assert_allclose(open_recording(tmp_path / "r.hea").read(), [[0.001, 0.002]], rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r 1 300 2\n", r"announces 1 signal lines and has 0\); it may be cut off"),
        ("r one 300 2\nr.dat 16\n", r"line 1: not a readable WFDB header"),
        ("r 1 fast 2\nr.dat 16\n", r"line 1: 'fast' is no sampling rate"),
        ("r 1 -5 2\nr.dat 16\n", r"states no positive sampling rate"),
        ("r 1\nr.dat 16\n", r"no sampling rate on its first line; add it there or give --source-fs"),
        ("r 1 300 2\nr.dat sixteen\n", r"line 2: not a signal line"),
        ("r 1 300 2\nr.dat 16 1..2/mV\n", r"line 2: '1\.\.2/mV' is no gain"),
        ("r 1 300 2\nr.dat 16 1/mV many\n", r"resolution is 'many', not an integer"),
        ("r 1 300 2\nr.dat 17 1/mV\n", r"signal format 17 of r\.dat is unknown; known are 8, 16"),
        ("r/1 1 300 2\nr_1 two\n", r"line 2: not a segment line"),
    ],
)
def test_a_header_that_breaks_the_rules_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "r.hea").write_text(text)
    (tmp_path / "r.dat").write_bytes(bytes(4))
    with pytest.raises(ValueError, match=message):
        open_recording(tmp_path / "r.hea")


def test_a_header_without_a_rate_takes_the_one_that_is_given(tmp_path):
    (tmp_path / "r.hea").write_text("r 1\nr.dat 16 1/mV\n")
    (tmp_path / "r.dat").write_bytes(bytes(40))
    recording = open_recording(tmp_path / "r.hea", source_fs=50)
    assert (recording.fs, recording.n_samples) == (50.0, 20)


@pytest.mark.parametrize("name", ["mitdb", "cpsc2021", "ludb", "wfdb_formats"])
def test_annotations_are_those_of_the_library(shared, name):
    files = sorted(file for file in (shared / "data" / name).glob("*.*") if file.suffix in (".atr", ".qrs", ".ii", ".v6", ".wqrs", ".anI"))
    if not files:
        pytest.skip(f"shared data absent: {shared / 'data' / name}")
    for file in files[:: max(1, len(files) // 12)]:
        marks = quietly(wfdb.rdann, str(file.with_suffix("")), file.suffix[1:])
        rate = marks.fs or {"cpsc2021": 200.0, "ludb": 500.0}.get(name, 360.0)
        own = read_annotations(file.with_suffix(""), file.suffix[1:], fs=rate)
        if len(own) > len(marks.sample):  # the library drops any note at the first sample, this package only those that it understands
            assert own.aux[0] == "gqrs -r 100"
            own = own.between(1 / rate, np.inf)
        np.testing.assert_allclose(own.time_s, marks.sample / rate, rtol=0, atol=1e-9, err_msg=file.name)
        assert own.symbol.tolist() == marks.symbol and own.aux.tolist() == [note.rstrip("\x00").strip() for note in marks.aux_note], file.name


def test_annotations_written_by_the_library_come_back(tmp_path):
    sample = np.array([3, 900, 4_000_000, 4_000_500])
    quietly(wfdb.wrann, "r", "atr", sample, symbol=["N", "V", "+", '"'], aux_note=["", "", "(AFIB", "odd"], fs=250, write_dir=str(tmp_path))
    marks = read_annotations(tmp_path / "r")
    assert marks.symbol.tolist() == ["N", "V", "+", '"'] and marks.aux.tolist() == ["", "", "(AFIB", "odd"]
    np.testing.assert_allclose(marks.time_s, sample / 250)
    file = tmp_path / "r.atr"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"r\.atr: not a readable annotation file \(it ends before its end mark"):
        read_annotations(tmp_path / "r")


def flac_record(folder, n_frames, n_signals=2):
    sf = pytest.importorskip("soundfile", reason="the extra physio-data[wfdb] is not installed")
    rng = np.random.default_rng(0)
    total = np.zeros(n_signals, np.int64)
    first = None
    with sf.SoundFile(folder / "f.dat", "w", 96000, n_signals, "PCM_16", format="FLAC") as file:
        for start in range(0, n_frames, 1 << 18):
            x_TC = (1000 * np.sin(np.arange(start, min(start + (1 << 18), n_frames))[:, None] / 40) + rng.integers(-20, 20, (1, n_signals))).astype(np.int16)
            file.write(x_TC)
            total += x_TC.astype(np.int64).sum(0)
            first = x_TC[0] if first is None else first
    lines = [f"f {n_signals} 250 {n_frames}", *(f"f.dat 516 200/mV 16 0 {first[i]} {total[i] % 65536} 0 s{i}" for i in range(n_signals))]
    (folder / "f.hea").write_text("\n".join(lines) + "\n")
    return folder / "f.hea"


def test_a_flac_record_is_read_by_range_and_a_cut_one_is_refused(tmp_path):
    path = flac_record(tmp_path, 300_000)
    verify_wfdb(path)
    recording = open_recording(path)
    np.testing.assert_array_equal(recording.read(270_000, 270_100), recording.read()[:, 270_000:270_100])
    assert recording.read(0, 1)[0, 0] * 200 == pytest.approx(read_header(path).signals[0].initial)
    dat = tmp_path / "f.dat"
    dat.write_bytes(dat.read_bytes()[: dat.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"f\.dat: (truncated|damaged|not a readable FLAC)"):
        open_recording(path).read(299_000, 300_000)


@pytest.mark.slow
def test_a_flac_record_of_five_million_samples_is_read_in_bounded_memory(tmp_path):
    """Opening it and reading ranges all over it costs a few megabytes, where the whole record would take 40 in float32 and 80 as it is decoded."""
    path = flac_record(tmp_path, 5_000_000)
    code = (
        "import resource, sys, numpy, soundfile; from physio_data import open_recording; from physio_data.formats import wfdb\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"r = open_recording({str(path)!r})\n"
        "for start in range(0, 5_000_000, 250_000): r.read(start, start + 2500)\n"
        "print(r.n_samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    n_samples, kilobytes = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert int(n_samples) == 5_000_000 and int(kilobytes) < 10_000
