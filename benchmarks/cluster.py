"""What the jobs of a suite ask a cluster for. The workflow reads it; on one machine it holds nothing back.

`workflow/resources.yaml` has, per kind of suite and rule, the longest and the largest job that was measured, and what
follows from them by `request`. A kind that has not been measured asks for the most that any needed: jobs resume, and
every retry asks for twice as much, so that an estimate which is too small costs time but no work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.suite import suite_name
from know.errors import KnowError

TABLE = Path("workflow/resources.yaml")
SAFETY = {"minutes": 3.0, "memory": 1.5}
"""Factors between what was measured, on one machine, and what is asked for."""
OVERHEAD_MB = 500
"""What Snakemake takes beside a job on its node: it runs there twice."""
STEP_MINUTES, STEP_MB = 10, 500
"""Requests are multiples of these."""
SMALL_MINUTES = 10
"""Jobs that ask for no more than this share a submission with others like them."""
GPU_RULES = ("metaset", "metatrain", "forget", "transfer")
"""Those that train networks; all others run on processors whatever the suite's device is."""
GROUPS = {
    **{rule: rule for rule in ("forget", "transfer")},
    **dict.fromkeys(("metaset", "metatrain"), "meta"),
    **dict.fromkeys(("landscape", "inspect"), "look"),
    **dict.fromkeys(("publish", "figures"), "publish"),
}
"""Which small jobs may share one. profiles/slurm says how many of them."""
SITE = {
    "partitions": {"cpu": "", "gpu": ""},
    "gpu": "gpu:1",
    "most": {"minutes": 24 * 60, "memory_mb": 64_000},
    "publish_incomplete": False,
}
"""What a site may say under the key `cluster` of the workflow's configuration, and what holds where it does not."""


def request(seconds: float, memory_mb: float) -> dict[str, int]:
    """Minutes and MB to ask for where a job took `seconds` and had `memory_mb` at its peak."""
    minutes = SAFETY["minutes"] * seconds / 60
    memory = SAFETY["memory"] * memory_mb + OVERHEAD_MB
    return {
        "minutes": max(1, math.ceil(minutes / STEP_MINUTES)) * STEP_MINUTES,
        "memory_mb": math.ceil(memory / STEP_MB) * STEP_MB,
    }


def kind(suite: str) -> str:
    """Suites whose jobs are alike: the first word of the name. One of them may have taken over what another had made,
    so that its own times say little.
    """
    return re.split(r"[/-]", suite_name(suite))[0]


def table(measured: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict:
    """The table of suites (name to rows of its cost.csv: job, seconds, peak_memory_mb), by kind and rule: the longest
    and the largest of all jobs, and what to ask for.
    """
    kinds: dict = {}
    for suite, rows in sorted(measured.items()):
        for row in rows:
            rule = row["job"].partition("/")[0]
            found = kinds.setdefault(kind(suite), {}).setdefault(rule, {"seconds": 0, "peak_mb": 0})
            found["seconds"] = max(found["seconds"], math.ceil(float(row["seconds"])))
            found["peak_mb"] = max(found["peak_mb"], math.ceil(float(row["peak_memory_mb"])))
    for rules in kinds.values():
        for found in rules.values():
            found.update(request(found["seconds"], found["peak_mb"]))
    return kinds


PUBLISHING = request(60, 700)
"""Tables and drawings of text files, which have no entry in a cost.csv."""


class Requests:
    """What the rules of one suite ask for.

    site: the key `cluster` of the workflow's configuration; KnowError for a key that does not exist. alone: no job
    shares a submission, as where one has failed for good, which takes those with it that share its own.
    """

    def __init__(
        self,
        suite: str,
        device: str,
        site: Mapping[str, Any] | None = None,
        file: Path = TABLE,
        *,
        alone: bool = False,
    ):
        kinds = yaml.safe_load(file.read_text(encoding="utf-8"))
        self.site = _with_defaults(SITE, site or {}, "cluster")
        self.grouped = site is not None and not alone
        self.device = device
        self.rules: dict[str, dict] = {}
        for rule in sorted({rule for rules in kinds.values() for rule in rules}):
            entries = [rules[rule] for rules in kinds.values() if rule in rules]
            entries = [kinds[kind(suite)][rule]] if rule in kinds.get(kind(suite), {}) else entries
            self.rules[rule] = {key: max(entry[key] for entry in entries) for key in ("minutes", "memory_mb")}
        self.rules.update(publish=PUBLISHING, figures=PUBLISHING)

    def of(self, rule: str) -> dict[str, Any]:
        """The `resources` of a rule: numbers that double with every attempt, up to the site's most, and names."""
        found: dict[str, Any] = {
            "runtime": self._doubling(rule, "minutes"),
            "mem_mb": self._doubling(rule, "memory_mb"),
            "slurm_partition": self.site["partitions"]["gpu" if self._on_gpu(rule) else "cpu"] or None,
        }
        if self._on_gpu(rule):
            found["gres"] = self.site["gpu"]
        if rule == "cost":  # it measures times
            found |= {"cpus_per_task": 1, "slurm_extra": "--exclusive"}
        return found

    def group(self, rule: str) -> str | None:
        """The group whose submissions the jobs of a rule may share; None for jobs that are long enough alone, and where
        nothing is said of a cluster.
        """
        return GROUPS.get(rule) if self.grouped and self.rules[rule]["minutes"] <= SMALL_MINUTES else None

    def _on_gpu(self, rule: str) -> bool:
        return rule in GPU_RULES and self.device.startswith("cuda")

    def _doubling(self, rule: str, key: str) -> Callable[..., int]:
        first, most = self.rules[rule][key], self.site["most"][key]
        return lambda wildcards, attempt: min(first * 2 ** (attempt - 1), max(most, first))


def _with_defaults(defaults: Mapping, given: Mapping, place: str) -> dict:
    if unknown := sorted(set(given) - set(defaults)):
        raise KnowError(f"{place}: unknown key {unknown[0]!r}; there are {', '.join(defaults)}")
    return {
        key: _with_defaults(value, given.get(key) or {}, f"{place}.{key}")
        if isinstance(value, Mapping)
        else given.get(key, value)
        for key, value in defaults.items()
    }
