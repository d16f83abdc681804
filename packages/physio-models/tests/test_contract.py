import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from physio_models.contract import ANY, ContractError, Encoder, InputContract, SignalSpec, unit_factor
from physio_models.himae import HiMaeConfig
from physio_models.pooling import pool_levels

CONTRACT = InputContract(channels=("II", "V5"), units=("mV", "mV"), fs=100.0, window_s=1.0, band=(0.5, 40.0), normalization="lead_zscore", kind="ecg")
FITS = SignalSpec(channels=("II", "V5"), units=("mV", "mV"), fs=100.0, n_samples=100, band=(0.5, 40.0), kind="ecg")


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(HiMaeConfig(n_channels=2, n_samples=100, widths=(4, 8)).build(), CONTRACT)


def signal(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 2, 100, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("change", "given", "mend"),
    [
        ({"fs": 250.0}, "rate is 250 Hz, the model needs 100 Hz", "--fs 100"),
        ({"n_samples": 90}, r"window is 90 samples \(0.9 s\), the model needs 100 samples \(1 s\)", "--window-s 1"),
        ({"channels": ("II", "V1")}, "misses V5", "--leads II,V5"),
        ({"band": None}, "band is unfiltered, the model needs 0.5-40 Hz", "--band 0.5,40"),
        ({"band": (0.5, 30.0)}, "band is 0.5-30 Hz", "--band 0.5,40"),
        ({"filter": "papagei"}, "filter is papagei, the model needs butterworth", "--filter butterworth"),
        ({"notch_hz": 50.0}, "the input has a notch at 50 Hz, the model needs no notch", "without --notch-hz"),
        ({"units": ("mV", "a.u.")}, "unit of V5 is 'a.u.', the model needs 'mV'", "convert the signal"),
        ({"kind": "ppg"}, "signal is ppg, the model needs ecg", "use a store of ecg"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_mends_it(encoder: Encoder, change: dict, given: str, mend: str):
    spec = replace(FITS, **change)
    with pytest.raises(ContractError, match=given) as error:
        encoder(torch.zeros(1, len(spec.channels), spec.n_samples), spec)
    assert mend in str(error.value)


def test_one_message_names_everything_that_is_wrong():
    with pytest.raises(ContractError, match=r"prepare\.py \.\.\. --leads II,V5 --fs 100 --band 0\.5,40$"):
        CONTRACT.check(replace(FITS, channels=("I", "V1"), fs=360.0, band=(0.1, 40.0)))


def test_channels_are_taken_by_name_whatever_their_order_case_and_company(encoder: Encoder):
    x_BCT = signal()
    mixed = torch.stack([torch.full((3, 100), 9.0), x_BCT[:, 1], x_BCT[:, 0]], dim=1)
    spec = replace(FITS, channels=("I", "v5", "ECG lead ii"), units=("mV",) * 3)
    torch.testing.assert_close(encoder(mixed, spec).pooled_BD, encoder(x_BCT, FITS).pooled_BD)


def test_aliases_stand_for_a_channel():
    contract = replace(CONTRACT, aliases={"II": ("MLII",)})
    assert contract.check(replace(FITS, channels=("V5", "mlii"))).order == (1, 0)


def test_units_of_voltage_convert(encoder: Encoder):
    x_BCT = signal()
    fixed = Encoder(encoder.model, replace(CONTRACT, normalization="fixed", fixed=(0.1, 2.0)))
    expected = ((x_BCT.double() - 0.1) / 2).float()
    for factor, units in ((1000.0, ("uV", "µV")), (0.001, ("V", "V")), (1.0, ("mv", "mV"))):
        y_BCT, _, _ = fixed.prepare(x_BCT * factor, replace(FITS, units=units))
        torch.testing.assert_close(y_BCT, expected)


@pytest.mark.parametrize(
    ("given", "needed", "factor"),
    [("uV", "mV", 1e-3), ("V", "uV", 1e6), ("NU", "a.u.", 1.0), ("mmHg", ANY, 1.0), ("mmHg", "mV", None), ("normalised", "mV", None)],
)
def test_unit_factors(given: str, needed: str, factor: float | None):
    assert unit_factor(given, needed) == (factor if factor is None else pytest.approx(factor))


def test_an_inverted_recording_is_turned_over(encoder: Encoder):
    x_BCT = signal()
    torch.testing.assert_close(encoder(-x_BCT, replace(FITS, polarity=-1)).pooled_BD, encoder(x_BCT, FITS).pooled_BD)


def test_a_length_free_contract_takes_any_window_at_its_rate():
    contract = replace(CONTRACT, length_free=True)
    contract.check(replace(FITS, n_samples=333))
    with pytest.raises(ContractError, match="rate"):
        contract.check(replace(FITS, n_samples=333, fs=333.0))


def test_any_fixes_neither_unit_nor_band():
    replace(CONTRACT, band=ANY, units=(ANY, ANY)).check(replace(FITS, band=None, notch_hz=50.0, units=("a.u.", "bananas")))
    replace(CONTRACT, filter=ANY).check(replace(FITS, filter="papagei"))
    replace(CONTRACT, band=None, filter="papagei").check(replace(FITS, band=None))  # nothing was filtered


def test_a_models_own_notch_is_asked_for():
    with pytest.raises(ContractError, match=r"no notch, the model needs a notch at 60 Hz; prepare the data with: prepare\.py \.\.\. --notch-hz 60$"):
        replace(CONTRACT, notch_hz=60.0).check(FITS)
    assert replace(CONTRACT, notch_hz=60.0, filter="papagei").spec == replace(FITS, notch_hz=60.0, filter="papagei")


def test_the_encoder_normalises_and_leaves_the_model_as_it_was(encoder: Encoder):
    encoder.model.train()
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    x_BCT = signal() * 40 + 7
    encoded = encoder(x_BCT.numpy(), FITS)
    assert encoder.model.training and not encoded.pooled_BD.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in encoder.model.state_dict().items())
    z_BCT = x_BCT.numpy().astype(np.float64)
    z_BCT = (z_BCT - z_BCT.mean(-1, keepdims=True)) / (z_BCT.std(-1, keepdims=True) + 1e-6)
    torch.testing.assert_close(encoded.pooled_BD, encoder.model.eval().encode(torch.from_numpy(z_BCT).float()).pooled_BD.detach(), atol=1e-5, rtol=1e-4)


def test_features_leave_out_a_short_tail(encoder: Encoder):
    x_BCT, valid_BT = signal(), (torch.arange(100) < 61).expand(3, 100)
    cut = Encoder(encoder.model, replace(CONTRACT, length_free=True))(x_BCT[..., :61], replace(FITS, n_samples=61))
    features = encoder.features(x_BCT, FITS, level="all", pool="mean+max+std", valid_BT=valid_BT.numpy())
    torch.testing.assert_close(features, pool_levels(cut, "all", "mean+max+std"))


def test_a_signal_that_is_not_what_its_spec_says_is_refused(encoder: Encoder):
    with pytest.raises(ContractError, match=r"\(batch, 2, 100\)"):
        encoder(torch.zeros(1, 100, 2), FITS)


def test_a_contract_for_another_number_of_channels_is_refused(encoder: Encoder):
    with pytest.raises(ContractError, match="the model has 2"):
        Encoder(encoder.model, replace(CONTRACT, channels=("II",), units=("mV",)))


@pytest.mark.parametrize(
    "contract", [CONTRACT, replace(CONTRACT, band=None, normalization="fixed", fixed=((0.0, 1.0), 2.0), aliases={"II": ("MLII",)}, fingerprint=(1.5, -2.0))]
)
def test_a_contract_survives_json(contract: InputContract):
    assert InputContract.from_json(json.dumps(contract.to_json())) == contract


def test_an_unknown_or_missing_key_is_named():
    with pytest.raises(ValueError, match="unknown key 'windows_s', did you mean 'window_s'"):
        InputContract.from_json(CONTRACT.to_json() | {"windows_s": 3})
    with pytest.raises(ValueError, match="lacks units, fs"):
        InputContract.from_json({"channels": ["II"], "window_s": 1.0})


@pytest.mark.parametrize(
    "bad",
    [
        {"channels": ("II",)},
        {"channels": ("II", "ii")},
        {"channels": "II"},
        {"fs": 0.0},
        {"fs": float("nan")},
        {"window_s": -1.0},
        {"band": (0.5,)},
        {"polarity": 0},
        {"normalization": "minmax"},
        {"normalization": "fixed"},
        {"aliases": {"V9": ("x",)}},
    ],
)
def test_a_contract_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(CONTRACT, **bad)


@pytest.mark.parametrize("bad", [{"n_samples": 0}, {"band": ANY}, {"units": ("mV",)}])
def test_a_spec_checks_itself(bad: dict):
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(FITS, **bad)
