"""The page a clinician reads: one HTML file with everything inside, no network, no script from elsewhere.

Overview, health audit of the dictionary, a concept list that sorts by a click on its heads, and a card per concept. Figures are SVG of `physio_sae.figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from physio_sae.figures import Line, bars, histogram, lines

Document = Mapping[str, Any]

TEMPLATE = Path(__file__).with_name("page.html")
VERDICTS = {
    "confirmed": "goes with a waveform feature given rate, age and sex, in training and in test patients, and inside bins of heart rate",
    "selected": "goes with a feature in training patients; test patients or rate bins do not confirm it",
    "rate only": "follows heart rate and, once rate is given, no other feature",
    "unexplained": "no feature of the table passes the gates",
    "dead": "fires in no window",
}


def page(evaluation: Document, age: Document | None = None, ground: Document | None = None, *, title: str = "Concepts of a dictionary") -> str:
    """The whole page from the documents of evaluate_sae.py, age.py and ground.py (plain JSON)."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"num": number, "ends": ends}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        evaluation=evaluation,
        head=evaluation["headline"],
        age=age,
        ground=ground,
        overview=overview(evaluation, age, ground),
        figures=overview_figures(evaluation, age),
        health=audit(evaluation),
        health_figures=health_figures(evaluation),
        board=[*evaluation["members"], *evaluation["baselines"]],
        concepts=concepts(evaluation, age, ground),
        cards=[card(one) for one in (ground or {}).get("cards", [])],
        verdicts=VERDICTS,
    )


def overview(evaluation: Document, age: Document | None, ground: Document | None) -> list[tuple[str, str]]:
    """Name and text of the facts at the top."""
    row, counts = evaluation["headline"]["row"], evaluation["counts"]
    model = evaluation["model"]
    encoder = f"{model.get('name', 'unknown')}{' (untrained: weights as initialised)' if model.get('untrained') else ''}"
    facts = [
        ("Encoder", encoder),
        ("Windows", f"{counts['train_windows']:,} for training; {counts['test_windows']:,} of {counts['test_patients']} test patients for every figure"),
        ("Dictionary", f"{evaluation['headline']['name']}: {row['k']} concepts, {number(row['l0'], 1)} active per window"),
        ("Variance explained", f"{number(row['ev'])} {ends(row['ev_interval'])}"),
        ("Seed match", f"{number(row['stability'])}, {number(row['stability_above'])} above random" if row["stability"] is not None else "one seed"),
    ]
    if age:
        own = age["accuracy"][0]
        facts.append(("Age from concepts", f"MAE {number(own['mae'], 1)} years, R2 {number(own['r2'])} {ends(own['r2_interval'])} (uncorrected)"))
    if ground:
        facts.append(("Concepts", ", ".join(f"{count} {name}" for name, count in ground["verdicts"].items())))
    return facts


