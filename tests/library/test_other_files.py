"""Checkpoints and folders as people have them: nothing is damaged silently, and every refusal names the cause."""

import contextlib
import functools
import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import know
from know.checkpoints import load_state
from know.cli import app
from know.errors import KnowError
from know.export import Request, notes, plan, predict_files
from know.roles import reasons, roles
from know.trajectory import Trajectory

FRACTIONS = [0.0625, 0.125, 0.25, 0.5, 1]


def normal(*shape) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def base(k: int) -> dict[str, torch.Tensor]:
    """Snapshot k; 0 is theta_0."""
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (4, 8), "fc.bias": (4,)}
    return {name: normal(*shape) * (1 + 0.02 * k) for name, shape in shapes.items()}


@pytest.fixture
def written(tmp_path):
    """Function that writes snapshots, smallest subset first, and gives their trajectory."""

    def write(make, ending=".safetensors", save=None, **reading) -> Trajectory:
        save = save or (save_file if ending == ".safetensors" else torch.save)
        paths = [tmp_path / f"s{k}{ending}" for k in reversed(range(5))]
        for k, path in zip(reversed(range(5)), paths, strict=True):
            save(make(k), path)
        return Trajectory.from_checkpoints(paths, FRACTIONS, **reading)

    return write


def folder_of(state, path, name="model.safetensors", **files) -> None:
    path.mkdir()
    (torch.save if name.endswith(".bin") else save_file)(state, path / name)
    for file, text in {"config.json": "{}", **files}.items():
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text(text)


def predict_to(trajectory: Trajectory, out: Path, **request) -> list[str]:
    """Predict into a folder; the notes that the user sees."""
    asked = Request(**request)
    _, changes = predict_files(trajectory, asked, out)
    return notes(trajectory, asked, changes)


# what did not move


@pytest.mark.parametrize(
    "still",
    [
        torch.full((6, 6), float("-inf")).triu(1),
        torch.tensor([0.0, -0.0, 1.0, float("nan")]),
        torch.zeros(5, 5),
        torch.ones(300_000),  # more than one piece
    ],
    ids=["mask", "nan", "zeros", "large"],
)
@pytest.mark.parametrize("method", ["known", "linear", "shrink", "shrink_and_perturb"])
def test_a_tensor_that_is_the_same_in_all_snapshots_is_copied(written, tmp_path, still, method):
    trajectory = written(lambda k: {**base(k), "table": still.clone()})
    found = know.predict(trajectory, method)
    assert torch.equal(found["table"].view(torch.uint8), still.view(torch.uint8))
    assert not torch.equal(found["fc.weight"], base(0)["fc.weight"])
    predict_to(trajectory, tmp_path / "out", method=method)
    kept = load_file(tmp_path / "out/model.safetensors")["table"]
    assert torch.equal(kept.view(torch.uint8), still.view(torch.uint8))
    assert {row.tensor: row.action for row in plan(trajectory)}["table"] == "copied: the same in all snapshots"


def test_a_large_tensor_that_moves_at_its_end_alone_is_predicted(written):
    def make(k):
        tensor = torch.ones(300_000)
        tensor[-1] += 0.01 * k
        return {"large": tensor}

    assert know.predict(written(make), "linear")["large"][-1] != 1


