"""The pages: Markdown from the run records alone, no torch, no data, nothing typed by hand.

A page is a function of the files in `results/<suite>/`, so that it can be checked against them (`know report --check`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.records import RunRecord, read_records
from benchmarks.report.statistics import (
    CONFIDENCE,
    FEW,
    Interval,
    compare,
    fieller,
    paired_t,
    summarise,
    trajectory_means,
)
from benchmarks.suite import LENGTH, RATIO, Suite
from know.errors import KnowError
from know.files import read_json

SNAPSHOT_COLUMNS = [
    *("source", "network", "rate", "track", "trajectory", "snapshot", "fraction", "images"),
    *("test_accuracy", "left_out_accuracy", "left_out_accuracy_theta_0"),
]
HELD_OUT = ["run", "role", "model", "loss", "no_change_loss", "linear_loss", "step"]
STILL = 1e-3
"""A network whose |step| / |theta_0| is smaller predicts nothing."""
COEFFICIENTS = ["model", "role", "term", "value"]
STEPS = [
    "source",
    "network",
    "track",
    "rate",
    "length",
    "predictor",
    "depth",
    "role",
    "step",
    "shrink",
    "linear",
    "neither",
]
MOVEMENT = ["source", "network", "track", "rate", "length", "role", "difference", "size", "cosine"]
COST = ["source", "network", "track", "rate", "length", "weights", "theta_0_seconds", "arm", "trained", "seconds"]
COST += ["memory_mb"]
SEEN_BY_RELEASED = ("mnist", "fashion_mnist", "cifar10")
"""Datasets, whole or in part, that the authors' KNOWN was meta-trained on (their paper)."""
DAGGER = "\N{DAGGER}"
GROUPS = {
    "reference": "References",
    "known": "KNOWN",
    "prediction": "Direct weight prediction",
    "average": "Averages",
    "control": "Controls",
}


def index(results: Path, judged: Sequence[str], core: Container[str]) -> str:
    """The front page: what the claims come to, and every suite with the main rows of its headline table.

    judged: the lines on the claims. core: arms to show beside the references and those of KNOWN.
    """
    lines = [
        "# Results",
        "",
        "Made by `know report` from the run records beside each page; `know report --check` compares.",
        "",
        *judged,
        "",
        "What was compared, the controls and the intervals behind it: [CLAIMS.md](CLAIMS.md). What each arm costs:",
        "[COST.md](COST.md). Below, differences in points of target test accuracy, paired with naive fine-tuning, at",
        "each arm's tuned rate; the main rows only, all others on the page of each suite.",
        "",
    ]
    for folder in suites(results):
        suite, runs = load(folder)
        place = folder.relative_to(results).as_posix()
        shown = {arm["name"] for arm in suite["described"] if arm["group"] in ("reference", "known")}
        shown |= {arm["name"] for arm in suite["described"] if arm["name"] in core}
        lines += [f"## [{suite['title']}]({place}/README.md)", "", *_remarks(suite), ""]
        lines += [*_headline(suite, runs, folder, shown), ""]
    return "\n".join(lines).rstrip() + "\n"


