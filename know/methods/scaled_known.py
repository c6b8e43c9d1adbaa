from torch import Tensor

from know.methods import TensorInfo, method


@method(reference="this project", depths=(1, 3), elementwise=True)
def scaled_known(window: Tensor, tensor: TensorInfo) -> Tensor:
    """Scaled KNOWN: same network and meta-set, histories shifted by their first value and divided by their range.

    It cannot see how large a weight is, so it cannot shrink it: only extrapolation is left.
    """
    return window[:, -1] + tensor.step_of("scaled", window)
