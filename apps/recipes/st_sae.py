"""ST-SAE: an encoder's embeddings, a sweep of dictionaries with ablations and seeds, their evaluation, age, grounding, one page.

The loss weights and the five ablations of the original were never published (its README names the losses only): every one is a field here, and the values
below are this project's. `reference` is the README's sweep, K {1024, 2048, 4096, 8192}.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from compose import Cohort, PretrainConfig
from compose import recipe as recipe_of
from physio_sae.aging import AgeConfig
from physio_sae.controller import L0Control
from physio_sae.losses import LossConfig
from physio_sae.members import ABLATIONS, Member, grid
from physio_sae.sae import SaeConfig
from physio_sae.train import FitConfig


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A whole study. `sae.width` is the features'; it is put in when they are there."""

    cohort: Cohort  # what is embedded, prepared unfiltered, so that views can be made before the filter
    pretrain: PretrainConfig  # our own encoder, where none is named
    level: str | None = "all"  # of the encoder; None: the deepest. Early levels hold the shape of a pulse, late ones its rhythm
    pool: Literal["mean", "max", "std", "peak", "mean+max", "mean+std", "mean+max+std"] = "mean"
    views: int = 1  # augmented views of each window
    sae: SaeConfig = field(default_factory=lambda: SaeConfig(width=256, norm="per_dim"))
    loss: LossConfig = field(default_factory=LossConfig)
    control: L0Control = field(default_factory=lambda: L0Control(target=32.0))  # ablations are compared at one sparsity; near an eighth of d
    fit: FitConfig = field(default_factory=FitConfig)
    n_concepts: tuple[int, ...] = (256, 512, 1024)  # the sweep of `full`
    seeds: tuple[int, ...] = (0, 1)
    ablations: tuple[str, ...] = ("no_div", "no_stab", "no_smooth", "vanilla", "topk")  # rows of physio_sae.members.ABLATIONS, at `ablation_concepts`
    ablation_concepts: int = 256
    train: tuple[str, ...] = ("train", "val")
    test: tuple[str, ...] = ("test",)
    age: AgeConfig = field(default_factory=AgeConfig)
    n_cards: int = 24
    resamples: int = 1000

    def __post_init__(self) -> None:
        if unknown := [name for name in self.ablations if name not in ABLATIONS]:
            raise ValueError(f"ablations must be rows of {', '.join(ABLATIONS)}, got {unknown[0]!r}")
        if not self.n_concepts or not self.seeds or self.views < 0:
            raise ValueError(f"n_concepts and seeds must name at least one each and views not be negative, got {self.n_concepts}, {self.seeds}, {self.views}")

    def members(self, width: int) -> list[Member]:
        """Every dictionary of the study: `full` at every K, the ablations at one, each for every seed. A study without a loss has no ablation of it."""
        base = Member(name="base", sae=replace(self.sae, width=width), loss=self.loss, control=self.control)
        found = grid(base, n_concepts=self.n_concepts, seeds=self.seeds)
        absent = {name for name, weight in (("no_div", self.loss.div), ("no_stab", self.loss.stab), ("no_smooth", self.loss.smooth)) if weight == 0}
        kept = [name for name in self.ablations if name not in absent and name != "full"]
        if not kept:
            return found
        at = () if self.ablation_concepts in self.n_concepts else ("full",)
        return found + grid(base, n_concepts=(self.ablation_concepts,), ablations=(*at, *kept), seeds=self.seeds)


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> StudyConfig:
    """tiny: seconds, for tests; fast: ten minutes on two quiet cores; reference: the README's sweep on a corpus of your own (--store)."""
    pretrain = recipe_of("himae_ppg", "tiny" if size == "tiny" else "fast")
    subjects = {"n_subjects": {"tiny": 40, "fast": 600, "reference": 5000}[size], "minutes": {"tiny": 1.0, "fast": 3.0, "reference": 40.0}[size]}
    cohort = Cohort(corpus="synthetic", window_s=10.0, hop_s=10.0, fs=25.0, split="stratified", options=subjects)
    steps = {"tiny": 10, "fast": 600, "reference": 1200}[size]
    fit = replace(pretrain.fit, n_steps=steps, checkpoint_every=max(1, steps // 4), validate_every=max(1, steps // 4))
    widths = (8, 16, 32) if size == "tiny" else (32, 32, 64, 128)  # all levels side by side: d = 256
    pretrain = replace(pretrain, cohort=cohort, fit=fit, model=replace(pretrain.model, widths=widths))
    if size == "tiny":
        return StudyConfig(
            cohort=cohort,
            pretrain=pretrain,
            fit=FitConfig(n_steps=20, batch_size=64),
            n_concepts=(32,),
            ablations=("vanilla",),
            ablation_concepts=32,
            control=L0Control(target=6.0),
            age=AgeConfig(l1_ratios=(0.5,), n_alphas=10, n_halves=5, n_folds=3),
            n_cards=2,
            resamples=50,
        )
    if size == "fast":
        age = AgeConfig(l1_ratios=(0.1, 0.5, 0.9, 1.0), n_alphas=50, max_features=256, n_halves=50)
        control = L0Control(target=32.0, eta=0.05)  # 300 steps are few: at 0.02 the sparsity is still on its way
        return StudyConfig(cohort=cohort, pretrain=pretrain, fit=FitConfig(n_steps=300, batch_size=1024), control=control, age=age)
    return StudyConfig(
        cohort=cohort,
        pretrain=pretrain,
        fit=FitConfig(n_epochs=20, batch_size=4096),
        n_concepts=(1024, 2048, 4096, 8192),
        seeds=(0, 1, 2),
        ablation_concepts=4096,
        control=L0Control(target=64.0),
    )
