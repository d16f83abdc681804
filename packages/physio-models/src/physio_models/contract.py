"""What a model's input must be, and the refusal of anything else. Shape letters: B items, C channels, T samples.

A `SignalSpec` says what an input is, an `InputContract` what a model needs. What can be mended without loss is mended (order of
channels, unit, polarity); the rest is refused with the ``prepare.py`` flags that mend it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from physio_models import nearest
from physio_models.interface import Encoded, evaluating
from physio_models.normalize import NORMALIZERS, Fixed, normalize
from physio_models.pooling import pool_levels

__all__ = ["ANY", "ContractError", "Encoder", "InputContract", "SignalSpec", "normalize"]

ANY = "any"
"""A contract's word for a unit, band or filter it does not fix."""
BUTTERWORTH = "butterworth"
"""The filter of a band where nothing else is said."""

Band = tuple[float | None, float | None]
_VOLT = {"v": 1.0, "mv": 1e-3, "uv": 1e-6, "nv": 1e-9}
_ARBITRARY = {"a.u.", "au", "a.u", "nu", "arbitrary"}
_ALIASES = {"ppg": ("pleth", "bvp")}  # names of one and the same channel in open corpora


class ContractError(ValueError):
    """The input is not what the model needs; the message says what was given, what is needed and what mends it."""


