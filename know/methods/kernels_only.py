from torch import Tensor

from know.methods import Hyper, TensorInfo, method


@method(reference="control, this project", group="control", recursive=False, depths=(1, 3), elementwise=True)
def kernels_only(window: Tensor, tensor: TensorInfo, *, of: Hyper = "known") -> Tensor:
    """Kernels only: KNOWN's answer for kernels and matrices; biases stay as they are in theta_0.

    of: the network that is asked, "known" (ours) or "released" (the authors').
    """
    return window[:, -1].clone() if tensor.role == "bias" else tensor.answer_of(of, window)
