"""From a trained folder to one that needs no PyTorch, and from a running signal to scores: the apps, and what they refuse."""

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import compose
import export
import predict
import prepare
import stream as streaming_app
from physio_data.store import Store
from physio_data.streaming import ClockError, NotFiniteError, RateError, StreamPlan, causal_prepare
from physio_models.contract import ContractError, InputContract
from physio_models.export import DamagedFolderError, Exported
from physio_models.export_int8 import CalibrationError
from physio_models.himae import HiMaeConfig
from physio_models.pretrained import build_untrained, from_pretrained, save_pretrained
from physio_train import probe as probes

pytest.importorskip("onnxruntime")
APPS = Path(compose.__file__).parent
SOURCE_HZ = 64.0


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("deploy")


@pytest.fixture(scope="module")
def store(home):
    prepare.main(
        ["synthetic", "--fs", "25", "--window-s", "4", "--band", "0.5,8", "--option", "n_subjects", "6", "minutes", "0.5", "--out", str(home / "store")]
    )
    return Store(home / "store", task="rate")


@pytest.fixture(scope="module")
def probe(home, store):
    """A saved encoder with a linear read-out of the first level, as probe.py writes it."""
    config = HiMaeConfig.preset("tiny", n_channels=len(store.channels), n_samples=store.n_samples)
    spec = compose.spec_of(store)
    contract = InputContract(channels=spec.channels, units=spec.units, fs=spec.fs, window_s=spec.window_s, band=spec.band, kind=spec.kind, length_free=True)
    folder = save_pretrained(home / "probe", build_untrained("himae", config), config, contract)
    x_ND = from_pretrained(folder).features(store.batch(np.arange(len(store)))["signal"], spec, level="all", pool="mean+max").numpy()
    label_N = (np.arange(len(store)) % 2).astype(float)
    fitted = probes.fit(x_ND, label_N, np.asarray(store.index["subject"]), probes.ProbeConfig(kind="binary", n_inner=2))
    probes.save(folder, replace(fitted, more={"task": "odd", "level": "all", "pool": "mean+max"}))
    return folder


@pytest.fixture(scope="module")
def exported(home, probe):
    said = export.main(["--ckpt", str(probe), "--to", "onnx", "--out", str(home / "onnx")])
    assert said["outputs"] == ["embedding", "scores"] and said["golden_difference"] < 1e-4
    return home / "onnx"


def pulses(n=3000, channels=1):
    t_n = np.arange(n) / SOURCE_HZ
    return np.stack([np.exp(3 * (np.cos(2 * np.pi * (1.2 + 0.1 * c) * t_n) - 1)) + 0.02 * np.sin(7 * t_n) for c in range(channels)])


def lines_of(x_Cn, names, times=False):
    yield ",".join([*(["time_s"] if times else []), *names]) + "\n"
    for i, sample in enumerate(x_Cn.T):
        yield ",".join([*([f"{i / SOURCE_HZ:.6f}"] if times else []), *(repr(float(v)) for v in sample)]) + "\n"


def test_the_graph_scores_a_store_as_the_probe_does(probe, exported, store):
    signal_NCT, spec = store.batch(np.arange(len(store)))["signal"], compose.spec_of(store)
    fitted = probes.load(probe)
    expected = fitted.predict(from_pretrained(probe).features(signal_NCT, spec, level="all", pool="mean+max").numpy())
    assert np.abs(Exported(exported)(signal_NCT, spec)["scores"] - expected).max() < 1e-4
    labels = json.loads((exported / "labels.json").read_text())
    assert labels["classes"] == ["odd"] and labels["thresholds"] == pytest.approx(fitted.threshold_K.tolist())


def test_int8_is_calibrated_on_the_train_fold_and_refused_without(home, probe, store):
    with pytest.raises(CalibrationError, match="--data STORE"):
        export.main(["--ckpt", str(probe), "--to", "int8", "--out", str(home / "none")])
    app = export.Export(ckpt=probe, to="int8", out=home / "none", data=(home / "store",), windows=10_000)
    encoder = from_pretrained(probe)
    rows_N = np.flatnonzero(np.asarray(store.index["fold"]).astype(str) == "train")
    assert 0 < len(rows_N) < len(store)
    assert np.array_equal(export.calibration(app, encoder), store.batch(rows_N)["signal"])
    said = export.main(["--ckpt", str(probe), "--to", "int8", "--out", str(home / "int8"), "--data", str(home / "store"), "--tolerance", "0.2"])
    assert said["error"] <= 0.2 and Exported(home / "int8").precision == "int8"


def test_a_dry_run_writes_nothing(home, probe):
    said = export.main(["--ckpt", str(probe), "--to", "onnx", "--out", str(home / "dry"), "--dry-run"])
    assert said["head"] == "odd" and not (home / "dry").exists()


