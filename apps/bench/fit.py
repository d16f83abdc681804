"""What the training loop costs: `fit` against the same steps written out bare in PyTorch, and the time HiMAE waits for a store.

    uv run apps/bench/fit.py [--rounds 7] [--steps 30] [--batch 64] [--data STORE]

The bare loop has the same network, objective, batches, AdamW, schedule and clipping and nothing else. Both run in turn
(A B A B) in blocks of steps on one thread; the ratio is that of processor time, which other programs on the machine hardly touch, the
median over rounds. The wait is the share of the loop's time spent in `next(batches)`, the store read in the training process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compose
from physio_train import Step, Streams, fit
from physio_train.optimizer import lr_factor
from prepare import prepared

LIMITS = {"fit_over_bare": 1.05, "data_wait": 0.03}


def bare(model: nn.Module, objective, batches, cfg) -> Iterator[None]:
    """The steps of `fit` with nothing around them."""
    torch.manual_seed(cfg.seed)
    modules = objective.modules(model)
    matrices, rest = ([p for p in [*model.parameters(), *modules.parameters()] if (p.ndim > 1) == matrix] for matrix in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=cfg.lr,
        betas=cfg.betas,
        eps=cfg.eps,
        fused=True,
    )
    model.train()
    for i in range(cfg.n_steps):
        batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * lr_factor(i, cfg.n_steps, warmup=cfg.warmup, schedule=cfg.schedule)
        loss = objective(model, batch, Step(modules, i / cfg.n_steps, Streams(cfg.seed, int(batch["epoch"]))))
        loss.total.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters()], cfg.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def measured(cfg, store, n_rounds: int, n_steps: int) -> dict[str, float]:
    """Median ratio of paired blocks, the spread of the ratios, milliseconds a step, and the share of waiting."""
    rows = compose.rows_of(store, cfg.use)

    def parts():
        return compose.parts(cfg, store, rows, rows[:0])

    ours, theirs = parts(), parts()
    loop = fit(ours.model, ours.objective, ours.batches, cfg.fit, device="cpu")
    plain = bare(theirs.model, theirs.objective, theirs.batches, cfg.fit)
    for _ in range(5):
        next(loop), next(plain)
    ratios, ours_s, waits = [], [], 0.0
    for i in range(n_rounds):
        spent = {}
        for name, steps in (("ours", loop), ("bare", plain)) if i % 2 == 0 else (("bare", plain), ("ours", loop)):
            began = time.process_time()
            wall = time.perf_counter()
            for _ in range(n_steps):
                step = next(steps)
                waits += step.wait_s if name == "ours" else 0.0
            spent[name] = time.process_time() - began
            if name == "ours":
                ours_s.append(time.perf_counter() - wall)
        ratios.append(spent["ours"] / spent["bare"])
    return {
        "fit_over_bare": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "ms_a_step": 1000 * statistics.median(ours_s) / n_steps,
        "data_wait": waits / sum(ours_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--data", type=Path, help="a prepared store; default: a small built-in cohort in a temporary folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    total = args.rounds * args.steps + 5
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose.recipe("himae_ppg", "fast")
        if args.data is None:
            cohort = replace(cfg.cohort, options={**cfg.cohort.options, "n_subjects": 40, "minutes": 2.0})
            prepared(cohort.prepare_config(), Path(folder) / "store")
        store = compose.open_stores([args.data or Path(folder) / "store"])
        cfg = compose.fit_model_to(cfg, store)
        cfg = replace(cfg, fit=replace(cfg.fit, n_steps=total, batch_size=args.batch, precision="fp32", checkpoint_every=None, validate_every=None))
        found = measured(cfg, store, args.rounds, args.steps)
    for name, value in found.items():
        limit = f"   limit {LIMITS[name]:g}" if name in LIMITS else ""
        print(f"{name:>14} {value:9.4f}{limit}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
