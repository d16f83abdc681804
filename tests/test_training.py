"""The fit part of pretraining on real stores: what is logged, when it stops, what it leaves, and the rules over every network."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import compose
import console
import prepare
import pretrain
import training
from physio_models import MODELS, resolve
from physio_models.cwt import cwt
from physio_train import FitConfig, NonFiniteLossError, Streams
from physio_train.optimizer import build
from physio_train.parameters import layers_below_top, rules, trained

APPS = Path(compose.__file__).parent
SMALL = ["--size", "tiny", "--no-table", "--fit.n-steps", "6", "--fit.batch-size", "16", "--fit.checkpoint-every", "3", "--fit.validate-every", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def stores(folder):
    """Two small cohorts of other subjects."""
    out = []
    for seed, n in ((0, 24), (1, 12)):
        out.append(folder / f"store{seed}")
        prepare.main(["synthetic", "--out", str(out[-1]), "--option", "n_subjects", str(n), "minutes", "0.5", "seed", str(seed)])
    return out


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_each_line_of_the_log_says_how_training_costs_and_fares(here, stores):
    flags = ["--log-every", "2", "--health-windows", "16", "--fit.validate-items", "20", "--fit.peak-flops", "1e12"]
    pretrain.main([*SMALL, *flags, "--data", str(stores[0]), "--out", "logged"])
    trained_lines = [line for line in lines(here / "logged") if "lr" in line]
    assert [line["step"] for line in trained_lines] == [2, 4, 6]
    wanted = {"loss", "lr", "grad_norm", "samples_per_s", "data_wait", "mfu", "memory_gib", "feature_std", "effective_rank"}
    assert all(wanted <= line.keys() for line in trained_lines)
    assert all(0 < line["mfu"] < 1 and 0 <= line["data_wait"] < 1 and 1 <= line["effective_rank"] <= 16 for line in trained_lines)


def test_validation_reads_at_most_so_many_windows_spread_over_the_fold():
    rows = np.arange(100, 150)
    assert compose.spread(rows, None).tolist() == rows.tolist() == compose.spread(rows, 99).tolist()
    assert compose.spread(rows, 5).tolist() == [100, 110, 120, 130, 140]


def test_a_run_that_gets_no_better_stops_early(here, stores, monkeypatch):
    values = iter([0.5, 0.4, 0.45, 0.6, 0.1])
    monkeypatch.setattr(training, "validate", lambda *_, **__: {"loss": next(values)})
    flags = [*SMALL, "--fit.n-steps", "30", "--fit.validate-every", "2", "--fit.patience", "2"]
    summary = pretrain.main([*flags, "--data", str(stores[0]), "--out", "early"])
    assert (summary["steps"], summary["best_step"], summary["stopped_early"]) == (8, 4, True)
    assert {path.name for path in (here / "early/checkpoints").iterdir()} >= {"step_4", "step_8"}, "the best and the last stay"


def test_windows_of_a_step_that_was_not_finite_are_in_the_run_folder(here, stores, monkeypatch):
    real = compose.build_model
    monkeypatch.setattr(compose, "build_model", lambda cfg, seed: _poisoned(real(cfg, seed)))
    monkeypatch.setattr(training, "metered", lambda cfg, made: training.Meter())
    with pytest.raises(console.Failed, match="not finite at step 1 "):
        pretrain.main([*SMALL, "--health-windows", "0", "--data", str(stores[0]), "--out", "nan"])
    found = json.loads((here / "nan/non_finite_step_1_rank_0.json").read_text())
    assert len(found["indices"]) == 16 and found["what"] == "loss"
    assert not list((here / "nan").glob("checkpoints/step_*"))


def _poisoned(model):
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143)])
def test_sigterm_saves_and_exits_with_its_own_code(here, stores, number, code):
    command = [sys.executable, APPS / "pretrain.py", *SMALL, "--fit.n-steps", "100000", "--data", stores[0], "--out", "terminated"]
    process = subprocess.Popen(list(map(str, command)), cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics, deadline = here / "terminated/metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "--resume terminated" in err and "Traceback" not in err
    saved = sorted(int(path.name[5:]) for path in (here / "terminated/checkpoints").glob("step_*"))
    assert f"saved step {saved[-1]} of" in err


def test_several_stores_come_in_their_proportions_and_resume_exactly(here, stores):
    flags = [*SMALL, "--data", str(stores[0]), str(stores[1]), "--mix", "1", "3", "--fit.schedule", "constant"]
    pretrain.main([*flags, "--out", "mixed"])
    pretrain.main([*flags, "--out", "cut", "--fit.n-steps", "3"])
    pretrain.main(["--resume", "cut", "--no-table", "--fit.n-steps", "6"])
    for name in ("model.safetensors", "state.safetensors"):
        assert (here / "mixed/checkpoints/step_6" / name).read_bytes() == (here / "cut/checkpoints/step_6" / name).read_bytes()
    both = compose.open_stores(stores)
    cfg = replace(compose.recipe("himae_ppg", "tiny"), mix=(1.0, 3.0))
    rows = compose.rows_of(both, ("train",))
    batches = compose.parts(compose.fit_model_to(cfg, both), both, rows, rows[:0]).batches
    drawn = np.concatenate([next(batches)["index"].numpy() for _ in range(batches.steps_per_epoch)])
    assert (drawn >> 48).mean() == pytest.approx(0.75, abs=0.05)
    with pytest.raises(ValueError, match="3 shares for 2 stores"):
        compose.order_of(replace(cfg, mix=(1.0, 1.0, 1.0)), both)


def test_stretches_are_cut_from_the_windows_at_places_drawn_anew(here, stores):
    store = compose.open_stores(stores[:1])
    cfg = compose.fit_model_to(replace(compose.recipe("himae_ppg", "tiny"), crop_s=5.0, normalization="none", shift=False), store)
    cfg = replace(cfg, fit=replace(cfg.fit, batch_size=16))
    rows = compose.rows_of(store, ("train",))
    made = compose.parts(cfg, store, rows, rows[:8])
    batch = next(made.batches)
    n = round(5.0 * store.fs)
    whole = {int(i): w for i, w in zip(rows, store.batch(rows)["signal"], strict=True)}
    found = []
    for index, piece in zip(batch["index"].tolist(), batch["signal"].numpy(), strict=True):
        places = [at for at in range(store.n_samples - n + 1) if np.allclose(whole[index][:, at : at + n], piece, atol=1e-5)]
        assert places
        found.append(places[0])
    assert len(set(found)) > 5 and cfg.model.n_samples == n and compose.contract_of(cfg, store).window_s == 5.0
    first, again = (next(iter(made.validation.one_epoch()))["signal"] for _ in range(2))
    assert torch.equal(first, again), "validation stretches never change"
    with pytest.raises(ValueError, match="crop_s=99"):
        compose.crop_samples(replace(cfg, crop_s=99.0), store)


def test_classes_are_weighed_by_their_inverse_frequency_clipped(stores):
    from physio_models.objectives.supervised import Supervised, class_weights

    store = compose.open_stores(stores[:1])
    cfg = replace(compose.recipe("papagei", "tiny"), objective=Supervised(), class_weights=True, probe=compose.ReadOut(task="pvc"))
    rows = compose.rows_of(store, ("train",))
    label = np.asarray(store.label("pvc"))[rows]
    objective = compose.objective_of(cfg, store, rows)
    assert objective.class_counts == ((label == 0).sum(), (label == 1).sum())
    assert list(class_weights((9990, 10))) == pytest.approx([0.1, 2 * 999 / 1000])
    with pytest.raises(ValueError, match="learns labels"):
        compose.objective_of(replace(compose.recipe("himae_ppg", "tiny"), class_weights=True), store, rows)


def test_the_log_says_where_accumulation_is_not_the_whole_batch():
    cfg = compose.recipe("himae_ppg", "tiny")
    made = compose.Parts(nn.Sequential(nn.BatchNorm1d(1)), cfg.objective, None, None)
    assert training.caveats(cfg, made) == []
    (said,) = training.caveats(replace(cfg, fit=replace(cfg.fit, accumulate=2)), made)
    assert "batch normalisation" in said
    cfg = compose.recipe("cwt_mae_contrastive", "tiny")
    made = compose.Parts(nn.Sequential(nn.LayerNorm(1)), cfg.objective, None, None)
    (said,) = training.caveats(replace(cfg, fit=replace(cfg.fit, accumulate=2)), made)
    assert "negatives" in said


@pytest.mark.parametrize("name", MODELS)
def test_the_rules_of_the_optimiser_cover_every_parameter_of_every_network(name):
    """Layer-wise decay forgets nothing and falls towards the input; decay spares norms, biases, tokens, tables and state-space parameters."""
    config = resolve(MODELS, name).preset("tiny")
    model = config.build()
    below, named = layers_below_top(model), dict(model.named_parameters())
    assert below.keys() == named.keys()
    first = next((name for name, m in model.named_modules() if isinstance(m, nn.ModuleList)), None)
    stack = [key for key in named if key.startswith(f"{first}.")]
    layers = {int(key[len(first) + 1 :].split(".")[0]): below[key] for key in stack}
    assert [layers[i] for i in sorted(layers)] == sorted(layers.values(), reverse=True) and min(layers.values()) >= 1
    nothing = nn.ModuleDict()
    rule_of = rules(model, nothing)
    given = trained(model, nothing)
    optimizer = build(FitConfig(n_steps=1, layer_decay=0.7, weight_decay=0.1), given, rule_of)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in given.values()), "each parameter in one group"
    owner = {f"{prefix}.{leaf}".lstrip("."): m for prefix, m in model.named_modules() for leaf, _ in m.named_parameters(recurse=False)}
    spared = ("LayerNorm", "RMSNorm", "BatchNorm1d", "GroupNorm", "Embedding")
    for key, parameter in named.items():
        if parameter.ndim < 2 or type(owner[key]).__name__ in spared or key.split(".")[-1] not in ("weight", "in_proj_weight"):
            assert not rule_of.get(f"model/{key}") or not rule_of[f"model/{key}"].decayed, key
    muon = {key for key, rule in rule_of.items() if rule.kind == "muon"}
    assert all(named[key.removeprefix("model/")].ndim == 2 for key in muon)


def test_a_failure_that_was_not_finite_holds_what_was_found():
    error = NonFiniteLossError("loss", {"step": 3, "indices": [1]})
    assert error.found["indices"] == [1] and str(error) == "loss"


def test_windows_that_carry_labels_are_not_shifted(stores):
    """Between two windows there is no label: the training windows of labelled objectives are the store's own."""
    cfg = compose.swap(compose.recipe("himae_ppg", "tiny"), model="resnet1d", objective="supervised", size="tiny")
    store = compose.open_stores(stores[:1])
    cfg = compose.fit_model_to(replace(cfg, normalization="none", probe=replace(cfg.probe, task="pvc")), store)
    rows = np.arange(len(store))
    for batch in compose.parts(cfg, store, rows, rows[:0]).batches.one_epoch():
        kept = batch["index"].numpy()
        np.testing.assert_array_equal(batch["signal"].numpy(), store.batch(kept)["signal"])
        np.testing.assert_array_equal(batch["label"].numpy(), store.label("pvc")[kept])
    with pytest.raises(ValueError, match="--no-shift"):
        compose.parts(replace(cfg, shift=True), store, rows, rows[:0])
    for name in compose.recipe_names():
        for size in ("tiny", "fast", "reference"):
            cfg = compose.recipe(name, size)
            assert not (isinstance(cfg, compose.PretrainConfig) and cfg.shift and "label" in compose.needs_of(cfg)), name


