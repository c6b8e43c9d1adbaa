"""The tables of the pages: plain rows of texts, computed from the records. Words and layout stand in the templates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.report.claims import CLAIMS, Claim, Contrast, Line
from benchmarks.report.evidence import (
    DAGGER,
    LOCAL,
    POLICIES,
    Evidence,
    Finding,
    Place,
    Verdict,
    cost_verdict,
    gates,
    informative,
    marked,
    sees_small_steps,
)
from benchmarks.report.folders import GROUPS, PLACE, Published
from benchmarks.report.statistics import Interval, compare, fieller, paired_t, trajectory_means
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
        "further training": "compute_matched",
        **{one.arm.replace("compute_", "further, ").replace("_", ", "): one.arm for one in CLAIMS.finalists},
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

BESIDE = [
    ("oracle_steps", "naive"),
    ("local_oracle", "compute_matched"),
    ("compute_matched", "naive"),
    ("compute_augmented", "naive"),
    ("compute_augmented", "compute_matched"),
    ("oracle_steps", "compute_augmented"),
]
"""Better and worse arm of differences that no claim is about and that the five sentences and docs/FINDINGS.md quote."""

NOISE = "\N{ALMOST EQUAL TO}"
"""The mark of a difference whose mean lies in the noise band."""

# texts


def signed(interval: Interval) -> str:
    """A difference in points with its interval; a rounded zero has no minus sign."""
    mean, low, high = (round(value, 2) + 0.0 for value in (interval.mean, interval.low, interval.high))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


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


def _head_of(row: Mapping[str, Any]) -> str:
    place = f"{row['track']}<br>{row['source']} to {row['target']}"
    return f"{place}<br>{row['network']}{axes_of(row)}, {100 * row['share']:g} %"


def _difference(row: pd.Series, noise: tuple[float, float] | None = None) -> str:
    """A difference to naive with its interval, marked where its mean lies in the noise band."""
    shown = signed(Interval(row["difference"], row["low"], row["high"], row["n"]))
    return f"{shown} {NOISE}" if noise and noise[0] <= row["difference"] <= noise[1] else shown


def _shown(interval: Interval) -> str:
    return signed(interval) if interval.n > 1 else "-"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _p_value(p: float) -> str:
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def front_means(runs: pd.DataFrame) -> pd.DataFrame:
    """Means of trajectories in points, for `FRONT`. A random step that is not finite is no noise, and is left out."""
    random = FRONT["What could be seen"]["noise floor: a random step"]
    return 100 * trajectory_means(runs[(runs["arm"] != random) | runs["step"].notna()])


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


def overview(published: Published, shown: Container[str] | None = None) -> pd.DataFrame:
    """The tuned difference to naive: arms as rows; of each cell the difference and, beside it, the recalibrated source
    accuracy. First the accuracy of naive, last the gates.

    shown: the arms to show; by default all, under the headings of their groups.
    """
    tuned = published.summary[published.summary["policy"] == "tuned"].set_index(["cell", "arm"])
    unavailable = published.settings["unavailable"]
    columns: dict[str, list[str]] = {"arm": ["naive"]}
    columns["arm"] += [arm for arm in published.order if arm != "naive" and (shown is None or arm in shown)]
    for cell, runs in published.cells.items():
        marks, noise = marked(published, cell), noise_band(published, cell).get("tuned")
        entries = [f"{tuned.loc[(cell, 'naive'), 'accuracy']:.2f} %"]
        for arm in columns["arm"][1:]:
            if (cell, arm) in tuned.index:
                shown_here = _difference(tuned.loc[(cell, arm)], noise)
                entries.append(shown_here + (f" {DAGGER}" if arm in marks else ""))
            else:
                entries.append("not available" if arm in unavailable.get(cell, {}) else "")
        columns[_head_of(runs.iloc[0])] = [*entries, passed_in_words(gates(published, cell, "tuned"))]
        found = [tuned.loc[(cell, arm)] if (cell, arm) in tuned.index else None for arm in columns["arm"]]
        source = ["" if row is None else f"{row['source_accuracy_recalibrated']:.2f} %" for row in found]
        columns[f"source<br>{_head_of(runs.iloc[0])}"] = [*source, ""]
    for job in (job for job in published.lost if job.startswith("transfer/")):  # a cell without records
        head = job.removeprefix("transfer/").replace(".", "<br>")
        columns[head] = ["missing"] * (len(columns["arm"]) + 1)
    columns["arm"].append("gates")
    table = pd.DataFrame(columns)
    return table if shown is not None else pd.DataFrame(_grouped(published, table.to_numpy().tolist()), columns=columns)


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
    head = ["arm", *(name for policy in policies for name in (policy, "difference")), "data gap", "local data gap"]
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
    """The steps of every predictor, and the shares of their parts: mean over trajectories, one column per place."""
    table = published.table("steps")
    table = table[(table["role"] == "all") & table["depth"].isin([0, 1, 3])]
    parts = ["step", "shrink", "linear", "neither"]
    means = {
        place_of(rows.iloc[0]): rows.groupby(["predictor", "depth"])[parts].mean()
        for _, rows in table.groupby(["track", "source", "network", "rate", "length"], sort=True)
    }
    rows = [["", "", *["step: shrink, linear, neither"] * len(means)]]
    for key in sorted({key for mean in means.values() for key in mean.index}):
        entries = []
        for mean in means.values():
            step, *shares = mean.loc[key] if key in mean.index else [math.nan]
            entries.append(f"{step:.3f}: {', '.join(f'{share + 0.0:.2f}' for share in shares)}" if shares else "")
        rows.append([key[0], str(key[1] or ""), *entries])
    return pd.DataFrame(rows, columns=["predictor", "depth", *means])


def movement(published: Published) -> pd.DataFrame:
    """Sizes of the differences between neighbouring snapshots, and cosines: mean over trajectories, a row per place."""
    table = published.table("movement")
    table = table[table["role"] == "all"]
    numbers = range(int(table["difference"].max()) + 1)
    rows = []
    for _, own in table.groupby(["track", "source", "network", "rate", "length"], sort=True):
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
    for _, own in table.groupby(["track", "source", "network", "rate", "length"], sort=True):
        for k, means in own.groupby("snapshot")[["moved", "placebo_moved", "apart", "cosine"]].mean().iterrows():
            rows.append([place_of(own.iloc[0]), f"theta_{k}", *(f"{v:.3f}" for v in means[:3]), f"{means.iloc[3]:.2f}"])
    head = ["trajectories", "snapshot", "moved", "placebo moved", "apart", "cosine"]
    return pd.DataFrame(rows, columns=head)


def held_out(published: Published) -> pd.DataFrame:
    """Errors of the meta-trained networks on trajectories that they have not seen, as shares of no change."""
    errors = published.table("held_out")
    models = {"known": "KNOWN", "scaled": "scaled KNOWN", "meta_linear": "meta-linear"}
    models |= {"meta_linear_theta0": "with theta_0"}
    if "shipped" in set(errors["model"]):
        models["shipped"] = f"KNOWN that ships, group `{published.settings['metatraining']['beside']}`"
    rows = []
    for (length, role), own in errors.groupby(["length", "role"], sort=False):
        at = {model: part.set_index("run") for model, part in own.groupby("model")}
        known = at["known"]
        still, step = known["no_change_loss"], known["step"].mean()
        ratios = [_ratio(at[model]["loss"], still) for model in models] + [_ratio(known["linear_loss"], still)]
        said = f"{step:.2g}{' (no prediction)' if step < CLAIMS.still else ''}"
        rows.append([str(length), role, str(len(known)), *ratios, said])
    return pd.DataFrame(rows, columns=["S", "role", "n", *models.values(), "linear step", "step"])


def _ratio(a: pd.Series, b: pd.Series) -> str:
    interval = fieller(a.to_numpy(), b.to_numpy())
    if interval:
        return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    return f"{a.mean() / b.mean() if b.mean() else math.nan:.3f}"


def meta_linear(published: Published) -> pd.DataFrame:
    """Coefficients of the meta-linear steps, without and with theta_0."""
    rows = []
    for (length, role), own in published.table("meta_linear").groupby(["length", "role"], sort=False):
        differences = own[own["term"].str.startswith("difference")]
        texts = [
            ", ".join(f"{value + 0.0:.2f}" for value in differences.loc[differences["model"] == model, "value"])
            for model in ("meta_linear", "meta_linear_theta0")
        ]
        rows.append([str(length), role, *texts, f"{own.loc[own['term'] == 'theta_0', 'value'].iloc[0] + 0.0:.3f}"])
    return pd.DataFrame(rows, columns=["S", "role", "differences", "with theta_0: differences", "theta_0"])


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


def costs_of_jobs(jobs: pd.DataFrame) -> pd.DataFrame:
    """Time and memory of every job of a run, from the rows of cost.csv."""
    numbers = jobs[["seconds", "cpu_seconds", "peak_memory_mb"]] / [60, 60, 1024]
    table = numbers.map("{:.1f}".format).set_axis(["minutes", "processor minutes", "peak memory, GiB"], axis=1)
    table.insert(0, "job", jobs["job"])
    return table


# the pages of claims


def front(evidence: Evidence, costs: pd.DataFrame) -> pd.DataFrame:
    """Every claim with its verdict and the pooled estimates of its last contrast, at the rate policies that have any;
    those that hold come first.
    """
    rows = []
    for claim in CLAIMS.claims:
        finding, contrasts = evidence.claim(claim), evidence.contrasts(claim)
        last = [_shown(evidence.judge(contrasts[-1], p, claim.suites).interval) if contrasts else "-" for p in POLICIES]
        rows.append([claim.name, said(finding), *last, list(Verdict).index(finding.verdict)])
    verdict = cost_verdict(costs)
    rows.append(["predicting is cheap beside training", verdict, *["-"] * len(POLICIES), list(Verdict).index(verdict)])
    rows.sort(key=lambda row: row[-1])
    table = pd.DataFrame([row[:-1] for row in rows], columns=["claim of the paper", "here", *POLICIES.values()])
    return table.drop(columns=[name for name in POLICIES.values() if (table[name] == "-").all()])


def found(evidence: Evidence) -> list[str]:
    """Five sentences on what the core suites say, with pooled differences in points; none where none was run."""
    tuned = CLAIMS.primary.policy
    passed = [own for (suite, _, policy), own in evidence.gates.items() if suite in CLAIMS.core and policy == tuned]
    if not passed:
        return []
    places = {place for place in evidence.informative_at(tuned) if place.core}
    networks, pairs = ({f(place) for place in places} for f in (lambda p: p.network, lambda p: (p.source, p.target)))

    def known(policy: Policy, worse: Mapping[str, str], factor: str = "x8") -> str:
        """KNOWN of both lines, each minus an arm of its own."""
        shown = [
            f"{_pooled(evidence, f'{line.arm}_{factor}', worse[key], policy)} ({_whose(line)})"
            for key, line in CLAIMS.lines.items()
        ]
        return " and ".join(shown)

    shrunk, placebo = (next(c.arms for c in CLAIMS.controls if word in c.text) for word in ("shrinking", "placebo"))
    naive = dict.fromkeys(CLAIMS.lines, "naive")
    at_paper = "At the paper's rate, on the same short schedule, "
    if any(place.core for place in evidence.informative_at("short")):
        at_paper += f"KNOWN x8 minus naive is {known('short', naive)}; "
        at_paper += f"minus shrinking by as much it is {known('short', shrunk)}."
    else:
        at_paper += "no core cell that was run is informative."
    averages = ", ".join(f"`{one.arm}` {_pooled(evidence, one.arm, 'naive', tuned)}" for one in CLAIMS.finalists)
    return [
        f"At tuned rates {sum(map(informative, passed))} of the {len(passed)} core cells that were run are informative "
        f"(networks: {len(networks)}, pairs of datasets: {len(pairs)}), and {sum(map(sees_small_steps, passed))} see a "
        "step as small as a prediction's. Twice the data at equal steps is worth "
        f"{_pooled(evidence, 'oracle_steps', 'naive', tuned)} points, and the same nearby, for which KNOWN x2 stands, "
        f"{_pooled(evidence, 'local_oracle', 'compute_matched', tuned)}.",
        f"At tuned rates KNOWN minus naive fine-tuning is, at x2, {known(tuned, naive, 'x2')}, and at x8 "
        f"{known(tuned, naive)}.{_not_finite(evidence, tuned)}",
        f"Minus shrinking theta_0 by as much KNOWN x8 is {known(tuned, shrunk)}, and minus its own answer to a "
        f"placebo, in which nothing was removed, {known(tuned, placebo)}.",
        "The compute of the forgetting steps, spent on training theta_0 further, is worth "
        f"{_pooled(evidence, 'compute_matched', 'naive', tuned)} points, and the means of late weights of such "
        f"training {averages}.",
        at_paper,
    ]


def _whose(line: Line) -> str:
    return line.label.removeprefix("KNOWN ").strip("()")


def _not_finite(evidence: Evidence, policy: Policy) -> str:
    """A sentence on the predictions of KNOWN x8 in informative core cells that are not finite, where there are any."""
    said = []
    for line in CLAIMS.lines.values():
        lost, count = _lost(evidence, line.deepest, policy)
        if lost:
            said.append(f"{lost} of {count} source trajectories ({_whose(line)})")
    if not said:
        return ""
    zero = "which counts as an accuracy of 0, for it and for what is made from it"
    return f" At x8 it was not finite on {' and '.join(said)}, {zero}."


def _lost(evidence: Evidence, arm: str, policy: Policy) -> tuple[int, int]:
    """On how many source trajectories of informative core cells an arm's weights are not finite, and of how many."""
    rows = evidence.runs
    rows = rows[rows["suite"].isin(CLAIMS.core) & (rows["policy"] == policy) & (rows["arm"] == arm)]
    lost = rows["step"].isna().groupby([rows[key] for key in ("source", "network", "trajectory")]).any()
    return int(lost.sum()), len(lost)


