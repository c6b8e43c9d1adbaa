"""What a run has not made, and why: from the files that are there, the log of the workflow and the logs of its jobs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.suite import Suite

COLUMNS = ["job", "reason"]
STATES = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "cancelled",
    "DEADLINE": "could not end before its deadline",
    "NODE_FAIL": "its node was lost",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "TIMEOUT": "over its time limit",
}
"""Words for the states of Slurm's jobs that say why one ended; others leave it to the logs."""
SIGNS = {
    r"oom.?kill|memory limit": STATES["OUT_OF_MEMORY"],
    r"DUE TO TIME LIMIT": STATES["TIMEOUT"],
    r"DUE TO NODE FAILURE": STATES["NODE_FAIL"],
    r"DUE TO PREEMPTION": STATES["PREEMPTED"],
    r"CANCELLED": STATES["CANCELLED"],
}
"""The same in the words that Slurm itself writes into its log of a job."""
SLURM_LOGS = Path("work/slurm")
"""`slurm-logdir` of profiles/slurm."""
LONGEST = 300
"""Characters of a reason."""


def missing(settings: Suite, work: Path, log: Path | None = None) -> list[dict[str, str]]:
    """Jobs of a suite whose files are not there, each with a reason, in the order of the work; rows of `COLUMNS`.

    log: of the workflow, which knows how jobs ended on a cluster; by default the newest that names one of this suite.
    """
    states = _states(work, log)
    found: dict[str, str] = {}
    for job, files, needs in _jobs(settings, work):
        if cause := next((found[need] for need in needs if need in found), None):
            root = next(need for need in needs if need in found)
            found[job] = cause if cause.startswith("needs ") else f"needs {root}: {cause}"
        elif not all(file.is_file() for file in files):
            own = work / "logs" / f"{job}.log"
            found[job] = states.get(job) or _slurms_words(own) or _last_words(own)
    return [{"job": job, "reason": reason} for job, reason in found.items()]


def _jobs(settings: Suite, work: Path) -> Iterator[tuple[str, list[Path], list[str]]]:
    """Name as in cost.csv, files that a job makes, and jobs that it needs, those first that come first."""
    yield "data", [work / "data.json"], []
    learnt: dict[int, list[str]] = {length: [] for length in settings.lengths}
    if settings.metatraining:
        shards = [f"metaset/{shard}" for shard in range(settings.metatraining.shards)]
        for shard in shards:
            yield shard, [work / shard / "manifest.json"], ["data"]
        for length in settings.lengths:
            learnt[length] = [f"metatrain/{length}"]
            networks = [
                settings.known_folder(work, length) / file for file in ("known.safetensors", "facts.json", "README.md")
            ]
            yield f"metatrain/{length}", networks, shards
    origins = [origin.slug for origin in settings.origins]
    for origin in origins:
        yield f"forget/{origin}", [work / "trajectories" / origin / "manifest.json"], ["data"]
    for cell in settings.cells:
        files = [work / "transfers" / cell.slug / file for file in ("runs.csv", "pilots.csv", "choice.json")]
        yield f"transfer/{cell.slug}", files, [f"forget/{cell.origin.slug}", *learnt[cell.length]]
    first = settings.cells[0]
    yield "landscape", [work / "landscape.csv"], [f"forget/{first.origin.slug}", *learnt[first.length]]
    tables = [work / "inspection" / f"{table}.csv" for table in ("steps", "movement", "responses")]
    networks = [job for jobs in learnt.values() for job in jobs]
    yield "inspect", tables, [*(f"forget/{origin}" for origin in origins), *networks]
    yield "cost", [work / "cost_by_arm.csv"], ["data", *networks]


def _states(work: Path, log: Path | None) -> dict[str, str]:
    """Why jobs ended, as the workflow's log has it from the cluster: the last time counts."""
    name = re.escape(f"{work.as_posix()}/logs/")
    logs = [log] if log else sorted(Path(".snakemake/log").glob("*.log"), reverse=True)
    for file in logs:
        text = file.read_text(encoding="utf-8", errors="replace")
        found = {}
        for error in re.split(r"^(?=\[?.*\]?\nError in |Error in )", text, flags=re.M)[1:]:
            error = re.split(r"^\S", error.partition("\n")[2], maxsplit=1, flags=re.M)[0]
            state = re.search(r"SLURM status is: '(\w+)'", error)
            for job in re.findall(rf"{name}(\S+?)\.log", error):
                found[job] = STATES.get(state[1], "") if state else ""
        if found or log:
            return found
    return {}


def _slurms_words(log: Path) -> str:
    """What Slurm says of the last submission that a job was in; empty where it says nothing. log: the job's own."""
    tried = [path for path in SLURM_LOGS.rglob("*.log") if path.stem.isdecimal()]
    for file in sorted(tried, key=lambda path: int(path.stem), reverse=True):
        text = file.read_text(encoding="utf-8", errors="replace")
        if log.as_posix() in text:
            said = "\n".join(re.findall(r"^(?:slurmstepd[\w.-]*|srun): .*", text, flags=re.M))
            return next((words for sign, words in SIGNS.items() if re.search(sign, said)), "")
    return ""


def _last_words(log: Path) -> str:
    """The last line of a job's log: what the program said before it ended."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "not run"
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("know: error: ")[:LONGEST] if said else "ended without a word"
