"""Units: one spelling each, and the factor between two that measure the same."""

from __future__ import annotations

_SPELLING = {"mv": "mV", "uv": "uV", "µv": "uV", "μv": "uV", "v": "V", "nv": "nV", "mmhg": "mmHg", "": "a.u.", "au": "a.u.", "a.u.": "a.u.", "nu": "a.u."}
_IN_BASE = {"V": ("V", 1.0), "mV": ("V", 1e-3), "uV": ("V", 1e-6), "nV": ("V", 1e-9), "s": ("s", 1.0), "ms": ("s", 1e-3), "kPa": ("Pa", 1e3), "Pa": ("Pa", 1.0)}
_IN_BASE |= {"mmHg": ("Pa", 133.322387415), "cmH2O": ("Pa", 98.0665), "degC": ("degC", 1.0), "S": ("S", 1.0), "mS": ("S", 1e-3), "uS": ("S", 1e-6)}


def same_unit(unit: str) -> str:
    """The one spelling of a unit: ``mv`` -> ``mV``, ``µV`` -> ``uV``, nothing -> ``a.u.``. An unknown unit stays as written."""
    unit = unit.strip()
    return _SPELLING.get(unit.lower(), unit)


def unit_gain(have: str, want: str) -> float:
    """The factor that turns values in ``have`` into values in ``want``; ``ValueError`` where they measure different things or are unknown."""
    have, want = same_unit(have), same_unit(want)
    if have == want:
        return 1.0
    if have in _IN_BASE and want in _IN_BASE and _IN_BASE[have][0] == _IN_BASE[want][0]:
        return _IN_BASE[have][1] / _IN_BASE[want][1]
    raise ValueError(f"{have!r} cannot be converted to {want!r}; convertible are volts, pascals (mmHg), seconds and siemens among themselves")
