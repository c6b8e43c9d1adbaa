"""Predictors: from the history of a tensor to its earlier weights. One file each; a file dropped in is registered.

A predictor is a typed function `f(window, tensor, **options) -> Tensor`:

    window   float32 (N, S), the history of all N scalars of one tensor, smallest subset first, theta_0 last
    tensor   what is known of the tensor: name, shape, role, fractions, depth, models, a random generator (`TensorInfo`)
    options  keyword-only, with defaults; they become suite keys and command-line options
    returns  float32 (N,), the predicted weights

It has the name of its file. A *recursive* predictor answers one step back; `know.predict` pushes the answer on the
history and asks again (paper, section 3). Any other gets the depth in `tensor.depth` and answers at once. A control
that changes no weights but how they are fine-tuned answers a learning-rate factor, or names a normalisation policy.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import math
import typing
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.suite import LENGTH, Arms, Normalisation, PredictorArms
from know.checkpoints import State
from know.errors import KnowError, unknown
from know.keras import MODELS  # by name: `released` is also a predictor's file in this folder
from know.keras import missing as missing_here
from know.known import Known, Models
from know.seeds import stream
from know.trajectory import LARGE, PREDICTED, Role, Trajectory, finite

Group = Literal["known", "prediction", "average", "control"]
"""What a predictor is in the tables: KNOWN itself, another direct weight prediction, an average, or a control."""
Hyper = Literal["known", "released"]
"""The network that a control is measured against: the one meta-trained here, or the authors'."""
PIECE = LARGE
"""Weights that are asked about at once, where a predictor is elementwise: 1 MB of each snapshot, for the cache."""
MOST = 100
"""Decimal digits of the factor on the data that a depth may stand for; numbers end at 308."""
Scope = Literal["tensor", "model"]
"""What a vector method sees as one vector."""


class Overflow(KnowError):
    """A predictor's answer is not finite although the history is."""


@dataclass(frozen=True)
class TensorInfo:
    """What a predictor may know of the tensor besides its window."""

    name: str
    shape: tuple[int, ...]
    role: Role
    fractions: tuple[float, ...]
    depth: int
    models: Models
    seed: int
    whole: Callable[[], Tensor]
    """Gram matrix, float64 (S - 1, S - 1), of the differences of the whole network, oldest first: the sum of
    `differences_gram` over all predicted tensors."""

    def generator(self) -> torch.Generator:
        """Random numbers that belong to this tensor, the trajectory and the arm."""
        return torch.Generator().manual_seed(stream(self.seed, self.name))

    def step_of(self, model: str, window: Tensor) -> Tensor:
        """The step (N,) that a network ("known", "scaled", "released", "wnn") answers to a window."""
        asked: Known = self.models[model]
        return asked.residual(window, asked.role_of(self.role, self.shape))

    def answer_of(self, model: str, window: Tensor) -> Tensor:
        """The weights (N,) that a network predicts at this depth: what controls are measured against."""
        return recurse(window, lambda history: history[:, -1] + self.step_of(model, history), self.depth)


