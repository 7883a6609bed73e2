"""Compare the bytes of published checkpoints, and of weights that engines loaded, with the bytes of their formats."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from llmbench.sizing.serving.shard import rope_table_bytes
from llmbench.sizing.weights import stored_weights
from llmbench.sizing.workload import Layout
from llmbench.spec.ffn import MoE
from llmbench.spec.huggingface.quantization import stored_weights as config_weights
from llmbench.spec.mixer import AttentionKind, RecurrentKind, branches
from llmbench.spec.model import ModelSpec
from llmbench.spec.weights.formats import chosen
from llmbench.spec.weights.modules import ModuleNames
from llmbench.spec.weights.stored import Weights
from llmbench.validation.comparison import Answer, Figure
from llmbench.validation.models import bundled_model
from llmbench.validation.rows import RefusedError, Row, whole

__all__ = ["answer", "format_of"]

_BITS = r"(\d+) ?bits?"
_PATTERNS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (rf"GPTQ {_BITS} g ?(-?\d+)", lambda found: f"gptq,bits={found[1]},group={found[2]}"),
    (r"AWQ g ?(\d+)", lambda found: f"awq,group={found[1]}"),
    (rf"MLX affine {_BITS} g ?(\d+).*", lambda found: f"mlx,bits={found[1]},group={found[2]}"),
    (r"MLX (\d+)(?: ?g ?(\d+))?", lambda found: f"mlx,bits={found[1]},group={found[2] or 64}"),
    (r"MLX (mxfp4|mxfp8|nvfp4).*", lambda found: f"mlx-{found[1]}"),
    (r"mxfp4", lambda found: "mxfp4"),
    (r"fp8 block(?: (\d+))?.*", lambda found: "fp8-block,block_outputs={0},block_inputs={0}".format(found[1] or 128)),
    (r"compressed-tensors fp8 channel|fp8 (?:per )?channel", lambda found: "fp8-channel"),
    (r"compressed-tensors int8 channel|w8a8 int8", lambda found: "int8"),
    (rf"compressed-tensors (?:pack-quantized|w4a16|int4)(?: {_BITS})?(?: g ?(\d+))?", lambda found: _packed(found)),
    (r"fp8 per-tensor.*", lambda found: "fp8-tensor" + (",static=1" if "static" in found[0] else "")),
    (r"bnb nf4 double.*", lambda found: "nf4,double=1"),
    (r"bnb nf4.*", lambda found: "nf4"),
    (r"bnb int8.*", lambda found: "bnb-int8"),
    (r"GGUF (\w+)(?: \(imatrix\))?", lambda found: f"gguf-{found[1]}"),
    (r"mxfp8", lambda found: "mxfp8"),
    (r"bf16|fp16|fp32", lambda found: found[0]),
)
"""The format that the text of the column `scheme` means. A pattern must match the whole text."""


def _packed(found: re.Match[str]) -> str:
    return f"w4a16,bits={found[1] or 4},group={found[2] or 128}"


def answer(row: Row) -> Answer:
    """Compare the bytes of a checkpoint, or of one GPU of an engine. An engine also loads the table of RoPE whole."""
    spec, about = bundled_model(_base(row)), row.text("model")
    loaded = "engine log" in row.text("as_given")
    stored = stored_weights(
        msgspec.structs.replace(spec, weights=_weights(row, spec)), layout=_layout(about), loaded=loaded
    )
    parts: dict[str, float] = dict(stored.components)
    if loaded:
        parts["rope_table"] = rope_table_bytes(spec)
    figure = Figure(
        quantity="bytes",
        measured=row.needed("bytes"),
        ours=sum(parts.values()),
        tolerance=row.number("tolerance_bytes") or 0,
    )
    note = row.text("note")
    return Answer(figures=(figure,), parts=parts, doubt=note if note.startswith("OPEN") else "")


def _base(row: Row) -> str:
    """Return the name of the model: `llama2-7b`, `config Qwen--Qwen3.5-9B` or `Nemotron-3-Nano config`."""
    name = row.text("base") or row.text("model")
    return name.removeprefix("config ").removesuffix(" config").replace("--", "/")


_LISTED = ("fbgemm_fp8", "nvfp4", "NVFP4")
"""Schemes whose makers choose the modules that stay as they are. Only `quantization_config` says which."""


def format_of(scheme: str, exceptions: str = "", *, autogptq_2023: bool = False) -> str:
    """Return the format, as `--weights` reads it, that the columns `scheme` and `unquantised` mean.

    autogptq_2023: whether AutoGPTQ of 2023 wrote the files. It stored a bias of zeros for every matrix.

    Raises RefusedError if llmbench does not know the scheme.
    """
    for pattern, text in _PATTERNS:
        if (found := re.fullmatch(pattern, scheme, re.IGNORECASE)) is not None:
            format = text(found)
            if format.startswith("gptq") and autogptq_2023:
                format += ",zero_bias=1"
            if format.startswith("mlx,") and "routers quantised like the rest" in exceptions:
                format += ",predicate=0"
            return format
    if scheme.startswith(_LISTED):
        raise RefusedError(
            f"column `scheme`: {scheme[:60]!r} needs the list of modules that stay as they are, as JSON in the column "
            "`quantization_config`"
        )
    raise RefusedError(
        f"column `scheme`: llmbench does not know {scheme[:60]!r}" if scheme else "column `scheme` is empty"
    )


def _weights(row: Row, spec: ModelSpec) -> Weights:
    """Return how the files of a row store the weights.

    A `quantization_config` with a method decides. Else the columns `scheme` and `unquantised` do. If the bundled spec
    has the same format, it knows which modules stay as they are, and the parameters that the row does not say.
    """
    config = _config(row.json("quantization_config"))
    if config is not None and "quant_method" in config:
        return config_weights([{"quantization_config": config}], spec.family or "")
    scheme, exceptions = row.text("scheme"), row.text("unquantised")
    format = format_of(scheme, exceptions, autogptq_2023=row.text("model").startswith("TheBloke/"))
    if format.startswith("gguf"):
        imatrix = "(imatrix)" in f"{row.text('model')} {scheme}" and "imatrix" in chosen(format).parameters
        format += (",imatrix=1" if imatrix else "") + (",router_f16=1" if "router F16" in exceptions else "")
    name, _, parameters = format.partition(",")
    if name == spec.weights.format.partition(",")[0]:
        own = f"{spec.weights.format},{parameters}" if parameters else spec.weights.format
        return msgspec.structs.replace(spec.weights, format=chosen(own).text)
    if "from AWQ" in scheme:  # AutoAWQ leaves both out, and MLX would quantise them
        return Weights(format=format, keeps=("embed_tokens", "lm_head"))
    keeps = _kept(spec, exceptions) if "ignore list" in scheme else ()
    fp32 = {"ffn.router"} if "router scales fp32" in exceptions else set()
    if "A_log fp32" in exceptions:
        mixers = [mixer for layer in spec.layers.values() for mixer in branches(layer.mixer)]
        fp32 |= {f"{mixer.module_name}.A_log" for mixer in mixers if isinstance(mixer, RecurrentKind)}
    dtype: Literal["fp32", "bf16", "fp16"] | None
    for dtype in ("bf16", "fp16", "fp32"):
        if format == dtype:
            return Weights(dtype=dtype, fp32=tuple(sorted(fp32)))
    return Weights(format=format, keeps=keeps, fp32=tuple(sorted(fp32)))


def _kept(spec: ModelSpec, exceptions: str) -> tuple[str, ...]:
    """Return the modules that the column `unquantised` names: `lm_head, attention, 6 of 23 mamba in/out_proj`.

    If only some layers of a kind are named by their number, all of them have the same size, and the first ones stand
    for them. Raises RefusedError for other words.
    """
    named = ModuleNames(spec)
    indices = {kind: [i for i, name in enumerate(spec.order) if name == kind] for kind in spec.layers}
    mixers = {kind: list(branches(layer.mixer)) for kind, layer in spec.layers.items()}

    def modules(inside: str, layers: list[int], *parts: str) -> list[str]:
        return [named.names_of(f"layers.{{}}.{inside}.{part}", layer)[0] for layer in layers for part in parts]

    kept: list[str] = []
    for text in (part.strip() for part in exceptions.partition(" bf16")[0].split(",")):
        some = re.fullmatch(r"(?:(\d+) of \d+ )?mamba in/out_proj", text)
        if text == "lm_head":
            kept += named.names_of("lm_head", None)[:1]
        elif text == "embeddings":
            kept += named.names_of("embedding", None)[:1]
        elif text in ("routers", "router"):
            moe = [i for i, name in enumerate(spec.order) if isinstance(spec.layers[name].ffn, MoE)]
            kept += modules("ffn", moe, "router")
        elif re.fullmatch(r"attention(?: \(\d+\))?", text):
            for kind, own in mixers.items():
                if any(isinstance(mixer, AttentionKind) for mixer in own):
                    kept += modules("attention", indices[kind], "q_proj", "k_proj", "v_proj", "o_proj")
        elif some is not None:
            mamba = [i for kind, own in mixers.items() for i in indices[kind] if any(m.kind == "mamba2" for m in own)]
            kept += modules("mamba", mamba[: whole(some[1]) if some[1] else None], "in_proj", "out_proj")
        elif text not in ("convs", "norms"):
            raise RefusedError(f"column `unquantised`: llmbench does not know {text[:60]!r}")
    return tuple(kept)


def _config(text: str) -> dict[str, Any] | None:
    """Return the JSON object of a cell, or None if the cell has other text."""
    try:
        config = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def _layout(about: str) -> Layout:
    """Return the layout of an engine. `vLLM tp2, a rank` divides the weights over two GPUs."""
    tp = re.search(r"\btp ?(\d+)\b", about)
    return Layout(tp=whole(tp[1])) if tp else Layout()
