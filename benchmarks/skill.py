"""Skill where the truth exists: how near methods come to theta_{-1}, on trajectories of the suites' own kind.

On the retrodiction track the first forgetting step made theta_0 from theta_{-1}. The networks that ship are asked there
about sources that they were not meta-trained on, before any fine-tuning is judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks.arms import arms_of
from benchmarks.data import load
from benchmarks.finetune import source_accuracy
from benchmarks.metaset import SNAPSHOTS, WINDOWS
from benchmarks.metatraining import trajectories_of
from benchmarks.progress import progress
from benchmarks.settings import LENGTH, Cell, Skill
from benchmarks.store import Store
from benchmarks.suite import load_suite
from benchmarks.training import steps_per_epoch
from benchmarks.trajectories import make_origin
from know.checkpoints import State, load_state
from know.files import write_csv
from know.inspection import movement
from know.known import Models
from know.roles import names_by_role, roles
from know.trajectory import Trajectory

TRACK = "retrodiction"
COLUMNS = ["network", "trajectory", "arm", "role", "step", "weight_error"]
COLUMNS += ["source_accuracy", "source_accuracy_recalibrated"]
MOVEMENT = ["network", "trajectory", "role", "difference", "size", "cosine"]


def measure(network: str, settings: Skill, *, known: Path, store: Store, work: Path, device: str = "cpu") -> None:
    """Make the trajectories of one network and write `<work>/skill/<network>.csv`, a row per arm, trajectory and role,
    and `<work>/skill/<network>.movement.csv`, how they move (see `know.inspection.movement`).

    known: folder of the networks that methods ask. A row of the role "all" has the source accuracies too.
    """
    suite = load_suite(settings.suite)
    forgetting = suite.forgetting
    cell = Cell(TRACK, settings.source, settings.source, network, 1.0, forgetting.ratio, forgetting.length)
    names, place = [f"t{k}" for k in range(settings.trajectories)], work / "trajectories" / cell.origin.slug
    asked = {"references": settings.arms.references, "store": store, "out": place, "device": device}
    make_origin(cell.origin, names, [TRACK], suite.pretraining, forgetting, **asked)
    source, models = load(settings.source, device=device), Models(known)
    arms, rows, moved = [arm for arm in arms_of(settings.arms, cell) if not arm.missing], [], []
    for name in progress(names, desc=f"skill on {network}"):
        trajectory = Trajectory.load(place / name / TRACK)
        about = {"network": network, "trajectory": name}
        moved += [{**about, **row} for row in movement(trajectory)]
        truth = trajectory.reference("oracle")
        for arm in arms:
            weights = arm.start(trajectory, models, trajectory.manifest["source_seed"]).weights
            accuracies = source_accuracy(weights, network, source)
            for role, row in _distances(weights, trajectory.theta_0, truth):
                rows.append({**about, "arm": arm.name, "role": role, **row, **(accuracies if role == "all" else {})})
    write_csv(work / "skill" / f"{network}.csv", rows, COLUMNS)
    write_csv(work / "skill" / f"{network}.movement.csv", moved, MOVEMENT)


def _distances(weights: State, theta_0: State, truth: State) -> Iterator[tuple[str, dict[str, Any]]]:
    """By role, and of all predicted weights: |step| / |theta_0| and |weights - theta_{-1}| / |theta_0 - theta_{-1}|."""
    for role, names in names_by_role(roles(theta_0)).items():
        answer, before, true = (_flat(state, names) for state in (weights, theta_0, truth))
        step, error = (answer - before).norm() / before.norm(), (answer - true).norm() / (before - true).norm()
        yield role, {"step": f"{float(step):.6g}", "weight_error": f"{float(error):.6g}"}


def _flat(state: State, names: Iterable[str]) -> Tensor:
    return torch.cat([state[name].double().flatten() for name in names])


def differences(windows: Tensor) -> pd.DataFrame:
    """How windows (N, S), smallest subset first, move, with the columns of `MOVEMENT` that say so: the size of each
    difference theta_k - theta_{k+1} relative to |theta_0|, and its cosine with the difference before it in forgetting.
    """
    steps = windows.double().diff(dim=1).flip(1)  # theta_0 - theta_1 first
    sizes = steps.norm(dim=0) / windows[:, -1].double().norm()
    cosines = torch.nn.functional.cosine_similarity(steps[:, 1:], steps[:, :-1], dim=0)
    return pd.DataFrame({"difference": range(len(sizes)), "size": sizes.tolist(), "cosine": [None, *cosines.tolist()]})


QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def windows_table(shards: Iterable[Path], settings: Skill, work: Path) -> pd.DataFrame:
    """How the windows of the meta-set move, and those of `measure`: quantiles by role, as texts."""
    suite, found = load_suite(settings.suite), []
    for path, facts in trajectories_of(shards).items():
        if facts["status"] != "ok":
            continue
        for role, history in load_state(path).items():
            for end in range(SNAPSHOTS - WINDOWS + 1, SNAPSHOTS + 1):  # as `benchmarks.metaset.windows` cuts them
                moved = differences(history[:, end - LENGTH - 1 : end - 1])
                found.append(moved.assign(of="meta-set", role=role, updates=facts["updates"]))
    steps = suite.forgetting.step
    images = round(suite.forgetting.d0 * len(load(settings.source).train) * suite.forgetting.ratio)
    updates = steps.steps or steps.epochs * steps_per_epoch(images, steps.batch_size)
    for network in settings.networks:
        moved = pd.read_csv(work / "skill" / f"{network}.movement.csv")
        moved = moved[moved["role"] != "all"]
        found.append(moved.assign(of=f"{settings.source}, {network}", updates=updates))
    every, rows = pd.concat(found), []
    every["any"] = "-"  # a step has as many updates for every role
    for quantity, by in (("size", "role"), ("cosine", "role"), ("updates", "any")):
        for (role, of), own in every.groupby([by, "of"]):
            values = own[quantity].dropna()
            texts = [f"{value:.3g}" for value in values.quantile(list(QUANTILES))]
            rows.append([quantity, role, of, *texts, str(len(values))])
    return pd.DataFrame(rows, columns=["quantity", "role", "of", *(f"{100 * q:g} %" for q in QUANTILES), "n"])
