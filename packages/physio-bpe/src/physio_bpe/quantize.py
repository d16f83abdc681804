"""Signals to symbols and back: a quantizer measures a range per lead and cuts it into equal bins; the range comes back as the Scale.

Shape letters: N records, C leads, T samples. Arithmetic is float32, as in ECG-Byte (Han et al. 2024, arXiv 2412.14373), whose rule is
`RecordMinMax()`: u = (x - min) / (max - min + 1e-6), level = min(floor(26 u), 25), letter = a + level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from physio_bpe.errors import SignalError

Float = NDArray[np.float32]
Symbols = NDArray[np.uint8]
Counts = NDArray[np.int64]
Missing = Literal["refuse", "hold", "zero"]

EPSILON = np.float32(1e-6)  # added to a measured range, so that a flat record is not divided by zero
ONE, TWO = np.float32(1), np.float32(2)
BLOCK = 1 << 16  # samples worked on at a time: what is between two steps stays in the L2 cache
LETTERS = 26  # this many levels are the letters a-z, bytes 97-122; other alphabets are the bytes 0 ... n-1


class Scale(NamedTuple):
    """The range that was cut into bins: `low` and `span`, each (C,) for a record or (N, C) for a batch, in the signal's unit."""

    low: Float
    span: Float


class Quantized(NamedTuple):
    """Symbols and what it takes to read them: `n_clipped` samples lay outside the scale, `n_filled` were missing, per lead."""

    symbols: Symbols
    scale: Scale
    n_clipped: Counts
    n_filled: Counts


class Quantizer(Protocol):
    """How a range is measured. `mu` bends it (0 is straight); `clips` says whether own samples can lie outside."""

    @property
    def n_levels(self) -> int: ...
    @property
    def missing(self) -> Missing: ...
    @property
    def mu(self) -> float: ...

    clips: ClassVar[bool]

    def measure(self, x_NCT: Float) -> tuple[Float, Float]:
        """Low and span, each (N, 1, 1) or (N, C, 1); not finite where the samples are not."""
        ...


def _check_common(n_levels: int, missing: str) -> None:
    if isinstance(n_levels, bool) or not isinstance(n_levels, int) or not 2 <= n_levels <= 256:
        raise ValueError(f"n_levels must be a whole number from 2 to 256, got {n_levels!r}")
    if missing not in ("refuse", "hold", "zero"):
        raise ValueError(f"missing must be 'refuse', 'hold' or 'zero', got {missing!r}")


@dataclass(frozen=True, kw_only=True)
class RecordMinMax:
    """From the smallest to the largest sample of the record, all leads together: proportions between leads survive (ECG-Byte)."""

    n_levels: int = LETTERS
    missing: Missing = "refuse"
    mu: ClassVar[float] = 0.0
    clips: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_common(self.n_levels, self.missing)

    def measure(self, x_NCT: Float) -> tuple[Float, Float]:
        return _minmax(x_NCT, (1, 2))


@dataclass(frozen=True, kw_only=True)
class LeadMinMax:
    """From the smallest to the largest sample of each lead: a small lead uses all levels."""

    n_levels: int = LETTERS
    missing: Missing = "refuse"
    mu: ClassVar[float] = 0.0
    clips: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_common(self.n_levels, self.missing)

    def measure(self, x_NCT: Float) -> tuple[Float, Float]:
        return _minmax(x_NCT, (2,))


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """From one percentile to another, of the record or of each lead: an artefact does not stretch the bins, it is clipped and counted."""

    lower: float = 1.0  # percent
    upper: float = 99.0  # percent
    per: Literal["record", "lead"] = "record"
    n_levels: int = LETTERS
    missing: Missing = "refuse"
    mu: ClassVar[float] = 0.0
    clips: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_common(self.n_levels, self.missing)
        if not 0 <= self.lower < self.upper <= 100:
            raise ValueError(f"lower and upper must be percentages with 0 <= lower < upper <= 100, got {self.lower} and {self.upper}")
        if self.per not in ("record", "lead"):
            raise ValueError(f"per must be 'record' or 'lead', got {self.per!r}")

    def measure(self, x_NCT: Float) -> tuple[Float, Float]:
        axis = (1, 2) if self.per == "record" else (2,)
        low, high = np.percentile(x_NCT, [self.lower, self.upper], axis=axis, keepdims=True).astype(np.float32)
        return low, high - low + EPSILON


