import math

import numpy as np
import pytest
import torch
from torch import Tensor

from physio_models.attention import SHORT, Block, CrossAttention, CrossBlock, SelfAttention, attend


def rows(n_items: int = 2, n_tokens: int = 7, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n_items, n_tokens, width, generator=torch.Generator().manual_seed(seed))


def by_hand(query: np.ndarray, key: np.ndarray, value: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Softmax attention of one head in float64, one query at a time, over the keys it may see."""
    out = np.zeros_like(query)
    for n, q in enumerate(query):
        score = key[seen[n]] @ q / math.sqrt(len(q))
        weight = np.exp(score - score.max())
        out[n] = (weight / weight.sum()) @ value[seen[n]]
    return out


def expected(attention: SelfAttention, x_BND: Tensor, seen_BNN: np.ndarray) -> np.ndarray:
    weight, bias = attention.qkv.weight.detach().double().numpy(), attention.qkv.bias.detach().double().numpy()
    width, size = x_BND.shape[-1], x_BND.shape[-1] // attention.n_heads
    out = []
    for x_ND, seen in zip(x_BND.double().numpy(), seen_BNN, strict=True):
        qkv = x_ND @ weight.T + bias
        heads = [
            by_hand(*(qkv[:, part * width + head * size : part * width + (head + 1) * size] for part in range(3)), seen) for head in range(attention.n_heads)
        ]
        out.append(np.concatenate(heads, 1) @ attention.out.weight.detach().double().numpy().T + attention.out.bias.detach().double().numpy())
    return np.stack(out)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_softmax_of_scaled_products(causal: bool):
    torch.manual_seed(0)
    attention, x_BND = SelfAttention(8, 2, causal=causal), rows()
    seen = np.tri(7, dtype=bool) if causal else np.ones((7, 7), bool)
    np.testing.assert_allclose(attention(x_BND).detach().numpy(), expected(attention, x_BND, np.stack([seen, seen])), atol=1e-5)


def test_padding_is_never_looked_at():
    torch.manual_seed(0)
    attention, x_BND = SelfAttention(8, 2), rows()
    valid_BN = torch.tensor([[1, 1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]).bool()
    y_BND = attention(x_BND, valid_BN=valid_BN)
    seen = np.broadcast_to(valid_BN.numpy()[:, None, :], (2, 7, 7))
    np.testing.assert_allclose(y_BND.detach().numpy(), expected(attention, x_BND, seen), atol=1e-5)
    changed = x_BND.masked_fill(~valid_BN[..., None], 1e3)
    torch.testing.assert_close(attention(changed, valid_BN=valid_BN)[valid_BN], y_BND[valid_BN])


def test_an_item_of_padding_alone_stays_finite():
    block, valid_BN = Block(8, 2), torch.tensor([[False] * 7, [True] * 7])
    y_BND = block(rows(), valid_BN=valid_BN)
    y_BND.sum().backward()
    assert y_BND.isfinite().all() and all(p.grad.isfinite().all() for p in block.parameters())


def test_causal_attention_refuses_a_padding_mask():
    with pytest.raises(ValueError, match=r"patches\.pack"):
        SelfAttention(8, 2, causal=True)(rows(), valid_BN=torch.ones(2, 7, dtype=torch.bool))


@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_causal_block_leaks_nothing_from_the_future(at: int):
    block, x_BND = Block(8, 2, causal=True).eval(), rows()
    changed = x_BND.clone()
    changed[:, at] = rows(seed=9)[:, at]  # a mere shift would vanish in the norm
    before, after = block(x_BND), block(changed)
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.isclose(before[:, at:], after[:, at:]).all(-1).any()


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_token_by_token_with_a_cache_is_the_full_pass(qk_norm: bool, layer_scale: float | None):
    torch.manual_seed(0)
    block, x_BND = Block(8, 2, causal=True, qk_norm=qk_norm, layer_scale=layer_scale).eval(), rows()
    full_BND = block(x_BND)
    y_BND, cache = block.fill(x_BND[:, :3], 7)
    torch.testing.assert_close(y_BND, full_BND[:, :3])
    for n in range(3, 7):
        y_B1D = block.extend(x_BND[:, n : n + 1], cache, torch.full((2,), n))
        torch.testing.assert_close(y_B1D, full_BND[:, n : n + 1])


def test_items_of_a_cache_may_have_different_lengths():
    torch.manual_seed(0)
    block, x_BND, length_B = Block(8, 2, causal=True).eval(), rows(), torch.tensor([2, 5])
    _, cache = block.fill(x_BND[:, :5], 7)
    new_B1D = rows(2, 1, seed=3)
    y_B1D = block.extend(new_B1D, cache, length_B)
    for b, n in enumerate(length_B.tolist()):
        alone = block(torch.cat([x_BND[b : b + 1, :n], new_B1D[b : b + 1]], 1))
        torch.testing.assert_close(y_B1D[b, 0], alone[0, -1])


def test_cross_attention_is_softmax_over_the_real_context():
    torch.manual_seed(0)
    attention, x_BND, context_BME = CrossAttention(8, 1, context_width=6), rows(1, 4), rows(1, 5, 6, seed=2)
    valid_BM = torch.tensor([[True, False, True, True, False]])
    weights = {name: p.detach().double().numpy() for name, p in attention.named_parameters()}
    x, context = x_BND[0].double().numpy(), context_BME[0].double().numpy()
    kv = context @ weights["key_value.weight"].T + weights["key_value.bias"]
    seen = np.broadcast_to(valid_BM[0].numpy(), (4, 5))
    y = by_hand(x @ weights["query.weight"].T + weights["query.bias"], kv[:, :8], kv[:, 8:], seen) @ weights["out.weight"].T + weights["out.bias"]
    np.testing.assert_allclose(attention(x_BND, context_BME, valid_BM=valid_BM)[0].detach().numpy(), y, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize(("n_keys", "width"), [(7, 4), (40, 16), (SHORT + 3, 8), (SHORT + 3, 32)])  # both sides of either threshold
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_is_the_same_however_the_processor_wants_its_operands(dtype: torch.dtype, tolerance: float, n_keys: int, width: int, autocast: bool):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 3, width, generator=generator).to(dtype)
    key, value = (torch.randn(2, n_keys, 3, width, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for _ in range(2))
    seen = torch.rand(2, 1, 1, n_keys, generator=generator) < 0.7
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and dtype != torch.float64):
        y = attend(query, key, value, seen=seen)
    assert y.dtype == dtype
    for b, h in np.ndindex(2, 3):
        q, k, v = (part[b, h].detach().double().numpy() for part in (query, key, value))
        np.testing.assert_allclose(y[b, h].detach().double().numpy(), by_hand(q, k, v, np.tile(seen[b, 0].numpy(), (3, 1))), atol=tolerance)
    y.float().square().sum().backward()
    assert key.grad.dtype == dtype and bool((key.grad.transpose(1, 2)[~seen[:, 0, 0]] == 0).all())  # what is not looked at has no say


def test_queries_of_a_cross_block_do_not_see_one_another():
    block, x_BND, context_BME = CrossBlock(8, 2), rows(), rows(2, 5, seed=2)
    changed = x_BND.clone()
    changed[:, 2] += 1
    before, after = block(x_BND, context_BME), block(changed, context_BME)
    assert (before != after).any(-1).any(0).nonzero().flatten().tolist() == [2]


def test_rotation_turns_queries_and_keys_and_not_values():
    torch.manual_seed(0)
    attention, x_BND = SelfAttention(8, 2), rows()
    torch.testing.assert_close(attention(x_BND, rotate=lambda q: -q), attention(x_BND))  # (-q)(-k) = qk
    assert not torch.allclose(attention(x_BND, rotate=lambda q: 2 * q), attention(x_BND))


def test_dropout_falls_in_training_alone():
    block, x_BND = Block(8, 2, dropout=0.5), rows()
    assert not torch.equal(block(x_BND), block(x_BND))
    block.eval()
    assert torch.equal(block(x_BND), block(x_BND))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="n_heads must divide width=8, got 3"):
        Block(8, 3)
