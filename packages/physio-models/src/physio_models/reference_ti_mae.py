"""Files of the Ti-MAE Lightning port (ImRTon/TiMAE-Lightning) and of mamba_ssm, strictly: every key is a weight of ours, or named as left out.

Ti-MAE: ``encoder.*`` with ``decoder.*`` of pretraining or ``classifier.*`` of fine-tuning, in a Lightning checkpoint or bare. What no
tensor says (heads, the window's length, whether the class token is used, pooling) is read from the checkpoint's hyper-parameters;
where those are missing it is the published setting. mamba_ssm: one layer, or a stack ``backbone.layers.N.{norm,mixer}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from physio_models.contract import ANY, InputContract
from physio_models.mamba2 import Mamba2Config, MambaStack
from physio_models.pretrained import build_untrained, load_strictly
from physio_models.reference_files import Reference, linear, read, take_prefix
from physio_models.ti_mae import Positions, TiMaeConfig
from physio_models.ti_mae_mamba import TiMaeMambaConfig

PUBLISHED_HEADS, PUBLISHED_HEADDIM, PUBLISHED_SAMPLES, PUBLISHED_DROPOUT = 4, 8, 140, 0.1
BESIDE = ("criterion.weight",)  # class weights that the original's loss keeps in its state


def ti_mae_contract(n_channels: int = 1, n_samples: int = PUBLISHED_SAMPLES) -> InputContract:
    """Ti-MAE's input: one z-scored series of the UCR archive, as a store of ``ucr`` has it, which counts a sample as a second."""
    if n_channels != 1:
        raise ValueError(f"the original has one channel, got {n_channels}; give the contract")
    return InputContract(channels=("series",), units=(ANY,), fs=1.0, window_s=float(n_samples), band=ANY, normalization="none")


def read_ti_mae(path: Path) -> Reference:
    """A Ti-MAE of pretraining (a model) or of fine-tuning (a model without a decoder, and its head). ``ValueError`` names what does not fit."""
    state, settings, _ = read(path)
    parts = _parts(state, path)
    encoder, decoder = parts["encoder."], parts["decoder."]
    shapes = _require(encoder, path, {"embedding.conv.weight": 3, "positional_encoding.pe": 3, "layers.0.ffn.0.weight": 2})
    width, n_channels, _ = shapes["embedding.conv.weight"]
    n_samples = _n_samples(settings, default=shapes["positional_encoding.pe"][1] - 1)
    more: dict[str, Any] = {}
    if decoder:
        inner = _require(decoder, path, {"embedding.weight": 2, "layers.0.ffn.0.weight": 2}, "decoder.")
        more = {
            "decoder_width": inner["embedding.weight"][0],
            "decoder_hidden": inner["layers.0.ffn.0.weight"][0],
            "decoder_depth": _n_layers(decoder, r"layers\.(\d+)\.norm1\.weight", path),
            "decoder_heads": int(settings.get("num_decoder_heads", PUBLISHED_HEADS)),
        }
    cfg = TiMaeConfig(
        n_channels=n_channels,
        n_samples=n_samples,
        width=width,
        depth=_n_layers(encoder, r"layers\.(\d+)\.norm1\.weight", path),
        n_heads=int(settings.get("num_heads", PUBLISHED_HEADS)),
        hidden=shapes["layers.0.ffn.0.weight"][0],
        decoder="self" if decoder else "none",
        dropout=float(settings.get("ffn_dropout_prob", PUBLISHED_DROPOUT)),
        layout="original",
        **_pooling(settings),
        **more,
    )
    for name, part in (("encoder.", encoder), ("decoder.", decoder)):
        if part:
            _fit_positions(part, n_samples + cfg.cls, name, path)
    return _reference("ti_mae", cfg, parts, path)


def read_ti_mae_mamba(path: Path) -> Reference:
    """The same of the port's Mamba variant; its files say nothing of the window's length, so without hyper-parameters it is 140."""
    state, settings, _ = read(path)
    parts = _parts(state, path)
    encoder, decoder = parts["encoder."], parts["decoder."]
    width, n_channels, _ = _require(encoder, path, {"embedding.conv.weight": 3})["embedding.conv.weight"]
    layer = _mamba_shape(encoder, "mamba.", "encoder.", path)
    more: dict[str, Any] = {"decoder_headdim": PUBLISHED_HEADDIM}
    if decoder:
        inner = _mamba_shape(decoder, "mamba.", "decoder.", path)
        more = {"decoder_width": inner.d_model, "decoder_d_state": inner.d_state, "decoder_headdim": inner.headdim}
    cfg = TiMaeMambaConfig(
        n_channels=n_channels,
        n_samples=_n_samples(settings, default=PUBLISHED_SAMPLES),
        width=width,
        depth=1,
        d_state=layer.d_state,
        headdim=layer.headdim,
        bidirectional=False,
        decoder="self" if decoder else "none",
        layout="original",
        **_pooling(settings),
        **more,
    )
    return _reference("ti_mae_mamba", cfg, parts, path)


