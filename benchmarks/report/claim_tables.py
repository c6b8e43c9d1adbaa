"""The tables and sentences of the pages that look at all suites together: plain rows of texts, from `Evidence`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.report.claims import CLAIMS, Claim, Contrast, Line
from benchmarks.report.evidence import (
    DIVERGED,
    LOCAL,
    POLICIES,
    Evidence,
    Finding,
    Place,
    Verdict,
    informative,
    sees_small_steps,
)
from benchmarks.report.statistics import paired_t
from benchmarks.report.tables import interval_text
from benchmarks.settings import Policy

BESIDE = [
    ("oracle_steps", "naive"),
    ("local_oracle", "compute_matched"),
    ("compute_matched", "naive"),
    ("compute_augmented", "naive"),
    ("compute_augmented", "compute_matched"),
    ("oracle_steps", "compute_augmented"),
    ("known_x2", "wnn_plus_x2"),
]
"""Better and worse arm of differences that no claim is about and that the five sentences and docs/FINDINGS.md quote."""


def _p_value(p: float) -> str:
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def front(evidence: Evidence) -> pd.DataFrame:
    """Every claim with its verdict and pooled estimates, at the rate policies that have any; what holds comes first.

    A claim is about all of its contrasts: the lowest and the highest at tuned rates are shown, each in a row.
    """
    found = []
    for claim in CLAIMS.claims:
        finding, rows = evidence.claim(claim), []
        for contrast in _lowest_and_highest(evidence, claim):
            pooled = [evidence.judge(contrast, policy, claim.suites).interval for policy in POLICIES]
            rows.append([contrast, *map(interval_text, pooled)])
        found.append((finding.verdict, claim.name, said(finding), rows))
    found.append((evidence.cost, "predicting is cheap beside training", str(evidence.cost), []))
    table = []
    for _, name, verdict, rows in sorted(found, key=lambda one: list(Verdict).index(one[0])):
        first, *others = rows or [["-"] * (1 + len(POLICIES))]
        table += [[name, verdict, *first], *(["", "", *row] for row in others)]
    made = pd.DataFrame(table, columns=["claim of the paper", "here", "contrast", *POLICIES.values()]).astype(str)
    return _without_empty(made)


def _without_empty(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the columns of rate policies, and of the paper's numbers, in which no number stands."""
    optional = {"paper", *POLICIES.values()} & set(table)
    return table.drop(columns=[name for name in optional if table[name].isin(["", "-"]).all()])


