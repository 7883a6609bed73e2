"""Number formats in training, and the bytes of optimizer states."""

from __future__ import annotations

from math import prod
from typing import Literal, assert_never, get_args

import msgspec

from llmbench.errors import SpecError
from llmbench.sizing.dtypes import DType, Tensors, bits_of, bytes_of
from llmbench.sizing.items import Reader, choice, decimal, flag, read_items, several, whole_number
from llmbench.sizing.op import Op
from llmbench.sizing.recompute import Module

Optimizer = Literal["adamw", "adamw-8bit", "lion", "sgd", "sgd-momentum", "adafactor", "muon"]
PrecisionName = Literal["mixed", "mixed-fp32-grads", "bf16", "fp32", "fp8"]


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """The number formats that one precision option uses in training.

    name: value of the command-line option.
    weights, activations, gradients: format of each of these tensors.
    master: whether the optimizer updates an fp32 copy of the weights (the master copy).
    states: format of the optimizer states.
    """

    name: PrecisionName
    weights: DType
    activations: DType
    gradients: DType
    master: bool
    states: DType


_TRAINING: dict[str, Precision] = {
    # 16 bytes per parameter with AdamW: 2 for weights, 2 for gradients, 4 for the master copy, 8 for the states (ZeRO,
    # arXiv 1910.02054, section 3.1)
    "mixed": Precision(name="mixed", weights="bf16", activations="bf16", gradients="bf16", master=True, states="fp32"),
    # 18 bytes per parameter with AdamW, because Megatron accumulates gradients in fp32 (4 bytes)
    "mixed-fp32-grads": Precision(
        name="mixed-fp32-grads",
        weights="bf16",
        activations="bf16",
        gradients="fp32",
        master=True,
        states="fp32",
    ),
    "bf16": Precision(name="bf16", weights="bf16", activations="bf16", gradients="bf16", master=False, states="bf16"),
    "fp32": Precision(name="fp32", weights="fp32", activations="fp32", gradients="fp32", master=False, states="fp32"),
    # Matrix products convert their inputs to fp8 when they run. Stored tensors stay in bf16, as in torchao's float8
    # training.
    "fp8": Precision(name="fp8", weights="bf16", activations="bf16", gradients="bf16", master=True, states="fp32"),
}


def training_precision(name: str) -> Precision:
    """Return the number formats of a training precision. Raises SpecError if there is no such precision."""
    if name not in _TRAINING:
        raise SpecError(f"precision `{name}` is unknown", hint=f"choose from {', '.join(_TRAINING)}")
    return _TRAINING[name]


def product_dtype(precision: PrecisionName) -> DType:
    """Return the format in which the matrix products of a training step run. A device must be able to compute it."""
    match precision:
        case "mixed" | "mixed-fp32-grads" | "bf16":
            return "bf16"
        case "fp32" | "fp8":
            return precision
        case _:
            assert_never(precision)


