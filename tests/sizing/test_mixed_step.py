"""A step that decodes and prefills: the weights are read once, everything else is a sum."""

from __future__ import annotations

import pytest

from llmbench.errors import SpecError
from llmbench.sizing.lower import lower
from llmbench.sizing.mixed_step import mixed_step
from llmbench.sizing.op import Op
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.catalog import load_bundled


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
