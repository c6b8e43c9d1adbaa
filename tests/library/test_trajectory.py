"""The trajectory type: its order, its files, what is refused and how it is named, roles of tensors."""

import itertools
import json
import math
import struct

import pytest
import torch
from small_model import ITEMS
from torch import nn
from training_functions import interrupted

from know.checkpoints import load_facts, load_state, save_state
from know.errors import KnowError
from know.files import sha256_file
from know.forgetting import forget
from know.prediction import predict
from know.trajectory import Trajectory, check_fractions


def states(count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"layer.weight": (3, 4), "layer.bias": (3,), "head.weight": (2, 3)}
    return [{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for _ in range(count)]


def write(folder, snapshots, suffix=".safetensors") -> list:
    paths = [folder / f"{k}{suffix}" for k in range(len(snapshots))]
    for path, state in zip(paths, snapshots, strict=True):
        save_state(path, state) if suffix == ".safetensors" else torch.save(state, path)
    return paths


# order and fractions


@pytest.mark.parametrize(
    ("fractions", "count", "said"),
    [
        ((1.0, 0.5, 0.25), 3, "smallest subset first"),
        ((0.5, 0.5, 1.0), 3, "must rise"),
        ((0.25, 0.5), 2, "end at 1"),
        ((0.5, 1.0, 2.0), 3, "end at 1"),
        ((0.5, 1.0), 3, "2 fractions .* 3 snapshots"),
        ((1.0,), 1, "at least 2"),
        ((), 0, "at least 2"),
        ((0.0, 1.0), 2, "above 0"),
        ((-0.5, 1.0), 2, "above 0"),
        ((math.nan, 1.0), 2, "nan"),
        ((0.5, math.inf), 2, "inf"),
    ],
)
def test_wrong_fractions_are_refused(fractions, count, said):
    with pytest.raises(KnowError, match=said):
        check_fractions(fractions, count)


def test_right_fractions_come_back_as_floats():
    assert check_fractions(["0.25", 0.5, 1], 3) == (0.25, 0.5, 1.0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_anybodys_checkpoints_make_a_trajectory(tmp_path, suffix):
    snapshots = states()
    trajectory = Trajectory.from_checkpoints(write(tmp_path, snapshots, suffix), [0.25, 0.5, 1])
    for name, tensor in snapshots[-1].items():
        assert torch.equal(trajectory.theta_0[name], tensor)
        window = trajectory.window(name)
        assert (window.shape, window.dtype) == ((tensor.numel(), 3), torch.float32)
        for k, state in enumerate(snapshots):  # smallest subset first
            assert torch.equal(window[:, k], state[name].flatten())


def test_a_made_trajectory_is_found_again(trajectory):
    again = Trajectory.load(trajectory.paths[0].parent)
    assert again.fractions == (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    images = [snapshot["images"] for snapshot in again.manifest["snapshots"]]
    assert images == [round(fraction * ITEMS) for fraction in again.fractions]
    assert torch.equal(again.window("head.weight"), trajectory.window("head.weight"))


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_a_shorter_trajectory_is_the_end_of_a_longer_one(trajectory, length):
    short = trajectory.last(length)
    assert short.fractions == trajectory.fractions[-length:]
    assert torch.equal(short.window("head.weight"), trajectory.window("head.weight")[:, -length:])
    assert torch.equal(short.theta_0["head.bias"], trajectory.theta_0["head.bias"])
    assert [s["file"] for s in short.manifest["snapshots"]] == [path.name for path in short.paths]
    assert len(trajectory.manifest["snapshots"]) == len(trajectory.states) == 5  # itself unchanged


def test_a_shorter_trajectory_keeps_hashes_and_references(trajectory, tmp_path):
    for path in trajectory.paths[0].parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    save_state(tmp_path / "oracle.safetensors", trajectory.theta_0)
    manifest["references"] = {
        "oracle": {"file": "oracle.safetensors", "sha256": sha256_file(tmp_path / "oracle.safetensors")}
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    short = Trajectory.load(tmp_path).last(3)
    assert torch.equal(short.reference("oracle")["head.bias"], trajectory.theta_0["head.bias"])
    (tmp_path / "s1.safetensors").write_bytes((tmp_path / "s2.safetensors").read_bytes())
    with pytest.raises(KnowError, match=r"s1\.safetensors.*hash"):
        _ = short.states


def test_checkpoints_without_manifest_have_an_end_too(tmp_path):
    trajectory = Trajectory.from_checkpoints(write(tmp_path, states()), [0.25, 0.5, 1])
    assert trajectory.last(2).fractions == (0.5, 1)
    with pytest.raises(KnowError, match="3 snapshots, 4 are wanted"):
        trajectory.last(4)


# files


def test_a_state_has_the_same_bytes_whatever_the_order_of_its_tensors(tmp_path):
    state = {**states()[0], "number": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16)}
    facts = {"b": 1, "a": {"y": 2, "x": [1.5, "z"]}}
    save_state(tmp_path / "a", state, facts)
    expected = (tmp_path / "a").read_bytes()
    for names in itertools.islice(itertools.permutations(state), 0, 120, 17):
        save_state(tmp_path / "b", {n: state[n] for n in names}, dict(reversed(facts.items())))
        assert (tmp_path / "b").read_bytes() == expected
    assert load_facts(tmp_path / "a") == facts


def test_a_state_is_read_back_bit_for_bit_with_its_types(tmp_path):
    shared = torch.randn(4, 6)
    state = {"a": shared, "b": shared.T, "view": shared[1:3], "int": torch.arange(3), "half": shared.half()}
    save_state(tmp_path / "s.safetensors", state)
    loaded = load_state(tmp_path / "s.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[n], t) and loaded[n].dtype == t.dtype for n, t in state.items())


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3, "model": {"w": torch.ones(1)}}, torch.ones(3)])
def test_a_file_that_is_no_state_dict_is_named(tmp_path, value):
    torch.save(value, tmp_path / "run.pt")
    with pytest.raises(KnowError, match=r"run\.pt.*state_dict"):
        load_state(tmp_path / "run.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b[: len(b) // 3], lambda b: b"", lambda b: b"\x93no weights" * 30]
)
def test_a_damaged_file_is_named_and_called_damaged(tmp_path, suffix, damage):
    paths = write(tmp_path, states(), suffix)
    paths[1].write_bytes(damage(paths[1].read_bytes()))
    trajectory = Trajectory.from_checkpoints(paths, [0.25, 0.5, 1])
    with pytest.raises(KnowError, match=rf"/1\{suffix}.*(corrupt|cut short|empty)"):
        _ = trajectory.states


def test_a_damaged_byte_is_named_rather_than_the_answer_that_it_spoils(tmp_path):
    """A value near the largest one in place of a small one: a step of twice its size overflows."""
    with Trajectory.record(tmp_path / "run", length=3) as record:
        for k, fraction in enumerate((1, 0.5, 0.25)):
            record.add({"fc.weight": torch.full((3, 4), 1.0 + k)}, fraction)
    path = tmp_path / "run" / "s1.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", -3e38))
    damaged, named = Trajectory.load(path.parent), r"s1\.safetensors does not have the hash in its manifest"
    with pytest.raises(KnowError, match=named):
        predict(damaged, "linear", 2)
    with pytest.raises(KnowError, match=named) as raised, damaged.hashes_first(), damaged.hashes_first():
        raise KnowError("the answer")
    assert str(raised.value.__cause__) == "the answer"


