"""Reads how a checkpoint stores its weights: `quantization_config` of a config.json, and hf_quant_config.json.

Each quantisation method has a reader. It names every key of the method that can change the size of the weights, and the
keys that cannot. Any other key makes the bytes approximate. If a method, or a value that decides the size, is not
known, the bytes of the weights are not known either (`Weights.unknown`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NoReturn

from llmbench.errors import SpecError
from llmbench.printable import printable
from llmbench.spec.weights.stored import MOST_OVERRIDES, ModuleFormat, Weights

_DTYPES: dict[str, Literal["fp32", "bf16", "fp16"]] = {
    "bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "half": "fp16", "float": "fp32",
}  # fmt: skip
"""The number formats by their names in torch."""

_FP32: dict[str, tuple[str, ...]] = {
    "minimax_m2": ("ffn.router",),
    "qwen3_5_text": ("delta_net.A_log",),
    "qwen3_5_moe_text": ("delta_net.A_log",),
    "nemotron_h": ("mamba.A_log",),
}
"""The weights that a family's files store in fp32, beside the score corrections of routers.

Files: MiniMaxAI/MiniMax-M2.5, Qwen/Qwen3.5-122B-A10B, nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.
"""

_BF16_SCALES = ("qwen3", "qwen3_moe", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
"""Families whose fp8 files store the scales of blocks in bf16. The other families store them in fp32."""


class _UnknownError(Exception):
    """The bytes of the weights are not known. The text completes `because …`."""


MOST_NAMES = 100_000
"""The most names of modules in one list of a quantization_config. The largest real lists have some thousand."""


class _Keys:
    """The keys of a quantization config. It remembers which keys were read."""

    def __init__(self, values: dict[str, Any], path: str, doubts: list[str]) -> None:
        self.values, self.path, self.doubts = values, path, doubts
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or `default` if the key is absent or null."""
        self._read.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int) -> int:
        """Return a whole number of at least -1."""
        value = self.get(key, default)
        if type(value) is not int or not -1 <= value <= 2**20:
            raise SpecError(f"config {self.path}.{key}: must be a whole number, not {_shown(value)}")
        return value

    def group(self, key: str, default: int) -> int:
        """Return the elements of a group that has one scale. -1: all inputs of an output."""
        value = self.whole(key, default)
        if value == 0 and key in self.values:
            raise SpecError(f"config {self.path}.{key}: must be -1 or at least 1, not 0")
        return value

    def flag(self, key: str, default: bool = False) -> int:
        """Return 1 for true and 0 for false."""
        value = self.get(key, default)
        if not isinstance(value, (bool, int)) or value not in (0, 1):
            raise SpecError(f"config {self.path}.{key}: must be true or false, not {_shown(value)}")
        return int(value)

    def either(self, key: str, older: str, default: int) -> int:
        """Return the whole number of a key that has an older name. Raises SpecError if both have different values."""
        value, other = self.group(key, default), self.group(older, default)
        if key in self.values and older in self.values and value != other:
            raise SpecError(f"config {self.path}: {key} = {value} and {older} = {other} mean the same but differ")
        return value if key in self.values else other

    def text(self, key: str, default: str = "", allowed: tuple[str, ...] = ()) -> str:
        """Return a string in lower case. Raises SpecError if it is not one of `allowed`. Empty: all are."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise SpecError(f"config {self.path}.{key}: must be a string, not {_shown(value)}")
        if allowed and value.lower() not in allowed:
            raise SpecError(f"config {self.path}.{key}: must be one of {', '.join(allowed)}, not {_shown(value)}")
        return value.lower()

    def names(self, *keys: str) -> tuple[str, ...]:
        """Return the entries of lists of strings."""
        found: list[str] = []
        for key in keys:
            value = self.get(key, [])
            value = [value] if isinstance(value, str) else value
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise SpecError(f"config {self.path}.{key}: must be a list of names, not {_shown(value)}")
            if len(value) > MOST_NAMES:
                raise SpecError(f"config {self.path}.{key}: has {len(value):,} names, more than {MOST_NAMES:,}")
            found += [item for item in value if item.strip()]
        return tuple(dict.fromkeys(found))

    def name_groups(self, key: str) -> tuple[str, ...]:
        """Return the names in a list of lists of strings. The inner lists may be missing."""
        value = self.get(key, [])
        groups = value if isinstance(value, list) else [value]
        names = [name for group in groups for name in (group if isinstance(group, list) else [group])]
        if not all(isinstance(name, str) for name in names):
            raise SpecError(f"config {self.path}.{key}: must be a list of lists of names, not {_shown(value)}")
        return tuple(names)

    def table(self, key: str, most: int | None = None) -> _Keys:
        """Return an object inside the config. It is empty if the key is absent or null. most: its largest length."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise SpecError(f"config {self.path}.{key}: must be an object, not {_shown(value)}")
        if most is not None and len(value) > most:
            raise SpecError(f"config {self.path}.{key}: has {len(value):,} entries, more than {most:,}")
        return _Keys(value, f"{self.path}.{key}", self.doubts)

    def tables(self, key: str, most: int | None = None) -> dict[str, _Keys]:
        """Return the objects inside an object, by their keys. most: the largest number of them."""
        inside = self.table(key, most)
        return {name: inside.table(name) for name in inside.values}

    def harmless(self, keys: str) -> None:
        """Mark keys as read that cannot change the size of the weights."""
        self._read.update(keys.split())

    def doubt_unread(self) -> None:
        """Add a doubt for each key that was not read and has a value."""
        for key, value in self.values.items():
            if key not in self._read and value not in (None, False, "", [], {}):
                self.doubts.append(f"config key {self.path}.{key} = {_shown(value)} is not understood")

    def unknown(self, key: str, value: Any) -> NoReturn:
        """Say that the bytes are not known, because of the value of a key."""
        raise _UnknownError(f"llmbench does not know {self.path}.{key} = {_shown(value)}")


