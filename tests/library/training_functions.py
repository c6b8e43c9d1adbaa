"""Models, data and training functions as users have them, for tests of forgetting."""

import contextlib
import copy
import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from know import forgetting

IMAGES = 96


def new_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def new_data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(IMAGES, 6, generator=generator), torch.randint(3, (IMAGES,), generator=generator))


class Fit:
    """A user's own training function: one step of a new Adam on the whole subset.

    `calls` are the subsets and the weights it was handed.
    """

    def __init__(self):
        self.calls = []

    def optimiser(self, model):
        return torch.optim.Adam(model.parameters(), 0.05)

    def __call__(self, model, subset):
        self.calls.append((list(subset.indices), copy.deepcopy(model.state_dict())))
        optimizer = self.optimiser(model)
        inputs, labels = (torch.stack(column) for column in zip(*subset, strict=True))
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        self.state = optimizer.state_dict()


class AdamCarried(Fit):
    """The same with Adam's state carried from subset to subset."""

    def __init__(self):
        super().__init__()
        self.state = None

    def optimiser(self, model):
        optimizer = super().optimiser(model)
        if self.state:
            optimizer.load_state_dict(self.state)
        return optimizer

    def state_dict(self):
        return {"adam": self.state}

    def load_state_dict(self, state):
        self.state = state["adam"]


@contextlib.contextmanager
def interrupted(at: int):
    """Interrupt the step of that number, 1, 2, ..., when it has been trained and not recorded."""
    steps = itertools.count(1)

    def check(*_):
        if next(steps) == at:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "_check_step", check)
        try:
            yield
        except KeyboardInterrupt:
            return
    pytest.fail("it was not interrupted")
