import torch
from torch import Tensor

from know.methods import Hyper, TensorInfo, method
from know.seeds import stream


@method(reference="control, this project", group="control", recursive=False, depths=(1, 3), least=3, elementwise=True)
def shuffled(window: Tensor, tensor: TensorInfo, *, of: Hyper = "known") -> Tensor:
    """Shuffled: KNOWN's answer to the trajectory with its snapshots before theta_0 in another, random order.

    The order is the same for all tensors and never the true one.
    of: the network that is asked, "known" (ours) or "released" (the authors').
    """
    earlier = window.shape[1] - 1
    generator = torch.Generator().manual_seed(stream(tensor.seed, "order"))
    order = torch.arange(earlier)
    while bool((order == torch.arange(earlier)).all()):
        order = torch.randperm(earlier, generator=generator)
    return tensor.answer_of(of, torch.cat([window[:, order], window[:, -1:]], dim=1))
