"""Whatever a config of a known family says: the logits are those of transformers, or the model is refused.

Pairs of changed keys, any keys that the class of the config knows; older spellings of rotations; files in several
pieces. A mismatch without a word is what must never be.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llmbench import model as models
from llmbench.errors import SpecError, UnsupportedError
from llmbench.model.mixers import new_cache
from llmbench.sizing.params import count_parameters
from llmbench.spec.huggingface import from_config

from .test_parity import FAMILIES, LENGTH, LONG, SHORT, config_of, error, saved

TOKENS = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(2))
FAR = {"rope_theta": 1000.0, "original_max_position_embeddings": 8}
ROTATIONS: list[dict[str, Any]] = [
    {**FAR, "rope_type": "default"},
    {**FAR, "rope_type": "default", "partial_rotary_factor": 0.5},
    {**FAR, "rope_type": "linear", "factor": 2.0},
    {**FAR, "rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "attention_factor": 1.3},
    {**FAR, "rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False},
    {**FAR, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {**FAR, "rope_type": "longrope", "factor": 4.0, "short_factor": SHORT, "long_factor": LONG},
]
CHOICES: dict[str, list[Any]] = {
    "hidden_act": ["relu", "gelu_pytorch_tanh"],
    "activation_function": ["relu", "gelu"],
    "num_key_value_heads": [1, 4],
    "sliding_window": [3, 1],
    "window_size": [3],
    "max_window_layers": [1],
    "num_experts_per_tok": [1, 3],
    "n_shared_experts": [2],
    "n_group": [2],
    "first_k_dense_replace": [0, 2],
    "decoder_sparse_step": [2],
    "mlp_only_layers": [[1]],
    "no_rope_layers": [[0, 1, 1, 0]],
    "scoring_func": ["softmax", "sigmoid"],
    "topk_method": ["greedy"],
}
"""Other values of keys that are no switches and no plain numbers; switches are turned, numbers grow by half."""

LEFT_ALONE = ("drop", "init", "token", "jitter", "aux", "output_", "return_", "use_cache", "is_", "chunk_size")
"""Parts of the names of keys that no logits depend on, or that make another kind of model."""


def changes(config: transformers.PreTrainedConfig) -> list[dict[str, Any]]:
    """Each change of one key that this config can have."""
    changed: list[dict[str, Any]] = []
    for key, value in config.to_dict().items():
        if key in CHOICES:
            changed += [{key: other} for other in CHOICES[key] if other != value]
        elif key == "rope_parameters" and isinstance(value, dict):
            kinds = [kind for kind, inner in value.items() if isinstance(inner, dict)]
            changed += [{key: dict.fromkeys(kinds, turn) if kinds else turn} for turn in ROTATIONS]
        elif key == "layer_types" and value:
            changed += [{key: value[::-1]}, {key: [value[-1]] * len(value)}]
        elif any(part in key for part in LEFT_ALONE):
            continue
        elif isinstance(value, bool):
            changed.append({key: not value})
        elif isinstance(value, float):
            changed.append({key: 1.5 * value + 0.1})
    return changed


def pairs(family: str) -> Iterator[dict[str, Any]]:
    """Pairs of changes, the same at each run."""
    singles = changes(config_of(family, {}))
    chance = random.Random(family)
    for _ in range(60):
        first, second = chance.sample(singles, 2)
        yield {**first, **second}


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_of_changes_are_equal_or_refused(family: str, tmp_path: Path) -> None:
    equal = tried = 0
    for index, pair in enumerate(pairs(family)):
        if tried == 5:
            break
        folder = tmp_path / str(index)
        try:  # not every pair is a model
            theirs = saved(config_of(family, pair), folder)
            with torch.no_grad():
                expected = theirs(TOKENS, use_cache=False).logits
        except Exception:
            continue
        if not torch.isfinite(expected).all():
            continue
        tried += 1
        try:
            ours = models.load(folder, impl="standard")
        except (UnsupportedError, SpecError):
            continue
        with torch.no_grad():
            assert error(ours(TOKENS), expected) <= 1e-5, pair
        equal += 1
    assert equal >= 2, f"{equal} of {tried}"


# --- Rotations in the spelling of older files, read by transformers from the same file.

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
OLDER: dict[str, tuple[str, dict[str, Any]]] = {
    "llama base": ("llama", {"rope_theta": 500.0}),
    "llama linear": ("llama", {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama dynamic": (
        "llama",
        {"max_position_embeddings": 8, "rope_scaling": {"type": "dynamic", "factor": 3.0}},
    ),
    "llama3": (
        "llama",
        {
            "rope_theta": 1000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            },
        },
    ),
    "qwen2 yarn": ("qwen2", {"rope_theta": 1000.0, "rope_scaling": YARN}),
    "phi3 longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 8,
            "rope_scaling": {"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        },
    ),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 500.0}),
    "gemma3": (
        "gemma3_text",
        {
            "rope_theta": 1000.0,
            "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "gemma3, local base of its class": ("gemma3_text", {"rope_theta": 1000.0}),
    "olmo3": ("olmo3", {"rope_theta": 500000.0, "rope_scaling": {**YARN, "rope_type": "yarn"}}),
    "stablelm": ("stablelm", {"rope_theta": 500.0, "partial_rotary_factor": 0.5}),
    **{f"{family}, rotation of its class": (family, {}) for family in ("cwm", "mellum", "gpt_oss")},
}


def respelled(family: str, keys: dict[str, Any], folder: Path) -> None:
    """A saved model whose config has these keys and no others that speak of its rotation."""
    saved(config_of(family, {}), folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("rope_parameters", None)
    file.write_text(json.dumps({**config, **keys}))


@pytest.mark.parametrize("case", OLDER)
def test_older_spellings_of_rotations(case: str, tmp_path: Path) -> None:
    respelled(*OLDER[case], tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        assert error(models.load(tmp_path, impl="standard")(TOKENS), theirs(TOKENS, use_cache=False).logits) <= 1e-5


@pytest.mark.parametrize(
    ("family", "keys", "why"),
    [
        ("olmo3", {"rope_scaling": YARN}, "ignores rope_scaling.type"),
        (
            "gemma3_text",
            {"rope_scaling": {"type": "linear", "factor": 8.0}},
            "ignores rope_scaling.type",
        ),
        (
            "olmo3",
            {"rope_theta": 500.0},
            "rope_theta = 500: in OLMo 3, transformers ignores it in layers with a window",
        ),
        ("dbrx", {}, "transformers ignores attn_config.rope_theta"),
        ("cohere2_moe", {"rope_scaling": YARN}, "ignores rope_scaling"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 4.0}}, "rope_scaling.alpha = 4.0"),
        ("llama", {"rope_scaling": {"type": "spiral"}}, "RoPE scaling `spiral` is unknown"),
        ("llama", {"partial_rotary_factor": 0.5}, "the class of `llama` rotates whole heads"),
        ("glm", {"partial_rotary_factor": 0.1}, "RoPE rotates pairs of dimensions"),
        ("mistral", {"sliding_window": 0}, "hides all attention keys"),
        ("qwen2_moe", {"layer_types": ["sliding_attention"] * 4}, "but use_sliding_window is false"),
        ("smollm3", {"layer_types": ["sliding_attention"] * 4}, "but use_sliding_window is false"),
        ("ernie4_5_moe", {"moe_norm_min": 0.5}, "moe_norm_min"),
        (
            "aria_text",
            {"hidden_act": "relu"},
            "hidden_act = `relu`: the routed experts of Aria always use SiLU",
        ),
        ("mpt", {"max_seq_len": 1}, "all distances of ALiBi to zero"),
        ("mamba", {"hidden_act": "relu"}, "recurrent layers support only `silu`"),
        ("llama", {"hidden_act": "laplace"}, "activation `laplace`"),
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 3}, "transformers leaves out columns"),
        ("llama", {"architectures": "LlamaModel"}, "saved as LlamaModel"),
    ],
)
def test_what_a_class_reads_otherwise_is_refused(family: str, keys: dict[str, Any], why: str, tmp_path: Path) -> None:
    respelled(family, keys, tmp_path)
    with pytest.raises(UnsupportedError, match=why):
        models.load(tmp_path)


def test_what_a_spec_does_not_describe_is_sized_but_not_built() -> None:
    config = {**config_of("llama", {}).to_dict(), "hidden_act": "laplace"}
    spec = from_config(config, name="odd")
    known = from_config({**config, "hidden_act": "silu"}, name="known")
    assert count_parameters(spec).total == count_parameters(known).total
    with pytest.raises(UnsupportedError, match=r"odd: the activation `laplace`.*not implemented in the PyTorch model"):
        models.build(spec, device="meta")


# --- What else a folder may hold.


def test_files_in_several_pieces_and_half_the_width(tmp_path: Path) -> None:
    theirs = saved(config_of("mixtral", {}), tmp_path / "whole").bfloat16()
    theirs.save_pretrained(tmp_path / "pieces", max_shard_size="20KB")
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 2
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "pieces", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = theirs(TOKENS, use_cache=False).logits
        assert error(models.load(tmp_path / "pieces", dtype=torch.float32)(TOKENS), expected) <= 1e-5
    assert next(models.load(tmp_path / "pieces").parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "opt"])
def test_a_model_without_its_head_is_refused(family: str, tmp_path: Path) -> None:
    theirs = saved(config_of(family, {}), tmp_path / "whole")
    theirs.base_model.save_pretrained(tmp_path / "base")
    with pytest.raises(UnsupportedError, match="which has no language-model head"):
        models.load(tmp_path / "base")


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    transformers.AutoModelForSequenceClassification.from_config(config_of("llama", {})).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="LlamaForSequenceClassification"):
        models.load(tmp_path)


ROBERTA = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 5}


def test_padding_tokens_take_no_position(tmp_path: Path) -> None:
    """RoBERTa counts positions without them, wherever they stand."""
    config = transformers.AutoConfig.for_model("roberta", **ROBERTA, num_attention_heads=4)
    theirs = transformers.AutoModelForMaskedLM.from_config(config, attn_implementation="eager").eval()
    theirs.save_pretrained(tmp_path)
    tokens = TOKENS.clone()
    tokens[:, [0, 3, 4, 11]] = 5
    with torch.no_grad():
        assert error(models.load(tmp_path)(tokens), theirs(tokens).logits) <= 1e-5


def test_roberta_as_a_decoder_goes_on_where_it_stands(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model("roberta", **ROBERTA, num_attention_heads=4, is_decoder=True)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    theirs.save_pretrained(tmp_path)
    ours, tokens = models.load(tmp_path), TOKENS.where(TOKENS != 5, 6)
    cache = new_cache(ours.spec, 2, LENGTH, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        steps = [ours(piece, cache=cache) for piece in tokens.split([9, *[1] * (LENGTH - 9)], dim=1)]
        assert error(torch.cat(steps, dim=1), theirs(tokens, use_cache=False).logits) <= 1e-5


def test_more_tokens_than_a_table_of_positions_has_rows(tmp_path: Path) -> None:
    saved(config_of("gpt2", {"max_position_embeddings": 12}), tmp_path)
    with pytest.raises(SpecError, match="cannot read 20 tokens: its learned positions cover only 12"):
        models.load(tmp_path)(TOKENS)
