"""Intervals and p-values against published tables and simple cases."""

from __future__ import annotations

import random

import pytest

from llmbench.learn.experiments.statistics import has_learned, paired, share_within, t_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),  # the usual table of Student's distribution, two-sided 95%
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (10, 2.228), (30, 2.042), (63, 1.998), (120, 1.980)],
)
def test_quantiles_are_those_of_the_table(degrees: int, expected: float) -> None:
    assert t_quantile(0.95, degrees) == pytest.approx(expected, abs=6e-4)
    assert share_within(t_quantile(0.95, degrees), degrees) == pytest.approx(0.95, abs=1e-9)


def test_an_interval_of_equal_pairs_is_a_point() -> None:
    assert paired([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5, 0.0)
    assert paired([0.0, 0.0]).verdict == "within noise"


def test_one_pair_tells_nothing_about_noise() -> None:
    assert paired([-1.0]).verdict == "one pair"


def test_a_known_example() -> None:
    """mean 2, standard deviation 1, three pairs: the half width is 4.303 / √3."""
    difference = paired([1.0, 2.0, 3.0])
    assert difference.high is not None
    assert difference.high - difference.mean == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert difference.p == pytest.approx(0.0742, abs=1e-4)  # t = 2 √3 with 2 degrees of freedom
    assert difference.verdict == "within noise"


def test_intervals_contain_the_true_mean_as_often_as_promised() -> None:
    draw = random.Random(0)
    found = [paired([draw.gauss(0.3, 1.0) for _ in range(4)]) for _ in range(2000)]
    share = sum((d.low or 0.0) <= 0.3 <= (d.high or 0.0) for d in found) / len(found)
    assert 0.93 < share < 0.97


def test_a_model_that_only_counts_tokens_has_learned_nothing() -> None:
    assert [has_learned(loss, 3.319) for loss in (2.0, 3.26, 3.28, 3.5, None)] == [True, True, False, False, False]
