"""THE fine-tuning function: every arm uses it, with the same subset, head, batch order and augmentation.

Its result depends only on its arguments, so it is kept in the store by content (`benchmarks.store`). When an arm is
added to a suite, or a killed cell is run again, only what was not computed before is computed. What many fine-tunes
share is made once (`FineTuner`): the images, which depend on no arm, and the head-only phase, on no learning rate.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import Dataset, GroupedDataset
from benchmarks.networks import build, has_running_statistics, head_name, normalisation
from benchmarks.settings import Normalisation, Transfer
from benchmarks.stacked import Stacked, scored
from benchmarks.training import Epoch, accuracy, evaluated, logits, recalibrate, show, steps_per_epoch, train
from know.checkpoints import State
from know.errors import KnowError
from know.files import digest
from know.seeds import stream

CALIBRATION = 2048
"""Number of source images on which running statistics are measured, for the source accuracy of predicted weights."""
KEPT = 2**30
"""At most this many bytes of images that fine-tunes share are kept in memory, as they are shown."""


@dataclass(frozen=True, eq=False)
class Start:
    """What an arm gives to fine-tuning. rates: factors on the learning rate, by parameter name. Two of them with the
    same content have the same fingerprint, but are not equal.
    """

    weights: State
    rates: Mapping[str, float] = field(default_factory=dict)
    normalisation: Normalisation = "carry"

    def fingerprint(self) -> str:
        """Hash of the content of all three fields."""
        state = hashlib.sha256(digest([sorted(self.rates.items()), self.normalisation]).encode())
        for name, tensor in sorted(self.weights.items()):
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return state.hexdigest()[:32]


@dataclass(frozen=True)
class Result:
    """The result of one fine-tune: of a pilot, accuracy and mean loss on the validation images (the loss is None where
    it is not finite), of any other the test accuracy.
    """

    status: str
    validation_accuracy: float | None
    validation_loss: float | None
    accuracy: float | None


@dataclass(frozen=True)
class FineTune:
    """One fine-tune. seed: made from source trajectory, target and number of the fine-tune; decides target subset,
    validation images and head. Batch order and augmentation also depend on the share.
    """

    start: Start
    share: float
    learning_rate: float
    seed: int
    test: bool
    """Whether the test set is read, or else the validation images."""


def fine_tune(request: FineTune, network: str, target: Dataset, settings: Transfer) -> Result:
    """Fine-tune a new head and the weights with the suite's recipe; accuracies are those after the last epoch."""
    return FineTuner(network, target, settings, keep=0)(request)


