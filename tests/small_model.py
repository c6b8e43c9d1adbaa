"""What several test files share: a tiny model with its data and training, networks with random weights, the command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from know import cli
from know.checkpoints import save_state
from know.files import sha256_file
from know.known import Known, KnownNet
from know.nino import WnnPlus
from know.roles import PREDICTED
from know.trajectory import Trajectory

FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
GIVEN = "0.0625,0.125,0.25,0.5,1"
"""The same as the command line takes them."""
ITEMS = 640


class Mlp(nn.Module):
    """Three layers, 9,509 weights, 38 kB."""

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second, self.head = nn.Linear(64, 96), nn.Linear(96, 32), nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())


def data() -> TensorDataset:
    """Points around one centre for each of five classes."""
    dice = torch.Generator().manual_seed(1)
    labels = torch.arange(ITEMS) % 5
    centres = torch.randn(5, 64, generator=dice)
    return TensorDataset(centres[labels] + 2 * torch.randn(ITEMS, 64, generator=dice), labels)


def fit(model: nn.Module, subset) -> None:
    """One epoch of plain gradient descent, in an order that depends on the number of items alone.

    torch.optim would take seconds to import what it needs.
    """
    for x, y in DataLoader(subset, 64, shuffle=True, generator=torch.Generator().manual_seed(len(subset))):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad


def placebo(model: nn.Module, subset) -> None:
    """As many items as `fit` shows, drawn from all of them."""
    order = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(len(subset)))
    fit(model, Subset(subset.dataset, order[: len(subset)].tolist()))


def setup() -> tuple:
    """What `know forget tests/small_model.py:setup` takes."""
    model = Mlp()
    fit(model, data())
    return model, data(), fit


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


def random_wnn_plus(seed: int) -> WnnPlus:
    """WNN+ with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WnnPlus()


def saved(folder: Path, states, fractions=None) -> Trajectory:
    """Write states, smallest subset first, to files in a folder; the trajectory of these files.

    It keeps `initial` weights, as a trajectory of the benchmark does.
    """
    paths = [folder / f"{k}.safetensors" for k in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        save_state(path, state)
    trajectory = Trajectory.from_checkpoints(paths, fractions or FRACTIONS[-len(states) :])
    return with_scratch(trajectory, initial(states[0]))


def initial(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stand-ins for initial weights: they differ from the state, and move with its rows and columns."""
    return {name: tensor * -0.25 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def with_scratch(trajectory: Trajectory, weights: Mapping[str, torch.Tensor]) -> Trajectory:
    """The trajectory with these weights as its reference `scratch`, in a file beside theta_0."""
    path = trajectory.paths[-1].with_name("scratch.safetensors")
    save_state(path, weights)
    references = {"scratch": {"file": path.name, "sha256": sha256_file(path)}}
    return replace(trajectory, manifest={**trajectory.manifest, "references": references})


def call(*arguments: object) -> int:
    """Run `know` in this process as its entry point does; the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["know", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return 0 if end.code is None else end.code
    return 0


def equal(a, b) -> bool:
    """Whether two states have the same names and the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
