"""WNN+, the network of NiNo without its graph layers: it predicts the weights of one tensor 1 to 40 steps ahead.

Source: Knyazev et al., "Accelerating Training with Neuron Interaction and Nowcasting Networks", ICLR 2025. The weights
are the file `nino_mlp.pt` of github.com/SamsungSAILMontreal/nino (MIT licence, Copyright (c) 2024 Samsung Electronics
Co., Ltd.), which is not part of this project; `know.keras` says where it is looked for.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from know.checkpoints import load_state
from know.errors import KnowError
from know.keras import LENGTH

FURTHEST = 40
"""Steps that it looks ahead at most."""
_WIDTH, _KINDS = 128, 15
_CHUNK = 1 << 14
"""Weights that are answered at once, so that what is computed for them stays in the processor's cache."""
_LAYERS = {
    "edge_proj.fc.0": "first",
    "layer_embed": "kind",
    **{f"edge_mlp.fc.{number}": f"layers.{number}" for number in (0, 2, 4, 6)},
}
"""Layers in the file, and their names in `WnnPlus`."""


def kind_of(name: str, shape: tuple[int, ...]) -> int:
    """The row of the embedding for a tensor: 1 matrix, 3 kernel of four axes, 4 vector `.weight`, 2 all others."""
    if len(shape) == 1 and name.endswith(".weight"):
        return 4
    return {4: 3, 2: 1}.get(len(shape), 2)


class WnnPlus(nn.Module):
    """The MLP, 57,384 parameters. With N the weights of a tensor:

    first  Linear (N, 5) -> (N, 128) of the scaled history, to which a row of `kind` (15, 128) is added
    layers three Linear (N, 128) -> (N, 128), each followed by SiLU, then Linear (N, 128) -> (N, 40)

    The k-th output of the last layer is the step of k steps ahead.
    """

    def __init__(self):
        super().__init__()
        self.first, self.kind = nn.Linear(LENGTH, _WIDTH), nn.Embedding(_KINDS, _WIDTH)
        hidden = [layer for _ in range(3) for layer in (nn.Linear(_WIDTH, _WIDTH), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(_WIDTH, FURTHEST))

    @torch.no_grad()
    def predict(self, window: Tensor, kind: int, k: int) -> Tensor:
        """The weights (N,), float32, k steps after the last snapshot of a window (N, 5), oldest first.

        The window is that of a whole tensor, since it is scaled by the mean and the standard deviation of all its
        values. KnowError for another number of snapshots, and for a k that the network does not have.
        """
        if window.ndim != 2 or window.shape[1] != LENGTH:
            raise KnowError(f"WNN+ takes windows (N, {LENGTH}), got {tuple(window.shape)}")
        if not 1 <= k <= FURTHEST:
            raise KnowError(f"WNN+ looks 1 to {FURTHEST} steps ahead, got depth {k}")
        window = window.float()
        mean, deviation = window.mean(), window.std()
        *hidden, last = self.layers
        row = slice(k - 1, k)  # the other steps ahead need not be computed
        answers = []
        for part in window.split(_CHUNK):
            scaled = (part - mean) / (deviation + 1e-6)
            state = self.first(scaled) + self.kind.weight[kind]
            for layer in hidden:
                state = layer(state)
            step = F.linear(state, last.weight[row], last.bias[row])[:, 0]
            answers.append((scaled[:, -1] + step) * deviation + mean)
        return torch.cat(answers)

    @classmethod
    def load(cls, path: Path | str) -> WnnPlus:
        """The network in the authors' file, read in weights-only mode.

        KnowError if the file is missing or damaged, or if its tensors have other names or shapes.
        """
        state = load_state(path, key="state_dict")
        with torch.device("meta"):  # no initial weights are drawn, so that no random state of the user's changes
            net = cls()
        shapes = {
            f"{theirs}.{part}": (f"{ours}.{part}", tuple(tensor.shape))
            for theirs, ours in _LAYERS.items()
            for part, tensor in net.get_submodule(ours).named_parameters()
        }
        for name in sorted(shapes.keys() | state.keys()):
            expected = f"shape {shapes[name][1]}" if name in shapes else "no such tensor"
            found = f"shape {tuple(state[name].shape)}" if name in state else "no such tensor"
            if found != expected:
                raise KnowError(f"{path} is not the MLP of NiNo: {name!r}: {expected} was expected, {found} was found")
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise KnowError(f"{path} has weights that are not finite (NaN or infinite); fetch it again")
        net.load_state_dict({ours: state[name].float() for name, (ours, _) in shapes.items()}, assign=True)
        return net
