"""How fast Ti-MAE trains on ECG5000's shape: against the Lightning port's choices, restated (separate q, k and v, attention weights
written out with dropout on them, dropout in the MLPs, everything reconstructed).

    uv run apps/bench/ti_mae.py [--batch 64] [--rounds 7] [--threads 1]

Both train on the same windows and masks in turn (A B A B), one optimiser step a measurement; ratios are of the minimum of process-CPU
time. Before that the restatement, without dropout, must give the numbers of `layout="original"`. Shape letters: B, C, T, N tokens, D.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from physio_models.objectives.masked import masked_mse
from physio_models.ti_mae import Positions, TiMae, TiMaeClassifier, TiMaeConfig
from physio_models.ti_mae_mamba import TiMaeMambaConfig

MUST, AIM = 2.5, 5.0
SAMPLES, MASK_RATIO, CLASSES = 140, 0.75, 5
Train = Callable[[Tensor, Tensor, Tensor], None]  # windows (B, C, T), masks (B, N), labels (B,)


class PlainAttention(nn.Module):
    """Attention with its weights in memory, and dropout on them."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.n_heads, self.dropout = n_heads, nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        n_items, n, width = x_BND.shape
        q, k, v = (part(x_BND).view(n_items, n, self.n_heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value))
        weight = self.dropout(torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1], dim=-1))
        return (weight @ v).transpose(1, 2).contiguous().view(n_items, n, width)


