"""What a sweep trains: one member is one autoencoder with its losses, seed and target; ablations are rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from physio_sae.controller import L0Control
from physio_sae.losses import LossConfig
from physio_sae.sae import SaeConfig

ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "no_div": {"loss.div": 0.0},
    "no_stab": {"loss.stab": 0.0},
    "no_smooth": {"loss.smooth": 0.0},
    "vanilla": {"loss.div": 0.0, "loss.stab": 0.0, "loss.smooth": 0.0},
    "topk": {"sae.kind": "topk"},
    "no_renorm": {"sae.unit_norm": False},
    "no_sp": {"loss.sp": 0.0, "control.target": None},
    "no_aux": {"loss.aux": 0.0},
}
"""Name -> fields that it changes. The first five beside `full` are this project's reading of the five that the method names; any further row is a line."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One autoencoder of a sweep."""

    name: str
    sae: SaeConfig
    loss: LossConfig = field(default_factory=LossConfig)
    control: L0Control = field(default_factory=L0Control)
    seed: int = 0
    ablation: str = "full"
    """The row of `ABLATIONS` that was applied."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(f"name must be a plain word without '/', got {self.name!r}")


def ablated(member: Member, ablation: str, table: Mapping[str, Mapping[str, Any]] = ABLATIONS) -> Member:
    """A member with a row of the table applied. `topk` keeps as many concepts as the target L0 asks for. ValueError lists the rows there are."""
    if ablation not in table:
        raise ValueError(f"no ablation {ablation!r}: the table has {', '.join(table)}")
    changes: dict[str, dict[str, Any]] = {"sae": {}, "loss": {}, "control": {}}
    for key, value in table[ablation].items():
        part, _, name = key.partition(".")
        if part not in changes or not hasattr(getattr(member, part), name):
            raise ValueError(f"ablation {ablation!r} changes {key!r}, which is no field: use sae., loss. or control. and a field's name")
        changes[part][name] = value
    if changes["sae"].get("kind") == "topk" and "k" not in changes["sae"] and member.control.target is not None:
        changes["sae"]["k"] = max(1, round(member.control.target))
    return replace(member, ablation=ablation, **{part: replace(getattr(member, part), **fields) for part, fields in changes.items()})


def grid(base: Member, *, n_concepts: Sequence[int], ablations: Sequence[str] = ("full",), seeds: Sequence[int] = (0,)) -> list[Member]:
    """Every (K, ablation, seed), named `K_ablation_seed`."""
    out = []
    for n in n_concepts:
        for ablation in ablations:
            for seed in seeds:
                prefixes = tuple(sorted({max(1, round(p * n / base.sae.n_concepts)) for p in base.sae.prefixes}))
                sized = replace(base, sae=replace(base.sae, n_concepts=n, prefixes=prefixes), seed=seed, name=f"{n}_{ablation}_{seed}")
                out.append(ablated(sized, ablation))
    return out
