"""One signal through every format gives the same array; what a file lacks is asked for, never guessed."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from physio_data import open_recording

FS = 250.0


@pytest.fixture(scope="module")
def x_CT():
    t = np.arange(2000) / FS
    return np.stack([np.sin(2 * np.pi * 1.3 * t), 0.25 * np.cos(2 * np.pi * 7 * t)])


def write_csv(folder, x_CT):
    rows = "\n".join(f"{i / FS:.3f},{a!r},{b!r}" for i, (a, b) in enumerate(x_CT.T.tolist()))
    (folder / "s.csv").write_text(f"time_s,I [mV],II [mV]\n{rows}\n", encoding="utf-8-sig")
    return open_recording(folder / "s.csv")


def write_tsv_of_utf16(folder, x_CT):
    rows = "\n".join(f"{a!r}\t{b!r}" for a, b in x_CT.T.tolist())
    (folder / "s.tsv").write_text(f"I\tII\n{rows}\n", encoding="utf-16")
    return open_recording(folder / "s.tsv", source_fs=FS)


def write_bars(folder, x_CT):
    (folder / "b.txt").write_text("'I'|'II'\n" + "\n".join(f"'{a!r}'|'{b!r}'" for a, b in x_CT.T.tolist()) + "\n")
    return open_recording(folder / "b.txt", source_fs=FS)


def write_h5(folder, x_CT):
    with h5py.File(folder / "s.h5", "w") as file:
        data = file.create_dataset("signal", data=x_CT.T)
        data.attrs.update({"fs": FS, "channels": ["I", "II"], "units": ["mV", "mV"]})
    return open_recording(folder / "s.h5", axes="TC")


def write_mat5(folder, x_CT):
    from scipy.io import savemat

    savemat(folder / "m5.mat", {"ECG": {"data": x_CT, "sex": "Male"}, "fs": FS})
    return open_recording(folder / "m5.mat", channels=["I", "II"], units=["mV", "mV"])


def write_mat73(folder, x_CT):
    with h5py.File(folder / "m73.mat", "w", userblock_size=512) as file:
        for name, value in (("ECG/data", x_CT.T), ("Fs", [[FS]])):
            file.create_dataset(name, data=value).attrs["MATLAB_class"] = np.bytes_("double")
        file.create_dataset("ECG/sex", data=np.array([[77], [97]], np.uint16)).attrs["MATLAB_class"] = np.bytes_("char")
    with (folder / "m73.mat").open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return open_recording(folder / "m73.mat", channels=["I", "II"], units=["mV", "mV"])


def write_npy(folder, x_CT):
    np.save(folder / "s.npy", x_CT)
    return open_recording(folder / "s.npy", source_fs=FS, channels=["I", "II"], units=["mV", "mV"])


def write_npz(folder, x_CT):
    np.savez(folder / "s.npz", ecg=x_CT.T, fs=FS, channels=["I", "II"], units=["mV", "mV"])
    return open_recording(folder / "s.npz", axes="TC")


def write_wfdb(folder, x_CT):
    digital_TC = np.round(x_CT.T * 1e6).astype("<i4")
    (folder / "w.dat").write_bytes(digital_TC.tobytes())
    lines = [f"w.dat 32 1e6/mV 32 0 {first} 0 0 {name}" for first, name in zip(digital_TC[0], ("I", "II"), strict=True)]
    (folder / "w.hea").write_text("\n".join([f"w 2 {FS:g} {len(digital_TC)}", *lines]) + "\n")
    return open_recording(folder / "w.hea")


def write_edf(folder, x_CT):
    edfio = pytest.importorskip("edfio", reason="the extra physio-data[edf] is not installed")
    signals = [edfio.EdfSignal(x_T, FS, label=name, physical_dimension="mV", physical_range=(-1, 1)) for x_T, name in zip(x_CT, ("I", "II"), strict=True)]
    edfio.Edf(signals).write(folder / "s.edf")
    return open_recording(folder / "s.edf")


WRITERS = {write_csv: 1e-6, write_tsv_of_utf16: 1e-6, write_bars: 1e-6, write_h5: 1e-6, write_mat5: 1e-6, write_mat73: 1e-6, write_npy: 1e-6, write_npz: 1e-6}
WRITERS |= {write_wfdb: 1e-6, write_edf: 2 / 65535}


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_every_format_gives_the_same_array(write, x_CT, tmp_path):
    recording = write(tmp_path, x_CT)
    assert (recording.fs, recording.channels, recording.n_samples) == (FS, ("I", "II"), 2000)
    np.testing.assert_allclose(recording.read(), x_CT, atol=WRITERS[write])
    np.testing.assert_array_equal(recording.read(251, 1303), recording.read()[:, 251:1303])


@pytest.mark.parametrize("name", ["v.csv", "v.npy", "v.npz", "v.mat", "v73.mat", "v.h5", "v.hea"])
def test_a_file_without_a_rate_asks_for_it_and_takes_it(name, tmp_path, x_CT):
    from scipy.io import savemat

    np.savetxt(tmp_path / "v.csv", x_CT[0])
    np.save(tmp_path / "v.npy", x_CT[0])
    np.savez(tmp_path / "v.npz", x=x_CT[0])
    savemat(tmp_path / "v.mat", {"x": x_CT[:1].T})
    (tmp_path / "v.dat").write_bytes(bytes(4000))
    for h5 in ("v.h5", "v73.mat"):
        with h5py.File(tmp_path / h5, "w") as file:
            file["x"] = x_CT[:1] if h5 == "v73.mat" else x_CT[0]
    if name == "v.hea":
        (tmp_path / "v.hea").write_text("v 1\nv.dat 16 1/mV\n")
    with pytest.raises(ValueError, match=r"no sampling rate .*--source-fs HZ"):
        open_recording(tmp_path / name)
    recording = open_recording(tmp_path / name, source_fs=50.0)
    assert recording.fs == 50.0 and recording.read().shape == (1, 2000)


def test_opensignals_text_and_hdf5_agree(shared):
    folder = shared / "data" / "opensignals_hdf5"
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    for stem, sensor, fs, column in (("ecg_sample", "ECG", 200.0, 2), ("eda_slow_signal", "EDA", 100.0, 2)):
        counts_T = np.loadtxt(folder / f"{stem}.txt")[:, column]
        for suffix in (".h5", ".txt"):
            recording = open_recording(folder / f"{stem}{suffix}")
            assert (recording.fs, recording.channels, recording.units) == (fs, (sensor,), ("a.u.",))
            np.testing.assert_array_equal(recording.read()[0], counts_T)
    assert open_recording(folder / "ecg_20_sec_1000_Hz.h5").fs == 1000.0
    assert open_recording(folder / "bvp_rest.h5").channels == ("BVP",)
    assert open_recording(folder / "eda_slow_signal.edf").units == ("uS",)


def test_an_opensignals_text_header_that_is_cut_is_named(tmp_path):
    header = {"00:07": {"sensor": ["ECG", "EMG"], "column": ["nSeq", "CH1"], "label": ["CH1"], "sampling rate": 100}}
    (tmp_path / "o.txt").write_text(f"# OpenSignals Text File Format\n# {json.dumps(header)}\n# EndOfHeader\n0\t5\n1\t6\n")
    with pytest.raises(ValueError, match=r"o\.txt, line 2: 2 sensors and 1 columns named CH1"):
        open_recording(tmp_path / "o.txt")
    (tmp_path / "o.txt").write_text("# OpenSignals Text File Format\n# {broken\n0\t5\n")
    with pytest.raises(ValueError, match=r"line 2: not the header of an OpenSignals text file"):
        open_recording(tmp_path / "o.txt")


def test_a_struct_mat_and_a_time_vector_are_found(shared, tmp_path):
    from scipy.io import savemat

    folder = shared / "data" / "cpsc2018"
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    recording = open_recording(folder / "A1980.mat", dataset="ECG.data", source_fs=500)
    assert recording.channels[:2] == ("ch1", "ch2") and len(recording.channels) == 12
    savemat(tmp_path / "t.mat", {"hr": np.arange(500.0)[:, None], "timer": 1000 * np.arange(500.0)[:, None] / 125})
    assert open_recording(tmp_path / "t.mat").fs == 125.0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", b"\x93NUMPY", r"not a readable \.npy array"),
        ("a.npz", b"PK", r"not a readable \.npz archive"),
        ("a.mat", b"MATLAB 5.0 MAT-file" + bytes(40), r"not a readable MATLAB file"),
        ("a.edf", b"0" + b" " * 100, r"not a readable EDF"),
        ("a.xyz", b"", r"no format has the suffix '\.xyz'.*known are \.hea"),
    ],
)
def test_a_damaged_or_unknown_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: {message}"):
        open_recording(tmp_path / name)
    with pytest.raises(ValueError, match=r"gone\.\w+: (no|there is no) such file"):
        open_recording(tmp_path / name.replace("a.", "gone."))
    with pytest.raises(ValueError, match=r"gone: there is no such file, and no header gone\.hea"):
        open_recording(tmp_path / "gone")


def test_objects_and_several_arrays_and_wrong_axes_are_named(tmp_path):
    from scipy.io import savemat

    np.save(tmp_path / "o.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"o\.npy: .* Python objects, of which only the layouts of the corpora"):
        open_recording(tmp_path / "o.npy", source_fs=1)
    np.savez(tmp_path / "two.npz", a=np.zeros(5), b=np.zeros(5))
    with pytest.raises(ValueError, match=r"two\.npz: 2 numeric arrays \(a, b\); name the signal's with dataset="):
        open_recording(tmp_path / "two.npz", source_fs=1)
    savemat(tmp_path / "two.mat", {"a": np.zeros((2, 5)), "b": np.zeros((2, 5))})
    with pytest.raises(ValueError, match=r"two\.mat: 2 numeric arrays \(a \(2, 5\), b \(2, 5\)\); name"):
        open_recording(tmp_path / "two.mat", source_fs=1)
    np.save(tmp_path / "tall.npy", np.zeros((50, 2)))
    with pytest.raises(ValueError, match=r"tall\.npy: the array of shape \(50, 2\) read as CT has more channels than samples; give axes='TC'"):
        open_recording(tmp_path / "tall.npy", source_fs=1)
    with pytest.raises(ValueError, match=r"names its channels, units and rate itself; leave channels out"):
        open_recording(tmp_path / "tall.edf", channels=["I"])
