"""The plane of one trajectory: the places of snapshots, predictions and oracle, and the source loss around them.

It is the principal plane (PCA) of the snapshots, KNOWN's predictions at depths 1, 2, 3 and the oracle, over all scalars
of the predicted roles. Norm parameters and buffers are those of theta_0 everywhere, as they are in a prediction.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data import load
from benchmarks.networks import build
from benchmarks.settings import DEPTHS, LENGTH
from benchmarks.training import evaluated, logits
from know.checkpoints import State
from know.errors import KnowError
from know.files import write_csv
from know.known import Models
from know.prediction import Overflow, predict
from know.roles import only_predicted, roles
from know.trajectory import Trajectory

COLUMNS = ["kind", "label", "x", "y", "loss"]
SIZE = 25
"""Number of points of the grid along each axis."""
IMAGES = 2000
"""Number of test images over which the loss is averaged. More are not needed for a figure and would take minutes."""
MARGIN = 0.25
"""Margin that the grid adds on every side, as a share of the longer side of the points' box."""


def make_landscape(
    trajectory_folder: Path, known_folder: Path, *, length: int = LENGTH, out: Path, device: str = "cpu"
) -> None:
    """Write the table `out` (csv) of the plane of one trajectory. Columns: kind, label, x, y, loss.

    x, y: distance from theta_0 along the two axes, in the units of the weights. loss: mean cross entropy on the first
    `IMAGES` images of the source test set. There is one row per `snapshot` (theta_4 ... theta_0), `known` prediction
    (x2, ...: r^-depth; those that are not finite are left out) and oracle (`oracle`, or else `oracle_steps`, if kept),
    with the loss of the weights, which lie off the plane. The rows `grid` have the loss on the plane. Normalisation and
    buffers are those of theta_0 in all rows, so a snapshot or an oracle by itself has another loss.
    `variance`: the share of the points' variance along x and along y. `about`: what is drawn, in words.
    """
    trajectory, known = Trajectory.load(trajectory_folder).last(length), Models(known_folder)
    facts = trajectory.manifest
    if missing := [key for key in ("source", "network", "track", "trajectory") if key not in facts]:
        raise KnowError(f"{trajectory_folder} was not made by a suite: its manifest lacks {', '.join(missing)}")
    theta_0 = trajectory.theta_0
    names = list(only_predicted(roles(theta_0)))
    dataset = load(facts["source"], device=device)
    seen = dataset.test.take(torch.arange(min(IMAGES, len(dataset.test))))
    model = build(facts["network"], dataset.shape, len(dataset.classes)).to(device)

    def flat(state: State) -> Tensor:  # (P,), float64
        return torch.cat([state[name].flatten().double() for name in names])

    @torch.no_grad()
    def loss(point: Tensor) -> float:  # the loss of weights (P,)
        parts = point.split([theta_0[name].numel() for name in names])
        replaced = {n: p.view_as(theta_0[n]).to(theta_0[n].dtype) for n, p in zip(names, parts, strict=True)}
        model.load_state_dict({**theta_0, **replaced})
        return float(F.cross_entropy(logits(model, evaluated(dataset, seen)), seen.labels))

    rate = trajectory.fractions[-2]
    last = len(trajectory.states) - 1
    drawn = [("snapshot", f"theta_{last - k}", flat(state)) for k, state in enumerate(trajectory.states)]
    for depth in DEPTHS:
        try:
            answer = predict(trajectory, "known", depth, known=known)
        except Overflow:
            break  # deeper ones would build on it
        drawn.append(("known", f"x{rate**-depth:.2g}", flat(answer)))
    oracles = [name for name in ("oracle", "oracle_steps") if name in trajectory.manifest["references"]]
    drawn += [("oracle", name, flat(trajectory.reference(name))) for name in oracles[:1]]
    points = torch.stack([point for _, _, point in drawn])  # (points, P)
    axes, shares = principal_plane(points)
    places = (points - points[last]) @ axes.T  # (points, 2), theta_0 at (0, 0)
    # theta_0 lies off the plane through the points' mean; the grid is centred on its projection onto that plane
    centre = points.mean(0)
    shadow = centre + ((points[last] - centre) @ axes.T) @ axes

    low, high = places.min(0).values, places.max(0).values
    margin = MARGIN * (high - low).max()
    xs, ys = (torch.linspace(float(low[i] - margin), float(high[i] + margin), SIZE).double() for i in range(2))

    about = f"{facts['source']}, {facts['network']}, {facts['track']} track, trajectory {facts['trajectory']}"
    rows = [_row("about", f"{about}, {len(seen)} test images"), _row("variance", "share", *shares.tolist())]
    for (kind, label, point), place in zip(drawn, places, strict=True):
        rows.append(_row(kind, label, *place.tolist(), loss(point)))
    for y in ys:
        for x in xs:
            rows.append(_row("grid", "", float(x), float(y), loss(shadow + x * axes[0] + y * axes[1])))
    write_csv(out, rows, COLUMNS)


def principal_plane(points: Tensor) -> tuple[Tensor, Tensor]:
    """The two unit directions of greatest variance, (2, P), of points (N, P), and their shares of the variance, (2,).

    SVD leaves the sign of a direction open; here the component of largest magnitude is positive.
    """
    _, scale, directions = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    axes = directions[:2]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))  # (2, 1)
    return axes * largest.sign(), scale[:2].square() / scale.square().sum()


def _row(kind: str, label: str, *numbers: float) -> dict[str, str]:
    """One row, with x, y and loss to 6 significant digits; numbers not given are left empty, and -0 becomes 0."""
    shown = [f"{number + 0.0:.6g}" for number in numbers] + [""] * (3 - len(numbers))
    return dict(zip(COLUMNS, [kind, label, *shown], strict=True))
