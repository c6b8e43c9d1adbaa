"""Networks: the small networks of the suites, the paper's ResNet-18, and any timm model by name.

An example is `build("resnet8", shape=(3, 32, 32), classes=10, seed=0)`. `timm:NAME` has fresh weights too. The
classifier ("head") is found by name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from know.errors import KnowError, unknown

NORMALISATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
"""Module types whose parameters count as normalisation (BatchNorm, InstanceNorm, LayerNorm, GroupNorm)."""


class PlainCNN(nn.Module):
    """The small network of the authors' examples: 3x3 convolutions 8-16-32-32 with biases, no normalisation.

    Max-pooling follows each convolution while the side is at least 4; then follow a linear layer of 64 and the head.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        channels, side = shape[0], min(shape[1:])
        self.convs, self.pooled = nn.ModuleList(), []
        for width in (8, 16, 32, 32):
            self.convs.append(nn.Conv2d(channels, width, 3, padding=1))
            self.pooled.append(side >= 4)
            channels, side = width, side // 2 if side >= 4 else side
        self.hidden = nn.Linear(self._features(torch.zeros(1, *shape)).shape[1], 64)
        self.head = nn.Linear(64, classes)

    def _features(self, x: Tensor) -> Tensor:
        for conv, pool in zip(self.convs, self.pooled, strict=True):
            x = conv(x)
            x = F.relu(F.max_pool2d(x, 2) if pool else x)  # this order gives the same values with less work
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, classes)
        return self.head(F.relu(self.hidden(self._features(x))))


class NormCNN(nn.Module):
    """The smallest network with kernels and normalisation: 3x3 convolutions 8-16 with BatchNorm, mean, then head."""

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(shape[0], 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, classes)
        x = F.relu(F.max_pool2d(self.norm1(self.conv1(x)), 2))
        return self.head(F.relu(self.norm2(self.conv2(x))).mean((2, 3)))


class MLP(nn.Module):
    """A network with two hidden layers of 64 units."""

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        self.first = nn.Linear(shape[0] * shape[1] * shape[2], 64)
        self.second = nn.Linear(64, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, classes)
        return self.head(F.relu(self.second(F.relu(self.first(x.flatten(1))))))


class BasicBlock(nn.Module):
    """Block conv-norm-relu-conv-norm plus shortcut, then relu; shortcuts that change the shape are 1x1 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, bias: bool, **norm: float):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(outputs, **norm)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = nn.BatchNorm2d(outputs, **norm)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=bias)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs, **norm))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet8(nn.Module):
    """ResNet with BatchNorm and one block per stage 16-32-64 (78 k parameters); the stem halves sides of 24 or more."""

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        self.stem = nn.Conv2d(shape[0], 16, 3, 2 if min(shape[1:]) >= 24 else 1, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        widths = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        self.blocks = nn.Sequential(*(BasicBlock(*width, bias=False) for width in widths))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, classes)
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class ResNet18Cifar(nn.Module):
    """The paper's ResNet-18 for 32x32 as in the released script (Keras): about 2.07 GMAC and 11.2 M parameters.

    7x7 stem with stride 1, then one pixel of zero padding instead of max-pooling (maps of 34-34-17-9); biases on every
    convolution; BatchNorm eps 1e-3 and momentum 0.99 in Keras' terms, 0.01 in torch's; he_normal kernels, zero biases.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        norm = {"eps": 1e-3, "momentum": 0.01}
        self.stem = nn.Conv2d(shape[0], 64, 7, padding=3)
        self.norm = nn.BatchNorm2d(64, **norm)
        stages = ((64, 64, 1), (64, 128, 1), (128, 256, 2), (256, 512, 2))
        blocks = []
        for inputs, outputs, stride in stages:
            blocks += [BasicBlock(inputs, outputs, stride, bias=True, **norm)]
            blocks += [BasicBlock(outputs, outputs, 1, bias=True, **norm)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Keras' he_normal: standard deviation sqrt(2 / fan_in) of a normal cut at two sigma
                std = (2 / module.weight[0].numel()) ** 0.5 / 0.87962566
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 32, 32) -> (B, classes)
        x = F.pad(F.relu(self.norm(self.stem(x))), (1, 1, 1, 1))
        return self.head(self.blocks(x).mean((2, 3)))


