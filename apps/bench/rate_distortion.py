"""What tokens cost and what they keep: bits per second against PRD and RMSE over quantizers, levels and merges, gzip and zstd of the same symbols beside.

    uv run --group bench apps/bench/rate_distortion.py --root ptbxl

Reads the 100 Hz records of PTB-XL, 0.5-40 Hz, whole ten seconds of 12 leads. Merges are learned on all official folds but the last one present,
everything is measured on that one; patients are never on both sides. Rates are per lead and include the scale (two float32 per record or lead).
Shape letters: N records, C leads, T samples.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import zstandard

from physio_bpe import FixedRange, LeadMinMax, MuLaw, Percentile, Quantizer, RecordMinMax, Tokenizer, dequantize, quantize, train
from physio_bpe.layout import Layout, flatten
from physio_data import open_recording
from physio_data.filters import bandpass

FS = 100.0
MERGES = (500, 2000, 10000)
ROWS: list[tuple[str, Quantizer, Layout]] = [
    ("record min-max (ECG-Byte)", RecordMinMax(), "lead_major"),
    ("record min-max", RecordMinMax(n_levels=13), "lead_major"),
    ("record min-max", RecordMinMax(n_levels=64), "lead_major"),
    ("record min-max", RecordMinMax(n_levels=256), "lead_major"),
    ("record min-max, per lead", RecordMinMax(), "per_lead"),
    ("record min-max, interleaved", RecordMinMax(), "interleaved"),
    ("lead min-max", LeadMinMax(), "lead_major"),
    ("percentiles 0.1-99.9", Percentile(lower=0.1, upper=99.9), "lead_major"),
    ("fixed -2.5 ... 2.5 mV", FixedRange(), "lead_major"),
    ("fixed -2.5 ... 2.5 mV", FixedRange(n_levels=64), "lead_major"),
    ("fixed -2.5 ... 2.5 mV", FixedRange(n_levels=256), "lead_major"),
    ("mu-law 255, peak 5 mV", MuLaw(peak_mv=5.0), "lead_major"),
    ("mu-law 255, peak 5 mV", MuLaw(peak_mv=5.0, n_levels=64), "lead_major"),
]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One line of the table; rates in bits per second and lead."""

    quantizer: str
    n_levels: int
    merges: int
    symbols_per_token: float
    fixed_bps: float  # every token in log2(levels + merges) bits
    entropy_bps: float  # coded with the token frequencies of the training records
    gzip_bps: float  # the same symbols, record by record
    zstd_bps: float
    zstd_stream_bps: float  # all test records as one stream
    prd_percent: float
    rmse_uv: float
    clipped_percent: float


