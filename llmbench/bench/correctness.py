"""Check an implementation of a piece against plain torch in fp64, at a size that fits in fp64.

The checked size is smaller than the timed one and represents it: a layer of each kind, two sequences (so that a mix-up
of sequences shows), and enough tokens that windows and chunks hide some of them.
"""

from __future__ import annotations

from functools import partial

import msgspec
import torch

from llmbench.bench.baselines import Binder, traits_of
from llmbench.bench.pieces.piece import Piece, Setting
from llmbench.bench.pieces.reduce import layer_of_each_kind
from llmbench.kernels.proof.accuracy import Verdict, Weights, check_against
from llmbench.model.implementations.plain import STANDARD
from llmbench.spec.mixer import AttentionKind, Mixer, branches
from llmbench.spec.model import Layer

__all__ = ["check_factor", "check_setting", "verdicts"]

TORCH_FACTOR = 4.0
"""Error budget of torch's other kernels, in errors of plain torch. They sum in other orders, which shows in fp32. Our
kernels have a budget of 2."""

WIDEST = 1024
"""The widest window or chunk that is checked unchanged: fp64 scores of twice as many tokens take 34 MB per head. A
wider one is checked with this width; the same compiled kernels compute both."""

MOST_HEADS = 2
"""Key heads of a check that is long because of a window. Its scores take most of the memory, and heads are independent
of each other."""

MOST_TOKENS = 32_768
"""The largest vocabulary of such a check, so that its logits stay small."""


def check_factor(impl: str, device: torch.device) -> float:
    """The error budget of an implementation, in errors of plain torch in the same format."""
    return 2.0 if traits_of(impl).triton and device.type == "cuda" else TORCH_FACTOR


def verdicts(piece: Piece, setting: Setting, impl: str, bind: Binder) -> list[Verdict]:
    """Compare an implementation of the piece, bound by `bind`, with plain torch in fp64: its outputs and, where the
    setting has a backward pass, the gradients of all inputs and weights."""
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
    """The setting at which a piece is checked instead of the timed one."""
    spec, length = layer_of_each_kind(setting.spec), piece.check_seq
    spans = [span for layer in spec.layers.values() for span in _spans(layer) if span < setting.seq_len]
    if spans and piece.phase == "train" and any(op.kind == "attention" for op in piece.ops_of(setting)):
        length = max(length, 2 * min(max(spans), WIDEST) + 1)
        replace = msgspec.structs.replace
        layers = {name: replace(layer, mixer=_narrow(layer.mixer)) for name, layer in spec.layers.items()}
        spec = replace(spec, layers=layers, vocab_size=min(spec.vocab_size, MOST_TOKENS))
    return setting.changed(spec=spec, batch=min(2, setting.batch), seq_len=min(setting.seq_len, length))


def _spans(layer: Layer) -> list[int]:
    """The lengths of a layer's windows and chunks."""
    spans = [mixer.span for mixer in branches(layer.mixer)]
    return [span for span in spans if span is not None]


def _narrow(mixer: Mixer | None) -> Mixer | None:
    """The mixer with at most MOST_HEADS key heads and windows and chunks of at most WIDEST tokens."""
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
