"""How many fine-tunes an hour of one thread makes: each on its own, and with what they share made once.

    python benchmarks/speed/finetuning.py

This script writes finetuning.json and README.md into its folder. The fine-tunes are those of two arms in a cell of the
core suites, on a quarter of the images, which are random: a search over 8 rates on one pilot trajectory, then 4
fine-tunes at two rates on each of two trajectories, with the test. Both ways take turns within one run and must give
the same results. On its own a fine-tune draws its images and trains its head anew, and torch fills memory that is about
to be written, as it does by default where it computes deterministically.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # use this script's checkout, installed or not

import _table
from prediction import machine, of, timed, used

from benchmarks.data import Dataset, random_dataset
from benchmarks.finetune import FineTune, FineTuner, Result, Start, fine_tune
from benchmarks.networks import build
from benchmarks.settings import Transfer
from benchmarks.suite import load_suite
from benchmarks.training import deterministic
from know.files import write_json

HERE, SUITE = Path(__file__).parent, "core/plaincnn"
SHAPE, CLASSES, REPEATS, SHARE = (3, 32, 32), 10, 2, 4
NETWORKS = ("plaincnn", "resnet8", "vit_tiny")


def requests(network: str, settings: Transfer) -> list[FineTune]:
    starts = [Start(build(network, SHAPE, CLASSES, seed=seed).state_dict()) for seed in range(2)]
    rates = [*settings.grid, *(settings.grid[-1] * 2**k for k in range(1, settings.extensions + 1))]
    asked = [FineTune(start, 1.0, rate, 0, False) for start, rate in itertools.product(starts, rates)]
    for trajectory, start in itertools.product(range(2), starts):
        for rate, repeat in itertools.product(rates[1:3], range(settings.fine_tunes)):
            asked.append(FineTune(start, 1.0, rate, 1 + 10 * trajectory + repeat, True))
    return asked


def alone(asked: list[FineTune], network: str, data: Dataset, settings: Transfer) -> list[Result]:
    torch.utils.deterministic.fill_uninitialized_memory = True
    results = [fine_tune(request, network, data, settings) for request in asked]
    torch.utils.deterministic.fill_uninitialized_memory = False
    return results


def together(asked: list[FineTune], network: str, data: Dataset, settings: Transfer) -> list[Result]:
    return list(map(FineTuner(network, data, settings), asked))


def main() -> None:
    began, others = time.perf_counter(), used()
    deterministic(1)
    settings = load_suite(SUITE).transfer
    sizes = {"images": settings.images // SHARE, "validation": settings.validation // SHARE}
    settings, data = settings.model_copy(update=sizes), random_dataset(10_000 // SHARE, SHAPE, CLASSES)
    found = {}
    for network in NETWORKS:
        asked, seconds, results = requests(network, settings), {"alone": [], "together": []}, []
        fine_tune(asked[0], network, data, settings)  # warms up
        for turn in range(REPEATS):
            for way in (alone, together):
                seconds[way.__name__].append(timed(lambda way=way: results.append(way(asked, network, data, settings))))  # noqa: B023
                print(f"turn {turn + 1}, {network}, {way.__name__}: {seconds[way.__name__][-1]:.1f} s", file=sys.stderr)
        if any(each != results[0] for each in results):
            sys.exit(f"{network}: the two ways differ")
        found[network] = {"fine_tunes": len(asked), "seconds": of(seconds)}
    about = machine()
    about["other_work"] = round((used() - others) / (time.perf_counter() - began) / os.cpu_count(), 3)
    measurement = {"machine": about, "repeats": REPEATS, "share": SHARE, "networks": found}
    write_json(HERE / "finetuning.json", measurement)
    _table.write()


if __name__ == "__main__":
    main()
