"""How fast wavelet transforms are: against PyWavelets (fft and conv), ptwt, and the bank of 1-D convolutions that CWT-MAE uses.

    uv run --group bench apps/bench/cwt.py [--signals 24] [--scales 64] [--lengths 1000 2000 3000] [--rounds 7] [--threads 1]

Ours and the peers take turns on fresh signals (A B C A B C), one thread; times are the least CPU time of the rounds (wall time with
several threads), and each result is checked against its definition in float64. The limit is what the inverse transforms alone take,
in cache, plus writing the result once at the speed of a copy. Shape letters: B signals, S scales, L samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pywt
import torch
from torch.nn import functional as F

from physio_models.cwt import cwt, fast_length, linear_scales

try:
    import ptwt
except ImportError:  # the bench group is not installed
    ptwt = None

Transform = Callable[[np.ndarray], np.ndarray]  # (B, L) -> (B, S, L)
ACCURACY = 5e-7  # rms of the float32 error, relative to the rms of the result
SLOW_S = 20.0  # a peer that takes longer is run twice


@dataclass(frozen=True)
class Row:
    """One line of the table: ours against a peer at one length, with the ratio that must be reached and the one aimed at."""

    name: str
    peer: str
    must: float
    aim: float


ROWS: dict[int, tuple[Row, ...]] = {
    length: (
        Row("morlet magnitude", "pywt fft, abs", *morlet),
        Row("morlet complex", "pywt fft", *morlet),
        Row("ricker", "pywt fft", *ricker),
        Row("ricker", "ptwt", 6, 12),
        Row("ricker", "pywt conv", 20, 40),
        Row("reference", "conv1d bank", 25, 60),
    )
    for length, morlet, ricker in ((1000, (4, 8), (7, 12)), (2000, (3, 6), (4.5, 8)), (3000, (2.3, 4.5), (3.5, 6)))
}


def ours(scales: np.ndarray, wavelet: str, definition: str = "pywt", output: str = "coefficients") -> Transform:
    """Ours, into memory that it keeps for results of a shape: the row measures arithmetic, not page faults."""
    kept: dict[tuple[int, ...], torch.Tensor] = {}
    dtype = torch.complex64 if (wavelet, output) == ("morlet", "coefficients") else torch.float32

    def run(x_BL: np.ndarray) -> np.ndarray:
        if x_BL.shape not in kept:
            kept[x_BL.shape] = torch.zeros(len(x_BL), len(scales), x_BL.shape[1], dtype=dtype)
        return cwt(torch.from_numpy(x_BL), scales, wavelet=wavelet, definition=definition, output=output, out=kept[x_BL.shape]).numpy()

    return run


def by_pywt(scales: np.ndarray, name: str, method: str) -> Transform:
    return lambda x_BL: np.moveaxis(pywt.cwt(x_BL, scales, name, method=method)[0], 0, 1)


def by_ptwt(scales: np.ndarray) -> Transform:
    return lambda x_BL: np.moveaxis(ptwt.cwt(torch.from_numpy(x_BL), torch.from_numpy(scales).float(), "mexh")[0].numpy(), 0, 1)


def conv1d_bank(scales: np.ndarray, n_samples: int) -> Transform:
    """CWT-MAE's front end as published: mirror, then one convolution with all wavelets at full width."""
    width = int(min(10 * scales.max(), n_samples)) // 2 * 2 + 1
    u_SW = (np.arange(width) - width // 2) / scales[:, None]
    gain_S1 = 2 / (np.sqrt(3 * scales) * np.pi**0.25 + 1e-6)[:, None]
    bank_S1W = torch.from_numpy(gain_S1 * (1 - u_SW**2) * np.exp(-(u_SW**2) / 2)).float()[:, None]

    def run(x_BL: np.ndarray) -> np.ndarray:
        padded = F.pad(torch.from_numpy(x_BL)[:, None], (width // 2, width // 2), mode="reflect")
        return F.conv1d(padded, bank_S1W.to(padded.dtype)).numpy()

    return run


def variants(scales: np.ndarray, n_samples: int) -> dict[str, dict[str, Transform]]:
    """Ours and its peers under the names of ROWS, ours first."""
    published = np.array(linear_scales(len(scales)))
    ptwt_peer = {"ptwt": by_ptwt(scales)} if ptwt is not None else {}
    magnitude = by_pywt(scales, "cmor1.5-1.0", "fft")
    return {
        "morlet magnitude": {"ours": ours(scales, "morlet", output="magnitude"), "pywt fft, abs": lambda x_BL: np.abs(magnitude(x_BL))},
        "morlet complex": {"ours": ours(scales, "morlet"), "pywt fft": by_pywt(scales, "cmor1.5-1.0", "fft")},
        "ricker": {"ours": ours(scales, "ricker"), "pywt fft": by_pywt(scales, "mexh", "fft"), **ptwt_peer, "pywt conv": by_pywt(scales, "mexh", "conv")},
        "reference": {"ours": ours(published, "ricker", "reference"), "conv1d bank": conv1d_bank(published, n_samples)},
    }


def exact(name: str, scales: np.ndarray, x_BL: np.ndarray) -> np.ndarray:
    """The definition in float64, by a way other than ours."""
    x_BL = x_BL.astype(np.float64)
    if name == "reference":
        return conv1d_bank(np.array(linear_scales(len(scales))), x_BL.shape[1])(x_BL)
    y_BSL = by_pywt(scales, "mexh" if name == "ricker" else "cmor1.5-1.0", "conv")(x_BL)
    return np.abs(y_BSL) if name == "morlet magnitude" else y_BSL


def relative_error(y: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(y - expected) ** 2) / np.mean(np.abs(expected) ** 2)))


def least_times(runs: dict[str, Transform], n_signals: int, n_samples: int, n_rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Least time of each variant, in turns, on signals that no variant has seen."""
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n_rounds):
        for name, run in runs.items():
            if len(times[name]) >= 2 and (max(times[name]) > SLOW_S or max(times[name]) > 50 * min(times["ours"])):
                continue
            x_BL = rng.standard_normal((n_signals, n_samples), dtype=np.float32)
            start = clock()
            run(x_BL)
            times[name].append(clock() - start)
    return {name: min(seconds) for name, seconds in times.items()}


def limit(name: str, scales: np.ndarray, n_signals: int, n_samples: int, clock: Callable[[], float]) -> float:
    """Inverse transforms of the signal's own length (no wavelet is shorter than one sample) in cache, and one copy of the result."""
    n_fft, whole = fast_length(n_samples), name.startswith("morlet")
    n_rows = 2**19 // (4 * n_fft)
    spectrum = torch.randn(n_rows, n_fft if whole else n_fft // 2 + 1, dtype=torch.complex64)
    inverse = torch.fft.ifft if whole else torch.fft.irfft
    source = torch.randn(n_signals * len(scales), n_samples, dtype=torch.complex64 if name == "morlet complex" else torch.float32)
    target = torch.empty_like(source)

    def least(run: Callable[[], object]) -> float:
        run()
        seconds = []
        for _ in range(9):
            start = clock()
            run()
            seconds.append(clock() - start)
        return min(seconds)

    return least(lambda: inverse(spectrum, n=n_fft, norm="forward")) * len(source) / n_rows + least(lambda: target.copy_(source))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signals", type=int, default=24, help="signals in a batch")
    parser.add_argument("--scales", type=int, default=64, help="scales 1, 2, ... samples; 0.1, 1.1, ... in the reference definition")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 2000, 3000], choices=sorted(ROWS), help="samples of a signal")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    scales = np.arange(1, args.scales + 1, dtype=np.float64)
    held, summary = True, {}
    print(f"{'':34s}    L  ours ms  peer ms  ours is     must    aim")
    for length in args.lengths:
        for name, runs in variants(scales, length).items():
            x_BL = np.random.default_rng(1).standard_normal((2, length), dtype=np.float32)
            error = relative_error(runs["ours"](x_BL), exact(name, scales, x_BL))
            times = least_times(runs, args.signals, length, args.rounds, clock)
            held &= error <= ACCURACY
            for row in (row for row in ROWS[length] if row.name == name):
                label = f"{name:18s}{row.peer:16s} {length:4d}"
                if row.peer not in times:
                    print(f"{label}  not installed: uv run --group bench")
                    continue
                ratio = times[row.peer] / times["ours"]
                verdict = "reaches the aim" if ratio >= row.aim else "holds" if ratio >= row.must else "FALLS SHORT"
                held &= ratio >= row.must
                summary[f"{name} {row.peer} {length}"] = ratio
                print(f"{label} {1e3 * times['ours']:8.2f} {1e3 * times[row.peer]:8.1f} {ratio:6.1f} x {row.must:7g} {row.aim:6g}  {verdict}")
            bound = limit(name, scales, args.signals, length, clock)
            accuracy = f"error {error:.1e} rms, {'within' if error <= ACCURACY else 'BEYOND'} {ACCURACY:g}"
            print(f"{name:34s} {length:4d} {accuracy}; {times['ours'] / bound:.2f} x the limit of {1e3 * bound:.2f} ms")
    print(json.dumps(summary))
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
