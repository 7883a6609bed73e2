"""Attention beyond its cases: counts of pairs, queries without keys, layouts, compilation, refused arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from llmbench.kernels import launching
from llmbench.kernels.attention.attention import KERNEL, Case, attention, cost, flash_product, inputs, reference
from llmbench.kernels.attention.tiles import Reach, seen_pairs, split_width
from llmbench.kernels.kernel import Random
from llmbench.kernels.proof.accuracy import check_against
from llmbench.sizing.lower.pairs import visible_pairs

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random(seed: int = 0, dtype: torch.dtype = torch.float32) -> Random:
    return Random(seed, dtype, DEVICE)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 2, 3, 5, 8, 40])
def test_pairs_are_counted_exactly(causal: bool, window: int | None) -> None:
    """Compare with an explicit mask, and with the sizing table if there are no more queries than keys."""
    reach = Reach.from_mask(causal, window)
    for queries in (1, 2, 7, 12):
        for keys in (1, 3, 7, 20):
            distance = torch.arange(keys) - (torch.arange(queries)[:, None] + keys - queries)
            seen = torch.ones_like(distance, dtype=torch.bool)
            if causal:
                seen &= distance <= 0
                if window is not None:
                    seen &= distance > -window
            elif window is not None:
                seen &= distance.abs() <= window // 2
            assert seen_pairs(queries, keys, reach) == int(seen.sum()), (queries, keys)
            if queries <= keys:
                assert seen_pairs(queries, keys, reach) == visible_pairs(queries, keys, causal=causal, window=window)


def test_backward_costs_two_and_a_half_forwards() -> None:
    work = cost(Case(2, 8, 2, 100, 130, 64, window=20), torch.bfloat16)
    assert 2 * work.backward_flops == 5 * work.flops


def test_a_width_is_split_with_little_padding() -> None:
    assert {width: split_width(width) for width in (8, 64, 80, 96, 128, 192, 256)} == {
        8: (16, 0),
        64: (64, 0),
        80: (64, 16),
        96: (64, 32),
        128: (128, 0),
        192: (128, 64),
        256: (256, 0),
    }


def test_a_query_without_keys_gets_zeros() -> None:
    """With more queries than keys under a causal mask, the first queries see no key."""
    arguments = inputs(Case(1, 2, 1, 9, 5, 16), random())
    for name in ("q", "k", "v"):
        arguments[name].requires_grad_()
    out, lse = attention(**arguments)
    assert (out[:, :, :4] == 0).all()
    assert (lse[:, :, :4] == -float("inf")).all()
    assert lse[:, :, 4:].isfinite().all()
    gradients = torch.autograd.grad(out.sum(), [arguments[name] for name in ("q", "k", "v")])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][:, :, :4] == 0).all()


def test_packed_sequences_do_not_see_each_other() -> None:
    """Results equal those of each sequence alone. One sequence has no queries and one has no keys."""
    lengths = ((5, 5), (0, 4), (40, 70), (3, 0), (1, 3))
    packed = inputs(Case(heads=2, kv_heads=1, head_dim=16, packed=lengths), random())
    leaves = [packed[name].requires_grad_() for name in ("q", "k", "v")]
    out, lse = attention(**packed)
    dq, dk, dv = torch.autograd.grad(out.sum(), leaves)
    assert (out[45:48] == 0).all()
    assert (dq[45:48] == 0).all()
    assert (dk[5:9] == 0).all()
    assert (dv[5:9] == 0).all()
    query, key = (packed[name].tolist() for name in ("query_starts", "key_starts"))
    for i in (0, 2, 4):
        rows, columns = slice(query[i], query[i + 1]), slice(key[i], key[i + 1])
        q, k, v = packed["q"][rows], packed["k"][columns], packed["v"][columns]
        alone, level = attention(*(x.transpose(0, 1)[None] for x in (q, k, v)), causal=True)
        assert torch.equal(out[rows], alone[0].transpose(0, 1))
        assert torch.equal(lse[:, rows], level[0])


def test_results_join_by_their_log_sum_exp() -> None:
    """The results of two parts of the keys, weighted by their log-sum-exp, give the whole, gradients included."""
    arguments = inputs(Case(1, 1, 1, 20, 40, 16, causal=False), random())
    leaves = [arguments[name].requires_grad_() for name in ("q", "k", "v")]
    q, k, v = leaves
    halves = [attention(q, k[:, :, part], v[:, :, part]) for part in (slice(0, 13), slice(13, 40))]
    lse = torch.logsumexp(torch.stack([lse for _, lse in halves]), dim=0)
    joined = sum(out * torch.exp(level - lse)[..., None] for out, level in halves)
    whole, level = attention(q, k, v)
    torch.testing.assert_close(joined, whole, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(lse, level, rtol=2e-3, atol=2e-3)
    dwhole = torch.randn_like(whole)
    gradients, expected = (torch.autograd.grad(out, leaves, dwhole) for out in (joined, whole))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-3, atol=5e-3)


def test_any_layout_is_read() -> None:
    """Slices of one projection, an odd offset and a broadcast give the same result as contiguous tensors."""
    merged = random().normal(1, 30, 3 * 2 * 16 + 1)[..., 1:]
    q, k, v = (x.unflatten(-1, (2, 16)).transpose(1, 2) for x in merged.chunk(3, dim=-1))
    k = k[:, :1].expand(1, 2, 30, 16)
    out, _ = attention(q, k, v, causal=True)
    plain, _ = attention(q.contiguous(), k.contiguous(), v.contiguous(), causal=True)
    assert torch.equal(out, plain)
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    ("fields", "by_launcher"),
    [
        ({"head_dim": 128}, True),
        ({"head_dim": 192, "v_dim": 128, "window": 9}, True),
        ({"head_dim": 64}, False),
        ({"head_dim": 128, "soft_cap": 30.0}, False),
        ({"head_dim": 128, "packed": ((5, 5), (3, 7))}, False),
        ({"head_dim": 128, "keys": 0}, False),
    ],
)
def test_the_launcher_makes_descriptors_of_sequences_of_one_length(fields: dict[str, Any], by_launcher: bool) -> None:
    arguments = inputs(Case(**{"heads": 2, "queries": 5, "keys": 7, **fields}), Random(0, torch.bfloat16, CPU))
    leaves = [arguments[name].requires_grad_() for name in ("q", "k", "v")]
    with launching.captured(90) as capture:
        out, _ = attention(**arguments)
        torch.autograd.grad(out, leaves, torch.empty_like(out))
    described = {
        launch.name: isinstance(launch.arguments["q"], TensorDescriptor)
        for launch in capture.launches
        if "q" in launch.arguments
    }
    assert described == dict.fromkeys(
        ("attention_forward", "attention_backward_keys", "attention_backward_queries"), by_launcher
    )


def test_it_compiles_without_graph_breaks() -> None:
    """The compiled op and its gradients equal the eager ones."""
    arguments = inputs(Case(1, 2, 1, 20, 20, 16, sinks=True), random())
    leaves = [arguments[name].requires_grad_() for name in ("q", "k", "v", "sinks")]
    compiled = torch.compile(
        lambda *x: attention(*x[:3], causal=True, sinks=x[3])[0], fullgraph=True, backend="aot_eager"
    )
    out, expected = compiled(*leaves), attention(**arguments)[0]
    torch.testing.assert_close(out, expected)
    for one, other in zip(
        torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "case",
    [Case(2, 4, 2, 7, 9, 8, sinks=True), Case(1, 2, 1, 9, 4, 8, v_dim=16), Case(heads=2, packed=((3, 5), (2, 0)))],
)
def test_the_gradient_with_the_steps_of_flash_attention_is_the_same(case: Case) -> None:
    arguments = inputs(case, Random(0, torch.float64, torch.device("cpu")))
    leaves = {name: x.requires_grad_() for name in KERNEL.differentiable if (x := arguments.get(name)) is not None}
    gradients = []
    for form in (KERNEL.reference, KERNEL.same_steps):
        assert form is not None
        out, lse = form(**arguments)
        # Queries that see no key have the log-sum-exp -∞, which gives no gradient.
        result = out.square().sum() + lse[lse.isfinite()].square().sum()
        gradients.append(torch.autograd.grad(result, list(leaves.values())))
    for name, first, second in zip(leaves, *gradients, strict=True):
        assert torch.allclose(first.nan_to_num(), second.nan_to_num(), rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize("seed", [136801764, 931626611])
def test_roundings_of_flash_attention_are_within_the_budget_and_a_wrong_gradient_is_not(seed: int) -> None:
    """With two keys, nearly all weight may lie on one key. Then the terms of the gradient cancel."""
    arguments = inputs(Case(keys=2, queries=8, head_dim=32), Random(seed, torch.bfloat16, torch.device("cpu")))

    def wrong(**changed: Any) -> Any:
        out, lse = flash(**changed)
        return out + 0.02 * (changed["q"] - changed["q"].detach()), lse

    def flash(**changed: Any) -> Any:
        return reference(**changed, finish=flash_product)

    def passed(run: Any) -> bool:
        verdicts = check_against(run, reference, arguments, differentiable=("q",), same_steps=KERNEL.same_steps)
        return all(verdict.passed for verdict in verdicts)

    assert passed(flash)
    assert not passed(wrong)


def test_the_reference_equals_torchs_attention() -> None:
    """The reference is itself compared with scaled_dot_product_attention."""
    arguments = inputs(Case(2, 4, 2, 20, 20, 16), random(dtype=torch.float64))
    expected = torch.nn.functional.scaled_dot_product_attention(
        arguments["q"], arguments["k"], arguments["v"], is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(reference(**arguments)[0], expected)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"head_dim": 20}, "multiples of 8"),
        ({"head_dim": 520}, "up to 512"),
        ({"kv_heads": 3}, "multiple of the number of key heads"),
    ],
)
def test_unsupported_shapes_are_refused(change: dict[str, Any], text: str) -> None:
    case = Case(1, 4, 2, 8, 8, 16)._replace(**change)
    with pytest.raises(ValueError, match=text):
        attention(**inputs(case, random()))


def test_contradictory_options_are_refused() -> None:
    arguments = inputs(Case(1, 2, 1, 8, 8, 16), random())
    for change in ({"scale": -1.0}, {"window": 0}, {"soft_cap": 0.0}, {"max_keys": 8}, {"sinks": torch.zeros(3)}):
        with pytest.raises(ValueError, match=r"positive|packed|one floating-point"):
            attention(**{**arguments, **change})
    with pytest.raises(ValueError, match="one dtype: fp16"):
        attention(**{**arguments, "q": arguments["q"].double()})
    assert KERNEL.name == "attention"
