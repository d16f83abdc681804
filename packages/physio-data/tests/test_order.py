from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_data.order import BlockShuffle, Mixture, permutation


def test_a_permutation_is_fixed_by_its_key_for_good():
    assert permutation(8, 1, 2).tolist() == [int(i) for i in np.argsort(permutation_keys(8, "1|2"))]
    assert (permutation(1000, 0, 1) != permutation(1000, 0, 2)).any()


def permutation_keys(n, text):
    """The same stream spelled out: Philox4x64 keyed by the first 128 bits of SHA-256."""
    import hashlib

    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], "<u8")
    return np.random.Philox(key=key).random_raw(n)


@given(st.integers(1, 400), st.integers(1, 50), st.integers(1, 9), st.integers(0, 5), st.integers(0, 2**40))
def test_a_block_shuffle_gives_every_row_once_and_stays_near(n, block, pool, epoch, seed):
    rows = np.flatnonzero(np.random.default_rng(n).random(n) < 0.8)
    order = BlockShuffle(block=block, pool=pool)(rows, seed, epoch)
    assert sorted(order.tolist()) == rows.tolist()
    blocks = list(dict.fromkeys((rows // block).tolist()))
    seen = list(dict.fromkeys((order // block).tolist()))
    assert sorted(seen) == blocks
    first = {b: int(np.flatnonzero(order // block == b)[0]) for b in blocks}
    last = {b: int(np.flatnonzero(order // block == b)[-1]) for b in blocks}
    for at in range(len(order)):  # at no time are more blocks open than a pool has
        assert sum(first[b] <= at <= last[b] for b in blocks) <= pool


def test_a_block_shuffle_differs_by_epoch_and_mixes_within_a_pool():
    rows = np.arange(4096)
    shuffle = BlockShuffle(block=64, pool=8)
    first = shuffle(rows, 0, 0)
    np.testing.assert_array_equal(first, shuffle(rows, 0, 0))
    assert (first != shuffle(rows, 0, 1)).mean() > 0.9 and (first != shuffle(rows, 1, 0)).mean() > 0.9
    assert len({int(row) // 64 for row in first[:64]}) >= 7, "a batch sees nearly all blocks of its pool"


def test_a_mixture_has_its_shares_and_wastes_no_window():
    rows = np.concatenate([np.arange(0, 60), np.arange(100, 400)])  # 60 rows of the first store, 300 of the second
    mixture = Mixture(sizes=(100, 400), weights=(2, 1))
    counts = Counter()
    for epoch in range(10):
        order = mixture(rows, 5, epoch)
        assert len(order) == 360 == mixture.length(rows) and (order < 100).sum() == 240
        counts.update(order.tolist())
    assert sorted(counts) == rows.tolist()
    assert {counts[row] for row in range(60)} == {40} and {counts[row] for row in range(100, 400)} == {4}


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 9)), min_size=1, max_size=4), st.integers(0, 6), st.integers(0, 99))
def test_shares_add_up_and_passes_are_even(stores, epoch, seed):
    sizes, weights = zip(*stores, strict=True)
    rows, mixture = np.arange(sum(sizes)), Mixture(sizes=sizes, weights=weights)
    shares = mixture.shares(len(rows))
    assert shares.sum() == len(rows) and (np.abs(shares - len(rows) * np.array(weights) / sum(weights)) < 1 + 1e-9).all()
    counts = np.bincount(np.concatenate([mixture(rows, seed, e) for e in range(epoch + 1)]), minlength=len(rows))
    for lo, size, share in zip(np.cumsum([0, *sizes[:-1]]), sizes, shares, strict=True):
        own = counts[lo : lo + size]
        assert own.max() - own.min() <= 1 and own.sum() == share * (epoch + 1)


def test_bad_orders_are_refused():
    for more in ({"block": 0}, {"pool": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(more))} must"):
            BlockShuffle(**more)
    with pytest.raises(ValueError, match="one number a store, got 1 for 2"):
        Mixture(sizes=(1, 2), weights=(1,))
    with pytest.raises(ValueError, match=r"weights must be positive, got \(1, 0\)"):
        Mixture(sizes=(1, 2), weights=(1, 0))
    with pytest.raises(ValueError, match="store 2 of 2 has no window"):
        Mixture(sizes=(5, 5), weights=(1, 1))(np.arange(5), 0, 0)
