"""The published PVC predictions score as published, and their split leaks as the fixture says."""

import csv
import json

import numpy as np
import pytest
import torch

from physio_train import floors, metrics, statistics, table
from physio_train import predictions as pr
from physio_train.protocol import Task, Windows


@pytest.fixture
def published(shared):
    columns = {"subject": "patient_id", "label_pvc": "label", "score_pvc": "p_pvc"}
    return pr.read(shared("fixtures/himae/pvc_predictions.csv"), columns=columns), json.loads(shared("fixtures/himae/pvc_metrics.json").read_text())


def test_every_published_figure_is_reproduced(published):
    p, expected = published
    y, s = p.labels["pvc"], p.scores["pvc"]
    assert (len(y), int(y.sum())) == (expected["n"], expected["pos"])
    assert metrics.auroc(y, s) == pytest.approx(expected["roc_auc"], abs=1e-12) == pytest.approx(0.76626, abs=5e-6)
    assert metrics.average_precision(y, s) == pytest.approx(expected["average_precision"], abs=1e-12)
    assert metrics.brier(y, s) == pytest.approx(expected["brier"], abs=1e-12)
    assert metrics.brier(y, np.full(len(y), y.mean())) == pytest.approx(expected["brier_of_constant_prevalence"], abs=1e-12)
    assert metrics.log_loss(y, s) == pytest.approx(expected["logloss_clip1e15"], abs=1e-9)
    assert metrics.ece(y, s) == pytest.approx(expected["ece10"], abs=1e-12)
    precision, recall, _ = metrics.precision_recall_curve(y, s)
    assert np.trapezoid(np.append(1, precision), np.append(0, recall)) == pytest.approx(expected["pr_auc_trapz"], abs=1e-9)
    c, at = metrics.confusion(y, s, threshold=0.5), expected["at_0p5"]
    assert [[c.tn, c.fp], [c.fn, c.tp]] == at["confusion"]
    for name in ("f1", "accuracy", "precision", "recall", "specificity", "mcc"):
        assert getattr(c, name) == pytest.approx(at[name], abs=1e-12)
    by_patient = {name: r["auc"] for name, r in expected["per_patient"].items() if r["auc"] is not None}
    assert statistics.per_record(y, s, p.subject, min_windows=1) == pytest.approx(by_patient, abs=1e-12)
    assert statistics.per_record_mean(y, s, p.subject, min_windows=1) == (pytest.approx(expected["mean_per_patient_auc_two_class"], abs=1e-12), 14)


def test_the_intervals_agree_with_the_fixture_to_resampling_noise(published):
    p, expected = published
    y, s = p.labels["pvc"], p.scores["pvc"]
    by_patient = statistics.cluster_bootstrap(metrics.auroc, y, s, p.subject)
    assert [by_patient.low, by_patient.high] == pytest.approx(expected["boot_patient_auc95"], abs=0.015) and by_patient.holds_point
    by_segment = statistics.cluster_bootstrap(metrics.auroc, y, s, np.arange(len(y)), n=300)
    assert [by_segment.low, by_segment.high] == pytest.approx(expected["boot_segment_auc95"], abs=0.006)


def test_the_leak_check_finds_that_the_split_shares_its_patients(published, shared):
    p, expected = published
    with shared("fixtures/himae/pvc_10s_synth_metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    windows = Windows(
        y=np.array([float(row["pvc"].strip("[]")) for row in rows]),
        subject=np.array([row["case_id_num"] for row in rows]),
        record=np.array([row["case_id_num"] for row in rows]),
        start_s=np.array([10.0 * int(row["segment_idx"]) for row in rows]),
    )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(7)).numpy()
    train, test = windows.take(order[:44_689]), windows.take(order[44_689:])
    assert np.array_equal(test.subject, p.subject) and np.array_equal(test.y, p.labels["pvc"])
    leak = floors.leak_train_test(train, test, Task(name="pvc"))
    baseline = expected["leakage_baseline_patient_train_prevalence"]
    assert metrics.auroc(test.y, leak.scores["pvc"]) == pytest.approx(baseline["roc_auc"], abs=1e-9) == pytest.approx(0.857, abs=5e-4)
    assert metrics.average_precision(test.y, leak.scores["pvc"]) == pytest.approx(baseline["average_precision"], abs=1e-9)
    ours = pr.make("published", p.scores, labels=p.labels, subject=test.subject, record=test.record, start_s=test.start_s, fold="test")
    found = table.score(pr.concatenate([ours, leak]), reference="leak", n_resamples=200)
    assert found.row("leak").cells["AUROC"].value == pytest.approx(0.857, abs=5e-4)
    assert found.row("published").cells["difference"].value == pytest.approx(0.76626 - 0.85666, abs=2e-5)
