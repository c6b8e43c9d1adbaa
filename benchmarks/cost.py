"""What an arm costs before fine-tuning (which costs the same for all): training on the source, prediction, memory.

Costs are measured in one process on snapshots of random weights in the network's shapes, since neither time nor memory
depends on the values. So no trajectory is needed, and all numbers of a table come from one machine at one time.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Arm, arms_of
from benchmarks.data import random_dataset
from benchmarks.networks import build
from benchmarks.references import REFERENCES
from benchmarks.settings import Cell
from benchmarks.suite import Suite
from benchmarks.training import number_of_steps, steps_per_epoch, train
from know.checkpoints import save_state
from know.files import read_json, write_csv
from know.known import Models
from know.recording import write_manifest
from know.roles import only_predicted
from know.seeds import stream
from know.trajectory import Trajectory

COLUMNS = ["source", "network", "track", "rate", "length", "weights", "theta_0_seconds", "arm", "trained", "seconds"]
COLUMNS += ["memory_mb"]
REPEATS, STEPS = 3, 20
"""Number of predictions per arm, of which the fastest counts, and of training steps that measure time per image."""


def measure(settings: Suite, work: Path, known: Mapping[int, Path], *, out: Path, device: str = "cpu") -> None:
    """Write the table `out` (csv): one row per arm for every source, network, track, r and S of a suite.

    weights: number of predicted scalars. theta_0_seconds: time to train theta_0 once, from the time of `STEPS` steps.
    trained: images used before fine-tuning, as a multiple of those for theta_0. seconds: time of the prediction, with
    snapshots in memory. memory_mb: growth of the process meanwhile, at its peak (empty where that is not known).
    work: folder with the suite's `data.json`. known: folders of the networks by S. device: where networks are trained;
    predictions always run on the CPU.
    """
    data, rows = read_json(work / "data.json"), []
    seen = {(c.source, c.network, c.track, c.ratio, c.length): c for c in settings.cells}
    for place, cell in sorted(seen.items()):
        arms = _of_cell(settings, cell, data[cell.source], Models(known[cell.length]), device)
        rows += [dict(zip(COLUMNS, [*place, *entries], strict=True)) for entries in arms]
    write_csv(out, rows, COLUMNS)


def _of_cell(settings: Suite, cell: Cell, data: Mapping[str, Any], models: Models, device: str) -> list[list]:
    """The entries of a row after those that name its place, for each arm."""
    shape, classes = tuple(data["shape"]), len(data["classes"])
    arms = [arm for arm in arms_of(settings.arms, cell) if not arm.missing]
    with tempfile.TemporaryDirectory() as folder:
        trajectory, other = (_random(cell, shape, classes, Path(folder, str(k)), k) for k in (1, 2))
        asked = {arm.name: functools.partial(arm.start, trajectory, models, 0) for arm in arms if arm.predictor}
        memory = {name: _growth(start) for name, start in asked.items()}
        seconds = {name: _fastest(start) for name, start in asked.items()}
        looks_back = {arm.name for arm in arms if arm.predictor and _looks_back(arm, trajectory, other, models)}
    shown = images(settings, cell, round(settings.forgetting.d0 * data["train"]))
    theta_0 = shown["naive"] * _seconds_per_image(settings, cell, shape, classes, device)
    weights, rows = sum(trajectory.theta_0[name].numel() for name in only_predicted(trajectory.roles())), []
    for arm in arms:
        like = arm.name if not arm.predictor else "trajectory" if arm.name in looks_back else "naive"
        row = [weights, f"{theta_0:.4g}", arm.name, f"{shown[like] / shown['naive']:.4g}"]
        grown = memory.get(arm.name, 0.0)
        rows.append([*row, f"{seconds.get(arm.name, 0):.3g}", "" if grown is None else f"{grown:.3g}"])
    return rows


def images(settings: Suite, cell: Cell, size: int) -> dict[str, float]:
    """Number of source images used in training, by reference, and for `trajectory` (theta_0 and all forgetting steps).

    size: number of images in D0.
    """
    run = _Counted(settings, cell, size)
    shown = {r.name: r.function(run) for r in REFERENCES.values()}
    return {**shown, "trajectory": run.theta_0 + run.forgetting(cell.length)}


class _Counted:
    """A `benchmarks.references.SourceRun` that trains nothing: it returns numbers of images in place of weights."""

    initial = 0.0

    def __init__(self, settings: Suite, cell: Cell, size: int):
        self.settings, self.cell, self.size = settings, cell, size
        own = settings.pretraining.epochs * size
        self.step = settings.forgetting.step
        # on the retrodiction track a forgetting step makes theta_0 from theta_{-1}, the oracle
        self.theta_0 = own if cell.track == "overflow" else 2 * own + self._step(size)

    def _step(self, shown: float) -> float:
        """Of one forgetting step on `shown` images."""
        return self.step.steps * self.step.batch_size if self.step.steps else self.step.epochs * shown

    def pretrain(self, factor: int, *, steps: float | None = None) -> float:
        return (steps or factor) * self.settings.pretraining.epochs * self.size

    def average(self, kind: str) -> float:
        return self.theta_0

    def train_on(self, factor: int = 1, **how: bool) -> float:
        # cells that differ in S alone share trajectories, and these references are made for the longest of them
        longest = max(each.length for each in (self.cell, *self.settings.cells) if each.origin == self.cell.origin)
        # it makes as many updates as the forgetting steps, each on a whole batch of D0; their last batches are smaller
        sizes = [round(self.size * self.cell.ratio**k) for k in range(1, longest)]
        updates = sum(number_of_steps(self.step, size) for size in sizes)
        epochs, rest = divmod(updates, steps_per_epoch(self.size, self.step.batch_size))
        return self.theta_0 + epochs * self.size + min(rest * self.step.batch_size, self.size)

    def forgetting(self, length: int) -> float:
        """Of the steps that lead from theta_0 to the last of `length` snapshots."""
        return sum(self._step(round(self.size * self.cell.ratio**k)) for k in range(1, length))


def _random(cell: Cell, shape: tuple[int, int, int], classes: int, folder: Path, seed: int) -> Trajectory:
    """A trajectory of random weights; theta_0 and its initial weights are the same for every seed."""
    state = build(cell.network, shape, classes, seed=0).state_dict()
    dice = torch.Generator().manual_seed(stream("cost", seed))
    files = {f"{letter if k else 's'}{k}.safetensors": k for letter in "sp" for k in range(cell.length)}
    for file, k in files.items():
        moved = {
            name: tensor + 0.01 * k * torch.randn(tensor.shape, generator=dice)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in state.items()
        }
        save_state(folder / file, moved, {"fraction": cell.ratio**k})
    save_state(folder / "scratch.safetensors", build(cell.network, shape, classes, seed=1).state_dict())
    own, beside = ([f"{letter}{k}.safetensors" for k in reversed(range(1, cell.length))] for letter in "sp")
    write_manifest(folder, [*own, "s0.safetensors"], {"scratch": "scratch.safetensors"}, beside)
    trajectory = Trajectory.load(folder)
    _ = trajectory.states, trajectory.placebo.states  # read now, so that the time leaves reading out
    return trajectory


def _looks_back(arm: Arm, trajectory: Trajectory, other: Trajectory, models: Models) -> bool:
    """Whether an arm uses more than theta_0: whether its answer changes with the history of the same theta_0."""
    one, two = (arm.start(seen, models, 0) for seen in (trajectory, other))
    same = all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    return not same or one.rates != two.rates


def _fastest(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _growth(call: Callable[[], Any]) -> float | None:
    """MiB by which the process grows during `call`, at its peak; None where Linux's counters are not available.

    A first call loads code and tables; memory that it leaves in the allocator is freed, so that the second allocates.
    """
    call()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before = _status("VmRSS")
    except (AttributeError, OSError):
        return None
    call()
    return max(0, _status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    """The value of `key` in the status of this process, in KiB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{key}:")[1].split()[0])


def _seconds_per_image(settings: Suite, cell: Cell, shape: tuple[int, int, int], classes: int, device: str) -> float:
    """Seconds per image of training as for theta_0, on random images; the first steps, which warm up, do not count."""
    size = settings.pretraining.batch_size * STEPS
    dataset = random_dataset(size, shape, classes).to(device)
    model, split = build(cell.network, shape, classes, seed=0).to(device), dataset.train
    recipe = settings.pretraining.model_copy(update={"epochs": 1, "steps": None})
    train(copy.deepcopy(model), dataset, split, recipe.model_copy(update={"steps": 2}), seed=0)  # also compiles
    return _fastest(lambda: train(model, dataset, split, recipe, seed=0)) / size
