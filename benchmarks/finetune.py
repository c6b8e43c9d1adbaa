"""THE fine-tuning function: every arm uses it, with the same subset, head, batch order and augmentation.

Its result depends only on its arguments, so it is kept in the store by content (`benchmarks.store`). When an arm is
added to a suite, or a killed cell is run again, only what was not computed before is computed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.data import Dataset, GroupedDataset
from benchmarks.networks import build, has_running_statistics, head_name, normalisation
from benchmarks.settings import Normalisation, Transfer
from benchmarks.stacked import Stacked, scored
from benchmarks.training import accuracy, logits, recalibrate, train
from know.checkpoints import State
from know.errors import KnowError
from know.files import digest
from know.seeds import stream

CALIBRATION = 2048
"""Number of source images on which running statistics are measured, for the source accuracy of predicted weights."""


@dataclass(frozen=True)
class Start:
    """What an arm gives to fine-tuning. rates: factors on the learning rate, by parameter name."""

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
    """The result of one fine-tune. `accuracy` is None where the test set must not be read (pilots)."""

    status: str
    validation_accuracy: float
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
    """Whether to read the test set."""


def fine_tune(request: FineTune, network: str, target: Dataset, settings: Transfer) -> Result:
    """Fine-tune a new head and the weights with the suite's recipe; accuracies are those after the last epoch."""
    images, validation = target_split(target, settings, request.share, request.seed)
    model, order, rates = _prepare(request, network, target, settings, images)
    asked = {"learning_rate": request.learning_rate, "rate_factors": rates}
    outcome = train(model, target, target.train.take(images), settings.recipe, seed=order, **asked)
    held_out = target.train.take(validation)
    (share,), (loss,) = scored(logits(model, target, held_out)[None], held_out.labels)
    tested = accuracy(model, target, target.test) if request.test else None
    return _result(outcome.status, share, loss, tested)


def fine_tune_stacked(requests: list[FineTune], network: str, target: Dataset, settings: Transfer) -> list[Result]:
    """Do what `fine_tune` does for many requests of one share at once (`benchmarks.stacked`), equal up to rounding."""
    splits = [target_split(target, settings, request.share, request.seed) for request in requests]
    images, validation = (torch.stack(rows) for rows in zip(*splits, strict=True))  # (K, n) each
    prepared = [_prepare(r, network, target, settings, own) for r, own in zip(requests, images, strict=True)]
    models, orders, rates = zip(*prepared, strict=True)
    networks = Stacked(models)
    outcomes = networks.train(
        target,
        target.train,
        images,
        settings.recipe,
        seeds=orders,
        learning_rates=[request.learning_rate for request in requests],
        rate_factors=rates,
    )
    labels = target.train.labels[validation.to(target.train.labels.device)]  # (K, N)
    validated = scored(networks.logits(target, target.train, validation), labels)
    tests = any(request.test for request in requests)
    tested = scored(networks.logits(target, target.test), target.test.labels)[0] if tests else [None] * len(requests)
    return [
        _result(outcome.status, share, loss, tested if request.test else None)
        for request, outcome, share, loss, tested in zip(requests, outcomes, *validated, tested, strict=True)
    ]


def _prepare(
    request: FineTune, network: str, target: Dataset, settings: Transfer, images: Tensor
) -> tuple[nn.Module, int, dict[str, float]]:
    """The network with its new head, the seed of batch order and augmentation, and the factors on the learning rate."""
    start = request.start
    model = build(network, target.shape, len(target.classes), seed=stream(request.seed, "head"))
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
    rates = {name: factor for name, factor in start.rates.items() if not name.startswith(head)}
    return model, stream(request.seed, "share", request.share), rates


def _result(status: str, validation: float, loss: float, test: float | None) -> Result:
    return Result(
        status=status,
        validation_accuracy=round(validation, 6),
        validation_loss=round(loss, 6) if math.isfinite(loss) else None,
        accuracy=None if test is None else round(test, 6),
    )


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
