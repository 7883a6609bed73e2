"""Latent attention: logits equal transformers', with every variant of DeepSeek's queries, rotation and routers. Tensors
of a real checkpoint that are not in the model are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from llmbench import model as models
from llmbench.errors import SpecError
from llmbench.model.mixers import new_cache
from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import load_bundled
from llmbench.spec.mixer import LatentAttention

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
EXPERTS = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.7,
    "n_group": 1,
    "topk_group": 1,
}
GROUPS = {"n_group": 4, "topk_group": 2}
YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.7,
        "mscale_all_dim": 0.9,
    }
}
# Sixteen index heads, because with a few all could be zero, and the choice among ties is arbitrary.
INDEXER = {"index_n_heads": 16, "index_head_dim": 8, "index_topk": 6}
DENSE_FIRST = {"first_k_dense_replace": 1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "V2": ("deepseek_v2", {**EXPERTS, **DENSE_FIRST}),
    "V2-Lite": ("deepseek_v2", {**EXPERTS, **DENSE_FIRST, **YARN, "q_lora_rank": None}),
    "V2 groups, biases": (
        "deepseek_v2",
        {**EXPERTS, **GROUPS, "topk_method": "group_limited_greedy", "attention_bias": True, "norm_topk_prob": True},
    ),
    "V2 groups that its method ignores": ("deepseek_v2", {**EXPERTS, **GROUPS, "topk_method": "greedy"}),
    "V3": ("deepseek_v3", {**EXPERTS, **GROUPS, **DENSE_FIRST, **YARN}),
    "V3 halves, other eps, biases": (
        "deepseek_v3",
        {**EXPERTS, **DENSE_FIRST, "rope_interleave": False, "rms_norm_eps": 1e-3, "attention_bias": True},
    ),
    "V3 full rank": (
        "deepseek_v3",
        {**EXPERTS, "first_k_dense_replace": 0, "q_lora_rank": None, "norm_topk_prob": False},
    ),
    "A.X K1": ("axk1", {**EXPERTS, **GROUPS, **DENSE_FIRST, **YARN}),
    "V3.2": ("deepseek_v32", {**EXPERTS, **GROUPS, **INDEXER}),
    "GLM-4.7-Flash": ("glm4_moe_lite", {**EXPERTS}),
    "GLM-5": ("glm_moe_dsa", {**EXPERTS, **INDEXER, "num_hidden_layers": 4}),
    "GLM-5 shared indexers": (
        "glm_moe_dsa",
        {**EXPERTS, **INDEXER, "num_hidden_layers": 4, "indexer_types": ["full", "shared", "full", "shared"]},
    ),
    "MiniCPM3": ("minicpm3", {"scale_depth": 1.4, "scale_emb": 3, "dim_model_base": 16}),
    "Youtu": ("youtu", {}),
}


def saved(model_type: str, changes: dict[str, Any], folder: Path) -> torch.nn.Module:
    """A model of transformers with random weights, saved in the folder."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **changes})
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            centre = 1.0 if parameter.dim() == 1 and "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.2, generator=generator)
        for name, buffer in theirs.named_buffers():
            if "correction" in name:
                buffer.normal_(0.0, 0.2, generator=generator)
    theirs.save_pretrained(folder)
    return theirs


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference relative to the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


TOKENS = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    """In one pass, and in steps over a cache of latents, where single tokens take the absorbed form."""
    theirs = saved(*CASES[case], tmp_path)
    expected = theirs(TOKENS, use_cache=False).logits
    model = models.load(tmp_path)
    assert error(model(TOKENS), expected) <= 1e-5
    cache = new_cache(model.spec, 2, 20, dtype=torch.float32, device="cpu")
    steps = [model(piece, cache=cache) for piece in TOKENS.split([8, 1, 1, 1, 1, 5, 1, 1, 1], dim=1)]
    assert error(torch.cat(steps, dim=1), expected) <= 1e-5


@torch.no_grad()
def test_kimi_k2_files_are_read_like_those_of_v3(tmp_path: Path) -> None:
    theirs = saved("deepseek_v3", CASES["V3"][1], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "kimi_k2"}))
    assert error(models.load(tmp_path)(TOKENS), theirs(TOKENS, use_cache=False).logits) <= 1e-5


@torch.no_grad()
def test_modules_of_multi_token_prediction_are_left_out(tmp_path: Path) -> None:
    """DeepSeek's files store them as layers after the last one. Any other layer there is an error."""
    theirs = saved("deepseek_v3", {**CASES["V3"][1], "num_nextn_predict_layers": 1}, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors["model.layers.3.eh_proj.weight"] = torch.zeros(2, 2)
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    assert error(models.load(tmp_path)(TOKENS), theirs(TOKENS, use_cache=False).logits) <= 1e-5
    tensors["model.layers.4.eh_proj.weight"] = torch.zeros(2, 2)
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SpecError, match=r"no parameter for model.layers.4.eh_proj.weight"):
        models.load(tmp_path)


def test_the_scale_of_v3_and_r1() -> None:
    """192 ** -0.5 times (0.1 · ln 40 + 1)², as in DeepSeek's code."""
    spec = load_bundled("deepseek-v3")
    mixer = next(layer.mixer for layer in spec.layers.values())
    assert isinstance(mixer, LatentAttention)
    assert mixer.score_scale(spec.positions) == pytest.approx(0.1352337788608801)


@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "deepseek-v3.2", "kimi-k2"])
def test_parameters_of_bundled_models_equal_the_sizing_table(name: str) -> None:
    spec = load_bundled(name)
    model = models.build(spec, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == count_parameters(spec).total


def test_every_weight_has_a_gradient(tmp_path: Path) -> None:
    saved(*CASES["V3"], tmp_path)
    model = models.load(tmp_path).train()
    model(TOKENS).logsumexp(-1).sum().backward()
    without = [name for name, tensor in model.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    unused = [name for name in without if ".experts." not in name]  # an expert that no token chose has zeros
    assert not unused
    assert all(tensor.grad is not None for tensor in model.parameters())
