"""Checkpoints that anybody wrote: names, shapes and dtypes are read at once, values piece by piece.

This module reads a .safetensors file, a folder of them as Hugging Face writes it, in one file or in shards, and a file
of torch (.pt, .pth, .bin) in weights-only mode. safetensors are read with plain reads, in the order of the file, and
hashed on the way, so that one pass over each file suffices and no more memory is resident than was asked for. Files of
torch are mapped into memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from know.errors import KnowError, unknown
from know.files import atomic, read_json, sha256_file

State = dict[str, Tensor]

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
"""Names of files of Hugging Face: the index of the shards, and a checkpoint in one file."""
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "C64": torch.complex64},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16},
}
_PIECE = 1 << 22  # bytes hashed at once


def save_state(path: Path | str, state: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Write tensors to a safetensors file, atomically and always with the same bytes.

    facts: JSON-serialisable description, kept as ONE sorted metadata entry (several would come out in random order).
    Names that share their values (tied weights) are noted there.
    """
    facts = dict(facts or {})
    if tied := _tied(state):
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
            return _facts(handle.metadata() or {}, path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


class Checkpoint:
    """One checkpoint, opened; its values are read when asked for.

    path: see the module. key: entry of a torch file that holds the weights, such as "state_dict"; "a.b" goes deeper.
    strip: prefix that is taken off the names that have it, such as "module.".

    Raises KnowError if the file is missing, truncated, corrupt, or a pickle that holds more than tensors.
    """

    meta: State
    """Names to tensors on torch's meta device: shapes and dtypes, in the order of the file."""
    tied: dict[str, str]
    """Names that share the values of another one, by that one."""

    def __init__(self, path: Path | str, *, key: str | None = None, strip: str = ""):
        self.path = Path(path)
        folder = self.path.is_dir()
        if folder and not any((self.path / name).is_file() for name in (INDEX, SINGLE)):
            raise KnowError(f"{self.path} is a folder without {SINGLE} or {INDEX}; name the checkpoint's file")
        if not folder and not self.path.is_file():
            raise KnowError(f"checkpoint {self.path} does not exist")
        self.parts: list[SafetensorsFile | _TorchFile]
        if folder or self.path.suffix == ".safetensors":
            if key:
                raise KnowError(f"{self.path} has no entry {key!r}: safetensors hold tensors and nothing else")
            self.parts = [SafetensorsFile(part) for part in _shards(self.path)]
        else:
            self.parts = [_TorchFile(self.path, key)]
        self.meta, self.stored, self._part, self.tied = {}, {}, {}, {}
        for part in self.parts:
            for stored, tensor in part.meta.items():
                name = stored.removeprefix(strip)
                if name in self.meta:
                    raise KnowError(f"{self.path} has the tensor {name!r} twice")
                self.meta[name], self.stored[name], self._part[name] = tensor, stored, part
            self.tied |= {one.removeprefix(strip): other.removeprefix(strip) for one, other in part.tied.items()}
        if (self.path / INDEX).is_file():
            _compare_with_index(self.path / INDEX, {self.stored[name]: self._part[name].path for name in self.meta})

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Values start to stop of a tensor, flattened: (stop - start,), in its dtype, on the CPU."""
        numel = self.meta[name].numel()
        return self._part[name].read(self.stored[name], start, numel if stop is None else min(stop, numel))

    def read_into(self, name: str, start: int, values: Tensor) -> None:
        """Fill `values` (N,), in its dtype, with the values of a tensor from `start` on."""
        part = self._part[name]
        if isinstance(part, SafetensorsFile) and values.dtype == self.meta[name].dtype and values.is_contiguous():
            part.read_bytes(self.stored[name], start, values.view(torch.uint8).numpy())
        else:
            values.copy_(part.read(self.stored[name], start, start + len(values)))

    def state(self) -> State:
        """All tensors."""
        return {name: self.read(name).view(tensor.shape) for name, tensor in self.meta.items()}

    def place(self, name: str) -> Path:
        """The file that holds the tensor."""
        return self._part[name].path

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each file, by its name. It is computed while values are read; only the rest is read for it."""
        return {part.path.name: part.sha256() for part in self.parts}


class SafetensorsFile:
    """One .safetensors file: its header, and values by plain reads, hashed where reading goes forwards."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, framework="pt"):  # the library checks header, offsets and length
                self._file = path.open("rb", buffering=0)
            prefix = self._file.read(8)
            header = self._file.read(int.from_bytes(prefix, "little"))
            entries = json.loads(header)
        except (SafetensorError, OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        self.metadata: dict[str, str] = entries.pop("__metadata__", None) or {}
        self.entries: dict[str, dict[str, Any]] = dict(sorted(entries.items(), key=_by_offset))
        self.start = 8 + len(header)
        self._lock = threading.Lock()  # windows are read ahead by another thread
        self._sha256, self._hashed = hashlib.sha256(prefix + header), self.start
        self.meta = {name: _meta(entry) for name, entry in self.entries.items()}
        self.tied: dict[str, str] = _facts(self.metadata, path).get("tied", {})
        if not _can_be_tied(self.tied, self.meta):
            raise KnowError(f"{path} notes tied tensors that it does not hold, or not alike; it is corrupt")

    def read(self, name: str, start: int, stop: int) -> Tensor:
        values = torch.empty(stop - start, dtype=self.meta[name].dtype)
        self.read_bytes(name, start, values.view(torch.uint8).numpy())
        return values

    def read_bytes(self, name: str, start: int, into: np.ndarray) -> None:
        """Bytes of a tensor from its element `start` on, into an array of uint8."""
        begin = self.start + self.entries[name]["data_offsets"][0] + start * self.meta[name].dtype.itemsize
        view = memoryview(into)
        with self._lock:
            self._hash_to(begin)
            self._read(begin, view)
            if begin + len(view) > self._hashed:
                self._sha256.update(view[self._hashed - begin :])
                self._hashed = begin + len(view)

    def _hash_to(self, end: int) -> None:
        """Read and hash the bytes up to `end` that nobody asked for."""
        while self._hashed < end:
            view = memoryview(bytearray(min(_PIECE, end - self._hashed)))
            self._read(self._hashed, view)
            self._sha256.update(view)
            self._hashed += len(view)

    def _read(self, begin: int, view: memoryview) -> None:
        self._file.seek(begin)
        done = 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        if done < len(view):
            raise KnowError(f"{self.path} has become shorter while it was read")

    def sha256(self) -> str:
        with self._lock:
            self._hash_to(self.path.stat().st_size)
        return self._sha256.hexdigest()

    def __del__(self):
        with contextlib.suppress(AttributeError):
            self._file.close()


class _TorchFile:
    """One file of `torch.save`, mapped into memory where its format allows."""

    def __init__(self, path: Path, key: str | None):
        self.path = path
        self.route, self.tensors, self.versions = _entry(_load(path), key, path)
        self.meta, self.tied = {}, _tied(self.tensors)
        for name, tensor in self.tensors.items():
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
                raise KnowError(
                    f"tensor {name!r} of {path} is sparse, quantised or empty of values; save dense tensors"
                )
            self.meta[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    def read(self, name: str, start: int, stop: int) -> Tensor:
        # a copy, so that changes to it never reach the file
        return self.tensors[name].detach().reshape(-1)[start:stop].clone()

    def sha256(self) -> str:
        return sha256_file(self.path)


def _by_offset(entry: tuple[str, dict[str, Any]]) -> tuple[list[int], str]:
    return entry[1]["data_offsets"], entry[0]


def _meta(entry: dict[str, Any]) -> Tensor:
    """A tensor without values. One of a dtype that torch does not know stands as its bytes: it is only copied."""
    begin, end = entry["data_offsets"]
    dtype, shape = _DTYPES.get(entry["dtype"]), entry["shape"]
    return torch.empty(shape if dtype else end - begin, dtype=dtype or torch.uint8, device="meta")


def _facts(metadata: Mapping[str, str], path: Path | str) -> dict[str, Any]:
    try:
        facts = json.loads(metadata.get("know", "{}"))
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    return facts if isinstance(facts, dict) else {}


def _can_be_tied(tied: Any, meta: Mapping[str, Tensor]) -> bool:
    """Whether a note of tied tensors could be an answer of `_tied`: names of tensors that are alike, in one step."""
    if not isinstance(tied, dict) or not all(isinstance(other, str) for other in tied.values()):
        return False
    return all(
        one in meta
        and other in meta.keys() - tied.keys()
        and (meta[one].shape, meta[one].dtype) == (meta[other].shape, meta[other].dtype)
        for one, other in tied.items()
    )


def _tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names whose tensor is the same memory as that of an earlier name, by that name."""
    first, tied = {}, {}
    for name, tensor in sorted(state.items()):
        if tensor.numel() and tensor.layout == torch.strided and tensor.device.type != "meta":
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if first.setdefault(place, name) != name:
                tied[name] = first[place]
    return tied


def _shards(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sorted by name."""
    if not path.is_dir():
        return [path]
    if not (path / INDEX).is_file():
        return [path / SINGLE]
    files = sorted(set(_weight_map(path / INDEX).values()))
    for file in files:
        if Path(file).name != file:
            raise KnowError(f"{path / INDEX} names a file outside its folder: {file!r}")
        if not (path / file).is_file():
            raise KnowError(f"{path / file} does not exist, although {INDEX} names it")
    return [path / file for file in files]


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise KnowError(f"{index} is no index of shards (weight_map: name to file)")
    return files


def _compare_with_index(index: Path, files: Mapping[str, Path]) -> None:
    wanted = _weight_map(index)
    for name in sorted(wanted.keys() | files.keys()):
        if name not in files or name not in wanted or files[name].name != wanted[name]:
            said = wanted.get(name, "nowhere")
            there = files[name].name if name in files else "nowhere"
            raise KnowError(f"tensor {name!r} is in {there}, but {index} says {said}")


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about old formats; the errors below say what matters
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except pickle.UnpicklingError as error:
        raise KnowError(f"{path} is corrupt or holds more than tensors, which could run code; refused") from error
    except Exception as error:  # every reader has its own kinds for damaged bytes
        raise _unreadable(path, error) from error


def _entry(content: Any, key: str | None, path: Path) -> tuple[list[str], dict[str, Tensor], Any]:
    """The way to the state_dict inside a torch file, its tensors, and the versions of its modules where they are noted.

    The KnowError for a file without one says where else to look.
    """
    whole = isinstance(content, Mapping) and key in content
    route = [] if not key else [key] if whole else key.split(".")
    for part in route:
        if not isinstance(content, Mapping) or part not in content:
            raise unknown(f"entry of {path}", part, map(str, content) if isinstance(content, Mapping) else ["(none)"])
        content = content[part]
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise KnowError(f"{path} holds no plain state_dict (name to tensor); save model.state_dict()")
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        inside = [name for name in others if _has_tensors(content[name])]
        hint = f"try --key {inside[0]}" if inside else "save model.state_dict()"
        raise KnowError(f"{path} holds no plain state_dict (name to tensor): {others[0]!r} is no tensor; {hint}")
    return route, {name: value.detach() for name, value in content.items()}, getattr(content, "_metadata", None)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, Tensor) for inner in value.values())


def _unreadable(path: Path | str, error: Exception) -> KnowError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return KnowError(f"{path} cannot be read ({reason}); it is corrupt or truncated")
