"""What a function of the user is: its code, arguments, attributes and closure; no run is to be taken for another's."""

from __future__ import annotations

import collections
import contextlib
import dis
import enum
import functools
import hashlib
import itertools
import logging
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from know.files import digest
from know.models import inner

PLAIN = (type(None), bool, int, float, complex, str, bytes, Path, enum.Enum, torch.dtype, torch.device, torch.Size)
MANY = 10_000
"""Longer lists, such as the files of a dataset, are compared by what they print."""
OF_C = (types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType, types.MethodDescriptorType)
INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
CODE = (types.FunctionType, types.MethodType, functools.partial, type)


def identity(function: Any, given: Mapping[str, Any] | None = None) -> tuple[str, list[str]]:
    """Hash of everything that decides what a callable does, and the names of parts that could not be compared.

    Followed are partial arguments, defaults, closures, attributes of objects, and the globals that the code names,
    those of the user's own modules included; installed packages count by name. Where the callable itself is an object
    with `state_dict()`, the attributes that its state carries are left out, since they change and are restored.

    given: values that are known by other means, such as the model to train; they count by their name here.
    """
    names = {id(value): name for name, value in (given or {}).items()}
    walk = _Walk(function, names)
    return digest(walk.of(function, getattr(function, "__name__", type(function).__name__))), walk.unknown


class _Walk:
    def __init__(self, function: Any, names: dict[int, str]):
        self.function, self.names, self.unknown = function, names, []
        self.kept: list[Any] = []
        """Everything met, so that no id is used twice."""

    def of(self, value: Any, place: str) -> Any:
        """A JSON-serialisable description of a value; `place` says where it was found."""
        if isinstance(value, PLAIN):
            return [type(value).__qualname__, str(value) if isinstance(value, Path) else repr(value)]
        if id(value) in self.names:
            return ["met", self.names[id(value)]]
        self.names[id(value)] = f"{len(self.kept)}"
        self.kept.append(value)
        try:
            return [type(value).__qualname__, self._parts(value, place)]
        except RecursionError:
            return self._give_up(value, place)

    def _parts(self, value: Any, place: str) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            return self._array(value, place)
        if isinstance(value, list | tuple | dict) and len(value) > MANY:
            if not all(isinstance(each, PLAIN) for each in _flat(value)):
                return self._give_up(value, place)  # the text of an array leaves values out
            return hashlib.sha256(repr(value).encode()).hexdigest()
        if isinstance(value, Mapping) and type(value) in (dict, collections.OrderedDict, types.MappingProxyType):
            return sorted(([self.of(k, place), self.of(v, f"{place}[{k!r}]")] for k, v in value.items()), key=repr)
        if isinstance(value, Set):
            return [self.of(each, place) for each in sorted(value, key=repr)]
        if type(value) in (list, tuple, range):
            return [self.of(each, f"{place}[{k}]") for k, each in enumerate(value)]
        if isinstance(value, functools.partial):
            return [self.of(part, place) for part in (value.func, value.args, value.keywords)]
        if isinstance(value, types.MethodType):
            return [self.of(value.__func__, place), self.of(value.__self__, place)]
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, logging.Logger):  # it refers to all loggers of the process, which change as it runs
            return value.name
        if isinstance(value, nn.Module) and inner(value) is not value:  # what torch.compile adds changes as it runs
            return self.of(inner(value), place)
        if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type) and _is_installed(value):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, types.FunctionType):
            return self._function(value, place)
        if isinstance(value, staticmethod | classmethod | property):
            return [self.of(part, place) for part in _wrapped(value)]
        if isinstance(value, type):
            own = {k: v for k, v in vars(value).items() if not k.startswith("__") or isinstance(v, types.FunctionType)}
            own = {k: v for k, v in own.items() if not isinstance(v, OF_C)}
            return [[self.of(base, place) for base in value.__bases__], self.of(own, place)]
        if isinstance(value, torch.Generator):
            return self.of(value.get_state(), place)
        return self._object(value, place)

    def _object(self, value: Any, place: str) -> Any:
        slots = [
            name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(value, name)
        ]
        if not slots and not hasattr(value, "__dict__"):  # an object of C, which may hold anything
            return self._give_up(value, place)
        attributes = {**getattr(value, "__dict__", {}), **{name: getattr(value, name) for name in slots}}
        if isinstance(value, Mapping):  # a subclass, which may have attributes as well
            attributes |= {f"[{key!r}]": each for key, each in value.items()}
        elif isinstance(value, list | tuple):
            attributes |= {f"[{k}]": each for k, each in enumerate(value)}
        restored = {}
        if value is self.function and hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            with contextlib.suppress(Exception):
                restored = value.state_dict()
        parts = {k: self.of(v, f"{place}.{k}") for k, v in sorted(attributes.items()) if k not in restored}
        return [self.of(type(value), place), parts]

    def _function(self, function: types.FunctionType, place: str) -> Any:
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        closure = {}
        for name, cell in cells.items():
            with contextlib.suppress(ValueError):  # a cell that is not filled yet
                closure[name] = self.of(cell.cell_contents, f"{place}, {name}")
        used = set(_names(function.__code__))  # those of attributes included, which may be those of a module
        around = {n: function.__globals__[n] for n in sorted(_globals(function.__code__) & function.__globals__.keys())}
        for name, module in list(around.items()):
            if isinstance(module, types.ModuleType) and not _is_file_installed(getattr(module, "__file__", None)):
                around |= {f"{name}.{each}": vars(module)[each] for each in sorted(used & vars(module).keys())}
        around = {name: self.of(value, name) for name, value in around.items()}
        defaults = self.of([function.__defaults__, function.__kwdefaults__], place)
        return [self._code(function.__code__), defaults, closure, around, self.of(dict(vars(function)), place)]

    def _code(self, code: types.CodeType) -> Any:
        constants = [self._code(c) if isinstance(c, types.CodeType) else self.of(c, "") for c in code.co_consts]
        return [code.co_code.hex(), code.co_names, code.co_varnames, constants]

    def _array(self, value: Tensor | np.ndarray, place: str) -> Any:
        try:
            array = value.detach().cpu().contiguous() if isinstance(value, Tensor) else torch.from_numpy(value.copy())
            content = hashlib.sha256(array.reshape(-1).view(torch.uint8).numpy()).hexdigest()
        except (RuntimeError, TypeError, NotImplementedError):  # sparse, on no device, an array of objects
            return self._give_up(value, place)
        return [str(value.dtype), list(value.shape), content]

    def _give_up(self, value: Any, place: str) -> Any:
        kind = type(value).__qualname__
        self.unknown.append(f"{place} (a {kind})")
        return ["unknown", kind]


