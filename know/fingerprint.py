"""Fingerprints of code: what a function is, with everything that it can reach, wherever these definitions stand.

A stage runs again when its code has changed. What counts is the syntax of the functions, classes and constants that it
can reach, without docstrings, comments and layout. The names and places of files do not count, so that moving a
definition to another module makes nothing anew, and a change in a function concerns those stages alone that call it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from know.files import PACKAGE, digest

PACKAGES = ("know", "benchmarks")
"""Packages whose code is followed; all others count by their versions, which provenance records."""


def syntax(path: Path | str) -> str:
    """The code of a Python file in normal form: no docstrings, comments or layout."""
    return ast.unparse(_without_docstrings(ast.parse(Path(path).read_bytes())))


@functools.cache
def code_hash(*entries: str) -> str:
    """Fingerprint of what entries can reach: "package.module:name" for one definition, "package.module" for all."""
    return _code().hash(*entries)


@functools.cache
def _code() -> Code:
    return Code(PACKAGE.parent)


class Code:
    """The code below a folder that holds the packages."""

    def __init__(self, root: Path):
        self.root = root
        self.module = functools.cache(self._module)
        self.definition = functools.cache(self._definition)

    def hash(self, *entries: str) -> str:
        return digest(sorted({form for entry in entries for form in self.reach(entry).values()}))

    def reach(self, entry: str) -> dict[str, str]:
        """Everything that an entry can reach: "module:name" to its normal form.

        Names are resolved through imports at any depth. Statements that run when a module is imported, such as the
        registration of a function by a decorator, count as soon as anything in that module is reached. A package that
        imports its own files by name reaches all of them.
        """
        seen: dict[str, str] = {}
        module, _, name = entry.partition(":")
        if self.module(module) is None or (name and name not in self.module(module).definitions):
            raise LookupError(f"there is no {entry}")
        waiting = [(module, name)] if name else [(module, each) for each in self.module(module).definitions]
        touched: set[str] = set()
        while waiting:
            module, name = waiting.pop()
            here = self.module(module)
            if module not in touched:
                touched.add(module)
                waiting += [(module, each) for each in here.at_import]
            if f"{module}:{name}" in seen:
                continue
            text, uses = self.definition(module, name)
            seen[f"{module}:{name}"] = text
            waiting += uses
        return seen

    def _definition(self, module: str, name: str) -> tuple[str, list[tuple[str, str]]]:
        """The normal form of a definition, and the definitions that it names."""
        nodes = self.module(module).definitions[name]
        text = "\n".join(ast.unparse(node) for node in nodes)
        return text, list(dict.fromkeys(self._uses(module, nodes, loads="import_module" in text)))

    def _uses(self, module: str, nodes: list[ast.stmt], *, loads: bool) -> Iterator[tuple[str, str]]:
        for node in nodes:
            for part in ast.walk(node):
                if isinstance(part, ast.Name):
                    yield from self._resolve(module, part.id)
                elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                    yield from self._resolve(module, part.value.id, part.attr)
                elif isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.isidentifier():
                    yield from self._resolve(module, part.value)  # an annotation in quotes
        path = self.module(module).path
        if loads and path.name == "__init__.py" and path.parent != self.root / module.partition(".")[0]:
            for plugin in sorted(path.parent.glob("[!_]*.py")):
                yield from self._all_of(f"{module}.{plugin.stem}")

    def _resolve(self, module: str, name: str, attribute: str = "") -> Iterator[tuple[str, str]]:
        here = self.module(module)
        if name in here.definitions:
            yield module, name
        elif name in here.imports:
            source, original = here.imports[name]
            there = self.module(source)
            if original and there and original in there.definitions:
                yield source, original
            elif self.module(whole := f"{source}.{original}".strip(".")):
                yield from self._resolve(whole, attribute) if attribute else ()
            elif original and there and original in there.imports:  # handed on by another module
                yield from self._resolve(source, original, attribute)

    def _all_of(self, module: str) -> Iterator[tuple[str, str]]:
        for name in self.module(module).definitions:
            yield module, name

    def _module(self, name: str) -> _Module | None:
        """A module of the packages by its dotted name, or None."""
        if name.partition(".")[0] not in PACKAGES:
            return None
        base = self.root.joinpath(*name.split("."))
        path = next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)
        return _Module(path) if path else None


class _Module:
    """What a file defines, imports and does when it is imported."""

    def __init__(self, path: Path):
        self.path = path
        original = ast.parse(path.read_bytes())
        tree = _WithoutPlaces().visit(_without_docstrings(ast.parse(path.read_bytes())))
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        """Local name to (module, name in that module)."""
        self.at_import: list[str] = []
        """Names of definitions that count as soon as the module is imported."""
        for number, node in enumerate(tree.body):
            names = list(_names(node))
            if not names and not isinstance(node, ast.Import | ast.ImportFrom | ast.Pass) and not _is_guard(node):
                names = [f"statement {number}"]
                self.at_import += names
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and _registers(node):
                self.at_import += names
            for name in names:
                self.definitions.setdefault(name, []).append(node)
        for node in ast.walk(original):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self.imports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    package, _, leaf = alias.name.rpartition(".")
                    self.imports[alias.asname or alias.name.partition(".")[0]] = (package, leaf)


def _names(node: ast.stmt) -> Iterator[str]:
    """Names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def _is_guard(node: ast.stmt) -> bool:
    """`if TYPE_CHECKING:` and `if __name__ == "__main__":`, which do nothing when a stage runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test).startswith(("TYPE_CHECKING", "__name__"))


def _registers(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a decorator with arguments may have put the definition on a list; `dataclass(...)` does not."""
    calls = [ast.unparse(each.func) for each in node.decorator_list if isinstance(each, ast.Call)]
    return any(call.rpartition(".")[2] not in ("dataclass", "lru_cache") for call in calls)


class _WithoutPlaces(ast.NodeTransformer):
    """Takes out the imports from the packages, which say where a definition stands and not what it is."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | None:
        return ast.Pass() if node.module and node.module.partition(".")[0] in PACKAGES else node

    def visit_Import(self, node: ast.Import) -> ast.stmt | None:
        return ast.Pass() if all(alias.name.partition(".")[0] in PACKAGES for alias in node.names) else node


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
