"""Pilot cells: whether a suite has gaps that an arm could close, on pilot trajectories alone, before it is run.

    KNOW_DATA=/folder/with/the/data python -m benchmarks.pilots --suite core/NAME ...    adds to benchmarks/pilots.csv

In every cell of a suite: the first two pilot trajectories, and four arms: naive, the oracle of the data gap, and the
local oracle with compute-matched, whose difference is the local data gap. Rates are searched as in the run; then each
trajectory is fine-tuned several times at the rate of each arm. Validation images alone are read, and no evaluated
trajectory is made. The store keeps all of it for the run. Printed too: how wide the intervals of the run will be.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.arms import arms_of
from benchmarks.data import load
from benchmarks.settings import Arms, Cell
from benchmarks.store import STORE, Store
from benchmarks.suite import WORK, Suite, load_suite, suite_names
from benchmarks.training import deterministic
from benchmarks.trajectories import make_origin
from benchmarks.transfer import Bench, Task, choose_rates, portions, run_tasks
from benchmarks.workers import workers
from know.errors import KnowError
from know.files import write_csv
from know.statistics import CONFIDENCE, Interval

TABLE = Path("benchmarks/pilots.csv")
COLUMNS = ["suite", "cell", "arm", "learning_rate", "trajectory", "fine_tune", "validation_accuracy"]
TRAJECTORIES = 2
FIRST = {
    "plaincnn": Path("results/first/cpu/plaincnn"),
    "resnet8": Path("results/first/cpu/resnet8"),
    "vit_tiny": Path("results/first/cpu-wide/vit"),
}
"""Where the first comparison has single fine-tunes of KNOWN on CIFAR-100 to CIFAR-10."""
TESTED = 10_000
"""Test images of the target of the first comparison."""
ARMS = ("known_x8", "released_x8")
LEAST = 0.5
"""A cell is replaced if its mean data gap is shown to lie below so many points (docs/RULES.md, 5)."""
GAPS = {"data gap": ("oracle_steps", "naive"), "local data gap": ("local_oracle", "compute_matched")}


def run_pilots(name: str, suite: Suite, *, store: Store, work: Path, processes: int) -> Iterator[dict]:
    """Rows with the columns `COLUMNS` for every cell of a suite on the overflow track; accuracies in [0, 1]."""
    pilots = [each for each in suite.trajectory_ids if each.startswith("p")][:TRAJECTORIES]
    arms = Arms(references=[arm for gap in GAPS.values() for arm in gap], methods={})
    for cell in (cell for cell in suite.cells if cell.track == "overflow"):
        origin, forgetting = work / "trajectories" / cell.origin.slug, suite.forgetting_of(cell.origin)
        made = {"references": arms.references, "store": store, "out": origin, "processes": processes}
        make_origin(cell.origin, pilots, suite.tracks(cell.origin), suite.pretraining, forgetting, **made)
        bench = Bench(cell, suite.transfer, origin, suite.known_folder(work, cell.length), store, "cpu")
        yield from (
            {"suite": name, "cell": cell.slug, **row} for row in _run_cell(bench, cell, pilots, arms, processes)
        )


def _run_cell(bench: Bench, cell: Cell, pilots: list[str], arms: Arms, processes: int) -> Iterator[dict]:
    settings, asked = bench.settings, arms_of(arms, cell, bench.settings.normalisation)
    with workers(processes) as each:

        def evaluate(tasks: list[Task]) -> list:
            made = each(functools.partial(run_tasks, bench), portions(tasks, settings.together))
            return [result for results, _ in made for result in results]

        choice, _ = choose_rates(asked, pilots, settings, evaluate)
        rates = {arm.name: choice["arms"][arm.name]["learning_rate"] for arm in asked}
        tasks = [
            Task(trajectory, arm, repeat, rates[arm.name], "tuned")
            for trajectory in pilots
            for arm in asked
            for repeat in range(settings.fine_tunes)
        ]
        for task, result in zip(tasks, evaluate(tasks), strict=True):
            own = {key: getattr(task, key) for key in ("learning_rate", "trajectory", "fine_tune")}
            yield {"arm": task.arm.name, **own, "validation_accuracy": result.validation_accuracy}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """By cell, in points at tuned rates: validation accuracy of naive; each gap on each trajectory, with the standard
    deviation of the gap between fine-tunes of one trajectory; and whether rule 5 replaces the cell.
    """
    found = []
    for (suite, cell), own in rows.groupby(["suite", "cell"], sort=False):
        table = 100 * own.pivot_table(index=["trajectory", "fine_tune"], columns="arm", values="validation_accuracy")
        row = {"suite": suite, "cell": cell, "naive": f"{table['naive'].mean():.1f}"}
        for gap, (better, worse) in GAPS.items():
            differences = (table[better] - table[worse]).groupby("trajectory")
            row[gap] = ", ".join(f"{value:+.1f}" for value in differences.mean())
            row[f"{gap}, between fine-tunes"] = f"{np.sqrt(differences.var().mean()):.2f}"
        interval = gap_interval(table, "data gap")
        row["data gap, mean"] = f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
        row["replaced"] = "yes" if interval.high < LEAST else "no"
        found.append(row)
    return pd.DataFrame(found)


def gap_interval(table: pd.DataFrame, gap: str) -> Interval:
    """The mean of a gap over the fine-tunes of these very trajectories, with its 95 % t interval from the variance
    between fine-tunes of one trajectory. table: accuracies, index (trajectory, fine_tune), a column per arm.
    """
    better, worse = GAPS[gap]
    differences = (table[better] - table[worse]).groupby("trajectory")
    freedom, n = int((differences.count() - 1).sum()), int(differences.count().sum())
    variance = float((differences.var() * (differences.count() - 1)).sum()) / freedom
    mean = float(differences.mean().mean())
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * (variance / n) ** 0.5
    return Interval(mean, mean - half, mean + half, n)


def half_widths(rows: pd.DataFrame, tested: Callable[[str], int]) -> pd.DataFrame:
    """By cell: about how wide, to one side and in points, the 95 % interval of each of `ARMS` minus naive will be.

    tested: the number of test images of a target. The part of the variance that is between fine-tunes is taken from the
    local data gap of the pilots, which too is a difference between weights that lie close together, and scaled to the
    number of test images, as if all of it came from single images. The part between trajectories is what is left of the
    variance of single differences in the first comparison, which had the network on CIFAR-100 to CIFAR-10, without the
    part that the pilots of the same cell give: other targets are taken to have as much. If some of the first part does
    not come from single images, the second is smaller than is said, and so is the half-width.
    """
    found = []
    for (name, cell), own in rows.groupby(["suite", "cell"], sort=False):
        if name not in suite_names():  # it was replaced
            continue
        suite = load_suite(name)
        ((network, target),) = {(each.network, each.target) for each in suite.cells if each.slug == cell}
        within = _between_fine_tunes(own) * suite.transfer.validation / tested(target)
        n, m = suite.trajectories, suite.transfer.fine_tunes
        row = {"suite": name, "cell": cell, "trajectories": str(n), "fine-tunes": str(m)}
        row["SD between fine-tunes"] = f"{within**0.5:.2f}"
        home = rows[rows["suite"] == f"core/{network}"]
        for arm in ARMS:
            single = _first(network, arm) if network in FIRST and len(home) else None
            row[f"{arm}, half-width"] = "-"
            if single is not None:
                images = _between_fine_tunes(home) * load_suite(f"core/{network}").transfer.validation / TESTED
                between = max(0.0, float(single.var(ddof=1)) - images)
                row[f"{arm}, half-width"] = f"{half_width(between, within, n, m):.2f}"
        found.append(row)
    return pd.DataFrame(found)


def _between_fine_tunes(rows: pd.DataFrame) -> float:
    """The variance of the local data gap between fine-tunes of one trajectory, in points squared."""
    table = 100 * rows.pivot_table(index=["trajectory", "fine_tune"], columns="arm", values="validation_accuracy")
    better, worse = GAPS["local data gap"]
    return float((table[better] - table[worse]).groupby("trajectory").var().mean())


def half_width(between: float, within: float, trajectories: int, fine_tunes: int) -> float:
    """Half of the 95 % t interval over trajectories that are each the mean of several fine-tunes.

    between, within: the variance between trajectories, and between fine-tunes of one.
    """
    error = ((between + within / fine_tunes) / trajectories) ** 0.5
    return float(stats.t.ppf(0.975, trajectories - 1) * error)


def _first(network: str, arm: str) -> np.ndarray | None:
    """The first comparison's differences to naive at tuned rates, in points, one for each trajectory."""
    runs = pd.read_csv(FIRST[network] / "runs.csv")
    runs = runs[(runs["recipe"] == "tuned") & runs["cell"].str.startswith("overflow.cifar100.cifar10_15k.")]
    table = 100 * runs.pivot_table(index="trajectory", columns="arm", values="accuracy")
    return None if arm not in table else (table[arm] - table["naive"]).to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="*", default=[], help="suites to run; none only prints the table")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    deterministic(1)
    store = Store(WORK / STORE)
    for name in chosen.suite:
        suite, work = load_suite(name), WORK / "pilots" / name
        own = list(run_pilots(name, suite, store=store, work=work, processes=chosen.processes))
        before = pd.read_csv(TABLE).to_dict("records") if TABLE.is_file() else []
        write_csv(TABLE, [row for row in before if row["suite"] != name] + own, COLUMNS)
    if not TABLE.is_file():
        raise KnowError(f"there is no {TABLE} yet; name suites to run with --suite")
    rows = pd.read_csv(TABLE)
    for table in (summary(rows), half_widths(rows, lambda target: len(load(target).test))):
        print(table.to_string(index=False), end="\n\n")


if __name__ == "__main__":
    main()
