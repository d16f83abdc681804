"""Networks and objectives for self-supervised learning on physiological signals, found by name in two literal tables; a third says which fit."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

MODELS: dict[str, str] = {
    "himae": "physio_models.himae:HiMaeConfig",
    "ti_mae": "physio_models.ti_mae:TiMaeConfig",
    "ti_mae_mamba": "physio_models.ti_mae_mamba:TiMaeMambaConfig",
    "s4d": "physio_models.s4d:S4dConfig",
    "conv_transformer": "physio_models.conv_transformer:ConvTransformerConfig",
    "cwt_mae": "physio_models.cwt_mae:CwtMaeConfig",
    "cwt_mae_pair": "physio_models.cwt_mae:CwtMaePairConfig",
    "papagei": "physio_models.papagei:PapageiConfig",
    "resnet1d": "physio_models.resnet1d:ResNet1dConfig",
    "merl": "physio_models.merl:MerlConfig",
    "vit": "physio_models.vit:VitConfig",
    "mae_vit": "physio_models.vit_mae:MaeVitConfig",
    "mtae": "physio_models.vit_mae:MtaeConfig",
    "mlae": "physio_models.vit_mae:MlaeConfig",
    "st_mem": "physio_models.st_mem:StMemConfig",
    "dit": "physio_models.dit:DitConfig",
    "nepa": "physio_models.nepa:NepaConfig",
    "token_decoder": "physio_models.decoder:TokenDecoderConfig",
}
OBJECTIVES: dict[str, str] = {
    "masked_reconstruction": "physio_models.objectives.masked:MaskedReconstruction",
    "dual_domain": "physio_models.objectives.dual_domain:DualDomain",
    "paired_contrastive": "physio_models.objectives.paired_contrastive:PairedContrastive",
    "simclr": "physio_models.objectives.contrastive:SimClr",
    "cmsc": "physio_models.objectives.contrastive:Cmsc",
    "papagei_morphology": "physio_models.objectives.papagei:PapageiMorphology",
    "patient_contrastive": "physio_models.objectives.papagei:PatientContrastive",
    "supervised": "physio_models.objectives.supervised:Supervised",
    "merl": "physio_models.objectives.merl:MerlAlignment",
    "ddpm": "physio_models.objectives.ddpm:Ddpm",
    "rectified_flow": "physio_models.objectives.rectified_flow:RectifiedFlow",
    "autoregressive": "physio_models.objectives.autoregressive:Autoregressive",
    "nepa": "physio_models.objectives.nepa:NextEmbeddingPrediction",
    "jepa": "physio_models.objectives.jepa:Jepa",
    "cpc": "physio_models.objectives.cpc:Cpc",
}
FITS: dict[str, tuple[str, ...]] = {
    "masked_reconstruction": ("himae", "ti_mae", "ti_mae_mamba", "mae_vit", "mtae", "mlae", "st_mem"),
    "dual_domain": ("cwt_mae", "cwt_mae_pair"),
    "paired_contrastive": ("cwt_mae_pair",),
    "simclr": ("papagei", "resnet1d", "s4d", "conv_transformer"),
    "cmsc": ("papagei", "resnet1d", "s4d", "conv_transformer"),
    "papagei_morphology": ("papagei",),
    "patient_contrastive": ("papagei", "resnet1d", "s4d", "conv_transformer"),
    "supervised": ("papagei", "resnet1d", "s4d", "conv_transformer"),
    "merl": ("merl",),
    "ddpm": ("dit",),
    "rectified_flow": ("dit",),
    "autoregressive": ("token_decoder",),
    "nepa": ("nepa",),
    "jepa": ("vit",),
    "cpc": ("s4d", "conv_transformer"),
}
"""Objective -> the models that it trains, in their presets."""

__all__ = ["FITS", "MODELS", "OBJECTIVES", "nearest", "resolve"]


def resolve(table: Mapping[str, str], name: str, *, importable: bool = False) -> Any:
    """The object a table row names, e.g. ``resolve(MODELS, "himae")`` -> ``HiMaeConfig``.

    With ``importable=True`` a ``"module:Object"`` of the caller's own works too; never set it for a name read from a file.
    ``ValueError`` for an unknown name, with the nearest row.
    """
    if name in table:
        target = table[name]
    elif importable and ":" in name:
        target = name
    else:
        raise ValueError(f"unknown name {name!r}{nearest(name, table)}; the table has {', '.join(sorted(table))}")
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def nearest(name: str, known: Any) -> str:
    """``", did you mean 'x'?"`` for the nearest known name, however far; nothing where none is known."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f", did you mean {close[0]!r}?" if close else ""
