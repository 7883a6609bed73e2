"""What engines do in different ways: pipeline stages, weights that a device does not compute, and their commands."""

from __future__ import annotations

import json
import shlex
from bisect import bisect_right
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.answers.fit import document, fitted
from llmbench.answers.fit_row import Fitted
from llmbench.errors import LayoutError
from llmbench.sizing.serving.command import weights_of
from llmbench.sizing.serving.layouts import serving_layout
from llmbench.sizing.serving.pipeline import layers_per_stage
from llmbench.sizing.serving.shard import shards
from llmbench.sizing.weight_recipe import WeightRecipe
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import load_bundled
from llmbench.spec.engine import find_engine


def answer(model: str, device: str, **options: object) -> Fitted:
    spec = load_bundled(model)
    (row,) = fitted(spec, model=model, devices=[device], **options)  # type: ignore[arg-type]
    return row


def test_stages_are_those_that_the_engines_report() -> None:
    """Examples of the pull requests that the profiles name, for DeepSeek-V3 and Qwen3-235B."""
    for engine, layers, stages, expected in (
        ("vllm", 61, 8, [7, 7, 8, 8, 8, 8, 8, 7]),
        ("vllm", 61, 4, [15, 15, 16, 15]),
        ("vllm", 94, 4, [23, 24, 24, 23]),
        ("vllm@0.7", 61, 8, [7] * 7 + [12]),
        ("sglang@0.5.0", 61, 8, [7] * 7 + [12]),
        ("sglang", 61, 8, [7, 7, 7] + [8] * 5),
        ("trtllm", 61, 8, [8] * 5 + [7, 7, 7]),
    ):
        assert layers_per_stage(layers, stages, find_engine(engine).remainder) == expected, engine


@given(st.integers(1, 200), st.integers(1, 16))
def test_llamacpp_divides_the_layers_and_the_head_by_position(layers: int, stages: int) -> None:
    """The loop of llama.cpp: layer i is on the first of n equal devices whose cumulated share is above i / (L + 1)."""
    ends = [(stage + 1) * (layers + 1) for stage in range(stages)]  # in units of 1 / (n · (L + 1))
    places = [bisect_right(ends, layer * stages) for layer in range(layers)]
    assert layers_per_stage(layers, stages, "head") == [places.count(stage) for stage in range(stages)]


@given(st.integers(1, 200), st.integers(1, 16), st.sampled_from(["first", "last", "before last", "one"]))
def test_every_layer_is_on_one_stage(layers: int, stages: int, remainder: str) -> None:
    counts = layers_per_stage(layers, stages, remainder)  # type: ignore[arg-type]
    assert (len(counts), sum(counts)) == (stages, layers)
    assert min(counts) == layers // stages


def test_shards_have_the_layers_of_their_engine() -> None:
    for engine, expected in (
        ("vllm", [15, 15, 16, 15]),
        ("trtllm", [16, 15, 15, 15]),
        ("vllm,mtp=1", [15, 15, 16, 16]),
    ):
        parts = shards(load_bundled("deepseek-v3"), serving_layout("tp=8,pp=4"), find_engine(engine))
        assert [sum(rows.layers for rows in part.rows) for part in parts] == expected, engine


def test_layouts_that_an_engine_does_not_have_are_refused() -> None:
    for engine, layout, words in (
        ("llamacpp", "tp=2", "llama.cpp does not divide a model in this way"),
        ("llamacpp", "dp=2", "llama.cpp does not divide a model in this way"),
        ("llamacpp", "pp=32", "llama.cpp uses at most 16 GPUs"),
        ("vllm@0.8", "dp=2", "vLLM 0.8.0 does not divide a model in this way"),
        ("vllm@0.6.4", "tp=8,ep=8", "vLLM 0.6.4 does not divide a model in this way"),
        ("vllm", "tp=8,ep=4", "all 8 GPUs of the attention"),
    ):
        with pytest.raises(LayoutError, match=words):
            shards(load_bundled("mixtral-8x7b"), serving_layout(layout), find_engine(engine))
    shards(load_bundled("mixtral-8x7b"), serving_layout("tp=8,ep=4"), find_engine("sglang"))


