"""How much does each position encoding cost: none, learned, sinusoidal, RoPE (fused or not), ALiBi?

The same small model runs with each position encoding. Its attention uses `flash`. Learned and sinusoidal positions are
added once, to the embedding. RoPE rotates queries and keys in every layer. ALiBi adds a bias to the attention scores in
every layer.
"""

from __future__ import annotations

import msgspec

from llmbench.bench.candidates import Entry, entry_group
from llmbench.bench.experiments.experiment import Ask, Chart, Experiment, Group
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.blocks import decoder_only
from llmbench.measure.results import Scalar
from llmbench.spec.ffn import Dense
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Alibi, LearnedPositions, NoPositions, Positions, Rope, SinusoidalPositions

__all__ = ["EXPERIMENT"]


def groups(ask: Ask) -> list[Group]:
    """Return one group per sequence length. A group times a forward pass of the model with each position encoding."""
    if ask.on_gpu:
        layers, hidden, dim = 4, 2048, 128
        lengths: tuple[int, ...] = (1024,) if ask.quick else (1024, 4096, 16384)
    else:
        layers, hidden, dim = (2, 128, 32) if ask.quick else (4, 512, 64)
        lengths = (64,) if ask.quick else (256, 1024)
    if ask.shape.model is not None:
        model = decoder_only(ask.shape.model)
    else:
        mixer, ffn = heads(hidden // dim, hidden // dim, dim), Dense(intermediate_size=4 * hidden)
        model = model_of("small", hidden, mixer=mixer, ffn=ffn, layers=layers)
    return [_group(ask, model, *shape) for shape in ask.pairs((1, length) for length in lengths)]


def _group(ask: Ask, model: ModelSpec, batch: int, length: int) -> Group:
    rope = model.positions if model.positions.acts_on == "queries and keys" else Rope()
    kinds: dict[str, tuple[Positions, str]] = {
        "none": (NoPositions(), "flash"),
        "learned": (LearnedPositions(num_positions=length), "flash"),
        "sinusoidal": (SinusoidalPositions(), "flash"),
        "RoPE": (rope, "flash"),
        "RoPE fused": (rope, "rope-fused"),
        "ALiBi": (Alibi(), "flash"),
    }
    entries = []
    for name, (positions, impl) in kinds.items():
        spec = msgspec.structs.replace(model, name=name, positions=positions, published_parameters=None).check()
        setting = ask.setting(spec, batch=batch, seq_len=length)
        entries.append(Entry(label=name, piece=find_piece("model"), setting=setting, impl=impl))
    case: dict[str, Scalar] = {
        **ask.shape.case,
        "layers": model.num_hidden_layers,
        "hidden_size": model.hidden_size,
        "dtype": ask.dtype,
        "seq_len": length,
    }
    if batch > 1:
        case["batch"] = batch
    return entry_group(entries, case=case, pace=ask.pace)


EXPERIMENT = Experiment(
    question="how much does each position encoding cost: none, learned, sinusoidal, RoPE, ALiBi?",
    groups=groups,
    baseline="none",
    chart=Chart("seq_len", "tokens per sequence"),
)
