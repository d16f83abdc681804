"""The page that compares runs: each beside its own floors, under the heading that all deserve, and the best row tested as what was picked."""

import json

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

import claims
import leaderboard
from physio_train import comparisons, metrics, table
from physio_train import predictions as pr

N = 320
WHO = np.repeat(np.char.mod("s%02d", np.arange(16)), 20)
START = np.tile(np.arange(20.0), 16)
Y = (np.random.default_rng(0).random(N) < 0.3).astype(float)


def row(name, strength, seed):
    p = 1 / (1 + np.exp(-(strength * Y + np.random.default_rng(seed).normal(size=N))))
    return pr.make(name, {"pvc": p}, labels={"pvc": Y}, subject=WHO, record=WHO, start_s=START, fold="test")


def run(folder, rows, heading="inductive", disjoint=False):
    found = pr.concatenate(rows)
    pr.write(folder / "predictions.csv", found)
    shown = table.score(found, heading=heading, task="pvc", disjoint=disjoint)
    (folder / "table.json").write_text(json.dumps(shown.to_json()), encoding="utf-8")
    return folder


def area(rows, name):
    return metrics.auroc(Y, next(r for r in rows if r.row[0] == name).scores["pvc"])


@pytest.mark.parametrize("turned", [False, True])
def test_every_run_stands_beside_its_own_twin_under_the_heading_that_all_deserve(tmp_path, turned):
    rows = {
        "a": [row("pretrained", 1.0, 1), row("twin", 0.2, 2)],
        "b": [row("pretrained", 2.0, 11), row("twin", 1.8, 12)],
        "c": [row("pretrained", 1.5, 21), row("twin", 0.2, 2)],
    }
    headings = {"a": "inductive", "b": "transductive", "c": "inductive"}
    folders = [run(tmp_path / name, parts, headings[name]) for name, parts in rows.items()]
    found = leaderboard.of_runs(folders[::-1] if turned else folders)["pvc"]
    shared = "twin of c, a" if turned else "twin of a, c"
    assert {r.name for r in found.rows} == {"a", "b", "c", shared, "twin of b", "handcrafted", "leak", "supervised"}
    for name, parts in rows.items():
        cells = found.row(name).cells
        assert cells["AUROC"].value == pytest.approx(area(parts, "pretrained"))
        assert cells["difference"].value == pytest.approx(area(parts, "pretrained") - area(parts, "twin")), name
    assert found.heading == "transductive" and any("b: transductive" in note and "a: inductive" in note for note in found.notes)


def test_floors_that_all_share_stand_once_and_a_run_without_a_twin_has_no_difference(tmp_path):
    crafted = row("handcrafted", 1.2, 5)
    a = run(tmp_path / "a", [row("pretrained", 1.0, 1), row("twin", 0.2, 2), crafted], disjoint=True)
    b = run(tmp_path / "b", [row("pretrained", 2.0, 3), row("twin", 0.2, 2), crafted], disjoint=True)
    found = leaderboard.of_runs([a, b])["pvc"]
    assert [r.name for r in found.rows] == ["a", "twin", "handcrafted", "b", "leak", "supervised"] and found.heading == "inductive"
    assert found.row("leak").cells["AUROC"].word == "disjoint" and not any(note.startswith("leak") for note in found.notes)
    expected = area([crafted], "handcrafted") - area([row("twin", 0.2, 2)], "twin")
    assert found.row("handcrafted").cells["difference"].value == pytest.approx(expected)
    alone = run(tmp_path / "alone", [row("pretrained", 1.4, 4)])
    other = run(tmp_path / "other", [row("pretrained", 1.4, 9), row("handcrafted", 1.3, 6), row("leak", 0.0, 7)])
    found = leaderboard.of_runs([a, alone, other])["pvc"]
    assert [r.name for r in found.rows] == ["a", "twin of a", "handcrafted of a", "alone", "other", "handcrafted of other", "leak of other", "supervised"]
    assert found.row("alone").cells["difference"] == found.row("other").cells["difference"] == table.Cell()
    assert any("no twin is stored for alone, other" in note for note in found.notes) and any("over the folds of a" in note for note in found.notes)
    assert sum("DeLong" in note for note in found.notes) == 2, "one comparison with each hand-made row"


