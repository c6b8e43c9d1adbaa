"""The one store of finished work: what was made is kept under a hash of everything that decides it.

    work/store/trajectories/KEY/          one trajectory on one track, as `know.forget` writes it
    work/store/pretrained/KEY/            one run from an initialisation, with its averages
    work/store/references/KEY/            further weights of one trajectory, such as compute-matched
    work/store/meta-trajectories/KEY/     histories of weights of the small trajectories that are trained at once
    work/store/fine-tunes/KEY/*.jsonl     results of fine-tunes, one line each
    work/store/explored/KEY/              the weights of one attempt of the exploration, and facts about them
    work/store/explored-fine-tunes/KEY/*.jsonl     its fine-tunes
    work/store/steps/KEY/*.jsonl          steps of a suite that were run without Snakemake

All suites and processes share it, since no suite's name decides a trajectory or a fine-tune. A key is the hash of the
settings, the data, the code (`know.fingerprint`), versions of libraries, the number of threads and the device, so that
what another device or other code has made is never taken. `about.json` in each folder says what the hash was made of.

Nothing here can be half-written: folders appear by one rename while a lock is held, and each process appends to a file
of its own, where a last line that a kill has cut short is ignored. With KNOW_FORCE in the environment nothing is taken
that another process has made.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmarks.kernels import departures
from know.files import digest, write_json

STORE = Path("store")
"""Where the store lies, in the folder of all suites' work."""
LOADING = "benchmarks.data:load"
"""Entry of the code that makes images and splits of files: a part of the keys of what is given a dataset."""


@dataclass(frozen=True)
class Store:
    """The store in a folder, which need not exist yet. Two of the same folder are equal, so that processes which are
    sent one keep what they have read (`benchmarks.transfer`).

    root: the folder. forced: whether to make everything anew; by default what KNOW_FORCE says.
    """

    root: Path
    forced: bool = field(default_factory=lambda: bool(os.environ.get("KNOW_FORCE")))

    def folder(self, kind: str, about: dict[str, Any], finished: str, make: Callable[[Path], object]) -> Path:
        """The folder of that kind which `about` decides; made by `make(path)` if it is not there.

        finished: the file in it that is written last. make: has to resume what a killed process has begun. Of several
        processes that ask for the same folder one makes it, and the others wait.
        """
        path = self.root / kind / digest(about)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            if self.forced:
                for begun in (path, path.with_name(f"{path.name}.partial")):
                    shutil.rmtree(begun, ignore_errors=True)
            if not (path / finished).is_file():
                make(path)
                write_json(path / "about.json", about)
        return path

    def results(self, kind: str, about: dict[str, Any]) -> Results:
        """The results of that kind which belong to `about`."""
        return Results(self.root / kind / digest(about), about, forced=self.forced)


class Results:
    """Small results by the content of what gave them; see `Store`."""

    def __init__(self, folder: Path, about: dict[str, Any], *, forced: bool):
        self.folder, self.about = folder, about
        self.known: dict[str, dict[str, Any]] = {}
        for path in [] if forced else sorted(folder.glob("*.jsonl"), key=_begun):  # so that the latest counts
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):  # else its process was killed while it wrote
                    entry = json.loads(line)
                    self.known[entry.pop("key")] = entry
        self.own = folder / f"{socket.gethostname()}.{os.getpid()}.{time.time_ns()}.jsonl"

    def get(self, key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of `compute()`, unless it is known already."""
        return self.get_all([key], lambda: [compute()])[0]

    def get_all(self, keys: list[Any], compute: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The results of `compute()`, one for each key, unless all are known already."""
        names = [digest(key) for key in keys]
        if not all(name in self.known for name in names):
            self._add(dict(zip(names, compute(), strict=True)))
        return [self.known[name] for name in names]

    def put(self, key: Any, result: dict[str, Any]) -> None:
        """Keep a result in place of an earlier one."""
        self._add({digest(key): result})

    def find(self, key: Any) -> dict[str, Any] | None:
        return self.known.get(digest(key))

    def _add(self, results: dict[str, dict[str, Any]]) -> None:
        self.known |= results
        if not (self.folder / "about.json").is_file():
            write_json(self.folder / "about.json", self.about)
        with self.own.open("a", encoding="utf-8") as handle:
            handle.write("".join(json.dumps({"key": key, **result}) + "\n" for key, result in results.items()))


def _begun(path: Path) -> tuple[int, str]:
    """When a process began to write a file of results, and its name."""
    return int(path.stem.rpartition(".")[2]), path.name


def link_folder(source: Path, out: Path) -> None:
    """Make `out` a folder of the same files as `source`."""
    shutil.rmtree(out, ignore_errors=True)
    link_files(source, out, sorted(file.name for file in source.iterdir() if file.name != "about.json"))


def link_files(source: Path, out: Path, names: Iterable[str]) -> None:
    """Put files of the folder `source` into `out` too, by links where the file system can, else by copies."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            os.link(source / name, out / name)
        except OSError:
            shutil.copy2(source / name, out / name)


def versions() -> dict[str, str]:
    """Versions of the libraries that decide bits, the decoder of JPEG files among them; "none" where one is not
    installed, as where Snakemake alone runs, and each job in an environment of its own.
    """
    return {package: version(package) for package in ("torch", "torchvision", "timm", "pillow")}


def version(package: str) -> str:
    """The version of a package; "none" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def computing(code: str, device: str) -> dict[str, Any]:
    """What decides the bits of a computation besides its inputs: code, libraries, threads, device and kernels.

    code: fingerprint of the code. device: a torch device; of a GPU the kind is named too. Variables that choose kernels
    are named only where they are not those of `benchmarks.kernels.PINNED`.
    """
    import torch

    kind = torch.device(device).type
    named = f"cuda: {torch.cuda.get_device_name(device)}" if kind == "cuda" else kind
    other = {"kernels": chosen} if (chosen := departures()) else {}
    made = {"code": code, **versions(), "torch": torch.__version__}  # that one names the build too
    return {**made, "threads": torch.get_num_threads(), "device": named, **other}
