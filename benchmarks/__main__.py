"""The commands of the experiment: `python -m benchmarks COMMAND --suite NAME`, one for each step of the workflow.

Every step of the Snakefile calls one of them and writes to the workflow's folder (work/<suite>/), so each step can also
be run by hand. torch is imported only by commands that compute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.settings import LENGTH, MetaTraining
from benchmarks.store import STORE, Store
from benchmarks.suite import RESULTS, WORK, Suite, load_shipped, load_suite, suite_name
from know.cli import main_of, new_app
from know.errors import KnowError, unknown

app = new_app("The experiment: suites of trajectories, meta-training, transfer and their tables.")

SuiteName = Annotated[str, typer.Option("--suite", help="Name of a suite in benchmarks/suites/, or a .yaml file.")]

Results = Annotated[Path, typer.Option(help="Folder of the results.")]

Processes = Annotated[
    int,
    typer.Option(
        min=1, envvar="KNOW_PROCESSES", help="Processes that share the work of a suite; the result is the same."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="torch device, such as cpu or cuda:0; default: that of the suite, else cpu.")
]


def _start(device: str | None, settings: Suite | None = None) -> str:
    """Prepare torch for a command, on one thread, and return its device; KnowError if the device is not available.

    device: the option of the command; None means the device of the suite's settings, or else the CPU.
    """
    import torch

    from benchmarks.training import deterministic

    deterministic(1)
    device = device or (settings.device if settings else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise KnowError(f"device {device!r} is not available here: {str(error).splitlines()[0]}") from error
    return device


def _work(suite: str) -> Path:
    return WORK / suite_name(suite)


def _store() -> Store:
    return Store(WORK / STORE)


@app.command()
def datasets(
    spec: Annotated[
        str | None, typer.Argument(help="Dataset, such as digits:0-4 or cifar100; by default, list all.")
    ] = None,
) -> None:
    """List the datasets, or describe one."""
    from benchmarks.data import SOURCES

    if spec:
        _describe(spec)
        return
    for name, source in SOURCES.items():
        place = source.file or "in scikit-learn"
        print(f"{name:16}{place}{', or downloaded' if source.torchvision else ''}")


@app.command()
def data(suite: SuiteName) -> None:
    """Check all data of a suite and write their hashes (work/SUITE/data.json).

    Files come from the folder in KNOW_DATA, else torchvision downloads them; the hash of decoded arrays is checked.
    """
    from know.files import write_json

    write_json(_work(suite) / "data.json", {spec: _describe(spec) for spec in load_suite(suite).datasets})


def _describe(spec: str) -> dict[str, Any]:
    """Load a dataset, print its description, and return the description."""
    from benchmarks.data import load

    loaded = load(spec)
    shape = "x".join(map(str, loaded.shape))
    counts = f"{len(loaded.train)} train, {len(loaded.test)} test, {len(loaded.classes)} classes"
    print(f"{spec}: {counts}, {shape}, sha256 {loaded.sha256}")
    return {
        "sha256": loaded.sha256,
        "train": len(loaded.train),
        "test": len(loaded.test),
        "shape": list(loaded.shape),
        "classes": list(loaded.classes),
    }


Shard = Annotated[int, typer.Option(min=0, help="Number of the shard of meta-trajectories to make.")]
Length = Annotated[int, typer.Option(min=2, max=6, help="S: number of snapshots that the networks use.")]


@app.command()
def metaset(suite: SuiteName, shard: Shard, device: Device = None) -> None:
    """Make one shard of a suite's meta-set: windows from many small trajectories (work/SUITE/metaset/).

    The same command resumes an interrupted run.
    """
    _make_shard(_metatraining(suite), _work(suite), shard, _start(device, load_suite(suite)))


@app.command()
def metatrain(suite: SuiteName, length: Length = LENGTH, device: Device = None) -> None:
    """Train a suite's KNOWN, scaled KNOWN and meta-linear on its meta-set (work/SUITE/known/LENGTH/)."""
    device = _start(device, load_suite(suite))
    work = _work(suite)
    _fit(_metatraining(suite), work, [], work / "known" / str(length), length, device)


@app.command()
def pretrained_metaset(shard: Shard, device: Device = None) -> None:
    """Make one shard of the meta-set of the networks that ship (benchmarks/metatraining.yaml; work/shipped/)."""
    _make_shard(load_shipped().metatraining, WORK / "shipped", shard, _start(device))


