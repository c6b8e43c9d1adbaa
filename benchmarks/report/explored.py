"""The page of the exploration: what every attempt gives, by network and budget, from the two tables beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.report.statistics import paired_t, pooled_t
from benchmarks.report.tables import signed
from benchmarks.report.template import fill
from benchmarks.suite import load_suite
from know.errors import KnowError

SUITE = "core/plaincnn"
"""The suite whose settings the attempts have; those with the settings of another lie in a folder of its name."""
BUDGETS = {"forgetting": 0.284, "x1": 1.0, "x3": 3.0}
"""How many images of the source an attempt may show, beside those that made theta_0. The first is what the forgetting
steps of `SUITE` show.
"""


def tuned(targets: pd.DataFrame, alike: bool = False) -> dict[tuple[str, str], pd.DataFrame]:
    """By network and budget: validation accuracy on the target in points, a row per trajectory and a column per
    attempt, at the rate that is best on the mean of the other trajectories. alike: at the best on the mean of all,
    which is one rate for all of them, and is chosen by what it is judged by.
    """
    found: dict[tuple[str, str], dict[str, pd.Series]] = {}
    for (network, budget, attempt), own in targets.groupby(["network", "budget", "attempt"]):
        table = 100 * own.pivot_table(index="trajectory", columns="learning_rate", values="validation_accuracy")
        if len(table) > 1:
            chosen = {each: table.drop(index=[] if alike else each).mean().idxmax() for each in table.index}
            at = pd.Series({each: table.loc[each, rate] for each, rate in chosen.items()})
            found.setdefault((network, budget), {})[attempt] = at
    return {place: pd.DataFrame(columns) for place, columns in found.items()}


def gains(targets: pd.DataFrame, beside: str = "theta_0", alike: bool = False) -> pd.DataFrame:
    """Of every attempt that was fine-tuned: its difference to another on the target in points, with its interval.

    Columns: network, budget, attempt, mean, low, high, n. theta_0 takes no budget: that of a network stands beside all.
    alike: see `tuned`.
    """
    rows = [
        {"network": network, "budget": budget, "attempt": attempt, **vars(paired_t(values.to_numpy()))}
        for (network, budget), table in _differences(targets, beside, alike).items()
        for attempt, values in table.items()
    ]
    return pd.DataFrame(rows, columns=["network", "budget", "attempt", "mean", "low", "high", "n"])


def gains_of_all(targets: pd.DataFrame, beside: str = "theta_0", alike: bool = False) -> pd.DataFrame:
    """`gains` on the mean of all networks, each counting once, of the attempts that all of several have at a budget."""
    tables, rows = _differences(targets, beside, alike), []
    networks = {network for network, _ in tables}
    for budget in BUDGETS if len(networks) > 1 else ():
        own = [table for (_, at), table in tables.items() if at == budget]
        for attempt in sorted(set.intersection(*map(set, own))) if len(own) == len(networks) else ():
            interval, _ = pooled_t([table[attempt].to_numpy() for table in own])
            rows.append({"network": "all networks", "budget": budget, "attempt": attempt, **vars(interval)})
    return pd.DataFrame(rows, columns=["network", "budget", "attempt", "mean", "low", "high", "n"])


def _differences(targets: pd.DataFrame, beside: str, alike: bool) -> dict[tuple[str, str], pd.DataFrame]:
    tables, found = tuned(targets, alike), {}
    theta_0 = {network: table["theta_0"] for (network, _), table in tables.items() if "theta_0" in table}
    for (network, budget), table in tables.items():
        other = theta_0.get(network) if beside == "theta_0" else table.get(beside)
        if other is not None:
            found[network, budget] = table.drop(columns=beside, errors="ignore").sub(other, axis=0)
    return found


SCALED = {
    "KNOWN": "known",
    "the authors' KNOWN": "released",
    "LogFit": "logfit",
    "TaskVector": "linear",
    "TSV": "tsv",
    "WNN": "wnn",
    "WNN+": "wnn_plus",
    "ExPO": "expo",
    "meta-linear": "meta_linear",
    "Richardson": "richardson",
    "RRE": "rre",
    "MPE": "mpe",
    "DMD": "dmd",
}
CHOOSING = ("combination", *SCALED, "soup", "jackknife")
"""Beginnings of the attempts that scale the step of a method, with its name in the library, and of all that choose
coefficients on held-out images; the control of these has the images too."""
CONTROL = "further, more"
AS_MANY = 0.02
"""Up to this share two attempts have shown equally many images; beyond it the page says how many more or fewer."""


def on_sources(sources: pd.DataFrame, beside: str = "further") -> pd.DataFrame:
    """Source test accuracy minus that of another attempt, in points: a column for each network and budget. beside:
    further training, or `CONTROL`, for the attempts that choose on held-out images alone.
    """
    columns = {}
    for (network, budget), own in _by_place(sources):
        table = 100 * own.pivot_table(index="trajectory", columns="attempt", values="source_accuracy")
        if beside not in table:
            continue
        differences = table.drop(columns=beside).sub(table[beside], axis=0)
        if beside == CONTROL:
            differences = differences[[name for name in differences if name.startswith(CHOOSING)]]
        images = own.groupby("attempt")["images"].mean()
        columns[f"{network}, {budget}, n = {len(table)}"] = {
            name: signed(paired_t(values.to_numpy())) + _images(images[name] / images[beside])
            for name, values in differences.items()
        }
    return _table(columns)


def _images(share: float) -> str:
    """What a table says of an attempt that has shown other than as many images as the one beside it."""
    if abs(share - 1) <= AS_MANY:
        return ""
    return f"; images x {share:.2f}" if share else "; no images"


def on_targets(targets: pd.DataFrame, beside: str = "theta_0") -> pd.DataFrame:
    """`gains` as texts: a column for each network and budget. A * where 0 is left out by both ways to choose rates."""
    found, alike = (
        pd.concat([gains_of_all(targets, beside, way), gains(targets, beside, way)]).set_index(
            ["network", "budget", "attempt"]
        )
        for way in (False, True)
    )
    seen = ((found["low"] > 0) & (alike["low"] > 0)) | ((found["high"] < 0) & (alike["high"] < 0))
    columns = {
        f"{network}, {budget}, n = {own['n'].max()}": {
            row.attempt: signed(row) + (" *" if row.seen else "") for row in own.itertuples()
        }
        for (network, budget), own in _by_place(found.assign(seen=seen).reset_index())
    }
    return _table(columns)


def _by_place(table: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    return sorted(
        table.groupby(["network", "budget"]), key=lambda group: (group[0][0], list(BUDGETS).index(group[0][1]))
    )


def _table(columns: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    rows = sorted({name for texts in columns.values() for name in texts})
    made = {head: [texts.get(name, "") for name in rows] for head, texts in columns.items()}
    return pd.DataFrame({"attempt": rows, **made})


def pages(explored: Path) -> dict[str, str]:
    """README.md of the exploration, and that of every suite in it, by path below the folder `explored`."""
    found = {path.parent: path.parent.relative_to(explored).as_posix() for path in explored.rglob("sources.csv")}
    others = sorted({*found.values()} - {"."})
    return {
        f"{name}/README.md".removeprefix("./"): page(folder, name, others) for folder, name in sorted(found.items())
    }


def page(folder: Path, suite: str = ".", others: Sequence[str] = ()) -> str:
    """README.md of the exploration, from sources.csv and targets.csv in its folder. suite: its name, by default
    `SUITE`. others: the other suites, to which the page of `SUITE` links.
    """
    sources, targets = (pd.read_csv(folder / f"{name}.csv", dtype={"theta_0": str}) for name in ("sources", "targets"))
    for table in (sources, targets):
        starts = table.fillna({"theta_0": ""}).groupby(["network", "trajectory"])["theta_0"].nunique()
        if (starts > 1).any():
            network, trajectory = starts.idxmax()
            raise KnowError(f"{folder}: rows of {network}, {trajectory} begin at different theta_0; make them anew")
    usual, settings = suite == ".", load_suite(SUITE if suite == "." else suite)
    d0 = sum(settings.forgetting.ratio**k for k in range(1, settings.forgetting.length))
    share = BUDGETS["forgetting"] if usual else d0 * settings.forgetting.step.epochs / settings.pretraining.epochs
    return fill(
        "explored.md.j2",
        suite=SUITE if usual else suite,
        usual=usual,
        others=others,
        pair=settings.pairs[0],
        images=settings.transfer.images,
        budgets=BUDGETS | {"forgetting": float(f"{share:.3g}")},
        sources=on_sources(sources),
        beside_more=on_sources(sources, CONTROL),
        targets=on_targets(targets),
        beside_further=on_targets(targets, "further"),
    )
