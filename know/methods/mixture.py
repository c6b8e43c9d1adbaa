from __future__ import annotations

from torch import Tensor

from know.methods import Hyper, TensorInfo, predictor


@predictor(
    reference="the released script's way, as an ablation",
    group="control",
    recursive=False,
    depths=(1, 3),
    normalisation="reset",
    same_weights="known",
    elementwise=True,
)
def mixture(window: Tensor, tensor: TensorInfo, *, of: Hyper = "known") -> Tensor:
    """Mixture: KNOWN's answer with fresh normalisation layers, while naive carries trained ones; KNOWN without any.

    The released prediction script fills a fresh network and writes only layers with exactly two arrays, so that
    BatchNorm keeps its initial values. of: "known" (ours) or "released".
    """
    return tensor.answer_of(of, window)
