"""Reads and writes the file layouts of SAELens, sparsify and dictionary_learning, so that tools built on them take these dictionaries.

The normalisation is folded into the weights first (`sae.folded`), since no layout has a place for it. What each layout computes:

layout               folder                                codes of z
saelens              cfg.json, sae_weights.safetensors     of z - b_dec where apply_b_dec_to_input; W_enc (d, K); relu, topk, threshold, or b_gate and r_mag
sparsify             cfg.json, sae.safetensors             topk of relu(encoder(z - b_dec)); encoder.weight (K, d), W_dec (K, d)
dictionary_learning  config.json, ae.pt (tensors alone)    relu(encoder(z - b_dec)), topk or > threshold; gated and jumprelu codes are times the atom's length

batch_topk and matryoshka travel as what they are at inference, a threshold; archetypal as topk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from physio_sae.sae import Sae, SaeConfig, folded

LayoutName = Literal["saelens", "sparsify", "dictionary_learning"]
Tensors = Mapping[str, Tensor]


def export(sae: Sae, folder: Path | str, layout: LayoutName, *, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write a folder that the library reads; `metadata` goes into its config. ValueError where the layout cannot hold this kind."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    LAYOUTS[layout][0](folded(sae), folder, dict(metadata or {}))
    return folder


def read(folder: Path | str, layout: LayoutName) -> Sae:
    """An autoencoder from a folder of another library, without normalisation (norm "none"). ValueError where a variant has no counterpart here."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return LAYOUTS[layout][1](Path(folder))


