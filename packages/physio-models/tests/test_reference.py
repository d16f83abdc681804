from pathlib import Path

import pytest
import torch

from physio_models.himae import HiMaeConfig
from physio_models.pretrained import build_untrained
from physio_models.reference import load_reference, reference_encoder

SHAPES = [
    HiMaeConfig(),
    HiMaeConfig(widths=(16, 32, 64, 128)),
    HiMaeConfig(n_channels=2, widths=(4, 8), kernel=3),
    HiMaeConfig(widths=(4, 8), skips=False),
    HiMaeConfig(widths=(6,)),
]


def lightning(state: dict) -> dict:
    """The layout of a Lightning checkpoint, optimiser and hyper-parameters included."""
    return {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{key}": value for key, value in state.items()},
        "loops": {},
        "callbacks": {"EarlyStopping{'monitor': 'val/mse_loss'}": {"wait_count": 0, "best_score": torch.tensor(0.1)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(12.0)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]}],
        "lr_schedulers": [{"last_epoch": 12}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"mask_ratio": 0.8, "patch_size": 5, "channels": [16, 32]},
    }


def same(model: torch.nn.Module, state: dict) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("layout", ["lightning", "plain", "data_parallel"])
def test_checkpoints_load_with_their_shape_read_from_them(tmp_path: Path, config: HiMaeConfig, layout: str):
    state = build_untrained("himae", config, 5).state_dict()
    content = {"lightning": lightning(state), "plain": state, "data_parallel": {f"module.{key}": value for key, value in state.items()}}[layout]
    torch.save(content, tmp_path / "file.ckpt")
    random_state = torch.get_rng_state()
    reference = load_reference("himae", tmp_path / "file.ckpt")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same(reference.model, state) and reference.model.cfg == config and reference.head is None and not reference.model.training


def test_the_published_probe_loads_without_a_gpu(himae_fixtures: Path):
    reference = load_reference("himae", himae_fixtures / "pvc_linear_probe.pt")
    assert reference.model is None and reference.head.weight.shape == (1, 256) and reference.head.weight.device.type == "cpu"
    assert float(reference.head.bias) == pytest.approx(-0.0472, abs=1e-4) and float(reference.head.weight.abs().max()) == pytest.approx(0.334, abs=1e-3)


def test_the_probe_of_the_script_brings_its_backbone(tmp_path: Path):
    state = build_untrained("himae", HiMaeConfig(widths=(4, 8)), 5).state_dict()
    head = {"classifier.weight": torch.randn(2, 8), "classifier.bias": torch.randn(2)}
    torch.save({f"backbone.{key}": value for key, value in state.items()} | head, tmp_path / "probe.pt")
    reference = load_reference("himae", tmp_path / "probe.pt")
    assert same(reference.model, state)
    assert torch.equal(reference.head.weight, head["classifier.weight"]) and torch.equal(reference.head.bias, head["classifier.bias"])


def test_keys_that_do_not_match_are_named(tmp_path: Path):
    state = build_untrained("himae", HiMaeConfig(widths=(4, 8)), 5).state_dict()
    renamed = {key.replace("upconv.bias", "upconv.offset"): value for key, value in state.items()}
    torch.save(lightning(renamed), tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match=r"missing: decoder_layers\.0\.upconv\.bias; unexpected: decoder_layers\.0\.upconv\.offset"):
        load_reference("himae", tmp_path / "file.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(3)}, "is no HiMAE"),
        ({"fc.weight": torch.zeros(1, 4)}, "must be a weight"),
        ([torch.zeros(3)], "holds no state dict"),
        ({"state_dict": {}}, "holds no state dict"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        load_reference("himae", tmp_path / "file.pt")


class Code:
    def __reduce__(self):
        return (print, ("run",))


def test_a_file_with_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"state_dict": Code()}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        load_reference("himae", tmp_path / "file.pt")
    assert capsys.readouterr().out == ""


def test_a_file_cut_in_half_and_an_unknown_name_are_refused(tmp_path: Path):
    torch.save({"a": torch.zeros(10_000)}, tmp_path / "file.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "file.pt").read_bytes()[:20_000])
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("half.pt", "empty.pt"):
        with pytest.raises(ValueError, match="damaged"):
            load_reference("himae", tmp_path / name)
    with pytest.raises(ValueError, match="is no file"):
        load_reference("himae", tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="no original's files are known for 'himea', did you mean 'himae'"):
        load_reference("himea", tmp_path / "file.pt")


def test_an_original_becomes_an_encoder_with_the_originals_contract(tmp_path: Path):
    torch.save(build_untrained("himae", HiMaeConfig(widths=(4, 8)), 5).state_dict(), tmp_path / "file.pt")
    encoder = reference_encoder("himae", tmp_path / "file.pt")
    spec = encoder.contract.spec
    assert (spec.fs, spec.n_samples, spec.channels, encoder.contract.normalization) == (100.0, 1000, ("PPG",), "lead_minmax")
    assert encoder.features(torch.randn(2, 1, 1000), spec, level="L2").shape == (2, 8)
