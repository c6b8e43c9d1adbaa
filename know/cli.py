"""The command line. Every command is a few lines around the library; what is wrong is said in one line, exit code 2.

Commands that belong to a suite take `--suite` and write where the workflow expects it (work/<suite>/...), so each step
of the Snakefile also runs by hand. torch is imported only by commands that compute.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.suite import (
    LENGTH,
    RESULTS,
    WORK,
    Forgetting,
    MetaTraining,
    Recipe,
    Suite,
    load_shipped,
    load_suite,
    suite_name,
)
from know.errors import KnowError, unknown

app = typer.Typer(
    help="KNOW prediction: weights as if trained on more data, from a forgetting trajectory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SuiteName = Annotated[str, typer.Option("--suite", help="Name of a suite in benchmarks/suites/, or a .yaml file.")]
MaybeSuite = Annotated[str | None, typer.Option("--suite", help="Name of a suite in benchmarks/suites/.")]
Device = Annotated[
    str | None, typer.Option(help="torch device, such as cpu or cuda:0; default: the suite's, else cpu.")
]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; part of the exact result. 0: torch's own choice.")]
Results = Annotated[Path, typer.Option(help="Folder of the results.")]
Processes = Annotated[
    int, typer.Option(min=1, help="Processes that share the work of a suite; the result is the same.")
]


def main() -> None:
    """Entry point: errors that the user can mend become one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of tensors and files may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(prog_name="know", standalone_mode=False)
        if code == 130:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except KnowError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}; check that it exists, permission and free space")
    except Exception as error:  # the command line's own errors, such as an unknown option
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{error.format_message()} (see `know {' '.join(sys.argv[1:2])} --help`)")
    except KeyboardInterrupt:
        print("know: interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"know: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _start(device: str | None, threads: int, settings: Suite | None = None) -> str:
    """Settings every computing command begins with; KnowError if the device is not there.

    device: as asked for; None: that of the suite's settings, or the processor.
    """
    import torch

    from benchmarks.training import deterministic

    deterministic(threads or None)
    device = device or (settings.device if settings else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise KnowError(f"device {device!r} is not available here: {str(error).splitlines()[0]}") from error
    return device


def _work(suite: str) -> Path:
    return WORK / suite_name(suite)


@app.command()
def data(
    spec: Annotated[
        str | None, typer.Argument(help="Dataset, such as digits:0-4 or cifar100; none: list them.")
    ] = None,
    suite: MaybeSuite = None,
) -> None:
    """Describe a dataset, or check all data of a suite (work/SUITE/data.json).

    Files come from the folder in KNOW_DATA, else from torchvision's download; the decoded arrays' hash is checked.
    """
    from benchmarks import data as datasets
    from know.files import write_json

    if suite is None and spec is None:
        for name, source in datasets.SOURCES.items():
            place = source.file or "in scikit-learn"
            print(f"{name:16}{place}{', or downloaded' if source.torchvision else ''}")
        return
    settings = load_suite(suite) if suite else None
    specs = settings.datasets if settings else [spec]
    found = {}
    for one in specs:
        loaded = datasets.load(one)
        found[one] = {
            "sha256": loaded.sha256,
            "train": len(loaded.train),
            "test": len(loaded.test),
            "shape": list(loaded.shape),
            "classes": list(loaded.classes),
        }
        shape = "x".join(map(str, loaded.shape))
        counts = f"{len(loaded.train)} train, {len(loaded.test)} test, {len(loaded.classes)} classes"
        print(f"{one}: {counts}, {shape}, sha256 {loaded.sha256}")
    if settings:
        write_json(_work(suite) / "data.json", found)


@app.command()
def forget(
    suite: MaybeSuite = None,
    origin: Annotated[
        str | None, typer.Option(help="With --suite: SOURCE.NETWORK, as in work/SUITE/trajectories/.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Without --suite: dataset that theta_0 was trained on.")] = None,
    network: Annotated[
        str, typer.Option(help="plaincnn, mlp, resnet8, ..., timm:NAME or torchvision:NAME.")
    ] = "plaincnn",
    weights: Annotated[Path | None, typer.Option(help="theta_0 (.safetensors, .pt); default: train it first.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the trajectory to make.")] = None,
    rate: Annotated[float, typer.Option(help="r: each subset is this share of the one before.")] = 0.5,
    length: Annotated[int, typer.Option(help="S: number of snapshots; KNOWN takes 5.")] = 5,
    epochs: Annotated[int, typer.Option(help="Epochs per forgetting step.")] = 1,
    pretrain_epochs: Annotated[int, typer.Option(help="Epochs for theta_0 where no weights are given.")] = 10,
    learning_rate: Annotated[float, typer.Option(help="Adam's rate, for both.")] = 1e-3,
    batch_size: Annotated[int, typer.Option()] = 128,
    seed: Annotated[int, typer.Option()] = 0,
    device: Device = None,
    threads: Threads = 1,
    processes: Processes = 1,
) -> None:
    """Make a forgetting trajectory: fine-tune on ever smaller nested subsets, keep every snapshot.

    Either one origin of a suite, or one trajectory of a built-in dataset and network:

        know forget --dataset digits --network mlp --out run/

    With your own training code, call know.forget(model, dataset, fit, out="run/") from Python. An interrupted run is
    resumed by the same command.
    """
    from know import forgetting

    if suite:
        from torch import __version__

        from benchmarks.reuse import adopt_origin

        settings = load_suite(suite)
        chosen = settings.origin(origin) if origin else None
        if chosen is None:
            raise KnowError(f"--suite needs --origin, one of {', '.join(o.slug for o in settings.origins)}")
        if source := adopt_origin(settings, chosen, _work(suite), everywhere=WORK, torch=__version__):
            print(f"taken from {source}, made in the same way")
            return
        forgetting.make_origin(
            chosen,
            settings.trajectory_ids,
            settings.tracks(chosen),
            settings.pretraining,
            settings.forgetting_of(chosen),
            out=_work(suite) / "trajectories" / chosen.slug,
            device=_start(device, threads, settings),
            processes=processes,
        )
        return
    if dataset is None or out is None:
        raise KnowError("give either --suite and --origin, or --dataset and --out")
    recipe = {"learning_rate": learning_rate, "batch_size": batch_size}
    forgetting.forget_builtin(
        dataset,
        network,
        _checked(Recipe, {"epochs": "pretrain_epochs"}, epochs=pretrain_epochs, **recipe),
        _checked(Forgetting, rate=rate, length=length, smallest=1, step=_checked(Recipe, epochs=epochs, **recipe)),
        weights=weights,
        seed=seed,
        out=out,
        device=_start(device, threads),
    )
    print(f"trajectory of {length} snapshots in {out}")


@app.command()
def metaset(
    shard: Annotated[int, typer.Option(min=0, help="Which share of the meta-trajectories to make.")],
    suite: MaybeSuite = None,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Make one shard of the meta-set: windows from many small trajectories.

    Of a suite (work/SUITE/metaset/), or of the networks that ship (benchmarks/metatraining.yaml, in work/shipped/).
    An interrupted run is resumed by the same command.
    """
    from benchmarks.metatraining import make_metaset

    settings, work, device = _metatraining(suite, device, threads)
    if shard >= settings.shards:
        raise KnowError(f"there are shards 0 to {settings.shards - 1}, not {shard}")
    make_metaset(shard, settings, out=work / "metaset" / str(shard), device=device)


@app.command()
def metatrain(
    suite: MaybeSuite = None,
    group: Annotated[
        str | None, typer.Option(help="Without --suite: group of benchmarks/metatraining.yaml to ship.")
    ] = None,
    length: Annotated[int, typer.Option(min=2, max=6, help="S: snapshots that the networks take.")] = LENGTH,
    device: Device = None,
    threads: Threads = 1,
) -> None:
    """Train KNOWN, scaled KNOWN and meta-linear on a meta-set, and print held-out errors beside "no change".

    Of a suite (work/SUITE/known/LENGTH/), or a group of those that ship (know/pretrained/GROUP/LENGTH/).
    """
    from benchmarks.metatraining import fit_known
    from know.files import PRETRAINED

    if (suite is None) == (group is None):
        raise KnowError("give either --suite or --group")
    settings, work, device = _metatraining(suite, device, threads)
    shards = [work / "metaset" / str(shard) / "manifest.json" for shard in range(settings.shards)]
    out, without = work / "known" / str(length), []
    if group:
        groups = load_shipped().groups
        if group not in groups:
            raise unknown("group", group, groups)
        out, without = PRETRAINED / group / str(length), groups[group].without
    known = fit_known(shards, settings, length=length, without=without, out=out, device=device)
    for role, errors in known.facts["held_out"].items():
        print(f"{role:5} held-out error {errors['loss']:.3g}, no change {errors['no_change_loss']:.3g}")


def _metatraining(suite: str | None, device: str | None, threads: int) -> tuple[MetaTraining, Path, str]:
    """Settings of a suite's meta-training, or of the networks that ship, where its work goes, and the device."""
    if suite is None:
        return load_shipped().metatraining, WORK / "shipped", _start(device, threads)
    settings = load_suite(suite)
    if settings.metatraining is None:
        raise KnowError(f"suite {suite} has no meta-training of its own; it asks the shipped group {settings.known!r}")
    return settings.metatraining, _work(suite), _start(device, threads, settings)


@app.command()
def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="A trajectory folder, or checkpoints (files or folders), smallest subset first."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for weights, know_config.yml and README.md; must not exist.")
    ] = None,
    predictor: Annotated[str, typer.Option(help="Name of a file in know/methods/.")] = "known",
    depth: Annotated[int, typer.Option(help="Recursions; depth n stands for r^-n times the data.")] = 1,
    fractions: Annotated[str | None, typer.Option(help="With checkpoints: their fractions, as 0.25,0.5,1.")] = None,
    known: Annotated[
        Path | None,
        typer.Option(
            help="KNOWN's file, the folder of a meta-training or of the authors' .h5; default: what the package ships."
        ),
    ] = None,
    option: Annotated[list[str] | None, typer.Option("-o", help="Option of the predictor, as step=0.5.")] = None,
    scale: Annotated[
        str | None,
        typer.Option(help="Length of the step; 1 is the predictor's own. With --validate: those to try, as 0.5,1,2."),
    ] = None,
    validate: Annotated[
        str | None,
        typer.Option(
            help="SCRIPT.py:function, from the path of a checkpoint to a number, the higher the better. Tries theta_0"
            " and a few lengths of the step (0.25, 0.5, 1, or --scale) and keeps the best."
        ),
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=ROLE: role (conv, fc, bias, norm, skip) of the tensors that fit, as 'stem.*=conv'."),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN of tensors to leave alone, as 'head.*'; same as --role PATTERN=skip."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Entry of a .pt file that holds the weights, as state_dict or ema.model.")
    ] = None,
    strip: Annotated[str, typer.Option(help="Prefix to take off the names that have it, as 'module.'.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the tensors: shape, dtype, role, what would happen.")
    ] = False,
    seed: Annotated[int, typer.Option(help="For predictors that draw random numbers.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch's own choice.")] = 0,
) -> None:
    """Write earlier weights ("as if trained on more data") in the layout, names, shapes and dtypes of theta_0.

        know predict run/ --depth 1 --out better/

    Reads .safetensors, folders of Hugging Face (shards too) and .pt files in weights-only mode, piece by piece.
    Normalisation parameters and buffers are copied. Fine-tune the result as you would the original.
    """
    from know import export as prediction

    if out is None and not dry_run:
        raise KnowError("give --out, a folder to make, or --dry-run")
    if out is not None and os.path.lexists(out):
        raise KnowError(f"{out} exists already; name a new folder")
    _start("cpu", threads)
    trajectory = _trajectory(inputs, fractions, key, strip)
    roles = [_pair(text, "--role", "PATTERN=ROLE") for text in role or []] + [
        (pattern, "skip") for pattern in skip or []
    ]
    if dry_run:
        rows = prediction.plan(trajectory, dict(roles))
        for row in rows:
            print(f"{row.tensor:48} {'x'.join(map(str, row.shape)) or '-':>18} {row.dtype:9} {row.role:7} {row.action}")
        done = [trajectory.meta[row.tensor].numel() for row in rows if row.action.startswith("predicted")]
        print(f"{len(done)} of {len(rows)} tensors would be predicted, {sum(done):,} weights; nothing was written")
        return
    scales = _numbers(scale, "--scale") if scale is not None else [0.25, 0.5, 1.0] if validate else [1.0]
    if not validate and len(scales) > 1:
        raise KnowError("--scale takes several lengths only with --validate, which chooses among them")
    options = tuple(_option(text) for text in option or [])
    request = prediction.Request(predictor, depth, scales[0], known, seed, tuple(roles), options)
    config, changes = prediction.predict_files(trajectory, request, out, validate=validate, scales=scales, say=print)
    factor = config["virtual_data"]
    place = f"at depth {depth}, {factor:g} times the data" if factor else "which has no depth"
    print(f"{out}: {predictor} {place}")
    if changes.weights:
        step, share = changes.step or 0.0, changes.changed / changes.weights
        kept = f"scale {config['scale']:g}, " if config["scale"] != 1 else ""
        print(
            f"{kept}step {step:.3g} times theta_0's length; {changes.weights:,} weights predicted, {share:.1%} changed"
        )
    if config["learnt_from"]:
        print(f"asked: the networks that ship, meta-trained on {', '.join(config['learnt_from'])}")


@app.command()
def predictors(
    name: Annotated[str | None, typer.Argument(help="Name of a predictor; none: list them all.")] = None,
) -> None:
    """List the predictors, or say what one is, with its options for -o, and its reference."""
    from know import methods as registry

    if name is None:
        for found in map(registry.get, registry.names()):
            print(f"{found.name:20}{found.summary}")
        return
    found = registry.get(name)
    print(f"{found.name}: {found.documentation}\n\nReference: {found.reference}")
    print(f"Depths in suites: {', '.join(map(str, found.depths)) or 'it has none'}")
    for option, default in found.options.items():
        choices = f" (one of {', '.join(found.choices[option])})" if option in found.choices else ""
        print(f"  -o {option}={default}{choices}")


@app.command(name="inspect")
def inspect_(
    inputs: Annotated[
        list[Path] | None, typer.Argument(help="A trajectory folder, or checkpoints, smallest subset first.")
    ] = None,
    suite: MaybeSuite = None,
    predictor: Annotated[str, typer.Option(help="Name of a predictor (see `know predictors`).")] = "known",
    depth: Annotated[int, typer.Option(help="Recursions; depth n stands for r^-n times the data.")] = 1,
    fractions: Annotated[str | None, typer.Option(help="With checkpoints: their fractions, as 0.25,0.5,1.")] = None,
    known: Annotated[
        Path | None, typer.Option(help="KNOWN's file, or the folder of a meta-training; default: what ships.")
    ] = None,
    option: Annotated[list[str] | None, typer.Option("-o", help="Option of the predictor, as step=0.5.")] = None,
    seed: Annotated[int, typer.Option(help="For predictors that draw random numbers.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for tables and a figure; must not exist.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch's own choice.")] = 0,
) -> None:
    """Take a prediction apart: does it shrink the weights, extrapolate their last movement, or neither?

        know inspect run/ --predictor known --depth 3 --out inspected/

    Prints, per tensor and role, the step relative to theta_0 and the shares of its square along -theta_0 (shrink),
    along theta_0 - theta_1 (linear) and in neither; then how straight the trajectory itself is. --out adds csv files,
    the response curves of the network that is asked, and a figure.

    With --suite: the tables of a suite (work/SUITE/inspection/).
    """
    from know import inspection

    if suite:
        _start("cpu", threads or 1)
        settings = load_suite(suite)
        known = {length: settings.known_folder(_work(suite), length) for length in settings.lengths}
        inspection.inspect_suite(settings.cells, settings.trajectory_ids, settings.arms, _work(suite), known)
        return
    if not inputs:
        raise KnowError("give a trajectory folder, checkpoints with --fractions, or --suite")
    if out and out.exists():
        raise KnowError(f"{out} exists already; name a new folder")
    _start("cpu", threads)
    trajectory, options = _trajectory(inputs, fractions), dict(_option(text) for text in option or [])
    asked = {"known": known, "seed": seed, "out": out, **options}
    rows = inspection.inspect_trajectory(trajectory, predictor, depth, **asked)
    print(f"{'tensor':32} {'role':5} {'weights':>9} {'step':>7} {'shrink':>7} {'linear':>7} {'neither':>7}")
    for row in rows:
        numbers = (row.step, row.shrink, row.linear, row.neither)
        shown = " ".join("      -" if number is None else f"{number + 0.0:7.3f}" for number in numbers)
        print(f"{row.tensor or 'all of role' if row.role != 'all' else 'all':32} {row.role:5} {row.weights:9} {shown}")
    print("\ncosine of each difference theta_k - theta_{k+1} with the one before it, all tensors:")
    cosines = {r["difference"]: r["cosine"] for r in inspection.movement(trajectory) if r["role"] == "all"}
    print(", ".join(f"k = {k}: {cosine:.2f}" for k, cosine in cosines.items() if cosine is not None) or "only one")
    if out:
        from know.drawing import draw_inspection

        print(
            f"tables{' and figure' if draw_inspection(out) else ' (no figure: matplotlib is not installed)'} in {out}"
        )


@app.command()
def import_keras(
    source: Annotated[Path, typer.Argument(help="Folder with KNOWN_{Conv,FC,Bias}.h5 (or WNN_...).")],
    out: Annotated[Path, typer.Argument(help="File to write, such as released.safetensors.")],
    model: Annotated[str, typer.Option(help="released (KNOWN) or wnn.")] = "released",
    roles: Annotated[
        str, typer.Option(help="released: kernels of every size go to the conv network; paper: only 3x3 ones.")
    ] = "released",
) -> None:
    """Turn the authors' Keras files into a file for `know predict --known`. Needs h5py (pip install 'know[keras]')."""
    from know.errors import unknown
    from know.keras import MODELS
    from know.known import Known

    if model not in MODELS:
        raise unknown("model", model, MODELS)
    Known.from_keras(source, model, roles=roles).save(out)
    print(f"{out}: {model}, three networks; ask it with `know predict RUN --known {out} --out BETTER`")


@app.command()
def transfer(
    suite: SuiteName,
    cell: Annotated[str, typer.Option(help="Name of a cell, as in work/SUITE/transfers/.")],
    device: Device = None,
    threads: Threads = 1,
    processes: Processes = 1,
) -> None:
    """Fine-tune every arm of a cell on the target: rates chosen on the pilots, frozen, then evaluated.

    Finished fine-tunes are remembered by content in work/SUITE/memory/, so that a new arm costs only its own; those of
    other suites count too. With KNOW_FORCE set, everything is computed anew.
    """
    from benchmarks.reuse import gather_memory
    from benchmarks.transfer import run_cell

    settings, work = load_suite(suite), _work(suite)
    chosen, memory = settings.cell(cell), work / "memory" / f"{cell}.jsonl"
    if os.environ.get("KNOW_FORCE"):
        memory.unlink(missing_ok=True)
    if count := gather_memory(memory, everywhere=WORK):
        print(f"{count} fine-tunes of other cells and suites are remembered")
    run_cell(
        chosen,
        settings.trajectory_ids,
        settings.transfer,
        settings.arms,
        origin=work / "trajectories" / chosen.origin.slug,
        known=settings.known_folder(work, chosen.length),
        memory=memory,
        out=work / "transfers" / cell,
        device=_start(device, threads, settings),
        processes=processes,
    )


@app.command()
def landscape(suite: SuiteName, device: Device = None, threads: Threads = 1) -> None:
    """Loss over the plane through the first trajectory and its predictions (work/SUITE/landscape.csv)."""
    from benchmarks.landscape import make_landscape

    settings, work = load_suite(suite), _work(suite)
    cell = settings.cells[0]
    folder = work / "trajectories" / cell.origin.slug / "t0" / cell.track
    known = settings.known_folder(work, cell.length)
    device = _start(device, threads, settings)
    make_landscape(folder, known, length=cell.length, out=work / "landscape.csv", device=device)


@app.command()
def cost(suite: SuiteName, device: Device = None, threads: Threads = 1) -> None:
    """Measure what each arm costs before fine-tuning: training, time and memory of prediction.

    Needs the suite's data.json (`know data --suite NAME`) and its KNOWN, no trajectory; writes
    work/SUITE/cost_by_arm.csv. Leave the machine alone meanwhile.
    """
    from benchmarks.cost import measure

    settings, work = load_suite(suite), _work(suite)
    device = _start(device, threads, settings)
    known = {length: settings.known_folder(work, length) for length in settings.lengths}
    measure(settings, work, known, out=work / "cost_by_arm.csv", device=device)


@app.command()
def run(suite: SuiteName, device: Device = None, threads: Threads = 1, results: Results = RESULTS) -> None:
    """Run a whole suite in this process and publish it (results/SUITE/), where there is no Snakemake.

    Finished steps are skipped, an interrupted run goes on by the same command. Figures: `python -m paper_figures`.
    """
    from benchmarks.chain import run_chain, steps
    from benchmarks.records import RunRecord, read_records
    from benchmarks.report.publish import metrics, publish

    settings, work, name = load_suite(suite), _work(suite), suite_name(suite)
    _start(device, threads, settings)  # whether it is there, before the data are read
    run_chain(list(steps(settings, suite, work, device, threads)), work, print)
    publish(settings, name, work, results, device=device)
    for cell, arms in metrics(read_records([results / name / "runs.csv"], RunRecord)).items():
        print(f"\n{cell}: mean test accuracy, %\n{'arm':28}{'published':>10}{'tuned':>8}")
        for arm, found in arms.items():
            print(f"{arm:28}{found['published']:10.2f}{found['tuned']:8.2f}")
    print(f"\ntables: {results / name / 'README.md'}")


@app.command()
def report(
    suite: Annotated[str | None, typer.Option("--suite", help="Publish this suite's run into results/SUITE/.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check that the pages fit the records; change nothing.")
    ] = False,
    merge: Annotated[
        Path | None, typer.Option(help="Folder of results that another machine has published: take its suites over.")
    ] = None,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="With --suite: what is finished, and what is missing and why.")
    ] = False,
    results: Results = RESULTS,
) -> None:
    """Write tables and pages from the run records, or check that the committed ones fit them (exit code 2 if not).

    With --suite: gather that suite's finished run into results/SUITE/. With --merge: take over suites that were
    published elsewhere by the same code. Without: write the pages of all suites anew.
    """
    from benchmarks.report import publish as pages

    if merge:
        for name in pages.merge(merge, results):
            print(f"{results / name} taken over; draw its figures with `python -m paper_figures {results / name}`")
    elif suite and not check:
        pages.publish(load_suite(suite), suite_name(suite), _work(suite), results, incomplete=incomplete)
    elif check:
        for page in pages.check(results):
            print(f"{page} fits its records")
    else:
        pages.write_pages(results)


