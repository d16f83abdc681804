import contextlib
import errno
import hashlib
import json
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from physio_data import journal, shards
from physio_data.corpora import corpus
from physio_data.journal import StoreBusy
from physio_data.prepare import PrepareConfig, prepare, signal_kind
from physio_data.store import Store, Stores

TOY = """
import math
import numpy as np
from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.recording import Recording

def list_records(root, *, n=9):
    return [f"r{i}" for i in range(int(n))]

def open_record(root, record_id, *, n=9):
    i = int(record_id[1:])
    t_T = np.arange(50 * (20 + 7 * i)) / 50.0
    x_T = np.sin(2 * np.pi * (1.0 + 0.1 * i) * t_T) + 5.0
    if i == 2:
        x_T[600:630] = math.nan
    return Recording.from_array(x_T[None], fs=50.0, channels=("II",), units=("mV",), subject=f"p{i // 2}", record=record_id, age=40.0 + i, sex="F")

def label_windows(recording, start_s_N, window_s):
    return {"late": (start_s_N >= 20).astype(np.int64)}

def folds(record_ids, root, *, n=9):
    return {r: "train" if int(r[1:]) < 5 else "test" for r in record_ids}

CORPUS = Corpus(
    name="toy", title="Toy", licence="none", access="generated", size="9", citation="", url="", signal_kind="series", list_records=list_records,
    open_record=open_record, label_windows=label_windows, official_folds=folds, tasks={"late": TaskSpec(kind="binary")}, options={"n": "records"},
    defaults=PrepareDefaults(leads=("II",), window_s=4.0, hop_s=2.0, fs=20.0, band=(0.5, 8.0)), waivers=WAIVERS,
)
"""


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    """Importable modules `toy_corpus` and `waived_corpus` (the latter excuses the subject that its official folds share)."""
    (tmp_path / "toy_corpus.py").write_text(TOY.replace("WAIVERS", "()"))
    (tmp_path / "waived_corpus.py").write_text(TOY.replace("WAIVERS", "('p2',)"))
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("toy_corpus", "waived_corpus"):
        sys.modules.pop(name, None)
    return tmp_path


def config(**more):
    return PrepareConfig(**({"corpus": "toy_corpus:CORPUS", "shard_windows": 40} | more))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_store_states_everything_that_made_it(tmp_path):
    manifest = prepare(config(), tmp_path / "s")
    store = Store(tmp_path / "s", verify=True)
    assert store.manifest == json.loads(json.dumps(manifest))
    assert (store.channels, store.units, store.fs, store.n_samples, store.window_s) == (("II",), ("mV",), 20.0, 80, 4.0)
    assert manifest["band"] == [0.5, 8.0] and manifest["kind"] == "ecg" and manifest["raw"] is False and manifest["subjects"] == "known"
    assert len(manifest["shards"]) > 1 and sum(manifest["folds"].values()) == len(store)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["manifest.json", *(entry["file"] for entry in manifest["shards"])]
    assert np.abs(store.batch(store.rows())["signal"].mean()) < 0.05  # the offset of 5 is filtered away


def test_windows_with_a_gap_are_rejected_and_next_does_not_cross_it(tmp_path):
    manifest = prepare(config(), tmp_path / "s")
    store = Store(tmp_path / "s")
    rows = np.flatnonzero(store.index["record"] == "r2")  # 34 s, a gap in [12.0, 12.6): windows [10, 14) and [12, 16) ... touch it
    start_s = store.index["start_s"][rows]
    np.testing.assert_allclose(start_s, [0, 2, 4, 6, 8, 14, 16, 18, 20, 22, 24, 26, 28, 30])
    assert manifest["rejected"] == {"missing": 2} and manifest["n_rejected"] == 2
    following = store.index["next"][rows]
    assert following[4] == -1 and np.isnan(store.index["dt_next_s"][rows][4]) and following[-1] == -1
    keep = np.delete(np.arange(len(rows) - 1), 4)
    np.testing.assert_array_equal(following[keep], rows[keep] + 1)
    assert (store.index["dt_next_s"][rows][keep] == 2.0).all()
    np.testing.assert_array_equal(store.label("late")[rows], start_s >= 20)


