"""Age from concepts, and what the gap between predicted and true age goes with.

uv run apps/age.py runs/sae --data features/a --out age/a

The predictor, the bias correction and the choice of concepts come from training patients; every figure is of test patients. S patients, K concepts.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import console
from console import say
from evaluate_sae import Member, Study, headline_of, members, opened, study_codes
from ground import morphology, sampled
from physio_sae import aging, leaderboard
from physio_sae.aging import AgeConfig, Correction
from physio_sae.codes import patient_codes, patient_means
from physio_sae.outcomes import Outcome, hazard_ratio, odds_ratio
from physio_sae.recovery import as_seen
from physio_train import probe
from physio_train.metrics import r2

N_BLOCKS = 3  # stretches of a person's windows, in time, that count as repeated measures


@dataclass(frozen=True, kw_only=True)
class Age:
    """Predict age from a dictionary's concepts, correct the gap's bias, and ask what the gap goes with."""

    saes: tyro.conf.Positional[Path]
    """A folder of train_sae.py, or of one dictionary."""
    data: Path
    """The features folder."""
    out: Path | None = None
    """Where age.json goes. Default: SAES/age."""
    train: tuple[str, ...] = ("train", "val")
    """Folds of the training patients."""
    test: tuple[str, ...] = ("test",)
    """Folds of the patients that are scored."""
    headline: str | None = None
    """The dictionary. Default: the largest K of ablation `full`, first seed."""
    correction: Correction = "de_lange"
    """The bias correction whose gap outcomes are asked of; all are tabled."""
    spline_sex: bool = True
    """Let sex enter the spline correction."""
    outcomes: tuple[str, ...] = ()
    """Binary tasks of the features to take as outcomes. Default: all of them that a patient has or has not."""
    follow_up: Path | None = None
    """CSV with columns subject, outcome, years, event (1, or 0 censored): hazard ratios."""
    resamples: int = 1000
    """Resamples of patients behind an interval."""
    cfg: AgeConfig = field(default_factory=AgeConfig)


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Age, args=list(arguments), description=console.paragraphs(__doc__))
    began = time.monotonic()
    document = aged(app, opened(app.data, app.train, app.test), headline_of(members(app.saes), app.headline))
    path = leaderboard.write_json((app.out or app.saes / "age") / "age.json", document)
    print(text_table(document))
    own = next(row for row in document["accuracy"] if row["features"] == "concepts")
    return {"age": str(path), "dictionary": document["dictionary"], **{k: own[k] for k in ("mae", "r2", "r")}, "seconds": round(time.monotonic() - began, 1)}


def aged(app: Age, study: Study, member: Member) -> dict[str, Any]:
    """The whole document. ValueError where no age is known."""
    if study.age_N is None:
        raise ValueError(f"{app.data} has no ages: prepare a corpus that has them, or join them with prepare --labels F.csv --kind age=regression")
    rows_N = study.rows_N
    who = study.subject_N[rows_N]
    codes = study_codes(member, study.features.z(rows_N))
    means = patient_codes(codes, who)
    age_S = patient_means(study.age_N[rows_N], who)
    male_S = None if study.male_N is None else patient_means(study.male_N[rows_N], who)
    if male_S is not None and not np.isfinite(male_S).all():
        male_S = None
    known = np.isfinite(age_S)
    train_S, test_S = (side[known[side]] for side in (study.patients(study.train_N), study.patients(study.test_N)))
    live_K = patient_codes(codes[np.isin(who, study.subject_S[train_S])], who[np.isin(who, study.subject_S[train_S])]).rate_SK.max(0) > 0
    x_SF, concept_F, is_rate_F = aging.patient_features(means, live_K)
    say(f"age from {int(live_K.sum())} live concepts of {member.name}: {len(train_S)} training patients, {len(test_S)} test patients")

    model = aging.fit_age(x_SF[train_S], age_S[train_S], app.cfg)
    fold_S = aging.out_of_fold(x_SF[train_S], age_S[train_S], app.cfg)
    predicted_S = model.predict(x_SF[test_S])
    stable_F = aging.stability_selection(x_SF[train_S], age_S[train_S], app.cfg, model=model)
    corrections, gap_S, on_train = corrected(
        app, fold_S, age_S[train_S], predicted_S, age_S[test_S], *(None if male_S is None else male_S[s] for s in (train_S, test_S))
    )
    people = {"subject": study.subject_S[test_S], "age": age_S[test_S], "predicted": predicted_S, "gap": gap_S}
    selected = [
        {
            "concept": int(concept_F[f]),
            "of": "firing rate" if is_rate_F[f] else "activation",
            "years_per_sd": float(model.coef_F[f]),
            "selected": float(stable_F[f]),
        }
        for f in np.argsort(-stable_F - 1e-6 * np.abs(model.coef_F), kind="stable")[:50]
        if model.coef_F[f] != 0 or stable_F[f] >= app.cfg.stable
    ]
    return {
        "dictionary": member.name,
        "n_train": len(train_S),
        "n_test": len(test_S),
        "model": {"alpha": model.alpha, "l1_ratio": model.l1_ratio, "n_features": int((model.coef_F != 0).sum()), "converged": model.converged},
        "accuracy": accuracies(app, study, age_S, male_S, means, train_S, test_S, predicted_S),
        "note": "accuracy is of uncorrected predictions; a corrected prediction contains the true age",
        "corrections": corrections,
        "selected": selected,
        "stable_concepts": sorted({int(concept_F[f]) for f in np.flatnonzero(stable_F >= app.cfg.stable)}),
        "people": people,
        "truth": planted(study, age_S, gap_S, train_S, test_S),
        "outcomes": outcomes(app, study, gap_S, on_train, age_S, male_S, train_S, test_S),
        "repeatability": repeatability(study, member, model, live_K, test_S),
    }


def corrected(app: Age, fold_S, age_train, predicted_S, age_test, male_train, male_test) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    """Every correction's gap on test patients against age; the chosen one's gaps of test patients, and of training patients out of fold."""
    rows, chosen, on_train = [], None, None
    plain = predicted_S - age_test
    rows.append({"method": "none", "r_with_age": correlation(plain, age_test), "sd": float(plain.std())})
    for method in aging.CORRECTIONS:
        with_sex = app.spline_sex and method == "spline" and male_train is not None
        try:
            bias = aging.fit_bias(fold_S, age_train, method, male_S=male_train if with_sex else None)
        except ValueError as error:
            rows.append({"method": method, "r_with_age": None, "sd": None, "note": str(error)})
            continue
        gap = bias.delta(predicted_S, age_test, male_test if with_sex else None)
        rows.append({"method": method, "r_with_age": correlation(gap, age_test), "sd": float(gap.std())})
        if method == app.correction:
            chosen, on_train = gap, bias.delta(fold_S, age_train, male_train if with_sex else None)
    if chosen is None:
        raise ValueError(f"--correction {app.correction} is not defined here: {rows[-1].get('note', '')}; take de_lange")
    return rows, chosen, on_train


def accuracies(app: Age, study: Study, age_S, male_S, means, train_S, test_S, predicted_S) -> list[dict[str, Any]]:
    """Uncorrected accuracy of concepts, of ridge on z, of heart rate and sex, of morphology alone, and of the mean age."""
    rows_N, who = study.rows_N, study.subject_N[study.rows_N]
    sets = {"z (ridge)": patient_means(study.features.z(rows_N), who), "codes (ridge)": means.mean_SK}
    found = morphology(study, sampled(study, rows_N))
    if found is not None:
        shape_SF = np.full((len(study.subject_S), found.features_NF.shape[1]), np.nan)
        own = np.searchsorted(study.subject_S, np.unique(found.subject_N))
        shape_SF[own] = patient_means(found.features_NF, found.subject_N)
        rate_SF = np.full((len(study.subject_S), 1), np.nan)
        rate_SF[own] = patient_means(found.rate_bpm_N[:, None], found.subject_N)
        sets |= {"heart rate and sex": rate_SF if male_S is None else np.concatenate([rate_SF, male_S[:, None]], axis=1), "morphology": shape_SF}
    rows = [accuracy_row("concepts", predicted_S, age_S[test_S], app.resamples)]
    for name, x_SF in sets.items():
        usable = np.isfinite(x_SF[train_S]).any(0)
        x_SF = as_seen(x_SF[:, usable], train_S)
        try:
            fitted = probe.fit(x_SF[train_S], age_S[train_S], train_S.astype(str), probe.ProbeConfig(kind="regression", missing="median"))
        except ValueError as error:
            rows.append({"features": name, "mae": None, "r2": None, "r": None, "note": str(error)})
            continue
        rows.append(accuracy_row(name, fitted.predict(x_SF[test_S])[:, 0], age_S[test_S], app.resamples))
    rows.append(accuracy_row("mean age of training patients", np.full(len(test_S), age_S[train_S].mean()), age_S[test_S], app.resamples))
    return rows


def accuracy_row(name: str, predicted_S: np.ndarray, age_S: np.ndarray, n_resamples: int) -> dict[str, Any]:
    found = aging.accuracy(predicted_S, age_S, n_resamples=n_resamples)
    row: dict[str, Any] = {"features": name}
    for key, value in found.items():
        row |= {key: value.point, f"{key}_interval": (value.low, value.high) if np.isfinite([value.low, value.high]).all() else None}
    return row


def planted(study: Study, age_S, gap_S, train_S, test_S) -> dict[str, Any] | None:
    """Where the truth is known (label `stiffness`): how well age could be read from it at best, and whether the gap follows it beyond age."""
    if "stiffness" not in study.features.tasks:
        return None
    truth_S = patient_means(np.asarray(study.features.label("stiffness"), np.float64)[study.rows_N], study.subject_N[study.rows_N])
    knots = np.quantile(truth_S[train_S], [0.05, 0.35, 0.65, 0.95])
    design = aging.spline_design(truth_S, knots, None)
    weight = np.linalg.lstsq(design[train_S], age_S[train_S], rcond=None)[0]
    best_S = design[test_S] @ weight
    r, p = aging.beyond_age(gap_S, truth_S[test_S], age_S[test_S])
    ceiling = {"mae": float(np.abs(best_S - age_S[test_S]).mean()), "r2": float(r2(age_S[test_S], best_S)), "r": correlation(best_S, age_S[test_S])}
    return {"name": "stiffness", "age_from_truth": ceiling, "gap_with_truth_beyond_age": r, "p": p, "truth": truth_S[test_S]}


def outcomes(app: Age, study: Study, gap_S, on_train, age_S, male_S, train_S, test_S) -> list[Outcome]:
    """Odds ratios per SD of the gap: of test patients, and (marked) of all patients with the training gaps out of fold; hazard ratios of a follow-up."""
    binary = {t.name: t for t in study.targets() if t.kind == "binary" and t.name not in ("sex", "age > 50")}
    names = list(app.outcomes) or list(binary)
    if missing := [name for name in names if name not in binary]:
        raise ValueError(f"--outcomes {missing[0]!r} is no binary task of the features; there are {', '.join(binary) or 'none'}")
    rows = []
    both_S = np.concatenate([test_S, train_S])
    both_gap = np.concatenate([gap_S, on_train])
    for name in names:
        for label, side, gap in ((name, test_S, gap_S), (f"{name}, all patients (training out of fold)", both_S, both_gap)):
            rows.append(odds_ratio(label, gap, binary[name].value_S[side], age_S[side], None if male_S is None else male_S[side]))
    if app.follow_up is not None:
        rows += followed(app.follow_up, study.subject_S[test_S], gap_S, age_S[test_S], None if male_S is None else male_S[test_S])
    return rows


def followed(path: Path, subject_S, gap_S, age_S, male_S) -> list[Outcome]:
    """A hazard ratio for each outcome of a follow-up table."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if not lines or not {"subject", "outcome", "years", "event"} <= set(lines[0]):
        raise ValueError(f"{path} must have columns subject, outcome, years and event, got {', '.join(lines[0]) if lines else 'no line'}")
    place = {name: n for n, name in enumerate(subject_S.tolist())}
    rows = []
    for outcome in dict.fromkeys(line["outcome"] for line in lines):
        years_S, event_S = np.full(len(subject_S), np.nan), np.full(len(subject_S), -1.0)
        for line in lines:
            if line["outcome"] == outcome and line["subject"] in place:
                years_S[place[line["subject"]]], event_S[place[line["subject"]]] = float(line["years"]), float(line["event"])
        rows.append(hazard_ratio(outcome, gap_S, years_S, event_S, age_S, male_S))
    return rows


