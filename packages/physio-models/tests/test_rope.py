import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_models.rope import rotary, rotary_table, rotate


def turned_in_complex_numbers(x_ND: np.ndarray, position_N: np.ndarray, base: float) -> np.ndarray:
    """Eq. 34 written with complex numbers: pair i is entries i and i + D / 2."""
    half = x_ND.shape[-1] // 2
    frequency = base ** (-2 * np.arange(half) / x_ND.shape[-1])
    z = (x_ND[:, :half] + 1j * x_ND[:, half:]) * np.exp(1j * position_N[:, None] * frequency)
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.parametrize("base", [10_000.0, 100.0])
def test_a_head_is_turned_as_complex_numbers_are(base: float):
    rng = np.random.default_rng(0)
    q, k, position = rng.standard_normal((5, 8)), rng.standard_normal((5, 8)), np.array([0, 0, 3, 1, 17])
    turned = rotary(torch.tensor(q)[None, None], torch.tensor(k)[None, None], torch.tensor(position), base)
    for got, x in zip(turned, (q, k), strict=True):
        np.testing.assert_allclose(got[0, 0].numpy(), turned_in_complex_numbers(x, position, base), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.floats(-500, 500), st.floats(-50, 50), st.floats(-50, 50))
def test_products_depend_on_distance_alone(shift: float, first: float, second: float):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 2, 16, generator=generator)
    here, there = (torch.tensor([first, second]) + offset for offset in (0.0, shift))

    def product(position):
        turned_q, turned_k = rotary(q, k, position)
        return turned_q[0, 0, 0] @ turned_k[0, 0, 1]

    torch.testing.assert_close(product(here), product(there), atol=5e-3, rtol=1e-3)


def test_items_may_have_positions_of_their_own_and_tokens_may_share_one():
    x = torch.randn(2, 3, 4, 8)
    position_BN = torch.tensor([[0, 0, 1, 5], [7, 2, 2, 9]])
    together = rotate(x, rotary_table(position_BN, 8))
    for item, position_N in enumerate(position_BN):
        torch.testing.assert_close(together[item], rotate(x[item : item + 1], rotary_table(position_N, 8))[0])


def test_half_precision_stays_half_and_norms_stay():
    x = torch.randn(1, 2, 6, 8, dtype=torch.bfloat16)
    turned = rotate(x, rotary_table(torch.arange(6), 8))
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float().norm(dim=-1), x.float().norm(dim=-1), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("position", "dim", "match"), [(torch.arange(3), 7, "dim"), (torch.zeros(1, 1, 1), 8, "position")])
def test_an_odd_width_or_a_wrong_rank_is_refused(position: torch.Tensor, dim: int, match: str):
    with pytest.raises(ValueError, match=match):
        rotary_table(position, dim)
