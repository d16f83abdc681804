"""EEG channel names: the positions of the 10-20 system in one spelling, whatever prefix, case, older name or reference a file writes.

Positions after the ten-ten extension of Oostenveld and Praamstra 2001 (Clin Neurophysiol 112:713); T3, T4, T5 and T6 are the older names of T7,
T8, P7 and P8 (Klem et al. 1999, Electroencephalogr Clin Neurophysiol Suppl 52:3).
"""

from __future__ import annotations

import re

_ROWS = {
    "Fp": ("1", "z", "2"),
    "AF": ("7", "3", "z", "4", "8"),
    "F": ("9", "7", "5", "3", "1", "z", "2", "4", "6", "8", "10"),
    "FT": ("9", "7", "8", "10"),
    "FC": ("5", "3", "1", "z", "2", "4", "6"),
    "T": ("9", "7", "8", "10"),
    "C": ("5", "3", "1", "z", "2", "4", "6"),
    "TP": ("9", "7", "8", "10"),
    "CP": ("5", "3", "1", "z", "2", "4", "6"),
    "P": ("9", "7", "5", "3", "1", "z", "2", "4", "6", "8", "10"),
    "PO": ("7", "3", "z", "4", "8"),
    "O": ("1", "z", "2"),
}
POSITIONS = (*(f"{row}{column}" for row, columns in _ROWS.items() for column in columns), "Nz", "Iz", "A1", "A2", "M1", "M2")
OLDER_NAMES = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
_SPELLING = {name.lower(): name for name in POSITIONS} | {old.lower(): new for old, new in OLDER_NAMES.items()}
_REFERENCES = frozenset({"ref", "avg", "ar", "le", "cle", "lle"})  # common references: the position alone names the channel


def canonical_eeg(name: str) -> str | None:
    """``EEG FPZ-CZ`` -> ``Fpz-Cz``, ``EEG Fp1-REF`` and ``fp1.`` -> ``Fp1``, ``T3`` -> ``T7``; None where no position is named.

    A derivation keeps its reference when that is a position too (ear lobes A1, A2 and mastoids M1, M2 included).
    """
    text = re.sub(r"^\s*eeg[\s:_-]*", "", name.strip(), flags=re.IGNORECASE).rstrip(". ")
    parts = [part.strip().lower() for part in re.split(r"[-–/]", text)]
    if len(parts) == 2 and parts[1] in _REFERENCES:
        parts = parts[:1]
    if not 1 <= len(parts) <= 2 or any(part not in _SPELLING for part in parts):
        return None
    return "-".join(_SPELLING[part] for part in parts)
