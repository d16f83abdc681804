"""The table of ablations at one K: what a dictionary loses without each loss, at one sparsity, with intervals over resampled test patients.

Every figure is the mean over seeds, and a difference to `full` is taken on the same resamples. S patients, N windows, K concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from physio_sae import evaluate
from physio_sae.leaderboard import cell
from physio_sae.recovery import Target, as_seen, hindrance
from physio_train import probe
from physio_train.metrics import r2
from physio_train.statistics import cluster_bootstrap, interval, paired_difference, replicates

Kept = Mapping[str, Any]
"""What the evaluation keeps of a dictionary: error_S and total_S of test patients, cosine_N of test windows with their view, mean_SK codes of all patients."""

COLUMNS = {
    "ablation": ("ablation", 0),
    "n_seeds": ("seeds", 0),
    "l0": ("L0", 1),
    "ev": ("EV", 3),
    "difference": ("less full", 3),
    "consistency": ("consistency", 3),
    "lag1_above": ("lag-1 above shuffled", 3),
    "stability_above": ("seed match above random", 3),
    "dead": ("dead", 3),
}


def grouped(found: Sequence[Any], largest: int) -> dict[str, list[Any]]:
    """Members by ablation at the K that has most ablations (`largest` where several do); empty without `full` and another one."""
    sizes = sorted({m.n_concepts for m in found}, key=lambda k: (len({m.ablation for m in found if m.n_concepts == k}), k == largest))
    groups: dict[str, list[Any]] = {}
    for member in found:
        if member.n_concepts == sizes[-1]:
            groups.setdefault(member.ablation, []).append(member)
    return groups if len(groups) > 1 and "full" in groups else {}


def table(
    groups: Mapping[str, Sequence[Any]],
    kept: Mapping[str, Kept],
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[Target],
    sides: tuple[np.ndarray, np.ndarray],
    who_N: np.ndarray,
    *,
    n_resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """An entry per ablation, `full` first. `sides` are rows of patients, `who_N` the patient of each test window; recovery is asked of real targets."""
    drawn = {"n": n_resamples, "seed": seed}
    errors = {name: [kept[m.name]["error_S"] for m in group] for name, group in groups.items()}
    total_S = kept[groups["full"][0].name]["total_S"]
    usable_S = total_S > 0
    errors = {name: [error_S[usable_S] for error_S in group] for name, group in errors.items()}
    total_S, patients = total_S[usable_S], np.arange(int(usable_S.sum()))
    found = []
    for name, group in groups.items():
        own = [row for row in rows if row["name"] in {m.name for m in group}]
        ev = interval(float(np.mean([evaluate.ratio(total_S, e) for e in errors[name]])), replicates(evaluate.ratio, total_S, errors[name], patients, **drawn))
        entry: dict[str, Any] = {"ablation": name, "n_seeds": len(group), "ev": ev.point, "ev_interval": evaluate.ends(ev)}
        for key in ("l0", "consistency", "lag1_above", "stability_above", "dead"):
            entry[key] = evaluate.mean_of([row[key] for row in own if row[key] is not None])
        if entry["consistency"] is not None:
            entry["consistency_interval"] = evaluate.ends(steadiness([kept[m.name]["cosine_N"] for m in group], who_N, **drawn))
        if name != "full":
            gap = paired_difference(evaluate.ratio, total_S, errors[name], errors["full"], patients, **drawn)
            entry |= {"difference": gap.point, "difference_interval": evaluate.ends(gap)}
        entry["recovery"] = {t.name: recovered([kept[m.name]["mean_SK"] for m in group], t, *sides, **drawn) for t in targets if t.kind == "regression"}
        found.append(entry)
    return sorted(found, key=lambda entry: (entry["ablation"] != "full", entry["ablation"]))


def steadiness(cosines: Sequence[np.ndarray], who_N: np.ndarray, *, n: int, seed: int):
    """Consistency with its interval, over the windows that have a code under every seed."""
    known_N = np.isfinite(cosines).all(0)
    runs = [cosine_N[known_N] for cosine_N in cosines]

    def mean(_, cosine_N: np.ndarray, weight: np.ndarray | None = None):
        return evaluate.average(cosine_N, cosine_N, weight)

    return cluster_bootstrap(mean, runs[0], runs, who_N[known_N], n=n, seed=seed)


def recovered(means: Sequence[np.ndarray], target: Target, train_S: np.ndarray, test_S: np.ndarray, *, n: int, seed: int) -> dict[str, Any]:
    """R2 of ridge regression on patients' mean codes, test patients, mean over seeds; None with its reason where it cannot be had."""
    known_S, y_S = target.known_S, np.asarray(target.value_S, np.float64)
    fit_S, held_S = train_S[known_S[train_S]], test_S[known_S[test_S]]
    if reason := hindrance(target, y_S[fit_S], y_S[held_S]):
        return {"r2": None, "r2_interval": None, "note": reason}
    config = probe.ProbeConfig(kind="regression", seed=seed)
    seen = [as_seen(mean_SK, fit_S) for mean_SK in means]
    runs = [probe.fit(x_SK[fit_S], y_S[fit_S], fit_S.astype(str), config).predict(x_SK[held_S])[:, 0] for x_SK in seen]
    found = cluster_bootstrap(r2, y_S[held_S], runs, held_S, n=n, seed=seed)
    return {"r2": found.point, "r2_interval": evaluate.ends(found), "note": ""}


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The table for people; nothing where there is none."""
    if not found:
        return ""
    targets = [name for name in found[0]["recovery"] if any(entry["recovery"][name]["r2"] is not None for entry in found)]
    shown = {key: column for key, column in COLUMNS.items() if any(entry.get(key) is not None for entry in found)}
    heads = [heading for heading, _ in shown.values()] + [f"R2 of {name}" for name in targets]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for entry in found:
        cells = [cell({**dict.fromkeys(COLUMNS), **entry}, key, digits, None) for key, (_, digits) in shown.items()]
        cells += [cell({"r2": None, **entry["recovery"][name]}, "r2", 3, None) for name in targets]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
