from torch import Tensor

from know.methods import TensorInfo, method
from know.nino import kind_of


@method(
    reference="Knyazev et al., ICLR 2025; weights of github.com/SamsungSAILMontreal/nino",
    recursive=False,
    depths=(1, 3),
    needs="wnn_plus",
)
def wnn_plus(window: Tensor, tensor: TensorInfo) -> Tensor:
    """WNN+, the MLP of NiNo, with its released weights; it looks `depth` steps ahead at once.

    The history of a tensor is scaled by the mean and the standard deviation of all its values. Like WNN it was trained
    to look ahead along a training run, 200 updates from one snapshot to the next, and not back along forgetting. One
    step ahead stands for one step back here, which was fixed in advance. Its training saw small networks on
    Fashion-MNIST and CIFAR-10.
    """
    return tensor.models["wnn_plus"].predict(window, kind_of(tensor.name, tensor.shape), tensor.depth)
