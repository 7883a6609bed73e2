"""Exact bytes of weights from the headers of the files in a folder."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import llmbench
from llmbench.cli import run
from llmbench.errors import LLMBenchError
from llmbench.sizing.files import OTHER
from llmbench.sizing.weights import stored_weights
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import find_model
from llmbench.spec.huggingface import from_config
from llmbench.spec.model import ModelSpec

SIZES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "I32": 4, "F8_E4M3": 1}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "torch_dtype": "bfloat16",
}
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def llama(dtype: str = "BF16") -> dict[str, tuple[str, tuple[int, ...]]]:
    tensors = {"model.embed_tokens.weight": (128, 64), "model.norm.weight": (64,), "lm_head.weight": (128, 64)}
    for layer in range(2):
        at = f"model.layers.{layer}."
        tensors |= {f"{at}self_attn.{name}_proj.weight": (64, 64) for name in "qo"}
        tensors |= {f"{at}self_attn.{name}_proj.weight": (32, 64) for name in "kv"}
        tensors |= {f"{at}mlp.{name}_proj.weight": (96, 64) for name in ("gate", "up")}
        tensors |= {f"{at}mlp.down_proj.weight": (64, 96)}
        tensors |= {f"{at}{name}_layernorm.weight": (64,) for name in ("input", "post_attention")}
    return {name: (dtype, shape) for name, shape in tensors.items()}


def write(path: Path, tensors: Shapes) -> int:
    """Write a safetensors file. Its tensors have no data: the file ends in a hole."""
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = at + SIZES[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return at


def checkpoint(folder: Path, config: dict[str, Any], tensors: Shapes) -> int:
    """Write a folder with a config and one file, and return the bytes of the tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return write(folder / "model.safetensors", tensors)


def inference_weights(folder: Path, **options: Any) -> int:
    memory = llmbench.memory(str(folder), phase="inference", **options).rows[0]
    return int(memory["parts_bytes.weights"])


def test_the_bytes_are_those_of_the_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = llama() | {f"model.layers.1.mlp.{name}_proj.weight": ("F32", (96, 64)) for name in ("gate", "up")}
    total = checkpoint(tmp_path, LLAMA, mixed)
    stored = stored_weights(find_model(str(tmp_path)))
    assert stored.total_bytes == total
    assert stored.components["mlp"] == 2 * 3 * 2 * 96 * 64 + 2 * 2 * 96 * 64
    assert not stored.doubts
    assert inference_weights(tmp_path) == total
    norms = 2 * 5 * 64
    assert inference_weights(tmp_path, layout="tp=2") == (total - norms) // 2 + norms
    assert run(["params", str(tmp_path)]) == 0
    assert "from the files" in capsys.readouterr().out
    assert run(["params", str(tmp_path), "--set", "num_hidden_layers=1"]) == 0
    assert "from the files" not in capsys.readouterr().out


def test_every_part_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {
        "vision_tower.patch.weight": ("F32", (8, 8)),
        "model.layers.2.eh_proj.weight": ("BF16", (64, 128)),
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (8,)),
    }
    total = checkpoint(tmp_path, LLAMA, llama() | extra)
    components = stored_weights(find_model(str(tmp_path))).components
    assert components["vision_tower"] == 256
    assert components["next_token_prediction"] == 2 * 64 * 128
    assert components["other_tensors"] == 32
    assert sum(components.values()) == total
    assert inference_weights(tmp_path) == total - 2 * 64 * 128 - 32
    run(["params", str(tmp_path)])
    assert "vision_tower 256 B" in capsys.readouterr().out


@pytest.mark.parametrize("stated", ["bfloat16", None])
@pytest.mark.parametrize(
    ("dtypes", "title", "form"),
    [
        (("F32", "F32"), "fp32", "fp32"),
        (("F16", "F16"), "fp16", "fp16"),
        (("BF16", "F32"), "bf16, fp32", "bf16"),
        (("U8", "U8"), "U8", "bf16"),
    ],
)
def test_the_label_says_the_formats_of_the_files(
    stated: str | None, dtypes: tuple[str, str], title: str, form: str, tmp_path: Path
) -> None:
    first, second = map(llama, dtypes)
    checkpoint(tmp_path, LLAMA | {"torch_dtype": stated}, first | {k: v for k, v in second.items() if ".norm." in k})
    stored = stored_weights(find_model(str(tmp_path)))
    assert (stored.title, stored.format) == (title, form)


