"""Each library imports only what it says, and quickly."""

import json
import subprocess
import sys

import pytest

LOADED = "import json, sys, time; t = time.perf_counter(); import {module}; s = time.perf_counter() - t; print(json.dumps([s, sorted(sys.modules)]))"


def fresh_import(module: str) -> tuple[float, set[str]]:
    """Seconds and loaded modules of one import in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", LOADED.format(module=module)], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(done.stdout)
    return seconds, set(modules)


def test_physio_data_loads_neither_torch_nor_scipy():
    _, modules = fresh_import("physio_data")
    assert not modules & {"torch", "pandas", "scipy.signal", "matplotlib", "wfdb", "sklearn"}


def test_physio_data_imports_within_twice_its_own_dependencies():
    seconds = min(fresh_import("physio_data")[0] for _ in range(3))
    floor = min(fresh_import("numpy, h5py")[0] for _ in range(3))
    assert seconds < max(0.3, 2 * floor)


def test_physio_bpe_loads_numpy_and_nothing_else():
    _, modules = fresh_import("physio_bpe")
    _, floor = fresh_import("numpy")
    own = {name.partition(".")[0] for name in modules - floor if name.partition(".")[0] not in sys.stdlib_module_names}
    assert own <= {"physio_bpe", "numpy"}


@pytest.mark.parametrize("module", ["physio_models", "physio_train"])
def test_the_torch_libraries_know_nothing_of_one_another(module):
    _, modules = fresh_import(module)
    others = {"physio_data", "physio_bpe", "physio_models", "physio_train", "physio_sae"} - {module}
    assert not modules & (others | {"matplotlib", "tyro", "rich", "wfdb"})
