"""Other devices than the CPU: nothing is left behind on the host, and a GPU, where there is one, gives the same."""

import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from benchmarks.data import Dataset, Split
from benchmarks.networks import build
from benchmarks.settings import Recipe
from benchmarks.stacked import Stacked
from benchmarks.training import train

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
RECIPES = {
    "plain": {},
    "augmented": {"augment": "affine", "head_epochs": 1},
    "shifted": {"augment": "shift", "schedule": "cosine"},
    "decayed": {"weight_decay": 0.01, "steps": 5},
}


def pictures(device: str = "cpu") -> Dataset:
    dice = torch.Generator().manual_seed(0)
    images = torch.randint(256, (96, 3, 8, 8), generator=dice, dtype=torch.uint8)
    split = Split(images, images[:, :, 2:5, 2:5].float().mean((1, 2, 3)).gt(127).long())
    flat = torch.full((3,), 0.5)
    return Dataset("random", split, split, ("0", "1"), "", flat, flat, flip=True).to(device)


def recipe(**options) -> Recipe:
    return Recipe(**{"epochs": 2, "learning_rate": 1e-3, "batch_size": 32, **options})


@pytest.fixture
def imagined(monkeypatch):
    """A device whose tensors have shapes and no values (torch's "meta"); to mix it with the host is an error, as it is
    with a GPU.

    What the host may read from it is made up; to wait for it anywhere else is an error too.
    """

    def tolist(tensor):
        with unset_fake_temporarily():
            return torch.zeros(tensor.shape).tolist()

    monkeypatch.setattr(FakeTensor, "tolist", tolist)  # once per epoch
    monkeypatch.setattr(FakeTensor, "__bool__", lambda _: True, raising=False)  # at the end: are the weights finite?
    adam = sys.modules["torch.optim.adam"]  # its fused kernel is there on a GPU
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """`model.to("meta")`, which does not work with imagined tensors."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = (
                torch.nn.Parameter(parameter.detach().to("meta")) if parameter is not None else None
            )
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer.to("meta") if buffer is not None else None
    return model


def real(network: str, **options) -> torch.nn.Module:
    with unset_fake_temporarily():
        return build(network, (3, 8, 8), 2, **options)


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_training_leaves_nothing_on_the_host(options, imagined):
    dataset = pictures("meta")
    model = moved(real("normcnn"))
    outcome = train(model, dataset, dataset.train, recipe(**options), seed=1)
    assert len(outcome.history) == 2 + recipe(**options).head_epochs  # 3 batches an epoch
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)
def test_stacked_training_leaves_nothing_on_the_host(options, imagined):
    dataset = pictures("meta")
    networks = Stacked([moved(real("plaincnn", seed=k)) for k in range(3)])
    members = torch.arange(90).reshape(3, 30)
    rates = {"learning_rates": [1e-3, 2e-3, 3e-3], "rate_factors": [{}, {"head.weight": 2.0}, {}]}
    networks.train(dataset, dataset.train, members, recipe(**options), seeds=range(3), **rates)
    assert networks.logits(dataset, dataset.train, members).shape == (3, 30, 2)
    assert {tensor.device.type for state in networks.states() for tensor in state.values()} == {"meta"}


def test_an_imagined_device_notices_what_was_left_behind(imagined):
    dataset = pictures("meta")
    model = real("mlp")  # not moved
    with pytest.raises(RuntimeError, match="device"):
        train(model, dataset, dataset.train, recipe(), seed=1)


@CUDA
@pytest.mark.parametrize("network", ["mlp", "plaincnn", "normcnn"])
def test_a_gpu_gives_the_same_in_float32(network):
    """Same pictures in the same order; sums come out in another."""
    found = {}
    for device in ("cpu", "cuda"):
        dataset = pictures(device)
        model = build(network, dataset.shape, 2, seed=3).to(device)
        plan = recipe(augment="affine", optimizer="sgd", learning_rate=1e-2)
        outcome = train(model, dataset, dataset.train, plan, seed=1)
        found[device] = {name: tensor.cpu() for name, tensor in model.state_dict().items()}, outcome.history
    (weights, history), (theirs, their_history) = found.values()
    for name, tensor in weights.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-3, rtol=1e-3)
    assert [row["loss"] for row in their_history] == pytest.approx([row["loss"] for row in history], rel=1e-3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("network", ["mlp", "plaincnn", "normcnn"])
def test_bfloat16_stays_near_float32(network, device):
    """The pass has 8 bits of mantissa, so that losses agree to a few times 2^-8; weights stay float32."""
    losses, models = {}, {}
    for precision in ("float32", "bfloat16"):
        dataset = pictures(device)
        models[precision] = build(network, dataset.shape, 2, seed=3).to(device)
        plan = recipe(precision=precision, epochs=4)
        outcome = train(models[precision], dataset, dataset.train, plan, seed=1)
        losses[precision] = [row["loss"] for row in outcome.history]
        assert {p.dtype for p in models[precision].parameters()} == {torch.float32}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]


@pytest.mark.parametrize("network", ["plaincnn", "resnet8"])
def test_a_compiled_network_trains_the_same(network):
    dataset, weights = pictures(), {}
    for compile in (False, True):
        model = build(network, dataset.shape, 2, seed=3)
        train(model, dataset, dataset.train, recipe(compile=compile, optimizer="sgd", steps=4), seed=1)
        weights[compile] = model.state_dict()
    assert list(weights[True]) == list(weights[False])
    for name, tensor in weights[False].items():
        torch.testing.assert_close(weights[True][name], tensor, atol=1e-4, rtol=1e-4)