def _lowest_and_highest(evidence: Evidence, claim: Claim) -> list[Contrast]:
    """The contrasts of a claim that have the lowest and the highest pooled estimate, of those that were run."""
    policy, contrasts = CLAIMS.primary.policy, evidence.contrasts(claim)
    pooled = {contrast: evidence.judge(contrast, policy, claim.suites).interval for contrast in contrasts}
    run = sorted((contrast for contrast, one in pooled.items() if one.n > 1), key=lambda each: pooled[each].mean)
    return [run[0], run[-1]] if len(run) > 1 else run


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
        shown = []
        for key, line in CLAIMS.lines.items():
            contrast = Contrast(better=f"{line.arm}_{factor}", worse=worse[key])
            about = f"{_whose(line)}{', of both signs by cell' if _of_both_signs(evidence, contrast, policy) else ''}"
            shown.append(f"{_pooled(evidence, contrast.better.arm, contrast.worse.arm, policy)} ({about})")
        return " and ".join(shown)

    shrunk, placebo = (next(c.arms for c in CLAIMS.controls if word in c.text) for word in ("shrinking", "placebo"))
    naive = dict.fromkeys(CLAIMS.lines, "naive")
    at_paper = "At the paper's rate, on the same short schedule, "
    if any(place.core for place in evidence.informative_at("short")):
        at_paper += f"KNOWN x8 minus naive is {known('short', naive)}; "
        at_paper += f"minus shrinking by as much it is {known('short', shrunk)}."
    else:
        at_paper += "no core cell that was run is informative."
    further = [f"{_pooled(evidence, one.matched, 'naive', tuned)} points (`{one.matched}`)" for one in CLAIMS.finalists]
    averages = [_pooled(evidence, one.arm, one.matched, tuned) for one in CLAIMS.finalists]
    against = [Contrast(better=f"{one.arm}_{x}", worse="naive") for one in CLAIMS.lines.values() for x in ("x2", "x8")]
    judged = {contrast: evidence.judge(contrast, tuned).sign for contrast in against}
    below, above = ([f"`{each.better}`" for each, sign in judged.items() if sign == side] for side in (-1, 1))
    corrected = f" After Holm's correction {_listed(below)} below 0 and {_listed(above)} above it."
    told, seen = (sum(map(each, passed)) for each in (informative, sees_small_steps))
    gap, nearby = (_pooled(evidence, *pair, tuned) for pair in BESIDE[:2])
    return [
        f"At tuned rates {told} of the {len(passed)} core cells that were run are informative (networks: "
        f"{len(networks)}, pairs of datasets: {len(pairs)}), and {seen} see the local data gap, what twice the data do "
        "to weights nearby, which stands here for what KNOWN x2 predicts. Pooled, twice the data at equal steps is "
        f"worth {gap} points, and the local data gap {nearby}.",
        f"At tuned rates KNOWN minus naive fine-tuning is, at x2, {known(tuned, naive, 'x2')}, and at x8 "
        f"{known(tuned, naive)}.{corrected}{_not_finite(evidence, tuned)}",
        f"Minus shrinking theta_0 by as much KNOWN x8 is {known(tuned, shrunk)}, and minus its own answer to a "
        f"placebo, in which nothing was removed, {known(tuned, placebo)}.",
        f"The compute of the forgetting steps, spent on training theta_0 further, is worth {further[0]}, and with "
        f"crops and mirror images {further[1]}. The mean of late weights of such training, minus the last weights, is "
        f"{averages[0]} and {averages[1]}.",
        at_paper,
    ]


def _of_both_signs(evidence: Evidence, contrast: Contrast, policy: Policy) -> bool:
    """Whether a contrast lies above 0 in one informative core cell and below it in another: a mean hides both."""
    found = [one.interval for place, one in evidence.by_place(contrast, policy).items() if place.core]
    return any(each.low > 0 for each in found) and any(each.high < 0 for each in found)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} lie{'s' * (len(names) == 1)}" if names else "none lies"


def _whose(line: Line) -> str:
    return line.label.removeprefix("KNOWN ").strip("()")


def _not_finite(evidence: Evidence, policy: Policy) -> str:
    """A sentence on the predictions of KNOWN x8 in informative core cells that are not finite, where there are any."""
    found = {_whose(line): _lost(evidence, line.deepest, policy) for line in CLAIMS.lines.values()}
    if not any(lost for lost, _ in found.values()):
        return ""
    said = " and ".join(f"{lost} of {count} ({whose})" for whose, (lost, count) in found.items() if count)
    return (
        f" The answer at x8 is not finite on {said} source trajectories; that counts as an accuracy of 0, for it and "
        "for what is made from it."
    )


def _lost(evidence: Evidence, arm: str, policy: Policy) -> tuple[int, int]:
    """On how many source trajectories of informative core cells an arm's weights are not finite, and of how many."""
    rows = evidence.runs
    rows = rows[rows["suite"].isin(CLAIMS.core) & (rows["policy"] == policy) & (rows["arm"] == arm)]
    lost = rows["step"].isna().groupby([rows[key] for key in ("source", "network", "trajectory")]).any()
    return int(lost.sum()), len(lost)


def _pooled(evidence: Evidence, better: str, worse: str, policy: Policy) -> str:
    """A pooled difference that links to its page; the title of the link says what it is."""
    shown = interval_text(evidence.judge(Contrast(better=better, worse=worse), policy).interval)
    return f'[{shown}](CLAIMS.md "{better} - {worse}, {policy}, pooled")' if shown != "-" else shown


