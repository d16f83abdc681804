"""Judge dictionaries on patients that did not train them: variance explained, sparsity, steadiness, what they recover, beside baselines.

uv run apps/evaluate_sae.py runs/sae --data features/a --out evaluation/a

Concepts and probes are chosen on the training folds, every figure is of the test folds, intervals resample patients. N windows, S patients, K concepts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import ablations
import compose
import console
from console import say
from physio_sae import evaluate, leaderboard, pareto, stability
from physio_sae import sae as saes
from physio_sae.baselines import fit_baseline
from physio_sae.codes import Codes, as_codes, firing_rates, patient_codes, patient_means, sparse_codes
from physio_sae.factors import Factor, matched
from physio_sae.health import health
from physio_sae.recovery import Target, over_50, recover, sparse_probes
from physio_sae.triplets import Features, neighbours

MOST_CLASSES = 8  # a label set with more classes (statements of an ECG, say) is not asked class by class
HYPERVOLUME_AT = (256.0, 0.0)  # the reference point of L0 and EV: fixed, so that runs compare


@dataclass(frozen=True, kw_only=True)
class EvaluateSae:
    """Evaluate the dictionaries of a folder on the test patients of a features folder."""

    saes: tyro.conf.Positional[Path]
    """A folder of train_sae.py, or of one dictionary."""
    data: Path
    """The features folder."""
    out: Path | None = None
    """Where evaluation.json and leaderboard.md go. Default: SAES/evaluation."""
    train: tuple[str, ...] = ("train", "val")
    """Folds that concepts and probes are chosen on; a range of numbers too: 1-8."""
    test: tuple[str, ...] = ("test",)
    """Folds that are scored."""
    headline: str | None = None
    """The dictionary that probes and baselines are shown for. Default: the largest K of ablation `full`, first seed."""
    baselines: tuple[str, ...] = ("pca", "ica", "nmf", "kmeans", "random")
    """Baselines at the headline's sparsity and K; PCA, ICA (at most 256) and NMF have no more components than dimensions."""
    resamples: int = 1000
    """Resamples of patients behind an interval."""
    dense_rate: float = 0.1
    """A concept that fires in more than this share of windows counts as dense."""
    halves: Path | None = None
    """A folder with a/ and b/, dictionaries of either half of the training patients, to match. Default: SAES/halves where there is one."""
    seed: int = 0
    """Of resamples and random pairs."""
    dry_run: bool = False
    """Encode a few windows with each dictionary, write nothing."""


@dataclass(frozen=True)
class Member:
    """One dictionary of a sweep."""

    name: str
    folder: Path
    extra: Mapping[str, Any]

    @cached_property
    def sae(self) -> saes.Sae:
        return saes.load(self.folder).eval()

    @property
    def ablation(self) -> str:
        """As the file says, else as the name K_ABLATION_SEED says."""
        middle = "_".join(self.name.split("_")[1:-1])
        return str(self.extra.get("ablation") or middle or "full")

    @property
    def seed(self) -> int:
        return int(self.extra.get("seed") or 0)

    @cached_property
    def n_concepts(self) -> int:
        return int(saes.read_config(self.folder)["config"]["n_concepts"])


