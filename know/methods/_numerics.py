"""Formulas that several methods share."""

from __future__ import annotations

import torch
from torch import Tensor

from know.errors import number

FLAT = 1e-3
"""A smaller share than this is no sign of a limit: in `rre` the share by which the movement gets shorter, in both
vector methods the sum of the coefficients relative to their size. Rounding of float32 snapshots stays below it."""


def extrapolate(window: Tensor, x: Tensor, at: Tensor) -> Tensor:
    """Value, float32 (N,), at `at` of the least-squares line through windows (N, S) over x, float64 (S,)."""
    centred = x - x.mean()
    weights = 1 / len(x) + centred / centred.square().sum() * (at - x.mean())  # (S,), they add up to 1
    # around the last value, so that float32 is enough
    return window[:, -1] + (window - window[:, -1:]) @ weights.float()


def combine(window: Tensor, weights: Tensor) -> Tensor:
    """sum_j weights_j snapshot_{j+1}, float32 (N,), of windows (N, S) and weights, float64 (S - 1,), whose sum is 1."""
    return window[:, -1] + (window[:, 1:] - window[:, -1:]) @ weights.float()


def ridge(gram: Tensor, relative: float, size: int) -> Tensor:
    """A multiple of the identity, float64 (size, size): `relative` times the mean square of a Gram matrix.

    At least 1e-12 times, so that snapshots that are alike leave no singular matrix. KnowError for less than 0.
    """
    share = max(number("regularisation", relative, least=0), 1e-12)
    return share * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(size, dtype=torch.float64)
