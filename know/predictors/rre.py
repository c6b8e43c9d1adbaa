from __future__ import annotations

import torch
from torch import Tensor

from know.predictors import Scope, TensorInfo, differences_gram, predictor
from know.predictors._numerics import combine, ridge


@predictor(
    reference="Eddy 1979, Mesina 1977; regularised as in Scieur et al. 2016",
    recursive=False,
    depths=(),
    variants={"": {}, "_global": {"scope": "model"}},
    least=3,
)
def rre(window: Tensor, tensor: TensorInfo, *, scope: Scope = "tensor", regularisation: float = 1e-10) -> Tensor:
    """Reduced rank extrapolation: the limit of the snapshots as a vector sequence, the one with the least residual.

    The combination sum_j g_j theta_j, with sum g = 1, whose own movement sum_j g_j (theta_j - theta_{j+1}) is shortest.
    Exact for the fixed point of linear dynamics with up to S - 2 modes (decay, rotation). A limit has no depth.
    scope: "tensor", a combination for each tensor, or "model", one for the whole network. regularisation: ridge,
    relative to the movements' mean square.
    """
    gram = tensor.whole() if scope == "model" else differences_gram(window)
    weights = torch.linalg.solve(gram + ridge(gram, regularisation, len(gram)), gram.new_ones(len(gram)))
    return combine(window, weights / weights.sum())
