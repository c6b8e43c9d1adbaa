"""The command line: every command is a few lines around the library, and every error one line with exit code 2.

torch is imported only by commands that compute.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from know.arguments import checkpoints_of, numbers, option_of, roles_of
from know.errors import KnowError


def new_app(purpose: str) -> typer.Typer:
    """A command line with the conventions of this project: short and long names of help, and no own tracebacks."""
    return typer.Typer(
        help=purpose,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = new_app("KNOW prediction: weights as if trained on more data, from a forgetting trajectory.")

Inputs = Annotated[
    list[Path] | None,
    typer.Argument(help="A trajectory folder, or checkpoints (files or folders), smallest subset first."),
]
Method = Annotated[str, typer.Option(help="Name of a method (see `know methods`).")]
Depth = Annotated[int, typer.Option(help="Recursions; depth n stands for r^-n times the data.")]
Fractions = Annotated[str | None, typer.Option(help="With checkpoints: their fractions, as 0.25,0.5,1.")]
KnownFile = Annotated[
    Path | None,
    typer.Option(
        help="KNOWN's file, the folder of a meta-training or of the authors' .h5; default: that of group general."
    ),
]
Options = Annotated[list[str] | None, typer.Option("-o", help="Option of the method, as step=0.5.")]
Role = Annotated[
    list[str] | None,
    typer.Option(
        help="PATTERN=ROLE: role (conv, fc, bias, norm, skip) of the tensors that fit, as 'stem.*=conv'. Of several"
        " patterns, --skip included, the later wins."
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(help="PATTERN of tensors to leave alone, as 'head.*'; same as --role PATTERN=skip."),
]
Key = Annotated[
    str | None, typer.Option(help="Entry of a .pt file that holds the weights, as state_dict or ema.model.")
]
Strip = Annotated[
    list[str] | None, typer.Option(help="Prefix to take off the names that have it, as 'module.'; may be repeated.")
]
Seed = Annotated[int, typer.Option(help="For methods that draw random numbers.")]
Threads = Annotated[int, typer.Option(min=0, max=1024, help="CPU threads; 0: torch's own choice.")]


class InOrder(TyperCommand):
    """A command whose --skip and --role keep their common order, which decides: --skip X becomes --role X=skip."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ordered, rest = [], iter(args)
        for text in rest:
            if text == "--skip" and (pattern := next(rest, None)) is not None:
                ordered += ["--role", f"{pattern}=skip"]
            elif text.startswith("--skip="):
                ordered.append(f"--role={text.removeprefix('--skip=')}=skip")
            else:
                ordered.append(text)
        return super().parse_args(ctx, ordered)


def main() -> None:
    """Entry point of the command `know`."""
    main_of(app, "know")


def main_of(commands: typer.Typer, name: str) -> None:
    """Run a command line: errors that the user can mend become one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of tensors may hold characters that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        code = commands(prog_name=name, standalone_mode=False)
        if code == 130:  # how Typer reports Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except KnowError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}; check the path, the permissions and the free space")
    except Exception as error:  # the command line's own errors, such as an unknown option
        if not hasattr(error, "format_message"):
            raise
        known = [each for each in sys.argv[1:2] if each in typer.main.get_command(commands).commands]
        _fail(f"{error.format_message()} (see `{' '.join([name, *known])} --help`)")
    except KeyboardInterrupt:
        kept = name != "know" or sys.argv[1:2] in (["forget"], ["compare"])  # the others make all or nothing
        print(f"know: interrupted{'; the same command goes on from what was kept' if kept else ''}", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"know: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _threads(count: int) -> None:
    """Use that many CPU threads; 0 leaves torch's own choice."""
    import torch

    if count:
        torch.set_num_threads(count)


@app.command()
def forget(
    script: Annotated[
        str, typer.Argument(help="SCRIPT.py:function, a function without arguments that returns model, dataset, fit.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the trajectory to make.")],
    ratio: Annotated[float, typer.Option(help="r: each subset is this share of the one before.")] = 0.5,
    length: Annotated[int, typer.Option(help="S: number of snapshots; KNOWN takes 5.")] = 5,
    fractions: Annotated[
        str | None, typer.Option(help="Instead of ratio and length: shares of the data, as 0.25,0.5,1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which images the subsets have.")] = 0,
    threads: Threads = 0,
) -> None:
    """Make a forgetting trajectory: fine-tune your model on ever smaller nested subsets, keep every snapshot.

        know forget my_training.py:setup --out run/

    `setup()` returns what know.forget takes: the pretrained model, the dataset that it was trained on, and
    fit(model, subset), your training function. A fourth function, placebo(model, subset), may train on all of the data
    for as many steps; `know inspect` then says how much of the movement is forgetting. The same command resumes an
    interrupted run, if setup() returns the same weights again.
    """
    from know import forgetting, scripts

    _threads(threads)
    chosen = numbers(fractions, "--fractions") if fractions is not None else None
    settings = {"ratio": ratio, "length": length, "fractions": chosen, "seed": seed, "out": out}

    def make() -> Any:
        model, dataset, fit, placebo = scripts.setup_of(script)
        return forgetting.forget(model, dataset, fit, placebo=placebo, **settings)

    made = scripts.call(make, script, "SCRIPT")
    print(f"{out}: a trajectory of {len(made.paths)} snapshots; next: know predict {out} --out BETTER")


