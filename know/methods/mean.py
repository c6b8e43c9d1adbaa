from torch import Tensor

from know.methods import TensorInfo, method


@method(reference="model soups, Wortsman et al. 2022", group="average", recursive=False, depths=(), elementwise=True)
def mean(window: Tensor, tensor: TensorInfo) -> Tensor:
    """Mean of the trajectory's snapshots, theta_0 included, with equal weights."""
    return window.double().mean(dim=1).float()
