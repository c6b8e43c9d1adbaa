"""Where the authors' released weights are found. They carry no licence, so they stay outside the project.

`KNOW_REFERENCE` names a folder with their Keras files: KNOWN_{Conv,FC,Bias}.h5 (github.com/jjh6297/KNOW) and
WNN_{Conv,FC,Bias}.h5 (github.com/jjh6297/WNN). Imports neither torch nor h5py.
"""

from __future__ import annotations

import os
from pathlib import Path

from know.files import sha256_file

LENGTH = 5
"""S of the paper and of the released networks: the snapshots that KNOWN takes."""
MODELS = {"released": "KNOWN", "wnn": "WNN"}
"""Name of a model here, and how its files begin."""
ROLES = {"conv": "Conv", "fc": "FC", "bias": "Bias"}


def missing(model: str) -> str | None:
    """Why the model "released" or "wnn" cannot be had here, in one sentence; None if it can."""
    folder = os.environ.get("KNOW_REFERENCE")
    if not folder:
        return "KNOW_REFERENCE, the folder with the authors' weights, is not set"
    lacking = [path.name for path in paths(model) if not path.is_file()]
    return f"the folder in KNOW_REFERENCE lacks {', '.join(lacking)}" if lacking else None


def paths(model: str) -> list[Path]:
    """The files of a model, by role; whether they exist or not."""
    folder = Path(os.environ.get("KNOW_REFERENCE", ""))
    return [folder / f"{MODELS[model]}_{suffix}.h5" for suffix in ROLES.values()]


def hashes() -> dict[str, str]:
    """sha256 of all files that are there, by name: runs that ask these models depend on them."""
    found = [path for model in MODELS if missing(model) is None for path in paths(model)]
    return {path.name: sha256_file(path) for path in found}