def page(folder: Path) -> str:
    """README.md of one suite, from the files in `folder` alone."""
    suite, runs = load(folder)
    table = summarise(runs)
    n = int(table["n"].max())
    lines = [f"# {suite['title']}", "", *_remarks(suite), ""]
    lines += _missing(folder)
    lines += [
        f"Run it yourself: `make results SUITE={suite['name']}`. One row per fine-tune: [runs.csv](runs.csv); the",
        "learning-rate search: [pilots.csv](pilots.csv); settings: [suite.json](suite.json); where and when:",
        "[provenance.json](provenance.json); time and memory: [cost.csv](cost.csv),",
        "[by arm](cost_by_arm.csv).",
        "",
        "## At a glance",
        "",
        *_headline(suite, runs, folder),
        "",
        "## How to read the tables",
        "",
        *_reading(suite, n),
        "",
    ]
    for cell, rows in table.groupby("cell", sort=True):
        lines += [f"## {_cell_title(runs[runs['cell'] == cell].iloc[0])}", ""]
        unavailable = suite["unavailable"].get(cell, {})
        seen = _seen(suite, runs[runs["cell"] == cell])
        lines += [*_cell_table(rows, _order(suite), unavailable, seen), ""]
        lines += [*_gate_lines(gates(runs[runs["cell"] == cell], folder)), ""]
    lines += ["## What each arm is", "", *_described(suite), ""]
    lines += ["## What the steps are made of", "", *_steps(folder, suite), ""]
    lines += ["## Is there anything to extrapolate?", "", *_movement(folder), ""]
    lines += ["## Meta-training", "", *_metatraining(folder, suite), ""]
    lines += ["## Figures", ""]
    if lost(folder):
        return "\n".join([*lines, "Drawn when nothing is missing."]) + "\n"
    for name in suite["figures"]:
        lines += [f"![{name.replace('_', ' ')}](figures/{name}.png)", ""]
    return "\n".join(lines).rstrip() + "\n"


def load(folder: Path) -> tuple[dict, pd.DataFrame]:
    keys = {"described", "figures", "learnt_from", "name", "unavailable"}
    keys |= {name for name, setting in Suite.model_fields.items() if setting.is_required()}
    later = {name: setting.default for name, setting in Suite.model_fields.items() if name not in keys}
    suite = later | read_json(folder / "suite.json")  # of a run before there was such a setting
    if missing := sorted(keys - set(suite)):
        raise KnowError(f"{folder / 'suite.json'} lacks {', '.join(missing)}; it is damaged, restore it")
    return suite, read_records([folder / "runs.csv"], RunRecord)


