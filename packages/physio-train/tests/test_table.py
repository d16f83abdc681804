"""The table: figures of the stored predictions, floors beside them, and never a NaN."""

import json

import numpy as np
import pytest

from physio_train import comparisons, metrics, statistics, table
from physio_train import predictions as pr

WHO = np.repeat(np.char.mod("s%02d", np.arange(16)), 20)


def run(row, strength, *, seed=0, repeat=0, y=None, subject=WHO, thresholds=True):
    rng = np.random.default_rng(0)
    y = (rng.random(320) < 0.3).astype(float) if y is None else y
    noise = np.random.default_rng([seed, repeat, 5]).normal(size=320)
    p = 1 / (1 + np.exp(-(strength * (y == 1) + noise)))
    place = {"subject": subject, "record": WHO, "start_s": np.tile(np.arange(20.0), 16)}
    return pr.make(
        row,
        {"pvc": p},
        labels={"pvc": y},
        seed=seed,
        repeat=repeat,
        fold=(np.arange(320) % 4).astype(str),
        thresholds={"pvc": 0.6} if thresholds else None,
        **place,
    )


def two_rows():
    return pr.concatenate([run("pretrained", 2, seed=s, repeat=r) for s in (0, 1) for r in (0, 1)] + [run("twin", 1, seed=s) for s in range(3)])


def test_cells_are_means_over_runs_with_intervals_and_paired_differences():
    found = table.score(two_rows(), heading="inductive", disjoint=True, notes=("a waiver",))
    runs = [run("pretrained", 2, seed=s, repeat=r).scores["pvc"] for s in (0, 1) for r in (0, 1)]
    twins = [run("twin", 1, seed=s).scores["pvc"] for s in range(3)]
    y = run("twin", 1).labels["pvc"]
    cells = found.row("pretrained").cells
    expected = statistics.cluster_bootstrap(metrics.auroc, y, runs, WHO)
    difference = statistics.paired_difference(metrics.auroc, y, runs, twins, WHO)
    assert (cells["AUROC"].value, cells["AUROC"].low, cells["AUROC"].high) == pytest.approx((expected.point, expected.low, expected.high))
    got = cells["difference"]
    assert (got.value, got.low, got.high) == pytest.approx((difference.point, difference.low, difference.high)) and got.low > 0
    for column, metric in {
        "AP": metrics.average_precision,
        "Brier": metrics.brier,
        "ECE": metrics.ece,
        "sens@spec.9": metrics.sensitivity_at_specificity,
    }.items():
        assert cells[column].value == pytest.approx(np.mean([metric(y, s) for s in runs]))
    assert cells["F1"].value == pytest.approx(np.mean([metrics.f1_at(y, s, threshold=0.6) for s in runs]))
    folds = [np.mean([metrics.auroc(y[f::4], s[f::4]) for f in range(4)]) for s in runs]
    assert cells["AUROC per fold"].value == pytest.approx(np.mean(folds))
    assert cells["AUROC per record"].value == pytest.approx(statistics.per_record_mean(y, runs, WHO)[0])
    assert found.row("leak").cells["AUROC"].word == "disjoint" and found.counts["positives"] == int(y.sum()) and "a waiver" in found.notes


def test_text_markdown_and_json_hold_no_nan_and_every_row():
    one_class = pr.concatenate([run("pretrained", 2, y=np.zeros(320)), run("twin", 1, y=np.zeros(320))])
    for predictions in (two_rows(), one_class, run("solo", 1, y=np.full(320, np.nan)), run("solo", 1, subject=np.full(320, ""))):
        found = table.score(predictions, disjoint=True)
        text = found.plain() + found.markdown() + json.dumps(found.to_json(), allow_nan=False)
        assert "nan" not in text.lower() and all(row in found.plain() for row in predictions.rows)
        assert "transductive" in found.title()


def test_a_csv_read_back_scores_the_same_but_for_f1(tmp_path):
    before, after = two_rows(), pr.read(pr.write(tmp_path / "p.csv", two_rows()))
    a, b = table.score(before), table.score(after)
    for row in ("pretrained", "twin"):
        for column in set(table.COLUMNS["binary"]) - {"F1"}:
            assert a.row(row).cells[column] == b.row(row).cells[column]
    assert b.row("twin").cells["F1"].value is None and "F1" not in b.columns and any("threshold" in note for note in b.notes)


