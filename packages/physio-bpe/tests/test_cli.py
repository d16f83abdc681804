import json
import re
import zipfile

import numpy as np
import pytest

from physio_bpe import load, load_published, quantize, train
from physio_bpe.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch, waves):
    """A folder with signals in every form."""
    monkeypatch.chdir(tmp_path)
    np.save("waves.npy", waves)
    np.save("lead.npy", waves[0, 0])
    np.savez("several.npz", one=waves[0], two=waves[1:4])
    (tmp_path / "waves.csv").write_text("I,II,V1\n" + "\n".join(",".join(f"{v:.6f}" for v in row) for row in waves[0].T) + "\n")
    (tmp_path / "bare.csv").write_text("\n".join(";".join(f"{v:.6f}" for v in row) for row in waves[0].T))
    return tmp_path


def summary(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_train_encode_decode_info(here, waves, capsys):
    assert main(["train", "t.json", "waves.npy", "--merges", "80", "--quantizer", "fixed_range", "--set", "low_mv=-2", "--levels", "64"]) == 0
    assert summary(capsys)["n_merges"] == 80
    tokenizer = load("t.json")
    assert tokenizer.quantizer.low_mv == -2 and tokenizer.quantizer.n_levels == 64
    assert tokenizer == train(waves, 80, quantizer=tokenizer.quantizer)

    assert main(["encode", "t.json", "waves.npy", "ids.npz", "--bos", "--mode", "longest"]) == 0
    counts = summary(capsys)
    expected = tokenizer.encode_batch(waves, bos=True, mode="longest")
    with np.load("ids.npz", allow_pickle=False) as ids:
        assert np.array_equal(ids["ids"], expected.ids) and np.array_equal(ids["offsets"], expected.offsets)
    assert counts["n_tokens"] == len(expected.ids) and counts["n_clipped"] == expected.n_clipped.sum() and counts["n_symbols"] == waves.size

    assert main(["decode", "t.json", "ids.npz", "back.npy"]) == 0
    assert summary(capsys)["n_missing"] == 0
    back = np.load("back.npy")
    inside = (waves >= -2) & (waves <= 2.5)
    assert back.shape == waves.shape and np.abs(back - waves)[inside].max() <= 4.5 / 64 / 2 + 1e-6

    assert main(["info", "t.json"]) == 0
    told = capsys.readouterr().out
    assert "merges: 80" in told and "64 levels on bytes 0-63" in told and tokenizer.vocabulary_hash in told


@pytest.mark.parametrize(("source", "n_records", "n_leads"), [("several.npz", 4, 3), ("waves.csv", 1, 3), ("bare.csv", 1, 3), ("lead.npy", 1, 1)])
def test_every_kind_of_file_is_read(here, source, n_records, n_leads, waves, capsys):
    assert main(["train", "t.json", source, "--merges", "20", "--layout", "per_lead"]) == 0
    assert main(["encode", "t.json", source, "ids.npz", "--max-length", "40"]) == 0
    counts = summary(capsys)
    assert counts["n_records"] == n_records and counts["n_symbols"] == n_records * n_leads * 250 and counts["n_cut_tokens"] > 0
    assert main(["decode", "t.json", "ids.npz", "back.npz"]) == 0
    with np.load("back.npz", allow_pickle=False) as back:
        first_CT = back["record_000000"]
    known = ~np.isnan(first_CT)
    assert (~known).sum() > 0 and np.abs(first_CT - waves[0, :n_leads])[known].max() < 0.1


def test_a_csv_gives_the_symbols_of_its_numbers(here, waves, capsys):
    main(["train", "t.json", "waves.csv", "--merges", "0"])
    main(["encode", "t.json", "waves.csv", "ids.npz"])
    with np.load("ids.npz", allow_pickle=False) as ids:
        assert ids["ids"].tolist() == quantize(np.round(waves[0].astype(float), 6), load("t.json").quantizer).symbols.reshape(-1).tolist()


def test_a_published_pickle_is_a_tokenizer(here, shared, capsys):
    path = shared / "data/ecgbyte_tokenizers/ecg_byte_tokenizer_5000.pkl"
    assert main(["encode", str(path), "waves.npy", "ids.npz"]) == 0
    assert main(["info", str(path)]) == 0
    assert "pad 5256, bos 5257, eos 5258" in capsys.readouterr().out
    with np.load("ids.npz", allow_pickle=False) as ids:
        assert np.array_equal(ids["ids"], load_published(path).encode_batch(np.load("waves.npy")).ids)


def declared(path, shape, n_bytes=0):
    """A .npy whose header promises more than the file holds."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.write(b"\0" * n_bytes)


def broken_files(here, waves):
    """Every bad input by name, with what the one line about it must say."""
    declared("promise.npy", (1, 1 << 31), 100)
    with zipfile.ZipFile("promise.npz", "w") as archive:
        archive.write("promise.npy", "x.npy")
    np.save("nan.npy", np.where(np.arange(250) == 7, np.nan, waves[0]))
    np.save("text.npy", np.array(["a"]))
    np.save("objects.npy", np.array([{}], object))
    np.save("empty.npy", np.zeros((0, 5)))
    np.save("many.npy", np.zeros((2, 2, 2, 2)))
    for name, content in {
        "garbage.npy": b"garbage",
        "short.npy": (here / "waves.npy").read_bytes()[:-9],
        "none.npz": b"PK\x05\x06" + b"\0" * 18,
        "short.npz": (here / "several.npz").read_bytes()[:-200],
        "empty.csv": b"",
        "header.csv": b"I,II\n",
        "uneven.csv": b"1,2\n3\n",
        "word.csv": b"1,2\n3,x\n",
        "gap.csv": b"1,2\n3,\n",
        "binary.csv": b"\xff\xfe\x00\x01",
        "signal.txt": b"1 2",
    }.items():
        (here / name).write_bytes(content)
    return {
        "promise.npy": "declares 2147483648 values of float32, 8589934592 bytes, but 100 bytes follow",
        "promise.npz": "declares 2147483648 values",
        "nan.npy": "nan at record 0, lead 0, sample 7",
        "text.npy": "must hold numbers",
        "objects.npy": "holds objects",
        "empty.npy": r"float64 \(0, 5\)",
        "many.npy": "must hold numbers as",
        "garbage.npy": "no NumPy array",
        "short.npy": "truncated",
        "none.npz": "holds no array",
        "short.npz": "no whole .npz",
        "empty.csv": "must hold numbers",
        "header.csv": "must hold numbers",
        "uneven.csv": "row 2 has 1 columns, the first has 2",
        "word.csv": "row 2, column 2 is 'x', not a number",
        "gap.csv": "row 2, column 2 is ''",
        "binary.csv": "no text table|row 1",
        "signal.txt": "must end in one of .npy, .npz, .csv",
        "absent.npy": "No such file",
    }


def test_a_bad_signal_is_one_line_and_exit_2(here, waves, capsys):
    for name, message in broken_files(here, waves).items():
        assert main(["train", "t.json", name, "--merges", "5"]) == 2, name
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err, name
        assert re.search(message, err), f"{name}: {err}"
        assert not (here / "t.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "t.json", "waves.npy"], "--merges"),
        (["train", "t.json", "waves.npy", "--merges", "-3"], "n_merges"),
        (["train", "t.json", "waves.npy", "--merges", "3", "--levels", "1"], "n_levels"),
        (["train", "t.json", "waves.npy", "--merges", "3", "--set", "low_mv"], "FIELD=VALUE"),
        (["train", "t.json", "waves.npy", "--merges", "3", "--set", "low_mv=2"], "no field 'low_mv'"),
        (["train", "t.json", "waves.npy", "--merges", "3", "--threads", "0"], "n_threads"),
        (["train", "nowhere/t.json", "waves.npy", "--merges", "3"], "nowhere"),
        (["train", "t.json", "waves.npy", "--merges", "3", "--quantizer", "kmeans"], "invalid choice"),
        (["encode", "waves.npy", "waves.npy", "ids.npz"], "waves.npy: not"),
        (["encode", "good.json", "waves.npy", "ids.npy"], "must end in .npz"),
        (["encode", "good.json", "waves.npy", "ids.npz", "--max-length", "0"], "max_length"),
        (["decode", "good.json", "several.npz", "back.npy"], "lacks a proper array 'ids'"),
        (["decode", "other.json", "ids.npz", "back.npy"], "encoded with another tokenizer"),
        (["decode", "good.json", "ids.npz", "back.txt"], "must end in .npy or .npz"),
        (["info", "absent.json"], "No such file"),
        ([], "COMMAND"),
        (["paint"], "invalid choice"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_2(arguments, message, here, capsys):
    main(["train", "good.json", "waves.npy", "--merges", "9"])
    main(["train", "other.json", "waves.npy", "--merges", "8"])
    main(["encode", "good.json", "waves.npy", "ids.npz"])
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    err = capsys.readouterr().err
    assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_samples": np.full(8, 1 << 31)}, "declares 51539607552 samples in all"),
        ({"n_samples": np.full(8, 0)}, "declares 0 samples"),
        ({"n_samples": np.full(7, 250)}, "do not fit one another"),
        ({"offsets": np.array([0, 5])}, "do not fit one another"),
        ({"ids": np.full(10, 9999, np.uint32), "offsets": np.array([0] * 8 + [10])}, "is 9999, the vocabulary has ids"),
        ({"low": np.zeros((8, 2), np.float32)}, "do not fit one another"),
        ({"span": np.full((8, 3), np.nan, np.float32)}, "finite, positive span"),
        ({"low": np.zeros(8, np.float32)}, "lacks a proper array 'low'"),
    ],
)
def test_altered_ids_are_refused(changes, message, here, capsys):
    main(["train", "good.json", "waves.npy", "--merges", "9"])
    main(["encode", "good.json", "waves.npy", "ids.npz"])
    with np.load("ids.npz", allow_pickle=False) as ids:
        np.savez("altered.npz", **{name: changes.get(name, ids[name]) for name in ids})
    capsys.readouterr()
    assert main(["decode", "good.json", "altered.npz", "back.npy"]) == 2
    assert message in capsys.readouterr().err and not (here / "back.npy").exists()
