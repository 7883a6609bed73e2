"""The row of `llmbench flops`: a model with the FLOPs of one step, and the fields of the row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from llmbench.answers.about import MODEL_FIELDS, AboutModel
from llmbench.report.fields import Field
from llmbench.sizing.flops import Flops, step_flops, step_ops
from llmbench.sizing.op import Op
from llmbench.sizing.params import layer_group
from llmbench.sizing.workload import Recompute, Workload
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.answers.launches import Launched
    from llmbench.sizing.adapters import Adapters

By = Literal["component", "op"]
"""What one row of the table stands for."""
ScoredPairs = Literal["causal", "full"]
"""The (query, key) pairs that count: those inside the mask, or all."""


class Counted(AboutModel, kw_only=True):
    """A model and the FLOPs of one step."""

    flops: Flops
    workload: Workload
    chunk: Workload | None = None
    """The chunk of a prompt that the decoding step processes too."""
    recompute: Recompute
    adapters: Adapters | None = None
    by: By = "component"
    """The rows of the table. With `op`, the answer has the kernel launches too."""

    @property
    def parts(self) -> list[Workload]:
        """The workload, and the chunk that the same step processes."""
        return [self.workload] if self.chunk is None else [self.workload, self.chunk]


def _moved_by_step(name: str, what: str) -> Field[Counted]:
    """Return a field with bytes that the whole step moves: an attribute of `Flops`."""
    return Field(
        name,
        value=lambda row: _bytes(row, getattr(row.flops, name)),
        description=f"bytes of {what}, in bf16; null in training",
    )


FIELDS: tuple[Field[Counted], ...] = (
    *MODEL_FIELDS,
    Field(
        "phase", value=lambda row: row.workload.phase, description="value of `--phase`: `prefill`, `decode` or `train`"
    ),
    Field("seq_len", value=lambda row: length(row.workload), description="value of `--seq`: tokens per sequence"),
    Field("batch", value=lambda row: row.workload.batch, description="value of `--batch`: number of sequences"),
    Field(
        "chunk",
        value=lambda row: row.chunk and row.chunk.query_len,
        description="value of `--chunk`: tokens of a prompt that the decoding step processes too; null without a chunk",
    ),
    Field(
        "chunk_start",
        value=lambda row: row.chunk and row.chunk.kv_len - row.chunk.query_len,
        description="value of `--chunk-start`: tokens of this prompt that are in the cache; null without a chunk",
    ),
    Field(
        "attention",
        value=lambda row: "full" if row.workload.masked_pairs else "causal",
        description="value of `--attention`: whether masked (query, key) pairs are counted too (`full`) or not "
        "(`causal`)",
    ),
    Field("recompute", description="value of `--recompute`"),
    Field(
        "lora",
        value=lambda row: None if row.adapters is None else str(row.adapters),
        description="value of `--lora`, with its defaults: the adapters; null without adapters",
    ),
    Field(
        "absorbed_mla",
        value=lambda row: absorbs(row.spec, row.workload),
        description="whether latent attention (MLA) is counted in its absorbed form, which does not expand the "
        "latents; only decoding uses it",
    ),
    Field(
        "total_flops",
        value=lambda row: row.flops.total,
        description="FLOPs of the step: the forward pass, and in training also the backward pass",
    ),
    Field("matmul_flops", value=lambda row: row.flops.matmul, description="FLOPs of matrix products with weights"),
    Field(
        "attention_flops",
        value=lambda row: row.flops.attention,
        description="FLOPs of the two products of attention: queries with keys, and scores with values",
    ),
    Field(
        "recurrent_flops", value=lambda row: row.flops.recurrent, description="FLOPs of recurrences and convolutions"
    ),
    Field(
        "recompute_flops",
        value=lambda row: row.flops.recompute,
        description="FLOPs of the forward pass that the backward pass computes again; not part of `total_flops`",
    ),
    Field(
        "tokens",
        value=lambda row: row.flops.tokens,
        description="number of tokens that the step computes: `batch` × `seq_len`, or `batch` in decoding, and `chunk`",
    ),
    Field("flops_per_token", value=lambda row: row.flops.per_token, description="`total_flops` / `tokens`"),
    Field(
        "rule_of_thumb_flops",
        value=lambda row: row.flops.rule,
        description="FLOPs of the step by the rule of thumb: 2·N per token, or 6·N per token in training. N is the "
        "number of active parameters without embeddings. Frozen parameters count 4·N",
    ),
    Field("components", value=lambda row: row.flops.components, description="FLOPs of each component"),
    _moved_by_step("weight_bytes", "the weights that the step reads, each once, with the expected number of experts"),
    _moved_by_step("kv_read_bytes", "the caches and recurrent states that the step reads"),
    _moved_by_step("kv_written_bytes", "the caches and recurrent states that the step writes"),
    Field(
        "launches",
        value=lambda row: None if row.by != "op" else launched(row).totals,
        description="kernels that the step launches, for each fusion profile: `eager` (plain PyTorch), `fused` "
        "(llmbench's kernels) and `vllm` (approximate). A profile is null if the launches of an op are unknown, in "
        "training, and in a step with a chunk. Only with `--by op`, else null. "
        "See [Kernel launches](../concepts/the-op-table.md#kernel-launches)",
    ),
    Field(
        "ops",
        value=lambda row: None if row.by != "op" else _every_op(row),
        description="list of all ops of the [op table](../concepts/the-op-table.md), also of those without FLOPs, each "
        "with `op`, `layers`, `count`, `flops`, `launches` and the bytes of the forward pass, for all instances of the "
        "op. The bytes are in bf16 and null in training: `weight_bytes`, `read_bytes` and `written_bytes` of "
        "activations, `kv_read_bytes` and `kv_written_bytes`. Only with `--by op`, else null",
    ),
)


def absorbs(spec: ModelSpec, workload: Workload) -> bool:
    """Return whether the model has latent attention (MLA), and this workload computes it in its absorbed form."""
    return workload.absorbed_mla and any(mixer.absorbs for mixer in spec.mixers)


def length(workload: Workload) -> int:
    """Return the value of --seq: tokens per sequence, or cached tokens if the phase is decode."""
    return workload.kv_len - 1 if workload.phase == "decode" else workload.query_len


def ops_of(row: Counted) -> list[Op]:
    """Return the ops of the step of a row."""
    return step_ops(row.spec, row.workload, row.adapters, row.chunk)


def launched(row: Counted) -> Launched:
    """Return the ops of the step of a row, with their kernel launches."""
    from llmbench.answers.launches import Launched  # only --by op needs it

    return Launched(row.spec, row.workload, ops_of(row), known=row.chunk is None)


def figures(row: Counted, op: Op) -> dict[str, Any]:
    """Return the figures of all instances of an op."""
    return {"op": op.name, "layers": layer_group(op), "count": op.count, "flops": step_flops(op, row.workload)}


def _every_op(row: Counted) -> list[dict[str, Any]]:
    counts = launched(row)
    return [{**figures(row, op), **_moved(row, op), "launches": counts.of(op)} for op in counts.ops]


def _moved(row: Counted, op: Op) -> dict[str, int | None]:
    """Return the bytes that all instances of an op read and write."""
    names = ("weight_bytes", "read_bytes", "written_bytes", "kv_read_bytes", "kv_written_bytes")
    return {name: _bytes(row, op.count * getattr(op, name)) for name in names}


def _bytes(row: Counted, size: int) -> int | None:
    """Return the bytes that a forward pass moves. None in training, whose backward pass moves more."""
    return None if row.workload.phase == "train" else size