def test_next_points_to_the_following_window_everywhere(tmp_path):
    prepare(config(), tmp_path / "s")
    index = Store(tmp_path / "s").index
    for row, following in enumerate(index["next"].tolist()):
        if following >= 0:
            assert index["record"][following] == index["record"][row]
            assert index["start_s"][following] - index["start_s"][row] == pytest.approx(2.0, abs=1e-9)


def test_next_counts_through_several_stores(tmp_path):
    for name, n in (("a", 3), ("b", 5)):
        prepare(config(corpus_options={"n": n}), tmp_path / name)
    index = Stores([tmp_path / "a", tmp_path / "b"]).index
    row_N = np.flatnonzero(index["next"] >= 0)
    next_N = index["next"][row_N]
    assert len(row_N) > 100 and (index["record"][next_N] == index["record"][row_N]).all()
    np.testing.assert_allclose(index["start_s"][next_N] - index["start_s"][row_N], 2.0)
    np.testing.assert_array_equal(next_N, row_N + 1)


def test_filters_and_resampling_agree_with_scipy_away_from_the_ends(tmp_path):
    from scipy.signal import butter, sosfiltfilt

    prepare(config(), tmp_path / "s")
    store = Store(tmp_path / "s")
    row = int(np.flatnonzero((store.index["record"] == "r8") & (store.index["start_s"] == 30.0))[0])
    t_T = np.arange(50 * 76) / 50.0
    y_T = sosfiltfilt(butter(4, (0.5, 8.0), "bandpass", fs=50.0, output="sos"), np.sin(2 * np.pi * 1.8 * t_T) + 5.0)
    expected_T = np.interp(30.0 + np.arange(80) / 20.0, t_T, y_T)  # 50 Hz to 20 Hz; a straight line is within 0.7 % of a 1.8-Hz sine
    np.testing.assert_allclose(store[row]["signal"][0], expected_T, atol=0.012)


def test_a_raw_store_is_resampled_but_not_filtered(tmp_path):
    manifest = prepare(config(raw=True), tmp_path / "s")
    assert manifest["raw"] is True and manifest["band"] == [0.5, 8.0]
    assert Store(tmp_path / "s").batch([0])["signal"].mean() == pytest.approx(5.0, abs=0.2)


def test_a_short_tail_is_kept_on_request(tmp_path):
    prepare(config(pad_tail=True, hop_s=4.0, window_s=4.0, band=(None, None)), tmp_path / "s")
    store = Store(tmp_path / "s")
    row = int(np.flatnonzero(store.index["n_valid"] < 80)[0])
    item = store[row]
    assert store.index["record"][row] == "r1" and item["valid"].sum() == 60  # 27 s: six windows and 3 s
    assert (item["signal"][0, 60:] == item["signal"][0, 59]).all()


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_the_bytes_do_not_depend_on_the_workers(tmp_path, dtype):
    prepare(config(dtype=dtype), tmp_path / "one")
    with ThreadPoolExecutor(3) as pool:
        prepare(config(dtype=dtype), tmp_path / "three", executor=pool)
    assert digests(tmp_path / "one") == digests(tmp_path / "three")


