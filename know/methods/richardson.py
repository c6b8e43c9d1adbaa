import torch
from torch import Tensor

from know.methods import TensorInfo, method
from know.methods._numerics import extrapolate


@method(reference="Richardson 1911", recursive=False, depths=(1, 3), elementwise=True)
def richardson(window: Tensor, tensor: TensorInfo) -> Tensor:
    """Richardson extrapolation: least-squares a + b / fraction of every weight, evaluated at the fraction r^-depth.

    It is exact where a weight approaches its limit as 1 / (amount of data). The smallest subset weighs most in the fit.
    """
    fractions = torch.tensor(tensor.fractions, dtype=torch.float64)
    return extrapolate(window, 1 / fractions, (fractions[-2] / fractions[-1]) ** tensor.depth)
