"""What two checkouts in which the workflow has run are to have in common."""

from pathlib import Path

UNVERSIONED = {"logs", "benchmarks", "provenance.json", "cost.csv", "cost_by_arm.csv", "COST.md"}
"""What differs between two runs: times, and where they were."""


def content(folder: Path) -> dict[str, bytes]:
    """Relative path to bytes of all that is to be the same in two runs."""
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (folder / path).read_bytes() for path in paths if not UNVERSIONED & set(path.parts)}