@pytest.mark.parametrize("method", ["known", "linear", "shrink_and_perturb"])
def test_pruned_weights_stay_zero(written, method):
    mask = normal(4, 8) > 0
    found = know.predict(written(lambda k: {"fc.weight": base(k)["fc.weight"] * mask}), method)["fc.weight"]
    assert bool((found[~mask] == 0).all())
    assert bool((found[mask] != base(0)["fc.weight"][mask]).all())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda k: base(0), "all snapshots hold the same weights: nothing was forgotten"),
        (lambda k: {}, "0 weights would be predicted"),
        (lambda k: {"a": torch.arange(3)}, "0 weights would be predicted"),
        (lambda k: {"a.weight": torch.zeros(0), "b.weight": torch.zeros(0)}, "0 weights would be predicted"),
    ],
    ids=["equal", "empty", "integers", "empty tensors"],
)
def test_a_prediction_of_nothing_is_an_error(written, tmp_path, make, said):
    trajectory = written(make, ".pt")
    with pytest.raises(KnowError, match=said):
        know.predict(trajectory)
    with pytest.raises(KnowError, match=said):
        predict_files(trajectory, Request(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# our own snapshots


@pytest.fixture
def run(tmp_path):
    model = torch.nn.Linear(4, 2)

    def fit(model, subset):
        model.weight.data.add_(0.01)

    return know.forget(model, [0] * 64, fit, out=tmp_path / "run")


def test_the_order_that_snapshots_carry_is_held_against_the_one_given(run):
    paths = sorted(run.paths)  # as a shell lists them: theta_0 first
    with pytest.raises(KnowError, match=r"s0\.safetensors says that it is the snapshot of fraction 1"):
        know.predict(Trajectory.from_checkpoints(paths, FRACTIONS))


def test_snapshots_of_a_folder_are_checked_against_its_manifest(run):
    save_file({**load_file(run.paths[1]), "weight": torch.ones(2, 4)}, run.paths[1])
    with pytest.raises(KnowError, match="does not have the hash in its manifest"):
        know.predict(Trajectory.from_checkpoints(run.paths, FRACTIONS))


def test_a_finished_trajectory_is_never_added_to(tmp_path, folder_bytes):
    def record(weights):
        with Trajectory.record(tmp_path / "run", [0.5, 1]) as recorder:
            for fraction in (1, 0.5):
                recorder.add({"w": torch.full((2, 2), weights * fraction)}, fraction)

    record(1.0)
    before = folder_bytes(tmp_path / "run")
    with pytest.raises(KnowError, match="already, with other weights"):
        record(2.0)
    record(1.0)  # the same once more is no harm
    assert folder_bytes(tmp_path / "run") == before


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/hosts", "link.safetensors"])
def test_a_manifest_that_leaves_its_folder_is_refused(run, tmp_path, file):
    folder = run.paths[0].parent
    save_file(base(0), tmp_path / "other.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "other.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["snapshots"][0]["file"] = file
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(KnowError, match=r"outside itself|leaves its folder"):
        Trajectory.load(folder)


# what counts as the same training function


def step(model, subset, size):
    model.weight.data.add_(size)


class Fit:
    def __init__(self, size):
        self.size = size

    def __call__(self, model, subset):
        step(model, subset, self.size)

    run = __call__


def closure(size):
    return lambda model, subset: step(model, subset, size)


def adam(size):
    """The rate is in the state of an optimiser that the function holds."""
    optimizer = torch.optim.Adam([torch.ones(1, requires_grad=True)], lr=size)
    return lambda model, subset: step(model, subset, optimizer.param_groups[0]["lr"])


def typed_in(size):
    names = {}
    exec(f"def fit(model, subset):\n    model.weight.data.add_({size})", names)
    return names["fit"]


@pytest.mark.parametrize(
    "make", [lambda size: functools.partial(step, size=size), Fit, lambda size: Fit(size).run, closure, typed_in, adam]
)
def test_another_training_function_is_not_given_the_old_trajectory(tmp_path, make):
    def forget(size):
        torch.manual_seed(0)
        return know.forget(torch.nn.Linear(4, 2), [0] * 64, make(size), out=tmp_path / "run")

    first = forget(0.01)
    assert torch.equal(forget(0.01).states[0]["weight"], first.states[0]["weight"])
    with pytest.raises(KnowError, match="other weights, data, settings or `fit`"):
        forget(0.5)


def test_what_cannot_be_compared_is_said(tmp_path):
    import threading

    def forget():
        lock = threading.Lock()
        torch.manual_seed(0)
        fit = lambda model, subset: step(model, (subset, lock)[0], 0.01)  # noqa: E731
        return know.forget(torch.nn.Linear(4, 2), [0] * 64, fit, out=tmp_path / "run")

    forget()
    with pytest.warns(UserWarning, match="lock .a lock. of fit could not be compared"):
        forget()


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_wrapped_models_give_snapshots_of_the_plain_one(tmp_path, wrap):
    model = torch.nn.Linear(4, 2)
    trajectory = know.forget(
        wrap(model), [0] * 64, lambda model, subset: next(model.parameters()).data.add_(0.01), out=tmp_path / "run"
    )
    torch.nn.Linear(4, 2).load_state_dict(know.predict(trajectory), strict=True)
    assert torch.equal(model.weight, trajectory.states[0]["weight"])


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (lambda model, subset: model.weight.data.fill_(float("nan")), "fraction 0.5 tensor 'weight' has values"),
        (lambda model, subset: None, "left all weights as they were"),
    ],
)
def test_a_step_that_forgets_nothing_or_ends_in_nan_stops_the_trajectory(tmp_path, fit, said):
    with pytest.raises(KnowError, match=said):
        know.forget(torch.nn.Linear(4, 2), [0] * 64, fit, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_error_of_fit_is_the_one_that_is_seen(tmp_path):
    def fit(model, subset):
        del model.bias
        raise RuntimeError("my own error")

    with pytest.raises(RuntimeError, match="my own error"):
        know.forget(torch.nn.Linear(4, 2), [0] * 64, fit, out=tmp_path / "run")


# roles by meaning

ROLES = {
    "LayerNorm.gamma": ((8,), "norm"),
    "LayerNorm.beta": ((8,), "norm"),
    "ln.g": ((8,), "norm"),
    "ln.b": ((8,), "norm"),
    "sublayer.a_2": ((8,), "norm"),
    "sublayer.b_2": ((8,), "norm"),
    "rms.scale": ((8,), "norm"),
    "group.weight": ((1, 8, 1, 1), "norm"),
    "group.bias": ((1, 8, 1, 1), "norm"),
    "picture.weight": ((8, 4, 4), "norm"),
    "picture.bias": ((8, 4, 4), "norm"),
    "block.gamma_1": ((8,), "norm"),
    "block.ls1.gamma": ((8,), "norm"),
    "act.weight": ((8,), "norm"),
    "clip.logit_scale": ((), "buffer"),
    "swin.logit_scale": ((3, 1, 1), "norm"),
    "vit.cls_token": ((1, 1, 8), "fc"),
    "vit.pos_embed": ((1, 5, 8), "fc"),
    "rotary.inv_freq": ((8,), "buffer"),
    "attn.causal_mask": ((1, 1, 5, 5), "buffer"),
    "word.weight": ((50, 8), "fc"),
    "lstm.weight_ih_l0": ((32, 8), "fc"),
    "lstm.weight_hh_l0": ((32, 8), "fc"),
    "lstm.bias_ih_l0": ((32,), "bias"),
    "wn.weight_g": ((8, 1), "norm"),
    "wn.weight_v": ((8, 4), "fc"),
    "new_wn.parametrizations.weight.original0": ((8, 1, 1, 1), "norm"),
    "new_wn.parametrizations.weight.original1": ((8, 4, 3, 3), "conv"),
    "sn.weight_orig": ((8, 4, 3, 3), "conv"),
    "sn.weight_u": ((8,), "buffer"),
    "sn.weight_v": ((36,), "buffer"),
    "new_sn.parametrizations.weight.original": ((8, 4), "fc"),
    "new_sn.parametrizations.weight.0._u": ((8,), "buffer"),
    "vq.embed": ((8, 16), "buffer"),
    "vq.cluster_size": ((16,), "buffer"),
    "wave.weight": ((8, 4, 3), "fc"),
    "volume.weight": ((8, 4, 3, 3, 3), "fc"),
    "depthwise.weight": ((8, 1, 3, 3), "conv"),
    "unet.mid_block.attn.to_out.0.weight": ((8, 8), "fc"),
    "unet.mid_block.attn.to_out.0.bias": ((8,), "bias"),
    "unet.time_embedding.linear_1.weight": ((8, 4), "fc"),
    "normals_head.weight": ((3, 8), "fc"),
    "normals_head.bias": ((3,), "bias"),
    "one_output.weight": ((1, 8), "fc"),
    "one_output.bias": ((1,), "bias"),
    "own.W": ((8, 4), "fc"),
    "own.b": ((8,), "bias"),
}


def test_roles_go_by_what_a_tensor_is():
    state = {name: torch.empty(shape) for name, (shape, _) in ROLES.items()}
    assert roles(state) == {name: role for name, (_, role) in ROLES.items()}
    assert all(reason for _, reason in reasons(state).values())


def test_real_modules_have_the_roles_of_their_kind():
    from torch.nn.utils import parametrizations as new

    model = torch.nn.ModuleDict(
        {
            "wn": new.weight_norm(torch.nn.Linear(4, 8)),
            "sn": new.spectral_norm(torch.nn.Conv2d(3, 8, 3)),
            "gru": torch.nn.GRU(4, 8),
            "prelu": torch.nn.PReLU(8),
            "norm": torch.nn.LayerNorm((4, 8)),
            "attention": torch.nn.MultiheadAttention(8, 2),
            "up": torch.nn.ConvTranspose2d(3, 8, 3),
        }
    )
    found = roles(model.state_dict())
    assert {name for name, role in found.items() if role == "norm"} == {
        *("wn.parametrizations.weight.original0", "prelu.weight", "norm.weight", "norm.bias"),
    }
    assert {name for name, role in found.items() if role == "buffer"} == {
        *("sn.parametrizations.weight.0._u", "sn.parametrizations.weight.0._v"),
    }
    assert found["sn.parametrizations.weight.original"] == found["up.weight"] == "conv"


QUANTISED = {
    "gptq": {"q.qweight": torch.zeros(4, 8, dtype=torch.int32), "q.scales": torch.ones(1, 8).half()},
    "bitsandbytes": {"q.weight": torch.zeros(16, 1, dtype=torch.uint8), "q.weight.absmax": torch.ones(4)},
    "llm.int8": {"q.weight": torch.zeros(4, 8, dtype=torch.int8), "q.SCB": torch.ones(4)},
    "fp8": {"q.weight": torch.zeros(4, 8).to(torch.float8_e4m3fn), "q.weight_scale_inv": torch.ones(1, 1)},
}


@pytest.mark.parametrize("layer", QUANTISED.values(), ids=QUANTISED)
def test_quantised_weights_are_refused_as_a_whole_or_left_alone(written, layer):
    def make(k):
        return {**base(k), **{n: t * (1 + k) if t.dtype == torch.float32 else t for n, t in layer.items()}}

    trajectory = written(make)
    with pytest.raises(KnowError, match=r"'q' are quantised.*--skip 'q\*'"):
        know.predict(trajectory)
    found = know.predict(trajectory, roles={"q*": "skip"})
    assert all(torch.equal(found[n].view(torch.uint8), t.view(torch.uint8)) for n, t in layer.items())


def test_integers_beside_a_scale_are_not_always_codes(written):
    def make(k):
        table = torch.zeros(9, 9, dtype=torch.int64)
        return {**base(k), "attn.relative_position_index": table, "attn.logit_scale": torch.ones(3, 1, 1) + k}

    assert torch.equal(know.predict(written(make))["attn.logit_scale"], torch.ones(3, 1, 1))


def test_an_adapter_is_refused_with_the_way_to_merge_it(written):
    def make(k):
        return {"model.q.lora_A.weight": normal(4, 8) * (1 + k), "model.q.lora_B.weight": normal(8, 4) * (1 + k)}

    with pytest.raises(KnowError, match="merge"):
        know.predict(written(make))
    assert roles({"flora_head.weight": torch.empty(3, 3)}) == {"flora_head.weight": "fc"}


@pytest.mark.parametrize(
    ("odd", "what"), [(torch.eye(3).to_sparse(), "sparse"), (torch.empty(3, device="meta"), "on the meta device")]
)
def test_tensors_without_plain_values_are_named_and_may_be_skipped(written, tmp_path, odd, what):
    trajectory = written(lambda k: {**base(k), "odd": odd}, ".pt")
    with pytest.raises(KnowError, match=f"'odd' is {what}.*--skip 'odd'"):
        know.predict(trajectory)
    predict_to(trajectory, tmp_path / "out", roles=(("odd", "skip"),))
    assert torch.load(tmp_path / "out/model.pt")["odd"].layout == odd.layout


def test_extra_state_is_carried_over(written, tmp_path):
    trajectory = written(lambda k: {**base(k), "layer._extra_state": {"version": 3}}, ".pt")
    predict_to(trajectory, tmp_path / "out")
    assert torch.load(tmp_path / "out/model.pt")["layer._extra_state"] == {"version": 3}


def test_float64_keeps_its_digits_and_the_rounding_is_said(written, tmp_path):
    exact = normal(4, 8).double() + 1e-12
    trajectory = written(lambda k: {"fc.weight": exact * (1 + 1e-3 * k)})
    found = know.predict(trajectory, scale=0)["fc.weight"]
    assert torch.equal(found, exact)
    assert any("float64" in note for note in predict_to(trajectory, tmp_path / "out"))


# containers


@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.safetensors", "unet.fp16.safetensors"])
def test_folders_are_read_and_what_else_they_hold_is_carried_over(written, tmp_path, name):
    files = {"README.md": "license: mit", "LICENSE": "MIT", "1_Pooling/config.json": "{}", "optimizer.pt": "x"}
    trajectory = written(base, "", functools.partial(folder_of, name=name, **files))
    predict_to(trajectory, tmp_path / "out")
    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    carried = {"README.md", "LICENSE", "1_Pooling/config.json", "config.json"}
    assert made == {name, *carried, "README_know.md", "know_config.yml"}
    assert (tmp_path / "out/README.md").read_text() == "license: mit"
    assert load_state(tmp_path / "out").keys() == base(0).keys()


def test_shards_of_torch_are_read_and_written(written, tmp_path):
    def save(state, path):
        path.mkdir()
        where = {name: f"pytorch_model-0000{1 + k % 2}-of-00002.bin" for k, name in enumerate(state)}
        for shard in set(where.values()):
            torch.save({n: t for n, t in state.items() if where[n] == shard}, path / shard)
        (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))

    trajectory = written(base, "", save)
    predict_to(trajectory, tmp_path / "out")
    found = load_state(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in know.predict(trajectory).items())


def test_one_file_comes_before_a_stale_index_as_for_hugging_face(written):
    def save(state, path):
        folder_of(state, path)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"gone": "gone.safetensors"}}))

    assert know.predict(written(base, "", save)).keys() == base(0).keys()


