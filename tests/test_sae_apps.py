"""The apps of dictionaries, from a store to the page: stage by stage on a tiny cohort, and the page in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

import ablations
import compose
import evaluate_sae
import ground
import pages
import report
import st_sae
from physio_sae.leaderboard import plain
from physio_sae.recovery import Target


def keys_with_nan(value, name=""):
    """Paths of numbers that are not finite."""
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in keys_with_nan(item, f"{name}.{key}")]
    if isinstance(value, list):
        return [found for n, item in enumerate(value) for found in keys_with_nan(item, f"{name}[{n}]")]
    return [name] if isinstance(value, float) and not np.isfinite(value) else []


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A whole tiny study; two seeds so that they can be matched, and beats averaged over few patients."""
    out = tmp_path_factory.mktemp("study") / "tiny"
    summary = st_sae.main(["--size", "tiny", "--out", str(out), "--n-cards", "2"])
    flags = ["--match.min-patients", "4", "--cfg.min-patients", "8", "--resamples", "50", "--n-cards", "2"]
    ground.main([str(out), "--data", str(out / "features"), "--store", str(out / "store"), "--ckpt", str(out / "encoder"), *flags])
    report.main([str(out)])
    return out, summary


def test_every_stage_leaves_its_file_and_no_table_holds_a_nan(study):
    out, summary = study
    assert set(summary["stages"]) == set(st_sae.STAGES) and summary["windows_per_min"] > 0 and summary["triplets_per_s"] > 0
    for name in ("evaluation/evaluation.json", "evaluation/leaderboard.json", "age/age.json", "ground/ground.json"):
        text = (out / name).read_text()
        assert "NaN" not in text and "Infinity" not in text and not keys_with_nan(json.loads(text))
    assert "nan" not in (out / "evaluation" / "leaderboard.md").read_text().lower()


def test_the_evaluation_holds_every_dictionary_and_baseline(study):
    out, _ = study
    found = json.loads((out / "evaluation" / "evaluation.json").read_text())
    assert {row["name"] for row in found["members"]} == {"32_full_0", "32_full_1", "32_vanilla_0", "32_vanilla_1"}
    assert {row["name"] for row in found["baselines"]} >= {"pca", "random"} and found["headline"]["name"] == "32_full_0"
    assert {row["factor"] for row in found["headline"]["factors"]} >= {"age", "stiffness", "rate", "af"}
    assert {row["ablation"] for row in found["ablations"]} == {"full", "vanilla"} and found["stability"][0]["floor"] is not None
    assert any("halves of the patients" in row["ablation"] and row["n_pairs"] == 1 for row in found["stability"])
    assert found["counts"]["test_patients"] < found["counts"]["patients"]
    assert all(row["recovery"]["age"]["r2"] is not None for row in found["ablations"]) and "R2 of age" in (out / "evaluation" / "leaderboard.md").read_text()
    assert all(len(row["several"]) <= 4 for row in found["headline"]["factors"])


def test_an_ablation_is_the_mean_over_its_seeds_beside_full_on_the_same_patients():
    rng, n = np.random.default_rng(0), 330
    member = lambda name: SimpleNamespace(name=name, n_concepts=32, ablation=name.split("_")[1])  # noqa: E731
    found = [member(name) for name in ("32_full_0", "32_full_1", "32_vanilla_0")] + [SimpleNamespace(name="64_full_0", n_concepts=64, ablation="full")]
    groups = ablations.grouped(found, 64)
    assert {name: [m.name for m in group] for name, group in groups.items()} == {"full": ["32_full_0", "32_full_1"], "vanilla": ["32_vanilla_0"]}
    assert ablations.grouped(found[:2], 32) == {}
    total_S, age_S, who_N = rng.uniform(1, 2, 30), rng.uniform(20, 80, n), np.repeat(np.arange(30).astype(str), 2)
    train_S, test_S = np.arange(300), np.arange(300, n)
    kept = {
        m.name: {"error_S": rng.uniform(0, 1, 30), "total_S": total_S, "cosine_N": rng.uniform(0, 1, 60), "mean_SK": age_S[:, None] * [1.0, 0.5]} for m in found
    }
    kept["32_full_0"]["cosine_N"][3] = np.nan  # a window without codes
    rows = [{"name": m.name, "l0": 8.0, "consistency": 0.5, "lag1_above": None, "stability_above": 0.1, "dead": 0.25} for m in found]
    targets = [Target(name="age", kind="regression", value_S=age_S), Target(name="sex", kind="binary", value_S=np.arange(n) % 2)]
    full, vanilla = ablations.table(groups, kept, rows, targets, (train_S, test_S), who_N, n_resamples=200, seed=0)
    ev = {name: 1 - kept[name]["error_S"].sum() / total_S.sum() for name in kept}
    assert full["ev"] == pytest.approx((ev["32_full_0"] + ev["32_full_1"]) / 2) and full["n_seeds"] == 2 and "difference" not in full
    assert vanilla["difference"] == pytest.approx(ev["32_vanilla_0"] - full["ev"]) and vanilla["difference_interval"][0] < vanilla["difference"]
    assert full["lag1_above"] is None and full["dead"] == 0.25 and set(full["recovery"]) == {"age"}
    assert full["recovery"]["age"]["r2"] > 0.99 and full["consistency_interval"][0] < 0.5 < full["consistency_interval"][1]
    text = ablations.markdown([full, vanilla]).splitlines()
    assert len(text) == 4 and "R2 of age" in text[0] and "lag-1" not in text[0] and "nan" not in "".join(text) and ablations.markdown([]) == ""


