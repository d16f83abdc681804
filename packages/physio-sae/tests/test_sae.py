"""The network: codes as the papers define them, the normalisation, the file."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_sae.sae import SaeConfig, folded, load, save

KINDS = ("relu", "topk", "batch_topk", "jumprelu", "gated", "matryoshka", "archetypal")
D, K = 12, 40


def made(kind, **fields):
    """A network whose every weight is away from its start, with a normalisation."""
    sae = SaeConfig(width=D, n_concepts=K, kind=kind, k=5, n_points=16, **fields).build(3)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            if name not in ("log_threshold", "mixture"):
                p.add_(0.2 * torch.randn(p.shape, generator=draw))
    sae.set_normalisation(torch.randn(D, generator=draw), torch.rand(D, generator=draw) + 0.5)
    if kind in ("batch_topk", "matryoshka"):
        sae.running_threshold.fill_(0.4)
    return sae


def numpy_codes(sae, z_ND):
    """The definitions of the papers in float64 NumPy."""
    w = {name: value.detach().double().numpy() for name, value in sae.state_dict().items()}
    x = (z_ND.astype(float) - w["mean"]) / w["scale"]
    linear = (x - w["b_dec"]) @ w["W_enc"].T
    pre, kind = linear + w["b_enc"], sae.config.kind
    relu = np.maximum(pre, 0)
    if kind == "relu":
        return relu
    if kind in ("topk", "archetypal"):
        kth = np.sort(relu, axis=1)[:, -sae.config.k][:, None]
        return relu * (relu >= kth)
    if kind == "jumprelu":
        return relu * (pre > np.exp(w["log_threshold"]))
    if kind == "gated":
        return (pre > 0) * np.maximum(np.exp(w["r_mag"]) * linear + w["b_mag"], 0)
    return relu * (pre > w["running_threshold"])


@pytest.fixture
def z_ND():
    return np.random.default_rng(0).standard_normal((50, D)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_follow_the_definition(kind, z_ND):
    sae = made(kind)
    codes = sae.encode(z_ND).numpy()
    np.testing.assert_allclose(codes, numpy_codes(sae, z_ND), atol=2e-5)
    assert (codes >= 0).all() and 0 < (codes > 0).mean() < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_the_codes_decodes_to_the_same(kind, z_ND):
    sae = made(kind)
    codes = sae.encode(z_ND)
    expected = sae.denormalise(codes @ sae.dictionary_KD + sae.b_dec).detach()
    torch.testing.assert_close(sae.decode(codes), expected)
    torch.testing.assert_close(sae.decode(sae.encode_sparse(z_ND)), expected, atol=1e-5, rtol=1e-5)
    values, indices = sae.encode_topk(z_ND, K)
    torch.testing.assert_close(torch.zeros_like(codes).scatter(1, indices, values), codes)
    torch.testing.assert_close(sae(torch.from_numpy(z_ND)).detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_network_keeps_its_normalisation_and_threshold(kind, z_ND, tmp_path):
    sae = made(kind)
    save(sae, tmp_path / "a", extra={"ablation": "full"})
    again = load(tmp_path / "a")
    assert torch.equal(again.encode(z_ND), sae.encode(z_ND)) and torch.equal(again.mean, sae.mean) and torch.equal(again.scale, sae.scale)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["extra"] == {"ablation": "full"}


@pytest.mark.parametrize("kind", KINDS)
def test_folding_the_normalisation_changes_nothing(kind, z_ND):
    sae = made(kind)
    plain = folded(sae)
    assert not plain.mean.any() and (plain.scale == 1).all()
    torch.testing.assert_close(plain.encode(z_ND), sae.encode(z_ND), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain(torch.from_numpy(z_ND)), sae(torch.from_numpy(z_ND)), atol=1e-5, rtol=1e-5)


def test_the_encoder_starts_as_the_atoms_and_atoms_have_length_1():
    for kind in KINDS:
        sae = SaeConfig(width=D, n_concepts=K, kind=kind, k=5, n_points=16).build(1)
        torch.testing.assert_close(sae.W_enc, sae.dictionary_KD)
        torch.testing.assert_close(sae.dictionary_KD.norm(dim=1), torch.ones(K))
        assert sae.W_enc.data_ptr() != sae.dictionary_KD.data_ptr()


def test_archetypal_atoms_lie_by_the_cone_of_their_points():
    sae = SaeConfig(width=D, n_concepts=K, kind="archetypal", k=5, n_points=16, relaxation=0.0).build(1)
    from scipy.optimize import nnls

    left = [nnls(sae.points.T.double().numpy(), atom)[1] for atom in sae.dictionary_KD.detach().double().numpy()]
    assert max(left) < 1e-5


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, 49), min_size=1, max_size=20), kind=st.sampled_from(KINDS))
def test_a_window_has_the_same_code_in_any_batch(rows, kind):
    z = np.random.default_rng(0).standard_normal((50, D)).astype(np.float32)
    sae = made(kind)
    torch.testing.assert_close(sae.encode(z[rows]), sae.encode(z)[rows], atol=1e-5, rtol=1e-5)


def test_bad_input_is_named(z_ND, tmp_path):
    sae = made("topk")
    z_ND[7, 2] = np.nan
    with pytest.raises(ValueError, match="not finite in row 7"):
        sae.encode(z_ND)
    with pytest.raises(ValueError, match=r"must be \(N, 12\)"):
        sae.encode(z_ND[:, :5])
    with pytest.raises(ValueError, match="k must not exceed n_concepts"):
        SaeConfig(width=4, n_concepts=8, kind="topk", k=9)
    with pytest.raises(ValueError, match="prefixes must rise"):
        SaeConfig(width=4, n_concepts=8, kind="matryoshka", k=2, prefixes=(2, 4))
    with pytest.raises(ValueError, match="kind must be one of"):
        SaeConfig(width=4, kind="vae")
    with pytest.raises(ValueError, match="scale must be positive"):
        sae.set_normalisation(torch.zeros(D), torch.zeros(D))
    with pytest.raises(ValueError, match="holds no autoencoder"):
        load(tmp_path)
