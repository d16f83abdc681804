"""Everything a training run is made of between two steps: what is saved, what is restored, what is watched.

`TrainState` is the handle that `fit` hands out with each step. Saving is a collective act: every rank calls `save`, rank 0
writes. Random states of all ranks are kept, so dropout repeats too; running statistics are rank 0's, which the next forward
pass gives to every rank in any case.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from physio_train import checkpoint, distributed
from physio_train.batches import Batches
from physio_train.ema import Ema
from physio_train.optimizer import load_optimizer_tensors, optimizer_tensors


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient became NaN or infinite; names the step and the windows."""


class TrainState:
    """A run after `step` finished steps. `eval_model` holds the weights to validate and to save; `modules` the objective's own."""

    def __init__(
        self,
        *,
        model: nn.Module,
        modules: nn.ModuleDict,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        ema: Ema | None,
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
        named = {"model": self.model, "modules": self.modules}
        return {f"{owner}/{name}": p for owner, module in named.items() for name, p in module.named_parameters() if p.requires_grad}

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
            "Look for NaN or extreme values in these windows, or lower lr, or set clip_norm"
        )

    def save(self, folder: Path | str, *, extra: Mapping[str, Any] | None = None, keep: Collection[int] = ()) -> Path:
        """Write `folder/step_<step>` after checking that all numbers since the last check were finite. Every rank must call it.

        `extra` goes into `meta.json`; steps in `keep` (the best one) survive `keep_last`. Raises what rank 0 met while writing.
        """
        self.check()
        with distributed.plain_loss_of_rank(lambda: f"while saving step {self.step}; resume from {self.last_saved or 'an earlier checkpoint'}"):
            return self._save(Path(folder), extra, keep)

    def _save(self, folder: Path, extra: Mapping[str, Any] | None, keep: Collection[int]) -> Path:
        rng = self._gather_rng()
        path, error = folder / f"step_{self.step}", None
        if distributed.world().is_main:
            try:
                checkpoint.save(
                    folder,
                    self.step,
                    model=self.eval_model.state_dict(),
                    state=self._tensors() | rng,
                    meta=self._meta(extra),
                    keep_last=self.keep_last,
                    keep=keep,
                )
            except OSError as met:
                error = met
        written = torch.tensor([error is None], dtype=torch.int32, device=self.device)
        distributed.broadcast([written])
        if error is not None:
            raise error
        if distributed.world().world_size > 1 and not written.item():
            raise OSError(f"rank 0 could not write {path}; its message says why. Earlier checkpoints are untouched")
        self.last_saved = path
        return path

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go to a checkpoint's step exactly. ValueError where it belongs to another model, objective or order of windows."""
        state, where = saved.state, saved.path
        live = _under(state, "live/") or saved.model
        _load(self.model, live, f"{where}: model")
        if self.ema:
            _load(self.ema.model, saved.model, f"{where}: averaged model")
        _load(self.modules, _under(state, "modules/"), f"{where}: objective's modules")
        load_optimizer_tensors(self.optimizer, self.parameters, _under(state, "optimizer/"))
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
    module.load_state_dict(dict(tensors))
