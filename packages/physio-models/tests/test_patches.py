import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_models.patches import (
    from_lead_patches,
    from_patches,
    pack,
    patch_valid,
    send_home,
    sincos_positions,
    take,
    to_lead_patches,
    to_patches,
    visible,
)


@given(n_channels=st.sampled_from([1, 2, 5, 12]), n=st.integers(1, 6), patch=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_a_patch_holds_its_own_samples_and_comes_back(n_channels: int, n: int, patch: int):
    x = np.arange(2 * n_channels * n * patch).reshape(2, n_channels, n * patch)
    x_BCT = torch.from_numpy(x)
    joint, single = to_patches(x_BCT, patch), to_lead_patches(x_BCT, patch)
    for k in range(n):
        part = x[:, :, k * patch : (k + 1) * patch]
        np.testing.assert_array_equal(joint[:, k].numpy(), np.concatenate([part[:, c] for c in range(n_channels)], axis=1))
        np.testing.assert_array_equal(single[:, :, k].numpy(), part)
    assert torch.equal(from_patches(joint, n_channels), x_BCT) and torch.equal(from_lead_patches(single), x_BCT)


def test_a_patch_that_does_not_divide_the_window_is_refused():
    for cut in (to_patches, to_lead_patches):
        with pytest.raises(ValueError, match="patch=7 samples does not divide the window of 40 samples"):
            cut(torch.zeros(1, 2, 40), 7)


def test_a_patch_is_real_if_any_of_its_samples_is():
    valid_BT = torch.arange(12)[None] < torch.tensor([[12], [5], [4]])
    assert patch_valid(valid_BT, 4).tolist() == [[True] * 3, [True, True, False], [True, False, False]]


def test_positions_are_sines_and_cosines_of_falling_frequency():
    table = sincos_positions(9, 6)
    for p in range(9):
        angles = [p / 10_000 ** (i / 3) for i in range(3)]
        np.testing.assert_allclose(table[p].numpy(), [*np.sin(angles), *np.cos(angles)], atol=1e-6)
    with pytest.raises(ValueError, match="width must be even"):
        sincos_positions(4, 5)


@given(st.data(), st.sampled_from([1, 2, 5, 12]))
@settings(max_examples=60, deadline=None)
def test_every_visible_token_goes_home(data, n_channels: int):
    """Tokens numbered by lead and place: after the round trip each stands where it was, and hidden places hold the mask token."""
    n = n_channels * data.draw(st.integers(1, 5))
    mask_BN = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4)))
    tokens = torch.arange(mask_BN.numel(), dtype=torch.float32).reshape(*mask_BN.shape, 1).expand(-1, -1, 3) + 1
    places = visible(mask_BN)
    kept = take(tokens, places.index_BK)
    if places.visible_BK is not None:
        assert [sorted(kept[b, places.visible_BK[b], 0].tolist()) for b in range(len(kept))] == [tokens[b, ~mask_BN[b], 0].tolist() for b in range(len(kept))]
    home = send_home(kept, places.index_BK, mask_BN, torch.full((3,), -7.0))
    assert torch.equal(home, torch.where(mask_BN[..., None], torch.tensor(-7.0), tokens))


def test_a_known_number_of_visible_tokens_gives_the_same_places():
    noise_BN = torch.rand(5, 12, generator=torch.Generator().manual_seed(0))
    mask_BN = noise_BN.argsort(1).argsort(1) < 9
    assert torch.equal(visible(mask_BN, 3).index_BK, visible(mask_BN).index_BK) and visible(mask_BN, 3).visible_BK is None


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_packing_brings_real_tokens_to_the_front_in_order_and_back(valid: list[list[bool]]):
    valid_BN, x_BN = torch.tensor(valid), torch.arange(6 * len(valid)).reshape(-1, 6)
    packed = pack(valid_BN)
    front = take(x_BN, packed.order_BN)
    for b, row in enumerate(valid):
        real = [int(x_BN[b, n]) for n in range(6) if row[n]]
        assert front[b, : len(real)].tolist() == real and int(packed.length_B[b]) == len(real)
    assert torch.equal(take(front, packed.home_BN), x_BN)
