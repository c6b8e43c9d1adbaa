"""From checkpoint files to a checkpoint file: `know predict`, in memory that does not grow with the model.

A prediction is made in a temporary folder, which is renamed when complete. It holds weights in the layout of theta_0's
file, the settings that make it again (know_config.yml), and a model card.
"""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import know
from know.checkpoints import SINGLE, Checkpoint, SafetensorsFile
from know.errors import KnowError
from know.files import PACKAGE, PRETRAINED, new_folder, sha256_file, write_text
from know.known import Models
from know.layout import SafetensorsWriter, TorchWriter
from know.methods import get
from know.prediction import Piece, pieces, predicted
from know.roles import PREDICTED, Role
from know.scripts import call, function_of
from know.trajectory import Trajectory

CARD = PACKAGE / "card.md.j2"
"""Template of the model card."""
_COPIED = 1 << 22  # values copied at once
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ckpt", ".gguf")
"""Endings of files with weights. Other files in theta_0's folder, such as config.json or a tokenizer, are copied."""


@dataclass(frozen=True)
class Planned:
    """What happens to one tensor."""

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    action: str


@dataclass
class Changes:
    """What a prediction changed, summed over the predicted tensors."""

    weights: int = 0
    changed: int = 0
    """How many differ from theta_0 in its own dtype."""
    step_squared: float = 0.0
    theta_0_squared: float = 0.0

    def add(self, piece: Piece) -> None:
        step = piece.answer.float() - piece.theta_0
        self.weights += len(step)
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


def plan(trajectory: Trajectory, given: Mapping[str, str] | None = None) -> list[Planned]:
    """What a prediction would do to every tensor, in the order of the file; reads no values."""
    tied = trajectory.checkpoints[-1].tied
    reasons = {"norm": "copied: normalisation", "buffer": "copied: buffer", "skip": "copied: skipped"}
    rows = []
    for name, role in trajectory.roles(given).items():
        tensor = trajectory.meta[name]
        action = f"predicted as {role}" if role in PREDICTED else reasons[role]
        action = f"same as {tied[name]}" if name in tied else action if tensor.numel() else "copied: empty"
        rows.append(Planned(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), role, action))
    return rows


def write_prediction(trajectory: Trajectory, request: Request, folder: Path) -> tuple[Path, Changes, Models]:
    """Predict piece by piece into files in `folder`, which exists, in the layout of theta_0's checkpoint.

    Returns the checkpoint (file, or folder where theta_0's is one), what changed, and the models that were asked.
    """
    last, changes, models = trajectory.checkpoints[-1], Changes(), Models(request.known)
    asked = {"known": models, "seed": request.seed, "scale": request.scale, "roles": dict(request.roles)}
    answers = pieces(trajectory, request.method, request.depth, **asked, **dict(request.options))
    expected = predicted(trajectory, dict(request.roles))
    followers: dict[str, list[str]] = {}
    for name, other in last.tied.items():
        if other in expected:
            followers.setdefault(other, []).append(name)
    following = {name for names in followers.values() for name in names}
    with contextlib.ExitStack() as stack:
        writers = {part: stack.enter_context(contextlib.closing(writer)) for part, writer in _writers(last, folder)}

        def write(name: str, start: int, values: Tensor) -> None:
            writers[last.place(name)].write(name, start, values)

        for name, tensor in trajectory.meta.items():
            done, numel = 0, tensor.numel()
            while name in expected and done < numel:
                piece = next(answers)
                for one in (name, *followers.get(name, ())):
                    write(one, piece.start, piece.answer)
                changes.add(piece)
                done += len(piece.answer)
            while name not in following and done < numel:
                values = last.read(name, done, done + _COPIED)
                write(name, done, values)
                done += len(values)
    trajectory.verify()
    return (folder if last.path.is_dir() else next(folder.iterdir())), changes, models


def _writers(last: Checkpoint, folder: Path) -> Iterator[tuple[Path, SafetensorsWriter | TorchWriter]]:
    """One writer for each file of theta_0, by that file; further small files of its folder are copied."""
    single = not last.path.is_dir()
    for part in last.parts:
        if isinstance(part, SafetensorsFile):
            names = {name: stored for name, stored in last.stored.items() if last.place(name) == part.path}
            yield part.path, SafetensorsWriter(folder / (SINGLE if single else part.path.name), part, names)
        else:
            yield part.path, TorchWriter(folder / f"model{part.path.suffix}", last)
    for path in [] if single else sorted(last.path.iterdir()):
        theirs = path.name in ("README.md", "know_config.yml") or path.suffix in WEIGHTS
        if path.is_file() and not path.name.startswith(".") and not theirs:
            shutil.copyfile(path, folder / path.name)


