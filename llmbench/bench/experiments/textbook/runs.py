"""The runs that decide the textbook's measured claims. On a GPU, a run uses the setting that the claim states. On a
CPU, most runs use a smaller setting.

A run is a group with the candidates that a claim compares. The case of the group is the setting that the run used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import msgspec
import torch

from llmbench.bench.candidates import Entry, entry_group, piece_group
from llmbench.bench.experiments import activations, generate, train
from llmbench.bench.experiments.experiment import Ask, Group
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.experiments.train.step import TrainStep
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces import moe as moe_pieces
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.measure.results import Scalar
from llmbench.sizing.work import Pass
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Dense, Gated
from llmbench.spec.model import ModelSpec, Norm
from llmbench.spec.override import override
from llmbench.spec.position import LearnedPositions
from llmbench.textbook.models import gpt2, shared_heads, style

__all__ = ["RUNS", "is_own"]

LAYER_NORM = Norm(kind="layernorm", bias=True)
Setup = Mapping[str, Scalar]


def _case(run: str, ask: Ask, **setup: Scalar) -> dict[str, Scalar]:
    return {"run": run, "dtype": ask.dtype, **setup}


def flash(length: int, ask: Ask) -> Group:
    """Return the group that times the forward and backward pass of GPT-2 at a sequence length.

    On a CPU, the model has two narrow layers, and the sequence length is an eighth of `length` (quick preset: a
    sixteenth).
    """
    if ask.on_gpu:
        spec, batch, tokens = gpt2(8192), 8, length
    else:
        tokens = length // (16 if ask.quick else 8)
        positions = LearnedPositions(num_positions=tokens)
        ffn = Dense(intermediate_size=256)
        spec = model_of("two layers", 64, mixer=heads(4, 4, 16), ffn=ffn, positions=positions, layers=2)
        batch = 2
    run = f"flash {length}"
    case = _case(run, ask, model=spec.name, batch=batch, seq_len=tokens)
    setting = ask.setting(spec, batch=batch, seq_len=tokens, direction="both")
    return piece_group(find_piece("model"), setting, ("standard", "flash"), case=case, pace=ask.pace)


def decode(batch: int, ask: Ask) -> Group:
    """Return the group that times a decoding step of LLaMA-2-7B after 2,048 tokens, with MHA, GQA and MQA.

    On a CPU, the model has four narrow layers, and the cache has 256 tokens.
    """
    if ask.on_gpu:
        spec, context, impl = load_bundled("llama2-7b"), 2048, "flash"
    else:
        spec, context, impl = _narrow(), 256, "sdpa"
    case = _case(f"decode {batch}", ask, model=spec.name, batch=batch, context=context)
    return _steps(case, _with_fewer_heads(spec, 8 if ask.on_gpu else 2), impl, batch, context, ask)


def _narrow() -> ModelSpec:
    return model_of("four layers", 256, mixer=heads(8, 8, 32), ffn=Gated(intermediate_size=704), layers=4)


def _with_fewer_heads(spec: ModelSpec, groups: int) -> dict[str, ModelSpec]:
    """Return the model, and the model with `groups` key-value heads and with one."""
    return {"MHA": spec, "GQA": shared_heads(spec, groups), "MQA": shared_heads(spec, 1)}


def _steps(
    case: dict[str, Scalar], specs: Mapping[str, ModelSpec], impl: str, batch: int, context: int, ask: Ask
) -> Group:
    """Return the group that compares a decoding step of each model. On a GPU, the step runs as a CUDA graph."""

    def candidates(references: ReferenceMeasurements) -> list[Candidate]:
        built = []
        for name, spec in specs.items():
            request = generate.Case(
                spec=msgspec.structs.replace(spec, name=name),
                dtype=ask.dtype,
                device=ask.device,
                phase="next token",
                batch=batch,
                context=context,
            )
            shared, checks = generate.Shared(request), generate.Checks()
            built.append(generate.candidate(name, impl, ask.on_gpu, shared, references, checks))
        return built

    return _group(case, list(specs), candidates, ask)


def _group(
    case: Setup, names: list[str], candidates: Callable[[ReferenceMeasurements], list[Candidate]], ask: Ask
) -> Group:
    return Group(case=case, names=names, candidates=candidates, pace=ask.pace, graphs=False)


def norm(direction: Pass, ask: Ask) -> Group:
    """Return the group that compares LayerNorm and RMSNorm in plain torch."""
    batch, tokens, hidden = (32, 1024, 4096) if ask.on_gpu else (2, 32, 256) if ask.quick else (4, 256, 1024)
    entries = []
    for name, kind in (("LayerNorm", LAYER_NORM), ("RMSNorm", Norm())):
        spec = model_of(name, hidden, mixer=heads(1, 1, 64), norm=kind)
        setting = ask.setting(spec, batch=batch, seq_len=tokens, direction=direction)
        entries.append(Entry(label=name, piece=find_piece("norm"), setting=setting, impl="standard"))
    case = _case(f"norm {direction}", ask, batch=batch, seq_len=tokens, hidden_size=hidden)
    return entry_group(entries, case=case, pace=ask.pace)


def glu(direction: Pass, names: Sequence[str], ask: Ask) -> Group:
    """Return the group that compares feed-forwards with equal parameters in plain torch."""
    tokens, hidden = (8192, 4096) if ask.on_gpu else (32, 192) if ask.quick else (256, 768)
    shapes, entries = activations.shapes(activations.equal_widths(hidden)), []
    for name in names:
        spec = model_of(name, hidden, ffn=shapes[name][0])
        setting = ask.setting(spec, seq_len=tokens, direction=direction)
        entries.append(Entry(label=name, piece=moe_pieces.FFN, setting=setting, impl="standard"))
    case = _case(f"glu {direction}", ask, tokens=tokens, hidden_size=hidden)
    return entry_group(entries, case=case, pace=ask.pace)


def _styles(layers: int) -> dict[str, ModelSpec]:
    """Return a GPT-2-style and a LLaMA-style model, which has 2 key-value heads."""
    specs = style("GPT-2", layers=layers), style("LLaMA", kv_heads=2, layers=layers)
    return {spec.name: spec for spec in specs}


def style_train(ask: Ask) -> Group:
    """Return the group that compares a training step of a GPT-2-style and a LLaMA-style model, with torch's
    attention."""
    layers, batch, tokens = (6, 64, 256) if ask.on_gpu else (2, 1, 64) if ask.quick else (6, 2, 128)
    case = _case("style train", ask, layers=layers, batch=batch, seq_len=tokens)
    return _training(case, _styles(layers), batch, tokens, ask)


def train_heads(ask: Ask) -> Group:
    """Return the group that compares a training step with MHA, GQA and MQA, with torch's attention.

    On a GPU, the model has four layers of LLaMA-2-7B, so that the states of three models fit. On a CPU, it is narrow.
    """
    if ask.on_gpu:
        spec, batch, tokens = override(load_bundled("llama2-7b"), {"num_hidden_layers": 4}), 1, 2048
    else:
        spec, batch, tokens = _narrow(), 1, 32 if ask.quick else 128
    case = _case("train heads", ask, model=spec.name, batch=batch, seq_len=tokens)
    return _training(case, _with_fewer_heads(spec, 8 if ask.on_gpu else 2), batch, tokens, ask)


def _training(case: Setup, specs: Mapping[str, ModelSpec], batch: int, tokens: int, ask: Ask) -> Group:
    """Return the group that compares a training step of each model."""

    def candidates(references: ReferenceMeasurements) -> list[Candidate]:
        built = []
        for name, spec in specs.items():
            setting = ask.setting(spec, batch=batch, seq_len=tokens, direction="both")
            trainer = partial(train.trainer_of, setting, ask.ranks)
            built.append(replace(train.candidate(setting, TrainStep("sdpa"), ask, references, trainer), name=name))
        return built

    return _group(case, list(specs), candidates, ask)


def style_forward(ask: Ask) -> Group:
    """Return the group that compares a forward pass of a GPT-2-style and a LLaMA-style model, with torch's
    attention."""
    layers, batch, tokens = (6, 64, 256) if ask.on_gpu else (2, 1, 64) if ask.quick else (6, 2, 128)
    entries = [
        Entry(
            label=name,
            piece=find_piece("model"),
            setting=ask.setting(spec, batch=batch, seq_len=tokens),
            impl="sdpa",
        )
        for name, spec in _styles(layers).items()
    ]
    case = _case("style forward", ask, layers=layers, batch=batch, seq_len=tokens)
    return entry_group(entries, case=case, pace=ask.pace)


def style_decode(ask: Ask) -> Group:
    """Return the group that compares a decoding step of a GPT-2-style and a LLaMA-style model. The cache is almost as
    long as the context of the models."""
    layers = 2 if ask.quick and not ask.on_gpu else 6
    case = _case("style decode", ask, layers=layers, batch=1, context=255)
    return _steps(case, _styles(layers), "sdpa", 1, 255, ask)


RUNS: dict[str, Callable[[Ask], Group]] = {
    **{f"flash {tokens}": partial(flash, tokens) for tokens in (512, 1024, 2048, 4096)},
    **{f"decode {batch}": partial(decode, batch) for batch in (1, 16)},
    **{f"norm {direction}": partial(norm, direction) for direction in ("forward", "backward")},
    "glu forward": partial(glu, "forward", ("ReLU", "GELU", "SiLU", "GEGLU", "SwiGLU")),
    "glu backward": partial(glu, "backward", ("GELU", "SwiGLU")),
    "train heads": train_heads,
    "style train": style_train,
    "style forward": style_forward,
    "style decode": style_decode,
}
"""The runs, by the names that claims use (`Reading.run`)."""


def is_own(case: Setup) -> bool:
    """Return whether a case is the setting that the claims state. That is the setting of the full preset on a GPU, in
    any number format."""
    own = _own(str(case["run"]))
    return {name: value for name, value in case.items() if name != "dtype"} == own


@cache
def _own(run: str) -> dict[str, Scalar]:
    # This needs no GPU, because the group is described but not run.
    ask = Ask(quick=False, device=torch.device("cuda"), dtype="bf16")
    return {name: value for name, value in RUNS[run](ask).case.items() if name != "dtype"}
