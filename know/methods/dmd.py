import torch
from torch import Tensor

from know.methods import Scope, TensorInfo, differences_gram, method
from know.methods._numerics import ridge


@method(reference="Schmid 2010; a linear reversible dynamical system", recursive=False, depths=(1, 3), least=3)
def dmd(window: Tensor, tensor: TensorInfo, *, scope: Scope = "model", regularisation: float = 1e-3) -> Tensor:
    """DMD: linear dynamics fitted to the snapshots' differences by ridge regression, run one step further per depth.

    It fits the operator that takes each difference to the next (dynamic mode decomposition), in the space that they
    span. Without regularisation it is exact on linear dynamics with up to S - 2 modes: decay, growth, rotation.
    scope: "model", one operator for the whole network, or "tensor". regularisation: ridge, relative to the mean square
    of the differences.
    """
    gram = tensor.whole() if scope == "model" else differences_gram(window)
    inputs = gram[:-1, :-1]  # inner products of all differences but the last
    inverse = torch.linalg.inv(inputs + ridge(gram, regularisation, len(inputs)))
    # a difference is its coefficients over the S - 1 known ones; the operator takes number j to number j + 1
    newest = gram.new_zeros(len(gram))
    newest[-1] = 1
    total = torch.zeros_like(newest)
    for _ in range(tensor.depth):
        newest = torch.cat([gram.new_zeros(1), inverse @ (gram[:-1] @ newest)])
        total += newest
    return window[:, -1] + window.diff(dim=1) @ total.float()
