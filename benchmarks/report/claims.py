"""The paper's claims against the records: estimates, intervals, and verdicts that a rule gives, never a hand.

The rule, the contrasts and the margin are written in docs/RULES.md, and were before the first run that counts. Needs
neither torch nor data. Only suites whose `evidence` is true are read; a cell that fails a gate enters nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.report.pages import COST, gates, in_distribution, informative, load, load_table, signed, suites
from benchmarks.report.statistics import Interval, compare, holm, paired_t, pooled_t, trajectory_means
from benchmarks.suite import LENGTH, RATIO, SUITES, load_suite

MARGIN = 0.5
"""Points of test accuracy under which a gain counts as none."""
MOST_ALONE = 4
"""Contrasts of a claim that is shown by network too."""
CHEAP = 0.01
"""Share of the time of theta_0's training under which a prediction counts as cheap."""
PAPER_SECONDS = 2.67e-7
"""Of the paper's prediction, per weight, on its hardware."""
RECIPES = ("published", "tuned")
OPEN = "open"
MAIN = ("cpu/plaincnn", "cpu/resnet8")
"""The suites that the primary contrasts are read in; until all have been run, what they decide is open."""


@dataclass(frozen=True)
class Side:
    """One side of a contrast: an arm, in the cells at hand or in those of another share of the target or another S."""

    arm: str
    share: float = 1.0
    length: int = LENGTH

    def __str__(self) -> str:
        share = "" if self.share == 1 else f" at {100 * self.share:g} % of the target"
        return self.arm + share + ("" if self.length == LENGTH else f", S = {self.length}")


