import pytest

from physio_data.montage import POSITIONS, canonical_eeg
from physio_data.recording import Recording, canonical_lead


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("EEG FPZ-CZ", "Fpz-Cz"),
        ("EEG Fpz-Cz", "Fpz-Cz"),
        ("EEG Fp1-REF", "Fp1"),
        ("fp1.", "Fp1"),
        ("Fc5.", "FC5"),
        ("T3", "T7"),
        ("EEG T6-LE", "P8"),
        ("EEG C3-A2", "C3-A2"),
        ("eeg_O1", "O1"),
        ("T5-O1", "P7-O1"),
    ],
)
def test_positions_have_one_spelling(written, name):
    assert canonical_eeg(written) == name and canonical_lead(written) == name


@pytest.mark.parametrize("written", ["EEG", "EMG submental", "EOG horizontal", "Temp rectal", "PLETH", "ECG", "C3-X", "I-II", "V1", "II", ""])
def test_what_names_no_position_is_none(written):
    assert canonical_eeg(written) is None


def test_positions_do_not_repeat_and_leads_of_the_ecg_stay_leads():
    assert len(set(POSITIONS)) == len(POSITIONS)
    assert canonical_lead("avf") == "aVF" and canonical_lead("ML II") == "MLII" and canonical_lead("EOG horizontal") == "EOG horizontal"


def test_channels_are_selected_by_any_spelling():
    recording = Recording.from_array([[1.0], [2.0]], fs=1, channels=("EEG T3-REF", "EEG Fpz-Cz"), units=("uV", "uV"), subject="s", record="r")
    chosen = recording.select(["fpz-cz", "T7"])
    assert chosen.channels == ("Fpz-Cz", "T7") and chosen.read().ravel().tolist() == [2.0, 1.0]
