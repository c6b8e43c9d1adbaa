"""Networks: the layouts that are promised, seeds, and finding and replacing the head of any model."""

import pytest
import torch
from small_model import equal
from torch import nn

from benchmarks.networks import (
    NETWORKS,
    build,
    has_running_statistics,
    head_and_normalisation,
    head_name,
    normalisation,
)
from know.errors import KnowError

RGB = (3, 32, 32)
LIBRARIES = {
    "timm:resnet10t": "fc",
    "timm:mobilenetv3_small_050": "classifier",
}


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# layouts


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 48, 48)])
def test_plaincnn_is_3x3_convolutions_with_biases_and_no_normalisation(shape):
    model = build("plaincnn", shape, 10)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [(c.out_channels, c.kernel_size, c.bias is not None) for c in convs] == [
        (width, (3, 3), True) for width in (8, 16, 32, 32)
    ]
    side = shape[1]
    for _ in convs:  # halved while at least 4 pixels are left
        side = side // 2 if side >= 4 else side
    assert [(m.in_features, m.out_features) for m in linears] == [(32 * side**2, 64), (64, 10)]
    assert {type(m) for m in model.modules() if list(m.parameters(recurse=False))} == {nn.Conv2d, nn.Linear}
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_normcnn_is_the_smallest_network_with_kernels_and_normalisation(shape):
    model = build("normcnn", shape, 10)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size, c.bias is not None) for c in convs] == [
        (8, (3, 3), True),
        (16, (3, 3), True),
    ]
    assert [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == [8, 16]
    assert size(model) < 2000
    assert model(torch.zeros(2, *shape)).shape == (2, 10)
    assert head_and_normalisation(model) == {f"{n}.{k}" for n in ("norm1", "norm2", "head") for k in ("weight", "bias")}


def test_resnet18_cifar_is_the_released_network():
    model = build("resnet18_cifar", RGB, 100).eval()
    assert size(model) == pytest.approx(11.2e6, rel=0.005)
    sides, macs = [], []

    def count(module, inputs, output):
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        macs.append(positions * module.weight.numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    for last_of_stage in (1, 3, 5, 7):
        model.blocks[last_of_stage].register_forward_hook(lambda m, i, output: sides.append(output.shape[1:3]))
    with torch.no_grad():
        assert model(torch.zeros(1, *RGB)).shape == (1, 100)
    assert sides == [(64, 34), (128, 34), (256, 17), (512, 9)]
    assert sum(macs) == pytest.approx(2.07e9, rel=0.005)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [c.kernel_size[0] for c in convs].count(1) == 3  # no shortcut convolution in the first stage
    assert all(c.bias is not None and not c.bias.any() for c in convs)
    assert {(n.eps, n.momentum) for n in norms} == {(1e-3, 0.01)}
    for conv in convs:  # he_normal
        assert conv.weight.std().item() == pytest.approx((2 / conv.weight[0].numel()) ** 0.5, rel=0.05)


def test_vit_tiny_is_normalised_by_layer_and_cuts_16_patches():
    model = build("vit_tiny", RGB, 10)
    norms = {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__}
    assert norms == {"LayerNorm"}
    assert model.patch_embed.num_patches == 16
    assert size(model) < 200_000


# seeds


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_seed_alone_decides_the_weights(name):
    state = torch.get_rng_state()
    first = build(name, RGB, 10, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert equal(first, build(name, RGB, 10, seed=3).state_dict())
    assert not equal(first, build(name, RGB, 10, seed=4).state_dict())


# heads


@pytest.mark.parametrize("name", sorted([*NETWORKS, *LIBRARIES]))
def test_the_head_is_what_changes_shape_with_the_classes(name):
    of_torchvision = {"densenet": "classifier", "mobilenetv2": "classifier.1", "shufflenet": "fc"}
    few, many = (build(name, (3, 64, 64), classes) for classes in (7, 10))
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in (few, many)]
    head = head_name(few)
    assert head == {**of_torchvision, **LIBRARIES}.get(name, "head")
    assert {key for key in shapes[0] if shapes[0][key] != shapes[1][key]} == {f"{head}.weight", f"{head}.bias"}
    assert few.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_head_and_normalisation_of_library_networks_are_named(name):
    model = build(name, (3, 64, 64), 10)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    expected = {f"{n}.{kind}" for n in [*norms, LIBRARIES[name]] for kind in ("weight", "bias")}
    assert head_and_normalisation(model) == expected


def test_head_and_normalisation_names_exactly_those():
    head = {"head.weight", "head.bias"}
    assert head_and_normalisation(build("plaincnn", RGB, 10)) == head
    norms = ["norm", *(f"blocks.{i}.norm{j}" for i in range(3) for j in (1, 2)), "blocks.1.shortcut.1"]
    norms.append("blocks.2.shortcut.1")
    expected = head | {f"{n}.{kind}" for n in norms for kind in ("weight", "bias")}
    assert head_and_normalisation(build("resnet8", RGB, 10)) == expected
    norms = ["norm", *(f"blocks.{i}.norm{j}" for i in range(4) for j in (1, 2))]
    expected = head | {f"{n}.{kind}" for n in norms for kind in ("weight", "bias")}
    assert head_and_normalisation(build("vit_tiny", RGB, 10)) == expected


# normalisation

NORMALISED = ["normcnn", "resnet8", "vit_tiny", "plaincnn", *LIBRARIES]


@pytest.mark.parametrize("name", NORMALISED)
def test_normalisation_is_what_is_neither_head_nor_kernel_nor_bias(name):
    model = build(name, RGB, 10)
    head = {f"{head_name(model)}.{kind}" for kind in ("weight", "bias")}
    ends = ("running_mean", "running_var", "num_batches_tracked")
    statistics = {key for key in model.state_dict() if key.endswith(ends)}
    assert normalisation(model) == head_and_normalisation(model) - head | statistics
    assert len(statistics) == 3 * sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "keeps"), [("normcnn", True), ("resnet8", True), ("vit_tiny", False), ("mlp", False), ("plaincnn", False)]
)
def test_running_statistics_are_those_of_batch_normalisation(name, keeps):
    assert has_running_statistics(build(name, RGB, 10)) == keeps


# wrong names and shapes


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet9", "'resnet8'"),
        ("plaincn", "'plaincnn'"),
        ("hub:resnet18", "network 'hub:resnet18'"),
        ("timm:resnet10", "'resnet10t'"),
    ],
)
def test_an_unknown_network_is_named_with_the_nearest(name, near):
    with pytest.raises(KnowError, match=near):
        build(name, RGB, 10)


def test_a_model_without_linear_layer_has_no_head():
    with pytest.raises(KnowError, match="Sequential"):
        head_name(nn.Sequential(nn.Conv2d(1, 1, 3)))
