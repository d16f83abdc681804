import json
import os
from pathlib import Path

import numpy as np
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


@pytest.fixture(scope="session")
def ecg_byte(shared) -> dict:
    """The numbers recorded from the original."""
    return json.loads((shared / "fixtures/ecg_byte/fixtures.json").read_text())


@pytest.fixture(scope="session")
def waves() -> np.ndarray:
    """Eight records of three leads of 250 samples, beat-like and noisy, float32 (8, 3, 250)."""
    rng = np.random.default_rng(7)
    phase_NT = (np.arange(250) / 60 + rng.uniform(0, 1, (8, 1))) % 1
    beat_NT = np.exp(-(((phase_NT - 0.4) / 0.03) ** 2)) + 0.2 * np.exp(-(((phase_NT - 0.7) / 0.08) ** 2))
    gain_C = np.array([1.0, -0.4, 2.5])
    return (beat_NT[:, None] * gain_C[:, None] + rng.normal(0, 0.02, (8, 3, 250))).astype(np.float32)
