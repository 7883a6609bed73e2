"""Dropout in training: the same numbers as transformers, nothing in evaluation, and refusals of kernels without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional

from llmbench import model as models
from llmbench.errors import CannotRunError, SpecError
from llmbench.model import trace
from llmbench.model.decoder import Decoder
from llmbench.model.formats import DTYPES, Format
from llmbench.model.implementations import implementation
from llmbench.model.implementations.interface import Given, Mask, Scores
from llmbench.sizing.lower import lower
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.override import override

P = 0.2
SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}


def small(name: str, *, impl: str = "standard", dropout: float = P) -> Decoder:
    spec = override(load_bundled(name), SMALL | ({"encoder.pattern": "2*block"} if "transformer" in name else {}))
    return models.build(spec, impl=impl, dropout=dropout)


def tokens(length: int = 17) -> Tensor:
    return torch.randint(3, 96, (2, length), generator=torch.Generator().manual_seed(2))


def seeded(model: Decoder, seed: int) -> Tensor:
    torch.manual_seed(seed)
    with torch.no_grad():
        logits: Tensor = model(tokens()) if model.spec.encoder is None else model(tokens(), tokens(21))
    return logits


def test_training_equals_transformers_with_the_same_random_numbers(tmp_path: Path) -> None:
    """GPT-2 applies dropout to the same tensors in the same order, so it draws the same masks from an equal seed."""
    rates = {"embd_pdrop": P, "attn_pdrop": P, "resid_pdrop": P}
    config = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, **rates)
    theirs = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager")
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path, impl="standard").train()
    ours.dropout = P
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            expected = theirs.train()(tokens()).logits
        assert (seeded(ours, seed) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["nanogpt-cpu", "transformer-base", "gemma2-2b", "falcon-7b", "deepseek-v2-lite"])
def test_dropout_acts_in_training_only_and_repeats_with_its_seed(name: str) -> None:
    plain, dropped = small(name, dropout=0.0), small(name)
    without = seeded(plain, 0)
    assert torch.equal(seeded(plain.eval(), 0), without)
    assert torch.equal(seeded(dropped.eval(), 0), without)
    first = seeded(dropped.train(), 0)
    assert torch.equal(seeded(dropped, 0), first)
    assert not torch.equal(seeded(dropped, 1), first)
    assert not torch.equal(first, without)


@pytest.mark.parametrize("impl", ["standard", "sdpa"])
def test_the_mean_of_attention_with_dropout_is_attention_without_it(impl: str) -> None:
    draws, length = 20_000, 6
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 2, length, 4, generator=generator).expand(draws, -1, -1, -1) for _ in range(3))
    positions = torch.arange(length).expand(draws, -1)
    seen = Given(k, v, Mask(positions, positions, True, None, None, True))
    attend = implementation(impl).attend
    expected = attend(q, seen, Scores(0.5))[0]
    torch.manual_seed(0)
    out = attend(q, seen, Scores(0.5, dropout=P))
    error = (out.mean(0) - expected).abs() / (out.std(0) / draws**0.5)
    assert error.max() < 5
    # The first query sees one key, so its output is 0 or v / (1 − p).
    kept = (out[:, :, 0] != 0).any(-1).float().mean()
    assert abs(kept - (1 - P)) < 0.01
    assert torch.allclose(out[:, :, 0].abs().amax(0), v[0, :, 0].abs() / (1 - P))


def test_kernels_without_dropout_refuse_it_in_training_only() -> None:
    model = small("nanogpt-cpu", impl="flash")
    with pytest.raises(CannotRunError, match="flash does not support dropout in attention"):
        model(tokens())
    assert torch.isfinite(seeded(model.eval(), 0)).all()


class OneByteMasks(trace.CudaNorms):
    """A mode in which dropout saves what it saves on a GPU: a mask of one byte per element."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.dropout:
            x, share = [*args, *(kwargs or {}).values()][:2]
            return torch.native_dropout(x, share, True)[0]
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["nanogpt-cpu", "llama2-7b", "transformer-base"])
def test_the_op_table_counts_what_dropout_saves(name: str, dtype: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks of the embedding of each stack, of every sublayer and of the probabilities, and the probabilities after
    dropout."""
    monkeypatch.setattr(trace, "CudaNorms", OneByteMasks)
    spec = trace.shortened(load_bundled(name))
    formats: dict[str, Any] = dict.fromkeys(("weight_dtype", "activation_dtype"), dtype)
    counted, traced = [], []
    for dropout in (P, 0.0):
        options = formats | {"dropout": dropout > 0, "attention": "standard", "kernels": "eager"}
        ops = lower(spec, Workload.train(32, 2, masked_pairs=True, **options))
        counted.append(sum(op.count * op.saved_bytes for op in ops))
        model = models.build(spec, impl="standard", device="meta", dtype=DTYPES[dtype], dropout=dropout)
        names = {name for op in ops for name in op.names()}
        saved = trace.traced_saved_bytes(model, names, 32, 2, DTYPES[dtype], "standard")
        traced.append(sum(saved.values()))
    assert traced[0] - traced[1] == counted[0] - counted[1] > 0


@pytest.mark.parametrize("dropout", [-0.1, 1, float("nan"), "0.1", True])
def test_a_share_outside_its_range_is_refused(dropout: float) -> None:
    with pytest.raises(SpecError, match="dropout must be"):
        models.build(load_bundled("nanogpt-cpu"), device="meta", dropout=dropout)
