"""Checkpoints and folders as people have them: nothing is lost silently, and every refusal names the cause."""

import functools
import hashlib
import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from snapshot_files import FRACTIONS, base, folder_of, normal, predict_to

import know
from know.checkpoints import load_state
from know.cli import app
from know.errors import KnowError
from know.export import Request, plan, predict_files
from know.trajectory import Trajectory

# containers


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_was_saved_on_a_gpu_is_read_on_a_machine_without(tmp_path, monkeypatch, zipped):
    with monkeypatch.context() as patch:  # what torch writes beside a tensor on a GPU, of which there may be none here
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(base(0), tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    read = load_state(tmp_path / "model.pt")
    assert {tensor.device.type for tensor in read.values()} == {"cpu"}
    assert all(torch.equal(read[name], tensor) for name, tensor in base(0).items())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.safetensors", "unet.fp16.safetensors"])
def test_folders_are_read_and_what_else_they_hold_is_carried_over(written, tmp_path, name):
    files = {"README.md": "license: mit", "LICENSE": "MIT", "1_Pooling/config.json": "{}", "optimizer.pt": "x"}
    files |= {"vocab.bin": "a b", "checkpoint-notes.txt": "tried twice"}
    left = {"optimizer.pt", "checkpoint-100/trainer_state.json", "global_step3/notes.txt", ".cache/etag", ".hidden"}
    left |= {"tf_model.h5", "flax_model.msgpack", "onnx/model.onnx"}  # theta_0's weights in other formats
    files |= dict.fromkeys(left, "x")
    trajectory = written(base, "", functools.partial(folder_of, name=name, **files))
    predict_to(trajectory, tmp_path / "out")
    made = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    carried = {*files, "config.json"} - left
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
    assert predict_to(trajectory, tmp_path / "out") == [
        "states of the training were left out: optimizer_states",
        "what stands beside the weights was carried over as it is: epoch, best, hyper_parameters",
    ]
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


def test_a_tensor_of_a_dtype_that_torch_does_not_know_comes_through_as_it_is(tmp_path):
    def write(path, k):
        weights = torch.full((4, 4), 0.1 * k).numpy().tobytes()
        header = {"w": ("F32", [4, 4], [0, 64]), "scale": ("F4", [16], [64, 72])}
        names = ("dtype", "shape", "data_offsets")
        text = json.dumps({name: dict(zip(names, about, strict=True)) for name, about in header.items()}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + weights + bytes(range(100 + k, 108 + k)))

    paths = [tmp_path / f"s{k}.safetensors" for k in reversed(range(5))]
    for k, path in zip(reversed(range(5)), paths, strict=True):
        write(path, k)
    trajectory = Trajectory.from_checkpoints(paths, FRACTIONS)
    predict_files(trajectory, Request("linear", roles=(("scale", "skip"),)), tmp_path / "made")
    made = (tmp_path / "made" / "model.safetensors").read_bytes()
    assert bytes(range(100, 108)) in made
    assert bytes(8) not in made[-16:]


@pytest.mark.parametrize("dtype", ["float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3fn"])
def test_a_tensor_of_one_byte_for_a_value_keeps_its_dtype(written, dtype):
    values = torch.tensor([1.0, 2.0, 4.0]).to(getattr(torch, dtype))
    trajectory = written(lambda k: {**base(k), "scale": values})
    found = know.predict(trajectory, "linear", roles={"scale": "skip"})["scale"]
    assert found.dtype == values.dtype
    assert torch.equal(found.float(), values.float())


def test_a_header_whose_length_looks_like_json_is_one_of_safetensors(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    header += b" " * (0x7B20 - len(header))  # the first two bytes of the file are " {"
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert load_state(tmp_path / "w.safetensors")["w"].tolist() == [0]


def test_a_part_of_a_cached_pipeline_is_read(tmp_path):
    part, blobs = tmp_path / "snapshots/abc/unet", tmp_path / "blobs"
    part.mkdir(parents=True)
    blobs.mkdir()
    save_file(base(0), blobs / "0123")
    (part / "diffusion_pytorch_model.safetensors").symlink_to("../../../blobs/0123")
    assert load_state(part).keys() == base(0).keys()


BYTES = {
    "a text": b"Entry not found",
    "XML page": b'<?xml version="1.0"?><Error/>',
    "xz": b"\xfd7zXZ\x00",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "web page": b"<!DOCTYPE html><html></html>",
    "GGUF": b"GGUF\x03\x00\x00\x00",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "numpy": b"\x93NUMPY\x01\x00",
    "gzip": b"\x1f\x8b\x08\x00",
    "is empty": b"",
    "cut short": b"PK\x03\x04" + b"\x00" * 100,
}


@pytest.mark.parametrize(("what", "content"), BYTES.items(), ids=BYTES)
def test_the_first_bytes_tell_what_a_file_is(tmp_path, what, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(KnowError, match=what) as caught:
        load_state(tmp_path / "model.safetensors")
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


@pytest.mark.parametrize("name", ["module", "_orig_mod"])
def test_a_tensor_may_be_called_as_a_wrapper_is(written, name):
    def make(k):
        return {name: torch.full((2, 2), 1.0 + k), **{f"model.{key}" if k else key: t for key, t in base(k).items()}}

    assert know.predict(written(make, ".pt"), "linear").keys() == {name, *base(0)}


def test_prefixes_are_stripped_of_what_is_no_tensor_too(written, tmp_path):
    def make(k):
        return {f"module.{name}": value for name, value in {**base(k), "fc._extra_state": {"version": 3}}.items()}

    predict_to(written(make, ".pt", strip="module."), tmp_path / "out")
    assert torch.load(tmp_path / "out/model.pt").keys() == {*base(0), "fc._extra_state"}


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
    ("options", "said"),
    [
        (["--depth", "2000"], "times the data"),
        (["--method", "mean", "--depth", "2"], "has no depth"),
        (["--method", "shrink", "-o", "size=1"], "size"),
        ([], "takes 5 snapshots, and was asked about 4"),
    ],
)
def test_a_dry_run_refuses_what_the_prediction_would_refuse(written, options, said):
    trajectory, fractions = written(base), FRACTIONS
    if not options:
        trajectory, fractions = trajectory.last(4), FRACTIONS[-4:]
    line = ["predict", *map(str, trajectory.paths), "--fractions", ",".join(map(str, fractions)), *options]
    for more in (["--dry-run"], ["--out", str(trajectory.paths[0].parent / "better")]):
        with pytest.raises(KnowError, match=said):
            app([*line, *more], standalone_mode=False)


@pytest.mark.parametrize(
    ("options", "count"), [(["--skip", "*", "--role", "fc*=fc"], 2), (["--role", "fc*=fc", "--skip=*"], 0)]
)
def test_of_roles_and_skips_the_later_wins(written, capsys, options, count):
    trajectory = written(base)
    line = ["predict", *map(str, trajectory.paths), "--fractions", ",".join(map(str, FRACTIONS)), "--dry-run"]
    app([*line, *options], standalone_mode=False)
    assert f"{count} of 4 tensors would be predicted" in capsys.readouterr().out


# values under two names, in another order, or none at all


def tied(k):
    table = torch.randn(6, 4, generator=torch.Generator().manual_seed(k))
    return {"embed.weight": table, "head.weight": table, "other.weight": table + k}


@pytest.mark.parametrize("pattern", ["head.*", "embed.*"])
def test_of_two_names_for_the_same_values_none_is_left_alone_by_itself(written, tmp_path, pattern):
    trajectory = written(tied, ".pt")
    with pytest.raises(KnowError, match="the same values under two names; give both the same role"):
        predict_files(trajectory, Request("linear", roles=((pattern, "skip"),)), tmp_path / "out")
    predict_files(trajectory, Request("linear", roles=(("[eh]*", "skip"),)), tmp_path / "out")
    found = load_state(tmp_path / "out/model.pt")
    assert torch.equal(found["head.weight"], tied(0)["head.weight"])
    assert not torch.equal(found["other.weight"], tied(0)["other.weight"])


def test_a_folder_may_give_its_weights_any_name(written, tmp_path):
    def save(state, path):
        path.mkdir()
        torch.save(state, path / "weights.pt")

    trajectory = written(base, "", save)
    predict_to(trajectory, tmp_path / "out")
    found = load_state(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in know.predict(trajectory).items())


def test_tensors_that_are_skipped_come_through_in_memory_as_in_files(written, tmp_path):
    def make(k):
        return {**base(k), "table": torch.eye(3).to_sparse()}

    trajectory = written(make, ".pt")
    with pytest.raises(KnowError, match="--skip 'table' leaves it alone"):
        know.predict(trajectory)
    answer = know.predict(trajectory, roles={"table": "skip"})
    assert torch.equal(answer["table"].to_dense(), torch.eye(3))
    assert torch.equal(trajectory.theta_0["table"].to_dense(), torch.eye(3))


def test_values_in_another_order_are_read_piece_by_piece_as_they_are(written, monkeypatch):
    def make(k):
        return {"w": torch.arange(12.0).view(3, 4).mul(k + 1).T}

    checkpoint = written(make, ".pt").checkpoints[-1]
    whole = torch.cat([checkpoint.read("w", start, start + 5) for start in (0, 5, 10)])
    assert torch.equal(whole.view(4, 3), make(0)["w"])
    checkpoint.read("w")[0] = 5  # what is read is the reader's own
    assert torch.equal(checkpoint.state()["w"], make(0)["w"])


def test_a_plan_reads_no_more_of_a_large_file_than_it_needs(tmp_path):
    large = {name: torch.zeros(1 << 20) for name in "ab"}
    paths = [tmp_path / f"{k}.safetensors" for k in range(5)]
    for k, path in enumerate(paths):
        save_file({name: tensor + k for name, tensor in large.items()}, path)
    trajectory = Trajectory.from_checkpoints(paths, FRACTIONS)
    assert [row.action for row in plan(trajectory)] == ["predicted as bias"] * 2
    part = trajectory.checkpoints[0].parts[0]
    assert part._hashed < 2 << 20  # of 8 MB
    assert part.sha256() == hashlib.sha256(paths[0].read_bytes()).hexdigest()
