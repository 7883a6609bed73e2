"""Check an implementation of a piece against plain torch in fp64, at a size whose fp64 tensors fit into memory.

The checked model has one layer of each kind. It reads two sequences, so that the check detects a mix-up of sequences.
The sequences are so long that windows and chunks mask some of the tokens.
"""

from __future__ import annotations

from functools import partial

import msgspec
import torch

from llmbench.bench.extra_candidates import Binder, traits_of
from llmbench.bench.pieces.piece import Piece, Setting
from llmbench.bench.pieces.reduce import layer_of_each_kind
from llmbench.kernels.proof.accuracy import Verdict, Weights, check_against
from llmbench.model.implementations.plain import STANDARD
from llmbench.spec.mixer import AttentionKind, Mixer, branches
from llmbench.spec.model import Layer

__all__ = ["check_factor", "check_setting", "verdicts"]

TORCH_FACTOR = 4.0
"""The error budget of torch's fast kernels, as a multiple of the error of plain torch. These kernels sum in another
order, which changes results in fp32. The Triton kernels of llmbench have a budget of 2."""

WIDEST = 1024
"""The widest window or chunk, in tokens, that is checked unchanged. A wider one is checked at this width, because the
same compiled kernels compute both widths. The fp64 scores of twice as many tokens take 34 MB per head."""

MOST_HEADS = 2
"""The most key heads in a check that needs long sequences because of a window. Scores take most of the memory of such a
check. Two heads suffice, because heads are independent of each other."""

MOST_TOKENS = 32_768
"""The largest vocabulary in a check that needs long sequences because of a window. It keeps the logits small."""


def check_factor(impl: str, device: torch.device) -> float:
    """The error budget of an implementation, as a multiple of the error of plain torch in the same format."""
    return 2.0 if traits_of(impl).triton and device.type == "cuda" else TORCH_FACTOR


def verdicts(piece: Piece, setting: Setting, impl: str, bind: Binder) -> list[Verdict]:
    """Compare an implementation of the piece, bound by `bind`, with plain torch in fp64. The check covers the outputs
    and, if the setting has a backward pass, the gradients of all inputs and weights."""
    built = piece.build(check_setting(piece, setting))
    weights = None
    if setting.backward:
        weights = Weights(built.parameters(setting.format), built.parameters(torch.float64))
    return check_against(
        bind(built.run),
        partial(built.run, STANDARD),
        built.inputs,
        differentiable=built.differentiable if setting.backward else (),
        weights=weights,
        factor=check_factor(impl, setting.device),
    )


def check_setting(piece: Piece, setting: Setting) -> Setting:
    """The smaller setting at which the piece is checked."""
    spec, length = layer_of_each_kind(setting.spec), piece.check_seq
    spans = [span for layer in spec.layers.values() for span in _spans(layer) if span < setting.seq_len]
    if spans and piece.phase == "train" and any(op.kind == "attention" for op in piece.ops_of(setting)):
        length = max(length, 2 * min(max(spans), WIDEST) + 1)
        replace = msgspec.structs.replace
        layers = {name: replace(layer, mixer=_narrow(layer.mixer)) for name, layer in spec.layers.items()}
        spec = replace(spec, layers=layers, vocab_size=min(spec.vocab_size, MOST_TOKENS))
    return setting.changed(spec=spec, batch=min(2, setting.batch), seq_len=min(setting.seq_len, length))


def _spans(layer: Layer) -> list[int]:
    """The lengths of a layer's windows and chunks, in tokens."""
    spans = [mixer.span for mixer in branches(layer.mixer)]
    return [span for span in spans if span is not None]


def _narrow(mixer: Mixer | None) -> Mixer | None:
    """The mixer with at most MOST_HEADS key heads, and with windows and chunks of at most WIDEST tokens."""
    if not isinstance(mixer, AttentionKind):
        return mixer
    kv_heads = min(MOST_HEADS, mixer.num_key_value_heads)
    changes = {
        "num_attention_heads": kv_heads * mixer.num_attention_heads // mixer.num_key_value_heads,
        "num_key_value_heads": kv_heads,
        "sliding_window": None if mixer.sliding_window is None else min(mixer.sliding_window, WIDEST),
        "attention_chunk_size": None if mixer.attention_chunk_size is None else min(mixer.attention_chunk_size, WIDEST),
    }
    return msgspec.structs.replace(
        mixer, **{name: changes[name] for name in mixer.__struct_fields__ if name in changes}
    )
