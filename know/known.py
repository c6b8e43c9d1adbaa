"""KNOWN, the hyper-model of the paper: it predicts the step back in time of one scalar weight from its history.

There are three copies, one per role (conv, fc, bias), of 9,425 parameters each at S = 5, as in the authors' Keras
files. The same network, fed with scaled histories, is WNN (an earlier hyper-model of the same group) and our "scaled
KNOWN".
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from know import keras
from know.checkpoints import State, load_facts, load_state, save_state
from know.errors import KnowError, as_path, unknown
from know.files import PRETRAINED
from know.nino import WnnPlus
from know.roles import PREDICTED
from know.trajectory import LARGE

Scaling = Literal["none", "range", "wnn"]


def scale_windows(window: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """What a network is fed with, (N, S), and the factor (N,) that turns its answer into a step of the weights.

    none: raw values, as KNOWN takes them. range: shifted by the first value and divided by the range. wnn: as the
    authors' WNN does it, which is the same with half the size and small constants of its own.
    """
    if scaling == "none":
        return window, torch.ones_like(window[:, 0])
    shifted = window - window[:, :1]
    extent = window.amax(1) - window.amin(1)
    factor = extent + 1e-8 if scaling == "range" else 2 * (extent + 1e-8 + 1e-5)
    return shifted / factor[:, None], factor


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
    """The three role networks of KNOWN, scaled KNOWN or WNN.

    facts: what they were trained on (the card), and two entries that decide how they are asked: `scaling` (see
    `scale_windows`; default none) and `roles`, "paper" (default) or "released". The authors' prediction script sends
    kernels of every size to the conv network, the paper's data page only those of 3x3. Of a tensor of three
    axes the page is followed, and it is asked as a matrix.
    """

    def __init__(self, nets: dict[str, KnownNet], facts: dict | None = None):
        self.nets, self.facts = nets, facts or {}
        self.length = nets["conv"].values.first.in_features
        self.scaling: Scaling = self.facts.get("scaling", "none")

    @torch.no_grad()
    def residual(self, window: Tensor, role: str, chunk: int | None = None) -> Tensor:
        """The predicted step theta_{-1} - theta_0, float32 (N,), of windows (N, S) of a role.

        Large windows on the CPU are left to `know.fast` where numba is installed, since they are worth the time that
        numba takes to load. All others, and all windows with a given `chunk`, are computed by the module, in chunks
        that stay in the processor's cache or keep a GPU busy. Raises KnowError for a wrong S or role.
        """
        if role in self.nets and window.ndim == 2 and window.shape[1] != self.length:
            raise KnowError(
                f"this network takes {self.length} snapshots, and was asked about {window.shape[1]}: make a trajectory"
                f" of {self.length}, or choose another method: linear takes any number, and shipped with the option"
                " group=without_cifar takes 2 to 5"
            )
        if role not in self.nets or window.ndim != 2:
            roles = "/".join(self.nets)
            raise KnowError(f"KNOWN takes windows (N, {self.length}) of {roles}, got {tuple(window.shape)} of {role!r}")
        net, answers, cpu = self.nets[role], [], window.device.type == "cpu"
        fast = compiled() if chunk is None and cpu and len(window) >= LARGE else None
        ask = functools.partial(fast.steps, net) if fast else net
        for part in window.float().split(chunk or (1 << 20 if fast else 1 << 14 if cpu else 1 << 18)):
            if self.scaling == "none":
                answers.append(ask(part))
                continue
            inputs, factor = scale_windows(part, self.scaling)
            answers.append(ask(inputs) * factor)
        return torch.cat(answers) if answers else window.new_zeros(0)

    def role_of(self, role: str, shape: tuple[int, ...]) -> str:
        """The network to ask for a tensor whose role is `role` by the paper's rule (see the class)."""
        kernel = role == "fc" and len(shape) > 3  # rows of tokens and positions, and stacks of matrices, have 3 axes
        return "conv" if kernel and self.facts.get("roles") == "released" else role

    def save(self, path: Path | str) -> None:
        state = {f"{role}.{name}": t for role, net in self.nets.items() for name, t in net.state_dict().items()}
        save_state(path, state, self.facts)

    @classmethod
    def load(cls, path: Path | str) -> Known:
        """Read a file that `save` wrote; KnowError if it is missing or damaged, or if its tensors have other shapes."""
        state, nets = load_state(as_path("path", path)), {}
        try:
            for role in PREDICTED:
                own = {n.removeprefix(f"{role}."): t for n, t in state.items() if n.startswith(f"{role}.")}
                nets[role] = _net(state[f"{role}.values.first.weight"].shape[1], own)
        except (KeyError, IndexError, RuntimeError) as error:
            raise KnowError(f"{path} holds no KNOWN (three roles, see know/known.py): {error}") from error
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise KnowError(f"{path} has weights that are not finite (NaN or infinite); train it again")
        return cls(nets, load_facts(path))

    @classmethod
    def from_keras(
        cls, folder: Path | str, model: Literal["released", "wnn"] = "released", *, roles: str = "released"
    ) -> Known:
        """The authors' networks from the Keras 2 files KNOWN_{Conv,FC,Bias}.h5 (or WNN_...) in `folder`; needs h5py.

        roles: "released", as their script asks them, or "paper", as their data page says. Their WNN adds its answer for
        biases to the unscaled value; here it is added to the scaled one, as for the other two roles.
        """
        if model not in keras.MODELS:
            raise unknown("model of the authors", model, keras.MODELS)
        if roles not in ("paper", "released"):
            raise unknown("rule of roles", roles, ("paper", "released"))
        nets = {role: _from_arrays(path) for role, path in keras.files(folder, model).items()}
        facts = {"data": ["mnist", "fashion_mnist", "cifar10"], "model": model, "roles": roles}
        return cls(nets, {**facts, "scaling": "wnn" if model == "wnn" else "none"})

    @classmethod
    def pretrained(cls, group: str = "general", length: int = 5) -> Known:
        """Networks that the package ships. know/pretrained/GROUP/LENGTH/README.md is the card of a group."""
        return cls.load(_shipped(group, str(length)))


