"""What people install: the wheel, the sdist and the wheel made of it, each alone beside NumPy; the stub says what the binary has."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PACKAGE = Path(__file__).parents[1]
TOKENIZE = """
from importlib.metadata import distributions
import numpy as np
import physio_bpe
ecg_NCT = np.cumsum(np.random.default_rng(0).standard_normal((20, 2, 500)), -1)
tokenizer = physio_bpe.train(ecg_NCT, n_merges=50)
encoded = tokenizer.encode(ecg_NCT[0])
assert np.abs(tokenizer.decode(encoded) - ecg_NCT[0]).max() <= encoded.scale.span[0] / 26 / 2 * 1.001 and len(encoded) < 1000
assert physio_bpe.from_json(physio_bpe.to_json(tokenizer)) == tokenizer
print(*sorted(found.name for found in distributions()))
"""


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel of the tree, sdist, wheel of the sdist)"""
    folder = tmp_path_factory.mktemp("dist")
    run("uv", "build", "--wheel", "--out-dir", folder / "tree", PACKAGE)
    run("uv", "build", "--out-dir", folder / "sdist", PACKAGE)  # the sdist, and the wheel from it
    return next((folder / "tree").glob("*.whl")), next((folder / "sdist").glob("*.tar.gz")), next((folder / "sdist").glob("*.whl"))


@pytest.mark.parametrize("which", [0, 2])
def test_a_wheel_alone_brings_numpy_and_tokenizes(built, which, tmp_path):
    assert "-cp311-abi3-" in built[which].name
    run("uv", "venv", "--python", sys.executable, tmp_path / "env")
    python = tmp_path / "env/bin/python"
    run("uv", "pip", "install", "--python", python, built[which])
    assert run(python, "-W", "error", "-c", TOKENIZE).split() == ["numpy", "physio-bpe"]


def test_the_stub_says_what_the_binary_has():
    pytest.importorskip("mypy", reason="mypy is in the package's own dev group: uv run --exact --package physio-bpe")
    assert "no issues found" in run(sys.executable, "-m", "mypy.stubtest", "physio_bpe._core")
