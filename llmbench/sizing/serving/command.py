"""The commands that start an engine with the settings of an answer, ready to paste."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from llmbench.sizing.serving.fit import Fit
from llmbench.sizing.serving.layouts import SERVER
from llmbench.spec.model import ModelSpec


class Start(NamedTuple):
    """The commands that start an engine.

    command: the command for one server, or for the first of several servers. FIRST-SERVER stands for its address.
    others: the command for each other server, or None if it needs none. RANK stands for one of `ranks`, if there are
        several.
    several: what else several servers need, in words. "": nothing.
    """

    command: str
    others: str | None = None
    ranks: tuple[int, ...] = ()
    several: str = ""


def start_commands(files: str, fit: Fit, *, draft: str | None = None) -> Start | None:
    """Return the commands, or None if the engine has none. Servers have SERVER GPUs.

    files, draft: the names with which the engine finds the weights of the model and of its draft model (`weights_of`).
    If the engine does not make the format of the answer from these files, the command has a placeholder for files in
    this format (see `placeholder`).
    """
    rule = fit.question.engine.spec.rule
    if rule not in _FLAGS:
        return None
    own = fit.tightest.shard.format
    name = own if own.endswith(".gguf") else placeholder(fit) or files
    parts = _FLAGS[rule](name, fit, fit.question.seq, draft)
    several = _several_servers(fit)
    others = None if several.others is None else " ".join((*parts, several.others))
    return several._replace(command=" ".join(filter(None, (*parts, several.command))), others=others)


def _several_servers(fit: Fit) -> Start:
    """Return the flags that several servers need, and what they need besides.

    Sources: vLLM, docs/serving/data_parallel_deployment.md and parallelism_scaling.md; SGLang, multi_node.html of its
    documentation. SGLang has copies on several servers only of the attention (`--enable-dp-attention`).
    """
    layout, engine = fit.question.layout, fit.question.engine.spec
    servers, copy = -(-layout.num_gpus // SERVER), layout.tp * layout.pp
    if servers == 1 or engine.rule == "llamacpp":  # one server can have 16 GPUs
        return Start("")
    whole = layout.num_gpus % SERVER == 0
    copies = SERVER // copy if SERVER % copy == 0 else 0
    if engine.rule == "vllm" and layout.dp == 1:
        ray = f"start a Ray cluster of the {servers} servers, and run the command on one of them"
        return Start("--distributed-executor-backend ray", several=ray)
    if engine.rule == "vllm" and whole and copies:
        same = f"--data-parallel-size-local {copies} --data-parallel-address FIRST-SERVER"
        ranks = tuple(range(copies, layout.dp, copies))
        return Start(same, f"{same} --data-parallel-start-rank {_rank(ranks)} --headless", ranks)
    if engine.rule == "sglang" and whole and (layout.dp == 1 or fit.tightest.shard.moe):
        same = f"--nnodes {servers} --dist-init-addr FIRST-SERVER:20000 --node-rank"
        ranks = tuple(range(1, servers))
        return Start(f"{same} 0", f"{same} {_rank(ranks)}", ranks)
    return Start("", several=f"the command has no settings for {servers} servers: see the manual of {engine.title}")


def _rank(ranks: tuple[int, ...]) -> str:
    """Return the rank of the only other server, or what stands for the ranks of several."""
    return str(*ranks) if len(ranks) == 1 else "RANK"


def placeholder(fit: Fit) -> str:
    """Return the name that stands for files in the format of an answer: `YOUR-AWQ-FILES`.

    "": the engine loads the published files, the user named a file, or the command names a file by its format, as for
    llama.cpp.
    """
    named = fit.tightest.shard.format.endswith(".gguf")
    if fit.published or named or fit.on_load is not None or fit.question.engine.spec.rule == "llamacpp":
        return ""
    return f"YOUR-{fit.tightest.shard.format_name.upper()}-FILES"


def weights_of(spec: ModelSpec, model: str) -> str | None:
    """Return the name with which an engine finds the weights: a folder, a GGUF file, or a repository of Hugging Face.

    model: the MODEL of the user. A config.json stands for its folder. None: no files are known, as for a model that the
    user describes, and for a folder without weights.
    """
    if model.startswith("hf:"):
        return model.removeprefix("hf:")
    named = next((alias for alias in spec.aliases if alias.count("/") == 1), None)
    if model.endswith(".toml") or not os.path.exists(model):
        return named
    if model.endswith(".gguf"):
        return model
    folder = Path(model).parent if model.endswith(".json") else Path(model)
    return str(folder) if any(any(folder.glob(pattern)) for pattern in _WEIGHTS) else named


_WEIGHTS = ("*.safetensors*", "*.gguf", "*.bin")
"""The names of files with weights, and of their indices."""


def _share(value: float) -> str:
    return f"{value:.4g}"


def _plain_cache(fit: Fit) -> bool:
    """Return whether the cache has the format of the activations, which is the default of every engine."""
    return fit.question.kv in (None, fit.tightest.shard.activations)


def _cache_flag(fit: Fit, names: dict[str, str]) -> list[str]:
    """Return the flag for the format of the cache. names: the engine's name of a format, if it differs from ours."""
    kv = fit.question.kv
    return [] if kv is None or _plain_cache(fit) else [f"--kv-cache-dtype {names.get(kv, kv)}"]


