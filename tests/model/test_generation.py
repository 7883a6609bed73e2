"""Generation: greedy tokens equal transformers', batches equal single rows, and drawn tokens have their probability."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llmbench import model as models
from llmbench.errors import CannotRunError, SpecError, UnknownNameError, UnsupportedError
from llmbench.model.cache import CACHE_KINDS
from llmbench.model.generation import COLDEST, choose, generate, probabilities, stream
from llmbench.model.mixers import new_cache

from . import small

EXACT = [name for name, kind in CACHE_KINDS.items() if kind.storage is None]


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Any]:
    """A tiny LLaMA of transformers, and our model from its files."""
    folder: Path = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).float().eval()
    theirs.save_pretrained(folder)
    return theirs, models.load(folder)


@pytest.mark.parametrize("cache", EXACT)
def test_greedy_equals_transformers(llama: tuple[Any, Any], cache: str) -> None:
    theirs, ours = llama
    prompts = small.prompt(3, 6) % 60 + 3
    expected = theirs.generate(prompts, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    result = generate(ours, prompts, max_new_tokens=20, temperature=0.0, cache=cache)
    assert result.tokens.tolist() == expected[:, 6:].tolist()
    assert result.lengths.tolist() == [20] * 3


def test_different_lengths_equal_transformers_padded_on_the_left(llama: tuple[Any, Any]) -> None:
    theirs, ours = llama
    prompts, lengths = small.prompt(3, 8) % 60 + 3, torch.tensor([8, 3, 5])
    left = torch.zeros_like(prompts)
    for row, length in enumerate(lengths.tolist()):
        left[row, 8 - length :] = prompts[row, :length]
    expected = theirs.generate(
        left, attention_mask=(left > 0).long(), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    result = generate(ours, prompts, lengths=lengths, max_new_tokens=12, temperature=0.0)
    assert result.tokens.tolist() == expected[:, 8:].tolist()


@pytest.mark.parametrize("cache", EXACT)
@pytest.mark.parametrize("name", ["local and global", "mla", "mla window", "learned", "alibi", "hybrid", "chunks"])
def test_a_batch_equals_its_rows_alone(name: str, cache: str) -> None:
    """Each row also equals a forward pass over the whole sequence for every token."""
    model = small.model_of(small.SPECS[name])
    prompts, lengths = small.prompt(3, 7), torch.tensor([2, 7, 4])
    result = generate(model, prompts, lengths=lengths, max_new_tokens=9, temperature=0.0, cache=cache)
    for row, length in enumerate(lengths.tolist()):
        start = prompts[row : row + 1, :length]
        alone = generate(model, start, max_new_tokens=9, temperature=0.0, cache=cache)
        assert alone.tokens[0].tolist() == result.tokens[row].tolist()
        whole = start
        for _ in range(9):
            with torch.no_grad():
                whole = torch.cat((whole, model(whole)[:, -1:].argmax(-1)), dim=1)
        assert whole[0, length:].tolist() == result.tokens[row].tolist()


def test_the_seed_determines_the_tokens() -> None:
    model = small.model_of(small.SPECS["gqa"])
    prompts = small.prompt(2, 5)

    def generated(seed: int, **options: Any) -> list[list[int]]:
        return generate(model, prompts, max_new_tokens=15, seed=seed, **options).tokens.tolist()

    state = torch.random.get_rng_state()
    assert generated(1) == generated(1) == generated(1, cache="paged")
    assert generated(1) != generated(2)
    assert torch.equal(state, torch.random.get_rng_state())  # torch's global generator is not used
    assert generated(1, temperature=1e-4) == generated(2, temperature=0.0)
    assert generated(1, top_k=1) == generated(2, top_p=1e-6) == generated(3, temperature=0.0)
    assert generated(1, top_k=64, top_p=1.0) == generated(1)


def test_a_row_ends_with_the_stop_token() -> None:
    model = small.model_of(small.SPECS["gqa"])
    prompts = small.prompt(3, 5)
    free = generate(model, prompts, max_new_tokens=12, temperature=0.0).tokens
    stop = int(free[0, 4])
    result = generate(model, prompts, max_new_tokens=12, temperature=0.0, stop_token=stop)
    for row in range(3):
        expected = free[row].tolist()
        length = expected.index(stop) + 1 if stop in expected else 12
        assert result.lengths[row] == length
        assert result.tokens[row, :length].tolist() == expected[:length]
        assert (result.tokens[row, length:] == stop).all()
    alone = generate(model, prompts[:1], max_new_tokens=12, temperature=0.0, stop_token=stop)
    assert alone.tokens.shape[1] == alone.lengths[0] <= 5  # no step follows the end of the last row


def test_a_stream_continues_a_cache() -> None:
    model = small.model_of(small.SPECS["local and global"])
    prompts = small.prompt(2, 8)
    whole = generate(model, prompts, max_new_tokens=6, temperature=0.0).tokens
    cache = new_cache(model.spec, 2, 20, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        model(prompts[:, :5], cache=cache)
    steps = list(stream(model, prompts[:, 5:], max_new_tokens=6, temperature=0.0, cache=cache))
    assert torch.equal(torch.stack(steps, dim=1), whole)
    assert cache.lengths.tolist() == [13, 13]


def nucleus(weights: list[float], top_p: float) -> list[float]:
    """Top-p filtering by its definition."""
    chosen, total = [0.0] * len(weights), 0.0
    for index in sorted(range(len(weights)), key=lambda index: -weights[index]):
        if total >= top_p:
            break
        chosen[index] = weights[index]
        total += weights[index]
    return [weight / sum(chosen) for weight in chosen]


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.62, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 7, 50])
def test_probabilities_after_top_k_and_top_p(top_k: int | None, top_p: float) -> None:
    logits = torch.randn(20, 12, generator=generator()) * 3
    actual = probabilities(logits, 0.7, top_k, top_p)
    for row, scaled in zip(actual.tolist(), logits.double() / 0.7, strict=True):
        best = scaled.topk(min(top_k or 12, 12)).indices
        limited = torch.full_like(scaled, -torch.inf)
        limited[best] = scaled[best]
        assert row == pytest.approx(nucleus(limited.softmax(-1).tolist(), top_p), abs=1e-6)


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (4, None), (None, 0.8), (5, 0.7)])
def test_the_counts_of_drawn_tokens(top_k: int | None, top_p: float | None) -> None:
    """Counts are within five standard deviations of the binomial; a token without probability is never drawn."""
    draws = 40_000
    logits = torch.randn(1, 10, generator=generator(1)) * 1.5
    expected = probabilities(logits, 1.3, top_k, top_p)[0]
    drawn = choose(logits.expand(draws, -1), 1.3, top_k, top_p, generator=generator(2))
    counts = torch.bincount(drawn, minlength=10)
    spread = (draws * expected * (1 - expected)).sqrt()
    assert ((counts - draws * expected).abs() <= 5 * spread + 1e-3).all()
    assert int((expected > 0).sum()) == (min(top_k or 10, 10) if top_p is None else int((counts > 0).sum()))


@pytest.mark.parametrize("cache", EXACT)
def test_an_encoder_decoder_equals_transformers(cache: str, tmp_path: Path) -> None:
    """Sources of different lengths; T5's decoder starts with its padding token."""
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path, impl="standard")
    source, lengths = small.prompt(3, 11) % 60 + 3, torch.tensor([11, 4, 7])
    real = (torch.arange(11) < lengths[:, None]).long()
    expected = theirs.generate(source, attention_mask=real, max_new_tokens=9, do_sample=False, eos_token_id=None)
    start = torch.zeros(3, 1, dtype=torch.int64)
    result = generate(
        ours,
        start,
        encoder_tokens=source,
        encoder_lengths=lengths,
        max_new_tokens=9,
        temperature=0.0,
        cache=cache,
    )
    assert result.tokens.tolist() == expected[:, 1:].tolist()
    assert len({tuple(row) for row in result.tokens.tolist()}) == 3
    with pytest.raises(SpecError, match="has an encoder"):
        generate(ours, start, max_new_tokens=2)
    with pytest.raises(SpecError, match="not in the vocabulary"):
        generate(ours, start, encoder_tokens=source + 64, max_new_tokens=2)
    with pytest.raises(SpecError, match="one row per prompt: 3"):
        generate(ours, start, encoder_tokens=source[:2], max_new_tokens=2)
    with pytest.raises(SpecError, match="encoder_lengths must be between 1 and 11"):
        generate(ours, start, encoder_tokens=source, encoder_lengths=lengths + 1, max_new_tokens=2)