def _pooled(evidence: Evidence, better: str, worse: str, policy: Policy) -> str:
    """A pooled difference that links to its page; the title of the link says what it is."""
    shown = _shown(evidence.judge(Contrast(better=better, worse=worse), policy).interval)
    return f'[{shown}](CLAIMS.md "{better} - {worse}, {policy}, pooled")' if shown != "-" else shown


def said(finding: Finding) -> str:
    """A finding in words."""
    if finding.explained:
        return f"{finding.verdict} ({finding.because}), explained as well by {' or '.join(finding.explained)}"
    return f"{finding.verdict}: {finding.because}" if finding.because else str(finding.verdict)


def primary(evidence: Evidence, family: Sequence[Contrast]) -> dict[str, pd.DataFrame]:
    """Contrasts of one family by heading: pooled, then in each place, with p values after Holm's correction in each."""
    policy = CLAIMS.primary.policy
    tables = {"Pooled": {contrast: evidence.judge(contrast, policy) for contrast in family}}
    for place in evidence.places:
        tables[title_of(place)] = {c: evidence.by_place(c, policy).get(place) for c in family}
    made = {}
    for heading, found in tables.items():
        rows = [
            [contrast, _shown(one.interval), one.interval.n, _p_value(one.corrected), one.verdict]
            for contrast, one in found.items()
            if one and one.interval.n
        ]
        if rows:
            made[heading] = pd.DataFrame(rows, columns=["contrast", "difference", "n", "p (Holm)", "verdict"]).astype(
                str
            )
    return made


