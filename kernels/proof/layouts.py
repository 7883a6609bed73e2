"""Tensors with equal values and other strides: permuted, with gaps, at another address, or expanded.

An op must not depend on the layout of its inputs, nor on that of the gradients that it receives. Memory between the
values contains NaN, a large number or -1, so that an element which is read by mistake makes the result wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmbench.kernels.kernel import Draw

__all__ = ["expanded", "restrided"]


def restrided(x: Tensor, draw: Draw, *, unit_stride: bool = False) -> Tensor:
    """Return a copy of x in another random layout. `unit_stride`: the last stride stays 1.

    The dimensions are stored in a random order. Each dimension may have unused elements before and after its values,
    and between them.
    """
    order = list(range(x.dim()))
    if draw.chance(0.6):
        draw.shuffle(order)
    if unit_stride and order:
        order.remove(x.dim() - 1)
        order.append(x.dim() - 1)
    sizes, places = [], []
    for position, dim in enumerate(order):
        step = 2 if draw.chance(0.2) and not (unit_stride and position == len(order) - 1) else 1
        before, after = (draw.choice((1, 3, 8)) if draw.chance(0.25) else 0 for _ in range(2))
        end = before + x.shape[dim] * step
        sizes.append(end + after)
        places.append(slice(before, end, step))
    memory = torch.full(sizes, _between(x), dtype=torch.float32, device=x.device)
    view = memory.to(x.dtype)[tuple(places)].permute([order.index(dim) for dim in range(x.dim())])
    return view.copy_(x)


def _between(x: Tensor) -> float:
    """Return the number that stands in the memory between the values of x.

    In bf16 on a CPU with AMX, torch's own product reads the element after each row of odd length, and multiplies it by
    zero. NaN would make plain torch wrong there.
    """
    if not x.is_floating_point():
        return -1.0
    return 1e6 if x.dtype == torch.bfloat16 and x.device.type == "cpu" else float("nan")


def expanded(x: Tensor, draw: Draw) -> Tensor:
    """Return x with one random dimension expanded: all its values are those of its first index, at stride 0. The last
    dimension of a matrix is not expanded, because equal scores of experts have no order.

    A tensor without dimensions or without elements stays as it is. So does one with NaN, which marks unused rows of a
    cache, because other rows are unused in another sequence.
    """
    if not x.numel() or not x.dim() or not bool(x.float().isfinite().all()):
        return x
    dim = draw.randrange(max(1, x.dim() - 1))
    return x.narrow(dim, 0, 1).expand_as(x)
