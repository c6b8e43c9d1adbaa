"""`know predict` on architectures as people load them: timm, torchvision, Hugging Face text models from a config."""

import copy
import functools
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from small_model import FRACTIONS
from timm.models import byobnet
from torch import nn
from torchvision import models

from know.checkpoints import Checkpoint, load_state, save_state
from know.export import Request, plan, predict_files
from know.roles import PREDICTED
from know.trajectory import Trajectory

TIMM: dict[str, dict] = {  # name to what makes it small
    "resnet10t": {"channels": (16, 16, 32, 32)},
    "resnest14d": {"channels": (8, 8, 16, 16)},
    "convnext_atto": {"dims": (16, 16, 32, 32), "depths": (1, 1, 2, 1)},
    "convnextv2_atto": {"dims": (16, 16, 32, 32), "depths": (1, 1, 2, 1)},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2, "embed_dim": 48},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2, "embed_dim": 48},
    "beit_base_patch16_224": {"img_size": 64, "depth": 1, "embed_dim": 96, "num_heads": 3},
    "eva02_tiny_patch14_224": {"img_size": 64, "patch_size": 16, "depth": 1, "embed_dim": 48, "num_heads": 3},
    "cait_xxs24_224": {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 4, "depth_token_only": 1},
    "xcit_nano_12_p16_224": {"depth": 2, "embed_dim": 48},
    "pvt_v2_b0": {"embed_dims": (16, 32, 40, 64), "depths": (1, 1, 1, 1)},
    "twins_svt_small": {"img_size": 64, "embed_dims": (16, 32, 48, 64), "depths": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1)},
    "swinv2_cr_tiny_ns_224": {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1)},
    "coatnet_nano_rw_224": {"img_size": 64, "embed_dim": (32, 32, 64, 64), "depths": (1,) * 4, "stem_width": (8, 16)},
    "levit_128s": {"embed_dim": (32, 48, 64), "depth": (1, 1, 1)},
    "efficientformer_l1": {"embed_dims": (16, 32, 48, 64), "depths": (1, 1, 1, 2)},
    "edgenext_xx_small": {"dims": (16, 24, 40, 48), "depths": (1, 1, 2, 1)},
    "mobilevit_xxs": {},
    "dla34": {"channels": (4, 8, 16, 16, 32, 32)},
    "lcnet_035": {},
    "tinynet_e": {},
    "ghostnet_050": {},
    "hgnetv2_b0": {},
    "test_byobnet": {},
    "test_efficientnet_gn": {},
    "test_mambaout": {},
    "test_nfnet": {},
}
SIDES = {"levit_128s": 224, "efficientformer_l1": 224}
"""Of the picture, where it is not 64: their tables of positions are made for one size."""
LARGE = {"hgnetv2_b0", "googlenet", "mobilevit_xxs", "ghostnet_050", "squeezenet", "tinynet_e", "deeplab"}
"""They cannot be made small, and are asked with a method that is fast."""

QUICK = {"resnet10t", "convnext_atto", "vit_tiny_patch16_224", "one_output", "mobilenet_v2", "mnasnet", "densenet"}
"""Those that stand for the others where slow tests are left out."""
TORCH_FILES = {"mobilenet_v2", "vgg", "mnasnet"}
"""Saved as .pt; mnasnet loads only from a state_dict that has kept the versions of its modules."""


def rep_vgg() -> nn.Module:
    blocks = tuple(byobnet.ByoBlockCfg(type="rep", d=1, c=c, s=2, gs=0) for c in (8, 16))
    return byobnet.ByobNet(byobnet.ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=8), num_classes=5)


def deeplab() -> nn.Module:
    features = models.mobilenet_v2(width_mult=0.1).features[:18]
    head = models.segmentation.deeplabv3.DeepLabHead(features[17].out_channels, 5, (2, 4, 6))
    head[0].project[0] = nn.Conv2d(5 * 256, 16, 1, bias=False)  # its own, of 256 channels, is most of it
    head[0].project[1], head[1] = nn.BatchNorm2d(16), nn.Conv2d(16, 256, 3, padding=1, bias=False)
    return models.segmentation.DeepLabV3(models._utils.IntermediateLayerGetter(features, {"17": "out"}), head)


