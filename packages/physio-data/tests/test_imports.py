"""What importing costs: nothing heavy, whichever module is asked for."""

import json
import subprocess
import sys

import pytest

HEAVY = ["torch", "pandas", "scipy.signal", "matplotlib", "s3fs", "fsspec", "distributed", "hdf5plugin", "soundfile", "edfio", "wfdb"]


@pytest.mark.parametrize("modules", ["", ".store .order .remote .doctor .cli .sources .download", ".prepare .executors .corpora .evidence"])
def test_no_module_loads_what_it_may_never_need(modules):
    lines = "; ".join(f"import physio_data{name}" for name in (modules.split() or [""]))
    code = f"import json, sys; {lines}; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_importing_costs_hardly_more_than_numpy_and_h5py():
    """Processor time, the least of several processes each, in turn: what NumPy and h5py cost differs between machines by more than our own share."""

    def seconds(modules: str) -> float:
        code = f"import time; before = time.process_time(); import {modules}; print(time.process_time() - before)"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    ours, theirs = zip(*((seconds("physio_data"), seconds("numpy, h5py")) for _ in range(5)), strict=True)
    assert min(ours) < min(theirs) + 0.15
