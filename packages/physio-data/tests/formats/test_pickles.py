"""Pickles: arrays and plain values come through whatever protocol wrote them; anything else is refused before it runs."""

import os
import pickle

import numpy as np
import pytest

from physio_data.formats.pickles import read_npy, read_pickle


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_values_come_through(tmp_path, protocol):
    value = {
        "data": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "label": np.int64(3),
        "names": np.array(["a", "bc"]),
        "plain": [1, 2.5, "x", b"\xff\x00", None, True, (1, 2)],
        "empty": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    found = read_pickle(path)
    assert list(found) == list(value) and found["plain"] == value["plain"] and found["label"] == 3
    for name in ("data", "fortran", "names", "empty"):
        assert found[name].dtype == value[name].dtype
        np.testing.assert_array_equal(found[name], value[name])


def test_bytes_that_python_2_wrote_become_text(tmp_path):
    path = tmp_path / "two.pkl"
    path.write_bytes(b"\x80\x02}q\x00U\x07subjectq\x01U\x02S2q\x02s.")  # {'subject': 'S2'} as str of Python 2
    assert read_pickle(path) == {"subject": "S2"}


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"data": np.ones(3), "label": evil}, lambda evil: np.array([evil], object)])
def test_a_global_is_refused_and_not_run(tmp_path, wrap):
    target = tmp_path / "made"
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(wrap(Evil(target))))
    with pytest.raises(ValueError, match=r"evil\.pkl: refused, .*posix\.mkdir"):
        read_pickle(path)
    np.save(tmp_path / "evil.npy", np.array(wrap(Evil(target)), object))
    with pytest.raises(ValueError, match=r"evil\.npy: refused"):
        read_npy(tmp_path / "evil.npy")
    assert not target.exists()


@pytest.mark.parametrize("payload", [b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR.", b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", b"Pabc\n."])
def test_no_other_name_is_resolved(tmp_path, payload):
    path = tmp_path / "a.pkl"
    path.write_bytes(payload)
    with pytest.raises(ValueError, match=r"a\.pkl: refused, only NumPy arrays"):
        read_pickle(path)


def test_a_file_that_is_cut_off_is_named(tmp_path):
    whole = pickle.dumps({"data": np.arange(1000.0)})
    path = tmp_path / "cut.pkl"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.pkl: .*cut off"):
        read_pickle(path)
    with pytest.raises(ValueError, match=r"none\.pkl: no such file"):
        read_pickle(tmp_path / "none.pkl")


def test_npy_holds_an_array_or_a_dictionary(tmp_path):
    x_CT = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.save(tmp_path / "x.npy", x_CT)
    np.testing.assert_array_equal(read_npy(tmp_path / "x.npy"), x_CT)
    np.save(tmp_path / "d.npy", {"ecg": x_CT, "report": "sinus rhythm"})
    assert read_npy(tmp_path / "d.npy")["report"] == "sinus rhythm"
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"cut\.npy: cut off, its header announces 12 values and 11"):
        read_npy(tmp_path / "cut.npy")
    (tmp_path / "no.npy").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"no\.npy: not a NumPy file"):
        read_npy(tmp_path / "no.npy")
