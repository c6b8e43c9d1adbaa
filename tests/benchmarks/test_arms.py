"""The arms of a suite: which there are, what each hands to fine-tuning, and that no two of them are the same."""

import itertools
import math
import re
import subprocess
import sys

import pytest
import torch
from tiny import equal

from benchmarks.arms import ARMS, Asked, arms_of, find, lines
from benchmarks.settings import Arms, Cell, LineOfArms
from know import methods
from know.errors import KnowError
from know.known import Models
from know.methods import Method
from know.prediction import Overflow, predict
from know.roles import only_predicted, roles

CELL = Cell("overflow", "digits:0-4", "digits:5-9", "mlp", 1.0)
UNCHANGED = {"reset": "naive", "recalibrate": "naive", "matched_rate": "naive", "mixture": "known"}
"""Arms whose weights deliberately are those of another arm; they change how these are fine-tuned."""
ASKS_KNOWN = [name for name in ARMS if "of" in ARMS[name].options]


def start(name: str, trajectory, models, depth: int = 1, **options):
    """What an arm hands to fine-tuning."""
    return ARMS[name].function(Asked(trajectory, models, depth, 0, "carry"), **options)


def every_line():
    """The lines of `methods: all`, and those that need the authors' networks."""
    outside = Arms(references=["naive"], methods={"released": None, "wnn": None})
    return lines(Arms(references=["naive"])) + lines(outside)


# which there are


def test_all_takes_every_method_and_arm_that_is_always_here_with_its_variants():
    by_name = {line.name: line for line in lines(Arms(references=["naive"]))}
    outside = {"released", "wnn", "shipped"}
    assert {line.entry.name for line in by_name.values()} == {*methods.names(), *ARMS} - outside
    for name, options in (("rre", {}), ("rre_global", {"scope": "model"}), ("meta_linear_theta0", {"theta_0": True})):
        assert by_name[name].options.items() >= options.items()
        assert by_name[name].depths == by_name[name].entry.depths


def test_a_line_may_name_its_method_options_and_depths():
    entries = {
        "half": LineOfArms(method="linear", options={"step": 0.5}, depths=[2]),
        "rre_all": LineOfArms(method="rre", options={"scope": "model"}),
        "linear": None,
    }
    by_name = {line.name: line for line in lines(Arms(references=["naive"], methods=entries))}
    assert {name: (line.entry.name, line.depths) for name, line in by_name.items()} == {
        "half": ("linear", (2,)),
        "linear": ("linear", (1, 3)),
        "rre_all": ("rre", ()),
    }
    assert by_name["half"].options == {"step": 0.5}
    assert by_name["rre_all"].options["scope"] == "model"


@pytest.mark.parametrize("name", ["rre", "mean", "recalibrate"])
def test_depths_of_what_has_none_are_refused(name):
    entries = {"mine": LineOfArms(method=name, depths=[1])}
    with pytest.raises(KnowError, match=rf"arms\.methods\.mine: {name} has no depth"):
        lines(Arms(references=["naive"], methods=entries))


def test_an_unknown_name_and_option_are_named():
    with pytest.raises(KnowError, match="unknown method or arm 'matched_rat': did you mean 'matched_rate'"):
        find("matched_rat")
    for name in ARMS:
        with pytest.raises(KnowError, match=f"option of arm {name} 'stepp'"):
            ARMS[name].check_options({"stepp": 1.0})
    with pytest.raises(KnowError, match=r"option of of arm mixture: .*did you mean 'released'"):
        ARMS["mixture"].check_options({"of": "releasd"})


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_says_what_it_is(name):
    arm = find(name)
    assert arm.name == name
    assert 20 < len(arm.summary) < 120
    assert arm.summary.endswith((".", ":"))
    assert arm.reference
    assert all(depth >= 1 for depth in arm.depths)
    assert not isinstance(arm, Method)
    assert name not in methods.names()


def test_the_names_need_no_torch():
    code = "import sys, benchmarks.arms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# what they hand to fine-tuning


@pytest.fixture(params=[1, 3])
def depth(request) -> int:
    return request.param


@pytest.mark.parametrize("name", ["reset", "recalibrate"])
def test_normalisation_is_all_that_reset_and_recalibrate_change(name, trajectory):
    begun = start(name, trajectory, Models({}))
    assert equal(begun.weights, trajectory.theta_0)
    assert (begun.normalisation, begun.rates) == (name, {})
    assert ARMS[name].normalisation == name


def test_mixture_has_the_weights_of_known_and_fresh_normalisation(depth, trajectory, models):
    begun = start("mixture", trajectory, models, depth)
    assert equal(begun.weights, predict(trajectory, "known", depth, known=models))
    assert begun.normalisation == ARMS["mixture"].normalisation == "reset"


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_matched_rate_is_the_ratio_of_norms(power, depth, trajectory, models):
    known = predict(trajectory, "known", depth, known=models)
    begun = start("matched_rate", trajectory, models, depth, power=power)
    assert equal(begun.weights, trajectory.theta_0)
    assert list(begun.rates) == list(only_predicted(roles(trajectory.theta_0)))
    assert len(set(begun.rates.values())) > 1
    for name, factor in begun.rates.items():
        ratio = float(trajectory.theta_0[name].norm() / known[name].norm())
        assert factor == pytest.approx(ratio**power, rel=1e-5)


def test_rates_are_finite_and_positive_for_zeros_and_overflow_is_an_error(write_trajectory, models, overflowing):
    zeros = write_trajectory([{"weight": torch.zeros(3, 3), "bias": torch.zeros(3)} for _ in range(5)])
    assert all(0 < factor < math.inf for factor in start("matched_rate", zeros, models).rates.values())
    ones = write_trajectory([{"weight": torch.ones(3, 3)} for _ in range(5)], name="ones")
    for name in ASKS_KNOWN:
        with pytest.raises(Overflow, match=r"overflows at tensor 'weight'"):
            start(name, ones, Models(overflowing))


@pytest.mark.parametrize("name", ASKS_KNOWN)
def test_an_arm_may_be_measured_against_the_networks_of_the_authors(name, depth, trajectory, models):
    swapped = Models({"known": models["released"]})
    authors = start(name, trajectory, models, depth, of="released")
    expected, ours = start(name, trajectory, swapped, depth), start(name, trajectory, models, depth)
    assert equal(authors.weights, expected.weights)
    assert authors.rates == expected.rates
    assert not equal(authors.weights, ours.weights) or authors.rates != ours.rates


def test_no_two_arms_have_the_same_weights_but_those_that_leave_them_unchanged(trajectory, models):
    """On a real trajectory, every method and arm at its declared depths and variants."""
    entries = {line.name: LineOfArms(method=line.entry.name, options=line.options) for line in every_line()}
    weights, expected = {}, {}
    for arm in arms_of(Arms(references=["naive"], methods=entries), CELL):
        weights[arm.name] = arm.start(trajectory, models, 0).weights
        same = UNCHANGED.get(arm.predictor)
        depth = re.search("_x[0-9]+$|$", arm.name).group()
        expected[arm.name] = f"{same}{depth if same != 'naive' else ''}" if same else arm.name
    assert len(weights) > 40
    assert set(expected.values()) <= set(weights)
    for a, b in itertools.combinations(weights, 2):
        distance = max(float((weights[a][key] - weights[b][key]).abs().max()) for key in weights[a])
        assert (distance < 1e-5) == (expected[a] == expected[b]), f"{a} and {b} differ by {distance:g}"
