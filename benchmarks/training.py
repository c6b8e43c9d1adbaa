"""The only training loop: pretraining, forgetting and fine-tuning of every arm use `run`, for one network (`train`) or
for many stacked networks (`benchmarks.stacked`).

The data are on the device as uint8. The random parts of an epoch, its permutation and the augmentation of every image,
are drawn on the host from two streams of one seed, so that every device sees the same images in the same order. They
are copied to the device in one step. There is no data loader, and the host waits for the device once per epoch.

What a run shows depends neither on the weights nor on the learning rate, so runs that differ in nothing else can share
it (`show`), and runs with the same head-only phase can share that (`train(phase=...)`).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from benchmarks.data import DRAWS, Dataset, Split, augment, normalise
from benchmarks.networks import head_and_normalisation
from benchmarks.settings import Recipe
from know.errors import KnowError
from know.seeds import stream

Epoch = Iterable[tuple[Tensor, Tensor]]
"""The batches of one epoch for K networks: images float32 (K, B, C, H, W), normalised, and labels int64 (K, B). One
network may have probabilities, float32 (1, B, classes), in place of labels."""


@dataclass
class Outcome:
    """What a training run returns; the model itself is trained in place.

    status: "ok", or "diverged" when a loss was not finite (training stopped after that epoch).
    history: one row per epoch: epoch, loss (mean over its images), accuracy (on them, in [0, 1]), learning_rate (last).
    optimizer: state of the optimiser, with which a following run can continue (None for stacked networks).
    """

    status: str = "ok"
    history: list[dict[str, float]] = field(default_factory=list)
    optimizer: dict | None = None


class Learner(Protocol):
    """The interface that `run` uses: K networks and their optimiser."""

    def begin(self, head_only: bool, rates: Sequence[float]) -> None:
        """Start a phase that trains everything, or only head and normalisation layers, at K learning rates."""

    def step(self, images: Tensor, labels: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """Make one update on images float32 (K, B, C, H, W), labels (K, B), at the phase's rates times `factor`.

        Returns the losses (K,) and the numbers of correct answers (K,) before the update, on the device.
        """

    def retire(self, network: int) -> None:
        """Keep the present weights of a network that has diverged."""


def train(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    learning_rate: float | None = None,
    rate_factors: Mapping[str, float] | None = None,
    optimizer_state: dict | None = None,
    after_step: Callable[[int, int], object] | None = None,
    shown: Iterable[Epoch] | None = None,
    phase: Literal["head", "everything"] | None = None,
) -> Outcome:
    """Train `model` in place on `split` (a part of `dataset`, which gives normalisation and mirror rule).

    learning_rate: replaces `recipe.learning_rate` (the search over learning rates changes nothing else).
    rate_factors: factors on the learning rate, by parameter name (default 1), in the phase that trains everything.
    optimizer_state: state to continue with (the released forgetting script carries Adam's); not with rate_factors.
    after_step: called as after_step(steps done, total steps) in the phase that trains everything.
    shown: the images that the run is shown, if they were made before (`show` with the same arguments).
    phase: the one phase to make, which begins with the first epoch of `shown`; by default both are made.
    """
    if rate_factors and optimizer_state is not None:
        raise KnowError("an optimiser's state is kept by position, which rate factors change; give one of the two")
    learner = _Single(model, recipe, rate_factors or {}, optimizer_state)
    rates = [learning_rate or recipe.learning_rate]
    if shown is None:
        shown = show(dataset, split, torch.arange(len(split))[None], recipe, [seed])
    (outcome,) = run(learner, shown, len(split), recipe, rates, after_step=after_step, phase=phase)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        outcome.status = "diverged"  # the last step made it diverge, after the last loss was computed
    outcome.optimizer = learner.optimizer.state_dict()
    return outcome


def run(
    learner: Learner,
    shown: Iterable[Epoch],
    images: int,
    recipe: Recipe,
    learning_rates: Sequence[float],
    *,
    after_step: Callable[[int, int], object] | None = None,
    phase: Literal["head", "everything"] | None = None,
) -> list[Outcome]:
    """Train K networks step by step together, each on its own images; see `train` for the other arguments.

    shown: what they are shown (`show`), at least as many epochs as are made.
    images: on how many each network is trained.
    """
    networks, per_epoch = len(learning_rates), steps_per_epoch(images, recipe.batch_size)
    phases = {
        "head": (recipe.head_epochs * per_epoch, [recipe.head_learning_rate] * networks),
        "everything": (recipe.steps or recipe.epochs * per_epoch, list(learning_rates)),
    }
    outcomes, remaining = [Outcome() for _ in range(networks)], iter(shown)
    for name, (budget, rates) in phases.items():
        if not budget or phase not in (None, name):
            continue
        learner.begin(name == "head", rates)
        step = 0
        while step < budget and any(outcome.status == "ok" for outcome in outcomes):
            seen, totals = 0, torch.zeros(())
            for inputs, labels in itertools.islice(next(remaining), budget - step):
                factor = 1.0 if name == "head" else schedule(recipe.schedule, step, budget, per_epoch)
                losses, hits = learner.step(inputs, labels, factor)
                # sums stay on the device: the host waits for it once per epoch, not once per step
                totals = totals + torch.stack([losses * labels.shape[1], hits])  # (2, K)
                seen, step = seen + labels.shape[1], step + 1
                if after_step and name == "everything":
                    after_step(step, budget)
            for network, (outcome, *sums) in enumerate(zip(outcomes, *totals.tolist(), strict=True)):
                if outcome.status != "ok":
                    continue
                loss, share = (total / seen for total in sums)
                epoch = {"epoch": len(outcome.history) + 1, "loss": loss, "accuracy": share}
                outcome.history.append({**epoch, "learning_rate": rates[network] * factor})
                if not math.isfinite(loss):
                    outcome.status = "diverged"
                    learner.retire(network)
    return outcomes


def show(dataset: Dataset, pool: Split, members: Tensor, recipe: Recipe, seeds: Sequence[int]) -> Iterator[Epoch]:
    """What K networks are shown, epoch after epoch without an end. Batches are made when they are asked for.

    members: the rows of `pool` on which each network is trained, int64 (K, n), on the host.
    seeds: K seeds; each decides the order of batches and the augmentation of images for its network.
    """
    orders, pictures = ([_generator(seed, name) for seed in seeds] for name in ("order", "augmentation"))
    images, device = members.shape[1], pool.labels.device
    while True:
        batches = [_batches(torch.randperm(images, generator=order), recipe.batch_size) for order in orders]
        sizes = [len(batch) for batch in batches[0]]
        rows = torch.stack([own[torch.cat(b)] for own, b in zip(members, batches, strict=True)])  # (K, n)
        yield _epoch(dataset, pool, rows.to(device), _draw(recipe, dataset, sizes, pictures, device), sizes)


def _epoch(dataset: Dataset, pool: Split, rows: Tensor, drawn: Tensor | None, sizes: list[int]) -> Epoch:
    end = 0
    for size in sizes:
        start, end = end, end + size
        part = pool.take(rows[:, start:end].flatten())  # (K B)
        seen = augment(part.images, drawn[:, start:end].flatten(0, 1)) if drawn is not None else part.images
        inputs = normalise(seen, dataset).contiguous(memory_format=torch.channels_last)
        shape = (len(rows), size)
        yield inputs.unflatten(0, shape), part.labels.unflatten(0, shape)


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(stream(seed, name))


def _draw(
    recipe: Recipe, dataset: Dataset, sizes: list[int], generators: list[torch.Generator], device: torch.device
) -> Tensor | None:
    """The augmentation of one epoch, (K, images, ...), drawn batch by batch from each network's own generator."""
    if recipe.augment == "none":
        return None
    draw = DRAWS[recipe.augment]
    drawn = [torch.cat([draw(size, dataset.shape, own, flip=dataset.flip) for size in sizes]) for own in generators]
    return torch.stack(drawn).to(device)


class _Single:
    """A `Learner` with one module and torch's own optimiser."""

    def __init__(self, model: nn.Module, recipe: Recipe, factors: Mapping[str, float], state: dict | None):
        self.model, self.recipe, self.factors, self.state = model, recipe, factors, state
        self.forward = compiled(model) if recipe.compile else model
        model.train()

    def begin(self, head_only: bool, rates: Sequence[float]) -> None:
        (self.rate,) = rates
        self.optimizer = _optimizer(self.model, self.recipe, head_only, self.factors)
        if self.state is not None and not head_only:
            # only the moments are copied: torch would share the tensors and restore the old recipe's weight decay
            moments = copy.deepcopy(self.state["state"])
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def step(self, images: Tensor, labels: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor * group["factor"]
        with autocast(self.recipe, images.device):
            scores = self.forward(images[0])  # (B, classes)
        loss = F.cross_entropy(scores.float(), labels[0])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        right = labels[0] if labels.dim() == 2 else labels[0].argmax(1)
        return loss.detach()[None], (scores.detach().argmax(1) == right).sum()[None]

    def retire(self, network: int) -> None:
        pass  # there is no other network that continues


def autocast(recipe: Recipe, device: torch.device) -> contextlib.AbstractContextManager:
    """The recipe's precision as a context for the forward pass."""
    if recipe.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def compiled(model: Callable) -> Callable:
    """Compile a network for fixed input sizes: there is one graph per batch size, shared by networks of one class."""
    torch._dynamo.config.recompile_limit = 64  # sizes of batches x phases x networks of a suite
    return torch.compile(model, dynamic=False)


EVALUATED = {False: 256, True: 2048}
"""Number of images that are evaluated at once, without and with a GPU."""


def steps_per_epoch(images: int, batch_size: int) -> int:
    return len(_batches(torch.arange(images), batch_size))


def number_of_steps(recipe: Recipe, images: int) -> int:
    """Number of steps of a run on that many images."""
    return recipe.steps or recipe.epochs * steps_per_epoch(images, recipe.batch_size)


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Consecutive pieces of `order`; a last piece of one image joins the piece before (BatchNorm needs two)."""
    pieces = list(order.split(size))
    if len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


def schedule(name: str, step: int, budget: int, steps_per_epoch: int) -> float:
    """Factor on the learning rate at `step` of `budget`.

    constant: always 1. cosine: falls after each epoch, as in the released fine-tuning script, from 1 in the first epoch
    towards 0.
    """
    if name == "constant":
        return 1.0
    epoch, epochs = step // steps_per_epoch, math.ceil(budget / steps_per_epoch)
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def _optimizer(
    model: nn.Module, recipe: Recipe, head_only: bool, factors: Mapping[str, float]
) -> torch.optim.Optimizer:
    chosen = head_and_normalisation(model) if head_only else None
    groups: dict[float, list[nn.Parameter]] = {}  # by factor: without factors, one fused kernel
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen is None or name in chosen)
        if parameter.requires_grad:
            groups.setdefault(1.0 if head_only else factors.get(name, 1.0), []).append(parameter)
    parameters = [{"params": group, "factor": factor} for factor, group in groups.items()]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.Adam(parameters, weight_decay=recipe.weight_decay, fused=True)


def evaluated(dataset: Dataset, split: Split, batch: int | None = None) -> Iterator[Tensor]:
    """The images of `split` as a network evaluates them: normalised float32 (B, C, H, W) in channels-last memory."""
    for images in split.images.split(batch or EVALUATED[split.images.is_cuda]):
        yield normalise(images, dataset).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def logits(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Class scores float32 (N, classes) of batches of images, in evaluation mode; the model's own mode is restored."""
    mode = model.training
    model.eval()
    scores = torch.cat([model(images).float() for images in batches])
    model.train(mode)
    return scores


def accuracy(model: nn.Module, dataset: Dataset, split: Split) -> float:
    """Share of correct answers, in [0, 1]. An answer whose scores are not all finite counts as wrong."""
    return correct(logits(model, evaluated(dataset, split)), split.labels)


def correct(scores: Tensor, labels: Tensor) -> float:
    """The same of scores (N, classes) and labels (N,)."""
    return float(right(scores, labels).double().mean())


def right(scores: Tensor, labels: Tensor) -> Tensor:
    """Which answers are correct, bool (N,)."""
    return (scores.argmax(1) == labels) & scores.isfinite().all(1)


def recalibrate(model: nn.Module, dataset: Dataset, split: Split, batch: int = 256) -> None:
    """Measure the running statistics of BatchNorm layers anew on the images of `split`, in place, with equal weight for
    all batches. Parameters do not change, and a model without such layers does not change at all.
    """
    update_bn((normalise(images, dataset) for images in split.images.split(batch)), model)


def deterministic(threads: int | None = 1) -> None:
    """Make results the same in every run: deterministic kernels, no autotuning and a fixed number of threads.

    Sums are split among threads, so a result depends on the number of threads; None keeps torch's own number.
    """
    if threads:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs this to be deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # for finding errors; it takes a tenth of the time
    torch.backends.cudnn.benchmark = False
