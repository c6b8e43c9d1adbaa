"""The arms of a suite: which there are, what each hands to fine-tuning, and that no two of them are the same."""

import itertools
import math
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from small_model import equal

from benchmarks.arms import ARMS, Asked, arms_of, find, lines
from benchmarks.references import REFERENCES
from benchmarks.settings import Arms, Cell, LineOfArms
from know import methods
from know.errors import KnowError
from know.known import Models
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
    """The lines of `methods: all`, and those that need networks from outside."""
    outside = Arms(references=["naive"], methods={"released": None, "wnn": None, "wnn_plus": None})
    return lines(Arms(references=["naive"])) + lines(outside)


# which there are


def test_arms_are_references_and_every_method_at_its_depths():
    settings = Arms(references=list(REFERENCES))
    arms = arms_of(settings, CELL)
    names = [arm.name for arm in arms]
    assert len(set(names)) == len(names)
    assert not set(ARMS) & set(methods.names())
    count = len(settings.references)
    assert names[:count] == settings.references
    outside = {"released", "wnn", "wnn_plus", "shipped"}
    assert {arm.predictor for arm in arms[count:]} == {*methods.names(), *ARMS} - outside
    assert {"known_x2", "known_x4", "known_x8", "shrink_x8", "rre", "rre_global", "meta_linear_theta0_x2"} <= set(names)
    options = {arm.name: arm.options for arm in arms}
    assert options["meta_linear_theta0_x2"]["theta_0"]
    assert (options["rre"]["scope"], options["rre_global"]["scope"]) == ("tensor", "model")
    assert not any(arm.missing for arm in arms)
    for arm in arms:
        assert arm.group == (find(arm.predictor) if arm.predictor else REFERENCES[arm.name]).group
        assert arm.summary.endswith((".", ":"))
        assert arm.reference
    retrodiction = arms_of(settings, replace(CELL, track="retrodiction"))
    nowhere_else = {reference.name for reference in REFERENCES.values() if reference.overflow_only}
    assert nowhere_else >= {"oracle_steps", "oracle_x8", "double_steps", "local_oracle"}
    assert [arm.name for arm in retrodiction] == [name for name in names if name not in nowhere_else]


def test_depths_and_options_may_be_chosen():
    chosen = {
        "linear": LineOfArms(depths=[2], options={"step": 0.5}),
        "known": None,
        "mine": LineOfArms(method="rre", options={"scope": "model"}),
    }
    settings = Arms(references=["naive"], methods=chosen)
    arms = {arm.name: arm for arm in arms_of(settings, replace(CELL, ratio=1 / 3))}
    assert list(arms) == ["naive", "known_x3", "known_x9", "known_x27", "linear_x9", "mine"]
    assert arms["linear_x9"].options == {"step": 0.5}
    assert (arms["mine"].predictor, arms["mine"].options["scope"], arms["mine"].depth) == ("rre", "model", 0)
    with pytest.raises(KnowError, match="method or arm 'lineal': did you mean 'linear'"):
        arms_of(Arms(references=["naive"], methods={"lineal": None}), CELL)
    wrong = {"linear": LineOfArms(options={"size": 1.0})}
    with pytest.raises(KnowError, match="option of method linear 'size'"):
        arms_of(Arms(references=["naive"], methods=wrong), CELL)


@pytest.mark.parametrize("policy", ["carry", "reset", "recalibrate"])
def test_the_suites_normalisation_is_that_of_all_arms_but_those_about_it(policy):
    own = {"mixture": "reset", "reset": "reset", "recalibrate": "recalibrate"}
    for arm in arms_of(Arms(references=["naive", "oracle"]), CELL, policy):
        assert arm.normalisation == own.get(arm.predictor, policy)


OF_RELEASED = {
    "released": None,
    "wnn": None,
    "wnn_plus": None,
    "shrink_released": LineOfArms(method="shrink", options={"of": "released"}),
    "known": None,
}


def test_networks_that_are_not_here_are_arms_that_say_so(monkeypatch, tmp_path):
    settings = Arms(references=["naive"], methods=OF_RELEASED)
    monkeypatch.delenv("KNOW_REFERENCE", raising=False)
    for arm in arms_of(settings, CELL):
        assert bool(arm.missing) == (arm.predictor in ("released", "wnn", "wnn_plus", "shrink"))
        assert not arm.missing or "KNOW_REFERENCE" in arm.missing
    monkeypatch.setenv("KNOW_REFERENCE", str(tmp_path))
    for role in ("Conv", "FC", "Bias"):
        (tmp_path / f"KNOWN_{role}.h5").touch()
    assert {arm.predictor: arm.missing for arm in arms_of(settings, CELL) if arm.missing} == {
        "wnn": "the folder in KNOW_REFERENCE lacks WNN_Conv.h5, WNN_FC.h5, WNN_Bias.h5",
        "wnn_plus": "the folder in KNOW_REFERENCE lacks nino_mlp.pt",
    }
    other_length = {arm.predictor: arm.missing for arm in arms_of(settings, replace(CELL, length=4)) if arm.missing}
    assert other_length.keys() == {"released", "shrink", "wnn", "wnn_plus"}
    assert "5 snapshots" in other_length["released"]
    assert "5 snapshots" in other_length["shrink"]


