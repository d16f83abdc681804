"""How well a network gives a window back at several levels of noise or loss: PSNR and structural similarity along time, beside doing little.

uv run apps/evaluate.py reconstruction --ckpt runs/dit --data stores/mitbih --out runs/back

A denoiser sees the window at a noise level (0 clean, 1 pure noise) and takes one step to the clean signal; a masked network sees it with that share hidden
at random. N windows, C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro

import compose
import console
import continuation
import imputation as gap_app
import waveforms
from continuation import Network, Sampling
from physio_models.contract import normalize
from physio_models.diffusion import kept_signal
from physio_models.objectives.ddpm import Ddpm
from physio_train import forecasting, imputation, scorecard

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A table for every level."""

    ckpt: Path
    """A run, step or saved folder of a masked network or a denoiser."""
    data: tuple[Path, ...]
    """Stores to score."""
    levels: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Noise levels of a denoiser, or shares hidden from a masked network, in (0, 1)."""
    use: str = "test"
    """Folds to score, joined by +."""
    objective: str | None = None
    """What the network was trained by, a row of OBJECTIVES, where its folder does not say."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    """Of noise and gaps."""
    max_windows: int | None = None
    """Score at most this many windows, spread evenly; the table says how many are left out. Default: all."""
    out: Path | None = None
    """Folder for a subfolder a level and the figures."""
    dry_run: bool = False
    """One window, write nothing."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Reconstruction, args=list(arguments), description=console.paragraphs(__doc__))
    if any(not 0 < level < 1 for level in app.levels):
        raise ValueError(f"--levels must lie in (0, 1), got {app.levels}")
    store, network = compose.open_stores(app.data), continuation.opened(app.ckpt, app.objective)
    if network.kind == "tokens":
        raise ValueError("a token decoder reconstructs nothing: forecast.py and generate.py ask it")
    network.encoder.contract.check(compose.spec_of(store))
    x_NCT, rows_N, who_N, clusters, heading, notes = continuation.scored_windows(network, store, app.use, 1 if app.dry_run else app.max_windows)
    level_means = "noise level" if network.kind == "denoiser" else "share hidden"
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for level in app.levels:
        rows = reconstructed(network, x_NCT, rows_N, level, app)
        values = {name: figures(x_NCT, y_NCT) for name, y_NCT in rows.items()}
        mine, floor = rows
        said = ["PSNR against each channel's own range, SSIM with a Gaussian of 1.5 samples; one step, not a whole sampling", *notes]
        card = scorecard.score(values, who_N, clusters=clusters, title=f"{level_means} {level:g}, {heading}", reference=floor, notes=said)
        print(card.plain(), flush=True)
        found[f"{level:g}"] = {name: {c: f.value for c, f in row.items()} for name, row in card.rows.items()}
        if app.out is not None and not app.dry_run:
            place, contract = waveforms.place_of(store, rows_N), network.encoder.contract
            waveforms.write_table(app.out / f"level_{level:g}", card, values, place, {"level": level})
            show_N = waveforms.spread(len(x_NCT))
            titles = [f"{place['record'][n]} at {place['start_s'][n]:g} s" for n in show_N]
            lines = {name: rows[name][show_N, 0] for name in (floor, mine)}
            path = app.out / f"level_{level:g}" / "figures" / "reconstruction.png"
            waveforms.windows(path, x_NCT[show_N, 0], lines, None, contract.fs, contract.units[0], titles)
    if app.out is not None and not app.dry_run:
        for figure in ("PSNR dB", "SSIM"):
            curves = {
                name: (np.array(app.levels), np.array([found[f"{v:g}"][name][figure] for v in app.levels], dtype=float)) for name in next(iter(found.values()))
            }
            waveforms.curves(app.out / "figures" / f"{figure.split()[0].lower()}.png", curves, level_means, figure)
    return {"windows": len(rows_N), "heading": heading, "levels": found, "out": app.out}


def figures(x_NCT: np.ndarray, y_NCT: np.ndarray) -> dict[str, np.ndarray]:
    """PSNR, SSIM, MAE and SNR by window."""
    error = y_NCT - x_NCT
    return {
        "PSNR dB": imputation.psnr_db(x_NCT, y_NCT),
        "SSIM": imputation.ssim(x_NCT, y_NCT),
        "MAE": np.abs(error).mean(axis=(1, 2)),
        "SNR dB": forecasting.snr_db(x_NCT, error).mean(axis=1),
    }


def reconstructed(network: Network, x_NCT: np.ndarray, rows_N: np.ndarray, level: float, app: Reconstruction) -> dict[str, np.ndarray]:
    """The network's windows first, then the floor: the noised window scaled to least error, or straight lines."""
    name = network.encoder.name
    if network.kind == "masked":
        unit = continuation.unit_of_mask(network)
        hidden_NT = imputation.gaps("random", len(x_NCT), x_NCT.shape[2], level, patch=unit, seed=app.seed)
        said = gap_app.by_network(network, x_NCT, hidden_NT, rows_N, app.sampling, f"level {level:g}")
        return {name: said, "linear": imputation.linear(x_NCT, hidden_NT)}
    if getattr(network.encoder.config, "condition", "none") == "lead":
        raise ValueError("the network is given a whole lead: train a dit with --model.condition none")
    parts = [denoised(network, x_NCT[i : i + BATCH], level, app.seed * 1_000_003 + i) for i in range(0, len(x_NCT), BATCH)]
    return {name: np.concatenate([said for said, _ in parts]), "noised, scaled": np.concatenate([floor for _, floor in parts])}


@torch.no_grad()
def denoised(network: Network, x_BCT: np.ndarray, level: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One step from a noise level to the clean window, and the noised window times what gives least error where the signal has unit power.

    ddpm: x = sqrt(abar) clean + sqrt(1 - abar) noise with the level's abar, clean by the noise the network guesses; rectified flow: x = (1 - level) clean +
    level noise, clean = x + level velocity.
    """
    contract, model, objective = network.encoder.contract, network.encoder.model, network.objective
    y_BCT, scale = normalize(torch.as_tensor(x_BCT, dtype=torch.float32), contract.normalization, None, contract.fixed)
    noise_BCT = torch.randn(y_BCT.shape, generator=torch.Generator().manual_seed(seed))
    if isinstance(objective, Ddpm):
        s = min(round(level * objective.n_steps), objective.n_steps - 1)
        abar = float(kept_signal(objective.schedule, objective.n_steps)[s])
        signal, noise = abar**0.5, (1 - abar) ** 0.5
        noised = signal * y_BCT + noise * noise_BCT
        clean = (noised - noise * model(noised, torch.full((len(noised),), s / objective.n_steps))) / signal
    else:
        signal, noise = 1 - level, level
        noised = signal * y_BCT + noise * noise_BCT
        clean = noised + level * model(noised, torch.full((len(noised),), level))
    power = y_BCT.square().mean(dim=(1, 2), keepdim=True)
    floor = noised * signal * power / (signal**2 * power + noise**2)
    return scale.restore(clean).double().numpy(), scale.restore(floor).double().numpy()
