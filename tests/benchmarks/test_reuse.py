"""Taking over what other suites have finished: the same bytes as made anew, or nothing."""

import json

import pytest
import torch
from synthetic import TINY

from benchmarks import finetune
from benchmarks.finetune import Memory
from benchmarks.reuse import adopt_origin, gather_memory
from benchmarks.suite import load_suite
from know.files import write_json
from know.forgetting import make_origin

SUITE = load_suite(str(TINY))
(ORIGIN,) = SUITE.origins


def make(work, suite):
    out = work / "trajectories" / ORIGIN.slug
    settings = suite.forgetting_of(ORIGIN)
    make_origin(ORIGIN, suite.trajectory_ids, suite.tracks(ORIGIN), suite.pretraining, settings, out=out)
    data = json.loads((out / "manifest.json").read_text())["data"]
    write_json(work / "data.json", {ORIGIN.source: {"sha256": data}})
    return out


def wants(everywhere, name, **changed):
    """A suite that lacks its trajectories; gives its settings."""
    write_json(everywhere / name / "data.json", json.loads((everywhere / "one" / "data.json").read_text()))
    return SUITE.model_copy(update=changed)


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """Work of a suite with more trajectories than the others want."""
    folder = tmp_path_factory.mktemp("work")
    make(folder / "one", SUITE.model_copy(update={"trajectories": 3}))
    return folder


def adopted(suite, everywhere, name, version=torch.__version__):
    return adopt_origin(suite, ORIGIN, everywhere / name, everywhere=everywhere, torch=version)


def test_trajectories_of_another_suite_are_those_that_would_be_made(everywhere, tmp_path, folder_bytes):
    suite = wants(everywhere, "deep/two")
    source = adopted(suite, everywhere, "deep/two")
    assert source == everywhere / "one" / "trajectories" / ORIGIN.slug
    assert folder_bytes(everywhere / "deep" / "two" / "trajectories" / ORIGIN.slug) == folder_bytes(
        make(tmp_path, suite)
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"trajectories": 4},
        {"pretraining": SUITE.pretraining.model_copy(update={"learning_rate": 2e-3})},
        {"forgetting": SUITE.forgetting.model_copy(update={"carry_optimizer": False})},
        {"pairs": [SUITE.pairs[0].model_copy(update={"tracks": ["retrodiction"]})]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_nothing_is_taken_that_would_have_been_made_otherwise(everywhere, changed):
    suite = wants(everywhere, "other", **changed)
    assert adopted(suite, everywhere, "other") is None
    assert not (everywhere / "other" / "trajectories").exists()


def test_nothing_is_taken_from_other_data_code_or_torch_or_by_force(everywhere, monkeypatch):
    suite = wants(everywhere, "strict")
    assert adopted(suite, everywhere, "strict", version="1.0") is None
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.reuse.code_hash", lambda module: "other")
        assert adopted(suite, everywhere, "strict") is None
    with monkeypatch.context() as patch:
        patch.setenv("KNOW_FORCE", "1")
        assert adopted(suite, everywhere, "strict") is None
    write_json(everywhere / "strict" / "data.json", {ORIGIN.source: {"sha256": "other"}})
    assert adopted(suite, everywhere, "strict") is None


def test_fine_tunes_of_all_cells_are_remembered_and_not_computed_again(tmp_path):
    for place, value in (("a/memory/x.jsonl", 1), ("b/c/memory/y.jsonl", 2)):
        (tmp_path / place).parent.mkdir(parents=True)
        Memory(tmp_path / place).get(["key", value], lambda value=value: {"value": value})
    with (tmp_path / "a/memory/x.jsonl").open("a") as handle:
        handle.write('{"key": "cut sho')
    own = tmp_path / "a" / "memory" / "new.jsonl"
    assert gather_memory(own, everywhere=tmp_path) == 2
    found = Memory(own)
    assert [found.get(["key", value], pytest.fail) for value in (1, 2)] == [{"value": 1}, {"value": 2}]
    assert gather_memory(own, everywhere=tmp_path) == 0  # it has its own by now


def test_fine_tunes_of_other_code_or_by_force_are_not(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "code_hash", lambda module: "other")
        Memory(tmp_path / "a.jsonl").get(["key"], dict)
        (tmp_path / "a" / "memory").mkdir(parents=True)
        (tmp_path / "a.jsonl").rename(tmp_path / "a" / "memory" / "a.jsonl")
    assert gather_memory(tmp_path / "new.jsonl", everywhere=tmp_path) == 0
    Memory(tmp_path / "a" / "memory" / "b.jsonl").get(["key"], dict)
    monkeypatch.setenv("KNOW_FORCE", "1")
    assert gather_memory(tmp_path / "new.jsonl", everywhere=tmp_path) == 0
