"""Predictors: from the history of a tensor to its earlier weights. One file each; a file dropped in is registered.

A predictor is a typed function `f(window, tensor, **options) -> Tensor`:

    window   float32 (N, S), the history of all N scalars of one tensor, smallest subset first, theta_0 last
    tensor   what is known of the tensor: name, shape, role, fractions, depth, KNOWN, a random generator (`TensorInfo`)
    options  keyword-only, with defaults; they become suite keys and command-line options
    returns  float32 (N,), the predicted weights

It has the name of its file. A *recursive* predictor answers one step back; `know.predict` pushes the answer on the
history and asks again (paper, section 3). Any other gets the depth in `tensor.depth` and answers at once.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from know.errors import KnowError, unknown
from know.known import Known
from know.seeds import stream
from know.trajectory import PREDICTED, State, Trajectory, roles


@dataclass(frozen=True)
class TensorInfo:
    """What a predictor may know of the tensor besides its window."""

    name: str
    shape: tuple[int, ...]
    role: str
    fractions: tuple[float, ...]
    depth: int
    known: Callable[[], Known]
    seed: int

    def generator(self) -> torch.Generator:
        """Random numbers that belong to this tensor, the trajectory and the arm."""
        return torch.Generator().manual_seed(stream(self.seed, self.name))

    def known_answer(self, window: Tensor) -> Tensor:
        """KNOWN's answer at this depth, float32 (N,): what controls are measured against."""
        return recurse(window, lambda history: history[:, -1] + self.known().residual(history, self.role), self.depth)


@dataclass(frozen=True)
class Predictor:
    name: str
    function: Callable[..., Tensor]
    summary: str
    recursive: bool
    depths: tuple[int, ...]
    options: dict[str, Any]

    def check_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options with their defaults; KnowError for an unknown name or a value of another type."""
        for key, value in given.items():
            if key not in self.options:
                raise unknown(f"option of predictor {self.name}", key, self.options or ["(it has none)"])
            kind = type(self.options[key])
            allowed = (int, float) if kind is float else (kind,)
            if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
                raise KnowError(f"option {key} of predictor {self.name} takes a {kind.__name__}, got {value!r}")
        return {**self.options, **given}


def predictor(*, recursive: bool = True, depths: tuple[int, ...] = (1,)) -> Callable:
    """Register the function as the predictor named after its file.

    recursive: see the module's docstring. depths: where a suite that takes all predictors puts it in its tables.
    """

    def register(function: Callable[..., Tensor]) -> Predictor:
        keywords = inspect.signature(function).parameters.values()
        options = {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}
        if any(default is inspect.Parameter.empty for default in options.values()):
            raise TypeError(f"{function.__module__}.{function.__name__}: every option needs a default")
        name = function.__module__.rpartition(".")[2]
        summary = inspect.getdoc(function).splitlines()[0]
        return Predictor(name, function, summary, recursive, depths, options)

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
        raise KnowError(f"{module.__file__} must define exactly one function with @predictor(), found {len(found)}")
    return found[0]


def recurse(window: Tensor, step: Callable[[Tensor], Tensor], depth: int) -> Tensor:
    """Apply `step` depth times, each time with its answer pushed on the history and the oldest dropped: (N,)."""
    for _ in range(depth):
        window = torch.cat([window[:, 1:], step(window)[:, None]], dim=1)
    return window[:, -1]


def predict(
    trajectory: Trajectory,
    predictor: str = "known",
    depth: int = 1,
    *,
    known: Known | Path | str | None = None,
    seed: int = 0,
    **options: Any,
) -> State:
    """Weights `depth` steps before theta_0: a full state_dict in the names, shapes and dtypes of theta_0.

    predictor: a name from `know.predictors.names()`; options: its keyword options.
    depth: recursions; at rate r, depth n stands for r^-n times the data.
    known: the KNOWN to ask, or its file; default the one the package ships.
    seed: for predictors that draw random numbers.

    Normalisation parameters and buffers are those of theta_0. Raises KnowError for a wrong name, option or depth, a
    history of another length than KNOWN's, missing or mis-shaped tensors, and values that are not finite.
    """
    chosen = get(predictor)
    options = chosen.check_options(options)
    if depth < 1:
        raise KnowError(f"depth must be at least 1, got {depth}")

    @functools.cache
    def ask() -> Known:
        if isinstance(known, Known):
            return known
        return Known.pretrained() if known is None else Known.load(known)

    theta_0 = trajectory.theta_0
    answer: State = {}
    for name, role in tqdm(roles(theta_0).items(), desc=predictor, unit="tensor", disable=None, delay=1, leave=False):
        tensor = theta_0[name]
        if role not in PREDICTED:
            answer[name] = tensor.clone()
            continue
        info = TensorInfo(name, tuple(tensor.shape), role, trajectory.fractions, depth, ask, seed)
        window = trajectory.window(name)
        if chosen.recursive:
            values = _recursive(chosen, window, info, options)
        else:
            values = chosen.function(window, info, **options)
        answer[name] = values.reshape(tensor.shape).to(tensor.dtype)
        if not bool(answer[name].isfinite().all()):
            largest = float(window.abs().max())
            raise KnowError(f"predictor {predictor} overflows at tensor {name!r}, whose history reaches {largest:.3g}")
    return answer


def _recursive(chosen: Predictor, window: Tensor, info: TensorInfo, options: dict[str, Any]) -> Tensor:
    """As `recurse`, with fractions that move along: the next one continues the last ratio (1 -> 1/r)."""
    fractions = info.fractions

    def step(history: Tensor) -> Tensor:
        nonlocal fractions
        answer = chosen.function(history, replace(info, fractions=fractions, depth=1), **options)
        fractions = (*fractions[1:], fractions[-1] ** 2 / fractions[-2])
        return answer

    return recurse(window, step, info.depth)