def test_a_link_that_leaves_its_folder_is_refused_and_a_cache_is_none(written, tmp_path):
    (tmp_path / "secret.txt").write_text("my token")

    def save(state, path):
        folder_of(state, path)
        (path / "notes.txt").symlink_to(tmp_path / "secret.txt")

    with pytest.raises(KnowError, match=r"notes\.txt is a link that leaves its folder"):
        predict_files(written(base, "", save), Request(), tmp_path / "out")
    paths = []
    for k in reversed(range(5)):
        cache, blobs = tmp_path / f"cache{k}/snapshots/abc", tmp_path / f"cache{k}/blobs"
        cache.mkdir(parents=True)
        blobs.mkdir()
        save_file(base(k), blobs / "0123")
        (cache / "model.safetensors").symlink_to("../../blobs/0123")
        paths.append(cache)
    predict_files(Trajectory.from_checkpoints(paths, FRACTIONS), Request(), tmp_path / "out")
    paths = [path.parents[1] / "blobs/0123" for path in paths]  # files without an ending
    predict_files(Trajectory.from_checkpoints(paths, FRACTIONS), Request(), tmp_path / "plain")
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_predicted_safetensors_say_their_format(written, tmp_path):
    predict_to(written(base), tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_entries_beside_the_weights_are_carried_over_but_states_of_the_training(written, tmp_path):
    def make(k):
        beside = {"epoch": 3, "best": np.float64(0.9), "optimizer_states": [{}], "hyper_parameters": {"width": 4}}
        return {"state_dict": base(k), **beside}

    trajectory = written(make, ".ckpt", key="state_dict")
    (note,) = predict_to(trajectory, tmp_path / "out")
    assert "optimizer_states was left out" in note
    with torch.serialization.safe_globals([np._core.multiarray.scalar, np.dtype, type(np.dtype("d"))]):
        found = torch.load(tmp_path / "out/model.ckpt")
    assert found.keys() == {"state_dict", "epoch", "best", "hyper_parameters"}
    assert found["state_dict"].keys() == base(0).keys()


@pytest.mark.slow
def test_lightning_loads_what_is_made_of_its_checkpoint(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, width=16):
            super().__init__()
            self.save_hyperparameters()
            self.net = torch.nn.Linear(8, width)

        def training_step(self, batch, _):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    module, data = Module(width=4), torch.utils.data.TensorDataset(torch.randn(32, 8))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for k in reversed(range(5)):
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
        trainer.fit(module, torch.utils.data.DataLoader(data, 16))
        trainer.save_checkpoint(tmp_path / f"s{k}.ckpt")
    paths = [tmp_path / f"s{k}.ckpt" for k in reversed(range(5))]
    trajectory = Trajectory.from_checkpoints(paths, FRACTIONS, key="state_dict")
    predict_to(trajectory, tmp_path / "out")
    loaded = Module.load_from_checkpoint(tmp_path / "out/model.ckpt")
    assert loaded.hparams.width == 4
    assert torch.equal(loaded.net.weight, know.predict(trajectory)["net.weight"])


BYTES = {
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "web page": b"<!DOCTYPE html><html></html>",
    "GGUF": b"GGUF\x03\x00\x00\x00",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "numpy": b"\x93NUMPY\x01\x00",
    "gzip": b"\x1f\x8b\x08\x00",
    "is empty": b"",
    "cut short": b"PK\x03\x04" + b"\x00" * 100,
}


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ""])
@pytest.mark.parametrize(("what", "content"), BYTES.items(), ids=BYTES)
def test_the_first_bytes_tell_what_a_file_is(tmp_path, what, content, ending):
    (tmp_path / f"model{ending}").write_bytes(content)
    with pytest.raises(KnowError, match=what) as caught:
        load_state(tmp_path / f"model{ending}")
    assert "corrupt" not in str(caught.value)


