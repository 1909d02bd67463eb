"""Names for replaceable parts: name -> class, with did-you-mean and a check of the arguments.

A *part* is a class in a file of one package (a generator, a discriminator, an objective). Decorating it with
`@PARTS.register("name", paper="...")` is all that it takes: the registry finds the file by reading the package's
sources, so the names, their arguments and any mistake in them are known without importing torch.

A *leaf* is a part as a config names it: `{_target_: name, argument: value, ...}`. Its `_target_` is a registered name,
or a *dotted path* to a class of MONAI or torch, for example `monai.networks.nets.UNet`, or of a module that the user
allows (see `trust`). The class of a dotted path is read from its source too: what it is and which arguments it takes is
known before it is imported. Only where there is no source to read is that checked when it is built.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from medcyclegan.errors import InputError
from medcyclegan.sources import Definition, ancestry, defines, find_class, find_init, package_exists
from medcyclegan.trust import TRUSTED, distrust, hidden_code, sealed, under

C = TypeVar("C", bound=type)
REQUIRED = object()
UNKNOWN = object()  # a default that is not plain data
PLAIN_TYPES: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}
NETWORK = ("torch.nn.modules.module", "Module")


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
    """A class as its source describes it.

    Attributes:
        name: registered name or dotted path.
        module: dotted name of the module that defines the class.
        class_name: its name there.
        summary: first line of its docstring.
        paper: where the method comes from.
        arguments: by name, in the order of the signature.
        open_ended: takes **kwargs, which cannot be checked.
    """

    name: str
    module: str
    class_name: str
    summary: str
    paper: str = ""
    arguments: dict[str, Argument] = field(default_factory=dict)
    open_ended: bool = False


class Registry:
    """The parts of one kind, found in the sources of one package or module.

    Args:
        kind: what a part is called in messages, for example "generator".
        package: dotted name of the package whose files hold the parts, or of a single module that holds them all.
        given: arguments that the program itself passes, which a config may not set.
        offered: likewise, but passed only to the parts that take them.
        adapter: dotted path of a function `(part, **given) -> part` that makes a part from outside this program keep
            the contract of its kind.
        methods: what a class needs to serve as a part of this kind; without any it has to be a `torch.nn.Module`, which
            those of MONAI and torch have to be anyway.
        attributes: what an object of it needs to have.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        given: tuple[str, ...] = (),
        offered: tuple[str, ...] = (),
        adapter: str | None = None,
        methods: tuple[str, ...] = (),
        attributes: tuple[str, ...] = (),
    ) -> None:
        self.kind = kind
        self.package = package
        self.given = given + offered
        self.offered = offered
        self.adapter = adapter
        self.methods = methods
        self.attributes = attributes

    def register(self, name: str, *, paper: str = "") -> Callable[[C], C]:
        """Class decorator that marks a part; name and paper are read from the source, so both are literals."""

        def mark(cls: C) -> C:
            return cls

        return mark

    def parts(self) -> dict[str, Part]:
        """All registered parts by name, read from the sources without importing them."""
        place = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        single = place.with_suffix(".py")
        found: dict[str, Part] = {}
        for file in [single] if single.is_file() else sorted(place.glob("*.py")):
            module = self.package if file == single else f"{self.package}.{file.stem}"
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and (marked := _registration(node)):
                    name, paper = marked
                    if name in found:
                        raise ValueError(f"two {self.kind}s are called '{name}', in {found[name].module} and {module}")
                    found[name] = _described(name, paper, Definition(module, file, node))
        return found

    def find(self, target: str) -> Part | str | None:
        """The part that a `_target_` names, an error message, or None if its source cannot be read."""
        if "." not in target:
            parts = self.parts()
            hint = did_you_mean(target, list(parts))
            missing = f"there is no {self.kind} '{target}'; there are: {', '.join(parts)}, and dotted paths.{hint}"
            return parts.get(target, missing)
        # A file may be called 12_new_generator.py; no name leads out of its folder.
        if not re.fullmatch(r"\w+(\.\w+)+", target):
            return f"{self.kind} '{target}': a name or a dotted path is needed, such as monai.networks.nets.UNet"
        if not package_exists(target):
            top = target.split(".")[0]
            return (
                f"{self.kind} '{target}': there is no package '{top}'; install it, or put its folder on PYTHONPATH, "
                "or give a registered name"
            )
        try:
            definition = find_class(target)
            unread = not isinstance(definition, Definition) or find_init(definition) is None
        except SyntaxError as error:
            return f"{self.kind} '{target}': {error.filename} is not valid Python, line {error.lineno}: {error.msg}"
        if isinstance(definition, str):
            return f"{self.kind} '{target}': {definition}"
        if definition is None or unread:
            return None
        return _described(target, "", definition)

    def check(self, leaf: Mapping[str, Any], allow: Iterable[str] = ()) -> list[str]:
        """What is wrong with a leaf; empty if nothing.

        Args:
            leaf: the part and its arguments. A dotted path's class without readable source is checked when it is built.
            allow: modules or packages that the user trusts beside those of `trust.TRUSTED`.
        """
        allowed = tuple(allow)
        arguments = {key: value for key, value in leaf.items() if key != "_target_"}
        hidden = [f"{self.kind}: {problem}" for problem in hidden_code(arguments)]
        part = self.find(str(leaf.get("_target_")))
        if isinstance(part, str):
            return [part]
        if refused := self._refusal(str(leaf["_target_"]), allowed):
            return [refused]
        return hidden or ([] if part is None else self._check_arguments(part, leaf))

    def complete(self, leaf: Mapping[str, Any]) -> dict[str, Any]:
        """The leaf with every default spelled out, so that later changes of defaults do not affect it.

        The defaults of classes outside this program belong to their libraries and are left alone.
        """
        part = self.find(leaf["_target_"])
        arguments = part.arguments if isinstance(part, Part) and under(part.module, ("medcyclegan",)) else {}
        defaults = {
            key: argument.default
            for key, argument in arguments.items()
            if key not in self.given and argument.default is not REQUIRED and argument.default is not UNKNOWN
        }
        return {"_target_": leaf["_target_"], **defaults, **leaf}

    def class_of(self, leaf: Mapping[str, Any], allow: Iterable[str] = ()) -> type[Any]:
        """Import the class that a leaf names, without calling it.

        Raises:
            InputError: for an unknown name, a class of another kind or that is not trusted, or what cannot be imported.
        """
        return self._found(str(leaf.get("_target_")), tuple(allow))[1]

    def build(self, leaf: Mapping[str, Any], allow: Iterable[str] = (), **given: Any) -> Any:
        """Import the class that a leaf names and call it with the leaf's arguments and those of the program.

        Raises:
            InputError: for an unknown name or argument, a class of another kind or that is not trusted, or a value that
                the class refuses.
        """
        allowed = tuple(allow)
        if problems := self.check(leaf, allowed):
            raise InputError("; ".join(problems))
        part, cls = self._found(str(leaf["_target_"]), allowed)
        if problems := self._check_arguments(part, leaf):
            raise InputError("; ".join(problems))
        arguments = {key: value for key, value in leaf.items() if key != "_target_"}
        given = {key: value for key, value in given.items() if key not in self.offered or key in part.arguments}
        ours = under(cls.__module__, ("medcyclegan",))
        what = f"{self.kind} '{part.name}'"
        try:
            with nullcontext() if ours or under(cls.__module__, allowed) else sealed(what):
                built = cls(**arguments, **given)
                if lacking := [name for name in self.attributes if not hasattr(built, name)]:
                    raise TypeError(f"it has no {', '.join(lacking)}, as every {self.kind} needs")
                if self.adapter is None or ours:
                    return built
                module, _, function = self.adapter.rpartition(".")
                return getattr(importlib.import_module(module), function)(built, **given)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(f"{what} cannot be built: {error}") from error
        except Exception as error:
            if ours:
                raise
            raise InputError(f"{what} cannot be built: {type(error).__name__}: {error}") from error

    def _refusal(self, target: str, allow: tuple[str, ...]) -> str | None:
        """Why a class cannot be a part of this kind, as far as its source tells; nothing is imported."""
        if "." not in target:
            return None
        definition = find_class(target)
        if isinstance(definition, Definition):
            classes, whole = ancestry(definition)
            is_network = any((c.module, c.node.name) == NETWORK for c in classes)
            lacking = [name for name in self.methods if not any(defines(c, name) for c in classes)]
            if whole and (wrong := self._wrong_kind(definition.module, is_network, lacking, allow)):
                return f"{self.kind} '{target}' cannot serve: {wrong}"
        if reason := distrust(target, allow):
            return f"{self.kind} is code from elsewhere, which would run on this machine: {reason}"
        return None

    def _wrong_kind(self, module: str, is_network: bool, lacking: list[str], allow: tuple[str, ...]) -> str | None:
        own = under(module, ("medcyclegan", *allow))
        if not is_network and not (own and self.methods):
            return "a class that is a torch.nn.Module is needed"
        return f"it has no {', '.join(lacking)}, as every {self.kind} needs" if lacking else None

    def _found(self, target: str, allow: tuple[str, ...]) -> tuple[Part, type[Any]]:
        """A part and its class, imported after it was found to be trusted, and looked at before it is called."""
        part = self.find(target)
        if isinstance(part, str):
            raise InputError(part)
        if refused := self._refusal(target, allow):
            raise InputError(refused)
        module, _, name = target.rpartition(".") if part is None else (part.module, "", part.class_name)
        try:
            cls: Any = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise InputError(f"{self.kind} '{target}' cannot be imported: {error}.") from error
        if not isinstance(cls, type):
            raise InputError(f"{self.kind} '{target}' is no class.")
        if not under(cls.__module__, (*TRUSTED, *allow)):
            raise InputError(f"{self.kind} '{target}' is of {cls.__module__}, which is not allowed.")
        if "." in target:
            bound = {key for c in cls.__mro__ for key in vars(c)}
            is_network = any((c.__module__, c.__name__) == NETWORK for c in cls.__mro__)
            lacking = [name for name in self.methods if name not in bound]
            if wrong := self._wrong_kind(cls.__module__, is_network, lacking, allow):
                raise InputError(f"{self.kind} '{target}' cannot serve: {wrong}.")
        return (_looked_at(target, cls) if part is None else part), cls

    def _check_arguments(self, part: Part, leaf: Mapping[str, Any]) -> list[str]:
        name, arguments = part.name, part.arguments
        allowed = [argument for argument in arguments if argument not in self.given]
        problems = []
        for key in leaf:
            if key == "_target_":
                continue
            if key in self.given:
                problems.append(f"{self.kind} '{name}': '{key}' is set by the program and cannot be configured")
            elif key not in allowed:
                if not part.open_ended:
                    hint = did_you_mean(key, allowed)
                    problems.append(
                        f"{self.kind} '{name}' has no argument '{key}'; it has: {', '.join(allowed)}.{hint}"
                    )
            elif not arguments[key].accepts(leaf[key]):
                wanted = arguments[key].type_name
                problems.append(f"{self.kind} '{name}': '{key}' must be a {wanted}, got {leaf[key]!r}")
        missing = [key for key in allowed if arguments[key].default is REQUIRED and key not in leaf]
        problems += [f"{self.kind} '{name}' needs the argument '{key}'" for key in missing]
        required = [key for key in self.given if key not in self.offered]
        unwanted = [key for key in required if key not in arguments and not part.open_ended]
        if unwanted:
            problems.append(
                f"{self.kind} '{name}' cannot serve: the program passes {', '.join(required)}, and it does not take "
                f"{', '.join(unwanted)}"
            )
        return problems