def load_table(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise KnowError(f"{path} is no table ({error}); it is damaged, restore it") from error
    if missing := [column for column in columns if column not in table]:
        raise KnowError(f"{path} lacks the columns {', '.join(missing)}; it is damaged, restore it")
    return table


def suites(results: Path) -> list[Path]:
    found = sorted(path.parent for path in results.rglob("suite.json"))
    if not found:
        raise KnowError(f"{results} holds no results; run `make results` first")
    return found


def lost(folder: Path) -> dict[str, str]:
    """What an incomplete run has not made: job to reason."""
    if not (folder / "failed.csv").is_file():
        return {}
    return dict(load_table(folder / "failed.csv", ["job", "reason"])[["job", "reason"]].to_numpy())


def _missing(folder: Path) -> list[str]:
    jobs = lost(folder)
    lines = ["**Incomplete.** Missing, and why ([failed.csv](failed.csv)):", ""]
    lines += [f"- `{job}`: {reason}" for job, reason in jobs.items()]
    return [*lines, ""] if jobs else []


def _absent(folder: Path) -> dict[str, str]:
    """Cells without records: name to the head of their column."""
    cells = [job.removeprefix("transfer/") for job in lost(folder) if job.startswith("transfer/")]
    return {cell: cell.replace(".", "<br>") for cell in cells}


def _remarks(suite: dict) -> list[str]:
    lines = [] if suite["evidence"] else ["**Not evidence.**"]
    lines += suite["remarks"]
    if suite["trajectories"] < FEW:
        lines.append(f"Preliminary: fewer than {FEW} trajectories.")
    return [" ".join(lines)] if lines else []


def _reading(suite: dict, n: int) -> list[str]:
    grid = ", ".join(f"{rate:g}" for rate in suite["transfer"]["grid"])
    percent = f"{100 * CONFIDENCE:g} %"
    return [
        f"- The unit is the source trajectory (n = {n}); fine-tunes of one trajectory are averaged, not counted.",
        f"- Brackets: {percent} paired t interval over trajectories, n - 1 degrees of freedom. It speaks of new",
        "  trajectories on these datasets and this test set, not of other datasets.",
        "- *published*: every arm at the published learning rate "
        f"({suite['transfer']['recipe']['learning_rate']:g}). *tuned*: every arm at its own best of one grid",
        f"  ({grid}), chosen by mean validation accuracy over pilot trajectories ({suite['pilots']} here) that are",
        f"  never evaluated, then frozen. The grid may grow by {suite['transfer']['extensions']} points, for all arms;",
        "  a rate that is still on its edge has a *.",
        f"- Gap closed: mean(arm - naive) / mean(oracle - naive), {percent} Fieller interval; - where the interval of",
        "  oracle - naive does not lie above 0. The oracle stands for twice the data, so x4 and x8 may exceed 1.",
        "- Step: |weights - theta_0| / |theta_0|. Source: source test accuracy before fine-tuning; recalibrated:",
        "  with running statistics measured anew. Weight error: |weights - theta_{-1}| / |theta_0 - theta_{-1}|,",
        "  below 1 if the arm came nearer to the truth.",
        "- All contrasts here are exploratory; nothing is corrected for their number.",
    ]


def _order(suite: dict) -> dict[str, int]:
    return {arm["name"]: place for place, arm in enumerate(suite["described"])}


def _headline(suite: dict, runs: pd.DataFrame, folder: Path, shown: Container[str] | None = None) -> list[str]:
    """Tuned difference to naive: arms as rows, cells as columns; first row the accuracy of naive, last the gates.

    shown: the arms to show; by default all.
    """
    tuned = summarise(runs[runs["recipe"] == "tuned"])
    cells = sorted(tuned["cell"].unique())
    names = {cell: _column(rows.iloc[0]) for cell, rows in runs.groupby("cell")} | (absent := _absent(folder))
    at = tuned.set_index(["cell", "arm"])
    lines = [f"| arm | {' | '.join(names[cell] for cell in [*cells, *absent])} |"]
    lines += [f"|---|{'---:|' * (len(cells) + len(absent))}"]
    values = [f"{at.loc[(cell, 'naive'), 'accuracy']:.2f} %" for cell in cells] + ["missing"] * len(absent)
    lines.append(f"| naive | {' | '.join(values)} |")
    seen = {cell: _seen(suite, rows) for cell, rows in runs.groupby("cell")}

    def entry(cell: str, arm: str) -> str:
        if (cell, arm) in at.index:
            return _interval(at.loc[(cell, arm)]) + (f" {DAGGER}" if arm in seen[cell] else "")
        return "not available" if arm in suite["unavailable"].get(cell, {}) else ""

    for arm in (arm for arm in _order(suite) if arm != "naive" and (shown is None or arm in shown)):
        lines.append(f"| {arm} | {' | '.join([*(entry(cell, arm) for cell in cells), *('missing' for _ in absent)])} |")
    passed = [informative(gates(runs[runs["cell"] == cell], folder)) for cell in cells]
    said = ["passed" if ok else "uninformative" for ok in passed] + ["missing"] * len(absent)
    lines.append(f"| gates | {' | '.join(said)} |")
    there = set(at.index.get_level_values("arm")) & set(shown or at.index.get_level_values("arm"))
    return [*lines, *(["", SEEN_NOTE] if any(there & arms for arms in seen.values()) else [])]


SEEN_NOTE = (
    f"{DAGGER} In-distribution: the authors' KNOWN was meta-trained on MNIST, Fashion-MNIST and CIFAR-10; source or "
    "target is among them."
)


def in_distribution(arm: Mapping, cell: Mapping) -> bool:
    """Whether an arm (an entry of `described`) asks the authors' KNOWN about data that it was meta-trained on.

    cell: anything with source and target.
    """
    asked = "released" in (arm["predictor"], arm["options"].get("of"))
    names = [dataset.partition(":")[0] for dataset in (cell["source"], cell["target"])]
    return asked and any(name == seen or name.startswith(f"{seen}_") for name in names for seen in SEEN_BY_RELEASED)


def _seen(suite: dict, rows: pd.DataFrame) -> set[str]:
    """Arms of a cell, whose records are `rows`, that are in-distribution."""
    return {arm["name"] for arm in suite["described"] if in_distribution(arm, rows.iloc[0])}


def _cell_table(rows: pd.DataFrame, order: dict[str, int], unavailable: dict[str, str], seen: set[str]) -> list[str]:
    retrodiction = rows["weight_error"].notna().any()
    head = [
        "arm",
        "published",
        "difference",
        "tuned",
        "difference",
        "gap closed",
        "rate",
        "step",
        "source",
        "recalibrated",
    ]
    head += ["weight error"] if retrodiction else []
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    at = rows.set_index(["recipe", "arm"])
    for arm in sorted({*rows["arm"], *unavailable}, key=order.__getitem__):
        if arm in unavailable:
            lines.append(f"| {arm} | not available |{' |' * (len(head) - 2)}")
            continue
        published, tuned = at.loc[("published", arm)], at.loc[("tuned", arm)]
        share, *ends = (round(tuned[key], 2) + 0.0 for key in ("share", "share_low", "share_high"))
        entries = [
            f"{arm} {DAGGER}" if arm in seen else arm,
            _accuracy(published),
            "" if arm == "naive" else _interval(published),
            _accuracy(tuned),
            "" if arm == "naive" else _interval(tuned),
            "" if arm == "naive" else "-" if math.isnan(share) else f"{share:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]",
            f"{tuned['learning_rate']:g}{'*' if tuned['on_edge'] else ''}",
            _number(tuned["step"], 3),
            f"{tuned['source_accuracy']:.2f}",
            f"{tuned['source_accuracy_recalibrated']:.2f}",
        ]
        entries += [_number(tuned["weight_error"], 2)] if retrodiction else []
        lines.append(f"| {' | '.join(entries)} |")
    reasons: dict[str, list[str]] = {}
    for arm, reason in unavailable.items():
        reasons.setdefault(reason, []).append(f"`{arm}`")
    notes = [f"Not available: {', '.join(arms)}: {reason}." for reason, arms in reasons.items()]
    notes += [SEEN_NOTE] if seen & set(rows["arm"]) else []
    return [*lines, "", *notes] if notes else lines


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _described(suite: dict) -> list[str]:
    """One line per arm: what it is, and its reference. Depths of one predictor share theirs."""
    lines = []
    for group, heading in GROUPS.items():
        found: dict[tuple, list[str]] = {}
        for arm in (arm for arm in suite["described"] if arm["group"] == group):
            options = ", ".join(f"{key} = {value}" for key, value in sorted(arm["options"].items()))
            found.setdefault((arm["summary"], arm["reference"], options), []).append(f"`{arm['name']}`")
        if found:
            lines += [f"**{heading}**", ""]
        for (summary, reference, options), arms in found.items():
            lines.append(f"- {', '.join(arms)}: {summary} ({reference}{'; ' + options if options else ''})")
        lines += [""] if found else []
    return lines[:-1]


def _place(row: pd.Series) -> str:
    axes = f", r = {row['rate']:g}, S = {row['length']:g}"
    return f"{row['track']}, {row['source']}, {row['network']}{axes}"


def _steps(folder: Path, suite: dict) -> list[str]:
    if "inspect" in lost(folder):
        return ["Missing."]
    table = load_table(folder / "steps.csv", STEPS)
    lines = [
        "The step from theta_0 is a (-theta_0) + b (theta_0 - theta_1) + rest, tensor by tensor, the rest orthogonal",
        "to both. Shrink, linear and neither: the shares of |step|^2 (they add up to 1) along these three, over all",
        "predicted tensors; step: |step| / |theta_0|. Mean over trajectories. By role: [steps.csv](steps.csv).",
        "",
    ]
    shown = {"all": table[(table["role"] == "all") & table["depth"].isin([0, 1, 3])]}["all"]
    places = shown.groupby(["track", "source", "network", "rate", "length"], sort=True)
    heads = [_place(rows.iloc[0]) for _, rows in places]
    lines += [f"| predictor | depth | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    lines.append(f"| | | {' | '.join('step: shrink, linear, neither' for _ in heads)} |")
    parts = ["step", "shrink", "linear", "neither"]
    means = {
        head: rows.groupby(["predictor", "depth"])[parts].mean() for head, (_, rows) in zip(heads, places, strict=True)
    }
    for predictor, depth in sorted({key for found in means.values() for key in found.index}):
        entries = []
        for head in heads:
            if (predictor, depth) not in means[head].index:
                entries.append("")
                continue
            step, *shares = means[head].loc[(predictor, depth)]
            entries.append(f"{step:.3f}: {', '.join(f'{share + 0.0:.2f}' for share in shares)}")
        lines.append(f"| {predictor} | {depth or ''} | {' | '.join(entries)} |")
    return lines


def _movement(folder: Path) -> list[str]:
    if "inspect" in lost(folder):
        return ["Missing."]
    table = load_table(folder / "movement.csv", MOVEMENT)
    lines = [
        "Size of the differences theta_k - theta_{k+1} relative to theta_0 and, after it, the cosine with the",
        "difference before it in forgetting (1: straight on, 0: unrelated), over all predicted tensors. Mean over",
        "trajectories. By role: [movement.csv](movement.csv).",
        "",
    ]
    shown = table[table["role"] == "all"]
    count = int(shown["difference"].max()) + 1
    heads = [f"theta_{k} - theta_{k + 1}" for k in range(count)]
    lines += [f"| trajectories | {' | '.join(heads)} |", f"|---|{'---:|' * count}"]
    for _, rows in shown.groupby(["track", "source", "network", "rate", "length"], sort=True):
        means = rows.groupby("difference")[["size", "cosine"]].mean()
        entries = [
            ""
            if k not in means.index
            else f"{means.loc[k, 'size']:.3f}" + (f", {means.loc[k, 'cosine']:.2f}" if k else "")
            for k in range(count)
        ]
        lines.append(f"| {_place(rows.iloc[0])} | {' | '.join(entries)} |")
    return lines


def cost_page(results: Path) -> str:
    """COST.md: what every arm costs before fine-tuning, suite by suite, and every job of the suites that were run."""
    lines = [
        "# What it costs",
        "",
        "Before fine-tuning, which costs the same for every arm. *Training*: images shown, as a multiple of the run",
        "that made theta_0. *Prediction*: seconds on one thread with the snapshots in memory, the fastest of three,",
        "and per predicted weight; the authors give 2.67e-7 s per weight for their Keras code on their hardware.",
        "*Share*: of the time of theta_0's training. *Memory*: by how much the process grows meanwhile. Measured by",
        "`know cost` on random weights of the network's shapes, all in one process, on a machine as in the suite's",
        "provenance.json.",
    ]
    for folder in suites(results):
        suite, place = read_json(folder / "suite.json"), folder.relative_to(results).as_posix()
        lines += ["", f"## [{suite['title']}]({place}/README.md)", ""]
        if (folder / "cost_by_arm.csv").is_file():
            table = load_table(folder / "cost_by_arm.csv", COST)
            for _, rows in table.groupby(["source", "network", "track", "rate", "length"], sort=True):
                lines += [*_cost_of_arms(rows, _order(suite)), ""]
        lines += _cost_of_jobs(folder)
    return "\n".join(lines).rstrip() + "\n"


def _cost_of_arms(rows: pd.DataFrame, order: Mapping[str, int]) -> list[str]:
    first = rows.iloc[0]
    lines = [
        f"{_place(first)}: {first['weights']:,} predicted weights; training theta_0 takes "
        f"{first['theta_0_seconds']:.0f} s on one thread.",
        "",
        "| arm | training | prediction, s | per weight, s | share | memory, MiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for _, row in rows.sort_values("arm", key=lambda arms: arms.map(order)).iterrows():
        seconds = [row["seconds"], row["seconds"] / row["weights"], row["seconds"] / row["theta_0_seconds"]]
        entries = (
            ["", "", ""]
            if not row["seconds"]
            else [f"{seconds[0]:.2g}", f"{seconds[1]:.1e}", f"{100 * seconds[2]:.2g} %"]
        )
        memory = "" if not row["memory_mb"] or math.isnan(row["memory_mb"]) else f"{row['memory_mb']:.1f}"
        lines.append(f"| {row['arm']} | {row['trained']:.2f} | {' | '.join(entries)} | {memory} |")
    return lines


def _cost_of_jobs(folder: Path) -> list[str]:
    if not (folder / "cost.csv").is_file():
        return []
    jobs = load_table(folder / "cost.csv", ["job", "seconds", "cpu_seconds", "peak_memory_mb"])
    if jobs.empty:
        return []
    lines = [
        f"The whole run: {jobs['cpu_seconds'].sum() / 60:.0f} minutes of processor time in {len(jobs)} jobs, at most "
        f"{jobs['peak_memory_mb'].max() / 1024:.1f} GiB in one.",
        "",
        "| job | minutes | processor minutes | peak memory, GiB |",
        "|---|---:|---:|---:|",
    ]
    for _, job in jobs.iterrows():
        numbers = job["seconds"] / 60, job["cpu_seconds"] / 60, job["peak_memory_mb"] / 1024
        lines.append(f"| {job['job']} | {numbers[0]:.1f} | {numbers[1]:.1f} | {numbers[2]:.1f} |")
    return lines


def gates(runs: pd.DataFrame, folder: Path) -> dict[str, Interval]:
    """What must hold for a cell to say anything, in points at tuned rates: each interval has to lie above 0.

    runs: the records of one cell. folder: of the published suite, for the snapshots' accuracies.
    """
    means = 100 * trajectory_means(runs[runs["recipe"] == "tuned"])
    found = {}
    for better, worse in (("oracle", "naive"), ("naive", "scratch")):
        if better in means and worse in means:
            found[f"{better} > {worse}"] = paired_t(compare(means, better, worse))
    first = runs.iloc[0]
    snapshots = load_table(folder / "trajectories.csv", SNAPSHOT_COLUMNS)
    own = snapshots[snapshots["trajectory"].isin(set(runs["trajectory"]))]
    for column in ("source", "network", "rate", "track"):
        own = own[own[column] == first[column]]
    last = own[own["snapshot"] == first["length"] - 1]
    lost = 100 * (last["left_out_accuracy_theta_0"] - last["left_out_accuracy"])
    found["forgetting: theta_0 > last snapshot on the images left out"] = paired_t(lost.to_numpy())
    return found


def informative(found: dict[str, Interval]) -> bool:
    """Whether all `gates` of a cell are passed."""
    return all(gate.low > 0 for gate in found.values())


def _gate_lines(found: dict[str, Interval]) -> list[str]:
    lines = ["Gates (tuned rates, in points; a cell that fails one is uninformative and enters no verdict):", ""]
    for name, gate in found.items():
        passed = "passed" if gate.low > 0 else "failed"
        lines.append(f"- {name}: {signed(gate)}, {passed}")
    return lines if informative(found) else [*lines, "", "This cell is **uninformative**."]


def _metatraining(folder: Path, suite: dict) -> list[str]:
    errors = load_table(folder / "held_out.csv", ["length", *HELD_OUT])
    closed = load_table(folder / "meta_linear.csv", ["length", *COEFFICIENTS])
    origin = f"shipped, group `{suite['known']}`" if suite["known"] else "of this suite"
    lines = [
        f"Networks: {origin}, meta-trained on {', '.join(suite['learnt_from'])}. Mean absolute error of the predicted",
        "weight as a share of that of no change (predicting theta_0), on trajectories that neither trained nor chose a",
        f"network: ratio of the means over trajectories, each counting once, with its {100 * CONFIDENCE:g} % Fieller",
        "interval. Step: |step| / |theta_0| of KNOWN, mean.",
        "",
    ]
    models = {"known": "KNOWN", "scaled": "scaled KNOWN", "meta_linear": "meta-linear"}
    models |= {"meta_linear_theta0": "with theta_0"}
    if "shipped" in set(errors["model"]):
        models["shipped"] = f"KNOWN that ships, group `{suite['metatraining']['beside']}`"
    lines += [
        f"| S | role | n | {' | '.join(models.values())} | linear step | step |",
        f"|---|---|{'---:|' * (len(models) + 3)}",
    ]
    for (length, role), rows in errors.groupby(["length", "role"], sort=False):
        at = {model: own.set_index("run") for model, own in rows.groupby("model")}
        still, own = at["known"]["no_change_loss"], at["known"]
        ratios = [_ratio(at[model]["loss"], still) for model in models] + [_ratio(own["linear_loss"], still)]
        step = own["step"].mean()
        said = f"{step:.2g}{' (no prediction)' if step < STILL else ''}"
        lines.append(f"| {length} | {role} | {len(own)} | {' | '.join(ratios)} | {said} |")
    lines += [
        "",
        "Meta-linear: the coefficients of the step, differences oldest first (1: a whole difference more).",
        "",
        "| S | role | differences | with theta_0: differences | theta_0 |",
        "|---|---|---|---|---:|",
    ]
    for (length, role), rows in closed.groupby(["length", "role"], sort=False):
        plain, full = (rows[rows["model"] == model] for model in ("meta_linear", "meta_linear_theta0"))
        texts = [
            ", ".join(f"{value + 0.0:.2f}" for value in part[part["term"].str.startswith("difference")]["value"])
            for part in (plain, full)
        ]
        own = full[full["term"] == "theta_0"]["value"].iloc[0]
        lines.append(f"| {length} | {role} | {texts[0]} | {texts[1]} | {own + 0.0:.3f} |")
    return lines


def _ratio(a: pd.Series, b: pd.Series) -> str:
    found = fieller(a.to_numpy(), b.to_numpy())
    mean = a.mean() / b.mean() if b.mean() else math.nan
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]" if found else f"{mean:.3f}"


def _accuracy(row: pd.Series) -> str:
    return f"{row['accuracy']:.2f}" + (f" ({row['failed']} diverged)" if row["failed"] else "")


def _interval(row: pd.Series) -> str:
    return signed(Interval(row["difference"], row["low"], row["high"], row["n"]))


def signed(interval: Interval) -> str:
    """A difference in points with its interval; no minus sign before a rounded zero."""
    mean, low, high = (round(value, 2) + 0.0 for value in (interval.mean, interval.low, interval.high))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def axes_of(row: pd.Series) -> str:
    """What a cell's name says of r and S: nothing where they are the paper's."""
    axes = [f"r = {row['rate']:g}"] if row["rate"] != RATIO else []
    return "".join(f", {axis}" for axis in [*axes, *([f"S = {row['length']}"] if row["length"] != LENGTH else [])])


def _cell_title(row: pd.Series) -> str:
    place = f"{row['track']}: {row['source']} to {row['target']}, {row['network']}{axes_of(row)}"
    return f"{place}, {100 * row['share']:g} % of the target"


def _column(row: pd.Series) -> str:
    place = f"{row['track']}<br>{row['source']} to {row['target']}"
    return f"{place}<br>{row['network']}{axes_of(row)}, {100 * row['share']:g} %"
