"""How fast a store reads random batches: against a gather from memory, h5py item by item, and HiMAE's layout (one file opened per item).

    uv run apps/bench/loader.py [--windows 100000] [--length 1250] [--batch 256] [--folder DIR]
    uv run apps/bench/loader.py --archive [--compression lz4]

All variants read the same random rows, in turn (A B A B), warm; ratios are medians over rounds. With --archive the store is int16 in compressed
chunks, read in a block shuffle, against float32 gzip-4 chunks read item by item and read in the same shuffle; process time, one thread.
Shape letters: N windows, B batch, T samples.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from physio_data.arrays import write_store
from physio_data.order import BlockShuffle
from physio_data.shards import chunk_windows
from physio_data.store import Store

Read = Callable[[np.ndarray], np.ndarray]  # rows (B,) -> signal (B, 1, T)
LIMITS = {  # ours against: (must, aim), as times faster; the memory gather is a fraction of its speed
    "HiMAE layout, opened per item": (500.0, 1500.0),
    "h5py per item": (10.0, 30.0),
    "in memory, DataLoader per item": (15.0, 30.0),
    "memory gather": (0.5, 1.0),
}


ARCHIVE_LIMITS = {"gzip 4 per item": (150.0, 500.0), "gzip 4, chunks shuffled": (5.0, 8.0)}
GZIP_CHUNK = 64  # windows


def write_himae_layout(path: Path, x_NCT: np.ndarray, n_items: int) -> None:
    """`h5[global_idx]["normalized_waveform"]`: one group per window, as HiMAE's pretraining shards."""
    with h5py.File(path, "w") as file:
        for row in range(n_items):
            file.create_dataset(f"{row}/normalized_waveform", data=x_NCT[row, 0])


def readers(store: Store, x_NCT: np.ndarray, himae: Path, n_himae: int, one_file: h5py.Dataset) -> dict[str, tuple[Read, int]]:
    """Each variant with the number of rows that one measurement of it reads (slow ones read fewer)."""

    def gather(rows_B: np.ndarray) -> np.ndarray:
        out_BCT = np.empty((len(rows_B), *x_NCT.shape[1:]), np.float32)
        return np.take(x_NCT, rows_B, axis=0, out=out_BCT, mode="clip")

    dataset = TensorDataset(torch.from_numpy(x_NCT), torch.arange(len(x_NCT)))

    def items(rows_B: np.ndarray) -> np.ndarray:  # what PyTorch does by itself with tensors in memory: item by item, then collated
        loader = DataLoader(dataset, batch_size=len(rows_B), sampler=rows_B.tolist())
        return next(iter(loader))[0].numpy()

    def h5py_items(rows_B: np.ndarray) -> np.ndarray:
        return np.stack([one_file[row] for row in rows_B])

    def himae_items(rows_B: np.ndarray) -> np.ndarray:
        return np.stack([himae_item(himae, int(row) % n_himae) for row in rows_B])

    return {
        "ours": (lambda rows_B: store.batch(rows_B)["signal"], 64),
        "memory gather": (gather, 64),
        "in memory, DataLoader per item": (items, 16),
        "h5py per item": (h5py_items, 8),
        "HiMAE layout, opened per item": (himae_items, 1),
    }


def himae_item(path: Path, row: int) -> np.ndarray:
    with h5py.File(path, "r") as file:
        return file[str(row)]["normalized_waveform"][:][None, :]


def check_equal(variants: dict[str, tuple[Read, int]], rows_B: np.ndarray, n_himae: int) -> None:
    """Every variant gives the same numbers, in the order asked for."""
    few_B = rows_B % n_himae
    expected_BCT = variants["memory gather"][0](few_B)
    for name, (read, _) in variants.items():
        if not np.array_equal(read(few_B), expected_BCT):
            raise SystemExit(f"{name} does not read the same windows as the memory gather")


def seconds_per_window(read: Read, batches: list[np.ndarray]) -> float:
    start = time.perf_counter()
    for rows_B in batches:
        read(rows_B)
    return (time.perf_counter() - start) / sum(map(len, batches))


