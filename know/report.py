"""Tables and pages from the run records alone: no torch, no data, nothing typed by hand.

`results/<suite>/` holds the records of a run (runs.csv and its companions), `README.md` made from them, and figures
made by the scripts in paper_figures/. `provenance.json` and `cost.csv` say where and at what price; they alone differ
between two runs of the same code on one machine.
"""

from __future__ import annotations

import ast
import importlib.metadata
import math
import platform
import subprocess
from pathlib import Path

import pandas as pd

from know.errors import KnowError
from know.files import PACKAGE, atomic, digest, read_json, sha256_file, write_csv, write_json, write_text
from know.records import PilotRecord, RunRecord, read_records
from know.statistics import CONFIDENCE, FEW, Interval, compare, paired_t, summarise, trajectory_means
from know.suite import Suite

SNAPSHOT_COLUMNS = [
    *("source", "network", "track", "trajectory", "snapshot", "fraction", "images"),
    *("test_accuracy", "left_out_accuracy", "left_out_accuracy_theta_0"),
]
HISTORY = ["role", "update", "held_out_loss", "no_change_loss", "linear_loss"]
FIGURES = PACKAGE.parent / "paper_figures"
UNVERSIONED = ("provenance.json", "cost.csv")
REFERENCES = {
    "naive": "theta_0 itself, fine-tuned as always.",
    "scratch": "The source network's own random initialisation, never trained on the source.",
    "oracle": "Really trained on twice the source data: same initialisation and epochs, hence twice the steps.",
    "oracle_steps": "Really trained on twice the source data, with as many steps as theta_0.",
}
ORACLE_RETRODICTION = "On the retrodiction track the oracle is theta_{-1}, from which theta_0 was made."


def publish(settings: Suite, name: str, work: Path, results: Path) -> None:
    """Gather a finished run from `work` into `<results>/<name>/`, write its page and the index of all suites."""
    folder = results / name
    cells = [work / "transfers" / cell.slug for cell in settings.cells]
    runs = read_records([cell / "runs.csv" for cell in cells], RunRecord)
    read_records([cell / "pilots.csv" for cell in cells], PilotRecord)
    for table in ("runs", "pilots"):
        _concatenate([cell / f"{table}.csv" for cell in cells], folder / f"{table}.csv")
    write_csv(folder / "trajectories.csv", _snapshots(settings, work), SNAPSHOT_COLUMNS)
    _copy(work / "known" / "history.csv", folder / "metatraining.csv")
    _copy(work / "landscape.csv", folder / "landscape.csv")
    described = {arm: _describe(arm, predictor) for arm, predictor in zip(runs["arm"], runs["predictor"], strict=True)}
    figures = sorted(path.stem for path in FIGURES.glob("[!_]*.py") if path.stem != "style")
    about = {"name": name, "described": described, "figures": figures}
    write_json(folder / "suite.json", {**settings.model_dump(mode="json"), **about})
    write_json(folder / "metrics.json", metrics(runs))
    write_text(folder / "README.md", page(folder))
    write_json(folder / "provenance.json", provenance())
    _write_cost(work, folder)
    write_text(results / "README.md", index(results))
    declared = [work / "known" / "known.safetensors", work / "known" / "history.csv", work / "landscape.csv"]
    declared += [work / "trajectories" / origin.slug / "manifest.json" for origin in settings.origins]
    declared += [work / "metaset" / str(shard) / "manifest.json" for shard in range(settings.metatraining.shards)]
    declared += [cell / file for cell in cells for file in ("runs.csv", "pilots.csv", "choice.json")]
    published = sorted(path for path in folder.glob("*.*") if path.name not in UNVERSIONED)
    hashes = {
        "results": {path.name: sha256_file(path) for path in published},
        "work": {path.relative_to(work).as_posix(): sha256_file(path) for path in declared},
    }
    write_json(work / "published.json", hashes)


def check(results: Path) -> list[str]:
    """Names of all pages, each of which equals what its records give; KnowError names the first that does not."""
    found = []
    for folder in _suites(results):
        _compare_page(folder / "README.md", page(folder))
        if read_json(folder / "metrics.json") != metrics(_load(folder)[1]):
            raise KnowError(f"{folder / 'metrics.json'} does not fit its records; publish the suite again")
        found.append(str(folder / "README.md"))
    _compare_page(results / "README.md", index(results))
    return [*found, str(results / "README.md")]