@pytest.mark.parametrize(
    ("model", "engine", "kv", "block", "padding"),
    [
        ("qwen3-next-80b-a3b", "vllm@0.10.2", None, 544, 0.0149),
        ("qwen3.5-27b", "vllm", None, 784, 0.0013),
        ("qwen3.5-35b-a3b", "vllm", None, 1056, 0.0076),
        ("qwen3.5-35b-a3b", "vllm", "fp8", 2096, None),
    ],
)
def test_blocks_of_hybrid_models_are_those_that_vllm_prints(
    model: str, engine: str, kv: str | None, block: int, padding: float | None
) -> None:
    """Public logs: "Setting attention block size to 544 tokens", "Padding mamba page size by 1.49%".

    A block of attention must hold the states of one layer. Qwen3.5 asks for recurrent states in fp32. Qwen3-Next asks
    for no format, and vLLM uses that of the model.
    """
    pool = answer(model, "b300", engine=engine, kv=kv).fit.tightest.pool  # type: ignore[union-attr]
    attention, state = sorted(pool.groups, key=lambda group: group.rows.visible)
    assert attention.block == block
    if padding is not None:
        page = block * attention.rows.row_bytes
        assert round(float(page / state.rows.state_bytes) - 1, 4) == padding


def test_engines_store_states_in_their_own_formats() -> None:
    def state(model: str, engine: str) -> int:
        (part,) = shards(load_bundled(model), serving_layout(""), find_engine(engine))
        return sum(rows.state_bytes for rows in part.rows)

    recurrent, conv = 32 * 128 * 128, 3 * 8192  # of Qwen3-Next and of Qwen3.5-35B-A3B
    for engine, next_bytes, asked_bytes, conv_bytes in (
        ("vllm", 2, 4, 2),
        ("vllm,state_bytes=4", 4, 4, 2),
        ("vllm,state_bytes=2", 2, 2, 2),
        ("vllm@0.10.1", 2, 2, 2),
        ("sglang", 4, 4, 2),
        ("trtllm", 2, 2, 2),
        ("llamacpp", 4, 4, 4),
        ("ideal", 4, 4, 2),
    ):
        assert state("qwen3-next-80b-a3b", engine) == next_bytes * recurrent + conv_bytes * conv, engine
        assert state("qwen3.5-35b-a3b", engine) == asked_bytes * recurrent + conv_bytes * conv, engine


def test_kernels_convert_weights_that_a_device_does_not_compute() -> None:
    for engine, model, weights, device, runs in (
        ("vllm", "qwen3-8b", "fp8-block", "a100-80gb-sxm", True),
        ("vllm", "qwen3-30b-a3b", "fp8-block", "a40", True),
        ("vllm@0.8", "qwen3-30b-a3b", "fp8-block", "a40", False),
        ("vllm", "qwen3-8b", "nvfp4", "h100", True),
        ("vllm@0.8", "qwen3-8b", "nvfp4", "h100", False),
        ("vllm", "qwen3-8b", "mxfp8", "rtx-3090", True),
        ("vllm", "qwen3-8b", "fp8", "v100-sxm2-32gb", False),
        ("vllm", "qwen3-8b", "nvfp4", "mi300x", False),
        ("sglang", "qwen3-8b", "fp8", "rtx-a6000", True),
        ("sglang", "qwen3-30b-a3b", "fp8", "rtx-a6000", False),
        ("sglang", "qwen3-8b", "mxfp8", "rtx-a6000", False),
        ("trtllm", "qwen3-8b", "fp8", "a100-80gb-sxm", False),
        ("trtllm", "qwen3-8b", "nvfp4", "h100", False),
    ):
        row = answer(model, device, engine=engine, weights=[weights])
        assert row.fit is not None
        assert (row.fit.runs, row.fit.converts) == (runs, runs), (engine, model, weights, device)
    native = answer("qwen3-8b", "h100", weights=["fp8"]).fit
    assert native is not None
    assert (native.runs, native.converts) == (True, False)


