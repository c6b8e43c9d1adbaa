"""`know predict` on generated bad inputs: one line, exit code 2, nothing left behind, inputs untouched, no traceback.

Examples are derived from the tests themselves (`derandomize`), so every machine tries the same ones. `make test-all`
tries more of them (the profile `wide` of tests/conftest.py).
"""

import contextlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_model import GIVEN, call

import know
from know.checkpoints import Checkpoint, load_state, save_state

INDEX = "model.safetensors.index.json"
SHAPES = {"conv.weight": (3, 2, 3, 3), "conv.bias": (3,), "norm.weight": (3,), "norm.bias": (3,), "fc.weight": (4, 3)}


def states() -> list[dict[str, torch.Tensor]]:
    dice = torch.Generator().manual_seed(0)
    found = []
    for k in reversed(range(5)):
        state = {name: 0.3 * torch.randn(shape, generator=dice) * (1 + k / 10) for name, shape in SHAPES.items()}
        found.append({**state, "norm.num_batches_tracked": torch.tensor(5)})
    return found


def write_files(folder: Path, snapshots=None) -> list[Path]:
    paths = [folder / f"s{k}.safetensors" for k in reversed(range(5))]
    for path, state in zip(paths, snapshots or states(), strict=True):
        save_file(state, path)
    return paths


def write_torch(folder: Path, snapshots=None) -> list[Path]:
    paths = [folder / f"s{k}.pt" for k in reversed(range(5))]
    for path, state in zip(paths, snapshots or states(), strict=True):
        torch.save(state, path)
    return paths


def write_shards(folder: Path) -> list[Path]:
    paths = [folder / f"s{k}" for k in reversed(range(5))]
    for path, state in zip(paths, states(), strict=True):
        path.mkdir()
        where = {name: f"model-{1 + i % 2}-of-2.safetensors" for i, name in enumerate(state)}
        for shard in sorted(set(where.values())):
            save_file({name: tensor for name, tensor in state.items() if where[name] == shard}, path / shard)
        (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return paths


def write_folder(folder: Path) -> list[Path]:
    """One argument: a trajectory with a manifest."""
    with know.Trajectory.record(folder / "run") as record:
        for fraction, state in zip(record.fractions, states(), strict=True):
            record.add(state, fraction)
    return [folder / "run"]


WRITERS = {"files": write_files, "torch": write_torch, "shards": write_shards, "folder": write_folder}


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    """Good inputs of every kind, to be copied and spoilt."""
    found = {}
    for kind, write in WRITERS.items():
        found[kind] = tmp_path_factory.mktemp(kind)
        write(found[kind])
    return found


class Place:
    """A fresh copy of good inputs, and what `know predict` does with them."""

    def __init__(self, folder: Path, original: Path | None = None):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder) if original else folder.mkdir()
        self.folder, self.out = folder, folder / "out"

    @property
    def inputs(self) -> list[Path]:
        if (self.folder / "run").exists():
            return [self.folder / "run"]
        return sorted((path for path in self.folder.iterdir() if path.name.startswith("s")), reverse=True)

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def predict(self, *more: object, inputs: list[Path] | None = None, out: Path | None = None) -> int:
        """The exit code, 0 or 2, after checks that hold whatever it is."""
        inputs = self.inputs if inputs is None else inputs
        fractions = [] if len(inputs) == 1 else ["--fractions", GIVEN]
        before = {path: path.read_bytes() for path in self.files()}
        folders = {path for path in self.folder.rglob("*") if path.is_dir()}
        out = self.out if out is None else out
        existed, said = os.path.lexists(out), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("always")  # pytest would keep them; a terminal shows them
            warnings.showwarning = lambda message, *rest: print(message, file=said)
            code = call("predict", *inputs, *fractions, "--threads", 1, "--out", out, *more)
        assert code in (0, 2), said.getvalue()
        assert {path: path.read_bytes() for path in before} == before
        left = {path for path in self.files() if path not in before and "__pycache__" not in path.parts}
        if code == 2:
            error = said.getvalue()
            assert error.startswith("know: error: ")
            assert len(error.splitlines()) == 1
            assert len(error) < 2000
            assert not left
            assert existed or not os.path.lexists(out)
            assert not list(self.folder.glob(".*.tmp"))
            assert not [path for path in self.folder.rglob("*") if path.is_dir() and path not in folders]
        else:
            assert not said.getvalue()
            assert {path.relative_to(out).parts[0] for path in left} >= {"know_config.yml", "README.md"}
        return code

    def made(self) -> dict[str, torch.Tensor]:
        """What was predicted, after a look at its layout: that of theta_0, whatever that is."""
        theta_0 = self.inputs[-1] if len(self.inputs) > 1 else self.inputs[0] / "s0.safetensors"
        like = Checkpoint(theta_0)
        made = load_state(self.out if like.path.is_dir() else next(self.out.glob("model.*")))
        assert [(n, t.shape, t.dtype) for n, t in made.items()] == [(n, t.shape, t.dtype) for n, t in like.meta.items()]
        return made


