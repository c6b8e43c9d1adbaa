"""The reference arms: weights that really are trained on the source, in the same job as the trajectory.

One function each, which asks the run that makes theta_0 (`SourceRun`) for weights. What is added here is made with
every trajectory from then on, and stands in the tables of the suites that name it. Cost is counted by the same
functions: a run that trains nothing answers with the number of images that training would show. Imports no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from know.checkpoints import State

REFERENCES: dict[str, Reference] = {}
"""Every reference by name; filled by the decorator `reference`."""


class SourceRun(Protocol):
    """What was trained on the source, as a reference sees it: weights, or, where cost is counted, images shown."""

    initial: State
    """The network's random initialisation."""
    theta_0: State

    def pretrain(self, factor: int, *, same_steps: bool = False) -> State:
        """The initialisation trained on `factor` times D0, for as many epochs as theta_0, or for as many steps."""

    def average(self, kind: Literal["tail", "ema"]) -> State:
        """An average over the run that made theta_0."""

    def train_on(self) -> State:
        """theta_0 trained on D0, in the manner of the forgetting steps, for as many steps as all of them together."""


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
    return run.pretrain(2, same_steps=True)


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


@reference("control, this project", group="control")
def compute_matched(run: SourceRun) -> State:
    """Naive, but theta_0 was trained on D0 for as many further steps as the forgetting trajectory took."""
    return run.train_on()
