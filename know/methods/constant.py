from torch import Tensor

from know.methods import Hyper, TensorInfo, method


@method(reference="control, this project", group="control", recursive=False, depths=(1, 3), elementwise=True)
def constant(window: Tensor, tensor: TensorInfo, *, of: Hyper = "known") -> Tensor:
    """Constant: KNOWN's answer to a trajectory that stands still at theta_0, as if nothing had been forgotten.

    It needs no forgetting. A KNOWN that gains no more than this has read nothing from the trajectory.
    of: the network that is asked, "known" (ours) or "released" (the authors').
    """
    return tensor.answer_of(of, window[:, -1:].expand_as(window))
