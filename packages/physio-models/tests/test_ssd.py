import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_models import ssd as module
from physio_models.ssd import ssd, ssd_step


def inputs(n_items=2, length=13, n_heads=4, n_features=3, n_groups=2, n_state=5, dtype=torch.float64, seed=0) -> tuple[torch.Tensor, ...]:
    """x, dt >= 0, A < 0, B, C and a state to start from."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n_items, length, n_heads, n_features, dtype=dtype, generator=g),
        torch.rand(n_items, length, n_heads, dtype=dtype, generator=g),
        -(1 + 3 * torch.rand(n_heads, dtype=dtype, generator=g)),
        torch.randn(n_items, length, n_groups, n_state, dtype=dtype, generator=g),
        torch.randn(n_items, length, n_groups, n_state, dtype=dtype, generator=g),
        torch.randn(n_items, n_heads, n_features, n_state, dtype=dtype, generator=g),
    )


def recurrence(x, dt, A, B, C, state):
    """The definition, one position and one head after another: head h reads group h // (H / G)."""
    _, length, n_heads, _ = x.shape
    per_group = n_heads // B.shape[2]
    rows = []
    for t in range(length):
        heads, states = [], []
        for h in range(n_heads):
            g = h // per_group
            decay = torch.exp(dt[:, t, h] * A[h])[:, None, None]
            new = decay * state[:, h] + dt[:, t, h, None, None] * x[:, t, h, :, None] * B[:, t, g, None, :]
            states.append(new)
            heads.append(torch.einsum("bpn,bn->bp", new, C[:, t, g]))
        state = torch.stack(states, 1)
        rows.append(torch.stack(heads, 1))
    return torch.stack(rows, 1), state


@pytest.mark.parametrize("length", [1, 7, 13, 32])
@pytest.mark.parametrize("chunk", [1, 4, 16, 64])
@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_values_and_gradients_are_those_of_the_recurrence(length: int, chunk: int, n_groups: int):
    leaves = [value.requires_grad_() for value in inputs(length=length, n_groups=n_groups)]
    y, final = ssd(*leaves[:5], chunk=chunk, initial_BHPN=leaves[5])
    expected_y, expected_final = recurrence(*leaves)
    torch.testing.assert_close(y, expected_y, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(final, expected_final, rtol=1e-11, atol=1e-11)
    g = torch.Generator().manual_seed(9)
    weights = torch.randn(y.shape, dtype=torch.float64, generator=g), torch.randn(final.shape, dtype=torch.float64, generator=g)
    got = torch.autograd.grad((y * weights[0]).sum() + (final * weights[1]).sum(), leaves)
    expected = torch.autograd.grad((expected_y * weights[0]).sum() + (expected_final * weights[1]).sum(), leaves)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(length=st.integers(1, 60), chunk=st.integers(1, 70), seed=st.integers(0, 1000))
def test_the_chunk_changes_rounding_alone(length: int, chunk: int, seed: int):
    *values, initial = inputs(length=length, seed=seed)
    whole, by_chunk = ssd(*values, chunk=length, initial_BHPN=initial), ssd(*values, chunk=chunk, initial_BHPN=initial)
    for a, b in zip(by_chunk, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=15)
@given(cut=st.integers(1, 39), chunk=st.integers(1, 20))
def test_two_pieces_with_the_state_carried_are_one_pass(cut: int, chunk: int):
    x, dt, A, B, C, initial = inputs(length=40)
    y, final = ssd(x, dt, A, B, C, chunk=chunk, initial_BHPN=initial)
    y1, state = ssd(x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], chunk=chunk, initial_BHPN=initial)
    y2, end = ssd(x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], chunk=chunk, initial_BHPN=state)
    torch.testing.assert_close(torch.cat([y1, y2], 1), y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(end, final, rtol=1e-10, atol=1e-10)


def test_steps_are_the_recurrence():
    x, dt, A, B, C, state = inputs()
    expected_y, expected_final = recurrence(x, dt, A, B, C, state)
    rows = []
    for t in range(x.shape[1]):
        y, state = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], state)
        rows.append(y)
    torch.testing.assert_close(torch.stack(rows, 1), expected_y, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state, expected_final, rtol=1e-11, atol=1e-11)


def test_single_precision_stays_within_rounding_of_the_recurrence():
    values = inputs(length=141, n_heads=4, n_features=8, n_groups=1, n_state=16)
    expected, _ = recurrence(*values)
    got, _ = ssd(*(value.float() for value in values[:5]), chunk=32, initial_BHPN=values[5].float())
    assert float((got.double() - expected).abs().max()) < 6e-5


def test_steep_decays_neither_overflow_nor_give_nan_gradients():
    """exp of the upper triangle would be exp(+large); masked before exp it is 0, and so is its gradient."""
    x, dt, A, B, C, _ = (value.float() for value in inputs(length=64))
    dt = (dt * 200).requires_grad_()
    y, _ = ssd(x, dt, A, B, C, chunk=64)
    y.sum().backward()
    assert bool(y.isfinite().all()) and bool(dt.grad.isfinite().all())


def test_autocast_leaves_the_recurrence_in_float32():
    values = [value.float() for value in inputs()]
    plain, _ = ssd(*values[:5])
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = ssd(*values[:5])
    assert cast.dtype == torch.float32 and torch.equal(cast, plain)


@pytest.mark.parametrize(
    ("which", "shape", "message"),
    [(0, (2, 13, 4), "x_BLHP"), (1, (2, 13, 3), "dt_BLH"), (2, (3,), "A_H"), (3, (2, 13, 3, 5), "B_BLGN"), (4, (2, 12, 2, 5), "C_BLGN")],
)
def test_shapes_that_do_not_meet_are_refused(which: int, shape: tuple[int, ...], message: str):
    values = list(inputs()[:5])
    values[which] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        ssd(*values)


def test_a_wrong_state_or_chunk_is_refused():
    *values, initial = inputs()
    with pytest.raises(ValueError, match="initial_BHPN must be"):
        ssd(*values, initial_BHPN=initial[:, :2])
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        ssd(*values, chunk=0)


def test_the_kernel_is_found_where_it_is_installed_and_not_missed_where_it_is_not(monkeypatch: pytest.MonkeyPatch):
    module.mamba_ssm_kernel.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert module.mamba_ssm_kernel() is None
    module.mamba_ssm_kernel.cache_clear()
    stub = types.ModuleType(module.KERNEL_MODULE)
    stub.mamba_chunk_scan_combined = object()
    monkeypatch.setitem(sys.modules, module.KERNEL_MODULE, stub)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(module.importlib, "import_module", lambda name: sys.modules[name])
    assert module.mamba_ssm_kernel() is stub.mamba_chunk_scan_combined
    module.mamba_ssm_kernel.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available() or module.importlib.util.find_spec("mamba_ssm") is None, reason="needs a GPU and mamba_ssm")
def test_the_fused_kernel_gives_the_same_numbers():
    values = [value.float().cuda() for value in inputs(length=300, n_heads=8, n_features=64, n_groups=1, n_state=64)]
    y, final = ssd(*values[:5], initial_BHPN=values[5])
    cpu_y, cpu_final = ssd(*(value.cpu() for value in values[:5]), initial_BHPN=values[5].cpu())
    torch.testing.assert_close(y.cpu(), cpu_y, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(final.cpu(), cpu_final, rtol=1e-3, atol=1e-2)
