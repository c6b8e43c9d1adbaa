"""Publishing a run: gather its records into `results/<suite>/`, write the pages, and check committed ones.

`results/<suite>/` holds the records of a run (runs.csv and its companions), `README.md` made from them
(`benchmarks.report.render`), and figures made by the scripts in paper_figures/. `provenance.json`, `cost.csv` and
`cost_by_arm.csv` say where and at what price; they, and the pages made of them, alone differ between two runs of the
same code on one machine.
"""

from __future__ import annotations

import itertools
import platform
import shutil
import subprocess
from pathlib import Path

import pandas as pd

from benchmarks.kernels import effective
from benchmarks.records import PilotRecord, RunRecord, read_records
from benchmarks.report.explored import pages as explored_pages
from benchmarks.report.folders import GROUPS, SNAPSHOT_COLUMNS, TABLES, Published, load, load_all, suites
from benchmarks.report.render import front_pages, suite_pages
from benchmarks.report.statistics import trajectory_means
from benchmarks.settings import Cell
from benchmarks.steps import TOLD, figures, lacking, steps
from benchmarks.store import version
from benchmarks.suite import Suite, load_suite, suite_names
from know.errors import KnowError
from know.files import PRETRAINED, atomic, digest, read_json, sha256_file, write_csv, write_json, write_text
from know.fingerprint import code_hash

EXPLORED = "explored"
UNVERSIONED = ("provenance.json", "cost.csv", "cost_by_arm.csv")


def publish(
    settings: Suite, name: str, work: Path, results: Path, *, incomplete: bool = False, device: str | None = None
) -> None:
    """Gather a finished run from `work` into `<results>/<name>/`, write its page and the index of all suites.

    incomplete: publish what is there, where some is missing; `failed.csv` says what and why, and so does the page.
    KnowError where no cell is finished. device: where its networks were trained, if not where the suite says.
    """
    folder, every = results / name, steps(settings, work)
    lost = lacking(every, work) if incomplete else {}
    done = [cell for cell in settings.cells if f"transfer/{cell.slug}" not in lost]
    if not done:
        raise KnowError(f"no cell of {name} is finished; the first reason is: {next(iter(lost.values()))}")
    if lost:
        (work / "published.json").unlink(missing_ok=True)  # the workflow has yet to publish
        reasons = [{"job": job, "reason": reason} for job, reason in lost.items()]
        write_csv(folder / "failed.csv", reasons, TABLES["failed"])
    else:
        (folder / "failed.csv").unlink(missing_ok=True)
    cells = [work / "transfers" / cell.slug for cell in done]
    runs = read_records([cell / "runs.csv" for cell in cells], RunRecord)
    read_records([cell / "pilots.csv" for cell in cells], PilotRecord)
    for table in ("runs", "pilots"):
        _concatenate([cell / f"{table}.csv" for cell in cells], folder / f"{table}.csv")
    write_csv(folder / "trajectories.csv", _snapshots(settings, work, done), SNAPSHOT_COLUMNS)
    learnt = {str(length): settings.known_folder(work, length) for length in sorted({cell.length for cell in done})}
    shutil.rmtree(folder / "known", ignore_errors=True)
    if settings.metatraining:
        for length, file in itertools.product(learnt, TOLD):
            _copy(learnt[length] / file, folder / "known" / length / file)
    for step in every:
        if step.rule in ("landscape", "cost", "inspect"):
            for path in step.outputs:
                out = folder / path.name
                out.unlink(missing_ok=True) if step.name in lost else _copy(path, out)
    about = {
        "name": name,
        "figures": figures(zip(runs["length"], runs["rate"], strict=True)),
        "learnt_from": settings.learnt_from,
        **_arms(done, work),
    }
    write_json(folder / "suite.json", {**settings.model_dump(mode="json"), **about})
    write_json(folder / "metrics.json", metrics(runs))
    for page, text in suite_pages(load(folder)).items():
        write_text(folder / page, text)
    write_json(folder / "provenance.json", provenance(device or settings.device))
    _write_cost(work, folder)
    _write_shared_pages(results, load_all(results))
    if lost:
        return
    published = sorted(path for path in folder.glob("*.*") if path.name not in UNVERSIONED)
    published += sorted(folder.glob("known/*/*"))
    declared = [path for step in every if step.rule not in ("data", "cost") for path in step.outputs]
    networks = [path for known in learnt.values() for path in sorted(known.glob("*.*"))] if settings.known else []
    hashes = {
        "results": {path.relative_to(folder).as_posix(): sha256_file(path) for path in published},
        "work": {path.relative_to(work).as_posix(): sha256_file(path) for path in declared},
        "shipped": {path.relative_to(PRETRAINED).as_posix(): sha256_file(path) for path in networks},
    }
    write_json(work / "published.json", hashes)


