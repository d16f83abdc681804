import pytest
import torch

from physio_models.mamba_steps import MambaSteps
from physio_models.ti_mae_mamba import TiMaeMambaConfig


@pytest.mark.parametrize("patch", [1, 4])
def test_tokens_one_by_one_are_those_of_the_whole_window(patch):
    torch.manual_seed(0)
    cfg = TiMaeMambaConfig(n_channels=2, n_samples=24, patch=patch, width=16, d_state=8, headdim=8, bidirectional=False, decoder="none")
    model = cfg.build().eval().double()
    x_BCT = torch.randn(3, 2, 24, dtype=torch.float64)
    whole, steps = model.encode(x_BCT).levels, MambaSteps(model, 3)
    for n, x_BCP in enumerate(x_BCT.split(patch, dim=-1)):
        for name, token_BD in steps.step(x_BCP).items():
            torch.testing.assert_close(token_BD, whole[name][:, n], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="begin another MambaSteps"):
        steps.step(x_BCT[..., :patch])


def test_what_looks_ahead_is_refused():
    with pytest.raises(ValueError, match="bidirectional=False"):
        MambaSteps(TiMaeMambaConfig.preset("tiny").build())
    steps = MambaSteps(TiMaeMambaConfig(n_samples=8, bidirectional=False, decoder="none").build())
    with pytest.raises(ValueError, match="the samples of one token"):
        steps.step(torch.zeros(1, 1, 2))