@app.command()
def pretrained(
    group: Annotated[str, typer.Option(help="Group of benchmarks/metatraining.yaml.")],
    length: Length = LENGTH,
    device: Device = None,
) -> None:
    """Train one group of the networks that ship (know/pretrained/GROUP/LENGTH/)."""
    from know.files import PRETRAINED

    settings = load_shipped()
    if group not in settings.groups:
        raise unknown("group", group, settings.groups)
    without, out = settings.groups[group].without, PRETRAINED / group / str(length)
    _fit(settings.metatraining, WORK / "shipped", without, out, length, _start(device))


@app.command()
def pretrained_variant(
    variant: Annotated[str, typer.Option(help="Name of a variant, such as relative-0, share-0.5 or without-resnet8.")],
    device: Device = None,
) -> None:
    """Train KNOWN on the meta-set of the networks that ship in another way, to see what a choice is worth
    (work/shipped/variants/VARIANT.csv)."""
    from benchmarks.metatraining import fit_variant

    settings, work = load_shipped().metatraining, WORK / "shipped"
    out = work / "variants" / f"{variant}.csv"
    fit_variant(variant, _shards(settings, work), settings, out=out, device=_start(device))


@app.command()
def pretrained_skill(
    network: Annotated[str, typer.Option(help="Network of `skill` in benchmarks/metatraining.yaml.")],
    device: Device = None,
) -> None:
    """Ask the networks that ship about trajectories whose theta_{-1} is known (work/shipped/skill/NETWORK.csv)."""
    from benchmarks.skill import measure
    from know.files import PRETRAINED

    settings, device = load_shipped().skill, _start(device)
    if network not in settings.networks:
        raise unknown("network", network, settings.networks)
    known = PRETRAINED / settings.group / str(LENGTH)
    measure(network, settings, known=known, store=_store(), work=WORK / "shipped", device=device)


@app.command()
def pretrained_page() -> None:
    """Write what is known of the networks that ship: tables and README.md in know/pretrained/, and the cards."""
    from benchmarks.report.pretrained import publish
    from benchmarks.skill import windows_table
    from know.files import PRETRAINED

    settings, work = load_shipped(), WORK / "shipped"
    publish(settings, work, windows_table(_shards(settings.metatraining, work), settings.skill, work), PRETRAINED)


def _metatraining(suite: str) -> MetaTraining:
    settings = load_suite(suite)
    if settings.metatraining is None:
        raise KnowError(f"suite {suite} has no meta-training of its own; it asks the shipped group {settings.known!r}")
    return settings.metatraining


def _make_shard(settings: MetaTraining, work: Path, shard: int, device: str) -> None:
    from benchmarks.metaset import make_metaset

    if shard >= settings.shards:
        raise KnowError(f"there are shards 0 to {settings.shards - 1}, not {shard}")
    make_metaset(shard, settings, store=_store(), out=work / "metaset" / str(shard), device=device)


def _shards(settings: MetaTraining, work: Path) -> list[Path]:
    return [work / "metaset" / str(shard) / "manifest.json" for shard in range(settings.shards)]


def _fit(settings: MetaTraining, work: Path, without: list[str], out: Path, length: int, device: str) -> None:
    """Train on the shards in `work`, and print held-out errors and those of "no change"."""
    from benchmarks.metatraining import fit_known
    from benchmarks.report.pretrained import card
    from know.files import write_text

    known = fit_known(_shards(settings, work), settings, length=length, without=without, out=out, device=device)
    write_text(out / "README.md", card(out))
    for role, errors in known.facts["held_out"].items():
        print(f"{role:5} held-out error {errors['loss']:.3g}, no change {errors['no_change_loss']:.3g}")


@app.command()
def transfer(
    suite: SuiteName,
    cell: Annotated[str, typer.Option(help="Name of a cell, as in work/SUITE/transfers/.")],
    device: Device = None,
    processes: Processes = 1,
) -> None:
    """Fine-tune every arm of a cell on the target: choose learning rates on the pilots, then evaluate.

    Finished fine-tunes of all suites are kept in the store (work/store/) by content, so that a new arm costs only its
    own fine-tunes. If KNOW_FORCE is set, everything is computed anew.
    """
    from benchmarks.transfer import run_cell

    settings, work = load_suite(suite), _work(suite)
    chosen = settings.cell(cell)
    run_cell(
        chosen,
        settings.trajectory_ids,
        settings.transfer,
        settings.arms,
        origin=work / "trajectories" / chosen.origin.slug,
        known=settings.known_folder(work, chosen.length),
        store=_store(),
        out=work / "transfers" / cell,
        device=_start(device, settings),
        processes=processes,
    )


