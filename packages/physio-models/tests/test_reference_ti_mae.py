from pathlib import Path

import pytest
import torch

from physio_models.mamba2 import Mamba2, Mamba2Config, MambaStack
from physio_models.reference import load_reference, reference_encoder
from physio_models.ti_mae import TiMaeConfig
from physio_models.ti_mae_mamba import TiMaeMambaConfig


def state_of(config, seed: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {key: value.clone() for key, value in config.build().state_dict().items()}


def lightning(state: dict, **settings) -> dict:
    """The layout of a Lightning checkpoint of the port."""
    return {
        "epoch": 999,
        "global_step": 71_000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(12.0)}}, "param_groups": [{"lr": 1e-3}]}],
        "lr_schedulers": [{"total_steps": 71_000}],
        "hparams_name": "kwargs",
        "hyper_parameters": settings,
    }


def same(model: torch.nn.Module, state: dict) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


def head(width: int = 64) -> dict[str, torch.Tensor]:
    return {"classifier.weight": torch.randn(5, width), "classifier.bias": torch.randn(5)}


def test_a_pretrained_checkpoint_loads_with_every_key(tmp_path: Path):
    state = state_of(TiMaeConfig.original())
    assert {key for key in state if key.startswith("encoder.layers.0")} == {
        f"encoder.layers.0.{part}.{kind}"
        for part, kinds in {
            **dict.fromkeys(("norm1", "norm2", "ffn.0", "ffn.3"), ("weight", "bias")),
            **dict.fromkeys(("attention.query", "attention.key", "attention.value"), ("weight",)),
        }.items()
        for kind in kinds
    }
    torch.save(lightning(state, num_heads=4, num_decoder_heads=4, seq_len=140, cls_embed=True, mask_ratio=0.75, lr=1e-3), tmp_path / "last.ckpt")
    found = load_reference("ti_mae", tmp_path / "last.ckpt")
    assert same(found.model, state) and found.model.cfg == TiMaeConfig.original() and found.head is None and not found.model.training
    assert found.mapped == {key: key for key in state} and found.left_out == ()


def test_a_classifiers_checkpoint_gives_encoder_head_and_what_was_left_out(tmp_path: Path):
    state = state_of(TiMaeConfig.original(decoder="none"))
    heads = head()
    torch.save(lightning(state | heads | {"criterion.weight": torch.ones(5)}, num_heads=4, cls_embed=True), tmp_path / "last.ckpt")
    found = load_reference("ti_mae", tmp_path / "last.ckpt")
    assert same(found.model, state) and torch.equal(found.head.weight, heads["classifier.weight"])
    assert found.left_out == ("criterion.weight",) and found.mapped["head.weight"] == "classifier.weight" and len(found.mapped) == len(state) + 2


def test_a_classifier_without_a_class_token_pools_what_its_settings_say(tmp_path: Path):
    """Its table of positions has a row more than the window needs: it was copied from pretraining, where the class token had the first."""
    state = state_of(TiMaeConfig.original(decoder="none"))
    torch.save(lightning(state | head(), cls_embed=False, pooling="mean"), tmp_path / "last.ckpt")
    model = load_reference("ti_mae", tmp_path / "last.ckpt").model
    assert (model.cfg.cls, model.cfg.pooling, model.cfg.n_samples) == (False, "mean", 140)
    assert torch.equal(model.encoder.positional_encoding.pe, state["encoder.positional_encoding.pe"][:, :140])
    assert not model.encoder.cls_token.requires_grad and model.encode(torch.randn(2, 1, 140)).pooled_BD.shape == (2, 64)


