"""What the records say about the paper's claims: gates, marks, pooled estimates, Holm's correction and verdicts.

One contrast has one verdict at a rate policy, wherever it is printed: that of `Evidence.judge`. docs/RULES.md holds the
rules, claims.yaml the contrasts and the thresholds. Only suites whose `evidence` is true count, and no cell that fails
a gate. Needs neither torch nor data.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from typing import Any

import pandas as pd

from benchmarks.report.claims import CLAIMS, Claim, Contrast, Policy
from benchmarks.report.folders import COST, Published
from benchmarks.report.statistics import Interval, compare, holm, paired_t, pooled_t, trajectory_means
from benchmarks.settings import LENGTH, RATIO

POLICIES: tuple[Policy, ...] = typing.get_args(Policy)
DAGGER = "\N{DAGGER}"
SEEN_BY_AUTHORS = ("mnist", "fashion_mnist", "cifar10")
"""Datasets, whole or in part, that the authors' networks were meta-trained on (their paper)."""
SEEN_NOTE = (
    f"{DAGGER} In-distribution: the authors' KNOWN was meta-trained on MNIST, Fashion-MNIST and CIFAR-10; source or "
    "target is among them."
)


class Verdict(StrEnum):
    """What the records say of a contrast or of a claim."""

    REPRODUCED = "reproduced"
    SMALLER = "positive, smaller than the paper"
    INCONCLUSIVE = "inconclusive"
    NOT_REPRODUCED = "not reproduced"
    OPEN = "open"