def stored_weights(parts: list[dict[str, Any]], family: str, beside: dict[str, Any] | None = None) -> Weights:
    """Return how a checkpoint stores its weights.

    parts: the config and the text parts inside it, from the outermost one. family: model type of the text part. beside:
    content of hf_quant_config.json, if it exists.

    Raises SpecError for a value of a wrong type.
    """
    import msgspec

    plain = msgspec.structs.replace(_number_format(parts), fp32=_FP32.get(family, ()))
    for text in parts:
        for key in ("quantization_config", "quantization", "compression_config"):
            found = text.get(key)
            if found:
                if not isinstance(found, dict):
                    raise SpecError(f"config {key}: must be an object, not {_shown(found)}")
                return _read(found, key, plain, family)
    if beside is not None:
        inside = beside.get("quantization", beside)
        if not isinstance(inside, dict):
            raise SpecError("hf_quant_config.json: `quantization` must be an object")
        return _read({"quant_method": "modelopt", **inside}, "hf_quant_config.json", plain, family)
    return plain


def _number_format(parts: list[dict[str, Any]]) -> Weights:
    """Return the weights in the number format of the first part that states one.

    As in transformers, `dtype` has precedence over its older name `torch_dtype`.
    """
    for part in parts:
        stated: dict[str, str] = {}
        for key in ("dtype", "torch_dtype"):
            value = part.get(key)
            if value is not None and not isinstance(value, str):
                raise SpecError(f"config {key}: must be the name of a number format, not {_shown(value)}")
            if value not in (None, "", "auto"):
                stated[key] = value.removeprefix("torch.")
        if not stated:
            continue
        first = next(iter(stated.values()))
        if first not in _DTYPES:
            key = next(iter(stated))
            return Weights(source=key, unknown=printable(f"llmbench does not know {key} = {_shown(first)}"))
        doubts: tuple[str, ...] = ()
        if len(set(stated.values())) > 1:
            said = " and ".join(f"{key} = {_shown(value)}" for key, value in stated.items())
            doubts = (printable(f"the config keys {said} differ"),)
        return Weights(dtype=_DTYPES[first], source="the config", doubts=doubts)
    return Weights()


def _read(found: dict[str, Any], key: str, plain: Weights, family: str) -> Weights:
    """Return the format that a quantization config describes. key: the key that contains the config."""
    import msgspec

    doubts: list[str] = []
    keys = _Keys(found, key, doubts)
    method = keys.text("quant_method").replace("_", "-")
    if not method and {"bits", "group_size"} & set(found):
        method = "mlx"
    try:
        reader = _METHODS.get(method)
        if reader is None:
            keys.unknown("quant_method", found.get("quant_method"))
        weights = reader(keys, family)
    except _UnknownError as reason:
        return msgspec.structs.replace(plain, source=key, unknown=printable(str(reason)))
    keys.doubt_unread()
    return msgspec.structs.replace(
        weights,
        dtype=plain.dtype,
        fp32=plain.fp32,
        source=key,
        doubts=(*plain.doubts, *map(printable, doubts)),
        unknown=plain.unknown,
    )