def _arms(cells: list[Cell], work: Path) -> dict:
    """What every arm is, in the order of the tables, and in which cells which are not available, and why."""
    described, unavailable = {}, {}
    for cell in cells:
        for arm in read_json(work / "transfers" / cell.slug / "choice.json")["described"]:
            reason = arm.pop("missing")
            described.setdefault(arm["name"], arm)
            if reason:
                unavailable.setdefault(cell.slug, {})[arm["name"]] = reason
    order = list(GROUPS)
    rows = sorted(enumerate(described.values()), key=lambda pair: (order.index(pair[1]["group"]), pair[0]))
    return {"described": [arm for _, arm in rows], "unavailable": unavailable}


def check(results: Path) -> list[str]:
    """Names of all pages, each of which equals what its records give; KnowError names the first that does not."""
    published, checked = load_all(results), []
    for one in published:
        _compare_settings(one)
        for page, text in suite_pages(one).items():
            _compare_page(one.folder / page, text)
        if read_json(one.folder / "metrics.json") != metrics(one.runs):
            raise KnowError(f"{one.folder / 'metrics.json'} does not fit its records; publish the suite again")
        checked.append(str(one.folder / "README.md"))
    for name, text in _shared_pages(results, published).items():
        _compare_page(results / name, text)
        checked.append(str(results / name))
    return checked


def _compare_settings(published: Published) -> None:
    """KnowError if a suite was published with other settings than those in its file, which are fixed beforehand."""
    if published.name not in suite_names():
        return
    for key, value in load_suite(published.name).model_dump(mode="json").items():
        if published.settings[key] != value:
            raise KnowError(f"{published.name} was run with {key}: {published.settings[key]}, and its file has {value}")


def _shared_pages(results: Path, published: list[Published]) -> dict[str, str]:
    """The pages that are of no suite, by the name of their file in `results`."""
    explored = {f"{EXPLORED}/{name}": text for name, text in explored_pages(results / EXPLORED).items()}
    return front_pages(published) | explored


def _write_shared_pages(results: Path, published: list[Published]) -> None:
    for name, text in _shared_pages(results, published).items():
        write_text(results / name, text)


def write_pages(results: Path) -> None:
    """Write the page of every published suite and the front pages anew, from the records beside them.

    Figures that have been added or removed since are listed as they are now; `python -m paper_figures` draws them.
    """
    published = load_all(results)
    for one in published:
        listed = {"figures": figures(zip(one.runs["length"], one.runs["rate"], strict=True))}
        write_json(one.folder / "suite.json", read_json(one.folder / "suite.json") | listed)
        one.settings.update(listed)
        for page, text in suite_pages(one).items():
            write_text(one.folder / page, text)
    _write_shared_pages(results, published)


def merge(source: Path, results: Path) -> list[str]:
    """Take over every suite that another machine has published below `source`; returns their names.

    Everything is checked before anything is written: records, and that they are of the code that is here. Where the
    other machine had no git, the commit of this checkout stands in, as its code is the same. What is there already of
    these suites is replaced.
    """
    if not source.is_dir():
        raise KnowError(f"{source} is no folder; give the one that holds the suites that were published elsewhere")
    if source.resolve() == results.resolve():
        raise KnowError(f"{source} is where the results of this checkout are; give the folder of another machine's")
    names = [folder.relative_to(source).as_posix() for folder in suites(source)]
    here = provenance()
    for name in names:
        folder = source / name
        runs = load(folder).runs
        code = code_hash("benchmarks.transfer:run_cell")
        if strange := sorted(set(runs["code"]) - {code}):
            raise KnowError(
                f"{folder} is of other code ({', '.join(strange)}, here {code}); check out its commit first"
            )
        if read_json(folder / "metrics.json") != metrics(runs):
            raise KnowError(f"{folder / 'metrics.json'} does not fit its records; copy it again")
    for name in names:
        shutil.rmtree(results / name, ignore_errors=True)
        for pattern in (*(f"{table}.csv" for table in ("runs", "pilots", "landscape", *TABLES)), "*.json", "known/*/*"):
            for path in sorted((source / name).glob(pattern)):
                _copy(path, results / name / path.relative_to(source / name))
        about = read_json(source / name / "provenance.json")
        if about["commit"] == "unknown":
            about |= {key: here[key] for key in ("commit", "uncommitted_changes")}
        write_json(results / name / "provenance.json", about)
    write_pages(results)
    return names