def _export_saelens(sae: Sae, folder: Path, metadata: dict[str, Any]) -> None:
    kind = sae.config.kind
    names = {"relu": "standard", "topk": "topk", "gated": "gated"}
    tensors = {"W_enc": sae.W_enc.T, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    config: dict[str, Any] = {"architecture": names.get(kind, "jumprelu"), "d_in": sae.config.width, "d_sae": sae.config.n_concepts}
    if kind == "gated":
        tensors |= {"b_gate": sae.b_enc, "b_mag": sae.b_mag, "r_mag": sae.r_mag}
    else:
        tensors |= {"b_enc": sae.b_enc}
    if kind == "topk":
        config |= {"k": sae.config.k, "rescale_acts_by_decoder_norm": False}
    if config["architecture"] == "jumprelu":
        tensors |= {"threshold": sae.threshold}
    config |= {"dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    _write(folder, "cfg.json", config | {"metadata": metadata}, "sae_weights.safetensors", tensors)


def _read_saelens(folder: Path) -> Sae:
    config, tensors = _read(folder, "cfg.json"), load_file(folder / "sae_weights.safetensors")
    if config.get("normalize_activations", "none") != "none" or config.get("rescale_acts_by_decoder_norm"):
        raise ValueError(f"{folder}: fold the activation normalisation and decoder norms into the weights before reading (SAELens: fold_W_dec_norm)")
    name = config.get("architecture", "standard")
    kinds = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
    if name not in kinds:
        raise ValueError(f"{folder}: architecture {name!r} has no counterpart here; readable are {', '.join(kinds)}")
    state = {"W_enc": tensors["W_enc"].T, "W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"], "b_enc": tensors.get("b_enc", tensors.get("b_gate"))}
    state |= {key: tensors[key] for key in ("r_mag", "b_mag") if key in tensors}
    if not config.get("apply_b_dec_to_input", True):
        shift = state["W_enc"] @ state["b_dec"]  # ours takes b_dec from the input; give it back through the biases
        state["b_enc"] = state["b_enc"] + shift
        if name == "gated":
            state["b_mag"] = state["b_mag"] + state["r_mag"].exp() * shift
    return _made(kinds[name], state, k=config.get("k"), threshold=tensors.get("threshold"))


def _export_sparsify(sae: Sae, folder: Path, metadata: dict[str, Any]) -> None:
    if sae.config.kind != "topk":
        raise ValueError(f"the sparsify layout holds topk dictionaries only, got {sae.config.kind}: use saelens")
    tensors = {"encoder.weight": sae.W_enc, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    config = {"activation": "topk", "expansion_factor": max(1, sae.config.n_concepts // sae.config.width), "normalize_decoder": False}
    config |= {"num_latents": sae.config.n_concepts, "k": sae.config.k, "multi_topk": False, "skip_connection": False, "transcode": False}
    _write(folder, "cfg.json", config | {"d_in": sae.config.width} | ({"metadata": metadata} if metadata else {}), "sae.safetensors", tensors)


def _read_sparsify(folder: Path) -> Sae:
    config, tensors = _read(folder, "cfg.json"), load_file(folder / "sae.safetensors")
    if config.get("activation", "topk") != "topk" or config.get("skip_connection") or config.get("transcode"):
        raise ValueError(f"{folder}: groupmax, skip connections and transcoders have no counterpart here")
    state = {"W_enc": tensors["encoder.weight"], "b_enc": tensors["encoder.bias"], "W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}
    return _made("topk", state, k=config["k"])


def _export_dictionary_learning(sae: Sae, folder: Path, metadata: dict[str, Any]) -> None:
    kind, cfg = sae.config.kind, sae.config
    common = {"encoder.weight": sae.W_enc, "encoder.bias": sae.b_enc, "decoder.weight": sae.W_dec.T}
    if kind == "relu":
        name, tensors = "AutoEncoder", {**common, "bias": sae.b_dec}
    elif kind in ("topk", "batch_topk", "matryoshka"):
        name = "AutoEncoderTopK" if kind == "topk" else "BatchTopKSAE"
        tensors = {**common, "b_dec": sae.b_dec, "k": torch.tensor(cfg.k), "threshold": torch.tensor(-1.0) if kind == "topk" else sae.running_threshold}
    elif kind == "jumprelu":
        name = "JumpReluAutoEncoder"
        shifted_K = sae.b_enc - sae.W_enc @ sae.b_dec  # this class does not take b_dec from the input
        tensors = {"W_enc": sae.W_enc.T, "b_enc": shifted_K, "W_dec": sae.W_dec, "b_dec": sae.b_dec, "threshold": sae.threshold}
    else:
        name = "GatedAutoEncoder"
        tensors = {"encoder.weight": sae.W_enc, "decoder.weight": sae.W_dec.T, "decoder_bias": sae.b_dec}
        tensors |= {"r_mag": sae.r_mag, "gate_bias": sae.b_enc, "mag_bias": sae.b_mag}
    trainer = {"dict_class": name, "activation_dim": cfg.width, "dict_size": cfg.n_concepts, "k": cfg.k if cfg.selects else None}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "metadata": metadata}, indent=1) + "\n", encoding="utf-8")
    torch.save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, folder / "ae.pt")


def _read_dictionary_learning(folder: Path) -> Sae:
    tensors = torch.load(folder / "ae.pt", map_location="cpu", weights_only=True)
    if "W_enc" in tensors:
        state = {"W_enc": tensors["W_enc"].T, "W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]}
        state["b_enc"] = tensors["b_enc"] + state["W_enc"] @ state["b_dec"]
        return _made("jumprelu", state, threshold=tensors["threshold"])
    state = {"W_enc": tensors["encoder.weight"], "W_dec": tensors["decoder.weight"].T}
    if "gate_bias" in tensors:
        state |= {"b_dec": tensors["decoder_bias"], "b_enc": tensors["gate_bias"], "b_mag": tensors["mag_bias"], "r_mag": tensors["r_mag"]}
        return _made("gated", state)
    if "bias" in tensors:
        return _made("relu", state | {"b_dec": tensors["bias"], "b_enc": tensors["encoder.bias"]})
    if not {"b_dec", "k", "encoder.bias"} <= tensors.keys():
        raise ValueError(f"{folder}: tensors {', '.join(sorted(tensors))} belong to no class that has a counterpart here")
    state |= {"b_dec": tensors["b_dec"], "b_enc": tensors["encoder.bias"]}
    name = _read(folder, "config.json").get("trainer", {}).get("dict_class", "AutoEncoderTopK")
    if name == "AutoEncoderTopK":
        return _made("topk", state, k=int(tensors["k"]))
    return _made("batch_topk", state, k=int(tensors["k"]), threshold=tensors["threshold"])


def _made(kind: str, state: dict[str, Tensor], *, k: int | None = None, threshold: Tensor | None = None) -> Sae:
    n, d = state["W_dec"].shape
    sae = SaeConfig(width=d, n_concepts=n, kind=kind, k=k or min(32, n), norm="none", unit_norm=False).build()
    if kind == "jumprelu":
        state = state | {"log_threshold": threshold.clamp_min(torch.finfo(torch.float32).tiny).log()}
    if kind == "batch_topk":
        state = state | {"running_threshold": threshold.reshape(())}
    sae.load_state_dict({**sae.state_dict(), **{key: value.float() for key, value in state.items()}})
    return sae


def _write(folder: Path, config_name: str, config: Mapping[str, Any], weights_name: str, tensors: Tensors) -> None:
    save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, folder / weights_name)
    (folder / config_name).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _read(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).exists():
        raise ValueError(f"{folder} has no {name}: give the folder that the library wrote")
    return json.loads((folder / name).read_text(encoding="utf-8"))


LAYOUTS: Mapping[str, tuple[Callable[[Sae, Path, dict[str, Any]], None], Callable[[Path], Sae]]] = {
    "saelens": (_export_saelens, _read_saelens),
    "sparsify": (_export_sparsify, _read_sparsify),
    "dictionary_learning": (_export_dictionary_learning, _read_dictionary_learning),
}
