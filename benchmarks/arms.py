"""The arms of a suite: every way to get the weights that are fine-tuned.

Three kinds, each one function:

* a *reference* is trained, together with the trajectory (benchmarks/references.py): naive, the oracles, averages;
* a *method* predicts weights (a file in know/methods/);
* an arm of this file changes how weights are fine-tuned, and not what they are: fresh normalisation, other rates.

A function that is added stands in every table of the suites that name it. This file imports no torch, so that the
workflow can read the names at once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from benchmarks.references import REFERENCES
from know.errors import KnowError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.finetune import Start
    from benchmarks.settings import Arms, Cell, Normalisation
    from know.checkpoints import State
    from know.known import Models
    from know.methods import Hyper, Method, TensorInfo
    from know.trajectory import Trajectory

ARMS: dict[str, FineTuningArm] = {}
"""Every arm of this file, by name; filled by the decorator `arm`."""
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "meta_linear": {"_theta0": {"theta_0": True}},
    "mpe": {"_global": {"scope": "model"}},
    "placebo": {"_shrink": {"method": "shrink"}, "_linear": {"method": "linear"}},
    "random_step": {"_b": {}, "_c": {}},
    "rre": {"_global": {"scope": "model"}},
}
"""Further lines of a suite with `methods: all`: options by method and by the ending of the line's name. An arm's random
numbers are those of its name, so the three random steps differ; together they are the noise floor."""


CHOICES = {"of": ("known", "released"), "method": ("known", "shrink", "linear")}
"""Values that the options of arms may take."""


@dataclass(frozen=True)
class Asked:
    """What an arm is asked about: a trajectory, the networks at hand, a depth, and the suite's normalisation."""

    trajectory: Trajectory
    models: Models
    depth: int
    seed: int
    normalisation: Normalisation

    def predict(self, method: str, **options: Any) -> State:
        """The weights that a method predicts; raises `know.prediction.Overflow` where they are not finite."""
        from know.prediction import predict

        return predict(self.trajectory, method, self.depth, known=self.models, seed=self.seed, **options)

    def windows(self) -> Iterator[tuple[TensorInfo, Tensor]]:
        """Every predicted tensor with its window (N, S)."""
        from know.prediction import windows

        return windows(self.trajectory, self.depth, self.models, self.seed)

    def start(
        self, weights: State | None = None, *, rates: dict[str, float] | None = None, normalisation: str | None = None
    ) -> Start:
        """What fine-tuning begins from: theta_0, unless weights are given; by default as the suite normalises."""
        from benchmarks.finetune import Start

        given = self.trajectory.theta_0 if weights is None else weights
        return Start(given, rates or {}, normalisation or self.normalisation)


@dataclass(frozen=True)
class FineTuningArm:
    """A registered arm; see the decorator `arm`. It has the fields of a `know.methods.Method` that tables show."""

    name: str
    function: Callable[..., Start]
    reference: str
    depths: tuple[int, ...]
    normalisation: Normalisation | None
    options: dict[str, Any]
    group: str = "control"

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.function) or "").splitlines()[0]

    def check_options(self, given: dict[str, Any]) -> dict[str, Any]:
        from know.methods import check_options

        return check_options(f"arm {self.name}", self.options, CHOICES, given)

    def missing(self, options: dict[str, Any], length: int) -> str | None:
        """Why it cannot be asked here of a history of S = `length`; None if it can."""
        from know.methods import get

        return get(options["of"]).missing({}, length) if "of" in options else None


def arm(
    *, reference: str, depths: tuple[int, ...], normalisation: Normalisation | None = None
) -> Callable[[Callable[..., Start]], Callable[..., Start]]:
    """Register the function as the arm of that name; its keyword arguments are the options of the arm.

    reference: where it comes from. depths: where it stands in a suite with `methods: all`; () if it has none.
    normalisation: the policy that it is about, whatever the suite's is.
    """

    def register(function: Callable[..., Start]) -> Callable[..., Start]:
        name, options = function.__name__, function.__kwdefaults__ or {}
        ARMS[name] = FineTuningArm(name, function, reference, depths, normalisation, options)
        return function

    return register


@arm(reference="control, this project", depths=(), normalisation="reset")
def reset(asked: Asked) -> Start:
    """Reset: naive, with every normalisation layer as in a fresh network; naive itself where there is none."""
    return asked.start(normalisation="reset")


@arm(reference="control, this project", depths=(), normalisation="recalibrate")
def recalibrate(asked: Asked) -> Start:
    """Recalibrate: naive, with running statistics measured anew on the target images; naive where there are none."""
    return asked.start(normalisation="recalibrate")


@arm(reference="the released script's way, as an ablation", depths=(1, 3), normalisation="reset")
def mixture(asked: Asked, *, of: Hyper = "known") -> Start:
    """Mixture: KNOWN's answer with fresh normalisation layers, while naive carries trained ones; KNOWN without any.

    The released prediction script fills a fresh network and writes only layers with exactly two arrays, so that
    BatchNorm keeps its initial values. of: "known" (ours) or "released".
    """
    return asked.start(asked.predict(of), normalisation="reset")