def _fp8(keys: _Keys, family: str) -> Weights:
    keys.harmless("fmt scale_fmt weight_per_tensor activation_per_tensor dequantize")
    keeps = keys.names("modules_to_not_convert", "ignored_layers", "ignore")
    static = int(keys.text("activation_scheme", "dynamic", ("dynamic", "static")) == "static")
    block = keys.get("weight_block_size")
    if block is None:
        return Weights(format=_text("fp8-tensor", static=static), keeps=keeps)
    scale_bits = 16 if family in _BF16_SCALES else 32
    return Weights(format=_block("fp8-block", keys, block, scale_bits=scale_bits, static=static), keeps=keeps)


def _block(name: str, keys: _Keys, block: Any, **more: int) -> str:
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise SpecError(f"config {keys.path}: a block must have two sizes, not {_shown(block)}")
    return _text(name, block_outputs=block[0], block_inputs=block[1], **more)


def _fbgemm(keys: _Keys, family: str) -> Weights:
    keys.harmless("activation_scale_ub")
    return Weights(format="fbgemm-fp8", keeps=keys.names("modules_to_not_convert"))


def _awq(keys: _Keys, family: str) -> Weights:
    keys.harmless("backend fuse_max_seq_len do_fuse exllama_config modules_to_fuse")
    version = keys.text("version", "gemm")
    if version not in ("gemm", "exllama"):
        keys.doubts.append(f"{keys.path}.version = {version}: this version can pad the scales and zero points")
    return Weights(
        format=_text(
            "awq",
            bits=keys.either("bits", "w_bit", 4),
            group=keys.either("group_size", "q_group_size", 128),
            zero_point=keys.flag("zero_point", True),
        ),
        keeps=keys.names("modules_to_not_convert"),
    )


def _gptq(keys: _Keys, family: str) -> Weights:
    keys.harmless(
        """
        damp_percent damp_auto_increment desc_act sym true_sequential static_groups model_name_or_path
        model_file_base_name meta dataset tokenizer use_exllama use_cuda_fp16 exllama_config
        max_input_length cache_block_outputs batch_size block_name_to_quantize module_name_preceding_first_block
        pad_token_id model_seqlen disable_exllama backend pack_dtype adapter mse act_group_aware quant_method
        """
    )
    for key in ("checkpoint_format", "format"):
        if keys.text(key, "gptq") not in ("gptq", "gptq_v2"):
            keys.unknown(key, keys.get(key))
    if keys.flag("is_marlin_format"):  # the older key of the same format
        keys.unknown("is_marlin_format", True)
    bits, group = keys.whole("bits", 4), keys.group("group_size", 128)
    # AutoGPTQ of 2023 stored a bias of zeros for every matrix. It named the file of the weights, but not its format.
    old = int("model_file_base_name" in keys.values and not {"checkpoint_format", "format"} & set(keys.values))
    keeps: list[str] = []
    overrides: list[ModuleFormat] = []
    for pattern, own in keys.tables("dynamic", MOST_OVERRIDES).items():
        if pattern.startswith("-:"):
            keeps.append(f"re:{pattern[2:]}")
            continue
        own.harmless("desc_act sym damp_percent mse static_groups")
        text = _text("gptq", bits=own.whole("bits", bits), group=own.group("group_size", group), zero_bias=old)
        overrides.append(ModuleFormat(modules=(f"re:{pattern.removeprefix('+:')}",), format=text))
        own.doubt_unread()
    text = _text("gptq", bits=bits, group=group, zero_bias=old)
    if keys.flag("lm_head"):
        overrides.append(ModuleFormat(modules=("lm_head",), format=text))
    listed = keys.name_groups("modules_in_block_to_quantize")
    if listed:
        overrides.append(ModuleFormat(modules=listed, format=text))
        return Weights(keeps=tuple(keeps), overrides=tuple(overrides))
    keeps += keys.names("modules_to_not_convert")
    return Weights(format=text, keeps=tuple(keeps), overrides=tuple(overrides))


def _bitsandbytes(keys: _Keys, family: str) -> Weights:
    keys.harmless(
        """
        bnb_4bit_compute_dtype bnb_4bit_quant_storage llm_int8_threshold llm_int8_has_fp16_weight
        llm_int8_enable_fp32_cpu_offload quant_method
        """
    )
    keys.text("bnb_4bit_quant_type", "fp4", ("fp4", "nf4"))  # both have the same size
    keeps = keys.names("llm_int8_skip_modules")
    four, eight = (keys.flag(key) or keys.flag(f"_{key}") for key in ("load_in_4bit", "load_in_8bit"))
    double = keys.flag("bnb_4bit_use_double_quant")
    if four and eight:
        raise SpecError(f"config {keys.path}: load_in_4bit and load_in_8bit cannot both be true")
    if four:
        return Weights(format=_text("nf4", double=double), keeps=keeps)
    if not eight:
        keys.unknown("load_in_4bit", keys.get("load_in_4bit"))
    return Weights(format="bnb-int8", keeps=keeps)