def vit_tiny(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """timm's VisionTransformer with 16 patches, width 48, depth 4, 3 heads and LayerNorm (pre-norm)."""
    from timm.models.vision_transformer import VisionTransformer

    size = {"img_size": shape[1:], "patch_size": shape[1] // 4, "in_chans": shape[0], "num_classes": classes}
    return VisionTransformer(**size, embed_dim=48, depth=4, num_heads=3, mlp_ratio=2)


def densenet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """torchvision's DenseNet with three blocks of two layers and growth 8 (20 k parameters for 10 classes)."""
    from torchvision.models import DenseNet

    network = DenseNet(growth_rate=8, block_config=(2, 2, 2), num_init_features=16, num_classes=classes)
    network.features.conv0, network.features.pool0 = _small_stem(shape, 16), nn.Identity()
    return network


def shufflenet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """torchvision's ShuffleNetV2 with stages 32-64-128 of two units (50 k parameters for 10 classes)."""
    from torchvision.models import ShuffleNetV2

    network = ShuffleNetV2([2, 2, 2], [16, 32, 64, 128, 128], num_classes=classes)
    network.conv1[0], network.maxpool = _small_stem(shape, 16), nn.Identity()
    return network


def mobilenetv2(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """torchvision's MobileNetV2 with stages 8-16-24-32, of half the width (73 k parameters for 10 classes)."""
    from torchvision.models import MobileNetV2

    stages = [[1, 16, 1, 2], [4, 32, 1, 1], [4, 48, 2, 2], [4, 64, 1, 1]]  # expansion, width, units, stride
    network = MobileNetV2(num_classes=classes, width_mult=0.5, inverted_residual_setting=stages, dropout=0.0)
    network.features[0][0] = _small_stem(shape, 16)
    return network


def _small_stem(shape: tuple[int, int, int], width: int) -> nn.Conv2d:
    """A first convolution for small images of any number of channels, which halves the side, without a bias."""
    return nn.Conv2d(shape[0], width, 3, 2, padding=1, bias=False)


NETWORKS: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "densenet": densenet,
    "mlp": MLP,
    "mobilenetv2": mobilenetv2,
    "normcnn": NormCNN,
    "plaincnn": PlainCNN,
    "resnet8": ResNet8,
    "resnet18_cifar": ResNet18Cifar,
    "shufflenet": shufflenet,
    "vit_tiny": vit_tiny,
}


def build(name: str, shape: tuple[int, int, int], classes: int, *, seed: int = 0) -> nn.Module:
    """Make a freshly initialised network for images of `shape` (C, H, W); the global random state does not change.

    Kernels are stored in channels-last memory, in which small convolutions are faster.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _create(name, shape, classes)
    return model.to(memory_format=torch.channels_last)


def _create(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    library, _, model = name.rpartition(":")
    if library not in ("", "timm") or (not library and name not in NETWORKS):
        raise unknown("network", name, [*NETWORKS, "timm:NAME"])
    if not library:
        return NETWORKS[name](shape, classes)
    import timm

    if not timm.is_model(model):
        raise unknown("timm network", model, timm.list_models())
    return timm.create_model(model, in_chans=shape[0], num_classes=classes)


def head_name(model: nn.Module) -> str:
    """Dotted name of the classifier: the one timm records, else an attribute `head`, else the last linear layer."""
    recorded = getattr(model, "pretrained_cfg", None) or {}
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for candidate in (recorded.get("classifier"), "head"):
        if isinstance(candidate, str) and candidate in names:
            return candidate
    if not names:
        raise KnowError(f"{type(model).__name__} has no linear layer that could be its classifier")
    return names[-1]


def head_and_normalisation(model: nn.Module) -> set[str]:
    """Names of the parameters of the head and of every normalisation layer."""
    chosen, head = normalisation(model), head_name(model)
    return {name for name, _ in model.named_parameters() if name in chosen or name.rpartition(".")[0] == head}


def normalisation(model: nn.Module) -> set[str]:
    """Names in the state_dict of the parameters and running statistics of every normalisation layer."""
    layers = {name for name, module in model.named_modules() if isinstance(module, NORMALISATION)}
    return {key for key in model.state_dict() if key.rpartition(".")[0] in layers}


def has_running_statistics(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics (BatchNorm does, LayerNorm does not)."""
    return any(getattr(module, "running_mean", None) is not None for module in model.modules())


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state_dict, which further training leaves as it is."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
