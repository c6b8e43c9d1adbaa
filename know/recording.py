"""Making a trajectory: snapshots recorded one by one, and the manifest that makes of them a finished folder."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from know.checkpoints import State, load_facts, load_state, save_state
from know.errors import KnowError, number
from know.files import read_json, sha256_file, write_json
from know.formats import oddness, same_bits, unkept
from know.models import inner, load_into, state_of
from know.roles import only_predicted, roles
from know.subsets import check_fractions, nested_subsets

OF_SNAPSHOTS = ("file", "fraction", "sha256", "tied")
"""What a manifest, or the file itself, says of every snapshot; no fact may have such a name."""
OF_MANIFESTS = ("buffers", "fingerprint", "format", "placebo", "references", "seed", "settings", "snapshots", "torch")
"""What a manifest says of the trajectory itself."""


class Recorder:
    """Snapshots of a trajectory in the making, one file each; see `Trajectory.record`."""

    def __init__(self, folder: Path, fractions: Sequence[float], letter: str = "s"):
        """letter: begins the names of all files but that of theta_0, which a trajectory and its placebo share."""
        self.folder, self.fractions, self.letter = folder, check_fractions(fractions), letter
        noted = folder / "buffers.json"  # until the manifest says it, since a resumed run may record nothing more
        self.buffers: list[str] = read_json(noted) if noted.is_file() else []

    def start(self, model: nn.Module) -> None:
        """Record theta_0, or give the model the last snapshot where an interrupted run has recorded some."""
        if not isinstance(model, nn.Module):
            raise KnowError(f"record.start takes a torch module, got a {type(model).__name__}")
        state = check_state("record.start takes", model)
        self._note_buffers(model)
        done = [fraction for fraction in reversed(self.fractions) if fraction in self]
        if not done:
            return self.add(model, 1.0)
        if not any(_equal(self.state(fraction), state) for fraction in done):
            raise KnowError(f"{self.folder} holds a trajectory of other weights; remove it, or name another folder")
        load_into(model, self.state(done[-1]))
        return None

    def steps(self, n: int, seed: int = 0) -> Iterator[tuple[float, list[int]]]:
        """The forgetting steps that are left to do, largest subset first: its fraction, and its indices of n items.

        KnowError if the recording was begun with another n or seed, whose subsets would not be nested in these.
        """
        subsets, asked = nested_subsets(n, seed=seed, fractions=self.fractions), {"items": n, "seed": seed}
        begun = self.folder / "steps.json"
        if begun.is_file():
            if (known := read_json(begun)) != asked:
                shown = "{items} items and seed {seed}".format
                raise KnowError(
                    f"{self.folder} was begun with {shown(**known)}, not with {shown(**asked)}; name a new folder"
                )
        elif not (self.folder / "manifest.json").is_file():  # nothing is added to a finished folder
            write_json(begun, asked)
        for fraction, index in zip(reversed(self.fractions), reversed(subsets), strict=True):
            if fraction not in self:
                yield fraction, index

    def __contains__(self, fraction: float) -> bool:
        """Whether the snapshot of that fraction is recorded. Its file was renamed into place, so it is complete."""
        return self._path(fraction).is_file()

    def add(self, model: nn.Module | Mapping[str, Tensor], fraction: float, **facts: Any) -> None:
        """Record a snapshot, a module or its state_dict; facts are kept in the manifest.

        KnowError if that fraction is recorded with other weights.
        """
        path, facts = self._path(number("fraction", fraction)), check_facts("facts", facts, OF_SNAPSHOTS)
        if isinstance(model, nn.Module):
            self._note_buffers(model)
        state = check_state("record.add takes", model)
        if path.is_file():
            if not _equal(load_state(path), state):
                raise KnowError(f"{path} records fraction {fraction:g} already, with other weights; name a new folder")
            return
        if path == self._path(self.fractions[-1]):
            self._warn_of_infinite(state)
        save_state(path, state, {"fraction": fraction, **facts})

    def state(self, fraction: float) -> State:
        """The recorded snapshot of that fraction."""
        return load_state(self._path(fraction))

    @property
    def files(self) -> list[str]:
        """Names of the files of all snapshots, smallest subset first."""
        return [self._path(fraction).name for fraction in self.fractions]

    def finish(self, references: Mapping[str, str] | None = None, placebo: Sequence[str] = (), **facts: Any) -> None:
        """Write the manifest; KnowError if a snapshot is missing.

        references: name to file, of further weights. placebo: files of the placebo's snapshots, smallest subset first.
        """
        missing = [fraction for fraction in reversed(self.fractions) if fraction not in self]
        if missing:
            shown = ", ".join(f"{fraction:g}" for fraction in missing)
            raise KnowError(f"the trajectory is not finished: no snapshot of fraction {shown}; run it again to go on")
        buffers = {"buffers": self.buffers} if self.buffers else {}
        write_manifest(self.folder, self.files, references or {}, placebo, **buffers, **facts)
        (self.folder / "buffers.json").unlink(missing_ok=True)

    def _path(self, fraction: float) -> Path:
        """s0 is theta_0, s1 the snapshot of the next smaller subset, as the paper counts."""
        for k, one in enumerate(reversed(self.fractions)):
            if math.isclose(one, fraction, rel_tol=1e-9):
                return self.folder / f"{self.letter if k else 's'}{k}.safetensors"
        shown = ", ".join(f"{f:g}" for f in self.fractions)
        raise KnowError(f"fraction {fraction:g} is not one of this trajectory's ({shown})")

    def _note_buffers(self, model: nn.Module) -> None:
        """Note the buffers that `roles` would take for parameters, since a state_dict does not distinguish the two."""
        model = inner(model)
        every = model.named_buffers(remove_duplicate=False)  # one that two modules share has two names
        state, named = state_of(model), {name.replace("_orig_mod.", "") for name, _ in every}
        role_of, buffers = roles(state), named & state.keys()
        found = sorted(name for name in buffers if role_of[name] != "buffer")
        if found != self.buffers and not (self.folder / "manifest.json").is_file():  # that one says it
            write_json(self.folder / "buffers.json", found)
        self.buffers = found

    def _warn_of_infinite(self, theta_0: Mapping[str, Tensor]) -> None:
        """Warn of tensors that could not be predicted, before anything is trained from them."""
        plain = {name: tensor for name, tensor in theta_0.items() if tensor.is_floating_point() and not oddness(tensor)}
        # what has one byte or less for a value cannot be asked
        wrong = {name for name, tensor in plain.items() if tensor.itemsize > 1 and not tensor.isfinite().all()}
        if wrong and (wrong := wrong & only_predicted(roles(theta_0, buffers=self.buffers)).keys()):
            warnings.warn(
                f"theta_0 has values that are not finite (NaN or infinite) in {', '.join(map(repr, sorted(wrong)[:3]))}"
                "; a prediction refuses such tensors, unless they are skipped",
                stacklevel=4,
            )


def check_facts(what: str, facts: Mapping[str, Any] | None, taken: Collection[str] = ()) -> dict[str, Any]:
    """Facts for a manifest, as they are; KnowError if one has a name of the manifest's own, or JSON cannot hold it."""
    facts = dict(facts or {})
    if clash := sorted(set(taken) & facts.keys()):
        raise KnowError(f"{what} has {clash[0]!r}, a name that the manifest uses itself; give it another name")
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise KnowError(f"{what} must be JSON-serialisable, with finite numbers: {error}") from error
    return facts


