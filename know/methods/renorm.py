from torch import Tensor

from know.methods import Hyper, TensorInfo, method


@method(reference="control, this project", group="control", recursive=False, depths=(1, 3))
def renorm(window: Tensor, tensor: TensorInfo, *, of: Hyper = "known") -> Tensor:
    """Renorm: KNOWN's answer scaled back to the norm of theta_0, tensor by tensor.

    It keeps the direction of KNOWN's answer and not its size. Naive, shrink, renorm and KNOWN form a 2 x 2 of norm and
    direction. of: the network that is asked, "known" (ours) or "released" (the authors').
    """
    answer = tensor.answer_of(of, window)
    return answer * (window[:, -1].norm() / answer.norm().clamp_min(1e-12))
