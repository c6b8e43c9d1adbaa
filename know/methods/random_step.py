import torch
from torch import Tensor

from know.methods import Hyper, TensorInfo, method


@method(reference="control, this project", group="control", recursive=False, depths=(1, 3))
def random_step(window: Tensor, tensor: TensorInfo, *, of: Hyper = "known") -> Tensor:
    """Random step: theta_0 plus a random Gaussian direction with the norm of KNOWN's step, tensor by tensor.

    It keeps the length of KNOWN's step and not its direction, so whatever it gains comes from moving at all.
    of: the network that is asked, "known" (ours) or "released" (the authors').
    """
    theta_0 = window[:, -1]
    length = (tensor.answer_of(of, window) - theta_0).norm()
    direction = torch.randn(len(theta_0), generator=tensor.generator())
    return theta_0 + direction * (length / direction.norm().clamp_min(1e-12))
