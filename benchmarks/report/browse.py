"""index.html: the records of all suites to browse in one file, without a network and readable without JavaScript."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from benchmarks.report import claim_tables, tables
from benchmarks.report.evidence import (
    DAGGER,
    DIVERGED_NOTE,
    OTHERS_NOTE,
    POLICIES,
    SEEN_NOTE,
    Evidence,
    gates,
    informative,
    marked,
)
from benchmarks.report.folders import GROUPS, Published
from benchmarks.report.statistics import CONFIDENCE, FEW, Interval
from benchmarks.report.template import fill
from know.errors import KnowError

LIMIT = 1_500_000
"""Bytes that the page may have."""
WIDTH, REACH = 120, 2.0
"""Width of a drawn interval in pixels, and the difference in points at its edges; arrows point to what lies beyond."""


def index_page(results: Sequence[Published], evidence: Evidence) -> str:
    """The page, in HTML. The runs stand in it as one block of sorted JSON (`runs_of`).

    KnowError where it would have more than `LIMIT` bytes.
    """
    runs = json.dumps({one.name: runs_of(one.runs) for one in results}, sort_keys=True, separators=(",", ":"))
    seen = {policy for one in results for policy in one.runs["policy"]}
    page = fill(
        "index.html.j2",
        overviews=_overviews(results),
        verdicts=claim_tables.front(evidence) if evidence.suites else None,
        suites=[{"name": one.name, "about": one.settings, "lost": one.lost, "cells": _cells(one)} for one in results],
        policies={policy: name for policy, name in POLICIES.items() if policy in seen},
        groups={key: name for key, name in GROUPS.items() if key != "reference"},
        width=WIDTH,
        reach=REACH,
        confidence=100 * CONFIDENCE,
        few=FEW,
        dagger=DAGGER,
        seen_note=SEEN_NOTE,
        others_note=OTHERS_NOTE,
        diverged_note=DIVERGED_NOTE,
        runs=runs.replace("<", "\\u003c"),  # so that no name can end the element that it stands in
    )
    if (size := len(page.encode())) > LIMIT:
        raise KnowError(f"index.html would have {size:,} bytes, and {LIMIT:,} are its limit; publish fewer suites")
    return page


def _overviews(results: Sequence[Published]) -> list[dict[str, Any]]:
    """By rate policy: the cells of all suites that are evidence, and the rows `tables.FRONT` of each, drawn."""
    cells = [(one, cell) for one in results if one.settings["evidence"] for cell in one.cells]
    found = []
    for policy, name in POLICIES.items():
        heads, columns = [], []
        for one, cell in cells:
            runs = one.cells[cell]
            if policy not in set(runs["policy"]):
                continue
            passed = gates(one, cell, policy)
            title = one.settings["title"]
            if len(one.cells) > 1:
                title += f" ({tables.cell_title(runs.iloc[0])})"
            heads.append({"key": f"{one.name}|{cell}", "title": title, "gates": tables.passed_in_words(passed)})
            columns.append((tables.glance(one, cell, policy), informative(passed)))
        if heads:
            rows = {
                heading: {label: [_glance(shown[heading][label], told) for shown, told in columns] for label in lines}
                for heading, lines in tables.FRONT.items()
            }
            found.append({"key": policy, "policy": name, "heads": heads, "rows": rows, "open": policy == "tuned"})
    return found


def _glance(shown: tables.Glance | None, told: bool) -> dict[str, Any] | None:
    """One difference of one cell, in words and drawn; None where an arm was not run."""
    if shown is None:
        return None
    return {"text": str(shown), "drawn": _drawn(shown.interval, told) if shown.interval.n > 1 else None}


def runs_of(runs: pd.DataFrame) -> dict[str, Any]:
    """Runs by cell and policy: the trajectories, and by arm its learning rates and, in the order of the trajectories,
    the accuracies of its fine-tunes in percent.
    """
    found: dict[str, Any] = {}
    ordered = runs.sort_values(["trajectory", "fine_tune"])
    for (cell, policy), rows in ordered.groupby(["cell", "policy"], sort=True):
        names, arms = sorted(set(rows["trajectory"]), key=in_order), {}
        for arm, own in rows.groupby("arm", sort=True):
            by = dict(list(own.groupby("trajectory")["accuracy"]))
            values = [[round(100 * value, 2) for value in by.get(name, ())] for name in names]
            arms[arm] = {"rates": sorted(set(own["learning_rate"])), "runs": values}
        found.setdefault(cell, {})[policy] = {"trajectories": names, "arms": arms}
    return found


def in_order(trajectory: str) -> tuple[str, int]:
    """The place of a trajectory's name, such as t100: its letter, then its number."""
    letters = trajectory.rstrip("0123456789")
    return letters, int(trajectory[len(letters) :] or 0)


def _cells(published: Published) -> list[dict[str, Any]]:
    groups = {arm["name"]: arm["group"] for arm in published.settings["described"]}
    found = []
    for cell, runs in published.cells.items():
        rows, marks = published.summary[published.summary["cell"] == cell], marked(published, cell)
        policies = {}
        for policy in (policy for policy in POLICIES if policy in set(rows["policy"])):
            own, passed = rows[rows["policy"] == policy].set_index("arm"), gates(published, cell, policy)
            arms = [arm for arm in published.order if arm in own.index]
            told = informative(passed)
            policies[policy] = {
                "gates": tables.passed_in_words(passed),
                "arms": [
                    {"arm": arm, "group": groups[arm], "mark": arm in marks, **_row(own.loc[arm], arm, told)}
                    for arm in arms
                ],
            }
        unavailable = sorted(published.settings["unavailable"].get(cell, {}), key=published.order.__getitem__)
        title = tables.cell_title(runs.iloc[0])
        found.append({"slug": cell, "title": title, "policies": policies, "unavailable": unavailable})
    return found


def _row(row: pd.Series, arm: str, told: bool) -> dict[str, Any]:
    """told: whether the cell is informative, so that an interval without 0 is coloured."""
    interval = Interval(row["difference"], row["low"], row["high"], row["n"])
    compared = arm != "naive" and not math.isnan(interval.mean)
    difference, _, limits = tables.signed(interval).partition(" ")
    return {
        "accuracy": f"{row['accuracy']:.2f}",
        "failed": int(row["failed"]),
        "difference": difference if compared else "",
        "interval": limits if compared and interval.n > 1 else "",
        "drawn": _drawn(interval, told) if compared and interval.n > 1 else None,
        "rate": f"{row['learning_rate']:.3g}{'*' if row['on_edge'] else ''}",
        "source": f"{row['source_accuracy_recalibrated']:.2f}",
        "n": interval.n,
    }


def _drawn(interval: Interval, told: bool) -> dict[str, Any]:
    """A drawing of `WIDTH` pixels: the path of the interval, and the place of its mean where that is not beyond.

    Each drawing is short, since the page has some thousand of them.
    """
    low, high = (min(max(value, -REACH), REACH) for value in (interval.low, interval.high))
    arrows = ("M5 2L1 6L5 10" if interval.low < -REACH else "") + (
        f"M{WIDTH - 5} 2L{WIDTH - 1} 6L{WIDTH - 5} 10" if interval.high > REACH else ""
    )
    mean = _place(interval.mean) if abs(interval.mean) <= REACH else None
    side = "gain" if interval.low > 0 else "loss" if interval.high < 0 else ""
    return {"line": f"M{_place(low)} 6H{_place(high)}{arrows}", "mean": mean, "side": side if told else ""}


def _place(points: float) -> str:
    return f"{(points + REACH) / (2 * REACH) * WIDTH:.0f}"
