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


def test_importing_costs_less_than_three_tenths_of_a_second_of_processor_time():
    code = "import time; before = time.process_time(); import physio_data; print(time.process_time() - before)"
    seconds = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(3)]
    assert min(seconds) < 0.3
