"""The reference arms: weights that really are trained on the source, in the same job as the trajectory.

One function each, which asks the run that makes theta_0 (`SourceRun`) for weights. What is added here is made where a
suite names it, and stands in its tables. Cost is counted by the same
functions: a run that trains nothing answers with the number of images that training would show. Imports no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from know.checkpoints import State

Average = Literal["tail", "ema", "decay"]
"""Averages over a training run: of its tail, exponential, or with weights that decay towards its beginning."""
REFERENCES: dict[str, Reference] = {}
"""Every reference by name; filled by the decorator `reference`."""


class SourceRun(Protocol):
    """What was trained on the source, as a reference sees it: weights, or, where cost is counted, images shown."""

    initial: State
    """The network's random initialisation."""
    theta_0: State

    def pretrain(self, factor: int, *, steps: float | None = None) -> State:
        """The initialisation trained on `factor` times D0, for as many epochs as theta_0 or `steps` times its steps."""

    def average(self, kind: Average) -> State:
        """An average over the run that made theta_0."""

    def train_on(self, factor: int = 1, *, augmented: bool = False, averaged: bool = False) -> State:
        """theta_0 trained on `factor` times D0, in the manner of the forgetting steps, for as many steps as all of them
        together. augmented: with crops and mirror images. averaged: the mean of the weights over the last half of the
        steps, with running statistics measured anew on D0."""


@dataclass(frozen=True)
class Reference:
    """A registered reference; see the decorator `reference`."""

    name: str
    function: Callable[[SourceRun], Any]
    reference: str
    group: str
    overflow_only: bool
    factor: int

    @property
    def summary(self) -> str:
        return " ".join((inspect.getdoc(self.function) or "").split())

    def exists(self, track: str, d0: float) -> bool:
        """Whether trajectories of a track have it, where D0 is the share `d0` of the source."""
        return self.factor * d0 <= 1 and (track == "overflow" or not self.overflow_only)


def reference(
    source: str, *, group: str = "reference", overflow_only: bool = False, factor: int = 1
) -> Callable[[Callable[[SourceRun], Any]], Callable[[SourceRun], Any]]:
    """Register the function as the reference of that name.

    source: where it comes from, for the tables. group: what it is in the tables. overflow_only: whether it exists on
    the overflow track alone. factor: how many times D0 it is trained on.
    """

    def register(function: Callable[[SourceRun], Any]) -> Callable[[SourceRun], Any]:
        name = function.__name__
        REFERENCES[name] = Reference(name, function, source, group, overflow_only, factor)
        return function

    return register


def kept(names: Iterable[str], track: str, d0: float) -> list[Reference]:
    """The references that trajectories of a track keep beside theta_0, where D0 is the share `d0` of the source and a
    suite names some. The initialisation is always kept, and on the retrodiction track theta_{-1}, which is the oracle.
    """
    always = {"scratch"} if track == "overflow" else {"scratch", "oracle"}
    return [
        each for each in REFERENCES.values() if each.name in {*names, *always} - {"naive"} and each.exists(track, d0)
    ]


@reference("paper, naive transfer")
def naive(run: SourceRun) -> State:
    """theta_0 itself, fine-tuned as always."""
    return run.theta_0


@reference("reference")
def scratch(run: SourceRun) -> State:
    """The network's own random initialisation, never trained on the source."""
    return run.initial


@reference("reference", factor=2)
def oracle(run: SourceRun) -> State:
    """Really trained on twice the source data, for as many epochs (twice the steps); on the retrodiction track
    theta_{-1}, from which theta_0 was made."""
    return run.pretrain(2)


@reference("reference", overflow_only=True, factor=2)
def oracle_steps(run: SourceRun) -> State:
    """Really trained on twice the source data, with as many steps as theta_0."""
    return run.pretrain(2, steps=1)


@reference("control, this project", group="control", overflow_only=True)
def double_steps(run: SourceRun) -> State:
    """Really trained on D0 alone with twice the steps of theta_0, which tells the oracle's steps from its data."""
    return run.pretrain(1, steps=2)


@reference("control, this project", group="control", overflow_only=True)
def shorter(run: SourceRun) -> State:
    """Really trained on D0 for a quarter of the steps of theta_0, with a whole learning-rate schedule of its own."""
    return run.pretrain(1, steps=0.25)


@reference("reference", overflow_only=True, factor=4)
def oracle_x4(run: SourceRun) -> State:
    """Really trained on four times the source data, for as many epochs."""
    return run.pretrain(4)


@reference("reference", overflow_only=True, factor=8)
def oracle_x8(run: SourceRun) -> State:
    """Really trained on eight times the source data, for as many epochs."""
    return run.pretrain(8)


@reference("Izmailov et al. 2018, arXiv 1803.05407", group="average")
def tail_average(run: SourceRun) -> State:
    """Mean of the weights over the last quarter of the steps that made theta_0."""
    return run.average("tail")


@reference("Polyak & Juditsky 1992", group="average")
def ema(run: SourceRun) -> State:
    """Exponential moving average over the run that made theta_0, with a time constant of a tenth of its steps."""
    return run.average("ema")


@reference("Shamir & Zhang 2013, arXiv 1212.1824", group="average")
def decay_average(run: SourceRun) -> State:
    """Mean of the weights over the run that made theta_0, with weights that fall as the cube towards its beginning."""
    return run.average("decay")


@reference("control, this project", group="control")
def compute_matched(run: SourceRun) -> State:
    """Naive, but theta_0 was trained on D0 for as many further steps as the forgetting trajectory took."""
    return run.train_on()


@reference("Izmailov et al. 2018, arXiv 1803.05407", group="average")
def compute_averaged(run: SourceRun) -> State:
    """Mean of the weights over the last half of the further steps of compute_matched."""
    return run.train_on(averaged=True)


@reference("control, this project", group="control")
def compute_augmented(run: SourceRun) -> State:
    """Compute-matched, with crops and mirror images."""
    return run.train_on(augmented=True)


@reference("Izmailov et al. 2018, arXiv 1803.05407", group="average")
def compute_augmented_averaged(run: SourceRun) -> State:
    """Mean of the weights over the last half of the further steps of compute_augmented."""
    return run.train_on(augmented=True, averaged=True)


@reference("reference", overflow_only=True, factor=2)
def local_oracle(run: SourceRun) -> State:
    """Compute-matched, on twice the data: it stands, by our choice, for what a step back of KNOWN predicts."""
    return run.train_on(2)
