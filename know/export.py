"""From checkpoint files to a checkpoint file: `know predict`, in memory that does not grow with the model.

A prediction is made in a temporary folder, which is renamed when complete. It holds weights in the layout of theta_0's
file, the settings that make it again (know_config.yml), and a model card.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
import shutil
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import know
from know.checkpoints import Checkpoint, load_facts
from know.errors import KnowError, as_path
from know.files import PACKAGE, PRETRAINED, new_folder, refuse_links_out, sha256_file, write_text
from know.formats import SINGLE, TRAINING, WEIGHTS, SafetensorsFile, TorchFile
from know.known import Models
from know.layout import SafetensorsWriter, TorchWriter, entries_beside
from know.methods import get
from know.prediction import Overflow, Piece, check_asked, pieces, predicted
from know.roles import PREDICTED, Role
from know.trajectory import Trajectory

CARD = PACKAGE / "card.md.j2"
"""Template of the model card."""
LARGE_WEIGHT = 2.0
"""Larger weights are pointed out: KNOWN takes raw values, and its answer to them has not been measured."""
RUNAWAY, FAR = 1.5, 0.1
"""A predicted weight is pointed out beyond so many times the largest of theta_0 in its `Piece`, if it moved so far. It
was 1.8 to 2.2 times where KNOWN ran away, and elsewhere at most 1.13 (docs/LOG.md)."""
RATIOS = (0.3, 0.9)
"""Smallest and largest ratio of a meta-training whose facts do not say it, such as the authors': those of the paper."""
NEAR = 0.01
"""How far outside the ratios of the meta-training a ratio may lie without a note."""
SAMPLED = 1 << 16
"""How many values of every tensor are read to say how far the snapshots lie apart."""
_COPIED = 1 << 22  # values copied at once
STALE = (".h5", ".msgpack", ".onnx", ".xml", ".gguf", ".tflite", ".ot")
"""Endings of files that hold theta_0's weights in another format."""
MODEL = re.compile(r"(.*model|consolidated|diffusion_.*|.*-of-.*)\b.*|.*\.(safetensors|distcp)")
"""Names of files with the weights of a model, among those that end as files with weights do."""
OWN_CARD, OTHER_CARD = "README.md", "README_know.md"
"""Our card, and its name where theta_0 brings a card of its own."""


@dataclass(frozen=True)
class Planned:
    """What happens to one tensor."""

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    reason: str
    action: str


@dataclass
class Changes:
    """What a prediction changed, summed over the predicted tensors."""

    weights: int = 0
    large: int = 0
    """How many exceed `LARGE_WEIGHT` in magnitude."""
    runaway: int = 0
    """How many are predicted beyond `RUNAWAY` times the largest of theta_0 beside them, and move by more than `FAR`."""
    changed: int = 0
    """How many differ from theta_0 in its own dtype."""
    step_squared: float = 0.0
    theta_0_squared: float = 0.0

    def add(self, piece: Piece) -> None:
        step = piece.answer.float() - piece.theta_0
        self.weights += len(step)
        sizes = piece.theta_0.abs()
        self.large += int((sizes > LARGE_WEIGHT).sum())
        self.runaway += int(((piece.answer.float().abs() > RUNAWAY * sizes.max()) & (step.abs() > FAR)).sum())
        self.changed += int(step.count_nonzero())
        self.step_squared += float(step @ step)
        self.theta_0_squared += float(piece.theta_0 @ piece.theta_0)

    @property
    def step(self) -> float | None:
        """|theta - theta_0| / |theta_0|; None where theta_0 is zero."""
        return (self.step_squared / self.theta_0_squared) ** 0.5 if self.theta_0_squared else None


