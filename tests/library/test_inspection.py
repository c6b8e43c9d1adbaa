"""What a prediction does to the weights: steps taken apart, the trajectory's movement, response curves."""

import csv

import pytest
import torch

from know.drawing import draw_inspection
from know.inspection import (
    MOVEMENT,
    PARTS,
    PLACEBO,
    beside_placebo,
    decompose,
    inspect_trajectory,
    movement,
    steps,
)
from know.prediction import predict
from know.roles import PREDICTED, only_predicted, roles

SHAPES = {
    "a.weight": (4, 2, 3, 3),
    "a.bias": (4,),
    "b.weight": (5, 8),
    "b.bias": (5,),
    "n.weight": (4,),
    "n.bias": (4,),
}


def random_state(seed: int) -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=dice) for name, shape in SHAPES.items()}


def moved(state, *others, by: tuple[float, ...]):
    return {name: t + sum(b * o[name] for b, o in zip(by, others, strict=True)) for name, t in state.items()}


@pytest.fixture
def walk(write_trajectory):
    return write_trajectory([random_state(k) for k in range(5)])


# steps taken apart


def vectors(seed: int, count: int = 50) -> tuple[torch.Tensor, ...]:
    dice = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, generator=dice, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("correlation", [0.0, 0.9, -0.999])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_parts_add_up_and_the_rest_is_orthogonal(correlation, size):
    step, theta_0, other = vectors(0)
    last = size * (correlation * theta_0 + (1 - correlation**2) ** 0.5 * other)
    parts, coefficients = decompose(step, theta_0, last)
    torch.testing.assert_close(parts.sum(0), step, atol=1e-14, rtol=1e-14)
    torch.testing.assert_close(parts[0], -coefficients[0] * theta_0)
    torch.testing.assert_close(parts[1], coefficients[1] * last)
    for direction in (theta_0, last):
        assert abs(float(parts[2] @ direction / (direction.norm() * step.norm()))) < 1e-10


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_direction_is_shared(sign):
    """theta_0 - theta_1 along theta_0: shrinking and extrapolation are the same, and nothing explodes."""
    step, theta_0, _ = vectors(3)
    parts, coefficients = decompose(step, theta_0, sign * 0.1 * theta_0)
    assert bool(coefficients.isfinite().all())
    torch.testing.assert_close(parts[0], parts[1])
    torch.testing.assert_close(parts.sum(0), step)
    assert abs(float(parts[2] @ theta_0)) < 1e-10


@pytest.mark.parametrize("zero", [{0}, {1}, {2}, {1, 2}, {0, 1, 2}])
def test_zeros_are_finite(zero):
    step, theta_0, last = (0 * v if i in zero else v for i, v in enumerate(vectors(4)))
    parts, coefficients = decompose(step, theta_0, last)
    assert bool(parts.isfinite().all())
    assert bool(coefficients.isfinite().all())
    torch.testing.assert_close(parts.sum(0), step)
    for place, direction in enumerate((theta_0, last)):
        assert bool(parts[place].any()) == bool(direction.any() and step.any())


def test_the_rows_are_tensors_then_roles_then_all(walk):
    rows = steps(walk, random_state(9))
    predicted = only_predicted(roles(walk.theta_0))
    assert [(row.tensor, row.role) for row in rows] == [
        *predicted.items(),
        *(("", role) for role in (*PREDICTED, "all")),
    ]
    assert {row.tensor: row.weights for row in rows if row.tensor} == {n: walk.theta_0[n].numel() for n in predicted}
    for row in rows:
        assert row.shrink + row.linear + row.neither == pytest.approx(1, abs=1e-12)
        assert (row.shrink_by is None) == (row.linear_by is None) == (row.tensor == "")


def test_a_role_pools_its_tensors(walk):
    """Shares of |step|^2 add up weighted by it; the role bias has two tensors here."""
    weights = random_state(9)
    rows = steps(walk, weights)
    for role in (*PREDICTED, "all"):
        pooled = next(row for row in rows if not row.tensor and row.role == role)
        own = [row for row in rows if row.tensor and role in (row.role, "all")]
        squares = [float((weights[r.tensor].double() - walk.theta_0[r.tensor]).square().sum()) for r in own]
        norms = [float(walk.theta_0[r.tensor].double().square().sum()) for r in own]
        assert pooled.weights == sum(row.weights for row in own)
        assert pooled.step == pytest.approx((sum(squares) / sum(norms)) ** 0.5)
        for part in ("shrink", "linear", "neither"):
            expected = sum(getattr(row, part) * square for row, square in zip(own, squares, strict=True)) / sum(squares)
            assert getattr(pooled, part) == pytest.approx(expected, abs=1e-12)


def test_a_pure_shrink_is_all_shrink(walk):
    for row in steps(walk, {name: 0.7 * t for name, t in walk.theta_0.items()}):
        assert row.step == pytest.approx(0.3, rel=1e-5)
        assert (row.shrink, row.linear, row.neither) == pytest.approx((1, 0, 0), abs=1e-5)
        if row.tensor:
            assert (row.shrink_by, row.linear_by) == pytest.approx((0.3, 0), abs=1e-5)


