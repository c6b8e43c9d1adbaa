"""The one training loop: pretraining, forgetting and fine-tuning of every arm go through `train`.

The data live on the device as uint8; one permutation per epoch, augmentation per image on the device, no data loader.
Two streams of random numbers (batch order, augmentation) come from one seed, and nothing else is drawn.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from know.data import Dataset, Split, augment, normalise
from know.errors import KnowError
from know.nets import head_and_normalisation
from know.seeds import stream
from know.suite import Recipe


@dataclass
class Outcome:
    """What a training run leaves besides the model, which is trained in place.

    status: "ok", or "diverged" when a loss was not finite (training stopped after that epoch).
    history: one row per epoch: epoch, loss (mean over its images), accuracy (on them, in [0, 1]), learning_rate (last).
    optimizer: state of the optimiser, to be carried on by a following run.
    """

    status: str = "ok"
    history: list[dict[str, float]] = field(default_factory=list)
    optimizer: dict | None = None


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
    device = next(model.parameters()).device
    order = torch.Generator().manual_seed(stream(seed, "order"))
    pictures = torch.Generator(device=device).manual_seed(stream(seed, "augmentation"))
    per_epoch = steps_per_epoch(len(split), recipe.batch_size)
    steps = recipe.steps or recipe.epochs * per_epoch
    phases = [(True, recipe.head_epochs * per_epoch, recipe.head_learning_rate)] if recipe.head_epochs else []
    phases += [(False, steps, learning_rate or recipe.learning_rate)]

    outcome = Outcome()
    bar = tqdm(total=sum(p[1] for p in phases), desc=progress, disable=None if progress else True, leave=False)
    model.train()
    for head_only, budget, rate in phases:
        optimizer = _optimizer(model, recipe, rate, head_only, rate_factors or {})
        if optimizer_state is not None and not head_only:
            # moments only: torch would share the tensors, and bring the old recipe's weight decay
            moments = copy.deepcopy(optimizer_state["state"])
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        step = 0
        while step < budget and outcome.status == "ok":
            batches = _batches(torch.randperm(len(split), generator=order), recipe.batch_size)[: budget - step]
            # sums stay on the device: the host waits for it once per epoch, not once per step
            loss_sum, correct = torch.zeros((2,), device=device)
            for batch in batches:
                factor = 1.0 if head_only else schedule(recipe.schedule, step, budget, per_epoch)
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor * group["factor"]
                part = split.take(batch)
                images = augment(part.images, pictures, flip=dataset.flip) if recipe.augment else part.images
                inputs = normalise(images, dataset).contiguous(memory_format=torch.channels_last)
                scores = model(inputs)  # (B, classes)
                loss = F.cross_entropy(scores, part.labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                loss_sum += loss.detach() * len(batch)
                correct += (scores.detach().argmax(1) == part.labels).sum()
                step += 1
                if after_step and not head_only:
                    after_step(step, budget)
            seen = sum(len(batch) for batch in batches)
            row = {"epoch": len(outcome.history) + 1, "loss": float(loss_sum) / seen, "accuracy": float(correct) / seen}
            outcome.history.append({**row, "learning_rate": rate * factor})
            outcome.status = "ok" if math.isfinite(row["loss"]) else "diverged"
            bar.update(len(batches))
    bar.close()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        outcome.status = "diverged"  # in its very last step, after the last loss
    outcome.optimizer = optimizer.state_dict()
    return outcome


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
    model: nn.Module, recipe: Recipe, rate: float, head_only: bool, factors: Mapping[str, float]
) -> torch.optim.Optimizer:
    chosen = head_and_normalisation(model) if head_only else None
    groups: dict[float, list[nn.Parameter]] = {}  # by factor: one group, and one fused kernel, where there is none
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen is None or name in chosen)
        if parameter.requires_grad:
            groups.setdefault(1.0 if head_only else factors.get(name, 1.0), []).append(parameter)
    parameters = [{"params": group, "factor": factor} for factor, group in groups.items()]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay, fused=True
        )
    return torch.optim.Adam(parameters, rate, weight_decay=recipe.weight_decay, fused=True)


@torch.no_grad()
def logits(model: nn.Module, dataset: Dataset, split: Split, batch: int = 256) -> Tensor:
    """Class scores float32 (N, classes) in evaluation mode; the mode of the model is left as it was."""
    mode = model.training
    model.eval()
    parts = (normalise(images, dataset) for images in split.images.split(batch))
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
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
