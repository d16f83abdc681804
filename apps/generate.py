"""Signals from nothing: sample a trained denoiser or token decoder, and say how far the result is from real windows, beside floors.

uv run apps/generate.py --ckpt runs/dit --n 256 --data stores/mitbih --out runs/generated

Distances are of features by an encoder that is not the model under test (`--features`), or hand-crafted ones. Floors: other real windows, noise of the same
spectrum, white noise. A generated window takes level and scale of a real training window. C channels, T samples, N windows, D features.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

import compose
import console
import continuation
import extras
import waveforms
from continuation import Network, Sampling
from physio_data.morphology import ecg_intervals, handcrafted
from physio_data.store import Store, Stores
from physio_models.contract import Encoder, SignalSpec, normalize
from physio_models.diffusion import guided
from physio_models.pretrained import from_pretrained
from physio_train import generation
from physio_train.run import write_json

BATCH = 64
PHYSIOLOGY = ("rate_bpm", "rr_mean_s", "rr_sd_s", "amplitude", "width_s", "sd")


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Windows of a trained generative network, and their distances to real ones."""

    ckpt: Path
    """A run, step or saved folder of a dit or a token_decoder."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])]
    """Windows to generate."""
    data: tuple[Path, ...] = ()
    """Stores whose windows are the real ones. Without any nothing is compared, and normalised signals stay so."""
    use: str = "test"
    """Folds of the real windows, joined by +."""
    scale_from: str = "train"
    """Folds whose windows lend level and scale, and conditions, joined by +."""
    features: Path | None = None
    """An encoder whose features are compared; never the model under test. Default: hand-crafted features."""
    objective: str | None = None
    """What the network was trained by, a row of OBJECTIVES, where its folder does not say."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    label: int | None = None
    """Of a network conditioned on classes: generate this class alone. Default: labels of real windows."""
    task: str | None = None
    """The task that these labels belong to."""
    guidance: float = 1.0
    """Times along what a condition changes; 1 is plain conditional sampling."""
    language_model: str = ""
    """Of a network conditioned on reports: a folder or Hub id."""
    out: Path | None = None
    """Folder for generated.npz, the figure and the distances."""
    dry_run: bool = False
    """Two windows, no comparison, write nothing."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Generate, args=list(arguments), description=console.paragraphs(__doc__))
    if app.n < 1:
        raise ValueError(f"-n must be at least 1, got {app.n}")
    network = continuation.opened(app.ckpt, app.objective)
    if network.kind == "masked":
        raise ValueError(f"{app.ckpt} is a {network.encoder.name}, which fills gaps and generates nothing: use a dit or a token_decoder")
    encoder, store = network.encoder, compose.open_stores(app.data) if app.data else None
    if store is not None:
        encoder.contract.check(compose.spec_of(store))
    judge = None if app.features is None else other_encoder(app.features, network)
    n = 2 if app.dry_run else app.n
    lend = lenders(app, network, store, n)
    x_NCT, unit, n_short = generated(app, network, store, lend, n)
    summary: dict[str, Any] = {"n": n, "model": encoder.name, "shape": list(x_NCT.shape), "unit": unit, "features": str(app.features or "handcrafted")}
    if n_short:
        summary["outran_positions"] = n_short
    if app.dry_run:
        return summary | {"dry_run": True}
    sets = {"generated": x_NCT}
    if store is not None:
        real_NCT, other_NCT = real_halves(app, network, store)
        sets |= {"real, other half": other_NCT, "noise of the same spectrum": generation.same_spectrum_noise(real_NCT)}
        sets |= {"white noise": generation.white_noise(real_NCT)}
        found = compare(network, judge, store, real_NCT, sets)
        console_table(found, len(real_NCT), {name: len(x) for name, x in sets.items()})
        summary |= {"n_real": len(real_NCT), "distances": found}
    if app.out is not None:
        save(app, network, sets, None if store is None else real_NCT, unit, summary)
    return summary | {"out": app.out}


def other_encoder(path: Path, network: Network) -> Encoder:
    """The encoder that judges. ValueError where it is the model under test: a network finds its own samples good."""
    judge = from_pretrained(path)
    mine, its = network.encoder.model.state_dict(), judge.model.state_dict()
    if mine.keys() == its.keys() and all(torch.equal(mine[key], its[key]) for key in mine):
        raise ValueError(f"--features {path} holds the model under test itself: name another encoder, or leave it out for hand-crafted features")
    return judge


# Sampling


def lenders(app: Generate, network: Network, store: Store | Stores | None, n: int) -> np.ndarray | None:
    """Rows of real windows, drawn with replacement, that lend level, scale and condition."""
    if store is None:
        if getattr(network.encoder.config, "condition", "none") not in ("none", "class") or needs_label(app, network):
            raise ValueError("the network is conditioned on what real windows carry: name a store with --data")
        return None
    rows_N, _ = continuation.whole_windows(store, compose.rows_of(store, tuple(app.scale_from.split("+"))), None)
    return rows_N[np.random.default_rng(app.sampling.seed).integers(len(rows_N), size=n)]


def needs_label(app: Generate, network: Network) -> bool:
    return getattr(network.encoder.config, "condition", "none") == "class" and app.label is None


def generated(app: Generate, network: Network, store: Store | Stores | None, lend: np.ndarray | None, n: int) -> tuple[np.ndarray, str, int]:
    """Windows (N, C, T) float32, their unit, and how many a decoder could not finish."""
    sample = by_denoiser if network.kind == "denoiser" else by_tokens
    parts, n_short = [], 0
    with console.progress("generate", n) as show:
        for start in range(0, n, BATCH):
            rows = None if lend is None else lend[start : start + BATCH]
            x_BCT, short = sample(app, network, store, rows, min(BATCH, n - start), app.sampling.seed * 1_000_003 + start)
            parts.append(x_BCT)
            n_short += short
            show(start + len(x_BCT), "")
    keeps_unit = lend is not None or (network.kind == "denoiser" and network.encoder.contract.normalization in ("none", "fixed"))
    return np.concatenate(parts).astype(np.float32), network.encoder.contract.units[0] if keeps_unit else "normalised", n_short


def by_denoiser(app: Generate, network: Network, store: Any, rows: np.ndarray | None, n: int, seed: int) -> tuple[np.ndarray, int]:
    """Sampled windows, the given lead in its place; in physical units by the lenders' level and scale."""
    encoder, cfg = network.encoder, network.encoder.config
    generator = torch.Generator().manual_seed(seed)
    contract, given, scale, lead = encoder.contract, None, None, None
    if rows is not None:
        x_BCT = torch.as_tensor(continuation.physical(encoder, store, rows), dtype=torch.float32)
        y_BCT, scale = normalize(x_BCT, contract.normalization, None, contract.fixed)
        if cfg.condition != "none":
            given = condition(app, encoder, store, rows, y_BCT)
            lead = y_BCT[:, [cfg.lead]] if cfg.condition == "lead" else None
    elif app.label is not None:
        given = torch.full((n,), app.label)
    check_label(app, cfg)
    noise_BGT = torch.randn(n, len(cfg.generated), cfg.n_samples, generator=generator)
    model = encoder.model
    if given is None:
        predict = lambda x, level: model(x, level)  # noqa: E731
    elif app.guidance == 1:
        predict = lambda x, level: model(x, level, given)  # noqa: E731
    else:
        predict = guided(model, given, app.guidance)
    said_BGT = continuation.sampled(network.objective, predict, noise_BGT, app.sampling, generator)
    whole_BCT = torch.zeros(n, cfg.n_channels, cfg.n_samples)
    whole_BCT[:, list(cfg.generated)] = said_BGT
    if lead is not None:
        whole_BCT[:, [cfg.lead]] = lead
    return (whole_BCT if scale is None else scale.restore(whole_BCT)).numpy(), 0