@dataclass(frozen=True)
class Study:
    """Features with a training and a test side, patient by patient."""

    features: Features
    train_N: np.ndarray
    test_N: np.ndarray

    @cached_property
    def subject_N(self) -> np.ndarray:
        return self.features.subject

    @cached_property
    def subject_S(self) -> np.ndarray:
        """All patients of both sides, sorted."""
        return np.unique(self.subject_N[self.rows_N])

    @cached_property
    def rows_N(self) -> np.ndarray:
        return np.sort(np.concatenate([self.train_N, self.test_N]))

    def patients(self, rows_N: np.ndarray) -> np.ndarray:
        """Rows of `subject_S` that have windows among these."""
        return np.flatnonzero(np.isin(self.subject_S, self.subject_N[rows_N]))

    def column(self, name: str) -> np.ndarray | None:
        """A column of the index as float64 (N,); None where the features lack it."""
        found = self.features.index.get(name)
        return None if found is None else np.asarray(found, np.float64)

    @cached_property
    def male_N(self) -> np.ndarray | None:
        """1 for men, 0 for women, NaN unknown; None where nobody's sex is known."""
        if "sex" not in self.features.index:
            return None
        sex_N = self.features.index["sex"]
        male_N = np.where(sex_N == "M", 1.0, np.where(sex_N == "F", 0.0, np.nan))
        return male_N if np.isfinite(male_N).any() else None

    @cached_property
    def age_N(self) -> np.ndarray | None:
        age_N = self.column("age")
        return age_N if age_N is not None and np.isfinite(age_N).any() else None

    @cached_property
    def kinds(self) -> dict[str, dict[str, Any]]:
        """Tasks of the store, name -> {kind, classes, unit}."""
        return dict(self.features.meta.get("signal", {}).get("tasks", {}))

    def labels(self) -> dict[str, tuple[str, np.ndarray, str]]:
        """Every label of windows as binary (0/1, NaN unknown) or regression (NaN unknown): name -> (kind, (N,), unit). A class of a multi-label is one."""
        found: dict[str, tuple[str, np.ndarray, str]] = {}
        if self.age_N is not None:
            found["age"] = ("regression", self.age_N, "years")
        if self.male_N is not None:
            found["sex"] = ("binary", self.male_N, "")
        for name in self.features.tasks:
            if name in found:
                continue
            value, spec = np.asarray(self.features.label(name), np.float64), self.kinds.get(name, {})
            kind, classes = spec.get("kind", "regression"), spec.get("classes", ())
            if kind in ("multilabel", "multiclass") and len(classes) > MOST_CLASSES:
                continue
            if kind == "multilabel":
                columns = {str(c): value[:, n] for n, c in enumerate(classes)}
            elif kind == "multiclass":
                columns = {str(c): np.where(value < 0, np.nan, value == n) for n, c in enumerate(classes)}
            else:
                columns = {name: value}
            for label, column in columns.items():
                binary = kind != "regression"
                found[label] = ("binary" if binary else "regression", np.where(column < 0, np.nan, column) if binary else column, spec.get("unit") or "")
        return found

    def targets(self) -> list[Target]:
        """What probes are asked of a patient; a binary label that varies within patients asks whether any window has it."""
        targets = []
        for name, (kind, value_N, unit) in self.labels().items():
            value_S = patient_means(value_N[self.rows_N], self.subject_N[self.rows_N])
            varies = kind == "binary" and (np.abs(value_S - np.round(value_S)) > 1e-9).any()
            if kind == "binary":
                value_S = np.where(np.isfinite(value_S), (value_S > (0 if varies else 0.5)).astype(np.float64), -1.0)
            targets.append(Target(name=f"{name} (any window)" if varies else name, kind=kind, value_S=value_S, unit=unit))
            if name == "age":
                targets.append(over_50(value_S))
        return targets

    def factors(self) -> list[Factor]:
        """Labels as factors of windows; of patients where they do not vary within them."""
        found = []
        for name, (_, value_N, _unit) in self.labels().items():
            own_S = (
                patient_means(value_N[self.rows_N] ** 2, self.subject_N[self.rows_N]) - patient_means(value_N[self.rows_N], self.subject_N[self.rows_N]) ** 2
            )
            found.append(Factor(name=name, value_N=value_N[self.rows_N], per_patient=not bool((np.nan_to_num(own_S) > 1e-6).any())))
        return found

    def next_within(self, rows_N: np.ndarray) -> np.ndarray:
        """Followers, checked by record and clock as in training, counted in these rows; -1 where one is not among them or there is none."""
        place = np.full(len(self.features) + 1, -1, np.int64)
        place[rows_N] = np.arange(len(rows_N))
        return place[self.next_N[rows_N]]

    @cached_property
    def next_N(self) -> np.ndarray:
        return neighbours(self.features.index)


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(EvaluateSae, args=list(arguments), description=console.paragraphs(__doc__))
    began = time.monotonic()
    study = opened(app.data, app.train, app.test)
    found = members(app.saes)
    say(f"{len(found)} dictionaries; {len(study.train_N)} training and {len(study.test_N)} test windows of {len(study.subject_S)} patients")
    if app.dry_run:
        return {"dry_run": True, "l0": {m.name: float(study_codes(m, study.features.z(study.test_N[:64])).count_nonzero() / 64) for m in found}}
    out = app.out or app.saes / "evaluation"
    document = evaluated(app, study, found)
    leaderboard.write_json(out / "evaluation.json", document)
    board = document["members"] + document["baselines"]
    leaderboard.write_json(out / "leaderboard.json", leaderboard.ordered(board))
    table = "\n".join(part for part in (leaderboard.markdown(board, notes=document["notes"]), ablations.markdown(document["ablations"])) if part)
    (out / "leaderboard.md").write_text(table, encoding="utf-8")
    print(table)
    top = document["headline"]
    figures = {key: top["row"][key] for key in ("ev", "l0", "dead")}
    return {"evaluation": str(out / "evaluation.json"), "headline": top["name"], **figures, "seconds": round(time.monotonic() - began, 1)}