def beside(evidence: Evidence) -> pd.DataFrame:
    """The differences `BESIDE` at tuned rates in every informative core cell, and pooled. They have no verdict."""
    policy, rows = CLAIMS.primary.policy, []
    for contrast in (Contrast(better=better, worse=worse) for better, worse in BESIDE):
        at = {place: one for place, one in evidence.by_place(contrast, policy).items() if place.core}
        found = {title_of(place): at[place] for place in evidence.places if place in at}
        found["pooled"] = evidence.judge(contrast, policy)
        rows += [[contrast, place, _shown(one.interval), one.interval.n] for place, one in found.items()]
    return pd.DataFrame(rows, columns=["contrast", "cell", "tuned rate", "n"]).astype(str)


def finalists(evidence: Evidence) -> list[dict[str, object]]:
    """For each finalist: the arms, the core cells in which it holds, and whether it becomes a part of the library."""
    made = []
    for one in CLAIMS.finalists:
        verdict, places = evidence.confirmed(one)
        made.append({"arm": one.arm, "matched": one.matched, "verdict": verdict, "places": list(map(title_of, places))})
    return made


def title_of(place: Place) -> str:
    """A place in words."""
    axes = "" if place.usual else f", {place.track}, r = {place.rate:g}"
    return f"{place.suite}: {place.source} to {place.target}, {place.network}{axes}"


