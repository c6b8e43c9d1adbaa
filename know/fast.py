"""KNOWN's prediction of large networks on the CPU: the same function as `KnownNet`, compiled by numba.

`steps` multiplies out the matrices of a network that follow one another without anything between them, cuts the windows
into pieces for the threads, and asks the plain module wherever the compiled code cannot be trusted.

In the compiled code a block of `BLOCK` weights goes through the whole network at once and never leaves the processor's
nearest caches. Row k of an array is unit k, and its columns are the weights of the block. Every column is computed by
the same instructions whatever the others are, so an answer depends neither on how windows are cut nor on the thread.

numba is optional and slow to import, and this module imports it at once: `know.known` imports this module when a large
window is asked about, and does without it where numba is not installed. The first import compiles for a few seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from numpy import float32, int32
from torch import Tensor, nn

BOUND = 1e3
"""Windows with a larger value go to the plain module."""
PIECE = 1 << 13
"""Weights per task of a thread."""
BLOCK = 256  # 64 takes a third longer: loops over it are too short beside what surrounds them
LOG2_E, LN_2_HIGH, LN_2_LOW = float32(1.44269504088896341), float32(0.693359375), float32(-2.12194440e-4)
"""ln 2 in two parts (Cody and Waite): multiples of the first are exact."""
E2, E3, E4, E5, E6, E7 = map(
    float32, (5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
)
"""exp(t) = 1 + t + t^2 (E2 + E3 t + ...) for |t| <= ln 2 / 2, to half a unit in the last place (Cephes, expf)."""


@torch.no_grad()
def steps(net: nn.Module, window: Tensor) -> Tensor:
    """`net(window)`: float32 (N, S) in any strides to float32 (N,), with as many threads as torch uses.

    An answer depends neither on the number of threads nor on the other windows. Where a window exceeds `BOUND` or the
    answer before tanh is not finite, the plain module is asked, so overflow and NaN come out as they do there.
    """
    if not all(bool(parameter.abs().max() <= BOUND) for parameter in net.parameters()):
        return _plain(net, window)  # no bound on what happens between the layers
    values, differences = _pack(net.values), _pack(net.differences)
    last, bias = _array(net.out.weight).reshape(2, 32).astype(np.float32), np.float32(net.out.bias.item())
    result = torch.empty(len(window), dtype=torch.float32, device="cpu")
    inputs, outputs, threads = window.detach().numpy(), result.numpy(), torch.get_num_threads()

    def run(start: int) -> None:
        piece = slice(start, start + PIECE)
        _answer(outputs[piece], inputs[piece], values, differences, last, bias, np.float32(BOUND))

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


def _plain(net: nn.Module, window: Tensor) -> Tensor:
    return torch.cat([net(part) for part in window.split(16384)])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _affine(layer: nn.Linear) -> np.ndarray:
    """[W, b], float64 (outputs, inputs + 1)."""
    return np.concatenate([_array(layer.weight), _array(layer.bias)[:, None]], axis=1)


def _pack(stream: nn.Module) -> tuple[np.ndarray, ...]:
    """squeeze, first, amplitude, rate, last, as `_stream` takes them: float32 (rows / 4, 4, columns + 1).

    squeeze follows first, and last follows shift, with nothing but sums between: their products, taken in float64, are
    layers of their own. Columns are padded with zeros to a multiple of 4.
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