def provenance(device: str = "cpu") -> dict:
    """Commit and environment of this process; `environment` decides whether `verify` demands equal bytes.

    device: where networks were trained; a GPU is named.
    """

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    outputs = (":!results", ":!dvc.lock")  # what a run itself rewrites is no change of the code
    packages = ["torch", "torchvision", "timm", "numba", "numpy", "scipy", "pandas", "matplotlib", "safetensors"]
    packages += ["scikit-learn", "pillow"]
    return {
        "commit": git("rev-parse", "HEAD") or "unknown",
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no", "--", ".", *outputs)),
        "environment": {
            "processor": _processor(),
            **_gpu(device),
            "system": f"{platform.system()} {platform.machine()}",
            "kernels": effective(),
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }


def recorded_environment(record: dict, here: dict[str, str]) -> dict[str, str]:
    """The environment that a provenance.json names.

    here: the present one, whose versions stand in for those of the libraries that older records lack: numba, which
    small networks do not touch, and pillow, which decodes JPEG files alone.
    """
    return {name: here[name] for name in ("numba", "pillow")} | record["environment"]


def _gpu(device: str) -> dict[str, str]:
    if not device.startswith("cuda"):
        return {}
    import torch  # here alone, since pages are made without it

    if not torch.cuda.is_available():
        return {"gpu": "none"}
    return {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}


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


def _compare_page(path: Path, expected: str) -> None:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text != expected:
        pairs = zip(text.splitlines(), expected.splitlines(), strict=False)
        line = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), "the end")
        raise KnowError(
            f"{path} does not fit its records (line {line}); write it anew with `python -m benchmarks report`"
        )


def metrics(runs: pd.DataFrame) -> dict:
    """Mean accuracy in percent by cell, arm and rate policy, for `dvc metrics`."""
    accuracies: dict = {}
    for (cell, policy), means in (100 * trajectory_means(runs)).groupby(level=["cell", "policy"]):
        for arm in means.columns[means.notna().any()]:
            accuracies.setdefault(cell, {}).setdefault(arm, {})[policy] = round(float(means[arm].mean()), 4)
    return accuracies


def _snapshots(settings: Suite, work: Path, cells: list[Cell]) -> list[dict]:
    rows = []
    for origin in sorted({cell.origin for cell in cells}):
        for trajectory in settings.trajectory_ids:
            for track in settings.tracks(origin):
                manifest = read_json(work / "trajectories" / origin.slug / trajectory / track / "manifest.json")
                for k, snapshot in enumerate(reversed(manifest["snapshots"])):
                    facts = {column: snapshot.get(column, "") for column in SNAPSHOT_COLUMNS[6:]}
                    place = {"source": origin.source, "network": origin.network, "rate": origin.ratio, "track": track}
                    rows.append({**place, "trajectory": trajectory, "snapshot": k, **facts})
    return rows


def _concatenate(parts: list[Path], out: Path) -> None:
    """One csv of several with the same columns."""
    texts = [part.read_text(encoding="utf-8").splitlines(keepends=True) for part in parts]
    write_text(out, "".join([texts[0][0], *(line for text in texts for line in text[1:])]))


def _copy(source: Path, out: Path) -> None:
    with atomic(out) as temporary:
        temporary.write_bytes(source.read_bytes())


def _write_cost(work: Path, folder: Path) -> None:
    """Time and memory of every job, from the workflow's own benchmark files (absent where a step was run by hand)."""
    columns, rows = TABLES["cost"], []
    for path in sorted((work / "benchmarks").rglob("*.tsv")):
        entry = pd.read_csv(path, sep="\t").iloc[-1]
        job = path.relative_to(work / "benchmarks").with_suffix("").as_posix()
        rows.append(dict(zip(columns, (job, entry["s"], entry["cpu_time"], entry["max_rss"]), strict=True)))
    write_csv(folder / "cost.csv", rows, columns)