def read(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Records (N, C, T) float32 in mV and their official folds (N,), those whose files are there."""
    with open(root / "ptbxl_database.csv", newline="", encoding="utf-8") as file:
        entries = [(row["filename_lr"], int(float(row["strat_fold"]))) for row in csv.DictReader(file)]
    there = [(root / f"{name}.hea", fold) for name, fold in entries if (root / f"{name}.hea").exists()]
    if not there:
        raise SystemExit(f"{root} holds none of the 100 Hz records that its ptbxl_database.csv names")
    x_NCT = np.stack([open_recording(path).read() for path, _ in there])
    return bandpass(x_NCT, FS, 0.5, 40.0), np.array([fold for _, fold in there])


def compressed_bits(lines: Sequence[bytes]) -> tuple[float, float, float]:
    """Bits of gzip -9 and zstd -19 record by record, and of zstd -19 in one stream."""
    zstd = zstandard.ZstdCompressor(level=19)
    each = [(len(gzip.compress(line, 9, mtime=0)), len(zstd.compress(line))) for line in lines]
    return 8.0 * sum(g for g, _ in each), 8.0 * sum(z for _, z in each), 8.0 * len(zstd.compress(b"".join(lines)))


def entropy_bits(train_ids: np.ndarray, test_ids: np.ndarray, n_used: int) -> float:
    """Bits of the test tokens under the training tokens' frequencies, one added to each of the `n_used` tokens that may come."""
    counts = np.bincount(train_ids, minlength=int(test_ids.max()) + 1)
    return float(np.sum(np.log2(len(train_ids) + n_used) - np.log2(counts[test_ids] + 1)))


def points(name: str, quantizer: Quantizer, layout: Layout, x_train_NCT: np.ndarray, x_test_NCT: np.ndarray) -> list[Point]:
    """The table's lines of one quantizer and layout."""
    N, C, T = x_test_NCT.shape
    made = quantize(x_test_NCT, quantizer)
    error_NCT = dequantize(made.symbols, quantizer, made.scale).astype(np.float64) - x_test_NCT
    centred_NCT = x_test_NCT - x_test_NCT.mean(-1, keepdims=True)
    prd_N = 100 * np.sqrt((error_NCT**2).sum((1, 2)) / (centred_NCT**2).sum((1, 2)))
    line, _ = flatten(made.symbols, layout)
    seconds = N * C * T / FS
    fixed_scale = isinstance(quantizer, FixedRange) or (isinstance(quantizer, MuLaw) and quantizer.peak_mv is not None)
    scale_bits = 0 if fixed_scale else 64 * N * (C if isinstance(quantizer, LeadMinMax) else 1)
    peers = [(bits + scale_bits) / seconds for bits in compressed_bits([part.tobytes() for part in line.reshape(N, C * T)])]
    whole = train(x_train_NCT, max(MERGES), quantizer=quantizer, layout=layout)
    lines = []
    for n_merges in MERGES:
        tokenizer: Tokenizer = replace(whole, merges=whole.merges[:n_merges])  # training is incremental: its first merges are a shorter training's
        test_ids, train_ids = tokenizer.encode_batch(x_test_NCT).ids, tokenizer.encode_batch(x_train_NCT).ids
        n_used = quantizer.n_levels + tokenizer.n_merges
        lines.append(
            Point(
                quantizer=name,
                n_levels=quantizer.n_levels,
                merges=tokenizer.n_merges,
                symbols_per_token=line.size / len(test_ids),
                fixed_bps=(len(test_ids) * math.log2(n_used) + scale_bits) / seconds,
                entropy_bps=(entropy_bits(train_ids, test_ids, n_used) + scale_bits) / seconds,
                gzip_bps=peers[0],
                zstd_bps=peers[1],
                zstd_stream_bps=peers[2],
                prd_percent=float(prd_N.mean()),
                rmse_uv=1000 * float(np.sqrt((error_NCT**2).mean())),
                clipped_percent=100 * float(made.n_clipped.sum()) / line.size,
            )
        )
    return lines


def table(found: Sequence[Point]) -> str:
    """Markdown; what does not depend on the merges stands once, and for each number of merges symbols per token / fixed_bps / entropy_bps."""
    head = ["quantizer", "levels", "PRD %", "RMSE uV", "clipped %", "gzip", "zstd", "zstd, one stream"]
    head += [f"{n} merges" for n in MERGES]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for first in range(0, len(found), len(MERGES)):
        group = found[first : first + len(MERGES)]
        point = group[0]
        cells = [point.quantizer, str(point.n_levels), f"{point.prd_percent:.2f}", f"{point.rmse_uv:.1f}", f"{point.clipped_percent:.3f}"]
        cells += [f"{value:.0f}" for value in (point.gzip_bps, point.zstd_bps, point.zstd_stream_bps)]
        cells += [f"{one.symbols_per_token:.2f} / {one.fixed_bps:.0f} / {one.entropy_bps:.0f}" for one in group]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of PTB-XL: ptbxl_database.csv and records100")
    args = parser.parse_args()
    began = time.monotonic()
    x_NCT, fold_N = read(args.root)
    test_N = fold_N == fold_N.max()
    sides = f"{(~test_N).sum()} training and {test_N.sum()} test records (fold {fold_N.max()})"
    print(f"{sides}; 16-bit samples would be {16 * FS:.0f} bits per second and lead", file=sys.stderr)
    found: list[Point] = []
    for name, quantizer, layout in ROWS:
        found += points(name, quantizer, layout, x_NCT[~test_N], x_NCT[test_N])
        print(f"{time.monotonic() - began:5.0f} s  {name}, {quantizer.n_levels} levels", file=sys.stderr)
    print(table(found))
    summary = {"records_train": int((~test_N).sum()), "records_test": int(test_N.sum()), "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(summary | {"points": [vars(point) for point in found]}))


if __name__ == "__main__":
    main()
