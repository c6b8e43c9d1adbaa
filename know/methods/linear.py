from torch import Tensor

from know.methods import TensorInfo, method


@method(reference="paper, baseline TaskVector", depths=(1, 3), elementwise=True)
def linear(window: Tensor, tensor: TensorInfo, *, step: float = 1.0) -> Tensor:
    """Linear step: theta_0 + step (theta_0 - theta_1), the direct extrapolation.

    It is exact where the last movement repeats itself. The step of 1 is fixed in advance and not tuned.
    """
    return window[:, -1] + step * (window[:, -1] - window[:, -2])
