import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, database=None)  # a busy machine fails no test, and leaves no folder
settings.load_profile("steady")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared recordings and fixtures: PHYSIO_SHARED, else `../shared` beside the repository; skips when absent."""
    folder = Path(os.environ.get("PHYSIO_SHARED") or Path(__file__).resolve().parents[4] / "shared")
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    return folder
