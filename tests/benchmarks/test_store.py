"""The store of finished work: the same content is made once, whoever asks; nothing else is taken."""

import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from planted_results import TINY

from benchmarks import trajectories
from benchmarks.store import LOADING, Results, Store, computing, link_folder
from benchmarks.suite import load_suite
from benchmarks.trajectories import make_origin
from know.files import read_json
from know.fingerprint import Code, code_hash

SUITE = load_suite(str(TINY))
(ORIGIN,) = SUITE.origins
ABOUT = {"network": "mlp", "device": "cpu"}


class Work:
    """Something to compute, and how often it was."""

    def __init__(self):
        self.count = 0

    def __call__(self) -> dict:
        self.count += 1
        return {"accuracy": 0.25 + self.count}


# results


def results(root: Path, forced: bool = False, **about: str) -> Results:
    return Store(root, forced=forced).results("fine-tunes", ABOUT | about)


def test_the_same_content_is_computed_once(tmp_path):
    kept, work = results(tmp_path), Work()
    first = kept.get(["a", {"rate": 0.1}], work)
    assert kept.get(["a", {"rate": 0.1}], work) == first
    assert kept.get(["a", {"rate": 0.2}], work) != first
    assert results(tmp_path).get(["a", {"rate": 0.1}], pytest.fail) == first
    assert work.count == 2


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"network": "normcnn"}, {"code": "other"}])
def test_what_was_made_otherwise_is_not_taken(tmp_path, other):
    work = Work()
    results(tmp_path).get("a", work)
    results(tmp_path, **other).get("a", work)
    assert work.count == 2


def test_by_force_nothing_is_taken_but_what_this_process_has_made(tmp_path):
    work = Work()
    first, forced = results(tmp_path).get("a", work), results(tmp_path, forced=True)
    again = forced.get("a", work)
    assert again != first
    assert forced.get("a", pytest.fail) == again


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_a_kill_cut_short_is_computed_again(tmp_path, cut):
    kept, work = results(tmp_path), Work()
    for key in "abc":
        kept.get(key, work)
    kept.own.write_bytes(kept.own.read_bytes()[:-cut])
    again = results(tmp_path)
    assert [again.get(key, work)["accuracy"] for key in "abc"] == [1.25, 2.25, 4.25]


def test_what_was_put_last_counts_whatever_the_numbers_of_processes(tmp_path, monkeypatch):
    for process, value in ((9, 1), (10, 2)):
        monkeypatch.setattr("benchmarks.store.os.getpid", lambda process=process: process)
        Store(tmp_path).results("some", {}).put("key", {"value": value})
    assert Store(tmp_path).results("some", {}).find("key") == {"value": 2}


def test_an_unfinished_computation_leaves_nothing(tmp_path):
    def fails():
        raise KeyboardInterrupt

    kept, work = results(tmp_path), Work()
    with pytest.raises(KeyboardInterrupt):
        kept.get("a", fails)
    assert results(tmp_path).get("a", work) == {"accuracy": 1.25}


def test_a_portion_is_computed_as_a_whole(tmp_path):
    kept = results(tmp_path)
    kept.get("a", lambda: {"value": 1})
    assert kept.get_all(["a", "b"], lambda: [{"value": 2}, {"value": 3}]) == [{"value": 2}, {"value": 3}]


def add(root: Path, first: int) -> None:
    kept = results(root)
    for key in range(first, first + 50):
        kept.get(key, lambda key=key: {"value": key})


def test_several_processes_may_add_at_once(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(add, [(tmp_path, 25 * number) for number in range(4)])
    kept = results(tmp_path)
    assert [kept.get(key, pytest.fail)["value"] for key in range(125)] == list(range(125))


def test_a_gpu_is_named_in_what_decides_the_bits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert computing("c0de", "cuda:0")["device"] == "cuda: a GPU"


def test_a_key_reaches_the_networks_the_subsets_and_the_splits_of_the_data(repository):
    """A change of one of them must not be given what was made before it."""
    code = Code(repository)
    assert {"benchmarks.networks:build", "know.subsets:nested_subsets"} <= code.reach(trajectories.PRETRAINING).keys()
    assert {"benchmarks.networks:build"} <= code.reach("benchmarks.finetune").keys()
    assert {"benchmarks.data:PACS_TEST_SHARE", "benchmarks.data:SEEN_IN_TEST"} <= code.reach(LOADING).keys()
    assert code_hash(trajectories.PRETRAINING) != code_hash(trajectories.PRETRAINING, LOADING) != code_hash(LOADING)


# folders


def fill(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "made").write_text(str(time.monotonic_ns()))


def ask(root: Path) -> str:
    return (Store(root, forced=False).folder("trajectories", ABOUT, "made", fill) / "made").read_text()


def test_of_several_processes_one_makes_a_folder(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert len(set(pool.map(ask, [tmp_path] * 8))) == 1


def test_a_folder_says_what_it_is_of_and_is_made_anew_by_force(tmp_path):
    path = Store(tmp_path, forced=False).folder("trajectories", ABOUT, "made", fill)
    assert read_json(path / "about.json") == ABOUT
    before = (path / "made").read_text()
    (path / "left over").touch()
    assert Store(tmp_path, forced=True).folder("trajectories", ABOUT, "made", fill) == path
    assert (path / "made").read_text() != before
    assert not (path / "left over").exists()


def test_a_link_is_the_same_file_and_replaces_what_stood_there(tmp_path):
    fill(tmp_path / "one")
    (tmp_path / "one" / "about.json").touch()
    fill(tmp_path / "two")
    (tmp_path / "two" / "old").touch()
    link_folder(tmp_path / "one", tmp_path / "two")
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["made"]
    assert (tmp_path / "two" / "made").samefile(tmp_path / "one" / "made")


# trajectories


def make(root: Path, suite, name: str, forced: bool = False) -> Path:
    out, settings = root / name, suite.forgetting_of(ORIGIN)
    store = Store(root / "store", forced=forced)
    tracks = suite.tracks(ORIGIN)
    make_origin(ORIGIN, suite.trajectory_ids, tracks, suite.pretraining, settings, store=store, out=out)
    return out


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Trajectories of a suite that has more than the others want."""
    root = tmp_path_factory.mktemp("work")
    make(root, SUITE.model_copy(update={"trajectories": 3}), "one")
    return root


def test_trajectories_of_another_suite_are_those_that_would_be_made(first, tmp_path, folder_bytes, monkeypatch):
    anew = make(tmp_path, SUITE, "two")
    monkeypatch.setattr(trajectories, "train", pytest.fail)
    assert folder_bytes(make(first, SUITE, "two")) == folder_bytes(anew)


@pytest.mark.parametrize(
    "update",
    [
        {"trajectories": 4},
        {"pretraining": SUITE.pretraining.model_copy(update={"learning_rate": 2e-3})},
        {"forgetting": SUITE.forgetting.model_copy(update={"carry_optimizer": False})},
        {"pairs": [SUITE.pairs[0].model_copy(update={"tracks": ["retrodiction"]})]},
    ],
    ids=lambda update: next(iter(update)),
)
def test_nothing_is_taken_that_would_have_been_made_otherwise(first, update, monkeypatch):
    class Trained(Exception):
        pass

    def train(*arguments, **options):
        raise Trained

    monkeypatch.setattr(trajectories, "train", train)
    with pytest.raises(Trained):
        make(first, SUITE.model_copy(update=update), "other")
    monkeypatch.setattr(trajectories, "computing", lambda code, device: {"code": "other"})
    with pytest.raises(Trained):
        make(first, SUITE, "other")
