"""WNN+: what its answer follows, its file, and the answers of its authors' code."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import random_wnn_plus

from know import keras
from know.errors import KnowError
from know.files import sha256_file
from know.known import Models
from know.methods import get
from know.nino import WnnPlus, kind_of
from know.prediction import predict

NAMES = {
    "layer_embed.weight": (15, 128),
    "edge_proj.fc.0.weight": (128, 5),
    "edge_proj.fc.0.bias": (128,),
    **{f"edge_mlp.fc.{number}.weight": (128, 128) for number in (0, 2, 4)},
    **{f"edge_mlp.fc.{number}.bias": (128,) for number in (0, 2, 4)},
    "edge_mlp.fc.6.weight": (40, 128),
    "edge_mlp.fc.6.bias": (40,),
}
"""Names and shapes of the tensors in the authors' file."""


@pytest.fixture(scope="module")
def net() -> WnnPlus:
    return random_wnn_plus(1)


@pytest.fixture(scope="module")
def window() -> torch.Tensor:
    """A history of 300 weights, of mean 0.5 and standard deviation 1."""
    return 0.5 + torch.randn(300, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def file(tmp_path):
    """Function that writes a file as the authors' with random weights, changed by `change`; its path."""

    def write(change=lambda content: None) -> Path:
        dice = torch.Generator().manual_seed(2)
        state = {name: 0.1 * torch.randn(shape, generator=dice) for name, shape in NAMES.items()}
        content = {"state_dict": state, "model_args": {"gnn": False}}
        change(content)
        torch.save(content, tmp_path / "nino_mlp.pt")
        return tmp_path / "nino_mlp.pt"

    return write


# what the answer follows


@pytest.mark.parametrize("k", [1, 3, 40])
def test_a_permutation_of_the_weights_of_a_tensor_permutes_the_answer(net, window, k):
    order = torch.randperm(len(window), generator=torch.Generator().manual_seed(1))
    answer = net.predict(window, 1, k)
    assert answer.std() > 0.1
    torch.testing.assert_close(net.predict(window[order], 1, k), answer[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("a", "b"), [(1.0, 3.0), (20.0, 0.0), (0.1, -0.7), (5.0, 30.0)])
def test_the_answer_scales_and_shifts_with_the_weights(net, window, a, b):
    expected = a * net.predict(window, 2, 3) + b
    torch.testing.assert_close(net.predict(a * window + b, 2, 3), expected, rtol=1e-5, atol=1e-4 * a)


def test_the_answer_to_a_weight_depends_on_the_whole_tensor(net, window):
    assert not torch.allclose(net.predict(window, 1, 1)[:10], net.predict(window[:10], 1, 1), atol=1e-3)


def test_the_depth_chooses_a_row_of_the_last_layer(window):
    """A row that is 0 predicts no step, and a bias of 1 there a step of one standard deviation."""
    net = random_wnn_plus(1)
    with torch.no_grad():
        net.layers[-1].weight[2] = 0
        net.layers[-1].bias[2] = 0
        torch.testing.assert_close(net.predict(window, 1, 3), window[:, -1], rtol=1e-5, atol=1e-5)
        others = [net.predict(window, 1, k) for k in (1, 2, 4)]
        net.layers[-1].bias[2] = 1
        torch.testing.assert_close(net.predict(window, 1, 3), window[:, -1] + window.std(), rtol=1e-5, atol=1e-5)
        assert all(torch.equal(net.predict(window, 1, k), kept) for k, kept in zip((1, 2, 4), others, strict=True))


def test_the_kind_of_a_tensor_matters_and_goes_by_its_axes_and_name(net, window):
    kinds = {"kernel.weight": (8, 4, 3, 3), "matrix.weight": (8, 4), "scale.weight": (8,), "bias": (8,)}
    found = [kind_of(name, shape) for name, shape in kinds.items()]
    assert found == [3, 1, 4, 2]
    answers = [net.predict(window, kind, 1) for kind in found]
    assert all(not torch.allclose(one, other) for k, one in enumerate(answers) for other in answers[:k])


def test_a_large_tensor_is_answered_as_in_one_piece(net, monkeypatch):
    window = torch.randn(100, 5, generator=torch.Generator().manual_seed(3))
    whole = net.predict(window, 1, 2)
    monkeypatch.setattr("know.nino._CHUNK", 7)
    torch.testing.assert_close(net.predict(window, 1, 2), whole)


def test_the_method_looks_as_far_as_the_depth_says_from_the_true_history(walk, models):
    for depth in (1, 2, 3):
        answer = predict(walk, "wnn_plus", depth, known=models)["0.weight"]
        expected = models["wnn_plus"].predict(walk.window("0.weight"), 3, depth)
        torch.testing.assert_close(answer.flatten(), expected)


@pytest.mark.parametrize(("shape", "k", "said"), [((9, 4), 1, r"\(9, 4\)"), ((9, 5), 41, "1 to 40 steps .* 41")])
def test_another_number_of_snapshots_and_a_row_that_is_not_there_are_refused(net, shape, k, said):
    with pytest.raises(KnowError, match=said):
        net.predict(torch.randn(shape), 1, k)


# the file


def test_the_file_is_read_in_full(file, window):
    path = file()
    net = WnnPlus.load(path)
    assert sum(parameter.numel() for parameter in net.parameters()) == 57_384
    stored = torch.load(path, weights_only=True)["state_dict"]
    theirs = {"first": "edge_proj.fc.0", "kind": "layer_embed"}
    for name, tensor in net.state_dict().items():
        layer, _, kind = name.rpartition(".")
        layer = theirs.get(layer) or layer.replace("layers", "edge_mlp.fc")
        assert torch.equal(tensor, stored[f"{layer}.{kind}"]), name
    assert bool(net.predict(window, 1, 1).isfinite().all())


def test_reading_draws_no_random_numbers(file):
    path, before = file(), torch.get_rng_state()
    WnnPlus.load(path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["state_dict"].pop("layer_embed.weight"), r"'layer_embed\.weight': shape \(15, 128\) was expected"),
        (lambda c: c["state_dict"].update(gnn=torch.zeros(3)), r"'gnn': no such tensor was expected, shape \(3,\)"),
        (lambda c: c["state_dict"].update({"edge_proj.fc.0.weight": torch.zeros(32, 5)}), r"shape \(32, 5\) was found"),
        (lambda c: c["state_dict"]["edge_mlp.fc.6.bias"].fill_(torch.nan), "not finite"),
        (lambda c: c.pop("state_dict"), "'state_dict'"),
        (lambda c: c.update(model_args=Path("run")), "could run code"),
    ],
    ids=["one tensor less", "one more", "another shape", "not finite", "no weights", "more than tensors"],
)
def test_a_file_of_something_else_is_named_with_what_is_wrong(file, change, said):
    path = file(change)
    with pytest.raises(KnowError, match=said) as caught:
        WnnPlus.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"no torch file", "half"])
