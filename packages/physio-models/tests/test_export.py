"""Exported folders: PyTorch's numbers without PyTorch, and a refusal of whatever does not fit."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from physio_models import MODELS, resolve
from physio_models.contract import ContractError, Encoder, InputContract
from physio_models.cwt import cwt, log_scales, real_filters
from physio_models.export import (
    DamagedFolderError,
    Exported,
    Head,
    LinearScores,
    UnsupportedOperatorError,
    _real_cwt,
    export_onnx,
    largest_difference,
)
from physio_models.export_int8 import CalibrationError, export_int8
from physio_models.himae import HiMaeConfig
from physio_models.interface import Encoded
from physio_models.normalize import NORMALIZERS, normalize, normalize_whole
from physio_models.pretrained import untrained_encoder
from physio_models.s4d import S4dConfig

pytest.importorskip("onnxruntime")

CONTRACT = InputContract(channels=("MLII", "V1"), units=("mV", "mV"), fs=100.0, window_s=2.56, band=(0.5, 40.0), normalization="lead_robust", kind="ecg")


def contract_for(config):
    n, n_samples = getattr(config, "n_channels", 1), getattr(config, "n_samples", 64)
    return InputContract(channels=tuple(f"c{i}" for i in range(n)), units=("mV",) * n, fs=100.0, window_s=n_samples / 100, normalization="lead_zscore")


def himae():
    encoder = untrained_encoder("himae", HiMaeConfig.preset("tiny", n_channels=2, n_samples=256), CONTRACT, seed=1)
    for part in encoder.model.modules():  # running statistics that folding must get right
        if isinstance(part, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(part.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
    return encoder


def windows(n, seed=0):
    rng = np.random.default_rng(seed)
    t_T = np.arange(256) / 100
    beat_NCT = np.exp(20 * (np.cos(2 * np.pi * rng.uniform(0.8, 2, (n, 2, 1)) * t_T + rng.uniform(0, 6, (n, 2, 1))) - 1))
    return (rng.uniform(0.2, 3, (n, 2, 1)) * beat_NCT + 0.05 * rng.standard_normal((n, 2, 256)) + rng.uniform(-2, 2, (n, 2, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An encoder with a linear head, its head's arrays, and the folder that it was exported to."""
    encoder, rng = himae(), np.random.default_rng(3)
    arrays = {"mean_D": rng.normal(size=56), "scale_D": rng.uniform(0.5, 2, 56), "coef_DK": rng.normal(size=(56, 1)), "intercept_K": rng.normal(size=1)}
    arrays["scale_D"][5] = np.inf
    head = Head(module=LinearScores(level="all", pool="mean", kind="binary", **arrays), task="pvc", kind="binary", classes=("pvc",), thresholds=(0.4,))
    return encoder, arrays, export_onnx(encoder, tmp_path_factory.mktemp("exported") / "himae", head=head, card="# A card")


def test_the_graph_gives_pytorch_s_embeddings_and_the_head_s_scores_for_any_batch(made):
    encoder, arrays, folder = made
    exported = Exported(folder)
    for n in (1, 2, 17):
        x_NCT = windows(n)
        with torch.no_grad():
            expected = encoder(x_NCT, CONTRACT.spec)
        given = exported(x_NCT, CONTRACT.spec)
        assert largest_difference(expected.pooled_BD.numpy(), given["embedding"]) < 1e-5
        z_ND = np.concatenate([level.mean(1).double().numpy() for level in expected.levels.values()], axis=1)
        logit_NK = (z_ND - arrays["mean_D"]) / arrays["scale_D"] @ arrays["coef_DK"] + arrays["intercept_K"]
        assert np.abs(given["scores"] - 1 / (1 + np.exp(-logit_NK))).max() < 1e-5


def test_input_is_arranged_and_refused_as_by_the_encoder(made):
    folder = made[2]
    exported, x_NCT = Exported(folder), windows(3)
    turned = replace(CONTRACT.spec, channels=("v1", "ECG MLII"), units=("uV", "mV"))
    x_turned = np.stack([x_NCT[:, 1] * 1000, x_NCT[:, 0]], axis=1)
    assert np.abs(exported(x_turned, turned)["embedding"] - exported(x_NCT, CONTRACT.spec)["embedding"]).max() < 1e-5
    with pytest.raises(ContractError, match="--fs 100"):
        exported(x_NCT, replace(CONTRACT.spec, fs=250.0))
    with pytest.raises(ValueError, match="not finite in item 1"):
        exported(np.where(np.arange(3)[:, None, None] == 1, np.nan, x_NCT), CONTRACT.spec)


