import torch
from torch import Tensor

from know.errors import KnowError
from know.methods import TensorInfo, method


@method(reference="this project", depths=(1, 3), elementwise=True)
def meta_linear(window: Tensor, tensor: TensorInfo, *, theta_0: bool = False) -> Tensor:
    """Meta-linear: theta_0 plus a fixed combination of the differences, by least squares on KNOWN's meta-set.

    There is one set of coefficients per role, in closed form. With `theta_0`, the last weight is one more term, so that
    the method can shrink. What KNOWN gains beyond it comes from KNOWN's nonlinearity.
    """
    coefficients = tensor.models["meta_linear"][f"{tensor.role}.theta_0" if theta_0 else tensor.role]
    terms = window.diff(dim=1)  # (N, S - 1), oldest first
    terms = torch.cat([terms, window[:, -1:]], dim=1) if theta_0 else terms
    if terms.shape[1] != len(coefficients):
        raise KnowError(f"meta-linear has {len(coefficients)} coefficients, the history gives {terms.shape[1]} terms")
    return window[:, -1] + terms @ coefficients
