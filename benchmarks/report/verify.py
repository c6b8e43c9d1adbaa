"""Checks of a finished or restored run: files against hashes, code against its fingerprint, results against git."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from benchmarks.report.publish import provenance, recorded_environment
from benchmarks.report.statistics import trajectory_means, two_sample_limit
from benchmarks.steps import codes, steps
from benchmarks.suite import Suite
from know.errors import KnowError
from know.files import PRETRAINED, read_json, sha256_file
from know.fingerprint import code_hash


def verify_suite(settings: Suite, name: str, work: Path, results: Path, against: str) -> Iterator[str]:
    """Yield one line per passed check; KnowError for the first that fails.

    1. Every file of the run has the hash that was recorded when it was made.
    2. The code that made it is the code that is here.
    3. The records equal those of the git revision `against`, but for the fingerprint of the code, where the environment
       is the same; else no arm's mean differs by more than the combined intervals (two-sample t, corrected for the
       number of arms).
    """
    if not (work / "published.json").is_file():
        raise KnowError(f"{work} holds no finished run; run `make results SUITE={name}`, or restore it with `dvc pull`")
    published = read_json(work / "published.json")
    count = _check_hashes(work, published["work"]) + _check_hashes(results / name, published["results"])
    count += _check_hashes(PRETRAINED, published["shipped"])
    shards = range(settings.metatraining.shards if settings.metatraining else 0)
    for folder in [work / "metaset" / str(shard) for shard in shards]:
        count += _check_hashes(folder, read_json(folder / "manifest.json")["files"])
    for folder in [work / "trajectories" / origin.slug for origin in settings.origins]:
        manifests = read_json(folder / "manifest.json")["trajectories"]
        count += _check_hashes(folder, manifests)
        for manifest in manifests:
            one = read_json(folder / manifest)
            entries = [*one["snapshots"], *one["references"].values(), *one.get("placebo", ())]
            count += _check_hashes((folder / manifest).parent, {e["file"]: e["sha256"] for e in entries})
    yield f"files: {count} have their recorded hashes"

    every, runs = steps(settings, work), pd.read_csv(results / name / "runs.csv")
    recorded = [(place, *made) for place, made in codes(every).items()]
    transfer = next(step.code for step in every if step.rule == "transfer")
    recorded += [(str(results / name / "runs.csv"), code, transfer) for code in runs["code"].unique()]
    for place, code, entry in recorded:
        if code != code_hash(entry):
            raise KnowError(f"{place} was made by other code than {entry} is now; run the suite again")
    yield f"code: {len(recorded)} results were made by the code that is here"
    yield _compare_with_git(name, runs, results, against, settings.device)


def _check_hashes(folder: Path, hashes: dict[str, str]) -> int:
    for file, expected in hashes.items():
        if not (folder / file).is_file():
            raise KnowError(f"{folder / file} is missing; restore it with `dvc pull`, or run the suite again")
        if sha256_file(folder / file) != expected:
            raise KnowError(f"{folder / file} has changed since it was made; restore it or run the suite again")
    return len(hashes)


def _without_code(table: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(table), dtype=str).drop(columns="code")


def _compare_with_git(name: str, runs: pd.DataFrame, results: Path, against: str, device: str) -> str:
    def committed(file: str) -> str | None:
        command = ["git", "show", f"{against}:./{(results / name / file).as_posix()}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    table, record = committed("runs.csv"), committed("provenance.json")
    if table is None or record is None:
        return f"results: {against} has none of this suite, nothing to compare with"
    environment = provenance(device)["environment"]
    same = recorded_environment(json.loads(record), environment) == environment
    here = (results / name / "runs.csv").read_text(encoding="utf-8")
    if table == here:
        return f"results: the records equal those of {against}, byte for byte"
    if _without_code(table).equals(_without_code(here)):
        return f"results: the records equal those of {against}, which other code had made"
    if same:
        raise KnowError(
            f"{results / name / 'runs.csv'} differs from {against} although processor and library versions are the "
            "same; the settings or the code changed, or something is not deterministic"
        )
    mine, theirs = (trajectory_means(frame).stack().dropna() for frame in (runs, pd.read_csv(io.StringIO(table))))
    if set(mine.index) != set(theirs.index):
        raise KnowError(
            f"{against} has other cells, arms or trajectories of suite {name}; commit the new results first"
        )
    groups = list(mine.groupby(level=["cell", "policy", "arm"]))
    for place, values in groups:
        limit = two_sample_limit(values.to_numpy(), theirs.loc[values.index].to_numpy(), comparisons=len(groups))
        means = values.mean(), theirs.loc[values.index].mean()
        if abs(means[0] - means[1]) > limit:
            raise KnowError(
                f"{', '.join(place)}: accuracy {means[0]:.4f} here, {means[1]:.4f} in {against}; "
                f"further apart than chance allows ({limit:.4f})"
            )
    return (
        f"results: another environment; the means of {len(groups)} arms lie within the combined intervals of {against}"
    )