@pytest.fixture
def fresh(tmp_path) -> Callable[[Path | None], Place]:
    return lambda original=None: Place(tmp_path / "place", original)


def test_good_inputs_of_every_kind_are_predicted(fresh, originals):
    for original in originals.values():
        assert fresh(original).predict() == 0


@pytest.mark.parametrize("kind", WRITERS)
@given(data=st.data())
def test_a_file_that_was_cut_is_refused(fresh, originals, kind, data):
    place = fresh(originals[kind])
    path = data.draw(st.sampled_from(place.files()), "file")
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1), "length")])
    assert place.predict("--method", "linear") == 2


@pytest.mark.parametrize("kind", WRITERS)
@given(data=st.data())
def test_flipped_bits_are_refused_or_are_other_weights(fresh, originals, kind, data):
    """No format but a trajectory folder has hashes: there every flip is seen; elsewhere some are other numbers."""
    place = fresh(originals[kind])
    path = data.draw(st.sampled_from(place.files()), "file")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3), "flips")):
        # headers are short beside the data: half of the flips go there
        reach = data.draw(st.sampled_from([min(200, len(content)), len(content)]), "reach")
        content[data.draw(st.integers(0, reach - 1), "place")] ^= 1 << data.draw(st.integers(0, 7), "bit")
    if bytes(content) == path.read_bytes():
        return
    path.write_bytes(content)
    code = place.predict("--method", "linear")
    if kind == "folder" and path.suffix == ".safetensors":
        assert code == 2
    if code == 0:
        moved = [tensor for name, tensor in place.made().items() if name in ("conv.weight", "fc.weight")]
        assert all(bool(tensor.isfinite().all()) for tensor in moved)


def _spoil_shape(state, name, draw):
    state[name] = torch.zeros(draw(st.lists(st.integers(0, 4), max_size=4), "shape"))


def _remove(state, name, draw):
    del state[name]


def _add(state, name, draw):
    state[draw(st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1), "name") + "!"] = (
        torch.zeros(2)
    )


def _rename(state, name, draw):
    state[name + draw(st.sampled_from(["_", ".weight", " ", "é"]), "ending")] = state.pop(name)


def _integers(state, name, draw):
    state[name] = torch.zeros(
        state[name].shape, dtype=draw(st.sampled_from([torch.int64, torch.uint8, torch.bool]), "type")
    )


def _not_finite(state, name, draw):
    value = draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]), "value")
    state[name].view(-1)[draw(st.integers(0, state[name].numel() - 1), "place")] = value


SPOILERS = [_spoil_shape, _remove, _add, _rename, _integers, _not_finite]


@pytest.mark.parametrize("kind", ["files", "torch"])
@given(data=st.data())
def test_tensors_that_do_not_fit_are_refused(fresh, kind, data):
    snapshots = states()
    spoil = data.draw(st.sampled_from(SPOILERS), "how")
    state = snapshots[data.draw(st.integers(0, 4), "snapshot")]
    name = data.draw(st.sampled_from(["conv.weight", "conv.bias", "fc.weight"]), "tensor")
    before = state[name].shape
    spoil(state, name, data.draw)
    if spoil is _spoil_shape and state[name].shape == before:
        return
    place = fresh()
    WRITERS[kind](place.folder, snapshots)
    assert place.predict("--method", "linear") == 2


WIDTHS = [torch.float16, torch.bfloat16, torch.float64]


