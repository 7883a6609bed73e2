"""The recorded attention probabilities: those of transformers, for every kind of softmax attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from llmbench import model as models
from llmbench.model.attention_maps import record_attention
from llmbench.model.latent import set_latent_form
from llmbench.spec.catalog import load_bundled
from llmbench.spec.override import override

SHAPE: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "gpt2": transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "llama": transformers.LlamaConfig(**SHAPE, num_key_value_heads=2, intermediate_size=48),
    "gemma2": transformers.Gemma2Config(
        **SHAPE, num_key_value_heads=2, head_dim=8, intermediate_size=48, sliding_window=5, attn_logit_softcapping=3.0
    ),
}


def tokens(length: int = 17) -> Tensor:
    return torch.randint(3, 96, (2, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("case", CONFIGS)
def test_probabilities_equal_transformers(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS[case], attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.0, 0.2)
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path, impl="standard")
    with torch.no_grad():
        expected = theirs(tokens(), output_attentions=True).attentions
        logits = ours(tokens())
        with record_attention(ours) as maps:
            recorded = ours(tokens())
        assert torch.equal(ours(tokens()), logits), "the block changes the model for good"
    assert torch.equal(recorded, logits)
    assert list(maps) == ["layers.0.attention", "layers.1.attention"]
    for (probabilities, _), weights in zip(maps.values(), expected, strict=True):
        assert (probabilities - weights).abs().max() <= 1e-6
        assert (probabilities.sum(-1) - 1).abs().max() <= 1e-6
        assert torch.equal(probabilities.triu(1), torch.zeros_like(probabilities))


def test_the_logits_are_the_scores() -> None:
    """GPT-2's scores are q · k / √H, and the recorded softmax gives back their differences."""
    model = models.build(override(load_bundled("nanogpt-cpu"), {"num_hidden_layers": 1}), init="xavier")
    x: list[Tensor] = []
    attention = model.layers[0].get_submodule("attention")
    attention.register_forward_pre_hook(lambda module, inputs: x.append(inputs[0]))
    ids = tokens() % 65
    with record_attention(model) as maps:
        model(ids).sum().backward()
    q, k = (getattr(attention, name)(x[0]).unflatten(-1, (4, 32)).transpose(1, 2) for name in ("q_proj", "k_proj"))
    scores = (q @ k.transpose(-1, -2) / 32**0.5).masked_fill(torch.ones(17, 17).triu(1).bool(), -torch.inf)
    recorded = maps["layers.0.attention"]
    assert torch.allclose(recorded.logits, scores, atol=1e-6)
    assert torch.equal(recorded.largest_logit, recorded.logits.amax((0, 2, 3)))
    assert torch.allclose(recorded.probabilities, scores.softmax(-1), atol=1e-6)
    assert not recorded.probabilities.requires_grad
    assert model.embedding.weight.grad is not None


@pytest.mark.parametrize("name", ["transformer-base", "gpt-oss-20b", "mistral-7b-v0.1"])
def test_every_layer_is_recorded_and_rows_are_shares(name: str) -> None:
    stack = {"encoder.pattern": "2*block"} if name == "transformer-base" else {}
    spec = override(load_bundled(name), {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2} | stack)
    model = models.build(spec, impl="standard", init="xavier").eval()
    with torch.no_grad(), record_attention(model) as maps:
        model(tokens(), tokens(21)) if spec.encoder is not None else model(tokens())
    names = [f"layers.{index}.attention" for index in range(2)]
    if spec.encoder is not None:
        both = [f"layers.{index}.{kind}" for index in range(2) for kind in ("attention", "cross_attention")]
        names = [*(f"encoder.{name}" for name in names), *both]
    assert list(maps) == names
    for recorded in maps.values():
        total = recorded.probabilities.sum(-1)
        assert (total < 1).all() if name == "gpt-oss-20b" else torch.allclose(total, torch.ones_like(total))


def test_both_forms_of_latent_attention_have_equal_maps() -> None:
    spec = override(load_bundled("deepseek-v2-lite"), {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2})
    model = models.build(spec, init="xavier").eval()
    recorded = []
    for form in ("expanded", "absorbed"):
        set_latent_form(model, form)
        with torch.no_grad(), record_attention(model) as maps:
            model(tokens())
        recorded.append(maps)
    expanded, absorbed = recorded
    for name, (probabilities, logits) in expanded.items():
        assert probabilities.shape == (2, 16, 17, 17)
        assert torch.allclose(absorbed[name].probabilities, probabilities, atol=1e-5)
        assert torch.allclose(absorbed[name].logits, logits, atol=1e-5)
