"""KNOWN: its size and layout, its formulas against slow scalar ones, its file, and the authors' released weights."""

import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from know.checkpoints import load_state, save_state
from know.errors import KnowError
from know.known import Known, KnownNet, Models, scale_windows
from know.methods import recurse
from know.prediction import predict
from know.roles import PREDICTED, roles


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = 10 ** torch.empty(300, 1).uniform_(-3, 0.3, generator=generator)
    return torch.cat([size * torch.randn(300, 5, generator=generator), torch.zeros(1, 5), torch.ones(1, 5)])


# layout

STREAM = {"squeeze": (8, 64), "shift": (64, 8), "amplitude": (64, 8), "rate": (64, 8), "last": (32, 64)}


@pytest.mark.parametrize("length", [2, 5, 7])
def test_layers_are_the_published_ones(length):
    shapes = {"out.weight": (1, 64), "out.bias": (1,)}
    for stream, inputs in (("values", length), ("differences", length - 1)):
        for layer, shape in {"first": (64, inputs), **STREAM}.items():
            shapes |= {f"{stream}.{layer}.weight": shape, f"{stream}.{layer}.bias": shape[:1]}
    assert {name: tuple(tensor.shape) for name, tensor in KnownNet(length).state_dict().items()} == shapes
    if length == 5:
        assert sum(map(math.prod, shapes.values())) == 9425  # the paper's


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


@pytest.mark.parametrize("depth", [1, 3])
def test_prediction_is_the_formulas_scalar_by_scalar_and_step_by_step(hyper, write_trajectory, depth):
    """Windows and recursion in loops: smallest subset first; the answer pushed on, the oldest value dropped."""
    shapes = {"a.weight": (1, 1, 3, 3), "b.weight": (2, 2), "b.bias": (2,)}
    generator = torch.Generator().manual_seed(0)
    states = [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(5)]
    answer = predict(write_trajectory(states), "known", depth, known=hyper)
    for name, role in roles(states[0]).items():
        weights = {key: t.double().numpy() for key, t in hyper.nets[role].state_dict().items()}
        for i in range(states[0][name].numel()):
            window = [float(state[name].flatten()[i]) for state in states]
            for _ in range(depth):
                window = [*window[1:], window[-1] + scalar_residual(weights, window)]
            assert float(answer[name].flatten()[i]) == pytest.approx(window[-1], abs=3e-6)


def test_chunks_do_not_change_it(hyper, windows):
    whole = hyper.residual(windows, "conv")
    for chunk in (1, 7, 301, 10_000):
        torch.testing.assert_close(hyper.residual(windows, "conv", chunk=chunk), whole, atol=1e-6, rtol=0)


def test_no_windows_give_no_answers(hyper):
    assert hyper.residual(torch.zeros(0, 5), "fc").shape == (0,)


# scaled histories


@pytest.mark.parametrize(("scaling", "tolerance"), [("range", 1e-4), ("wnn", 1e-3)])
def test_scaled_windows_know_neither_place_nor_size(scaling, tolerance):
    window = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    inputs, factor = scale_windows(window, scaling)
    moved, moved_factor = scale_windows(3 * window + 2, scaling)
    torch.testing.assert_close(moved, inputs, atol=tolerance, rtol=0)
    torch.testing.assert_close(moved_factor, 3 * factor, rtol=tolerance, atol=0)
    assert not inputs[:, 0].any()
    size = 1.0 if scaling == "range" else 0.5
    extent = inputs.amax(1) - inputs.amin(1)
    torch.testing.assert_close(extent, torch.full((50,), size), rtol=tolerance, atol=0)
    # the factor takes a step back to the units of the weights
    torch.testing.assert_close(window[:, 0] + factor * inputs[:, -1], window[:, -1])


@pytest.mark.parametrize("scaling", ["range", "wnn"])
def test_a_history_that_stands_still_is_scaled_to_zeros(scaling):
    inputs, factor = scale_windows(torch.full((3, 5), 0.7), scaling)
    assert not inputs.any()
    assert float(factor.max()) < 1e-4
    assert float(factor.min()) > 0


def test_a_scaled_known_moves_and_grows_with_its_history(models, windows):
    """It cannot see how large a weight is; KNOWN can."""
    some = windows[windows.std(1) > 0.05]
    for model, sees in (("scaled", False), ("known", True)):
        plain, moved = (models[model].residual(window, "conv") for window in (some, some + 1))
        assert torch.allclose(plain, moved, atol=1e-4) != sees
        grown = models[model].residual(4 * some, "conv")
        assert torch.allclose(4 * plain, grown, atol=1e-3) != sees


