"""How long one training step of DiT, NEPA and the token decoder takes, against a plain restatement of the original's choices.

    uv run apps/bench/transformers.py [--rows dit nepa decoder] [--tokens N] [--depth N] [--rounds 2]

Same sizes, same tokens (one per sample), same loss; the peer has torch's MultiheadAttention with dropout on the attention weights and, where
causal, an explicit boolean mask, which keeps it off the fused kernels. Without dropout both must give the same output from the same weights.
One thread, batch 1, in turn (A B A B), the smallest process time of the rounds. The limit is the step's arithmetic at the rate of a large
matrix product measured here, in float32. Further rows: ours in bf16 where the machine multiplies it, and on patches of 25 samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from physio_models.attention import Block
from physio_models.decoder import TokenDecoder, TokenDecoderConfig
from physio_models.dit import Dit, DitBlock, DitConfig, modulated
from physio_models.nepa import Nepa, NepaConfig
from physio_models.objectives.autoregressive import next_token_loss
from physio_models.objectives.nepa import agreement

MUST = {"dit": 3.5, "nepa": 5.0, "decoder": 5.0}
AIM = 10.0  # with patching
DROPOUT = 0.1


class PeerAttention(nn.Module):
    """torch's MultiheadAttention with dropout on the weights and a boolean mask, taking the weights of ours."""

    def __init__(self, ours: nn.Module, causal: bool) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(ours.out.in_features, ours.n_heads, dropout=DROPOUT, batch_first=True)
        self.mha.load_state_dict(
            {"in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias, "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias}
        )
        self.causal = causal

    def forward(self, x_BND: Tensor) -> Tensor:
        n = x_BND.shape[1]
        mask_NN = torch.ones(n, n, dtype=torch.bool, device=x_BND.device).triu(1) if self.causal else None
        return self.mha(x_BND, x_BND, x_BND, attn_mask=mask_NN, need_weights=False)[0]


class PeerBlock(nn.Module):
    """Attention and MLP with dropout on attention weights, MLP and both branches; pre-norm as ours, so that outputs can be compared."""

    def __init__(self, ours: Block) -> None:
        super().__init__()
        self.attention, self.norm_1, self.norm_2, self.mlp = PeerAttention(ours.attention, True), ours.norm_1, ours.norm_2, ours.mlp
        self.mlp.dropout.p = DROPOUT
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x_BND: Tensor, **_: object) -> Tensor:
        x_BND = x_BND + self.dropout(self.attention(self.norm_1(x_BND)))
        return x_BND + self.dropout(self.mlp(self.norm_2(x_BND)))


class PeerDitBlock(nn.Module):
    """The adaLN-Zero block on `PeerAttention`."""

    def __init__(self, ours: DitBlock) -> None:
        super().__init__()
        self.attention, self.mlp, self.modulation = PeerAttention(ours.attention, False), ours.mlp, ours.modulation
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x_BND: Tensor, condition_BD: Tensor, _: None) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition_BD)[:, None].chunk(6, dim=-1)
        x_BND = x_BND + gate_1 * self.attention(modulated(x_BND, shift_1, scale_1))
        return x_BND + gate_2 * self.dropout(self.mlp(modulated(x_BND, shift_2, scale_2)))


@dataclass(frozen=True)
class Row:
    """A network, its peer, a fresh input, and the loss and output of a model on it."""

    ours: nn.Module
    peer: nn.Module
    draw: Callable[[], tuple[Tensor, ...]]
    output: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]
    patched: nn.Module | None = None  # ours on patches; reads the same input