def test_a_kernel_that_converts_repeats_the_scales() -> None:
    """Llama-3-8B: 32 layers of matrices with 6,815,744 × 32 weights. Marlin has a bf16 scale per output and 128 inputs,
    in place of an fp32 scale per block of 128 × 128."""
    row = answer("llama3-8b", "a100-80gb-sxm", weights=["fp8-block"])
    assert row.fit is not None
    terms = {term.term: term.value for term in row.fit.tightest.terms}
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert terms["scales repeated per output"] == weights // 128 * 2 - weights // 128**2 * 4


def test_llamacpp_keeps_the_embedding_on_the_cpu() -> None:
    """llama.cpp's log of Llama-3-8B in Q4_K_M: the buffer of the GPU has 4403.49 MiB, that of the CPU 281.81 MiB."""
    (whole,) = shards(load_bundled("llama3-8b"), Layout(), find_engine("llamacpp,host_embedding=0"))
    (own,) = shards(load_bundled("llama3-8b"), Layout(), find_engine("llamacpp"))
    assert round(own.weights / 2**20, 2) == 4403.49
    assert round((whole.weights - own.weights) / 2**20, 2) == 281.81
    # The head of a tied model is the table, and the GPU needs it.
    tied = load_bundled("llama3.2-1b")
    (one,) = shards(tied, Layout(), find_engine("llamacpp"))
    stages = shards(tied, Layout(pp=2), find_engine("llamacpp"))
    assert sum(stage.weights for stage in stages) == one.weights


def test_engines_convert_published_weights_in_fp32() -> None:
    """Their logs say "Downcasting torch.float32 to torch.bfloat16" or "float16"."""
    bf16, fp16 = "bf16, converted from fp32", "fp16, converted from fp32"
    for engine, device, title in (
        ("vllm", "h100", bf16),
        ("vllm", "t4", fp16),
        ("vllm@0.8", "h100", fp16),
        ("sglang", "h100", fp16),
        ("ideal", "h100", "fp32"),
    ):
        fit = answer("gpt2", device, engine=engine).fit
        assert fit is not None
        assert fit.tightest.shard.title == title
        assert fit.tightest.shard.weights == (2 if title != "fp32" else 4) * 124_439_808
    asked = answer("gpt2", "h100", weights=["fp32"])
    assert asked.fit is not None
    assert asked.fit.tightest.shard.title == "fp32"
    assert asked.command is not None
    assert "--dtype float32" in asked.command


def test_llamacpp_loads_the_mxfp4_file_of_gpt_oss() -> None:
    """llama-bench prints 59.02 GiB for ggml-org/gpt-oss-120b-GGUF (community.frame.work/t/73280). The table of
    embeddings stays on the CPU."""
    spec = load_bundled("gpt-oss-120b")
    (own,) = shards(spec, Layout(), find_engine("llamacpp"))
    table = spec.vocab_size * spec.hidden_size * 34 // 32  # Q8_0
    assert own.format == "gguf-mxfp4-moe"
    assert (own.weights + table) / 2**30 == pytest.approx(59.02, abs=0.005)


