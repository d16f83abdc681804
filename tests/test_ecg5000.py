"""The study of a series archive: folds that share nothing, models that a test file is scored with, and figures that are plain counts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import compose
import downstream
import ecg5000
import evaluate
import prepare
import probe
from physio_data.store import Store
from physio_train import predictions as prediction_files

CLASSES = ("1", "2", "3")


def write_set(folder, name, n, seed, fold):
    """Bumps early, late or none, as a file of the archive has them: the class, then samples, split by tabs."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    at = np.where(y == 0, 15, 45)[:, None]
    x = 2 * np.exp(-0.5 * ((np.arange(60) - at) / 3) ** 2) * (y < 2)[:, None] + 0.3 * rng.normal(size=(n, 60))
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / f"{name}_{fold}.tsv", np.column_stack([y + 1, x]), delimiter="\t", fmt=["%d"] + ["%.6f"] * 60)
    return x, y


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    x, y = write_set(folder / "Bumps", "Bumps", 45, 0, "TRAIN")
    prepare.main(["ucr", "--root", str(folder / "Bumps"), "--split", "official", "--out", str(folder / "train")])
    flags = ["--data", str(folder / "train"), "--out", str(folder / "run"), "--size", "tiny", "--seeds", "2", "--folds", "3"]
    done = ecg5000.main([*flags, "--rows", "ti_mae cls", "minirocket", "linear"])
    return folder, flags, done, x, y


def test_every_row_is_scored_on_series_that_it_never_saw_and_goes_on_where_it_was(study, monkeypatch):
    folder, flags, done, _, y = study
    assert done["accuracy"]["minirocket"] > 0.9 and set(done["accuracy"]) == {"ti_mae cls", "minirocket", "linear"}
    files = sorted((folder / "run" / "cells" / "ti_mae_cls").glob("seed0_*.csv"))
    found = prediction_files.concatenate([prediction_files.read(file) for file in files])
    assert sorted(found.record.astype(int)) == list(range(45))
    labels = np.stack([found.labels[c] for c in CLASSES], 1).argmax(1)
    assert (labels == y[found.record.astype(int)]).all()
    for fold, encoder in enumerate(sorted((folder / "run" / "encoders").glob("*/seed0_fold?"))):
        seen = set(json.loads((encoder / "seen.json").read_text())["subjects"])
        tested = {f"ucr:Bumps:train-{record}" for record in prediction_files.read(files[fold]).record}
        assert len(seen) == 45 - len(tested) and not seen & tested
    files[0].unlink()
    made = []
    monkeypatch.setattr(ecg5000, "cell", lambda *a, cell=ecg5000.cell: (made.append(a[0]), cell(*a))[1])
    again = ecg5000.main([*flags, "--rows", "ti_mae cls", "minirocket", "linear"])
    assert made == ["ti_mae cls"] and again["accuracy"] == done["accuracy"]
    with pytest.raises(ValueError, match="choose another --out"):
        ecg5000.main([*flags[:-1], "4"])


def test_a_test_file_is_scored_by_all_seeds_and_counted_plainly(study):
    folder, _, _, _, _ = study
    _, y = write_set(folder / "Other", "Bumps", 24, 7, "TEST")
    (folder / "Other" / "Bumps_TRAIN.tsv").write_bytes((folder / "Bumps" / "Bumps_TRAIN.tsv").read_bytes())
    prepare.main(["ucr", "--root", str(folder / "Other"), "--split", "official", "--out", str(folder / "both")])
    models = [str(folder / "run" / "models" / f"ti_mae_cls-seed{seed}") for seed in range(2)]
    scored = ["--data", str(folder / "both"), "--use", "test", "--against", "1", "--predictions", str(folder / "p.csv")]
    done = evaluate.main(["--ckpt", *models, "--together", *scored])
    found = prediction_files.read(folder / "p.csv")
    assert done["heading"] == "inductive by recording, subjects unknown" and len(found) == 3 * 24
    for seed in range(2):
        one = found.take((found.row == "pretrained") & (found.seed == seed))
        call = np.stack([one.scores[c] for c in CLASSES], 1).argmax(1)[np.argsort(one.record.astype(int))]
        assert done["calls"]["pretrained"]["accuracy"][seed] == pytest.approx((call == y).mean(), abs=1e-6)
        assert done["calls"]["pretrained"]["accuracy of 1 against the rest"][seed] == pytest.approx(((call == 0) == (y == 0)).mean(), abs=1e-6)
    mean = found.take(found.row == "pretrained, 2 together").scores["2"]
    parts = [found.take((found.row == "pretrained") & (found.seed == seed)).scores["2"] for seed in range(2)]
    assert mean == pytest.approx((parts[0] + parts[1]) / 2)
    rocket = evaluate.main(["--ckpt", str(folder / "run" / "models" / "minirocket-seed0"), "--row", "minirocket", *scored])
    assert rocket["calls"]["minirocket"]["accuracy"][0] > 0.9
    with pytest.raises(ValueError, match="no class of the task"):
        evaluate.main(["--ckpt", models[0], *scored[:4], "--against", "normal"])
    with pytest.raises(ValueError, match="several models"):
        evaluate.main(["--ckpt", models[0], "--together", *scored])


