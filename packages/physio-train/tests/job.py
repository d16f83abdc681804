"""A training job small enough for tests, and able to be killed: `train` in this process or, with ARGUMENTS, in one of its own."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from physio_train import Batches, FitConfig, Loss, fit, session
from physio_train.run import write_json


class Rows:
    """Windows whose signal tells which row they are."""

    def __init__(self, n: int, n_samples: int = 16) -> None:
        self.signal_NCT = np.random.default_rng(7).standard_normal((n, 1, n_samples)).astype(np.float32)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"signal": self.signal_NCT[rows], "index": rows}


class Net(nn.Module):
    """Convolution, optional batch norm and dropout, convolution."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.2) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, 4, 5, padding=2), nn.BatchNorm1d(4) if norm else nn.Identity()
        self.dropout, self.last = nn.Dropout(dropout), nn.Conv1d(4, 1, 5, padding=2)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        return self.last(self.dropout(torch.tanh(self.norm(self.first(x_BCT)))))


class Stack(nn.Module):
    """An embedding, two layers in a stack, a head: something for each rule of the optimisers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 24), nn.Tanh(), nn.Linear(24, 8)) for _ in range(2))
        self.head = nn.Linear(8, 16)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        x_BCD = self.embed(x_BCT)
        for block in self.blocks:
            x_BCD = x_BCD + block(x_BCD)
        return self.head(x_BCD)


class Objective:
    """Restore hidden samples, through a scale of the objective's own; counts its steps in a buffer."""

    def __init__(self, at_step=None, log=None) -> None:
        self.at_step, self.log = at_step or (lambda n_calls: None), log
        self.n_calls = 0
        self.seen: list[list[int]] = []

    def modules(self, model: nn.Module) -> nn.ModuleDict:
        own = nn.Linear(1, 1)
        own.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))
        return nn.ModuleDict({"scale": own})

    def __call__(self, model: nn.Module, batch: dict, step) -> Loss:
        self.at_step(self.n_calls)
        self.n_calls += 1
        self.seen.append(batch["index"].tolist())
        if self.log:
            print(self.seen[-1], file=self.log, flush=True)
        x_BCT = batch["signal"]
        hidden_BCT = step.streams.uniform("mask", batch["index"], tuple(x_BCT.shape[1:])) < 0.5
        out_BCT = step.modules["scale"](model(x_BCT * ~hidden_BCT).unsqueeze(-1)).squeeze(-1)
        mse = (out_BCT - x_BCT).square().mean(dim=(1, 2)).mean()
        return Loss(mse, {"mse": mse.detach(), "hidden": hidden_BCT.float().mean()})

    def after_step(self, model: nn.Module, step) -> None:
        step.modules["scale"].n_steps += 1


def config(**changes) -> FitConfig:
    return FitConfig(**({"n_steps": 12, "batch_size": 8, "lr": 1e-2, "ema_decay": 0.9, "seed": 3, "checkpoint_every": 2, "keep_last": 2} | changes))


def train(
    folder: str,
    *,
    rank: int | None = None,
    world_size: int = 1,
    meet: str = "",
    resume: str | None = None,
    kill_at: int | None = None,
    norm: bool = True,
    dropout: float = 0.2,
    save: bool = True,
    slow_s: float = 0.0,
    n_rows: int = 50,
    stacked: bool = False,
    full_disk_rank: int | None = None,
    numbers: bool = False,
    **changes,
) -> list[list[int]]:
    """Train, saving when due; returns the windows each call saw. `kill_at` is the objective's call that SIGKILLs the process."""

    def at_step(n_calls: int) -> None:
        time.sleep(slow_s)
        if n_calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    torch.manual_seed(1 + (rank or 0))
    with session(rank=rank, world_size=world_size, init_method=f"file://{meet}", timeout_s=20) as world:
        log = None if rank is None else (Path(folder) / f"seen_live_rank{rank}.jsonl").open("w")
        cfg, objective = config(**changes), Objective(at_step, log)
        batches = Batches(Rows(n_rows), np.arange(n_rows), batch_size=cfg.batch_size, seed=cfg.seed, rank=world.rank, world_size=world.world_size)
        losses: list[float] = []
        net = Stack() if stacked else Net(norm=norm, dropout=dropout)
        if full_disk_rank == world.rank:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        for progress in fit(net, objective, batches, cfg, resume=resume, device="cpu"):
            if numbers:
                losses.append(progress.numbers()["loss"])
            if progress.checkpoint_due and save:
                progress.state.save(Path(folder))
    if numbers:
        write_json(Path(folder) / f"losses_rank{rank or 0}.json", {"losses": losses})
    if log is not None:
        log.close()
        write_json(Path(folder) / f"seen_rank{rank}.json", {"seen": objective.seen})
    return objective.seen


if __name__ == "__main__":
    arguments = globals()["ARGUMENTS"]
    Path(arguments["folder"]).mkdir(parents=True, exist_ok=True)
    sys.stderr = (Path(arguments["folder"]) / f"error_rank{arguments.get('rank')}.txt").open("w")
    train(**arguments)