@app.command(cls=InOrder)
def predict(
    inputs: Inputs = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for weights, know_config.yml and README.md; must not exist.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a method (see `know methods`), or NAME:depth in place of --depth. With --validate it may"
            " be repeated.",
            show_default="known",
        ),
    ] = None,
    depth: Depth = 1,
    fractions: Fractions = None,
    known: KnownFile = None,
    option: Options = None,
    scale: Annotated[
        str | None,
        typer.Option(help="Length of the step; 1 is the method's own. With --validate: those to try, as 0.5,1,2."),
    ] = None,
    validate: Annotated[
        str | None,
        typer.Option(
            help="SCRIPT.py:function, from the path of a checkpoint, and a split if it takes one, to a number, the"
            " higher the better. Tries theta_0 and every method at a few lengths of its step (1, 0.5, 0.25, or --scale)"
            " and keeps the best."
        ),
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="With --validate: how often the function is called at most; default: no limit.")
    ] = None,
    role: Role = None,
    skip: Skip = None,
    key: Key = None,
    strip: Strip = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the tensors: shape, dtype, what would happen, and why.")
    ] = False,
    seed: Seed = 0,
    threads: Threads = 0,
) -> None:
    """Write earlier weights ("as if trained on more data") in the layout, names, shapes and dtypes of theta_0.

        know predict run/ --depth 1 --out better/

    Reads .safetensors, folders of Hugging Face (shards too) and .pt files in weights-only mode, piece by piece.
    Normalisation parameters and buffers are copied. Fine-tune the result as you would the original.
    """
    from know import choosing, export, methods

    _demand_inputs(inputs)
    if out is None and not dry_run:
        raise KnowError("give --out, a folder to make, or --dry-run")
    _refuse_existing(out)
    _threads(threads)
    trajectory = _trajectory(inputs, fractions, key, strip)
    roles = list(roles_of(role).items())
    options = tuple(option_of(text) for text in option or [])
    asked = {"known": known, "seed": seed, "roles": tuple(roles), "options": options}
    requests = [export.Request.of(text, depth, **asked) for text in method or ["known"]]
    if dry_run:
        for request in requests:
            request.check(trajectory)
        rows = export.plan(trajectory, dict(roles))
        done = [trajectory.meta[row.tensor].numel() for row in rows if row.action.startswith("predicted")]
        for request in requests if done else ():
            request.try_first(trajectory)
        for row in rows:
            shape = "x".join(map(str, row.shape)) or "-"
            print(f"{row.tensor:48} {shape:>18} {row.dtype:9} {row.action} ({row.reason})")
        for note in dict.fromkeys(note for request in requests for note in export.notes(trajectory, request)):
            print(f"note: {note}")
        print("Single weights that are 0 in all snapshots stay 0; how many is known only after reading all values.")
        print(f"theta_0 is {trajectory.paths[-1]}, and the snapshot of the smallest subset {trajectory.paths[0]}")
        print(f"{len(done)} of {len(rows)} tensors would be predicted, {sum(done):,} weights; nothing was written")
        return
    scales = (
        numbers(scale, "--scale") if scale is not None else list(choosing.SCALES) if validate is not None else [1.0]
    )
    several = {"--scale": len(scales) > 1, "--method": len(requests) > 1, "--evaluations": evaluations is not None}
    for name, given in several.items():
        if given and validate is None:
            what = "belongs to a choice, so only" if name == "--evaluations" else "takes several values only"
            raise KnowError(f"{name} {what} with --validate, which chooses among them")
    if options and len({request.method for request in requests}) > 1:
        raise KnowError("-o is an option of one method; give one --method with it")
    if validate is not None:
        limits = {"scales": scales, "evaluations": evaluations}
        config, changes = choosing.choose_files(trajectory, requests, out, validate, **limits, say=print)
        if not config["scale"]:
            print(f"{out}: theta_0, unchanged")
            return
        requests = [one for one in requests if (one.method, one.depth) == (config["method"], config["depth"])]
    else:
        requests = [dataclasses.replace(requests[0], scale=scales[0])]
        config, changes = export.predict_files(trajectory, requests[0], out)
    method, depth = config["method"], config["depth"]
    factor = config["virtual_data"]
    data = f", {factor:g} times the data" if factor else ""
    place = f" at depth {depth}{data}" if methods.get(method).depths else ", which has no depth"
    print(f"{out}: {method}{place}, from theta_0, {trajectory.paths[-1]}")
    if changes.weights:
        step, share = changes.step or 0.0, changes.changed / changes.weights
        kept = f"scale {config['scale']:g}, " if config["scale"] != 1 else ""
        print(f"{kept}step {step:.3g} times |theta_0|; {changes.weights:,} weights predicted, {share:.1%} changed")
    for note in export.notes(trajectory, requests[0], changes):
        print(f"note: {note}")
    if config["learnt_from"]:
        print(f"asked: the networks that ship, meta-trained on {', '.join(config['learnt_from'])}")