def test_a_model_that_keeps_the_last_pass_trains_on_all_of_it(study):
    folder, _, _, _, _ = study
    store = Store(folder / "train")
    question = ecg5000.question_of(store, (folder / "train",), store.rows(), compose.ReadOut(task="class"))
    row = ecg5000.fitted_to(ecg5000.networks("tiny")["ti_mae avg"], store)
    encoder = ecg5000.Encoder(row.model.build(), compose.contract_of(ecg5000.config(row, 0), store), name="ti_mae", config=row.model)
    train, held, rows = np.arange(30), np.arange(30, 45), []

    class Noting(Store):
        def batch(self, indices):
            rows.extend(np.atleast_1d(indices).tolist())
            return super().batch(indices)

    noting = Noting(folder / "train")
    tuned = downstream.tune(encoder, noting, question, train, held, replace(row.tune, max_steps=6, n_epochs=6, batch_size=15), 0)
    assert set(rows) >= set(range(45)) and np.isnan(tuned.threshold_K).all()
    rows.clear()
    downstream.tune(encoder, noting, question, train, np.zeros(0, np.int64), replace(row.tune, max_steps=6, n_epochs=6, batch_size=15), 0)
    assert set(rows) == set(range(30))
    best = downstream.tune(encoder, noting, question, train, np.zeros(0, np.int64), replace(row.tune, max_steps=2, keep="best"), 0)
    assert best.notes == (downstream.UNCHOSEN,), "without a validation window nothing is chosen"
    with pytest.raises(ValueError, match="no training window"):
        downstream.tune(encoder, noting, question, np.zeros(0, np.int64), held, replace(row.tune, keep="best"), 0)


def test_a_recording_of_nobody_named_leaves_the_training_side_too(tmp_path, capsys):
    for name, n in (("all", 45), ("some", 12)):
        write_set(tmp_path / name, "Bumps", n, 0, "TRAIN")
        prepare.main(["ucr", "--root", str(tmp_path / name), "--split", "official", "--out", str(tmp_path / f"store-{name}")])
    sides = ["--train", str(tmp_path / "store-all"), "--test", str(tmp_path / "store-some")]
    probe.main(["--model", "ti_mae", "--size", "tiny", *sides, "--twins", "0", "--jobs", "1"])
    assert "12 recordings are in both stores: their 12 windows left the training side" in capsys.readouterr().out


def test_the_row_without_pretraining_is_the_chosen_one_as_initialised(study, tmp_path):
    store = Store(study[0] / "train")
    question = ecg5000.question_of(store, (study[0] / "train",), store.rows(), compose.ReadOut(task="class"))
    known = ecg5000.networks("tiny")
    own, plain = known["ti_mae chosen"], known["ti_mae chosen, not pretrained"]
    assert replace(plain, n_steps=own.n_steps) == own and own.n_steps > 0
    spec = ecg5000.FoldSpec(seed=3, repeat=0, fold=0, train=np.arange(30), test=np.arange(30, 45))
    still = replace(ecg5000.fitted_to(plain, store), tune=replace(plain.tune, lr=1e-12, ema_decay=None))
    made = ecg5000.tuned(still, tmp_path, store, question, spec)
    assert made.untrained and not (tmp_path / "encoders").exists()
    initial = compose.build_model(ecg5000.config(still, 3), 3).state_dict()
    assert all(torch.allclose(value, initial[key], atol=1e-9) for key, value in made.encoder.model.state_dict().items())


def test_what_cannot_be_asked_is_named(study):
    flags = study[1]
    with pytest.raises(ValueError, match="no row 'ti_mea', did you mean"):
        ecg5000.main([*flags, "--rows", "ti_mea"])
    with pytest.raises(ValueError, match="--against be one of them"):
        ecg5000.main([*flags, "--against", "9"])
