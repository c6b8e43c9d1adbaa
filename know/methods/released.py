from torch import Tensor

from know.methods import TensorInfo, method


@method(
    reference="paper; weights of github.com/jjh6297/KNOW",
    group="known",
    depths=(1, 2, 3),
    needs="released",
    elementwise=True,
)
def released(window: Tensor, tensor: TensorInfo) -> Tensor:
    """KNOWN with the authors' released weights, read from the folder in KNOW_REFERENCE.

    Kernels of every size go to the conv network, as in the authors' prediction script, and tokens and positions of a
    transformer, which are no kernels, to that for matrices, as their data page says. The networks were meta-trained
    on MNIST, Fashion-MNIST and CIFAR-10.
    """
    return window[:, -1] + tensor.step_of("released", window)
