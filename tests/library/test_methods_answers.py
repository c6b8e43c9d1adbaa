"""What each of the shipped methods promises: answers that are known, and what the controls control."""

import itertools

import pytest
import torch
from random_walk import history, predicted_names
from small_model import FRACTIONS, equal, with_scratch

from know import methods
from know.errors import KnowError
from know.known import Known, KnownNet, Models
from know.methods import recurse
from know.prediction import predict, windows
from know.roles import PREDICTED, roles
from know.trajectory import Trajectory

CONTROLS = [name for name in methods.names() if "of" in methods.get(name).options]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


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
@pytest.mark.parametrize(("size", "bend"), [(0.1, 0.0), (0.1, 1e-5), (0.1, 1e-4)])
@pytest.mark.parametrize("name", ["rre", "mpe"])
def test_a_straight_line_has_no_limit(name, size, bend, scope, write_trajectory):
    """Neither has one that is almost straight: nothing far away may come of it, the answer is theta_0."""
    states = family(lambda k, noise: noise(0) + size * (k - bend * k**2) * noise(1))
    answer = predict(write_trajectory(states), name, scope=scope)
    assert equal(answer, states[-1])  # float64 keeps its digits


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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("known", "takes 5 snapshots, and was asked about 3"),
        ("meta_linear", "4 coefficients, the history gives 2 terms"),
    ],
)
def test_a_history_of_another_length_than_that_of_the_models_is_refused(name, said, write_trajectory, models):
    with pytest.raises(KnowError, match=said):
        predict(write_trajectory(history()[-3:]), name, known=models)


@pytest.mark.parametrize(
    ("name", "model"), [("known", "known"), ("scaled_known", "scaled"), ("released", "released"), ("wnn", "wnn")]
)
def test_a_network_adds_the_residual_of_the_tensors_role(name, model, walk, models):
    answer, asked = predict(walk, name, known=models), models[model]
    for key, role in roles(walk.theta_0).items():
        if role in PREDICTED:
            own = asked.role_of(role, tuple(walk.theta_0[key].shape))
            expected = walk.theta_0[key].flatten() + asked.residual(walk.window(key), own)
            torch.testing.assert_close(answer[key].flatten(), expected)


def test_released_networks_that_are_not_here_are_named_with_the_reason(walk, hyper, monkeypatch):
    monkeypatch.delenv("KNOW_REFERENCE", raising=False)
    for name, options in (("released", {}), ("wnn", {}), ("wnn_plus", {}), ("shrink", {"of": "released"})):
        with pytest.raises(KnowError, match=r"not available: KNOW_REFERENCE, .* is not set"):
            predict(walk, name, known=hyper, **options)


# a method that looks at the initial weights


@pytest.mark.parametrize("alpha", [0.3, 1.0, 0.0])
def test_expo_goes_on_from_the_initial_weights_through_theta_0(alpha, with_initial):
    initial, theta_0 = with_initial.reference("scratch"), with_initial.theta_0
    options = {} if alpha == 0.3 else {"alpha": alpha}
    for key, found in predict(with_initial, "expo", **options).items():
        torch.testing.assert_close(found - initial[key], (1 + alpha) * (theta_0[key] - initial[key]))


def test_expo_without_initial_weights_says_how_to_keep_them(trajectory, walk):
    """Neither a folder of one's own nor single checkpoints have them; a folder made with them does."""
    for missing in (trajectory, Trajectory.from_checkpoints(walk.paths, walk.fractions)):
        with pytest.raises(KnowError) as caught:
            predict(missing, "expo")
        for part in ("expo", "weights before any training", "'scratch'", "know.forget", "references="):
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s.update({"3.weight": torch.zeros(8, 3)}),
            r"'3\.weight'.* \(8, 12, 1, 1\).*scratch' has .*\(8, 3\)",
        ),
        (lambda s: s.pop("3.weight"), r"'3\.weight'.*'scratch' lacks"),
    ],
    ids=["another shape", "one tensor less"],
)
def test_initial_weights_of_another_network_are_named(change, said, write_trajectory):
    states = history()
    other = dict(states[0])
    change(other)
    with pytest.raises(KnowError, match=said):
        predict(with_scratch(write_trajectory(states), other), "expo")


def test_damaged_initial_weights_are_named(write_trajectory):
    walk = write_trajectory(history())
    path = walk.paths[-1].with_name("scratch.safetensors")
    path.write_bytes(walk.paths[0].read_bytes())
    with pytest.raises(KnowError, match=r"scratch\.safetensors.*hash"):
        predict(walk, "expo")
    path.unlink()
    with pytest.raises(KnowError, match=r"scratch\.safetensors does not exist"):
        predict(walk, "expo")
    assert predict(walk, "linear")  # what does not look at them does not need them


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_method_sees_a_reference_as_it_sees_a_window(dtype, write_trajectory):
    states = [{name: t.to(dtype) if t.is_floating_point() else t for name, t in s.items()} for s in history()]
    walk = with_scratch(write_trajectory(states), states[0])
    for info, window in windows(walk, 1, Models({}), 0):
        assert torch.equal(info.reference("scratch"), window[:, 0])


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
    answer = predict(walk, "constant", depth, known=models)
    assert equal(answer, predict(other, "constant", depth, known=models))
    for key in predicted_names(walk.theta_0):  # KNOWN's answer to a history that stands still
        role, still = roles(walk.theta_0)[key], walk.theta_0[key].flatten()[:, None].repeat(1, 5)
        expected = recurse(
            still, lambda window, role=role: window[:, -1] + models["known"].residual(window, role), depth
        )
        torch.testing.assert_close(answer[key].flatten(), expected, rtol=1e-6, atol=1e-7)
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