def opened(data: Path, train: Sequence[str], test: Sequence[str]) -> Study:
    """The features and their two sides. ValueError where a patient is on both."""
    features = Features.open(data)
    train_N, test_N = (features.rows(*compose.fold_names(folds)) for folds in (train, test))
    if shared := np.intersect1d(features.subject[train_N], features.subject[test_N]).tolist():
        waived = {name.replace("-", ":", 1) for name in features.meta.get("signal", {}).get("waivers", ())}
        if unwaived := [name for name in shared if name not in waived]:
            raise ValueError(f"patient {unwaived[0]!r} has windows on both sides, {' '.join(train)} and {' '.join(test)}; name folds that share no patient")
        train_N = train_N[~np.isin(features.subject[train_N], shared)]
    return Study(features, train_N, test_N)


def members(folder: Path) -> list[Member]:
    """The dictionaries of a sweep's folder, by name; a folder of one dictionary is one member."""
    folders = sorted(path.parent for path in (folder / "saes").glob("*/sae.safetensors")) or ([folder] if (folder / "sae.safetensors").exists() else [])
    if not folders:
        raise ValueError(f"{folder} holds no dictionary (saes/NAME/sae.safetensors); train some with: uv run apps/train_sae.py --data FEATURES --out {folder}")
    return [Member(path.name, path, saes.read_config(path).get("extra", {})) for path in folders]


def headline_of(found: Sequence[Member], name: str | None) -> Member:
    """The member asked for, else the largest full dictionary of the first seed: a rule that looks at no result."""
    if name is not None:
        chosen = [member for member in found if member.name == name]
        if not chosen:
            raise ValueError(f"--headline {name!r} is none of {', '.join(m.name for m in found)}")
        return chosen[0]
    full = [member for member in found if member.ablation == "full"] or list(found)
    return min(full, key=lambda m: (-m.n_concepts, m.seed, m.name))


def study_codes(member: Member, z_ND: np.ndarray) -> Codes:
    return as_codes(member.sae.encode_sparse(z_ND))


