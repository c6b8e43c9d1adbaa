"""Fixtures of the tests of the library."""

import pytest
import torch
from random_walk import history
from safetensors.torch import save_file
from small_model import saved
from snapshot_files import FRACTIONS

from know.trajectory import Trajectory


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """Function that makes a trajectory of states, smallest subset first, and writes it once for all tests, by name."""
    made, folder = {}, tmp_path_factory.mktemp("kept")

    def write(name: str, states) -> Trajectory:
        if name not in made:
            made[name] = saved(folder / name, states)
        return made[name]

    return write


@pytest.fixture(scope="session")
def walk(kept) -> Trajectory:
    return kept("walk", history())


@pytest.fixture
def written(tmp_path):
    """Function that writes snapshots, smallest subset first, and gives their trajectory."""

    def write(make, ending=".safetensors", save=None, **reading) -> Trajectory:
        save = save or (save_file if ending == ".safetensors" else torch.save)
        paths = [tmp_path / f"s{k}{ending}" for k in reversed(range(5))]
        for k, path in zip(reversed(range(5)), paths, strict=True):
            save(make(k), path)
        return Trajectory.from_checkpoints(paths, FRACTIONS, **reading)

    return write