@dataclass(frozen=True, kw_only=True)
class FixedRange:
    """A range in millivolts, the same for every record: amplitude survives, and what lies outside is clipped and counted."""

    low_mv: float = -2.5
    high_mv: float = 2.5
    n_levels: int = LETTERS
    missing: Missing = "refuse"
    mu: ClassVar[float] = 0.0
    clips: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_common(self.n_levels, self.missing)
        if not (math.isfinite(self.low_mv) and math.isfinite(self.high_mv) and self.low_mv < self.high_mv):
            raise ValueError(f"low_mv and high_mv must be finite with low_mv < high_mv, got {self.low_mv} and {self.high_mv}")

    def measure(self, x_NCT: Float) -> tuple[Float, Float]:
        shape = (len(x_NCT), 1, 1)
        return np.full(shape, self.low_mv, np.float32), np.full(shape, self.high_mv - self.low_mv, np.float32)


@dataclass(frozen=True, kw_only=True)
class MuLaw:
    """Fine bins around zero, coarse ones at the ends: sign(x) ln(1 + mu |x| / peak) / ln(1 + mu) in equal bins (ITU-T G.711's law).

    Without `peak_mv` the peak is the record's largest absolute sample.
    """

    mu: float = 255.0
    peak_mv: float | None = None
    n_levels: int = LETTERS
    missing: Missing = "refuse"
    clips: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_common(self.n_levels, self.missing)
        if not (math.isfinite(self.mu) and self.mu > 0):
            raise ValueError(f"mu must be finite and positive, got {self.mu}")
        if self.peak_mv is not None and not (math.isfinite(self.peak_mv) and self.peak_mv > 0):
            raise ValueError(f"peak_mv must be finite and positive, or None for the record's own, got {self.peak_mv}")

    def measure(self, x_NCT: Float) -> tuple[Float, Float]:
        if self.peak_mv is None:
            peak_N11 = np.abs(x_NCT).max((1, 2), keepdims=True) + EPSILON
        else:
            peak_N11 = np.full((len(x_NCT), 1, 1), self.peak_mv, np.float32)
        return -peak_N11, 2 * peak_N11


QUANTIZERS: dict[str, type[RecordMinMax | LeadMinMax | Percentile | FixedRange | MuLaw]] = {
    "record_minmax": RecordMinMax,
    "lead_minmax": LeadMinMax,
    "percentile": Percentile,
    "fixed_range": FixedRange,
    "mu_law": MuLaw,
}
ECG_BYTE: Quantizer = RecordMinMax()  # what is taken where none is named


def first_byte(n_levels: int) -> int:
    """The byte of level 0: 97 ('a') for 26 levels, else 0."""
    return ord("a") if n_levels == LETTERS else 0


def to_plain(quantizer: Quantizer) -> dict[str, object]:
    """A quantizer as plain values, its table name under "name"; equal quantizers give the same text, however their numbers were written."""
    name = next((name for name, kind in QUANTIZERS.items() if type(quantizer) is kind), None)
    if name is None:
        raise ValueError(f"quantizer must be one of {', '.join(QUANTIZERS)}, got {type(quantizer).__name__}")
    fields: dict[str, object] = asdict(quantizer)  # type: ignore[call-overload]
    return {"name": name} | {key: float(value) if isinstance(value, Real) and key != "n_levels" else value for key, value in fields.items()}


def from_plain(values: Mapping[str, object]) -> Quantizer:
    """The quantizer that `to_plain` wrote. ValueError for an unknown name, an unknown field or a value of a wrong type."""
    given = dict(values)
    name = given.pop("name", None)
    if name not in QUANTIZERS:
        raise ValueError(f"quantizer name must be one of {', '.join(QUANTIZERS)}, got {name!r}")
    defaults = asdict(QUANTIZERS[str(name)]())
    for key, value in given.items():
        if key not in defaults:
            raise ValueError(f"quantizer {name!r} has no field {key!r}; it has {', '.join(defaults)}")
        wanted = (int,) if key == "n_levels" else (str,) if isinstance(defaults[key], str) else (int, float, type(defaults[key]))
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise ValueError(f"quantizer field {key!r} must be {' or '.join(kind.__name__ for kind in wanted)}, got {value!r}")
    return QUANTIZERS[str(name)](**given)  # type: ignore[arg-type]