def said(finding: Finding) -> str:
    """A finding in words."""
    if finding.explained:
        return f"{finding.verdict} ({finding.because}), explained as well by {' or '.join(finding.explained)}"
    return f"{finding.verdict}: {finding.because}" if finding.because else str(finding.verdict)


def primary(evidence: Evidence, family: Sequence[Contrast]) -> dict[str, pd.DataFrame]:
    """Contrasts of one family by heading: pooled, then in each core cell, with p values after Holm's correction there.
    Other cells have no verdict (rules 16 and 31); their differences stand on the pages of their suites.
    """
    policy = CLAIMS.primary.policy
    tables = {"Pooled": {contrast: evidence.judge(contrast, policy) for contrast in family}}
    for place in (place for place in evidence.places if place.core):
        tables[title_of(place)] = {c: evidence.by_place(c, policy).get(place) for c in family}
    made = {}
    for heading, found in tables.items():
        rows = [
            [contrast, interval_text(one.interval), one.interval.n, _p_value(one.corrected), one.verdict]
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
        rows += [[contrast, place, interval_text(one.interval), one.interval.n] for place, one in found.items()]
    return pd.DataFrame(rows, columns=["contrast", "cell", "tuned rate", "n"]).astype(str)


def where_finite(evidence: Evidence) -> pd.DataFrame:
    """The deepest KNOWN minus naive at tuned rates over the trajectories on which it is finite, in every informative
    core cell where it is not finite on some. It has no verdict: what is left out depends on the result.
    """
    policy, rows = CLAIMS.primary.policy, []
    for line, place in itertools.product(CLAIMS.lines.values(), evidence.places):
        differences = evidence.differences(Contrast(better=line.deepest, worse="naive"), policy).get(place)
        if differences is not None and place.core:
            lost = evidence.not_finite(line.deepest, place)
            interval = paired_t(differences[~differences.index.isin(lost)].to_numpy())
            rows += [[f"{line.deepest} - naive", title_of(place), interval_text(interval), interval.n]] if lost else []
    return pd.DataFrame(rows, columns=["contrast", "cell", "tuned rate", "n"]).astype(str)


def finalists(evidence: Evidence) -> list[dict[str, object]]:
    """For each finalist: its arms, the core cells in which it holds, its contrasts that lie below 0 in one, and whether
    it becomes a part of the library.
    """
    made, policy = [], CLAIMS.primary.policy
    for one in CLAIMS.finalists:
        verdict, places = evidence.confirmed(one)
        found = [(c, place, at.interval) for c in one.contrasts for place, at in evidence.by_place(c, policy).items()]
        below = [f"{c} in {title_of(place)}" for c, place, interval in found if place.core and interval.high < 0]
        about = {"arm": one.arm, "matched": one.matched, "verdict": verdict, "below": below}
        made.append({**about, "places": list(map(title_of, places))})
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
                said = [interval_text(at[policy][place].interval) if place in at[policy] else "" for policy in POLICIES]
                tuned = at["tuned"][place]
                pair = f"{place.source} to {place.target} ({place.suite})"
                rows.append([contrast, place.network, pair, "", *said, tuned.interval.n, tuned.verdict])
        if not claim.everywhere:
            paper = CLAIMS.paper_gain(contrast)
            pooled = [evidence.judge(contrast, policy, claim.suites) for policy in POLICIES]
            numbers = [interval_text(one.interval) for one in pooled]
            shown = "" if paper is None else f"{paper:+.2f}"
            rows.append([contrast, "pooled", "", shown, *numbers, pooled[-1].interval.n, pooled[-1].verdict])
    return _without_empty(pd.DataFrame(rows, columns=head).astype(str))


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
                "difference": interval_text(judged.interval),
                "n": judged.interval.n,
                "sign": judged.sign,
                "uncorrected": (judged.interval.low > 0) - (judged.interval.high < 0),
                "text": control.text,
                "lost": [f"`{one}` on {n} of {count}" for one, n, count in lost if n],
            }
            lines.append({"arm": arm, "control": other, **facts})
    return lines


