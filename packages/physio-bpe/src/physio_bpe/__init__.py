"""Tokenize physiological signals: quantise samples to symbols, join frequent pairs, encode, decode. NumPy and a compiled core, nothing else.

tokenizer = train(ecg_NCT, n_merges=1000)
encoded = tokenizer.encode(ecg_NCT[0])
ecg_CT = tokenizer.decode(encoded)
"""

from __future__ import annotations

from physio_bpe.encoded import Encoded, EncodedBatch
from physio_bpe.errors import FileFormatError, SignalError, TokenizerError, VocabularyError
from physio_bpe.interop import from_hf_json, hf_json, load_hf, save_hf, to_hf
from physio_bpe.layout import LAYOUTS, Layout, Spans
from physio_bpe.published import from_expanded, load_published, longest_match
from physio_bpe.quantize import (
    QUANTIZERS,
    FixedRange,
    LeadMinMax,
    MuLaw,
    Percentile,
    Quantized,
    Quantizer,
    RecordMinMax,
    Scale,
    dequantize,
    quantize,
)
from physio_bpe.serialize import from_json, load, save, to_json
from physio_bpe.tokenizer import Mode, Tokenizer
from physio_bpe.training import train, train_symbols

__all__ = [
    "LAYOUTS",
    "QUANTIZERS",
    "Encoded",
    "EncodedBatch",
    "FileFormatError",
    "FixedRange",
    "Layout",
    "LeadMinMax",
    "Mode",
    "MuLaw",
    "Percentile",
    "Quantized",
    "Quantizer",
    "RecordMinMax",
    "Scale",
    "SignalError",
    "Spans",
    "Tokenizer",
    "TokenizerError",
    "VocabularyError",
    "dequantize",
    "from_expanded",
    "from_hf_json",
    "from_json",
    "hf_json",
    "load",
    "load_hf",
    "load_published",
    "longest_match",
    "quantize",
    "save",
    "save_hf",
    "to_hf",
    "to_json",
    "train",
    "train_symbols",
]