@pytest.mark.parametrize("times", [False, True])
def test_a_stream_of_lines_gives_the_scores_of_the_same_preparation_offline(probe, exported, store, times):
    contract = from_pretrained(probe).contract
    names, x_Cn = contract.channels, pulses(channels=len(store.channels))
    found = list(streaming_app.stream(exported, lines_of(x_Cn, names, times), source_fs=SOURCE_HZ, hop_s=2.0))
    plan = StreamPlan(channels=names, fs_in=SOURCE_HZ, fs=25.0, n_samples=100, hop=50, band=contract.band)
    start_N, x_NCT = causal_prepare(x_Cn, plan)
    assert [line["start_s"] for line in found] == (start_N / 25.0).tolist() and len(found) == 22
    fitted, encoder = probes.load(probe), from_pretrained(probe)
    expected = fitted.predict(encoder.features(x_NCT, compose.spec_of(store), level="all", pool="mean+max").numpy())
    assert [line["odd"] for line in found] == pytest.approx(expected[:, 0].tolist(), abs=1e-4)
    by_torch = list(streaming_app.stream(probe, lines_of(x_Cn, names, times), source_fs=SOURCE_HZ, hop_s=2.0))
    assert [line["odd"] for line in by_torch] == pytest.approx([line["odd"] for line in found], abs=1e-4)


def test_predict_reads_the_same_lines_from_standard_input(exported, store, monkeypatch, capsys):
    x_Cn = pulses()
    lines = list(lines_of(x_Cn, store.channels))
    found = list(streaming_app.stream(exported, lines, source_fs=SOURCE_HZ, hop_s=2.0))
    monkeypatch.setattr("sys.stdin", iter(lines))
    flags = ["--ckpt", str(exported), "--stream", "--hop-s", "2"]
    assert predict.main(["-", *flags, "--source-fs", str(SOURCE_HZ)]) == {"windows": len(found)} and len(found) > 1
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found
    with pytest.raises(ValueError, match="--stream and --source-fs HZ"):
        predict.main(["-", *flags])
    with pytest.raises(ValueError, match="--out must name the folder"):
        predict.main(["some.csv", "--ckpt", str(exported)])


def test_lost_samples_are_refused_or_make_a_gap(exported, store):
    x_Cn = pulses(channels=len(store.channels))
    x_Cn[0, 1000:1050] = np.nan
    with pytest.raises(NotFiniteError, match=r"sample 1000 of the stream.*on_nan='gap'"):
        list(streaming_app.stream(exported, lines_of(x_Cn, store.channels), source_fs=SOURCE_HZ))
    found = list(streaming_app.stream(exported, lines_of(x_Cn, store.channels), source_fs=SOURCE_HZ, on_nan="gap", hop_s=1.0))
    begin_s, end_s = 1000 / SOURCE_HZ, 1049 / SOURCE_HZ
    assert found and all(line["start_s"] + 3.96 < begin_s or line["start_s"] > end_s for line in found)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda lines: [*lines[:500], *lines[400:]], ClockError, "jumps back"),
        (lambda lines: [*lines[:500], *lines[500::2]], RateError, "about 32 Hz.*begin a new Stream"),
        (lambda lines: [*lines[:50], "1.0;2.0\n"], ValueError, "line 50 of samples must be"),
        (lambda lines: ["time_s,EEG Fpz\n", *lines[1:]], ContractError, "misses"),
    ],
)
def test_lines_that_do_not_fit_are_refused(exported, store, change, error, says):
    lines = change(list(lines_of(pulses(1500, len(store.channels)), store.channels, times=True)))
    if error is ContractError and len(store.channels) > 1:
        lines[0] = "time_s," + ",".join(f"EEG {i}" for i in range(len(store.channels))) + "\n"
    with pytest.raises(error, match=says):
        list(streaming_app.stream(exported, lines, source_fs=SOURCE_HZ))


def test_unnamed_columns_need_names(exported):
    with pytest.raises(ValueError, match="--channels"):
        list(streaming_app.stream(exported, ["1.0\n"], source_fs=SOURCE_HZ))


def test_a_folder_whose_model_is_another_s_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    document = json.loads((folder / "contract.json").read_text())
    document["model"]["sha256"] = "0" * 64
    (folder / "contract.json").write_text(json.dumps(document))
    with pytest.raises(DamagedFolderError, match="export it again"):
        list(streaming_app.stream(folder, lines_of(pulses(), ["x"]), source_fs=SOURCE_HZ))


def test_lines_are_read_only_as_fast_as_windows_are_taken(exported, store):
    read = []
    lines = (read.append(None) or line for line in lines_of(pulses(channels=len(store.channels)), store.channels))
    running = streaming_app.stream(exported, lines, source_fs=SOURCE_HZ, hop_s=2.0)
    for n in range(3):
        next(running)
        assert len(read) - 1 <= SOURCE_HZ * (4 + 2 * n) + SOURCE_HZ * 32 / 25 + 1  # a window's samples and what the resampler looks ahead


@pytest.mark.slow
def test_a_slow_reader_of_the_output_loses_nothing(exported, store):
    x_Cn = pulses(20_000, len(store.channels))
    command = [sys.executable, APPS / "stream.py", "--ckpt", exported, "--source-fs", "64", "--hop-s", "0.12"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:

        def feed():
            running.stdin.writelines(lines_of(x_Cn, store.channels))
            running.stdin.close()

        feeder = threading.Thread(target=feed)
        feeder.start()
        first = running.stdout.readline()
        time.sleep(1.0)  # by now the pipe is full and the app waits
        lines = [json.loads(line) for line in [first, *running.stdout]]
        feeder.join()
    assert running.returncode == 0 and lines[-1] == {"windows": len(lines) - 1}
    n_out = -(-20_000 * 25 // 64)
    assert [line["start_s"] for line in lines[:-1]] == pytest.approx([i * 0.12 for i in range((n_out - 100) // 3 + 1)])
