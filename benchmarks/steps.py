"""The one list of jobs: what a suite runs, in which order, what each job makes, and what decides its result.

Whatever needs to know the jobs reads this list: the workflow (workflow/*.smk), the runner without Snakemake
(`run_steps`), what a run lacks and why (`lacking`), publishing, verification and the tables of cost. The stages of DVC
name the folders that the jobs fill, and a test compares. Imports no torch.
"""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.store import STORE, Store, computing
from benchmarks.suite import WORK, Suite
from know import keras
from know.files import PACKAGE, digest, read_json, sha256_file, write_text
from know.fingerprint import code_hash

NETWORKS = [f"{model}.safetensors" for model in ("known", "scaled", "meta_linear")]
"""Files of a meta-training that a prediction reads."""
TOLD = ["README.md", "facts.json", "held_out.csv", "history.csv", "meta_linear.csv"]
"""What it says about them: a card, settings and facts, errors, the course of the training, coefficients."""
LEARNT = [*NETWORKS, *TOLD]
"""All files of a meta-training."""
INSPECTED = ("steps", "movement", "placebo")
"""Tables of an inspection."""
LONGEST = 300
"""Characters of a reason."""
STATES = {
    "CANCELLED": "cancelled",
    "NODE_FAIL": "its node was lost",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "TIMEOUT": "over its time limit",
}
"""Words for the states of a cluster's jobs, as Snakemake reports them; others leave it to the job's own log."""


MADE = {
    "data": ("data.json",),
    "metaset": ("metaset/{job}/manifest.json",),
    "metatrain": tuple(f"known/{{job}}/{file}" for file in LEARNT),
    "forget": ("trajectories/{job}/manifest.json",),
    "transfer": tuple(f"transfers/{{job}}/{file}" for file in ("runs.csv", "pilots.csv", "choice.json")),
    "landscape": ("landscape.csv",),
    "inspect": tuple(f"inspection/{table}.csv" for table in INSPECTED),
    "cost": ("cost_by_arm.csv",),
}
"""What the jobs of each rule make, under work/SUITE; {job} is the job's own name among them."""
CODE = {
    "data": "benchmarks.data:load",
    "metaset": "benchmarks.metaset:make_metaset",
    "metatrain": "benchmarks.metatraining:fit_known",
    "forget": "benchmarks.trajectories:make_origin",
    "transfer": "benchmarks.transfer:run_cell",
    "landscape": "benchmarks.landscape:make_landscape",
    "inspect": "benchmarks.inspection:inspect_suite",
    "cost": "benchmarks.cost:measure",
}
"""Entries of the code of each rule."""


REPORT = Path(__file__).parent / "report"
FIGURES = PACKAGE.parent / "paper_figures"


@dataclass(frozen=True)
class Step:
    """One job."""

    name: str
    """RULE or RULE/JOB: also of its log, and of its row in cost.csv."""
    work: Path
    """The suite's own folder, work/SUITE."""
    needs: tuple[str, ...]
    """Names of the jobs whose outputs it reads."""
    settings: Any
    """What decides its result besides code and device: a part of the suite, and hashes of files beside it."""
    option: tuple[str, ...] = ()
    """The option of its command that names the job."""
    processes: int = 0
    """How many processes it can use; 0 if its command does not ask."""

    @property
    def rule(self) -> str:
        return self.name.partition("/")[0]

    @property
    def outputs(self) -> tuple[Path, ...]:
        return tuple(self.work / made.format(job=self.name.partition("/")[2]) for made in MADE[self.rule])

    @property
    def code(self) -> str:
        """Entry of the code that decides its result (`know.fingerprint.code_hash`)."""
        return CODE[self.rule]

    @property
    def command(self) -> tuple[str, ...]:
        """Arguments of `python -m benchmarks`, without the suite and the number of processes."""
        return self.rule, *self.option


def steps(suite: Suite, work: Path) -> list[Step]:
    """All jobs of a suite up to its records and tables, each after those that it needs.

    work: the suite's own folder, work/SUITE. Publishing and drawing come after all of them.
    """

    def plain(*parts: BaseModel) -> list[dict[str, Any]]:
        return [part.model_dump(mode="json") for part in parts]

    every, (arms,), processes = suite.trajectory_ids, plain(suite.arms), suite.processes
    authors = keras.hashes() if suite.arms.methods != "all" or suite.arms.also else {}
    made = [Step("data", work, (), suite.datasets)]
    networks: dict[int, tuple[str, ...]] = {length: () for length in suite.lengths}
    shipped: dict[int, dict[str, str]] = {length: {} for length in suite.lengths}
    if suite.metatraining:
        (learning,) = plain(suite.metatraining)
        shards = tuple(str(shard) for shard in range(suite.metatraining.shards))
        made += [Step(f"metaset/{shard}", work, ("data",), learning, ("--shard", shard)) for shard in shards]
        for length in suite.lengths:
            networks[length], option = (f"metatrain/{length}",), ("--length", str(length))
            needs = tuple(f"metaset/{shard}" for shard in shards)
            made.append(Step(f"metatrain/{length}", work, needs, learning, option))
    else:
        for length in suite.lengths:
            folder = suite.known_folder(work, length)
            shipped[length] = {file: sha256_file(folder / file) for file in NETWORKS}
    for origin in suite.origins:
        settings = [plain(suite.forgetting_of(origin), suite.pretraining), every, suite.tracks(origin)]
        settings += [suite.arms.references]
        made.append(Step(f"forget/{origin.slug}", work, ("data",), settings, ("--origin", origin.slug), processes))
    for cell in suite.cells:
        needs = ("data", f"forget/{cell.origin.slug}", *networks[cell.length])
        settings = [*plain(suite.transfer), arms, every, authors, shipped[cell.length]]
        made.append(Step(f"transfer/{cell.slug}", work, needs, settings, ("--cell", cell.slug), processes))
    first, learnt = suite.pictured, tuple(name for names in networks.values() for name in names)
    origins = tuple(f"forget/{origin.slug}" for origin in suite.origins)
    measured = [[cell.source, cell.network, cell.track, cell.ratio, cell.length] for cell in suite.cells]
    costs = [*plain(suite.pretraining, suite.forgetting), arms, authors, shipped, measured]
    return [
        *made,
        Step("landscape", work, (f"forget/{first.origin.slug}", *networks[first.length]), shipped[first.length]),
        Step("inspect", work, (*origins, *learnt), [arms, every, authors, shipped]),
        Step("cost", work, ("data", *learnt), costs),
    ]


