"""The files that checkpoints are made of: which ones a folder holds, what a file is by its first bytes, its tensors.

safetensors are read with plain reads, in the order of the file, and hashed on the way, so that one pass over each file
suffices and no more memory is resident than was asked for. Files of torch are read in weights-only mode and mapped into
memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import threading
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from know.errors import KnowError, unknown
from know.files import read_json, refuse_links_out, sha256_file

State = dict[str, Tensor]

SINGLE = "model.safetensors"
PLACES = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
"""Checkpoints in a folder, in the order in which Hugging Face looks for them: each in one file, then with an index."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".distcp", ".npz")
"""Endings of files with weights."""
TRAINING = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)\b.*|.*-\d{5}-of-\d{5}\..*")
"""Files beside a checkpoint that are no checkpoint of their own: states of a training, and single shards."""
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu},
    **{"F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz},
    **{"BOOL": torch.bool, "C64": torch.complex64},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16},
}
_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself: fetch it with `git lfs pull`"),
    (b"GGUF", "a GGUF file, whose weights are packed for inference: use the checkpoint that it was made from"),
    (
        b"\x89HDF",
        "an HDF5 file, as Keras writes it; `know import-keras` reads the authors' networks, and nothing else does",
    ),
    (b"\x93NUMPY", "an array of numpy: save tensors with torch or safetensors"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"<!doctype", "a web page and not a checkpoint: download the file itself"),
    (b"<html", "a web page and not a checkpoint: download the file itself"),
    (b"<?xml", "an XML page and not a checkpoint: download the file itself"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf", "compressed with 7z: unpack it first"),
    (b"{", "a JSON file: name the checkpoint's file or its folder"),
)
_PIECE = 1 << 22  # bytes hashed at once


def files_of(path: Path) -> tuple[list[Path], Path | None]:
    """The files of a checkpoint, sorted by name, and its index where it has one.

    Raises KnowError that says what a folder holds instead, and for a link or a listed file that leaves the folder.
    """
    if not path.is_dir():
        if not path.is_file():
            raise KnowError(f"checkpoint {path} does not exist")
        return [path], None
    for name in PLACES:
        if (path / name).is_file():
            return _within(path, [name]), None
        if (path / f"{name}.index.json").is_file():
            return _shards(path / f"{name}.index.json")
    if any(path.glob("mp_rank_*")) or any(path.glob("*zero_pp_rank_*")):
        raise KnowError(f"{path} is a part of a checkpoint of DeepSpeed; {_hint(path)}")
    found = sorted(entry for entry in path.iterdir() if entry.is_file() and not TRAINING.fullmatch(entry.name))
    for candidates in (
        [entry for entry in found if entry.suffix == ".safetensors"],
        [entry for entry in found if re.fullmatch(r".*\.index(\.\w+)?\.json", entry.name)],
        [entry for entry in found if entry.suffix in (".bin", ".pt", ".pth", ".ckpt")],
    ):
        if len(candidates) == 1:
            (only,) = candidates
            return _shards(only) if only.suffix == ".json" else (_within(path, [only.name]), None)
        if candidates:
            shown = ", ".join(entry.name for entry in candidates[:6])
            raise KnowError(f"{path} holds several checkpoints ({shown}); name one of the files")
    raise KnowError(f"{path} is a folder without a checkpoint; {_hint(path)}")


def _hint(folder: Path) -> str:
    """What to do with a folder that holds no checkpoint of its own."""
    if (folder / ".metadata").is_file() or any(folder.glob("*.distcp")):
        tool = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        return f"it is a distributed one, to be converted first: {tool} {folder} FILE.pt"
    if (
        (folder / "zero_to_fp32.py").is_file()
        or any(folder.glob("*zero_pp_rank_*"))
        or any(folder.glob("global_step*"))
    ):
        return (
            f"DeepSpeed has spread it over files, to be joined first: python {folder}/zero_to_fp32.py {folder} FOLDER"
        )
    inside = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    inside = [name for name in inside if any(path.suffix in WEIGHTS for path in (folder / name).iterdir())]
    return f"name the folder of one part, such as {folder / inside[0]}" if inside else "name the checkpoint's file"


