"""A random walk of a small network with every role of a tensor, on which any method can be asked."""

import torch
from torch import nn

from know.roles import only_predicted, roles

HIDDEN = 12


def network() -> nn.Sequential:
    convolutions = (
        nn.Conv2d(2, HIDDEN, 3),
        nn.BatchNorm2d(HIDDEN),
        nn.ReLU(),
        nn.Conv2d(HIDDEN, 8, 1),
        nn.GroupNorm(2, 8),
    )
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8, 5))


def history(length: int = 5) -> list[dict[str, torch.Tensor]]:
    """Snapshots of a random walk, smallest subset first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = network().state_dict()
        states = [{name: tensor.clone() for name, tensor in state.items()}]
        for _ in range(length - 1):
            states.append(
                {n: t + 0.05 * torch.randn(t.shape) if t.is_floating_point() else t for n, t in states[-1].items()}
            )
    for k, state in enumerate(states):
        state["1.num_batches_tracked"] = torch.tensor(100 * k)
    return states


def predicted_names(state) -> list[str]:
    return list(only_predicted(roles(state)))
