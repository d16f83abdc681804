"""What a saved read-out says of whom it was fitted on and what its score is of, and how a fine-tuned one is chosen."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import compose
import downstream
import evaluate
import finetune
import prepare
import probe
import rows
from encoders import Origin
from physio_data.arrays import write_store
from physio_data.corpora.contract import TaskSpec
from physio_data.store import Store
from physio_models.himae import HiMaeConfig
from physio_models.pretrained import from_pretrained
from physio_train import metrics, readouts
from physio_train import predictions as prediction_files
from physio_train.folds import FoldSpec
from questions import question_of
from rows import Job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def store(folder):
    prepare.main(["synthetic", "--out", str(folder / "store"), "--option", "n_subjects", "24", "minutes", "0.5"])
    return Store(folder / "store")


@pytest.fixture(scope="module")
def fitted(folder, store):
    """A probe of an untrained encoder whose head was fitted on half of the subjects, and which of the windows are theirs."""
    who = np.unique(store.index["subject"])[::2]
    of_them_N = np.isin(store.index["subject"], who)
    halves = {"train": of_them_N, "test": ~of_them_N}
    for name, part_N in halves.items():
        copied(store, folder / name, part_N)
    with pytest.MonkeyPatch.context() as few:
        few.setattr(readouts, "N_TREES", 5)
        few.setattr(readouts, "N_ROUNDS", 3)
        sides = ["--train", str(folder / "train"), "--test", str(folder / "test"), "--twins", "0", "--jobs", "1"]
        probe.main(["--model", "himae", "--size", "tiny", "--task", "pvc", *sides, "--out", str(folder / "probe")])
    return folder / "probe", of_them_N


def copied(store, path, rows_N, classes=("no PVC", "PVC"), *, swap=False):
    """Windows of a store with their pvc labels as a store of its own; with ``swap`` 0 and 1 change places."""
    rows_N = np.flatnonzero(rows_N)
    y_N = store.label("pvc")[rows_N]
    write_store(
        path,
        store.batch(rows_N)["signal"],
        fs=store.fs,
        channels=list(store.channels),
        units=list(store.units),
        subject=store.index["subject"][rows_N].tolist(),
        start_s=store.index["start_s"][rows_N],
        labels={"pvc": 1 - y_N if swap else y_N},
        tasks={"pvc": TaskSpec(kind="binary", classes=classes)},
        band=tuple(store.manifest["band"]),
        kind=store.kind,
    )
    return path


def scored(ckpt, data, out, *more):
    """The summary of evaluate.py with its notes and predictions."""
    shutil.rmtree(out, ignore_errors=True)
    summary = evaluate.main(["--ckpt", str(ckpt), "--data", str(data), "--task", "pvc", "--out", str(out), *more])
    return summary, json.loads((out / "table.json").read_text())["notes"], prediction_files.read(out / "predictions.csv")


def without(ckpt, out, *keys):
    """A copy of a probe's folder as one written before `head.json` said these things."""
    shutil.copytree(ckpt, out)
    meta = json.loads((out / "head.json").read_text())
    for key in keys:
        del meta["more"][key]
    (out / "head.json").write_text(json.dumps(meta))
    return out


# Whom a head was fitted on


def test_windows_of_people_that_the_head_was_fitted_on_make_a_table_transductive(fitted, store, folder):
    ckpt, of_them_N = fitted
    summary, notes, _ = scored(ckpt, store.path, folder / "e")
    expected = f"{of_them_N.sum()} windows of 12 subjects that the head was fitted on"
    assert summary["heading"] == "transductive" and expected in notes
    summary, notes, _ = scored(ckpt, folder / "test", folder / "e")
    assert summary["heading"] == "inductive" and not any("fitted on" in note for note in notes)
    evaluate.main(["robustness", "--ckpt", str(ckpt), "--data", str(store.path), "--snr-db", "10", "--rates-hz", "10", "--out", str(folder / "r")])
    table = json.loads((folder / "r" / "table.json").read_text())
    assert table["heading"] == "transductive" and expected in table["notes"]