def _registration(node: ast.ClassDef) -> tuple[str, str] | None:
    """Name and paper of `@X.register("name", paper="...")`."""
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Attribute)
            and decorator.func.attr == "register"
            and isinstance(decorator.args[0], ast.Constant)
        ):
            papers = [str(ast.literal_eval(k.value)) for k in decorator.keywords if k.arg == "paper"]
            return str(decorator.args[0].value), papers[0] if papers else ""
    return None


def _described(name: str, paper: str, definition: Definition) -> Part:
    summary = (ast.get_docstring(definition.node) or "").split("\n")[0]
    init = find_init(definition)
    arguments = _arguments(init) if init is not None else {}
    open_ended = init is not None and init.args.kwarg is not None
    return Part(name, definition.module, definition.node.name, summary, paper, arguments, open_ended)


def _arguments(init: ast.FunctionDef) -> dict[str, Argument]:
    positional = [*init.args.posonlyargs, *init.args.args][1:]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(init.args.defaults))
    names = [*positional, *init.args.kwonlyargs]
    defaults = [*missing, *init.args.defaults, *init.args.kw_defaults]
    return {
        name.arg: Argument(_default(default), ast.unparse(name.annotation) if name.annotation else "")
        for name, default in zip(names, defaults, strict=True)
    }