@given(data=st.data())
def test_odd_but_sound_inputs_are_predicted(fresh, data):
    """Other widths, no elements, no axes, long names, tensors that are not contiguous, links."""
    snapshots = states()
    long = data.draw(st.text("abc.é", min_size=1, max_size=200), "name") * data.draw(st.integers(1, 20), "times")
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3), "shape")
    for state in snapshots:
        state[f"x{long}.weight"] = torch.full(shape, 0.1)
        state["fc.weight"] = state["fc.weight"].T.contiguous().T
    state = snapshots[data.draw(st.integers(0, 4), "snapshot")]
    width = data.draw(st.sampled_from(WIDTHS), "width")
    state["conv.bias"] = state["conv.bias"].clamp(-1, 1).to(width)
    place = fresh()
    if data.draw(st.booleans(), "torch"):
        write_torch(place.folder, snapshots)
    else:
        for path, one in zip((place.folder / f"s{k}.safetensors" for k in reversed(range(5))), snapshots, strict=True):
            save_state(path, one)
    if data.draw(st.booleans(), "links"):
        (place.folder / "cache").mkdir()
        for path in place.inputs:
            path.rename(place.folder / "cache" / path.name)
            path.symlink_to(Path("cache") / path.name)
    assert place.predict("--method", "linear") == 0
    place.made()


@pytest.mark.parametrize("write", [write_files, write_torch])
@pytest.mark.parametrize("method", ["linear", "known", "mean"])
def test_a_tensor_of_one_value_is_predicted(fresh, write, method):
    """The bias of a head with one output, or a learnt scale."""
    snapshots = [
        {**state, "head.weight": torch.ones(1, 1), "head.bias": torch.full((1,), 0.5 + k / 20)}
        for k, state in enumerate(states())
    ]
    place = fresh()
    write(place.folder, snapshots)
    assert place.predict("--method", method) == 0
    assert place.made()["head.bias"] != snapshots[-1]["head.bias"]


OPTIONS = ["--role", "--skip", "--key", "--strip", "--scale", "--fractions", "--validate", "--depth", "--method"]
OPTIONS += ["--known", "-o"]
RUBBISH = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30)


@given(option=st.sampled_from(OPTIONS), value=RUBBISH)
def test_rubbish_in_an_option_is_refused(fresh, originals, option, value):
    place = fresh(originals["files"])
    if option == "--scale":
        with contextlib.suppress(ValueError):
            float(value)
            return
    if option == "--skip":
        value += "!"  # fits no tensor
    if option in ("--key", "--validate", "--method", "--known", "-o", "--role"):
        value = f"{value}!"
    inputs = place.inputs
    more = [f"{option}={value}"] if option.startswith("--") else [option, value]
    assert place.predict("--method", "linear", *more, inputs=inputs) == (0 if _means_something(option, value) else 2)


def _means_something(option: str, value: str) -> bool:
    if option == "--strip":  # takes off what is there, here nothing
        return True
    return option == "--depth" and value.strip().isdecimal() and 0 < int(value) < 100


@pytest.mark.parametrize("depth", [400, 10**400])
def test_a_depth_beyond_all_numbers_is_refused(fresh, originals, depth):
    assert fresh(originals["files"]).predict("--method", "linear", "--depth", depth) == 2


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "9" * 400, "true", "", "one"])
def test_an_option_that_is_no_number_is_refused(fresh, originals, value):
    assert fresh(originals["files"]).predict("--method", "linear", "-o", f"step={value}") == 2