def test_archives_of_other_kinds_are_called_by_name(tmp_path):
    np.savez(tmp_path / "weights.npz", a=np.ones(3))
    with pytest.raises(KnowError, match="archive of numpy"):
        load_state(tmp_path / "weights.npz")
    with pytest.warns():
        torch.jit.save(torch.jit.script(torch.nn.Linear(3, 3)), tmp_path / "script.pt")
    with pytest.raises(KnowError, match="TorchScript"):
        load_state(tmp_path / "script.pt")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"__0_0.distcp": "", ".metadata": ""}, "dcp_to_torch"),
        ({"zero_to_fp32.py": "", "latest": "global_step5"}, "zero_to_fp32.py"),
        ({"unet/model.safetensors": "", "model_index.json": "{}"}, "such as .*unet"),
        ({"a.safetensors": "", "b.safetensors": ""}, r"several checkpoints \(a.safetensors, b.safetensors\)"),
        ({}, "name the checkpoint's file"),
    ],
)
def test_a_folder_without_a_checkpoint_is_told_what_to_do(tmp_path, files, said):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(KnowError, match=said):
        load_state(folder)


def test_objects_that_are_refused_are_named(tmp_path):
    import argparse

    torch.save({"state_dict": base(0), "args": argparse.Namespace(lr=1)}, tmp_path / "model.pt")
    with pytest.raises(KnowError, match=r"argparse\.Namespace") as caught:
        load_state(tmp_path / "model.pt", key="state_dict")
    assert "weights_only" not in str(caught.value)
    assert "corrupt" not in str(caught.value)