def check_state(what: str, model: Any) -> Mapping[str, Tensor]:
    """The weights of a module, or a state_dict as it is; KnowError that begins with `what` if it is neither, and one
    that names a tensor which no snapshot can keep.
    """
    state = state_of(model) if isinstance(model, nn.Module) else model
    tensors = isinstance(state, Mapping) and all(isinstance(each, Tensor) for each in state.values())
    if not tensors or not all(isinstance(name, str) for name in state):
        raise KnowError(f"{what} a module or a state_dict of tensors, not a {type(model).__name__}")
    for name, tensor in state.items():
        if reason := unkept(tensor):
            raise KnowError(f"tensor {name!r} is {reason}; no snapshot can keep it")
    return state


def write_manifest(
    folder: Path, files: Sequence[str], references: Mapping[str, str], placebo: Sequence[str] = (), **facts: Any
) -> None:
    """Write `manifest.json` of the snapshots `files`, smallest subset first, each with its own recorded facts."""

    manifest = {"format": 1, "torch": torch.__version__, **facts}
    manifest["snapshots"] = [entry_of(folder / file) for file in files]
    manifest["references"] = {name: entry_of(folder / file) for name, file in sorted(references.items())}
    if placebo:
        manifest["placebo"] = [entry_of(folder / file) for file in placebo]
    write_json(folder / "manifest.json", manifest)


def entry_of(path: Path) -> dict[str, Any]:
    return {"file": path.name, "sha256": sha256_file(path), **load_facts(path)}


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)
