import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared recordings and fixtures: PHYSIO_SHARED, else `../shared` beside the repository; skips when absent."""
    folder = Path(os.environ.get("PHYSIO_SHARED") or Path(__file__).resolve().parents[4] / "shared")
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    return folder
