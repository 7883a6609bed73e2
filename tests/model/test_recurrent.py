"""Recurrent mixers: models equal transformers, padding leaves states unchanged, and steps equal one forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from llmbench import model as models
from llmbench.model.decoder import Decoder
from llmbench.model.implementations import implementation
from llmbench.model.mixers import build_mixer, new_cache
from llmbench.model.positions import tables_of
from llmbench.model.recurrent import new_state
from llmbench.model.recurrent.linear import LightningLayer
from llmbench.model.residual import Residual
from llmbench.model.step import Step
from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Gated
from llmbench.spec.mixer import (
    RGLRU,
    RWKV,
    Attention,
    AttentionKind,
    GatedDeltaNet,
    KimiDelta,
    LightningAttention,
    Mamba,
    Mamba2,
    Parallel,
    Recurrent,
    ShortConv,
)
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.position import NoPositions, Rope

from .recurrent_configs import CASES

LENGTH = 23


def saved(case: str, folder: Path) -> nn.Module:
    """A model of transformers with random weights, saved in the folder."""
    model_type, config = CASES[case]
    torch.manual_seed(0)
    kind = transformers.AutoConfig.for_model(model_type, **config)
    theirs = transformers.AutoModelForCausalLM.from_config(kind, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            if tensor.dim() > 1 and "A_log" not in name:
                tensor.normal_(0.0, 0.2, generator=generator)
            else:
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.2)
    theirs.save_pretrained(folder)
    return theirs


def tokens(rows: int = 2) -> Tensor:
    return torch.randint(3, 96, (rows, LENGTH), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_and_decoding_equals_one_pass(case: str, tmp_path: Path) -> None:
    theirs = saved(case, tmp_path)
    ids = tokens()
    with torch.no_grad():
        expected = theirs(ids, use_cache=False).logits
        ours = models.load(tmp_path, impl="standard")
        logits = ours(ids)
        scale = expected.abs().max()
        assert torch.isfinite(expected).all()
        assert (logits - expected).abs().max() <= 1e-5 * scale
        # Two rows of different lengths: a padded prefill, then a token at a time.
        cache = new_cache(ours.spec, 2, LENGTH, dtype=torch.float32, device="cpu")
        lengths = [9, 14]
        first = ours(ids[:, : max(lengths)], cache=cache, lengths=torch.tensor(lengths))
        steps = [[*first[row, :length]] for row, length in enumerate(lengths)]
        for step in range(LENGTH - max(lengths)):
            new = torch.stack([ids[row, length + step] for row, length in enumerate(lengths)])
            out = ours(new[:, None], cache=cache)
            for row in range(2):
                steps[row].append(out[row, 0])
        for row in range(2):
            actual = torch.stack(steps[row])
            assert (actual - logits[row, : len(actual)]).abs().max() <= 2e-5 * scale


# --- Each mixer by itself.

MIXERS: dict[str, Recurrent] = {
    "rwkv": RWKV(width=24),
    "mamba": Mamba(intermediate_size=24, state_size=4, conv_kernel=4, time_step_rank=3, inner_norms="weighted"),
    "mamba2": Mamba2(num_heads=4, head_dim=6, state_size=5, n_groups=2, conv_kernel=3, chunk_size=4),
    "mamba2 without norm": Mamba2(
        num_heads=4, head_dim=6, state_size=5, n_groups=1, conv_kernel=3, chunk_size=4, gated_norm=False
    ),
    "delta": GatedDeltaNet(num_key_heads=2, num_value_heads=4, key_head_dim=8, value_head_dim=6, conv_kernel=4),
    "kimi delta": KimiDelta(num_heads=2, head_dim=8, conv_kernel=4),
    "kimi delta, full rank": KimiDelta(
        num_heads=2, head_dim=6, conv_kernel=3, full_rank_decay=True, full_rank_gate=True
    ),
    "lightning": LightningAttention(num_attention_heads=4, head_dim=4, block_size=4),
    "rg-lru": RGLRU(lru_width=24, num_heads=4, conv_kernel=4),
    "short conv": ShortConv(width=16, conv_kernel=3),
}


def one_layer(*mixers: Any) -> ModelSpec:
    mixer = mixers[0] if len(mixers) == 1 else Parallel(branches=mixers)
    return ModelSpec(
        name="tiny",
        source="a test",
        layers={"block": Layer(mixer=mixer, ffn=Gated(intermediate_size=24))},
        pattern="2*block",
        vocab_size=96,
        hidden_size=16,
        tie_word_embeddings=True,
        positions=Rope() if any(isinstance(mixer, AttentionKind) for mixer in mixers) else NoPositions(),
    ).check()


def step_of(positions: Tensor, valid: Tensor | None = None) -> Step:
    return Step(positions, valid, True, {}, implementation("standard"))


@pytest.mark.parametrize("name", MIXERS)
def test_padding_leaves_the_state_unchanged(name: str) -> None:
    mixer = MIXERS[name]
    model = models.build(one_layer(mixer), init="xavier")
    layer = model.get_submodule(f"layers.0.{mixer.module_name}")
    torch.manual_seed(0)
    x = torch.randn(3, 9, 16)
    positions = torch.arange(9).expand(3, -1)
    lengths = torch.tensor([9, 4, 0])
    with torch.no_grad():
        padded = new_state(mixer.fixed_state, 3, 16)
        layer(x, step_of(positions, torch.arange(9) < lengths[:, None]), padded, None)
        for row, length in enumerate(lengths.tolist()):
            alone = new_state(mixer.fixed_state, 1, 16)
            if length:
                layer(x[row : row + 1, :length], step_of(positions[:1, :length]), alone, None)
            for part in ("conv", "state", "stream"):
                ours, expected = getattr(padded, part), getattr(alone, part)
                if ours is not None and expected is not None:
                    torch.testing.assert_close(ours[row : row + 1], expected, rtol=1e-5, atol=1e-6)
        padded.forget(0)
        empty = new_state(mixer.fixed_state, 3, 16)
        for part in ("conv", "state", "stream"):
            ours, expected = getattr(padded, part), getattr(empty, part)
            if ours is not None and expected is not None:
                assert torch.equal(ours[0], expected[0])


@pytest.mark.parametrize("name", MIXERS)
def test_prefill_in_pieces_equals_one_pass(name: str) -> None:
    model = models.build(one_layer(MIXERS[name]), init="xavier")
    ids = tokens()
    with torch.no_grad():
        whole = model(ids)
        cache = new_cache(model.spec, 2, LENGTH, dtype=torch.float32, device="cpu")
        pieces = [model(part, cache=cache) for part in ids.split((5, 1, 10, 7), dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MIXERS)
def test_gradients_reach_every_parameter(name: str, dtype: torch.dtype) -> None:
    model = models.build(one_layer(MIXERS[name]), dtype=dtype, seed=3)
    loss = model(tokens()).float().logsumexp(-1).square().mean()
    loss.backward()
    for parameter, tensor in model.named_parameters():
        assert tensor.grad is not None, parameter
        assert torch.isfinite(tensor.grad).all(), parameter
        assert tensor.grad.abs().max() > 0, parameter


def test_the_same_seed_gives_the_same_model() -> None:
    for mixer in MIXERS.values():
        first, second = (models.build(one_layer(mixer), seed=5) for _ in range(2))
        for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_parallel_branches_are_added() -> None:
    """Falcon-H1 has attention parallel to Mamba-2, on the same normed input."""
    attention = Attention(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    spec = one_layer(MIXERS["mamba2"], attention)
    model = models.build(spec, init="xavier")
    assert sum(p.numel() for p in dict.fromkeys(model.parameters())) == count_parameters(spec).total
    block, x = model.layers[0], torch.randn(2, 7, 16)
    positions = torch.arange(7).expand(2, -1)
    step = step_of(positions)._replace(tables=tables_of(model.rotations, positions, 7))
    with torch.no_grad():
        normed = block.mixer_norm(x, step.implementation)
        after = x + block.mamba(normed, step, None, None)[0] + block.attention(normed, step, None, None)[0]
        expected = after + block.ffn(block.ffn_norm(after, step.implementation), step.implementation)
        torch.testing.assert_close(block(Residual(x), step, None, None)[0].whole(), expected, rtol=1e-5, atol=1e-5)


def test_lightning_attention_equals_minimax() -> None:
    """The mixer alone, in a layer that is not the first, because the decay depends on the layer."""
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    config = transformers.MiniMaxConfig(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=4, head_dim=4, num_hidden_layers=2, block_size=4
    )
    theirs = MiniMaxLightningAttention(config, layer_idx=1)
    mixer = LightningAttention(num_attention_heads=4, head_dim=4, block_size=4)
    ours = LightningLayer(one_layer(mixer), mixer, index=1)
    x = torch.randn(2, 11, 16)
    with torch.no_grad():
        for own, other in (("qkv_proj", "qkv_proj"), ("g_proj", "output_gate"), ("norm", "norm"), ("out_proj",) * 2):
            tensor = theirs.get_submodule(other).weight.normal_(0.0, 0.4)
            ours.get_submodule(own).weight.copy_(tensor)
        expected = theirs(x, (x, x), None)[0]
        actual = ours(x, step_of(torch.arange(11).expand(2, -1)), None, None)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mamba2", "delta"])
def test_a_block_compiles_without_graph_breaks(name: str) -> None:
    block = models.build(one_layer(MIXERS[name]), init="xavier").layers[0]
    x, step = torch.randn(1, 5, 16), step_of(torch.arange(5)[None])
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    out = compiled(Residual(x), step, None, None)[0].whole()
    torch.testing.assert_close(out, block(Residual(x), step, None, None)[0].whole(), rtol=1e-4, atol=1e-5)
    out.sum().backward()


@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-2.7b", "jamba-v0.1", "qwen3-next-80b-a3b", "nemotron-h-56b"])
def test_parameters_of_bundled_models_equal_the_sizing_table(name: str) -> None:
    spec = load_bundled(name)
    with torch.device("meta"):
        model = Decoder(spec)
    assert sum(p.numel() for p in dict.fromkeys(model.parameters())) == count_parameters(spec).total


def test_states_have_the_same_size_at_every_length() -> None:
    spec = load_bundled("mamba2-2.7b")
    sizes = {new_cache(spec, 1, length, dtype=torch.bfloat16, device="meta").nbytes for length in (16, 4096)}
    width, shared = 80 * 64, 2 * 128
    assert sizes == {64 * ((3 * (width + shared)) * 2 + width * 128 * 4)}


def test_every_kind_of_mixer_has_a_name_and_a_module() -> None:
    for mixer in MIXERS.values():
        assert isinstance(build_mixer(one_layer(mixer), mixer, index=0, where="mixer"), nn.Module)