def repeatability(study: Study, member: Member, model: aging.AgeModel, live_K: np.ndarray, test_S: np.ndarray) -> aging.Repeatability:
    """Predicted age from consecutive thirds of each test person's windows, as repeated measures."""
    rows_N = np.flatnonzero(np.isin(study.subject_N, study.subject_S[test_S]))
    who, start_s = study.subject_N[rows_N], np.asarray(study.features.index["start_s"], np.float64)[rows_N]
    order = np.lexsort((start_s, study.features.index["record"][rows_N], who))
    rows_N, who = rows_N[order], who[order]
    _, first, count = np.unique(who, return_index=True, return_counts=True)
    place_N = np.arange(len(who)) - np.repeat(first, count)
    block_N = place_N * N_BLOCKS // np.repeat(count, count)
    key_N = np.char.add(np.char.add(who.astype(str), "\t"), block_N.astype(str))
    means = patient_codes(study_codes(member, study.features.z(rows_N)), key_N)
    predicted = model.predict(aging.patient_features(means, live_K)[0])
    return aging.minimal_detectable_change(predicted, [key.split("\t")[0] for key in means.subject_S.tolist()])


def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0 else None


def text_table(document: Mapping[str, Any]) -> str:
    """Accuracy, corrections and outcomes as Markdown."""
    document = leaderboard.plain(document)
    lines = ["| features | MAE, years | R2 | r |", "|---|---|---|---|"]
    for row in document["accuracy"]:
        lines.append("| " + " | ".join([row["features"], *(with_ends(row.get(k), row.get(f"{k}_interval")) for k in ("mae", "r2", "r"))]) + " |")
    lines += ["", "| correction | r of gap and age | SD of gap, years |", "|---|---|---|"]
    lines += [f"| {row['method']} | {with_ends(row['r_with_age'])} | {with_ends(row['sd'])} |" for row in document["corrections"]]
    if document["truth"]:
        truth = document["truth"]
        best = truth["age_from_truth"]
        lines += ["", f"Age from the planted {truth['name']} itself: MAE {best['mae']:.2f} years, R2 {best['r2']:.3f}."]
        lines += [f"Gap and planted {truth['name']} beyond age: r {with_ends(truth['gap_with_truth_beyond_age'])}, p {with_ends(truth['p'])}."]
    lines += ["", "| outcome | measure | per SD of the gap | p | cases / n | note |", "|---|---|---|---|---|---|"]
    for row in document["outcomes"]:
        ratio = with_ends(row["ratio"], row["interval"])
        lines.append(f"| {row['name']} | {row['measure']} | {ratio} | {with_ends(row['p'])} | {row['n_events']} / {row['n']} | {row['note']} |")
    again = document["repeatability"]
    change = with_ends(again["minimal_detectable_change"])
    measured = f"{change} years, ICC {with_ends(again['icc'])}" if change else f"not defined: {again['note']}"
    lines += ["", f"Minimal detectable change within a person: {measured}."]
    return "\n".join(lines)


def with_ends(value: float | None, ends: Sequence[float] | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" + (f" [{ends[0]:.3g}, {ends[1]:.3g}]" if ends else "")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
