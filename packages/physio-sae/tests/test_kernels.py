"""The sparse step against dense autograd: selection, sums, gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_sae import kernels
from physio_sae.kernels import Codes, Layout, decode, encode_batch_topk, encode_topk, topk_rows


def weights(n, d, seed=0):
    draw = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(n, d, generator=draw), dim=1)
    D = torch.nn.functional.normalize(torch.randn(n, d, generator=draw), dim=1)
    out = [W, 0.02 * torch.randn(n, generator=draw), D, 0.02 * torch.randn(d, generator=draw)]
    return [p.requires_grad_() for p in out]


def gradients(loss, params):
    return torch.autograd.grad(loss, params, retain_graph=True)


@pytest.mark.parametrize("shape", [(64, 16, 128, 4), (200, 64, 1024, 16), (33, 8, 24, 24)])
def test_gradients_of_the_topk_step_equal_dense_autograd(shape):
    n_rows, d, n, k = shape
    x = torch.randn(n_rows, d, generator=torch.Generator().manual_seed(1)) / d**0.5
    params = weights(n, d)
    W, b, D, b_dec = params
    codes = encode_topk(x, W, b, b_dec, k)
    sparse = gradients((decode(codes, D) + b_dec - x).square().sum(1).mean() + 0.1 * codes.values_E.square().sum() / n_rows, params)
    value, index = torch.relu((x - b_dec) @ W.T + b).topk(k, dim=1)
    f = torch.zeros(n_rows, n).scatter(1, index, value)
    dense = gradients((f @ D + b_dec - x).square().sum(1).mean() + 0.1 * f.square().sum() / n_rows, params)
    torch.testing.assert_close(codes.dense(), f)
    for ours, reference in zip(sparse, dense, strict=True):
        assert float((ours - reference).abs().max()) < 1e-6


def test_gradients_in_float64_equal_dense_to_rounding():
    x = torch.randn(40, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    W, b, D, b_dec = params = [p.detach().double().requires_grad_() for p in weights(64, 10)]
    values, indices = torch.relu((x - b_dec) @ W.T + b).detach().topk(5, dim=1)
    order = indices.sort(1)
    layout = Layout(order.values.reshape(-1).int(), torch.arange(0, 201, 5, dtype=torch.int32), 64, 5)
    codes = Codes(kernels._Encode.apply(values.gather(1, order.indices).reshape(-1), x - b_dec.detach(), W, b, b_dec, layout), layout)
    ours = gradients((decode(codes, D) + b_dec - x).square().sum(), params)
    value, index = torch.relu((x - b_dec) @ W.T + b).topk(5, dim=1)
    reference = gradients((torch.zeros(40, 64, dtype=torch.float64).scatter(1, index, value) @ D + b_dec - x).square().sum(), params)
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), k=st.integers(1, 8), per_group=st.integers(1, 9), seed=st.integers(0, 99))
def test_topk_by_groups_finds_the_largest(n, k, per_group, seed):
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 8 * k * per_group)).astype(np.float32))
    value, index = topk_rows(x, k)
    assert torch.equal(x.gather(1, index), value)
    np.testing.assert_array_equal(np.sort(value.numpy(), 1), np.sort(x.numpy(), 1)[:, -k:])


def test_topk_of_equal_values_returns_k_different_concepts():
    value, index = topk_rows(torch.ones(3, 512), 8)
    assert (value == 1).all() and all(len(set(row)) == 8 for row in index.tolist())


@pytest.mark.parametrize("peaked", [False, True])
def test_batch_topk_keeps_the_largest_of_the_whole_batch(peaked):
    """Peaked: one row owns most of the batch's largest values, far more than twice k."""
    x = torch.randn(30, 16, generator=torch.Generator().manual_seed(2))
    if peaked:
        x[3] *= 50
    W, b, _, b_dec = weights(256, 16)
    codes = encode_batch_topk(x, W, b, b_dec, 4).dense().detach().numpy()
    relu = np.maximum(((x - b_dec) @ W.T + b).detach().numpy(), 0)
    kth = np.sort(relu.reshape(-1))[-120]
    np.testing.assert_allclose(codes, relu * (relu >= kth), atol=1e-6)
    assert (codes > 0).sum() == 120 and (not peaked or (codes[3] > 0).sum() > 8)


def test_a_row_in_which_nothing_fires_decodes_to_nothing():
    W, b, D, b_dec = params = weights(32, 8)
    with torch.no_grad():
        b.fill_(-100.0)
    for encode in (encode_topk, encode_batch_topk):
        codes = encode(torch.randn(5, 8), W, b, b_dec, 3)
        out = decode(codes, D)
        assert not out.any()
        assert all(not g.any() for g in torch.autograd.grad((out - 1).square().sum(), params, materialize_grads=True))


def test_nested_blocks_sum_to_the_whole():
    x, (W, b, D, b_dec) = torch.randn(20, 8), weights(64, 8)
    codes = encode_batch_topk(x, W, b, b_dec, 6)
    blocks = decode(codes, D, (8, 16, 64))
    f = codes.dense()
    expected = torch.stack([f[:, :8] @ D[:8], f[:, 8:16] @ D[8:16], f[:, 16:] @ D[16:]], 1)
    torch.testing.assert_close(blocks, expected, atol=1e-6, rtol=1e-5)
    weight = torch.randn(blocks.shape)
    for ours, dense in zip(gradients((blocks * weight).sum(), [D, W, b]), gradients((expected * weight).sum(), [D, W, b]), strict=True):
        torch.testing.assert_close(ours, dense, atol=1e-5, rtol=1e-5)


def test_bfloat16_encode_reports_its_overlap():
    x, (W, b, _, b_dec) = torch.randn(64, 32), weights(256, 32)
    overlap = kernels.topk_overlap(x, W, b, b_dec, 8)
    assert 0.9 < overlap <= 1 and kernels.topk_overlap(x, W, b, b_dec, 8, dtype=torch.float32) == 1


def test_parts_of_the_rows_give_the_same_codes(monkeypatch):
    x, (W, b, _, b_dec) = torch.randn(300, 16), weights(128, 16)
    whole = encode_topk(x, W, b, b_dec, 4).dense()
    monkeypatch.setattr(kernels, "PRE_AT_ONCE", 64 * 128)
    torch.testing.assert_close(encode_topk(x, W, b, b_dec, 4).dense(), whole)
