from pathlib import Path

import numpy as np
import pytest
import torch

from physio_models.masking import MASKS, block_mask, n_patches, random_mask, to_samples, trailing_mask

CASES = [(250, 5, 0.8), (250, 10, 0.75), (1000, 5, 0.8), (1000, 50, 0.5), (250, 25, 0.29)]


@pytest.mark.parametrize(("length", "patch", "ratio"), CASES)
def test_random_masks_are_the_original_ones(himae_fixtures: Path, length: int, patch: int, ratio: float):
    arrays = np.load(himae_fixtures / "masking.npz")
    noise_BN = torch.from_numpy(arrays[f"L{length}_p{patch}_r{ratio:g}/noise"])
    assert noise_BN.shape[1] == n_patches(length, patch)
    mask_BT = to_samples(random_mask(noise_BN, ratio), patch)
    assert np.array_equal(mask_BT[:, None].numpy(), arrays[f"L{length}_p{patch}_r{ratio:g}/mask"].astype(bool))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.5, 1.0])
def test_every_kind_hides_exactly_the_truncated_count(kind: str, ratio: float):
    mask_BN = MASKS[kind](torch.rand(50, 10), ratio)
    assert mask_BN.dtype == torch.bool and mask_BN.sum(1).tolist() == [int(ratio * 10)] * 50


@pytest.mark.parametrize("kind", MASKS)
def test_a_ratio_per_item_hides_its_own_count(kind: str):
    ratio_B = torch.tensor([0.1, 0.55, 0.9], dtype=torch.float64)
    assert MASKS[kind](torch.rand(3, 20), ratio_B).sum(1).tolist() == [2, 11, 18]


def test_blocks_are_one_run_and_reach_both_ends():
    noise_BN = torch.linspace(0, 0.999, 500)[:, None].expand(-1, 10)
    mask_BN = block_mask(noise_BN, 0.4)
    assert (mask_BN.int().diff(dim=1) == 1).sum(1).max() <= 1
    starts = mask_BN.int().argmax(1)
    assert starts.min() == 0 and starts.max() == 6 and torch.equal(starts, starts.sort().values)


def test_trailing_masks_hide_the_end():
    assert trailing_mask(torch.rand(2, 5), 0.4).tolist() == [[False, False, False, True, True]] * 2


def test_a_patch_that_does_not_divide_the_window_is_refused_with_the_nearest_that_do():
    with pytest.raises(ValueError, match=r"patch=7 samples does not divide the window of 250 samples: use patch=5 or 10, or windows of 245 or 252 samples"):
        n_patches(250, 7)
