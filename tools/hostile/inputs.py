"""Tries with hostile files, options and arguments. The commands run inside this process."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import random
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_readers import as_json, as_toml, broken, mutated
from hostile.answers import EVIL, FORMATS, ROOT, WORDS, Answer, Attempt, Problems, inside, named


def sizing(rng: random.Random) -> list[str]:
    """Return a command that sizes the model which is appended, with random options."""
    command = rng.choice(["params", "flops", "kvcache", "memory", "compare"])
    more = {
        "params": [[], ["--by", "op"], ["--by", "layer"], ["--explain"]],
        "flops": [[], ["--phase", "train"], ["--phase", "decode"], ["--by", "op"], ["--explain"], ["--seq", "1..64k"]],
        "kvcache": [[], ["--explain"], ["--batch", "1..8"], ["--kv-dtype", "fp8"]],
        "memory": [[], ["--explain"], ["--timeline"], ["--phase", "inference"], ["--layout", "tp=2,pp=2,dp=2,zero=3"]],
        "compare": [[], ["gpt2"]],
    }
    return [command, "--notes", "--format", rng.choice(FORMATS), *rng.choice(more[command])]


def near(value: Any, rng: random.Random) -> Any:
    """Return plain data with one value replaced by a similar value, which a reader often accepts."""
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        return {**value, key: near(value[key], rng)}
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return [*value[:at], near(value[at], rng), *value[at + rng.randrange(2) :]]
    if isinstance(value, (bool, dict, list)) or value is None:
        return rng.choice([True, False, None, 1, 8])
    if isinstance(value, (int, float)):
        other = value + 0.5 if abs(value) < 1e9 else 0.5
        return rng.choice([value + 1, value - 1, 2 * value, value // 2, 1, 2, 64, 10**6, other, -value])
    return rng.choice([value + "x", value.upper(), "", "silu", "full_attention", "sliding_attention", "yarn"])


def damaged(tree: Any, rng: random.Random) -> Any:
    """Return plain data with similar values, or with hostile ones."""
    if rng.random() < 0.4:
        return mutated(tree, rng)
    for _ in range(rng.randint(1, 3)):
        tree = near(tree, rng)
    return tree


def pattern(rng: random.Random) -> str:
    """Return a name of modules: a plain one, one with stars, or a random regular expression, which can be slow."""
    parts = ["model.layers.", "0", ".", "mlp", "gate", "*", "self_attn", "lm_head"]
    if rng.random() < 0.3:
        return "".join(rng.choices(parts, k=rng.randint(0, 8)))
    pieces = [*parts, *"()|+?", ".*", ".*?", "\\w+", "(a|a)*", "(\\w+\\.?)+", "[a-z]", "{1,9}", "(?x)", "(?=", "\\1"]
    return rng.choice(["re:", "-:", "+:"]) + "".join(rng.choices(pieces, k=rng.randint(1, 12)))


def quantization(rng: random.Random) -> dict[str, Any]:
    """Return a quantization_config with patterns, and with one damaged value now and then."""
    names = [pattern(rng) for _ in range(rng.choice([0, 1, 3, 300]))]
    config = rng.choice(
        [
            {"quant_method": "fp8", "ignored_layers": names, "weight_block_size": [128, 128]},
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {name: {"bits": 8} for name in names}},
            {"quant_method": "awq", "bits": 4, "modules_to_not_convert": names},
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": names},
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "ignore": names,
                "config_groups": {
                    "0": {"targets": ["Linear", *names[:1]], "weights": {"num_bits": 4, "group_size": 32}}
                },
            },
        ]
    )
    return dict(near(config, rng)) if rng.random() < 0.3 else config


def configs() -> Attempt:
    """Damaged configs of every class of transformers, for every sizing command."""
    from llmbench.spec.huggingface.facts import facts

    valid = [{"model_type": name, **record["defaults"]} for name, record in facts().items()]

    def attempt(rng: random.Random, folder: Path) -> Problems:
        config = damaged(rng.choice(valid), rng)
        if isinstance(config, dict) and rng.random() < 0.2:
            config[rng.choice(WORDS)] = rng.choice(WORDS)
        if isinstance(config, dict) and rng.random() < 0.2:
            config["quantization_config"] = quantization(rng)
        text = broken(as_json(config), rng)
        if rng.random() < 0.1:  # a key twice
            text = text[:-1] + b',"hidden_size":64,"hidden_size":128}'
        (folder / "config.json").write_bytes(text)
        model = str(folder / rng.choice(["", "config.json"]))
        command = ["specs", "import", model] if rng.random() < 0.15 else [*sizing(rng), model]
        return named(command, inside(command))

    return attempt


def specs() -> Attempt:
    """Damaged specs, for every sizing command and `specs check`."""
    from llmbench.spec.catalog import bundled_models, model_text

    trees = [tomllib.loads(model_text(name)) for name in bundled_models()]

    def attempt(rng: random.Random, folder: Path) -> Problems:
        tree = damaged(rng.choice(trees), rng)
        if isinstance(tree, dict):
            lines = []
            for key, value in tree.items():
                with contextlib.suppress(ValueError, TypeError, RecursionError):  # a value that TOML cannot have
                    lines.append(f"{json.dumps(str(key))} = {as_toml(value)}")
            text = "\n".join(lines).encode("utf-8", "surrogatepass")
        else:
            text = as_json(tree)
        file = folder / rng.choice(["x.toml", "-.toml", "a\nb.toml", "~.toml", "\x1b[2J.toml", "x" * 250 + ".toml"])
        file.write_bytes(broken(text, rng))
        check = ["specs", rng.choice(["check", "show"])]
        command = [*(check if rng.random() < 0.3 else sizing(rng)), str(file)]
        return named(command, inside(command))

    return attempt


def assignments() -> Attempt:
    """Values of --set, for every field of the bundled models, and hostile texts."""
    from llmbench.spec.catalog import bundled_models, load_bundled
    from llmbench.spec.schema import plain

    names = bundled_models()

    def attempt(rng: random.Random, folder: Path) -> Problems:
        name = rng.choice(names)
        command = [*sizing(rng), name]
        for _ in range(rng.randint(1, 3)):
            node, path = plain(load_bundled(name)), []
            while isinstance(node, (dict, list)) and node and (not path or rng.random() < 0.9):
                key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
                node = node[key]
                path.append(rng.choice([str(key)] * 9 + ["*", "kind", rng.choice(WORDS)]))
            value = rng.choice(WORDS)
            if rng.random() < 0.8:
                with contextlib.suppress(RecursionError):
                    value = as_toml(damaged(node, rng))[:100_000]
            assignment = f"{'.'.join(path[rng.randrange(len(path)) :])}={value}".replace("\0", "")
            command += ["--set", assignment.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")]
        return named(command, inside(command))

    return attempt


GRAMMARS: dict[str, list[str]] = {
    "--layout": [
        "tp=8,sp,pp=4,interleave=2,dp=2,cp=2,zero=1",
        "pp=4,first=3,last=4",
        "stages=Et*3|t*4|t*4mL,pp=3",
        "pp=2,interleave=2,stages=E(t*2|)*3(t*4)*3L",
        "pp=8,interleave=16,first=3",
    ],
    "--recipe": [
        "step=foreach,states=bf16,offload=states+weights",
        "recompute=mlp+moe_act,fp8=cached,imbalance=1.2,mtp",
    ],
    "--lora": ["r=16,alpha=32,targets=q,v,dropout=0.05,dora", "r=8,targets=all-linear", "r=4,targets=attention,mlp"],
    "--base": ["nf4,double=1", "bnb-int8", "gguf-q4-k-m", "w4a16,group=128"],
    "--weights": ["gptq,bits=8,group=32", "fp8-block,block_outputs=64", "gguf-iq3-m", "mlx,bits=3"],
    "--engine": ["vllm@0.11,sequences=128,outside_torch=1GiB", "sglang", "trtllm,mtp=1", "llamacpp", "ideal"],
    "--step-time": ["8.5s", "8500ms", "1e3us", "0.1"],
    "--tokens-per-s": ["493448", "1e6", "12k"],
    "--price": ["2.5", "1e300", "0"],
    "--utilization": ["0.9", "1"],
    "--seq": ["8k..128k", "1,2,4", "1m", "4096"],
    "--batch": ["1..64", "8,16", "512"],
    "--gpus": ["64", "3"],
    "--kv-dtype": ["fp8,q8_0", "fp8_ds_mla", "bf16"],
    "--device": ["h100", "a100", "rtx-4090", "m3-max-128gb"],
    "--users": ["32", "1000000000"],
    "--micro-batches": ["8", "2147483647"],
    "--phase": ["train", "inference", "prefill", "decode"],
    "--recompute": ["none,full", "selective"],
    "--precision": ["fp8", "mixed", "bf16"],
    "--set": ["num_hidden_layers=2", "mixer.kind=mla", "vocab_size=2147483647"],
}
"""Valid values of options whose values have a grammar."""


def varied(value: str, rng: random.Random) -> str:
    """Return a text with parts that are repeated, removed, exchanged, or replaced by extreme numbers."""
    parts = re.split(r"([,=|+*.@:()]|\d+)", value)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        at = rng.randrange(len(parts))
        match rng.randrange(8):
            case 0:
                parts[at] = ""
            case 1:
                parts[at] = parts[at] * rng.choice([2, 3, 1000])
            case 2:
                parts[at] = rng.choice(parts)
            case 3:
                parts[at] = rng.choice(WORDS)[:5000].replace("\0", "")
            case 4 | 5:
                parts[at] = rng.choice(
                    [
                        "0",
                        "-1",
                        "1",
                        "3",
                        "7",
                        "2147483647",
                        "1e400",
                        "1e308",
                        "1e-300",
                        "nan",
                        "inf",
                        "9" * 30,
                        "9" * 5000,
                        "0.5",
                        "１",
                    ]
                )
            case 6:
                parts[at] = parts[at].upper()
            case 7:
                parts.append(rng.choice([",", "|", "*", "=", *parts]))
    return "".join(parts)


def grammars() -> Attempt:
    """Values of options that have a grammar, for every sizing command and models of every kind."""
    from llmbench.spec.catalog import bundled_models

    tree = json.loads((ROOT / "llmbench" / "cli" / "completion.json").read_text())
    models = bundled_models()

    def attempt(rng: random.Random, folder: Path) -> Problems:
        name = rng.choice(["memory", "memory", "memory", "fit", "fit", "mfu", "flops", "kvcache", "params", "compare"])
        command = [name, rng.choice(models)]
        needed = ["--device", "--step-time", "--batch"] if name == "mfu" and rng.random() < 0.7 else []
        known = [option for option in tree["commands"][name]["options"] if option in GRAMMARS]
        for option in dict.fromkeys([*needed, *rng.sample(known, k=rng.randint(1, min(4, len(known))))]):
            value = rng.choice(GRAMMARS[option])
            command += [option, varied(value, rng) if rng.random() < 0.35 else value]
        extra = ["--explain"] if rng.random() < 0.3 and "--explain" in tree["commands"][name]["options"] else []
        if name == "memory" and rng.random() < 0.2:
            extra.append("--timeline")
        command += [*extra, "--notes", "--format", rng.choice(FORMATS)]
        return named(command, inside(command))

    return attempt


SLOW = (
    "bench",
    "profile",
    "model",
    "kernels",
    "env",
    "train",
    "evaluate",
    "generate",
    "ablate",
    "dynamics",
    "extrapolate",
)
"""Commands that may measure or train. Their options are tried with a first argument that no command accepts."""


def arguments() -> Attempt:
    """Hostile words in place of every argument and every value of an option, for every command."""
    tree = json.loads((ROOT / "llmbench" / "cli" / "completion.json").read_text())

    def attempt(rng: random.Random, folder: Path) -> Problems:
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to("loop")
        (folder / "folder").mkdir()
        name = rng.choice(list(tree["commands"]))
        node, command = tree["commands"][name], [name]
        if node["commands"]:
            inner = rng.choice(list(node["commands"]))
            node = node["commands"][inner]
            command.append(inner)
        slow = name in SLOW
        if slow:
            command.append(rng.choice([word for word in WORDS if word not in ("gpt2", "llama2-7b", "-h", "--")]) + "?")
        else:
            command += rng.choices(WORDS, k=rng.choice([0, 1, 1, 1, 2]))
        options = [option for option in node["options"] if option not in ("--help", "-h")]
        for option in rng.sample(options, k=min(len(options), rng.randint(0, 3))):
            values = node["options"][option]["values"]
            command.append(option)
            if values == []:
                continue
            writes = option in ("--output", "-o", "--plot", "--trace", "--resume")
            known = ["new.svg", "new.md", "folder/x"] if writes else [v for v in values or [] if v[0] != "<"]
            harmless = [word for word in WORDS if not writes or word not in ("/dev/tty", "pipe", "/proc/self/mem")]
            command.append(rng.choice(known) if known and rng.random() < 0.3 else rng.choice(harmless))
        return named(command, within(folder, lambda: inside(command)))

    return attempt


def within(folder: Path, body: Callable[[], Answer]) -> Answer:
    """Return the result of `body`, with `folder` as the current folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return body()
    finally:
        os.chdir(before)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "torch_dtype": "float32",
}
"""The config.json of a small model."""