def run_steps(
    every: Iterable[Step],
    execute: Callable[[tuple[str, ...]], object],
    work: Path,
    say: Callable[[str], object],
    device: str,
) -> None:
    """Make what is not finished, one job after the other, where there is no Snakemake.

    execute: runs one command, given its arguments without the suite. device: where it computes. A job is finished if
    the store has it with the same settings, code, libraries, device and kernels, after jobs that have not changed
    either, and its files are still those that it made.
    """
    every, mark = list(every), ""
    store = Store(WORK / STORE).results("steps", {"work": work.as_posix()})
    for number, step in enumerate(every, start=1):
        mark = digest([mark, step.name, step.settings, computing(code_hash(step.code), device)])
        entry = store.find(mark)
        if entry and entry["outputs"] == _hashes(step):
            say(f"[{number}/{len(every)}] {step.name}: done before")
            continue
        say(f"[{number}/{len(every)}] {step.name}")
        start, used = time.perf_counter(), time.process_time()
        execute((*step.command, *(("--processes", str(step.processes)) if step.processes else ())))
        seconds, used = time.perf_counter() - start, time.process_time() - used
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        # as Snakemake's benchmark files, of which the cost tables are made
        table = f"s\tcpu_time\tmax_rss\n{seconds:.4f}\t{used:.2f}\t{peak / 1024:.2f}\n"
        write_text(work / "benchmarks" / f"{step.name}.tsv", table)
        store.put(mark, {"outputs": _hashes(step)})


def _hashes(step: Step) -> dict[str, str] | None:
    """Hashes of what a job has made; None if a file is missing."""
    if not all(path.is_file() for path in step.outputs):
        return None
    return {path.as_posix(): sha256_file(path) for path in step.outputs}


def lacking(every: Iterable[Step], work: Path) -> dict[str, str]:
    """Jobs whose files are not there, each with a reason, in the order of the work.

    The reason is the state in which Snakemake saw a cluster's job end, or the last line of the job's own log.
    """
    states, missing = _states(work), {}
    for step in every:
        root = next((need for need in step.needs if need in missing), None)
        if root:
            missing[step.name] = (
                missing[root] if missing[root].startswith("needs ") else f"needs {root}: {missing[root]}"
            )
        elif not all(path.is_file() for path in step.outputs):
            missing[step.name] = states.get(step.name) or _last_line(work / "logs" / f"{step.name}.log")
    return missing


def _states(work: Path) -> dict[str, str]:
    """How jobs ended on a cluster, as Snakemake's newest log that names jobs of this suite reports it; the last time
    counts.
    """
    name = re.escape(f"{work.as_posix()}/logs/")
    for file in sorted(Path(".snakemake/log").glob("*.log"), reverse=True):
        text = file.read_text(encoding="utf-8", errors="replace")
        states = {}
        for error in re.split(r"^(?=\[?.*\]?\nError in |Error in )", text, flags=re.M)[1:]:
            error = re.split(r"^\S", error.partition("\n")[2], maxsplit=1, flags=re.M)[0]
            state = re.search(r"status is: '(\w+)'", error)
            for job in re.findall(rf"{name}(\S+?)\.log", error):
                states[job] = STATES.get(state[1], "") if state else ""
        if states:
            return states
    return {}


def _last_line(log: Path) -> str:
    """What a job said last before it ended."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "not run"
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("know: error: ")[:LONGEST] if said else "ended without a word"


def figures(cells: Iterable[tuple[int, float]]) -> list[str]:
    """The figures of a suite whose cells have these S and r: all, but that of the ablations only where they differ."""
    varied = len(set(cells)) > 1
    return sorted(path.stem for path in FIGURES.glob("[!_]*.py") if varied or path.stem != "ablation")


def words() -> str:
    """Hash of what the pages are made of besides code and records: the templates, and the claims as data."""
    files = [*(REPORT / "templates").glob("*.j2"), REPORT / "claims.yaml"]
    return digest([path.read_text(encoding="utf-8") for path in sorted(files)])


def codes(every: Iterable[Step]) -> dict[str, tuple[str, str]]:
    """The code that made the outputs which record it: path of the output to (fingerprint, entry)."""
    recorded = {}
    for step in every:
        path = step.outputs[0]
        if step.rule in ("forget", "metaset"):
            recorded[str(path)] = read_json(path)["code"], step.code
        elif step.rule == "metatrain":
            recorded[str(path.with_name("facts.json"))] = read_json(path.with_name("facts.json"))["code"], step.code
    return recorded
