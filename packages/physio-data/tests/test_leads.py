import numpy as np
import pytest

from physio_data.leads import select_or_derive
from physio_data.recording import Recording


def limb(channels=("I", "II", "V1"), units=None):
    """Electrode potentials of the arms and the left leg, and leads I and II by their definitions."""
    rng = np.random.default_rng(0)
    right, left, foot = rng.standard_normal((3, 500))
    own = {"I": left - right, "II": foot - right, "V1": rng.standard_normal(500)}
    units = units or ("mV",) * len(channels)
    scale = {"mV": 1.0, "uV": 1000.0}
    x_CT = np.stack([own[name] * scale[unit] for name, unit in zip(channels, units, strict=True)])
    recording = Recording.from_array(x_CT, fs=100.0, channels=channels, units=units, subject="p", record="r")
    return recording, {"III": foot - left, "aVR": right - (left + foot) / 2, "aVL": left - (right + foot) / 2, "aVF": foot - (right + left) / 2, **own}


@pytest.mark.parametrize("units", [("mV", "mV", "mV"), ("uV", "mV", "mV")])
def test_derived_leads_are_those_of_the_electrodes(units):
    recording, truth = limb(units=units)
    names = ("V1", "III", "avr", "aVL", "aVF", "II")
    derived = select_or_derive(recording, names)
    assert derived.channels == ("V1", "III", "aVR", "aVL", "aVF", "II")
    for row, name in enumerate(derived.channels):
        scale = 1000.0 if units[0] == "uV" and name in ("III", "aVR", "aVL", "aVF") else 1.0
        np.testing.assert_allclose(derived.read(7, 300)[row], scale * truth[name][7:300], rtol=1e-4, atol=1e-4 * scale)


def test_a_lead_that_is_there_is_never_computed():
    recording, truth = limb()
    own = Recording.from_array(
        np.stack([truth["I"], truth["II"], np.zeros(500)]), fs=100.0, channels=("I", "II", "III"), units=("mV",) * 3, subject="p", record="r"
    )
    assert (select_or_derive(own, ("III",)).read() == 0).all()
    assert select_or_derive(recording, ("V1",)).channels == ("V1",)


def test_what_cannot_be_had_is_named():
    with pytest.raises(ValueError, match=r"has no channel 'V6'"):
        select_or_derive(limb()[0], ("III", "V6"))
    with pytest.raises(ValueError, match=r"III of record 'r' is computed from leads I and II .*no channel 'I'"):
        select_or_derive(limb(("II", "V1"))[0], ("III",))
    with pytest.raises(ValueError, match=r"cannot be converted"):
        bad = Recording.from_array(np.zeros((2, 9)), fs=1.0, channels=("I", "II"), units=("mV", "a.u."), subject="p", record="r")
        select_or_derive(bad, ("aVF",))


def test_gaps_stay_gaps():
    recording, _ = limb()
    x_CT = recording.read()
    x_CT[1, 20:30] = np.nan
    gappy = Recording.from_array(x_CT, fs=100.0, channels=recording.channels, units=recording.units, subject="p", record="r")
    out_CT = select_or_derive(gappy, ("III", "I")).read()
    assert np.isnan(out_CT[0]).sum() == 10 and np.isfinite(out_CT[1]).all()
