"""Whose code a config or checkpoint may name.

A *dotted path* such as `monai.networks.nets.UNet` makes this program import a module and call a class. What counts is
where the class is defined, never the path by which it is reached: `monai.networks.utils.os.system` is a function of
`os`. Nothing is imported to find out; sources are read.

A class of MONAI or torch may itself download weights, unpickle files or start programs when it is asked to. So it is
built *sealed*: such a try is refused, whatever the argument that asks for it is called.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from medcyclegan.errors import InputError, raise_all
from medcyclegan.sources import Definition, find_class, package_exists

# Where the class of a dotted path may be defined without being allowed by the user.
TRUSTED = (
    "medcyclegan.networks",
    "medcyclegan.losses",
    "medcyclegan.training.objectives",
    "monai.networks",
    "monai.losses",
    "torch.nn.modules",
)
# What a MONAI bundle would evaluate or import in a text that begins so: expressions, references, macros.
EVALUATED = ("$", "@", "%")
# Audit events (PEP 578) of what needs more than the arguments: the network, other programs, unpickling.
_REFUSED_EVENTS = {
    **dict.fromkeys(("socket", "urllib", "http", "ftplib"), "use the network"),
    **dict.fromkeys(("subprocess", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"), "start a program"),
    "pickle": "unpickle a file, which runs what is in it",
}
_SILENT_EVENTS = ("socket.__new__", "socket.gethostname")  # without network traffic


def under(module: str, packages: Iterable[str]) -> bool:
    """True if a module is one of some packages, or in one of them."""
    return any(module == package or module.startswith(package + ".") for package in packages)


def origin(target: str) -> tuple[str, bool]:
    """The module that defines the class of a dotted path, or the path itself if that is unknown.

    Returns:
        The module, and whether it was read.
    """
    try:
        definition = find_class(target) if package_exists(target) else None
    except (SyntaxError, OSError, ValueError):
        definition = None
    return (definition.module, True) if isinstance(definition, Definition) else (target, False)


def distrust(target: str, allow: Iterable[str] = ()) -> str | None:
    """Why a dotted path is not imported, with what to do; None if it may be.

    Args:
        target: the dotted path.
        allow: modules or packages that the user trusts, for example "mypackage".
    """
    module, read = origin(target)
    if under(module, (*TRUSTED, *allow) if read else allow):
        return None
    return f"'{target}'; if you trust its author, allow it with --allow {module.split('.')[0]}"


def require_trusted(content: Any, source: str, allow: Iterable[str] = ()) -> None:
    """Refuse foreign plain data, such as a checkpoint's config, that would import and run unknown code.

    Every `_target_` in `content` that is a dotted path must be a class of `TRUSTED`, or in a module that the user
    allows. Nothing is imported to find out.

    Args:
        content: nested dictionaries and lists.
        source: what `content` belongs to, for the message.
        allow: modules or packages that the user trusts, for example "mypackage".

    Raises:
        InputError: naming every module that is not trusted.
    """
    allowed = tuple(allow)
    problems = [problem for target in _targets(content) if "." in target and (problem := distrust(target, allowed))]
    raise_all(problems, f"{source} names code of its own, which would run on this machine:")


def hidden_code(value: Any, where: str = "") -> list[str]:
    """Arguments of a part that are not plain data to every reader, named by their keys.

    This program takes them as they are, but MONAI builds what has a `_target_` and evaluates texts that begin with $,
    as soon as the part stands in the config of an exported bundle.
    """
    if isinstance(value, Mapping):
        inside = [p for key, item in value.items() for p in hidden_code(item, f"{where}.{key}" if where else str(key))]
        special = [str(key) for key in value if str(key).startswith(("_", *EVALUATED))]
        place = f"'{where}' holds" if where else "there is"
        return [f"{place} the key {key}, and an argument is plain data" for key in special] + inside
    if isinstance(value, list | tuple):
        return [problem for item in value for problem in hidden_code(item, where)]
    if isinstance(value, str) and value.startswith(EVALUATED):
        return [f"'{where}' is {value!r}, which MONAI would evaluate; an argument is plain data"]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"'{where}' is {value}, and a finite number is needed"]
    return []


_tries: ContextVar[list[str] | None] = ContextVar("tries", default=None)
_hooked = False


@contextmanager
def sealed(what: str) -> Iterator[None]:
    """Refuse, in this thread, whatever needs the network, another program, unpickling or torch hub's folder.

    Raises:
        InputError: it was tried, even if the caller handled the refusal.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_refuse)  # stays until the process ends, and is of no effect elsewhere
        _hooked = True
    tries: list[str] = []
    token = _tries.set(tries)
    try:
        yield
    except Exception as error:
        if not tries:
            raise
        raise _sealed_error(what, tries) from error
    finally:
        _tries.reset(token)
    if tries:
        raise _sealed_error(what, tries)


def _sealed_error(what: str, tries: list[str]) -> InputError:
    return InputError(
        f"{what} cannot be built: it would {tries[0]}, and what a config names is made from its arguments alone.",
        "Leave out what asks for pretrained weights, or allow the module with --allow if you trust what it does.",
    )


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    tries = _tries.get()
    if tries is None or event in _SILENT_EVENTS:
        return
    does = next((does for start, does in _REFUSED_EVENTS.items() if event.startswith(start)), None)
    if does is None and event in ("open", "os.listdir", "os.mkdir") and _in_torch_hub(args[0]):
        does = "take code or weights from torch hub"
    if does is not None:
        tries.append(f"{does} ({event})")
        raise PermissionError(f"a class that a config names may not {does}")


def _in_torch_hub(path: Any) -> bool:
    hub = sys.modules.get("torch.hub")
    if hub is None or not isinstance(path, str | os.PathLike):
        return False
    folder = Path(hub.get_dir()).absolute()
    return Path(path).absolute().is_relative_to(folder)


def _targets(content: Any) -> Iterator[str]:
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping) and "_target_" in value:
            yield str(value["_target_"])
        waiting += reversed(list(value.values() if isinstance(value, Mapping) else value))
