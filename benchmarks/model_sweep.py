"""Load a tiny checkpoint of every causal language model of transformers, and compare the logits.

    python benchmarks/model_sweep.py                    # needs torch and transformers, takes two minutes
    python benchmarks/model_sweep.py --type llama --type gpt2
    python benchmarks/model_sweep.py --only refused --format json
    python benchmarks/model_sweep.py --multimodal       # the language models of multimodal models

For each model type, the script makes a model of transformers with small sizes and random weights, saves it, loads the
folder with `llmbench.model.load`, and compares the logits of both in fp32. Outcomes:

    equal      the largest difference is at most 1e-5 of the largest logit
    refused    llmbench refuses the folder; the reason is its message
    wrong      the logits differ, or llmbench ended with an error of its own
    not tiny   transformers cannot make a small model with these sizes; the reason is its message

One process handles the types one after the other. If it crashes or a type takes too long, that type is "not tiny", and
a new process continues with the next type. The exit code is 1 if an outcome is "wrong".
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import re
import selectors
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

SMALL: dict[str, Any] = {
    # Every model.
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Windows and chunks are shorter than the sequence.
    "sliding_window": 6,
    "window_size": 6,
    "attention_window_size": 6,
    "attention_chunk_size": 6,
    "local_attention": 6,
    # Other names of the sizes above, in classes that do not map them.
    "embedding_size": 32,
    "ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "depth": 2,
    "embed_dim": 32,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "num_encoder_layers": 4,
    "num_decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "word_embed_proj_dim": 32,
    "d_inner": 48,
    "dff": 48,
    "rotary_dim": 4,
    "dim_head": 8,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "zero_expert_num": 2,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "dense_intermediate_size": 40,
    "intermediate_size_mlp": 40,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 48,
    "first_k_dense_replace": 1,
    "interleave_moe_layer_step": 2,
    # Latent attention and its indexer.
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 6,
    # State-space models and linear attention.
    "state_size": 8,
    "ssm_state_size": 8,
    "time_step_rank": 4,
    "n_groups": 2,
    "num_heads": 8,
    "chunk_size": 8,
    "lru_width": 32,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "mamba_dt_rank": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "mamba_chunk_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "context_length": 64,
    # Parts of single families.
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
    "num_kv_shared_layers": 1,
    "o_groups": 2,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "num_layers": 2,
    "laurel_rank": 8,
}
"""Small sizes by the name of the key. A config gets those that its class knows."""

_LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"] * 2

_IN_THREE_PARTS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_IN_TWO_PARTS = {**_IN_THREE_PARTS, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}

REQUIRED: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": None,
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        }
    },
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 5000.0, "clip_qkv": 0.5},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gemma4_text": {"layer_types": _LOCAL_AND_GLOBAL, "num_kv_shared_layers": 2, "global_head_dim": 8},
    "gemma4_unified_assistant": {"hidden_size_per_layer_input": 0},
    "gemma4_unified_text": {"layer_types": _LOCAL_AND_GLOBAL, "num_kv_shared_layers": 2, "global_head_dim": 8},
    "glm4v_moe_text": {"rope_parameters": _IN_TWO_PARTS},
    "glm4v_text": {"rope_parameters": _IN_THREE_PARTS},
    "glm_ocr_text": {"rope_parameters": _IN_THREE_PARTS},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "paddleocr_vl_text": {"rope_parameters": _IN_THREE_PARTS},
    "qwen2_5_vl_text": {"rope_parameters": _IN_THREE_PARTS},
    "qwen2_vl": {"vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4}},
    "qwen2_vl_text": {"rope_parameters": _IN_THREE_PARTS},
    "roc_bert": {
        "pronunciation_vocab_size": 96,
        "pronunciation_embed_dim": 8,
        "shape_vocab_size": 96,
        "shape_embed_dim": 8,
    },
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""Keys that a class needs in addition to the small sizes."""

LENGTH = 20
BOUND = 1e-5
MOST_PARAMETERS = 10_000_000
SECONDS_PER_TYPE = 60
NOISE = 0.1
"""Standard deviation of the random values that are added to the initial weights, so that none is 0 or 1."""


