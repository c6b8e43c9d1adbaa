from torch import Tensor

from know.methods import TensorInfo, method


@method(
    reference="Jang et al., ICML 2023; weights of github.com/jjh6297/WNN", depths=(1, 3), needs="wnn", elementwise=True
)
def wnn(window: Tensor, tensor: TensorInfo) -> Tensor:
    """WNN, the earlier weight nowcaster, with its released weights and its own scaling of every history.

    It is a baseline of the paper, trained to look ahead along a training run and not back along forgetting. The
    authors' function for biases adds the answer to the unscaled value; here it is added to the scaled one, as for other
    weights.
    """
    return window[:, -1] + tensor.step_of("wnn", window)
