"""Trains one or many autoencoders on one read of the cache.

A step, in this order: losses and their gradient; take from each atom's gradient what is parallel to the atom; clip; Adam; atoms back to
length 1; the L0 controller. Members share nothing but the batch, so each ends as it would alone, and the order of the batches depends
on `FitConfig.seed` and the step only. d width, K concepts, B windows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from physio_sae import kernels, losses
from physio_sae.losses import Engine, Terms, Triplet
from physio_sae.members import Member
from physio_sae.sae import Sae, save
from physio_sae.triplets import Features, RawBatch, Triplets, input_statistics
from physio_train import NonFiniteLossError, checkpoint
from physio_train.optimizer import load_optimizer_tensors, lr_factor, optimizer_tensors

CHECK_EVERY = 50  # steps between two looks at whether everything is finite
DEAD_EVERY = 10  # steps between two lists of dead concepts: reading one waits for the device
THRESHOLD_MOMENTUM = 0.99


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how fast; sizes in windows, steps of the optimiser."""

    n_epochs: float = 20.0
    """Passes over the training windows."""
    n_steps: int | None = None
    """Steps, instead of n_epochs."""
    batch_size: int = 4096
    lr: float = 1e-3
    """Adam's rate after a rise over `warmup`, constant, then falling to 0 over the last `decay` of the steps."""
    warmup: float = 0.05
    decay: float = 0.2
    clip_norm: float | None = 1.0
    dead_after: int | None = None
    """Windows without firing that make a concept dead; none: the smaller of one epoch and 200 steps."""
    resample_every: int | None = None
    """relu, gated, jumprelu: steps between two resamplings of dead concepts, during the first 60 % of the run; none: once per `dead_after`; 0 never."""
    engine: Literal["auto", "sparse", "dense"] = "auto"
    """The sparse step where the kind allows it; dense is its reference."""
    encode_dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 multiplies x and W_enc in half the bits, on hardware that has it; the concepts chosen may differ near the k-th place."""
    checkpoint_every: int = 500
    seed: int = 0
    """Order of the windows, choice of views."""

    def __post_init__(self) -> None:
        if (self.n_steps is not None and self.n_steps < 1) or self.n_epochs <= 0:
            raise ValueError(f"n_steps must be at least 1 and n_epochs positive, got {self.n_steps} and {self.n_epochs}")
        if self.batch_size < 2 or self.lr <= 0 or self.checkpoint_every < 1:
            raise ValueError(
                f"batch_size must be at least 2, lr positive and checkpoint_every at least 1, got {self.batch_size}, {self.lr}, {self.checkpoint_every}"
            )
        if not (0 <= self.warmup < 1 and 0 <= self.decay < 1):
            raise ValueError(f"warmup and decay must lie in [0, 1), got {self.warmup} and {self.decay}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive, or none, got {self.clip_norm}")
        if (self.dead_after is not None and self.dead_after < 1) or (self.resample_every is not None and self.resample_every < 0):
            raise ValueError("dead_after must be at least 1 window and resample_every at least 0 steps, or none")

    def steps(self, steps_per_epoch: int) -> int:
        return self.n_steps or max(1, round(self.n_epochs * steps_per_epoch))


class Trainer:
    """One member in training: its network, optimiser, controller and the record of what fires. `step` takes a batch in units of x."""

    def __init__(self, member: Member, cfg: FitConfig, *, n_steps: int, steps_per_epoch: int, batch_size: int, device: torch.device) -> None:
        self.member, self.cfg, self.n_steps, self.device = member, cfg, n_steps, device
        self.sae = member.sae.build(member.seed).to(device)
        self.parameters = dict(self.sae.named_parameters())
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=cfg.lr, fused=True)
        self.l_sp = torch.tensor(float(member.loss.sp), device=device)
        self.since_fired_K = torch.zeros(member.sae.n_concepts, dtype=torch.int64, device=device)
        self.dead_J = torch.zeros(0, dtype=torch.int64, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.l0 = torch.zeros((), device=device)
        self.dead_after = cfg.dead_after or batch_size * min(steps_per_epoch, 200)
        self.resample_every = cfg.resample_every if cfg.resample_every is not None else max(1, -(-self.dead_after // batch_size))
        self.engine: Engine = _engine(member, cfg)
        self.dtype = getattr(torch, cfg.encode_dtype)
        if cfg.encode_dtype == "bfloat16" and not kernels.fast_bfloat16(device):
            raise ValueError(f"encode_dtype bfloat16: not supported here, {device} does not multiply bfloat16 natively; use float32")

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def n_dead(self) -> int:
        return int((self.since_fired_K >= self.dead_after).sum())

    def step(self, batch: Triplet, step: int) -> Terms:
        """One optimiser step (0-based `step`); returns the losses it took."""
        loss_cfg, sae = self.member.loss, self.sae
        draw = torch.Generator().manual_seed((self.member.seed << 32) + step)
        warm = min(1.0, step / max(1, int(loss_cfg.sp_warmup * self.n_steps)))
        terms = losses.loss(sae, batch, loss_cfg, engine=self.engine, l_sp=self.l_sp * warm, dead_J=self.dead_J, dtype=self.dtype, draw=draw)
        self.optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        self._update(step)
        self._record(terms, batch, warm, step, draw)
        return terms

    @torch.no_grad()
    def _update(self, step: int) -> None:
        """Project, clip, step, renormalise: in this order, so that what is saved has atoms of length 1."""
        sae, unit = self.sae, self.member.sae.unit_norm and self.member.sae.kind != "archetypal"
        if unit:
            remove_parallel(sae.W_dec.grad, sae.W_dec)
        if self.cfg.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.cfg.clip_norm)
        rise = lr_factor(step + 1, self.n_steps + 1, warmup=self.cfg.warmup, schedule="constant")
        fall = min(1.0, (self.n_steps - step) / max(1.0, self.cfg.decay * self.n_steps))
        self.optimizer.param_groups[0]["lr"] = self.cfg.lr * rise * fall
        self.optimizer.step()
        if unit:
            unit_atoms_(sae.W_dec)

    @torch.no_grad()
    def _record(self, terms: Terms, batch: Triplet, warm: float, step: int, draw: torch.Generator) -> None:
        self.finite &= torch.isfinite(terms.total.detach())
        self.l0 = terms.l0
        if warm >= 1 and not self.member.sae.selects:
            self.l_sp = self.member.control.update(self.l_sp, terms.l0)
        if self.member.sae.kind in ("batch_topk", "matryoshka"):
            least = torch.where(torch.isfinite(terms.least), terms.least, self.sae.running_threshold)
            self.sae.running_threshold.lerp_(least, 1.0 if step == 0 else 1 - THRESHOLD_MOMENTUM)
        self.since_fired_K = torch.where(terms.fired_K, 0, self.since_fired_K + len(batch.x_BD))
        if self.member.sae.selects and self.member.loss.aux > 0 and (step + 1) % DEAD_EVERY == 0:
            self.dead_J = (self.since_fired_K >= self.dead_after).nonzero()[:, 0]
        due = self.resample_every and (step + 1) % self.resample_every == 0 and step + 1 <= 0.6 * self.n_steps
        if not self.member.sae.selects and due:
            self._resample(terms.residual_BD, draw)

    def _resample(self, residual_BD: Tensor, draw: torch.Generator) -> None:
        """Dead concepts become directions that the dictionary misses (Bricken et al. 2023): residuals of windows drawn by squared loss; the encoder row at
        0.2 of the mean living norm, bias 0, Adam's moments zeroed."""
        dead_J = (self.since_fired_K >= self.dead_after).nonzero()[:, 0]
        if not len(dead_J):
            return
        weight_B = residual_BD.square().sum(1).square().double().cpu()
        if not bool(weight_B.sum() > 0):
            return
        chosen_J = torch.multinomial(weight_B, len(dead_J), replacement=True, generator=draw).to(residual_BD.device)
        atoms_JD = torch.nn.functional.normalize(residual_BD[chosen_J], dim=1)
        sae, alive_K = self.sae, self.since_fired_K < self.dead_after
        norm = sae.W_enc[alive_K].norm(dim=1).mean() if bool(alive_K.any()) else torch.ones((), device=self.device)
        changed = {"W_dec": atoms_JD, "W_enc": 0.2 * norm * atoms_JD, "b_enc": 0.0, "r_mag": 0.0, "b_mag": 0.0}
        for name, value in changed.items():
            if name in self.parameters:
                self.parameters[name][dead_J] = value
                for key in ("exp_avg", "exp_avg_sq"):
                    self.optimizer.state[self.parameters[name]][key][dead_J] = 0.0
        self.since_fired_K[dead_J] = 0

    def numbers(self) -> dict[str, float]:
        """L0, sparsity weight and dead concepts now; waits for the device."""
        return {"l0": float(self.l0), "l_sp": float(self.l_sp), "dead": float(self.n_dead)}

    def state(self) -> dict[str, Tensor]:
        moments = {f"optimizer/{key}": value for key, value in optimizer_tensors(self.optimizer, self.parameters).items()}
        return moments | {"l_sp": self.l_sp, "since_fired": self.since_fired_K, "dead": self.dead_J, "l0": self.l0}

    def restore(self, model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        self.sae.load_state_dict(dict(model))
        load_optimizer_tensors(self.optimizer, self.parameters, {k.removeprefix("optimizer/"): v for k, v in state.items() if k.startswith("optimizer/")})
        on = {key: state[key].to(self.device) for key in ("l_sp", "since_fired", "dead", "l0")}
        self.l_sp, self.since_fired_K, self.dead_J, self.l0 = on["l_sp"], on["since_fired"], on["dead"], on["l0"]


@dataclass(frozen=True)
class Progress:
    """After `step` of `n_steps`: the members, and the losses each took in this step (tensors on the device)."""

    step: int
    n_steps: int
    trainers: Sequence[Trainer]
    terms: Sequence[Terms]
    triplets: Triplets
    config: Mapping[str, Any]
    checkpoint_due: bool

    def numbers(self) -> dict[str, dict[str, float]]:
        """Member -> losses, L0, weight, dead; waits for the device."""
        return {t.name: {key: float(value) for key, value in terms.parts.items()} | t.numbers() for t, terms in zip(self.trainers, self.terms, strict=True)}

    def save(self, folder: Path | str) -> Path:
        """Write `folder/step_<step>`, from which `fit` goes on with the same bytes; the one before is removed. NonFiniteLossError instead of a bad file."""
        check_finite(self.trainers, self.step)
        model = {f"{t.name}/{key}": value for t in self.trainers for key, value in t.sae.state_dict().items()}
        state = {f"{t.name}/{key}": value for t in self.trainers for key, value in t.state().items()}
        return checkpoint.save(folder, self.step, model=model, state=state, meta={"config": dict(self.config)}, keep_last=1)

    def save_saes(self, folder: Path | str, *, extra: Mapping[str, Any] | None = None) -> list[Path]:
        """Write each autoencoder to `folder/<name>/` for `physio_sae.sae.load`, with `extra`, seed, losses and L0 beside its config."""
        check_finite(self.trainers, self.step)
        written = []
        for t in self.trainers:
            about = {
                "name": t.name,
                "ablation": t.member.ablation,
                "seed": t.member.seed,
                "step": self.step,
                "loss": asdict(t.member.loss),
                "control": asdict(t.member.control),
                **t.numbers(),
            }
            written.append(save(t.sae, Path(folder) / t.name, extra=dict(extra or {}) | about))
        return written


def fit(
    features: Features,
    rows: np.ndarray,
    members: Sequence[Member],
    cfg: FitConfig,
    *,
    device: torch.device | str = "cpu",
    resume: Path | str | None = None,
    in_memory_bytes: int = 2 << 30,
) -> Iterator[Progress]:
    """Train the members on some rows of the features; yields after every step, the caller logs, saves and stops.

    `resume` is a step folder that `Progress.save` wrote: the run goes on bit for bit. Raises ValueError before the first step where the data cannot
    serve the losses (no followers, no views, one patient, values that are not finite, all alike), where a dictionary is wider than there are windows,
    or where names repeat; NonFiniteLossError when a loss is not finite.
    """
    device, members = torch.device(device), list(members)
    _check_members(members, features.width, len(rows))
    triplets = Triplets(
        features,
        rows,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        needs_next=any(m.loss.needs_next for m in members),
        needs_aug=any(m.loss.needs_aug for m in members),
        in_memory_bytes=in_memory_bytes,
    )
    n_steps = cfg.steps(triplets.steps_per_epoch)
    sizes = {"n_steps": n_steps, "steps_per_epoch": triplets.steps_per_epoch, "batch_size": triplets.batch_size}
    trainers = [Trainer(member, cfg, **sizes, device=device) for member in members]
    config = json.loads(json.dumps({"fit": asdict(cfg), "members": [asdict(m) for m in members], "n_rows": len(rows), "width": features.width}))
    first = _restore(trainers, resume, config) if resume is not None else _start(trainers, features, rows)
    shared = _shared_inputs(trainers)
    for step in range(first, n_steps):
        raw = triplets.at(step)
        batches = {key: to_triplet(raw, sae) for key, sae in shared.items()}
        terms = [t.step(batches[t.member.sae.norm], step) for t in trainers]
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == n_steps:
            check_finite(trainers, step + 1)
        due = (step + 1) % cfg.checkpoint_every == 0 or step + 1 == n_steps
        yield Progress(step + 1, n_steps, trainers, terms, triplets, config, due)


def to_triplet(raw: RawBatch, sae: Sae) -> Triplet:
    """A batch in units of x, on the autoencoder's device."""

    def x(z: np.ndarray | None) -> Tensor | None:
        return None if z is None else sae.normalise(torch.from_numpy(z).to(sae.device))

    def plain(values: np.ndarray | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values).to(sae.device)

    return Triplet(x(raw.z_BD), x(raw.next_MD), plain(raw.pair_M), plain(raw.dt_M), x(raw.aug_BD))


@torch.no_grad()
def remove_parallel(grad_KD: Tensor, atoms_KD: Tensor) -> None:
    """Take from each row of the gradient what is parallel to its unit atom, in place."""
    grad_KD.addcmul_(torch.linalg.vecdot(grad_KD, atoms_KD)[:, None], atoms_KD, value=-1)


@torch.no_grad()
def unit_atoms_(atoms_KD: Tensor) -> None:
    """Rows to length 1, in place."""
    atoms_KD.div_(torch.linalg.vector_norm(atoms_KD, dim=1, keepdim=True).clamp_min(1e-12))


def check_finite(trainers: Sequence[Trainer], step: int) -> None:
    """NonFiniteLossError naming the members whose loss or weights are not finite."""
    bad = [t.name for t in trainers if not (bool(t.finite) and all(bool(torch.isfinite(p).all()) for p in t.parameters.values()))]
    if bad:
        message = f"the loss of {', '.join(bad)} became NaN or infinite by step {step}: lower lr or the weights of its losses"
        raise NonFiniteLossError(message, {"step": step, "members": bad})


def _engine(member: Member, cfg: FitConfig) -> Engine:
    if cfg.engine == "sparse" and not member.sae.selects:
        raise ValueError(f"engine sparse: {member.sae.kind} has no fixed number of concepts per window; use auto or dense for {member.name}")
    return cfg.engine if cfg.engine != "auto" else "sparse" if member.sae.selects else "dense"


def _check_members(members: Sequence[Member], width: int, n_rows: int) -> None:
    names = [m.name for m in members]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"members must be named apart, got {', '.join(names) or 'none'}")
    for m in members:
        if m.sae.width != width:
            raise ValueError(f"{m.name}: width must be that of the embeddings ({width}), got {m.sae.width}")
        if m.sae.n_concepts > n_rows:
            raise ValueError(f"{m.name}: n_concepts ({m.sae.n_concepts}) exceeds the {n_rows} training windows: use a smaller dictionary or more data")
        if m.sae.kind == "archetypal" and m.sae.n_points > n_rows:
            raise ValueError(f"{m.name}: n_points ({m.sae.n_points}) exceeds the {n_rows} training windows: use fewer points")


