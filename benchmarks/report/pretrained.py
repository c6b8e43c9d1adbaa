"""What is known of the networks that ship: a card for each group, and the page of know/pretrained/."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.report.claims import CLAIMS
from benchmarks.report.statistics import pooled_t
from benchmarks.report.tables import signed
from benchmarks.report.template import fill
from benchmarks.settings import Shipped, Skill
from know.files import read_json, write_text
from know.roles import PREDICTED
from know.statistics import Interval, paired_t

RATIOS, UPDATES = (0.3, 0.45, 0.6, 0.75, 0.9), (1, 50, 150, 400, 2000)
"""Edges of the buckets of r and of the number of updates in the first forgetting step."""
ASKED = (0.45, 0.6)
"""The bucket of r in which suites ask KNOWN, by the rule of docs/RULES.md on skill."""
ENOUGH = 0.97
"""Relative loss below which KNOWN has skill there."""
PLAIN = ("naive", "linear_x2", "tail_average")
"""The arms of which KNOWN has to beat the best on the retrodiction track."""
CHOICES = ("absolute-0.1", "absolute-0", "relative-0.1", "relative-0")
"""Losses and bias penalties of which the selection trajectories choose one."""


# the card of a group


def card(folder: Path) -> str:
    """The card of trained networks, in Markdown, from facts.json and held_out.csv in a folder."""
    facts, table = read_json(folder / "facts.json"), pd.read_csv(folder / "held_out.csv")
    errors, shipped = (table[table["model"] == model] for model in ("known", "shipped"))
    head, rows = ["to no change", "to the linear step", "step"], {}
    for role in PREDICTED:
        own = errors[errors["role"] == role]
        losses = [relative_loss(own), relative_loss(own, "linear_loss")]
        rows[role] = [*map(said, losses), _step(own["step"].mean())]
    if len(shipped):  # a suite may ask for a network that ships to be held beside its own
        head.append(f"the KNOWN that ships ({facts['settings']['beside']}), to no change")
        for role, row in rows.items():
            row.append(said(relative_loss(shipped[shipped["role"] == role])))
    return fill(
        "known_card.md.j2",
        facts=facts,
        still=CLAIMS.still,
        summary=_table("role", head, rows),
        by={
            column: _table("r" if column == "ratio" else column, list(PREDICTED), _by(errors, column, edges))
            for column, edges in (("ratio", RATIOS), ("updates", UPDATES))
        },
    )


def _step(size: float) -> str:
    return f"{size:.2g}{' (no prediction)' if size < CLAIMS.still else ''}"


def _by(errors: pd.DataFrame, column: str, edges: Sequence[float]) -> dict[str, list[str]]:
    return {
        f"{low:g} to {high:g}": by_role(between(errors, column, low, high)) for low, high in itertools.pairwise(edges)
    }


def between(errors: pd.DataFrame, column: str, low: float, high: float) -> pd.DataFrame:
    """The rows from one edge of a bucket up to the next, which belongs to the next bucket."""
    return errors[(errors[column] >= low) & (errors[column] < high)]


def by_role(errors: pd.DataFrame) -> list[str]:
    return [said(relative_loss(errors[errors["role"] == role])) for role in PREDICTED]


def relative_loss(errors: pd.DataFrame, of: str = "no_change_loss") -> Interval:
    """The geometric mean over trajectories of loss / `of`, with its t interval: each trajectory counts once, and
    halving a loss weighs as much as doubling it. Trajectories in which nothing moves are left out.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = paired_t(np.log(errors["loss"].to_numpy(float) / errors[of].to_numpy(float)))
    return Interval(*(float(np.exp(value)) for value in (logs.mean, logs.low, logs.high)), logs.n)


def said(interval: Interval) -> str:
    if not interval.n:
        return "-"
    limits = f" [{interval.low:.3f}, {interval.high:.3f}]" if interval.n > 1 else ""
    return f"{interval.mean:.3f}{limits}, n = {interval.n}"


def _table(first: str, columns: list[str], rows: dict[str, list[str]]) -> pd.DataFrame:
    return pd.DataFrame([[name, *row] for name, row in rows.items()], columns=[first, *columns])


# the page of all of them