def contrasts(evidence: Evidence, claim: Claim) -> pd.DataFrame:
    """The contrasts of a claim at every rate policy, with the paper's number: by network and pair, pooled last."""
    head = ["contrast", "network", "source to target", "paper", *POLICIES.values(), "n", "verdict (tuned)"]
    every, rows = evidence.contrasts(claim), []
    for contrast in every:
        at = {policy: evidence.by_place(contrast, policy) for policy in POLICIES}
        places = [
            place for place in evidence.places if place in at["tuned"] and place.suite in (claim.suites or CLAIMS.core)
        ]
        if claim.everywhere or len(every) <= CLAIMS.shown_by_place:
            for place in (place for place in places if place.usual):
                said = [_shown(at[policy][place].interval) if place in at[policy] else "" for policy in POLICIES]
                tuned = at["tuned"][place]
                pair = f"{place.source} to {place.target} ({place.suite})"
                rows.append([contrast, place.network, pair, "", *said, tuned.interval.n, tuned.verdict])
        if not claim.everywhere:
            paper = CLAIMS.paper_gain(contrast)
            pooled = [evidence.judge(contrast, policy, claim.suites) for policy in POLICIES]
            numbers = [_shown(one.interval) for one in pooled]
            shown = "" if paper is None else f"{paper:+.2f}"
            rows.append([contrast, "pooled", "", shown, *numbers, pooled[-1].interval.n, pooled[-1].verdict])
    return pd.DataFrame(rows, columns=head).astype(str)


