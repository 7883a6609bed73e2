"""The types `Setting` (the model and shape at which a piece is measured), `BuiltPiece` (a piece in memory) and `Piece`
(a part of a model).

B batch, S query length, T key length, D hidden, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmbench.measure.reference import Bandwidth, Limits
from llmbench.measure.results import Scalar
from llmbench.model.formats import DTYPES, Format
from llmbench.model.implementations.interface import Traits
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.traffic import attention_bytes
from llmbench.sizing.work import Pass, Work, least_s, work
from llmbench.sizing.workload import Workload
from llmbench.spec.mixer import AttentionKind
from llmbench.spec.model import ModelSpec

__all__ = ["BuiltPiece", "Piece", "Setting"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The model and shape at which a piece is measured: `batch` sequences of `seq_len` tokens.

    For a decoding piece, `seq_len` is the number of tokens in the cache per sequence, including the new token.
    `direction`: the pass that is timed.
    """

    spec: ModelSpec
    batch: int
    seq_len: int
    dtype: Format
    device: torch.device
    direction: Pass = "forward"

    @property
    def format(self) -> torch.dtype:
        """The number format as a torch dtype."""
        return DTYPES[self.dtype]

    @property
    def backward(self) -> bool:
        """Whether the timed pass computes gradients."""
        return self.direction != "forward"

    def changed(self, **changes: Any) -> Setting:
        """Return a copy of the setting with some fields replaced."""
        return replace(self, **changes)

    def normal(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor of normally distributed values, drawn on the device. On the meta device, the tensor has no
        values."""
        dtype = dtype or self.format
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32).to(dtype)

    def tokens(self, below: int, *shape: int, seed: int = 0) -> Tensor:
        """Return a tensor of uniform random integers from 0 to `below` - 1. On the meta device, the tensor has no
        values."""
        if self.device.type == "meta":
            return torch.empty(shape, dtype=torch.int64, device=self.device)
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(below, shape, generator=generator).to(self.device)

    def positions(self) -> Tensor:
        """Return the positions 0 … S-1 of every sequence, [B, S]."""
        return torch.arange(self.seq_len, device=self.device).expand(self.batch, -1)


@dataclass(frozen=True, kw_only=True)
class BuiltPiece:
    """A piece in memory. All implementations that are compared on a piece share its inputs and weights.

    - `run(implementation, **inputs)` computes the piece, in fp64 if the inputs are in fp64.
    - `differentiable`: the names of the inputs that get gradients.
    - `parameters(format)` returns the weights in a number format, by name.
    - `model`: the module that contains the piece; None if no module contains it.
    - `state_bytes`: the bytes of a cache that is not among the inputs.
    - `extra`: figures for the rows, computed when the piece was built.
    """

    run: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: dict[str, Any]
    differentiable: tuple[str, ...] = ()
    parameters: Callable[[torch.dtype], Mapping[str, Tensor]] = lambda dtype: {}
    model: nn.Module | None = None
    state_bytes: int = 0
    extra: Mapping[str, Scalar] = field(default_factory=dict)

    def nbytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of the inputs, of the parameters in the format `dtype`, and of the cache."""
        tensors = [value for value in self.inputs.values() if isinstance(value, Tensor)]
        return self.state_bytes + sum(tensor.nbytes for tensor in (*tensors, *self.parameters(dtype).values()))


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a model that can be timed by itself.

    - `reduce(spec)` returns the smallest model that has the piece, usually with one layer. It raises LLMBenchError for
      a model without the piece.
    - `has(op)` returns whether an op of that model belongs to the piece.
    - `build(setting)` allocates the inputs and the weights.
    - `backward_only`: the names of ops that run only if the timed pass includes a backward pass.
    - `outputs`: the names of ops whose results are read outside the piece. The last op is not listed.
    - `fuses`: whether implementations with fused kernels run all ops of the piece in one kernel.
    - `phase`: the phase of the ops. A decoding piece has no backward pass.
    - `shapes`: the default shape on a GPU and on a CPU, as (model, changes to the model, batch, tokens per sequence).
    - `default_change`: in words, how the default model on a CPU differs from the model with its name, and why; "" if it
      does not differ.
    - `check_seq`: the tokens per sequence in the fp64 check.
    - `of(spec)` says which module of the model the piece is, with its size: `RMSNorm of 4,096 values`. "" says nothing.
    - `name`, `what`: the name and the description.
    - `impl`, `cpu_impl`: the default implementation on a GPU and on a CPU.

    The registry sets the last four for the pieces that it lists.
    """

    name: str = ""
    what: str = ""
    reduce: Callable[[ModelSpec], ModelSpec]
    has: Callable[[Op], bool]
    build: Callable[[Setting], BuiltPiece]
    shapes: dict[Literal["cuda", "cpu"], tuple[str, dict[str, Any], int, int]] = field(default_factory=dict)
    default_change: str = ""
    phase: Literal["train", "decode"] = "train"
    impl: str = "fused"
    cpu_impl: str = "standard"
    check_seq: int = 256
    of: Callable[[ModelSpec], str] = lambda spec: ""
    backward_only: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    fuses: bool = False

    @property
    def bandwidth(self) -> Bandwidth:
        """The reference measurement with which the memory traffic of the piece is compared. A decoding step is compared
        with `read`, because it writes almost nothing."""
        return "read" if self.phase == "decode" else "copy"

    def work(self, setting: Setting) -> Work:
        """Return the work (FLOPs and bytes) that every implementation must do."""
        return work(self.ops_of(setting), setting.direction, keeps=self.outputs)

    def predicted_s(self, setting: Setting, traits: Traits, limits: Limits) -> float:
        """Return the predicted time in seconds: the sum of the least times of the ops that an implementation with these
        traits runs. If the implementation runs the whole piece in one kernel, the piece counts as one op."""
        if not (self.fuses and traits.fused_kernels):
            return least_s(self.ops(setting, traits), setting.direction, limits.least_s)
        passes: tuple[Pass, ...] = ("forward", "backward") if setting.direction == "both" else (setting.direction,)
        return sum(limits.least_s(*self.work(setting.changed(direction=direction))) for direction in passes)

    def moved_bytes(self, setting: Setting, traits: Traits) -> int | None:
        """Return the bytes that an implementation with these traits moves, or None if the piece is not the attention
        over whole sequences. `work` has the least bytes instead, which are equal for all implementations."""
        ops = self.ops(setting, traits)
        if self.phase != "train" or [op.role for op in ops] != ["core"]:
            return None
        mixer = setting.spec.layers[ops[0].layer].mixer
        assert isinstance(mixer, AttentionKind)
        return attention_bytes(
            ops[0], mixer, setting.direction, batch=setting.batch, seq_len=setting.seq_len, dtype=setting.dtype
        )

    def ops(self, setting: Setting, traits: Traits) -> list[Op]:
        """Return the ops of the piece that an implementation with these traits runs."""
        return self.ops_of(setting, **(traits.computed(self.phase) | traits.temporaries(setting.spec, setting.device)))

    def ops_of(self, setting: Setting, **options: Any) -> list[Op]:
        """Return the ops of the piece for a workload with these options."""
        formats: dict[str, Any] = dict.fromkeys(("weight_dtype", "activation_dtype", "kv_dtype"), setting.dtype)
        if self.phase == "decode":
            workload = Workload(
                phase="decode",
                batch=setting.batch,
                query_len=1,
                kv_len=setting.seq_len,
                absorbed_mla=True,
                **formats,
                **options,
            )
        else:
            workload = Workload.train(setting.seq_len, setting.batch, **formats, **options)
        without = () if setting.backward else self.backward_only
        return [op for op in lower(setting.spec, workload) if self.has(op) and op.name not in without]