def test_a_draft_model_takes_weights_and_cache() -> None:
    model, small = load_bundled("llama3.3-70b"), load_bundled("llama3.2-1b")
    for engine in map(find_engine, ("vllm", "sglang", "trtllm", "llamacpp", "ideal")):
        tp = "tp=4" if "tp" in engine.layouts else ""
        layout = serving_layout(f"{tp},pp=2")
        plain = shards(model, layout, engine)
        both = shards(model, layout, engine, draft=small)
        (own,) = shards(small, serving_layout(tp), engine)
        assert [part.draft for part in both] == [None, own]
        assert [part.weights for part in both] == [part.weights for part in plain]
        assert both[1].rows == (*plain[1].rows, *own.rows)
    one, two = (answer("llama3-8b", "h100", draft=draft) for draft in (None, small))
    assert one.fit is not None
    assert two.fit is not None
    # 32 layers and 16 layers, 8 heads of 128 and of 64 elements.
    bytes_per_token = [2 * 2 * 8 * 128 * 32, 2 * 2 * 8 * (128 * 32 + 64 * 16)]
    for fit, each in zip((one.fit, two.fit), bytes_per_token, strict=True):
        assert fit.tightest.pool.request_bytes(8192) == each * 8192
    assert sum(term.value for term in two.fit.tightest.terms) == two.fit.tightest.device.total_bytes
    assert "draft model" in two.approximate_because[0]
    deepseek, gpt2 = (
        msgspec.structs.replace(load_bundled(name), vocab_size=model.vocab_size) for name in ("deepseek-v3", "gpt2")
    )
    fp8 = answer("llama3-8b", "v100-sxm2-32gb", weights=["fp16"], draft=deepseek).fit
    assert fp8 is not None
    assert fp8.missing_format == "fp8"
    with pytest.raises(LayoutError, match="draft model gpt2: layout tp=8"):
        shards(model, serving_layout("tp=8"), find_engine("vllm"), draft=gpt2)


COMMANDS = (
    ("vllm", {"kv": "fp8"}, ["--kv-cache-dtype fp8"]),
    ("vllm", {"kv": "bf16"}, []),
    ("vllm,block_tokens=32", {}, ["--block-size 32"]),
    ("vllm@0.6.4,chunked_prefill=1", {}, ["--enable-chunked-prefill"]),
    ("sglang,batched_tokens=4096", {"kv": "fp8"}, ["--chunked-prefill-size 4096", "--kv-cache-dtype fp8_e4m3"]),
    ("sglang,windows_percent=50", {}, ["--swa-full-tokens-ratio 0.5"]),
    ("trtllm", {"kv": "fp8"}, ["""--extra_llm_api_options <(echo '{"kv_cache_config": {"dtype": "fp8"}}')"""]),
    ("trtllm", {"layout": "dp=2"}, ["--tp_size 2", """<(echo '{"enable_attention_dp": true}')"""]),
    ("llamacpp,batched_tokens=1024", {"kv": "q8_0"}, ["-ub 1024", "-ctk q8_0 -ctv q8_0 -fa on"]),
)


@pytest.mark.parametrize(("engine", "options", "flags"), COMMANDS)
def test_the_command_has_every_setting(engine: str, options: dict[str, object], flags: list[str]) -> None:
    command = answer("llama3-8b", "h200", engine=engine, **options).command
    assert command is not None
    for flag in flags:
        assert flag in command
    if not flags:
        assert "dtype" not in command


def test_the_command_has_the_drafts_of_speculative_decoding() -> None:
    layout = "tp=8,ep=8"
    for engine, words in (
        ("vllm,mtp=1", '"method": "mtp", "num_speculative_tokens": 1'),
        ("sglang,mtp=1", "--speculative-algorithm EAGLE --speculative-num-steps 1"),
        ("trtllm,mtp=1", '"decoding_type": "MTP", "num_nextn_predict_layers": 1'),
    ):
        command = answer("deepseek-v3", "b200", engine=engine, layout=layout).command
        assert command is not None
        assert words in command, engine
    small = load_bundled("llama3.2-1b")
    for engine, words in (
        ("vllm", '"method": "draft_model", "model": "meta-llama/Llama-3.2-1B", "num_speculative_tokens": 5'),
        ("sglang,draft_tokens=3", "--speculative-algorithm STANDALONE --speculative-draft-model-path meta-llama/"),
        ("trtllm", '"speculative_model_dir": "meta-llama/Llama-3.2-1B"'),
        ("llamacpp", "-md Llama-3.2-1B-Q4_K_M.gguf"),
    ):
        command = answer("llama3-8b", "h200", engine=engine, draft=small, draft_model="llama3.2-1b").command
        assert command is not None
        assert words in command, engine


