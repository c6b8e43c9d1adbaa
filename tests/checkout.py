"""Checkouts in which the workflow runs: a fresh one, its processes, its store, and what two of them have in common."""

import contextlib
import os
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]

UNVERSIONED = {"logs", "benchmarks", "provenance.json", "cost.csv", "cost_by_arm.csv", "COST.md"}
"""What differs between two runs: times, and where they were."""


def content(folder: Path) -> dict[str, bytes]:
    """Relative path to bytes of all that is to be the same in two runs."""
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (folder / path).read_bytes() for path in paths if not UNVERSIONED & set(path.parts)}


def copy(folder: Path, *more: str) -> Path:
    """What the workflow reads, and `more` of the repository, in a folder of its own."""
    for name in ("workflow", "profiles", "benchmarks", "paper_figures", "know", *more):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def processes_in(folder: Path) -> set[int]:
    """Processes whose working folder is `folder`: jobs, and what watches over them."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if Path(os.readlink(entry / "cwd")) == folder:
                found.add(int(entry.name))
    return found


def fine_tunes(store: Path) -> list[str]:
    """Every whole line that a store has of fine-tunes."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((store / "fine-tunes").rglob("*.jsonl"))]
    return [line for text in texts for line in text.splitlines(keepends=True) if line.endswith("\n")]
