"""Fixtures of the tests of methods."""

import pytest
from tiny import saved
from walk import history

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