@dataclass(frozen=True)
class Request:
    """Everything that decides a prediction besides the snapshots; see `know.predict`."""

    method: str = "known"
    depth: int = 1
    scale: float = 1.0
    known: Path | None = None
    seed: int = 0
    roles: tuple[tuple[str, str], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, text: str, depth: int = 1, **settings: Any) -> Request:
        """The request for a method as it is named on the command line: NAME, then at `depth`, or NAME:depth."""
        name, colon, own = text.partition(":")
        if colon and not own.isdecimal():
            raise KnowError(f"--method {text!r}: write it as NAME or NAME:depth, such as known:2")
        return cls(name, int(own[:9]) if colon else depth, **settings)

    def checked_options(self) -> dict[str, Any]:
        """The options, with their defaults; KnowError for one that the method does not have."""
        return get(self.method).check_options(dict(self.options))

    def check(self, trajectory: Trajectory) -> None:
        """KnowError if the method cannot be asked so about this trajectory."""
        self.checked_options()
        check_asked(trajectory, get(self.method), self.depth)

    def try_first(self, trajectory: Trajectory) -> None:
        """Ask for the first piece of the prediction, so that a request that cannot be met is known at once: KnowError.

        An answer that overflows is no error here.
        """
        asked = {"known": self.known, "seed": self.seed, "scale": self.scale, "roles": dict(self.roles)}
        answers = pieces(trajectory, self.method, self.depth, **asked, **self.checked_options())
        with contextlib.closing(answers), contextlib.suppress(Overflow):
            next(answers)


def plan(trajectory: Trajectory, given: Mapping[str, str] | None = None) -> list[Planned]:
    """What a prediction would do to every tensor, in the order of the file.

    Of each tensor values are read until one has moved.
    """
    tied = trajectory.checkpoints[-1].tied
    copied = {"norm": "normalisation", "buffer": "buffer", "skip": "skipped"}
    rows = []
    for name, (role, reason) in trajectory.reasons(given).items():
        tensor = trajectory.meta[name]
        if name in tied:
            action = f"same as {tied[name]}"
        elif role not in PREDICTED:
            action = f"copied: {copied[role]}"
        elif not tensor.numel():
            action = "copied: empty"
        else:
            moves = trajectory.moves(name)
            action = f"predicted as {role}" if moves else "copied: the same in all snapshots"
        rows.append(Planned(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), role, reason, action))
    return rows


def notes(trajectory: Trajectory, request: Request, changes: Changes | None = None) -> list[str]:
    """What a user should know of a prediction besides its numbers, one sentence each."""
    said = list(trajectory.notes)
    for part in trajectory.checkpoints[-1].parts:
        if isinstance(part, TorchFile) and part.route:
            left, kept = (", ".join(names) for names in entries_beside(part))
            said += [f"states of the training were left out: {left}"] if left else []
            said += [f"what stands beside the weights was carried over as it is: {kept}"] if kept else []
    if changes:  # hashed by now
        hashes = [(checkpoint.path.name, sorted(checkpoint.hashes.values())) for checkpoint in trajectory.checkpoints]
        said += [
            f"{one} and {other} hold the same, so between them nothing was forgotten"
            for (one, a), (other, b) in itertools.pairwise(hashes)
            if a == b
        ]
    if get(request.method).group == "known":
        asked_for = Models(request.known)["known"].facts if request.method == "known" else {}
        drawn = asked_for.get("drawn", {}).get("ratio", RATIOS)
        said += _notes_on_known(trajectory.fractions, drawn, changes)
    asked = predicted(trajectory, dict(request.roles))
    if request.method == "known" and request.known is None:
        said += _notes_on_movement(trajectory, asked)
    if double := sum(trajectory.meta[name].dtype == torch.float64 for name in asked):
        said.append(f"{double} tensors hold float64: their step is computed in float32 and added in float64")
    return said


