"""The communication of tensor parallelism: every layer joins its partial sums once."""

from __future__ import annotations

from llmbench.sizing.lower import lower
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.catalog import load_bundled


def sums(model: str, layout: str) -> dict[tuple[str, str, str], int]:
    """The numbers of collectives of a prefill by kind, group and name of the op, over all layers."""
    found: dict[tuple[str, str, str], int] = {}
    for op in lower(load_bundled(model), Workload.prefill(64), Layout.parse(layout)):
        for each in op.collectives:
            if each.when == "forward":
                key = (each.kind, each.group, op.name.rpartition(".")[2])
                found[key] = found.get(key, 0) + op.count
    return found


def test_every_layer_has_a_sum_after_attention_and_after_its_feed_forward() -> None:
    """Mixtral, Qwen3 and gpt-oss have no shared expert. DeepSeek-V3 has one, whose sum includes the routed experts."""
    for model in ("llama3-8b", "mixtral-8x7b", "qwen3-235b-a22b", "gpt-oss-20b", "deepseek-v3", "llama4-scout"):
        layers = load_bundled(model).num_hidden_layers
        found = sums(model, "tp=4")
        assert sum(count for (kind, _, _), count in found.items() if kind == "all_reduce") == 2 * layers + 1, model
        assert found["all_reduce", "tp", "embedding"] == 1


def test_sequence_parallelism_gathers_and_scatters_instead() -> None:
    for model in ("mixtral-8x7b", "deepseek-v3"):
        layers = load_bundled(model).num_hidden_layers
        found = sums(model, "tp=4,sp")
        scattered = sum(count for (kind, _, _), count in found.items() if kind == "reduce_scatter")
        assert scattered == 2 * layers + 1, model
        assert not any(kind == "all_reduce" for kind, _, _ in found)


def test_a_smaller_expert_group_gathers_the_outputs() -> None:
    layers = load_bundled("mixtral-8x7b").num_hidden_layers
    alone = sums("mixtral-8x7b", "tp=8,ep=8,etp=1")
    assert alone["all_gather", "tp", "combine"] == layers
    assert ("all_reduce", "etp", "combine") not in alone
    pairs = sums("mixtral-8x7b", "tp=8,ep=4,etp=2")
    assert pairs["all_reduce", "etp", "combine"] == pairs["all_gather", "tp", "combine"] == layers
    wider = sums("mixtral-8x7b", "dp=8,ep=2,etp=4")
    assert wider["reduce_scatter", "etp", "combine"] == wider["all_gather", "etp", "dispatch"] == layers
    assert all(kind == "all_to_all" for kind, _, _ in sums("mixtral-8x7b", "dp=8,ep=8"))


def test_rows_and_experts_met() -> None:
    """Mixtral, 1 and 64 tokens: 2 of 8 experts each, so 64 tokens use 8·(1 − (3/4)^64) different ones."""
    spec = load_bundled("mixtral-8x7b")
    for tokens in (1, 64):
        ops = {op.name: op for op in lower(spec, Workload.prefill(tokens))}
        experts = ops["layers.{}.ffn.experts.down_proj"]
        assert experts.rows == 2 * tokens
        assert abs(experts.experts_met - 8 * (1 - 0.75**tokens)) < 1e-9
        assert ops["layers.{}.attention.q_proj"].rows == tokens


def test_an_engine_computes_the_logits_of_the_last_token() -> None:
    spec = load_bundled("llama3-8b")
    every, last = (
        next(op for op in lower(spec, Workload.prefill(4096, 2, logits=logits)) if op.name == "lm_head")
        for logits in (None, 1)
    )
    assert last.rows == 2
    assert every.forward_flops == 4096 * last.forward_flops


def test_a_chunk_reads_the_earlier_keys_from_the_cache() -> None:
    """1,024 new tokens after 3,072 cached ones: 8 heads × 2 × 128 × 2 bytes each. A window sees fewer of them."""
    workload = Workload(phase="prefill", query_len=1024, kv_len=4096)
    core = next(op for op in lower(load_bundled("llama3-8b"), workload) if op.name.endswith(".core"))
    assert core.kv_read_bytes == 3072 * 8 * 2 * 128 * 2
    assert core.read_bytes == 1024 * (32 + 2 * 8) * 128 * 2
    windows = {op.layer: op for op in lower(load_bundled("gemma3-4b"), workload) if op.name.endswith(".core")}
    assert len({op.kv_read_bytes for op in windows.values()}) == 2
    whole = next(op for op in lower(load_bundled("llama3-8b"), Workload.prefill(4096)) if op.name.endswith(".core"))
    assert whole.kv_read_bytes == 0