def evaluated(app: EvaluateSae, study: Study, found: Sequence[Member]) -> dict[str, Any]:
    """The whole document."""
    head = headline_of(found, app.headline)
    notes = []
    features, test_N, train_N = study.features, study.test_N, study.train_N
    z_test, z_train, who = features.z(test_N), features.z(train_N), study.subject_N[test_N]
    mean_D = z_train.mean(0, dtype=np.float64)
    rows, kept = [], {}
    with console.progress("evaluate", len(found)) as show:
        for n, member in enumerate(found, 1):
            row, more = judged(app, study, member, z_test, z_train, mean_D)
            rows.append(row)
            kept[member.name] = more
            show(n, member.name)
    front(rows)
    match = seeds_matched(found, kept, rows) + halves_matched(app.halves or app.saes / "halves", z_train)
    pool = [row for row in rows if row["ev"] is not None]
    volume = pareto.hypervolume([[r["l0"], r["ev"]] for r in pool], HYPERVOLUME_AT, (False, True)) if pool else None
    if features.n_views == 0:
        notes.append("no consistency: the features have no augmented views")
    if not (study.next_within(test_N) >= 0).any():
        notes.append("no lag-1: no test window has a gap-free successor")
    groups = ablations.grouped(found, head.n_concepts)
    sides = study.patients(train_N), study.patients(test_N)
    table = ablations.table(groups, kept, rows, study.targets(), sides, who, n_resamples=app.resamples, seed=app.seed) if groups else []
    if table and max(e["l0"] for e in table) > 1.1 * min(e["l0"] for e in table):
        levels = ", ".join(f"{e['ablation']} {e['l0']:.1f}" for e in table)
        notes.append(f"the ablations are not at one L0 ({levels}): read them along the Pareto front, or train longer under control.target")
    head_row = next(row for row in rows if row["name"] == head.name)
    l0 = max(1, round(float(kept[head.name]["rate_K"].sum())))  # of training windows, as everything that is chosen
    if abs(l0 - head_row["l0"]) > 0.1 * l0 + 0.5:
        notes.append(f"baselines are cut at {l0} components, the L0 of {head.name} on training windows; on test windows it is {head_row['l0']:.1f}")
    baselines, base_codes = against(app, study, head.n_concepts, l0, z_train, z_test, mean_D, notes)
    top = headline(app, study, head, head_row, kept[head.name], z_train, z_test, base_codes)
    counts = {"train_windows": len(train_N), "test_windows": len(test_N), "test_patients": len(np.unique(who)), "patients": len(study.subject_S)}
    return {
        "features": str(app.data),
        "model": features.meta.get("model", {}),
        "signal": {k: v for k, v in features.meta.get("signal", {}).items() if k != "tasks"},
        "counts": counts,
        "members": rows,
        "baselines": baselines,
        "stability": match,
        "ablations": table,
        "pareto": {"hypervolume": volume, "reference": {"l0": HYPERVOLUME_AT[0], "ev": HYPERVOLUME_AT[1]}},
        "lag1_of_principal_components": principal_lag1(study, z_train, z_test),
        "headline": top,
        "notes": notes,
    }


def judged(app: EvaluateSae, study: Study, member: Member, z_test, z_train, mean_D) -> tuple[dict[str, Any], dict[str, Any]]:
    """A member's row, and what later tables need of it."""
    test_N, who = study.test_N, study.subject_N[study.test_N]
    codes = study_codes(member, z_test)
    train_codes = study_codes(member, z_train)
    rates_K = firing_rates(train_codes)
    mean_SK = np.zeros((len(study.subject_S), member.n_concepts))
    for rows_N, side in ((study.train_N, train_codes), (test_N, codes)):
        mean_SK[study.patients(rows_N)] = patient_codes(side, study.subject_N[rows_N]).mean_SK
    audit = health(codes, member.sae.dictionary_KD.detach().numpy(), train_rate_K=rates_K, dense_rate=app.dense_rate)
    residual = evaluate.residuals(member.sae.decode(codes).numpy(), z_test, mean_D)
    ev = evaluate.explained(residual, who, n_resamples=app.resamples, seed=app.seed)
    steady = cosine_N = None
    if study.features.n_views:
        viewed = study_codes(member, study.features.z_aug(0, test_N))
        steady, cosine_N = evaluate.consistency(codes, viewed, who, seed=app.seed), evaluate.cosines(codes, viewed)
    lag = evaluate.lag1(codes, study.next_within(test_N), study.features.index["record"][test_N])
    row = {
        "name": member.name,
        "ablation": member.ablation,
        "seed": member.seed,
        "kind": member.sae.config.kind,
        "k": member.n_concepts,
        "l0": audit.l0,
        "ev": ev.overall,
        "ev_interval": ev.interval,
        "ev_patient": ev.per_patient,
        "ev_patient_interval": ev.per_patient_interval,
        "cosine": ev.cosine,
        "dead": audit.dead,
        "dense": audit.dense,
        "consistency": steady and steady.cosine,
        "jaccard": steady and steady.jaccard,
        "icc": steady and steady.icc,
        "consistency_above": steady and steady.cosine_above_floor,
        "lag1": lag.within,
        "lag1_above": lag.above_null,
        "lag1_globally_centred": lag.globally_centred,
        "stability": None,
        "stability_above": None,
        "front": False,
    }
    _, error_S, total_S = evaluate.patient_sums(residual, who)
    more = {"error_S": error_S, "total_S": total_S, "cosine_N": cosine_N, "mean_SK": mean_SK}
    return row, {**more, "audit": audit, "residual": residual, "rate_K": rates_K, "codes": codes}