def _notes_on_known(fractions: Sequence[float], drawn: Sequence[float], changes: Changes | None) -> Iterator[str]:
    """What lies outside the meta-training of KNOWN; drawn: its smallest and largest ratio."""
    ratios = [a / b for a, b in itertools.pairwise(fractions)]
    shown = "the ratios of successive fractions are " + ", ".join(f"{ratio:.3g}" for ratio in ratios)
    low, high = drawn
    if any(not low - NEAR <= ratio <= high + NEAR for ratio in ratios):
        yield (
            f"{shown}, and KNOWN was meta-trained for {low:.2f} to {high:.2f}; it does not see them, so its answer"
            " would be the same for any others, and the factor on the data is only a label"
        )
    elif max(ratios) - min(ratios) > 0.05:
        yield (
            f"{shown}, and KNOWN was meta-trained on equal ones; it does not see them, and the factor on the data is"
            " that of the last ratio"
        )
    if changes and changes.large:
        yield (
            f"{changes.large:,} weights are larger than {LARGE_WEIGHT:g} in magnitude, where KNOWN was not measured;"
            " --skip leaves their tensors alone"
        )
    if changes and changes.runaway:
        yield (
            f"{changes.runaway:,} predicted weights are more than {RUNAWAY:g} times as large as any of theta_0 beside"
            " them. On one network that was seen on 4 of 30 trajectories, and on 3 of these KNOWN overflowed one"
            " recursion later; --depth 1 or --skip avoids it"
        )


