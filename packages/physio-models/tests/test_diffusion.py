import math

import numpy as np
import pytest
import torch

from physio_models.diffusion import guided, kept_signal, sample_ddim, sample_ddpm, sample_flow

MEAN, SD = 5.0, 0.5  # far outside [0, 1], where a sampler that clips would end


def noise(n: int = 4000, size: int = 1) -> torch.Tensor:
    return torch.randn(n, 1, size, generator=torch.Generator().manual_seed(0))


def noise_of_gaussian(abar_S: torch.Tensor):
    """E[noise | x] where the data are N(MEAN, SD^2): what a perfectly trained network would say."""

    def predict(x, level_B):
        abar = abar_S[(level_B[0].double() * len(abar_S)).round().long()]
        return ((1 - abar).sqrt() * (x - abar.sqrt() * MEAN) / (abar * SD**2 + 1 - abar)).float()

    return predict


def velocity_of_gaussian(x, level_B):
    """E[data - noise | x] of the same data at (1 - t) noise + t data."""
    t = 1 - level_B[0].double()
    variance = (1 - t) ** 2 + t**2 * SD**2
    return (MEAN + (t * SD**2 - (1 - t)) / variance * (x - t * MEAN)).float()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "ddim_noisy"])
def test_diffusion_samplers_recover_a_gaussian(schedule: str, sampler: str):
    abar_S = kept_signal(schedule, 1000)
    predict, draw = noise_of_gaussian(abar_S), torch.Generator().manual_seed(1)
    if sampler == "ddpm":
        x = sample_ddpm(predict, noise(), abar_S, generator=draw)
    else:
        x = sample_ddim(predict, noise(), abar_S, n_steps=200, eta=float(sampler == "ddim_noisy"), generator=draw)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.05) and x.std().item() == pytest.approx(SD, abs=0.05)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_flow_samplers_recover_a_gaussian(solver: str):
    x = sample_flow(velocity_of_gaussian, noise(), n_steps=100, solver=solver)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.05) and x.std().item() == pytest.approx(SD, abs=0.05)


def test_two_calls_a_step_buy_the_second_order():
    """x' = x sin(3 t) has the solution x(0) exp((1 - cos 3) / 3) at t = 1: halving the step halves Euler's error and quarters the others'."""
    start = noise(50).double()
    exact = start * math.exp((1 - math.cos(3)) / 3)

    def error(solver: str, n_steps: int) -> float:
        x = sample_flow(lambda x, level_B: x * (3 * (1 - level_B[0])).sin(), start, n_steps=n_steps, solver=solver)
        return (x - exact).abs().mean().item()

    assert 1.8 < error("euler", 40) / error("euler", 80) < 2.2
    for solver in ("midpoint", "heun"):
        assert 3.7 < error(solver, 40) / error(solver, 80) < 4.3


def sines() -> tuple[torch.Tensor, torch.Tensor]:
    t = torch.arange(64) / 64
    return torch.stack([(2 * math.pi * rate * t).sin() * size for rate, size in ((1, 1.0), (3, 2.0), (7, 1.5))]), torch.tensor([0.5, 0.3, 0.2])


def expected_sine(x, keep: float, spread: float):
    """E[data | x] for x = keep * data + spread * noise and a mixture of three sines: a weighted mean of them."""
    forms, share = sines()
    log = -((x - keep * forms) ** 2).sum(-1, keepdim=True).double() / (2 * spread**2) + share.log()[:, None]
    return (log.softmax(1) * forms).sum(1, keepdim=True).float()


def nearest(x: torch.Tensor) -> tuple[np.ndarray, float]:
    """How often each sine came, and how far the samples are from the one they are nearest to."""
    distance = (x - sines()[0]).square().mean(-1)
    return np.bincount(distance.argmin(1), minlength=3) / len(x), float(distance.min(1).values.sqrt().max())


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "midpoint", "heun"])
def test_samplers_recover_a_mixture_of_sines(sampler: str):
    abar_S = kept_signal("cosine", 250)

    def eps(x, level_B):
        abar = abar_S[(level_B[0].double() * len(abar_S)).round().long()].item()
        return (x - abar**0.5 * expected_sine(x, abar**0.5, (1 - abar) ** 0.5)) / (1 - abar) ** 0.5

    def velocity(x, level_B):
        level = max(level_B[0].item(), 1e-3)
        clean = expected_sine(x, 1 - level, level)
        return clean - (x - (1 - level) * clean) / level

    start, draw = noise(1000, 64), torch.Generator().manual_seed(1)
    if sampler == "ddpm":
        x = sample_ddpm(eps, start, abar_S, generator=draw)
    elif sampler == "ddim":
        x = sample_ddim(eps, start, abar_S, n_steps=100)
    else:
        x = sample_flow(velocity, start, n_steps=100, solver=sampler)
    share, farthest = nearest(x)
    np.testing.assert_allclose(share, sines()[1].numpy(), atol=0.05)
    assert farthest < 0.05


def test_the_schedules_are_the_published_ones():
    beta = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(kept_signal("linear", 1000).numpy(), np.cumprod(1 - beta), rtol=1e-12)
    assert kept_signal("linear", 1000)[-1].item() == pytest.approx(4.0e-5, rel=0.02)
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(kept_signal("cosine", 1000)[:-1].numpy(), (f[1:] / f[0])[:-1], rtol=1e-9)
    assert kept_signal("cosine", 1000)[-1] > 0
    for n in (1, 10, 50):
        abar = kept_signal("linear", n)
        assert (abar > 0).all() and (abar.diff() < 0).all()


def test_clipping_is_asked_for_and_then_holds():
    abar_S = kept_signal("linear", 50)
    for x in (
        sample_ddpm(noise_of_gaussian(abar_S), noise(50), abar_S, clip=(0.0, 1.0)),
        sample_ddim(noise_of_gaussian(abar_S), noise(50), abar_S, n_steps=20, clip=(0.0, 1.0)),
    ):
        assert x.min() >= 0 and x.max() <= 1


def test_ddim_without_noise_gives_one_answer():
    abar_S = kept_signal("cosine", 100)
    a, b = (sample_ddim(noise_of_gaussian(abar_S), noise(5), abar_S, n_steps=10) for _ in range(2))
    assert torch.equal(a, b)


def test_guidance_goes_from_without_to_with_and_beyond():
    def network(x, level_B, given, keep_B, valid_BT=None):
        return torch.where(keep_B, given, torch.tensor(1.0))[:, None, None].expand_as(x)

    x, given, level_B = noise(3), torch.tensor([4.0, 5.0, 6.0]), torch.full((3,), 0.5)
    for scale, expected in ((0.0, [1, 1, 1]), (1.0, [4, 5, 6]), (2.0, [7, 9, 11])):
        assert guided(network, given, scale)(x, level_B)[:, 0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: kept_signal("square", 10), "schedule must be one of"),
        (lambda: kept_signal("linear", 0), "n_steps must be at least 1"),
        (lambda: sample_ddim(velocity_of_gaussian, noise(1), kept_signal("linear", 10), n_steps=11), r"n_steps must lie in 1\.\.10"),
        (lambda: sample_flow(velocity_of_gaussian, noise(1), n_steps=0), "n_steps must be at least 1"),
        (lambda: sample_flow(velocity_of_gaussian, noise(1), n_steps=5, solver="rk4"), "solver must be one of"),
    ],
)
def test_wrong_settings_are_refused(call, match: str):
    with pytest.raises(ValueError, match=match):
        call()
