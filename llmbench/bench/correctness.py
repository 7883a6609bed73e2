"""Is a way to compute a piece right? Held against plain torch in fp64, at a size that has room for it.

The size is smaller than the one that is timed, and alike: a layer of each kind, two sequences (so that one is not taken
for the other), and as many tokens as windows and chunks need to hide some of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import torch

from llmbench.bench.pieces.piece import Piece, Setting
from llmbench.bench.pieces.reduce import layer_of_each_kind
from llmbench.kernels.proof.accuracy import Verdict, Weights, check_against
from llmbench.model.implementations.plain import STANDARD
from llmbench.spec.mixer import AttentionKind, Mixer, branches
from llmbench.spec.model import Layer

__all__ = ["check_factor", "check_setting", "verdicts"]

TORCH_FACTOR = 4.0
"""How much further from the exact result than plain torch its other kernels may be: they sum in other orders, which
shows in fp32. Ours have 2."""

WIDEST = 1024
"""The widest window or chunk that is checked as it is: fp64 scores of twice as many tokens are 34 MB a head. A wider
one is checked as one of this width, which the same compiled kernels compute."""

MOST_HEADS = 2
"""Key heads of a check that is long for the sake of a window, whose scores are the most of it. Heads do not know of
each other."""

MOST_TOKENS = 32_768
"""The vocabulary of such a check, whose logits would be the most otherwise."""


def check_factor(impl: str, device: torch.device) -> float:
    """How much further from the exact result than plain torch an implementation may be."""
    return 2.0 if impl in ("flash", "fused") and device.type == "cuda" else TORCH_FACTOR


def verdicts(piece: Piece, setting: Setting, name: str, way: Callable[..., Any]) -> list[Verdict]:
    """The piece computed that way, held against plain torch: what comes out, and with backward all gradients, those of
    inputs and those of weights."""
    made = piece.make(check_setting(piece, setting))
    return check_against(
        way(made.run),
        partial(made.run, STANDARD),
        made.inputs,
        differentiable=made.differentiable if setting.backward else (),
        weights=Weights(made.parameters(setting.format), made.parameters(torch.float64)) if setting.backward else None,
        factor=check_factor(name, setting.device),
    )


def check_setting(piece: Piece, setting: Setting) -> Setting:
    """What stands for a setting where it is checked."""
    spec, length = layer_of_each_kind(setting.spec), piece.check_seq
    spans = [span for layer in spec.layers.values() for span in _spans(layer) if span < setting.seq_len]
    if spans and piece.phase == "train" and any(op.kind == "attention" for op in piece.ops_of(setting)):
        length = max(length, 2 * min(max(spans), WIDEST) + 1)
        replace = msgspec.structs.replace
        layers = {name: replace(layer, mixer=_narrow(layer.mixer)) for name, layer in spec.layers.items()}
        spec = replace(spec, layers=layers, vocab_size=min(spec.vocab_size, MOST_TOKENS))
    return setting.but(spec=spec, batch=min(2, setting.batch), seq_len=min(setting.seq_len, length))


def _spans(layer: Layer) -> list[int]:
    """Windows and chunks of a layer."""
    spans = [mixer.span for mixer in branches(layer.mixer)]
    return [span for span in spans if span is not None]


def _narrow(mixer: Mixer | None) -> Mixer | None:
    """Of no more heads and no wider window than a long check has room for."""
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
