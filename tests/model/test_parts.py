"""Parts of the model against their formulas: feed-forwards and positions."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmbench.errors import SpecError
from llmbench.model.ffn import feed_forward
from llmbench.model.implementations import implementation
from llmbench.model.positions import (
    Rotation,
    alibi_slopes,
    inverse_frequencies,
    relative_buckets,
    rotate,
    rotation_of,
    sinusoids,
)
from llmbench.spec.ffn import Activation, Dense, Gated
from llmbench.spec.position import RelativeBias, Rope, RopeScaling, SinusoidalPositions

from . import small

# Activations


def erf_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def tanh_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


FORMULAS: dict[str, Any] = {
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "gelu": erf_gelu,
    "gelu_tanh": tanh_gelu,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "tanh": math.tanh,
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
}
NOT_ALONE = {"swiglu_oai": "is a gate", "xielu": "has parameters"}


def weights_of(layer: nn.Module, seed: int = 0) -> dict[str, Any]:
    """Set large random weights, and return them in fp64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.normal_(0.0, 0.6, generator=generator)
    return {name: tensor.detach().double() for name, tensor in layer.named_parameters()}


def through(act: Any, x: Tensor) -> Tensor:
    return torch.tensor([act(value) for value in x.flatten().tolist()], dtype=torch.float64).view(x.shape)