class Models:
    """Meta-learned models by name, read when first asked for.

    known, scaled: `Known`, from `<name>.safetensors`. meta_linear: its coefficients, tensors by role. All from one
    folder, by default the one that the package ships. released, wnn: the authors', and wnn_plus: that of NiNo
    (`know.nino.WnnPlus`), from the folder in KNOW_REFERENCE.
    shipped/GROUP/S: what the package ships, whatever the folder.

    given: a `Known` (then it is the only model), its file (the others are looked for beside it), a folder, which may
    also hold the authors' Keras files, or a mapping of names to models.
    """

    def __init__(self, given: Known | Models | Mapping[str, Any] | Path | str | None = None):
        self.folder: Path | None = None
        self.models: dict[str, Any] = {}
        self.files: dict[str, list[Path]] = {}
        """Files that were read, by model."""
        if isinstance(given, Known):
            self.models = {"known": given}
        elif isinstance(given, Models):
            self.folder, self.models, self.files = given.folder, given.models, given.files
        elif isinstance(given, Mapping):
            self.models = dict(given)
        else:
            path = PRETRAINED / "general" / "5" if given is None else as_path("known", given)
            self.folder = path if path.is_dir() else path.parent
            if not path.is_dir():
                self.models, self.files = {"known": Known.load(path)}, {"known": [path]}

    def __getitem__(self, name: str) -> Any:
        """The model of that name; KnowError with the reason if it is unknown or cannot be had here."""
        if name not in self.models:
            self.models[name] = self._read(name)
        return self.models[name]

    def _read(self, name: str) -> Any:
        if name in keras.OUTSIDE:
            if reason := keras.missing(name):
                raise KnowError(f"the model {name!r} is not available: {reason}")
            self.files[name] = keras.paths(name)
            if name not in keras.MODELS:
                return WnnPlus.load(self.files[name][0])
            return Known.from_keras(self.files[name][0].parent, name)
        if name.startswith("shipped/"):
            group, _, length = name.removeprefix("shipped/").rpartition("/")
            path = _shipped(group, length)
            self.files[name] = [path]
            return Known.load(path)
        if name not in ("known", "scaled", "meta_linear"):
            raise unknown("model", name, ("known", "scaled", "meta_linear", *keras.OUTSIDE))
        if self.folder is None:
            raise KnowError(f"no model {name!r} was given beside KNOWN; give the folder of a meta-training instead")
        path = self.folder / f"{name}.safetensors"
        authors = list(keras.files(self.folder, "released").values())
        if name == "known" and not path.is_file() and all(file.is_file() for file in authors):
            self.files[name] = authors
            return Known.from_keras(self.folder)
        model = load_state(path) if name == "meta_linear" else Known.load(path)
        self.files[name] = [path]
        return model


def _shipped(group: str, length: str) -> Path:
    """The file of networks that the package ships; KnowError if there are no such."""
    files = {
        f"{path.parent.parent.name}, {path.parent.name}": path for path in PRETRAINED.glob("*/*/known.safetensors")
    }
    if (name := f"{group}, {length}") not in files:
        raise unknown("shipped networks", name, files)
    return files[name]


def _net(length: int, state: State) -> KnownNet:
    """A network with these weights; no initial ones are drawn, so that no random state of the user's changes."""
    with torch.device("meta"):
        net = KnownNet(length)
    net.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return net


def compiled() -> ModuleType | None:
    """The compiled prediction, `know.fast`; None where numba is not installed."""
    try:
        from know import fast
    except ImportError:
        return None
    return fast


def _from_arrays(path: Path) -> KnownNet:
    """One role's network from a Keras file."""
    state = {name: torch.from_numpy(array) for name, array in keras.read(path).items()}
    try:
        net = _net(state["values.first.weight"].shape[1], state)
    except (LookupError, RuntimeError) as error:
        raise keras.unreadable(path, error) from error
    return net
