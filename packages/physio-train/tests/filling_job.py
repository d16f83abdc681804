"""One rank that fills a folder of features, run by the tests in processes of its own: `ARGUMENTS` says how."""

import os
import signal
import time

import numpy as np
import torch

from physio_train import filling, session

torch.set_num_threads(1)

N, D = 300, 5
SHAPES = {"z": ((N, D), "float32"), "z_aug": ((2, N, D), "float32")}
PLAN = {"what": "a test", "level": "L1"}


def rows(at):
    """What is read: the row numbers."""
    return np.arange(N, dtype=np.float64)[at]


def expected():
    """z and z_aug as they must come out."""
    z_ND = np.sin(np.arange(N)[:, None] + np.arange(D)).astype(np.float32)
    return z_ND, np.stack([z_ND + 10, z_ND + 20])


def encode(row_B, at):
    z_BD = np.sin(row_B[:, None] + np.arange(D)).astype(np.float32)
    return [("z", at.start, z_BD), *(("z_aug", a * N + at.start, z_BD + 10 * (a + 1)) for a in range(2))]


def make(folder, *, kill_after=None, slow_s=0.0, rank=0, world_size=1, meet="", plan=PLAN, counted=None):
    """Fill and finish; batches of 3, so that a block has 48 rows."""

    def counting(row_B, at):
        if counted is not None:
            counted.append(at.start)
        if kill_after is not None and at.start >= kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(slow_s)
        return encode(row_B, at)

    given = {"rank": rank, "world_size": world_size, "init_method": f"file://{meet}"} if world_size > 1 else {}
    with session(**given):
        begun = filling.begin(folder, plan, SHAPES)
        if begun is None:
            return None
        filling.fill(begun, N, 3, rows, counting)
        return filling.finish(begun, {"level": "L1"}, {"subject": np.array([f"s{i % 7}" for i in range(N)]), "start_s": np.arange(N) / 2})


if __name__ == "__main__":
    make(**globals()["ARGUMENTS"])