def front(rows: Sequence[dict[str, Any]]) -> None:
    """Mark the rows that no other beats in L0, EV and (where there is one) consistency."""
    pool = [row for row in rows if row["ev"] is not None]
    axes = ("l0", "ev", "consistency") if all(row["consistency"] is not None for row in pool) else ("l0", "ev")
    if pool:
        for row, best in zip(pool, pareto.pareto_front([[row[a] for a in axes] for row in pool], tuple(a != "l0" for a in axes)), strict=True):
            row["front"] = bool(best)


def seeds_matched(found: Sequence[Member], kept: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every ablation and K with several seeds: matching by atoms and by activations, less the floors, and principal angles."""
    groups: dict[tuple[str, int], list[Member]] = {}
    for member in found:
        groups.setdefault((member.ablation, member.n_concepts), []).append(member)
    table = []
    for (ablation, n_concepts), group in groups.items():
        pairs = [(a, b) for n, a in enumerate(group) for b in group[n + 1 :]]
        if not pairs:
            continue
        matches, acts, angles = [], [], []
        for a, b in pairs:
            atoms = [m.sae.dictionary_KD.detach().numpy() for m in (a, b)]
            live = [kept[m.name]["audit"].live_K for m in (a, b)]
            matches.append(stability.match_atoms(*atoms, live_a_K=live[0], live_b_L=live[1]))
            acts.append(stability.match_activations(kept[a.name]["codes"], kept[b.name]["codes"]))
            angles.append(stability.principal_angles(*atoms, kept[a.name]["rate_K"], kept[b.name]["rate_K"]))
        entry = {"ablation": ablation, "k": n_concepts, "n_pairs": len(pairs)}
        for name in ("mean", "floor", "above_floor", "above_70", "above_90"):
            entry[name] = evaluate.mean_of([v for m in matches if (v := getattr(m, name)) is not None])
        entry["activations"] = evaluate.mean_of([m.mean for m in acts if m.mean is not None])
        entry["activations_floor"] = evaluate.mean_of([m.floor for m in acts if m.floor is not None])
        entry["angle_degrees"] = evaluate.mean_of([a.mean() for a in angles if len(a)])
        table.append(entry)
        for row in rows:
            if row["name"] in {m.name for m in group}:
                row["stability"], row["stability_above"] = entry["mean"], entry["above_floor"]
    return table


def halves_matched(folder: Path, z_train: np.ndarray) -> list[dict[str, Any]]:
    """The matching of two dictionaries that halves of the patients trained, by the atoms that fire in training windows; nothing where there are none."""
    if not folder.exists():
        return []
    a, b = (members(folder / half)[0] for half in ("a", "b"))
    live_a, live_b = (firing_rates(study_codes(m, z_train)) > 0 for m in (a, b))
    found = stability.match_atoms(*(m.sae.dictionary_KD.detach().numpy() for m in (a, b)), live_a_K=live_a, live_b_L=live_b)
    figures = {name: getattr(found, name) for name in ("mean", "floor", "above_floor", "above_70", "above_90")}
    none = dict.fromkeys(("activations", "activations_floor", "angle_degrees"))
    return [{"ablation": f"{a.ablation}, halves of the patients", "k": a.n_concepts, "n_pairs": 1, **figures, **none}]


def against(
    app: EvaluateSae, study: Study, n_concepts: int, l0: int, z_train, z_test, mean_D, notes: list[str]
) -> tuple[list[dict[str, Any]], dict[str, Codes]]:
    """Rows of the baselines at the headline's size and sparsity, and their codes of all rows for the table of factors."""
    rows, codes = [], {}
    who, tested = study.subject_N[study.test_N], np.searchsorted(study.rows_N, study.test_N)
    z_all, width = study.features.z(study.rows_N), z_train.shape[1]
    for name in app.baselines:
        n_components = min({"pca": width, "ica": min(256, width), "nmf": min(width, n_concepts)}.get(name, n_concepts), len(z_train))
        try:
            fitted = fit_baseline(name, z_train, n_components=n_components, l0=l0, seed=app.seed)
        except ValueError as error:
            notes.append(f"no {name}: {error}")
            continue
        codes[name] = sparse_codes(fitted.encode, z_all)
        found = codes[name][tested]
        residual = evaluate.residuals(fitted.decode(found), z_test, mean_D)
        ev = evaluate.explained(residual, who, n_resamples=app.resamples, seed=app.seed)
        audit = health(found, dense_rate=app.dense_rate)
        lag = evaluate.lag1(found, study.next_within(study.test_N), study.features.index["record"][study.test_N])
        steady = None
        if study.features.n_views:
            steady = evaluate.consistency(found, sparse_codes(fitted.encode, study.features.z_aug(0, study.test_N)), who, seed=app.seed)
        rows.append(
            {
                "name": name,
                "ablation": "baseline",
                "k": found.shape[1],
                "l0": audit.l0,
                "ev": ev.overall,
                "ev_interval": ev.interval,
                "ev_patient": ev.per_patient,
                "ev_patient_interval": ev.per_patient_interval,
                "dead": audit.dead,
                "dense": audit.dense,
                "consistency": steady and steady.cosine,
                "consistency_above": steady and steady.cosine_above_floor,
                "lag1": lag.within,
                "lag1_above": lag.above_null,
            }
        )
    return rows, codes


def headline(app: EvaluateSae, study: Study, member: Member, row: Mapping[str, Any], more: Mapping[str, Any], z_train, z_test, base_codes) -> dict[str, Any]:
    """What one dictionary recovers, patient by patient, and which of its concepts follows which factor."""
    rows_N, who = study.rows_N, study.subject_N[study.rows_N]
    codes = study_codes(member, study.features.z(rows_N))
    means = patient_codes(codes, who)
    z_SD = patient_means(study.features.z(rows_N), who)
    recon_SD = patient_means(member.sae.decode(codes).numpy(), who)
    train_S, test_S = study.patients(study.train_N), study.patients(study.test_N)
    targets = study.targets()
    say(f"probes of {', '.join(t.name for t in targets) or 'nothing: no labels'}")
    sides = {"codes": means.mean_SK, "z": z_SD, "reconstruction": recon_SD}
    place = np.full(len(study.features), -1)
    place[rows_N] = np.arange(len(rows_N))
    audit = more["audit"]
    return {
        "name": member.name,
        "folder": str(member.folder),
        "row": dict(row),
        "health": {key: value for key, value in vars(audit).items() if key not in ("rate_K", "live_K")},
        "rate_K": audit.rate_K,
        "live_K": audit.live_K,
        "ev_by_patients": evaluate.explained_by_patients(more["residual"], study.subject_N[study.test_N], seed=app.seed),
        "recovery": recover(sides, targets, train_S, test_S, n_resamples=app.resamples, seed=app.seed),
        "sparse_probes": sparse_probes(means.mean_SK, targets, train_S, test_S, n_resamples=app.resamples, seed=app.seed),
        "factors": matched(
            {"sae": codes, **base_codes}, study.factors(), who, place[study.train_N], place[study.test_N], n_resamples=app.resamples, seed=app.seed
        ),
    }


def principal_lag1(study: Study, z_train: np.ndarray, z_test: np.ndarray, n_components: int = 50) -> dict[str, float | None]:
    """Lag-1 of principal component scores: what the embedding itself carries from window to window."""
    centred = z_train - z_train.mean(0)
    axes = np.linalg.svd(centred[:: max(1, len(centred) // 20_000)], full_matrices=False)[2][:n_components]
    found = evaluate.lag1((z_test - z_train.mean(0)) @ axes.T, study.next_within(study.test_N), study.features.index["record"][study.test_N])
    return {"within": found.within, "above_null": found.above_null}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
