"""Probes against the same figures in numpy, and the rules of the warnings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmbench.learn.data import Corpus
from llmbench.learn.loop import train
from llmbench.learn.probe import Probe
from llmbench.learn.probes import FIGURES, Observation, Observer
from llmbench.learn.probes.attention import floor
from llmbench.learn.probes.tokens import effective_rank
from llmbench.learn.probes.warnings import warnings_of
from llmbench.model.create import build
from llmbench.model.decoder import Decoder
from tests.learn.small import settings, spec, text

HEADS = 4


@pytest.fixture(scope="module")
def data() -> Corpus:
    return text()


class Keep(Observer):
    """An observer that also keeps the last observation with copies of all tensors that change later."""

    def __init__(self, tokens: torch.Tensor) -> None:
        super().__init__(tokens, {**FIGURES, "keep": self.keep}, every=1)

    def keep(self, seen: Observation) -> list[None]:
        self.seen = seen
        self.after = {name: value.detach().clone() for name, value in seen.model.named_parameters()}
        return []


@pytest.fixture(scope="module")
def kept(data: Corpus) -> Keep:
    model = build(spec(vocab_size=data.vocab_size, num_key_value_heads=2), init="vaswani")
    observer = Keep(data.windows(16, 3)[0])
    train(model, data, settings(steps=2, lr=1e-2), probes=[observer])
    return observer


def figure(kept: Keep, name: str) -> Any:
    return kept.observations[2][name]


def array(x: torch.Tensor) -> Any:
    return x.detach().double().numpy()


def test_gradients_and_updates_equal_numpys(kept: Keep) -> None:
    for index in range(2):
        names = [name for name in kept.after if name.startswith(f"layers.{index}.")]
        gradients = np.concatenate([array(kept.seen.gradients[name]).ravel() for name in names])
        assert figure(kept, "gradient_norm")[index] == pytest.approx(np.linalg.norm(gradients), rel=1e-9)
        before = np.concatenate([array(kept.seen.before[name]).ravel() for name in names])
        after = np.concatenate([array(kept.after[name]).ravel() for name in names])
        ratio = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert figure(kept, "update_ratio")[index] == pytest.approx(ratio, rel=1e-9)


def test_entropies_equal_numpys(kept: Keep) -> None:
    for index, map in enumerate(kept.seen.maps):
        assert map is not None
        p = array(map.probabilities)[:, :, 1:]  # the first query sees one key
        logs = np.log(p, where=p > 0, out=np.zeros_like(p))
        entropy = -(p * logs).sum(-1)
        keys = np.arange(2, 17)
        assert figure(kept, "entropy")[index] == pytest.approx(entropy.mean((0, 2)), rel=1e-9)
        assert figure(kept, "normalised_entropy")[index] == pytest.approx((entropy / np.log(keys)).mean((0, 2)))
        lowest = figure(kept, "entropy_floor")[index]
        assert all(0 <= low <= found + 1e-9 for low, found in zip(lowest, figure(kept, "entropy")[index], strict=True))


def test_a_collapsed_head_has_the_entropy_0(data: Corpus) -> None:
    """Its other keys have probabilities that are 0 in fp32, but the query sees them."""
    model = build(spec(vocab_size=data.vocab_size), init="vaswani")
    with torch.no_grad():
        for layer in model.layers:
            layer.get_submodule("attention.q_proj").weight.mul_(1e4)
    observer = Observer(data.windows(16, 3)[0], FIGURES)
    train(model, data, settings(steps=1, lr=1e-9, warmup=0), probes=[observer])
    found = observer.observations[1]
    for name in ("entropy", "normalised_entropy", "entropy_floor"):
        assert np.array(found[name]).shape == (2, HEADS)
        assert (np.array(found[name]) >= 0).all(), name  # NaN is not
        assert np.array(found[name]).max() < 0.05, name
    assert np.array(found["largest_logit"]).min() > 200


def test_tokens_equal_numpys(kept: Keep) -> None:
    for index, stream in enumerate(kept.seen.streams):
        cosines, ranks = [], []
        for tokens in array(stream):
            unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
            table = unit @ unit.T
            cosines.append(table[~np.eye(len(table), dtype=bool)].mean())
            shares = np.linalg.svd(tokens, compute_uv=False)
            shares /= shares.sum()
            ranks.append(np.exp(-(shares * np.log(shares)).sum()))
        assert figure(kept, "token_cosine")[index] == pytest.approx(np.mean(cosines), rel=1e-9)
        assert figure(kept, "token_rank")[index] == pytest.approx(np.mean(ranks), rel=1e-9)


def test_matrices_equal_numpys(kept: Keep) -> None:
    for index in range(2):
        start = f"layers.{index}."
        q = array(kept.after[start + "attention.q_proj.weight"]).reshape(HEADS, -1, 32)
        k = array(kept.after[start + "attention.k_proj.weight"]).reshape(2, -1, 32)
        for head in range(HEADS):  # two query heads share a key head
            singular = np.linalg.svd(q[head].T @ k[head // 2], compute_uv=False)[: q.shape[1]]
            shares = singular / singular.sum()
            rank = np.exp(-(shares * np.log(shares)).sum())
            assert figure(kept, "qk_rank")[index][head] == pytest.approx(rank, rel=1e-6)
        matrices = [array(w) for name, w in kept.after.items() if name.startswith(start) and w.dim() == 2]
        ranks = [np.linalg.norm(w) ** 2 / np.linalg.norm(w, 2) ** 2 for w in matrices]
        assert figure(kept, "stable_rank")[index] == pytest.approx(np.mean(ranks), rel=1e-9)
        up = array(kept.after[start + "ffn.up_proj.weight"])
        table = np.abs(np.corrcoef(up)) * 0 + np.abs(up @ up.T) / np.outer(*[np.linalg.norm(up, axis=1)] * 2)
        pairs = table[~np.eye(len(table), dtype=bool)]
        assert figure(kept, "condensation")[index] == pytest.approx((pairs > 0.9).mean())


def test_loads_of_experts_equal_numpys(data: Corpus) -> None:
    moe = {"kind": "moe", "num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 16}
    model = build(spec(vocab_size=data.vocab_size, ffn=moe))
    observer = Keep(data.windows(16, 3)[0])
    train(model, data, settings(steps=1), probes=[observer])
    for index, routing in enumerate(observer.seen.routings):
        assert routing is not None
        shares = np.bincount(array(routing.chosen).astype(int).ravel(), minlength=8) / (3 * 16 * 2)
        found = observer.observations[1]
        assert found["largest_load"][index] == pytest.approx(8 * shares.max(), rel=1e-6)
        positive = shares[shares > 0]
        assert found["load_entropy"][index] == pytest.approx(-(positive * np.log(positive)).sum() / np.log(8), rel=1e-6)
        assert found["condensation"][index] is None  # its neurons are spread over the experts


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("keys", [2, 3, 64])
def test_the_floor_is_attained_and_no_logits_get_below_it(sigma: float, keys: int) -> None:
    lowest = float(floor(torch.tensor(sigma, dtype=torch.float64), torch.tensor(keys, dtype=torch.float64)))
    extreme = np.full(keys, -sigma / np.sqrt(keys * (keys - 1)))
    extreme[0] = sigma * np.sqrt((keys - 1) / keys)
    random = np.random.default_rng(0).normal(size=(200, keys))
    random -= random.mean(1, keepdims=True)
    random *= sigma / np.linalg.norm(random, axis=1, keepdims=True)
    for logits in (extreme, *random):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        found = -(p[p > 0] * np.log(p[p > 0])).sum()
        assert found >= lowest - 1e-12
        if logits is extreme:
            assert found == pytest.approx(lowest, abs=1e-12)


def test_effective_ranks_of_known_matrices() -> None:
    values = torch.tensor([[1.0, 0.0, 0.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert effective_rank(values).tolist() == pytest.approx([1.0, 3.0, 0.0])


def test_an_observer_does_not_change_the_training(data: Corpus) -> None:
    def trained(probes: list[Probe]) -> Decoder:
        model = build(spec(vocab_size=data.vocab_size), dropout=0.1)
        train(model, data, settings(steps=3), probes=probes)
        return model

    plain, observed = trained([]), trained([Observer(data.windows(16, 2)[0], FIGURES, every=1)])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), observed.parameters(), strict=True))


def test_only_chosen_steps_are_observed(data: Corpus) -> None:
    observer = Observer(data.windows(16, 2)[0], {}, every=7)
    train(build(spec(vocab_size=data.vocab_size)), data, settings(steps=15), probes=[observer])
    assert list(observer.observations) == [1, 2, 5, 7, 10, 14]


def figures(cosine: float, first: float, entropy: float = 1.0, logit: float = 1.0) -> dict[str, Any]:
    """The figures of four layers with two heads."""
    return {
        "token_cosine": [0.2, 0.2, cosine, cosine],
        "gradient_norm": [first, 0.5, 0.5, 1.0],
        "normalised_entropy": [[1.0, 1.0], [entropy, entropy], [], [1.0, 1.0]],
        "largest_logit": [[1.0, 1.0], [logit, logit], [], [1.0, 1.0]],
    }


@pytest.mark.parametrize(
    ("later", "names"),
    [
        (figures(0.999, 0.001), ["rank collapse"]),
        (figures(0.999, 0.5), []),  # a healthy start: the tokens are similar, and the first layer learns
        (figures(0.7, 0.001), []),
        (figures(0.5, 1.0, entropy=0.01, logit=9.0), ["entropy collapse"]),
        (figures(0.5, 1.0, entropy=0.01), []),
        (figures(0.5, 1.0, entropy=0.2, logit=9.0), []),
    ],
)
def test_warnings_need_all_of_their_signs(later: dict[str, Any], names: list[str]) -> None:
    healthy = figures(0.1, 1.0)
    assert [w.name for w in warnings_of({1: healthy, 10: later, 60: later})] == names
    assert warnings_of({1: healthy, 10: later, 50: later}) == []  # too short
    assert warnings_of({1: healthy, 10: later, 30: healthy, 60: later}) == []