@dataclass(frozen=True)
class Contrast:
    """What one side has more than the other, in points; paper: the same difference of the paper's numbers."""

    better: Side
    worse: Side
    paper: float | None = None

    def __str__(self) -> str:
        return f"{self.better} - {self.worse}"


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and the contrasts that it is judged by.

    suites: those that count for it; none named: all.
    """

    name: str
    contrasts: tuple[Contrast, ...]
    suites: tuple[str, ...] = MAIN


def _against(arm: str, *others: str) -> tuple[Contrast, ...]:
    return tuple(Contrast(Side(arm), Side(other)) for other in others)


PAPER = {"x2": 93.00 - 92.40, "x4": 93.27 - 92.40, "x8": 93.55 - 92.40}
"""KNOWN minus naive, CIFAR-100 to CIFAR-10, ResNet-18, all of the target."""
LABELS = {"known": "KNOWN (ours)", "released": "KNOWN (released weights)"}
KNOWNS = {"known": "", "released": "_released"}
"""Lines of the two KNOWNs (ours, the authors'), and how the names of the controls measured against them end."""
PRIMARY = tuple(
    contrast
    for line, ending in KNOWNS.items()
    for contrast in _against(f"{line}_x8", "naive", f"shrink{ending}_x8", "linear_x8", "compute_matched")
)
"""The contrasts that Holm's correction is over, at tuned rates; everything else is exploratory."""
CORE = frozenset(side.arm for contrast in PRIMARY for side in (contrast.better, contrast.worse))
"""The arms of the primary contrasts."""


def claims(predictions: Sequence[str]) -> list[Claim]:
    """The paper's claims, for both KNOWNs; its numbers are those of CIFAR-100 to CIFAR-10 with ResNet-18.

    predictions: the arms of direct weight prediction.
    """
    found = []
    for line, label in LABELS.items():
        beats = tuple(Contrast(Side(f"{line}_{x}"), Side("naive"), gain) for x, gain in PAPER.items())
        found += [
            Claim(f"{label} beats naive fine-tuning", beats),
            Claim(f"{label} beats direct weight prediction, every one", _against(f"{line}_x8", *predictions)),
            Claim(
                f"{label}: the gain grows with recursion",
                (Contrast(Side(f"{line}_x8"), Side(f"{line}_x2"), 93.55 - 93.00),),
            ),
            Claim(
                f"{label}: half of the target with it matches all of the target without",
                (Contrast(Side(f"{line}_x8", share=0.5), Side("naive"), 93.11 - 92.40),),
                (),
            ),
        ]
    paper = {2: 93.55 - 92.65, 3: 93.55 - 92.72, 4: 93.55 - 92.89}
    lengths = tuple(Contrast(Side("known_x8"), Side("known_x8", length=s), gain) for s, gain in paper.items())
    return [*found, Claim("KNOWN (ours): a longer history helps", lengths, ())]


def verdict(estimate: Interval, paper: float | None = None) -> str:
    """The rule: reproduced, where the interval lies above 0 ("positive, smaller than the paper", where it also lies
    below the paper's number); else not reproduced, where it lies below `MARGIN`; else inconclusive.
    """
    if not math.isfinite(estimate.low):
        return OPEN
    if estimate.low > 0:
        return "positive, smaller than the paper" if paper is not None and estimate.high < paper else "reproduced"
    return "not reproduced" if estimate.high < MARGIN else "inconclusive"


def together(verdicts: Sequence[str]) -> str:
    """Of a claim that says "every one of them": it fails with one that fails, and holds with all that hold."""
    if not verdicts or OPEN in verdicts:
        return OPEN
    if "not reproduced" in verdicts or "inconclusive" in verdicts:
        return "not reproduced" if "not reproduced" in verdicts else "inconclusive"
    return "reproduced" if set(verdicts) == {"reproduced"} else "positive, smaller than the paper"


class Evidence:
    """Records of all suites that are evidence, without the cells that fail a gate."""

    def __init__(self, results: Path):
        kept, self.gates, self.groups = [], {}, {}
        self.suites: set[str] = set()
        self.seen: set[tuple[str, str]] = set()
        """Cells and arms that ask the authors' KNOWN about data that it was meta-trained on."""
        self.settings: dict[str, Any] = {}
        """How each suite trains, forgets and fine-tunes."""
        for folder in suites(results):
            suite, runs = load(folder)
            if not suite["evidence"]:
                continue
            name = folder.relative_to(results).as_posix()
            self.suites.add(name)
            self.settings[name] = _settings(suite)
            self.groups |= {arm["name"]: arm["group"] for arm in suite["described"]}
            for cell, rows in runs.groupby("cell", sort=True):
                place = f"{name}: {cell}"
                self.seen |= {(place, arm["name"]) for arm in suite["described"] if in_distribution(arm, rows.iloc[0])}
                self.gates[place] = informative(gates(rows, folder))
                if self.gates[place]:
                    kept.append(rows.assign(suite=name))
        self.runs = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()

    @property
    def predictions(self) -> list[str]:
        """The arms of direct weight prediction."""
        return sorted(arm for arm, group in self.groups.items() if group == "prediction")

    def verdicts(self, claim: Claim, recipe: str) -> list[str]:
        """Of a claim's contrasts; all open until the suites that it needs are there."""
        if self.waits_for(claim.suites):
            return [OPEN] * len(claim.contrasts)
        return [verdict(self.estimate(c, recipe, claim.suites)[0], c.paper) for c in claim.contrasts]

    def waits_for(self, among: Sequence[str]) -> list[str]:
        """Which of the suites named are not here yet."""
        return sorted(set(among) - self.suites)

    def differences(self, contrast: Contrast, recipe: str, among: Sequence[str]) -> dict[tuple, pd.Series]:
        """Paired differences in points, one a trajectory, by what trajectories belong to: (source, network).

        Of the overflow track, at the paper's r. A trajectory that stands in several suites or with several targets
        counts once, with the mean over them.
        """
        if self.runs.empty:
            return {}
        rows = self.runs[(self.runs["recipe"] == recipe) & (self.runs["track"] == "overflow")]
        rows = rows[(rows["rate"] == RATIO) & (rows["suite"].isin(among) if among else True)]
        keys = ["source", "network", "trajectory", "target", "suite"]
        better, worse = (
            rows[(rows["arm"] == side.arm) & (rows["share"] == side.share) & (rows["length"] == side.length)]
            .groupby(keys)["accuracy"]
            .mean()
            for side in (contrast.better, contrast.worse)
        )
        paired = (100 * (better - worse)).dropna().groupby(level=keys[:3]).mean()
        return dict(iter(paired.groupby(level=keys[:2])))

    def estimate(self, contrast: Contrast, recipe: str, among: Sequence[str] = MAIN) -> tuple[Interval, float]:
        """Pooled over sources and networks, each counting once, with the p value of a two-sided test against 0."""
        found = self.differences(contrast, recipe, among)
        return pooled_t([part.to_numpy() for part in found.values()])

    def by_network(self, contrast: Contrast, recipe: str, among: Sequence[str] = MAIN) -> dict[str, Interval]:
        """The contrast on the trajectories of each source and network alone; exploratory."""
        found = self.differences(contrast, recipe, among)
        return {f"{network} ({source})": paired_t(part.to_numpy()) for (source, network), part in found.items()}

    def by_cell(self, contrast: Contrast, recipe: str) -> dict[tuple[bool, str], Interval]:
        """The contrast in every cell that is informative, at its own share, r and S: by (whether it counts, its name).

        Those count that differ from the main comparison in networks and data alone, each once: a suite repeats the cell
        that its ablation starts from. The others are ablations.
        """
        found, counted = {}, set()
        usual = next((self.settings[name] for name in (*MAIN, *sorted(self.settings)) if name in self.settings), None)
        places = list(self.runs.groupby(["suite", "cell"])) if len(self.runs) else []
        for place, rows in sorted(places, key=lambda one: (one[0][0] not in MAIN, one[0])):
            suite, first = place[0], rows.iloc[0]
            means = 100 * trajectory_means(rows[rows["recipe"] == recipe])
            if not {contrast.better.arm, contrast.worse.arm} <= set(means):
                continue
            own = (first["share"], first["length"], first["rate"], first["track"]) == (1, LENGTH, RATIO, "overflow")
            key = (first["source"], first["target"], first["network"])
            counts = own and self.settings[suite] == usual
            if not counts or key not in counted:
                found[counts, ": ".join(place)] = paired_t(compare(means, contrast.better.arm, contrast.worse.arm))
            if counts:
                counted.add(key)
        return found


def _settings(suite: dict[str, Any]) -> dict[str, Any]:
    """What makes two suites comparable, from suite.json."""
    forgetting = {key: value for key, value in suite["forgetting"].items() if (key, value) != ("d0", 0.5)}
    transfer = {key: suite["transfer"].get(key) for key in ("recipe", "images", "normalisation")}
    return {"pretraining": suite["pretraining"], "forgetting": forgetting, **transfer}


def summary(results: Path) -> list[str]:
    """Every claim with its two verdicts, for the front page."""
    evidence = Evidence(results)
    lines = ["| claim of the paper | published rate | tuned rates |", "|---|---|---|"]
    for claim in claims(evidence.predictions):
        said = (together(evidence.verdicts(claim, recipe)) for recipe in RECIPES)
        lines.append(f"| {claim.name} | {' | '.join(said)} |")
        alone = {recipe: _alone(evidence, claim, recipe) for recipe in RECIPES}
        for network in alone["tuned"]:
            said = (together([verdict(i, c.paper) for c, i in alone[recipe][network]]) for recipe in RECIPES)
            lines.append(f"| - on {network} alone | {' | '.join(said)} |")
    for line, label in LABELS.items():
        cells = (evidence.by_cell(Contrast(Side(f"{line}_x8"), Side("naive")), recipe) for recipe in RECIPES)
        said = (together([verdict(i) for (counts, _), i in found.items() if counts]) for found in cells)
        lines.append(f"| {label} beats naive in every cell that was run (networks, datasets) | {' | '.join(said)} |")
    cheap = cost_verdict(costs(results))
    return [*lines, f"| predicting is cheap beside training | {cheap} | {cheap} |"]


def page(results: Path) -> str:
    """CLAIMS.md, from the records in `results`."""
    evidence = Evidence(results)
    predictions = evidence.predictions
    lines = ["# The paper's claims", ""]
    lines += [
        "Computed by `know report` from the records of all suites that are evidence, by the rules in",
        "[docs/RULES.md](../docs/RULES.md). Differences in points of target test accuracy with 95 % intervals over",
        "source trajectories (n), pooled over sources and networks. Paper: the same difference of its numbers for",
        f"CIFAR-100 to CIFAR-10 with ResNet-18. Margin: {MARGIN:g} points. A verdict is about the networks and data",
        "that were run here, not about the paper's.",
        "",
    ]
    if not evidence.gates:
        lines += ["No suite that is evidence has been run yet: **every claim is open.**", ""]
    elif waiting := evidence.waits_for(MAIN):
        lines += [
            f"Not run yet: {', '.join(waiting)}. Until then the verdicts that need it are **open**, and the numbers",
            "are of what was run.",
            "",
        ]
    lines += _primary(evidence)
    for claim in claims(predictions):
        lines += ["", f"## {claim.name}", "", *_judged(evidence, claim)]
    lines += ["", "## It holds across networks and datasets", "", *_across(evidence)]
    lines += ["", "## Predicting is cheap beside training", "", *_cost(results)]
    if evidence.gates:
        lines += ["", "## Cells", ""]
        lines += [f"- {place}: {'passed' if ok else 'uninformative'}" for place, ok in sorted(evidence.gates.items())]
    if planned := _planned(evidence):
        lines += [
            "",
            "## Not run yet",
            "",
            "Suites that are evidence and have no results here; no part of one is shown.",
            "",
        ]
        lines += [f"- {name}: {title.partition(': ')[2] or title}" for name, title in planned.items()]
    return "\n".join(lines).rstrip() + "\n"


def _planned(evidence: Evidence) -> dict[str, str]:
    """Title by name of the suites in this checkout that are evidence and have not been run."""
    names = sorted(path.relative_to(SUITES).with_suffix("").as_posix() for path in SUITES.rglob("*.yaml"))
    found = {name: load_suite(name) for name in names if name not in evidence.suites}
    return {name: suite.title for name, suite in found.items() if suite.evidence}


def _primary(evidence: Evidence) -> list[str]:
    """The primary contrasts, with Holm's correction over those that were run."""
    lines = [
        "## Primary contrasts",
        "",
        f"Tuned rates, {' and '.join(MAIN)}, overflow track. p: two-sided, Holm over these contrasts alone; all else",
        "on this page is exploratory.",
        "",
        "| contrast | difference | n | p (Holm) | verdict |",
        "|---|---:|---:|---:|---|",
    ]
    found = [evidence.estimate(contrast, "tuned") for contrast in PRIMARY]
    corrected = holm([p for _, p in found])
    for contrast, (interval, _), p in zip(PRIMARY, found, corrected, strict=True):
        said = OPEN if evidence.waits_for(MAIN) else verdict(interval)
        if said == "reproduced" and p >= 0.05:
            said = "inconclusive"  # its own interval excludes 0, the family's correction does not
        lines.append(f"| {contrast} | {_shown(interval)} | {interval.n} | {_p(p)} | {said} |")
    return lines


def _judged(evidence: Evidence, claim: Claim) -> list[str]:
    if not claim.contrasts:
        return ["Verdict: **open**. No such arm has been run."]
    lines = ["| contrast | paper | published rate | n | verdict | tuned rate | n | verdict |"]
    lines.append("|---|---:|---:|---:|---|---:|---:|---|")
    found = {recipe: evidence.verdicts(claim, recipe) for recipe in RECIPES}
    for place, contrast in enumerate(claim.contrasts):
        entries = [str(contrast), "" if contrast.paper is None else f"{contrast.paper:+.2f}"]
        for recipe in RECIPES:
            interval, _ = evidence.estimate(contrast, recipe, claim.suites)
            entries += [_shown(interval), str(interval.n), found[recipe][place]]
        lines.append(f"| {' | '.join(entries)} |")
    whole = "; ".join(f"**{together(found[recipe])}** at {recipe} rates" for recipe in RECIPES)
    lines += ["", f"Verdict: {whole}."]
    if any(arm == contrast.better.arm for _, arm in evidence.seen for contrast in claim.contrasts):
        lines += ["", "In-distribution: the authors' networks were meta-trained on the target data of these cells."]
    if alone := _by_network(evidence, claim):
        lines += ["", *alone]
    if "beats naive" in claim.name:
        lines += ["", *_controls(evidence, claim.contrasts[-1].better.arm)]
    return lines


def _alone(evidence: Evidence, claim: Claim, recipe: str) -> dict[str, list[tuple[Contrast, Interval]]]:
    """By network, a claim's contrasts and what they are there; nothing where that would repeat the pooled table or fill
    pages.
    """
    if evidence.waits_for(claim.suites) or len(claim.contrasts) > MOST_ALONE:
        return {}
    found: dict[str, list[tuple[Contrast, Interval]]] = {}
    for contrast in claim.contrasts:
        for network, interval in evidence.by_network(contrast, recipe, claim.suites).items():
            found.setdefault(network, []).append((contrast, interval))
    return found if len(found) > 1 else {}


def _by_network(evidence: Evidence, claim: Claim) -> list[str]:
    found = {recipe: _alone(evidence, claim, recipe) for recipe in RECIPES}
    if not found["tuned"]:
        return []
    lines = [
        "By network (exploratory: the rules pool them):",
        "",
        "| contrast | network | published rate | verdict | tuned rate | verdict |",
        "|---|---|---:|---|---:|---|",
    ]
    for network, rows in found["tuned"].items():
        published = dict(found["published"][network])
        for contrast, tuned in rows:
            entries = [str(contrast), network]
            for interval in (published[contrast], tuned):
                entries += [_shown(interval), verdict(interval, contrast.paper)]
            lines.append(f"| {' | '.join(entries)} |")
    return lines


def _controls(evidence: Evidence, arm: str) -> list[str]:
    """What is left of an arm's gain beside the controls that share a part of what it does."""
    line, _, factor = arm.rpartition("_")
    ending = f"{KNOWNS[line]}_{factor}"
    controls = {
        f"shrink{ending}": "shrinking theta_0 by as much",
        f"renorm{ending}": "its direction without its change of size",
        f"matched_rate{ending}": "a learning rate that makes up for the shrinking",
        f"constant{ending}": "its answer to a trajectory that stands still",
        f"shuffled{ending}": "its answer to the trajectory in another order",
        f"random_step{ending}": "a random step of the same size",
        "compute_matched": "the same training steps spent on D0",
    }
    lines = ["What is left beside the controls (tuned rates):", ""]
    for control, what in controls.items():
        interval, _ = evidence.estimate(Contrast(Side(arm), Side(control)), "tuned")
        if interval.n:
            told = "more than" if interval.low > 0 else "less than" if interval.high < 0 else "not to be told from"
            lines.append(f"- `{arm}` - `{control}`: {_shown(interval)}; {told} {what}.")
    return lines if len(lines) > 2 else ["Controls: open."]


def _across(evidence: Evidence) -> list[str]:
    if evidence.runs.empty:
        return ["Verdict: **open**. No informative cell has been run."]
    lines = [
        "| KNOWN x8 - naive, by cell | published rate | verdict | tuned rate | verdict |",
        "|---|---:|---|---:|---|",
    ]
    ends = []
    for line in KNOWNS:
        contrast = Contrast(Side(f"{line}_x8"), Side("naive"))
        cells = {recipe: evidence.by_cell(contrast, recipe) for recipe in RECIPES}
        for place in sorted(cells["tuned"], reverse=True, key=lambda place: place[0]):
            entries = [(_shown(cells[recipe][place]), verdict(cells[recipe][place])) for recipe in RECIPES]
            name = place[1] if place[0] else f"ablation, {place[1]}"
            lines.append(f"| `{line}` {name} | {' | '.join(part for entry in entries for part in entry)} |")
        for recipe in RECIPES:
            said = together([verdict(interval) for (counts, _), interval in cells[recipe].items() if counts])
            ends.append(f"`{line}` at {recipe} rates: **{said}**")
    said = "Verdict (ablations, which change settings and not networks or data, do not count)"
    return [*lines, "", f"{said}: {'; '.join(ends)}."]


def costs(results: Path) -> pd.DataFrame:
    """What KNOWN costs in the main suites: place, line, factor, and the columns of cost_by_arm.csv; may be empty."""
    found = []
    for name in MAIN:
        path = results / name / "cost_by_arm.csv"
        if path.is_file():
            table = load_table(path, COST)
            found.append(table[table["arm"].isin([f"{line}_{x}" for line in KNOWNS for x in ("x2", "x8")])])
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COST)


