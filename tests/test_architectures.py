"""`know predict` on architectures as people load them: timm, torchvision, Hugging Face text models from a config."""

import copy
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from know.checkpoints import Checkpoint, load_state, save_state
from know.prediction import Request, plan, predict_files
from know.trajectory import PREDICTED, Trajectory

FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
TIMM: dict[str, tuple[int, dict]] = {  # name to the side of the picture, and what makes it small
    "resnet10t": (64, {}),
    "convnext_atto": (64, {}),
    "vit_tiny_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "pvt_v2_b0": (64, {}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1)}),
    "swinv2_cr_tiny_ns_224": (64, {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1)}),
    "efficientnet_lite0": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "regnetx_002": (64, {}),
    "MlpMixer": (64, {"img_size": 64, "patch_size": 16, "num_blocks": 2, "embed_dim": 64}),
    "ghostnet_050": (64, {}),
    "mnasnet_small": (64, {}),
    "edgenext_xx_small": (64, {}),
    "mobilevit_xxs": (64, {}),
    "xcit_nano_12_p16_224": (64, {"depth": 2}),
    "beit_base_patch16_224": (32, {"img_size": 32, "depth": 1, "embed_dim": 96, "num_heads": 3}),
    "cait_xxs24_224": (32, {"img_size": 32, "depth": 2}),
    "lcnet_035": (64, {}),
    "tinynet_e": (64, {}),
    "test_byobnet": (64, {}),
    "test_efficientnet_gn": (64, {}),
    "test_mambaout": (64, {}),
    "test_nfnet": (64, {}),
}
TORCHVISION: dict[str, tuple[int, dict]] = {
    "mobilenet_v2": (64, {}),
    "densenet121": (64, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    "shufflenet_v2_x0_5": (64, {}),
    "squeezenet1_0": (64, {}),
    "deeplabv3_mobilenet_v3_large": (64, {"weights_backbone": None}),
}


def build(library: str, name: str, sizes: dict) -> nn.Module:
    if name == "MlpMixer":  # the registered ones cannot be made small
        return timm.models.MlpMixer(num_classes=5, **sizes)
    if name == "densenet121":
        return torchvision.models.DenseNet(num_classes=5, **sizes)
    if library == "torchvision":
        return torchvision.models.get_model(name, weights=None, num_classes=5, **sizes)
    return timm.create_model(name, num_classes=5, **sizes)


def trajectory_of(model: nn.Module, folder: Path, suffix: str = ".safetensors") -> Trajectory:
    """Five snapshots around the model: its parameters move, its buffers do not."""
    dice, paths = torch.Generator().manual_seed(0), []
    for k in reversed(range(5)):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter.add_(0.01 * k * torch.randn(parameter.shape, generator=dice))
        paths.append(folder / f"s{k}{suffix}")
        if suffix == ".pt":
            torch.save(moved.state_dict(), paths[-1])
        else:
            save_state(paths[-1], moved.state_dict())
    return Trajectory.from_checkpoints(paths, FRACTIONS)


def check_tensors(model: nn.Module, trajectory: Trajectory, found: dict[str, torch.Tensor]) -> None:
    """Every matrix and bias is predicted, by role; normalisation and integers are theta_0's, bit for bit."""
    before, rows = model.state_dict(), {row.tensor: row for row in plan(trajectory)}
    assert rows.keys() == before.keys() == found.keys()
    normalising = {
        f"{name}.{kind}".lstrip(".")
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for kind, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 1
    }
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in before.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype), name
        if name in normalising or not tensor.is_floating_point() or tensor.ndim == 0:
            assert rows[name].role in ("norm", "buffer"), name
            assert torch.equal(found[name], tensor), name
        elif name in parameters:
            assert rows[name].role in PREDICTED, name
            assert not torch.equal(found[name], tensor) or not tensor.numel(), name


CASES = [("timm", *case) for case in TIMM.items()] + [("torchvision", *case) for case in TORCHVISION.items()]


@pytest.mark.parametrize(("library", "name", "made"), CASES, ids=[case[1] for case in CASES])
def test_a_network_for_pictures_is_predicted_loads_and_runs(tmp_path, library, name, made):
    torch.manual_seed(0)
    side, sizes = made
    model = build(library, name, sizes).eval()
    trajectory = trajectory_of(model, tmp_path, ".pt" if name == "mobilenet_v2" else ".safetensors")
    predict_files(trajectory, Request(), tmp_path / "out")
    found = load_state(next((tmp_path / "out").glob("model.*")))
    check_tensors(model, trajectory, found)
    model.load_state_dict(found, strict=True)
    with torch.no_grad():
        answer = model(torch.randn(1, 3, side, side))
    answers = answer.values() if isinstance(answer, dict) else [answer]
    assert all(bool(each.isfinite().all()) for each in answers)
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            path.unlink()  # the temporary folders of all networks together would be large


def test_at_least_25_architectures_are_walked():
    assert len(CASES) >= 25


def text_models() -> dict[str, nn.Module]:
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"intermediate_size": 32, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    gpt = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 1}
    t5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    llama = {**small, "num_key_value_heads": 1}
    return {
        "bert": transformers.BertForMaskedLM(transformers.BertConfig(**small)),
        "gpt2": transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt, eos_token_id=2)),
        "t5": transformers.T5ForConditionalGeneration(transformers.T5Config(**t5)),
        "llama": transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama, tie_word_embeddings=False)),
        "llama_tied": transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama, tie_word_embeddings=True)),
    }


def run_text(model: nn.Module) -> torch.Tensor:
    words = torch.arange(3, 11)[None]
    inputs = {"input_ids": words} | ({"decoder_input_ids": words} if model.config.model_type == "t5" else {})
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama", "llama_tied"])
@pytest.mark.parametrize("by", ["save_pretrained", "state_dict", "recorded"])
@pytest.mark.parametrize("predictor", ["known", "random_step"])
def test_a_text_model_keeps_its_tied_weights_tied(tmp_path, name, by, predictor):
    """random_step draws by the name of a tensor: tied names would part if they were not answered once."""
    torch.manual_seed(0)
    model = text_models()[name]
    tied = [{n for n, p in model.named_parameters(remove_duplicate=False) if p is one} for one in model.parameters()]
    if by == "save_pretrained":
        paths, dice = [tmp_path / f"s{k}" for k in reversed(range(5))], torch.Generator().manual_seed(0)
        for k, path in zip(reversed(range(5)), paths, strict=True):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for parameter in moved.parameters():
                    parameter.add_(0.01 * k * torch.randn(parameter.shape, generator=dice))
            moved.save_pretrained(path, max_shard_size="5KB")
        trajectory = Trajectory.from_checkpoints(paths, FRACTIONS)
    else:
        trajectory = trajectory_of(model, tmp_path, ".pt" if by == "state_dict" else ".safetensors")
    predict_files(trajectory, Request(predictor), tmp_path / "out")
    if by == "save_pretrained":
        shards = {path.name for path in paths[-1].glob("*.safetensors")}
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