def test_a_finished_study_is_not_run_again_and_another_config_is_refused(study):
    out, _ = study
    before = (out / "stages.json").read_text()
    st_sae.main(["--size", "tiny", "--out", str(out), "--n-cards", "2"])
    assert (out / "stages.json").read_text() == before
    with pytest.raises(ValueError, match="another n_cards"):
        st_sae.main(["--size", "tiny", "--out", str(out), "--n-cards", "3"])


def test_a_study_goes_on_where_it_was_stopped(study, tmp_path):
    out, _ = study
    again = tmp_path / "again"
    shutil.copytree(out, again)
    stages = json.loads((again / "stages.json").read_text())
    for stage in ("evaluation", "age", "ground", "report"):
        del stages[stage]
    (again / "stages.json").write_text(json.dumps(stages))
    (again / "evaluation" / "evaluation.json").unlink()
    st_sae.main(["--size", "tiny", "--out", str(again), "--n-cards", "2", "--until", "evaluation"])
    ours, first = (json.loads((folder / "evaluation" / "evaluation.json").read_text()) for folder in (again, out))
    assert ours["members"] == first["members"]


def test_a_dry_run_lists_the_stages_and_writes_nothing(tmp_path):
    found = st_sae.main(["--size", "tiny", "--out", str(tmp_path / "none"), "--dry-run"])
    assert found["done"] == [] and len(found["dictionaries"]) == 4 and not (tmp_path / "none").exists()


def test_mistakes_are_named(study, tmp_path):
    out, _ = study
    with pytest.raises(ValueError, match="holds no dictionary"):
        evaluate_sae.main([str(tmp_path), "--data", str(out / "features")])
    with pytest.raises(ValueError, match="windows on both sides"):
        evaluate_sae.main([str(out), "--data", str(out / "features"), "--test", "train"])
    with pytest.raises(ValueError, match="is none of 32_full_0"):
        evaluate_sae.main([str(out), "--data", str(out / "features"), "--headline", "best"])
    with pytest.raises(ValueError, match="name an encoder for --store"):
        st_sae.main(["--store", str(out / "store")])
    with pytest.raises(ValueError, match="run apps/evaluate_sae"):
        report.main([str(tmp_path)])
    with pytest.raises(ValueError, match="its app has its name"):
        compose.swap(compose.recipe("st_sae", "tiny"), model=None, objective=None, size="tiny")


def test_an_ablation_of_a_loss_that_is_off_is_left_out():
    cfg = compose.recipe("st_sae", "fast")
    names = {member.name for member in cfg.members(256)}
    assert len(names) == 16 and "256_no_smooth_1" in names and "1024_full_0" in names
    without = st_sae.replace(cfg, loss=st_sae.replace(cfg.loss, smooth=0.0))
    assert not any("no_smooth" in member.name for member in without.members(256))


class Rows(HTMLParser):
    """Text of the first cells of a table's body, and whatever a page would fetch."""

    def __init__(self):
        super().__init__()
        self.inside, self.cell, self.rows, self.fetched = False, False, [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "table":
            self.inside = attrs.get("id") == "list"
        if tag == "tr" and self.inside:
            self.rows.append([])
        if tag == "td" and self.inside:
            self.rows[-1].append(attrs.get("data-v", ""))
        self.fetched += [f"{tag} {attrs[key]}" for key in ("src", "href", "action") if attrs.get(key, "#")[0] != "#"]


def read(html):
    parser = Rows()
    parser.feed(html)
    return [row for row in parser.rows if row], parser.fetched


def test_the_page_holds_everything_and_fetches_nothing(study):
    out, _ = study
    html = (out / "report.html").read_text()
    rows, fetched = read(html)
    assert len(rows) == 32 and not fetched and "url(" not in html and "@import" not in html and "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", html.lower())
    assert html.count('<section class="card"') == 2 and "Health audit" in html and "Average beat" in html and "Occlusion" in html
    assert "Steering is not offered" in html


def test_what_users_name_is_escaped(study):
    out, _ = study
    found = json.loads((out / "evaluation" / "evaluation.json").read_text())
    found["members"][0]["name"] = found["headline"]["recovery"][0]["target"] = "<script>alert(1)</script>"
    html = pages.page(plain(found), title="<b>")
    assert "<script>alert" not in html and "&lt;b&gt;" in html and "No grounding was done" in html


@pytest.fixture(scope="module")
def browser():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")


def shown(browser, tmp_path, page, fragment=""):
    """The page's DOM after its script has run, in a browser without network."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=4000",
    ]
    found = subprocess.run([browser, *flags, "--dump-dom", page.as_uri() + fragment], capture_output=True, text=True, timeout=120, check=True)
    return found.stdout


def test_a_click_sorts_the_concepts_in_a_browser(study, browser, tmp_path):
    out, _ = study
    column = 1  # "fires in"
    plain_rows, _ = read(shown(browser, tmp_path / "a", out / "report.html"))
    assert [int(row[0]) for row in plain_rows] == list(range(32))
    clicked = shown(browser, tmp_path / "b", out / "report.html", "#sort=rate")
    order = [float(row[column]) for row in read(clicked)[0]]
    assert order == sorted(order, reverse=True) and len(order) == 32 and 'aria-sort="descending"' in clicked
    assert order != [float(row[column]) for row in plain_rows]
