"""The forgetting trajectory: an ordered sequence of snapshots with the fraction of data behind each.

On disk it is a folder: one safetensors file per snapshot and `manifest.json`, written last, with their order, fractions
and hashes. The order is that of the paper's window: smallest subset first, the full set (theta_0) last.
"""

from __future__ import annotations

import functools
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from know.errors import KnowError
from know.files import atomic, read_json, sha256_file, write_json

Role = Literal["conv", "fc", "bias", "norm", "buffer"]
State = dict[str, Tensor]

PREDICTED: tuple[Role, ...] = ("conv", "fc", "bias")
"""Roles that predictors answer for. The released script predicts no normalisation parameter, nor do we."""


def save_state(path: Path | str, state: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Write tensors to a safetensors file, atomically and always with the same bytes.

    facts: JSON-serialisable description, kept as ONE sorted metadata entry (several come out in random order).
    """
    tensors = {name: state[name].detach().cpu().contiguous().clone() for name in sorted(state)}
    with atomic(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"know": json.dumps(dict(facts or {}), sort_keys=True)})
        except SafetensorError as error:
            raise OSError(str(error)) from error  # full disk or no permission; `atomic` says so in one line


def load_state(path: Path | str) -> State:
    """Tensors of a .safetensors file, or of a .pt/.pth file read in weights-only mode.

    Raises KnowError if the file is missing, truncated, corrupt, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise KnowError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise KnowError(f"{path} is corrupt or holds more than tensors, which could run code; refused") from error
    except Exception as error:  # every reader has its own kinds for damaged bytes
        raise KnowError(f"{path} cannot be read ({_first_line(error)}); it is corrupt or truncated") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise KnowError(f"{path} holds no plain state_dict (name to tensor); save model.state_dict()")
    return dict(state)


def load_facts(path: Path | str) -> dict[str, Any]:
    """The description that `save_state` wrote beside the tensors."""
    try:
        with safe_open(path, framework="pt") as handle:
            return json.loads((handle.metadata() or {}).get("know", "{}"))
    except (SafetensorError, OSError) as error:
        raise KnowError(f"{path} cannot be read ({_first_line(error)}); it is corrupt or truncated") from error


def roles(state: Mapping[str, Tensor]) -> dict[str, Role]:
    """Role of every tensor by shape and name: the paper's rule, for any architecture.

    conv: kernels of 3x3. fc: every other tensor with two axes or more (linear, 1x1 and 7x7 kernels, embeddings).
    norm: the 1-D weight of a layer without a matrix, with its bias. bias: other 1-D tensors. buffer: integers, running
    statistics and single numbers.
    """
    found: dict[str, Role] = {}
    for name, tensor in state.items():
        layer, _, attribute = name.rpartition(".")
        weight = state.get(f"{layer}.weight" if layer else "weight")
        if not tensor.is_floating_point() or tensor.ndim == 0 or attribute in ("running_mean", "running_var"):
            found[name] = "buffer"
        elif tensor.ndim == 4 and tuple(tensor.shape[2:]) == (3, 3):
            found[name] = "conv"
        elif tensor.ndim >= 2:
            found[name] = "fc"
        elif attribute in ("weight", "bias") and weight is not None and weight.ndim == 1:
            found[name] = "norm"
        else:
            found[name] = "bias"
    return found


def check_fractions(fractions: Sequence[float], count: int | None = None) -> tuple[float, ...]:
    """Fractions of D0 behind the snapshots: rising, within (0, 1], the last one 1; else KnowError."""
    values = tuple(float(f) for f in fractions)
    shown = ", ".join(f"{f:g}" for f in values)
    if count is not None and len(values) != count:
        raise KnowError(f"{len(values)} fractions ({shown}) for {count} snapshots; give one for each")
    if len(values) < 2:
        raise KnowError(f"a trajectory needs at least 2 snapshots, got fractions ({shown})")
    if not all(math.isfinite(f) and f > 0 for f in values) or any(b <= a for a, b in pairwise(values)):
        raise KnowError(f"fractions ({shown}) must rise from above 0: smallest subset first, full set last")
    if abs(values[-1] - 1) > 1e-9:
        raise KnowError(f"fractions ({shown}) must end at 1, the full set")
    return values


@dataclass(frozen=True)
class Trajectory:
    """Ordered snapshots, smallest subset first and theta_0 last, read from disk when first needed."""

    paths: tuple[Path, ...]
    fractions: tuple[float, ...]
    manifest: dict[str, Any]

    @classmethod
    def from_checkpoints(cls, paths: Sequence[Path | str], fractions: Sequence[float]) -> Trajectory:
        """A trajectory of files anybody wrote (.safetensors, .pt), smallest subset first, with their fractions."""
        return cls(tuple(Path(p) for p in paths), check_fractions(fractions, len(paths)), {})

    @classmethod
    def load(cls, folder: Path | str) -> Trajectory:
        """A finished trajectory folder. The hashes of the files are checked when the weights are read."""
        folder = Path(folder)
        if not (folder / "manifest.json").is_file():
            left = folder.with_name(f"{folder.name}.partial").is_dir()
            hint = "it was interrupted, run the same command again" if left else "make it with `know forget`"
            raise KnowError(f"{folder} holds no finished trajectory (no manifest.json); {hint}")
        manifest = read_json(folder / "manifest.json")
        try:
            snapshots = [(s["file"], float(s["fraction"]), s["sha256"]) for s in manifest["snapshots"]]
        except (KeyError, TypeError, ValueError) as error:
            raise KnowError(f"{folder / 'manifest.json'} is no trajectory manifest ({error!r})") from error
        paths = tuple(folder / file for file, _, _ in snapshots)
        return cls(paths, check_fractions([fraction for _, fraction, _ in snapshots]), manifest)

    @functools.cached_property
    def states(self) -> tuple[State, ...]:
        """All snapshots in memory, with equal names and shapes (else KnowError), in the order of `fractions`."""
        for path, recorded in zip(self.paths, self.manifest.get("snapshots", ()), strict=False):
            if path.is_file() and sha256_file(path) != recorded["sha256"]:
                raise KnowError(f"{path} does not have the hash in its manifest; it is damaged, make it again")
        states = tuple(load_state(path) for path in self.paths)
        last, name_of_last = states[-1], self.paths[-1].name
        for path, state in zip(self.paths, states, strict=True):
            for name in sorted(last.keys() | state.keys()):
                if name not in state or name not in last:
                    there, lacking = (name_of_last, path) if name in last else (path.name, self.paths[-1])
                    raise KnowError(f"tensor {name!r} of {there} is missing in {lacking}")
                if state[name].shape != last[name].shape:
                    shapes = tuple(state[name].shape), tuple(last[name].shape)
                    raise KnowError(f"tensor {name!r}: {path} has shape {shapes[0]}, {name_of_last} has {shapes[1]}")
        return states

    @property
    def theta_0(self) -> State:
        return self.states[-1]

    def last(self, length: int) -> Trajectory:
        """The trajectory as one of `length` snapshots: those of the largest subsets. KnowError if it has fewer."""
        count = len(self.paths)
        if length > count:
            raise KnowError(f"the trajectory has {count} snapshots, {length} are wanted")
        kept = dict(self.manifest)
        if "snapshots" in kept:
            kept["snapshots"] = kept["snapshots"][count - length :]
        return Trajectory(self.paths[count - length :], self.fractions[count - length :], kept)

    def window(self, name: str) -> Tensor:
        """History of the tensor `name`: float32 (numel, S), smallest subset first.

        Raises KnowError, naming tensor and file, where a value is not finite.
        """
        window = torch.stack([state[name].flatten().float() for state in self.states], dim=1)
        if not bool(window.isfinite().all()):
            column = int((~window.isfinite()).any(0).nonzero()[0])
            raise KnowError(f"tensor {name!r} of {self.paths[column]} has values that are not finite (NaN or infinite)")
        return window

    def reference(self, name: str) -> State:
        """Further weights kept with the trajectory, such as the oracle's."""
        references = self.manifest.get("references", {})
        if name not in references:
            raise KnowError(f"{self.paths[-1].parent} keeps no reference weights {name!r}")
        path = self.paths[-1].parent / references[name]["file"]
        if path.is_file() and sha256_file(path) != references[name]["sha256"]:
            raise KnowError(f"{path} does not have the hash in its manifest; it is damaged, make it again")
        return load_state(path)


def write_manifest(folder: Path, files: Sequence[str], references: Mapping[str, str], **facts: Any) -> None:
    """Write `manifest.json` of the snapshots `files`, smallest subset first, each with its own recorded facts."""

    def entry(file: str) -> dict[str, Any]:
        return {"file": file, "sha256": sha256_file(folder / file), **load_facts(folder / file)}

    manifest = {"format": 1, "torch": torch.__version__, **facts}
    manifest["snapshots"] = [entry(file) for file in files]
    manifest["references"] = {name: entry(file) for name, file in sorted(references.items())}
    write_json(folder / "manifest.json", manifest)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
