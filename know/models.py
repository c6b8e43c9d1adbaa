"""Weights of a module under its plain names, whatever is wrapped around it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from know.checkpoints import State


def inner(model: nn.Module) -> nn.Module:
    """The module inside what torch.compile, DataParallel and DistributedDataParallel put around it."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def state_of(model: nn.Module) -> State:
    """The state_dict under the names of the plain model, without those that wrappers add."""
    state = inner(model).state_dict()
    return {name.replace("_orig_mod.", ""): value for name, value in state.items() if isinstance(value, Tensor)}


def load_into(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model, which may be wrapped, the weights of `state_of`."""
    model = inner(model)
    current = model.state_dict()
    own = {name.replace("_orig_mod.", ""): name for name in current}
    others = {name: value for name, value in current.items() if not isinstance(value, Tensor)}  # an extra state
    model.load_state_dict({own.get(name, name): tensor for name, tensor in state.items()} | others)
