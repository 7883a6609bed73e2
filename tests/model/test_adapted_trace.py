"""The memory of a step with adapters against a trace of llmbench's own models, whose other parts are frozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

from llmbench import model as models
from llmbench.model.create import materialise
from llmbench.model.scopes import Scopes
from llmbench.model.trace import CudaNorms, prepared, run_once
from llmbench.sizing.adapters import Adapters
from llmbench.sizing.memory import WORKSPACE_BYTES
from llmbench.sizing.training import run_memory, training_run
from llmbench.spec.catalog import load_bundled
from llmbench.spec.override import override
from tests.oracles.training_adapters import AdaptedLinear, Lora
from tests.oracles.training_memory import CudaBehaviour, StorageTracker


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("command-r-plus", "attention"),  # parallel sublayers: the feed-forward of the first layer has no gradient
        ("deepseek-v2-lite", "all-linear"),  # latent attention, shared experts
        ("qwen1.5-moe-a2.7b", "mlp"),  # the gate on shared experts is frozen
        ("gemma2-2b", "o,down"),  # norms after the sublayers
    ],
)
def test_peak_and_saved_bytes_of_a_step(name: str, targets: str) -> None:
    batch, seq = 2, 128
    spec = override(load_bundled(name), {"num_hidden_layers": 3})
    adapters = Adapters.parse(f"r=16,targets={targets}")
    run = training_run(
        spec,
        seq,
        micro_batch=batch,
        precision="bf16",
        optimizer="sgd",
        attention="standard",
        kernels="eager",
        adapters=adapters,
    )
    model = models.build(spec, impl="standard", device="meta", dtype=torch.bfloat16)
    model.requires_grad_(False)
    for op in run.stages[0].ops:
        if op.name.endswith(".lora_A"):
            for index in op.layers:
                _adapt(model, op.name.removesuffix(".lora_A").replace("{}", str(index)))
    tracker, cuda = StorageTracker(), CudaBehaviour()
    with FakeTensorMode():
        materialise(model, device="cpu", dtype=torch.bfloat16)
        tokens, labels = (torch.zeros((batch, seq), dtype=torch.int64) for _ in range(2))
        for tensor in (*model.parameters(), *model.buffers(), tokens, labels):
            tracker.add(tensor, "given")
        given = tracker.total
        with prepared(model, Scopes(model, set()), "standard"), CudaNorms(), tracker, cuda:
            logits = run_once(model, tokens)
            saved = tracker.total - given - logits.untyped_storage().nbytes()
            loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
            del logits
            cuda.in_backward = True
            loss.backward()
    ours = run_memory(run)
    assert ours.peak_bytes - WORKSPACE_BYTES == pytest.approx(tracker.peak, rel=0.01)
    assert ours.full_bytes["activations"] == pytest.approx(saved, rel=0.015)  # the mask is saved once, and not counted


def _adapt(model: nn.Module, path: str) -> None:
    """Put an adapter beside a matrix, unless an earlier layer with the same weights has done so."""
    parent, _, leaf = path.rpartition(".")
    module = model.get_submodule(parent)
    matrix = getattr(module, leaf)
    if isinstance(matrix, AdaptedLinear):
        return
    outputs, inputs = matrix.weight.shape
    with torch.device("meta"):
        adapted = AdaptedLinear(matrix, inputs, outputs, Lora(rank=16, targets=()))
    setattr(module, leaf, adapted.to(torch.bfloat16))
