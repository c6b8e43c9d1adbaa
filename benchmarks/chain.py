"""A whole suite in one process, step after step: the workflow's chain for machines without Snakemake.

What is finished, by settings and code, is skipped, and every step resumes where it was cut, so a run that was killed
goes on by the same command. The steps, their order and their files are those of workflow/compute.smk.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.suite import Suite
from know.files import code_hash, digest, read_json, write_json, write_text


@dataclass(frozen=True)
class Step:
    """name: also of its file in work/SUITE/benchmarks/. settings: what, with the code of `module`, decides its result;
    output: the file that it writes last.
    """

    name: str
    module: str
    settings: Any
    output: Path
    make: Callable[[], object]


def steps(settings: Suite, suite: str, work: Path, device: str | None, threads: int) -> Iterator[Step]:
    """All steps of a suite but the publishing, each after those that it needs."""
    from benchmarks import __main__ as cli  # the commands, which the workflow calls too
    from know import keras as released

    place = {"suite": suite, "device": device, "threads": threads}
    every, arms = settings.trajectory_ids, settings.arms.model_dump_json()
    yield Step("data", "benchmarks.data", settings.datasets, work / "data.json", partial(cli.data, suite=suite))
    for origin in settings.origins:
        made = [settings.forgetting_of(origin).model_dump_json(), settings.pretraining.model_dump_json()]
        yield Step(
            f"forget/{origin.slug}",
            "benchmarks.trajectories",
            [made, every, settings.tracks(origin)],
            work / "trajectories" / origin.slug / "manifest.json",
            partial(cli.forget, origin=origin.slug, processes=settings.processes, **place),
        )
    learning = settings.metatraining
    if learning:
        for shard in range(learning.shards):
            out = work / "metaset" / str(shard) / "manifest.json"
            make = partial(cli.metaset, shard=shard, **place)
            yield Step(f"metaset/{shard}", "benchmarks.metatraining", learning.model_dump_json(), out, make)
        for length in settings.lengths:
            out = work / "known" / str(length) / "README.md"
            make = partial(cli.metatrain, length=length, **place)
            yield Step(f"metatrain/{length}", "benchmarks.metatraining", learning.model_dump_json(), out, make)
    for cell in settings.cells:
        yield Step(
            f"transfer/{cell.slug}",
            "benchmarks.transfer",
            [settings.transfer.model_dump_json(), arms, every, released.hashes()],
            work / "transfers" / cell.slug / "runs.csv",
            partial(cli.transfer, cell=cell.slug, processes=settings.processes, **place),
        )
    yield Step("landscape", "benchmarks.landscape", None, work / "landscape.csv", partial(cli.landscape, **place))
    inspected = partial(cli.inspect_, suite=suite, threads=threads)
    yield Step("inspect", "benchmarks.inspection", arms, work / "inspection" / "steps.csv", inspected)
    yield Step("cost", "benchmarks.cost", arms, work / "cost_by_arm.csv", partial(cli.cost, **place))


def run_chain(every: list[Step], work: Path, say: Callable[[str], object]) -> None:
    """Make what is not finished. A step is made anew when its settings or code, or any step before it, has changed."""
    mark = ""
    for number, step in enumerate(every, start=1):
        mark = digest([mark, step.name, step.settings, code_hash(step.module)])
        stamp = work / "chain" / f"{step.name}.json"
        if step.output.is_file() and stamp.is_file() and read_json(stamp)["mark"] == mark:
            say(f"[{number}/{len(every)}] {step.name}: done before")
            continue
        say(f"[{number}/{len(every)}] {step.name}")
        start, used = time.perf_counter(), time.process_time()
        step.make()
        seconds, used = time.perf_counter() - start, time.process_time() - used
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        # as Snakemake's benchmark files, of which the cost tables are made
        table = f"s\tcpu_time\tmax_rss\n{seconds:.4f}\t{used:.2f}\t{peak / 1024:.2f}\n"
        write_text(work / "benchmarks" / f"{step.name}.tsv", table)
        write_json(stamp, {"mark": mark})
