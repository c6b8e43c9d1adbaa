import torch
from torch import Tensor

from know.methods import Scope, TensorInfo, differences_gram, method
from know.methods._numerics import FLAT, combine, ridge


@method(reference="Cabay & Jackson 1976", recursive=False, depths=(), least=3)
def mpe(window: Tensor, tensor: TensorInfo, *, scope: Scope = "tensor", regularisation: float = 1e-10) -> Tensor:
    """Minimal polynomial extrapolation: the limit of the snapshots, from what annihilates their movement.

    The last difference is written as a combination of the earlier ones by least squares. The method is exact for the
    fixed point of linear dynamics with up to S - 2 modes, and answers theta_0 where there is no limit (straight lines).
    The options are those of rre.
    """
    gram = tensor.whole() if scope == "model" else differences_gram(window)
    earlier, last = gram[:-1, :-1], gram[:-1, -1]
    solved = torch.linalg.solve(earlier + ridge(gram, regularisation, len(earlier)), last)
    coefficients = torch.cat([-solved, gram.new_ones(1)])
    total = coefficients.sum()
    if bool(total.abs() < FLAT * coefficients.abs().sum()):
        return window[:, -1].clone()
    return combine(window, coefficients / total)
