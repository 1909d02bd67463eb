"""Reference pages made from the program itself: its commands, its configuration and its parts, as Markdown.

Nothing here imports torch, since none of the three sources does.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from medcyclegan.cli import app
from medcyclegan.config import DEFAULT_PARTS, Experiment
from medcyclegan.registry import LISTED, listing

PART = "a part by `_target_`, with its arguments; see [parts](parts.md)"
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "min_length": "length at least"}


def commands() -> str:
    """Every verb with its arguments and options."""
    parts = []
    for name, verb in sorted(typer.main.get_command(app).commands.items()):  # type: ignore[attr-defined]
        parts += [f"## {name}", "", str(verb.help).strip(), "", "| option | default | meaning |", "|---|---|---|"]
        parts += [_row(*_option(parameter)) for parameter in verb.params if parameter.name != "help"]
        parts.append("")
    return "\n".join(parts)


def configuration() -> str:
    """Every key of an experiment with its default, its range and its meaning."""
    return "\n".join(_sections(Experiment, Experiment(), ""))


def parts() -> str:
    """Every part that a configuration can name."""
    lines = []
    for kind in LISTED:
        lines += [f"## {kind.capitalize()}", ""]
        for part in listing(kind):
            lines += [f"### {part['name']}", "", f"{part['summary']} *{part['paper']}*", ""]
            if part["kind"].replace(" ", "") not in kind:
                lines[-2] = f"A {part['kind']}. {lines[-2]}"
            for argument in part["arguments"]:
                default = "needed" if argument["required"] else f"`{argument.get('default')!r}`"
                lines.append(f"- `{argument['name']}`: {default}")
            lines.append("")
    return "\n".join(lines)


TEXTS: dict[str, Callable[[], str]] = {"commands": commands, "configuration": configuration, "parts": parts}


def _option(parameter: Any) -> tuple[str, str, str]:
    flag = parameter.param_type_name == "option"
    name = (
        ", ".join(f"`{text}`" for text in parameter.opts)
        if flag
        else f"`{parameter.metavar or parameter.name.upper()}`"
    )
    if parameter.required:
        default = "needed"
    elif parameter.default is None or parameter.default is False:
        default = ""
    else:
        default = f"`{_plain(parameter.default)}`"
    return name, default, str(parameter.help or "")


def _sections(model: type[BaseModel], defaults: BaseModel, path: str) -> Iterator[str]:
    fields = model.model_fields
    inner = {name: field for name, field in fields.items() if _is_section(field)}
    yield f"## {path or 'Top level'}"
    yield ""
    yield f"{(model.__doc__ or '').strip().splitlines()[0]}"
    yield ""
    leaves = {name: field for name, field in fields.items() if name not in inner}
    if leaves:
        yield "| key | default | values | meaning |"
        yield "|---|---|---|---|"
        for name, field in leaves.items():
            yield _row(
                f"`{name}`", f"`{_default(name, getattr(defaults, name))}`", _values(field), field.description or PART
            )
        yield ""
    for name, field in inner.items():
        assert isinstance(field.annotation, type)
        yield from _sections(field.annotation, getattr(defaults, name), f"{path}.{name}" if path else name)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _default(name: str, value: Any) -> str:
    return DEFAULT_PARTS.get(name) or _plain(value)


def _plain(value: Any) -> str:
    """As YAML writes it."""
    if isinstance(value, tuple):
        value = [list(part) if isinstance(part, tuple) else part for part in value]
    if not isinstance(value, (str, int, float, list, dict, type(None))):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...").removesuffix("...").strip()


def _values(field: FieldInfo) -> str:
    bounds = [text for constraint in field.metadata for text in _bounds(constraint)]
    return ", ".join([_type(field.annotation), *bounds])


def _bounds(constraint: Any) -> Iterator[str]:
    for name, words in BOUNDS.items():
        if (limit := getattr(constraint, name, None)) is not None:
            yield f"{words} {limit:g}"


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *constraints = arguments
        limits: list[str] = []
        for constraint in constraints:
            limits += [t for part in getattr(constraint, "metadata", [constraint]) for t in _bounds(part)]
        return ", ".join([_type(inner), *limits])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in arguments if part is not type(None)) + " or `null`"
    if origin in (tuple, list):
        repeated = origin is list or arguments[-1] is Ellipsis
        items = [_type(part) for part in arguments if part is not Ellipsis]
        if not repeated and len(set(items)) == 1:
            return f"{len(items)} times {items[0]}"
        return f"list of {items[0]}" if repeated else f"[{'; '.join(items)}]"
    if origin is dict:
        return "mapping"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, "path" if getattr(annotation, "__name__", "") == "Path" else str(annotation))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
