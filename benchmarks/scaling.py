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

import pandas as pd
import torch

from benchmarks.cost import images
from benchmarks.data import Dataset, load
from benchmarks.networks import build
from benchmarks.references import REFERENCES
from benchmarks.settings import Recipe
from benchmarks.steps import steps
from benchmarks.suite import Suite, load_suite, suite_names
from benchmarks.training import accuracy, deterministic, train
from benchmarks.transfer import arms_of
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

    def model(self, network: str, data: Dataset) -> torch.nn.Module:
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
        train(self.model(network, data), data, data.train, short, seed=0, after_step=mark)
        return (marks[-1] - marks[1]) / (len(marks) - 2) / min(recipe.batch_size, len(data.train))

    def _evaluation(self, spec: str, network: str) -> float:
        data = self.data(spec)
        model, part = self.model(network, data), data.test
        start = self._now()
        accuracy(model, data, part)
        return (self._now() - start) / len(part)


def count(name: str, suite: Suite, clock: Clock) -> dict:
    """A row of the table."""
    ids, transfer = len(suite.trajectory_ids), suite.transfer
    shown = {"source_images": 0.0, "target_images": 0.0, "evaluated": 0.0}
    seconds = size = fine_tunes = files = 0.0
    for origin in suite.origins:
        d0 = round(suite.forgetting.d0 * len(clock.data(origin.source).train))
        longest = max((cell for cell in suite.cells if cell.origin == origin), key=lambda cell: cell.length)
        for track in suite.tracks(origin):
            by_run = images(suite, dataclasses.replace(longest, track=track), d0)
            named = [REFERENCES[name] for name in suite.arms.references]
            # runs in addition to theta_0; on the other track the oracle is theta_{-1}, counted with theta_0
            runs = [r.name for r in named if r.factor > 1 and track == "overflow"]
            total = ids * (by_run["trajectory"] + sum(by_run[run] for run in runs))
            if "compute_matched" in suite.arms.references:
                total += ids * (by_run["compute_matched"] - by_run["naive"])
            shown["source_images"] += total
            seconds += total * clock.training(origin.source, origin.network, suite.pretraining)
            saved = longest.length + len(suite.arms.references) - 1
            model = clock.model(origin.network, clock.data(origin.source))
            weights = sum(tensor.nbytes for tensor in model.state_dict().values())
            files += ids * (saved + 1)
            size += ids * saved * weights
        files += 3  # manifest, log, time
    for cell in suite.cells:
        arms = len(arms_of(suite.arms, cell))
        runs = arms * transfer.pilot_fine_tunes * suite.pilots * (len(transfer.grid) + transfer.extensions)
        runs += arms * transfer.fine_tunes * suite.trajectories * 2
        each = (transfer.recipe.head_epochs + transfer.recipe.epochs) * transfer.images * cell.share
        source, target = clock.data(cell.source), clock.data(cell.target)
        evaluated = runs * (transfer.validation + len(target.test))
        looked = 2 * arms * ids * len(source.test)
        fine_tunes += runs
        shown["target_images"] += runs * each
        shown["evaluated"] += evaluated + looked
        seconds += runs * each * clock.training(cell.target, cell.network, transfer.recipe)
        seconds += evaluated * clock.evaluation(cell.target, cell.network)
        seconds += looked * clock.evaluation(cell.source, cell.network)
        files += 6  # three tables, results in the store, log, time
    shards = suite.metatraining.shards if suite.metatraining else 0
    files += (suite.metatraining.trajectories + 8 * len(suite.lengths) if suite.metatraining else 0) + 3 * shards + 16
    jobs = len(steps(suite, Path("work") / name)) + 2  # publishing and figures
    return {
        "suite": name,
        "device": clock.device,
        "cells": len(suite.cells),
        "origins": len(suite.origins),
        "jobs": jobs,
        "fine_tunes": round(fine_tunes),
        **{key: round(value) for key, value in shown.items()},
        "hours": f"{seconds / 3600:.3g}",
        "measured_hours": _measured(name),
        "files": round(files),
        "megabytes": f"{size / 2**20:.3g}",
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