@dataclass(frozen=True)
class Predictor:
    name: str
    function: Callable[..., Any]
    reference: str
    group: Group
    recursive: bool
    depths: tuple[int, ...]
    variants: dict[str, dict[str, Any]]
    options: dict[str, Any]
    choices: dict[str, tuple[str, ...]]
    answers: Literal["weights", "rate"]
    normalisation: Normalisation | None
    same_weights: str | None
    least: int
    needs: str | None
    elementwise: bool

    @property
    def documentation(self) -> str:
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        return self.documentation.splitlines()[0]

    def check_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options with their defaults; KnowError for an unknown name or a value of another type."""
        for key, value in given.items():
            if key not in self.options:
                raise unknown(f"option of predictor {self.name}", key, self.options or ["(it has none)"])
            kind = type(self.options[key])
            allowed = (int, float) if kind is float else (kind,)
            if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
                raise KnowError(f"option {key} of predictor {self.name} takes a {kind.__name__}, got {value!r}")
            if key in self.choices and value not in self.choices[key]:
                raise unknown(f"option {key} of predictor {self.name}:", value, self.choices[key])
            if kind in (int, float) and not abs(value) < 2**63:
                raise KnowError(f"option {key} of predictor {self.name} is too large or no number")
        return {**self.options, **given}

    def missing(self, options: dict[str, Any], length: int) -> str | None:
        """Why it cannot be asked here with these options of a history of S = `length`; None if it can."""
        model = self.needs or options.get("of")
        if length < self.least:
            return f"it takes at least {self.least} snapshots"
        if model not in MODELS:
            return None
        return missing_here(model) or (f"the released networks take {LENGTH} snapshots" if length != LENGTH else None)


def predictor(
    *,
    reference: str,
    group: Group = "prediction",
    recursive: bool = True,
    depths: tuple[int, ...] = (1,),
    variants: dict[str, dict[str, Any]] | None = None,
    answers: Literal["weights", "rate"] = "weights",
    normalisation: Normalisation | None = None,
    same_weights: str | None = None,
    least: int = 2,
    needs: str | None = None,
    elementwise: bool = False,
) -> Callable[[Callable[..., Any]], Predictor]:
    """Register the function as the predictor named after its file.

    reference: where it comes from, for the tables.
    recursive: see the module's docstring.
    depths: where a suite that takes all predictors puts it in its tables; () if it has no depth, as a limit has none.
    variants: further lines of such a suite's tables, as {ending of the name: options}; {"": {}} is the plain one.
    answers: "rate" if it answers one number, the factor on the tensor's learning rate, and leaves the weights alone.
    normalisation: the policy of its arms, whatever the suite's is.
    same_weights: the arm whose weights its own equal by intention ("naive").
    least: the fewest snapshots it takes.
    needs: the model from outside the project that it asks ("released", "wnn"), which may not be there.
    elementwise: its answer to a weight depends on that weight's history alone; then a large tensor is asked in pieces.
    """

    def register(function: Callable[..., Any]) -> Predictor:
        keywords = inspect.signature(function).parameters.values()
        options = {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}
        if any(default is inspect.Parameter.empty for default in options.values()):
            raise TypeError(f"{function.__module__}.{function.__name__}: every option needs a default")
        hints = typing.get_type_hints(function)
        choices = {key: typing.get_args(hints[key]) for key in options if typing.get_origin(hints.get(key)) is Literal}
        return Predictor(
            name=function.__module__.rpartition(".")[2],
            function=function,
            reference=reference,
            group=group,
            recursive=recursive,
            depths=depths,
            variants=variants or {"": {}},
            options=options,
            choices=choices,
            answers=answers,
            normalisation=normalisation,
            same_weights=same_weights,
            least=least,
            needs=needs,
            elementwise=elementwise,
        )

    return register


def names() -> list[str]:
    """Names of all predictors: the files of this folder. Imports none of them."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


