"""Checkpoints that anybody wrote: names, shapes and dtypes are read at once, values piece by piece.

A checkpoint is a file of safetensors or torch, whatever its ending, or a folder of them as Hugging Face writes it, in
one file or in shards (`know.formats`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from know.errors import KnowError
from know.files import atomic
from know.formats import (
    SafetensorsFile,
    State,
    TorchFile,
    facts_of,
    files_of,
    kind_of,
    tied_names,
    unreadable,
    weight_map,
)

FEW = 16
"""Up to so many files of a checkpoint stay open; more would meet the limit of open files."""


def save_state(path: Path | str, state: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Write tensors to a safetensors file, atomically and always with the same bytes.

    facts: JSON-serialisable description, kept as ONE sorted metadata entry (several would come out in random order).
    Names that share their values (tied weights) are noted there.
    """
    facts = dict(facts or {})
    if tied := tied_names(state):
        facts["tied"] = tied
    tensors = {name: state[name].detach().cpu().contiguous().clone() for name in sorted(state)}
    with atomic(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"know": json.dumps(facts, sort_keys=True)})
        except SafetensorError as error:
            raise OSError(str(error)) from error  # full disk or no permission; `atomic` says so in one line


def load_state(path: Path | str, *, key: str | None = None) -> State:
    """All tensors of a checkpoint; see `Checkpoint` for what is read and what is refused."""
    return Checkpoint(path, key=key).state()


def load_facts(path: Path | str) -> dict[str, Any]:
    """The description that `save_state` wrote beside the tensors."""
    try:
        with safe_open(path, framework="pt") as handle:
            return facts_of(handle.metadata() or {}, path)
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


