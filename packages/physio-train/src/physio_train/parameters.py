"""Which rule each trained parameter falls under: decay, layer-wise learning rate, and whether Muon turns it.

The rules look at what a parameter is (the kind of module that owns it, its place in a stack of layers), never at its name.

Decay: the matrices and kernels of linear and convolutional layers. Norms, biases, embeddings, tokens, position tables and
the parameters of state-space layers (any that a module owns directly) are left alone, as is customary.
Depth: a stack is an outermost `ModuleList`. Of a stack of L layers, layer i (from 0) lies L - i below the top; what comes
before the stack, and what its owner holds directly (tokens, positions), L + 1; everything after it, and models without a stack, 0.
Muon: matrices of linear layers inside a stack; the first and last maps of a network stay with AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

_MATRICES = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase)


@dataclass(frozen=True)
class Rule:
    """How one parameter is trained: by which rule, decayed or not, and how many layers below the top it lies."""

    kind: Literal["adamw", "muon"] = "adamw"
    decayed: bool = False
    below_top: int = 0


def trained(model: nn.Module, modules: nn.Module) -> dict[str, nn.Parameter]:
    """What an optimiser trains, by name: `model/...` and `modules/...`, a shared parameter once."""
    owners = (("model", model), ("modules", modules))
    named = {f"{owner}/{name}": p for owner, m in owners for name, p in m.named_parameters() if p.requires_grad}
    seen: set[int] = set()
    return {name: p for name, p in named.items() if not (id(p) in seen or seen.add(id(p)))}


def rules(model: nn.Module, modules: nn.Module, *, decay_all: bool = False) -> dict[str, Rule]:
    """The rule of every parameter that `trained` names. `decay_all` decays each of them."""
    out: dict[str, Rule] = {}
    for owner, root in (("model", model), ("modules", modules)):
        below = layers_below_top(root) if owner == "model" else {}
        hidden = _in_stacks(root) if owner == "model" else set()
        for prefix, module in root.named_modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                name = f"{prefix}.{leaf}".lstrip(".")
                matrix = isinstance(module, _MATRICES) and parameter.ndim > 1
                turned = isinstance(module, nn.Linear) and parameter.ndim == 2 and name in hidden
                out[f"{owner}/{name}"] = Rule("muon" if turned else "adamw", decay_all or matrix, below.get(name, 0))
    return {name: out[name] for name in trained(model, modules)}


def layers_below_top(model: nn.Module) -> dict[str, int]:
    """How many layers below the top each parameter lies, by name; every parameter has an entry."""
    below: dict[str, int] = {}
    _descend(model, "", below)
    return below


def _descend(module: nn.Module, prefix: str, below: dict[str, int]) -> None:
    children = list(module.named_children())
    at = [i for i, (_, child) in enumerate(children) if _has_stack(child)]
    before = _first_stack_depth(children[at[0]][1]) if at else 0
    below.update({f"{prefix}{leaf}": before for leaf, _ in module.named_parameters(recurse=False)})
    for i, (name, child) in enumerate(children):
        if isinstance(child, nn.ModuleList) and i in at:
            for layer, block in enumerate(child):
                below.update({f"{prefix}{name}.{layer}.{leaf}": len(child) - layer for leaf, _ in block.named_parameters()})
        elif i in at:
            _descend(child, f"{prefix}{name}.", below)
        else:
            below.update({f"{prefix}{name}.{leaf}": before if at and i < at[0] else 0 for leaf, _ in child.named_parameters()})


def _first_stack_depth(module: nn.Module) -> int:
    """The depth below the top of what feeds the first stack in a module."""
    if isinstance(module, nn.ModuleList):
        return len(module) + 1
    return _first_stack_depth(next(child for child in module.children() if _has_stack(child)))


def _has_stack(module: nn.Module) -> bool:
    return any(isinstance(m, nn.ModuleList) and len(m) for m in module.modules())


def _in_stacks(model: nn.Module) -> set[str]:
    stacks = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    return {name for name, _ in model.named_parameters() if any(name.startswith(f"{stack}.") for stack in stacks)}
