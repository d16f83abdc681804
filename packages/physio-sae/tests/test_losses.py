"""Every loss against NumPy, the sparse step against the dense one, and the defects that other libraries have."""

import numpy as np
import pytest
import torch

from physio_sae import losses
from physio_sae.losses import LossConfig, Triplet
from physio_sae.sae import SaeConfig

B, D, K = 48, 16, 96
OFF = {"sp": 0.0, "div": 0.0, "stab": 0.0, "smooth": 0.0, "aux": 0.0}


def batch(n=B, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=draw) / D**0.5
    pair = torch.arange(0, n, 3)
    follow = x[pair] + 0.1 * torch.randn(len(pair), D, generator=draw) / D**0.5
    return Triplet(x, follow, pair, torch.linspace(5, 30, len(pair)), x + 0.05 * torch.randn(n, D, generator=draw) / D**0.5)


def network(kind="topk", **fields):
    sae = SaeConfig(width=D, n_concepts=K, kind=kind, k=5, n_points=24, **fields).build(1)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        sae.b_enc.add_(0.05 * torch.randn(K, generator=draw))
        sae.b_dec.add_(0.05 * torch.randn(D, generator=draw))
    return sae


def terms(sae, given=None, *, engine="dense", dead=(), l_sp=1.0, **weights):
    dead_J = torch.tensor(dead, dtype=torch.int64)
    draw = torch.Generator().manual_seed(0)
    return losses.loss(sae, given or batch(), LossConfig(**OFF | weights), engine=engine, l_sp=l_sp, dead_J=dead_J, dtype=torch.float32, draw=draw)


def codes_of(sae, given):
    """f, g, h in float64."""
    return [sae.codes_of(sae.pre_activations(x)).detach().double().numpy() for x in (given.x_BD, given.next_MD, given.aug_BD)]


def test_reconstruction_is_the_squared_error_summed_over_dimensions():
    sae, given = network(), batch()
    f, *_ = codes_of(sae, given)
    x_hat = f @ sae.W_dec.detach().double().numpy() + sae.b_dec.detach().double().numpy()
    assert terms(sae, given).parts["rec"].item() == pytest.approx(np.square(x_hat - given.x_BD.double().numpy()).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_stability_and_smoothness_follow_their_formulas(engine):
    sae, given = network(), batch()
    f, g, h = codes_of(sae, given)
    fm, weight = f[given.pair_M.numpy()], np.exp(-given.dt_M.double().numpy() / 10)
    expected = {
        ("stab", None, None): np.square(h - f).sum(1).mean() / np.square(f).sum(1).mean(),
        ("smooth", "l1", None): np.abs(g - fm).sum() / np.abs(fm).sum(),
        ("smooth", "l2", None): np.square(g - fm).sum() / np.square(fm).sum(),
        ("smooth", "cosine", None): np.mean(1 - (g * fm).sum(1) / np.linalg.norm(g, axis=1) / np.linalg.norm(fm, axis=1)),
        ("smooth", "l1", 10.0): (weight * np.abs(g - fm).sum(1)).sum() / (weight * np.abs(fm).sum(1)).sum(),
    }
    for (name, kind, tau), value in expected.items():
        found = terms(sae, given, engine=engine, dt_tau_s=tau, **{name: 1.0}, **({"smooth_kind": kind} if kind else {}))
        assert found.parts[name].item() == pytest.approx(value, rel=1e-4), (name, kind, tau)


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_contrast_is_the_cross_entropy_of_slow_concepts(engine):
    sae, given = network(), batch()
    f, g, _ = codes_of(sae, given)
    n_slow = int(0.5 * K)
    a, b = (m[:, :n_slow] / np.maximum(np.linalg.norm(m[:, :n_slow], axis=1, keepdims=True), 1e-6) for m in (g, f[given.pair_M.numpy()]))
    logits = a @ b.T / 0.2
    expected = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert terms(sae, given, engine=engine, smooth=1.0, smooth_kind="nce", nce_share=0.5).parts["smooth"].item() == pytest.approx(expected, rel=1e-4)


def test_diversity_equals_the_sum_over_pairs_and_its_gradient_is_exact():
    atoms = torch.randn(30, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    a = atoms.detach().numpy()
    brute = sum((a[i] @ a[j]) ** 2 for i in range(30) for j in range(30) if i != j) / (30 * 29)
    assert losses.diversity(atoms).item() == pytest.approx(brute, rel=1e-12)
    assert torch.autograd.gradcheck(losses.diversity, atoms)


def test_diversity_of_a_tight_frame_is_the_welch_bound():
    angle = 2 * np.pi * np.arange(10) / 20
    frame = torch.tensor(np.stack([np.cos(angle), np.sin(angle)], 1))
    assert losses.diversity(frame).item() == pytest.approx((10 - 2) / (2 * (10 - 1)), rel=1e-12)


def test_near_duplicates_are_penalised_alone():
    atoms = torch.eye(8)
    assert losses.near_duplicates(atoms, torch.Generator()).item() == 0
    atoms[1] = atoms[0]
    assert losses.near_duplicates(atoms, torch.Generator()).item() == pytest.approx(2 * 0.25 / 8)


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "matryoshka", "archetypal"])
@pytest.mark.parametrize("fields", [{}, {"smooth_kind": "l2"}, {"smooth_kind": "nce"}, {"rec_on": ("t", "aug"), "stopgrad": "aug"}, {"rec_on": ("t", "next")}])
def test_the_sparse_step_has_the_dense_steps_losses_and_gradients(kind, fields):
    weights = {"div": 0.02, "stab": 0.1, "smooth": 0.05, "aux": 1 / 32, "hinge": 0.1} | fields
    found = []
    for engine in ("dense", "sparse"):
        sae = network(kind)
        out = terms(sae, engine=engine, dead=range(0, K, 7), **weights)
        out.total.backward()
        found.append((out, {name: p.grad for name, p in sae.named_parameters()}))
    (dense, reference), (sparse, ours) = found
    assert abs(dense.total.item() - sparse.total.item()) < 1e-6 and torch.equal(dense.fired_K, sparse.fired_K) and dense.l0 == sparse.l0
    for name, gradient in reference.items():
        assert float((ours[name] - gradient).abs().max()) < 1e-6, name


