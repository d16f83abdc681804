"""Each layout, read by a restatement of its library's forward pass, gives our codes; what it wrote is read back."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from physio_sae import interop
from physio_sae.sae import SaeConfig

D, K = 10, 32
SELECTED = {
    "relu": "standard",
    "topk": "topk",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "archetypal": "topk",
}


def network(kind):
    sae = SaeConfig(width=D, n_concepts=K, kind=kind, k=4, n_points=12).build(2)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            if name not in ("log_threshold", "mixture"):
                p.add_(0.2 * torch.randn(p.shape, generator=draw))
    sae.set_normalisation(torch.randn(D, generator=draw), torch.full((D,), 2.5))
    if kind in ("batch_topk", "matryoshka"):
        sae.running_threshold.fill_(0.3)
    return sae


@pytest.fixture
def z_ND():
    return 2 * np.random.default_rng(0).standard_normal((60, D)).astype(np.float32)


def kept(values, k):
    return values * (values >= np.sort(values, axis=1)[:, -k][:, None])


def saelens(folder, z):
    """SAELens 6: W_enc (d, K), sae_in = z - b_dec where the config says so."""
    cfg, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    assert w["W_enc"].shape == (cfg["d_in"], cfg["d_sae"]) and w["W_dec"].shape == (cfg["d_sae"], cfg["d_in"])
    x = z - w["b_dec"] * cfg["apply_b_dec_to_input"]
    if cfg["architecture"] == "gated":
        codes = (x @ w["W_enc"] + w["b_gate"] > 0) * np.maximum(x @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
    else:
        pre = x @ w["W_enc"] + w["b_enc"]
        relu = np.maximum(pre, 0)
        codes = {"standard": lambda: relu, "topk": lambda: kept(relu, cfg["k"]), "jumprelu": lambda: relu * (pre > w["threshold"])}[cfg["architecture"]]()
    return codes, codes @ w["W_dec"] + w["b_dec"]


def sparsify(folder, z):
    """sparsify: an nn.Linear encoder on z - b_dec, top k, atoms in rows."""
    cfg, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae.safetensors")
    codes = kept(np.maximum((z - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"], 0), cfg["k"])
    return codes, codes @ w["W_dec"] + w["b_dec"]


def dictionary_learning(folder, z):
    """dictionary_learning's five classes; gated and jumprelu give codes times the atom's length and take it out again."""
    name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    w = {key: value.numpy() for key, value in torch.load(folder / "ae.pt", weights_only=True).items()}
    if name == "JumpReluAutoEncoder":
        pre, length = z @ w["W_enc"] + w["b_enc"], np.linalg.norm(w["W_dec"], axis=1)
        codes = np.maximum(pre * (pre > w["threshold"]), 0) * length
        return codes, codes / length @ w["W_dec"] + w["b_dec"]
    if name == "GatedAutoEncoder":
        linear, length = (z - w["decoder_bias"]) @ w["encoder.weight"].T, np.linalg.norm(w["decoder.weight"], axis=0)
        codes = (linear + w["gate_bias"] > 0) * np.maximum(np.exp(w["r_mag"]) * linear + w["mag_bias"], 0) * length
        return codes, codes / length @ w["decoder.weight"].T + w["decoder_bias"]
    b_dec = w["bias" if name == "AutoEncoder" else "b_dec"]
    relu = np.maximum((z - b_dec) @ w["encoder.weight"].T + w["encoder.bias"], 0)
    codes = {"AutoEncoder": lambda: relu, "AutoEncoderTopK": lambda: kept(relu, int(w["k"])), "BatchTopKSAE": lambda: relu * (relu > w["threshold"])}[name]()
    return codes, codes @ w["decoder.weight"].T + b_dec


FORWARD = {"saelens": saelens, "sparsify": sparsify, "dictionary_learning": dictionary_learning}
PAIRS = [(layout, kind) for layout in FORWARD for kind in SELECTED if layout != "sparsify" or kind in ("topk", "archetypal")]


@pytest.mark.parametrize(("layout", "kind"), PAIRS)
def test_the_library_would_compute_our_codes(layout, kind, z_ND, tmp_path):
    sae = network(kind)
    interop.export(sae, tmp_path, layout)
    codes, out = FORWARD[layout](tmp_path, z_ND)
    length = 1.0
    if layout == "dictionary_learning" and kind in ("jumprelu", "gated"):
        length = (sae.dictionary_KD * sae.scale).norm(dim=1).detach().numpy()
    ours = sae.encode(z_ND).numpy()
    assert (ours > 0).any() and ((ours > 0) == (codes > 0)).all()
    np.testing.assert_allclose(codes, ours * length, atol=2e-5)
    np.testing.assert_allclose(out, sae(torch.from_numpy(z_ND)).detach().numpy(), atol=5e-5)


@pytest.mark.parametrize(("layout", "kind"), PAIRS)
def test_what_was_written_is_read_back(layout, kind, z_ND, tmp_path):
    sae = network(kind)
    again = interop.read(interop.export(sae, tmp_path, layout), layout)
    torch.testing.assert_close(again.encode(z_ND), sae.encode(z_ND), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(again(torch.from_numpy(z_ND)), sae(torch.from_numpy(z_ND)), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_a_saelens_folder_that_keeps_b_dec_out_of_the_input(kind, z_ND, tmp_path):
    interop.export(network(kind), tmp_path, "saelens")
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"apply_b_dec_to_input": False}))
    codes, _ = saelens(tmp_path, z_ND)
    np.testing.assert_allclose(interop.read(tmp_path, "saelens").encode(z_ND), codes, atol=2e-5)


def test_what_has_no_counterpart_is_named(tmp_path):
    with pytest.raises(ValueError, match="sparsify layout holds topk"):
        interop.export(network("relu"), tmp_path, "sparsify")
    with pytest.raises(ValueError, match="layout must be one of"):
        interop.export(network("relu"), tmp_path, "other")
    interop.export(network("topk"), tmp_path, "saelens")
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    for change, message in (({"architecture": "transcoder"}, "no counterpart"), ({"normalize_activations": "layer_norm"}, "fold the activation")):
        (tmp_path / "cfg.json").write_text(json.dumps(cfg | change))
        with pytest.raises(ValueError, match=message):
            interop.read(tmp_path, "saelens")
    with pytest.raises(ValueError, match=r"has no cfg\.json"):
        interop.read(tmp_path / "nothing", "sparsify")