def test_worker_processes_give_the_same_bytes(tmp_path):
    prepare(config(), tmp_path / "one")
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        prepare(config(), tmp_path / "two", executor=pool)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@pytest.mark.parametrize("n_done", [3, 8])
def test_a_killed_prepare_resumes_to_the_same_bytes(tmp_path, n_done):
    prepare(config(), tmp_path / "whole")
    script = f"""
        import os
        from physio_data.prepare import PrepareConfig, prepare
        def progress(done, total, windows):
            if done == {n_done}:
                os._exit(9)
        prepare(PrepareConfig(corpus="toy_corpus:CORPUS", shard_windows=40), "killed", progress=progress)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, check=False)
    assert ran.returncode == 9, ran.stderr.decode()
    assert not (tmp_path / "killed" / "manifest.json").exists()
    with pytest.raises(ValueError, match=r"did not finish: run the same prepare again"):
        Store(tmp_path / "killed")
    begun = []
    prepare(config(), tmp_path / "killed", progress=lambda done, total, windows: begun.append(done))
    assert begun[0] == n_done + 1
    assert digests(tmp_path / "whole") == digests(tmp_path / "killed")


def interrupted(folder: Path, after: int) -> None:
    def progress(done, total, windows):
        if done == after:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        prepare(config(), folder, progress=progress)


@pytest.mark.parametrize("tear", ["journal", "spool", "spool lost", "lying spool"])
def test_half_written_ends_are_dropped(tmp_path, tear):
    prepare(config(), tmp_path / "whole")
    interrupted(tmp_path / "torn", 2)
    line, spool = tmp_path / "torn" / journal.JOURNAL, tmp_path / "torn" / journal.SPOOL
    if tear == "journal":
        line.write_bytes(line.read_bytes()[:-20])
    elif tear == "spool":
        spool.write_bytes(spool.read_bytes()[:-20] + b"x")
    elif tear == "spool lost":
        spool.unlink()
    else:
        spool.write_bytes(spool.read_bytes() + b"more")
    prepare(config(), tmp_path / "torn")
    assert digests(tmp_path / "whole") == digests(tmp_path / "torn")


def test_another_config_in_the_same_folder_is_refused_by_its_keys(tmp_path):
    interrupted(tmp_path / "s", 2)
    for state in ("was begun", "holds a store prepared"):
        with pytest.raises(ValueError, match=rf"{state} with other parameters \(fs: 20.0 there, 25.0 now; window_s: 4.0 there, 2.0 now\)"):
            prepare(config(fs=25.0, window_s=2.0, hop_s=2.0), tmp_path / "s")
        prepare(config(), tmp_path / "s")


def test_a_finished_store_returns_at_once(tmp_path):
    first = prepare(config(), tmp_path / "s")
    assert prepare(config(), tmp_path / "s", progress=lambda *counts: pytest.fail("worked again")) == first


def test_a_finished_store_is_not_taken_for_other_records_under_the_same_name(tmp_path):
    import toy_corpus

    toy_corpus.CORPUS = replace(toy_corpus.CORPUS, list_records=lambda root: sorted(path.name for path in Path(root).iterdir()))
    root = tmp_path / "here" / "toys"
    root.mkdir(parents=True)
    for name in ("r1", "r2"):
        (root / name).touch()
    first = prepare(config(root=str(root)), tmp_path / "s")
    root = root.rename(tmp_path / "toys")
    assert prepare(config(root=str(root)), tmp_path / "s") == first, "data may move"
    (root / "r3").touch()
    with pytest.raises(ValueError, match="other records than the 3"):
        prepare(config(root=str(root)), tmp_path / "s")
    for path in root.iterdir():
        path.unlink()
    root.rmdir()
    assert prepare(config(root=str(root)), tmp_path / "s") == first, "and need not stay"


def test_two_processes_cannot_prepare_one_folder(tmp_path):
    script = """
        import sys
        from physio_data.prepare import PrepareConfig, prepare
        def progress(done, total, windows):
            print("begun", flush=True)
            sys.stdin.readline()
        prepare(PrepareConfig(corpus="toy_corpus:CORPUS", shard_windows=40), "s", progress=progress)
    """
    first = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"begun\n"
        with pytest.raises(StoreBusy, match=rf"another process \(pid {first.pid}\)"):
            prepare(config(), tmp_path / "s")
    finally:
        first.kill()
        first.communicate()
    prepare(config(), tmp_path / "s")  # the dead process holds nothing


def test_two_threads_cannot_either(tmp_path):
    def progress(done, total, windows):
        with pytest.raises(StoreBusy, match=r"by this process"):
            prepare(config(), tmp_path / "s")

    prepare(config(), tmp_path / "s", progress=progress)


@pytest.mark.parametrize("what", ["spool", "journal", "shard", "shard text", "manifest"])
def test_a_full_disk_is_said_leaves_no_temporary_and_resumes(tmp_path, monkeypatch, what):
    prepare(config(), tmp_path / "whole")
    no_space = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        if what in ("spool", "journal"):
            original, calls = journal._append, []

            def append(file, content, good_end):
                calls.append(file)
                if len(calls) == (5 if what == "spool" else 6):
                    file.write(memoryview(content)[:10])
                    file.truncate(good_end)
                    raise no_space
                original(file, content, good_end)

            patch.setattr(journal, "_append", append)
        elif what.startswith("shard"):
            error = no_space if what == "shard" else OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')")

            def write(file, signal_NCT, dtype, compression):
                raise error

            patch.setattr(shards, "_write_signal", write)
        else:
            patch.setattr("physio_data.prepare.write_manifest", lambda *args: (_ for _ in ()).throw(no_space))
        with pytest.raises(OSError, match=r"no space left on the disk of .*run the same prepare again") as caught:
            prepare(config(), tmp_path / "s")
        assert caught.value.errno == errno.ENOSPC
    assert not list((tmp_path / "s").glob("*.tmp")) + list((tmp_path / "s").glob(".*.tmp"))
    prepare(config(), tmp_path / "s")
    assert digests(tmp_path / "whole") == digests(tmp_path / "s")


def test_a_waiver_excuses_official_folds_only(tmp_path):
    table = tmp_path / "folds.csv"
    table.write_text("record,fold\n" + "".join(f"r{i},{'train' if i < 5 else 'test'}\n" for i in range(9)))
    with pytest.raises(ValueError, match=r"subject 'p2' is in two folds"):
        prepare(config(corpus="waived_corpus:CORPUS", folds=str(table)), tmp_path / "own")


def test_a_finished_store_with_a_cut_shard_is_not_taken_for_whole(tmp_path):
    prepare(config(), tmp_path / "store")
    shard = tmp_path / "store/shard-00000.h5"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=rf"shard-00000.h5 has {len(whole) - 100} bytes, its manifest says {len(whole)}; restore that file, or delete"):
        prepare(config(), tmp_path / "store")
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-00000.h5 is missing; restore"):
        prepare(config(), tmp_path / "store")


def test_no_subject_is_in_two_folds(tmp_path):
    for split in ("hash", "stratified"):
        prepare(config(split=split), tmp_path / split)
        index = Store(tmp_path / split).index
        for subject in np.unique(index["subject"]):
            assert len(np.unique(index["fold"][index["subject"] == subject])) == 1
    with pytest.raises(ValueError, match=r"subject 'p2' is in two folds"):
        prepare(config(split="official"), tmp_path / "official")
    assert prepare(config(corpus="waived_corpus:CORPUS", split="official"), tmp_path / "official")["waivers"] == ["p2"]


def test_bad_requests_are_named(tmp_path):
    for more, message in (
        ({"leads": ("V1",)}, r"no channel 'V1'; it has II"),
        ({"corpus_options": {"m": 3}}, r"no option 'm'; it has n"),
        ({"source_fs": 100.0}, r"source_fs=100.0 has no use"),
        ({"corpus": "toi"}, r"no corpus 'toi'"),
        ({"window_s": 1000.0}, r"no window is left.*shorter than a window"),
        ({"band": (0.5, 30.0)}, r"30.0 must satisfy"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(config(**more), tmp_path / "s")
    for more in ({"fs": 0.0}, {"band": (5.0, 1.0)}, {"dtype": "int8"}, {"split": "random"}, {"shard_windows": 0}, {"window_s": float("nan")}):
        with pytest.raises(ValueError, match=f"^{next(iter(more))} must"):
            config(**more)


def test_the_kind_of_signal_follows_from_the_channels():
    assert signal_kind(("MLII", "v5"), "series") == "ecg" and signal_kind(("Pleth",), "mixed") == "ppg"
    assert signal_kind(("ECG", "PPG"), "ppg") == "mixed", "rules for pulses do not fit an ECG"
    assert signal_kind(("series",), "series") == "series"


def test_a_settled_config_stays_as_it_is():
    for name in ("mitbih", "synthetic", "ucr", "himae_pvc"):
        for more in ({}, {"band": (None, None)}, {"window_s": 5.0}, {"window_s": 5.0, "hop_s": 1.0}, {"hop_s": 2.0}):
            settled = PrepareConfig(corpus=name, **more).settled(corpus(name))
            assert settled.settled(corpus(name)) == settled
    assert PrepareConfig(corpus="mitbih", band=(None, None)).settled(corpus("mitbih")).band == (None, None)
    assert PrepareConfig(corpus="mitbih", window_s=5.0).settled(corpus("mitbih")).hop_s == 5.0