def _start(trainers: Sequence[Trainer], features: Features, rows: np.ndarray) -> int:
    """Normalisation from the training rows, once for members that share it; archetypal points drawn from them."""
    found = {norm: input_statistics(features, rows, norm) for norm in {t.member.sae.norm for t in trainers}}
    for t in trainers:
        mean_D, scale_D = found[t.member.sae.norm]
        t.sae.set_normalisation(torch.from_numpy(mean_D), torch.from_numpy(scale_D))
        if t.member.sae.kind == "archetypal":
            chosen = np.random.default_rng([t.member.seed, 1]).choice(rows, t.member.sae.n_points, replace=False)
            t.sae.set_points(t.sae.normalise(torch.from_numpy(features.z(np.sort(chosen))).to(t.device)))
    return 0


def _restore(trainers: Sequence[Trainer], folder: Path | str, config: Mapping[str, Any]) -> int:
    saved = checkpoint.load(folder)
    checkpoint.check_config(saved.meta["config"], config, changeable=("fit.checkpoint_every",))
    for t in trainers:
        mine = [{k.removeprefix(f"{t.name}/"): v for k, v in part.items() if k.startswith(f"{t.name}/")} for part in (saved.model, saved.state)]
        t.restore(*mine)
    return saved.step


def _shared_inputs(trainers: Sequence[Trainer]) -> dict[str, Sae]:
    """One network per normalisation: its members see the same x, computed once."""
    return {t.member.sae.norm: t.sae for t in reversed(trainers)}
