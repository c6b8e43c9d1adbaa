"""A few committed numbers, made again from nothing: one trajectory of a suite, and some of its fine-tunes.

    KNOW_DATA=... python -m benchmarks recheck --suite core/plaincnn --trajectory t105 --arm known_x2

A whole suite takes hours and this takes minutes, so that anybody can ask for any row of results/<suite>/runs.csv. The
learning rates are taken from the rows, since the search that chose them asks all pilot trajectories.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arms import arms_of
from benchmarks.data import load
from benchmarks.records import RunRecord, read_records
from benchmarks.report.publish import provenance, recorded_environment
from benchmarks.settings import Cell
from benchmarks.store import STORE, Store
from benchmarks.suite import Suite
from benchmarks.trajectories import make_origin
from benchmarks.transfer import ENTRY, Bench, Task, run_tasks
from know.errors import KnowError, unknown
from know.files import read_json
from know.fingerprint import code_hash

COMPARED = ("status", "accuracy", "step", "weight_error", "source_accuracy", "source_accuracy_recalibrated")
"""Columns of `RunRecord` that must be the same."""
DECIDES = ("processor", "gpu", "cuda", "system", "kernels")
DECIDES += ("python", "torch", "torchvision", "timm", "pillow", "numba", "numpy")
"""Entries of a recorded environment on which the bytes of a run may depend."""


def recheck(
    settings: Suite, results: Path, cell: Cell, trajectory: str, arms: Sequence[str], *, known: Path, device: str
) -> Iterator[str]:
    """Yield one line for each fine-tune of the arms on the trajectory, then one that says how many are the same.

    results: folder with runs.csv and provenance.json of the suite. known: folder of the networks that methods use.
    arms: by default naive and the first step back of KNOWN.
    KnowError if there are no such rows, if an arm needs what is not here, if data differ, and at the end if rows differ
    although code, processor and library versions are the recorded ones.
    """
    if settings.transfer.together > 1:
        raise KnowError("fine-tunes of this suite are computed many at a time and cannot be made again one by one")
    every = {arm.name: arm for arm in arms_of(settings.arms, cell, settings.transfer.normalisation)}
    rows = read_records([results / "runs.csv"], RunRecord)
    rows = rows[(rows["cell"] == cell.slug) & (rows["trajectory"] == trajectory)]
    if rows.empty:
        raise KnowError(f"{results / 'runs.csv'} has no trajectory {trajectory} of the cell {cell.slug}")
    back = rows[rows["predictor"] == "known"].sort_values("depth")["arm"].unique()[:1]
    arms = list(dict.fromkeys(arms)) or ["naive", *back]
    for name in arms:
        if name not in set(rows["arm"]) & set(every):
            raise unknown("arm", name, sorted(set(rows["arm"]) & set(every)))
        if missing := every[name].missing:
            raise KnowError(f"arm {name} is not available here: {missing}")
    rows = rows[rows["arm"].isin(arms)].sort_values(["arm", "policy", "fine_tune"])
    asked = [
        Task(trajectory, every[row.arm], row.fine_tune, row.learning_rate, row.policy) for row in rows.itertuples()
    ]
    for column, spec in (("source_data", cell.source), ("target_data", cell.target)):
        if set(rows[column]) != {load(spec).sha256}:
            raise KnowError(f"{spec} is not the data of these rows: another hash")
    with tempfile.TemporaryDirectory() as scratch:
        store, origin = Store(Path(scratch) / STORE), Path(scratch) / "origin"
        make_origin(
            cell.origin,
            [trajectory],
            settings.tracks(cell.origin),
            settings.pretraining,
            settings.forgetting_of(cell.origin),
            references=[name for name in settings.arms.references if name in arms],
            store=store,
            out=origin,
            device=device,
        )
        found, facts = run_tasks(Bench(cell, settings.transfer, origin, known, store, device), asked)
    differing = 0
    for row, result in zip(rows.to_dict("records"), found, strict=True):
        now = {"status": result.status, "accuracy": result.accuracy, **facts[trajectory, row["arm"]]}
        other = [name for name in COMPARED if _plain(row[name]) != now[name]]
        differing += bool(other)
        place = f"{row['arm']}, {row['policy']}, fine-tune {row['fine_tune']}"
        shown = f"{100 * row['accuracy']:.2f} % recorded, {100 * result.accuracy:.2f} % now"
        yield f"{place}: {shown}; " + (f"different: {', '.join(other)}" if other else "the same")
    here = provenance(device)["environment"]
    recorded = recorded_environment(read_json(results / "provenance.json"), here)
    apart = [name for name in DECIDES if recorded.get(name) != here.get(name)]
    apart += ["code"] if set(rows["code"]) != {code_hash(ENTRY)} else []
    said = f"{len(rows) - differing} of {len(rows)} fine-tunes are exactly the recorded ones"
    if differing and not apart:
        raise KnowError(f"{said}, although code, processor and library versions are the same")
    yield said + (f"; other than recorded: {', '.join(apart)}" if apart else "")


def _plain(value: Any) -> Any:
    """A value of a table as a record has it: None where there is none."""
    return None if value != value else value
