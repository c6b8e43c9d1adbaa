import math

import torch
from torch import Tensor

from know.methods import TensorInfo, method


@method(reference="paper, baseline TSV; Gargiulo et al., CVPR 2025, arXiv 2412.00081", recursive=False, depths=(1, 3))
def tsv(window: Tensor, tensor: TensorInfo, *, share: float = 0.1) -> Tensor:
    """TSV: a linear step along the top singular directions of theta_0 - theta_1 only, matrix by matrix.

    Kernels count as matrices (outputs x rest); 1-D tensors take the whole step. The paper leaves open how it uses TSV,
    which was made for merging tasks. share: the part of the singular directions that is kept, at least one; 0.1 is
    fixed in advance.
    """
    step = window[:, -1] - window[:, -2]
    if len(tensor.shape) > 1:
        left, scale, right = torch.linalg.svd(step.view(tensor.shape[0], -1), full_matrices=False)
        kept = max(1, math.ceil(share * len(scale)))
        step = (left[:, :kept] * scale[:kept] @ right[:kept]).flatten()
    return window[:, -1] + tensor.depth * step