class FineTuner:
    """`fine_tune` for one network, target and recipe, which keeps in memory what its fine-tunes share.

    keep: at most this many bytes of images as they are shown.
    """

    def __init__(self, network: str, target: Dataset, settings: Transfer, *, keep: int = KEPT):
        self.network, self.target, self.settings, self.keep = network, target, settings, keep
        self.kept: dict[str, dict[tuple, Any]] = {"epochs": {}, "begun": {}, "validation": {}}
        """What was made last, by its kind and by what decides it."""

    def _kept(self, kind: str, make: Callable[..., Any], *key: Any) -> Any:
        """What `make` gives for a key: as many are kept as a trajectory has fine-tunes."""
        kept = self.kept[kind]
        if key not in kept:
            while len(kept) >= max(self.settings.fine_tunes, self.settings.pilot_fine_tunes):
                kept.pop(next(iter(kept)))
            kept[key] = make(*key)
        return kept[key]

    def __call__(self, request: FineTune) -> Result:
        target, recipe = self.target, self.settings.recipe
        images, _ = target_split(target, self.settings, request.share, request.seed)
        begun, order, status = self._kept("begun", self._begun, request.start, request.share, request.seed)
        model = copy.deepcopy(begun)
        if status == "ok":
            shown = itertools.islice(self._shown(request.share, request.seed, order), recipe.head_epochs, None)
            rates = {"learning_rate": request.learning_rate, "rate_factors": _without_head(request.start.rates, model)}
            asked = {"seed": order, "shown": shown, "phase": "everything", **rates}
            status = train(model, target, target.train.take(images), recipe, **asked).status
        validation = functools.partial(self._kept, "validation", self._validation, request.share, request.seed)
        batches, labels = self.tests if request.test else validation()
        (share,), (loss,) = scored(logits(model, batches)[None], labels)
        return _result(status, share, loss, test=request.test)

    def _begun(self, start: Start, share: float, seed: int) -> tuple[nn.Module, int, str]:
        """The network after the head-only phase, the seed of batch order and augmentation, and the status."""
        images, _ = target_split(self.target, self.settings, share, seed)
        model, order = _prepare(start, share, seed, self.network, self.target, images)
        if not self.settings.recipe.head_epochs:
            return model, order, "ok"
        asked = {"seed": order, "shown": self._shown(share, seed, order), "phase": "head"}
        outcome = train(model, self.target, self.target.train.take(images), self.settings.recipe, **asked)
        return model, order, outcome.status

    def _shown(self, share: float, seed: int, order: int) -> Iterable[Epoch]:
        """What is shown, epoch by epoch: kept if the images of all fine-tunes of a trajectory are few enough."""
        images = self._count(share) * round(share * self.settings.images) * self.settings.fine_tunes
        if images * math.prod(self.target.shape) * 4 > self.keep:
            return self._stream(share, seed, order)
        return self._kept("epochs", self._epochs, share, seed, order)

    def _stream(self, share: float, seed: int, order: int) -> Iterable[Epoch]:
        images, _ = target_split(self.target, self.settings, share, seed)
        split = self.target.train.take(images)
        return show(self.target, split, torch.arange(len(split))[None], self.settings.recipe, [order])

    def _epochs(self, share: float, seed: int, order: int) -> list[Epoch]:
        return [list(epoch) for epoch in itertools.islice(self._stream(share, seed, order), self._count(share))]

    def _count(self, share: float) -> int:
        """The number of epochs of both phases."""
        recipe = self.settings.recipe
        per_epoch = steps_per_epoch(round(share * self.settings.images), recipe.batch_size)
        return recipe.head_epochs + (math.ceil(recipe.steps / per_epoch) if recipe.steps else recipe.epochs)

    def _validation(self, share: float, seed: int) -> tuple[list[Tensor], Tensor]:
        """The validation images in batches, as a network evaluates them, and their labels."""
        _, held_out = target_split(self.target, self.settings, share, seed)
        part = self.target.train.take(held_out)
        return list(evaluated(self.target, part)), part.labels

    @functools.cached_property
    def tests(self) -> tuple[list[Tensor], Tensor]:
        """The same of the test images."""
        return list(evaluated(self.target, self.target.test)), self.target.test.labels


def fine_tune_stacked(requests: list[FineTune], network: str, target: Dataset, settings: Transfer) -> list[Result]:
    """Do what `fine_tune` does for many requests of one share at once (`benchmarks.stacked`), equal up to rounding."""
    splits = [target_split(target, settings, request.share, request.seed) for request in requests]
    images, validation = (torch.stack(rows) for rows in zip(*splits, strict=True))  # (K, n) each
    models, orders = zip(
        *(_prepare(r.start, r.share, r.seed, network, target, own) for r, own in zip(requests, images, strict=True)),
        strict=True,
    )
    networks = Stacked(models)
    outcomes = networks.train(
        target,
        target.train,
        images,
        settings.recipe,
        seeds=orders,
        learning_rates=[request.learning_rate for request in requests],
        rate_factors=[_without_head(request.start.rates, models[0]) for request in requests],
    )
    tested = validated = [(math.nan, math.nan)] * len(requests)
    if any(request.test for request in requests):
        tested = list(zip(*scored(networks.logits(target, target.test), target.test.labels), strict=True))
    if not all(request.test for request in requests):
        labels = target.train.labels[validation.to(target.train.labels.device)]  # (K, N)
        validated = list(zip(*scored(networks.logits(target, target.train, validation), labels), strict=True))
    return [
        _result(outcome.status, *(test if request.test else other), test=request.test)
        for request, outcome, test, other in zip(requests, outcomes, tested, validated, strict=True)
    ]