@app.command(cls=InOrder)
def compare(
    inputs: Inputs = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="SCRIPT.py:function. function(checkpoint path, learning_rate, seed) fine-tunes on your task and"
            " returns the validation score, or validation and test score, the higher the better."
        ),
    ] = None,
    rates: Annotated[
        str | None, typer.Option(help="Learning rates to try, the one that you use today first, as 1e-4,3e-4,1e-3.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page, figure and table; must not exist.")] = None,
    seeds: Annotated[int, typer.Option(help="Seeds on which all candidates are evaluated.")] = 4,
    pilots: Annotated[int, typer.Option(help="Other seeds, on which each candidate's rate is chosen.")] = 2,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="A further candidate, as NAME or NAME:depth; may be repeated.")
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=CHECKPOINT: weights of yours that take part, such as theta_0 trained on for as long as the"
            " forgetting took, in any format; may be repeated."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Fine-tunes at a time, each in a process of its own.")] = 1,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Also write the prediction or control that gains most, if one is seen to."),
    ] = False,
    fractions: Fractions = None,
    role: Role = None,
    skip: Skip = None,
    key: Key = None,
    strip: Strip = None,
    threads: Threads = 0,
) -> None:
    """Find out whether it helps on your task: theta_0 and predictions, each at today's rate and at its own best one.

        know compare run/ --task my_task.py:fine_tune --rates 1e-4,3e-4,1e-3,3e-3 --out compared/

    Candidates: theta_0; KNOWN at depth 1 and 3, and shrink matched to the latter, where there are five snapshots; every
    --method; and every checkpoint of yours that --beside names. Rates are chosen on pilot seeds and evaluated on
    others. The same command goes on with an interrupted comparison. Needs scipy and matplotlib.
    """
    from know import comparison
    from know.verdict import verdict

    for option, value in (("--task", task), ("--rates", rates), ("--out", out)):
        if value is None:
            raise KnowError(f"give {option}; see `know compare --help`")
    _threads(threads)
    trajectory = _trajectory(inputs, fractions, key, strip)
    asked = {"seeds": seeds, "pilots": pilots, "methods": method or (), "jobs": jobs, "keep": keep}
    asked |= {"beside": checkpoints_of(beside), "roles": roles_of(role)}
    rows = comparison.compare(trajectory, task, numbers(rates, "--rates"), out=out, say=print, **asked)
    print(verdict(rows))
    print(f"table and figure: {out / 'README.md'}")


@app.command(name="methods")
def methods_(
    name: Annotated[str | None, typer.Argument(help="Name of a method; none: list them all.")] = None,
) -> None:
    """List the methods that predict weights, or say what one is, with its options for -o, and its reference."""
    from know import methods

    if name is None:
        for each in map(methods.get, methods.names()):
            print(f"{each.name:20}{each.summary}")
        return
    method = methods.get(name)
    print(f"{method.name}: {method.documentation}\n\nReference: {method.reference}")
    print(f"Depths in suites: {', '.join(map(str, method.depths)) or 'it has none'}")
    for option, default in method.options.items():
        choices = f" (one of {', '.join(method.choices[option])})" if option in method.choices else ""
        print(f"  -o {option}={default}{choices}")