def test_the_encoder_of_a_probe_still_says_what_pretraining_alone_saw(fitted, folder):
    ckpt, _ = fitted
    assert from_pretrained(ckpt).seen == {"stores": [], "subjects": []}
    saved, train = downstream.load(ckpt), Store(folder / "train")
    assert saved.fitted == {"stores": [train.hash], "subjects": np.unique(train.index["subject"]).tolist()} and saved.seen == saved.fitted


def test_a_folder_that_does_not_say_whom_it_was_fitted_on_is_never_inductive(fitted, folder):
    old = without(fitted[0], folder / "older", "fitted", "labels")
    summary, notes, _ = scored(old, folder / "test", folder / "e")
    assert summary["heading"] == "transductive" and "whom the head was fitted on is not written down" in notes
    assert any("does not say what 0 and 1" in note for note in notes)


def test_a_row_is_named_by_what_the_encoder_was(fitted, folder):
    _, _, found = scored(fitted[0], folder / "test", folder / "e")
    assert found.rows == ("untrained",)
    trained = without(fitted[0], folder / "trained", "untrained")
    _, _, found = scored(trained, folder / "test", folder / "e")
    assert found.rows == ("pretrained",)
    _, _, found = scored(trained, folder / "test", folder / "e", "--row", "mine")
    assert found.rows == ("mine",)
    with pytest.raises(ValueError, match="untrained and pretrained"):
        evaluate.main(["--ckpt", str(fitted[0]), str(trained), "--data", str(folder / "test")])


def test_a_fine_tuned_encoder_has_seen_what_it_was_tuned_on(store, folder):
    question = asked(store)
    train, held = np.arange(0, 40), np.arange(40, 60)
    before = {"stores": ["earlier"], "subjects": ["somebody"]}
    tuned = tune(store, question, train, held, seen=before, n_epochs=1)
    ckpt = downstream.save_tuned(folder / "tuned", tuned)
    own = set(store.index["subject"][:60][store.label("pvc")[:60] >= 0])
    assert set(downstream.load(ckpt).fitted["subjects"]) == own
    assert from_pretrained(ckpt).seen == {"stores": ["earlier", store.hash], "subjects": sorted({"somebody", *own})}
    summary, notes, found = scored(ckpt, store.path, folder / "e")
    n = np.isin(store.index["subject"], list(own)).sum()
    assert summary["heading"] == "transductive" and f"{n} windows of {len(own)} subjects that the head was fitted on" in notes
    assert found.rows == ("pretrained",)
    unknown = downstream.save_tuned(folder / "tuned2", tune(store, question, train, held, n_epochs=1))
    assert from_pretrained(unknown).seen is None and downstream.load(unknown).seen is None
    from_scratch = downstream.save_tuned(folder / "tuned3", tune(store, question, train, held, untrained=True, n_epochs=1))
    assert downstream.load(from_scratch).row == "from scratch"


# What 0 and 1 are


def test_classes_the_other_way_round_turn_the_score(fitted, store, folder):
    test_N = ~fitted[1]
    same, _, found = scored(fitted[0], folder / "test", folder / "e")
    path = copied(store, folder / "turned", test_N, ("PVC", "no PVC"), swap=True)
    turned, notes, other = scored(fitted[0], path, folder / "e")
    y_N = store.label("pvc")[test_N]
    assert found.scores["pvc"] + other.scores["pvc"] == pytest.approx(1.0) and np.array_equal(other.labels["pvc"], 1 - y_N)
    assert turned["AUROC"] == pytest.approx(metrics.auroc(y_N, found.scores["pvc"])) == pytest.approx(same["AUROC"])
    assert any("turned to be of no PVC" in note for note in notes)
    table = evaluate.main(["robustness", "--ckpt", str(fitted[0]), "--data", str(path), "--snr-db", "10", "--rates-hz", "10"])
    assert table["AUROC"]["as it is"] == pytest.approx(same["AUROC"])


def test_a_turned_score_crosses_its_turned_threshold_where_the_score_did_not(fitted, store, folder):
    saved = downstream.load(fitted[0])
    path = copied(store, folder / "turned2", ~fitted[1], ("PVC", "no PVC"), swap=True)
    turned, _ = downstream.facing(saved, Store(path), downstream.Task(name="pvc"))
    s = downstream.predict(saved, Store(path), np.arange(20))[:, 0]
    t = downstream.predict(turned, Store(path), np.arange(20))[:, 0]
    assert np.array_equal(t >= turned.threshold_K[0], s < saved.threshold_K[0])


