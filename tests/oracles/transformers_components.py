"""Which component each parameter of a transformers model belongs to, by its name and by the classes of the modules
around it. The components are those of `transformers_meta`.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# Mixers without a KV cache, by the class of the module that has all their parameters.
_SSM_CLASS = re.compile(
    r"(Mixer|MambaLayer|GatedDeltaNet|LightningAttention|RecurrentBlock|ShortConv|RwkvSelfAttention|DeltaAttention|"
    r"LinearAttention|KDA)$"
)
_SSM_NAME = re.compile(r"^(mamba|linear_attn|mlstm_layer)$")

# Anchored at the end: JambaAttentionDecoderLayer has a feed-forward too.
_ATTENTION_CLASS = re.compile(r"(Attention|Attention2|SelfAttn|AttentionV2|MoA)$")
_ATTENTION_NAME = re.compile(r"attn|attention|^self_att$", re.I)
# JetMoE has experts in the feed-forward and, under the name `experts`, in attention.
_JETMOE_EXPERTS = re.compile(
    r"(\.\d+\.mlp|attention\.experts)\.(input|output)_linear\.weight$|attention\.experts\.bias$"
)
_NORM = re.compile(r"norm|^ln($|_)|^ln\d|_ln$", re.I)
# DbrxNormAttentionNorm is a block, not a norm.
_NORM_CLASS = re.compile(r"(?<!Attention)Norm(Gated|1P|\d?d)?$")
_INNER_NORM = re.compile(
    r"^(q|k|v|kv|query|key|value|qk)(_[a-z]+)*?_?(norm|layernorm|layer_norm|ln)$|^attn_sub_norm$|^temp$"
)
_EXTRA = re.compile(
    r"sink|relative|^rel_|rel_pos|indexer|compressor|lambda_[qk]\d|sconv|conv|^r_proj$|_l2_clip|^r_[rsw]_bias$|"
    r"^seg_embed$|^r$|^A$|^dt_proj$"
)
_MLP_NAME = re.compile(
    r"^(mlps?|feed_forward\w*|ffn?|ffn_output|mlp_block|fc1|fc2|lin1|lin2|intermediate|DenseReluDense|wi(_\d)?|wo|"
    r"block_sparse_moe)$"
)
_MLP_CLASS = re.compile(r"(MLP|Mlp|FeedForward|FFN|DenseActDense|DenseGatedActDense|Intermediate|Output)$")
_POSITION = re.compile(r"^(wpe|embed_positions|position_embeddings?|positions_embed|pos_emb)$")
_NO_MATMUL = re.compile(
    r"(^|[._])(bias|A_log|D|A|norm|sinks?|scale|lambda\w*|time_\w+|static_weight|temp|query|recurrent_param)$|"
    r"relative|rel_pos|_bias$|seg_embed|mask_emb$|_ape$"
)
# Matrices that the logits of a plain text do not depend on.
_UNUSED = re.compile(r"(^|\.)(pooler|contact_head|(query|key|value)_global|ada_rms_norm)\.")
# Parts of a checkpoint that are not its text model, where a class builds them all the same.
_NOT_TEXT = re.compile(r"vision|visual|image|audio|speech|multi_modal|embed_tokens_extend")


def classify(model: nn.Module, prefix: str = "") -> dict[str, tuple[str, nn.Parameter, bool]]:
    """Name -> (component, parameter, used as a matrix) for each unique parameter of the text part."""
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    table = model.get_input_embeddings()
    table_weight = getattr(table, "weight", None)
    alone = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    sorted_out: dict[str, tuple[str, nn.Parameter, bool]] = {}
    # A shared bias goes by the name it has inside the head, wherever else the class keeps it.
    head_parameters = {id(p) for p in head.parameters(recurse=False)} if head is not None else set()
    for name, parameter in model.named_parameters():
        if not is_text(name, prefix) and id(parameter) not in head_parameters:
            continue
        path = name.split(".")
        around = [(path[i], modules[".".join(path[: i + 1])]) for i in range(len(path) - 1)]
        owner = around[-1][1] if around else model
        if parameter is table_weight or (isinstance(owner, nn.Embedding) and id(parameter) in head_parameters):
            component = "embedding"  # the second: t5gemma ties its head to the decoder's table
        elif id(parameter) in head_parameters:
            component = "lm_head"
        else:
            component = _component(path, around, owner, modules)
        unused = alone and "encoder_attn" in path  # a decoder without its encoder does not run its cross-attention
        sorted_out[name] = (component, parameter, not unused and _is_matrix(name, parameter, owner))
    return sorted_out


def _component(path: list[str], around: list[tuple[str, nn.Module]], owner: nn.Module, modules: Any) -> str:
    """The component of one parameter: the first rule that fits, from the particular to the general."""
    segments = path[:-1]
    classes = [type(module).__name__ for _, module in around]
    last = segments[-1] if segments else ""
    is_norm = any(_NORM_CLASS.search(c) for c in classes) or bool(_NORM.search(last) or _NORM.search(path[-1]))
    if last in ("token_type_embeddings", "segment_embedding"):
        return "token_type_embedding"
    if any(_POSITION.match(s) for s in segments) or path[-1] in ("position_embeddings", "pos_embed"):
        return "position_embedding"
    if segments and segments[0] in ("cls", "lm_head", "generator_predictions", "head", "predictions"):
        return "other"
    if segments and segments[0].startswith("vocab_"):  # distilbert: vocab_transform, vocab_layer_norm
        return "other"
    if any(_SSM_CLASS.search(c) for c in classes) or any(_SSM_NAME.match(s) for s in segments):
        return "mixer_ssm"
    if isinstance(owner, nn.Embedding) and not any(_ATTENTION_CLASS.search(c) for c in classes):
        if "relative" in last or "rel_" in last:
            return "attention_extra"
        if last in ("down_embed", "up_embed"):  # doge: rows of two tables are its experts
            return "experts"
        return "embedding"
    if any(s in ("router", "gate", "ffn_gate", "expert_bias", "moe_statics") for s in segments) or path[-1] in (
        "expert_bias",
        "e_score_correction_bias",
    ):
        return "router"
    if any(s.startswith("shared_expert") for s in segments):
        return "shared_experts"
    if _JETMOE_EXPERTS.search(".".join(path)):
        return "experts" if "mlp" in segments else "attention"
    if any(s == "experts" for s in segments):
        return "norms" if is_norm else "experts"
    if "shared_mlp" in segments:
        # Granite's and Hunyuan's shared expert; the dense feed-forward where the layer has no router at all.
        layer = ".".join(path[: path.index("shared_mlp")])
        routed = any(n.startswith(layer + ".") and n.endswith((".experts", ".router", ".gate")) for n in modules)
        return "shared_experts" if routed else "mlp"
    if any(s.endswith(("hyper_connection", "_hc")) or s in ("hc_head", "altup", "laurel") for s in segments):
        return "other"
    inside = [i for i, (s, c) in enumerate(zip(segments, classes, strict=True)) if _is_attention(s, c)]
    if inside:
        inner = [*segments[inside[0] + 1 :], path[-1]]
        if any(_EXTRA.search(s) for s in inner):
            return "attention_extra"
        if any(_INNER_NORM.match(s) for s in inner):
            return "attention_norms"
        return "norms" if is_norm else "attention"
    if any(_INNER_NORM.match(s) for s in segments):
        return "attention_norms"
    if is_norm:
        return "norms"
    if any("relative" in s for s in path):
        return "attention_extra"
    if any(_MLP_NAME.match(s) for s in segments) or any(_MLP_CLASS.search(c) for c in classes):
        return "mlp"
    return "other"


def _is_attention(segment: str, class_name: str) -> bool:
    """Is this module an attention block, and not a layer norm or a gate that is merely named after one?"""
    if _NORM.search(segment) or _NORM_CLASS.search(class_name):
        return False
    if segment.endswith(("hyper_connection", "_hc", "_residual", "_residual_scale", "_input", "_gate")):
        return False
    return bool(_ATTENTION_CLASS.search(class_name) or _ATTENTION_NAME.search(segment))


def is_text(name: str, prefix: str) -> bool:
    """Does the parameter belong to the text part, by its name?"""
    return not _NOT_TEXT.search(name) and (not prefix or prefix in name.split("."))


def _is_matrix(name: str, parameter: nn.Parameter, owner: nn.Module) -> bool:
    """Is a token multiplied with this parameter in a matmul? Not tables, convolutions, vectors, biases."""
    if parameter.dim() < 2 or _UNUSED.search(name) or isinstance(owner, (nn.Embedding, nn.Conv1d, nn.Conv2d)):
        return False
    if isinstance(owner, nn.Linear):  # prophetnet calls one of them relative_pos_embeddings
        return True
    tail = ".".join(name.split(".")[-2:])
    return not (_NO_MATMUL.search(tail) or _NORM_CLASS.search(type(owner).__name__))
