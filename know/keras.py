"""Networks from outside the project: where their files are, and reading those of Keras. Imports neither torch nor h5py.

`KNOW_REFERENCE` names a folder with the files: KNOWN_{Conv,FC,Bias}.h5 (github.com/jjh6297/KNOW) and
WNN_{Conv,FC,Bias}.h5 (github.com/jjh6297/WNN), which carry no licence, and nino_mlp.pt, the file of WNN+ (MIT licence),
which `know.nino` reads. None of them is part of the project.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from know.errors import KnowError
from know.files import sha256_file

LENGTH = 5
"""S of the paper and of the released networks: the snapshots that KNOWN takes."""
MODELS = {"released": "KNOWN", "wnn": "WNN"}
"""Name of a model of the authors here, and how the names of its Keras files begin."""
OUTSIDE = (*MODELS, "wnn_plus")
"""Every model from outside the project."""
NINO = "nino_mlp.pt"
"""The file of wnn_plus."""
ROLES = {"conv": "Conv", "fc": "FC", "bias": "Bias"}
"""Role of a network, and how the name of its file ends."""
_LAYERS = ("first", "squeeze", "shift", "amplitude", "rate", "last")
_NAMES = [*(f"{stream}.{layer}" for stream in ("values", "differences") for layer in _LAYERS), "out"]
"""Layers of `know.known.KnownNet` in the order of the numbers in the names of the Keras layers."""


def files(folder: Path | str, model: str) -> dict[str, Path]:
    """The Keras files of a model in a folder, by role; whether they exist or not."""
    return {role: Path(folder) / f"{MODELS[model]}_{ending}.h5" for role, ending in ROLES.items()}


def paths(model: str) -> list[Path]:
    """The files of a model of `OUTSIDE` in the folder that KNOW_REFERENCE names; whether they exist or not."""
    folder = Path(os.environ.get("KNOW_REFERENCE", ""))
    return list(files(folder, model).values()) if model in MODELS else [folder / NINO]


def missing(model: str) -> str | None:
    """Why a model of `OUTSIDE` cannot be had here, in one sentence; None if it can."""
    folder = os.environ.get("KNOW_REFERENCE")
    if not folder:
        return "KNOW_REFERENCE, the folder with the authors' weights, is not set"
    lacking = [path.name for path in paths(model) if not path.is_file()]
    return f"the folder in KNOW_REFERENCE lacks {', '.join(lacking)}" if lacking else None


def hashes() -> dict[str, str]:
    """sha256 of all files that are there, by name: runs that ask these models depend on them."""
    there = [path for model in OUTSIDE if missing(model) is None for path in paths(model)]
    return {path.name: sha256_file(path) for path in there}


def read(path: Path) -> dict[str, Any]:
    """The arrays of one role's Keras 2 file, under the names that `know.known.KnownNet` gives them.

    Layers are taken in the order of the numbers in their names, and kernels, which Keras stores as (in, out), are
    transposed. KnowError where the file is missing or holds another network.
    """
    try:
        import h5py
    except ImportError as error:
        raise KnowError("reading Keras files needs h5py: pip install h5py") from error
    if not path.is_file():
        raise KnowError(f"{path} does not exist; name the folder with the authors' Keras files")
    arrays: dict[str, Any] = {}
    try:
        with h5py.File(path) as archive:
            kernels: list[str] = []
            archive.visit(lambda name: kernels.append(name) if name.endswith("kernel:0") else None)
            kernels.sort(key=lambda name: int(name.split("/")[0].partition("_")[2] or 0))
            for name, kernel in zip(_NAMES, kernels, strict=True):
                arrays[f"{name}.weight"] = archive[kernel][()].T.copy()
                arrays[f"{name}.bias"] = archive[kernel.replace("kernel", "bias")][()]
    except (OSError, LookupError, ValueError) as error:
        raise unreadable(path, error) from error
    return arrays


def unreadable(path: Path, error: Exception) -> KnowError:
    """The error of a file that is missing or holds something else than one of the authors' networks."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return KnowError(f"{path} is missing or is not one of the authors' Keras files ({reason})")