def overview_figures(evaluation: Document, age: Document | None) -> list[str]:
    """Pareto front, scaling in K, ablations with intervals, recovery, factors, age gap."""
    pool = [row for row in evaluation["members"] if row["ev"] is not None]
    groups = {name: [row for row in pool if row["ablation"] == name] for name in dict.fromkeys(row["ablation"] for row in pool)}
    base = [row for row in evaluation["baselines"] if row["ev"] is not None]
    front = sorted((row for row in pool if row["front"]), key=lambda row: row["l0"])
    series = [scatter(name, rows, "l0", "ev") for name, rows in groups.items()]
    series += [scatter("baselines", base, "l0", "ev")] if base else []
    series += [Line(name="front", x=[r["l0"] for r in front], y=[r["ev"] for r in front], dashed=True)] if front else []
    found = [lines(series, title="Variance explained against active concepts", x="L0", y="EV")]
    full = groups.get("full", pool)
    sizes = sorted({row["k"] for row in full})
    scaling = [Line(name=name, x=sizes, y=[mean([r[key] for r in full if r["k"] == k]) for k in sizes], marked=True) for key, name in SCALING.items()]
    found.append(lines(scaling, title="Scaling in the number of concepts (means over seeds)", x="K", y="share", log_x=True))
    rows = evaluation["ablations"]
    if rows:
        found.append(
            bars(
                [r["ablation"] for r in rows], [r["ev"] for r in rows], [r["ev_interval"] for r in rows], title="Ablations at one K (means over seeds)", x="EV"
            )
        )
        gaps = [r for r in rows if "difference" in r]
        values = [r["difference"] for r in gaps], [r["difference_interval"] for r in gaps]
        found.append(bars([r["ablation"] for r in gaps], *values, title="Paired difference to full", x="EV less full"))
    recovery = [r for r in evaluation["headline"]["recovery"] if r["value"] is not None]
    names = [f"{r['target']}: {r['features']}".replace("(any window)", "").replace("reconstruction", "decoded") for r in recovery]
    found.append(bars(names, [r["value"] for r in recovery], [r["interval"] for r in recovery], title="Recovery on test patients", x="R2 or AUROC"))
    factors = [r for r in evaluation["headline"]["factors"] if r["test"] is not None]
    names = [f"{r['factor']}: {r['method']}" for r in factors]
    found.append(
        bars(names, [r["test"] for r in factors], [r["interval"] for r in factors], title="Best single concept per factor", x="correlation, test patients")
    )
    several = [r["several_test"] for r in factors], [r["several_interval"] for r in factors]
    found.append(bars(names, *several, title="Up to four concepts per factor", x="correlation of their sum, test patients"))
    if age:
        people = age["people"]
        labels = [f"{s}: {g:+.1f} years" for s, g in zip(people["subject"], people["gap"], strict=True)]
        found.append(
            lines(
                [
                    Line(name="patients", x=people["age"], y=people["predicted"], joined=False, labels=labels),
                    Line(name="same age", x=[min(people["age"]), max(people["age"])], y=[min(people["age"]), max(people["age"])], dashed=True),
                ],
                title="Predicted age, uncorrected",
                x="age, years",
                y="predicted, years",
            )
        )
        level = Line(name="zero", x=[min(people["age"]), max(people["age"])], y=[0, 0], dashed=True)
        gap = Line(name="patients", x=people["age"], y=people["gap"], joined=False, labels=labels)
        found.append(lines([gap, level], title="Age gap after the bias correction", x="age, years", y="gap, years"))
    return found


SCALING = {"ev": "EV", "dead": "dead", "consistency": "consistency", "stability": "seed match"}


def scatter(name: str, rows: Sequence[Document], x: str, y: str) -> Line:
    return Line(name=name, x=[r[x] for r in rows], y=[r[y] for r in rows], joined=False, labels=[r["name"] for r in rows])


def audit(evaluation: Document) -> list[tuple[str, str, str]]:
    """Figure, value, meaning."""
    health = evaluation["headline"]["health"]
    return [
        ("Concepts", number(health["n_concepts"], 0), "atoms of the dictionary"),
        ("Active per window", f"{number(health['l0'], 1)} ({number(health['l0_p1'], 0)}-{number(health['l0_p99'], 0)})", "mean L0, 1st and 99th percentile"),
        ("Empty windows", number(health["empty_windows"]), "share of windows without any concept"),
        ("Dead", number(health["dead"]), "share of concepts that fire in no window, training or test"),
        ("Ultra-dense", number(health["dense"]), "share of concepts that fire in more than a tenth of windows"),
        ("Hoyer / Gini", f"{number(health['hoyer'])} / {number(health['gini'])}", "sparseness of a window's codes, 1 is sparsest"),
        ("Diversity", number(health["diversity"]), "mean squared cosine of two atoms, times the width: about 1 - D/K for a tight frame"),
        ("Nearest atom", number(health["nearest_atom"]), "mean largest |cosine| of a live atom with another one"),
        ("Near-duplicates", number(health["duplicates"], 0), "live atoms with a neighbour above 0.9"),
    ]


def health_figures(evaluation: Document) -> list[str]:
    head = evaluation["headline"]
    rate_K = np.array([r for r in head["rate_K"] if r], np.float64)
    found = [histogram(np.log10(rate_K) if len(rate_K) else [], title="Firing rates of concepts that fire", x="log10 of the share of windows")]
    rows = head["ev_by_patients"]
    if len(rows) > 1:
        x = [r["n_patients"] for r in rows]
        band = np.array([[r["low"] for r in rows], [r["high"] for r in rows]])
        found.append(
            lines([Line(name="EV", x=x, y=[r["mean"] for r in rows], band=band, marked=True)], title="EV of n random test patients", x="n", y="EV", log_x=True)
        )
    return found


