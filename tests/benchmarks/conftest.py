"""Fixtures of the benchmark's tests: the digits, a network that has learnt them, and its forgetting trajectory."""

import copy
from pathlib import Path

import pytest
from planted_results import CNN, records, write_results
from torch import nn

import know
from benchmarks.data import load
from benchmarks.report.publish import write_pages
from benchmarks.settings import Recipe
from benchmarks.training import deterministic, train
from know.trajectory import Trajectory


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    deterministic(1)


@pytest.fixture(scope="session")
def digits():
    """5 classes, 656 training images of 8x8."""
    return load("digits:0-4")


@pytest.fixture(scope="session")
def trained_mlp(digits) -> nn.Module:
    """theta_0: an MLP that has learnt the digits 0 to 4. Copy it before training on."""
    from benchmarks.networks import build

    model = build("mlp", digits.shape, len(digits.classes), seed=1)
    train(model, digits, digits.train, Recipe(epochs=2, learning_rate=3e-3, batch_size=64), seed=1)
    return model


@pytest.fixture(scope="session")
def trajectory(digits, trained_mlp, tmp_path_factory) -> Trajectory:
    """A real forgetting trajectory of 5 snapshots, made with `know.forget`."""
    recipe = Recipe(epochs=1, learning_rate=3e-3, batch_size=64)

    def fit(model, subset):
        train(model, digits, digits.train.take(subset.indices), recipe, seed=len(subset))

    out = tmp_path_factory.mktemp("forgetting") / "run"
    return know.forget(copy.deepcopy(trained_mlp), digits.train, fit, out=out)


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """Two suites with their pages and the index. Copy it before a change."""
    folder = tmp_path_factory.mktemp("published") / "results"
    write_results(folder / "one", [*records(), *records(CNN)])
    write_results(folder / "two", records(trajectories=5), evidence=True)
    write_pages(folder)
    return folder
