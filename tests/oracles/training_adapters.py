"""Low-rank adapters for the traced transformer: plain PyTorch, a frozen base, and A and B beside some matrices.

Nothing here knows a formula. The forward pass is that of the papers (LoRA 2106.09685, DoRA 2402.09353, QLoRA
2305.14314): y = W x + s · B A x, and for DoRA m / |W + s B A| · (W x + s B A x) with the norm not differentiated. A
4-bit matrix is two buffers; each product makes a bf16 copy of the matrix, in the forward and in the backward pass, and
autograd saves only the buffers.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Which matrices have adapters, and how the frozen matrices of the blocks are stored (nf4: 4 bits, 64 a block)."""

    rank: int
    targets: tuple[str, ...]
    dropout: float = 0.0
    dora: bool = False
    nf4: bool = False


@torch.library.custom_op("llmbench_oracle::dequantise", mutates_args=())
def _dequantise(packed: Tensor, absmax: Tensor, rows: int, columns: int) -> Tensor:
    halves = torch.stack((packed >> 4, packed & 15), -1).float() - 7.5
    return (halves.view(-1, 64) * absmax[:, None]).view(rows, columns).to(torch.bfloat16)


@_dequantise.register_fake
def _(packed: Tensor, absmax: Tensor, rows: int, columns: int) -> Tensor:
    return packed.new_empty((rows, columns), dtype=torch.bfloat16)


class _QuantisedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, absmax: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(packed, absmax)
        ctx.shape = rows, x.shape[-1]
        return x @ _dequantise(packed, absmax, *ctx.shape).mT

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return dy @ _dequantise(*ctx.saved_tensors, *ctx.shape), None, None, None


class Nf4Linear(nn.Module):
    """A frozen matrix in 4 bits."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.register_buffer("packed", torch.zeros(outputs * inputs // 2, dtype=torch.uint8))
        self.register_buffer("absmax", torch.ones(outputs * inputs // 64, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., inputs)."""
        return _QuantisedProduct.apply(x, self.packed, self.absmax, self.outputs)


class AdaptedLinear(nn.Module):
    """A frozen matrix with an adapter."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int, lora: Lora) -> None:
        super().__init__()
        self.base, self.lora = base, lora
        self.a, self.b = nn.Linear(inputs, lora.rank, False), nn.Linear(lora.rank, outputs, False)
        if lora.dora:
            self.magnitude = nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., inputs)."""
        y = self.base(x)
        dropped = torch.native_dropout(x, self.lora.dropout, True)[0] if self.lora.dropout else x
        added = self.b(self.a(dropped))
        if not self.lora.dora:
            return y + added * 2.0
        with torch.no_grad():
            norm = (self.base.weight + 2.0 * (self.b.weight @ self.a.weight)).norm(dim=1)
        scale = self.magnitude / norm
        return y + ((scale - 1) * y + scale * added * 2.0)


def add_adapters(model: nn.Module, lora: Lora) -> None:
    """Freeze the model, store the matrices of its blocks as `lora` says, and put adapters beside the targets."""
    for weight in model.parameters():
        weight.requires_grad_(False)
    for block in model.blocks:
        for name, child in list(block.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            outputs, inputs = child.weight.shape
            base = Nf4Linear(outputs, inputs) if lora.nf4 else child
            setattr(block, name, AdaptedLinear(base, inputs, outputs, lora) if name in lora.targets else base)
