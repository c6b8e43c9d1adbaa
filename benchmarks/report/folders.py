"""What the folder of a published suite holds, read once. Everything in a page or a verdict comes from here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.records import RunRecord, read_records
from benchmarks.report.statistics import summarise
from benchmarks.suite import Suite
from know.errors import KnowError
from know.files import read_json

FIRST = "first"
"""The folder, in that of all results, of the first comparison."""
CELL = ["track", "source", "target", "network", "share", "rate", "length"]
"""Columns that tell one cell from another, in the order in which cells are sorted."""
PLACE = ["source", "network", "track", "rate", "length"]
"""Columns that a trajectory belongs to; `rate` is r, the ratio of consecutive subsets."""
SNAPSHOT_COLUMNS = [
    *("source", "network", "rate", "track", "trajectory", "snapshot", "fraction", "images"),
    *("test_accuracy", "left_out_accuracy", "left_out_accuracy_theta_0"),
]
COST = [*PLACE, "weights", "theta_0_seconds", "arm", "trained", "seconds", "memory_mb"]
TABLES = {
    "trajectories": SNAPSHOT_COLUMNS,
    "steps": [*PLACE, "predictor", "depth", "role", "step", "shrink", "linear", "neither"],
    "movement": [*PLACE, "role", "difference", "size", "cosine"],
    "placebo": [*PLACE, "role", "snapshot", "moved", "placebo_moved", "apart", "cosine", "placebo_cosine"],
    "cost_by_arm": COST,
    "cost": ["job", "seconds", "cpu_seconds", "peak_memory_mb"],
    "failed": ["job", "reason"],
}
"""Columns that each table must have; it may have others."""
GROUPS = {
    "reference": "References",
    "known": "KNOWN",
    "prediction": "Direct weight prediction",
    "average": "Averages",
    "control": "Controls",
}
"""Headings of the groups of arms, in the order of the tables."""


@dataclass(frozen=True)
class Published:
    """One suite: the content of its suite.json, and its run records, one row per fine-tune."""

    folder: Path
    name: str
    """The path of the folder inside the folder of all results."""
    settings: dict[str, Any]
    runs: pd.DataFrame

    @cached_property
    def summary(self) -> pd.DataFrame:
        """`summarise` of all runs."""
        return summarise(self.runs)

    @cached_property
    def cells(self) -> dict[str, pd.DataFrame]:
        """The run records of each cell, in the order of `CELL`."""
        return {cell: runs for (*_, cell), runs in self.runs.groupby([*CELL, "cell"], sort=True)}

    @cached_property
    def order(self) -> dict[str, int]:
        """The place of every arm in the tables."""
        return {arm["name"]: place for place, arm in enumerate(self.settings["described"])}

    @cached_property
    def lost(self) -> dict[str, str]:
        """What an incomplete run has not made: job to reason."""
        table = self.table("failed")
        return {} if table is None else dict(table[TABLES["failed"]].to_numpy())

    def table(self, name: str) -> pd.DataFrame | None:
        """`<name>.csv`, or None where this table may be absent; KnowError where it is damaged."""
        path = self.folder / f"{name}.csv"
        if name in ("failed", "cost", "cost_by_arm", "placebo") and not path.is_file():
            return None
        return load_table(path, TABLES[name])

    @cached_property
    def snapshots(self) -> pd.DataFrame:
        """Accuracies of the snapshots of every trajectory."""
        return self.table("trajectories")


def load(folder: Path, results: Path | None = None) -> Published:
    """Read one suite's folder; KnowError names a file that is damaged. results: the folder of all results."""
    required = {"described", "figures", "learnt_from", "name", "unavailable"}
    required |= {name for name, setting in Suite.model_fields.items() if setting.is_required()}
    defaults = {name: setting.default for name, setting in Suite.model_fields.items() if name not in required}
    settings = defaults | read_json(folder / "suite.json")  # an older run may lack a setting that was added later
    if missing := sorted(required - set(settings)):
        raise KnowError(f"{folder / 'suite.json'} lacks {', '.join(missing)}; it is damaged, restore it")
    name = folder.relative_to(results).as_posix() if results else settings["name"]
    return Published(folder, name, settings, read_records([folder / "runs.csv"], RunRecord))


def load_all(results: Path) -> list[Published]:
    """All suites below `results`, in the order of their paths; KnowError where there is none."""
    return [load(folder, results) for folder in suites(results)]


def suites(results: Path) -> list[Path]:
    """The folders of all suites below `results`; KnowError where there is none.

    The records of the first comparison (`FIRST`) have a format of their own and stay as they are.
    """
    found = (path.parent for path in results.rglob("suite.json"))
    folders = sorted(folder for folder in found if folder.relative_to(results).parts[:1] != (FIRST,))
    if not folders:
        raise KnowError(f"{results} holds no results; run `make results` first")
    return folders


def load_table(path: Path, columns: list[str]) -> pd.DataFrame:
    """A csv without a record schema; KnowError names it where it cannot be read or lacks one of the columns."""
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' own errors and those of decoding are ValueErrors
        reason = getattr(error, "strerror", None) or error
        raise KnowError(f"{path} cannot be read ({reason}); run the suite, or restore the file") from error
    if missing := [column for column in columns if column not in table]:
        raise KnowError(f"{path} lacks the columns {', '.join(missing)}; it is damaged, restore it")
    return table