def check_label(app: Generate, cfg: Any) -> None:
    if app.label is not None and not (cfg.condition == "class" and 0 <= app.label < cfg.n_classes):
        has = f"this one has condition {cfg.condition!r} and {cfg.n_classes} classes"
        raise ValueError(f"--label {app.label} needs a network conditioned on classes that has it; {has}")
    if app.guidance != 1 and cfg.condition == "none":
        raise ValueError(f"--guidance {app.guidance:g} goes along what a condition changes, and this network has none: leave it out")


def condition(app: Generate, encoder: Encoder, store: Any, rows: np.ndarray, y_BCT: torch.Tensor) -> torch.Tensor | None:
    """What the lenders carry: their labels, vectors of reports or a lead; the one label that was asked for."""
    if encoder.config.condition == "class" and app.label is not None:
        return torch.full((len(rows),), app.label)
    found = extras.columns(encoder.config.needs, store, task=app.task, language_model=app.language_model)
    batch = {"signal": y_BCT} | {name: torch.as_tensor(column(rows)) for name, column in found.items()}
    return encoder.model.problem(batch).given


def by_tokens(app: Generate, network: Network, store: Any, rows: np.ndarray | None, n: int, seed: int) -> tuple[np.ndarray, int]:
    """A line of tokens after bos until it fills the window; the quantizer's range is the lenders', or 0 to 1."""
    if app.label is not None:
        raise ValueError("--label belongs to a dit conditioned on classes, a token decoder takes no condition")
    tokenizer, contract = network.tokenizer, network.encoder.contract
    n_leads, n_samples = len(contract.channels), contract.n_samples
    bos = np.array([tokenizer.special_id("bos")])
    said, lack_B = continuation.next_tokens(network, [bos] * n, n_leads * n_samples, app.sampling, torch.Generator().manual_seed(seed))
    if rows is None:
        scales = [type(tokenizer.encode(np.zeros((n_leads, 2), np.float32)).scale)(np.zeros(n_leads, np.float32), np.ones(n_leads, np.float32))] * n
    else:
        scales = [tokenizer.encode(x_CT.astype(np.float32)).scale for x_CT in continuation.physical(network.encoder, store, rows)]
    out = np.empty((n, n_leads, n_samples), np.float32)
    for b, (ids, scale) in enumerate(zip(said, scales, strict=True)):
        line = tokenizer.decode_symbols(ids)[: n_leads * n_samples]
        x_CT = tokenizer.decode_ids(tokenizer.encode_symbols(line), scale=scale, n_leads=n_leads, n_samples=n_samples)
        out[b] = np.where(np.isfinite(x_CT), x_CT, np.nanmedian(x_CT))
    return out, int((lack_B > 0).sum())