def test_norms_are_folded_and_the_batch_is_free(made):
    import onnx

    graph = onnx.load(made[2] / "model.onnx").graph
    assert not [node for node in graph.node if node.op_type == "BatchNormalization"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_the_readme_s_ten_lines_give_the_golden_output_where_torch_cannot_be_imported(made):
    lines = re.search(r"```python\n(.*?)```", (made[2] / "README.md").read_text(), re.S)[1]
    assert len(lines.strip().splitlines()) == 10
    barred = "import sys\nfor name in ('torch', 'physio_models', 'scipy'): sys.modules[name] = None\n"
    said = subprocess.run([sys.executable, "-c", barred + lines], cwd=made[2], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    difference = eval(said.stdout, {"__builtins__": {}})
    assert set(difference) == {"embedding", "scores"} and max(difference.values()) < 1e-4
    with np.load(made[2] / "golden.npz") as golden:  # and what is golden is PyTorch's
        expected = made[0](golden["input"][:, ::-1].copy(), CONTRACT.spec).pooled_BD.numpy()
        assert np.abs(golden["embedding"] - expected).max() < 1e-6
        assert golden["channels"].tolist() == ["V1", "MLII"]


def test_labels_and_card_go_along(made):
    assert json.loads((made[2] / "labels.json").read_text()) == {"task": "pvc", "kind": "binary", "classes": ["pvc"], "thresholds": [0.4]}
    assert (made[2] / "MODEL_CARD.md").read_text() == "# A card\n"


@pytest.mark.parametrize("damage", ["truncated", "exchanged", "missing", "contract"])
def test_a_damaged_folder_is_refused(made, tmp_path, damage):
    folder = shutil.copytree(made[2], tmp_path / "copy")
    model = folder / "model.onnx"
    if damage == "missing":
        model.unlink()
    elif damage == "contract":
        (folder / "contract.json").write_text("{")
    else:
        model.write_bytes(model.read_bytes()[:-500] if damage == "truncated" else model.read_bytes() + b"\0")
    with pytest.raises(DamagedFolderError, match="lacks model.onnx" if damage == "missing" else "export (it|the model) again"):
        Exported(folder)


def test_a_truncated_file_whose_hash_was_made_to_fit_is_refused_too(made, tmp_path):
    import hashlib

    folder = shutil.copytree(made[2], tmp_path / "copy")
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-500])
    document = json.loads((folder / "contract.json").read_text())
    document["model"]["sha256"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "contract.json").write_text(json.dumps(document))
    with pytest.raises(DamagedFolderError, match="truncated or no ONNX file"):
        Exported(folder)


def test_int8_stays_near_float_and_says_what_stays_in_float(made, tmp_path):
    report = export_int8(made[2], tmp_path / "int8", windows(96), tolerance=0.1)
    exact, rounded, x_NCT = Exported(made[2]), Exported(tmp_path / "int8"), windows(64, seed=9)
    assert report.n_quantized > 0 and report.error <= 0.1 and len(report.alone) == report.n_quantized + len(report.kept_float)
    scores, expected = rounded(x_NCT, CONTRACT.spec)["scores"], exact(x_NCT, CONTRACT.spec)["scores"]
    assert 0 < np.abs(scores - expected).max() < 0.1
    assert rounded.golden_difference() < 1e-6 and rounded.precision == "int8"
    assert "Eight-bit integers" in (tmp_path / "int8" / "MODEL_CARD.md").read_text()
    assert (tmp_path / "int8" / "model.onnx").stat().st_size < (made[2] / "model.onnx").stat().st_size


def test_int8_leaves_the_most_sensitive_layers_in_float(made, tmp_path):
    loose = export_int8(made[2], tmp_path / "loose", windows(64), tolerance=0.5)
    tight = export_int8(made[2], tmp_path / "tight", windows(64), tolerance=loose.error * 0.7)
    worst = sorted(tight.alone, key=tight.alone.get, reverse=True)[: len(tight.kept_float)]
    assert tight.kept_float and set(tight.kept_float) == set(worst) and tight.error <= loose.error * 0.7


@pytest.mark.parametrize("given", [None, np.empty((0, 2, 256), np.float32)])
def test_int8_without_calibration_windows_is_refused(made, tmp_path, given):
    with pytest.raises(CalibrationError, match="--data STORE"):
        export_int8(made[2], tmp_path / "int8", given)
    assert not (tmp_path / "int8").exists()


