"""The one training loop: pretraining, forgetting and fine-tuning of every arm go through `run`, one network at a time
(`train`) or many stacked ones (`benchmarks.stacked`).

The data live on the device as uint8. What is random about an epoch, one permutation and the augmentation of every
image, is drawn on the host from two streams of one seed, so that every device sees the same pictures in the same order,
and goes to the device at once; there is no data loader, and the host waits for the device once per epoch.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from benchmarks.data import DRAWS, Dataset, Split, augment, normalise
from benchmarks.networks import head_and_normalisation
from benchmarks.settings import Recipe
from know.errors import KnowError
from know.seeds import stream


@dataclass
class Outcome:
    """What a training run leaves besides the model, which is trained in place.

    status: "ok", or "diverged" when a loss was not finite (training stopped after that epoch).
    history: one row per epoch: epoch, loss (mean over its images), accuracy (on them, in [0, 1]), learning_rate (last).
    optimizer: state of the optimiser, to be carried on by a following run (none for stacked networks).
    """

    status: str = "ok"
    history: list[dict[str, float]] = field(default_factory=list)
    optimizer: dict | None = None


class Learner(Protocol):
    """K networks and their optimiser, as `run` drives them."""

    def begin(self, head_only: bool, rates: Sequence[float]) -> None:
        """Start a phase, of the head and normalisation layers or of everything, at K learning rates."""

    def step(self, images: Tensor, labels: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """One update on images float32 (K, B, C, H, W), labels (K, B), at the rates of the phase times `factor`.

        Returns the losses (K,) and the numbers of correct answers (K,) before it, on the device.
        """

    def retire(self, network: int) -> None:
        """Leave a network that has diverged as it is."""


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
    progress: str | None = None,
) -> Outcome:
    """Train `model` in place on `split` (a part of `dataset`, which gives normalisation and mirror rule).

    learning_rate: overrides `recipe.learning_rate` (the arms' search changes nothing else).
    rate_factors: of the learning rate, by parameter name, in the phase that trains everything; 1 where not given.
    optimizer_state: continue with this state (the released forgetting script carries Adam's); not with rate_factors.
    after_step: called as after_step(steps done, steps in all) in the phase that trains everything.
    progress: label of a progress bar, shown only on a terminal; None for none.
    """
    if rate_factors and optimizer_state is not None:
        raise KnowError("an optimiser's state is kept by position, which rate factors change; give one of the two")
    learner = _Single(model, recipe, rate_factors or {}, optimizer_state)
    rates = [learning_rate or recipe.learning_rate]
    everything = torch.arange(len(split))[None]
    (outcome,) = run(
        learner, dataset, split, everything, recipe, [seed], rates, after_step=after_step, progress=progress
    )
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        outcome.status = "diverged"  # in its very last step, after the last loss
    outcome.optimizer = learner.optimizer.state_dict()
    return outcome


def run(
    learner: Learner,
    dataset: Dataset,
    pool: Split,
    members: Tensor,
    recipe: Recipe,
    seeds: Sequence[int],
    learning_rates: Sequence[float],
    *,
    after_step: Callable[[int, int], object] | None = None,
    progress: str | None = None,
) -> list[Outcome]:
    """Train K networks, each on images of its own, in lockstep; see `train` for the rest.

    members: rows of `pool` that each network sees, int64 (K, n), on the host.
    seeds: K; each decides the order of its network's batches and the augmentation of their images.
    """
    networks, images = members.shape
    device = pool.labels.device
    orders, pictures = ([_generator(seed, name) for seed in seeds] for name in ("order", "augmentation"))
    per_epoch = steps_per_epoch(images, recipe.batch_size)
    phases = [(True, recipe.head_epochs * per_epoch, [recipe.head_learning_rate] * networks)]
    phases = (phases if recipe.head_epochs else []) + [
        (False, recipe.steps or recipe.epochs * per_epoch, list(learning_rates))
    ]
    outcomes = [Outcome() for _ in range(networks)]
    bar = tqdm(total=sum(p[1] for p in phases), desc=progress, disable=None if progress else True, leave=False)
    for head_only, budget, rates in phases:
        learner.begin(head_only, rates)
        step = 0
        while step < budget and any(outcome.status == "ok" for outcome in outcomes):
            batches = [_batches(torch.randperm(images, generator=order), recipe.batch_size) for order in orders]
            sizes = [len(batch) for batch in batches[0]][: budget - step]
            rows = torch.stack([own[torch.cat(b)] for own, b in zip(members, batches, strict=True)])  # (K, n)
            rows, drawn = rows.to(device), _draw(recipe, dataset, sizes, pictures, device)
            # sums stay on the device: the host waits for it once per epoch, not once per step
            loss_sum, correct = torch.zeros((2, networks), device=device)
            end = 0
            for size in sizes:
                factor = 1.0 if head_only else schedule(recipe.schedule, step, budget, per_epoch)
                start, end = end, end + size
                part = pool.take(rows[:, start:end].flatten())  # (K B)
                seen = augment(part.images, drawn[:, start:end].flatten(0, 1)) if drawn is not None else part.images
                inputs = normalise(seen, dataset).contiguous(memory_format=torch.channels_last)
                shaped = inputs.unflatten(0, (networks, size)), part.labels.unflatten(0, (networks, size))
                losses, hits = learner.step(*shaped, factor)
                loss_sum += losses * size
                correct += hits
                step += 1
                if after_step and not head_only:
                    after_step(step, budget)
            totals = torch.stack([loss_sum, correct]).tolist()
            for network, (outcome, *sums) in enumerate(zip(outcomes, *totals, strict=True)):
                if outcome.status != "ok":
                    continue
                loss, share = (total / sum(sizes) for total in sums)
                epoch = {"epoch": len(outcome.history) + 1, "loss": loss, "accuracy": share}
                outcome.history.append({**epoch, "learning_rate": rates[network] * factor})
                if not math.isfinite(loss):
                    outcome.status = "diverged"
                    learner.retire(network)
            bar.update(len(sizes))
    bar.close()
    return outcomes


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(stream(seed, name))


def _draw(
    recipe: Recipe, dataset: Dataset, sizes: list[int], generators: list[torch.Generator], device: torch.device
) -> Tensor | None:
    """An epoch's augmentation, (K, images, ...), drawn batch by batch from each network's own generator."""
    if recipe.augment == "none":
        return None
    draw = DRAWS[recipe.augment]
    drawn = [torch.cat([draw(size, dataset.shape, own, flip=dataset.flip) for size in sizes]) for own in generators]
    return torch.stack(drawn).to(device)


class _Single:
    """One module and torch's own optimiser."""

    def __init__(self, model: nn.Module, recipe: Recipe, factors: Mapping[str, float], state: dict | None):
        self.model, self.recipe, self.factors, self.state = model, recipe, factors, state
        self.forward = compiled(model) if recipe.compile else model
        model.train()

    def begin(self, head_only: bool, rates: Sequence[float]) -> None:
        (self.rate,) = rates
        self.optimizer = _optimizer(self.model, self.recipe, head_only, self.factors)
        if self.state is not None and not head_only:
            # moments only: torch would share the tensors, and bring the old recipe's weight decay
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
        return loss.detach()[None], (scores.detach().argmax(1) == labels[0]).sum()[None]

    def retire(self, network: int) -> None:
        pass  # no other network goes on


def autocast(recipe: Recipe, device: torch.device) -> contextlib.AbstractContextManager:
    """The recipe's precision as a context for the forward pass."""
    if recipe.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def compiled(model: Callable) -> Callable:
    """`torch.compile` for networks of fixed input size: one graph per batch size, shared by networks of one class."""
    torch._dynamo.config.recompile_limit = 64  # sizes of batches x phases x networks of a suite
    return torch.compile(model, dynamic=False)


EVALUATED = {False: 256, True: 2048}
"""Images that are evaluated at once, without and with a GPU."""


def steps_per_epoch(images: int, batch_size: int) -> int:
    return len(_batches(torch.arange(images), batch_size))


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Consecutive pieces of `order`; a last piece of one image joins its neighbour (BatchNorm needs two)."""
    pieces = list(order.split(size))
    if len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


def schedule(name: str, step: int, budget: int, steps_per_epoch: int) -> float:
    """Factor on the learning rate at `step` of `budget`.

    constant; cosine: decays per epoch, as the released fine-tuning script does, from 1 in the first epoch towards 0;
    one-cycle: linear warm-up over the first 30 % of the steps, then linear to 0.
    """
    if name == "constant":
        return 1.0
    if name == "cosine":
        epoch, epochs = step // steps_per_epoch, math.ceil(budget / steps_per_epoch)
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    peak = 0.3 * budget
    return (step + 1) / (peak + 1) if step < peak else max(0.0, (budget - step) / (budget - peak))


def _optimizer(
    model: nn.Module, recipe: Recipe, head_only: bool, factors: Mapping[str, float]
) -> torch.optim.Optimizer:
    chosen = head_and_normalisation(model) if head_only else None
    groups: dict[float, list[nn.Parameter]] = {}  # by factor: one group, and one fused kernel, where there is none
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen is None or name in chosen)
        if parameter.requires_grad:
            groups.setdefault(1.0 if head_only else factors.get(name, 1.0), []).append(parameter)
    parameters = [{"params": group, "factor": factor} for factor, group in groups.items()]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.Adam(parameters, weight_decay=recipe.weight_decay, fused=True)


@torch.no_grad()
def logits(model: nn.Module, dataset: Dataset, split: Split, batch: int | None = None) -> Tensor:
    """Class scores float32 (N, classes) in evaluation mode; the mode of the model is left as it was."""
    mode = model.training
    model.eval()
    parts = (normalise(images, dataset) for images in split.images.split(batch or EVALUATED[split.images.is_cuda]))
    scores = torch.cat([model(part.contiguous(memory_format=torch.channels_last)).float() for part in parts])
    model.train(mode)
    return scores


def accuracy(model: nn.Module, dataset: Dataset, split: Split) -> float:
    """Share of correct answers, in [0, 1]. Weights that give no finite scores answer nothing correctly."""
    scores = logits(model, dataset, split)
    correct = (scores.argmax(1) == split.labels) & scores.isfinite().all(1)
    return float(correct.double().mean())


def recalibrate(model: nn.Module, dataset: Dataset, split: Split, batch: int = 256) -> None:
    """Measure the running statistics of BatchNorm layers anew on the images of `split`, in place (equal weights to all
    batches); parameters are left alone. Without such layers nothing happens.
    """
    update_bn((normalise(images, dataset) for images in split.images.split(batch)), model)


def deterministic(threads: int | None = 1) -> None:
    """Same bytes from run to run: deterministic kernels, no autotuning, and a fixed number of threads.

    Sums are split among threads, so a result belongs to its thread count; None keeps torch's own.
    """
    if threads:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
