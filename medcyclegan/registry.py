"""Names for replaceable parts: name -> class, with did-you-mean and a check of the arguments.

A *part* is a class in a file of one package (a generator, a discriminator, an objective). Decorating it with
`@PARTS.register("name")` is all that it takes: the registry finds the file by reading the package's sources, so the
names, their arguments and any mistake in them are known without importing torch.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medcyclegan.errors import InputError

C = TypeVar("C", bound=type)
REQUIRED = object()
PLAIN_TYPES: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}


def did_you_mean(given: str, allowed: list[str]) -> str:
    """ " Did you mean 'x'?" for the closest allowed name, or an empty string."""
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


@dataclass(frozen=True)
class Argument:
    """One argument of a part."""

    default: Any = REQUIRED
    type_name: str = ""

    def accepts(self, value: Any) -> bool:
        """False only where the annotation is a plain type that the value is not; a whole number is a float too."""
        expected = PLAIN_TYPES.get(self.type_name)
        if expected is None:
            return True
        return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))


@dataclass(frozen=True)
class Part:
    """A registered class as its source describes it."""

    name: str
    module: str
    class_name: str
    summary: str
    arguments: dict[str, Argument]


class Registry:
    """The parts of one kind, found in the sources of one package.

    Args:
        kind: what a part is called in messages, for example "generator".
        package: dotted name of the package whose files hold the parts, one each.
        given: arguments that the program itself passes, which a config may not set.
    """

    def __init__(self, kind: str, package: str, given: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.package = package
        self.given = given

    def register(self, name: str, paper: str = "") -> Callable[[C], C]:
        """Class decorator that marks a part; the name is read from the source."""

        def mark(cls: C) -> C:
            return cls

        return mark

    def parts(self) -> dict[str, Part]:
        """All parts by name, read from the sources without importing them."""
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        single = folder.with_suffix(".py")
        found: dict[str, Part] = {}
        for file in [single] if single.is_file() else sorted(folder.glob("*.py")):
            module = self.package if file == single else f"{self.package}.{file.stem}"
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and (name := _registered_name(node)):
                    summary = (ast.get_docstring(node) or "").split("\n")[0]
                    found[name] = Part(name, module, node.name, summary, _arguments(node))
        return found

    def check(self, leaf: Mapping[str, Any]) -> list[str]:
        """What is wrong with a config leaf `{_target_: name, argument: value, ...}`; empty if nothing."""
        parts = self.parts()
        name = leaf.get("_target_")
        if name not in parts:
            hint = did_you_mean(str(name), list(parts))
            return [f"there is no {self.kind} '{name}'; there are: {', '.join(parts)}.{hint}"]
        arguments = parts[name].arguments
        allowed = [argument for argument in arguments if argument not in self.given]
        problems = []
        for key in leaf:
            if key == "_target_":
                continue
            if key in self.given:
                problems.append(f"{self.kind} '{name}': '{key}' is set by the program and cannot be configured")
            elif key not in allowed:
                hint = did_you_mean(key, allowed)
                problems.append(f"{self.kind} '{name}' has no argument '{key}'; it has: {', '.join(allowed)}.{hint}")
            elif not arguments[key].accepts(leaf[key]):
                wanted = arguments[key].type_name
                problems.append(f"{self.kind} '{name}': '{key}' must be a {wanted}, got {leaf[key]!r}")
        missing = [key for key in allowed if arguments[key].default is REQUIRED and key not in leaf]
        problems += [f"{self.kind} '{name}' needs the argument '{key}'" for key in missing]
        return problems

    def complete(self, leaf: Mapping[str, Any]) -> dict[str, Any]:
        """The leaf with every default spelled out, so that it means the same when the defaults have changed."""
        arguments = self.parts()[leaf["_target_"]].arguments
        defaults = {key: a.default for key, a in arguments.items() if key not in self.given}
        return {"_target_": leaf["_target_"], **defaults, **leaf}

    def takes(self, leaf: Mapping[str, Any], argument: str) -> bool:
        """Whether the part that a leaf names has an argument of this name."""
        return argument in self.parts()[leaf["_target_"]].arguments

    def part_class(self, leaf: Mapping[str, Any]) -> type[Any]:
        """Import the class that a leaf names."""
        part = self.parts()[leaf["_target_"]]
        cls: type[Any] = getattr(importlib.import_module(part.module), part.class_name)
        return cls

    def build(self, leaf: Mapping[str, Any], **given: Any) -> Any:
        """Import the class that a leaf names and call it with the leaf's arguments and those of the program.

        Raises:
            InputError: for an unknown name or argument, or a value that the class refuses.
        """
        if problems := self.check(leaf):
            raise InputError("; ".join(problems))
        cls = self.part_class(leaf)
        arguments = {key: value for key, value in leaf.items() if key != "_target_"}
        try:
            return cls(**arguments, **given)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.kind} '{leaf['_target_']}' cannot be built: {error}") from error


def _registered_name(node: ast.ClassDef) -> str | None:
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Attribute)
            and decorator.func.attr == "register"
            and isinstance(decorator.args[0], ast.Constant)
        ):
            return str(decorator.args[0].value)
    return None


def _arguments(node: ast.ClassDef) -> dict[str, Argument]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            positional = item.args.args[1:]
            missing: list[ast.expr | None] = [None] * (len(positional) - len(item.args.defaults))
            names = [*positional, *item.args.kwonlyargs]
            defaults = [*missing, *item.args.defaults, *item.args.kw_defaults]
            return {
                name.arg: Argument(
                    REQUIRED if default is None else ast.literal_eval(default),
                    name.annotation.id if isinstance(name.annotation, ast.Name) else "",
                )
                for name, default in zip(names, defaults, strict=True)
            }
    return {}


GENERATORS = Registry(
    "generator", "medcyclegan.networks.generators", given=("in_channels", "out_channels", "spatial_dims")
)
DISCRIMINATORS = Registry("discriminator", "medcyclegan.networks.discriminators", given=("in_channels", "spatial_dims"))
OBJECTIVES = Registry(
    "objective",
    "medcyclegan.training.objectives",
    given=("networks", "seed", "adversarial", "reconstruction", "structure", "example"),
)
ADVERSARIAL_LOSSES = Registry("adversarial loss", "medcyclegan.losses.adversarial")
RECONSTRUCTION_LOSSES = Registry("reconstruction loss", "medcyclegan.losses.reconstruction")
STRUCTURE_LOSSES = Registry("structure loss", "medcyclegan.losses.structure", given=("windows",))