# Comparison


def real_halves(app: Generate, network: Network, store: Store | Stores) -> tuple[np.ndarray, np.ndarray]:
    """Real windows in two halves that share no subject where there are several."""
    rows_N, notes = continuation.whole_windows(store, compose.rows_of(store, tuple(app.use.split("+"))), None)
    for note in notes:
        console.say(note)
    first, second = generation.halves(continuation.subjects(store, rows_N), app.sampling.seed)
    if min(len(first), len(second)) < 2:
        raise ValueError(f"fold {app.use} has {len(rows_N)} whole windows, the floor of real against real needs at least 4: name more with --use")
    return continuation.physical(network.encoder, store, rows_N[first]), continuation.physical(network.encoder, store, rows_N[second])


def compare(
    network: Network, judge: Encoder | None, store: Store | Stores, real_NCT: np.ndarray, sets: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """FID, MMD^2 and distances of physiological quantities of every set to the real windows."""
    fs, kind, contract = store.fs, store.kind, network.encoder.contract
    spec = SignalSpec(channels=contract.channels, units=contract.spec.units, fs=fs, n_samples=real_NCT.shape[2], band=compose.spec_of(store).band, kind=kind)
    crafted = {name: handcrafted(x.astype(np.float64), fs, kind) for name, x in {"real": real_NCT, **sets}.items()}
    if judge is None:
        features = {name: x_NF for name, (x_NF, _) in crafted.items()}
    else:
        features = {name: judged(judge, x, spec) for name, x in {"real": real_NCT, **sets}.items()}
    found = generation.compared(features.pop("real"), features)
    names = crafted["real"][1]
    keep = [f for f, name in enumerate(names) if name.split("/")[-1] in PHYSIOLOGY]
    values = {name: x_NF[:, keep] for name, (x_NF, _) in crafted.items()}
    labels = [names[f] for f in keep]
    if kind == "ecg" and fs >= 100:
        intervals = {name: ecg_intervals(x[:, 0].astype(np.float64), fs) for name, x in {"real": real_NCT, **sets}.items()}
        timed = [f for f, name in enumerate(intervals["real"][1]) if name.endswith(("_s", "_ms"))]
        labels += [intervals["real"][1][f] for f in timed]
        values = {name: np.concatenate([values[name], intervals[name][0][:, timed]], axis=1) for name in values}
    distances = generation.distribution_distances(labels, values.pop("real"), values)
    return {name: found[name] | {f"KS {label}": value for label, value in distances[name].items()} for name in found}


def judged(judge: Encoder, x_NCT: np.ndarray, spec: SignalSpec) -> np.ndarray:
    return np.concatenate([judge.features(x_NCT[i : i + 256].astype(np.float32), spec).double().numpy() for i in range(0, len(x_NCT), 256)])


def console_table(found: Mapping[str, Mapping[str, float]], n_real: int, counts: Mapping[str, int]) -> None:
    """A row a distance, a column a set."""
    names = list(found)
    lines = [["distance to real", *(f"{name} ({counts[name]})" for name in names)]]
    lines += [[figure, *(f"{found[name][figure]:.4g}" for name in names)] for figure in found[names[0]]]
    width = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    print(f"{n_real} real windows; KS: Kolmogorov-Smirnov distance, nan where a set has no such value")
    print("\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, width, strict=True)).rstrip() for line in lines), flush=True)


def save(app: Generate, network: Network, sets: Mapping[str, np.ndarray], real_NCT: np.ndarray | None, unit: str, summary: Mapping[str, Any]) -> None:
    """generated.npz (signal, channels, fs, unit), generated.json, the figure."""
    contract = network.encoder.contract
    app.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(app.out / "generated.npz", signal=sets["generated"], channels=np.array(contract.channels), fs=contract.fs, unit=np.array(unit))
    write_json(app.out / "generated.json", _finite(summary) | {"ckpt": str(app.ckpt)})
    shown = {} if real_NCT is None else {"real": real_NCT[:, 0]}
    waveforms.columns(app.out / "figures" / "generated.png", shown | {"generated": sets["generated"][:, 0]}, contract.fs, unit)


def _finite(value: Any) -> Any:
    """Numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
