"""Everything a training run is made of between two steps: what is saved, what is restored, what is watched.

`TrainState` is the handle that `fit` hands out with each step. Saving is a collective act: every rank calls `save`, rank 0
writes, and where weights are shared out every rank its part (into one folder, which all must see). Random states of all
ranks are kept, so dropout repeats too; running statistics are rank 0's, which the next forward pass gives to every rank.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from physio_train import checkpoint, distributed, shards
from physio_train.batches import Batches
from physio_train.ema import Ema
from physio_train.optimizer import load_optimizer_numbers, load_optimizer_tensors, optimizer_numbers, optimizer_tensors
from physio_train.parameters import trained
from physio_train.schedule_free import Average
from physio_train.sharding import first_row, full, is_shard, is_sharded, like, local


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient became NaN or infinite; names the step and the windows, and holds them in `found`."""

    def __init__(self, message: str, found: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.found = dict(found)


class TrainState:
    """A run after `step` finished steps. `eval_model` holds the weights to validate and to save; `modules` the objective's own."""

    def __init__(
        self,
        *,
        model: nn.Module,
        modules: nn.ModuleDict,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        ema: Ema | Average | None,
        batches: Batches,
        config: Mapping[str, Any],
        keep_last: int | None,
        device: torch.device,
    ) -> None:
        self.model, self.modules, self.optimizer, self.scaler, self.ema = model, modules, optimizer, scaler, ema
        self.batches, self.config, self.keep_last, self.device = batches, dict(config), keep_last, device
        self.step = 0
        self.last_saved: Path | None = None
        self._flags: list[tuple[int, str, Tensor, Tensor]] = []

    @property
    def eval_model(self) -> nn.Module:
        """The averaged model where the average is on, else the live one."""
        return self.ema.model if self.ema else self.model

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What the optimiser trains, by name: `model/...` and `modules/...`."""
        return trained(self.model, self.modules)

    def watch(self, step: int, what: str, value: Tensor, index_B: Tensor) -> None:
        """Remember on the device whether a number is finite; `check` reads it later, so no step waits for the device."""
        self._flags.append((step, what, torch.isfinite(value.detach()).all(), index_B))

    def check(self) -> None:
        """NonFiniteLossError if anything watched since the last check was NaN or infinite; waits for the device once."""
        if not self._flags:
            return
        finite = torch.stack([flag for _, _, flag, _ in self._flags]).tolist()
        bad = next((entry for entry, good in zip(self._flags, finite, strict=True) if not good), None)
        if bad is None:
            self._flags.clear()
            return
        step, what, _, index_B = bad
        listed = ", ".join(map(str, index_B[:16].tolist())) + (", ..." if len(index_B) > 16 else "")
        kept = f"the last checkpoint, {self.last_saved}, is untouched" if self.last_saved else "no checkpoint was written with it"
        raise NonFiniteLossError(
            f"the {what} is not finite at step {step} (rank {distributed.world().rank}); the batch's item indices: {listed}; {kept}. "
            "Look for NaN or extreme values in these windows, or lower lr, or set clip_norm",
            {"step": step, "what": what, "rank": distributed.world().rank, "indices": index_B.tolist(), "last_saved": self.last_saved},
        )

    def save(self, folder: Path | str, *, extra: Mapping[str, Any] | None = None, keep: Collection[int] = ()) -> Path:
        """Write `folder/step_<step>` after checking that all numbers since the last check were finite. Every rank must call it.

        A step that this state has already saved there is left as it is.

        `extra` goes into `meta.json`; steps in `keep` (the best one) survive `keep_last`. Raises what rank 0 met while writing.
        """
        self.check()
        with distributed.plain_loss_of_rank(lambda: f"while saving step {self.step}; resume from {self.last_saved or 'an earlier checkpoint'}"):
            return self._save(Path(folder), extra, keep)

    def _save(self, folder: Path, extra: Mapping[str, Any] | None, keep: Collection[int]) -> Path:
        rng = self._gather_rng()
        path = folder / f"step_{self.step}"
        if self.last_saved == path and path.is_dir():
            return path
        model = {key: full(value) for key, value in self.eval_model.state_dict().items()}
        state = self._tensors() | rng
        settings = {"model": model, "meta": self._meta(extra), "keep_last": self.keep_last, "keep": keep}
        if is_sharded(self.model):
            self._agreed(path, lambda: checkpoint.begin(folder, self.step))
            files = self._write_shards(folder / f".step_{self.step}.tmp", path, state)
            self._agreed(path, lambda: checkpoint.finish(folder, self.step, files=files, **settings))
        else:
            self._agreed(path, lambda: checkpoint.save(folder, self.step, state=state, **settings))
        self.last_saved = path
        return path

    def _write_shards(self, temporary: Path, path: Path, state: Mapping[str, Tensor]) -> dict[str, str]:
        """Write this rank's part of the state; returns every rank's file with its SHA-256, the index among them on rank 0."""
        where = distributed.world()
        names = [shards.name_of(rank, where.world_size) for rank in range(where.world_size)]
        pieces = {key: (local(value), first_row(value), tuple(value.shape)) for key, value in state.items() if where.is_main or is_shard(value)}
        digests: list[str] = []

        def write() -> None:
            digests.append(checkpoint.write(temporary / names[where.rank], shards.encode(pieces)))

        self._agreed(path, write, every_rank=True)
        own = torch.frombuffer(bytearray.fromhex(digests[0]), dtype=torch.uint8).to(self.device)
        files = {name: bytes(digest.tolist()).hex() for name, digest in zip(names, distributed.gather(own), strict=True)}

        def write_index() -> None:
            document = json.dumps(shards.index(temporary, names)).encode()
            files[shards.INDEX] = checkpoint.write(temporary / shards.INDEX, document)

        self._agreed(path, write_index)
        return files

    def _agreed(self, path: Path, write: Callable[[], Any], *, every_rank: bool = False) -> None:
        """Let rank 0, or every rank, write; where one could not, all stop: it with what it met, the others naming it."""
        error, where = None, distributed.world()
        if every_rank or where.is_main:
            try:
                write()
            except OSError as met:
                error = met
        failed = [rank for rank, flag in enumerate(distributed.gather(torch.tensor([error is not None], device=self.device))) if flag.item()]
        if failed and where.is_main:
            checkpoint.abandon(path.parent, self.step)
        if error is not None:
            raise error
        if failed:
            raise OSError(f"rank {failed[0]} could not write {path}; its message says why. Earlier checkpoints are untouched")

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go to a checkpoint's step exactly. ValueError where it belongs to another model, objective or order of windows."""
        state, where = saved.state, saved.path
        live = _under(state, "live/") or saved.model
        _load(self.model, live, f"{where}: model")
        if self.ema:
            _load(self.ema.model, saved.model, f"{where}: averaged model")
        _load(self.modules, _under(state, "modules/"), f"{where}: objective's modules")
        load_optimizer_tensors(self.optimizer, self.parameters, _under(state, "optimizer/"))
        load_optimizer_numbers(self.optimizer, saved.meta.get("optimizer", {}))
        self.scaler.load_state_dict(saved.meta["scaler"])
        self.batches.load_state_dict(saved.meta["sampler"])
        self._set_rng(state)
        self.step, self.last_saved = saved.step, where

    def _tensors(self) -> dict[str, Tensor]:
        live = {f"live/{key}": value for key, value in self.model.state_dict().items()} if self.ema else {}
        modules = {f"modules/{key}": value for key, value in self.modules.state_dict().items()}
        moments = {f"optimizer/{key}": value for key, value in optimizer_tensors(self.optimizer, self.parameters).items()}
        return live | modules | moments

    def _meta(self, extra: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            "config": self.config,
            "sampler": self.batches.state_dict(),
            "scaler": self.scaler.state_dict(),
            "optimizer": optimizer_numbers(self.optimizer),
            "world_size": distributed.world().world_size,
            "torch": str(torch.__version__),
            "extra": dict(extra or {}),
        }

    def _gather_rng(self) -> dict[str, Tensor]:
        out = {f"rng/rank{r}/cpu": value for r, value in enumerate(distributed.gather(torch.get_rng_state()))}
        if self.device.type == "cuda":
            out |= {f"rng/rank{r}/cuda": value for r, value in enumerate(distributed.gather(torch.cuda.get_rng_state(self.device)))}
        return out

    def _set_rng(self, state: Mapping[str, Tensor]) -> None:
        """Restore this rank's random states; a rank or device that the checkpoint did not have goes on with its own."""
        rank = distributed.world().rank
        if (cpu := state.get(f"rng/rank{rank}/cpu")) is not None:
            torch.set_rng_state(cpu)
        if self.device.type == "cuda" and (cuda := state.get(f"rng/rank{rank}/cuda")) is not None:
            torch.cuda.set_rng_state(cuda, self.device)


def training_mode(model: nn.Module) -> None:
    """Training mode for what is trained; a part whose parameters are all frozen stays in eval, so its statistics stay too."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _load(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    own = module.state_dict()
    if own.keys() != tensors.keys() or any(own[key].shape != tensors[key].shape for key in own):
        unlike = sorted(key for key in own.keys() | tensors.keys() if key not in own or key not in tensors or own[key].shape != tensors[key].shape)
        raise ValueError(f"{what} does not fit: {', '.join(unlike[:5])} missing, left over or of another shape; build the parts it was saved with")
    with torch.no_grad():
        for key, value in own.items():
            local(value).copy_(local(like(tensors[key], value, whole=True)))