def _dtype_flag(fit: Fit) -> list[str]:
    """Return the flag for bf16, fp16 or fp32, if the user named it, or for a format that the engine converts to."""
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    made = [] if fit.on_load is None else [fit.on_load.flag]
    return [f"--dtype {names[weights]}"] if (weights := fit.question.weights) in names else made


def _vllm(name: str, fit: Fit, seq: int, draft: str | None) -> list[str]:
    question, own, engine = fit.question, fit.tightest, fit.question.engine
    layout = question.layout
    parts = ["vllm serve", shlex.quote(name), f"--max-model-len {seq}", *_dtype_flag(fit)]
    parts += [f"--tensor-parallel-size {layout.tp}"] if layout.tp > 1 else []
    parts += [f"--pipeline-parallel-size {layout.pp}"] if layout.pp > 1 else []
    parts += [f"--data-parallel-size {layout.dp}"] if layout.dp > 1 else []
    parts += ["--enable-expert-parallel"] if layout.ep > 1 else []
    parts += [f"--gpu-memory-utilization {_share(own.share)}"]
    parts += [f"--max-num-seqs {own.sequences}", f"--max-num-batched-tokens {own.batched_tokens}"]
    parts += _cache_flag(fit, {"bf16": "bfloat16", "fp16": "float16"})
    latent = any(rows.latent for rows in own.shard.rows)
    block = "latent_block_tokens" if latent else "block_tokens"
    parts += [f"--block-size {engine.whole(block)}"] if block in engine.replaced else []
    if "chunked_prefill" in engine.replaced:
        parts += ["--enable-chunked-prefill" if engine.whole("chunked_prefill") else "--no-enable-chunked-prefill"]
    speculation: dict[str, Any] = {}
    if draft is not None:
        speculation = {"method": "draft_model", "model": draft, "num_speculative_tokens": engine.whole("draft_tokens")}
    elif engine.whole("mtp"):
        speculation = {"method": "mtp", "num_speculative_tokens": engine.whole("mtp")}
    return parts + ([f"--speculative-config {shlex.quote(json.dumps(speculation))}"] if speculation else [])


def _sglang(name: str, fit: Fit, seq: int, draft: str | None) -> list[str]:
    question, own, engine = fit.question, fit.tightest, fit.question.engine
    layout = question.layout
    copies = layout.dp if own.shard.moe else 1  # --tp-size counts the GPUs of all copies of the attention
    gpus = layout.tp * copies
    parts = ["python -m sglang.launch_server --model-path", shlex.quote(name), f"--context-length {seq}"]
    parts += _dtype_flag(fit)
    parts += [f"--tp-size {gpus}"] if gpus > 1 else []
    parts += [f"--pp-size {layout.pp}"] if layout.pp > 1 else []
    parts += [f"--dp-size {layout.dp}"] if layout.dp > 1 else []
    parts += ["--enable-dp-attention"] if copies > 1 else []
    parts += [f"--ep-size {layout.ep}"] if layout.ep > 1 else []
    parts += [f"--mem-fraction-static {_share(own.share)}", f"--max-running-requests {max(1, question.users)}"]
    parts += [f"--chunked-prefill-size {own.batched_tokens}"]
    # SGLang names the format of the elements, and a model with an indexer stores fp8_ds_mla rows of them.
    parts += _cache_flag(fit, {"fp8": "fp8_e4m3", "fp8_ds_mla": "fp8_e4m3", "fp4": "fp4_e2m1"})
    for key, flag, unit in (
        ("block_tokens", "--page-size", 1),
        ("windows_percent", "--swa-full-tokens-ratio", 100),
        ("states_percent", "--mamba-full-memory-ratio", 100),
    ):
        parts += [f"{flag} {engine.get(key) / unit:g}"] if key in engine.replaced else []
    steps = engine.whole("draft_tokens" if draft is not None else "mtp")
    if draft is not None:
        parts += ["--speculative-algorithm STANDALONE", f"--speculative-draft-model-path {shlex.quote(draft)}"]
    elif steps:
        parts += ["--speculative-algorithm EAGLE"]
    if steps and (draft is not None or engine.whole("mtp")):
        # A chain of drafts: one candidate per step, and the token of the model itself.
        parts += [f"--speculative-num-steps {steps}", "--speculative-eagle-topk 1"]
        parts += [f"--speculative-num-draft-tokens {steps + 1}"]
    return parts


