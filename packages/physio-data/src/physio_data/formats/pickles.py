"""Pickles of NumPy arrays and plain values, read without running what else a pickle may name.

A pickle is a program: it may name any importable function and call it. `read_pickle` and `read_npy` resolve nothing but the few NumPy
functions that rebuild an array or a number; dict, list, tuple, str, bytes, int, float, bool and None need no name at all.
"""

from __future__ import annotations

import os
import pickle
from io import BufferedReader
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
_NAMES = {
    **{(module, name): getattr(np._core.multiarray, name) for module in _ARRAY_MODULES for name in ("_reconstruct", "scalar")},
    **{(module, "_frombuffer"): np._core.numeric._frombuffer for module in _NUMERIC_MODULES},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class Refused(pickle.UnpicklingError):
    """The pickle asks for something that is not admitted."""


def _encode(text: str, encoding: str) -> bytes:
    """What `_codecs.encode` does for byte strings in pickles of protocol 0 to 2; no other codec is admitted."""
    if encoding.replace("-", "").lower() not in ("latin1", "iso88591"):
        raise Refused(f"it encodes text as {encoding!r}")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """What old protocols call for an empty byte string."""
    return b""


_NAMES |= {("_codecs", "encode"): _encode, ("__builtin__", "bytes"): _no_bytes, ("builtins", "bytes"): _no_bytes}


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that admits NumPy arrays and plain values only."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _NAMES:
            raise Refused(f"it names {module}.{name}")
        return _NAMES[module, name]

    def persistent_load(self, pid: object) -> object:
        raise Refused(f"it refers to something outside the file ({pid!r})")


def read_pickle(path: str | os.PathLike[str]) -> object:
    """The object in a pickle file made of NumPy arrays and plain values; byte strings of Python 2 become text by Latin-1.

    `ValueError` names the file and what it holds otherwise (a global such as ``os.system`` is refused, not run), and a file that is cut off.
    """
    path = Path(path)
    with _opened(path) as file:
        return _load(path, file)


def read_npy(path: str | os.PathLike[str]) -> object:
    """The content of an ``.npy`` file: an array, or the dictionary that was saved as one through a pickle, read as `read_pickle` does."""
    path = Path(path)
    with _opened(path) as file:
        try:
            version = npy.read_magic(file)
            if version not in ((1, 0), (2, 0), (3, 0)):
                raise ValueError(f"format version {version} is not known")
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = header(file)
        except ValueError as error:
            raise ValueError(f"{path}: not a NumPy file ({error}); save it with numpy.save") from error
        if not dtype.hasobject:
            n = int(np.prod(shape, dtype=np.int64))
            x = np.fromfile(file, dtype, n)
            if x.size != n:
                raise ValueError(f"{path}: cut off, its header announces {n} values and {x.size} are there; fetch it again")
            return x.reshape(shape[::-1]).T if fortran else x.reshape(shape)
        content = _load(path, file)
    return content[()] if isinstance(content, np.ndarray) and content.ndim == 0 else content


def _opened(path: Path) -> BufferedReader:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return path.open("rb")


def _load(path: Path, file: BufferedReader) -> object:
    try:
        return ArrayUnpickler(file, encoding="latin-1").load()
    except Refused as error:
        raise ValueError(
            f"{path}: refused, only NumPy arrays and plain values are read from a pickle and {error}; save its arrays with numpy.save or in HDF5"
        ) from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path}: not a whole pickle ({type(error).__name__}: {error}); it may be cut off, fetch it again") from error
