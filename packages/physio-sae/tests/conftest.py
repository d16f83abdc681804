"""What the tests of physio-sae share: the folder of shared data, one thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture
def shared():
    """`shared("fixtures/himae/meta.json")`: a path under PHYSIO_SHARED (default: beside the repository), or a skip."""

    def path(relative: str) -> Path:
        root = Path(os.environ.get("PHYSIO_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
        if not (root / relative).exists():
            pytest.skip(f"shared data absent: {root / relative}")
        return root / relative

    return path


@pytest.fixture(autouse=True)
def one_thread():
    """One thread: small nets are fastest so, and sums of several threads are not the same from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
