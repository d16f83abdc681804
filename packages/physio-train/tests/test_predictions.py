"""predictions.csv reads back as written, unlabelled or not, appears whole, and refuses what is not one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_train import predictions as pr

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def example(seed=0, repeat=0, labels=True, names=("pvc",)):
    score = {name: np.array([0.1, 0.75, 1 / 3]) + 0.01 * seed for name in names}
    return pr.make(
        "pretrained",
        score,
        labels={name: np.array([0, 1, np.nan]) for name in names} if labels else None,
        seed=seed,
        repeat=repeat,
        fold=np.array(["0", "1", "1"]),
        subject=np.array(["201", "007", "a,b"]),
        record=np.array(["201", "202", "x"]),
        start_s=np.array([0.0, 10.0, 2.5]),
    )


def same(a, b):
    plain = all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=n == "start_s") for n in pr.PLAIN)
    return plain and all(np.array_equal(a.labels[n], b.labels[n], equal_nan=True) and np.array_equal(a.scores[n], b.scores[n]) for n in a.names)


@pytest.mark.parametrize("labels", [True, False])
def test_the_csv_has_the_agreed_columns_and_reads_back_equal(tmp_path, labels):
    p = example(labels=labels, names=("NORM", "MI"))
    lines = pr.write(tmp_path / "new" / "predictions.csv", p).read_text().splitlines()
    assert lines[0] == "row,seed,repeat,fold,subject,record,start_s,label_NORM,label_MI,score_NORM,score_MI"
    assert lines[2] == f"pretrained,0,0,1,007,202,10,{'1,1' if labels else ','},0.75,0.75"
    assert same(pr.read(tmp_path / "new" / "predictions.csv"), p)
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["predictions.csv"]


@settings(max_examples=50, deadline=None)
@given(scores=st.lists(FLOATS, min_size=1, max_size=5), start=FLOATS)
def test_numbers_read_back_to_the_last_bit(tmp_path_factory, scores, start):
    p = pr.make("a", {"x": np.array(scores)}, start_s=np.full(len(scores), start))
    path = tmp_path_factory.mktemp("p") / "p.csv"
    back = pr.read(pr.write(path, p))
    assert back.scores["x"].tobytes() == p.scores["x"].tobytes() and np.array_equal(back.start_s, p.start_s)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = pr.write(tmp_path / "p.csv", example())
    before = path.read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pr.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        pr.write(path, example(seed=5))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_foreign_file_is_read_by_naming_its_columns(tmp_path):
    (tmp_path / "f.csv").write_text("patient_id,label,p\n007,1,0.5\n8,,1e-26\n")
    p = pr.read(tmp_path / "f.csv", columns={"subject": "patient_id", "label_pvc": "label", "score_pvc": "p"}, row="himae")
    assert p.rows == ("himae",) and p.subject.tolist() == ["007", "8"] and p.scores["pvc"].tolist() == [0.5, 1e-26] and np.isnan(p.labels["pvc"][1])


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        ("row,seed\na,0\n", "no score_<c> column"),
        ("row,score_x\na,0.5\nb\n", "line 3"),
        ("row,score_x\na,high\n", "column score_x"),
        ("row,seed,score_x\na,,1\n", "column seed"),
    ],
)
def test_what_is_not_a_predictions_file_is_refused_with_the_place(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        pr.read(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("label,score_x\n1,0\n")
    with pytest.raises(ValueError, match="no column 'patient_id'"):
        pr.read(tmp_path / "p.csv", columns={"subject": "patient_id", "score_x": "score_x"})


def test_runs_are_aligned_window_by_window_whatever_their_order():
    a, b = example(seed=0), example(seed=1).take(np.array([2, 0, 1]))
    aligned = pr.align(pr.concatenate([b, a]), "pretrained")
    assert aligned.keys == [(0, 0), (1, 0)] and np.allclose(aligned.runs[1] - aligned.runs[0], 0.01)
    assert aligned.record.tolist() == ["201", "202", "x"]
    with pytest.raises(ValueError, match="other windows"):
        pr.align(pr.concatenate([a, example(seed=1).take(np.array([0, 1]))]), "pretrained")
    with pytest.raises(ValueError, match="rows are pretrained"):
        pr.align(a, "twin")


def test_columns_must_agree():
    with pytest.raises(ValueError, match="different labels"):
        pr.concatenate([example(), example(names=("af",))])
    with pytest.raises(ValueError, match="same names"):
        pr.Predictions(**{n: np.zeros(1) for n in pr.PLAIN}, labels={}, scores={"x": np.zeros(1)})
    with pytest.raises(ValueError, match="every column"):
        pr.Predictions(**{n: np.zeros(1) for n in pr.PLAIN}, labels={"x": np.zeros(1)}, scores={"x": np.zeros(2)})


def test_thresholds_travel_with_the_lines_but_not_in_the_csv(tmp_path):
    a = pr.make("a", {"x": np.zeros(2)}, thresholds={"x": 0.3}, fold="0")
    both = pr.concatenate([a, pr.make("b", {"x": np.zeros(1)})])
    assert np.array_equal(both.thresholds["x"], [0.3, 0.3, np.nan], equal_nan=True)
    assert pr.read(pr.write(tmp_path / "p.csv", both)).thresholds == {} and pr.rename(a, "c").rows == ("c",)


def test_a_window_scored_twice_in_one_run_is_named():
    place = {"subject": ["a", "a", "b"], "record": ["r", "r", "q"], "start_s": [10.0, 20.0, 0.0]}
    once = pr.make("x", {"pvc": np.array([0.1, 0.2, 0.3])}, **place)
    assert len(pr.align(pr.concatenate([once, pr.make("x", {"pvc": np.zeros(3)}, seed=1, **place)]), "x").runs) == 2
    with pytest.raises(ValueError, match=r"scores a window twice .*record 'q', subject 'b', start 0 s.*two recordings each a record name"):
        pr.align(pr.concatenate([once, once.take(np.array([2]))]), "x")
