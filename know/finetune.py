"""THE fine-tuning function: every arm goes through it, with the same subset, head, batch order and augmentation.

Its result is a function of what it is given, so it is remembered by content: an arm that is added to a suite, or a cell
that was killed, costs only what was not computed before.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from know.checkpoints import State
from know.data import Dataset, Split
from know.errors import KnowError
from know.files import code_hash, digest, write_text
from know.nets import build, has_running_statistics, head_name, normalisation
from know.seeds import stream
from know.suite import Normalisation, Transfer
from know.training import accuracy, logits, recalibrate, train

CALIBRATION = 2048
"""Source images that running statistics are measured on, for the source accuracy of predicted weights."""


@dataclass(frozen=True)
class Start:
    """What an arm hands to fine-tuning. rates: factors on the learning rate, by parameter name."""

    weights: State
    rates: Mapping[str, float] = field(default_factory=dict)
    normalisation: Normalisation = "carry"

    def fingerprint(self) -> str:
        """Hash of its content."""
        found = hashlib.sha256(digest([sorted(self.rates.items()), self.normalisation]).encode())
        for name, tensor in sorted(self.weights.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:32]


@dataclass(frozen=True)
class Result:
    """What one fine-tune gives. `accuracy` is None where the test set was not to be read (pilots)."""

    status: str
    validation_accuracy: float
    validation_loss: float | None
    accuracy: float | None


def fine_tune(
    start: Start,
    network: str,
    target: Dataset,
    settings: Transfer,
    *,
    share: float,
    learning_rate: float,
    seed: int,
    test: bool,
) -> Result:
    """Fine-tune a new head and the weights by the suite's recipe; accuracy after the last epoch.

    seed: of (source trajectory, target, fine-tune); decides the target subset, the validation images and the head.
        Batch order and augmentation also depend on the share.
    test: whether to read the test set.
    """
    images, validation = target_split(target, settings, share, seed)
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
        recalibrate(model, target, images)
    order = stream(seed, "share", share)
    rates = {name: factor for name, factor in start.rates.items() if not name.startswith(head)}
    outcome = train(model, target, images, settings.recipe, seed=order, learning_rate=learning_rate, rate_factors=rates)
    loss = float(F.cross_entropy(logits(model, target, validation), validation.labels))
    return Result(
        status=outcome.status,
        validation_accuracy=round(accuracy(model, target, validation), 6),
        validation_loss=round(loss, 6) if math.isfinite(loss) else None,
        accuracy=round(accuracy(model, target, target.test), 6) if test else None,
    )


def target_split(target: Dataset, settings: Transfer, share: float, seed: int) -> tuple[Split, Split]:
    """Training and validation images, disjoint; a smaller share is a prefix of a larger one."""
    total, wanted = len(target.train), settings.images + settings.validation
    if wanted > total:
        raise KnowError(f"{target.name} has {total} training images, transfer.images + validation is {wanted}")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(stream(seed, "subset")))
    return target.train.take(order[: round(share * settings.images)]), target.train.take(order[-settings.validation :])


def source_accuracy(weights: State, network: str, source: Dataset) -> dict[str, float]:
    """Source test accuracy of weights as they are: with the running statistics they carry, and with these measured anew
    on source training images (the same number where the network keeps none).
    """
    model = build(network, source.shape, len(source.classes))
    model.load_state_dict(weights)
    model.to(source.mean.device)
    carried = accuracy(model, source, source.test)
    measured = _measured_anew(model, source) if has_running_statistics(model) else carried
    return {"source_accuracy": round(carried, 6), "source_accuracy_recalibrated": round(measured, 6)}


def _measured_anew(model: nn.Module, source: Dataset) -> float:
    order = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(stream("calibration")))
    recalibrate(model, source, source.train.take(order[:CALIBRATION]))
    return accuracy(model, source, source.test)


class Memory:
    """Results by the content of what gave them, one JSON line each; a line cut short by a kill is ignored.

    A file that other code, another torch or another number of threads wrote is emptied. tidy: whether to do that, and
    to cut off a short line; not while other processes append to the file.
    """

    def __init__(self, path: Path, *, tidy: bool = True):
        self.path, self.results = path, {}
        head = json.dumps({"code": code_hash(__name__), "torch": torch.__version__, "threads": torch.get_num_threads()})
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]
        if not whole or whole[0].strip() != head:
            whole = [head + "\n"]
        for line in whole[1:]:
            entry = json.loads(line)
            self.results[entry.pop("key")] = entry
        if tidy and whole != lines:
            write_text(path, "".join(whole))

    def get(self, key: list[Any], compute: Any) -> dict[str, Any]:
        """The result of `compute()`, a dict, unless it is known already."""
        name = digest(key)
        if name not in self.results:
            found = compute()
            self.results[name] = found
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"key": name, **found}) + "\n")
        return self.results[name]