class Arrangement(NamedTuple):
    """How to make an input fit: which of its channels in which order, and the factor that takes each to the contract's unit."""

    order: tuple[int, ...]
    factors: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SignalSpec:
    """What an input is: channel names and units in the order of its C axis, rate in Hz, window length, band already applied."""

    channels: tuple[str, ...]
    units: tuple[str, ...]
    fs: float  # Hz
    n_samples: int  # T
    band: Band | None = None  # pass band in Hz the signal was filtered to, a side None where open; None: unfiltered
    filter: str = BUTTERWORTH  # which filter made the band, by the name that prepared it
    notch_hz: float | None = None  # mains frequency that was taken out
    kind: str = ""  # "ecg", "ppg", "eeg"; "" unknown
    polarity: int = 1  # -1: recorded upside down

    def __post_init__(self) -> None:
        _freeze(self)
        _check_signal(self)
        if self.n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, got {self.n_samples}")
        if self.band == ANY:
            raise ValueError("band of an input must be (low_hz, high_hz) or None for unfiltered, got 'any'")

    @property
    def window_s(self) -> float:
        return self.n_samples / self.fs


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """What a model needs. Written beside its weights as ``contract.json``."""

    channels: tuple[str, ...]
    units: tuple[str, ...]  # one per channel; "any" where the normalisation makes it irrelevant
    fs: float  # Hz
    window_s: float
    band: Band | str | None = None  # pass band in Hz; None: unfiltered; "any": neither band nor filter nor notch is fixed
    filter: str = BUTTERWORTH  # which filter makes the band; "any": not fixed
    notch_hz: float | None = None  # mains frequency that is taken out
    normalization: str = "instance_minmax"  # applied by the Encoder, once per batch
    fixed: Fixed | None = None  # (offset, scale) in the contract's unit, for normalization "fixed"
    polarity: int = 1
    length_free: bool = False  # True: any window length will do
    kind: str = ""  # "ecg", "ppg", "eeg"; "" any
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # channel -> other names to take for it
    vocabulary: str = ""  # hash of the tokenizer's vocabulary, for a model that reads tokens
    fingerprint: tuple[float, ...] = ()  # numbers that the golden input must give; see `pretrained.fingerprint`

    def __post_init__(self) -> None:
        _freeze(self)
        _check_signal(self)
        if not (math.isfinite(self.window_s) and self.window_s > 0):
            raise ValueError(f"window_s must be a positive number of seconds, got {self.window_s}")
        if self.normalization not in NORMALIZERS:
            raise ValueError(f"normalization must be one of {', '.join(sorted(NORMALIZERS))}, got {self.normalization!r}")
        if (self.fixed is not None) != (self.normalization == "fixed"):
            raise ValueError(f"fixed=(offset, scale) belongs to normalization 'fixed' and only to it, got {self.normalization!r} and {self.fixed!r}")
        if unknown := set(self.aliases) - set(self.channels):
            raise ValueError(f"aliases name {sorted(unknown)}, which is no channel of {self.channels}")

    @property
    def n_samples(self) -> int:
        """Window length T in samples, halves rounded up."""
        return math.floor(self.window_s * self.fs + 0.5)

    @property
    def spec(self) -> SignalSpec:
        """An input that fits as it is."""
        band = None if self.band == ANY else self.band
        units = tuple("a.u." if unit == ANY else unit for unit in self.units)
        return SignalSpec(
            channels=self.channels,
            units=units,
            fs=self.fs,
            n_samples=self.n_samples,
            band=band,
            filter=BUTTERWORTH if self.filter == ANY else self.filter,
            notch_hz=self.notch_hz,
            kind=self.kind,
            polarity=self.polarity,
        )

    def check(self, spec: SignalSpec) -> Arrangement:
        """How ``spec`` is made to fit. ``ContractError`` names everything that does not fit and the ``prepare.py`` flags that mend it."""
        problems: list[str] = []
        flags: list[str] = []
        if self.kind and spec.kind and self.kind.lower() != spec.kind.lower():
            problems.append(f"signal is {spec.kind}, the model needs {self.kind} (use a store of {self.kind})")
        order = self._order(spec, problems, flags)
        factors = self._factors(spec, order, problems)
        if not math.isclose(spec.fs, self.fs, rel_tol=1e-6):
            problems.append(f"rate is {spec.fs:g} Hz, the model needs {self.fs:g} Hz")
            flags.append(f"--fs {self.fs:g}")
        elif not self.length_free and spec.n_samples != self.n_samples:
            problems.append(f"window is {spec.n_samples} samples ({spec.window_s:g} s), the model needs {self.n_samples} samples ({self.window_s:g} s)")
            flags.append(f"--window-s {self.window_s:g}")
        if self.band != ANY and not _same_band(self.band, spec.band):
            problems.append(f"band is {_band_text(spec.band)}, the model needs {_band_text(self.band)}")
            flags.append("--raw" if self.band is None else "--band " + ",".join("" if side is None else f"{side:g}" for side in self.band))
        if self.band not in (ANY, None) and spec.band is not None and self.filter not in (ANY, spec.filter):
            problems.append(f"filter is {spec.filter}, the model needs {self.filter}")
            flags.append(f"--filter {self.filter}")
        if self.band != ANY and (self.notch_hz or 0) != (spec.notch_hz or 0):
            have, want = (f"a notch at {hz:g} Hz" if hz else "no notch" for hz in (spec.notch_hz, self.notch_hz))
            problems.append(f"the input has {have}, the model needs {want}")
            flags.append(f"--notch-hz {self.notch_hz:g}" if self.notch_hz else "without --notch-hz")
        if problems:
            remedy = f"; prepare the data with: prepare.py ... {' '.join(flags)}" if flags else ""
            raise ContractError("the input does not fit the model: " + "; ".join(problems) + remedy)
        return Arrangement(tuple(order), tuple(factors))

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``contract.json``."""
        return asdict(self) | {"aliases": {name: list(others) for name, others in self.aliases.items()}}

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | str) -> InputContract:
        """From `to_json`'s values or their text. ``ValueError`` for a missing or unknown key, naming the nearest."""
        document = json.loads(document) if isinstance(document, str) else document
        known = [f.name for f in fields(cls)]
        for key in document:
            if key not in known:
                raise ValueError(f"contract has the unknown key {key!r}{nearest(key, known)}; keys are {', '.join(known)}")
        if missing := [name for name in ("channels", "units", "fs", "window_s") if name not in document]:
            raise ValueError(f"contract lacks {', '.join(missing)}")
        return cls(**document)

    def _order(self, spec: SignalSpec, problems: list[str], flags: list[str]) -> list[int]:
        """Positions in the input of the contract's channels, by name."""
        given = [_key(name) for name in spec.channels]
        order, missing = [], []
        for channel in self.channels:
            names = [_key(channel), *map(_key, self.aliases.get(channel, ())), *_ALIASES.get(_key(channel), ())]
            found = next((given.index(name) for name in names if name in given), None)
            order.append(-1 if found is None else found)
            if found is None:
                missing.append(channel)
        if missing:
            problems.append(f"channels are {', '.join(spec.channels)}, the model needs {', '.join(self.channels)} and misses {', '.join(missing)}")
            flags.append(f"--leads {','.join(self.channels)}")
        return order

    def _factors(self, spec: SignalSpec, order: list[int], problems: list[str]) -> list[float]:
        """Factor from each input channel's unit to the contract's."""
        factors = []
        for channel, unit, position in zip(self.channels, self.units, order, strict=True):
            factor = 1.0 if position < 0 else unit_factor(spec.units[position], unit)
            if factor is None:
                problems.append(
                    f"unit of {channel} is {spec.units[position]!r}, the model needs {unit!r} (convert the signal, or correct the unit its file states)"
                )
            factors.append(factor or 1.0)
        return factors


