from torch import Tensor

from know.methods import TensorInfo, method


@method(reference="control, this project", group="control", recursive=False, depths=(1, 3), elementwise=True)
def linear_reverse(window: Tensor, tensor: TensorInfo, *, step: float = 1.0) -> Tensor:
    """Reverse linear step: theta_0 - step (theta_0 - theta_1) per depth, on into forgetting; theta_1 itself at depth 1.

    It is as long as the linear step. If it helps as much, the direction of retrodiction does not matter.
    """
    return window[:, -1] - step * tensor.depth * (window[:, -1] - window[:, -2])
