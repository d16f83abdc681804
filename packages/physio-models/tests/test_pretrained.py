import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from physio_models import MODELS, OBJECTIVES, resolve
from physio_models.contract import InputContract
from physio_models.himae import HiMae, HiMaeConfig
from physio_models.pretrained import (
    build_untrained,
    config_from_document,
    config_from_json,
    fingerprint,
    from_pretrained,
    model_document,
    same_fingerprint,
    save_pretrained,
    untrained_encoder,
)

CONFIG = HiMaeConfig(n_samples=50, widths=(4, 8))
CONTRACT = InputContract(channels=("PPG",), units=("a.u.",), fs=25.0, window_s=2.0, kind="ppg", length_free=True)


def trained(seed: int = 0) -> HiMae:
    model = build_untrained("himae", CONFIG, seed)
    model.train()
    model(torch.randn(8, 1, 50), torch.rand(8, 50) < 0.5)
    return model.eval()


def run_folder(path: Path, steps: dict[int, HiMae], best: int | None = None) -> Path:
    """A run as training leaves it."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model": model_document(CONFIG), "fit": {"lr": 1e-3}}))
    (path / "contract.json").write_text(json.dumps(CONTRACT.to_json()))
    (path / "checkpoints").mkdir()
    for step, model in steps.items():
        folder = path / "checkpoints" / f"step_{step}"
        folder.mkdir()
        save_file(model.state_dict(), folder / "model.safetensors")
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        (folder / "meta.json").write_text(json.dumps({"step": step, "files": {"model.safetensors": digest}}))
    if best is not None:
        (path / "best.json").write_text(json.dumps({"step": best, "metric": "loss", "value": 0.1}))
    return path


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_saved_model_comes_back_whole(tmp_path: Path):
    model = trained()
    seen = {"stores": ["ab"], "subjects": ["s1"]}
    folder = save_pretrained(tmp_path / "deep" / "saved", model, CONFIG, CONTRACT, seen)
    encoder = from_pretrained(folder)
    assert same(encoder.model, model) and not encoder.model.training
    assert (encoder.config, encoder.name, encoder.seen) == (CONFIG, "himae", seen)
    assert encoder.contract == replace(CONTRACT, fingerprint=encoder.contract.fingerprint) and len(encoder.contract.fingerprint) == 16
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "contract.json", "model.safetensors", "seen.json"]
    assert [p.name for p in folder.parent.iterdir()] == ["saved"]
    assert encoder.features(torch.randn(3, 1, 50), CONTRACT.spec).shape == (3, 12)


def test_nothing_is_saved_over(tmp_path: Path):
    folder = save_pretrained(tmp_path / "saved", trained(), CONFIG, CONTRACT)
    with pytest.raises(FileExistsError, match="not empty"):
        save_pretrained(folder, trained(), CONFIG, CONTRACT)
    assert from_pretrained(folder).seen is None


@pytest.mark.parametrize(("best", "expected"), [(None, 20), (9, 9), (7, 20)])
def test_a_run_gives_its_best_step_else_its_last(tmp_path: Path, best: int | None, expected: int):
    models = {9: trained(1), 20: trained(2)}
    run = run_folder(tmp_path / "run", models, best)
    (run / "checkpoints" / "step_30").mkdir()  # a step that is not complete
    assert same(from_pretrained(run).model, models[expected])


def test_a_step_folder_is_read_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = trained()
    run = run_folder(tmp_path / "run", {5: model, 6: trained(1)})
    assert same(from_pretrained(run / "checkpoints" / "step_5").model, model)
    monkeypatch.chdir(run / "checkpoints")
    assert same(from_pretrained("step_5").model, model)


def test_damage_is_named(tmp_path: Path):
    run = run_folder(tmp_path / "run", {5: trained()})
    weights = run / "checkpoints" / "step_5" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + b"abcd")
    with pytest.raises(ValueError, match="SHA-256"):
        from_pretrained(run)
    (weights.parent / "meta.json").write_text("{}")
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        from_pretrained(run)
    (run / "contract.json").write_text("{")
    with pytest.raises(ValueError, match="no valid JSON"):
        from_pretrained(run)
    (run / "contract.json").unlink()
    with pytest.raises(ValueError, match=r"contract\.json is missing"):
        from_pretrained(run)


def test_weights_of_another_shape_are_named(tmp_path: Path):
    run = run_folder(tmp_path / "run", {5: build_untrained("himae", replace(CONFIG, widths=(4, 8, 16)))})
    with pytest.raises(ValueError, match=r"unexpected: decoder_layers\.1"):
        from_pretrained(run)


def test_weights_that_were_exchanged_do_not_give_the_fingerprint(tmp_path: Path):
    folder = save_pretrained(tmp_path / "saved", trained(), CONFIG, CONTRACT)
    weights = load_file(folder / "model.safetensors")
    weights["encoder_layers.1.main_path.0.weight"] *= 1.1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match="fingerprint"):
        from_pretrained(folder)
    from_pretrained(folder, verify=False)


def test_a_fingerprint_tolerates_rounding_alone():
    model = trained()
    numbers = fingerprint(model, CONTRACT)
    assert same_fingerprint(tuple(value * (1 + 1e-5) for value in numbers), numbers)
    assert not same_fingerprint(fingerprint(model, replace(CONTRACT, normalization="lead_zscore")), numbers)
    assert not same_fingerprint(
        fingerprint(model, replace(CONTRACT, polarity=-1, normalization="none")), fingerprint(model, replace(CONTRACT, normalization="none"))
    )


@pytest.mark.parametrize("path", ["absent", "empty", "no_step"])
def test_a_path_without_a_model_is_refused(tmp_path: Path, path: str):
    (tmp_path / "empty").mkdir()
    run_folder(tmp_path / "no_step", {})
    with pytest.raises(ValueError, match=r"is no folder|holds no model|saved no checkpoint"):
        from_pretrained(tmp_path / path)


def test_an_untrained_model_depends_on_its_seed_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = build_untrained("himae", CONFIG, 1)
    assert torch.equal(torch.rand(2), expected)
    assert same(first, build_untrained("himae", {"n_samples": 50, "widths": [4, 8]}, 1)) and not same(first, build_untrained("himae", CONFIG, 2))
    torch.manual_seed(1)
    assert same(first, CONFIG.build())
    encoder = untrained_encoder("himae", CONFIG, CONTRACT, 1)
    assert encoder.untrained and "untrained, seed 1" in encoder.source and same(encoder.model, first)


@pytest.mark.parametrize("changes", [{}, {"mask_input": "partial", "norm": "group"}, {"widths": (3, 5, 7), "skips": False}])
def test_a_config_survives_json(changes: dict):
    config = HiMaeConfig(**changes)
    assert config_from_document(json.loads(json.dumps(model_document(config)))) == config


def test_an_objective_survives_json():
    cls = resolve(OBJECTIVES, "masked_reconstruction")
    assert config_from_json(cls, {"mask_ratio": [0.2, 0.8], "patch": 10}) == cls(mask_ratio=(0.2, 0.8), patch=10)


def test_names_in_files_resolve_through_the_table_alone():
    with pytest.raises(ValueError, match="unknown name 'himea', did you mean 'himae'"):
        config_from_document({"name": "himea", "config": {}})
    with pytest.raises(ValueError, match="unknown name 'os:getcwd'"):
        config_from_document({"name": "os:getcwd", "config": {}})
    with pytest.raises(ValueError, match="has no key 'width', did you mean 'widths'"):
        config_from_document({"name": "himae", "config": {"width": [4]}})
    with pytest.raises(ValueError, match="no row of MODELS"):
        model_document(CONTRACT)


@pytest.mark.parametrize("table", [MODELS, OBJECTIVES])
def test_every_row_resolves_to_a_frozen_config(table: dict[str, str]):
    for name in table:
        assert resolve(table, name)() == resolve(table, name)()
    assert resolve({}, "physio_models.himae:HiMaeConfig", importable=True) is HiMaeConfig