def test_a_file_that_is_missing_or_damaged_is_named(file, content):
    path = file()
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(KnowError, match=r"nino_mlp\.pt"):
        WnnPlus.load(path)


# where it is looked for


def test_it_is_taken_from_the_folder_and_a_run_depends_on_its_content(file, walk, hyper, monkeypatch):
    path = file()
    monkeypatch.setenv("KNOW_REFERENCE", str(path.parent))
    assert keras.missing("wnn_plus") is get("wnn_plus").missing({}, 5) is None
    assert keras.hashes() == {"nino_mlp.pt": sha256_file(path)}
    assert "5 snapshots" in get("wnn_plus").missing({}, 4)
    models = Models(hyper)
    assert predict(walk, "wnn_plus", known=models)
    assert models.files["wnn_plus"] == [path]
    before = keras.hashes()
    file(lambda content: content["state_dict"]["layer_embed.weight"].zero_())
    assert keras.hashes().keys() == before.keys()
    assert keras.hashes() != before


def test_a_folder_without_it_is_named_with_the_file(tmp_path, hyper, monkeypatch):
    monkeypatch.setenv("KNOW_REFERENCE", str(tmp_path))
    assert get("wnn_plus").missing({}, 5) == "the folder in KNOW_REFERENCE lacks nino_mlp.pt"
    assert keras.hashes() == {}
    with pytest.raises(KnowError, match=r"'wnn_plus' is not available: .* lacks nino_mlp\.pt"):
        Models(hyper)["wnn_plus"]


# the released weights


@pytest.fixture(scope="module")
def reference() -> Path:
    """The folder with the released weights and the answers of the official code."""
    folder = os.environ.get("KNOW_REFERENCE")
    if not folder or not Path(folder, "nino_mlp.pt").is_file():
        pytest.skip("KNOW_REFERENCE names no folder with the released weights of NiNo (nino_mlp.pt)")
    return Path(folder)


def test_released_weights_answer_as_the_official_code(reference):
    expected, net = np.load(reference / "wnnplus_official_outputs.npz"), WnnPlus.load(reference / "nino_mlp.pt")
    places = [name.removesuffix("window") for name in expected if name.endswith("/window") and "_h32" not in name]
    assert len(places) > 30
    for place in places:
        window = torch.from_numpy(expected[f"{place}window"])
        kind = kind_of(place.split("/")[1], tuple(expected[f"{place}shape"]))
        assert kind == expected[f"{place}type"]
        tolerance = 1e-5 * float(window.std()) + 2.0**-22 * float(window.abs().max())
        for k in (1, 2, 3, 5):
            error = np.abs(net.predict(window, kind, k).numpy() - expected[f"{place}k{k}"]).max()
            assert error <= tolerance, (place, k)
