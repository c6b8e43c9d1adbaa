"""From checkpoint files to a checkpoint file: layouts, dtypes, what is left alone, what is chosen, how much memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_model import FRACTIONS, GIVEN, call, equal, initial, with_scratch

import know
from know import methods, prediction
from know.checkpoints import Checkpoint, load_state
from know.errors import KnowError
from know.export import Request, card, describe, plan, predict_files
from know.formats import SafetensorsFile
from know.trajectory import Trajectory

SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "norm.weight": (4,), "norm.bias": (4,), "fc.weight": (5, 4)}


def snapshots(dtype=torch.float32, shapes=SHAPES) -> list[dict[str, torch.Tensor]]:
    """Smallest subset first; each a little further from the last."""
    dice = torch.Generator().manual_seed(0)
    theta_0 = {name: 0.3 * torch.randn(shape, generator=dice) for name, shape in shapes.items()}
    states = []
    for k in reversed(range(5)):
        state = {name: t + 0.03 * k * torch.randn(t.shape, generator=dice) for name, t in theta_0.items()}
        states.append({name: tensor.to(dtype) for name, tensor in state.items()} | {"seen": torch.tensor(7 + k)})
    return states


def written(folder: Path, states, suffix=".safetensors") -> Trajectory:
    paths = [folder / f"in{k}{suffix}" for k in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        save_file(state, path, metadata={"format": "pt"}) if suffix == ".safetensors" else torch.save(state, path)
    return Trajectory.from_checkpoints(paths, FRACTIONS)


def sharded(folder: Path, states) -> Trajectory:
    """Each snapshot a folder of two shards with an index, as Hugging Face writes them, and a configuration."""
    paths = []
    for k, state in enumerate(states):
        paths.append(folder / f"in{k}")
        paths[-1].mkdir()
        where = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(state)}
        for shard in set(where.values()):
            save_file(
                {n: t for n, t in state.items() if where[n] == shard}, paths[-1] / shard, metadata={"format": "pt"}
            )
        (paths[-1] / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": 1}, "weight_map": where})
        )
        (paths[-1] / "config.json").write_text('{"model_type": "tiny"}')
    return Trajectory.from_checkpoints(paths, FRACTIONS)


LINEAR = Request("linear")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_result_has_the_layout_of_theta_0_and_the_librarys_weights(tmp_path, dtype):
    states = snapshots(dtype)
    trajectory = written(tmp_path, states)
    predict_files(trajectory, Request("known", 2), tmp_path / "out")
    found, expected = load_file(tmp_path / "out/model.safetensors"), know.predict(trajectory, "known", 2)
    with safe_open(tmp_path / "out/model.safetensors", "pt") as one, safe_open(trajectory.paths[-1], "pt") as other:
        assert list(one.keys()) == list(other.keys())
        assert one.metadata() == other.metadata() == {"format": "pt"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name, tensor in states[-1].items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        same = torch.equal(found[name], tensor)
        assert same == (name.startswith("norm") or name == "seen"), name


def test_a_sharded_folder_gives_a_sharded_folder(tmp_path):
    trajectory = sharded(tmp_path, snapshots())
    predict_files(trajectory, LINEAR, tmp_path / "out")
    theirs = {path.name for path in trajectory.paths[-1].iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == theirs | {"README.md", "know_config.yml"}
    for name in ("model.safetensors.index.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (trajectory.paths[-1] / name).read_bytes()
    expected = know.predict(written(tmp_path, snapshots()), "linear")
    found = load_state(tmp_path / "out")
    assert all(torch.equal(found[name], expected[name]) for name in found | expected)


def test_a_file_of_torch_gives_one_with_the_weights_where_they_were(tmp_path):
    shared = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    paths = []
    for k, state in enumerate(snapshots()):
        state["tied.weight"] = state["head.weight"] = shared + 0.1 * k
        paths.append(tmp_path / f"{k}.pt")
        torch.save({"epoch": k, "ema": {"model": {f"module.{name}": t for name, t in state.items()}}}, paths[-1])
    trajectory = Trajectory.from_checkpoints(paths, FRACTIONS, key="ema.model", strip="module.")
    for name in ("out", "again"):
        predict_files(trajectory, Request("random_step"), tmp_path / name)
    assert (tmp_path / "out/model.pt").read_bytes() == (tmp_path / "again/model.pt").read_bytes()
    found = torch.load(tmp_path / "out/model.pt", weights_only=True)["ema"]["model"]
    assert found.keys() == trajectory.meta.keys()  # without the prefix, as was asked
    assert torch.equal(found["head.weight"], found["tied.weight"])  # although its random step goes by the name
    assert found["head.weight"].data_ptr() == found["tied.weight"].data_ptr()
    assert not torch.equal(found["head.weight"], shared + 0.4)


def test_tied_weights_of_a_recorded_model_stay_tied_through_safetensors(tmp_path):
    model = torch.nn.ModuleDict({"wte": torch.nn.Embedding(6, 4), "head": torch.nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["wte"].weight
    with know.Trajectory.record(tmp_path / "run") as record:
        record.start(model)
        for fraction, _ in record.steps(100):
            with torch.no_grad():
                model["wte"].weight.add_(0.1)
            record.add(model, fraction)
    predict_files(Trajectory.load(tmp_path / "run"), Request("random_step"), tmp_path / "out")
    found = load_state(tmp_path / "out/model.safetensors")
    assert torch.equal(found["wte.weight"], found["head.weight"])
    assert Checkpoint(tmp_path / "out/model.safetensors").tied == {"wte.weight": "head.weight"}


def test_roles_are_changed_by_pattern_and_skipped_tensors_stay(tmp_path):
    states = snapshots()
    trajectory = written(tmp_path, states)
    given = {"conv.*": "skip", "conv.bias": "bias", "norm.weight": "bias"}
    assert {row.tensor: row.role for row in plan(trajectory, given)} == {
        **{"conv.weight": "skip", "conv.bias": "bias", "norm.weight": "bias", "norm.bias": "norm"},
        **{"fc.weight": "fc", "seen": "buffer"},
    }
    answer = know.predict(trajectory, "linear", roles=given)
    moved = {name for name, tensor in answer.items() if not torch.equal(tensor, states[-1][name])}
    assert moved == {"conv.bias", "norm.weight", "fc.weight"}
    for wrong, said in (({"nowhere.*": "fc"}, "nowhere"), ({"fc.*": "fcc"}, "'fc'"), ({"seen": "fc"}, "int64")):
        with pytest.raises(KnowError, match=said):
            know.predict(trajectory, "linear", roles=wrong)


def test_buffers_of_a_recorded_model_are_not_taken_for_parameters(tmp_path):
    model = torch.nn.Linear(3, 2)
    model.register_buffer("table", torch.ones(4, 4))
    trajectory = know.forget(model, range(32), lambda model, subset: model.weight.data.add_(0.1), out=tmp_path / "run")
    assert trajectory.roles() == {"weight": "fc", "bias": "bias", "table": "buffer"}


def test_a_buffer_that_two_modules_share_is_a_buffer_under_both_names(tmp_path):
    def fit(model, subset):
        model.encoder.weight.data.add_(0.1)
        model.encoder.table.mul_(0.9)

    model, shared = torch.nn.Module(), torch.ones(4, 4)
    for name in ("encoder", "decoder"):
        setattr(model, name, torch.nn.Linear(4, 4))
        getattr(model, name).register_buffer("table", shared)
    trajectory = know.forget(model, range(64), fit, out=tmp_path / "run")
    assert {name for name, role in trajectory.roles().items() if role == "buffer"} == {"decoder.table", "encoder.table"}
    predicted = know.predict(trajectory, "linear")
    assert all(torch.equal(predicted[f"{name}.table"], torch.ones(4, 4)) for name in ("encoder", "decoder"))


def test_the_scale_is_the_length_of_the_step(tmp_path):
    trajectory = written(tmp_path, snapshots())
    whole, half, none = (know.predict(trajectory, "known", scale=scale) for scale in (1, 0.5, 0))
    for name, theta_0 in trajectory.theta_0.items():
        assert torch.equal(none[name], theta_0)
        if theta_0.is_floating_point():
            assert torch.allclose(half[name] - theta_0, (whole[name] - theta_0) / 2, atol=1e-6)


def test_python_and_the_command_line_ask_a_method_alike(tmp_path, capsys):
    trajectory = written(tmp_path, snapshots())
    expected = know.predict(trajectory, "linear", 2, step=0.5)
    by_piece = {piece.tensor: piece.answer for piece in prediction.pieces(trajectory, "linear", 2, step=0.5)}
    assert torch.equal(by_piece["conv.bias"], expected["conv.bias"])
    arguments = ["--fractions", GIVEN, "--method", "linear", "--depth", 2, "-o", "step=0.5", "--out", tmp_path / "out"]
    assert call("predict", *trajectory.paths, *arguments) == 0
    assert equal(load_file(tmp_path / "out/model.safetensors"), expected)


def test_the_settings_are_enough_to_make_it_again(tmp_path):
    trajectory = written(tmp_path, snapshots())
    asked = Request("linear", 2, 0.5, None, 3, (("conv.*", "skip"),), (("step", 0.7),))
    predict_files(trajectory, asked, tmp_path / "out")
    read = yaml.safe_load((tmp_path / "out/know_config.yml").read_text(encoding="utf-8"))
    again = Request(
        read["method"],
        read["depth"],
        read["scale"],
        None,
        read["seed"],
        tuple(map(tuple, read["roles"])),
        tuple(read["options"].items()),
    )
    assert again == asked
    predict_files(trajectory, again, tmp_path / "again")
    for name in ("model.safetensors", "know_config.yml", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_the_card_says_how_much_bf16_lets_through(tmp_path):
    """A step that is smaller than half a unit in the last place of theta_0 is rounded away."""
    states = [{"fc.weight": torch.full((2, 8), 1.0)} for _ in range(5)]
    states[-2]["fc.weight"][0] = 1 - 2**-7
    trajectory = written(tmp_path, [{n: t.to(torch.bfloat16) for n, t in state.items()} for state in states])
    config, changes = predict_files(trajectory, LINEAR, tmp_path / "out")
    assert (changes.weights, changes.changed) == (16, 8)
    assert "50.0%" in card(trajectory, LINEAR, config, changes)
    assert config == describe(trajectory, LINEAR, know.known.Models(None))


# piece by piece


@pytest.mark.parametrize("name", methods.names())
def test_pieces_of_a_tensor_get_the_answers_of_the_whole(tmp_path, monkeypatch, models, name):
    states = snapshots(shapes={"conv.weight": (8, 5, 3, 3), "fc.weight": (30, 17), "b": (37,)})
    trajectory = with_scratch(written(tmp_path, states), initial(states[0]))
    whole = know.predict(trajectory, name, known=models)
    monkeypatch.setattr(prediction, "PIECE", 37)
    sizes = {len(piece.answer) for piece in prediction.pieces(trajectory, name, known=models)}
    assert (max(sizes) == 37) == methods.get(name).elementwise
    parts = know.predict(trajectory, name, known=models)
    for tensor in whole:
        assert torch.allclose(parts[tensor].double(), whole[tensor].double(), atol=1e-6)


def test_the_hash_of_what_was_read_is_that_of_the_file_in_any_order_of_reading(tmp_path):
    trajectory = written(tmp_path, snapshots())
    expected = know.files.sha256_file(trajectory.paths[0])
    for names in (list(SHAPES), list(reversed(SHAPES)), ["fc.weight"], []):
        opened = SafetensorsFile(trajectory.paths[0])
        for name in names:
            for start in (0, 2):
                opened.read(name, start, min(start + 3, opened.meta[name].numel()))
        assert opened.sha256() == expected


def test_every_file_is_read_once(tmp_path, monkeypatch):
    """Of the bytes that are asked of the system, header apart, no more than the files hold."""
    trajectory = written(tmp_path, snapshots())
    asked = {}
    plain = SafetensorsFile._read

    def counted(self, begin, view):
        asked[self.path] = asked.get(self.path, 0) + len(view)
        return plain(self, begin, view)

    monkeypatch.setattr(SafetensorsFile, "_read", counted)
    predict_files(trajectory, LINEAR, tmp_path / "out")
    for path in trajectory.paths:
        assert asked[path] == path.stat().st_size - SafetensorsFile(path).start


MEASURE = """
import sys
from pathlib import Path
import torch, know.cli

