"""What the records say about the paper's claims: gates, marks, pooled estimates, Holm's correction and verdicts.

One contrast has one verdict in a place (a suite's source, target and network) at a rate policy, and one pooled over
places, wherever they are printed: those of `Evidence`. docs/RULES.md holds the rules, claims.yaml the contrasts and the
thresholds. Only suites whose `evidence` is true count, and no cell that fails a gate. Needs neither torch nor data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from typing import Any, NamedTuple

import pandas as pd

from benchmarks.records import RunRecord
from benchmarks.report.claims import CLAIMS, Claim, Contrast, Finalist, Side
from benchmarks.report.folders import Published
from benchmarks.report.statistics import (
    Interval,
    compare,
    holm,
    oracle_of,
    paired_t,
    pooled_t,
    trajectory_means,
)
from benchmarks.settings import RATIO, Policy, plain_name
from know.errors import KnowError

POLICIES: dict[Policy, str] = {
    "short": "paper's rate, short",
    "paper": "paper's rate and length",
    "tuned": "tuned rate",
}
"""Every rate policy, in the order of the tables, and its name there."""
Scope = tuple[str, ...] | None
"""The suites in which a contrast is judged; None means the core suites."""
DAGGER = "\N{DAGGER}"
SEEN_BY_AUTHORS = ("mnist", "fashion_mnist", "cifar10")
"""Datasets, whole or in part, that the authors' networks were meta-trained on (their paper)."""
SEEN_NOTE = (
    f"{DAGGER} In-distribution: the authors' KNOWN was meta-trained on MNIST, Fashion-MNIST and CIFAR-10; source or "
    "target is among them."
)
OTHERS_NOTE = "WNN and WNN+, networks of others too, saw CIFAR-10 among others; their rows have no mark."
DIVERGED = "\N{DOUBLE DAGGER}"
DIVERGED_NOTE = (
    f"{DIVERGED} Some fine-tunes diverged, or would begin at weights that are not finite. The former count with the "
    "accuracy that they end with, the latter with 0, which can make a whole interval wide."
)
LOCAL = "local data gap: local_oracle > compute_matched"
"""The gate that says whether a cell can see a step as small as a prediction's."""


class Verdict(StrEnum):
    """What the records say of a contrast or of a claim; only claims have the third and the sixth."""

    HOLDS = "holds"
    SMALLER = "holds, smaller than in the paper"
    AT_PAPERS_RATE = "holds at the paper's rate only"
    EXCLUDED = "excluded"
    CANNOT = "cannot be told"
    NOT_TESTABLE = "not testable here"
    OPEN = "open"

    @property
    def positive(self) -> bool:
        return self in (Verdict.HOLDS, Verdict.SMALLER)