def test_hashes_are_compared_where_another_snapshot_of_the_folder_is_gone(tmp_path):
    with Trajectory.record(tmp_path / "run", length=4) as record:
        for k, fraction in enumerate((1, 0.5, 0.25, 0.125)):
            record.add({"fc.weight": torch.full((3, 4), 1.0 + k)}, fraction)
    paths = [tmp_path / "run" / f"s{k}.safetensors" for k in (2, 1, 0)]
    (tmp_path / "run" / "s3.safetensors").unlink()
    paths[0].write_bytes(paths[0].read_bytes()[:-4] + struct.pack("<f", 7.0))
    with pytest.raises(KnowError, match=r"s2\.safetensors does not have the hash in its manifest"):
        predict(Trajectory.from_checkpoints(paths, [0.25, 0.5, 1]), "linear")


def test_a_missing_file_is_named(tmp_path):
    paths = write(tmp_path, states())
    paths[0].unlink()
    with pytest.raises(KnowError, match=r"0\.safetensors does not exist"):
        _ = Trajectory.from_checkpoints(paths, [0.25, 0.5, 1]).states


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_tensors_that_do_not_match_are_named_with_their_file(tmp_path, suffix, which):
    def check(name: str, change) -> None:
        snapshots = states()
        change(snapshots[which])
        paths = write(tmp_path, snapshots, suffix)
        with pytest.raises(KnowError, match=rf"{name}.*\d\{suffix}"):
            Trajectory.from_checkpoints(paths, [0.25, 0.5, 1]).roles()

    check(r"layer\.bias", lambda state: state.pop("layer.bias"))
    check("extra", lambda state: state.update(extra=torch.zeros(1)))
    check(r"head\.weight", lambda state: state.update({"head.weight": torch.zeros(2, 4)}))