def test_a_longer_table_of_positions_is_cut_and_a_learned_one_refused(tmp_path: Path):
    long = state_of(TiMaeConfig(**{**TiMaeConfig.original().__dict__, "n_samples": 200}))
    torch.save(lightning(long, seq_len=140), tmp_path / "long.ckpt")
    assert load_reference("ti_mae", tmp_path / "long.ckpt").model.cfg.n_samples == 140
    torch.save(lightning(long | {"encoder.positional_encoding.pe": torch.randn(1, 201, 64)}, seq_len=140), tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no table of sines and cosines"):
        load_reference("ti_mae", tmp_path / "other.ckpt")
    torch.save(lightning(long, seq_len=500), tmp_path / "short.ckpt")
    with pytest.raises(ValueError, match="has 201 positions, the window needs 501"):
        load_reference("ti_mae", tmp_path / "short.ckpt")


def test_other_shapes_follow_from_the_tensors(tmp_path: Path):
    decoder = {"decoder_width": 8, "decoder_depth": 1, "decoder_hidden": 20, "decoder_heads": 4}
    config = TiMaeConfig(n_channels=2, n_samples=30, width=16, depth=3, hidden=24, **decoder, pooling="cls", layout="original", dropout=0.1)
    torch.save(state_of(config), tmp_path / "bare.pt")
    assert load_reference("ti_mae", tmp_path / "bare.pt").model.cfg == config


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("decoder", ["self", "none"])
def test_the_mamba_variant_loads(tmp_path: Path, size: str, decoder: str):
    config = TiMaeMambaConfig.original(size, decoder=decoder)
    state = state_of(config)
    torch.save(lightning(state | (head(config.width) if decoder == "none" else {}), cls_embed=True), tmp_path / "last.ckpt")
    found = load_reference("ti_mae_mamba", tmp_path / "last.ckpt")
    assert same(found.model, state) and found.model.cfg == config and (found.head is None) == (decoder == "self")


def test_an_original_becomes_an_encoder(tmp_path: Path):
    torch.save(state_of(TiMaeConfig.original()), tmp_path / "last.pt")
    encoder = reference_encoder("ti_mae", tmp_path / "last.pt")
    spec = encoder.contract.spec
    assert (spec.channels, spec.fs, spec.n_samples) == (("series",), 1.0, 140)
    assert encoder.features(torch.randn(2, 1, 140), spec, level="block2").shape == (2, 64)


def test_one_layer_and_a_stack_of_mamba_ssm_load(tmp_path: Path):
    cfg = Mamba2Config(d_model=16, d_state=8, headdim=8)
    layer = state_of(cfg)
    torch.save({key: value.bfloat16() if value.ndim > 1 else value for key, value in layer.items()}, tmp_path / "layer.pt")
    found = load_reference("mamba2", tmp_path / "layer.pt")
    assert isinstance(found.model, Mamba2) and found.model.cfg == cfg and found.mapped == {key: key for key in layer}
    torch.manual_seed(0)
    stack = MambaStack(cfg, 3)
    names = {f"backbone.{key}": value for key, value in stack.state_dict().items()}
    torch.save(names | {"backbone.embedding.weight": torch.randn(50, 16), "lm_head.weight": torch.randn(50, 16)}, tmp_path / "lm.bin")
    found = load_reference("mamba2", tmp_path / "lm.bin")
    assert same(found.model, stack.state_dict()) and found.left_out == ("backbone.embedding.weight", "lm_head.weight")
    assert found.mapped["layers.2.mixer.A_log"] == "backbone.layers.2.mixer.A_log"
    with pytest.raises(ValueError, match="no encoder of signals"):
        reference_encoder("mamba2", tmp_path / "lm.bin")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ti_mae", lambda s: s | {"momentum.weight": torch.zeros(1)}, r"keys beside .*momentum\.weight"),
        ("ti_mae", lambda s: {k: v for k, v in s.items() if not k.startswith("encoder.")}, r"no encoder\.\*"),
        ("ti_mae", lambda s: {k.replace("ffn.3.bias", "ffn.4.bias"): v for k, v in s.items()}, r"missing: .*ffn\.3\.bias"),
        ("ti_mae", lambda s: {k.replace("layers.1", "layers.2"): v for k, v in s.items()}, "are not numbered from 0 on"),
        ("ti_mae", lambda s: s | {"classifier.weight": torch.zeros(5, 3), "classifier.bias": torch.zeros(5)}, "the head takes 3 features"),
        ("ti_mae_mamba", lambda s: s, r"mamba\.A_log"),
        ("mamba2", lambda s: s, "are not numbered from 0 on"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, change, message: str):
    torch.save(change(state_of(TiMaeConfig.original())), tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        load_reference(name, tmp_path / "file.pt")