@pytest.mark.parametrize(
    "weight_map",
    [
        {},
        [],
        None,
        {"fc.weight": 3},
        {"fc.weight": "../s0/model-1-of-2.safetensors"},
        {"fc.weight": "/etc/hostname"},
        {"fc.weight": "absent.safetensors"},
        {"other": "model-1-of-2.safetensors"},
        {"fc.weight": ""},
        {"fc.weight": ".."},
        {"fc.weight": "\0"},
        {"fc.weight": "\ud800"},
        {"fc.weight": "x" * 500},
        {"fc.weight": INDEX},
    ],
)
def test_an_index_that_lies_is_refused(fresh, originals, weight_map):
    place = fresh(originals["shards"])
    (place.folder / "s0" / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert place.predict("--method", "linear") == 2


DEEP, LONG = "[" * 100_000, "1" * 5000
"""JSON that Python's reader refuses in its own ways."""


@pytest.mark.parametrize("content", [DEEP, LONG])
def test_json_that_python_cannot_hold_is_refused(fresh, originals, content):
    shards, folder = fresh(originals["shards"]), "run/manifest.json"
    (shards.folder / "s0" / INDEX).write_text(content)
    assert shards.predict("--method", "linear") == 2
    trajectory = fresh(originals["folder"])
    (trajectory.folder / folder).write_text(content)
    assert trajectory.predict("--method", "linear") == 2


@given(
    key=st.sampled_from(["file", "fraction", "sha256", "buffers", "snapshots"]),
    value=st.sampled_from([3, None, True, 10**400, -1.5, [], {}, ["a"], "", "..", "\0", "\ud800", "/dev/null"]),
)
def test_a_manifest_with_other_values_is_refused(fresh, originals, key, value):
    place = fresh(originals["folder"])
    path = place.folder / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    (manifest if key in ("buffers", "snapshots") else manifest["snapshots"][2])[key] = value
    path.write_text(json.dumps(manifest))
    harmless = key == "buffers" and isinstance(value, list | dict | str)  # names that no tensor has
    assert place.predict("--method", "linear") == (0 if harmless else 2)


@pytest.mark.parametrize(
    "tied",
    [
        3,
        None,
        "fc.weight",
        ["fc.weight"],
        {"fc.weight": 3},
        {"fc.weight": None},
        {"fc.weight": "nowhere"},
        {"nowhere": "fc.weight"},
        {"fc.weight": "fc.weight"},
        {"fc.weight": "conv.weight"},
        {"conv.bias": "norm.bias", "norm.bias": "conv.bias"},
        {"norm.num_batches_tracked": "fc.weight"},
    ],
)
def test_a_note_of_tied_weights_that_cannot_be_is_refused(fresh, tied):
    """Else weights would be written where others belong."""
    place = fresh()
    *_, theta_0 = write_files(place.folder)
    save_file(states()[-1], theta_0, metadata={"know": json.dumps({"tied": tied})})
    assert place.predict("--method", "linear") == 2


def test_a_note_that_is_nested_too_deep_is_refused(fresh):
    place = fresh()
    *_, theta_0 = write_files(place.folder)
    save_file(states()[-1], theta_0, metadata={"know": DEEP})
    assert place.predict("--method", "linear") == 2


def test_outputs_that_cannot_be_are_refused(fresh, originals):
    place = fresh(originals["shards"])
    (place.folder / "file").write_text("x")
    (place.folder / "dangling").symlink_to("nowhere")
    for out in ("s0", "s4", "file", "file/out", "dangling", ".", "..", "new/..", f"new/{'x' * 300}"):
        assert place.predict("--method", "linear", out=place.folder / out) == 2
    assert place.predict("--method", "linear", out=Path("/proc/out")) == 2
    (place.folder / "s3" / INDEX).unlink()
    assert place.predict("--method", "linear", out=place.folder / "a" / "new" / "out") == 2  # nor is a/ left


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
def test_links_to_nothing_and_tensors_without_values_are_refused(fresh):
    place = fresh()
    paths = write_torch(place.folder)
    for spoilt in (torch.eye(3).to_sparse(), torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)):
        state = states()[-1]
        state["fc.weight"] = spoilt
        torch.save(state, paths[-1])
        assert place.predict("--method", "linear") == 2
    snapshots = [state | {"fc.weight": torch.ones(1, 1).expand(10**9, 10**9)} for state in states()]
    write_torch(place.folder, snapshots)  # one value on disk, 4 * 10^18 bytes when written out
    assert place.predict("--method", "linear") == 2
    paths[0].unlink()
    paths[0].symlink_to("nowhere")
    assert place.predict("--method", "linear", inputs=paths) == 2


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("protocol", [None, 0, 2, 4])
def test_a_pickle_with_code_is_refused_and_not_run(fresh, monkeypatch, protocol):
    place = fresh()
    monkeypatch.chdir(place.folder)
    paths = write_torch(place.folder)
    if protocol is None:
        torch.save({**states()[0], "fc.weight": Bomb()}, paths[2])
    else:
        paths[2].write_bytes(pickle.dumps({"fc.weight": Bomb()}, protocol=protocol))
    assert place.predict("--method", "linear", inputs=paths) == 2
    assert not (place.folder / "exploded").exists()
    torch.load(paths[2], weights_only=False) if protocol is None else pickle.loads(paths[2].read_bytes())
    assert (place.folder / "exploded").exists()  # the bomb does work