def weights() -> tuple[dict[str, Any], int]:
    """Return the header of the safetensors file of that model, and the bytes of its tensors."""
    block = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": [32, 16],
        f"{block}self_attn.q_proj.weight": [16, 16],
        f"{block}self_attn.k_proj.weight": [8, 16],
        f"{block}self_attn.v_proj.weight": [8, 16],
        f"{block}self_attn.o_proj.weight": [16, 16],
        f"{block}mlp.gate_proj.weight": [24, 16],
        f"{block}mlp.up_proj.weight": [24, 16],
        f"{block}mlp.down_proj.weight": [16, 24],
        f"{block}input_layernorm.weight": [16],
        f"{block}post_attention_layernorm.weight": [16],
        "model.norm.weight": [16],
        "lm_head.weight": [32, 16],
    }
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return header, end


def checkpoints() -> Attempt:
    """Damaged safetensors files, indexes and configs of a small model, which the command `model` builds and runs."""
    header, end = weights()
    names = [name for name in header if name != "__metadata__"]
    index = {"metadata": {"total_size": end}, "weight_map": dict.fromkeys(names, "model.safetensors")}

    def attempt(rng: random.Random, folder: Path) -> Problems:
        part = rng.randrange(5)
        text = broken(as_json(damaged(header, rng)), rng) if part < 3 else as_json(header)
        if rng.random() < 0.05:
            text = as_json({**header, "__metadata__": {EVIL: "x" * 30_000_000}})
        size = rng.choice([len(text)] * 9 + [0, 2**63, 2**64 - 1, len(text) + 1])
        data = rng.choice([rng.randbytes(end), b"\0\0\0\x3f" * (end // 4)])[: rng.choice([end] * 9 + [end - 1, 0])]
        (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text + data)
        (folder / "config.json").write_bytes(as_json(damaged(LLAMA, rng) if part == 3 else LLAMA))
        if part == 4 or rng.random() < 0.3:
            listed = broken(as_json(damaged(index, rng)), rng) if part == 4 else as_json(index)
            (folder / "model.safetensors.index.json").write_bytes(listed)
        command = ["model", str(folder), "--device", "cpu", "--dtype", "fp32", "--seq", "2", "--format", "json"]
        return named(command, inside(command))

    return attempt


GGUF_SIZES = {
    "embedding_length": 256,
    "feed_forward_length": 512,
    "block_count": 1,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 64,
}
"""The metadata of a small GGUF file that decides the sizes of its model."""

GGUF_OTHERS = [
    "attention.key_length",
    "attention.value_length",
    "attention.causal",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "expert_shared_count",
    "attention.sliding_window",
    "leading_dense_block_count",
    "unknown",
]
"""Further keys of the metadata, which the spec has, which must agree with it, or which llmbench does not read."""


def gguf_file(rng: random.Random) -> tuple[bytes, int]:
    """Return the header of a small GGUF file that lies about sizes, counts, types and offsets, and the file's size."""

    def lie(value: int, bits: int) -> bytes:
        if rng.random() < 0.005:
            value = rng.choice([0, 1, 7, 255, 2**31, 2**40, 2**62, 2**63, 2**64 - 1, value + 1, value * 1000])
        return (value % 2**bits).to_bytes(bits // 8, "little")

    def text(value: str) -> bytes:
        value = rng.choice(WORDS) if rng.random() < 0.005 else value
        content = value.encode("utf-8", "surrogateescape")
        return lie(len(content), 64) + content

    architecture = rng.choice(["llama", "qwen2", "qwen3", "gemma2", "phi3", EVIL])
    entries = [text("general.architecture") + lie(8, 32) + text(architecture)]
    entries += [text(f"{architecture}.{name}") + lie(4, 32) + lie(value, 32) for name, value in GGUF_SIZES.items()]
    if rng.random() < 0.3:
        entries.append(text("llama.expert_count") + lie(4, 32) + lie(4, 32))
    for _ in range(rng.choice([0, 0, 1, 3])):
        value = rng.choice(
            [lie(4, 32) + lie(rng.choice([0, 1, 64]), 32), lie(8, 32) + text("yarn"), lie(7, 32) + b"\1"]
        )
        entries.append(text(f"{architecture}.{rng.choice(GGUF_OTHERS)}") + value)
    if rng.random() < 0.3:
        entries.append(text("tokenizer.ggml.tokens") + lie(9, 32) + lie(8, 32) + lie(3, 64) + text("a") * 3)
    layer = {"attn_q": (256, 256), "attn_k": (256, 128), "attn_v": (256, 128), "attn_output": (256, 256)}
    layer |= {"ffn_gate": (256, 512), "ffn_up": (256, 512), "ffn_down": (512, 256), "attn_norm": (256,)}
    shapes = {"token_embd": (256, 300), "output": (256, 300), "output_norm": (256,), "blk.0.ffn_norm": (256,)}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    tensors, end = [], 0
    for name, shape in shapes.items():
        kind, size = (0, 4 * math.prod(shape)) if len(shape) == 1 else (12, math.prod(shape) // 256 * 144)
        tensors.append(
            text(f"{name}.weight")
            + lie(len(shape), 32)
            + b"".join(lie(width, 64) for width in shape)
            + lie(kind, 32)
            + lie(end, 64)
        )
        end += -(-size // 32) * 32
    if rng.random() < 0.1:
        rng.shuffle(tensors)
    counts = lie(3, 32) + lie(len(tensors), 64) + lie(len(entries), 64)
    header = b"GGUF" + counts + b"".join(entries + tensors)
    header = broken(header, rng) if rng.random() < 0.2 else header
    whole = -(-len(header) // 32) * 32 + end
    return header, rng.choice([whole] * 8 + [len(header), whole - 1, 2**40])


def ggufs() -> Attempt:
    """Damaged and lying headers of GGUF files: as a model, and as the weights of a model."""

    def attempt(rng: random.Random, folder: Path) -> Problems:
        path = folder / rng.choice(["x.gguf", "\x1b[2J.gguf", "a\nb.gguf", "-.gguf", "~.gguf"])
        header, size = gguf_file(rng)
        path.write_bytes(header)
        os.truncate(path, size)
        weights = ["--weights", str(path)]
        command = rng.choice(
            [
                [*sizing(rng), str(path)],
                ["specs", rng.choice(["check", "show", "import"]), str(path)],
                ["params", "gpt2", *weights, "--format", rng.choice(FORMATS)],
                ["memory", "llama2-7b", "--phase", "inference", *weights],
                ["memory", "llama2-7b", "--lora", "r=4", "--base", str(path)],
                ["fit", str(path), "--engine", "llamacpp", "--device", "rtx-4090"],
                ["fit", "llama2-7b", "--engine", "llamacpp", "--device", "rtx-4090", *weights],
                ["model", str(path), "--device", "meta"],
            ]
        )
        return named(command, inside(command))

    return attempt


def tables() -> Attempt:
    """Damaged CSV files of published measurements, for `validate`."""
    kinds = {"checkpoints": "weights", "kv_formats": "kv", "engine_logs": "engine"}  # the other files: memory
    published = []
    for path in sorted((ROOT / "benchmarks" / "published").glob("*.csv")):
        published.append((kinds.get(path.stem, "memory"), list(csv.reader(io.StringIO(path.read_text())))))

    def attempt(rng: random.Random, folder: Path) -> Problems:
        kind, (head, *body) = rng.choice(published)
        rows = [head.copy(), *(row.copy() for row in rng.sample(body, k=min(len(body), 8)))]
        for _ in range(rng.randint(1, 6)):
            row = rng.choice(rows)
            at = rng.randrange(len(row))
            other = rng.choice([*WORDS, rng.choice(rng.choice(rows))])
            row[at] = varied(row[at], rng) if row[at] and rng.random() < 0.7 else other
        if "quantization_config" in rows[0] and rng.random() < 0.5:
            rng.choice(rows[1:])[rows[0].index("quantization_config")] = json.dumps(quantization(rng))
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        (folder / "x.csv").write_bytes(broken(text.getvalue().encode("utf-8", "surrogateescape"), rng))
        kind = kind if rng.random() < 0.95 else rng.choice(["weights", "kv", "engine", "memory"])
        command = ["validate", kind, str(folder / "x.csv"), "--notes", "--format", rng.choice(FORMATS)]
        if rng.random() < 0.5:
            command += ["--by", rng.choice(head)]
        return named(command, inside(command))

    return attempt


def files() -> Attempt:
    """Devices, pipes, folders, links and files of /proc in place of every file that a command reads."""
    targets = ["/dev/zero", "/dev/full", "/dev/random", "/dev/tty", "/dev/null", "/dev/stdin", "/dev/fd/0"]
    targets += ["/proc/self/mem", "/proc/self/maps", "/proc/kmsg", "/proc/self/fd", "/proc/1/environ", "/proc/kcore"]
    targets += ["/sys/kernel/debug", "/etc/shadow", "/", "/nonexistent", "loop", "pipe", "socket", "hole"]

    def attempt(rng: random.Random, folder: Path) -> Problems:
        import socket

        os.mkfifo(folder / "pipe")
        with open(folder / "hole", "wb") as file:
            file.truncate(rng.choice([0, 1, 2**26, 2**33]))
        listener = socket.socket(socket.AF_UNIX)
        os.chdir(folder)  # the path of a socket is short
        listener.bind("socket")
        os.chdir(ROOT)
        where = folder / "m"
        where.mkdir()
        names = ["config.json", "x.toml", "x.json", "x.jsonl", "model.safetensors", "model.safetensors.index.json"]
        for name in names:
            target = rng.choice(targets)
            if rng.random() < 0.8:
                (where / name).symlink_to(target if target.startswith("/") else folder / target)
        if rng.random() < 0.5:
            (where / "config.json").unlink(missing_ok=True)
            (where / "config.json").write_text('{"model_type": "llama"}')
        path = str(rng.choice([where, *(where / name for name in names)]))
        command = rng.choice(
            [
                [*sizing(rng), path],
                ["specs", "check", path],
                ["specs", "show", path],
                ["specs", "import", path],
                ["diff", path, path],
                ["validate", rng.choice(["weights", "kv", "engine", "memory"]), path],
                ["model", path, "--device", "meta"],
                ["model", path, "--device", "cpu", "--layers", "1"],
                ["bench", "norms", "--device", "cpu", "--resume", path],
                ["bench", "norms", "--device", "cpu", "--model", path, "--batch", "1"],
                ["profile", "norm", "--device", "cpu", "--model", str(where / "x.toml"), "--trace", str(folder)],
                ["memory", "gpt2", "--device", path],
            ]
        )
        answer = inside(command)
        listener.close()
        return named(command, answer)

    return attempt
