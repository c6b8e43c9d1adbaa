"""Writers of checkpoints in the layout of another one: the same names, shapes, dtypes and order, tensor by tensor."""

from __future__ import annotations

import errno
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from know.errors import KnowError
from know.formats import SafetensorsFile, TorchFile


class SafetensorsWriter:
    """Writes one .safetensors file in the layout of another one.

    path: the file to write, which must not exist. like: the file whose layout is kept; notes of this package in its
    metadata are not. names: the names to write, and the name of each in that file.
    """

    def __init__(self, path: Path, like: SafetensorsFile, names: Mapping[str, str]):
        metadata = {key: value for key, value in sorted(like.metadata.items()) if key != "know"}
        given = {stored: name for name, stored in names.items()}
        if like.tied:  # the one note that stays true
            tied = {given[one]: given[other] for one, other in like.tied.items()}
            metadata["know"] = json.dumps({"tied": tied}, sort_keys=True)
        metadata.setdefault("format", "pt")  # without which some versions of transformers do not load the file
        self._entries = {given[stored]: entry for stored, entry in like.entries.items()}
        header = json.dumps({"__metadata__": metadata} | self._entries, separators=(",", ":"))
        content = header.encode()
        content += b" " * (-len(content) % 8)  # the data begin at a multiple of 8, as the library of safetensors has it
        self.start = 8 + len(content)
        self.path = path
        with path.open("xb") as file:
            file.write(len(content).to_bytes(8, "little") + content)
            file.truncate(self.start + max((entry["data_offsets"][1] for entry in like.entries.values()), default=0))

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Put values (N,) of the tensor's dtype at its element `start`."""
        offset = self._entries[name]["data_offsets"][0] + start * values.dtype.itemsize
        plain = values.contiguous().as_strided(values.shape, (1,))  # a single value may have another stride
        with self.path.open("r+b") as file:  # opened anew, since hundreds of shards exceed the limit of open files
            file.seek(self.start + offset)
            file.write(memoryview(plain.view(torch.uint8).numpy()))

    def finish(self) -> None:
        """Nothing is left to do."""


class TorchWriter:
    """Writes one file of `torch.save` when finished; holds all of it in memory until then.

    like: the file whose names, shapes, dtypes, and further entries are kept. names: the names to write, and the name of
    each in that file. Entries with states of the training, which do not belong to the new weights, are left out.
    """

    def __init__(self, path: Path, like: TorchFile, names: Mapping[str, str]):
        self.path, self.like = path, like
        named_alike = all(name == stored for name, stored in names.items())
        self.versions = like.versions if named_alike else None
        given = {stored: name for name, stored in names.items()}
        self.tied = {given[one]: given[other] for one, other in like.tied.items()}
        try:
            self.state: dict[str, Any] = {
                name: like.tensors[stored]
                if stored in like.odd
                else torch.empty(like.meta[stored].shape, dtype=like.meta[stored].dtype, device="cpu")
                for name, stored in names.items()
            }
        except RuntimeError as error:  # what torch raises where memory is short
            raise KnowError(
                f"{like.path} must fit into memory in this format, and does not; use safetensors"
            ) from error
        self.odd = {given[stored] for stored in like.odd}

    def write(self, name: str, start: int, values: Tensor) -> None:
        if name not in self.odd:
            self.state[name].view(-1)[start : start + len(values)] = values

    def finish(self) -> None:
        content: Any = self.state | {name: self.state[other] for name, other in self.tied.items()} | self.like.extra
        if self.versions is not None:
            content = OrderedDict(content)
            content._metadata = self.versions  # where torch keeps it; some modules do not load without it
        for level, part in reversed(list(zip(_levels(self.like), self.like.route, strict=True))):
            content = {key: value for key, value in level.items() if not is_state(key)} | {part: content}
        try:
            with self.path.open("xb") as handle:  # given a path, torch writes its name into the file
                torch.save(content, handle)
        except RuntimeError as error:  # what torch raises where it cannot write, such as on a full disk
            raise OSError(errno.EIO, str(error).splitlines()[0]) from error


STATES = re.compile(
    r"(\w+_)?(optim|optimi[sz]ers?|(lr_?)?sched(uler)?s?|(grad_)?scaler|amp|rng|random)(_?(states?|state_dict))?|loops"
)
"""Names of entries that are states of a training, in lower case."""


def entries_beside(like: TorchFile) -> tuple[list[str], list[str]]:
    """Names of the entries beside the weights that a writer leaves out, and of those that it carries over."""
    names = [str(key) for level, part in zip(_levels(like), like.route, strict=True) for key in level if key != part]
    return [name for name in names if is_state(name)], [name for name in names if not is_state(name)]


def _levels(like: TorchFile) -> list[Mapping[str, Any]]:
    """The mappings on the way to the weights, the whole file first."""
    levels = [like.content]
    for part in like.route[:-1]:
        levels.append(levels[-1][part])
    return levels[: len(like.route)]


def is_state(key: Any) -> bool:
    """Whether an entry is the state of a training, which does not belong to the new weights."""
    return isinstance(key, str) and bool(STATES.fullmatch(key.lower()))