def test_short_histories_leave_out_what_needs_more_snapshots():
    arms = arms_of(Arms(references=["naive"]), replace(CELL, length=2))
    missing = {arm.predictor: arm.missing for arm in arms if arm.missing}
    assert missing.keys() == {name for name in methods.names() if methods.get(name).least > 2}
    assert {"rre", "mpe", "dmd", "shuffled"} <= missing.keys()
    assert set(missing.values()) == {"it takes at least 3 snapshots"}
    assert not any(arm.missing for arm in arms_of(Arms(references=["naive"]), replace(CELL, length=3)))


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
    zeros = write_trajectory(
        [{"weight": torch.full((3, 3), k), "bias": torch.full((3,), k)} for k in (4.0, 3.0, 2.0, 1.0, 0.0)]
    )
    assert all(0 < factor < math.inf for factor in start("matched_rate", zeros, models).rates.values())
    ones = write_trajectory([{"weight": torch.full((3, 3), 1.0 + k)} for k in (4, 3, 2, 1, 0)], name="ones")
    for name in set(ASKS_KNOWN) - {"placebo"}:  # this trajectory has none
        with pytest.raises(Overflow, match=r"overflows at tensor 'weight'"):
            start(name, ones, Models(overflowing))


@pytest.mark.parametrize("name", ASKS_KNOWN)
def test_an_arm_may_be_measured_against_the_networks_of_the_authors(name, depth, with_initial, models):
    swapped = Models({"known": models["released"]})
    authors = start(name, with_initial, models, depth, of="released")
    expected, ours = start(name, with_initial, swapped, depth), start(name, with_initial, models, depth)
    assert equal(authors.weights, expected.weights)
    assert authors.rates == expected.rates
    assert not equal(authors.weights, ours.weights) or authors.rates != ours.rates


@pytest.mark.parametrize(("method", "options"), [("known", {}), ("shrink", {"of": "released"}), ("linear", {})])
def test_a_placebo_arm_asks_the_same_method_about_the_placebo(method, options, depth, with_initial, models):
    begun = start("placebo", with_initial, models, depth, method=method, **options)
    assert equal(begun.weights, predict(with_initial.placebo, method, depth, known=models, **options))
    assert not equal(begun.weights, predict(with_initial, method, depth, known=models, **options))


def test_the_noise_floor_is_three_steps_of_one_length_in_directions_of_their_own(with_initial, models):
    every = arms_of(Arms(references=["naive"]), CELL)
    noise = [arm for arm in every if arm.predictor == "random_step" and arm.depth == 1]
    assert len(noise) == 3
    names = list(only_predicted(roles(with_initial.theta_0)))

    def whole(state):
        return torch.cat([state[name].flatten() for name in names])

    steps = [whole(arm.start(with_initial, models, 0).weights) - whole(with_initial.theta_0) for arm in noise]
    for one, other in itertools.combinations(steps, 2):
        assert float(one.norm()) == pytest.approx(float(other.norm()), rel=1e-4)
        assert abs(float(torch.cosine_similarity(one, other, dim=0))) < 0.1


def test_no_two_arms_have_the_same_weights_but_those_that_leave_them_unchanged(with_initial, models):
    """On a real trajectory, every method and arm at its declared depths and variants."""
    entries = {line.name: LineOfArms(method=line.entry.name, options=line.options) for line in every_line()}
    weights, expected = {}, {}
    for arm in arms_of(Arms(references=["naive"], methods=entries), CELL):
        weights[arm.name] = arm.start(with_initial, models, 0).weights
        same = UNCHANGED.get(arm.predictor)
        depth = re.search("_x[0-9]+$|$", arm.name).group()
        expected[arm.name] = f"{same}{depth if same != 'naive' else ''}" if same else arm.name
    assert len(weights) > 40
    assert set(expected.values()) <= set(weights)
    for a, b in itertools.combinations(weights, 2):
        distance = max(float((weights[a][key] - weights[b][key]).abs().max()) for key in weights[a])
        assert (distance < 1e-5) == (expected[a] == expected[b]), f"{a} and {b} differ by {distance:g}"