def read_mamba2(path: Path) -> Reference:
    """One layer as a `Mamba2`, or a backbone's blocks as a `MambaStack`; a language model's ``embedding`` and ``lm_head`` are left out.

    Groups cannot be told from shapes: there is one, as by default.
    """
    state, *_ = read(path)
    if "A_log" in state:
        cfg = _mamba_shape(state, "", "", path)
        with torch.random.fork_rng(devices=[]):  # the initial weights are replaced at once
            layer: nn.Module = cfg.build()
        load_strictly(layer, {key: value.float() for key, value in state.items()}, path)
        return Reference(layer.eval(), None, {key: key for key in state})
    prefix = "backbone." if any(key.startswith("backbone.") for key in state) else ""
    left_out = tuple(sorted(key for key in state if key in ("lm_head.weight", f"{prefix}embedding.weight")))
    theirs = {key.removeprefix(prefix): key for key in state if key not in left_out}
    n_layers = _n_layers({key: state[name] for key, name in theirs.items()}, r"layers\.(\d+)\.mixer\.A_log", path)
    cfg = _mamba_shape(state, f"{prefix}layers.0.mixer.", "", path)
    with torch.random.fork_rng(devices=[]):
        stack = MambaStack(cfg, n_layers)
    load_strictly(stack, {key: state[name].float() for key, name in theirs.items()}, path)
    return Reference(stack.eval(), None, theirs, left_out)


def _reference(name: str, cfg: TiMaeConfig | TiMaeMambaConfig, parts: Mapping[str, dict[str, Tensor]], path: Path) -> Reference:
    model = build_untrained(name, cfg)
    own = {f"{prefix}{key}": value.float() for prefix in ("encoder.", "decoder.") for key, value in parts[prefix].items()}
    load_strictly(model, own, path)
    head = linear(parts["classifier."], "classifier.", path) if parts["classifier."] else None
    if head is not None and head.in_features != cfg.width:
        raise ValueError(f"{path}: the head takes {head.in_features} features, the encoder has {cfg.width}")
    mapped = {key: key for key in own} | {f"head.{key}": f"classifier.{key}" for key in parts["classifier."]}
    return Reference(model.eval(), head, mapped, tuple(parts["beside"]))


def _parts(state: dict[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """The file's keys by owner. ``ValueError`` for keys of no one, and for a file without an encoder."""
    parts = {prefix: take_prefix(state, prefix) for prefix in ("encoder.", "decoder.", "classifier.")}
    parts["beside"] = {key: state.pop(key) for key in BESIDE if key in state}
    if state:
        raise ValueError(f"{path} has keys beside encoder.*, decoder.* and classifier.*: {', '.join(sorted(state)[:6])}")
    if not parts["encoder."]:
        raise ValueError(f"{path} is no Ti-MAE: it has no encoder.*")
    return parts


def _require(state: Mapping[str, Tensor], path: Path, ranks: Mapping[str, int], prefix: str = "encoder.") -> dict[str, tuple[int, ...]]:
    for key, rank in ranks.items():
        if key not in state or state[key].ndim != rank:
            raise ValueError(f"{path} is no such Ti-MAE: {prefix}{key} with {rank} axes is not among its keys {', '.join(sorted(state)[:6])} ...")
    return {key: tuple(state[key].shape) for key in ranks}


def _n_layers(state: Mapping[str, Tensor], pattern: str, path: Path) -> int:
    numbers = {int(match[1]) for key in state if (match := re.fullmatch(pattern, key))}
    if not numbers or numbers != set(range(len(numbers))):
        raise ValueError(f"{path}: its layers {sorted(numbers)} are not numbered from 0 on")
    return len(numbers)


def _n_samples(settings: Mapping[str, Any], *, default: int) -> int:
    return int(settings.get("seq_len") or default)


def _pooling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The class token, unless the file says that it is not used; then the pooling that it names."""
    cls = bool(settings.get("cls_embed", True))
    return {"cls": cls, "pooling": "cls" if cls else settings.get("pooling") or "mean"}


def _fit_positions(part: dict[str, Tensor], n_positions: int, prefix: str, path: Path) -> None:
    """Check that the table of positions is sines and cosines, and cut it to what the window needs."""
    table = part["positional_encoding.pe"]
    expected = Positions(max(table.shape[1], n_positions), table.shape[2], keep=True).pe
    if table.shape[1] < n_positions:
        raise ValueError(f"{path}: {prefix}positional_encoding.pe has {table.shape[1]} positions, the window needs {n_positions}")
    if not torch.allclose(table.float(), expected[:, : table.shape[1]], atol=1e-3):
        raise ValueError(f"{path}: {prefix}positional_encoding.pe is no table of sines and cosines")
    part["positional_encoding.pe"] = table[:, :n_positions]


def _mamba_shape(state: Mapping[str, Tensor], prefix: str, owner: str, path: Path) -> Mamba2Config:
    """The shape of a layer with one group, from its tensors."""
    ranks = {f"{prefix}{key}": rank for key, rank in (("A_log", 1), ("conv1d.weight", 3), ("in_proj.weight", 2), ("out_proj.weight", 2), ("D", 1))}
    shapes = _require(state, path, ranks, owner)
    n_heads, n_conv, d_conv = shapes[f"{prefix}A_log"][0], shapes[f"{prefix}conv1d.weight"][0], shapes[f"{prefix}conv1d.weight"][2]
    n_in, d_model = shapes[f"{prefix}in_proj.weight"]
    d_inner = shapes[f"{prefix}out_proj.weight"][1]
    n_state = (n_in - 2 * d_inner - n_heads) // 2
    d_ssm = n_conv - 2 * n_state
    if n_state < 1 or d_ssm < n_heads or d_ssm % n_heads or d_inner % d_model:
        raise ValueError(f"{path}: {owner}{prefix}* has shapes of no Mamba-2 layer with one group")
    return Mamba2Config(
        d_model=d_model,
        d_state=n_state,
        d_conv=d_conv,
        expand=d_inner // d_model,
        headdim=d_ssm // n_heads,
        d_ssm=None if d_ssm == d_inner else d_ssm,
        D_has_hdim=shapes[f"{prefix}D"][0] != n_heads,
        rmsnorm=f"{prefix}norm.weight" in state,
        bias=f"{prefix}in_proj.bias" in state,
        conv_bias=f"{prefix}conv1d.bias" in state,
    )
