"""How much time and memory Snakemake needs to plan suites of many jobs, measured by dry runs of the real workflow.

    python benchmarks/dag_size.py                       1,000, 10,000 and 100,000 jobs; writes benchmarks/dag_size.csv
    python benchmarks/dag_size.py --jobs 1000 --out -   one size, printed

The suite is synthetic: N networks, each with one job for its trajectories and one for each of 9 cells. A dry run that
exceeds the limit of time or memory is ended and recorded as not finished. `one_...` is a dry run of a single job of
the suite; each job pays this cost twice, for Snakemake on its node.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import yaml

from know.files import write_csv

REPOSITORY = Path(__file__).resolve().parents[1]
SHARES = [k / 10 for k in range(1, 10)]
OTHERS = 10
"""Jobs that each suite has once: data, meta-set (2), KNOWN, landscape, inspection, cost, publish, figures, all."""


def synthetic(jobs: int) -> dict:
    """The settings of a suite of about that many jobs, as in its YAML file."""
    suite = yaml.safe_load((REPOSITORY / "benchmarks/suites/smoke.yaml").read_text(encoding="utf-8"))
    networks = [f"n{k}" for k in range(max(1, round((jobs - OTHERS) / (1 + len(SHARES)))))]
    suite["pairs"] = [{"source": "digits:0-4", "target": "digits:5-9", "networks": networks}]
    suite["transfer"]["shares"] = SHARES
    return suite


def measure(jobs: int, minutes: float, gigabytes: float, options: list[str]) -> dict:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("workflow", "profiles", "benchmarks", "paper_figures", "know"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Snakefile", "environment.yml"):
            shutil.copy(REPOSITORY / name, folder)
        (folder / "benchmarks/suites/synthetic.yaml").write_text(yaml.safe_dump(synthetic(jobs)), encoding="utf-8")
        seconds, used, text, whole = _dry_run(folder, minutes, gigabytes, options)
        _, one, *_ = _dry_run(folder, minutes, gigabytes, ["work/synthetic/data.json", *options])
    totals = [line.split()[1] for line in text.splitlines() if line.startswith("total ")]
    return {
        "jobs": totals[0] if totals else jobs,
        "finished": "yes" if whole else "no",
        "seconds": f"{seconds:.0f}",
        "cpu_seconds": f"{used.ru_utime + used.ru_stime:.0f}",
        "peak_mb": f"{used.ru_maxrss / 1024:.0f}",
        "one_cpu_seconds": f"{one.ru_utime + one.ru_stime:.1f}",
        "one_peak_mb": f"{one.ru_maxrss / 1024:.0f}",
    }


def _dry_run(
    folder: Path, minutes: float, gigabytes: float, options: list[str]
) -> tuple[float, resource.struct_rusage, str, bool]:
    """Seconds of wall time, the resources used, the output, and whether the process finished."""
    line = [str(Path(sys.executable).with_name("snakemake")), *options, "--dry-run", "--quiet", "rules", "reason"]
    line += ["--cores", "1", "--config", "suite=synthetic"]
    start = time.perf_counter()
    with (folder / "said").open("w+", encoding="utf-8") as said:
        limit = lambda: resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30),) * 2)  # noqa: E731
        child = subprocess.Popen(line, cwd=folder, stdout=said, stderr=subprocess.STDOUT, preexec_fn=limit)
        timer = threading.Timer(60 * minutes, child.kill)
        timer.start()
        _, status, used = os.wait4(child.pid, 0)
        timer.cancel()
        said.seek(0)
        text = said.read()
    if status and not (os.WIFSIGNALED(status) or "MemoryError" in text):
        sys.exit(text[-4000:])
    return time.perf_counter() - start, used, text, not status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--minutes", type=float, default=60, help="cap of time, each")
    parser.add_argument("--gigabytes", type=float, default=16, help="cap of memory")
    parser.add_argument("--option", action="append", default=[], help="of snakemake, such as --option=--batch=...")
    parser.add_argument("--out", default=str(REPOSITORY / "benchmarks/dag_size.csv"))
    chosen = parser.parse_args()
    rows = []
    for jobs in chosen.jobs:
        rows.append(measure(jobs, chosen.minutes, chosen.gigabytes, chosen.option))
        print(rows[-1], flush=True)
        if chosen.out != "-":
            write_csv(chosen.out, rows, list(rows[0]))


if __name__ == "__main__":
    main()