@functools.cache
def get(name: str) -> Predictor:
    """The predictor of that name; KnowError suggests the nearest one."""
    if name not in names():
        raise unknown("predictor", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    found = [value for value in vars(module).values() if isinstance(value, Predictor)]
    if len(found) != 1:
        raise KnowError(f"{module.__file__} must define exactly one function with @predictor(...), found {len(found)}")
    return found[0]


@dataclass(frozen=True)
class Line:
    """One line of a suite's arms: a predictor with options, under a name, at some depths."""

    name: str
    predictor: Predictor
    options: dict[str, Any]
    depths: tuple[int, ...]


def lines(arms: Arms) -> list[Line]:
    """What a suite asks for, by name; see `benchmarks.suite.Arms` for what "all" means."""
    if arms.predictors == "all":
        every = [found for found in map(get, names()) if found.needs is None]
        entries = {
            found.name + ending: PredictorArms(predictor=found.name, options=options)
            for found in every
            for ending, options in found.variants.items()
        }
    else:
        entries = dict(arms.predictors)
    entries |= arms.also
    made = []
    for name, entry in sorted(entries.items()):
        entry = entry or PredictorArms()
        found = get(entry.predictor or name)
        if entry.depths and not found.depths:
            raise KnowError(f"arms.predictors.{name}: predictor {found.name} has no depth; leave depths out")
        depths = tuple(entry.depths or found.depths)
        made.append(Line(name, found, found.check_options(entry.options), depths))
    return made


def recurse(window: Tensor, step: Callable[[Tensor], Tensor], depth: int) -> Tensor:
    """Apply `step` depth times, each time with its answer pushed on the history and the oldest dropped: (N,)."""
    for _ in range(depth):
        answer = step(window)
        if window.is_contiguous():
            window = torch.cat([window[:, 1:], answer[:, None]], dim=1)
        else:  # a large one: each snapshot stays one run of memory
            window = torch.cat([window.T[1:], answer[None]]).T
    return window[:, -1]


def differences_gram(window: Tensor) -> Tensor:
    """Inner products, float64 (S - 1, S - 1), of the consecutive differences of a window (N, S), oldest first."""
    differences = window.double().diff(dim=1)
    return differences.T @ differences


@dataclass(frozen=True)
class Piece:
    """A predictor's answer to a run of weights of one tensor."""

    tensor: str
    role: Role
    start: int
    """Where the run begins in the flattened tensor."""
    theta_0: Tensor
    """(N,), float32."""
    answer: Tensor
    """(N,), in the dtype of theta_0."""


def predict(
    trajectory: Trajectory,
    predictor: str = "known",
    depth: int = 1,
    *,
    known: Known | Models | Path | str | None = None,
    seed: int = 0,
    scale: float = 1.0,
    roles: Mapping[str, str] | None = None,
    **options: Any,
) -> State:
    """Weights `depth` steps before theta_0: a full state_dict in the names, shapes and dtypes of theta_0.

    predictor: a name from `know.methods.names()`; options: its keyword options.
    depth: recursions; at rate r, depth n stands for r^-n times the data.
    known: the KNOWN to ask, its file, or the folder of a meta-training; default what the package ships.
    seed: for predictors that draw random numbers.
    scale: length of the step; 1 is the predictor's own, 0 theta_0.
    roles: pattern of names to role, where the rule of `know.trajectory.roles` is not wanted; "skip" to leave alone.

    Normalisation parameters and buffers are those of theta_0. Raises KnowError for a wrong name, option or depth, a
    history of another length than KNOWN's, missing or mis-shaped tensors, and values that are not finite (`Overflow`
    where only the answer is not).
    """
    asked = pieces(trajectory, predictor, depth, known=known, seed=seed, scale=scale, roles=roles, **options)
    parts: dict[str, list[Tensor]] = {}
    for piece in asked:
        parts.setdefault(piece.tensor, []).append(piece.answer)
    last, answer = trajectory.checkpoints[-1], {}
    for name, tensor in trajectory.meta.items():
        values = torch.cat(parts.pop(name)) if name in parts else last.read(name)
        answer[name] = values.view(tensor.shape)
    trajectory.verify()
    return answer | {name: answer[other] for name, other in last.tied.items()}


def pieces(
    trajectory: Trajectory,
    predictor: str = "known",
    depth: int = 1,
    *,
    known: Known | Models | Path | str | None = None,
    seed: int = 0,
    scale: float = 1.0,
    roles: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Piece]:
    """As `predict`, run by run in the order of theta_0's file, in memory that no size of tensor changes.

    That is where the predictor is elementwise; others need all of a tensor at once. Tensors that are not predicted, or
    share their values with another one, are not among the pieces. Hashes are the caller's to check
    (`Trajectory.verify`), when everything was read.
    """
    chosen = get(predictor)
    if chosen.answers != "weights":
        raise KnowError(f"predictor {predictor} changes no weights, only learning rates; see know.methods.rates")
    if not math.isfinite(scale):
        raise KnowError(f"the scale of the step must be a number, got {scale:g}")
    for info, start, window, values in _answers(trajectory, chosen, depth, known, seed, options, roles):
        theta_0 = window[:, -1]
        moved = values if scale == 1 else theta_0 + scale * (values - theta_0)
        piece = Piece(info.name, info.role, start, theta_0, moved.to(trajectory.meta[info.name].dtype))
        if not finite(piece.answer.float()):
            raise _overflow(predictor, info, window)
        yield piece


def predicted(trajectory: Trajectory, given: Mapping[str, str] | None = None) -> dict[str, Role]:
    """Names and roles of the tensors that predictors are asked about; given: as `roles` of `predict`."""
    tied, meta = trajectory.checkpoints[-1].tied, trajectory.meta
    found = trajectory.roles(given).items()
    return {name: role for name, role in found if role in PREDICTED and name not in tied and meta[name].numel()}


def rates(
    trajectory: Trajectory,
    predictor: str,
    depth: int = 1,
    *,
    known: Known | Models | Path | str | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, float]:
    """Learning-rate factors by tensor, of a predictor that answers those; arguments and errors as `predict`."""
    chosen = get(predictor)
    if chosen.answers != "rate":
        raise KnowError(f"predictor {predictor} answers weights; see know.predict")
    factors = {}
    for info, _, window, value in _answers(trajectory, chosen, depth, known, seed, options):
        if not 0 < value < math.inf:
            raise _overflow(predictor, info, window)
        factors[info.name] = float(value)
    return factors


def _overflow(predictor: str, info: TensorInfo, window: Tensor) -> Overflow:
    largest = float(window.abs().max())
    return Overflow(f"predictor {predictor} overflows at tensor {info.name!r}, whose history reaches {largest:.3g}")


def _answers(
    trajectory: Trajectory,
    chosen: Predictor,
    depth: int,
    known: Any,
    seed: int,
    options: dict[str, Any],
    given: Mapping[str, str] | None = None,
) -> Iterator[tuple[TensorInfo, int, Tensor, Any]]:
    """What a predictor says to every tensor of a predicted role: with the place and the window (N, S) asked about."""
    options = chosen.check_options(options)
    if depth < 1:
        raise KnowError(f"depth must be at least 1, got {depth}")
    ratio = math.log10(trajectory.fractions[-1] / trajectory.fractions[-2])
    if depth > MOST / max(ratio, 1e-9):
        raise KnowError(f"depth {depth} stands for more than 10^{MOST} times the data; take a smaller one")
    if depth > 1 and not chosen.depths:
        raise KnowError(f"predictor {chosen.name} has no depth; leave it at 1")
    if len(trajectory.fractions) < chosen.least:
        raise KnowError(f"predictor {chosen.name} takes at least {chosen.least} snapshots")
    models = Models(known)
    tensors, meta = predicted(trajectory, given), trajectory.meta
    size = PIECE if chosen.elementwise else max((meta[name].numel() for name in tensors), default=1)

    @functools.cache
    def whole() -> Tensor:
        return torch.stack([differences_gram(trajectory.window(name)) for name in tensors]).sum(0)

    total = sum(meta[name].numel() for name in tensors)
    bar = tqdm(total=total, desc=chosen.name, unit=" weights", unit_scale=True, disable=None, delay=1, leave=False)
    with bar, contextlib.closing(_windows(trajectory, list(tensors), size, ahead=chosen.elementwise)) as windows:
        for name, start, window in windows:
            shape = tuple(meta[name].shape)
            info = TensorInfo(name, shape, tensors[name], trajectory.fractions, depth, models, seed, whole)
            if chosen.recursive:
                yield info, start, window, _recursive(chosen, window, info, options)
            else:
                yield info, start, window, chosen.function(window, info, **options)
            bar.update(len(window))


def _windows(
    trajectory: Trajectory, tensors: list[str], size: int, *, ahead: bool
) -> Iterator[tuple[str, int, Tensor]]:
    """Windows of at most `size` weights, one after the other: tensor, start, (N, S).

    ahead: read (and hash) the next one while the present one is worked on, unless all are in memory.
    """
    places = [(name, start) for name in tensors for start in range(0, trajectory.meta[name].numel(), size)]
    if not ahead or "states" in vars(trajectory):
        for name, start in places:
            yield name, start, trajectory.window(name, start, start + size)
        return
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[tuple[str, int, Future[Tensor]]] = deque()
        for name, start in places:
            waiting.append((name, start, reader.submit(trajectory.window, name, start, start + size)))
            if len(waiting) > 1:
                name, start, future = waiting.popleft()
                yield name, start, future.result()
        for name, start, future in waiting:
            yield name, start, future.result()


def _recursive(chosen: Predictor, window: Tensor, info: TensorInfo, options: dict[str, Any]) -> Tensor:
    """As `recurse`, with fractions that move along: the next one continues the last ratio (1 -> 1/r)."""
    fractions = info.fractions

    def step(history: Tensor) -> Tensor:
        nonlocal fractions
        answer = chosen.function(history, replace(info, fractions=fractions, depth=1), **options)
        fractions = (*fractions[1:], fractions[-1] ** 2 / fractions[-2])
        return answer

    return recurse(window, step, info.depth)
