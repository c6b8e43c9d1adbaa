"""No folder is taken for another's: our own snapshots, finished trajectories, and the user's training function."""

import functools
import importlib
import json
import logging
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from snapshot_files import FRACTIONS, base

import know
from know.errors import KnowError
from know.identity import identity
from know.trajectory import Trajectory

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


@pytest.mark.parametrize("value", [float("nan"), 1.0])
def test_a_value_that_is_not_finite_hides_no_standstill(tmp_path, value):
    model = torch.nn.Linear(4, 2)
    model.register_buffer("running_v", torch.tensor([value]))
    with pytest.raises(KnowError, match="left all weights as they were"):
        know.forget(model, [0] * 64, lambda model, subset: None, out=tmp_path / "run")


def test_weights_of_complex_numbers_may_move_alone(tmp_path):
    model = torch.nn.ParameterDict({"w": torch.zeros(2, 2, dtype=torch.complex64), "b": torch.zeros(2)})
    made = know.forget(model, [0] * 64, lambda model, subset: model["w"].data.add_(1j), out=tmp_path / "run")
    assert [state["w"][0, 0].imag.item() for state in made.states] == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(2, 2).to_sparse(), "is sparse"),
        (torch.zeros(2, device="meta"), "is on the meta device"),
        (torch.zeros(2, dtype=torch.complex128), r"is of torch\.complex128"),
    ],
    ids=["sparse", "meta", "complex128"],
)
def test_a_tensor_that_no_snapshot_can_keep_is_named_before_training(tmp_path, tensor, said):
    with pytest.raises(KnowError, match=f"'x' {said}"), know.Trajectory.record(tmp_path / "recorded") as record:
        record.add({"x": tensor}, 1.0)
    model, trained = torch.nn.Linear(4, 2), []
    with pytest.raises(KnowError, match=f"'x' {said}"):
        know.forget(model, [0] * 64, lambda *_: trained.append(1), references={"r": {"x": tensor}}, out=tmp_path / "a")
    model.register_buffer("x", tensor)
    with pytest.raises(KnowError, match=f"'x' {said}"):
        know.forget(model, [0] * 64, lambda *_: trained.append(1), out=tmp_path / "b")
    assert not trained


def test_the_error_of_fit_is_the_one_that_is_seen(tmp_path):
    def fit(model, subset):
        del model.bias
        raise RuntimeError("my own error")

    with pytest.raises(RuntimeError, match="my own error"):
        know.forget(torch.nn.Linear(4, 2), [0] * 64, fit, out=tmp_path / "run")


CONFIGURATION = {"size": 0.01}


def by_global(model, subset):
    model.weight.data.add_(CONFIGURATION["size"])


class Named:
    conf = CONFIGURATION

    def __call__(self, model, subset):
        model.weight.data.add_(self.conf["size"])


@pytest.mark.parametrize("make", [lambda: by_global, Named], ids=["global", "attribute of the class"])
def test_a_changed_global_is_another_training_function(tmp_path, monkeypatch, make):
    def forget():
        torch.manual_seed(0)
        return know.forget(torch.nn.Linear(4, 2), [0] * 64, make(), out=tmp_path / "run")

    forget()
    monkeypatch.setitem(CONFIGURATION, "size", 0.5)
    with pytest.raises(KnowError, match="other weights, data, settings or `fit`"):
        forget()


def test_an_extra_state_of_a_module_is_no_obstacle(tmp_path):
    class Extra(torch.nn.Linear):
        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            assert state == {"version": 3}

    model = Extra(4, 2)
    trajectory = know.forget(model, [0] * 64, lambda model, subset: step(model, subset, 0.1), out=tmp_path / "run")
    assert trajectory.theta_0.keys() == {"weight", "bias"}


def test_a_long_list_is_compared_as_a_whole_or_named_as_unknown():
    def task_of(value):
        return lambda: value

    def said(value):
        return identity(task_of(value))

    numbers = [(k, "a") for k in range(20_000)]
    assert said(numbers) == said(list(numbers))
    assert said(numbers) != said([*numbers[:-1], (1, "b")])
    _, unknown = said([np.zeros(3)] * 20_000)
    assert len(unknown) == 1


def close():
    return 1


def test_the_name_of_an_attribute_is_not_that_of_a_function_of_the_module(monkeypatch):
    def task(handle):
        handle.close()

    before = identity(task)
    monkeypatch.setitem(globals(), "close", lambda: 2)
    assert identity(task) == before


def keyword_only(model, subset, *, size=0.01):
    step(model, subset, size)


class Slotted:
    __slots__ = ("size",)

    def __init__(self, size):
        self.size = size

    def __call__(self, model, subset):
        step(model, subset, self.size)


class Wrapped:
    def __init__(self, size):
        self.kept = size

    size = property(lambda self: self.kept)


def with_defaults(size):
    return lambda model, subset, size=size: step(model, subset, size)


def with_keyword_only(size):
    made = functools.partial(keyword_only)
    made.keywords["size"] = size
    return made


def method_of(kind):
    def make(size):
        return type("Own", (), {"size": kind(lambda *_: size)})

    return make


@pytest.mark.parametrize(
    "make",
    [
        with_defaults,
        with_keyword_only,
        Slotted,
        Wrapped,
        method_of(staticmethod),
        method_of(classmethod),
        method_of(property),
        lambda size: {size, "a"},
        lambda size: {"a": {"b": (size,)}},
        lambda size: np.array([1.0, size]),
        lambda size: torch.Generator().manual_seed(int(1000 * size)),
        lambda size: [0.0] * 20_000 + [size],
        lambda size: {k: size for k in range(20_000)},
    ],
)
def test_what_differs_somewhere_inside_a_function_is_another_one(make):
    def task_of(size):
        value = make(size)
        return lambda: value

    (one, unknown), (same, _), (other, _) = (identity(task_of(size)) for size in (0.01, 0.01, 0.5))
    assert one == same
    assert one != other
    assert not unknown


LOGGER = logging.getLogger(__name__)


def test_a_logger_and_a_compiled_network_do_not_change_a_function_as_they_work():
    compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager")

    def task():
        LOGGER.info("%s", compiled(torch.ones(1, 2)))

    before = identity(task)
    task()
    logging.getLogger(f"{__name__}.another").info("made meanwhile")
    assert identity(task) == before
    compiled.weight.data.add_(1)
    assert identity(task) != before


def test_a_changed_value_in_a_module_of_the_user_is_another_function(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sizes_of_the_user.py").write_text("SIZE, UNUSED = 0.01, 1")
    module = importlib.import_module("sizes_of_the_user")
    monkeypatch.setitem(globals(), "sizes", module)
    before = identity(by_module)
    monkeypatch.setattr(module, "UNUSED", 2)
    assert identity(by_module) == before
    monkeypatch.setattr(module, "SIZE", 0.5)
    assert identity(by_module) != before


def by_module(model, subset):
    step(model, subset, sizes.SIZE)  # noqa: F821 - the test above puts it there
