"""From a trajectory to earlier weights: a method is asked tensor by tensor, and a large tensor in pieces."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from know.checkpoints import State
from know.errors import KnowError, number
from know.known import Known, Models
from know.methods import Method, TensorInfo, differences_gram, get, recurse
from know.roles import PREDICTED, Role, only_predicted
from know.trajectory import LARGE, Trajectory, finite

PIECE = LARGE
"""Weights that an elementwise method is asked about at once: 1 MB of each snapshot, which fits into the cache."""
SMALL = 1 << 15
"""Windows of fewer weights are computed on one thread; more would only wait for each other."""
MOST = 100
"""Decimal digits of the factor on the data that a depth may stand for; float64 has no numbers beyond 308."""


class Overflow(KnowError):
    """A method's answer is not finite although the history is."""


@dataclass(frozen=True)
class Piece:
    """The answer of a method to a run of consecutive weights of one tensor."""

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
    method: str = "known",
    depth: int = 1,
    *,
    known: Known | Models | Path | str | None = None,
    seed: int = 0,
    scale: float = 1.0,
    roles: Mapping[str, str] | None = None,
    **options: Any,
) -> State:
    """Weights `depth` steps from theta_0 against the direction of forgetting.

    They are a full state_dict, in the names, shapes and dtypes of theta_0.

    method: a name from `know.methods.names()`.
    options: keyword options of the method.
    depth: recursions; at the ratio r, depth n stands for r^-n times the data.
    known: the KNOWN to ask, its file, or the folder of a meta-training; by default the one that the package ships.
    seed: for methods that draw random numbers.
    scale: length of the step; 1 is the method's own length, 0 gives theta_0.
    roles: pattern of names to role, where the rule of `know.roles.roles` is not wanted; "skip" leaves a tensor alone.

    Normalisation parameters and buffers are those of theta_0, and so are tensors that are bit for bit the same in all
    snapshots, and weights that are 0 in all of them. Steps are computed in float32. Raises KnowError for a wrong name,
    option or depth, a history of another length than KNOWN's, missing or mis-shaped tensors, a history in which nothing
    moves, and values that are not finite (`Overflow` where only the answer is not).
    """
    asked = pieces(trajectory, method, depth, known=known, seed=seed, scale=scale, roles=roles, **options)
    parts: dict[str, list[Tensor]] = {}
    for piece in asked:
        parts.setdefault(piece.tensor, []).append(piece.answer)
    last, answer = trajectory.checkpoints[-1], {}
    for name, tensor in trajectory.meta.items():
        answer[name] = torch.cat(parts.pop(name)).view(tensor.shape) if name in parts else last.whole(name)
    trajectory.verify()
    return answer | {name: answer[other] for name, other in last.tied.items()}


