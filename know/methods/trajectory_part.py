from torch import Tensor

from know.methods import Hyper, TensorInfo, method


@method(reference="control, this project", group="control", recursive=False, depths=(1, 3), elementwise=True)
def trajectory_part(window: Tensor, tensor: TensorInfo, *, of: Hyper = "known") -> Tensor:
    """Trajectory part: theta_0 plus KNOWN's answer to the trajectory minus its answer to one that stands still.

    This is what KNOWN reads from forgetting, without what it does to every weight of that size.
    of: the network that is asked, "known" (ours) or "released" (the authors').
    """
    still = window[:, -1:].expand_as(window)
    return window[:, -1] + (tensor.answer_of(of, window) - tensor.answer_of(of, still))