def _flat(value: list | tuple | dict) -> Iterator[Any]:
    """The elements of a long list, or the keys and values of a mapping, those of tuples among them one by one."""
    for each in itertools.chain.from_iterable(value.items()) if isinstance(value, dict) else value:
        yield from _flat(each) if type(each) in (list, tuple) else [each]


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that a code object looks up outside itself, those of functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _globals(code: types.CodeType) -> set[str]:
    """Those of the names that are looked up in the module."""
    own = {each.argval for each in dis.get_instructions(code) if each.opname.endswith(("_GLOBAL", "_NAME"))}
    return own.union(*(_globals(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def _wrapped(value: staticmethod | classmethod | property) -> list[Any]:
    return [value.fget, value.fset] if isinstance(value, property) else [value.__func__]


def _is_installed(value: Any) -> bool:
    """Whether a function or class belongs to Python or to an installed package, and not to the user's own files."""
    code = getattr(value, "__code__", None)
    module = sys.modules.get(getattr(value, "__module__", None) or "builtins")
    file = code.co_filename if code else getattr(module, "__file__", None)
    if file is None:  # built in, or made by exec
        return getattr(module, value.__name__, None) is value or not isinstance(value, type)
    return _is_file_installed(file)


def _is_file_installed(file: str | None) -> bool:
    """Whether a module's file belongs to Python or a package; a module without a file is built in."""
    return file is None or "dist-packages" in file or any(Path(file).is_relative_to(root) for root in INSTALLED)