def max_vit() -> nn.Module:
    sizes = {"block_channels": [8, 16], "block_layers": [1, 1], "head_dim": 4, "stochastic_depth_prob": 0.0}
    return models.MaxVit(input_size=(64, 64), stem_channels=8, partition_size=4, num_classes=5, **sizes)


BUILT: dict[str, Callable[[], nn.Module]] = {
    **{name: functools.partial(timm.create_model, name, num_classes=5, **sizes) for name, sizes in TIMM.items()},
    "one_output": lambda: timm.create_model("resnet10t", num_classes=1, channels=(8, 8, 16, 16)),
    "mlp_mixer": lambda: timm.models.MlpMixer(5, img_size=64, num_blocks=2, embed_dim=64),
    "vgg": lambda: timm.models.vgg.VGG([8, "M", 16, "M", 16, "M"], num_classes=5, mlp_ratio=0.005),
    "rep_vgg": rep_vgg,
    "deeplab": deeplab,
    "max_vit": max_vit,
    "mobilenet_v2": lambda: models.mobilenet_v2(width_mult=0.25, num_classes=5),
    "mnasnet": lambda: models.MNASNet(0.1, num_classes=5),
    "densenet": lambda: models.DenseNet(num_classes=5, growth_rate=8, block_config=(2, 2, 2, 2)),
    "shufflenet": lambda: models.ShuffleNetV2([1, 1, 1], [8, 16, 32, 48, 64], num_classes=5),
    "squeezenet": lambda: models.squeezenet1_1(num_classes=5),
    "googlenet": lambda: models.GoogLeNet(num_classes=5, aux_logits=False, init_weights=False),
}


FACTORS = ("gamma", "gamma1", "gamma2", "gamma3", "gamma_1", "gamma_2", "logit_scale", "scale", "gain", "temperature")
"""Parameters of LayerScale, gates and standardised weights in these networks: they multiply, as normalisation does."""


def trajectory_of(model: nn.Module, folder: Path, suffix: str = ".safetensors") -> Trajectory:
    """Five snapshots around the model: its parameters move, its buffers do not. Without suffix they are folders of
    Hugging Face's.
    """
    dice, paths = torch.Generator().manual_seed(0), []
    for k in reversed(range(5)):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter.add_(0.01 * k * torch.randn(parameter.shape, generator=dice))
        paths.append(folder / f"s{k}{suffix}")
        if suffix == ".pt":
            torch.save(moved.state_dict(), paths[-1])
        elif not suffix:
            moved.save_pretrained(paths[-1], max_shard_size="5KB")
        else:
            save_state(paths[-1], moved.state_dict())
    return Trajectory.from_checkpoints(paths, FRACTIONS)