# which network is asked


@pytest.mark.parametrize(
    ("role", "shape", "released"),
    [
        ("conv", (4, 2, 3, 3), "conv"),
        ("fc", (4, 2, 1, 1), "conv"),
        ("fc", (4, 2, 7, 7), "conv"),
        ("fc", (4, 2, 1, 3), "conv"),
        ("fc", (4, 2, 1, 1, 1), "conv"),
        ("fc", (1, 17, 48), "fc"),  # positions of a transformer are no kernels
        ("fc", (4, 2), "fc"),
        ("bias", (4,), "bias"),
    ],
)
def test_kernels_of_every_size_go_to_conv_by_the_released_rule_only(hyper, role, shape, released):
    assert Known(hyper.nets, {"roles": "released"}).role_of(role, shape) == released
    assert Known(hyper.nets, {"roles": "paper"}).role_of(role, shape) == role
    assert hyper.role_of(role, shape) == role


# models by name


def test_models_are_found_in_a_folder_or_beside_a_file(models, hyper, tmp_path):
    for name in ("known", "scaled"):
        models[name].save(tmp_path / f"{name}.safetensors")
    save_state(tmp_path / "meta_linear.safetensors", models["meta_linear"])
    hyper.save(tmp_path / "other.safetensors")
    for given in (tmp_path, tmp_path / "other.safetensors", str(tmp_path)):
        found = Models(given)
        assert found["known"].scaling == "none"
        assert found["scaled"].scaling == "range"
        assert found["meta_linear"].keys() == models["meta_linear"].keys()
        assert found["known"] is found["known"]  # read once


def test_known_alone_is_the_only_model(hyper):
    assert Models(hyper)["known"] is hyper
    with pytest.raises(KnowError, match="'meta_linear' was given beside KNOWN"):
        Models(hyper)["meta_linear"]


def test_a_model_that_does_not_exist_is_named(hyper, tmp_path, monkeypatch):
    with pytest.raises(KnowError, match="model 'scald': did you mean 'scaled'"):
        Models(hyper)["scald"]
    with pytest.raises(KnowError, match=r"scaled\.safetensors does not exist"):
        Models(tmp_path)["scaled"]
    monkeypatch.setenv("KNOW_REFERENCE", str(tmp_path))
    with pytest.raises(KnowError, match=r"lacks WNN_Conv\.h5, WNN_FC\.h5, WNN_Bias\.h5"):
        Models(hyper)["wnn"]


# the penalty


@pytest.mark.parametrize("bias_penalty", [None, 0.1, 0.0])
def test_the_penalty_is_an_l1_of_the_plain_layers(bias_penalty):
    net = KnownNet()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(-2.0)
    weights = 64 * 5 + 32 * 64 + 64 * 4 + 32 * 64
    biases = 2 * (64 + 32)
    penalty = net.penalty() if bias_penalty is None else net.penalty(bias_penalty)  # by default the paper's, 0.1
    share = 0.1 if bias_penalty is None else bias_penalty
    assert float(penalty.detach()) == pytest.approx(2 * (1e-6 * weights + share * biases))


# the file


@pytest.mark.parametrize(("model", "scaling"), [("known", "none"), ("scaled", "range")])
def test_a_saved_known_is_the_same(models, model, scaling, windows, tmp_path):
    models[model].save(tmp_path / "known.safetensors")
    again = Known.load(tmp_path / "known.safetensors")
    assert (again.facts, again.scaling) == (models[model].facts, scaling)
    for role in PREDICTED:
        assert torch.equal(again.residual(windows, role), models[model].residual(windows, role))
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "known.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("shape", "role", "said"),
    [
        ((3, 4), "conv", "takes 5 snapshots, and was asked about 4"),
        ((3, 6), "conv", "about 6"),
        ((5,), "conv", r"\(5,\)"),
        ((3, 5), "norm", "norm"),
    ],
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


# the authors' networks


@pytest.fixture(scope="module")
def reference() -> Path:
    """The folder with the authors' files."""
    pytest.importorskip("h5py", reason="reading the authors' Keras files needs h5py")
    folder = os.environ.get("KNOW_REFERENCE")
    if not folder or not Path(folder, "KNOWN_Conv.h5").is_file():
        pytest.skip("KNOW_REFERENCE names no folder with the authors' released weights (KNOWN_Conv.h5, ...)")
    return Path(folder)