def _mxfp4(keys: _Keys, family: str) -> Weights:
    keys.harmless("dequantize")
    return Weights(format="mxfp4", keeps=keys.names("modules_to_not_convert"))


_MLX_MODES = {"affine": "mlx", "mxfp4": "mlx-mxfp4", "nvfp4": "mlx-nvfp4", "mxfp8": "mlx-mxfp8"}


def _mlx(keys: _Keys, family: str) -> Weights:
    """MLX writes the format of a module that differs from the rest under the name of the module."""

    def format_of(own: _Keys) -> str:
        mode = own.text("mode", "affine")
        if mode not in _MLX_MODES:
            own.unknown("mode", mode)
        name = _MLX_MODES[mode]
        usual = {"mlx": (4, 64), "mlx-mxfp4": (4, 32), "mlx-nvfp4": (4, 16), "mlx-mxfp8": (8, 32)}[name]
        bits, group = own.whole("bits", usual[0]), own.group("group_size", usual[1])
        return _text(name, bits=bits, group=group, **({"predicate": 0} if name == "mlx" else {}))

    keeps: list[str] = []
    overrides: dict[str, list[str]] = {}
    keys.harmless("linear_class quantization_mode group_size bits mode quant_method")
    for key, value in keys.values.items():
        if isinstance(value, dict):
            overrides.setdefault(format_of(_Keys(value, f"{keys.path}.{key}", keys.doubts)), []).append(key)
            keys.harmless(key)
        elif value is False:
            keeps.append(key)
    return Weights(
        format=format_of(keys),
        keeps=tuple(keeps),
        overrides=tuple(ModuleFormat(modules=tuple(names), format=text) for text, names in overrides.items()),
    )


_MODELOPT = {
    "FP8": "fp8-tensor,static=1",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8-channel,scale_bits=32",
    "FP8_PB_WO": "fp8-block",
    "FP8_PB_REAL": "fp8-block",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4,static=0",
    "MXFP8": "mxfp8",
}
"""The format of each quant_algo of NVIDIA's Model Optimizer."""


def _modelopt(keys: _Keys, family: str) -> Weights:
    keys.harmless("kv_cache_quant_algo kv_cache_scheme producer config_groups has_zero_point pre_quant_scale")
    keeps = keys.names("exclude_modules", "ignore", "modules_to_not_convert")
    algorithm = keys.get("quant_algo", "")
    if algorithm == "MIXED_PRECISION":
        keys.harmless("group_size")
        if not keys.table("quantized_layers").values:
            raise SpecError(f"config {keys.path}.quantized_layers: is missing or empty, but quant_algo = {algorithm}")
        by_format: dict[str, list[str]] = {}
        for module, own in keys.tables("quantized_layers").items():
            by_format.setdefault(_algorithm(own), []).append(module)
        overrides = tuple(ModuleFormat(modules=tuple(names), format=text) for text, names in by_format.items())
        return Weights(keeps=keeps, overrides=overrides)
    if keeps:
        _doubt_head(keys, keeps)
    return Weights(format=_algorithm(keys), keeps=keeps)


def _algorithm(keys: _Keys) -> str:
    algorithm = keys.get("quant_algo", "")
    if not isinstance(algorithm, str) or algorithm.upper() not in _MODELOPT:
        keys.unknown("quant_algo", algorithm)
    text = _MODELOPT[algorithm.upper()]
    group = keys.group("group_size", 0)
    return _text(text, group=group) if group and text.startswith(("nvfp4", "mxfp8")) else text


