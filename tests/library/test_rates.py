"""The choice of learning rates: what holds for any scores."""

import itertools
import math

import numpy as np
import pytest

from know.rates import choose_rates, lowest

GRID = [1e-4 * 2**k for k in range(7)]


def choose(scores, grid=GRID, **options):
    """The choice for one name with these scores along the grid, lower is better: numbers or tuples."""
    of = {rate: score if isinstance(score, tuple) else (score,) for rate, score in zip(grid, scores, strict=True)}
    _, chosen = choose_rates(["one"], grid, lambda points: None, lambda name, rate: of[rate], **options)
    return chosen["one"]


# one curve through three points


def test_the_lowest_point_of_a_curve_of_this_kind_is_found():
    rng = np.random.default_rng(0)
    for _ in range(100):
        falls, rises = rng.uniform(0.1, 10, 2)
        rates = falls / rises * np.array([rng.uniform(0.2, 0.9), 1, rng.uniform(1.1, 5)])
        scores = 7 - falls * np.log(rates) + rises * rates
        assert lowest(rates, scores) == pytest.approx(falls / rises)


def test_the_rate_lies_between_the_neighbours_and_neither_unit_nor_offset_of_the_scores_matters():
    rng = np.random.default_rng(1)
    for _ in range(300):
        rates = np.exp(np.cumsum(rng.uniform(0.1, 2, 3)))
        drops = 10 ** rng.uniform(-6, 6, 2)
        scores = np.array([drops[0], 0, drops[1]])
        found = lowest(rates, scores)
        assert rates[0] < found < rates[2]
        assert lowest(rates, 3 * scores) == pytest.approx(found)
        assert lowest(rates, scores + drops.min()) == pytest.approx(found, rel=1e-4)
        assert lowest(1e-4 * rates, scores) == pytest.approx(1e-4 * found)


def test_a_worse_neighbour_moves_the_rate_away_by_no_more_than_half_a_factor_of_2():
    near = [math.log2(lowest([0.5, 1, 2], [1, 0, drop])) for drop in (0.1, 1, 10, 1e9)]
    assert near == sorted(near, reverse=True)
    assert near[-1] > -0.5
    assert math.log2(lowest([0.5, 1, 2], [1e9, 0, 1])) < 0.55


def test_equal_scores_leave_the_middle():
    assert lowest([0.1, 0.2, 0.3], [4, 4, 4]) == 0.2


# the choice


def test_the_best_point_is_kept_and_the_rate_is_near_it_and_prints_exactly():
    rng = np.random.default_rng(2)
    for _ in range(200):
        scores = rng.normal(size=7)
        found = choose(scores)
        place = int(scores.argmin())
        assert found.point == GRID[place]
        assert found.on_edge == (place in (0, 6))
        if found.on_edge:
            assert found.rate == found.point
        else:
            near = slice(place - 1, place + 2)
            assert found.rate == pytest.approx(lowest(GRID[near], scores[near]), rel=5e-3)
            assert float(f"{found.rate:.3g}") == found.rate


@pytest.mark.parametrize("bad", [math.inf, math.nan, (-0.5, math.inf), (-0.5, math.nan)])
@pytest.mark.parametrize("place", [2, 4])
def test_a_neighbour_that_diverged_leaves_the_point_itself(bad, place):
    scores = [(score, 0.0) for score in [-0.1, -0.3, -0.6, -0.8, -0.7, -0.2, -0.1]]
    assert choose(scores).rate != GRID[3]
    scores[place] = bad if isinstance(bad, tuple) else (bad, 0.0)
    found = choose(scores)
    assert (found.rate, found.point) == (GRID[3], GRID[3])


def test_points_that_diverged_are_never_best():
    for lost in itertools.combinations(range(7), 3):
        scores = [math.nan if place in lost else -1.0 for place in range(7)]
        first = min(set(range(7)) - set(lost))
        assert choose(scores).point == GRID[first], lost


def test_where_all_diverged_the_lowest_rate_is_taken():
    assert choose([math.inf] * 7).rate == GRID[0]
    assert choose([math.nan] * 7).rate == GRID[0]


def test_ties_go_to_what_comes_after_the_mean_and_then_to_the_lower_rate():
    level = [(-0.5, 0.4)] * 2 + [(-0.9, 0.4)] * 3 + [(-0.5, 0.4)] * 2
    assert choose(level).point == GRID[2]
    assert GRID[2] < choose(level).rate < GRID[3]
    lower = [*level[:3], (-0.9, 0.3), *level[4:]]
    assert choose(lower).point == choose(lower).rate == GRID[3]  # as good on both sides


def test_points_that_differ_in_the_fourth_digit_alone_are_not_left_by_rounding():
    grid = [1.0001, 1.0002, 1.0003]
    assert choose([1.0, 0.0, 1.0], grid).rate == 1.0002


def test_the_grid_grows_at_its_edges_for_all_names_alike():
    asked = []
    best = {"one": 8.0, "other": 1.0}
    grid, chosen = choose_rates(
        list(best), [2.0, 4.0], asked.extend, lambda name, rate: (abs(math.log2(rate / best[name])),), extensions=3
    )
    assert grid == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert sorted(asked) == grid
    assert {name: each.point for name, each in chosen.items()} == best
    assert [each.on_edge for each in chosen.values()] == [False, True]
    assert chosen["other"].rate == 1.0
