"""Snapshots as people have them, built small."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from know.export import Request, notes, predict_files
from know.trajectory import Trajectory

FRACTIONS = [0.0625, 0.125, 0.25, 0.5, 1]


def normal(*shape) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def base(k: int) -> dict[str, torch.Tensor]:
    """Snapshot k; 0 is theta_0."""
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (4, 8), "fc.bias": (4,)}
    return {name: normal(*shape) * (1 + 0.02 * k) for name, shape in shapes.items()}


def folder_of(state, path, name="model.safetensors", **files) -> None:
    """Write a checkpoint folder with a configuration and further files."""
    path.mkdir()
    (torch.save if name.endswith(".bin") else save_file)(state, path / name)
    for file, text in {"config.json": "{}", **files}.items():
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text(text)


def predict_to(trajectory: Trajectory, out: Path, **request) -> list[str]:
    """Predict into a folder; the notes that the user sees."""
    asked = Request(**request)
    _, changes = predict_files(trajectory, asked, out)
    return notes(trajectory, asked, changes)
