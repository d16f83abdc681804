import numpy as np
import pytest
import torch

from physio_models.interface import Encoded
from physio_models.pooling import POOLS, pool, pool_levels

TOKENS = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
VALID = torch.tensor([[True] * 5, [True, True, True, False, False], [True, False, False, False, False]])


def by_hand(tokens_ND: np.ndarray, how: str) -> np.ndarray:
    parts = {"mean": tokens_ND.mean(0), "max": tokens_ND.max(0), "std": tokens_ND.std(0), "peak": (tokens_ND - tokens_ND.mean(0)).max(0)}
    return np.concatenate([parts[part] for part in how.split("+")])


@pytest.mark.parametrize("how", [how for how in POOLS if how != "tokens"])
@pytest.mark.parametrize("valid", [None, VALID])
def test_pools_only_valid_tokens(how: str, valid: torch.Tensor | None):
    expected = [by_hand(tokens.numpy()[slice(None) if valid is None else valid[i].numpy()], how) for i, tokens in enumerate(TOKENS)]
    np.testing.assert_allclose(pool(TOKENS, how, valid).numpy(), expected, atol=1e-6)


def test_tokens_are_laid_out_in_order():
    assert torch.equal(pool(TOKENS, "tokens"), TOKENS.reshape(3, 20))
    assert not pool(TOKENS, "tokens", VALID)[2, 4:].any()


def test_all_levels_are_pooled_then_joined():
    encoded = Encoded(TOKENS, TOKENS.mean(1), {"L1": TOKENS[..., :2], "L2": TOKENS})
    assert torch.equal(pool_levels(encoded, "all", "max"), torch.cat([TOKENS[..., :2].amax(1), TOKENS.amax(1)], 1))
    assert torch.equal(pool_levels(encoded, "L1", "mean"), TOKENS[..., :2].mean(1))
    assert torch.equal(pool_levels(encoded, "L2", "max", {"L2": VALID}), pool(TOKENS, "max", VALID))


def test_what_is_not_there_is_refused():
    encoded = Encoded(TOKENS, TOKENS.mean(1), {"L1": TOKENS})
    with pytest.raises(ValueError, match="level must be all or one of L1, got 'L9'"):
        pool_levels(encoded, "L9")
    with pytest.raises(ValueError, match="pool must be one of"):
        pool(TOKENS, "median")
    with pytest.raises(ValueError, match="no valid token in item 1"):
        pool(TOKENS, "mean", torch.tensor([[True] * 5, [False] * 5, [True] * 5]))