@pytest.mark.parametrize("model", ["released", "wnn"])
def test_the_authors_networks_have_9425_parameters_a_role_and_survive_our_file(reference, model, windows, tmp_path):
    known = Known.from_keras(reference, model)
    assert {sum(p.numel() for p in net.parameters()) for net in known.nets.values()} == {9425}
    assert list(known.nets) == list(PREDICTED)
    known.save(tmp_path / "file.safetensors")
    again = Known.load(tmp_path / "file.safetensors")
    assert (again.scaling, again.facts["roles"]) == ("wnn" if model == "wnn" else "none", "released")
    for role in PREDICTED:
        assert torch.equal(again.residual(windows, role), known.residual(windows, role))


@pytest.mark.parametrize("role", PREDICTED)
def test_released_weights_answer_as_in_keras(reference, role):
    expected = np.load(reference / "known_official_outputs.npz")
    window = torch.from_numpy(expected["window"])
    errors = np.abs(Known.from_keras(reference).residual(window, role).numpy() - expected[f"residual_{role}"])
    usual = (window.abs() <= 2).all(1).numpy()
    assert 1000 < usual.sum() < len(usual)
    assert errors.max() <= 5e-6
    assert errors[usual].max() <= 1e-6


@pytest.mark.parametrize("role", PREDICTED)
def test_three_recursions_of_released_weights_answer_as_in_keras(reference, role):
    known, expected = Known.from_keras(reference), np.load(reference / "wnn_official_outputs.npz")
    window = torch.from_numpy(expected["window"])
    np.testing.assert_allclose(known.residual(window, role).numpy(), expected[f"known_residual_{role}"], atol=1e-6)
    ours = recurse(window, lambda history: history[:, -1] + known.residual(history, role), 3)
    np.testing.assert_allclose(ours.numpy(), expected[f"known_x8_{role}"], atol=5e-6)


@pytest.mark.parametrize("role", PREDICTED)
def test_released_wnn_answers_as_in_keras(reference, role):
    expected = np.load(reference / "wnn_official_outputs.npz")
    window, official = torch.from_numpy(expected["window"]), expected[f"wnn_prediction_{role}"]
    answer = (window[:, -1] + Known.from_keras(reference, "wnn").residual(window, role)).numpy()
    if role == "bias":  # there its script adds the answer to the unscaled value, which is taken back here
        first, last = expected["window"][:, 0], expected["window"][:, -1]
        factor = 2 * (np.ptp(expected["window"], axis=1) + 1e-8 + 1e-5)
        official = official - first - factor * last + last
    np.testing.assert_allclose(answer, official, atol=1e-6)


@pytest.mark.parametrize("model", ["released", "wnn"])
def test_a_folder_without_keras_files_is_named_in_one_line(tmp_path, model):
    pytest.importorskip("h5py")
    first = tmp_path / f"{'KNOWN' if model == 'released' else 'WNN'}_Conv.h5"
    for content in (None, b"", b"no Keras file at all", b"\x89HDF\r\n\x1a\n and no more"):
        if content is not None:
            first.write_bytes(content)
        with pytest.raises(KnowError) as caught:
            Known.from_keras(tmp_path, model)
        assert str(first) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shapes", [[], [(5, 64)], [(5, 64)] * 13, [(5, 64)] * 14, [(5,)] * 13])
def test_a_keras_file_of_another_network_is_named_in_one_line(tmp_path, shapes):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "KNOWN_Conv.h5", "w") as archive:
        for number, shape in enumerate(shapes):
            layer = f"dense_{number}/dense_{number}"
            archive[f"{layer}/kernel:0"] = np.zeros(shape, np.float32)
            archive[f"{layer}/bias:0"] = np.zeros(shape[-1:], np.float32)
    with pytest.raises(KnowError, match=r"KNOWN_Conv\.h5 is missing or is not one") as caught:
        Known.from_keras(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_of_the_authors_and_rule_of_roles_are_named(tmp_path):
    with pytest.raises(KnowError, match="model of the authors 'wmn': did you mean 'wnn'"):
        Known.from_keras(tmp_path, "wmn")
    with pytest.raises(KnowError, match="rule of roles 'papr': did you mean 'paper'"):
        Known.from_keras(tmp_path, roles="papr")
