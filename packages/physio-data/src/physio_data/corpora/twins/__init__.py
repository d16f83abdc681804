"""A synthetic twin of a corpus: a tiny made-up copy in exactly the on-disk layout of the real one, so that its loader runs without the data.

`twins/<name>.py` holds `write(root, seed=0) -> options`: it fills the folder `root`, which is then what `--root` names, and returns the
corpus options that reading it needs (often none).
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path


def has_twin(name: str) -> bool:
    """Whether the corpus of that name has a twin writer; generated corpora need none."""
    return find_spec(f"physio_data.corpora.twins.{name}") is not None


def write_twin(name: str, root: str | Path, *, seed: int = 0) -> dict[str, object]:
    """Write the twin of corpus `name` into the folder `root`, which may exist but must be empty; returns the options to read it with."""
    if not has_twin(name):
        raise ValueError(f"corpus {name!r} has no twin; it may be generated, or add corpora/twins/{name}.py with write(root, seed)")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise ValueError(f"root {root} is not empty; a twin is written into a folder of its own")
    return import_module(f"physio_data.corpora.twins.{name}").write(root, seed)
