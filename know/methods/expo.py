from torch import Tensor

from know.errors import KnowError
from know.methods import TensorInfo, method


@method(reference="ExPO, Zheng et al., ACL 2025", recursive=False, depths=())
def expo(window: Tensor, tensor: TensorInfo, *, alpha: float = 0.3) -> Tensor:
    """ExPO: theta_0 + alpha (theta_0 - theta_init), away from the weights before any training.

    The original extrapolates from a supervised model through an aligned one; here both are one training run, from its
    initial weights to theta_0. These are the reference `scratch` of the trajectory: the benchmark keeps it, and
    `know.forget(..., references={"scratch": state_dict})` does for a model of yours. Of the history only theta_0 is
    used. alpha: the share of the way from theta_init to theta_0 that is added, fixed in advance and not tuned.
    """
    try:
        initial = tensor.reference("scratch")
    except KnowError as error:
        raise KnowError(f"method expo needs the weights before any training: {error}") from error
    theta_0 = window[:, -1]
    return theta_0 + alpha * (theta_0 - initial)
