"""Rules for the choice of learning rates, and what is lost by them."""

import numpy as np
import pytest

from benchmarks.rate_rules import RULES, Truth, losses


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_a_top_on_the_grid_of_a_curve_without_noise(rule):
    for best in (2, 3, 4):
        scores = -8.0 * (np.arange(7) - best) ** 2
        if rule == "**a + b log(rate) - c rate, three points**":  # exact for curves of its own kind
            scores = 20 * (np.log(2.0) * (np.arange(7) - best) - 2.0 ** (np.arange(7) - best))
        assert RULES[rule](scores, 2.0) == pytest.approx(best, abs=1e-9)


def test_nothing_is_lost_on_a_flat_truth_and_less_with_more_pilots(monkeypatch):
    monkeypatch.setattr("benchmarks.rate_rules.CHOICES", 400)

    def flat(dice: np.random.Generator) -> Truth:
        return np.zeros_like

    def peak(dice: np.random.Generator) -> Truth:
        return lambda octaves: -3 * octaves**2

    assert (losses(flat, 2)["loss"] == 0).all()
    few, many = losses(peak, 1)["loss"], losses(peak, 64)["loss"]
    assert (few > 0).all()
    assert (many <= few).all()
