"""Files to Recordings: one module a format, one function that picks it by suffix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from physio_data.recording import Recording

_WFDB, _TEXT, _HDF5 = (".hea", ".dat", ".mat"), (".csv", ".tsv", ".txt"), (".h5", ".hdf5")


def open_recording(
    path: str | os.PathLike[str],
    *,
    source_fs: float | None = None,
    subject: str | None = None,
    channels: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    annotation: str | None = "atr",
    dataset: str | None = None,
) -> Recording:
    """Open one file as a Recording, by suffix: WFDB (.hea, .dat, .mat, or no suffix), delimited text (.csv, .tsv, .txt), HDF5 (.h5, .hdf5).

    ``source_fs`` (Hz) is the rate of a text or HDF5 file that states none, ``subject`` the subject's id (default: the file's
    stem), ``channels`` and ``units`` name what a text or HDF5 file leaves unnamed, ``annotation`` the extension of the WFDB
    annotation file (``None``: none), ``dataset`` the path inside an HDF5 file that holds several.

    ``ValueError`` names the file and the remedy when it is absent, truncated, without a rate, or of an unknown format.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _TEXT:
        from physio_data.formats.csv import open_csv

        return open_csv(path, source_fs=source_fs, subject=subject, channels=channels, units=units)
    if suffix in _HDF5:
        from physio_data.formats.hdf5 import open_hdf5

        return open_hdf5(path, dataset=dataset, source_fs=source_fs, subject=subject, channels=channels, units=units)
    if suffix in _WFDB or Path(f"{path}.hea").is_file():
        from physio_data.formats.wfdb import open_wfdb

        if channels is not None or units is not None:
            raise ValueError(f"{path}: a WFDB header names its channels and units; leave the arguments channels and units out and use Recording.select")
        return open_wfdb(path, subject=subject, annotation=annotation, source_fs=source_fs)
    known = ", ".join((*_WFDB, *_TEXT, *_HDF5))
    raise ValueError(f"{path}: no format has the suffix {suffix!r}, and there is no header {path.name}.hea beside it; known are {known}")
