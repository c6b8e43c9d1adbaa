"""Training of many small networks at once: their weights are stacked, and one pass serves all (`torch.func`).

A small network leaves a GPU mostly idle, since most time is spent on starting kernels. K networks of one architecture,
each with its own weights, images, seeds and learning rates, take hardly longer than one. Each gets the same images in
the same order as in `benchmarks.training.train`, and its result is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.data import Dataset, Split, normalise
from benchmarks.networks import head_and_normalisation
from benchmarks.settings import Recipe
from benchmarks.training import Outcome, autocast, compiled, run, show
from know.checkpoints import State
from know.errors import KnowError

BETAS, EPSILON, MOMENTUM = (0.9, 0.999), 1e-8, 0.9
"""Constants of Adam and of SGD with Nesterov momentum: torch's defaults, and the momentum of `benchmarks.training`."""
EVALUATED = 2048
"""Number of images that each network evaluates at once on a GPU; without a GPU it is an eighth of this."""


class Stacked:
    """K networks of one architecture on one device.

    models: K modules with the same parameters and buffers; their tensors are copied and do not change.
    """

    def __init__(self, models: Sequence[nn.Module]):
        parameters, buffers = stack_module_state(list(models))  # every tensor (K, ...)
        self.parameters = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}
        self.buffers = {name: tensor.detach().clone() for name, tensor in buffers.items()}
        self.count, self.template = len(models), models[0]
        self.chosen = head_and_normalisation(models[0])
        self.names = list(models[0].state_dict())
        self.moments: dict[str, list[Tensor]] = {}
        """The optimiser's moments by name of parameter: two for Adam or one for SGD, each (K, ...)."""
        self.updates = 0

    def train(
        self,
        dataset: Dataset,
        pool: Split,
        members: Tensor,
        recipe: Recipe,
        *,
        seeds: Sequence[int],
        learning_rates: Sequence[float] | None = None,
        rate_factors: Sequence[Mapping[str, float]] | None = None,
        carry: bool = False,
    ) -> list[Outcome]:
        """Train every network on its rows of `pool`; see `show` and `train` of `benchmarks.training` for the rest.

        rate_factors: factors on the learning rate, by parameter name (default 1), in one mapping per network.
        carry: whether the optimiser continues with its state at the end of the last call.
        """
        if len(seeds) != self.count or len(members) != self.count:
            raise KnowError(f"{self.count} stacked networks need as many seeds and sets of images")
        if carry and recipe.head_epochs:
            raise KnowError("an optimiser goes on where all is trained from the first step; head_epochs must be 0")
        if not carry:
            self._forget_moments()
        learner = _Learner(self, recipe, rate_factors or [{}] * self.count)
        rates = learning_rates or [recipe.learning_rate] * self.count
        outcomes = run(learner, show(dataset, pool, members, recipe, seeds), members.shape[1], recipe, rates)
        learner.restore()
        finite = torch.stack([t.detach().isfinite().flatten(1).all(1) for t in self.parameters.values()]).all(0)
        for outcome, fine in zip(outcomes, finite.tolist(), strict=True):
            if not fine:
                outcome.status = "diverged"  # the last step did it, after the last loss
        return outcomes

    def states(self) -> list[State]:
        """The state_dict of every network, on the device."""
        every = {**self.parameters, **self.buffers}
        return [{name: every[name][k].detach().clone() for name in self.names} for k in range(self.count)]

    @torch.no_grad()
    def logits(self, dataset: Dataset, pool: Split, members: Tensor | None = None) -> Tensor:
        """Class scores float32 (K, N, classes) in evaluation mode.

        members: the rows of `pool` on which each network is evaluated, (K, N); None means all rows.
        """
        every = {**self.parameters, **self.buffers}
        size = max(1, EVALUATED // (1 if pool.images.is_cuda else 8))
        asked = vmap(self._call, in_dims=(0, 0 if members is not None else None))
        mode = self.template.training
        self.template.eval()
        scores = []
        for rows in members.split(size, 1) if members is not None else torch.arange(len(pool)).split(size):
            images = normalise(pool.images[rows.flatten().to(pool.labels.device)], dataset)
            images = images.contiguous(memory_format=torch.channels_last)
            scores.append(asked(every, images.unflatten(0, rows.shape) if rows.dim() > 1 else images).float())
        self.template.train(mode)
        return torch.cat(scores, dim=1)

    def _call(self, tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # other kinds of attention do not support stacked networks
            return functional_call(self.template, dict(tensors), (images,))

    def _forget_moments(self) -> None:
        self.moments, self.updates = {}, 0


def scored(scores: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
    """Accuracies and mean losses of K networks from scores (K, N, classes) and labels (K, N) or (N,).

    As in `benchmarks.training.accuracy`, an answer whose scores are not all finite counts as wrong.
    """
    labels = labels.expand(scores.shape[:2])
    correct = (scores.argmax(2) == labels) & scores.isfinite().all(2)
    losses = F.cross_entropy(scores.transpose(1, 2), labels, reduction="none").mean(1)
    return correct.double().mean(1).tolist(), losses.tolist()


class _Learner:
    """Stacked networks and their optimiser, with the interface that `benchmarks.training.run` uses.

    The optimisers are written out here, since those of torch use one learning rate for a whole tensor.
    """

    def __init__(self, networks: Stacked, recipe: Recipe, factors: Sequence[Mapping[str, float]]):
        self.networks, self.recipe, self.factors = networks, recipe, factors
        networks.template.train()
        call = vmap(networks._call)
        self.forward = compiled(call) if recipe.compile else call
        self.retired: dict[int, State] = {}

    def begin(self, head_only: bool, rates: Sequence[float]) -> None:
        net = self.networks
        self.names = [n for n in net.parameters if not head_only or n in net.chosen]
        if head_only or self.recipe.head_epochs:
            net._forget_moments()  # every phase has its own optimiser, as in `train`
        self.rates = []  # rates of each parameter, (K, 1, ...), on the device
        for name in self.names:
            tensor = net.parameters[name]
            own = [rate * (1.0 if head_only else f.get(name, 1.0)) for rate, f in zip(rates, self.factors, strict=True)]
            self.rates.append(torch.tensor(own).view(-1, *[1] * (tensor.dim() - 1)).to(tensor.device))

    def step(self, images: Tensor, labels: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        net = self.networks
        trained = [net.parameters[name] for name in self.names]
        frozen = {name: tensor.detach() for name, tensor in net.parameters.items() if name not in self.names}
        tensors = {**frozen, **{name: net.parameters[name] for name in self.names}, **net.buffers}
        with autocast(self.recipe, images.device):
            scores = self.forward(tensors, images)  # (K, B, classes)
        losses = F.cross_entropy(scores.float().transpose(1, 2), labels, reduction="none").mean(1)
        gradients = torch.autograd.grad(losses.sum(), trained)  # a network's loss depends only on its own weights
        net.updates += 1
        self._update(trained, gradients, factor)
        return losses.detach(), (scores.detach().argmax(2) == labels).sum(1)

    @torch.no_grad()
    def _update(self, parameters: list[Tensor], gradients: Sequence[Tensor], factor: float) -> None:
        net = self.networks
        if self.recipe.weight_decay:
            gradients = torch._foreach_add(gradients, parameters, alpha=self.recipe.weight_decay)
        if not net.moments:
            moments = 2 if self.recipe.optimizer == "adam" else 1
            net.moments = {
                name: [torch.zeros_like(net.parameters[name]) for _ in range(moments)] for name in self.names
            }
        first, *second = (list(each) for each in zip(*(net.moments[name] for name in self.names), strict=True))
        if second:  # Adam
            torch._foreach_lerp_(first, gradients, 1 - BETAS[0])
            torch._foreach_lerp_(second[0], torch._foreach_mul(gradients, gradients), 1 - BETAS[1])
            sizes = torch._foreach_sqrt(torch._foreach_div(second[0], 1 - BETAS[1] ** net.updates))
            torch._foreach_add_(sizes, EPSILON)
            steps, factor = torch._foreach_div(first, sizes), factor / (1 - BETAS[0] ** net.updates)
        else:
            torch._foreach_mul_(first, MOMENTUM)
            torch._foreach_add_(first, gradients)
            steps = torch._foreach_add(gradients, first, alpha=MOMENTUM)
        for parameter, step, rate in zip(parameters, steps, self.rates, strict=True):
            parameter.addcmul_(step, rate, value=-factor)  # rates differ from network to network

    def retire(self, network: int) -> None:
        every = {**self.networks.parameters, **self.networks.buffers}
        self.retired[network] = {name: tensor[network].detach().clone() for name, tensor in every.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Give diverged networks the weights they had at that time; they were trained further with the others."""
        every = {**self.networks.parameters, **self.networks.buffers}
        for network, state in self.retired.items():
            for name, tensor in state.items():
                every[name][network] = tensor
