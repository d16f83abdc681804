from __future__ import annotations

import numpy as np
import pytest
import torch

from physio_train.streams import VALIDATION_EPOCH, Streams, permutation, philox4x32, stream_key, words

INDEX_B = torch.tensor([0, 5, 2**31, (3 << 48) | 17, 2**63 - 1])


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """The paper's definition, one counter at a time in Python integers."""
    for _ in range(10):
        high_0, low_0 = divmod(0xD2511F53 * counter[0], 2**32)
        high_1, low_1 = divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    counter_4 = np.array([int(word, 16) for word in counter.split()], dtype=np.uint32)
    out_4 = philox4x32(counter_4, tuple(int(word, 16) for word in key.split()))
    assert [f"{word:08x}" for word in out_4] == expected.split()


def test_words_are_philox_of_block_index_and_epoch():
    word_NK = words(11, 6, INDEX_B.numpy(), "mask", 7)
    for index, word_K in zip(INDEX_B.tolist(), word_NK, strict=True):
        blocks = [scalar_philox([block, index % 2**32, index >> 32, 6], list(stream_key(11, "mask"))) for block in range(2)]
        assert word_K.tolist() == [*blocks[0], *blocks[1][:3]]


def test_a_draw_does_not_depend_on_the_batch_it_is_drawn_in():
    together_BK = Streams(1, 2).uniform("mask", INDEX_B, (3, 5))
    for i, index in enumerate(INDEX_B):
        assert torch.equal(Streams(1, 2).uniform("mask", index[None], (3, 5))[0], together_BK[i])
    assert torch.equal(Streams(1, 2).uniform("mask", INDEX_B.flip(0), (3, 5)).flip(0), together_BK)


def test_seed_epoch_index_and_name_each_change_the_draw():
    base = Streams(1, 2).uniform("mask", INDEX_B, (8,))
    others = [Streams(9, 2).uniform("mask", INDEX_B, (8,)), Streams(1, 3).uniform("mask", INDEX_B, (8,)), Streams(1, 2).uniform("crop", INDEX_B, (8,))]
    assert all((base != other).any(dim=1).all() for other in others)
    assert len({tuple(row) for row in base.tolist()}) == len(INDEX_B)
    assert (Streams(1, VALIDATION_EPOCH).uniform("mask", INDEX_B, (8,)) != base).any()


def test_uniform_is_float32_in_the_half_open_unit_interval_and_flat():
    u_BK = Streams(0, 0).uniform("mask", torch.arange(200), (1000,))
    assert u_BK.dtype == torch.float32 and u_BK.min() >= 0 and u_BK.max() < 1
    count = np.histogram(u_BK.numpy(), bins=100, range=(0, 1))[0]
    assert ((count - 2000.0) ** 2 / 2000.0).sum() < 149  # chi-squared with 99 degrees of freedom, 0.1 %


def test_normal_has_the_moments_and_tails_of_a_gaussian():
    z = Streams(0, 0).normal("noise", torch.arange(200), (1001,)).double()
    assert z.shape == (200, 1001)
    assert abs(z.mean()) < 0.01 and abs(z.var() - 1) < 0.02 and abs((z**4).mean() - 3) < 0.1
    assert abs((z.abs() > 1.959964).double().mean() - 0.05) < 0.003


def test_a_scalar_shape_gives_one_number_per_window():
    assert Streams(0, 0).uniform("t", INDEX_B).shape == Streams(0, 0).normal("t", INDEX_B, ()).shape == (5,)


def test_permutation_holds_every_position_once_and_changes_with_the_epoch():
    orders = [permutation(4, epoch, 997) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(997)) for order in orders)
    assert (orders[0] != orders[1]).any() and (orders[1] != orders[2]).any()
    assert abs(np.corrcoef(orders[0], np.arange(997))[0, 1]) < 0.15


def test_an_index_that_is_not_a_vector_of_integers_is_refused():
    with pytest.raises(ValueError, match="vector of integers"):
        Streams(0, 0).uniform("mask", torch.zeros(3), (2,))
    with pytest.raises(ValueError, match="epoch"):
        Streams(0, -1).uniform("mask", INDEX_B, (2,))
