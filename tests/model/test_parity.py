"""Logits of a model that transformers wrote to disk equal those of transformers: the proof of every table of weights.

Every family has at least one tiny config below; weights are random, biases and norms too, so that nothing is the
identity.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llmbench import model as models
from llmbench.model.weights import supported_families

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTH = 20


def small(**changes: Any) -> dict[str, Any]:
    """The small config with changes; None leaves a key out."""
    return {key: value for key, value in {**SMALL, **changes}.items() if value is not None}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "llama": ("llama", small(num_key_value_heads=4)),
    "llama-gqa": ("llama", small(tie_word_embeddings=True)),
}


def saved(model_type: str, config: dict[str, Any], folder: Path) -> torch.nn.Module:
    """A model of transformers with random weights everywhere, written into the folder."""
    torch.manual_seed(0)
    kind = transformers.AutoConfig.for_model(model_type, **config)
    theirs = transformers.AutoModelForCausalLM.from_config(kind, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            centre = 1.0 if parameter.dim() == 1 and "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.2, generator=generator)
    theirs.save_pretrained(folder)
    return theirs


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference relative to the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    model_type, config = CASES[case]
    theirs = saved(model_type, config, tmp_path)
    tokens = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = theirs(tokens, use_cache=False).logits
        assert torch.isfinite(wanted).all()
        ours = models.load(tmp_path, impl="standard")
        assert error(ours(tokens), wanted) <= 1e-5


def test_every_table_is_tried() -> None:
    assert {model_type for model_type, _ in CASES.values()} >= set(supported_families())
