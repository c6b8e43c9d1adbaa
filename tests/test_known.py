"""KNOWN: its size and layout, its formula against a slow scalar one, its file, and the authors' released weights."""

import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from know.errors import KnowError
from know.known import Known, KnownNet
from know.predictors import recurse
from know.trajectory import PREDICTED, load_state, save_state


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = 10 ** torch.empty(300, 1).uniform_(-3, 0.3, generator=generator)
    return torch.cat([size * torch.randn(300, 5, generator=generator), torch.zeros(1, 5), torch.ones(1, 5)])


# layout

STREAM = {
    "squeeze": (8, 64),
    "shift": (64, 8),
    "amplitude": (64, 8),
    "rate": (64, 8),
    "last": (32, 64),
}


@pytest.mark.parametrize("length", [2, 5, 7])
def test_layers_are_the_published_ones(length):
    shapes = {"out.weight": (1, 64), "out.bias": (1,)}
    for stream, inputs in (("values", length), ("differences", length - 1)):
        for layer, shape in {"first": (64, inputs), **STREAM}.items():
            shapes |= {f"{stream}.{layer}.weight": shape, f"{stream}.{layer}.bias": shape[:1]}
    assert {name: tuple(tensor.shape) for name, tensor in KnownNet(length).state_dict().items()} == shapes


def test_each_role_has_9425_parameters(hyper):
    sizes = {role: sum(p.numel() for p in net.parameters()) for role, net in hyper.nets.items()}
    assert sizes == {"conv": 9425, "fc": 9425, "bias": 9425}
    assert hyper.length == 5


def test_initial_weights_fill_their_bounds():
    torch.manual_seed(0)
    for name, tensor in KnownNet().state_dict().items():
        if name.endswith("bias"):
            assert not tensor.any()
            continue
        outputs, inputs = tensor.shape
        plain = name.split(".")[1] in ("first", "last")
        limit = math.sqrt(3 * 0.1 / inputs) if plain else math.sqrt(6 / (inputs + outputs))
        assert 0.9 * limit < float(tensor.abs().max()) <= limit
        assert float(tensor.std()) == pytest.approx(limit / math.sqrt(3), rel=0.15)  # uniform


# the formula


def scalar_stream(state: dict[str, np.ndarray], name: str, inputs: list[float]) -> list[float]:
    def linear(layer: str, x: list[float]) -> list[float]:
        weight, bias = state[f"{name}.{layer}.weight"], state[f"{name}.{layer}.bias"]
        return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]

    x = linear("first", inputs)
    h = [max(v, 0.0) for v in linear("squeeze", x)]
    added, factor, rate = linear("shift", h), linear("amplitude", h), linear("rate", h)
    y = [a + f * math.exp(r * v) for a, f, r, v in zip(added, factor, rate, x, strict=True)]
    return [v if v > 0 else 0.3 * v for v in linear("last", y)]


def scalar_residual(state: dict[str, np.ndarray], window: list[float]) -> float:
    """The paper's formulas for one weight, in double precision, term by term."""
    differences = [later - earlier for earlier, later in pairwise(window)]
    both = scalar_stream(state, "values", window) + scalar_stream(state, "differences", differences)
    weight = state["out.weight"][0]
    return math.tanh(sum(w * v for w, v in zip(weight, both, strict=True)) + state["out.bias"][0])


@pytest.mark.parametrize("role", PREDICTED)
def test_the_residual_is_that_of_the_formulas(hyper, windows, role):
    state = {name: t.double().numpy() for name, t in hyper.nets[role].state_dict().items()}
    some = windows[::30]
    expected = [scalar_residual(state, window) for window in some.double().tolist()]
    assert max(map(abs, expected)) > 0.02
    np.testing.assert_allclose(hyper.residual(some, role).numpy(), expected, atol=1e-6)


def test_chunks_do_not_change_it(hyper, windows):
    whole = hyper.residual(windows, "conv")
    for chunk in (1, 7, 301, 10_000):
        torch.testing.assert_close(hyper.residual(windows, "conv", chunk=chunk), whole, atol=1e-6, rtol=0)


def test_no_windows_give_no_answers(hyper):
    assert hyper.residual(torch.zeros(0, 5), "fc").shape == (0,)


def test_the_order_of_the_history_matters_and_that_of_the_weights_does_not(hyper, windows):
    answer = hyper.residual(windows, "fc")
    assert not torch.allclose(hyper.residual(windows.flip(1), "fc"), answer, atol=1e-3)
    torch.testing.assert_close(hyper.residual(windows.flip(0), "fc"), answer.flip(0), atol=1e-6, rtol=0)


def test_a_step_is_at_most_1(hyper):
    answer = hyper.residual(torch.linspace(-5, 5, 100)[:, None].repeat(1, 5), "conv")
    assert float(answer.abs().max()) <= 1


# the penalty


@pytest.mark.parametrize("bias_penalty", [0.1, 0.0])
def test_the_penalty_is_an_l1_of_the_plain_layers(bias_penalty):
    net = KnownNet()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(-2.0)
    weights = 64 * 5 + 32 * 64 + 64 * 4 + 32 * 64
    biases = 2 * (64 + 32)
    assert float(net.penalty(bias_penalty).detach()) == pytest.approx(2 * (1e-6 * weights + bias_penalty * biases))


