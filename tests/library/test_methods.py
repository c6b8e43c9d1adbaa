"""The contract of every method, in the file's folder or dropped in, and what each of the shipped ones promises."""

import itertools
import re
import sys

import pytest
import torch
from tiny import FRACTIONS, equal
from torch import nn

from know import methods
from know.checkpoints import save_state
from know.errors import KnowError
from know.known import Known, KnownNet, Models
from know.prediction import Overflow, predict
from know.roles import PREDICTED, only_predicted, roles
from know.trajectory import Trajectory

NAMES = methods.names()
DEEP = [name for name in NAMES if methods.get(name).depths]
CONTROLS = [name for name in NAMES if "of" in methods.get(name).options]
RANDOM = {"random_step", "shrink_and_perturb"}
"""Methods that draw random numbers, so that neurons in another order get other ones."""
ORDERLESS = {"constant", "mean", "shrink_and_perturb"}
"""Methods that do not look at the order of the snapshots before theta_0, or not at them at all."""

HIDDEN = 12


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


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Function that makes a trajectory of states, smallest subset first, and writes it once for all tests, by name."""
    made, folder = {}, tmp_path_factory.mktemp("kept")

    def write(name: str, states) -> Trajectory:
        if name not in made:
            paths = [folder / name / f"{k}.safetensors" for k in range(len(states))]
            for path, state in zip(paths, states, strict=True):
                save_state(path, state)
            made[name] = Trajectory.from_checkpoints(paths, FRACTIONS[-len(states) :])
        return made[name]

    return write


@pytest.fixture(scope="module")
def walk(kept) -> Trajectory:
    return kept("walk", history())


def cast(dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    return [{n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()} for state in history()]


def predicted_names(state) -> list[str]:
    return list(only_predicted(roles(state)))


def deepest(name: str) -> int:
    """A depth to ask a method for: 2, or 1 where it has none."""
    return 2 if methods.get(name).depths else 1


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


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
    assert equal(first, predict(walk, name, deepest(name), known=models, seed=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(equal(a, b) for a, b in zip(walk.states, before, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_its_answer_may_be_changed_without_changing_the_trajectory(name, walk, models):
    before = {n: t.clone() for n, t in walk.theta_0.items()}
    for tensor in predict(walk, name, known=models).values():
        tensor.zero_()
    assert equal(walk.theta_0, before)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_and_what_it_takes(name):
    found = methods.get(name)
    assert found.name == name
    assert 20 < len(found.summary) < 120
    assert found.summary.endswith((".", ":"))
    assert found.reference
    assert all(depth >= 1 for depth in found.depths)
    assert all(isinstance(value, bool | int | float | str) for value in found.options.values())
    assert found.least >= 2
    assert found.check_options({}) == found.options


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_and_a_wrong_value_are_named(name, walk, models):
    with pytest.raises(KnowError, match=f"option of method {name} 'stepp'"):
        predict(walk, name, known=models, stepp=1.0)
    for option, default in methods.get(name).options.items():
        with pytest.raises(KnowError, match=f"option {option} of method {name}"):
            predict(walk, name, known=models, **{option: ["no"] if isinstance(default, str) else "no"})


@pytest.mark.parametrize(
    ("name", "option", "near"),
    [("shrink", "of", "'released'"), ("rre", "scope", "'model'"), ("dmd", "scope", "'model'")],
)
def test_a_choice_that_does_not_exist_is_named_with_the_nearest(name, option, near, walk, models):
    with pytest.raises(KnowError, match=f"option {option} of method {name}: .*did you mean {near}"):
        predict(walk, name, known=models, **{option: near.strip("'")[:-1]})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_1_is_refused(name, depth, walk, models):
    with pytest.raises(KnowError, match=f"depth must be at least 1, got {depth}"):
        predict(walk, name, depth, known=models)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DEEP])
def test_what_has_no_depth_refuses_one(name, walk, models):
    with pytest.raises(KnowError, match=f"method {name} has no depth"):
        predict(walk, name, 3, known=models)


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
    [(name, {}) for name in NAMES]
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
        if name not in RANDOM:
            torch.testing.assert_close(step, same, rtol=1e-4, atol=1e-5)
        elif name == "random_step":
            torch.testing.assert_close(step.norm(), same.norm(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("order", [(3, 2, 1, 0, 4), (4, 3, 2, 1, 0)])
@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_snapshots_matters(name, order, walk, models):
    """Where the history before theta_0, or all of it, is reversed, all but those that cannot see it answer anew."""
    other = Trajectory.from_checkpoints([walk.paths[k] for k in order], walk.fractions)
    first, second = (predict(t, name, known=models) for t in (walk, other))
    names = predicted_names(walk.theta_0)
    change = max(float((first[key] - second[key]).abs().max()) for key in names)
    if order[-1] == 4:
        assert change < 1e-6 if name in ORDERLESS else change > 1e-4
    else:
        assert change < 1e-6 if name == "mean" else change > 1e-4


@pytest.mark.parametrize("scale", [100.0, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_huge_weights_give_finite_ones_or_are_named(name, scale, kept, models):
    states = [{n: t * scale if t.is_floating_point() else t for n, t in state.items()} for state in history()]
    try:
        answer = predict(kept(f"times {scale:g}", states), name, 3 if name in DEEP else 1, known=models)
    except KnowError as error:
        assert re.search(r"tensor '\d\.(weight|bias)'", str(error))  # noqa: PT017
    else:
        assert all(bool(tensor.isfinite().all()) for tensor in answer.values())


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


# trajectories whose answer is known

SHAPES = {"a.weight": (4, 2, 3, 3), "a.bias": (4,), "b.weight": (5, 8), "b.bias": (5,)}


def family(function, count: int = 5) -> list[dict[str, torch.Tensor]]:
    """Snapshots, smallest subset first: `function(k, noise)` for k = 0 ... count - 1 steps; `noise(i)` is the i-th
    random tensor of that shape, the same in all of them. float64."""

    def state(k: int) -> dict[str, torch.Tensor]:
        found = {}
        for place, (name, shape) in enumerate(SHAPES.items()):

            def noise(i: int, place=place, shape=shape) -> torch.Tensor:
                dice = torch.Generator().manual_seed(100 * place + i)
                return torch.randn(shape, generator=dice, dtype=torch.float64)

            found[name] = function(k, noise)
        return found

    return [state(k) for k in range(count)]


def check(answer, expected, atol=5e-6):
    torch.testing.assert_close(answer, expected, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_linear_is_exact_on_straight_lines(depth, write_trajectory):
    states = family(lambda k, noise: noise(0) + 0.3 * k * noise(1), 5 + depth)
    check(predict(write_trajectory(states[:5]), "linear", depth), states[4 + depth])


@pytest.mark.parametrize("fractions", [FRACTIONS, (0.1, 0.3, 0.4, 0.5, 1.0), (0.25, 1.0)])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", ["logfit", "richardson"])
def test_fits_are_exact_on_the_curves_they_fit(name, depth, fractions, write_trajectory):
    x = [torch.tensor(f, dtype=torch.float64) for f in (*fractions, (fractions[-1] / fractions[-2]) ** depth)]
    x = [f.log() if name == "logfit" else 1 / f for f in x]
    states = family(lambda k, noise: noise(0) + 0.2 * x[k] * noise(1), len(x))
    check(predict(write_trajectory(states[:-1], fractions), name, depth), states[-1])


def modes(values: tuple[complex, ...]):
    """Linear dynamics about the fixed point noise(0): each real mode decays; a complex one turns (two real modes)."""

    def state(k: int, noise) -> torch.Tensor:
        total = noise(0).clone()
        for i, value in enumerate(values, start=1):
            power = value**k
            total += power.real * noise(2 * i) - power.imag * noise(2 * i + 1)
        return total

    return state


TURN = complex(torch.cos(torch.tensor(1.2)), torch.sin(torch.tensor(1.2)))
"""A rotation by 1.2 rad."""
DYNAMICS = {
    "one decay": (0.5 + 0j,),
    "two decays": (0.8 + 0j, -0.4 + 0j),
    "three decays": (0.8 + 0j, -0.6 + 0j, 0.1 + 0j),
    "rotation": (TURN,),
    "rotation and decay": (0.9 * TURN, 0.4 + 0j),
}


@pytest.mark.parametrize("kind", DYNAMICS)
@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("name", ["rre", "mpe"])
def test_limits_are_the_fixed_points_of_linear_dynamics(name, scope, kind, write_trajectory):
    states = family(modes(DYNAMICS[kind]))
    fixed = family(lambda k, noise: noise(0), 1)[0]
    assert max(float((states[-1][key] - fixed[key]).abs().max()) for key in fixed) > 0.05  # theta_0 is not it
    answer = predict(write_trajectory(states), name, scope=scope)
    check(answer, fixed, atol=2e-5)


@pytest.mark.parametrize("kind", DYNAMICS)
@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("depth", [1, 3])
def test_dmd_continues_linear_dynamics(depth, scope, kind, write_trajectory):
    states = family(modes(DYNAMICS[kind]), 5 + depth)
    answer = predict(write_trajectory(states[:5]), "dmd", depth, scope=scope, regularisation=1e-10)
    check(answer, states[4 + depth], atol=5e-5)


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("bend", [0.0, 1e-5, 1e-4])
@pytest.mark.parametrize("name", ["rre", "mpe"])
def test_a_straight_line_has_no_limit(name, bend, scope, write_trajectory):
    """Neither has one that is almost straight: nothing far away may come of it, the answer is theta_0."""
    states = family(lambda k, noise: noise(0) + 0.1 * (k - bend * k**2) * noise(1))
    answer = predict(write_trajectory(states), name, scope=scope)
    assert equal(answer, {key: t.float().double() for key, t in states[-1].items()})


@pytest.mark.parametrize("name", ["rre", "mpe"])
def test_a_trajectory_that_stands_still_is_its_limit(name, write_trajectory):
    states = family(lambda k, noise: noise(0))
    assert equal(predict(write_trajectory(states), name), {key: t.float().double() for key, t in states[-1].items()})


# the same formulas in plain float64


def differences(states) -> list[torch.Tensor]:
    """Differences (N,), oldest first, of the whole network as one vector."""
    whole = [torch.cat([state[name].double().flatten() for name in SHAPES]) for state in states]
    return [later - earlier for earlier, later in itertools.pairwise(whole)]


def solve(columns: list[torch.Tensor], goal: torch.Tensor) -> torch.Tensor:
    return torch.linalg.lstsq(torch.stack(columns, dim=1), goal[:, None]).solution[:, 0]


def plain_rre(states) -> torch.Tensor:
    """Weights of snapshots 1, 2, ...: their movement is the shortest, with the last weight eliminated."""
    *earlier, last = differences(states)
    solved = solve([last - one for one in earlier], last)
    return torch.cat([solved, 1 - solved.sum(0, keepdim=True)])


def plain_mpe(states) -> torch.Tensor:
    *earlier, last = differences(states)
    found = torch.cat([-solve(earlier, last), torch.ones(1, dtype=torch.float64)])
    return found / found.sum()


@pytest.mark.parametrize(("name", "plain"), [("rre", plain_rre), ("mpe", plain_mpe)])
def test_the_whole_network_is_one_vector_in_scope_model(name, plain, write_trajectory):
    states = family(lambda k, noise: noise(0) + noise(k + 1))  # no dynamics at all
    weights = plain(states)
    expected = {key: sum(w * state[key] for w, state in zip(weights, states[1:], strict=True)) for key in SHAPES}
    answer = predict(write_trajectory(states), name, scope="model")
    check(answer, expected, atol=1e-4)
    own = predict(write_trajectory(states), name)
    assert max(float((own[key] - answer[key]).abs().max()) for key in own) > 0.01


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_dmd_is_the_least_squares_operator_of_the_whole_network(depth, write_trajectory):
    states = family(lambda k, noise: noise(0) + noise(k + 1))
    found = differences(states)
    moved, newest = torch.zeros_like(found[0]), found[-1]
    for _ in range(depth):
        coefficients = solve(found[:-1], newest)
        newest = torch.stack(found[1:], dim=1) @ coefficients
        moved = moved + newest
    answer = predict(write_trajectory(states), "dmd", depth, regularisation=0.0)
    step = torch.cat([(answer[key] - states[-1][key]).flatten() for key in SHAPES])
    torch.testing.assert_close(step, moved, atol=1e-5, rtol=1e-4)


def test_regularisation_shortens_the_step_of_dmd(walk):
    lengths = []
    for regularisation in (0.0, 1e-2, 1.0, 100.0):
        answer = predict(walk, "dmd", regularisation=regularisation)
        names = predicted_names(answer)
        lengths.append(sum(float((answer[key] - walk.theta_0[key]).square().sum()) for key in names))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < 1e-3 * lengths[0]


# single predictors


def test_the_step_of_linear_is_an_option(walk):
    half, none = predict(walk, "linear", step=0.5), predict(walk, "linear", step=0)
    whole = predict(walk, "linear")
    assert equal(none, walk.theta_0)
    for name in predicted_names(whole):
        torch.testing.assert_close(2 * (half[name] - none[name]), whole[name] - none[name], atol=1e-6, rtol=1e-5)


def test_linear_needs_two_snapshots_only(write_trajectory):
    two = write_trajectory(history(5)[-2:], name="two")
    assert equal(predict(two, "linear"), predict(write_trajectory(history(5)), "linear"))


def test_mean_is_the_mean(walk):
    for key, tensor in predict(walk, "mean").items():
        if key in predicted_names(walk.theta_0):
            torch.testing.assert_close(tensor, torch.stack([state[key] for state in walk.states]).mean(0))


@pytest.mark.parametrize("depth", [1, 3])
def test_linear_reverse_goes_as_far_the_other_way(depth, walk):
    back, forth = predict(walk, "linear_reverse", depth), predict(walk, "linear", depth)
    for key in predicted_names(back):
        torch.testing.assert_close(back[key] + forth[key], 2 * walk.theta_0[key])
        if depth == 1:
            torch.testing.assert_close(back[key], walk.states[-2][key])


@pytest.mark.parametrize("depth", [1, 3])
def test_tsv_takes_a_step_of_rank_1_in_full_and_so_for_vectors(depth, write_trajectory):
    def state(k, noise):
        matrix = noise(0).reshape(len(noise(0)), -1)
        rank_1 = torch.outer(noise(1).reshape(len(matrix), -1)[:, 0], noise(2).reshape(len(matrix), -1)[0])
        return (matrix + k * rank_1).reshape(noise(0).shape)

    states = family(state, 5 + depth)
    check(predict(write_trajectory(states[:5]), "tsv", depth), states[4 + depth], atol=5e-5)


@pytest.mark.parametrize(("share", "rank"), [(0.1, 2), (0.01, 1), (0.5, 10), (1.0, 20)])
def test_tsv_keeps_a_share_of_the_directions_the_largest_first(share, rank, write_trajectory):
    torch.manual_seed(0)
    walk = write_trajectory([{"weight": torch.randn(20, 30)} for _ in FRACTIONS])
    theta_1, theta_0 = (state["weight"] for state in walk.states[-2:])
    step = predict(walk, "tsv", share=share)["weight"] - theta_0
    scales, whole = torch.linalg.svdvals(step), torch.linalg.svdvals(theta_0 - theta_1)
    torch.testing.assert_close(scales[:rank], whole[:rank])
    assert float(scales[rank:].sum()) < 1e-3


@pytest.mark.parametrize("theta_0", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_meta_linear_continues_what_moves_by_its_combination(depth, theta_0, write_trajectory, models):
    terms = models["meta_linear"]
    role_of = roles(family(lambda k, noise: noise(0), 1)[0])
    states = family(lambda k, noise: noise(k))
    for _ in range(depth):
        state = {}
        for key, role in role_of.items():
            *own, last = terms[f"{role}.theta_0"].tolist() if theta_0 else [*terms[role].tolist(), 0.0]
            values = [one[key] for one in states[-5:]]
            steps = [later - earlier for earlier, later in itertools.pairwise(values)]
            state[key] = values[-1] + sum(c * step for c, step in zip(own, steps, strict=True)) + last * values[-1]
        states.append(state)
    answer = predict(write_trajectory(states[:5]), "meta_linear", depth, known=models, theta_0=theta_0)
    check(answer, states[-1], atol=1e-5)


def test_meta_linear_refuses_a_history_of_another_length(write_trajectory, models):
    with pytest.raises(KnowError, match="4 coefficients, the history gives 2 terms"):
        predict(write_trajectory(history()[-3:]), "meta_linear", known=models)


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


@pytest.mark.parametrize(("name", "model"), [("scaled_known", "scaled"), ("released", "released"), ("wnn", "wnn")])
def test_other_networks_are_asked_by_name(name, model, walk, models):
    answer, asked = predict(walk, name, known=models), models[model]
    for key, role in roles(walk.theta_0).items():
        if role in PREDICTED:
            own = asked.role_of(role, tuple(walk.theta_0[key].shape))
            expected = walk.theta_0[key].flatten() + asked.residual(walk.window(key), own)
            torch.testing.assert_close(answer[key].flatten(), expected)


def test_kernels_of_every_size_go_to_the_released_conv_network(walk, models):
    """3.weight is a 1x1 kernel, 6.weight a matrix."""
    conv = {role: models["released"].nets["conv"] for role in PREDICTED}
    only_conv = Models({"released": Known(conv, {"roles": "released"})})
    first, second = (predict(walk, "released", known=given) for given in (models, only_conv))
    assert {key: torch.equal(first[key], second[key]) for key in ("0.weight", "3.weight", "6.weight", "6.bias")} == {
        "0.weight": True,
        "3.weight": True,
        "6.weight": False,
        "6.bias": False,
    }


def test_a_model_that_is_not_given_is_named(walk, hyper):
    with pytest.raises(KnowError, match="no model 'scaled' was given beside KNOWN"):
        predict(walk, "scaled_known", known=hyper)


def test_released_networks_that_are_not_here_are_named_with_the_reason(walk, hyper, monkeypatch):
    monkeypatch.delenv("KNOW_REFERENCE", raising=False)
    for name, options in (("released", {}), ("wnn", {}), ("shrink", {"of": "released"})):
        with pytest.raises(KnowError, match=r"not available: KNOW_REFERENCE, .* is not set"):
            predict(walk, name, known=hyper, **options)


# controls


@pytest.fixture(params=[1, 3])
def depth(request) -> int:
    return request.param


@pytest.mark.parametrize("of", ["known", "released"])
def test_norm_and_direction_make_a_square(of, depth, walk, models):
    """shrink has KNOWN's norm and theta_0's direction, renorm theta_0's norm and KNOWN's direction."""
    known = predict(walk, of, depth, known=models)
    shrunk, renormed = (predict(walk, name, depth, known=models, of=of) for name in ("shrink", "renorm"))
    for name in predicted_names(walk.theta_0):
        theta_0 = walk.theta_0[name]
        torch.testing.assert_close(shrunk[name].norm(), known[name].norm())
        torch.testing.assert_close(renormed[name].norm(), theta_0.norm())
        assert cosine(shrunk[name], theta_0) == pytest.approx(1, abs=1e-5)
        assert cosine(renormed[name], known[name]) == pytest.approx(1, abs=1e-5)
        assert abs(cosine(known[name], theta_0)) < 1 - 1e-5


def test_random_step_keeps_the_length_of_knowns_step_and_nothing_of_its_direction(depth, write_trajectory, hyper):
    torch.manual_seed(0)
    walk = write_trajectory([{"weight": torch.randn(100, 100)} for _ in FRACTIONS])
    theta_0 = walk.theta_0["weight"]
    step = predict(walk, "known", depth, known=hyper)["weight"] - theta_0
    ours, other = (predict(walk, "random_step", depth, known=hyper, seed=s)["weight"] - theta_0 for s in (1, 2))
    for first, second in ((ours, step), (ours, theta_0), (ours, other)):
        assert abs(cosine(first, second)) < 5 / 100  # 5 sigma of 10,000 dimensions
    torch.testing.assert_close(ours.norm(), step.norm())
    torch.testing.assert_close(other.norm(), step.norm())


def test_random_steps_of_two_tensors_differ(write_trajectory, hyper):
    torch.manual_seed(0)
    tensors = [torch.randn(20, 20) for _ in FRACTIONS]
    walk = write_trajectory([{"a.weight": t, "b.weight": t.clone()} for t in tensors])
    answer = predict(walk, "random_step", known=hyper)
    assert not torch.allclose(answer["a.weight"], answer["b.weight"])


def test_the_trajectory_part_is_what_a_constant_history_does_not_give(depth, walk, models):
    names = ("trajectory_part", "known", "constant")
    part, known, constant = (predict(walk, name, depth, known=models) for name in names)
    for key in predicted_names(walk.theta_0):
        torch.testing.assert_close(part[key], walk.theta_0[key] + known[key] - constant[key])


def test_constant_sees_theta_0_only(depth, walk, write_trajectory, models):
    other = write_trajectory([*history(9)[4:8], history()[-1]], name="other")
    still = write_trajectory([history()[-1]] * 5, name="still")
    answer = predict(walk, "constant", depth, known=models)
    assert equal(answer, predict(other, "constant", depth, known=models))
    assert equal(answer, predict(still, "known", depth, known=models))
    assert not equal(predict(walk, "known", depth, known=models), predict(other, "known", depth, known=models))


def test_kernels_and_biases_together_are_known(depth, walk, models):
    names = ("known", "kernels_only", "biases_only")
    known, kernels, biases = (predict(walk, name, depth, known=models) for name in names)
    for key, role in roles(walk.theta_0).items():
        taken, left = (biases, kernels) if role == "bias" else (kernels, biases)
        assert torch.equal(taken[key], known[key])
        assert torch.equal(left[key], walk.theta_0[key])


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_may_be_measured_against_the_released_networks(name, depth, walk, models):
    swapped = Models({"known": models["released"]})
    released, expected, known = (
        predict(walk, name, depth, **asked)
        for asked in ({"known": models, "of": "released"}, {"known": swapped}, {"known": models})
    )
    assert equal(released, expected)
    assert not equal(released, known)


def test_shuffled_never_keeps_the_true_order(write_trajectory):
    """Of three snapshots there is one other order; eight draws of the true one have a chance of 1 in 256."""
    known = Known({role: KnownNet(3) for role in PREDICTED})
    states = history()[-3:]
    walk, other = write_trajectory(states), write_trajectory([states[1], states[0], states[2]], name="other")
    expected = predict(other, "known", known=known)
    assert not equal(expected, predict(walk, "known", known=known))
    for seed in range(8):
        assert equal(predict(walk, "shuffled", known=known, seed=seed), expected)


def test_shuffled_gives_all_tensors_the_same_order(walk, models):
    seen = set()
    for seed in range(4):
        answer, fitting = predict(walk, "shuffled", known=models, seed=seed), []
        for order in itertools.permutations(range(4)):
            paths = [walk.paths[k] for k in (*order, 4)]
            if equal(answer, predict(Trajectory.from_checkpoints(paths, walk.fractions), "known", known=models)):
                fitting.append(order)
        assert len(fitting) == 1
        seen.update(fitting)
    assert len(seen) > 1
    assert (0, 1, 2, 3) not in seen


@pytest.mark.parametrize("name", ["mean", "shrink_and_perturb", "linear", "dmd"])
def test_what_reads_no_network_needs_none(name, walk):
    assert predict(walk, name, known=Models({}))


def test_shrink_and_perturb_shrinks_and_perturbs(write_trajectory):
    torch.manual_seed(0)
    walk = write_trajectory([{"weight": torch.randn(100, 100)} for _ in FRACTIONS])
    theta_0 = walk.theta_0["weight"]
    noise = predict(walk, "shrink_and_perturb", shrink=0.3, noise=0.5)["weight"] - 0.3 * theta_0
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    assert abs(cosine(noise, theta_0)) < 0.05
    torch.testing.assert_close(predict(walk, "shrink_and_perturb", noise=0.0)["weight"], 0.6 * theta_0)


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_to_a_zero_tensor_is_finite(name, kept, models):
    walk = kept("zeros", [{"weight": torch.zeros(3, 3), "bias": torch.zeros(3)} for _ in FRACTIONS])
    assert all(bool(t.isfinite().all()) for t in predict(walk, name, known=models).values())


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_to_a_trajectory_that_stands_still_is_finite(name, kept, models):
    walk = kept("still", [history()[-1]] * 5)
    assert all(bool(t.isfinite().all()) for t in predict(walk, name, known=models).values())


# wrong input


def test_values_that_are_not_finite_are_named(write_trajectory, hyper):
    states = history()
    states[2]["3.weight"][0, 0] = float("nan")
    with pytest.raises(KnowError, match=r"'3\.weight' of .*2\.safetensors"):
        predict(write_trajectory(states), known=hyper)


@pytest.mark.parametrize(("name", "near"), [("knwon", "known"), ("lineer", "linear"), ("random-step", "random_step")])
def test_an_unknown_method_is_named_with_the_nearest(name, near, walk):
    with pytest.raises(KnowError, match=f"unknown method '{name}': did you mean '{near}'"):
        predict(walk, name)


def test_names_are_those_of_the_files_and_hidden_ones_are_none():
    assert sorted(NAMES) == NAMES
    assert {"known", "linear", "shrink", "random_step"} <= set(NAMES)
    assert "__init__" not in NAMES


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
