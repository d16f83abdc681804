"""What leaving PyTorch brings: size, memory and latency of one window on one thread, the stream end to end, and what int8 costs in AUROC.

    uv run apps/bench/deploy.py [--rounds 200] [--only himae_250,papagei] [--compile]
    uv run apps/bench/deploy.py --day                                  a 24-hour stream in chunks of 1, 7, 250 and 100,000 samples
    uv run apps/bench/deploy.py --task FLOAT INT8 STORE NAME           one task's test records through both exported folders

Latencies are paired: every round runs each variant once on the same fresh window, in turn. They are given on the wall and, because a busy
machine stretches it, in CPU time of the thread that works. Memory is the greatest resident size of a process of its own that loads the
model and runs it; PyTorch's own libraries are part of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

SUITE = {  # name -> (row of MODELS, rate, samples, preset)
    "himae_250": ("himae", 25.0, 250, "for_length"),
    "himae_1000": ("himae", 100.0, 1000, "reference"),
    "ti_mae": ("ti_mae", 100.0, 140, "reference"),
    "papagei": ("papagei", 125.0, 1250, "reference"),
    "cwt_mae": ("cwt_mae", 100.0, 0, "fast"),
}
MUST = 1.5  # ONNX float against eager, for HiMAE
DAY_S, DAY_HZ = 86_400, 64.0
CHUNKS = (100_000, 250, 7, 1)
FLAT_MB = 20.0


def encoder_of(name: str):
    from physio_models import MODELS, resolve
    from physio_models.contract import InputContract
    from physio_models.himae import HiMaeConfig
    from physio_models.pretrained import untrained_encoder

    row, fs, n, preset = SUITE[name]
    cfg = HiMaeConfig.for_length(n, fs) if preset == "for_length" else resolve(MODELS, row).preset(preset)
    channels = tuple(f"c{i}" for i in range(cfg.n_channels))
    contract = InputContract(channels=channels, units=("mV",) * len(channels), fs=fs, window_s=cfg.n_samples / fs, normalization="lead_zscore")
    return untrained_encoder(row, cfg, contract)


def window_of(contract, seed: int, n: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t_T = np.arange(contract.n_samples) / contract.fs
    shape = (n, len(contract.channels), 1)
    return (np.exp(9 * (np.cos(2 * np.pi * rng.uniform(0.8, 1.8, shape) * t_T) - 1)) + 0.05 * rng.standard_normal((*shape[:2], len(t_T)))).astype(np.float32)


def eager(encoder) -> Callable[[np.ndarray], np.ndarray]:
    """The same function of a window as the graph computes, by PyTorch."""
    import torch

    from physio_models.normalize import normalize_whole

    def network(x_BCT):
        return encoder.model.encode(normalize_whole(x_BCT, encoder.contract.normalization)).pooled_BD

    def run(x_BCT: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(x_BCT)).numpy()

    run.network = network
    return run


def compiled(encoder) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    fast = torch.compile(eager(encoder).network)

    def run(x_BCT: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return fast(torch.from_numpy(x_BCT)).numpy()

    return run


# Latency and memory


def latency(name: str, n_rounds: int, with_compile: bool) -> dict[str, dict[str, float]]:
    """Figures by variant: bytes, peak MB, p50 and p99 in milliseconds on the wall and on the CPU, largest difference from eager."""
    import torch

    from physio_models.export import Exported, export_onnx, largest_difference
    from physio_models.export_int8 import export_int8

    torch.set_num_threads(1)
    encoder = encoder_of(name)
    with tempfile.TemporaryDirectory() as scratch:
        folder, small = Path(scratch) / "float", Path(scratch) / "int8"
        export_onnx(encoder, folder)
        report = export_int8(folder, small, window_of(encoder.contract, 1, 64), tolerance=0.3)
        runs = {"eager": eager(encoder)}
        if with_compile:
            runs["compiled"] = compiled(encoder)
        for variant, made in (("onnx float", folder), ("onnx int8", small)):
            exported = Exported(made)
            runs[variant] = lambda x_BCT, exported=exported: exported.run(x_BCT)["embedding"]
        weights = Path(scratch) / "weights.safetensors"
        from safetensors.torch import save_file

        save_file({key: value.contiguous().clone() for key, value in encoder.model.state_dict().items()}, weights)
        size = {"eager": weights.stat().st_size, "compiled": weights.stat().st_size}
        size |= {"onnx float": (folder / "model.onnx").stat().st_size, "onnx int8": (small / "model.onnx").stat().st_size}
        memory = {variant: peak_mb(variant, name, {"onnx float": folder, "onnx int8": small}.get(variant)) for variant in runs if variant != "compiled"}
        times = {variant: [] for variant in runs}
        worst = dict.fromkeys(runs, 0.0)
        for run in runs.values():
            for seed in range(3):
                run(window_of(encoder.contract, seed))
        for seed in range(n_rounds):
            x_BCT, expected = window_of(encoder.contract, 100 + seed), None
            for variant, run in runs.items():
                wall, cpu = time.perf_counter(), time.thread_time()
                out = run(x_BCT)
                times[variant].append((time.perf_counter() - wall, time.thread_time() - cpu))
                expected = out if expected is None else expected
                worst[variant] = max(worst[variant], largest_difference(expected, out))
    figures = {}
    for variant, pairs in times.items():
        wall_p50, wall_p99 = np.quantile([1e3 * a for a, _ in pairs], [0.5, 0.99])
        cpu_p50, cpu_p99 = np.quantile([1e3 * b for _, b in pairs], [0.5, 0.99])
        ratio = float(np.median([a[1] / b[1] for a, b in zip(times["eager"], pairs, strict=True)]))
        figures[variant] = {
            "bytes": size[variant], "peak_mb": memory.get(variant, math.nan), "wall_p50_ms": wall_p50, "wall_p99_ms": wall_p99,
            "cpu_p50_ms": cpu_p50, "cpu_p99_ms": cpu_p99, "times_eager": ratio, "difference": worst[variant],
        }  # fmt: skip
    figures["onnx int8"]["float_layers"] = len(report.kept_float)
    return figures


def peak_mb(variant: str, name: str, folder: Path | None) -> float:
    """Greatest resident size of a process that loads the model and runs it ten times, MB."""
    if folder is None:
        command = [sys.executable, __file__, "--child", name]
    else:
        lines = (
            "import numpy, onnxruntime, sys\n"
            "options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 1\n"
            "session = onnxruntime.InferenceSession(sys.argv[1], options)\n"
            "shape = [1, *session.get_inputs()[0].shape[1:]]\n"
            "for _ in range(10): session.run(None, {'signal': numpy.random.rand(*shape).astype('float32')})\n"
            "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])"
        )
        command = [sys.executable, "-c", lines, str(folder / "model.onnx")]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]) / 1024


def child(name: str) -> None:
    import torch

    torch.set_num_threads(1)
    encoder = encoder_of(name)
    run = eager(encoder)
    for seed in range(10):
        run(window_of(encoder.contract, seed))
    with open("/proc/self/status") as file:  # the kernel's own high-water mark: getrusage would count what the parent had before the fork
        print(next(line for line in file if line.startswith("VmHWM")).split()[1])


def report_latency(names: list[str], n_rounds: int, with_compile: bool) -> bool:
    holds = True
    print(
        f"{'model':12s} {'variant':11s} {'KB':>7s} {'peak MB':>8s} {'wall p50':>9s} {'p99 ms':>8s} {'CPU p50':>8s} {'p99 ms':>8s} {'x eager':>8s}  difference"
    )
    summary: dict[str, object] = {}
    for name in names:
        summary[name] = figures = latency(name, n_rounds, with_compile)
        for variant, f in figures.items():
            note = ""
            if name.startswith("himae") and variant == "onnx float":
                holds &= f["times_eager"] >= MUST
                note = "holds" if f["times_eager"] >= MUST else f"FALLS SHORT of {MUST}"
            if "float_layers" in f:
                note = f"{f['float_layers']} layers in float"
            print(
                f"{name:12s} {variant:11s} {f['bytes'] / 1024:7.0f} {f['peak_mb']:8.0f} {f['wall_p50_ms']:9.2f} {f['wall_p99_ms']:8.2f} "
                f"{f['cpu_p50_ms']:8.2f} {f['cpu_p99_ms']:8.2f} {f['times_eager']:8.2f}  {f['difference']:.1e}  {note}",
                flush=True,
            )
    print(json.dumps(summary))
    return holds


# Streams


def day() -> Iterator[np.ndarray]:
    """A day of pulses at a slowly changing rate, an hour at a time, (1, n) float32; the same every time."""
    phase, n = 0.0, int(3600 * DAY_HZ)
    for hour in range(DAY_S // 3600):
        rate_hz = 1.1 + 0.4 * np.sin(2 * np.pi * (hour + np.arange(n) / n) / 24)
        turns = phase + np.cumsum(rate_hz) / DAY_HZ
        phase = turns[-1] % 1
        noise = np.random.default_rng(hour).standard_normal(n)
        yield (np.exp(3 * (np.cos(2 * np.pi * turns) - 1)) + 0.02 * noise)[None].astype(np.float32)


def in_chunks(parts: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    rest = np.empty((1, 0), np.float32)
    for part in parts:
        rest = np.concatenate([rest, part], axis=1)
        last = rest.shape[1] // size * size
        for at in range(0, last, size):
            yield rest[:, at : at + size]
        rest = rest[:, last:].copy()
    if rest.shape[1]:
        yield rest


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def run_day() -> bool:
    """A day through filter, resampler, cutter and HiMAE for each chunk size: digests of every window and embedding, resident memory, real-time factor."""
    from physio_data.streaming import Stream, StreamPlan
    from physio_models.export import Exported, export_onnx

    encoder = encoder_of("himae_250")
    found, holds = {}, True
    with tempfile.TemporaryDirectory() as scratch:
        exported = Exported(export_onnx(encoder, Path(scratch) / "float"))
        plan = StreamPlan(channels=("c0",), fs_in=DAY_HZ, fs=25.0, n_samples=250, hop=250, band=(0.5, 8.0))
        for size in CHUNKS:
            stream, digest, starts, resident = Stream(plan), hashlib.sha256(), [], []
            wall, cpu = time.perf_counter(), time.process_time()

            def take(windows, digest=digest, starts=starts, resident=resident):
                for window in windows:
                    digest.update(window.x_CT.tobytes())
                    digest.update(exported.run(window.x_CT[None])["embedding"].tobytes())
                    starts.append(window.start)
                    if len(starts) % 360 == 0:
                        resident.append(resident_mb())

            for chunk in in_chunks(day(), size):
                take(stream.push(chunk))
            take(stream.close())
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            found[size] = digest.hexdigest()
            grown = max(resident[1:]) - min(resident[1:])
            once = starts == list(range(0, int(DAY_S * 25), 250))
            holds &= once and grown <= FLAT_MB and found[size] == found[CHUNKS[0]]
            print(
                f"chunks of {size:6d}: {len(starts)} windows, each once {once}, digest {found[size][:12]}, resident {resident[1]:.0f} MB +{grown:.1f}, "
                f"{DAY_S / cpu:.0f} x real time on CPU ({cpu:.0f} s), {DAY_S / wall:.0f} x on the wall",
                flush=True,
            )
    print(json.dumps({"same": len(set(found.values())) == 1, "holds": bool(holds)}))
    return bool(holds)


# What int8 costs


def run_task(float_folder: Path, int8_folder: Path, store_path: Path, task: str, records: str) -> bool:
    """AUROC of a task through both folders on the records of one half, and their paired difference over records."""
    from physio_data.store import Store
    from physio_models.contract import SignalSpec
    from physio_models.export import Exported
    from physio_train.metrics import auroc
    from physio_train.statistics import cluster_bootstrap, paired_difference

    store = Store(store_path, task=task)
    names = np.unique(record_N := np.asarray(store.index["record"]).astype(str))
    label_N = np.asarray(store.index[f"label/{task}"])
    rows_N = np.flatnonzero((label_N >= 0) & (np.isin(record_N, names[1::2]) if records == "odd" else True))
    band = store.manifest.get("band")
    spec = SignalSpec(
        channels=store.channels, units=tuple(store.units), fs=store.fs, n_samples=store.n_samples, band=None if band is None else tuple(band), kind=store.kind
    )
    scores = {}
    for name, folder in (("float", float_folder), ("int8", int8_folder)):
        exported = Exported(folder)
        scores[name] = np.concatenate([exported(store.batch(rows_N[i : i + 64])["signal"], spec)["scores"][:, 0] for i in range(0, len(rows_N), 64)])
    label_N, record_N = label_N[rows_N], record_N[rows_N]
    for name, score_N in scores.items():
        one = cluster_bootstrap(auroc, label_N, score_N, record_N)
        print(f"{task} {name}: AUROC {one.point:.4f} [{one.low:.4f}, {one.high:.4f}] on {len(rows_N)} windows of {len(np.unique(record_N))} records")
    difference = paired_difference(auroc, label_N, scores["int8"], scores["float"], record_N)
    holds = abs(difference.point) <= 0.01
    verdict = "within 0.01" if holds else "WORSE than 0.01" if difference.point < 0 else "off by more than 0.01"
    print(f"{task} int8 - float: {difference.point:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}], paired over records: {verdict}")
    print(json.dumps({"task": task, "difference": difference.point, "low": difference.low, "high": difference.high, "holds": bool(holds)}))
    return bool(holds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--only", default=",".join(SUITE), help="models, with commas between")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes and a C++ compiler")
    parser.add_argument("--day", action="store_true", help="the 24-hour stream")
    parser.add_argument("--task", nargs=4, metavar=("FLOAT", "INT8", "STORE", "NAME"), help="AUROC of two exported folders")
    parser.add_argument("--records", choices=("all", "odd"), default="all", help="with --task: every record, or each second one by name")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    if args.day:
        sys.exit(0 if run_day() else 1)
    if args.task:
        folders, task = [Path(part) for part in args.task[:3]], args.task[3]
        sys.exit(0 if run_task(*folders, task, args.records) else 1)
    sys.exit(0 if report_latency(args.only.split(","), args.rounds, args.compile) else 1)


if __name__ == "__main__":
    main()
