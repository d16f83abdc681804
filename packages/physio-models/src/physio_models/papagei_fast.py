"""PaPaGei's blocks as fast as they go where no gradient is wanted; the numbers are the plain ones but for rounding.

What was measured to pay on a CPU: time as the slow axis and channels as the fast one, so that convolutions need no reordering;
the norm between a block's two convolutions folded into the first one; norm, ReLU and sum in place. A few windows at a time, to
stay in cache, paid nothing once every block's features are kept. Under autocast everything runs in its half precision.
Shape letters: B items, C channels, T samples, N tokens, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from physio_models.papagei import Block, Papagei, SameConv

FEWEST = 8  # windows from which preparing the weights pays


def applies(model: Papagei, x_BCT: Tensor) -> bool:
    """Whether `blocks` may stand in: running statistics are in use, no gradient is wanted and there are windows enough."""
    wanted = not model.training and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return wanted and len(x_BCT) >= FEWEST  # last: the length of a batch is no number while a graph is exported


def blocks(model: Papagei, x_BCT: Tensor) -> list[Tensor]:
    """Every block's output (B, N_l, D_l), the last after the final norm and ReLU."""
    device = x_BCT.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BCT.dtype
    with torch.autocast(device, enabled=False):
        x_BC1T = x_BCT.to(dtype)[:, :, None].contiguous(memory_format=torch.channels_last)
        x_BC1T = F.relu_(_same(x_BC1T, *folded(model.first_block_conv, model.first_block_bn, dtype), 1))
        features = []
        for block in model.basicblock_list:
            x_BC1T = _block(block, x_BC1T, folded(block.conv1, block.bn2, dtype), folded(block.conv2, None, dtype))
            features.append(x_BC1T)
        features[-1] = _norm_relu(model.final_bn, x_BC1T)
    return [feature.squeeze(2).transpose(1, 2) for feature in features]


def folded(same: SameConv, norm: torch.nn.BatchNorm1d | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight (out, in, 1, K) and bias of a convolution with the norm that follows it."""
    weight, bias = same.conv.weight, same.conv.bias
    if norm is not None:
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight, bias = weight * scale[:, None, None], (bias - norm.running_mean) * scale + norm.bias
    return weight.to(dtype)[:, :, None].contiguous(memory_format=torch.channels_last), bias.to(dtype)


def _block(block: Block, x_BC1T: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    y_BC1T = x_BC1T if block.first else _norm_relu(block.bn1, x_BC1T)
    y_BC1T = F.relu_(_same(y_BC1T, *first, block.conv1.conv.stride[0]))
    y_BC1T = _same(y_BC1T, *second, 1)
    if block.halves:
        x_BC1T = F.max_pool2d(F.pad(x_BC1T, (0, 1)) if x_BC1T.shape[-1] % 2 else x_BC1T, (1, 2))
    y_BC1T[:, block.before : block.before + x_BC1T.shape[1]] += x_BC1T
    return y_BC1T


def _same(x_BC1T: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """`SameConv` with channels last; equal padding on both sides is left to the convolution."""
    kernel, n_samples = weight.shape[-1], x_BC1T.shape[-1]
    total = max(0, (-(-n_samples // stride) - 1) * stride + kernel - n_samples)
    if total % 2:
        return F.conv2d(F.pad(x_BC1T, (total // 2, total - total // 2)), weight, bias, (1, stride))
    return F.conv2d(x_BC1T, weight, bias, (1, stride), (0, total // 2))


def _norm_relu(norm: torch.nn.BatchNorm1d, x_BC1T: Tensor) -> Tensor:
    return F.relu_(F.batch_norm(x_BC1T, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps))
