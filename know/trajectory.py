"""The forgetting trajectory: an ordered sequence of snapshots with the fraction of data behind each.

On disk it is a folder with one safetensors file per snapshot and `manifest.json`, which is written last and holds their
order, fractions and hashes. The order is that of the paper's window: smallest subset first, full set (theta_0) last.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from know.checkpoints import Checkpoint, State, load_state
from know.errors import KnowError, as_path, number
from know.files import digest, read_json, refuse_links_out, resumable_folder, sha256_file, write_json
from know.formats import same_bits
from know.recording import Recorder, check_facts, entry_of
from know.roles import MERGE, Role, reasons, refuse_unpredictable
from know.subsets import check_fractions, choose_fractions

LARGE = 1 << 18
"""Windows of so many weights are laid out in memory for speed, and answered by the compiled KNOWN where numba is there.
Smaller windows, which are all that the suites have, keep the bits that published results were computed with."""


def finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite. It makes no copy and is several times faster than `isfinite`."""
    array = values.cpu().numpy()
    return not array.size or (math.isfinite(array.min()) and math.isfinite(array.max()))


@dataclass(frozen=True)
class Trajectory:
    """Ordered snapshots, smallest subset first and theta_0 last, read from disk when first needed."""

    paths: tuple[Path, ...]
    fractions: tuple[float, ...]
    manifest: dict[str, Any]
    key: str | None = None
    strip: tuple[str, ...] = ()

    @classmethod
    def from_checkpoints(
        cls,
        paths: Sequence[Path | str],
        fractions: Sequence[float],
        *,
        key: str | None = None,
        strip: str | Sequence[str] = (),
    ) -> Trajectory:
        """A trajectory of checkpoints that anybody wrote, smallest subset first, with their fractions.

        key, strip: see `know.checkpoints.Checkpoint`. Snapshots of a finished trajectory folder are checked against
        its manifest, and against the fraction that each file carries.
        """
        if not isinstance(paths, list | tuple) or not all(isinstance(path, str | Path) for path in paths):
            raise KnowError(f"from_checkpoints takes a list of paths, smallest subset first; got {paths!r}")
        if not isinstance(key, str | None):
            raise KnowError(f"key must be a text, got {key!r}")
        if not isinstance(strip, str | list | tuple) or not all(isinstance(prefix, str) for prefix in strip):
            raise KnowError(f"strip must be a prefix or a list of them, got {strip!r}")
        given, values = tuple(map(Path, paths)), check_fractions(fractions, len(paths))
        places = [path.resolve() for path in given]
        if twice := [path for k, path in enumerate(given) if places[k] in places[:k]]:
            raise KnowError(f"{twice[0]} is given twice; every snapshot is a checkpoint of its own")
        return cls(given, values, _recorded(given), key, (strip,) if isinstance(strip, str) else tuple(strip))

    @classmethod
    def load(cls, folder: Path | str) -> Trajectory:
        """A finished trajectory folder. The hashes of the files are checked when the weights are read."""
        folder = as_path("folder", folder)
        loaded = cls._listed(folder)
        if gone := [path.name for path in loaded.paths if not path.is_file()]:
            raise KnowError(f"{folder} has lost {', '.join(gone)}; make the trajectory again, in a new folder")
        return loaded

    @classmethod
    def _listed(cls, folder: Path) -> Trajectory:
        """What the manifest of a folder lists, whether the files are there or not."""
        if not (folder / "manifest.json").is_file():
            left = bool(folder.name) and folder.with_name(f"{folder.name}.partial").is_dir()
            hint = (
                "it was interrupted, run the same command again"
                if left
                else "make it with `know forget`, or name the files of the snapshots, smallest subset first, with their"
                " fractions"
            )
            raise KnowError(f"{folder} holds no finished trajectory (no manifest.json); {hint}")
        manifest = read_json(folder / "manifest.json")
        try:
            snapshots = [(s["file"], float(s["fraction"]), s["sha256"]) for s in manifest["snapshots"]]
            frozenset(manifest.get("buffers", ()))
            files = [file for file, _, _ in snapshots] + [r["file"] for r in manifest.get("references", {}).values()]
            files += [entry["file"] for entry in manifest.get("placebo", ())]
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise KnowError(f"{folder / 'manifest.json'} is no trajectory manifest ({error!r})") from error
        paths = tuple(inside(folder, file) for file in files)[: len(snapshots)]
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

        A finished folder of the same settings is taken as it is, and nothing is added to it; any other folder is an
        error. What is recorded is never replaced by other weights.
        """
        out, fractions = as_path("out", out), choose_fractions(fractions, ratio, length)
        asked = {"fractions": fractions, "settings": check_facts("settings", settings)}
        fingerprint = digest(asked)
        if (out / "manifest.json").is_file():
            if cls.load(out).manifest.get("fingerprint") != fingerprint:
                raise KnowError(f"{out} holds a trajectory of other settings; remove it or name another folder")
            yield Recorder(out, fractions)
            return
        if out.exists():
            raise KnowError(f"{out} exists and is no trajectory; remove it or name another folder")
        with resumable_folder(out, asked) as folder:
            recorder = Recorder(folder, fractions)
            yield recorder
            recorder.finish(fingerprint=fingerprint, settings=dict(settings or {}))

    @functools.cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """All snapshots, opened, under the names of theta_0, in the order of `fractions`."""
        with self.hashes_first():
            opened = tuple(Checkpoint(path, key=self.key, strip=self.strip) for path in self.paths)
            for checkpoint, fraction in zip(opened, self.fractions, strict=True):
                said = checkpoint.facts.get("fraction")
                if isinstance(said, int | float) and abs(said - fraction) > 1e-6:
                    raise KnowError(
                        f"{checkpoint.path} says that it is the snapshot of fraction {said:g}, and it was given as that"
                        f" of {fraction:g}; the order is smallest subset first, theta_0 last"
                    )
            for checkpoint in opened[:-1]:
                checkpoint.match_names(opened[-1].meta)
        return opened

    @property
    def notes(self) -> list[str]:
        """What a user should know of how the snapshots were read, one sentence each."""
        notes = [note for checkpoint in self.checkpoints for note in checkpoint.notes]
        for prefix in self.strip:
            if not any(prefix in checkpoint.stripped for checkpoint in self.checkpoints):
                notes.append(f"no name begins with {prefix!r}, so nothing was stripped")
        return notes

    @functools.cached_property
    def unlike(self) -> dict[str, str]:
        """Names of tensors that the snapshots do not have alike, with what is wrong."""
        last, name_of_last = self.checkpoints[-1].meta, self.paths[-1].name
        found: dict[str, str] = {}
        for path, checkpoint in zip(self.paths, self.checkpoints, strict=True):
            for name in sorted(last.keys() | checkpoint.meta.keys()):
                if name not in checkpoint.meta or name not in last:
                    has, lacks = (path, name_of_last) if name in checkpoint.meta else (name_of_last, path)
                    found.setdefault(name, f"tensor {name!r} is in {has} and not in {lacks}")
                    continue
                one, other = checkpoint.meta[name], last[name]
                for kind, a, b in (
                    ("shape", tuple(one.shape), tuple(other.shape)),
                    ("floating-point values", one.is_floating_point(), other.is_floating_point()),
                ):
                    if a != b:
                        found.setdefault(name, f"tensor {name!r}: {path} has {kind} {a}, {name_of_last} has {b}")
        return found

    @property
    def meta(self) -> State:
        """Names to shapes and dtypes of theta_0, as tensors on torch's meta device."""
        return self.checkpoints[-1].meta

    @functools.cached_property
    def states(self) -> tuple[State, ...]:
        """All snapshots in memory."""
        with self.hashes_first():
            states = tuple(checkpoint.state() for checkpoint in self.checkpoints)
        self.verify()
        return states

    @property
    def theta_0(self) -> State:
        return self.states[-1]

    def roles(self, given: Mapping[str, str] | None = None) -> dict[str, Role]:
        """Roles of the tensors; see the function `roles`. The manifest of a recorded module names its buffers.

        KnowError for tensors that snapshots do not have alike, or that cannot be predicted, unless they are skipped.
        """
        return {name: role for name, (role, _) in self.reasons(given).items()}

    def reasons(self, given: Mapping[str, str] | None = None) -> dict[str, tuple[Role, str]]:
        """As `roles`, each with the reason."""
        facts = {"buffers": self.manifest.get("buffers", ()), "others": self.unlike}
        found = reasons(self.meta, given, **facts)
        with self.hashes_first():
            for name, wrong in self.unlike.items():
                role = found[name][0] if name in found else self._role_elsewhere(name, given)
                own = [checkpoint.meta[name] for checkpoint in self.checkpoints if name in checkpoint.meta]
                if role != "skip" and (role != "buffer" or any(tensor.is_floating_point() for tensor in own)):
                    raise KnowError(f"{wrong}; --skip {name!r} leaves it alone")
        role_of = {name: role for name, (role, _) in found.items()}
        for checkpoint in self.checkpoints:
            refuse_unpredictable(checkpoint.meta, role_of, checkpoint.odd)
            if (checkpoint.path / "adapter_config.json").is_file():
                raise KnowError(f"{checkpoint.path} is an adapter and no model; {MERGE}")
        return found

    def _role_elsewhere(self, name: str, given: Mapping[str, str] | None) -> Role:
        """The role of a tensor that theta_0 lacks."""
        tensor = next(checkpoint.meta[name] for checkpoint in self.checkpoints if name in checkpoint.meta)
        return reasons({name: tensor}, given, others=[*self.meta, *self.unlike])[name][0]

    def moves(self, name: str) -> bool:
        """Whether a tensor differs between any two snapshots, bit for bit; reads until it finds a difference.

        Where dtypes differ, rounding to the coarser one is none.
        """
        for start in range(0, self.meta[name].numel(), LARGE):
            if loaded := self.__dict__.get("states"):
                values = [state[name].flatten()[start : start + LARGE] for state in loaded]
            else:
                values = [each.read(name, start, start + LARGE, peek=True) for each in self.checkpoints]
            # the first alone may be the coarsest one, to which all others round
            if not all(_same_values(one, other) for one, other in itertools.combinations(values, 2)):
                return True
        return False

    def verify(self) -> None:
        """Compare what was read with the hashes in the manifest, where there is one; KnowError names the file."""
        for checkpoint, recorded in zip(self.checkpoints, self.manifest.get("snapshots", ()), strict=False):
            if recorded:
                _compare_hash(checkpoint.path, checkpoint.hashes[checkpoint.path.name], recorded["sha256"])

    @contextlib.contextmanager
    def hashes_first(self) -> Iterator[None]:
        """If the block fails and a file has another hash than in the manifest, raise that error: it is the cause."""
        try:
            yield
        except KnowError as error:
            if self._damage and error is not self._damage:  # an inner block may have raised it already
                raise self._damage from error
            raise

    @functools.cached_property
    def _damage(self) -> KnowError | None:
        """What is wrong if a snapshot that is there has another hash than in the manifest."""
        try:
            for path, recorded in zip(self.paths, self.manifest.get("snapshots", ()), strict=False):
                if path.is_file() and recorded:
                    _compare_hash(path, sha256_file(path), recorded["sha256"])
        except KnowError as error:
            return error
        return None

    def last(self, length: int) -> Trajectory:
        """The trajectory as one of `length` snapshots: those of the largest subsets. KnowError if it has fewer."""
        count = len(self.paths)
        if number("length", length, whole=True, least=2) > count:
            raise KnowError(f"the trajectory has {count} snapshots, {length} are wanted")
        kept = dict(self.manifest)
        for key in kept.keys() & {"snapshots", "placebo"}:  # both lists begin with the smallest subset
            kept[key] = kept[key][count - length :]
        own = self.paths[count - length :], self.fractions[count - length :]
        return replace(self, paths=own[0], fractions=own[1], manifest=kept)

    @functools.cached_property
    def placebo(self) -> Trajectory:
        """The placebo that `know.forget` has kept beside it: as many training steps at every stage, from the same
        theta_0, with nothing removed. KnowError if there is none.
        """
        entries = self.manifest.get("placebo")
        if not entries:
            raise KnowError(
                f"{self.paths[-1].parent} keeps no placebo; `know.forget` makes one in a new folder where it is given"
                " the function `placebo`"
            )
        paths = (*(self.paths[-1].with_name(entry["file"]) for entry in entries), self.paths[-1])
        kept = {key: value for key, value in self.manifest.items() if key != "placebo"}
        return Trajectory(paths, self.fractions, {**kept, "snapshots": [*entries, self.manifest["snapshots"][-1]]})

    def window(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """History of the tensor `name`, or of its values start to stop: float32 (numel, S), smallest subset first.

        In windows of `LARGE` weights and more each snapshot is one run of memory (strides 1, numel); smaller windows
        are contiguous. Raises KnowError, naming tensor and file, where a value is not finite.
        """
        window = self.values(name, start, stop)
        self.demand_finite(name, window)
        return window

    def values(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """As `window`, whatever the values are."""
        stop = self.meta[name].numel() if stop is None else min(stop, self.meta[name].numel())
        window = torch.empty(len(self.paths), stop - start, dtype=torch.float32, device="cpu")  # (S, N)
        loaded = self.__dict__.get("states")
        for k, checkpoint in enumerate(self.checkpoints):
            if loaded:
                window[k] = loaded[k][name].flatten()[start:stop]
            else:
                checkpoint.read_into(name, start, window[k])
        return window.T if window.shape[1] >= LARGE else window.T.contiguous()

    def demand_finite(self, name: str, window: Tensor) -> None:
        """Raise KnowError, naming tensor and file, where a value of a window is not finite."""
        if not finite(window):
            row = int((~window.isfinite()).any(0).nonzero()[-1])  # the first that was made: others come from it
            with self.hashes_first():
                raise KnowError(
                    f"tensor {name!r} of {self.paths[row]} has values that are not finite (NaN or infinite)"
                )

    def reference(self, name: str) -> State:
        """Further weights that are kept with the trajectory, such as those of the oracle."""
        references = self.manifest.get("references", {})
        if name not in references:
            raise KnowError(f"{self.paths[-1].parent} keeps no reference weights {name!r}")
        path = self.paths[-1].parent / references[name]["file"]
        if path.is_file():
            _compare_hash(path, sha256_file(path), references[name]["sha256"])
        return load_state(path)


def add_references(folder: Path, references: Mapping[str, str]) -> None:
    """Add further weights, files of the folder by name, to the manifest of a finished trajectory."""
    manifest = Trajectory.load(folder).manifest
    entries = {**manifest["references"], **{name: entry_of(folder / file) for name, file in references.items()}}
    write_json(folder / "manifest.json", {**manifest, "references": dict(sorted(entries.items()))})


def _compare_hash(path: Path, sha256: str, recorded: str) -> None:
    if sha256 != recorded:
        raise KnowError(f"{path} does not have the hash in its manifest; it is damaged, make it again")


def _same_values(one: Tensor, other: Tensor) -> bool:
    coarser = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return same_bits(one.to(coarser), other.to(coarser))


def inside(folder: Path, file: str) -> Path:
    """The path of a file that a folder's own list names; KnowError if it lies, or is linked, outside the folder."""
    if not isinstance(file, str) or not file or Path(file).name != file or not file.isprintable():
        raise KnowError(f"{folder} lists a file outside itself: {file!r}")
    refuse_links_out(folder / file, folder)
    return folder / file


def _recorded(paths: Sequence[Path]) -> dict[str, Any]:
    """What the manifests beside snapshots say of them: their hashes, in the same order, and their buffers."""
    manifests = {}
    for folder in {path.parent for path in paths if (path.parent / "manifest.json").is_file()}:
        with contextlib.suppress(KnowError):
            manifests[folder] = Trajectory._listed(folder).manifest
    entries = {folder / s["file"]: s for folder, manifest in manifests.items() for s in manifest["snapshots"]}
    if not any(path in entries for path in paths):
        return {}
    buffers = sorted({name for manifest in manifests.values() for name in manifest.get("buffers", ())})
    return {"snapshots": [entries.get(path, {}) for path in paths], "buffers": buffers}
