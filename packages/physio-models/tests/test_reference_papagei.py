from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from physio_models.contract import ContractError
from physio_models.papagei import PapageiConfig
from physio_models.pretrained import build_untrained
from physio_models.reference import load_reference, reference_encoder
from physio_models.reference_papagei import load_papagei, papagei_contract, papagei_encoder

SHAPES = {
    "s": PapageiConfig(base_width=4, n_blocks=6, n_outputs=8),
    "p": PapageiConfig(base_width=4, n_blocks=6, n_outputs=8, n_experts=0),
    "projected": PapageiConfig(base_width=4, n_blocks=6, n_outputs=8, n_experts=0, projection=True),
    "other": PapageiConfig(n_channels=2, base_width=6, n_blocks=9, n_outputs=7, kernel=5, n_experts=2),
}


def file(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def state(name: str) -> dict[str, torch.Tensor]:
    return build_untrained("papagei", SHAPES[name], 5).state_dict()


LAYOUTS = {
    "bare": lambda found: found,
    "data_parallel": lambda found: {f"module.{key}": value for key, value in found.items()},
    "wrapped": lambda found: {"epoch": 3, "model_state_dict": {f"module.{key}": value for key, value in found.items()}, "optimizer_state_dict": {"state": {}}},
    "lightning": lambda found: {"state_dict": {f"model.module.{key}": value for key, value in found.items()}, "hyper_parameters": {"alpha": 0.6}},
    "half": lambda found: {key: value.half() if value.is_floating_point() else value for key, value in found.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SHAPES)
def test_files_load_with_shape_and_variant_read_from_them(tmp_path: Path, name: str, layout: str):
    found = state(name)
    random_state = torch.get_rng_state()
    model, mapped = load_papagei(file(tmp_path / "papagei.pt", LAYOUTS[layout](found)))
    assert torch.equal(torch.get_rng_state(), random_state)
    own = model.state_dict()
    assert replace(model.cfg, n_samples=1250) == SHAPES[name] and not model.training
    assert own.keys() == found.keys() and all(value.dtype in (torch.float32, torch.int64) for value in own.values())
    assert all(
        torch.allclose(own[key].double(), found[key].double(), rtol=1e-3 if layout == "half" else 0, atol=1e-3 if layout == "half" else 0) for key in own
    )
    prefix = {"data_parallel": "module.", "wrapped": "module.", "lightning": "model.module."}.get(layout, "")
    assert mapped == {key: prefix + key for key in own}, "the report names every tensor and where it came from"


@pytest.mark.parametrize(("experts", "n_tensors"), [(3, 294), (0, 266)])
def test_the_published_layouts_load_whole(tmp_path: Path, experts: int, n_tensors: int):
    found = build_untrained("papagei", PapageiConfig(n_experts=experts), 0).state_dict()
    model, mapped = load_papagei(file(tmp_path / "papagei.pt", LAYOUTS["data_parallel"](found)))
    assert model.cfg == PapageiConfig(n_experts=experts) and len(mapped) == n_tensors


def test_recorded_weights_give_the_recorded_embedding_through_the_encoder(shared: Path, tmp_path: Path):
    recording = shared / "fixtures" / "papagei" / "tiny_moe.npz"
    if not recording.exists():
        pytest.skip(f"shared data absent: {recording}")
    with np.load(recording) as arrays:
        weights = {f"module.{key[3:]}": torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("sd/")}
        x, expected = arrays["x1250"], arrays["x1250_out0"]
    encoder = papagei_encoder(file(tmp_path / "papagei_s.pt", weights), replace(papagei_contract(), normalization="none"))
    np.testing.assert_allclose(encoder(x, encoder.contract.spec).pooled_BD.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_keys_that_do_not_match_are_named(tmp_path: Path):
    found = state("s")
    found["basicblock_list.2.conv1.conv.offset"] = found.pop("basicblock_list.2.conv1.conv.bias")
    message = r"missing: basicblock_list\.2\.conv1\.conv\.bias; unexpected: basicblock_list\.2\.conv1\.conv\.offset"
    with pytest.raises(ValueError, match=message):
        load_papagei(file(tmp_path / "papagei.pt", found))
    gone = {key: value for key, value in state("s").items() if not key.startswith("gating_network_2")}
    with pytest.raises(ValueError, match=r"missing: gating_network_2\.0\.bias"):
        load_papagei(file(tmp_path / "papagei.pt", gone))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(3)}, "is no PaPaGei"),
        ([torch.zeros(3)], "holds no state dict"),
        ({"state_dict": {}}, "holds no state dict"),
        ({"first_block_conv.conv.weight": torch.zeros(4, 1, 3), "basicblock_list.1.bn1.weight": torch.zeros(4)}, "not numbered from 0"),
        ({"first_block_conv.conv.weight": torch.zeros(4, 1, 3), "basicblock_list.0.bn1.weight": torch.zeros(4)}, "dense.weight"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path: Path, content: object, message: str):
    with pytest.raises(ValueError, match=message):
        load_papagei(file(tmp_path / "file.pt", content))


class Code:
    def __reduce__(self):
        return (print, ("run",))


def test_a_file_with_code_is_not_run_and_a_cut_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="more than tensors"):
        load_papagei(file(tmp_path / "file.pt", {"state_dict": Code()}))
    assert capsys.readouterr().out == ""
    whole = file(tmp_path / "whole.pt", state("s")).read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    for name, message in (("half.pt", "damaged"), ("absent.pt", "is no file")):
        with pytest.raises(ValueError, match=message):
            load_papagei(tmp_path / name)


def test_the_contract_is_what_the_original_was_trained_on(tmp_path: Path):
    encoder = papagei_encoder(file(tmp_path / "papagei.pt", state("s")))
    spec, x = encoder.contract.spec, torch.randn(2, 1, 1250, generator=torch.Generator().manual_seed(0))
    assert (spec.fs, spec.n_samples, spec.channels, spec.band) == (125.0, 1250, ("PPG",), (0.5, 12.0))
    upright = encoder(x, spec).pooled_BD
    torch.testing.assert_close(encoder(-x, replace(spec, polarity=-1)).pooled_BD, upright)  # PPG-DaLiA's polarity against the pre-training data's
    torch.testing.assert_close(encoder(3 * x + 7, spec).pooled_BD, upright, rtol=1e-3, atol=1e-4)
    assert encoder(torch.zeros(1, 1, 1250), spec).pooled_BD.isfinite().all()
    with pytest.raises(ContractError, match=r"--fs 125 --band 0\.5,12"):
        encoder(torch.zeros(1, 1, 2500), replace(spec, fs=250.0, n_samples=2500, band=None))
    by_name = reference_encoder("papagei", tmp_path / "papagei.pt")
    assert by_name.contract == encoder.contract and torch.equal(by_name(x, spec).pooled_BD, upright)
    assert load_reference("papagei", tmp_path / "papagei.pt").head is None


def test_more_channels_need_a_contract_of_their_own(tmp_path: Path):
    with pytest.raises(ValueError, match="give the contract"):
        papagei_encoder(file(tmp_path / "papagei.pt", state("other")))
