"""Methods: from the history of a tensor to its earlier weights. Each is one file; a file that is added is registered.

A method is a typed function `f(window, tensor, **options) -> Tensor`:

    window   float32 (N, S), the history of all N scalars of one tensor, smallest subset first, theta_0 last
    tensor   what is known of the tensor: name, shape, role, fractions, depth, models, a random generator (`TensorInfo`)
    options  keyword-only, with defaults; they become keys of a suite and options on the command line
    returns  float32 (N,), the predicted weights

A method has the name of its file. A *recursive* method answers one step back, and `know.predict` pushes the answer on
the history and asks again (paper, section 3). Any other method gets the depth in `tensor.depth` and answers at once.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from know.errors import KnowError, unknown
from know.keras import LENGTH, OUTSIDE
from know.keras import missing as missing_here
from know.known import Known, Models
from know.roles import Role
from know.seeds import stream

Group = Literal["known", "prediction", "average", "control"]
"""What a method is in the tables: KNOWN itself, another direct weight prediction, an average, or a control."""
Hyper = Literal["known", "released"]
"""The network that a control is measured against: the one meta-trained here, or the authors'."""
Scope = Literal["tensor", "model"]
"""What a vector method sees as one vector."""


@dataclass(frozen=True)
class TensorInfo:
    """What a method may know of the tensor besides its window."""

    name: str
    shape: tuple[int, ...]
    role: Role
    fractions: tuple[float, ...]
    depth: int
    models: Models
    seed: int
    whole: Callable[[], Tensor]
    """Answers the Gram matrix, float64 (S - 1, S - 1), of the differences of the whole network, oldest first: the sum
    of `differences_gram` over all predicted tensors."""
    reference: Callable[[str], Tensor]
    """Answers the same tensor, float32 (N,), in further weights that are kept with the trajectory under a name, such as
    "scratch". KnowError where there are none, or where the tensor has another shape in them."""

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
class Method:
    """A registered method; `method` says what each field means."""

    name: str
    function: Callable[..., Tensor]
    reference: str
    group: Group
    recursive: bool
    depths: tuple[int, ...]
    least: int
    needs: str | None
    elementwise: bool
    options: dict[str, Any]
    """Keyword options with their defaults."""
    choices: dict[str, tuple[str, ...]]
    """Values that an option may take, where it is a Literal."""

    @property
    def documentation(self) -> str:
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        return (self.documentation or self.name).splitlines()[0]

    def check_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options with their defaults; KnowError for an unknown name or a value of another type."""
        return check_options(f"method {self.name}", self.options, self.choices, given)

    def missing(self, options: dict[str, Any], length: int) -> str | None:
        """Why the method cannot be asked here, with these options, of a history of S = `length`; None if it can."""
        model = self.needs or options.get("of")
        if length < self.least:
            return f"it takes at least {self.least} snapshots"
        if model not in OUTSIDE:
            return None
        return missing_here(model) or (f"the released networks take {LENGTH} snapshots" if length != LENGTH else None)


def method(
    *,
    reference: str,
    group: Group = "prediction",
    recursive: bool = True,
    depths: tuple[int, ...] = (1,),
    least: int = 2,
    needs: str | None = None,
    elementwise: bool = False,
) -> Callable[[Callable[..., Tensor]], Method]:
    """Register the function as the method named after its file.

    reference: where the method comes from, for the tables.
    group: what it is in the tables.
    recursive: whether it answers one step back and is asked again for more (see the module's docstring).
    depths: recursions in a suite that takes all methods; () if the method has no depth, such as a limit.
    least: the fewest snapshots that it takes.
    needs: the model that it asks beside that of the prediction: one from outside the project ("released", "wnn",
        "wnn_plus"), which may not be there, or one that ships ("shipped").
    elementwise: whether its answer to a weight depends on that weight's history alone. A large tensor is then asked
        about in pieces, in memory that does not grow with the model; otherwise the whole tensor is one window.
    """

    def register(function: Callable[..., Tensor]) -> Method:
        options, choices = options_of(function)
        return Method(
            name=function.__module__.rpartition(".")[2],
            function=function,
            reference=reference,
            group=group,
            recursive=recursive,
            depths=depths,
            least=least,
            needs=needs,
            elementwise=elementwise,
            options=options,
            choices=choices,
        )

    return register


def options_of(function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """Keyword-only arguments of a function with their defaults, and the values of those that are Literals."""
    keywords = inspect.signature(function).parameters.values()
    options = {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}
    if any(default is inspect.Parameter.empty for default in options.values()):
        raise TypeError(f"{function.__module__}.{function.__name__}: every option needs a default")
    hints = typing.get_type_hints(function)
    return options, {
        key: typing.get_args(hints[key]) for key in options if typing.get_origin(hints.get(key)) is Literal
    }


def check_options(
    owner: str, options: dict[str, Any], choices: dict[str, tuple[str, ...]], given: dict[str, Any]
) -> dict[str, Any]:
    """`given` over the defaults in `options`; KnowError for an unknown name or a value of another type.

    owner: whose options they are, for the error.
    """
    for key, value in given.items():
        if key not in options:
            raise unknown(f"option of {owner}", key, options or ["(it has none)"])
        kind = type(options[key])
        allowed = (int, float) if kind is float else (kind,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise KnowError(f"option {key} of {owner} takes a {kind.__name__}, got {value!r}")
        if key in choices and value not in choices[key]:
            raise unknown(f"option {key} of {owner}:", value, choices[key])
        if kind in (int, float) and not abs(value) < 2**63:
            raise KnowError(f"option {key} of {owner} is too large or no number")
    return {**options, **given}


def names() -> list[str]:
    """Names of all methods: the files of this folder. Imports none of them."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


@functools.cache
def get(name: str) -> Method:
    """The method of that name; KnowError suggests the nearest one."""
    if name not in names():
        raise unknown("method", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    methods = [value for value in vars(module).values() if isinstance(value, Method)]
    if len(methods) != 1:
        raise KnowError(f"{module.__file__} must define exactly one function with @method(...), it has {len(methods)}")
    return methods[0]


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
