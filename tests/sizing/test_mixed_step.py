"""A step that decodes and prefills: the weights are read once, everything else is a sum."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llmbench.errors import SpecError
from llmbench.sizing.flops import count_flops
from llmbench.sizing.lower import lower
from llmbench.sizing.mixed_step import mixed_step
from llmbench.sizing.op import Op
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.mixer import LatentAttention, branches
from llmbench.spec.model import ModelSpec

from . import strategies


def total(ops: list[Op], name: str) -> float:
    return sum(op.count * getattr(op, name) for op in ops)


def test_flops_and_cache_add_up_and_weights_are_read_once() -> None:
    decode = Workload.decode(1000, 32, absorbed_mla=False)
    chunk = Workload(phase="prefill", query_len=512, kv_len=2048)
    for name in ("llama3-8b", "mixtral-8x7b", "gemma3-4b", "jamba-v0.1"):
        spec = load_bundled(name)
        for layout in (Layout(), Layout(tp=2)):
            both = mixed_step(spec, decode, chunk, layout)
            parts = [lower(spec, workload, layout) for workload in (decode, chunk)]
            for figure in ("forward_flops", "kv_read_bytes", "kv_written_bytes"):
                assert total(both, figure) == sum(total(part, figure) for part in parts), (name, figure)
            read = [total(part, "weight_bytes") for part in parts]
            assert max(read) <= total(both, "weight_bytes") < sum(read), name
            assert total(both, "parameters") == total(parts[0], "parameters")
            moved = [sum(each.bytes for op in some for each in op.collectives) for some in (both, *parts)]
            assert moved[0] == moved[1] + moved[2]


def test_experts_met_are_those_of_all_tokens() -> None:
    spec = load_bundled("qwen3-30b-a3b")
    both = mixed_step(spec, Workload.decode(100, 8), Workload.prefill(24))
    whole = lower(spec, Workload.prefill(32))
    met = {op.name: op.experts_met for op in whole if op.experts_met}
    assert met
    assert {op.name: op.experts_met for op in both if op.experts_met} == met


def test_wrong_phases_are_refused() -> None:
    with pytest.raises(SpecError, match="decodes and prefills"):
        mixed_step(load_bundled("gpt2"), Workload.prefill(8), Workload.prefill(8))


def test_an_encoder_reads_its_prompt_as_a_whole() -> None:
    with pytest.raises(SpecError, match="encoder"):
        mixed_step(load_bundled("t5-small"), Workload.decode(8), Workload.chunk(8))


def expanded_again(spec: ModelSpec, tokens: int, start: int) -> int:
    """FLOPs by the fields of latent attention: 2 per element of the matrix and cached token that a chunk sees."""
    total = 0
    for mixer in (mixer for name in spec.order for mixer in branches(spec.layers[name].mixer)):
        if isinstance(mixer, LatentAttention):
            earlier = min(start, start if mixer.sliding_window is None else mixer.sliding_window - 1)
            width = mixer.qk_nope_head_dim + mixer.v_head_dim
            total += 2 * earlier * mixer.kv_lora_rank * mixer.num_attention_heads * width
    return total


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(strategies.models(), st.integers(1, 40), st.integers(0, 40), st.integers(1, 40), st.integers(1, 3))
def test_a_mixed_step_is_a_decoding_step_and_a_part_of_a_prefill(
    spec: ModelSpec, tokens: int, start: int, seq: int, batch: int
) -> None:
    """The chunk is the difference of two whole prefills, with one row of logits. The weights are read once."""
    assume(spec.decodes)
    decode = Workload.decode(seq, batch)
    both, alone = count_flops(spec, decode, chunk=Workload.chunk(tokens, start)), count_flops(spec, decode)
    whole, before = (count_flops(spec, Workload.prefill(n)) if n else None for n in (start + tokens, start))
    chunk = whole.total - (0 if before is None else before.total)
    logits = 2 * spec.vocab_size * next(op.matrix[1] for op in lower(spec, decode) if op.name == "lm_head")
    extra = expanded_again(spec, tokens, start)
    assert both.total == alone.total + chunk - (tokens - 1) * logits + extra
    assert both.recurrent == alone.recurrent + whole.recurrent - (0 if before is None else before.recurrent)
    assert both.tokens == batch + tokens
    assert (
        both.kv_written_bytes == alone.kv_written_bytes + count_flops(spec, Workload.prefill(tokens)).kv_written_bytes
    )
    read = total(lower(spec, Workload.prefill(batch + tokens)), "weight_bytes")
    assert both.weight_bytes == read
    if not any(op.experts_met for op in lower(spec, decode)):
        assert read == alone.weight_bytes


def test_the_figures_of_a_mixed_step_by_hand() -> None:
    """LLaMA-3-8B: 32 sequences with 8,192 cached tokens, and 512 tokens after 1,536 cached ones."""
    step = count_flops(load_bundled("llama3-8b"), Workload.decode(8192, 32), chunk=Workload.chunk(512, 1536))
    layer, head = 4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336, 4096 * 128256
    pairs = 32 * 8193 + sum(range(1537, 2049))
    assert step.matmul == 2 * (544 * 32 * layer + 33 * head)
    assert step.attention == 2 * (128 + 128) * 32 * 32 * pairs
    assert step.kv_read_bytes == (32 * 8193 + 1536) * 32 * 2 * 8 * 128 * 2
    assert step.kv_written_bytes == 544 * 32 * 2 * 8 * 128 * 2
    assert step.weight_bytes == 2 * (32 * (layer + 2 * 4096) + 4096 + head)


def test_a_chunk_reads_caches_of_every_kind() -> None:
    """Latents, keys of an indexer, windows, and recurrent states: bytes by their widths. The first chunk reads none."""

    def read(name: str, start: int = 1536) -> dict[tuple[str, str], int]:
        ops = lower(load_bundled(name), Workload.chunk(512, start))
        return {(op.layer, op.name.removeprefix("layers.{}.")): op.kv_read_bytes for op in ops if op.kv_read_bytes}

    latents, keys = 1536 * (512 + 64) * 2, 1536 * 128 * 2
    assert set(read("deepseek-v3").values()) == {latents}
    assert read("deepseek-v3.2")["moe", "attention.core"] == latents
    assert read("deepseek-v3.2")["moe", "attention.indexer.core"] == keys
    windows = read("gemma3-4b")
    assert windows["local", "attention.core"] == 1023 * 4 * 2 * 256 * 2
    assert windows["global", "attention.core"] == 1536 * 4 * 2 * 256 * 2
    states = read("jamba-v0.1")
    assert states["mamba_moe", "mamba.scan"] == 8192 * 16 * 4
    assert states["mamba_moe", "mamba.conv"] == 8192 * 3 * 2
    assert read("deepseek-v3.2", 0) == read("gemma3-4b", 0) == read("jamba-v0.1", 0) == {}
    # attention in the expanded form reads the keys and values of all heads, which the up-projection computes
    ops = {op.name: op for op in lower(load_bundled("deepseek-v3"), Workload.chunk(512, 1536))}
    core, up = ops["layers.{}.attention.core"], ops["layers.{}.attention.kv_b_proj"]
    assert core.read_bytes == (512 * 192 + 2048 * (192 + 128)) * 128 * 2
    assert up.forward_flops == 2 * 2048 * 512 * 128 * (128 + 128)
