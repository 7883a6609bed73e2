"""What a piece of a model is measured at, and what it is made of there.

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
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.work import Pass, Work, least_s, work
from llmbench.sizing.workload import Phase, Workload
from llmbench.spec.mixer import AttentionKind, branches
from llmbench.spec.model import ModelSpec

__all__ = ["Made", "Piece", "Setting", "computed", "held"]


def computed(impl: str, phase: Phase) -> dict[str, Any]:
    """How a workload says that it is computed by that implementation: on plain torch's terms unless the kernels are
    ours. What holds the scores computes those too that the mask throws away; a cache holds no more than a new token
    sees."""
    scores = impl in ("standard", "grouped")  # which differ in their experts alone
    return {
        "attention": "standard" if scores else "flash",
        "masked_pairs": scores and phase != "decode",
        "kernels": "fused" if impl == "fused" else "eager",
    }


def held(impl: str, spec: ModelSpec, device: torch.device) -> dict[str, Any]:
    """How a workload says what torch makes beside results, where that implementation leaves something to torch there:
    masks for its attention, which `flash` is too on a CPU; and scores, where it has no kernel: on a CPU for keys and
    values of different widths."""
    on_a_cpu = device.type == "cpu"
    found: dict[str, Any] = {
        "dense_mask": impl.startswith("sdpa") or (impl == "flash" and on_a_cpu),
        "on_cpu": on_a_cpu,
    }
    mixers = [mixer for layer in spec.layers.values() for mixer in branches(layer.mixer)]
    if impl.startswith("sdpa") and on_a_cpu and any(_uneven(mixer) for mixer in mixers):
        found |= {"attention": "standard"}
    return found


def _uneven(mixer: object) -> bool:
    """Whether keys and values have different widths."""
    return isinstance(mixer, AttentionKind) and (mixer.absorbs or mixer.value_dim != mixer.key_dim)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model and a shape: `seq_len` tokens of `batch` sequences, in a cache where the piece decodes; `of` is what is
    timed."""

    spec: ModelSpec
    batch: int
    seq_len: int
    dtype: Format
    device: torch.device
    of: Pass = "forward"

    @property
    def format(self) -> torch.dtype:
        """torch's name of the format."""
        return DTYPES[self.dtype]

    @property
    def backward(self) -> bool:
        """Whether gradients are made."""
        return self.of != "forward"

    def but(self, **changes: Any) -> Setting:
        """The same with something else."""
        return replace(self, **changes)

    def normal(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Random values, made where they will be; on meta none at all."""
        dtype = dtype or self.format
        if self.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32).to(dtype)

    def tokens(self, below: int, *shape: int, seed: int = 0) -> Tensor:
        """Random integers from 0; on meta none at all."""
        if self.device.type == "meta":
            return torch.empty(shape, dtype=torch.int64, device=self.device)
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(below, shape, generator=generator).to(self.device)

    def positions(self) -> Tensor:
        """0 … S-1 of every sequence, [B, S]."""
        return torch.arange(self.seq_len, device=self.device).expand(self.batch, -1)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A piece in memory, for every way to compute it: `run(how, **inputs)`, also in fp64 where `inputs` are.

    `differentiable` names the inputs that have gradients; `parameters(format)` are the weights beside them that have
    some too, by name, as `run` computes with them in that format. `model`: what modules are in, where any are.
    `state_bytes`: of a cache that is kept beside them. `found`: figures that making it came to, for its rows.
    """

    run: Callable[..., Tensor | tuple[Tensor, ...]]
    inputs: dict[str, Any]
    differentiable: tuple[str, ...] = ()
    parameters: Callable[[torch.dtype], Mapping[str, Tensor]] = lambda dtype: {}
    model: nn.Module | None = None
    state_bytes: int = 0
    found: Mapping[str, Scalar] = field(default_factory=dict)

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes of inputs, of parameters in that format, and of the state."""
        tensors = [value for value in self.inputs.values() if isinstance(value, Tensor)]
        return self.state_bytes + sum(tensor.nbytes for tensor in (*tensors, *self.parameters(dtype).values()))


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a model that can be timed by itself.

    `alone(spec)` is the smallest model that has it (one layer); it raises LLMBenchError where there is none. `has(op)`
    says which ops of that model it is, in the order of the table; `backward_only` names those that a forward pass by
    itself does without, `keeps` those whose results leave it beside the last one's; where it `fuses`, the way
    `fused` does all of them in one kernel. `make` puts it into memory. `phase` is that of its ops; what decodes has no
    backward pass. `impl` is the way to compute it that is worth looking at on a GPU, `cpu_impl` on a CPU; `shapes` are
    the defaults there: model, changes to it, batch, tokens. `check_seq` is as long as a check in fp64 needs.
    """

    name: str
    what: str
    alone: Callable[[ModelSpec], ModelSpec]
    has: Callable[[Op], bool]
    make: Callable[[Setting], Made]
    shapes: dict[Literal["cuda", "cpu"], tuple[str, dict[str, Any], int, int]]
    phase: Literal["train", "decode"] = "train"
    impl: str = "fused"
    cpu_impl: str | None = None
    check_seq: int = 256
    backward_only: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    fuses: bool = False

    @property
    def bandwidth(self) -> Bandwidth:
        """What its bytes are held against: a decoding step hardly writes."""
        return "read" if self.phase == "decode" else "copy"

    def work(self, setting: Setting) -> Work:
        """What no way to compute it does without."""
        return work(self.ops_of(setting), setting.of, keeps=self.keeps)

    def predicted_s(self, setting: Setting, impl: str, limits: Limits) -> float:
        """The least time of that implementation's ops, one after the other; where it is one op to it, of that."""
        if not (self.fuses and impl == "fused"):
            return least_s(self.ops(setting, impl), setting.of, limits.least_s)
        passes: tuple[Pass, ...] = ("forward", "backward") if setting.of == "both" else (setting.of,)
        return sum(limits.least_s(*self.work(setting.but(of=each))) for each in passes)

    def ops(self, setting: Setting, impl: str) -> list[Op]:
        """Its ops as that implementation computes them."""
        return self.ops_of(setting, **(computed(impl, self.phase) | held(impl, setting.spec, setting.device)))

    def ops_of(self, setting: Setting, **how: Any) -> list[Op]:
        """Its ops for a workload with these options."""
        formats: dict[str, Any] = dict.fromkeys(("weight_dtype", "activation_dtype", "kv_dtype"), setting.dtype)
        if self.phase == "decode":
            workload = Workload(
                phase="decode",
                batch=setting.batch,
                query_len=1,
                kv_len=setting.seq_len,
                absorbed_mla=True,
                **formats,
                **how,
            )
        else:
            workload = Workload.train(setting.seq_len, setting.batch, **formats, **how)
        without = () if setting.backward else self.backward_only
        return [op for op in lower(setting.spec, workload) if self.has(op) and op.name not in without]