def model_types(multimodal: bool) -> list[str]:
    """Return the types that AutoModelForCausalLM or AutoModelForMultimodalLM loads."""
    from transformers.models.auto import modeling_auto

    if multimodal:
        return list(modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
    return list(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_values(kind: Any) -> dict[str, Any]:
    """Return the small sizes that a config class knows, for its parts too."""
    default = kind()
    values: dict[str, Any] = {key: value for key, value in SMALL.items() if _knows(default, key)}
    if "multi_query" in default.to_dict():  # that key alone gives the number of key-value heads
        values.pop("num_key_value_heads", None)
    if "kv_lora_rank" in values:  # latent attention has as many key heads as query heads
        values["num_key_value_heads"] = values["num_attention_heads"]
    for name, part in getattr(kind, "sub_configs", {}).items():
        stated = getattr(default, name, None)
        part = type(stated) if hasattr(stated, "to_dict") else part
        if hasattr(stated, "to_dict") and hasattr(part, "model_type"):
            values[name] = {**small_values(part), "model_type": part.model_type}
    return {**values, **copy.deepcopy(REQUIRED.get(kind.model_type, {}))}


def _knows(config: Any, key: str) -> bool:
    return key in config.to_dict() or key in config.attribute_map


def tiny_config(model_type: str) -> Any:
    """Return a config of the class of this type with small sizes. Lists with one entry per layer are shortened so that
    each kind of layer stays."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    default, values = kind(), small_values(kind)
    depth = getattr(default, "num_hidden_layers", None)
    lists = {
        key: shortened(value, SMALL["num_hidden_layers"])
        for key, value in default.to_dict().items()
        if isinstance(value, list) and value and len(value) == depth
    }
    try:
        config = kind(**values)
    except Exception:
        return kind(**values, **lists)
    wrong = {key: lists[key] for key in lists if len(getattr(config, key) or []) != SMALL["num_hidden_layers"]}
    return kind(**values, **wrong) if wrong else config


def shortened(entries: list[Any], length: int) -> list[Any]:
    """Return a list of this length that has each kind of entry, if it is long enough."""
    kinds = [entry for place, entry in enumerate(entries) if entry not in entries[:place]]
    return (kinds * length)[:length]


def tiny_model(model_type: str, *, multimodal: bool = False) -> Any:
    """Return a tiny model of transformers with random weights. Raises ValueError for a model that is not small."""
    import torch
    import transformers

    kind = transformers.AutoModelForMultimodalLM if multimodal else transformers.AutoModelForCausalLM
    config = tiny_config(model_type)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind.from_config(config).parameters())
    if size > MOST_PARAMETERS * (10 if multimodal else 1):
        raise ValueError(f"the model still has {size:,} parameters")
    torch.manual_seed(0)
    model = kind.from_config(tiny_config(model_type), attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=NOISE)
        for name, buffer in model.named_buffers():
            if "correction" in name:  # a router's correction is trained, though it is a buffer
                buffer.normal_(0.0, NOISE, generator=generator)
    return model


def compare(model_type: str, *, multimodal: bool = False) -> dict[str, Any]:
    """Return the row of one type: outcome, relative error of the logits, reason."""
    import torch

    from llmbench import model as models
    from llmbench.errors import LLMBenchError

    def row(outcome: str, error: float | None = None, reason: str = "") -> dict[str, Any]:
        return {"type": model_type, "outcome": outcome, "relative_error": error, "reason": " ".join(reason.split())}

    with tempfile.TemporaryDirectory() as folder:
        tokens = torch.randint(3, SMALL["vocab_size"], (2, LENGTH), generator=torch.Generator().manual_seed(2))
        try:
            theirs = tiny_model(model_type, multimodal=multimodal)
            with torch.no_grad():
                expected = theirs(tokens, use_cache=False).logits
            if not torch.isfinite(expected).all():
                raise ValueError("the logits are not finite")
            theirs.save_pretrained(folder)
        except Exception as problem:
            return row("not tiny", reason=f"{type(problem).__name__}: {problem}"[:300])
        try:
            with torch.no_grad():
                logits = models.load(folder)(tokens)
        except LLMBenchError as problem:
            return row("refused", reason=re.sub(rf"{folder}|{os.path.basename(folder)}", "FOLDER", str(problem)))
        except Exception as problem:
            return row("wrong", reason=f"{type(problem).__name__}: {problem}"[:300])
    if logits.shape != expected.shape:
        return row("wrong", reason=f"logits {tuple(logits.shape)}, not {tuple(expected.shape)}")
    error = float((logits - expected).abs().max() / expected.abs().max())
    return row("equal" if error <= BOUND else "wrong", error)


def handle(types: list[str], multimodal: bool) -> None:
    """Print one line of JSON per type. This runs in a process of its own."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    out, sys.stdout = sys.stdout, sys.stderr  # some classes of transformers print
    for model_type in types:
        print(json.dumps(compare(model_type, multimodal=multimodal)), file=out, flush=True)


def rows_of(types: list[str], multimodal: bool) -> Iterator[dict[str, Any]]:
    """Return the row of each type. A process that ends early, or takes too long, costs one row."""
    left = list(types)
    while left:
        process = subprocess.Popen(
            [sys.executable, __file__, *["--multimodal"] * multimodal, "--child", *left],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector, process:
            selector.register(process.stdout, selectors.EVENT_READ)
            while left and selector.select(SECONDS_PER_TYPE):
                line = process.stdout.readline()
                if not line:
                    break
                yield json.loads(line)
                left.pop(0)
            process.kill()
        if left:
            reason = f"the process crashed, or took more than {SECONDS_PER_TYPE} s"
            yield {"type": left.pop(0), "outcome": "not tiny", "relative_error": None, "reason": reason}


def main() -> None:
    """Print the table or the JSON rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", action="append", metavar="TYPE", help="only this model type (repeatable)")
    parser.add_argument("--only", choices=["equal", "refused", "wrong", "not tiny"], help="show only this outcome")
    parser.add_argument("--multimodal", action="store_true", help="multimodal models: compare logits of text")
    parser.add_argument("--format", choices=["table", "json"], default="table")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        handle(arguments.child, arguments.multimodal)
        return
    counts: Counter[str] = Counter()
    shown = []
    for row in rows_of(arguments.type or model_types(arguments.multimodal), arguments.multimodal):
        counts[row["outcome"]] += 1
        if arguments.only in (None, row["outcome"]):
            shown.append(row)
            if arguments.format == "table":
                error = "" if row["relative_error"] is None else f"{row['relative_error']:.1e}"
                print(f"{row['type']:28}{row['outcome']:10}{error:9}{row['reason'][:200]}".rstrip(), flush=True)
    if arguments.format == "json":
        json.dump({"rows": shown, "counts": counts}, sys.stdout, indent=2)
        print()
    else:
        print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    sys.exit(1 if counts["wrong"] else 0)


if __name__ == "__main__":
    main()
