"""Functions in the user's own scripts, named as SCRIPT.py:function on the command line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
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
    found = importlib.util.spec_from_file_location(f"know_script_{path.stem}", path)
    if found is None or found.loader is None:
        raise KnowError(f"{option} {spec!r}: {path} is no Python script")
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[module.__name__] = module  # where dataclasses, pickles and worker processes look for it
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _theirs(spec, option, error) from error
    if not callable(getattr(module, name, None)):
        raise KnowError(f"{option} {spec!r}: {path} has no function {name!r}")
    return getattr(module, name)


def call(function: Callable[..., Any], spec: str, option: str, *arguments: Any) -> Any:
    """What the user's function answers; KnowError with the line of their script where it fails."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise _theirs(spec, option, error) from error


def _theirs(spec: str, option: str, error: BaseException) -> KnowError:
    """An error in the user's script, with the last line of that script it passed."""
    line, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename.endswith(Path(spec.rpartition(":")[0]).name):
            line = trace.tb_lineno
        trace = trace.tb_next
    place = f" in line {line}" if line else ""
    return KnowError(f"{option} {spec!r} failed{place}: {type(error).__name__}: {error}")