@app.command()
def landscape(suite: SuiteName, device: Device = None) -> None:
    """Compute the loss on the plane of the first trajectory and its predictions (work/SUITE/landscape.csv)."""
    from benchmarks.landscape import make_landscape

    settings, work = load_suite(suite), _work(suite)
    cell = settings.pictured
    folder = work / "trajectories" / cell.origin.slug / f"t{settings.first_trajectory}" / cell.track
    known = settings.known_folder(work, cell.length)
    device = _start(device, settings)
    make_landscape(folder, known, length=cell.length, out=work / "landscape.csv", device=device)


@app.command()
def cost(suite: SuiteName, device: Device = None) -> None:
    """Measure what each arm costs before fine-tuning: training, time and memory of prediction.

    This needs the suite's data.json (`python -m benchmarks data --suite NAME`) and KNOWN, but no trajectory. It writes
    work/SUITE/cost_by_arm.csv. No other work should run on the machine meanwhile.
    """
    from benchmarks.cost import measure

    settings, work = load_suite(suite), _work(suite)
    device = _start(device, settings)
    known = {length: settings.known_folder(work, length) for length in settings.lengths}
    measure(settings, work, known, out=work / "cost_by_arm.csv", device=device)


@app.command()
def run(suite: SuiteName, device: Device = None, results: Results = RESULTS) -> None:
    """Run a whole suite in this process, without Snakemake, and publish it (results/SUITE/).

    Finished steps are skipped; the same command resumes an interrupted run. `python -m paper_figures` draws figures.
    """
    from benchmarks.records import RunRecord, read_records
    from benchmarks.report.publish import metrics
    from benchmarks.report.publish import publish as publish_run
    from benchmarks.steps import run_steps, steps

    settings, work, name = load_suite(suite), _work(suite), suite_name(suite)
    device = _start(device, settings)  # checks the device before the data are read

    def execute(command: tuple[str, ...]) -> None:
        options = () if command[0] in ("data", "inspect") else ("--device", device)
        app([*command, "--suite", suite, *options], standalone_mode=False)

    run_steps(steps(settings, work), execute, work, print, device)
    publish_run(settings, name, work, results, device=device)
    for cell, arms in metrics(read_records([results / name / "runs.csv"], RunRecord)).items():
        print(f"\n{cell}: mean test accuracy, %\n{'arm':28}{'short':>8}{'tuned':>8}")
        for arm, accuracy in arms.items():
            print(f"{arm:28}{accuracy['short']:8.2f}{accuracy['tuned']:8.2f}")
    print(f"\ntables: {results / name / 'README.md'}")


@app.command()
def publish(
    suite: SuiteName,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Publish what is finished, and state what is missing and why.")
    ] = False,
    results: Results = RESULTS,
) -> None:
    """Copy the results of a finished suite to results/SUITE/, and write its page and the front pages."""
    from benchmarks.report import publish as publishing

    publishing.publish(load_suite(suite), suite_name(suite), _work(suite), results, incomplete=incomplete)


@app.command()
def report(
    check: Annotated[
        bool, typer.Option("--check", help="Only check that the pages agree with the records; change nothing.")
    ] = False,
    results: Results = RESULTS,
) -> None:
    """Write the pages of all suites anew from their records, or check them (exit code 2 if a page disagrees)."""
    from benchmarks.report import publish as publishing

    if not check:
        publishing.write_pages(results)
        return
    for page in publishing.check(results):
        print(f"{page} fits its records")


@app.command()
def merge(
    source: Annotated[Path, typer.Argument(help="Folder of results that another machine has published.")],
    results: Results = RESULTS,
) -> None:
    """Merge suites that another machine has published with the code of this checkout."""
    from benchmarks.report import publish as publishing

    for name in publishing.merge(source, results):
        print(f"{results / name} taken over; draw its figures with `python -m paper_figures {results / name}`")