def _jit(*signature: str) -> Callable[[Callable], Callable]:
    """Compile to machine code that is kept in __pycache__, or not kept where no folder can be written."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}}

    def compile_(function: Callable) -> Callable:
        try:
            return numba.njit(*signature, cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(*signature, **options)(function)

    return compile_


@_jit()
def _linear4(y, i, weights, x):
    """y[i : i + 4] = W x + b, with weights (4, columns + 1) = [W, b] and columns, rows of x, a multiple of 4.

    16 weights at a time stay in registers, so that 4 reads of x and 4 of y serve 16 multiply-adds.
    """
    columns = weights.shape[1] - 1
    p, q, r, s = weights[0, columns], weights[1, columns], weights[2, columns], weights[3, columns]
    for j in range(0, columns, 4):
        p0, p1, p2, p3 = weights[0, j], weights[0, j + 1], weights[0, j + 2], weights[0, j + 3]
        q0, q1, q2, q3 = weights[1, j], weights[1, j + 1], weights[1, j + 2], weights[1, j + 3]
        r0, r1, r2, r3 = weights[2, j], weights[2, j + 1], weights[2, j + 2], weights[2, j + 3]
        s0, s1, s2, s3 = weights[3, j], weights[3, j + 1], weights[3, j + 2], weights[3, j + 3]
        for b in range(BLOCK):
            x0, x1, x2, x3 = x[j, b], x[j + 1, b], x[j + 2, b], x[j + 3, b]
            y[i, b] = (y[i, b] if j else p) + p0 * x0 + p1 * x1 + p2 * x2 + p3 * x3
            y[i + 1, b] = (y[i + 1, b] if j else q) + q0 * x0 + q1 * x1 + q2 * x2 + q3 * x3
            y[i + 2, b] = (y[i + 2, b] if j else r) + r0 * x0 + r1 * x1 + r2 * x2 + r3 * x3
            y[i + 3, b] = (y[i + 3, b] if j else s) + s0 * x0 + s1 * x1 + s2 * x2 + s3 * x3


@_jit()
def _stream(answer, x, layers, out, g, h, u, a, y, bits):
    """Add a stream's part of the last dot product to answer (BLOCK,); x (inputs, BLOCK), layers as `_pack` gives them.

    g (72, BLOCK): 64 gated units, then the 8 of the squeeze. u, a (4, BLOCK), y (32, BLOCK), bits: work space.
    """
    squeeze, first, amplitude, rate, last = layers
    powers = bits.view(np.float32)
    for k in range(2):
        _linear4(h, 4 * k, squeeze[k], x)
    for i in range(8):
        for b in range(BLOCK):
            h[i, b] = g[64 + i, b] = max(h[i, b], float32(0))
    for k in range(16):
        _linear4(u, 0, first[k], x)
        _linear4(a, 0, rate[k], h)
        for i in range(4):
            for b in range(BLOCK):
                u[i, b] *= a[i, b]
        _linear4(a, 0, amplitude[k], h)
        for i in range(4):
            for b in range(BLOCK):  # exp(t) = 2^m exp(t - m ln 2); from 88.4 on 2^m is infinite, and so is the answer
                t = min(max(u[i, b], float32(-87)), float32(89))
                m = np.floor(t * LOG2_E + float32(0.5))
                bits[b] = (int32(m) + int32(127)) << int32(23)
                t = t - m * LN_2_HIGH
                t = t - m * LN_2_LOW
                e = ((((E7 * t + E6) * t + E5) * t + E4) * t + E3) * t + E2
                g[4 * k + i, b] = a[i, b] * (e * (t * t) + t + float32(1))
            for b in range(BLOCK):
                g[4 * k + i, b] *= powers[b]
    for k in range(8):
        _linear4(y, 4 * k, last[k], g)
    for i in range(32):
        for b in range(BLOCK):
            answer[b] += out[i] * max(y[i, b], float32(0.3) * y[i, b])


_LAYERS = "UniTuple(float32[:, :, ::1], 5)"


@_jit(f"void(float32[::1], float32[:, :], {_LAYERS}, {_LAYERS}, float32[:, ::1], float32, float32)")
def _answer(result, window, values, differences, out, out_bias, bound):
    """The answers before tanh of window (N, S) into result (N,); NaN where the window is not within +-bound.

    values, differences: layers of the streams; out (2, 32).
    """
    count, length = window.shape
    x = np.zeros((values[0].shape[2] - 1, BLOCK), np.float32)  # rows beyond the inputs stay 0
    d = np.zeros((differences[0].shape[2] - 1, BLOCK), np.float32)
    g, h, y = np.empty((72, BLOCK), np.float32), np.empty((8, BLOCK), np.float32), np.empty((32, BLOCK), np.float32)
    u, a = np.empty((4, BLOCK), np.float32), np.empty((4, BLOCK), np.float32)
    answer, bits = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    for start in range(0, count, BLOCK):
        filled = min(BLOCK, count - start)
        for k in range(length):
            for b in range(filled):
                x[k, b] = window[start + b, k]
        for k in range(length - 1):
            for b in range(filled):
                d[k, b] = x[k + 1, b] - x[k, b]
        answer[:] = out_bias
        _stream(answer, x, values, out[0], g, h, u, a, y, bits)
        _stream(answer, d, differences, out[1], g, h, u, a, y, bits)
        for b in range(filled):
            within = True
            for k in range(length):
                within &= abs(x[k, b]) <= bound
            result[start + b] = answer[b] if within else float32(np.nan)