def test_each_cell_of_the_twin_is_its_strongest_setting():
    settings = {"twin": {"as initialised": run("twin", 0.2), "unmasked": run("twin", 1)}}
    found = table.score(run("pretrained", 2), settings=settings)
    alone = table.score(run("twin", 1)).row("twin").cells
    assert found.row("twin").cells["AUROC"] == alone["AUROC"] and found.row("pretrained").cells["difference"].value > 0
    weak = table.score(run("twin", 0.2)).row("twin").cells
    assert found.row("twin").cells["ECE"].value == min(weak["ECE"].value, alone["ECE"].value)
    assert any("as initialised" in note and "unmasked" in note for note in found.notes)


def test_unknown_subjects_and_other_windows_are_said():
    assert any("subjects: unknown" in note for note in table.score(run("a", 1, subject=np.full(320, ""))).notes)
    shorter = pr.concatenate([run("pretrained", 2).take(np.arange(300)), run("twin", 1)])
    found = table.score(shorter)
    assert found.row("pretrained").cells["difference"] == table.Cell() and any("other windows" in note for note in found.notes)


def test_few_positives_are_dropped_in_resamples_and_said():
    y = np.zeros(320)
    y[:10] = 1
    assert any("resamples had no defined figure" in note for note in table.score(run("a", 1, y=y)).notes)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_every_kind_has_its_columns(kind):
    rng = np.random.default_rng(1)
    if kind == "regression":
        y = {"age": rng.normal(50, 10, 320)}
        score = {"age": y["age"] + rng.normal(0, 3, 320)}
    else:
        k = np.eye(3)[rng.integers(0, 3, 320)] if kind == "multiclass" else (rng.random((320, 3)) < 0.4).astype(float)
        y = {name: k[:, i] for i, name in enumerate("ABC")}
        score = {name: 0.5 * k[:, i] + 0.5 * rng.random(320) for i, name in enumerate("ABC")}
    found = table.score(pr.make("pretrained", score, labels=y, subject=WHO, record=WHO), task="t")
    assert found.kind == kind and found.row("pretrained").cells[table.COLUMNS[kind][0]].low is not None
    if kind == "regression":
        assert found.row("pretrained").cells["MAE"].value == pytest.approx(np.abs(score["age"] - y["age"]).mean())


def test_a_missing_row_and_a_wrong_heading_are_named():
    with pytest.raises(ValueError, match="rows are a"):
        table.score(run("a", 1)).row("twin")
    with pytest.raises(ValueError, match="heading"):
        table.score(run("a", 1), heading="honest")


def test_windows_of_unknown_subject_beside_known_ones_are_grouped_by_record():
    subject = np.where(np.arange(320) < 160, "", WHO)
    found = table.score(run("a", 1, subject=subject))
    assert found.counts["subjects"] == 8 and found.counts["records"] == 16
    expected = table.score(run("a", 1, subject=np.full(320, "")))
    assert found.row("a").cells["AUROC"] == expected.row("a").cells["AUROC"], "the same sixteen clusters"


def test_differences_carry_holms_p_values():
    rows = pr.concatenate([run("strong", 2), run("same", 0.2), run("twin", 0.2)])
    found = table.score(rows)
    drawn = [statistics.replicates(metrics.auroc, run("twin", 1).labels["pvc"], run("x", k).scores["pvc"], WHO) for k in (2, 0.2)]
    p = comparisons.holm([comparisons.bootstrap_p(drawn[0] - drawn[1]), 1.0])
    assert found.row("strong").cells["p (Holm)"].value == pytest.approx(p[0]) and found.row("same").cells["p (Holm)"].value == 1
    assert any("prevalence" in note for note in found.notes)


def test_three_subjects_have_no_interval_and_the_cell_says_so():
    few = run("a", 1).take(np.arange(60))
    assert "(n = 3, no interval)" in table.score(few).row("a").cells["AUROC"].text()


