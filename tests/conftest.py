"""What several test files share: one thread, the digits, a tiny real trajectory, networks with random weights."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import know
from benchmarks.data import load
from benchmarks.suite import Recipe
from benchmarks.training import deterministic, train
from know.checkpoints import save_state
from know.known import Known, KnownNet, Models
from know.roles import PREDICTED
from know.trajectory import Trajectory

REPOSITORY = Path(__file__).parents[1]
FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def pytest_configure():
    deterministic(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


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

    def fit(model, split):
        train(model, digits, split, recipe, seed=len(split))

    out = tmp_path_factory.mktemp("forgetting") / "run"
    return know.forget(copy.deepcopy(trained_mlp), digits.train, fit, out=out)


def random_known(seed: int, length: int = 5, **facts) -> Known:
    """KNOWN at its initial weights, with biases too, so that no answer is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nets = {role: KnownNet(length) for role in PREDICTED}
        for net in nets.values():
            for name, parameter in net.named_parameters():
                if name.endswith("bias"):
                    nn.init.uniform_(parameter, -0.1, 0.1)
    return Known(nets, {"trained": False, **facts})


@pytest.fixture(scope="session")
def hyper() -> Known:
    return random_known(3)


@pytest.fixture(scope="session")
def overflowing() -> Known:
    """KNOWN whose exponentials are infinite, so that no answer is finite; its own weights are."""
    known = random_known(3)
    with torch.no_grad():
        for net in known.nets.values():
            net.values.first.bias.fill_(1e30)
    return known


@pytest.fixture(scope="session")
def models(hyper) -> Models:
    """Every model that a predictor may ask, with random weights; stand-ins for the authors' too."""
    dice = torch.Generator().manual_seed(4)
    terms = {f"{role}{end}": 4 + bool(end) for role in PREDICTED for end in ("", ".theta_0")}
    return Models(
        {
            "known": hyper,
            "scaled": random_known(5, scaling="range"),
            "meta_linear": {name: 0.5 * torch.randn(count, generator=dice) for name, count in terms.items()},
            "released": random_known(6, roles="released"),
            "wnn": random_known(7, scaling="wnn", roles="released"),
        }
    )


@pytest.fixture
def write_trajectory(tmp_path):
    """Function that writes states, smallest subset first, to files and makes a trajectory of them."""

    def write(states, fractions=None, name="written") -> Trajectory:
        fractions = fractions or FRACTIONS[-len(states) :]
        paths = [tmp_path / name / f"{k}.safetensors" for k in range(len(states))]
        for path, state in zip(paths, states, strict=True):
            save_state(path, state)
        return Trajectory.from_checkpoints(paths, fractions)

    return write


@pytest.fixture
def folder_bytes():
    """Function that reads a whole folder: relative path to content."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    return read
