import torch
from torch import Tensor

from know.methods import TensorInfo, method


@method(reference="Ash & Adams 2020, arXiv 1910.08475", group="control", recursive=False, depths=())
def shrink_and_perturb(window: Tensor, tensor: TensorInfo, *, shrink: float = 0.6, noise: float = 0.01) -> Tensor:
    """Shrink and perturb: shrink theta_0 + Gaussian noise, which is known to help warm starts.

    It reads no trajectory, so it has no depth. shrink = 0.6 and noise = 0.01 (standard deviation, in units of the
    weights) are fixed in advance, not tuned.
    """
    return shrink * window[:, -1] + noise * torch.randn(len(window), generator=tensor.generator())