def with_blocks(model: nn.Module, like: Callable[[], nn.Module], peer_block: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The same network and weights with other blocks."""
    peer = like()
    peer.load_state_dict(model.state_dict())
    peer.blocks = nn.ModuleList(peer_block(block) for block in peer.blocks)
    return peer


def dit_row(n_tokens: int, depth: int | None) -> Row:
    cfg = DitConfig(n_samples=n_tokens, patch=1, depth=depth or 12)
    ours = Dit(cfg)
    for parameter in ours.parameters():  # gates and head start at zero, where every output is alike
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)

    def draw() -> tuple[Tensor, ...]:
        return torch.randn(1, 12, n_tokens), torch.rand(1), torch.randn(1, 12, n_tokens)

    def output(model: nn.Module, x: tuple[Tensor, ...]) -> Tensor:
        return model(x[0], x[1])

    patched = Dit(DitConfig(n_samples=n_tokens, patch=25, depth=cfg.depth)) if n_tokens % 25 == 0 else None
    return Row(ours, with_blocks(ours, lambda: Dit(cfg), PeerDitBlock), draw, output, lambda m, x: (output(m, x) - x[2]).square().mean(), patched)


def nepa_row(n_tokens: int, depth: int | None) -> Row:
    cfg = NepaConfig(n_samples=n_tokens, patch=1, depth=depth or 6, positions="learned")
    ours = Nepa(cfg)

    def loss(model: nn.Module, x: tuple[Tensor, ...]) -> Tensor:
        return -agreement(model(x[0]), center=False)[0]

    patched = Nepa(NepaConfig(n_samples=n_tokens, patch=25, depth=cfg.depth, positions="learned")) if n_tokens % 25 == 0 else None
    peer = with_blocks(ours, lambda: Nepa(cfg), PeerBlock)
    return Row(ours, peer, lambda: (torch.randn(1, 12, n_tokens),), lambda m, x: m(x[0]).pred_BND, loss, patched)


def decoder_row(n_tokens: int, depth: int | None) -> Row:
    cfg = TokenDecoderConfig(n_positions=n_tokens, depth=depth or 12, positions="learned")
    ours = TokenDecoder(cfg)

    def loss(model: nn.Module, x: tuple[Tensor, ...]) -> Tensor:
        return next_token_loss(model(x[0]).logits_BNV, x[0], None)

    peer = with_blocks(ours, lambda: TokenDecoder(cfg), PeerBlock)
    return Row(ours, peer, lambda: (torch.randint(0, cfg.n_ids, (1, n_tokens)),), lambda m, x: m(x[0]).logits_BNV, loss)


ROWS = {"dit": (dit_row, 2500), "nepa": (nepa_row, 2500), "decoder": (decoder_row, 2048)}


def check_equal(row: Row) -> None:
    """Without dropout the peer is the same function."""
    x = row.draw()
    with torch.no_grad():
        ours, peer = row.output(row.ours.eval(), x), row.output(row.peer.eval(), x)
    if not torch.allclose(ours, peer, rtol=1e-3, atol=1e-4):
        raise SystemExit(f"the peer gives other outputs: largest difference {(ours - peer).abs().max().item():.3g}")


def step(model: nn.Module, row: Row, *, bf16: bool = False) -> float:
    """Process seconds of one forward, backward and gradient reset."""
    x = row.draw()
    start = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = row.loss(model, x)
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return time.process_time() - start


def matmul_rate() -> float:
    """float32 operations a second of a large matrix product on one thread."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    seconds = []
    for _ in range(3):
        start = time.process_time()
        a @ b
        seconds.append(time.process_time() - start)
    return 2 * 2048**3 / min(seconds)


def step_operations(row: Row) -> float:
    """Operations of a training step: three times those of the forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        row.output(row.ours.eval(), row.draw())
    return 3.0 * counter.get_total_flops()


def measure(row: Row, n_rounds: int, bf16: bool) -> dict[str, float]:
    variants = {"peer": (row.peer, False), "ours": (row.ours, False)}
    variants |= {"ours, bf16": (row.ours, True)} if bf16 else {}
    variants |= {"ours, patches of 25": (row.patched, False)} if row.patched is not None else {}
    seconds = {name: float("inf") for name in variants}
    for model, _ in variants.values():
        model.train()
    for _ in range(n_rounds):
        for name, (model, half) in variants.items():
            seconds[name] = min(seconds[name], step(model, row, bf16=half))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--tokens", type=int, default=None, help="tokens of a window (default: 2500 samples, 2048 ids)")
    parser.add_argument("--depth", type=int, default=None, help="blocks (default: the original's)")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    has = torch.cpu.get_capabilities()
    bf16 = bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    rate = matmul_rate()
    print(f"large float32 matrix product: {rate / 1e9:.0f} Gop/s on one thread" + ("" if bf16 else "; bf16: not supported here"))
    summary: dict[str, float] = {}
    for name in args.rows:
        make, n_tokens = ROWS[name]
        row = make(args.tokens or n_tokens, args.depth)
        check_equal(row)
        limit = step_operations(row) / rate
        seconds = measure(row, args.rounds, bf16)
        for variant, value in seconds.items():
            ratio = seconds["peer"] / value
            summary[f"{name}, {variant}"] = ratio
            verdict = ""
            if variant == "ours":
                verdict = f"{value / limit:.2f} x its limit, which is {seconds['peer'] / limit:.2f} x the peer"
            if variant.endswith("of 25"):
                verdict = f"aim {AIM:g} at equal quality: {'reached in time' if ratio >= AIM else 'not reached'}"
            print(f"{name:8s} {variant:22s} {value:8.3f} s/step {ratio:8.2f} x  {verdict}", flush=True)
        best = max(summary[f"{name}, {variant}"] for variant in ("ours", "ours, bf16") if variant in seconds)
        summary[f"{name}, best"] = best
        print(f"{name:8s} must {MUST[name]:g}, one token a sample: {'holds' if best >= MUST[name] else 'FALLS SHORT'}", flush=True)
    print(json.dumps(summary))
    sys.exit(0 if all(summary[f"{name}, best"] >= MUST[name] for name in args.rows) else 1)


if __name__ == "__main__":
    main()
