"""Fingerprints of code: they follow what a function can reach, not where it stands or how it is worded."""

import itertools
import subprocess
import sys

import pytest

from know.files import write_text
from know.fingerprint import Code, code_hash

FILES = {
    "know/__init__": "",
    "know/stage": (
        '"""Words."""\nfrom know import tools\n\n\ndef run(x):\n    """More words."""\n'
        "    from know.helper import add\n    return tools.double(add(x))\n\n\ndef other(x):\n    return x\n"
    ),
    "know/helper": "LEVEL = 1\n\n\ndef add(x):\n    return x + LEVEL  # one\n\n\ndef unused():\n    return 0\n",
    "know/tools": "from know.deep import base\n\n\ndef double(x):\n    return 2 * base(x)\n",
    "know/deep": "def base(x):\n    return x\n",
    "know/plugins/__init__": (
        "import importlib\n\n\ndef get(name):\n    return importlib.import_module(f'{__name__}.{name}')\n"
    ),
    "know/plugins/one": "VALUE = 1\n",
    "know/user": "from know.plugins import get\n\n\ndef ask():\n    return get('one').VALUE\n",
    "know/registry": "LIST = []\n\n\ndef entry(f=None):\n    LIST.append(f)\n",
    "know/members": (
        "from know.registry import LIST, entry\n\n\n@entry()\ndef first():\n    return 1\n\n\n"
        "def count():\n    return len(LIST)\n"
    ),
}
RUN = "know.stage:run"


@pytest.fixture
def tree(tmp_path):
    """Function that writes the packages, with some files in other words, and gives their code."""

    numbers = itertools.count()

    def write(**changes: str) -> Code:
        root = tmp_path / str(next(numbers))
        for name, text in {**FILES, **{key.replace("__in__", "/"): text for key, text in changes.items()}}.items():
            if text:
                write_text(root / f"{name}.py", text)
        return Code(root)

    return write


def changed(name: str, old: str, new: str) -> dict[str, str]:
    assert old in FILES[name]
    return {name.replace("/", "__in__"): FILES[name].replace(old, new)}


def test_what_is_reached_is_exactly_what_is_used(tree):
    reached = {RUN, "know.helper:add", "know.helper:LEVEL", "know.tools:double", "know.deep:base"}
    assert set(tree().reach(RUN)) == reached
    assert set(tree().reach("know.deep")) == {"know.deep:base"}


CHANGES = {
    "docstring": ("know/stage", '"""More words."""', '"""Other words."""'),
    "layout": ("know/stage", "tools.double(add(x))", "tools.double( add( x ) )  # a remark"),
    "a function that is not used": ("know/helper", "def unused():\n    return 0", "def unused():\n    return 1"),
    "a neighbour in the same file": ("know/stage", "def other(x):\n    return x", "def other(x):\n    return -x"),
    "own code": ("know/stage", "add(x))", "add(-x))"),
    "an import inside a function": ("know/helper", "x + LEVEL", "x - LEVEL"),
    "a constant": ("know/helper", "LEVEL = 1", "LEVEL = 2"),
    "a far import through a module": ("know/deep", "return x", "return -x"),
}
REACHED = list(CHANGES)[4:]


@pytest.mark.parametrize("kind", CHANGES)
def test_the_hash_changes_where_the_result_can_and_nowhere_else(tree, kind):
    assert (tree().hash(RUN) != tree(**changed(*CHANGES[kind])).hash(RUN)) == (kind in REACHED)


def test_a_definition_may_move_to_another_file(tree):
    moved = tree(
        know__in__stage=FILES["know/stage"].replace("know.helper", "know.elsewhere.new"),
        know__in__helper="",
        know__in__elsewhere__in____init__="# a package\n",
        know__in__elsewhere__in__new=FILES["know/helper"],
    )
    assert tree().hash(RUN) == moved.hash(RUN)


def test_a_package_that_loads_its_files_by_name_reaches_all_of_them(tree):
    before = tree().hash("know.user:ask")
    assert "know.plugins.one:VALUE" in tree().reach("know.user:ask")
    assert before != tree(know__in__plugins__in__two="VALUE = 2\n").hash("know.user:ask")
    assert before != tree(**changed("know/plugins/one", "1", "3")).hash("know.user:ask")


def test_what_a_decorator_registers_counts_with_its_module(tree):
    before = tree().hash("know.members:count")
    assert before != tree(**changed("know/members", "return 1", "return 2")).hash("know.members:count")


def test_an_entry_that_does_not_exist_is_an_error(tree):
    for entry in ("know.nowhere", "know.stage:nothing"):
        with pytest.raises(LookupError, match="there is no"):
            tree().hash(entry)


def test_the_hash_is_the_same_in_every_process(repository):
    code = "from know.fingerprint import code_hash; print(code_hash('know.prediction:predict'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == code_hash("know.prediction:predict")
