"""Fractions of the data, and the nested subsets that they stand for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from know.errors import KnowError, number


def check_fractions(fractions: Sequence[float], count: int | None = None) -> tuple[float, ...]:
    """Fractions of D0 behind the snapshots: rising, within (0, 1], the last one 1; else KnowError."""
    try:
        values = tuple(float(f) for f in fractions)
    except (TypeError, ValueError) as error:
        raise KnowError(
            f"fractions must be numbers, smallest first, such as [0.25, 0.5, 1]; got {fractions!r}"
        ) from error
    shown = ", ".join(f"{f:g}" for f in values)
    if count is not None and len(values) != count:
        raise KnowError(f"{len(values)} fractions ({shown}) for {count} snapshots; give one for each")
    if len(values) < 2:
        raise KnowError(f"a trajectory needs at least 2 snapshots, got fractions ({shown})")
    if not all(math.isfinite(f) and f > 0 for f in values) or any(b <= a for a, b in pairwise(values)):
        raise KnowError(f"fractions ({shown}) must rise from above 0: smallest subset first, full set last")
    if abs(values[-1] - 1) > 1e-9:
        raise KnowError(f"fractions ({shown}) must end at 1, the full set")
    return values


def check_shares(fractions: Sequence[float]) -> list[float]:
    """Shares of the data within (0, 1], in any order; else KnowError."""
    try:
        values = [float(f) for f in fractions]
    except (TypeError, ValueError) as error:
        raise KnowError(f"fractions must be numbers, such as [0.25, 0.5, 1]; got {fractions!r}") from error
    if not values or not all(0 < f <= 1 for f in values):
        raise KnowError(f"fractions must lie above 0 and not above 1; got {fractions!r}")
    return values


def choose_fractions(fractions: Sequence[float] | None, ratio: float, length: int) -> tuple[float, ...]:
    """`fractions`, checked, or `length` of them at r^(S-1), ..., r, 1."""
    if fractions is None:
        number("length", length, whole=True, least=2)
        if not 0 < number("ratio", ratio) < 1:
            raise KnowError(f"ratio must lie between 0 and 1, each subset being that share of the last; got {ratio:g}")
        fractions = [ratio**k for k in reversed(range(length))]
    return check_fractions(fractions)


def nested_subsets(
    n: int, ratio: float = 0.5, length: int = 5, seed: int = 0, *, fractions: Sequence[float] | None = None
) -> list[list[int]]:
    """Indices of nested subsets of n items, smallest first: prefixes of ONE seeded permutation.

    There are S = `length` subsets of 1, r, r^2, ... of the items, or those of `fractions`, in their order. A fraction f
    gives round(f n) indices, and the subset of a smaller fraction lies inside that of a larger one. KnowError if n is
    so small that a subset would be empty, or two would be the same.
    """
    number("n, the number of items,", n, whole=True, least=0)
    generator = torch.Generator().manual_seed(number("seed", seed, whole=True, least=-(2**63)) % 2**64)
    order = torch.randperm(n, generator=generator, device="cpu").tolist()
    shares = check_shares(fractions) if fractions is not None else choose_fractions(None, ratio, length)
    sizes = [round(f * n) for f in shares]
    if not all(sizes) or len(set(sizes)) < len(set(shares)):
        shown = ", ".join(f"{f:g}" for f in shares)
        raise KnowError(
            f"{n} items are too few for the fractions {shown}: subsets of {', '.join(map(str, sizes))} items are empty"
            " or the same; take more data, fewer snapshots or a larger ratio"
        )
    return [order[:size] for size in sizes]
