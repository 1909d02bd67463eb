"""Classes found in source files by their dotted path, without importing anything.

Importing `monai.networks.nets` takes seconds, and importing a foreign package runs its code. So a dotted path is
followed in the sources as Python would: packages are folders, `from .swin_unetr import SwinUNETR` and `Unet = UNet`
are aliases.
"""

from __future__ import annotations

import ast
import builtins
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

_LONGEST_CHAIN = 20  # of re-exports; more is a cycle
_LONGEST_ANCESTRY = 50


@dataclass(frozen=True)
class Definition:
    """Where a class is written.

    Attributes:
        module: dotted name of the module that defines it.
        file: the module's source.
        node: the class in it.
    """

    module: str
    file: Path
    node: ast.ClassDef


def package_exists(target: str) -> bool:
    """True if the first name of a dotted path can be imported."""
    return _top_spec(target) is not None


def find_class(target: str) -> Definition | str | None:
    """The class that a dotted path names.

    Args:
        target: for example "monai.networks.nets.SwinUNETR".

    Returns:
        The definition; or what is wrong with the path, to follow its name; or None if that cannot be read from sources
        (compiled modules, names made by running code).

    Raises:
        SyntaxError: a module on the way is not valid Python.
    """
    return _resolve(target, 0)


def find_init(definition: Definition) -> ast.FunctionDef | None:
    """The `__init__` of a class, its own or inherited; None if it cannot be read from sources."""
    return _find_init(definition, 0)


def ancestry(definition: Definition) -> tuple[list[Definition], bool]:
    """A class and what it inherits from, the nearest first, and whether that is all: bases may be unreadable."""
    found, waiting, whole = [definition], [definition], True
    while waiting and len(found) < _LONGEST_ANCESTRY:
        where = waiting.pop(0)
        for base in where.node.bases:
            if isinstance(base, ast.Name) and hasattr(builtins, base.id):
                continue
            named = _from_expression(base, where, 0)
            if not isinstance(named, Definition):
                whole = False
            elif (named.module, named.node.name) not in {(d.module, d.node.name) for d in found}:
                found.append(named)
                waiting.append(named)
    return found, whole and not waiting


def defines(definition: Definition, name: str) -> bool:
    """True if the body of a class binds a name, as a method or as a value."""
    for item in definition.node.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.name == name:
            return True
        targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return True
    return False


def _top_spec(target: str) -> ModuleSpec | None:
    try:
        return find_spec(target.split(".")[0])  # of a top-level name: finds and does not import
    except ValueError:  # a module that was made by hand, or no name at all
        return None


def _find_init(definition: Definition, depth: int) -> ast.FunctionDef | None:
    for item in definition.node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    if definition.node.decorator_list and not _is_registration(definition.node):
        return None  # a dataclass, for example, has an __init__ that is not written
    for base in definition.node.bases:
        found = _from_expression(base, definition, depth)
        if isinstance(found, Definition) and depth < _LONGEST_CHAIN and (init := _find_init(found, depth + 1)):
            return init
    return None


def _is_registration(node: ast.ClassDef) -> bool:
    return all(
        isinstance(d, ast.Call) and isinstance(d.func, ast.Attribute) and d.func.attr == "register"
        for d in node.decorator_list
    )


def _from_expression(node: ast.expr, where: Definition, depth: int) -> Definition | str | None:
    """The class that `Name` or `package.Name` means in a module."""
    names = ast.unparse(node).split(".")
    if not all(name.isidentifier() for name in names):
        return None
    return _member(where.module, where.file, names, depth + 1)


def _resolve(target: str, depth: int) -> Definition | str | None:
    first, *rest = target.split(".")
    spec = _top_spec(first)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return _member(first, Path(spec.origin), rest, depth)


def _member(module: str, file: Path, names: list[str], depth: int) -> Definition | str | None:
    """What `names` means inside the module at `file`: its submodules first, then what its source binds."""
    if depth > _LONGEST_CHAIN:
        return None
    if not names:
        return f"{module} is a module; name a class in it"
    name, *rest = names
    if file.name == "__init__.py":
        for candidate in (file.parent / name / "__init__.py", file.parent / f"{name}.py"):
            # `from .senet import senet` binds a name of its own over the submodule's.
            if candidate.is_file() and (rest or name not in _bound(file)):
                return _member(f"{module}.{name}", candidate, rest, depth)
        unread = any(file.parent.glob(f"{name}.*")) or (file.parent / name).is_dir()
        if unread and name not in _bound(file):
            return None  # compiled, or a folder without __init__.py
    stars: list[str] = []
    for node in _statements(file):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Definition(module, file, node) if not rest else f"'{'.'.join(rest)}' is inside a class"
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return f"{module}.{name} is a function; a class is needed"
        if isinstance(node, ast.ImportFrom):
            origin = _absolute(node, module, file)
            for alias in node.names:
                if alias.name == "*":
                    stars.append(origin)
                elif (alias.asname or alias.name) == name:
                    return _resolve(".".join([origin, alias.name, *rest]), depth + 1)
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname == name:
                    return _resolve(".".join([alias.name, *rest]), depth + 1)
                if alias.asname is None and alias.name.split(".")[0] == name:
                    return _resolve(".".join([name, *rest]), depth + 1)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            if isinstance(node.value, ast.Name) and node.value.id != name:
                return _member(module, file, [node.value.id, *rest], depth + 1)
            return None
    for origin in stars:
        found = _resolve(".".join([origin, *names]), depth + 1)
        if found is None or isinstance(found, Definition):
            return found
    if "__getattr__" in _bound(file):
        return None
    close = difflib.get_close_matches(name, list(_bound(file)), n=1, cutoff=0.5)
    return f"there is no '{name}' in {module}" + (f". Did you mean '{close[0]}'?" if close else "")


def _bound(file: Path) -> Iterator[str]:
    """Names of the classes, functions and imported things of a module."""
    for node in _statements(file):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def _absolute(node: ast.ImportFrom, module: str, file: Path) -> str:
    if node.level == 0:
        return str(node.module)
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    parents = package[: len(package) - (node.level - 1)]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _statements(file: Path) -> Iterator[ast.stmt]:
    """Statements of a module, those inside `if` and `try` included."""
    waiting = list(_parse(file))
    while waiting:
        node = waiting.pop(0)
        yield node
        if isinstance(node, ast.If):
            waiting[:0] = [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            waiting[:0] = [*node.body, *(s for h in node.handlers for s in h.body), *node.orelse]


@cache
def _parse(file: Path) -> tuple[ast.stmt, ...]:
    return tuple(ast.parse(file.read_text(encoding="utf-8"), str(file)).body)
