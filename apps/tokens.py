"""Between the signal and networks that read tokens: which tokenizer, from where, and ids for a batch of windows.

A run keeps its tokenizer as physio_bpe.json; the hash of its vocabulary stands in the input contract, so that another one is refused.
Shape letters: B windows, C channels, T samples, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from console import say
from physio_bpe import Tokenizer, load, load_published, save, train
from physio_bpe.quantize import from_plain, to_plain
from physio_data.store import Store, Stores
from physio_models.contract import ContractError, Encoder
from train_tokenizer import Scalar, records

if TYPE_CHECKING:
    from compose import PretrainConfig

FILE = "physio_bpe.json"
SAMPLE = 256  # windows that the log's figures are measured on


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """How windows become tokens, for networks that read them: by a given tokenizer, or by one trained on the training windows as told here."""

    file: Annotated[str, tyro.conf.arg(name="tokenizer", prefix_name=False)] = ""  # a tokenizer's file (ours, or ECG-Byte's .pkl); empty: one is trained
    vocabulary: str = ""  # hash of the vocabulary that the file must have; empty: any
    merges: int = 1000  # tokens to learn beside the 256 symbols and the special ones
    quantizer: Literal["record_minmax", "lead_minmax", "percentile", "fixed_range", "mu_law"] = "record_minmax"
    levels: int = 26  # levels of a sample, 2 to 256
    option: dict[str, Scalar] = field(default_factory=dict)  # fields of the quantizer
    layout: Literal["lead_major", "per_lead", "interleaved"] = "lead_major"
    mode: Literal["bpe", "longest"] = "bpe"
    windows: int = 4096  # most windows to train on, drawn at random

    def __post_init__(self) -> None:
        if self.merges < 0 or self.windows < 1:
            raise ValueError(f"tokens.merges must be at least 0 and tokens.windows at least 1, got {self.merges} and {self.windows}")


@dataclass(frozen=True)
class Tokenize:
    """Signals in physical units to ids (B, N) int64, between bos and eos, and which of them are real (B, N)."""

    tokenizer: Tokenizer
    n_positions: int  # longest sequence; what a window has beyond is cut

    def __call__(self, x_BCT: Tensor, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A short tail and absent channels are left out before tokenising."""
        x = x_BCT.detach().cpu().numpy()
        framed = {"bos": True, "eos": True, "max_length": self.n_positions}
        if channel_present_BC is not None and not bool(channel_present_BC.all()):
            return self._padded([self.tokenizer.encode(x_CT, **framed).ids for x_CT in _real(x, valid_BT, channel_present_BC)])
        ids_BN, real_BN = self.tokenizer.encode_batch(x if valid_BT is None else _real(x, valid_BT, None), **framed).padded()
        return torch.from_numpy(ids_BN), torch.from_numpy(real_BN)

    def _padded(self, ids: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        real_BN = torch.arange(max(map(len, ids))) < torch.tensor([len(ids_N) for ids_N in ids])[:, None]
        ids_BN = torch.full(real_BN.shape, self.tokenizer.special_id("pad"))
        ids_BN[real_BN] = torch.from_numpy(np.concatenate(ids).astype(np.int64))
        return ids_BN, real_BN


def _real(x_BCT: np.ndarray, valid_BT: Tensor | None, channel_present_BC: Tensor | None) -> list[np.ndarray]:
    """What of each window is there, (C', T') each."""
    out = list(x_BCT)
    if valid_BT is not None:
        out = [x_CT[:, valid_T] for x_CT, valid_T in zip(out, valid_BT.cpu().numpy(), strict=True)]
    if channel_present_BC is not None:
        out = [x_CT[present_C] for x_CT, present_C in zip(out, channel_present_BC.cpu().numpy(), strict=True)]
    return out


def reads_tokens(model: object) -> bool:
    """Whether a network of this config reads tokens."""
    return getattr(model, "input", "signal") == "tokens"


def tokenizer_for(cfg: Tokens, store: Store | Stores, rows_N: np.ndarray, *, seed: int) -> Tokenizer:
    """The tokenizer of the file named, or one trained on these rows (at most `cfg.windows` of them, whole ones), the same for a seed and any number of ranks.

    ValueError where the file's vocabulary is not the one asked for, and where no window is left to train on.
    """
    if cfg.file:
        tokenizer = read(cfg.file)
        if cfg.vocabulary and tokenizer.vocabulary_hash != cfg.vocabulary:
            found, needed = tokenizer.vocabulary_hash[:12], cfg.vocabulary[:12]
            raise ValueError(f"{cfg.file} has the vocabulary {found}, the network was made for {needed}: give the tokenizer it was trained with")
        return tokenizer
    if "channel_present" in store.index:
        rows_N = rows_N[store.index["channel_present"][rows_N].all(1)]
    if not len(rows_N):
        raise ValueError("no whole window is there to train a tokenizer on: name one with --tokenizer")
    rows_N = np.sort(np.random.default_rng(seed).permutation(rows_N)[: cfg.windows])
    quantizer = from_plain({"name": cfg.quantizer, "n_levels": cfg.levels, **cfg.option})
    return train(records(store, rows_N), cfg.merges, quantizer=quantizer, layout=cfg.layout, mode=cfg.mode)


def read(path: Path | str) -> Tokenizer:
    """A tokenizer's file: ours, or a pickle that ECG-Byte published."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file: give a tokenizer's, as train_tokenizer.py writes it")
    return load_published(path) if Path(path).suffix == ".pkl" else load(path)


def settled(cfg: PretrainConfig, tokenizer: Tokenizer) -> PretrainConfig:
    """The config with the tokenizer's own settings, and the network with its vocabulary. ValueError where the two do not fit."""
    check(cfg.model, tokenizer)
    plain = to_plain(tokenizer.quantizer)
    own = {
        "vocabulary": tokenizer.vocabulary_hash,
        "merges": tokenizer.n_merges,
        "quantizer": plain["name"],
        "levels": plain["n_levels"],
        "option": {key: value for key, value in plain.items() if key not in ("name", "n_levels")},
        "layout": tokenizer.layout,
        "mode": tokenizer.mode,
    }
    return replace(cfg, model=replace(cfg.model, n_ids=tokenizer.n_tokens, pad_id=tokenizer.special_id("pad")), tokens=replace(cfg.tokens, **own))


def check(model: object, tokenizer: Tokenizer) -> None:
    """ValueError where a network cannot read what a tokenizer gives: another order of leads, or a special token that is not there."""
    needed = getattr(model, "token_layout", None)
    if needed is not None and tokenizer.layout != needed:
        raise ValueError(
            f"{type(model).__name__} reads tokens of layout {needed}, the tokenizer has layout {tokenizer.layout}:"
            f" train one with train_tokenizer.py --layout {needed}, or here with --tokens.layout {needed}"
        )
    for name in ("pad", "bos", "eos"):
        tokenizer.special_id(name)


def described(tokenizer: Tokenizer, cfg: Tokens, store: Store | Stores, rows_N: np.ndarray, n_positions: int) -> None:
    """A line on the tokenizer, and what becomes of the windows."""
    rows_N = rows_N[np.linspace(0, len(rows_N) - 1, min(SAMPLE, len(rows_N))).astype(np.int64)]
    batch = store.batch(rows_N)
    present = torch.as_tensor(batch["channel_present"]) if "channel_present" in batch else None
    x = _real(batch["signal"], torch.as_tensor(batch["valid"]) if "valid" in batch else None, present)
    lengths = np.array([len(tokenizer.encode(x_CT, bos=True, eos=True)) for x_CT in x])
    source = f"read from {cfg.file}" if cfg.file else f"trained on at most {cfg.windows} training windows"
    say(f"tokenizer {tokenizer.vocabulary_hash[:12]}, {tokenizer.n_tokens} ids, {tokenizer.layout}, {source}")
    say(f"{lengths.mean():.0f} tokens a window, at most {lengths.max()}, bos and eos among them")
    if cut := int((lengths > n_positions).sum()):
        say(f"{cut} of {len(lengths)} windows have more than the network's {n_positions} positions and lose their end: raise --model.n-positions")


def located(cfg: PretrainConfig, folder: Path) -> PretrainConfig:
    """The config of a run, its tokenizer found beside it. ValueError where that is missing."""
    if not reads_tokens(cfg.model):
        return cfg
    if not (folder / FILE).is_file():
        raise ValueError(f"{folder} lacks {FILE}, the tokenizer that its network reads by: restore it")
    return replace(cfg, tokens=replace(cfg.tokens, file=str(folder / FILE)))


def keep(tokenizer: Tokenizer | None, folder: Path) -> None:
    """Put the tokenizer, where there is one, beside a network."""
    if tokenizer is not None:
        save(tokenizer, folder / FILE)


def tokenizer_of(encoder: Encoder) -> Tokenizer | None:
    """The tokenizer by which an encoder reads; None where it reads signals."""
    return encoder.tokenize.tokenizer if isinstance(encoder.tokenize, Tokenize) else None


def attached(encoder: Encoder, file: Path | str | None = None) -> Encoder:
    """The encoder with its tokenizer where it reads tokens: that of `file`, else the one beside it. ContractError for none or another vocabulary."""
    if not reads_tokens(encoder.config or encoder.model.cfg):
        return encoder
    path = Path(file) if file else None if encoder.home is None else encoder.home / FILE
    if path is None or not path.is_file():
        raise ContractError(f"the network reads tokens and {encoder.home or 'the encoder'} has no {FILE}: restore it, or name a tokenizer with --tokenizer")
    tokenizer = read(path)
    needed = encoder.contract.vocabulary
    if (needed and tokenizer.vocabulary_hash != needed) or tokenizer.n_tokens != encoder.model.cfg.n_ids:
        raise ContractError(
            f"{path} has the vocabulary {tokenizer.vocabulary_hash[:12]} of {tokenizer.n_tokens} ids, the network was trained with"
            f" {needed[:12] or 'another'} of {encoder.model.cfg.n_ids}: restore the tokenizer it was trained with"
        )
    check(encoder.model.cfg, tokenizer)
    encoder.tokenize = Tokenize(tokenizer, encoder.model.cfg.n_positions)
    return encoder
