"""Writers of checkpoints in the layout of another one: the same names, shapes, dtypes and order, tensor by tensor."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from know.checkpoints import Checkpoint, SafetensorsFile
from know.errors import KnowError


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
        self._entries = {given[stored]: entry for stored, entry in like.entries.items()}
        header = json.dumps(({"__metadata__": metadata} if metadata else {}) | self._entries, separators=(",", ":"))
        content = header.encode()
        content += b" " * (-len(content) % 8)  # the data begin at a multiple of 8, as the library of safetensors has it
        self.start = 8 + len(content)
        self._file: BinaryIO = path.open("xb")
        self._file.write(len(content).to_bytes(8, "little") + content)

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Put values (N,) of the tensor's dtype at its element `start`."""
        offset = self._entries[name]["data_offsets"][0] + start * values.dtype.itemsize
        self._file.seek(self.start + offset)
        plain = values.contiguous().as_strided(values.shape, (1,))  # a single value may have another stride
        self._file.write(memoryview(plain.view(torch.uint8).numpy()))

    def close(self) -> None:
        self._file.close()


class TorchWriter:
    """Writes one file of `torch.save` when closed; holds all of it in memory until then.

    like: the checkpoint whose names, shapes, dtypes, and entry with the weights are kept.
    """

    def __init__(self, path: Path, like: Checkpoint):
        self.path, self.route, self.tied = path, like.parts[0].route, like.tied
        named_alike = all(name == stored for name, stored in like.stored.items())
        self.versions = like.parts[0].versions if named_alike else None
        try:
            self.state = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in like.meta.items()}
        except RuntimeError as error:  # what torch raises where memory is short
            raise KnowError(
                f"{like.path} must fit into memory in this format, and does not; use safetensors"
            ) from error

    def write(self, name: str, start: int, values: Tensor) -> None:
        self.state[name].view(-1)[start : start + len(values)] = values

    def close(self) -> None:
        content: Any = self.state | {name: self.state[other] for name, other in self.tied.items()}
        if self.versions is not None:
            content = OrderedDict(content)
            content._metadata = self.versions  # where torch keeps it; some modules do not load without it
        for part in reversed(self.route):
            content = {part: content}
        with self.path.open("xb") as handle:  # given a path, torch writes its name into the file
            torch.save(content, handle)