UpdateStep = Literal["fused", "foreach", "loop", "backward"]
Offload = Literal["states", "weights", "activations"]
Framework = Literal["torch", "megatron", "megatron-local"]
_FORMATS = ("fp32", "bf16", "fp16", "fp8")
_FLAGS = (
    "mtp",
    "fused_gradients",
    "batch_first",
    "table_units",
    "loader_mask",
    "sequential_experts",
    "deterministic",
)


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a training step beyond its precision, optimizer and layout. Each default changes nothing.

    step: how the optimizer updates the weights. fused: one kernel without temporaries. foreach: all tensors at once,
        with one temporary per parameter (torch's default for AdamW on a GPU). loop: one tensor after another. backward:
        each weight as soon as its gradient is computed, so that gradients of other weights do not exist.
    states: formats of the optimizer states, one for all, or two for the first and the second moment (`fp8+fp16`). None:
        as the precision says (Megatron's --exp-avg-dtype and --exp-avg-sq-dtype).
    master: format of the master copy. `remainder` stores the 16 bits that bf16 weights lack (Transformer Engine's
        FusedAdam). None: as the precision says.
    offload: what the memory of the host stores. states: the optimizer states and the master copy. weights: the shards
        of weights, gradients and states (FSDP's CPU offload). activations: the activations that layers save.
    recompute: parts of a layer that the backward pass computes again, in addition to those of --recompute (Megatron's
        --recompute-modules). See recompute.py.
    fp8: what Transformer Engine stores for matrix products in fp8. none: nothing. cached: an fp8 copy of each matrix
        and of its transpose, besides the weights, and inputs in fp8. primary: these copies instead of the weights
        (Megatron's --fp8-param-gather), and inputs in fp8.
    imbalance: number of (token, expert) pairs on the fullest GPU, divided by the mean over its expert-parallel group.
    mtp: whether modules for multi-token prediction are trained too.
    fused_gradients: whether matrix products add their weight gradients to fp32 buffers in place (Megatron's
        gradient-accumulation fusion). None: yes with fused kernels. It has no effect without fp32 gradients.
    batch_first: see Workload.
    framework: whose training loop and layers run. megatron: Megatron-LM with Transformer Engine. megatron-local:
        Megatron-LM with its own layers (--transformer-impl local). Megatron allocates the gradients of all weights
        during the whole run (the buffers of its DistributedDataParallel), copies 16-bit gradients to fp32 for the
        optimizer, weighs the inner activations of experts, and has workspaces of its own (see workspaces.py).
    table_units: whether the embedding and the head are units of FSDP of their own, so that they are gathered only while
        they run (torchtune's custom_sharded_layers). If false, they stay gathered during the whole step.
    loader_mask: whether the data loader makes an attention mask of one byte per query and key. None: yes with Megatron,
        whose option --no-create-attention-mask-in-dataloader turns it off.
    sequential_experts: whether each expert runs its own matrix products, instead of grouped ones (Megatron without
        --moe-grouped-gemm).
    deterministic: whether cuBLAS is deterministic. This changes its workspaces on GPUs before Hopper.
    deferred_heads: number of micro-batches for which the gradient of the head's weights is computed only after the last
        micro-batch (Megatron's --defer-embedding-wgrad-compute and --wgrad-deferral-limit). Until then, the inputs of
        these heads and the gradients of their outputs stay allocated.
    """

    step: UpdateStep = "fused"
    states: tuple[DType, ...] = ()
    master: Literal["fp32", "bf16", "fp16", "remainder"] | None = None
    offload: tuple[Offload, ...] = ()
    recompute: tuple[Module, ...] = ()
    fp8: Literal["none", "cached", "primary"] = "none"
    imbalance: float = 1.0
    mtp: bool = False
    fused_gradients: bool | None = None
    batch_first: bool = False
    framework: Framework = "torch"
    table_units: bool = False
    loader_mask: bool | None = None
    sequential_experts: bool = False
    deterministic: bool = False
    deferred_heads: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.imbalance <= 1000:
            raise SpecError(f"recipe imbalance: must be from 1 to 1000, not {self.imbalance:g}")
        if len(self.states) > 2:
            raise SpecError("recipe states: has at most two formats, one for each moment", hint="like states=fp8+fp16")

    @property
    def megatron(self) -> bool:
        """Whether Megatron-LM runs the step."""
        return self.framework != "torch"

    @property
    def precision_aware(self) -> bool:
        """Whether Megatron's precision-aware optimizer runs the step, which has formats of its own for its states."""
        return self.megatron and bool(self.states or self.master)

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Parse a text such as `step=foreach,states=bf16,offload=states+activations`.

        Raises SpecError if an item is unknown or has a wrong value. The message names the item.
        """
        readers: dict[str, Reader] = {
            "step": choice(*get_args(UpdateStep)),
            "states": several(*_FORMATS),
            "master": choice("fp32", "bf16", "fp16", "remainder"),
            "offload": several(*get_args(Offload)),
            "recompute": several(*get_args(Module)),
            "fp8": choice("none", "cached", "primary"),
            "imbalance": decimal,
            "framework": choice(*get_args(Framework)),
            "deferred_heads": whole_number,
            **dict.fromkeys(_FLAGS, flag),
        }
        return cls(**read_items(text, "recipe", readers, error=SpecError, example="step=foreach,offload=states"))

    def __str__(self) -> str:
        parts = []
        for name, default in zip(self.__struct_fields__, self.__struct_defaults__, strict=True):
            value = getattr(self, name)
            if value != default:
                shown = "+".join(value) if isinstance(value, tuple) else f"{value:g}" if type(value) is float else value
                parts.append(name if value is True else f"{name}={'0' if value is False else shown}")
        return ",".join(parts)


PLAIN_RECIPE = Recipe()


def state_bytes(op: Op, optimizer: Optimizer, precision: Precision, recipe: Recipe = PLAIN_RECIPE) -> int:
    """Return the bytes of optimizer states and master copy for one instance of an op."""
    return sum(tensors.bytes for tensors in state_tensors(op, optimizer, precision, recipe))


def state_tensors(op: Op, optimizer: Optimizer, precision: Precision, recipe: Recipe = PLAIN_RECIPE) -> list[Tensors]:
    """Return the optimizer states and the master copy of one instance of an op.

    - adamw: two moments per parameter.
    - adamw-8bit: two moments of one byte per parameter, and an fp32 scale per 256 elements of each moment (arXiv
      2110.02861).
    - lion: one moment per parameter (arXiv 2302.06675).
    - sgd: no states.
    - sgd-momentum: one momentum per parameter.
    - adafactor: row sums and column sums for a matrix, one moment per element for a vector, no momentum (arXiv
      1804.04235).
    - muon: one momentum for matrices inside layers. All other parameters have AdamW's two moments.
    """
    n, bits = op.trained, bits_of(recipe.states[0] if recipe.states else precision.states)
    if not n:
        return []
    # Weights in fp8 have a master copy also where the other weights are in fp32.
    copied = n if precision.master else min(n, fp8_weights(op, recipe)) if recipe.fp8 == "primary" else 0
    tensors = [Tensors("master weights", copied, master_bits(recipe))] if copied else []
    match optimizer:
        case "adamw" if len(recipe.states) == 2:
            first, second = recipe.states
            tensors += [Tensors("first moments", n, bits_of(first)), Tensors("second moments", n, bits_of(second))]
        case "adamw":
            tensors.append(Tensors("first and second moments", 2 * n, bits))
        case "adamw-8bit":
            tensors += [Tensors("first and second moments", 2 * n, 8), Tensors("scales", 2 * -(-n // 256), 32)]
        case "sgd":
            pass
        case "sgd-momentum" | "lion":
            tensors.append(Tensors("momentum", n, bits))
        case "adafactor":
            copies, rows, columns = op.owned_matrix or (0, 0, 0)
            if copies:
                tensors.append(Tensors("row and column sums", copies * (rows + columns), bits))
            if n > copies * rows * columns:
                tensors.append(Tensors("second moments of vectors", n - copies * rows * columns, bits))
        case "muon":
            if op.matrix is not None and op.kind == "matmul" and op.layer:
                tensors.append(Tensors("momentum", n, bits))
            else:
                tensors.append(Tensors("first and second moments", 2 * n, bits))
        case _:
            assert_never(optimizer)
    return tensors


def fp8_weights(op: Op, recipe: Recipe) -> int:
    """Return the number of weights of one instance of an op that Transformer Engine multiplies in fp8."""
    if recipe.fp8 == "none" or op.matrix is None or op.kind != "matmul" or not op.layer or op.component == "router":
        return 0
    return prod(op.matrix)


def master_bits(recipe: Recipe = PLAIN_RECIPE) -> int:
    """Return the bits per parameter of the master copy."""
    return 16 if recipe.master == "remainder" else bits_of(recipe.master or "fp32")


def temporary_bits(optimizer: Optimizer, precision: Precision, recipe: Recipe = PLAIN_RECIPE) -> int:
    """Return the bits per parameter of the temporaries of an optimizer step.

    torch's AdamW stores the square root of the second moments, in their format: of all parameters at once with foreach,
    and of one tensor at a time, twice, with loop (torch/optim/adam.py). The foreach steps of SGD work in place.
    Transformer Engine's FusedAdam, which Megatron's precision-aware optimizer runs, converts all states of other
    formats to fp32 at once (transformer_engine/pytorch/optimizers/fused_adam.py).
    """
    if recipe.precision_aware and optimizer == "adamw":
        both = recipe.states if len(recipe.states) == 2 else 2 * recipe.states
        return sum(32 for dtype in both if dtype != "fp32")
    if optimizer != "adamw" or recipe.step not in ("foreach", "loop"):
        return 0
    return bits_of(recipe.states[-1] if recipe.states else precision.states)


def check_recipe(recipe: Recipe, optimizer: Optimizer, precision: Precision) -> None:
    """Raise SpecError for settings that contradict the optimizer or the precision."""
    if recipe.step in ("foreach", "loop") and optimizer not in ("adamw", "sgd", "sgd-momentum"):
        raise SpecError(
            f"recipe step={recipe.step}: llmbench does not know the temporaries of {optimizer}",
            hint="choose step=fused or step=backward, or --optimizer adamw, sgd or sgd-momentum",
        )
    if recipe.master and not precision.master:
        raise SpecError(f"recipe master={recipe.master}: precision {precision.name} has no master copy")
    if recipe.states and optimizer in ("adamw-8bit", "sgd"):
        raise SpecError(f"recipe states: the formats of the states of {optimizer} are fixed")
    if len(recipe.states) == 2 and optimizer != "adamw":
        raise SpecError(f"recipe states: {optimizer} does not have two moments", hint="give one format")


def update_bytes(op: Op, optimizer: Optimizer, precision: Precision) -> int:
    """Return the bytes that an optimizer step reads and writes for one instance of an op.

    The step reads the gradients. It reads and writes the weights, the master copy and the optimizer states, each once.
    """
    gradients, weights = (bytes_of(op.parameters, dtype) for dtype in (precision.gradients, precision.weights))
    return gradients + 2 * (weights + state_bytes(op, optimizer, precision))
