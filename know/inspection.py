"""What a prediction does to the weights: how much of its step shrinks, how much extrapolates, how much does neither.

There are three tables: the step of a prediction taken apart, the movement of the trajectory itself (is there anything
to extrapolate?), and the same beside a placebo (is it forgetting?).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from know.checkpoints import State
from know.errors import KnowError
from know.files import new_folder, write_csv
from know.formats import same_bits
from know.known import Known, Models
from know.methods import differences_gram
from know.prediction import predict, predicted, standard_torch
from know.roles import PREDICTED, Role, names_by_role
from know.trajectory import Trajectory

PARTS = ["tensor", "role", "weights", "step", "shrink", "linear", "neither", "shrink_by", "linear_by"]
MOVEMENT = ["role", "difference", "size", "cosine"]
PLACEBO = ["role", "snapshot", "moved", "placebo_moved", "apart", "cosine", "placebo_cosine"]


@dataclass(frozen=True)
class Parts:
    """A step taken apart: step = a (-theta_0) + b (theta_0 - theta_1) + rest, the rest orthogonal to both.

    step: |step| / |theta_0|. shrink, linear, neither: the inner products of the step with its three parts, as shares of
    |step|^2; they add up to 1 and may be negative where the two directions are correlated; None where there is no step.
    shrink_by, linear_by: a and b; None where several tensors are pooled, each of which has its own.
    """

    tensor: str
    role: str
    weights: int
    step: float | None
    shrink: float | None
    linear: float | None
    neither: float | None
    shrink_by: float | None = None
    linear_by: float | None = None


def decompose(step: Tensor, theta_0: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The parts (3, N) of a step (N,) along -theta_0, along the last movement theta_0 - theta_1, and along neither.

    The second answer is the coefficients (2,) of the first two parts. All are float64, and the parts add up to the
    step. Where both directions are the same, each gets half.
    """
    directions = torch.stack([-theta_0, last], dim=1).double()  # (N, 2)
    lengths = directions.norm(dim=0).clamp_min(1e-300)
    unit = directions / lengths
    coefficients = torch.linalg.pinv(unit.T @ unit, rcond=1e-10, hermitian=True) @ (unit.T @ step.double()) / lengths
    parts = directions * coefficients
    return torch.stack([parts[:, 0], parts[:, 1], step.double() - parts.sum(1)]), coefficients


def steps(trajectory: Trajectory, weights: State, roles: Mapping[str, str] | None = None) -> list[Parts]:
    """The step from theta_0 to `weights` taken apart: every predicted tensor, then every role, then `all`.

    roles: as those of `know.predict`.
    """
    theta_0, theta_1 = trajectory.states[-1], trajectory.states[-2]
    rows, sums = [], {}
    for name, role in _moving(trajectory, roles).items():
        now, before, moved = (state[name].double().flatten() for state in (theta_0, theta_1, weights))
        step = moved - now
        parts, coefficients = decompose(step, now, now - before)
        numbers = torch.stack([step @ step, now @ now, *(parts @ step), torch.tensor(len(now)).double()])
        rows.append(_parts(name, role, numbers, *coefficients.tolist()))
        for key in (role, "all"):
            sums[key] = sums.get(key, 0) + numbers
    return rows + [_parts("", key, sums[key]) for key in (*PREDICTED, "all") if key in sums]


def _moving(trajectory: Trajectory, roles: Mapping[str, str] | None) -> dict[str, Role]:
    """Names and roles of the tensors that are predicted: those that are not the same in all snapshots."""
    return {name: role for name, role in predicted(trajectory, roles).items() if trajectory.moves(name)}


def _parts(tensor: str, role: str, numbers: Tensor, *coefficients: float) -> Parts:
    """numbers: |step|^2, |theta_0|^2, three inner products, count of weights."""
    squared, own, *products, count = numbers.tolist()
    relative = (squared / own) ** 0.5 if own else None
    shares = [product / squared if squared else None for product in products]
    return Parts(tensor, role, int(count), relative, *shares, *coefficients)