def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1).expand(10**12)}, tmp_path / "bomb.pt")
    with pytest.raises(KnowError, match="claims 4,000,000,000,000 bytes"):
        load_state(tmp_path / "bomb.pt")


def test_hundreds_of_shards_do_with_few_open_files(tmp_path):
    def save(state, path):
        path.mkdir()
        for name, tensor in state.items():
            save_file({name: tensor}, path / f"{name}.safetensors")
        where = {name: f"{name}.safetensors" for name in state}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))

    paths = [tmp_path / f"s{k}" for k in reversed(range(5))]
    for k, path in zip(reversed(range(5)), paths, strict=True):
        save({f"w{j}": normal(2, 2) * (1 + 0.1 * k) for j in range(60)}, path)
    code = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "from know.cli import main\nmain()"
    )
    line = [sys.executable, "-c", code, "predict", *map(str, paths), "--fractions", "0.0625,0.125,0.25,0.5,1"]
    done = subprocess.run([*line, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 128  # only the other process had the limit


# names


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "backbone.net."])
@pytest.mark.parametrize("where", [0, 2])
def test_a_prefix_that_some_snapshots_have_is_matched_with_a_note(written, prefix, where):
    trajectory = written(lambda k: {(prefix if k == where else "") + name: t for name, t in base(k).items()}, ".pt")
    plain = know.predict(Trajectory.from_checkpoints(trajectory.paths, FRACTIONS))
    names = [(prefix if where == 0 else "") + name for name in base(0)]
    assert sorted(plain) == sorted(names)
    assert any("names were matched" in note for note in trajectory.notes)