def pieces(
    trajectory: Trajectory,
    method: str = "known",
    depth: int = 1,
    *,
    known: Known | Models | Path | str | None = None,
    seed: int = 0,
    scale: float = 1.0,
    roles: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[Piece]:
    """As `predict`, run by run in the order of theta_0's file.

    An elementwise method is asked about a large tensor in pieces, any other method about all of it at once. Tensors
    that are not predicted, or that share their values with another one, are not among the pieces. The caller checks
    the hashes (`Trajectory.verify`) when everything was read.
    """
    chosen = get(str(method))
    if not isinstance(trajectory, Trajectory):
        raise KnowError(f"trajectory must be a Trajectory, as Trajectory.load gives it, got {trajectory!r}")
    if not math.isfinite(number("scale", scale)):
        raise KnowError(f"the scale of the step must be a number, got {scale:g}")
    number("seed", seed, whole=True)
    asked = 0
    for info, start, window, values in _answers(trajectory, chosen, depth, known, seed, options, roles):
        theta_0, dtype = window[:, -1], trajectory.meta[info.name].dtype
        moved = values if scale == 1 else theta_0 + scale * (values - theta_0)
        zero = theta_0 == 0
        if zero.any() and (still := zero & (window == 0).all(1)).any():
            moved = torch.where(still, theta_0, moved)  # pruned weights stay pruned
        if dtype == torch.float64:  # the step is float32, and is added to what theta_0 really is
            exact = trajectory.checkpoints[-1].read(info.name, start, start + len(window))
            moved = exact + (moved - theta_0).double()
        piece = Piece(info.name, info.role, start, theta_0, moved.to(dtype))
        if not finite(piece.answer.float()):
            with trajectory.hashes_first():
                raise overflow(chosen.name, info, window)
        asked += len(piece.answer)
        yield piece
    if not asked:
        if predicted(trajectory, roles):
            raise KnowError("all snapshots hold the same weights: nothing was forgotten, so nothing can be predicted")
        raise KnowError("0 weights would be predicted: no tensor has a role that is predicted; --dry-run lists them")


def predicted(trajectory: Trajectory, given: Mapping[str, str] | None = None) -> dict[str, Role]:
    """Names and roles of the tensors that methods are asked about where they move; given: as `roles` of `predict`.

    KnowError if one of two names for the same values is to be left alone, and the other one not.
    """
    tied, meta, roles = trajectory.checkpoints[-1].tied, trajectory.meta, trajectory.roles(given)
    for one, other in tied.items() if given else ():
        if (roles[one] in PREDICTED) != (roles[other] in PREDICTED):
            raise KnowError(f"{one!r} and {other!r} are the same values under two names; give both the same role")
    return {name: role for name, role in only_predicted(roles).items() if name not in tied and meta[name].numel()}


def overflow(method: str, info: TensorInfo, window: Tensor) -> Overflow:
    """The error of a method whose answer to a tensor with this window (N, S) is not finite."""
    largest = float(window.abs().max())
    return Overflow(
        f"method {method} overflows at tensor {info.name!r}, whose history reaches {largest:.3g}; --skip {info.name!r}"
        " leaves it alone"
    )


def _answers(
    trajectory: Trajectory,
    chosen: Method,
    depth: int,
    known: Any,
    seed: int,
    options: dict[str, Any],
    given: Mapping[str, str] | None = None,
) -> Iterator[tuple[TensorInfo, int, Tensor, Tensor]]:
    """The answers of a method to every predicted tensor, each with its place and the window (N, S) asked about."""
    options = chosen.check_options(options)
    check_asked(trajectory, chosen, depth)
    total = sum(trajectory.meta[name].numel() for name in predicted(trajectory, given))
    bar = tqdm(total=total, desc=chosen.name, unit=" weights", unit_scale=True, disable=None, delay=1, leave=False)
    asked = _asked(trajectory, depth, Models(known), seed, given, pieces=chosen.elementwise)
    with bar, contextlib.closing(asked) as windows:
        for info, start, window in windows:
            with standard_torch(threads=1 if len(window) < SMALL else None):
                if chosen.recursive:
                    values = _recursive(chosen, window, info, options)
                else:
                    values = chosen.function(window, info, **options)
            yield info, start, window, values
            bar.update(len(window))


@contextlib.contextmanager
def standard_torch(threads: int | None = None) -> Iterator[None]:
    """Compute as torch does at its start, whatever default dtype and device the user has set; leave both as they are.

    threads: for the time of the block; None leaves torch's number.
    """
    dtype, before = torch.get_default_dtype(), torch.get_num_threads()
    try:
        if threads and threads != before:
            torch.set_num_threads(threads)
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
        with torch.device("cpu"):
            yield
    finally:
        if dtype != torch.float32:
            torch.set_default_dtype(dtype)
        if threads and threads != before:
            torch.set_num_threads(before)


def windows(trajectory: Trajectory, depth: int, models: Models, seed: int) -> Iterator[tuple[TensorInfo, Tensor]]:
    """Every predicted tensor, whole, as a method sees it: with its window (N, S)."""
    check_depth(trajectory, depth)
    for info, _, window in _asked(trajectory, depth, models, seed, None, pieces=False):
        yield info, window


def check_asked(trajectory: Trajectory, chosen: Method, depth: int) -> None:
    """KnowError if a method cannot be asked about this trajectory at this depth."""
    check_depth(trajectory, depth)
    if depth > 1 and not chosen.depths:
        raise KnowError(f"method {chosen.name} has no depth; leave it at 1")
    if len(trajectory.fractions) < chosen.least:
        raise KnowError(f"method {chosen.name} takes at least {chosen.least} snapshots")


def check_depth(trajectory: Trajectory, depth: int) -> None:
    number("depth", depth, whole=True, least=1)
    ratio = math.log10(trajectory.fractions[-1] / trajectory.fractions[-2])
    if depth > MOST / max(ratio, 1e-9):
        raise KnowError(f"depth {depth} stands for more than 10^{MOST} times the data; take a smaller one")


def _asked(
    trajectory: Trajectory, depth: int, models: Models, seed: int, given: Mapping[str, str] | None, *, pieces: bool
) -> Iterator[tuple[TensorInfo, int, Tensor]]:
    """Every predicted tensor, in pieces or whole: what a method may know of it, the place, and the window."""
    tensors, meta = predicted(trajectory, given), trajectory.meta
    size = PIECE if pieces else max((meta[name].numel() for name in tensors), default=1)

    @functools.cache
    def whole() -> Tensor:
        moving = [name for name in tensors if trajectory.moves(name)]
        return torch.stack([differences_gram(trajectory.window(name)) for name in moving]).sum(0)

    kept = functools.cache(trajectory.reference)  # read once for all tensors

    def reference(name: str, weights: str) -> Tensor:
        if weights not in trajectory.manifest.get("references", {}):
            raise KnowError(
                f"the trajectory keeps no reference {weights!r}; `know.forget` keeps it in a new folder where it is"
                f" given as references={{{weights!r}: state_dict}}, and the prediction is then asked of that folder"
            )
        found, shape = kept(weights).get(name), tuple(meta[name].shape)
        if found is None or tuple(found.shape) != shape:
            what = "lacks this tensor" if found is None else f"has shape {tuple(found.shape)}"
            raise KnowError(f"tensor {name!r}: theta_0 has shape {shape}, and the reference {weights!r} {what}")
        return found.flatten().float()

    with contextlib.closing(_windows(trajectory, list(tensors), size, ahead=pieces)) as runs:
        for name, start, window in runs:
            facts = (name, tuple(meta[name].shape), tensors[name], trajectory.fractions)
            yield TensorInfo(*facts, depth, models, seed, whole, functools.partial(reference, name)), start, window


def _windows(
    trajectory: Trajectory, tensors: list[str], size: int, *, ahead: bool
) -> Iterator[tuple[str, int, Tensor]]:
    """Windows of at most `size` weights, one after the other: tensor, start, (N, S).

    A tensor that is the same in all snapshots has none.
    ahead: read and hash the next window while the caller works on the present one, unless all are in memory.
    """
    places = ((name, start) for name in tensors for start in range(0, trajectory.meta[name].numel(), size))
    still: set[str] = set()

    def read(name: str, start: int) -> Tensor | None:
        if name in still:
            return None
        window = trajectory.values(name, start, start + size)
        alike = len({checkpoint.meta[name].dtype for checkpoint in trajectory.checkpoints}) == 1
        if start == 0 and not (alike and _differs(window)) and not trajectory.moves(name):
            still.add(name)
            return None
        trajectory.demand_finite(name, window)
        return window

    if not ahead or "states" in vars(trajectory):
        for name, start in places:
            if (window := read(name, start)) is not None:
                yield name, start, window
        return
    with ThreadPoolExecutor(1) as reader:  # one thread, so that windows are read in order
        waiting: deque[tuple[str, int, Future[Tensor | None]]] = deque()
        for name, start in itertools.chain(places, [(None, 0)]):
            if name is not None:
                waiting.append((name, start, reader.submit(read, name, start)))
            while len(waiting) > (name is not None):
                place = waiting.popleft()
                if (window := place[2].result()) is not None:
                    yield place[0], place[1], window


def _differs(window: Tensor) -> bool:
    """Whether the snapshots of a window (N, S) surely differ; in what is not finite they may or may not."""
    return finite(window) and not bool((window == window[:, -1:]).all())


def _recursive(chosen: Method, window: Tensor, info: TensorInfo, options: dict[str, Any]) -> Tensor:
    """As `recurse`, with fractions that move along: the next one continues the last ratio (1 -> 1/r)."""
    fractions = info.fractions

    def step(history: Tensor) -> Tensor:
        nonlocal fractions
        answer = chosen.function(history, replace(info, fractions=fractions, depth=1), **options)
        fractions = (*fractions[1:], fractions[-1] ** 2 / fractions[-2])
        return answer

    return recurse(window, step, info.depth)
