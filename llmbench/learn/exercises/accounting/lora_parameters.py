"""The parameters of low-rank adapters."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.models import llama, llama_text
from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.adapters import Adapters
from llmbench.sizing.flops import trained_parameters


def ask(draw: Draw) -> Asked:
    """Ask for the exact number of trained parameters."""
    model, rank = llama(draw), draw.pick(16, 4, 8, 32, 64)
    lora = f"r={rank},targets=q,v"
    trained, _ = trained_parameters(model.spec, Adapters.parse(lora))
    layers, keys = model.spec.num_hidden_layers, 128 * model.changes.get("num_key_value_heads", 8)
    return Asked(
        text=f"{llama_text(model)} It is fine-tuned with LoRA of rank {rank} on the projections of queries and "
        "values. How many parameters are trained?",
        kind="count",
        answer=trained,
        tolerance=0.0,
        solution=f"{layers} layers × {rank} × ((4,096 + 4,096) for q + (4,096 + {keys:,}) for v) = {trained:,}",
        command=f"llmbench flops {model.words} --phase train --lora {lora}",
        mistakes=(
            ("the projection of values is narrower: it has KV heads only", layers * rank * 4 * 4096),
            ("an adapter has two matrices", trained // 2),
            ("this is one layer", trained // layers),
        ),
    )


EXERCISE = Question(
    "parameters of low-rank adapters (LoRA)",
    ask,
    "An adapter of a matrix with n inputs and m outputs has matrices of n × r and r × m (Hu, arXiv 2106.09685).",
)