def test_a_prefix_inside_is_matched_too(written):
    def make(k):
        return {name.replace("fc.", "fc._orig_mod.") if k == 1 else name: t for name, t in base(k).items()}

    assert know.predict(written(make)).keys() == base(0).keys()


def test_prefixes_are_stripped_and_one_that_is_nowhere_is_said(written):
    trajectory = written(lambda k: {f"module.net.{name}": t for name, t in base(k).items()}, strip=["module.", "net."])
    assert know.predict(trajectory).keys() == base(0).keys()
    assert trajectory.notes == []
    assert "no name begins with 'modul'" in written(base, strip="modul").notes[0]


@pytest.mark.parametrize("which", ["another size", "only theta_0", "only the others"])
def test_a_tensor_that_snapshots_do_not_share_is_no_obstacle_when_skipped(written, which):
    def make(k):
        has = {"another size": True, "only theta_0": k == 0, "only the others": k > 0}[which]
        return {**base(k), **({"head.weight": normal(10 if k == 0 else 5, 8)} if has else {})}

    trajectory = written(make)
    with pytest.raises(KnowError, match=r"'head\.weight'.*--skip"):
        know.predict(trajectory)
    found = know.predict(trajectory, roles={"head.*": "skip"})
    assert ("head.weight" in found) == (which != "only the others")