Tokenize = Callable[[Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]
"""(x_BCT in the contract's unit, valid_BT, channel_present_BC) -> ids (B, N) int64 and which of them are real (B, N)."""


class Encoder:
    """A model that takes any input its contract can be made to meet: called with (x, spec), it arranges, normalises and encodes.

    A model that reads tokens needs ``tokenize``, made from the tokenizer that the contract's ``vocabulary`` names. ``seen`` lists the
    data and subjects of pretraining (None: unknown), ``name`` and ``config`` say what the model is, ``source`` where it came from and
    ``home`` the folder with its contract, where there is one; ``untrained`` is True for a net as initialised.
    """

    def __init__(
        self,
        model: nn.Module,
        contract: InputContract,
        *,
        name: str = "",
        config: Any = None,
        seen: Mapping[str, Any] | None = None,
        source: str = "",
        untrained: bool = False,
        tokenize: Tokenize | None = None,
        home: Path | None = None,
    ) -> None:
        self.model, self.contract, self.tokenize, self.home = model, contract, tokenize, home
        self.name, self.config, self.seen, self.source, self.untrained = name, config, seen, source, untrained
        n_channels = getattr(getattr(model, "cfg", None), "n_channels", len(contract.channels))
        if n_channels != len(contract.channels):
            raise ContractError(f"contract names {len(contract.channels)} channels {contract.channels}, the model has {n_channels}; name one per channel")
        model.eval()

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(self.model.level_names)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> Encoder:
        """The same encoder, its model moved in place."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        x_BCT: Tensor | np.ndarray,
        spec: SignalSpec,
        *,
        valid_BT: Tensor | np.ndarray | None = None,
        channel_present_BC: Tensor | np.ndarray | None = None,
    ) -> Encoded:
        """Features of physical-unit input as ``spec`` describes it. ``ContractError`` if it cannot be made to fit the contract."""
        x, valid, channel_present_BC = self.prepare(x_BCT, spec, valid_BT=valid_BT, channel_present_BC=channel_present_BC)
        return self._encode(x, valid, channel_present_BC)

    def _encode(self, x: Tensor, valid: Tensor | None, channel_present_BC: Tensor | None) -> Encoded:
        with evaluating(self.model):
            return self.model.encode(x, valid_BT=valid, channel_present_BC=channel_present_BC)

    @torch.no_grad()
    def prepare(
        self,
        x_BCT: Tensor | np.ndarray,
        spec: SignalSpec,
        *,
        valid_BT: Tensor | np.ndarray | None = None,
        channel_present_BC: Tensor | np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The model's own input on its device: channels by name, contract's unit and polarity, normalised; with the two masks.

        For a model that reads tokens: ids (B, N) of the signal before it is normalised, which of them are real (B, N), and no channel mask.
        """
        arrangement = self.contract.check(spec)
        x_BCT = torch.as_tensor(x_BCT)
        if x_BCT.ndim != 3 or x_BCT.shape[1:] != (len(spec.channels), spec.n_samples):
            raise ContractError(f"x_BCT must be (batch, {len(spec.channels)}, {spec.n_samples}) as its spec says, got {tuple(x_BCT.shape)}")
        valid_BT = None if valid_BT is None else torch.as_tensor(valid_BT).bool().to(self.device)
        order = list(arrangement.order)
        factor_C1 = torch.tensor(arrangement.factors, dtype=torch.float64)[:, None] * (self.contract.polarity * spec.polarity)
        x_BCT = (x_BCT[:, order].double() * factor_C1.to(x_BCT.device)).float().to(self.device)
        if channel_present_BC is not None:
            channel_present_BC = torch.as_tensor(channel_present_BC).bool()[:, order].to(self.device)
            x_BCT = x_BCT.masked_fill(~channel_present_BC[:, :, None], 0.0)
        if getattr(getattr(self.model, "cfg", None), "input", "signal") == "tokens":
            if self.tokenize is None:
                raise ContractError("the model reads tokens and came without its tokenizer: open it with the tokenizer's file (physio_bpe.json)")
            ids_BN, real_BN = self.tokenize(x_BCT, valid_BT, channel_present_BC)
            return ids_BN.to(self.device), real_BN.to(self.device), None
        y_BCT, _ = normalize(x_BCT, self.contract.normalization, valid_BT, self.contract.fixed, channel_present_BC)
        return y_BCT, valid_BT, channel_present_BC

    @torch.no_grad()
    def features(
        self,
        x_BCT: Tensor | np.ndarray,
        spec: SignalSpec,
        *,
        level: str = "all",
        pool: str = "mean",
        valid_BT: Tensor | np.ndarray | None = None,
        channel_present_BC: Tensor | np.ndarray | None = None,
    ) -> Tensor:
        """One vector per item, (B, D): a level, or ``all`` of them, pooled; tokens past a short tail stay out."""
        x, valid, channel_present_BC = self.prepare(x_BCT, spec, valid_BT=valid_BT, channel_present_BC=channel_present_BC)
        encoded = self._encode(x, valid, channel_present_BC)
        return pool_levels(encoded, level, pool, None if valid is None else self.model.token_valid(valid))


def unit_factor(given: str, needed: str) -> float | None:
    """What takes a number in one unit to another: V, mV, uV and nV convert, any other must be the same; None where they do not meet."""
    a, b = _unit(given), _unit(needed)
    if b == ANY or a == b:
        return 1.0
    return _VOLT[a] / _VOLT[b] if a in _VOLT and b in _VOLT else None


def _unit(unit: str) -> str:
    text = unit.strip().lower().replace("µ", "u").replace("μ", "u")
    return "a.u." if text in _ARBITRARY else {"normalized": "normalised", "volt": "v", "millivolt": "mv", "microvolt": "uv"}.get(text, text)


def _key(channel: str) -> str:
    """A channel's name without case, separators and a leading "ECG" or "lead"."""
    plain = "".join(c for c in channel.lower() if c not in " -_.")
    bare = plain
    for word in ("ecg", "ekg", "lead"):
        bare = bare.removeprefix(word)
    return bare or plain


def _same_band(a: Band | str | None, b: Band | None) -> bool:
    if a is None or b is None or isinstance(a, str):
        return a is b
    return all(x == y if x is None or y is None else math.isclose(x, y, rel_tol=1e-6) for x, y in zip(a, b, strict=True))


def _band_text(band: Band | str | None) -> str:
    if band is None or isinstance(band, str):
        return "unfiltered" if band is None else band
    return f"{'' if band[0] is None else f'{band[0]:g}'}-{'' if band[1] is None else f'{band[1]:g}'} Hz"


def _freeze(value: SignalSpec | InputContract) -> None:
    """Lists, as JSON gives them, become tuples; an entirely open band is no band."""
    for f in fields(value):
        object.__setattr__(value, f.name, _tuples(getattr(value, f.name)))
    if value.band == (None, None):
        object.__setattr__(value, "band", None)


def _tuples(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(entry) for entry in value)
    return {key: _tuples(entry) for key, entry in value.items()} if isinstance(value, Mapping) else value


def _check_signal(value: SignalSpec | InputContract) -> None:
    if isinstance(value.channels, str) or isinstance(value.units, str):
        raise ValueError(f"channels and units must be tuples of names, got {value.channels!r} and {value.units!r}")
    if not value.channels or len(value.channels) != len(value.units):
        raise ValueError(f"channels and units must be equally long and not empty, got {value.channels} and {value.units}")
    if len({_key(name) for name in value.channels}) != len(value.channels):
        raise ValueError(f"channels must be distinct, got {value.channels}")
    if not (math.isfinite(value.fs) and value.fs > 0):
        raise ValueError(f"fs must be a positive rate in Hz, got {value.fs}")
    if value.polarity not in (1, -1):
        raise ValueError(f"polarity must be 1 or -1, got {value.polarity}")
    if value.band not in (None, ANY) and (isinstance(value.band, str) or len(value.band) != 2):
        raise ValueError(f"band must be (low_hz, high_hz), None or, in a contract, 'any', got {value.band!r}")