def rates_of_the_grid(evidence: Evidence, claim: Claim, policy: Policy = "tuned") -> list[str]:
    """By core suite: the learning rates of KNOWN, its controls and naive, where one of them is a point of the grid.

    Rule 7 takes a point of the grid where no curve can be laid through the pilots. Such a rate lies further from the
    best one, and arms whose rates differ for that reason differ by it too.
    """
    arms = [CLAIMS.lines[claim.controls_of].deepest, *(control.arms[claim.controls_of] for control in CLAIMS.controls)]
    runs, said = evidence.runs, []
    if runs.empty:
        return said
    runs = runs[runs["arm"].isin([*arms, "naive"]) & (runs["policy"] == policy) & runs["suite"].isin(CLAIMS.core)]
    for suite, own in runs.groupby("suite"):
        rates = own.drop_duplicates("arm").set_index("arm")["learning_rate"]
        found = [arm for arm in arms if arm in rates and _among(rates[arm], evidence.grids[suite])]
        if found:
            on_grid = ", ".join(f"`{arm}` {rates[arm]:.3g}" for arm in found)
            others = [f"`{arm}` {rates[arm]:.3g}" for arm in ["naive", *arms] if arm in rates and arm not in found]
            said.append(f"{suite}: {on_grid}" + (f"; beside them {', '.join(others)}" if others else ""))
    return said


def _among(rate: float, grid: Iterable[float]) -> bool:
    return any(math.isclose(rate, point, rel_tol=1e-6) for point in grid)


def dear(evidence: Evidence) -> list[str]:
    """The core suites beside those of the rule where a deepest prediction is not cheap, with its share of the time."""
    said = []
    for suite in sorted(set(CLAIMS.core) & evidence.costs.keys() - set(CLAIMS.cost_of)):
        costs = evidence.costs[suite].set_index("arm")
        arms = [line.deepest for line in CLAIMS.lines.values() if line.deepest in costs.index]
        shares = {arm: (costs.loc[[arm], "seconds"] / costs.loc[[arm], "theta_0_seconds"]).max() for arm in arms}
        if over := [f"`{arm}` {100 * share:.1f} %" for arm, share in shares.items() if share >= CLAIMS.cheap]:
            said.append(f"{suite} ({', '.join(over)})")
    return said


def ablations(evidence: Evidence) -> pd.DataFrame:
    """The deepest KNOWN and shrinking by as much, each minus naive, in every informative place that is not pooled, at
    all of the target and S = 5. They have no verdict (rules 16, 29).
    """
    shrinking = next(control.arms for control in CLAIMS.controls if "shrinking" in control.text)
    rows = []
    for (key, line), place in itertools.product(CLAIMS.lines.items(), evidence.places):
        # the names of arms have the factor on the data, which is another one at another r
        run = (arm for arm in evidence.arms_of(place) if arm.startswith(f"{line.arm}_x"))
        deepest = max(run, key=lambda arm: float(arm.rpartition("_x")[2]), default=line.deepest)
        for arm in (deepest, "_x".join((shrinking[key].rpartition("_x")[0], deepest.rpartition("_x")[2]))):
            at = {policy: evidence.by_place(Contrast(better=arm, worse="naive"), policy) for policy in POLICIES}
            if not place.core and place in at["tuned"]:
                said = [interval_text(at[policy][place].interval) if place in at[policy] else "" for policy in POLICIES]
                marks = [f" {DIVERGED}" if evidence.diverged(arm, place, policy) else "" for policy in POLICIES]
                rows.append([arm, title_of(place), *map("".join, zip(said, marks, strict=True))])
    return _without_empty(pd.DataFrame(rows, columns=["arm", "place", *POLICIES.values()]).astype(str))


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