def test_wavelets_answer_to_the_frequencies_they_are_named_by(stores):
    """A sine of the store's own rate stands out in the row whose `scale_hz` is nearest to it."""
    store = compose.open_stores(stores[:1])
    cfg = compose.fit_model_to(compose.recipe("cwt_mae_v3", "fast"), store).model
    assert cfg.fs == store.fs == 25.0 and cfg.band_hz == (0.5, 11.25)
    for hz in (0.8, 1.5, 3.0):
        t_T = np.arange(cfg.n_samples) / store.fs
        sine = torch.from_numpy(np.sin(2 * np.pi * hz * t_T)).float()
        power_S = cwt(sine, cfg.scales, wavelet=cfg.wavelet, definition=cfg.definition).abs()[:, 50:-50].square().mean(-1)
        gain_S = power_S / torch.tensor(cfg.scales)  # a wavelet of unit energy answers by the root of its scale
        answers = cfg.scale_hz[int(gain_S.argmax())]
        assert 0.7 < answers / hz < 1.4, (hz, answers)


def test_lost_leads_and_short_tails_stay_out_of_what_training_reads():
    x_BCT = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 1250)).astype(np.float32))
    present_BC = torch.tensor([[True, True, False], [True, True, True]])
    valid_BT = torch.ones(2, 1250, dtype=torch.bool)
    valid_BT[1, 700:] = False
    x_BCT[0, 2], x_BCT[1, :, 700:] = 50.0, 0.0
    batch = {"signal": x_BCT, "index": torch.arange(2), "valid": valid_BT, "channel_present": present_BC}
    out = compose.ShiftAndNormalize("instance_zscore", 125.0)(batch, Streams(0, 0))
    first = x_BCT[0, :2].double().numpy()
    np.testing.assert_allclose(out["signal"][0, :2].numpy(), (first - first.mean()) / first.std(), atol=1e-4)
    assert not out["signal"][0, 2].any()
    assert torch.isnan(out["aux"][1]).all() and torch.isfinite(out["aux"][0]).any()
