from __future__ import annotations

from torch import Tensor

from know.methods import TensorInfo, method


@method(reference="paper, baseline TaskVector", depths=(1, 3), elementwise=True)
def linear(window: Tensor, tensor: TensorInfo, *, step: float = 1.0) -> Tensor:
    """Linear step: theta_0 + step (theta_0 - theta_1), the direct extrapolation.

    Exact where the last movement repeats itself; the step of 1 is fixed in advance, not tuned.
    """
    return window[:, -1] + step * (window[:, -1] - window[:, -2])
