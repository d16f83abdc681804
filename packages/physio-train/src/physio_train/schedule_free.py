"""Schedule-free AdamW: averaging in the optimiser takes the place of a falling learning rate.

Defazio et al., "The road less scheduled" (2024), Algorithm 1 with Adam's second moment. The model holds y, where gradients
are taken; z is the optimiser's own sequence; x, the average that is validated and saved, follows from both: y = (1 - b) z + b x.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from physio_train.sharding import local


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """AdamW without a schedule; a warm-up is kept. `weight_sum` is the sum of squared learning rates so far."""

    def __init__(self, groups: list[dict], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0) -> None:
        if not betas[0] > 0:
            raise ValueError(f"betas[0] must be positive for the schedule-free optimiser, which divides by it, got {betas[0]}")
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.weight_sum = 0.0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of every group. Closures are not taken."""
        base_lr = self.param_groups[0]["lr"] / self.param_groups[0].get("lr_scale", 1.0)
        self.weight_sum += base_lr**2
        share = base_lr**2 / self.weight_sum if self.weight_sum else 0.0
        for group in self.param_groups:
            if given := [p for p in group["params"] if p.grad is not None]:
                self._step(group, given, share)

    def _step(self, group: dict, given: list[Tensor], share: float) -> None:
        for parameter in given:
            if not self.state[parameter]:
                self.state[parameter].update(z=parameter.detach().clone(), exp_avg_sq=torch.zeros_like(parameter), step=torch.zeros(()))
            self.state[parameter]["step"] += 1
        lr, (beta1, beta2) = group["lr"], group["betas"]
        y, gradients = [local(p) for p in given], [local(p.grad) for p in given]
        z, second = ([local(self.state[p][key]) for p in given] for key in ("z", "exp_avg_sq"))
        n_steps = [self.state[p]["step"].item() for p in given]
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        spread = torch._foreach_div(second, [1 - beta2**n for n in n_steps])
        torch._foreach_sqrt_(spread)
        torch._foreach_add_(spread, group["eps"])
        update = torch._foreach_div(gradients, spread)
        torch._foreach_add_(update, y, alpha=group["weight_decay"])
        x = torch._foreach_lerp(z, y, 1 / beta1)
        torch._foreach_add_(z, update, alpha=-lr)
        torch._foreach_lerp_(x, z, share)
        for own, averaged, base in zip(y, x, z, strict=True):
            torch.lerp(base, averaged, beta1, out=own)


class Average:
    """The model at x, the weights to validate and to save: a second model, like `Ema`, that `update` brings up to date."""

    def __init__(self, twin: nn.Module, optimizer: ScheduleFreeAdamW) -> None:
        self.model, self._optimizer = twin, optimizer

    @torch.no_grad()
    def update(self, live: nn.Module, n_updates: int) -> None:
        beta1 = self._optimizer.param_groups[0]["betas"][0]
        for averaged, current in zip(self.model.parameters(), live.parameters(), strict=True):
            state = self._optimizer.state.get(current)
            z = local(state["z"]) if state else local(current)
            local(averaged).copy_(torch.lerp(z, local(current), 1 / beta1))
        for averaged, current in zip(self.model.buffers(), live.buffers(), strict=True):
            averaged.copy_(current)