def _within(folder: Path, names: list[str]) -> list[Path]:
    for name in names:
        refuse_links_out(folder / name, folder)
    return [folder / name for name in names]


def _shards(index: Path) -> tuple[list[Path], Path]:
    folder, files = index.parent, sorted(set(weight_map(index).values()))
    for file in files:
        if Path(file).name != file:
            raise KnowError(f"{index} names a file outside its folder: {file!r}")
        if not (folder / file).is_file():
            raise KnowError(f"{folder / file} does not exist, although {index.name} names it")
    return _within(folder, files), index


def weight_map(index: Path) -> dict[str, str]:
    """Names of tensors to names of files, from an index of shards."""
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise KnowError(f"{index} is no index of shards (weight_map: name to file)")
    return files


def kind_of(path: Path) -> Literal["safetensors", "torch"]:
    """What a file is by its first bytes, whatever its name; KnowError that calls everything else by its name."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise KnowError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise KnowError(f"{path} is empty")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "safetensors"
    for beginning, what in _BEGINNINGS:
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(beginning.lower()):
            raise KnowError(f"{path} is {what}")
    if head[257:262] == b"ustar":
        raise KnowError(f"{path} is an archive of tar: unpack it, and name the checkpoint in it")
    if len(head) < 512 and head.isascii() and head.decode().strip().isprintable():
        raise KnowError(f"{path} is a text and not a checkpoint: {head.decode().strip()[:60]!r}")
    if head[:2] == b"PK":
        _refuse_other_archives(path)
        return "torch"
    return "safetensors" if path.suffix == ".safetensors" else "torch"


def _refuse_other_archives(path: Path) -> None:
    """KnowError for a zip archive that is no file of `torch.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise KnowError(f"{path} is cut short: it begins as a file of torch, and its end is missing") from error
    if any(name.endswith("constants.pkl") for name in names):
        raise KnowError(f"{path} is a TorchScript archive, which holds code: save model.state_dict() with torch.save")
    if any(name.endswith(("archive_format", "models/model.json")) for name in names):
        raise KnowError(f"{path} is a program of torch.export: save model.state_dict() with torch.save")
    if any(name.endswith(".npy") for name in names):
        raise KnowError(f"{path} is an archive of numpy (.npz): save tensors with torch or safetensors")
    if not any(name.endswith("data.pkl") for name in names):
        raise KnowError(f"{path} is a zip archive, and not one of torch: unpack it, and name the checkpoint in it")


class SafetensorsFile:
    """One .safetensors file: its header, and values by plain reads, hashed where reading goes forwards.

    keep: keep the file open between reads, which is faster; not where there are hundreds of files.
    """

    route: tuple[str, ...] = ()

    def __init__(self, path: Path, *, keep: bool = True):
        self.path, self.keep = path, keep
        self._file: Any = None
        try:
            with safe_open(path, framework="pt"):  # the library checks header, offsets and length
                pass
            with path.open("rb", buffering=0) as file:
                prefix = file.read(8)
                header = file.read(int.from_bytes(prefix, "little"))
            entries = json.loads(header)
        except (SafetensorError, OSError, ValueError) as error:
            raise unreadable(path, error) from error
        self.metadata: dict[str, str] = entries.pop("__metadata__", None) or {}
        self.entries: dict[str, dict[str, Any]] = dict(sorted(entries.items(), key=_by_offset))
        self.start = 8 + len(header)
        self._lock = threading.Lock()  # windows are read ahead by another thread
        self._sha256, self._hashed = hashlib.sha256(prefix + header), self.start
        self.meta = {name: _meta(entry) for name, entry in self.entries.items()}
        foreign = {name: entry["dtype"] for name, entry in self.entries.items() if entry["dtype"] not in _DTYPES}
        self.odd = {name: f"of the dtype {dtype}, as quantised weights are" for name, dtype in foreign.items()}
        self.facts = facts_of(self.metadata, path)
        self.tied: dict[str, str] = self.facts.get("tied", {})
        if not _can_be_tied(self.tied, self.meta):
            raise KnowError(f"{path} notes tied tensors that it does not hold, or not alike; it is corrupt")

    def read(self, name: str, start: int, stop: int, *, peek: bool = False) -> Tensor:
        values = torch.empty(stop - start, dtype=self.meta[name].dtype, device="cpu")
        self.read_bytes(name, start, values.view(torch.uint8).numpy(), peek=peek)
        return values

    def read_bytes(self, name: str, start: int, into: np.ndarray, *, peek: bool = False) -> None:
        """Bytes of a tensor from its element `start` on, into an array of uint8.

        peek: do not read what lies before them for the hash, for reads that look here and there in a large file.
        """
        begin = self.start + self.entries[name]["data_offsets"][0] + start * self.meta[name].dtype.itemsize
        view = memoryview(into)
        with self._lock, self._opened():
            if not peek:
                self._hash_to(begin)
            self._read(begin, view)
            if begin <= self._hashed < begin + len(view):
                self._sha256.update(view[self._hashed - begin :])
                self._hashed = begin + len(view)

    @contextlib.contextmanager
    def _opened(self) -> Any:
        try:
            self._file = self._file or self.path.open("rb", buffering=0)
            yield
        except OSError as error:
            raise KnowError(f"{self.path} cannot be read: {error.strerror or error}") from error
        finally:
            if not self.keep:
                self._close()

    def _close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None

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
        with self._lock, self._opened():
            self._hash_to(self.path.stat().st_size)
        return self._sha256.hexdigest()

    def __del__(self):
        with contextlib.suppress(AttributeError):
            self._close()


class TorchFile:
    """One file of `torch.save`, mapped into memory where its format allows.

    key: the entry with the weights; "a.b" goes deeper.
    """

    def __init__(self, path: Path, key: str | None):
        self.path = path
        self.facts: dict[str, Any] = {}
        self.content = _load(path)
        self.route, inner = _entry(self.content, key, path)
        self.tensors = {name: value.detach() for name, value in inner.items() if isinstance(value, Tensor)}
        self.extra = {name: value for name, value in inner.items() if name not in self.tensors}
        """Entries that are no tensors, such as the _extra_state of a module; they are carried over."""
        self.versions = getattr(inner, "_metadata", None)
        self.odd = {name: what for name, tensor in self.tensors.items() if (what := oddness(tensor))}
        self.tied = tied_names({name: tensor for name, tensor in self.tensors.items() if name not in self.odd})
        own = [tensor for name, tensor in self.tensors.items() if name not in self.odd and name not in self.tied]
        claimed, size = sum(tensor.numel() * tensor.itemsize for tensor in own), path.stat().st_size
        if claimed > 4 * size + (1 << 26):
            raise KnowError(f"{path} claims {claimed:,} bytes of weights in a file of {size:,}; it is refused")
        self.meta = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in self.tensors.items()
        }
        self._sha256: str | None = None
        self._flat: tuple[str, Tensor] | None = None
        """The last tensor whose values do not lie in order, copied in order, since it is read piece by piece."""

    def read(self, name: str, start: int, stop: int, *, peek: bool = False) -> Tensor:
        flat, tensor = self._flat, self.tensors[name]
        if not tensor.is_contiguous():
            if flat is None or flat[0] != name:
                flat = self._flat = name, tensor.reshape(-1)
            tensor = flat[1]
        return tensor.reshape(-1)[start:stop].clone()  # a copy, so that changes to it never reach the file

    def sha256(self) -> str:
        self._sha256 = self._sha256 or sha256_file(self.path)
        return self._sha256


def oddness(tensor: Tensor) -> str | None:
    """What a tensor is that has no plain dense values; None for all others."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    return "on the meta device, without values" if tensor.device.type == "meta" else None


def unkept(tensor: Tensor) -> str | None:
    """What a tensor is that safetensors, and so a snapshot, cannot keep; None for all others."""
    what = oddness(tensor)
    return f"of {tensor.dtype}" if what is None and tensor.dtype not in _DTYPES.values() else what


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's values in their order: uint8 (numel * itemsize,), on the CPU.

    Weights are compared by these, since NaN does not equal itself.
    """
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are alike in dtype and shape, and equal bit for bit."""
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    return alike and torch.equal(bits(one), bits(other))


def _by_offset(entry: tuple[str, dict[str, Any]]) -> tuple[list[int], str]:
    return entry[1]["data_offsets"], entry[0]


def _meta(entry: dict[str, Any]) -> Tensor:
    """A tensor without values. One of a dtype that torch does not know stands as its bytes: it is only copied."""
    begin, end = entry["data_offsets"]
    dtype, shape = _DTYPES.get(entry["dtype"]), entry["shape"]
    return torch.empty(shape if dtype else end - begin, dtype=dtype or torch.uint8, device="meta")


def facts_of(metadata: Mapping[str, str], path: Path | str) -> dict[str, Any]:
    """The description that `know.checkpoints.save_state` put into a file's metadata."""
    try:
        facts = json.loads(metadata.get("know", "{}"))
    except (ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    return facts if isinstance(facts, dict) else {}


def _can_be_tied(tied: Any, meta: Mapping[str, Tensor]) -> bool:
    """Whether a note of tied tensors could be an answer of `tied_names`: tensors that are alike, in one step."""
    if not isinstance(tied, dict) or not all(isinstance(other, str) for other in tied.values()):
        return False
    return all(
        one in meta
        and other in meta.keys() - tied.keys()
        and (meta[one].shape, meta[one].dtype) == (meta[other].shape, meta[other].dtype)
        for one, other in tied.items()
    )


def tied_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names whose tensor is the same memory as that of an earlier name, by that name."""
    first, tied = {}, {}
    for name, tensor in sorted(state.items()):
        if tensor.numel() and tensor.layout == torch.strided and tensor.device.type != "meta":
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            if first.setdefault(place, name) != name:
                tied[name] = first[place]
    return tied


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_globals()):
            warnings.simplefilter("ignore")  # torch's own, about old formats; the errors below say what matters
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
    except pickle.UnpicklingError as error:
        if named := _refused_objects(path):
            raise KnowError(
                f"{path} holds objects of {', '.join(named)} beside its tensors, which could run code; it is refused."
                " Where it was made, save the state_dict alone: torch.save(model.state_dict(), ...)"
            ) from error
        raise KnowError(f"{path} is corrupt or holds more than tensors, which could run code; refused") from error
    except Exception as error:  # every reader has its own kinds for damaged bytes
        raise unreadable(path, error) from error


def _refused_objects(path: Path) -> list[str]:
    """Names of the classes and functions in a file that torch does not read in weights-only mode."""
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:5]
    except Exception:  # a file without a list of its objects
        return []


def _numpy_globals() -> list[Any]:
    """What numbers and arrays of numpy in a file are made of: harmless, and common beside weights."""
    core = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray
    kinds = [type(np.dtype(letter)) for letter in "?bBhHiIlLqQefdFDSU"]
    named = [
        (getattr(core, name), f"numpy.{place}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for place in ("core", "_core")
    ]
    return [np.ndarray, np.dtype, *kinds, *named]


def _entry(content: Any, key: str | None, path: Path) -> tuple[list[str], Mapping[str, Any]]:
    """The way to the state_dict inside a torch file, and that.

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
    others = [name for name in others if name.rpartition(".")[2] != "_extra_state"]
    if others and any("_packed_params" in name for name in others):
        raise KnowError(f"{path} holds weights quantised by torch; save the snapshots before they are quantised")
    if others:
        inside = [name for name in others if _has_tensors(content[name])]
        hint = f"try --key {inside[0]}" if inside else "save model.state_dict()"
        raise KnowError(f"{path} holds no plain state_dict (name to tensor): {others[0]!r} is no tensor; {hint}")
    return route, content


def entries_with_tensors(path: Path) -> list[str]:
    """Names of the entries of a checkpoint of torch that hold tensors by name; none where it is no single file."""
    files, _ = files_of(path)
    content = _load(files[0]) if len(files) == 1 and kind_of(files[0]) == "torch" else None
    found = content.items() if isinstance(content, Mapping) else ()
    return [name for name, value in found if isinstance(name, str) and _has_tensors(value)]


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, Tensor) for inner in value.values())


def unreadable(path: Path | str, error: Exception) -> KnowError:
    """The error for bytes that their own library does not take."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    reason = "its content is no state_dict" if "weights_only" in reason else reason
    return KnowError(f"{path} cannot be read ({reason}); it is corrupt or truncated")
