from __future__ import annotations

from torch import Tensor

from know.methods import Hyper, TensorInfo, predictor


@predictor(
    reference="control, this project",
    group="control",
    recursive=False,
    depths=(1, 3),
    answers="rate",
    same_weights="naive",
)
def matched_rate(window: Tensor, tensor: TensorInfo, *, of: Hyper = "known", power: float = 1.0) -> float:
    """Matched rate: naive, with the learning rate of each tensor times |theta_0| / |KNOWN's answer|.

    Under normalisation a kernel shrunk by c learns under Adam as with a rate 1/c times larger: this is that effect
    without the shrinking. of: "known" (ours) or "released". power: 1 for Adam; 2 for SGD, where it is 1/c^2.
    """
    theta_0, answer = window[:, -1].norm(), tensor.answer_of(of, window).norm()
    return 1.0 if theta_0 == 0 or answer == 0 else float(theta_0 / answer) ** power