@app.command()
def verify(
    suite: SuiteName = "smoke",
    against: Annotated[str, typer.Option(help="Git revision whose results to compare with.")] = "HEAD",
    results: Results = RESULTS,
) -> None:
    """Check a run: hashes of every file, the code that made it, and its results against the committed ones.

    Exact where the recorded environment (processor, library versions) is the same; otherwise every arm's mean must lie
    within the combined intervals.
    """
    from benchmarks.report.verify import verify_suite

    for line in verify_suite(load_suite(suite), suite_name(suite), _work(suite), results, against):
        print(line)


def _trajectory(inputs: list[Path], fractions: str | None, key: str | None = None, strip: str = "") -> Any:
    from know.trajectory import Trajectory

    if len(inputs) == 1:
        if fractions or key or strip:
            raise KnowError(
                "--fractions, --key and --strip go with several checkpoints; a trajectory folder has its own"
            )
        return Trajectory.load(inputs[0])
    if not fractions:
        raise KnowError(f"{len(inputs)} checkpoints need --fractions, smallest subset first, such as 0.25,0.5,1")
    return Trajectory.from_checkpoints(inputs, _numbers(fractions, "--fractions"), key=key, strip=strip)


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise KnowError(f"{option} {text!r}: give numbers with commas between, such as 0.25,0.5,1") from error


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    before, equals, after = text.rpartition("=")
    if not equals or not before:
        raise KnowError(f"{option} {text!r}: write it as {form}")
    return before, after


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise KnowError(f"-o {text!r}: write it as name=value")
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value


def _checked(kind: type, options: dict[str, str] | None = None, /, **values: Any) -> Any:
    """A settings object from command-line values; the first wrong one becomes a one-line error."""
    import pydantic

    try:
        return kind(**values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise KnowError(f"--{(options or {}).get(name, name).replace('_', '-')}: {first['msg']}") from error