@app.command(name="inspect", cls=InOrder)
def inspect_(
    inputs: Inputs = None,
    method: Method = "known",
    depth: Depth = 1,
    fractions: Fractions = None,
    known: KnownFile = None,
    option: Options = None,
    scale: Annotated[float, typer.Option(help="Length of the step; 1 is the method's own.")] = 1.0,
    role: Role = None,
    skip: Skip = None,
    key: Key = None,
    strip: Strip = None,
    placebo: Annotated[
        Path | None,
        typer.Option(help="Trajectory folder of as many steps with nothing removed; default: the one in the folder."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for tables and a figure; must not exist.")] = None,
    threads: Threads = 0,
) -> None:
    """Take a prediction apart: does it shrink the weights, extrapolate their last movement, or neither?

        know inspect run/ --method known --depth 3 --out inspected/

    Prints, per tensor and role, the step relative to theta_0 and the shares of its square along -theta_0 (shrink),
    along theta_0 - theta_1 (linear) and in neither; then how straight the trajectory itself is; then, where there is a
    placebo, how much of the movement is forgetting. --out adds csv files and a figure.
    """
    from know import inspection, methods

    _refuse_existing(out)
    _threads(threads)
    trajectory, options = _trajectory(inputs, fractions, key, strip), dict(option_of(text) for text in option or [])
    roles = roles_of(role)
    options = methods.get(method).check_options(options)
    beside = inspection.placebo_of(trajectory, placebo)
    asked = {"known": known, "seed": seed, "scale": scale, "roles": roles, "placebo": beside, "out": out, **options}
    rows = inspection.inspect_trajectory(trajectory, method, depth, **asked)
    print(f"{'tensor':32} {'role':5} {'weights':>9} {'step':>7} {'shrink':>7} {'linear':>7} {'neither':>7}")
    for row in rows:
        numbers = (row.step, row.shrink, row.linear, row.neither)
        shown = " ".join("      -" if number is None else f"{number + 0.0:7.3f}" for number in numbers)
        print(f"{row.tensor or 'all of role' if row.role != 'all' else 'all':32} {row.role:5} {row.weights:9} {shown}")
    print("\ncosine of each difference theta_k - theta_{k+1} with the one before it, all tensors:")
    cosines = {r["difference"]: r["cosine"] for r in inspection.movement(trajectory, roles) if r["role"] == "all"}
    print(", ".join(f"k = {k}: {cosine:.2f}" for k, cosine in cosines.items() if cosine is not None) or "only one")
    if beside:
        print("\ntheta_k beside the placebo p_k, which made as many steps on all of the data, all tensors:")
        print(f"{'k':>3} {'|theta_k - theta_0|':>20} {'|p_k - theta_0|':>16} {'|theta_k - p_k|':>16} {'cosine':>7}")
        for row in inspection.beside_placebo(trajectory, beside, roles):
            if row["role"] == "all":
                print("{snapshot:3} {moved:20.4f} {placebo_moved:16.4f} {apart:16.4f} {cosine:7.2f}".format(**row))
        print("lengths by |theta_0|; cosine: of theta_k - p_k with theta_k - theta_0, 1 where all of it is forgetting")
    if out:
        from know.drawing import draw_inspection

        print(f"tables{' and figure' if draw_inspection(out) else ' (no figure: pip install matplotlib)'} in {out}")


@app.command()
def import_keras(
    source: Annotated[Path, typer.Argument(help="Folder with KNOWN_{Conv,FC,Bias}.h5 (or WNN_...).")],
    out: Annotated[Path, typer.Argument(help="File to write, such as released.safetensors.")],
    model: Annotated[str, typer.Option(help="released (KNOWN) or wnn.")] = "released",
    roles: Annotated[
        str, typer.Option(help="released: kernels of every size go to the conv network; paper: only 3x3 ones.")
    ] = "released",
) -> None:
    """Turn the authors' Keras files into a file for `know predict --known`. Needs h5py (pip install h5py)."""
    from know.known import Known

    _refuse_existing(out)
    Known.from_keras(source, model, roles=roles).save(out)
    print(f"{out}: {model}, three networks; ask it with `know predict RUN --known {out} --out BETTER`")


def _refuse_existing(out: Path | None) -> None:
    if out is not None and os.path.lexists(out):
        raise KnowError(f"{out} exists already; name a new folder")


def _demand_inputs(inputs: list[Path] | None) -> None:
    if not inputs:
        raise KnowError("give a trajectory folder, or checkpoints with --fractions")


def _trajectory(inputs: list[Path] | None, fractions: str | None, key: str | None, strip: list[str] | None) -> Any:
    from know.trajectory import Trajectory

    _demand_inputs(inputs)
    if len(inputs) == 1:
        if fractions or key or strip:
            raise KnowError(
                "--fractions, --key and --strip belong to several checkpoints, not to a trajectory folder; name the"
                " files of the snapshots one by one, smallest subset first"
            )
        return Trajectory.load(inputs[0])
    if not fractions:
        raise KnowError(f"{len(inputs)} checkpoints need --fractions, smallest subset first, such as 0.25,0.5,1")
    return Trajectory.from_checkpoints(inputs, numbers(fractions, "--fractions"), key=key, strip=strip or ())
