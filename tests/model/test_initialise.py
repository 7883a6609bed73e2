"""The first values of weights, and the layers that the stability of training is compared with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from llmbench import model as models
from llmbench.errors import SpecError, UnsupportedError
from llmbench.model.initialise import Initialisation
from llmbench.model.sigma_reparam import bake, reparametrise
from llmbench.model.trace import trace
from llmbench.spec.catalog import load_bundled
from llmbench.spec.deepnorm import deepnorm
from llmbench.spec.override import override

INITS: list[Initialisation] = ["gpt2", "scaled", "xavier", "vaswani", "deepnorm"]


def wide() -> Any:
    """A spec of six layers, wide enough to measure the standard deviation of a matrix to a percent."""
    shape = {"vocab_size": 512, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32}
    return override(load_bundled("gpt2"), shape | {"num_hidden_layers": 6, "layers.*.ffn.intermediate_size": 512})


@pytest.mark.parametrize("init", INITS)
def test_the_standard_deviation_of_every_matrix(init: Initialisation) -> None:
    """It is 0.02, or 0.02 / √(2 · 6) into the residual stream with `scaled`. Xavier's variance is 2 / (in + out).
    DeepNorm multiplies some of Xavier's matrices by 48^-¼. Biases are zero, norms the identity."""
    model = models.build(wide(), init=init, seed=5)
    seen = {"into": 0, "others": 0}
    for name, tensor in model.named_parameters():
        if tensor.dim() < 2:
            assert torch.equal(
                tensor, torch.ones_like(tensor) if "norm" in name and "weight" in name else tensor * 0
            ), name
            continue
        into = name.endswith(("o_proj.weight", "down_proj.weight"))
        seen["into" if into else "others"] += 1
        expected = 0.02 / math.sqrt(12) if into and init == "scaled" else 0.02
        if init in ("vaswani", "deepnorm") and "embedding" in name:
            expected = 128**-0.5
        elif init not in ("gpt2", "scaled"):
            expected = math.sqrt(2 / (tensor.shape[0] + tensor.shape[1]))
            assert init == "deepnorm" or tensor.abs().max() <= math.sqrt(3) * expected * 1.0001, name
            if init == "deepnorm" and not name.endswith(("q_proj.weight", "k_proj.weight")):
                expected *= 48**-0.25
        # The standard deviation of n samples has a relative error of 1/√(2n), less if they are uniform. Five of these.
        assert float(tensor.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * tensor.numel())), name
        assert abs(float(tensor.mean())) <= 5 * expected / math.sqrt(tensor.numel()), name
    assert seen == {"into": 12, "others": 6 * 4 + 2}


@pytest.mark.parametrize("init", INITS)
def test_the_seed_determines_all_weights(init: Initialisation) -> None:
    state = torch.random.get_rng_state()
    same, again, other = (dict(models.build(wide(), init=init, seed=seed).named_parameters()) for seed in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    for name, tensor in same.items():
        assert torch.equal(tensor, again[name]), name
        if tensor.dim() > 1:
            assert not torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    ("layers", "alpha", "beta"), [(6, 1.8612, 0.3799), (12, 2.2134, 0.3195), (100, 3.7606, 0.1880)]
)
def test_the_constants_of_deepnorm(layers: int, alpha: float, beta: float) -> None:
    """α⁴ = 2·layers and β⁴ = 1 / (8·layers)."""
    assert deepnorm(layers) == pytest.approx((alpha, beta), abs=1e-4)


def test_a_layer_with_deepnorm_is_norm_of_alpha_x_plus_f_of_x() -> None:
    alpha = deepnorm(1).alpha
    shape = {"num_hidden_layers": 1, "layers.block.placement": "post", "layers.block.skip_scale": alpha}
    model = models.build(override(load_bundled("nanogpt-cpu"), shape), init="deepnorm")
    x, attended, fed, out = states(model)
    assert torch.allclose(x, model.embedding.weight[:9] + model.position_embedding.weight[:9], atol=1e-6)
    for added in (attended, fed):
        x = functional.layer_norm(alpha * x + added, (128,))
    assert torch.allclose(out, x, atol=1e-5)


def test_deepnorm_refuses_models_that_its_paper_treats_differently() -> None:
    for name in ("t5-small", "mamba-130m"):
        with pytest.raises(UnsupportedError, match="deepnorm"):
            models.build(override(load_bundled(name), {"hidden_size": 64, "vocab_size": 96}), init="deepnorm")


def states(model: models.Decoder) -> list[Tensor]:
    """The input of the first layer, the output of its attention, that of its feed-forward, and its own output."""
    block, kept = model.layers[0], []
    block.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0].whole()))
    block.get_submodule("attention").register_forward_hook(lambda *call: kept.append(call[-1][0]))
    block.get_submodule("ffn").register_forward_hook(lambda *call: kept.append(call[-1]))
    block.register_forward_hook(lambda *call: kept.append(call[-1][0].whole()))
    with torch.no_grad():
        model(torch.arange(9)[None])
    return kept


def test_a_layer_without_residual_connections_returns_the_output_of_its_feed_forward() -> None:
    spec = override(load_bundled("nanogpt-cpu"), {"skip_scale": 0})
    _, _, fed, out = states(models.build(spec))
    assert torch.equal(fed, out)
    for op in trace(spec, seq_len=32, batch=2).ops:
        if op.layer:  # not the loss, which also saves a number
            assert (op.forward_flops, op.saved_bytes) == (op.traced_flops, op.traced_saved_bytes), op.name
        assert "residual" not in op.name
    with pytest.raises(SpecError, match="skip_scale"):
        override(load_bundled("falcon-7b"), {"skip_scale": 0})


def test_sigma_reparam_divides_each_matrix_by_its_largest_singular_value() -> None:
    torch.manual_seed(0)
    model = models.build(override(load_bundled("nanogpt-cpu"), {"num_hidden_layers": 1}), init="xavier")
    tokens, before = torch.arange(9)[None], model.layers[0].get_submodule("ffn.up_proj").weight.detach().clone()
    count = sum(p.numel() for p in model.parameters())
    reparametrise(model)
    assert sum(p.numel() for p in model.parameters()) == count + 6
    for _ in range(100):
        model(tokens)  # each pass is one step of power iteration
    layer = model.layers[0].get_submodule("ffn.up_proj")
    largest = float(np.linalg.svd(before.double().numpy(), compute_uv=False)[0])
    assert torch.allclose(layer.weight, before / largest, rtol=1e-3)
    model(tokens, targets=tokens).backward()
    gains = [p for name, p in model.named_parameters() if name.endswith(".gain")]
    assert len(gains) == 6
    assert all(gain.grad is not None and gain == 1 and gain.grad != 0 for gain in gains)
    with torch.no_grad():
        gains[0].fill_(2.0)
        logits = model.eval()(tokens)
        bake(model)
        assert torch.allclose(model(tokens), logits, atol=1e-6)
    assert sum(p.numel() for p in model.parameters()) == count


def test_memory_is_allocated_once() -> None:
    """Building allocates each parameter once, in its final format, and converts none from fp32."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Allocated(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and not out.is_meta and func._schema.name.startswith("aten::empty"):
                Allocated.bytes += out.nbytes
            return out

    with Allocated():
        model = models.build(wide(), dtype=torch.bfloat16)
    nbytes = sum(p.nbytes for p in dict.fromkeys(model.parameters()))
    assert nbytes <= Allocated.bytes <= nbytes * 1.01