def verdict(
    estimate: Interval,
    *,
    paper: float | None = None,
    corrected: float = math.nan,
    gap: float = math.nan,
    sees: bool = True,
) -> Verdict:
    """The rule for one contrast, from its interval in points.

    paper: the paper's number. corrected: the p value after Holm's correction, nan where the contrast is not primary.
    gap: the data gap, in points. sees: whether the cells can see small steps; where they cannot, only what is proven to
    be a loss is excluded.
    """
    if not math.isfinite(estimate.low):
        return Verdict.OPEN
    if estimate.high < 0:
        return Verdict.EXCLUDED
    if estimate.low > 0:
        if corrected >= CLAIMS.significance:
            return Verdict.CANNOT
        return Verdict.SMALLER if paper is not None and estimate.high < paper else Verdict.HOLDS
    margin = min(CLAIMS.margin, math.inf if math.isnan(gap) else CLAIMS.margin_of_gap * gap)
    return Verdict.EXCLUDED if sees and estimate.high < margin else Verdict.CANNOT


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a claim that says "every one of them": one contrast that fails is enough for it to fail, and where
    there is none it cannot be told.
    """
    verdicts = set(verdicts) or {Verdict.CANNOT}
    worst_first = (Verdict.OPEN, Verdict.EXCLUDED, Verdict.CANNOT, Verdict.SMALLER, Verdict.HOLDS)
    return next(one for one in worst_first if one in verdicts)


def gates(published: Published, cell: str, policy: Policy) -> dict[str, Interval]:
    """What must hold for a cell to be informative at a rate policy, in points: each interval has to lie above 0.

    A gate whose arms were not run has no interval, and is not passed.
    """
    runs = published.cells[cell]
    means, first = 100 * trajectory_means(runs[runs["policy"] == policy]), runs.iloc[0]
    nothing = Interval(math.nan, math.nan, math.nan, 0)

    def above(better: str, worse: str) -> Interval:
        return paired_t(compare(means, better, worse)) if {better, worse} <= set(means) else nothing

    oracle = oracle_of(means)
    intervals = {
        f"data gap: {oracle} > naive": above(oracle, "naive"),
        "naive > scratch": above("naive", "scratch"),
    }
    intervals[LOCAL] = above("local_oracle", "compute_matched")
    return intervals | {"forgetting: left-out images lose more than test images": _forgetting(published, runs, first)}


def _forgetting(published: Published, runs: pd.DataFrame, first: pd.Series) -> Interval:
    """What the first forgetting step takes from the images that it leaves out beyond what it takes from test images.

    A step that makes the network worse or better at all images alike is no forgetting, and drops out (difference in
    differences, Ashenfelter and Card 1985).
    """
    own = published.snapshots[published.snapshots["trajectory"].isin(set(runs["trajectory"]))]
    for column in ("source", "network", "rate", "track"):
        own = own[own[column] == first[column]]
    before, after = (own[own["snapshot"] == k].set_index("trajectory").sort_index() for k in (0, 1))
    if not before.index.equals(after.index):
        raise KnowError(f"{published.folder}: trajectories.csv lacks a snapshot of some trajectory; restore it")
    left_out = 100 * after["left_out_accuracy_theta_0"] - 100 * after["left_out_accuracy"]
    test = 100 * before["test_accuracy"] - 100 * after["test_accuracy"]
    return paired_t(left_out - test)


def informative(intervals: Mapping[str, Interval]) -> bool:
    """Whether a cell passes its `gates`, but for the one on small steps."""
    return all(gate.low > 0 for name, gate in intervals.items() if name != LOCAL)


def sees_small_steps(intervals: Mapping[str, Interval]) -> bool:
    """Whether a gain by a step as small as a prediction's could be seen in a cell."""
    return informative(intervals) and intervals[LOCAL].low > 0


def in_distribution(arm: Mapping[str, Any], cell: Mapping[str, Any]) -> bool:
    """Whether an arm asks the authors' networks about data that they were meta-trained on.

    arm: an entry of `described` in suite.json. cell: anything with source and target.
    """
    asked = "released" in (arm["predictor"], arm["options"].get("of"))
    names = [plain_name(dataset) for dataset in (cell["source"], cell["target"])]
    return asked and any(name == seen or name.startswith(f"{seen}_") for name in names for seen in SEEN_BY_AUTHORS)


def marked(published: Published, cell: str) -> set[str]:
    """The arms of a cell that carry the dagger."""
    first = published.cells[cell].iloc[0]
    return {arm["name"] for arm in published.settings["described"] if in_distribution(arm, first)}


class Place(NamedTuple):
    """Where a contrast is read: the cells of a suite that differ in share and S alone."""

    suite: str
    source: str
    target: str
    network: str
    track: str
    rate: float

    @property
    def core(self) -> bool:
        """Whether it enters the pooled estimates."""
        return self.suite in CLAIMS.core and self.usual

    @property
    def usual(self) -> bool:
        """Whether track and r are those of the paper."""
        return self.track == "overflow" and self.rate == RATIO

    @property
    def papers(self) -> bool:
        """Whether source and target are those of the paper's numbers."""
        return self.source == "cifar100" and plain_name(self.target) in ("cifar10", "cifar10_15k")


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


