"""A small model and short settings, for tests in this process and in others."""

from __future__ import annotations

from typing import Any

import msgspec

from llmbench.learn.data import Corpus, corpus_of
from llmbench.learn.markov import markov_source
from llmbench.learn.settings import Settings
from llmbench.spec.catalog import load_bundled
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

SETTINGS = Settings(steps=20, batch=4, seq_len=16, warmup=3, validate_every=5, validation_batches=2)


def spec(**changes: Any) -> ModelSpec:
    """nanoGPT's model for a CPU with two layers of width 32."""
    small = {"num_hidden_layers": 2, "hidden_size": 32, "head_dim": 8, "intermediate_size": 64}
    return override(load_bundled("nanogpt-cpu"), {**small, "published_parameters": None, **changes})


def settings(**changes: Any) -> Settings:
    """The short settings with some fields changed."""
    return msgspec.structs.replace(SETTINGS, **changes)


def text() -> Corpus:
    """A short synthetic text with eight symbols."""
    source = markov_source("8,2,0")
    return corpus_of("markov:8,2,0", source.text(20_000), vocab_size=source.symbols, floor=source.entropy_rate())