def test_integers_of_any_width() -> None:
    model = small.model_of(small.SPECS["gqa"])
    prompts, lengths = small.prompt(2, 6), torch.tensor([3, 6])
    expected = generate(model, prompts, lengths=lengths, max_new_tokens=4, temperature=0.0).tokens
    for kind in (torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint64):
        result = generate(model, prompts.to(kind), lengths=lengths.to(kind), max_new_tokens=4, temperature=0).tokens
        assert torch.equal(result, expected)


@pytest.mark.parametrize("temperature", [COLDEST, 1e-30, 1e-3, 1.0, 1e38])
def test_every_temperature_gives_probabilities(temperature: float) -> None:
    """Logits are far apart, where a division before the subtraction would give infinity minus infinity."""
    logits = torch.tensor([[1e38, -1e38, 0.0], [5.0, 4.999, 4.0]])
    actual = probabilities(logits, temperature)
    expected = (logits.double() / temperature).softmax(-1)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def test_refusals() -> None:
    model = small.model_of(small.SPECS["learned"])  # a table of 38 positions
    prompts = small.prompt(1, 8)
    assert generate(model, prompts, max_new_tokens=31).tokens.shape == (1, 31)
    with pytest.raises(SpecError, match="cannot read 39 tokens: its learned positions cover only 38"):
        generate(model, prompts, max_new_tokens=32)
    for arguments, message in (
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e-45}, r"temperature must be 0, or at least 1.2e-38"),
        ({"temperature": "warm"}, "temperature must be a number"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_k": True}, "top_k must be a whole number"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number"),
        ({"seed": 2**70}, "seed must be a whole number"),
        ({"stop_token": 64}, "stop_token must be a whole number from 0 to 63"),
        ({"lengths": torch.tensor([9])}, "lengths"),
        ({"lengths": torch.tensor([0])}, "lengths"),
        ({"lengths": torch.tensor([1, 2])}, "lengths"),
        ({"lengths": torch.tensor([3.0])}, "lengths must be whole numbers, not float32"),
        ({"lengths": [3]}, "lengths must be a tensor, not a list"),
        ({"tokens": [[1, 2]]}, "tokens must be a tensor, not a list"),
        ({"tokens": prompts.float()}, "tokens must be whole numbers, not float32"),
        ({"tokens": prompts > 3}, "tokens must be whole numbers, not bool"),
        ({"tokens": prompts[0]}, r"the shape \[rows, tokens\]"),
        ({"tokens": prompts[:, :0]}, r"the shape \[rows, tokens\]"),
        ({"tokens": prompts - 64}, "is not in the vocabulary, which has the tokens 0 to 63"),
        ({"tokens": torch.full((1, 2), 64)}, "token 64 is not in the vocabulary"),
        ({"tokens": prompts.to("meta")}, "are on meta, but the model is on cpu"),
        ({"encoder_tokens": prompts}, "has no encoder"),
        ({"encoder_lengths": torch.tensor([1])}, "without encoder_tokens"),
    ):
        with pytest.raises(SpecError, match=message):
            generate(model, **{"tokens": prompts, "max_new_tokens": 2, **arguments})
    cache = new_cache(model.spec, 2, 20, dtype=torch.float32, device="cpu")
    with pytest.raises(SpecError, match="the cache has 2 sequences, but there are 1 prompts"):
        stream(model, prompts, max_new_tokens=2, cache=cache)
    with pytest.raises(UnknownNameError, match="kind of cache"):
        generate(model, prompts, max_new_tokens=2, cache="paging")
    with pytest.raises(CannotRunError, match="is on meta"):
        generate(models.build(model.spec, device="meta"), prompts, max_new_tokens=2)
    encoder = small.model_of(small.small(small.gqa(causal=False)))
    with pytest.raises(UnsupportedError, match="bidirectional"):
        generate(encoder, prompts, max_new_tokens=2)