class Spectral(torch.nn.Module):
    """A network whose features are eigenvalues."""

    level_names = ("block1",)

    def __init__(self):
        super().__init__()
        self.cfg, self.gain = HiMaeConfig(n_channels=2, n_samples=256), torch.nn.Parameter(torch.ones(1))

    def encode(self, x_BCT, **_):
        y_BCT = torch.linalg.eigvalsh(x_BCT @ x_BCT.transpose(1, 2))[:, None] * self.gain
        return Encoded(y_BCT, y_BCT.mean(1), {"block1": y_BCT})


def test_an_operator_without_counterpart_is_named(tmp_path):
    with pytest.raises(UnsupportedOperatorError, match="linalg_eigh"):
        export_onnx(Encoder(Spectral(), CONTRACT), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Halving(Spectral):
    """A network that pads with a zero before it takes maxima of negative numbers."""

    def encode(self, x_BCT, **_):
        y_BCT = torch.nn.functional.max_pool1d(torch.nn.functional.pad(-x_BCT.abs()[..., :255] - 1, (0, 1)), 2) * self.gain
        return Encoded(y_BCT.transpose(1, 2), y_BCT[..., -8:].flatten(1), {"block1": y_BCT.transpose(1, 2)})


def test_a_zero_before_a_maximum_stays_a_zero(tmp_path):
    encoder, x_NCT = Encoder(Halving(), CONTRACT), windows(3)
    given = Exported(export_onnx(encoder, tmp_path / "out"))(x_NCT, CONTRACT.spec)["embedding"]
    assert np.abs(given - encoder(x_NCT, CONTRACT.spec).pooled_BD.numpy()).max() < 1e-6
    assert not given[:, [7, 15]].any()  # the last of each channel met the zero


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another folder"):
        export_onnx(himae(), tmp_path)


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
def test_normalisation_inside_the_graph_is_the_one_outside(name):
    x_BCT = torch.from_numpy(windows(4))
    x_BCT[0, 1] = 3.0
    fixed = ((0.5, -1.0), (2.0, 0.1)) if name == "fixed" else None
    assert torch.equal(normalize_whole(x_BCT, name, fixed), normalize(x_BCT, name, None, fixed)[0])


@pytest.mark.parametrize(("wavelet", "definition"), [("ricker", "pywt"), ("ricker", "reference"), ("morlet", "pywt"), ("morlet_real", "pywt")])
def test_wavelet_transforms_by_convolution_are_those_by_fft(wavelet, definition):
    x_BL = torch.randn(3, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scales = log_scales(12, (0.7, 30.0), 100.0, wavelet)
    exact = cwt(x_BL, scales, wavelet=wavelet, definition=definition, output="magnitude")
    given = _real_cwt(x_BL, scales, wavelet=wavelet, definition=definition, output="magnitude")
    assert float((given - exact).abs().max() / exact.abs().max()) < 2e-6
    assert sum(len(taps) for taps, _ in real_filters(tuple(scales), wavelet, definition, 200)) == 12


def test_state_space_layers_by_convolution_are_those_by_fft():
    from physio_models.export import _exportable

    torch.manual_seed(0)
    model, x_BCT = S4dConfig.preset("tiny").build().eval(), torch.randn(2, S4dConfig.preset("tiny").n_channels, S4dConfig.preset("tiny").n_samples)
    with torch.no_grad():
        torch.testing.assert_close(_exportable(model).encode(x_BCT).pooled_BD, model.encode(x_BCT).pooled_BD, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_exports_and_gives_its_own_numbers(name, tmp_path):
    config = resolve(MODELS, name).preset("tiny")
    encoder = untrained_encoder(name, config, contract_for(config))
    exported = Exported(export_onnx(encoder, tmp_path / name))
    draw = torch.Generator().manual_seed(0)
    if config.input == "tokens":
        x = torch.randint(0, config.n_ids, (5, config.n_positions), generator=draw)
        with torch.no_grad():
            expected = encoder.model.encode(x).pooled_BD.numpy()
        given = exported.run(x.numpy())["embedding"]
    else:
        x = torch.randn(5, config.n_channels, config.n_samples, generator=draw).cumsum(-1)
        expected, given = encoder(x, exported.contract.spec).pooled_BD.numpy(), exported(x.numpy(), exported.contract.spec)["embedding"]
    assert largest_difference(expected, given) <= 1e-4
