"""Decoding with a KV cache: each step stores one key and one value, and reads all earlier ones."""

from __future__ import annotations

import math

import torch

from llmbench.learn.worked.reference import model_attention, tiny_spec
from llmbench.learn.worked.step import Case, Check, Worked, difference, dot, draw, number, step
from llmbench.model.layer_cache import RowShape, SlotCache
from llmbench.sizing.kvcache import kv_cache

DEFAULT = Case(tokens=3, dim=4)


def work(case: Case) -> Worked:
    """Decode T tokens one after another with one head, and compare the outputs with one pass over all tokens."""
    T, D, seed = case
    generator = torch.Generator().manual_seed(seed)
    q, k, v = draw(generator, T, D), draw(generator, T, D), draw(generator, T, D)
    spec = tiny_spec(D)
    cache = SlotCache(1, T, RowShape(1, (D,), (D,)), dtype=torch.float64, device="cpu")
    steps = [
        step("queries", "q, one row per token", q, column="ch."),
        step("keys", "k", k, column="ch."),
        step("values", "v", v, column="ch."),
    ]
    outputs, counts = [], []
    for t in range(T):
        cache.fill(k[None, None, t : t + 1], v[None, None, t : t + 1], torch.tensor([[t]]), None)
        stored_k = cache.gathered_keys(torch.float64)[0, 0, : t + 1]
        stored_v = cache.gathered_values(torch.float64)[0, 0, : t + 1]
        scores = q[t] @ stored_k.T / math.sqrt(D)
        weights = scores.softmax(-1)
        outputs.append(weights @ stored_v)
        # bf16: 2 bytes per number
        counts.append([1.0, float(t), float(t + 1), float(kv_cache(spec, t + 1, kv_dtype="bf16").bytes_total)])
        steps.append(
            step(
                f"token {t}: weights",
                "s[j] = q·k[j] / √D, w = softmax over the stored keys of s",
                torch.stack((scores, weights)),
                row="",
                rows=["s", "w"],
                column="key",
                example=f"s[0] = ({dot(q[t], stored_k[0])}) / √{D} = {number(scores[0])}",
                note=f"New: k[{t}] and v[{t}]. "
                + ("The cache was empty." if not t else f"Read from the cache: {_range(t)}."),
            )
        )
        steps.append(
            step(
                f"token {t}: output",
                "o = w v",
                outputs[-1][None],
                row="",
                rows=["o"],
                column="ch.",
                example=f"o[0] = {dot(weights, stored_v[:, 0])} = {number(outputs[-1][0])}",
            )
        )
    total = T * (T + 1) // 2
    steps.append(
        step(
            "the cache after each token",
            "bytes = 2 (key, value) × 1 KV head × D numbers × tokens × 2 bytes (bf16)",
            counts,
            row="after token",
            columns=["keys computed", "keys read again", "keys stored", "bytes"],
            example=f"bytes = 2 × 1 × {D} × {T} × 2 = {number(counts[-1][-1])}",
            note=f"Without a cache, the {T} steps would compute {total} keys instead of {T}.",
        )
    )
    decoded = torch.stack(outputs)
    whole = model_attention(q, k, v, causal=True)
    steps.append(
        step(
            "one pass over all tokens",
            "causal attention of the PyTorch model, without a cache",
            whole,
            column="ch.",
            note="Each row equals the output of the step that decoded this token.",
        )
    )
    return Worked(
        "decoding with a KV cache",
        case,
        steps,
        [Check("attention of the PyTorch model in one pass", difference(decoded, whole))],
    )


def _range(stored: int) -> str:
    return "key and value 0" if stored == 1 else f"keys and values 0 to {stored - 1}"