def test_every_activation_has_a_formula() -> None:
    assert set(FORMULAS) | set(NOT_ALONE) == set(get_args(Activation))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_feed_forwards_equal_their_formula(name: Any, gated: bool, bias: bool) -> None:
    """down(act(up(x))); GLU, ReGLU, GEGLU, SwiGLU and similar ones: down(act(gate(x)) * up(x))."""
    layer = feed_forward(6, (Gated if gated else Dense)(intermediate_size=10, activation=name, bias=bias))
    weights = weights_of(layer)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    wide = x.double()
    if gated:
        inner = through(FORMULAS[name], linear("gate_proj", wide)) * linear("up_proj", wide)
    else:
        inner = through(FORMULAS[name], linear("up_proj", wide))
    expected = linear("down_proj", inner)
    actual = layer(x, implementation("standard"))
    assert (actual.double() - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_the_clamped_gate_of_gpt_oss() -> None:
    layer = feed_forward(6, Gated(intermediate_size=10, activation="swiglu_oai"))
    weights = weights_of(layer)
    x = 8 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    gate = (x.double() @ weights["gate_proj.weight"].T).clamp(max=7.0)
    up = (x.double() @ weights["up_proj.weight"].T).clamp(-7.0, 7.0)
    assert (gate == 7).any()
    assert (up.abs() == 7).any()
    expected = (through(lambda g: g * sigmoid(1.702 * g), gate) * (up + 1)) @ weights["down_proj.weight"].T
    torch.testing.assert_close(layer(x, implementation("standard")).double(), expected, rtol=1e-5, atol=1e-4)


def test_scales_of_a_gated_feed_forward() -> None:
    plain, scaled = (
        feed_forward(6, Gated(intermediate_size=10, gate_scale=g, output_scale=o)) for g, o in ((1.0, 1.0), (0.5, 3.0))
    )
    weights_of(plain)
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        scaled.gate_proj.weight.mul_(2.0)  # type: ignore[union-attr]
        x = torch.randn(3, 6)
        torch.testing.assert_close(scaled(x, implementation("standard")), 3 * plain(x, implementation("standard")))


# Positions

TRAINED = 32


def frequencies_of_transformers(kind: str, parameters: dict[str, Any], seq_len: int, dim: int) -> tuple[Tensor, float]:
    config = transformers.LlamaConfig(
        hidden_size=4 * dim,
        num_attention_heads=4,
        head_dim=dim,
        max_position_embeddings=TRAINED if kind == "dynamic" else 4 * TRAINED,
        rope_parameters={"rope_type": kind, "rope_theta": 5000.0, **parameters},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=seq_len)
    return frequencies, float(factor)


SHORT, LONG = ([start + 0.37 * i for i in range(8)] for start in (1.0, 1.6))
ORIGINAL = {"original_max_position_embeddings": TRAINED}
SCALINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {"factor": 2.5}),
    "dynamic": ("dynamic", {"factor": 3.0}),
    "yarn": ("yarn", {"factor": 4.0, **ORIGINAL}),
    "yarn, other limits": ("yarn", {"factor": 16.0, "beta_fast": 6.0, "beta_slow": 0.5, **ORIGINAL}),
    "yarn, not truncated": ("yarn", {"factor": 8.0, "truncate": False, **ORIGINAL}),
    "yarn, mscale": ("yarn", {"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9, **ORIGINAL}),
    "yarn, factor on attention": ("yarn", {"factor": 4.0, "attention_factor": 1.3, **ORIGINAL}),
    "llama3": ("llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}),
    "llama3, other limits": ("llama3", {"factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 3.0, **ORIGINAL}),
    "proportional": ("proportional", {"factor": 2.0, "partial_rotary_factor": 0.5}),
    "longrope": ("longrope", {"factor": 4.0, "short_factor": SHORT, "long_factor": LONG, **ORIGINAL}),
}


@pytest.mark.parametrize("seq_len", [TRAINED // 2, TRAINED, TRAINED + 1, 3 * TRAINED])
@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies_equal_transformers(name: str, seq_len: int) -> None:
    kind, parameters = SCALINGS[name]
    expected, factor = frequencies_of_transformers(kind, parameters, seq_len, 16)
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    part = fields.pop("partial_rotary_factor", None)
    rope = Rope(theta=5000.0, rotary_dim=part and int(16 * part), scaling=RopeScaling(kind=kind, **fields))  # type: ignore[arg-type]
    trained = TRAINED if kind == "dynamic" else 4 * TRAINED
    actual, ours = inverse_frequencies(rope, 16, seq_len=seq_len, max_positions=trained, device=torch.device("cpu"))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0.0)
    assert ours == pytest.approx(factor, rel=1e-6)
    plain, _ = inverse_frequencies(
        Rope(theta=5000.0), 16, seq_len=seq_len, max_positions=trained, device=torch.device("cpu")
    )
    changed = kind != "dynamic" or seq_len > TRAINED
    assert torch.equal(actual, plain) == (not changed)


@pytest.mark.parametrize("rotary_dim", [None, 4])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_turns_pairs_by_angles(interleaved: bool, rotary_dim: int | None) -> None:
    """Each pair is a complex number times e^(i·p·θ^(-2j/R)), in fp64. Dimensions past R stay the same."""
    rotation = rotation_of(Rope(theta=100.0, rotary_dim=rotary_dim, interleaved=interleaved), 8, None)
    assert rotation is not None
    positions = torch.tensor([[0, 1, 5], [7, 90, 3]])
    x = torch.randn(2, 3, 3, 8, generator=torch.Generator().manual_seed(0))  # [B, N, S, H]
    actual = rotate(x, rotation.tables(positions, 91), interleaved=interleaved)
    turned = rotary_dim or 8
    for b in range(2):
        for s in range(3):
            for j in range(turned // 2):
                pair = [2 * j, 2 * j + 1] if interleaved else [j, j + turned // 2]
                angle = float(positions[b, s]) * 100.0 ** (-2 * j / turned)
                for n in range(3):
                    expected = complex(*x[b, n, s, pair].tolist()) * complex(math.cos(angle), math.sin(angle))
                    assert actual[b, n, s, pair].tolist() == pytest.approx([expected.real, expected.imag], abs=1e-5)
    assert torch.equal(actual[..., turned:], x[..., turned:])


def test_every_rotation_is_computed_once_per_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers share a table if their rotations are equal, and only then."""
    computed: list[str] = []
    usual = Rotation.tables

    def noted(self: Rotation, positions: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
        computed.append(self.name)
        return usual(self, positions, seq_len)

    monkeypatch.setattr(Rotation, "tables", noted)
    near, far = small.gqa(positions=Rope(theta=100.0)), small.gqa()
    model = small.model_of(small.small(near, far, small.gqa(head_dim=16), layers=9))
    model(small.prompt(1, 4))
    assert len(computed) == len(set(computed)) == 3


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (1, [2.0**-8]),
        (2, [2.0**-4, 2.0**-8]),
        (4, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]),
        (6, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]),
        (12, [*(2.0**-i for i in range(1, 9)), *(2.0 ** -(0.5 + i) for i in range(4))]),
    ],
)
def test_slopes_of_alibi_equal_the_paper(heads: int, expected: list[float]) -> None:
    """2^n heads have a geometric series. Others have that of the power below, then every second slope of the next."""
    assert alibi_slopes(heads).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("heads", [1, 3, 8, 12, 25, 71, 112])
def test_slopes_of_alibi_equal_transformers(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 3), heads, torch.float32)  # slope · position
    torch.testing.assert_close(alibi_slopes(heads), theirs[:, 0, 1])


@pytest.mark.parametrize("width", [8, 7])
def test_sinusoids_equal_the_paper(width: int) -> None:
    positions = torch.tensor([[0, 1, 2, 1000]])
    actual = sinusoids(SinusoidalPositions(), positions, width, torch.float32)[0]
    for row, position in zip(actual.tolist(), positions[0].tolist(), strict=True):
        for dim, value in enumerate(row):
            angle = position / 10000 ** (2 * (dim // 2) / width)
            assert value == pytest.approx(math.cos(angle) if dim % 2 else math.sin(angle), abs=1e-4)


@pytest.mark.parametrize(
    ("causal", "buckets", "distance"), [(True, 1, 128), (True, 8, 4), (False, 3, 128), (False, 16, 4)]
)
def test_buckets_without_room_for_far_distances_are_refused(causal: bool, buckets: int, distance: int) -> None:
    mixer = small.gqa(causal=causal)
    with pytest.raises(SpecError, match="no buckets for far distances"):
        small.small(mixer, positions=RelativeBias(num_buckets=buckets, max_distance=distance))
    small.small(mixer, positions=RelativeBias(num_buckets=max(buckets, 4), max_distance=distance + 1))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets_equal_transformers(bidirectional: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    queries, keys = torch.arange(200)[None], torch.arange(200)[None]
    actual = relative_buckets(
        RelativeBias(num_buckets=32, max_distance=128), queries, keys, bidirectional=bidirectional
    )
    distance = keys[:, None, :] - queries[:, :, None]
    expected = T5Attention._relative_position_bucket(distance, bidirectional, num_buckets=32, max_distance=128)
    assert torch.equal(actual, expected)
