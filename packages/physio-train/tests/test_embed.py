"""Features come in the order of the rows asked for, several in one pass, and broken ones are refused."""

import numpy as np
import pytest
import torch

from physio_train.embed import embed, signals


class Store:
    def __init__(self, n=10):
        self.signal_NCT = np.arange(n * 6, dtype=np.float32).reshape(n, 2, 3)

    def batch(self, rows):
        return {"signal": self.signal_NCT[rows], "index": np.asarray(rows), "subject": np.asarray(rows).astype(str)}


class Items:
    signal_NCT = Store().signal_NCT

    def __getitem__(self, i):
        return {"signal": self.signal_NCT[i], "index": i}


def test_rows_keep_their_order_over_batches_and_a_dict_gives_all_levels_in_one_pass():
    calls, seen = [], []

    def encode(batch):
        assert torch.is_inference_mode_enabled() and batch["signal"].shape[1:] == (2, 3)
        calls.append(len(batch["index"]))
        return {"L1": batch["signal"].mean(-1), "L2": batch["index"].float()[:, None]}

    out = embed(encode, Store(), [7, 0, 9, 3, 3], batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert calls == [2, 2, 1] and seen == [(2, 5), (4, 5), (5, 5)]
    assert out["L2"].ravel().tolist() == [7, 0, 9, 3, 3] and out["L1"].dtype == np.float32
    assert np.array_equal(out["L1"], Store().signal_NCT[[7, 0, 9, 3, 3]].mean(-1))


def test_items_serve_as_well_as_batches():
    assert embed(lambda b: b["signal"][:, 0], Items(), [2, 1]).tolist() == Items.signal_NCT[[2, 1], 0].tolist()


def test_broken_features_are_refused_by_row():
    with pytest.raises(ValueError, match="row 4 are not finite"):
        embed(lambda b: torch.where(b["index"] == 4, torch.nan, 1.0)[:, None], Store(), np.arange(6), batch_size=3)
    with pytest.raises(ValueError, match="pool the tokens"):
        embed(lambda b: b["signal"], Store(), [0, 1])
    with pytest.raises(ValueError, match="fold empty"):
        embed(lambda b: b["signal"], Store(), [])


def test_signals_come_in_batches():
    parts = list(signals(Store(), [5, 1, 2], batch_size=2))
    assert [len(p) for p in parts] == [2, 1] and np.array_equal(np.concatenate(parts), Store().signal_NCT[[5, 1, 2]])
