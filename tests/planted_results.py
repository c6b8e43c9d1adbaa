"""A results folder with numbers known in advance, so that pages and figures can be checked by hand.

At the tuned rate naive has 80, 82, 84, ... % on the trajectories t0, t1, t2, ..., and `GAINS` adds to this for each
arm. At the published rate naive has 10 points less, and every gain is 1 point less.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks.__main__ import app
from benchmarks.records import PilotRecord, RunRecord, read_records, write_records
from benchmarks.references import REFERENCES
from benchmarks.report.folders import GROUPS, SNAPSHOT_COLUMNS, load
from benchmarks.report.publish import metrics
from benchmarks.report.render import suite_page
from benchmarks.settings import Cell, MetaTraining
from benchmarks.suite import load_suite
from know.cli import main_of
from know.files import write_csv, write_json, write_text

TINY = Path(__file__).parent / "suites" / "tiny.yaml"
FOLDER = TINY.parents[2] / "benchmarks" / "suites"
SUITES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
"""Names of the suites that ship."""
SETTINGS = load_suite(str(TINY)).model_dump(mode="json")
MLP = Cell("overflow", "digits:0-4", "digits:5-9", "mlp", 1.0)
CNN = Cell("retrodiction", "digits:0-4", "digits:5-9", "plaincnn", 0.5)

GAINS = {  # points above naive, by trajectory
    "naive": (0, 0, 0, 0, 0),
    "scratch": (-5, -6, -7, -6, -5),
    "oracle": (4, 6, 5, 5, 5),
    "known_x2": (1, 3, 2, 2, 2),
    "known_x4": (2, 2, 2, 2, 2),
    "linear_x2": (-1, 1, 0, 0, 0),
    "rre": (0, 1, -1, 0, 1),
    "mean": (1, 0, 0, 1, 0),
    "shrink_x2": (0, 1, 1, 0, 1),
}
FORGOTTEN = (4, 6, 5, 5, 5)
"""Points that every snapshot has lost on the left-out images, by trajectory."""
OTHERS = {"known": "known", "mean": "average", "tail_average": "average", "ema": "average"}
OTHERS |= dict.fromkeys(("compute_matched", "random_step", "reset", "shrink", "trajectory_part"), "control")
"""Groups of those lines of arms that are neither references nor predictions."""
FIGURES = sorted({path.stem for path in (TINY.parents[2] / "paper_figures").glob("[!_]*.py")})
PLACE = ["source", "network", "track", "rate", "length", "trajectory"]
STEPS = [*PLACE, "predictor", "depth", "role", "weights", "step", "shrink", "linear", "neither"]
MOVEMENT = [*PLACE, "role", "difference", "size", "cosine"]
PLACEBO = [*PLACE, "role", "snapshot", "moved", "placebo_moved", "apart", "cosine", "placebo_cosine"]


def meta_settings(**changes) -> MetaTraining:
    """A meta-training of seconds, in which every setting may be changed."""
    plain = {
        "datasets": ["digits:0-4"],
        "networks": ["plaincnn"],
        "trajectories": 4,
        "held_out": 0.25,
        "images": 300,
        "smallest": 16,
        "pretraining_epochs": (1, 3),
        "batch_size": 16,
        "updates": 30,
        "evaluations": 3,
        "windows": 100,
        "window_batch": 64,
    }
    return MetaTraining(**{**plain, **changes})


def run(*arguments: object) -> int:
    """Run `python -m benchmarks` in this process; the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["benchmarks", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main_of(app, "python -m benchmarks")
    return end.value.code or 0


def record(cell: Cell = MLP, arm: str = "naive", trajectory: str = "t0", policy: str = "tuned", **changed) -> RunRecord:
    """A valid row, in which every column may be changed."""
    line, depth = parse(arm)
    facts = {
        "predictor": "" if arm in REFERENCES else line,
        "depth": depth,
        "fine_tune": 0,
        "learning_rate": 4e-4 if policy == "short" else 1.6e-3,
        "on_edge": False,
        "status": "ok",
        "accuracy": 0.8,
        "source_accuracy": 0.9,
        "source_accuracy_recalibrated": 0.92,
        "step": 0.0 if arm == "naive" else 0.25,
        "weight_error": 1.0 if cell.track == "retrodiction" else None,
        "source_seed": 1,
        "target_seed": 2,
        "source_data": "a" * 64,
        "target_data": "a" * 64,
        "code": "c0de",
    }
    place = {key: getattr(cell, key) for key in ("track", "source", "target", "network", "share", "length")}
    place["rate"] = cell.ratio
    names = {"cell": cell.slug, "arm": arm, "trajectory": trajectory, "policy": policy}
    return RunRecord(**{**place, **names, **facts, **changed})


def parse(arm: str) -> tuple[str, int]:
    """Line and depth of an arm at r = 0.5: `known_x4` is `known` at depth 2, and `rre_global` has no depth."""
    if arm in REFERENCES:
        return arm, 0
    line, _, factor = arm.rpartition("_x")
    return (line, int(factor).bit_length() - 1) if line and factor.isdigit() else (arm, 0)


def described_as(arm: str, group: str | None = None) -> dict:
    """The entry of an arm in suite.json. By default its group is that in `OTHERS`, else reference or prediction."""
    line, depth = parse(arm)
    reference = arm in REFERENCES
    return {
        "name": arm,
        "summary": f"The arm {line}.",
        "reference": "for the tests",
        "group": group or OTHERS.get(line, "reference" if reference else "prediction"),
        "predictor": "" if reference else line,
        "depth": depth,
        "options": {},
        "normalisation": "carry",
    }


SHORT = {"naive": -10.0}
"""Points that an arm has less at the paper's rate; others than naive have 11 less."""


def records(
    cell: Cell = MLP,
    gains: Mapping[str, Sequence[float]] = GAINS,
    trajectories: int = 3,
    shift: Mapping[str, float] | None = None,
) -> list[RunRecord]:
    """Rows for two rate policies of every arm on the trajectories t0, t1, ...

    shift: points by arm that are added at the paper's rate, 0 for others; by default as `SHORT` says.
    """
    found = []
    for (arm, points), k, policy in itertools.product(gains.items(), range(trajectories), ("short", "tuned")):
        less = SHORT.get(arm, -11.0) if shift is None else shift.get(arm, 0.0)
        percent = 80 + 2 * k + points[k] + (less if policy == "short" else 0)
        found.append(record(cell, arm, f"t{k}", policy, accuracy=percent / 100))
    return found


def write_results(
    folder: Path,
    runs: Iterable[RunRecord],
    *,
    forgotten: Mapping[str, Sequence[float]] | None = None,
    described: Sequence[dict] | None = None,
    unavailable: Mapping[str, Mapping[str, str]] | None = None,
    with_page: bool = True,
    everywhere: bool = False,
    **suite,
) -> Path:
    """Write everything that a published suite has in its folder, except the figures.

    forgotten: points lost by trajectory for each network that does not use `FORGOTTEN`. everywhere: whether test images
    lose as much as those left out. described: entries of arms, by default those in runs. unavailable: reasons by cell
    and arm. with_page: whether to write README.md and metrics.json, which takes longer than the rest. suite: other keys
    of suite.json.
    """
    runs = list(runs)
    arms = sorted({run.arm for run in runs})
    trajectories = sorted({run.trajectory for run in runs})
    settings = {**SETTINGS, "name": folder.name, "trajectories": len(trajectories)}
    about = described or sorted(map(described_as, arms), key=lambda arm: list(GROUPS).index(arm["group"]))
    facts = {"described": about, "unavailable": unavailable or {}, "figures": FIGURES}
    facts["learnt_from"] = ["digits"]
    write_json(folder / "suite.json", {**settings, **suite, **facts})
    write_records(folder / "runs.csv", runs, RunRecord)
    write_records(folder / "pilots.csv", _pilots({run.cell for run in runs}, arms, settings), PilotRecord)
    places = sorted({(run.source, run.network, run.track, run.rate, run.length) for run in runs})
    rows = [row for place in places for row in _snapshots(*place, trajectories, (forgotten or {}), everywhere)]
    write_csv(folder / "trajectories.csv", rows, SNAPSHOT_COLUMNS)
    own = [dict(zip(PLACE, (*place, t), strict=True)) for place, t in itertools.product(places, trajectories)]
    lines = list(dict.fromkeys((parse(arm["name"])[0], arm["depth"] > 0) for arm in about if arm["predictor"]))
    write_csv(folder / "steps.csv", [{**at, **row} for at in own for row in _steps(lines, at["trajectory"])], STEPS)
    write_csv(folder / "movement.csv", [{**at, **row} for at in own for row in _movement(at["length"])], MOVEMENT)
    write_csv(folder / "placebo.csv", [{**at, **row} for at in own for row in _placebo(at["length"])], PLACEBO)
    for length in {length for *_, length in places}:
        write_text(folder / "known" / str(length) / "README.md", "The card of KNOWN.\n")
    write_csv(folder / "landscape.csv", _landscape(), ["kind", "label", "x", "y", "loss"])
    if with_page:
        write_json(folder / "metrics.json", metrics(read_records([folder / "runs.csv"], RunRecord)))
        write_text(folder / "README.md", suite_page(load(folder)))
    return folder


def table_row(text: str, arm: str) -> list[str]:
    """Entries of the last row of `arm` in a page's tables (in the table of the cell, if the page has one cell)."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith(f"| {arm} |")]
    return [entry.strip() for entry in rows[-1]]


def change_csv(path: Path, row: int, **values: object) -> None:
    """Change values in one row of a csv file; rows are counted from 0."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    rows[row] |= values
    write_csv(path, rows, list(rows[0]))


def _pilots(cells: set[str], arms: list[str], settings: dict) -> list[PilotRecord]:
    """Pilots whose validation accuracy has its peak at 1.6e-3; the peak is 80 % or a little less, by arm."""
    rates = settings["transfer"]["grid"]
    peak = {rate: 0.8 - 0.05 * abs(k - 2) for k, rate in enumerate(rates)}
    fixed = {"trajectory": "p0", "fine_tune": 0, "status": "ok", "validation_loss": 0.5}
    shifts = {arm: round(0.1 * k / len(arms), 6) for k, arm in enumerate(arms)}
    return [
        PilotRecord(
            cell=cell, arm=arm, learning_rate=rate, validation_accuracy=round(peak[rate] - shifts[arm], 6), **fixed
        )
        for cell, arm, rate in itertools.product(sorted(cells), arms, rates)
    ]


def _snapshots(
    source: str,
    network: str,
    track: str,
    rate: float,
    length: int,
    trajectories: list[str],
    forgotten: Mapping,
    everywhere: bool,
) -> list[dict]:
    lost, rows = forgotten.get(network, FORGOTTEN), []
    place = {"source": source, "network": network, "rate": rate, "track": track}
    for trajectory, k in itertools.product(["p0", *trajectories], range(length)):
        after = 0.9 - (lost[int(trajectory[1:])] / 100 if k else 0)
        left_out = {"left_out_accuracy": f"{after:.6f}", "left_out_accuracy_theta_0": 0.9} if k else {}
        facts = {
            "snapshot": k,
            "fraction": rate**k,
            "images": int(320 * rate**k),
            "test_accuracy": after if everywhere else 0.9,
        }
        facts |= left_out
        rows.append({**place, "trajectory": trajectory, **facts})
    return rows


def _steps(lines: Iterable[tuple[str, bool]], trajectory: str) -> list[dict]:
    """Steps that grow with the depth. Shares differ between lines, and every fourth line has a negative one."""
    rows = []
    for place, (line, deep) in enumerate(lines):
        shrink = round(0.9 - 0.13 * (place % 7), 4)
        linear = round((-0.08 if place % 4 == 3 else 0.6) * (1 - shrink), 4)
        shares = {"shrink": shrink, "linear": linear, "neither": round(1 - shrink - linear, 4)}
        for depth, role in itertools.product((1, 2, 3) if deep else (0,), ("fc", "bias", "all")):
            step = round(0.03 * max(1, depth) * (1 + 0.2 * (place % 5)) * (1 + 0.1 * int(trajectory[1:])), 5)
            rows.append({"predictor": line, "depth": depth, "role": role, "weights": 100, "step": step, **shares})
    return rows


def _movement(length: int) -> list[dict]:
    return [
        {"role": role, "difference": k, "size": 0.02 * (k + 1), "cosine": 0.1 if k else ""}
        for role, k in itertools.product(("fc", "bias", "all"), range(length - 1))
    ]


def _placebo(length: int) -> list[dict]:
    sizes = {"moved": 0.05, "placebo_moved": 0.04, "apart": 0.03, "cosine": 0.6, "placebo_cosine": 0.8}
    places = itertools.product(("fc", "bias", "all"), range(1, length))
    return [
        {"role": role, "snapshot": k, **{name: round(k * size, 4) for name, size in sizes.items()}}
        for role, k in places
    ]


def _landscape() -> list[dict]:
    rows = [
        {"kind": "about", "label": "digits:0-4, mlp, overflow track, trajectory t0, 252 test images"},
        {"kind": "variance", "label": "share", "x": 0.6, "y": 0.3},
    ]
    rows += [
        {"kind": "snapshot", "label": f"theta_{k}", "x": -k, "y": k / 2, "loss": 1 + k} for k in reversed(range(5))
    ]
    rows += [{"kind": "known", "label": f"x{2**k}", "x": k, "y": -k / 2, "loss": 1} for k in (1, 2, 3)]
    rows += [{"kind": "oracle", "label": "oracle", "x": 2, "y": 1, "loss": 0.8}]
    grid = itertools.product(range(-5, 5), range(-4, 4))
    return rows + [{"kind": "grid", "label": "", "x": x, "y": y, "loss": 1 + x**2 + y**2} for x, y in grid]
