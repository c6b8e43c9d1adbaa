"""The contract of every method, in the file's folder or dropped in."""

import re
import sys
from dataclasses import replace

import pytest
import torch
from random_walk import HIDDEN, history, network, predicted_names
from small_model import FRACTIONS, equal

from know import methods
from know.errors import KnowError
from know.prediction import Overflow, predict
from know.roles import PREDICTED, roles
from know.trajectory import Trajectory

NAMES = methods.names()
DEEP = [name for name in NAMES if methods.get(name).depths]
CONTROLS = [name for name in NAMES if "of" in methods.get(name).options]
SCALED = ["dmd", "expo", "linear", "linear_reverse", "logfit", "mean", "meta_linear", "mpe", "rre", "richardson", "tsv"]
"""Methods whose answer to weights in another unit is their answer in that unit."""
ORDERLESS = {"constant", "expo", "mean", "shrink_and_perturb"}
"""Methods that do not look at the order of the snapshots before theta_0, or not at them at all."""


def cast(dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    return [{n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()} for state in history()]


def deepest(name: str) -> int:
    """A depth to ask a method for: 2, or 1 where it has none."""
    return 2 if methods.get(name).depths else 1


# the contract of every method


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_it_gives_a_whole_state_dict_and_touches_predicted_roles_only(name, depth, walk, models):
    if depth > 1 and name not in DEEP:
        pytest.skip("has no depth")
    answer, theta_0 = predict(walk, name, depth, known=models), walk.theta_0
    network().load_state_dict(answer)
    assert list(answer) == list(theta_0)
    for key, role in roles(theta_0).items():
        assert (answer[key].shape, answer[key].dtype) == (theta_0[key].shape, theta_0[key].dtype)
        assert bool(answer[key].isfinite().all())
        assert torch.equal(answer[key], theta_0[key]) or role in PREDICTED
    moved = any(not torch.equal(answer[key], theta_0[key]) for key in predicted_names(theta_0))
    assert moved


@pytest.mark.parametrize("name", NAMES)
def test_it_is_deterministic_and_changes_neither_its_input_nor_the_random_state(name, walk, models):
    before = [{n: t.clone() for n, t in state.items()} for state in walk.states]
    first = predict(walk, name, deepest(name), known=models, seed=4)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again = predict(walk, name, deepest(name), known=models, seed=4)
    assert equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    for tensor in again.values():
        tensor.zero_()  # an answer shares no memory with the trajectory
    assert all(equal(a, b) for a, b in zip(walk.states, before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_and_a_wrong_value_are_named(name, walk, models):
    with pytest.raises(KnowError, match=f"option of method {name} 'stepp'"):
        predict(walk, name, known=models, stepp=1.0)
    for option, default in methods.get(name).options.items():
        with pytest.raises(KnowError, match=f"option {option} of method {name}"):
            predict(walk, name, known=models, **{option: ["no"] if isinstance(default, str) else "no"})


def test_a_choice_that_does_not_exist_is_named_with_the_nearest(walk, models):
    with pytest.raises(KnowError, match=r"option scope of method rre: .*did you mean 'model'"):
        predict(walk, "rre", known=models, scope="mode")


@pytest.mark.parametrize("name", NAMES)
def test_a_depth_that_it_cannot_have_is_refused(name, walk, models):
    refused = {depth: f"depth must be at least 1, got {depth}" for depth in (0, -1)}
    for depth, said in (refused | ({} if name in DEEP else {3: f"method {name} has no depth"})).items():
        with pytest.raises(KnowError, match=said):
            predict(walk, name, depth, known=models)


@pytest.mark.parametrize("name", [name for name in NAMES if methods.get(name).least > 2])
def test_too_few_snapshots_are_refused(name, kept, models):
    least = methods.get(name).least
    with pytest.raises(KnowError, match=f"method {name} takes at least {least} snapshots"):
        predict(kept(f"last-{least - 1}", history()[-least + 1 :]), name, known=models)
    if name not in CONTROLS:  # those need a network of that length
        assert predict(kept(f"last-{least}", history()[-least:]), name, known=models)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_precision_of_the_weights(name, dtype, kept, models):
    trajectory, rounded = kept(str(dtype), cast(dtype)), [{n: t.float() for n, t in s.items()} for s in cast(dtype)]
    answer = predict(trajectory, name, known=models)
    assert {n: t.dtype for n, t in answer.items()} == {n: t.dtype for n, t in trajectory.meta.items()}
    same = predict(kept(f"{dtype} in float32", rounded), name, known=models)
    torch.testing.assert_close(
        {n: t.float() for n, t in answer.items()}, {n: t.float() for n, t in same.items()}, atol=1e-2, rtol=1e-2
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in NAMES if name != "shrink_and_perturb"]
    + [("shrink_and_perturb", {"noise": 0.0})]
    + [(name, {"scope": scope}) for name in ("rre", "mpe", "dmd") for scope in ("model", "tensor")]
    + [("meta_linear", {"theta_0": True})],
    ids=str,
)
def test_the_order_of_neurons_is_of_no_meaning(name, options, walk, kept, models):
    """The rows of a layer permuted with the columns of the next, in every snapshot: the answer is permuted alike."""
    order = torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(1))

    def permute(state):
        rows = {n: t[order] for n, t in state.items() if n.split(".")[0] in ("0", "1") and t.ndim}
        return {**state, **rows, "3.weight": state["3.weight"][:, order]}

    asked = {"known": models, **options}
    first = predict(walk, name, deepest(name), **asked)
    permuted = kept("permuted", [permute(state) for state in walk.states])
    answer = predict(permuted, name, deepest(name), **asked)
    expected, theta_0 = permute(first), permute(walk.theta_0)
    for key in predicted_names(theta_0):
        step, same = answer[key] - theta_0[key], expected[key] - theta_0[key]
        if name == "random_step":  # neurons in another order get other random numbers
            torch.testing.assert_close(step.norm(), same.norm(), rtol=1e-4, atol=1e-6)
        else:
            torch.testing.assert_close(step, same, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [(3, 2, 1, 0, 4), (4, 3, 2, 1, 0)])
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_snapshots_matters(name, order, walk, models):
    """Where the history before theta_0, or all of it, is reversed, all but those that cannot see it answer anew."""
    other = replace(walk, paths=tuple(walk.paths[k] for k in order))
    first, second = (predict(t, name, known=models) for t in (walk, other))
    names = predicted_names(walk.theta_0)
    change = max(float((first[key] - second[key]).abs().max()) for key in names)
    if order[-1] == 4:
        assert change < 1e-6 if name in ORDERLESS else change > 1e-4
    else:
        assert change < 1e-6 if name == "mean" else change > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_huge_weights_give_finite_ones_or_are_named(name, kept, models):
    states = [{n: t * 1e4 if t.is_floating_point() else t for n, t in state.items()} for state in history()]
    try:
        answer = predict(kept("times 10000", states), name, 3 if name in DEEP else 1, known=models)
    except KnowError as error:
        assert name not in SCALED
        assert re.search(r"tensor '\d\.(weight|bias)'", str(error))  # noqa: PT017
    else:
        assert all(bool(tensor.isfinite().all()) for tensor in answer.values())


@pytest.mark.parametrize("name", SCALED)
def test_the_unit_of_the_weights_is_of_no_meaning(name, walk, kept, models):
    states = [{n: t * 1e4 if t.is_floating_point() else t for n, t in state.items()} for state in history()]
    first, answer = (predict(each, name, known=models) for each in (walk, kept("times 10000", states)))
    for key in predicted_names(walk.theta_0):
        torch.testing.assert_close(answer[key] / 1e4, first[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["known", *CONTROLS])
def test_an_answer_that_is_not_finite_is_an_error_of_its_own(name, walk, overflowing):
    with pytest.raises(Overflow, match=rf"method {name} overflows at tensor '\d.(weight|bias)'"):
        predict(walk, name, known=overflowing)


@pytest.mark.parametrize("name", [name for name in NAMES if methods.get(name).recursive])
def test_recursion_pushes_the_answer_on_the_history(name, walk, write_trajectory, models):
    states, fractions = list(walk.states), walk.fractions
    for depth in (1, 2, 3):
        pushed = write_trajectory(states, FRACTIONS, name=f"pushed-{depth}")
        answer = predict(Trajectory(pushed.paths, fractions, {}), name, known=models)
        whole = predict(walk, name, depth, known=models)
        torch.testing.assert_close(whole, answer, rtol=1e-5, atol=1e-6)
        states = [*states[1:], answer]
        fractions = (*fractions[1:], 2 * fractions[-1])


@pytest.mark.parametrize("place", ["zero", "theta_0"])
@pytest.mark.parametrize("name", NAMES)
def test_where_all_but_one_weight_stand_still_the_answer_is_finite_and_zeros_stay(name, place, kept, models):
    state = {"weight": torch.zeros(3, 3), "bias": torch.zeros(3)} if place == "zero" else history()[-1]
    first = next(name for name, tensor in state.items() if tensor.ndim == 2)
    states = [{name: tensor.clone() for name, tensor in state.items()} for _ in range(5)]
    for k, each in enumerate(states):
        each[first][0, 0] += 0.1 * (4 - k)
    answer = predict(kept(f"still at {place}", states), name, known=models)
    assert all(bool(tensor.isfinite().all()) for tensor in answer.values())
    for name, tensor in state.items():
        zeros = (tensor == 0) if name == first else torch.ones_like(tensor, dtype=torch.bool)
        zeros[(0, 0) if name == first else ()] &= name != first
        assert torch.equal(answer[name][zeros], tensor[zeros]), name


# wrong input


# dropped in

DROPPED = '''
from know.methods import method


@method(reference="this test", recursive={recursive}, depths=(2,))
def reverse(window, tensor, *, step: float = 0.5):
    """A step towards theta_1, for this test."""
    return window[:, -1] + step * tensor.depth * (window[:, -2] - window[:, -1])
'''


@pytest.fixture
def drop(tmp_path, monkeypatch):
    """Function that puts a file into a folder of methods beside the real ones; gone after the test."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.setattr(methods, "__file__", str(tmp_path / "__init__.py"))

    def write(text: str, name: str = "dropped") -> None:
        (tmp_path / f"{name}.py").write_text(text)

    methods.get.cache_clear()
    yield write
    methods.get.cache_clear()
    sys.modules.pop("know.methods.dropped", None)
    if hasattr(methods, "dropped"):
        delattr(methods, "dropped")


@pytest.mark.parametrize("recursive", [True, False])
def test_a_file_dropped_in_is_a_method(drop, recursive, walk):
    drop(DROPPED.format(recursive=recursive))
    drop("raise RuntimeError('not a method')", name="_private")
    assert methods.names() == ["dropped"]
    found = methods.get("dropped")
    assert (found.name, found.depths, found.options) == ("dropped", (2,), {"step": 0.5})
    assert found.summary == "A step towards theta_1, for this test."
    w1, w0 = walk.states[-2]["0.weight"], walk.theta_0["0.weight"]
    first = w0 + 0.25 * (w1 - w0)
    expected = first + 0.25 * (w0 - first) if recursive else w0 + 0.5 * (w1 - w0)  # asked twice, or told the depth
    torch.testing.assert_close(predict(walk, "dropped", 2, step=0.25)["0.weight"], expected)


def test_fractions_move_along_with_the_history(drop, walk):
    drop(
        DROPPED.format(recursive=True).replace("    return", "    SEEN.append(tensor.fractions)\n    return")
        + "SEEN = []"
    )
    predict(walk, "dropped", 3)
    seen = sys.modules["know.methods.dropped"].SEEN[:3]
    assert seen == [pytest.approx([f * 2**k for f in FRACTIONS]) for k in range(3)]


@pytest.mark.parametrize(
    "text", ["", DROPPED.format(recursive=True) + "\nother = method(reference='')(reverse.function)\n"]
)
def test_a_file_must_hold_one_method(drop, text):
    drop(text)
    with pytest.raises(KnowError, match=r"dropped\.py must define exactly one"):
        methods.get("dropped")


def test_an_option_without_default_is_refused(drop):
    drop(DROPPED.format(recursive=True).replace("step: float = 0.5", "step: float"))
    with pytest.raises(TypeError, match="default"):
        methods.get("dropped")


def test_a_method_without_a_docstring_has_its_name_for_a_summary():
    linear = methods.get("linear")
    bare = replace(linear, function=lambda window, tensor: window[:, -1])
    assert (bare.documentation, bare.summary) == ("", "linear")