def test_classes_of_other_names_need_a_label_map(fitted, store, folder, tmp_path):
    same, _, _ = scored(fitted[0], folder / "test", folder / "e")
    path = copied(store, folder / "named", ~fitted[1], ("ectopic", "regular"), swap=True)
    with pytest.raises(ValueError, match=r"'no PVC' \(0\) from 'PVC' \(1\).*'ectopic' from 'regular'.*--label-map"):
        scored(fitted[0], path, folder / "e")
    (tmp_path / "m.csv").write_text("source,target\nno PVC,regular\nPVC,ectopic\n")
    mapped, notes, _ = scored(fitted[0], path, folder / "e", "--label-map", str(tmp_path / "m.csv"))
    assert mapped["AUROC"] == pytest.approx(same["AUROC"]) and "label map m.csv: no PVC is regular, PVC is ectopic" in notes
    (tmp_path / "task.csv").write_text("source,target\npvc,pvc\n")
    straight, _, _ = scored(fitted[0], path, folder / "e", "--label-map", str(tmp_path / "task.csv"))
    assert straight["AUROC"] == pytest.approx(1 - same["AUROC"]), "a map of the task's own name takes the score as it is"


def test_a_store_that_names_no_classes_is_scored_with_a_note(fitted, store, folder):
    path = copied(store, folder / "nameless", ~fitted[1], ())
    same, _, _ = scored(fitted[0], folder / "test", folder / "e")
    summary, notes, _ = scored(fitted[0], path, folder / "e")
    assert summary["AUROC"] == same["AUROC"] and any(note.startswith("the store does not say what 0 and 1") for note in notes)


# How a fine-tuned model is chosen


def asked(store):
    return question_of(store, (store.path,), store.rows(), compose.ReadOut(task="pvc"))


def tune(store, question, train, held, *, seen=None, untrained=False, n_epochs=4, **more):
    torch.manual_seed(0)
    cfg = compose.fit_model_to(probe.plain_config(HiMaeConfig(n_channels=1, n_samples=250, widths=(4, 8)), "lead_zscore"), store)
    encoder = downstream.Encoder(cfg.model.build().eval(), compose.contract_of(cfg, store), name="himae", config=cfg.model, seen=seen, untrained=untrained)
    return downstream.tune(encoder, store, question, train, held, downstream.TuneConfig(n_epochs=n_epochs, batch_size=16, **more), 0)


def passes(monkeypatch, run):
    """Every score that validation made while ``run`` was trained, and what it gave back."""
    seen, real = [], downstream.predict
    monkeypatch.setattr(downstream, "predict", lambda *args: seen.append(real(*args)) or seen[-1])
    tuned = run()
    monkeypatch.setattr(downstream, "predict", real)
    return seen, tuned


def test_a_validation_side_of_one_class_keeps_the_last_pass_and_says_so(store, monkeypatch):
    question = asked(store)
    y, who = question.windows.y, question.windows.subject
    held = np.flatnonzero(np.isin(who, [name for name in np.unique(who) if not (y[who == name] == 1).any()][:4]))
    train = np.setdiff1d(np.arange(len(y)), held)
    seen, tuned = passes(monkeypatch, lambda: tune(store, question, train, held))
    last = tune(store, question, train, np.zeros(0, np.int64), keep="last")
    rows_N = question.rows_N
    assert np.array_equal(downstream.predict(tuned, store, rows_N), downstream.predict(last, store, rows_N)), "as if nothing had been held out to choose by"
    assert not seen and tuned.threshold_K == [0.5] and tuned.notes == (downstream.UNCHOSEN,)
    assert last.notes == ()


def test_a_validation_side_of_two_classes_keeps_its_best_pass(store, monkeypatch):
    question = asked(store)
    held = np.flatnonzero(np.isin(question.windows.subject, np.unique(question.windows.subject)[:8]))
    train, y_held = np.setdiff1d(np.arange(len(question.windows)), held), question.windows.y[held]
    assert set(y_held) == {0, 1}
    seen, tuned = passes(monkeypatch, lambda: tune(store, question, train, held))
    figures = [metrics.auroc(y_held, score_NK[:, 0]) for score_NK in seen]
    final = downstream.predict(tuned, store, question.rows_N[held])
    assert len(seen) == 4 and final == pytest.approx(seen[int(np.argmax(figures))], abs=1e-7) and tuned.notes == ()