@arm(reference="control, this project", depths=(1, 3))
def matched_rate(asked: Asked, *, of: Hyper = "known", power: float = 1.0) -> Start:
    """Matched rate: naive, with the learning rate of each tensor times |theta_0| / |KNOWN's answer|.

    Under normalisation a kernel shrunk by c learns under Adam as with a rate 1/c times larger: this is that effect
    without the shrinking. of: "known" (ours) or "released". power: 1 for Adam; 2 for SGD, where it is 1/c^2.
    """
    from know.prediction import overflow

    factors = {}
    for tensor, window in asked.windows():
        theta_0, answer = window[:, -1].norm(), tensor.answer_of(of, window).norm()
        factors[tensor.name] = 1.0 if theta_0 == 0 or answer == 0 else float(theta_0 / answer) ** power
        if not 0 < factors[tensor.name] < math.inf:
            raise overflow("matched_rate", tensor, window)
    return asked.start(rates=factors)


@arm(reference="control, this project", depths=(1, 3))
def placebo(asked: Asked, *, method: str = "known", of: Hyper = "known") -> Start:
    """Placebo: KNOWN, shrink or the linear step, asked about as many training steps in which nothing was removed.

    What it gains is no forgetting. method: "known", "shrink" or "linear". of: the network that is asked, "known" (ours)
    or "released".
    """
    beside = replace(asked, trajectory=asked.trajectory.placebo)
    if method == "known":
        return asked.start(beside.predict(of))
    return asked.start(beside.predict(method, **({"of": of} if method == "shrink" else {})))


@dataclass(frozen=True)
class Line:
    """One line of a suite: a method, or an arm that is none, with options, under a name, at some depths."""

    name: str
    entry: Method | FineTuningArm
    options: dict[str, Any]
    depths: tuple[int, ...]

    def start(self, asked: Asked) -> Start:
        """What fine-tuning begins from; raises `know.prediction.Overflow` where a prediction is not finite."""
        if isinstance(self.entry, FineTuningArm):
            return self.entry.function(asked, **self.options)
        return asked.start(asked.predict(self.entry.name, **self.options))


def find(name: str) -> Method | FineTuningArm:
    """The method or arm of that name; KnowError suggests the nearest one."""
    from know import methods

    if name in ARMS:
        return ARMS[name]
    if name not in methods.names():
        raise unknown("method or arm", name, [*methods.names(), *ARMS])
    return methods.get(name)


def lines(settings: Arms) -> list[Line]:
    """What a suite asks for, by name; see `benchmarks.suite.Arms` for what "all" means."""
    from know import methods

    entries: dict[str, tuple[str, tuple[int, ...] | None, dict[str, Any]]] = {}
    if settings.methods == "all":
        for name in [name for name in methods.names() if methods.get(name).needs is None] + list(ARMS):
            for ending, options in {"": {}, **VARIANTS.get(name, {})}.items():
                entries[name + ending] = name, None, options
    for name, entry in settings.named.items():
        entries[name] = (entry.method or name, entry.depths, entry.options) if entry else (name, None, {})
    made = []
    for name, (of, depths, options) in sorted(entries.items()):
        entry = find(of)
        if depths and not entry.depths:
            raise KnowError(f"arms.methods.{name}: {of} has no depth; leave depths out")
        made.append(Line(name, entry, entry.check_options(options), tuple(depths or entry.depths)))
    return made


@dataclass(frozen=True)
class Arm:
    """One way to get the weights that are fine-tuned, as a table shows it."""

    name: str
    summary: str
    reference: str
    group: str
    predictor: str = ""
    """The method or arm behind it; empty for references. The name is that of the column in runs.csv."""
    depth: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    normalisation: Normalisation = "carry"
    missing: str | None = None
    """Why it is not available here."""

    def start(self, trajectory: Trajectory, models: Models, seed: int) -> Start:
        """What it hands to fine-tuning. naive: theta_0; the other references are kept with the trajectory.

        Raises `know.prediction.Overflow` where a prediction is not finite.
        """
        from know.seeds import stream

        asked = Asked(trajectory, models, max(1, self.depth), stream(seed, "arm", self.name), self.normalisation)
        if not self.predictor:
            return asked.start(None if self.name == "naive" else trajectory.reference(self.name))
        return Line(self.name, find(self.predictor), self.options, ()).start(asked)


def arms_of(settings: Arms, cell: Cell, normalisation: Normalisation = "carry") -> list[Arm]:
    """The arms of a cell: references first, then methods and arms by name and depth, as `known_x8` (r^-depth = 8).

    On the retrodiction track theta_{-1} is the only oracle. Arms that need more snapshots than the cell has, or models
    that are not here, say so in `missing`.
    """
    arms = []
    for name in settings.references:
        kept = REFERENCES[name]
        if cell.track == "overflow" or not kept.overflow_only:
            arms.append(Arm(name, kept.summary, kept.reference, kept.group, normalisation=normalisation))
    for line in lines(settings):
        entry = line.entry
        own = getattr(entry, "normalisation", None) or normalisation
        missing = entry.missing(line.options, cell.length)
        for depth in line.depths or (0,):
            name = f"{line.name}_x{cell.ratio**-depth:.2g}" if depth else line.name
            about = (entry.summary, entry.reference, entry.group, entry.name)
            arms.append(Arm(name, *about, depth, line.options, own, missing))
    return arms
