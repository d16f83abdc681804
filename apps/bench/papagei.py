"""How fast PaPaGei embeds windows: `encode` against the layers one by one, as the original computes them, on one thread.

    uv run apps/bench/papagei.py [--windows 64] [--samples 1250] [--rounds 7]

Both run the same weights on the same fresh windows in turn (A B A B), and must agree. A ratio is that of the least process-CPU times.
The limit is what a matrix product of this machine reaches in the same run, over the network's multiply-adds. Half precision counts
where the machine multiplies it in hardware.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from physio_models.papagei import Papagei, PapageiConfig

ORIGINAL = "the original's layers, fp32"
TARGETS = {"fp32": (1.3, 3.0), "bf16": (1.8, 3.0)}  # ours against the original's fp32: must, aim
WORST = {"fp32": 1e-4, "bf16": 0.05}  # largest difference, of the largest number


@dataclass(frozen=True)
class Result:
    """Least CPU seconds a window, and what they were of the best that a matrix product does."""

    seconds: float
    of_limit: float


def network() -> Papagei:
    """PaPaGei-S with running statistics that are not the initial ones; weights do not change how long it takes."""
    torch.manual_seed(0)
    model = PapageiConfig().build()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 1, 1250))
    return model.eval()


def bf16_in_hardware() -> bool:
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def multiply_adds(model: Papagei, n_samples: int) -> float:
    """Of one window, without the heads."""
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        model.encode(torch.zeros(1, 1, n_samples))
    return counter.get_total_flops() / 2


def peak(dtype: torch.dtype) -> float:
    """Multiply-adds a second of a square matrix product, the best of a few."""
    a, b = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
    return max(1024**3 / cpu_seconds(lambda: a @ b) for _ in range(20))


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def variants(model: Papagei) -> dict[str, Callable[[Tensor], Tensor]]:
    def ours(dtype: torch.dtype | None) -> Callable[[Tensor], Tensor]:
        def run(x_BCT: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext():
                return model.encode(x_BCT).pooled_BD.float()

        return run

    found = {ORIGINAL: lambda x_BCT: model(x_BCT).embedding_BD, "fp32": ours(None)}
    return found | {"bf16": ours(torch.bfloat16)} if bf16_in_hardware() else found


@torch.inference_mode()
def measure(model: Papagei, n_windows: int, n_samples: int, n_rounds: int) -> tuple[dict[str, Result], dict[str, float]]:
    """Results by variant, and how far ours lie from the original's numbers."""
    runs = variants(model)
    limits = {"bf16" if name == "bf16" else "fp32": peak(torch.bfloat16 if name == "bf16" else torch.float32) for name in runs}
    least, worst = dict.fromkeys(runs, float("inf")), dict.fromkeys(runs, 0.0)
    for _ in range(n_rounds):
        x_BCT = torch.randn(n_windows, 1, n_samples)
        expected = None
        for name, run in runs.items():
            out: list[Tensor] = []
            least[name] = min(least[name], cpu_seconds(lambda run=run, x_BCT=x_BCT, out=out: out.append(run(x_BCT))) / n_windows)
            expected = out[0] if expected is None else expected
            worst[name] = max(worst[name], float((out[0] - expected).abs().max() / expected.abs().max()))
    needed = multiply_adds(model, n_samples)
    return {name: Result(seconds, needed / seconds / limits["bf16" if name == "bf16" else "fp32"]) for name, seconds in least.items()}, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=64, help="windows at once")
    parser.add_argument("--samples", type=int, default=1250, help="samples of a window (125 Hz)")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, worst = measure(network(), args.windows, args.samples, args.rounds)
    sys.exit(0 if report(results, worst) else 1)


def report(results: dict[str, Result], worst: dict[str, float]) -> bool:
    """The table and a line of JSON; whether every target is met."""
    slow = results[ORIGINAL].seconds
    print(f"{'':28s} windows/s  of the limit    ratio   must   aim   largest difference")
    print(f"{ORIGINAL:28s} {1 / slow:9.1f} {results[ORIGINAL].of_limit:12.0%}")
    summary: dict[str, float | None] = {"original_windows_s": 1 / slow}
    holds = True
    for name, (must, aim) in TARGETS.items():
        if name not in results:
            print(f"{'encode, ' + name:28s} not supported here")
            summary[name] = None
            continue
        ratio = slow / results[name].seconds
        verdict = "differs" if worst[name] > WORST[name] else "reaches the aim" if ratio >= aim else "holds" if ratio >= must else "FALLS SHORT"
        holds &= ratio >= must and worst[name] <= WORST[name]
        summary |= {name: ratio, f"{name}_windows_s": 1 / results[name].seconds}
        speed = f"{1 / results[name].seconds:9.1f} {results[name].of_limit:12.0%} {ratio:8.2f} {must:6.1f} {aim:5.1f}"
        print(f"{'encode, ' + name:28s} {speed} {worst[name]:12.1e}  {verdict}")
    print(json.dumps(summary))
    return holds


if __name__ == "__main__":
    main()