@app.command()
def verify(
    suite: SuiteName = "smoke",
    against: Annotated[str, typer.Option(help="Git revision with the results to compare with.")] = "HEAD",
    results: Results = RESULTS,
) -> None:
    """Check a run: the hash of every file, the code that made it, and its results against the committed ones.

    Results must be equal where the recorded environment (processor, library versions) is the same; otherwise every
    arm's mean must lie within the combined intervals.
    """
    from benchmarks.report.verify import verify_suite

    for line in verify_suite(load_suite(suite), suite_name(suite), _work(suite), results, against):
        print(line)


@app.command()
def recheck(
    suite: SuiteName,
    trajectory: Annotated[str | None, typer.Option(help="Its name in runs.csv; default: the first.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="May be repeated; default: naive and the first KNOWN.")] = None,
    cell: Annotated[str | None, typer.Option(help="Name of a cell, as in runs.csv; default: the first.")] = None,
    device: Device = None,
    results: Results = RESULTS,
) -> None:
    """Make one trajectory of a published suite and some of its fine-tunes again, from nothing, in a few minutes.

    Each fine-tune is compared with its row in results/SUITE/runs.csv, at the learning rate of that row. What was kept
    of earlier runs is not used. Exit code 2 if a number differs although code, processor and libraries are the same.
    """
    from benchmarks.recheck import recheck as rechecked

    settings, work, name = load_suite(suite), _work(suite), suite_name(suite)
    chosen = settings.cell(cell) if cell else settings.cells[0]
    asked = trajectory or f"t{settings.first_trajectory}"
    device = _start(device, settings)
    known = settings.known_folder(work, chosen.length)
    for line in rechecked(settings, results / name, chosen, asked, arm or (), known=known, device=device):
        print(line)


@app.command()
def explore(
    network: Annotated[str, typer.Option(help="Name of a network, such as resnet8.")],
    attempt: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated; default: all of benchmarks/exploration.py whose files are here."),
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="forgetting (default), x1 or x3, the images it may show; may be repeated.")
    ] = None,
    transfer: Annotated[bool, typer.Option("--transfer", help="Fine-tune these attempts on the target too.")] = False,
    trajectories: Annotated[int, typer.Option(min=1, help="How many: e0, e1, ...")] = 6,
    suite: Annotated[
        str | None, typer.Option(help="Its settings are used, and its one pair of datasets; default: core/plaincnn.")
    ] = None,
    device: Device = None,
    processes: Processes = 1,
    results: Results = RESULTS,
) -> None:
    """Try what else the compute of a forgetting trajectory can buy (results/explored/), before a suite asks it.

    Attempts that were made before are kept in the store (work/store/). `python -m benchmarks report` writes the page.
    """
    from benchmarks.exploration import ATTEMPTS, Exploration, lacking
    from benchmarks.exploration import explore as explored
    from benchmarks.report.explored import SUITE

    suite = suite or SUITE
    names = tuple(budget or ["forgetting"]), tuple(attempt or (name for name in ATTEMPTS if not lacking(name)))
    places = _store(), WORK / "exploration" / suite, transfer, _start(device, load_suite(suite))
    explored(Exploration(suite, network, *names, *places), trajectories, results, processes)


@app.command()
def forget(
    suite: SuiteName,
    origin: Annotated[str, typer.Option(help="SOURCE.NETWORK, as in work/SUITE/trajectories/.")],
    device: Device = None,
    processes: Processes = 1,
) -> None:
    """Make the forgetting trajectories of one origin: fine-tune on ever smaller nested subsets, keep every snapshot.

    Finished trajectories are kept in the store (work/store/) by content; work/SUITE/trajectories/ has links to them.
    """
    from benchmarks.trajectories import make_origin

    settings = load_suite(suite)
    chosen = settings.origin(origin)
    make_origin(
        chosen,
        settings.trajectory_ids,
        settings.tracks(chosen),
        settings.pretraining,
        settings.forgetting_of(chosen),
        references=settings.arms.references,
        store=_store(),
        out=_work(suite) / "trajectories" / chosen.slug,
        device=_start(device, settings),
        processes=processes,
    )


@app.command(name="inspect")
def inspect_(suite: SuiteName) -> None:
    """Split the steps of a suite's methods into parts, and measure its trajectories (work/SUITE/inspection/)."""
    from benchmarks.inspection import inspect_suite

    _start("cpu")
    settings = load_suite(suite)
    known = {length: settings.known_folder(_work(suite), length) for length in settings.lengths}
    inspect_suite(settings.cells, settings.trajectory_ids, settings.arms, _work(suite), known)


if __name__ == "__main__":
    main_of(app, "python -m benchmarks")
