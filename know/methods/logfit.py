import torch
from torch import Tensor

from know.methods import TensorInfo, method
from know.methods._numerics import extrapolate


@method(reference="paper, baseline LogFit", recursive=False, depths=(1, 3), elementwise=True)
def logfit(window: Tensor, tensor: TensorInfo) -> Tensor:
    """LogFit: least-squares a + b log(fraction) of every weight, evaluated at the fraction r^-depth.

    It is exact on logarithmic histories. The paper leaves open how the fit is weighted and whether it is recursive.
    Here the weights are equal, and one fit is evaluated further out, which is the same where the fit is exact.
    """
    fractions = torch.tensor(tensor.fractions, dtype=torch.float64)
    return extrapolate(window, fractions.log(), tensor.depth * (fractions[-1] / fractions[-2]).log())