class PlainLayer(nn.Module):
    """The port's block."""

    def __init__(self, width: int, n_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = PlainAttention(width, n_heads, dropout)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = self.norm1(x_BND)
        x_BND = self.norm2(x_BND + self.attention(x_BND))
        return x_BND + self.ffn(x_BND)


class PlainHalf(nn.Module):
    """Encoder or decoder: embedding, positions, blocks, norm."""

    def __init__(self, embedding: nn.Module, token: str, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.embedding = embedding
        self.positional_encoding = Positions(SAMPLES + 1, width, keep=True)
        self.register_parameter(token, nn.Parameter(torch.zeros(1, 1, width)))
        self.layers = nn.ModuleList(PlainLayer(width, 4, hidden, dropout) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def through(self, x_BND: Tensor) -> Tensor:
        for layer in self.layers:
            x_BND = layer(x_BND)
        return self.norm(x_BND)


class PlainConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 64, 3, padding=1)


class PlainTiMae(nn.Module):
    """The port's pretraining network, under its names."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.encoder = PlainHalf(PlainConv(), "cls_token", 64, 256, dropout)
        self.decoder = PlainHalf(nn.Linear(64, 32), "mask_token", 32, 128, dropout)
        self.decoder.projection = nn.Linear(32, 1)

    def features(self, x_BCT: Tensor, keep_BK: Tensor | None) -> Tensor:
        half = self.encoder
        tokens_BND = half.embedding.conv(x_BCT).transpose(1, 2) + half.positional_encoding.pe[:, 1:]
        if keep_BK is not None:
            tokens_BND = tokens_BND.gather(1, keep_BK[..., None].expand(-1, -1, 64))
        cls_B1D = (half.cls_token + half.positional_encoding.pe[:, :1]).expand(len(x_BCT), -1, -1)
        return half.through(torch.cat([cls_B1D, tokens_BND], 1))

    def forward(self, x_BCT: Tensor, mask_BN: Tensor) -> Tensor:
        half, order_BN = self.decoder, mask_BN.int().argsort(1, descending=False)
        n_kept = SAMPLES - int(MASK_RATIO * SAMPLES)
        z = half.embedding(self.features(x_BCT, order_BN[:, :n_kept]))
        shuffled = torch.cat([z[:, 1:], half.mask_token.expand(len(z), SAMPLES - n_kept, -1)], 1)
        home = shuffled.gather(1, order_BN.argsort(1)[..., None].expand(-1, -1, 32))
        y = half.through(torch.cat([z[:, :1], home], 1) + half.positional_encoding.pe)
        return half.projection(y)[:, 1:].transpose(1, 2)


def check_equal(x_BCT: Tensor, mask_BN: Tensor) -> None:
    """The restatement without dropout and `layout="original"` with its weights reconstruct the same."""
    plain, ours = PlainTiMae(0.0).eval(), TiMaeConfig.original().build().eval()
    ours.load_state_dict(plain.state_dict())
    with torch.no_grad():
        difference = float((plain(x_BCT, mask_BN) - ours(x_BCT, mask_BN).pred_BCT).abs().max())
    if difference > 1e-4:
        raise SystemExit(f"the restatement and layout='original' differ by {difference:g}")
    print(f"restatement and layout='original' agree within {difference:.1g}")


def stepper(network: nn.Module, loss_of: Callable[[Tensor, Tensor, Tensor], Tensor], *, fused: bool = True) -> Train:
    """One AdamW step of a network; `fused` as `physio_train.optimizer` builds it."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=fused)

    def train(x_BCT: Tensor, mask_BN: Tensor, label_B: Tensor) -> None:
        loss_of(x_BCT, mask_BN, label_B).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return train


def trainers() -> dict[str, dict[str, Train]]:
    """Stage -> name -> one step; the first of each stage is the peer."""
    n_visible = SAMPLES - int(MASK_RATIO * SAMPLES)

    def reconstruction(network: nn.Module) -> Train:
        return stepper(network, lambda x, mask, _: masked_mse(network(x, mask, n_visible=n_visible)))

    def classification(network: TiMaeClassifier) -> Train:
        return stepper(network, lambda x, _, label: F.cross_entropy(network(x), label))

    peer, peer_tuned, head = PlainTiMae(0.1), PlainTiMae(0.1), nn.Linear(64, CLASSES)
    tuned = nn.ModuleList([peer_tuned.encoder, head])
    cross: TiMae = TiMaeConfig(decoder="cross").build()
    return {
        "pretrain": {
            "the port's choices": stepper(peer, lambda x, mask, _: F.mse_loss(peer(x, mask), x), fused=False),
            "ours": reconstruction(TiMaeConfig().build()),
            "ours, cross decoder, all hidden": reconstruction(cross),
            "ours, Mamba-2 both ways": reconstruction(TiMaeMambaConfig().build()),
        },
        "fine-tune": {
            "the port's choices": stepper(tuned, lambda x, _, label: F.cross_entropy(head(peer_tuned.features(x, None)[:, 0]), label), fused=False),
            "ours": classification(TiMaeClassifier(TiMaeConfig(decoder="none", pooling="cls"), CLASSES)),
        },
    }


def batch(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Windows, masks that hide 105 of 140 samples, labels."""
    draw = torch.Generator().manual_seed(seed)
    rank_BN = torch.rand(size, SAMPLES, generator=draw).argsort(1).argsort(1)
    return torch.randn(size, 1, SAMPLES, generator=draw), rank_BN < int(MASK_RATIO * SAMPLES), torch.randint(CLASSES, (size,), generator=draw)


def gemm_rate() -> float:
    """Multiply-adds a second of a large fp32 matrix product here, on as many threads as the rest."""
    a, best = torch.randn(1024, 1024), float("inf")
    for _ in range(5):
        start = time.process_time()
        a @ a
        best = min(best, time.process_time() - start)
    return 1024**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="windows per step")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each, in turn")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    check_equal(*batch(args.batch, 0)[:2])
    rate, summary = gemm_rate(), {}
    for stage, variants in trainers().items():
        times = measure(variants, args.batch, args.rounds)
        summary |= {f"{stage}: {name}": ratio for name, ratio in report(stage, variants, times, rate, args.batch).items()}
    print(json.dumps(summary))
    sys.exit(0 if all(summary[f"{stage}: ours"] >= MUST for stage in ("pretrain", "fine-tune")) else 1)


def measure(variants: dict[str, Train], size: int, rounds: int) -> dict[str, list[float]]:
    """Process-CPU seconds of single steps, after two to warm up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(rounds + 2):
        given = batch(size, i + 1)
        for name, train in variants.items():
            start = time.process_time()
            train(*given)
            if i >= 2:
                times[name].append(time.process_time() - start)
    return times


def report(stage: str, variants: dict[str, Train], times: dict[str, list[float]], rate: float, size: int) -> dict[str, float]:
    print(f"{stage:34s} ms/step   windows/s   ratio   of a matrix product's rate      must {MUST:g}, aim {AIM:g}")
    ratios, peer = {}, min(times["the port's choices"])
    for name, seconds in times.items():
        with FlopCounterMode(display=False) as counter:
            variants[name](*batch(size, 0))
        best, ratios[name] = min(seconds), peer / min(seconds)
        share = counter.get_total_flops() / 2 / rate / best
        verdict = "" if name != "ours" else "reaches the aim" if ratios[name] >= AIM else "holds" if ratios[name] >= MUST else "FALLS SHORT"
        print(f"  {name:32s} {1e3 * best:7.1f} {size / best:11.0f} {ratios[name]:7.2f}   {share:8.0%}   {verdict}")
    return ratios


if __name__ == "__main__":
    main()