def movement(trajectory: Trajectory, roles: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The trajectory's own movement, one row per role and difference theta_k - theta_{k+1}.

    A row has the size of the difference relative to |theta_0|, and its cosine with the difference before it in
    forgetting, theta_{k-1} - theta_k, where k > 0.
    """
    rows = []
    for role, names in names_by_role(_moving(trajectory, roles)).items():
        gram = torch.stack([differences_gram(trajectory.window(name)) for name in names]).sum(0)
        size = torch.stack([trajectory.theta_0[name].double().square().sum() for name in names]).sum().sqrt()
        lengths, last = gram.diagonal().sqrt(), len(gram) - 1  # the column of theta_0 - theta_1
        for k in range(len(gram)):
            here = last - k
            product = gram[here, here + 1] / (lengths[here] * lengths[here + 1]).clamp_min(1e-300) if k else None
            relative = float(lengths[here] / size) if size > 0 else None
            rows.append({"role": role, "difference": k, "size": relative, "cosine": None if k == 0 else float(product)})
    return rows


def placebo_of(trajectory: Trajectory, folder: Path | None = None) -> Trajectory | None:
    """The placebo in a folder of its own, or the one that the trajectory keeps; None if there is none.

    KnowError if its length or its theta_0 is another.
    """
    if folder is None:
        return trajectory.placebo if trajectory.manifest.get("placebo") else None
    placebo = Trajectory.load(folder)
    if len(placebo.paths) != len(trajectory.paths):
        raise KnowError(f"{folder} has {len(placebo.paths)} snapshots, the trajectory has {len(trajectory.paths)}")
    one, other = trajectory.theta_0, placebo.theta_0
    if one.keys() != other.keys() or not all(same_bits(one[name], other[name]) for name in one):
        raise KnowError(f"{folder} is no placebo of this trajectory: it starts from another theta_0")
    return placebo


def beside_placebo(
    trajectory: Trajectory, placebo: Trajectory, roles: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """How much of the movement is forgetting: one row per role and snapshot theta_k, k = 1 ... S - 1.

    p_k, the placebo's snapshot, made as many steps from the same theta_0 with nothing removed.

    moved, placebo_moved, apart: |theta_k - theta_0|, |p_k - theta_0| and |theta_k - p_k|, relative to |theta_0|.
    cosine: of theta_k - p_k with theta_k - theta_0. It is 1 where the placebo stands still, so that all of the movement
    is forgetting. Two runs of a placebo lie apart too, by the order of their batches; so 0.7, which is the cosine of
    two that move equally far in directions of their own, says nothing.
    placebo_cosine: of p_k - theta_0 with theta_k - theta_0, which says how much of a direction both share.
    """
    last, rows = len(trajectory.paths) - 1, []
    for role, names in names_by_role(_moving(trajectory, roles)).items():
        for k in range(1, last + 1):
            gram, size = torch.zeros(2, 2, dtype=torch.float64), 0.0
            for name in names:
                theta_0 = trajectory.theta_0[name].double().flatten()
                snapshots = (seen.states[last - k][name].double().flatten() for seen in (trajectory, placebo))
                moves = torch.stack([snapshot - theta_0 for snapshot in snapshots])  # (2, N)
                gram += moves @ moves.T
                size += float(theta_0 @ theta_0)
            (own, product), (_, other) = gram.tolist()
            apart = max(0.0, own - 2 * product + other)
            lengths = [(square / size) ** 0.5 if size else None for square in (own, other, apart)]
            row = dict(zip(("moved", "placebo_moved", "apart"), lengths, strict=True))
            cosines = {"cosine": _cosine(own - product, own, apart), "placebo_cosine": _cosine(product, own, other)}
            rows.append({"role": role, "snapshot": k, **row, **cosines})
    return rows


def _cosine(product: float, one: float, other: float) -> float:
    """The cosine of two vectors from their inner product and their squared lengths; 0 where one has no length."""
    return product / (one * other) ** 0.5 if one and other else 0.0


def inspect_trajectory(
    trajectory: Trajectory,
    method: str = "known",
    depth: int = 1,
    *,
    known: Known | Models | Path | str | None = None,
    seed: int = 0,
    scale: float = 1.0,
    roles: Mapping[str, str] | None = None,
    placebo: Trajectory | None = None,
    out: Path | None = None,
    **options: Any,
) -> list[Parts]:
    """Take the step of one prediction apart, tensor by tensor; arguments as `know.predict`.

    placebo: a trajectory from the same theta_0 with nothing removed (`placebo_of`).
    out: folder for steps.csv, movement.csv and, where there is a placebo, placebo.csv; it must not exist.
    """
    weights = predict(trajectory, method, depth, known=known, seed=seed, scale=scale, roles=roles, **options)
    with standard_torch():
        rows = steps(trajectory, weights, roles)
        if out:
            with new_folder(out) as folder:
                write_table(folder / "steps.csv", map(asdict, rows), PARTS)
                write_table(folder / "movement.csv", movement(trajectory, roles), MOVEMENT)
                if placebo:
                    write_table(folder / "placebo.csv", beside_placebo(trajectory, placebo, roles), PLACEBO)
    return rows


def write_table(path: Path, rows: Iterable[dict[str, Any]], columns: list[str]) -> None:
    """Write rows as csv, floats with four significant digits, and nothing where there is no value."""

    def shown(value: Any) -> Any:
        if value is None:
            return ""
        return f"{value + 0.0:.4g}" if isinstance(value, float) else value

    write_csv(path, ({column: shown(row[column]) for column in columns} for row in rows), columns)