def test_rows_without_a_validation_side_are_told_in_the_table(store):
    question = asked(store)
    y, who = question.windows.y, question.windows.subject
    ill = [name for name in np.unique(who) if (y[who == name] == 1).any()]
    train = np.flatnonzero(~np.isin(who, ill[1:]))  # one person has all the positive windows
    spec = FoldSpec(seed=0, repeat=0, fold=0, train=train, test=np.flatnonzero(np.isin(who, ill[1:])))
    both = replace(spec, train=np.flatnonzero(~np.isin(who, ill[4:])))
    job = Job(row="finetuned", source="encoder", specs=(spec, both), question=question, encoder=Origin(), tuned=downstream.TuneConfig())
    assert finetune.notes_of([job]) == [f"finetuned: in 1 of 2 folds {downstream.UNCHOSEN}"]
    assert finetune.notes_of([replace(job, specs=(spec,))]) == [f"finetuned: {downstream.UNCHOSEN}"]
    assert finetune.notes_of([replace(job, specs=(both,)), replace(job, tuned=replace(job.tuned, keep="last"))]) == []
    few = finetune.notes_of([replace(job, specs=(both,), fraction=0.5, tuned=None)])
    assert few == ["twin, handcrafted and leak read the labels of all training subjects, also beside rows with a share of them (%)"]
    train, held = rows.sides(job, both)
    assert np.array_equal(np.sort(np.concatenate([train, held])), both.train)
    assert set(y[held]) == {0, 1} and not set(who[held]) & set(who[np.setdiff1d(both.train, held)])
    part = replace(job, question=replace(question, validation=held))
    assert np.array_equal(rows.sides(part, both)[1], held)


def test_a_label_that_validation_has_one_class_of_gets_a_threshold_of_one_half_and_a_note():
    task = downstream.Task(name="findings", kind="multilabel", classes=("a", "b", "c"))
    y = np.array([[0, 0, -1], [1, 0, -1], [-1, 0, 1]])
    assert downstream.can_choose(task, y) and downstream.one_sided(task, y) == ["b", "c"]
    assert downstream.notes_of(task, y) == ("the threshold is 0.5 for b, c, of which the validation side has one class",)
    assert downstream.notes_of(task, y[:1]) == (downstream.UNCHOSEN,) == downstream.notes_of(task, y[:0])
    number = downstream.Task(name="age", kind="regression")
    assert downstream.can_choose(number, np.array([np.nan, 3.0])) and not downstream.can_choose(number, np.array([np.nan]))
    beats = downstream.Task(name="beats", kind="multiclass", classes=("N", "S", "V"))
    assert downstream.notes_of(beats, np.array([0, 2, -1])) == () and downstream.notes_of(beats, np.array([1, 1])) == (downstream.UNCHOSEN,)


def test_thresholds_of_several_labels_are_those_of_validation_where_it_can_choose(store):
    question = asked(store)
    y = np.stack([question.windows.y, (np.arange(len(question.windows)) < 10).astype(int)], axis=1)
    task = downstream.Task(name="pvc", kind="multilabel", classes=("pvc", "early"))
    many = replace(question, task=task, windows=replace(question.windows, y=y))
    held = np.arange(40, 72)
    tuned = tune(store, many, np.arange(40), held)
    score = downstream.predict(tuned, store, question.rows_N[held])[:, 0]
    f1 = [2 * (y[held, 0] * (score >= t)).sum() / (y[held, 0].sum() + (score >= t).sum()) for t in score]
    assert tuned.threshold_K[1] == 0.5 and tuned.notes[0].startswith("the threshold is 0.5 for early")
    at = 2 * (y[held, 0] * (score >= tuned.threshold_K[0] - 1e-9)).sum() / (y[held, 0].sum() + (score >= tuned.threshold_K[0] - 1e-9).sum())
    assert at == pytest.approx(max(f1))