def _compressed_tensors(keys: _Keys, family: str) -> Weights:
    keys.harmless("quantization_status kv_cache_scheme global_compression_ratio version")
    sparsity = keys.table("sparsity_config")
    if sparsity.text("format", "dense") != "dense":
        sparsity.unknown("format", sparsity.get("format"))
    written = keys.text("format")
    whole: list[str] = []
    overrides: list[ModuleFormat] = []
    groups = keys.tables("config_groups", MOST_OVERRIDES)
    if not groups and written not in ("", "dense"):
        raise SpecError(f"config {keys.path}.config_groups: is missing, but format = {_shown(written)}")
    for own in groups.values():
        own.harmless("output_activations")
        text = _compressed_group(own, own.text("format") or written)
        targets = own.names("targets")
        own.doubt_unread()
        if not targets:
            raise SpecError(f"config {own.path}.targets: is missing or empty")
        if "Linear" in targets:
            whole.append(text)
        named = tuple(target for target in targets if target.startswith("re:") or "." in target or target == "lm_head")
        if named:
            overrides.append(ModuleFormat(modules=named, format=text))
        odd = set(targets) - set(named) - {"Linear"}
        if odd:
            keys.doubts.append(f"{keys.path}: the modules of the class {', '.join(sorted(odd))[:80]} are not found")
    if len(set(whole)) > 1:
        raise _UnknownError(f"several groups of {keys.path} have the target Linear")
    keeps = keys.names("ignore")
    if whole and not any("lm_head" in group.modules for group in overrides):
        _doubt_head(keys, keeps)
    return Weights(format=whole[0] if whole else "", keeps=keeps, overrides=tuple(overrides))


def _doubt_head(keys: _Keys, keeps: tuple[str, ...]) -> None:
    """Add a doubt if a list of the modules that stay as they are does not name the head, as those of real files do."""
    if not any("head" in name for name in keeps):
        keys.doubts.append(
            f"{keys.path} does not name lm_head among the modules that stay as they are, and llmbench counts it as such"
        )


def _compressed_group(group: _Keys, written: str) -> str:
    """Return the format of one group of a compressed-tensors config. written: how its tensors are packed."""
    weights, inputs = group.table("weights"), group.table("input_activations")
    weights.harmless("dynamic observer observer_kwargs scale_dtype zp_dtype")
    bits, kind, strategy = weights.whole("num_bits", 8), weights.text("type", "int"), weights.text("strategy", "tensor")
    size = weights.group("group_size", -1) if strategy in ("group", "tensor_group") else -1
    dynamic = inputs.get("dynamic", False)
    if not isinstance(dynamic, bool) and dynamic != "local":
        raise SpecError(f"config {inputs.path}.dynamic: must be true, false or local, not {_shown(dynamic)}")
    static = int(bool(inputs.values) and not dynamic)
    asymmetric = 1 - weights.flag("symmetric", True)
    order = weights.get("actorder")
    if order is not None and not isinstance(order, bool):
        order = weights.text("actorder", allowed=("group", "weight", "dynamic", "static"))
    weights.harmless("group_size block_structure")
    weights.doubt_unread()
    if kind == "float" and bits == 8 and strategy == "block":
        block = weights.get("block_structure")
        if isinstance(block, str) and re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", block, re.ASCII):
            block = [int(size) for size in block.split("x")]
        if not isinstance(block, list):
            weights.unknown("block_structure", block)
        return _block("fp8-block", weights, block, scale_bits=16, static=static)
    match kind, bits, strategy:
        case "float", 8, "tensor":
            return _text("fp8-tensor", static=static)
        case "float", 8, "channel":
            return "fp8-channel"
        case "float", 8, "group" if "mxfp8" in written:
            return _text("mxfp8", group=size)
        case "float", 4, "tensor_group":
            return _text("nvfp4", group=size, static=int(bool(inputs.values)))
        case "float", 4, "group" if "mxfp4" in written:
            return _text("mxfp4-linear", group=size)
        case "int", _, "group" | "channel" if written == "pack-quantized":
            actorder = int(order in (True, "group", "dynamic"))
            return _text("w4a16", bits=bits, group=size, asymmetric=asymmetric, actorder=actorder)
        case "int", 8, "channel" if not asymmetric:
            return "int8"
    raise _UnknownError(
        f"llmbench does not know the compressed-tensors format `{written}` with {bits}-bit {kind} weights, strategy "
        f"{strategy}" + (", asymmetric" if asymmetric else "")
    )


def _text(name: str, **parameters: int) -> str:
    """Return the text of a format with parameters (see `llmbench.spec.weights.formats.chosen`)."""
    from llmbench.spec.weights.formats import chosen

    return chosen(",".join([name, *(f"{key}={value}" for key, value in parameters.items())])).text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_METHODS: dict[str, Callable[[_Keys, str], Weights]] = {
    "fp8": _fp8,
    "fbgemm-fp8": _fbgemm,
    "awq": _awq,
    "gptq": _gptq,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
    "mlx": _mlx,
    "modelopt": _modelopt,
    "modelopt-fp4": _modelopt,
    "compressed-tensors": _compressed_tensors,
}
"""The reader of each quantisation method."""