def measure(variants: dict[str, tuple[Read, int]], n_windows: int, batch: int, n_rounds: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(n_rounds):
        for name, (read, n_batches) in variants.items():
            batches = [rng.integers(0, n_windows, batch) for _ in range(n_batches)]
            times[name].append(seconds_per_window(read, batches))
    return times


def pulses(n: int, n_samples: int) -> np.ndarray:
    """(N, 1, T) float32: pulse waves of different rates with 1 % of noise; random numbers would not compress, as no signal does."""
    rng = np.random.default_rng(1)
    t_T = np.arange(n_samples, dtype=np.float32) / 125
    rate_N1, phase_N1 = rng.uniform(0.8, 2, (n, 1)).astype(np.float32), rng.uniform(0, 6, (n, 1)).astype(np.float32)
    x_NT = np.exp(2 * np.cos(2 * np.pi * rate_N1 * t_T + phase_N1))
    x_NT += 0.01 * rng.standard_normal((n, n_samples), dtype=np.float32)
    return x_NT[:, None]


def archive(folder: Path, n: int, n_samples: int, batch: int, n_rounds: int, compression: str) -> None:
    """The archive row: process seconds a window of each layout, in turn."""
    x_NCT = pulses(n, n_samples)
    store = write_store(folder / "store", x_NCT, fs=125.0, channels=["PPG"], units=["a.u."], subject=["one"] * n, dtype="int16", compression=compression)
    with h5py.File(folder / "gzip.h5", "w") as file:
        file.create_dataset("signal", data=x_NCT, chunks=(GZIP_CHUNK, 1, n_samples), compression="gzip", compression_opts=4)
    block = BlockShuffle(block=chunk_windows(1, n_samples, "int16"), pool=16)
    sizes = {name: path.stat().st_size / x_NCT.nbytes for name, path in (("ours", folder / "store/shard-00000.h5"), ("gzip 4", folder / "gzip.h5"))}
    times: dict[str, list[float]] = {"ours": [], **{name: [] for name in ARCHIVE_LIMITS}}
    with h5py.File(folder / "gzip.h5", "r") as file:
        signal = file["signal"]
        few = np.array([3, 0, n - 1])
        step = np.ptp(x_NCT[few], axis=-1, keepdims=True) / 65534
        if not (np.abs(store.batch(few)["signal"] - np.stack([signal[row] for row in few])) <= 0.51 * step + 1e-6).all():
            raise SystemExit("the archive does not hold the same windows within half a step")
        for epoch in range(n_rounds):
            fresh, order = Store(store.path), block(np.arange(n), 0, epoch)
            began = time.process_time()
            for start in range(0, n, batch):
                fresh.batch(order[start : start + batch])
            times["ours"].append((time.process_time() - began) / n)
            rng, began = np.random.default_rng(epoch), time.process_time()
            for number in rng.permutation(n // GZIP_CHUNK):
                chunk = signal[number * GZIP_CHUNK : (number + 1) * GZIP_CHUNK]
                np.take(chunk, rng.permutation(GZIP_CHUNK), axis=0)
            times["gzip 4, chunks shuffled"].append((time.process_time() - began) / (n // GZIP_CHUNK * GZIP_CHUNK))
            rows_B, began = rng.permutation(n)[:batch], time.process_time()
            np.stack([signal[row] for row in rows_B])
            times["gzip 4 per item"].append((time.process_time() - began) / batch)
    best = {name: min(values) for name, values in times.items()}
    print(f"size beside float32: ours ({compression}) {sizes['ours']:.2f}, gzip 4 {sizes['gzip 4']:.2f}")
    print(f"{'':34s} us/window   ours is     must    aim")
    print(f"{'ours, block shuffle':34s} {1e6 * best['ours']:9.2f}")
    summary = {"ours_us": 1e6 * best["ours"], "compression": compression, "size": sizes["ours"]}
    for name, (must, aim) in ARCHIVE_LIMITS.items():
        summary[name] = ratio = best[name] / best["ours"]
        verdict = "reaches the aim" if ratio >= aim else "holds" if ratio >= must else "FALLS SHORT"
        print(f"{name:34s} {1e6 * best[name]:9.2f} {ratio:8.2f} x {must:7g} {aim:6g}  {verdict}")
    print(json.dumps(summary))
    if not all(summary[name] >= must for name, (must, _) in ARCHIVE_LIMITS.items()):
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=100_000, help="windows in the store")
    parser.add_argument("--length", type=int, default=1250, help="samples per window")
    parser.add_argument("--batch", type=int, default=256, help="windows per batch")
    parser.add_argument("--himae-items", type=int, default=None, help="groups in the HiMAE file (default: as many as windows)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shard-windows", type=int, default=None, help="windows per shard (default: half a gigabyte)")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary files go")
    parser.add_argument("--archive", action="store_true", help="measure the archive variant instead")
    parser.add_argument("--compression", default="lz4", choices=("lz4", "lzf", "gzip"), help="of the archive")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="loader-", dir=args.folder))
    try:
        if args.archive:
            archive(folder, args.windows, args.length, args.batch, args.rounds, args.compression)
            return
        x_NCT = np.random.default_rng(1).standard_normal((args.windows, 1, args.length), dtype=np.float32)
        store = write_store(
            folder / "store", x_NCT, fs=125.0, channels=["PPG"], units=["a.u."], subject=["one"] * args.windows, shard_windows=args.shard_windows
        )
        n_himae = args.himae_items or args.windows
        write_himae_layout(folder / "himae.h5", x_NCT, n_himae)
        with h5py.File(folder / "one.h5", "w") as file:
            file.create_dataset("signal", data=x_NCT)
        with h5py.File(folder / "one.h5", "r") as file:
            variants = readers(store, x_NCT, folder / "himae.h5", n_himae, file["signal"])
            check_equal(variants, np.random.default_rng(2).integers(0, args.windows, args.batch), n_himae)
            for start in range(0, args.windows, 4096):  # warm: every page has been read once
                store.batch(np.arange(start, min(start + 4096, args.windows)))
            report(measure(variants, args.windows, args.batch, args.rounds))
    finally:
        shutil.rmtree(folder)


def report(times: dict[str, list[float]]) -> None:
    ours = statistics.median(times["ours"])
    print(f"{'':34s} us/window   ours is     must    aim")
    print(f"{'ours, .batch':34s} {1e6 * ours:9.2f}")
    summary = {"ours_us": 1e6 * ours}
    for name, (must, aim) in LIMITS.items():
        ratio = statistics.median(theirs / mine for theirs, mine in zip(times[name], times["ours"], strict=True))
        summary[name] = ratio
        verdict = "reaches the aim" if ratio >= aim else "holds" if ratio >= must else "FALLS SHORT"
        print(f"{name:34s} {1e6 * statistics.median(times[name]):9.2f} {ratio:8.2f} x {must:7g} {aim:6g}  {verdict}")
    print(json.dumps(summary))
    sys.exit(0 if all(summary[name] >= must for name, (must, _) in LIMITS.items()) else 1)


if __name__ == "__main__":
    main()
