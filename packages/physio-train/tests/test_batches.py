from __future__ import annotations

import json
from itertools import chain, islice

import numpy as np
import pytest
import torch

from physio_train.batches import AddNoise, Batches, RandomCrop
from physio_train.streams import VALIDATION_EPOCH

ROWS = np.arange(100, 150)


class Windows:
    def __init__(self, n=200, n_samples=12):
        self.signal_NCT = np.random.default_rng(0).standard_normal((n, 2, n_samples)).astype(np.float32)

    def batch(self, rows):
        return {"signal": self.signal_NCT[rows], "index": rows, "record": np.array([f"r{row}" for row in rows])}


class Items:
    def __init__(self):
        self.windows = Windows()

    def __getitem__(self, row):
        return {"signal": self.windows.signal_NCT[row], "index": row}


def crop_and_noise(batch, streams):
    return AddNoise(std=0.1)(RandomCrop(length=8)(batch, streams), streams)


def make(dataset=None, rows=ROWS, batch_size=8, **more):
    return Batches(dataset or Windows(), rows, batch_size=batch_size, seed=5, **more)


def indices(batches, n):
    return [batch["index"].tolist() for batch in islice(batches, n)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_one_global_order_disjointly(world_size):
    alone = indices(make(), 15)
    ranks = [indices(make(rank=rank, world_size=world_size), 15) for rank in range(world_size)]
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


def test_an_epoch_visits_no_row_twice_and_the_next_has_another_order():
    batches = make()
    assert batches.steps_per_epoch == 6
    first, second = (list(chain(*indices(batches, 6))) for _ in range(2))
    assert len(set(first)) == 48 and set(first) <= set(ROWS.tolist())
    assert first != second and set(first) != set(second)


def test_each_batch_carries_its_epoch():
    assert [int(batch["epoch"]) for batch in islice(make(), 13)] == [0] * 6 + [1] * 6 + [2]


def test_without_shuffling_rows_come_as_given():
    assert indices(make(shuffle=False), 2) == [list(range(100, 108)), list(range(108, 116))]


def test_one_epoch_gives_every_row_once_over_all_ranks_and_moves_nothing():
    batches = [make(rank=rank, world_size=3, shuffle=False) for rank in range(3)]
    before = batches[0].state_dict()
    seen = [i for b in batches for batch in b.one_epoch() for i in batch["index"].tolist()]
    assert sorted(seen) == ROWS.tolist()
    assert batches[0].state_dict() == before
    assert {int(batch["epoch"]) for batch in batches[0].one_epoch()} == {VALIDATION_EPOCH}


def test_workers_give_the_same_batches():
    alone, ahead = (islice(make(transform=crop_and_noise, n_workers=n), 9) for n in (0, 2))
    for a, b in zip(alone, ahead, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else (a[key] == b[key]).all() for key in a)


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_position_survives_json_and_is_returned_to_exactly(n_workers):
    batches = make(n_workers=n_workers)
    indices(batches, 8)
    state = json.loads(json.dumps(batches.state_dict()))
    expected = indices(batches, 7)
    again = make()
    again.load_state_dict(state)
    assert indices(again, 7) == expected


def test_the_position_may_be_taken_up_by_another_number_of_ranks():
    batches = make()
    indices(batches, 3)
    ranks = [make(rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(batches.state_dict())
    expected = next(batches)["index"].tolist()
    assert list(chain(*(next(rank)["index"].tolist() for rank in ranks))) == expected


@pytest.mark.parametrize("other", [{"rows": ROWS[:-1]}, {"batch_size": 10}, {"shuffle": False}])
def test_a_position_of_other_batches_is_refused(other):
    with pytest.raises(ValueError, match="belongs to other batches"):
        make(**other).load_state_dict(make().state_dict())


def test_items_are_stacked_where_a_dataset_has_no_batch():
    a, b = next(make()), next(make(Items()))
    assert torch.equal(a["signal"], b["signal"]) and torch.equal(a["index"], b["index"])


def test_text_stays_an_array():
    batch = next(make())
    assert batch["record"].tolist() == [f"r{i}" for i in batch["index"].tolist()]


def test_a_crop_is_a_piece_of_its_own_window_at_offsets_that_reach_both_ends():
    windows, starts = Windows(), set()
    for batch in islice(make(windows, transform=RandomCrop(length=10)), 20):
        for index, piece in zip(batch["index"].tolist(), batch["signal"].numpy(), strict=True):
            match = [s for s in range(3) if np.array_equal(windows.signal_NCT[index, :, s : s + 10], piece)]
            assert len(match) == 1
            starts |= set(match)
    assert starts == {0, 1, 2}


def test_a_transform_is_the_same_for_any_number_of_ranks():
    alone = next(make(transform=crop_and_noise))["signal"]
    ranks = [next(make(transform=crop_and_noise, rank=rank, world_size=2))["signal"] for rank in range(2)]
    assert torch.equal(torch.cat(ranks), alone)


@pytest.mark.parametrize(
    ("change", "match"),
    [({"rows": []}, "non-empty"), ({"world_size": 9}, "at least world_size=9"), ({"rank": 1}, "rank must lie"), ({"n_workers": -1}, "n_workers")],
)
def test_bad_arguments_are_named(change, match):
    with pytest.raises(ValueError, match=match):
        make(**change)


def test_fewer_windows_than_a_batch_are_said():
    with pytest.raises(ValueError, match="lower batch_size"):
        next(make(batch_size=64))
    with pytest.raises(ValueError, match="shared by 8 ranks"):
        make(rows=ROWS[:3], world_size=8).one_epoch()