@pytest.mark.parametrize(
    "script",
    [
        "import sys\nsys.exit(0)",
        "def score(path): raise SystemExit(3)",
        "def score(path): return score(path)",
        "def score(path): return 10**400",
        "def score(path): return [1, 2]",
        "def score(path): raise ValueError('one\\n' * 3)",
        "def score(path): return path.nothing",
        "score = 3",
        "def score(path): return '\0'",
    ],
)
def test_a_validation_that_cannot_be_is_refused_even_if_it_would_exit(fresh, originals, script):
    place = fresh(originals["files"])
    check = place.folder / "check.py"
    check.write_text(script)
    assert place.predict("--method", "linear", "--validate", f"{check}:score") == 2


def test_a_script_that_validates_may_hold_classes(fresh, originals):
    """dataclasses and pickle look for a class in its module by the module's name."""
    place = fresh(originals["files"])
    check = place.folder / "check.py"
    check.write_text(
        "from __future__ import annotations\nimport pickle\nfrom dataclasses import dataclass\n\n\n@dataclass\n"
        "class Score:\n    value: float = 1\n\n\ndef score(path):\n"
        "    return pickle.loads(pickle.dumps(Score())).value\n"
    )
    assert place.predict("--method", "linear", "--validate", f"{check}:score") == 0


@pytest.mark.parametrize("more", [["--dry-run"], ["--out", "é"]])
def test_names_that_the_terminal_cannot_show_are_no_obstacle(fresh, monkeypatch, more):
    place = fresh()
    write_files(place.folder, [{**state, "é.weight": torch.ones(2, 2)} for state in states()])
    monkeypatch.chdir(place.folder)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(terminal):
        assert call("predict", *place.inputs, "--fractions", GIVEN, "--method", "linear", *more) == 0


# other processes


def start(place: Path) -> subprocess.Popen:
    """`know predict` on 5 files of 16 MB, in a process of its own."""
    files = [place / f"s{k}.safetensors" for k in reversed(range(5))]
    arguments = ["predict", *files, "--fractions", GIVEN, "--method", "linear", "--out", place / "out"]
    command = [sys.executable, "-m", "know", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def large(tmp_path) -> Path:
    for k in range(5):
        save_file(
            {"fc.weight": torch.full((2048, 2048), 1 + k / 10), "fc.bias": torch.ones(7)},
            tmp_path / f"s{k}.safetensors",
        )
    return tmp_path


def complete(out: Path) -> bool:
    return {path.name for path in out.iterdir()} == {"model.safetensors", "know_config.yml", "README.md"} and bool(
        torch.allclose(load_state(out / "model.safetensors")["fc.weight"], torch.tensor(0.9))
    )


@pytest.mark.slow
def test_of_two_processes_that_write_one_output_one_wins_and_the_other_says_so(large):
    both = [start(large), start(large)]
    ends = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    (lost,) = [end for process, end in zip(both, ends, strict=True) if process.returncode == 2]
    assert lost.startswith("know: error: ")
    assert len(lost.splitlines()) == 1
    assert complete(large / "out")
    assert not list(large.glob(".*.tmp"))


@pytest.mark.slow
def test_a_killed_process_leaves_no_output_or_a_complete_one(large):
    seen = set()
    for moment in (0.0, 0.01, 0.03, 0.1):
        process, deadline = start(large), time.monotonic() + 120
        while not list(large.glob(".out.*.tmp")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        seen.add((large / "out").exists())
        assert not (large / "out").exists() or complete(large / "out")
        shutil.rmtree(large / "out", ignore_errors=True)
    assert False in seen  # else none was killed in time
    last = start(large)
    assert last.communicate()[1] == ""
    assert complete(large / "out")
    assert not list(large.glob(".*.tmp"))  # what the killed ones had left
