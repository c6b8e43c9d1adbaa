"""Fixtures that several test files share: a tiny real trajectory, networks with random weights, files."""

from pathlib import Path

import benchmarks  # noqa: F401  before torch, since it chooses kernels that torch reads when it is loaded

# isort: split
import pytest
import torch
from hypothesis import HealthCheck, settings
from small_model import Mlp, placebo, random_known, random_wnn_plus, saved, setup

import know
from know.known import Known, Models
from know.roles import PREDICTED
from know.trajectory import Trajectory

settings.register_profile(  # the same examples on every machine
    "quick", max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile("wide", parent=settings.get_profile("quick"), max_examples=60)
settings.load_profile("quick")


def pytest_configure():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def trajectory(tmp_path_factory) -> Trajectory:
    """A real forgetting trajectory of 5 snapshots, made with `know.forget`."""
    return know.forget(*setup(), out=tmp_path_factory.mktemp("forgetting") / "run")


@pytest.fixture(scope="session")
def with_initial(tmp_path_factory) -> Trajectory:
    """As `trajectory`, with what the benchmark keeps too: a placebo, and the initial weights as reference `scratch`."""
    out = tmp_path_factory.mktemp("forgetting") / "run"
    return know.forget(*setup(), placebo=placebo, out=out, references={"scratch": Mlp().state_dict()})


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
    """Every model that a method may ask, with random weights; stand-ins for those from outside too."""
    dice = torch.Generator().manual_seed(4)
    terms = {f"{role}{end}": 4 + bool(end) for role in PREDICTED for end in ("", ".theta_0")}
    return Models(
        {
            "known": hyper,
            "scaled": random_known(5, scaling="range"),
            "meta_linear": {name: 0.5 * torch.randn(count, generator=dice) for name, count in terms.items()},
            "released": random_known(6, roles="released"),
            "wnn": random_known(7, scaling="wnn", roles="released"),
            "wnn_plus": random_wnn_plus(8),
        }
    )


@pytest.fixture
def write_trajectory(tmp_path):
    """Function that writes states, smallest subset first, to files and makes a trajectory of them."""

    def write(states, fractions=None, name="written") -> Trajectory:
        return saved(tmp_path / name, states, fractions)

    return write


@pytest.fixture
def folder_bytes():
    """Function that reads a whole folder: relative path to content."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    return read


@pytest.fixture
def fails(request, capsys):
    """Function that runs the command line `COMMAND` of the test's file and wants exit code 2 and one line on standard
    error; returns the line.
    """

    def fail(*arguments: object) -> str:
        capsys.readouterr()
        code = request.module.COMMAND(*arguments)
        output, error = capsys.readouterr()
        assert (code, "Traceback" in output + error) == (2, False), error
        assert len(error.splitlines()) == 1, error
        assert error.startswith("know: error: ")
        return error

    return fail


@pytest.fixture
def intact(place, folder_bytes):
    """Function: whether all files that were in `place`, a fixture of the test's file, at its first call still are as
    they were, and nothing is half made.
    """
    before = {}

    def check() -> None:
        after = folder_bytes(place)
        if not before:
            before.update(after)
        assert {name: after.get(name) for name in before} == before
        assert not (place / "better").exists()

    return check