def status(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0]) / 1024

Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
sys.argv = ["know", *sys.argv[1:]]
try:
    know.cli.main()
except SystemExit as end:
    assert not end.code
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's counters")
@pytest.mark.parametrize("blocks", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_memory_is_set_by_the_piece_and_not_by_the_model(tmp_path, blocks):
    """5 snapshots of 8 MiB x blocks each, most of them in one tensor, in less than 500 MB; also where it is copied."""
    entries, offset = {}, 0
    for name, rows in {"embedding.weight": blocks - 4, "fc.weight": 4}.items():
        end = offset + 8 * rows * 2**20
        entries[name] = {"dtype": "F64", "shape": [rows, 2**20], "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    block = 0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    paths = [tmp_path / f"s{k}.safetensors" for k in reversed(range(5))]
    for k, path in enumerate(paths):
        if 0 < k < 4:
            path.hardlink_to(paths[0])
            continue
        content = (block * (1 + 0.01 * k)).numpy().tobytes()
        with path.open("wb") as handle:
            handle.write(len(header).to_bytes(8, "little") + header)
            for _ in range(blocks):
                handle.write(content)
    arguments = ["predict", *paths, "--fractions", ",".join(map(str, FRACTIONS))]
    ways = {"linear": ["--method", "linear"], "known": ["--skip", "embedding.*"]}
    for out, more in list(ways.items())[: 1 if blocks == 16 else 2]:
        given = [*arguments, "--out", tmp_path / out, *more]
        done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, given)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (
            (tmp_path / out / "model.safetensors").stat().st_size == paths[0].stat().st_size + 32 > blocks << 23
        )  # a note of format
        assert float(done.stdout.splitlines()[-1]) < 500
    for path in paths:
        path.unlink()