def test_missing_and_constant_scores_are_told_and_never_a_silent_half():
    broken, flat = run("broken", 1), run("flat", 0)
    broken.scores["pvc"][5] = np.nan
    flat.scores["pvc"][:] = 0.3
    found = table.score(pr.concatenate([broken, flat, run("good", 1)]))
    assert found.row("broken").cells["AUROC"] == table.Cell(word="1 scores are missing")
    assert any("flat: every score is the same" in note for note in found.notes)
    assert table.score(run("a", 1, y=np.zeros(320))).row("a").cells["AUROC"].word == "one class only"
    with pytest.raises(ValueError, match="no row can be scored: broken"):
        table.score(broken)


def test_labels_with_little_support_are_scored_apart():
    rng = np.random.default_rng(0)
    y = {"common": (rng.random(320) < 0.4).astype(float), "rare": (np.arange(320) % 64 == 0).astype(float)}
    score = {name: 0.5 * v + rng.random(320) for name, v in y.items()}
    found = table.score(pr.make("a", score, labels=y, subject=WHO, record=WHO), kind="multilabel")
    expected = metrics.auroc(y["common"], score["common"])
    assert any(f"1 of 2 labels with at least 10 windows of each class: a {expected:.3f}" in note for note in found.notes)


def three_classes(y, call):
    """Predictions of N, S and V that call `call` with certainty; of classes 3 and 4 there is no column."""
    n = len(y)
    place = {"subject": np.char.mod("s%02d", np.arange(n) // 50), "record": np.char.mod("s%02d", np.arange(n) // 50), "start_s": np.arange(n) * 1.0}
    labels, scores = ({c: (v == k).astype(float) for k, c in enumerate("NSV")} for v in (y, call))
    return pr.make("pretrained", scores, labels=labels, **place)


@pytest.mark.parametrize("other", [0, 2])
def test_windows_of_a_class_without_a_column_are_called_neither_right_nor_wrong(other):
    y = np.random.default_rng(0).choice(5, 1000, p=[0.5, 0.1, 0.2, 0.15, 0.05])
    wrong = np.arange(1000) % 7 == 0
    call = np.where(wrong, (y + 1) % 3, np.where(y < 3, y, other))
    found = table.score(three_classes(y, call), kind="multiclass", task="aami")
    known = y < 3
    recall = [np.mean(call[known & (y == k)] == k) for k in range(3)]
    f1 = [2 * np.sum((y == k) & (call == k)) / (np.sum(y == k) + np.sum(known & (call == k))) for k in range(3)]
    cells = found.row("pretrained").cells
    assert cells["accuracy"].value == pytest.approx(np.mean(~wrong[known])) and cells["balanced accuracy"].value == pytest.approx(np.mean(recall))
    assert cells["macro F1"].value == pytest.approx(np.mean(f1))
    assert any(note.startswith(f"{int((~known).sum())} windows are of a class that is not scored") for note in found.notes)
    only_others = table.score(three_classes(np.full(100, 3), np.arange(100) % 3), kind="multiclass")
    assert only_others.row("pretrained").cells["accuracy"].value is None


def test_rows_are_compared_each_with_its_own_reference():
    rows = pr.concatenate([run("a", 1), run("b", 2), run("twin of a", 0.2), run("twin of b", 1.9), run("c", 1)])
    found = table.score(rows, reference={"a": "twin of a", "b": "twin of b"})
    y = run("a", 1).labels["pvc"]
    own = {name: metrics.auroc(y, run("x", k).scores["pvc"]) for name, k in {"a": 1, "b": 2, "twin of a": 0.2, "twin of b": 1.9}.items()}
    for name in ("a", "b"):
        assert found.row(name).cells["difference"].value == pytest.approx(own[name] - own[f"twin of {name}"])
    assert all(found.row(name).cells["difference"] == table.Cell() for name in ("c", "twin of a", "twin of b"))
    assert any("(a: twin of a; b: twin of b)" in note for note in found.notes)


def test_what_balancing_does_to_brier_and_ece_is_said_where_they_stand():
    assert any("weigh classes equally" in note for note in table.score(run("a", 1)).notes)
    logits = run("a", 1)
    logits.scores["pvc"][:] = 10 * logits.scores["pvc"] - 5
    found = table.score(logits)
    assert "Brier" not in found.columns and not any("weigh classes equally" in note for note in found.notes)