def write_pages(results: Path) -> None:
    """Write the page of every published suite and the index anew, from the records beside them."""
    for folder in _suites(results):
        write_text(folder / "README.md", page(folder))
    write_text(results / "README.md", index(results))


def index(results: Path) -> str:
    """The front page: every suite with its headline table."""
    lines = [
        "# Results",
        "",
        "Made by `know report` from the run records beside each page; `know report --check` compares.",
        "Differences are in points of target test accuracy, paired with naive fine-tuning, at each arm's tuned rate.",
        "",
    ]
    for folder in _suites(results):
        suite, runs = _load(folder)
        lines += [f"## [{suite['title']}]({folder.name}/README.md)", "", *_remarks(suite), ""]
        lines += [*_headline(runs, folder), ""]
    return "\n".join(lines).rstrip() + "\n"


def page(folder: Path) -> str:
    """README.md of one suite, from the files in `folder` alone."""
    suite, runs = _load(folder)
    table = summarise(runs)
    n = int(table["n"].max())
    lines = [f"# {suite['title']}", "", *_remarks(suite), ""]
    lines += [
        f"Run it yourself: `make results SUITE={suite['name']}`. One row per fine-tune: [runs.csv](runs.csv); the",
        "learning-rate search: [pilots.csv](pilots.csv); settings: [suite.json](suite.json); where and when:",
        "[provenance.json](provenance.json); time and memory: [cost.csv](cost.csv).",
        "",
        "## At a glance",
        "",
        *_headline(runs, folder),
        "",
        "## How to read the tables",
        "",
        *_reading(suite, n),
        "",
    ]
    for cell, rows in table.groupby("cell", sort=True):
        lines += [f"## {_cell_title(runs[runs['cell'] == cell].iloc[0])}", ""]
        lines += [*_cell_table(rows), "", *_gate_lines(gates(runs[runs["cell"] == cell], folder)), ""]
    lines += ["## What each arm is", ""]
    described: dict[str, list[str]] = {}
    for arm in sorted(suite["described"], key=_arm_order):
        described.setdefault(suite["described"][arm], []).append(f"`{arm}`")
    lines += [f"- {', '.join(arms)}: {text}" for text, arms in described.items()]
    if "retrodiction" in set(runs["track"]):
        lines += ["", ORACLE_RETRODICTION]
    lines += ["", "## Meta-training", "", *_metatraining(folder), ""]
    lines += ["## Figures", ""]
    for name in suite["figures"]:
        lines += [f"![{name.replace('_', ' ')}](figures/{name}.png)", ""]
    return "\n".join(lines).rstrip() + "\n"