def _default(node: ast.expr | None) -> Any:
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNKNOWN


def _looked_at(target: str, cls: type[Any]) -> Part:
    """The part of an imported class whose source cannot be read."""
    try:
        parameters = list(inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):
        return Part(target, cls.__module__, cls.__name__, "", open_ended=True)
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    arguments = {p.name: Argument(REQUIRED if p.default is p.empty else p.default) for p in named}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return Part(target, cls.__module__, cls.__name__, "", "", arguments, open_ended)


GENERATORS = Registry(
    "generator",
    "medcyclegan.networks.generators",
    given=("in_channels", "out_channels", "spatial_dims"),
    adapter="medcyclegan.networks.foreign.adapt_generator",
)
DISCRIMINATORS = Registry(
    "discriminator",
    "medcyclegan.networks.discriminators",
    given=("in_channels", "spatial_dims"),
    adapter="medcyclegan.networks.foreign.adapt_discriminator",
)
OBJECTIVES = Registry(
    "objective",
    "medcyclegan.training.objectives",
    given=("networks",),
    offered=("adversarial", "reconstruction", "structure", "example", "seed"),
    methods=("generator_losses", "discriminator_losses", "state_dict", "load_state_dict"),
    attributes=("directions",),
)
ADVERSARIAL_LOSSES = Registry(
    "adversarial loss",
    "medcyclegan.losses.adversarial",
    methods=("generator", "discriminator"),
    attributes=("penalty_weight",),
)
RECONSTRUCTION_LOSSES = Registry("reconstruction loss", "medcyclegan.losses.reconstruction", methods=("__call__",))
STRUCTURE_LOSSES = Registry(
    "structure loss",
    "medcyclegan.losses.structure",
    offered=("windows",),
    methods=("__call__",),
    attributes=("weight",),
)

# What `medcyclegan list KIND` shows.
LISTED: dict[str, tuple[Registry, ...]] = {
    "generators": (GENERATORS,),
    "discriminators": (DISCRIMINATORS,),
    "losses": (ADVERSARIAL_LOSSES, RECONSTRUCTION_LOSSES, STRUCTURE_LOSSES),
    "objectives": (OBJECTIVES,),
}


def listing(kind: str) -> list[dict[str, Any]]:
    """The registered parts of a kind as plain data: name, kind, summary, paper, arguments with type and default.

    Raises:
        InputError: for an unknown kind.
    """
    if kind not in LISTED:
        raise InputError(
            f"there is no kind '{kind}'; there are: {', '.join(LISTED)}.{did_you_mean(kind, list(LISTED))}"
        )
    return [
        {
            "name": part.name,
            "kind": registry.kind,
            "summary": part.summary,
            "paper": part.paper,
            "arguments": [
                {"name": name, "type": argument.type_name, "required": argument.default is REQUIRED}
                | ({} if argument.default in (REQUIRED, UNKNOWN) else {"default": argument.default})
                for name, argument in part.arguments.items()
                if name not in registry.given
            ],
        }
        for registry in LISTED[kind]
        for part in registry.parts().values()
    ]
