import os
from pathlib import Path

import numpy as np
import pytest
import torch

from physio_models.himae import HiMae, HiMaeConfig


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared recordings and fixtures: PHYSIO_SHARED, else `../shared` beside the repository; skips when absent."""
    folder = Path(os.environ.get("PHYSIO_SHARED") or Path(__file__).resolve().parents[4] / "shared")
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    return folder


@pytest.fixture(scope="session")
def himae_fixtures(shared: Path) -> Path:
    """Numbers recorded from the original HiMAE."""
    folder = shared / "fixtures" / "himae"
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    return folder


@pytest.fixture
def reference_model(himae_fixtures: Path) -> HiMae:
    """The published network with the recorded weights, in eval mode."""
    model = HiMaeConfig().build()
    with np.load(himae_fixtures / "himae_ref_weights.npz") as arrays:
        model.load_state_dict({key: torch.from_numpy(arrays[key]) for key in arrays.files})
    return model.eval()


class CountingStreams:
    """Draws that depend on (name, index) alone, as a training loop's do."""

    def uniform(self, name: str, index_B: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.stack([self._draw(name, int(i), shape) for i in index_B])

    def normal(self, name: str, index_B: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return self.uniform(name, index_B, shape)

    def _draw(self, name: str, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(map(ord, name)) * 100_003 + index)
        return torch.rand(shape, generator=generator)


class FirstStep:
    def __init__(self) -> None:
        self.modules = torch.nn.ModuleDict()
        self.progress = 0.0
        self.streams = CountingStreams()


@pytest.fixture
def step() -> FirstStep:
    """The step of a training loop, as far as objectives see it."""
    return FirstStep()
