"""index.html: the records of all suites to browse in one file, without a network and readable without JavaScript."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.report import tables
from benchmarks.report.evidence import POLICIES, SEEN_NOTE, Evidence, costs, gates, marked
from benchmarks.report.folders import GROUPS, Published
from benchmarks.report.template import fill

LIMIT = 1_500_000
"""Bytes that the page may have."""
WIDTH, REACH = 120, 4.0
"""Width of the drawn intervals in pixels, and the difference in points at their edges; what is beyond is cut off."""


def index_page(results: Sequence[Published], evidence: Evidence) -> str:
    """The page, in HTML. The runs stand in it as one block of sorted JSON (`runs_of`)."""
    runs = {one.name: runs_of(one.runs) for one in results}
    return fill(
        "index.html.j2",
        verdicts=tables.front(evidence, costs(results)) if evidence.suites else None,
        suites=[{"name": one.name, "settings": one.settings, "cells": _cells(one)} for one in results],
        policies={
            policy: POLICIES[policy] for policy in POLICIES if any(policy in set(one.runs["policy"]) for one in results)
        },
        groups={key: name for key, name in GROUPS.items() if key != "reference"},
        width=WIDTH,
        reach=REACH,
        seen_note=SEEN_NOTE,
        runs=json.dumps(runs, sort_keys=True, separators=(",", ":")).replace("<", "\\u003c"),
    )


def runs_of(runs: pd.DataFrame) -> dict[str, Any]:
    """Runs by cell, policy and arm: learning rates, and by trajectory the accuracies of its fine-tunes in percent."""
    found: dict[str, Any] = {}
    for (cell, policy, arm), own in runs.groupby(["cell", "policy", "arm"], sort=True):
        ordered = own.sort_values(["trajectory", "fine_tune"])
        by = {
            name: [round(100 * value, 2) for value in part["accuracy"]] for name, part in ordered.groupby("trajectory")
        }
        rates = sorted(set(own["learning_rate"]))
        found.setdefault(cell, {}).setdefault(policy, {})[arm] = {"rates": rates, "runs": by}
    return found


def _cells(published: Published) -> list[dict[str, Any]]:
    groups = {arm["name"]: arm["group"] for arm in published.settings["described"]}
    found = []
    for cell, runs in published.cells.items():
        rows, marks = published.summary[published.summary["cell"] == cell], marked(published, cell)
        policies = {}
        for policy in (policy for policy in POLICIES if policy in set(rows["policy"])):
            own = rows[rows["policy"] == policy].set_index("arm")
            arms = [arm for arm in published.order if arm in own.index]
            policies[policy] = {
                "gates": tables.passed_in_words(gates(published, cell, policy)),
                "arms": [{"group": groups[arm], "mark": arm in marks, **_row(arm, own.loc[arm])} for arm in arms],
            }
        found.append({"slug": cell, "title": tables.cell_title(runs.iloc[0]), "policies": policies})
    return found


def _row(arm: str, row: Mapping[str, Any]) -> dict[str, Any]:
    mean, low, high = (row[key] for key in ("difference", "low", "high"))
    compared = arm != "naive" and not math.isnan(mean)
    return {
        "arm": arm,
        "accuracy": f"{row['accuracy']:.2f}",
        "difference": f"{round(mean, 2) + 0.0:+.2f}" if compared else "",
        "interval": f"[{round(low, 2) + 0.0:+.2f}, {round(high, 2) + 0.0:+.2f}]" if compared and row["n"] > 1 else "",
        "drawn": [_place(value) for value in (low, mean, high)] if compared and row["n"] > 1 else None,
        "decided": compared and row["n"] > 1 and (low > 0 or high < 0),
        "rate": f"{row['learning_rate']:.3g}{'*' if row['on_edge'] else ''}",
        "source": f"{row['source_accuracy_recalibrated']:.2f}",
        "n": int(row["n"]),
    }


def _place(points: float) -> str:
    """Where a difference stands in a drawing of `WIDTH` pixels."""
    share = (min(max(points, -REACH), REACH) + REACH) / (2 * REACH)
    return f"{share * WIDTH:.0f}"