def predict_files(
    trajectory: Trajectory,
    request: Request,
    out: Path | str,
    *,
    validate: str | None = None,
    scales: Sequence[float] = (),
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], Changes]:
    """Make the folder `out` from a trajectory: weights, know_config.yml, README.md. It must not exist.

    validate: "SCRIPT.py:function": function(checkpoint path) -> number, the higher the better. It is asked about
        theta_0 itself (scale 0) and about each of `scales`; the best one is kept, theta_0 where none is better.
    say: gets one line for each candidate.

    Returns what know_config.yml says, and what changed. KnowError for whatever is wrong with the inputs; then nothing
    stands at `out`.
    """
    out, _ = Path(out), trajectory.checkpoints  # opened, so that most errors are raised before anything is made
    function = function_of(validate, "--validate") if validate else None
    with new_folder(out) as folder:
        if function is None:
            _, changes, models = write_prediction(trajectory, request, folder)
            config = describe(trajectory, request, models)
        else:
            score = functools.partial(_score, function, validate)
            request, values, changes, models = _best(trajectory, request, folder, scales, score, say)
            script, _, name = validate.rpartition(":")
            config = describe(trajectory, request, models)
            config["validate"] = {"function": f"{Path(script).name}:{name}", "values": values}
            config["validate"]["sha256"] = sha256_file(script)
        write_text(folder / "know_config.yml", yaml.safe_dump(config, sort_keys=True, allow_unicode=True))
        write_text(folder / "README.md", card(trajectory, request, config, changes))
    return config, changes


def _best(
    trajectory: Trajectory,
    request: Request,
    folder: Path,
    scales: Sequence[float],
    score: Callable[[Path], float],
    say: Callable[[str], None],
) -> tuple[Request, dict[float, float], Changes, Models]:
    """Leave in `folder` the prediction of the scale with the best score; the request for it, and the score of each.

    Where two scores are equal, the shorter step is kept, theta_0 first.
    """
    values: dict[float, float] = {}
    best: tuple[Request, Changes, Models] | None = None
    for scale in dict.fromkeys((0.0, *scales)):
        asked, candidate = replace(request, scale=scale), folder / f"candidate{len(values)}"
        candidate.mkdir()
        checkpoint, changes, models = write_prediction(trajectory, asked, candidate)
        values[scale] = score(checkpoint)
        say(f"scale {scale:g}: {values[scale]:g}" + (" (theta_0)" if scale == 0 else ""))
        if best is None or values[scale] > values[best[0].scale]:
            best = asked, changes, models
            for path in candidate.iterdir():
                path.replace(folder / path.name)
        shutil.rmtree(candidate)
    request, changes, models = best
    return request, values, changes, models


def _score(function: Callable[[Path], float], spec: str, checkpoint: Path) -> float:
    """The number that the user's function gives a checkpoint; KnowError where it is none."""
    value = call(lambda: float(function(checkpoint)), spec, "--validate")
    if not math.isfinite(value):
        raise KnowError(f"--validate {spec!r}: the function answered {value}, which is no number to compare")
    return value


def describe(trajectory: Trajectory, request: Request, models: Models) -> dict[str, Any]:
    """What know_config.yml says: everything that is needed to make the same prediction again, with hashes."""
    has_depth = bool(get(request.method).depths)
    factor = round((trajectory.fractions[-1] / trajectory.fractions[-2]) ** request.depth, 6)
    inputs = []
    for path, checkpoint in zip(trajectory.paths, trajectory.checkpoints, strict=True):
        hashes = checkpoint.hashes
        inputs.append({"file": path.name, "sha256": hashes.get(path.name, hashes)})
    shipped = request.known is None and any(PRETRAINED in files[0].parents for files in models.files.values())
    reading = {"key": trajectory.key, "strip": trajectory.strip}
    return {
        "method": request.method,
        "depth": request.depth,
        "options": dict(request.options),
        "scale": request.scale,
        "seed": request.seed,
        "roles": [list(pair) for pair in request.roles],
        "fractions": list(trajectory.fractions),
        "virtual_data": factor if has_depth else None,
        "inputs": inputs,
        "learnt_from": know.Known.pretrained().facts["data"] if shipped else None,
        "models": {path.name: sha256_file(path) for name in sorted(models.files) for path in models.files[name]},
        "know": know.__version__,
        "torch": str(torch.__version__),
        **{name: value for name, value in reading.items() if value},
    }


def card(trajectory: Trajectory, request: Request, config: Mapping[str, Any], changes: Changes) -> str:
    """The model card, Markdown: what this is, how it was made, what it did to the weights, what is known of it."""
    import jinja2  # comes with torch

    rows = plan(trajectory, dict(request.roles))
    counts = {role: sum(row.role == role for row in rows) for role in typing.get_args(Role)}
    template = jinja2.Template(CARD.read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined)
    return (
        template.render(
            config={"validate": None, **config},
            changes=changes,
            weights=sum(trajectory.meta[row.tensor].numel() for row in rows),
            roles=", ".join(f"{count} {role}" for role, count in counts.items() if count),
        )
        + "\n"
    )
