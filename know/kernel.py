"""KNOWN's prediction of large networks on the CPU: the same function as `KnownNet`, compiled.

`steps` folds the matrices of a network that follow one another without anything between them, cuts the windows into
pieces for the threads, and asks the plain module wherever the compiled code cannot be trusted. numba is optional and
slow to import: `know.compiled` is imported when it is first needed.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

    from know.known import KnownNet, Stream

BOUND = 1e3
"""Windows with a larger value go to the plain module."""
PIECE = 1 << 13
"""Weights per task of a thread."""


def available() -> bool:
    """Whether numba can be imported. Imports it."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


@torch.no_grad()
def steps(net: KnownNet, window: Tensor) -> Tensor:
    """`net(window)`: float32 (N, S) in any strides to float32 (N,), with as many threads as torch uses.

    An answer depends neither on the number of threads nor on the other windows. Where a window exceeds `BOUND` or the
    answer before tanh is not finite, the plain module is asked, so overflow and NaN come out as they do there.
    """
    from know import compiled

    if not all(bool(parameter.abs().max() <= BOUND) for parameter in net.parameters()):
        return _plain(net, window)  # no bound on what happens between the layers
    values, differences = _pack(net.values), _pack(net.differences)
    last, bias = _array(net.out.weight).reshape(2, 32).astype(np.float32), np.float32(net.out.bias.item())
    result = torch.empty(len(window))
    inputs, outputs, threads = window.detach().numpy(), result.numpy(), torch.get_num_threads()

    def run(start: int) -> None:
        piece = slice(start, start + PIECE)
        compiled.run(outputs[piece], inputs[piece], values, differences, last, bias, np.float32(BOUND))

    starts = range(0, len(window), PIECE)
    if threads == 1 or len(starts) < 2:
        for start in starts:
            run(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, starts))
    if not (math.isfinite(outputs.min(initial=0)) and math.isfinite(outputs.max(initial=0))):
        lost = ~result.isfinite()
        result[lost] = _plain(net, window[lost])
        result[~lost] = result[~lost].tanh()
        return result
    return result.tanh_()


def _plain(net: KnownNet, window: Tensor) -> Tensor:
    return torch.cat([net(part) for part in window.split(16384)])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _affine(layer: nn.Linear) -> np.ndarray:
    """[W, b], float64 (outputs, inputs + 1)."""
    return np.concatenate([_array(layer.weight), _array(layer.bias)[:, None]], axis=1)


def _pack(stream: Stream) -> tuple[np.ndarray, ...]:
    """squeeze, first, amplitude, rate, last, as `know.compiled.stream` takes them: float32 (rows / 4, 4, columns + 1).

    squeeze follows first, and last follows shift, with nothing but sums between: their products are layers of their
    own, taken in float64. Columns are padded with zeros to a multiple of 4.
    """
    first, last, shift = _affine(stream.first), _affine(stream.last), _affine(stream.shift)
    squeeze = _affine(stream.squeeze)
    squeeze = squeeze[:, :-1] @ first + np.eye(1, first.shape[1], first.shape[1] - 1) * squeeze[:, -1:]
    added = last[:, :-1] @ shift  # (32, 8 + 1)
    last = np.concatenate([last[:, :-1], added[:, :-1], added[:, -1:] + last[:, -1:]], axis=1)
    packed = []
    for layer in (squeeze, first, _affine(stream.amplitude), _affine(stream.rate), last):
        padding = np.zeros((len(layer), -(layer.shape[1] - 1) % 4))
        padded = np.concatenate([layer[:, :-1], padding, layer[:, -1:]], axis=1)
        packed.append(padded.reshape(-1, 4, padded.shape[1]).astype(np.float32))
    return tuple(packed)
