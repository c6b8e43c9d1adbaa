"""KNOWN, the hyper-model of the paper: the step back in time of one scalar weight from its forgetting history.

Three copies, one per role (conv, fc, bias), of 9,425 parameters each at S = 5; as in the released Keras network.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from know.errors import KnowError
from know.trajectory import PREDICTED, load_facts, load_state, save_state

PRETRAINED = Path(__file__).parent / "pretrained" / "known.safetensors"


class Stream(nn.Module):
    """Linear, exponential activation, linear: (N, inputs) -> (N, 32)."""

    def __init__(self, inputs: int):
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 64), nn.Linear(64, 32)
        self.squeeze = nn.Linear(64, 8)
        self.shift, self.amplitude, self.rate = (nn.Linear(8, 64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)  # (N, 64)
        h = F.relu(self.squeeze(x))  # (N, 8)
        x = self.shift(h) + self.amplitude(h) * torch.exp(self.rate(h) * x)
        return F.leaky_relu(self.last(x), 0.3)


class KnownNet(nn.Module):
    """One role: window (N, S), smallest subset first, to residual (N,); theta_{-1} = theta_0 + residual."""

    def __init__(self, length: int = 5):
        super().__init__()
        self.values, self.differences = Stream(length), Stream(length - 1)
        self.out = nn.Linear(64, 1)
        plain = {layer for stream in (self.values, self.differences) for layer in (stream.first, stream.last)}
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.zeros_(layer.bias)
            if layer in plain:  # Keras: VarianceScaling(0.1, fan_in, uniform); the others Glorot uniform
                limit = (3 * 0.1 / layer.in_features) ** 0.5
                nn.init.uniform_(layer.weight, -limit, limit)
            else:
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, window: Tensor) -> Tensor:
        both = torch.cat([self.values(window), self.differences(window.diff(dim=1))], dim=1)  # (N, 64)
        return torch.tanh(self.out(both)).squeeze(1)

    def penalty(self, bias_penalty: float = 0.1) -> Tensor:
        """L1 of the two plain linear layers of each stream: 1e-6 on weights, published 0.1 on biases."""
        layers = [layer for s in (self.values, self.differences) for layer in (s.first, s.last)]
        return sum(1e-6 * layer.weight.abs().sum() + bias_penalty * layer.bias.abs().sum() for layer in layers)


class Known:
    """The three role networks; `facts` say what they were trained on (the card)."""

    def __init__(self, nets: dict[str, KnownNet], facts: dict | None = None):
        self.nets, self.facts = nets, facts or {}
        self.length = nets["conv"].values.first.in_features

    @torch.no_grad()
    def residual(self, window: Tensor, role: str, chunk: int = 16384) -> Tensor:
        """The predicted step theta_{-1} - theta_0, float32 (N,), of windows (N, S) of a role.

        Computed in chunks that stay in the processor's cache. Raises KnowError for a wrong S or role.
        """
        if role not in self.nets or window.ndim != 2 or window.shape[1] != self.length:
            roles = "/".join(self.nets)
            raise KnowError(f"KNOWN takes windows (N, {self.length}) of {roles}, got {tuple(window.shape)} of {role!r}")
        net = self.nets[role]
        parts = [net(part) for part in window.float().split(chunk)]
        return torch.cat(parts) if parts else window.new_zeros(0)

    def save(self, path: Path | str) -> None:
        state = {f"{role}.{name}": t for role, net in self.nets.items() for name, t in net.state_dict().items()}
        save_state(path, state, self.facts)

    @classmethod
    def load(cls, path: Path | str) -> Known:
        """Read a file that `save` wrote; KnowError if it is missing, damaged or of another shape."""
        state, nets = load_state(path), {}
        try:
            for role in PREDICTED:
                nets[role] = KnownNet(state[f"{role}.values.first.weight"].shape[1])
                own = {n.removeprefix(f"{role}."): t for n, t in state.items() if n.startswith(f"{role}.")}
                nets[role].load_state_dict(own)
        except (KeyError, IndexError, RuntimeError) as error:
            raise KnowError(f"{path} holds no KNOWN (three roles, see know/known.py): {error}") from error
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise KnowError(f"{path} has weights that are not finite (NaN or infinite); train it again")
        return cls(nets, load_facts(path))

    @classmethod
    def pretrained(cls) -> Known:
        """The networks that the package ships; their card is know/pretrained/README.md."""
        return cls.load(PRETRAINED)
