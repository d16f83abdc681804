"""Write the page of a study: one HTML file with everything inside.

uv run apps/report.py runs/sae                                             what evaluate_sae.py, age.py and ground.py left under the folder
uv run apps/report.py --evaluation E/evaluation.json --age A/age.json --ground G/ground.json --out page.html
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import console
from pages import page


@dataclass(frozen=True, kw_only=True)
class Report:
    """One self-contained page: overview, health audit, sortable concept list, a card per concept. It asks for nothing over the network."""

    study: tyro.conf.Positional[Path | None] = None
    """A folder with evaluation/, age/ and ground/, as the apps leave them by default."""
    evaluation: Path | None = None
    """evaluation.json. Default: STUDY/evaluation/evaluation.json."""
    age: Path | None = None
    """age.json. Default: STUDY/age/age.json where there is one."""
    ground: Path | None = None
    """ground.json. Default: STUDY/ground/ground.json where there is one."""
    out: Path | None = None
    """The page. Default: STUDY/report.html."""
    title: str = "Concepts of a dictionary"
    """Its heading."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Report, args=list(arguments), description=console.paragraphs(__doc__))
    if app.study is None and (app.evaluation is None or app.out is None):
        raise ValueError("name the study's folder, or --evaluation and --out")
    evaluation, age, ground = (document(app, name) for name in ("evaluation", "age", "ground"))
    if evaluation is None:
        raise ValueError(f"{app.study} holds no evaluation/evaluation.json: run apps/evaluate_sae.py first")
    for name, other in (("age", age), ("ground", ground)):
        if other is not None and other["dictionary"] != evaluation["headline"]["name"]:
            raise ValueError(
                f"{name}.json is of dictionary {other['dictionary']!r}, the evaluation of {evaluation['headline']['name']!r}; give both one --headline"
            )
    out = app.out or app.study / "report.html"
    html = page(evaluation, age, ground, title=app.title)
    part = out.with_name(out.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(html, encoding="utf-8")
    part.replace(out)
    return {"page": str(out), "bytes": len(html.encode()), "concepts": len(evaluation["headline"]["rate_K"]), "cards": len((ground or {}).get("cards", []))}


def document(app: Report, name: str) -> dict[str, Any] | None:
    """The JSON of one of the three; None where it was not made."""
    path = getattr(app, name)
    if path is None:
        path = None if app.study is None else app.study / name / f"{name}.json"
        if path is None or not path.exists():
            return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON: {error}") from None


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
