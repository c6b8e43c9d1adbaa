"""The placebo beside a trajectory: as many steps from the same theta_0 with nothing removed, and what it says."""

import pytest
import torch
from small_model import equal
from test_inspection import moved, random_state
from torch.utils.data import Subset
from training_functions import AdamCarried, Fit, interrupted, new_data, new_model

import know
from know.errors import KnowError
from know.inspection import beside_placebo, placebo_of


@pytest.fixture(scope="module")
def data():
    return new_data()


class Everything(AdamCarried):
    """One step on all images, whatever the subset; Adam's state is carried."""

    def __call__(self, model, subset):
        super().__call__(model, Subset(subset.dataset, range(len(subset.dataset))))
        self.calls[-1] = (list(subset.indices), self.calls[-1][1])


def forget(folder, data, fit, placebo, **options):
    return know.forget(new_model(), data, fit, placebo=placebo, length=4, out=folder, **options)


def test_it_starts_from_theta_0_goes_on_from_stage_to_stage_and_leaves_the_trajectory_alone(tmp_path, data):
    alone = know.forget(new_model(), data, Fit(), length=4, out=tmp_path / "alone")
    fit, placebo = Fit(), Everything()
    made = forget(tmp_path / "run", data, fit, placebo)
    assert all(equal(one, other) for one, other in zip(made.states, alone.states, strict=True))
    beside = made.placebo
    assert [indices for indices, _ in placebo.calls] == [indices for indices, _ in fit.calls]
    for k, (_, handed) in enumerate(placebo.calls, start=1):
        assert equal(handed, beside.states[-k])
    assert beside.fractions == made.fractions
    assert not equal(beside.states[0], made.states[0])
    with pytest.raises(KnowError, match="keeps no placebo"):
        _ = alone.placebo


def test_the_model_ends_as_the_smallest_subset_left_it(tmp_path, data):
    model = new_model()
    made = know.forget(model, data, Fit(), placebo=Everything(), out=tmp_path / "run")
    assert equal(model.state_dict(), made.states[0])


def test_a_shorter_trajectory_has_the_same_end_of_the_placebo(tmp_path, data):
    made = forget(tmp_path / "run", data, Fit(), Everything())
    shorter = made.last(3).placebo
    assert [path.name for path in shorter.paths] == ["p2.safetensors", "p1.safetensors", "s0.safetensors"]
    assert all(equal(one, other) for one, other in zip(shorter.states, made.placebo.states[1:], strict=True))


@pytest.mark.parametrize("kind", [Fit, AdamCarried])
@pytest.mark.parametrize("fail_at", [2, 4, 6])
def test_a_run_that_is_interrupted_anywhere_continues_to_the_same_bytes(tmp_path, data, folder_bytes, kind, fail_at):
    forget(tmp_path / "whole", data, kind(), Everything())
    with interrupted(fail_at):
        forget(tmp_path / "run", data, kind(), Everything())
    forget(tmp_path / "run", data, kind(), Everything())
    assert folder_bytes(tmp_path / "run") == folder_bytes(tmp_path / "whole")


def test_a_finished_run_of_another_placebo_is_refused(tmp_path, data):
    forget(tmp_path / "run", data, Fit(), Everything())
    with pytest.raises(KnowError, match="other weights, data, settings or `fit`"):
        forget(tmp_path / "run", data, Fit(), None)


def test_a_placebo_that_is_damaged_is_reported_when_it_is_read(tmp_path, data):
    made = forget(tmp_path / "run", data, Fit(), Everything())
    file = tmp_path / "run" / "p2.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    _ = made.placebo
    with pytest.raises(KnowError, match=r"p2\.safetensors"):
        _ = know.Trajectory.load(tmp_path / "run").placebo.states


# what it says


def written(write_trajectory, own: list[float], other: list[float], shared: list[float]):
    """theta_k has moved by own_k a + shared_k c, the placebo's snapshot by other_k b + shared_k c."""
    theta_0, a, b, c = (random_state(k) for k in range(4))
    walks = ((a, own, "trajectory"), (b, other, "placebo"))
    made = []
    for direction, sizes, name in walks:
        states = [moved(theta_0, direction, c, by=(x, z)) for x, z in zip(sizes, shared, strict=True)]
        made.append(write_trajectory([*reversed(states), theta_0], name=name))
    return made


def test_lengths_and_cosines_are_those_of_the_whole_vectors(write_trajectory):
    trajectory, placebo = written(write_trajectory, [0.1, 0.2], [0.05, 0.1], [0.1, 0.3])

    def vector(state, role):
        chosen = ("conv", "fc", "bias") if role == "all" else (role,)
        return torch.cat([state[n].double().flatten() for n, of in trajectory.roles().items() if of in chosen])

    rows = beside_placebo(trajectory, placebo)
    assert {row["role"] for row in rows} > {"all", "fc", "bias"}
    for row in rows:
        theta_0 = vector(trajectory.theta_0, row["role"])
        states = (seen.states[-1 - row["snapshot"]] for seen in (trajectory, placebo))
        own, other = (vector(state, row["role"]) - theta_0 for state in states)
        expected = [own.norm(), other.norm(), (own - other).norm()]
        assert [row["moved"], row["placebo_moved"], row["apart"]] == pytest.approx(
            [float(x / theta_0.norm()) for x in expected]
        )
        assert row["cosine"] == pytest.approx(float(torch.cosine_similarity(own - other, own, dim=0)))
        assert row["placebo_cosine"] == pytest.approx(float(torch.cosine_similarity(own, other, dim=0)))


def test_a_folder_with_another_theta_0_or_length_is_no_placebo(tmp_path, write_trajectory):
    states = [random_state(k) for k in range(4)]
    trajectory = write_trajectory(states)
    others = {
        "another theta_0": [*states[:3], random_state(9)],
        "5 snapshots, the trajectory has 4": [*states, states[3]],
    }
    assert placebo_of(trajectory) is None
    for said, other in others.items():
        with know.Trajectory.record(tmp_path / said, length=len(other)) as record:
            for k, state in enumerate(reversed(other)):
                record.add(state, 0.5**k)
        with pytest.raises(KnowError, match=said):
            placebo_of(trajectory, tmp_path / said)
