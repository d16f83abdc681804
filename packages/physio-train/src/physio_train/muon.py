"""Muon: momentum whose matrices are made orthogonal before they are applied, beside AdamW for everything else.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). The momentum M of a matrix is replaced by an
approximation of U V^T of its singular value decomposition, by a quintic Newton-Schulz iteration, and scaled by
sqrt(max(1, rows / columns)). A matrix of three stacked squares (3 D, D) is taken for the joint projection of queries, keys
and values, and its three parts are turned apart. Under sharding the whole gradient is put together for a matrix, then this rank's part applied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from physio_train.sharding import full, like, local

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Groups with `kind="muon"` are turned, groups with `kind="adamw"` take AdamW's step at `adamw_lr_ratio` times the learning rate."""

    def __init__(
        self,
        groups: list[dict],
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        n_iterations: int = 5,
        adamw_lr_ratio: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "n_iterations": n_iterations, "adamw_lr_ratio": adamw_lr_ratio}
        super().__init__(groups, {**settings, "betas": betas, "eps": eps, "weight_decay": weight_decay, "kind": "muon"})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step of every group. Closures are not taken."""
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            if group["kind"] == "adamw":
                self._adamw(group, given)
            else:
                for parameter in given:
                    self._turn(group, parameter)

    def _turn(self, group: dict, parameter: Tensor) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = local(state["momentum"])
        momentum.lerp_(local(gradient), 1 - group["momentum"])
        update = local(gradient).lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        turned = orthogonal(full(like(update, parameter)), group["n_iterations"])
        local(parameter).mul_(1 - group["lr"] * group["weight_decay"])
        local(parameter).add_(local(like(turned, parameter, whole=True)).to(parameter.dtype), alpha=-group["lr"])

    def _adamw(self, group: dict, given: list[Tensor]) -> None:
        """Loshchilov and Hutter (2019), Algorithm 2, with Adam's bias corrections."""
        if not given:
            return
        for parameter in given:
            if not self.state[parameter]:
                self.state[parameter].update(exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter), step=torch.zeros(()))
            self.state[parameter]["step"] += 1
        lr, (beta1, beta2) = group["lr"] * group["adamw_lr_ratio"], group["betas"]
        weights, gradients = [local(p) for p in given], [local(p.grad) for p in given]
        first, second = ([local(self.state[p][key]) for p in given] for key in ("exp_avg", "exp_avg_sq"))
        n_steps = [self.state[p]["step"].item() for p in given]
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        spread = torch._foreach_sqrt(second)
        torch._foreach_div_(spread, [(1 - beta2**n) ** 0.5 for n in n_steps])
        torch._foreach_add_(spread, group["eps"])
        torch._foreach_addcdiv_(weights, first, spread, [-lr / (1 - beta1**n) for n in n_steps])


def orthogonal(matrix_RC: Tensor, n_iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, about: singular values end between 0.7 and 1.2, times sqrt(max(1, rows / columns)).

    Quintic Newton-Schulz iteration X <- a X + (b A + c A^2) X with A = X X^T, in bf16 on accelerators and float32 on the host.
    Three stacked squares are turned apart.
    """
    n_rows, n_columns = matrix_RC.shape
    if n_rows == 3 * n_columns:
        return torch.cat([orthogonal(part, n_iterations) for part in matrix_RC.chunk(3)])
    a, b, c = COEFFICIENTS
    x = matrix_RC.to(torch.float32 if matrix_RC.device.type == "cpu" else torch.bfloat16)
    x = x.T if n_rows > n_columns else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(n_iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.T if n_rows > n_columns else x
    return x.to(matrix_RC.dtype) * max(1.0, n_rows / n_columns) ** 0.5
