"""What every network costs, and how much faster it is than the original's choices restated plainly.

    uv run apps/bench/models.py [--only himae ti_mae] [--size tiny|fast|reference] [--batch 4] [--seconds 2]

One row for each network of MODELS under the first objective that fits it, and for CWT-MAE's versions, also on 30 s of twelve channels.
Parameters; multiply-adds a window of encoding and of a training step (matrix products, attention and convolutions; transforms by FFT
and what works number by number are not counted); the most memory that a training step's tensors hold at once, weights and gradients
included; CPU time of encoding one window (median and 99th percentile); windows a second in training and in encoding.

The peer has the same weights where it computes the same function, which is then checked. It takes its turn on the same fresh input
(A B A B), and a ratio is that of the least CPU times, one thread. What each restates: attention with its weights in memory, dropout on
them and a boolean mask, AdamW parameter by parameter; DiT and NEPA with one token a sample; HiMAE with its decoder always run; PaPaGei
layer by layer; CWT-MAE's wavelets as one full-width convolution. "Of a product" is the share that the arithmetic has of what a large
matrix product does here in the same time: what lies between is memory traffic and the work that it does not count. Targets belong to
the reference size.
Shape letters: B items, C channels, T samples, N tokens, S scales, L samples of a transform.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from physio_models import FITS, MODELS, OBJECTIVES, cwt_frontend, resolve
from physio_models.attention import CrossAttention, SelfAttention, key_mask
from physio_models.cwt_mae import CwtMaeConfig
from physio_models.himae import HiMae
from physio_models.papagei import Papagei
from physio_train import Step, Streams

DROPOUT = 0.1
TARGETS: dict[tuple[str, str], tuple[float, float]] = {
    ("himae", "encode"): (2.0, 3.0),
    ("papagei", "encode"): (1.3, 3.0),
    ("ti_mae", "train"): (2.5, 5.0),
    ("dit", "train"): (3.5, 10.0),
    ("nepa", "train"): (5.0, 10.0),
    ("token_decoder", "train"): (5.0, 10.0),
    ("cwt_mae", "wavelets"): (25.0, 60.0),
}
"""(row, measure) -> must, aim, at the reference size."""
BATCH = {"ti_mae": 64, "papagei": 64, "dit": 1, "nepa": 1, "token_decoder": 1}
"""Windows in a batch where it is not --batch: the published measurements'."""
LONG = {"n_channels": 12, "n_samples": 3000}
VERSIONS: dict[str, dict[str, Any]] = {
    "cwt_mae v1": {"version": "v1"},
    "cwt_mae v2": {"version": "v2"},
    "cwt_mae v1, 12 x 3000": {"version": "v1", **LONG},
    "cwt_mae v3, 12 x 3000": {"version": "v3", **LONG},
}
ROWS = (*MODELS, *VERSIONS)
COLUMNS = {
    "parameters": 12, "M encode": 10, "M step": 9, "MiB": 9, "peer": 9, "p50 ms": 9, "p99 ms": 9, "encode/s": 10, "ratio": 7, "step/s": 9, "ratio ": 8,
    "of a product": 14,
}  # fmt: skip
"""Titles and widths: multiply-adds are in millions, rates in windows a second."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network with what trains it, and its peer: another network, or the same one under another implementation of a part."""

    name: str
    model: nn.Module
    objective: Any
    peer: nn.Module | None = None
    restates: str = ""  # what the peer does otherwise
    same: bool = True  # the peer computes the same function
    encode_peer: Callable[[Tensor], Tensor] | None = None  # where encoding alone differs
    within: Callable[[], AbstractContextManager[None]] = nullcontext  # the peer runs inside
    trains: bool = True  # the peer's training step differs too

    @property
    def cfg(self) -> Any:
        return self.model.cfg


# The original's choices


