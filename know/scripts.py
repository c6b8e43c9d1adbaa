"""Functions in the user's own scripts, named as SCRIPT.py:function on the command line."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from know.errors import KnowError


def function_of(spec: str, option: str) -> Callable[..., Any]:
    """The function that `spec` names; KnowError if it is not there, or if running its script fails.

    spec: "SCRIPT.py:function". option: the name of the argument that gave it, for the error.
    """
    script, colon, name = spec.rpartition(":")
    path = Path(script)
    if not colon or not path.is_file():
        raise KnowError(f"{option} {spec!r}: write it as SCRIPT.py:function, with a script that exists")
    sys.path.insert(0, str(path.parent.resolve()))
    source = importlib.util.spec_from_file_location(_module_name(path), path)
    if source is None or source.loader is None:
        raise KnowError(f"{option} {spec!r}: {path} is no Python script")
    module = importlib.util.module_from_spec(source)
    sys.modules[module.__name__] = module  # where dataclasses and pickles look for it
    call(lambda: source.loader.exec_module(module), spec, option)
    if not callable(getattr(module, name, None)):
        raise KnowError(f"{option} {spec!r}: {path} has no function {name!r}")
    return getattr(module, name)


def _module_name(path: Path) -> str:
    """The name under which a process that is started anew can import the script, its folder being on the path; another
    one where that name is taken.
    """
    importlib.invalidate_caches()  # the script may be younger than the last look
    if path.stem.isidentifier() and path.stem not in sys.modules:
        with contextlib.suppress(ImportError, ValueError):
            found = importlib.util.find_spec(path.stem)
            if found is not None and found.origin is not None and Path(found.origin).samefile(path):
                return path.stem
    return f"know_script_{path.stem}"


def number_in(answer: Any) -> Real | None:
    """The number that a function of the user answered, an array or tensor of one value included; None for all else."""
    with contextlib.suppress(AttributeError, RuntimeError, ValueError):  # of more than one number
        answer = answer.item()
    return answer if isinstance(answer, Real) and not isinstance(answer, bool) else None


def setup_of(spec: str) -> tuple[Any, Any, Callable[..., Any], Callable[..., Any] | None]:
    """What the user's function for `know forget` returns: model, dataset, fit, and placebo or None.

    KnowError if it returns anything else.
    """
    answer = call(function_of(spec, "SCRIPT"), spec, "SCRIPT")
    if not isinstance(answer, tuple | list) or len(answer) not in (3, 4):
        count = f"{len(answer)} values" if isinstance(answer, tuple | list) else f"a {type(answer).__name__}"
        raise KnowError(f"SCRIPT {spec!r}: the function must return model, dataset, fit; it returned {count}")
    for value, name, needed in zip(
        answer,
        ("model", "dataset", "fit", "placebo"),
        (("state_dict", "load_state_dict"), ("__len__", "__getitem__"), ("__call__",), ("__call__",)),
        strict=False,  # there may be no placebo
    ):
        lacking = [attribute for attribute in needed if not hasattr(value, attribute)]
        if lacking:
            kind = type(value).__name__
            raise KnowError(f"SCRIPT {spec!r}: {name}, a {kind}, has no {lacking[0]}; return model, dataset, fit")
    model, dataset, fit, *placebo = answer
    return model, dataset, fit, placebo[0] if placebo else None


def call(function: Callable[..., Any], spec: str, option: str) -> Any:
    """What a function answers that runs the user's script; KnowError with the line of the script where it fails.

    The working directory is afterwards what it was, so that relative paths go on to mean the same.
    """
    try:
        with contextlib.chdir(Path.cwd()):
            return function()
    except KnowError:
        raise
    except (Exception, SystemExit) as error:
        script, passed = Path(spec.rpartition(":")[0]).name, traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in passed if Path(frame.filename).name == script]
        where = f" in line {lines[-1]}" if lines else ""
        raise KnowError(f"{option} {spec!r} failed{where}: {type(error).__name__}: {error}") from error
