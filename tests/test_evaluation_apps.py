"""Fine-tuning, scoring, the leaderboard and prediction from a file, at sizes of seconds, and what they say when something is wrong."""

import csv
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import benchmark
import compose
import downstream
import evaluate
import figures
import finetune
import handmade
import leaderboard
import predict
import prepare
import robustness
import timeline
from label_maps import BUILT_IN, LabelMap
from physio_data import open_recording
from physio_data.corpora.snomed import SCORED
from physio_data.recording import Recording
from physio_data.store import Store
from physio_models.contract import ContractError, InputContract
from physio_models.himae import HiMaeConfig
from physio_models.pretrained import save_pretrained
from physio_train import metrics, readouts
from physio_train import predictions as prediction_files
from physio_train.protocol import Task

NET = HiMaeConfig(n_channels=1, n_samples=250, widths=(4, 8))
QUICK = ["--n-epochs", "2", "--max-steps", "6", "--twins", "1", "--jobs", "1", "--size", "tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def store(folder):
    out = folder / "store"
    prepare.main(["synthetic", "--out", str(out), "--option", "n_subjects", "24", "minutes", "0.5"])
    return out


@pytest.fixture(scope="module")
def encoder(folder, store):
    """An encoder as initialised, saved like a trained one; it has seen nobody."""
    opened = Store(store)
    spec = compose.spec_of(opened)
    torch.manual_seed(0)
    cfg = HiMaeConfig(n_channels=len(spec.channels), n_samples=spec.n_samples, widths=(4, 8))
    contract = InputContract(
        channels=spec.channels,
        units=spec.units,
        fs=spec.fs,
        window_s=spec.window_s,
        band=spec.band,
        normalization="lead_zscore",
        length_free=True,
        kind=spec.kind,
    )
    return save_pretrained(folder / "encoder", cfg.build().eval(), cfg, contract, {"stores": [], "subjects": []})


@pytest.fixture(scope="module")
def tuned(folder, store, encoder):
    """A fine-tuned folder and its summary."""
    out = folder / "tuned"
    with pytest.MonkeyPatch.context() as few:  # trees of the hand-crafted row, which these tests do not judge
        few.setattr(readouts, "N_TREES", 10)
        few.setattr(readouts, "N_ROUNDS", 5)
        summary = finetune.main(["--ckpt", str(encoder), "--data", str(store), "--task", "pvc", "--out", str(out), "--fractions", "0.2", "1", *QUICK])
    return out, summary


def test_finetuning_stands_beside_everything_it_must_beat(tuned):
    out, _ = tuned
    rows = {row["row"] for row in json.loads((out / "table.json").read_text())["rows"]}
    assert {"finetuned", "finetuned 20 %", "linear", "linear 20 %", "knn", "supervised", "twin", "handcrafted", "leak"} <= rows
    assert "inductive" in (out / "table.md").read_text()


def test_a_saved_model_scores_a_store_as_it_did_when_it_was_trained_and_trains_nothing(tuned, store, folder):
    out, _ = tuned
    before = (out / "model.safetensors").read_bytes()
    evaluate.main(
        ["--ckpt", str(out), "--data", str(store), "--use", "test", "--predictions", str(folder / "p.csv"), "--out", str(folder / "scored"), "--by", "sex"]
    )
    found = prediction_files.read(folder / "p.csv")
    opened = Store(store)
    rows = opened.rows("test")
    saved = downstream.load(out)
    one = saved.scores(opened.batch(rows[:1])["signal"], compose.spec_of(opened))
    assert found.scores["pvc"][0] == pytest.approx(one[0, 0], abs=1e-6) and np.array_equal(found.labels["pvc"], opened.label("pvc")[rows])
    assert (out / "model.safetensors").read_bytes() == before
    lines = lines_of(folder / "scored" / "per_subject.csv")
    assert sum(int(line["windows"]) for line in lines) == len(rows) and all(line["auroc"] or line["reason"] for line in lines)


def test_a_model_whose_contract_or_classes_do_not_fit_is_refused(tuned, store, encoder, folder):
    out, _ = tuned
    with pytest.raises(ValueError, match="regression"):
        evaluate.main(["--ckpt", str(out), "--data", str(store), "--task", "age"])
    with pytest.raises(ValueError, match="not in the store"):
        evaluate.main(["--ckpt", str(out), "--data", str(store), "--task", "stress"])
    with pytest.raises(ValueError, match="without a head"):
        evaluate.main(["--ckpt", str(encoder), "--data", str(store)])
    other = folder / "other"
    prepare.main(["synthetic", "--out", str(other), "--fs", "50", "--band", "0.5,8", "--option", "n_subjects", "3", "minutes", "0.5"])
    with pytest.raises(ValueError, match="rate is 50 Hz"):
        evaluate.main(["--ckpt", str(out), "--data", str(other)])


def test_a_channel_of_another_name_is_taken_where_it_is_said(tuned, store, folder):
    out, _ = tuned
    opened = Store(store)
    (name,) = opened.channels
    base = ["--ckpt", str(out), "--data", str(store), "--use", "test", "--task", "pvc"]
    assert evaluate.main([*base, "--lead", name, name])["AUROC"] == evaluate.main(base)["AUROC"]
    with pytest.raises(ValueError, match=f"no channel of the store; it has {name}"):
        evaluate.main([*base, "--lead", name, "V9"])
    with pytest.raises(ContractError, match=f"misses {name}"):
        evaluate.main([*base, "--lead", "V1", name])


def test_an_originals_backbone_and_probe_score_as_written_down(store, folder):
    opened = Store(store)
    torch.manual_seed(1)
    net, head = HiMaeConfig(n_channels=1, n_samples=opened.n_samples, widths=(4, 8)).build().eval(), nn.Linear(8, 1)
    torch.save(net.state_dict(), folder / "backbone.pt")
    torch.save({f"fc.{key}": value for key, value in head.state_dict().items()}, folder / "probe.pt")
    pair = ["--ckpt", str(folder / "backbone.pt"), "--reference", "himae", "--probe", str(folder / "probe.pt"), "--data", str(store)]
    evaluate.main([*pair, "--task", "pvc", "--predictions", str(folder / "o.csv"), "--out", str(folder / "original")])
    x = torch.from_numpy(opened.batch([0, 1, 2])["signal"])
    with torch.no_grad():
        expected = head(net.encode(x).tokens_BND.mean(1)).sigmoid()[:, 0].numpy()
    assert prediction_files.read(folder / "o.csv").scores["pvc"][:3] == pytest.approx(expected, abs=1e-5)
    assert (folder / "original" / "per_subject.csv").is_file()
    with pytest.raises(ValueError, match="all three"):
        evaluate.main(pair[:4] + pair[6:])


def test_the_published_pair_scores_windows_as_its_parts_say(shared, folder):
    fixtures = shared / "fixtures" / "himae"
    weights, wave = np.load(fixtures / "himae_ref_weights.npz"), np.load(fixtures / "forward_L250.npz")
    torch.save({key: torch.from_numpy(weights[key]) for key in weights.files}, folder / "himae.ckpt")
    with h5py.File(folder / "pvc.h5", "w") as file:
        file["ppg"], file["labels"], file["patient_ids"] = wave["x"][:, 0], np.array([0, 1, 0, 1]), np.array([3, 3, 4, 4])
    prepare.main(["himae_pvc", "--root", str(folder / "pvc.h5"), "--out", str(folder / "pvc"), "--band", "none"])
    pair = ["--ckpt", str(folder / "himae.ckpt"), "--reference", "himae", "--probe", str(fixtures / "pvc_linear_probe.pt")]
    evaluate.main([*pair, "--data", str(folder / "pvc"), "--predictions", str(folder / "pvc.csv")])
    state = torch.load(fixtures / "pvc_linear_probe.pt", map_location="cpu", weights_only=True)
    weight, bias = (next(value for key, value in state.items() if key.endswith(end)).double().numpy() for end in ("weight", "bias"))
    logit = wave["pooled_full/L5"].astype(np.float64) @ weight.T + bias
    assert prediction_files.read(folder / "pvc.csv").scores["pvc"] == pytest.approx(1 / (1 + np.exp(-logit[:, 0])), abs=1e-5)


def test_the_summary_by_patient_is_that_of_the_published_predictions(shared, tmp_path):
    fixtures = shared / "fixtures" / "himae"
    with (fixtures / "pvc_predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    y, score = (np.array([float(line[key]) for line in lines]) for key in ("label", "p_pvc"))
    place = {"record": np.arange(len(lines)).astype(str), "start_s": np.zeros(len(lines))}
    predicted = prediction_files.make("original", {"pvc": score}, labels={"pvc": y}, subject=np.array([line["patient_id"] for line in lines]), **place)
    found = evaluate.by_subject(tmp_path, predicted, Task(name="pvc"))
    published = json.loads((fixtures / "pvc_metrics.json").read_text())["per_patient"]
    with (tmp_path / "per_subject.csv").open(newline="") as file:
        own = {line["subject"]: line for line in csv.DictReader(file)}
    assert own.keys() == published.keys() and len(own) == 17
    for name, values in published.items():
        assert (int(own[name]["windows"]), int(own[name]["positives"])) == (values["n"], values["pos"])
        assert own[name]["auroc"] == "" if values["auc"] is None else float(own[name]["auroc"]) == pytest.approx(values["auc"], abs=1e-5)
    assert found["pvc"]["two_classes"] == 14 and found["pvc"]["mean_auroc"] == pytest.approx(0.697, abs=5e-4)


def test_robustness_has_a_row_for_every_condition(tuned, store, folder, capsys):
    out, _ = tuned
    summary = evaluate.main(
        ["robustness", "--ckpt", str(out), "--data", str(store), "--use", "test", "--snr-db", "10", "--rates-hz", "10", "--out", str(folder / "rob")]
    )
    names = list(next(value for key, value in summary.items() if key in ("AUROC", "MAE")))
    assert names[0] == "as it is" and "noise at 10 dB" in names and "flipped" in names and (folder / "rob" / "figures" / "robustness.png").is_file()
    x = np.random.default_rng(0).normal(size=(40, 1, 500))
    noise = robustness.noisy(10.0)(x, 100.0, np.arange(40)) - x
    assert 10 * np.log10((x**2).mean() / (noise**2).mean()) == pytest.approx(10, abs=0.2)
    hum = robustness.humming(50.0)(x, 250.0, np.arange(40)) - x
    assert (np.abs(np.fft.rfft(hum[:, 0])).argmax(1) * 250 / 500 == 50).all() and hum.std() == pytest.approx(0.1 * x.std(), rel=0.05)
    slow, fast = np.sin(2 * np.pi * 3 * np.arange(500) / 100), np.sin(2 * np.pi * 40 * np.arange(500) / 100)
    back = robustness.recorded_at(50.0)(np.stack([slow, fast])[:, None], 100.0, np.arange(2))[:, 0, 100:400]
    assert np.abs(back[0] - slow[100:400]).max() < 0.02 and np.abs(back[1]).max() < 0.05


def test_a_lead_that_is_lost_reads_as_zeros_and_is_told(tmp_path):
    prepare.main(
        [
            "synthetic",
            "--out",
            str(tmp_path / "two"),
            "--leads",
            "ECG,PPG",
            "--fs",
            "100",
            "--band",
            "0.5,40",
            "--option",
            "signal",
            "both",
            "n_subjects",
            "3",
            "minutes",
            "0.5",
        ]
    )
    store, asked = Store(tmp_path / "two"), []

    def scores(x_BCT, spec, valid_BT=None, channel_present_BC=None):
        asked.append((x_BCT, channel_present_BC))
        return np.zeros((len(x_BCT), 1))

    app = robustness.Robustness(ckpt=tmp_path, data=(tmp_path,), hum_hz=())
    for name, change, lost in robustness.conditions(app, store):
        robustness.scored(SimpleNamespace(scores=scores), store, store.rows(), change, lost)
        x_BCT, present_BC = asked[-1]
        gone = [name.endswith(channel) and name.startswith("without") for channel in store.channels]
        assert (present_BC is None) == (not any(gone)) and (present_BC is None or (present_BC == ~np.array(gone)).all())
        assert [not x_BCT[:, c].any() for c in range(2)] == gone
    assert len(asked) == 10 and np.any(store.batch(store.rows())["signal"][:, 0])


def test_hum_that_the_rate_cannot_hold_is_told_and_no_row(tuned, store, folder):
    out, _ = tuned
    flags = ["robustness", "--ckpt", str(out), "--data", str(store), "--use", "test", "--snr-db", "20", "--rates-hz", "1000", "--hum-hz", "5", "60"]
    summary = evaluate.main([*flags, "--out", str(folder / "hum")])
    assert list(summary["AUROC"]) == ["as it is", "noise at 20 dB", "5 Hz hum", "flipped"]
    assert "60 Hz hum: no row" in (folder / "hum" / "table.md").read_text()


def test_resolution_finds_the_receptive_field_and_controls_the_width(store, encoder, folder):
    summary = evaluate.main(["resolution", "--ckpt", str(encoder), "--data", str(store), "--tasks", "pvc", "--folds", "2", "--out", str(folder / "levels")])
    fs = Store(store).fs
    from physio_models.pretrained import from_pretrained
    from resolution import receptive_fields_s

    fields = receptive_fields_s(from_pretrained(encoder))
    assert summary["receptive_field_s"] == fields and 1 / fs < fields["L1"] < fields["L2"] < Store(store).window_s
    lines = lines_of(folder / "levels" / "matrix.csv")
    assert [line["level"] for line in lines] == ["L1", "L1 (4 wide)", "L2", "L2 (4 wide)"] and (folder / "levels" / "figures" / "resolution.png").is_file()


def test_a_lead_that_a_record_lacks_is_told_to_every_level(store, encoder, monkeypatch):
    import resolution
    from physio_models.pretrained import from_pretrained

    found, told = from_pretrained(encoder), []
    absent = np.zeros((len(Store(store)), 1), bool)
    absent[::3] = True

    class Lacking(Store):
        def batch(self, indices):
            return super().batch(indices) | {"channel_present": ~absent[np.atleast_1d(indices)]}

    real = found.model.encode
    monkeypatch.setattr(found.model, "encode", lambda x, **given: told.append(given["channel_present_BC"].numpy().copy()) or real(x, **given))
    levels = resolution.features_by_level(found, Lacking(store), "mean")
    assert np.array_equal(np.concatenate(told), ~absent)
    monkeypatch.undo()
    nothing = found.features(np.zeros((1, 1, Store(store).n_samples), np.float32), compose.spec_of(Store(store)), level="L1", pool="mean")
    assert levels["L1"][absent[:, 0]] == pytest.approx(np.broadcast_to(nothing.numpy(), levels["L1"][absent[:, 0]].shape), abs=1e-6)


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Prediction from a file


def as_csv(path, x_CT, fs, names):
    np.savetxt(path, x_CT.T, delimiter=",", header=",".join(names), comments="", fmt="%.6f")
    return path


def test_a_file_is_scored_as_its_windows_are_and_stitched(tuned, folder):
    out, _ = tuned
    contract = downstream.load(out).contract
    n = round(contract.fs * 95)
    t = np.arange(n) / contract.fs
    wave = np.stack([np.exp(5 * (np.cos(2 * np.pi * (1.1 + 0.1 * c) * t) - 1)) for c in range(len(contract.channels))])
    path = as_csv(folder / "night.csv", wave, contract.fs, contract.channels)
    summary = predict.main([str(path), "--ckpt", str(out), "--out", str(folder / "predicted"), "--source-fs", str(contract.fs), "--units", *contract.units])
    found = prediction_files.read(folder / "predicted" / "predictions.csv")
    hop_s = contract.window_s / 2
    assert np.allclose(np.diff(found.start_s), hop_s) and summary["windows"] == int((95 - contract.window_s) // hop_s) + 1
    recording = open_recording(path, source_fs=contract.fs, units=contract.units)
    fitted = timeline.arrange(recording, contract, hop_s=hop_s, leads={})
    x = next(iter(timeline.windows(fitted)))[1]
    saved = downstream.load(out)
    assert found.scores["pvc"] == pytest.approx(saved.scores(x, fitted.spec)[:, 0], abs=1e-5)
    panel = Figure().subplots()
    edge_s = np.arange(len(found.start_s) + 2) * hop_s
    figures._excerpt(panel, fitted, edge_s, edge_s[1:], "pvc")  # the last stretch scores highest: a whole window is shown all the same
    assert panel.get_lines()[0].get_xdata()[-1] == pytest.approx(contract.window_s - 1 / contract.fs)
    for name in ("report.json", "timeline.csv", "episodes.csv", "figures/timeline.png"):
        assert (folder / "predicted" / name).is_file()
    steps = json.loads((folder / "predicted" / "report.json").read_text())["steps"]
    assert any("filter" in step for step in steps) and any(step.startswith("channel") for step in steps)


def test_what_does_not_fit_the_contract_names_what_mends_it(tuned, folder):
    out, _ = tuned
    contract = downstream.load(out).contract
    x = np.random.default_rng(0).normal(size=(len(contract.channels), round(contract.fs * 30)))
    wrong = as_csv(folder / "wrong.csv", x, contract.fs, [f"x{c}" for c in range(len(x))])
    base = [str(wrong), "--ckpt", str(out), "--out", str(folder / "w"), "--source-fs", str(contract.fs), "--units", *contract.units]
    with pytest.raises(ValueError, match=f"--lead {contract.channels[0]}=NAME|--lead {contract.channels[0]}"):
        predict.main(base)
    assert predict.main([*base, "--lead", *[v for c, name in enumerate(contract.channels) for v in (name, f"x{c}")]])["windows"] > 0
    short = as_csv(folder / "short.csv", x[:, :50], contract.fs, contract.channels)
    with pytest.raises(ValueError, match="windows of"):
        predict.main([str(short), *base[1:]])
    with pytest.raises(ValueError, match="hop-s"):
        predict.main([*base, "--hop-s", "1000"])


def test_gaps_are_told_and_end_episodes():
    window_s = 10.0
    for starts in (np.arange(0, 50, 5.0), np.arange(0, 50, 7.0), np.array([0.0, 10, 20, 30, 40, 45, 50, 60, 70, 71.5])):
        score = np.linspace(0, 1, len(starts))[:, None].copy()
        score[4:6] = np.nan
        edges, line = timeline.stitched(starts, score, window_s)
        assert edges[0] == 0 and edges[-1] == starts[-1] + window_s
        for t in np.arange(0.25, edges[-1], 0.5):  # any moment, by hand
            over = score[(starts <= t) & (t < starts + window_s), 0]
            expected = np.nan if np.isnan(over).all() else np.nanmean(over)
            assert line[np.searchsorted(edges, t, side="right") - 1, 0] == pytest.approx(expected, nan_ok=True)
    found = timeline.episodes(np.arange(9.0), np.array([1, 1, np.nan, 1, 0, 1, 1, 1.0]), "af", threshold=0.5, shortest_s=2.0)
    assert [(e.start_s, e.stop_s) for e in found] == [(0.0, 2.0), (5.0, 8.0)]
    assert timeline.burden(np.arange(5.0), np.array([1, np.nan, 0, 0.0]), 0.5) == pytest.approx(1 / 3)
    assert timeline.burden(np.array([0, 5, 6, 9.0]), np.array([1, 0, 1.0]), 0.5) == pytest.approx(8 / 9)
    assert timeline.burden(np.arange(2.0), np.array([np.nan]), 0.5) is None


@pytest.mark.parametrize(("hop_s", "last_s", "steps_s"), [(10.0, 45.0, {5.0, 10.0}), (7.0, 45.0, {3.0, 4.0, 7.0}), (5.0, 45.0, {5.0})])
def test_a_recording_is_scored_to_its_end_and_the_line_reaches_it(tuned, folder, hop_s, last_s, steps_s):
    out, _ = tuned
    contract = downstream.load(out).contract
    wave = np.random.default_rng(2).normal(size=(len(contract.channels), round(contract.fs * 55)))
    path = as_csv(folder / "end.csv", wave, contract.fs, contract.channels)
    base = [str(path), "--ckpt", str(out), "--source-fs", str(contract.fs), "--units", *contract.units, "--hop-s", str(hop_s)]
    to = folder / f"end-{hop_s:g}"
    summary = predict.main([*base, "--out", str(to)])
    on_grid = np.arange(0, 45 + 1e-9, hop_s)  # windows last ten seconds
    expected = np.unique([*on_grid, last_s])
    assert prediction_files.read(to / "predictions.csv").start_s == pytest.approx(expected) and summary["windows"] == len(expected)
    lines = lines_of(to / "timeline.csv")
    assert float(lines[0]["start_s"]) == 0 and float(lines[-1]["stop_s"]) == 55 and all(line["score_pvc"] for line in lines)
    assert all(a["stop_s"] == b["start_s"] for a, b in itertools.pairwise(lines))
    assert {float(line["stop_s"]) - float(line["start_s"]) for line in lines} <= steps_s
    said = json.loads((to / "report.json").read_text())
    assert any(step.startswith("last window: ends with the recording") for step in said["steps"]) == (last_s not in on_grid)
    assert said["model"]["labels"] == ["no PVC", "PVC"] and said["model"]["saw_subject"] is False
    somebody = downstream.load(out).fitted["subjects"][0]
    predict.main([*base, "--out", str(to), "--subject", somebody])
    assert json.loads((to / "report.json").read_text())["model"]["saw_subject"] is True


def test_scores_of_a_long_recording_are_drawn_as_mean_and_range():
    from matplotlib.figure import Figure

    ax, line = Figure().subplots(), np.random.default_rng(0).random(1203)
    line[300:333] = np.nan
    figures._scores(ax, line, np.arange(1204.0), "af", "C0", most=500)  # three steps at a time
    drawn, edges = ax.patches[0].get_data()[:2]
    assert len(drawn) == 401 and edges[-1] == 1203 and edges[1] == 3
    assert drawn[7] == pytest.approx((line[21] + line[22] + line[23]) / 3) and np.isnan(drawn[100:111]).all() and np.isfinite(drawn[111])
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(np.nanmax(line)) or len(ax.collections[0].get_paths()) > 1


@pytest.mark.slow
def test_a_day_is_read_an_hour_at_a_time(tuned):
    saved = downstream.load(tuned[0])
    contract, asked = saved.contract, []

    def reader(start, stop):
        asked.append(stop - start)
        t = np.arange(start, stop) / 100.0
        return np.tile(np.exp(5 * (np.cos(2 * np.pi * 1.2 * t) - 1)).astype(np.float32), (len(contract.channels), 1))

    day = Recording(fs=100.0, channels=contract.channels, units=contract.units, n_samples=86400 * 100, subject="s", record="day", reader=reader)
    fitted = timeline.arrange(day, contract, hop_s=contract.window_s, leads={})
    n = sum(len(start) for start, _ in timeline.scores(saved, fitted))
    assert n == int(86400 / contract.window_s) and max(asked) < 2 * 3600 * 100


# The leaderboard


def test_runs_are_compared_from_their_predictions_and_a_missing_floor_is_an_empty_row(tuned, store, folder):
    out, _ = tuned
    evaluate.main(["--ckpt", str(out), "--data", str(store), "--use", "test", "--task", "pvc", "--out", str(folder / "alone")])
    leaderboard.main([str(out), str(folder / "alone"), "--out", str(folder / "page")])
    page = (folder / "page" / "leaderboard.md").read_text()
    assert "tuned finetuned" in page and "| alone |" in page and "nan" not in page.lower() and (folder / "page" / "figures" / "leaderboard.png").is_file()
    leaderboard.main([str(folder / "alone"), "--out", str(folder / "page2")])
    rows = json.loads((folder / "page2" / "leaderboard.json").read_text())["pvc"]["rows"]
    assert {row["row"]: row["AUROC"].get("word") for row in rows if row["row"] != "alone"} == dict.fromkeys(leaderboard.FLOORS, "no predictions stored")
    lines = lines_of(folder / "page" / "leaderboard.csv")
    own = next(line for line in lines if line["row"] == "alone" and line["column"] == "AUROC")
    found = prediction_files.read(folder / "alone" / "predictions.csv")
    assert float(own["value"]) == pytest.approx(metrics.auroc(found.labels["pvc"], found.scores["pvc"]))
    with pytest.raises(ValueError, match="holds no predictions"):
        leaderboard.main([str(store), "--out", str(folder / "page3")])
    with pytest.raises(ValueError, match="--recipe benchmark"):
        leaderboard.main(["--out", str(folder / "page3")])


@pytest.mark.slow
def test_the_benchmark_goes_on_where_it_was(folder, shared, monkeypatch):
    arguments = [
        "--recipe",
        "benchmark",
        "--size",
        "tiny",
        "--root",
        str(shared / "data"),
        "--sources",
        "ecg200",
        "--out",
        str(folder / "board"),
        "--jobs",
        "1",
    ]
    leaderboard.main(arguments)
    first = (folder / "board" / "leaderboard.csv").read_text()
    assert "himae" in first and "handcrafted" in first and "supervised" in first and "twin" in first
    gone = sorted((folder / "board" / "cells").rglob("*.csv"))[0]
    gone.unlink()
    done = []
    monkeypatch.setattr(benchmark, "keep_cell", lambda cell, result, keep=benchmark.keep_cell: (done.append(cell.path), keep(cell, result)))
    leaderboard.main(arguments)
    assert done == [gone] and (folder / "board" / "leaderboard.csv").read_text() == first
    with pytest.raises(ValueError, match="choose another --out"):
        leaderboard.main([*arguments, "--methods", "himae"])


# Label maps and features


def test_label_maps_join_drop_and_refuse(tmp_path):
    mapped = LabelMap(name="m", target_of={"a": "x", "b": "x", "c": "y"})
    found = mapped.scores(np.array([[0.5, 0.2, 0.9]]), ("a", "b", "c"), ("x", "y", "z"))
    assert found.columns == ("x", "y") and found.scores_NK[0] == pytest.approx([1 - 0.5 * 0.8, 0.9]) and any("not scored: z" in note for note in found.notes)
    with pytest.raises(ValueError, match="no target for d"):
        mapped.scores(np.zeros((1, 1)), ("d",), ("x",))
    with pytest.raises(ValueError, match="leads none"):
        mapped.scores(np.zeros((1, 1)), ("d",), ("x",), unmapped="drop")
    with pytest.raises(ValueError, match="leads to y"):
        mapped.scores(np.zeros((1, 1)), ("c",), ("x",))
    (tmp_path / "m.csv").write_text("source,target\na,x\na,y\n")
    with pytest.raises(ValueError, match="maps a twice"):
        LabelMap.read(tmp_path / "m.csv")
    with pytest.raises(ValueError, match="none of scp_snomed"):
        LabelMap.read("scp_aha")
    assert set(BUILT_IN["scp_snomed"].values()) <= set(SCORED) and set(BUILT_IN["snomed_scp"]) <= set(SCORED)
    assert set(BUILT_IN["aami_snomed"]) <= set("NSVFQ")


def test_rhythm_about_a_beat_is_that_of_its_own_record():
    beat_s = np.array([0.0, 0.8, 1.6, 2.0, 3.2, 0.0, 1.0])
    record = np.array(["a"] * 5 + ["b"] * 2)
    found = handmade._beat_rhythm(record, np.full(7, "s"), beat_s)
    usual = np.median([0.8, 0.8, 0.4, 1.2])
    assert found[3, :3] == pytest.approx([0.4 / usual, 1.2 / usual, 0.4 / 1.2]) and np.isnan(found[5, 0]) and np.isnan(found[4, 1])
    shuffled = np.random.default_rng(0).permutation(7)
    assert np.allclose(handmade._beat_rhythm(record[shuffled], np.full(7, "s"), beat_s[shuffled]), found[shuffled], equal_nan=True)


def test_the_sources_of_the_benchmark_are_named_and_absent_ones_told(tmp_path):
    chosen, absent = benchmark.wanted(("synthetic", "mitbih"), tmp_path, "tiny")
    assert [s.name for s in chosen] == ["synthetic"] and "mitbih" in absent[0]
    with pytest.raises(ValueError, match="no source 'mit'"):
        benchmark.wanted(("mit",), Path("."), "tiny")


@pytest.mark.parametrize(("notch_hz", "left"), [(None, 0.9), (50.0, 0.1)])
def test_a_recording_is_filtered_as_the_models_windows_were(notch_hz, left):
    """Hum of 50 Hz stays in the windows of a model that was trained with it, and leaves those of one that was not."""
    contract = InputContract(channels=("II",), units=("mV",), fs=250.0, window_s=10.0, band=(0.5, 100.0), notch_hz=notch_hz, kind="ecg")
    t_T = np.arange(5000) / 250
    hum_CT = np.sin(2 * np.pi * 50 * t_T)[None].astype(np.float32)
    recording = Recording(fs=250.0, channels=("II",), units=("mV",), n_samples=5000, subject="", record="r", reader=lambda start, stop: hum_CT[:, start:stop])
    fitted = timeline.arrange(recording, contract, hop_s=10.0, leads={})
    (_, x_NCT), *_ = timeline.windows(fitted)
    amplitude = np.abs(2 * (x_NCT[0, 0] * np.exp(-2j * np.pi * 50 * t_T[:2500])).mean())
    assert (amplitude > left) if notch_hz is None else (amplitude < left)
    assert ("notch: 50 Hz" in fitted.steps) == (notch_hz is not None)
