"""The command that starts an engine with the settings of an answer, ready to paste."""

from __future__ import annotations

import shlex

from llmbench.sizing.serving.fit import Fit
from llmbench.spec.model import ModelSpec


def start_command(spec: ModelSpec, model: str, fit: Fit) -> str | None:
    """Return the command, or None if the engine has none. model: the MODEL of the user."""
    flags = _FLAGS.get(fit.question.engine.spec.rule)
    return None if flags is None else " ".join([*flags(_repository(spec, model), fit)])


def _repository(spec: ModelSpec, model: str) -> str:
    """Return the name with which an engine finds the weights."""
    if model.startswith("hf:"):
        return shlex.quote(model.removeprefix("hf:"))
    named = next((alias for alias in spec.aliases if alias.count("/") == 1), None)
    return shlex.quote(named or model or spec.name)


def _share(value: float) -> str:
    return f"{value:.4g}"


def _vllm(name: str, fit: Fit) -> list[str]:
    question, own = fit.question, fit.tightest
    layout = question.layout
    parts = ["vllm serve", name, f"--max-model-len {question.seq}"]
    parts += [f"--tensor-parallel-size {layout.tp}"] if layout.tp > 1 else []
    parts += [f"--pipeline-parallel-size {layout.pp}"] if layout.pp > 1 else []
    parts += [f"--data-parallel-size {layout.dp}"] if layout.dp > 1 else []
    parts += ["--enable-expert-parallel"] if layout.ep > 1 else []
    parts += [f"--gpu-memory-utilization {_share(own.share)}"]
    parts += [f"--max-num-seqs {own.sequences}", f"--max-num-batched-tokens {own.batched_tokens}"]
    parts += [f"--kv-cache-dtype {question.kv}"] if question.kv else []
    return parts


_FLAGS = {"vllm": _vllm}
"""The flags of each engine, by its rule."""
