"""The forgetting trajectory: an ordered sequence of snapshots with the fraction of data behind each.

On disk it is a folder with one safetensors file per snapshot and `manifest.json`, which is written last and holds their
order, fractions and hashes. The order is that of the paper's window: smallest subset first, full set (theta_0) last.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from know.checkpoints import Checkpoint, State, load_facts, load_state, save_state
from know.errors import KnowError
from know.files import digest, read_json, resumable_folder, sha256_file, write_json
from know.roles import Role, roles

LARGE = 1 << 18
"""Windows of so many weights are laid out in memory for speed, and answered by the compiled KNOWN where numba is there.
Smaller windows, which are all that the suites have, keep the bits that published results were computed with."""


def finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite. It makes no copy and is several times faster than `isfinite`."""
    array = values.cpu().numpy()
    return not array.size or (math.isfinite(array.min()) and math.isfinite(array.max()))


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


def nested_subsets(
    n: int, ratio: float = 0.5, length: int = 5, seed: int = 0, *, fractions: Sequence[float] | None = None
) -> list[list[int]]:
    """Indices of nested subsets of n items, smallest first: prefixes of ONE seeded permutation.

    There are S = `length` subsets of 1, r, r^2, ... of the items, or those of `fractions`, in their order. A fraction f
    gives round(f n) indices, and the subset of a smaller fraction lies inside that of a larger one.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return [order[: round(f * n)] for f in fractions or [ratio**k for k in reversed(range(length))]]


@dataclass(frozen=True)
class Trajectory:
    """Ordered snapshots, smallest subset first and theta_0 last, read from disk when first needed."""

    paths: tuple[Path, ...]
    fractions: tuple[float, ...]
    manifest: dict[str, Any]
    key: str | None = None
    strip: str = ""

    @classmethod
    def from_checkpoints(
        cls, paths: Sequence[Path | str], fractions: Sequence[float], *, key: str | None = None, strip: str = ""
    ) -> Trajectory:
        """A trajectory of checkpoints that anybody wrote, smallest subset first, with their fractions.

        key, strip: see `know.checkpoints.Checkpoint`.
        """
        return cls(tuple(Path(p) for p in paths), check_fractions(fractions, len(paths)), {}, key, strip)

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
            snapshots = [(folder / s["file"], float(s["fraction"]), s["sha256"]) for s in manifest["snapshots"]]
            frozenset(manifest.get("buffers", ()))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise KnowError(f"{folder / 'manifest.json'} is no trajectory manifest ({error!r})") from error
        paths = tuple(path for path, _, _ in snapshots)
        return cls(paths, check_fractions([fraction for _, fraction, _ in snapshots]), manifest)

    @classmethod
    @contextlib.contextmanager
    def record(
        cls,
        out: Path | str,
        fractions: Sequence[float] | None = None,
        *,
        ratio: float = 0.5,
        length: int = 5,
        settings: Mapping[str, Any] | None = None,
    ) -> Iterator[Recorder]:
        """Make a trajectory from your own loop, snapshot by snapshot.

            with know.Trajectory.record("run/") as record:
                record.start(model)  # theta_0; after an interruption, the last snapshot
                for fraction, index in record.steps(len(dataset)):
                    train(model, Subset(dataset, index))
                    record.add(model, fraction)

        fractions: of D0 behind the snapshots, smallest first, ending at 1; default `length` of them at 1, r, r^2, ...
        settings: JSON-serialisable, kept in the manifest; an interrupted run of other settings is not continued.

        A finished folder of the same settings is taken as it is; any other folder is an error.
        """
        out, fractions = Path(out), check_fractions(fractions or [ratio**k for k in reversed(range(length))])
        fingerprint = digest({"fractions": fractions, "settings": settings or {}})
        if (out / "manifest.json").is_file():
            if cls.load(out).manifest.get("fingerprint") != fingerprint:
                raise KnowError(f"{out} holds a trajectory of other settings; remove it or name another folder")
            yield Recorder(out, fractions)
            return
        if out.exists():
            raise KnowError(f"{out} exists and is no trajectory; remove it or name another folder")
        with resumable_folder(out, fingerprint) as folder:
            recorder = Recorder(folder, fractions)
            yield recorder
            recorder.finish(fingerprint=fingerprint, settings=dict(settings or {}))

    @functools.cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All snapshots, opened, with equal names and shapes (else KnowError), in the order of `fractions`."""
        with self._hashes_first():
            opened = tuple(Checkpoint(path, key=self.key, strip=self.strip) for path in self.paths)
            last, name_of_last = opened[-1].meta, self.paths[-1].name
            for path, checkpoint in zip(self.paths, opened, strict=True):
                for name in sorted(last.keys() | checkpoint.meta.keys()):
                    if name not in checkpoint.meta or name not in last:
                        there, lacking = (name_of_last, path) if name in last else (path.name, self.paths[-1])
                        raise KnowError(f"tensor {name!r} of {there} is missing in {lacking}")
                    one, other = checkpoint.meta[name], last[name]
                    for kind, a, b in (
                        ("shape", tuple(one.shape), tuple(other.shape)),
                        ("floating-point values", one.is_floating_point(), other.is_floating_point()),
                    ):
                        if a != b:
                            raise KnowError(f"tensor {name!r}: {path} has {kind} {a}, {name_of_last} has {b}")
        return opened

    @property
    def meta(self) -> State:
        """Names to shapes and dtypes of theta_0, as tensors on torch's meta device."""
        return self.checkpoints[-1].meta

    @functools.cached_property
    def states(self) -> tuple[State, ...]:
        """All snapshots in memory."""
        with self._hashes_first():
            states = tuple(checkpoint.state() for checkpoint in self.checkpoints)
        self.verify()
        return states

    @property
    def theta_0(self) -> State:
        return self.states[-1]

    def roles(self, given: Mapping[str, str] | None = None) -> dict[str, Role]:
        """Roles of the tensors; see the function `roles`. The manifest of a recorded module names its buffers."""
        return roles(self.meta, given, buffers=self.manifest.get("buffers", ()))

    def verify(self) -> None:
        """Compare what was read with the hashes in the manifest, where there is one; KnowError names the file."""
        for checkpoint, recorded in zip(self.checkpoints, self.manifest.get("snapshots", ()), strict=False):
            _compare_hash(checkpoint.path, checkpoint.hashes[checkpoint.path.name], recorded["sha256"])

    @contextlib.contextmanager
    def _hashes_first(self) -> Iterator[None]:
        """If the block fails and a file has another hash than in the manifest, raise that error: it is the cause."""
        try:
            yield
        except KnowError:
            for path, recorded in zip(self.paths, self.manifest.get("snapshots", ()), strict=False):
                if path.is_file():
                    _compare_hash(path, sha256_file(path), recorded["sha256"])
            raise

    def last(self, length: int) -> Trajectory:
        """The trajectory as one of `length` snapshots: those of the largest subsets. KnowError if it has fewer."""
        count = len(self.paths)
        if length > count:
            raise KnowError(f"the trajectory has {count} snapshots, {length} are wanted")
        kept = dict(self.manifest)
        if "snapshots" in kept:
            kept["snapshots"] = kept["snapshots"][count - length :]
        own = self.paths[count - length :], self.fractions[count - length :]
        return replace(self, paths=own[0], fractions=own[1], manifest=kept)

    def window(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """History of the tensor `name`, or of its values start to stop: float32 (numel, S), smallest subset first.

        In windows of `LARGE` weights and more each snapshot is one run of memory (strides 1, numel); smaller windows
        are contiguous. Raises KnowError, naming tensor and file, where a value is not finite.
        """
        stop = self.meta[name].numel() if stop is None else min(stop, self.meta[name].numel())
        window = torch.empty(len(self.paths), stop - start)  # (S, N)
        loaded = self.__dict__.get("states")
        for k, checkpoint in enumerate(self.checkpoints):
            if loaded:
                window[k] = loaded[k][name].flatten()[start:stop]
            else:
                checkpoint.read_into(name, start, window[k])
        if not finite(window):
            row = int((~window.isfinite()).any(1).nonzero()[0])
            with self._hashes_first():
                raise KnowError(
                    f"tensor {name!r} of {self.paths[row]} has values that are not finite (NaN or infinite)"
                )
        return window.T if window.shape[1] >= LARGE else window.T.contiguous()

    def reference(self, name: str) -> State:
        """Further weights that are kept with the trajectory, such as those of the oracle."""
        references = self.manifest.get("references", {})
        if name not in references:
            raise KnowError(f"{self.paths[-1].parent} keeps no reference weights {name!r}")
        path = self.paths[-1].parent / references[name]["file"]
        if path.is_file():
            _compare_hash(path, sha256_file(path), references[name]["sha256"])
        return load_state(path)


class Recorder:
    """Snapshots of a trajectory in the making, one file each; see `Trajectory.record`."""

    def __init__(self, folder: Path, fractions: Sequence[float]):
        self.folder, self.fractions = folder, check_fractions(fractions)
        self.buffers: list[str] = []

    def start(self, model: nn.Module) -> None:
        """Record theta_0, or give the model the last snapshot where an interrupted run has recorded some."""
        self._note_buffers(model)
        done = [fraction for fraction in reversed(self.fractions) if fraction in self]
        if not done:
            return self.add(model, 1.0)
        if not any(_equal(self.state(fraction), model.state_dict()) for fraction in done):
            raise KnowError(f"{self.folder} holds an unfinished trajectory of other weights; remove it to start anew")
        model.load_state_dict(self.state(done[-1]))
        return None

    def steps(self, n: int, seed: int = 0) -> Iterator[tuple[float, list[int]]]:
        """The forgetting steps that are left to do, largest subset first: its fraction, and its indices of n items."""
        subsets = nested_subsets(n, seed=seed, fractions=self.fractions)
        if not subsets[0]:
            raise KnowError(f"the smallest subset, {self.fractions[0]:g} of {n} items, is empty")
        for fraction, index in zip(reversed(self.fractions), reversed(subsets), strict=True):
            if fraction not in self:
                yield fraction, index

    def __contains__(self, fraction: float) -> bool:
        """Whether the snapshot of that fraction is recorded. Its file was renamed into place, so it is complete."""
        return self._path(fraction).is_file()

    def add(self, model: nn.Module | Mapping[str, Tensor], fraction: float, **facts: Any) -> None:
        """Record a snapshot, a module or its state_dict; facts are kept in the manifest."""
        if isinstance(model, nn.Module):
            self._note_buffers(model)
        state = model.state_dict() if isinstance(model, nn.Module) else model
        save_state(self._path(fraction), state, {"fraction": fraction, **facts})

    def state(self, fraction: float) -> State:
        """The recorded snapshot of that fraction."""
        return load_state(self._path(fraction))

    def finish(self, references: Mapping[str, str] | None = None, **facts: Any) -> None:
        """Write the manifest; KnowError if a snapshot is missing. references: name to file, of further weights."""
        missing = [fraction for fraction in reversed(self.fractions) if fraction not in self]
        if missing:
            shown = ", ".join(f"{fraction:g}" for fraction in missing)
            raise KnowError(f"the trajectory is not finished: no snapshot of fraction {shown}; run it again to go on")
        buffers = {"buffers": self.buffers} if self.buffers else {}
        files = [self._path(fraction).name for fraction in self.fractions]
        write_manifest(self.folder, files, references or {}, **buffers, **facts)

    def _path(self, fraction: float) -> Path:
        """s0 is theta_0, s1 the snapshot of the next smaller subset, as the paper counts."""
        for k, one in enumerate(reversed(self.fractions)):
            if math.isclose(one, fraction, rel_tol=1e-9):
                return self.folder / f"s{k}.safetensors"
        shown = ", ".join(f"{f:g}" for f in self.fractions)
        raise KnowError(f"fraction {fraction:g} is not one of this trajectory's ({shown})")

    def _note_buffers(self, model: nn.Module) -> None:
        """Note the buffers that `roles` would take for parameters, since a state_dict does not distinguish the two."""
        state = model.state_dict()
        role_of, buffers = roles(state), {name for name, _ in model.named_buffers()} & state.keys()
        self.buffers = sorted(name for name in buffers if role_of[name] != "buffer")


def write_manifest(folder: Path, files: Sequence[str], references: Mapping[str, str], **facts: Any) -> None:
    """Write `manifest.json` of the snapshots `files`, smallest subset first, each with its own recorded facts."""

    def entry(file: str) -> dict[str, Any]:
        return {"file": file, "sha256": sha256_file(folder / file), **load_facts(folder / file)}

    manifest = {"format": 1, "torch": torch.__version__, **facts}
    manifest["snapshots"] = [entry(file) for file in files]
    manifest["references"] = {name: entry(file) for name, file in sorted(references.items())}
    write_json(folder / "manifest.json", manifest)


def _compare_hash(path: Path, sha256: str, recorded: str) -> None:
    if sha256 != recorded:
        raise KnowError(f"{path} does not have the hash in its manifest; it is damaged, make it again")


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name].cpu()) for name in one)