def provenance() -> dict:
    """Commit and environment of this process; `environment` decides whether `know verify` demands equal bytes."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    outputs = (":!results", ":!dvc.lock")  # what a run itself rewrites is no change of the code
    packages = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "matplotlib", "safetensors", "scikit-learn")
    return {
        "commit": git("rev-parse", "HEAD") or "unknown",
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no", "--", ".", *outputs)),
        "environment": {
            "processor": _processor(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in pairs}
    fields = ("model name", "cpu family", "model", "stepping", "cache size")
    named = [f"{key} {facts[key]}" for key in fields if key in facts]
    # the instruction sets decide which kernels run, and a virtual machine may hide some of them
    return ", ".join([*named, f"flags {digest(sorted(facts.get('flags', '').split()))}"])


def _load(folder: Path) -> tuple[dict, pd.DataFrame]:
    suite = read_json(folder / "suite.json")
    if missing := sorted({"described", "figures", "name", *Suite.model_fields} - set(suite)):
        raise KnowError(f"{folder / 'suite.json'} lacks {', '.join(missing)}; it is damaged, restore it")
    return suite, read_records([folder / "runs.csv"], RunRecord)


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise KnowError(f"{path} is no table ({error}); it is damaged, restore it") from error
    if missing := [column for column in columns if column not in table]:
        raise KnowError(f"{path} lacks the columns {', '.join(missing)}; it is damaged, restore it")
    return table


def _suites(results: Path) -> list[Path]:
    found = sorted(path.parent for path in results.glob("*/suite.json"))
    if not found:
        raise KnowError(f"{results} holds no results; run `make results` first")
    return found


def _compare_page(path: Path, expected: str) -> None:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text != expected:
        pairs = zip(text.splitlines(), expected.splitlines(), strict=False)
        line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), "the end")
        raise KnowError(f"{path} does not fit its records (line {line}); write it anew with `know report`")


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
        "  oracle - naive includes 0. The oracle stands for twice the data, so x4 and x8 may exceed 1.",
        "- Step: |weights - theta_0| / |theta_0|. Source: source test accuracy before fine-tuning. Weight error:",
        "  |weights - theta_{-1}| / |theta_0 - theta_{-1}|, below 1 if the arm came nearer to the truth.",
        "- All contrasts here are exploratory; nothing is corrected for their number.",
    ]


def _headline(runs: pd.DataFrame, folder: Path) -> list[str]:
    """Tuned difference to naive: arms as rows, cells as columns; first row the accuracy of naive, last the gates."""
    tuned = summarise(runs[runs["recipe"] == "tuned"])
    cells = sorted(tuned["cell"].unique())
    names = {cell: _column(rows.iloc[0]) for cell, rows in runs.groupby("cell")}
    at = tuned.set_index(["cell", "arm"])
    lines = [f"| arm | {' | '.join(names[cell] for cell in cells)} |", f"|---|{'---:|' * len(cells)}"]
    values = [f"{at.loc[(cell, 'naive'), 'accuracy']:.2f} %" for cell in cells]
    lines.append(f"| naive | {' | '.join(values)} |")
    for arm in sorted(set(tuned["arm"]) - {"naive"}, key=_arm_order):
        entries = [_interval(at.loc[(cell, arm)]) if (cell, arm) in at.index else "" for cell in cells]
        lines.append(f"| {arm} | {' | '.join(entries)} |")
    passed = [informative(gates(runs[runs["cell"] == cell], folder)) for cell in cells]
    lines.append(f"| gates | {' | '.join('passed' if ok else 'uninformative' for ok in passed)} |")
    return lines


def _cell_table(rows: pd.DataFrame) -> list[str]:
    retrodiction = rows["weight_error"].notna().any()
    head = ["arm", "published", "difference", "tuned", "difference", "gap closed", "rate", "step", "source"]
    head += ["weight error"] if retrodiction else []
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    at = rows.set_index(["recipe", "arm"])
    for arm in sorted(rows["arm"].unique(), key=_arm_order):
        published, tuned = at.loc[("published", arm)], at.loc[("tuned", arm)]
        share, *ends = (round(tuned[key], 2) + 0.0 for key in ("share", "share_low", "share_high"))
        entries = [
            arm,
            _accuracy(published),
            "" if arm == "naive" else _interval(published),
            _accuracy(tuned),
            "" if arm == "naive" else _interval(tuned),
            "" if arm == "naive" else "-" if math.isnan(share) else f"{share:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]",
            f"{tuned['learning_rate']:g}{'*' if tuned['on_edge'] else ''}",
            f"{tuned['step']:.3f}",
            f"{tuned['source_accuracy']:.2f}",
        ]
        entries += [f"{tuned['weight_error']:.2f}"] if retrodiction else []
        lines.append(f"| {' | '.join(entries)} |")
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
    snapshots = _table(folder / "trajectories.csv", SNAPSHOT_COLUMNS)
    own = snapshots[snapshots["trajectory"].isin(set(runs["trajectory"]))]
    for column in ("source", "network", "track"):
        own = own[own[column] == first[column]]
    last = own[own["snapshot"] == own["snapshot"].max()]
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
        lines.append(f"- {name}: {_signed(gate.mean, gate.low, gate.high)}, {passed}")
    return lines if informative(found) else [*lines, "", "This cell is **uninformative**."]


def _metatraining(folder: Path) -> list[str]:
    history = _table(folder / "metatraining.csv", HISTORY)
    lines = [
        "Mean absolute error of the predicted weight on held-out trajectories, at the best update.",
        "",
        "| role | KNOWN | no change | linear step | updates |",
        "|---|---:|---:|---:|---:|",
    ]
    for role, rows in history.groupby("role", sort=False):
        best = rows.loc[rows["held_out_loss"].idxmin()]
        losses = " | ".join(f"{best[key]:.3g}" for key in ("held_out_loss", "no_change_loss", "linear_loss"))
        lines.append(f"| {role} | {losses} | {best['update']} |")
    return lines


def _arm_order(arm: str) -> tuple:
    """References in their fixed order, then predictors by name and depth."""
    if arm in REFERENCES:
        return 0, list(REFERENCES).index(arm), "", 0.0
    name, _, factor = arm.rpartition("_x")
    return 1, 0, name, float(factor)


def _accuracy(row: pd.Series) -> str:
    return f"{row['accuracy']:.2f}" + (f" ({row['failed']} diverged)" if row["failed"] else "")


def _interval(row: pd.Series) -> str:
    return _signed(row["difference"], row["low"], row["high"])


def _signed(mean: float, low: float, high: float) -> str:
    """A difference in points with its interval; no minus sign before a rounded zero."""
    mean, low, high = (round(value, 2) + 0.0 for value in (mean, low, high))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _cell_title(row: pd.Series) -> str:
    return (
        f"{row['track']}: {row['source']} to {row['target']}, {row['network']}, {100 * row['share']:g} % of the target"
    )


def _column(row: pd.Series) -> str:
    return f"{row['track']}<br>{row['source']} to {row['target']}<br>{row['network']}, {100 * row['share']:g} %"


def _describe(arm: str, predictor: str) -> str:
    """One line on an arm: of a predictor the first line of its docstring, read without importing it."""
    if not predictor:
        return REFERENCES[arm]
    tree = ast.parse((PACKAGE / "predictors" / f"{predictor}.py").read_text(encoding="utf-8"))
    documented = [ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef)]
    return next(text for text in documented if text).splitlines()[0]


def metrics(runs: pd.DataFrame) -> dict:
    """Mean accuracy in percent by cell, arm and recipe, for `dvc metrics`."""
    found: dict = {}
    for row in summarise(runs).to_dict("records"):
        found.setdefault(row["cell"], {}).setdefault(row["arm"], {})[row["recipe"]] = round(row["accuracy"], 4)
    return found


def _snapshots(settings: Suite, work: Path) -> list[dict]:
    rows = []
    for origin in settings.origins:
        for trajectory in settings.trajectory_ids:
            for track in settings.tracks:
                manifest = read_json(work / "trajectories" / origin.slug / trajectory / track / "manifest.json")
                for k, snapshot in enumerate(reversed(manifest["snapshots"])):
                    facts = {column: snapshot.get(column, "") for column in SNAPSHOT_COLUMNS[5:]}
                    place = {"source": origin.source, "network": origin.network, "track": track}
                    rows.append({**place, "trajectory": trajectory, "snapshot": k, **facts})
    return rows


def _concatenate(parts: list[Path], out: Path) -> None:
    texts = [part.read_text(encoding="utf-8").splitlines(keepends=True) for part in parts]
    write_text(out, "".join([texts[0][0], *(line for text in texts for line in text[1:])]))


def _copy(source: Path, out: Path) -> None:
    with atomic(out) as temporary:
        temporary.write_bytes(source.read_bytes())


def _write_cost(work: Path, folder: Path) -> None:
    """Time and memory of every job, from the workflow's own benchmark files (absent where a step was run by hand)."""
    columns = ["job", "seconds", "cpu_seconds", "peak_memory_mb"]
    rows = []
    for path in sorted((work / "benchmarks").rglob("*.tsv")):
        entry = pd.read_csv(path, sep="\t").iloc[-1]
        job = path.relative_to(work / "benchmarks").with_suffix("").as_posix()
        rows.append(dict(zip(columns, (job, entry["s"], entry["cpu_time"], entry["max_rss"]), strict=True)))
    write_csv(folder / "cost.csv", rows, columns)