def _prepare(
    start: Start, share: float, seed: int, network: str, target: Dataset, images: Tensor
) -> tuple[nn.Module, int]:
    """The network with its new head, and the seed of batch order and augmentation."""
    model = build(network, target.shape, len(target.classes), seed=stream(seed, "head"))
    head = head_name(model) + "."
    fresh = {name for name in model.state_dict() if name.startswith(head)}
    if start.normalisation == "reset":
        fresh |= normalisation(model)
    carried = {name: tensor for name, tensor in start.weights.items() if name not in fresh}
    missing, unexpected = model.load_state_dict(carried, strict=False)
    if unexpected or not fresh.issuperset(missing):
        raise KnowError(f"weights do not fit {network}: missing {missing}, unexpected {unexpected}")
    model.to(target.mean.device)
    if start.normalisation == "recalibrate":
        recalibrate(model, target, target.train.take(images))
    return model, stream(seed, "share", share)


def _without_head(rates: Mapping[str, float], model: nn.Module) -> dict[str, float]:
    """The factors on the learning rate of all parameters but those of the head, which is new."""
    head = head_name(model) + "."
    return {name: factor for name, factor in rates.items() if not name.startswith(head)}


def _result(status: str, accuracy: float, loss: float, *, test: bool) -> Result:
    accuracy = round(accuracy, 6)
    if test:
        return Result(status, None, None, accuracy)
    return Result(status, accuracy, round(loss, 6) if math.isfinite(loss) else None, None)


def target_split(target: Dataset, settings: Transfer, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint rows of training and validation images, int64 (n,) and (N,), drawn by the seed.

    The rows of a smaller share begin those of a larger one. No group of a `GroupedDataset` has images in both parts.

    KnowError where the dataset has too few images, or its groups cannot be divided so that both parts have enough.
    """
    total, wanted = len(target.train), settings.images + settings.validation
    if wanted > total:
        raise KnowError(f"{target.name} has {total} training images, transfer.images + validation is {wanted}")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(stream(seed, "subset")))
    trained = validated = order
    if isinstance(target, GroupedDataset):
        inside = _divide(target, settings, seed)[order]
        trained, validated = order[inside], order[~inside]
    return trained[: round(share * settings.images)], validated[-settings.validation :]


def _divide(target: GroupedDataset, settings: Transfer, seed: int) -> Tensor:
    """Which rows belong to groups that are trained on, bool (N,); the others are of groups for validation.

    Of the groups in random order the first ones are trained on: as many as come nearest to the ratio of images to
    validation, so that both parts show as many different groups as they can.
    """
    _, member, sizes = target.groups.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(stream(seed, "groups")))
    images = sizes[order].cumsum(0)  # (groups,) of the first group, the first two, ...
    enough = (images >= settings.images) & (len(member) - images >= settings.validation)
    if not enough.any():
        raise KnowError(
            f"{target.name} has {len(sizes)} groups of near-copies, none of which may be in both parts; they cannot be "
            f"divided into {settings.images} images and {settings.validation} for validation, ask for fewer"
        )
    wanted = len(member) * settings.images / (settings.images + settings.validation)
    count = torch.where(enough, (images - wanted).abs(), torch.inf).argmin() + 1
    return torch.isin(member, order[:count])


def source_accuracy(weights: State, network: str, source: Dataset) -> dict[str, float]:
    """Source test accuracy of weights before fine-tuning: with their own running statistics, and with those measured
    anew on source training images (the same number where the network has no such statistics).
    """
    model = build(network, source.shape, len(source.classes))
    model.load_state_dict(weights)
    model.to(source.mean.device)
    carried = accuracy(model, source, source.test)
    measured = carried
    if has_running_statistics(model):
        order = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(stream("calibration")))
        recalibrate(model, source, source.train.take(order[:CALIBRATION]))
        measured = accuracy(model, source, source.test)
    return {"source_accuracy": round(carried, 6), "source_accuracy_recalibrated": round(measured, 6)}
