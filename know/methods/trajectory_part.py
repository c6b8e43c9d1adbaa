from __future__ import annotations

from torch import Tensor

from know.methods import Hyper, TensorInfo, method


@method(reference="control, this project", group="control", recursive=False, depths=(1, 3), elementwise=True)
def trajectory_part(window: Tensor, tensor: TensorInfo, *, of: Hyper = "known") -> Tensor:
    """Trajectory part: theta_0 plus KNOWN's answer to the trajectory minus its answer to one that stands still.

    What KNOWN reads from forgetting, without what it does to any weight of that size. of: "known" or "released".
    """
    still = window[:, -1:].expand_as(window)
    return window[:, -1] + (tensor.answer_of(of, window) - tensor.answer_of(of, still))
