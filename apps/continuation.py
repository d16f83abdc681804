"""How each kind of network says what it has not seen: samples put in by a masked network, by a denoiser, or token after token by a decoder.

Nothing hidden is ever looked at: ranges, means and quantisation come from the visible samples alone, and what is hidden is replaced by straight lines
before a network gets the window. Letters: B windows, C channels, T samples, N tokens, S steps of a schedule.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

import compose
import tokens
from physio_bpe import Tokenizer
from physio_data.store import Store, Stores
from physio_models import FITS, OBJECTIVES, resolve
from physio_models.contract import Encoder, normalize
from physio_models.diffusion import Predict, Solver, kept_signal, sample_ddim, sample_ddpm, sample_flow
from physio_models.objectives.ddpm import Ddpm
from physio_models.objectives.rectified_flow import RectifiedFlow
from physio_models.pretrained import from_pretrained
from physio_train.imputation import linear
from questions import heading_of, subjects_of

Kind = Literal["masked", "denoiser", "tokens"]
SECONDS_MUST = "its tokens run through one lead after the other, so what follows in the line is another lead and no later time"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a denoiser's or a decoder's answer is drawn."""

    sampler: Literal["ddpm", "ddim"] = "ddim"
    """Of a network trained by ddpm."""
    steps: int = 50
    """Network calls of ddim, steps of a flow."""
    eta: float = 0.0
    """Noise of ddim: 0 none, 1 as much as ddpm."""
    solver: Solver = "midpoint"
    """Of a flow: euler, midpoint, heun."""
    temperature: float = 0.0
    """Of a token decoder; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from the likeliest tokens alone."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Network:
    """A trained network with the objective it was trained by."""

    encoder: Encoder
    objective: Any
    kind: Kind

    @property
    def tokenizer(self) -> Tokenizer:
        found = tokens.tokenizer_of(self.encoder)
        assert found is not None
        return found


def opened(path: Path, objective: str | None = None) -> Network:
    """A run or step folder, or a saved one (with the objective's row where its config does not name it). ValueError for networks that give no signal."""
    encoder = tokens.attached(from_pretrained(path))
    document = json.loads((encoder.home / "config.json").read_text(encoding="utf-8"))
    if objective is not None:
        trained_by = resolve(OBJECTIVES, objective)()
    elif "objective" in document:
        trained_by = compose.build(resolve(OBJECTIVES, document["objective"]["name"]), document["objective"]["config"], "objective")
    else:
        fitting = [name for name, models in FITS.items() if encoder.name in models]
        if len(fitting) != 1:
            raise ValueError(f"{path} does not say what it was trained by; name it with --objective: {', '.join(fitting) or 'none fits'}")
        trained_by = resolve(OBJECTIVES, fitting[0])()
    if tokens.reads_tokens(encoder.config):
        return Network(encoder=encoder, objective=trained_by, kind="tokens")
    if getattr(encoder.config, "role", "") == "denoiser":
        return Network(encoder=encoder, objective=trained_by, kind="denoiser")
    if not hasattr(trained_by, "reconstruct"):
        raise ValueError(
            f"{path} is a {encoder.name} trained by {type(trained_by).__name__}, which gives no signal: use a masked network, dit or token_decoder"
        )
    return Network(encoder=encoder, objective=trained_by, kind="masked")


def unit_of_mask(network: Network) -> int:
    """Samples that are hidden together, at least. ValueError for a network that cannot be asked about a stretch of time."""
    cfg, objective, model = network.encoder.config, network.objective, network.encoder.model
    if network.kind == "tokens":
        if network.tokenizer.layout == "lead_major" and len(network.encoder.contract.channels) > 1:
            layout = network.tokenizer.layout
            raise ValueError(f"the decoder's tokenizer has the layout {layout}: {SECONDS_MUST}; train one with --tokens.layout per_lead or interleaved")
        return 1
    if network.kind == "denoiser":
        if getattr(cfg, "condition", "none") == "lead":
            raise ValueError("the network is given a whole lead, what is to be said included: train a dit with --model.condition none")
        return 1
    if getattr(objective, "norm_pix", False):
        raise ValueError("the network was trained by norm_pix on patches without level and scale, so what it says has no unit: train with norm_pix off")
    if hasattr(cfg, "n_columns"):
        return cfg.patch_samples
    axes = getattr(model, "mask_axes", None)
    if axes is None:
        return objective.patch or 5
    if "time" not in axes:
        raise ValueError(f"the tokens of {network.encoder.name} are whole leads, so it says nothing about a stretch of time: use another network")
    return objective.patch or network.encoder.contract.n_samples // axes["time"]


# In-painting


def filled(network: Network, x_BCT: np.ndarray, hidden_BT: np.ndarray, index_B: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Windows (B, C, T) in the contract's order and unit with what is hidden put in; each window must hide as many samples, in whole units of the mask."""
    bridged = torch.as_tensor(linear(x_BCT, hidden_BT), dtype=torch.float32)
    hidden = torch.as_tensor(hidden_BT)
    fill = {"masked": _by_mask, "denoiser": _by_denoising}[network.kind]
    said = fill(network, bridged, hidden, torch.as_tensor(index_B), sampling)
    return np.where(hidden_BT[:, None], said.double().cpu().numpy(), x_BCT)


def _by_mask(network: Network, x_BCT: Tensor, hidden_BT: Tensor, index_B: Tensor, sampling: Sampling) -> Tensor:
    """The objective's own reconstruction under this mask; what it says is brought back to the signal's unit by the line from its target to the signal."""
    unit, contract = unit_of_mask(network), network.encoder.contract
    n = x_BCT.shape[-1] // unit
    places_BN = hidden_BT[:, : n * unit].unflatten(1, (n, unit))
    gone = int(places_BN[0, :, 0].sum())
    if bool((places_BN.all(-1) != places_BN.any(-1)).any()) or bool((places_BN[..., 0].sum(1) != gone).any()) or bool(hidden_BT[:, n * unit :].any()):
        raise ValueError(f"{network.encoder.name} hides whole stretches of {unit} samples, as many in every window: cut the gaps so")
    y_BCT, _ = normalize(x_BCT, contract.normalization, ~hidden_BT, contract.fixed)
    y_BCT = _same_line(x_BCT, y_BCT, hidden_BT)
    objective = _asked(network, (gone + 0.5) / n)
    batch = {"signal": y_BCT, "index": index_B}
    step = _Step(_Hiding(places_BN[..., 0]))
    with torch.no_grad():
        out = objective.reconstruct(network.encoder.model, batch, step)
    a_BC1, b_BC1 = _line(out.target_BCT.double(), x_BCT.double())
    return a_BC1 * out.pred_BCT.double() + b_BC1


def _same_line(x_BCT: Tensor, y_BCT: Tensor, hidden_BT: Tensor) -> Tensor:
    """Normalised windows whose hidden samples, left at 0 by `normalize`, follow the same line as the visible ones."""
    seen_BCT = (~hidden_BT)[:, None].expand_as(x_BCT)
    a_BC1, b_BC1 = _line(x_BCT.double(), y_BCT.double(), seen_BCT)
    return torch.where(seen_BCT, y_BCT.double(), a_BC1 * x_BCT.double() + b_BC1).float()


def _line(from_BCT: Tensor, to_BCT: Tensor, over_BCT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """a and b (B, C, 1) of to = a from + b by least squares; for a flat channel a is 0."""
    w = torch.ones_like(from_BCT) if over_BCT is None else over_BCT.to(from_BCT.dtype)
    n = w.sum(-1, keepdim=True).clamp(min=1)
    mean_from, mean_to = (w * from_BCT).sum(-1, keepdim=True) / n, (w * to_BCT).sum(-1, keepdim=True) / n
    power = (w * (from_BCT - mean_from) ** 2).sum(-1, keepdim=True)
    a = torch.where(power > 1e-18, (w * (from_BCT - mean_from) * (to_BCT - mean_to)).sum(-1, keepdim=True) / power.clamp(min=1e-18), 0.0)
    return a, mean_to - a * mean_from


def _asked(network: Network, ratio: float) -> Any:
    """The objective with this share hidden in all channels alike, where the lowest numbers drawn say."""
    objective, axes = network.objective, getattr(network.encoder.model, "mask_axes", None)
    if hasattr(objective, "predict_fraction"):
        leads = "together" if axes is not None and "lead" in axes else None
        return replace(objective, mask="random", mask_ratio=ratio, leads=leads, clean_fraction=0.0, predict_fraction=1.0, loss_on="masked")
    inner = getattr(objective, "reconstruction", None)
    if inner is not None:
        return replace(objective, reconstruction=replace(inner, mask="tubelet", mask_ratio=ratio, start_ratio=None))
    return replace(objective, mask="tubelet", mask_ratio=ratio, start_ratio=None)


@dataclass(frozen=True)
class _Hiding:
    """Streams whose draws put the lowest numbers where a mask is True, so that an objective hides just these places."""

    mask_BN: Tensor

    def uniform(self, name: str, index_B: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        return torch.where(self.mask_BN, 0.0, 0.5).reshape(len(index_B), *shape) if name == "mask" else torch.full((len(index_B), *shape), 0.5)

    def normal(self, name: str, index_B: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        return torch.zeros(len(index_B), *shape)


@dataclass(frozen=True)
class _Step:
    streams: _Hiding
    progress: float = 1.0
    modules: torch.nn.ModuleDict | None = None


def _by_denoising(network: Network, x_BCT: Tensor, hidden_BT: Tensor, index_B: Tensor, sampling: Sampling) -> Tensor:
    contract, model = network.encoder.contract, network.encoder.model
    y_BCT, scale = normalize(x_BCT, contract.normalization, ~hidden_BT, contract.fixed)
    known_BCT = (~hidden_BT)[:, None].expand_as(y_BCT)
    generator = torch.Generator().manual_seed(sampling.seed + int(index_B[0]))
    noise_BCT = torch.randn(y_BCT.shape, generator=generator)
    said = sampled(network.objective, lambda x, level: model(x, level), noise_BCT, sampling, generator, known=(y_BCT, known_BCT))
    return scale.restore(said)


def sampled(
    objective: Any, predict: Predict, noise: Tensor, sampling: Sampling, generator: torch.Generator, *, known: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """From noise to signals by the objective's own sampler; with ``known`` (values, where they are known) the rest is painted in around them."""
    if isinstance(objective, RectifiedFlow):
        asked = predict if known is None else known_velocity(predict, noise, *known)
        return sample_flow(asked, noise, n_steps=sampling.steps, solver=sampling.solver)
    if not isinstance(objective, Ddpm):
        raise ValueError(f"a denoiser trained by {type(objective).__name__} has no sampler: name ddpm or rectified_flow with --objective")
    abar_S = kept_signal(objective.schedule, objective.n_steps)
    asked = predict if known is None else known_noise(predict, abar_S, *known)
    if sampling.sampler == "ddpm":
        return sample_ddpm(asked, noise, abar_S, generator=generator)
    return sample_ddim(asked, noise, abar_S, n_steps=min(sampling.steps, objective.n_steps), eta=sampling.eta, generator=generator)


def known_noise(predict: Predict, abar_S: Tensor, value: Tensor, known: Tensor) -> Predict:
    """The prediction, but where samples are known the noise that leads to them: every step of a sampler then re-imposes them, noised to its own level
    (the replacement of Song et al., arXiv 2011.13456, section 5, and Lugmayr et al., arXiv 2201.09865, eq. 8)."""

    def answer(x: Tensor, level_B: Tensor) -> Tensor:
        s_B = (level_B.double() * len(abar_S)).round().long().clamp(max=len(abar_S) - 1)
        abar = abar_S.to(x.device)[s_B].reshape(-1, *[1] * (x.ndim - 1)).float()
        return torch.where(known, (x - abar.sqrt() * value) / (1 - abar).sqrt(), predict(x, level_B))

    return answer


def known_velocity(predict: Predict, noise: Tensor, value: Tensor, known: Tensor) -> Predict:
    """The prediction, but where samples are known the straight way from their noise to them, as in `known_noise`."""
    return lambda x, level_B: torch.where(known, value - noise, predict(x, level_B))


# Tokens


def next_tokens(
    network: Network, prompts: Sequence[np.ndarray], n_symbols: int, sampling: Sampling, generator: torch.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Continue each line of ids (bos in front) until its tokens stand for ``n_symbols`` symbols: the ids, and how many symbols each lacks, (B,).

    Only ids whose symbols are the quantizer's come; what is said beyond is cut later. A decoder that runs out of positions stops, and the lack says so.
    """
    model, tokenizer = network.encoder.model, network.tokenizer
    alphabet = set(tokenizer.alphabet)
    plain = tokenizer.n_tokens - len(tokenizer.special_tokens)
    length_V = torch.as_tensor(tokenizer.lengths(np.arange(tokenizer.n_tokens)).astype(np.int64))
    barred = torch.tensor([v >= plain or not set(tokenizer.token(v)) <= alphabet for v in range(tokenizer.n_tokens)])
    longest = max(len(p) for p in prompts)
    room = min(model.cfg.n_positions, longest + n_symbols)
    said: list[list[int]] = [[] for _ in prompts]
    left_B = torch.full((len(prompts),), n_symbols)
    if longest < room:
        real_BN = torch.arange(longest) < torch.tensor([len(p) for p in prompts])[:, None]
        ids_BN = torch.full(real_BN.shape, tokenizer.special_id("pad"))
        ids_BN[real_BN] = torch.from_numpy(np.concatenate(prompts).astype(np.int64))
        with torch.no_grad():
            logits_BV, memory = model.prefill(ids_BN, room, valid_BN=real_BN)
            for place in range(longest, room):
                next_B = _drawn(logits_BV.float().masked_fill(barred, float("-inf")), sampling, generator)
                for b in torch.nonzero(left_B > 0).ravel().tolist():
                    said[b].append(int(next_B[b]))
                left_B = left_B - torch.where(left_B > 0, length_V[next_B], 0)
                if not bool((left_B > 0).any()) or place + 1 == room:
                    break
                logits_BV = model.extend(next_B, memory)
    return [np.array(ids, np.int64) for ids in said], left_B.clamp(min=0).numpy()


def _drawn(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    if sampling.temperature == 0:
        return logits_BV.argmax(1)
    if sampling.top_k is not None:
        logits_BV = logits_BV.masked_fill(logits_BV < logits_BV.topk(min(sampling.top_k, logits_BV.shape[1]), dim=1).values[:, -1:], float("-inf"))
    return torch.multinomial((logits_BV / sampling.temperature).softmax(1), 1, generator=generator)[:, 0]


@dataclass(frozen=True)
class Said:
    """A decoder's forecast (B, C, H) in the contract's unit, its tokens and the true ones by window, and how many samples of each had to be held, (B,)."""

    forecast_BCH: np.ndarray
    ids: list[np.ndarray]
    true_ids: list[np.ndarray]
    n_held_B: np.ndarray


def forecast_by_tokens(network: Network, x_BCT: np.ndarray, n_context: int, sampling: Sampling, seed: int = 0) -> Said:
    """Say the samples after ``n_context``. The quantizer's range is the context's, also for the true tokens.

    Interleaved (or one lead): the line goes on. Per lead: lead after lead, each with its own context before it and what was said of the leads before.
    """
    tokenizer, horizon = network.tokenizer, x_BCT.shape[2] - n_context
    encoded = [tokenizer.encode(x_CT[:, :n_context]) for x_CT in x_BCT]
    true = [tokenizer.encode(x_CT[:, n_context:], scale=e.scale).ids.astype(np.int64) for x_CT, e in zip(x_BCT, encoded, strict=True)]
    bos, generator = np.array([tokenizer.special_id("bos")]), torch.Generator().manual_seed(sampling.seed + seed)
    apart = tokenizer.layout != "interleaved" and x_BCT.shape[1] > 1
    n_lines = x_BCT.shape[1] if apart else 1
    n_symbols = horizon * x_BCT.shape[1] // n_lines
    lines = [_contexts(tokenizer, x_CT[:, :n_context], e, n_lines) for x_CT, e in zip(x_BCT, encoded, strict=True)]
    before, said, held = [bos] * len(x_BCT), [[] for _ in x_BCT], np.zeros(len(x_BCT), np.int64)
    symbols: list[list[bytes]] = [[] for _ in x_BCT]
    for c in range(n_lines):
        prompts = [np.concatenate([past, line[c]]) for past, line in zip(before, lines, strict=True)]
        new, lack_B = next_tokens(network, prompts, n_symbols, sampling, generator)
        held += lack_B
        for b, ids in enumerate(new):
            text = tokenizer.decode_symbols(ids)[:n_symbols]
            symbols[b].append(_held(text, tokenizer, lines[b][c], n_symbols, 1 if apart else x_BCT.shape[1]))
            said[b].append(ids)
            before[b] = np.concatenate([prompts[b], tokenizer.encode_symbols(text).astype(np.int64)]) if text else prompts[b]
    forecast = np.stack([_decoded(tokenizer, parts, e.scale, x_BCT.shape[1], horizon) for parts, e in zip(symbols, encoded, strict=True)])
    return Said(forecast, [np.concatenate(ids) for ids in said], true, held)


def _contexts(tokenizer: Tokenizer, x_CT: np.ndarray, encoded: Any, n_lines: int) -> list[np.ndarray]:
    """The ids of a context, or of each lead of it."""
    if n_lines == 1:
        return [encoded.ids.astype(np.int64)]
    lengths = tokenizer.lengths(encoded.ids).cumsum()
    return [part.astype(np.int64) for part in np.split(encoded.ids, [int(np.searchsorted(lengths, c * x_CT.shape[1])) + 1 for c in range(1, n_lines)])]


def _held(text: bytes, tokenizer: Tokenizer, context_ids: np.ndarray, n_symbols: int, n_leads: int) -> bytes:
    """The symbols, what lacks at the end filled with the last ones (of each lead)."""
    if len(text) >= n_symbols:
        return text
    line = tokenizer.decode_symbols(context_ids) + text
    last = line[-n_leads:]
    return (text + last * n_symbols)[:n_symbols]


def _decoded(tokenizer: Tokenizer, parts: list[bytes], scale: Any, n_leads: int, horizon: int) -> np.ndarray:
    ids = np.concatenate([tokenizer.encode_symbols(part) for part in parts])
    return tokenizer.decode_ids(ids, scale=scale, n_leads=n_leads, n_samples=horizon).astype(np.float64)


# Windows of a store, as the contract wants them


def physical(encoder: Encoder, store: Store | Stores, rows_N: np.ndarray) -> np.ndarray:
    """Windows (N, C, T) float64 in the contract's order, unit and polarity, not normalised. ContractError where the store does not fit."""
    spec = compose.spec_of(store)
    arrangement = encoder.contract.check(spec)
    factor_C1 = np.array(arrangement.factors)[:, None] * encoder.contract.polarity * spec.polarity
    return store.batch(rows_N)["signal"][:, list(arrangement.order)].astype(np.float64) * factor_C1


class Scored(NamedTuple):
    """Whole windows to score a network on, in the contract's units, and what is said about them."""

    x_NCT: np.ndarray
    rows_N: np.ndarray
    who_N: np.ndarray  # the subject of each, or the recording where a corpus names nobody
    clusters: str  # what these are: subjects, records, or both
    heading: str
    notes: list[str]


def scored_windows(network: Network, store: Store | Stores, use: str, most: int | None) -> Scored:
    """The whole windows of the folds ``use``, joined by +, at most ``most``, under the heading of `questions.heading_of`."""
    rows_N, notes = whole_windows(store, compose.rows_of(store, tuple(use.split("+"))), most)
    x_NCT = np.concatenate([physical(network.encoder, store, rows_N[i : i + 1024]) for i in range(0, len(rows_N), 1024)])
    named_N = subjects_of(store)[rows_N] != ""
    clusters = "subjects" if named_N.all() else "subjects and records" if named_N.any() else "records"
    heading = heading_of(store, rows_N, None if network.encoder.seen is None else network.encoder.seen["subjects"])
    return Scored(x_NCT, rows_N, subjects(store, rows_N), clusters, heading, notes)


def whole_windows(store: Store | Stores, rows_N: np.ndarray, most: int | None) -> tuple[np.ndarray, list[str]]:
    """Rows without a short tail or an absent channel, at most ``most`` spread evenly, and what is said about those left out."""
    notes = []
    keep = np.asarray(store.at("n_valid", rows_N)) >= store.n_samples
    if "channel_present" in store.index:
        keep &= np.asarray(store.at("channel_present", rows_N)).astype(bool).reshape(len(rows_N), -1).all(axis=1)
    if not keep.all():
        notes.append(f"{int((~keep).sum())} windows with a short tail or an absent channel are left out")
    chosen = compose.spread(rows_N[keep], most)
    if len(chosen) < keep.sum():
        notes.append(f"--max-windows: {int(keep.sum()) - len(chosen)} of {int(keep.sum())} windows are left out")
    if not len(chosen):
        raise ValueError("no whole window is left to score: name another fold with --use")
    return chosen, notes


def subjects(store: Store | Stores, rows_N: np.ndarray) -> np.ndarray:
    """Who each window is from: the subject, or the recording where that is unknown."""
    subject_N, record_N = (np.asarray(store.at(name, rows_N)).astype(str) for name in ("subject", "record"))
    return np.where(subject_N != "", subject_N, record_N)