def cost_verdict(found: pd.DataFrame) -> str:
    """Reproduced, where the deepest prediction takes less than `CHEAP` of theta_0's training on every main network."""
    if found.empty or found["network"].nunique() < len(MAIN):
        return OPEN
    return "reproduced" if (found["seconds"] < CHEAP * found["theta_0_seconds"]).all() else "not reproduced"


def _cost(results: Path) -> list[str]:
    found = costs(results)
    if found.empty:
        return [f"Verdict: **{OPEN}**. Not measured yet."]
    lines = [
        f"Paper: {PAPER_SECONDS:.3g} s per weight, 3.01 s for a ResNet-18, on its hardware. The rule: a prediction",
        f"takes less than {100 * CHEAP:g} % of the time of training theta_0, both measured in one process. The",
        "forgetting steps are no part of that: they are training, which `compute_matched` spends on D0 instead. All",
        "arms: [COST.md](COST.md).",
        "",
        "| arm | network | s per weight and step back | prediction / training of theta_0 | forgetting / training |",
        "|---|---|---:|---:|---:|",
    ]
    for _, row in found.iterrows():
        depth = {"x2": 1, "x8": 3}[row["arm"].rpartition("_")[2]]
        numbers = row["seconds"] / row["weights"] / depth, row["seconds"] / row["theta_0_seconds"], row["trained"] - 1
        shown = f"{numbers[0]:.1e} | {100 * numbers[1]:.2f} % | {numbers[2]:.2f}"
        lines.append(f"| {row['arm']} | {row['network']} | {shown} |")
    return [*lines, "", f"Verdict: **{cost_verdict(found)}**."]


def _shown(interval: Interval) -> str:
    return signed(interval) if interval.n > 1 else "-"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
