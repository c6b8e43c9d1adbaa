"""Which kernels are chosen: the variables are set before torch is loaded, the user's own stay, and keys name them."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import kernels
from benchmarks.kernels import PINNED, departures, effective, pin
from benchmarks.store import computing
from benchmarks.workers import workers

OTHER = {"MKL_CBWR": "COMPATIBLE", "OPENBLAS_CORETYPE": ""}
SHOW = """
import json, os, sys
import benchmarks
from benchmarks.kernels import PINNED
print(json.dumps(["torch" in sys.modules, {name: os.environ.get(name) for name in PINNED}]))
"""


@pytest.fixture
def avx2(monkeypatch):
    """This machine taken for x86 with AVX2 on which nothing is set yet."""
    monkeypatch.setattr(kernels, "_has_avx2", lambda: True)
    for name in PINNED:
        monkeypatch.delenv(name, raising=False)


def shown(repository, **own: str) -> list:
    """Whether torch is loaded, and the variables, in a new process that has imported the package and no more."""
    env = {name: value for name, value in os.environ.items() if name not in PINNED}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=repository, env={**env, **own}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not kernels._has_avx2(), reason="nothing is set on a processor without AVX2")
def test_the_variables_are_set_before_torch_is_loaded_and_those_of_the_user_stay(repository):
    assert shown(repository) == [False, PINNED]
    assert shown(repository, **OTHER) == [False, PINNED | OTHER]


def test_a_value_of_the_user_is_kept_and_named_as_a_departure(avx2, monkeypatch):
    for name, value in OTHER.items():
        monkeypatch.setenv(name, value)
    pin()
    assert effective() == PINNED | OTHER
    assert departures() == OTHER


def test_where_nothing_is_set_by_the_user_there_is_no_departure(avx2):
    assert departures().keys() == PINNED.keys()
    pin()
    assert effective() == PINNED
    assert departures() == {}


@pytest.mark.parametrize(("machine", "flags"), [("aarch64", "avx2"), ("arm64", ""), ("x86_64", "avx")])
def test_a_processor_without_avx2_is_left_alone(monkeypatch, machine, flags):
    for name in PINNED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kernels.platform, "machine", lambda: machine)
    monkeypatch.setattr(kernels.Path, "read_text", lambda path, **_: f"flags : fpu {flags} sse\n")
    pin()
    assert set(effective().values()) == {""}
    assert departures() == {}


def test_a_key_of_the_store_names_the_variables_only_where_they_are_not_the_pinned_ones(avx2, monkeypatch):
    """Else what was kept before they were pinned would not be found any more."""
    pin()
    pinned = computing("c0de", "cpu")
    assert pinned.keys() == {"code", "torch", "torchvision", "timm", "pillow", "threads", "device"}
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert computing("c0de", "cpu") == pinned | {"kernels": {"MKL_CBWR": "COMPATIBLE"}}


def seen(_: int) -> dict[str, str]:
    return effective()


@pytest.mark.slow
def test_worker_processes_choose_as_this_one():
    with workers(2) as each:
        assert list(each(seen, range(1))) == [effective()]
