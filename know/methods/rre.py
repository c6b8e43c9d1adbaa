import torch
from torch import Tensor

from know.methods import Scope, TensorInfo, differences_gram, method
from know.methods._numerics import FLAT, combine, ridge


@method(reference="Eddy 1979, Mesina 1977; regularised as in Scieur et al. 2016", recursive=False, depths=(), least=3)
def rre(window: Tensor, tensor: TensorInfo, *, scope: Scope = "tensor", regularisation: float = 1e-10) -> Tensor:
    """Reduced rank extrapolation: the limit of the snapshots as a vector sequence, the one with the least residual.

    The answer is the combination sum_j g_j theta_j, with sum g = 1, whose own movement sum_j g_j (theta_j -
    theta_{j+1}) is shortest. It is exact for the fixed point of linear dynamics with up to S - 2 modes (decay,
    rotation), and theta_0 where there is no limit (straight lines). A limit has no depth. scope: "tensor", a
    combination for each tensor, or "model", one for the whole network. regularisation: ridge, relative to the mean
    square of the movements.
    """
    gram = tensor.whole() if scope == "model" else differences_gram(window)
    weights = torch.linalg.solve(gram + ridge(gram, regularisation, len(gram)), gram.new_ones(len(gram)))
    total = weights.sum()  # 1 / the squared length of the shortest movement
    shortened = 1 / total < (1 - FLAT) * gram.diagonal().min()
    if not shortened or bool(total < FLAT * weights.abs().sum()):
        return window[:, -1].clone()
    return combine(window, weights / total)