def check_tensors(model: nn.Module, trajectory: Trajectory, found: dict[str, torch.Tensor]) -> None:
    """Every matrix and bias is predicted, by role; normalisation, factors and integers are theta_0's, bit for bit."""
    before, rows = model.state_dict(), {row.tensor: row for row in plan(trajectory)}
    assert rows.keys() == before.keys()
    assert list(found) == list(trajectory.meta) == list(rows)
    normalising = {
        f"{name}.{kind}".lstrip(".")
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for kind, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 1
    }
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    normalising |= {
        name
        for name in parameters
        if name.rpartition(".")[2] in FACTORS or name.endswith(("lab.bias", "last_conv.2.bias"))
    }
    for name, tensor in before.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name
        if name in normalising or not tensor.is_floating_point() or tensor.ndim == 0:
            assert rows[name].role in ("norm", "buffer"), name
            assert torch.equal(found[name], tensor), name
        elif name in parameters:
            assert rows[name].role in PREDICTED, name
            assert not torch.equal(found[name], tensor) or not tensor.numel(), name


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BUILT]
)
def test_a_network_for_pictures_is_predicted_loads_and_runs(tmp_path, name):
    torch.manual_seed(0)
    model, side = BUILT[name]().eval(), SIDES.get(name, 64)
    suffix = ".pt" if name in TORCH_FILES else ".safetensors"
    trajectory = trajectory_of(model, tmp_path, suffix)
    predict_files(trajectory, Request("linear" if name in LARGE else "known"), tmp_path / "out")
    made = tmp_path / "out" / f"model{suffix}"
    found = torch.load(made) if suffix == ".pt" else load_state(made)
    check_tensors(model, trajectory, found)
    model.load_state_dict(found, strict=True)
    with torch.no_grad():
        answer = model(torch.randn(1, 3, side, side))
    answers = answer.values() if isinstance(answer, dict) else [answer]
    assert all(bool(each.isfinite().all()) for each in answers)
    shutil.rmtree(tmp_path)  # the temporary folders of all networks together would be large


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 32, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
TEXT = {
    "bert": ("BertForMaskedLM", "BertConfig", SMALL),
    "one_output": ("BertForSequenceClassification", "BertConfig", {**SMALL, "num_labels": 1}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "bos_token_id": 1, "eos_token_id": 2}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**SMALL, "num_key_value_heads": 1, "tie_word_embeddings": False}),
    "llama_tied": ("LlamaForCausalLM", "LlamaConfig", {**SMALL, "num_key_value_heads": 1, "tie_word_embeddings": True}),
}


def text_model(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    model, config, sizes = TEXT[name]
    return getattr(transformers, model)(getattr(transformers, config)(**sizes))


def run_text(model: nn.Module) -> torch.Tensor:
    words = torch.arange(3, 11)[None]
    inputs = {"input_ids": words} | ({"decoder_input_ids": words} if model.config.model_type == "t5" else {})
    with torch.no_grad():
        return model.eval()(**inputs).logits


QUICK_TEXT = {("gpt2", "save_pretrained", "random_step"), ("t5", "recorded", "known"), ("bert", "state_dict", "known")}
EVERY_TEXT = list(itertools.product(TEXT, ("save_pretrained", "state_dict", "recorded"), ("known", "random_step")))


@pytest.mark.parametrize(
    ("name", "by", "method"),
    [each if each in QUICK_TEXT else pytest.param(*each, marks=pytest.mark.slow) for each in EVERY_TEXT],
)
def test_a_text_model_keeps_its_tied_weights_tied(tmp_path, name, by, method):
    """random_step draws by the name of a tensor: tied names would part if they were not answered once."""
    torch.manual_seed(0)
    model = text_model(name)
    tied = [{n for n, p in model.named_parameters(remove_duplicate=False) if p is one} for one in model.parameters()]
    suffix = {"save_pretrained": "", "state_dict": ".pt", "recorded": ".safetensors"}[by]
    trajectory = trajectory_of(model, tmp_path, suffix)
    predict_files(trajectory, Request(method), tmp_path / "out")
    if by == "save_pretrained":
        shards = {path.name for path in trajectory.paths[-1].glob("*.safetensors")}
        assert len(shards) > 1
        assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == shards
        loaded = type(model).from_pretrained(tmp_path / "out")
    else:
        found = load_state(next((tmp_path / "out").glob("model.*")))
        assert found.keys() == model.state_dict().keys()
        for names in tied:
            first, *others = sorted(names & found.keys()) or [None]
            assert all(torch.equal(found[first], found[other]) for other in others)
        loaded = copy.deepcopy(model)
        loaded.load_state_dict(found, strict=True)
    moved = dict(loaded.named_parameters())
    for n, parameter in model.named_parameters():
        role = trajectory.roles().get(n)
        assert role is None or torch.equal(moved[n], parameter) == (role not in PREDICTED), n
    assert bool(run_text(loaded).isfinite().all())
    assert Checkpoint(trajectory.paths[-1]).meta.keys() == trajectory.meta.keys()
