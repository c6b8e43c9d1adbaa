"""Make workflow/resources.yaml anew, from the times and memory that the committed runs took (results/*/cost.csv).

    python benchmarks/resources.py

`benchmarks.cluster` has the rule from what was measured to what is asked for. cost.csv differs between two runs, so
this is run by hand, after a suite has been run that is longer or larger than before.
"""

import csv
from pathlib import Path

from benchmarks.cluster import OVERHEAD_MB, SAFETY, STEP_MB, STEP_MINUTES, TABLE, table
from know.files import write_text

HEAD = f"""\
# What a job asks a cluster for, by kind of suite and rule.
# Made by `python benchmarks/resources.py` from results/*/cost.csv.
#
# seconds, peak_mb: the longest job of the rule, and the largest.
# minutes: {SAFETY["minutes"]:g} times as long, in steps of {STEP_MINUTES}.
# memory_mb: {SAFETY["memory"]:g} times as much and {OVERHEAD_MB} MB for Snakemake, in steps of {STEP_MB}.
# A kind that is not here asks for the most of its rule. Every retry asks for twice as much.
"""


def main() -> None:
    measured = {}
    for path in sorted(Path("results").rglob("cost.csv")):
        with path.open(encoding="utf-8", newline="") as handle:
            measured[path.parent.relative_to("results").as_posix()] = list(csv.DictReader(handle))
    lines = []
    for kind, rules in table(measured).items():
        lines.append(f"{kind}:")
        for rule, entry in rules.items():
            lines.append(f"  {rule}: {{{', '.join(f'{key}: {value}' for key, value in entry.items())}}}")
    write_text(TABLE, HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
