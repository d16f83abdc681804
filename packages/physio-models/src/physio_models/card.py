"""The card that goes with a saved model: what it expects, what it was trained on, how well it does and beside which floors.

A score never stands alone: each needs the same score of something that learned nothing (an untrained twin, hand-crafted features,
the subjects' prevalence). The card is Markdown with the front matter that the Hugging Face Hub reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from physio_models.contract import InputContract

FLOORS = ("twin", "handcrafted", "leak", "supervised")
"""Rows that a score is compared with: the same network untrained, hand-crafted features, each subject's label rate, training from scratch."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A corpus that pretraining read."""

    name: str
    licence: str  # of the data: "ODC-BY-1.0", "PhysioNet Credentialed Health Data License 1.5.0", "generated"
    n_subjects: int | None = None  # None: unknown
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure of one row of a probe table, with its 95 % interval."""

    row: str  # "pretrained", one of FLOORS, or another run's name
    task: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"value of {self.row} on {self.task} must be a number, got {self.value}; leave out what could not be scored")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"low and high belong together, got {self.low} and {self.high}")
        if self.low is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"value {self.value} of {self.row} on {self.task} lies outside its interval [{self.low}, {self.high}]")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a person needs to know before using the weights. ``ValueError`` for a score without a floor beside it."""

    licence: str  # SPDX identifier of the weights
    summary: str  # one sentence
    data: tuple[Data, ...]
    scores: tuple[Score, ...] = ()
    heading: Literal["inductive", "transductive", ""] = ""  # whether pretraining saw windows of the test subjects
    commercial_ok: bool | None = None  # None: not established
    limits: str = ""  # what it should not be used for

    def __post_init__(self) -> None:
        for name in ("data", "scores"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("licence", "summary"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty")
        if not self.data:
            raise ValueError("data must name what pretraining read; a generated corpus counts")
        if self.scores and self.heading not in ("inductive", "transductive"):
            raise ValueError(f"heading must say whether the scores are inductive or transductive, got {self.heading!r}")
        asked = {(score.task, score.metric) for score in self.scores}
        floored = {(score.task, score.metric) for score in self.scores if score.row in FLOORS}
        if alone := sorted(asked - floored):
            raise ValueError(
                f"scores of {', '.join(f'{task} ({metric})' for task, metric in alone)} have no floor beside them; add a row of {', '.join(FLOORS)}"
            )


def markdown(card: ModelCard, model: Mapping[str, Any], contract: InputContract, seen: Mapping[str, Any] | None = None) -> str:
    """The card as README.md of a saved folder. ``model`` is `pretrained.model_document`'s values, ``seen`` what pretraining saw."""
    tags = ["physiological-signals", "self-supervised", *([contract.kind] if contract.kind else [])]
    matter = ["---", f"license: {json.dumps(card.licence)}", "library_name: physio-models", f"tags: {json.dumps(tags)}", "---"]
    allowed = {True: "allowed", False: "not allowed", None: "not established"}[card.commercial_ok]
    parts = [
        "\n".join(matter),
        f"# {model['name']}",
        card.summary,
        f"Weights: {card.licence}; commercial use {allowed}.",
        "## Input\n\n" + _input(contract),
        "## Data\n\n" + _table(("corpus", "licence", "subjects"), [_corpus(one) for one in card.data]) + _seen(seen),
    ]
    if card.scores:
        note = "pretraining saw no window of a test subject" if card.heading == "inductive" else "pretraining saw windows of test subjects, or that is unknown"
        rows = [(score.task, score.metric, score.row, f"{score.value:.3f}", _interval(score)) for score in card.scores]
        parts.append(f"## Scores ({card.heading}: {note})\n\n" + _table(("task", "metric", "row", "value", "95 % interval"), rows))
    if card.limits:
        parts.append("## Limits\n\n" + card.limits)
    parts.append("## Network\n\n```json\n" + json.dumps(model, indent=1) + "\n```")
    parts.append(
        "## Use\n\n```python\nfrom physio_models.pretrained import from_pretrained\n\n"
        'encoder = from_pretrained("FOLDER")  # checks the fingerprint; refuses input that does not fit\n```'
    )
    return "\n\n".join(parts) + "\n"


def _input(contract: InputContract) -> str:
    band = (
        "any" if contract.band == "any" else "unfiltered" if contract.band is None else "-".join("" if side is None else f"{side:g}" for side in contract.band)
    )
    return _table(
        ("what", "must be"),
        [
            ("channels", ", ".join(f"{name} ({unit})" for name, unit in zip(contract.channels, contract.units, strict=True))),
            ("rate", f"{contract.fs:g} Hz"),
            ("window", f"{contract.window_s:g} s" + (", or any other" if contract.length_free else "")),
            ("band", band if band in ("any", "unfiltered") else f"{band} Hz"),
            ("normalisation", f"{contract.normalization}, applied by the encoder"),
            ("polarity", "upright" if contract.polarity == 1 else "inverted"),
        ],
    )


def _corpus(data: Data) -> tuple[str, str, str]:
    return f"[{data.name}]({data.url})" if data.url else data.name, data.licence, "unknown" if data.n_subjects is None else str(data.n_subjects)


def _seen(seen: Mapping[str, Any] | None) -> str:
    if seen is None:
        return "\n\nWhich subjects pretraining saw is not recorded."
    return f"\n\n`seen.json` lists the {len(seen.get('subjects', []))} subjects and {len(seen.get('stores', []))} stores that pretraining saw."


def _interval(score: Score) -> str:
    return "" if score.low is None else f"{score.low:.3f} to {score.high:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