def test_of_several_with_values_that_are_not_finite_the_first_that_was_made_is_named(tmp_path):
    """The others were trained from it."""
    snapshots = states()
    for snapshot in snapshots[:2]:
        snapshot["layer.weight"][2, 3] = math.nan
    trajectory = Trajectory.from_checkpoints(write(tmp_path, snapshots), [0.25, 0.5, 1])
    with pytest.raises(KnowError, match=r"layer\.weight.*1\.safetensors"):
        trajectory.window("layer.weight")


def test_one_checkpoint_cannot_be_two_snapshots(tmp_path):
    first, second, _ = write(tmp_path, states())
    again = tmp_path / "nowhere" / ".." / second.name
    with pytest.raises(KnowError, match=r"1\.safetensors is given twice"):
        Trajectory.from_checkpoints([first, second, again], [0.25, 0.5, 1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_named_with_tensor_and_file(tmp_path, value):
    snapshots = states()
    snapshots[1]["layer.weight"][2, 3] = value
    trajectory = Trajectory.from_checkpoints(write(tmp_path, snapshots), [0.25, 0.5, 1])
    with pytest.raises(KnowError, match=r"layer\.weight.*1\.safetensors"):
        trajectory.window("layer.weight")
    assert bool(trajectory.window("layer.bias").isfinite().all())


@pytest.fixture
def folder(trajectory, tmp_path):
    """A copy of the made trajectory that may be damaged."""
    for path in trajectory.paths[0].parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_one_changed_bit_is_seen_by_the_manifests_hash(folder):
    content = bytearray((folder / "s2.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "s2.safetensors").write_bytes(content)
    with pytest.raises(KnowError, match=r"s2\.safetensors.*hash"):
        _ = Trajectory.load(folder).states


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.clear(),
        lambda m: m.pop("snapshots"),
        lambda m: m["snapshots"][0].pop("file"),
        lambda m: m["snapshots"][1].pop("fraction"),
        lambda m: m["snapshots"][1].pop("sha256"),
        lambda m: m["snapshots"][1].update(fraction="half"),
        lambda m: m["snapshots"].reverse(),
    ],
    ids=["empty", "no snapshots", "no file", "no fraction", "no hash", "a word for a number", "wrong order"],
)
def test_a_wrong_manifest_is_refused(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(KnowError):
        _ = Trajectory.load(folder).states


def test_an_unfinished_folder_is_told_from_none(tmp_path):
    with pytest.raises(KnowError, match="know forget"):
        Trajectory.load(tmp_path / "run")
    (tmp_path / "run.partial").mkdir()
    with pytest.raises(KnowError, match="interrupted"):
        Trajectory.load(tmp_path / "run")


def test_an_unknown_reference_is_named(trajectory):
    with pytest.raises(KnowError, match="'oracle'"):
        trajectory.reference("oracle")


# recording from one's own loop


def drift(model: nn.Module, fraction: float) -> None:
    """Stands in for training: moves the weights by what depends on the fraction alone."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 - fraction / 10)


def record_all(model: nn.Module, out, *, until: int = 4, **options) -> list[float]:
    """A loop as people write it; interrupted before the step `until`. The fractions that were trained."""
    trained = []
    with Trajectory.record(out, **options) as record:
        record.start(model)
        for fraction, index in record.steps(64):
            if len(trained) == until:
                raise KeyboardInterrupt
            assert len(index) == round(64 * fraction)
            drift(model, fraction)
            trained.append(fraction)
            record.add(model, fraction, note="mine")
    return trained


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def test_a_recorded_trajectory_is_the_one_that_forget_makes(tmp_path):
    def fit(model, subset):
        drift(model, len(subset) / 64)

    assert record_all(linear(), tmp_path / "a") == [0.5, 0.25, 0.125, 0.0625]
    forgotten = forget(linear(), range(64), fit, out=tmp_path / "b")
    recorded = Trajectory.load(tmp_path / "a")
    assert recorded.fractions == forgotten.fractions
    for one, other in zip(recorded.states, forgotten.states, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one | other)
    assert [s.get("note") for s in recorded.manifest["snapshots"]] == ["mine"] * 4 + [None]


def test_an_interrupted_recording_goes_on_where_it_was(tmp_path, folder_bytes):
    record_all(linear(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        record_all(linear(), tmp_path / "run", until=2)
    assert not (tmp_path / "run").exists()
    with pytest.raises(KnowError, match="interrupted"):
        Trajectory.load(tmp_path / "run")
    with pytest.raises(KnowError, match="other weights"):
        record_all(linear(seed=1), tmp_path / "run")
    assert record_all(linear(), tmp_path / "run") == [0.125, 0.0625]
    assert folder_bytes(tmp_path / "run") == folder_bytes(tmp_path / "whole")
    assert record_all(linear(), tmp_path / "run") == []  # finished: nothing is left to do
    with pytest.raises(KnowError, match="other settings"):
        record_all(linear(), tmp_path / "run", length=4)


class Queue(nn.Linear):
    """A network with a buffer that by name and shape could be weights, and with one that is not finite."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(3, 2)
        self.register_buffer("queue", torch.ones(4, 8))
        self.register_buffer("limit", torch.tensor(torch.nan))


def test_buffers_are_known_where_a_resumed_recording_has_nothing_more_to_record(tmp_path, folder_bytes):
    def record(out, *, stop):
        with Trajectory.record(out, [0.5, 1]) as record:
            record.start(model := Queue())
            for fraction, _ in record.steps(64):
                drift(model, fraction)
                record.add(model, fraction)
            if stop:
                raise KeyboardInterrupt

    record(tmp_path / "whole", stop=False)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "run", stop=True)
    with Trajectory.record(tmp_path / "run", [0.5, 1]):
        pass  # without start
    assert folder_bytes(tmp_path / "run") == folder_bytes(tmp_path / "whole")
    assert Trajectory.load(tmp_path / "run").roles()["queue"] == "buffer"


def test_buffers_are_known_where_forgetting_was_interrupted_in_its_placebo(tmp_path):
    def fit(model, subset):
        drift(model, len(subset) / 64)

    with interrupted(at=6):  # after the four steps of fit
        forget(Queue(), range(64), fit, placebo=fit, out=tmp_path / "run")
    made = forget(Queue(), range(64), fit, placebo=fit, out=tmp_path / "run")
    assert made.manifest["buffers"] == ["queue"]
    assert not made.paths[0].with_name("buffers.json").exists()


def test_a_recording_that_lacks_a_snapshot_is_not_finished(tmp_path):
    def lazy():
        with Trajectory.record(tmp_path / "run", [0.25, 1]) as record:
            record.start(linear())

    with pytest.raises(KnowError, match=r"no snapshot of fraction 0\.25"):
        lazy()
    assert not (tmp_path / "run").exists()
    with Trajectory.record(tmp_path / "other", [0.25, 1]) as record:
        with pytest.raises(KnowError, match=r"0\.3 is not one"):
            record.add(linear(), 0.3)
        record.add({"w": torch.ones(2)}, 0.25)  # any framework's weights, by name
        record.add({"w": torch.zeros(2)}, 1)
    assert Trajectory.load(tmp_path / "other").window("w").tolist() == [[1, 0], [1, 0]]


def test_a_recording_goes_on_with_the_same_subsets_or_not_at_all(tmp_path):
    def begin(n, seed):
        with Trajectory.record(tmp_path / "run") as record:
            record.start(linear())
            return list(record.steps(n, seed))  # and the block ends with nothing recorded

    for _ in range(2):
        with pytest.raises(KnowError, match="no snapshot of fraction"):
            begin(64, 0)
    for n, seed in ((32, 0), (64, 1)):
        with pytest.raises(KnowError, match="was begun with 64 items and seed 0, not with"):
            begin(n, seed)


def test_a_fact_may_not_be_called_as_what_the_file_itself_says(tmp_path):
    with pytest.raises(KnowError, match="facts has 'tied'"), Trajectory.record(tmp_path / "run") as record:
        record.add(linear(), 1.0, tied=True)


def test_what_the_coarsest_dtype_cannot_show_may_have_moved(tmp_path):
    values = [torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.001]), torch.tensor([0.999])]
    assert Trajectory.from_checkpoints(write(tmp_path, [{"w": v} for v in values]), (0.25, 0.5, 1)).moves("w")
    values[2] = values[1]
    (other := tmp_path / "other").mkdir()
    assert not Trajectory.from_checkpoints(write(other, [{"w": v} for v in values]), (0.25, 0.5, 1)).moves("w")


def test_a_trajectory_of_one_snapshot_is_refused(trajectory):
    with pytest.raises(KnowError, match="length must be at least 2"):
        trajectory.last(1)
