"""How fast symbols are made, merges learned and ids given: against youtokentome, rustbpe, sentencepiece, tokenizers, tiktoken and plain ways.

    uv run --group bench apps/bench/bpe.py --root mitdb [ptbxl ...] [--only train encode quantise ...] [--quick]

Symbols are ECG-Byte's letters of records at 250 Hz, cut to 5 s: one stretch a string, or twelve with one range. Ours and a peer take
turns on the same input, another draw of stretches each round; times are the least CPU time of the rounds, children and all threads included,
and wall time where the peer has several threads. Results are compared in the same run. Shape letters: N strings, L symbols, C stretches.
"""

from __future__ import annotations

import os

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # one thread each, unless a row says otherwise

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bpe_peers as peers
import numpy as np

from physio_bpe import RecordMinMax, Tokenizer, quantize, to_hf, train_symbols
from physio_data import open_recording
from physio_data.filters import resample

FS, STRETCH, N_STRETCHES = 250.0, 1250, 12
SLOW_S = 20.0  # CPU seconds from which a peer runs twice
LIMITS: dict[tuple[str, str], tuple[float, float | None]] = {  # row, peer: must, aim
    ("train 1250", "youtokentome, 2 threads"): (3, 6),
    ("train 1250", "rustbpe"): (5, 10),
    ("train 1250", "sentencepiece"): (6, 12),
    ("train 1250", "tokenizers"): (15, 30),
    ("train 15000", "tokenizers"): (150, 350),
    ("train one string", "recount everything, 2 threads"): (150, 400),
    ("encode bpe", "tiktoken"): (10, 20),
    ("encode bpe", "tokenizers"): (15, 30),
    ("encode bpe", "youtokentome"): (15, 30),
    ("encode longest 1250", "tree rebuilt per call"): (200, 800),
    ("encode longest 1250", "tree kept"): (3, 8),
    ("encode longest 15000", "tree rebuilt per call"): (25, None),
    ("encode longest 15000", "tree kept"): (3, 8),
    ("quantise", "np.vectorize and join"): (60, 150),
    ("quantise", "take and join"): (30, 80),
}
Draw = Callable[[int], np.ndarray]  # round -> letters (N, L)
Runs = dict[str, Callable[[np.ndarray], object]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much each row takes."""

    train: int = 10_000_000
    one_string: int = 1_000_000
    encode: int = 10_000_000
    longest: int = 2_500_000
    quantise: int = 3_000_000
    n_merges: int = 5000


QUICK = Sizes(train=500_000, one_string=100_000, encode=500_000, longest=500_000, quantise=300_000, n_merges=1000)


def stretches(roots: Sequence[Path], n_samples: int) -> np.ndarray:
    """Records of all folders at 250 Hz, cut to stretches (N, 1250) float32 of at least `n_samples` together.

    Where there are fewer, they come again with noise of 1 % of their spread.
    """
    found: list[np.ndarray] = []
    for path in (path for root in roots for path in sorted(root.rglob("*.hea"))):
        recording = open_recording(path)
        x_CT = resample(recording.read(), recording.fs, FS)
        cut_CT = x_CT[:, : x_CT.shape[1] // STRETCH * STRETCH]
        found.append(cut_CT.reshape(len(cut_CT), -1, STRETCH).swapaxes(0, 1).reshape(-1, STRETCH).astype(np.float32))  # the leads of 5 s follow one another
        if sum(part.size for part in found) >= n_samples:
            break
    x_NL = np.concatenate(found) if found else np.zeros((0, STRETCH), np.float32)
    x_NL = x_NL[np.isfinite(x_NL).all(1)]
    if not len(x_NL):
        raise SystemExit(f"no whole 5 s in the WFDB records of {', '.join(map(str, roots))}")
    print(f"{x_NL.size / 1e6:.1f} million samples of {len(found)} records", file=sys.stderr)
    rng, parts = np.random.default_rng(0), [x_NL]
    while sum(part.size for part in parts) < n_samples:
        parts.append(x_NL + 0.01 * x_NL.std(1, keepdims=True) * rng.standard_normal(x_NL.shape, dtype=np.float32))
    return np.concatenate(parts)


def drawing(x_NL: np.ndarray, n_symbols: int, n_stretches: int) -> Draw:
    """Letters of another choice of stretches each round; `n_stretches` successive ones share a range and a string."""
    x_NCL = x_NL[: len(x_NL) // n_stretches * n_stretches].reshape(-1, n_stretches, STRETCH)
    n = n_symbols // (n_stretches * STRETCH)

    def draw(i: int) -> np.ndarray:
        chosen = np.random.default_rng(i).permutation(len(x_NCL))[:n]
        return quantize(x_NCL[chosen], RecordMinMax()).symbols.reshape(len(chosen), -1)

    return draw


def cpu_s() -> float:
    """CPU seconds of this process with all its threads and of its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def in_turns(runs: Runs, draw: Draw, n_rounds: int, check: Callable[[np.ndarray, dict[str, object]], None]) -> dict[str, tuple[float, float]]:
    """Least (CPU, wall) seconds of each; slow ones run twice; `check` sees input and results of every round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for i in range(n_rounds):
        given, results = draw(i), {}
        for name, run in runs.items():
            if len(times[name]) >= 2 and max(times[name])[0] > max(SLOW_S, 50 * min(times["ours"])[0] if name != "ours" else 0):
                continue
            start, wall = cpu_s(), time.perf_counter()
            results[name] = run(given)
            times[name].append((cpu_s() - start, time.perf_counter() - wall))
            print(f"  {name}: {times[name][-1][0]:.3f} s CPU, {times[name][-1][1]:.3f} s", file=sys.stderr)
        check(given, results)
    return {name: (min(cpu for cpu, _ in one), min(wall for _, wall in one)) for name, one in times.items()}


class Bench:
    """The rows; each prints its lines and notes its ratios in `summary`."""

    def __init__(self, x_NL: np.ndarray, sizes: Sizes, folder: Path, n_rounds: int) -> None:
        self.x_NL, self.sizes, self.folder, self.n_rounds = x_NL, sizes, folder, n_rounds
        self.reference = peers.Reference(folder)
        self.limits = self.reference.limits(drawing(x_NL, min(1_000_000, x_NL.size), 1)(0))
        self.summary: dict[str, float] = {}
        self.held = True
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Merges learned from 1250-letter strings other than those of the encoding rows."""
        if self._tokenizer is None:
            self._tokenizer = train_symbols(drawing(self.x_NL, self.sizes.train, 1)(99), self.sizes.n_merges)
        return self._tokenizer

    def report(self, row: str, n_symbols: int, times: dict[str, tuple[float, float]], limit_ns: float, limit: str) -> None:
        ours_cpu, ours_wall = times["ours"]
        print(f"{row}: ours {1e9 * ours_cpu / n_symbols:.2f} ns a symbol, {1e9 * ours_cpu / n_symbols / limit_ns:.1f} times {limit}")
        for peer, (cpu, wall) in times.items():
            if peer == "ours":
                continue
            must, aim = LIMITS[row, peer]
            by_wall = "threads" in peer
            ratio = wall / ours_wall if by_wall else cpu / ours_cpu
            self.summary[f"{row}: {peer}"] = round(ratio, 2)
            self.held &= ratio >= must
            verdict = "FALLS SHORT" if ratio < must else "reaches the aim" if aim is None or ratio >= aim else "holds"
            note = f"by wall time; by CPU time {cpu / ours_cpu:.1f}" if by_wall else ""
            print(f"  {peer:32s} {1e9 * cpu / n_symbols:10.1f} ns  {ratio:8.1f} times   must {must:g}, aim {aim or '-'}   {verdict}  {note}", flush=True)

    def equal(self, row: str, what: str, same: bool) -> None:
        if not same:
            raise SystemExit(f"{row}: {what} differ")

    def train_1250(self) -> None:
        merges = self.sizes.n_merges
        model = self.folder / "youtokentome.model"
        runs: Runs = {
            "ours": lambda x: train_symbols(x, merges),
            "youtokentome, 2 threads": lambda x: peers.train_youtokentome(text(x), merges, 2, model),
            "rustbpe": lambda x: peers.train_rustbpe(text(x), merges),
            "sentencepiece": lambda x: peers.train_sentencepiece(text(x), merges),
            "tokenizers": lambda x: peers.train_hf(text(x), merges),
        }
        self._train("train 1250", runs, drawing(self.x_NL, self.sizes.train, 1), self.n_rounds)

    def train_15000(self) -> None:
        runs: Runs = {"ours": lambda x: train_symbols(x, self.sizes.n_merges), "tokenizers": lambda x: peers.train_hf(text(x), self.sizes.n_merges)}
        self._train("train 15000", runs, drawing(self.x_NL, self.sizes.train, N_STRETCHES), 2)

    def _train(self, row: str, runs: Runs, draw: Draw, n_rounds: int) -> None:
        agree: dict[str, float] = {}

        def check(_: np.ndarray, results: dict[str, object]) -> None:
            ours = peers.spelled(results["ours"].merges)[256:]  # type: ignore[attr-defined]
            for peer, strings in results.items():
                if peer == "tokenizers":
                    self.equal(row, "our merges and those of tokenizers", strings == ours)
                elif peer != "ours":
                    agree[peer] = len(set(ours) & set(strings)) / len(ours)  # type: ignore[call-overload]

        times = in_turns(runs, draw, n_rounds, check)
        self.report(row, self.sizes.train, times, self.limits["sweep_ns"], "one count of all pairs")
        shares = "".join(f"; {share:.1%} of the tokens in common with {peer}" for peer, share in agree.items())
        print(f"  the same {self.sizes.n_merges} merges as tokenizers in the same order{shares}", flush=True)

    def train_one_string(self) -> None:
        row, merges = "train one string", self.sizes.n_merges
        runs: Runs = {
            "ours": lambda x: train_symbols([x.ravel()], merges).merges,
            "recount everything, 2 threads": lambda x: self.reference.recount(x, merges, 2),
        }
        check = lambda _, found: self.equal(row, "merges", len(found) < 2 or np.array_equal(*found.values()))  # noqa: E731
        times = in_turns(runs, drawing(self.x_NL, self.sizes.one_string, 1), self.n_rounds, check)
        self.report(row, self.sizes.one_string, times, self.limits["sweep_ns"], "one count of all pairs")

    def encode_bpe(self) -> None:
        row, model = "encode bpe", self.folder / "youtokentome.model"
        draw = drawing(self.x_NL, self.sizes.encode, 1)
        peers.train_youtokentome(text(draw(99)), self.sizes.n_merges, 2, model)
        by_tiktoken, by_hf = peers.encoder_tiktoken(self.tokenizer.merges), peers.encoder_hf(to_hf(self.tokenizer))
        by_youtokentome = peers.encoder_youtokentome(model)
        runs: Runs = {
            "ours": lambda x: self.tokenizer.encode_segments(x.ravel(), borders(x))[0],
            "tiktoken": lambda x: by_tiktoken(text(x)),
            "tokenizers": lambda x: by_hf(text(x)),
            "youtokentome": lambda x: by_youtokentome(text(x)),
        }

        def check(_: np.ndarray, found: dict[str, object]) -> None:
            for peer in ("tiktoken", "tokenizers"):
                if peer in found:
                    self.equal(row, f"ids of {peer}", np.array_equal(found["ours"], np.concatenate([np.array(ids, np.uint32) for ids in found[peer]])))  # type: ignore[attr-defined]

        self.report(row, self.sizes.encode, in_turns(runs, draw, self.n_rounds, check), self.limits["l2_ns"], "one dependent load from L2")
        print(f"  ids of {self.sizes.encode} symbols equal to tiktoken's and tokenizers' in every round", flush=True)

    def encode_longest(self) -> None:
        pairs = self.tokenizer.merges
        lists = [(list(string), id) for id, string in enumerate(peers.spelled(pairs)[256:], start=256)]

        def rebuilt(x: np.ndarray) -> np.ndarray:
            for _ in x:  # the merges cross from Python at every call
                [(bytes(string), id) for string, id in lists]
            return self.reference.longest(x, pairs, kept=False)

        for n_stretches in (1, N_STRETCHES):
            row = f"encode longest {n_stretches * STRETCH}"
            encode = lambda x: self.tokenizer.encode_segments(x.ravel(), borders(x), mode="longest")[0]  # noqa: E731
            check = lambda _, found: self.equal(row, "ids", all(np.array_equal(found["ours"], ids) for ids in found.values()))  # noqa: B023, E731
            n_few = min(self.sizes.longest, 100 * n_stretches * STRETCH)  # a rebuilt tree is slow: fewer strings, rates per symbol
            few, many = drawing(self.x_NL, n_few, n_stretches), drawing(self.x_NL, self.sizes.longest, n_stretches)
            times = in_turns({"ours": encode, "tree kept": lambda x: self.reference.longest(x, pairs, kept=True)}, many, self.n_rounds, check)
            slow = in_turns({"ours": encode, "tree rebuilt per call": rebuilt}, few, self.n_rounds, check)["tree rebuilt per call"]
            scale = many(0).size / few(0).size
            times["tree rebuilt per call"] = (slow[0] * scale, slow[1] * scale)
            self.report(row, many(0).size, times, self.limits["l2_ns"], "one dependent load from L2")

    def quantise(self) -> None:
        row, letters = "quantise", np.array([chr(97 + level) for level in range(26)])

        def levels(x_NCL: np.ndarray) -> np.ndarray:
            low, high = (f(x_NCL, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
            return np.minimum(np.floor(np.clip((x_NCL - low) / (high - low + np.float32(1e-6)), 0, 1) * 26), 25).astype(np.uint8)

        letter = np.vectorize(lambda level: chr(97 + level))
        runs: Runs = {
            "ours": lambda x: [record.tobytes() for record in quantize(x, RecordMinMax()).symbols],
            "np.vectorize and join": lambda x: ["".join(letter(record).ravel()).encode() for record in levels(x)],
            "take and join": lambda x: ["".join(letters[record.ravel()]).encode() for record in levels(x)],
        }
        x_NCL = self.x_NL[: len(self.x_NL) // N_STRETCHES * N_STRETCHES].reshape(-1, N_STRETCHES, STRETCH)
        n = self.sizes.quantise // (N_STRETCHES * STRETCH)
        draw: Draw = lambda i: x_NCL[np.random.default_rng(i).permutation(len(x_NCL))[:n]]  # noqa: E731
        check = lambda _, found: self.equal(row, "letters", all(one == found["ours"] for one in found.values()))  # noqa: E731
        self.report(
            row,
            n * N_STRETCHES * STRETCH,
            in_turns(runs, draw, self.n_rounds, check),
            2.5 * self.limits["copy_ns"],
            "float32 read and byte written at copy speed",
        )

    def growth(self) -> None:
        """Ten times the symbols, and what training takes of memory and gains from threads."""
        few, many = (drawing(self.x_NL, n, 1)(0) for n in (self.sizes.train // 10, self.sizes.train))
        works: Runs = {
            "train": lambda x: train_symbols(x, self.sizes.n_merges).merges,
            "encode bpe": lambda x: self.tokenizer.encode_segments(x.ravel(), borders(x)),
            "encode longest": lambda x: self.tokenizer.encode_segments(x.ravel(), borders(x), mode="longest"),
        }
        for name, work in works.items():
            both = []
            for x in (few, many):
                times = in_turns({"ours": work}, lambda _, x=x: x, self.n_rounds, lambda *_: None)
                both.append(times["ours"][0])
            self.summary[f"ten times the symbols: {name}"] = ratio = round(both[1] / both[0], 2)
            self.held &= ratio <= 12
            print(f"{name}: {few.size} symbols {both[0]:.4f} s, {many.size} symbols {both[1]:.4f} s: {ratio} times (at most 12)", flush=True)
        results = {n: train_symbols(many, self.sizes.n_merges, n_threads=n) for n in (1, 2, 4)}
        self.equal("threads", "merges", all(np.array_equal(one.merges, results[1].merges) for one in results.values()))
        print(f"the same {results[1].n_merges} merges with 1, 2 and 4 threads")
        path = self.folder / "symbols"
        path.write_bytes(many.tobytes())
        for n_threads in (1, 4):
            found = subprocess.run(
                [sys.executable, "-c", MEMORY, path, str(STRETCH), str(self.sizes.n_merges), str(n_threads)], check=True, capture_output=True
            )
            self.summary[f"bytes per symbol, {n_threads} threads"] = each = round(float(found.stdout), 2)
            self.held &= each <= 10
            print(f"training on {n_threads} threads took {each} bytes of memory per symbol, the symbols included (at most 10)", flush=True)


MEMORY = """
import re, sys
from pathlib import Path
from physio_bpe import train_symbols

def peak():  # of this program alone: ru_maxrss begins with that of its parent
    return 1024 * int(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])

def lines(file, length):
    while line := file.read(length):
        yield line

path, length, n_merges, n_threads = sys.argv[1], *map(int, sys.argv[2:])
train_symbols([b"abab"], 1)
before = peak()
with open(path, "rb") as file:
    train_symbols(lines(file, length), n_merges, n_threads=n_threads)
    print((peak() - before) / file.tell())
"""


def text(letters_NL: np.ndarray) -> list[str]:
    return [line.tobytes().decode("ascii") for line in letters_NL]


def borders(letters_NL: np.ndarray) -> np.ndarray:
    return np.arange(len(letters_NL) + 1, dtype=np.int64) * letters_NL.shape[1]


ROWS: dict[str, Callable[[Bench], None]] = {
    "quantise": Bench.quantise,
    "encode-longest": Bench.encode_longest,
    "encode-bpe": Bench.encode_bpe,
    "train-1250": Bench.train_1250,
    "train-one-string": Bench.train_one_string,
    "growth": Bench.growth,
    "train-15000": Bench.train_15000,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, nargs="+", required=True, help="folders of WFDB records, read in turn until there are samples enough")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows to run")
    parser.add_argument("--rounds", type=int, default=5, help="how often all take their turn")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the symbols and 1000 merges: a look, no measurement")
    args = parser.parse_args()
    sizes = QUICK if args.quick else Sizes()
    x_NL = stretches(args.root, int(1.2 * sizes.train))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(x_NL, sizes, Path(folder), args.rounds)
        print("limits here: " + ", ".join(f"{name[:-3]} {value:.3f} ns" for name, value in bench.limits.items()), flush=True)
        for name in args.only:
            ROWS[name](bench)
    print(json.dumps(bench.summary))
    sys.exit(0 if bench.held else 1)


if __name__ == "__main__":
    main()