def quantize(x: ArrayLike, quantizer: Quantizer, scale: Scale | None = None) -> Quantized:
    """Symbols of a record (C, T) or of a batch (N, C, T): uint8 of the same shape, with the scale and the counts, (C,) or (N, C).

    `scale`, from an earlier call or `Scale(low, span)` of anything that broadcasts to the leads, replaces what the quantizer would measure.
    Samples outside it take the first or last level and are counted. SignalError names the record, lead and sample of the first value that is
    not finite, unless the quantizer says what to do with such (`missing`: "hold" repeats the last finite sample of the lead, "zero" puts 0).
    """
    x_NCT, single = _as_batch(x)
    N, C, T = x_NCT.shape
    symbols_NCT = np.empty(x_NCT.shape, np.uint8)
    low_NC, span_NC = np.empty((N, C), np.float32), np.empty((N, C), np.float32)
    n_clipped_NC, n_filled_NC = np.zeros((N, C), np.int64), np.zeros((N, C), np.int64)
    given = None if scale is None else _as_scale(scale, (N, C), single)
    step = max(1, BLOCK // (C * T))
    for start in range(0, N, step):
        part = slice(start, min(start + step, N))
        own = None if given is None else (given[0][part, :, None], given[1][part, :, None])
        _block(x_NCT[part], quantizer, own, symbols_NCT[part], (low_NC[part], span_NC[part], n_clipped_NC[part], n_filled_NC[part]), start)
    if single:
        return Quantized(symbols_NCT[0], Scale(low_NC[0], span_NC[0]), n_clipped_NC[0], n_filled_NC[0])
    return Quantized(symbols_NCT, Scale(low_NC, span_NC), n_clipped_NC, n_filled_NC)


def dequantize(symbols: ArrayLike, quantizer: Quantizer, scale: Scale) -> Float:
    """The signal at bin centres, float32 of the symbols' shape (C, T) or (N, C, T): ((level + 0.5) / n) * span + low.

    Within half a bin of what was quantised and not clipped. SignalError names the first symbol outside the alphabet.
    """
    symbols_NCT = np.asarray(symbols)
    single = symbols_NCT.ndim == 2
    if symbols_NCT.ndim not in (2, 3) or symbols_NCT.dtype != np.uint8:
        raise SignalError(f"symbols must be uint8 (leads, samples) or (records, leads, samples), got {symbols_NCT.dtype} {symbols_NCT.shape}")
    symbols_NCT = symbols_NCT[None] if single else symbols_NCT
    low_NC, span_NC = _as_scale(scale, symbols_NCT.shape[:2], single)
    n, first = quantizer.n_levels, first_byte(quantizer.n_levels)
    outside = (symbols_NCT < first) | (symbols_NCT > first + n - 1)
    if outside.any():
        record, lead, sample = np.unravel_index(int(outside.argmax()), outside.shape)
        raise SignalError(
            f"symbol {symbols_NCT[record, lead, sample]} of record {record}, lead {lead}, sample {sample} is not in the alphabet {first} ... {first + n - 1}"
        )
    u_K = (np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n)
    if quantizer.mu:
        u_K = _expanded(u_K, quantizer.mu)
    x_NCT = u_K[symbols_NCT - np.uint8(first)] * span_NC[..., None] + low_NC[..., None]
    return x_NCT[0] if single else x_NCT


def _minmax(x_NCT: Float, axis: tuple[int, ...]) -> tuple[Float, Float]:
    low = x_NCT.min(axis, keepdims=True)
    return low, x_NCT.max(axis, keepdims=True) - low + EPSILON


def _as_batch(x: ArrayLike) -> tuple[Float, bool]:
    array = np.asarray(x)
    if array.dtype.kind not in "iuf":
        raise SignalError(f"a signal must hold numbers, got dtype {array.dtype}")
    if array.ndim not in (2, 3):
        raise SignalError(f"a signal must be (leads, samples) or (records, leads, samples), got shape {array.shape}; add the missing axis explicitly")
    if 0 in array.shape:
        raise SignalError(f"a signal must have at least one record, lead and sample, got shape {array.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused by position
        x_NCT = np.ascontiguousarray(array, np.float32)
    return (x_NCT[None], True) if array.ndim == 2 else (x_NCT, False)


def _as_scale(scale: Scale, shape_NC: tuple[int, ...], single: bool) -> tuple[Float, Float]:
    low, span = (np.asarray(part, np.float32) for part in scale)
    try:
        low_NC, span_NC = (np.broadcast_to(part, shape_NC) for part in (low, span))
    except ValueError:
        what = f"({shape_NC[1]},)" if single else f"{tuple(shape_NC)}"
        raise SignalError(f"scale must be of shape {what} or broadcast to it, got low {low.shape} and span {span.shape}") from None
    if not (np.isfinite(low_NC).all() and np.isfinite(span_NC).all() and (span_NC > 0).all()):
        raise SignalError("scale must have a finite low and a finite, positive span for every lead")
    return low_NC, span_NC


def _block(
    x_NCT: Float,
    quantizer: Quantizer,
    scale: tuple[Float, Float] | None,
    symbols_NCT: Symbols,
    out: tuple[Float, Float, Counts, Counts],
    first_record: int,
) -> None:
    """Quantise some records into `symbols_NCT` and note scale and counts in `out`."""
    low_NC, span_NC, n_clipped_NC, n_filled_NC = out
    with np.errstate(invalid="ignore", over="ignore"):  # checked below: NaN and infinities pass through minimum, maximum and differences
        low, span = quantizer.measure(x_NCT) if scale is None else scale
        u_NCT = x_NCT - low
        u_NCT /= span
    may_clip = scale is not None or quantizer.clips
    u_min, u_max = (u_NCT.min(), u_NCT.max()) if may_clip else (np.float32(0), np.float32(1))
    if not (np.isfinite(low).all() and np.isfinite(span).all() and np.isfinite(u_min) and np.isfinite(u_max)):
        filled_NCT, n_filled_NC[...] = _filled(x_NCT, quantizer.missing, first_record)
        return _block(filled_NCT, quantizer, scale, symbols_NCT, (low_NC, span_NC, n_clipped_NC, np.zeros_like(n_filled_NC)), first_record)
    low_NC[...], span_NC[...] = low[..., 0], span[..., 0]
    if u_min < 0 or u_max > 1:
        n_clipped_NC[...] = ((u_NCT < 0) | (u_NCT > 1)).sum(-1)
        np.clip(u_NCT, 0, 1, out=u_NCT)
    if quantizer.mu:
        u_NCT = _compressed(u_NCT, quantizer.mu)
    u_NCT *= np.float32(quantizer.n_levels)
    np.minimum(u_NCT, np.float32(quantizer.n_levels - 1), out=u_NCT)
    np.copyto(symbols_NCT, u_NCT, casting="unsafe")  # towards zero, which is the floor of what is not negative
    if first := first_byte(quantizer.n_levels):
        symbols_NCT += np.uint8(first)


def _filled(x_NCT: Float, missing: Missing, first_record: int) -> tuple[Float, Counts]:
    """The records without values that are not finite, and how many each lead had. SignalError where they are refused or there is nothing to hold."""
    finite_NCT = np.isfinite(x_NCT)
    if finite_NCT.all():
        raise SignalError(f"the range of records {first_record} ... {first_record + len(x_NCT) - 1} is more than float32 can hold; rescale the signal")
    if missing == "refuse":
        record, lead, sample = np.unravel_index(int(finite_NCT.argmin()), finite_NCT.shape)
        raise SignalError(
            f"the signal is {x_NCT[record, lead, sample]} at record {first_record + record}, lead {lead}, sample {sample}; "
            "mend or leave out the record, or give the quantizer missing='hold' or 'zero'"
        )
    n_filled_NC = (~finite_NCT).sum(-1)
    if missing == "zero":
        return np.where(finite_NCT, x_NCT, np.float32(0)), n_filled_NC
    if not (some_NC := finite_NCT.any(-1)).all():
        record, lead = np.unravel_index(int(some_NC.argmin()), some_NC.shape)
        raise SignalError(f"record {first_record + record}, lead {lead} has no finite sample to hold; leave it out or use missing='zero'")
    first_NC = finite_NCT.argmax(-1)
    at_NCT = np.where(finite_NCT, np.arange(x_NCT.shape[-1]), first_NC[..., None])
    return np.take_along_axis(x_NCT, np.maximum.accumulate(at_NCT, axis=-1), axis=-1), n_filled_NC


def _compressed(u: Float, mu: float) -> Float:
    """Position in the range, 0 to 1, to position on the mu-law curve."""
    v = TWO * u - ONE
    w: Float = np.copysign(np.log1p(np.float32(mu) * np.abs(v)), v) / np.float32(math.log1p(mu))
    return (w + ONE) / TWO


def _expanded(u: Float, mu: float) -> Float:
    """The inverse of `_compressed`."""
    v = TWO * u - ONE
    w: Float = np.copysign(np.expm1(np.abs(v) * np.float32(math.log1p(mu))), v) / np.float32(mu)
    return (w + ONE) / TWO
