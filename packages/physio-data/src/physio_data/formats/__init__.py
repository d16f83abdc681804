"""Files to Recordings: one module a format, one function that picks it by suffix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from physio_data.recording import Recording

_WFDB, _TEXT, _HDF5, _EDF, _NUMPY = (".hea", ".dat"), (".csv", ".tsv", ".txt"), (".h5", ".hdf5"), (".edf", ".bdf"), (".npy", ".npz")


def open_recording(
    path: str | os.PathLike[str],
    *,
    source_fs: float | None = None,
    subject: str | None = None,
    channels: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    annotation: str | None = "atr",
    dataset: str | None = None,
    axes: str | None = None,
) -> Recording:
    """Open one file as a Recording, by suffix.

    WFDB (.hea, .dat, .mat beside a .hea, or no suffix), delimited text (.csv, .tsv, .txt), HDF5 (.h5, .hdf5; also OpenSignals'), MATLAB
    (.mat), EDF and BDF, NumPy (.npy, .npz). ``source_fs`` (Hz) is the rate of a file that states none, ``subject`` the subject's id
    (default: the file's stem), ``channels`` and ``units`` name what a file leaves unnamed, ``annotation`` the extension of the WFDB
    annotation file (``None``: none), ``dataset`` the array inside a file that holds several, ``axes`` ("CT", the default, or "TC") how a
    matrix of HDF5, MATLAB or NumPy lies.

    ``ValueError`` names the file and the remedy when it is absent, truncated, without a rate, of an unknown format, or where an argument
    has no use for its format.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    rest = {"dataset": dataset, "axes": axes}
    if suffix in _TEXT:
        from physio_data.formats.csv import open_csv

        _refuse(path, "a text file", **rest)
        return open_csv(path, source_fs=source_fs, subject=subject, channels=channels, units=units)
    arguments = {"source_fs": source_fs, "subject": subject, "channels": channels, "units": units, "dataset": dataset, "axes": axes or "CT"}
    if suffix in _HDF5:
        from physio_data.formats.hdf5 import open_hdf5
        from physio_data.formats.opensignals import is_opensignals, open_opensignals

        if dataset is None and is_opensignals(path):
            _refuse(path, "an OpenSignals file", source_fs=source_fs, channels=channels, units=units, axes=axes)
            return open_opensignals(path, subject=subject)
        return open_hdf5(path, **arguments)
    if suffix in _EDF:
        from physio_data.formats.edf import open_edf

        _refuse(path, "an EDF file", source_fs=source_fs, channels=channels, units=units, **rest)
        return open_edf(path, subject=subject)
    if suffix in _NUMPY:
        from physio_data.formats.npy import open_npy

        return open_npy(path, **arguments)
    if suffix == ".mat" and not path.with_suffix(".hea").is_file():
        from physio_data.formats.mat import open_mat

        return open_mat(path, **arguments)
    if suffix in (*_WFDB, ".mat") or Path(f"{path}.hea").is_file():
        from physio_data.formats.wfdb import open_wfdb

        _refuse(path, "a WFDB record", channels=channels, units=units, **rest)
        return open_wfdb(path, subject=subject, annotation=annotation, source_fs=source_fs)
    known = ", ".join((*_WFDB, ".mat", *_TEXT, *_HDF5, *_EDF, *_NUMPY))
    if not path.exists():
        raise ValueError(f"{path}: there is no such file, and no header {path.name}.hea of a WFDB record; check the path")
    raise ValueError(f"{path}: no format has the suffix {suffix!r}, and there is no header {path.name}.hea beside it; known are {known}")


def _refuse(path: Path, what: str, **arguments: object) -> None:
    """An argument that the file itself answers is an error, not ignored."""
    if given := [name for name, value in arguments.items() if value is not None]:
        raise ValueError(f"{path}: {what} names its channels, units and rate itself; leave {', '.join(given)} out and use Recording.select")