def concepts(evaluation: Document, age: Document | None, ground: Document | None) -> list[dict[str, Any]]:
    """A line per concept for the sortable list."""
    rates, carded = evaluation["headline"]["rate_K"], {c["concept"] for c in (ground or {}).get("cards", [])}
    years = {}
    for row in (age or {}).get("selected", []):
        years.setdefault(row["concept"], (row["years_per_sd"], row["selected"]))
    told = {c["concept"]: c for c in (ground or {}).get("concepts", [])}
    findings: dict[int, list[str]] = {}
    for row in (ground or {}).get("enrichment", {}).get("found", []):
        if row["confirmed"]:
            findings.setdefault(row["concept"], []).append(f"{row['finding']} ({row['auroc']:.2f})")
    out = []
    for k, rate in enumerate(rates):
        one = told.get(k)
        best = one["pairs"][0] if one and one["pairs"] else None
        out.append(
            {
                "concept": k,
                "card": k in carded,
                "rate": rate,
                "verdict": one["verdict"] if one else "",
                "feature": best["feature"] if best else "",
                "partial": best["partial"] if best else None,
                "test_partial": best["test_partial"] if best else None,
                "rate_rho": one["rate_rho"] if one else None,
                "findings": ", ".join(findings.get(k, [])),
                "years": years.get(k, (None, None))[0],
                "selected": years.get(k, (None, None))[1],
            }
        )
    return out


def card(one: Document) -> dict[str, Any]:
    """A concept's card: its table and its figures."""
    drawn, notes = [], []
    for beat in one["beats"]:
        if beat["high_P"] is None:
            notes.append(f"Average beat {beat['name']}: {beat['note']} ({beat['of']}).")
            continue
        start, stop, unit = beat["axis"]
        x = np.linspace(start, stop, len(beat["high_P"])).tolist()
        low, high = (Line(name=n, x=x, y=beat[f"{n}_P"], band=np.array(beat[f"{n}_band_2P"])) for n in ("low", "high"))
        drawn.append(lines([high, low], title=f"Average beat {beat['name']}, {beat['n_patients']} {beat['of']}", x=unit, y="height"))
        gap = Line(name="difference", x=x, y=beat["difference_P"], band=np.array(beat["difference_band_2P"]))
        sure = [y if p < 0.05 else None for y, p in zip(beat["difference_P"], beat["p_P"], strict=True)]
        drawn.append(lines([gap, Line(name="p < 0.05", x=x, y=sure, joined=False)], title="Difference, clusters with p < 0.05 marked", x=unit, y="height"))
        second = [Line(name=n, x=x, y=beat[f"second_{n}_P"]) for n in ("high", "low")]
        drawn.append(lines(second, title="Second derivative of the average", x=unit, y="per sample squared"))
    occlusion = one.get("occlusion", {})
    if occlusion.get("effect_BK"):
        effect = [row[0] for row in occlusion["effect_BK"]]
        x = [(n + 0.5) / len(effect) for n in range(len(effect))]
        band = np.array(occlusion["band_2BK"])[:, :, 0]
        own = Line(name="this phase", x=x, y=effect, band=band, marked=True)
        control = Line(name="random places", x=x, y=[row[0] for row in occlusion["control_BK"]], dashed=True)
        drawn.append(lines([own, control], title=f"Occlusion ({occlusion['n_patients_K'][0]} patients)", x="phase of the beat", y="relative change"))
    elif occlusion.get("note"):
        notes.append(f"Occlusion: {occlusion['note']}.")
    return {"concept": one["concept"], "verdict": one["verdict"], "pairs": one["pairs"], "figures": drawn, "notes": notes}


def mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def number(value: Any, digits: int = 3) -> str:
    """A number for people; an undefined one is a dash."""
    return "-" if value is None else f"{value:,.{digits}f}" if isinstance(value, (int, float)) else str(value)


def ends(interval: Sequence[float] | None, digits: int = 3) -> str:
    return "" if not interval else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