def test_the_label_does_not_say_a_format_that_the_files_do_not_have(tmp_path: Path) -> None:
    checkpoint(tmp_path, LLAMA | {"quantization_config": {"quant_method": "gptq"}}, llama())
    assert stored_weights(find_model(str(tmp_path))).title == "bf16"


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        (Q_PROJ, ("U8", (64, 128)), "8,192 elements in the files, 4,096 by the config"),
        (Q_PROJ, ("F32", (32, 64)), "2,048 elements in the files, 4,096 by the config"),
        (Q_PROJ, ("BF16", (128, 32)), "the shape [128, 32] in the files, 64 inputs and 64 outputs by the config"),
        (Q_PROJ, ("BF16", (64 * 64,)), "the shape [4096] in the files"),
        ("model.norm.weight", ("F32", (32,)), "32 elements in the files, 64 by the config"),
    ],
)
def test_other_shapes_are_said_although_the_bytes_agree(
    name: str, tensor: tuple[str, tuple[int, ...]], said: str, tmp_path: Path
) -> None:
    checkpoint(tmp_path, LLAMA, llama() | {name: tensor})
    (doubt,) = stored_weights(find_model(str(tmp_path))).doubts
    assert said in doubt


def test_experts_fused_and_packed_tensors(tmp_path: Path) -> None:
    experts = {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 16,
    }
    tensors = {name: tensor for name, tensor in llama().items() if ".mlp." not in name}
    for at in ("model.layers.0.", "model.layers.1."):
        tensors[f"{at}mlp.gate.weight"] = ("F32", (4, 64))
        tensors |= {f"{at}self_attn.{name}_norm.weight": ("BF16", (16,)) for name in "qk"}
        for expert in range(4):
            tensors |= {f"{at}mlp.experts.{expert}.{n}_proj.weight": ("BF16", (32, 64)) for n in ("gate", "up")}
            tensors[f"{at}mlp.experts.{expert}.down_proj.weight"] = ("BF16", (64, 32))
    total = checkpoint(tmp_path / "moe", LLAMA | experts, tensors)
    stored = stored_weights(find_model(str(tmp_path / "moe")))
    assert (stored.total_bytes, stored.doubts) == (total, ())
    assert stored.components["router"] == 2 * 4 * 4 * 64
    assert stored.components["experts"] == 2 * 4 * 3 * 2 * 32 * 64
    whole = inference_weights(tmp_path / "moe")
    assert inference_weights(tmp_path / "moe", layout="ep=2,dp=2") == whole - stored.components["experts"] // 2

    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 128, "n_positions": 32}
    fused: dict[str, tuple[int, ...]] = {
        "wte.weight": (128, 64),
        "wpe.weight": (32, 64),
        "h.0.attn.c_attn.weight": (64, 192),
    }
    fused |= {"h.0.attn.c_attn.bias": (192,), "h.0.attn.c_proj.weight": (64, 64), "h.0.attn.c_proj.bias": (64,)}
    fused |= {"h.0.mlp.c_fc.weight": (64, 256), "h.0.mlp.c_fc.bias": (256,), "h.0.mlp.c_proj.weight": (256, 64)}
    fused |= {"h.0.mlp.c_proj.bias": (64,), "h.0.attn.bias": (1, 1, 32, 32)}
    fused |= {f"{at}.{name}": (64,) for at in ("h.0.ln_1", "h.0.ln_2", "ln_f") for name in ("weight", "bias")}
    total = checkpoint(tmp_path / "gpt2", gpt2, {name: ("F32", shape) for name, shape in fused.items()})
    stored = stored_weights(find_model(str(tmp_path / "gpt2")))
    assert stored.total_bytes == total
    assert stored.components["attention"] == 4 * (64 * 192 + 192 + 64 * 64 + 64)
    assert stored.components["other_tensors"] == 4 * 32 * 32
    assert inference_weights(tmp_path / "gpt2") == (total - 4 * 32 * 32) // 2  # an engine converts fp32 to 16 bits

    awq = LLAMA | {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}}
    packed = {}
    for name, (_, shape) in llama("F16").items():
        if "_proj" not in name:
            packed[name] = ("F16", shape)
            continue
        outputs, inputs, at = *shape, name.removesuffix("weight")
        packed |= {f"{at}qweight": ("I32", (inputs, outputs // 8)), f"{at}scales": ("F16", (inputs // 32, outputs))}
        packed[f"{at}qzeros"] = ("I32", (inputs // 32, outputs // 8))
    for number, config in enumerate((awq, LLAMA, awq | {"quantization_config": {"quant_method": "new"}})):
        total = checkpoint(tmp_path / f"awq{number}", config, packed)
        stored = stored_weights(find_model(str(tmp_path / f"awq{number}")))
        assert (stored.total_bytes, stored.doubts) == (total, ())
        assert sum(stored.components.values()) == total
        assert inference_weights(tmp_path / f"awq{number}") == total


def test_files_and_config_that_disagree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = llama()
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = ("BF16", (95, 64))
    total = checkpoint(tmp_path, LLAMA, tensors)
    stored = stored_weights(find_model(str(tmp_path)))
    assert stored.total_bytes == total
    missing, differs = stored.doubts
    assert "no tensor with a known name for layers.1.attention.o_proj (4,096 parameters)" in missing
    assert "layers.0.ffn.up_proj has 6,080 elements in the files, 6,144 by the config" in differs
    assert run(["params", str(tmp_path)]) == 0
    assert "6,080 elements" in capsys.readouterr().out.replace("\n", " ")


def test_an_index_without_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    total = sum(2 * prod(shape) for _, shape in llama().values())
    names = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(llama())}
    for stated in (total, total + 1000, total - 1000):
        index = {"metadata": {"total_size": stated}, "weight_map": names}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        stored = stored_weights(find_model(str(tmp_path)))
        assert stored.total_bytes == stated
        assert bool(stored.doubts) == (stated < total)
    write(tmp_path / "model-00001-of-00002.safetensors", {})
    with pytest.raises(LLMBenchError, match="1 of 2 files that the index names are missing") as refused:
        stored_weights(find_model(str(tmp_path)))
    assert "--weights" in str(refused.value.hint)
    assert stored_weights(find_model(str(tmp_path)), "bf16").total_bytes == total


def test_an_index_that_its_files_contradict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total = checkpoint(tmp_path, LLAMA, llama())
    for names, stated in ((list(llama()), total), ([*llama(), "a.weight", "b.weight"], total + 1000)):
        index = {"metadata": {"total_size": stated}, "weight_map": dict.fromkeys(names, "model.safetensors")}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert stored_weights(find_model(str(tmp_path))).total_bytes == total
        assert run(["params", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert ("the index names tensors that no file has: a.weight, b.weight" in shown) == (stated != total)
        assert (f"the index says {stated:,} bytes in total, but the files have {total:,}" in shown) == (stated != total)


def test_kinds_of_layers_with_other_widths_keep_their_bytes(tmp_path: Path) -> None:
    plain = {"attention": {"no_op": False, "n_heads_in_group": 2}, "ffn": {"no_op": False}}
    blocks = [plain | {"ffn": {"no_op": False, "ffn_mult": mult}} for mult in (5.25, 1.3125) * 2]
    config = LLAMA | {"model_type": "nemotron-nas", "num_hidden_layers": 4, "block_configs": blocks}
    config |= {"hidden_size": 1024, "quantization_config": {"quant_method": "unknown"}}
    index = {"metadata": {"total_size": 60_000_000}, "weight_map": {"model.embed_tokens.weight": "lost.safetensors"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    spec = find_model(str(tmp_path))
    assert len(spec.layers) == 2
    assert stored_weights(spec).total_bytes == 60_000_000
    half = stored_weights(spec, layout=Layout(tp=2)).components["mlp"]
    assert half == pytest.approx(stored_weights(spec).components["mlp"] / 2, abs=16)


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 7]}}, 7, "7 bytes"),
        ({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, 9, "end at byte"),
        ({"a": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, 3, "gap"),
        ({n: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} for n in "ab"}, 2, "overlaps"),
        ({"a": {"dtype": "F9", "shape": [2], "data_offsets": [0, 2]}}, 2, "unknown format"),
        ({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 2]}}, 2, "impossible shape"),
        ({"a": [1]}, 2, "needs the fields"),
    ],
)
def test_a_faulty_header_is_refused(header: Any, data: int, problem: str, tmp_path: Path) -> None:
    checkpoint(tmp_path, LLAMA, {})
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    with pytest.raises(LLMBenchError, match=problem):
        stored_weights(find_model(str(tmp_path)))


def name_of(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


METADATA = {
    "block_count": 2,
    "context_length": 2048,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}


def gguf(
    path: Path,
    tensors: Mapping[str, tuple[int, int, tuple[int, ...]]],
    architecture: str = "llama",
    metadata: Mapping[str, int | float | str | bool] = METADATA,
) -> None:
    """Write a GGUF file. A tensor is given as (number of its type, bytes, shape)."""
    content = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2 + len(metadata))
    content += name_of("general.architecture") + struct.pack("<I", 8) + name_of(architecture)
    for key, value in metadata.items():
        content += name_of(f"{architecture}.{key}")
        match value:
            case str():
                content += struct.pack("<I", 8) + name_of(value)
            case bool():
                content += struct.pack("<I?", 7, value)
            case float():
                content += struct.pack("<If", 6, value)
            case _:
                content += struct.pack("<II", 4, value)
    content += name_of("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + name_of("a") + name_of("b")
    at = 0
    for name, (kind, size, shape) in tensors.items():
        content += name_of(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        content += struct.pack("<IQ", kind, at)
        at += -(-size // 32) * 32
    path.write_bytes(content + bytes(-len(content) % 32) + bytes(at))


def test_a_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = LLAMA | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    f32, q4_k, q6_k = 0, 12, 14

    def matrix(kind: int, outputs: int, inputs: int) -> tuple[int, int, tuple[int, ...]]:
        return kind, {f32: 1024, q4_k: 144, q6_k: 210}[kind] * outputs * inputs // 256, (outputs, inputs)

    tensors: dict[str, tuple[int, int, tuple[int, ...]]] = {"token_embd.weight": matrix(q4_k, 128, 256)}
    tensors["output.weight"] = matrix(q6_k, 128, 256)
    tensors |= {"output_norm.weight": (f32, 1024, (256,)), "rope_freqs.weight": (f32, 128, (32,))}
    for at in ("blk.0.", "blk.1."):
        tensors |= {f"{at}{name}_norm.weight": (f32, 1024, (256,)) for name in ("attn", "ffn")}
        tensors |= {f"{at}attn_{name}.weight": matrix(q4_k, 256, 256) for name in ("q", "output")}
        tensors |= {f"{at}attn_k.weight": matrix(q4_k, 128, 256), f"{at}attn_v.weight": matrix(q6_k, 128, 256)}
        tensors |= {f"{at}ffn_{name}.weight": matrix(q4_k, 512, 256) for name in ("gate", "up")}
        tensors[f"{at}ffn_down.weight"] = matrix(q6_k, 256, 512)
    path = tmp_path / "x.gguf"
    gguf(path, tensors)
    spec = find_model(str(tmp_path))
    stored = stored_weights(spec, str(path))
    total = sum(size for _, size, _ in tensors.values())
    assert (stored.total_bytes, stored.doubts) == (total, ())
    assert stored.components["attention"] == 2 * (144 * (256 + 256 + 128) + 210 * 128)
    assert stored.components["lm_head"] == 210 * 128
    assert inference_weights(tmp_path, weights=str(path)) == total
    assert run(["params", str(tmp_path), "--weights", str(path)]) == 0
    assert "GGUF, Q4_K, Q6_K, F32 (from the files)" in capsys.readouterr().out
    served = ["fit", str(tmp_path), "--weights", str(path), "--engine", "llamacpp", "--device", "h100", "--seq", "64"]
    assert run([*served, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["fits"]
    assert f"llama-server -m {path} " in row["command"]
    assert run([word.replace("llamacpp", "vllm") for word in served] + ["--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["fits"]
    assert f"vllm serve {path} " in row["command"]
    assert run(served) == 0
    assert "named as usual" not in " ".join(capsys.readouterr().out.split())

    whole = find_model(str(path))
    assert replace(spec, name="", source="", weights=whole.weights) == replace(whole, name="", source="")
    assert stored_weights(whole).components == stored.components

    content = path.read_bytes()
    path.write_bytes(content.replace(name_of("llama"), name_of("lloma")))
    with pytest.raises(LLMBenchError, match="architecture lloma") as refused:
        find_model(str(path))
    assert "--weights" in str(refused.value.hint)
    faulty = {
        "does not begin": b"GGUX" + content[4:],
        "version 9": content[:4] + struct.pack("<I", 9) + content[8:],
        "1,152,921,504,606,846,976 tensors": content[:8] + struct.pack("<Q", 2**60) + content[16:],
        "beyond its end": content[:200],
        "its tensors end at byte": content[:-40],
    }
    for problem, damaged in faulty.items():
        path.write_bytes(damaged)
        with pytest.raises(LLMBenchError, match=problem):
            stored_weights(spec, str(path))
    with pytest.raises(LLMBenchError, match="cannot read"):
        stored_weights(spec, str(tmp_path / "none.gguf"))


def gguf_layer(norms: str, *, experts: bool, biases: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer of width 64 with 4 heads and 2 KV heads of width 32, by llama.cpp's names."""
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (64,) for name in norms.split()}
    shapes |= {"attn_q.weight": (128, 64), "attn_output.weight": (64, 128)}
    shapes |= {f"attn_{name}.weight": (64, 64) for name in "kv"}
    many = (8,) if experts else ()
    ending = "_exps" if experts else ""
    shapes |= {f"ffn_{name}{ending}.weight": (*many, 96, 64) for name in ("gate", "up")}
    shapes |= {f"ffn_down{ending}.weight": (*many, 64, 96)}
    if experts:
        shapes["ffn_gate_inp.weight"] = (8, 64)
    if biases:
        shapes |= {f"{name.removesuffix('.weight')}.bias": (*many, 64) for name in ("ffn_down_exps",)}
        shapes |= {f"ffn_{name}_exps.bias": (8, 96) for name in ("gate", "up")}
        shapes |= {"ffn_gate_inp.bias": (8,), "attn_q.bias": (128,), "attn_k.bias": (64,), "attn_v.bias": (64,)}
        shapes |= {"attn_output.bias": (64,), "attn_sinks.weight": (4,)}
    return shapes


@pytest.mark.parametrize(
    ("architecture", "metadata", "layer", "config"),
    [
        (
            "qwen3moe",
            {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 96},
            gguf_layer("attn_norm ffn_norm", experts=True, biases=False),
            {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}
            | {"norm_topk_prob": True},
        ),
        (
            "gpt-oss",
            {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 96}
            | {"attention.sliding_window": 16},
            gguf_layer("attn_norm post_attention_norm", experts=True, biases=True),
            {"model_type": "gpt_oss", "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 96}
            | {"sliding_window": 16},
        ),
        (
            "gemma3",
            {"feed_forward_length": 96, "attention.sliding_window": 16},
            gguf_layer("attn_norm post_attention_norm ffn_norm post_ffw_norm", experts=False, biases=False),
            {"model_type": "gemma3_text", "intermediate_size": 96, "sliding_window": 16},
        ),
    ],
)
def test_specs_from_the_metadata_of_gguf_files(
    architecture: str,
    metadata: dict[str, int],
    layer: dict[str, tuple[int, ...]],
    config: dict[str, Any],
    tmp_path: Path,
) -> None:
    """The spec equals that of the config, and every tensor has its op. Tensors are in fp32."""
    head_norms = {} if architecture == "gpt-oss" else {"attn_q_norm.weight": (32,), "attn_k_norm.weight": (32,)}
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (128, 64), "output_norm.weight": (64,)}
    if architecture != "gemma3":
        shapes["output.weight"] = (128, 64)
    shapes |= {f"blk.{at}.{name}": shape for at in range(12) for name, shape in (layer | head_norms).items()}
    common = {"block_count": 12, "context_length": 2048, "embedding_length": 64, "attention.head_count": 4}
    common |= {"attention.head_count_kv": 2, "attention.key_length": 32}
    path = tmp_path / "x.gguf"
    tensors = {name: (0, 4 * prod(shape), shape) for name, shape in shapes.items()}
    gguf(path, tensors, architecture, common | metadata)
    spec = find_model(str(path))
    sizes = {"num_hidden_layers": 12, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 32, "vocab_size": 128, "max_position_embeddings": 2048}
    expected = from_config(sizes | config | {"tie_word_embeddings": architecture == "gemma3"}, name="x")
    assert replace(spec, source="", weights=expected.weights) == replace(expected, source="")
    stored = stored_weights(spec)
    assert (stored.total_bytes, stored.doubts) == (sum(size for _, size, _ in tensors.values()), ())
    assert OTHER not in stored.components


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"architecture": "gpt2"}, "it has the metadata general.architecture twice"),
        ({"alignment": 3}, "its alignment must be a power of 2, not 3"),
        ({"alignment": 0}, "its alignment must be a power of 2, not 0"),
        ({"alignment": True}, "its alignment must be a power of 2, not True"),
        ({"alignment": 32.0}, "its alignment must be a power of 2, not 32.0"),
    ],
)
def test_metadata_of_a_gguf_file_that_have_no_meaning(
    metadata: dict[str, int | float | str | bool], says: str, tmp_path: Path
) -> None:
    gguf(tmp_path / "x.gguf", {}, "general", metadata)
    with pytest.raises(LLMBenchError, match=says):
        find_model(str(tmp_path / "x.gguf"))


def test_a_gguf_file_without_a_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for architecture, pattern in (
        ("qwen3moe", "qwen3moe.expert_count"),
        ("llama4", "no spec of the GGUF architecture"),
    ):
        gguf(path, {"token_embd.weight": (0, 1024, (4, 64))}, architecture)
        with pytest.raises(LLMBenchError, match=pattern) as refused:
            find_model(str(path))
        assert "--weights" in str(refused.value.hint)


TABLE = {"token_embd.weight": (0, 4 * 128 * 256, (128, 256))}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"attention.value_length": 32}, "value_length = 32"),
        ({"expert_shared_count": 1}, "expert_shared_count = 1"),
        ({"leading_dense_block_count": 1}, "leading_dense_block_count = 1"),
        ({"rope.dimension_count": 32}, "rope.dimension_count = 32"),
    ],
)
def test_a_size_in_a_gguf_file_that_the_spec_lacks_is_refused(more: dict[str, int], says: str, tmp_path: Path) -> None:
    gguf(tmp_path / "x.gguf", TABLE, metadata=METADATA | more)
    with pytest.raises(LLMBenchError, match=says):
        find_model(str(tmp_path / "x.gguf"))


def test_other_keys_of_a_gguf_file_are_read_or_make_the_figures_approximate(tmp_path: Path) -> None:
    def spec_with(**more: str | float | bool) -> ModelSpec:
        gguf(tmp_path / "x.gguf", TABLE, metadata=METADATA | {key.replace("__", "."): more[key] for key in more})
        return find_model(str(tmp_path / "x.gguf"))

    plain = spec_with()
    assert not plain.approximate
    usual = {"rope__freq_base": 10000.0, "attention__layer_norm_rms_epsilon": 1e-5, "rope__dimension_count": 64}
    usual |= {"attention__key_length": 64, "attention__value_length": 64, "expert_count": 0, "attention__causal": True}
    assert spec_with(**usual) == plain
    other = spec_with(rope__freq_base=500000.0, rope__scaling__type="linear", rope__scaling__factor=8.0)
    assert not other.approximate
    assert "500000, linear" in other.positions.summary
    for unread in ({"rope__scaling__type": "yarn"}, {"attention__sliding_window": 512}, {"attention__causal": False}):
        (doubt,) = spec_with(**unread).approximate
        assert next(iter(unread)).replace("__", ".") in doubt