def test_the_published_penalty_is_the_default():
    net = KnownNet()
    with torch.no_grad():
        net.values.first.bias.fill_(1.0)
        net.values.squeeze.bias.fill_(5.0)  # not a plain layer
    zero = float(KnownNet().penalty(0.0).detach())
    assert float(net.penalty().detach()) == pytest.approx(6.4, abs=10 * zero)


# the file


def test_a_saved_known_is_the_same(hyper, windows, tmp_path):
    hyper.save(tmp_path / "known.safetensors")
    again = Known.load(tmp_path / "known.safetensors")
    assert again.facts == hyper.facts
    for role in PREDICTED:
        assert torch.equal(again.residual(windows, role), hyper.residual(windows, role))
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "known.safetensors").read_bytes()


def test_roles_have_networks_of_their_own(hyper, windows):
    answers = [hyper.residual(windows, role) for role in PREDICTED]
    assert not torch.allclose(answers[0], answers[1], atol=1e-3)
    assert not torch.allclose(answers[1], answers[2], atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "role", "said"),
    [((3, 4), "conv", r"\(3, 4\)"), ((3, 6), "conv", r"\(3, 6\)"), ((5,), "conv", r"\(5,\)"), ((3, 5), "norm", "norm")],
)
def test_windows_of_another_length_or_role_are_refused(hyper, shape, role, said):
    with pytest.raises(KnowError, match=said):
        hyper.residual(torch.zeros(shape), role)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.clear(),
        lambda s: s.pop("fc.out.bias"),
        lambda s: [s.pop(name) for name in list(s) if name.startswith("bias.")],
        lambda s: s.update({"conv.out.weight": torch.zeros(1, 63)}),
        lambda s: s.update({"conv.values.first.weight": torch.zeros(64)}),
        lambda s: s.update({"conv.surplus": torch.zeros(1)}),
    ],
    ids=["empty", "one tensor less", "a role less", "another shape", "another number of axes", "one tensor more"],
)
def test_a_file_that_holds_no_known_is_named(hyper, tmp_path, change):
    hyper.save(tmp_path / "known.safetensors")
    state = load_state(tmp_path / "known.safetensors")
    change(state)
    save_state(tmp_path / "other.safetensors", state)
    with pytest.raises(KnowError, match=r"other\.safetensors"):
        Known.load(tmp_path / "other.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(KnowError, match=r"nothing\.safetensors does not exist"):
        Known.load(tmp_path / "nothing.safetensors")


# parity with the authors' networks

LAYERS = ["first", "squeeze", "shift", "amplitude", "rate", "last"]


@pytest.fixture(scope="module")
def released():
    """The folder with the authors' files, and a reader of one of them (KNOWN or WNN, same layout) as a `KnownNet`."""
    folder = os.environ.get("KNOW_REFERENCE")
    if not folder or not Path(folder, "KNOWN_Conv.h5").is_file():
        pytest.skip("KNOW_REFERENCE names no folder with the authors' released weights (KNOWN_Conv.h5, ...)")
    h5py = pytest.importorskip("h5py", reason="reading the authors' Keras files needs h5py")

    def read(file: str) -> KnownNet:
        with h5py.File(Path(folder, file)) as archive:
            kernels: list[str] = []
            archive.visit(lambda name: kernels.append(name) if name.endswith("kernel:0") else None)
            kernels.sort(key=lambda name: int(name.split("/")[0].partition("_")[2] or 0))
            names = [f"{s}.{layer}" for s in ("values", "differences") for layer in LAYERS] + ["out"]
            state = {}
            for name, kernel in zip(names, kernels, strict=True):
                state[f"{name}.weight"] = torch.from_numpy(archive[kernel][()].T.copy())
                state[f"{name}.bias"] = torch.from_numpy(archive[kernel.replace("kernel", "bias")][()])
        net = KnownNet()
        net.load_state_dict(state)
        return net

    return Path(folder), read


FILES = {"conv": "Conv", "fc": "FC", "bias": "Bias"}


@pytest.mark.parametrize("role", PREDICTED)
def test_released_weights_answer_as_in_keras(released, role):
    folder, read = released
    known = Known(dict.fromkeys(PREDICTED, read(f"KNOWN_{FILES[role]}.h5")))
    expected = np.load(folder / "known_official_outputs.npz")
    ours = known.residual(torch.from_numpy(expected["window"]), role)
    np.testing.assert_allclose(ours.numpy(), expected[f"residual_{role}"], atol=5e-6)


@pytest.mark.parametrize("role", PREDICTED)
def test_three_recursions_of_released_weights_answer_as_in_keras(released, role):
    folder, read = released
    known = Known(dict.fromkeys(PREDICTED, read(f"KNOWN_{FILES[role]}.h5")))
    expected = np.load(folder / "wnn_official_outputs.npz")
    window = torch.from_numpy(expected["window"])
    ours = recurse(window, lambda history: history[:, -1] + known.residual(history, role), 3)
    np.testing.assert_allclose(ours.numpy(), expected[f"known_x8_{role}"], atol=2e-5)
