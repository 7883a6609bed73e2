"""Check an implementation of a piece against plain torch in fp64. The check runs at a smaller setting, so that the fp64
tensors fit into memory.

The checked model has one layer of each kind. It reads two sequences, so that the check detects an implementation that
mixes them up. The sequences are longer than the windows and chunks, so that the masks hide some of the tokens.
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
from llmbench.spec.mixer import AttentionKind, Mixer, Parallel, branches
from llmbench.spec.model import Layer

__all__ = ["check_factor", "check_setting", "verdicts"]

TORCH_FACTOR = 4.0
"""The error budget of torch's fast kernels, as a multiple of the error of plain torch in the same format. These kernels
add numbers in another order than plain torch, which changes results in fp32. The Triton kernels of llmbench have a
budget of 2."""

WIDEST = 1024
"""The widest window or chunk, in tokens, that a check uses. A wider window is reduced to this width in the check,
because the same compiled kernels compute both widths. A check needs about twice as many tokens as its window. The fp64
scores of 2 × WIDEST tokens take 34 MB per head."""

MOST_HEADS = 2
"""The largest number of key heads in a check that needs long sequences because of a window. The attention scores take
most of the memory of such a check. Two heads are enough, because heads are independent of each other."""

MOST_TOKENS = 32_768
"""The largest vocabulary, in tokens, of a check that needs long sequences because of a window. A small vocabulary keeps
the logits small."""


def check_factor(impl: str, device: torch.device) -> float:
    """Return the error budget of an implementation, as a multiple of the error of plain torch in the same format."""
    return 2.0 if traits_of(impl).triton and device.type == "cuda" else TORCH_FACTOR


def verdicts(piece: Piece, setting: Setting, impl: str, bind: Binder) -> list[Verdict]:
    """Compare an implementation of the piece with plain torch in fp64. Return one verdict per tensor.

    The check compares the outputs. If the setting has a backward pass, it also compares the gradients of all inputs and
    weights. `bind`: the binder of the implementation (see `binder_of`).
    """
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
    """Return the setting at which the piece is checked: a reduced model, at most two sequences, and shorter
    sequences."""
    spec, length = layer_of_each_kind(setting.spec), piece.check_seq
    spans = [span for layer in spec.layers.values() for span in _spans(layer) if span < setting.seq_len]
    if spans and piece.phase == "train" and any(op.kind == "attention" for op in piece.ops_of(setting)):
        length = max(length, 2 * min(max(spans), WIDEST) + 1)
        replace = msgspec.structs.replace
        layers = {name: replace(layer, mixer=_narrow(layer.mixer)) for name, layer in spec.layers.items()}
        spec = replace(spec, layers=layers, vocab_size=min(spec.vocab_size, MOST_TOKENS))
    return setting.changed(spec=spec, batch=min(2, setting.batch), seq_len=min(setting.seq_len, length))


def _spans(layer: Layer) -> list[int]:
    """Return the widths of a layer's windows and chunks, in tokens."""
    spans = [mixer.span for mixer in branches(layer.mixer)]
    return [span for span in spans if span is not None]


def _narrow(mixer: Mixer | None) -> Mixer | None:
    """Return the mixer with at most MOST_HEADS key heads, and with windows and chunks of at most WIDEST tokens."""
    if isinstance(mixer, Parallel):
        return msgspec.structs.replace(mixer, branches=tuple(_narrow(branch) for branch in mixer.branches))
    return mixer.narrowed(kv_heads=MOST_HEADS, span=WIDEST) if isinstance(mixer, AttentionKind) else mixer