def test_the_command_names_the_users_own_files(tmp_path: Path) -> None:
    spec = load_bundled("llama3-8b")
    folder = tmp_path / "my model"
    folder.mkdir()
    for name in ("config.json", "model.gguf"):
        (folder / name).write_text("{}")
    assert weights_of(spec, str(folder)) == weights_of(spec, str(folder / "config.json")) == str(folder)
    assert weights_of(spec, str(folder / "model.gguf")) == str(folder / "model.gguf")
    assert weights_of(spec, "hf:org/name") == "org/name"
    assert weights_of(spec, "llama3-8b") == "meta-llama/Meta-Llama-3-8B"
    (row,) = fitted(spec, model=str(folder), devices=["h200"])
    assert row.command is not None
    assert shlex.split(row.command)[2] == str(folder)
    (own,) = fitted(spec, model=str(folder / "config.json"), devices=["h200"], engine="llamacpp")
    assert own.command is not None
    assert shlex.split(own.command)[2] == "my model-Q4_K_M.gguf"
    (changed,) = fitted(spec, devices=["h200"])
    assert changed.command is None


def test_explain_names_the_source_of_every_constant() -> None:
    row = answer("llama3-8b", "h100", engine="vllm@0.19,sequences=64", explain=True)
    sources = {used.constant: used.source for used in row.constants}
    assert sources["sequences"] == "set on the command line"
    assert (
        "github.com" in sources["graphs"] if "graphs" in sources else "llm-d-planner" in sources["outside_torch_sm90"]
    )
    assert all(sources.values())
    assert json.dumps([used._asdict() for used in row.constants])


def test_a_table_names_the_devices_whose_memory_is_inexact() -> None:
    rows = fitted(load_bundled("llama3.2-1b"), model="llama3.2-1b", devices=["h20", "h200", "h100-nvl"])
    (block,) = document(rows, {}).blocks
    lines = [line for line in block.lines if line.startswith("approximate")]
    assert len(lines) == 1
    assert lines[0].startswith("approximate on h20, h100-nvl: the total memory that a CUDA program sees")
    assert "(approximate)" not in block.headline


def test_the_command_loads_the_weights_that_the_answer_is_about() -> None:
    """Published files in another format are no answer: the engine converts them, or the command has a placeholder."""
    for engine, weights, name, flag in (
        ("vllm", None, "mistralai/Mistral-Small-24B-Base-2501", ""),
        ("vllm", "fp16", "mistralai/Mistral-Small-24B-Base-2501", "--dtype float16"),
        ("vllm", "awq", "YOUR-AWQ-FILES", ""),
        ("vllm", "gptq,bits=8", "YOUR-GPTQ-FILES", ""),
        ("vllm", "fp8", "YOUR-FP8-CHANNEL-FILES", ""),
        ("vllm", "fp8-tensor", "mistralai/Mistral-Small-24B-Base-2501", "--quantization fp8_per_tensor"),
        ("vllm@0.19", "fp8-tensor", "mistralai/Mistral-Small-24B-Base-2501", "--quantization fp8"),
        ("vllm", "nf4", "mistralai/Mistral-Small-24B-Base-2501", "--quantization bitsandbytes"),
        ("sglang", "awq", "YOUR-AWQ-FILES", ""),
        ("trtllm", "fp8", "YOUR-FP8-CHANNEL-FILES", ""),
        ("llamacpp", "gguf-q8-0", "Mistral-Small-24B-Base-2501-Q8_0.gguf", ""),
    ):
        row = answer("mistral-small-24b", "h100", engine=engine, weights=[weights] if weights else [])
        assert row.command is not None
        assert name in row.command.split(), (engine, weights)
        assert flag in row.command, (engine, weights)
        assert ("--quantization" in row.command) == ("--quantization" in flag)
    # The published files of DeepSeek-V3 are fp8 already, and vLLM converts only plain weights.
    published = answer("deepseek-v3", "b200", gpus=8, weights=["fp8-tensor"]).command
    assert published is not None
    assert "YOUR-FP8-TENSOR-FILES" in published