def _notes_on_movement(trajectory: Trajectory, asked: Mapping[str, Role]) -> Iterator[str]:
    """Whether theta_0 - theta_1 is of a length that the windows of the networks that ship have hardly had, by role.

    asked: the tensors that are predicted. The first values of each are read, and one that has not moved does not count.
    """
    with (PRETRAINED / "windows.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["quantity"], row["of"]) == ("size", "meta-set")]
    sums: dict[Role, Tensor] = {}
    for name, role in asked.items():
        before, now = (part.read(name, 0, SAMPLED, peek=True).double() for part in trajectory.checkpoints[-2:])
        squares = torch.stack([(now - before).square().sum(), now.square().sum()])
        if squares[0] > 0:
            sums[role] = sums.get(role, 0) + squares
    outside = []
    for row in (row for row in rows if row["role"] in sums):
        moved, own = sums[row["role"]].tolist()
        low, high, size = float(row["10 %"]), float(row["90 %"]), (moved / own) ** 0.5 if own else 0.0
        if own and not low <= size <= high:
            outside.append(f"{size:.2g} ({row['role']}; {low:.2g} to {high:.2g})")
    if outside:
        yield (
            f"theta_0 - theta_1 is about {', '.join(outside)} times as long as theta_0; in brackets stands where four"
            " fifths of the meta-training of KNOWN lay, so it has hardly met such steps"
        )


def write_prediction(trajectory: Trajectory, request: Request, folder: Path) -> tuple[Path, Changes, Models]:
    """Predict piece by piece into files in `folder`, which exists, in the layout of theta_0's checkpoint.

    Returns the checkpoint (file, or folder where theta_0's is one), what changed, and the models that were asked.
    """
    last, changes, models = trajectory.checkpoints[-1], Changes(), Models(request.known)
    asked = {"known": models, "seed": request.seed, "scale": request.scale, "roles": dict(request.roles)}
    options = request.checked_options()
    answers = pieces(trajectory, request.method, request.depth, **asked, **options)
    expected = predicted(trajectory, dict(request.roles)) if request.scale else {}  # theta_0 is copied, bit for bit
    followers: dict[str, list[str]] = {}
    for name, other in last.tied.items():
        if other in expected:
            followers.setdefault(other, []).append(name)
    following = {name for names in followers.values() for name in names}
    writers = dict(_writers(last, folder))

    def write(name: str, start: int, values: Tensor) -> None:
        writers[last.place(name)].write(name, start, values)

    piece, begun = None, False
    for name, tensor in trajectory.meta.items():
        done, numel, own = 0, tensor.numel(), (name, *followers.get(name, ()))
        if name in expected and not begun:  # not before, so that what stands before it in the file is read once
            piece, begun = next(answers), True
        while piece is not None and piece.tensor == name:
            for one in own:
                write(one, piece.start, piece.answer)
            changes.add(piece)
            done += len(piece.answer)
            piece = next(answers, None)
        kept = name in last.odd and isinstance(writers[last.place(name)], TorchWriter)  # which has it already
        while name not in following and not kept and done < numel:
            values = last.read(name, done, done + _COPIED)
            for one in own:
                write(one, done, values)
            done += len(values)
    for writer in writers.values():
        writer.finish()
    if request.scale:
        next(answers, None)  # raises the error of a prediction of nothing
    trajectory.verify()
    return (folder if last.path.is_dir() else next(folder.iterdir())), changes, models


def loads_alike(weights: Checkpoint, like: Checkpoint) -> bool:
    """Whether what loads the checkpoint `like` loads another one too: the same tensors in the same layout.

    That is the kind of the files, the way to the weights in them, and what stands beside the weights.
    """
    folder, names = like.path.is_dir(), {name: name for name in like.meta}
    if weights.path.is_dir() != folder or weights.stored != names or len(weights.parts) != len(like.parts):
        return False
    for one, other in zip(weights.parts, like.parts, strict=True):
        if type(one) is not type(other) or tuple(one.route) != tuple(other.route):
            return False
        if folder and one.path.name != other.path.name:
            return False
        if isinstance(other, TorchFile) and not set(entries_beside(other)[1]) <= set(entries_beside(one)[1]):
            return False
    return not folder or all((weights.path / path.relative_to(like.path)).is_file() for path in _carried(like))


def write_copy(weights: Checkpoint, like: Checkpoint, folder: Path) -> None:
    """Write weights into files in `folder`, which exists, in the layout, names and dtypes of another checkpoint.

    weights: has the tensors of `like`, in the same shapes; of tied ones, one is enough. What is no dense tensor is that
    of `like`. KnowError where `like` ties what differs here, and where a value is too large for the dtype.
    """
    writers = dict(_writers(like, folder))
    for name, tensor in like.meta.items():
        if name in like.odd and isinstance(writers[like.place(name)], TorchWriter):
            continue
        first = like.tied.get(name, name)
        for start in range(0, tensor.numel(), _COPIED):
            own = weights.read(name if name in weights.meta else first, start, start + _COPIED)
            values = own.to(tensor.dtype)
            if values.dtype != own.dtype and not torch.equal(own.double().isfinite(), values.double().isfinite()):
                raise KnowError(
                    f"{weights.path}: values of {name!r} are too large for {like.path}, which has {tensor.dtype}"
                )
            if (
                first != name
                and first in weights.meta
                and not torch.equal(own, weights.read(first, start, start + _COPIED))
            ):
                raise KnowError(
                    f"{weights.path}: {name!r} and {first!r} differ, and in {like.path} they are one tensor"
                )
            writers[like.place(name)].write(name, start, values)
    for writer in writers.values():
        writer.finish()


def _writers(last: Checkpoint, folder: Path) -> Iterator[tuple[Path, SafetensorsWriter | TorchWriter]]:
    """One writer for each file of theta_0, by that file; what else its folder holds is carried over."""
    single = not last.path.is_dir()
    for part in last.parts:
        names = {name: stored for name, stored in last.stored.items() if last.place(name) == part.path}
        if isinstance(part, SafetensorsFile):
            yield part.path, SafetensorsWriter(folder / (SINGLE if single else part.path.name), part, names)
        else:
            ending = part.path.suffix or ".pt"
            yield part.path, TorchWriter(folder / (f"model{ending}" if single else part.path.name), part, names)
    if not single:
        for path in _carried(last):
            target = folder / path.relative_to(last.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _carried(last: Checkpoint) -> list[Path]:
    """What is carried over from theta_0's folder: all but weights at its top, stale formats, and hidden files.

    Subfolders come with their weights, which other parts of the model need; checkpoints of a training do not.
    KnowError for a link that leaves the folder.
    """
    found, weights = [], {part.path for part in last.parts}
    for path in sorted(last.path.rglob("*")):
        inner = path.relative_to(last.path)
        hidden = any(part.startswith(".") for part in inner.parts)
        another = len(inner.parts) > 1 and inner.parts[0].startswith(("checkpoint-", "global_step"))
        ours = inner == Path("know_config.yml")
        if path.is_file() and path not in weights and not (hidden or another or ours or _is_stale(inner)):
            refuse_links_out(path, last.path)
            found.append(path)
    return found


def _is_stale(inner: Path) -> bool:
    """Whether a file holds theta_0's weights, in any format, or the state of a training; `inner`: its place below."""
    if inner.suffix in STALE or len(inner.parts) > 1:
        return inner.suffix in STALE
    return inner.suffix in WEIGHTS and bool(TRAINING.fullmatch(inner.name) or MODEL.fullmatch(inner.name))


def refuse_inside(trajectory: Trajectory, out: Path) -> None:
    """KnowError if `out` lies in the folder of a snapshot: what is made there would be carried over into itself."""
    for checkpoint in trajectory.checkpoints:
        if checkpoint.path.is_dir() and out.resolve().is_relative_to(checkpoint.path.resolve()):
            raise KnowError(f"{out} lies inside the checkpoint {checkpoint.path}; name a folder beside it")


def predict_files(trajectory: Trajectory, request: Request, out: Path | str) -> tuple[dict[str, Any], Changes]:
    """Make the folder `out` from a trajectory: weights, know_config.yml, README.md. It must not exist.

    Returns what know_config.yml says, and what changed. KnowError for whatever is wrong with the inputs; then nothing
    stands at `out`.
    """
    out, _ = as_path("out", out), predicted(trajectory, dict(request.roles))  # most errors before anything is made
    refuse_inside(trajectory, out)
    with new_folder(out) as folder:
        _, changes, models = write_prediction(trajectory, request, folder)
        return complete(trajectory, request, folder, changes, models), changes


def complete(
    trajectory: Trajectory, request: Request, folder: Path, changes: Changes, models: Models, **facts: Any
) -> dict[str, Any]:
    """Write know_config.yml and the card beside a prediction, and return what the former says.

    facts: what it says besides.
    """
    config = describe(trajectory, request, models) | facts
    write_text(folder / "know_config.yml", yaml.safe_dump(config, sort_keys=True, allow_unicode=True))
    theirs = trajectory.paths[-1].is_dir() and (folder / OWN_CARD).exists()
    write_text(folder / (OTHER_CARD if theirs else OWN_CARD), card(trajectory, request, config, changes))
    return config


def describe(trajectory: Trajectory, request: Request, models: Models) -> dict[str, Any]:
    """What know_config.yml says: everything that is needed to make the same prediction again, with hashes."""
    method = get(request.method)
    # a control stands for no data, and a step that is cut stands for less
    whole = request.scale == 1 and dict(request.options).get("step") in (None, method.options.get("step"))
    factor = round((trajectory.fractions[-1] / trajectory.fractions[-2]) ** request.depth, 6)
    inputs = []
    for path, checkpoint in zip(trajectory.paths, trajectory.checkpoints, strict=True):
        hashes = checkpoint.hashes
        inputs.append({"file": path.name, "sha256": hashes.get(path.name, hashes)})
    shipped = [files[0] for files in models.files.values() if PRETRAINED in files[0].parents]
    reading = {"key": trajectory.key, "strip": trajectory.strip}
    return {
        "method": request.method,
        "depth": request.depth,
        "options": dict(request.options),
        "scale": request.scale,
        "seed": request.seed,
        "roles": [list(pair) for pair in request.roles],
        "fractions": list(trajectory.fractions),
        "virtual_data": factor if method.depths and method.group != "control" and whole else None,
        "inputs": inputs,
        "learnt_from": load_facts(shipped[0])["data"] if shipped else None,
        "models": {path.name: sha256_file(path) for name in sorted(models.files) for path in models.files[name]},
        "know": know.__version__,
        "torch": str(torch.__version__),
        **{name: list(value) if name == "strip" else value for name, value in reading.items() if value},
    }


def card(trajectory: Trajectory, request: Request, config: Mapping[str, Any], changes: Changes) -> str:
    """The model card, Markdown: what this is, how it was made, what it did to the weights, what is known of it."""
    import jinja2  # comes with torch

    given = list(trajectory.roles(dict(request.roles)).values())
    counts = {role: given.count(role) for role in typing.get_args(Role)}
    template = jinja2.Template(CARD.read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined)
    return (
        template.render(
            config={"validate": None, **config},
            changes=changes,
            weights=sum(tensor.numel() for tensor in trajectory.meta.values()),
            roles=", ".join(f"{count} {role}" for role, count in counts.items() if count),
            notes=notes(trajectory, request, changes),
        )
        + "\n"
    )
