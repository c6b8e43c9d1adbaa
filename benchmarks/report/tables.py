"""The tables of the pages: plain rows of texts, computed from the records. Words and layout stand in the templates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.report.claims import CLAIMS
from benchmarks.report.evidence import (
    DAGGER,
    DIVERGED,
    POLICIES,
    gates,
    informative,
    marked,
    sees_small_steps,
)
from benchmarks.report.folders import GROUPS, PLACE, Published
from benchmarks.report.statistics import Interval, compare, gain, paired_t, trajectory_means
from benchmarks.settings import LENGTH, RATIO, Policy

FRONT = {
    "What could be seen": {
        "data gap": "share",
        "local data gap": "local_share",
        "noise floor: a random step": "random_step_x8",
    },
    "KNOWN": {
        "ours ×2": "known_x2",
        "ours ×8": "known_x8",
        "the authors' ×2": "released_x2",
        "the authors' ×8": "released_x8",
    },
    "The same compute": {
        "further training" if arm == "compute_matched" else arm.replace("compute_", "further, ").replace("_", ", "): arm
        for one in CLAIMS.finalists
        for arm in (one.matched, one.arm)
    },
    "The paper's baselines": {
        "LogFit ×2": "logfit_x2",
        "TaskVector ×2": "linear_x2",
        "TSV ×2": "tsv_x2",
        "WNN ×2": "wnn_x2",
    },
}
"""What the front picture and index.html show of a cell, by heading: an arm, of which the difference to naive is shown,
or one of the two data gaps (`front_means`)."""


@dataclass(frozen=True)
class Glance:
    """One difference of a cell, in points, and the marks that its arm carries there."""

    interval: Interval
    marks: Sequence[str]

    def __str__(self) -> str:
        return " ".join([interval_text(self.interval), *self.marks])


NOISE = "\N{ALMOST EQUAL TO}"
"""The mark of a difference whose mean lies in the noise band."""

# texts


def signed(interval: Interval) -> str:
    """A difference in points with its interval. A mean that rounds to zero has no minus sign; an end keeps it, so that
    one can see on which side of 0 the interval ends.
    """
    # sums differ in their last digits; and a number of numpy rounds 0.855 up, while one of Python rounds it down
    mean, low, high = (round(float(value), 9) + 0.0 for value in (interval.mean, interval.low, interval.high))
    return f"{round(mean, 2) + 0.0:+.2f} [{low:+.2f}, {high:+.2f}]"


def axes_of(row: Mapping[str, Any]) -> str:
    """What the name of a cell says of r and S: nothing where they are the paper's."""
    axes = [f"r = {row['rate']:g}"] if row["rate"] != RATIO else []
    return "".join(f", {axis}" for axis in [*axes, *([f"S = {row['length']}"] if row["length"] != LENGTH else [])])


def cell_title(row: Mapping[str, Any]) -> str:
    """Track, source, target, network and share of the target of a cell, in one line."""
    place = f"{row['track']}: {row['source']} to {row['target']}, {row['network']}{axes_of(row)}"
    return f"{place}, {100 * row['share']:g} % of the target"


def place_of(row: Mapping[str, Any]) -> str:
    """What a trajectory belongs to, from the columns `PLACE`."""
    return f"{row['track']}, {row['source']}, {row['network']}, r = {row['rate']:g}, S = {row['length']:g}"


def _difference(row: pd.Series, noise: tuple[float, float] | None = None) -> str:
    """A difference to naive with its interval, marked where its mean lies in the noise band."""
    shown = signed(Interval(row["difference"], row["low"], row["high"], row["n"]))
    return f"{shown} {NOISE}" if noise and noise[0] <= row["difference"] <= noise[1] else shown


def interval_text(interval: Interval) -> str:
    """The same, or a dash where too few trajectories were run for an interval."""
    return signed(interval) if interval.n > 1 else "-"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def front_means(runs: pd.DataFrame) -> pd.DataFrame:
    """Means of trajectories in points, for `FRONT`."""
    return 100 * trajectory_means(_for_front(runs))


