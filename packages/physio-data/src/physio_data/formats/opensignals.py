"""Files of the OpenSignals recorder (biosignalsplux, BITalino): HDF5 with one group a device, and text under a JSON header.

Both hold the converter's raw counts; they are handed out as they are, in ``a.u.``, under the name of the sensor.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from physio_data.formats.hdf5 import open_h5, text
from physio_data.recording import Recording

_TEXT_MARK = "OpenSignals Text File Format"


def is_opensignals(path: Path) -> bool:
    """An HDF5 file of whose root every group is a device with a rate and raw channels."""
    with open_h5(path) as file:
        devices = [item for item in file.values() if isinstance(item, h5py.Group)]
        return bool(devices) and all("sampling rate" in device.attrs and "raw" in device for device in devices)


def open_opensignals(path: Path, *, subject: str | None = None) -> Recording:
    """Every sensor channel of a vendor HDF5 file, read by range; ``ValueError`` where devices differ in rate or length."""
    names, paths, rates, lengths = [], [], set(), set()
    with open_h5(path) as file:
        for device in file.values():
            raw = device["raw"]
            for key in sorted((key for key in raw if key.startswith("channel_")), key=lambda key: int(key.rpartition("_")[2])):
                names.append(text(raw[key].attrs.get("sensor", "")) or text(raw[key].attrs.get("label", key)))
                paths.append(raw[key].name)
                lengths.add(raw[key].shape[0])
            rates.add(float(device.attrs["sampling rate"]))
    if not names:
        raise ValueError(f"{path}: an OpenSignals file without a channel under /raw; record or export it again")
    if len(rates) > 1 or len(lengths) > 1:
        raise ValueError(f"{path}: its devices differ in rate {sorted(rates)} or length {sorted(lengths)}; export each device to a file of its own")
    return Recording(
        fs=rates.pop(),
        channels=numbered(names),
        units=("a.u.",) * len(names),
        n_samples=lengths.pop(),
        subject=subject or path.stem,
        record=path.stem,
        reader=OpenSignalsReader(str(path), tuple(paths)),
    )


@dataclass(frozen=True)
class OpenSignalsReader:
    """Reads a range of the raw counts of every channel."""

    path: str
    datasets: tuple[str, ...]

    def __call__(self, start: int, stop: int) -> np.ndarray:
        with open_h5(self.path) as file:
            return np.stack([np.asarray(file[name][start:stop, 0], np.float32) for name in self.datasets])


def text_columns(path: Path, comments: Sequence[str]) -> tuple[list[str], list[int]] | None:
    """(sensor names, their columns) from the JSON header of a text export, leaving sequence number and digital lines out; None for other files."""
    if not comments or comments[0] != _TEXT_MARK:
        return None
    try:
        devices = list(json.loads(comments[1]).values())
        columns = [column for device in devices for column in device["column"]]
        sensors = [sensor for device in devices for sensor in device["sensor"]]
        labels = [label for device in devices for label in device["label"]]
    except (IndexError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}, line 2: not the header of an OpenSignals text file ({error}); export it again") from error
    at = [i for i, column in enumerate(columns) if column in labels]
    if len(at) != len(sensors):
        raise ValueError(f"{path}, line 2: {len(sensors)} sensors and {len(at)} columns named {', '.join(labels)}; export it again")
    return list(numbered(sensors)), at


def numbered(names: Sequence[str]) -> tuple[str, ...]:
    """A repeated name gets its turn: EMG, EMG_2, EMG_3."""
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        seen[name] += 1
        out.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(out)