def verdict(estimate: Interval, paper: float | None = None, corrected: float = math.nan) -> Verdict:
    """The rule for one contrast, from its interval in points.

    paper: the paper's number. corrected: the p value after Holm's correction, nan where the contrast is not primary.
    """
    if not math.isfinite(estimate.low):
        return Verdict.OPEN
    if estimate.low > 0:
        if corrected >= CLAIMS.significance:
            return Verdict.INCONCLUSIVE
        return Verdict.SMALLER if paper is not None and estimate.high < paper else Verdict.REPRODUCED
    return Verdict.NOT_REPRODUCED if estimate.high < CLAIMS.margin else Verdict.INCONCLUSIVE


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a claim that says "every one of them": one contrast that fails is enough for it to fail."""
    verdicts = set(verdicts)
    if not verdicts:
        return Verdict.OPEN
    worst_first = (Verdict.OPEN, Verdict.NOT_REPRODUCED, Verdict.INCONCLUSIVE, Verdict.SMALLER, Verdict.REPRODUCED)
    return next(one for one in worst_first if one in verdicts)


def gates(published: Published, cell: str) -> dict[str, Interval]:
    """What must hold for a cell to be informative, in points at tuned rates: each interval has to lie above 0."""
    runs = published.cells[cell]
    means = 100 * trajectory_means(runs[runs["recipe"] == "tuned"])
    intervals = {}
    for better, worse in (("oracle", "naive"), ("naive", "scratch")):
        if better in means and worse in means:
            intervals[f"{better} > {worse}"] = paired_t(compare(means, better, worse))
    first = runs.iloc[0]
    own = published.snapshots[published.snapshots["trajectory"].isin(set(runs["trajectory"]))]
    for column in ("source", "network", "rate", "track"):
        own = own[own[column] == first[column]]
    last = own[own["snapshot"] == first["length"] - 1]
    forgotten = 100 * (last["left_out_accuracy_theta_0"] - last["left_out_accuracy"])
    intervals["forgetting: theta_0 > last snapshot on the images left out"] = paired_t(forgotten.to_numpy())
    return intervals


def informative(intervals: Mapping[str, Interval]) -> bool:
    """Whether a cell passes all of its `gates`."""
    return all(gate.low > 0 for gate in intervals.values())


def in_distribution(arm: Mapping[str, Any], cell: Mapping[str, Any]) -> bool:
    """Whether an arm asks the authors' networks about data that they were meta-trained on.

    arm: an entry of `described` in suite.json. cell: anything with source and target.
    """
    asked = "released" in (arm["predictor"], arm["options"].get("of"))
    names = [re.split("[@:]", dataset)[0] for dataset in (cell["source"], cell["target"])]
    return asked and any(name == seen or name.startswith(f"{seen}_") for name in names for seen in SEEN_BY_AUTHORS)


def marked(published: Published, cell: str) -> set[str]:
    """The arms of a cell that carry the dagger."""
    first = published.cells[cell].iloc[0]
    return {arm["name"] for arm in published.settings["described"] if in_distribution(arm, first)}


@dataclass(frozen=True)
class Judged:
    """A contrast at one rate policy: the estimate in points and the verdict.

    p: two-sided, against 0. corrected: p after Holm's correction; both are nan where they do not apply.
    """

    interval: Interval
    verdict: Verdict
    p: float = math.nan
    corrected: float = math.nan

    @property
    def sign(self) -> int:
        """1 or -1 where the contrast differs from 0 beyond chance, else 0."""
        if self.corrected >= CLAIMS.significance:
            return 0
        return (self.interval.low > 0) - (self.interval.high < 0)


class Evidence:
    """The records of all suites that count as evidence, and the judgements on them."""

    def __init__(self, published: Iterable[Published]):
        """published: all suites; those that are no evidence are left out, and so are cells that fail a gate."""
        kept = []
        self.suites: set[str] = set()
        self.informative: dict[tuple[str, str], bool] = {}
        """Whether each cell passes its gates, by suite and cell."""
        self.group_of: dict[str, str] = {}
        self.marked: set[str] = set()
        """Arms that are in-distribution in some cell."""
        self.settings: dict[str, Any] = {}
        """How each suite trains, forgets and fine-tunes."""
        for one in (one for one in published if one.settings["evidence"]):
            self.suites.add(one.name)
            self.settings[one.name] = _training_settings(one.settings)
            self.group_of |= {arm["name"]: arm["group"] for arm in one.settings["described"]}
            for cell, runs in one.cells.items():
                self.marked |= marked(one, cell)
                self.informative[one.name, cell] = informative(gates(one, cell))
                if self.informative[one.name, cell]:
                    kept.append(runs.assign(suite=one.name))
        self.runs = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()
        self.judge, self.by_cell = cache(self._judge), cache(self._by_cell)
        self._differences = cache(self._differences)

    def contrasts(self, claim: Claim) -> tuple[Contrast, ...]:
        """The contrasts of a claim; where it is about every arm of a group, in alphabetical order."""
        if not claim.every:
            return claim.contrasts
        others = sorted(arm for arm, group in self.group_of.items() if group == claim.every.group)
        return tuple(Contrast(better=claim.every.arm, worse=other) for other in others)

    def claim(self, claim: Claim, policy: Policy) -> Verdict:
        """The verdict of a whole claim."""
        return together(self.judge(contrast, policy, claim.suites).verdict for contrast in self.contrasts(claim))

    def waits_for(self, scope: str = "main") -> list[str]:
        """Which of the suites that a verdict needs have not been run; scope: "main", or "all", which needs none."""
        return sorted(set(CLAIMS.main_suites) - self.suites) if scope == "main" else []

    def _judge(self, contrast: Contrast, policy: Policy, scope: str = "main") -> Judged:
        """Pooled over sources and networks, each of which counts once. Open until the suites that it needs were run.

        scope: "main" for the main suites, "all" for all. At tuned rates in the main suites the verdict on a primary
        contrast takes Holm's correction into account.
        """
        interval, p = pooled_t(list(self._differences(contrast, policy, scope).values()))
        primary = policy == CLAIMS.primary.policy and scope == "main"
        corrected = self.corrected.get(contrast, math.nan) if primary else math.nan
        said = verdict(interval, CLAIMS.paper_gain(contrast), corrected)
        return Judged(interval, Verdict.OPEN if self.waits_for(scope) else said, p, corrected)

    @cached_property
    def corrected(self) -> dict[Contrast, float]:
        """The p values of the primary contrasts after Holm's correction over those that were run."""
        samples = [self._differences(c, CLAIMS.primary.policy, "main").values() for c in CLAIMS.primary.contrasts]
        corrected = holm([pooled_t(list(each))[1] for each in samples])
        return dict(zip(CLAIMS.primary.contrasts, corrected, strict=True))

    def by_network(self, claim: Claim, policy: Policy) -> dict[str, dict[Contrast, Judged]]:
        """A claim's contrasts on the trajectories of each source and network alone; exploratory, without correction.

        Empty where it would repeat the pooled table, where the claim has many contrasts, and where its suites are not
        all there.
        """
        contrasts = self.contrasts(claim)
        if self.waits_for(claim.suites) or len(contrasts) > CLAIMS.shown_by_network:
            return {}
        judged: dict[str, dict[Contrast, Judged]] = {}
        for contrast in contrasts:
            for (source, network), values in self._differences(contrast, policy, claim.suites).items():
                alone = _alone(values, CLAIMS.paper_gain(contrast))
                judged.setdefault(f"{network} ({source})", {})[contrast] = alone
        return judged if len(judged) > 1 else {}

    def _by_cell(self, contrast: Contrast, policy: Policy) -> dict[tuple[bool, str], Judged]:
        """The contrast in every informative cell, at its own share, r and S: by (whether the cell counts, its name).

        Those cells count that differ from the main comparison in networks and data alone, each once, since a suite may
        repeat the cell that its ablation starts from. The others are ablations.
        """
        judged, counted = {}, set()
        main = [name for name in CLAIMS.main_suites if name in self.settings]
        usual = next((self.settings[name] for name in (*main, *sorted(self.settings))), None)
        places = list(self.runs.groupby(["suite", "cell"])) if len(self.runs) else []
        for place, runs in sorted(places, key=lambda one: (one[0][0] not in main, one[0])):
            suite, first = place[0], runs.iloc[0]
            means = 100 * trajectory_means(runs[runs["recipe"] == policy])
            if not {contrast.better.arm, contrast.worse.arm} <= set(means):
                continue
            own = (first["share"], first["length"], first["rate"], first["track"]) == (1, LENGTH, RATIO, "overflow")
            key = (first["source"], first["target"], first["network"])
            counts = own and self.settings[suite] == usual
            if not counts or key not in counted:
                values = compare(means, contrast.better.arm, contrast.worse.arm)
                paper = CLAIMS.paper_gain(contrast) if own and suite in main else None  # it is about the main cells
                judged[counts, ": ".join(place)] = _alone(values, paper)
            if counts:
                counted.add(key)
        return judged

    def _differences(self, contrast: Contrast, policy: Policy, scope: str) -> dict[tuple[str, str], pd.Series]:
        """Paired differences in points, one per trajectory, by (source, network).

        A trajectory that stands in several suites or with several targets counts once, with the mean over them.
        """
        sides = (contrast.better, contrast.worse)
        better, worse = (self._accuracies.get((policy, side.arm, side.share, side.length)) for side in sides)
        if better is None or worse is None:
            return {}
        paired = (100 * (better - worse)).dropna()
        if scope == "main":
            paired = paired[paired.index.isin(CLAIMS.main_suites, level="suite")]
        levels = ["source", "network", "trajectory"]
        return dict(iter(paired.groupby(level=levels).mean().groupby(level=levels[:2])))

    @cached_property
    def _accuracies(self) -> dict[tuple[str, str, float, int], pd.Series]:
        """Accuracies by (policy, arm, share, length), of the overflow track at the paper's r, averaged over fine-tunes.

        Index of each: source, network, trajectory, target, suite.
        """
        if self.runs.empty:
            return {}
        runs = self.runs[(self.runs["track"] == "overflow") & (self.runs["rate"] == RATIO)]
        side, levels = ["recipe", "arm", "share", "length"], ["source", "network", "trajectory", "target", "suite"]
        means = runs.groupby([*side, *levels])["accuracy"].mean()
        return {key: part.droplevel(side) for key, part in means.groupby(level=side)}


