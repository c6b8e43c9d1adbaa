"""What a comparison compares: theta_0, predictions that are to be made, and checkpoints of the user's own."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from know.checkpoints import Checkpoint
from know.errors import KnowError, as_path
from know.export import Request, loads_alike, write_copy, write_prediction
from know.files import new_folder
from know.formats import entries_with_tensors
from know.layout import is_state
from know.methods import get
from know.prediction import check_depth, predicted
from know.trajectory import Trajectory
from know.verdict import THETA_0

CONTINUATIONS = ("continuation", "compute_matched")
"""References of a trajectory folder that are further training of theta_0 on the same data."""


@dataclass(frozen=True)
class Candidate:
    """Weights to compare: a prediction that is to be made, or a checkpoint that exists already."""

    name: str
    request: Request | None = None
    checkpoint: Path | None = None

    @property
    def kind(self) -> str:
        """What it is in a sentence: theta_0, prediction, control, or yours, a checkpoint that was given."""
        if self.request is None:
            return THETA_0 if self.name == THETA_0 else "yours"
        return "control" if get(self.request.method).group == "control" else "prediction"


def candidates_of(trajectory: Trajectory, methods: Sequence[str], roles: Mapping[str, str]) -> Iterator[Candidate]:
    """theta_0, the predictions `methods` (NAME or NAME:depth), each once, and the trajectory's own continuations."""
    theta_0 = trajectory.checkpoints[-1].path
    yield Candidate(THETA_0, checkpoint=theta_0)
    seen = {THETA_0}
    for text in methods:
        request = Request.of(text, roles=tuple(roles.items()))
        check_depth(trajectory, request.depth)
        factor = (trajectory.fractions[-1] / trajectory.fractions[-2]) ** request.depth
        label = f"{request.method}_x{factor:.3g}" if get(request.method).depths else request.method
        if label not in seen:
            seen.add(label)
            yield Candidate(label, request)
    references = trajectory.manifest.get("references", {})
    for name in CONTINUATIONS:
        if name in references:
            trajectory.reference(name)  # compares its hash
            yield Candidate(name, checkpoint=theta_0.parent / references[name]["file"])


def given_beside(
    trajectory: Trajectory, beside: Mapping[str, Path | str] | None, taken: Container[str]
) -> dict[str, Checkpoint]:
    """The user's own checkpoints by name; KnowError if a name is taken or a checkpoint cannot be read."""
    if not isinstance(beside, Mapping | None):
        raise KnowError(f"beside must map names to checkpoints, got {beside!r}")
    made = {}
    for name, path in (beside or {}).items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise KnowError(
                f"beside: a name has letters, digits and . _ - only, and begins with no . or -; got {name!r}"
            )
        if name in taken:
            raise KnowError(f"beside: {name!r} is a candidate already; give your checkpoint another name")
        made[name] = _of_yours(trajectory, as_path("beside", path))
    return made


def _of_yours(trajectory: Trajectory, path: Path) -> Checkpoint:
    """A checkpoint under theta_0's names; KnowError if it cannot take theta_0's place."""
    theta_0 = trajectory.checkpoints[-1]
    given = _opened(path, theta_0.key, trajectory.strip)
    given.match_names(theta_0.meta)
    for name, tensor in theta_0.meta.items():
        own = given.meta.get(name, given.meta.get(theta_0.tied.get(name, name)))
        for what, wanted, has in (
            ("shape", tuple(tensor.shape), None if own is None else tuple(own.shape)),
            ("values", _kind(tensor), None if own is None else _kind(own)),
        ):
            if has != wanted:
                there = f"{path} lacks it" if has is None else f"{has} in {path}"
                raise KnowError(
                    f"beside: {path} cannot take theta_0's place: tensor {name!r} has {what} {wanted} in"
                    f" {theta_0.path}, and {there}"
                )
    if (odd := {**given.odd, **theta_0.odd}) and not loads_alike(given, theta_0):
        name, what = next(iter(odd.items()))
        raise KnowError(
            f"beside: {path} is laid out otherwise than {theta_0.path}, and {name!r} is {what}, which cannot be written"
            " in another layout; save your checkpoint as theta_0 is saved"
        )
    return given


def _kind(tensor: Tensor) -> str:
    """What kind of numbers a tensor has, whatever their precision."""
    return "floating-point" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _opened(path: Path, key: str | None, strip: Sequence[str]) -> Checkpoint:
    """A checkpoint with the weights at its top, in the same entry as theta_0, or in the only one that holds some."""
    try:
        return Checkpoint(path, strip=strip)
    except KnowError:
        if key:
            with contextlib.suppress(KnowError):
                return Checkpoint(path, key=key, strip=strip)
        inside = [name for name in entries_with_tensors(path) if not is_state(name)]
        if len(inside) == 1:
            return Checkpoint(path, key=inside[0], strip=strip)
        if inside:
            raise KnowError(
                f"beside: {path} holds weights in several entries ({', '.join(inside)}); save one of them alone"
            ) from None
        raise


def weights_of(trajectory: Trajectory, candidate: Candidate, given: Checkpoint | None, folder: Path) -> Path:
    """The checkpoint of a candidate. What has to be made is made in `folder`, unless it is there.

    Where prefixes are stripped from names theta_0 is written anew too, since the task has to find all of them alike.
    given: the checkpoint, opened, where it is one of the user's.
    """
    request, theta_0 = candidate.request, trajectory.checkpoints[-1]
    if candidate.name == THETA_0 and theta_0.stripped:
        given = theta_0
    if request is None and (given is None or loads_alike(given, theta_0)):
        return candidate.checkpoint
    place = folder / candidate.name
    if not place.exists():
        if request:
            predicted(trajectory, dict(request.roles))  # most errors before anything is made
        with new_folder(place) as fresh:
            if request:
                write_prediction(trajectory, request, fresh)
            else:
                write_copy(given, theta_0, fresh)
    return place if theta_0.path.is_dir() else next(place.iterdir())