def controls(evidence: Evidence, claim: Claim, policy: Policy = "tuned") -> list[dict[str, Any]]:
    """What is left of KNOWN's gain beside each control that was run, at a rate policy."""
    arm = CLAIMS.lines[claim.controls_of].deepest
    lines = []
    for control in CLAIMS.controls:
        other = control.arms[claim.controls_of]
        judged = evidence.judge(Contrast(better=arm, worse=other), policy)
        if judged.interval.n:
            lost = [(one, *_lost(evidence, one, policy)) for one in (arm, other)]
            facts = {
                "difference": _shown(judged.interval),
                "sign": judged.sign,
                "text": control.text,
                "corrected_away": not judged.sign and not judged.interval.low <= 0 <= judged.interval.high,
                "lost": [f"`{one}` on {n} of {count}" for one, n, count in lost if n],
            }
            lines.append({"arm": arm, "control": other, **facts})
    return lines


def ablations(evidence: Evidence) -> pd.DataFrame:
    """The deepest KNOWN minus naive in every informative place that is not pooled."""
    rows = []
    for line, place in itertools.product(CLAIMS.lines.values(), evidence.places):
        # the names of arms have the factor on the data, which is another one at another r
        run = (arm for arm in evidence.arms_of(place) if arm.startswith(f"{line.arm}_x"))
        deepest = max(run, key=lambda arm: float(arm.rpartition("_x")[2]), default=line.deepest)
        at = {policy: evidence.by_place(Contrast(better=deepest, worse="naive"), policy) for policy in POLICIES}
        if not place.core and place in at["tuned"]:
            said = [_shown(at[policy][place].interval) if place in at[policy] else "" for policy in POLICIES]
            rows.append([deepest, title_of(place), *said, at["tuned"][place].verdict])
    return pd.DataFrame(rows, columns=["arm", "place", *POLICIES.values(), "verdict (tuned)"]).astype(str)


def cells(evidence: Evidence) -> pd.DataFrame:
    """The gates of every cell at every rate policy, and what they say."""
    rows = []
    for (suite, cell, policy), passed in sorted(evidence.gates.items()):
        failed = [name.partition(":")[0] for name, gate in passed.items() if not gate.low > 0 and name != LOCAL]
        verdict = "uninformative: " + ", ".join(failed) if failed else "informative"
        if not failed and not sees_small_steps(passed):
            verdict += ", cannot see small steps"
        rows.append([suite, cell, POLICIES[policy], verdict])
    return pd.DataFrame(rows, columns=["suite", "cell", "rate policy", "gates"])


def costs_of_known(costs: pd.DataFrame) -> pd.DataFrame:
    """What a prediction of KNOWN costs beside the training of theta_0, from `evidence.costs`."""
    rows = []
    for _, row in costs.iterrows():
        depth = {"x2": 1, "x8": 3}[row["arm"].rpartition("_")[2]]
        per_step, share = row["seconds"] / row["weights"] / depth, row["seconds"] / row["theta_0_seconds"]
        shown = [f"{per_step:.1e}", f"{100 * share:.2f} %", f"{row['trained'] - 1:.2f}"]
        rows.append([row["arm"], row["suite"], row["network"], *shown])
    head = [
        "arm",
        "suite",
        "network",
        "s per weight and step back",
        "prediction / training of theta_0",
        "forgetting / training",
    ]
    return pd.DataFrame(rows, columns=head)
