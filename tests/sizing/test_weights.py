"""Stored bytes of weights: published totals of checkpoints, and properties of every format."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from llmbench.errors import LLMBenchError
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import ServingRun, inference_memory
from llmbench.sizing.op import Op
from llmbench.sizing.params import count_parameters
from llmbench.sizing.stored_tensors import ONE_TOKEN, op_bytes, role_of, stored_tensors
from llmbench.sizing.weight_recipe import WeightRecipe
from llmbench.sizing.weights import stored_weights
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import load_bundled
from llmbench.spec.override import override
from llmbench.spec.weights.formats import chosen, format_names, load_format
from llmbench.spec.weights.stored import ModuleFormat, Weights

PUBLISHED = [
    # (model, format or None for the model's own, bytes of all tensors, source)
    ("gpt-oss-120b", None, 65_248_815_744, "total_size of the index of openai/gpt-oss-120b"),
    ("gpt-oss-20b", None, 13_761_264_768, "total_size of the index of openai/gpt-oss-20b"),
    ("llama3.1-70b", "mlx", 39_688_355_840, "mlx-community/Llama-3.1-Nemotron-70B-Instruct-HF-4bit"),
    ("llama3.1-70b", "mlx,bits=8", 74_964_549_632, "mlx-community/Llama-3.1-Nemotron-70B-Instruct-HF-8bit"),
    ("minimax-m2", "mlx,bits=6", 185_826_705_408, "mlx-community/MiniMax-M2.5-6bit"),
]
ROUNDED = [
    # (model, format, gigabytes in a table of files, half a unit of the last digit and the files' other content)
    ("llama2-7b", "gptq,zero_bias=1", 3.90, 0.006),  # TheBloke/Llama-2-7B-32K-Instruct-GPTQ
    ("llama2-7b", "gptq,bits=8,group=-1,zero_bias=1", 7.01, 0.006),
    ("codellama-34b", "gptq,group=32,zero_bias=1", 20.28, 0.006),  # TheBloke/CodeLlama-34B-Instruct-GPTQ
    ("mixtral-8x7b", "gptq,bits=3,zero_bias=1", 18.85, 0.006),  # TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ
    ("llama2-70b", "awq", 36.61, 0.006),  # TheBloke/Synthia-70B-v1.2b-AWQ
]
SHARD = Layout(tp=4, dp=8, ep=8)


def test_published_totals() -> None:
    for model, text, total, source in PUBLISHED:
        stored = stored_weights(load_bundled(model), text)
        assert stored.total_bytes == total, source
        assert sum(stored.components.values()) == total
    for model, text, gigabytes, tolerance in ROUNDED:
        stored = stored_weights(load_bundled(model), text)
        assert stored.total_bytes / 1e9 == pytest.approx(gigabytes, abs=tolerance), (model, text)


def test_deepseek_v3_has_the_bytes_of_its_163_files() -> None:
    """The files have 688,586,727,753 bytes. Their JSON headers describe 91,991 tensors with about 129 bytes each."""
    headers = 688_586_727_753 - stored_weights(load_bundled("deepseek-v3")).total_bytes
    assert headers / 91_991 == pytest.approx(129, abs=1)


def test_a_matrix_by_hand() -> None:
    """A matrix with 300 inputs and 200 outputs, in formats whose blocks do not divide it."""
    op = Op(
        name="layers.{}.ffn.up_proj",
        component="mlp",
        kind="matmul",
        layers=(0,),
        layer="a",
        parameters=60_200,
        matrix=(1, 300, 200),
    )
    by_hand = {
        "fp8-block": 60_000 + 4 * 2 * 3 + 2 * 200,  # the bias of 200 elements stays in 16 bits
        "fp8-channel": 60_000 + 2 * 200 + 400,
        "fp8-tensor,static=1": 60_000 + 8 + 400,
        "gptq": 30_000 + 2 * 3 * 200 + 3 * 200 // 2 + 4 * 300 + 400,
        "gptq,bits=3,group=-1": 22_500 + 2 * 200 + 75 + 4 * 300 + 400,
        "awq": 30_000 + 2 * 3 * 200 + 3 * 200 // 2 + 400,
        "w4a16,group=32": 30_000 + 2 * 10 * 200 + 8 + 400,
        "nf4": 30_000 + 4 * 938 + 64 + 82 + 400,
        "nf4,double=1": 30_000 + 938 + 4 * 4 + 64 + 1024 + 82 + 400,
        "nvfp4": 30_000 + 19 * 200 + 8 + 400,
        "mxfp8": 60_000 + 10 * 200 + 400,
        "mlx": 120_000 + 400,  # 64 does not divide 300
        "mlx,group=60": 30_000 + 2 * 2 * 5 * 200 + 400,
    }
    for text, expected in by_hand.items():
        storage = chosen(text).storage()
        assert storage is not None
        if storage.divides and 300 % storage.divides:
            storage = None
        assert sum(t.bytes for t in stored_tensors(op, storage, 16)) == expected, text


def test_tensors_sum_to_the_total_and_shards_to_the_whole() -> None:
    specs = [load_bundled(name) for name in ("llama3.1-8b", "deepseek-v3", "gpt-oss-20b", "jamba-v0.1", "qwen3-0.6b")]
    for spec in specs:
        ops = lower(spec, ONE_TOKEN)
        elements = {op.name: op.count * (op.parameters + op.buffers) for op in ops}
        sharded = (
            None
            if spec.name in ("qwen3-0.6b", "jamba-v0.1")
            else lower(spec, ONE_TOKEN, SHARD if spec.is_moe else Layout(tp=4))
        )
        for name in format_names():
            if load_format(name).gguf is not None:  # tests/sizing/test_gguf.py
                continue
            if name == "mxfp4" and not spec.is_moe:  # only experts have this format
                continue
            recipe = WeightRecipe(spec, name)
            total = 0
            for op in ops:
                total += op.count * op_bytes(op, 0, recipe)
                held = [t for t in stored_tensors(op, recipe.storage(op, 0), recipe.plain_bits(op)) if op.parameters]
                assert sum(t.bits * t.elements for t in held) <= 8 * op_bytes(op, 0, recipe)
                assert recipe.storage(op, 0) is None or role_of(op) in load_format(name).roles
            stored = stored_weights(spec, name)
            assert total + stored.components.get("next_token_prediction", 0) == stored.total_bytes
            assert total >= sum(elements.values()) / 2
            for one, part in zip(ops, sharded or (), strict=False):
                # every GPU of a group has its own copy of scales per matrix, so shards may need more, but never less
                shards = part.shards * op_bytes(part, 0, recipe)
                assert shards >= op_bytes(one, 0, recipe), (spec.name, name, one.name)
                if name in ("bf16", "gptq,group=32", "mxfp4", "mlx") and one.parameters % 4 == 0 and not _biased(one):
                    assert shards == op_bytes(one, 0, recipe), (spec.name, name, one.name)


def _biased(op: Op) -> bool:
    """Whether every GPU has a copy of the bias of an op."""
    return op.matrix is not None and op.parameters > op.matrix[0] * op.matrix[1] * op.matrix[2]


def test_an_unknown_format_or_parameter_is_refused() -> None:
    for text, said in (
        ("gptp", "did you mean `gptq`"),
        ("gptq,group", "must be a whole number"),
        ("gptq,groups=32", "bits=4, group=128"),
        ("gptq,bits=0", "from 1 to 16"),
        ("bf16,bits=8", "it has no parameters"),
        ("gptq,bits=4,bits=8", "bits is given twice"),
        ("fp4", "did you mean `nvfp4` or `mxfp4` or `nf4`?"),
    ):
        with pytest.raises(LLMBenchError) as problem:
            chosen(text)
        assert said in f"{problem.value} {problem.value.hint}"


def test_a_format_that_quantises_no_matrix_is_refused() -> None:
    dense, small = load_bundled("llama3-8b"), load_bundled("gpt2")
    for spec, text, said in (
        (dense, "mxfp4", "`mxfp4` quantises no matrix of llama3-8b: it is for experts, for example mxfp4-linear"),
        (small, "mlx,group=4096", "its groups divide the inputs of no matrix, choose a smaller group"),
    ):
        with pytest.raises(LLMBenchError) as problem:
            WeightRecipe(spec, text)
        assert said in f"{problem.value}, {problem.value.hint}"
    for name, text in (("llama3-8b", "mxfp4-linear"), ("mixtral-8x7b", "mxfp4"), ("mamba-2.8b", "bf16")):
        assert WeightRecipe(load_bundled(name), text).text == text


def test_every_format_reads_its_own_text() -> None:
    for name in format_names():
        form = load_format(name)
        assert form.source
        assert chosen(name).text == name
        for alias in form.aliases:
            assert chosen(alias).name == name
        for key, value in form.parameters.items():
            other = 1 - value if value in (0, 1) else value + 1  # 0 and 1 are false and true
            assert chosen(f"{name},{key}={other}").text == f"{name},{key}={other}"


def test_stages_sum_to_the_whole_if_a_layer_is_stored_differently() -> None:
    keeps = ("lm_head", "re:.*layers\\.(0|5)\\..*")
    overrides = (ModuleFormat(modules=("model.layers.1.mlp",), format="fp8-channel"),)
    for name, layers in (("qwen3-0.6b", 6), ("mixtral-8x7b", 6), ("t5-small", 6)):
        spec = override(load_bundled(name), {"num_hidden_layers": layers})
        spec = replace(
            spec, tie_word_embeddings=False, weights=Weights(format="gptq", keeps=keeps, overrides=overrides)
        )
        whole = stored_weights(spec, loaded=True)
        uniform = stored_weights(replace(spec, weights=Weights(format="gptq")), loaded=True)
        assert (whole.total_bytes > uniform.total_bytes) == (name != "t5-small")  # T5 has other names of modules
        run = ServingRun(spec=spec, seq_len=64, batch=1, layout=Layout(pp=3), weights=None, kv_dtype="bf16")
        recipe = run.weight_recipe()
        peaks = [run.stage_peak(stage, recipe).parts_bytes["weights"] for stage in run.stages()]
        assert sum(peaks) == whole.total_bytes


def test_a_vision_tower_counts_only_in_the_bytes() -> None:
    spec = load_bundled("qwen3.5-9b")
    (tower,) = spec.towers
    bare = replace(spec, towers=())
    assert count_parameters(spec) == count_parameters(bare)
    for text, bits in ((None, 16), ("mlx", 16), ("q4_k_m", 0)):
        added = stored_weights(spec, text).total_bytes - stored_weights(bare, text).total_bytes
        assert added == tower.parameters * bits // 8
    assert inference_memory(spec, 1).parts_bytes["weights"] == stored_weights(spec, loaded=True).total_bytes