def test_a_gguf_file_of_another_format_is_not_the_file_of_the_user(tmp_path: Path) -> None:
    spec, file = load_bundled("llama3-8b"), tmp_path / "mine.gguf"
    file.write_bytes(b"")
    for weights, name in (([], str(file)), (["gguf-q8-0"], "mine-Q8_0.gguf")):
        (row,) = fitted(spec, model=str(file), devices=["h200"], engine="llamacpp", weights=weights)
        assert row.command is not None
        assert shlex.split(row.command)[2] == name


def test_weights_are_converted_on_loading_only_if_they_fit_before() -> None:
    """vLLM 0.9 loads all weights in bf16 first: 43.9 GiB of a 24B model. Newer versions convert layer by layer."""
    for engine, device, converted in (
        ("vllm@0.9", "rtx-5090", False),
        ("vllm@0.9", "h100", True),
        ("vllm", "rtx-5090", True),
    ):
        row = answer("mistral-small-24b", device, engine=engine, weights=["fp8-tensor"])
        assert row.fit is not None
        assert (row.fit.on_load is not None) == converted, (engine, device)


def test_weights_that_the_engine_converts_come_before_other_files() -> None:
    for engine, option, other in (("vllm", "fp8-block", False), ("sglang", "fp8-channel", True)):
        found = answer("mistral-small-24b", "l40s", engine=engine).changes
        assert next(change.other_files for change in found if change.option == f"--weights {option}") == other


def test_a_model_without_known_files_has_no_command(tmp_path: Path) -> None:
    spec = load_bundled("llama3-8b")
    invented = msgspec.structs.replace(spec, name="mine", aliases=("mine",))
    config = tmp_path / "config.json"
    config.write_text("{}")
    for model in ("mine.toml", str(config), str(tmp_path)):
        assert weights_of(invented, model) is None
        (row,) = fitted(invented, model=model, devices=["h100"])
        assert row.command is None
    assert weights_of(spec, str(config)) == "meta-llama/Meta-Llama-3-8B"
    (tmp_path / "model.safetensors").write_text("")
    assert weights_of(invented, str(config)) == str(tmp_path)
    assert weights_of(load_bundled("gpt3-175b"), "gpt3-175b") is None


def test_replicas_and_copies_of_the_attention_have_flags_of_their_own() -> None:
    """SGLang counts the GPUs of all copies of the attention in --tp-size, and those of one replica of a dense model."""
    dense = answer("llama3-8b", "h100", engine="sglang", layout="tp=2,dp=2").command
    assert dense is not None
    assert "--tp-size 2 --dp-size 2" in dense
    assert "--enable-dp-attention" not in dense
    mixture = answer("qwen3-30b-a3b", "h100", engine="sglang", layout="tp=2,dp=2").command
    assert mixture is not None
    assert "--tp-size 4 --dp-size 2 --enable-dp-attention" in mixture


def test_a_note_says_which_format_an_alias_names() -> None:
    for weights, words in (
        ("fp8", ["`fp8` is read as fp8-channel", "fp8-tensor, fp8-block"]),
        ("int4", ["`int4` is read as awq", "gptq, w4a16, nf4"]),
        ("fp8-channel", []),
        ("w8a8", []),
        ("q4_k_m", []),
    ):
        engine = "llamacpp" if weights.startswith("q4") else "vllm"
        notes = "\n".join(answer("llama3-8b", "h100", engine=engine, weights=[weights]).notes)
        assert all(word in notes for word in words), weights
        assert ("is read as" in notes) == bool(words), weights
        assert bool(WeightRecipe(load_bundled("llama3-8b"), weights).notes) == bool(words), weights