@pytest.mark.parametrize(
    ("options", "count"), [(["--skip", "*", "--role", "fc*=fc"], 2), (["--role", "fc*=fc", "--skip=*"], 0)]
)
def test_of_roles_and_skips_the_later_wins(written, capsys, options, count):
    trajectory = written(base)
    line = ["predict", *map(str, trajectory.paths), "--fractions", ",".join(map(str, FRACTIONS)), "--dry-run"]
    app([*line, *options], standalone_mode=False)
    assert f"{count} of 4 tensors would be predicted" in capsys.readouterr().out


# the Python interface


def test_global_settings_of_torch_neither_matter_nor_change(written):
    trajectory = written(base)
    expected = know.predict(trajectory, "shrink_and_perturb"), know.predict(trajectory)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")  # stands for "cuda" on a machine without one
        fresh = Trajectory.from_checkpoints(trajectory.paths, FRACTIONS)
        found = know.predict(fresh, "shrink_and_perturb"), know.predict(fresh)
        assert (torch.get_default_dtype(), torch.get_default_device().type) == (torch.float64, "meta")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


WRONG = {
    "trajectory": lambda t, m: know.predict("run/"),
    "depth": lambda t, m: know.predict(t, depth="2"),
    "scale": lambda t, m: know.predict(t, scale="0.5"),
    "method": lambda t, m: know.predict(t, None),
    "roles": lambda t, m: know.predict(t, roles=["head.*"]),
    "known": lambda t, m: know.predict(t, known=5),
    "seed": lambda t, m: know.predict(t, seed="a"),
    "model": lambda t, m: know.forget(m.state_dict(), [0] * 64, print, out="a"),
    "dataset": lambda t, m: know.forget(m, iter([]), print, out="a"),
    "fit": lambda t, m: know.forget(m, [0] * 64, "train", out="a"),
    "out": lambda t, m: know.forget(m, [0] * 64, print, out=None),
    "length": lambda t, m: know.forget(m, [0] * 64, print, length=2.5, out="a"),
    "ratio": lambda t, m: know.forget(m, [0] * 64, print, ratio="half", out="a"),
    "fractions": lambda t, m: know.forget(m, [0] * 64, print, fractions=["1/2", "1"], out="a"),
    "lazy": lambda t, m: know.forget(torch.nn.LazyLinear(3), [0] * 64, print, out="a"),
    "from_checkpoints": lambda t, m: Trajectory.from_checkpoints("run/", FRACTIONS),
}