def _trtllm(name: str, fit: Fit, seq: int, draft: str | None) -> list[str]:
    question, own, engine = fit.question, fit.tightest, fit.question.engine
    layout = question.layout
    gpus = layout.tp * layout.dp
    parts = ["trtllm-serve", shlex.quote(name), f"--max_seq_len {seq}"]
    parts += [f"--tp_size {gpus}"] if gpus > 1 else []
    parts += [f"--pp_size {layout.pp}"] if layout.pp > 1 else []
    parts += [f"--ep_size {layout.ep}"] if layout.ep > 1 else []
    parts += [f"--max_batch_size {own.sequences}", f"--max_num_tokens {own.batched_tokens}"]
    parts += [f"--kv_cache_free_gpu_memory_fraction {_share(own.share)}"]
    cache: dict[str, Any] = {} if _plain_cache(fit) else {"dtype": question.kv}
    if "block_tokens" in engine.replaced:
        cache["tokens_per_block"] = engine.whole("block_tokens")
    options: dict[str, Any] = {"kv_cache_config": cache} if cache else {}
    if layout.dp > 1:
        options["enable_attention_dp"] = True
    if draft is not None:
        options["speculative_config"] = {
            "decoding_type": "DraftTarget",
            "max_draft_len": engine.whole("draft_tokens"),
            "speculative_model_dir": draft,
        }
    elif engine.whole("mtp"):
        options["speculative_config"] = {"decoding_type": "MTP", "num_nextn_predict_layers": engine.whole("mtp")}
    # JSON is YAML too. These settings have no flag of their own.
    return parts + ([f"--extra_llm_api_options <(echo {shlex.quote(json.dumps(options))})"] if options else [])


def _llamacpp(name: str, fit: Fit, seq: int, draft: str | None) -> list[str]:
    question, engine = fit.question, fit.question.engine
    own = name if fit.published else name.removesuffix(".gguf")  # a file of another format is not the user's
    file = shlex.quote(_gguf_file(own, fit.tightest.shard.format))
    parts = ["llama-server -m", file, f"-c {seq * question.users}", f"-np {question.users}", "-ngl 999"]
    parts += [f"-ub {engine.whole('batched_tokens')}"] if "batched_tokens" in engine.replaced else []
    parts += [] if _plain_cache(fit) else [f"-ctk {question.kv} -ctv {question.kv} -fa on"]
    if draft is not None:
        small = fit.budgets[-1].shard.draft  # the last stage has it
        own = _gguf_file(draft, "" if small is None else small.format)
        parts += [f"-md {shlex.quote(own)} -ngld 999 --draft-max {engine.whole('draft_tokens')}"]
    return parts


def _gguf_file(name: str, recipe: str) -> str:
    """Return the GGUF file of a model, or its usual name: `Llama-3-8B-Q4_K_M.gguf`.

    recipe: name of its format, or the file that `--weights` names.
    """
    if recipe.endswith(".gguf"):
        return recipe
    if name.endswith(".gguf"):
        return name
    stem = Path(name).resolve().name if os.path.isdir(name) else name.rpartition("/")[2]
    return f"{stem}-{recipe.removeprefix('gguf-').replace('-', '_').upper()}.gguf"


_FLAGS = {"llamacpp": _llamacpp, "sglang": _sglang, "trtllm": _trtllm, "vllm": _vllm}
"""The flags of each engine, by its rule."""
