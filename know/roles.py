"""What a tensor is for a prediction: a kernel, a matrix, a bias, normalisation, or a buffer."""

from __future__ import annotations

import fnmatch
import typing
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from know.errors import KnowError, unknown

Role = Literal["conv", "fc", "bias", "norm", "buffer", "skip"]
PREDICTED: tuple[Role, ...] = ("conv", "fc", "bias")
"""Roles that methods predict. The authors' script predicts no normalisation parameter, and neither do we."""


def roles(
    state: Mapping[str, Tensor], given: Mapping[str, str] | None = None, *, buffers: Sequence[str] = ()
) -> dict[str, Role]:
    """Role of every tensor by shape and name: the paper's rule, for any architecture.

    conv: kernels of 3x3. fc: every other tensor with two axes or more (linear, 1x1 and 7x7 kernels, embeddings).
    norm: the 1-D weight of a layer without a matrix, with its bias. bias: other 1-D tensors. buffer: integers, running
    statistics, single numbers, and those named in `buffers`.

    given: pattern of names (as in a shell: head.*) to role, instead of the rule; "skip" leaves a tensor alone. The last
    pattern that fits counts. KnowError for a pattern that fits no tensor, and for a tensor that cannot be predicted.
    """
    role_of: dict[str, Role] = {}
    for name, tensor in state.items():
        layer, _, attribute = name.rpartition(".")
        weight = state.get(f"{layer}.weight" if layer else "weight")
        statistics = name in buffers or attribute in ("running_mean", "running_var")
        if not tensor.is_floating_point() or tensor.ndim == 0 or statistics:
            role_of[name] = "buffer"
        elif tensor.ndim == 4 and tuple(tensor.shape[2:]) == (3, 3):
            role_of[name] = "conv"
        elif tensor.ndim >= 2:
            role_of[name] = "fc"
        elif attribute in ("weight", "bias") and weight is not None and weight.ndim == 1:
            role_of[name] = "norm"
        else:
            role_of[name] = "bias"
    for pattern, role in (given or {}).items():
        if role not in typing.get_args(Role):
            raise unknown(f"role of {pattern!r}", role, typing.get_args(Role))
        names = fnmatch.filter(role_of, pattern)
        if not names:
            raise KnowError(f"no tensor fits the pattern {pattern!r}; --dry-run lists them")
        for name in names:
            if role in PREDICTED and not state[name].is_floating_point():
                raise KnowError(f"tensor {name!r} holds {state[name].dtype}, which no method takes")
            role_of[name] = role
    return role_of


def only_predicted(role_of: Mapping[str, Role]) -> dict[str, Role]:
    """Those of the names and roles that methods predict."""
    return {name: role for name, role in role_of.items() if role in PREDICTED}