def _for_front(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs without random steps that are not finite, which are no noise."""
    random = FRONT["What could be seen"]["noise floor: a random step"]
    return runs[(runs["arm"] != random) | runs["step"].notna()]


def glance(published: Published, cell: str, policy: Policy) -> dict[str, dict[str, Glance | None]]:
    """What `FRONT` names of a cell, by heading and label; None where an arm was not run at that rate policy."""
    runs, seen = _for_front(published.cells[cell].query("policy == @policy")), marked(published, cell)
    means, diverged = front_means(runs), set(runs.loc[runs["status"] != "ok", "arm"])

    def one(what: str) -> Glance | None:
        values = gain(means, what)
        marks = [mark for mark, arms in ((DAGGER, seen), (DIVERGED, diverged)) if what in arms]
        return None if values is None else Glance(paired_t(values), marks)

    return {heading: {label: one(what) for label, what in lines.items()} for heading, lines in FRONT.items()}


# the front page


def every_cell(results: Sequence[Published], policy: Policy = "tuned") -> pd.DataFrame:
    """The main differences of every cell of the suites that are evidence, a row per cell, and what its gates say."""
    shown = {"What could be seen": ("data gap", "local data gap"), "KNOWN": tuple(FRONT["KNOWN"])}
    shown["The same compute"] = tuple(label for label in FRONT["The same compute"] if "averaged" not in label)
    heads = [f"KNOWN, {label}" if heading == "KNOWN" else label for heading in shown for label in shown[heading]]
    rows = []
    for one in (one for one in results if one.settings["evidence"]):
        for cell, runs in one.cells.items():
            if policy in set(runs["policy"]):
                found, row = glance(one, cell, policy), runs.iloc[0]
                entries = [found[heading][label] for heading in shown for label in shown[heading]]
                place = f"{row['source']} to {row['target']}, {row['network']}{axes_of(row)}"
                place += f", {100 * row['share']:g} % of the target" if row["share"] < 1 else ""
                place += f", {row['track']}" if row["track"] != "overflow" else ""
                passed = passed_in_words(gates(one, cell, policy))
                link = f"[{one.name}]({one.name}/README.md)"
                rows.append([link, place, *(str(each or "") for each in entries), passed])
    return pd.DataFrame(rows, columns=["suite", "source, target, network", *heads, "gates"])


# the page of a suite


def noise_band(published: Published, cell: str) -> dict[str, tuple[float, float]]:
    """By rate policy, from where to where the intervals of the random steps of KNOWN's size reach, in points; nothing
    where none was run.
    """
    random = [
        arm["name"]
        for arm in published.settings["described"]
        if arm["predictor"] == "random_step" and arm["options"].get("of", "known") == "known"
    ]
    runs = published.cells[cell]
    means = 100 * trajectory_means(runs[runs["step"].notna()])  # as in `front_means`
    found = {}
    for policy, own in means.groupby(level="policy"):
        intervals = [paired_t(compare(own, arm)) for arm in random if arm in own]
        ends = [(each.low, each.high) for each in intervals if each.n > 1]
        if ends:
            found[policy] = (min(low for low, _ in ends), max(high for _, high in ends))
    return found


def _grouped(published: Published, table: list[list[str]]) -> list[list[str]]:
    """Rows of arms with a row before each group that has its heading."""
    groups, rows, last = {arm["name"]: arm["group"] for arm in published.settings["described"]}, [], ""
    for row in table:
        group = groups.get(row[0].removesuffix(f" {DAGGER}"), last)
        if group != last:
            rows.append([f"**{GROUPS[group]}**", *[""] * (len(row) - 1)])
        rows, last = [*rows, row], group
    return rows


def passed_in_words(intervals: Mapping[str, Interval]) -> str:
    """What the gates of a cell say, in short."""
    if not informative(intervals):
        return "uninformative"
    return "passed" if sees_small_steps(intervals) else "passed; cannot see small steps"


def arms_of_cell(published: Published, cell: str) -> pd.DataFrame:
    """Every arm of a cell at its rate policies, with its shares of the data gaps, rate, step and source accuracy, under
    the headings of their groups.
    """
    noise = noise_band(published, cell)
    rows = published.summary[published.summary["cell"] == cell]
    unavailable, marks = published.settings["unavailable"].get(cell, {}), marked(published, cell)
    retrodiction = rows["weight_error"].notna().any()
    policies = [policy for policy in POLICIES if policy in set(rows["policy"])]
    head = ["arm", *(name for policy in policies for name in (policy, "difference"))]
    head += ["share of data gap", "share of local data gap"]
    head += ["rate", "step", "source", "recalibrated", *(["weight error"] if retrodiction else [])]
    at = rows.set_index(["policy", "arm"])
    table = []
    for arm in sorted({*rows["arm"], *unavailable}, key=published.order.__getitem__):
        if arm in unavailable:
            table.append([arm, "not available", *[""] * (len(head) - 2)])
            continue
        tuned = at.loc[("tuned", arm)]
        entries = [f"{arm} {DAGGER}" if arm in marks else arm]
        for policy in policies:
            row = at.loc[(policy, arm)] if (policy, arm) in at.index else None
            failed = f" ({row['failed']} diverged)" if row is not None and row["failed"] else ""
            entries += (
                ["", ""] if row is None else [f"{row['accuracy']:.2f}{failed}", _difference(row, noise.get(policy))]
            )
        if arm == "naive":
            entries[2::2] = [""] * len(policies)
        for kind in ("share", "local_share"):
            share, low, high = (round(tuned[kind + end], 2) + 0.0 for end in ("", "_low", "_high"))
            shown = "-" if math.isnan(share) else f"{share:.2f} [{low:.2f}, {high:.2f}]"
            entries.append("" if arm in ("naive", "scratch") else shown)
        entries += [
            f"{tuned['learning_rate']:g}{'*' if tuned['on_edge'] else ''}",
            _number(tuned["step"], 3),
            f"{tuned['source_accuracy']:.2f}",
            f"{tuned['source_accuracy_recalibrated']:.2f}",
        ]
        table.append(entries + ([_number(tuned["weight_error"], 2)] if retrodiction else []))
    return pd.DataFrame(_grouped(published, table), columns=head)


def gates_of_cell(passed: Mapping[Policy, Mapping[str, Interval]]) -> pd.DataFrame:
    """The gates of a cell, in points, at each rate policy; the last row says what they say together."""
    names = list(dict.fromkeys(name for gates in passed.values() for name in gates))
    rows = [[name, *(_gate(gates.get(name)) for gates in passed.values())] for name in names]
    rows.append(["together", *map(passed_in_words, passed.values())])
    return pd.DataFrame(rows, columns=["gate", *(POLICIES[policy] for policy in passed)])


def _gate(gate: Interval | None) -> str:
    if gate is None or not gate.n:
        return "not measured"
    return f"{signed(gate)}, {'passed' if gate.low > 0 else 'failed'}"


def described(settings: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """By heading of a group: names, summary, reference and options of its arms. Depths of one method share a line."""
    lines: dict[str, dict[tuple, list[str]]] = {heading: {} for heading in GROUPS.values()}
    for arm in settings["described"]:
        options = ", ".join(f"{key} = {value}" for key, value in sorted(arm["options"].items()))
        key = (arm["summary"], arm["reference"], options)
        lines[GROUPS[arm["group"]]].setdefault(key, []).append(arm["name"])
    keys = ("summary", "reference", "options")
    return {
        heading: [{"names": names, **dict(zip(keys, key, strict=True))} for key, names in arms.items()]
        for heading, arms in lines.items()
        if arms
    }


def steps(published: Published) -> pd.DataFrame:
    """The steps of every predictor, and the shares of their parts: mean over the trajectories on which the answer is
    finite, with their number where it is not that of all; one column per place.
    """
    table = published.table("steps")
    table = table[(table["role"] == "all") & table["depth"].isin([0, 1, 3])]
    parts = ["step", "shrink", "linear", "neither"]
    means = {}
    for _, rows in table.groupby(PLACE, sort=True):
        by = rows.groupby(["predictor", "depth"])
        lacking = by.size().where(by.size() < rows["trajectory"].nunique())
        means[place_of(rows.iloc[0])] = by[parts].mean().assign(n=lacking)
    rows = [["", "", *["step: shrink, linear, neither"] * len(means)]]
    for key in sorted({key for mean in means.values() for key in mean.index}):
        entries = []
        for mean in means.values():
            step, *shares, n = mean.loc[key] if key in mean.index else [math.nan, math.nan]
            few = "" if math.isnan(n) else f" (n = {n:.0f})"
            entries.append(f"{step:.3f}: {', '.join(f'{share + 0.0:.2f}' for share in shares)}{few}" if shares else "")
        rows.append([key[0], str(key[1] or ""), *entries])
    return pd.DataFrame(rows, columns=["predictor", "depth", *means])


def movement(published: Published) -> pd.DataFrame:
    """Sizes of the differences between neighbouring snapshots, and cosines: mean over trajectories, a row per place."""
    table = published.table("movement")
    table = table[table["role"] == "all"]
    numbers = range(int(table["difference"].max()) + 1)
    rows = []
    for _, own in table.groupby(PLACE, sort=True):
        means = own.groupby("difference")[["size", "cosine"]].mean()
        entries = [f"{size:.3f}" + (f", {cosine:.2f}" if k else "") for k, (size, cosine) in means.iterrows()]
        rows.append([place_of(own.iloc[0]), *entries, *[""] * (len(numbers) - len(entries))])
    return pd.DataFrame(rows, columns=["trajectories", *(f"theta_{k} - theta_{k + 1}" for k in numbers)])


def placebo(published: Published) -> pd.DataFrame | None:
    """The trajectory beside its placebo, a row per place and snapshot: means over trajectories; None where none is."""
    table = published.table("placebo")
    if table is None:
        return None
    table = table[table["role"] == "all"]
    rows = []
    for _, own in table.groupby(PLACE, sort=True):
        for k, means in own.groupby("snapshot")[["moved", "placebo_moved", "apart", "cosine"]].mean().iterrows():
            rows.append([place_of(own.iloc[0]), f"theta_{k}", *(f"{v:.3f}" for v in means[:3]), f"{means.iloc[3]:.2f}"])
    head = ["trajectories", "snapshot", "moved", "placebo moved", "apart", "cosine"]
    return pd.DataFrame(rows, columns=head)


# the page of costs


def costs_of_arms(published: Published) -> dict[str, tuple[pd.Series, pd.DataFrame]]:
    """What each arm costs before fine-tuning, by place: the first row of cost_by_arm.csv there, and a row per arm."""
    table = published.table("cost_by_arm")
    places = [] if table is None else table.groupby(PLACE, sort=True)
    head = ["arm", "training", "prediction, s", "per weight, s", "share", "memory, MiB"]
    costs = {}
    for _, own in places:
        rows = []
        for _, row in own.sort_values("arm", key=lambda arms: arms.map(published.order)).iterrows():
            seconds, memory = row["seconds"], row["memory_mb"]
            per_weight, share = seconds / row["weights"], seconds / row["theta_0_seconds"]
            times = [f"{seconds:.2g}", f"{per_weight:.1e}", f"{100 * share:.2g} %"] if seconds else ["", "", ""]
            grown = "" if not memory or math.isnan(memory) else f"{memory:.1f}"
            rows.append([row["arm"], f"{row['trained']:.2f}", *times, grown])
        costs[place_of(own.iloc[0])] = (own.iloc[0], pd.DataFrame(rows, columns=head))
    return costs