@dataclass(frozen=True)
class Finding:
    """The verdict on a whole claim. because: why it is not testable; where it holds at the paper's rate only, the
    verdict at tuned rates. explained: in that case, controls that gain too, and beyond which KNOWN gains nothing.
    """

    verdict: Verdict
    explained: tuple[str, ...] = ()
    because: str = ""


class Evidence:
    """The records of all suites that count as evidence, and the judgements on them."""

    def __init__(self, published: Iterable[Published]):
        """published: all suites; those that are no evidence are left out, and so are cells that fail a gate."""
        kept = []
        self.suites: set[str] = set()
        """The suites that have been run to the end."""
        self.gates: dict[tuple[str, str, Policy], dict[str, Interval]] = {}
        """The gates of each cell, by suite, cell and policy."""
        self.group_of: dict[str, str] = {}
        """The group of each arm of the core suites."""
        self.marked: set[str] = set()
        """Arms that are in-distribution in some cell."""
        self.grids: dict[str, set[float]] = {}
        """The learning rates that the pilots of each suite tried, with all that the grid may grow by."""
        self.costs: dict[str, pd.DataFrame] = {}
        """What each arm costs, by suite."""
        for one in (one for one in published if one.settings["evidence"]):
            if (table := one.table("cost_by_arm")) is not None:
                self.costs[one.name] = table
            self.suites |= set() if one.lost else {one.name}
            grid, more = (one.settings["transfer"][key] for key in ("grid", "extensions"))
            factors = [(grid[-1] / grid[-2]) ** k for k in range(more + 1)]
            self.grids[one.name] = {*grid, *(grid[-1] * by for by in factors), *(grid[0] / by for by in factors)}
            if one.name in CLAIMS.core:
                self.group_of |= {arm["name"]: arm["group"] for arm in one.settings["described"]}
            for cell, runs in one.cells.items():
                self.marked |= marked(one, cell)
                for policy, own in runs.groupby("policy", sort=True):
                    passed = self.gates[one.name, cell, policy] = gates(one, cell, policy)
                    if informative(passed):
                        kept.append(own.assign(suite=one.name, sees=sees_small_steps(passed)))
        none = pd.DataFrame(columns=[*RunRecord.model_fields, "suite", "sees"])
        self.runs = pd.concat(kept, ignore_index=True) if kept else none
        self.judge, self.by_place, self.differences = map(cache, (self._judge, self._by_place, self._differences))

    def contrasts(self, claim: Claim) -> tuple[Contrast, ...]:
        """The contrasts of a claim; where it is about every arm of a group, in alphabetical order."""
        if not claim.every:
            return claim.contrasts
        others = sorted(arm for arm, group in self.group_of.items() if group == claim.every.group)
        others = [arm for arm in others if arm.partition("_x")[0] not in claim.every.but]
        return tuple(Contrast(better=claim.every.arm, worse=other) for other in others)

    @property
    def cost(self) -> Verdict:
        """Holds where the deepest predictions are cheap in all suites of `cost_of`; open until these have been run."""
        deepest, cheap = [line.deepest for line in CLAIMS.lines.values()], []
        for suite in CLAIMS.cost_of:
            table = self.costs.get(suite, pd.DataFrame(columns=["arm"]))
            rows = table[table["arm"].isin(deepest)]
            if rows.empty:
                return Verdict.OPEN
            cheap.append((rows["seconds"] < CLAIMS.cheap * rows["theta_0_seconds"]).all())
        return Verdict.HOLDS if all(cheap) else Verdict.EXCLUDED

    def waits_for(self, scope: Scope = None) -> list[str]:
        """Which of the suites that a verdict needs have not been run."""
        return sorted(set(scope or CLAIMS.core) - self.suites)

    def claim(self, claim: Claim) -> Finding:
        """The verdict of a whole claim, from its contrasts at tuned rates and at the policy short."""
        policies: tuple[Policy, ...] = ("tuned", "short")  # what is found at the policy paper enters no verdict
        if self.waits_for(claim.suites) or self.waits_for():
            return Finding(Verdict.OPEN)
        if few := self._too_few("tuned"):
            return Finding(Verdict.NOT_TESTABLE, because=few)
        before = [self.judge(claim.presupposes, policy).verdict for policy in policies] if claim.presupposes else []
        if claim.presupposes and not any(each.positive for each in before):
            return Finding(Verdict.NOT_TESTABLE, because=f"it presupposes that {claim.presupposes} is above 0")
        if claim.ceiling and not self.judge(claim.ceiling, "tuned", claim.suites).interval.low > 0:
            return Finding(Verdict.NOT_TESTABLE, because=f"even {claim.ceiling} is not above 0")
        tuned, short = (self._every(claim, policy) for policy in policies)
        if tuned.positive or not short.positive:
            return Finding(tuned)
        if few := self._too_few("short"):
            return Finding(tuned, because=f"it holds at the paper's rate, where {few}")
        return Finding(Verdict.AT_PAPERS_RATE, tuple(self._explanations(claim, "short")), f"at tuned rates: {tuned}")

    def confirmed(self, finalist: Finalist) -> tuple[Verdict, list[Place]]:
        """Whether a finalist becomes a part of the library, and the informative core cells that count in which it holds
        against naive and against the arm of equal compute. It also has to hold pooled, which takes into account that
        cells of one source and network share trajectories, and must not lose in any cell.
        """
        policy, asked = CLAIMS.primary.policy, CLAIMS.ships
        found = [self.by_place(contrast, policy) for contrast in finalist.contrasts]
        places = [place for place in found[0] if place.core and all(place in own for own in found)]
        holding = [
            place
            for place in places
            if plain_name(place.target) != asked.seen and all(own[place].verdict.positive for own in found)
        ]
        if self.waits_for():
            return Verdict.OPEN, holding
        networks, pairs = {place.network for place in holding}, {(place.source, place.target) for place in holding}
        enough = len(holding) >= asked.cells and len(networks) >= asked.networks and len(pairs) >= asked.pairs
        pooled = [self.judge(contrast, policy).verdict for contrast in finalist.contrasts]
        if Verdict.EXCLUDED in pooled:
            return Verdict.EXCLUDED, holding
        loses = any(own[place].interval.high < 0 for own in found for place in places)
        holds = enough and all(each.positive for each in pooled) and not loses
        return Verdict.HOLDS if holds else Verdict.CANNOT, holding

    def _too_few(self, policy: Policy) -> str:
        """Why the informative core cells at a rate policy are too few for a claim about them, or an empty text."""
        places = {place for place in self.informative_at(policy) if place.suite in CLAIMS.core}
        networks, pairs = len({place.network for place in places}), len({(p.source, p.target) for p in places})
        if networks >= CLAIMS.least.networks and pairs >= CLAIMS.least.pairs:
            return ""
        return f"the informative core cells are too few (networks: {networks}, pairs of datasets: {pairs})"

    def _every(self, claim: Claim, policy: Policy) -> Verdict:
        """What the contrasts of a claim say together at a rate policy, once all suites have been run."""
        contrasts = self.contrasts(claim)
        if not claim.everywhere:
            return together(self.judge(contrast, policy, claim.suites).verdict for contrast in contrasts)
        places = [place for place in self.informative_at(policy) if place.core]
        found = [self.by_place(contrast, policy).get(place) for contrast in contrasts for place in places]
        return together(judged.verdict if judged else Verdict.CANNOT for judged in found)

    def _explanations(self, claim: Claim, policy: Policy) -> Iterable[str]:
        """Texts of the controls that gain at a policy, and beyond which KNOWN gains nothing."""
        line = CLAIMS.lines.get(claim.controls_of)
        for control in CLAIMS.controls if line else ():
            arm = control.arms[claim.controls_of]
            own = self.judge(Contrast(better=arm, worse="naive"), policy, claim.suites)
            beyond = self.judge(Contrast(better=line.deepest, worse=arm), policy, claim.suites)
            if own.interval.low > 0 and not beyond.interval.low > 0:
                yield control.text

    def _judge(self, contrast: Contrast, policy: Policy, scope: Scope = None) -> Judged:
        """Pooled over pairs of source and network, each counting once. Open until the suites of `scope` were run. At
        tuned rates in the core suites the verdict on a primary contrast takes Holm's correction into account.
        """
        interval, p = pooled_t(self._samples(contrast, policy, scope))
        primary = policy == CLAIMS.primary.policy and scope is None
        corrected = self.corrected.get(contrast, math.nan) if primary else math.nan
        places = self._places(contrast, policy, scope)
        gap, _ = pooled_t(self._samples(self._data_gap(policy), policy, scope, set(places)))
        sees = self._pool_sees(contrast, policy, scope, set(places))
        facts = {"paper": CLAIMS.paper_gain(contrast), "corrected": corrected, "gap": gap.mean, "sees": sees}
        if self.waits_for(scope):
            said = Verdict.OPEN
        else:  # what no informative cell has cannot be told
            said = verdict(interval, **facts) if math.isfinite(interval.low) else Verdict.CANNOT
        return Judged(interval, said, p, corrected)

    def _pool_sees(self, contrast: Contrast, policy: Policy, scope: Scope, places: set[Place]) -> bool:
        """Whether the local data gap, pooled as the contrast is and over the same places, lies above 0."""
        sides = {(side.share, side.length) for side in (contrast.better, contrast.worse)}
        gaps = [
            Contrast(
                better=Side(arm="local_oracle", share=share, length=length),
                worse=Side(arm="compute_matched", share=share, length=length),
            )
            for share, length in sides
        ]
        return all(pooled_t(self._samples(gap, policy, scope, places))[0].low > 0 for gap in gaps)

    @cached_property
    def corrected(self) -> dict[Contrast, float]:
        """The p values of the pooled primary contrasts after Holm's correction over those of a family that were run."""
        return _corrected(lambda contrast: pooled_t(self._samples(contrast, CLAIMS.primary.policy))[1])

    def _by_place(self, contrast: Contrast, policy: Policy) -> dict[Place, Judged]:
        """The contrast in every place; the verdict on a primary contrast takes Holm's correction over those of the same
        place into account.
        """
        judged = {}
        for place, values in self.differences(contrast, policy).items():
            interval, p = pooled_t([values])
            primary = policy == CLAIMS.primary.policy
            corrected = self._corrections.get(place, {}).get(contrast, math.nan) if primary else math.nan
            gap = self.differences(self._data_gap(policy), policy).get(place)
            facts = {
                "paper": CLAIMS.paper_gain(contrast) if place.papers and place.usual else None,
                "corrected": corrected,
                "gap": math.nan if gap is None else float(gap.mean()),
                "sees": self._sees(place, policy, contrast),
            }
            judged[place] = Judged(interval, verdict(interval, **facts), p, corrected)
        return judged

    @cached_property
    def places(self) -> list[Place]:
        """Every place with an informative cell, those that enter the pooled estimates first."""
        if self.runs.empty:
            return []
        rows = self.runs[list(Place._fields)].drop_duplicates().itertuples(index=False, name=None)
        return sorted((Place(*row) for row in rows), key=lambda place: (not place.core, place))

    def informative_at(self, policy: Policy) -> set[Place]:
        """The places with a cell that is informative at a rate policy."""
        if self.runs.empty:
            return set()
        rows = self.runs.loc[self.runs["policy"] == policy, list(Place._fields)].drop_duplicates()
        return {Place(*row) for row in rows.itertuples(index=False, name=None)}

    def arms_of(self, place: Place) -> list[str]:
        """The arms that were run in the informative cells of a place, in alphabetical order."""
        return sorted(self._at(place, self.runs)["arm"].unique())

    def not_finite(self, arm: str, place: Place) -> set[str]:
        """The trajectories of a place on which an arm's weights are not finite."""
        runs = self._at(place, self.runs)
        return set(runs.loc[(runs["arm"] == arm) & runs["step"].isna(), "trajectory"])

    def diverged(self, arm: str, place: Place, policy: Policy) -> bool:
        """Whether any of an arm's fine-tunes in a place diverged, or would begin at weights that are not finite."""
        runs = self._at(place, self.runs)
        return bool((runs.loc[(runs["arm"] == arm) & (runs["policy"] == policy), "status"] != "ok").any())

    def _at(self, place: Place, runs: pd.DataFrame) -> pd.DataFrame:
        for name, value in place._asdict().items():
            runs = runs[runs[name] == value]
        return runs

    @cached_property
    def _corrections(self) -> dict[Place, dict[Contrast, float]]:
        def p_value(place: Place, contrast: Contrast) -> float:
            return pooled_t([self.differences(contrast, CLAIMS.primary.policy).get(place, [])])[1]

        return {place: _corrected(functools.partial(p_value, place)) for place in self.places if place.core}

    def _sees(self, place: Place, policy: Policy, contrast: Contrast) -> bool:
        """Whether the cells of a place that the contrast reads can all see small steps."""
        runs = self._at(place, self.runs[self.runs["policy"] == policy])
        sides = {(side.share, side.length) for side in (contrast.better, contrast.worse)}
        cells = pd.MultiIndex.from_frame(runs[["share", "length"]])
        return bool(runs["sees"][cells.isin(sides)].all())

    def _data_gap(self, policy: Policy) -> Contrast:
        run = {arm for kind, arm, *_ in self._accuracies if kind == policy}
        return Contrast(better=oracle_of(run), worse="naive")

    def _places(self, contrast: Contrast, policy: Policy, scope: Scope = None) -> list[Place]:
        suites = scope or CLAIMS.core
        return [place for place in self.differences(contrast, policy) if place.usual and place.suite in suites]

    def _samples(
        self, contrast: Contrast, policy: Policy, scope: Scope = None, among: Container[Place] | None = None
    ) -> list[pd.Series]:
        """Differences in points by source and network, one per trajectory. among: the only places that are read.

        A trajectory that stands in several suites or with several targets counts once, with the mean over them.
        """
        pools: dict[tuple[str, str], list[pd.Series]] = {}
        for place in self._places(contrast, policy, scope):
            if among is not None and place not in among:
                continue
            pools.setdefault((place.source, place.network), []).append(self.differences(contrast, policy)[place])
        return [pd.concat(own).groupby(level="trajectory").mean() for _, own in sorted(pools.items())]

    def _differences(self, contrast: Contrast, policy: Policy) -> dict[Place, pd.Series]:
        """Paired differences in points by place; the index of each is the trajectory."""
        sides = (contrast.better, contrast.worse)
        better, worse = (self._accuracies.get((policy, side.arm, side.share, side.length)) for side in sides)
        if better is None or worse is None:
            return {}
        paired = (100 * (better - worse)).dropna()
        levels = list(Place._fields)
        return {Place(*place): own.droplevel(levels) for place, own in paired.groupby(level=levels)}

    @cached_property
    def _accuracies(self) -> dict[tuple[Policy, str, float, int], pd.Series]:
        """Accuracies by (policy, arm, share, length), averaged over fine-tunes; index: the fields of a place and the
        trajectory.
        """
        if self.runs.empty:
            return {}
        side, levels = ["policy", "arm", "share", "length"], [*Place._fields, "trajectory"]
        means = self.runs.groupby([*side, *levels])["accuracy"].mean()
        return {key: part.droplevel(side) for key, part in means.groupby(level=side)}


def _corrected(p_value: Callable[[Contrast], float]) -> dict[Contrast, float]:
    """The p values of all primary contrasts after Holm's correction over each family."""
    return {
        contrast: corrected
        for family in CLAIMS.families
        for contrast, corrected in zip(family, holm([p_value(each) for each in family]), strict=True)
    }
