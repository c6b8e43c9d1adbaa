"""What every suite costs in jobs, hours and files, from its settings and the time of a training step here.

    KNOW_DATA=/folder/with/the/data python -m benchmarks.scaling                 writes benchmarks/scaling.csv
    KNOW_DATA=... python -m benchmarks.scaling --device cuda --suite gpu/NAME    on a machine with a GPU

Images used in training, fine-tunes, evaluations and files are counted from the settings. Seconds per image of training
and of evaluation are measured here, by network, data and batch size, on one thread or on a whole GPU. The table also
has the time that the jobs of a suite took where it has been run (results/<suite>/cost.csv).
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.arms import arms_of
from benchmarks.data import load
from benchmarks.networks import build, has_running_statistics
from benchmarks.references import Average, kept
from benchmarks.settings import Cell, Origin, Recipe, Track
from benchmarks.steps import steps
from benchmarks.suite import Suite, load_suite, suite_names
from benchmarks.training import accuracy, deterministic, train
from know.files import write_csv

STEPS = 12
"""Number of steps that are timed, after two that warm up."""


class Clock:
    """Measured seconds per image; each is measured once."""

    def __init__(self, device: str):
        self.device = device
        self.data = functools.cache(lambda spec: load(spec, device=device))
        self.training = functools.cache(self._training)
        self.evaluation = functools.cache(self._evaluation)
        self.model = functools.cache(self._model)

    def _model(self, spec: str, network: str) -> torch.nn.Module:
        data = self.data(spec)
        return build(network, data.shape, len(data.classes), seed=0).to(self.device)

    def _now(self) -> float:
        """Processor time, which leaves out other jobs of the machine; with a GPU, wall time once the GPU is done."""
        if not self.device.startswith("cuda"):
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def _training(self, spec: str, network: str, recipe: Recipe) -> float:
        data, marks = self.data(spec), []
        short = recipe.model_copy(update={"steps": STEPS + 2, "head_epochs": 0})
        mark = lambda *_: marks.append(self._now())  # noqa: E731
        train(self.model(spec, network), data, data.train, short, seed=0, after_step=mark)
        return (marks[-1] - marks[1]) / (len(marks) - 2) / min(recipe.batch_size, len(data.train))

    def _evaluation(self, spec: str, network: str) -> float:
        data = self.data(spec)
        model, part = self.model(spec, network), data.test
        start = self._now()
        accuracy(model, data, part)
        return (self._now() - start) / len(part)


class _SourceRuns:
    """A `benchmarks.references.SourceRun` that trains nothing: what the trajectory of an origin trains with the
    references that the suite names.
    """

    initial = theta_0 = 0.0

    def __init__(self, suite: Suite, cell: Cell, size: int):
        """cell: one of the origin with its track and its largest S. size: number of images in D0."""
        self.pretraining, self.step = suite.pretraining, suite.forgetting.step
        self.size, self.sizes = size, [size * cell.ratio**k for k in range(1, cell.length)]
        self.runs: dict[tuple[int, int | None], float] = {}
        """Images of each run from the initialisation: they are in the store, where other r and tracks find them."""
        self.further = self._step(size) if cell.track == "retrodiction" else 0.0
        """Images of all training that begins at theta_0, or makes it from theta_{-1}."""
        self.trained_on: set[Any] = set()
        self.from_theta_0: set[str] = set()
        """Names of the references that such training makes; they depend on r."""
        self.pretrain(1 if cell.track == "overflow" else 2)
        self._add_steps("forgetting")
        self._add_steps("placebo")
        self.kept = kept(suite.arms.references, cell.track, suite.forgetting.d0)
        for reference in self.kept:
            self.asked = False
            reference.function(self)
            self.from_theta_0 |= {reference.name} if self.asked else set()

    def _step(self, images: float) -> float:
        return self.step.steps * self.step.batch_size if self.step.steps else self.step.epochs * images

    def pretrain(self, factor: int, *, steps: int | None = None) -> float:
        self.runs[factor, steps] = (steps or factor) * self.pretraining.epochs * self.size
        return 0.0

    def average(self, kind: Average) -> float:
        return 0.0

    def train_on(self, factor: int = 1, *, augmented: bool = False, averaged: bool = False) -> float:
        self.asked = True
        self._add_steps((factor, augmented))  # the last weights and their mean are of one run
        return 0.0

    def _add_steps(self, run: Any) -> None:
        self.further += sum(map(self._step, self.sizes)) if run not in self.trained_on else 0.0
        self.trained_on.add(run)


class Total:
    """Sums over the jobs of a suite: images, files, and seconds by a clock."""

    def __init__(self, clock: Clock):
        self.clock = clock
        self.shown = {"source_images": 0.0, "target_images": 0.0, "evaluated": 0.0}
        self.seconds = self.bytes = self.fine_tunes = 0.0
        self.files = 0

    def train(self, kind: str, images: float, spec: str, network: str, recipe: Recipe) -> None:
        self.shown[kind] += images
        self.seconds += images * self.clock.training(spec, network, recipe)

    def evaluate(self, images: float, spec: str, network: str) -> None:
        self.shown["evaluated"] += images
        self.seconds += images * self.clock.evaluation(spec, network)


def _count_origins(suite: Suite, total: Total) -> dict[tuple[Origin, Track], _SourceRuns]:
    """Count the trajectories; returns what each trains, by origin and track."""
    ids, made, known = len(suite.trajectory_ids), {}, set()
    for origin in suite.origins:
        source, place = total.clock.data(origin.source), (origin.source, origin.network)
        size = round(suite.forgetting.d0 * len(source.train))
        longest = max((cell for cell in suite.cells if cell.origin == origin), key=lambda cell: cell.length)
        weights = sum(tensor.nbytes for tensor in total.clock.model(*place).state_dict().values())
        for track in suite.tracks(origin):
            run = made[origin, track] = _SourceRuns(suite, dataclasses.replace(longest, track=track), size)
            fresh = {key: images for key, images in run.runs.items() if (*place, key) not in known}
            known |= {(*place, key) for key in fresh}
            total.train("source_images", ids * sum(fresh.values()), *place, suite.pretraining)
            total.train("source_images", ids * run.further, *place, suite.forgetting.step)
            # every snapshot of both trajectories: the test images, and D0 without the subset; theta_0: D0
            left_out = sum(size - part for part in run.sizes)
            total.evaluate(ids * (2 * (longest.length * len(source.test) + left_out) + size), *place)
            saved = 2 * longest.length + len(run.kept)
            total.files += ids * (saved + 1)
            # a run from the initialisation is kept with three averages and the two moments of the optimiser
            total.bytes += ids * (saved + 6 * len(fresh)) * weights
        total.files += 3  # manifest, log, time
    total.files += 5 * ids * len(known)
    return made


def _count_cell(suite: Suite, cell: Cell, runs: _SourceRuns, known: set[tuple], total: Total) -> None:
    """Count the fine-tunes of a cell. known: those of the cells before, to which the store has the answer."""
    settings, place = suite.transfer, (cell.target, cell.network)
    source, target = total.clock.data(cell.source), total.clock.data(cell.target)
    for arm in arms_of(suite.arms, cell):
        # theta_0 and other references are the same whatever S is, and most of them whatever r is
        ratio = cell.ratio if arm.name in runs.from_theta_0 else None
        key = (cell.track, cell.source, cell.target, cell.network, cell.share, ratio, arm.name)
        if not arm.predictor and key in known:
            continue
        known.add(key)
        searched, each = settings.pilot_fine_tunes * suite.pilots, suite.trajectories * settings.fine_tunes
        pilots, policies = searched * (len(settings.grid) + settings.extensions), settings.policies(arm.name)
        # the head-only phase is made once for all rates, and once more for each point by which the grid grows
        searches = searched * (1 + settings.extensions)
        made = [("short", pilots, searches), *((p, each, 0 if p == "short" else each) for p in policies)]
        for policy, count, heads in made:
            recipe, heads = settings.at(policy).recipe, count if settings.together > 1 else heads
            shown = (heads * recipe.head_epochs + count * recipe.epochs) * settings.images * cell.share
            total.train("target_images", shown, *place, settings.recipe)
            total.fine_tunes += count
        evaluated = each * len(settings.policies(arm.name))
        total.evaluate(pilots * settings.validation + evaluated * len(target.test), *place)
        looks = 2 if has_running_statistics(total.clock.model(cell.source, cell.network)) else 1
        total.evaluate(suite.trajectories * looks * len(source.test), cell.source, cell.network)


def count(name: str, suite: Suite, clock: Clock) -> dict:
    """A row of the table."""
    total, known = Total(clock), set()
    runs = _count_origins(suite, total)
    for cell in suite.cells:
        _count_cell(suite, cell, runs[cell.origin, cell.track], known, total)
    total.files += 6 * len(suite.cells)  # three tables, results in the store, log, time
    shards = suite.metatraining.shards if suite.metatraining else 0
    total.files += suite.metatraining.trajectories + 8 * len(suite.lengths) if suite.metatraining else 0
    total.files += 3 * shards + 16
    jobs = len(steps(suite, Path("work") / name)) + 2  # publishing and figures
    return {
        "suite": name,
        "device": clock.device,
        "cells": len(suite.cells),
        "origins": len(suite.origins),
        "jobs": jobs,
        "fine_tunes": round(total.fine_tunes),
        **{key: round(value) for key, value in total.shown.items()},
        "hours": f"{total.seconds / 3600:.3g}",
        "measured_hours": _measured(name),
        "files": total.files,
        "megabytes": f"{total.bytes / 2**20:.3g}",
    }


def _measured(name: str) -> str:
    """Hours of processor time of those jobs that made a suite's trajectories and cells; empty if it was not run."""
    path = Path("results") / name / "cost.csv"
    if not path.is_file():
        return ""
    jobs = pd.read_csv(path)
    made = jobs["job"].str.startswith(("forget/", "transfer/"))
    return f"{jobs.loc[made, 'cpu_seconds'].sum() / 3600:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="+", help="by default all of benchmarks/suites/")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="benchmarks/scaling.csv")
    chosen = parser.parse_args()
    deterministic(1)
    clock = Clock(chosen.device)
    rows = []
    for name in chosen.suite or suite_names():
        rows.append(count(name, load_suite(name), clock))
        print(rows[-1], flush=True)
    write_csv(chosen.out, rows, list(rows[0]))


if __name__ == "__main__":
    main()