def publish(settings: Shipped, work: Path, windows: pd.DataFrame, out: Path) -> None:
    """Write the tables and pages of the networks that ship.

    work: holds variants/*.csv and skill/*.csv. windows: how those of the meta-set and of the suites move. out: the
    folder of the networks.
    """
    variants = pd.concat([pd.read_csv(path) for path in sorted((work / "variants").glob("*.csv"))])
    skill = pd.concat([pd.read_csv(work / "skill" / f"{network}.csv") for network in settings.skill.networks])
    for name, table in (("variants", variants), ("skill", skill), ("windows", windows)):
        write_text(out / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
    for name, group in settings.groups.items():
        for length in group.lengths:
            folder = out / name / str(length)
            write_text(folder / "README.md", card(folder))
    write_text(out / "README.md", page(settings, out))


def page(settings: Shipped, out: Path) -> str:
    """README.md of the networks that ship, from the tables beside it."""
    variants, windows = pd.read_csv(out / "variants.csv"), pd.read_csv(out / "windows.csv", dtype=str)
    held_out = variants[variants["part"] == "held_out"]
    selection = variants[variants["part"] == "selection"]
    chosen = f"{settings.metatraining.loss}-{settings.metatraining.bias_penalty:g}"
    named = {
        name: read_json(out / name / str(group.lengths[-1]) / "facts.json") for name, group in settings.groups.items()
    }
    shares = {**{f"share-{share:g}": f"{share:g}" for share in (0.125, 0.25, 0.5)}, chosen: "1"}
    networks = settings.metatraining.networks
    return fill(
        "pretrained.md.j2",
        settings=settings,
        groups=named,
        chosen=chosen,
        by_rule=choice(selection),
        choices=_table(
            "loss, bias penalty",
            ["selection, mean over roles", *(f"held out, {role}" for role in PREDICTED)],
            {name: [f"{score(selection, name):.4f}", *by_role(_of(held_out, name))] for name in CHOICES},
        ),
        curve=_table(
            "share",
            list(PREDICTED),
            {label: by_role(_of(held_out, name)) for name, label in shares.items()},
        ),
        left_out=_table(
            "network",
            list(PREDICTED),
            {network: by_role(_of(held_out, f"without-{network}")) for network in networks},
        ),
        windows=windows,
        **skill_of(settings.skill, out),
    )


def skill_of(settings: Skill, out: Path) -> dict[str, object]:
    """What pages say of the skill of the networks that ship, from the tables in their folder."""
    skill, errors = pd.read_csv(out / "skill.csv"), pd.read_csv(out / settings.group / "5" / "held_out.csv")
    said = {"skill": skill_table(skill), "verdict": verdict(errors, skill), "asked": ASKED, "enough": ENOUGH}
    return {"skill_settings": settings, **said}


def _of(variants: pd.DataFrame, name: str) -> pd.DataFrame:
    return variants[variants["variant"] == name]


def score(selection: pd.DataFrame, name: str) -> float:
    """The relative loss of a variant on the selection trajectories, mean over roles; the lower the better."""
    own = _of(selection, name)
    return float(np.mean([relative_loss(own[own["role"] == role]).mean for role in PREDICTED]))


def choice(selection: pd.DataFrame) -> str:
    """The loss and bias penalty that the selection trajectories choose."""
    return min(CHOICES, key=lambda name: score(selection, name))


def skill_table(skill: pd.DataFrame) -> pd.DataFrame:
    """Weight error of every arm by network and over all, and recalibrated source accuracy, with intervals."""
    whole, rows = skill[skill["role"] == "all"], []
    networks = sorted(whole["network"].unique())
    errors = whole.pivot_table(index="arm", columns="network", values="weight_error", aggfunc=list)
    accuracies = whole.pivot_table(index="arm", columns="network", values="source_accuracy_recalibrated", aggfunc=list)
    order = errors.map(np.mean).mean(axis=1).sort_values().index
    for arm in order:
        texts = [_shown(paired_t(errors.loc[arm, network])) for network in networks]
        points = [_shown(paired_t(100 * np.array(accuracies.loc[arm, network])), 1) for network in networks]
        rows.append([arm, *texts, _shown(pooled_t(list(errors.loc[arm]))[0]), *points])
    columns = [*networks, "all", *(f"{network}, accuracy" for network in networks)]
    return pd.DataFrame(rows, columns=["arm", *columns])


def _shown(interval: Interval, digits: int = 3) -> str:
    mean, low, high = (f"{value:.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def _paired(values: pd.Series, arm: str, other: str) -> Interval:
    """The difference of two arms, paired by trajectory; every network counts once."""
    paired = values[arm] - values[other]
    return pooled_t([own.to_numpy() for _, own in paired.groupby("network")])[0]


def verdict(errors: pd.DataFrame, skill: pd.DataFrame) -> dict[str, object]:
    """Whether KNOWN has skill at r = 0.5, by the rule of docs/RULES.md.

    errors: held_out.csv of the group that is asked. skill: skill.csv.
    """
    known = between(errors[errors["model"] == "known"], "ratio", *ASKED)
    losses = {role: relative_loss(known[known["role"] == role]) for role in ("conv", "fc")}
    whole = skill[skill["role"] == "all"].set_index(["arm", "network", "trajectory"])
    errors_of, accuracy = whole["weight_error"], 100 * whole["source_accuracy_recalibrated"]
    best = min(PLAIN, key=lambda arm: errors_of[arm].groupby("network").mean().mean())
    difference = _paired(errors_of, "known_x2", best)
    on_windows = all(interval.mean < ENOUGH and interval.high < 1 for interval in losses.values())
    return {
        "losses": {role: said(interval) for role, interval in losses.items()},
        "best": best,
        "difference": _shown(difference),
        "nearer": _shown(_paired(errors_of, "known_x2", "naive")),
        "accuracy": {arm: signed(_paired(accuracy, arm, "naive")) for arm in ("known_x2", best, "oracle")},
        "on_windows": on_windows,
        "on_weights": difference.high < 0,
        "skill": on_windows or difference.high < 0,
    }
