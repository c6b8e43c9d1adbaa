from __future__ import annotations

from torch import Tensor

from know.predictors import TensorInfo, predictor


@predictor(recursive=False, depths=(1, 2, 3))
def shrink(window: Tensor, tensor: TensorInfo) -> Tensor:
    """Control: theta_0 scaled to the norm of KNOWN's answer, tensor by tensor.

    Keeps the size of KNOWN's answer and the direction of theta_0. What KNOWN gains beyond it is not shrinking.
    """
    theta_0 = window[:, -1]
    return theta_0 * (tensor.known_answer(window).norm() / theta_0.norm().clamp_min(1e-12))
