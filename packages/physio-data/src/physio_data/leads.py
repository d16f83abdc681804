"""Leads of the 12-lead ECG that follow from others: computed on request only, from leads I and II. C channels, T samples.

Einthoven 1912: I + III = II. Goldberger 1942: an augmented lead is a limb electrode against the mean of the other two, hence
aVR = -(I + II)/2, aVL = I - II/2, aVF = II - I/2. They hold on physical values only, never after a normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from physio_data.recording import Reader, Recording, canonical_lead
from physio_data.units import unit_gain

# lead -> (weight of I, weight of II)
FROM_I_AND_II = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}


def select_or_derive(recording: Recording, names: Sequence[str]) -> Recording:
    """``recording.select(names)`` where III, aVR, aVL and aVF are computed from I and II if the record lacks them.

    A lead that the record has is taken from it. ``ValueError`` for any other absent lead, and where I or II is absent or in a unit that
    cannot be added.
    """
    there = {canonical_lead(channel).lower() for channel in recording.channels}
    absent = [name for name in names if canonical_lead(name).lower() not in there and name not in recording.channels]
    derivable = [name for name in absent if canonical_lead(name) in FROM_I_AND_II]
    if len(derivable) < len(absent):
        return recording.select([name for name in absent if name not in derivable])  # which says that it is absent
    if not derivable:
        return recording.select(names)
    own = [name for name in names if name not in derivable]
    sources = own + [name for name in ("I", "II") if canonical_lead(name) not in map(canonical_lead, own)]
    try:
        source = recording.select(sources)
    except ValueError as error:
        raise ValueError(f"{', '.join(derivable)} of record {recording.record!r} is computed from leads I and II ({error})") from None
    one, two = source.channels.index("I"), source.channels.index("II")
    gain = unit_gain(source.units[two], source.units[one])
    weights = np.zeros((len(names), len(sources)))
    units = []
    for row, name in enumerate(names):
        if name in derivable:
            weights[row, one], weights[row, two] = np.multiply(FROM_I_AND_II[canonical_lead(name)], (1.0, gain))
            units.append(source.units[one])
        else:
            column = own.index(name)
            weights[row, column] = 1.0
            units.append(source.units[column])
    return replace(source, channels=tuple(canonical_lead(name) for name in names), units=tuple(units), reader=_Mixed(source.reader, weights))


@dataclass(frozen=True, eq=False)
class _Mixed:
    """Channels as weighted sums of another reader's; a channel of weight 1 is passed on as it is, gaps included."""

    reader: Reader
    weights: np.ndarray

    def __call__(self, start: int, stop: int) -> np.ndarray:
        x_CT = self.reader(start, stop)
        out_CT = np.empty((len(self.weights), x_CT.shape[1]), np.float32)
        for row, weight in enumerate(self.weights):
            used = np.flatnonzero(weight)
            out_CT[row] = x_CT[used[0]] if weight[used].tolist() == [1.0] else (weight[used, None] * x_CT[used].astype(np.float64)).sum(0)
        return out_CT