@pytest.mark.parametrize("argument", WRONG)
def test_a_wrong_argument_is_named(written, tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KnowError, match=argument):
        WRONG[argument](written(base), torch.nn.Linear(4, 2))


def test_arrays_of_fractions_are_taken(tmp_path):
    made = know.forget(
        torch.nn.Linear(4, 2),
        [0] * 64,
        lambda model, subset: model.weight.data.add_(0.01),
        fractions=np.array([0.25, 0.5, 1]),
        out=tmp_path / "run",
    )
    assert made.fractions == (0.25, 0.5, 1)


@pytest.mark.parametrize(
    ("fractions", "said"),
    [
        ([0.9, 0.95, 0.98, 0.99, 1], "meta-trained for 0.3 to 0.9"),
        ([0.2, 0.4, 0.6, 0.8, 1], "meta-trained on equal ones"),
    ],
)
def test_ratios_outside_what_known_was_shown_are_said(written, tmp_path, fractions, said):
    trajectory = Trajectory.from_checkpoints(written(base).paths, fractions)
    assert any(said in note for note in predict_to(trajectory, tmp_path / "out"))
    assert said in (tmp_path / "out/README.md").read_text()
    assert not predict_to(written(base), tmp_path / "usual")


def test_large_weights_are_counted(written, tmp_path):
    trajectory = written(lambda k: {"fc.weight": torch.tensor([[0.1, 20.0], [-3.0, 1.0]]) * (1 + 0.01 * k)})
    assert any(note.startswith("2 weights are larger than 2") for note in predict_to(trajectory, tmp_path / "out"))


def test_inspect_takes_the_reading_options_of_predict(written):
    def make(k):
        return {
            "state_dict": {f"module.{n}": t for n, t in base(k).items()} | {"module.mask": torch.ones(3, 3)},
            "epoch": 1,
        }

    trajectory = written(make, ".pt")
    line = ["inspect", *map(str, trajectory.paths), "--fractions", ",".join(map(str, FRACTIONS)), "--key", "state_dict"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        app([*line, "--strip", "module.", "--skip", "conv.*"], standalone_mode=False)
    assert "fc.weight" in said.getvalue()
    assert not any(name in said.getvalue() for name in ("conv.weight", "mask", "module."))
