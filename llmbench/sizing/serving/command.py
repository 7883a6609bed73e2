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
    engine = question.engine
    parts += [f"--block-size {engine.whole('block_tokens')}"] if "block_tokens" in engine.replaced else []
    if engine.whole("mtp"):
        drafts = f'{{"method": "mtp", "num_speculative_tokens": {engine.whole("mtp")}}}'
        parts += [f"--speculative-config {shlex.quote(drafts)}"]
    return parts


def _sglang(name: str, fit: Fit) -> list[str]:
    question, own = fit.question, fit.tightest
    layout = question.layout
    gpus = layout.tp * layout.dp
    parts = ["python -m sglang.launch_server --model-path", name, f"--context-length {question.seq}"]
    parts += [f"--tp-size {gpus}"] if gpus > 1 else []
    parts += [f"--pp-size {layout.pp}"] if layout.pp > 1 else []
    parts += [f"--dp-size {layout.dp} --enable-dp-attention"] if layout.dp > 1 else []
    parts += [f"--ep-size {layout.ep}"] if layout.ep > 1 else []
    parts += [f"--mem-fraction-static {_share(own.share)}", f"--max-running-requests {max(1, question.users)}"]
    kv = {"fp8": "fp8_e4m3"}.get(question.kv or "", question.kv)
    parts += [f"--kv-cache-dtype {kv}"] if kv else []
    return parts


def _trtllm(name: str, fit: Fit) -> list[str]:
    question, own = fit.question, fit.tightest
    layout = question.layout
    parts = ["trtllm-serve", name, f"--max_seq_len {question.seq}"]
    parts += [f"--tp_size {layout.tp}"] if layout.tp > 1 else []
    parts += [f"--pp_size {layout.pp}"] if layout.pp > 1 else []
    parts += [f"--ep_size {layout.ep}"] if layout.ep > 1 else []
    parts += [f"--max_batch_size {own.sequences}", f"--max_num_tokens {own.batched_tokens}"]
    return [*parts, f"--kv_cache_free_gpu_memory_fraction {_share(own.share)}"]


def _llamacpp(name: str, fit: Fit) -> list[str]:
    question = fit.question
    recipe = fit.tightest.shard.format.removeprefix("gguf-").replace("-", "_").upper()
    file = shlex.quote(f"{name.rpartition('/')[2]}-{recipe}.gguf")
    parts = ["llama-server -m", file, f"-c {question.seq * question.users}", f"-np {question.users}", "-ngl 999"]
    parts += [f"-ctk {question.kv} -ctv {question.kv} -fa on"] if question.kv else []
    return parts


_FLAGS = {"llamacpp": _llamacpp, "sglang": _sglang, "trtllm": _trtllm, "vllm": _vllm}
"""The flags of each engine, by its rule."""