def test_names_and_headings_that_would_mislead_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rename the folder"):
        leaderboard.of_runs([run(tmp_path / "twin", [row("pretrained", 1, 1)])])
    a, b = run(tmp_path / "a", [row("b c", 1, 1)]), run(tmp_path / "a b", [row("c", 2, 2)])
    with pytest.raises(ValueError, match="two rows would be called 'a b c'"):
        leaderboard.of_runs([a, b])
    (a / "table.json").write_text('{"kind": "binary", "heading": "honest"}', encoding="utf-8")
    with pytest.raises(ValueError, match="headed 'honest'"):
        leaderboard.of_runs([a])


def test_the_best_row_is_tested_as_the_best_of_several(tmp_path):
    strengths = {f"m{i}": 1.0 + 0.1 * i for i in range(5)}
    folders = [run(tmp_path / name, [row("pretrained", strength, i)]) for i, (name, strength) in enumerate(strengths.items())]
    floor = run(tmp_path / "floor", [row("pretrained", 0.9, 30), row("handcrafted", 0.7, 31)])
    found = leaderboard.of_runs([*folders, floor])["pvc"]
    note = next(note for note in found.notes if "DeLong" in note)
    p = []
    for folder in [*folders, floor]:
        own, crafted = (pr.read(path / "predictions.csv") for path in (folder, floor))
        scores = own.take(own.row == "pretrained").scores["pvc"], crafted.take(crafted.row == "handcrafted").scores["pvc"]
        p.append(comparisons.delong_difference(Y, *scores, WHO))
    areas = [difference.value for difference in p]
    best = int(np.argmax(areas))
    expected = multipletests([difference.p for difference in p], method="holm")[1][best]
    assert expected > 1.5 * p[best].p and f"p = {expected:.3g} (Holm over the 6 rows" in note
    assert note.startswith(f"best of 6 rows, m{best} (") and "interval at 99.2 %" in note
    half = 2.6383 * p[best].error  # the normal quantile of 1 - .05 / 12
    assert f"[{areas[best] - half:+.3f}, {areas[best] + half:+.3f}]" in note
    single = leaderboard.of_runs([run(tmp_path / "one", [row("pretrained", 1.0, 40), row("handcrafted", 0.7, 31)])])["pvc"]
    assert not any("Holm over" in note for note in single.notes)


def test_beats_are_counted_by_the_aamis_rule_and_against_all_others():
    counts = np.array([[90, 4, 3, 2, 1], [5, 20, 3, 1, 0], [2, 1, 40, 4, 1], [3, 2, 8, 6, 0], [1, 3, 5, 0, 2]])  # true N S V F Q, called n s v f q
    y, call = (np.repeat(place.ravel(), counts.ravel()) for place in np.indices((5, 5)))
    labels, scores = ({c: (v == k).astype(float) for k, c in enumerate("NSVFQ")} for v in (y, call))
    who = np.char.mod("s%02d", np.arange(len(y)) % 12)
    found = pr.make("pretrained", scores, labels=labels, subject=who, record=who, start_s=np.arange(len(y)) * 1.0)
    notes = claims.class_notes(found, "multiclass")
    assert f"VEB Se {100 * 40 / 48:.1f} %, PPV {100 * 40 / (40 + 3 + 3):.1f} %" in notes[1]
    assert f"SVEB Se {100 * 20 / 29:.1f} %, PPV {100 * 20 / (20 + 4 + 1 + 2):.1f} %" in notes[1]
    assert f"Se {100 * 40 / 48:.1f} %, PPV {100 * 40 / 59:.1f} %" in notes[0] and "against all others" in notes[0] and "EC57" in notes[2]
    three = pr.make("pretrained", {c: scores[c] for c in "NSV"}, labels={c: labels[c] for c in "NSV"}, subject=who, record=who, start_s=np.arange(len(y)))
    assert not any("AAMI" in note for note in claims.class_notes(three, "multiclass"))
