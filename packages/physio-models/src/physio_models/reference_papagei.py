"""Read the files of PaPaGei (``papagei_s.pt``, ``papagei_p.pt``, ``papagei_s_svri.pt``), bare or wrapped, and say what became of every tensor.

The files hold a state dict, as data parallelism left it (``module.`` before every key); others wrap it in a dictionary of training
state. Shape and variant follow from the tensors: experts make PaPaGei-S, a projector a network trained with one. Nothing is
guessed and nothing is left over: keys that are not the network's are an error that names them. No code in a file is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from physio_models.contract import ANY, Encoder, InputContract
from physio_models.papagei import Papagei, PapageiConfig
from physio_models.pretrained import build_untrained, load_strictly
from physio_models.reference_files import read

BAND_HZ = (0.5, 12.0)  # stop-band edges of the Chebyshev filter that the original's windows went through


class PapageiReference(NamedTuple):
    """The network in eval mode, and for each of its tensors the key that it had in the file."""

    model: Papagei
    mapped: dict[str, str]


def load_papagei(path: Path | str) -> PapageiReference:
    """Read a file of PaPaGei weights. ``ValueError`` if it is damaged, needs code to be read, or is not such a network."""
    path = Path(path)
    state, _, prefix = read(path)
    model = build_untrained("papagei", config_of(state, path))
    load_strictly(model, {key: value if key.endswith("num_batches_tracked") else value.float() for key, value in state.items()}, path)
    return PapageiReference(model.eval(), {key: prefix + key for key in state})


def papagei_encoder(path: Path | str, contract: InputContract | None = None) -> Encoder:
    """An `Encoder` around a file of weights; ``contract`` defaults to what the original was trained on (`papagei_contract`)."""
    model = load_papagei(path).model
    return Encoder(model, contract or papagei_contract(model.cfg.n_channels), name="papagei", config=model.cfg, source=str(path))


def papagei_contract(n_channels: int = 1) -> InputContract:
    """PaPaGei's input: 10 s of upright PPG at 125 Hz, 0.5-12 Hz, each window z-scored; any other length works."""
    if n_channels != 1:
        raise ValueError(f"the original has one channel, got {n_channels}; give the contract")
    return InputContract(
        channels=("PPG",),
        units=(ANY,),
        fs=125.0,
        window_s=10.0,
        band=BAND_HZ,
        filter=ANY,
        normalization="lead_zscore",
        length_free=True,
        kind="ppg",
        polarity=1,
    )


def config_of(state: Mapping[str, Tensor], path: Path) -> PapageiConfig:
    """The shape of the network that has this state dict. `load_strictly` says what does not fit it."""
    if "first_block_conv.conv.weight" not in state:
        raise ValueError(f"{path} is no PaPaGei: first_block_conv.conv.weight is not among its keys {', '.join(sorted(state)[:6])} ...")
    numbers = {int(match[1]) for key in state if (match := re.match(r"basicblock_list\.(\d+)\.", key))}
    if not numbers or numbers != set(range(len(numbers))):
        raise ValueError(f"{path} is no PaPaGei: its blocks {sorted(numbers)} are not numbered from 0 on")
    stem, dense = state["first_block_conv.conv.weight"], state.get("dense.weight")
    if stem.ndim != 3 or dense is None or dense.ndim != 2:
        raise ValueError(f"{path} is no PaPaGei: the stem must be (out, in, kernel) and dense.weight (out, in)")
    experts = {int(match[1]) for key in state if (match := re.match(r"expert_layers_1\.(\d+)\.", key))}
    base_width, n_channels, kernel = stem.shape
    return PapageiConfig(
        n_channels=n_channels,
        base_width=base_width,
        kernel=kernel,
        n_blocks=len(numbers),
        n_outputs=dense.shape[0],
        n_experts=len(experts),
        projection="projector.0.weight" in state,
    )