def _alone(differences: Any, paper: float | None) -> Judged:
    """A contrast on the trajectories of one network or one cell, without correction; paper: the paper's number."""
    interval = paired_t(differences)
    return Judged(interval, verdict(interval, paper))


def _training_settings(suite: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two suites comparable, from suite.json."""
    forgetting = {key: value for key, value in suite["forgetting"].items() if (key, value) != ("d0", 0.5)}
    transfer = {key: suite["transfer"].get(key) for key in ("recipe", "images", "normalisation")}
    return {"pretraining": suite["pretraining"], "forgetting": forgetting, **transfer}


def costs(published: Sequence[Published]) -> pd.DataFrame:
    """What the two KNOWNs cost in the main suites: rows of cost_by_arm.csv, possibly none."""
    by_name = {one.name: one for one in published}
    arms = [f"{line.arm}_{factor}" for line in CLAIMS.lines.values() for factor in ("x2", "x8")]
    tables = [by_name[name].table("cost_by_arm") for name in CLAIMS.main_suites if name in by_name]
    rows = [table[table["arm"].isin(arms)] for table in tables if table is not None]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=COST)


def cost_verdict(rows: pd.DataFrame) -> Verdict:
    """Reproduced where every prediction in `costs` is cheap; open until there are costs of each main network."""
    if rows.empty or rows["network"].nunique() < len(CLAIMS.main_suites):
        return Verdict.OPEN
    cheap = (rows["seconds"] < CLAIMS.cheap * rows["theta_0_seconds"]).all()
    return Verdict.REPRODUCED if cheap else Verdict.NOT_REPRODUCED
