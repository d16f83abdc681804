"""How fast PaPaGei embeds a store from disk to disk: `write_features` against the original's layers alone, in processor time of one core.

    uv run apps/bench/embed.py [--subjects 60] [--rounds 3]

The original's side is its network on windows already in memory; ours is all of it: reading, normalising, encoding, writing, hashing. Both run
the same weights on the same windows in turn, on one thread; a ratio is that of the least process-CPU times. What is not the network's own is
told apart: the time of `encode` against that of everything.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from papagei import ORIGINAL, TARGETS, bf16_in_hardware, cpu_seconds, network  # noqa: E402

import console  # noqa: E402
from features import write_features  # noqa: E402
from physio_data.prepare import PrepareConfig  # noqa: E402
from physio_data.store import Store  # noqa: E402
from physio_models.contract import Encoder  # noqa: E402
from physio_models.papagei import Papagei  # noqa: E402
from physio_models.reference_papagei import papagei_contract  # noqa: E402
from physio_train.features import open_features  # noqa: E402
from prepare import prepared  # noqa: E402

BATCH = 64
WORST = {"fp32": 1e-4, "bf16": 0.05}  # largest difference, of the largest number


class Timed:
    """A network whose `encode` adds up the processor time of its thread."""

    def __init__(self, model: Papagei) -> None:
        self._model, self.seconds = model, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, x_BCT: torch.Tensor, **masks: Any) -> Any:
        began = time.thread_time()
        out = self._model.encode(x_BCT, **masks)
        self.seconds += time.thread_time() - began
        return out


def store_of(folder: Path, n_subjects: int) -> Store:
    """The built-in cohort as PaPaGei's input: 10 s at 125 Hz, 0.5-12 Hz."""
    cfg = PrepareConfig(corpus="synthetic", window_s=10.0, hop_s=10.0, fs=125.0, band=(0.5, 12.0), corpus_options={"n_subjects": n_subjects, "minutes": 2.0})
    from physio_data.corpora import corpus

    prepared(cfg.settled(corpus("synthetic")), folder, quiet=True)
    return Store(folder)


@torch.inference_mode()
def original(model: Papagei, x_NCT: torch.Tensor) -> np.ndarray:
    return torch.cat([model(x_BCT).embedding_BD for x_BCT in x_NCT.split(BATCH)]).numpy()


def measure(store: Store, model: Papagei, n_rounds: int, folder: Path) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Least processor seconds of each variant, the share of it that is not `encode`, and how far the numbers lie from the original's."""
    timed = Timed(model)
    encoder = Encoder(timed, papagei_contract(), name="papagei", config=model.cfg)
    batch = store.batch(store.rows())["signal"].astype(np.float64)
    x_NCT = torch.from_numpy(((batch - batch.mean(-1, keepdims=True)) / (batch.std(-1, keepdims=True) + 1e-6)).astype(np.float32))
    names = [ORIGINAL, "fp32", *(["bf16"] if bf16_in_hardware() else [])]
    least, share, worst = dict.fromkeys(names, float("inf")), {}, {}
    expected = np.zeros(0)
    for number in range(n_rounds):
        for name in names:
            if name == ORIGINAL:
                out: list[np.ndarray] = []
                least[name] = min(least[name], cpu_seconds(lambda out=out: out.append(original(model, x_NCT))))
                expected = out[0]
                continue
            path, timed.seconds = folder / f"{name}-{number}", 0.0
            seconds = cpu_seconds(lambda path=path, name=name: write_features(encoder, store, path, precision=name, batch_size=BATCH))
            if seconds < least[name]:
                least[name], share[name] = seconds, 1 - timed.seconds / seconds
            found = open_features(path).z
            worst[name] = float(np.abs(found - expected).max() / np.abs(expected).max())
    return least, share, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=60, help="twelve windows each")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder) / "store", args.subjects)
        least, share, worst = measure(store, network(), args.rounds, Path(folder))
    sys.exit(0 if report(len(store), least, share, worst) else 1)


def report(n: int, least: dict[str, float], share: dict[str, float], worst: dict[str, float]) -> bool:
    """The table and a line of JSON; whether every target is met."""
    console.say(f"{n} windows of 1250 samples, from a store on disk to a folder of features")
    print(f"{'':28s} windows/s  not the network    ratio   must   largest difference")
    print(f"{ORIGINAL:28s} {n / least[ORIGINAL]:9.1f}")
    summary: dict[str, float | None] = {"windows": n, "original_windows_s": n / least[ORIGINAL]}
    holds = True
    for name, (must, _) in TARGETS.items():
        if name not in least:
            print(f"{'disk to disk, ' + name:28s} not supported here")
            continue
        ratio = least[ORIGINAL] / least[name]
        met = ratio >= must and worst[name] <= WORST[name]
        holds &= met
        summary |= {name: ratio, f"{name}_windows_s": n / least[name], f"{name}_share_not_network": share[name]}
        figures = f"{n / least[name]:9.1f} {share[name]:16.1%} {ratio:8.2f} {must:6.1f} {worst[name]:12.1e}"
        print(f"{'disk to disk, ' + name:28s} {figures}  {'holds' if met else 'FALLS SHORT'}")
    print(json.dumps(summary))
    return holds


if __name__ == "__main__":
    main()
