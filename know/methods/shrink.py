from torch import Tensor

from know.methods import Hyper, TensorInfo, method


@method(reference="control, this project", group="control", recursive=False, depths=(1, 2, 3))
def shrink(window: Tensor, tensor: TensorInfo, *, of: Hyper = "known") -> Tensor:
    """Shrink: theta_0 scaled to the norm of KNOWN's answer, tensor by tensor.

    It keeps the size of KNOWN's answer and the direction of theta_0. What KNOWN gains beyond it is not shrinking.
    of: the network that is asked, "known" (ours) or "released" (the authors').
    """
    theta_0 = window[:, -1]
    return theta_0 * (tensor.answer_of(of, window).norm() / theta_0.norm().clamp_min(1e-12))