@pytest.mark.parametrize(("name", "by"), [("linear", 1), ("linear_reverse", -1)])
def test_a_linear_step_is_all_linear(name, by, walk):
    for row in steps(walk, predict(walk, name)):
        assert (row.shrink, row.linear, row.neither) == pytest.approx((0, 1, 0), abs=1e-5)
        if row.tensor:
            assert (row.shrink_by, row.linear_by) == pytest.approx((0, by), abs=1e-5)


def test_what_is_orthogonal_to_both_is_neither(write_trajectory):
    basis = torch.eye(4)
    states = [{"weight": basis[k].reshape(2, 2)} for k in (0, 1)]
    walk = write_trajectory(states)
    for row in steps(walk, {"weight": walk.theta_0["weight"] + basis[2].reshape(2, 2)}):
        assert (row.shrink, row.linear, row.neither) == pytest.approx((0, 0, 1))
        assert row.step == pytest.approx(1)


def test_no_step_has_no_shares(walk):
    for row in steps(walk, walk.theta_0):
        assert row.step == 0
        assert (row.shrink, row.linear, row.neither) == (None, None, None)


def test_a_tensor_of_zeros_has_no_relative_step(write_trajectory):
    zeros = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    moved = {name: tensor + 1 for name, tensor in zeros.items()}
    rows = steps(write_trajectory([moved, zeros, zeros]), {"weight": torch.ones(2, 2), "bias": torch.zeros(2)})
    found = {row.tensor or row.role: row for row in rows}
    assert {row.step for row in rows} == {None}
    assert found["weight"].neither == found["all"].neither == 1
    assert found["bias"].neither is None


# the trajectory's movement


def test_a_straight_trajectory_keeps_its_direction(write_trajectory):
    start, way = random_state(0), random_state(1)
    walk = write_trajectory([moved(start, way, by=(0.1 * k,)) for k in range(5)])
    rows = movement(walk)
    assert [(row["role"], row["difference"]) for row in rows] == [
        (role, k) for role in (*PREDICTED, "all") for k in range(4)
    ]
    for row in rows:
        assert row["cosine"] == (None if row["difference"] == 0 else pytest.approx(1, abs=1e-5))


def test_a_zigzag_turns_back_each_time(write_trajectory):
    here, there = random_state(0), random_state(1)
    rows = movement(write_trajectory([here, there, here, there, here]))
    assert [row["cosine"] for row in rows if row["difference"]] == 12 * [pytest.approx(-1)]


def test_differences_are_counted_from_theta_0_and_relative_to_it(write_trajectory):
    basis = torch.eye(9)
    values = [9 * basis[0], 9 * basis[0] + 3 * basis[1], 9 * basis[0] + 3 * basis[1] + 4 * basis[2]]
    walk = write_trajectory([{"weight": value.reshape(3, 3)} for value in values])
    size = float(values[-1].norm())
    rows = [row for row in movement(walk) if row["role"] == "fc"]
    assert [row["size"] for row in rows] == pytest.approx([4 / size, 3 / size])
    assert rows[1]["cosine"] == pytest.approx(0, abs=1e-7)


def test_movement_is_finite_where_steps_or_theta_0_are_zero(write_trajectory):
    """What stands still in all snapshots has no rows, since it is not predicted."""
    state = random_state(0)
    zeros = {name: 0 * tensor for name, tensor in state.items()}
    rows = movement(write_trajectory([zeros, state, state]))
    assert {row["size"] for row in rows if row["difference"] == 0} == {0.0}
    assert {row["cosine"] for row in rows} == {None, 0.0}
    assert {row["size"] for row in movement(write_trajectory([state, zeros, zeros], name="zeros"))} == {None}
    assert movement(write_trajectory([state] * 3, name="still")) == []


# whole trajectories


def table(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_inspecting_a_trajectory_writes_its_three_tables(walk, models, write_trajectory, tmp_path):
    beside = write_trajectory([*(walk.states[k] for k in (2, 0, 3, 1)), walk.theta_0], name="beside")
    asked = {"known": models, "placebo": beside, "out": tmp_path / "out", "of": "released"}
    rows = inspect_trajectory(walk, "shrink", 3, **asked)
    assert rows == steps(walk, predict(walk, "shrink", 3, known=models, of="released"))
    written = {path.stem: table(path) for path in (tmp_path / "out").iterdir()}
    assert {name: list(found[0]) for name, found in written.items()} == {
        "steps": PARTS,
        "movement": MOVEMENT,
        "placebo": PLACEBO,
    }
    moved = beside_placebo(walk, beside)[-1]["placebo_moved"]
    assert float(written["placebo"][-1]["placebo_moved"]) == pytest.approx(moved, rel=1e-3)
    assert [row["tensor"] for row in written["steps"]] == [row.tensor for row in rows]
    assert float(written["steps"][0]["step"]) == pytest.approx(rows[0].step, rel=1e-3)
    assert inspect_trajectory(walk, "shrink", 3, known=models, of="released") == rows


def test_an_inspection_without_a_placebo_can_be_drawn(walk, models, tmp_path):
    inspect_trajectory(walk, "mean", known=models, out=tmp_path / "out")
    assert not (tmp_path / "out/placebo.csv").exists()
    assert draw_inspection(tmp_path / "out")