class Checkpoint:
    """One checkpoint, opened; its values are read when asked for.

    path: see the module. key: entry of a torch file that holds the weights, such as "state_dict"; "a.b" goes deeper.
    strip: prefixes that are taken off the names that have them, one after the other, such as "module.".

    Raises KnowError if the file is missing, truncated, corrupt, or a pickle that holds more than tensors.
    """

    meta: State
    """Names to tensors on torch's meta device: shapes and dtypes, in the order of the file."""
    tied: dict[str, str]
    """Names that share the values of another one, by that one."""
    odd: dict[str, str]
    """Names of tensors without plain dense values, with what they are."""
    notes: list[str]
    """What a user should know of how this checkpoint was read, one sentence each."""

    def __init__(self, path: Path | str, *, key: str | None = None, strip: str | Sequence[str] = ()):
        self.path, self.key = Path(path), key
        files, index = files_of(self.path)
        kinds = {kind_of(file) for file in files}
        if key and "safetensors" in kinds:
            raise KnowError(f"{self.path} has no entry {key!r}: safetensors hold tensors and nothing else")
        few, self.notes = len(files) <= FEW, []
        self.parts: list[SafetensorsFile | TorchFile] = [
            SafetensorsFile(file, keep=few) if kind_of(file) == "safetensors" else TorchFile(file, key)
            for file in files
        ]
        self.facts: dict[str, Any] = self.parts[0].facts
        self.stripped: set[str] = set()
        self.meta, self.stored, self._part, self.tied, self.odd = {}, {}, {}, {}, {}
        names = [strip] if isinstance(strip, str) else list(strip)
        for part in self.parts:
            for stored, tensor in part.meta.items():
                name = self._strip(stored, names)
                if name in self.meta:
                    raise KnowError(f"{self.path} has the tensor {name!r} twice")
                self.meta[name], self.stored[name], self._part[name] = tensor, stored, part
            self.tied |= {self._strip(one, names): self._strip(other, names) for one, other in part.tied.items()}
            self.odd |= {self._strip(name, names): what for name, what in part.odd.items()}
            if isinstance(part, TorchFile):
                part.extra = {self._strip(name, names): value for name, value in part.extra.items()}
        if index and (lost := sorted(weight_map(index).keys() - set(self.stored.values()))):
            shown = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
            self.notes.append(f"{index} names {len(lost)} tensors that no shard holds ({shown}); they are left out")

    def _strip(self, name: str, prefixes: Sequence[str]) -> str:
        for prefix in prefixes:
            if prefix and name.startswith(prefix):
                self.stripped.add(prefix)
                name = name.removeprefix(prefix)
        return name

    def match_names(self, wanted: Mapping[str, Tensor]) -> None:
        """Take over the names `wanted` of theta_0 where only a wrapper's prefix makes the difference, and note it.

        Prefixes are those that all names have, and module., _orig_mod. and model.; a name that would fit two stays.
        """
        if self.meta.keys() == wanted.keys():
            return
        best: dict[str, str] = {}
        for own, theirs in ((_plain, _plain), (_without_common(self.meta), str), (str, _without_common(wanted))):
            known: dict[str, list[str]] = {}
            for name in wanted:
                known.setdefault(theirs(name), []).append(name)
            mapping = {name: known[own(name)][0] for name in self.meta if len(known.get(own(name), ())) == 1}
            if len(set(mapping.values())) == len(mapping) > max(len(best), len(self.meta.keys() & wanted.keys())):
                best = mapping
        renamed = {name: best.get(name, name) for name in self.meta}
        if not best or len(set(renamed.values())) < len(renamed):
            return
        one = next(name for name, new in renamed.items() if name != new)
        self.notes.append(f"{self.path}: names were matched with those of theta_0, such as {one} with {renamed[one]}")
        self.meta, self.stored, self._part, self.odd = (
            {renamed[name]: value for name, value in each.items()}
            for each in (self.meta, self.stored, self._part, self.odd)
        )
        self.tied = {renamed[one]: renamed[other] for one, other in self.tied.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None, *, peek: bool = False) -> Tensor:
        """Values start to stop of a tensor, flattened: (stop - start,), in its dtype, on the CPU.

        peek: a look here and there, for which nothing else of a large file is read.
        """
        numel = self.meta[name].numel()
        stop = numel if stop is None else min(stop, numel)
        return self._part[name].read(self.stored[name], start, stop, peek=peek)

    def whole(self, name: str) -> Tensor:
        """A tensor in its shape; one that is no dense array, such as a sparse table, as it is."""
        part = self._part[name]
        if isinstance(part, TorchFile) and name in self.odd:
            return part.tensors[self.stored[name]]
        return self.read(name).view(self.meta[name].shape)

    def read_into(self, name: str, start: int, values: Tensor) -> None:
        """Fill `values` (N,), in its dtype, with the values of a tensor from `start` on."""
        part = self._part[name]
        if isinstance(part, SafetensorsFile) and values.dtype == self.meta[name].dtype and values.is_contiguous():
            part.read_bytes(self.stored[name], start, values.view(torch.uint8).numpy())
        else:
            values.copy_(part.read(self.stored[name], start, start + len(values)))

    def state(self) -> State:
        """All tensors."""
        return {name: self.whole(name) for name in self.meta}

    def place(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._part[name].path

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file, by its name. It is computed while values are read; only the rest is read for it."""
        return {part.path.name: part.sha256() for part in self.parts}


def _plain(name: str) -> str:
    """A name without what torch.compile, parallel wrappers and Hugging Face's model. put in front or inside."""
    segments = [segment for segment in name.split(".") if segment not in ("module", "_orig_mod")]
    return ".".join(segments[1:] if len(segments) > 1 and segments[0] == "model" else segments)


def _without_common(names: Mapping[str, Any]) -> Callable[[str], str]:
    """Function that takes off the segments with which all names begin."""
    first, *others = (name.split(".")[:-1] for name in names) if names else [[]]
    count = 0
    while count < len(first) and all(other[: count + 1] == first[: count + 1] for other in others):
        count += 1
    return lambda name: ".".join(name.split(".")[count:])
