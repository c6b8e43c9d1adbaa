"""The contract of every predictor, in the file's folder or dropped in, and what each of the shipped ones promises."""

import re
import sys

import pytest
import torch
from torch import nn

from know import predictors
from know.errors import KnowError
from know.known import Known, KnownNet
from know.predictors import predict
from know.trajectory import PREDICTED, Trajectory, roles

NAMES = predictors.names()
RANDOM = {"random_step"}
"""Predictors that draw random numbers, so that neurons in another order get other ones."""

HIDDEN, FRACTIONS = 12, (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def network() -> nn.Sequential:
    convolutions = (
        nn.Conv2d(2, HIDDEN, 3),
        nn.BatchNorm2d(HIDDEN),
        nn.ReLU(),
        nn.Conv2d(HIDDEN, 8, 1),
        nn.GroupNorm(2, 8),
    )
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8, 5))


def history(length: int = 5) -> list[dict[str, torch.Tensor]]:
    """Snapshots of a random walk, smallest subset first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = network().state_dict()
        states = [{name: tensor.clone() for name, tensor in state.items()}]
        for _ in range(length - 1):
            states.append(
                {n: t + 0.05 * torch.randn(t.shape) if t.is_floating_point() else t for n, t in states[-1].items()}
            )
    for k, state in enumerate(states):
        state["1.num_batches_tracked"] = torch.tensor(100 * k)
    return states


@pytest.fixture
def walk(write_trajectory) -> Trajectory:
    return write_trajectory(history())


def predicted_names(state) -> list[str]:
    return [name for name, role in roles(state).items() if role in PREDICTED]


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# the contract of every predictor


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_it_gives_a_whole_state_dict_and_touches_predicted_roles_only(name, depth, walk, hyper):
    answer, theta_0 = predict(walk, name, depth, known=hyper), walk.theta_0
    network().load_state_dict(answer)
    assert list(answer) == list(theta_0)
    for key, role in roles(theta_0).items():
        assert (answer[key].shape, answer[key].dtype) == (theta_0[key].shape, theta_0[key].dtype)
        assert bool(answer[key].isfinite().all())
        assert torch.equal(answer[key], theta_0[key]) or role in PREDICTED
    assert any(not torch.equal(answer[key], theta_0[key]) for key in predicted_names(theta_0))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_deterministic_and_changes_neither_its_input_nor_the_random_state(name, walk, hyper):
    before = [{n: t.clone() for n, t in state.items()} for state in walk.states]
    first = predict(walk, name, 2, known=hyper, seed=4)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    assert equal(first, predict(walk, name, 2, known=hyper, seed=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(equal(a, b) for a, b in zip(walk.states, before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_its_answer_may_be_changed_without_changing_the_trajectory(name, walk, hyper):
    before = {n: t.clone() for n, t in walk.theta_0.items()}
    for tensor in predict(walk, name, known=hyper).values():
        tensor.zero_()
    assert equal(walk.theta_0, before)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_and_what_it_takes(name):
    found = predictors.get(name)
    assert found.name == name
    assert 20 < len(found.summary) < 120
    assert found.summary.endswith((".", ":"))
    assert found.depths
    assert min(found.depths) >= 1
    assert all(isinstance(value, bool | int | float | str) for value in found.options.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_and_a_wrong_value_are_named(name, walk, hyper):
    with pytest.raises(KnowError, match=f"option of predictor {name} 'stepp'"):
        predict(walk, name, known=hyper, stepp=1.0)
    for option, default in predictors.get(name).options.items():
        with pytest.raises(KnowError, match=f"option {option} of predictor {name}"):
            predict(walk, name, known=hyper, **{option: ["no"] if isinstance(default, str) else "no"})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_1_is_refused(name, depth, walk, hyper):
    with pytest.raises(KnowError, match=f"depth must be at least 1, got {depth}"):
        predict(walk, name, depth, known=hyper)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_precision_of_the_weights(name, dtype, write_trajectory, hyper):
    states = [{n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()} for state in history()]
    answer = predict(write_trajectory(states), name, known=hyper)
    assert {n: t.dtype for n, t in answer.items()} == {n: t.dtype for n, t in states[-1].items()}
    same = predict(
        write_trajectory([{n: t.float() for n, t in s.items()} for s in states], name="32"), name, known=hyper
    )
    torch.testing.assert_close(
        {n: t.float() for n, t in answer.items()}, {n: t.float() for n, t in same.items()}, atol=1e-2, rtol=1e-2
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_neurons_is_of_no_meaning(name, walk, write_trajectory, hyper):
    """The rows of a layer permuted with the columns of the next, in every snapshot: the answer is permuted alike."""
    order = torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(1))

    def permute(state):
        rows = {n: t[order] for n, t in state.items() if n.split(".")[0] in ("0", "1") and t.ndim}
        return {**state, **rows, "3.weight": state["3.weight"][:, order]}

    expected = permute(predict(walk, name, 2, known=hyper))
    answer = predict(write_trajectory([permute(state) for state in walk.states], name="permuted"), name, 2, known=hyper)
    theta_0 = permute(walk.theta_0)
    for key in predicted_names(theta_0):
        step, same = answer[key] - theta_0[key], expected[key] - theta_0[key]
        torch.testing.assert_close(step.norm(), same.norm(), rtol=1e-4, atol=1e-6)
        if name not in RANDOM:
            torch.testing.assert_close(step, same, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [100.0, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_huge_weights_give_finite_ones_or_are_named(name, scale, write_trajectory, hyper):
    states = [{n: t * scale if t.is_floating_point() else t for n, t in state.items()} for state in history()]
    try:
        answer = predict(write_trajectory(states), name, 3, known=hyper)
    except KnowError as error:
        assert re.search(r"tensor '\d\.(weight|bias)'", str(error))  # noqa: PT017
    else:
        assert all(bool(tensor.isfinite().all()) for tensor in answer.values())


@pytest.mark.parametrize("name", [name for name in NAMES if predictors.get(name).recursive])
def test_recursion_pushes_the_answer_on_the_history(name, walk, write_trajectory, hyper):
    states, fractions = list(walk.states), walk.fractions
    for depth in (1, 2, 3):
        pushed = write_trajectory(states, FRACTIONS, name=f"pushed-{depth}")
        answer = predict(Trajectory(pushed.paths, fractions, {}), name, known=hyper)
        whole = predict(walk, name, depth, known=hyper)
        torch.testing.assert_close(whole, answer, rtol=1e-5, atol=1e-6)
        states = [*states[1:], answer]
        fractions = (*fractions[1:], 2 * fractions[-1])


# single predictors


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_linear_is_exact_on_straight_lines(depth, write_trajectory):
    start, end = history(2)
    states = [
        {n: torch.lerp(start[n], end[n], k) if t.is_floating_point() else t for n, t in start.items()} for k in range(5)
    ]
    answer = predict(write_trajectory(states), "linear", depth)
    for name in predicted_names(start):
        expected = torch.lerp(start[name].double(), end[name].double(), 4 + depth)
        torch.testing.assert_close(answer[name].double(), expected, atol=2e-6, rtol=1e-6)


def test_the_step_of_linear_is_an_option(walk):
    half, none = predict(walk, "linear", step=0.5), predict(walk, "linear", step=0)
    whole = predict(walk, "linear")
    assert equal(none, walk.theta_0)
    for name in predicted_names(whole):
        torch.testing.assert_close(2 * (half[name] - none[name]), whole[name] - none[name], atol=1e-6, rtol=1e-5)


def test_linear_needs_two_snapshots_only(write_trajectory):
    two = write_trajectory(history(5)[-2:], name="two")
    assert equal(predict(two, "linear"), predict(write_trajectory(history(5)), "linear"))


@pytest.mark.parametrize(
    ("name", "swapped"), [("linear", (3, 4)), ("known", (3, 4)), ("known", (0, 1)), ("known", (1, 3))]
)
def test_the_order_of_snapshots_matters(name, swapped, walk, hyper):
    paths = list(walk.paths)
    a, b = swapped
    paths[a], paths[b] = paths[b], paths[a]
    other = Trajectory.from_checkpoints(paths, walk.fractions)
    steps = [predict(t, name, known=hyper)["0.weight"] - t.theta_0["0.weight"] for t in (walk, other)]
    assert float((steps[0] - steps[1]).abs().max()) > 1e-4


def test_known_adds_the_residual_of_the_tensors_role(walk, hyper):
    answer = predict(walk, "known", known=hyper)
    for name, role in roles(walk.theta_0).items():
        if role in PREDICTED:
            expected = walk.theta_0[name].flatten() + hyper.residual(walk.window(name), role)
            torch.testing.assert_close(answer[name].flatten(), expected)


def test_known_is_taken_from_a_file_too(walk, hyper, tmp_path):
    hyper.save(tmp_path / "known.safetensors")
    assert equal(predict(walk, known=tmp_path / "known.safetensors"), predict(walk, "known", known=hyper))


def test_known_refuses_a_history_of_another_length(write_trajectory, hyper):
    three = write_trajectory(history()[-3:])
    with pytest.raises(KnowError, match=r"\(N, 5\)"):
        predict(three, "known", known=hyper)
    assert predict(three, "known", known=Known({role: KnownNet(3) for role in PREDICTED}))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_shrink_keeps_the_norm_of_known_and_the_direction_of_theta_0(depth, walk, hyper):
    shrunk, known = (predict(walk, name, depth, known=hyper) for name in ("shrink", "known"))
    for name in predicted_names(walk.theta_0):
        torch.testing.assert_close(shrunk[name].norm(), known[name].norm())
        cosine = torch.cosine_similarity(shrunk[name].flatten(), walk.theta_0[name].flatten(), dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("depth", [1, 3])
def test_random_step_keeps_the_length_of_knowns_step_and_nothing_of_its_direction(depth, write_trajectory, hyper):
    torch.manual_seed(0)
    walk = write_trajectory([{"weight": torch.randn(100, 100)} for _ in FRACTIONS])
    theta_0 = walk.theta_0["weight"]
    step = predict(walk, "known", depth, known=hyper)["weight"] - theta_0
    ours, other = (predict(walk, "random_step", depth, known=hyper, seed=s)["weight"] - theta_0 for s in (1, 2))
    for first, second in ((ours, step), (ours, theta_0), (ours, other)):
        cosine = torch.cosine_similarity(first.flatten(), second.flatten(), dim=0)
        assert abs(float(cosine)) < 5 / 100  # 5 sigma of 10,000 dimensions
    torch.testing.assert_close(ours.norm(), step.norm())
    torch.testing.assert_close(other.norm(), step.norm())


def test_random_steps_of_two_tensors_differ(write_trajectory, hyper):
    torch.manual_seed(0)
    tensors = [torch.randn(20, 20) for _ in FRACTIONS]
    walk = write_trajectory([{"a.weight": t, "b.weight": t} for t in tensors])
    answer = predict(walk, "random_step", known=hyper)
    assert not torch.allclose(answer["a.weight"], answer["b.weight"])


@pytest.mark.parametrize("name", ["shrink", "random_step"])
def test_controls_of_a_zero_tensor_are_finite(name, write_trajectory, hyper):
    walk = write_trajectory([{"weight": torch.zeros(3, 3), "bias": torch.zeros(3)} for _ in FRACTIONS])
    assert all(bool(t.isfinite().all()) for t in predict(walk, name, known=hyper).values())


# wrong input


def test_values_that_are_not_finite_are_named(write_trajectory, hyper):
    states = history()
    states[2]["3.weight"][0, 0] = float("nan")
    with pytest.raises(KnowError, match=r"'3\.weight' of .*2\.safetensors"):
        predict(write_trajectory(states), known=hyper)


@pytest.mark.parametrize(("name", "near"), [("knwon", "known"), ("lineer", "linear"), ("random-step", "random_step")])
def test_an_unknown_predictor_is_named_with_the_nearest(name, near, walk):
    with pytest.raises(KnowError, match=f"unknown predictor '{name}': did you mean '{near}'"):
        predict(walk, name)


def test_names_are_those_of_the_files_and_hidden_ones_are_none():
    assert sorted(NAMES) == NAMES
    assert {"known", "linear", "shrink", "random_step"} <= set(NAMES)
    assert "__init__" not in NAMES


# dropped in

DROPPED = '''
from know.predictors import predictor


@predictor(recursive={recursive}, depths=(2,))
def reverse(window, tensor, *, step: float = 0.5):
    """A step towards theta_1, for this test."""
    return window[:, -1] + step * tensor.depth * (window[:, -2] - window[:, -1])
'''


@pytest.fixture
def drop(tmp_path, monkeypatch):
    """Function that puts a file into a predictors folder beside the real ones; gone after the test."""
    monkeypatch.setattr(predictors, "__path__", [*predictors.__path__, str(tmp_path)])
    monkeypatch.setattr(predictors, "__file__", str(tmp_path / "__init__.py"))

    def write(text: str, name: str = "dropped") -> None:
        (tmp_path / f"{name}.py").write_text(text)

    predictors.get.cache_clear()
    yield write
    predictors.get.cache_clear()
    sys.modules.pop("know.predictors.dropped", None)
    if hasattr(predictors, "dropped"):
        delattr(predictors, "dropped")


@pytest.mark.parametrize("recursive", [True, False])
def test_a_file_dropped_in_is_a_predictor(drop, recursive, walk):
    drop(DROPPED.format(recursive=recursive))
    drop("raise RuntimeError('not a predictor')", name="_private")
    assert predictors.names() == ["dropped"]
    found = predictors.get("dropped")
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
    seen = sys.modules["know.predictors.dropped"].SEEN[:3]
    assert seen == [pytest.approx([f * 2**k for f in FRACTIONS]) for k in range(3)]


@pytest.mark.parametrize("text", ["", DROPPED.format(recursive=True) + "\nother = predictor()(reverse.function)\n"])
def test_a_file_must_hold_one_predictor(drop, text):
    drop(text)
    with pytest.raises(KnowError, match=r"dropped\.py must define exactly one"):
        predictors.get("dropped")


def test_an_option_without_default_is_refused(drop):
    drop(DROPPED.format(recursive=True).replace("step: float = 0.5", "step: float"))
    with pytest.raises(TypeError, match="default"):
        predictors.get("dropped")