class PlainSelfAttention(nn.Module):
    """The attention of ours with its weights in memory and dropout on them; a boolean mask where it is causal."""

    def __init__(self, ours: SelfAttention, dropout: float) -> None:
        super().__init__()
        self.ours, self.dropout = ours, nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, *, valid_BN: Tensor | None = None, rotate: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        query, key, value = self.ours._qkv(x_BND, rotate)
        keep = key_mask(valid_BN)
        if self.ours.causal:
            keep = torch.ones(x_BND.shape[1], x_BND.shape[1], dtype=torch.bool, device=x_BND.device).tril()
        return self.ours._merge(attended(query, key, value, keep, self.dropout))


class PlainCrossAttention(nn.Module):
    """The same of attention to a context."""

    def __init__(self, ours: CrossAttention, dropout: float) -> None:
        super().__init__()
        self.ours, self.dropout = ours, nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, context_BME: Tensor, *, valid_BM: Tensor | None = None) -> Tensor:
        n_items, n_tokens, width = x_BND.shape
        query = self.ours.query(x_BND).view(n_items, n_tokens, self.ours.n_heads, -1).transpose(1, 2)
        key, value = self.ours.key_value(context_BME).view(n_items, -1, 2, self.ours.n_heads, width // self.ours.n_heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.ours.out(attended(query, key, value, key_mask(valid_BM), self.dropout).transpose(1, 2).flatten(2))


def attended(query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None, dropout: nn.Dropout) -> Tensor:
    """softmax(q k' / sqrt(K)) v, each step written out."""
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if keep is not None:
        logits = logits.masked_fill(~keep, float("-inf"))
    return dropout(logits.softmax(-1)) @ value


def with_plain_attention(model: nn.Module, dropout: float) -> nn.Module:
    """A copy whose every attention is plain, with dropout wherever ours has a place for it."""
    peer = copy.deepcopy(model)
    kinds = {SelfAttention: PlainSelfAttention, CrossAttention: PlainCrossAttention}
    for parent in list(peer.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in kinds and not isinstance(parent, tuple(kinds.values())):
                setattr(parent, name, kinds[type(child)](child, dropout))
    for part in peer.modules():
        if dropout and isinstance(part, nn.Dropout):
            part.p = dropout
    return peer


def bank(scales: tuple[float, ...], n_samples: int) -> tuple[Tensor, int]:
    """The Ricker wavelets of CWT-MAE as one bank of convolution kernels (S, 1, width) and the samples to mirror at either end."""
    a = torch.tensor(scales, dtype=torch.float64)[:, None]
    width = int(min(10 * max(scales), n_samples)) // 2 * 2 + 1
    u_SW = (torch.arange(width) - width // 2) / a
    gain_S1 = 2 / ((3 * a).sqrt() * np.pi**0.25 + 1e-6)
    return (gain_S1 * (1 - u_SW**2) * (-(u_SW**2) / 2).exp()).float()[:, None], width // 2


def conv1d_cwt(x: Tensor, scales: tuple[float, ...], **_: object) -> Tensor:
    """The transform as the original computes it: the bank is made and all of it convolved at full width in every call."""
    kernels, pad = bank(tuple(scales), x.shape[-1])
    flat = F.pad(x.reshape(-1, 1, x.shape[-1]), (pad, pad), mode="reflect")
    return F.conv1d(flat, kernels).view(*x.shape[:-1], len(scales), x.shape[-1])


@contextmanager
def wavelets_by_convolution() -> Iterator[None]:
    ours, cwt_frontend.cwt = cwt_frontend.cwt, conv1d_cwt
    try:
        yield
    finally:
        cwt_frontend.cwt = ours


# Cases


def case_of(name: str, size: str) -> Case:
    """A row's network, objective and peer."""
    torch.manual_seed(0)
    if name in VERSIONS or name.startswith("cwt_mae"):
        return cwt_case(name, size)
    cfg = resolve(MODELS, name).preset(size)
    model, objective = cfg.build(), first_objective(name)
    if isinstance(model, HiMae):
        whole = lambda x_BCT: model(x_BCT, torch.zeros_like(x_BCT[:, 0], dtype=torch.bool)).pred_BCT  # noqa: E731
        return Case(name=name, model=model, objective=objective, restates="decoder always run", encode_peer=whole, same=False, trains=False)
    if isinstance(model, Papagei):
        layers = lambda x_BCT: model(x_BCT).embedding_BD  # noqa: E731
        return Case(name=name, model=model, objective=objective, restates="layer by layer", encode_peer=layers, trains=False)
    if name in ("dit", "nepa"):
        single = replace(cfg, patch=1, **({"positions": "learned"} if name == "nepa" else {}))
        same = single == cfg
        plain = with_plain_attention(model if same else single.build(), DROPOUT)
        return Case(name=name, model=model, objective=objective, peer=plain, restates="one token a sample, dropout attention", same=same)
    dropout = DROPOUT if name in ("ti_mae", "mae_vit", "token_decoder") else 0.0
    peer = with_plain_attention(model, dropout)
    if not any(isinstance(part, (PlainSelfAttention, PlainCrossAttention)) for part in peer.modules()):
        return Case(name=name, model=model, objective=objective)
    return Case(name=name, model=model, objective=objective, peer=peer, restates="dropout attention" if dropout else "attention weights in memory")


def cwt_case(name: str, size: str) -> Case:
    """CWT-MAE on the original's wavelets, whose peer convolves."""
    cfg = CwtMaeConfig.preset(size, **VERSIONS[name]) if name in VERSIONS else resolve(MODELS, name).preset(size)
    model = replace(cfg, spacing="linear").build()
    objective = first_objective(name.split()[0])
    return Case(name=name, model=model, objective=objective, peer=model, restates="conv1d wavelet bank", within=wavelets_by_convolution)


def first_objective(name: str) -> Any:
    """The first objective that fits a network, as it stands."""
    return resolve(OBJECTIVES, next(objective for objective, models in FITS.items() if name in models))()


def draw(cfg: Any, n: int, seed: int) -> dict[str, Any]:
    """A batch with all that some objective reads."""
    generator = torch.Generator().manual_seed(seed)
    if cfg.input == "tokens":
        signal = {"tokens": torch.randint(0, cfg.n_ids, (n, cfg.n_positions), generator=generator)}
    else:
        signal = {"signal": torch.randn(n, cfg.n_channels, cfg.n_samples, generator=generator)}
    subject = np.array([f"s{i // 2}" for i in range(n)])
    extra = {"text_emb": torch.randn(n, getattr(cfg, "text_width", 8), generator=generator), "aux": torch.rand(n, 3, generator=generator)}
    return signal | extra | {"index": torch.arange(n), "label": torch.arange(n) % 2, "subject": subject}


def reads(batch: dict[str, Any]) -> Tensor:
    return batch["tokens"] if "tokens" in batch else batch["signal"]


# Measuring


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors held at once inside the block, those of ``start`` included; what kernels use inside is not seen."""

    def __init__(self, start: nn.Module) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.now = self.most = 0
        for parameter in (*start.parameters(), *start.buffers()):
            self._hold(parameter)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._hold(value)
        return out

    def _hold(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self.held or storage.device.type == "meta":
            return
        self.held[key] = storage.nbytes()
        self.now += self.held[key]
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.now -= self.held.pop(key, 0)


def trainer(case: Case, model: nn.Module, *, fused: bool) -> Callable[[dict[str, Any]], None]:
    """One AdamW step of a network under the case's objective; `fused` as `physio_train.optimizer` builds it."""
    modules = case.objective.modules(model)
    step = Step(modules, 0.0, Streams(0, 0))
    optimizer = torch.optim.AdamW([p for p in (*model.parameters(), *modules.parameters()) if p.requires_grad], lr=1e-4, fused=fused)

    def train(batch: dict[str, Any]) -> None:
        case.objective(model, batch, step).total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return train


def encoder(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model.encode(x).pooled_BD


def inside(within: Callable[[], AbstractContextManager[None]], run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def wrapped(x: Any) -> Any:
        with within():
            return run(x)

    return wrapped


def in_turn(runs: dict[str, Callable[[Any], Any]], fresh: Callable[[int], Any], seconds: float) -> dict[str, list[float]]:
    """CPU seconds of each, in turns on the same fresh input, until ours took ``seconds`` or all took six times as much, two rounds at the least."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(fresh(0))
    i = 0
    while i < 2 or (i < 200 and sum(times["ours"]) < seconds and sum(map(sum, times.values())) < 6 * seconds):
        i += 1
        given = fresh(i)
        for name, run in runs.items():
            start = time.process_time()
            run(given)
            times[name].append(time.process_time() - start)
    return times


def counted(run: Callable[[], object]) -> float:
    """Multiply-adds."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2


def check_equal(case: Case, x: Tensor) -> None:
    """The peer without dropout encodes to what ours does."""
    if not case.same or (case.peer is None and case.encode_peer is None):
        return
    ours = encoder(case.model.eval())(x)
    with case.within():
        peer = case.encode_peer(x) if case.encode_peer is not None else encoder(case.peer.eval())(x)
    if not torch.allclose(ours, peer, rtol=1e-3, atol=1e-4 * float(ours.abs().max())):
        raise SystemExit(f"{case.name}: the peer gives other features, largest difference {float((ours - peer).abs().max()):.3g}")


def matmul_rate() -> float:
    """float32 multiply-adds a second of a large matrix product on one thread."""
    a, best = torch.randn(1024, 1024), float("inf")
    for _ in range(6):
        start = time.process_time()
        a @ a
        best = min(best, time.process_time() - start)
    return 1024**3 / best


def measure(case: Case, n: int, seconds: float, rate: float) -> dict[str, float]:
    """All figures of a row."""
    cfg, found = case.cfg, {"parameters": float(sum(p.numel() for p in case.model.parameters()))}
    one = reads(draw(cfg, 1, 1))
    with torch.no_grad():
        check_equal(case, one)
        case.model.eval()
        found["encode_macs"] = counted(lambda: case.model.encode(one))
        found |= encoding(case, n, seconds)
    case.model.train()
    train = trainer(case, case.model, fused=True)
    train(draw(cfg, n, 2))
    found["train_macs"] = counted(lambda: train(draw(cfg, n, 2))) / n
    found["peak_mib"] = peak_of(case, case.model, n)
    runs = {"ours": train}
    if case.peer is not None and case.trains:
        runs["peer"] = inside(case.within, trainer(case, case.peer.train(), fused=case.within is wavelets_by_convolution))
        with case.within():
            found["peer_peak_mib"] = peak_of(case, case.peer, n)
    times = in_turn(runs, lambda i: draw(cfg, n, i), seconds)
    found |= summary("train", times, n)
    found["train_of_product"] = found["train_macs"] * n / rate / min(times["ours"])
    if case.within is wavelets_by_convolution:
        found |= wavelets(case, n, seconds)
    return found


def encoding(case: Case, n: int, seconds: float) -> dict[str, float]:
    """Latency of one window, and windows a second."""
    ours = encoder(case.model)
    latency = in_turn({"ours": ours}, lambda i: reads(draw(case.cfg, 1, i)), seconds / 2)["ours"]
    runs = {"ours": ours}
    if case.encode_peer is not None or case.peer is not None:
        runs["peer"] = inside(case.within, case.encode_peer or encoder(case.peer.eval()))
    times = in_turn(runs, lambda i: reads(draw(case.cfg, n, i)), seconds)
    p50, p99 = np.percentile(latency, [50, 99]) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99), "n_latency": float(len(latency)), **summary("encode", times, n)}


def wavelets(case: Case, n: int, seconds: float) -> dict[str, float]:
    """The transform alone, on the signals that a batch has."""
    cfg = case.cfg

    def ours(x_BL: Tensor) -> Tensor:
        return cwt_frontend.cwt(x_BL, cfg.scales, wavelet="ricker", definition="reference")

    runs = {"ours": ours, "peer": lambda x_BL: conv1d_cwt(x_BL, cfg.scales)}
    return summary("wavelets", in_turn(runs, lambda i: torch.randn(n * cfg.n_channels * (1 + cfg.differences), cfg.n_samples), seconds), n)


def summary(what: str, times: dict[str, list[float]], n: int) -> dict[str, float]:
    found = {f"{what}_windows_s": n / min(times["ours"])}
    return found | {f"{what}_ratio": min(times["peer"]) / min(times["ours"])} if "peer" in times else found


def peak_of(case: Case, model: nn.Module, n: int) -> float:
    """MiB of a forward and backward pass."""
    modules = case.objective.modules(model)
    step = Step(modules, 0.0, Streams(0, 0))
    with PeakBytes(nn.ModuleList([model, modules])) as peak:
        case.objective(model, draw(case.cfg, n, 3), step).total.backward()
    model.zero_grad(set_to_none=True)
    return peak.most / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--size", choices=("tiny", "fast", "reference"), default="fast")
    parser.add_argument(
        "--batch", type=int, default=4, help="windows in a batch; 64 for ti_mae and papagei and 1 for those of thousands of tokens, whatever this says"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU time of ours in each measurement, at least two rounds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rate = matmul_rate()
    print(f"size {args.size}; a large float32 matrix product does {rate / 1e9:.0f} G multiply-adds a second on one thread")
    print(f"{'':24s}" + "".join(f"{column:>{width}s}" for column, width in COLUMNS.items()))
    results, held = {}, True
    for name in args.only:
        n = BATCH.get(name, args.batch)
        case = case_of(name, args.size)
        found = results[name] = measure(case, n, args.seconds, rate)
        print(line(name, found), flush=True)
        print(f"{'':24s}peer: {case.restates or 'none, the layers are the original ones'}; batch {n}", flush=True)
        for what in ("encode", "train", "wavelets"):
            if f"{what}_ratio" not in found or (name.split()[0], what) not in TARGETS:
                continue
            must, aim = TARGETS[name.split()[0], what]
            ratio = found[f"{what}_ratio"]
            verdict = "reaches the aim" if ratio >= aim else "holds" if ratio >= must else "FALLS SHORT"
            held &= ratio >= must or args.size != "reference"
            print(f"{'':24s}{what}: {ratio:.2f} x, must {must:g}, aim {aim:g}: {verdict if args.size == 'reference' else 'belongs to the reference size'}")
    print(json.dumps({"size": args.size, "rows": results}))
    sys.exit(0 if held else 1)


def line(name: str, found: dict[str, float]) -> str:
    """The figures in the order of COLUMNS, blanks where there is no peer."""
    cells = (
        f"{found['parameters']:,.0f}", f"{found['encode_macs'] / 1e6:.1f}", f"{found['train_macs'] / 1e6:.1f}", f"{found['peak_mib']:.1f}",
        f"{found['peer_peak_mib']:.1f}" if "peer_peak_mib" in found else "", f"{found['p50_ms']:.2f}", f"{found['p99_ms']:.2f}",
        f"{found['encode_windows_s']:.1f}", f"{found['encode_ratio']:.2f}" if "encode_ratio" in found else "",
        f"{found['train_windows_s']:.1f}", f"{found['train_ratio']:.2f}" if "train_ratio" in found else "", f"{found['train_of_product']:.0%}",
    )  # fmt: skip
    return f"{name:24s}" + "".join(f"{cell:>{width}s}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


if __name__ == "__main__":
    main()
