"""How many fine-tunes an hour a cell makes on two processes: with and without what they keep from one to the next.

    KNOW_DATA=/folder/with/the/data python benchmarks/speed/finetuning.py

This script writes finetuning.json and README.md into its folder. The fine-tunes are those of three arms on two
evaluated trajectories of the first cell of a core suite, whose weights are random, at two rates and with the test. Both
ways take turns in one run and must give the same results. Without what is kept, a process reads the data anew for every
arm on every trajectory, each fine-tune draws its images and trains its head anew, and torch fills memory that is about
to be written, as it does by default where it computes deterministically.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # use this script's checkout, installed or not

import _table
from prediction import machine, of, used

from benchmarks import transfer
from benchmarks.arms import arms_of
from benchmarks.finetune import FineTune, Result, fine_tune
from benchmarks.networks import build
from benchmarks.settings import Arms, LineOfArms
from benchmarks.store import Store
from benchmarks.suite import load_suite
from benchmarks.training import deterministic
from benchmarks.transfer import Bench, Task
from benchmarks.workers import workers
from know.checkpoints import save_state
from know.files import write_json
from know.trajectory import write_manifest

HERE = Path(__file__).parent
SUITES = {"plaincnn": "core/plaincnn", "resnet8": "core/resnet8", "vit_tiny": "core/vit_tiny"}
ARMS = Arms(references=["naive"], methods={"known": LineOfArms(depths=[1]), "linear": LineOfArms(depths=[1])})
CLASSES, SHAPE, PROCESSES, REPEATS = 100, (3, 32, 32), 2, 2
"""Classes and shape of the images of CIFAR-100, the source of these suites."""


def afresh(bench: Bench, tasks: list[Task]) -> tuple[list[Result], dict]:
    """`benchmarks.transfer.run_tasks` in a process that keeps nothing."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    transfer._worker.cache_clear()
    worker = transfer._worker(bench)

    def tuner(*, longer: bool) -> Callable[[FineTune], Result]:
        settings = bench.settings.at("paper" if longer else "tuned")
        return functools.partial(fine_tune, network=bench.cell.network, target=worker.target, settings=settings)

    worker.tuner = tuner
    return worker.run(tasks)


def _start(_: int) -> None:
    """Keeps one process busy until the others have been started too."""
    time.sleep(2)


def bench_of(network: str, folder: Path) -> tuple[Bench, list[Task]]:
    """A cell with random trajectories in `folder`, and its fine-tunes."""
    suite = load_suite(SUITES[network])
    (cell,), settings = suite.cells, suite.transfer
    for seed, trajectory in enumerate(("t0", "t1")):
        out = folder / "origin" / trajectory / cell.track
        for k in range(cell.length):
            state = build(network, SHAPE, CLASSES, seed=seed).state_dict()
            moved = {n: t * (1 + 0.01 * k) if t.is_floating_point() else t for n, t in state.items()}
            save_state(out / f"s{k}.safetensors", moved, {"fraction": cell.ratio**k})
        files = [f"s{k}.safetensors" for k in reversed(range(cell.length))]
        write_manifest(out, files, {}, source_seed=seed)
    known = suite.known_folder(folder, cell.length)
    bench = Bench(cell, settings, folder / "origin", known, Store(folder / "store"), "cpu")
    arms = arms_of(ARMS, cell)
    tasks = [
        Task(trajectory, arm, repeat, rate)
        for trajectory, arm in itertools.product(("t0", "t1"), arms)
        for rate, repeat in itertools.product(settings.grid[1:3], range(settings.fine_tunes))
    ]
    return bench, tasks


def measure(network: str) -> dict:
    seconds, results, count = {"before": [], "now": []}, [], 0
    for turn, (name, way) in itertools.product(range(REPEATS), (("before", afresh), ("now", transfer.run_tasks))):
        with tempfile.TemporaryDirectory() as folder, workers(PROCESSES) as each:
            bench, tasks = bench_of(network, Path(folder))
            list(each(_start, range(PROCESSES)))
            begun = time.perf_counter()
            portions = transfer.portions(tasks, 1)
            made = [result for own, _ in each(functools.partial(way, bench), portions) for result in own]
            seconds[name].append(time.perf_counter() - begun)
        results.append(made)
        count = len(made)
        print(f"turn {turn + 1}, {network}, {name}: {seconds[name][-1]:.1f} s", file=sys.stderr)
    if any(each != results[0] for each in results):
        sys.exit(f"{network}: the two ways differ")
    return {"fine_tunes": count, "seconds": of(seconds)}


def main() -> None:
    began, others = time.perf_counter(), used()
    deterministic(1)
    found = {network: measure(network) for network in SUITES}
    about = machine()
    about["other_work"] = round((used() - others) / (time.perf_counter() - began) / os.cpu_count(), 3)
    measurement = {"machine": about, "repeats": REPEATS, "processes": PROCESSES, "networks": found}
    write_json(HERE / "finetuning.json", measurement)
    _table.write()


if __name__ == "__main__":
    main()