def test_the_aux_gradient_reaches_the_encoder_of_dead_concepts():
    """sparsify's fused encoder lets none through, so dead concepts never revive."""
    sae = network()
    dead = [k for k in range(K) if not terms(sae).fired_K[k]][:20]
    assert dead
    for engine in ("dense", "sparse"):
        before, after = (torch.autograd.grad(terms(sae, engine=engine, dead=dead, aux=w).total, sae.W_enc)[0][dead] for w in (0.0, 1.0))
        assert not before.any() and after.abs().sum() > 0


@pytest.mark.parametrize("kind", ["relu", "gated", "jumprelu"])
def test_the_penalty_does_not_depend_on_the_batch_size(kind):
    """overcomplete sums its L1 over the batch: twice the windows, twice the penalty."""
    sae, given = network(kind), batch()
    twice = Triplet(
        *(torch.cat([part, part]) for part in given[:2]), torch.cat([given.pair_M, given.pair_M + B]), given.dt_M.repeat(2), given.aug_BD.repeat(2, 1)
    )
    one, two = (terms(sae, part, sp=1.0, stab=0.1, smooth=0.1).parts for part in (given, twice))
    for name in one:
        assert two[name].item() == pytest.approx(one[name].item(), rel=1e-5), name


def test_residual_and_auxiliary_target_share_the_bias():
    """SAELens and sparsify add b_dec to the auxiliary reconstruction of a residual that has none."""
    sae, given = network(), batch()
    f, *_ = codes_of(sae, given)
    D64, x = sae.W_dec.detach().double().numpy(), given.x_BD.double().numpy()
    b_dec, W, b = (p.detach().double().numpy() for p in (sae.b_dec, sae.W_enc, sae.b_enc))
    dead = list(range(0, K, 9))
    residual = x - (f @ D64 + b_dec)
    pre = np.maximum((x - b_dec) @ W[dead].T + b[dead], 0)
    kth = np.sort(pre, axis=1)[:, -D // 2][:, None]
    estimate = (pre * (pre >= kth)) @ D64[dead]
    expected = np.square(residual - estimate).sum(1).mean() / np.square(residual).sum(1).mean()
    assert terms(sae, given, dead=dead, aux=1.0).parts["aux"].item() == pytest.approx(expected, rel=1e-4)


def test_few_dead_concepts_weigh_less():
    sae, given = network(), batch()
    x, atoms = given.x_BD, sae.dictionary_KD
    dead = torch.tensor([3])
    assert losses.auxk(sae, x, x, atoms, dead, 10).item() == pytest.approx(losses.auxk(sae, x, x, atoms, dead, 1).item() / 10, rel=1e-5)


def test_stopgrad_keeps_the_augmented_branch_still():
    given = batch()
    given = given._replace(aug_BD=given.aug_BD.requires_grad_())
    for stopgrad, moves in (("none", True), ("aug", False)):
        sae = network("relu")
        gradient = torch.autograd.grad(terms(sae, given, stab=1.0, stopgrad=stopgrad).total, given.aug_BD, allow_unused=True)[0]
        assert (gradient is not None and bool(gradient.any())) is moves


def test_jumprelu_thresholds_get_the_rectangle_kernels_gradient():
    pre, threshold = torch.tensor([[0.29, 0.31, 0.9, -1.0]]), torch.tensor([0.3, 0.3, 0.3, 0.3], requires_grad=True)
    losses._Step.apply(pre, threshold, 0.1).sum().backward()
    np.testing.assert_allclose(threshold.grad, [-10, -10, 0, 0], rtol=1e-6)
    threshold.grad = None
    losses._Jump.apply(pre, threshold, 0.1).sum().backward()
    np.testing.assert_allclose(threshold.grad, [-3, -3, 0, 0], rtol=1e-6)


def test_gated_trains_its_gate_through_a_decoder_that_stays():
    sae = network("gated")
    out = terms(sae, l_sp=0.0)
    x, gate = batch().x_BD, torch.relu(sae.pre_activations(batch().x_BD))
    expected = out.parts["rec"] + (x - gate @ sae.W_dec - sae.b_dec).square().sum(1).mean()
    assert out.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bad_weights_are_named():
    for fields, message in (
        ({"div": -1.0}, "div must be"),
        ({"stab": float("nan")}, "stab must be"),
        ({"rec_on": ("aug",)}, "rec_on"),
        ({"dt_tau_s": 0.0}, "dt_tau_s"),
    ):
        with pytest.raises(ValueError, match=message):
            LossConfig(**fields)
