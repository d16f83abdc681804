import numpy as np
import pytest
import torch

from physio_models.normalize import NORMALIZERS, normalize


def by_hand(x_CT: np.ndarray, name: str, fixed: tuple) -> np.ndarray:
    """One item in float64, straight from the definitions."""
    if name == "none":
        return x_CT
    if name == "fixed":
        return (x_CT - np.reshape(fixed[0], (-1, 1))) / np.reshape(fixed[1], (-1, 1))
    scope, kind = name.split("_")
    rows = [x_CT] if scope == "instance" else list(x_CT)
    out = []
    for row in rows:
        if kind == "minmax":
            span = row.max() - row.min()
            out.append(2 * (row - row.min()) / span - 1 if span > 1e-6 else np.zeros_like(row))
        elif kind == "zscore":
            out.append((row - row.mean()) / (row.std() + 1e-6))
        else:
            q1, q2, q3 = np.percentile(row, [25, 50, 75])
            out.append((row - q2) / ((q3 - q1) / 1.349 + 1e-6))
    return np.reshape(out, x_CT.shape)


@pytest.mark.parametrize("name", sorted(NORMALIZERS))
@pytest.mark.parametrize("n_valid", [30, 23])
def test_each_item_follows_the_definition_on_its_valid_samples(name: str, n_valid: int):
    rng = np.random.default_rng(0)
    x_BCT = (rng.normal(size=(3, 2, 30)) * [[[1.0], [50.0]]] + [[[0.0], [1000.0]]]).astype(np.float32)
    x_BCT[2, 1] = 5.0  # a flat channel
    fixed = ((0.5, 990.0), (2.0, 40.0)) if name == "fixed" else None
    x_BCT[..., n_valid:] = np.nan
    valid_BT = None if n_valid == 30 else torch.from_numpy(np.broadcast_to(np.arange(30) < n_valid, (3, 30)).copy())
    y_BCT, scale = normalize(torch.from_numpy(x_BCT), name, valid_BT, fixed)
    expected = np.stack([by_hand(x_CT[:, :n_valid].astype(np.float64), name, fixed) for x_CT in x_BCT])
    np.testing.assert_allclose(y_BCT[..., :n_valid].numpy(), expected, rtol=1e-5, atol=1e-5)
    assert y_BCT.dtype == torch.float32 and not y_BCT[..., n_valid:].any()
    np.testing.assert_allclose(scale.restore(y_BCT)[..., :n_valid].numpy(), x_BCT[..., :n_valid], rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("name", sorted(NORMALIZERS - {"fixed"}))
@pytest.mark.parametrize("n_valid", [30, 23])
def test_a_lost_channel_counts_nowhere_and_is_zero(name: str, n_valid: int):
    rng = np.random.default_rng(0)
    x_BCT = (rng.normal(size=(3, 4, 30)) * 5 + 2).astype(np.float32)
    present_BC = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]], dtype=bool)
    x_BCT[0, 2] = np.nan
    x_BCT[1, [0, 1, 3]] = 1e6
    valid_BT = None if n_valid == 30 else torch.from_numpy(np.broadcast_to(np.arange(30) < n_valid, (3, 30)).copy())
    y_BCT, _ = normalize(torch.from_numpy(x_BCT), name, valid_BT, None, torch.from_numpy(present_BC))
    for x_CT, present_C, y_CT in zip(x_BCT, present_BC, y_BCT.numpy(), strict=True):
        np.testing.assert_allclose(y_CT[present_C, :n_valid], by_hand(x_CT[present_C, :n_valid].astype(np.float64), name, ()), rtol=1e-5, atol=1e-5)
        assert not y_CT[~present_C].any() and not y_CT[:, n_valid:].any()


@pytest.mark.parametrize("name", sorted(NORMALIZERS - {"fixed"}))
def test_an_item_without_any_channel_is_zero(name: str):
    y_BCT, _ = normalize(torch.randn(2, 2, 5), name, channel_present_BC=torch.tensor([[True, False], [False, False]]))
    assert y_BCT[0, 0].any() and not y_BCT[0, 1].any() and not y_BCT[1].any()
    with pytest.raises(ValueError, match=r"channel_present_BC must be \(batch, channels\)"):
        normalize(torch.randn(2, 2, 5), "lead_zscore", channel_present_BC=torch.ones(2, 3))


def test_a_small_pulse_on_a_large_offset_keeps_its_digits():
    pulse = torch.linspace(0, 1, 11)
    y_BCT, _ = normalize((4096 + pulse).reshape(1, 1, -1), "instance_minmax")
    torch.testing.assert_close(y_BCT[0, 0], 2 * pulse - 1, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("x", "name", "options", "message"),
    [
        (torch.zeros(2, 3), "none", {}, "x_BCT must be"),
        (torch.zeros(1, 1, 3), "minmax", {}, "name must be one of"),
        (torch.tensor([[[0.0, float("nan")]]]), "none", {}, "item 0, channel 0, sample 1"),
        (torch.zeros(1, 1, 3), "fixed", {}, "belongs to the name 'fixed'"),
        (torch.zeros(1, 1, 3), "fixed", {"fixed": (0.0, 0.0)}, "scale positive"),
        (torch.zeros(1, 2, 3), "fixed", {"fixed": ((0.0, 0.0, 0.0), 1.0)}, "a number or 2"),
        (torch.zeros(1, 1, 3), "none", {"valid_BT": torch.zeros(1, 3)}, "no valid sample in item 0"),
        (torch.zeros(1, 1, 3), "none", {"valid_BT": torch.ones(1, 4)}, "valid_BT must be"),
    ],
)
def test_what_cannot_be_normalised_is_refused(x: torch.Tensor, name: str, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        normalize(x, name, **options)
