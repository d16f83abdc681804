import json
import os

import numpy as np
import pytest

from physio_data import cli, doctor
from physio_data.arrays import write_store


@pytest.fixture
def store(tmp_path):
    x_NCT = np.random.default_rng(0).standard_normal((60, 2, 50)).astype(np.float32)
    return write_store(tmp_path / "s", x_NCT, fs=25.0, channels=["I", "II"], units=["mV"] * 2, subject=["a"] * 60, shard_windows=20)


def run(capsys, *arguments):
    code = cli.main([str(part) for part in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_whole_store_is_said_to_be_whole_and_measured(store, capsys):
    code, out, _ = run(capsys, "doctor", store.path, "--seconds", "0.05")
    found = json.loads(out.splitlines()[-1])
    size = sum((store.path / entry["file"]).stat().st_size for entry in store.manifest["shards"])
    assert code == 0 and "3 shards" in out and found["damaged"] == [] and found["n_bytes"] == size
    assert found["limit"] in ("disk", "decode", "copy") and f"the limit here: {found['limit']}" in out
    assert min(found[key] for key in ("cold_bytes_per_s", "warm_bytes_per_s", "disk_bytes_per_s", "copy_bytes_per_s")) > 0


def test_every_damaged_shard_is_named(store, capsys):
    flipped, cut = store.path / "shard-00000.h5", store.path / "shard-00002.h5"
    content = bytearray(flipped.read_bytes())
    content[-500] ^= 1
    flipped.write_bytes(content)
    os.truncate(cut, 1000)
    code, out, _ = run(capsys, "doctor", store.path)
    assert code == 1 and "shard-00000.h5 is damaged: SHA-256" in out and "shard-00002.h5 is damaged: 1000 bytes" in out
    assert "shard-00001" not in out and "limit here" not in out
    cut.unlink()
    assert "lacks its shard" in run(capsys, "doctor", store.path)[1]


def test_mistakes_are_one_sentence(tmp_path, capsys):
    code, out, err = run(capsys, "doctor", tmp_path)
    assert code == 2 and not out and err.startswith("error: ") and "is not a store" in err
    assert "seconds must be positive" in run(capsys, "doctor", tmp_path, "--seconds", "0")[2]


@pytest.mark.parametrize(
    ("rates", "archive", "dtype", "limit"),
    [
        ((1, 5, 10), False, "float32", "disk"),
        ((4, 5, 10), False, "float32", "copy"),
        ((4, 4, 10), True, "int16", "decode"),
        ((4, 4, 10), False, "int16", "decode"),
        ((6, 6, 10), False, "int16", "copy"),
        ((1, 4, 10), True, "int16", "disk"),
    ],
)
def test_the_slowest_stage_is_named(rates, archive, dtype, limit):
    assert doctor.verdict(*rates, archive=archive, dtype=dtype)[0] == limit
